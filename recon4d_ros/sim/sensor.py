"""From light to bytes, as a camera does it: lens blur, vignetting, automatic exposure, shot and
read noise, gamma."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.view import View

_TARGET = 0.26  # mean linear level that the exposure aims at
_NOISE = np.float32(
    0.0065
)  # after gamma, of full scale: shot noise of 9,000 electrons at full scale, and some read noise
_POOL_SIZE = 1 << 22
_FULL_WELL = 1.6  # above this exposure the gain is electronic: noise grows with it
_STEPS = (0.45, 1.0, 2.0)  # of the gain
_BLUR = 0.5  # pixels: the lens; it also softens the edges that ray casting leaves jagged


class Sensor:
    """One camera's electronics. index: the camera's place in the rig; every camera has its own gain
    and drift. steps: whether the gain jumps every two to four seconds."""

    def __init__(self, view: View, seed: int, index: int, steps: bool = False) -> None:
        self._rng_key = (seed, index)
        self._steps = steps
        rng = np.random.default_rng([seed, index, 8])
        self._gain, self._phase = float(rng.uniform(0.88, 1.14)), float(rng.uniform(0, 6.28))
        centre = (view.camera.width / 2, view.camera.height / 2)
        v, u = np.indices(view.shape, dtype=np.float32)
        radius2 = ((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (centre[0] ** 2 + centre[1] ** 2)
        self._response = ((1.0 - 0.22 * radius2)[..., None] * rng.uniform(0.97, 1.03, 3)).astype(
            np.float32
        )
        self._valid = view.valid
        self._pool = (
            np.random.default_rng([seed, 12]).standard_normal(_POOL_SIZE, np.float32) * _NOISE
        )

    def expose(self, light: NDArray[np.float32], t: float, late: float = 1.0) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of linear light [H, W, 3] at time t (seconds, decides the noise and
        the exposure's slow drift). late: the light of now over that which the exposure was set
        for."""
        blurred = cv2.GaussianBlur(light, (3, 3), _BLUR)
        mean = float(blurred[::4, ::4].mean())
        drift = (
            1.0
            + 0.07 * np.sin(2 * np.pi * t / 9.0 + self._phase)
            + 0.03 * np.sin(2 * np.pi * t / 2.3 + 2 * self._phase)
        )
        exposure = self._gain * drift * _TARGET / mean**0.8 / 0.75 * late * self._step(t)
        # Gamma is a square root: there, shot noise has the same deviation everywhere, 0.5 /
        # sqrt(electrons).
        root: NDArray = cv2.sqrt(cv2.multiply(blurred, self._response, scale=exposure))
        rng = np.random.default_rng([*self._rng_key, round(t * 1e6), 9])
        # A slice of a pool at a random place: as good as fresh noise to the eye and to a matcher,
        # and free.
        pool = np.resize(self._pool, root.size) if root.size > _POOL_SIZE else self._pool
        start = int(rng.integers(0, len(pool) - root.size + 1))
        noise = pool[start : start + root.size].reshape(root.shape)
        if exposure > _FULL_WELL:  # fewer electrons for the same grey value
            noise = noise * np.float32(np.sqrt(exposure / _FULL_WELL))
        root += noise
        image = np.asarray(cv2.convertScaleAbs(root, alpha=255.0), np.uint8)
        if self._valid is not None:
            image[~self._valid] = 0
        return image

    def _step(self, t: float) -> float:
        """The gain's jump at time t: another one every two to four seconds, never the same twice
        running."""
        if not self._steps:
            return 1.0
        slot = int(np.floor(t / 3.0))
        edge = 3.0 * slot + float(np.random.default_rng([slot + 1000, 17]).uniform(-0.5, 0.5))
        slot -= t < edge
        return _STEPS[(slot + self._rng_key[0]) % len(_STEPS)]
