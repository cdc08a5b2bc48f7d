"""The rooms of ros/ one by one, without a graph: conversions, the newest-wins slot, the rig from
messages, parameters, configurations."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)

import rclpy
from cv_bridge import CvBridge
from geometry_msgs.msg import Point, Quaternion
from rclpy.clock import Clock
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.time import Time
from recon4d_msgs.msg import Status
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from sensor_msgs_py import point_cloud2
from tf2_msgs.msg import TFMessage

from recon4d_ros import messages
from recon4d_ros.bags.transforms import FixedTransforms
from recon4d_ros.cameras.decode import decode
from recon4d_ros.errors import ImageError, MessageError
from recon4d_ros.geometry import exp, se3, transform
from recon4d_ros.messages import dynamic_object
from recon4d_ros.parameters import describe
from recon4d_ros.ros import conversions
from recon4d_ros.ros.conversions import time_msg
from recon4d_ros.ros.diagnostics import Health, percentile
from recon4d_ros.ros.graph import free_domain
from recon4d_ros.ros.node import Recon4dNode
from recon4d_ros.ros.parameter_file import parameter_file
from recon4d_ros.ros.parameters import NodeParameters, all_parameters, descriptor
from recon4d_ros.ros.pose_tree import edges
from recon4d_ros.ros.process import lean_executor
from recon4d_ros.ros.publishers import OUTPUTS, Frames, Publishers
from recon4d_ros.ros.rig_source import RigSource
from recon4d_ros.ros.session import Session, WaitingClock
from recon4d_ros.ros.worker import Worker, newest
from recon4d_ros.tally import LIMIT, Tally
from recon4d_ros.tally import kind as kind_of
from recon4d_ros.types import (
    DynamicObject,
    FrameSet,
    Jump,
    MapDelta,
    MapMotion,
    OdometrySample,
    PoseEstimate,
    RawImage,
    Reconstruction,
    Tracking,
)

REPOSITORY = Path(__file__).resolve().parent.parent
FRAMES = Frames("map", "odom", "base_link", "odom")
rng = np.random.default_rng(3)


def info_message(width=64, height=48, focal=50.0, frame="front_optical") -> CameraInfo:
    message = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.frame_id = frame
    message.k = np.array([focal, 0, 32, 0, focal, 24, 0, 0, 1.0])
    return message


# --- conversions


def test_stamps_and_poses_survive_the_round_trip():
    ns = 1_700_000_000_123_456_789
    assert messages.stamp_ns(conversions.time_msg(ns)) == ns
    for _ in range(20):
        pose = exp(rng.normal(size=6))
        message = conversions.transform_msg(pose, ns, "a", "b")
        assert (message.header.frame_id, message.child_frame_id) == ("a", "b")
        assert message.transform.rotation.w >= 0
        np.testing.assert_allclose(conversions.transform_matrix(message), pose, atol=1e-12)


@pytest.mark.parametrize(
    "values, words",
    [((np.nan, 0, 0, 0, 0, 0, 1), "not finite"), ((0, 0, 0, 0, 0, 0, 0), "length 0")],
)
def test_poses_that_cannot_be_used_are_refused(values, words):
    x, y, z, qx, qy, qz, qw = (float(value) for value in values)
    with pytest.raises(MessageError, match=f"odometry.*{words}"):
        conversions.pose_matrix(
            Point(x=x, y=y, z=z), Quaternion(x=qx, y=qy, z=qz, w=qw), "odometry"
        )


def test_raw_image_shares_the_messages_bytes():
    message = Image(
        height=2, width=3, encoding="bgr8", step=9, data=np.arange(18, dtype=np.uint8).tobytes()
    )
    image = conversions.raw_image(message, 7)
    assert (image.width, image.height, image.step, image.encoding, image.received_ns) == (
        3,
        2,
        9,
        "bgr8",
        7,
    )
    assert np.shares_memory(image.data, np.frombuffer(message.data, np.uint8))


# Of every kind that a bag's image may be: raw, padded rows but the last, sixteen bits, compressed.
MESSAGES = [
    Image(height=2, width=3, encoding="RGB8", step=9, data=bytes(range(18))),
    Image(height=2, width=3, encoding="mono8", step=8, data=bytes(range(11))),
    Image(height=2, width=3, encoding="mono16", is_bigendian=1, step=6, data=bytes(range(12))),
    Image(height=2, width=3, encoding="bgra16", step=24, data=bytes(range(48))),
    CompressedImage(format="rgb8; png compressed", data=b"\xff\xd8\xff\xe0rest"),
    CompressedImage(format="jpeg", data=b"cut short"),
]


@pytest.mark.parametrize(
    "message", MESSAGES, ids=lambda message: getattr(message, "encoding", "compressed")
)
def test_the_node_takes_an_image_as_a_bag_gives_it(message):
    live = conversions.raw_image(message, 7)
    recorded = (
        messages.raw_compressed_image(message, 7)
        if isinstance(message, CompressedImage)
        else messages.raw_image(message, 7)
    )
    for name, value in vars(recorded).items():
        np.testing.assert_array_equal(getattr(live, name), value, err_msg=name)
    if isinstance(message, Image):
        np.testing.assert_array_equal(decode(live, 3), decode(recorded, 3))


@pytest.mark.parametrize("name", ["rgb16", "bgr16", "rgba16", "bgra16"])
def test_sixteen_bits_of_colour_are_decoded_as_cv_bridge_would(name):
    pixels = rng.integers(0, 65536, (4, 6, 4 if "a" in name else 3)).astype(np.uint16)
    message = Image(height=4, width=6, encoding=name, step=pixels.strides[0], data=pixels.tobytes())
    bridged = CvBridge().imgmsg_to_cv2(message, "rgb8")
    np.testing.assert_allclose(
        decode(conversions.raw_image(message, 0), 3).astype(int), bridged.astype(int), atol=1
    )
    grey = decode(conversions.raw_image(message, 0), 1)[..., 0].astype(int)
    np.testing.assert_allclose(grey, bridged @ np.array([0.299, 0.587, 0.114]), atol=2)


@pytest.mark.parametrize(
    "message, words",
    [
        (
            Image(height=2, width=3, encoding="hypercolor", step=9, data=bytes(18)),
            "'hypercolor' is not known",
        ),
        (
            Image(height=2, width=3, encoding="rgb8", step=9, data=bytes(10)),
            "needs 18 bytes: got 10",
        ),
        (Image(height=0, width=0, encoding="rgb8", step=0), "0x0"),
        (CompressedImage(format="jp2", data=b"BM123456"), "'jp2' is not known"),
    ],
)
def test_images_that_cannot_be_used_are_refused(message, words):
    with pytest.raises(ImageError, match=words):
        decode(conversions.raw_image(message, 0), 3)


def test_compressed_images_are_known_by_their_bytes():
    assert (
        conversions.raw_image(
            CompressedImage(format="rgb8; png compressed", data=b"\xff\xd8\xff\xe0rest"), 0
        ).encoding
        == "jpeg"
    )
    assert (
        conversions.raw_image(CompressedImage(format="jpeg", data=b"cut short"), 0).encoding
        == "jpeg"
    )  # the decoder refuses it later


def test_depth_image_keeps_values_and_nan():
    depth = rng.uniform(1, 80, (6, 8)).astype(np.float32)
    depth[2, 3] = np.nan
    message = conversions.image_msg(depth, "32FC1", 5, "front")
    assert (message.height, message.width, message.step, message.encoding) == (6, 8, 32, "32FC1")
    np.testing.assert_array_equal(np.frombuffer(message.data, np.float32).reshape(6, 8), depth)


def test_a_view_with_gaps_is_packed():
    wide = rng.uniform(1, 80, (6, 16)).astype(np.float32)
    message = conversions.image_msg(wide[:, ::2], "32FC1", 5, "front")
    assert message.step == 32
    np.testing.assert_array_equal(
        np.frombuffer(message.data, np.float32).reshape(6, 8), wide[:, ::2]
    )


def test_an_image_that_is_kept_says_only_what_is_new():
    depth, gaps = (
        rng.uniform(1, 80, (6, 8)).astype(np.float32),
        rng.uniform(1, 80, (6, 16)).astype(np.float32)[:, ::2],
    )
    message = conversions.image_msg(depth, "32FC1", 5, "front")
    conversions.repaint(message, gaps, 2_000_000_007, "rear")
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (
        2,
        7,
        "rear",
    )
    again = deserialize_message(serialize_message(message), Image)
    np.testing.assert_array_equal(np.frombuffer(again.data, np.float32).reshape(6, 8), gaps)


def test_a_cloud_that_is_kept_says_only_what_is_new():
    rows = rng.normal(size=(7, 5)).astype(np.float32)
    message = conversions.rows_msg(rows, 5, "map", "confidence")
    for parts in ([rows[:2], rows[4:]], [], [rows]):
        conversions.refill(message, parts, 6, "base_link")
        again = deserialize_message(serialize_message(message), PointCloud2)
        expected = np.concatenate([np.empty((0, 5), np.float32), *parts])
        np.testing.assert_array_equal(
            np.frombuffer(again.data, np.float32).reshape(-1, 5), expected
        )
        assert (again.width, again.row_step, again.header.frame_id) == (
            len(expected),
            20 * len(expected),
            "base_link",
        )


def test_a_whole_image_is_packed_as_its_pixels_are():
    color = rng.integers(0, 256, (5, 7, 3), np.uint8)
    color[0, :2] = [[0, 0, 0], [255, 255, 255]]
    np.testing.assert_array_equal(
        conversions.packed_image(color).view(np.uint32),
        conversions.packed_rgb(color).view(np.uint32),
    )


def test_camera_info_is_of_the_working_image():
    k = np.array([[100.0, 0, 50], [0, 110, 40], [0, 0, 1]])
    message = conversions.camera_info_msg(k, (80, 100), 5, "front")
    assert (message.height, message.width) == (80, 100) and not any(message.d)
    np.testing.assert_array_equal(
        np.array(message.p).reshape(3, 4), np.hstack([k, np.zeros((3, 1))])
    )


def test_cloud_has_the_fields_rviz_and_pcl_expect():
    xyz, rgb = rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 255, (5, 3), np.uint8)
    message = conversions.cloud_msg(
        xyz, rgb, 5, "base_link", confidence=np.linspace(0, 1, 5, dtype=np.float32)
    )
    assert [field.name for field in message.fields] == ["x", "y", "z", "rgb", "confidence"]
    assert (message.width, message.height, message.point_step) == (5, 1, 20)
    points = point_cloud2.read_points(message)
    np.testing.assert_array_equal(np.stack([points["x"], points["y"], points["z"]], 1), xyz)
    bits = np.ascontiguousarray(points["rgb"]).view(np.uint32)
    np.testing.assert_array_equal(np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1), rgb)
    assert not (bits >> 24).any()


def test_an_empty_cloud_is_a_message_too():
    message = conversions.cloud_msg(
        np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), 5, "map"
    )
    assert message.width * message.height == 0 and len(message.data) == 0


def pose_estimate(tracking=Tracking.TRACKING) -> PoseEstimate:
    pose = se3(
        np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([1.0, 2, 3])
    )  # a quarter turn left
    return PoseEstimate(
        pose,
        pose[None],
        tracking,
        np.diag([1.0, 2, 3, 4, 5, 6]),
        np.diag([7.0, 8, 9, 10, 11, 12]),
        np.array([10.0, 0, 0, 0, 0, 0.1]),
    )


def test_odometry_covariance_is_turned_into_the_parent_frame():
    message = conversions.odometry_msg(
        pose_estimate(), pose_estimate().T_map_base, 0.1, 5, "odom", "base_link"
    )
    np.testing.assert_allclose(
        np.diag(np.array(message.pose.covariance).reshape(6, 6)), [2, 1, 3, 5, 4, 6], atol=1e-12
    )
    assert message.twist.twist.linear.x == 10.0
    np.testing.assert_allclose(
        np.diag(np.array(message.twist.covariance).reshape(6, 6)),
        np.array([7, 8, 9, 10, 11, 12]) * 100,
        rtol=1e-9,
    )


def test_lost_is_said_in_the_covariance():
    message = conversions.odometry_msg(
        pose_estimate(Tracking.LOST), pose_estimate().T_map_base, 0.1, 5, "odom", "base_link"
    )
    assert np.array(message.pose.covariance).reshape(6, 6)[0, 0] >= 1e6


def mover(identity=7) -> DynamicObject:
    return DynamicObject(
        identity,
        np.array([1.0, 2, 0.5]),
        0.3,
        np.array([4.0, 2, 1.5]),
        np.array([5.0, 0, 0]),
        np.eye(3),
        2 * np.eye(3),
        0.9,
        12,
        0,
    )


def test_objects_carry_box_velocity_and_covariance():
    message = conversions.objects_msg((mover(),), 5, "map").objects[0]
    assert (message.id, message.age, message.missed, message.size.x) == (7, 12, 0, 4.0)
    assert message.pose.covariance[0] == 1.0 and message.twist.covariance[7] == 2.0
    back = asdict(dynamic_object(message))
    for name, value in asdict(mover()).items():
        if isinstance(value, str):
            assert back[name] == value
        else:
            np.testing.assert_allclose(back[name], value, atol=1e-7, err_msg=name)
    markers = conversions.markers_msg((mover(), mover(8)), 5, "map").markers
    assert len(markers) == 1 + 2 * 3 and markers[0].action == markers[0].DELETEALL
    assert len({(marker.ns, marker.id) for marker in markers[1:]}) == 6


def test_map_update_lists_keys_beside_points():
    delta = MapDelta(
        3,
        0.2,
        np.array([[1, 2, 3], [4, 5, 6]], np.int32),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), np.uint8),
        np.ones(2, np.float32),
        np.array([[7, 8, 9]], np.int32),
    )
    message = conversions.map_update_msg(delta, 5, "map")
    assert (message.sequence, message.changed.width) == (3, 2)
    assert list(message.changed_keys) == [1, 2, 3, 4, 5, 6] and list(message.removed_keys) == [
        7,
        8,
        9,
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(focal=0.0), "focal length"),
        (dict(focal=float("nan")), "not finite"),
    ],
)
def test_calibrations_that_cannot_be_used_are_refused(change, words):
    assert words in RigSource(("front",), FixedTransforms(), "base_link").offer(
        "front", info_message(**change)
    )


# --- tf


def test_who_owns_which_edge():
    T_map_base, T_odom_base = (
        exp(np.array([5.0, 1, 0, 0, 0, 0.2])),
        exp(np.array([4.0, 0, 0, 0, 0, 0.1])),
    )
    both = edges("map_odom_base", FRAMES, T_map_base, 5, None)
    assert [(e.header.frame_id, e.child_frame_id) for e in both] == [
        ("map", "odom"),
        ("odom", "base_link"),
    ]
    product = conversions.transform_matrix(both[0]) @ conversions.transform_matrix(both[1])
    np.testing.assert_allclose(product, T_map_base, atol=1e-12)
    (one,) = edges("map_odom", FRAMES, T_map_base, 5, T_odom_base)
    np.testing.assert_allclose(
        conversions.transform_matrix(one) @ T_odom_base, T_map_base, atol=1e-12
    )
    assert (
        edges("map_odom", FRAMES, T_map_base, 5, None)
        == edges("none", FRAMES, T_map_base, 5, None)
        == []
    )


def test_odometry_stays_smooth_where_the_car_is_found_in_a_map():
    T_map_odom, T_odom_base = (
        exp(np.array([30.0, 4, 0, 0, 0, 1.0])),
        exp(np.array([4.0, 0, 0, 0, 0, 0.1])),
    )
    pose = T_map_odom @ T_odom_base
    above, below = edges("map_odom_base", FRAMES, pose, 5, None, T_map_odom)
    np.testing.assert_allclose(conversions.transform_matrix(above), T_map_odom, atol=1e-12)
    np.testing.assert_allclose(conversions.transform_matrix(below), T_odom_base, atol=1e-12)
    # while it is not known where odom is in map, nobody is told
    (only,) = edges("map_odom_base", FRAMES, T_odom_base, 5, None, np.eye(4), False)
    assert (only.header.frame_id, only.child_frame_id) == ("odom", "base_link")
    # where odom is another's, all is said in a frame of our own below it
    other = Frames("map", "odom", "base_link", "map")
    (apart,) = edges("map_odom", other, pose, 5, T_odom_base, np.eye(4), False)
    assert (apart.header.frame_id, apart.child_frame_id) == ("odom", other.apart)
    assert other.apart not in ("map", "odom") and FRAMES.apart == "odom"
    T_odom_apart = conversions.transform_matrix(apart)
    np.testing.assert_allclose(T_odom_apart @ pose, T_odom_base, atol=1e-12)


class Trail(Publishers):
    """The part of the publishers that keeps the path, and what it sent."""

    def __init__(self, frames: Frames) -> None:
        self._frames, self._fixed = frames, frames.map
        self._path, self._path_stamps = deque(), deque()
        self._path_spacing, self._calibration = 0.5, None
        self.sent: dict[str, Any] = {}
        self.reset()

    def wanted(self, topic: str) -> bool:
        return topic == "~/path"

    def send(self, topic: str, message: Any) -> None:
        self.sent[topic] = message

    def _images(self, result: Any) -> None: ...

    def _clouds(self, result: Any, stamp: int) -> None: ...


def moving(index: int, x: float, T_map_odom: np.ndarray, **more: Any) -> Reconstruction:
    """One second each along odometry's x."""
    T = T_map_odom @ exp(np.array([x, 0, 0, 0, 0, 0.0]))
    segment = more.pop("segment", 0)
    pose = PoseEstimate(
        T, T[None], Tracking.TRACKING, np.eye(6), np.eye(6), np.zeros(6), segment=segment
    )
    nothing = SimpleNamespace(objects=())
    return Reconstruction(
        SimpleNamespace(stamp_ns=10**18 + index * 10**9),
        None,
        pose,
        None,
        nothing,
        None,
        {},
        0.0,
        T_map_odom=T_map_odom,
        **more,
    )


@pytest.mark.parametrize("pose", ["odom", "map"])
def test_the_path_is_in_the_frame_that_it_says(pose):
    """Odometry's while the car is not found in the map, map's all of it from then on, and it goes
    along where a loop moves the map."""
    frames = Frames("map", "odom", "base_link", pose)
    trail, T = Trail(frames), exp(np.array([50.0, 7, 0, 0, 0, 2.0]))

    def shown(result: Reconstruction) -> tuple[str, np.ndarray]:
        trail.show(result, np.eye(4))
        path = trail.sent["~/path"]
        assert {one.header.frame_id for one in path.poses} == {path.header.frame_id}
        place = [(p.pose.position.x, p.pose.position.y, p.pose.position.z) for p in path.poses]
        return path.header.frame_id, np.array(place)

    odom = np.column_stack([2.0 * np.arange(6), np.zeros((6, 2))])
    for i in range(3):
        frame, place = shown(moving(i, 2.0 * i, np.eye(4), in_map=False))
    assert frame == frames.apart != "map"
    parent = trail.sent["~/odometry"].header.frame_id
    assert parent == frames.apart
    np.testing.assert_allclose(place, odom[:3], atol=1e-9)
    frame, place = shown(moving(3, 6.0, T, map_motion=MapMotion.whole(T)))
    assert frame == "map" and trail.sent["~/odometry"].header.frame_id == pose
    np.testing.assert_allclose(place, transform(T, odom[:4]), atol=1e-9)
    # a loop: what lies near to where the car is moves, the beginning stays
    shift = exp(np.array([0.0, 3.0, 0, 0, 0, 0]))
    places = transform(T, odom[[0, 3]])
    loop = MapMotion(places, np.stack([np.eye(4), shift]))
    frame, place = shown(moving(4, 8.0, shift @ T, map_motion=loop))
    np.testing.assert_allclose(place[:2], transform(T, odom[:2]), atol=1e-9)
    np.testing.assert_allclose(place[2:], transform(shift @ T, odom[2:5]), atol=1e-9)
    # odometry begins anew: where the old way lies from there is not known
    frame, place = shown(moving(5, 10.0, np.eye(4), in_map=False, segment=1))
    assert frame == frames.apart and len(place) == 1


# --- rig from messages


def static(parent: str, child: str) -> FixedTransforms:
    transforms = FixedTransforms()
    pose = exp(np.array([1.0, 0, 1.5, 0, 0, 0.1]))
    pose[:3, :3] = pose[:3, :3] @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    edge = conversions.transform_msg(pose, 0, parent, child)
    transforms.add_static(TFMessage(transforms=[edge]))
    return transforms


def test_the_rig_waits_for_what_it_lacks_and_says_so():
    source = RigSource(("front",), FixedTransforms(), "base_link")
    assert source.missing() == ["camera_info of front"] and source.rig() is None
    assert "focal length" in source.offer("front", info_message(focal=0.0))
    assert "focal length" in source.missing()[0]
    assert source.offer("front", info_message()) == ""
    (missing,) = source.missing()
    assert missing.startswith("tf base_link->front_optical (") and "camera_height" in missing
    assert source.rig() is None
    source = RigSource(("front",), static("base_link", "front_optical"), "base_link")
    source.offer("front", info_message())
    rig = source.rig()
    assert (
        rig is not None
        and rig.cameras[0].k[0, 0] == 50.0
        and rig.cameras[0].T_base_camera[2, 3] == pytest.approx(1.5)
    )


def unusual_info() -> CameraInfo:
    """A region of interest, binned, of a lens that a driver calls fisheye, and whose rectified
    matrix is another."""
    message = info_message(width=640, height=480, focal=500.0)
    message.k = np.array([500.0, 0, 320, 0, 500, 240, 0, 0, 1])
    message.p = np.array([450.0, 0, 318, 0, 0, 450, 238, 0, 0, 0, 1, 0])
    message.distortion_model, message.d = "Fisheye", [0.1, 0.0, 0.0, 0.0]
    message.roi.x_offset, message.roi.width, message.roi.height = 40, 600, 400
    message.binning_x = message.binning_y = 2
    return message


@pytest.mark.parametrize("rectified", [False, True])
def test_the_node_reads_a_calibration_as_a_bags_reader_does(rectified):
    """Rectified, its images must not be undistorted a second time."""
    source = RigSource(
        ("front",),
        static("base_link", "front_optical"),
        "base_link",
        rectified=["front"] if rectified else [],
    )
    assert source.offer("front", unusual_info()) == ""
    (live,) = source.rig().cameras
    recorded = messages.camera_from_info("front", unusual_info(), live.T_base_camera, rectified)
    np.testing.assert_array_equal(live.k, recorded.k)
    assert (live.width, live.height, live.distortion_model, live.d) == (
        300,
        200,
        recorded.distortion_model,
        recorded.d,
    )
    assert live.k[0, 0] == (225.0 if rectified else 250.0) and live.distortion_model == (
        "none" if rectified else "equidistant"
    )


def test_topics_say_whether_their_images_are_rectified():
    assert messages.is_rectified("/front/image_rect_color/compressed") and messages.is_rectified(
        "/front/image_rect"
    )
    assert not messages.is_rectified("/rectangle/image_raw") and not messages.is_rectified(
        "/front/image_raw/compressed"
    )


def test_a_calibration_in_use_is_not_replaced_but_a_change_is_said():
    source = RigSource(("front",), static("base_link", "front_optical"), "base_link")
    source.offer("front", info_message())
    rig = source.rig()
    assert source.offer("front", info_message()) == ""
    assert "changed its K by 10.00 px" in source.offer("front", info_message(focal=60.0))
    assert "128x48" in source.offer("front", info_message(width=128))
    assert source.rig() is rig


# --- worker


def frame_set(stamp: int, jump: Jump = Jump.NONE) -> FrameSet:
    image = RawImage(stamp, "jpeg", np.zeros(1, np.uint8))
    return FrameSet(
        stamp, {"front": image}, odometry=(OdometrySample(stamp, np.eye(4)),), jump=jump
    )


def test_the_newest_frame_set_wins_and_nothing_is_lost_with_the_older():
    merged = newest(frame_set(1, Jump.BACKWARD), frame_set(2))
    assert (
        merged.stamp_ns == 2
        and [sample.stamp_ns for sample in merged.odometry] == [1, 2]
        and merged.jump is Jump.BACKWARD
    )
    assert newest(frame_set(1, Jump.BACKWARD), frame_set(2, Jump.FORWARD)).jump is Jump.BACKWARD
    assert newest(frame_set(1), frame_set(2, Jump.FORWARD)).jump is Jump.FORWARD


def test_images_never_queue_behind_a_slow_engine():
    taken, release, done, displaced = threading.Event(), threading.Event(), [], []

    def process(item: FrameSet) -> None:
        taken.set()
        release.wait(5)
        done.append(item.stamp_ns)

    worker = Worker(
        process, displaced=lambda item: displaced.append(item.stamp_ns), failed=lambda error: None
    )
    worker.put(frame_set(0))
    assert taken.wait(5)
    for stamp in range(1, 6):
        worker.put(frame_set(stamp))
    release.set()
    worker.call(lambda: None).result(5)
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.close()
    assert done == [0, 5] and displaced == [1, 2, 3, 4]


def test_the_worker_survives_what_the_step_raises():
    errors, done, taken = [], [], threading.Semaphore(0)

    def process(item: FrameSet) -> None:
        taken.release()
        if item.stamp_ns == 1:
            raise RuntimeError("no")
        done.append(item.stamp_ns)

    worker = Worker(process, displaced=lambda item: None, failed=errors.append)
    for stamp in (1, 2):
        worker.put(frame_set(stamp))
        assert taken.acquire(timeout=5)
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(5)
    worker.close()
    assert [str(error) for error in errors] == ["no"] and done == [2]
    assert worker.call(lambda: None).cancelled()


def test_waits_follow_the_played_clock_and_never_go_back():
    class Played:
        ros_time_is_active = True

        def __init__(self) -> None:
            self.times = iter([10, 20, 5, 15])

        def now(self) -> Time:
            return Time(nanoseconds=next(self.times))

    clock = WaitingClock(Played())
    assert [clock() for _ in range(4)] == [10, 20, 20, 30]
    wall = WaitingClock(Clock())
    assert abs(wall() - time.monotonic_ns()) < 1e9


# --- diagnostics


def test_time_outside_the_engine_is_told_by_the_wall_and_by_the_processor():
    health = Health(("front", "rear"))
    result = SimpleNamespace(
        pose=SimpleNamespace(tracking=Tracking.TRACKING, reason=""),
        memory_fill=0.5,
        frame=SimpleNamespace(present=[True, True]),
        motion=SimpleNamespace(objects=()),
        troubles={"left": ("too dark",)},
    )
    wall, processor = (
        {"preprocess": 0.008, "engine": 0.2, "publish": 0.012},
        {"preprocess": 0.004, "engine": 0.3, "publish": 0.002},
    )
    for _ in range(3):
        health.done(result, wall, processor, 0.25, 7)
    assert health.host_overhead() == pytest.approx(0.010) and health.host_cpu() == pytest.approx(
        0.003
    )
    message = health.diagnostics_msg(
        5, "recon4d", state="active", waiting=[], paused=False, silence=2.0
    )
    values = {
        pair.key: pair.value
        for status in message.status
        if status.name == "recon4d: latency"
        for pair in status.values
    }
    assert (
        values["host overhead per camera ms"] == "10.00"
        and values["host cpu per camera ms"] == "3.00"
    )
    assert values["publish ms"] == "12.0" and values["publish cpu ms"] == "2.0"


@pytest.mark.parametrize("executor", [lean_executor, SingleThreadedExecutor])
def test_a_clock_that_jumps_back_resets_whichever_executor_runs_the_node(executor, monkeypatch):
    reasons: list[str] = []
    monkeypatch.setattr(Session, "_ask_reset", lambda self, reason: reasons.append(reason))
    rclpy.init(domain_id=free_domain())
    node = Recon4dNode(
        parameter_overrides=[
            Parameter("use_sim_time", value=True),
            Parameter("cameras", value=["front"]),
        ]
    )
    told = rclpy.create_node("told")
    clock = told.create_publisher(ClockMsg, "/clock", 10)
    runner = executor()
    runner.add_node(node)
    try:
        node.start()

        def tell(seconds: int) -> None:
            end = time.monotonic() + 10.0
            while node.get_clock().now().nanoseconds != seconds * 10**9 and time.monotonic() < end:
                clock.publish(ClockMsg(clock=time_msg(seconds * 10**9)))
                runner.spin_once(timeout_sec=0.05)
            assert node.get_clock().now().nanoseconds == seconds * 10**9

        tell(100)
        tell(101)
        assert not reasons
        tell(50)
        assert reasons[-1] == "the clock jumped back"
    finally:
        node.finish()
        runner.shutdown()
        node.destroy_node()
        told.destroy_node()
        rclpy.try_shutdown()


def test_drops_are_counted_by_reason_and_bounded():
    drops = Tally()
    assert drops.count("front", "late") and not drops.count("front", "late")
    for index in range(3 * LIMIT):
        drops.count("front", f"reason{index}")
    counts = drops()
    assert counts[("front", "late")] == 2 and len(counts) <= LIMIT + 1
    assert sum(counts.values()) == 2 + 3 * LIMIT


def test_reasons_that_differ_in_their_numbers_are_one():
    drops = Tally()
    new = [
        drops.count("front", f"jpeg of {size} bytes, {size}x480, rgb8, at {size}.25 s: 1e-{size}")
        for size in range(100, 600)
    ]
    assert new == [True] + [False] * 499
    assert drops() == {("front", "jpeg of 100 bytes, 100x480, rgb8, at 100.25 s: 1e-100"): 500}
    assert kind_of("encoding 'rgb8' is not known") != kind_of("encoding 'rgb16' is not known")
    assert drops.count("rear", "jpeg of 7 bytes, 9x480, rgb8, at 1.25 s: 1e-3")


def test_percentiles():
    assert (
        percentile([], 50) == 0.0
        and percentile([3, 1, 2], 50) == 2
        and percentile(range(100), 95) == 95
    )


def test_diagnostics_say_lost_silent_and_waiting():
    health = Health(("front", "rear"))
    health.tracking, health.reason = Tracking.LOST, "too few inliers"
    health.images["front"].tick()
    health.drops.count("front", "broken JPEG")
    message = health.diagnostics_msg(
        5, "recon4d", state="active", waiting=[], paused=False, silence=2.0
    )
    by_name = {status.name: status for status in message.status}
    assert (
        by_name["recon4d: tracking"].level == b"\x02"
        and "too few inliers" in by_name["recon4d: tracking"].message
    )
    assert (
        by_name["recon4d: camera rear"].level == b"\x02"
        and by_name["recon4d: camera front"].level == b"\x01"
    )
    waiting = health.diagnostics_msg(
        5, "recon4d", state="active", waiting=["camera_info of front"], paused=False, silence=2.0
    )
    assert waiting.status[0].message == "waiting for camera_info of front"
    status = health.status_msg(5, "base_link", paused=False)
    assert (
        status.tracking == Status.LOST
        and list(status.drop_reasons) == ["front: broken JPEG"]
        and list(status.drop_counts) == [1]
    )
    assert health.status_msg(5, "base_link", paused=True).tracking == Status.PAUSED


def test_a_doubtful_pose_and_a_camera_in_trouble_are_told():
    health = Health(("front", "rear"))
    health.tracking, health.reason = Tracking.DEGRADED, "road and points disagree by 0.3 m"
    health.troubles = {"rear": ("lens blocked",)}
    for name in ("front", "rear"):
        health.images[name].tick()
    message = health.diagnostics_msg(
        5, "recon4d", state="active", waiting=[], paused=False, silence=2.0
    )
    by_name = {status.name: status for status in message.status}
    assert by_name["recon4d: tracking"].level == b"\x01"
    assert "disagree" in by_name["recon4d: tracking"].message
    assert by_name["recon4d: camera front"].level == b"\x00"
    assert "lens blocked" in by_name["recon4d: camera rear"].message
    status = health.status_msg(5, "base_link", paused=False)
    assert status.tracking == Status.DEGRADED and "disagree" in status.reason


# --- parameters and the files we ship


def test_every_parameter_has_description_and_range():
    for info in all_parameters():
        message = descriptor(info)
        assert message.description, info.name
        if info.type in (int, float):
            assert message.floating_point_range or message.integer_range, (
                f"{info.name} has no range"
            )
            value = (message.floating_point_range or message.integer_range)[0]
            assert value.from_value <= info.default <= value.to_value, info.name


def test_parameter_file_is_in_step_with_the_code():
    shipped = (REPOSITORY / "config/recon4d.yaml").read_text()
    assert shipped == parameter_file(), (
        "run: python -m recon4d_ros.ros.parameter_file > config/recon4d.yaml"
    )
    tree = yaml.safe_load(shipped)["/**"]["ros__parameters"]
    assert {"sync", "egomotion", "dynamics", "mapping"} <= set(tree)
    assert (
        tree["publish_tf"]
        == next(info for info in describe(NodeParameters) if info.name == "publish_tf").default
    )


def shipped_topics() -> dict[str, set[str]]:
    """Configuration file -> topics it shows."""
    found: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("Topic"), dict):
                found.add(node["Topic"]["Value"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(yaml.safe_load((REPOSITORY / "config/recon4d.rviz").read_text()))
    foxglove = set()
    for panel in json.loads((REPOSITORY / "config/foxglove.json").read_text())[
        "configById"
    ].values():
        foxglove |= set(panel.get("topics", ())) | {
            panel[key] for key in ("topicPath", "topicToRender") if key in panel
        }
        foxglove |= {
            panel["imageMode"][key]
            for key in ("imageTopic", "calibrationTopic")
            if key in panel.get("imageMode", {})
        }
        foxglove |= {path["value"].split(".")[0] for path in panel.get("paths", ())}
    return {"rviz": found, "foxglove": foxglove}


# What an RViz display or a Foxglove panel takes.
RVIZ_TYPES = {
    "PointCloud2": "PointCloud2",
    "MarkerArray": "MarkerArray",
    "Path": "Path",
    "Odometry": "Odometry",
    "Image": "Image",
    "Map": "OccupancyGrid",
}


def test_rviz_displays_are_of_the_topics_types():
    types = {
        output.topic.replace("~", "/recon4d").replace("<camera>", "front"): output.type
        for output in OUTPUTS
    }
    latched = {
        output.topic.replace("~", "/recon4d").replace("<camera>", "front"): output.latched
        for output in OUTPUTS
    }
    displays = yaml.safe_load((REPOSITORY / "config/recon4d.rviz").read_text())[
        "Visualization Manager"
    ]["Displays"]
    shown = [
        (display["Class"].split("/")[1], display["Topic"])
        for display in displays
        if "Topic" in display
    ]
    assert len(shown) >= 7
    for kind, topic in shown:
        assert types[topic["Value"]].__name__ == RVIZ_TYPES[kind], topic["Value"]
        assert (topic["Durability Policy"] == "Transient Local") == latched[topic["Value"]], topic[
            "Value"
        ]
