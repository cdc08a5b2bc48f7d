"""One image message to pixels: every ROS encoding the package takes, and JPEG and PNG, at full size
or averaged down by 2, 4 or 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.image_header import compressed_size, is_complete
from recon4d_ros.errors import ImageError
from recon4d_ros.types import RawImage

REDUCTIONS = (1, 2, 4, 8)
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
    is)."""

    channels: int
    bytes_per_channel: int
    to_grey: int | None
    to_rgb: int | None


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's
# first two and the second row's.
_LAYOUTS = {
    "mono8": _Layout(1, 1, None, cv2.COLOR_GRAY2RGB),
    "mono16": _Layout(1, 2, None, cv2.COLOR_GRAY2RGB),
    "rgb8": _Layout(3, 1, cv2.COLOR_RGB2GRAY, None),
    "bgr8": _Layout(3, 1, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(4, 1, cv2.COLOR_RGBA2GRAY, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(4, 1, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
    "rgb16": _Layout(3, 2, cv2.COLOR_RGB2GRAY, None),
    "bgr16": _Layout(3, 2, cv2.COLOR_BGR2GRAY, cv2.COLOR_BGR2RGB),
    "rgba16": _Layout(4, 2, cv2.COLOR_RGBA2GRAY, cv2.COLOR_RGBA2RGB),
    "bgra16": _Layout(4, 2, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2RGB),
    **{
        f"bayer_{ros}{bits}": _Layout(
            1,
            bits // 8,
            getattr(cv2, f"COLOR_Bayer{opencv}2GRAY"),
            getattr(cv2, f"COLOR_Bayer{opencv}2RGB"),
        )
        for ros, opencv in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB"))
        for bits in (8, 16)
    },
    **dict.fromkeys(
        ("yuv422", "uyvy"), _Layout(2, 1, cv2.COLOR_YUV2GRAY_UYVY, cv2.COLOR_YUV2RGB_UYVY)
    ),
    **dict.fromkeys(
        ("yuv422_yuy2", "yuyv"), _Layout(2, 1, cv2.COLOR_YUV2GRAY_YUY2, cv2.COLOR_YUV2RGB_YUY2)
    ),
}
ENCODINGS = (*_LAYOUTS, "jpeg", "png")


def decode(image: RawImage, channels: int, reduce: int = 1) -> NDArray[np.uint8]:
    """Pixels [ceil(height / reduce), ceil(width / reduce), channels] uint8: grey (channels = 1) or
    RGB (3).

    reduce: 1, 2, 4 or 8; each pixel is the average of reduce x reduce source pixels (JPEG: its
    scaled inverse DCT, which costs less than the full one), so that source pixel u lies at (u +
    0.5) / reduce - 0.5. Sixteen bits become eight by >> 8. Raises ImageError with one sentence:
    unknown encoding, wrong length, broken or truncated JPEG or PNG.
    """
    if reduce not in REDUCTIONS or channels not in (1, 3):
        raise ValueError(
            f"reduce is {reduce}, channels {channels}: expected 1, 2, 4 or 8, and 1 or 3"
        )
    pixels = (
        _decode_compressed(image, channels, reduce)
        if image.encoding in ("jpeg", "png")
        else _decode_raw(image, channels, reduce)
    )
    return pixels.reshape(*pixels.shape[:2], channels)


def source_size(image: RawImage) -> tuple[int, int]:
    """(width, height) without decoding. Raises ImageError if the image does not say."""
    size = (
        compressed_size(image.data)
        if image.encoding in ("jpeg", "png")
        else (image.width, image.height)
    )
    if size is None:
        raise ImageError(
            f"{image.encoding} of {len(image.data)} bytes has no header: expected a whole"
            f" {image.encoding}"
        )
    return size


def _decode_compressed(image: RawImage, channels: int, reduce: int) -> NDArray[np.uint8]:
    width, height = source_size(image)
    if not is_complete(image.data):
        raise ImageError(
            f"{image.encoding} of {len(image.data)} bytes is truncated: its end marker is missing"
        )
    scaled = (
        image.encoding == "jpeg" and reduce > 1
    )  # OpenCV subsamples other formats' "reduced" sizes; those are averaged below
    if scaled:
        flags = (_JPEG_GREY if channels == 1 else _JPEG_COLOR)[reduce]
    else:
        flags = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    pixels = _attempt(
        lambda: cv2.imdecode(image.data, flags | cv2.IMREAD_IGNORE_ORIENTATION), image
    )
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


def _decode_raw(image: RawImage, channels: int, reduce: int) -> NDArray[np.uint8]:
    layout = _LAYOUTS.get(image.encoding)
    if layout is None:
        raise ImageError(
            f"encoding {image.encoding!r} is not known: expected one of {', '.join(ENCODINGS)}"
        )
    if image.width <= 0 or image.height <= 0:
        raise ImageError(f"image size is {image.width}x{image.height}: expected above zero")
    if layout.channels == 2 and image.width % 2:
        raise ImageError(
            f"{image.encoding} of {image.width}x{image.height} pixels: two pixels share a colour,"
            " expected an even width"
        )
    row = image.width * layout.channels * layout.bytes_per_channel
    step = image.step or row
    if step < row:
        raise ImageError(
            f"{image.encoding} of {image.width} pixels needs {row} bytes per row: step is {step}"
        )
    if (
        not step * (image.height - 1) + row <= len(image.data) <= step * image.height
    ):  # some drivers leave the last row's padding away
        raise ImageError(
            f"{image.encoding} of {image.width}x{image.height} pixels, step {step}, needs"
            f" {step * image.height} bytes: got {len(image.data)}"
        )
    # A view of the message; of sixteen-bit values only the high byte, which is >> 8.
    high = 0 if image.big_endian else layout.bytes_per_channel - 1
    strides = (step, layout.channels * layout.bytes_per_channel, layout.bytes_per_channel)
    data = np.ascontiguousarray(image.data)[high:]
    pixels = np.ndarray(
        (image.height, image.width, layout.channels), np.uint8, data, strides=strides
    )
    if layout.bytes_per_channel > 1 or step % layout.channels:
        pixels = np.ascontiguousarray(pixels)  # strides that OpenCV's matrices cannot express
    code = layout.to_grey if channels == 1 else layout.to_rgb
    early = layout.channels >= 3 or image.encoding.startswith(
        "mono"
    )  # where averaging commutes with conversion, it makes it cheaper
    pixels = _average(pixels, reduce) if early else pixels
    if code is not None:
        pixels = _attempt(lambda: cv2.cvtColor(pixels, code), image)
    return pixels if early else _average(pixels, reduce)


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
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _attempt(convert: Callable[[], Any], image: RawImage) -> NDArray[np.uint8]:
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
    return np.asarray(pixels, np.uint8)
