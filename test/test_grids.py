"""Occupancy grids: what cameras see of the ground, what lasts, what rolls along, and the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from recon4d_ros.errors import OutputError, ParameterError, Recon4dError
from recon4d_ros.evaluation.metrics.grids import GridScorer
from recon4d_ros.geometry import exp, inverse, se3
from recon4d_ros.grids import (
    GridParameters,
    Grids,
    LastingGrid,
    distance_field,
    lasting,
    read_map,
    write_map,
)
from recon4d_ros.grids.lasting import SURE, _level
from recon4d_ros.grids.local import LocalGrid
from recon4d_ros.grids.sight import Looker, Sight
from recon4d_ros.types import (
    FREE,
    OCCUPIED,
    UNKNOWN,
    Calibration,
    DynamicObject,
    Geometry,
    MapMotion,
    Motion,
    OccupancyGrid,
    PoseEstimate,
    Tracking,
)

H, W = 96, 128
HEIGHT = 1.5  # m: of the camera
K = np.array([[80.0, 0, W / 2 - 0.5], [0, 80.0, H / 2 - 0.5], [0, 0, 1]])
AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, HEIGHT], [0, 0, 0, 1]], np.float64)
ROAD = np.array([0.0, 0.0, 1.0, 0.0])
CALIBRATION = Calibration(
    ("front",), np.zeros((1, H, W, 2), np.float32), K[None], AHEAD[None], (H, W), (H, W)
)
NOTHING = np.zeros((1, H, W), bool)
EYE = np.eye(3)


class Voxels:
    """A static map: points [K, 3]."""

    voxel_size, reach = 0.2, 60.0

    def __init__(self, points: NDArray | None = None) -> None:
        self.xyz = np.zeros((0, 3)) if points is None else points

    def positions(self) -> NDArray:
        return self.xyz.astype(np.float32)


def rays() -> NDArray[np.float64]:
    """[H, W, 3] in base_link, for one metre along the optical axis."""
    v, u = np.indices((H, W))
    optical = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones((H, W))], -1)
    return optical @ AHEAD[:3, :3].T


def world(*boxes: tuple[float, float, float, float, float]) -> NDArray[np.float64]:
    """[H, W] depth of a flat road and upright plates across it: (x, left, right, low, high)."""
    way = rays()
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(way[..., 2] < 0, -HEIGHT / way[..., 2], np.inf)
    for x, left, right, low, high in boxes:
        y, z = x * way[..., 1], HEIGHT + x * way[..., 2]
        hit = (y <= left) & (y >= right) & (z >= low) & (z <= high)
        depth = np.where(hit & (x < depth), x, depth)
    return np.where(depth < 60, depth, np.nan)


def geometry(depth: NDArray) -> Geometry:
    image = depth[None].astype(np.float32)
    sure = np.ones_like(image)
    return Geometry(image, 0.01 * sure, sure, np.zeros((*image.shape, 3), np.uint8))


def at(x: float = 0.0, y: float = 0.0, yaw: float = 0.0, usable: bool = True) -> PoseEstimate:
    turn = np.array(
        [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]], np.float64
    )
    pose = se3(turn, np.array([x, y, 0.0]))
    tracking = Tracking.TRACKING if usable else Tracking.LOST
    return PoseEstimate(pose, (pose @ AHEAD)[None], tracking, np.eye(6), np.eye(6), np.zeros(6))


def look(depth: NDArray, pose: PoseEstimate | None = None, mask: NDArray = NOTHING) -> Sight:
    pose = pose or at()
    looker = Looker(CALIBRATION, GridParameters())
    return looker(geometry(depth), mask, pose.T_map_base, pose.T_map_camera, ROAD)


def cell(sight: Sight, x: float, y: float) -> tuple[int, int]:
    column, row = np.floor(np.array([x, y]) / 0.2).astype(int) - sight.origin
    return row, column


def value(grid: OccupancyGrid, x: float, y: float) -> int:
    column, row = np.floor((np.array([x, y]) - grid.origin) / grid.resolution + 1e-6).astype(int)
    return int(grid.values[row, column])


# ---- what one frame shows


def test_the_road_is_free_up_to_what_stands_on_it() -> None:
    sight = look(world((10.0, 3.0, -3.0, 0.0, 1.5)))
    assert sight.free[cell(sight, 6.0, 0.0)] and sight.free[cell(sight, 9.5, 0.0)]
    assert not sight.free[cell(sight, 10.1, 0.0)]
    assert not sight.free[cell(sight, 15.0, 0.0)]
    assert sight.free[cell(sight, 15.0, 6.0)]  # beside it
    assert sight.standing[cell(sight, 10.0, 1.0)] or sight.standing[cell(sight, 9.9, 1.0)]
    assert not sight.free[cell(sight, 1.0, 0.0)]  # below the image


@settings(max_examples=40)
@given(st.floats(4.0, 22.0), st.floats(-np.pi, np.pi), st.floats(-300, 300), st.floats(0.5, 2.0))
def test_nothing_is_free_behind_a_wall(x: float, yaw: float, y: float, high: float) -> None:
    """Whatever way the car looks and wherever in map it is."""
    pose = at(y, -y, yaw)
    sight = look(world((x, 40.0, -40.0, 0.0, high)), pose)
    rows, columns = np.nonzero(sight.free)
    middle = (np.column_stack([columns, rows]) + sight.origin + 0.5) * 0.2
    ahead = (middle - pose.T_map_base[:2, 3]) @ pose.T_map_base[:2, 0]
    assert len(ahead) > 20 and ahead.max() < x


def test_a_camera_far_from_base_link_sees_beyond_the_square() -> None:
    """What stands out of reach of the grid is left out."""
    depth = world((24.8, 60.0, -60.0, 0.0, 2.0))
    pose = at(3.0, 2.0, np.pi)
    for forward in (-8.0, 0.0, 8.0):
        moved = pose.T_map_camera.copy()
        moved[:, 0, 3] -= forward
        sight = Looker(CALIBRATION, GridParameters())(
            geometry(depth), NOTHING, pose.T_map_base, moved, ROAD
        )
        assert sight.standing.any() == (forward <= 0.0)


def test_what_has_no_depth_frees_nothing() -> None:
    sky = np.full((H, W), np.nan)
    assert not look(sky).free.any()
    # a textureless box 8 m ahead, its rows unknown; the road behind it is seen over its top
    box = world((8.0, 1.5, -1.5, 0.0, 0.9))
    hole = np.where(np.isclose(box, 8.0), np.nan, box)
    sight = look(hole)
    assert sight.free[cell(sight, 6.0, 0.0)]
    for x in (8.1, 10.0, 20.0, 24.0):
        assert not sight.free[cell(sight, x, 0.0)], x
    # a patch of road without depth in which nothing of 0.3 m could stand is bridged
    road = world()
    gap = np.where((road > 9.0) & (road < 9.8), np.nan, road)
    sight = look(gap)
    assert sight.free[cell(sight, 9.4, 0.0)] and sight.free[cell(sight, 15.0, 0.0)]


def test_what_hangs_over_the_car_leaves_the_road_free() -> None:
    bridge = look(world((9.0, 10.0, -10.0, 3.0, 4.0)))
    assert bridge.free[cell(bridge, 9.0, 0.0)] and bridge.free[cell(bridge, 14.0, 0.0)]
    assert not bridge.standing.any()
    low = look(world((9.0, 10.0, -10.0, 1.9, 4.0)))
    assert not low.free[cell(low, 14.0, 0.0)]


# ---- both grids


def run(
    grids: Grids,
    frames: int,
    depth: NDArray,
    mask: NDArray = NOTHING,
    voxels: Voxels | None = None,
    start: int = 0,
    objects: tuple[DynamicObject, ...] = (),
) -> OccupancyGrid:
    for i in range(start, start + frames):
        local = grids(
            at(0.3 * i),
            geometry(depth),
            Motion(mask, objects),
            ROAD,
            voxels or Voxels(),
            i * 100_000_000,
        )
    assert local is not None
    return local


def test_a_mover_is_in_the_local_grid_and_not_in_the_lasting_one() -> None:
    depth = world((8.0, 1.0, -1.0, 0.0, 1.5))
    mask = np.isclose(depth, 8.0)[None]
    grids = Grids(CALIBRATION)
    local = run(grids, 1, depth, mask)
    row = [value(local, x, 0.0) for x in (7.9, 8.1)]
    assert OCCUPIED in row
    lasting = grids.around(0)
    assert not (lasting.values == OCCUPIED).any()
    assert value(lasting, 8.1, 0.0) == UNKNOWN
    assert value(run(grids, 2, world(), start=1), 8.1, 0.0) == FREE  # it drove away


def test_what_is_hidden_is_unknown_in_the_local_grid_alone() -> None:
    """A lorry of which no depth is known comes into the way."""
    grids = Grids(CALIBRATION)
    before = run(grids, 3, world())
    assert value(before, 8.1, 0.0) == value(before, 15.0, 0.0) == FREE
    box = world((8.0, 2.0, -2.0, 0.0, 3.0))
    local = run(grids, 8, np.where(np.isclose(box, 8.0), np.nan, box), start=3)
    assert value(local, 13.1, 0.0) == UNKNOWN  # the car itself is 3 m farther by then
    assert value(grids.around(0), 13.1, 0.0) == FREE
    assert value(local, 2.5, 0.0) == value(before, 2.5, 0.0)  # nearer than the cameras look
    beside = [value(grid, 15.0, 7.0) for grid in (before, local)]
    assert beside == [FREE, FREE]


def test_what_the_local_grid_does_not_see_any_more_is_forgotten() -> None:
    depth = world((8.0, 1.0, -1.0, 0.0, 1.5))
    grids = Grids(CALIBRATION, GridParameters(decay=0.5))
    assert (run(grids, 2, depth, np.isclose(depth, 8.0)[None]).values == OCCUPIED).any()
    blind = np.full((H, W), np.nan)
    assert (run(grids, 1, blind, start=2).values == OCCUPIED).any()
    assert not (run(grids, 5, blind, start=3).values == OCCUPIED).any()


@pytest.mark.parametrize("hertz", [2, 10, 30])
def test_what_was_seen_for_long_stays_as_long_at_any_rate(hertz: int) -> None:
    """An obstacle that many frames have shown is gone at three quarters to the whole of `decay`
    after it was last seen."""
    grid, count, gone = LocalGrid(GridParameters(decay=1.5)), 5 * hertz, None
    square, middle = (grid.n, grid.n), (grid.half, grid.half)
    nothing, box = np.zeros(square, np.uint8), np.zeros(square, bool)
    box[middle] = True
    for i in range(count + 2 * hertz):
        standing = box if i < count else np.zeros_like(box)
        sight = Sight(np.zeros(2, np.int64), nothing, nothing, standing, np.zeros_like(box))
        values, _ = grid(sight, np.full(square, UNKNOWN, np.int8), (), round(i * 1e9 / hertz))
        if i >= count and gone is None and values[middle] != OCCUPIED:
            gone = (i - count + 1) / hertz
    assert gone is not None and 1.0 <= gone <= 1.5 + 1 / hertz


def test_tracked_objects_stand_in_the_local_grid() -> None:
    car = DynamicObject(
        1,
        np.array([6.0, 8.0, 0.8]),
        np.pi / 2,
        np.array([4.0, 2.0, 1.6]),
        EYE[0],
        EYE,
        EYE,
        0.9,
        5,
        0,
    )
    local = run(Grids(CALIBRATION), 1, world(), objects=(car,))
    assert value(local, 6.0, 9.5) == OCCUPIED and value(local, 7.5, 8.0) != OCCUPIED
    gone = run(Grids(CALIBRATION), 1, world(), objects=(replace(car, missed=5),))
    assert value(gone, 6.0, 9.5) != OCCUPIED


def test_without_pose_or_road_nothing_is_said() -> None:
    grids = Grids(CALIBRATION)
    seen = geometry(world())
    for pose, road in ((at(usable=False), ROAD), (at(), None)):
        assert grids(pose, seen, Motion(NOTHING), road, Voxels(), 0) is None
    assert (grids.around(0).values == UNKNOWN).all()
    off = Grids(CALIBRATION, GridParameters(enabled=False))
    assert off(at(), seen, Motion(NOTHING), ROAD, Voxels(), 0) is None


def test_a_height_band_that_is_none_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"grids.min_height is 3: expected below grids.max_h"):
        Grids(CALIBRATION, GridParameters(min_height=3.0))


@pytest.mark.parametrize("name", ["size", "local_size", "max_range"])
def test_grids_that_no_memory_holds_are_refused(name: str) -> None:
    wide = GridParameters(resolution=0.02, **{name: 100.0 if name != "size" else 2000.0})
    with pytest.raises(ParameterError, match=rf"parameters grids.{name} and grids.resolution make"):
        Grids(CALIBRATION, wide)


def test_one_frame_frees_nothing_and_a_standing_car_learns_slowly() -> None:
    grids = Grids(CALIBRATION)
    run(grids, 1, world())
    assert not (grids.around(0).values == FREE).any()
    run(grids, 1, world(), start=1)
    assert (grids.around(0).values == FREE).any()
    still = Grids(CALIBRATION)
    for i in range(5):
        still(at(0.01 * i), geometry(world()), Motion(NOTHING), ROAD, Voxels(), i)
    assert not (still.around(0).values == FREE).any()


def test_the_map_is_occupied_in_the_height_band_alone() -> None:
    points = np.array(
        [[5.1, 1.1, 1.0], [5.1, 2.1, 0.1], [5.1, 3.1, 4.0], [5.1, 4.1, 2.1], [70.0, 0.0, 1.0]]
    )
    grids = Grids(CALIBRATION)
    run(grids, 1, np.full((H, W), np.nan), voxels=Voxels(points))
    grid = grids.around(0)
    values = [value(grid, x, y) for x, y in points[:, :2]]
    assert values == [OCCUPIED, UNKNOWN, UNKNOWN, OCCUPIED, UNKNOWN]  # no road is known at 70 m
    grids.read(Voxels())
    assert not (grids.around(0).values == OCCUPIED).any()


def test_what_the_map_left_behind_stays() -> None:
    grids = Grids(CALIBRATION)
    wall = Voxels(np.array([[5.1, 1.1, 1.0]]))
    run(grids, 1, np.full((H, W), np.nan), voxels=wall)
    far = at(90.0)
    blind = geometry(np.full((H, W), np.nan))
    grids(far, blind, Motion(NOTHING), ROAD, Voxels(), 10**10)
    whole = grids.lasting.whole()
    assert whole.values.shape == (1, 1) and whole.values[0, 0] == OCCUPIED
    assert np.allclose(whole.origin, (5.0, 1.0))


# ---- tiles


def driven(steps: int = 6, length: float = 40.0) -> LastingGrid:
    """Free and occupied cells along a way that leaves the canvas."""
    grid = LastingGrid(GridParameters(size=20.0))
    rng = np.random.default_rng(0)
    for i in range(steps):
        origin = np.floor(np.array([i * length, -i * 9.0]) / 0.2).astype(np.int64) - 125
        free = (rng.random((251, 251)) < 0.5).astype(np.uint8)
        none = np.zeros((251, 251), bool)
        pose = at(i * length, -i * 9.0).T_map_base
        for _ in range(2):
            grid.see(Sight(origin, free, free, none, none), SURE, pose, ROAD)
        points = rng.uniform(-20, 20, (300, 3)) + pose[:3, 3]
        points[:, 2] = 1.0
        grid.read_map(points.astype(np.float32), pose[:2, 3], 0.0, 0.2)
    return grid


def test_tiles_come_back_as_they_left() -> None:
    grid = driven()
    before = grid.whole()
    assert len(grid._packed) > 3
    for x in (0.0, 200.0, -500.0):
        grid._follow(np.array([x, 0.0]))
        assert np.array_equal(grid.whole().values, before.values)
    assert (before.values == OCCUPIED).sum() > 1000 and (before.values == FREE).sum() > 10_000


def test_a_state_is_taken_back_whole() -> None:
    grid = driven()
    tiles = grid.tiles()
    assert len(tiles) == len(tiles.index) == len(tiles.motion)
    other = LastingGrid(GridParameters(size=60.0))
    other.add(tiles)
    assert np.array_equal(other.whole().values, grid.whole().values)
    assert np.array_equal(other.whole().origin, grid.whole().origin)
    with pytest.raises(ValueError, match=r"cells are 0.2 m: expected 0.1 m"):
        LastingGrid(GridParameters(resolution=0.1)).add(tiles)
    empty = LastingGrid(GridParameters())
    empty.add(LastingGrid(GridParameters()).tiles())
    assert (empty.whole().values == UNKNOWN).all()
    # a tile that somebody else wrote is left out, and the others are there
    bad = replace(tiles, data=(b"no tile", *tiles.data[1:]))
    empty.add(bad)
    assert (empty.whole().values != UNKNOWN).any() and empty.dropped == 1


def test_another_drives_grid_is_added_where_the_car_is_found() -> None:
    """By a motion that is no number of cells, as a car that is found elsewhere has it."""
    grid = driven(3)
    tiles, before = grid.tiles(), grid.whole()
    grids = Grids(CALIBRATION)
    grids.use(tiles)
    blind = np.full((H, W), np.nan)
    run(grids, 1, blind, voxels=Voxels(np.array([[5.1, 1.1, 1.0]])))
    assert value(grids.lasting.whole(), 5.1, 1.1) == OCCUPIED
    grids.moved(MapMotion.whole(se3(np.eye(3), np.array([7.03, 0.4, 0.0]))))
    grids.attach()
    whole = grids.lasting.whole()
    assert value(whole, 12.13, 1.5) == OCCUPIED
    rows, columns = np.nonzero(before.values == FREE)
    x, y = (before.origin[axis] + (index + 0.5) * 0.2 for axis, index in ((0, columns), (1, rows)))
    there = [value(whole, *place) for place in zip(x[::97], y[::97], strict=True)]
    assert np.mean(np.array(there) == FREE) > 0.98
    # a loss: what was known waits until the car is found again
    grids.set_aside()
    assert (grids.lasting.whole().values == UNKNOWN).all()
    grids.attach()
    assert np.array_equal(grids.lasting.whole().values, whole.values)


def elsewhere(motion) -> MapMotion:
    """Of a function of the place, on a raster."""
    x, y = np.meshgrid(np.arange(-100.0, 200.0, 12.8), np.arange(-100.0, 100.0, 12.8))
    places = np.column_stack([x.ravel(), y.ravel(), 0 * x.ravel()])
    return MapMotion(places, np.stack([motion(place) for place in places]))


def test_the_map_moves_tile_by_tile() -> None:
    grid = driven(3)
    before = grid.whole()
    grid.moved(MapMotion.whole(np.eye(4)))
    assert np.array_equal(grid.whole().values, before.values)
    shift = np.array([7.4, -51.2, 0.3])
    grid.moved(MapMotion.whole(se3(np.eye(3), shift)))
    after = grid.whole()
    assert np.array_equal(after.values, before.values)
    assert np.allclose(after.origin - before.origin, shift[:2])
    assert np.allclose(grid._canvas.road[np.isfinite(grid._canvas.road)], 0.3)
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float64)
    grid.moved(MapMotion.whole(se3(quarter, np.zeros(3))))
    turned = grid.whole()
    assert (turned.values == OCCUPIED).sum() == (before.values == OCCUPIED).sum()
    assert np.array_equal(np.rot90(turned.values, 1), after.values)  # rows grow along y


def test_what_stood_there_once_is_looked_through() -> None:
    """One frame's obstacle is occupied until others see the road behind it."""
    grids = Grids(CALIBRATION)
    run(grids, 1, world((8.0, 1.0, -1.0, 0.0, 1.5)))
    assert (grids.around(0).values == OCCUPIED).sum() >= 5
    run(grids, 2, world(), start=1)
    assert not (grids.around(0).values == OCCUPIED).any()


def test_a_tilted_motion_far_from_the_origin_keeps_a_tile_where_it_is() -> None:
    """A turn about the tile's own middle, 1000 m from the origin, lifts nothing."""
    middle = np.array([1000.0, -300.0, 2.0])
    turn = exp(np.array([0.0, 0.0, 0.0, 0.001, 0.004, 0.01]))
    about = np.eye(4)
    about[:3, 3] = middle
    T = about @ turn @ inverse(about)
    flat = _level(T[None], middle[None])[0]
    np.testing.assert_allclose(flat[:3, :3] @ middle + flat[:3, 3], middle, atol=1e-9)
    np.testing.assert_allclose(flat[2], [0.0, 0.0, 1.0, 0.0], atol=1e-9)
    assert np.arctan2(flat[1, 0], flat[0, 0]) == pytest.approx(np.arctan2(T[1, 0], T[0, 0]))


def test_a_loop_moves_both_grids() -> None:
    """The lasting one by tiles; what the map has near the car is read again at once."""
    grids = Grids(CALIBRATION, GridParameters(map_period=60.0))
    blind = np.full((H, W), np.nan)
    run(grids, 1, blind, voxels=Voxels(np.array([[5.1, 1.1, 1.0]])))
    grids.moved(MapMotion.whole(se3(np.eye(3), np.array([2.0, 0.0, 0.0]))))
    assert value(grids.lasting.whole(), 7.1, 1.1) == OCCUPIED
    reach = Voxels(np.array([[60.1, 1.1, 1.0]]))  # of the map around where the car is now
    reach.reach = 6.0
    grids.read(reach)
    assert not (grids.lasting.whole().values == OCCUPIED).any()
    grids.read(Voxels(np.array([[7.1, 1.1, 1.0]])))
    local = run(grids, 1, blind, voxels=Voxels(np.array([[8.1, 1.1, 1.0]])), start=1)
    assert value(local, 8.1, 1.1) == OCCUPIED and value(local, 5.1, 1.1) != OCCUPIED
    assert value(local, 7.1, 1.1) != OCCUPIED  # the moved voxels are the map's word


def test_a_long_drive_moves_at_once_and_unpacks_what_is_near_alone(monkeypatch) -> None:
    """That what is far moves is only noted; it lies right when it is looked at."""
    grid = driven(16)
    before = grid.whole()
    far = [packed.data for index, packed in grid._packed.items() if index[0] < grid._corner[0] - 2]
    assert len(far) >= 40
    unpacked: list[bytes] = []
    one = lasting._Layers.unpacked
    monkeypatch.setattr(
        lasting._Layers, "unpacked", lambda data: unpacked.append(data) or one(data)
    )
    shift = np.array([0.4, -0.6, 0.0])
    for _ in range(3):
        grid.moved(MapMotion.whole(se3(np.eye(3), shift)))
    assert not set(far) & set(unpacked) and len(grid._away) >= len(far)
    after = grid.whole()
    assert np.array_equal(after.values, before.values)
    assert np.allclose(after.origin - before.origin, 3 * shift[:2])


def test_tiles_that_move_apart_leave_the_unknown_between_them() -> None:
    grid = driven(3)
    before = (grid.whole().values == FREE).sum()
    grid.moved(elsewhere(lambda middle: se3(np.eye(3), np.array([0.05 * middle[0], 0.0, 0.0]))))
    after = (grid.whole().values == FREE).sum()
    assert 0.9 * before < after <= before


def test_a_grid_too_large_for_one_picture_gets_wider_cells(monkeypatch) -> None:
    grid = driven()
    fine = grid.whole()
    monkeypatch.setattr("recon4d_ros.grids.lasting.MOST_CELLS", 200_000)
    coarse = grid.whole()
    assert coarse.values.size <= 200_000 and coarse.resolution > fine.resolution
    rows, columns = np.nonzero(fine.values == OCCUPIED)
    for row, column in zip(rows[::50], columns[::50], strict=True):
        x, y = fine.origin + (np.array([column, row]) + 0.5) * fine.resolution
        assert value(coarse, x, y) == OCCUPIED


def test_far_tiles_are_dropped_when_there_is_no_room(monkeypatch) -> None:
    monkeypatch.setattr("recon4d_ros.grids.lasting.MOST_TILES", 4)
    grid = driven(8)
    assert len(grid._packed) <= 4 and grid.dropped > 0


# ---- files, distances, scores

VALUES = arrays(
    np.int8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([-1, 0, 100])
)


@settings(max_examples=25)
@given(VALUES, st.floats(-1e4, 1e4), st.sampled_from([0.05, 0.2, 1.0]))
def test_map_server_files_come_back(tmp_path_factory, values, x: float, resolution: float) -> None:
    stem = tmp_path_factory.mktemp("grid") / "map"
    write_map(stem, OccupancyGrid(0, values, resolution, np.array([x, -x])))
    read = read_map(stem.with_suffix(".yaml"))
    assert np.array_equal(read.values, values)
    assert read.resolution == resolution and np.array_equal(read.origin, [x, -x])
    picture = cv2.imread(str(stem.with_suffix(".pgm")), cv2.IMREAD_UNCHANGED)
    lowest = {-1: 205, 0: 254, 100: 0}[int(values[0, 0])]
    assert picture is not None and picture[-1, 0] == lowest  # the last row is the lowest y


def test_map_files_that_are_wrong_are_one_sentence(tmp_path: Path) -> None:
    grid = OccupancyGrid(0, np.zeros((2, 2), np.int8), 0.2, np.zeros(2))
    with pytest.raises(OutputError, match="cannot write grid"):
        write_map(tmp_path / "missing" / "map", grid)
    write_map(tmp_path / "map", grid)
    path = tmp_path / "map.yaml"
    good = path.read_text()
    for old, new, sentence in (
        ("origin", "corner", "is damaged"),
        ("map.pgm", "other.pgm", "its image other.pgm cannot be read"),
        ("- 0.0\nnegate", "- 0.5\nnegate", "is turned by 0.5 rad"),
        ("resolution: 0.2", "resolution: wide", "is damaged"),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(Recon4dError, match=sentence):
            read_map(path)
    with pytest.raises(Recon4dError, match="cannot be read"):
        read_map(tmp_path / "none.yaml")


@settings(max_examples=25)
@given(VALUES)
def test_distances_are_to_the_nearest_occupied_cell(values: NDArray[np.int8]) -> None:
    field = distance_field(OccupancyGrid(0, values, 0.5, np.zeros(2)))
    occupied = np.argwhere(values == OCCUPIED)
    for (row, column), distance in np.ndenumerate(field):
        expected = (
            0.5 * np.linalg.norm(occupied - (row, column), axis=1).min()
            if len(occupied)
            else np.inf
        )
        assert distance == pytest.approx(expected, abs=1e-4)


def test_scores_of_a_grid() -> None:
    values = np.full((4, 5), UNKNOWN, np.int8)
    values[0] = FREE
    values[2, 1] = values[2, 4] = OCCUPIED
    grid = OccupancyGrid(0, values, 1.0, np.array([10.0, 0.0]))
    scorer = GridScorer()
    #                       free, wrongly  found      beside one  not near enough
    points = np.array([[12.5, 0.5], [11.5, 2.5], [12.5, 3.5], [30.5, 3.5]])
    distance = np.array([5.0, 5.0, 5.0, 25.0])
    mover = np.array([[14.5, 0.5]])
    road = np.array([[10.5, 0.5], [14.5, 2.5]])
    for _ in range(5):
        scorer.add(
            np.concatenate([points, mover]),
            np.append(distance, 3.0),
            np.arange(5) == 4,
            grid,
            road,
        )
    score = scorer.score(grid)
    assert score is not None
    assert (score.free, score.free_occupied) == (5, 0.2)
    assert (score.occupied, score.found) == (3, pytest.approx(1 / 3))
    assert score.found_beside == score.glimpsed_beside == pytest.approx(2 / 3)
    scorer.add(np.array([[13.5, 3.5]]), np.array([4.0]), np.array([False]), None)
    more = scorer.score(grid)
    assert more is not None and (more.occupied, more.glimpsed) == (3, 4)
    assert score.blocked == 0.5
    local = scorer.local
    assert local is not None and (local.frames, local.free) == (5, 25)
    assert local.free_occupied == pytest.approx(0.4)  # the mover's too
    assert (local.movers, local.movers_found) == (5, 0.0)
    assert GridScorer().score(grid) is None and GridScorer().local is None
