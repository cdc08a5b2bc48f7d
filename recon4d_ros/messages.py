"""ROS messages to our nouns, by their fields alone: the same functions serve rosbags' types
(offline) and rclpy's (the node)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.image_header import compressed_kind
from recon4d_ros.errors import CalibrationError, MessageError
from recon4d_ros.geometry import inverse, se3_from_quaternion
from recon4d_ros.types import (
    DISTORTION_COEFFICIENTS,
    Camera,
    DynamicObject,
    OdometrySample,
    RawImage,
)

_MODEL_ALIASES = {
    "fisheye": "equidistant",
    "kannala_brandt": "equidistant",
    "kannala_brandt4": "equidistant",
    "radtan": "plumb_bob",
    "": "none",
}


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
    named = (
        "jpeg" if "jpeg" in text or "jpg" in text else "png" if "png" in text else text or "empty"
    )
    return RawImage(
        stamp_ns(message.header.stamp),
        compressed_kind(data) or named,
        data,
        received_ns=received_ns,
    )


def odometry_sample(message: Any) -> OdometrySample:
    """A nav_msgs/Odometry's pose. A quaternion that is no rotation gives a NaN pose, which the
    synchronizer rejects and counts."""
    pose = message.pose.pose
    return OdometrySample(stamp_ns(message.header.stamp), _pose(pose.position, pose.orientation))


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
    )


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
    image_rect_color, in whichever transport)."""
    return "rect" in image_topic.removesuffix("/compressed").rsplit("/", 1)[-1].lower()


def image_size(message: Any) -> tuple[int, int]:
    """(width, height) of the images that a sensor_msgs/CameraInfo is for: its region of interest,
    binned."""
    roi = message.roi
    width, height = int(roi.width) or int(message.width), int(roi.height) or int(message.height)
    return width // (int(message.binning_x) or 1), height // (int(message.binning_y) or 1)


def camera_from_info(
    name: str, message: Any, T_base_camera: NDArray[np.float64], rectified: bool = False
) -> Camera:
    """A Camera from sensor_msgs/CameraInfo, its binning and region of interest applied.

    rectified: the image is (image_rect), so P is its matrix and there is no distortion; the frame
    is taken to be the rectified one. Distortion whose coefficients are all zero is `none`. Raises
    CalibrationError.
    """
    k = (
        np.array(message.p, np.float64).reshape(3, 4)[:, :3]
        if rectified
        else np.array(message.k, np.float64).reshape(3, 3)
    )
    d = tuple(float(value) for value in message.d)
    model = str(message.distortion_model).lower()
    model = _MODEL_ALIASES.get(model, model)
    if rectified or (not any(d) and model in DISTORTION_COEFFICIENTS):
        model, d = "none", ()
    elif model == "plumb_bob" and len(d) == 8:
        # the same polynomial with its denominator given: some drivers name it so
        model = "rational_polynomial"
    roi = message.roi
    binning = np.array([int(message.binning_x) or 1, int(message.binning_y) or 1], np.float64)
    k = k.copy()
    k[:2, 2] = (
        k[:2, 2] - (int(roi.x_offset), int(roi.y_offset)) + 0.5
    ) / binning - 0.5  # pixel (0, 0) is the first pixel's centre
    k[0, :2] /= binning[0]
    k[1, 1] /= binning[1]
    return Camera(name, *image_size(message), k, T_base_camera, model, d)


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
