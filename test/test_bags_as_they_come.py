"""Bags as drivers, simulators and recorders leave them: what is there is read rightly, what is lost
is told, and the rest goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.interfaces import MessageDefinition
from rosbags.interfaces import MessageDefinitionFormat as Format

from recon4d_ros import cli
from recon4d_ros.bags import BagReader, BagWriter, ImageEvent, OdometryEvent
from recon4d_ros.bags.storage import Channel
from recon4d_ros.bags.topics import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    COMPRESSED_VIDEO,
    FFMPEG_PACKET,
    IMAGE,
    TopicInfo,
    find_cameras,
)
from recon4d_ros.bags.types import typestore
from recon4d_ros.cameras import video
from recon4d_ros.cameras.decode import decode
from recon4d_ros.cameras.rig_check import check_rig
from recon4d_ros.errors import BagError, CalibrationError, ImageError
from recon4d_ros.evaluation import format_report, nothing_tracked
from recon4d_ros.geometry import exp, inverse
from recon4d_ros.messages import camera_from_info
from recon4d_ros.runs.replay import MotionTopics
from recon4d_ros.types import Camera, RawImage, Rig

START = 1_700_000_000_000_000_000
TENTH = 100_000_000
OPTICAL = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0.0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
RIGHT = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
K = np.array([[100.0, 0, 31.5], [0, 101.0, 23.5], [0, 0, 1]])
K_TWICE = np.array([[200.0, 0, 63.5], [0, 202, 47.5], [0, 0, 1]])
K_SHIFTED = np.array([[100.0, 0, 131.5], [0, 101.0, 73.5], [0, 0, 1]])
GREY = (np.indices((48, 64)).sum(0) * 2).astype(np.uint8)


@dataclass
class Info:
    """A camera_info, field by field."""

    frame: str = "left"
    size: tuple[int, int] = (64, 48)
    k: Any = field(default_factory=lambda: K.copy())
    p: Any = field(default_factory=lambda: np.hstack([K, np.zeros((3, 1))]))
    r: Any = field(default_factory=lambda: np.eye(3))
    d: Sequence[float] = ()
    model: str = "plumb_bob"
    binning: int = 0
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height

    def message(self, writer: BagWriter) -> Any:
        x, y, width, height = self.roi
        roi = writer.type("sensor_msgs/msg/RegionOfInterest")(x, y, height, width, False)
        matrices = (np.ravel(one).astype(float) for one in (self.d, self.k, self.r, self.p))
        return writer.type(CAMERA_INFO)(
            writer.header(START, self.frame),
            self.size[1],
            self.size[0],
            self.model,
            *matrices,
            self.binning,
            self.binning,
            roi,
        )


def tx(metres: float, k: np.ndarray = K) -> np.ndarray:
    """P of a camera that lies so far to the right."""
    return np.hstack([k, [[-k[0, 0] * metres], [0], [0]]])


def write(
    path: Path,
    infos: dict[str, Sequence[Info]],
    edges: Sequence[tuple[str, str, np.ndarray]] = (("base_link", "left", OPTICAL),),
    images: dict[str, str] | None = None,
    image: np.ndarray = GREY,
    extra: Callable[[BagWriter], None] | None = None,
    frames: int = 2,
) -> Path:
    """A bag of camera_info by topic (one after the other) and images by topic -> frame."""
    with BagWriter(path) as writer:
        if edges:
            writer.write_tf_static(START, edges)
        if extra:
            extra(writer)
        for topic, several in infos.items():
            for index, info in enumerate(several):
                writer.write(topic, CAMERA_INFO, info.message(writer), START + index)
        for topic, frame in (images or {}).items():
            for index in range(frames):
                writer.write_image(topic, START + index * TENTH, frame, image, "mono8")
    return path


def pair(left: Info, right: Info, how: str = "image_rect") -> dict[str, Any]:
    return {
        "infos": {"/stereo/left/camera_info": [left], "/stereo/right/camera_info": [right]},
        "images": {f"/stereo/left/{how}": left.frame, f"/stereo/right/{how}": right.frame},
    }


def said(reader: BagReader, *words: str) -> bool:
    return any(all(word in note for word in words) for note in reader.notes)


# --- frames and calibrations


@pytest.mark.parametrize(
    ("edges", "frame"),
    [
        ([("base_link", "car1/left", OPTICAL)], "left"),
        ([("car1/base_link", "car1/left", OPTICAL)], "car1/left"),
        ([("car1/base_link", "car1/left", OPTICAL)], "left"),
        ([("base_link", "left", OPTICAL)], "/car1/left"),
    ],
)
def test_frames_with_and_without_a_robots_name(tmp_path: Path, edges: Any, frame: str) -> None:
    info, images = Info(frame=frame), {"/left/image_raw": frame}
    path = write(tmp_path / "bag", {"/left/camera_info": [info]}, edges, images)
    with BagReader(path) as bag:
        assert np.allclose(bag.rig().T_base_camera[0], OPTICAL)
        assert said(bag, "is taken to be", "the only one of its name")
    two = [*edges, ("base_link", "car2/left", OPTICAL @ RIGHT)]
    if frame == "left" and len(edges) == 1:
        path = write(tmp_path / "two", {"/left/camera_info": [info]}, two, images)
        with BagReader(path) as bag, pytest.raises(CalibrationError, match="car2/left"):
            bag.rig()


def test_a_first_camera_info_that_is_not_finite_is_passed_over(tmp_path: Path) -> None:
    infos = {"/left/camera_info": [Info(d=(np.nan,) * 5), Info()]}
    path = write(tmp_path / "bag", infos, images={"/left/image_raw": "left"})
    with BagReader(path) as bag:
        assert bag.rig().cameras[0].d == () and said(bag, "left", "is not finite: the next is")
    path = write(tmp_path / "nan", {"/left/camera_info": infos["/left/camera_info"][:1]})
    with BagReader(path) as bag, pytest.raises(BagError):
        bag.rig()


@pytest.mark.parametrize("k", [np.eye(3), np.array([[1.5, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]])])
def test_a_camera_without_a_lens_is_told(tmp_path: Path, k: np.ndarray) -> None:
    infos = {"/left/camera_info": [Info(k=k)]}
    path = write(tmp_path / "bag", infos, images={"/left/image_raw": "left"})
    with BagReader(path) as bag:
        with pytest.raises(CalibrationError, match=r"left: a focal length of .* px is no camera's"):
            check_rig(bag.rig())


# --- a stereo pair in one frame, its baseline in P


def test_a_pair_one_above_the_other(tmp_path: Path) -> None:
    below = np.hstack([K, [[0], [-K[1, 1] * 0.3], [0]]])
    path = write(tmp_path / "bag", **pair(Info(), Info(p=below)))
    with BagReader(path) as bag:
        first, second = bag.rig().cameras
        assert np.allclose(first.T_base_camera, OPTICAL)
        assert np.allclose(second.T_base_camera[:3, 3] - OPTICAL[:3, 3], [0, 0, -0.3])
        assert said(bag, "camera right", "0.300 m down by Ty")


@pytest.mark.parametrize("halves", [0.0, 0.25])
def test_three_cameras_in_one_frame(tmp_path: Path, halves: float) -> None:
    """Also where no camera is the frame's own."""
    places = {"left": 0.0 - halves, "middle": 0.12 - halves, "right": 0.24 - halves}
    infos = {f"/c/{name}/camera_info": [Info(p=tx(x))] for name, x in places.items()}
    images = {f"/c/{name}/image_rect": "left" for name in places}
    with BagReader(write(tmp_path / "bag", infos, images=images)) as bag:
        rig = bag.rig(["left", "middle", "right"])
    assert np.allclose(rig.T_base_camera[:, 1, 3], -np.array(list(places.values())))


@pytest.mark.parametrize("how", ["image_rect", "image_raw"])
@pytest.mark.parametrize("metres", [0.5, -0.5])
def test_a_pair_in_one_frame_is_put_apart_by_tx(tmp_path: Path, how: str, metres: float) -> None:
    """Also where a driver gives Tx the wrong sign: the camera called right is the right one."""
    path = write(tmp_path / "bag", **pair(Info(), Info(p=tx(metres)), how))
    with BagReader(path) as bag:
        left, right = bag.rig().cameras
        assert np.allclose(left.T_base_camera, OPTICAL)
        assert np.allclose(right.T_base_camera, OPTICAL @ RIGHT)
        assert said(bag, "camera right", "0.500 m to the right by Tx")
        assert said(bag, "against its sign") == (metres < 0)
        (alone,) = bag.rig(["right"]).cameras  # its partner is in the bag
        assert np.allclose(alone.T_base_camera, OPTICAL @ RIGHT)
    assert not check_rig(Rig("pair", (left, right)))


def test_the_left_camera_may_be_the_one_with_tx(tmp_path: Path) -> None:
    """Both in the right camera's frame: Tx is positive."""
    path = write(tmp_path / "bag", **pair(Info(p=tx(-0.5)), Info()))
    with BagReader(path) as bag:
        left, right = bag.rig().cameras
    assert np.allclose(right.T_base_camera, OPTICAL)
    assert np.allclose(left.T_base_camera, OPTICAL @ inverse(RIGHT))


def test_cameras_of_other_names_follow_the_sign_of_tx(tmp_path: Path) -> None:
    for sign in (1, -1):
        infos = {"/infra1/camera_info": [Info()], "/infra2/camera_info": [Info(p=tx(sign * 0.05))]}
        images = {"/infra1/image_rect_raw": "left", "/infra2/image_rect_raw": "left"}
        with BagReader(write(tmp_path / f"bag{sign}", infos, images=images)) as bag:
            one, other = bag.rig().cameras
        relative = inverse(one.T_base_camera) @ other.T_base_camera
        assert np.allclose(relative[:3, 3], [sign * 0.05, 0, 0])


def test_tx_is_not_counted_twice(tmp_path: Path) -> None:
    """RealSense sends the baseline on /tf_static, too."""
    edges = [("base_link", "left", OPTICAL), ("left", "right", RIGHT)]
    right = Info(frame="right", p=tx(0.5))
    path = write(tmp_path / "bag", edges=edges, **pair(Info(), right))
    with BagReader(path) as bag:
        assert np.allclose(bag.rig().cameras[1].T_base_camera, OPTICAL @ RIGHT)
        assert not bag.notes


def test_raw_images_of_a_pair_stand_as_its_rectification_says(tmp_path: Path) -> None:
    """R takes each camera's raw frame to the common rectified one: raw frames differ by both."""
    turn_left, turn_right = (exp(np.r_[0, 0, 0, w])[:3, :3] for w in ([0, 0.02, 0], [0.01, 0, 0]))
    path = write(
        tmp_path / "bag",
        **pair(Info(r=turn_left), Info(r=turn_right, p=tx(0.5)), "image_raw"),
    )
    with BagReader(path) as bag:
        left, right = bag.rig().cameras
    relative = inverse(left.T_base_camera) @ right.T_base_camera
    assert np.allclose(relative[:3, :3], turn_left.T @ turn_right)
    assert np.allclose(relative[:3, 3], turn_left.T @ [0.5, 0, 0])


# --- rigs that cannot be


def look(axis: str, height: float = 1.4, x: float = 0.0) -> np.ndarray:
    """A camera that looks along a body axis, upright where that can be."""
    z = {"ahead": [1, 0, 0], "up": [0, 0, 1], "30 up": [np.sqrt(0.75), 0, 0.5], "down": [0, 0, -1]}
    forward = np.array(z[axis], float)
    right = np.array([0.0, -1, 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = x, 0, height
    return pose


def rig_of(*poses: np.ndarray, k: Sequence[np.ndarray] = ()) -> Rig:
    return Rig(
        "car",
        tuple(Camera(f"c{i}", 64, 48, k[i] if k else K, pose) for i, pose in enumerate(poses)),
    )


def test_what_cannot_be_a_rig_is_one_sentence() -> None:
    body = np.eye(4)
    body[2, 3] = 1.4
    for rig, sentence in (
        (rig_of(look("up")), "camera c0 looks 90 degrees up, at the sky"),
        (
            rig_of(look("ahead"), body),
            "camera c1 looks 90 degrees up, at the sky: its frame is the",
        ),
        (rig_of(look("ahead"), look("ahead")), "cameras c0 and c1 are in one place and look the"),
    ):
        with pytest.raises(CalibrationError) as caught:
            check_rig(rig)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(CalibrationError, match="its frame is the body's"):
        check_rig(rig_of(body))
    tele = np.diag([3.0, 3.0, 1.0]) @ K
    assert not check_rig(rig_of(look("ahead"), look("ahead"), k=[K, tele]))  # a zoom of the same
    assert not check_rig(rig_of(look("ahead"), look("down"), look("ahead", x=0.2)))


def test_what_is_unlikely_about_a_rig_is_told() -> None:
    for rig, sentence in (
        (rig_of(look("30 up")), "camera c0 looks 30 degrees up"),
        (rig_of(look("ahead", 0.0)), "the camera stands at the height of the car's frame"),
        (rig_of(look("ahead", 0.0), look("ahead", 0.0, 1)), "all cameras stand at the height"),
        (rig_of(look("ahead"), look("ahead", -0.5, 1)), "c1 is 0.50 m below the car's frame"),
        (rig_of(look("ahead", 8.0)), "8.0 m above the car's frame: in metres?"),
        (rig_of(look("ahead", 1400.0)), "1400.0 m from the car's frame: in metres?"),
        (rig_of(look("ahead"), look("ahead", x=537.0)), "c1 is 537.0 m from the car's frame"),
        (rig_of(look("down")), "the camera looks straight down"),
        (rig_of(look("ahead"), k=[K / 2]), "is this K for images of about 32x24?"),
        (rig_of(look("ahead"), k=[K + np.eye(3)[:, :1] * [0, 0, 18]]), "are they cut from a"),
    ):
        (note,) = check_rig(rig)
        assert sentence in note


@pytest.mark.parametrize("yaw", [0.0, 0.4, np.pi])
def test_transforms_the_other_way_round_are_told(yaw: float) -> None:
    """Parent and child exchanged: the cameras of a rig that is upright lie on their side."""
    turned = [exp(np.r_[0, 0, 0, 0, 0, yaw + a]) @ look("ahead") for a in (0.0, -0.5, 0.5)]
    assert not check_rig(rig_of(*(pose @ RIGHT for pose in turned)))
    with pytest.raises(CalibrationError, match=r"are parent and child exchanged\?"):
        check_rig(rig_of(*(inverse(pose @ RIGHT) for pose in turned)))
    (note,) = check_rig(rig_of(inverse(turned[0])))[:1]
    assert "are parent and child exchanged?" in note
    portrait = look("ahead") @ exp(np.r_[0, 0, 0, 0, 0, np.pi / 2])
    assert not check_rig(rig_of(portrait))


def test_a_frame_of_the_body_with_an_optical_one_below_it(tmp_path: Path) -> None:
    link = np.eye(4)
    link[:3, 3] = 1.5, 0, 1.4
    turn = np.eye(4)
    turn[:3, :3] = OPTICAL[:3, :3]
    edges = [("base_link", "left", link), ("left", "left_optical_frame", turn)]
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    with BagReader(write(tmp_path / "a", infos, edges, images)) as bag:
        (camera,) = bag.rig().cameras
        assert np.allclose(camera.T_base_camera, OPTICAL)
        assert said(bag, "'left' is the body's", "'left_optical_frame' below it")
    with BagReader(write(tmp_path / "b", infos, edges[:1], images)) as bag:
        with pytest.raises(CalibrationError, match="at the sky: its frame is the body's"):
            check_rig(bag.rig())


@pytest.mark.parametrize("command", ["replay", "export", "demo"])
def test_commands_say_so_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = write(tmp_path / "bag", **pair(Info(), Info()))
    words = {"replay": [path], "export": ["--rig", path], "demo": ["--bag", path]}[command]
    assert cli.main([command, *map(str, words), "--out", str(tmp_path / "out")]) == 2
    assert "left and right are in one place and look the same way" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["info", str(path)]) == 0
    assert "not usable: cameras left and right are in one place" in capsys.readouterr().out


# --- transforms


def test_one_camera_without_transforms_takes_a_height(tmp_path: Path) -> None:
    infos, images = {"/cam/camera_info": [Info(frame="cam")]}, {"/cam/image_raw": "cam"}
    with BagReader(write(tmp_path / "bag", infos, (), images)) as bag:
        with pytest.raises(CalibrationError, match="knows no frame; `--height METRES` puts"):
            bag.rig()
        (camera,) = bag.rig(height=1.4).cameras
    expected = OPTICAL.copy()
    expected[:3, 3] = 0, 0, 1.4
    assert np.allclose(camera.T_base_camera, expected)
    with BagReader(write(tmp_path / "two", **pair(Info(), Info(p=tx(0.5))), edges=())) as bag:
        left, right = bag.rig(height=1.4).cameras
        assert np.allclose(inverse(left.T_base_camera) @ right.T_base_camera, RIGHT)
        with pytest.raises(CalibrationError, match="height is -1 m"):
            bag.rig(height=-1.0)


def test_a_car_frame_of_another_name_is_offered(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    edges = [("ego_vehicle", "left", OPTICAL)]
    with BagReader(write(tmp_path / "bag", infos, edges, images)) as bag:
        with pytest.raises(CalibrationError, match="`--base-frame ego_vehicle` names"):
            bag.rig()
        assert np.allclose(bag.rig(base_frame="ego_vehicle").cameras[0].T_base_camera, OPTICAL)


def on_tf(topic: str, edges: Sequence[Sequence[tuple[str, str, np.ndarray]]]) -> Any:
    """Writes transforms on a topic, message after message."""

    def extra(writer: BagWriter) -> None:
        for index, several in enumerate(edges):
            stamp = START + index * TENTH
            kind = "geometry_msgs/msg/TransformStamped"
            stamped = [
                writer.type(kind)(
                    writer.header(stamp, parent),
                    child,
                    writer.type("geometry_msgs/msg/Transform")(*writer._pose(pose, "Vector3")),
                )
                for parent, child, pose in several
            ]
            message = writer.type("tf2_msgs/msg/TFMessage")(stamped)
            writer.write(topic, "tf2_msgs/msg/TFMessage", message, stamp)

    return extra


def test_transforms_on_tf_that_stand_still_and_namespaced_ones(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    moving = [
        [
            ("odom", "base_link", exp(np.array([i, 0, 0, 0, 0, 0.1 * i]))),
            ("base_link", "left", OPTICAL),
        ]
        for i in range(3)
    ]
    for name, extra in (
        ("tf", on_tf("/tf", moving)),
        ("namespaced", on_tf("/car1/tf_static", [[("base_link", "/left", OPTICAL)]])),
    ):
        with BagReader(write(tmp_path / name, infos, (), images, extra=extra)) as bag:
            assert np.allclose(bag.rig().cameras[0].T_base_camera, OPTICAL)
            assert said(bag, "left is taken from /tf") == (name == "tf")
            assert set(bag.transforms.still) == ({"left"} if name == "tf" else set())


def test_a_transform_on_tf_that_moves_is_not_taken_for_fixed(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    swinging = [
        [("base_link", "left", OPTICAL @ exp(np.r_[0, 0, 0, 0, 0, 0.1 * i]))] for i in (0, 1)
    ]
    with BagReader(write(tmp_path / "bag", infos, (), images, extra=on_tf("/tf", swinging))) as bag:
        with pytest.raises(CalibrationError, match="no static transform leads from base_link"):
            bag.rig()


def test_frames_that_move_together_on_tf(tmp_path: Path) -> None:
    """A simulator that sends every frame in the world's; and a camera on a gimbal."""
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    drive = [exp(np.array([i, 0, 0, 0, 0, 0.1 * i])) for i in range(4)]
    together = [[("map", "base_link", T), ("map", "left", T @ OPTICAL)] for T in drive]
    with BagReader(write(tmp_path / "a", infos, (), images, extra=on_tf("/tf", together))) as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, OPTICAL)
        assert said(bag, "base_link and left move on /tf and stay together")
    gimbal = [
        [("base_link", "mount", exp(np.r_[0, 0, 0, 0, 0, 0.1 * i])), ("mount", "left", OPTICAL)]
        for i in range(4)
    ]
    with BagReader(write(tmp_path / "b", infos, (), images, extra=on_tf("/tf", gimbal))) as bag:
        with pytest.raises(CalibrationError, match=r"mount moves on /tf.*17\.2 degrees") as it:
            bag.rig()
        assert "mount moves" in str(it.value) and "--base-frame" not in str(it.value)


@pytest.mark.parametrize("order", [1, -1])
def test_a_frame_with_two_parents(tmp_path: Path, order: int) -> None:
    edges = [("base_link", "left", OPTICAL), ("camera_mount", "left", np.eye(4))][::order]
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    with BagReader(write(tmp_path / "bag", infos, edges, images)) as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, OPTICAL)
        assert said(bag, "has two parents", "base_link is taken") == (order > 0)


def test_a_transform_that_is_sent_again_and_a_loop(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    edges = [("base_link", "left", OPTICAL), ("base_link", "left", OPTICAL @ RIGHT)]
    with BagReader(write(tmp_path / "a", infos, edges, images)) as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, OPTICAL @ RIGHT)
        assert said(bag, "from base_link to left is sent again", "the last is taken")
    loop = [("base_link", "left", OPTICAL), ("left", "base_link", OPTICAL)]
    with BagReader(write(tmp_path / "b", infos, loop, images)) as bag:
        with pytest.raises(CalibrationError, match="form a loop"):
            bag.rig()
    above = [("map", "base_link", RIGHT), ("odom", "map", RIGHT), ("map", "odom", RIGHT)]
    above.append(("base_link", "left", OPTICAL))
    with BagReader(write(tmp_path / "c", infos, above, images)) as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, OPTICAL)


def test_a_camera_that_no_transform_leads_to_is_named_beside_the_others(tmp_path: Path) -> None:
    lost = Info(frame="right")
    with BagReader(write(tmp_path / "bag", **pair(Info(), lost))) as bag:
        with pytest.raises(CalibrationError, match=r"right: .*`--cameras left` leaves it out"):
            bag.rig()


@pytest.mark.parametrize(("world", "robot"), [("map", ""), ("robot1/odom", "robot1/")])
def test_the_cars_frame_is_not_the_worlds(tmp_path: Path, world: str, robot: str) -> None:
    car, left = f"{robot}ego_vehicle", f"{robot}left"
    infos, images = {"/left/camera_info": [Info(left)]}, {"/left/image_raw": left}
    edges = [(world, car, np.eye(4)), (car, left, OPTICAL), ("a", "b", RIGHT)]
    with BagReader(write(tmp_path / "bag", infos, edges, images)) as bag:
        with pytest.raises(CalibrationError, match=f"`--base-frame {car}` names"):
            bag.rig()


@pytest.mark.parametrize(
    ("info", "image", "place", "words"),
    [
        ("cam", "left", OPTICAL, "'cam', is not among the transforms: that of its images, 'left'"),
        ("body", "left", OPTICAL, "is the body's (z up): that of its images, 'left', is taken"),
        ("other", "left", OPTICAL @ RIGHT, "is elsewhere than that of its images, 'left'"),
        ("left", "cam", OPTICAL, ""),
        ("same", "left", OPTICAL, ""),
    ],
)
def test_camera_info_and_images_of_different_frames(
    tmp_path: Path, info: str, image: str, place: np.ndarray, words: str
) -> None:
    body = np.eye(4)
    body[:3, 3] = OPTICAL[:3, 3]
    frames = {"left": OPTICAL, "body": body, "other": OPTICAL @ RIGHT, "same": OPTICAL}
    edges = [("base_link", frame, pose) for frame, pose in frames.items()]
    infos = {"/left/camera_info": [Info(frame=info)]}
    with BagReader(write(tmp_path / "bag", infos, edges, {"/left/image_raw": image})) as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, place)
        assert said(bag, words) if words else not bag.notes


def test_a_camera_info_with_another_cameras_frame(tmp_path: Path) -> None:
    edges = [("base_link", "left", OPTICAL), ("left", "right", RIGHT)]
    bag_of = pair(Info(), Info(), "image_raw")
    bag_of["images"]["/stereo/right/image_raw"] = "right"
    with BagReader(write(tmp_path / "bag", edges=edges, **bag_of)) as bag:
        assert np.allclose(bag.rig().cameras[1].T_base_camera, OPTICAL @ RIGHT)
        assert said(bag, "camera right", "is another camera's, too")


def test_a_transposed_matrix_is_told(tmp_path: Path) -> None:
    infos = {"/left/camera_info": [Info(k=K.T)]}
    with BagReader(write(tmp_path / "bag", infos, images={"/left/image_raw": "left"})) as bag:
        with pytest.raises(CalibrationError, match=r"last row of K .*is it transposed"):
            bag.rig()


def test_a_camera_info_that_changes_is_told(tmp_path: Path) -> None:
    infos = {"/left/camera_info": [Info(), Info(), Info(k=K * 1.1), Info(k=K * 1.2)]}
    with BagReader(write(tmp_path / "bag", infos, images={"/left/image_raw": "left"})) as bag:
        assert sum(isinstance(event, ImageEvent) for event in bag.events()) == 2
        assert said(bag, "camera_info of left changed its K", "the first one is used throughout")
        assert len(bag.notes) == 1


# --- which camera_info belongs to which image


def test_topics_that_say_what_was_done_to_the_images() -> None:
    """ZED's: a camera has raw and rectified images, in colour and grey, each with a camera_info."""
    topics = [
        f"/zed/{camera}/{color}/{done}/image{info}"
        for camera in ("left", "right")
        for color in ("color", "gray")
        for done in ("rect", "raw")
        for info in ("", "/camera_info")
    ]
    found = find_cameras({t: TopicInfo(CAMERA_INFO if "info" in t else IMAGE, 3) for t in topics})
    assert list(found) == ["left", "right"] and not any(one.rectified for one in found.values())
    assert {one.camera_info for one in found.values()} == {
        f"/zed/{name}/color/raw/image/camera_info" for name in found
    }
    rect = {t: TopicInfo(CAMERA_INFO if "info" in t else IMAGE, 3) for t in topics if "rect" in t}
    assert all(one.rectified for one in find_cameras(rect).values())


def test_colour_images_of_a_camera_that_is_called_depth(tmp_path: Path) -> None:
    infos = {"/r200_depth/camera_info": [Info()], "/r200_depth/depth/camera_info": [Info()]}

    def extra(writer: BagWriter) -> None:
        writer.write_image("/r200_depth/image_raw", START, "left", np.dstack([GREY] * 3), "rgb8")
        deep = GREY.astype(np.uint16)
        writer.write_image("/r200_depth/depth/image_raw", START, "left", deep, "16UC1")

    with BagReader(write(tmp_path / "bag", infos, extra=extra)) as bag:
        assert bag.rig().names == ("r200_depth",)
        assert said(bag, "/r200_depth/image_raw is taken for a camera: it is called depth")


def test_several_odometries_are_told(tmp_path: Path) -> None:
    topics = {one: TopicInfo("nav_msgs/msg/Odometry", 1) for one in ("/wheel/odom", "/gps/odom")}
    path = write(tmp_path / "bag", {"/left/camera_info": [Info()]}, images={"/left/image_raw": "x"})
    with BagReader(path) as bag, pytest.MonkeyPatch.context() as patch:
        patch.setattr(BagReader, "topics", topics)
        assert MotionTopics.of(bag).odometry is None
        assert said(bag, "odometry on /wheel/odom, /gps/odom: none is used (`--odometry TOPIC`")


def test_times_of_reception_that_are_a_converters(tmp_path: Path) -> None:
    """Topic by topic, a millisecond apart: their headers' stamps order the messages."""
    infos = {"/left/camera_info": [Info()], "/right/camera_info": [Info()]}

    def extra(writer: BagWriter) -> None:
        for late, name in enumerate(("left", "right")):
            for index in range(6):
                message = writer.type(IMAGE)(
                    writer.header(START + index * TENTH, name), 48, 64, "mono8", 0, 64, GREY.ravel()
                )
                writer.write(f"/{name}/image_raw", IMAGE, message, START + late * 10**9 + index)

    with BagReader(write(tmp_path / "bag", infos, extra=extra)) as bag:
        events = [event for event in bag.events() if isinstance(event, ImageEvent)]
        assert [event.camera for event in events] == ["left", "right"] * 6
        assert all(event.receive_ns == event.image.stamp_ns for event in events)
        assert said(bag, "times of reception are not those of the recording")


@pytest.mark.parametrize("how", ["milliseconds", "ticks", "queue", "one queue", "one at once"])
def test_times_of_reception_that_are_the_recordings(tmp_path: Path, how: str) -> None:
    """Stamps in other units, a queue that the recorder emptied at its start, and one camera of two
    that came at once."""
    infos = {"/left/camera_info": [Info()], "/right/camera_info": [Info()]}
    unit = {"milliseconds": 1000, "ticks": 90}.get(how, 1)

    def received(name: str, index: int) -> int:
        queued = how == "queue" or (how == "one queue" and name == "left")
        if how == "one at once" and name == "left":
            return START + index
        return START + (4 * TENTH + index if queued and index < 5 else index * TENTH)

    def extra(writer: BagWriter) -> None:
        for name in ("left", "right"):
            for index in range(8):
                header = writer.header(START + index * TENTH * unit, name)
                message = writer.type(IMAGE)(header, 48, 64, "mono8", 0, 64, GREY.ravel())
                writer.write(f"/{name}/image_raw", IMAGE, message, received(name, index))

    with BagReader(write(tmp_path / "bag", infos, extra=extra)) as bag:
        events = [event for event in bag.events() if isinstance(event, ImageEvent)]
        assert len(events) == 16 and not said(bag, "times of reception")
        for event in events:
            index = (event.image.stamp_ns - START) // (TENTH * unit)
            assert event.receive_ns == received(event.camera, index)


@pytest.mark.parametrize("converted", [False, True])
def test_an_empty_message_costs_itself_alone(tmp_path: Path, converted: bool) -> None:
    infos = {"/left/camera_info": [Info()]}

    def extra(writer: BagWriter) -> None:
        for index in range(7):
            message = writer.type(IMAGE)(
                writer.header(START + index * TENTH, "left"), 48, 64, "mono8", 0, 64, GREY.ravel()
            )
            received = START + (index if converted else index * TENTH)
            writer.write("/left/image_raw", IMAGE, message, received)
            if index in (0, 3):
                writer.write_raw("/left/image_raw", IMAGE, b"", received)

    with BagReader(write(tmp_path / "bag", infos, extra=extra)) as bag:
        events = [event for event in bag.events() if isinstance(event, ImageEvent)]
        assert [event.image.stamp_ns for event in events] == [START + i * TENTH for i in range(7)]
        assert sum(bag.lost.values()) == 2
        assert said(bag, "times of reception") == converted


def test_folders_and_metadata_are_pointed_to(tmp_path: Path, small_bag: Path) -> None:
    shutil.copytree(small_bag, tmp_path / "drives" / "monday")
    with pytest.raises(BagError, match="as those in it: monday"):
        BagReader(tmp_path / "drives")
    with BagReader(tmp_path / "drives" / "monday" / "metadata.yaml") as bag:
        assert bag.path == tmp_path / "drives" / "monday"


def test_a_write_ahead_log_that_was_not_merged_is_told(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", "sqlite3") as writer:
        writer.write_image("/left/image_raw", START, "left", GREY, "mono8")
    (file,) = (tmp_path / "bag").glob("*.db3")
    file.with_name(f"{file.name}-wal").write_bytes(bytes(40))
    with BagReader(tmp_path / "bag") as bag:
        assert said(bag, "write-ahead log", "wal_checkpoint")


def test_an_mcap_without_an_index_whose_messages_are_not_in_order(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        for index in (0, 2, 1, 3):
            stamp = START + index * TENTH
            writer.write_image("/left/image_raw", stamp, "left", GREY, "mono8")
    (file,) = (tmp_path / "bag").glob("*.mcap")
    data, out, position = file.read_bytes(), bytearray(b"\x89MCAP0\r\n"), 8
    while data[position] != 0x0F:  # up to the end of the data, without what indexes it
        size = 9 + int.from_bytes(data[position + 1 : position + 9], "little")
        if data[position] != 0x07:
            out += data[position : position + size]
        position += size
    out += bytes([0x0F, 4, *bytes(7), *bytes(4), 0x02, 20, *bytes(7), *bytes(20)])
    file.write_bytes(out + b"\x89MCAP0\r\n")
    with BagReader(tmp_path / "bag") as bag:
        stamps = [message.header.stamp.nanosec // TENTH for _, _, message in bag.messages()]
    assert stamps == [0, 2, 1, 3]


def cameras_of(*topics: str) -> dict[str, tuple[str, str | None]]:
    infos = {topic: TopicInfo(CAMERA_INFO if "info" in topic else IMAGE, 3) for topic in topics}
    return {name: (c.image, c.camera_info) for name, c in find_cameras(infos).items()}


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        (  # image_transport
            (
                "/a/left/image_raw",
                "/a/left/camera_info",
                "/a/right/image_raw",
                "/a/right/camera_info",
            ),
            {"left": "/a/left/camera_info", "right": "/a/right/camera_info"},
        ),
        (  # AirSim
            ("/airsim_node/car/front_left/Scene", "/airsim_node/car/front_left/Scene/camera_info"),
            {"front_left": "/airsim_node/car/front_left/Scene/camera_info"},
        ),
        (("/camera", "/camera_info"), {"camera": "/camera_info"}),  # gz
        (  # gz, several in a world
            (
                "/world/w/model/m/link/l/sensor/s/image",
                "/world/w/model/m/link/l/sensor/s/camera_info",
            ),
            {"s": "/world/w/model/m/link/l/sensor/s/camera_info"},
        ),
        (  # flat names
            ("/front_image", "/front_camera_info", "/rear_image", "/rear_camera_info"),
            {"front": "/front_camera_info", "rear": "/rear_camera_info"},
        ),
        (
            ("/image_left", "/camera_info_left", "/image_right", "/camera_info_right"),
            {"left": "/camera_info_left", "right": "/camera_info_right"},
        ),
        (
            ("/stereo/left_image_raw", "/stereo/left/camera_info", "/stereo/right_image_raw"),
            {"left": "/stereo/left/camera_info", "right": None},
        ),
        (  # one camera_info for two: nobody can tell
            ("/front_image", "/rear_image", "/camera_info"),
            {"front": None, "rear": None},
        ),
        (("/cam/image/color", "/cam/camera_info"), {"image": "/cam/camera_info"}),
        (  # a picture of a tracker beside a camera
            ("/left/image_raw", "/left/camera_info", "/tracker/feature_img"),
            {"left": "/left/camera_info", "tracker": None},
        ),
        (  # and one in the camera's own namespace
            ("/left/image_raw", "/left/camera_info", "/left/image_detections"),
            {"left": "/left/camera_info", "detections": None},
        ),
    ],
)
def test_camera_info_is_found_where_names_leave_no_doubt(
    topics: tuple[str, ...], expected: dict[str, str | None]
) -> None:
    assert {name: info for name, (_, info) in cameras_of(*topics).items()} == expected


def test_a_picture_without_camera_info_is_left_out_and_named(tmp_path: Path) -> None:
    infos = {"/left/camera_info": [Info()], "/other/info": [Info()]}
    images = {"/left/image_raw": "left", "/tracker/feature_img": "left"}
    with BagReader(write(tmp_path / "bag", infos, images=images)) as bag:
        assert bag.rig().names == ("left",)
        assert said(bag, "/tracker/feature_img is not used", "`--camera-info tracker=TOPIC`")
        both = bag.rig(info_topics={"tracker": "/other/info"})
        assert both.names == ("left", "tracker")
        (named,) = bag.rig(
            ["eye"],
            image_topics={"eye": "/tracker/feature_img"},
            info_topics={"eye": "/other/info"},
        ).cameras
        assert named.name == "eye"
        with pytest.raises(BagError, match="/left/image_raw is sensor_msgs/msg/Image: expected"):
            bag.rig(info_topics={"left": "/left/image_raw"})


def test_where_nothing_pairs_the_sentence_lists_what_is_there(tmp_path: Path) -> None:
    infos = {"/calibration/0": [Info()], "/calibration/1": [Info()]}
    images = {"/cam0": "left", "/cam1": "left"}
    with BagReader(write(tmp_path / "bag", infos, images=images)) as bag:
        with pytest.raises(BagError) as caught:
            bag.rig()
    for word in ("/calibration/0, /calibration/1", "`--camera-info cam0=TOPIC` names one of them"):
        assert word in str(caught.value)


def test_options_name_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infos, images = {"/calibration/0": [Info()], "/x": [Info()]}, {"/cam0": "left", "/cam1": "left"}
    path = str(write(tmp_path / "bag", infos, images=images))
    rig = str(tmp_path / "rig.yaml")
    argv = ["info", path, "--image", "front=/cam0", "--camera-info", "front=/calibration/0"]
    assert cli.main([*argv, "--save-rig", rig]) == 0
    assert "front" in capsys.readouterr().out
    text = Path(rig).read_text()
    assert "image_topic: /cam0" in text and "camera_info_topic: /calibration/0" in text
    assert cli.main(["info", path, "--image", "front"]) == 2
    assert "--image front: expected CAMERA=/TOPIC" in capsys.readouterr().err


# --- what camera_info says


def test_first_camera_info_of_zeros(tmp_path: Path) -> None:
    zero = Info(k=np.zeros((3, 3)), p=np.zeros((3, 4)), r=np.zeros((3, 3)))
    infos, images = {"/left/camera_info": [zero, zero, Info()]}, {"/left/image_raw": "left"}
    with BagReader(write(tmp_path / "a", infos, images=images)) as bag:
        assert np.array_equal(bag.rig().cameras[0].k, K)
        assert said(bag, "camera left", "first 2 camera_info are all zeros")
    infos = {"/left/camera_info": [zero] * 3}
    with BagReader(write(tmp_path / "b", infos, images=images)) as bag:
        with pytest.raises(CalibrationError, match="is the camera calibrated"):
            bag.rig()


@pytest.mark.parametrize(
    ("info", "k", "words"),
    [
        # binning is in the calibration already: FLIR, Basler
        (Info(binning=2), K, "binning of its camera_info is taken as applied already"),
        # as the standard has it: of the sensor's full size
        (
            Info(
                size=(128, 96), k=np.array([[200.0, 0, 63.5], [0, 202, 47.5], [0, 0, 1]]), binning=2
            ),
            K,
            "",
        ),
        (Info(size=(0, 0)), K, "says no size"),
        # a region of a larger sensor
        (
            Info(
                size=(640, 480),
                roi=(100, 50, 64, 48),
                k=K + np.array([[0, 0, 100], [0, 0, 50], [0, 0, 0]]),
            ),
            K,
            "",
        ),
        (Info(roi=(100, 50, 64, 48)), K, "taken as applied already"),
        (Info(size=(64, 48), roi=(8, 8, 32, 24)), K, "region of interest is left out"),
        # republished smaller: the same view, scaled
        (
            Info(size=(128, 96), k=K_TWICE),
            K,
            "128x96 pixels, the images have 64x48: they are taken as the same view, scaled",
        ),
        (Info(k=np.zeros((3, 3)), p=tx(0.0)), K, "P is taken, as of rectified images"),
    ],
)
def test_sizes_binning_and_regions(tmp_path: Path, info: Info, k: np.ndarray, words: str) -> None:
    infos, images = {"/left/camera_info": [info]}, {"/left/image_raw": "left"}
    with BagReader(write(tmp_path / "bag", infos, images=images)) as bag:
        (camera,) = bag.rig().cameras
        assert (camera.width, camera.height) == (64, 48)
        assert np.allclose(camera.k, k)
        assert said(bag, words) if words else not bag.notes


def test_images_that_are_cut_are_no_scaled_ones(tmp_path: Path) -> None:
    for size in ((66, 48), (64, 50), (96, 48)):
        infos, images = {"/left/camera_info": [Info(size=size)]}, {"/left/image_raw": "left"}
        with BagReader(write(tmp_path / f"{size}", infos, images=images)) as bag:
            with pytest.raises(CalibrationError, match="expected the same size, or the same prop"):
                bag.rig()


D = (-0.3, 0.1, 0.001, -0.001, -0.02)
RATIONAL = (*D, 0.01, 0.02, 0.003)


@pytest.mark.parametrize(
    ("model", "d", "expected"),
    [
        ("plumb_bob", D, ("plumb_bob", D)),
        ("plumb bob", D, ("plumb_bob", D)),
        ("Brown-Conrady", D, ("plumb_bob", D)),
        ("radtan", D[:4], ("plumb_bob", D[:4])),
        ("", D, ("plumb_bob", D)),
        ("", (0.0,) * 5, ("none", ())),
        ("plumb_bob", (), ("none", ())),
        ("rational_polynomial", D, ("plumb_bob", D)),
        ("plumb_bob", RATIONAL, ("rational_polynomial", RATIONAL)),
        ("plumb_bob", (*D, 0.0, 0.0, 0.0), ("plumb_bob", D)),
        ("plumb_bob", (*D, 0.0), ("plumb_bob", D)),
        ("rational_polynomial", (*D, *(0.0,) * 9), ("plumb_bob", D)),
        ("rational_polynomial", (*RATIONAL, *(0.0,) * 6), ("rational_polynomial", RATIONAL)),
        (
            "rational_polynomial",
            (*RATIONAL, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0),
            ("rational_polynomial", (*RATIONAL, 1e-3, 0.0, 0.0, 0.0)),
        ),
        (
            "rational_polynomial",
            (*RATIONAL, *(0.0,) * 4, 0.01, -0.02),
            ("rational_polynomial", (*RATIONAL, *(0.0,) * 4, 0.01, -0.02)),
        ),
        ("fisheye", (*D[:4], *(0.0,) * 4), ("equidistant", D[:4])),
        ("Kannala Brandt4", D[:4], ("equidistant", D[:4])),
    ],
)
def test_names_and_counts_of_distortion(
    tmp_path: Path, model: str, d: Sequence[float], expected: tuple[str, tuple[float, ...]]
) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        camera = camera_from_info("left", Info(model=model, d=d).message(writer), OPTICAL)
    assert (camera.distortion_model, camera.d) == expected


# --- channels and files


def test_foreign_and_unparsable_channels_cost_no_other() -> None:
    unreadable: dict[str, str] = {}
    bad = [
        (
            "/a",
            "my_msgs/msg/A",
            MessageDefinition(Format.MSG, "unknown_pkg/Missing f\nint32<=4 x\n"),
        ),
        ("/b", "my_msgs/msg/B", MessageDefinition(Format.MSG, "")),
        ("/c", "my_msgs/msg/C", MessageDefinition(Format.IDL, "module {")),
        ("/d", "__schemaless__", MessageDefinition(Format.NONE, "")),
    ]
    store = typestore([Channel(*one, 1) for one in bad], unreadable)
    assert "sensor_msgs/msg/Image" in store.fielddefs
    assert {"/a", "/c"} <= set(unreadable) and "cannot be read" in unreadable["/a"]


def with_channel(path: Path, out: Path, schema_encoding: str, message_encoding: str) -> Path:
    """A copy of an MCAP with a schema, a channel and a message more in front of its data."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(4, "little") + value

    def record(kind: int, body: bytes) -> bytes:
        return bytes([kind]) + len(body).to_bytes(8, "little") + body

    data = path.read_bytes()
    header = 8 + 9 + int.from_bytes(data[9:17], "little")
    schema = record(
        3,
        (999).to_bytes(2, "little")
        + text(b"other.Type")
        + text(schema_encoding.encode())
        + text(b"{}"),
    )
    channel = record(
        4,
        (999).to_bytes(2, "little")
        + (999).to_bytes(2, "little")
        + text(b"/telemetry")
        + text(message_encoding.encode())
        + text(b""),
    )
    message = record(
        5, (999).to_bytes(2, "little") + bytes(4) + START.to_bytes(8, "little") * 2 + b'{"v": 1}'
    )
    # without a summary: the reader scans
    end = int.from_bytes(data[-28:-20], "little")
    footer = record(2, bytes(20))
    out.write_bytes(
        data[:header] + schema + channel + message + data[header:end] + footer + data[-8:]
    )
    return out


@pytest.mark.parametrize(
    ("schema", "encoding"),
    [("jsonschema", "json"), ("protobuf", "protobuf"), ("flatbuffer", "cdr")],
)
def test_an_mcap_with_a_foreign_channel(tmp_path: Path, schema: str, encoding: str) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    folder = write(tmp_path / "bag", infos, images=images)
    path = with_channel(folder / "bag.mcap", tmp_path / "mixed.mcap", schema, encoding)
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",) and len(list(bag.events())) == 2
        if encoding != "cdr":
            assert "/telemetry" not in bag.topics
            assert said(bag, f"/telemetry is not read: its messages are {encoding}")


@pytest.mark.parametrize("profile", ["", "ros1"])
def test_an_mcap_without_a_profile(tmp_path: Path, profile: str) -> None:
    """As writers that are not rosbag2's leave it; a foreign profile is refused all the same."""
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    data = (write(tmp_path / "bag", infos, images=images) / "bag.mcap").read_bytes()
    old, end = int.from_bytes(data[9:17], "little"), int.from_bytes(data[-28:-20], "little")
    body = len(profile).to_bytes(4, "little") + profile.encode() + bytes(4)
    head = data[:9] + len(body).to_bytes(8, "little") + body
    footer = bytes([2]) + (20).to_bytes(8, "little") + bytes(20)
    path = tmp_path / "other.mcap"
    path.write_bytes(head + data[17 + old : end] + footer + data[-8:])
    if profile:
        with pytest.raises(BagError, match="Profile is not ros2"):
            BagReader(path)
        return
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",) and len(list(bag.events())) == 2
        assert said(bag, "other.mcap names no profile: it is read as ROS 2's")


def test_a_bag_without_metadata_or_with_a_damaged_one(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    for name, damage in (
        ("none", lambda file: file.unlink()),
        ("broken", lambda file: file.write_text("rosbag2_bagfile_information: [")),
        ("other", lambda file: file.write_text("hello: 1")),
    ):
        path = write(tmp_path / name, infos, images=images)
        damage(path / "metadata.yaml")
        with BagReader(path) as bag:
            assert bag.rig().names == ("left",) and len(list(bag.events())) == 2
            assert said(bag, "metadata.yaml", "read without")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_split_bags_and_one_that_lost_a_part(tmp_path: Path, storage: Any) -> None:
    suffix = {"mcap": "mcap", "sqlite3": "db3"}[storage]
    folder = tmp_path / "split"
    folder.mkdir()
    for part in (1, 0):  # files are not read in the order of their names but of their times
        with BagWriter(tmp_path / f"p{part}", storage) as writer:
            for index in range(3):
                stamp = START + (3 * part + index) * TENTH
                writer.write_image("/left/image_raw", stamp, "left", GREY, "mono8")
        shutil.move(tmp_path / f"p{part}/p{part}.{suffix}", folder / f"split_{part}.{suffix}")
    with BagReader(folder) as bag:
        stamps = [event.image.stamp_ns for event in bag.events() if isinstance(event, ImageEvent)]
        assert stamps == [START + index * TENTH for index in range(6)]
        assert bag.info().message_count == 6 and bag.info().duration_s == pytest.approx(0.5)
    names = "".join(f"\n  - split_{part}.{suffix}" for part in range(3))
    (folder / "metadata.yaml").write_text(
        f"rosbag2_bagfile_information:\n  relative_file_paths:{names}\n"
    )
    with BagReader(folder) as bag:
        assert len(list(bag.events())) == 6
        assert said(bag, f"split_2.{suffix} of its 3 files is missing: the rest is read")


def test_names_that_a_uri_cannot_have(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "plain", "sqlite3") as writer:
        writer.write_image("/left/image_raw", START, "left", GREY, "mono8")
    shutil.move(tmp_path / "plain/plain.db3", tmp_path / "a#b?c%20d.db3")
    with BagReader(tmp_path / "a#b?c%20d.db3") as bag:
        assert len(list(bag.events())) == 1


def test_a_ros1_bag_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    for path in (tmp_path / "old.bag", tmp_path):
        with pytest.raises(BagError, match="`rosbags-convert` makes one of a ROS 1 bag"):
            BagReader(path)


def test_a_message_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    def broken(writer: BagWriter) -> None:
        writer.write_raw("/left/image_raw", IMAGE, b"\x00\x01\x00\x00short", START)

    infos = {"/left/camera_info": [Info()]}
    path = write(tmp_path / "bag", infos, images={"/left/image_raw": "left"}, extra=broken)
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",) and len(list(bag.events())) == 2
        assert bag.lost == {f"left: a message cannot be read as {IMAGE}": 1}


# --- odometry


def odometry(child: str = "base_link", move: float = 0.5, twist: float = 5.0, **more: Any) -> Any:
    def extra(writer: BagWriter) -> None:
        for index in range(20):
            pose = exp(np.array([move * index, 0, 0, 0, 0, 0]))
            velocity = np.array([twist, 0, 0, 0, 0, 0])
            writer.write_odometry("/odom", START + index * TENTH, pose, "odom", child, velocity)

    return extra


def samples(path: Path) -> tuple[list[OdometryEvent], BagReader]:
    with BagReader(path) as bag:
        events = [e for e in bag.events(odometry_topic="/odom") if isinstance(e, OdometryEvent)]
        assert len([e for e in bag.events() if isinstance(e, ImageEvent)]) == 2
        return events, bag


def test_odometry_of_an_unknown_frame_or_that_does_not_move(tmp_path: Path) -> None:
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    for name, extra, count, words in (
        ("unknown", odometry("base_footprint"), 0, ("/odom is not used", "'base_footprint'")),
        ("frozen", odometry(move=0.0), 3, ("/odom is not used", "its pose never changes")),
        ("standing", odometry(move=0.0, twist=0.0), 20, ()),
        ("good", odometry(), 20, ()),
    ):
        events, bag = samples(write(tmp_path / name, infos, images=images, extra=extra))
        assert len(events) == count and sum(bag.lost.values()) == 20 - count
        assert said(bag, *words) if words else not bag.notes


# --- video


def packets(codec: str, count: int = 6, frames_between: int = 0) -> list[tuple[bytes, bool]]:
    """Encoded grey ramps that move, a keyframe every third."""
    av = pytest.importorskip("av")
    encoder = av.CodecContext.create({"h264": "libx264", "hevc": "libx265"}[codec], "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base = Fraction(1, 10)
    encoder.options = {
        "crf": "10",
        "g": "3",
        "bf": str(frames_between),
        **({} if frames_between else {"tune": "zerolatency"}),
        **({"x265-params": "log-level=none:keyint=3"} if codec == "hevc" else {}),
    }
    out = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
        frame.pts = index
        out += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(frame)]
    return out + [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(None)]


def picture(index: int) -> np.ndarray:
    grey = np.roll(GREY, 4 * index, axis=1) // 2 + 40
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("kind", [FFMPEG_PACKET, COMPRESSED_VIDEO, COMPRESSED_IMAGE])
def test_video_topics(tmp_path: Path, codec: str, kind: str) -> None:
    def extra(writer: BagWriter) -> None:
        for index, (data, key) in enumerate(packets(codec)):
            stamp = START + index * TENTH
            header, array = writer.header(stamp, "left"), np.frombuffer(data, np.uint8)
            if kind == FFMPEG_PACKET:
                fields = (header, 64, 48, codec, index, int(key), False, array)
            elif kind == COMPRESSED_VIDEO:
                fields = (header.stamp, "left", array, {"hevc": "h265"}.get(codec, codec))
            else:
                fields = (header, codec, array)
            writer.write("/left/video", kind, writer.type(kind)(*fields), stamp)

    path = write(tmp_path / "bag", {"/left/camera_info": [Info()]}, extra=extra)
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",)
        images = [event.image for event in bag.events() if isinstance(event, ImageEvent)]
    assert [image.stamp_ns for image in images] == [START + i * TENTH for i in range(6)]
    for index, image in enumerate(images):
        assert np.abs(decode(image, 3).astype(int) - picture(index)).mean() < 4


def test_video_starts_at_a_keyframe_and_survives_losses() -> None:
    decoder = video.VideoDecoder()
    units = [
        RawImage(i, "h264", np.frombuffer(d, np.uint8)) for i, (d, _) in enumerate(packets("h264"))
    ]
    outcome = []
    for unit in units[1:]:  # the keyframe is missing: nothing until the next, number 3
        try:
            outcome.append([image.stamp_ns for image in decoder(unit)])
        except ImageError as error:
            assert "keyframe" in str(error) or "broken" in str(error)
            outcome.append([])
    assert outcome[2:] == [[3], [4], [5]]
    with pytest.raises(ImageError, match=r"broken|keyframe"):
        for _ in range(3):
            decoder(RawImage(9, "h264", np.full(300, 7, np.uint8)))
    assert [image.stamp_ns for unit in units for image in decoder(unit)][-1] == 5


def test_video_whose_frames_come_out_later_keeps_their_stamps() -> None:
    decoder = video.VideoDecoder()
    units = packets("h264", 6, frames_between=2)
    images = []
    for stamp, (data, _) in enumerate(units):
        images += decoder(RawImage(stamp, "h264", np.frombuffer(data, np.uint8)))
    images += decoder.rest()
    assert sorted(image.stamp_ns for image in images) == list(range(6))


def test_without_pyav_video_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extra(writer: BagWriter) -> None:
        data = np.zeros(9, np.uint8)
        message = writer.type(COMPRESSED_VIDEO)(
            writer.header(START, "f").stamp, "left", data, "h264"
        )
        writer.write("/rear/video", COMPRESSED_VIDEO, message, START)

    monkeypatch.setitem(sys.modules, "av", None)
    infos = {"/left/camera_info": [Info()], "/rear/camera_info": [Info()]}
    path = write(tmp_path / "a", infos, images={"/left/image_raw": "left"}, extra=extra)
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",)
        assert said(bag, "/rear/video is not used: decoding video takes PyAV: `make video`")
        with pytest.raises(BagError, match="/rear/video is video: decoding video takes PyAV"):
            bag.rig(["rear"])


@pytest.mark.parametrize("codec", ["png", "rvl"])
def test_compressed_depth_of_a_camera_of_numbers(tmp_path: Path, codec: str) -> None:
    """image_transport's compressedDepth of a thermal camera's mono16: a header, then a PNG."""
    values = GREY.astype(np.uint16) << 4
    body = cv2.imencode(".png", values)[1].tobytes() if codec == "png" else b"\x01" * 99

    def extra(writer: BagWriter) -> None:
        data = np.frombuffer(bytes(12) + body, np.uint8)
        text = f"16UC1; compressedDepth {codec}"
        message = writer.type(COMPRESSED_IMAGE)(writer.header(START, "left"), text, data)
        writer.write("/left/image_raw/compressedDepth", COMPRESSED_IMAGE, message, START)

    path = write(tmp_path / "bag", {"/left/camera_info": [Info()]}, extra=extra)
    with BagReader(path) as bag:
        assert bag.rig().names == ("left",)
        (event,) = bag.events()
    assert isinstance(event, ImageEvent)
    if codec == "png":
        assert np.array_equal(decode(event.image, 1)[..., 0], GREY)
    else:
        with pytest.raises(ImageError, match="encoding 'rvl' is not known"):
            decode(event.image, 1)


# --- what a run that tracked nothing says, and where it is run


def test_a_run_that_tracked_nothing_says_why() -> None:
    summary = {
        "bag": "drive",
        "frames": 5,
        "not_tracking": 5,
        "not_tracked": {
            "starting: 3 sightings agree, 15 are needed": 4,
            "starting: first frame": 1,
        },
        "drops": {"right: late: its set was already out": 9},
        "notes": ["clocks of left and right differ by 37.00 s though they arrive together: x"],
    }
    reason = nothing_tracked(summary)
    assert "none of its 5 frame sets was tracked: 9 x right: late" in reason
    assert "4 x starting: 3 sightings agree" in reason and "clocks of left and right" in reason
    text = format_report(summary)
    assert "4 x starting: 3 sightings agree" in text and "note         clocks of left" in text
    assert not nothing_tracked({**summary, "not_tracking": 4})
    assert not nothing_tracked({**summary, "frames": 1, "not_tracking": 1})  # has nothing to track


def test_replay_that_tracked_nothing_exits_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_bag: Path
) -> None:
    """Grey images: nothing to follow."""
    blind = tmp_path / "blind"
    with BagReader(small_bag) as bag, BagWriter(blind) as writer:
        for topic, kind, receive_ns, data in bag.raw_messages():
            if topic.startswith("/ground_truth") or kind == "nav_msgs/msg/Odometry":
                continue
            if kind in (IMAGE, COMPRESSED_IMAGE):
                message = bag.deserialize(data, kind, topic)
                camera = bag.info().cameras[topic.split("/")[2]]
                size = bag.rig([camera.name]).cameras[0]
                flat = np.full((size.height, size.width), 120, np.uint8)
                writer.write_image(topic, receive_ns, message.header.frame_id, flat, "mono8", "png")
            else:
                writer.write_raw(topic, kind, data, receive_ns)
    assert cli.main(["replay", str(blind), "--out", str(tmp_path / "run")]) == 4
    out, err = capsys.readouterr()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["frames"] == summary["not_tracking"] == sum(summary["not_tracked"].values()) == 8
    assert "none of its 8 frame sets was tracked" in err and "not tracked  8 of 8" in out
    assert "  4  the run went to its end" in cli.EXIT_CODES


def test_names_and_pictures_in_any_locale(tmp_path: Path, small_bag: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    bag = tmp_path / "größe"
    shutil.copytree(small_bag, bag)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONU"))
    }
    argv = [
        "replay",
        os.fsencode(bag),
        "--out",
        os.fsencode(tmp_path / "läuft"),
        "--max-frames",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "recon4d_ros.cli", *argv],
        env=environment | locale,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert (tmp_path / "läuft/overview.png").stat().st_size > 10_000


def test_home_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    infos, images = {"/left/camera_info": [Info()]}, {"/left/image_raw": "left"}
    write(tmp_path / "drive", infos, images=images)
    assert cli.main(["info", "~/drive", "--save-rig", "~/rig.yaml"]) == 0
    assert cli.main(["info", "~/rig.yaml"]) == 0 and (tmp_path / "rig.yaml").exists()
    with BagReader("~/drive") as bag:
        assert bag.path == tmp_path / "drive"
    with pytest.raises(BagError, match="does not exist"):
        BagReader("~nobody_of_this_name/drive")


def test_info_takes_the_cameras_that_a_sentence_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "bag", **pair(Info(), Info(frame="right")))
    assert cli.main(["info", str(path)]) == 0
    assert "`--cameras left` leaves it out" in capsys.readouterr().out
    assert cli.main(["info", str(path), "--cameras", "left"]) == 0
    assert "1 cameras" in capsys.readouterr().out
