"""Driv3R's flow predictor and multi-view alignment on geometry that is known exactly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from dynamics_scene import Box, Street, make_rig
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon4d_ros.alignment_multiview import align, similarity, to_world
from recon4d_ros.dynamics.rigid_flow import PAIRS, PosedPoints, flow_difference, motion_scores, moving, returning, rigid_flow
from recon4d_ros.geometry import inverse, project, se3, transform, unproject

BOXES = (
    Box((14, 4, 0), (4, 1.8, 1.6), (-6, 0, 0), 3),  # comes towards us
    Box((18, -4, 0), (1, 1, 2), (0, 3, 0), 4),  # crosses
    Box((12, -5, 0), (3, 2, 1.5), (0, 0, 0), 5),  # stands
)
MOVES = (0, 1)
STEP = 0.1  # seconds


@pytest.fixture(scope="module")
def clip() -> tuple[list[PosedPoints], dict, list[np.ndarray], list[np.ndarray]]:
    """Five images of a street from a car that drives and turns: points in a frame of another scale and place, exact flow, what moves."""
    _, calibration = make_rig([(0.0, (0.0, 0.0, 1.5))], 192, 112, 140.0)
    street = Street(BOXES)
    k = calibration.k[0]
    T_base_camera = calibration.T_base_camera[0]
    images, masks, metres, poses, greys = [], [], [], [], []
    world = np.diag([0.3, 0.3, 0.3, 1.0]) @ se3(Rotation.from_rotvec([0.4, -1.0, 0.2]).as_matrix(), np.array([3.0, -7, 2]))
    for i in range(5):
        T = se3(Rotation.from_rotvec([0, 0, 0.02 * i]).as_matrix(), np.array([0.8 * i, 0, 0])) @ T_base_camera
        grey, depth, box = street.render(calibration, 0, T, STEP * i)
        points = transform(T, unproject(depth, k).astype(np.float64))
        posed = world @ T
        posed[:3, :3] /= 0.3
        images.append(PosedPoints(transform(world, points).astype(np.float32), k, posed))
        masks.append(np.isin(box, MOVES) & np.isfinite(depth))
        metres.append((points, box))
        poses.append(T)
        greys.append(grey)
    flows = {}
    v, u = np.indices(masks[0].shape)
    for a, b in PAIRS:
        for i, j in ((a, b), (b, a)):
            points, box = metres[i]
            velocity = np.array([BOXES[n].velocity for n in range(len(BOXES))] + [(0, 0, 0)])[box]
            then = points + velocity * STEP * (j - i)
            flows[i, j] = (project(transform(inverse(poses[j]), then), k)[0] - np.stack([u, v], -1)).astype(np.float32)
    return images, flows, masks, greys


def test_rigid_flow_is_the_flow_of_what_stands(clip) -> None:
    images, flows, masks, _ = clip
    for (i, j), flow in flows.items():
        rigid = rigid_flow(images[i], images[j])
        known = np.isfinite(rigid).all(-1) & np.isfinite(flow).all(-1)
        stands = known & ~masks[i]
        assert stands.mean() > 0.5 and np.abs(rigid - flow)[stands].max() < 1e-2
        difference = flow_difference(images[i], images[j], flow)
        assert np.isnan(difference[~known]).all() and np.median(difference[known & masks[i]]) > 1


def test_what_moves_is_found_exactly_from_exact_flow(clip) -> None:
    """At a low threshold every pixel of what moves; at the published one what moves most, and nothing that stands."""
    images, flows, masks, _ = clip
    for score, mask in zip(motion_scores(images, flows), masks, strict=True):
        assert mask.sum() > 100 and np.nanmin(score) >= 0 and np.nanmax(score) <= 1
        low = moving(score, 0.02)
        assert (low & mask).sum() / (low | mask).sum() > 0.95
        published = moving(score)
        assert published.any() and not (published & ~mask).any()


def test_measured_flow_stands_in_for_raft(clip) -> None:
    """Dense inverse search in place of RAFT, where it finds back, between neighbours: most of what moves, smeared at its edges."""
    images, _, masks, greys = clip
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    measured = {(i, j): search.calc(greys[i], greys[j], None) for a, b in PAIRS[:4] for i, j in ((a, b), (b, a))}
    flows = {(i, j): returning(flow, measured[j, i], 1.0) for (i, j), flow in measured.items()}
    found = np.stack([moving(score, 0.3) for score in motion_scores(images, flows, PAIRS[:4], least=3.0)])
    truth = np.stack(masks)
    assert (found & truth).sum() / (found | truth).sum() > 0.5
    assert (found & truth).sum() / truth.sum() > 0.7


def test_flow_that_does_not_return_is_none() -> None:
    flow, back = np.zeros((10, 12, 2), np.float32), np.zeros((10, 12, 2), np.float32)
    flow[..., 0], back[..., 0] = 3, -3
    back[4, 8] = 7, 0
    kept = np.isfinite(returning(flow, back)).all(-1)
    assert not kept[:, 9:].any() and not kept[4, 5] and kept.sum() == 10 * 9 - 1


def test_where_nothing_moves_noise_is_not_motion(clip) -> None:
    """The published rule normalizes by the largest difference, so it always finds some; a least difference does not."""
    images, flows, masks, _ = clip
    rng = np.random.default_rng(0)
    noise = {pair: rng.normal(0, 0.2, (*masks[0].shape, 2)).astype(np.float32) for pair in flows}
    still = {(i, j): rigid_flow(images[i], images[j]) + noise[i, j] for i, j in flows}
    assert not any(moving(score, 0.5).any() for score in motion_scores(images, still, least=3.0))
    assert any(moving(score, 0.5).any() for score in motion_scores(images, still))


def test_an_image_without_partner_or_points_says_nothing(clip) -> None:
    images, flows, _, _ = clip
    nothing = PosedPoints(np.full_like(images[1].points, np.nan), images[1].k, images[1].T_world_camera)
    scores = motion_scores([images[0], nothing, images[2]], flows, pairs=((0, 1),))
    assert not np.isnan(scores[0]).all() and np.isnan(scores[1]).all() and np.isnan(scores[2]).all()
    assert not moving(scores[1]).any()


K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])


def rig_of_clips(rng: np.random.Generator, units: np.ndarray, frames: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Point maps [N, F, h, w, 3] of cameras at any place and orientation that drive along, in each one's first frame at `units` per metre;
    T_world_camera [N, F, 4, 4]; the true points in the world."""
    n = len(units)
    v, u = np.indices((12, 16)) * 4.0
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    T = np.empty((n, frames, 4, 4))
    world = np.empty((n, frames, 12, 16, 3))
    for i in range(n):
        mount = se3(Rotation.random(random_state=rng).as_matrix(), rng.uniform(-2, 2, 3))
        for f in range(frames):
            T[i, f] = se3(Rotation.from_rotvec([0, 0, 0.03 * f]).as_matrix(), np.array([0.7 * f, 0.05 * f * f, 0])) @ mount
            world[i, f] = transform(T[i, f], rays * rng.uniform(3, 50, (12, 16, 1)))
    own = np.stack([transform(inverse(T[i, 0]), world[i]) * units[i] for i in range(n)])
    return own.astype(np.float32), T, world


K_SMALL = np.array([[15.0, 0, 31.5 / 4], [0, 15, 23.5 / 4], [0, 0, 1]])  # of every fourth pixel


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), logarithms=st.lists(st.floats(-5, 5), min_size=1, max_size=3))
def test_a_known_scale_and_pose_are_recovered(seed: int, logarithms: list[float]) -> None:
    units = np.exp(logarithms)
    points, T, world = rig_of_clips(np.random.default_rng(seed), units)
    aligned = align(points, np.broadcast_to(K_SMALL, (len(units), 3, 3)), T, np.ones(points.shape[:-1], np.float32))
    for i, scale in enumerate(aligned.scales):
        assert scale is not None and scale.metres_per_unit * units[i] == pytest.approx(1, rel=1e-4) and scale.relative_sigma < 1e-3
    np.testing.assert_allclose(aligned.points, world, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_has_no_weight_has_no_say_and_outliers_have_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, T, _ = rig_of_clips(rng, np.array([0.25]))
    wrong = rng.random(points.shape[:-1]) < 0.25
    spoilt = points + np.where(wrong[..., None], rng.normal(0, 5, points.shape), rng.normal(0, 1e-3, points.shape)).astype(np.float32)
    weight = np.where(wrong, 0, rng.uniform(0.2, 1, wrong.shape)).astype(np.float32)
    without = align(spoilt, K_SMALL[None], T, weight).scales[0]
    assert without is not None and without.metres_per_unit == pytest.approx(4, rel=0.01)
    with_all = align(spoilt, K_SMALL[None], T, np.ones_like(weight)).scales[0]
    assert with_all is not None and with_all.metres_per_unit == pytest.approx(4, rel=0.1)


def test_one_scale_for_all_cameras_or_none() -> None:
    rng = np.random.default_rng(3)
    points, T, _ = rig_of_clips(rng, np.array([0.5, 0.5]))
    T[1] = T[1, :1]  # the second camera says it never moved: its own points cannot tell its scale
    weight = np.ones(points.shape[:-1], np.float32)
    k = np.broadcast_to(K_SMALL, (2, 3, 3))
    own, shared = align(points, k, T, weight), align(points, k, T, weight, one_scale=True)
    assert own.scales[1] is None and np.isnan(own.points[1]).all() and np.isfinite(own.points[0]).all()
    assert shared.scales[1] is not None and shared.scales[1].metres_per_unit == pytest.approx(2, rel=1e-4)
    np.testing.assert_allclose(shared.points[1], to_world(points[1], 2.0, T[1, 0]), atol=1e-2)


def test_noise_does_not_bias_the_scale_and_its_sigma_is_true() -> None:
    """Over many drives: the error stays within what sigma says."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        points, T, _ = rig_of_clips(rng, np.array([0.5]), frames=6)
        noisy = points * (1 + rng.normal(0, 0.02, (*points.shape[:2], 1, 1, 1))) + rng.normal(0, 0.05, points.shape)
        scale = align(noisy.astype(np.float32), K_SMALL[None], T, np.ones(points.shape[:-1], np.float32)).scales[0]
        assert scale is not None
        errors.append((scale.metres_per_unit - 2) / scale.sigma)
    assert abs(np.mean(errors)) < 1.0 and 0.3 < np.std(errors) < 3.0, (np.mean(errors), np.std(errors))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), logarithm=st.floats(-6, 6))
def test_a_similarity_is_recovered(seed: int, logarithm: float) -> None:
    rng = np.random.default_rng(seed)
    rotation, scale, translation = Rotation.random(random_state=rng).as_matrix(), np.exp(logarithm), rng.normal(0, 10, 3)
    source = rng.normal(0, [5, 1, 20], (30, 3))
    target = scale * source @ rotation.T + translation
    weight = rng.uniform(0.1, 1, 30)
    target[:8], weight[:8] = rng.normal(0, 50, (8, 3)), 0
    found = similarity(source, target, weight)
    assert found is not None and found.scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(found(source[8:]), target[8:], atol=1e-6 * max(1, scale))
    flat = source * [1, 1, 0]
    assert similarity(flat, flat, weight) is not None, "a plane is enough"
    line = np.outer(source[:, 0], [1.0, 2, 3])
    assert similarity(line, line, weight) is None and similarity(source[:2], target[:2], weight[8:10]) is None
