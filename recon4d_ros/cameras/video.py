"""Video topics to images: packets of one camera, in the order they come, through PyAV (`make
video`; not part of the runtime)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from recon4d_ros.errors import ImageError
from recon4d_ros.types import RawImage

CODECS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4")
MISSING = "decoding video takes PyAV: `make video`, or pip install -r requirements/video.txt"
_REORDERED = 16  # packets by which encoders reorder at most
_PENDING = 64  # packets kept whose image has not come out


def is_video(image: RawImage) -> bool:
    """Whether the image is a packet of video, which takes the packets before it."""
    return image.encoding in CODECS


def available() -> bool:
    """Whether video can be decoded here."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class VideoDecoder:
    """One camera's video. Packets have to come whole and in order, and from a keyframe on; an image
    keeps the stamp of its own packet, also where it comes out later."""

    def __init__(self) -> None:
        self._codec: Any = None
        self._name = ""
        self._pending: dict[int, RawImage] = {}
        self._count = 0
        self._started = False

    def __call__(self, packet: RawImage) -> list[RawImage]:
        """The images that became whole with this packet: grey or rgb8. Raises ImageError where
        there can be none: PyAV is missing, no keyframe has come yet, or the data is broken."""
        try:
            import av
        except ImportError:
            raise ImageError(f"{packet.encoding} video: {MISSING}") from None
        if self._codec is None or self._name != packet.encoding:
            self._name, self._codec = packet.encoding, self._open(av, packet.encoding)
            self._started = False
        self._count += 1
        self._pending[self._count] = packet
        while len(self._pending) > _PENDING:
            del self._pending[next(iter(self._pending))]
        unit = av.Packet(packet.data.tobytes())
        unit.pts = unit.dts = self._count
        try:
            frames = self._codec.decode(unit)
        except (av.FFmpegError, ValueError) as error:
            self._codec = self._open(av, packet.encoding)  # it may not recover: at the next key
            if not self._started:
                raise ImageError(f"{packet.encoding} video: no keyframe has come yet") from error
            self._started = False
            raise ImageError(
                f"{packet.encoding} video of {len(packet.data)} bytes is broken:"
                f" {' '.join(str(error).split())}"
            ) from error
        images = self._images(frames)
        if not images and not self._started and len(self._pending) > _REORDERED:
            raise ImageError(f"{packet.encoding} video: no keyframe has come yet")
        self._started = self._started or bool(images)
        return images

    def rest(self) -> list[RawImage]:
        """At the end: the images that were still on their way."""
        if self._codec is None:
            return []
        import av

        try:
            frames = self._codec.decode(None)
        except (av.FFmpegError, ValueError):
            return []
        return self._images(frames)

    @staticmethod
    def _open(av: Any, name: str) -> Any:
        try:
            codec = av.CodecContext.create(name, "r")
        except (av.FFmpegError, ValueError) as error:
            raise ImageError(f"{name} video: this PyAV has no decoder of it") from error
        codec.thread_count = 1  # more hold frames back
        return codec

    def _images(self, frames: Any) -> list[RawImage]:
        """Without what was patched up in place of lost data."""
        return [
            self._image(frame)
            for frame in frames
            if frame.pts in self._pending and not frame.is_corrupt
        ]

    def _image(self, frame: Any) -> RawImage:
        packet = self._pending.pop(frame.pts)
        grey = frame.format.name.startswith("gray")
        pixels = np.ascontiguousarray(frame.to_ndarray(format="gray" if grey else "rgb24"))
        return replace(
            packet,
            encoding="mono8" if grey else "rgb8",
            data=pixels.reshape(-1),
            width=frame.width,
            height=frame.height,
            step=frame.width * (1 if grey else 3),
        )
