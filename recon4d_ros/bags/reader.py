"""rosbag2 in: what a bag holds, its rig, and its messages one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags import topics as bag_topics
from recon4d_ros.bags.files import check_files
from recon4d_ros.bags.rig import RigOfBag, raw_image
from recon4d_ros.bags.storage import Channel, Storage
from recon4d_ros.bags.topics import CameraTopic, TopicInfo
from recon4d_ros.bags.transforms import Transforms
from recon4d_ros.bags.types import typestore
from recon4d_ros.cameras import video
from recon4d_ros.cameras.rig_check import contradiction
from recon4d_ros.errors import BagError, CalibrationError, ImageError, Recon4dError
from recon4d_ros.geometry import inverse
from recon4d_ros.paths import user_path
from recon4d_ros.types import (
    Camera,
    ImageBoxes,
    ImuSample,
    OdometrySample,
    RawImage,
    Rig,
    TwistSample,
)


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


@dataclass(frozen=True)
class ImuEvent:
    """A reading of an inertial sensor as it was received."""

    sample: ImuSample
    receive_ns: int


@dataclass(frozen=True)
class TwistEvent:
    """A wheel speed as it was received."""

    sample: TwistSample
    receive_ns: int


@dataclass(frozen=True)
class BoxesEvent:
    """What a detector said of an image of a camera, as it was received."""

    camera: str
    boxes: ImageBoxes
    receive_ns: int


METADATA = "metadata.yaml"
STAMPS = 5  # first messages of each topic, by which most recordings are known to be one
SUSPECTED = 100  # messages that are looked at where those came at once: a queue may have held them
UNREAL = 0.05  # of the time that the stamps span: nobody drives, and records, that fast
SLOWEST_NS, FASTEST_NS = 1_000_000_000, 5_000_000  # from image to image, where stamps are seconds
Event = ImageEvent | OdometryEvent | ImuEvent | TwistEvent | BoxesEvent


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
    asked of it. What is lost beside that goes on without: notes has a sentence for each such thing,
    in the order they were met. stamps_replaced: per camera, images whose header had no stamp and
    got the time of reception instead. lost: "<camera or topic>: <reason>" -> messages that could
    not be used. unreadable: topic -> why none of its messages can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        if self.path.name == METADATA:
            self.path = self.path.parent
        self.stamps_replaced: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.notes: list[str] = []
        check_files(self.path)
        with _readable(self.path):
            self._storage = Storage(self.path)
        self._transforms: Transforms | None = None
        self.unreadable = dict(self._storage.foreign)
        try:
            with _readable(self.path):
                self._types = typestore(self._storage.channels, self.unreadable)
        except BagError:
            self.close()
            raise
        for note in self._storage.notes:
            self.tell(note)
        for topic, reason in self.unreadable.items():
            self.tell(f"topic {topic} is not read: {reason}")

    def tell(self, note: str) -> None:
        """Keep a sentence for the user, once."""
        if note not in self.notes:
            self.notes.append(note)

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._storage.close()

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
        """All topics that can be read by name, in the bag's order."""
        topics: dict[str, TopicInfo] = {}
        for channel in self._storage.channels:
            if channel.topic in self.unreadable:
                continue
            before = topics[channel.topic].count if channel.topic in topics else 0
            topics[channel.topic] = TopicInfo(channel.type, before + channel.count)
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
        storage = self._storage
        return BagInfo(
            self.path,
            storage.kind,
            bag_topics.find_cameras(topics),
            odometry,
            truth,
            storage.start_ns,
            (storage.end_ns - storage.start_ns) * 1e-9,
            storage.message_count,
        )

    def raw_messages(
        self, topics: Sequence[str] | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive time in ns, CDR bytes) in order of reception."""
        channels = self._channels(topics)
        with _readable(self.path):
            for channel, receive_ns, data in self._storage.messages(channels) if channels else ():
                yield channel.topic, channel.type, receive_ns, data

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
        self,
        names: Sequence[str] | None = None,
        image_topics: Mapping[str, str] | None = None,
        info_topics: Mapping[str, str] | None = None,
    ) -> dict[str, CameraTopic]:
        """The bag's cameras that have images, or those asked for, in the order asked for.

        image_topics, info_topics: camera -> image topic, camera_info topic, where they are named
        and not to be found.
        """
        if not self._storage.message_count:
            raise BagError(f"bag {self.path} is empty: it holds no message")
        topics = self.topics
        every = bag_topics.find_cameras(topics)
        found = {name: camera for name, camera in every.items() if camera.count}
        for topic in topics:
            if topics[topic].type in bag_topics.UNREAD_IMAGES:
                self.tell(f"{topic} is not used: {topics[topic].type} is not read")
        if not found and not image_topics:
            found = self._colour_called_depth()
        for name, topic in (image_topics or {}).items():
            info = self._topic(topic)
            if info.type not in bag_topics.IMAGES:
                raise BagError(
                    f"bag {self.path}, camera {name}: {topic} is {info.type}: expected an image"
                )
            found = {other: one for other, one in found.items() if one.image != topic}
            found[name] = bag_topics.camera_at(name, topic, topics)
        for name, topic in (info_topics or {}).items():
            if (kind := self._topic(topic).type) != bag_topics.CAMERA_INFO:
                raise BagError(
                    f"bag {self.path}, camera {name}: {topic} is {kind}: expected"
                    f" {bag_topics.CAMERA_INFO}"
                )
            if name in found:
                found[name] = replace(found[name], camera_info=topic)
        if not found:
            raise BagError(f"bag {self.path} has no image: its topics are {', '.join(topics)}")
        if unknown := [
            name for name in (*(names or ()), *(info_topics or ())) if name not in found
        ]:
            raise BagError(
                f"bag {self.path} has no camera {unknown[0]!r}: it has {', '.join(found)}"
            )
        return {name: found[name] for name in names} if names is not None else found

    def _colour_called_depth(self) -> dict[str, CameraTopic]:
        """Colour images beside which a depth camera's name is all that speaks against them."""
        topics, found = self.topics, {}
        for topic in bag_topics.called_depth(topics):
            name = bag_topics.split(topic)[0].rsplit("/", 1)[-1]
            camera = bag_topics.camera_at(name, topic, topics)
            try:
                image = raw_image(camera, self.first(topic))
            except BagError:
                continue
            if image.encoding == "jpeg" or image.encoding[:3] in ("rgb", "bgr", "bay", "yuv"):
                self.tell(f"{topic} is taken for a camera: it is called depth, and has colours")
                found[name] = camera
        return found

    def rig(
        self,
        cameras: Sequence[str] | None = None,
        base_frame: str = "base_link",
        *,
        height: float | None = None,
        image_topics: Mapping[str, str] | None = None,
        info_topics: Mapping[str, str] | None = None,
    ) -> Rig:
        """The rig as camera_info and the fixed transforms tell it (`rig.RigOfBag`).

        height: metres of the first camera above the road, where no transform leads to base_frame:
        the car's frame is put below that camera, which is taken to look straight ahead. Raises
        BagError if a camera or its camera_info is missing, CalibrationError if what they say cannot
        be used.
        """
        every = self.cameras(None, image_topics, info_topics)
        chosen = self.cameras(cameras, image_topics, info_topics)
        return RigOfBag(self, base_frame, height).rig(chosen, every, named=cameras is not None)

    @property
    def transforms(self) -> Transforms:
        """The bag's transforms that stand still."""
        if self._transforms is None:
            self._transforms = Transforms(self)
        return self._transforms

    def static_transforms(self) -> Mapping[str, ros.StaticTransform]:
        """Edges of /tf_static by child frame; none if the bag has no such topic."""
        return self.transforms.static

    def events(
        self,
        cameras: Sequence[str] | None = None,
        odometry_topic: str | None = None,
        base_frame: str = "base_link",
        image_topics: Mapping[str, str] | None = None,
        imu_topic: str | None = None,
        twist_topic: str | None = None,
        detection_topics: Mapping[str, str] | None = None,
    ) -> Iterator[Event]:
        """Images, odometry, imu, twist and boxes in order of reception; of what was received in
        the same nanosecond images last, so that a set of images finds the odometry of its own
        stamp.

        cameras, image_topics: as in `cameras`. odometry_topic, imu_topic, twist_topic: None gives
        none (`info().odometry_topics` says what there is). What is of another frame than base_frame
        is brought to it through /tf_static. detection_topics: camera ->
        vision_msgs/Detection2DArray of its images.
        """
        boxes = {topic: name for name, topic in (detection_topics or {}).items()}
        for topic, name in boxes.items():
            self._check_detections(name, topic)
        chosen = {camera.image: camera for camera in self.cameras(cameras, image_topics).values()}
        for wanted, kind in (
            (odometry_topic, bag_topics.ODOMETRY),
            (imu_topic, bag_topics.IMU),
            (twist_topic, bag_topics.TWIST),
        ):
            if wanted and self._topic(wanted).type != kind:
                raise BagError(
                    f"bag {self.path}: {wanted} is {self.topics[wanted].type}: expected {kind}"
                )
        base = _OdometryBase(self, odometry_topic or "", base_frame)
        others = {
            topic: _FrameOfBase(self, topic, base_frame)
            for topic in (imu_topic, twist_topic)
            if topic
        }
        motion = [topic for topic in (odometry_topic, imu_topic, twist_topic) if topic]
        decoders = {name: video.VideoDecoder() for name in (one.name for one in chosen.values())}
        infos = {
            camera.camera_info: _FirstInfo(self, camera)
            for camera in chosen.values()
            if camera.camera_info
        }
        held: list[ImageEvent] = []
        for topic, kind, receive_ns, data in self._in_order(
            list(chosen), [*motion, *boxes, *infos]
        ):
            if topic in infos:
                infos[topic](data, kind)
                continue
            if held and held[0].receive_ns != receive_ns:
                yield from held
                held.clear()
            who = chosen[topic].name if topic in chosen else topic
            try:
                message = self.deserialize(data, kind, topic)
                if topic in chosen:
                    images = self._images(chosen[topic], message, receive_ns, decoders[who])
                    held.extend(ImageEvent(who, image, receive_ns) for image in images)
                elif topic in boxes:
                    said = ros.image_boxes(message)
                    if not said.stamp_ns:
                        self.lost[f"{topic}: detections without a time stamp"] += 1
                        continue
                    yield BoxesEvent(boxes[topic], said, receive_ns)
                elif topic == odometry_topic:
                    if (sample := base(message)) is not None:
                        yield OdometryEvent(sample, receive_ns)
                elif (place := others[topic](message)) is None:
                    pass
                elif topic == imu_topic:
                    yield ImuEvent(ros.imu_sample(message, place), receive_ns)
                else:
                    yield TwistEvent(ros.twist_sample(message, place), receive_ns)
            except BagError:
                self.lost[f"{who}: a message cannot be read as {kind}"] += 1
            except ImageError as error:
                self.lost[f"{who}: {error}"] += 1
        yield from held
        for name, decoder in decoders.items():
            for image in decoder.rest():
                yield ImageEvent(name, image, self._storage.end_ns)

    def _in_order(
        self, images: list[str], others: list[str]
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """The messages of these topics in order of reception; where that is not the recording's
        (a converter that writes topic by topic, and the time at which it did), in order of their
        headers' stamps, which then also stand for it."""
        counts = self.topics
        speaking = [topic for topic in images if counts[topic].count >= STAMPS]
        if not speaking or not all(self._received_at_once(topic) for topic in speaking):
            yield from self.raw_messages([*images, *others])
            return
        self.tell(
            "the times of reception are not those of the recording: its messages are taken in the"
            " order of their headers' stamps"
        )
        streams = [self._by_stamp(topic) for topic in dict.fromkeys((*others, *images))]
        for stamp_ns, topic, kind, data in merge(*streams, key=lambda one: one[0]):
            yield topic, kind, stamp_ns, data

    def _by_stamp(self, topic: str) -> Iterator[tuple[int, str, str, bytes]]:
        stamp_ns = 0
        for _, kind, _, data in self.raw_messages([topic]):
            stamp_ns = _header_ns(data) or stamp_ns  # without one it stays where it was written
            yield stamp_ns, topic, kind, data

    def _received_at_once(self, topic: str) -> bool:
        """Whether a topic's messages were received in far less time than their stamps say, and the
        stamps go as a camera's do: in other units than nanoseconds they say nothing."""
        messages = self.raw_messages([topic])
        times: list[tuple[int, int]] = []  # header's, of reception
        for count in (STAMPS, SUSPECTED):
            more = islice(messages, count - len(times))
            times.extend((_header_ns(data), receive_ns) for _, _, receive_ns, data in more)
            if len(times) < STAMPS:
                return False
            period = median(after[0] - before[0] for before, after in pairwise(times))
            received = times[-1][1] - times[0][1]
            if not (
                FASTEST_NS <= period <= SLOWEST_NS and received < UNREAL * period * (len(times) - 1)
            ):
                return False
        return True

    def _check_detections(self, camera: str, topic: str) -> None:
        if topic in self.unreadable:
            raise BagError(
                f"bag {self.path}, camera {camera}: detections of {topic} cannot be read:"
                f" {self.unreadable[topic]}"
            )
        if (kind := self._topic(topic).type) != bag_topics.DETECTIONS_2D:
            raise BagError(
                f"bag {self.path}, camera {camera}: {topic} is {kind}: expected"
                f" {bag_topics.DETECTIONS_2D}"
            )

    def _images(
        self, camera: CameraTopic, message: Any, receive_ns: int, decoder: video.VideoDecoder
    ) -> list[RawImage]:
        image = raw_image(camera, message)
        if not image.stamp_ns:
            self.stamps_replaced[camera.name] += 1
            image = replace(image, stamp_ns=receive_ns)
        return decoder(image) if video.is_video(image) else [image]

    def first(self, topic: str) -> Any:
        """A topic's first message that can be read. Raises BagError if there is none."""
        fault: BagError | None = None
        for found, kind, _, data in self.raw_messages([topic]):
            try:
                return self.deserialize(data, kind, found)
            except BagError as error:
                fault = fault or error
        if fault:
            raise fault
        raise BagError(f"bag {self.path}: {topic} is announced but holds no message")

    def _topic(self, topic: str) -> TopicInfo:
        topics = self.topics
        if topic not in topics:
            raise BagError(
                f"bag {self.path} has no topic {topic}: it has {', '.join(topics) or 'none'}"
            )
        return topics[topic]

    def _channels(self, topics: Sequence[str] | None) -> list[Channel]:
        if not self._storage.is_open:
            raise BagError(f"bag {self.path} is closed")
        for topic in topics or ():
            self._topic(topic)
        return [
            channel
            for channel in self._storage.channels
            if channel.topic not in self.unreadable and (topics is None or channel.topic in topics)
        ]


class _FirstInfo:
    """Holds a camera's later camera_info against its first one, which its calibration is of."""

    def __init__(self, reader: BagReader, camera: CameraTopic) -> None:
        self._reader, self._camera = reader, camera
        self._bytes: bytes | None = None
        self._first: Camera | None = None
        self._told = False

    def __call__(self, data: bytes, kind: str) -> None:
        if self._told or data[_STAMP_END:] == self._bytes:
            return
        try:
            message = self._reader.deserialize(data, kind)
            if not (ros.is_calibrated(message) and ros.is_finite(message)):
                return
            now = ros.camera_from_info(
                self._camera.name, message, np.eye(4), self._camera.rectified
            )
        except Recon4dError:
            return  # told where the rig is read
        if self._first is None:
            self._first, self._bytes = now, data[_STAMP_END:]
        elif fault := contradiction(self._first, now, "the first one is used throughout"):
            self._reader.tell(fault)
            self._told = True


_STAMP_END = 12  # bytes of CDR: its own header, seconds and nanoseconds


def _header_ns(data: bytes) -> int:
    """The stamp of a message that begins with its header, or a time, from its CDR bytes; 0 where
    it is too short for one."""
    if len(data) < _STAMP_END:
        return 0
    order = "little" if data[1] & 1 else "big"
    seconds = int.from_bytes(data[4:8], order, signed=True)  # type: ignore[arg-type]
    return seconds * 1_000_000_000 + int.from_bytes(data[8:12], order)  # type: ignore[arg-type]


class _FrameOfBase:
    """Where in base_frame the sensor is whose messages a topic holds."""

    def __init__(self, reader: BagReader, topic: str, base_frame: str) -> None:
        self._reader, self._topic, self._base_frame = reader, topic, base_frame
        self._known: dict[str, NDArray[np.float64] | None] = {
            "": np.eye(4),
            base_frame: np.eye(4),
        }

    def __call__(self, message: Any) -> NDArray[np.float64] | None:
        """T_base_sensor; None, counted and told, where no fixed transform leads from its frame."""
        frame = ros.frame_name(message.header.frame_id)
        if frame not in self._known:
            try:
                self._known[frame] = self._reader.transforms.lookup(self._base_frame, frame)
            except CalibrationError as error:
                self._reader.tell(f"{self._topic} is not used: {error}")
                self._known[frame] = None
        if self._known[frame] is None:
            self._reader.lost[f"{self._topic}: its frame {frame!r} is not known"] += 1
        return self._known[frame]


class _OdometryBase:
    """Odometry samples as poses of base_frame: whichever frame of the car they were measured in,
    where a fixed transform leads from it."""

    def __init__(self, reader: BagReader, topic: str, base_frame: str) -> None:
        self._reader, self._topic, self._base_frame = reader, topic, base_frame
        self._T_child_base: dict[str, NDArray[np.float64] | None] = {}
        self._standing = ros.StandingPose()

    def __call__(self, message: Any) -> OdometrySample | None:
        """None, counted and told, where the frame is not known, or the pose stands still while the
        twist says that the car moves."""
        if self._stands(message):
            self._reader.lost[f"{self._topic}: its pose stands still, its twist does not"] += 1
            return None
        sample, child = ros.odometry_sample(message), ros.frame_name(message.child_frame_id)
        if child in ("", self._base_frame):
            return sample
        if child not in self._T_child_base:
            self._T_child_base[child] = self._lookup(child)
        T_child_base = self._T_child_base[child]
        if T_child_base is None:
            self._reader.lost[f"{self._topic}: its frame {child!r} is not known"] += 1
            return None
        return OdometrySample(sample.stamp_ns, sample.T_odom_base @ T_child_base)

    def _stands(self, message: Any) -> bool:
        stands = self._standing(message)
        if stands:
            self._reader.tell(
                f"odometry of {self._topic} is not used: its pose never changes, though its twist"
                " says that the car moves"
            )
        return stands

    def _lookup(self, child: str) -> NDArray[np.float64] | None:
        try:
            return inverse(self._reader.transforms.lookup(self._base_frame, child))
        except CalibrationError as error:
            self._reader.tell(f"odometry of {self._topic} is not used: {error}")
            return None


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
