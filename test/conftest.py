"""Fixtures that several parts' tests share."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

# Workers side by side: threads of PyTorch that wait for each other spin, and take the core that the
# other worker's test needs (82 instead of 104 s for the networks' files on two cores).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


# `make test` is a gate: it says the same twice. `make test-full` looks for new examples.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None)
settings.load_profile(os.environ.get("RECON4D_HYPOTHESIS", "repeatable"))

# The files that take longest, longest first: workers that take a file each then end together.
# (pytest-xdist's own order, by number of tests, is switched off in the Makefile.)
LONGEST = (
    "test_ros_graph.py",
    "test_tensorrt_build.py",
    "test_engine.py",
    "test_networks_uniscene.py",
    "test_scenarios.py",
    "test_egomotion.py",
    "test_localization.py",
    "test_export_learned.py",
    "test_ros_live.py",
    "test_networks_sparse4d.py",
    "test_networks_driv3r.py",
    "test_cli.py",
    "test_engine_any_size.py",
    "test_ros_node.py",
    "test_sim.py",
    "test_bags_as_they_come.py",
    "test_perception.py",
    "test_chaos.py",
    "test_networks_point3r.py",
    "test_preprocess.py",
    "test_motion_inputs.py",
    "test_mapping.py",
    "test_quantize.py",
    "test_overview.py",
    "test_dynamics.py",
    "test_driv3r_geometry.py",
    "test_demo.py",
    "test_build.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by file, longest first; the order within a file stays."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


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
    """Eight frame sets of the simulated stereo rig at half its size, 621x188, with truth."""
    from recon4d_ros.cameras.rig import load_rig
    from recon4d_ros.paths import rigs
    from recon4d_ros.sim.bag import write_bag
    from recon4d_ros.types import Rig

    rig = load_rig(rigs() / "kitti_like.yaml")
    cameras = []
    for camera in rig.cameras:
        k = camera.k / 2
        k[:2, 2] -= 0.25  # pixel (0, 0) is the first pixel's centre
        k[2, 2] = 1.0
        cameras.append(replace(camera, width=621, height=188, k=k))
    path = tmp_path_factory.mktemp("bags") / "small"
    write_bag(path, Rig(rig.name, tuple(cameras)), seconds=0.8, rate=10.0, seed=3, workers=1)
    return path


@pytest.fixture(scope="session")
def stereo_engine() -> Path:
    """The shipped engine for rectified pairs."""
    return Path(__file__).resolve().parents[1] / "engines/geometric_stereo"


# every kind of block and operator of the published ones
BLOCKS = "encoder_depth=1,encoder_width=64,encoder_heads=2,decoder_depth=2,decoder_width=96,decoder_heads=2,value_depth=1,head_width=32"  # noqa: E501
LEARNED = {
    "point3r": f"stand-in:{BLOCKS},pointer_heads=4,pose_slots=8",
    "driv3r": f"stand-in:{BLOCKS}",
    "dymultidepth": "stand-in",
}


@pytest.fixture(scope="session")
def once(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)` gives a folder that `make(folder)` filled, once per run of the tests: the
    workers of pytest-xdist share it. Nobody may write into it afterwards."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent
    (base / "once").mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / "once" / name
        with open(base / "once" / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                new = folder.with_name(f"{name}.new")
                shutil.rmtree(new, ignore_errors=True)  # of a worker that failed
                make(new)
                new.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def learned_engine(
    once: Callable[[str, Callable[[Path], object]], Path], request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """Gives the engine of a published network, tiny, with stand-in weights, as a user exports it:
    Point3R for one camera, the others for the two of small_bag."""

    def export(network: str) -> Path:
        from recon4d_ros.cli import main

        def make(folder: Path) -> None:
            command = ["export", "--network", network, "--checkpoint", LEARNED[network]]
            if network == "point3r":
                rig = ["--cameras", "1", "--size", "48x64", "--image-size", "96x128"]
                rig += ["--pointers", "60", "--runtime", "tensorrt"]
            else:
                rig = ["--rig", str(request.getfixturevalue("small_bag")), "--size", "48x160"]
                rig += ["--pointers", "200"]
            assert main([*command, *rig, "--out", str(folder)]) == 0

        return once(network, make)

    return export
