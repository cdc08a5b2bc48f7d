"""What a JPEG or PNG says of itself before it is decoded: its size, and whether it is all there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # SOF0..15 (ITU T.81 table B.1) without DHT, JPG, DAC


def compressed_kind(data: NDArray[np.uint8]) -> str:
    """`jpeg`, `png`, or an empty string, by the first bytes (a message's `format` text is free-form
    and often wrong)."""
    start = data[:8].tobytes()
    return "png" if start == PNG_START else "jpeg" if start[:2] == JPEG_START else ""


def compressed_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG or PNG; None if there is none."""
    kind = compressed_kind(data)
    if (
        kind == "png" and len(data) >= 24
    ):  # IHDR is the first chunk (PNG 1.2, 5.6): length, type, width, height
        return int.from_bytes(data[16:20].tobytes(), "big"), int.from_bytes(
            data[20:24].tobytes(), "big"
        )
    position = 2
    while kind == "jpeg" and position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = int(data[position + 1])
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_FRAMES:  # length, precision, height, width
            head = data[position + 5 : position + 9].tobytes()
            return int.from_bytes(head[2:], "big"), int.from_bytes(head[:2], "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4].tobytes(), "big")
    return None


def is_complete(data: NDArray[np.uint8]) -> bool:
    """Whether the end marker is there: a decoder paints what is missing grey and says nothing.

    Some cameras pad the end with zeros, so the marker is looked for in the last kilobyte.
    """
    kind = compressed_kind(data)
    tail = data[-1024:].tobytes()
    return (kind == "jpeg" and JPEG_END in tail) or (kind == "png" and PNG_END in tail)
