"""What the publishers of a topic offer, and the QoS to ask them for."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

BEST_EFFORT, RELIABLE = (
    QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=reliability)
    for reliability in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE)
)
"""A short queue: of images that came while we were busy the newest win."""
EVERY_BEST_EFFORT, EVERY_RELIABLE = (
    QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50, reliability=reliability)
    for reliability in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE)
)
"""For video, whose packets take those before them."""
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def image_qos(node: Node, topic: str, so_far: QoSProfile = BEST_EFFORT) -> QoSProfile:
    """For images: reliable where every publisher offers it, else best effort; `so_far` while there
    is no publisher.

    A large image is many packets, and with best effort one that is lost takes the whole image with
    it. A reliable subscription does not match a publisher that only offers best effort.
    """
    publishers = node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    offers = [one.qos_profile.reliability == ReliabilityPolicy.RELIABLE for one in publishers]
    if not offers:
        return RELIABLE if so_far in (RELIABLE, EVERY_RELIABLE) else BEST_EFFORT
    return RELIABLE if all(offers) else BEST_EFFORT


def is_latched(node: Node, topic: str) -> bool:
    """Whether a publisher keeps its last message for those who come late (transient local)."""
    return any(
        one.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        for one in node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    )
