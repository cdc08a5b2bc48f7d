"""How the cameras are turned against their calibration: learnt from the last few keyframes,
adjusted together (see bundle.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import bundle
from recon4d_ros.egomotion.bundle import Adjusted, Keyframe
from recon4d_ros.egomotion.cameras import Cameras, at_their_stamps
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.types import Frame

Array = NDArray[np.float64]

KEYFRAME_TRAVEL, KEYFRAMES = 1.0, 6  # metres between keyframes, keyframes adjusted together
MOUNT = 0.001  # rad: how far a camera's mount may be turned from its calibration
# rad: how far one may be that is the measure of the others, or has none to be measured against
FIXED = 1e-7


class Mounts:
    """T_base_camera: [N, 4, 4] as adjusted so far."""

    def __init__(self, cameras: Cameras) -> None:
        self._cameras = cameras
        self._keyframes: list[Keyframe] = []
        self._turn = np.zeros((len(cameras), 3))
        loose = np.array(
            [camera > 0 and not cameras.alone(camera) for camera in range(len(cameras))]
        )
        self._covariance: Array = np.diag(np.repeat(np.where(loose, MOUNT, FIXED) ** 2, 3))
        self.T_base_camera = cameras.T_base_camera.copy()

    def start_segment(self) -> None:
        """The keyframes' poses have nothing to do with what follows; the mounts are what they
        were."""
        self._keyframes = []

    def remember(
        self, frame: Frame, pose: Array, velocity: Array, table: Landmarks, o: Observations
    ) -> Adjusted | None:
        """A keyframe if the car has gone far enough, and the adjustment when there are enough of
        them.

        pose [4, 4], velocity [6]: of the car at the frame. o: what was seen there of the table's
        landmarks, without outliers.
        """
        if self._cameras.all_alone:
            return None
        if (
            self._keyframes
            and np.linalg.norm(self._keyframes[-1].T_map_base[:3, 3] - pose[:3, 3])
            < KEYFRAME_TRAVEL
        ):
            return None
        T_base_camera = geometry.inverse(
            at_their_stamps(self._cameras.T_base_camera, frame, velocity)
        )
        own = table.camera[o.landmark] == o.camera
        self._keyframes.append(
            Keyframe(pose, T_base_camera, table.identity[o.landmark], o.camera, own, o.ray, o.sigma)
        )
        if len(self._keyframes) < KEYFRAMES:
            return None
        start = dict(
            zip(
                table.identity.tolist(),
                table.origin + table.bearing / table.rho[:, None],
                strict=True,
            )
        )
        keyframes = [_only(keyframe, table.identity) for keyframe in self._keyframes]
        adjusted = bundle.adjust(keyframes, start, self._turn, self._covariance)
        self._keyframes = keyframes[-1:]
        if adjusted is None:
            return None
        adjusted = adjusted.seen_from(pose)
        self._turn, self._covariance = adjusted.turn, adjusted.covariance
        self.T_base_camera = bundle.turned(self._cameras.T_base_camera, self._turn)
        self._keyframes = [replace(self._keyframes[-1], T_map_base=adjusted.T_map_base[-1])]
        return adjusted


def _only(keyframe: Keyframe, identities: NDArray[np.int64]) -> Keyframe:
    """The keyframe's sightings of these landmarks."""
    keep = np.isin(keyframe.identity, identities)
    seen = (
        keyframe.identity[keep],
        keyframe.camera[keep],
        keyframe.own[keep],
        keyframe.ray[keep],
        keyframe.sigma[keep],
    )
    return Keyframe(keyframe.T_map_base, keyframe.T_base_camera, *seen)
