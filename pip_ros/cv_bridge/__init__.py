"""Stand-in for cv_bridge: sensor_msgs/Image to OpenCV's arrays. Same names as the real package,
only the calls we make."""

from __future__ import annotations

import re
import sys

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image

STAND_IN = True

_COLOURS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
_OPENCV = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)C([1-4])")
_NAMED = re.compile(r"(mono|rgb|bgr|rgba|bgra)(8|16)")
_DEPTHS = {
    "8U": np.uint8,
    "8S": np.int8,
    "16U": np.uint16,
    "16S": np.int16,
    "32S": np.int32,
    "32F": np.float32,
    "64F": np.float64,
}


class CvBridgeError(TypeError):
    """An image cannot be converted."""


def _layout(encoding: str) -> tuple[np.dtype, int, str | None]:
    """dtype, channels and colour (None where the encoding names no colour) of a ROS encoding."""
    if match := _OPENCV.fullmatch(encoding):
        return np.dtype(_DEPTHS[match[1]]), int(match[2]), None
    if match := _NAMED.fullmatch(encoding):
        return np.dtype(np.uint8 if match[2] == "8" else np.uint16), _COLOURS[match[1]], match[1]
    raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")


class CvBridge:
    """Converts images; holds no state."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> NDArray:
        """The image as [height, width] or [height, width, channels], in its own encoding
        (`passthrough`) or another colour or depth."""
        dtype, channels, colour = _layout(img_msg.encoding)
        row = img_msg.width * channels * dtype.itemsize
        if img_msg.step < row or len(img_msg.data) < img_msg.step * img_msg.height:
            size = f"{img_msg.width}x{img_msg.height} {img_msg.encoding}"
            raise CvBridgeError(
                f"an image of {size} has {len(img_msg.data)} bytes in rows of {img_msg.step}"
            )
        rows = np.frombuffer(img_msg.data, np.uint8)[: img_msg.step * img_msg.height].reshape(
            img_msg.height, img_msg.step
        )
        image = np.ascontiguousarray(rows[:, :row]).view(dtype)
        if bool(img_msg.is_bigendian) != (sys.byteorder == "big"):
            image = image.byteswap()
        if channels > 1:
            image = image.reshape(img_msg.height, img_msg.width, channels)
        if desired_encoding in ("passthrough", img_msg.encoding):
            return image
        return _convert(image, img_msg.encoding, colour, desired_encoding)


def _convert(image: NDArray, source: str, colour: str | None, target: str) -> NDArray:
    dtype, channels, target_colour = _layout(target)
    image_channels = image.shape[2] if image.ndim == 3 else 1
    if colour is None:  # nothing is known of its colours, so only the depth can change
        if target_colour is not None:
            raise CvBridgeError(
                f"[{source}] is not a color format. but [{target}] is. The conversion does not make"
                " sense"
            )
        if image_channels != channels:
            raise CvBridgeError(f"[{source}] and [{target}] do not have the same number of channel")
    elif target_colour is not None and colour != target_colour:
        names = ["GRAY" if name == "mono" else name.upper() for name in (colour, target_colour)]
        image = cv2.cvtColor(image, getattr(cv2, f"COLOR_{names[0]}2{names[1]}"))
    elif target_colour is None and image_channels != channels:
        raise CvBridgeError(
            f"[{source}] is a color format but [{target}] is not so they must have the same OpenCV"
            " type"
        )
    if image.dtype == dtype:
        return image
    if colour is not None and target_colour is not None:  # a colour's full scale stays full scale
        image = image * (np.iinfo(dtype).max / np.iinfo(image.dtype).max)
    return (
        cv2.convertScaleAbs(image)
        if dtype == np.uint8
        else np.rint(image).astype(dtype)
        if dtype.kind in "iu"
        else image.astype(dtype)
    )
