"""Measured optical flow."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.views import FLOW_WIDTH, STRIDE

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """One camera's grey image, kept for the next frame. flow: [fh, fw] uint8, what flow is measured
    on. grid: [h, w] uint8."""

    flow: NDArray[np.uint8]
    grid: NDArray[np.uint8]


@dataclass(frozen=True)
class Flow:
    """From the current image to the previous one, on the motion grid. u, v: [h, w] grid pixels."""

    u: Plane
    v: Plane


def make_picture(color: NDArray[np.uint8]) -> Picture:
    """Grey pictures of a working image [h, w, 3]."""
    grey = np.asarray(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY), np.uint8)
    half = np.asarray(
        cv2.pyrDown(grey), np.uint8
    )  # pixel i is pixel 2i of the image: the motion grid
    return Picture(half if grey.shape[1] > FLOW_WIDTH else grey, half)


def ends(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Pixel coordinates x, y [h, w] that flow u, v [h, w] leads to."""
    h, w = u.shape
    return np.arange(w, dtype=np.float32)[None, :] + u, np.arange(h, dtype=np.float32)[:, None] + v


class FlowMeter:
    """Dense inverse search (Kroeger et al., ECCV 2016) between two pictures.

    stride, rounds: pixels from patch to patch, and of gradient descent in each.
    """

    def __init__(self, stride: int = 4, rounds: int = 12) -> None:
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]
        self._dis.setFinestScale(1)
        self._dis.setPatchStride(stride)
        self._dis.setGradientDescentIterations(rounds)

    def __call__(
        self, current: Picture, previous: Picture, start: NDArray[np.float32] | None = None
    ) -> Flow:
        """Flow from `current` to `previous`. start: [h, w, 2] float32 grid pixels, where to begin
        the search (the rigid flow)."""
        scale = current.flow.shape[1] / current.grid.shape[1]
        begin = None
        if start is not None:
            begin = start
            if scale != 1:
                begin = cv2.resize(
                    start, current.flow.shape[::-1], interpolation=cv2.INTER_LINEAR
                ) * np.float32(STRIDE)
            begin = np.ascontiguousarray(begin, np.float32)
        field = np.asarray(self._dis.calc(current.flow, previous.flow, begin), np.float32)
        if scale != 1:
            field = field[::STRIDE, ::STRIDE] * np.float32(1 / STRIDE)
        return Flow(np.ascontiguousarray(field[..., 0]), np.ascontiguousarray(field[..., 1]))
