"""How far a vehicle has come at any time: speeds planned for a whole horizon, and the way as their
exact integral.

Plans: a city street (curves slow it, some crossings stop it), a queue (stop and go), a cruise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.road import STEP, Road

DT = 0.02  # seconds between planned speeds
BEYOND = 40.0  # seconds planned beyond the horizon
START_S = 12.0
_CITY_CRUISE = (7.5, 14.0)  # m/s
_LATERAL_ACCELERATION = 2.2
_BRAKE, _THRUST = 1.8, 1.5  # m/s^2
_STOP_SECONDS = 3.5
_QUEUE_THRUST = 1.1  # m/s^2, of a queue that moves on and halts again


class Progress:
    """Metres along the road as a function of time. speeds: m/s every DT, from t = 0."""

    def __init__(self, speeds: NDArray[np.float64], horizon_s: float, start: float) -> None:
        self._speed = speeds
        self._start = start
        self._s = start + np.concatenate([[0.0], np.cumsum(0.5 * (speeds[1:] + speeds[:-1]) * DT)])
        self.horizon_s = horizon_s

    def s(self, t: NDArray | float) -> NDArray[np.float64]:
        """Metres along the road at time t (seconds); before 0 and after the horizon at constant
        speed."""
        x = np.asarray(t, np.float64) / DT
        inside = np.clip(x, 0.0, len(self._s) - 1.001)
        i = inside.astype(np.int64)
        u = inside - i
        v0, v1 = self._speed[i] * DT, self._speed[i + 1] * DT
        value = (
            (1 + 2 * u) * (1 - u) ** 2 * self._s[i]
            + u * (1 - u) ** 2 * v0
            + u * u * (3 - 2 * u) * self._s[i + 1]
            + u * u * (u - 1) * v1
        )
        return value + (x - inside) * np.where(x < 0, self._speed[0], self._speed[-1]) * DT

    def time_at(self, s: float) -> float:
        """When it passes s (the last moment, where it stops there)."""
        return (
            float(np.searchsorted(self._s, s, side="right") * DT)
            if s > self._start
            else float((s - self._start) / self._speed[0])
        )


def city_speeds(
    road: Road, seed: int, horizon_s: float, cruise: tuple[float, float] = _CITY_CRUISE
) -> NDArray[np.float64]:
    """Of a car in a city: curves slow it, every second crossing beyond 300 m stops it."""
    rng = np.random.default_rng([seed, 5])
    nodes = np.arange(0.0, road.s_max, STEP)
    wish = np.interp(
        nodes,
        np.arange(0.0, road.s_max + 180.0, 90.0),
        rng.uniform(*cruise, size=int(road.s_max / 90.0) + 3),
    )
    limit = np.minimum(
        wish, np.sqrt(_LATERAL_ACCELERATION / np.maximum(np.abs(road.curvature(nodes)), 1e-4))
    )
    for i in range(len(limit) - 2, -1, -1):  # brake in time
        limit[i] = min(limit[i], (limit[i + 1] ** 2 + 2 * _BRAKE * STEP) ** 0.5)
    stops = [
        crossing.s - 9.0
        for i, crossing in enumerate(c for c in road.crossings if c.s > 300.0)
        if i % 2 == 0
    ]
    return smooth(_drive(limit, stops, _steps(horizon_s)))


def queue_speeds(
    rng: np.random.Generator, horizon_s: float, first_go: float
) -> NDArray[np.float64]:
    """Stop and go: `first_go` seconds at walking pace, then 10 s standing, and so on. Without a
    first go it stands 3 to 5 s, and goes."""
    wish: list[NDArray[np.float64]] = []
    steps, go = 0, first_go
    while steps < _steps(horizon_s):
        pace = rng.uniform(1.2, 2.6) if not wish else rng.uniform(1.5, 5.0)
        stand = rng.uniform(12.0, 13.5) if wish or first_go else rng.uniform(3.0, 5.0)
        wish += [np.full(round(go / DT), pace), np.zeros(round(stand / DT))]
        steps += len(wish[-1]) + len(wish[-2])
        go = rng.uniform(5.0, 9.0)
    goal = np.concatenate(wish)[: _steps(horizon_s)]
    speeds, v = np.empty(len(goal)), float(goal[0])
    for k, aim in enumerate(goal.tolist()):
        v += min(max(aim - v, -1.6 * DT), _QUEUE_THRUST * DT)
        speeds[k] = v
    return smooth(speeds)


def cruise_speeds(
    rng: np.random.Generator, horizon_s: float, low: float, high: float
) -> NDArray[np.float64]:
    """Fast from the first frame: speeds between low and high, m/s, that change slowly."""
    times = np.arange(0.0, _steps(horizon_s) * DT + 16.0, 8.0)
    return smooth(
        np.interp(np.arange(_steps(horizon_s)) * DT, times, rng.uniform(low, high, len(times)))
    )


def smooth(speeds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bounded jerk: a Gaussian of 0.28 s."""
    kernel = np.exp(-0.5 * (np.arange(-40, 41) / 14.0) ** 2)
    return np.convolve(np.pad(speeds, 40, mode="edge"), kernel / kernel.sum(), mode="valid")


def _steps(horizon_s: float) -> int:
    return int((horizon_s + BEYOND) / DT)


def _drive(limit: NDArray[np.float64], stops: list[float], steps: int) -> NDArray[np.float64]:
    """Speeds every DT: follow the limit with bounded acceleration, wait at stops."""
    s, v, wait, next_stop = START_S, float(limit[round(START_S / STEP)]) * 0.8, 0.0, 0
    speeds = np.empty(steps)
    last = len(limit) - 1
    for k in range(steps):
        speeds[k] = v
        goal = float(limit[min(int((s + 0.3 * v) / STEP), last)])
        if next_stop < len(stops):
            room = stops[next_stop] - s
            if room < -2.0 or (room < 0.4 and wait > _STOP_SECONDS):
                next_stop, wait = next_stop + 1, 0.0
            elif room < 60.0:
                goal = min(goal, (2 * 1.5 * max(room, 0.0)) ** 0.5)
                if room < 0.4:
                    goal, wait = 0.0, wait + DT
        v = max(v + min(max((goal - v) / 0.5, -2.6), _THRUST) * DT, 0.0)
        s += v * DT
    return speeds
