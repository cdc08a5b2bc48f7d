"""A camera that is mounted otherwise than its calibration says is found by the motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_egomotion import MONO, STEREO, SURROUND, calibrate, error, run, street

from recon4d_ros import geometry
from recon4d_ros.egomotion import Egomotion
from recon4d_ros.egomotion.camera_rig import Cameras
from recon4d_ros.egomotion.mount_check import MountCheck
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.types import Rig

FORWARD = geometry.exp(np.array([0.9, 0.01, 0, 0, 0, 0.01]))


def turned(rig: Rig, camera: int, turn: np.ndarray) -> np.ndarray:
    """T_base_camera [N, 4, 4] with one camera turned about its own centre, along base_link."""
    mounts = rig.T_base_camera.copy()
    rotation = geometry.exp(np.concatenate([np.zeros(3), turn]))[:3, :3]
    mounts[camera, :3, :3] = rotation @ mounts[camera, :3, :3]
    return mounts


def seen(
    rig: Rig, true: np.ndarray, motion: np.ndarray, rng: np.random.Generator, count: int = 300
) -> tuple[Observations, np.ndarray]:
    """What cameras at `true` mounts see of points before and after a motion, written down with the
    calibrated ones; and which sightings are of the camera that follows the point."""
    nominal, n = rig.T_base_camera, len(rig.cameras)
    camera = rng.integers(0, n, count)
    first = np.column_stack(
        [rng.uniform([-0.6, -0.35], [0.6, 0.35], (count, 2)), np.ones(count)]
    ) * rng.uniform(4, 25, (count, 1))
    world = np.einsum("mij,mj->mi", true[camera, :3, :3], first) + true[camera, :3, 3]
    parts = []
    for other in range(n):
        place = geometry.inverse(motion @ true[other])
        at = geometry.transform(place, world)
        beside = nominal[camera, :3, 2] @ nominal[other, :3, 2] > 0.9
        visible = beside & (at[:, 2] > 1.0) & (np.abs(at[:, :2] / at[:, 2:]) < 0.8).all(1)
        parts.append((np.flatnonzero(visible), np.full(visible.sum(), other), at[visible]))
    index = np.concatenate([part[0] for part in parts])
    by, at = (
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )
    ray = first[:, :2] / first[:, 2:]
    bearing = np.einsum("mij,mj->mi", nominal[camera, :3, :2], ray) + nominal[camera, :3, 2]
    rho = 1.0 / first[:, 2]
    noise = rng.normal(0, 0.0007, (len(index), 2))
    o = Observations(
        nominal[camera, :3, 3][index],
        bearing[index],
        rho[index],
        np.square(0.02 * rho)[index],
        by,
        at[:, :2] / at[:, 2:] + noise,
        np.full(len(index), 0.0007),
        index,
    )
    return o, camera[index] == by


def check_of(rig: Rig, camera: int, turn: np.ndarray, motions: int = 60) -> MountCheck:
    rng, check = np.random.default_rng(0), MountCheck(Cameras.of(rig, calibrate(rig), 400))
    true = turned(rig, camera, turn)
    for _ in range(motions):
        o, own = seen(rig, true, FORWARD, rng)
        check.add(o, own, FORWARD, geometry.inverse(rig.T_base_camera), FORWARD)
    return check


@pytest.mark.parametrize("turn", [(0, 0.8, 0.0), (0, 0, -1.0), (0, 0.7, 0.7)])
@pytest.mark.parametrize("camera", [0, 2])
def test_a_turned_camera_of_a_surround_rig_is_found(camera: int, turn: tuple) -> None:
    check = check_of(SURROUND, camera, np.radians(turn))
    found, _ = check.turns()
    assert np.degrees(np.abs(found[camera] - np.radians(turn))).max() < 0.25
    told = check.troubles()
    assert told[camera].startswith("mount turned by") and not any(
        text for other, text in enumerate(told) if other != camera
    )


def test_a_turned_camera_of_a_pair_is_found_about_all_axes() -> None:
    turn = np.radians([0.5, -0.4, 0.3])
    found, _ = check_of(STEREO, 1, turn).turns()
    assert np.degrees(np.abs(found[1] - turn)).max() < 0.2


@pytest.mark.parametrize("rig", [SURROUND, STEREO, MONO], ids=["surround", "stereo", "mono"])
def test_sound_mounts_are_left_alone(rig: Rig) -> None:
    check = check_of(rig, 0, np.zeros(3))
    assert not any(check.troubles())


def test_a_rig_that_is_turned_as_a_whole_goes_sideways() -> None:
    rng, check = np.random.default_rng(0), MountCheck(Cameras.of(MONO, calibrate(MONO), 400))
    aside = geometry.exp(np.array([0.9, -0.9 * np.radians(1.5), 0, 0, 0, 0]))
    for _ in range(90):
        o, own = seen(MONO, MONO.T_base_camera, aside, rng)
        check.add(o, own, aside, geometry.inverse(MONO.T_base_camera), aside)
    assert np.degrees(check.rig_yaw()[0]) == pytest.approx(1.5, abs=0.2)
    assert "as all cameras of the rig" in check.troubles()[0]


def test_the_stage_tells_it_and_leaves_a_sound_rig_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendered street, a rig file that is wrong by 1.2 degrees for one camera."""
    monkeypatch.setattr("recon4d_ros.egomotion.egomotion.CHECKED", 1)
    shots = street("surround", 20)
    ego = Egomotion(SURROUND, calibrate(SURROUND))
    run(SURROUND, shots, ego=ego)
    sound, _ = ego._mount_check.turns()
    mounts = turned(SURROUND, 1, np.radians([0, 0, 1.2]))
    wrong = Rig(
        "wrong",
        tuple(
            replace(camera, T_base_camera=mount)
            for camera, mount in zip(SURROUND.cameras, mounts, strict=True)
        ),
    )
    ego = Egomotion(wrong, calibrate(wrong))
    poses = run(wrong, shots, ego=ego)
    found, _ = ego._mount_check.turns()
    assert np.degrees(np.abs(sound[:, 1:])).max() < 0.3  # about y and z: x is not seen
    assert np.degrees(found[1, 2]) < -0.4 and error(poses[-1].T_map_base, shots[-1][2])[0] < 1.0
