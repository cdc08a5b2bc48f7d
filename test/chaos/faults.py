"""The catalogue of faults: each drives on for a while with something broken, and returns when it is
whole again."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy

import cv2
import numpy as np
from campaign import Campaign, Fault, run_process
from driver import CAMERAS, PERIOD, RAW, Shot, Spoil
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from recon4d_msgs.srv import SaveMap
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from recon4d_ros.geometry import exp
from recon4d_ros.messages import stamp_ns
from recon4d_ros.ros.conversions import time_msg, transform_msg

FAULTS: dict[str, Fault] = {}
SECONDS = 2.0
HOUR = 3600 * 10**9
LOADED = "for 3 camera(s)"  # in the log, once the engine is there
ONE = "front_left"  # the camera that single-camera faults are of


def fault(
    group: str, words: str, *, counted: bool = True, pose: bool = True, twice: int = 0
) -> Callable[[Callable[[Campaign], None]], Callable[[Campaign], None]]:
    def add(inject: Callable[[Campaign], None]) -> Callable[[Campaign], None]:
        FAULTS[inject.__name__] = Fault(inject.__name__, group, words, inject, counted, pose, twice)
        return inject

    return add


def of(camera: str, change: Callable[[Shot], Iterable[Shot]]) -> Spoil:
    """A change to one camera's images."""
    return lambda shot: change(shot) if shot.camera == camera else [shot]


def filled(change: Callable[[Shot], None]) -> Callable[[Shot], Iterable[Shot]]:
    def spoil(shot: Shot) -> Iterable[Shot]:
        change(shot)
        return [shot]

    return spoil


@fault("none", "nothing (for comparison)")
def nothing(c: Campaign) -> None:
    c.drive(SECONDS)


# --- on the way


@fault("transport", "drops of 50 %", pose=False)  # half of the sets have fewer than two cameras
def drop_half(c: Campaign) -> None:
    c.drive(3.0, lambda shot: [shot] if c.random.random() < 0.5 else [])


@fault("transport", "one camera drops 50 %")
def drop_half_of_one(c: Campaign) -> None:
    lost = [0]  # in a row: more than 2 s of them are a camera that is off

    def drop(shot: Shot) -> list[Shot]:
        lost[0] = lost[0] + 1 if lost[0] < 3 and c.random.random() < 0.5 else 0
        return [] if lost[0] else [shot]

    c.drive(3.0, of(ONE, drop))


@fault("transport", "network gone for 1 s", pose=False)
def network_gone(c: Campaign) -> None:
    c.drive(1.0, lambda shot: [])


@fault("transport", "jitter, 0 to 60 ms")
def jitter(c: Campaign) -> None:
    c.drive(SECONDS, lambda shot: [Shot(shot.camera, shot.message, c.random.uniform(0, 0.06))])


@fault("transport", "jitter, 0 to 400 ms", pose=False)  # sets of one camera
def large_jitter(c: Campaign) -> None:
    c.drive(SECONDS, lambda shot: [Shot(shot.camera, shot.message, c.random.uniform(0, 0.4))])


@fault("transport", "every image twice")
def duplicates(c: Campaign) -> None:
    c.drive(SECONDS, lambda shot: [shot, Shot(shot.camera, shot.message, 0.02)])


@fault("transport", "two and two images swapped")
def reorder(c: Campaign) -> None:
    held: dict[str, Shot] = {}

    def swap(shot: Shot) -> list[Shot]:
        first = held.pop(shot.camera, None)
        if first is None:
            held[shot.camera] = shot
            c.driver.made[shot.camera] -= 1
            return []
        return [shot, first]

    c.drive(SECONDS, swap)
    c.drive(PERIOD, lambda shot: swap(shot) if held.get(shot.camera) else [shot])


@fault("transport", "one camera 300 ms late")
def late_camera(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, lambda shot: [Shot(shot.camera, shot.message, 0.3)]))


@fault("transport", "1 s of images at once")
def burst(c: Campaign) -> None:
    end = time.monotonic() + 1.0
    c.drive(1.0, lambda shot: [Shot(shot.camera, shot.message, max(end - time.monotonic(), 0.0))])


# --- images


@fault("image", "one camera frozen, stamps go on")
def frozen(c: Campaign) -> None:
    first: list[object] = []

    def freeze(shot: Shot) -> list[Shot]:
        first.append(shot.message.data)
        shot.message.data = first[0]
        return [shot]

    c.drive(SECONDS, of(ONE, freeze))


@fault("image", "all cameras frozen, stamps go on", pose=False)
def all_frozen(c: Campaign) -> None:
    first: dict[str, object] = {}

    def freeze(shot: Shot) -> None:
        shot.message.data = first.setdefault(shot.camera, shot.message.data)

    c.drive(SECONDS, filled(freeze))


@fault("image", "one camera frozen, stamp too")
def frozen_stamp(c: Campaign) -> None:
    first: list[object] = []

    def freeze(shot: Shot) -> list[Shot]:
        first.append(shot.message)
        if len(first) > 1:
            c.driver.made[ONE] += 1  # the image that the camera should have made is missing too
        return [Shot(ONE, first[0])]

    c.drive(1.0, of(ONE, freeze))


@fault("image", "torn JPEG: half of this one, half of the last")
def torn(c: Campaign) -> None:
    last: list[bytes] = []

    def tear(shot: Shot) -> None:
        data = bytes(shot.message.data)
        before = last[-1] if last else data
        last.append(data)
        shot.message.data = data[: len(data) // 2] + before[len(before) // 2 :]

    c.drive(SECONDS, of(ONE, filled(tear)))


@fault("image", "JPEG cut off")
def cut_off(c: Campaign) -> None:
    def cut(shot: Shot) -> None:
        data = bytes(shot.message.data)
        shot.message.data = data[: int(c.random.integers(1, len(data)))]

    c.drive(SECONDS, of(ONE, filled(cut)))


@fault("image", "JPEG with random bytes in it")
def noisy_bytes(c: Campaign) -> None:
    def spoil(shot: Shot) -> None:
        data = bytearray(shot.message.data)
        for at in c.random.integers(0, len(data), 20):
            data[at] = int(c.random.integers(0, 256))
        shot.message.data = bytes(data)

    c.drive(SECONDS, of(ONE, filled(spoil)))


@fault("image", "empty data")
def empty(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, filled(lambda shot: setattr(shot.message, "data", b""))))


@fault("image", "no JPEG at all")
def no_jpeg(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, filled(lambda shot: setattr(shot.message, "data", b"\x01" * 999))))


@fault("image", "an unknown format")
def unknown_format(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, filled(lambda shot: setattr(shot.message, "format", "holograph"))))


@fault("image", "a JPEG of another size")
def other_size(c: Campaign) -> None:
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    c.drive(SECONDS, of(ONE, filled(lambda shot: setattr(shot.message, "data", jpeg))))


@fault("image", "a JPEG whose header says 65500 x 65500")
def bomb(c: Campaign) -> None:
    def spoil(shot: Shot) -> None:
        data = bytes(shot.message.data)
        at = data.index(b"\xff\xc0") + 5
        shot.message.data = data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :]

    c.drive(SECONDS, of(ONE, filled(spoil)))


@fault("image", "one camera black")
def black(c: Campaign) -> None:
    height, width = c.driver.cameras[ONE].height, c.driver.cameras[ONE].width
    jpeg = cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1].tobytes()
    c.drive(SECONDS, of(ONE, filled(lambda shot: setattr(shot.message, "data", jpeg))))


@fault("image", "one camera sees noise")
def noise(c: Campaign) -> None:
    def spoil(shot: Shot) -> None:
        shape = (c.driver.cameras[ONE].height, c.driver.cameras[ONE].width, 3)
        pixels = c.random.integers(0, 256, shape).astype(np.uint8)
        shot.message.data = cv2.imencode(".jpg", pixels)[1].tobytes()

    c.drive(SECONDS, of(ONE, filled(spoil)))


def raw_fault(name: str, words: str, change: Callable[[Shot], None]) -> None:
    FAULTS[name] = Fault(
        name, "image", words, lambda c: c.drive(SECONDS, of(RAW, filled(change))), True, True
    )


raw_fault(
    "raw_encoding", "raw: an unknown encoding", lambda s: setattr(s.message, "encoding", "x9")
)
raw_fault("raw_no_encoding", "raw: no encoding", lambda s: setattr(s.message, "encoding", ""))
raw_fault("raw_step", "raw: a step below the row's bytes", lambda s: setattr(s.message, "step", 7))
raw_fault("raw_no_step", "raw: step 0", lambda s: setattr(s.message, "step", 0))
raw_fault("raw_huge_step", "raw: a step of 4 GB", lambda s: setattr(s.message, "step", 4294967295))
raw_fault(
    "raw_short",
    "raw: data shorter than said",
    lambda s: setattr(s.message, "data", bytes(s.message.data)[:1000]),
)
raw_fault("raw_empty", "raw: no data", lambda s: setattr(s.message, "data", b""))
raw_fault("raw_huge", "raw: 4 Gpx wide", lambda s: setattr(s.message, "width", 4294967295))
raw_fault(
    "raw_no_size",
    "raw: size 0 x 0",
    lambda s: (setattr(s.message, "width", 0), setattr(s.message, "height", 0))[0],
)
raw_fault("raw_no_frame", "raw: no frame_id", lambda s: setattr(s.message.header, "frame_id", ""))


# --- cameras


@fault("camera", "one camera off")
def one_dead(c: Campaign) -> None:
    c.drive(3.0, dead={ONE})


@fault("camera", "two cameras off", pose=False)
def two_dead(c: Campaign) -> None:
    c.drive(3.0, dead={ONE, RAW})


@fault("camera", "all cameras off", pose=False)
def all_dead(c: Campaign) -> None:
    c.drive(3.0, dead=set(CAMERAS))


@fault("camera", "one camera on and off twice a second")
def flapping(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, lambda shot: [shot] if int(time.monotonic() / 0.35) % 2 else []))


@fault("camera", "the driver restarts", twice=9)
def driver_restarts(c: Campaign) -> None:
    c.driver.driving = False
    c.driver.open()
    c.wait_for_node()
    c.driver.driving = True


@fault("camera", "the driver comes back with best effort, and reliable again", twice=9, pose=False)
def best_effort(c: Campaign) -> None:
    for reliability in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
        c.driver.driving = False
        c.driver.open(QoSProfile(depth=10, reliability=reliability))
        c.wait_for_node()
        c.driver.rest(0.3)  # its writers have to know of the reader, or best effort loses the first
        c.driver.driving = True
        c.drive(1.5)


@fault("camera", "a second driver of one camera with an older image's stamp")
def second_driver(c: Campaign) -> None:
    def echo(shot: Shot) -> list[Shot]:
        old = deepcopy(shot.message)
        old.header.stamp = time_msg(stamp_ns(old.header.stamp) - 150_000_000)
        return [shot, Shot(shot.camera, old, 0.05)]

    c.drive(SECONDS, of(ONE, echo))


@fault("camera", "strings on the topics of odometry and images")
def wrong_type(c: Campaign) -> None:
    context = Context()
    context.init(domain_id=int(c.environment["ROS_DOMAIN_ID"]))
    stranger = Node("stranger", context=context)
    topics = ("/odom", "/camera/front/image_raw/compressed", "/camera/front/camera_info")
    odd = [stranger.create_publisher(String, topic, 10) for topic in topics]
    for _ in range(8):
        for one in odd:
            one.publish(String(data="hello"))
        c.drive(0.2)
    stranger.destroy_node()
    context.try_shutdown()


# --- time


def restamp(change: Callable[[int], int]) -> Callable[[Shot], Iterable[Shot]]:
    def spoil(shot: Shot) -> Iterable[Shot]:
        shot.message.header.stamp = time_msg(change(stamp_ns(shot.message.header.stamp)))
        return [shot]

    return spoil


@fault("time", "one camera's stamps are zero")
def zero_stamps(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, restamp(lambda stamp: 0)))


@fault("time", "all stamps are zero")
def all_zero_stamps(c: Campaign) -> None:
    c.drive(SECONDS, restamp(lambda stamp: 0))


@fault("time", "one camera's stamps are an hour ahead")
def future(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, restamp(lambda stamp: stamp + HOUR)))


@fault("time", "one image of one camera an hour ahead")
def future_once(c: Campaign) -> None:
    c.drive(PERIOD, of(ONE, restamp(lambda stamp: stamp + HOUR)))
    c.drive(1.0)


@fault("time", "one camera's stamps are negative")
def negative(c: Campaign) -> None:
    c.drive(1.0, of(ONE, restamp(lambda stamp: -(10**9))))


@fault("time", "one camera's clock is 0.45 s behind", twice=1)
def other_clock(c: Campaign) -> None:
    c.drive(SECONDS, of(ONE, restamp(lambda stamp: stamp - 450_000_000)))


@fault("time", "stamps tremble by 20 ms")
def trembling(c: Campaign) -> None:
    c.drive(SECONDS, restamp(lambda stamp: stamp + int(c.random.uniform(-2e7, 2e7))))


def jump(name: str, words: str, seconds: float, pose: bool) -> None:
    def inject(c: Campaign) -> None:
        c.driver.shift_ns += round(seconds * 1e9)

    FAULTS[name] = Fault(name, "time", words, inject, True, pose)


jump("jump_back", "the clock jumps back by 3 s", -3.0, False)
jump("jump_back_little", "the clock jumps back by 0.45 s", -0.45, False)
jump("jump_back_hour", "the clock jumps back by an hour", -3600.0, False)
jump("jump_ahead", "the clock jumps ahead by 10 s", 10.0, False)
jump("jump_ahead_hour", "the clock jumps ahead by an hour", 3600.0, False)


@fault("time", "a bag loops: images and time start over", pose=False)
def bag_loop(c: Campaign) -> None:
    frame, shift = c.driver.frame, c.driver.shift_ns
    c.drive(SECONDS)
    c.driver.shift_ns = shift - round(SECONDS / PERIOD) * round(PERIOD * 1e9)
    c.driver.frame = frame
    c.drive(1.0)


# --- calibration, transforms


def info_fault(
    name: str,
    words: str,
    change: Callable[[CameraInfo], object],
    cameras: Iterable[str] = (ONE,),
) -> None:
    def inject(c: Campaign) -> None:
        def spoil(camera: str, info: CameraInfo) -> list[CameraInfo]:
            if camera in cameras:
                change(info)
            return [info]

        before, c.driver.spoil_info = c.driver.spoil_info, spoil
        c.drive(SECONDS)
        c.driver.spoil_info = before

    FAULTS[name] = Fault(name, "calibration", words, inject, True, True)


info_fault(
    "info_nan", "NaN in the calibration", lambda i: setattr(i, "k", np.full(9, np.nan)), CAMERAS
)
info_fault("info_zero", "calibration of zeros", lambda i: setattr(i, "k", np.zeros(9)), CAMERAS)
info_fault("info_k", "the focal length changes", lambda i: setattr(i, "k", 1.3 * i.k))
info_fault("info_size", "camera_info says another size", lambda i: setattr(i, "width", 99))
info_fault(
    "info_model",
    "an unknown distortion model",
    lambda i: setattr(i, "distortion_model", "hyperbolic"),
)
info_fault("info_d", "the distortion changes", lambda i: setattr(i, "d", [0.3, 0.1, 0.0, 0.0, 0.0]))
info_fault("info_many_d", "a distortion of 1000 numbers", lambda i: setattr(i, "d", [0.1] * 1000))
info_fault(
    "info_zero_stamp",
    "camera_info without stamps",
    lambda i: setattr(i.header, "stamp", time_msg(0)),
)


@fault("calibration", "camera_info stops")
def info_stops(c: Campaign) -> None:
    before, c.driver.spoil_info = c.driver.spoil_info, lambda camera, info: []
    c.drive(SECONDS)
    c.driver.spoil_info = before


@fault("calibration", "extrinsics change")
def extrinsics(c: Campaign) -> None:
    c.driver.place_cameras(exp(np.array([0.3, 0.1, 0.1, 0.0, 0.1, 0.2])))
    c.drive(SECONDS)
    c.driver.place_cameras()


@fault("calibration", "NaN and a quaternion of zeros on /tf_static")
def transforms_nan(c: Campaign) -> None:
    for value in (np.nan, 0.0):
        transform = transform_msg(np.eye(4), 0, "base_link", ONE)
        rotation = transform.transform.rotation
        rotation.x = rotation.y = rotation.z = rotation.w = value
        c.driver.tf_static.publish(TFMessage(transforms=[transform]))
        c.drive(0.7)
    c.driver.place_cameras()


@fault("calibration", "a loop in the tree of transforms")
def transforms_loop(c: Campaign) -> None:
    pairs = [("front", "base_link"), ("base_link", "map"), ("base_link", "base_link"), ("", "")]
    c.driver.tf_static.publish(
        TFMessage(transforms=[transform_msg(np.eye(4), 0, *pair) for pair in pairs])
    )
    c.drive(1.0)
    c.driver.place_cameras()


# --- odometry


def odometry_fault(name: str, words: str, change: Callable[[Odometry], object]) -> None:
    def inject(c: Campaign) -> None:
        def spoil(sample: Odometry) -> list[Odometry]:
            change(sample)
            return [sample]

        c.driver.with_odometry = True
        c.drive(1.0)
        c.driver.spoil_odometry = spoil
        c.drive(1.5)
        c.driver.spoil_odometry = lambda sample: [sample]
        c.drive(0.5)
        c.driver.with_odometry = False

    FAULTS[name] = Fault(name, "odometry", words, inject, True, True)


odometry_fault("odometry_comes", "odometry comes and goes", lambda sample: None)
odometry_fault(
    "odometry_nan", "NaN in the odometry", lambda s: setattr(s.pose.pose.position, "x", np.nan)
)
odometry_fault(
    "odometry_zero",
    "odometry's quaternion is zero",
    lambda s: (
        setattr(s.pose.pose.orientation, "w", 0.0),
        setattr(s.pose.pose.orientation, "z", 0.0),
        setattr(s.pose.pose.orientation, "x", 0.0),
        setattr(s.pose.pose.orientation, "y", 0.0),
    ),
)
odometry_fault(
    "odometry_jump",
    "odometry jumps by 50 m",
    lambda s: setattr(s.pose.pose.position, "x", s.pose.pose.position.x + 50.0),
)
odometry_fault(
    "odometry_huge", "odometry of 1e300 m", lambda s: setattr(s.pose.pose.position, "x", 1e300)
)
odometry_fault(
    "odometry_frame",
    "odometry of an unknown frame",
    lambda s: setattr(s, "child_frame_id", "trunk"),
)
odometry_fault(
    "odometry_clock",
    "odometry of another clock",
    lambda s: setattr(s.header, "stamp", time_msg(stamp_ns(s.header.stamp) - HOUR)),
)


# --- lifecycle, parameters, services


def transition(c: Campaign, identity: int) -> bool:
    answer = c.driver.call(ChangeState, "change_state", transition=Transition(id=identity))
    return bool(answer.success)


def reconfigure(c: Campaign) -> None:
    for identity in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert transition(c, identity), f"transition {identity} failed: {c.node.last_words()}"
    c.wait_for_node()


@fault("lifecycle", "deactivated and activated", counted=False, pose=False)
def deactivate(c: Campaign) -> None:
    assert transition(c, Transition.TRANSITION_DEACTIVATE)
    c.drive(1.0)
    assert transition(c, Transition.TRANSITION_ACTIVATE)
    c.wait_for_node()


@fault("lifecycle", "configured anew", counted=False, pose=False)
def configured_anew(c: Campaign) -> None:
    reconfigure(c)


@fault("lifecycle", "20 transitions at random", counted=False, pose=False)
def random_transitions(c: Campaign) -> None:
    possible = (
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_ACTIVATE,
        Transition.TRANSITION_DEACTIVATE,
        99,
    )
    for _ in range(20):
        transition(c, int(c.random.choice(possible)))
    for identity in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        transition(c, identity)
    assert c.driver.state() == "active", c.driver.state()
    c.wait_for_node()


def broken_engine(c: Campaign, spoil: Callable[[], None]) -> None:
    """Configured while its engine is broken, and again with a whole one."""
    spoil()
    for identity in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert transition(c, identity)
    if transition(c, Transition.TRANSITION_CONFIGURE):
        transition(c, Transition.TRANSITION_ACTIVATE)
    c.driver.wait(lambda: c.driver.state() == "unconfigured", "the node to go back", 10.0)
    assert "engine" in c.driver.words() or c.driver.rest(1.2) or "engine" in c.driver.words()
    c.mend_engine()
    for identity in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert transition(c, identity)
    c.wait_for_node()


@fault("lifecycle", "the engine's folder is gone when configured", counted=False, pose=False)
def engine_gone(c: Campaign) -> None:
    broken_engine(c, lambda: shutil.rmtree(c.engine))


@fault("lifecycle", "the engine's graph is truncated when configured", counted=False, pose=False)
def engine_truncated(c: Campaign) -> None:
    model = c.engine / "model.onnx"
    broken_engine(c, lambda: model.write_bytes(model.read_bytes()[:20000]))


@fault("lifecycle", "engine.yaml is garbage when configured", counted=False, pose=False)
def engine_garbage(c: Campaign) -> None:
    broken_engine(c, lambda: (c.engine / "engine.yaml").write_bytes(b"\xff\xfe{[") and None)


@fault("parameters", "40 parameters at random")
def random_parameters(c: Campaign) -> None:
    values = (
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=float("nan")),
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=-1.0),
        ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=2**62),
        ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="\u00e9\n"),
        ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True),
        ParameterValue(type=ParameterType.PARAMETER_NOT_SET),
        ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=["a"]),
    )
    names = (
        "silence",
        "map_publish_period",
        "mapping.radius",
        "cameras",
        "engine",
        "sync.policy",
        "output_folder",
        "front.transport",
        "no.such",
        "watchdog",
        "egomotion.features",
        "publish_tf",
    )
    for _ in range(40):
        item = ParameterMsg(
            name=str(c.random.choice(names)), value=values[c.random.integers(len(values))]
        )
        c.driver.call(SetParameters, "set_parameters", parameters=[item])
    put(c, "output_folder", ParameterType.PARAMETER_STRING, string_value=str(c.folder))


def put(c: Campaign, name: str, kind: int, **value: object) -> bool:
    item = ParameterMsg(name=name, value=ParameterValue(type=kind, **value))
    answer = c.driver.call(SetParameters, "set_parameters", parameters=[item])
    return bool(answer.results[0].successful)


@fault("parameters", "use_sim_time on, without a /clock, and off", pose=False)
def sim_time(c: Campaign) -> None:
    put(c, "use_sim_time", ParameterType.PARAMETER_BOOL, bool_value=True)
    c.drive(1.5)
    put(c, "use_sim_time", ParameterType.PARAMETER_BOOL, bool_value=False)


@fault("services", "reset", pose=False)
def reset(c: Campaign) -> None:
    assert c.driver.call(Trigger, "reset").success


@fault("services", "20 resets", pose=False)
def resets(c: Campaign) -> None:
    for _ in range(20):
        assert c.driver.call(Trigger, "reset").success


@fault("services", "paused and resumed", counted=False, pose=False)
def paused(c: Campaign) -> None:
    assert c.driver.call(SetBool, "pause", data=True).success
    c.drive(1.5)
    assert c.driver.call(SetBool, "pause", data=False).success


@fault("services", "all services while it is lost", counted=False, pose=False)
def services_while_lost(c: Campaign) -> None:
    c.driver.dead = set(CAMERAS)
    c.driver.rest(1.0)
    assert c.driver.call(SetBool, "pause", data=True).success
    assert c.driver.call(SetBool, "pause", data=False).success
    assert c.driver.call(SaveMap, "save_map", path=str(c.folder / "lost.ply")).success
    assert c.driver.call(Trigger, "reset").success
    assert c.driver.call(SaveMap, "save_map", path=str(c.folder / "lost.pcd")).success
    c.driver.dead = set()


@fault("services", "the map saved where it cannot be: nowhere, /dev/full, a folder, by a bad name")
def save_nowhere(c: Campaign) -> None:
    (c.folder / "folder.ply").mkdir(exist_ok=True)
    for path in ("/proc/no/map.ply", "/dev/full", str(c.folder / "folder.ply"), "a\x00b.ply"):
        if "\x00" in path:  # which a ROS string cannot hold: it ends there
            continue
        answer = c.driver.call(SaveMap, "save_map", path=path)
        assert not answer.success and answer.message, (path, answer)
    assert not c.driver.call(SaveMap, "save_map", path="map.xyz").success


def disk_full(c: Campaign) -> None:
    """No file of the node may grow beyond 4 KiB: what is written further fails, as on a full disk;
    its log, too."""
    resource.prlimit(c.node.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def disk_free(c: Campaign) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(c.node.pid, resource.RLIMIT_FSIZE, unlimited)


@fault("disk", "the disk is full while the map is saved")
def full_while_saving(c: Campaign) -> None:
    path = c.folder / "full.ply"
    path.unlink(missing_ok=True)
    c.driver.wait(lambda: c.driver.status().map_voxels > 1000, "a map of some size")
    disk_full(c)
    answer = c.driver.call(SaveMap, "save_map", path=str(path))
    disk_free(c)
    assert not answer.success and answer.message, answer
    assert not path.exists(), "half a map was left"
    assert c.driver.call(SaveMap, "save_map", path=str(path)).success


@fault("disk", "the disk is full while voxels are spilled and the log is written")
def full_while_spilling(c: Campaign) -> None:
    disk_full(c)
    c.drive(3.0)
    disk_free(c)


@fault("disk", "the recorder's disk is full")
def recorder_full(c: Campaign) -> None:
    recorder = c.start_recorder("second_recorder", "ulimit -f 200")
    code = None
    end = time.monotonic() + 30.0
    while code is None and time.monotonic() < end:
        c.drive(0.2)
        code = recorder.code
    assert code == 2, f"the recorder on a full disk ended with {code}: {recorder.last_words()}"
    assert "recon4d_recorder:" in recorder.last_words(), recorder.last_words()


# --- processes


@fault("process", "SIGSTOP for 5 s", pose=False)
def stopped(c: Campaign) -> None:
    with c.stopped(c.node):
        c.drive(5.0)


@fault("process", "SIGSTOP for 0.7 s", pose=False)
def stopped_shortly(c: Campaign) -> None:
    with c.stopped(c.node):
        c.drive(0.7)


@fault("process", "kill -9 and restart", counted=False, pose=False)
def killed(c: Campaign) -> None:
    c.kill("node")
    began = time.monotonic()
    c.start_node()
    c.driver.wait(lambda: LOADED in c.node.text(), "the restarted node's engine", 60.0)
    c.wait_for_node()
    c.notes["killed"] = f"the restart took {time.monotonic() - began:.1f} s"


@fault("process", "SIGTERM and restart", counted=False, pose=False)
def terminated(c: Campaign) -> None:
    code = c.node.end(10.0)
    assert code == 0, f"the node ended with {code}: {c.node.last_words()}"
    c.start_node()
    c.driver.wait(lambda: LOADED in c.node.text(), "the restarted node's engine", 60.0)
    c.wait_for_node()


@fault("process", "the recorder stopped for 3 s")
def recorder_stopped(c: Campaign) -> None:
    with c.stopped(c.processes["recorder"]):
        c.drive(3.0)


@fault("process", "the recorder killed and restarted")
def recorder_killed(c: Campaign) -> None:
    c.kill("recorder")
    c.start_recorder()
    c.driver.wait(lambda: "ready:" in c.processes["recorder"].text(), "the recorder", 30.0)


SLOW = """
import sys, time, rclpy
from recon4d_ros.ros.message_types import message_class
rclpy.init()
node = rclpy.create_node("slow")
for name in ("points", "map", "status", "front/depth"):
    kind = {"points": "sensor_msgs/msg/PointCloud2", "map": "sensor_msgs/msg/PointCloud2",
            "status": "recon4d_msgs/msg/Status", "front/depth": "sensor_msgs/msg/Image"}[name]
    node.create_subscription(message_class(kind), f"/recon4d/{name}", lambda m: time.sleep(1.0), 1)
print("ready", flush=True)
rclpy.spin(node)
"""


@fault("process", "a slow subscriber of clouds, map, depth and status")
def slow_subscriber(c: Campaign) -> None:
    slow = run_process([sys.executable, "-c", SLOW], c.environment)
    before = c.driver.count_subscribers("/recon4d/points")
    c.driver.wait(
        lambda: c.driver.count_subscribers("/recon4d/points") > before, "the slow subscriber"
    )
    c.drive(3.0)
    slow.kill()
    slow.wait()


@fault("process", "subscribers come and go")
def churn(c: Campaign) -> None:
    for _ in range(15):
        made = [
            c.driver.create_subscription(CompressedImage, "/recon4d/points", print, 1),
            c.driver.create_subscription(Odometry, "/recon4d/odometry", lambda m: None, 1),
        ]
        c.drive(0.1)
        for one in made:
            c.driver.destroy_subscription(one)


@fault("process", "two processes take all processor time for 3 s")
def busy(c: Campaign) -> None:
    hogs = [run_process([sys.executable, "-c", "while 1: pass"], c.environment) for _ in range(2)]
    c.drive(3.0)
    for hog in hogs:
        hog.kill()
        hog.wait()


@fault("process", "a second node of the same name")
def same_name(c: Campaign) -> None:
    c.start_node("second", "-p", "autostart:=false")
    c.driver.wait(
        lambda: [*c.driver.get_node_names()].count("recon4d") > 1, "the second node", 30.0
    )
    said = c.driver.wait(lambda: "same name" in c.driver.words(), "a word of it", 5.0)
    assert said
    c.processes.pop("second").end(10.0)
