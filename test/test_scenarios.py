"""Everyday drives by name: their truth is exact, the car drives like a car, and the same seed gives
the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.cameras.distortion import to_pixels, to_rays
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.errors import ParameterError
from recon4d_ros.geometry import exp, inverse, log, transform
from recon4d_ros.paths import rigs
from recon4d_ros.sim.course import make_place
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

DRIVES = {course: Drive(scenario(course.value, 3)) for course in Course}


@given(t=st.floats(0.0, 300.0), course=st.sampled_from(list(DRIVES)))
@settings(max_examples=100, deadline=None)
def test_the_car_drives_like_a_car(t: float, course: Course) -> None:
    """The rear axle does not slip sideways, accelerations are bounded, base_link stays on the
    ground."""
    drive, h = DRIVES[course], 0.01
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
    drive = DRIVES[Course.QUEUE]
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


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_renders_and_repeats(name: str) -> None:
    """Any frame on its own, the same bytes from another simulator; masks are those of movers."""
    rig = Rig("two", (SURROUND.cameras[0], replace(FISHEYE.cameras[0], name="fish")))
    frames = [Simulator(rig, 5.0, seed=3, name=name).frame(13) for _ in range(2)]
    for a, b in zip(frames[0].pictures, frames[1].pictures, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.depth, b.depth)
        seen = np.isfinite(a.depth)
        assert seen.mean() > 0.2 and a.image[seen].std() > 5.0
    boxes = {thing.id: thing for thing in frames[0].objects}
    for picture in frames[0].pictures:
        for identity in np.unique(picture.instance[picture.instance > 0]).tolist():
            moving = picture.moving[picture.instance == identity]
            assert (moving == boxes[identity].moving).all()


@pytest.mark.parametrize("condition", _CONDITIONS)
def test_conditions_change_the_picture_and_not_the_truth(condition: str) -> None:
    """Depth, masks and poses are those of the clear day; only leaves and rows read late have their
    own depth."""
    plain, changed = (
        Simulator(STEREO, 5.0, seed=3, name=name).frame(20) for name in ("city", condition)
    )
    np.testing.assert_array_equal(plain.T_world_base, changed.T_world_base)
    same = condition not in ("leaves", "shutter")
    for a, b in zip(plain.pictures, changed.pictures, strict=True):
        if same:
            np.testing.assert_array_equal(a.depth, b.depth)
            np.testing.assert_array_equal(a.moving, b.moving)
        else:
            assert np.mean(a.moving != b.moving) < 0.05
        if condition != "jpeg":  # compressed when it is written
            assert np.abs(a.image.astype(int) - b.image).mean() > 0.5


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


@pytest.mark.parametrize("name", [course.value for course in Course if course.value in NAMES])
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
        assert free.sum() > 100 and np.median(error) < 0.004
