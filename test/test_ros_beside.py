"""Engines beside the reconstruction in the node: right frames, stamps and velocities over DDS, and
what goes wrong with one of them stops nothing else."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from car import RATE, SECONDS, Car, own_domain
from test_rolled_camera import small_pair
from tiny_beside import VOXELS, object_engine, occupancy_engine
from tiny_detector import tiny_detector, yolo_table

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.serialization import serialize_message
from sensor_msgs_py import point_cloud2
from std_srvs.srv import Trigger

from recon4d_ros.cameras.rig import save_rig
from recon4d_ros.dynamics.candidates import NO_STAMP
from recon4d_ros.dynamics.one_list import DETECTED
from recon4d_ros.errors import EngineError
from recon4d_ros.messages import dynamic_object, stamp_ns
from recon4d_ros.perception import Look
from recon4d_ros.ros.conversions import (
    AUTOWARE,
    autoware_label,
    detections_msg,
    object_msg,
    pose_matrix,
    tracked_objects_msg,
)
from recon4d_ros.ros.diagnostics import BUSY, NO_POSE, Health
from recon4d_ros.ros.graph import Process, write_parameters
from recon4d_ros.ros.publishers import standard_outputs
from recon4d_ros.ros.side_engine import SideEngine
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.types import DynamicObject, FrameSet

INPUT = (62, 208)  # the images, halved
# in the lidar's frame: x to the right of the car, y ahead; see test_perception.py
CAR = [-3.0, 20.0, -1.0, 4.0, 2.0, 1.6, np.pi / 2]


# --- one engine in its thread


class Stand:
    """A Beside that does what a test says."""

    def __init__(self, step: Callable[[Look], object]) -> None:
        self.step, self.resets, self.closed = step, 0, False
        self.engine = SimpleNamespace(
            spec=SimpleNamespace(network="stand"), device="here", forgotten=0
        )
        self.warnings = ("said first",)

    def __call__(self, look: Look) -> object:
        return self.step(look)

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closed = True


def look(stamp: int) -> Look:
    return Look(FrameSet(stamp, {}), None, SimpleNamespace(segment=0))  # type: ignore[arg-type]


def wait(ready: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end, what
        time.sleep(0.005)


@pytest.fixture
def started() -> Iterator[Callable[..., SideEngine]]:
    engines = []

    def start(load, done=lambda look, result: None) -> SideEngine:
        said: list[tuple[str, bool]] = []
        engine = SideEngine("object engine", load, done, say=lambda *one: said.append(one))
        engine.said = said  # type: ignore[attr-defined]
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def status(engine: SideEngine) -> DiagnosticStatus:
    health = Health(("left",))
    health.beside = (engine,)
    message = health.diagnostics_msg(
        0, "recon4d", state="active", waiting=[], paused=False, silence=2.0
    )
    return next(one for one in message.status if one.name == "recon4d: object engine")


def test_it_takes_the_newest_and_counts_what_it_left_out(started) -> None:
    free, done = threading.Event(), []
    stand = Stand(lambda look: free.wait(10) and look.frame_set.stamp_ns)
    engine = started(lambda: stand, lambda look, result: done.append(result))
    wait(lambda: not engine.loading, "loading")
    engine.put(look(1))
    wait(lambda: engine.busy > 0, "the first step")
    begun = time.monotonic()
    for stamp in range(2, 8):
        engine.put(look(stamp))
    assert time.monotonic() - begun < 0.5  # it holds nobody up
    free.set()
    wait(lambda: done == [1, 7], f"the newest: {done}")
    assert engine.skipped == 5 and engine.steps.total == 2
    health = Health(("left",))
    health.beside = (engine,)
    message = health.status_msg(0, "base_link", paused=False)
    assert list(message.drop_reasons) == [f"object engine: {BUSY}"]
    assert list(message.drop_counts) == [5]
    found = status(engine)
    assert found.level == DiagnosticStatus.WARN and found.message.startswith("said first; ")
    engine.reset()
    wait(lambda: stand.resets == 1, "the reset")
    engine.close()
    assert stand.closed


def test_one_that_cannot_be_loaded_is_a_sentence(started) -> None:
    def load() -> None:
        raise EngineError("engine /nowhere: no such folder")

    engine = started(load)
    wait(lambda: engine.fault, "the fault")
    engine.put(look(1))
    assert engine.said == [
        (
            "object engine: engine /nowhere: no such folder; the reconstruction goes on without it",
            True,
        )
    ]
    assert status(engine).level == DiagnosticStatus.WARN
    assert status(engine).message == "engine /nowhere: no such folder"


def test_a_step_that_fails_is_counted_and_the_next_one_comes(started) -> None:
    done = []

    def step(look: Look) -> int | None:
        if look.frame_set.stamp_ns < 3:
            raise EngineError("a pose is not finite")
        return look.frame_set.stamp_ns if look.frame_set.stamp_ns < 5 else None

    engine = started(lambda: Stand(step), lambda look, result: done.append(result))
    wait(lambda: not engine.loading, "loading")
    for stamp in range(1, 6):
        before = engine.failed + engine.steps.total + engine.without_pose
        engine.put(look(stamp))
        wait(
            lambda before=before: engine.failed + engine.steps.total + engine.without_pose > before,
            "a step",
        )
    assert engine.failed == 2 and done == [3, 4] and engine.without_pose == 1
    assert sum("not finite" in sentence for sentence, _ in engine.said) == 1
    assert not engine.fault  # it runs again
    health = Health(("left",))
    health.beside = (engine,)
    reasons = list(health.status_msg(0, "base_link", paused=False).drop_reasons)
    assert reasons == [f"object engine: {NO_POSE}"]


def test_an_object_survives_the_message() -> None:
    unknown = np.full((3, 3), np.nan)
    thing = DynamicObject(
        DETECTED + 5,
        np.array([1.0, 2.0, 3.0]),
        0.5,
        np.array([4.0, 2.0, 1.5]),
        np.array([1.0, -1.0, 0.0]),
        unknown,
        unknown,
        0.75,
        3,
        1,
        "car",
        0.5,
    )
    message = object_msg(thing)
    assert message.pose.covariance[0] == message.twist.covariance[0] == -1.0
    again = dynamic_object(message)
    assert (again.id, again.class_name, again.class_score) == (DETECTED + 5, "car", 0.5)
    np.testing.assert_allclose(again.position, thing.position)
    eye, zero = np.eye(3), np.zeros(3)
    plain = object_msg(DynamicObject(1, zero, 0.0, eye[0], zero, eye, eye, 1.0, 1, 0))
    assert plain.class_name == "" and plain.pose.covariance[0] == 1.0


def test_objects_as_detections_of_vision_msgs() -> None:
    pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed here")
    eye, unknown = np.eye(3), np.full((3, 3), np.nan)
    plain = DynamicObject(3, eye[0], 0.0, 2 * eye[1] + 1, eye[2], eye, eye, 0.625, 1, 0)
    named = DynamicObject(
        DETECTED + 5, eye[1], 0.5, eye[0] + 1, eye[2], unknown, unknown, 0.25, 1, 0, "car", 0.5
    )
    message = detections_msg((plain, named), 5_000_000_007, "map")
    assert message.header.frame_id == "map" and message.header.stamp.nanosec == 7
    one, other = message.detections
    assert (one.id, other.id) == ("3", str(DETECTED + 5))
    assert (one.bbox.center.position.x, one.bbox.size.y, other.bbox.size.x) == (1.0, 3.0, 2.0)
    hypotheses = [thing.results[0].hypothesis for thing in (one, other)]
    assert [(h.class_id, h.score) for h in hypotheses] == [("unknown", 0.625), ("car", 0.5)]
    assert other.results[0].pose.covariance[0] == -1.0
    assert "~/detections" in [output.topic for output in standard_outputs()]


def test_objects_as_tracked_objects_of_autoware() -> None:
    messages = pytest.importorskip(
        "autoware_perception_msgs.msg", reason="autoware_perception_msgs is not installed here"
    )
    eye, unknown = np.eye(3), np.full((3, 3), np.nan)
    velocity = np.array([0.0, 4.0, 0.0])
    plain = DynamicObject(
        3, eye[0], np.pi / 2, 2 * eye[1] + 1, velocity, eye, np.diag([1.0, 4, 9]), 0.6, 1, 0
    )
    stands = DynamicObject(
        DETECTED + 5, eye[1], 0.5, eye[0] + 1, 0 * eye[2], unknown, unknown, 2.0, 1, 0, "bus", 0.5
    )
    array = tracked_objects_msg((plain, stands), 5_000_000_007, "map")
    assert array.header.frame_id == "map" and array.header.stamp.nanosec == 7
    one, other = array.objects
    assert bytes(one.object_id.uuid) == (3).to_bytes(16, "big") != bytes(other.object_id.uuid)
    twist = one.kinematics.twist_with_covariance
    np.testing.assert_allclose(  # along its own axes: it drives forward
        [twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z], [4, 0, 0], atol=1e-9
    )
    np.testing.assert_allclose(
        np.reshape(twist.covariance, (6, 6))[:2, :2], np.diag([4.0, 1.0]), atol=1e-9
    )
    assert not one.kinematics.is_stationary and other.kinematics.is_stationary
    assert one.classification[0].label == messages.ObjectClassification.UNKNOWN
    assert other.classification[0].label == messages.ObjectClassification.BUS
    assert (other.classification[0].probability, other.existence_probability) == (0.5, 1.0)
    assert other.kinematics.pose_with_covariance.covariance[0] == -1.0
    assert other.kinematics.twist_with_covariance.covariance[0] == -1.0
    assert one.shape.type == messages.Shape.BOUNDING_BOX and one.shape.dimensions.y == 3.0
    assert serialize_message(array)  # every field is of its type
    labels = {
        label for label in AUTOWARE.values() if not hasattr(messages.ObjectClassification, label)
    }
    assert labels <= {"ANIMAL"}  # which older definitions do not have
    assert "~/tracked_objects" in [output.topic for output in standard_outputs()]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("car", "CAR"),
        ("vehicle.bus.rigid", "BUS"),
        ("construction_vehicle", "TRUCK"),
        ("traffic cone", "UNKNOWN"),
        ("human.pedestrian.adult", "PEDESTRIAN"),
        ("", "UNKNOWN"),
        ("motorcycle", "MOTORCYCLE"),
        ("Cyclist", "BICYCLE"),
    ],
)
def test_autowares_labels(name: str, label: str) -> None:
    assert autoware_label(name) == label


# --- in the node


@pytest.fixture(scope="module")
def car(tmp_path_factory) -> Iterator[Car]:
    folder = tmp_path_factory.mktemp("beside")
    score = np.zeros(VOXELS)
    score[4, 2, 1] = 0.75
    object_engine(folder / "objects", [CAR], [[0.5, 5.0, 9.0]], [0], INPUT, trained_cameras=6)
    occupancy_engine(folder / "occupancy", score, INPUT)
    seen = {"o": yolo_table([[40, 20, 60, 40]], [[0.9]])}
    tiny_detector(folder / "tiny.onnx", seen, {"layout": "yolov8", "classes": ["car"]})
    rig = folder / "rig.yaml"
    save_rig(small_pair(0), rig)
    write_bag(folder / "bag", small_pair(0), seconds=SECONDS, rate=RATE, seed=3, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        environment = own_domain(patch)
        file = write_parameters(
            folder / "parameters.yaml",
            {
                "rig_file": str(rig),
                "object_engine": str(folder / "objects"),
                "occupancy_engine": str(folder / "occupancy"),
                "detector": str(folder / "tiny.onnx"),
                "left.detections_topic": "/detections/left",
                "sync.max_wait": 0.5,
                "sync.dead_after": 30.0,
            },
        )
        command = [sys.executable, "-m", "recon4d_ros.ros.node", "--ros-args", "--params-file"]
        process = Process("node", [*command, str(file)], folder / "node.log", environment)
        car = Car(int(environment["ROS_DOMAIN_ID"]), folder / "bag")
        car.wait(
            lambda: all(publisher.get_subscription_count() for publisher in car.images.values()),
            "the node to read the images",
        )
        car.wait(lambda: "no step yet" in car.words(), "the engines to be loaded")
        car.rest(1.0)
        car.log = process.text  # type: ignore[attr-defined]
        yield car
        car.leave()
        assert process.end() == 0, process.text()
        assert "Traceback" not in process.text()


def listed(car: Car) -> list:
    """Messages of ~/objects that hold the detected car."""
    return [
        message
        for message in car.said["/recon4d/objects"]
        if any(one.class_name == "car" for one in message.objects)
    ]


def test_objects_are_in_the_list_where_and_when_they_should_be(car) -> None:
    for _ in range(4):
        car.drive(2)
        if listed(car):
            break
    assert listed(car)
    poses = {stamp_ns(m.header.stamp): m for m in car.said["/recon4d/odometry"]}
    message = listed(car)[-1]
    assert message.header.frame_id == "map"
    said = poses[stamp_ns(message.header.stamp)].pose.pose
    T_map_base = pose_matrix(said.position, said.orientation, "pose")
    (thing,) = [one for one in message.objects if one.class_name == "car"]
    assert thing.id == DETECTED + 5 and thing.class_score == pytest.approx(0.9)
    # it stays where it is to the car (21, 3), but for what it is carried on since its own stamp
    there = np.array([thing.pose.pose.position.x, thing.pose.pose.position.y])
    ahead = np.linalg.inv(T_map_base)[:2] @ np.array([*there, 0.8, 1.0])
    np.testing.assert_allclose(ahead, [21.0, 3.0], atol=6.0)
    velocity = thing.twist.twist.linear
    turned = T_map_base[:2, :2] @ [5.0, -0.5]
    np.testing.assert_allclose([velocity.x, velocity.y], turned, atol=0.2)
    assert velocity.z == 0.0
    markers = [m for message in car.said["/recon4d/objects_markers"] for m in message.markers]
    assert any(one.text.startswith("car ") for one in markers)


def test_occupancy_is_in_the_cars_frame_at_its_frame_sets_stamp(car) -> None:
    clouds = car.wait(lambda: car.said["/recon4d/occupancy"], "occupancy")
    stamps = {stamp_ns(one.header.stamp) for one in car.said["/recon4d/odometry"]}
    cloud = clouds[-1]
    assert cloud.header.frame_id == "base_link" and stamp_ns(cloud.header.stamp) in stamps
    points = np.array(point_cloud2.read_points(cloud, ["x", "y", "z", "score"]).tolist())
    np.testing.assert_allclose(points, [[8.0, 0.0, 1.8, 0.75]], atol=1e-5)


def test_what_they_do_is_on_diagnostics(car) -> None:
    car.wait(lambda: car.words().count("steps/s") == 3, "diagnostics of all")
    said = {one.name: one for one in car.said["/diagnostics"][-1].status}
    objects, occupancy = (said[f"recon4d: {name} engine"] for name in ("object", "occupancy"))
    assert "trained with 6 cameras and runs with 2" in objects.message
    assert objects.level == DiagnosticStatus.WARN
    assert occupancy.level == DiagnosticStatus.OK and "steps/s" in occupancy.message


def test_a_detector_runs_and_what_is_not_installed_is_said_once(car) -> None:
    car.wait(lambda: car.words().count("steps/s") == 3, "diagnostics of all")
    said = {one.name: one for one in car.said["/diagnostics"][-1].status}
    assert said["recon4d: detector"].level == DiagnosticStatus.OK
    assert "openvino" in said["recon4d: detector"].hardware_id or said["recon4d: detector"].values
    sentence = "left.detections_topic is not read: message type vision_msgs/msg/Detection2DArray"
    installed = importlib.util.find_spec("vision_msgs") is not None
    assert car.log().count(sentence) == (0 if installed else 1)
    assert car.log().count("in standard messages: ") == 1


def test_boxes_on_a_topic_are_taken(car) -> None:
    """Those without a time stamp are counted, which shows that the others are not."""
    messages = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed here")
    publisher = car.create_publisher(messages.Detection2DArray, "/detections/left", 10)
    car.wait(lambda: publisher.get_subscription_count(), "the node to listen")
    stamped = messages.Detection2DArray()
    stamped.header.stamp.sec = 1_700_000_000
    reason = f"detections: {NO_STAMP}"

    def told() -> bool:
        publisher.publish(messages.Detection2DArray())
        publisher.publish(stamped)
        car.drive(1)
        return any(reason in one.drop_reasons for one in car.said["/recon4d/status"])

    car.wait(told, "what was left out")


def test_a_reset_forgets_what_they_said(car) -> None:
    assert car.call(Trigger, "reset").success
    car.said["/recon4d/objects"].clear()
    car.drive(1)
    message = car.wait(lambda: car.said["/recon4d/objects"], "the first list")[0]
    assert not any(one.class_name for one in message.objects)
    car.wait(lambda: car.drive(1) and listed(car), "the objects again")
