"""From light to bytes, as a camera does it: lens blur, vignetting, automatic exposure, shot and read noise, gamma."""
from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.view import View

_TARGET = 0.22  # mean linear level that the exposure aims at
_ELECTRONS = 9000.0  # at full scale: shot noise
_READ = 0.0012  # read noise, of full scale
_POOL_SIZE = 1 << 21
_BLUR = 0.5  # pixels: the lens; it also softens the edges that ray casting leaves jagged


class Sensor:
    """One camera's electronics. index: the camera's place in the rig; every camera has its own gain and drift."""

    def __init__(self, view: View, seed: int, index: int) -> None:
        self._rng_key = (seed, index)
        rng = np.random.default_rng([seed, index, 8])
        self._gain, self._phase = float(rng.uniform(0.88, 1.14)), float(rng.uniform(0, 6.28))
        self._tint = rng.uniform(0.97, 1.03, 3).astype(np.float32)
        centre = (view.camera.width / 2, view.camera.height / 2)
        v, u = np.indices(view.shape, dtype=np.float32)
        radius2 = ((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (centre[0] ** 2 + centre[1] ** 2)
        self._vignette = (1.0 - 0.22 * radius2)[..., None].astype(np.float32)
        self._valid = view.valid
        self._pool = np.random.default_rng([seed, 12]).standard_normal(_POOL_SIZE, np.float32)

    def expose(self, light: NDArray[np.float32], t: float) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of linear light [H, W, 3] at time t (seconds, decides the noise and the exposure's slow drift)."""
        light = cv2.GaussianBlur(light, (3, 3), _BLUR)
        mean = float(light[::4, ::4].mean())
        drift = 1.0 + 0.07 * np.sin(2 * np.pi * t / 9.0 + self._phase) + 0.03 * np.sin(2 * np.pi * t / 2.3 + 2 * self._phase)
        exposure = self._gain * drift * _TARGET / mean**0.8 / 0.75
        level = light * (self._vignette * (exposure * self._tint))
        # In the square-root domain shot noise has the same deviation everywhere: 0.5 / sqrt(electrons).
        np.minimum(level, 1.0 + 0.0 * level, out=level)
        root = np.sqrt(level)
        rng = np.random.default_rng([*self._rng_key, round(t * 1e6), 9])
        start = int(rng.integers(0, _POOL_SIZE))
        noise = np.take(self._pool, np.arange(start, start + root.size), mode="wrap").reshape(root.shape)
        deviation = 0.5 / np.sqrt(_ELECTRONS) + 0.5 * _READ / (root + 0.02)
        root += noise * deviation
        # Gamma 2.2 from the root: x^(1/2.2) is root^(0.909); a straight toe would add nothing that matters here.
        out = np.clip(root, 0.0, 1.0)
        image = cv2.pow(out, 0.909) * 255.0
        if self._valid is not None:
            image[~self._valid] = 0.0
        return np.rint(image).astype(np.uint8)
