"""Measured optical flow and what it is worth, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.views import FLOW_WIDTH, STRIDE

Plane = NDArray[np.float32]

INDEPENDENT = 6.0
"""Neighbouring errors are correlated: a 5x5 window counts as this many independent pixels, not
25."""

UNLIKE = 0.12
"""Share of a window's contrast left unexplained at which its match counts half (0.12: a third of
the amplitude)."""


@dataclass(frozen=True)
class Picture:
    """One camera's grey image, kept for the next frame. flow: [fh, fw] uint8, what flow is measured
    on. grid: [h, w] uint8."""

    flow: NDArray[np.uint8]
    grid: NDArray[np.uint8]


@dataclass(frozen=True)
class Displacement:
    """Flow from the current image to the previous one, on the motion grid. u, v: [h, w] grid
    pixels."""

    u: Plane
    v: Plane


@dataclass(frozen=True)
class Flow(Displacement):
    """Flow and what it is worth.

    wuu, wuv, wvv: [h, w] information (inverse covariance), 1/px^2: anisotropic, so that an edge
    says nothing about motion along itself. error: [h, w] grey levels, what the flow leaves
    unexplained.
    """

    wuu: Plane
    wuv: Plane
    wvv: Plane
    error: Plane


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
    """Dense inverse search (Kroeger et al., ECCV 2016) between two pictures, with a covariance from
    the structure tensor.

    flow_noise: pixels of the flow image, error where texture is good. image_noise: grey levels.
    stride, rounds: pixels from patch to patch, and of gradient descent in each.
    """

    def __init__(
        self, flow_noise: float, image_noise: float, stride: int = 4, rounds: int = 12
    ) -> None:
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]
        self._dis.setFinestScale(1)
        self._dis.setPatchStride(stride)
        self._dis.setGradientDescentIterations(rounds)
        self._flow_noise = flow_noise
        self.image_noise = image_noise

    def measure(
        self, current: Picture, previous: Picture, start: NDArray[np.float32] | None = None
    ) -> Flow:
        """Flow from `current` to `previous` with its information. start: [h, w, 2] float32 grid
        pixels, where to begin the search (the rigid flow)."""
        u, v = self.flow(current, previous, start)
        halved = current.flow.shape[1] != current.grid.shape[1]
        return self._with_information(
            current.grid, previous.grid, u, v, self._flow_noise / (STRIDE if halved else 1)
        )

    def flow(
        self, current: Picture, previous: Picture, start: NDArray[np.float32] | None = None
    ) -> tuple[Plane, Plane]:
        """u, v [h, w] in grid pixels, as measure()."""
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
        return np.ascontiguousarray(field[..., 0]), np.ascontiguousarray(field[..., 1])

    def _with_information(
        self,
        current: NDArray[np.uint8],
        previous: NDArray[np.uint8],
        u: Plane,
        v: Plane,
        floor: float,
    ) -> Flow:
        now = current.astype(np.float32)
        error = self.error(now, previous, u, v)
        # What does not match is not flow: a window as unlike its partner as any other is worth
        # nothing, whatever its texture.
        mean = cv2.boxFilter(now, -1, (5, 5))
        contrast = (
            cv2.boxFilter(now * now, -1, (5, 5)) - mean * mean + np.float32(self.image_noise) ** 2
        )
        unlike = np.maximum(error * error - np.float32(self.image_noise) ** 2, 0) / contrast
        noise = np.maximum(error, np.float32(self.image_noise)) ** 2 * (
            1 + np.square(unlike / UNLIKE)
        )
        gx = cv2.Scharr(now, cv2.CV_32F, 1, 0, scale=1 / 32)
        gy = cv2.Scharr(now, cv2.CV_32F, 0, 1, scale=1 / 32)
        count = np.float32(INDEPENDENT)
        jxx = cv2.boxFilter(gx * gx, -1, (5, 5)) * count / noise
        jyy = cv2.boxFilter(gy * gy, -1, (5, 5)) * count / noise
        jxy = cv2.boxFilter(gx * gy, -1, (5, 5)) * count / noise
        # Where there is no texture the flow is what smoothness made of it: 3 px is all that is
        # claimed.
        jxx += 1 / 9
        jyy += 1 / 9
        # Covariance = inverse(J) + floor, then information = inverse(covariance): both 2x2, in
        # closed form.
        det = jxx * jyy - jxy * jxy
        variance = floor**2 + (0.02**2) * (u * u + v * v)
        cuu = jyy / det + variance
        cvv = jxx / det + variance
        cuv = -jxy / det
        det = cuu * cvv - cuv * cuv
        return Flow(u, v, cvv / det, -cuv / det, cuu / det, error)

    @staticmethod
    def error(current: Plane, previous: NDArray[np.uint8], u: Plane, v: Plane) -> Plane:
        """Root mean square over 5x5 of current(x) - previous(x + flow), the local mean taken out
        (exposure), in grey levels."""
        difference = current - cv2.remap(
            previous, *ends(u, v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mean = cv2.boxFilter(difference, -1, (5, 5))
        square = cv2.boxFilter(difference * difference, -1, (5, 5))
        return np.sqrt(np.maximum(square - mean * mean, 0))
