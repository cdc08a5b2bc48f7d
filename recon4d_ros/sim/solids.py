"""Convex solids as arrays: what the world is made of. Boxes, tapered boxes, cylinders and ellipsoids, P of them at once.

Every solid is an intersection of up to six half spaces and, for the round ones, one quadric. Each face carries an affine map from space
to its texture, so that a renderer needs no case by case code. Everything is float64 in the solids' common frame.
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
_CORNERS_OF_FACE = ((4, 5, 6, 7), (0, 1, 2, 3), (2, 3, 6, 7), (0, 1, 4, 5), (1, 3, 5, 7), (0, 2, 4, 6))  # +x -x +y -y +z -z


@dataclass(frozen=True)
class Solids:
    """P convex solids.

    kind: [P] FLAT, ELLIPSOID or CYLINDER (about its z axis). planes: [P, 6, 4] outward unit normal and offset, n.x <= offset is inside;
    unused ones are (0, 0, 0, 1). frame: [P, 3, 4] affine map to the solid's own axes, metres. radii: [P, 3]. corners: [P, 8, 3] of a
    hexahedron around it (x slowest, z fastest). uv: [P, 6, 2, 4] affine maps to texels of each plane's layer. layer: [P, 7].
    density: [P, 7] texels per metre. color: [P, 7, 3] linear, multiplies the texture x 2. instance: [P] id, 0 = none.
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
        return Solids(self.kind, planes, self.frame @ back, self.radii, self.corners @ rotation.T + translation, self.uv @ back, self.layer,
                      self.density, self.color, ids)


def concatenate(parts: Sequence[Solids]) -> Solids:
    """All solids of `parts`, in order."""
    return Solids(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Solids)))


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


def box(center: Sequence[float], size: Sequence[float], skin: Skin = Skin(), skins: dict[int, Skin] | None = None, *,
        taper: tuple[float, float, float] = (1.0, 1.0, 0.0), rotation: NDArray[np.float64] | None = None) -> Solids:
    """A box; its top may be narrower by `taper` (x factor, y factor) and shifted along x by its third value, in metres.

    skins: other skins for faces by number: 0 front (+x), 1 rear, 2 left (+y), 3 right, 4 top, 5 bottom. rotation: 3x3 about `center`.
    """
    half = 0.5 * np.asarray(size, np.float64)
    corners = _SIGNS * half
    top = _SIGNS[:, 2] > 0
    corners[top, 0] = corners[top, 0] * taper[0] + taper[2]
    corners[top, 1] *= taper[1]
    planes, uv = np.zeros((PLANES, 4)), np.zeros((PLANES, 2, 4))
    layer, density, color = np.zeros(FACES, np.int16), np.ones(FACES), np.zeros((FACES, 3))
    for face, ids in enumerate(_CORNERS_OF_FACE):
        a, b, c, _ = corners[list(ids)]
        normal = np.cross(b - a, c - a)
        normal /= np.linalg.norm(normal)
        normal *= np.sign(normal @ (corners[list(ids)].mean(0) - corners.mean(0)))
        planes[face] = *normal, normal @ a
        chosen = (skins or {}).get(face, skin)
        uv[face], density[face] = _face_map(face, normal, corners[list(ids)], chosen.density)
        layer[face], color[face] = chosen.layer, chosen.color
    layer[PLANES], color[PLANES] = skin.layer, skin.color
    frame = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    solid = Solids(np.array([FLAT], np.uint8), planes[None], frame[None], half[None], corners[None], uv[None], layer[None], density[None],
                   color[None], np.zeros(1, np.int64))
    return solid.moved(_pose(center, rotation))


def ellipsoid(center: Sequence[float], radii: Sequence[float], skin: Skin) -> Solids:
    """An axis-aligned ellipsoid."""
    planes = np.zeros((PLANES, 4))
    planes[:, 3] = 1.0
    return _round(ELLIPSOID, planes, np.asarray(radii, np.float64), skin, skin).moved(_pose(center, None))


def cylinder(center: Sequence[float], radius: float, height: float, skin: Skin, cap: Skin | None = None,
             rotation: NDArray[np.float64] | None = None) -> Solids:
    """A cylinder about z (before `rotation`); `cap` is the skin of its two ends."""
    planes = np.zeros((PLANES, 4))
    planes[:, 3] = 1.0
    planes[4], planes[5] = (0, 0, 1, 0.5 * height), (0, 0, -1, 0.5 * height)
    return _round(CYLINDER, planes, np.array([radius, radius, 0.5 * height]), skin, cap or skin).moved(_pose(center, rotation))


def _round(kind: int, planes: NDArray[np.float64], radii: NDArray[np.float64], skin: Skin, cap: Skin) -> Solids:
    uv = np.zeros((PLANES, 2, 4))
    layer, density, color = np.full(FACES, cap.layer, np.int16), np.ones(FACES), np.tile(np.array(cap.color, np.float64), (FACES, 1))
    corners = _SIGNS * radii
    for face in (4, 5):
        uv[face], density[face] = _face_map(face, planes[face, :3], corners[list(_CORNERS_OF_FACE[face])], cap.density)
    layer[PLANES], density[PLANES], color[PLANES] = skin.layer, skin.density, skin.color
    frame = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    return Solids(np.array([kind], np.uint8), planes[None], frame[None], radii[None], corners[None], uv[None], layer[None], density[None],
                  color[None], np.zeros(1, np.int64))


def _face_map(face: int, normal: NDArray, corners: NDArray, density: float) -> tuple[NDArray[np.float64], float]:
    """Affine map [2, 4] of a face to texels, and its texels per metre. v grows downwards, so that tiles stand upright."""
    if face in (4, 5):
        u_axis, v_axis = np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0])
    elif face in (2, 3):  # the sides' u grows forward on both, so that one drawing of a car serves both
        u_axis = np.array([1.0, 0.0, 0.0])
        v_axis = np.cross(normal, u_axis)
        v_axis *= -np.sign(v_axis[2])
    else:
        u_axis = np.cross((0.0, 0.0, 1.0), normal)
        u_axis /= np.linalg.norm(u_axis)
        v_axis = np.cross(normal, u_axis)
        v_axis *= -np.sign(v_axis[2])
    axes = np.stack([u_axis, v_axis])
    flat = corners @ axes.T
    low, size = flat.min(0), np.ptp(flat, axis=0)
    scale = np.full(2, density) if density > 0 else SIZE / np.maximum(size, 1e-6)
    offset = -scale * low if density <= 0 else -scale * np.array([low[0], flat[:, 1].max()])
    return np.concatenate([axes * scale[:, None], offset[:, None]], axis=1), float(np.sqrt(scale[0] * scale[1]))


def _pose(center: Sequence[float], rotation: NDArray[np.float64] | None) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, 3] = center
    if rotation is not None:
        pose[:3, :3] = rotation
    return pose
