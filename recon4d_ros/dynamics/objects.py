"""A moving region of one image lifted to 3D: by its own depth where two cameras see it, else by
where it stands on the road."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.pairs import Pair, Shot
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import components
from recon4d_ros.dynamics.static_world import see_road
from recon4d_ros.dynamics.tracker import Detection
from recon4d_ros.dynamics.views import View

Array = NDArray[np.float64]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST = 12
"""Pixels of the motion grid that a dynamic object has at least."""


@dataclass(frozen=True)
class Sight:
    """All that is known of one camera in one frame when its regions are lifted. road: [h, w] 1/m,
    its inverse depth along each ray. plane: [4] the road in base_link, or None. depth,
    depth_before: [h, w] 1/m of both images where it does not come from time, NaN = none; or
    None."""

    camera: int
    view: View
    pair: Pair
    road: Plane
    plane: Array | None
    depth: Plane | None
    depth_before: Plane | None


def make_sight(camera: int, view: View, pair: Pair, plane: Array | None) -> Sight:
    """What the regions of a camera's pair of images are lifted by."""

    def own(shot: Shot) -> Plane | None:
        covered = view.mostly_covered
        return np.where(view.covered, shot.q, np.float32(np.nan)) if covered else None

    road = see_road(view, plane)
    return Sight(camera, view, pair, road, plane, own(pair.now), own(pair.before))


@dataclass(frozen=True)
class Extent:
    """Where a region is: inverse depth q of the object and its standard deviation, and its sides
    across the view in metres."""

    q: float
    sigma: float
    width: float
    height: float


def measure_extent(sight: Sight, mask: Mask, box: NDArray[np.int32]) -> Extent | None:
    """Range and size of a region; None if it neither has depth nor touches the road. mask: [bh, bw]
    bool inside box."""
    left, top, width, height = (int(b) for b in box)
    window = np.s_[top : top + height, left : left + width]
    q, sigma = 0.0, np.inf
    if sight.depth is not None:
        measured = sight.depth[window][mask]
        measured = measured[np.isfinite(measured)]
        if len(measured) > 0.25 * mask.sum():
            q = float(np.median(measured))
            sigma = (
                float(np.median(np.abs(measured - q))) * 1.48 / np.sqrt(max(len(measured) / 25, 1))
                + 0.01 * q
            )
    if not q > 0:
        # The lowest pixels of an object that stands on the road are its contact.
        inside = np.where(mask, sight.road[window], 0)
        q = float(np.percentile(inside[mask], 95))
        row = float(
            sight.road[min(top + height, sight.road.shape[0] - 1), left + width // 2]
            - sight.road[min(top + height, sight.road.shape[0] - 1) - 1, left + width // 2]
        )
        sigma = float(np.hypot(1.5 * abs(row), 0.05 * q))
    if q < 1e-3:
        return None
    # Stragglers at the border are not the object: nine tenths of its pixels, and a tenth more.
    vs, us = np.nonzero(mask)
    wide, high = (
        np.ptp(np.percentile(us, (5, 95))) * 1.1 + 1,
        np.ptp(np.percentile(vs, (5, 95))) * 1.1 + 1,
    )
    return Extent(
        q, sigma, float(wide) / (q * sight.view.focal), float(high) / (q * sight.view.focal)
    )


def find_extent(
    sight: Sight, mask: Mask, box: NDArray[np.int32], parameters: DynamicsParameters
) -> Extent | None:
    """measure_extent of a region that is near and large enough; None of any other."""
    extent = measure_extent(sight, mask, box)
    if (
        extent is None
        or 1 / extent.q > parameters.maximum_range
        or mask.sum() / (extent.q * sight.view.focal) ** 2 < parameters.minimum_area
    ):
        return None
    return extent


def detect(sight: Sight, probability: Plane, sure: float, p: DynamicsParameters) -> list[Detection]:
    """The regions of a camera [h, w] above the probability `sure` that are large and near enough,
    lifted to 3D."""
    count, labels, stats = components(probability > sure)
    found = []
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < SMALLEST:
            continue
        box = stats[label, :4]
        left, top, width, height = (int(b) for b in box)
        window = np.s_[top : top + height, left : left + width]
        inside = labels[window] == label
        if (extent := find_extent(sight, inside, box, p)) is not None:
            mean = float(probability[window][inside].mean())
            found.append(lift(sight, label, inside, box, extent, mean))
    return found


def lift(
    sight: Sight, label: int, mask: Mask, box: NDArray[np.int32], extent: Extent, sure: float
) -> Detection:
    """A region's position, sides and velocity in map with covariances, by first-order propagation
    of flow and range errors.

    The point at range 1/q is seen now along the region's central ray, and before where the flow
    ends: at the range of the previous depth, or, without depth, at the range at which the region's
    foot then met the road.
    """
    left, top, width, height = (int(b) for b in box)
    window = np.s_[top : top + height, left : left + width]
    view, flow = sight.view, sight.pair.flow
    x, y = float(np.median(view.x[window][mask])), float(np.median(view.y[window][mask]))
    u, v = float(np.median(flow.u[window][mask])), float(np.median(flow.v[window][mask]))
    z = 1 / extent.q
    sigma_z = extent.sigma * z * z
    here = np.array([x, y, 1.0]) * z
    z_before, sigma_before = _range_before(sight, window, mask, extent, v)
    ray_before = np.array([x + u / view.k[0, 0], y + v / view.k[1, 1], 1.0])

    R_now, R_before = sight.pair.now.T_map_camera[:3, :3], sight.pair.before.T_map_camera[:3, :3]
    position = R_now @ here + sight.pair.now.T_map_camera[:3, 3]
    before = R_before @ (ray_before * z_before) + sight.pair.before.T_map_camera[:3, 3]
    velocity = (position - before) / sight.pair.seconds

    across = extent.width / 8 + z / view.focal
    ray = here / z
    spread = np.diag([across**2, across**2, 0.05**2]) + sigma_z**2 * np.outer(ray, ray)
    position_covariance = R_now @ spread @ R_now.T
    # The range's error is mostly the same now and before: only its change counts, plus the flow's
    # error across the ray.
    pixel = 0.3 * z / view.focal
    spread = np.diag([pixel**2, pixel**2, 0.0]) + sigma_before**2 * np.outer(ray_before, ray_before)
    velocity_covariance = R_before @ spread @ R_before.T / sight.pair.seconds**2 + 0.1**2 * np.eye(
        3
    )
    looking = R_now @ ray
    return Detection(
        sight.camera,
        label,
        position,
        position_covariance,
        velocity,
        velocity_covariance,
        extent.width,
        extent.height,
        int(mask.sum()),
        sure,
        float(np.arctan2(looking[1], looking[0])),
    )


def _range_before(
    sight: Sight, window: tuple[slice, slice], mask: Mask, extent: Extent, v: float
) -> tuple[float, float]:
    """Depth of the object in the previous camera, and its standard deviation relative to the depth
    now."""
    z = 1 / extent.q
    if sight.depth is not None and sight.depth_before is not None:
        vs, us = np.nonzero(mask)
        vs, us = vs + window[0].start, us + window[1].start
        ends = (
            np.round(us + sight.pair.flow.u[vs, us]).astype(int),
            np.round(vs + sight.pair.flow.v[vs, us]).astype(int),
        )
        h, w = sight.depth.shape
        good = (ends[0] >= 0) & (ends[0] < w) & (ends[1] >= 0) & (ends[1] < h)
        now = sight.depth[vs[good], us[good]]
        then = sight.depth_before[ends[1][good], ends[0][good]]
        both = np.isfinite(now) & np.isfinite(then)
        if both.sum() >= 4:
            change = 1 / then[both] - 1 / now[both]
            middle = float(np.median(change))
            spread = (
                1.48 * float(np.median(np.abs(change - middle))) / np.sqrt(max(both.sum() / 25, 1))
            )
            return z + middle, spread + 0.003 * z
    # The foot now is on the road at q; before it was v lower in the image, where the road was that
    # camera's road.
    if sight.plane is None:
        return z, 0.1 * z
    normal = sight.view.T_base_camera[:3, :3].T @ sight.plane[:3]
    height = max(float(sight.plane[:3] @ sight.view.T_base_camera[:3, 3] + sight.plane[3]), 0.1)
    k = sight.view.k
    top, left = window[0].start, window[1].start
    vs, us = np.nonzero(mask)
    foot = vs >= np.percentile(vs, 80)
    x = float(np.median(sight.view.x[vs[foot] + top, us[foot] + left]))
    y = float(np.median(sight.view.y[vs[foot] + top, us[foot] + left]))
    du = float(np.median(sight.pair.flow.u[vs[foot] + top, us[foot] + left])) / k[0, 0]
    dv = float(np.median(sight.pair.flow.v[vs[foot] + top, us[foot] + left])) / k[1, 1]
    now = -float(normal @ np.array([x, y, 1.0])) / height
    then = -float(normal @ np.array([x + du, y + dv, 1.0])) / height
    q_before = max(extent.q + then - now, 0.2 * extent.q)
    sigma = 0.3 / sight.view.focal * abs(float(normal[1])) / height / q_before**2
    return 1 / q_before, sigma + 0.03 / q_before
