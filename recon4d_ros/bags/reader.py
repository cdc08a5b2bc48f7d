"""rosbag2 in: what a bag holds, its rig, and its messages one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from recon4d_ros import messages as ros
from recon4d_ros.bags import topics as bag_topics
from recon4d_ros.bags.files import check_files
from recon4d_ros.bags.topics import CameraTopic, TopicInfo
from recon4d_ros.bags.types import typestore
from recon4d_ros.cameras.image_header import compressed_size
from recon4d_ros.errors import BagError, CalibrationError, Recon4dError
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Camera, OdometrySample, RawImage, Rig


@dataclass(frozen=True)
class ImageEvent:
    """An image as it was received. receive_ns: when the recorder got it (log time); the image's own
    stamp is its header's."""

    camera: str
    image: RawImage
    receive_ns: int


@dataclass(frozen=True)
class OdometryEvent:
    """An odometry sample as it was received."""

    sample: OdometrySample
    receive_ns: int


Event = ImageEvent | OdometryEvent


@dataclass(frozen=True)
class BagInfo:
    """What is in a bag. cameras: by name, in the bag's order. odometry_topics: without
    /ground_truth's."""

    path: Path
    storage: str
    cameras: Mapping[str, CameraTopic]
    odometry_topics: tuple[str, ...]
    truth_topics: tuple[str, ...]
    start_ns: int
    duration_s: float
    message_count: int

    @property
    def has_ground_truth(self) -> bool:
        return bool(self.truth_topics)


class BagReader:
    """A bag to read: a rosbag2 folder, or one .mcap or .db3 file. A context manager; nothing is
    loaded before it is asked for.

    Raises BagError with one sentence if the bag is missing, truncated, damaged, or lacks what was
    asked of it. stamps_replaced: per camera, images whose header had no stamp and got the time of
    reception instead.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stamps_replaced: Counter[str] = Counter()
        check_files(self.path)
        with _readable(self.path):
            self._reader = Reader(self.path)
            self._reader.open()
        try:
            with _readable(self.path):
                self._types = typestore(self._reader.connections)
        except BagError:
            self.close()
            raise

    def close(self) -> None:
        """Close the files; safe to call twice."""
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def topics(self) -> dict[str, TopicInfo]:
        """All topics by name, in the bag's order."""
        topics: dict[str, TopicInfo] = {}
        for connection in self._reader.connections:
            before = topics[connection.topic].count if connection.topic in topics else 0
            topics[connection.topic] = TopicInfo(connection.msgtype, before + connection.msgcount)
        return topics

    def info(self) -> BagInfo:
        """A summary, from the bag's index alone."""
        topics = self.topics
        truth = tuple(topic for topic in topics if topic.startswith(bag_topics.TRUTH))
        odometry = tuple(
            topic
            for topic, info in topics.items()
            if info.type == bag_topics.ODOMETRY and topic not in truth
        )
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        storage = (
            "sqlite3" if any(".db3" in file.suffixes for file in files) else "mcap"
        )  # .db3.zstd where files are compressed
        count = self._reader.message_count
        start, duration = (
            (self._reader.start_time, (self._reader.duration - 1) * 1e-9) if count else (0, 0.0)
        )
        return BagInfo(
            self.path,
            storage,
            bag_topics.find_cameras(topics),
            odometry,
            truth,
            start,
            duration,
            count,
        )

    def raw_messages(
        self, topics: Sequence[str] | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive time in ns, CDR bytes) in order of reception."""
        connections = self._connections(topics)
        with _readable(self.path):
            for connection, receive_ns, data in (
                self._reader.messages(connections) if connections else ()
            ):
                yield connection.topic, connection.msgtype, receive_ns, data

    def messages(self, topics: Sequence[str] | None = None) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive time in ns, message) in order of reception; array fields are views of the
        bytes read, not to be written to."""
        for topic, message_type, receive_ns, data in self.raw_messages(topics):
            yield topic, receive_ns, self.deserialize(data, message_type, topic)

    def deserialize(self, data: bytes, message_type: str, topic: str = "") -> Any:
        """One message from its CDR bytes. Raises BagError."""
        try:
            return self._types.deserialize_cdr(memoryview(data), message_type)
        except Exception as error:  # whatever the generated code trips over, the cause is the bytes
            raise BagError(
                f"bag {self.path}: a message of {topic or message_type} cannot be read as"
                f" {message_type}: {error}"
            ) from error

    def cameras(
        self, names: Sequence[str] | None = None, image_topics: Mapping[str, str] | None = None
    ) -> dict[str, CameraTopic]:
        """The bag's cameras that have images, or those asked for, in the order asked for.

        image_topics: camera -> image topic, where a rig file names it and the topic's namespace is
        not the camera's name.
        """
        if not self._reader.message_count:
            raise BagError(f"bag {self.path} is empty: it holds no message")
        every = bag_topics.find_cameras(self.topics)
        found = {name: camera for name, camera in every.items() if camera.count}
        for name, topic in (image_topics or {}).items():
            info = self._topic(topic)
            if info.type not in (bag_topics.IMAGE, bag_topics.COMPRESSED_IMAGE):
                raise BagError(
                    f"bag {self.path}, camera {name}: {topic} is {info.type}: expected an image"
                )
            found[name] = bag_topics.camera_at(name, topic, self.topics)
        if not found:
            raise BagError(f"bag {self.path} has no image: its topics are {', '.join(self.topics)}")
        if unknown := [name for name in names or () if name not in found]:
            raise BagError(
                f"bag {self.path} has no camera {unknown[0]!r}: it has {', '.join(found)}"
            )
        return {name: found[name] for name in names} if names is not None else found

    def rig(self, cameras: Sequence[str] | None = None, base_frame: str = "base_link") -> Rig:
        """The rig as camera_info and /tf_static tell it; each camera's size is held against its
        first image.

        Raises BagError if a camera or its camera_info is missing, CalibrationError if what they say
        cannot be used.
        """
        chosen = self.cameras(cameras)
        edges = self.static_transforms()
        return Rig(
            self.path.stem,
            tuple(self._camera(camera, edges, base_frame) for camera in chosen.values()),
        )

    def static_transforms(self) -> dict[str, ros.StaticTransform]:
        """Edges of /tf_static by child frame; none if the bag has no such topic."""
        if bag_topics.TF_STATIC not in self.topics:
            return {}
        return ros.static_transforms(
            message for _, _, message in self.messages([bag_topics.TF_STATIC])
        )

    def events(
        self,
        cameras: Sequence[str] | None = None,
        odometry_topic: str | None = None,
        base_frame: str = "base_link",
        image_topics: Mapping[str, str] | None = None,
    ) -> Iterator[Event]:
        """Images and odometry in order of reception; of what was received in the same nanosecond,
        odometry first, so that a set of images finds the odometry of its own stamp.

        cameras, image_topics: as in `cameras`. odometry_topic: None gives no odometry
        (`info().odometry_topics` says what there is). Odometry of another frame than base_frame is
        brought to it through /tf_static.
        """
        chosen = {camera.image: camera for camera in self.cameras(cameras, image_topics).values()}
        if odometry_topic and self._topic(odometry_topic).type != bag_topics.ODOMETRY:
            raise BagError(
                f"bag {self.path}: {odometry_topic} is {self.topics[odometry_topic].type}: expected"
                f" {bag_topics.ODOMETRY}"
            )
        edges = self.static_transforms() if odometry_topic else {}
        held: list[ImageEvent] = []
        for topic, receive_ns, message in self.messages(
            [*chosen, *([odometry_topic] if odometry_topic else [])]
        ):
            if held and held[0].receive_ns != receive_ns:
                yield from held
                held.clear()
            if topic in chosen:
                held.append(
                    ImageEvent(
                        chosen[topic].name,
                        self._image(chosen[topic], message, receive_ns),
                        receive_ns,
                    )
                )
            else:
                yield OdometryEvent(
                    _to_base(
                        ros.odometry_sample(message), message.child_frame_id, edges, base_frame
                    ),
                    receive_ns,
                )
        yield from held

    def _image(self, camera: CameraTopic, message: Any, receive_ns: int) -> RawImage:
        if not ros.stamp_ns(message.header.stamp):
            self.stamps_replaced[camera.name] += 1
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(
                receive_ns, 1_000_000_000
            )
        return _raw(camera, message)

    def _camera(
        self, camera: CameraTopic, edges: Mapping[str, ros.StaticTransform], base_frame: str
    ) -> Camera:
        where = f"bag {self.path}, camera {camera.name}"
        topics = self.topics
        if camera.camera_info is None or not topics[camera.camera_info].count:
            known = [
                topic
                for topic, info in topics.items()
                if info.type == bag_topics.CAMERA_INFO and info.count
            ]
            expected = f"{camera.image.removesuffix('/compressed').rsplit('/', 1)[0]}/camera_info"
            raise BagError(
                f"{where}: no camera_info on {expected}: the bag has"
                f" {', '.join(known) or 'none at all'}"
            )
        info = self._first(camera.camera_info)
        image_message = self._first(camera.image)
        frame = info.header.frame_id or image_message.header.frame_id
        try:
            pose = ros.lookup(edges, base_frame, frame)
            built = ros.camera_from_info(camera.name, info, pose, camera.rectified)
        except CalibrationError as error:
            raise CalibrationError(f"{where}: {error}") from error
        image = _raw(camera, image_message)
        size = (
            compressed_size(image.data)
            if camera.type == bag_topics.COMPRESSED_IMAGE
            else (image.width, image.height)
        )
        if size is not None and size != (
            built.width,
            built.height,
        ):  # a first image that is broken says nothing of the others
            raise CalibrationError(
                f"{where}: camera_info is for {built.width}x{built.height} pixels, the images have"
                f" {size[0]}x{size[1]}"
            )
        return built

    def _first(self, topic: str) -> Any:
        for _, _, message in self.messages([topic]):
            return message
        raise BagError(f"bag {self.path}: {topic} is announced but holds no message")

    def _topic(self, topic: str) -> TopicInfo:
        topics = self.topics
        if topic not in topics:
            raise BagError(
                f"bag {self.path} has no topic {topic}: it has {', '.join(topics) or 'none'}"
            )
        return topics[topic]

    def _connections(self, topics: Sequence[str] | None) -> list[Connection]:
        if not self._reader.is_open:
            raise BagError(f"bag {self.path} is closed")
        for topic in topics or ():
            self._topic(topic)
        return [
            connection
            for connection in self._reader.connections
            if topics is None or connection.topic in topics
        ]


def _raw(camera: CameraTopic, message: Any) -> RawImage:
    return (
        ros.raw_image(message)
        if camera.type == bag_topics.IMAGE
        else ros.raw_compressed_image(message)
    )


def _to_base(
    sample: OdometrySample, child: str, edges: Mapping[str, ros.StaticTransform], base_frame: str
) -> OdometrySample:
    child = ros.frame_name(child)
    if child in ("", base_frame):
        return sample
    return OdometrySample(
        sample.stamp_ns, sample.T_odom_base @ inverse(ros.lookup(edges, base_frame, child))
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Anything that the storage code trips over is the file's fault, whatever its class: rosbags,
    SQLite and zstd each have their own."""
    try:
        yield
    except Recon4dError:
        raise
    except Exception as error:
        raise BagError(
            f"bag {path} cannot be read, it is damaged or not a rosbag2 bag: {_sentence(error)}"
        ) from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
