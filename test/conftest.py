"""Fixtures that several parts' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; a test that needs it is skipped where it is
    not."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data here: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def kitti_bag(shared: Path) -> Path:
    """Stereo, grey, 51 frames at 10 Hz."""
    return shared / "bags" / "kitti_stereo_a"


@pytest.fixture(scope="session")
def ddad_bag(shared: Path) -> Path:
    """Six cameras and lidar, 3 frames."""
    return shared / "bags" / "ddad_surround"


@pytest.fixture(scope="session")
def nuscenes_bag(shared: Path) -> Path:
    """Six cameras and lidar, one frame, 43 ms of skew."""
    return shared / "bags" / "nuscenes_sample"


@pytest.fixture(scope="session")
def small_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frame sets of the simulated stereo rig, with truth."""
    from recon4d_ros.cameras.rig import load_rig
    from recon4d_ros.paths import rigs
    from recon4d_ros.sim.bag import write_bag

    path = tmp_path_factory.mktemp("bags") / "small"
    write_bag(path, load_rig(rigs() / "kitti_like.yaml"), seconds=0.8, rate=10.0, seed=3, workers=1)
    return path


@pytest.fixture(scope="session")
def stereo_engine() -> Path:
    """The shipped engine for rectified pairs."""
    return Path(__file__).resolve().parents[1] / "engines/geometric_stereo"
