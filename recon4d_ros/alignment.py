"""The metric scale of a network that predicts up to scale, in closed form: what is known in metres
against what the network says.

By calibration, ego-motion or odometry two camera centres are b apart (metres: cameras of the rig at
one time, or one camera at two times), to the network they are d apart (units). Where the network's
axes are known (Driv3R: each camera alone, its orientation from the pose) this is its alignment (Fei
et al., 2024, section 3.4) with all but the factor known: d = u b, so u = d . b / b . b units per
metre. Where they are not (Point3R: one world for all cameras, turned as it likes) u = |d| / |b|,
which noise makes too large where baselines are short.

Points need not be looked at again here: those of one image say of the factor what their
least-squares centre says (ray_camera.py), because what is off the rays is quadratic in it.

u is the weighted median of the observations of a window, then the weighted mean of those that lie
near it. No iteration, no global optimization.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 30  # frames with observations that are kept
LAGS = (1, 2, 4, 8, 16, 32)  # frames back with which a camera's own centre is compared
SHORTEST = 0.1  # metres: below this a baseline says nothing
LONGEST = 30.0  # metres: above this a baseline weighs no more (the network drifts, and so do we)
NEAR = 3.0  # robust standard deviations from the median within which observations are averaged
FLOOR = 0.01  # relative: no scale is surer than this
# robust standard deviation of u, of u itself, above which the observations name no scale at all
LARGEST_SPREAD = 0.5


@dataclass(frozen=True)
class Scale:
    """metres per network unit, its standard deviation in the same unit, and how many baselines said
    so."""

    metres_per_unit: float
    sigma: float
    observations: int

    @property
    def relative_sigma(self) -> float:
        return self.sigma / self.metres_per_unit


class ScaleEstimator:
    """`observe` every frame; `scale` is None until baselines of at least SHORTEST metres were seen,
    and while they contradict each other.

    A car that stands adds nothing (unless its rig has baselines), and takes nothing away: frames
    without an observation age no other.

    same_axes: the network's axes are those of the known centres.
    """

    def __init__(self, same_axes: bool = False) -> None:
        self._same_axes = same_axes
        self.reset()

    def reset(self) -> None:
        self._past: deque[tuple[NDArray, NDArray, NDArray]] = deque(maxlen=max(LAGS))
        self._observed: deque[tuple[NDArray, NDArray]] = deque(maxlen=WINDOW)
        self.scale: Scale | None = None

    def observe(self, network: NDArray, known: NDArray, present: NDArray[np.bool_]) -> Scale | None:
        """network [N, 3]: camera centres in the network's world and unit; known [N, 3]: in map,
        metres; present [N] bool: which count."""
        present = present & np.isfinite(network).all(1) & np.isfinite(known).all(1)
        network, known = network.astype(np.float64), known.astype(np.float64)
        first, second = np.triu_indices(len(known), 1)
        both = present[first] & present[second]
        baselines = [(known[first] - known[second])[both]]
        said = [(network[first] - network[second])[both]]
        for lag in LAGS:
            if lag <= len(self._past):
                network_then, known_then, present_then = self._past[-lag]
                both = present & present_then
                baselines.append((known - known_then)[both])
                said.append((network - network_then)[both])
        self._past.append((network, known, present))
        b, d = np.concatenate(baselines), np.concatenate(said)
        length = np.linalg.norm(b, axis=1)
        usable = (length > SHORTEST) & (np.linalg.norm(d, axis=1) > 1e-9)
        if usable.any():
            b, d, length = b[usable], d[usable], length[usable]
            along = (d * b).sum(1) / length if self._same_axes else np.linalg.norm(d, axis=1)
            self._observed.append((along / length, np.minimum(length, LONGEST) ** 2))
            self.scale = closed_form(list(self._observed))
        return self.scale


class WorldScales:
    """The scales of a rig's cameras: all share one, or (one_world False) each has its own, in the
    map's axes."""

    def __init__(self, cameras: int, one_world: bool) -> None:
        self._worlds = np.zeros(cameras, int) if one_world else np.arange(cameras)
        self._estimators = [
            ScaleEstimator(same_axes=not one_world) for _ in range(1 if one_world else cameras)
        ]

    def reset(self) -> None:
        for estimator in self._estimators:
            estimator.reset()

    def observe(self, network: NDArray, known: NDArray, present: NDArray[np.bool_]) -> None:
        for world, estimator in enumerate(self._estimators):
            mine = self._worlds == world
            estimator.observe(network[mine], known[mine], present[mine])

    @property
    def scales(self) -> tuple[Scale | None, ...]:
        return tuple(estimator.scale for estimator in self._estimators)

    def metres_per_unit(self) -> NDArray[np.float32]:
        """[N], 0 where not known."""
        return np.array(
            [scale.metres_per_unit if scale else 0.0 for scale in self.scales], np.float32
        )[self._worlds]

    def relative_sigma(self) -> NDArray[np.float32]:
        """[N]"""
        return np.array(
            [scale.relative_sigma if scale else 0.0 for scale in self.scales], np.float32
        )[self._worlds]


def closed_form(frames: list[tuple[NDArray, NDArray]]) -> Scale | None:
    """The scale from observations of units per metre and their weights, per frame. None where they
    contradict each other.

    The standard deviation is that of a weighted mean with no more independent observations than
    frames: baselines of one frame share what the network got wrong in it.
    """
    value, weight = (np.concatenate(parts) for parts in zip(*frames, strict=True))
    middle = weighted_median(value, weight)
    spread = 1.4826 * weighted_median(np.abs(value - middle), weight)
    if middle <= 0 or spread > LARGEST_SPREAD * middle:
        return None
    near = np.abs(value - middle) <= max(NEAR * spread, 1e-9 * middle)
    value, weight = value[near], weight[near]
    mean = float(np.average(value, weights=weight))
    deviation = float(np.sqrt(np.average((value - mean) ** 2, weights=weight))) / mean
    independent = min(len(frames), weight.sum() ** 2 / np.square(weight).sum())
    relative = max(FLOOR, deviation / np.sqrt(max(1.0, independent - 1)))
    if independent < 2:  # one look alone does not know its own error
        relative = max(relative, 0.2)
    return Scale(1 / mean, relative / mean, len(value))


def weighted_median(value: NDArray, weight: NDArray) -> float:
    order = np.argsort(value, kind="stable")
    total = np.cumsum(weight[order])
    return float(value[order[min(np.searchsorted(total, total[-1] / 2), len(order) - 1)]])
