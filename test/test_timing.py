"""Clocks of cameras held against their images, and against the times at which they come."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.cameras.timing import TimingCheck, exposed_later
from recon4d_ros.geometry import exp
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import Camera, Frame, RawImage, Rig

SECOND = 1_000_000_000
K = np.array([[300.0, 0, 159.5], [0, 300.0, 79.5], [0, 0, 1]])
AHEAD = np.array([[0.0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]])
BASELINE = 0.5
E = np.array([[0, 0.0, 0], [0, 0, BASELINE], [0, -BASELINE, 0]])  # of a camera to the right


def rays(points: np.ndarray, right: bool) -> np.ndarray:
    """[K, 3] of points [K, 3] in the left camera's frame."""
    seen = points - [BASELINE * right, 0, 0]
    return seen / seen[:, 2:]


@settings(max_examples=30, deadline=None)
@given(
    later=st.floats(-0.15, 0.15),
    speed=st.floats(3.0, 25.0),
    pitch=st.floats(-0.01, 0.01),
    seed=st.integers(0, 1000),
)
def test_how_much_later_a_camera_was_exposed(
    later: float, speed: float, pitch: float, seed: int
) -> None:
    """Whatever the speed, with points that were matched wrongly and a camera that is turned."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(6, 40, 200)
    points = np.stack([rng.uniform(-0.5, 0.5, 200), rng.uniform(-0.25, 0.25, 200)], 1)
    points = np.c_[points, np.ones(200)] * depth[:, None]
    pixel = 1 / 300

    def moved(seconds: float) -> np.ndarray:
        return points - [0, 0, speed * seconds]

    turn = exp(np.r_[0, 0, 0, pitch, 0, 0])[:3, :3]

    def second(seconds: float) -> np.ndarray:
        seen = rays(moved(seconds), True) @ turn.T
        return seen / seen[:, 2:]

    def noise() -> np.ndarray:
        return np.c_[rng.normal(0, 0.15 * pixel, (200, 2)), np.zeros(200)]

    first, motion = rays(points, False), second(later) - second(later - 0.1) + noise()
    now = second(later) + noise()
    now[:20, :2] += rng.uniform(-0.2, 0.2, (20, 2))
    found = exposed_later(first, now, motion, 0.1, E, pixel)
    if found is None:
        assert speed < 10  # a slow car says little
    else:  # the speed of the last tenth of a second is not quite that of this one
        assert abs(found - later) < 0.006 + 0.35 * abs(later)


def test_nothing_is_said_where_nothing_moves() -> None:
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(-5, 5, (100, 2)), rng.uniform(6, 40, 100)]
    still = rays(points, True) + np.c_[rng.normal(0, 3e-4, (100, 2)), np.zeros(100)]
    noise = np.c_[rng.normal(0, 3e-4, (100, 2)), np.zeros(100)]
    assert exposed_later(rays(points, False), still, noise, 0.1, E, 1 / 300) is None
    few = rays(points[:10], False), still[:10], still[:10] * 0.1
    assert exposed_later(*few, 0.1, E, 1 / 300) is None


def rig() -> Rig:
    right = AHEAD @ np.array([[1, 0, 0, BASELINE], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return Rig("pair", tuple(Camera(n, 320, 160, K, p) for n, p in (("l", AHEAD), ("r", right))))


def corridor(seconds: float, right: bool) -> np.ndarray:
    """[160, 320] of a floor and a ceiling that a car drives along at 12 m/s."""
    v, u = np.indices((160, 320), np.float64)
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    depth = np.where(y > 0, 1.4, -2.2) / np.where(np.abs(y) < 0.02, 0.02, y)
    across, along = x * depth + BASELINE * right, depth + 12 * seconds
    where = ((one / CELL % 1024).astype(np.float32) for one in (across, along + (y < 0) * 20))
    seen = cv2.remap(TEXTURE, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.where((depth > 25) | (depth < 0), 128, seen).astype(np.uint8)


CELL = 0.06  # m of a pixel of the texture
NOISE = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (1024, 1024)), (0, 0), 2.5)
TEXTURE = (128 + 40 * NOISE / NOISE.std()).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_clocks_that_differ_are_told_from_images(offset: float) -> None:
    """Images of one instant, of which the right one's stamp is ahead; told once."""
    check = TimingCheck(rig(), (160, 320), {"r": 0.02})
    said = []
    for index in range(20):
        seconds = 0.1 * index
        images = np.stack([corridor(seconds, False), corridor(seconds, True)])[..., None]
        stamps = np.array([seconds, seconds + offset]) * SECOND
        frame = Frame(round(seconds * SECOND), images, np.ones(2, bool), stamps.astype(np.int64))
        said += check.look(frame)
    if not offset:
        assert not said
        return
    (sentence,) = said
    assert sentence.startswith("clocks of l and r differ by 0.1") or "by 0.09" in sentence
    taken_off = float(sentence.partition("sync.offset.r=")[2].split()[0])
    assert abs(taken_off - (offset + 0.02)) < 0.015


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, False), (0.5, False), (1e-3, True), (1e3, True)]
)
def test_stamps_that_do_not_go_as_time_does(factor: float, told: bool) -> None:
    """Milliseconds or ticks in place of nanoseconds."""
    synchronizer = Synchronizer(["left"])
    for index in range(12):
        now = 100 * SECOND + index * SECOND // 10
        stamp = 50 * SECOND + round(index * factor * SECOND / 10)
        synchronizer.add_image("left", RawImage(stamp, "mono8", np.zeros(4, np.uint8), 2, 2), now)
    words = [one for one in synchronizer.findings if "stamps of left advance by" in one]
    assert len(words) == told
