"""The metric scale in closed form: exact without noise, whatever the network's world; robust;
honest about its doubt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.alignment import ScaleEstimator, WorldScales, weighted_median

RIG = np.array([[1.5, 0.0, 1.6], [1.3, 0.5, 1.6], [1.3, -0.5, 1.6]])


def rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def drive(rng, frames, speed):
    """Camera centres [frames, N, 3] of a car on a curve, metres."""
    heading = np.cumsum(rng.normal(0, 0.02, frames))
    centre = np.cumsum(speed * np.stack([np.cos(heading), np.sin(heading), 0 * heading], 1), 0)
    turn = np.stack(
        [
            np.stack([np.cos(heading), -np.sin(heading)], 1),
            np.stack([np.sin(heading), np.cos(heading)], 1),
        ],
        1,
    )
    cameras = np.einsum("fij,nj->fni", turn, RIG[:, :2])
    return np.concatenate(
        [cameras + centre[:, None, :2], np.broadcast_to(RIG[:, 2:], (frames, 3, 1))], -1
    )


def estimate(known, network, present=None):
    estimator = ScaleEstimator()
    for index in range(len(known)):
        here = np.ones(known.shape[1], bool) if present is None else present[index]
        estimator.observe(network[index], known[index], here)
    return estimator.scale


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e3),
    speed=st.sampled_from([0.0, 0.05, 1.0, 3.0]),
)
def test_exact_without_noise_in_any_world(seed, scale, speed):
    rng = np.random.default_rng(seed)
    known = drive(rng, 12, speed)
    network = known @ rotation(rng).T / scale + rng.normal(size=3) * 5
    found = estimate(known, network)
    assert found.metres_per_unit == pytest.approx(scale, rel=1e-5)
    assert found.relative_sigma == pytest.approx(0.01, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.25))
def test_a_quarter_of_wild_frames_does_not_move_it(seed, share):
    rng = np.random.default_rng(seed)
    known = drive(rng, 40, 1.0)
    network = known / 7 + rng.normal(0, 0.002, known.shape)
    for frame in np.flatnonzero(rng.random(40) < share):
        network[frame, rng.integers(3)] += rng.normal(0, 5, 3)
    assert estimate(known, network).metres_per_unit == pytest.approx(7, rel=0.05)


def test_sigma_covers_the_error():
    """Over many drives with 2 to 20 cm of noise the error is within three of its standard
    deviations nearly always, and not far below."""
    errors = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        known = drive(rng, 30, 1.0)
        noise = rng.choice([0.02, 0.1, 0.2])
        found = estimate(known, known / 4 + rng.normal(0, noise / 4, known.shape))
        errors.append(abs(found.metres_per_unit - 4) / found.sigma)
    assert np.mean(np.array(errors) < 3) > 0.97
    assert np.mean(errors) > 0.1


def test_one_camera_that_stands_has_no_scale_and_keeps_the_one_it_had():
    estimator = ScaleEstimator()
    one = np.ones(1, bool)
    for _ in range(5):
        assert estimator.observe(np.zeros((1, 3)), np.zeros((1, 3)), one) is None
    for step in range(5):
        estimator.observe(np.array([[0.5 * step, 0, 0]]), np.array([[2.0 * step, 0, 0]]), one)
    for _ in range(100):
        found = estimator.observe(np.array([[2.0, 0, 0]]), np.array([[8.0, 0, 0]]), one)
    assert found.metres_per_unit == pytest.approx(4)
    estimator.reset()
    assert estimator.scale is None


def test_absent_and_broken_cameras_do_not_count():
    rng = np.random.default_rng(1)
    known = drive(rng, 20, 1.0)
    network = known / 3
    network[:, 1] = np.nan
    network[:, 2] = 1e6 * rng.random((20, 3))
    present = np.tile([True, True, False], (20, 1))
    assert estimate(known, network, present).metres_per_unit == pytest.approx(3)


def test_contradicting_baselines_name_no_scale():
    rng = np.random.default_rng(2)
    known = drive(rng, 30, 1.0)
    assert (
        estimate(known, np.exp(rng.normal(0, 3, (30, 3, 1))) * rng.normal(size=known.shape)) is None
    )


def test_cameras_with_worlds_of_their_own():
    rng = np.random.default_rng(3)
    known = drive(rng, 20, 1.0)
    scales = WorldScales(3, one_world=False)
    for centres in known:
        scales.observe(
            centres / np.array([[2.0], [5.0], [9.0]]), centres, np.array([True, True, False])
        )
    assert scales.metres_per_unit() == pytest.approx([2, 5, 0])
    assert scales.scales[2] is None


def test_weighted_median():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])) == 2.0


@pytest.mark.parametrize("speed", [0.15, 1.0])
def test_known_axes_take_the_bias_from_short_baselines(speed):
    """Centres off by as much as a step: over many drives the median error is small along the known
    motion, large by mere distances."""
    errors = {True: [], False: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known = drive(rng, 8, speed)[:, :1]
        network = (known + rng.normal(0, speed, known.shape)) / 5
        for same_axes, found in errors.items():
            estimator = ScaleEstimator(same_axes)
            for centres, metres in zip(network, known, strict=True):
                estimator.observe(centres, metres, np.ones(1, bool))
            if estimator.scale:
                found.append(estimator.scale.metres_per_unit / 5 - 1)
    assert abs(np.median(errors[True])) < 0.05
    assert np.median(errors[False]) < -0.1, "what the other one is for"


def test_known_axes_see_a_network_that_goes_the_other_way():
    known = drive(np.random.default_rng(5), 10, 1.0)[:, :1]
    estimator = ScaleEstimator(same_axes=True)
    for centres in known:
        assert estimator.observe(-centres / 3, centres, np.ones(1, bool)) is None
    assert estimate(known, -known / 3).metres_per_unit == pytest.approx(3), (
        "by distances it is as good as any"
    )


def test_a_unit_that_drifts_is_followed():
    rng = np.random.default_rng(7)
    known = drive(rng, 200, 1.0)[:, :1]
    unit = np.exp(np.linspace(0, 1, 200))
    steps = np.diff(known, axis=0, prepend=known[:1]) / unit[:, None, None]
    estimator = ScaleEstimator(same_axes=True)
    for centres, metres in zip(np.cumsum(steps, 0), known, strict=True):
        found = estimator.observe(centres, metres, np.ones(1, bool))
    assert found.metres_per_unit == pytest.approx(np.e, rel=0.15)
