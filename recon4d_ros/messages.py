"""ROS messages to our nouns, by their fields alone: the same functions serve rosbags' types
(offline) and rclpy's (the node)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.image_header import compressed_kind
from recon4d_ros.cameras.lens_names import lens_model
from recon4d_ros.errors import CalibrationError, MessageError
from recon4d_ros.geometry import inverse, se3_from_quaternion
from recon4d_ros.types import (
    Camera,
    DynamicObject,
    ImageBox,
    ImageBoxes,
    ImuSample,
    OdometrySample,
    RawImage,
    TwistSample,
)

STANDS_FOR = 1.0  # metres that a twist has to add up to before a pose that stands is not believed
BASELINE = 1e-3  # metres: what is less is rounding
_DEPTH_HEADER = 12  # bytes of compressedDepth's: format, two parameters of its quantisation
# What is said in a message's format or encoding, and our name for it; the first that is found.
_COMPRESSIONS = (
    ("rvl", "rvl"),
    ("mjpeg", "jpeg"),
    ("jpeg", "jpeg"),
    ("jpg", "jpeg"),
    ("png", "png"),
    ("tif", "tiff"),
    ("webp", "webp"),
    ("bmp", "bmp"),
    ("265", "hevc"),
    ("hevc", "hevc"),
    ("264", "h264"),
    ("avc", "h264"),
    ("av1", "av1"),
    ("vp9", "vp9"),
    ("vp8", "vp8"),
    ("mpeg4", "mpeg4"),
)


@dataclass(frozen=True)
class StaticTransform:
    """One edge of /tf_static: T_parent_child takes points in the child frame to the parent."""

    parent: str
    T_parent_child: NDArray[np.float64]


def stamp_ns(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def raw_image(message: Any, received_ns: int = 0) -> RawImage:
    """A sensor_msgs/Image as it is, without copying its pixels; what is wrong with it, its decoder
    says."""
    return RawImage(
        stamp_ns(message.header.stamp),
        str(message.encoding).lower(),
        _bytes(message.data),
        int(message.width),
        int(message.height),
        int(message.step),
        bool(message.is_bigendian),
        received_ns,
    )


def raw_compressed_image(message: Any, received_ns: int = 0) -> RawImage:
    """A sensor_msgs/CompressedImage as it is. Its kind is told by its first bytes, and by `format`
    only where those say nothing."""
    data = _bytes(message.data)
    text = str(message.format).lower()
    inside = text.partition(";")[0].strip()
    if "compresseddepth" in text and len(data) > _DEPTH_HEADER:
        # image_transport's way for images of numbers: a header, then a PNG (or its own RVL)
        if compressed_kind(data[_DEPTH_HEADER:]):
            data = data[_DEPTH_HEADER:]
        inside = ""
    named = next(
        (kind for word, kind in _COMPRESSIONS if word in text),
        " ".join(text.split()) or "empty",
    )
    return RawImage(
        stamp_ns(message.header.stamp),
        compressed_kind(data) or named,
        data,
        received_ns=received_ns,
        inside=inside,
    )


def raw_video(message: Any, received_ns: int = 0) -> RawImage:
    """A packet of video, of ffmpeg_image_transport (FFMPEGPacket) or Foxglove (CompressedVideo), as
    it is: `video.VideoDecoder` makes an image of it."""
    ours = hasattr(message, "encoding")
    data = _bytes(message.data)
    named = str(message.encoding if ours else message.format).lower().partition(";")[0].strip()
    codec = next((kind for word, kind in _COMPRESSIONS if word in named), named or "empty")
    return RawImage(
        stamp_ns(message.header.stamp if ours else message.timestamp),
        compressed_kind(data) or codec,
        data,
        received_ns=received_ns,
    )


def odometry_sample(message: Any) -> OdometrySample:
    """A nav_msgs/Odometry's pose. A quaternion that is no rotation gives a NaN pose, which the
    synchronizer rejects and counts."""
    pose = message.pose.pose
    return OdometrySample(stamp_ns(message.header.stamp), _pose(pose.position, pose.orientation))


class StandingPose:
    """Whether the pose of an odometry stands still while its twist says that the car moves: some
    drivers of wheel odometry fill in nothing but the twist. To be asked of every nav_msgs/Odometry
    of one topic."""

    def __init__(self) -> None:
        self._first: NDArray[np.float64] | None = None
        self._moved = 0.0  # metres by the twist; below zero once the pose has moved
        self._last_ns = 0

    def __call__(self, message: Any) -> bool:
        pose = odometry_sample(message).T_odom_base
        stamp, velocity = stamp_ns(message.header.stamp), message.twist.twist.linear
        self._first = pose if self._first is None else self._first
        if self._moved < 0 or not np.allclose(pose, self._first, atol=1e-6):
            self._moved = -1.0  # now and for good
            return False
        elapsed = min(max(stamp - self._last_ns, 0) * 1e-9, 1.0) if self._last_ns else 0.0
        self._last_ns = stamp
        self._moved += elapsed * float(np.hypot(velocity.x, velocity.y))
        return self._moved > STANDS_FOR


def imu_sample(message: Any, T_base_imu: NDArray[np.float64]) -> ImuSample:
    """A sensor_msgs/Imu's rates along the axes of base_link. A gyro that the message says it has
    not (covariance -1) gives NaN, which the synchronizer rejects and counts."""
    turn, force = message.angular_velocity, message.linear_acceleration
    gyro = np.array([turn.x, turn.y, turn.z], np.float64)
    if len(message.angular_velocity_covariance) and message.angular_velocity_covariance[0] == -1:
        gyro[:] = np.nan
    rotation = T_base_imu[:3, :3]
    return ImuSample(
        stamp_ns(message.header.stamp),
        rotation @ gyro,
        rotation @ np.array([force.x, force.y, force.z], np.float64),
    )


def twist_sample(message: Any, T_base_child: NDArray[np.float64]) -> TwistSample:
    """A geometry_msgs/TwistWithCovarianceStamped, or the twist of a nav_msgs/Odometry, of a frame
    of the car as that of base_link."""
    twist = message.twist.twist
    turn, T = np.array([twist.angular.x, twist.angular.y, twist.angular.z]), T_base_child
    turn = T[:3, :3] @ turn
    speed = T[:3, :3] @ np.array([twist.linear.x, twist.linear.y, twist.linear.z])
    return TwistSample(
        stamp_ns(message.header.stamp), np.concatenate([speed + np.cross(T[:3, 3], turn), turn])
    )


def dynamic_object(message: Any) -> DynamicObject:
    """A recon4d_msgs/DynamicObject, in the frame of its array; of its orientation the heading is
    kept."""
    pose, twist = message.pose, message.twist
    q, p, v = pose.pose.orientation, pose.pose.position, twist.twist.linear
    return DynamicObject(
        id=int(message.id),
        position=np.array([p.x, p.y, p.z]),
        yaw=float(np.arctan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y**2 + q.z**2))),
        size=np.array([message.size.x, message.size.y, message.size.z]),
        velocity=np.array([v.x, v.y, v.z]),
        position_covariance=np.asarray(pose.covariance).reshape(6, 6)[:3, :3],
        velocity_covariance=np.asarray(twist.covariance).reshape(6, 6)[:3, :3],
        confidence=float(message.confidence),
        age=int(message.age),
        missed=int(message.missed),
        class_name=str(getattr(message, "class_name", "")),  # recordings from before have none
        class_score=float(getattr(message, "class_score", 0.0)),
    )


def image_boxes(message: Any) -> ImageBoxes:
    """A vision_msgs/Detection2DArray, of any of its versions (a box's centre is a Pose2D or has a
    position; a hypothesis holds class and score, or is in one). Of each detection the best
    hypothesis counts. What has no size, or is not finite, is left out. A detection's own stamp
    goes before the array's where that is zero."""
    boxes, stamp = [], stamp_ns(message.header.stamp)
    for detection in message.detections:
        stamp = stamp or stamp_ns(detection.header.stamp)
        centre = getattr(detection.bbox.center, "position", detection.bbox.center)
        u, v = float(centre.x), float(centre.y)
        half_wide = float(detection.bbox.size_x) / 2
        half_high = float(detection.bbox.size_y) / 2
        edges = (u - half_wide, v - half_high, u + half_wide, v + half_high)
        named = [_hypothesis(result) for result in detection.results]
        class_name, score = max(named, key=lambda one: one[1], default=("", 1.0))
        if np.isfinite([*edges, score]).all() and half_wide > 0 and half_high > 0:
            boxes.append(ImageBox(*edges, class_name, min(max(score, 0.0), 1.0)))
    return ImageBoxes(stamp, tuple(boxes))


def _hypothesis(result: Any) -> tuple[str, float]:
    """Class and score of a vision_msgs/ObjectHypothesis(WithPose)."""
    one = getattr(result, "hypothesis", result)
    name = one.class_id if hasattr(one, "class_id") else one.id
    return str(name), float(one.score)


def point_rows(message: Any, names: Sequence[str]) -> NDArray[np.void]:
    """The named float32 fields of a sensor_msgs/PointCloud2, a row per point, without copying.
    Raises MessageError if one is missing."""
    offsets = {field.name: int(field.offset) for field in message.fields}
    if missing := [name for name in names if name not in offsets]:
        raise MessageError(
            f"a PointCloud2 has no field {missing[0]}: it has {', '.join(offsets) or 'none'}"
        )
    kind = ">f4" if message.is_bigendian else "<f4"
    row = np.dtype(
        {
            "names": list(names),
            "formats": [kind] * len(names),
            "offsets": [offsets[name] for name in names],
            "itemsize": int(message.point_step),
        }
    )
    return np.frombuffer(message.data, row, int(message.width) * int(message.height))


def cloud_points(message: Any) -> NDArray[np.float32]:
    """x y z [K, 3] of a sensor_msgs/PointCloud2, without points that are not finite."""
    rows = point_rows(message, "xyz")
    points = np.stack([rows["x"], rows["y"], rows["z"]], axis=1).astype(np.float32)
    return points[np.isfinite(points).all(axis=1)]


def static_transforms(messages: Iterable[Any]) -> dict[str, StaticTransform]:
    """All edges of tf2_msgs/TFMessages by child frame; a later one replaces an earlier one, as tf2
    does."""
    edges = {}
    for message in messages:
        for transform in message.transforms:
            pose = _pose(transform.transform.translation, transform.transform.rotation)
            edges[frame_name(transform.child_frame_id)] = StaticTransform(
                frame_name(transform.header.frame_id), pose
            )
    return edges


def frame_name(frame: str) -> str:
    """A frame without the leading slash of ROS 1's tf."""
    return str(frame).lstrip("/")


def lookup(edges: Mapping[str, StaticTransform], base: str, frame: str) -> NDArray[np.float64]:
    """T_base_frame along the tree of static transforms. Raises CalibrationError if the two are not
    connected."""
    from_base, from_frame = _to_root(edges, base), _to_root(edges, frame)
    common = next((name for name in from_frame if name in from_base), None)
    for chain in (list(from_base), list(from_frame)):
        if chain[-1] in edges:  # its parent was met before
            loop = chain[chain.index(edges[chain[-1]].parent) :]
            if common is None or common in loop:
                raise CalibrationError(
                    "the transforms form a loop, in which each frame is the next one's child:"
                    f" {', '.join([*loop, loop[0]])}"
                )
    if common is None:
        known = ", ".join(sorted({*edges, *(edge.parent for edge in edges.values())})) or "no frame"
        raise CalibrationError(
            f"no static transform leads from {base} to frame {frame!r}: /tf_static knows {known}"
        )
    pose = inverse(from_base[common]) @ from_frame[common]
    if not np.isfinite(pose).all():
        raise CalibrationError(
            f"the static transform from {base} to {frame!r} is not finite or its quaternion is no"
            " rotation"
        )
    return pose


def is_rectified(image_topic: str) -> bool:
    """Whether an image topic says by its name that its images are rectified (image_rect,
    image_rect_color, rect/image, in whichever transport)."""
    above, _, base = image_topic.removesuffix("/compressed").rpartition("/")
    if above.rsplit("/", 1)[-1].lower() in ("rect", "rectified"):
        return True
    return "rect" in base.lower() and "unrect" not in base.lower()


def image_size(message: Any) -> tuple[int, int]:
    """(width, height) of the images that a sensor_msgs/CameraInfo is for: its region of interest,
    binned."""
    region = _region(message)
    return _binned(region[2:], message)


def size_fault(message: Any, size: tuple[int, int]) -> str:
    """ "" or the sentence why images of this size (width, height) cannot be those that a
    sensor_msgs/CameraInfo is for."""
    try:
        _sampling(message, size)
    except CalibrationError as error:
        return str(error)
    return ""


def is_calibrated(message: Any) -> bool:
    """Whether a sensor_msgs/CameraInfo says a focal length at all: drivers of cameras without a
    calibration, and some before their first image, send zeros."""
    return bool(np.any(np.asarray(message.k)) or np.any(np.asarray(message.p)))


def is_finite(message: Any) -> bool:
    """Whether a sensor_msgs/CameraInfo has no NaN where a calibration is read from."""
    return bool(all(np.isfinite(np.asarray(part)).all() for part in (message.k, message.d)))


@dataclass(frozen=True)
class CameraReading:
    """A camera as its camera_info says it, and in a sentence each what had to be made of it."""

    camera: Camera
    notes: tuple[str, ...] = ()


def camera_from_info(
    name: str, message: Any, T_base_camera: NDArray[np.float64], rectified: bool = False
) -> Camera:
    """The Camera of `read_camera_info`, where the images' size is not known. Raises
    CalibrationError."""
    return read_camera_info(name, message, T_base_camera, rectified).camera


def read_camera_info(
    name: str,
    message: Any,
    T_base_camera: NDArray[np.float64],
    rectified: bool = False,
    size: tuple[int, int] | None = None,
) -> CameraReading:
    """A Camera from sensor_msgs/CameraInfo, its binning and region of interest applied.

    rectified: the image is (image_rect), so P is its matrix and there is no distortion; the frame
    is taken to be the rectified one. size: (width, height) of the images, where known: it tells
    whether binning and region are in the calibration already, and images of another size with the
    same proportions are the same view, scaled. Raises CalibrationError.
    """
    notes: list[str] = []
    k = np.array(message.k, np.float64).reshape(3, 3)
    p = np.array(message.p, np.float64).reshape(3, 4)[:, :3]
    if rectified and not np.any(p):
        notes.append(f"camera {name}: P of its camera_info is zero: K is taken for its matrix")
    elif rectified or (not np.any(k) and np.any(p)):
        if not rectified:
            rectified = True
            notes.append(
                f"camera {name}: K of its camera_info is zero: P is taken, as of rectified images"
            )
        k = p
    model, d = ("none", ()) if rectified else lens_model(message.distortion_model, message.d)
    if not rectified and any(message.d) and not str(message.distortion_model).strip():
        notes.append(
            f"camera {name}: its camera_info names no distortion model: {len(message.d)}"
            f" coefficients are taken as {model}'s"
        )
    if np.any(k[2, :2]):
        row = ", ".join(f"{value:g}" for value in k[2])
        raise CalibrationError(
            f"camera {name}: the last row of K in its camera_info is {row}: expected 0, 0, 1 (is it"
            " transposed?)"
        )
    offset, divide, (width, height), note = _sampling(message, size)
    if note:
        notes.append(f"camera {name}: {note}")
    k = k.copy()
    skew = k[0, 1] / divide[0]
    # pixel (0, 0) is the first pixel's centre
    k[:2, 2] = (k[:2, 2] - offset + 0.5) / divide - 0.5
    k[0, 0] /= divide[0]
    k[0, 1] = skew
    k[1, 1] /= divide[1]
    camera = Camera(name, width, height, k, T_base_camera, model, d)
    return CameraReading(camera, tuple(notes))


def _region(message: Any) -> tuple[int, int, int, int]:
    """x, y, width, height of the part of the sensor that is read out, unbinned. A region that does
    not fit in the camera_info's own size has been applied to that already."""
    roi, width, height = message.roi, int(message.width), int(message.height)
    x, y = int(roi.x_offset), int(roi.y_offset)
    w, h = int(roi.width) or width, int(roi.height) or height
    if width and height and (x + w > width or y + h > height):
        return 0, 0, width, height
    return x, y, w, h


def _binned(size: tuple[int, int], message: Any) -> tuple[int, int]:
    return size[0] // (int(message.binning_x) or 1), size[1] // (int(message.binning_y) or 1)


def _sampling(
    message: Any, size: tuple[int, int] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int], str]:
    """How the image's pixels lie in those of camera_info: their offset, how many of them one is,
    the image's size (width, height); and what was made of a contradiction. Raises
    CalibrationError."""
    x, y, *region = _region(message)
    full = (int(message.width), int(message.height))
    binning = np.array([int(message.binning_x) or 1, int(message.binning_y) or 1], np.float64)
    here, whole, one = np.array([x, y], np.float64), np.zeros(2), np.ones(2)
    said = _binned((region[0], region[1]), message)
    note = ""
    if (x, y) == (0, 0) and (int(message.roi.x_offset), int(message.roi.y_offset)) != (0, 0):
        note = (
            "the region of interest of its camera_info does not lie in its"
            f" {full[0]}x{full[1]} pixels: it is taken as applied already"
        )
    if size is None or said == size:
        return here, binning, said, note
    if 0 in said:
        return whole, one, size, "its camera_info says no size: it is taken as that of the images"
    if np.any(binning > 1) and tuple(region) == size:
        return here, one, size, "the binning of its camera_info is taken as applied already"
    if (x, y, *region) != (0, 0, *full) and _binned(full, message) == size:
        return whole, binning, size, "its images are whole: the region of interest is left out"
    scale = np.array(said, np.float64) / size
    # one factor, to half a pixel of rounding; by less than 2 % an image is cut, not scaled
    least, most = (np.array(size) - 0.51) / said, (np.array(size) + 0.51) / said
    if least.max() < most.min() and abs(float(np.log(scale[0]))) > 0.02:
        note = (
            f"camera_info is for {said[0]}x{said[1]} pixels, the images have {size[0]}x{size[1]}:"
            " they are taken as the same view, scaled"
        )
        return here, binning * scale, size, note
    raise CalibrationError(
        f"camera_info is for {said[0]}x{said[1]} pixels, the images have {size[0]}x{size[1]}:"
        " expected the same size, or the same proportions"
    )


@dataclass(frozen=True)
class Mount:
    """Where a camera's frame is, and what its camera_info says of the stereo pair it is in.

    T_base_frame: pose of its frame. tx: metres by which the second camera of a pair lies along x of
    the first one's rectified frame (-P[0, 3] / P[0, 0]); ty: along its y, down. rectify: R [3, 3],
    from the camera's raw frame to the rectified one. rectified: whether the images are.
    """

    T_base_frame: NDArray[np.float64]
    tx: float = 0.0
    ty: float = 0.0
    rectify: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    rectified: bool = False


def mount(message: Any, T_base_frame: NDArray[np.float64], rectified: bool) -> Mount:
    """The Mount of a sensor_msgs/CameraInfo whose frame is at T_base_frame."""
    p = np.array(message.p, np.float64).reshape(3, 4)
    tx, ty = (
        -float(p[i, 3] / p[i, i]) if p[i, i] > 0 and np.isfinite(p[i, 3]) else 0.0 for i in (0, 1)
    )
    r = np.array(message.r, np.float64).reshape(3, 3)
    proper = np.isfinite(r).all() and np.abs(r @ r.T - np.eye(3)).max() < 1e-3
    return Mount(T_base_frame, tx, ty, r if proper else np.eye(3), rectified)


def stereo_poses(
    mounts: Mapping[str, Mount],
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """T_base_camera by camera, and what had to be made of them.

    A stereo pair may have both cameras in the first one's frame and the baseline in P (CameraInfo's
    Tx, image_geometry, RealSense): cameras whose frames are in one place are put apart by it. Where
    frames are apart they say all, and Tx is not looked at. Of cameras that are called left and
    right the right one is put to the right, whatever sign the driver gives Tx.
    """
    poses = {name: one.T_base_frame for name, one in mounts.items()}
    notes = []
    for name, one in mounts.items():
        beside = {
            other: its for other, its in mounts.items() if same_place(one, its) and other != name
        }
        first = [other for other, its in beside.items() if max(abs(its.tx), abs(its.ty)) < 1e-4]
        if not is_second(one) or not beside:
            continue
        tx, sides = one.tx, {other: side for other in (name, *beside) if (side := _side(other))}
        for other in beside:
            apart = one.tx - mounts[other].tx
            if sides.get(name) and sides.get(name) == -sides.get(other, 0):
                if apart * sides[name] < 0:
                    tx = -one.tx
                break
        pose = np.eye(4)
        pose[:2, 3] = tx, one.ty
        if not one.rectified:
            if len(first) == 1:
                pose[:3] = mounts[first[0]].rectify.T @ pose[:3]
            pose[:3, :3] = pose[:3, :3] @ one.rectify
        poses[name] = one.T_base_frame @ pose
        sign = ", against its sign, as it is named" if tx != one.tx else ""
        moves = [
            f"{abs(metres):.3f} m {way[metres > 0]} by {what}"
            for metres, way, what in (
                (tx, ("to the left", "to the right"), "Tx"),
                (one.ty, ("up", "down"), "Ty"),
            )
            if abs(metres) > BASELINE
        ]
        notes.append(
            f"camera {name}: its frame is in one place with that of {', '.join(beside)}: it is put"
            f" {' and '.join(moves)} in P of its camera_info{sign}"
        )
    return poses, notes


def is_second(one: Mount) -> bool:
    """Whether a camera's P says that it is the second of a stereo pair."""
    return max(abs(one.tx), abs(one.ty)) > BASELINE


def same_place(a: Mount, b: Mount) -> bool:
    """Whether two frames are one, to a millimetre and a tenth of a degree."""
    relative = inverse(a.T_base_frame) @ b.T_base_frame
    return bool(
        np.abs(relative[:3, 3]).max() < 1e-3 and np.abs(relative[:3, :3] - np.eye(3)).max() < 2e-3
    )


def _side(name: str) -> int:
    """1 for a camera that is called right, -1 for left, 0 for others."""
    name = name.lower()
    return ("right" in name) - ("left" in name)


def _to_root(edges: Mapping[str, StaticTransform], frame: str) -> dict[str, NDArray[np.float64]]:
    """T_ancestor_frame for the frame itself and each ancestor, nearest first."""
    frame = frame_name(frame)
    chain = {frame: np.eye(4)}
    while (
        frame in edges and edges[frame].parent not in chain
    ):  # the second condition ends a loop in a broken tree
        edge = edges[frame]
        chain[edge.parent] = edge.T_parent_child @ chain[frame]
        frame = edge.parent
    return chain


def _pose(position: Any, orientation: Any) -> NDArray[np.float64]:
    xyzw = np.array([orientation.x, orientation.y, orientation.z, orientation.w], np.float64)
    if not abs(np.linalg.norm(xyzw) - 1.0) < 1e-2:  # written so that NaN fails too
        return np.full((4, 4), np.nan)
    return se3_from_quaternion(np.array([position.x, position.y, position.z], np.float64), xyzw)


def _bytes(data: Any) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
