"""Topics of cameras in a running graph, found from names and types by the rules for bags."""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.node import Node

from recon4d_ros.bags.topics import (
    CAMERA_INFO,
    IMAGES,
    CameraTopic,
    TopicInfo,
    camera_at,
    find_cameras,
    split,
)

NAMED = 6  # topics that a sentence lists at most


def published(node: Node) -> dict[str, TopicInfo]:
    """Topics that somebody publishes, by name; without this node's own below its name."""
    ours = f"{node.resolve_topic_name('~')}/"
    return {
        name: TopicInfo(types[0], 1)
        for name, types in node.get_topic_names_and_types()
        if types and not name.startswith(ours) and node.count_publishers(name)
    }


def camera_of(
    name: str, image: str, given: bool, topics: dict[str, TopicInfo]
) -> CameraTopic | None:
    """What is published of a camera, or None. image: its image topic, resolved. given: the user
    named that topic; otherwise, and where nothing is published there, the camera is found by its
    name."""
    cameras = find_cameras(topics)
    here = [camera for camera in cameras.values() if split(camera.image) == split(image)]
    if here:
        return here[0]
    if image in topics and topics[image].type in IMAGES:
        return camera_at(name, image, topics)
    return None if given else cameras.get(name)


def listed(topics: dict[str, TopicInfo], types: Iterable[str] = (CAMERA_INFO,)) -> str:
    """The topics of these types, for a sentence: some of them, and how many more there are."""
    names = sorted(name for name, info in topics.items() if info.type in types)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}" or "none"
