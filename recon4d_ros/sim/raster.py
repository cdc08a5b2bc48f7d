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
    view, in the camera's optical frame.
    """

    inverse_depth: NDArray[np.float32]
    surface: NDArray[np.int32]
    solids: Solids


def cast(solids: Solids, view: View, T_world_camera: NDArray[np.float64]) -> Hits:
    """Cast the rays of a view against the ground z = 0 and the solids (in world)."""
    back = np.eye(4)
    back[:3, :3] = T_world_camera[:3, :3].T
    back[:3, 3] = -back[:3, :3] @ T_world_camera[:3, 3]
    centre = solids.corners.mean(1) @ back[:3, :3].T + back[:3, 3]
    radius = (
        np.sqrt(((solids.corners[:, 0] - solids.corners[:, 7]) ** 2).sum(1)) * 0.6
    )  # tapered ones are not centred: a margin
    seen = solids.take(_in_frustum(centre, radius, view)).moved(back)
    low, high = _bounds(seen.corners)
    near, far = seen.corners[..., 2].min(1), seen.corners[..., 2].max(1)
    boxes = view.pixel_rectangles(low, high)
    big = ((high - low) * view.focal).max(1) > 0.7  # less than a pixel is noise, not a picture
    visible = np.flatnonzero(
        (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3]) & (far > NEAR) & big
    )
    visible = visible[np.argsort(near[visible], kind="stable")]  # what is near hides the rest
    seen, boxes = seen.take(visible), boxes[visible]
    nearest = 1.0 / np.maximum(near[visible], NEAR)

    normal = T_world_camera[:3, :3].T[:, 2]
    ground = (-normal / T_world_camera[2, 3]).astype(np.float64)
    inverse_depth = _linear(ground, view.x, view.y)
    surface = np.where(inverse_depth > 1e-5, np.int32(GROUND), np.int32(SKY))
    inverse_depth[surface == SKY] = 0.0
    scaled, front = _scaled_planes(seen)
    for row in range(len(seen)):
        u0, u1, v0, v1 = boxes[row]
        window = inverse_depth[v0:v1, u0:u1]
        if window.min() >= nearest[row]:
            continue
        x, y = _crop(view, u0, u1, v0, v1)
        if seen.kind[row] == FLAT:
            entry, leave, face = _planes(scaled[row], front[row], x, y)
        else:
            rounded = _quadric(seen, row, scaled[row], front[row], x, y)
            if rounded is None:
                continue
            entry, leave, face = rounded
        hit = (entry > leave) & (entry > window) & (entry < 1.0 / NEAR)
        np.copyto(window, entry, where=hit)
        np.copyto(surface[v0:v1, u0:u1], face + np.int32(FIRST + FACES * row), where=hit)
    if view.valid is not None:
        inverse_depth[~view.valid], surface[~view.valid] = 0.0, SKY
    return Hits(inverse_depth, surface, seen)


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
    operation."""
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
    solids: Solids, row: int, scaled: NDArray, front: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]] | None:
    """As `_planes` for an ellipsoid or a cylinder; None if the camera is inside. In float64: its
    discriminant cancels from afar."""
    scale = 1.0 / solids.radii[row]
    if solids.kind[row] == CYLINDER:
        scale = scale * (1.0, 1.0, 0.0)
    m, o = solids.frame[row, :, :3] * scale[:, None], solids.frame[row, :, 3] * scale
    c = o @ o - 1.0
    if c <= 1e-9:
        return None
    b, q = o @ m, m.T @ m
    form = np.outer(b, b) - c * q
    x, y = x.astype(np.float64), y.astype(np.float64)
    root = (
        (form[0, 0] * x * x + 2 * form[0, 2] * x + form[2, 2])
        + (form[1, 1] * y * y + 2 * form[1, 2] * y)
        + (2 * form[0, 1]) * x * y
    )
    inside = root > 0
    root = np.sqrt(np.where(inside, root, 0.0)) / c
    along = _linear(-b / c, x, y)
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
