"""rosbag2 out: a new bag, message by message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from recon4d_ros.bags.types import typestore
from recon4d_ros.errors import BagError, ImageError, OutputError, Recon4dError
from recon4d_ros.geometry import quaternion
from recon4d_ros.paths import user_path
from recon4d_ros.types import Camera, Rig

_FOREVER = QosTime(9223372036, 854775807)
_LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    False,
)
_CHANNELS = {
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "16UC1": (np.uint16, 1),
    "32FC1": (np.float32, 1),
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    **{f"bayer_{order}8": (np.uint8, 1) for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{order}16": (np.uint16, 1) for order in ("rggb", "bggr", "gbrg", "grbg")},
}
_TO_OPENCV = {"rgb8": cv2.COLOR_RGB2BGR, "rgba8": cv2.COLOR_RGBA2BGR, "bgra8": cv2.COLOR_BGRA2BGR}


class BagWriter:
    """A new rosbag2 folder. A context manager: leaving it writes index and metadata; leaving it by
    an exception leaves no valid bag.

    storage: `mcap` or `sqlite3`. compress_chunks: zstd on MCAP's chunks; off, because images are
    compressed already. Raises OutputError if the folder exists already, cannot be written, or the
    disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        storage: Literal["mcap", "sqlite3"] = "mcap",
        compress_chunks: bool = False,
    ) -> None:
        self.path = user_path(path)
        if self.path.exists():
            raise OutputError(f"bag {self.path} exists already: give a folder that does not")
        self._types = typestore()
        self._connections: dict[str, Connection] = {}
        with _writable(self.path):
            self._writer = Writer(
                self.path, version=9, storage_plugin=StoragePlugin[storage.upper()]
            )
            if compress_chunks and storage == "mcap":
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abort()

    def close(self) -> None:
        """Write index and metadata."""
        try:
            with _writable(self.path):
                self._writer.close()
        except OutputError:
            self._abort()
            raise

    def _abort(self) -> None:
        with suppress(OSError):  # what is left to be written finds no room either
            self._writer.abort()

    def type(self, name: str) -> Any:
        """The class of a message type, to make messages of:
        writer.type("std_msgs/msg/Header")(...)."""
        try:
            return self._types.types[name]
        except KeyError:
            raise BagError(
                f"message type {name} is not known: expected one of ROS 2 Jazzy's or of"
                " recon4d_msgs"
            ) from None

    def write(self, topic: str, typename: str, message: Any, receive_ns: int) -> None:
        """Any message, of `type(typename)`."""
        self.type(typename)
        self.write_raw(topic, typename, self._types.serialize_cdr(message, typename), receive_ns)

    def write_raw(
        self,
        topic: str,
        typename: str,
        data: bytes | memoryview,
        receive_ns: int,
        latched: bool = False,
    ) -> None:
        """Any message as CDR bytes (as rclpy gives them when it subscribes raw). latched: a player
        is to offer it to late readers."""
        with _writable(self.path):
            if topic not in self._connections:
                self.type(typename)
                qos = [_LATCHED] if latched or topic == "/tf_static" else []
                self._connections[topic] = self._writer.add_connection(
                    topic, typename, typestore=self._types, offered_qos_profiles=qos
                )
            elif self._connections[topic].msgtype != typename:
                raise BagError(
                    f"bag {self.path}: {topic} is {self._connections[topic].msgtype}, not"
                    f" {typename}"
                )
            self._writer.write(self._connections[topic], int(receive_ns), data)

    def write_image(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        array: NDArray,
        encoding: str,
        compress: Literal["jpeg", "png"] | None = None,
        quality: int = 95,
        receive_ns: int | None = None,
    ) -> None:
        """An image [h, w] or [h, w, c] in a ROS encoding; compressed, it becomes a CompressedImage
        (its topic should end /compressed).

        quality: JPEG's, 0 to 100. receive_ns: the stamp unless given.
        """
        dtype, channels = _CHANNELS.get(encoding, (None, 0))
        if (
            array.dtype != dtype
            or array.shape[2:] != (() if channels == 1 else (channels,))
            or array.ndim < 2
        ):
            raise ImageError(
                f"{topic}: an array of {array.dtype} {array.shape} is not {encoding}: expected one"
                f" of {', '.join(_CHANNELS)}"
            )
        receive_ns = stamp_ns if receive_ns is None else receive_ns
        header = self.header(stamp_ns, frame_id)
        if compress is None:
            array = np.ascontiguousarray(array)
            message = self.type("sensor_msgs/msg/Image")(
                header,
                array.shape[0],
                array.shape[1],
                encoding,
                0,
                array[0].nbytes,
                array.reshape(-1).view(np.uint8),
            )
            self.write(topic, "sensor_msgs/msg/Image", message, receive_ns)
            return
        pixels = cv2.cvtColor(array, _TO_OPENCV[encoding]) if encoding in _TO_OPENCV else array
        options = (
            [cv2.IMWRITE_JPEG_QUALITY, quality]
            if compress == "jpeg"
            else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        )
        data = cv2.imencode(f".{compress}", pixels, options)[1].reshape(-1)
        stored = "bgr8" if channels > 1 else "mono16" if dtype is np.uint16 else "mono8"
        text = (
            f"{encoding}; {compress}"
            if encoding in ("16UC1", "32FC1")
            else f"{encoding}; {compress} compressed {stored}"
        )
        self.write(
            topic,
            "sensor_msgs/msg/CompressedImage",
            self.type("sensor_msgs/msg/CompressedImage")(header, text, data),
            receive_ns,
        )

    def write_camera_info(self, topic: str, stamp_ns: int, frame_id: str, camera: Camera) -> None:
        """A camera's calibration; `none` is written as plumb_bob with zeros, as ROS drivers do."""
        k = np.asarray(camera.k, np.float64)
        p = np.hstack([k, np.zeros((3, 1))])
        model, d = (
            (camera.distortion_model, camera.d)
            if camera.distortion_model != "none"
            else ("plumb_bob", (0.0,) * 5)
        )
        roi = self.type("sensor_msgs/msg/RegionOfInterest")(0, 0, 0, 0, False)
        matrices = (np.array(d, np.float64), k.reshape(-1), np.eye(3).reshape(-1), p.reshape(-1))
        header = self.header(stamp_ns, frame_id)
        message = self.type("sensor_msgs/msg/CameraInfo")(
            header, camera.height, camera.width, model, *matrices, 0, 0, roi
        )
        self.write(topic, "sensor_msgs/msg/CameraInfo", message, stamp_ns)

    def write_tf_static(
        self, stamp_ns: int, transforms: Sequence[tuple[str, str, NDArray[np.float64]]]
    ) -> None:
        """/tf_static from (parent frame, child frame, T_parent_child)."""
        stamped = [
            self.type("geometry_msgs/msg/TransformStamped")(
                self.header(stamp_ns, parent),
                child,
                self.type("geometry_msgs/msg/Transform")(*self._pose(pose, "Vector3")),
            )
            for parent, child, pose in transforms
        ]
        self.write(
            "/tf_static",
            "tf2_msgs/msg/TFMessage",
            self.type("tf2_msgs/msg/TFMessage")(stamped),
            stamp_ns,
        )

    def write_odometry(
        self,
        topic: str,
        stamp_ns: int,
        pose: NDArray[np.float64],
        frame_id: str = "odom",
        child_frame_id: str = "base_link",
        twist: NDArray[np.float64] | None = None,
    ) -> None:
        """nav_msgs/Odometry: T_frame_child and the twist (vx vy vz wx wy wz in the child frame, m/s
        and rad/s; zero if not given)."""
        vector = self.type("geometry_msgs/msg/Vector3")
        linear, angular = (
            vector(*map(float, part))
            for part in np.reshape(np.zeros(6) if twist is None else twist, (2, 3))
        )
        placed = self.type("geometry_msgs/msg/Pose")(*self._pose(pose, "Point"))
        with_pose = self.type("geometry_msgs/msg/PoseWithCovariance")(placed, np.zeros(36))
        with_twist = self.type("geometry_msgs/msg/TwistWithCovariance")(
            self.type("geometry_msgs/msg/Twist")(linear, angular), np.zeros(36)
        )
        message = self.type("nav_msgs/msg/Odometry")(
            self.header(stamp_ns, frame_id), child_frame_id, with_pose, with_twist
        )
        self.write(topic, "nav_msgs/msg/Odometry", message, stamp_ns)

    def write_points(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        xyz: NDArray[np.float32],
        rgb: NDArray[np.uint8] | None = None,
    ) -> None:
        """PointCloud2 of x y z (metres, float32 [K, 3]) and, if given, rgb (uint8 [K, 3]) packed as
        RViz and PCL read it."""
        columns = [np.asarray(xyz, np.float32)]
        if rgb is not None:
            red, green, blue = (rgb[:, channel].astype(np.uint32) for channel in range(3))
            columns.append((red << 16 | green << 8 | blue).view(np.float32)[:, None])
        table = np.ascontiguousarray(np.hstack(columns))
        field = self.type("sensor_msgs/msg/PointField")
        fields = [
            field(name, 4 * index, 7, 1)
            for index, name in enumerate(("x", "y", "z", "rgb")[: table.shape[1]])
        ]  # 7: FLOAT32
        data, dense = table.reshape(-1).view(np.uint8), bool(np.isfinite(xyz).all())
        header, step = self.header(stamp_ns, frame_id), 4 * table.shape[1]
        message = self.type("sensor_msgs/msg/PointCloud2")(
            header, 1, len(table), fields, False, step, table.nbytes, data, dense
        )
        self.write(topic, "sensor_msgs/msg/PointCloud2", message, stamp_ns)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A std_msgs/Header."""
        seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
        return self.type("std_msgs/msg/Header")(
            self.type("builtin_interfaces/msg/Time")(seconds, nanoseconds), frame_id
        )

    def _pose(self, pose: NDArray[np.float64], position_type: str) -> tuple[Any, Any]:
        position = self.type(f"geometry_msgs/msg/{position_type}")(*map(float, pose[:3, 3]))
        return position, self.type("geometry_msgs/msg/Quaternion")(*map(float, quaternion(pose)))


def rig_transforms(
    rig: Rig, base_frame: str = "base_link"
) -> list[tuple[str, str, NDArray[np.float64]]]:
    """A rig's extrinsics for `write_tf_static`: base_link -> camera's name."""
    return [(base_frame, camera.name, camera.T_base_camera) for camera in rig.cameras]


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """The storage code's many exceptions (OSError, SQLite's) as one: where the bag cannot be
    written, the disk or the folder is why."""
    try:
        yield
    except Recon4dError:
        raise
    except OSError as error:
        raise OutputError(f"bag {path} cannot be written: {error.strerror or error}") from error
    except Exception as error:
        raise OutputError(
            f"bag {path} cannot be written: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
