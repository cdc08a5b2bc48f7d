"""Raw images whose pixels are not whole bytes of one sample each: packed bits of industrial and
embedded cameras, and values in floating point. Both become images of eight bits."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import ImageError
from recon4d_ros.types import RawImage

_BAYER = {"rg": "rggb", "bg": "bggr", "gb": "gbrg", "gr": "grbg"}
# GenICam PFNC: `p` is one stream of bits, least significant first; `Packed` is GigE Vision's, two
# pixels in three bytes. MIPI CSI-2 (video4linux, libcamera): whole bytes first, the rest behind.
_PACKED = re.compile(
    r"(?:mono|bayer_?(?P<genicam>rg|bg|gb|gr)|bayer_(?P<ros>rggb|bggr|gbrg|grbg))"
    r"_?(?P<bits>10|12|14)_?(?P<how>packed|p|csi2p)"
)
_MIPI = re.compile(r"(?:y|r|s(?P<ros>rggb|bggr|gbrg|grbg))(?P<bits>10|12|14)(?:_csi2)?p")
FLOATS = {
    f"{bits}fc{channels}": (bits // 8, channels) for bits in (32, 64) for channels in (1, 3, 4)
}
UNIT, BYTE, WORD = 1, 8, 16  # what a float's white is: 1, 255, 65535
_WHITE = {UNIT: 1.0, BYTE: 255.0, WORD: 65535.0}
# Filters overshoot and single pixels are hot, so that the largest value says little: 1 % of the
# values may lie above twice their white, and 0.1 % (lamps at night) above 16 times. The whites are
# 255 times apart.
_MOST = ((0.99, 2.0), (0.999, 16.0))
_LEAST = (0.01, -0.3)  # and 1 % below this part of white: filters stay above -0.25
_SAMPLED = 1 << 16  # pixels that quantiles are taken of
SURPLUS = 8  # a buffer longer by more than this part is another image than is said
_HOLES = 0.02  # share of values that may be not finite (dead pixels)


def packed_kind(encoding: str) -> tuple[str, int, str] | None:
    """(encoding of eight bits, bits packed, how: `p`, `packed` or `csi2p`); None for others."""
    if found := _PACKED.fullmatch(encoding):
        pattern, how = found["ros"] or _BAYER.get(found["genicam"] or ""), found["how"]
    elif found := _MIPI.fullmatch(encoding):
        pattern, how = found["ros"], "csi2p"
    else:
        return None
    bits = int(found["bits"])
    if how == "packed" and bits == 14:  # GigE Vision has none
        return None
    return (f"bayer_{pattern}8" if pattern else "mono8"), bits, how


def unpacked(image: RawImage) -> RawImage:
    """The upper eight bits of each pixel of a packed image. Raises ImageError."""
    kind = packed_kind(image.encoding)
    assert kind is not None
    encoding, bits, how = kind
    pixels, size = (2, 3) if how == "packed" else {10: (4, 5), 12: (2, 3), 14: (4, 7)}[bits]
    width, height, have = image.width, image.height, len(image.data)
    row = -(-width * size // pixels)
    step = image.step if image.step >= row and have >= image.step * (height - 1) + row else row
    whole = -(-width * height * size // pixels)
    most = max(step * height, whole)
    fits = min(step * (height - 1) + row, whole) <= have <= most + most // SURPLUS
    if width <= 0 or height <= 0 or not fits:
        raise ImageError(
            f"{image.encoding} of {width}x{height} pixels needs {whole} bytes: got {have}"
        )
    if width % pixels and step == row and have < row * height:
        rows = np.ascontiguousarray(image.data)[None, :whole]  # one stream, not row by row
    else:
        flat = np.zeros(step * height, np.uint8)
        flat[: min(have, len(flat))] = image.data[: len(flat)]
        rows = flat.reshape(height, step)[:, :row]
    groups = -(-rows.shape[1] // size)
    padded = np.zeros((rows.shape[0], groups * size), np.uint8)
    padded[:, : rows.shape[1]] = rows
    upper = _upper_eight(padded.reshape(rows.shape[0], groups, size), bits, how, pixels)
    lines = upper.reshape(rows.shape[0], -1)
    out = lines[0, : width * height].reshape(height, width) if len(lines) == 1 else lines[:, :width]
    return replace(image, encoding=encoding, data=np.ascontiguousarray(out).reshape(-1), step=width)


def _upper_eight(groups: NDArray[np.uint8], bits: int, how: str, pixels: int) -> NDArray[np.uint8]:
    """[rows, groups, pixels] of bytes [rows, groups, size]."""
    if how == "csi2p":
        return groups[..., :pixels]
    if how == "packed":
        return groups[..., (0, 2)]
    out = []
    for index in range(pixels):
        start = (index + 1) * bits - 8  # of its highest eight, in the stream
        byte, shift = divmod(start, 8)
        high = groups[..., byte] >> shift
        if shift:
            high = high | (groups[..., byte + 1] << (8 - shift))
        out.append(high)
    return np.stack(out, axis=-1)


def float_values(image: RawImage) -> NDArray[np.floating]:
    """[height, width, channels] of an image of floats, a view where its rows allow it. Raises
    ImageError where it cannot be a picture: values that are not finite (depth, disparity) or larger
    than any white."""
    size, channels = FLOATS[image.encoding]
    row = image.width * channels * size
    step = image.step if image.step >= row else row
    need = step * (image.height - 1) + row
    if image.width <= 0 or image.height <= 0 or len(image.data) < need or step % size:
        raise ImageError(
            f"{image.encoding} of {image.width}x{image.height} pixels, step {image.step}, needs"
            f" {max(need, 0)} bytes: got {len(image.data)}"
        )
    values: NDArray[np.floating] = np.ndarray(
        (image.height, image.width, channels),
        np.dtype(f"{'>' if image.big_endian else '<'}f{size}"),
        np.ascontiguousarray(image.data),
        strides=(step, channels * size, size),
    )
    finite = np.isfinite(values)
    if finite.mean() < 1 - _HOLES:
        raise ImageError(
            f"{image.encoding}: {100 * (1 - finite.mean()):.0f} % of its values are not finite:"
            " expected brightness (is it a depth image?)"
        )
    values = values if finite.all() else np.where(finite, values, 0)
    share, times = _MOST[0]
    if (high := _quantile(values, share)) > times * _WHITE[WORD]:
        raise ImageError(f"{image.encoding}: values up to {high:g}: expected 65535 at most")
    return values


def float_range(values: NDArray[np.floating]) -> int:
    """UNIT, BYTE or WORD: the least white that all but a few of the values do not exceed."""
    high = [(_quantile(values, share), times) for share, times in _MOST]
    fitting = (
        kind
        for kind, white in _WHITE.items()
        if all(value <= times * white for value, times in high)
    )
    return next(fitting, WORD)


def _quantile(values: NDArray[np.floating], share: float) -> float:
    """One of the values: a part `share` of them, as far as a regular sample tells, is not above."""
    every = max(1, int((values.shape[0] * values.shape[1] / _SAMPLED) ** 0.5))
    return float(np.quantile(values[::every, ::every], share, method="lower"))


def in_bytes(image: RawImage, range_: int) -> RawImage:
    """An image of floats in eight bits, colours in OpenCV's order. What is above white is white,
    what is below zero is black. range_: UNIT, BYTE or WORD; 0: as its own values are. Raises
    ImageError."""
    values = float_values(image)
    white = _WHITE[range_ or float_range(values)]
    share, part = _LEAST
    if (low := _quantile(values, share)) < part * white:
        raise ImageError(f"{image.encoding}: values down to {low:g}: expected none below zero")
    pixels = np.rint(np.clip(values * (255.0 / white), 0, 255)).astype(np.uint8)
    channels = values.shape[2]
    return replace(
        image,
        encoding=f"8uc{channels}",
        data=pixels.reshape(-1),
        step=image.width * channels,
        big_endian=False,
    )
