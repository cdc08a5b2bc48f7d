"""Which surface each pixel sees, and how far: exact ray casting of convex solids against a z-buffer
in inverse depth.

For a ray t d from the camera and a plane n.x = h (camera's frame, camera at 0), the inverse depth
of the hit is linear in the ray: 1/t = (n/h).d. A convex solid is entered at the least inverse depth
of the planes that face the camera and left at the greatest of those that do not; a quadric's two
hits are the roots of a quadratic form in d. So every solid costs a few multiplications per pixel of
its bounding rectangle, for any lens, and d = (x, y, 1) makes t the depth along the optical axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.solids import CYLINDER, FACES, FLAT, PLANES, Solids
from recon4d_ros.sim.view import View

NEAR = 0.25  # metres
FAR = 260.0  # metres: what is farther is not drawn
SKY, GROUND = 0, 1  # values of `surface` below FIRST
FIRST = 2
_EDGES = np.array(
    [(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 4), (1, 5), (2, 6), (3, 7)]
)


@dataclass(frozen=True)
class Hits:
    """What each pixel sees.

    inverse_depth: [H, W] float32, 1/metres along the optical axis, 0 for the sky. surface: [H, W]
    int32: SKY, GROUND, or FIRST + FACES * row + face for the row-th of `solids`. solids: those in
    view, in the camera's optical frame. x, y, inverse: ray and inverse depth of what is seen, in
    the camera's frame at the middle of the read-out; with a global shutter the pixel's own.
    """

    inverse_depth: NDArray[np.float32]
    surface: NDArray[np.int32]
    solids: Solids
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    inverse: NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Rows that are read out one after another, H of them, in the camera's frame at the middle.

    time: [H] seconds from the middle. rotation: [H, 3, 3] and origin: [H, 3] of T_middle_row.
    velocity: [P, 3] of each solid, m/s in world.
    """

    time: NDArray[np.float64]
    rotation: NDArray[np.float64]
    origin: NDArray[np.float64]
    velocity: NDArray[np.float64]

    def of(self, rows: slice, drift: NDArray[np.float64]) -> Rows:
        """Some rows as a solid sees them that moves with `drift` [3] m/s (camera's frame)."""
        time = self.time[rows]
        return Rows(
            time, self.rotation[rows], self.origin[rows] - time[:, None] * drift, self.velocity[:0]
        )


def cast(
    solids: Solids,
    view: View,
    T_world_camera: NDArray[np.float64],
    ground: bool = True,
    rows: Rows | None = None,
) -> Hits:
    """Cast the rays of a view against the solids (in world) and, if wanted, the ground z = 0. rows:
    of a rolling shutter; T_world_camera is then that of the middle of its read-out."""
    back = np.eye(4)
    back[:3, :3] = T_world_camera[:3, :3].T
    back[:3, 3] = -back[:3, :3] @ T_world_camera[:3, 3]
    centre = solids.corners.mean(1) @ back[:3, :3].T + back[:3, 3]
    radius = (
        np.sqrt(((solids.corners[:, 0] - solids.corners[:, 7]) ** 2).sum(1)) * 0.6
    )  # tapered ones are not centred: a margin
    if rows is not None:
        radius = radius + 1.0 + 0.02 * np.abs(centre[:, 2])
    near_by = np.flatnonzero(_in_frustum(centre, radius, view))
    seen = solids.take(near_by).moved(back)
    drift = None if rows is None else rows.velocity[near_by] @ T_world_camera[:3, :3]
    low, high, near, far = _extent(seen.corners, rows, drift)
    boxes = view.pixel_rectangles(low, high)
    big = ((high - low) * view.focal).max(1) > 0.7  # less than a pixel is noise, not a picture
    visible = np.flatnonzero(
        (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3]) & (far > NEAR) & big
    )
    visible = visible[np.argsort(near[visible], kind="stable")]  # what is near hides the rest
    seen, boxes = seen.take(visible), boxes[visible]
    nearest = 1.0 / np.maximum(near[visible], NEAR)

    normal = T_world_camera[:3, :3].T[:, 2]
    if rows is None:
        floor = (-normal / T_world_camera[2, 3]).astype(np.float64)
    else:
        floor = _turned(normal, rows) / (-T_world_camera[2, 3] - rows.origin @ normal)[:, None]
    inverse_depth = _linear(floor, view.x, view.y)
    surface = np.where((inverse_depth > 1e-5) & ground, np.int32(GROUND), np.int32(SKY))
    inverse_depth[surface == SKY] = 0.0
    scaled, front = _scaled_planes(seen)
    for row in range(len(seen)):
        u0, u1, v0, v1 = boxes[row]
        window = inverse_depth[v0:v1, u0:u1]
        if window.min() >= nearest[row]:
            continue
        x, y = _crop(view, u0, u1, v0, v1)
        own, moved = scaled[row], None
        if rows is not None and drift is not None:
            moved = rows.of(slice(v0, v1), drift[visible[row]])
            own = _scaled_rows(seen.planes[row], moved)
        if seen.kind[row] == FLAT:
            entry, leave, face = _planes(own, front[row], x, y)
        else:
            rounded = _quadric(seen, row, own, front[row], x, y, moved)
            if rounded is None:
                continue
            entry, leave, face = rounded
        hit = (entry > leave) & (entry > window) & (entry < 1.0 / NEAR)
        np.copyto(window, entry, where=hit)
        np.copyto(surface[v0:v1, u0:u1], face + np.int32(FIRST + FACES * row), where=hit)
    if view.valid is not None:
        inverse_depth[~view.valid], surface[~view.valid] = 0.0, SKY
    if rows is None or drift is None:
        return Hits(inverse_depth, surface, seen, view.x, view.y, inverse_depth)
    return Hits(
        inverse_depth, surface, seen, *_middle(inverse_depth, surface, view, rows, drift[visible])
    )


def _turned(normal: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """A direction of the middle's frame in each row's: [H, 3]."""
    return np.einsum("i,hij->hj", normal, rows.rotation)


def _scaled_rows(planes: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """[6, h, 3] n/h of one solid's planes [6, 4] for each row."""
    normal = planes[:, :3]
    offset = planes[:, 3:] - normal @ rows.origin.T
    safe = np.where(np.abs(offset) < 1e-6, 1e-6, offset)
    return np.einsum("ki,hij->khj", normal, rows.rotation) / safe[..., None]


def _extent(
    corners: NDArray[np.float64], rows: Rows | None, drift: NDArray[np.float64] | None
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Bounds of x/z and y/z [P, 2] and least and greatest z [P] of hexahedra, over the whole
    read-out."""
    if rows is None or drift is None:
        return *_bounds(corners), corners[..., 2].min(1), corners[..., 2].max(1)
    several = []
    for at in (0, len(rows.time) // 2, -1):
        there = corners + (drift * rows.time[at])[:, None] - rows.origin[at]
        turned = there @ rows.rotation[at]
        several.append((*_bounds(turned), turned[..., 2].min(1), turned[..., 2].max(1)))
    low, high, near, far = (np.stack(part) for part in zip(*several, strict=True))
    return low.min(0), high.max(0), near.min(0), far.max(0)


def _middle(
    inverse_depth: NDArray[np.float32],
    surface: NDArray[np.int32],
    view: View,
    rows: Rows,
    drift: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Ray (x, y) and inverse depth, in the middle's frame and at its time, of what each pixel
    sees."""
    x, y = np.broadcast_to(view.x, view.shape), np.broadcast_to(view.y, view.shape)
    r, o = rows.rotation, rows.origin
    direction = [r[:, i, :1] * x + r[:, i, 1:2] * y + r[:, i, 2:] for i in range(3)]
    every = np.concatenate([np.zeros((1, 3)), drift])  # sky and ground stand
    owner = np.where(surface >= FIRST, (surface - FIRST) // FACES + 1, 0)
    shift = [
        o[:, i, None] - every[:, i].take(owner) * rows.time[:, None]
        if len(drift)
        else o[:, i, None]
        for i in range(3)
    ]
    w = inverse_depth.astype(np.float64)
    point = [direction[i] + w * shift[i] for i in range(3)]  # times depth
    z = np.where(np.abs(point[2]) > 1e-6, point[2], 1e-6)
    return tuple(part.astype(np.float32) for part in (point[0] / z, point[1] / z, w / z))  # type: ignore[return-value]


def _in_frustum(
    centre: NDArray[np.float64], radius: NDArray[np.float64], view: View
) -> NDArray[np.bool_]:
    """Which balls (in the camera's frame) touch the pyramid that holds all of a view's rays, nearer
    than FAR."""
    x, y, z = centre.T
    inside = (z > NEAR - radius) & (z < FAR)
    for side, low, high in (
        (x, view.x_low[0], view.x_high[-1]),
        (y, view.y_low[0], view.y_high[-1]),
    ):
        inside &= (side - low * z) > -radius * np.sqrt(1 + low * low)
        inside &= (side - high * z) < radius * np.sqrt(1 + high * high)
    return inside


def _bounds(corners: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Bounds (low, high [P, 2]) of x/z and y/z of hexahedra clipped at NEAR."""
    z = corners[..., 2]
    ok = z > NEAR
    safe = np.where(ok, z, 1.0)[..., None]
    points = corners[..., :2] / safe
    low = np.where(ok[..., None], points, np.inf).min(1)
    high = np.where(ok[..., None], points, -np.inf).max(1)
    cut = np.flatnonzero(ok.any(1) & ~ok.all(1))
    if len(cut):
        a, b = corners[cut][:, _EDGES[:, 0]], corners[cut][:, _EDGES[:, 1]]
        crosses = (a[..., 2] > NEAR) != (b[..., 2] > NEAR)
        gap = np.where(crosses, b[..., 2] - a[..., 2], 1.0)
        f = ((NEAR - a[..., 2]) / gap)[..., None]
        points = (a + f * (b - a))[..., :2] / NEAR
        low[cut] = np.minimum(low[cut], np.where(crosses[..., None], points, np.inf).min(1))
        high[cut] = np.maximum(high[cut], np.where(crosses[..., None], points, -np.inf).max(1))
    return low, high


def _scaled_planes(solids: Solids) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[P, 6, 3] n/h and [P, 6] whether the plane faces the camera at 0."""
    offset = solids.planes[..., 3]
    safe = np.where(np.abs(offset) < 1e-6, 1e-6, offset)
    return solids.planes[..., :3] / safe[..., None], offset < 0


def _crop(
    view: View, u0: int, u1: int, v0: int, v1: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = view.x[:, u0:u1] if view.x.shape[0] == 1 else view.x[v0:v1, u0:u1]
    y = view.y[v0:v1] if view.y.shape[1] == 1 else view.y[v0:v1, u0:u1]
    return x, y


def _linear(v: NDArray[np.float64], x: NDArray, y: NDArray) -> NDArray[np.float32]:
    """v.(x, y, 1); without distortion x is a row and y a column, and the sum is the only full-size
    operation. v: [3], or [h, 3] one for each row."""
    if v.ndim == 2:
        a, b, c = (v[:, i, None].astype(x.dtype) for i in range(3))
        return (x * a + c) + y * b
    return (x * x.dtype.type(v[0]) + x.dtype.type(v[2])) + y * x.dtype.type(v[1])


def _planes(
    scaled: NDArray, front: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Entry, exit (inverse depths) and entry face of a polyhedron."""
    faces = np.flatnonzero(front)
    leave: NDArray = np.zeros((1, 1), x.dtype)
    for k in np.flatnonzero(~front):
        leave = np.maximum(leave, _linear(scaled[k], x, y))
    if not len(faces):  # the camera is inside
        return np.zeros((1, 1), x.dtype), np.ones((1, 1), x.dtype), np.zeros((1, 1), np.int32)
    entry = _linear(scaled[faces[0]], x, y)
    face = np.full(entry.shape, faces[0], np.int32)
    for k in faces[1:]:
        other = _linear(scaled[k], x, y)
        less = other < entry
        np.copyto(entry, other, where=less)
        face[less] = k
    return entry, leave, face


def _quadric(
    solids: Solids,
    row: int,
    scaled: NDArray,
    front: NDArray,
    x: NDArray,
    y: NDArray,
    rows: Rows | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]] | None:
    """As `_planes` for an ellipsoid or a cylinder; None if the camera is inside. In float64: its
    discriminant cancels from afar."""
    scale = 1.0 / solids.radii[row]
    if solids.kind[row] == CYLINDER:
        scale = scale * (1.0, 1.0, 0.0)
    m, o = solids.frame[row, :, :3] * scale[:, None], solids.frame[row, :, 3] * scale
    x, y = x.astype(np.float64), y.astype(np.float64)
    if rows is None:
        c = o @ o - 1.0
        if c <= 1e-9:
            return None
        b, q = o @ m, m.T @ m
        form = np.outer(b, b) - c * q
        root = (
            (form[0, 0] * x * x + 2 * form[0, 2] * x + form[2, 2])
            + (form[1, 1] * y * y + 2 * form[1, 2] * y)
            + (2 * form[0, 1]) * x * y
        )
        along = _linear(-b / c, x, y)
    else:
        start, turned = o + rows.origin @ m.T, m @ rows.rotation
        c = ((start * start).sum(1) - 1.0)[:, None]
        if c.min() <= 1e-9:
            return None
        b = np.einsum("hi,hij->hj", start, turned)
        form = b[:, :, None] * b[:, None] - c[..., None] * (turned.transpose(0, 2, 1) @ turned)
        f = [[form[:, i, j, None] for j in range(3)] for i in range(3)]
        root = (
            (f[0][0] * x * x + 2 * f[0][2] * x + f[2][2])
            + (f[1][1] * y * y + 2 * f[1][2] * y)
            + (2 * f[0][1]) * x * y
        )
        along = _linear(-b / c, x, y)
    inside = root > 0
    root = np.sqrt(np.where(inside, root, 0.0)) / c
    entry = np.where(inside, along + root, -1.0)
    leave = np.maximum(along - root, 0.0)
    face = np.full(entry.shape, PLANES, np.int32)
    if solids.kind[row] == CYLINDER:
        for k in (4, 5):
            plane = _linear(scaled[k], x, y)
            if front[k]:
                less = plane < entry
                np.copyto(entry, plane, where=less)
                face[less] = k
            else:
                leave = np.maximum(leave, plane)
    return entry.astype(np.float32), leave.astype(np.float32), face
