"""A car whose drivers do what drivers do, over DDS: one node meets most of docs/bags.md at once,
and does with it what it does with a bag."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from car import CAMERAS, RATE, SECONDS, Car, own_domain
from test_rolled_camera import small_pair

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")

from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage
from tf2_msgs.msg import TFMessage

from recon4d_ros.cameras.rig import load_rig, save_rig
from recon4d_ros.ros.conversions import time_msg, transform_matrix, transform_msg
from recon4d_ros.ros.graph import Process, free_domain, write_parameters
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.types import Camera, Rig

REPOSITORY = Path(__file__).resolve().parent.parent
AHEAD = 37_000_000_000  # ns by which the right camera's clock is ahead, and the odometry's
BASELINE = 0.54


def started(tmp: Path, environment: dict[str, str], values: dict) -> Process:
    file = write_parameters(tmp / "parameters.yaml", {"cameras": list(CAMERAS), **values})
    command = [sys.executable, "-m", "recon4d_ros.ros.node", "--ros-args", "--params-file"]
    return Process("node", [*command, str(file)], tmp / "node.log", environment)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        yield own_domain(patch)


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    """A stereo rig of small images."""
    bag = tmp_path_factory.mktemp("drive") / "bag"
    write_bag(bag, small_pair(0), seconds=SECONDS, rate=RATE, seed=3, workers=1)
    return bag


@pytest.fixture(scope="module")
def node(environment, tmp_path_factory) -> Iterator[Process]:
    """Nothing is named: the topics are the car's own, and not where they are expected."""
    process = started(
        tmp_path_factory.mktemp("node"),
        environment,
        {
            "odom_topic": "/odom",
            "sync.offset.right": "auto",
            "sync.max_wait": 0.5,
            "sync.dead_after": 30.0,
        },
    )
    yield process
    process.end()


@pytest.fixture(scope="module")
def car(environment, node, drive) -> Iterator[Car]:
    """Flat topic names, /tf_static in a namespace, both cameras in the left one's frame with the
    baseline in P, the left's calibration for twice the size with binning to do, the right's with
    binning that is done."""
    car = Car(
        int(environment["ROS_DOMAIN_ID"]),
        drive,
        image="/{}_image/compressed",
        info="/{}_camera_info",
        tf_static="/car/tf_static",
    )
    car.transforms.transforms = [
        edge for edge in car.transforms.transforms if edge.child_frame_id == "left"
    ]
    for name, info in car.camera_infos.items():
        info.header.frame_id = "left"
        info.binning_x = info.binning_y = 2
        k = np.array(info.k).reshape(3, 3)
        if name == "left":
            info.width, info.height = 2 * info.width, 2 * info.height
            k = np.diag([2.0, 2, 1]) @ k
            k[:2, 2] += 0.5
        info.k = k.reshape(-1)
        p = np.hstack([k, np.zeros((3, 1))])
        p[0, 3] = -k[0, 0] * BASELINE * (name == "right")
        info.p = p.reshape(-1)
    yield car
    car.leave()


def shoot_until(car: Car, ready, what: str) -> None:
    """Images as they come, the right camera's by a clock that is ahead."""

    def once() -> object:
        now = time.time_ns()

        def stamped(name: str, message: CompressedImage) -> None:
            message.header.stamp = time_msg(now + AHEAD * (name == "right"))

        car.shoot(spoil=stamped)
        car.rest(0.15)
        return ready()

    car.wait(once, what)


def test_what_is_awaited_is_said_with_what_there_is(car):
    car.wait(lambda: "waiting for camera_info of left" in car.words(), "the words")
    car.wait(
        lambda: (
            "camera left: its camera_info is taken from /left_camera_info" in car.words()
            and "camera right: its images are taken from /right_image/compressed" in car.words()
        ),
        "the topics to be found",
    )
    car.wait(
        lambda: (
            car.calibrate(k=np.zeros(9), p=np.zeros(12))
            or car.rest(0.2)
            or "no focal length: all zeros" in car.words()
        ),
        "zeros to be said",
    )
    car.wait(
        lambda: car.calibrate() or car.rest(0.2) or "tf base_link->left" in car.words(),
        "transforms to be awaited",
    )
    assert "camera_info are all zeros: the next is taken" in car.words()


def test_the_rig_is_that_of_the_rules_for_bags(car):
    car.tf_static.publish(car.transforms)
    car.wait(
        lambda: "put 0.540 m to the right by Tx in P of its camera_info" in car.words(), "the pair"
    )
    car.wait(
        lambda: all(publisher.get_subscription_count() for publisher in car.images.values()),
        "the node to read the images",
    )
    car.rest(1.0)
    shoot_until(
        car,
        lambda: "the binning of its camera_info is taken as applied already" in car.words(),
        "the binning that is done",
    )


def test_an_offset_of_clocks_is_learned_and_both_cameras_are_used(car):
    shoot_until(
        car,
        lambda: (
            "sync.offset.right is learned: 37.0" in car.words()
            and car.status().frame_sets > 1
            and all(car.status().present)
        ),
        "sets of both",
    )
    depth = car.wait(lambda: car.said["/recon4d/left/depth"], "a depth image")[-1]
    values = np.frombuffer(depth.data, np.float32)
    seen = values[np.isfinite(values)]
    assert len(seen) > 0.3 * len(values) and 3 < np.median(seen) < 60
    assert depth.header.frame_id == "left"


def odometry(car: Car, child: str = "base_link", w: float = 1.0, ahead: int = 0) -> None:
    message = Odometry(child_frame_id=child)
    message.header.stamp = time_msg(time.time_ns() + ahead)
    message.pose.pose.position.x = float(car.next)
    message.pose.pose.orientation.w = w
    car.odometry.publish(message)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"w": 0.0}, ("odometry", "no rotation")),
        ({"child": "wheel"}, ("odometry", "no transform from it")),
        ({"ahead": AHEAD}, ("odometry", "clock")),
    ],
)
def test_odometry_that_cannot_be_used_is_counted_with_its_reason(car, how, words):
    def ready() -> bool:
        odometry(car, **how)
        return car.dropped(*words)

    shoot_until(car, ready, "the count")
    assert all(car.status().present)


def test_extrinsics_that_change_are_told(car):
    edge = car.transforms.transforms[0]
    moved = deserialize_message(serialize_message(edge), TransformStamped)
    moved.transform.translation.x += 0.3
    car.tf_static.publish(TFMessage(transforms=[moved]))
    shoot_until(car, lambda: car.dropped("tf", "base_link to left changed"), "the count")


def test_it_was_said_in_the_log_too(car, node):
    node.interrupt()
    assert node.wait(20.0) == 0, node.text()
    text = node.text()
    assert "Traceback" not in text
    for words in (
        "its camera_info is taken from /left_camera_info",
        "put 0.540 m to the right by Tx",
        "sync.offset.right is learned",
        "odometry: samples are not used: not finite, or its quaternion is no rotation",
        "clocks of cameras and odometry differ by 3",
    ):
        assert text.count(words) == 1, text


# --- a camera mounted upside down; a rig that cannot be one


def upside_down(message: CompressedImage) -> None:
    pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    turned = cv2.imencode(".png", cv2.rotate(pixels, cv2.ROTATE_180))[1]
    message.data, message.format = turned.tobytes(), "bgr8; png compressed bgr8"


def test_a_rolled_camera_has_an_upright_image_in_a_frame_of_its_own(environment, tmp_path, drive):
    environment = {**environment, "ROS_DOMAIN_ID": str(free_domain())}
    rig = small_pair(2)  # the right camera upside down
    process = started(tmp_path, environment, {"sync.max_wait": 0.5, "sync.dead_after": 30.0})
    car = Car(int(environment["ROS_DOMAIN_ID"]), drive)
    right = rig.cameras[1]
    for images in car.sets:
        upside_down(images["right"])
    car.camera_infos["right"].k = right.k.reshape(-1)
    car.camera_infos["right"].p = np.hstack([right.k, np.zeros((3, 1))]).reshape(-1)
    for edge in car.transforms.transforms:
        if edge.child_frame_id == "right":
            edge.transform = transform_msg(right.T_base_camera, 0, "", "").transform
    try:
        car.listen(TFMessage, "/tf_static", 10)
        car.tf_static.publish(car.transforms)

        def reads() -> bool:
            car.calibrate()
            car.rest(0.2)
            ready = car.status() is not None and car.status().engine
            return ready and all(one.get_subscription_count() for one in car.images.values())

        car.wait(reads, "the node to read the images with its engine")
        car.rest(1.0)
        car.drive(4)
        assert all(car.status().present)
        depths = {
            name: car.wait(lambda name=name: car.said[f"/recon4d/{name}/depth"], f"{name}'s depth")
            for name in CAMERAS
        }
        assert depths["left"][-1].header.frame_id == "left"
        assert depths["right"][-1].header.frame_id == "right_upright"
        for images in depths.values():  # upside down it would match nothing
            values = np.frombuffer(images[-1].data, np.float32)
            assert np.isfinite(values).mean() > 0.3
        edge = car.wait(
            lambda: next(
                (
                    edge
                    for message in car.said["/tf_static"]
                    for edge in message.transforms
                    if edge.child_frame_id == "right_upright"
                ),
                None,
            ),
            "the frame of the upright image",
        )
        assert edge.header.frame_id == "right"
        upright = rig.cameras[1].T_base_camera @ transform_matrix(edge)
        level = load_rig(REPOSITORY / "config/rigs/kitti_like.yaml").cameras[1].T_base_camera
        np.testing.assert_allclose(upright, level, atol=1e-9)
    finally:
        car.leave()
        process.end()


def test_a_rig_that_cannot_be_one_is_said_before_anything_runs(environment, tmp_path):
    rig = load_rig(REPOSITORY / "config/rigs/kitti_like.yaml")
    left = rig.cameras[0]
    twice = Rig(
        "twice", (left, Camera("right", left.width, left.height, left.k, left.T_base_camera))
    )
    save_rig(twice, tmp_path / "rig.yaml")
    process = started(tmp_path, environment, {"rig_file": str(tmp_path / "rig.yaml")})
    assert process.wait(40.0) == 2, process.text()
    assert process.text().count("are in one place and look the same way") == 1
    assert "engine" not in process.text()
