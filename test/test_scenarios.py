"""Everyday drives by name: their truth is exact, the car drives like a car, and the same seed gives
the same bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.distortion import to_pixels, to_rays
from recon4d_ros.cameras.rig import load_rig, save_rig
from recon4d_ros.errors import CalibrationError, ParameterError
from recon4d_ros.geometry import exp, inverse, log, transform
from recon4d_ros.paths import rigs
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.sim.course import make_place
from recon4d_ros.sim.manoeuvres import RINGS
from recon4d_ros.sim.motion_sensors import GRAVITY, GYRO_BIAS, GYRO_NOISE, imu, twist_at, wheels
from recon4d_ros.sim.raster import Rows, cast
from recon4d_ros.sim.scenario import _CONDITIONS, NAMES, Course, scenario
from recon4d_ros.sim.shutter import camera_twist, rows_of
from recon4d_ros.sim.simulate import Drive, SimFrame, Simulator
from recon4d_ros.sim.solids import Skin, box, concatenate, cylinder, ellipsoid
from recon4d_ros.sim.view import make_view
from recon4d_ros.types import Camera, Rig

SMALL = 6  # images are rendered at a fraction of the size, to be quick


def small(rig: Rig, cameras: int | None = None) -> Rig:
    made = []
    for camera in rig.cameras[:cameras]:
        k = camera.k / SMALL
        k[2, 2] = 1.0
        size = {"width": camera.width // SMALL, "height": camera.height // SMALL}
        made.append(replace(camera, k=k, **size))
    return Rig(rig.name, tuple(made))


STEREO = small(load_rig(rigs() / "kitti_like.yaml"))
SURROUND = small(load_rig(rigs() / "nuscenes_like.yaml"))
FISHEYE = small(load_rig(rigs() / "fisheye_surround.yaml"), 1)
TWO = Rig("two", (SURROUND.cameras[0], replace(FISHEYE.cameras[0], name="fisheye")))


@cache
def drive_of(course: Course) -> Drive:
    return Drive(scenario(course.value, 3))


@given(t=st.floats(0.0, 300.0), course=st.sampled_from(list(Course)))
@settings(max_examples=150, deadline=None)
def test_the_car_drives_like_a_car(t: float, course: Course) -> None:
    """The rear axle does not slip sideways, accelerations are bounded, base_link stays on the
    ground."""
    drive, h = drive_of(course), 0.01
    a, b, c = (drive.T_world_base(t + d) for d in (-h, 0.0, h))
    twist = drive.velocity(t)
    np.testing.assert_allclose(log(inverse(a) @ c) / (2 * h), twist, atol=0.03)
    assert a[2, 3] == b[2, 3] == c[2, 3] == 0.0
    assert abs(twist[1]) < 0.005 + 0.01 * abs(twist[0])
    assert np.linalg.norm((c[:3, 3] - 2 * b[:3, 3] + a[:3, 3]) / h**2) < 4.0


def test_a_motorway_is_fast_from_the_first_frame() -> None:
    times = np.arange(0.0, 30.0, 0.5)
    for seed in range(6):
        speed = np.gradient(
            [make_place(Course.MOTORWAY, seed, 40.0).traffic.station(t) for t in times], times
        )
        assert (speed > 29.0).all() and (speed < 41.0).all()


def test_in_a_queue_one_stands_while_others_move() -> None:
    """It stands for about 10 s in one piece; its poses are then identical, and lorries move."""
    drive = drive_of(Course.QUEUE)
    times = np.arange(0.0, 20.0, 0.1)
    speed = np.array([drive.velocity(t)[0] for t in times])
    standing = times[speed < 1e-9]
    assert 9.5 < standing[-1] - standing[0] < 13.5 and speed[0] > 1.0
    poses = [drive.T_world_base(t) for t in standing[4:-4]]  # at rest on its springs, too
    assert all((pose == poses[0]).all() for pose in poses)
    moving = [
        sum(thing.moving and thing.kind == "lorry" for thing in drive.scene(t).objects)
        for t in standing[::10]
    ]
    assert min(moving) > 0
    lead = [thing for thing in drive.scene(standing[30]).objects if thing.id == 101]
    assert not lead[0].moving


def test_names_compose_and_say_what_is_wrong() -> None:
    both = scenario("motorway+jpeg", 3)
    assert both.course is Course.MOTORWAY and both.conditions.jpeg_quality == 50
    assert scenario("jpeg").course is Course.CITY
    for name, said in (("moon", "'moon' is not known"), ("city+queue", "both places")):
        with pytest.raises(ParameterError, match=said):
            scenario(name)


@lru_cache(1)
def city_frame() -> SimFrame:
    return Simulator(TWO, 5.0, seed=3).frame(20)


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_renders(name: str) -> None:
    """Textured, with depth; masks are those of movers. What weather, light and cameras do to a
    picture leaves the truth as it is; only leaves, and rows read late, have depth of their own."""
    frame = Simulator(TWO, 5.0, seed=3, name=name).frame(20)
    boxes = {thing.id: thing for thing in frame.objects}
    for picture in frame.pictures:
        seen = np.isfinite(picture.depth)
        assert seen.mean() > 0.2 and picture.image[seen].std() > 5.0
        for identity in np.unique(picture.instance[picture.instance > 0]).tolist():
            moving = picture.moving[picture.instance == identity]
            assert (moving == boxes[identity].moving).all()
    if name not in _CONDITIONS:
        return
    clear = city_frame()
    np.testing.assert_array_equal(clear.T_world_base, frame.T_world_base)
    for a, b in zip(clear.pictures, frame.pictures, strict=True):
        if name in ("leaves", "shutter"):
            assert np.mean(a.moving != b.moving) < 0.05
        else:
            np.testing.assert_array_equal(a.depth, b.depth)
            np.testing.assert_array_equal(a.moving, b.moving)
        if name != "jpeg":  # compressed when it is written
            assert np.abs(a.image.astype(int) - b.image).mean() > 0.5


def test_the_same_seed_is_the_same_drive() -> None:
    """Every effect at once, any frame on its own, in two simulators: the same bytes."""
    name = "night+rain+sun+leaves+exposure+shutter"
    a, b = (Simulator(TWO, 5.0, seed=3, name=name) for _ in range(2))
    a.frame(3)
    for one, other in zip(a.frame(13).pictures, b.frame(13).pictures, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.depth, other.depth)


def test_leaves_sway_and_are_static() -> None:
    simulator = Simulator(STEREO, 5.0, seed=3, name="leaves")
    scenes = [simulator.drive.scene(t) for t in (1.0, 1.5)]
    moved = np.linalg.norm(
        scenes[0].swaying.corners.mean(1) - scenes[1].swaying.corners.mean(1), axis=1
    )
    assert len(moved) > 20 and 0.05 < moved.max() < 0.6
    assert (scenes[0].swaying.instance == 0).all()


def test_drops_stay_with_the_lens() -> None:
    """What water does to a picture is where it was, half a second later; the world has moved on."""
    rig, (clear, rainy) = small(load_rig(rigs() / "mono.yaml")), ("city", "rain")
    lens = Simulator(rig, 5.0, seed=3, name=rainy).cameras[0].lens
    assert lens is not None and Simulator(rig, 5.0, seed=3, name=clear).cameras[0].lens is None
    noise = np.random.default_rng(0).uniform(0, 1, (*make_view(rig.cameras[0]).shape, 3))
    light = noise.astype(np.float32)
    touched = [np.abs(lens.wet(light, t) - light).max(-1) > 0.1 for t in (1.0, 1.5)]
    assert 0.03 < touched[0].mean() < 0.5
    assert (touched[0] & touched[1]).sum() > 0.7 * touched[0].sum()


def test_rows_are_read_one_after_another() -> None:
    """Every row of a rolling shutter is that of a global one at the row's own pose: boxes, tubes,
    balls and ground, with a mover among them."""
    optical = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    k = np.array([[90.0, 0, 59.3], [0, 90.0, 40.1], [0, 0, 1]])
    camera = Camera("c", 120, 80, k, optical, rolling_shutter=0.03)
    view, skin = make_view(camera), Skin()
    solids = concatenate(
        [
            ellipsoid((9.0, 2.0, 2.0), (1, 1, 1), skin),
            cylinder((12.0, -2.4, 2.5), 0.4, 5.0, skin),
            box((14.0, 0, 1), (2, 3, 2), skin),
        ]
    )
    velocity = np.array([[0, 0, 0], [0, 0, 0], [-3.0, 6.0, 0.0]])
    twist = camera_twist(optical, np.array([12.0, 0.3, 0.1, 0.05, -0.1, 0.5]))
    pose = exp(np.array([0.3, -0.2, 1.4, 0.02, 0.05, 0.1])) @ optical
    rows: Rows = rows_of(view, twist, velocity)
    hits = cast(solids, view, pose, rows=rows)
    for row in range(0, 80, 7):
        t = rows.time[row]
        shifted = concatenate(
            [
                solids.take(np.arange(2)),
                solids.take(np.array([2])).moved(exp(np.r_[velocity[2] * t, 0, 0, 0])),
            ]
        )
        whole = cast(shifted, view, pose @ exp(twist * t))
        a, b = hits.inverse_depth[row], whole.inverse_depth[row]
        edge = np.abs(a - b) > 1e-4
        assert edge.mean() < 0.02  # a pixel at an outline may fall to either side
    still = hits.surface >= 2
    assert still.sum() > 200
    middle = cast(solids, view, pose)  # what is seen, brought to the middle's frame and time
    v, u = np.nonzero(hits.inverse_depth > 0)
    x, y, w = (np.broadcast_to(part, view.shape)[v, u] for part in (hits.x, hits.y, hits.inverse))
    pixels = np.rint(to_pixels(camera, np.stack([x, y], -1).astype(float))).astype(int)
    inside = ((pixels >= 0) & (pixels < (120, 80))).all(1)
    there = middle.inverse_depth[pixels[inside, 1], pixels[inside, 0]]
    assert (np.abs(there - w[inside]) < 0.02 * w[inside] + 1e-3).mean() > 0.93


def world_points(frame: SimFrame, camera: Camera, number: int) -> np.ndarray:
    v, u = np.indices(frame.depth[number].shape, dtype=np.float64)
    rays = to_rays(camera, np.stack([u, v], -1))
    z = frame.depth[number].astype(np.float64)
    return transform(
        frame.T_world_base @ camera.T_base_camera,
        np.stack([rays[..., 0] * z, rays[..., 1] * z, z], -1),
    )


# a street, things that move aside and ahead, walls close by; the others hold less that is new
TRUTH = (Course.CITY, Course.QUEUE, Course.PARKING)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(course.value, marks=[] if course in TRUTH else [pytest.mark.full])
        for course in Course
    ],
)
def test_static_depth_falls_on_itself_between_frames(name: str) -> None:
    """Static points of one frame lie on the other's surface, and boxes hold their own pixels."""
    simulator = Simulator(SURROUND, 5.0, seed=3, name=name)
    first, second = simulator.frame(8), simulator.frame(9)
    for number in (0, 3):
        camera = SURROUND.cameras[number]
        points = world_points(first, camera, number)
        boxes = {thing.id: thing for thing in first.objects}
        for identity in np.unique(first.instance[number]).tolist():
            if identity:
                thing = boxes[identity]
                local = points[first.instance[number] == identity] - thing.T_world_object[:3, 3]
                assert (
                    np.abs(local @ thing.T_world_object[:3, :3]) < 0.5 * thing.size + 0.01
                ).all()
        static = points[~first.moving[number] & (first.depth[number] < 30)]
        local = transform(inverse(second.T_world_base @ camera.T_base_camera), static)
        local = local[local[:, 2] > 0.5]
        pixels = to_pixels(camera, local[:, :2] / local[:, 2:])
        near = np.rint(pixels).astype(int)
        good = ((near >= 0) & (near < (camera.width, camera.height))).all(1)
        near, z = near[good], local[good, 2]
        there = second.depth[number][near[:, 1], near[:, 0]]
        free = ~second.moving[number][near[:, 1], near[:, 0]] & np.isfinite(there)
        error = np.abs(1 / there - 1 / z)[free]
        # Half a pixel of the ground, whose inverse depth is linear in the row, and some outlines.
        bound = 0.55 / (camera.k[1, 1] * camera.T_base_camera[2, 3]) + 0.001
        assert free.sum() > 100 and (error < bound).mean() > 0.9


def test_a_car_park_has_tight_turns_and_reversing() -> None:
    drive = drive_of(Course.PARKING)
    twists = np.array([drive.velocity(t) for t in np.arange(0.0, 90.0, 0.25)])
    fast = np.abs(twists[:, 0]) > 0.3
    radius = np.abs(twists[fast, 0] / np.maximum(np.abs(twists[fast, 5]), 1e-6))
    assert twists[:, 0].min() < -0.8 and 1.5 < twists[:, 0].max() < 4.5
    assert 5.0 < radius.min() < 7.0


def test_a_roundabout_is_gone_around_and_left_on_the_right() -> None:
    drive = drive_of(Course.ROUNDABOUT)
    poses = np.array([drive.T_world_base(t) for t in np.arange(0.0, 60.0, 0.1)])
    heading = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    assert np.ptp(heading) > np.deg2rad(250)
    ring = np.linalg.norm(poses[:, :2, 3] - (RINGS[1], 0.0), axis=1)
    assert 15.5 < ring.min() < 17.5
    between = np.abs(poses[:, 0, 3] - np.mean(RINGS)) < 20.0
    to_right = -np.sign(np.cos(heading[between])) * poses[between, 1, 3]
    np.testing.assert_allclose(to_right, 1.8, atol=0.05)


@pytest.mark.parametrize("course", list(Course))
def test_nobody_drives_into_the_ego_vehicle(course: Course) -> None:
    drive = drive_of(course)
    for t in np.arange(0.0, 24.0, 1.5):
        ego = drive.T_world_base(t)
        for mover in drive.traffic.movers(t):
            x, y = (inverse(ego) @ mover.pose)[:2, 3]
            assert not (-1.0 < x < 3.8 and abs(y) < 0.9), (t, mover)


def test_inertial_sensor_and_wheels_tell_the_motion() -> None:
    """Integrated, they follow the truth within their stated errors; at rest the wheels stand."""
    drive = drive_of(Course.QUEUE)
    pose = drive.T_world_base
    samples = list(imu(pose, 6.0, 1))
    true = np.array([twist_at(pose, s.t)[3:] for s in samples])
    error = np.array([s.gyro for s in samples]) - true
    assert np.abs(error.mean(0)).max() < 4 * GYRO_BIAS
    np.testing.assert_allclose(error.std(0), GYRO_NOISE, rtol=0.2)
    up = np.mean([s.acceleration for s in samples], axis=0)
    np.testing.assert_allclose(up[2], GRAVITY, atol=0.2)
    rolled = list(wheels(pose, 8.0, 1))
    way = np.linalg.norm(pose(7.98)[:3, 3] - pose(0.0)[:3, 3])
    assert abs(np.linalg.norm(rolled[-1].T_odom_base[:2, 3]) - way) < 0.05 * way
    assert (rolled[-1].velocity == 0).all() and rolled[10].velocity[0] > 0.5


def test_a_bag_of_a_scenario_has_imu_and_odometry(tmp_path: Path) -> None:
    write_bag(
        tmp_path / "bag",
        STEREO,
        seconds=0.2,
        seed=3,
        scenario="queue+jpeg",
        imu=True,
        odometry=True,
        workers=1,
    )
    with BagReader(tmp_path / "bag") as reader:
        counts = {topic: info.count for topic, info in reader.topics.items()}
        messages = {topic: message for topic, _, message in reader.messages(["/imu"])}
    assert counts["/imu"] == 20 and counts["/odom"] == 10
    assert messages["/imu"].orientation_covariance[0] == -1.0
    assert messages["/imu"].header.frame_id == "base_link"


def test_rolling_shutter_of_a_rig_file(tmp_path: Path) -> None:
    rig = load_rig(rigs() / "mixed_four.yaml")
    assert [camera.rolling_shutter for camera in rig.cameras] == [0.02] * 4
    save_rig(rig, tmp_path / "rig.yaml")
    assert load_rig(tmp_path / "rig.yaml").cameras[1].rolling_shutter == 0.02
    named = scenario("shutter").rig(STEREO)
    assert all(camera.rolling_shutter == 0.02 for camera in named.cameras)
    text = (
        (tmp_path / "rig.yaml").read_text().replace("rolling_shutter: 0.02", "rolling_shutter: 3")
    )
    (tmp_path / "rig.yaml").write_text(text)
    with pytest.raises(CalibrationError, match="rolling_shutter is 3"):
        load_rig(tmp_path / "rig.yaml")
