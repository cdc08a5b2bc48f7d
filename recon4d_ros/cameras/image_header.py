"""What a compressed image says of itself before it is decoded: its kind, size and channels, and
whether it is all there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
_TIFF_STARTS = (b"II*\x00", b"MM\x00*")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # SOF0..15 (ITU T.81 table B.1) without DHT, JPG, DAC
COMPRESSED = ("jpeg", "png", "tiff", "webp", "bmp")


def compressed_kind(data: NDArray[np.uint8]) -> str:
    """One of COMPRESSED, or an empty string, by the first bytes (a message's `format` text is
    free-form and often wrong)."""
    start = data[:12].tobytes()
    if start[:8] == PNG_START:
        return "png"
    if start[:2] == JPEG_START:
        return "jpeg"
    if start[:4] in _TIFF_STARTS:
        return "tiff"
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # its reserved bytes
        return "bmp"
    return "webp" if start[:4] == b"RIFF" and start[8:] == b"WEBP" else ""


def compressed_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(width, height) from the header; None if there is none."""
    kind = compressed_kind(data)
    if (
        kind == "png" and len(data) >= 24
    ):  # IHDR is the first chunk (PNG 1.2, 5.6): length, type, width, height
        return _number(data, 16, 4, "big"), _number(data, 20, 4, "big")
    if kind == "jpeg" and (frame := _jpeg_frame(data)) is not None:
        # length, precision, height, width
        return _number(data, frame + 7, 2, "big"), _number(data, frame + 5, 2, "big")
    if kind == "tiff":
        return _tiff_size(data)
    if kind == "bmp" and len(data) >= 26 and _number(data, 14, 4, "little") >= 40:
        height = _number(data, 22, 4, "little")  # two's complement: below zero from the top down
        return _number(data, 18, 4, "little"), min(height, (1 << 32) - height)
    return _webp_size(data) if kind == "webp" else None


def channel_count(data: NDArray[np.uint8]) -> int:
    """Colour channels of a JPEG or PNG, alpha left out; 0 where it does not say."""
    kind = compressed_kind(data)
    if kind == "png" and len(data) >= 26:  # colour type: bit 1 is colour
        return 3 if int(data[25]) & 2 else 1
    if kind == "jpeg" and (frame := _jpeg_frame(data)) is not None:
        return int(data[frame + 9]) if frame + 9 < len(data) else 0
    return 0


def is_wide(data: NDArray[np.uint8]) -> bool:
    """Whether a PNG or TIFF has sixteen bits a channel."""
    kind = compressed_kind(data)
    if kind == "png":
        return _number(data, 24, 1, "big") == 16  # IHDR's bit depth
    return kind == "tiff" and _tiff_entries(data).get(258) == 16


def is_complete(data: NDArray[np.uint8]) -> bool:
    """Whether the end marker of a JPEG or PNG is there: a decoder paints what is missing grey and
    says nothing. Of other kinds the decoder itself knows.

    Some drivers send a buffer that is longer than the image, so the marker is looked for wherever
    it may be: in a JPEG after the start of its scan (before, it may be a thumbnail's), where within
    the scan its two bytes cannot occur (ITU T.81, B.1.1.5).
    """
    kind = compressed_kind(data)
    raw = data.tobytes()
    if kind == "jpeg":
        scan = raw.rfind(b"\xff\xda") if (frame := _jpeg_frame(data)) is None else frame
        return scan >= 0 and raw.find(JPEG_END, max(raw.find(b"\xff\xda", scan), scan)) >= 0
    if kind == "bmp":
        return len(data) >= _number(data, 2, 4, "little")
    return kind != "png" or _png_ends(raw)


def _png_ends(raw: bytes) -> bool:
    """Whether chunk after chunk (length, kind, data, checksum; PNG 1.2, 3.2) leads to the last one:
    a decoder reserves what a damaged length says."""
    position = 8
    while position + 12 <= len(raw):
        if raw[position : position + 12] == bytes(4) + PNG_END:
            return True
        position += 12 + int.from_bytes(raw[position : position + 4], "big")
    return False


def _jpeg_frame(data: NDArray[np.uint8]) -> int | None:
    """Where the frame header's marker is."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = int(data[position + 1])
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_FRAMES:
            return position
        else:
            position += 2 + _number(data, position + 2, 2, "big")
    return None


def _tiff_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    entries = _tiff_entries(data)
    return (entries[256], entries[257]) if {256, 257} <= set(entries) else None


def _tiff_entries(data: NDArray[np.uint8]) -> dict[int, int]:
    """First values of ImageWidth (256), ImageLength (257) and BitsPerSample (258) in the first
    directory (TIFF 6.0, section 2): entries of tag, type, count, and the value or its offset."""
    order = "little" if data[0] == ord("I") else "big"
    at = _number(data, 4, 4, order)
    found = {}
    for index in range(min(_number(data, at, 2, order), 256)):
        entry = at + 2 + 12 * index
        tag, kind = _number(data, entry, 2, order), _number(data, entry + 2, 2, order)
        if tag in (256, 257, 258):  # SHORT or LONG
            size, count = (2 if kind == 3 else 4), _number(data, entry + 4, 4, order)
            inline = size * count <= 4
            place = entry + 8 if inline else _number(data, entry + 8, 4, order)
            found[tag] = _number(data, place, size, order)
    return found


def _webp_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Of the first chunk (RFC 9649): VP8X canvas, VP8L or VP8 frame."""
    chunk = data[12:16].tobytes()
    if len(data) < 30:
        return None
    if chunk == b"VP8X":
        return _number(data, 24, 3, "little") + 1, _number(data, 27, 3, "little") + 1
    if chunk == b"VP8L":
        bits = _number(data, 21, 4, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return _number(data, 26, 2, "little") & 0x3FFF, _number(data, 28, 2, "little") & 0x3FFF
    return None


def _number(data: NDArray[np.uint8], at: int, size: int, order: str) -> int:
    """Bytes beyond the end count as none."""
    return int.from_bytes(data[at : at + size].tobytes(), "little" if order == "little" else "big")
