"""The real node in its own process, over DDS: fed as a car would feed it, faults and all, and the
whole graph of player, node and recorder.

One simulated stereo drive serves all; waiting is by what is published, never by a fixed time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from car import CAMERAS, PATIENCE, RATE, SECONDS, Car, own_domain
from test_rolled_camera import small_pair

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)

import rclpy
import tf2_ros
from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from recon4d_msgs.msg import Status
from recon4d_msgs.srv import SaveMap
from sensor_msgs.msg import CompressedImage, PointCloud2
from sensor_msgs_py import point_cloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from recon4d_ros.bags import BagReader, BagWriter
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.commands.demo import collect
from recon4d_ros.engine import load_spec
from recon4d_ros.engine.choose import choose_engine
from recon4d_ros.geometry import exp
from recon4d_ros.mapping import read_cloud
from recon4d_ros.messages import stamp_ns
from recon4d_ros.overview.recorder import OverviewRecorder
from recon4d_ros.ros.conversions import pose_matrix, time_msg, transform_matrix, transform_msg
from recon4d_ros.ros.graph import (
    GraphResult,
    Process,
    run_graph,
    write_parameters,
)
from recon4d_ros.ros.publishers import OUTPUTS
from recon4d_ros.runs.files import read_depth, read_objects, read_trajectory
from recon4d_ros.runs.recording import Recording
from recon4d_ros.sim.bag import write_bag

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    """Of a rectified stereo rig."""
    bag = tmp_path_factory.mktemp("drive") / "bag"
    write_bag(bag, small_pair(0), seconds=SECONDS, rate=RATE, seed=3, workers=1)
    return bag


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        yield own_domain(patch)


@pytest.fixture(scope="module")
def node(environment, tmp_path_factory) -> Iterator[Process]:
    """The executable, its rig from camera_info and /tf_static."""
    folder = tmp_path_factory.mktemp("node")
    parameters = write_parameters(
        folder / "parameters.yaml",
        {
            "cameras": list(CAMERAS),
            "odom_topic": "/odom",
            "output_folder": str(folder),
            "map_publish_period": 0.1,
            "egomotion.odometry": "none",
            "sync.max_wait": 0.5,
            "sync.dead_after": 30.0,
            "path_spacing": 0.0,
        },
    )
    process = Process(
        "node",
        [
            sys.executable,
            "-m",
            "recon4d_ros.ros.node",
            "--ros-args",
            "--params-file",
            str(parameters),
        ],
        folder / "node.log",
        environment,
    )
    yield process
    process.end()


@pytest.fixture(scope="module")
def car(environment, drive, node) -> Iterator[Car]:
    car = Car(int(environment["ROS_DOMAIN_ID"]), drive)
    yield car
    car.leave()


# --- one node through a long day; the tests follow each other


def test_it_says_what_it_waits_for(car):
    car.wait(
        lambda: "waiting for camera_info of left; camera_info of right" in car.words(), "the words"
    )
    assert car.state() == "active"
    car.calibrate(k=np.zeros(9), p=np.zeros(12))
    car.wait(lambda: "focal length" in car.words(), "the focal length")
    while "tf base_link->" not in car.words():
        car.calibrate()
        car.rest(0.2)
    assert not car.images[
        "left"
    ].get_subscription_count()  # it reads images only when it can use them


def test_it_starts_when_its_rig_is_complete(car):
    car.tf_static.publish(car.transforms)
    car.wait(
        lambda: all(publisher.get_subscription_count() for publisher in car.images.values()),
        "the node to read the images",
    )
    car.rest(
        1.0
    )  # we know of its readers; it has to know of our writers too, or a best-effort image is lost
    answers = car.drive(4)
    assert [answer.frame_sets for answer in answers] == [1, 2, 3, 4]
    assert all(all(answer.present) for answer in answers), (
        car.drops(),
        [list(answer.present) for answer in answers],
    )
    assert answers[-1].engine.startswith("geometric_stereo") and answers[-1].runtime in (
        "openvino",
        "onnxruntime",
    )
    assert answers[-1].latency > 0 and {"preprocess", "engine", "publish"} <= set(
        answers[-1].stages
    )
    car.wait(lambda: "recon4d: tracking:" in car.words(), "the tracking's diagnostics")


def test_outputs_have_the_contracts_types_frames_and_stamps(car):
    stamp = car.shoot()
    last = {}
    expected = [
        f"/recon4d/{name}"
        for name in (
            "points",
            "odometry",
            "objects",
            "objects_markers",
            "map_updates",
            "dynamic_points",
            "local_grid",
            "distance",
        )
    ]
    expected += [
        f"/recon4d/{name}/{what}"
        for name in CAMERAS
        for what in ("depth", "camera_info", "dynamic_mask", "image")
    ]

    def complete() -> bool:
        for topic in expected:
            for message in car.said[topic]:
                header = message.header if hasattr(message, "header") else message.markers[0].header
                if stamp_ns(header.stamp) == stamp:
                    last[topic] = message
        return len(last) == len(expected)

    car.wait(complete, "all outputs of one frame set")
    for name in CAMERAS:
        depth, info, mask, image = (
            last[f"/recon4d/{name}/{what}"]
            for what in ("depth", "camera_info", "dynamic_mask", "image")
        )
        assert image.encoding == "rgb8" and (image.height, image.width) == (mask.height, mask.width)
        assert len(image.data) == 3 * image.height * image.width and np.ptp(image.data) > 50
        assert (
            depth.encoding == "32FC1" and mask.encoding == "mono8" and depth.header.frame_id == name
        )
        assert (depth.height, depth.width) == (mask.height, mask.width) == (info.height, info.width)
        values = np.frombuffer(depth.data, np.float32)
        assert np.isfinite(values).mean() > 0.3 and np.nanmin(values) > 0
        assert set(np.unique(np.frombuffer(mask.data, np.uint8))) <= {0, 255}
        assert info.k[0] > 100 and not any(info.d)
    points = last["/recon4d/points"]
    assert points.header.frame_id == "base_link"
    cloud = point_cloud2.read_points(points)
    assert (
        set(cloud.dtype.names) == {"x", "y", "z", "rgb", "confidence"} and np.median(cloud["x"]) > 2
    )  # ahead of the car
    assert (
        last["/recon4d/odometry"].header.frame_id == "odom"
        and last["/recon4d/odometry"].child_frame_id == "base_link"
    )
    assert (
        last["/recon4d/objects"].header.frame_id
        == last["/recon4d/map_updates"].header.frame_id
        == last["/recon4d/local_grid"].header.frame_id
        == last["/recon4d/distance"].header.frame_id
        == "map"
    )
    grid, distance = last["/recon4d/local_grid"], last["/recon4d/distance"]
    cells = np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width)
    assert set(np.unique(cells)) <= {-1, 0, 100} and (cells == 0).sum() > 100
    metres = np.frombuffer(distance.data, np.float32).reshape(distance.height, distance.width)
    assert metres.shape == cells.shape and np.array_equal(metres == 0, cells == 100)
    car.wait(lambda: car.said["/recon4d/occupancy_grid"], "the lasting grid")
    whole = car.said["/recon4d/occupancy_grid"][-1]
    assert whole.header.frame_id == "map" and whole.info.resolution == grid.info.resolution
    assert len(whole.data) == whole.info.width * whole.info.height >= (150 / 0.2) ** 2
    assert (
        len(last["/recon4d/map_updates"].changed_keys)
        == 3 * last["/recon4d/map_updates"].changed.width
    )


def test_topics_are_those_of_the_table_and_of_the_shipped_layouts(car):
    types = {
        topic: kinds[0]
        for topic, kinds in car.get_publisher_names_and_types_by_node("recon4d", "/")
    }
    for output in OUTPUTS:
        for name in CAMERAS if "<camera>" in output.topic else ("",):
            topic = output.topic.replace("~", "/recon4d").replace("<camera>", name)
            assert (
                types[topic] == f"{output.type.__module__.split('.')[0]}/msg/{output.type.__name__}"
            ), topic
    assert (
        types["/tf"] == "tf2_msgs/msg/TFMessage"
        and types["/diagnostics"] == "diagnostic_msgs/msg/DiagnosticArray"
    )
    shown = set()
    displays = yaml.safe_load((REPOSITORY / "config/recon4d.rviz").read_text())[
        "Visualization Manager"
    ]["Displays"]
    shown |= {display["Topic"]["Value"] for display in displays if "Topic" in display}
    for panel in json.loads((REPOSITORY / "config/foxglove.json").read_text())[
        "configById"
    ].values():
        shown |= set(panel.get("topics", ())) | {
            panel[key] for key in ("topicPath", "topicToRender") if key in panel
        }
        shown |= {
            panel["imageMode"][key]
            for key in ("imageTopic", "calibrationTopic")
            if key in panel.get("imageMode", {})
        }
        shown |= {path["value"].split(".")[0] for path in panel.get("paths", ())}
    assert len(shown) > 8
    assert {topic.replace("/front/", "/left/") for topic in shown} <= set(types)


def test_the_tree_is_whole_and_the_pose_is_the_odometrys(car):
    odometry = car.said["/recon4d/odometry"][-1]
    car.wait(  # the two topics have no common order
        lambda: any(
            transform.child_frame_id == "base_link"
            and transform.header.stamp == odometry.header.stamp
            for message in car.said["/tf"]
            for transform in message.transforms
        ),
        "the transform at the last odometry's time",
    )
    buffer = tf2_ros.Buffer()
    for message in car.said["/tf"]:
        for transform in message.transforms:
            buffer.set_transform(transform, "test")
    for transform in car.transforms.transforms:
        buffer.set_transform_static(transform, "test")
    found = buffer.lookup_transform(
        "map", "base_link", rclpy.time.Time.from_msg(odometry.header.stamp)
    ).transform.translation
    position = odometry.pose.pose.position
    np.testing.assert_allclose(
        [found.x, found.y, found.z], [position.x, position.y, position.z], atol=1e-9
    )
    buffer.lookup_transform("map", "left", rclpy.time.Time.from_msg(odometry.header.stamp))


def test_the_map_is_latched_for_who_comes_late(car):
    car.drive(3)
    late: list[PointCloud2] = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = car.create_subscription(PointCloud2, "/recon4d/map", late.append, latched)
    car.wait(lambda: late, "the latched map")
    assert late[-1].header.frame_id == "map" and late[-1].width > 0
    car.destroy_subscription(subscription)


def test_a_broken_jpeg_costs_its_camera_one_image(car):
    def spoil(name: str, message: CompressedImage) -> None:
        if name == "left":
            message.data = message.data[:200]

    (answer,) = car.drive(1, spoil=spoil)
    assert list(answer.present) == [False, True]
    assert car.dropped("left")
    (answer,) = car.drive(1)
    assert all(answer.present)


def test_an_unknown_format_is_counted(car):
    def spoil(name: str, message: CompressedImage) -> None:
        if name == "right":
            message.format, message.data = "jp2", b"0000"

    (answer,) = car.drive(1, spoil=spoil)
    assert list(answer.present) == [True, False] and car.dropped("right", "'jp2'")


def test_a_camera_that_dies_is_missed_and_welcomed_back(car):
    answers = car.drive(2, cameras=("right",))
    assert [list(answer.present) for answer in answers] == [[False, True]] * 2
    car.rest(2.6)
    car.wait(lambda: "camera left: silent" in car.words(), "the silence to be said", 5.0)
    answers = car.drive(2)
    assert all(answers[-1].present)


def test_nan_in_the_odometry_is_counted(car):
    message = Odometry(child_frame_id="base_link")
    message.header.stamp = time_msg(10**9)
    message.pose.pose.position.x = float("nan")
    message.pose.pose.orientation.w = 1.0
    car.odometry.publish(message)
    car.drive(1)
    car.wait(lambda: car.drive(1) and car.dropped("odometry", "not finite"), "the count")


def test_a_calibration_that_changes_or_disagrees_is_counted(car):
    car.calibrate(k=np.array([300.0, 0, 10, 0, 300, 10, 0, 0, 1]))
    car.calibrate(width=99)
    car.calibrate(k=np.zeros(9), p=np.zeros(12))
    car.drive(1)
    reasons = ("changed its K", "99x", "focal length")
    car.wait(
        lambda: car.drive(1) and all(car.dropped("left", reason) for reason in reasons),
        "the counts",
    )


def test_pause_and_resume(car):
    assert car.call(SetBool, "pause", data=True).success
    before = car.status().frame_sets
    car.shoot()
    car.wait(lambda: car.status().tracking == Status.PAUSED, "the pause to be said")
    assert car.status().frame_sets == before
    assert car.call(SetBool, "pause", data=False).success
    assert car.drive(1)[0].tracking != Status.PAUSED


def test_the_map_can_be_saved(car, tmp_path):
    def saved() -> SaveMap.Response | None:
        car.drive(1)  # where the drive starts over the pose is lost, and the map begins anew
        answer = car.call(SaveMap, "save_map", path=str(tmp_path / "map.ply"))
        return answer if answer.points else None

    answer = car.wait(saved, "a map with points")
    assert answer.success and (tmp_path / "map.ply").read_bytes().startswith(b"ply")
    assert (
        not (answer := car.call(SaveMap, "save_map", path="/proc/nowhere/map.ply")).success
        and answer.message
    )
    assert (
        not (answer := car.call(SaveMap, "save_map", path=str(tmp_path / "map.xyz"))).success
        and "map.xyz" in answer.message
    )
    assert car.call(SaveMap, "save_map", path="").success


def test_parameters_are_described_and_refused_while_in_use(car):
    (described,) = car.call(
        DescribeParameters, "describe_parameters", names=["mapping.voxel_size"]
    ).descriptors
    assert described.description and described.floating_point_range

    def put(name: str, value: float):
        parameter = ParameterMsg(
            name=name, value=ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
        )
        return car.call(SetParameters, "set_parameters", parameters=[parameter]).results[0]

    answer = put("mapping.voxel_size", 0.25)
    assert not answer.successful and "configure" in answer.reason
    assert not put("map_publish_period", -1.0).successful
    assert put("map_publish_period", 0.2).successful


def test_reset_starts_anew(car):
    assert car.call(Trigger, "reset").success
    (answer,) = car.drive(1)
    assert answer.frame_sets == 1
    position = car.said["/recon4d/odometry"][-1].pose.pose.position
    assert abs(position.x) < 1.0


def test_time_that_jumps_back_resets(car):
    car.drive(3)
    before = car.said["/recon4d/map_updates"][-1].sequence
    car.shift_ns -= int(100e9)
    answers = car.drive(2)
    assert answers[0].frame_sets == 1 and answers[1].frame_sets == 2
    car.wait(
        lambda: (
            stamp_ns(car.said["/recon4d/map_updates"][-1].header.stamp)
            == stamp_ns(answers[1].header.stamp)
        ),
        "its map update",
    )
    assert car.said["/recon4d/map_updates"][-1].sequence < before


def test_lifecycle_by_a_manager(car):
    assert car.transition(Transition.TRANSITION_DEACTIVATE) and car.state() == "inactive"
    count = len(car.said["/recon4d/odometry"])
    car.shoot()
    car.rest(0.5)
    assert len(car.said["/recon4d/odometry"]) == count
    assert car.transition(Transition.TRANSITION_CLEANUP) and car.state() == "unconfigured"
    assert not car.call(Trigger, "reset").success
    mode = ParameterMsg(
        name="publish_tf",
        value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="map_odom"),
    )
    assert car.call(SetParameters, "set_parameters", parameters=[mode]).results[0].successful
    assert car.transition(Transition.TRANSITION_CONFIGURE) and car.transition(
        Transition.TRANSITION_ACTIVATE
    )

    def reads() -> bool:
        car.calibrate()
        car.rest(0.2)
        return all(publisher.get_subscription_count() for publisher in car.images.values())

    car.wait(reads, "the node to read the images again")
    car.rest(1.0)
    assert car.drive(2)[-1].frame_sets == 2
    assert car.said["/recon4d/odometry"][-1].header.frame_id == "map"
    assert car.dropped("tf", "no odom -> base_link")


def test_another_node_may_own_the_odometry(car):
    """map_odom (set above): the node sends only map -> odom, such that the whole is its own
    pose."""
    T_odom_base = exp(np.array([7.0, -2.0, 0.0, 0.0, 0.0, 0.4]))
    stamp = car.next_stamp()
    publisher = car.create_publisher(TFMessage, "/tf", 10)
    car.wait(publisher.get_subscription_count, "the node's tf listener")
    car.rest(0.5)
    for ns in (stamp - 10**8, stamp + 10**8):
        publisher.publish(
            TFMessage(transforms=[transform_msg(T_odom_base, ns, "odom", "base_link")])
        )
    car.rest(0.3)
    car.drive(1)
    edge = car.wait(
        lambda: next(
            (
                t
                for message in car.said["/tf"]
                for t in message.transforms
                if t.header.frame_id == "map" and stamp_ns(t.header.stamp) == stamp
            ),
            None,
        ),
        "map -> odom",
    )
    odometry = next(m for m in car.said["/recon4d/odometry"] if stamp_ns(m.header.stamp) == stamp)
    T_map_base = pose_matrix(
        odometry.pose.pose.position, odometry.pose.pose.orientation, "odometry"
    )
    np.testing.assert_allclose(transform_matrix(edge) @ T_odom_base, T_map_base, atol=1e-9)
    ours = [
        t
        for message in car.said["/tf"]
        for t in message.transforms
        if stamp_ns(t.header.stamp) == stamp
    ]
    assert [(t.header.frame_id, t.child_frame_id) for t in ours] == [("map", "odom")]


def test_images_do_not_queue_up(car):
    """Far more sets than the engine can take: it works on new ones and counts the rest."""
    for _ in range(12):
        last = car.shoot()
        car.rest(0.02)
    car.wait(lambda: stamp_ns(car.status().header.stamp) == last, "the newest to come out")
    assert car.dropped("a newer frame set came")


def test_it_ends_cleanly_when_asked_to(car, node):
    node.interrupt()
    assert node.wait(20.0) == 0, node.text()
    assert "Traceback" not in node.text()
    for words in ("counted on /diagnostics", "reset: the images' time jumped back"):
        assert words in node.text()


# --- what cannot start

BAD_STARTS = {
    "no cameras": ({"rig_file": ""}, "parameter cameras is empty"),
    "no such rig file": ({"rig_file": "/nowhere/rig.yaml"}, "rig file /nowhere/rig.yaml"),
    "no such engine": ({"engine": "/nowhere/engine"}, "/nowhere/engine"),
    "engine for another rig": ({"engine": "geometric_surround6"}, "6 camera"),
    "unknown camera": ({"cameras": ["left", "middle"]}, "has no camera middle"),
    "out of range": ({"mapping.voxel_size": -3.0}, "parameter mapping.voxel_size is -3.0"),
    "not a choice": ({"publish_tf": "sideways"}, "parameter publish_tf is 'sideways'"),
    "wrong type": ({"path_spacing": "far"}, "parameter path_spacing is 'far': expected a float"),
}


# one each of what the node, the engines and the parameters refuse; `full` starts the others too
FEW = ("no cameras", "no such engine", "wrong type")


@pytest.fixture(scope="module")
def bad_starts(environment, tmp_path_factory, request) -> Iterator[dict[str, Process]]:
    """All that are asked for at once: each is mostly Python's own start."""
    folder = tmp_path_factory.mktemp("bad")
    processes = {}
    asked = {
        item.callspec.params["name"]
        for item in request.session.items
        if "bad_starts" in getattr(item, "fixturenames", ())
    }
    for index, name in enumerate(sorted(asked)):
        values, _ = BAD_STARTS[name]
        file = write_parameters(
            folder / f"{index}.yaml",
            {"rig_file": str(REPOSITORY / "config/rigs/kitti_like.yaml"), **values},
        )
        processes[name] = Process(
            name,
            [
                sys.executable,
                "-m",
                "recon4d_ros.ros.node",
                "--ros-args",
                "--params-file",
                str(file),
            ],
            folder / f"{index}.log",
            environment,
        )
    yield processes
    for process in processes.values():
        process.end()


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in BAD_STARTS],
)
def test_what_cannot_start_says_so_once_and_exits_with_2(bad_starts, name):
    process = bad_starts[name]
    assert process.wait(60.0) == 2, process.text()
    text = process.text()
    assert text.count(BAD_STARTS[name][1]) == 1, text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_player_and_recorder_end_cleanly_on_a_signal(environment, drive, tmp_path, number):
    python = [sys.executable, "-m"]
    player = Process(
        "player",
        [*python, "recon4d_ros.ros.player", str(drive), "--wait-for", "0", "--loop"],
        tmp_path / "player.log",
        environment,
    )
    recorder = Process(
        "recorder",
        [
            *python,
            "recon4d_ros.ros.recorder",
            "--out",
            str(tmp_path / "bag"),
            "--topics",
            "/tf_static",
            "/camera/left/camera_info",
        ],
        tmp_path / "recorder.log",
        environment,
    )
    began = time.monotonic()
    while "ready" not in recorder.text() and time.monotonic() < began + PATIENCE:
        time.sleep(0.05)
    time.sleep(max(0.5, time.monotonic() - began))  # the player may start as slowly, and later
    for process in (recorder, player):
        os.kill(process.pid, number)
        assert process.wait(20.0) == 0, process.text()
        process.end()
    with BagReader(tmp_path / "bag") as reader:
        assert (
            reader.topics["/tf_static"].count >= 1
            and reader.topics["/camera/left/camera_info"].count > 0
        )


def test_player_and_recorder_refuse_bad_input(environment, tmp_path):
    commands = [
        (["player", "/nowhere/bag"], "/nowhere/bag"),
        (["recorder", "--out", "/proc/bag", "--topics", "/a"], "/proc/bag"),
    ]
    for index, (words, sentence) in enumerate(commands):
        process = Process(
            words[0],
            [sys.executable, "-m", f"recon4d_ros.ros.{words[0]}", *words[1:]],
            tmp_path / f"{index}.log",
            environment,
        )
        assert process.wait(30.0) == 2, process.text()
        assert sentence in process.last_words() and "Traceback" not in process.text()
        process.end()


# --- the whole graph


@pytest.fixture(scope="module")
def recorded(drive, tmp_path_factory) -> GraphResult:
    """The drive played to the node, and what the recorder heard."""
    return run_graph(
        drive,
        tmp_path_factory.mktemp("graph") / "out",
        {"map_publish_period": 0.5},
        rate=0.12,
        show_progress=False,
    )


def test_player_node_and_recorder_as_three_processes(drive, recorded):
    result = recorded
    assert result.ok and not result.failure(), {
        name: log.read_text() for name, log in result.logs.items()
    }
    with BagReader(result.bag) as reader:
        types = {topic: info.type for topic, info in reader.topics.items()}
        by_topic: dict[str, list] = defaultdict(list)
        for topic, receive_ns, message in reader.messages():
            by_topic[topic].append((receive_ns, message))
    with BagReader(drive) as reader:
        start = reader.info().start_ns
        stamps = {receive_ns for _, receive_ns, _ in reader.messages(["/camera/left/camera_info"])}
    assert (
        types["/recon4d/map"] == "sensor_msgs/msg/PointCloud2"
        and types["/recon4d/map_updates"] == "recon4d_msgs/msg/MapUpdate"
    )
    sets = len(by_topic["/recon4d/odometry"])
    assert sets >= 0.5 * SECONDS * RATE, (
        "fewer than half of the frame sets came out at an eighth of the rate"
    )
    for topic in (
        "/recon4d/points",
        "/recon4d/left/depth",
        "/recon4d/right/dynamic_mask",
        "/recon4d/objects",
        "/recon4d/map_updates",
    ):
        assert len(by_topic[topic]) == sets, f"{topic} lost messages on the way to the recorder"
    sequence = [message.sequence for _, message in by_topic["/recon4d/map_updates"]]
    assert sequence == list(range(sequence[0], sequence[0] + sets))
    for receive_ns, message in by_topic["/recon4d/left/depth"]:
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec in stamps
        assert 0 <= receive_ns - start < (SECONDS + 10) * 1e9  # the bag's time, from /clock
    last_map = by_topic["/recon4d/map"][-1][1]
    assert last_map.width > 100 and last_map.header.frame_id == "map"
    final = by_topic["/recon4d/status"][-1][1]
    assert final.frame_sets == sets and final.tracking in (Status.STARTING, Status.TRACKING)
    assert all(
        all(message.present) for _, message in by_topic["/recon4d/status"] if message.frame_sets
    )  # slow play splits no set


def test_what_was_heard_is_written_and_scored_as_a_replay_is(drive, recorded, tmp_path):
    rig = small_pair(0)
    engine = choose_engine("", rig)
    summary = collect(recorded.bag, drive, tmp_path, rig, engine)
    with BagReader(recorded.bag) as reader:
        statuses = list(  # without the heartbeats, which repeat the last one
            {
                stamp_ns(message.header.stamp): message
                for _, _, message in reader.messages(["/recon4d/status"])
                if message.frame_sets
            }.values()
        )
        heard = {
            stamp_ns(message.header.stamp): message
            for _, _, message in reader.messages(["/recon4d/left/depth"])
        }
    assert (
        summary["frames"] == len(statuses) == len(read_trajectory(tmp_path / "trajectory.tum")[0])
    )
    assert summary["frames_played"] == SECONDS * RATE and summary["cameras"] == list(rig.names)
    assert {"engine", "publish", "reception_to_publication"} <= summary["latency_ms"].keys()
    assert summary["drops"] == dict(
        zip(statuses[-1].drop_reasons, map(int, statuses[-1].drop_counts), strict=True)
    )
    assert [entry.stamp_ns for entry in read_objects(tmp_path / "objects.jsonl")] == sorted(
        stamp_ns(s.header.stamp) for s in statuses
    )
    spec = load_spec(engine, rig)
    preprocessor = Preprocessor(
        rig, make_calibration(rig, spec.input_size, spec.working_size), spec.channels
    )
    for (
        stamp,
        message,
    ) in heard.items():  # what is in the file is what was heard, in the source image's geometry
        depth = preprocessor.to_source(
            np.frombuffer(message.data, np.float32).reshape(message.height, message.width), 0
        )
        written = read_depth(tmp_path / f"depth/left/{stamp}.png")
        near = depth < 200
        assert (
            np.abs(written[near] - depth[near]).max() < 1 / 200
            and (tmp_path / f"dynamic/left/{stamp}.png").is_file()
        )
    metrics = summary["metrics"]
    assert metrics["depth"]["near"]["abs_rel"] < 0.3 and metrics["depth"]["near"]["pixels"] > 10_000
    assert (
        metrics["trajectory"]["path"] > 1.0
        and summary["map_points"] == len(read_cloud(tmp_path / "map.ply").xyz) > 100
    )
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == summary["frames"]
    assert (tmp_path / "overview.png").stat().st_size > 10_000


def test_a_picture_that_the_played_bag_lacks_is_black_and_costs_nothing_else(
    drive, recorded, tmp_path
):
    with BagReader(recorded.bag) as reader:
        stamps = sorted(
            stamp_ns(message.header.stamp)
            for _, _, message in reader.messages(["/recon4d/left/depth"])
        )
    with BagReader(drive) as reader, BagWriter(tmp_path / "holey") as writer:
        for topic, kind, receive_ns, data in reader.raw_messages():
            if (
                topic != "/camera/left/image_raw/compressed"
                or stamp_ns(reader.deserialize(data, kind).header.stamp) != stamps[0]
            ):
                writer.write_raw(topic, kind, data, receive_ns)
    rig = small_pair(0)
    spec = load_spec(choose_engine("", rig), rig)
    calibration = make_calibration(rig, spec.input_size, spec.working_size)
    recording = Recording(
        recorded.bag, tmp_path / "holey", Preprocessor(rig, calibration, spec.channels), calibration
    )
    first, *others = recording.frames()
    assert (
        list(first.frame_set.images) == ["right"]
        and all(first.frame.present)
        and np.isfinite(first.geometry.depth[0]).any()
    )
    assert others and all(list(result.frame_set.images) == ["left", "right"] for result in others)
    overview = OverviewRecorder(rig)
    overview.add(first, recording.preprocessor)
    left, right = overview.data(recording.cloud, {}, None).cameras
    assert not left.image.any() and right.image.any() and np.isfinite(left.depth).any()
