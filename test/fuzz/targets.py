"""What reads bytes that nobody vouches for: one function each, of bytes, that may raise nothing but
our own errors."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import yaml

from recon4d_ros import messages, paths
from recon4d_ros.bags import BagReader, BagWriter
from recon4d_ros.cameras.decode import COMPRESSED, ENCODINGS, decode, significant_bits, source_size
from recon4d_ros.cameras.rig import load_rig_file
from recon4d_ros.commands.common import parameter_values
from recon4d_ros.engine import load_spec
from recon4d_ros.errors import Recon4dError
from recon4d_ros.mapping import Cloud, read_cloud, write_cloud
from recon4d_ros.parameters import build
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.types import Camera, RawImage


@dataclass(frozen=True)
class Target:
    """run: one input. seeds: good inputs to start from."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


@cache
def _folder() -> Path:
    keep = tempfile.TemporaryDirectory(prefix="recon4d_fuzz_")
    _KEPT.append(keep)
    return Path(keep.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _bag(data: bytes) -> None:
    """An MCAP: its index, its rig, its events."""
    with BagReader(_file("drive.mcap", data)) as reader:
        reader.info()
        with suppress(Recon4dError):
            reader.rig()
        for _ in islice(reader.events(), 20):
            pass


def _small_bag(name: str) -> Path:
    bag = _folder() / name
    if bag.exists():
        return bag / f"{name}.mcap"
    with BagWriter(bag) as writer:
        k = np.array([[20.0, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
        pose = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
        camera = Camera("left", 16, 12, k, pose)
        writer.write_tf_static(1000, [("base_link", "left", pose)])
        for stamp in (1000, 2000):
            pixels = np.arange(192, dtype=np.uint8).reshape(12, 16)
            writer.write_image("/left/image_raw", stamp, "left", pixels, "mono8", "png")
            writer.write_camera_info("/left/camera_info", stamp, "left", camera)
            writer.write_odometry("/odom", stamp, np.eye(4))
    return bag / f"{name}.mcap"


def _bag_seeds() -> Iterator[bytes]:
    yield _small_bag("seed").read_bytes()


_READ: tuple[tuple[str, Callable[[object], object]], ...] = (
    ("sensor_msgs/msg/Image", messages.raw_image),
    ("sensor_msgs/msg/CompressedImage", messages.raw_compressed_image),
    (
        "sensor_msgs/msg/CameraInfo",
        lambda m: messages.read_camera_info("a", m, np.eye(4), size=(16, 12)),
    ),
    ("tf2_msgs/msg/TFMessage", lambda m: messages.static_transforms([m])),
    ("nav_msgs/msg/Odometry", messages.odometry_sample),
    ("foxglove_msgs/msg/CompressedVideo", messages.raw_video),
)


@cache
def _reader() -> BagReader:
    return BagReader(_small_bag("cdr"))


def _cdr(data: bytes) -> None:
    """A message's CDR bytes, of the type that the first byte says, and what is made of it."""
    if not data:
        return
    kind, read = _READ[data[0] % len(_READ)]
    read(_reader().deserialize(data[1:], kind))


def _cdr_seeds() -> Iterator[bytes]:
    names = [kind for kind, _ in _READ]
    for _, kind, _, data in _reader().raw_messages():
        if kind in names:
            yield bytes([names.index(kind)]) + bytes(data)


# compressed ones first: what was found keeps its meaning when another raw encoding is known
_TRIED = (*COMPRESSED, *(name for name in ENCODINGS if name not in COMPRESSED))


def _image(data: bytes) -> None:
    """An image: encoding, size and step by the first bytes, the rest is its data."""
    if len(data) < 8:
        return
    encoding = _TRIED[data[0] % len(_TRIED)]
    width, height, step = data[1] + 256 * (data[2] % 4), data[3], data[4] + 256 * (data[5] % 4)
    pixels = np.frombuffer(data[8:], np.uint8)
    inside = ("", "bayer_rggb8", "mono16")[data[6] % 3]
    image = RawImage(1, encoding, pixels, width, height, step, bool(data[7] & 1), inside=inside)
    source_size(image)
    significant_bits(image)
    for channels, reduce in ((1, 1), (3, 2)):
        decode(image, channels, reduce)


def _image_seeds() -> Iterator[bytes]:
    grey = (np.arange(192).reshape(12, 16) % 251).astype(np.uint8)
    for extension, name in (
        (".jpg", "jpeg"),
        (".png", "png"),
        (".tiff", "tiff"),
        (".webp", "webp"),
        (".bmp", "bmp"),
    ):
        head = bytes([_TRIED.index(name), 0, 0, 0, 0, 0, 1, 0])
        yield head + cv2.imencode(extension, grey)[1].tobytes()
    yield bytes([_TRIED.index("mono8"), 16, 0, 12, 16, 0, 0, 0]) + grey.tobytes()
    yield bytes([_TRIED.index("mono16"), 8, 0, 12, 16, 0, 0, 0]) + grey.tobytes()
    yield bytes([_TRIED.index("nv12"), 16, 0, 8, 16, 0, 0, 0]) + grey.tobytes()


def _rig(data: bytes) -> None:
    load_rig_file(_file("rig.yaml", data))


def _rig_seeds() -> Iterator[bytes]:
    for path in sorted(paths.rigs().glob("*.yaml")):
        yield path.read_bytes()


def _engine(data: bytes) -> None:
    load_spec(_file("engine/engine.yaml", data).parent)


def _engine_seeds() -> Iterator[bytes]:
    for path in sorted(paths.engines().glob("*/engine.yaml")):
        yield path.read_bytes()


def _checkpoint(data: bytes) -> None:
    from recon4d_ros.networks.checkpoint import read

    suffix = ".safetensors" if data[:1] != b"P" else ".pth"
    read(_file(f"weights{suffix}", data))


def _checkpoint_seeds() -> Iterator[bytes]:
    import torch
    from safetensors.torch import save

    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
    yield save(state)
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    yield buffer.getvalue()


def _cloud(data: bytes) -> None:
    read_cloud(_file("map.ply" if data[:3] == b"ply" else "map.pcd", data))


def _cloud_seeds() -> Iterator[bytes]:
    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    cloud = Cloud(xyz, np.full((4, 3), 9, np.uint8), np.ones(4, np.float32))
    for name in ("seed.ply", "seed.pcd"):
        write_cloud(_folder() / name, cloud)
        yield (_folder() / name).read_bytes()


def _parameters(data: bytes) -> None:
    build(Parameters, parameter_values(_file("parameters.yaml", data), []))


def _parameters_seeds() -> Iterator[bytes]:
    yield (paths.share() / "config/recon4d.yaml").read_bytes()
    yield yaml.safe_dump({"mapping": {"voxel_size": 0.2}, "sync": {"offset": "auto"}}).encode()


TARGETS = {
    "bag": Target(_bag, _bag_seeds),
    "cdr": Target(_cdr, _cdr_seeds),
    "image": Target(_image, _image_seeds),
    "rig": Target(_rig, _rig_seeds),
    "engine": Target(_engine, _engine_seeds),
    "checkpoint": Target(_checkpoint, _checkpoint_seeds),
    "cloud": Target(_cloud, _cloud_seeds),
    "parameters": Target(_parameters, _parameters_seeds),
}
FOUND = Path(__file__).parent / "found"  # inputs that broke a target once: found/<target>/*


def attempt(target: Target, data: bytes) -> None:
    """Run one input; our own errors are an answer."""
    try:
        target.run(data)
    except Recon4dError as error:
        assert "\n" not in str(error), f"more than one line: {error}"
