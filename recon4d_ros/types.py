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
from scipy.spatial import cKDTree

from recon4d_ros.errors import CalibrationError

DISTORTION_COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),  # 12: and thin prism, 14: and tilted sensor (OpenCV)
    "equidistant": (4,),
    "thin_prism_fisheye": (8,),  # COLMAP's: k1 k2 p1 p2 k3 k4 sx1 sy1
    "fov": (1,),  # omega
    "double_sphere": (2,),  # xi alpha
    "eucm": (2,),  # alpha beta
    "none": (0,),
}


@dataclass(frozen=True)
class Camera:
    """One calibrated camera. Raises CalibrationError if the calibration cannot be used.

    k: 3x3 pinhole matrix of the raw image in pixels. d: distortion coefficients in ROS/OpenCV order
    of `distortion_model`. T_base_camera: pose of the optical frame in base_link. ego_vehicle:
    [height, width] of the raw image, True where it shows the car itself (body, bonnet, reflections
    on them); None = nowhere. What is there is not looked at: no depth, no features, no map.
    rolling_shutter: seconds from the first row's read-out to the last one's, 0 for a global
    shutter; the image's stamp is that of its middle row.
    """

    name: str
    width: int
    height: int
    k: NDArray[np.float64]
    T_base_camera: NDArray[np.float64]
    distortion_model: str = "none"
    d: tuple[float, ...] = ()
    ego_vehicle: NDArray[np.bool_] | None = None
    rolling_shutter: float = 0.0

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
        for what, values in (("K", self.k), ("D", self.d), ("the pose", self.T_base_camera)):
            if not np.all(np.isfinite(values)):
                raise CalibrationError(
                    f"{where}: {what} of its calibration has a value that is not finite"
                )
        if self.k[0, 0] <= 0 or self.k[1, 1] <= 0:
            raise CalibrationError(
                f"{where}: focal length is {self.k[0, 0]:g}, {self.k[1, 1]:g} px: expected above"
                " zero (is the camera calibrated?)"
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(
                f"{where}: image size is {self.width}x{self.height}: expected above zero"
            )
        if not 0.0 <= self.rolling_shutter < 0.2:
            raise CalibrationError(
                f"{where}: rolling_shutter is {self.rolling_shutter:g}: expected the seconds of"
                " read-out, below 0.2"
            )
        rotation = self.T_base_camera[:3, :3]
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
            raise CalibrationError(f"{where}: the rotation of T_base_camera is not a rotation")
        if self.ego_vehicle is not None and self.ego_vehicle.shape != (self.height, self.width):
            size = "x".join(map(str, self.ego_vehicle.shape[::-1]))
            raise CalibrationError(
                f"{where}: the mask of the ego-vehicle is {size} pixels: expected"
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

    encoding: in lower case, a ROS encoding (`decode.ENCODINGS`), a compression (jpeg, png, tiff,
    webp) or a video's codec (`video.CODECS`). data: the message's bytes (no copy). width, height,
    step (bytes per row), big_endian: as in sensor_msgs/Image; 0 where compressed. received_ns: wall
    clock of reception (any monotonic clock), for latency; 0 offline. inside: of a compressed image
    the encoding of its pixels, as the message's format says.
    """

    stamp_ns: int
    encoding: str
    data: NDArray[np.uint8]
    width: int = 0
    height: int = 0
    step: int = 0
    big_endian: bool = False
    received_ns: int = 0
    inside: str = ""


# m/s and rad/s: no car does more
FASTEST, QUICKEST_TURN = 90.0, 5.0
# metres and radians by which an odometry may correct itself at once (a fix of GNSS, a closed loop)
CORRECTION_METRES, CORRECTION_ANGLE = 1.0, 0.2


@dataclass(frozen=True)
class OdometrySample:
    """Wheel or inertial odometry: pose of base_link in the odometry's own frame, drifting but
    smooth. Never NaN (the door checks)."""

    stamp_ns: int
    T_odom_base: NDArray[np.float64]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.T_odom_base).all())

    def reachable_from(self, earlier: OdometrySample) -> bool:
        """Whether a car could have come here since: within FASTEST and QUICKEST_TURN, and what an
        odometry corrects its own drift by. Otherwise the odometry began anew, or was wrong."""
        seconds = (self.stamp_ns - earlier.stamp_ns) * 1e-9
        a, b = earlier.T_odom_base, self.T_odom_base
        with np.errstate(over="ignore"):
            distance = float(np.linalg.norm(b[:3, 3] - a[:3, 3]))
        cosine = (np.sum(a[:3, :3] * b[:3, :3]) - 1.0) / 2.0  # of the angle between the two
        angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
        return (
            distance <= FASTEST * seconds + CORRECTION_METRES
            and angle <= QUICKEST_TURN * seconds + CORRECTION_ANGLE
        )


@dataclass(frozen=True)
class ImuSample:
    """One reading of an inertial sensor, along the axes of base_link. gyro: [3] rad/s.
    acceleration: [3] m/s^2, 9.81 upward at rest."""

    stamp_ns: int
    gyro: NDArray[np.float64]
    acceleration: NDArray[np.float64]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.gyro).all() and np.isfinite(self.acceleration).all())


@dataclass(frozen=True)
class TwistSample:
    """Wheel speed and turning rate of base_link, [6]: m/s and rad/s."""

    stamp_ns: int
    twist: NDArray[np.float64]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.twist).all())


class Jump(Enum):
    """Why this set does not follow the last one in time."""

    NONE = "none"
    BACKWARD = "time jumped backward"  # bag loop, clock reset: state of the world is to be reset
    FORWARD = "time jumped forward"


@dataclass(frozen=True)
class FrameSet:
    """Images that belong together, one at most per camera, and what is known beside them.

    stamp_ns: the set's time (the median of its images' stamps). images: camera name -> image; a
    camera that is missing is not in it and has its reason in `absent`. odometry, imu, twist:
    samples received since the last set, oldest first.
    """

    stamp_ns: int
    images: Mapping[str, RawImage]
    absent: Mapping[str, str] = field(default_factory=dict)
    odometry: tuple[OdometrySample, ...] = ()
    jump: Jump = Jump.NONE
    imu: tuple[ImuSample, ...] = ()
    twist: tuple[TwistSample, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """The rig as the engine sees it, constant over a drive.

    grid: [N, h, w, 2] float32, for each pixel of the working image the pixel (u, v) of the *input*
    image (undistortion and resize). k: [N, 3, 3] float64 pinhole intrinsics of the working image.
    T_base_camera: [N, 4, 4] of the working images' frames: the cameras' own, turned about their
    optical axes where these are mounted rolled (`calibration.upright`). input_size: (H, W) of the
    input images; working_size: (h, w) of the rectified working images, depth and masks.
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
    """What the pose is worth.

    STARTING: no motion is known yet. TRACKING: the motion is right within its covariance.
    DEGRADED: a motion is measured, but what it rests on cannot rule another one out. LOST: the
    motion is not measured; the pose is carried on for a while, then kept.
    """

    STARTING = "starting"
    TRACKING = "tracking"
    DEGRADED = "degraded"
    LOST = "lost"


@dataclass(frozen=True)
class PoseEstimate:
    """Pose of the car at the frame's stamp, and of each camera at its own stamp.

    T_map_base: [4, 4]. T_map_camera: [N, 4, 4] of the working images' frames (see `Calibration`),
    skew between cameras' stamps taken into account. covariance: [6, 6] of the pose's error since
    the segment began, in base_link (vx vy vz wx wy wz order: m^2, rad^2). motion_covariance: [6, 6]
    of the error of the motion since the last frame alone, likewise. calibration_covariance: [6, 6]
    what of that is the calibration's (how high and how turned the cameras are mounted): images of
    one camera show nothing of it. velocity: [6] twist in
    base_link, m/s and rad/s. inliers: observations used. reason: why it is not tracking, in words
    for a user. segment: counts from 0; poses of different segments have nothing to do with each
    other (see docs/design.md).
    """

    T_map_base: NDArray[np.float64]
    T_map_camera: NDArray[np.float64]
    tracking: Tracking
    covariance: NDArray[np.float64]
    motion_covariance: NDArray[np.float64]
    velocity: NDArray[np.float64]
    inliers: int = 0
    reason: str = ""
    segment: int = 0
    calibration_covariance: NDArray[np.float64] = field(default_factory=lambda: np.zeros((6, 6)))

    @property
    def usable(self) -> bool:
        """Whether map, memory and dynamics may rest on it."""
        return self.tracking is Tracking.TRACKING and bool(np.isfinite(self.T_map_camera).all())


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
class Occupancy:
    """Which voxels around the car are occupied, as an engine says of one frame set.

    score: [X, Y, Z] float32, 0..1, of being occupied (no calibrated probability; above one half:
    occupied), NaN where no camera sees the voxel's centre. Voxel (i, j, k) spans origin + (i, j, k)
    * voxel_size to one voxel more, in base_link: x forward, y left, z up. voxel_size: [3] metres,
    origin: [3] metres. Low scores mean free, or hidden behind something: the training knows no
    difference. Voxels on the border (first and last index of each axis) mean something there or
    beyond: their training has put everything there that lies outside.
    """

    stamp_ns: int
    score: NDArray[np.float32]
    voxel_size: NDArray[np.float64]
    origin: NDArray[np.float64]

    def occupied(self, least: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Centres [K, 3] in base_link, metres, and scores [K] of the voxels that score more than
        `least`, those on the border left out."""
        core = self.score[1:-1, 1:-1, 1:-1]
        index = np.argwhere(core > least)  # NaN is not
        centres = (index + 1.5) * self.voxel_size + self.origin
        return centres.astype(np.float32), core[tuple(index.T)]


UNKNOWN, FREE, OCCUPIED = -1, 0, 100
"""What a cell of an occupancy grid is, as nav_msgs/OccupancyGrid has it."""


@dataclass(frozen=True)
class OccupancyGrid:
    """Which cells of the ground plane can be driven on. values: [rows, columns] int8, UNKNOWN, FREE
    or OCCUPIED; rows along map's y, columns along its x. resolution: edge of a cell in metres.
    origin: [2] metres, x and y in map of the outer corner of values[0, 0]. height: z in map of the
    road under the car, metres, to show the grid there."""

    stamp_ns: int
    values: NDArray[np.int8]
    resolution: float
    origin: NDArray[np.float64]
    height: float = 0.0


@dataclass(frozen=True)
class GridTiles:
    """A lasting grid at rest, as tiles that are packed (grids/lasting.py). resolution: edge of a
    cell in metres. index: [K, 2] int64, (x, y) of each tile when it was packed. motion: [K, 4, 4],
    where what was there then is in map now: a turn about z and a shift. level: [K] metres, height
    of the road in the tile then, 0 where it is not known. data: each tile's layers, packed."""

    resolution: float
    index: NDArray[np.int64]
    motion: NDArray[np.float64]
    level: NDArray[np.float64]
    data: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class MapMotion:
    """The map lies elsewhere than a frame set ago (the car was found in another one, or a loop was
    closed), each part of it by a rigid motion of its own. places: [S, 3] metres, in the map as it
    was. motion: [S, 4, 4], T_new_old of what is nearest to each place."""

    places: NDArray[np.float64]
    motion: NDArray[np.float64]

    @staticmethod
    def whole(T_new_old: NDArray[np.float64]) -> MapMotion:
        """All of it by one motion [4, 4]."""
        return MapMotion(np.zeros((1, 3)), T_new_old[None])

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """[K, 4, 4] of points [K, 3] in the map as it was."""
        return np.asarray(self.motion[cKDTree(self.places).query(points)[1]], np.float64)


@dataclass(frozen=True)
class DynamicObject:
    """A tracked object in map. position: [3] metres, the centre of its box. size: length, width,
    height in metres along its own axes (yaw about map z).

    velocity: [3] m/s in map. *_covariance: [3, 3], NaN where it is not known. id is stable for the
    life of the track. age: frame sets since first seen; missed: frame sets since last seen.
    class_name, class_score: of a network that detects objects; empty and 0 where none says.
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
    class_name: str = ""
    class_score: float = 0.0


@dataclass(frozen=True)
class Detection:
    """An object that a network sees in one frame.

    id: stays the same as long as the network carries the object from frame to frame; -1: none yet.
    class_name: one of the engine's classes. class_score: 0..1, probability of the class. score:
    0..1, class_score times how well the network believes the box to be centred: objects are sorted
    by it. box_base, box_map: [7] float64, centre x, y, z, length, width, height in metres, and the
    yaw of the length axis about z in radians (-pi..pi, counter-clockwise from x), in base_link and
    in map. velocity_base, velocity_map: [3] float64 m/s over ground (not relative to the car), in
    the axes of base_link and of map; its z is not supervised in training.
    """

    id: int
    class_name: str
    class_score: float
    score: float
    box_base: NDArray[np.float64]
    box_map: NDArray[np.float64]
    velocity_base: NDArray[np.float64]
    velocity_map: NDArray[np.float64]


@dataclass(frozen=True)
class Detections:
    """What an engine of objects says of one frame. stamp_ns: the frame set's. objects: best score
    first."""

    stamp_ns: int
    objects: tuple[Detection, ...]


@dataclass(frozen=True)
class ImageBox:
    """What a detector of objects says of one place in an image. left, top, right, bottom: its
    edges in pixels of the source image. class_name: the detector's, empty where it says none.
    score: 0..1."""

    left: float
    top: float
    right: float
    bottom: float
    class_name: str = ""
    score: float = 1.0


@dataclass(frozen=True)
class ImageBoxes:
    """All boxes of one image. stamp_ns: that image's."""

    stamp_ns: int
    boxes: tuple[ImageBox, ...]


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
    could not be used. troubles: camera -> what is wrong with its images (see cameras/health.py), of
    those where something is. local_grid: around the car, dynamic objects included; None where the
    pose or the road is not known, or grids are off. T_map_odom: [4, 4], where odometry's frame is
    in map: pose, objects, grids and map_delta are in map, which is odometry's frame unless the car
    was found in another map. in_map: False while there is another map in which the car is not found
    yet: map is then odometry's frame. map_motion: how the map lies elsewhere than in the result
    before; None where it does not.
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
    troubles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    local_grid: OccupancyGrid | None = None
    T_map_odom: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    in_map: bool = True
    map_motion: MapMotion | None = None
