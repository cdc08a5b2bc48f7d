"""FrameSet -> Frame: each camera's image decoded at the engine's input size, still distorted (the
engine samples it by the grid)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import (
    OUTSIDE,
    input_size_for,
    make_calibration,
    quarter_turns,
    reduced_size,
    reduction,
    upright,
)
from recon4d_ros.cameras.decode import (
    COMPRESSED,
    DEPTHS,
    ENCODINGS,
    decode,
    is_known,
    other_byte_order,
    shown_byte_order,
    significant_bits,
    source_size,
)
from recon4d_ros.cameras.distortion import to_rays
from recon4d_ros.cameras.packed import FLOATS
from recon4d_ros.errors import CalibrationError, ImageError
from recon4d_ros.parallel import each
from recon4d_ros.types import Calibration, Camera, Frame, FrameSet, RawImage, Rig

__all__ = ["ENCODINGS", "OUTSIDE", "Preprocessor", "decode", "input_size_for", "make_calibration"]

# by quarters counterclockwise
_ROTATIONS = {
    1: cv2.ROTATE_90_COUNTERCLOCKWISE,
    2: cv2.ROTATE_180,
    3: cv2.ROTATE_90_CLOCKWISE,
}
_LOOK_AGAIN = 10  # compressed images of sixteen bits between those whose values are looked at

# source pixels between the exactly undistorted ones; between them the map is interpolated, to a
# fraction of a pixel
_LATTICE = 4


class Preprocessor:
    """Decodes a rig's images, several cameras at a time (OpenCV's decoders let go of the GIL).

    Images of several sizes lie at the top left of an input that holds the largest, each averaged
    down by as much as its own size asks for (cameras/calibration.py); their borders' pixels fill
    what is left. Every call gives a Frame of its own: nothing that was given out is written to
    again.
    """

    def __init__(self, rig: Rig, calibration: Calibration, channels: int) -> None:
        """channels: 1 (grey) or 3 (RGB). Raises CalibrationError.

        notes: gets a sentence for each thing that was taken from the images themselves.
        """
        if rig.names != calibration.names:
            raise CalibrationError(
                f"the rig has cameras {', '.join(rig.names)}, its calibration"
                f" {', '.join(calibration.names)}"
            )
        self._rig = rig
        self._calibration = calibration
        self._channels = channels
        self._reductions = [reduction(camera, calibration.input_size) for camera in rig.cameras]
        self._maps: dict[int, NDArray[np.int16]] = {}
        self._bits: dict[int, int] = {}
        self._wrong_order: dict[int, bool] = {}  # whether is_bigendian is, once an image shows it
        self._counts = [0] * len(rig.cameras)
        self.notes: list[str] = []

    def __call__(self, frame_set: FrameSet) -> tuple[Frame, dict[str, str]]:
        """The frame, and why an image that was there is not in it (camera -> one sentence): that
        camera is absent."""
        cameras = self._rig.cameras
        images = np.zeros((len(cameras), *self._calibration.input_size, self._channels), np.uint8)
        there = [index for index, camera in enumerate(cameras) if camera.name in frame_set.images]
        faults = each(
            lambda index: self._fault(index, frame_set.images[cameras[index].name], images[index]),
            there,
        )
        present = np.zeros(len(cameras), np.bool_)
        stamps = np.full(len(cameras), frame_set.stamp_ns, np.int64)
        dropped = {}
        for index, fault in zip(there, faults, strict=True):
            if fault:
                dropped[cameras[index].name] = fault
                continue
            present[index] = True
            stamps[index] = frame_set.images[cameras[index].name].stamp_ns
        return Frame(frame_set.stamp_ns, images, present, stamps), dropped

    def to_source(self, array: NDArray, camera: int) -> NDArray:
        """A working image's depth or mask [h, w] in the source image's size and unrectified
        geometry [height, width], nearest neighbour.

        What the working image does not show is NaN (floats), else 0. Depth stays along the optical
        axis: only pixels move.
        """
        if camera not in self._maps:
            self._maps[camera] = _source_map(
                self._rig.cameras[camera],
                self._calibration.k[camera],
                self._calibration.working_size,
            )
        binary = array.dtype == np.bool_
        pixels = (
            np.ascontiguousarray(array).view(np.uint8) if binary else np.ascontiguousarray(array)
        )
        nothing = float("nan") if np.issubdtype(array.dtype, np.floating) else 0.0
        # the map's second half, of no use to nearest sampling
        unused = np.empty(0, np.int16)
        moved: NDArray = np.asarray(
            cv2.remap(
                pixels,
                self._maps[camera],
                unused,
                cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=nothing,
            )
        )
        return moved.view(np.bool_) if binary else moved

    def _fault(self, index: int, image: RawImage, out: NDArray[np.uint8]) -> str:
        """The image decoded into `out`: "", or why it cannot be."""
        try:
            self._decode_into(index, image, out)
        except ImageError as error:
            return str(error)
        return ""

    def _decode_into(self, index: int, image: RawImage, out: NDArray[np.uint8]) -> None:
        camera, reduce = self._rig.cameras[index], self._reductions[index]
        if not is_known(image.encoding):
            raise ImageError(
                f"encoding {image.encoding!r} is not known: expected one of {', '.join(ENCODINGS)}"
            )
        if source_size(image) != (camera.width, camera.height):
            width, height = source_size(image)
            raise ImageError(
                f"image is {width}x{height} pixels: its calibration is for"
                f" {camera.width}x{camera.height}"
            )
        height, width = reduced_size(camera, reduce)
        image = self._in_order(index, image)
        bits = self._significant_bits(index, image)
        pixels = decode(image, self._channels, reduce, bits)
        if turns := quarter_turns(camera):
            pixels = np.asarray(cv2.rotate(pixels, _ROTATIONS[turns]), np.uint8)
            pixels = pixels.reshape(height, width, self._channels)
        out[:height, :width] = pixels
        # the border of an image smaller than the input goes on: black would be an edge, with
        # corners to follow, and darken what is sampled beside it
        out[height:, :width] = out[height - 1, :width]
        out[:, width:] = out[:, width - 1 : width]

    def _in_order(self, index: int, image: RawImage) -> RawImage:
        """With the byte order that the camera's images show, from the first one on that does."""
        if index not in self._wrong_order:
            shown = shown_byte_order(image)
            if shown is None:
                return image
            self._wrong_order[index] = shown != image.big_endian
            if self._wrong_order[index]:
                self._bits.pop(index, None)  # were those of exchanged bytes
                self.notes.append(
                    f"camera {self._rig.cameras[index].name}: is_bigendian is"
                    f" {int(image.big_endian)}, and the values are an image in the other order"
                    " only: read so"
                )
        return other_byte_order(image) if self._wrong_order[index] else image

    def _significant_bits(self, index: int, image: RawImage) -> int:
        """Of a camera's sixteen-bit images: as many as any of its values has needed so far, so that
        brightness does not change with what is seen. 0 for other images."""
        known = self._bits.get(index, 0)
        look = image.encoding not in COMPRESSED or self._counts[index] % _LOOK_AGAIN == 0
        self._counts[index] += 1
        if known == DEPTHS[-1] or not look:
            return known
        bits = significant_bits(image)
        if bits > known:
            self._bits[index] = bits
            if known or bits < DEPTHS[-1] or image.encoding in FLOATS:
                self.notes.append(self._told(index, image.encoding, bits, known))
        return max(bits, known)

    def _told(self, index: int, encoding: str, bits: int, before: int) -> str:
        where = f"camera {self._rig.cameras[index].name}: {encoding} with values"
        if encoding in FLOATS:
            whites = {one: (1 << one) - 1 for one in (bits, before)}
            longer = f", no longer {whites[before]}" if before else ""
            return f"{where} up to {whites[bits]}{longer}: this is taken for white"
        longer = f", no longer {before}" if before else ""
        return f"{where} of {bits} bits{longer}: the upper eight of these are taken"


def _source_map(
    camera: Camera, k: NDArray[np.float64], working_size: tuple[int, int]
) -> NDArray[np.int16]:
    """[height, width, 2] int16: the working pixel (u, v) nearest to each source pixel; -1 where
    there is none."""
    rows, columns = (
        np.arange(0, size + _LATTICE, _LATTICE, dtype=np.float64)
        for size in (camera.height, camera.width)
    )
    v, u = np.meshgrid(rows, columns, indexing="ij")
    rays = to_rays(camera, np.stack([u, v], axis=-1))
    if (turn := upright(camera)) is not None:
        rays = rays @ turn[:2, :2]
    working = (rays * (k[0, 0], k[1, 1]) + k[:2, 2]).astype(np.float32)
    # Linear interpolation of the lattice at every source pixel, as an affine resampling with the
    # pixel centres where they belong.
    scale = np.array([[1 / _LATTICE, 0, 0], [0, 1 / _LATTICE, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    dense = cv2.warpAffine(
        working, scale, (camera.width, camera.height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    height, width = working_size
    with np.errstate(invalid="ignore"):
        inside = (
            (dense[..., 0] >= -0.5)
            & (dense[..., 0] < width - 0.5)
            & (dense[..., 1] >= -0.5)
            & (dense[..., 1] < height - 0.5)
        )
    return np.where(inside[..., None], np.rint(dense), -1).astype(np.int16)
