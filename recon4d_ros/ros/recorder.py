"""`recon4d_recorder`: topics from DDS into a rosbag2 bag, byte for byte, with the readers' QoS
fitted to the writers'.

Messages stay serialized: nothing is decoded on the way to the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from recon4d_ros.bags import BagWriter
from recon4d_ros.errors import BagError, MessageError, Recon4dError
from recon4d_ros.paths import user_path
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.ros.player import split_ros_args
from recon4d_ros.ros.process import EXIT_BAD_INPUT, lean_executor, ros_process

NEVER = frozenset(
    ["/parameter_events", "/rosout"]
)  # of every node; asked for by name they are recorded
LOOK = 0.2  # seconds between two looks at the graph
STEADY = 1.0  # seconds without a new topic after which it is said that all are there
GONE = 1.0
LAST = 1.5  # seconds a stopped recorder goes on at most, if messages keep coming
DRAIN = (
    0.3  # seconds without a message after which a stopped recorder believes that it has them all
)


@dataclass(frozen=True)
class RecorderOptions:
    """out: a folder that does not exist. topics: names; nodes: all that these nodes publish.

    until_gone: end when this node, once seen, is gone. idle: end so many seconds after the last
    message (0 = never). sim_time: receive times from /clock.
    """

    out: Path
    topics: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    until_gone: str = ""
    idle: float = 0.0
    sim_time: bool = False
    storage: str = "mcap"


def fitting_qos(writers: Sequence[TopicEndpointInfo]) -> QoSProfile:
    """The strongest QoS that still matches every writer, with a history deep enough that a burst is
    kept."""
    reliable = all(
        writer.qos_profile.reliability == ReliabilityPolicy.RELIABLE for writer in writers
    )
    latched = all(
        writer.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for writer in writers
    )
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1000,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class Recorder(Node):
    """Looks for its topics until it is stopped. counts: messages per topic; lost: those the
    middleware says it lost."""

    def __init__(self, writer: BagWriter, options: RecorderOptions) -> None:
        super().__init__("recon4d_recorder")
        if options.sim_time:
            from rclpy.parameter import Parameter

            self.set_parameters([Parameter("use_sim_time", value=True)])
        self._writer, self._options = writer, options
        self.counts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.fault: Recon4dError | None = None
        self._refused: set[str] = set()
        self._early: list[tuple[str, str, bytes, bool]] = []  # what came before /clock did
        self._last_new = self._last_message = time.monotonic()
        self._seen = False
        self._gone_since: float | None = None
        self._said_ready = False

    def look(self) -> None:
        """Subscribe to what is new in the graph."""
        for topic in self._wanted():
            if topic in self.counts or topic in self._refused:
                continue
            writers = self.get_publishers_info_by_topic(topic)
            if writers:
                self._subscribe(topic, writers)
        if (
            not self._said_ready
            and self.counts
            and time.monotonic() - self._last_new > STEADY
            and not self._missing()
        ):
            self._said_ready = True
            print(f"ready: {len(self.counts)} topics", flush=True)

    def _wanted(self) -> set[str]:
        wanted = set(self._options.topics)
        present = dict(self.get_node_names_and_namespaces())
        for full in self._options.nodes:
            name = full.rsplit("/", 1)[-1]
            if name in present:
                wanted |= {
                    topic
                    for topic, _ in self.get_publisher_names_and_types_by_node(name, present[name])
                } - NEVER
        return wanted - set(self._options.exclude)

    def _missing(self) -> set[str]:
        nodes = set(self.get_node_names())
        absent = {node for node in self._options.nodes if node.rsplit("/", 1)[-1] not in nodes}
        return absent | (set(self._options.topics) - set(self.counts) - self._refused)

    def _subscribe(self, topic: str, writers: Sequence[TopicEndpointInfo]) -> None:
        type_name = writers[0].topic_type
        try:
            kind = message_class(type_name)
            self._writer.type(type_name)  # others' (bond, vision_msgs) have no definition there
        except (BagError, MessageError) as error:
            self._refused.add(topic)
            self.get_logger().warning(f"{topic} is not recorded: {error}")
            return
        qos = fitting_qos(writers)
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL

        def lost(event: Any) -> None:
            self.lost[topic] += event.total_count_change

        def take(data: Any) -> None:  # raw: CDR bytes
            self._take(topic, type_name, data, latched)

        self.create_subscription(
            kind,
            topic,
            take,
            qos,
            raw=True,
            event_callbacks=SubscriptionEventCallbacks(message_lost=lost),
        )
        self.counts[topic] += 0
        self._last_new = time.monotonic()

    def _take(self, topic: str, type_name: str, data: bytes, latched: bool) -> None:
        self._last_message = time.monotonic()
        self.counts[topic] += 1
        now = self.get_clock().now().nanoseconds
        if now == 0:  # sim time, and no /clock yet
            self._early.append((topic, type_name, data, latched))
            return
        try:
            self._flush_early(now)
            self._writer.write_raw(topic, type_name, data, now, latched)
        except Recon4dError as error:  # the disk is full: what is there is kept
            self.fault = error

    def _flush_early(self, now: int) -> None:
        early, self._early = self._early, []
        for topic, type_name, data, latched in early:
            self._writer.write_raw(topic, type_name, data, now, latched)

    def close(self) -> None:
        """What came and never saw a /clock gets the wall's time."""
        self._flush_early(self.get_clock().now().nanoseconds or time.time_ns())

    def finished(self) -> bool:
        """The node waited for is gone, nothing came for `idle` seconds, or the file cannot be
        written."""
        now = time.monotonic()
        if self.fault is not None:
            return True
        if self._options.until_gone:
            present = self._options.until_gone.rsplit("/", 1)[-1] in self.get_node_names()
            self._seen = self._seen or present
            self._gone_since = None if present or not self._seen else self._gone_since or now
            if self._gone_since is not None and now - self._gone_since > GONE:
                return True
        return (
            self._options.idle > 0
            and any(self.counts.values())
            and now - self._last_message > self._options.idle
        )

    def idle_for(self, seconds: float) -> bool:
        return time.monotonic() - self._last_message > seconds


def record(recorder: Recorder, stop: Callable[[], bool]) -> None:
    """Until `stop()` or the recorder is finished, and then until nothing comes any more."""
    executor = lean_executor()
    executor.add_node(recorder)
    looked = 0.0
    try:
        while not stop():
            executor.spin_once(timeout_sec=0.05)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                recorder.look()
                if recorder.finished():
                    break
        end = time.monotonic() + LAST
        while recorder.fault is None and time.monotonic() < end and not recorder.idle_for(DRAIN):
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.shutdown()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recon4d_recorder",
        description=(
            "Record ROS 2 topics into a rosbag2 bag that rosbag2, Foxglove and `recon4d info` read."
        ),
        epilog=(
            "It ends on SIGINT or SIGTERM, with --until-gone or --idle, and always closes the bag. "
            "exit codes: 0 recorded, 2 nothing recorded or the folder cannot be written."
        ),
    )
    parser.add_argument("--out", type=user_path, required=True, help="bag folder to make")
    parser.add_argument("--topics", nargs="+", default=[], metavar="TOPIC", help="topics to record")
    parser.add_argument(
        "--all-of",
        nargs="+",
        default=[],
        metavar="NODE",
        help="record all that these nodes publish",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="TOPIC",
        help="topics of those nodes to leave out",
    )
    parser.add_argument(
        "--until-gone", default="", metavar="NODE", help="end when this node is gone"
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=0.0,
        metavar="S",
        help="end when nothing came for so many seconds (default: never)",
    )
    parser.add_argument("--use-sim-time", action="store_true", help="receive times from /clock")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    return parser


def main(args: list[str] | None = None) -> int:
    """Record; returns the exit code."""
    words, ros = split_ros_args(sys.argv[1:] if args is None else args)
    given = build_parser().parse_args(words)
    if not given.topics and not given.all_of:
        print("recon4d_recorder: nothing to record: give --topics or --all-of", file=sys.stderr)
        return EXIT_BAD_INPUT
    options = RecorderOptions(
        given.out,
        tuple(given.topics),
        tuple(given.all_of),
        tuple(given.exclude),
        given.until_gone,
        given.idle,
        given.use_sim_time,
        given.storage,
    )
    try:
        with ros_process(ros) as stop, BagWriter(options.out, options.storage) as writer:  # type: ignore[arg-type]
            recorder = Recorder(writer, options)
            record(recorder, stop.is_set)
            recorder.close()
            recorder.destroy_node()
        for topic, count in sorted(recorder.counts.items()):
            print(
                f"{count:7d}  {topic}"
                + (f"  ({recorder.lost[topic]} lost)" if recorder.lost[topic] else "")
            )
        if recorder.fault is not None:
            raise recorder.fault
        if not any(recorder.counts.values()):
            raise BagError(f"nothing came on {', '.join(options.topics + options.nodes)}")
    except Recon4dError as error:
        print(f"recon4d_recorder: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
