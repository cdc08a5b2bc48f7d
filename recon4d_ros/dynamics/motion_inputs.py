"""What the motion network is told of one camera's image: a measurement of flow, depth and road on a
small grid.

The grid is the working image at every second pixel, or every fourth where the lens is long: flow in
pixels, and what an image shows of a dynamic object in so many pixels, are then alike for all lenses
(focal lengths of 50 to 180 pixels), and a long lens costs no more than a wide one. Its sides are
brought up to whole multiples of `MULTIPLE`, as the network halves them four times.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import make_calibration, sizes_for
from recon4d_ros.dynamics.flow import Flow, FlowMeter, make_picture
from recon4d_ros.dynamics.infill import fill_in
from recon4d_ros.dynamics.pairs import Shot
from recon4d_ros.dynamics.static_world import inverse_depth, see_road, static_flow
from recon4d_ros.dynamics.views import STRIDE, View, make_views
from recon4d_ros.engine.base import is_rectified_rig
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Rig

Array = NDArray[np.float64]
Plane = NDArray[np.float32]

LONG_LENS = 180.0
"""Focal length, pixels of the motion grid, from which the network works at half of it."""

MULTIPLE = 16

FARTHEST = 500.0
"""Pixels: of flow that is more nothing is known (a search that began behind the camera)."""


def make_meter() -> FlowMeter:
    """The flow that the network was trained on."""
    return FlowMeter(stride=5, rounds=16)


@dataclass(frozen=True)
class NetworkGrid:
    """The network's grid: every `step`-th pixel of the motion grid. size: (h, w) without, padded:
    (h, w) with the rows and columns that make whole multiples of MULTIPLE."""

    step: int
    size: tuple[int, int]
    padded: tuple[int, int]

    def pad(self, plane: NDArray) -> NDArray:
        """[..., h, w] with zeros added below and to the right."""
        h, w = plane.shape[-2:]
        out = np.zeros((*plane.shape[:-2], *self.padded), plane.dtype)
        out[..., :h, :w] = plane
        return out

    def take(self, plane: NDArray) -> NDArray:
        """[..., h, w] of the motion grid at the network's pixels, padded."""
        return self.pad(plane[..., :: self.step, :: self.step])

    def intrinsics(self, view: View) -> Array:
        """[3, 3] of a camera on this grid."""
        k = view.k.copy()
        k[:2] /= self.step
        return k


def make_grid(views: tuple[View, ...]) -> NetworkGrid:
    """One grid for all cameras of a rig, chosen by the median of their focal lengths."""
    step = 2 if float(np.median([view.focal for view in views])) >= LONG_LENS else 1
    h, w = ((side + step - 1) // step for side in views[0].x.shape)
    padded = tuple(-(-side // MULTIPLE) * MULTIPLE for side in (h, w))
    return NetworkGrid(step, (h, w), (padded[0], padded[1]))


def grid_of(rig: Rig) -> NetworkGrid:
    """The grid that a rig has with the shipped engines of the reconstruction."""
    sizes = sizes_for(rig, is_rectified_rig(rig))
    return make_grid(make_views(make_calibration(rig, *sizes)))


@dataclass(frozen=True, eq=False)
class NetworkShot(Shot):
    """An image as the network is told of it, on its padded grid. grey: [h, w] uint8. near: [h, w]
    1/m, inverse depth, 0 = none. sigma: [h, w] of the depth, as a share of it, 1 = none.
    confidence: [h, w] 0..1, 0 = none."""

    grey: NDArray[np.uint8]
    near: Plane
    sigma: Plane
    confidence: Plane


def make_shot(
    grid: NetworkGrid,
    stamp_ns: int,
    color: NDArray[np.uint8],
    depth: Plane,
    sigma: Plane,
    confidence: Plane,
    T_map_camera: Array,
) -> NetworkShot:
    """color, depth, sigma, confidence: [H, W(, 3)] of the working image."""
    picture = make_picture(color)
    grey = picture.grid
    for _ in range(grid.step // 2):
        grey = np.asarray(cv2.pyrDown(grey), np.uint8)
    whole = inverse_depth(depth[::STRIDE, ::STRIDE])
    with np.errstate(invalid="ignore"):
        share = sigma[::STRIDE, ::STRIDE] * whole
    known = np.isfinite(whole)
    return NetworkShot(
        stamp_ns,
        picture,
        T_map_camera,
        whole,
        grid.pad(grey),
        grid.take(np.where(known, whole, np.float32(0))),
        grid.take(np.minimum(np.where(known, share, np.float32(1)), 1).astype(np.float32)),
        grid.take(np.where(known, confidence[::STRIDE, ::STRIDE], np.float32(0))),
    )


def measure_flow(
    view: View, meter: FlowMeter, now: Shot, before: Shot, plane: Array | None
) -> Flow:
    """Flow from `now` to `before` on the motion grid. plane: [4] the road in base_link, or None.
    The search starts at the rigid flow, without any depth at the road's."""
    T = inverse(before.T_map_camera) @ now.T_map_camera
    guess = fill_in(now.q) if np.isfinite(now.q).any() else see_road(view, plane)
    return meter(now.picture, before.picture, np.stack(static_flow(view, guess, T), -1))


def on_grid(grid: NetworkGrid, flow: Flow) -> Plane:
    """[2, h, w] flow in pixels of the network's padded grid, FARTHEST at most."""
    there = np.nan_to_num(grid.take(np.stack([flow.u, flow.v])) / np.float32(grid.step))
    return np.asarray(np.clip(there, -FARTHEST, FARTHEST), np.float32)
