"""The rig as a running graph tells it: intrinsics from camera_info, extrinsics from /tf_static; and
what is still missing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import tf2_ros
from numpy.typing import NDArray
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from recon4d_ros.errors import CalibrationError, MessageError
from recon4d_ros.messages import camera_from_info, frame_name
from recon4d_ros.ros.conversions import transform_matrix
from recon4d_ros.types import Camera, Rig


class RigSource:
    """Collects one calibration per camera; `rig()` is the rig as soon as all of it is there.

    Once used, a calibration is not replaced: `offer` says in a sentence when a later camera_info
    contradicts it.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        buffer: tf2_ros.Buffer,
        base_frame: str,
        known: Rig | None = None,
        *,
        rectified: Collection[str] = (),
    ) -> None:
        """known: the rig of a rig file, which then needs no message. rectified: cameras whose
        images are, so that P is their matrix."""
        self._rectified = frozenset(rectified)
        self._names, self._buffer, self._base_frame, self._known = names, buffer, base_frame, known
        self._infos: dict[str, CameraInfo] = {}
        self._faults: dict[str, str] = {}

    def offer(self, name: str, message: CameraInfo) -> str:
        """Take a camera_info. Returns "" or the sentence why it is not used."""
        try:
            camera = self._camera(name, message, np.eye(4))
        except CalibrationError as error:
            self._faults[name] = str(error)
            return str(error)
        used = self._known.cameras[self._known.names.index(name)] if self._known else None
        if used is None:
            self._infos[name] = message
            self._faults.pop(name, None)
            return ""
        return contradiction(used, camera)

    def missing(self) -> list[str]:
        """What the rig still waits for, one phrase each: `camera_info of front`, `tf
        base_link->front`, or why a camera_info is no good."""
        if self._known is not None:
            return []
        phrases = []
        for name in self._names:
            if name in self._faults:
                phrases.append(f"a usable camera_info of {name} ({self._faults[name]})")
            elif name not in self._infos:
                phrases.append(f"camera_info of {name}")
            elif not self._has_extrinsics(name):
                phrases.append(f"tf {self._base_frame}->{self._frame(name)}")
        return phrases

    def lacks_info(self, name: str) -> bool:
        """Whether a camera's camera_info is still awaited."""
        return self._known is None and name not in self._infos

    def rig(self) -> Rig | None:
        """The rig, or None while something is missing. Raises CalibrationError if what is there
        makes no rig."""
        if self._known is None and not self.missing():
            cameras = []
            for name in self._names:
                transform = self._buffer.lookup_transform(
                    self._base_frame, self._frame(name), Time()
                )
                try:
                    pose = transform_matrix(transform)
                except MessageError as error:
                    raise CalibrationError(f"camera {name}: {error}") from error
                cameras.append(self._camera(name, self._infos[name], pose))
            self._known = Rig("from camera_info and /tf_static", tuple(cameras))
        return self._known

    def _camera(self, name: str, message: CameraInfo, T_base_camera: NDArray[np.float64]) -> Camera:
        return camera_from_info(name, message, T_base_camera, name in self._rectified)

    def _frame(self, name: str) -> str:
        return frame_name(self._infos[name].header.frame_id) or name

    def _has_extrinsics(self, name: str) -> bool:
        return bool(self._buffer.can_transform(self._base_frame, self._frame(name), Time()))


def contradiction(used: Camera, new: Camera) -> str:
    """ "" or the sentence that says how a new calibration differs from the one in use (size, or K
    by more than a hundredth of a pixel)."""
    where = f"camera_info of {used.name}"
    if (used.width, used.height) != (new.width, new.height):
        return (
            f"{where} is for images of {new.width}x{new.height}: the rig in use is for"
            f" {used.width}x{used.height}"
        )
    change = float(np.abs(used.k - new.k).max())
    if change > 0.01:
        return (
            f"{where} changed its K by {change:.2f} px: the one in use stays until the node is"
            " configured again"
        )
    same_d = len(used.d) == len(new.d) and np.allclose(used.d, new.d, atol=1e-6)
    if not same_d and (any(used.d) or any(new.d)):
        return (
            f"{where} changed its distortion: the one in use stays until the node is configured"
            " again"
        )
    return ""
