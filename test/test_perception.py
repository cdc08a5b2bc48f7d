"""Engines beside the reconstruction: what they say is put into the right frame, at the right time,
into one list; offline, and what needs no ROS."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_beside import VOXELS, object_engine, occupancy_engine

from recon4d_ros import cli
from recon4d_ros.cameras.preprocess import make_calibration
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.dynamics.one_list import DETECTED, MARGIN, OneList, matched
from recon4d_ros.errors import EngineError
from recon4d_ros.geometry import exp
from recon4d_ros.mapping import read_cloud
from recon4d_ros.paths import rigs
from recon4d_ros.perception import Look, Objects, OccupiedSpace, newest_look
from recon4d_ros.types import (
    Detection,
    Detections,
    DynamicObject,
    Frame,
    FrameSet,
    Jump,
    PoseEstimate,
    RawImage,
    Rig,
    Tracking,
)

START = 1_700_000_000_000_000_000
INPUT = (188, 621)  # kitti_like's images, halved
# x ahead of the lidar is to the right of the car: 20 m ahead, 3 m to the left, 1.8 below the lidar
CAR = [-3.0, 20.0, -1.0, 4.0, 2.0, 1.6, np.pi / 2]
WALKS = [4.0, 10.0, -0.9, 0.6, 0.6, 1.7, 0.0]


@pytest.fixture(scope="module")
def rig() -> Rig:
    return load_rig(rigs() / "kitti_like.yaml")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("engines")
    object_engine(
        folder / "objects",
        [CAR, WALKS],
        [[0.5, 5.0, 9.0], [0.0, 0.0, 0.0]],
        [0, 1],
        INPUT,
        trained_cameras=6,
    )
    score = np.zeros(VOXELS)
    score[4, 2, 1] = 0.75
    occupancy_engine(folder / "occupancy", score, INPUT)
    return {name: folder / name for name in ("objects", "occupancy")}


def pose(
    T_map_base: np.ndarray, rig: Rig, tracking: Tracking = Tracking.TRACKING, segment: int = 0
) -> PoseEstimate:
    cameras = T_map_base @ rig.T_base_camera
    zero = np.zeros((6, 6))
    return PoseEstimate(T_map_base, cameras, tracking, zero, zero, np.zeros(6), segment=segment)


def look(rig: Rig, where: PoseEstimate, stamp: int = START, jump: Jump = Jump.NONE) -> Look:
    raw = np.zeros((rig.cameras[0].height, rig.cameras[0].width), np.uint8)
    height, width = raw.shape
    images = {
        name: RawImage(stamp, "mono8", raw.reshape(-1), width, height, width) for name in rig.names
    }
    frame = Frame(
        stamp, np.zeros((2, *INPUT, 1), np.uint8), np.ones(2, bool), np.full(2, stamp, np.int64)
    )
    return Look(FrameSet(stamp, images, jump=jump), frame, where)


TURNED = exp(np.array([100.0, -20, 0.3, 0, 0, 2.0]))


def test_objects_are_in_the_map_with_their_velocity_over_ground(rig, folders) -> None:
    objects = Objects(folders["objects"], rig, threads=1)
    found = objects(look(rig, pose(TURNED, rig)))
    assert found is not None and found.stamp_ns == START
    car, walks = found.objects
    assert (car.class_name, walks.class_name, car.id, walks.id) == ("car", "pedestrian", 5, 6)
    # the lidar is 1 m ahead and 1.8 m above base_link, its y ahead
    np.testing.assert_allclose(car.box_base[:3], [21.0, 3.0, 0.8], atol=1e-5)
    np.testing.assert_allclose(walks.box_base[:3], [11.0, -4.0, 0.9], atol=1e-5)
    np.testing.assert_allclose(car.velocity_base[:2], [5.0, -0.5], atol=1e-5)
    np.testing.assert_allclose(car.box_base[6], 0.0, atol=1e-5)
    at = TURNED[:3, :3] @ car.box_base[:3] + TURNED[:3, 3]
    np.testing.assert_allclose(car.box_map[:3], at, atol=1e-4)
    assert car.box_map[6] == pytest.approx(2.0, abs=1e-5)
    np.testing.assert_allclose(
        car.velocity_map[:2], (TURNED[:3, :3] @ car.velocity_base)[:2], atol=1e-5
    )
    assert any("trained with 6 cameras and runs with 2" in text for text in objects.warnings)
    objects.close()


def test_without_a_usable_pose_nothing_is_asked(rig, folders) -> None:
    for kind, folder in ((Objects, "objects"), (OccupiedSpace, "occupancy")):
        engine = kind(folders[folder], rig, threads=1)
        resets = []
        engine.engine.reset = lambda resets=resets: resets.append(True)
        for tracking in (Tracking.LOST, Tracking.DEGRADED, Tracking.STARTING):
            assert engine(look(rig, pose(np.eye(4), rig, tracking))) is None
        assert not resets and engine(look(rig, pose(np.eye(4), rig))) is not None
        engine(look(rig, pose(np.eye(4), rig, segment=1)))
        engine(look(rig, pose(np.eye(4), rig, segment=1)))
        assert len(resets) == 1  # another segment: where the old one was is not known
        engine(look(rig, pose(np.eye(4), rig, segment=1), jump=Jump.BACKWARD))
        assert len(resets) == 2
        engine.close()


def test_images_that_are_decoded_already_are_taken(rig, folders) -> None:
    calibration = make_calibration(rig, INPUT, (96, 320))
    seen = []
    for shared in (None, calibration):
        engine = Objects(folders["objects"], rig, threads=1, shared=shared)
        step = engine.engine.step
        engine.engine.step = lambda frame, *rest, step=step: (
            seen.append(frame) or step(frame, *rest)
        )
        given = look(rig, pose(np.eye(4), rig))
        engine(given)
        assert (seen[-1] is given.frame) == (shared is not None)
        assert seen[-1].images.shape == (2, *INPUT, 1) and seen[-1].present.all()
        engine.close()


def test_a_jump_is_not_lost_with_the_look_it_displaces(rig) -> None:
    back = look(rig, pose(np.eye(4), rig), jump=Jump.BACKWARD)
    next_one = look(rig, pose(np.eye(4), rig), START + 1)
    assert newest_look(back, next_one).frame_set.jump is Jump.BACKWARD
    assert newest_look(None, next_one) is next_one
    assert newest_look(next_one, back).frame_set.stamp_ns == START


def test_engines_of_another_rig_or_kind_are_refused(rig, folders) -> None:
    alone = Rig("alone", rig.cameras[:1])
    with pytest.raises(EngineError, match="2 camera"):
        Objects(folders["objects"], alone)
    with pytest.raises(EngineError, match="2 camera"):
        OccupiedSpace(folders["occupancy"], alone)
    with pytest.raises(EngineError, match="no objects"):
        Objects(folders["occupancy"], rig)
    with pytest.raises(EngineError, match="gives no occupancy"):
        OccupiedSpace(folders["objects"], rig)
    with pytest.raises(EngineError, match="no such folder"):
        Objects(Path("/nowhere"), rig)


# --- one list


def detection(
    at: tuple[float, float], identity: int = 1, velocity: tuple[float, float] = (0.0, 0.0)
) -> Detection:
    box = np.array([*at, 0.8, 4.0, 2.0, 1.6, 0.0])
    speed = np.array([*velocity, 3.0])
    return Detection(identity, "car", 0.9, 0.7, box, box, speed, speed)


def track(at: tuple[float, float], identity: int = 7) -> DynamicObject:
    eye = np.eye(3)
    return DynamicObject(
        identity,
        np.array([*at, 0.5]),
        0.3,
        np.array([1.0, 1.0, 1.0]),
        np.array([2.0, 0.0, 0.0]),
        eye,
        eye,
        0.8,
        4,
        0,
    )


def test_a_track_that_is_detected_gets_its_class_and_is_there_once() -> None:
    one_list = OneList()
    tracks = (track((10.0, 0.5)), track((30.0, 0.0), 8))
    assert one_list.at(START, tracks, 0) == tracks
    one_list.take(Detections(START, (detection((11.5, 0.0)), detection((50.0, 9.0), 2))), 0)
    named, other, alone = one_list.at(START, tracks, 0)
    assert (named.id, named.class_name, named.class_score) == (7, "car", 0.9)
    assert np.array_equal(named.velocity, tracks[0].velocity) and named.age == 4
    assert other is tracks[1]
    assert (alone.id, alone.class_name, alone.age, alone.missed) == (DETECTED + 2, "car", 1, 0)
    assert alone.confidence == 0.7 and np.isnan(alone.position_covariance).all()
    # it keeps its class when the network does not see it, and loses it with its track
    one_list.take(Detections(START + 1, ()), 0)
    assert one_list.at(START + 1, tracks, 0)[0].class_name == "car"
    assert one_list.at(START + 2, tracks[1:], 0) == tracks[1:]
    assert one_list.at(START + 3, tracks, 0)[0].class_name == ""


@given(st.floats(0.0, 1.9), st.floats(-20, 20), st.floats(-20, 20))
def test_detections_are_carried_by_their_velocity_to_the_lists_stamp(dt, vx, vy) -> None:
    one_list = OneList()
    one_list.take(Detections(START, (detection((5.0, 6.0), 3, (vx, vy)),)), 0)
    stamp = START + round(dt * 1e9)
    (alone,) = one_list.at(stamp, (), 0)
    seconds = (stamp - START) * 1e-9
    np.testing.assert_allclose(alone.position, [5 + seconds * vx, 6 + seconds * vy, 0.8], atol=1e-9)
    np.testing.assert_allclose(alone.velocity, [vx, vy, 0.0])


def test_what_is_too_old_or_of_another_map_is_not_said() -> None:
    one_list = OneList()
    one_list.take(Detections(START, (detection((5.0, 6.0)),)), (0, 0))
    assert one_list.at(START + 3 * 10**9, (), (0, 0)) == () and one_list.too_old == 1
    assert one_list.at(START + 4 * 10**9, (), (0, 0)) == () and one_list.too_old == 1
    assert one_list.at(START - 1, (), (0, 0)) == ()
    assert one_list.at(START + 1, (), (0, 1)) == ()
    assert len(one_list.at(START + 1, (), (0, 0))) == 1
    one_list.take(Detections(START, (replace(detection((5.0, 6.0)), id=-1),)), (0, 0))
    assert one_list.at(START + 1, (), (0, 0)) == ()  # the network is not sure of it yet


def test_ages_count_what_was_seen_in_a_row() -> None:
    one_list = OneList()
    for step in range(3):
        one_list.take(Detections(START + step, (detection((5.0, 6.0)),)), 0)
    assert [one_list.at(START + 3, (), 0)[0].missed for _ in range(3)] == [0, 1, 2]
    assert one_list.at(START + 3, (), 0)[0].age == 3
    one_list.take(Detections(START + 4, ()), 0)
    one_list.take(Detections(START + 5, (detection((5.0, 6.0)),)), 0)
    assert one_list.at(START + 5, (), 0)[0].age == 1


places = st.tuples(st.floats(-20, 20), st.floats(-20, 20))


@given(st.lists(places, max_size=6), st.lists(places, max_size=6))
def test_nobody_is_matched_twice_or_with_what_is_far(tracks, detections) -> None:
    ours = tuple(track(at, index) for index, at in enumerate(tracks))
    one_list = OneList()
    found = [detection(at, index) for index, at in enumerate(detections)]
    one_list.take(Detections(START, tuple(found)), 0)
    listed = one_list.at(START, ours, 0)
    carried = [one for one in listed if one.id >= DETECTED]
    pairs = matched(ours, [one_list._carried(one, 0.0, 0) for one in found])
    assert len(set(pairs.values())) == len(pairs)
    assert len(listed) == len(ours) + len(found) - len(pairs)
    assert len(carried) == len(found) - len(pairs)
    for one, other in pairs.items():
        apart = np.abs(ours[one].position - found[other].box_map[:3])[:2]
        assert (apart <= np.array([2.0, 1.0]) + MARGIN + 1e-9).all() or np.hypot(*apart) < 3


# --- offline


def test_replay_writes_what_they_say(small_bag: Path, folders, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    command = ["replay", str(small_bag), "--out", str(out), "--max-frames", "4"]
    command += ["--object-engine", str(folders["objects"])]
    command += ["--occupancy-engine", str(folders["occupancy"])]
    assert cli.main(command) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [one["network"] for one in summary["engines_beside"]] == ["sparse4d", "uniscene"]
    assert any("trained with 6 cameras" in note for note in summary["notes"])
    lines = [json.loads(line) for line in (out / "objects.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    rows = [line.split() for line in (out / "trajectory.tum").read_text().splitlines()]
    said = 0
    for line, row in zip(lines, rows, strict=True):
        cars = [one for one in line["objects"] if one.get("class_name") == "car"]
        for car in cars:
            said += 1
            at = np.array([float(value) for value in row[1:4]])
            assert 20 < np.hypot(*(np.array(car["position"]) - at)[:2]) < 23
            assert car["id"] == DETECTED + 5 and car["position_covariance"][0][0] is None
    clouds = sorted((out / "occupancy").iterdir())
    assert said >= 2 and 2 <= len(clouds) <= 4
    cloud = read_cloud(clouds[-1])
    # voxel (4, 2, 1) of 4 x 4 x 4/3 m from (-10, -10, -2) around the lidar, 1.8 m up
    np.testing.assert_allclose(cloud.xyz, [[8.0, 0.0, 1.8]], atol=1e-5)
    np.testing.assert_allclose(cloud.weight, [0.75])
    capsys.readouterr()
    assert cli.main([*command[:-1], "/nowhere", "--force"]) != 0
    assert "/nowhere" in capsys.readouterr().err
