"""What moves in a frame: static flow against measured flow, regions, objects, tracks."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, FlowMeter, Picture, make_picture
from recon4d_ros.dynamics.ground import LEVEL
from recon4d_ros.dynamics.objects import Sight, lift, measure_extent
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.regions import affine_flow, competing_shape, fill_holes, find_regions
from recon4d_ros.dynamics.residual import Depth, Residual, make_depth, see_road, static_flow, static_residual
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import STRIDE, View, make_views
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Calibration, Frame, Geometry, Motion, PoseEstimate, Rig, Tracking

Array = NDArray[np.float64]

LONGEST_GAP = 1.0
"""Images further apart than this many seconds are not compared: a mover has left its place by then."""


@dataclass(frozen=True)
class _Seen:
    """One camera's last image."""

    stamp_ns: int
    picture: Picture
    T_map_camera: Array
    depth: Depth | None


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
        detections: list[Detection] = []
        for i in np.flatnonzero(frame.present):
            found = self._look(int(i), frame, pose, geometry, mask[i])
            detections.extend(found)
        for i in np.flatnonzero(~frame.present):
            self._seen.pop(int(i), None)
        self._tracker.update(detections)
        return Motion(mask, self._tracker.objects())

    def _look(self, i: int, frame: Frame, pose: PoseEstimate, geometry: Geometry, mask: NDArray[np.bool_]) -> list[Detection]:
        """One camera: its regions go into mask [h, w] and come back as detections."""
        view, stamp = self._views[i], int(frame.stamps_ns[i])
        picture = make_picture(geometry.color[i])
        depth = self._independent_depth(view, geometry.depth[i], geometry.sigma[i])
        now = _Seen(stamp, picture, pose.T_map_camera[i], depth)
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
        guess = 1 / geometry.depth[i, ::STRIDE, ::STRIDE]
        guess = np.where(np.isfinite(guess), guess, road.q)
        start = np.stack(static_flow(view, guess, T_before_now), -1)
        flow = self._meter.measure(picture, before.picture, start)
        seconds = (stamp - before.stamp_ns) * 1e-9
        pose_sigma = self._pose_sigma(pose)
        residual = static_residual(view, flow, T_before_now, pose_sigma, road, depth, before.depth)
        regions = find_regions(residual.chi2, p.weak_sigma, p.strong_sigma, 3)
        normal = view.T_base_camera[:3, :3].T @ self._plane[:3]
        height = float(self._plane[:3] @ view.T_base_camera[:3, 3] + self._plane[3])
        sight = Sight(i, view, now.T_map_camera, before.T_map_camera, seconds, flow, road, (normal, height), residual, depth, before.depth)
        found = []
        moving = np.zeros(view.x.shape, np.uint8)
        grey = picture.grid.astype(np.float32)
        for label, box in enumerate(regions.boxes, start=1):
            left, top, width, high = (int(b) for b in box)
            window = np.s_[top:top + high, left:left + width]
            inside = regions.labels[window] == label
            extent = measure_extent(sight, inside, box)
            if extent is None or 1 / extent.q > p.maximum_range or max(extent.width, extent.height) < p.minimum_size:
                continue
            sure = float(1 - np.exp(-np.median(residual.chi2[window][inside]) / 50))
            found.append(lift(sight, label, inside, box, extent, sure))
            moving |= self._shape(grey, before.picture.grid, flow, residual, start, regions.labels == label, box)
        moving = fill_holes(moving)
        mask |= cv2.resize(moving, self._size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
        return found

    def _shape(self, now: NDArray[np.float32], before: NDArray[np.uint8], flow: Flow, residual: Residual, static: NDArray[np.float32],
               region: NDArray[np.bool_], box: NDArray[np.int32]) -> NDArray[np.uint8]:
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
        out[window] = shape
        return out

    def _independent_depth(self, view: View, depth: NDArray[np.float32], sigma: NDArray[np.float32]) -> Depth | None:
        if not view.covered.any():
            return None
        d = np.where(view.covered, depth[::STRIDE, ::STRIDE], np.nan)
        return make_depth(d, sigma[::STRIDE, ::STRIDE])

    @staticmethod
    def _pose_sigma(pose: PoseEstimate) -> tuple[float, float]:
        """Standard deviations of the motion between two frames, metres and radians: the pose's own, within what is plausible."""
        variance = np.diag(pose.covariance)
        return (float(np.clip(np.sqrt(variance[:3].max()), 0.005, 0.1)), float(np.clip(np.sqrt(variance[3:].max()), 0.0003, 0.005)))
