"""Scores of what a pose says of itself, and of masks at lidar points, on inputs whose answer is
known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from recon4d_ros.bags import BagReader
from recon4d_ros.evaluation.metrics.point_masks import (
    PointMaskAccumulator,
    PointMaskScore,
    moving_tracks,
)
from recon4d_ros.evaluation.metrics.promise import along_error, motion_errors, score_promise
from recon4d_ros.evaluation.truth import Truth
from recon4d_ros.geometry import exp

SHARED = Path(__file__).resolve().parents[2] / "shared"


def poses(rng: np.random.Generator, covariance: np.ndarray, frames: int) -> tuple:
    """A drive, and an estimate whose motions err with a covariance."""
    truth, estimate = [np.eye(4)], [np.eye(4)]
    for _ in range(frames):
        motion = exp(np.array([0.8, 0.0, 0.0, 0.0, 0.0, 0.02]))
        truth.append(truth[-1] @ motion)
        noise = rng.multivariate_normal(np.zeros(6), covariance)
        estimate.append(estimate[-1] @ motion @ exp(noise))
    return np.stack(estimate), np.stack(truth)


@pytest.mark.parametrize("too_sure", [1.0, 3.0])
def test_nees_is_one_where_covariances_are_true(too_sure: float) -> None:
    root = np.random.default_rng(1).normal(size=(6, 6)) * 0.01
    covariance = root @ root.T + 1e-6 * np.eye(6)
    estimate, truth = poses(np.random.default_rng(2), covariance, 1500)
    error = motion_errors(estimate, truth)
    said = np.repeat(covariance[None] / too_sure**2, len(error), 0)
    score = score_promise(error, said)
    assert abs(score.nees / too_sure**2 - 1.0) < 0.06
    assert (score.nees_low < score.nees < score.nees_high) == (too_sure == 1.0)
    assert score.frames == 1500


def test_promise_is_three_sigma_and_two_centimetres() -> None:
    error = np.zeros((4, 6))
    error[:, 0] = (0.019, 0.049, 0.051, 0.2)
    covariance = np.repeat(np.diag([1e-4, 1.0, 1.0, 1, 1, 1])[None], 4, 0)
    np.testing.assert_allclose(along_error(error, covariance)[1], 0.01)
    assert score_promise(error, covariance).kept == 0.5
    assert np.isnan(score_promise(error[:0], covariance[:0]).kept)


def test_boxes_that_move_are_over_one_metre_per_second() -> None:
    boxes = [
        {"id": 1, "moving": True, "velocity_world": [0.9, 0.9, 0.0]},
        {"id": 2, "moving": True, "velocity_world": [0.9, 0.0, 5.0]},
        {"id": 3, "moving": False, "velocity_world": [9.0, 0.0, 0.0]},
        {"id": 4, "moving": None, "velocity_world": None},
    ]
    assert moving_tracks({"boxes": boxes}).tolist() == [1]


@pytest.mark.skipif(not (SHARED / "score_movers.py").is_file(), reason="no real bags here")
@pytest.mark.parametrize("bag", ["kitti0013_a", "sustech_crossing"])
def test_masks_at_lidar_points_score_as_the_bags_own_rules(bag: str, tmp_path: Path) -> None:
    """Masks of random blobs, and the published script beside ours: the same counts."""
    path = SHARED / "bags" / bag
    boxes = json.loads(path.with_name(f"{bag}_boxes.json").read_text())[:6]
    tracks = np.load(path.with_name(f"{bag}_point_ids.npz"))
    with BagReader(path) as reader:
        rig = reader.rig()
    camera, truth, ours = rig.cameras[0], Truth(path), PointMaskAccumulator()
    folder = tmp_path / "dynamic" / camera.name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for frame in boxes:
        stamp = frame["stamp_ns"]
        noise = cv2.resize(rng.random((6, 16)), (camera.width, camera.height))
        mask = noise > 0.55
        cv2.imwrite(str(folder / f"{stamp}.png"), mask.astype(np.uint8) * 255)
        scan = truth.points(stamp, 0)
        assert scan is not None
        ours.add(mask, scan[1], tracks[str(stamp)], moving_tracks(frame), camera)
    truth.close()
    specification = importlib.util.spec_from_file_location("movers", SHARED / "score_movers.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    theirs = module.score(path, tmp_path, camera.name)
    score: PointMaskScore = ours.score()
    assert score.frames == theirs["frames"] and score.moving_points == theirs["moving_points"] > 50
    for name in ("recall", "precision", "iou", "static_marked"):
        assert abs(getattr(score, name) - theirs[name]) < 1e-6, name
