"""What ego-motion knows of the rig before the first image: lenses, mounts, and which cameras look
the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras.lens import Lens, lens_at, own_car_at
from recon4d_ros.types import Calibration, Frame, Rig

Array = NDArray[np.float64]

PARALLEL = np.cos(
    np.radians(20.0)
)  # cameras that look this much the same way see the same patch the same way
APART = 0.03  # metres between two such cameras from which they measure depth
FEWEST, MOST = 12, 200  # points of one camera


@dataclass(frozen=True)
class Cameras:
    """The N cameras of a rig.

    lenses: at the input image's size. own_car: where each shows the car itself, [H, W] or None. k:
    [N, 3, 3] of the working images. T_base_camera: [N, 4, 4] as calibrated. beside: for each the
    numbers of those that look the same way. quota: points that each follows.
    """

    lenses: tuple[Lens, ...]
    own_car: tuple[NDArray[np.bool_] | None, ...]
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
            tuple(own_car_at(camera, calibration.input_size) for camera in rig.cameras),
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
