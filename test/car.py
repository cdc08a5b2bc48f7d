"""The car around the node: publishes what its sensors would, and keeps what the node says.

Observer listens, calls and waits; Car also drives, set by set, from a recorded bag.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from recon4d_msgs.msg import Status
from sensor_msgs.msg import CameraInfo, CompressedImage
from tf2_msgs.msg import TFMessage

from recon4d_ros.bags import BagReader
from recon4d_ros.messages import stamp_ns
from recon4d_ros.ros.conversions import time_msg
from recon4d_ros.ros.graph import graph_environment
from recon4d_ros.ros.publishers import OUTPUTS

SECONDS, RATE = 1.2, 5.0
"""Of the drive that the tests feed to the node."""
PATIENCE = 40.0  # seconds for anything to come: the machine may be busy
CAMERAS = ("left", "right")
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def own_domain(patch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a graph with a domain of its own, on this machine only; the test's own
    participant is in it too, while the patch lasts."""
    environment = graph_environment()
    for name, value in environment.items():
        if name.startswith(("ROS_", "FASTRTPS_", "FASTDDS_")):
            patch.setenv(name, value)
    return environment


class Observer(rclpy.node.Node):
    """Keeps what the node says, and calls its services. Spun by whoever waits for something."""

    def __init__(self, domain: int, tf_static: str = "/tf_static") -> None:
        self.ros = Context()
        self.ros.init(domain_id=domain)
        super().__init__("car", context=self.ros)
        self._executor = SingleThreadedExecutor(context=self.ros)
        self._executor.add_node(self)
        self.tf_static = self.create_publisher(TFMessage, tf_static, LATCHED)
        self.odometry = self.create_publisher(Odometry, "/odom", 10)
        self.said: dict[str, list] = defaultdict(list)
        self.listen(DiagnosticArray, "/diagnostics", 10)

    def listen(self, kind: type, topic: str, depth: int) -> None:
        self.create_subscription(kind, topic, self.said[topic].append, depth)

    def turn(self) -> None:
        """One moment of waiting."""
        self._executor.spin_once(timeout_sec=0.02)

    def wait(self, ready: Callable[[], object], what: str, timeout: float = PATIENCE):
        end = time.monotonic() + timeout
        while not (result := ready()):
            assert time.monotonic() < end, (
                f"{what}: not within {timeout:.0f} s; status: {self.status()}; diagnostics:"
                f" {self.words()}"
            )
            self.turn()
        return result

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def status(self) -> Status | None:
        return self.said["/recon4d/status"][-1] if self.said["/recon4d/status"] else None

    def drops(self) -> dict[str, int]:
        status = self.status()
        return (
            dict(
                zip(status.drop_reasons, (int(count) for count in status.drop_counts), strict=True)
            )
            if status
            else {}
        )

    def dropped(self, *words: str) -> bool:
        return any(all(word in reason for word in words) for reason in self.drops())

    def words(self) -> str:
        return "; ".join(
            f"{status.name}: {status.message}"
            for message in self.said["/diagnostics"][-1:]
            for status in message.status
        )

    def call(self, kind: type, name: str, **values):
        client = self.create_client(kind, f"/recon4d/{name}")
        self.wait(client.service_is_ready, f"service {name}")
        future = client.call_async(kind.Request(**values))
        self.wait(future.done, f"answer of {name}")
        self.destroy_client(client)
        return future.result()

    def transition(self, identity: int) -> bool:
        return self.call(ChangeState, "change_state", transition=Transition(id=identity)).success

    def state(self) -> str:
        return self.call(GetState, "get_state").current_state.label

    def leave(self) -> None:
        self._executor.shutdown()
        self.destroy_node()
        self.ros.try_shutdown()


class Car(Observer):
    """A car with two cameras, whose images come from a bag."""

    def __init__(
        self,
        domain: int,
        bag: Path,
        image: str = "/camera/{}/image_raw/compressed",
        info: str = "/camera/{}/camera_info",
        tf_static: str = "/tf_static",
    ) -> None:
        """image, info: topics, with {} for the camera's name."""
        super().__init__(domain, tf_static)
        self.images = {
            name: self.create_publisher(CompressedImage, image.format(name), 10) for name in CAMERAS
        }
        self.infos = {
            name: self.create_publisher(CameraInfo, info.format(name), 10) for name in CAMERAS
        }
        for output in OUTPUTS:
            for name in CAMERAS if "<camera>" in output.topic else ("",):
                self.listen(
                    output.type, output.topic.replace("~", "/recon4d").replace("<camera>", name), 50
                )
        self.listen(TFMessage, "/tf", 100)
        self.sets: list[dict[str, CompressedImage]] = []
        self.camera_infos: dict[str, CameraInfo] = {}
        with BagReader(bag) as reader:
            by_stamp: dict[int, dict[str, CompressedImage]] = defaultdict(dict)
            for topic, _, _, data in reader.raw_messages():
                name = topic.split("/")[2] if topic.startswith("/camera/") else ""
                if topic.endswith("/compressed") and name:
                    message = deserialize_message(bytes(data), CompressedImage)
                    by_stamp[stamp_ns(message.header.stamp)][name] = message
                elif topic.endswith("/camera_info"):
                    self.camera_infos.setdefault(name, deserialize_message(bytes(data), CameraInfo))
                elif topic == "/tf_static":
                    self.transforms = deserialize_message(bytes(data), TFMessage)
            self.sets = [by_stamp[stamp] for stamp in sorted(by_stamp)]
        self.next = 0
        self.shift_ns = 0

    def calibrate(self, **change) -> None:
        for name, publisher in self.infos.items():
            message = deserialize_message(
                rclpy.serialization.serialize_message(self.camera_infos[name]), CameraInfo
            )
            for key, value in change.items():
                setattr(message, key, value)
            publisher.publish(message)

    def next_shift(self) -> int:
        return self.next // len(self.sets) * int(SECONDS * 1e9) + self.shift_ns

    def next_stamp(self) -> int:
        return (
            stamp_ns(self.sets[self.next % len(self.sets)]["left"].header.stamp) + self.next_shift()
        )

    def shoot(
        self,
        cameras=CAMERAS,
        *,
        calibrate: bool = True,
        spoil: Callable[[str, CompressedImage], None] = lambda name, message: None,
    ) -> int:
        """The next frame set of the drive, its stamps shifted so that time goes on when the drive
        starts over; returns its stamp."""
        images, shift_ns = self.sets[self.next % len(self.sets)], self.next_shift()
        self.next += 1
        for name in cameras:
            original = images[name]
            message = CompressedImage(format=original.format)
            message.data = original.data
            message.header.frame_id = original.header.frame_id
            stamp = stamp_ns(original.header.stamp) + shift_ns
            message.header.stamp = time_msg(stamp)
            spoil(name, message)
            if calibrate:
                info = self.camera_infos[name]
                info.header.stamp = message.header.stamp
                self.infos[name].publish(info)
            self.images[name].publish(message)
        return stamp

    def drive(self, count: int, **how) -> list[Status]:
        """`count` sets, each answered by a status before the next; returns those."""
        answers = []
        for _ in range(count):
            stamp = self.shoot(**how)
            answers.append(
                self.wait(
                    lambda stamp=stamp: next(
                        (
                            s
                            for s in self.said["/recon4d/status"]
                            if abs(stamp_ns(s.header.stamp) - stamp) < 1e7
                        ),
                        None,
                    ),
                    f"status of {stamp}",
                )
            )
        return answers
