"""The pose held against the engine's memory: where its old patches are in the new images.

Tracks follow a point from one image to the next and drift with it; a pointer keeps the patch of the
view that it was made from, so what is found here is measured against that old view. Alignment is
inverse-compositional Lucas-Kanade (Baker and Matthews, IJCV 2004, section 3.2) for a shift, on
patches normalised for gain and offset, all pointers and cameras at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras.lens import Lens
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.types import Pointers

Array = NDArray[np.float64]

SIDE = 8  # samples per patch side
SCALE, DEPTH_SIGMA = (
    64,
    65,
)  # columns of the feature beside the patch: metres per sample, sigma of the depth in metres
PATCH = SIDE * SIDE
SOFTEN = 2.0  # grey levels added to a patch's deviation when it is normalised (as the memory does)
AROUND = (np.indices((SIDE, SIDE))[::-1].reshape(2, -1).T - (SIDE - 1) / 2).astype(
    np.float32
)  # [64, 2] (u, v) in samples
ROUNDS, REACH = 4, 2.0  # iterations; samples that a patch may be off
# share of its distance that a pointer's depth is never better than: engines smooth, so their errors
# go together
DOUBT = 0.04
ALIKE = 0.75  # normalised correlation of a match
PATCHES = 160  # aligned per frame, all cameras together
STEP_RANGE = (0.5, 6.0)  # working pixels per sample at which a patch can still be compared


@dataclass
class Births:
    """From where each slot's pointer was first seen: base_link in map [M, 3]; mark [M, 2] tells a
    new tenant from the old."""

    place: Array
    mark: NDArray[np.float32]

    @staticmethod
    def none() -> Births:
        return Births(np.zeros((0, 3)), np.zeros((0, 2), np.float32))

    def update(self, pointers: Pointers, place: Array) -> None:
        """`place` [3] is where new pointers were seen from."""
        if not len(pointers.valid):  # an engine without pointers has no features either
            self.place, self.mark = np.zeros((0, 3)), np.zeros((0, 2), np.float32)
            return
        mark = np.where(pointers.valid[:, None], pointers.feature[:, (0, SCALE)], np.nan).astype(
            np.float32
        )
        if len(self.mark) != len(mark):
            self.place, self.mark = np.repeat(place[None], len(mark), axis=0), mark
            return
        self.place[(mark != self.mark).any(axis=1)] = place
        self.mark = mark


@dataclass(frozen=True)
class View:
    """One camera that the memory is looked for in: its number, grey image [H, W] and lens, the
    working image's intrinsics k, its pose."""

    camera: int
    image: NDArray[np.uint8]
    lens: Lens
    k: Array
    T_map_camera: Array


@dataclass(frozen=True)
class _Candidates:
    """Pointers that may be seen, C in all, view by view.

    view [C]: which; index [C]: the pointer's slot; rays [C, 2]; depth [C]: z; step [C]: working
    pixels per sample; centre [C, 2]: where in the image; scale [C, 2]: image pixels per sample.
    """

    view: NDArray[np.int64]
    index: NDArray[np.int64]
    rays: Array
    depth: Array
    step: Array
    centre: Array
    scale: Array

    def take(self, which: NDArray) -> _Candidates:
        return _Candidates(*(getattr(self, field.name)[which] for field in fields(self)))


def find(
    pointers: Pointers, births: Births, views: list[View], noise: float, room: int
) -> Observations | None:
    """Sightings of the memory in the cameras' images, or None.

    k of a view is that of the working image, in whose pixels patches are laid out. noise: deviation
    of a match in working pixels. room: how many patches may be looked for in one camera.
    """
    if not views or pointers.feature.shape[1] <= DEPTH_SIGMA or not pointers.valid.any():
        return None
    seen = _visible(pointers, views, room)
    if len(seen.index) == 0:
        return None
    patch = pointers.feature[seen.index, :PATCH]
    slope = np.stack(np.gradient(patch.reshape(-1, SIDE, SIDE), axis=(2, 1)), axis=1).reshape(
        len(patch), 2, PATCH
    )
    hessian = slope @ np.swapaxes(slope, 1, 2)
    half, cross = 0.5 * (hessian[:, 0, 0] + hessian[:, 1, 1]), hessian[:, 0, 1]
    determinant = hessian[:, 0, 0] * hessian[:, 1, 1] - np.square(cross)
    weakest = half - np.sqrt(
        np.maximum(np.square(half) - determinant, 0.0)
    )  # smaller eigenvalue: how well both directions hold
    best = _best(seen.view, weakest, len(views), room)
    best = best[weakest[best] > 1.0]
    if len(best) < 4:
        return None
    seen = seen.take(best)
    shift, likeness = _align(views, seen, patch[best], slope[best], np.linalg.inv(hessian[best]))
    good = (likeness > ALIKE) & (np.abs(shift).max(-1) < REACH)
    if not good.any():
        return None
    return _observations(pointers, births, views, seen.take(good), shift[good], noise)


def _best(view: NDArray[np.int64], score: NDArray, views: int, count: int) -> NDArray[np.int64]:
    """Positions of the `count` highest scores of each view, in the order that they come in."""
    if np.bincount(view, minlength=views).max() <= count:
        return np.arange(len(view))
    order = np.lexsort((-score, view))
    first = np.searchsorted(view[order], np.arange(views))
    return np.sort(order[np.arange(len(order)) - first[view[order]] < count])


def _visible(pointers: Pointers, views: list[View], room: int) -> _Candidates:
    """The pointers inside the images at a comparable size, of each camera those that were confirmed
    most often: three times the room."""
    index = np.flatnonzero(pointers.valid)
    T_camera_map = geometry.inverse(np.stack([view.T_map_camera for view in views]))
    points = (
        T_camera_map[:, :3, :3] @ pointers.position[index].astype(np.float64).T
        + T_camera_map[:, :3, 3:]
    )  # [views, 3, valid]
    focal = np.array([view.k[0, 0] for view in views])[:, None]
    z = points[:, 2]
    ahead = z > 0.5
    step = pointers.feature[index, SCALE].astype(np.float64) * focal / np.where(ahead, z, 1.0)
    which, at = np.nonzero(ahead & (step > STEP_RANGE[0]) & (step < STEP_RANGE[1]))
    depth, step = z[which, at], step[which, at]
    rays = points[which, :2, at] / depth[:, None]
    centre = np.empty_like(rays)
    edges = np.searchsorted(which, np.arange(len(views) + 1))
    for number, view in enumerate(views):
        mine = slice(edges[number], edges[number + 1])
        centre[mine] = view.lens.pixels(rays[mine])
    # How far the patch may reach: its own half and what it may be off by, in pixels of the input
    # image.
    margin = (
        (SIDE / 2 + REACH)
        * step
        * (np.array([view.lens.focal for view in views]) / focal[:, 0])[which]
    )
    last = np.array([view.lens.size[::-1] for view in views])[which] - 1.0
    inside = ((centre > margin[:, None]) & (centre < last - margin[:, None])).all(
        -1
    )  # NaN is outside
    scale = (
        step[:, None]
        * np.stack([view.lens.k[[0, 1], [0, 1]] / view.k[[0, 1], [0, 1]] for view in views])[which]
    )
    seen = _Candidates(which, index[at], rays, depth, step, centre, scale).take(inside)
    return seen.take(_best(seen.view, pointers.weight[seen.index], len(views), 3 * room))


def _align(
    views: list[View], seen: _Candidates, patch: NDArray, slope: NDArray, inverse_hessian: NDArray
) -> tuple[Array, Array]:
    """Shift [C, 2] in samples that brings each patch onto its image, and its correlation there [C].
    slope: [C, 2, PATCH]."""
    shift = np.zeros((len(patch), 2))
    norm = np.linalg.norm(patch, axis=1)
    likeness = np.zeros(len(patch))
    edges = np.searchsorted(seen.view, np.arange(len(views) + 1))
    found = np.empty(patch.shape, np.uint8)
    for index in range(ROUNDS + 1):
        u, v = (
            seen.centre[:, None, axis]
            + (AROUND[:, axis] + shift[:, axis, None]) * seen.scale[:, axis, None]
            for axis in (0, 1)
        )
        u, v = u.astype(np.float32), v.astype(np.float32)
        for number, view in enumerate(views):
            mine = slice(edges[number], edges[number + 1])
            if edges[number] < edges[number + 1]:
                found[mine] = cv2.remap(
                    view.image, u[mine], v[mine], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )
        now = found.astype(np.float32)
        now -= now.mean(axis=1, keepdims=True)
        now /= np.sqrt(np.square(now).mean(axis=1, keepdims=True)) + SOFTEN
        likeness = (now * patch).sum(1) / np.maximum(
            norm * np.sqrt(np.square(now).sum(axis=1)), 1e-6
        )
        if index == ROUNDS:
            break
        move = (inverse_hessian @ (slope @ (now - patch)[..., None]))[..., 0]
        shift = np.clip(shift - np.clip(move, -1.0, 1.0), -2 * REACH, 2 * REACH)
    return shift, likeness.astype(np.float64)


def _observations(
    pointers: Pointers,
    births: Births,
    views: list[View],
    seen: _Candidates,
    shift: Array,
    noise: float,
) -> Observations:
    """The depth's doubt lies along the ray from where the pointer was made, so that is where the
    landmark hangs."""
    index = seen.index
    focal = np.stack([view.k[[0, 1], [0, 1]] for view in views])[seen.view]
    ray = seen.rays + shift * seen.step[:, None] / focal
    sigma = noise * np.maximum(seen.step, 1.0) / focal[:, 0]
    position = pointers.position[index].astype(np.float64)
    arm = position - births.place[index]
    near = np.linalg.norm(arm, axis=1) < 0.5
    centre = np.stack([view.T_map_camera[:3, 3] for view in views])[seen.view]
    arm = np.where(near[:, None], position - centre, arm)
    distance = np.maximum(np.linalg.norm(arm, axis=1), 0.1)
    doubt = np.maximum(pointers.feature[index, DEPTH_SIGMA].astype(np.float64), DOUBT * distance)
    rho = 1.0 / distance
    camera = np.array([view.camera for view in views])[seen.view]
    nobody = np.full(len(index), -1)
    return Observations(
        position - arm, arm * rho[:, None], rho, (doubt * rho**2) ** 2, camera, ray, sigma, nobody
    )
