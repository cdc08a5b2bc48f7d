"""Each stand-in of pip_ros/ by itself, and beside the real package wherever that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import random
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment: run `make test`")
pytest.importorskip("tf2_msgs", reason="tf2_msgs is not in this environment: run `make test`")

import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

PIP_ROS = Path(__file__).resolve().parents[1] / "pip_ros"
MODULES = {
    "cv_bridge": "",
    "message_filters": "",
    "sensor_msgs_py": ".point_cloud2",
    "tf2_ros": "",
    "tf_transformations": "",
}


def stand_in(name: str) -> ModuleType:
    """The stand-in from pip_ros/, whatever is installed under its name."""
    alias = f"stand_in_{name}"
    if alias not in sys.modules:
        path = PIP_ROS / name / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            alias, path, submodule_search_locations=[str(path.parent)]
        )
        assert spec is not None and spec.loader is not None
        module = sys.modules[alias] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module(alias + MODULES[name])


def real(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if getattr(module, "STAND_IN", False):
        pytest.skip(f"the real {name} is not installed here")
    return importlib.import_module(name + MODULES[name])


@pytest.fixture(params=["stand_in", "real"])
def package(request):
    """Gives package("cv_bridge"): the same test runs on the stand-in and, where it is there, on the
    real one."""
    return stand_in if request.param == "stand_in" else real


def test_what_is_installed_is_the_real_one_or_this_stand_in() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        if getattr(module, "STAND_IN", False):
            installed = Path(module.__file__ or "").parent
            for source in (PIP_ROS / name).glob("*.py"):
                assert (installed / source.name).read_bytes() == source.read_bytes(), (
                    f"{name} is an old copy: run `make setup`"
                )


# --- tf_transformations


def quaternions(count: int) -> np.ndarray:
    q = np.random.default_rng(5).normal(size=(count, 4))
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def test_quaternions(package) -> None:
    tft = package("tf_transformations")
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        tft.quaternion_from_euler(0.0, 0.0, np.pi / 2), [0, 0, half, half], atol=1e-12
    )
    turn = tft.quaternion_matrix([0, 0, half, half])
    np.testing.assert_allclose(turn @ [1, 0, 0, 1], [0, 1, 0, 1], atol=1e-12)
    for q in quaternions(50):
        back = tft.quaternion_from_matrix(tft.quaternion_matrix(q))
        np.testing.assert_allclose(back, np.copysign(1, q[3]) * q, atol=1e-9)
        np.testing.assert_allclose(
            tft.quaternion_matrix(3 * q), tft.quaternion_matrix(q), atol=1e-12
        )


def test_quaternions_as_the_real_ones() -> None:
    ours, theirs = stand_in("tf_transformations"), real("tf_transformations")
    for q in quaternions(50):
        matrix = ours.quaternion_matrix(q)
        np.testing.assert_allclose(matrix, theirs.quaternion_matrix(q), atol=1e-12)
        np.testing.assert_allclose(
            ours.quaternion_from_matrix(matrix), theirs.quaternion_from_matrix(matrix), atol=1e-9
        )
        np.testing.assert_allclose(
            ours.quaternion_from_euler(*q[:3]), theirs.quaternion_from_euler(*q[:3]), atol=1e-12
        )


# --- cv_bridge

ENCODINGS = {
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    "rgb16": (np.uint16, 3),
    "bgr16": (np.uint16, 3),
    "8UC1": (np.uint8, 1),
    "8UC3": (np.uint8, 3),
    "16UC1": (np.uint16, 1),
    "32FC1": (np.float32, 1),
    "64FC2": (np.float64, 2),
    "16SC1": (np.int16, 1),
}


def image_of(encoding: str, padding: int = 0, big_endian: bool = False) -> tuple[Image, np.ndarray]:
    """A random 5x7 image, rows padded by so many bytes, and its pixels."""
    dtype, channels = ENCODINGS[encoding]
    rng = np.random.default_rng(len(encoding))
    pixels = (
        rng.random((5, 7, channels)) * (200 if np.dtype(dtype).itemsize == 1 else 30000)
    ).astype(dtype)
    pixels = pixels[..., 0] if channels == 1 else pixels
    row = 7 * channels * pixels.itemsize
    data = np.full((5, row + padding), 99, np.uint8)
    data[:, :row] = (
        pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
        .view(np.uint8)
        .reshape(5, row)
    )
    message = Image(
        height=5, width=7, encoding=encoding, is_bigendian=big_endian, step=row + padding
    )
    message.data.frombytes(data.tobytes())
    return message, pixels


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("padding", "big_endian"), [(0, False), (48, False), (0, True)])
def test_images_come_as_they_are(package, encoding: str, padding: int, big_endian: bool) -> None:
    if package is real and big_endian and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        pytest.skip("cv_bridge swaps bytes with a method that NumPy 2 no longer has")
    message, pixels = image_of(encoding, padding, big_endian)
    out = package("cv_bridge").CvBridge().imgmsg_to_cv2(message)
    np.testing.assert_array_equal(out, pixels)
    assert out.shape == pixels.shape


def test_rows_may_be_padded_by_any_number_of_bytes() -> None:
    message, pixels = image_of("rgb8", padding=5)  # the real one wants whole pixels
    np.testing.assert_array_equal(stand_in("cv_bridge").CvBridge().imgmsg_to_cv2(message), pixels)


def test_colours_are_converted(package) -> None:
    bridge = package("cv_bridge").CvBridge()
    message, pixels = image_of("bgr8")
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message, "rgb8"), pixels[..., ::-1])
    message, pixels = image_of("rgb16")  # full scale stays full scale
    assert np.abs(bridge.imgmsg_to_cv2(message, "rgb8") - pixels / 257.0).max() <= 1.0


@pytest.mark.parametrize("encoding", ["8UC3", "16UC1"])
def test_no_colour_is_made_up(package, encoding: str) -> None:
    module = package("cv_bridge")
    with pytest.raises(module.CvBridgeError, match="color"):
        module.CvBridge().imgmsg_to_cv2(image_of(encoding)[0], "rgb8")


def test_an_unknown_encoding_is_an_error(package) -> None:
    module = package("cv_bridge")
    message, _ = image_of("rgb8")
    message.encoding = "rgb5"
    with pytest.raises(module.CvBridgeError):
        module.CvBridge().imgmsg_to_cv2(message, "rgb8")


def test_conversions_as_the_real_ones() -> None:
    ours, theirs = stand_in("cv_bridge"), real("cv_bridge")
    checked = 0
    for source, target in itertools.product(ENCODINGS, ["rgb8", "mono8", "mono16", "bgr16"]):
        message, _ = image_of(source)
        try:
            expected = theirs.CvBridge().imgmsg_to_cv2(message, target)
        except theirs.CvBridgeError:
            with pytest.raises(ours.CvBridgeError):
                ours.CvBridge().imgmsg_to_cv2(message, target)
            continue
        out = ours.CvBridge().imgmsg_to_cv2(message, target)
        assert (out.dtype, out.shape) == (expected.dtype, expected.shape), (source, target)
        assert np.abs(out.astype(int) - expected.astype(int)).max() <= (
            1 if out.dtype == np.uint8 else 257
        ), (source, target)
        checked += 1
    assert checked >= 20


# --- sensor_msgs_py


def fields_of(*names: str) -> list[PointField]:
    return [
        PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1)
        for k, name in enumerate(names)
    ]


def cloud_of(module: ModuleType, count: int = 20) -> tuple[PointCloud2, np.ndarray]:
    points = np.zeros(count, [(name, np.float32) for name in ("x", "y", "z", "rgb")])
    for name in points.dtype.names or ():
        points[name] = np.random.default_rng(len(name)).normal(size=count)
    points["y"][3] = np.nan
    return (
        module.create_cloud(Header(frame_id="map"), fields_of("x", "y", "z", "rgb"), points),
        points,
    )


def test_clouds_go_there_and_back(package) -> None:
    module = package("sensor_msgs_py")
    cloud, points = cloud_of(module)
    assert (cloud.width, cloud.height, cloud.point_step, cloud.row_step, cloud.header.frame_id) == (
        20,
        1,
        16,
        320,
        "map",
    )
    assert bytes(cloud.data) == points.tobytes()
    assert module.read_points(cloud).tobytes() == points.tobytes()
    picked = module.read_points(cloud, field_names=["z", "x"])
    np.testing.assert_array_equal(picked["z"], points["z"])
    assert picked.dtype.names == ("z", "x")
    assert len(module.read_points(cloud, skip_nans=True)) == 19


def test_clouds_with_padding_and_several_types(package) -> None:
    module = package("sensor_msgs_py")
    fields = [
        PointField(name="x", offset=0, datatype=PointField.FLOAT64, count=1),
        PointField(name="id", offset=12, datatype=PointField.UINT16, count=1),
    ]
    dtype = module.dtype_from_fields(fields, point_step=16)
    assert dtype.itemsize == 16 and dtype.fields["id"][1] == 12
    points = np.zeros(3, module.dtype_from_fields(fields))
    points["x"], points["id"] = [1.5, 2.5, 3.5], [7, 8, 9]
    cloud = module.create_cloud(Header(), fields, points)
    assert cloud.point_step == 14
    assert module.read_points(cloud)["id"].tolist() == [7, 8, 9]


def test_points_of_other_fields_are_refused(package) -> None:
    with pytest.raises(AssertionError):
        points = np.zeros(3, [("x", np.float32), ("z", np.float32)])
        package("sensor_msgs_py").create_cloud(Header(), fields_of("x", "y"), points)


def test_clouds_as_the_real_ones() -> None:
    ours, theirs = cloud_of(stand_in("sensor_msgs_py"))[0], cloud_of(real("sensor_msgs_py"))[0]
    assert ours == theirs


# --- message_filters


def stamped(stamp: int, kind: type = Image):
    message = kind()
    message.header.stamp = Time(nanoseconds=stamp).to_msg()
    return message


def nanoseconds(message) -> int:
    return Time.from_msg(message.header.stamp).nanoseconds


def synchronized(module: ModuleType, queue_size: int):
    """Two inputs, and the list of pairs that come out of them."""
    pairs: list[tuple[int, int]] = []
    inputs = [module.SimpleFilter(), module.SimpleFilter()]
    synchronizer = module.TimeSynchronizer(inputs, queue_size)
    synchronizer.registerCallback(lambda a, b: pairs.append((nanoseconds(a), nanoseconds(b))))
    return inputs, pairs, synchronizer


def test_equal_stamps_are_paired_in_any_order(package) -> None:
    (a, b), pairs, _ = synchronized(package("message_filters"), 5)
    for source, stamp in [(a, 1), (a, 2), (b, 2), (b, 3), (a, 3), (b, 1)]:
        source.signalMessage(stamped(stamp))
    assert sorted(pairs) == [(1, 1), (2, 2), (3, 3)]


def test_a_queue_forgets_its_oldest(package) -> None:
    (a, b), pairs, _ = synchronized(package("message_filters"), 2)
    for stamp in (1, 2, 3):
        a.signalMessage(stamped(stamp))
    for stamp in (1, 3):
        b.signalMessage(stamped(stamp))
    assert pairs == [(3, 3)]


def test_no_pair_is_lost_between_threads(package) -> None:
    inputs, pairs, _ = synchronized(package("message_filters"), 1000)

    def send(source) -> None:
        for stamp in range(1, 301):
            source.signalMessage(stamped(stamp))

    threads = [threading.Thread(target=send, args=(source,)) for source in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pairs) == [(k, k) for k in range(1, 301)]


def test_callbacks_get_their_arguments(package) -> None:
    source = package("message_filters").SimpleFilter()
    got: list = []
    source.registerCallback(lambda message, extra: got.append((message, extra)), "extra")
    source.signalMessage("message")
    assert got == [("message", "extra")]


# --- tf2_ros

SECOND = 1_000_000_000


def pose(
    parent: str, child: str, stamp: float = 0.0, xyz=(0.0, 0.0, 0.0), yaw: float = 0.0
) -> TransformStamped:
    transform = TransformStamped(child_frame_id=child)
    transform.header.frame_id = parent
    transform.header.stamp = Time(nanoseconds=round(stamp * SECOND)).to_msg()
    t, r = transform.transform.translation, transform.transform.rotation
    t.x, t.y, t.z = (float(value) for value in xyz)
    r.z, r.w = float(np.sin(yaw / 2)), float(np.cos(yaw / 2))
    return transform


def numbers(transform: TransformStamped) -> np.ndarray:
    t, r = transform.transform.translation, transform.transform.rotation
    q = np.array([r.x, r.y, r.z, r.w])
    return np.concatenate([[t.x, t.y, t.z], q if r.w >= 0 else -q])


def at(seconds: float) -> Time:
    return Time(nanoseconds=round(seconds * SECOND))


def filled(module: ModuleType):
    """odom -> base moves 10 m/s along x and turns half a circle in 2 s; base -> camera is static;
    map -> odom is old."""
    buffer = module.Buffer()
    buffer.set_transform_static(pose("base", "camera", xyz=(1, 0, 2), yaw=np.pi / 2), "test")
    buffer.set_transform(pose("map", "odom", 1.0, (100, 0, 0)), "test")
    buffer.set_transform(pose("map", "odom", 2.0, (100, 0, 0)), "test")
    for k in (1, 2, 3):
        buffer.set_transform(pose("odom", "base", k, (10 * k, 0, 0), (k - 1) * np.pi / 2), "test")
    return buffer


def test_chains_interpolate(package) -> None:
    buffer = filled(package("tf2_ros"))
    result = buffer.lookup_transform("map", "camera", at(1.5))
    half = np.pi / 4
    np.testing.assert_allclose(
        numbers(result)[:3], [115 + np.cos(half), np.sin(half), 2], atol=1e-9
    )
    np.testing.assert_allclose(
        numbers(result)[3:],
        [0, 0, np.sin((half + np.pi / 2) / 2), np.cos((half + np.pi / 2) / 2)],
        atol=1e-9,
    )
    assert (result.header.frame_id, result.child_frame_id) == ("map", "camera")
    assert nanoseconds(result) == 1_500_000_000
    back = buffer.lookup_transform("camera", "map", at(1.5))
    np.testing.assert_allclose(numbers(back)[3:], numbers(result)[3:] * [-1, -1, -1, 1], atol=1e-9)


def test_the_latest_time_is_the_latest_that_all_have(package) -> None:
    buffer = filled(package("tf2_ros"))
    assert nanoseconds(buffer.lookup_transform("map", "camera", Time())) == 2 * SECOND
    assert nanoseconds(buffer.lookup_transform("odom", "camera", Time())) == 3 * SECOND
    np.testing.assert_allclose(
        numbers(buffer.lookup_transform("base", "camera", at(77)))[:3], [1, 0, 2]
    )
    np.testing.assert_allclose(
        numbers(buffer.lookup_transform("base", "base", Time())), [0, 0, 0, 0, 0, 0, 1]
    )


def test_what_cannot_be_answered_is_said(package) -> None:
    module = package("tf2_ros")
    buffer = filled(module)
    buffer.set_transform_static(pose("elsewhere", "lost"), "test")
    for target, source, when, error in [
        ("map", "nowhere", Time(), module.LookupException),
        ("nowhere", "map", Time(), module.LookupException),
        ("map", "lost", Time(), module.ConnectivityException),
        ("odom", "base", at(3.1), module.ExtrapolationException),
        ("odom", "base", at(0.9), module.ExtrapolationException),
    ]:
        assert not buffer.can_transform(target, source, when)
        assert issubclass(error, module.TransformException)
        with pytest.raises(error):
            buffer.lookup_transform(target, source, when)
    assert buffer.can_transform("odom", "base", at(3.0))


def test_old_poses_leave(package) -> None:
    module = package("tf2_ros")
    buffer = module.Buffer(cache_time=Duration(seconds=5))
    for k in range(1, 21):
        buffer.set_transform(pose("odom", "base", k), "test")
    assert buffer.can_transform("odom", "base", at(16))
    assert not buffer.can_transform("odom", "base", at(10))


def test_clear_keeps_what_is_static(package) -> None:
    module = package("tf2_ros")
    buffer = filled(module)
    buffer.clear()
    assert buffer.can_transform("base", "camera", Time())
    assert not buffer.can_transform("odom", "base", at(2))
    buffer.set_transform(pose("odom", "base", 0.5), "test")  # time may begin again
    assert buffer.can_transform("odom", "camera", at(0.5))


def test_useless_poses_are_left_out(package) -> None:
    buffer = package("tf2_ros").Buffer()
    buffer.set_transform(pose("odom", "base", 1, (np.nan, 0, 0)), "test")
    buffer.set_transform(pose("base", "base", 1), "test")
    zero = pose("odom", "base", 1)
    zero.transform.rotation.w = 0.0
    buffer.set_transform(zero, "test")
    assert not buffer.can_transform("odom", "base", Time())


def test_a_lookup_waits_for_what_comes(package) -> None:
    buffer = filled(package("tf2_ros"))
    timer = threading.Timer(
        0.3, lambda: buffer.set_transform(pose("odom", "base", 4, (40, 0, 0)), "test")
    )
    timer.start()
    start = time.monotonic()
    assert buffer.can_transform("odom", "base", at(3.5), timeout=Duration(seconds=10))
    assert 0.2 < time.monotonic() - start < 5
    timer.join()
    assert not buffer.can_transform("odom", "base", at(9), timeout=Duration(seconds=0.1))


def test_lookups_as_the_real_ones() -> None:
    ours, theirs = stand_in("tf2_ros"), real("tf2_ros")
    rng = np.random.default_rng(2)
    buffers = [ours.Buffer(), theirs.Buffer()]
    names = [f"frame{k}" for k in range(8)]
    for k in range(1, 8):
        parent = names[rng.integers(k)]
        for stamp in [0.0] if k % 3 == 0 else np.sort(rng.random(12)) * 9 + 1:
            transform = pose(parent, names[k], stamp, rng.normal(size=3))
            q = quaternions(200)[rng.integers(200)]
            r = transform.transform.rotation
            r.x, r.y, r.z, r.w = (float(value) for value in q)
            for buffer in buffers:
                (buffer.set_transform_static if k % 3 == 0 else buffer.set_transform)(
                    transform, "test"
                )
    answered = 0
    for target, source in itertools.product(names, names):
        for when in (Time(), at(3.3), at(5.0), at(8.8)):
            can = [buffer.can_transform(target, source, when) for buffer in buffers]
            assert can[0] == can[1], (target, source, when)
            if can[0]:
                first, second = (
                    buffer.lookup_transform(target, source, when) for buffer in buffers
                )
                np.testing.assert_allclose(numbers(first)[:3], numbers(second)[:3], atol=1e-8)
                assert abs(numbers(first)[3:] @ numbers(second)[3:]) == pytest.approx(1, abs=1e-9)
                assert first.header == second.header
                answered += 1
    assert answered > 100


# --- over DDS


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes in a domain of their own, and a function that spins them until a condition
    holds."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.Random(os.getpid()).randrange(1, 100))
    executor = SingleThreadedExecutor(context=context)
    pair = [rclpy.create_node(f"test_pip_ros_{name}", context=context) for name in ("a", "b")]
    for node in pair:
        executor.add_node(node)

    def spin_until(condition, seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
        return condition()

    yield (*pair, spin_until)
    executor.shutdown()
    for node in pair:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_transforms_travel(package, nodes) -> None:
    module = package("tf2_ros")
    sender, receiver, spin_until = nodes
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    static = sender.create_publisher(TFMessage, "/tf_static", latched)
    static.publish(
        TFMessage(
            transforms=[pose("base", "left", xyz=(1, 0, 0)), pose("base", "right", xyz=(2, 0, 0))]
        )
    )
    moving = module.TransformBroadcaster(sender)
    buffer = module.Buffer()
    listener = module.TransformListener(buffer, receiver)  # comes late, yet gets all that is static
    assert spin_until(lambda: buffer.can_transform("left", "right", Time()))

    def sent() -> bool:
        moving.sendTransform([pose("odom", "base", 5, (3, 0, 0))])
        return buffer.can_transform("odom", "left", at(5))

    assert spin_until(sent)
    np.testing.assert_allclose(
        numbers(buffer.lookup_transform("odom", "left", at(5)))[:3], [4, 0, 0]
    )
    listener.unregister()


def test_subscribers_pair_camera_and_info(package, nodes) -> None:
    module = package("message_filters")
    sender, receiver, spin_until = nodes
    publishers = [
        sender.create_publisher(kind, topic, 10)
        for kind, topic in ((Image, "image"), (CameraInfo, "info"))
    ]
    inputs = [
        module.Subscriber(receiver, Image, "image"),
        module.Subscriber(receiver, CameraInfo, "info", qos_profile=5),
    ]
    synchronizer = module.TimeSynchronizer(inputs, 10)
    pairs: list[tuple[int, int]] = []
    synchronizer.registerCallback(
        lambda image, info: pairs.append((nanoseconds(image), nanoseconds(info)))
    )
    assert spin_until(lambda: all(publisher.get_subscription_count() for publisher in publishers))
    publishers[0].publish(stamped(11))
    publishers[1].publish(stamped(12, CameraInfo))
    publishers[1].publish(stamped(11, CameraInfo))
    publishers[0].publish(stamped(12))
    assert spin_until(lambda: len(pairs) == 2)
    assert sorted(pairs) == [(11, 11), (12, 12)]


def test_generated_tf2_msgs_has_the_real_fields() -> None:
    assert TFMessage.get_fields_and_field_types() == {
        "transforms": "sequence<geometry_msgs/TransformStamped>"
    }
