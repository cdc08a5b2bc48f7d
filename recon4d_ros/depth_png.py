"""Depth as 16 bit images, metres x 256: in the files of a run and in the truth of a bag."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_SCALE = np.float32(256.0)


def encode_depth(depth: NDArray[np.float32]) -> bytes:
    """PNG of depth [height, width] in m; 0 where there is none or it is beyond 255.99 m."""
    scaled = depth * _SCALE
    known = np.isfinite(scaled) & (scaled > 0) & (scaled < 65535.5)
    values = np.where(known, np.maximum(np.rint(np.where(known, scaled, 0)), 1), 0).astype(
        np.uint16
    )
    return bytes(cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def decode_depth(values: NDArray) -> NDArray[np.float32]:
    """Depth in m, NaN = none, of the values of such an image."""
    return np.where(values > 0, values.astype(np.float32) / _SCALE, np.float32(np.nan))
