"""The node in the test's own process, without others around it: what it refuses, what it counts,
and what it says when it cannot go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from recon4d_msgs.srv import LoadMap, SaveMap
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from recon4d_ros.errors import MapError
from recon4d_ros.ros import session as session_module
from recon4d_ros.ros.conversions import transform_msg
from recon4d_ros.ros.graph import graph_environment
from recon4d_ros.ros.node import Recon4dNode
from recon4d_ros.ros.offered import BEST_EFFORT, RELIABLE, image_qos
from recon4d_ros.ros.worker import Worker
from recon4d_ros.types import FrameSet, Jump, OccupancyGrid, RawImage

REPOSITORY = Path(__file__).resolve().parent.parent
START = 1_700_000_000_000_000_000
PIXELS = np.zeros(12, np.uint8)
Make = Callable[..., Recon4dNode]


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    environment = graph_environment()
    for name in (
        "ROS_AUTOMATIC_DISCOVERY_RANGE",
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        "FASTDDS_DEFAULT_PROFILES_FILE",
    ):
        if name in environment:
            os.environ[name] = environment[name]
    context = Context()
    context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
    yield context
    context.try_shutdown()


@pytest.fixture
def make(context) -> Iterator[Make]:
    """make(*remappings, **parameters) gives a node of two cameras that nobody spins; `__` in a name
    stands for a dot."""
    nodes = []

    def one(*remappings: str, **values: Any) -> Recon4dNode:
        overrides = [
            Parameter(name.replace("__", "."), value=value)
            for name, value in {"cameras": ["left", "right"], **values}.items()
        ]
        words = [word for rule in remappings for word in ("-r", rule)]
        nodes.append(
            Recon4dNode(
                context=context,
                parameter_overrides=overrides,
                cli_args=["--ros-args", *words] if words else None,
            )
        )
        return nodes[-1]

    yield one
    for node in nodes:
        node.finish()
        node.destroy_node()


def image(stamp: int) -> RawImage:
    return RawImage(stamp, "mono8", PIXELS, 4, 3, 4)


def camera_words(node: Recon4dNode, camera: str) -> str:
    message = node._session.health.diagnostics_msg(
        0, "recon4d", state="active", waiting=[], paused=False, silence=60.0
    )
    return next(
        status.message for status in message.status if status.name == f"recon4d: camera {camera}"
    )


# --- images


def test_an_image_without_a_time_stamp_has_its_receptions_and_is_counted(make):
    node = make()
    node.start()
    sets = []
    node._session._worker.put = sets.append
    for _ in range(3):
        now = node.get_clock().now().nanoseconds
        for camera, stamp in (("left", now), ("right", 0)):
            node._session._on_image(camera, image(stamp), "")
    stamps = [taken.stamp_ns for frame_set in sets for taken in frame_set.images.values()]
    assert stamps and all(abs(stamp - now) < 60e9 for stamp in stamps)
    assert node._session._synchronizer.statistics.jumps == 0
    assert "3 without a time stamp" in camera_words(
        node, "right"
    ) and "without" not in camera_words(node, "left")


# --- what cannot go on says why, and leaves nothing behind


class Reconstructor:
    """Stands in for the real one where a test needs the node to have one."""

    class mapper:
        size = 0

        @staticmethod
        def points() -> tuple[np.ndarray, ...]:
            return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32)

    class grids:
        @staticmethod
        def around(stamp_ns: int) -> OccupancyGrid:
            return OccupancyGrid(stamp_ns, np.zeros((2, 3), np.int8), 0.2, np.zeros(2))

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def entities(node: Recon4dNode) -> tuple[int, int]:
    return len(list(node.publishers)), len(list(node.subscriptions))


@pytest.mark.parametrize("name", ["left.image_topic", "left.camera_info_topic", "odom_topic"])
@pytest.mark.parametrize(
    "topic, why",
    [
        ("/a topic", "alphanumerics"),
        ("/left//image", "repeated '/'"),
        ("/1st", "start with a number"),
    ],
)
def test_a_name_that_no_topic_can_have_is_one_sentence(make, name, topic, why):
    node = make(**{name.replace(".", "__"): topic})
    node.start()
    assert (
        node.failure.startswith(f"parameter {name} is {topic!r}: expected the name of a topic")
        and why in node.failure
    )
    assert node._state == "unconfigured"


@pytest.mark.parametrize(
    "topic, how, reader",
    [
        ("/camera/left/image_raw", "subscription", "left"),
        ("/camera/left/camera_info", "subscription", ""),
        ("/odom", "subscription", ""),
        ("/recon4d/map", "publisher", ""),
    ],
)
@pytest.mark.parametrize("policy, value", [("reliability", "wrong"), ("reliability", 3)])
def test_qos_overrides_that_cannot_be_are_one_sentence(make, topic, how, reader, policy, value):
    override = {f"qos_overrides.{topic}.{how}.{policy}": value}
    node = make(odom_topic="/odom", left__transport="raw", **override)
    before = entities(node)
    node.start()
    if reader:  # images are subscribed to by the timer, once there is something to do with them
        assert not node.failure
        node._session._reconstructor = Reconstructor()
        node._tick()
    assert (
        node.failure.startswith((topic, topic.replace("/recon4d", "~")))
        and "cannot be" in node.failure
        and policy in node.failure
    )
    assert node._state == "unconfigured" and node._session is None
    assert entities(node) == before


@pytest.mark.parametrize("identity", [Transition.TRANSITION_ACTIVATE, 99])
def test_a_transition_that_the_state_does_not_have_is_refused(make, identity, capfd):
    """In rclpy it ends the process."""
    node = make()
    change = node._service_change_state.callback
    request = ChangeState.Request(transition=Transition(id=identity))
    assert not change(request, ChangeState.Response()).success
    assert f"transition {identity} refused: the node is unconfigured" in capfd.readouterr().err
    request.transition.id = Transition.TRANSITION_CONFIGURE
    assert change(request, ChangeState.Response()).success


def test_a_second_node_of_the_same_name_is_said(make):
    node = make()
    said = []
    node._diagnostics = SimpleNamespace(publish=said.append)
    names = [("recon4d", "/"), ("recon4d", "/other")]
    node.get_node_names_and_namespaces = lambda: names
    for expected in (0, 1):
        node._report()
        found = [status.message for status in said[-1].status if status.name == "recon4d: name"]
        assert len(found) == expected and all("same name" in words for words in found)
        names.append(("recon4d", "/"))


def test_a_node_that_ran_stays_when_it_cannot_be_configured_anew(make):
    node = make()
    node.start()
    node.failure = "the engine is gone"
    assert node.failed_to_start
    node.failure = ""
    node._session._reconstructor = Reconstructor()
    node._tick()
    node.failure = "the engine is gone"
    assert not node.failed_to_start


def test_images_that_wait_at_a_reset_are_counted(make):
    node = make()
    node.start()
    session = node._session
    session._on_image("left", image(START), "")
    session.reset("asked for")
    assert session.health.drops() == {("left", session_module.FORGOTTEN): 1}


def test_images_before_the_engine_is_loaded_are_counted(make):
    """A driver that is woken sends images before the rig is known."""
    node = make()
    node.start()
    session = node._session
    frame_set = FrameSet(START, {"left": image(START), "right": image(START)})
    session._worker.put(frame_set)
    session._worker.call(lambda: None).result(5)
    session._worker.call(partial(session._process, frame_set)).result(5)
    assert session.health.drops()["right", session_module.NOT_LOADED] == 2


def test_the_partner_of_a_stereo_pair_is_listened_to(make):
    """Only where a camera says that it is the second of a pair, and the first is not the rig's."""
    node = make(cameras=["right"])
    node.start()
    source = node._session._source
    info = CameraInfo(width=64, height=48, k=[50.0, 0, 32, 0, 50, 24, 0, 0, 1], d=[])
    info.header.frame_id = "left"
    info.p = [50.0, 0, 32, 0, 0, 50, 24, 0, 0, 0, 1, 0]
    left = node.create_publisher(CameraInfo, "/camera/left/camera_info", 1)
    assert not source.wants_partners()
    pose = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0.0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
    edge = transform_msg(pose, 0, "base_link", "left")
    node._session._fixed.add_static(TFMessage(transforms=[edge]))
    second = deepcopy(info)
    second.p[3] = -25.0
    source.offer("right", second)
    assert source.wants_partners()
    end = time.monotonic() + 5
    while left.topic_name not in source._expected and time.monotonic() < end:
        source.expect_partners(node._session._calibrations.others(source.partner))
        time.sleep(0.02)
    assert source._expected == {left.topic_name} and source.rig() is None
    source.partner(left.topic_name, info)
    assert source.rig().cameras[0].T_base_camera[1, 3] == pytest.approx(-0.5)


def test_images_while_paused_are_no_gap(make):
    node = make()
    node.start()
    session = node._session
    for n in range(30):
        if n == 20:
            session.pause(True)
        session._on_image("left", image(START + n * 10**8), "")
        if n == 25:
            session.pause(False)
    session._count_sync()
    assert not any(reason == session_module.NEVER_CAME for _, reason in session.health.drops())


def test_a_bug_in_a_transition_is_told_with_its_traceback(make, monkeypatch, capfd):
    node = make()
    node.start()

    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(node._session, "deactivate", broken)
    node.trigger_deactivate()
    assert "ZeroDivisionError: by nothing" in node.failure and node._state == "unconfigured"
    monkeypatch.undo()
    assert "in broken" in capfd.readouterr().err
    node.start()
    assert node._state == "active" and not node.failure


def test_a_bug_in_the_timer_does_not_end_the_process(make, monkeypatch):
    node = make()
    node.start()
    monkeypatch.setattr(node._session._source, "rig", lambda: 1 / 0)
    node._tick()
    assert "ZeroDivisionError" in node.failure and node._state == "unconfigured"


def test_a_session_that_cannot_be_made_leaves_nothing_open(make, monkeypatch):
    node = make()
    before, threads = entities(node), threading.active_count()
    monkeypatch.setattr(Worker, "call", lambda worker, function: 1 / 0)
    rig = REPOSITORY / "config/rigs/kitti_like.yaml"
    node.set_parameters([Parameter("rig_file", value=str(rig))])
    node.start()
    assert "ZeroDivisionError" in node.failure
    assert entities(node) == before and threading.active_count() == threads


def test_a_bad_parameter_is_not_forgiven_the_second_time(make):
    node = make(
        rig_file=str(REPOSITORY / "config/rigs/kitti_like.yaml"),
        mapping__voxel_size=-3.0,
        left__transport=7,
        path_length="long",
    )
    for _ in range(2):
        node.start()
        assert (
            "parameter mapping.voxel_size is -3.0" in node.failure
            and "parameter path_length is 'long'" in node.failure
        )
        assert node._state == "unconfigured"
    node.set_parameters(
        [Parameter("mapping.voxel_size", value=0.25), Parameter("path_length", value=5)]
    )
    for _ in range(2):
        node.start()
        assert node.failure == "parameter left.transport is 7: expected a str"


def test_a_cameras_parameters_are_settled_at_configure_too(make):
    node = make()
    node.start()
    (answer,) = node.set_parameters([Parameter("left.image_topic", value="/elsewhere")])
    assert not answer.successful and "configure" in answer.reason
    node.trigger_deactivate()
    node.trigger_cleanup()
    (answer,) = node.set_parameters([Parameter("left.transport", value="pigeon")])
    assert not answer.successful and "auto, raw, compressed" in answer.reason
    assert node.set_parameters([Parameter("left.transport", value="raw")])[0].successful


# --- counts and time


def test_each_camera_has_its_own_reason_and_numbers_make_no_new_ones(make):
    node = make(rig_file=str(REPOSITORY / "config/rigs/kitti_like.yaml"))
    node.start()
    session = node._session
    for k in range(4):
        broken = RawImage(
            START + k * 10**8, "jpeg", np.frombuffer(b"\xff\xd8\xff" + bytes(40 + k), np.uint8)
        )
        small = RawImage(START + k * 10**8, "mono8", PIXELS, 4, 3, 4)
        session._worker.call(
            partial(session._process, FrameSet(START + k * 10**8, {"left": broken, "right": small}))
        ).result(60)
    counts = session.health.drops()
    assert sorted((camera, count) for (camera, _), count in counts.items()) == [
        ("left", 4),
        ("right", 4),
    ]
    reasons = dict(counts.keys())
    assert "jpeg" in reasons["left"] and "4x3" in reasons["right"]
    assert session._reconstructor.undecodable == {
        f"{camera}: {reason}": 4 for camera, reason in counts
    }


def test_a_memory_that_is_not_finite_is_forgotten_and_counted(make):
    node = make(rig_file=str(REPOSITORY / "config/rigs/kitti_like.yaml"))
    node.start()
    session = node._session
    session._worker.call(lambda: None).result(60)  # the engine is loaded in the worker's thread
    runtime = session._reconstructor.engine._runtime
    runtime.remember({"pointer_weight": np.full_like(runtime.memory("pointer_weight"), np.nan)})
    for k in range(2):  # images of another size: no depth, which is a reason to look at the memory
        session._worker.call(
            partial(
                session._process, FrameSet(START + k * 10**8, {"left": image(START + k * 10**8)})
            )
        ).result(60)
    counts = {
        reason: count
        for (source, reason), count in session.health.drops().items()
        if source == "engine"
    }
    assert counts == {"its memory held what is not finite, and was forgotten": 1}
    assert any(
        "engine: its memory held what is not finite" in reason
        for reason in session.status_msg().drop_reasons
    )
    message = session.health.diagnostics_msg(
        0, "recon4d", state="active", waiting=[], paused=False, silence=60.0
    )
    assert any("forgotten" in pair.key for status in message.status for pair in status.values)


def test_drops_are_counted_while_no_frame_set_comes_out(make):
    node = make(sync__policy="exact")
    node.start()
    session = node._session
    before = 0
    for turn, lost in enumerate((200, 199)):  # of the second the last one still waits
        for k in range(100):
            for index, camera in enumerate(("left", "right")):
                session._on_image(camera, image(START + 10**9 * turn + 2 * k + index), "")
        assert sum(session.health.drops().values()) == before
        if turn:
            node._tick()
        else:
            node.trigger_deactivate()  # the one that waited goes with the synchronizer
            node.trigger_activate()
        before += lost
        assert sum(session.health.drops().values()) == before


class Steps(Reconstructor):
    """Notes the jump of each frame set, and goes no further."""

    forgotten: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self.undecodable: dict[str, int] = {}
        self.jumps: list[Jump] = []

    def step(self, frame_set: FrameSet) -> None:
        self.jumps.append(frame_set.jump)
        raise RuntimeError("no further")


def test_a_source_that_began_anew_while_the_node_was_inactive_is_a_jump(make):
    node = make()
    node.start()
    session, steps = node._session, Steps()
    session._reconstructor = steps

    def drive(*seconds: int) -> None:
        for second in seconds:
            stamp = START + second * 10**9
            with pytest.raises(RuntimeError):
                session._worker.call(
                    partial(session._process, FrameSet(stamp, {"left": image(stamp)}))
                ).result(5)

    drive(50, 51)
    node.trigger_deactivate()
    node.trigger_activate()
    drive(3, 4)
    assert steps.jumps == [Jump.NONE, Jump.NONE, Jump.BACKWARD, Jump.NONE]
    session.reset("asked for")
    drive(1)
    assert steps.jumps[-1] is Jump.NONE  # what was reset begins anew without another reset


def test_a_gap_in_time_is_told(make, capfd):
    node = make()
    node.start()
    session = node._session
    session._reconstructor = Steps()
    for second, jump in ((0, Jump.NONE), (5, Jump.FORWARD)):
        stamp = START + second * 10**9
        with pytest.raises(RuntimeError):
            session._worker.call(
                partial(session._process, FrameSet(stamp, {"left": image(stamp)}, jump=jump))
            ).result(5)
    assert "jumped forward: 5.0 s" in capfd.readouterr().err


def test_a_worker_that_is_stuck_is_said_and_kills_nothing(make, monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "CALL_TIMEOUT", 0.05)
    node = make(output_folder=str(tmp_path))
    node.start()
    node._session._reconstructor = Reconstructor()
    free = threading.Event()
    node._session._worker.call(lambda: free.wait(20))
    try:
        answer = node._on_reset(Trigger.Request(), Trigger.Response())
        assert (
            not answer.success
            and "still busy after 0.05 s: everything starts anew when it is free" in answer.message
        )
        answer = node._on_save_map(SaveMap.Request(), SaveMap.Response())
        assert not answer.success and "the map is written when it is free" in answer.message
        node._on_clock_jump(None)
        node.trigger_deactivate()
        assert node._state == "inactive" and not node.failure
    finally:
        free.set()


def test_maps_that_cannot_be_loaded_or_saved_are_one_sentence(make, tmp_path):
    node = make(output_folder=str(tmp_path))

    def load(path: object, mode: str = "") -> str:
        request = LoadMap.Request(path=str(path), mode=mode)
        answer = node._on_load_map(request, LoadMap.Response())
        assert not answer.success and "\n" not in answer.message
        return answer.message

    assert "unconfigured" in load(tmp_path)
    node.start()
    assert "waits for its rig" in load(tmp_path)
    session = node._session
    session._reconstructor = Reconstructor()
    session._reconstructor.rig, session._reconstructor.places = None, None
    assert "cannot be read" in load(tmp_path / "nothing")
    assert "is no map" in load(tmp_path)
    assert "expected mapping, localization" in load(tmp_path, "sideways")
    request = SaveMap.Request(path=str(tmp_path / "folder"))
    answer = node._on_save_map(request, SaveMap.Response())
    assert not answer.success and "set localization.mode to mapping" in answer.message
    assert node._state == "active"


class Folder:
    """A map that was opened."""

    frames: ClassVar[list[int]] = [1, 2]

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_a_map_that_is_loaded_late_or_never_is_not_left_open(make, monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "CALL_TIMEOUT", 0.05)
    folders: list[Folder] = []
    monkeypatch.setattr(
        session_module, "open_map", lambda *_: folders.append(Folder()) or folders[-1]
    )
    node = make()
    node.start()
    session, free, used = node._session, threading.Event(), []
    session._reconstructor = loaded = Reconstructor()
    loaded.rig, loaded.map_notes = None, []
    loaded.use_map = lambda *map_and_mode: used.append(map_and_mode)

    def load() -> str:
        request = LoadMap.Request(path=str(tmp_path), mode="localization")
        return node._on_load_map(request, LoadMap.Response()).message

    session._worker.call(lambda: free.wait(20))
    assert "the map is loaded when it is free" in load()
    free.set()
    session._worker.call(lambda: None).result(5)
    assert used == [(folders[0], "localization")] and not folders[0].closed
    # the next engine looks in that map, too
    assert session._map == (tmp_path, "localization")
    stuck = threading.Event()
    session._worker.call(lambda: stuck.wait(20))
    assert "when it is free" in load()
    session._worker.abandon()  # as the watchdog does
    assert folders[1].closed and len(used) == 1
    stuck.set()


def test_a_map_that_cannot_be_used_is_not_left_open(make, monkeypatch, tmp_path):
    folder = Folder()
    monkeypatch.setattr(session_module, "open_map", lambda *_: folder)
    node = make()
    node.start()
    session = node._session
    session._reconstructor = loaded = Reconstructor()
    loaded.rig, loaded.map_notes = None, []

    def fails(*_: object) -> None:
        raise MapError("map street: it broke")

    loaded.use_map = fails
    response = node._on_load_map(LoadMap.Request(path=str(tmp_path)), LoadMap.Response())
    assert not response.success and "it broke" in response.message
    assert folder.closed and session._map != (tmp_path, "")


def test_a_step_that_does_not_end_is_left_and_another_engine_started(make, monkeypatch):
    node = make(watchdog=0.2)
    node.start()
    session, free, shown = node._session, threading.Event(), []

    class Stuck(Reconstructor):
        rig, places = "the rig", None
        forgotten: ClassVar[dict[str, int]] = {}

        def step(self, frame_set: FrameSet) -> None:
            free.wait(20)

    loaded = Reconstructor()
    monkeypatch.setattr(session, "_load", lambda rig: setattr(session, "_reconstructor", loaded))
    monkeypatch.setattr(session, "_begin_anew", lambda reset: shown.append("anew"))
    monkeypatch.setattr(session._publishers, "show", lambda *_: shown.append("a stuck result"))
    session._reconstructor, stuck = Stuck(), session._worker
    session._worker.put(FrameSet(START, {"left": image(START)}))
    try:
        end = time.monotonic() + 5
        while session._reconstructor is not loaded and time.monotonic() < end:
            node._tick()
            time.sleep(0.02)
        assert session._reconstructor is loaded and session._worker is not stuck
        assert session.health.restarts == 1 and not node.failure
    finally:
        free.set()
    stuck._thread.join(5)
    session._worker.call(lambda: None).result(5)
    assert shown == ["anew"]


def test_reliable_where_every_publisher_is(make):
    node = make()
    topic = "/camera/left/image_raw"
    offers = []
    node.get_publishers_info_by_topic = lambda name: [
        SimpleNamespace(qos_profile=QoSProfile(depth=1, reliability=offer)) for offer in offers
    ]
    assert image_qos(node, topic) is BEST_EFFORT and image_qos(node, topic, RELIABLE) is RELIABLE
    offers.append(ReliabilityPolicy.RELIABLE)
    assert image_qos(node, topic) is RELIABLE
    offers.append(ReliabilityPolicy.BEST_EFFORT)
    assert image_qos(node, topic) is BEST_EFFORT


def test_a_driver_that_comes_back_with_another_qos_is_read(make):
    """rclpy keeps a subscription's first QoS in parameters, and gives it to the next one of the
    topic."""
    node = make(left__transport="raw", right__transport="raw")
    node.start()
    offers = []
    node.get_publishers_info_by_topic = lambda name: [
        SimpleNamespace(qos_profile=QoSProfile(depth=1, reliability=offer)) for offer in offers
    ]
    node._session._reconstructor = Reconstructor()
    (camera, _) = node._session._cameras
    for offer in 2 * [ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT]:
        offers[:] = [offer]
        node._session._looked = 0.0
        node._tick()
        assert camera._subscriber.sub.qos_profile.reliability == offer


def test_a_qos_that_the_user_chose_stays(make):
    chosen = {"qos_overrides./camera/left/image_raw.subscription.reliability": "best_effort"}
    node = make(left__transport="raw", right__transport="raw", **chosen)
    node.start()
    node.get_publishers_info_by_topic = lambda name: [
        SimpleNamespace(qos_profile=QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
    ]
    node._session._reconstructor = Reconstructor()
    node._tick()
    left, right = (camera._subscriber.sub.qos_profile for camera in node._session._cameras)
    assert left.reliability == ReliabilityPolicy.BEST_EFFORT
    assert right.reliability == ReliabilityPolicy.RELIABLE


def test_a_clock_that_nobody_publishes_is_said(make, monkeypatch, capfd):
    monkeypatch.setattr(session_module, "NO_CLOCK", 3600.0)
    node = make(use_sim_time=True)
    node.start()
    assert "clock" not in node._session.waiting()[0]
    monkeypatch.setattr(session_module, "NO_CLOCK", 0.0)
    node._tick()
    assert "nothing has been published on /clock" in node._session.waiting()[0]
    assert "nothing has been published on /clock" in capfd.readouterr().err


def test_images_that_never_came_are_counted_with_the_remedy(make, capfd):
    node = make()
    node.start()
    for n in range(30):
        if n != 20:
            node._session._on_image("left", image(START + n * 10**8), "")
    node._tick()
    assert node._session.health.drops()["left", session_module.NEVER_CAME] == 1
    assert "let the driver publish reliably" in capfd.readouterr().err


def test_the_last_words_of_all_topics_share_one_deadline(make):
    node = make()
    node.start()
    publishers = node._session._publishers
    asked = []

    class Stuck:
        def __init__(self, readers: int) -> None:
            self._readers = readers

        def get_subscription_count(self) -> int:
            return self._readers

        def wait_for_all_acked(self, timeout: Duration) -> bool:
            asked.append(timeout.nanoseconds * 1e-9)
            time.sleep(timeout.nanoseconds * 1e-9)
            return False

    real, publishers.publishers = (
        publishers.publishers,
        {f"topic {k}": Stuck(k % 2) for k in range(20)},
    )
    begun = time.monotonic()
    publishers.last_words(0.2)
    publishers.publishers = real
    assert time.monotonic() - begun < 0.6 and len(asked) == 10 and asked[1:] == [0.0] * 9


# --- topics


@pytest.mark.parametrize(
    "transport, rule, kind, topic",
    [
        (
            "auto",
            "/camera/left/image_raw/compressed:=/real/left/jpegs",
            CompressedImage,
            "/real/left/jpegs",
        ),
        (
            "compressed",
            "/camera/left/image_raw/compressed:=/real/left/jpegs",
            CompressedImage,
            "/real/left/jpegs",
        ),
        (
            "auto",
            "/camera/left/image_raw:=/real/left/image",
            CompressedImage,
            "/real/left/image/compressed",
        ),
        (
            "compressed",
            "/camera/left/image_raw:=/real/left/image",
            CompressedImage,
            "/real/left/image/compressed",
        ),
        ("auto", "/camera/left/image_raw:=/real/left/image", Image, "/real/left/image"),
        ("auto", "/camera/left/image_raw:=/real/left/image", CompressedImage, "/real/left/image"),
        ("auto", "/somewhere:=/else", Image, "/camera/left/image_raw"),
    ],
)
def test_images_are_found_where_they_are_remapped_to(make, transport, rule, kind, topic):
    node = make(rule, left__transport=transport)
    node.start()
    publisher = node.create_publisher(kind, topic, 1)
    camera = node._session._cameras[0]
    end = time.monotonic() + 10
    while not camera.connect() and time.monotonic() < end:
        time.sleep(0.02)
    assert camera.connected and camera._subscriber.sub.topic_name == topic
    end = time.monotonic() + 10
    while not publisher.get_subscription_count() and time.monotonic() < end:
        time.sleep(0.02)
    assert publisher.get_subscription_count() == 1
