"""`recon4d_player`: a bag onto DDS at its own pace, as the sensors would: /tf_static latched,
/clock, peers waited for, a clean end.

While it waits it repeats each camera's first camera_info that has a calibration, so that a node
that takes its rig from there can get ready.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage
from tqdm import tqdm

from recon4d_ros.bags import BagReader
from recon4d_ros.bags.rig import FIRST_INFOS
from recon4d_ros.bags.topics import CAMERA_INFO, IMAGES, TF_MESSAGE, TF_STATIC, TRUTH
from recon4d_ros.errors import BagError, MessageError, Recon4dError
from recon4d_ros.messages import is_calibrated
from recon4d_ros.paths import user_path
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.ros.process import EXIT_BAD_INPUT, ros_process, spinning

CLOCK_PERIOD = 0.01  # seconds of wall time between two /clock
PREROLL_PERIOD = 0.5
SETTLE = (
    0.5  # seconds between the last peer's match and the first message: both ends have to know of it
)
LATE_NS = 50_000_000
ACKNOWLEDGE = Duration(seconds=5)


@dataclass(frozen=True)
class PlayerOptions:
    """bag: folder or file. rate: bag seconds per second. wait_for: readers that each image topic
    must have before the start (0 = none).

    timeout: seconds to wait for them. topics: only these (empty = all). truth: /ground_truth/* too.
    """

    bag: Path
    rate: float = 1.0
    loop: bool = False
    start_paused: bool = False
    wait_for: int = 1
    timeout: float = 60.0
    topics: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    truth: bool = False
    clock: bool = True


@dataclass
class Played:
    """What a run did. late: messages more than 50 ms behind their time; worst_ns: the worst of
    it."""

    messages: int = 0
    loops: int = 0
    late: int = 0
    worst_ns: int = 0
    skipped_types: set[str] = field(default_factory=set)
    unacknowledged: list[str] = field(default_factory=list)


class Player(Node):
    """Raises BagError if the bag has none of the topics asked for."""

    def __init__(self, reader: BagReader, options: PlayerOptions) -> None:
        super().__init__("recon4d_player")
        self._reader, self._options = reader, options
        self.played = Played()
        self._running = threading.Event()
        if not options.start_paused:
            self._running.set()
        self.create_service(SetBool, "~/pause", self._on_pause)
        self._clock_output = self.create_publisher(Clock, "/clock", 10) if options.clock else None
        self._outputs: dict[str, Publisher] = {}
        self._images: list[Publisher] = []
        self._static: list[str] = []  # topics of static transforms
        for topic, info in reader.topics.items():
            if self._wanted(topic):
                self._add(topic, info.type)
        missing = [topic for topic in options.topics if topic not in reader.topics]
        if missing or not self._outputs:
            has = ", ".join(reader.topics) or "none"
            raise BagError(
                f"{reader.path}: no topic {missing[0] if missing else 'to play'}: the bag has {has}"
            )

    def _wanted(self, topic: str) -> bool:
        if (
            topic.startswith(TRUTH)
            and not self._options.truth
            and topic not in self._options.topics
        ):
            return False
        return topic not in self._options.exclude and (
            not self._options.topics or topic in self._options.topics or topic == TF_STATIC
        )

    def _add(self, topic: str, type_name: str) -> None:
        try:
            kind = message_class(type_name)
        except MessageError as error:
            self.played.skipped_types.add(type_name)
            self.get_logger().warning(f"{topic} is not played: {error}")
            return
        latched = topic.endswith(TF_STATIC) and type_name == TF_MESSAGE
        qos = QoSProfile(
            depth=10,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self._outputs[topic] = self.create_publisher(kind, topic, qos)
        if latched:
            self._static.append(topic)
        if type_name in IMAGES:
            self._images.append(self._outputs[topic])

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            self._running.clear()
        else:
            self._running.set()
        response.success, response.message = True, "paused" if request.data else "playing"
        return response

    def latch(self) -> None:
        """All of the bag's static transforms in one latched message, by topic (namespaced ones
        too)."""
        for topic in self._static:
            merged = {}
            for _, _, _, data in self._reader.raw_messages([topic]):
                merged.update(
                    {
                        transform.child_frame_id: transform
                        for transform in deserialize_message(data, TFMessage).transforms
                    }
                )
            self._outputs[topic].publish(TFMessage(transforms=list(merged.values())))

    def wait_for_peers(self, stop: Callable[[], bool]) -> None:
        """Until each image topic has its readers. Raises BagError (there is nobody to play to)
        after the time-out."""
        infos = self._first_infos()
        begin, told, matched = time.monotonic(), 0.0, None
        while not stop():
            now = time.monotonic()
            lonely = [
                publisher.topic
                for publisher in self._images
                if publisher.get_subscription_count() < self._options.wait_for
            ]
            matched = None if lonely else matched or now
            if matched is not None and now - matched >= SETTLE * bool(self._options.wait_for):
                return
            if lonely and now - begin > self._options.timeout:
                raise BagError(
                    f"after {self._options.timeout:.0f} s nobody reads"
                    f" {lonely[0]}{f' and {len(lonely) - 1} more' if len(lonely) > 1 else ''}:"
                    " `--wait-for 0` plays all the same"
                )
            if lonely and now - told >= PREROLL_PERIOD:
                told = now
                for topic, data in infos.items():
                    self._outputs[topic].publish(data)
            time.sleep(0.02)

    def _first_infos(self) -> dict[str, bytes]:
        wanted = [
            topic
            for topic, info in self._reader.topics.items()
            if info.type == CAMERA_INFO and topic in self._outputs
        ]
        found: dict[str, bytes] = {}
        looked: Counter[str] = Counter()
        for topic, kind, _, data in self._reader.raw_messages(wanted) if wanted else ():
            looked[topic] += 1
            if topic not in found and (
                looked[topic] > FIRST_INFOS
                or is_calibrated(self._reader.deserialize(data, kind, topic))
            ):
                found[topic] = bytes(data)
            if len(found) == len(wanted):
                break
        return found

    def play(self, stop: Callable[[], bool]) -> Played:
        """The whole bag, once or in a loop, until `stop()`."""
        while not stop():
            self._play_once(stop)
            self.played.loops += 1
            if not self._options.loop:
                break
        if not stop():
            self.played.unacknowledged = [
                topic
                for topic, publisher in self._outputs.items()
                if not publisher.wait_for_all_acked(ACKNOWLEDGE)
            ]
        return self.played

    def _play_once(self, stop: Callable[[], bool]) -> None:
        info = self._reader.info()
        pace = _Pace(info.start_ns, self._options.rate)
        with tqdm(
            total=round(info.duration_s, 1),
            unit="s",
            desc="playing",
            disable=not sys.stderr.isatty(),
            bar_format=(
                "{desc}: {percentage:3.0f}% |{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}]"
            ),
        ) as bar:
            for topic, receive_ns, data in self._messages():
                self._wait(pace, receive_ns, stop)
                if stop():
                    return
                late = pace.now_ns() - receive_ns
                self.played.worst_ns = max(self.played.worst_ns, late)
                self.played.late += late > LATE_NS * self._options.rate
                self._outputs[topic].publish(data)
                self.played.messages += 1
                bar.update(max((receive_ns - info.start_ns) * 1e-9 - bar.n, 0.0))

    def _messages(self) -> Iterator[tuple[str, int, bytes]]:
        topics = [topic for topic in self._outputs if topic not in self._static]
        for topic, _, receive_ns, data in self._reader.raw_messages(topics) if topics else ():
            yield topic, receive_ns, bytes(data)

    def _wait(self, pace: _Pace, until_ns: int, stop: Callable[[], bool]) -> None:
        """Until the bag's time has come, with /clock going on; while paused, time stands still."""
        while not stop():
            if not self._running.is_set():
                with pace.standing():
                    while not stop() and not self._running.wait(CLOCK_PERIOD):
                        pass
            left = pace.seconds_until(until_ns)
            self._tell_time(pace, min(pace.now_ns(), until_ns))
            if left <= 0:
                return
            time.sleep(min(left, CLOCK_PERIOD))

    def _tell_time(self, pace: _Pace, now_ns: int) -> None:
        if self._clock_output is not None and pace.clock_is_due(now_ns):
            self._clock_output.publish(Clock(clock=Time(nanoseconds=now_ns).to_msg()))


class _Pace:
    """Bag time against wall time."""

    def __init__(self, start_ns: int, rate: float) -> None:
        self._start_ns, self._rate = start_ns, rate
        self._wall = time.monotonic()
        self._told: tuple[float, int] = (0.0, -1)

    def now_ns(self) -> int:
        return self._start_ns + int((time.monotonic() - self._wall) * self._rate * 1e9)

    def seconds_until(self, ns: int) -> float:
        """Wall seconds."""
        return (ns - self._start_ns) * 1e-9 / self._rate - (time.monotonic() - self._wall)

    def standing(self) -> _Standing:
        return _Standing(self)

    def shift(self, seconds: float) -> None:
        self._wall += seconds

    def clock_is_due(self, now_ns: int) -> bool:
        wall = time.monotonic()
        if wall - self._told[0] < CLOCK_PERIOD or now_ns <= self._told[1]:
            return False
        self._told = (wall, now_ns)
        return True


class _Standing:
    """A pause: the time in it does not count."""

    def __init__(self, pace: _Pace) -> None:
        self._pace = pace

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._pace.shift(time.monotonic() - self._begin)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recon4d_player",
        description="Play a rosbag2 bag (MCAP or sqlite3) over ROS 2, as the sensors would.",
        epilog=(
            "exit codes: 0 played to the end or stopped by a signal, 2 bad bag or nobody to play"
            " to. ~/pause (std_srvs/SetBool) pauses and resumes. Everything after --ros-args goes"
            " to ROS."
        ),
    )
    parser.add_argument("bag", type=user_path, help="bag folder, or one .mcap or .db3 file")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="bag seconds per second (default 1)"
    )
    parser.add_argument(
        "--loop", action="store_true", help="start over at the end, until stopped; time jumps back"
    )
    parser.add_argument(
        "--start-paused", action="store_true", help="wait for ~/pause with data: false"
    )
    parser.add_argument(
        "--wait-for",
        type=int,
        default=1,
        metavar="N",
        help="readers each image topic must have at the start (default 1)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait for them (default 60)",
    )
    parser.add_argument(
        "--topics",
        nargs="+",
        default=[],
        metavar="TOPIC",
        help="only these (default all, and /tf_static in any case)",
    )
    parser.add_argument("--exclude", nargs="+", default=[], metavar="TOPIC", help="all but these")
    parser.add_argument(
        "--truth",
        action="store_true",
        help="/ground_truth/* too: left out by default, nothing should see it by accident",
    )
    parser.add_argument("--no-clock", action="store_true", help="do not publish /clock")
    return parser


def main(args: list[str] | None = None) -> int:
    """Play; returns the exit code."""
    words, ros = split_ros_args(sys.argv[1:] if args is None else args)
    given = build_parser().parse_args(words)
    options = PlayerOptions(
        given.bag,
        given.rate,
        given.loop,
        given.start_paused,
        given.wait_for,
        given.timeout,
        tuple(given.topics),
        tuple(given.exclude),
        given.truth,
        not given.no_clock,
    )
    try:
        if not (math.isfinite(options.rate) and options.rate > 0):
            raise BagError(f"--rate is {options.rate:g}: expected above 0")
        if not options.timeout >= 0:
            raise BagError(f"--timeout is {options.timeout:g}: expected seconds")
        with BagReader(options.bag) as reader, ros_process(ros) as stop:
            player = Player(reader, options)
            with spinning(player):
                player.latch()
                player.wait_for_peers(stop.is_set)
                played = player.play(stop.is_set)
            player.destroy_node()
    except Recon4dError as error:
        print(f"recon4d_player: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    late = (
        f"{played.late} of them more than {LATE_NS // 1_000_000} ms late (worst"
        f" {played.worst_ns * 1e-6:.0f} ms)"
    )
    lost = (
        f"; not acknowledged: {', '.join(played.unacknowledged)}" if played.unacknowledged else ""
    )
    print(f"played {played.messages} messages, {late}{lost}", flush=True)
    return 0


def split_ros_args(words: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and those from --ros-args on."""
    cut = words.index("--ros-args") if "--ros-args" in words else len(words)
    return words[:cut], words[cut:]


if __name__ == "__main__":
    sys.exit(main())
