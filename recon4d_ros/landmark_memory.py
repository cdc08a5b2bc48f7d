"""The pose held against the engine's memory: where its old patches are in the new images.

Tracks follow a point from one image to the next and drift with it; a pointer keeps the patch of the view that it was made from, so
what is found here is measured against that old view. Alignment is inverse-compositional Lucas-Kanade (Baker and Matthews, IJCV 2004,
section 3.2) for a shift, on patches normalised for gain and offset, all pointers at once.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.lens import Lens
from recon4d_ros.pnp import Observations
from recon4d_ros.types import Pointers

Array = NDArray[np.float64]

SIDE = 8  # samples per patch side
SCALE, DEPTH_SIGMA = 64, 65  # columns of the feature beside the patch: metres per sample, sigma of the depth in metres
PATCH = SIDE * SIDE
SOFTEN = 2.0  # grey levels added to a patch's deviation when it is normalised (as the memory does)
AROUND = (np.indices((SIDE, SIDE))[::-1].reshape(2, -1).T - (SIDE - 1) / 2).astype(np.float32)  # [64, 2] (u, v) in samples
ROUNDS, REACH = 4, 2.0  # iterations; samples that a patch may be off
DOUBT = 0.04  # share of its distance that a pointer's depth is never better than: engines smooth, so their errors go together
ALIKE = 0.75  # normalised correlation of a match
PATCHES = 160  # aligned per frame, all cameras together
STEP_RANGE = (0.5, 6.0)  # working pixels per sample at which a patch can still be compared


@dataclass
class Births:
    """From where each slot's pointer was first seen: base_link in map [M, 3]; mark [M, 2] tells a new tenant from the old."""

    place: Array
    mark: NDArray[np.float32]

    @staticmethod
    def none() -> Births:
        return Births(np.zeros((0, 3)), np.zeros((0, 2), np.float32))

    def update(self, pointers: Pointers, place: Array) -> None:
        """`place` [3] is where new pointers were seen from."""
        mark = np.where(pointers.valid[:, None], pointers.feature[:, (0, SCALE)], np.nan).astype(np.float32)
        if len(self.mark) != len(mark):
            self.place, self.mark = np.repeat(place[None], len(mark), axis=0), mark
            return
        self.place[(mark != self.mark).any(axis=1)] = place
        self.mark = mark


def find(
    pointers: Pointers,
    births: Births,
    camera: int,
    image: NDArray[np.uint8],
    lens: Lens,
    k: Array,
    T_map_camera: Array,
    noise: float,
    room: int,
) -> Observations | None:
    """Sightings of the memory in one camera's image [H, W], or None.

    k: 3x3 of the working image, in whose pixels patches are laid out. noise: deviation of a match in working pixels. room: how many patches
    may be looked for.
    """
    if pointers.feature.shape[1] <= DEPTH_SIGMA or not pointers.valid.any():
        return None
    index, rays, depth, step = _visible(pointers, lens, k, T_map_camera)
    if len(index) < 4:
        return None
    if len(index) > 3 * room:  # the ones confirmed most often; of them the best textured are chosen below
        best = np.sort(np.argsort(-pointers.weight[index], kind="stable")[: 3 * room])
        index, rays, depth, step = index[best], rays[best], depth[best], step[best]
    patch = pointers.feature[index, :PATCH]
    slope = np.stack(np.gradient(patch.reshape(-1, SIDE, SIDE), axis=(2, 1)), axis=-1).reshape(len(index), PATCH, 2)
    hessian = np.swapaxes(slope, 1, 2) @ slope
    trace, determinant = np.trace(hessian, axis1=1, axis2=2), np.linalg.det(hessian)
    weakest = 0.5 * (trace - np.sqrt(np.maximum(trace**2 - 4 * determinant, 0.0)))  # smaller eigenvalue: how well both directions hold
    best = np.argsort(-weakest, kind="stable")[:room]
    best = best[weakest[best] > 1.0]
    index, rays, depth, step, patch, slope = index[best], rays[best], depth[best], step[best], patch[best], slope[best]
    if len(index) < 4:
        return None
    shift, likeness = _align(image, lens, k, rays, step, patch, slope, np.linalg.inv(hessian[best]))
    good = (likeness > ALIKE) & (np.abs(shift).max(-1) < REACH)
    if not good.any():
        return None
    index, depth, step = index[good], depth[good], step[good]
    seen = rays[good] + shift[good] * step[:, None] / k[[0, 1], [0, 1]]
    return _observations(pointers, births, index, camera, seen, T_map_camera, noise * np.maximum(step, 1.0) / k[0, 0])


def _visible(pointers: Pointers, lens: Lens, k: Array, T_map_camera: Array) -> tuple[NDArray, Array, Array, Array]:
    """Index, rays [K, 2], z-depth and patch step (working pixels) of the pointers inside the image at a comparable size."""
    index = np.flatnonzero(pointers.valid)
    points = geometry.transform(geometry.inverse(T_map_camera), pointers.position[index].astype(np.float64))
    z = points[:, 2]
    ahead = z > 0.5
    z = np.where(ahead, z, 1.0)
    rays = points[:, :2] / z[:, None]
    step = pointers.feature[index, SCALE].astype(np.float64) * k[0, 0] / z
    to_input = lens.focal / k[0, 0]
    pixels = lens.pixels(np.where(ahead[:, None], rays, 0.0))
    inside = (pixels >= 0).all(-1)
    margin = (SIDE / 2 + REACH) * step * to_input
    inside &= (pixels[:, 0] > margin) & (pixels[:, 1] > margin)
    inside &= (pixels[:, 0] < lens.size[1] - 1 - margin) & (pixels[:, 1] < lens.size[0] - 1 - margin)
    use = ahead & inside & (step > STEP_RANGE[0]) & (step < STEP_RANGE[1])
    return index[use], rays[use], z[use], step[use]


def _align(
    image: NDArray[np.uint8], lens: Lens, k: Array, rays: Array, step: Array, patch: NDArray, slope: NDArray, inverse_hessian: NDArray
) -> tuple[Array, Array]:
    """Shift [K, 2] in samples that brings each patch onto the image, and its correlation there [K]."""
    ratio = lens.k[[0, 1], [0, 1]] / k[[0, 1], [0, 1]]
    centre = lens.pixels(rays)
    scale = step[:, None] * ratio
    shift = np.zeros((len(rays), 2))
    norm = np.linalg.norm(patch, axis=1)
    likeness = np.zeros(len(rays))
    for index in range(ROUNDS + 1):
        at = centre[:, None] + (AROUND[None] + shift[:, None]) * scale[:, None]
        at = at.astype(np.float32)
        seen = cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        seen -= seen.mean(axis=1, keepdims=True)
        seen /= seen.std(axis=1, keepdims=True) + SOFTEN
        likeness = (seen * patch).sum(1) / np.maximum(norm * np.linalg.norm(seen, axis=1), 1e-6)
        if index == ROUNDS:
            break
        error = seen - patch
        move = (inverse_hessian @ (np.swapaxes(slope, 1, 2) @ error[..., None]))[..., 0]
        shift = np.clip(shift - np.clip(move, -1.0, 1.0), -2 * REACH, 2 * REACH)
    return shift, likeness.astype(np.float64)


def _observations(
    pointers: Pointers, births: Births, index: NDArray, camera: int, seen: Array, T_map_camera: Array, sigma: Array
) -> Observations:
    """The depth's doubt lies along the ray from where the pointer was made, so that is where the landmark hangs."""
    position = pointers.position[index].astype(np.float64)
    arm = position - births.place[index]
    distance = np.linalg.norm(arm, axis=1)
    near = distance < 0.5
    arm = np.where(near[:, None], position - T_map_camera[:3, 3], arm)
    distance = np.maximum(np.linalg.norm(arm, axis=1), 0.1)
    doubt = np.maximum(pointers.feature[index, DEPTH_SIGMA].astype(np.float64), DOUBT * distance)
    rho = 1.0 / distance
    nobody = np.full(len(index), -1)
    return Observations(position - arm, arm * rho[:, None], rho, (doubt * rho**2) ** 2, np.full(len(index), camera), seen, sigma, nobody)
