"""The picture of a run: there for any rig, of the right size, and showing what it is given."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from recon4d_ros.evaluation.metrics.depth import DepthAccumulator
from recon4d_ros.evaluation.metrics.masks import MaskScore
from recon4d_ros.evaluation.metrics.trajectory import score_trajectory
from recon4d_ros.overview import CameraView, ObjectView, OverviewData, Trail
from recon4d_ros.overview.cameras import depth_colors
from recon4d_ros.overview.numbers import headline
from recon4d_ros.overview.page import WIDTH, identity_color
from recon4d_ros.overview.picture import draw_overview


def view(name: str, height: int, width: int) -> CameraView:
    v, u = np.indices((height, width))
    image = np.stack([u * 255 // width, v * 255 // height, np.full_like(u, 90)], axis=-1).astype(
        np.uint8
    )
    mask = (np.abs(u - width // 2) < width // 10) & (np.abs(v - height // 2) < height // 8)
    depth = np.where(v > height // 3, 60.0 * height / (v + 1) / 3, np.nan).astype(np.float32)
    low, high = np.array([0.4 * width, 0.4 * height]), np.array([0.6 * width, 0.6 * height])
    edges = np.linspace(low, high, 8)[None] * np.ones((12, 1, 1))
    return CameraView(name, image, mask, depth, (ObjectView(4, edges, 8.0),))


def drive(frames: int = 40) -> np.ndarray:
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = np.arange(frames)
    poses[:, 1, 3] = 0.01 * np.arange(frames) ** 2
    return poses


def data(
    cameras: int = 2, height: int = 120, width: int = 320, points: int = 20_000
) -> OverviewData:
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-10, -12, 0], [60, 30, 5], (points, 3)).astype(np.float32)
    trail = Trail(
        4,
        np.linspace([10, 3, 0.5], [30, 4, 0.5], 12),
        np.array([8.0, 0.5, 0]),
        np.array([4.2, 1.8, 1.5]),
        0.05,
    )
    views = [view(f"camera_{n}", height, width) for n in range(cameras)]
    rgb = rng.integers(0, 255, (points, 3)).astype(np.uint8)
    return OverviewData(views, xyz, rgb, drive(), [trail], {"bag": "drives/monday/", "frames": 40})


def with_truth(given: OverviewData) -> OverviewData:
    truth = drive()
    truth[:, 1, 3] += np.linspace(0, 1, len(truth))
    score = score_trajectory(drive(), truth)
    depth = DepthAccumulator(["a"])
    depth.add(0, np.array([5.2, 16.0, np.nan, 55.0]), np.array([5.0, 15.0, 30.0, 50.0]))
    metrics: dict[str, Any] = {
        "trajectory": {
            name: value
            for name, value in asdict(score).items()
            if name not in ("errors", "distance")
        },
        "depth": {
            "near": asdict(depth.score(nearer=40)),
            "ranges": {
                "0-10": asdict(depth.score(nearer=10)),
                "80-inf": asdict(depth.score(farther=80)),
            },
        },
        "masks": asdict(MaskScore(0.7, 0.8, 0.9, 0.01, 12)),
    }
    latency = {name: {"p50": 10.0, "p95": 20.0} for name in ("preprocess", "engine", "step")}
    return replace(
        given,
        truth=truth,
        distance=score.distance,
        errors=score.errors,
        shown_pose=drive()[20],
        summary={
            **given.summary,
            "metrics": metrics,
            "latency_ms": latency,
            "rate_step_hz": 9.5,
            "map_points": 20_000,
        },
    )


SHAPES = [(1, 480, 640), (1, 100, 900), (2, 370, 1226), (6, 160, 240), (3, 900, 300), (5, 90, 160)]


@pytest.mark.parametrize(("cameras", "height", "width"), SHAPES)
def test_any_rig_has_a_picture(cameras: int, height: int, width: int) -> None:
    picture = draw_overview(with_truth(data(cameras, height, width, points=2000)))
    assert (
        picture.dtype == np.uint8
        and picture.shape[1:] == (WIDTH, 3)
        and 900 < picture.shape[0] < 3400
    )
    quarters = [
        part.std()
        for half in np.array_split(picture, 2)
        for part in np.array_split(half, 2, axis=1)
    ]
    assert min(quarters) > 12, "a part of the picture is empty"


def test_mask_boxes_map_and_truth_are_seen() -> None:
    full = with_truth(data())
    picture = draw_overview(full).astype(int)
    block = slice(92, 92 + 300)

    def changed(other: OverviewData) -> np.ndarray:
        return np.abs(draw_overview(other).astype(int) - picture).max(axis=2) > 20

    unmasked = replace(
        full, cameras=[replace(camera, mask=np.zeros_like(camera.mask)) for camera in full.cameras]
    )
    assert changed(unmasked)[block].sum() > 5000 and changed(unmasked)[700:].sum() == 0
    unboxed = replace(full, cameras=[replace(camera, objects=()) for camera in full.cameras])
    assert changed(unboxed)[block].sum() > 300
    for other in (
        replace(full, points=full.points[:0], colors=full.colors[:0]),
        replace(full, trails=[]),
        replace(full, truth=None),
    ):
        assert changed(other)[block].sum() == 0 and changed(other)[900:, :1400].sum() > 200


def test_the_same_run_has_the_same_picture() -> None:
    np.testing.assert_array_equal(
        draw_overview(with_truth(data())), draw_overview(with_truth(data()))
    )


def test_nothing_at_all_is_still_a_picture() -> None:
    empty = OverviewData(
        [], np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros((0, 4, 4)), [], {}
    )
    assert draw_overview(empty).shape[1] == WIDTH
    standing = replace(
        data(1),
        trajectory=np.tile(np.eye(4), (5, 1, 1)),
        trails=[],
        points=empty.points,
        colors=empty.colors,
    )
    assert draw_overview(standing).shape[1] == WIDTH


def test_depth_colours_go_from_red_to_blue_and_none_is_dark() -> None:
    near, far, none = depth_colors(np.array([[3.0, 60.0, np.nan]], np.float32))[0].astype(int)
    assert near[0] > near[2] and far[2] > far[0] and none.max() < 60
    steps = depth_colors(np.array([[5, 10, 20, 40]], np.float32))[0].astype(int)
    assert np.abs(np.diff(steps, axis=0)).sum(axis=1).min() > 60, "ranges that cannot be told apart"


def test_the_headline_says_only_what_was_measured() -> None:
    assert headline({}) == []
    said = " ".join(headline(with_truth(data()).summary))
    assert (
        "40 frame sets" in said
        and "9.5 frame sets/s" in said
        and "mask IoU 0.70" in said
        and "drift" in said
    )
    assert len({identity_color(identity) for identity in range(50)}) == 50
