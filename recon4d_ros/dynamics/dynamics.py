"""What moves in a frame: static flow against measured flow, regions, objects, tracks."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, FlowMeter, Picture, make_picture
from recon4d_ros.dynamics.ground import FAR, LEVEL, find_level, refine_plane
from recon4d_ros.dynamics.objects import Sight, lift, measure_extent
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import affine_flow, competing_shape, fill_holes, find_regions, join
from recon4d_ros.dynamics.residual import (
    Depth,
    Residual,
    hidden_before,
    make_depth,
    see_road,
    static_alternative,
    static_flow,
    static_residual,
)
from recon4d_ros.dynamics.standing import add_pieces, find_standing
from recon4d_ros.dynamics.support import in_boxes
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import STRIDE, make_views
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.types import Calibration, Frame, Geometry, Motion, PoseEstimate, Rig, Tracking

Array = NDArray[np.float64]

LONGEST_GAP = 1.0
"""Images further apart than this many seconds are not compared: a mover has left its place by then."""

ROAD_SKIN = 0.1
"""Metres above the road that stay the road, where depth is measured: flow bleeds from wheels and shadows."""


@dataclass(frozen=True)
class _Seen:
    """One camera's last image."""

    stamp_ns: int
    picture: Picture
    T_map_camera: Array
    depth: Depth | None
    q: NDArray[np.float32]
    candidates: NDArray[np.bool_]


class Dynamics:
    """Finds what moves. State: each camera's last image and depth, the road plane, the tracks.

    A first frame, a lost pose and an absent camera give an empty mask: without motion of the camera nothing can be said about motion
    of the world. Raises nothing of its own.
    """

    def __init__(self, rig: Rig, calibration: Calibration, parameters: DynamicsParameters | None = None) -> None:
        self._parameters = parameters or DynamicsParameters()
        self._views = make_views(calibration)
        self._size = calibration.working_size
        p = self._parameters
        self._meter = FlowMeter(p.flow_noise, p.image_noise)
        self._tracker = Tracker(p.acceleration, p.confirm, p.keep_missing, p.minimum_speed)
        self.reset()

    def reset(self) -> None:
        """Forget the last images, the road and every track."""
        self._seen: dict[int, list[_Seen]] = {}
        self._plane = LEVEL
        self._plane_seen = False
        self._last_ns: int | None = None
        self._tracker.reset()

    def __call__(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Motion:
        """Mask and objects of one frame. The mask marks everything that moves relative to the world, in each camera."""
        mask = np.zeros((len(self._views), *self._size), bool)
        if pose.tracking is Tracking.LOST:
            self._seen = {}
            return Motion(mask)
        if self._last_ns is not None:
            self._tracker.predict(max(frame.stamp_ns - self._last_ns, 0) * 1e-9)
        self._last_ns = frame.stamp_ns
        self._see_ground(geometry, frame.present)
        detections: list[Detection] = []
        for i in np.flatnonzero(frame.present):
            found = self._look(int(i), frame, pose, geometry, mask[i])
            detections.extend(found)
        for i in np.flatnonzero(~frame.present):
            self._seen.pop(int(i), None)
        self._tracker.update(detections)
        return Motion(mask, self._tracker.objects())

    def _see_ground(self, geometry: Geometry, present: NDArray[np.bool_]) -> None:
        """Move the road plane towards what the lower halves of all cameras show, every eighth pixel."""
        h = self._size[0]
        clouds = []
        for i in np.flatnonzero(present):
            view, step = self._views[i], 4
            first = h // (2 * STRIDE)
            z = geometry.depth[i, first * STRIDE::STRIDE * step, ::STRIDE * step]
            near = z < FAR
            rays = np.stack([view.x[first::step, ::step][near], view.y[first::step, ::step][near], np.ones(int(near.sum()), np.float32)], -1)
            clouds.append(transform(view.T_base_camera, rays * z[near][:, None]))
        points = np.concatenate(clouds) if clouds else np.zeros((0, 3), np.float32)
        if not self._plane_seen:
            level = find_level(points)
            if level is None:
                return
            self._plane, self._plane_seen = refine_plane(level, points, 1.0), True
        self._plane = refine_plane(self._plane, points)

    def _look(self, i: int, frame: Frame, pose: PoseEstimate, geometry: Geometry, mask: NDArray[np.bool_]) -> list[Detection]:
        """One camera: its regions go into mask [h, w] and come back as detections."""
        view, stamp = self._views[i], int(frame.stamps_ns[i])
        picture = make_picture(geometry.color[i])
        whole = make_depth(geometry.depth[i, ::STRIDE, ::STRIDE], geometry.sigma[i, ::STRIDE, ::STRIDE])
        depth = Depth(np.where(view.covered, whole.q, np.float32(np.nan)), whole.sigma) if view.mostly_covered else None
        q = 1 / geometry.depth[i, ::STRIDE, ::STRIDE]
        now = _Seen(stamp, picture, pose.T_map_camera[i], depth, q, np.zeros(q.shape, bool))
        history = self._seen.setdefault(i, [])
        while history and not 0 < (stamp - history[0].stamp_ns) * 1e-9 < LONGEST_GAP:
            history.pop(0)
        before = next((seen for seen in reversed(history) if (stamp - seen.stamp_ns) * 1e-9 > self._parameters.baseline - 0.02), None) or (
            history[0] if history else None)
        history.append(now)
        if before is None:
            return []
        p = self._parameters
        T_before_now = inverse(before.T_map_camera) @ now.T_map_camera
        road = see_road(view, self._plane, p.ground_noise, p.ground_noise / 10)
        guess = np.where(np.isfinite(q), q, road.q)
        start = np.stack(static_flow(view, guess, T_before_now), -1)
        flow = self._meter.measure(picture, before.picture, start)
        seconds = (stamp - before.stamp_ns) * 1e-9
        pose_sigma = self._pose_sigma(pose)
        residual = static_residual(view, flow, T_before_now, pose_sigma, road, depth or whole, before.depth)
        grey = picture.grid.astype(np.float32)
        alternative = static_alternative(view, self._meter, grey, before.picture.grid, flow, residual, T_before_now, road, depth, before.depth, guess)
        chi2 = np.minimum(residual.chi2, alternative)
        pixels = np.flatnonzero(chi2 > p.weak_sigma**2)
        hidden = hidden_before(view, pixels, guess.ravel()[pixels], T_before_now, q, before.q)
        chi2.ravel()[pixels[hidden]] = 0
        now.candidates[:] = cv2.dilate((chi2 > p.weak_sigma**2).astype(np.uint8), np.ones((5, 5), np.uint8))
        regions = find_regions(chi2, p.weak_sigma, p.strong_sigma, 3)
        normal = view.T_base_camera[:3, :3].T @ self._plane[:3]
        height = float(self._plane[:3] @ view.T_base_camera[:3, 3] + self._plane[3])
        tracks = self._tracker.moving()
        floats = np.zeros(view.x.shape, bool)
        expected = floats
        if depth is not None:
            expected = in_boxes(view, now.T_map_camera, tracks, whole.q, chi2 > p.weak_sigma**2)
            regions = join(regions, expected)
        if not view.mostly_covered and self._plane_seen and height > 0.5:
            standing = find_standing(whole.q, whole.sigma, road, height, p.clearance)
            regions = add_pieces(regions, standing, p.strong_sigma)
            floats = standing.floating[standing.labels] > p.strong_sigma
            now.candidates[:] |= floats
        if depth is not None:
            now.candidates[:] |= expected
        sight = Sight(i, view, now.T_map_camera, before.T_map_camera, seconds, flow, road, (normal, height), residual, depth, before.depth)
        found = []
        moving = np.zeros(view.x.shape, np.uint8)
        for label, box in enumerate(regions.boxes, start=1):
            left, top, width, high = (int(b) for b in box)
            window = np.s_[top:top + high, left:left + width]
            inside = regions.labels[window] == label
            extent = measure_extent(sight, inside, box)
            if extent is None or 1 / extent.q > p.maximum_range or inside.sum() / (extent.q * view.focal) ** 2 < p.minimum_area:
                continue
            if not (floats | expected)[window][inside].mean() > 0.3 and not self._seen_moving(history[-2], flow, (now.stamp_ns - history[-2].stamp_ns) * 1e-9 / seconds, window, inside):
                continue
            sure = float(1 - np.exp(-np.median(chi2[window][inside]) / 50))
            found.append(lift(sight, label, inside, box, extent, sure))
            if depth is None:
                # Static flow follows the matched depth, which a mover has bent to its own motion: nothing competes.
                moving[window] |= inside
                continue
            moving |= self._shape(grey, before.picture.grid, flow, residual, start, regions.labels == label, box, expected)
        moving = fill_holes(moving)
        if depth is not None and self._plane_seen:
            with np.errstate(invalid="ignore"):
                moving[whole.q * np.float32(height) < road.q * np.float32(height) + np.float32(ROAD_SKIN) * whole.q] = 0
        mask |= cv2.resize(moving, self._size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
        return found

    @staticmethod
    def _seen_moving(last: _Seen, flow: Flow, share: float, window: tuple[slice, slice], inside: NDArray[np.bool_]) -> bool:
        """Whether a region had candidates in the last image too, `share` of its flow back: what flickers is noise."""
        h, w = last.candidates.shape
        vs, us = np.nonzero(inside)
        vs, us = vs + window[0].start, us + window[1].start
        x = np.clip(np.rint(us + share * flow.u[vs, us]), 0, w - 1).astype(np.intp)
        y = np.clip(np.rint(vs + share * flow.v[vs, us]), 0, h - 1).astype(np.intp)
        return bool(max(last.candidates[y, x].mean(), last.candidates[vs, us].mean()) > 0.4)

    def _shape(self, now: NDArray[np.float32], before: NDArray[np.uint8], flow: Flow, residual: Residual, static: NDArray[np.float32],
               region: NDArray[np.bool_], box: NDArray[np.int32], expected: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """A region [h, w] bool grown and trimmed to the object's outline."""
        h, w = region.shape
        left, top, width, height = (int(b) for b in box)
        border = 3 + int(0.25 * max(width, height))
        left, right, top, bottom = max(left - border, 0), min(left + width + border, w), max(top - border, 0), min(top + height + border, h)
        window = np.s_[top:bottom, left:right]
        inside = region[window]
        core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        if core.sum() < 6:
            core = inside
        weight = np.where(core, (flow.wuu + flow.wvv)[window], 0)
        mover = affine_flow(flow.u[window], flow.v[window], weight)
        distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 3)
        prior = np.where(inside, 1.5, -0.5 - distance).astype(np.float32)
        shape = competing_shape(now, before, (left, top, right - left, bottom - top), mover, static[window][..., 0], static[window][..., 1], prior,
                                self._parameters.image_noise * 1.5)
        out = np.zeros(region.shape, np.uint8)
        out[window] = shape | (expected[window] & inside)
        return out

    @staticmethod
    def _pose_sigma(pose: PoseEstimate) -> tuple[float, float]:
        """Standard deviations of the motion between two frames, metres and radians: the pose's own, within what is plausible."""
        variance = np.diag(pose.covariance)
        return (float(np.clip(np.sqrt(variance[:3].max()), 0.005, 0.1)), float(np.clip(np.sqrt(variance[3:].max()), 0.0003, 0.005)))
