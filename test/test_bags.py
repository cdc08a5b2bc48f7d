"""Bags: what is written is read, the real ones are read right, and each bad bag gives one
sentence."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from recon4d_ros.bags import BagReader, BagWriter, ImageEvent, OdometryEvent, rig_transforms
from recon4d_ros.bags.types import typestore
from recon4d_ros.cameras.preprocess import decode
from recon4d_ros.errors import BagError, CalibrationError, ImageError, OutputError
from recon4d_ros.geometry import exp, inverse
from recon4d_ros.types import Camera, Rig

START = 1_700_000_000_000_000_000
OPTICAL = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
K = np.array([[100.0, 0, 31.5], [0, 101.0, 23.5], [0, 0, 1]])
Storage = Literal["mcap", "sqlite3"]


def camera(name: str = "front", **changes: Any) -> Camera:
    return replace(Camera(name, 64, 48, K, OPTICAL), **changes)


def pixels(seed: int, channels: int = 3) -> np.ndarray:
    """Smooth, so that JPEG keeps it."""
    v, u = np.mgrid[:48, :64]
    image = np.stack(
        [127 + 90 * np.sin((u + 7 * seed) / 20), 127 + 90 * np.cos(v / 15), 3 * v + u / 2], axis=-1
    ).astype(np.uint8)
    return image if channels == 3 else image[..., 0]


def write_bag(
    path: Path,
    cameras: Sequence[Camera] = (),
    frames: int = 3,
    storage: Storage = "mcap",
    compress: Any = "jpeg",
    info: bool = True,
    tf: bool = True,
    image: np.ndarray | None = None,
) -> Path:
    """A small bag of whole frame sets."""
    cameras = cameras or (
        camera("front"),
        camera("rear", T_base_camera=exp(np.array([0, 0, 0, 0, 0, np.pi])) @ OPTICAL),
    )
    with BagWriter(path, storage) as writer:
        if tf:
            writer.write_tf_static(START, rig_transforms(Rig("car", tuple(cameras))))
        for frame in range(frames):
            stamp = START + frame * 100_000_000
            for one in cameras:
                suffix = "/compressed" if compress else ""
                array = pixels(frame) if image is None else image
                writer.write_image(
                    f"/camera/{one.name}/image_raw{suffix}",
                    stamp,
                    one.name,
                    array,
                    "rgb8",
                    compress,
                )
                if info:
                    writer.write_camera_info(
                        f"/camera/{one.name}/camera_info", stamp, one.name, one
                    )
            writer.write_odometry(
                "/odom", stamp, exp(np.array([0.5 * frame, 0, 0, 0, 0, 0.1 * frame]))
            )
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compress", [None, "png", "jpeg"])
def test_what_is_written_is_read(tmp_path: Path, storage: Storage, compress: Any) -> None:
    models = [
        ("none", ()),
        ("plumb_bob", (0.1, -0.05, 1e-3, -2e-3, 0.01)),
        ("rational_polynomial", (0.1,) * 8),
        ("equidistant", (0.01,) * 4),
    ]
    cameras = [
        camera(
            f"c{i}",
            distortion_model=model,
            d=d,
            T_base_camera=exp(np.array([i, 0, 0, 0, 0, 0.3 * i])) @ OPTICAL,
        )
        for i, (model, d) in enumerate(models)
    ]
    with BagReader(write_bag(tmp_path / "bag", cameras, storage=storage, compress=compress)) as bag:
        info = bag.info()
        assert (info.storage, info.message_count, info.odometry_topics, info.has_ground_truth) == (
            storage,
            1 + 3 * 9,
            ("/odom",),
            False,
        )
        assert info.start_ns == START and info.duration_s == pytest.approx(0.2)
        for before, after in zip(cameras, bag.rig().cameras, strict=True):
            assert (after.name, after.width, after.height, after.distortion_model, after.d) == (
                before.name,
                64,
                48,
                before.distortion_model,
                before.d,
            )
            assert np.array_equal(after.k, before.k) and np.allclose(
                after.T_base_camera, before.T_base_camera, atol=1e-12
            )
        events = list(bag.events(odometry_topic="/odom"))
        images = [event for event in events if isinstance(event, ImageEvent)]
        poses = [event.sample for event in events if isinstance(event, OdometryEvent)]
    assert [event.camera for event in images] == ["c0", "c1", "c2", "c3"] * 3
    for index, event in enumerate(images):
        assert event.image.stamp_ns == event.receive_ns == START + (index // 4) * 100_000_000
        difference = np.abs(decode(event.image, 3).astype(int) - pixels(index // 4))
        assert difference.max() == 0 if compress != "jpeg" else difference.mean() < 2
    assert np.allclose(
        [p.T_odom_base for p in poses],
        [exp(np.array([0.5 * i, 0, 0, 0, 0, 0.1 * i])) for i in range(3)],
    )
    assert isinstance(
        events[0], OdometryEvent
    )  # before the images of its own stamp, so that their set has it


def test_pixels_of_raw_images_are_views_of_what_was_read(tmp_path: Path) -> None:
    with BagReader(write_bag(tmp_path / "bag", compress=None)) as bag:
        event = next(event for event in bag.events() if isinstance(event, ImageEvent))
    assert not event.image.data.flags.owndata and not event.image.data.flags.writeable
    assert (event.image.width, event.image.height, event.image.step, event.image.encoding) == (
        64,
        48,
        192,
        "rgb8",
    )


def test_points_depth_masks_and_our_own_messages(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rgb = np.random.default_rng(1).integers(0, 256, (50, 3), dtype=np.uint8)
    depth = (np.arange(48 * 64).reshape(48, 64) * 17).astype(np.uint16)
    with BagWriter(write_and_remove(tmp_path / "bag")) as writer:
        writer.write_points("/points", START, "map", xyz, rgb)
        writer.write_image("/ground_truth/front/depth", START, "front", depth, "16UC1", "png")
        kind = "recon4d_msgs/msg/DynamicObjectArray"
        writer.write("/objects", kind, writer.type(kind)(writer.header(START, "map"), []), START)
    with BagReader(tmp_path / "bag") as bag:
        assert bag.info().has_ground_truth and not bag.info().cameras
        read = {topic: message for topic, _, message in bag.messages()}
    table = read["/points"].data.view(np.float32).reshape(-1, 4)
    packed = table[:, 3].view(np.uint32)
    assert np.array_equal(table[:, :3], xyz) and [f.name for f in read["/points"].fields] == [
        "x",
        "y",
        "z",
        "rgb",
    ]
    assert np.array_equal(
        np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1), rgb
    )
    assert read["/ground_truth/front/depth"].format == "16UC1; png"
    assert np.array_equal(
        np.asarray(cv2.imdecode(read["/ground_truth/front/depth"].data, cv2.IMREAD_UNCHANGED)),
        depth,
    )
    assert read["/objects"].header.frame_id == "map"


def write_and_remove(path: Path) -> Path:
    """A path that does not exist (the writer makes its folder)."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def test_raw_messages_copy_a_bag_byte_for_byte(tmp_path: Path) -> None:
    source = write_bag(tmp_path / "a")
    with BagReader(source) as bag, BagWriter(tmp_path / "b", "sqlite3") as writer:
        for topic, kind, receive_ns, data in bag.raw_messages():
            writer.write_raw(topic, kind, data, receive_ns)
    with BagReader(source) as one, BagReader(tmp_path / "b") as two:
        key = lambda row: (row[2], row[0])  # noqa: E731
        assert sorted(one.raw_messages(), key=key) == sorted(two.raw_messages(), key=key)


def test_one_storage_file_is_a_bag_too(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag")
    with BagReader(tmp_path / "bag" / "bag.mcap") as bag:
        assert len(list(bag.events())) == 6 and bag.rig().names == ("front", "rear")


def test_compressed_chunks(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", compress_chunks=True) as writer:
        writer.write_odometry("/odom", START, np.eye(4))
        writer.write_image(
            "/camera/front/image_raw", START, "front", np.zeros((48, 640, 3), np.uint8), "rgb8"
        )
    assert (tmp_path / "bag" / "bag.mcap").stat().st_size < 20_000
    with BagReader(tmp_path / "bag") as bag:
        assert len(list(bag.events(odometry_topic="/odom"))) == 2


@pytest.mark.parametrize(
    ("storage", "mode"),
    [("MCAP", "FILE"), ("MCAP", "MESSAGE"), ("SQLITE3", "FILE"), ("SQLITE3", "MESSAGE")],
)
def test_compressed_bags_as_ros2_bag_records_them(tmp_path: Path, storage: str, mode: str) -> None:
    plain = write_bag(tmp_path / "plain", frames=2)
    with BagReader(plain) as bag:
        rows = list(bag.raw_messages())
    writer = Writer(tmp_path / "packed", version=9, storage_plugin=StoragePlugin[storage])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        kinds = {topic: kind for topic, kind, _, _ in rows}
        connections = {
            topic: writer.add_connection(topic, kind, typestore=typestore())
            for topic, kind in kinds.items()
        }
        for topic, _, receive_ns, data in rows:
            writer.write(connections[topic], receive_ns, data)
    with BagReader(tmp_path / "packed") as bag:
        assert list(bag.raw_messages()) == rows and bag.rig().names == ("front", "rear")
        assert bag.info().storage == storage.lower()


def test_extrinsics_are_a_chain_and_frames_come_from_camera_info(tmp_path: Path) -> None:
    mast, tilt = exp(np.array([0.5, 0, 2.0, 0, 0, 0.4])), exp(np.array([0, 0, 0, 0.1, 0.2, 0]))
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_tf_static(START, [("base_link", "mast", mast), ("mast", "head", tilt)])
        writer.write_tf_static(
            START, [("head", "eye_optical", OPTICAL), ("/base_link", "imu", tilt)]
        )
        writer.write_image("/sensors/eye/image_color", START, "eye_optical", pixels(0), "bgr8")
        writer.write_camera_info("/sensors/eye/camera_info", START, "/eye_optical", camera("eye"))
        odometry = exp(np.array([3.0, 1, 0, 0, 0, 0.5]))
        writer.write_odometry("/imu/odom", START, odometry, child_frame_id="imu")
    with BagReader(tmp_path / "bag") as bag:
        (eye,) = bag.rig().cameras
        assert eye.name == "eye" and np.allclose(eye.T_base_camera, mast @ tilt @ OPTICAL)
        sample = next(
            event.sample
            for event in bag.events(odometry_topic="/imu/odom")
            if isinstance(event, OdometryEvent)
        )
        assert np.allclose(sample.T_odom_base, odometry @ inverse(tilt))


def test_base_link_need_not_be_the_root(tmp_path: Path) -> None:
    up, side = exp(np.array([0.1, 0.2, 0.3, 0.1, 0, 0])), exp(np.array([0.5, 0, 2.0, 0, 0, 0.4]))
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_tf_static(
            START,
            [
                ("base_footprint", "base_link", up),
                ("base_footprint", "mast", side),
                ("mast", "front", OPTICAL),
            ],
        )
        writer.write_image("/front/image_raw", START, "front", pixels(0), "bgr8")
        writer.write_camera_info("/front/camera_info", START, "front", camera())
    with BagReader(tmp_path / "bag") as bag:
        assert np.allclose(bag.rig().cameras[0].T_base_camera, inverse(up) @ side @ OPTICAL)


def test_cameras_are_told_by_their_namespace(tmp_path: Path) -> None:
    grey = pixels(0, 1)
    with BagWriter(tmp_path / "bag") as writer:
        for topic in (
            "/front/left/image_raw",
            "/rear/left/image_raw",
            "/mono/image_rect",
            "/mono/depth",
            "/ground_truth/mono/image",
            "/recon4d/mono/dynamic_mask",
            "/sensor/aligned_depth_to_color/image_raw",
            "/image",
        ):
            writer.write_image(topic, START, "f", grey, "mono8")
        writer.write_image("/mono/image_rect/compressed", START, "f", grey, "mono8", "png")
        writer.write_image("/front/left/image_raw/compressed", START, "f", grey, "mono8", "png")
        writer.write_image("/front/left/image_raw/compressed", START + 1, "f", grey, "mono8", "png")
    with BagReader(tmp_path / "bag") as bag:
        cameras = bag.info().cameras
    assert {name: (c.image, c.rectified) for name, c in cameras.items()} == {
        "front_left": ("/front/left/image_raw/compressed", False),  # more messages than the raw one
        "rear_left": ("/rear/left/image_raw", False),
        "mono": ("/mono/image_rect", True),
        "camera": ("/image", False),
    }


def test_rectified_images_take_p_and_binning_is_applied(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_tf_static(START, [("base_link", "f", OPTICAL)])
        for name, topic in (("rect", "/rect/image_rect"), ("half", "/half/image_raw")):
            writer.write_image(topic, START, "f", pixels(0), "rgb8")
            info_type = "sensor_msgs/msg/CameraInfo"
            p: Any = np.array([90.0, 0, 30, -9, 0, 91, 20, 0, 0, 0, 1, 0])
            size: Any
            size, binning = ((48, 64), 0) if name == "rect" else ((96, 128), 2)
            matrices = (np.array([0.1, 0, 0, 0, 0]), K.ravel(), np.eye(3).ravel(), p)
            roi = writer.type("sensor_msgs/msg/RegionOfInterest")(0, 0, 0, 0, False)
            message = writer.type(info_type)(
                writer.header(START, "f"), *size, "plumb_bob", *matrices, binning, binning, roi
            )
            writer.write(f"/{name}/camera_info", info_type, message, START)
    with BagReader(tmp_path / "bag") as bag:
        rect, half = bag.rig().cameras
    assert rect.distortion_model == "none" and np.array_equal(
        rect.k, [[90, 0, 30], [0, 91, 20], [0, 0, 1]]
    )
    assert half.distortion_model == "plumb_bob" and (half.width, half.height) == (64, 48)
    assert np.allclose(half.k, np.array([[50, 0, 15.5], [0, 50.5, 11.5], [0, 0, 1]]))


def test_header_without_stamp_takes_the_time_of_reception(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_image("/front/image_raw", 0, "front", pixels(0), "rgb8", receive_ns=START)
    with BagReader(tmp_path / "bag") as bag:
        (event,) = bag.events()
        assert (
            isinstance(event, ImageEvent)
            and event.image.stamp_ns == START
            and bag.stamps_replaced == {"front": 1}
        )


# --- the real ones


def test_kitti(kitti_bag: Path) -> None:
    with BagReader(kitti_bag) as bag:
        rig, info = bag.rig(), bag.info()
        truth = [
            e.sample
            for e in bag.events(cameras=["left"], odometry_topic="/ground_truth/odom")
            if isinstance(e, OdometryEvent)
        ]
    assert rig.names == ("left", "right") and {
        (c.width, c.height, c.distortion_model) for c in rig.cameras
    } == {(1226, 370, "none")}
    assert np.allclose(
        (inverse(rig.cameras[0].T_base_camera) @ rig.cameras[1].T_base_camera)[:3, 3],
        [0.537, 0, 0],
        atol=1e-3,
    )
    assert info.duration_s == pytest.approx(5.0) and info.odometry_topics == () and len(truth) == 51
    path = np.linalg.norm(
        np.diff([sample.T_odom_base[:3, 3] for sample in truth], axis=0), axis=1
    ).sum()
    assert path == pytest.approx(60.0, abs=0.5)


def test_ddad_and_nuscenes(ddad_bag: Path, nuscenes_bag: Path) -> None:
    with BagReader(ddad_bag) as bag:
        rig = bag.rig()
        assert len(list(bag.events())) == 18 and {(c.width, c.height) for c in rig.cameras} == {
            (1936, 1216)
        }
    forward = [camera.T_base_camera[:3, 2] for camera in rig.cameras]
    assert (
        np.allclose(np.linalg.norm(forward, axis=1), 1)
        and forward[0][0] > 0.99
        and forward[-1][0] < -0.99
    )  # camera_01 ahead, 09 behind
    with BagReader(nuscenes_bag) as bag:
        stamps = [e.image.stamp_ns for e in bag.events() if isinstance(e, ImageEvent)]
        assert {(c.width, c.height) for c in bag.rig().cameras} == {(1600, 900)}
    assert max(stamps) - min(stamps) == pytest.approx(43e6, abs=1e6)


# --- bad ones


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def spoil(path: Path) -> None:
    """Turn bytes around in the middle of an MCAP: its chunk's checksum is not written, but the
    lengths in it no longer fit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = b"\xff" * (2 * len(data) // 3 - len(data) // 3)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda bag: shutil.rmtree(bag), "does not exist"),
        (lambda bag: (bag / "bag.mcap").unlink(), "names are missing: bag.mcap"),
        (
            lambda bag: [path.unlink() for path in bag.iterdir()],
            "holds no .mcap or .db3 file: expected a rosbag2 folder",
        ),
        (lambda bag: cut(bag / "bag.mcap", 0.9), "is truncated"),
        (lambda bag: cut(bag / "bag.mcap", 0.3), "is truncated"),
        (lambda bag: cut(bag / "bag.mcap", 0.0), "is empty"),
        (
            lambda bag: (bag / "bag.mcap").write_bytes(b"hello, this is no bag at all"),
            "is not an MCAP file",
        ),
        (lambda bag: spoil(bag / "bag.mcap"), "damaged"),
    ],
)
def test_damaged_mcap(tmp_path: Path, damage: Callable[[Path], Any], sentence: str) -> None:
    path = write_bag(tmp_path / "bag", compress="png")
    damage(path)
    with pytest.raises(BagError) as caught, BagReader(path) as bag:
        list(bag.events())
    assert (
        sentence in str(caught.value)
        and str(path) in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize(
    ("share", "sentence"), [(0.9, "is truncated"), (0.1, "is truncated"), (0.0, "is empty")]
)
def test_truncated_sqlite(tmp_path: Path, share: float, sentence: str) -> None:
    path = write_bag(tmp_path / "bag", storage="sqlite3")
    (file,) = path.glob("*.db3")
    cut(file, share)
    with pytest.raises(BagError, match=sentence):
        BagReader(path)


def test_not_a_bag(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BagError, match="unknown suffix"):
        BagReader(tmp_path / "notes.txt")
    (tmp_path / "notes.db3").write_text("hello" * 100)
    with pytest.raises(BagError, match="is not an SQLite file"):
        BagReader(tmp_path / "notes.db3")


def test_empty_bag_and_bag_without_images(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty"):
        pass
    with BagReader(tmp_path / "empty") as bag:
        assert bag.info().message_count == 0
        for use in (bag.rig, lambda: list(bag.events())):
            with pytest.raises(BagError, match="is empty: it holds no message"):
                use()
    with BagWriter(tmp_path / "poses") as writer:
        writer.write_odometry("/odom", START, np.eye(4))
    with (
        BagReader(tmp_path / "poses") as bag,
        pytest.raises(BagError, match="has no image: its topics are /odom"),
    ):
        bag.rig()


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with BagReader(write_bag(tmp_path / "bag")) as bag:
        with pytest.raises(BagError, match="no camera 'left': it has front, rear"):
            bag.rig(cameras=["left"])
        with pytest.raises(BagError, match="no topic /nothing: it has /tf_static"):
            list(bag.messages(["/nothing"]))
        with pytest.raises(
            BagError, match="/tf_static is tf2_msgs/msg/TFMessage: expected nav_msgs/msg/Odometry"
        ):
            list(bag.events(odometry_topic="/tf_static"))
        assert bag.rig(cameras=["rear"]).names == ("rear",)
        named = {"eye": "/camera/rear/image_raw/compressed"}
        assert {
            event.camera
            for event in bag.events(["eye"], image_topics=named)
            if isinstance(event, ImageEvent)
        } == {"eye"}
        assert bag.cameras(image_topics=named)["eye"].camera_info == "/camera/rear/camera_info"
        for topic, sentence in (
            ("/odom", "camera eye: /odom is nav_msgs/msg/Odometry: expected an image"),
            ("/none", "no topic /none"),
        ):
            with pytest.raises(BagError, match=sentence):
                bag.cameras(image_topics={"eye": topic})
    with pytest.raises(BagError, match="is closed"):
        list(bag.messages())


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"info": False},
            BagError,
            "camera front: no camera_info on /camera/front/camera_info: the bag has none at all",
        ),
        (
            {"tf": False},
            CalibrationError,
            (
                "camera front: no static transform leads from base_link to frame 'front':"
                " /tf_static knows no frame"
            ),
        ),
        (
            {"image": np.zeros((24, 40, 3), np.uint8)},
            CalibrationError,
            "camera_info is for 64x48 pixels, the images have 40x24",
        ),
        (
            {"image": np.zeros((24, 40, 3), np.uint8), "compress": "png"},
            CalibrationError,
            "the images have 40x24",
        ),
        (
            {"image": np.zeros((24, 40, 3), np.uint8), "compress": None},
            CalibrationError,
            "the images have 40x24",
        ),
    ],
)
def test_rig_that_cannot_be_found(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with BagReader(write_bag(tmp_path / "bag", **changes)) as bag, pytest.raises(error) as caught:
        bag.rig()
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def info_with(
    k: np.ndarray,
    model: str = "plumb_bob",
    d: Sequence[float] = (0.0,) * 5,
    quaternion: Sequence[float] = (0, 0, 0, 1.0),
) -> Any:
    """Writes one camera whose calibration is given number by number, as a broken driver would."""

    def write(path: Path) -> Path:
        with BagWriter(path) as writer:
            header = writer.header(START, "front")
            roi = writer.type("sensor_msgs/msg/RegionOfInterest")(0, 0, 0, 0, False)
            matrices = (np.array(d), k.ravel().astype(float), np.eye(3).ravel(), np.zeros(12))
            message = writer.type("sensor_msgs/msg/CameraInfo")(
                header, 48, 64, model, *matrices, 0, 0, roi
            )
            writer.write("/front/camera_info", "sensor_msgs/msg/CameraInfo", message, START)
            writer.write_image("/front/image_raw", START, "front", pixels(0), "rgb8")
            transform = writer.type("geometry_msgs/msg/Transform")(
                writer.type("geometry_msgs/msg/Vector3")(0.0, 0.0, 0.0),
                writer.type("geometry_msgs/msg/Quaternion")(*map(float, quaternion)),
            )
            stamped = writer.type("geometry_msgs/msg/TransformStamped")(
                writer.header(START, "base_link"), "front", transform
            )
            writer.write(
                "/tf_static",
                "tf2_msgs/msg/TFMessage",
                writer.type("tf2_msgs/msg/TFMessage")([stamped]),
                START,
            )
        return path

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (info_with(np.zeros((3, 3))), "focal length is 0, 0 px"),
        (info_with(np.where(K == 31.5, np.nan, K)), "not finite"),
        (info_with(K, d=(np.nan, 0, 0, 0, 0)), "not finite"),
        (
            info_with(K, model="omnidirectional", d=(1, 2, 3)),
            "distortion model 'omnidirectional' is not known",
        ),
        (info_with(K, d=(0.1, 0.2)), "coefficients"),
        (info_with(K, quaternion=(0, 0, 0, 0)), "quaternion is no rotation"),
        (info_with(K, quaternion=(np.nan, 0, 0, 1)), "not finite"),
    ],
)
def test_calibration_that_cannot_be_used(
    tmp_path: Path, write: Callable[[Path], Path], sentence: str
) -> None:
    with BagReader(write(tmp_path / "bag")) as bag, pytest.raises(CalibrationError) as caught:
        bag.rig()
    assert (
        sentence in str(caught.value)
        and "camera front" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_message_that_is_no_message(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_raw("/odom", "nav_msgs/msg/Odometry", b"\x00\x01\x00\x00short", START)
    with (
        BagReader(tmp_path / "bag") as bag,
        pytest.raises(BagError, match="message of /odom cannot be read as nav_msgs/msg/Odometry"),
    ):
        list(bag.messages())


# --- writing where one cannot


def test_folder_that_exists_or_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        BagWriter(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        BagWriter(tmp_path / "file" / "bag")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_full_disk(tmp_path: Path, storage: Storage) -> None:
    """A limit on file size stands in for a full disk: the same system call fails in the same
    place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="cannot be written"),
            BagWriter(tmp_path / "bag", storage) as writer,
        ):
            for index in range(10):
                writer.write_image("/front/image_raw", START + index, "front", noise, "rgb8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_array_that_is_not_its_encoding_and_unknown_type(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        with pytest.raises(ImageError, match="uint8 \\(48, 64\\) is not rgb8"):
            writer.write_image("/front/image_raw", START, "front", pixels(0, 1), "rgb8")
        with pytest.raises(BagError, match="message type my_msgs/msg/Thing is not known"):
            writer.write_raw("/thing", "my_msgs/msg/Thing", b"", START)
        writer.write_odometry("/odom", START, np.eye(4))
        with pytest.raises(
            BagError, match="/odom is nav_msgs/msg/Odometry, not sensor_msgs/msg/Image"
        ):
            writer.write_raw("/odom", "sensor_msgs/msg/Image", b"", START)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path, storage: str) -> None:
    """Whether it is full while a message is written, or while the bag is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            with BagWriter(tmp_path / "bag", storage) as writer:
                for stamp in range(30):
                    writer.write_odometry("/odom", 1000 + stamp, np.eye(4))
                    image = np.zeros((200, 200), np.uint8)
                    writer.write_image("/image", 1000 + stamp, "camera", image, "mono8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
