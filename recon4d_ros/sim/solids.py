"""Convex solids as arrays: what the world is made of. Boxes, tapered boxes, cylinders and
ellipsoids, P of them at once.

Every solid is an intersection of up to six half spaces and, for the round ones, one quadric. Each
face carries an affine map from space to its texture, so that a renderer needs no case by case code.
Everything is float64 in the solids' common frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.textures import SIZE, Layer

PLANES = 6
FACES = PLANES + 1  # the quadric is the last one
FLAT, ELLIPSOID, CYLINDER = 0, 1, 2
_SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_CORNERS_OF_FACE = np.array(
    ((4, 5, 6, 7), (0, 1, 2, 3), (2, 3, 6, 7), (0, 1, 4, 5), (1, 3, 5, 7), (0, 2, 4, 6))
)  # +x -x +y -y +z -z
_AXES = np.array(((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)), np.float64)
# Sign that turns (second - first corner) x (third - first corner) of a face outward.
_OUTWARD = np.array((-1.0, 1.0, 1.0, -1.0, -1.0, 1.0))


@dataclass(frozen=True)
class Solids:
    """P convex solids.

    kind: [P] FLAT, ELLIPSOID or CYLINDER (about its z axis). planes: [P, 6, 4] outward unit normal
    and offset, n.x <= offset is inside; unused ones are (0, 0, 0, 1). frame: [P, 3, 4] affine map
    to the solid's own axes, metres. radii: [P, 3]. corners: [P, 8, 3] of a hexahedron around it (x
    slowest, z fastest). uv: [P, 6, 2, 4] affine maps to texels of each plane's layer. layer: [P,
    7]. density: [P, 7] texels per metre. color: [P, 7, 3] linear, multiplies the texture x 2.
    instance: [P] id, 0 = none.
    """

    kind: NDArray[np.uint8]
    planes: NDArray[np.float64]
    frame: NDArray[np.float64]
    radii: NDArray[np.float64]
    corners: NDArray[np.float64]
    uv: NDArray[np.float64]
    layer: NDArray[np.int16]
    density: NDArray[np.float64]
    color: NDArray[np.float64]
    instance: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index: NDArray) -> Solids:
        """A subset, by index or mask."""
        return Solids(*(getattr(self, field.name)[index] for field in fields(self)))

    def moved(self, pose: NDArray[np.float64], instance: int | None = None) -> Solids:
        """The same solids after a rigid motion (4x4), with another instance id if given."""
        rotation, translation = pose[:3, :3], pose[:3, 3]
        planes = self.planes.copy()
        planes[..., :3] = self.planes[..., :3] @ rotation.T
        planes[..., 3] += planes[..., :3] @ translation
        back = np.eye(4)
        back[:3, :3] = rotation.T
        back[:3, 3] = -rotation.T @ translation
        ids = self.instance if instance is None else np.full(len(self), instance, np.int64)
        return Solids(
            self.kind,
            planes,
            self.frame @ back,
            self.radii,
            self.corners @ rotation.T + translation,
            self.uv @ back,
            self.layer,
            self.density,
            self.color,
            ids,
        )


def concatenate(parts: Sequence[Solids]) -> Solids:
    """All solids of `parts`, in order."""
    if not parts:
        return empty()
    return Solids(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Solids))
    )


def empty() -> Solids:
    """No solids at all."""
    return box((0, 0, 0), (1, 1, 1)).take(np.zeros(0, np.int64))


@dataclass(frozen=True)
class Skin:
    """A surface: texture layer, colour, and how the texture lies on it.

    density: texels per metre; 0 stretches the tile once over the face.
    """

    layer: Layer = Layer.PLASTER
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    density: float = 64.0


def box(
    center: Sequence[float],
    size: Sequence[float],
    skin: Skin = Skin(),
    skins: dict[int, Skin] | None = None,
    *,
    taper: tuple[float, float, float] = (1.0, 1.0, 0.0),
    rotation: NDArray[np.float64] | None = None,
) -> Solids:
    """A box; its top may be narrower by `taper` (x factor, y factor) and shifted along x by its
    third value, in metres.

    skins: other skins for faces by number: 0 front (+x), 1 rear, 2 left (+y), 3 right, 4 top, 5
    bottom. rotation: 3x3 about `center`.
    """
    half = 0.5 * np.asarray(size, np.float64)
    corners = _SIGNS * half
    top = _SIGNS[:, 2] > 0
    corners[top, 0] = corners[top, 0] * taper[0] + taper[2]
    corners[top, 1] *= taper[1]
    of_face = corners[_CORNERS_OF_FACE]
    normal = _cross(of_face[:, 1] - of_face[:, 0], of_face[:, 2] - of_face[:, 0])
    normal *= (_OUTWARD / np.sqrt((normal**2).sum(1)))[:, None]
    planes = np.concatenate([normal, (normal * of_face[:, 0]).sum(1, keepdims=True)], axis=1)
    faces = [(skins or {}).get(face, skin) for face in range(PLANES)]
    return _solid(FLAT, planes, half, corners, normal, faces, skin).moved(_pose(center, rotation))


def ellipsoid(center: Sequence[float], radii: Sequence[float], skin: Skin) -> Solids:
    """An axis-aligned ellipsoid."""
    return _round(ELLIPSOID, _no_planes(), np.asarray(radii, np.float64), skin, skin).moved(
        _pose(center, None)
    )


def cylinder(
    center: Sequence[float],
    radius: float,
    height: float,
    skin: Skin,
    cap: Skin | None = None,
    rotation: NDArray[np.float64] | None = None,
) -> Solids:
    """A cylinder about z (before `rotation`); `cap` is the skin of its two ends."""
    planes = _no_planes()
    planes[4], planes[5] = (0, 0, 1, 0.5 * height), (0, 0, -1, 0.5 * height)
    return _round(
        CYLINDER, planes, np.array([radius, radius, 0.5 * height]), skin, cap or skin
    ).moved(_pose(center, rotation))


def _no_planes() -> NDArray[np.float64]:
    planes = np.zeros((PLANES, 4))
    planes[:, 3] = 1.0
    return planes


def _round(
    kind: int, planes: NDArray[np.float64], radii: NDArray[np.float64], skin: Skin, cap: Skin
) -> Solids:
    return _solid(kind, planes, radii, _SIGNS * radii, _AXES, [cap] * PLANES, skin)


def _solid(
    kind: int,
    planes: NDArray[np.float64],
    radii: NDArray[np.float64],
    corners: NDArray[np.float64],
    normal: NDArray[np.float64],
    faces: Sequence[Skin],
    quadric: Skin,
) -> Solids:
    """One solid about the origin. normal: [6, 3] of its hexahedron's faces. faces: the skins of the
    six; quadric: that of the round one."""
    uv, densities = _face_maps(
        normal, corners[_CORNERS_OF_FACE], np.array([skin.density for skin in faces])
    )
    skins = [*faces, quadric]
    layer, color = (
        np.array([skin.layer for skin in skins], np.int16),
        np.array([skin.color for skin in skins], np.float64),
    )
    density = np.append(densities, quadric.density if kind != FLAT else 1.0)
    frame = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    return Solids(
        np.array([kind], np.uint8),
        planes[None],
        frame[None],
        radii[None],
        corners[None],
        uv[None],
        layer[None],
        density[None],
        color[None],
        np.zeros(1, np.int64),
    )


def _face_maps(
    normal: NDArray, corners: NDArray, density: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine maps [6, 2, 4] of a box's faces to texels, and their texels per metre [6]. normal: [6,
    3]; corners: [6, 4, 3].

    v grows downwards, so that tiles stand upright; on both sides u grows forward, so that one
    drawing of a car serves both.
    """
    u_axis = np.zeros((PLANES, 3))
    u_axis[:2, 0], u_axis[:2, 1] = -normal[:2, 1], normal[:2, 0]  # z x normal
    u_axis[:2] /= np.sqrt((u_axis[:2] ** 2).sum(1, keepdims=True))
    u_axis[2:4, 0], u_axis[4:, 1] = 1.0, -1.0
    v_axis = _cross(normal, u_axis)
    v_axis *= -np.sign(v_axis[:, 2:])
    v_axis[4:] = (-1.0, 0.0, 0.0)
    axes = np.stack([u_axis, v_axis], axis=1)
    flat = np.einsum("fij,fkj->fki", axes, corners)
    low, high = flat.min(1), flat.max(1)
    fitted = (density <= 0)[:, None]
    scale = np.where(fitted, SIZE / np.maximum(high - low, 1e-6), density[:, None])
    anchor = np.stack([low[:, 0], np.where(fitted[:, 0], low[:, 1], high[:, 1])], axis=1)
    uv = np.concatenate([axes * scale[..., None], -(scale * anchor)[..., None]], axis=2)
    return uv, np.sqrt(scale[:, 0] * scale[:, 1])


def _cross(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Cross products [n, 3]: np.cross spends its time on checks."""
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _pose(center: Sequence[float], rotation: NDArray[np.float64] | None) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, 3] = center
    if rotation is not None:
        pose[:3, :3] = rotation
    return pose
