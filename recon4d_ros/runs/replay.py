"""A bag through the Reconstructor, offline: every frame set is processed, in the bag's own time,
and a run repeats bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from recon4d_ros.bags import BagReader, ImageEvent, OdometryEvent
from recon4d_ros.bags.topics import ODOMETRY, TRUTH
from recon4d_ros.cameras.rig import BASE_FRAME
from recon4d_ros.errors import BagError
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import FrameSet


def odometry_topic(reader: BagReader, wanted: str) -> str | None:
    """The odometry to use: `wanted` if it names a topic, None for `none`, and for `auto` the bag's
    only one that is not the truth."""
    if wanted == "none":
        return None
    there = [topic for topic, info in reader.topics.items() if info.type == ODOMETRY]
    if wanted != "auto":
        if wanted not in there:
            raise BagError(
                f"{reader.path}: no odometry on {wanted}: the bag has {', '.join(there) or 'none'}"
            )
        return wanted
    candidates = [topic for topic in there if not topic.startswith(TRUTH)]
    return candidates[0] if len(candidates) == 1 else None


def frame_sets(
    reader: BagReader,
    synchronizer: Synchronizer,
    odometry: str | None = None,
    image_topics: Mapping[str, str] | None = None,
    base_frame: str = BASE_FRAME,
) -> Iterator[FrameSet]:
    """The bag's frame sets in order; time is the bag's, so waiting rules act as they would have on
    the vehicle.

    image_topics: camera -> topic, where a rig file names it. base_frame: the rig's, to which
    odometry is brought.
    """
    for event in reader.events(synchronizer.cameras, odometry, base_frame, image_topics):
        if isinstance(event, ImageEvent):
            yield from synchronizer.add_image(event.camera, event.image, event.receive_ns)
        elif isinstance(event, OdometryEvent):
            synchronizer.add_odometry(event.sample, event.receive_ns)
    yield from synchronizer.flush()
