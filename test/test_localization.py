"""Maps that last: what is written is what is read, the car is found where it is and nowhere else,
and what a user can do wrong is one sentence."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from recon4d_ros import cli
from recon4d_ros.cameras.preprocess import make_calibration
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.egomotion.pnp import Observations
from recon4d_ros.errors import MapError, OutputError
from recon4d_ros.geometry import exp, inverse, log, transform
from recon4d_ros.localization import (
    Background,
    LocalizationParameters,
    Places,
    loops,
    moved_objects,
    open_map,
    pose_graph,
    rig_pose,
)
from recon4d_ros.localization import map_folder as folders
from recon4d_ros.localization.agreement import Agreement, Said
from recon4d_ros.localization.features import Features
from recon4d_ros.localization.keyframes import Keyframe, packed, unpacked
from recon4d_ros.localization.matching import matches
from recon4d_ros.localization.nearby import Nearby
from recon4d_ros.localization.relocalizer import Answer, apart, find, plausible
from recon4d_ros.localization.vocabulary import Index, Vocabulary
from recon4d_ros.mapping import Mapper, MappingParameters
from recon4d_ros.paths import rigs
from recon4d_ros.runs.files import read_trajectory
from recon4d_ros.sim.simulate import Simulator
from recon4d_ros.types import (
    Calibration,
    DynamicObject,
    Frame,
    Geometry,
    GridTiles,
    PoseEstimate,
    Rig,
    Tracking,
)

OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])


def turned(angle: float) -> np.ndarray:
    return exp(np.array([0, 0, 0, 0, 0, angle]))


# ---- words, pairs and poses, of made-up features


def flipped(descriptors: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """Each with so many of its bits wrong."""
    every = np.unpackbits(descriptors, axis=1)
    for row in every:
        row[rng.choice(256, bits, replace=False)] ^= 1
    return np.packbits(every, axis=1)


def test_the_keyframe_that_shares_most_words_comes_first():
    rng = np.random.default_rng(1)
    places = [rng.integers(0, 256, (150, 32), np.uint8) for _ in range(12)]
    index = Index(Vocabulary.learn(np.concatenate(places)))
    for place in places:
        index.add(place)
    every, some = np.ones(12, bool), np.ones(3, bool)
    for number, place in enumerate(places):
        assert int(np.argmax(index.scores(flipped(place, 30, rng), every))) == number
    whole, even = index.scores(places[4], every), np.arange(12) % 2 == 0
    np.testing.assert_array_equal(index.scores(places[4], even), np.where(even, whole, 0))
    index.keep(3)
    assert len(index) == 3 and len(index.scores(places[5], some)) == 3
    again = Index(index.vocabulary)
    for place in places[:3]:
        again.add(place)
    np.testing.assert_allclose(index.scores(places[1], some), again.scores(places[1], some))
    assert len(index.scores(np.zeros((0, 32), np.uint8), some)) == 3


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 40))
def test_pairs_are_found_and_what_has_no_partner_has_none(seed: int, alone: int):
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 256, (80, 32), np.uint8)
    order = rng.permutation(80)[:60]
    strangers = rng.integers(0, 256, (alone, 32), np.uint8)
    query = np.concatenate([flipped(known[order], 25, rng), strangers])
    a, b = matches(query, known)
    right = a < 60
    assert (order[a[right]] == b[right]).all() and right.sum() >= 58
    assert (~right).sum() <= 1 + alone // 20
    assert len(matches(query[:1], known)[0]) == 0


def rig_mounts(cameras: int) -> np.ndarray:
    """T_base_camera of cameras that look around."""
    return np.stack([turned(2 * np.pi * n / cameras) @ OPTICAL for n in range(cameras)])


def sightings(
    rng: np.random.Generator, mounts: np.ndarray, pose: np.ndarray, right: int, wrong: int
) -> Observations:
    """Points around a keyframe at the origin, seen from `pose`; wrong ones anywhere."""
    parts = []
    per = (right + wrong) // len(mounts) + 1
    for camera, mount in enumerate(mounts):
        inside = rng.uniform((-0.8, -0.4, 4.0), (0.8, 0.4, 30.0), (per, 3))
        local = np.column_stack([inside[:, :2] * inside[:, 2:], inside[:, 2]])
        points = transform(pose @ mount, local)
        ray = inside[:, :2] + rng.normal(0, 1 / 600, (per, 2))
        bad = np.arange(per) < round(per * wrong / (right + wrong))
        ray[bad] = rng.uniform(-0.8, 0.8, (bad.sum(), 2))
        distance = np.linalg.norm(points, axis=1)
        parts.append(
            Observations(
                np.zeros((per, 3)),
                points / distance[:, None],
                1 / distance,
                (0.03 / distance) ** 2,
                np.full(per, camera),
                ray,
                np.full(per, 1.5 / 600),
                np.arange(per),
            )
        )
    return Observations.join(parts)


@settings(max_examples=12)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 6]),
    st.floats(-3.0, 3.0),
    st.floats(-1.0, 1.0),
    st.floats(-0.4, 0.4),
)
def test_the_rig_is_found_by_pairs_half_of_which_are_wrong(seed, cameras, x, y, yaw):
    rng, mounts = np.random.default_rng(seed), rig_mounts(cameras)
    pose = exp(np.array([x, y, 0.1, 0.01, -0.02, yaw]))
    found = rig_pose.solve(inverse(mounts), sightings(rng, mounts, pose, 120, 120))
    assert found is not None
    error = log(inverse(pose) @ found.T_map_base)
    assert np.linalg.norm(error[:3]) < 0.25 and np.linalg.norm(error[3:]) < 0.02
    # all six together: no farther off than its covariance says (99.99 %: 28)
    assert error @ np.linalg.solve(found.covariance, error) < 60.0
    assert found.cameras == cameras


def test_pairs_that_are_all_wrong_make_no_pose_that_is_believed():
    for seed in range(5):
        rng, mounts = np.random.default_rng(seed), rig_mounts(4)
        found = rig_pose.solve(inverse(mounts), sightings(rng, mounts, np.eye(4), 0, 300))
        assert found is None or found.inliers < 12


def test_a_car_that_lies_or_floats_is_not_believed():
    frame = Keyframe(0, turned(1.0), rig_mounts(1), 0, 0)
    assert plausible(turned(1.0) @ exp(np.array([5.0, 1, 0.2, 0, 0, 2.0])), frame)
    assert not plausible(exp(np.array([0, 0, 2.0, 0, 0, 0])), frame)
    assert not plausible(exp(np.array([0, 0, 0, 0.3, 0, 0])), frame)
    assert not plausible(exp(np.array([60.0, 0, 0, 0, 0, 0])), frame)


def place_of(rng: np.random.Generator, count: int = 200) -> Features:
    depth = rng.uniform(5, 25, count).astype(np.float32)
    return Features(
        np.zeros(count, np.int16),
        rng.uniform(-0.7, 0.7, (count, 2)).astype(np.float32),
        np.full(count, 1 / 600, np.float32),
        1 / depth,
        (0.02 / depth) ** 2,
        rng.integers(0, 256, (count, 32), np.uint8),
    )


def seen_from(place: Features, motion: np.ndarray, rng: np.random.Generator) -> Features:
    """A place's features as a camera sees them after the car's motion."""
    points = np.column_stack([place.ray, np.ones(len(place))]) / place.rho[:, None]
    local = transform(inverse(OPTICAL) @ inverse(motion) @ OPTICAL, points.astype(np.float64))
    return replace(
        place,
        ray=(local[:, :2] / local[:, 2:]).astype(np.float32),
        descriptor=flipped(place.descriptor, 20, rng),
    )


def test_one_place_is_an_answer_and_two_that_look_alike_are_none():
    rng = np.random.default_rng(3)
    a, b = place_of(rng), place_of(rng)
    known = {0: a, 1: b, 2: a}
    frames = [
        Keyframe(0, np.eye(4), rig_mounts(1), 0, 200),
        Keyframe(1, exp(np.array([20.0, 0, 0, 0, 0, 0])), rig_mounts(1), 1, 200),
        Keyframe(2, exp(np.array([90.0, 0, 0, 0, 0, 1.0])), rig_mounts(1), 2, 200),
    ]
    motion = exp(np.array([0.8, 0.3, 0, 0, 0, 0.1]))
    query, mounts = seen_from(a, motion, rng), inverse(rig_mounts(1))

    def ask(candidates: list[int], query: Features = query):
        return find(query, mounts, frames, candidates, lambda frame: known[frame.start], 25)

    answer, _ = ask([1, 0])
    assert answer is not None and answer.keyframes == (0,)
    assert np.linalg.norm(log(inverse(motion) @ answer.T_map_base)[:3]) < 0.1
    answer, why = ask([0, 2])
    assert answer is None and "two places look alike" in why
    answer, why = ask([0, 1], place_of(rng))
    assert answer is None and "agrees with what is seen" in why


def said(pose: np.ndarray, T_odom_base: np.ndarray, way: float, keyframes=(0,)) -> Said:
    return Said(Answer(pose, np.eye(6) * 1e-4, 50, keyframes), T_odom_base, way)


def test_one_answer_alone_never_says_where_the_car_is():
    offset, step = exp(np.array([30.0, 4, 0, 0, 0, 1.0])), exp(np.array([2.0, 0, 0, 0, 0, 0.05]))
    a = Agreement()
    assert a.hear(said(offset, np.eye(4), 0.0), np.zeros((6, 6))) == "waiting" and not a.found
    # the same images again say nothing new, unless several keyframes stand for both
    assert a.hear(said(offset, np.eye(4), 0.1), np.zeros((6, 6))) == "waiting"
    # another place contradicts it
    wrong = exp(np.array([3.0, 0, 0, 0, 0, 0])) @ offset @ step
    assert a.hear(said(wrong, step, 2.0), np.zeros((6, 6))) == "waiting" and not a.found
    # what odometry says lies between confirms it
    assert a.hear(said(offset @ step, step, 2.0), np.zeros((6, 6))) == "found"
    np.testing.assert_allclose(a.T_map_odom, offset, atol=1e-6)
    several = Agreement()
    assert several.hear(said(offset, np.eye(4), 0.0, (0, 1)), np.zeros((6, 6))) == "waiting"
    assert several.hear(said(offset, np.eye(4), 0.0, (1, 2)), np.zeros((6, 6))) == "found"


def test_once_found_small_errors_are_followed_and_a_jump_needs_two_answers():
    offset, step = exp(np.array([30.0, 4, 0, 0, 0, 1.0])), exp(np.array([5.0, 0, 0, 0, 0, 0]))
    a = Agreement()
    a.hear(said(offset, np.eye(4), 0.0), np.zeros((6, 6)))
    a.hear(said(offset @ step, step, 5.0), np.zeros((6, 6)))
    drift = exp(np.array([0.1, 0.05, 0, 0, 0, 0.002]))
    growth = np.eye(6) * 0.1**2
    assert a.hear(said(offset @ step @ step @ drift, step @ step, 10.0), growth) == "followed"
    error = log(inverse(offset @ step @ step @ drift) @ a.T_map_odom @ step @ step)
    assert np.linalg.norm(error[:3]) < 0.02
    elsewhere = exp(np.array([60.0, 0, 0, 0, 0, 2.0]))
    before = a.T_map_odom
    assert a.hear(said(elsewhere, np.eye(4), 11.0), growth) == "waiting"
    np.testing.assert_array_equal(a.T_map_odom, before)
    assert a.hear(said(elsewhere @ step, step, 16.0), growth) == "moved"
    np.testing.assert_allclose(a.T_map_odom, elsewhere, atol=1e-6)


def test_objects_are_moved_as_things_are():
    T = exp(np.array([3.0, -2, 0, 0, 0, np.pi / 2]))
    one = DynamicObject(
        7,
        np.array([1.0, 0, 0.5]),
        3.0,
        np.array([4.0, 2, 1.5]),
        np.array([2.0, 0, 0]),
        np.diag([1.0, 4, 9]),
        np.diag([1.0, 4, 9]),
        0.9,
        3,
        0,
    )
    (moved,) = moved_objects((one,), T)
    np.testing.assert_allclose(moved.position, transform(T, one.position))
    np.testing.assert_allclose(moved.velocity, [0, 2, 0], atol=1e-12)
    np.testing.assert_allclose(np.diag(moved.position_covariance), [4, 1, 9], atol=1e-12)
    assert -np.pi <= moved.yaw <= np.pi and np.cos(moved.yaw - 3.0 - np.pi / 2) > 0.999999
    (back,) = moved_objects((moved,), inverse(T))
    np.testing.assert_allclose(back.position, one.position, atol=1e-12)


# ---- a drive through the simulated world, with true depth


@lru_cache(1)
def small_rig() -> Rig:
    rig = load_rig(rigs() / "kitti_like.yaml")
    cameras = []
    for camera in rig.cameras:
        k = camera.k / 2
        k[2, 2] = 1.0
        cameras.append(replace(camera, k=k, width=camera.width // 2, height=camera.height // 2))
    return Rig("small", tuple(cameras))


@lru_cache(1)
def calibration() -> Calibration:
    camera = small_rig().cameras[0]
    return make_calibration(small_rig(), (camera.height, camera.width), (96, 320))


@lru_cache(8)
def drive(name: str, traffic: int, frames: tuple[int, ...]):
    """Frame, truth's geometry and mask, and T_world_base of some frames."""
    simulator = Simulator(small_rig(), 60.0, 10.0, 3, name=name, traffic_seed=traffic)
    grid, out = calibration().grid, []
    for index in frames:
        shot = simulator.frame(index)
        u, v = np.rint(grid[..., 0]).astype(int), np.rint(grid[..., 1]).astype(int)
        height, width = shot.images[0].shape[:2]
        inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
        u, v = np.where(inside, u, 0), np.where(inside, v, 0)
        depth = np.stack([d[v[n], u[n]] for n, d in enumerate(shot.depth)])
        depth = np.where(inside & (depth < 60), depth, np.nan).astype(np.float32)
        mask = np.stack([m[v[n], u[n]] for n, m in enumerate(shot.moving)]) & inside
        color = np.zeros((*depth.shape, 3), np.uint8)
        geometry = Geometry(depth, 0.02 * depth, np.where(inside, 1, 0).astype(np.float32), color)
        frame = Frame(
            shot.stamp_ns,
            np.stack(shot.images),
            np.ones(len(depth), bool),
            np.array(shot.stamps_ns, np.int64),
        )
        out.append((frame, geometry, mask, shot.T_world_base))
    return out


def estimate(
    T: np.ndarray, tracking: Tracking = Tracking.TRACKING, deviation: float = 0.001
) -> PoseEstimate:
    return PoseEstimate(
        T,
        T @ calibration().T_base_camera,
        tracking,
        np.eye(6),
        np.eye(6) * deviation**2,
        np.zeros(6),
    )


class Car:
    """Places and a map around them, fed with frames whose odometry begins at `start`."""

    def __init__(self, start: np.ndarray, mode: str = "mapping", **parameters) -> None:
        self.mapper = Mapper(calibration(), MappingParameters(max_voxels=60_000, baseline=0.0))
        self.places = Places(
            small_rig(),
            calibration(),
            self.mapper,
            LocalizationParameters(mode=mode, **parameters),
        )
        self.T_odom_world = inverse(start)
        self.T_map_base = np.eye(4)
        self.deviation = 0.001  # that odometry claims, of each motion

    def see(self, shots, tracking: Tracking = Tracking.TRACKING) -> None:
        for frame, geometry, mask, T_world_base in shots:
            self.places.begin()
            pose = estimate(self.T_odom_world @ T_world_base, tracking, self.deviation)
            T = self.places.T_map_odom
            self.T_map_base = T @ pose.T_map_base
            moved = replace(pose, T_map_base=self.T_map_base, T_map_camera=T @ pose.T_map_camera)
            self.mapper(moved, geometry, mask, frame.stamp_ns)
            self.places.take(frame, pose, geometry, mask)
        self.places.begin()


MAPPED = (0, 4, 8, 12, 16, 20)


@pytest.fixture(scope="module")
def map_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a drive by day."""
    shots = drive("city", 3, MAPPED)
    car = Car(shots[0][3])
    car.see(shots)
    path = tmp_path_factory.mktemp("maps") / "street"
    voxels, keyframes, aside = car.places.save(path)
    assert voxels > 1000 and keyframes >= 4 and not aside
    return path


LOOKS = (6, 10, 14, 18)


def other_day():
    return drive("city+afternoon", 5, LOOKS)


def start_of_map() -> np.ndarray:
    return drive("city", 3, MAPPED)[0][3]


def test_the_car_is_found_on_another_day_and_what_it_saw_goes_into_the_map(map_dir):
    shots = other_day()
    car = Car(shots[0][3] @ turned(0.7))  # its own odometry says nothing of the map's frame
    car.places.use(open_map(map_dir, small_rig()))
    car.see(shots[:1])
    assert not car.places.found, "one frame set alone is no proof"
    np.testing.assert_array_equal(car.places.T_map_odom, np.eye(4))
    alone = car.mapper.size
    car.see(shots[1:])
    assert car.places.found and car.mapper.attached
    T_world_base = shots[-1][3]
    car.see([shots[-1]])
    truth = inverse(start_of_map()) @ T_world_base
    error = log(inverse(truth) @ car.T_map_base)
    assert np.linalg.norm(error[:3]) < 0.15 and np.linalg.norm(error[3:]) < np.radians(0.5)
    # voxels of the first drive are back, and those of the second lie where they lie
    assert car.mapper.size > 1.5 * alone
    xyz, _, _ = car.mapper.points()
    first = transform(inverse(start_of_map()), world_points(drive("city", 3, MAPPED)[2]))
    near = nearest(xyz, first)
    assert np.median(near) < 0.25


def world_points(shot) -> np.ndarray:
    _, geometry, mask, T_world_base = shot
    k = calibration().k[0]
    v, u = np.nonzero(np.isfinite(geometry.depth[0]) & ~mask[0] & (geometry.depth[0] < 20))
    v, u = v[::37], u[::37]
    z = geometry.depth[0][v, u].astype(np.float64)
    local = np.column_stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z])
    return transform(T_world_base @ calibration().T_base_camera[0], local)


def nearest(cloud: np.ndarray, points: np.ndarray) -> np.ndarray:
    return cKDTree(cloud).query(points)[0]


def test_a_map_that_is_loaded_and_extended_keeps_what_it_had(map_dir, tmp_path):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    before = json.loads((path / "map.json").read_text())
    shots = other_day()
    car = Car(shots[0][3])
    car.places.use(open_map(path, small_rig()))
    car.see([*shots, *drive("city+afternoon", 5, (24, 28))])
    voxels, keyframes, _ = car.places.save(path)
    assert keyframes > before["keyframes"], "the street beyond the first drive's end is new"
    assert voxels > 0.8 * before["voxels"]
    again = open_map(path, small_rig())
    assert len(again.frames) == keyframes
    np.testing.assert_allclose(again.frames[0].T_map_base, np.eye(4), atol=1e-9)
    again.lock.close()


def test_localization_does_not_change_the_map(map_dir, tmp_path):
    shots = other_day()
    car = Car(shots[0][3], "localization")
    car.places.use(open_map(map_dir, small_rig()))
    car.see(shots)
    assert car.places.found
    with pytest.raises(OutputError, match="used for localization, which does not change it"):
        car.places.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_after_a_loss_the_car_is_found_again_in_its_own_map():
    first = drive("city", 3, MAPPED)
    car = Car(first[0][3])
    car.see(first)
    size = car.mapper.size
    car.places.new_segment()  # a gap: odometry goes on from where it was, but the car is elsewhere
    assert not car.places.found and car.mapper.size == 0
    car.T_odom_world = turned(0.4) @ car.T_odom_world
    car.see(other_day())
    assert car.places.found
    car.see([other_day()[-1]])
    truth = inverse(first[0][3]) @ other_day()[-1][3]
    assert np.linalg.norm(log(inverse(truth) @ car.T_map_base)[:3]) < 0.15
    assert car.mapper.size > 0.7 * size
    assert any("tracking was lost" in note for note in car.places.notes)


def test_a_loaded_map_of_another_place_is_said_and_a_new_one_is_made(map_dir, tmp_path):
    shots = drive("city", 3, (240, 246, 252, 258))
    car = Car(shots[0][3], give_up=8.0)
    car.places.use(open_map(map_dir, small_rig()))
    car.see(shots)
    assert not car.places.found
    assert any("was not found in map" in note for note in car.places.notes)
    with pytest.raises(OutputError, match="was not found in it"):
        car.places.save(map_dir)
    _, keyframes, aside = car.places.save(tmp_path / "new")
    assert keyframes >= 2 and "is not in it" in aside
    open_map(map_dir, small_rig()).lock.close()  # as good as before


def test_a_map_that_contradicts_what_is_seen_is_left(map_dir):
    shots = other_day()
    car = Car(shots[0][3], give_up=6.0)
    car.places.use(open_map(map_dir, small_rig()))
    car.see(shots)
    assert car.places.found
    # the street was rebuilt: what stands elsewhere stands here now
    base = shots[-1][3]
    other = drive("city", 3, (240, 246, 252, 258))
    moved = [(f, g, m, base @ inverse(other[0][3]) @ T) for f, g, m, T in other]
    car.see(moved)
    assert not car.places.found and not car.mapper.attached
    assert any("contradicts what is seen" in note for note in car.places.notes)
    car.T_odom_world = turned(-0.3)
    car.see(shots)  # and the street as it was
    assert car.places.found


def test_reset_forgets_the_drive_and_not_the_loaded_map(map_dir):
    shots = other_day()
    car = Car(shots[0][3])
    car.places.use(open_map(map_dir, small_rig()))
    car.see(shots)
    count = len(open_map(map_dir, small_rig()).frames)
    car.places.reset()
    assert not car.places.found and car.mapper.size == 0 and len(car.places._main) == count
    car.see(shots)
    assert car.places.found


def test_a_thread_of_its_own_finds_the_car_too_and_no_frame_waits(map_dir):
    shots = other_day()
    car = Car(shots[0][3])
    car.places._runner = runner = Background()
    car.places.use(open_map(map_dir, small_rig()))
    for shot in shots:
        car.see([shot])
        runner.wait()
    car.see([shots[-1]])
    assert car.places.found
    car.places.close()


def test_frames_without_a_usable_pose_make_no_keyframe():
    shots = drive("city", 3, MAPPED)
    car = Car(shots[0][3])
    car.see(shots[:3], Tracking.DEGRADED)
    assert car.places.keyframes == 0
    with pytest.raises(OutputError, match="no keyframe yet"):
        car.places.save(Path("/tmp/nowhere"))


# ---- the folder


def damaged(path: Path, name: str, how: str) -> None:
    data = bytearray((path / name).read_bytes())
    if how == "missing":
        (path / name).unlink()
        return
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[len(data) // 2] ^= 0x10
    (path / name).write_bytes(data)


@pytest.mark.parametrize("name", [*folders.CHECKED, folders.MAP])
@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_map_is_one_sentence(map_dir, tmp_path, name, how):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    damaged(path, name, how)
    if name == folders.MAP and how == "flipped":
        (path / name).write_text((path / name).read_text().replace('"recon4d map"', '"other"'))
    with pytest.raises(MapError) as error:
        open_map(path, small_rig())
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence
    assert how != "missing" or name in sentence


@settings(max_examples=25)
@given(st.sampled_from([*folders.CHECKED, folders.MAP]), st.binary(max_size=200))
def test_whatever_is_in_a_file_it_is_a_sentence(map_dir, tmp_path_factory, name, junk):
    path = tmp_path_factory.mktemp("junk") / "street"
    shutil.copytree(map_dir, path, ignore=shutil.ignore_patterns("thumbnails"))
    (path / name).write_bytes(junk)
    if name != folders.MAP:  # also where the checksum was made to fit
        told = json.loads((path / folders.MAP).read_text())
        size, digest = folders._digest(path / name)
        told["files"][name] = {"bytes": size, "sha256": digest}
        (path / folders.MAP).write_text(json.dumps(told))
    with pytest.raises(MapError):
        open_map(path, small_rig())


def test_other_versions_and_other_rigs_are_named(map_dir, tmp_path):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    rig = small_rig()
    wide = replace(rig.cameras[0], k=rig.cameras[0].k * np.array([[1.2], [1.2], [1]]))
    with pytest.raises(MapError, match=r"of another rig: its camera .* has a focal length"):
        open_map(path, replace(rig, cameras=(wide, *rig.cameras[1:])))
    with pytest.raises(MapError, match="of another rig: its cameras are"):
        open_map(path, replace(rig, cameras=rig.cameras[:1]))
    low = replace(rig.cameras[0], T_base_camera=exp(np.array([0, 0, -1.0, 0, 0, 0])) @ OPTICAL)
    with pytest.raises(MapError, match="another mount"):
        open_map(path, replace(rig, cameras=(low, *rig.cameras[1:])))
    better = replace(rig.cameras[0], k=rig.cameras[0].k * np.array([[1.002], [1.002], [1]]))
    open_map(path, replace(rig, cameras=(better, *rig.cameras[1:]))).lock.close()
    told = json.loads((path / "map.json").read_text())
    for key, value, sentence in (
        ("version", 1, "of version 1: expected 2"),
        ("descriptor", "sift", "of kind 'sift'"),
    ):
        (path / "map.json").write_text(json.dumps(told | {key: value}))
        with pytest.raises(MapError, match=sentence):
            open_map(path, rig)
    with pytest.raises(MapError, match="cannot be read: No such file"):
        open_map(tmp_path / "none", rig)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MapError, match=r"is no map: it has no map\.json"):
        open_map(tmp_path / "empty", rig)


def test_a_map_that_is_loaded_again_is_still_ours(map_dir, tmp_path):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    car = Car(other_day()[0][3])
    car.places.use(open_map(path, small_rig()))
    again = open_map(path, small_rig())
    assert "another process" in again.read_only
    car.places.use(again)
    assert not car.places._folder.read_only and not car.places.notes
    assert "another process" in open_map(path, small_rig()).read_only, "and locked for others"
    car.places.use(open_map(path, small_rig()), "localization")
    assert not open_map(path, small_rig()).read_only, "who only reads holds nobody up"


def test_the_second_who_opens_a_map_may_only_read_it(map_dir, tmp_path):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    first, second = open_map(path, small_rig()), open_map(path, small_rig())
    assert not first.read_only and "another process" in second.read_only
    shots = other_day()
    car = Car(shots[0][3])
    car.places.use(second)
    assert any("cannot be saved there: another process" in note for note in car.places.notes)
    car.see(shots)
    assert car.places.found, "it is read all the same"
    with pytest.raises(OutputError, match="not saved: another process has it open"):
        car.places.save(path)
    first.lock.close()
    third = open_map(path, small_rig())
    assert not third.read_only
    third.lock.close()


def test_who_gave_up_the_lock_of_a_map_no_longer_writes_it(tmp_path, monkeypatch):
    """As an engine that the watchdog has left, and that goes on after all."""
    path = tmp_path / "street"
    lock = folders.Lock(path)

    def write(folder: Path, _: object) -> int:
        (folder / "map").write_text("of the one that was left")
        lock.close()  # while it writes
        return 1

    monkeypatch.setattr(folders, "_write", write)
    for _ in range(2):  # the second time it is closed from the beginning
        with pytest.raises(OutputError, match="is not saved: its lock was given up"):
            folders.save_map(path, None, lock)
        assert {one.name for one in tmp_path.iterdir()} == {".street.lock"}


def test_without_permission_nothing_is_lost(map_dir, tmp_path, monkeypatch):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # root may write anything
    shots = other_day()
    car = Car(shots[0][3])
    car.places.use(open_map(path, small_rig()))
    car.see(shots)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        car.places.save(path)
    monkeypatch.undo()
    before = sorted(file.name for file in path.iterdir())
    assert sorted(file.name for file in map_dir.iterdir()) == before
    open_map(path, small_rig()).lock.close()


def test_a_disk_that_is_full_leaves_the_old_map_as_it_was(map_dir, tmp_path, monkeypatch):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    shots = drive("city", 3, MAPPED)
    car = Car(shots[0][3])
    car.see(shots)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.np, "savez", full)
    with pytest.raises(OutputError, match="No space left on device"):
        car.places.save(path)
    monkeypatch.undo()
    assert {one.name for one in tmp_path.iterdir()} <= {"street", ".street.lock"}
    open_map(path, small_rig()).lock.close()
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="has other things in it"):
        car.places.save(tmp_path / "things")
    with pytest.raises(OutputError, match="a file of that name is there"):
        car.places.save(tmp_path / "things" / "letter.txt")
    with pytest.raises(OutputError, match="is not saved"):
        car.places.save(tmp_path / "no" / "such" / "folder")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_map_takes_the_place_of_another_at_once(map_dir, tmp_path, monkeypatch, exchange):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    shots = drive("city", 3, MAPPED)
    car = Car(shots[0][3])
    car.see(shots[:4])
    if not exchange:  # a file system, or a libc, that cannot

        class Libc:
            def __init__(self, *_, **__) -> None:
                pass

        monkeypatch.setattr(folders.ctypes, "CDLL", Libc)
    _, keyframes, _ = car.places.save(path)
    folder = open_map(path, small_rig())
    assert len(folder.frames) == keyframes
    folder.lock.close()
    assert {one.name for one in tmp_path.iterdir()} == {"street", ".street.lock"}


def test_a_map_folder_that_vanishes_is_still_read_and_a_disk_that_fails_is_said(
    map_dir, tmp_path, monkeypatch
):
    path = tmp_path / "street"
    shutil.copytree(map_dir, path)
    shots = other_day()
    car = Car(shots[0][3])
    car.places.use(open_map(path, small_rig()))
    shutil.rmtree(path)  # on a disk of this machine the open files stay
    car.see(shots)
    assert car.places.found
    car.places.save(path)
    open_map(path, small_rig()).lock.close()

    def gone(*_):
        raise OSError(116, "Stale file handle")

    car = Car(shots[0][3])
    car.places.use(open_map(map_dir, small_rig()))
    monkeypatch.setattr(os, "pread", gone)  # a network's disk
    car.see(shots)
    assert not car.places.found
    assert any("can no longer be read: Stale file handle" in note for note in car.places.notes)


def test_features_are_read_as_they_were_written():
    place = place_of(np.random.default_rng(0))
    again = unpacked(packed(place))
    for name in ("camera", "ray", "sigma", "rho", "variance", "descriptor"):
        np.testing.assert_array_equal(getattr(again, name), getattr(place, name))


def test_replay_saves_a_map_and_finds_the_car_in_it(small_bag, tmp_path, capsys):
    def replay(*more: object) -> tuple[int, dict]:
        out = tmp_path / "run"
        arguments = ["replay", small_bag, "--out", out, "--force", "-p"]
        arguments += ["localization.keyframe_distance=1.0", "--max-frames", "6", *more]
        code = cli.main([str(argument) for argument in arguments])
        summary = out / "summary.json"
        return code, json.loads(summary.read_text()) if summary.exists() else {}

    code, first = replay("--save-map", tmp_path / "street")
    assert code == 0 and first["localization"]["saved"]["keyframes"] >= 2
    assert first["localization"]["saved"]["voxels"] == first["map_points"]
    code, again = replay("--map", tmp_path / "street", "-p", "localization.mode=localization")
    assert code == 0 and again["localization"]["first_found_s"] <= 0.7
    _, poses = read_trajectory(tmp_path / "run" / "trajectory.tum")
    assert np.linalg.norm(poses[-1][:3, 3]) > 3.0, "in the map's frame"
    capsys.readouterr()
    (tmp_path / "street" / "features.bin").write_bytes(b"")
    code, _ = replay("--map", tmp_path / "street")
    assert code == 2 and "is damaged: features.bin has 0 bytes" in capsys.readouterr().err


# ---- loops


needs_gtsam = pytest.mark.skipif(not pose_graph.available(), reason="GTSAM is not installed")


def ring(rng: np.random.Generator, count: int, per_round: int) -> tuple[np.ndarray, np.ndarray]:
    """True poses round a circle, and odometry's, which drifts."""
    step = exp(np.array([3.0, 0, 0, 0, 0, 2 * np.pi / per_round]))
    true, odometry = [np.eye(4)], [np.eye(4)]
    for _ in range(count - 1):
        true.append(true[-1] @ step)
        error = exp(rng.normal(0, 1, 6) * [0.02, 0.01, 0.005, 0.0002, 0.0002, 0.001])
        odometry.append(odometry[-1] @ step @ exp(np.array([0.02, 0, 0, 0, 0, 0.0005])) @ error)
    return np.stack(true), np.stack(odometry)


@needs_gtsam
def test_a_pose_graph_closes_a_loop_and_leaves_out_one_that_is_wrong():
    rng = np.random.default_rng(4)
    true, odometry = ring(rng, 120, 60)
    covariance = np.diag([0.03, 0.02, 0.02, 0.001, 0.001, 0.002]) ** 2
    edges = [
        pose_graph.Edge(i, i + 1, inverse(odometry[i]) @ odometry[i + 1], covariance)
        for i in range(119)
    ]
    sure = np.diag([0.05] * 3 + [0.002] * 3) ** 2
    edges += [
        pose_graph.Edge(i - 60, i, inverse(true[i - 60]) @ true[i], sure, True)
        for i in range(60, 120, 5)
    ]
    edges.append(pose_graph.Edge(3, 40, np.eye(4), sure, True))
    out = pose_graph.solved(odometry, edges, {0})
    before = np.linalg.norm(odometry[-1, :3, 3] - true[-1, :3, 3])
    after = np.linalg.norm(out[-1, :3, 3] - true[-1, :3, 3])
    assert before > 1.5 and after < 0.2
    np.testing.assert_array_equal(out[0], np.eye(4))
    np.testing.assert_array_equal(out, pose_graph.solved(odometry, edges, {0}))


@needs_gtsam
def test_the_map_follows_a_loop_and_odometry_does_not(monkeypatch):
    monkeypatch.setattr(loops, "BACK", 10.0)
    shots = drive("city", 3, MAPPED)
    car = Car(shots[0][3])
    car.see(shots)
    walls = transform(inverse(shots[0][3]), world_points(shots[2]))
    true = nearest(car.mapper.points()[0], walls)
    # once more along the same street, for an odometry that has drifted: it goes back to where the
    # drive began, as a round does
    drift = exp(np.array([0.9, -0.6, 0.05, 0, 0, 0.02]))
    world = car.T_odom_world
    car.T_odom_world, car.deviation = drift @ world, 0.3
    car.see(shots[:1])
    car.deviation = 0.01
    car.see([*shots[1:], shots[-1]])
    assert car.places.loops >= 2
    error = log(inverse(inverse(shots[0][3]) @ shots[-1][3]) @ car.T_map_base)
    assert np.linalg.norm(error[:3]) < 0.25 and np.linalg.norm(error[3:]) < 0.01
    np.testing.assert_allclose(car.places.T_map_odom @ drift, np.eye(4), atol=0.25)
    # walls of the second round lie on those of the first
    assert np.median(true) < 0.2 and np.median(nearest(car.mapper.points()[0], walls)) < 0.3
    # and the places are no more than those of one round
    assert sum(frame.count > 0 for frame in car.places._main) <= len(MAPPED)


def test_a_loop_alone_that_contradicts_odometry_moves_nothing():
    frames = [
        Keyframe(i, exp(np.array([3.0 * i, 0, 0, 0, 0, 0])), rig_mounts(1), 0, 9) for i in range(40)
    ]
    closer = loops.LoopCloser(True)
    for i, frame in enumerate(frames):
        closer.goes(i, frame.T_map_base, 3.0 * i, np.eye(6) * 1e-4 * i)
    assert closer.may(117.0) and not closer.may(30.0)
    near = Nearby()
    near.follow(frames)
    reach = closer.reach(near, np.eye(4), 117.0)
    assert reach[:3].all() and not reach[8:].any()
    wrong = said(frames[2].T_map_base, frames[38].T_map_base, 114.0, (2,))
    closer.hear(wrong, 38, frames, np.eye(4))
    assert closer.loops == 0 and not closer.due
    again = said(frames[3].T_map_base, frames[39].T_map_base, 117.0, (3,))
    closer.hear(again, 39, frames, np.eye(4))
    assert closer.loops == 2 and closer.due
    assert not loops.LoopCloser(False).reach(near, np.eye(4), 117.0).any()


def test_what_is_near_is_found_among_many_and_what_has_no_features_is_not():
    rng = np.random.default_rng(8)
    frames = []
    for i in range(300):
        T = turned(rng.uniform(-3, 3))
        T[:2, 3] = rng.uniform(-60, 60, 2)
        frames.append(Keyframe(i, T, rig_mounts(1), 0, int(rng.integers(0, 3))))
    near = Nearby()
    near.follow(frames[:100])
    near.follow(frames)
    for _ in range(20):
        T = turned(rng.uniform(-3, 3))
        T[:2, 3] = rng.uniform(-60, 60, 2)

        def off(i: int, T: np.ndarray = T) -> float:
            metres, radians = apart(frames[i].T_map_base, T)
            return metres + np.degrees(radians) / 10.0

        inside = [
            i
            for i, frame in enumerate(frames[:250])
            if frame.count and np.linalg.norm(frame.T_map_base[:3, 3] - T[:3, 3]) < 12.0
        ]
        assert near(T, 12.0, 4, 250) == sorted(inside, key=off)[:4]


def test_a_map_that_is_set_aside_is_not_copied_and_is_whole_when_the_car_is_found(map_dir):
    """What lies on disk stays there; what was in memory is written by the search's thread."""
    shots = other_day()
    car = Car(shots[0][3])
    folder = open_map(map_dir, small_rig())
    read: list[int] = []
    one = folder.archive._read
    car.places.use(folder)
    car.see(shots)
    assert car.places.found
    layer = car.mapper._archive._layers[0]
    layer._read = lambda i: read.append(i) or one(i)
    whole = sum(len(points) for points in car.mapper.chunks()())
    read.clear()
    at_rest = car.mapper._archive.count
    car.places.new_segment()
    assert not read and car.mapper._archive.count == at_rest, "nothing is read or written yet"
    car.T_odom_world = turned(0.4) @ car.T_odom_world
    car.see(shots[:1])  # the search's turn
    assert not read and car.mapper._archive.count == pytest.approx(whole, rel=1e-3)
    car.see([*shots, shots[-1]])
    assert car.places.found
    again = sum(len(points) for points in car.mapper.chunks()())
    assert again > 0.95 * whole


def test_a_map_that_no_disk_takes_is_said(monkeypatch):
    first = drive("city", 3, MAPPED)
    car = Car(first[0][3])
    car.see(first)
    monkeypatch.setattr("recon4d_ros.mapping.archive.folder_on_disk", lambda: None)
    car.places.new_segment()
    car.see(other_day()[:2])
    assert any("voxels of the map so far are lost" in note for note in car.places.notes)


def test_a_map_keeps_its_grid(tmp_path):
    first = drive("city", 3, MAPPED)
    car = Car(first[0][3])
    car.see(first)
    tiles = GridTiles(
        0.2,
        np.array([[0, 0], [-3, 7]], np.int64),
        np.stack([np.eye(4), turned(0.3)]),
        np.array([0.0, 1.5]),
        (b"abc", b"defgh"),
    )
    car.places.save(tmp_path / "street", tiles)
    folder = open_map(tmp_path / "street", small_rig())
    for name in ("resolution", "index", "motion", "level", "data"):
        np.testing.assert_array_equal(getattr(folder.grid, name), getattr(tiles, name))
    folder.close()
    car.places.save(tmp_path / "bare")
    folder = open_map(tmp_path / "bare", small_rig())
    assert folder.grid is None
    folder.close()


def test_where_a_map_cannot_be_saved_is_said_before_the_drive(small_bag, tmp_path, capsys):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "letter.txt").write_text("dear")

    def said(path: Path, *more: str) -> str:
        arguments = ["replay", small_bag, "--out", tmp_path / "run", "--save-map", path, *more]
        assert cli.main([str(argument) for argument in arguments]) == 2
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        assert not (tmp_path / "run").exists(), "nothing has run yet"
        return sentence

    assert "the folder has other things in it" in said(tmp_path / "things")
    assert "a file of that name is there" in said(tmp_path / "things" / "letter.txt")
    assert "cannot be written: No such file" in said(tmp_path / "no" / "street")
    assert "is not saved: File name too long" in said(tmp_path / ("a" * 300))
    street = tmp_path / "street"
    for mode in ("none", "localization"):
        sentence = said(street, "-p", f"localization.mode={mode}")
        assert f"localization.mode is {mode}, which keeps no keyframes" in sentence
    lock = folders.Lock(street)
    assert "another process has it open for writing" in said(street)
    lock.close()


def test_a_map_that_cannot_be_saved_after_all_costs_no_run(
    small_bag, tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.np, "savez", full)
    arguments = ["replay", small_bag, "--out", tmp_path / "run", "--save-map", tmp_path / "street"]
    arguments += ["-p", "localization.keyframe_distance=1.0", "--max-frames", "4"]
    assert cli.main([str(argument) for argument in arguments]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is not saved: No space left on device" in sentence
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert any("No space left" in note for note in summary["notes"]) and summary["frames"] == 4
