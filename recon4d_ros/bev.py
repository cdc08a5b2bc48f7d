"""The bird's-eye-view grid of a network (BEVFormer, Li et al., ECCV 2022): which cells a camera
sees, and how what is remembered moves with the car. Pure functions on arrays.

A grid's frame is base_link (x forward, y left, z up) or a lidar's (x right, y forward, z up). Its
cells are numbered row by row: cell (r, c) has index r * columns + c, rows run along +y and columns
along +x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from recon4d_ros.geometry import inverse, se3
from recon4d_ros.types import Calibration

HEIGHTS = 4  # points of a pillar
NEAREST = 1e-5  # metres: depth of a point that counts as before a camera
GRAVITY = 9.8  # m/s^2, as the CAN bus of the published training has it
POSITION, QUATERNION = slice(0, 3), slice(3, 7)
ACCELERATION, RATES, VELOCITY = slice(7, 10), slice(10, 13), slice(13, 16)
YAW, YAW_DEGREES = 16, 17
CAN_BUS = 18


@dataclass(frozen=True)
class BevGrid:
    """rows along y, columns along x; low, high: [3] metres, the volume that the pillars stand
    in."""

    rows: int
    columns: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    @property
    def extent(self) -> NDArray[np.float64]:
        """[3] metres"""
        return np.subtract(self.high, self.low)


@dataclass(frozen=True)
class CellsInView:
    """Which cells every camera sees, as tables of fixed size. N cameras of K slots each.

    cell: [N, K] int32, the cell of a slot (0 in a slot that is not used). point: [N, K, HEIGHTS, 2]
    float32, where its pillar falls in the image, (u, v) in units of the image's size, 0..1 inside;
    outside of it also where a point is behind the camera. slot: [cells, V] int32, the slots that
    show a cell, numbered over all cameras (camera * K + place), N * K where there are fewer.
    """

    cell: NDArray[np.int32]
    point: NDArray[np.float32]
    slot: NDArray[np.int32]


def pillar_heights(grid: BevGrid) -> NDArray[np.float64]:
    """[HEIGHTS] metres: from half a metre above the bottom to half a metre below the top, evenly
    spaced (not the centres of equal slabs: as BEVFormer's code has it)."""
    low, high = grid.low[2], grid.high[2]
    return low + np.linspace(0.5, high - low - 0.5, HEIGHTS)


def cell_centres(grid: BevGrid) -> NDArray[np.float64]:
    """[cells, 2] x, y in metres."""
    x, y = (
        low + (np.arange(count) + 0.5) / count * (high - low)
        for low, high, count in zip(grid.low, grid.high, (grid.columns, grid.rows), strict=False)
    )
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def image_from_grid(
    calibration: Calibration, lidar: ArrayLike | None = None
) -> NDArray[np.float64]:
    """[N, 4, 4] as `project_pillars` takes it, into the working images. lidar: None for a grid in
    base_link; else [3] metres, where in base_link a lidar stands whose frame the grid is in."""
    matrix = np.tile(np.eye(4), (len(calibration.names), 1, 1))
    matrix[:, :3, :3] = calibration.k
    matrix = matrix @ inverse(calibration.T_base_camera)
    if lidar is None:
        return matrix
    right_forward_up = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    return matrix @ se3(right_forward_up, np.asarray(lidar, np.float64))


def project_pillars(
    grid: BevGrid, image_from_grid: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Every pillar in every image: points [N, cells, HEIGHTS, 2] in units of the image's size, and
    whether each is seen [N, cells, HEIGHTS].

    image_from_grid: [N, 4, 4], K (as 4x4) times the camera's T_camera_grid: from metres to (u z, v
    z, z, 1) in pixels. size: (h, w) in pixels, padding included. A point is seen if it lies more
    than NEAREST before the camera and inside the image (strictly). In float32, as published.
    """
    centres, heights = cell_centres(grid), pillar_heights(grid)
    pillars = np.concatenate(
        [
            np.broadcast_to(centres[:, None], (grid.cells, HEIGHTS, 2)),
            np.broadcast_to(heights[None, :, None], (grid.cells, HEIGHTS, 1)),
        ],
        -1,
    ).astype(np.float32)
    matrix = image_from_grid[:, :3].astype(np.float32)
    seen_from = np.einsum("nij,qhj->nqhi", matrix[:, :, :3], pillars) + matrix[:, None, None, :, 3]
    depth = seen_from[..., 2:]
    points = seen_from[..., :2] / np.maximum(depth, np.float32(NEAREST))
    points /= np.array(size[::-1], np.float32)
    inside = np.logical_and(points > 0, points < 1).all(-1)
    return points, inside & np.asarray(depth[..., 0] > NEAREST)


def cells_in_view(
    points: NDArray[np.float32], seen: NDArray[np.bool_], slots: int = 0, views: int = 0
) -> CellsInView:
    """The tables for what `project_pillars` found. A camera sees a cell if it sees any point of its
    pillar. slots, views: K and V (0: as many as are needed; see `needed`)."""
    cameras, cells = seen.shape[:2]
    any_point = np.asarray(seen.any(-1))
    wanted = needed(seen)
    slots, views = slots or wanted[0], views or wanted[1]
    if slots < wanted[0] or views < wanted[1]:
        raise ValueError(f"{slots} slots, {views} views: {wanted} are needed")
    cell = np.zeros((cameras, slots), np.int32)
    point = np.full((cameras, slots, HEIGHTS, 2), -1, np.float32)
    slot = np.full((cells, views), cameras * slots, np.int32)
    used = np.zeros(cells, np.int64)
    for camera in range(cameras):
        shown = np.flatnonzero(any_point[camera])
        cell[camera, : len(shown)] = shown
        point[camera, : len(shown)] = points[camera, shown]
        slot[shown, used[shown]] = camera * slots + np.arange(len(shown))
        used[shown] += 1
    return CellsInView(cell, point, slot)


def needed(seen: NDArray[np.bool_]) -> tuple[int, int]:
    """The most cells that a camera sees, and the most cameras that see a cell, at least 1 each."""
    any_point = seen.any(-1)
    return max(1, int(any_point.sum(1).max())), max(1, int(any_point.sum(0).max()))


def trained_places(
    T_base_camera: NDArray[np.float64], trained: tuple[float, ...]
) -> NDArray[np.int32]:
    """[N] which of the cameras of the training each camera of a rig is: the one that looks in the
    most similar direction, each taken once unless there are more cameras than that.

    T_base_camera: [N, 4, 4]. trained: degrees, counter-clockwise from straight ahead.
    """
    ahead = T_base_camera[:, :2, 2]
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    apart = 1 - np.cos(yaw[:, None] - np.radians(trained))
    if len(yaw) > len(trained):
        return apart.argmin(1).astype(np.int32)
    return linear_sum_assignment(apart)[1].astype(np.int32)


def can_bus(
    T_map_base: NDArray[np.float64],
    velocity: NDArray[np.float64],
    acceleration: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[18] the car's state as BEVFormer's data sets have it: position in map, quaternion w x y z,
    acceleration (gravity's reaction included), rotation rate and velocity in base_link, yaw in
    radians and in degrees, 0 to a full turn.

    velocity: [6] twist in base_link, m/s and rad/s. acceleration: [3] m/s^2.
    """
    state = np.zeros(CAN_BUS)
    rotation = Rotation.from_matrix(T_map_base[:3, :3])
    state[POSITION] = T_map_base[:3, 3]
    state[QUATERNION] = rotation.as_quat(canonical=True)[[3, 0, 1, 2]]
    state[ACCELERATION], state[RATES], state[VELOCITY] = acceleration, velocity[3:], velocity[:3]
    yaw = np.arctan2(T_map_base[1, 0], T_map_base[0, 0]) % (2 * np.pi)
    state[YAW], state[YAW_DEGREES] = yaw, np.degrees(yaw)
    return state


def streamed(now: NDArray[np.float64], before: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """[18] what the network is given of the car's state: position and degrees as differences to the
    step before (0 in the first), the rest as it is.

    The difference in degrees is not wrapped, as in the published training: it enters a layer as it
    is.
    """
    given = now.copy()
    for entry in (POSITION, YAW_DEGREES):
        given[entry] = 0 if before is None else now[entry] - before[entry]
    return given


def history_shift(given: NDArray[np.float64], grid: BevGrid) -> NDArray[np.float64]:
    """[2] where the history, already turned, shows what a cell shows now: (x, y) to be added to a
    place in units of the whole grid. For a grid whose x points right and y forward.

    given: as `streamed` gives it.
    """
    dx, dy = given[:2]
    yaw = given[YAW]
    right = np.sin(yaw) * dx - np.cos(yaw) * dy
    forward = np.cos(yaw) * dx + np.sin(yaw) * dy
    return np.array([right, forward]) / grid.extent[:2]


def history_shift_in_base(given: NDArray[np.float64], grid: BevGrid) -> NDArray[np.float64]:
    """As `history_shift`, for a grid in base_link (x forward, y left)."""
    right, forward = history_shift(given, grid) * grid.extent[:2]
    return np.array([forward, -right]) / grid.extent[:2]


def history_shifts(
    given: NDArray[np.float64], grid: BevGrid, in_lidar: bool, mended: bool
) -> NDArray[np.float64]:
    """[2, 2] the shifts of history and of present that the network is given. in_lidar: the grid's
    x points right and y forward. mended: of a grid in base_link, shifted along the car's path and
    the present left where it is; else as published (networks/uniscene.py: History)."""
    shift = history_shift(given, grid)
    if in_lidar:
        return np.stack([shift, np.zeros(2)])
    if mended:
        return np.stack([history_shift_in_base(given, grid), np.zeros(2)])
    return np.stack([shift, shift])


def turned_cells(degrees: float, grid: BevGrid) -> NDArray[np.int32]:
    """[cells] which cell of the history each cell shows after the car turned left by an angle:
    nearest neighbour, `cells` where it lies outside. About the middle of the grid."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = np.meshgrid(
        np.arange(grid.columns) + 0.5 - grid.columns / 2, np.arange(grid.rows) + 0.5 - grid.rows / 2
    )
    column = np.rint(cos * x - sin * y + grid.columns / 2 - 0.5).astype(np.int64)
    row = np.rint(sin * x + cos * y + grid.rows / 2 - 0.5).astype(np.int64)
    inside = (column >= 0) & (column < grid.columns) & (row >= 0) & (row < grid.rows)
    return np.where(inside, row * grid.columns + column, grid.cells).reshape(-1).astype(np.int32)
