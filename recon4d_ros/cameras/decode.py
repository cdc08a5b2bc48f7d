"""One image message to pixels: every ROS encoding the package takes, and compressed ones, at full
size or averaged down by 2, 4 or 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.image_header import (
    COMPRESSED,
    JPEG_END,
    channel_count,
    compressed_kind,
    compressed_size,
    is_complete,
    is_wide,
)
from recon4d_ros.cameras.packed import (
    FLOATS,
    SURPLUS,
    float_range,
    float_values,
    in_bytes,
    packed_kind,
    unpacked,
)
from recon4d_ros.errors import ImageError
from recon4d_ros.types import RawImage

AREA = cv2.INTER_AREA
REDUCTIONS = (1, 2, 4, 8)
# larger than any camera's: a header that claims more is damaged, and decoding would take the memory
MOST_PIXELS = 1 << 25
DEPTHS = (8, 10, 12, 14, 16)  # significant bits that cameras have
_BLOCK = 16
_ROWS = 32  # of an image, that its byte order is judged by
# One byte order is the image's where the other makes it this much rougher, and rough at all.
_ROUGH, _ROUGHER = 0.2, 2.0
_JPEG_GREY = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_JPEG_COLOR = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclass(frozen=True)
class _Layout:
    """How a raw encoding lies in memory, and OpenCV's conversions to grey and RGB (None: it already
    is). shared: whether two pixels share a colour."""

    channels: int
    bytes_per_channel: int
    to_grey: int | None
    to_rgb: int | None
    shared: bool = False


@dataclass(frozen=True)
class _Planes:
    """A plane of grey and, below it, colour at half the size. to_rgb: OpenCV's conversion. apart:
    whether the two colours have a plane each, of half the step."""

    to_rgb: int
    apart: bool = False


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's
# first two and the second row's.
_BAYER = {
    f"bayer_{ros}": (
        getattr(cv2, f"COLOR_Bayer{opencv}2GRAY"),
        getattr(cv2, f"COLOR_Bayer{opencv}2RGB"),
    )
    for ros, opencv in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB"))
}
_MONO8 = _Layout(1, 1, None, cv2.COLOR_GRAY2RGB)
_MONO16 = _Layout(1, 2, None, cv2.COLOR_GRAY2RGB)
NAMED_BITS = (10, 12, 14)  # in words of sixteen
_LAYOUTS = {
    "mono8": _MONO8,
    "mono16": _MONO16,
    "rgb8": _Layout(3, 1, cv2.COLOR_RGB2GRAY, None),
    "bgr8": _Layout(3, 1, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(4, 1, cv2.COLOR_RGBA2GRAY, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(4, 1, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
    "rgb16": _Layout(3, 2, cv2.COLOR_RGB2GRAY, None),
    "bgr16": _Layout(3, 2, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "rgba16": _Layout(4, 2, cv2.COLOR_RGBA2GRAY, cv2.COLOR_RGBA2RGB),
    "bgra16": _Layout(4, 2, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
    **{
        f"{name}{bits}": _Layout(1, bits // 8, *codes)
        for name, codes in _BAYER.items()
        for bits in (8, 16)
    },
    **{f"mono{bits}": _MONO16 for bits in NAMED_BITS},
    **{f"{name}{bits}": _Layout(1, 2, *_BAYER[name]) for name in _BAYER for bits in NAMED_BITS},
    **dict.fromkeys(
        ("yuv422", "uyvy"), _Layout(2, 1, cv2.COLOR_YUV2GRAY_UYVY, cv2.COLOR_YUV2RGB_UYVY, True)
    ),
    **dict.fromkeys(
        ("yuv422_yuy2", "yuyv"),
        _Layout(2, 1, cv2.COLOR_YUV2GRAY_YUY2, cv2.COLOR_YUV2RGB_YUY2, True),
    ),
    "yvyu": _Layout(2, 1, cv2.COLOR_YUV2GRAY_YVYU, cv2.COLOR_YUV2RGB_YVYU, True),
    # OpenCV names the 565 formats from the lowest bits, all others from the highest
    "rgb565": _Layout(2, 1, cv2.COLOR_BGR5652GRAY, cv2.COLOR_BGR5652RGB),
    # arrays of numbers, as OpenCV's own names go through cv_bridge: colours in OpenCV's order
    "8uc1": _MONO8,
    "8uc3": _Layout(3, 1, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "8uc4": _Layout(4, 1, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
    "16uc1": _MONO16,
    "16uc3": _Layout(3, 2, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "16uc4": _Layout(4, 2, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
}
_PLANES = {
    "nv12": _Planes(cv2.COLOR_YUV2RGB_NV12),
    "nv21": _Planes(cv2.COLOR_YUV2RGB_NV21),
    **dict.fromkeys(("yuv420", "yuv420p", "i420"), _Planes(cv2.COLOR_YUV2RGB_I420, True)),
    "yv12": _Planes(cv2.COLOR_YUV2RGB_YV12, True),
}
# Semi-planar with more colour than NV12 and NV21, to which they are averaged down: rows and columns
# of colour for each of its own.
_FINER = {"nv24": ("nv12", 1, 1), "nv16": ("nv12", 1, 2), "nv61": ("nv21", 1, 2)}
# The same by the names of video4linux, GenICam (PFNC) and others; `packed.py` has packed bits.
_OTHER_NAMES = {
    **dict.fromkeys(("y8", "grey", "gray", "gray8", "grey8", "l8"), "mono8"),
    **dict.fromkeys(("y10", "gray10"), "mono10"),
    **dict.fromkeys(("y12", "gray12"), "mono12"),
    **dict.fromkeys(("y16", "gray16", "grey16", "l16", "gray16le"), "mono16"),
    **dict.fromkeys(("rgb", "rgb24", "rgb888", "r8g8b8"), "rgb8"),
    **dict.fromkeys(("bgr", "bgr24", "bgr888", "b8g8r8"), "bgr8"),
    **dict.fromkeys(("rgb48", "rgb48le"), "rgb16"),
    **dict.fromkeys(("bgr48", "bgr48le"), "bgr16"),
    # a name of 8888 counts from the highest byte of a word (DRM, libcamera), the others do not
    **dict.fromkeys(
        ("rgba", "rgba32", "r8g8b8a8", "rgbx", "rgbx8", "xbgr8888", "abgr8888"), "rgba8"
    ),
    **dict.fromkeys(
        ("bgra", "bgra32", "b8g8r8a8", "bgrx", "bgrx8", "xrgb8888", "argb8888"), "bgra8"
    ),
    "rgba8888": "rgba8",
    "bgra8888": "bgra8",
    **dict.fromkeys(
        ("yuv422_uyvy", "yuv422_8_uyvy", "yuv422packed", "ycbcr422_8_cbycry", "uyvy422"), "uyvy"
    ),
    **dict.fromkeys(("yuy2", "yuv422_yuyv", "yuv422_8", "ycbcr422_8", "yuyv422"), "yuyv"),
    "rgb16_565": "rgb565",
    **dict.fromkeys(("mjpeg", "mjpg", "jpg"), "jpeg"),
    **{
        f"{prefix}{ros}{bits}": f"bayer_{ros}{bits}"
        for prefix in ("", "s")
        for ros in ("rggb", "bggr", "gbrg", "grbg")
        for bits in (8, *NAMED_BITS, 16)
    },
    "ba81": "bayer_bggr8",
    **{
        f"bayer{between}{genicam}{bits}": f"bayer_{ros}{bits}"
        for genicam, ros in (("rg", "rggb"), ("bg", "bggr"), ("gb", "gbrg"), ("gr", "grbg"))
        for bits in (8, *NAMED_BITS, 16)
        for between in ("", "_")
    },
}
ENCODINGS = (*_LAYOUTS, *_PLANES, *_FINER, *FLOATS, *COMPRESSED)


def is_known(encoding: str) -> bool:
    """Whether an encoding, in lower case, can be decoded, by whichever of its names."""
    return encoding in ENCODINGS or encoding in _OTHER_NAMES or packed_kind(encoding) is not None


def decode(image: RawImage, channels: int, reduce: int = 1, bits: int = 0) -> NDArray[np.uint8]:
    """Pixels [ceil(height / reduce), ceil(width / reduce), channels] uint8: grey (channels = 1) or
    RGB (3).

    reduce: 1, 2, 4 or 8; each pixel is the average of reduce x reduce source pixels (JPEG: its
    scaled inverse DCT, which costs less than the full one), so that source pixel u lies at (u +
    0.5) / reduce - 0.5. bits: of sixteen how many are significant; the highest eight of them are
    taken. 0: as many as this image's values need (`significant_bits`). Raises ImageError with one
    sentence: unknown encoding, wrong length, broken or truncated data.
    """
    if reduce not in REDUCTIONS or channels not in (1, 3):
        raise ValueError(
            f"reduce is {reduce}, channels {channels}: expected 1, 2, 4 or 8, and 1 or 3"
        )
    image = _plainly_named(image)
    if image.encoding in FLOATS:
        image, bits = in_bytes(image, bits), 0
    if image.encoding in COMPRESSED:
        pixels = _decode_compressed(image, channels, reduce, bits)
    elif image.encoding in _PLANES:
        pixels = _decode_planes(image, channels, reduce)
    else:
        pixels = _decode_raw(image, channels, reduce, bits)
    return pixels.reshape(*pixels.shape[:2], channels)


def _plainly_named(image: RawImage) -> RawImage:
    """With the name of its encoding that is used here. Packed bits become eight bits, semi-planar
    images of finer colour NV12 or NV21."""
    if name := _OTHER_NAMES.get(image.encoding):
        return replace(image, encoding=name)
    if packed_kind(image.encoding):
        return unpacked(image)
    if image.encoding not in _FINER:
        return image
    name, rows, columns = _FINER[image.encoding]
    width, height, step = image.width, image.height, image.step or image.width
    _check_even(image, width, height)
    need = (1 + 2 // columns) * step * height
    if step < width or not _holds(image, need):
        raise _wrong_planes(image, width, height, step, need)
    luma = image.data[: step * height].reshape(height, step)[:, :width]
    table = image.data[step * height : need].reshape(height, 2 * step // columns)
    color = table[:, : 2 * width // columns].reshape(height // rows, width // columns, 2)
    half = cv2.resize(color, (width // 2, height // 2), interpolation=AREA)
    data = np.concatenate([luma.ravel(), np.asarray(half, np.uint8).ravel()])
    return replace(image, encoding=name, data=data, step=width)


def source_size(image: RawImage) -> tuple[int, int]:
    """(width, height) without decoding. Raises ImageError if the image does not say, or says more
    than any camera has."""
    if image.encoding not in _FINER and not packed_kind(image.encoding):
        image = _plainly_named(image)
    size: tuple[int, int] | None = (image.width, image.height)
    if image.encoding in COMPRESSED:
        size = compressed_size(image.data)
    elif image.encoding in _PLANES and image.height and not _has_planes(image, image.height):
        rows = image.height * 2 // 3  # some drivers count the rows of all planes
        size = (image.width, rows) if _has_planes(image, rows) else size
    if size is None:
        raise ImageError(
            f"{image.encoding} of {len(image.data)} bytes has no header: expected a whole"
            f" {image.encoding}"
        )
    if size[0] * size[1] > MOST_PIXELS:
        raise ImageError(
            f"{image.encoding} says {size[0]}x{size[1]} pixels: expected at most"
            f" {MOST_PIXELS >> 20} million"
        )
    return size


def significant_bits(image: RawImage) -> int:
    """Of an image of sixteen bits how many its values need, one of DEPTHS: cameras of 10 or 12 bits
    often leave the upper ones empty; where the encoding's name says how many, at least these. Of
    an image of floats how many its white takes: 1 (white is 1), 8 or 16. 0 for other images.

    Of one image only: a dark one needs fewer than its camera has. Raises ImageError.
    """
    if packed_kind(image.encoding):
        return 0
    image = _plainly_named(image)
    if image.encoding in FLOATS:
        return float_range(float_values(image))
    values = _values16(image)
    if values is None or not values.size:
        return 0
    top, named = int(values.max()), image.encoding[-2:]
    least = int(named) if named.isdigit() and int(named) in NAMED_BITS else 0
    return next(bits for bits in DEPTHS if top < 1 << bits and bits >= least)


def shown_byte_order(image: RawImage) -> bool | None:
    """Whether the values of an image of sixteen bits are big-endian; None where they do not say,
    and for other images. Drivers that copy `is_bigendian` from elsewhere are common.

    Neighbouring pixels are alike; with the bytes exchanged, the lower byte's noise is the value.
    Dark images and noise look the same both ways. Raises ImageError.
    """
    layout = _LAYOUTS.get(_OTHER_NAMES.get(image.encoding, image.encoding))
    if layout is None or layout.bytes_per_channel != 2:
        return None
    told, other = (_roughness(_wide(one, layout)) for one in (image, other_byte_order(image)))
    if max(told, other) < _ROUGH or max(told, other) < _ROUGHER * min(told, other):
        return None
    return image.big_endian == (told < other)


def other_byte_order(image: RawImage) -> RawImage:
    return replace(image, big_endian=not image.big_endian)


def in_shown_byte_order(image: RawImage) -> RawImage:
    """By this image alone, where nothing is known of its camera. Raises ImageError."""
    shown = shown_byte_order(image)
    return image if shown in (None, image.big_endian) else other_byte_order(image)


def _roughness(values: NDArray[np.uint16]) -> float:
    """Mean difference of pixels two apart in a row (a Bayer pattern repeats) by their deviation:
    over 1 where all is noise."""
    rows = values[:: max(len(values) // _ROWS, 1)].astype(np.int32)
    spread = float(rows.std()) if rows.size else 0.0
    if not spread or rows.shape[1] < 3:
        return 0.0
    return float(np.abs(rows[:, 2:] - rows[:, :-2]).mean()) / spread


def _values16(image: RawImage) -> NDArray[np.uint16] | None:
    layout = _LAYOUTS.get(image.encoding)
    if layout is not None and layout.bytes_per_channel == 2:
        return _wide(image, layout)
    if image.encoding in COMPRESSED and is_wide(image.data):
        source_size(image)
        pixels = _imdecode(image, _whole(image), cv2.IMREAD_UNCHANGED)
        return pixels if pixels.dtype == np.uint16 else None
    return None


def _decode_compressed(image: RawImage, channels: int, reduce: int, bits: int) -> NDArray[np.uint8]:
    width, height = source_size(image)
    data = _whole(image)
    bayer = _bayer_inside(image)
    if bayer:
        mosaic = _narrow(_imdecode(image, data, cv2.IMREAD_UNCHANGED), bits)
        if mosaic.ndim != 2:
            raise ImageError(
                f"{image.encoding} of a Bayer image has {mosaic.shape[2]} channels: expected one"
            )
        code = _BAYER[bayer][channels == 3]
        return _average(_attempt(lambda: cv2.cvtColor(mosaic, code), image), reduce)
    scaled = (
        compressed_kind(image.data) == "jpeg" and reduce > 1
    )  # OpenCV subsamples other formats' "reduced" sizes; those are averaged below
    if scaled:
        flags = (_JPEG_GREY if channels == 1 else _JPEG_COLOR)[reduce]
    elif is_wide(image.data):
        flags = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    else:
        flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    pixels = _narrow(_imdecode(image, data, flags), bits)
    step = reduce if scaled else 1
    if pixels.shape[:2] != (-(-height // step), -(-width // step)):
        raise ImageError(
            f"{image.encoding} says {width}x{height} pixels and decodes to"
            f" {pixels.shape[1]}x{pixels.shape[0]}"
        )
    pixels = pixels if scaled else _average(pixels, reduce)
    return (
        pixels if channels == 1 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
    )


def _whole(image: RawImage) -> NDArray[np.uint8]:
    """The data of a compressed image that is all there. Raises ImageError.

    A JPEG without its end marker may have all of its scan. If it has, what is put behind the scan
    changes no pixel: the decoder has no more to read.
    """
    if is_complete(image.data):
        return image.data
    if compressed_kind(image.data) == "jpeg":  # a PNG may be called one
        end = np.frombuffer(JPEG_END, np.uint8)
        other = np.tile(np.array([0x35, 0xCA, 0x59, 0x9C], np.uint8), 256)
        ended = np.concatenate([image.data, end])
        longer = np.concatenate([image.data, other, end])
        try:
            first, second = (_imdecode(image, one, cv2.IMREAD_COLOR) for one in (ended, longer))
            if np.array_equal(first, second):
                return ended
        except ImageError:
            pass  # it ends before its scan
    raise ImageError(
        f"{image.encoding} of {len(image.data)} bytes is truncated: its end marker is missing"
    )


def _bayer_inside(image: RawImage) -> str:
    """The pattern of a mosaic that was compressed as it is: the message's format says Bayer, and
    the image has one channel (else its sender made colour of it)."""
    pattern = image.inside[:10]
    return pattern if pattern in _BAYER and channel_count(image.data) == 1 else ""


def _decode_planes(image: RawImage, channels: int, reduce: int) -> NDArray[np.uint8]:
    width, height = source_size(image)
    _check_even(image, width, height)
    step = image.step or width
    apart = _PLANES[image.encoding].apart
    if step < width or not _has_planes(image, height) or (apart and step % 2):
        raise _wrong_planes(image, width, height, step, step * height * 3 // 2)
    if channels == 1:
        grey = np.ndarray(
            (height, width), np.uint8, np.ascontiguousarray(image.data), strides=(step, 1)
        )
        return _average(grey, reduce)
    rows = np.ascontiguousarray(image.data[: step * height * 3 // 2])
    if step != width and apart:
        luma = rows[: step * height].reshape(height, step)[:, :width]
        chroma = rows[step * height :].reshape(height, step // 2)[:, : width // 2]
        table = np.concatenate([luma.ravel(), chroma.ravel()]).reshape(height * 3 // 2, width)
    else:
        table = rows.reshape(height * 3 // 2, step)[:, :width]
    table = np.ascontiguousarray(table)
    code = _PLANES[image.encoding].to_rgb
    return _average(_attempt(lambda: cv2.cvtColor(table, code), image), reduce)


def _has_planes(image: RawImage, height: int) -> bool:
    return _holds(image, (image.step or image.width) * height * 3 // 2)


def _holds(image: RawImage, need: int) -> bool:
    """Whether the buffer has so many bytes, and not so many more that it is another image."""
    return need <= len(image.data) <= need + need // SURPLUS


def _check_even(image: RawImage, width: int, height: int) -> None:
    """Raises ImageError."""
    if width <= 0 or height <= 0 or width % 2 or height % 2:
        raise ImageError(
            f"{image.encoding} of {width}x{height} pixels: four pixels share a colour, expected an"
            " even width and height"
        )


def _wrong_planes(image: RawImage, width: int, height: int, step: int, need: int) -> ImageError:
    return ImageError(
        f"{image.encoding} of {width}x{height} pixels, step {step}, needs {need} bytes: got"
        f" {len(image.data)}"
    )


def _decode_raw(image: RawImage, channels: int, reduce: int, bits: int) -> NDArray[np.uint8]:
    layout = _LAYOUTS.get(image.encoding)
    if layout is None:
        raise ImageError(
            f"encoding {image.encoding!r} is not known: expected one of {', '.join(ENCODINGS)}"
        )
    if layout.shared and image.width % 2:
        raise ImageError(
            f"{image.encoding} of {image.width}x{image.height} pixels: two pixels share a colour,"
            " expected an even width"
        )
    if layout.bytes_per_channel == 2 and (bits or significant_bits(image)) < 16:
        pixels = _narrow(_wide(image, layout), bits or significant_bits(image))
    else:
        # A view of the message; of sixteen-bit values only the high byte, which is >> 8.
        step = _row_step(image, layout)
        high = 0 if image.big_endian else layout.bytes_per_channel - 1
        strides = (step, layout.channels * layout.bytes_per_channel, layout.bytes_per_channel)
        data = np.ascontiguousarray(image.data)[high:]
        pixels = np.ndarray(
            (image.height, image.width, layout.channels), np.uint8, data, strides=strides
        )
        if image.encoding == "rgb565" and image.big_endian:
            pixels = np.ascontiguousarray(pixels[..., ::-1])  # its two bytes are one word
        elif layout.bytes_per_channel > 1 or step % layout.channels:
            pixels = np.ascontiguousarray(pixels)  # strides that OpenCV's matrices cannot express
    code = layout.to_grey if channels == 1 else layout.to_rgb
    # where averaging commutes with conversion, it makes it cheaper
    early = layout.channels >= 3 or layout in (_MONO8, _MONO16)
    pixels = _average(pixels, reduce) if early else pixels
    if code is not None:
        pixels = _attempt(lambda: cv2.cvtColor(pixels, code), image)
    return pixels if early else _average(pixels, reduce)


def _row_step(image: RawImage, layout: _Layout) -> int:
    """Bytes from row to row. Raises ImageError if the data is not the image's."""
    if image.width <= 0 or image.height <= 0:
        raise ImageError(f"image size is {image.width}x{image.height}: expected above zero")
    row = image.width * layout.channels * layout.bytes_per_channel
    step, have = image.step or row, len(image.data)
    if have == row * image.height:
        return row  # whatever the step says: there is room for no other
    if step < row:
        raise ImageError(
            f"{image.encoding} of {image.width} pixels needs {row} bytes per row: step is {step}"
        )
    least, most = step * (image.height - 1) + row, step * image.height
    if least <= have <= most:  # some drivers leave the last row's padding away
        return step
    # a buffer that is longer than the image: its size is some block's
    if most < have <= most + most // SURPLUS and have % _BLOCK == 0:
        real, odd = divmod(have, image.height)
        if odd:
            return step
        if _alignment(real) > max(_alignment(step), 8):  # rows are padded, and step is not told
            return real
    raise ImageError(
        f"{image.encoding} of {image.width}x{image.height} pixels, step {step}, needs"
        f" {most} bytes: got {have}"
    )


def _alignment(size: int) -> int:
    """The largest power of two that divides a number of bytes."""
    return size & -size


def _wide(image: RawImage, layout: _Layout) -> NDArray[np.uint16]:
    """[height, width, channels] of sixteen-bit values, a view. Raises ImageError."""
    shape = (image.height, image.width, layout.channels)
    strides = (_row_step(image, layout), 2 * layout.channels, 2)
    kind = np.dtype(">u2" if image.big_endian else "<u2")
    return np.ndarray(shape, kind, np.ascontiguousarray(image.data), strides=strides)


def _narrow(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The highest eight of `bits` significant bits (0: of as many as the values need); what is
    above them is white."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.newbyteorder("=") != np.uint16:
        raise ImageError(f"an image of {pixels.dtype} values: expected 8 or 16 bits")
    if not bits:
        top = int(pixels.max(initial=0))
        bits = next(depth for depth in DEPTHS if top < 1 << depth)
    shifted = np.right_shift(pixels, bits - 8)
    return np.ascontiguousarray(np.minimum(shifted, 255).astype(np.uint8))


def _average(pixels: NDArray[np.uint8], reduce: int) -> NDArray[np.uint8]:
    """Blocks of reduce x reduce pixels averaged; a last incomplete block is filled up with the
    border's pixels."""
    if reduce == 1:
        return pixels
    height, width = (-(-size // reduce) for size in pixels.shape[:2])
    below, right = height * reduce - pixels.shape[0], width * reduce - pixels.shape[1]
    if below or right:
        pixels = np.asarray(
            cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8
        )
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=AREA), np.uint8)


def _imdecode(image: RawImage, data: NDArray[np.uint8], flags: int) -> NDArray[Any]:
    if flags != cv2.IMREAD_UNCHANGED:  # which turns nothing, and is -1
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    return _attempt(lambda: cv2.imdecode(data, flags), image)


def _attempt(convert: Callable[[], Any], image: RawImage) -> NDArray[Any]:
    """OpenCV raises for some broken images and gives None for others."""
    try:
        pixels = convert()
    except cv2.error as error:
        why = " ".join(str(error.err or error).split())
        raise ImageError(
            f"{image.encoding} of {len(image.data)} bytes cannot be decoded: {why}"
        ) from error
    if pixels is None:
        raise ImageError(
            f"{image.encoding} of {len(image.data)} bytes is broken: it cannot be decoded"
        )
    return np.asarray(pixels)
