"""rosbag2 in and out without a ROS installation: sqlite3 and MCAP, compressed or not, streamed,
pixels never copied."""

from recon4d_ros.bags.reader import (
    BagInfo,
    BagReader,
    BoxesEvent,
    Event,
    ImageEvent,
    ImuEvent,
    OdometryEvent,
    TwistEvent,
)
from recon4d_ros.bags.writer import BagWriter, rig_transforms

__all__ = [
    "BagInfo",
    "BagReader",
    "BagWriter",
    "BoxesEvent",
    "Event",
    "ImageEvent",
    "ImuEvent",
    "OdometryEvent",
    "TwistEvent",
    "rig_transforms",
]
