"""A bag through the Reconstructor, offline: every frame set is processed, in the bag's own time,
and a run repeats bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from recon4d_ros.bags import BagReader, BoxesEvent, ImageEvent, ImuEvent, OdometryEvent
from recon4d_ros.bags.topics import IMU, ODOMETRY, TRUTH, TWIST
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.errors import BagError
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import FrameSet, ImageBoxes


@dataclass(frozen=True)
class MotionTopics:
    """Where a bag says how the car moves, beside its images; None: not used. odometry:
    nav_msgs/Odometry. imu: sensor_msgs/Imu. twist: geometry_msgs/TwistWithCovarianceStamped."""

    odometry: str | None = None
    imu: str | None = None
    twist: str | None = None

    @staticmethod
    def of(
        reader: BagReader, odometry: str = "auto", imu: str = "auto", twist: str = "auto"
    ) -> MotionTopics:
        """Each the name of a topic, `none`, or `auto`: the bag's only one that is not the truth.
        Raises BagError."""
        return MotionTopics(
            _motion_topic(reader, odometry, ODOMETRY, "odometry"),
            _motion_topic(reader, imu, IMU, "imu"),
            _motion_topic(reader, twist, TWIST, "twist"),
        )


def _motion_topic(reader: BagReader, wanted: str, kind: str, what: str) -> str | None:
    if wanted == "none":
        return None
    there = [topic for topic, info in reader.topics.items() if info.type == kind]
    if wanted != "auto":
        if wanted not in there:
            raise BagError(
                f"{reader.path}: no {what} on {wanted}: the bag has {', '.join(there) or 'none'}"
            )
        return wanted
    candidates = [topic for topic in there if not topic.startswith(TRUTH)]
    if len(candidates) > 1:
        reader.tell(
            f"the bag has {what} on {', '.join(candidates)}: none is used (`--{what} TOPIC` names"
            " one)"
        )
    return candidates[0] if len(candidates) == 1 else None


def frame_sets(
    reader: BagReader,
    synchronizer: Synchronizer,
    motion: MotionTopics = MotionTopics(),
    image_topics: Mapping[str, str] | None = None,
    base_frame: str = BASE_FRAME,
    detection_topics: Mapping[str, str] | None = None,
    boxes: Callable[[str, ImageBoxes], None] = lambda camera, boxes: None,
) -> Iterator[FrameSet]:
    """The bag's frame sets in order; time is the bag's, so waiting rules act as they would have on
    the vehicle.

    image_topics: camera -> topic, where a rig file names it. base_frame: the rig's, to which
    odometry, imu and twist are brought. detection_topics: camera -> topic of boxes in its images;
    boxes(camera, what a message says): called as each comes.
    """
    for event in reader.events(
        synchronizer.cameras,
        motion.odometry,
        base_frame,
        image_topics,
        motion.imu,
        motion.twist,
        detection_topics,
    ):
        if isinstance(event, ImageEvent):
            yield from synchronizer.add_image(event.camera, event.image, event.receive_ns)
        elif isinstance(event, OdometryEvent):
            synchronizer.add_odometry(event.sample, event.receive_ns)
        elif isinstance(event, ImuEvent):
            synchronizer.add_imu(event.sample, event.receive_ns)
        elif isinstance(event, BoxesEvent):
            boxes(event.camera, synchronizer.corrected(event.camera, event.boxes))
        else:
            synchronizer.add_twist(event.sample, event.receive_ns)
    yield from synchronizer.flush()
