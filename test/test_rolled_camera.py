"""A camera that is mounted rolled, from images to map, against the simulated truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from recon4d_ros import cli
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.geometry import exp
from recon4d_ros.paths import rigs
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.types import Camera, Rig


def small_pair(quarters: int) -> Rig:
    """The stereo rig at a third of its size, its right camera turned by quarters."""
    cameras = []
    for camera in load_rig(rigs() / "kitti_like.yaml").cameras:
        width, height, turn = 416, 124, quarters if camera.name == "right" else 0
        k = np.array([[240.0, 0, 207.5], [0, 240, 61.5], [0, 0, 1]])
        size = (width, height)
        if turn % 2:
            size, k[:2, 2] = (height, width), (61.5, 207.5)
        pose = camera.T_base_camera @ exp(np.array([0, 0, 0, 0, 0, turn * np.pi / 2]))
        cameras.append(Camera(camera.name, *size, k, pose))
    return Rig("small", tuple(cameras))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """What a replay scores against the truth, by quarters; the same engine for all."""

    @cache
    def score(quarters: int) -> dict:
        folder = tmp_path_factory.mktemp("rolled")
        write_bag(folder / "bag", small_pair(quarters), seconds=1.0, rate=10.0, seed=3, workers=1)
        command = ["replay", str(folder / "bag"), "--out", str(folder / "run")]
        command += ["--odometry", "none", "--engine", "geometric_surround2"]
        assert cli.main(command) == 0
        return json.loads((folder / "run/summary.json").read_text())["metrics"]

    return score


@pytest.mark.full
@pytest.mark.parametrize("quarters", [1, 2])
def test_a_neighbour_that_is_rolled_is_as_good_as_one_that_is_not(
    metrics: Callable[[int], dict], quarters: int
) -> None:
    """Where its patches were compared unturned, it matched nothing, and the pose drifted by half
    of the way."""
    level, rolled = metrics(0), metrics(quarters)
    for camera in ("left", "right"):
        ours, theirs = (one["depth"]["confident_cameras"][camera] for one in (rolled, level))
        assert ours["delta1"] > theirs["delta1"] - 0.02
        assert ours["coverage"] > 0.9 * theirs["coverage"]
    ours, theirs = (one["trajectory"]["rpe_translation"] for one in (rolled, level))
    assert ours < 1.5 * theirs
    assert rolled["cloud"]["precision"] > level["cloud"]["precision"] - 0.05
