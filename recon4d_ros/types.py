"""The nouns that travel from room to room, in the order a frame meets them.

Conventions: metres, seconds only in floats named so, time stamps in integer nanoseconds, radians.
Poses are 4x4 float64 and `T_a_b` takes points in b to points in a. Frames follow REP-103/105: map
-> odom -> base_link -> <camera>; base_link has x forward, y left, z up and its origin on the ground
where the rig says so; a camera's frame is its optical one (x right, y down, z forward). Pixel (0,
0) is the centre of the first pixel. N cameras, in the rig's order, absent ones included (see
`Frame.present`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import CalibrationError

DISTORTION_COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
    "none": (0,),
}


@dataclass(frozen=True)
class Camera:
    """One calibrated camera. Raises CalibrationError if the calibration cannot be used.

    k: 3x3 pinhole matrix of the raw image in pixels. d: distortion coefficients in ROS/OpenCV order
    of `distortion_model`. T_base_camera: pose of the optical frame in base_link. own_car: [height,
    width] of the raw image, True where it shows the car itself (body, bonnet, reflections on them);
    None = nowhere. What is there is not looked at: no depth, no features, no map.
    """

    name: str
    width: int
    height: int
    k: NDArray[np.float64]
    T_base_camera: NDArray[np.float64]
    distortion_model: str = "none"
    d: tuple[float, ...] = ()
    own_car: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        where = f"camera {self.name}"
        if self.distortion_model not in DISTORTION_COEFFICIENTS:
            raise CalibrationError(
                f"{where}: distortion model {self.distortion_model!r} is not known: expected one of"
                f" {', '.join(DISTORTION_COEFFICIENTS)}"
            )
        if len(self.d) not in DISTORTION_COEFFICIENTS[self.distortion_model] and any(self.d):
            raise CalibrationError(
                f"{where}: {self.distortion_model} takes"
                f" {DISTORTION_COEFFICIENTS[self.distortion_model]} coefficients, got {len(self.d)}"
            )
        if np.shape(self.k) != (3, 3) or np.shape(self.T_base_camera) != (4, 4):
            raise CalibrationError(f"{where}: K must be 3x3 and T_base_camera 4x4")
        if not (
            np.all(np.isfinite(self.k))
            and np.all(np.isfinite(self.T_base_camera))
            and np.all(np.isfinite(self.d))
        ):
            raise CalibrationError(f"{where}: calibration has a value that is not finite")
        if self.k[0, 0] <= 0 or self.k[1, 1] <= 0:
            raise CalibrationError(
                f"{where}: focal length is {self.k[0, 0]:g}, {self.k[1, 1]:g} px: expected above"
                " zero (is the camera calibrated?)"
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(
                f"{where}: image size is {self.width}x{self.height}: expected above zero"
            )
        rotation = self.T_base_camera[:3, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
            raise CalibrationError(f"{where}: the rotation of T_base_camera is not a rotation")
        if self.own_car is not None and self.own_car.shape != (self.height, self.width):
            size = "x".join(map(str, self.own_car.shape[::-1]))
            raise CalibrationError(
                f"{where}: the mask of the own car is {size} pixels: expected"
                f" {self.width}x{self.height} as the image"
            )


@dataclass(frozen=True)
class Rig:
    """All cameras of the car, in a fixed order that every [N, ...] array follows."""

    name: str
    cameras: tuple[Camera, ...]

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if not names:
            raise CalibrationError(f"rig {self.name}: has no camera")
        if len(set(names)) != len(names):
            raise CalibrationError(
                f"rig {self.name}: a camera's name is there twice: {', '.join(names)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def T_base_camera(self) -> NDArray[np.float64]:
        """[N, 4, 4]"""
        return np.stack([camera.T_base_camera for camera in self.cameras])


@dataclass(frozen=True)
class RawImage:
    """An image as it came: still encoded.

    encoding: a ROS encoding (rgb, bgr, rgba, bgra, mono and bayer_* of 8 or 16 bits, yuv422 (uyvy),
    yuv422_yuy2) or `jpeg`, `png`. data: the message's bytes (no copy). width, height, step (bytes
    per row), big_endian: as in sensor_msgs/Image; 0 for jpeg and png. received_ns: wall clock of
    reception (any monotonic clock), for latency; 0 offline.
    """

    stamp_ns: int
    encoding: str
    data: NDArray[np.uint8]
    width: int = 0
    height: int = 0
    step: int = 0
    big_endian: bool = False
    received_ns: int = 0


@dataclass(frozen=True)
class OdometrySample:
    """Wheel or inertial odometry: pose of base_link in the odometry's own frame, drifting but
    smooth. Never NaN (the door checks)."""

    stamp_ns: int
    T_odom_base: NDArray[np.float64]


class Jump(Enum):
    """Why this set does not follow the last one in time."""

    NONE = "none"
    BACKWARD = "time jumped backward"  # bag loop, clock reset: state of the world is to be reset
    FORWARD = "time jumped forward"


@dataclass(frozen=True)
class FrameSet:
    """Images that belong together, one at most per camera, and what is known beside them.

    stamp_ns: the set's time (the median of its images' stamps). images: camera name -> image; a
    camera that is missing is not in it and has its reason in `absent`. odometry: samples received
    since the last set, oldest first.
    """

    stamp_ns: int
    images: Mapping[str, RawImage]
    absent: Mapping[str, str] = field(default_factory=dict)
    odometry: tuple[OdometrySample, ...] = ()
    jump: Jump = Jump.NONE


@dataclass(frozen=True)
class Calibration:
    """The rig as the engine sees it, constant over a drive.

    grid: [N, h, w, 2] float32, for each pixel of the working image the pixel (u, v) of the *input*
    image (undistortion and resize). k: [N, 3, 3] float64 pinhole intrinsics of the working image.
    T_base_camera: [N, 4, 4]. input_size: (H, W) of the input images; working_size: (h, w) of the
    rectified working images, depth and masks.
    """

    names: tuple[str, ...]
    grid: NDArray[np.float32]
    k: NDArray[np.float64]
    T_base_camera: NDArray[np.float64]
    input_size: tuple[int, int]
    working_size: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A FrameSet decoded: what the engine takes.

    images: [N, H, W, C] uint8, C = 1 (grey) or 3 (RGB), at the engine's input size, still
    distorted; zeros where absent. A camera whose images are smaller than the input lies at the top
    left, its border's pixels repeated beyond; calibration.grid is in its own pixels. present: [N]
    bool. stamps_ns: [N] int64, each image's own stamp (the set's where absent).
    """

    stamp_ns: int
    images: NDArray[np.uint8]
    present: NDArray[np.bool_]
    stamps_ns: NDArray[np.int64]


class Tracking(Enum):
    """What the pose is worth."""

    STARTING = "starting"
    TRACKING = "tracking"
    LOST = "lost"


@dataclass(frozen=True)
class PoseEstimate:
    """Pose of the car at the frame's stamp, and of each camera at its own stamp.

    T_map_base: [4, 4]. T_map_camera: [N, 4, 4], skew between cameras' stamps taken into account.
    covariance: [6, 6] of the pose error in base_link (vx vy vz wx wy wz order: m^2, rad^2).
    velocity: [6] twist in base_link, m/s and rad/s. inliers: observations used.
    """

    T_map_base: NDArray[np.float64]
    T_map_camera: NDArray[np.float64]
    tracking: Tracking
    covariance: NDArray[np.float64]
    velocity: NDArray[np.float64]
    inliers: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Pointers:
    """The explicit spatial memory as the host sees it (a copy or a view), M slots.

    position: [M, 3] float64 metres in map. feature: [M, F] float32. weight: [M] float32 (how often
    confirmed). age: [M] float32 (frames since last confirmed). valid: [M] bool.
    """

    position: NDArray[np.float64]
    feature: NDArray[np.float32]
    weight: NDArray[np.float32]
    age: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Geometry:
    """What an engine says of one frame.

    depth: [N, h, w] float32 metres along the optical axis, NaN = none. sigma: [N, h, w] float32,
    standard deviation of the depth in metres (NaN where depth is). confidence: [N, h, w] float32 in
    0..1, from the match itself. color: [N, h, w, 3] uint8 RGB, the rectified working images.
    moving: [N, h, w] bool or None, where the engine itself has a say (learned 4D flow).
    """

    depth: NDArray[np.float32]
    sigma: NDArray[np.float32]
    confidence: NDArray[np.float32]
    color: NDArray[np.uint8]
    moving: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class DynamicObject:
    """A tracked mover in map. position: [3] metres, the centre of its box. size: length, width,
    height in metres along its own axes (yaw about map z).

    velocity: [3] m/s in map. *_covariance: [3, 3]. id is stable for the life of the track. age:
    frame sets since first seen; missed: frame sets since last seen.
    """

    id: int
    position: NDArray[np.float64]
    yaw: float
    size: NDArray[np.float64]
    velocity: NDArray[np.float64]
    position_covariance: NDArray[np.float64]
    velocity_covariance: NDArray[np.float64]
    confidence: float
    age: int
    missed: int


@dataclass(frozen=True)
class Motion:
    """What moves in one frame. mask: [N, h, w] bool in the working image; objects: confirmed
    tracks."""

    mask: NDArray[np.bool_]
    objects: tuple[DynamicObject, ...] = ()


@dataclass(frozen=True)
class MapDelta:
    """Voxels of the static map added or changed, and removed, since the last delta.

    keys: [K, 3] int32 voxel indices (position / voxel_size, floored). points: [K, 3] float32 metres
    in map. colors: [K, 3] uint8 RGB. weights: [K] float32. removed: [R, 3] int32 keys. sequence:
    counts deltas from 0.
    """

    sequence: int
    voxel_size: float
    keys: NDArray[np.int32]
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    weights: NDArray[np.float32]
    removed: NDArray[np.int32]


@dataclass(frozen=True)
class Reconstruction:
    """One frame set's result. latency: seconds per stage, by name. frame_set: what it was made
    from.

    cpu: processor seconds per stage, of all threads of this process, whatever they did; beside
    latency it shows what a stage waited for. dropped: camera -> why its image, which was there,
    could not be used.
    """

    frame_set: FrameSet
    frame: Frame
    pose: PoseEstimate
    geometry: Geometry
    motion: Motion
    map_delta: MapDelta
    latency: Mapping[str, float]
    memory_fill: float
    cpu: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
