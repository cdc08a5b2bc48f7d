"""ROS messages to the core's nouns and back: pure functions, one copy at most (into the message's
own buffer).

Stamps are integer nanoseconds, poses `T_a_b` 4x4 float64 (see types.py). What cannot be used raises
a Recon4dError with its sentence.
"""

from __future__ import annotations

import array
import math
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import tf_transformations
from builtin_interfaces.msg import Duration as DurationMsg
from builtin_interfaces.msg import Time as TimeMsg
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TransformStamped, Vector3
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from recon4d_msgs.msg import DynamicObject as DynamicObjectMsg
from recon4d_msgs.msg import DynamicObjectArray, MapUpdate
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from recon4d_ros import messages
from recon4d_ros.cameras.decode import ENCODINGS, is_known
from recon4d_ros.errors import ImageError, MessageError
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.types import (
    DynamicObject,
    MapDelta,
    Occupancy,
    PoseEstimate,
    RawImage,
    Tracking,
)

Array = NDArray[np.float64]

# A pose that is lost is anywhere: a kilometre and half a turn, one sigma.
LOST_COVARIANCE = np.diag([1e6] * 3 + [math.pi**2] * 3)
_BRIDGE = CvBridge()


# --- time, frames, poses


def time_msg(ns: int) -> TimeMsg:
    sec, nanosec = divmod(int(ns), 1_000_000_000)
    return TimeMsg(sec=sec, nanosec=nanosec)


def header(ns: int, frame_id: str) -> Header:
    return Header(stamp=time_msg(ns), frame_id=frame_id)


def pose_matrix(position: Any, orientation: Any, what: str) -> Array:
    """4x4 pose from a Point or Vector3 in metres and a Quaternion. Raises MessageError if not
    finite or the quaternion has no length."""
    values = np.array(
        [
            position.x,
            position.y,
            position.z,
            orientation.x,
            orientation.y,
            orientation.z,
            orientation.w,
        ]
    )
    if not np.all(np.isfinite(values)):
        raise MessageError(f"{what} has a value that is not finite")
    length = float(np.linalg.norm(values[3:]))
    if not 0.9 < length < 1.1:
        raise MessageError(f"{what} has a quaternion of length {length:.3g}: expected 1")
    pose = np.asarray(tf_transformations.quaternion_matrix(values[3:] / length), np.float64)
    pose[:3, 3] = values[:3]
    return pose


def quaternion_msg(pose: Array) -> Quaternion:
    x, y, z, w = (float(value) for value in tf_transformations.quaternion_from_matrix(pose))
    return Quaternion(x=x, y=y, z=z, w=w) if w >= 0 else Quaternion(x=-x, y=-y, z=-z, w=-w)


def pose_msg(pose: Array) -> Pose:
    x, y, z = (float(value) for value in pose[:3, 3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=quaternion_msg(pose))


def pose_stamped_msg(pose: Array, ns: int, frame_id: str) -> PoseStamped:
    return PoseStamped(header=header(ns, frame_id), pose=pose_msg(pose))


def transform_msg(pose: Array, ns: int, parent: str, child: str) -> TransformStamped:
    """T_parent_child as a transform for /tf."""
    message = TransformStamped(header=header(ns, parent), child_frame_id=child)
    message.transform.translation = vector_msg(pose[:3, 3])
    message.transform.rotation = quaternion_msg(pose)
    return message


def transform_matrix(message: TransformStamped) -> Array:
    """T_parent_child of a transform. Raises MessageError."""
    what = f"transform {message.header.frame_id} -> {message.child_frame_id}"
    return pose_matrix(message.transform.translation, message.transform.rotation, what)


def vector_msg(vector: NDArray) -> Vector3:
    x, y, z = (float(value) for value in vector)
    return Vector3(x=x, y=y, z=z)


# --- in: images (calibrations and odometry are the core's: messages.py)


def raw_image(message: Any, received_ns: int) -> RawImage:
    """An Image, CompressedImage or packet of video as a RawImage, without a copy, as a bag's would
    be. Raises ImageError for an encoding that nobody here knows.

    received_ns: monotonic clock of reception, for the latency.
    """
    if isinstance(message, CompressedImage):
        return messages.raw_compressed_image(message, received_ns)
    if not isinstance(message, Image):
        return messages.raw_video(message, received_ns)
    if not is_known(message.encoding.lower()):
        return _bridged(message, received_ns)
    return messages.raw_image(message, received_ns)


def _bridged(message: Image, received_ns: int) -> RawImage:
    """An encoding that only cv_bridge knows (of floats, for one), converted by it to rgb8."""
    try:
        pixels = np.ascontiguousarray(_BRIDGE.imgmsg_to_cv2(message, desired_encoding="rgb8"))
    except (CvBridgeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ImageError(
            f"image encoding {message.encoding!r} is not known: expected one of"
            f" {', '.join(ENCODINGS)}"
        ) from error
    height, width = pixels.shape[:2]
    return RawImage(
        messages.stamp_ns(message.header.stamp),
        "rgb8",
        pixels.reshape(-1),
        width,
        height,
        3 * width,
        False,
        received_ns,
    )


# --- out


def _buffer(values: NDArray) -> array.array:
    """Bytes of an array as the array.array that a message keeps: one memcpy, no check per
    element."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return data


def image_msg(values: NDArray, encoding: str, ns: int, frame_id: str) -> Image:
    """[h, w] float32 (32FC1) or uint8 (mono8), or [h, w, 3] uint8 (rgb8), as an Image."""
    height, width = values.shape[:2]
    return Image(
        header=header(ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=values.strides[0] if values.flags.c_contiguous else width * values.itemsize,
        data=_buffer(values),
    )


def restamp(message: Any, ns: int, frame_id: str) -> None:
    """A message that is kept gets its next header: making one anew costs more than filling it."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(int(ns), 1_000_000_000)
    message.header.frame_id = frame_id


def repaint(message: Image, values: NDArray, ns: int, frame_id: str) -> None:
    """New values [h, w] or [h, w, 3] into an Image of their size and type that is kept, in its own
    memory."""
    restamp(message, ns, frame_id)
    np.frombuffer(message.data, values.dtype).reshape(values.shape)[...] = values


def camera_info_msg(k: Array, size: tuple[int, int], ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of a rectified image of size (h, w): no distortion, P = [K | 0]."""
    message = CameraInfo(
        header=header(ns, frame_id),
        height=size[0],
        width=size[1],
        distortion_model="plumb_bob",
        d=[0.0] * 5,
    )
    message.k = k.reshape(-1)
    message.r = np.eye(3).reshape(-1)
    message.p = np.hstack([k, np.zeros((3, 1))]).reshape(-1)
    return message


def cloud_msg(
    points: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    ns: int,
    frame_id: str,
    **channels: NDArray[np.float32],
) -> PointCloud2:
    """PointCloud2 x y z rgb and one float32 field per further channel, from [K, 3] metres and [K,
    3] RGB."""
    rows = np.empty((len(points), 4 + len(channels)), np.float32)
    rows[:, :3] = points
    rows[:, 3] = packed_rgb(rgb)
    for index, values in enumerate(channels.values()):
        rows[:, 4 + index] = values
    return rows_msg(rows, ns, frame_id, *channels)


def occupancy_msg(occupancy: Occupancy, frame_id: str) -> PointCloud2:
    """Centres of the occupied voxels with their score, in the car's frame; as grey as they are
    sure."""
    points, score = occupancy.occupied()
    grey = np.repeat(np.rint(255 * score)[:, None], 3, axis=1).astype(np.uint8)
    return cloud_msg(points, grey, occupancy.stamp_ns, frame_id, score=score)


def packed_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0x00RRGGBB in a float32's bits, as PointCloud2's rgb is, of [..., 3]: never NaN, whatever the
    colour."""
    wide = rgb.astype(np.uint32)
    return np.asarray((wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]).view(np.float32)


def packed_image(color: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same of a whole image [h, w, 3], for a fraction of the time."""
    packed = np.asarray(cv2.cvtColor(color, cv2.COLOR_RGB2BGRA)).view("<u4")[..., 0]
    packed &= np.uint32(0x00FFFFFF)
    return np.asarray(packed, np.uint32).view(np.float32)


@lru_cache(maxsize=8)
def _fields(names: tuple[str, ...]) -> list[PointField]:
    return [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(names)
    ]


def rows_msg(rows: NDArray[np.float32], ns: int, frame_id: str, *channels: str) -> PointCloud2:
    """PointCloud2 of rows [K, 4 + channels]: x y z, rgb as `packed_rgb` gives it, and the channels.
    Their memory goes into the message as it is."""
    height, width = 1, len(rows)
    step = 4 * rows.shape[1]
    return PointCloud2(
        header=header(ns, frame_id),
        height=height,
        width=width,
        fields=_fields(("x", "y", "z", "rgb", *channels)),
        is_bigendian=sys.byteorder == "big",
        is_dense=False,
        point_step=step,
        row_step=step * width,
        data=_buffer(rows),
    )


def refill(
    message: PointCloud2, parts: Iterable[NDArray[np.float32]], ns: int, frame_id: str
) -> None:
    """New rows, part by part, into a cloud of rows_msg that is kept."""
    restamp(message, ns, frame_id)
    data = array.array("B")
    for rows in parts:
        data.frombytes(rows.reshape(-1).view(np.uint8).data)
    message.data, message.row_step, message.width = data, len(data), len(data) // message.point_step


def odometry_msg(
    pose: PoseEstimate, T_parent_base: Array, dt: float, ns: int, parent: str, child: str
) -> Odometry:
    """Pose with covariance in the parent frame, twist in the child's.

    The estimate's covariance is of the error in base_link; the message's is in the parent frame, so
    its blocks are rotated. The twist is the last motion over dt seconds, so its covariance is that
    motion's over dt squared. Lost is said with a huge one.
    """
    lost = pose.tracking is Tracking.LOST
    covariance = LOST_COVARIANCE if lost else pose.covariance
    turn = np.kron(np.eye(2), T_parent_base[:3, :3])
    message = Odometry(header=header(ns, parent), child_frame_id=child)
    message.pose.pose = pose_msg(T_parent_base)
    message.pose.covariance = np.ascontiguousarray(turn @ covariance @ turn.T, np.float64).reshape(
        -1
    )
    message.twist.twist.linear = vector_msg(pose.velocity[:3])
    message.twist.twist.angular = vector_msg(pose.velocity[3:])
    message.twist.covariance = np.ascontiguousarray(
        LOST_COVARIANCE if lost else pose.motion_covariance / max(dt, 1e-3) ** 2, np.float64
    ).reshape(-1)
    return message


def map_update_msg(delta: MapDelta, ns: int, frame_id: str) -> MapUpdate:
    message = MapUpdate(
        header=header(ns, frame_id), sequence=delta.sequence, voxel_size=float(delta.voxel_size)
    )
    message.changed = cloud_msg(delta.points, delta.colors, ns, frame_id, weight=delta.weights)
    message.changed_keys = _int32(delta.keys)
    message.removed_keys = _int32(delta.removed)
    return message


def _int32(values: NDArray[np.int32]) -> array.array:
    data = array.array("i")
    data.frombytes(np.ascontiguousarray(values, np.int32).tobytes())
    return data


def _covariance6(position: Array | None, orientation: Array | None = None) -> Array:
    """Row-major; what is not known (NaN) is -1 in its first element, as in sensor_msgs/Imu."""
    out = np.zeros((6, 6))
    if position is not None and np.isnan(position).any():
        out[0, 0] = -1.0
        return out.reshape(-1)
    if position is not None:
        out[:3, :3] = position
    if orientation is not None:
        out[3:, 3:] = orientation
    return out.reshape(-1)


def object_msg(thing: DynamicObject) -> DynamicObjectMsg:
    message = DynamicObjectMsg(
        id=int(thing.id),
        confidence=float(thing.confidence),
        age=int(thing.age),
        missed=int(thing.missed),
        class_name=thing.class_name,
        class_score=float(thing.class_score),
    )
    message.pose.pose.position = Point(
        x=float(thing.position[0]), y=float(thing.position[1]), z=float(thing.position[2])
    )
    message.pose.pose.orientation = yaw_msg(thing.yaw)
    message.pose.covariance = _covariance6(thing.position_covariance)
    message.size = vector_msg(thing.size)
    message.twist.twist.linear = vector_msg(thing.velocity)
    message.twist.covariance = _covariance6(thing.velocity_covariance)
    return message


def yaw_msg(yaw: float) -> Quaternion:
    x, y, z, w = (float(value) for value in tf_transformations.quaternion_from_euler(0.0, 0.0, yaw))
    return Quaternion(x=x, y=y, z=z, w=w)


def objects_msg(movers: tuple[DynamicObject, ...], ns: int, frame_id: str) -> DynamicObjectArray:
    return DynamicObjectArray(
        header=header(ns, frame_id), objects=[object_msg(mover) for mover in movers]
    )


def detections_msg(objects: tuple[DynamicObject, ...], ns: int, frame_id: str) -> Any:
    """The same as vision_msgs/Detection3DArray, where that is installed: box, class (`unknown`
    where none is known, with the track's confidence) and id; it has no place for the velocity.
    Raises MessageError."""
    array_type, one_type, hypothesis_type = (
        message_class(f"vision_msgs/msg/{name}")
        for name in ("Detection3DArray", "Detection3D", "ObjectHypothesisWithPose")
    )
    array = array_type(header=header(ns, frame_id))
    for thing in objects:
        message = object_msg(thing)
        result = hypothesis_type(pose=message.pose)
        result.hypothesis.class_id = thing.class_name or "unknown"
        result.hypothesis.score = float(thing.class_score if thing.class_name else thing.confidence)
        one = one_type(header=header(ns, frame_id), results=[result], id=str(thing.id))
        one.bbox.center, one.bbox.size = message.pose.pose, message.size
        array.detections.append(one)
    return array


# autoware_perception_msgs/ObjectClassification's labels by words of a class; the first that fits
AUTOWARE = {
    "trailer": "TRAILER",
    "bus": "BUS",
    "truck": "TRUCK",
    "lorry": "TRUCK",
    "construction": "TRUCK",
    "motorcycle": "MOTORCYCLE",
    "motorbike": "MOTORCYCLE",
    "motorcyclist": "MOTORCYCLE",
    "bicycle": "BICYCLE",
    "bike": "BICYCLE",
    "cyclist": "BICYCLE",
    "bicyclist": "BICYCLE",
    "rider": "BICYCLE",
    "person": "PEDESTRIAN",
    "pedestrian": "PEDESTRIAN",
    "people": "PEDESTRIAN",
    "child": "PEDESTRIAN",
    "car": "CAR",
    "van": "CAR",
    "suv": "CAR",
    "taxi": "CAR",
    "vehicle": "CAR",
    "animal": "ANIMAL",
    "dog": "ANIMAL",
    "cat": "ANIMAL",
    "horse": "ANIMAL",
    "cow": "ANIMAL",
    "sheep": "ANIMAL",
}
STANDS = 0.5  # m/s: below it Autoware is told that an object is stationary


def autoware_label(class_name: str) -> str:
    """The name of Autoware's label of a class; UNKNOWN of any other. A construction vehicle is a
    TRUCK, as in Autoware's own table for nuScenes' classes."""
    words = set(re.split(r"[^a-z]+", class_name.lower()))
    return next((label for word, label in AUTOWARE.items() if word in words), "UNKNOWN")


def tracked_objects_msg(objects: tuple[DynamicObject, ...], ns: int, frame_id: str) -> Any:
    """The same as autoware_perception_msgs/TrackedObjects, where that is installed. Its twist is in
    the object's own axes; its UUID is our id. What is not known of a covariance is -1 in its first
    element. Raises MessageError."""

    def kind(name: str) -> Any:
        return message_class(f"autoware_perception_msgs/msg/{name}")

    one_type, class_type = kind("TrackedObject"), kind("ObjectClassification")
    shape_type, kinematics_type = kind("Shape"), kind("TrackedObjectKinematics")
    array = kind("TrackedObjects")(header=header(ns, frame_id))
    for thing in objects:
        message = object_msg(thing)
        one = one_type(existence_probability=float(np.clip(thing.confidence, 0, 1)))
        one.object_id.uuid = np.frombuffer(int(thing.id).to_bytes(16, "big"), np.uint8)
        label = getattr(class_type, autoware_label(thing.class_name), class_type.UNKNOWN)
        score = thing.class_score if thing.class_name else 1.0
        one.classification = [class_type(label=label, probability=float(np.clip(score, 0, 1)))]
        kinematics = one.kinematics
        kinematics.pose_with_covariance = message.pose
        cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
        to_own = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
        kinematics.twist_with_covariance.twist.linear = vector_msg(to_own @ thing.velocity)
        kinematics.twist_with_covariance.covariance = _covariance6(
            to_own @ thing.velocity_covariance @ to_own.T
        )
        kinematics.acceleration_with_covariance.covariance[0] = -1.0
        kinematics.orientation_availability = kinematics_type.AVAILABLE
        kinematics.is_stationary = bool(np.linalg.norm(thing.velocity[:2]) < STANDS)
        one.shape.type = shape_type.BOUNDING_BOX
        one.shape.dimensions = message.size
        array.objects.append(one)
    return array


def markers_msg(movers: tuple[DynamicObject, ...], ns: int, frame_id: str) -> MarkerArray:
    """Box, velocity arrow (one second long) and label per mover; what was there before is cleared
    first."""
    markers = [Marker(header=header(ns, frame_id), action=Marker.DELETEALL)]
    for mover in movers:
        red, green, blue = mover_color(mover.id)
        message = object_msg(mover)

        def marker(
            kind: int,
            name: str,
            alpha: float,
            mover: DynamicObject = mover,
            color: tuple[float, float, float] = (red, green, blue),
        ) -> Marker:
            item = Marker(
                header=header(ns, frame_id),
                ns=name,
                id=int(mover.id) & 0x7FFFFFFF,
                type=kind,
                action=Marker.ADD,
                lifetime=DurationMsg(sec=1),
            )
            item.pose.orientation.w = 1.0
            item.color.r, item.color.g, item.color.b = color
            item.color.a = alpha
            return item

        box = marker(Marker.CUBE, "box", 0.4)
        box.pose = message.pose.pose
        box.scale = message.size
        arrow = marker(Marker.ARROW, "velocity", 1.0)
        arrow.points = [message.pose.pose.position, _point(mover.position + mover.velocity)]
        arrow.scale = Vector3(x=0.15, y=0.35, z=0.5)
        label = marker(Marker.TEXT_VIEW_FACING, "label", 1.0)
        label.pose.position = _point(mover.position + np.array([0.0, 0.0, mover.size[2] / 2 + 0.6]))
        label.scale.z = 0.6
        name = f"{mover.class_name} {mover.id}".strip()
        label.text = f"{name}: {float(np.linalg.norm(mover.velocity)):.1f} m/s"
        markers += [box, arrow, label]
    return MarkerArray(markers=markers)


def _point(position: NDArray) -> Point:
    return Point(x=float(position[0]), y=float(position[1]), z=float(position[2]))


def mover_color(identity: int) -> tuple[float, float, float]:
    """A colour (r, g, b in 0..1) per id, far from its neighbours' (golden ratio steps around the
    hue circle)."""
    hue = 6.0 * ((identity * 0.61803398875) % 1.0)
    return tuple(
        float(np.clip(abs((hue + shift) % 6.0 - 3.0) - 1.0, 0.0, 1.0)) for shift in (0.0, 4.0, 2.0)
    )  # type: ignore[return-value]
