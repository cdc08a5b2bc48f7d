"""What ego-motion knows of the rig: lenses, mounts, which cameras look the same way, and each
camera's last good image and its newest."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras.lens import Lens, ego_vehicle_at, lens_at
from recon4d_ros.parallel import each
from recon4d_ros.types import Calibration, Frame, Rig

Array = NDArray[np.float64]

PARALLEL = np.cos(
    np.radians(20.0)
)  # cameras that look this much the same way see the same patch the same way
APART = 0.03  # metres between two such cameras from which they measure depth
# metres: a camera lower than this has base_link beside it rather than on the ground
LOWEST = 0.3
FEWEST, MOST = 12, 200  # points of one camera


@dataclass(frozen=True)
class Cameras:
    """The N cameras of a rig.

    lenses: at the input image's size. ego_vehicle: where each shows the car itself, [H, W] or None.
    k: [N, 3, 3] of the working images. T_base_camera: [N, 4, 4] as calibrated. beside: for each the
    numbers of those that look the same way. quota: points that each follows.
    """

    lenses: tuple[Lens, ...]
    ego_vehicle: tuple[NDArray[np.bool_] | None, ...]
    k: Array
    T_base_camera: Array
    beside: tuple[NDArray[np.int64], ...]
    quota: int

    @staticmethod
    def of(rig: Rig, calibration: Calibration, points: int) -> Cameras:
        """points: to be followed by all of them together. Of cameras side by side only the first
        one finds points."""
        T_base_camera = np.asarray(calibration.T_base_camera, np.float64)
        axes, centres = T_base_camera[:, :3, 2], T_base_camera[:, :3, 3]
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        beside = tuple(
            np.flatnonzero((axes @ axes[i] > PARALLEL) & (apart[i] > APART))
            for i in range(len(rig.cameras))
        )
        leaders = sum(
            not any(other < camera for other in others) for camera, others in enumerate(beside)
        )
        return Cameras(
            tuple(lens_at(camera, calibration.input_size) for camera in rig.cameras),
            tuple(ego_vehicle_at(camera, calibration.input_size) for camera in rig.cameras),
            calibration.k,
            T_base_camera,
            beside,
            min(max(points // leaders, FEWEST), MOST),
        )

    def __len__(self) -> int:
        return len(self.lenses)

    def alone(self, camera: int) -> bool:
        """Whether no other camera looks the same way, so that one instant's images give its points
        no depth."""
        return len(self.beside[camera]) == 0

    @property
    def all_alone(self) -> bool:
        return all(self.alone(camera) for camera in range(len(self)))

    def rays(self, camera: NDArray[np.int64], pixel: NDArray) -> Array:
        """Normalised coordinates [M, 2] of input pixels [M, 2] of cameras [M]."""
        rays = np.empty((len(camera), 2))
        for one in np.unique(camera):
            rays[camera == one] = self.lenses[one].rays(pixel[camera == one])
        return rays

    @property
    def focal(self) -> float:
        """Of the longest lens, in input pixels."""
        return max(lens.focal for lens in self.lenses)

    @property
    def read_out(self) -> float:
        """Seconds of the slowest rolling shutter; 0 where there is none."""
        return max(lens.read_out for lens in self.lenses)

    def late(self, camera: NDArray[np.int64], pixel: NDArray) -> Array | None:
        """Seconds [M] after their cameras' stamps at which the rows of input pixels [M, 2] of
        cameras [M] were read out; None where no camera has a rolling shutter."""
        if not self.read_out:
            return None
        late = np.empty(len(camera))
        for one in np.unique(camera):
            late[camera == one] = self.lenses[one].late(pixel[camera == one])
        return late

    def derivatives(self, camera: NDArray[np.int64], rays: Array) -> Array:
        """[M, 2, 2]: how input pixels of cameras [M] change with normalised coordinates [M, 2]; NaN
        where a lens shows nothing."""
        change = np.empty((len(camera), 2, 2))
        for one in np.unique(camera):
            change[camera == one] = self.lenses[one].derivative(rays[camera == one])
        return change


def at_their_stamps(T_base_camera: Array, frame: Frame, velocity: Array) -> Array:
    """T_camera_base [N, 4, 4]: base_link at the frame's stamp to each camera at its own, for mounts
    [N, 4, 4] and a twist [6]."""
    late = (frame.stamps_ns - frame.stamp_ns) * 1e-9
    moved = T_base_camera.copy()
    for camera in np.flatnonzero(late != 0):
        moved[camera] = geometry.exp(velocity * late[camera]) @ moved[camera]
    return geometry.inverse(moved)


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] of [H, W, C], grey or RGB."""
    if image.shape[-1] == 1:
        return np.ascontiguousarray(image[..., 0])
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


Grey = NDArray[np.uint8]

STALE_NS = 1_000_000_000  # a camera that saw nothing for so long restarts its points


class Images:
    """before, now: grey images [H, W] of N cameras; None where there is none. T_map_camera,
    T_map_base [N, 4, 4]: where camera and car were when those before were taken."""

    def __init__(self, cameras: int) -> None:
        self.before: list[Grey | None] = [None] * cameras
        self.now: list[Grey | None] = [None] * cameras
        self.T_map_camera = np.tile(np.eye(4), (cameras, 1, 1))
        self.T_map_base = self.T_map_camera.copy()
        self._seen_ns = np.zeros(cameras, np.int64)

    def forget(self) -> None:
        """No image to follow points from; the newest ones stay."""
        self.before = [None] * len(self.before)
        self._seen_ns[:] = 0

    def take(self, frame: Frame) -> None:
        """The frame's images are the newest."""
        images = zip(frame.images, frame.present, strict=True)
        self.now = each(lambda image: grey(image[0]) if image[1] else None, images)

    def adopt(
        self,
        frame: Frame,
        seeing: NDArray[np.bool_],
        T_map_base: NDArray[np.float64],
        T_map_camera: NDArray[np.float64],
    ) -> None:
        """The newest images of these cameras [N] become the ones that points are followed from."""
        for camera in np.flatnonzero(frame.present & seeing):
            self.before[camera] = self.now[camera]
            self._seen_ns[camera] = frame.stamps_ns[camera]
            self.T_map_camera[camera] = T_map_camera[camera]
            self.T_map_base[camera] = T_map_base

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
