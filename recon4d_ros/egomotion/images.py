"""Each camera's last good image and its newest: points are followed from the one into the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.egomotion import features
from recon4d_ros.parallel import each
from recon4d_ros.types import Frame

Grey = NDArray[np.uint8]

STALE_NS = 1_000_000_000  # a camera that saw nothing for so long restarts its points


class Images:
    """before, now: grey images [H, W] of N cameras; None where there is none. T_map_camera [N, 4,
    4]: where those before were taken."""

    def __init__(self, cameras: int) -> None:
        self.before: list[Grey | None] = [None] * cameras
        self.now: list[Grey | None] = [None] * cameras
        self.T_map_camera = np.tile(np.eye(4), (cameras, 1, 1))
        self._seen_ns = np.zeros(cameras, np.int64)

    def forget(self) -> None:
        """No image to follow points from; the newest ones stay."""
        self.before = [None] * len(self.before)
        self._seen_ns[:] = 0

    def take(self, frame: Frame) -> None:
        """The frame's images are the newest."""
        images = zip(frame.images, frame.present, strict=True)
        self.now = each(lambda image: features.grey(image[0]) if image[1] else None, images)

    def adopt(
        self, frame: Frame, seeing: NDArray[np.bool_], T_map_camera: NDArray[np.float64]
    ) -> None:
        """The newest images of these cameras [N] become the ones that points are followed from."""
        for camera in np.flatnonzero(frame.present & seeing):
            self.before[camera] = self.now[camera]
            self._seen_ns[camera] = frame.stamps_ns[camera]
            self.T_map_camera[camera] = T_map_camera[camera]

    def forget_stale(self, frame: Frame) -> NDArray[np.bool_]:
        """Which cameras [N] had an image that is now too old to follow points from; they have none
        any more."""
        stale = (frame.stamps_ns - self._seen_ns > STALE_NS) & np.array(
            [image is not None for image in self.before]
        )
        for camera in np.flatnonzero(stale):
            self.before[camera] = None
        return stale

    @property
    def looking(self) -> NDArray[np.bool_]:
        """[N] whose newest image was adopted: the points of the others, absent or blind, wait for
        the next good image."""
        return np.array(
            [
                image is not None and before is image
                for before, image in zip(self.before, self.now, strict=True)
            ]
        )
