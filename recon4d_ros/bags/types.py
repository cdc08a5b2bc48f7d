"""The message types that bags are read and written with: Jazzy's, and our own from their .msg text,
all without ROS."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rosbags.interfaces import MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from recon4d_ros.bags.storage import Channel

PACKAGE = "recon4d_msgs"
# Boxes in images as detectors record them (vision_msgs 4); likewise.
_OF_BOXES = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": (
        "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n"
    ),
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id\n"
    ),
    "vision_msgs/msg/Detection2DArray": (
        "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n"
    ),
}
# Video as it is recorded by others' packages; a bag of sqlite3 may come without their definitions.
VIDEO = {
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": (
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
        "uint8 flags\nbool is_bigendian\nuint8[] data\n"
    ),
    "foxglove_msgs/msg/CompressedVideo": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    ),
}


def typestore(
    channels: Iterable[Channel] = (), unreadable: dict[str, str] | None = None
) -> Typestore:
    """Jazzy's types, then what the bag itself defines, then recon4d_msgs.

    In that order, so that a bag recorded with an older recon4d_msgs is read by its own definition.
    unreadable: gets topic -> why, of topics whose definition cannot be read.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    for channel in channels:
        definition = channel.definition
        if channel.type in store.fielddefs or definition.format is MessageDefinitionFormat.NONE:
            continue
        try:
            if definition.format is MessageDefinitionFormat.IDL:
                types = get_types_from_idl(definition.data)
            else:
                types = get_types_from_msg(definition.data, channel.type)
            store.register(
                {name: fields for name, fields in types.items() if name not in store.fielddefs}
            )
        except Exception as error:  # the parser's own, and whatever it trips over: the text is bad
            if unreadable is not None:
                reason = " ".join(str(error).split()) or type(error).__name__
                unreadable[channel.topic] = (
                    f"the definition of {channel.type} cannot be read: {reason[:120]}"
                )
    ours = {}
    texts = {
        f"{PACKAGE}/msg/{path.stem}": path.read_text(encoding="utf-8") for path in message_files()
    }
    for name, text in {**texts, **VIDEO, **_OF_BOXES}.items():
        types = get_types_from_msg(text, name)
        ours.update({name: fields for name, fields in types.items() if name not in store.fielddefs})
    if ours:
        store.register(ours)
    return store


def message_files() -> list[Path]:
    """Our .msg files: from the source tree, else from the first install prefix that has them; none
    found gives none."""
    for folder in _folders():
        if files := sorted(folder.glob("*.msg")):
            return files
    return []


def _folders() -> Iterator[Path]:
    here = Path(__file__).resolve()
    yield here.parents[2] / "msg" / "msg"
    prefixes = [
        *map(Path, filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))),
        *here.parents,
    ]
    for prefix in prefixes:
        yield prefix / "share" / PACKAGE / "msg"
