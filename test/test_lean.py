"""How the road lies under the rig: what is known of it on made-up ways, what a turned camera does
to lengths, and the whole stage with a mount that is pitched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_egomotion import MONO, SURROUND, calibrate, run, street

from recon4d_ros import geometry
from recon4d_ros.egomotion import Egomotion, ground_scale
from recon4d_ros.egomotion.calibration import CALIBRATION
from recon4d_ros.egomotion.camera_rig import Cameras
from recon4d_ros.egomotion.lean import THRESHOLDS, Lean
from recon4d_ros.egomotion.mount_check import MountCheck
from recon4d_ros.egomotion.road import Road, _Found
from recon4d_ros.types import Rig, Tracking

SIGMA = np.array([0.01, 0.004, 0.004, 0.0005, 0.0005, 0.0005])  # of a motion, as points say it


def way(
    rng: np.random.Generator, frames: int, speed: float, pitch: float, seconds: float = 0.1
) -> tuple[list, list]:
    """Motions of so many seconds as a camera sees them that is pitched by an angle, on a car that
    nods and bounces on a road with crests; and the road's slope along x at each."""
    t = THRESHOLDS
    keep, last = np.exp(-seconds / np.array([t.passing_seconds, t.bend_seconds]))
    heave = t.heave * np.sqrt(seconds * max(seconds, t.heave_seconds))
    nod, crest, motions, slopes = rng.normal(0, t.passing), rng.normal(0, t.bend), [], []
    for _ in range(frames):
        slope = -pitch + nod
        up = (slope + crest) * seconds * speed + rng.normal(0, heave)
        motion = geometry.exp(np.array([seconds * speed, 0, up, 0, 0, 0]))
        motions.append(motion @ geometry.exp(rng.normal(0, SIGMA)))
        slopes.append(slope)
        nod = keep * nod + rng.normal(0, t.passing * np.sqrt(1 - keep**2))
        crest = last * crest + rng.normal(0, t.bend * np.sqrt(1 - last**2))
    return motions, slopes


@pytest.mark.parametrize(("speed", "hertz"), [(8.0, 10.0), (33.0, 10.0), (15.0, 30.0), (15.0, 2.0)])
def test_what_is_said_of_the_slope_is_as_sure_as_it_says(speed: float, hertz: float) -> None:
    """Mounts are drawn: NEES of the slope and of the part that stays, over 150 drives, within 99 %
    bounds; after two seconds the mount is known much better than it was stated."""
    rng, covariance = np.random.default_rng(5), np.diag(SIGMA**2)
    now, stays, seconds = [], [], 1 / hertz
    for _ in range(150):
        pitch, lean = rng.normal(0, CALIBRATION.mount), Lean.unknown()
        frames = round(2.0 * hertz)
        for motion, slope in zip(*way(rng, frames, speed, pitch, seconds), strict=True):
            lean = lean.by_way(motion, covariance, seconds)
            last = (lean.slope[0] - slope) ** 2 / lean.spread[0, 0]
            lean = lean.carried(seconds)
        now.append(last)
        stays.append((lean.stays[0] + pitch) ** 2 / lean.covariance[2, 2])
    bound = 2.6 * np.sqrt(2 / 150)
    assert abs(np.mean(now) - 1) < bound and abs(np.mean(stays) - 1) < bound
    assert np.sqrt(lean.covariance[2, 2]) < 0.75 * CALIBRATION.mount
    assert lean.lasting[0, 0] < 0.3 * Lean.unknown().lasting[0, 0]


def test_what_nothing_measures_is_as_sure_as_it_was_stated() -> None:
    stated, lean = Lean.unknown(), Lean.unknown()
    for motion in way(np.random.default_rng(0), 20, 20.0, 0.02)[0]:
        lean = lean.by_way(motion, np.diag(SIGMA**2), 0.1).carried(0.1)
    for _ in range(2000):
        lean = lean.carried(10.0)
    np.testing.assert_allclose(lean.covariance, stated.covariance, rtol=0.01, atol=1e-8)
    np.testing.assert_allclose(lean.mean, 0, atol=1e-5)
    np.testing.assert_allclose(
        stated.carried(3.0).covariance, stated.carried(1.0).carried(2.0).covariance, atol=1e-7
    )


def test_a_way_that_no_road_goes_hardly_counts() -> None:
    sure = Lean.unknown()
    for motion in way(np.random.default_rng(0), 20, 20.0, 0.0)[0]:
        sure = sure.by_way(motion, np.diag(SIGMA**2), 0.1).carried(0.1)
    kerb = geometry.exp(np.array([2.0, 0, 0.4, 0, 0, 0]))
    assert abs(sure.by_way(kerb, np.diag(SIGMA**2), 0.1).slope[0] - sure.slope[0]) < 0.01
    still = sure.by_way(np.eye(4), np.diag(SIGMA**2), 0.1)
    assert np.array_equal(still.mean, sure.mean)


def test_a_mount_is_turned_about_the_camera_and_a_body_about_its_middle() -> None:
    """What stays leaves the camera's height as it is; what passes lifts the camera at the back."""
    back = np.array([-0.8, 0.0, 1.2])
    mount = replace(Lean.unknown(), mean=np.array([0.02, 0, 0.02, 0, 0]))
    nod = replace(Lean.unknown(), mean=np.array([0.02, 0, 0, 0, 0]))
    assert mount.plane(back)[1] == pytest.approx(1.2)
    assert nod.plane(back)[1] == pytest.approx(1.2 + 0.02 * (THRESHOLDS.middle + 0.8))


def test_depth_of_the_road_is_that_of_a_pitched_camera() -> None:
    """Points of the road, as a camera sees them that is pitched by 20 mrad more than was told."""
    told = MONO.cameras[0].T_base_camera
    true = told.copy()
    true[:3, :3] = geometry.exp(np.array([0, 0, 0, 0, 0.02, 0]))[:3, :3] @ told[:3, :3]
    road = np.array([[6.0, 1.0, 0], [9.0, -2.0, 0], [15.0, 1.0, 0]])
    q = geometry.transform(geometry.inverse(true), road)
    lean = replace(Lean.unknown(), mean=np.array([0.02, 0, 0.02, 0, 0]))
    rho, _ = ground_scale.inverse_depth(q[:, :2] / q[:, 2:], told, lean)
    assert np.allclose(rho, 1 / q[:, 2], rtol=1e-3)
    level, variance = ground_scale.inverse_depth(q[:, :2] / q[:, 2:], told, Lean.unknown())
    off = level * q[:, 2] - 1
    assert np.all(np.abs(off) > 0.05) and np.all(off**2 < 9 * variance * q[:, 2] ** 2)


def test_how_rays_change_with_a_turned_camera_agrees_with_differences() -> None:
    cameras = Cameras.of(SURROUND, calibrate(SURROUND), 400)
    road = Road(cameras)
    grid = road._grids[0]
    rays = np.column_stack([cameras.lenses[grid.camera].rays(grid.pixel), np.ones(len(grid.pixel))])

    def found(turn: np.ndarray) -> _Found:
        mount, many = cameras.T_base_camera[grid.camera].copy(), len(rays)
        mount[:3, :3] = geometry.exp(np.concatenate([np.zeros(3), turn]))[:3, :3] @ mount[:3, :3]
        return _Found(
            np.full(many, grid.camera),
            np.tile(geometry.inverse(mount), (many, 1, 1)),
            rays @ mount[:3, :3].T,
            np.tile(mount[:3, 3], (many, 1)),
            np.zeros((many, 2)),
            np.tile(np.eye(2), (many, 1, 1)),
            np.ones(many),
        )

    lean = replace(Lean.unknown(), mean=np.array([0.01, -0.02, 0.004, 0.003, 0.0]))
    motion = geometry.exp(np.array([1.0, 0.02, 0.01, 0.002, -0.003, 0.02]))
    here = found(np.zeros(3))
    pivots = lean.pivots(here.centre)
    residual, _, _ = road._linearised(here, motion, lean.slope, pivots)
    by_turn = road._by_turn(here, motion, lean.slope, pivots)
    for axis in range(3):
        there = found(1e-6 * np.eye(3)[axis])
        moved, _, _ = road._linearised(there, motion, lean.slope, pivots)
        assert np.allclose((residual - moved) / 1e-6, by_turn[:, :, axis], atol=1e-5)


def test_a_camera_that_is_known_to_be_off_does_not_promise_what_others_do() -> None:
    check = MountCheck(Cameras.of(SURROUND, calibrate(SURROUND), 400))
    before = check.doubt()
    assert np.allclose(before, CALIBRATION.single**2 * np.eye(3))
    check._information[1] = 1e12 * np.eye(3)
    check._pull[1] = 1e12 * np.array([0.0, 0.015, 0.0])
    after = check.doubt()
    assert after[1, 1, 1] == pytest.approx(0.015**2, rel=0.01)
    assert np.array_equal(after[0], before[0])


@pytest.mark.parametrize("pitch", [-0.02, 0.02])
def test_a_pitched_mount_is_seen_by_the_way_and_lengths_stay_right(pitch: float) -> None:
    """A rendered street, one camera, a rig file that is wrong by 20 mrad."""
    camera = MONO.cameras[0]
    place = camera.T_base_camera.copy()
    place[:3, :3] = geometry.exp(np.array([0, 0, 0, 0, pitch, 0]))[:3, :3] @ place[:3, :3]
    wrong = Rig("pitched", (replace(camera, T_base_camera=place),))
    shots = street("mono", 12, yaw_rate=0.0)
    ego = Egomotion(wrong, calibrate(wrong))
    poses = run(wrong, shots, depth=False, ego=ego)
    assert abs(ego._road.lean.slope[0] + pitch) < 0.005
    went = []
    for pose, last in zip(poses[2:], poses[1:-1], strict=True):
        assert pose.tracking is Tracking.TRACKING
        went.append(np.linalg.norm((pose.T_map_base - last.T_map_base)[:3, 3]))
        sigma = np.sqrt(pose.calibration_covariance[0, 0])
        assert abs(went[-1] - 0.8) < 0.032 and 0.02 * 0.8 < sigma < 0.08
    assert np.mean(went[-6:]) == pytest.approx(0.8, rel=0.01)
    first, end = (np.sqrt(pose.calibration_covariance[0, 0]) for pose in (poses[1], poses[-1]))
    assert end < 0.9 * first
