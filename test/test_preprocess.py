"""Decoding, lens models, and the engine's calibration: right to a hundredth of a pixel."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recon4d_ros import geometry
from recon4d_ros.bags import BagReader, ImageEvent
from recon4d_ros.cameras.calibration import (
    WIDEST_HALF_ANGLE,
    quarter_turns,
    reduced_size,
    reduction,
    upright,
    upright_size,
)
from recon4d_ros.cameras.decode import shown_byte_order, significant_bits, source_size
from recon4d_ros.cameras.distortion import to_pixels, to_rays, widest_ray
from recon4d_ros.cameras.image_header import COMPRESSED, compressed_kind, compressed_size
from recon4d_ros.cameras.lens import lens_at
from recon4d_ros.cameras.lens_names import lens_model
from recon4d_ros.cameras.packed import FLOATS
from recon4d_ros.cameras.preprocess import (
    ENCODINGS,
    OUTSIDE,
    Preprocessor,
    decode,
    input_size_for,
    make_calibration,
)
from recon4d_ros.errors import CalibrationError, ImageError
from recon4d_ros.geometry import inverse
from recon4d_ros.parallel import CPUS
from recon4d_ros.types import Calibration, Camera, FrameSet, RawImage, Rig

COLOR = np.array(
    [[200, 40, 90], [30, 170, 60], [20, 60, 210], [128, 128, 128]], np.uint8
)  # RGB, one per quarter of the scene


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """RGB in flat patches of 8x8 pixels, which neither a mosaic nor chroma at half width blurs
    inside."""
    v, u = np.mgrid[:height, :width] // 8
    return COLOR[(u + 2 * v) % 4]


def raw(encoding: str, rgb: np.ndarray, padding: int = 0, big_endian: bool = False) -> RawImage:
    """The scene as a camera would send it: an encoder written from the encodings' definitions,
    independent of the decoder's tables."""
    height, width = rgb.shape[:2]
    grey = luminance(rgb)
    if encoding in FLOATS:
        size, channels = FLOATS[encoding]
        alpha = np.ones((height, width, 1))
        bgra = np.concatenate([rgb[..., ::-1] / 255.0, alpha], axis=-1)
        values = grey[..., None] / 255.0 if channels == 1 else bgra[..., :channels]
        kind = np.dtype(f"{'>' if big_endian else '<'}f{size}")
        padding = -(-padding // size) * size
        pixels = np.ascontiguousarray(values.astype(kind)).view(np.uint8)
        rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
        return RawImage(1, encoding, rows.ravel(), width, height, rows.shape[1], big_endian)
    if encoding == "rgb565":
        r, g, b = (rgb[..., index].astype(np.uint16) for index in range(3))
        words = (r >> 3) << 11 | (g >> 2) << 5 | b >> 3
        pixels = words.astype(">u2" if big_endian else "<u2")[..., None].view(np.uint8)
    elif encoding.startswith("mono") or encoding in ("8uc1", "16uc1"):
        pixels = grey[..., None]
    elif encoding in ("nv24", "nv16", "nv61"):
        yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
        u, v = (one.reshape(height // 2, -1) for one in np.split(yuv[height:], 2))
        half = 1 if encoding == "nv24" else 2
        pair = np.stack([v, u] if encoding == "nv61" else [u, v], -1).repeat(2, 0)
        chroma = pair.repeat(2 // half, 1).reshape(height, 2 * width // half)
        planes = [np.pad(yuv[:height], ((0, 0), (0, padding)), constant_values=99)]
        planes += [np.pad(chroma, ((0, 0), (0, 2 * padding // half)), constant_values=99)]
        data = np.concatenate([one.ravel() for one in planes])
        return RawImage(1, encoding, data, width, height, width + padding, big_endian)
    elif encoding in PLANES:
        yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
        u, v = yuv[height : height * 5 // 4], yuv[height * 5 // 4 :]
        if encoding == "yv12":
            u, v = v, u
        pair = [v, u] if encoding == "nv21" else [u, v]
        if encoding.startswith("nv"):
            chroma = np.stack([one.reshape(height // 2, -1) for one in pair], -1)
            planes = [yuv[:height], chroma.reshape(height // 2, width)]
            planes = [np.pad(one, ((0, 0), (0, padding)), constant_values=99) for one in planes]
        else:
            planes = [yuv[:height], *(one.reshape(height // 2, -1) for one in pair)]
            planes = [
                np.pad(one, ((0, 0), (0, padding // (1 + (index > 0)))), constant_values=99)
                for index, one in enumerate(planes)
            ]
        data = np.concatenate([one.ravel() for one in planes])
        return RawImage(1, encoding, data, width, height, width + padding, big_endian)
    elif encoding.startswith("bayer"):
        pattern = [
            ["rgb".index(letter) for letter in encoding[6 + 2 * row : 8 + 2 * row]]
            for row in range(2)
        ]
        pixels = np.zeros((height, width, 1), np.uint8)
        for row in range(2):
            for column in range(2):
                pixels[row::2, column::2, 0] = rgb[row::2, column::2, pattern[row][column]]
    elif (
        encoding in YUV
    ):  # ITU-R BT.601, limited range: Y 16..235, U and V 128 +- 112, shared by two pixels
        r, g, b = (rgb[..., i].astype(float) for i in range(3))
        y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
        u, v = 128 - 0.148 * r - 0.291 * g + 0.439 * b, 128 + 0.439 * r - 0.368 * g - 0.071 * b
        first, second = (v, u) if encoding == "yvyu" else (u, v)
        chroma = np.where(np.arange(width) % 2 == 0, first, second)
        order = [chroma, y] if encoding in ("yuv422", "uyvy") else [y, chroma]
        pixels = np.rint(np.stack(order, axis=-1)).astype(np.uint8)
    else:
        alpha = np.full((height, width, 1), 255, np.uint8)
        channels = {"r": rgb[..., :1], "g": rgb[..., 1:2], "b": rgb[..., 2:], "a": alpha}
        pixels = np.concatenate(
            [channels[letter] for letter in LETTERS.get(encoding[-3:], encoding.rstrip("816"))],
            axis=-1,
        )
    if "16" in encoding or encoding[-2:] in ("10", "12", "14"):
        wide = pixels.astype(np.uint16) * 256 + 77  # the low byte must not matter
        wide = wide if "16" in encoding else wide >> (16 - int(encoding[-2:]))
        pixels = wide.astype(">u2" if big_endian else "<u2").view(np.uint8)
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
    return RawImage(1, encoding, rows.reshape(-1), width, height, rows.shape[1], big_endian)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("bayerrg8", "bayer_rggb8"),
        ("bayer_gb12", "bayer_gbrg12"),
        ("y8", "mono8"),
        ("y16", "mono16"),
        ("gray12", "mono12"),
        ("rgb888", "rgb8"),
        ("bgr24", "bgr8"),
        ("rgba", "rgba8"),
        ("yuy2", "yuyv"),
        ("yuv422_8_uyvy", "uyvy"),
    ],
)
def test_encodings_by_other_names(name: str, plain: str) -> None:
    """GenICam's, video4linux's and the like."""
    image = raw(plain, scene())
    other = replace(image, encoding=name)
    assert source_size(other) == (64, 48) and significant_bits(other) == significant_bits(image)
    for channels, reduce in ((1, 1), (3, 2)):
        np.testing.assert_array_equal(
            decode(other, channels, reduce), decode(image, channels, reduce)
        )


@given(st.integers(0, 10**6), st.sampled_from((12, 14, 16)), st.booleans())
def test_a_wrong_byte_order_is_found_and_a_right_one_never_doubted(seed, bits, big) -> None:
    """A street's slopes and edges under the noise of a sensor; black, and noise alone too."""
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 8)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    light = np.where(rng.random((3, 4)).repeat(30, 0).repeat(30, 1) > 0.7, 0.9 * smooth, smooth)
    shot = light * 2.0 ** rng.uniform(-1, 0) + rng.normal(0, 0.003, light.shape)
    kind = np.dtype(">u2" if big else "<u2")
    for values, wrong in ((shot, True), (rng.random((90, 120)), False), (0 * shot, False)):
        data = np.clip(values * (2**bits - 1), 0, 2**bits - 1).astype(kind).view(np.uint8).ravel()
        right = RawImage(1, "mono16", data, 120, 90, 240, big)
        told_wrong = replace(right, big_endian=not big)
        assert shown_byte_order(right) == shown_byte_order(told_wrong) == (big if wrong else None)
    assert shown_byte_order(raw("mono8", scene())) is None


def test_a_wrong_byte_order_is_found_once_there_is_light() -> None:
    """A garage, whose images look the same both ways, then a street: said once, and as bright as
    with the right order."""
    camera = Camera(
        "front", 120, 90, np.array([[100.0, 0, 60], [0, 100, 45], [0, 0, 1]]), np.eye(4)
    )
    rig = Rig("one", (camera,))
    rng = np.random.default_rng(0)
    street = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 8)
    street = 3000 * (street - street.min()) / np.ptp(street) + rng.normal(0, 12, street.shape)
    images = [rng.normal(64, 6, (90, 120)), street, rng.normal(64, 6, (90, 120)), 0.9 * street]
    seen = []
    for big in (False, True):
        calibration = make_calibration(rig, (90, 120), (90, 120))
        preprocess = Preprocessor(rig, calibration, 1)
        for number, image in enumerate(images):
            data = np.clip(image, 0, 4095).astype("<u2").view(np.uint8).ravel()
            one = RawImage(number, "mono16", data, 120, 90, 240, big)
            seen.append(preprocess(FrameSet(number, {"front": one}))[0].images[0])
        assert sum("is_bigendian" in note for note in preprocess.notes) == big
    for right, told_wrong in zip(seen[1:4], seen[5:], strict=True):
        np.testing.assert_array_equal(right, told_wrong)
    assert seen[1].max() > 150


def test_a_name_that_says_its_bits_is_believed_where_the_image_is_dark() -> None:
    dark = scene() // 16
    image = raw("mono12", dark)
    assert significant_bits(image) == 12
    assert np.abs(decode(image, 1)[..., 0].astype(int) - luminance(dark)).max() <= 1
    assert significant_bits(raw("mono16", scene())) == 16  # not a word on it in the name
    filled = replace(raw("mono16", scene()), encoding="mono12")  # shifted up, against its name
    assert significant_bits(filled) == 16
    np.testing.assert_array_equal(decode(filled, 1)[..., 0], luminance(scene()))


def packed(values: np.ndarray, bits: int, how: str) -> np.ndarray:
    """Rows of values as one stream, or MIPI's and GigE Vision's groups, written pixel by pixel."""
    flat = [int(value) for value in values.ravel()]
    if how == "p":
        stream = sum(value << (bits * index) for index, value in enumerate(flat))
        return np.frombuffer(stream.to_bytes(-(-len(flat) * bits // 8), "little"), np.uint8)
    out: list[int] = []
    count = {"packed": 2, "csi2p": {10: 4, 12: 2, 14: 4}[bits]}[how]
    for start in range(0, len(flat), count):
        group = flat[start : start + count]
        high = [value >> (bits - 8) for value in group]
        low = [value & ((1 << (bits - 8)) - 1) for value in group]
        if how == "packed":
            out += [high[0], low[0] | low[1] << 4, high[1]]
        else:
            rest = sum(value << ((bits - 8) * index) for index, value in enumerate(low))
            out += [*high, *rest.to_bytes(count * (bits - 8) // 8, "little")]
    return np.array(out, np.uint8)


@pytest.mark.parametrize(
    ("name", "bits", "how", "plain"),
    [
        ("mono10p", 10, "p", "mono8"),
        ("mono12p", 12, "p", "mono8"),
        ("mono14p", 14, "p", "mono8"),
        ("bayerrg12p", 12, "p", "bayer_rggb8"),
        ("bayer_grbg10p", 10, "p", "bayer_grbg8"),
        ("mono12packed", 12, "packed", "mono8"),
        ("bayergb10packed", 10, "packed", "bayer_gbrg8"),
        ("srggb10p", 10, "csi2p", "bayer_rggb8"),
        ("sbggr12_csi2p", 12, "csi2p", "bayer_bggr8"),
        ("y10p", 10, "csi2p", "mono8"),
        ("y14p", 14, "csi2p", "mono8"),
    ],
)
def test_packed_bits(name: str, bits: int, how: str, plain: str) -> None:
    """The upper eight bits of each pixel, with rows that are padded and rows that are not."""
    whole = raw(plain, scene())
    wide = whole.data.reshape(48, 64).astype(np.uint16) << (bits - 8) | 3  # lower bits are no light
    data = packed(wide, bits, how)
    image = RawImage(1, name, data, 64, 48)
    rows = np.pad(data.reshape(48, -1), ((0, 0), (0, 12)), constant_values=99)
    for one in (image, replace(image, data=rows.ravel(), step=rows.shape[1])):
        assert source_size(one) == (64, 48) and significant_bits(one) == 0
        np.testing.assert_array_equal(decode(one, 3, 2), decode(whole, 3, 2))
    for wrong in (data[:-1], np.tile(data, 2)):
        with pytest.raises(ImageError, match=f"{name} of 64x48 pixels needs"):
            decode(replace(image, data=wrong), 1)


def test_packed_rows_that_end_within_a_byte_are_one_stream() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 12, (5, 7)).astype(np.uint16)
    image = RawImage(1, "mono12p", packed(values, 12, "p"), 7, 5)
    np.testing.assert_array_equal(decode(image, 1)[..., 0], values >> 4)


@pytest.mark.parametrize(("white", "bits"), [(1, 1), (255, 8), (65535, 16)])
def test_floats_by_the_range_of_their_values(white: float, bits: int) -> None:
    grey = luminance(scene())
    grey[0, 0] = 255
    values = (grey.astype(np.float32) * white / 255).astype(np.float32)
    image = RawImage(1, "32fc1", values.view(np.uint8).ravel(), 64, 48)
    assert significant_bits(image) == bits
    np.testing.assert_array_equal(decode(image, 1)[..., 0], grey)
    dark = replace(image, data=(values * np.float32(0.001)).view(np.uint8).ravel())
    assert decode(dark, 1, bits=bits).max() <= 1  # as the camera's others say


def floats(values: np.ndarray) -> RawImage:
    height, width = values.shape
    return RawImage(1, "32fc1", values.astype(np.float32).view(np.uint8).ravel(), width, height)


@pytest.mark.parametrize(("white", "bits"), [(1, 1), (255, 8), (65535, 16)])
@pytest.mark.parametrize("stretch", [1, 5])
def test_floats_that_a_filter_overshot(white: float, bits: int, stretch: int) -> None:
    """As bicubic interpolation does at edges; and one pixel is hot."""
    board = np.kron(np.indices((6, 8)).sum(0) % 2, np.ones((8 * stretch, 8 * stretch))) * white
    values = cv2.resize(board, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    assert values.max() > 1.06 * white and values.min() < -0.06 * white
    hot = values.copy()
    hot[3, 3] = 20 * white
    for one in (values, hot, values * 1.2):
        image = floats(one)
        assert significant_bits(image) == bits
        expected = np.clip(np.rint(one * (255 / white)), 0, 255)
        assert np.abs(decode(image, 1)[..., 0] - expected).max() <= 1


def test_floats_of_a_night_with_lamps() -> None:
    """White is told by few pixels."""
    values = np.full((48, 64), 1.5)
    values[10:13, 20:24] = 255
    assert significant_bits(floats(values)) == 8
    below = np.full((48, 64), 100.0)
    below[:2] = -80
    with pytest.raises(ImageError, match="values down to -80"):
        decode(floats(below), 1)
    assert decode(floats(np.maximum(below, -70)), 1)[0, 0, 0] == 0


def test_floats_that_are_no_picture_are_told() -> None:
    depth = np.full((48, 64), np.nan, np.float32)
    depth[20:] = 7.0
    for values, words in (
        (depth, "42 % of its values are not finite"),
        (depth * 0 - 5, "not finite"),
        (np.full((48, 64), -5, np.float32), "values down to -5"),
        (np.full((48, 64), 1e7, np.float32), r"values up to 1e\+07"),
    ):
        image = RawImage(1, "32fc1", values.view(np.uint8).ravel(), 64, 48)
        with pytest.raises(ImageError, match=words):
            decode(image, 1)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("bgrx", "bgra8"), ("xrgb8888", "bgra8"), ("uyvy422", "uyvy"), ("srggb8", "bayer_rggb8")],
)
def test_names_of_drm_and_ffmpeg(name: str, plain: str) -> None:
    image = raw(plain, scene())
    other = replace(image, encoding=name)
    np.testing.assert_array_equal(decode(other, 3), decode(image, 3))


def test_a_jpeg_in_an_image_is_read() -> None:
    """Some drivers send their camera's MJPEG as sensor_msgs/Image."""
    data = cv2.imencode(".jpg", scene()[..., ::-1])[1].ravel()
    image = RawImage(1, "mjpeg", data, 64, 48)
    assert source_size(image) == (64, 48)
    np.testing.assert_array_equal(decode(image, 3), decode(RawImage(1, "jpeg", data), 3))


def test_buffers_longer_than_a_raw_image() -> None:
    """Behind the image, or behind each row without a word in step."""
    rgb = scene()[:47, :62]
    image = raw("rgb8", rgb)
    tail = replace(image, data=np.concatenate([image.data, np.zeros(8960 - 8742, np.uint8)]))
    np.testing.assert_array_equal(decode(tail, 3), rgb)
    rows = np.pad(image.data.reshape(47, 186), ((0, 0), (0, 6)))  # to 192, as memory is aligned
    np.testing.assert_array_equal(decode(replace(image, data=rows.ravel()), 3), rgb)
    three = replace(raw("mono8", rgb), data=image.data)
    with pytest.raises(ImageError, match="needs 2914 bytes: got 8742"):
        decode(three, 3)


def test_a_step_of_the_height_changes_nothing() -> None:
    image = replace(raw("rgb8", scene()), step=3 * 48)
    np.testing.assert_array_equal(decode(image, 3), scene())


def test_a_big_endian_565_is_one_word() -> None:
    red = np.tile(np.array([0xF8, 0x00], np.uint8), 8)
    image = RawImage(1, "rgb565", red, 4, 2, 8, True)
    assert decode(image, 3).min(axis=(0, 1)).tolist() == [248, 0, 0]
    assert decode(replace(image, big_endian=False), 3)[0, 0].tolist() == [0, 28, 192]


@pytest.mark.parametrize("encoding", ["nv12", "nv16", "nv24", "nv61", "i420"])
@pytest.mark.parametrize("padding", [0, 8])
def test_planes_of_another_size(encoding: str, padding: int) -> None:
    """A surplus of an eighth is passed over; less, or more, is told in bytes."""
    image = raw(encoding, scene(), padding)
    size = len(image.data)
    longer = replace(image, data=np.concatenate([image.data, np.full(size // 8, 9, np.uint8)]))
    assert source_size(longer) == (64, 48)
    np.testing.assert_array_equal(decode(longer, 3), decode(image, 3))
    for data in (image.data[:-2], np.concatenate([longer.data, longer.data[:1]])):
        with pytest.raises(ImageError, match=f"{encoding} .*needs {size} bytes: got {len(data)}"):
            decode(replace(image, data=data), 3)
    with pytest.raises(ImageError, match="expected an even width and height"):
        decode(replace(image, width=63), 3)


def test_bmp() -> None:
    for rows in (scene(), scene()[::-1]):
        data = cv2.imencode(".bmp", rows[..., ::-1])[1].ravel()
        image = RawImage(1, "bmp", data)
        assert compressed_kind(data) == "bmp" and compressed_size(data) == (64, 48)
        np.testing.assert_array_equal(decode(image, 3), rows)
        with pytest.raises(ImageError, match="truncated"):
            decode(replace(image, data=data[:-50]), 3)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return np.rint(rgb @ [0.299, 0.587, 0.114]).astype(np.uint8)


def centres(image: np.ndarray) -> np.ndarray:
    """The inner pixels of each 8x8 patch, away from its border."""
    height, width = image.shape[:2]
    inner = (np.arange(height)[:, None] % 8 // 2 % 3 > 0) & (np.arange(width) % 8 // 2 % 3 > 0)
    return image[inner]


YUV = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "yvyu")
PLANES = ("nv12", "nv21", "nv24", "nv16", "nv61", "yuv420", "yuv420p", "i420", "yv12")
LETTERS = {"uc3": "bgr", "uc4": "bgra"}  # OpenCV's order
RAW = [encoding for encoding in ENCODINGS if encoding not in COMPRESSED]


@pytest.mark.parametrize("encoding", RAW)
@pytest.mark.parametrize("padding", [0, 5, 32])
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_raw_encoding(encoding: str, padding: int, big_endian: bool) -> None:
    rgb = scene()
    if encoding in PLANES and padding % 2:
        padding += 1
    image = raw(encoding, rgb, padding, big_endian)
    grey_only = encoding.startswith("mono") or encoding.endswith(("uc1", "fc1"))
    expected = np.repeat(luminance(rgb)[..., None], 3, axis=-1) if grey_only else rgb
    color, grey = decode(image, 3), decode(image, 1)
    assert (
        color.shape == (48, 64, 3)
        and grey.shape == (48, 64, 1)
        and color.dtype == grey.dtype == np.uint8
    )
    few = 7 if encoding == "rgb565" else 3  # five bits of red and blue
    assert np.abs(centres(color).astype(int) - centres(expected)).max() <= few
    assert np.abs(centres(grey)[:, 0].astype(int) - luminance(centres(expected))).max() <= (
        12 if encoding in YUV + PLANES else few - 1
    )  # Y is 16..235


@pytest.mark.parametrize(
    "encoding", ["png", "jpeg", "rgb8", "bgra8", "mono8", "mono16", "bayer_rggb8", "yuv422"]
)
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(48, 64), (45, 62)])
def test_reduced_pixels_lie_where_they_should(
    encoding: str, reduce: int, size: tuple[int, int]
) -> None:
    """A linear ramp shows the place: pixel u of the reduced image must have the value at source (u
    + 0.5) * reduce - 0.5."""
    v, u = np.mgrid[: size[0], : size[1]]
    ramp = np.repeat((20 + 2 * u + 2 * v)[..., None].astype(np.uint8), 3, axis=-1)
    if encoding in ("png", "jpeg"):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if encoding == "jpeg" else []
        image = RawImage(1, encoding, cv2.imencode(f".{encoding}", ramp, quality)[1].ravel())
    else:
        image = raw(encoding, ramp)
    out = decode(image, 1 if encoding.startswith("yuv") else 3, reduce)[..., 0].astype(float)
    assert out.shape == (-(-size[0] // reduce), -(-size[1] // reduce))
    if encoding == "yuv422":
        out = (out - 16) * 255 / 219
    whole = out[
        : size[0] // reduce, : size[1] // reduce
    ]  # an incomplete last block is filled up with border
    y, x = np.indices(whole.shape)
    expected = 20 + 2 * ((x + 0.5) * reduce - 0.5) + 2 * ((y + 0.5) * reduce - 0.5)
    assert (
        np.abs(whole - expected)[1:-1, 1:-1].mean() < 0.6
        and abs((whole - expected)[1:-1, 1:-1].mean()) < 0.3
    )


def test_compressed_grey_color_and_sixteen_bits() -> None:
    rgb = scene()
    for extension in ("png", "jpeg"):
        data = cv2.imencode(f".{extension}", rgb[..., ::-1])[1].ravel()
        assert compressed_kind(data) == extension and compressed_size(data) == (64, 48)
        color, grey = (
            centres(decode(RawImage(1, extension, data), channels)).astype(int)
            for channels in (3, 1)
        )
        assert np.abs(color - centres(rgb)).max() <= (0 if extension == "png" else 12)
        assert np.abs(grey[:, 0] - luminance(centres(rgb))).max() <= 3
    deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    image = RawImage(1, "png", cv2.imencode(".png", deep)[1].ravel())
    assert np.array_equal(decode(image, 1)[..., 0], deep >> 8)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encoding", ["mono16", "16uc1", "png", "tiff", "bayer_rggb16"])
def test_sixteen_bits_of_which_some_are_used(bits: int, encoding: str) -> None:
    """The highest eight of the bits that are used, told by the values, are taken."""
    grey = luminance(scene())
    grey[0, 0] = 255  # or the brightest patch would need no more than seven bits
    wide = grey.astype(np.uint16) << (bits - 8)
    if encoding in ("png", "tiff"):
        image = RawImage(1, encoding, cv2.imencode(f".{encoding}", wide)[1].ravel())
    else:
        image = RawImage(1, encoding, wide.reshape(-1).view(np.uint8), 64, 48, 128)
    assert significant_bits(image) == bits and significant_bits(raw("mono8", scene())) == 0
    if encoding != "bayer_rggb16":
        assert np.array_equal(decode(image, 1)[..., 0], grey)
    assert np.array_equal(decode(image, 1), decode(image, 1, bits=bits))
    darker = decode(image, 1, bits=16)  # as a camera of sixteen bits would mean it
    assert np.abs(darker.astype(int) - (decode(image, 1).astype(int) >> (16 - bits))).max() <= 1


@pytest.mark.parametrize("extension", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("tail", [b"", bytes(900), bytes(300_000), b"\x12\x34" * 5000])
def test_buffers_longer_than_the_image(extension: str, tail: bytes) -> None:
    kind = {"jpg": "jpeg"}.get(extension, extension)
    data = cv2.imencode(f".{extension}", scene()[..., ::-1])[1].tobytes()
    image, padded = (
        RawImage(1, kind, np.frombuffer(each, np.uint8)) for each in (data, data + tail)
    )
    assert compressed_kind(padded.data) == kind and source_size(padded) == (64, 48)
    assert np.array_equal(decode(padded, 3), decode(image, 3))
    assert np.abs(centres(decode(image, 3)).astype(int) - centres(scene())).max() <= 12


def test_jpeg_without_its_end_marker_but_with_its_whole_scan() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (45, 62, 3), np.uint8)
    for pixels in (scene()[..., ::-1], noise):
        data = cv2.imencode(".jpg", pixels)[1].ravel()
        image, cut = RawImage(1, "jpeg", data), RawImage(1, "jpeg", data[:-2])
        assert np.array_equal(decode(cut, 3), decode(image, 3))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(("extension", "depth"), [("png", 8), ("png", 16), ("jpg", 8)])
def test_a_mosaic_that_was_compressed_as_it_is(pattern: str, extension: str, depth: int) -> None:
    pixels = raw(f"bayer_{pattern}8", scene()).data.reshape(48, 64)
    if depth == 16:
        pixels = pixels.astype(np.uint16) << 8
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if extension == "jpg" else []
    data = cv2.imencode(f".{extension}", pixels, quality)[1].ravel()
    kind = "jpeg" if extension == "jpg" else "png"
    said = f"bayer_{pattern}{depth}"
    image = RawImage(1, kind, data, inside=said)
    worst = np.abs(centres(decode(image, 3)).astype(int) - centres(scene())).max()
    assert worst <= (0 if extension == "png" else 30)  # JPEG blurs the mosaic itself
    colour = cv2.imencode(f".{extension}", scene()[..., ::-1])[1].ravel()
    made = RawImage(1, kind, colour, inside=said)  # its sender made colour of it
    assert np.abs(centres(decode(made, 3)).astype(int) - centres(scene())).max() <= 12


def test_rows_of_all_planes_and_steps_that_cannot_be() -> None:
    """Some drivers count the rows of colour as the image's, and some give a step that is none."""
    image = raw("nv12", scene())
    tall = replace(image, height=72)
    assert source_size(tall) == source_size(image) == (64, 48)
    assert np.array_equal(decode(tall, 3), decode(image, 3))
    tight = raw("rgb8", scene())
    for step in (64, 0, 191, 10_000):
        assert np.array_equal(decode(replace(tight, step=step), 3), scene())


def test_a_header_that_claims_too_much() -> None:
    bomb = PNG.copy()
    bomb[16:24] = 0, 1, 0, 0, 0, 1, 0, 0
    with pytest.raises(ImageError, match="65536x65536 pixels: expected at most 32 million"):
        decode(RawImage(1, "png", bomb), 3)


JPEG = cv2.imencode(".jpg", scene())[1].ravel()
PNG = cv2.imencode(".png", scene())[1].ravel()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (RawImage(1, "jpeg", JPEG[: len(JPEG) // 2]), "truncated: its end marker is missing"),
        (RawImage(1, "jpeg", JPEG[:-3]), "truncated"),
        (RawImage(1, "jpeg", JPEG[:-9]), "truncated"),
        (RawImage(1, "jpeg", JPEG[:5]), "no header"),
        (RawImage(1, "jpeg", np.zeros(0, np.uint8)), "no header"),
        (RawImage(1, "jpeg", np.full(5000, 7, np.uint8)), "no header"),
        (RawImage(1, "png", PNG[: len(PNG) // 2]), "truncated"),
        (RawImage(1, "png", np.concatenate([PNG[: len(PNG) // 2], PNG[-12:]])), "truncated"),
        (
            RawImage(1, "rgb7", np.zeros(9, np.uint8), 1, 3, 3),
            "encoding 'rgb7' is not known: expected one of mono8",
        ),
        (RawImage(1, "", np.zeros(9, np.uint8), 1, 3, 3), "encoding '' is not known"),
        (RawImage(1, "rgb8", np.zeros(95, np.uint8), 4, 8, 12), "needs 96 bytes: got 95"),
        (RawImage(1, "rgb8", np.zeros(97, np.uint8), 4, 8, 12), "needs 96 bytes: got 97"),
        (
            RawImage(1, "rgb8", np.zeros(100, np.uint8), 4, 8, 11),
            "needs 12 bytes per row: step is 11",
        ),
        (RawImage(1, "nv12", np.zeros(110, np.uint8), 8, 8, 8), "needs 96 bytes: got 110"),
        (RawImage(1, "nv21", np.zeros(96, np.uint8), 7, 8, 8), "even width and height"),
        (RawImage(1, "mono8", np.zeros(0, np.uint8), 0, 8, 0), "image size is 0x8"),
        (RawImage(1, "yuv422", np.zeros(30, np.uint8), 5, 3, 10), "expected an even width"),
    ],
)
def test_broken_image_gives_one_sentence(image: RawImage, sentence: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(image, 3)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([JPEG, PNG]), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_corrupted_bytes_give_pixels_or_a_sentence(good: np.ndarray, seed: int, how: int) -> None:
    random = np.random.default_rng(seed)
    data = good.copy()
    where = random.integers(0, len(data), 1 + how * 5)
    data[where] = random.integers(0, 256, len(where))
    for encoding in ("jpeg", "png"):
        try:
            assert decode(RawImage(1, encoding, data), 3).ndim == 3
        except ImageError as error:
            assert "\n" not in str(error)


def test_last_row_without_padding() -> None:
    image = raw("rgb8", scene(), padding=7)
    short = RawImage(1, "rgb8", image.data[:-7], image.width, image.height, image.step)
    assert np.array_equal(decode(short, 3), scene())


# --- lens models


@st.composite
def lenses(draw: st.DrawFn) -> Camera:
    """Cameras as cars have them: every model, centres off, focal lengths unequal; polynomial
    coefficients of real calibrations' size."""
    width, height = draw(st.sampled_from([(640, 480), (1226, 370), (1280, 960), (1601, 901)]))
    model = draw(st.sampled_from(["none", "plumb_bob", "rational_polynomial", "equidistant"]))
    focal = width * draw(st.floats(0.25, 0.4) if model == "equidistant" else st.floats(0.5, 1.5))
    small = st.floats(-0.002, 0.002)
    if model == "plumb_bob":
        d = [
            draw(st.floats(-0.35, 0.15)),
            draw(st.floats(-0.05, 0.15)),
            draw(small),
            draw(small),
            draw(st.floats(-0.02, 0.02)),
        ]
    elif model == "rational_polynomial":
        d = [
            draw(st.floats(-0.3, 0.6)),
            draw(st.floats(0, 0.1)),
            draw(small),
            draw(small),
            0.01,
            draw(st.floats(0, 0.6)),
            0.1,
            0.02,
        ]
    else:
        d = (
            [draw(st.floats(-0.05, 0.1)), draw(small), draw(small), draw(small)]
            if model == "equidistant"
            else []
        )
    cx, cy = width * draw(st.floats(0.45, 0.55)), height * draw(st.floats(0.45, 0.55))
    k = np.array([[focal, 0, cx], [0, focal * draw(st.floats(0.98, 1.02)), cy], [0, 0, 1]])
    camera = Camera("front", width, height, k, np.eye(4), model, tuple(d))
    edges = np.array(
        [
            [0, cy],
            [width, cy],
            [cx, 0],
            [cx, height],
            [width * 0.9, height * 0.9],
            [width * 0.1, height * 0.1],
        ]
    )
    assume(
        model == "equidistant" or np.isfinite(to_rays(camera, edges)).all()
    )  # else the model does not describe its image
    return camera


def opencv_pixels(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Points [M, 3] through OpenCV's own camera model: the reference."""
    zero, d = np.zeros(3), np.array(camera.d, np.float64)
    if camera.distortion_model == "equidistant":
        return np.asarray(cv2.fisheye.projectPoints(points[:, None], zero, zero, camera.k, d)[0])[
            :, 0
        ]
    return np.asarray(cv2.projectPoints(points, zero, zero, camera.k, d if len(d) else None)[0])[
        :, 0
    ]


@settings(max_examples=60, deadline=None)
@given(lenses(), st.integers(0, 2**32 - 1))
def test_lens_both_ways(camera: Camera, seed: int) -> None:
    rays = np.random.default_rng(seed).uniform(-0.8, 0.8, (200, 2))
    rays = rays[np.linalg.norm(rays, axis=1) < 0.98 * widest_ray(camera)]
    pixels = to_pixels(camera, rays)
    assert (
        np.abs(pixels - opencv_pixels(camera, np.column_stack([rays, np.ones(len(rays))]))).max(
            initial=0
        )
        < 1e-6
    )
    assert np.abs(to_rays(camera, pixels) - rays).max(initial=0) < 1e-6


def test_beyond_its_range_a_model_says_nothing() -> None:
    strong = Camera(
        "front",
        640,
        480,
        np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]]),
        np.eye(4),
        "plumb_bob",
        (-0.4, 0.0, 0.0, 0.0),
    )
    turn = 1 / np.sqrt(3 * 0.4)  # r (1 - 0.4 r^2) stops growing here
    assert widest_ray(strong) == pytest.approx(turn, abs=2e-3)
    beyond, within = to_pixels(strong, np.array([[turn + 0.01, 0.0], [turn - 0.01, 0.0]]))
    assert np.isnan(beyond).all() and np.isfinite(within).all()
    furthest = 300 * turn * (1 - 0.4 * turn**2) + 320
    rays = to_rays(strong, np.array([[furthest + 5, 240.0], [furthest - 5, 240.0]]))
    assert np.isnan(rays[0]).all() and np.isfinite(rays[1]).all()


# --- calibration


def sample(grid: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The grid [h, w, 2] at fractional working pixels [M, 2], bilinearly."""
    u0, v0 = np.floor(pixels).astype(int).T
    fu, fv = (pixels - np.floor(pixels)).T[..., None]
    g = grid.astype(np.float64)
    above, below = (
        g[v0, u0] * (1 - fu) + g[v0, u0 + 1] * fu,
        g[v0 + 1, u0] * (1 - fu) + g[v0 + 1, u0 + 1] * fu,
    )
    return above * (1 - fv) + below * fv


@settings(max_examples=50, deadline=None)
@given(
    lenses(),
    st.sampled_from([(256, 512), (192, 320), (320, 320)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, (0.0, 0.0, 0.0, 0.3), (0.1, 0.2, 0.05, 0.0)]),
)
def test_a_point_seen_both_ways_is_the_same_within_a_hundredth_of_a_pixel(
    camera: Camera,
    working: tuple[int, int],
    seed: int,
    crop: tuple[float, float, float, float] | None,
) -> None:
    """3D point -> OpenCV's raw pixel -> input pixel, against 3D point -> working pinhole -> grid ->
    input pixel."""
    rig = Rig("car", (camera,))
    height, width, reduce = input_size_for(rig, working)
    calibration = make_calibration(rig, (height, width), working, crop)
    k, grid = calibration.k[0], calibration.grid[0]
    random = np.random.default_rng(seed)
    whole = np.stack(
        [random.integers(0, working[1], 300), random.integers(0, working[0], 300)], axis=-1
    ).astype(float)
    depth = random.uniform(1, 80, (300, 1))
    points = np.column_stack([(whole - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones(300)]) * depth
    assert np.abs(geometry.project(points, k)[0] - whole).max() < 1e-9
    expected = (opencv_pixels(camera, points) + 0.5) / reduce - 0.5
    through = grid[whole[:, 1].astype(int), whole[:, 0].astype(int)]
    seen = through[:, 0] > OUTSIDE
    assert seen.mean() > 0.8 and np.abs(through - expected)[seen].max() < 0.01
    assert (through[seen] >= -0.5 - 1e-4).all() and (
        through[seen] <= [width - 0.5 + 1e-4, height - 0.5 + 1e-4]
    ).all()
    # Between the grid's pixels, as anything that samples it bilinearly sees it.
    between = random.uniform(1, np.array([working[1], working[0]]) - 2.001, (300, 2))
    points = np.column_stack([(between - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones(300)])
    # all four that it lies between have a source: one without would be mixed in
    seen = sample(np.where(grid > OUTSIDE, 1.0, 0.0), between).min(axis=1) == 1
    expected = (opencv_pixels(camera, points) + 0.5) / reduce - 0.5
    assert np.abs(sample(grid, between) - expected)[seen].max(initial=0) < 0.05


@settings(max_examples=40, deadline=None)
@given(lenses(), st.sampled_from([(256, 512), (192, 320)]))
def test_the_working_image_is_filled_and_keeps_the_view(
    camera: Camera, working: tuple[int, int]
) -> None:
    rig = Rig("car", (camera,))
    calibration = make_calibration(rig, input_size_for(rig, working)[:2], working)
    k = calibration.k[0]
    assert k[0, 0] == k[1, 1] and k[0, 1] == 0
    corner_free = calibration.grid[
        0, working[0] // 4 : -working[0] // 4, working[1] // 4 : -working[1] // 4
    ]
    assert (corner_free > OUTSIDE).all()
    left, right = (-0.5 - k[0, 2]) / k[0, 0], (working[1] - 0.5 - k[0, 2]) / k[0, 0]
    top, bottom = (-0.5 - k[1, 2]) / k[1, 1], (working[0] - 0.5 - k[1, 2]) / k[1, 1]
    edges = to_rays(
        camera,
        np.array(
            [
                [-0.5, camera.k[1, 2]],
                [camera.width - 0.5, camera.k[1, 2]],
                [camera.k[0, 2], -0.5],
                [camera.k[0, 2], camera.height - 0.5],
            ]
        ),
    )
    limit = np.tan(WIDEST_HALF_ANGLE) if camera.distortion_model != "none" else np.inf
    view = np.array([edges[0, 0], edges[1, 0], edges[2, 1], edges[3, 1]])
    view = np.where(np.isnan(view), [-9, 9, -9, 9], view).clip(
        -min(limit, widest_ray(camera)), min(limit, widest_ray(camera))
    )
    slack = 0.01 * (view[1] - view[0])
    assert (
        left > view[0] - slack
        and right < view[1] + slack
        and top > view[2] - slack
        and bottom < view[3] + slack
    )
    fills_width, fills_height = (
        right - left > view[1] - view[0] - slack,
        bottom - top > view[3] - view[2] - slack,
    )
    assert (
        fills_width or fills_height
    )  # one way the whole view is kept, the other way it is cut to the proportions


def test_plain_halving_is_exactly_that() -> None:
    camera = Camera(
        "front", 640, 480, np.array([[400.0, 0, 330], [0, 400, 230], [0, 0, 1]]), np.eye(4)
    )
    rig = Rig("car", (camera,))
    assert input_size_for(rig, (240, 320)) == (240, 320, 2)
    calibration = make_calibration(rig, (240, 320), (240, 320))
    assert np.allclose(
        calibration.k[0],
        np.array([[200, 0, 330.5 / 2 - 0.5], [0, 200, 230.5 / 2 - 0.5], [0, 0, 1]]),
    )
    v, u = np.mgrid[:240, :320]
    assert np.allclose(calibration.grid[0], np.stack([u, v], axis=-1), atol=1e-4)


def test_wide_fisheye_is_bounded() -> None:
    k = np.array([[400.0, 0, 640], [0, 400, 640], [0, 0, 1]])
    camera = Camera("fish", 1280, 1280, k, np.eye(4), "equidistant", (0.0, 0.0, 0.0, 0.01))
    k = make_calibration(Rig("car", (camera,)), (1280, 1280), (400, 400)).k[0]
    assert np.rad2deg(np.arctan2(200, k[0, 0])) == pytest.approx(60, abs=0.1)


def test_cameras_of_different_sizes_share_an_input() -> None:
    k = np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
    big = Camera(
        "big", 1600, 900, np.array([[1200.0, 0, 799.5], [0, 1200, 449.5], [0, 0, 1]]), np.eye(4)
    )
    rig = Rig("car", (big, Camera("small", 640, 480, k, np.eye(4))))
    height, width, reduce = input_size_for(rig, (240, 320))
    assert (height, width, reduce) == (450, 800, 2)
    calibration = make_calibration(rig, (height, width), (240, 320))
    assert reduction(rig.cameras[1], (height, width)) == 2 and reduced_size(rig.cameras[1], 2) == (
        240,
        320,
    )
    small = calibration.grid[1]
    assert (
        small[..., 0].max() <= 319.5 and small[..., 1].max() <= 239.5
    )  # it lies at the top left; the padding is never sampled
    images = {"big": raw("rgb8", scene(904, 1600)[:900]), "small": raw("mono8", scene(480, 640))}
    frame, dropped = Preprocessor(rig, calibration, 3)(FrameSet(1, images))
    assert (
        not dropped
        and frame.present.all()
        and (frame.images[1, 240:, :320] == frame.images[1, 239, :320]).all()
        and (frame.images[1, :, 320:] == frame.images[1, :, 319:320]).all()
    )  # its border goes on


def test_calibration_that_does_not_fit() -> None:
    camera = Camera(
        "front", 1600, 900, np.array([[1200.0, 0, 800], [0, 1200, 450], [0, 0, 1]]), np.eye(4)
    )
    with pytest.raises(
        CalibrationError,
        match="camera front: 1600x900 pixels, even reduced by 8, do not fit the input of 100x100",
    ):
        make_calibration(Rig("car", (camera,)), (100, 100), (50, 50))
    with pytest.raises(CalibrationError, match="crop is"):
        make_calibration(Rig("car", (camera,)), (900, 1600), (50, 50), (0.5, 0.0, 0.5, 0.0))
    far = Camera(
        "front",
        640,
        480,
        np.array([[300.0, 0, 9999], [0, 300, 240], [0, 0, 1]]),
        np.eye(4),
        "plumb_bob",
        (-0.2, 0.0, 0.0, 0.0),
    )
    with pytest.raises(
        CalibrationError, match="no ray of its plumb_bob model falls into its image"
    ):
        make_calibration(Rig("car", (far,)), (480, 640), (240, 320))


# --- frames


def small_rig() -> tuple[Rig, Calibration]:
    k = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    rig = Rig("car", tuple(Camera(name, 64, 48, k, np.eye(4)) for name in ("a", "b", "c")))
    return rig, make_calibration(rig, (48, 64), (24, 32))


def test_a_camera_that_cannot_be_decoded_is_absent_and_says_why() -> None:
    rig, calibration = small_rig()
    preprocessor = Preprocessor(rig, calibration, 1)
    good = raw("mono8", scene())
    images = {"a": RawImage(5, "jpeg", JPEG[:-9]), "b": good}
    frame, dropped = preprocessor(FrameSet(3, images, {"c": "dead"}))
    assert (
        frame.present.tolist() == [False, True, False]
        and list(dropped) == ["a"]
        and "truncated" in dropped["a"]
    )
    assert (
        not frame.images[0].any()
        and not frame.images[2].any()
        and frame.stamps_ns.tolist() == [3, 1, 3]
    )
    assert np.array_equal(frame.images[1, ..., 0], luminance(scene()))
    for wrong, sentence in (
        (raw("mono8", scene(40, 64)), "image is 64x40 pixels: its calibration is for 64x48"),
        (RawImage(1, "h264", np.zeros(5, np.uint8)), "encoding 'h264' is not known"),
    ):
        _, dropped = preprocessor(FrameSet(3, {"a": wrong}))
        assert sentence in dropped["a"]


def test_frames_given_out_stay_as_they_are() -> None:
    rig, calibration = small_rig()
    preprocessor = Preprocessor(rig, calibration, 3)
    first, _ = preprocessor(FrameSet(1, {"a": raw("rgb8", scene())}))
    copy = first.images.copy()
    for _ in range(5):
        preprocessor(FrameSet(1, {"a": raw("rgb8", 255 - scene())}))
    assert np.array_equal(first.images, copy)


def test_preprocessors_leave_no_threads_of_their_own_behind() -> None:
    rig, calibration = small_rig()
    before = {
        thread for thread in threading.enumerate() if not thread.name.startswith("camera")
    }  # those are the one pool's
    for _ in range(3):
        frame, _ = Preprocessor(rig, calibration, 3)(
            FrameSet(1, {name: raw("rgb8", scene()) for name in rig.names})
        )
        assert all(frame.present)
    assert {
        thread for thread in threading.enumerate() if not thread.name.startswith("camera")
    } <= before
    assert sum(thread.name.startswith("camera") for thread in threading.enumerate()) < max(CPUS, 2)


def test_rig_and_calibration_must_agree() -> None:
    rig, calibration = small_rig()
    with pytest.raises(CalibrationError, match="the rig has cameras a, b, its calibration a, b, c"):
        Preprocessor(Rig("car", rig.cameras[:2]), calibration, 1)


@settings(max_examples=12, deadline=None)
@given(lenses(), st.sampled_from([(256, 512), (192, 320)]))
def test_to_source_is_the_inverse_of_the_grid(camera: Camera, working: tuple[int, int]) -> None:
    """Working pixels that carry their own coordinates, put back: each must land where the grid says
    it came from, to a working pixel."""
    rig = Rig("car", (camera,))
    height, width, reduce = input_size_for(rig, working)
    calibration = make_calibration(rig, (height, width), working)
    preprocessor = Preprocessor(rig, calibration, 1)
    v, u = np.mgrid[: working[0], : working[1]].astype(np.float32)
    at_u, at_v = preprocessor.to_source(u, 0), preprocessor.to_source(v, 0)
    assert at_u.shape == (camera.height, camera.width) and np.array_equal(
        np.isnan(at_u), np.isnan(at_v)
    )
    grid = (calibration.grid[0].astype(np.float64) + 0.5) * reduce - 0.5
    random = np.random.default_rng(0)
    rows, columns = random.integers(0, working[0], 500), random.integers(0, working[1], 500)
    source = grid[rows, columns]
    inside = (source >= 0).all(axis=1) & (source <= [camera.width - 1, camera.height - 1]).all(
        axis=1
    )
    x, y = np.rint(source[inside]).astype(int).T
    # Half a pixel is the rounding to the nearest; the rest is what the map's interpolation may add
    # (on a fisheye of over 200 degrees).
    k = calibration.k[0]
    rays = to_rays(camera, np.stack([x, y], axis=-1).astype(float))
    exact = rays * k[0, 0] + k[:2, 2]
    back = np.stack([at_u[y, x], at_v[y, x]], axis=-1)
    seen = np.isfinite(back).all(axis=1)
    assert seen.mean() > 0.97 and np.abs(back - exact)[seen].max() <= 0.5 + 0.25


def test_to_source_keeps_masks_and_marks_what_is_not_seen() -> None:
    camera = Camera(
        "front", 640, 480, np.array([[400.0, 0, 319.5], [0, 400, 239.5], [0, 0, 1]]), np.eye(4)
    )
    rig = Rig("car", (camera,))
    preprocessor = Preprocessor(
        rig, make_calibration(rig, (480, 640), (120, 320)), 1
    )  # half of the height is cut away
    mask = preprocessor.to_source(np.ones((120, 320), np.bool_), 0)
    depth = preprocessor.to_source(np.full((120, 320), 7, np.float32), 0)
    assert mask.dtype == np.bool_ and mask.shape == depth.shape == (480, 640)
    assert mask[120:360].all() and not mask[:120].any() and not mask[360:].any()
    assert np.array_equal(np.isfinite(depth), mask) and (depth[mask] == 7).all()


@pytest.mark.parametrize(
    ("bag", "channels", "working"),
    [("kitti_bag", 1, (320, 1024)), ("ddad_bag", 3, (320, 512)), ("nuscenes_bag", 3, (288, 512))],
)
def test_real_bags_decode_whole(
    bag: str, channels: int, working: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bag)
    with BagReader(path) as reader:
        rig = reader.rig()
        images = {e.camera: e.image for e in reader.events() if isinstance(e, ImageEvent)}
    height, width, _ = input_size_for(rig, working)
    calibration = make_calibration(rig, (height, width), working)
    frame, dropped = Preprocessor(rig, calibration, channels)(FrameSet(1, images))
    assert (
        not dropped
        and frame.present.all()
        and frame.images.shape == (len(rig.cameras), height, width, channels)
    )
    assert height >= working[0] and width >= working[1] and (calibration.grid > OUTSIDE).all()
    assert 40 < frame.images.mean() < 200 and frame.images.std() > 20


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize(
    ("model", "d"),
    [("none", ()), ("plumb_bob", (-0.2, 0.05, 1e-3, -2e-3)), ("equidistant", (0.01,) * 4)],
)
def test_a_rolled_camera_gets_an_upright_working_image(
    quarters: int, model: str, d: tuple[float, ...]
) -> None:
    """Two cameras in one place, one mounted rolled: the same points of the world lie on the same
    pixels of both input and working images, and depth goes back into the rolled source image."""
    level = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
    size = (48, 64) if quarters % 2 else (64, 48)
    k = np.array([[60.0, 0, 30], [0, 60, 22], [0, 0, 1]])
    rolled = level @ geometry.exp(np.array([0, 0, 0, 0, 0, -quarters * np.pi / 2]))
    turned_k = k.copy()
    if quarters % 2:
        turned_k[:2, 2] = k[1, 2], k[0, 2]
    cameras = [
        Camera("level", 64, 48, k, level, model, d),
        Camera("rolled", *size, turned_k, rolled, model, d),
    ]
    assert quarter_turns(cameras[0]) == 0 and quarter_turns(cameras[1]) == quarters
    assert upright_size(cameras[1]) == (48, 64)
    rig = Rig("pair", tuple(cameras))
    calibration = make_calibration(rig, (48, 64), (24, 32))
    assert np.allclose(calibration.T_base_camera[0], level)
    assert np.allclose(calibration.T_base_camera[1], level)
    random = np.random.default_rng(quarters)
    images = {
        camera.name: random.integers(0, 256, (camera.height, camera.width), np.uint8)
        for camera in cameras
    }
    preprocessor = Preprocessor(rig, calibration, 1)
    raws = {
        name: RawImage(1, "mono8", image.ravel(), *image.shape[::-1], image.shape[1])
        for name, image in images.items()
    }
    frame, dropped = preprocessor(FrameSet(1, raws))
    assert not dropped
    assert np.array_equal(frame.images[1, ..., 0], np.rot90(images["rolled"], quarters))
    # the working image's pinhole, the grid, and the lens: where a point of the world is
    points = random.uniform((4, -1, 0.9), (9, 1, 1.9), (50, 3))
    local = geometry.transform(inverse(calibration.T_base_camera[1]), points)
    rays = local[:, :2] / local[:, 2:]
    own = geometry.transform(inverse(rolled), points)
    source = to_pixels(cameras[1], own[:, :2] / own[:, 2:])
    u, v = source.T
    w, h = size
    expected = {
        1: np.stack([v, w - 1 - u], 1),
        2: np.stack([w - 1 - u, h - 1 - v], 1),
        3: np.stack([h - 1 - v, u], 1),
    }[quarters]
    lens = lens_at(cameras[1], (48, 64))
    assert lens.size == (48, 64)
    assert np.allclose(lens.pixels(rays), expected, atol=1e-6)
    assert np.allclose(lens.rays(expected), rays, atol=1e-5)
    change = lens.derivative(np.zeros((1, 2)))[0]
    assert np.allclose(change, 60 * np.eye(2), atol=1)  # upright: no patch is turned
    working = (rays * np.diag(calibration.k[1])[:2] + calibration.k[1][:2, 2]).astype(np.float32)
    columns, rows_at = (np.ascontiguousarray(axis[:, None]) for axis in working.T)
    at = np.asarray(cv2.remap(calibration.grid[1], columns, rows_at, cv2.INTER_LINEAR))[:, 0]
    inside = ((working >= 1) & (working <= (30, 22))).all(1) & (at > -1).all(1)
    assert inside.sum() > 10 and np.abs(at - expected)[inside].max() < 0.2
    # depth of the working image in the source image's own geometry
    ramp = np.tile(np.arange(24, dtype=np.float32)[:, None] + 1, (1, 32))
    back = preprocessor.to_source(ramp, 1)
    assert back.shape == size[::-1]
    upright_back = np.rot90(back, quarters)
    seen = np.isfinite(upright_back)
    assert seen.mean() > 0.7
    rows = [np.nanmean(row) for row in upright_back if np.isfinite(row).any()]
    assert (np.diff(rows) > -0.01).all() and rows[-1] > rows[0] + 15


@pytest.mark.parametrize("degrees", [-35, 30, 130, -70])
def test_any_roll_is_taken_out_and_small_ones_are_left(degrees: float) -> None:
    level = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
    k = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])

    def camera(angle: float) -> Camera:
        turn = geometry.exp(np.array([0, 0, 0, 0, 0, np.deg2rad(angle)]))
        return Camera("c", 64, 48, k, level @ turn)

    rig = Rig("one", (camera(degrees),))
    size = upright_size(rig.cameras[0])
    calibration = make_calibration(rig, size, (24, 32))
    assert np.allclose(calibration.T_base_camera[0], level)
    assert (calibration.grid[0, 8:16, 10:22] > -1).all()  # the middle is filled
    for small in (0.0, 5.0, -19.0):
        assert upright(camera(small)) is None and quarter_turns(camera(small)) == 0
    turned = make_calibration(Rig("a", (camera(98.0),)), (64, 48), (24, 32))
    assert np.allclose(turned.T_base_camera, camera(8.0).T_base_camera)
    below = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 1.4], [0, 0, 0, 1.0]])
    down = Camera("d", 64, 48, k, below)
    assert upright(down) is None  # has no up


def test_skew_is_part_of_every_map(tmp_path: Path) -> None:
    """K[0, 1] moves pixels by the same in the lens model, at points and in the grid."""
    k = np.array([[60.0, 4.0, 30], [0, 58, 22], [0, 0, 1]])
    rays = np.random.default_rng(0).uniform(-0.3, 0.3, (40, 2))
    for model, d in (
        ("none", ()),
        ("plumb_bob", (-0.2, 0.05, 1e-3, -2e-3)),
        ("equidistant", (0.01,) * 4),
    ):
        camera = Camera("c", 64, 48, k, np.eye(4), model, d)
        straight = Camera("c", 64, 48, np.where(k == 4.0, 0.0, k), np.eye(4), model, d)
        pixels, without = to_pixels(camera, rays), to_pixels(straight, rays)
        v = (without[:, 1] - 22) / 58
        assert np.allclose(pixels - without, np.stack([4.0 * v, 0 * v], 1))
        lens = lens_at(camera, (48, 64))
        assert np.allclose(lens.pixels(rays), pixels, atol=1e-9)
        assert np.allclose(lens.rays(pixels), rays, atol=1e-5)
        assert np.allclose(to_rays(camera, pixels), rays, atol=1e-9)
        assert lens.derivative(np.zeros((1, 2)))[0, 0, 1] == pytest.approx(4.0, abs=0.02)
        half = lens_at(camera, (24, 32))
        assert np.allclose(half.pixels(rays), (pixels + 0.5) / 2 - 0.5)
        calibration = make_calibration(Rig("c", (camera,)), (48, 64), (24, 32))
        v0, u0 = np.indices((24, 32))
        ray = np.stack(
            [
                (u0 - calibration.k[0, 0, 2]) / calibration.k[0, 0, 0],
                (v0 - calibration.k[0, 1, 2]) / calibration.k[0, 1, 1],
            ],
            -1,
        )
        filled = calibration.grid[0][..., 0] > OUTSIDE
        assert filled.mean() > 0.9
        assert np.allclose(calibration.grid[0][filled], to_pixels(camera, ray)[filled], atol=1e-4)


@pytest.mark.parametrize("count", [12, 14])
def test_thin_prism_and_tilted_sensor(count: int) -> None:
    """The longer polynomials, forth and back, and as OpenCV has them."""
    d = (-0.2, 0.05, 1e-3, -2e-3, 0.01, 0.02, -0.01, 0.003, 2e-3, -1e-3, 1e-3, 5e-4, 0.02, -0.03)
    k = np.array([[60.0, 0, 30], [0, 58, 22], [0, 0, 1]])
    camera = Camera("c", 64, 48, k, np.eye(4), "rational_polynomial", d[:count])
    rays = np.random.default_rng(0).uniform(-0.4, 0.4, (40, 2))
    points = np.column_stack([rays, np.ones(40)])
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, np.array(d[:count]))[0][:, 0]
    pixels = to_pixels(camera, rays)
    assert np.allclose(pixels, expected) and np.allclose(to_rays(camera, pixels), rays, atol=1e-9)
    shorter = Camera("c", 64, 48, k, np.eye(4), "rational_polynomial", d[:8])
    assert np.abs(to_pixels(shorter, rays) - pixels).max() > 0.02
    lens = lens_at(camera, (48, 64))
    assert np.allclose(lens.pixels(rays), pixels) and np.allclose(
        lens.rays(pixels), rays, atol=1e-4
    )


# --- models that OpenCV does not have

FISHEYE = (0.03, -0.01, 2e-3, -1e-3, 4e-3, -1e-3, 3e-3, -2e-3)  # k1 k2 p1 p2 k3 k4 sx1 sy1
OTHER_LENSES = {
    "thin_prism_fisheye": FISHEYE,
    "fov": (0.93,),
    "double_sphere": (-0.18, 0.59),
    "eucm": (0.63, 1.04),
}


def closed_inverse(model: str, d: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    """Rays of distorted points, by the inverse that the model's paper gives."""
    square = np.sum(points**2, axis=1, keepdims=True)
    if model == "fov":
        length = np.sqrt(square)
        return points / length * np.tan(length * d[0]) / (2 * np.tan(d[0] / 2))
    alpha, scale = (d[1], 1.0) if model == "double_sphere" else d
    z = (1 - scale * alpha**2 * square) / (
        alpha * np.sqrt(1 - (2 * alpha - 1) * scale * square) + 1 - alpha
    )
    if model == "eucm":
        return points / z
    xi = d[0]
    factor = (z * xi + np.sqrt(z**2 + (1 - xi**2) * square)) / (z**2 + square)
    return factor * points / (factor * z - xi)


@pytest.mark.parametrize("model", OTHER_LENSES)
def test_lenses_that_opencv_does_not_have(model: str) -> None:
    """Forth and back over 70 degrees, in pixels, in the lens of the followed points and in the
    grid; against the papers' own inverse, or OpenCV's polynomial at the angle's distance."""
    d = OTHER_LENSES[model]
    k = np.array([[30.0, 0, 30], [0, 29, 22], [0, 0, 1]])
    camera = Camera("c", 64, 48, k, np.eye(4), model, d)
    rng = np.random.default_rng(0)
    angle, around = rng.uniform(0.01, np.deg2rad(70), 60), rng.uniform(0, 2 * np.pi, 60)
    rays = (np.tan(angle) * np.array([np.cos(around), np.sin(around)])).T
    pixels = to_pixels(camera, rays)
    points = (pixels - k[:2, 2]) / np.diag(k)[:2]
    if model == "thin_prism_fisheye":
        k1, k2, p1, p2, k3, k4, sx, sy = d
        at_angle = rays * (angle / np.tan(angle))[:, None]
        flat = np.column_stack([at_angle, np.ones(60)])
        zero, polynomial = np.zeros(3), np.array([k1, k2, p1, p2, k3, 0, 0, 0, sx, 0, sy, 0])
        expected = cv2.projectPoints(flat, zero, zero, np.eye(3), polynomial)[0][:, 0]
        assert np.allclose(points, expected + k4 * angle[:, None] ** 8 * at_angle, atol=1e-9)
    else:
        assert np.allclose(closed_inverse(model, d, points), rays, atol=1e-9)
    assert np.allclose(to_rays(camera, pixels), rays, atol=1e-6)
    lens = lens_at(camera, (48, 64))
    assert np.allclose(lens.pixels(rays), pixels) and np.allclose(
        lens.rays(pixels), rays, atol=1e-4
    )
    calibration = make_calibration(Rig("c", (camera,)), (48, 64), (24, 32))
    assert (calibration.grid[0][..., 0] > OUTSIDE).mean() > 0.9


def test_a_fisheye_without_prism_is_the_plain_one() -> None:
    k, rays = np.array([[30.0, 0, 30], [0, 29, 22], [0, 0, 1]]), np.array([[0.9, -0.4], [0, 2.0]])
    k1, k2, _, _, k3, k4, _, _ = FISHEYE
    prism = Camera("c", 64, 48, k, np.eye(4), "thin_prism_fisheye", (k1, k2, 0, 0, k3, k4, 0, 0))
    plain = Camera("c", 64, 48, k, np.eye(4), "equidistant", (k1, k2, k3, k4))
    assert np.allclose(to_pixels(prism, rays), to_pixels(plain, rays))
    ideal = [
        to_pixels(Camera("c", 64, 48, k, np.eye(4), model), rays)
        for model in ("equidistant", "thin_prism_fisheye")
    ]
    assert np.allclose(*ideal) and ideal[0][0, 0] == pytest.approx(
        30 + 30 * np.arctan(np.hypot(0.9, 0.4)) * 0.9 / np.hypot(0.9, 0.4)
    )


@pytest.mark.parametrize(
    ("name", "given", "model", "d"),
    [
        ("THIN_PRISM_FISHEYE", FISHEYE, "thin_prism_fisheye", FISHEYE),
        ("ATAN", (0.93,), "fov", (0.93,)),
        ("ds", (-0.18, 0.59), "double_sphere", (-0.18, 0.59)),
        ("EUCM", (0.63, 1.04), "eucm", (0.63, 1.04)),
        ("SIMPLE_RADIAL", (-0.1,), "plumb_bob", (-0.1, 0, 0, 0)),
        ("radial_fisheye", (0.1, 0.2), "equidistant", (0.1, 0.2, 0, 0)),
        ("KannalaBrandt8", (0.1, 0.2, 0.3, 0.4), "equidistant", (0.1, 0.2, 0.3, 0.4)),
        ("full-opencv", (1, 2, 3, 4, 5, 6, 7, 8), "rational_polynomial", (1, 2, 3, 4, 5, 6, 7, 8)),
    ],
)
def test_lenses_by_the_names_of_other_tools(
    name: str, given: tuple[float, ...], model: str, d: tuple[float, ...]
) -> None:
    assert lens_model(name, given) == (model, d)


@pytest.mark.parametrize("model", ["omni", "mei", "scaramuzza", "fisheye624"])
def test_a_lens_without_a_defined_order_is_named(model: str) -> None:
    with pytest.raises(
        CalibrationError, match=f"camera c: distortion model '{model}' is not known"
    ):
        Camera("c", 64, 48, np.eye(3), np.eye(4), *lens_model(model, (0.1, 0.2, 0, 0, 1.1)))
