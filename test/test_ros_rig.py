"""The rig of a running graph: the same cameras, and the same sentences, as a bag of the same
messages gives; what a graph has beside a bag (frames that come late, topics elsewhere)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from test_bags_as_they_come import (
    GREY,
    K_TWICE,
    OPTICAL,
    RIGHT,
    START,
    TENTH,
    Info,
    K,
    on_tf,
    packets,
    pair,
    picture,
    tx,
    write,
)
from tf2_msgs.msg import TFMessage

from recon4d_ros.bags import BagReader, BagWriter
from recon4d_ros.bags.topics import CAMERA_INFO, IMAGE, TF_MESSAGE, TopicInfo
from recon4d_ros.bags.transforms import FixedTransforms
from recon4d_ros.cameras import video
from recon4d_ros.cameras.decode import decode
from recon4d_ros.errors import CalibrationError, ImageError
from recon4d_ros.geometry import exp
from recon4d_ros.messages import frame_name
from recon4d_ros.ros import recorder, rig_source, transform_input
from recon4d_ros.ros.conversions import raw_image, time_msg, transform_msg
from recon4d_ros.ros.diagnostics import Health
from recon4d_ros.ros.discovery import camera_of, listed
from recon4d_ros.ros.inputs import CameraInput, CameraSource
from recon4d_ros.ros.rig_source import RigSource
from recon4d_ros.ros.transform_input import LiveTransforms
from recon4d_ros.types import RawImage, Rig

BODY = exp(np.array([1.5, 0, 1.4, 0, 0, 0.0]))
OPTICAL_CHILD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0.0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
ONE = {"infos": {"/left/camera_info": [Info()]}, "images": {"/left/image_raw": "left"}}


def one(*infos: Info, frame: str = "left", **more: Any) -> dict[str, Any]:
    return {
        "infos": {"/left/camera_info": list(infos)},
        "images": {"/left/image_raw": frame},
        **more,
    }


SITUATIONS: dict[str, dict[str, Any]] = {
    "a plain camera": one(Info()),
    "a pair in one frame": pair(Info(), Info(p=tx(0.5))),
    "against the names, Tx of the other sign": pair(Info(), Info(p=tx(-0.5))),
    "raw images of a pair that is rectified by R": pair(
        Info(), Info(p=tx(0.5), r=exp(np.array([0, 0, 0, 0, 0.02, 0]))[:3, :3]), "image_raw"
    ),
    "a pair with frames of its own": {
        **pair(Info(), Info(frame="right", p=tx(0.5))),
        "edges": [("base_link", "left", OPTICAL), ("left", "right", RIGHT)],
    },
    "zeros first": one(Info(k=np.zeros((3, 3)), p=np.zeros((3, 4))), Info()),
    "binning to do": one(Info(size=(128, 96), k=K_TWICE, binning=2)),
    "binning that is done": one(Info(size=(64, 48), k=K, binning=2)),
    "a region of interest": one(Info(size=(200, 100), k=K, roi=(40, 30, 64, 48))),
    "images of another size": one(Info(size=(128, 96), k=K_TWICE)),
    "no size": one(Info(size=(0, 0))),
    "no frame in camera_info": one(Info(frame="")),
    "K of zeros beside P": one(Info(k=np.zeros((3, 3)))),
    "coefficients without a name": one(Info(d=(0.1, 0, 0, 0, 0), model="")),
    "the body's frame": one(
        Info(frame="body"),
        frame="body",
        edges=[("base_link", "body", BODY), ("body", "body_optical", OPTICAL_CHILD)],
    ),
    "fixed on /tf": one(
        Info(),
        edges=(),
        extra=on_tf("/tf", [[("base_link", "left", OPTICAL)]] * 3),
    ),
    "namespaced /tf_static": one(
        Info(),
        edges=(),
        extra=on_tf("/car/tf_static", [[("base_link", "left", OPTICAL)]]),
    ),
    "a frame that only the images know": one(Info(frame="cam")),
    "the body's frame in camera_info, not in the images": one(
        Info(frame="body"), edges=[("base_link", "body", BODY), ("base_link", "left", OPTICAL)]
    ),
    "the body's frame in camera_info, which has an optical one": one(
        Info(frame="body"),
        edges=[
            ("base_link", "body", BODY),
            ("body", "body_optical", OPTICAL_CHILD),
            ("base_link", "left", OPTICAL),
        ],
    ),
    "another camera's frame in camera_info": {
        "infos": {"/c/left/camera_info": [Info()], "/c/right/camera_info": [Info()]},
        "images": {"/c/left/image_raw": "left", "/c/right/image_raw": "right"},
        "edges": [("base_link", "left", OPTICAL), ("left", "right", RIGHT)],
    },
    "two parents": one(
        Info(), edges=[("base_link", "left", OPTICAL), ("camera_mount", "left", np.eye(4))]
    ),
}


def live(
    path: Path, names: Sequence[str], height: float | None = None
) -> tuple[Rig | None, list[str], RigSource]:
    """The rig of a bag's messages, as the node takes them one by one. names: of the cameras that
    it is told; the camera_info of others comes too, once it is asked for."""
    notes: list[str] = []
    fixed = FixedTransforms(notes.append)
    with BagReader(path) as reader:
        cameras = reader.cameras()
        source = RigSource(
            tuple(names),
            fixed,
            "base_link",
            rectified=[name for name in names if cameras[name].rectified],
            height=height,
            tell=notes.append,
        )
        source.expect_partners(
            [one.camera_info or "" for name, one in cameras.items() if name not in names]
        )
        by_info = {camera.camera_info: name for name, camera in cameras.items()}
        by_image = {camera.image: name for name, camera in cameras.items()}
        images = []
        for topic, kind, _, data in reader.raw_messages():
            if kind == TF_MESSAGE:
                message = deserialize_message(bytes(data), TFMessage)
                if topic.endswith("tf_static"):
                    fixed.add_static(message, topic)
                else:
                    fixed.add_sent(message)
            elif kind == CAMERA_INFO:
                message = deserialize_message(bytes(data), CameraInfo)
                if by_info[topic] in names:
                    source.offer(by_info[topic], message)
                else:
                    source.partner(topic, message)
            elif kind == IMAGE:
                message = deserialize_message(bytes(data), Image)
                if by_image[topic] in names:
                    images.append((by_image[topic], message))
        source.rig()  # it may be there before any image is
        for name, image in images:
            size = (image.width, image.height)
            assert source.image(name, size, frame_name(image.header.frame_id)) == ""
        return source.rig(), notes, source


@pytest.mark.parametrize("situation", SITUATIONS)
def test_live_and_bag_give_the_same_rig(tmp_path: Path, situation: str) -> None:
    path = write(tmp_path / "bag", **SITUATIONS[situation])
    with BagReader(path) as reader:
        recorded = reader.rig()
        expected = reader.notes
    rig, notes, _ = live(path, recorded.names)
    assert rig is not None
    for here, there in zip(rig.cameras, recorded.cameras, strict=True):
        np.testing.assert_allclose(here.k, there.k, atol=1e-12)
        np.testing.assert_allclose(here.T_base_camera, there.T_base_camera, atol=1e-12)
        assert (here.width, here.height) == (there.width, there.height) == (64, 48)
        assert (here.distortion_model, here.d) == (there.distortion_model, there.d)
    assert set(notes) == set(expected)


@pytest.mark.parametrize("name", ["left", "right"])
@pytest.mark.parametrize("how", ["image_rect", "image_raw"])
def test_one_camera_of_a_pair_in_one_frame_is_where_the_other_says(
    tmp_path: Path, name: str, how: str
) -> None:
    turned = exp(np.array([0, 0, 0, 0, 0.02, 0]))[:3, :3]
    path = write(tmp_path / "bag", **pair(Info(r=turned), Info(p=tx(0.5)), how))
    with BagReader(path) as reader:
        recorded = reader.rig([name])
    rig, notes, source = live(path, [name])
    assert rig is not None and rig.names == (name,)
    there = recorded.cameras[0].T_base_camera
    np.testing.assert_allclose(rig.cameras[0].T_base_camera, there, atol=1e-12)
    if name == "right":
        assert np.linalg.norm(there[:3, 3] - OPTICAL[:3, 3]) == pytest.approx(0.5)
    assert len(notes) == (name == "right")
    # without the other one's camera_info it is where its frame is, after a while
    alone = RigSource((name,), source._transforms, "base_link")
    alone._infos, alone._rectified = source._infos, source._rectified
    assert alone.wants_partners() == (name == "right")
    alone.expect_partners(["/other/camera_info"])
    assert (alone.rig() is None) == (name == "right")


@pytest.mark.parametrize("edges", [(), [("left", "right", RIGHT)]])
def test_a_height_does_without_transforms_to_the_car(tmp_path: Path, edges: Any) -> None:
    """Live as in a bag: the first camera looks straight ahead, the others are where transforms
    between the cameras say."""
    names = ["left", "right"] if edges else ["left"]
    infos = pair(Info(), Info(frame="right")) if edges else one(Info())
    path = write(tmp_path / "bag", **{**infos, "edges": edges})
    with BagReader(path) as reader:
        recorded = reader.rig(height=1.4)
    rig, _, source = live(path, names, 1.4)
    assert rig is not None and rig.names == recorded.names == tuple(names)
    np.testing.assert_allclose(rig.T_base_camera, recorded.T_base_camera, atol=1e-12)
    assert rig.cameras[0].T_base_camera[2, 3] == 1.4 and len(source.edges()) == len(edges)
    without, _, source = live(path, names)
    assert without is None and "base_link->left" in source.missing()[0]
    with pytest.raises(CalibrationError, match=r"height is 140 m"):
        RigSource(("left",), FixedTransforms(), "base_link", height=140.0)


def test_the_first_image_changes_a_rig_that_was_made_without_it(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", **SITUATIONS["binning that is done"])
    rig, _, source = live(path, ["left"])
    assert source.changed and (rig.cameras[0].width, rig.cameras[0].k[0, 0]) == (64, 100.0)
    _, _, plain = live(write(tmp_path / "plain", **SITUATIONS["a plain camera"]), ["left"])
    assert not plain.changed
    # only the first counts: a later one of another size is a misfit, which its decoder counts
    assert plain.image("left", (32, 24), "left") == "" and not plain.changed


def test_images_that_no_camera_info_is_for(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", **one(Info(size=(640, 480))))
    _, _, source = live(write(tmp_path / "plain", **ONE), ["left"])
    with BagReader(path) as reader:
        with pytest.raises(CalibrationError, match="the same proportions") as offline:
            write(tmp_path / "cut", **one(Info(size=(80, 48))))
            with BagReader(tmp_path / "cut") as cut:
                cut.rig()
        assert reader.rig().names == ("left",)
    source = RigSource(("left",), source._transforms, "base_link")
    with BagReader(tmp_path / "cut") as cut:
        (data,) = [d for _, kind, _, d in cut.raw_messages() if kind == CAMERA_INFO]
    assert source.offer("left", deserialize_message(bytes(data), CameraInfo)) == ""
    sentence = source.image("left", (64, 48), "left")
    assert sentence and sentence.partition("camera_info is for")[2] in str(offline.value)
    assert sentence in source.missing()[0] and source.rig() is None


def test_what_cannot_be_a_rig_is_said_once_its_frames_had_time_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "bag", **pair(Info(), Info()))
    rig, _, source = live(path, ["left", "right"])
    assert rig is None and not source.missing()
    monkeypatch.setattr(rig_source, "DOUBT", 0.0)
    with pytest.raises(CalibrationError, match="in one place and look the same way"):
        source.rig()


AN_IMAGE = "an image of {}, to tell its frame"


def without_images(path: Path, situation: str) -> RigSource:
    """What is known as long as only camera_info and transforms have come."""
    with BagReader(write(path, **SITUATIONS[situation])) as reader:
        names = reader.rig().names
    _, _, source = live(path, names)
    fresh = RigSource(names, source._transforms, "base_link")
    fresh._infos = source._infos
    return fresh


def test_an_image_is_awaited_where_camera_info_names_the_bodys_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    situation = "the body's frame in camera_info, which has an optical one"
    source = without_images(tmp_path / "bag", situation)
    assert source.missing() == [AN_IMAGE.format("left")] and source.rig() is None
    assert source.wants_images("left") and source.rig() is None
    assert source.image("left", (64, 48), "left") == "" and not source.missing()
    np.testing.assert_allclose(source.rig().cameras[0].T_base_camera, OPTICAL, atol=1e-9)
    assert not source.changed and not source.wants_images("left")
    # not for ever, once somebody listens; an image that comes later still counts
    late = without_images(tmp_path / "late", situation)
    monkeypatch.setattr(rig_source, "FRAME_WAIT", 0.0)
    assert late.rig() is None, "nobody has asked for an image yet"
    assert late.wants_images("left") and not late.missing()
    there = late.rig().cameras[0].T_base_camera
    np.testing.assert_allclose(there, BODY @ OPTICAL_CHILD, atol=1e-9)
    assert late.image("left", (64, 48), "left") == "" and late.changed
    np.testing.assert_allclose(late.rig().cameras[0].T_base_camera, OPTICAL, atol=1e-9)


def test_cameras_whose_camera_info_shares_a_frame_are_no_bad_rig_before_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = without_images(tmp_path / "bag", "another camera's frame in camera_info")
    both = [AN_IMAGE.format(name) for name in ("left", "right")]
    assert source.missing() == both and source.rig() is None
    assert all(source.wants_images(name) for name in ("left", "right"))
    for name in ("FRAME_WAIT", "DOUBT"):
        monkeypatch.setattr(rig_source, name, 0.0)
    for _ in range(2):
        assert source.rig() is None
    assert source.missing() == both, "without them there is no rig"
    for name in ("left", "right"):
        assert source.image(name, (64, 48), name) == ""
    rig = source.rig()
    assert rig is not None and not source.missing()
    np.testing.assert_allclose(rig.cameras[1].T_base_camera, OPTICAL @ RIGHT, atol=1e-9)
    # a pair that says its baseline has to wait for nothing
    plain = without_images(tmp_path / "pair", "a pair in one frame")
    plain._rectified = {"left", "right"}
    assert not plain.missing() and not any(plain.wants_images(name) for name in ("left", "right"))


def test_what_is_missing_says_what_there_is(tmp_path: Path) -> None:
    edges = [("car", "left", OPTICAL)]
    _, _, source = live(write(tmp_path / "bag", **ONE, edges=edges), ["left"])
    assert source.missing() == [
        "tf base_link->left (known are car, left; parameter base_frame: car names the car's frame)"
    ]


# --- transforms of a running graph


def sent(pose: np.ndarray, parent: str = "base_link", child: str = "left") -> TFMessage:
    return TFMessage(transforms=[transform_msg(pose, 0, parent, child)])


def test_an_edge_of_tf_counts_once_it_has_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = LiveTransforms()
    transforms.add_sent(sent(OPTICAL))
    with pytest.raises(CalibrationError):
        transforms.lookup("base_link", "left")
    monkeypatch.setattr(transform_input, "SEEN_FOR", -1.0)
    with pytest.raises(CalibrationError):  # it was sent only once
        transforms.lookup("base_link", "left")
    transforms.add_sent(sent(OPTICAL))
    np.testing.assert_allclose(transforms.lookup("base_link", "left"), OPTICAL, atol=1e-9)
    transforms.add_sent(sent(OPTICAL @ RIGHT))
    with pytest.raises(CalibrationError):
        transforms.lookup("base_link", "left")


def test_frames_that_move_together_count_after_a_second() -> None:
    notes: list[str] = []
    transforms = LiveTransforms(notes.append)
    for index in range(14):
        stamp = 10**9 + index * 10**8
        world = exp(np.array([index, 0, 0, 0, 0, 0.1 * index]))
        pairs = ((world, "base_link"), (world @ OPTICAL, "left"))
        edges = [transform_msg(pose, stamp, "map", child) for pose, child in pairs]
        transforms.add_sent(TFMessage(transforms=edges))
        if index > 1:
            try:
                found = transforms.lookup("base_link", "left")
            except CalibrationError:
                assert index < 13
    np.testing.assert_allclose(found, OPTICAL, atol=1e-6)
    assert notes == [
        "frames base_link and left move on /tf and stay together: their transform is taken from"
        " there"
    ]


@pytest.mark.parametrize("how", ["add_static", "add_sent"])
def test_extrinsics_that_change_are_told_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform_input, "SEEN_FOR", -1.0)
    notes: list[str] = []
    transforms = LiveTransforms(notes.append)
    add = getattr(transforms, how)
    for _ in range(2):
        add(sent(OPTICAL))
    transforms.watch(transforms.between("base_link", "left"))
    add(sent(OPTICAL))
    add(sent(RIGHT, child="elsewhere"))
    assert not notes
    for _ in range(2):
        add(sent(OPTICAL @ RIGHT))
    (note,) = notes
    assert note.startswith("the transform from base_link to left changed: the extrinsics in use")


# --- topics of a running graph


@pytest.mark.parametrize(
    ("image", "info", "name", "default"),
    [
        ("/airsim_node/drone/front/Scene", "/airsim_node/drone/front/Scene/camera_info", "", 0),
        ("/front_image", "/front_camera_info", "front", 0),
        ("/world/car/link/sensor/front/image", "/world/car/link/sensor/front/camera_info", "", 1),
        ("/front/image_raw/compressed", "/front/camera_info", "front", 1),
    ],
)
def test_topics_are_found_where_names_leave_no_doubt(
    image: str, info: str, name: str, default: int
) -> None:
    topics = {image: TopicInfo(IMAGE, 1), info: TopicInfo(CAMERA_INFO, 1)}
    topics["/rear/image_raw"] = TopicInfo(IMAGE, 1)
    topics["/rear/camera_info"] = TopicInfo(CAMERA_INFO, 1)
    named = camera_of("any", image, True, topics)
    assert named is not None and (named.image, named.camera_info) == (image, info)
    if name:
        found = camera_of(name, f"/camera/{name}/image_raw", False, topics)
        assert found is not None and (found.image, found.camera_info) == (image, info)
    assert camera_of("any", "/nothing/here", True, topics) is None
    assert camera_of("side", "/camera/side/image_raw", False, topics) is None
    assert info in listed(topics) and "/rear/camera_info" in listed(topics)


# --- video


class Taken:
    """A CameraInput that nobody publishes to."""

    def __init__(self) -> None:
        self.images: list[RawImage] = []
        self.faults: list[str] = []
        self.sizes: list[Any] = []
        self.frames: list[str] = []
        subscriber = SimpleNamespace(registerCallback=lambda *_: None)
        self.camera = CameraInput(
            SimpleNamespace(),  # type: ignore[arg-type]
            "left",
            CameraSource("/left", "/info"),
            subscriber,
            image=self._take,
            bad=lambda _, sentence: self.faults.append(sentence),
            disagrees=self.faults.append,
        )

    def _take(self, _: str, image: RawImage, frame: str, size: Any) -> None:
        self.images.append(image)
        self.frames.append(frame)
        self.sizes.append(size)


def foxglove(index: int, data: bytes) -> Any:
    """As foxglove_msgs/CompressedVideo has it."""
    stamp = time_msg(START + index * TENTH)
    return SimpleNamespace(timestamp=stamp, frame_id="left", data=data, format="h264")


def ffmpeg(index: int, data: bytes) -> Any:
    """As ffmpeg_image_transport_msgs/FFMPEGPacket has it."""
    stamp = time_msg(START + index * TENTH)
    header = SimpleNamespace(stamp=stamp, frame_id="left")
    return SimpleNamespace(header=header, encoding="h264;yuv420p;bgr8;bgr8", data=data)


def compressed(index: int, data: bytes) -> CompressedImage:
    message = CompressedImage(format="h264", data=data)
    message.header.frame_id = "left"
    message.header.stamp.sec, message.header.stamp.nanosec = START // 10**9, index * TENTH
    return message


@pytest.mark.parametrize("wrap", [foxglove, ffmpeg, compressed])
def test_video_is_decoded_as_it_comes(wrap: Any) -> None:
    taken = Taken()
    units = packets("h264")
    assert not units[-1][1]
    for index in (5, 0, 1, 2, 3, 4, 5):  # at first a packet whose keyframe was missed
        taken.camera._on_image(wrap(index, units[index][0]))
    assert [image.stamp_ns for image in taken.images] == [START + i * TENTH for i in range(6)]
    assert taken.sizes == [(64, 48)] * 6 and taken.frames == ["left"] * 6
    assert all(image.received_ns for image in taken.images)
    for index, image in enumerate(taken.images):
        assert np.abs(decode(image, 3).astype(int) - picture(index)).mean() < 4
    assert taken.faults and all("keyframe" in fault or "broken" in fault for fault in taken.faults)


def test_without_pyav_video_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    taken = Taken()
    taken.camera._on_image(foxglove(0, bytes(9)))
    assert not taken.images and taken.faults == [f"h264 video: {video.MISSING}"]


def test_an_encoding_that_is_no_image_is_a_sentence() -> None:
    with pytest.raises(ImageError, match="not known"):
        raw_image(Image(encoding="nonsense", width=4, height=4, data=bytes(16)), 0)
    assert raw_image(Image(encoding="mono8", width=64, height=48, data=GREY.tobytes()), 7).width


# --- what is told


def test_notes_are_on_diagnostics_once() -> None:
    health = Health(("left",))
    assert health.note("camera left: mono16 with values of 12 bits")
    assert not health.note("camera left: mono16 with values of 12 bits")

    def notes() -> Any:
        message = health.diagnostics_msg(
            0, "recon4d", state="active", waiting=[], paused=False, silence=2.0
        )
        return next(status for status in message.status if status.name == "recon4d: notes")

    assert notes().level == b"\x00" and "12 bits" in notes().message
    health.note("clocks of left and right differ by 37.00 s", lossy=True)
    assert notes().level == b"\x01" and len(notes().values) == 2
    for index in range(100):
        health.note(f"note {index}")
    assert len(notes().values) < 60


def test_the_recorder_leaves_out_what_it_cannot_write(tmp_path: Path, monkeypatch: Any) -> None:
    """A node's bond and what it says in others' types cost no other topic."""
    monkeypatch.setattr(recorder, "message_class", lambda name: object)
    said: list[str] = []
    with BagWriter(tmp_path / "bag") as writer:
        here = SimpleNamespace(
            _writer=writer,
            _refused=set(),
            get_logger=lambda: SimpleNamespace(warning=said.append),
        )
        writers = [SimpleNamespace(topic_type="bond/msg/Status")]
        recorder.Recorder._subscribe(here, "/bond", writers)  # type: ignore[arg-type]
    assert here._refused == {"/bond"} and "bond/msg/Status is not known" in said[0]
