"""Dynamics on a street of boxes whose truth is exact: what moves is found, what stands is left
alone, whatever the rig."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from dynamics_scene import Box, Street, inverse, iou, make_rig, observe
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.dynamics import Dynamics, DynamicsParameters
from recon4d_ros.dynamics.alone import KEPT
from recon4d_ros.dynamics.flow import FlowMeter, make_picture
from recon4d_ros.dynamics.ground import LEVEL, find_level, refine_plane
from recon4d_ros.dynamics.handover import points_of, seen_from
from recon4d_ros.dynamics.infill import fill_in
from recon4d_ros.dynamics.residual import Depth, make_depth, see_road, static_residual
from recon4d_ros.dynamics.spreading import spread_near
from recon4d_ros.dynamics.stixels import judge_runs
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import make_views
from recon4d_ros.geometry import se3
from recon4d_ros.types import Tracking

STILL = (Box((18, 4, 0), (4, 2, 1.6), texture=2), Box((25, -6, 0), (4, 2, 2.5), texture=3))
CROSSING = Box((16, -5, 0), (1, 2, 1.6), (0, 4.0, 0))
AHEAD = Box((14, -1, 0), (4, 2, 1.6), (9.0, 0, 0))
STEREO = make_rig([(0, (0, 0, 1.6)), (0, (0, -0.54, 1.6))])
SINGLE = make_rig([(0, (0, 0, 1.6))])
RING = make_rig([(0, (1.5, 0, 1.6)), (np.deg2rad(-35), (1.0, -0.5, 1.6))])


def drive(rig_and_calibration, boxes, noise, frames=6, speed=8.0, dynamics=None, first=0):
    """The motions and truths of a straight drive at 10 Hz."""
    rig, calibration = rig_and_calibration
    street, rng = Street(boxes), np.random.default_rng(1)
    dynamics = dynamics or Dynamics(rig, calibration, DynamicsParameters(source="residual"))
    results = []
    for n in range(first, first + frames):
        frame, pose, geometry, truth = observe(
            street,
            calibration,
            se3(np.eye(3), np.array([speed * n * 0.1, 0, 0])),
            n * 0.1,
            disparity_noise=noise,
            rng=rng,
        )
        results.append((dynamics(frame, pose, geometry), truth))
    return results


@pytest.mark.parametrize("rig", [STEREO, SINGLE], ids=["stereo", "single"])
def test_a_rigid_world_has_no_movers(rig):
    for motion, _ in drive(rig, STILL, 0.25):
        assert motion.mask.mean() < 0.002
        assert motion.objects == ()


@pytest.mark.full
@pytest.mark.parametrize("rig", [STEREO, SINGLE], ids=["stereo", "single"])
def test_a_crossing_box_is_found_and_left_sharp(rig):
    results = drive(rig, (*STILL, CROSSING), 0.25)
    scores = [iou(motion.mask, truth) for motion, truth in results[2:]]
    assert np.mean(scores) > 0.5
    for motion, truth in results:
        assert (motion.mask & ~truth).mean() < 0.01


@pytest.mark.full
def test_the_crossing_object_has_position_velocity_and_covariance():
    results = drive(STEREO, (*STILL, CROSSING), 0.25, frames=8)
    objects = results[-1][0].objects
    assert len(objects) == 1
    found = objects[0]
    assert np.hypot(found.position[0] - 16, found.position[1] - (-5 + 4 * 0.7)) < 1.0
    assert np.linalg.norm(found.velocity - CROSSING.velocity) < 1.0
    assert abs(found.yaw - np.pi / 2) < 0.3
    for covariance in (found.position_covariance, found.velocity_covariance):
        assert np.all(np.linalg.eigvalsh(covariance) > 0)
    assert 0 < found.confidence <= 1 and found.missed == 0


@pytest.mark.full
def test_stereo_sees_motion_along_the_epipolar_line():
    """A box that drives ahead at our own pace has no flow to speak of across its epipolar lines:
    only depth against time tells."""
    results = drive(STEREO, (*STILL, AHEAD), 0.2, frames=8)
    hit = [(motion.mask & truth).sum() / truth.sum() for motion, truth in results[3:]]
    assert np.mean(hit) > 0.4
    speeds = [o.velocity[0] for motion, _ in results for o in motion.objects]
    assert speeds and abs(np.median(speeds) - 9.0) < 1.5


def test_first_frame_lost_pose_and_absent_camera_give_empty_masks():
    rig, calibration = STEREO
    dynamics = Dynamics(rig, calibration, DynamicsParameters(source="residual"))
    results = drive(STEREO, (*STILL, CROSSING), 0.25, frames=4, dynamics=dynamics)
    assert not results[0][0].mask.any() and results[-1][0].mask.any()
    street = Street((*STILL, CROSSING))
    frame, pose, geometry, _ = observe(
        street, calibration, se3(np.eye(3), np.array([3.2, 0, 0])), 0.4, disparity_noise=0.25
    )
    lost = dynamics(frame, dataclasses.replace(pose, tracking=Tracking.LOST), geometry)
    assert not lost.mask.any() and lost.objects == ()
    frame, pose, geometry, _ = observe(
        street, calibration, se3(np.eye(3), np.array([4.0, 0, 0])), 0.5, disparity_noise=0.25
    )
    assert not dynamics(frame, pose, geometry).mask.any(), (
        "the frame after a lost pose is a first frame again"
    )
    frame, pose, geometry, _ = observe(
        street,
        calibration,
        se3(np.eye(3), np.array([4.8, 0, 0])),
        0.6,
        disparity_noise=0.25,
        present=np.array([True, False]),
    )
    assert not dynamics(frame, pose, geometry).mask[1].any()


def test_traffic_that_passes_a_camera_at_rest_is_marked_from_the_second_image():
    """Without any depth: one camera that has never moved. Range is that of the road by
    calibration."""
    rig, calibration = SINGLE
    dynamics = Dynamics(rig, calibration, DynamicsParameters(source="residual"))
    street, rng = (
        Street((*STILL, Box((9, -3, 0), (1, 2, 1.6), (0, 5.0, 0)))),
        np.random.default_rng(1),
    )
    for n in range(4):
        frame, pose, geometry, truth = observe(street, calibration, np.eye(4), n * 0.1, rng=rng)
        if n == 0:
            pose = dataclasses.replace(pose, tracking=Tracking.STARTING)
        motion = dynamics(frame, pose, geometry)
        if n == 0:
            assert not motion.mask.any()
            continue
        assert iou(motion.mask[0], truth[0]) > 0.5, n
        assert motion.mask[0][~truth[0]].mean() < 0.02, n


@pytest.mark.full
def test_reset_and_repetition_are_exact():
    rig, calibration = STEREO
    dynamics = Dynamics(rig, calibration, DynamicsParameters(source="residual"))
    first = drive(STEREO, (*STILL, CROSSING), 0.25, frames=5, dynamics=dynamics)
    dynamics.reset()
    second = drive(STEREO, (*STILL, CROSSING), 0.25, frames=5, dynamics=dynamics)
    for (a, _), (b, _) in zip(first, second, strict=True):
        assert np.array_equal(a.mask, b.mask)
        assert [o.id for o in a.objects] == [o.id for o in b.objects]


@pytest.fixture(scope="module")
def measured():
    """Flow and depths of one stereo view with a mover, and all that a residual needs."""
    _, calibration = STEREO
    street, rng = Street((*STILL, CROSSING)), np.random.default_rng(0)
    view = make_views(calibration)[0]
    shots = [
        observe(
            street,
            calibration,
            se3(np.eye(3), np.array([0.8 * n, 0, 0])),
            0.1 * n,
            disparity_noise=0.25,
            rng=rng,
        )
        for n in (0, 1)
    ]
    pictures = [make_picture(shot[2].color[0]) for shot in shots]
    depths = [make_depth(shot[2].depth[0, ::2, ::2], shot[2].sigma[0, ::2, ::2]) for shot in shots]
    T = inverse(shots[0][1].T_map_camera[0]) @ shots[1][1].T_map_camera[0]
    flow = FlowMeter(0.12, 3.0).measure(pictures[1], pictures[0])
    return view, flow, T, depths, shots[1][3][0, ::2, ::2]


@settings(max_examples=15, deadline=None)
@given(
    scale=st.floats(1.0, 8.0),
    pose=st.floats(1.0, 8.0),
    road=st.floats(0.05, 0.4),
    flow_scale=st.floats(1.0, 8.0),
)
def test_more_doubt_never_means_more_motion(measured, scale, pose, road, flow_scale):
    """Chi-square falls, or stays, where any covariance grows: a residual is judged by its own
    uncertainty."""
    view, flow, T, (before, now), _ = measured
    sure = static_residual(
        view, flow, T, (0.01, 0.0005), see_road(view, LEVEL, 0.05, 0.005), now, before
    )
    blurred = dataclasses.replace(
        flow, wuu=flow.wuu / flow_scale, wuv=flow.wuv / flow_scale, wvv=flow.wvv / flow_scale
    )
    now, before = (Depth(d.q, d.sigma * np.float32(scale)) for d in (now, before))
    vague = static_residual(
        view,
        blurred,
        T,
        (0.01 * pose, 0.0005 * pose),
        see_road(view, LEVEL, road, road / 10),
        now,
        before,
    )
    both = sure.inside & vague.inside
    assert np.all(vague.chi2[both] <= sure.chi2[both] * 1.01 + 0.1)


def test_chi_square_tells_movers_from_the_rest(measured):
    view, flow, T, (before, now), truth = measured
    chi2 = static_residual(
        view, flow, T, (0.005, 0.0003), see_road(view, LEVEL, 0.08, 0.008), now, before
    ).chi2
    assert np.median(chi2[truth]) > 25
    assert np.median(chi2[~truth]) < 3


@pytest.mark.parametrize(
    ("bend", "low", "high"),
    [(0.5, 2.0, 10.0), (1.0, -6.0, 0.0), (1.8, 2.0, 10.0)],
    ids=["oncoming", "parked", "going along"],
)
def test_what_floats_or_is_sunk_moves_and_what_stands_on_its_foot_does_not(bend, low, high):
    """Flow alone puts oncoming traffic too near and what drives along too far: only the parked car
    is as far as where it stands."""
    _, calibration = SINGLE
    view = make_views(calibration)[0]
    street = Street((Box((14, 3, 0), (4, 2, 1.6)), Box((14, -3, 0), (4, 2, 1.6))))
    _, z, which = street.render(calibration, 0, calibration.T_base_camera[0], 0.0)
    depth, which = np.where(which == 0, z * bend, z)[::2, ::2].astype(np.float32), which[::2, ::2]
    none = np.zeros(depth.shape, bool)
    evidence = judge_runs(
        1 / depth, ~none, 0.02 / depth, see_road(view, LEVEL, 0.08, 0.008), none, none, 1.6, 0.35
    )
    assert low <= np.median(evidence[which == 0]) <= high
    assert np.median(evidence[which == 1]) <= 0
    assert (evidence[which < 0] > 0).mean() < 0.02


def test_an_outline_stands_for_the_smooth_side_within_it_and_for_nothing_beyond():
    color = np.full((72, 96, 3), 90, np.uint8)
    side = np.zeros((72, 96), bool)
    side[24:48, 24:56] = True
    color[side] = (160, 60, 50)
    rim = (
        side & ~np.roll(side, 3, 0)
        | side & ~np.roll(side, -3, 0)
        | side & ~np.roll(side, 3, 1)
        | side & ~np.roll(side, -3, 1)
    )
    nothing, unknown, stands = (
        np.zeros(side.shape, bool),
        np.zeros(side.shape, np.float32),
        np.full(side.shape, -1, np.float32),
    )
    moves = (
        spread_near(color, unknown, nothing, np.where(rim, 1.0, 0.0).astype(np.float32), stands) > 0
    )
    assert iou(moves, side) > 0.85
    assert not (spread_near(color, unknown, nothing, unknown, stands) > 0).any()


def test_belief_outlives_evidence_by_a_while_and_no_more():
    color = np.full((72, 96, 3), 90, np.uint8)
    side = np.zeros((72, 96), bool)
    side[24:48, 24:56] = True
    color[side] = (160, 60, 50)
    unknown = np.zeros(side.shape, np.float32)
    moves, kept = np.where(side, 1, -1).astype(np.float32), []
    for _ in range(20):
        moves = spread_near(color, unknown, ~side | side, unknown, KEPT * (moves + 1) - 1)
        kept.append(iou(moves > 0, side))
    assert min(kept[:3]) > 0.8
    assert kept[-1] == 0


def test_gaps_in_depth_are_closed_from_around_them():
    q = np.tile(np.linspace(0.1, 0.3, 64, dtype=np.float32), (40, 1))
    holes = q.copy()
    holes[10:20, 15:25] = np.nan
    filled = fill_in(holes)
    known = np.isfinite(holes)
    assert np.abs(filled - q)[known].max() < 0.02
    assert np.abs(filled - q)[~known].max() < 0.03
    assert np.isfinite(fill_in(np.where(np.arange(64) == 5, q, np.float32(np.nan)))).all()


def test_one_camera_finds_what_drives_along_with_it():
    """Its flow is that of something infinitely far, under the horizon: no static thing has it."""
    found = [
        iou(motion.mask, truth)
        for motion, truth in drive(
            SINGLE, (*STILL, Box((9, -1, 0), (4, 2, 1.6), (8.0, 0, 0))), 0.25
        )[2:]
    ]
    assert np.mean(found) > 0.4


def test_a_mover_is_where_another_camera_says_and_nowhere_else():
    _, calibration = RING
    views = make_views(calibration)
    _, pose, geometry, truth = observe(
        Street((CROSSING,)),
        calibration,
        se3(np.eye(3), np.array([3.2, 0, 0])),
        0.4,
        disparity_noise=0.0,
    )
    told = points_of(
        views[0],
        pose.T_map_camera[0],
        np.where(truth[0], 1 / geometry.depth[0], 0)[::2, ::2].astype(np.float32),
    )
    seen, there = seen_from(views[1], pose.T_map_camera[1], told), truth[1, ::2, ::2]
    assert seen.sum() > 0.1 * there.sum()
    assert (seen & there).sum() > 0.9 * seen.sum()
    assert not seen_from(views[1], pose.T_map_camera[1], told[:0]).any()


@pytest.mark.full
def test_a_camera_that_just_came_back_marks_what_another_found():
    """It has no image to compare with: without the other it marks nothing."""
    rig, calibration = RING
    dynamics, street = (
        Dynamics(rig, calibration, DynamicsParameters(source="residual")),
        Street((*STILL, CROSSING)),
    )
    for n in range(4):
        frame, pose, geometry, truth = observe(
            street,
            calibration,
            se3(np.eye(3), np.array([0.8 * n, 0, 0])),
            0.1 * n,
            disparity_noise=0.25,
            present=np.array([True, n == 3]),
        )
        mask = dynamics(frame, pose, geometry).mask
    assert iou(mask[1], truth[1]) > 0.5
    assert (mask[1] & ~truth[1]).mean() < 0.01


def test_what_a_mover_uncovers_is_no_mover():
    results = drive(SINGLE, (*STILL, CROSSING), 0.25)
    wrong = []
    for (_, before), (motion, truth) in pairwise(results[2:]):
        uncovered = before & ~truth
        wrong.append((motion.mask & uncovered).sum() / uncovered.sum())
    assert np.mean(wrong) < 0.2


def test_the_road_is_found_where_base_link_is_not_on_it():
    rng = np.random.default_rng(0)
    road = np.column_stack(
        [rng.uniform(4, 20, 1500), rng.uniform(-6, 6, 1500), rng.normal(-1.65, 0.03, 1500)]
    )
    road[:, 2] += 0.01 * road[:, 0]
    wall = np.column_stack(
        [rng.uniform(4, 20, 1000), np.full(1000, 7.0), rng.uniform(-1.6, 4, 1000)]
    )
    points = np.concatenate([road, wall]).astype(np.float32)
    level = find_level(points)
    assert level is not None
    plane = refine_plane(level, points, 1.0)
    assert abs(plane[3] / plane[2] - 1.65) < 0.05
    assert abs(-plane[0] / plane[2] - 0.01) < 0.005
    assert find_level(points[:50]) is None


def detection(camera: int, position, velocity=(0.0, 3.0, 0.0), label: int = 1) -> Detection:
    return Detection(
        camera,
        label,
        np.array(position, float),
        np.eye(3) * 0.1,
        np.array(velocity, float),
        np.eye(3) * 0.5,
        2.0,
        1.5,
        50,
        0.9,
        0.0,
    )


def test_ids_survive_a_crossing():
    tracker = Tracker(3.0, 2, 0.6, 0.5)
    owners = []
    for n in range(20):
        tracker.predict(0.1)
        a, b = (n * 0.6 - 6, 0.8, 0.5), (6 - n * 0.6, -0.8, 0.5)
        owner = tracker.update([detection(0, a, (6, 0, 0), 1), detection(0, b, (-6, 0, 0), 2)])
        owners.append((owner[(0, 1)], owner[(0, 2)]))
    assert set(owners) == {(1, 2)}
    assert [o.id for o in tracker.objects()] == [1, 2]


def test_an_object_in_two_cameras_is_one_and_keeps_its_id_when_passed_on():
    tracker = Tracker(3.0, 2, 0.6, 0.5)
    for n in range(18):
        tracker.predict(0.1)
        position = (8.0, n * 0.3, 0.7)
        seen = [camera for camera, span in ((0, range(10)), (1, range(8, 18))) if n in span]
        tracker.update([detection(camera, position) for camera in seen])
        assert len(tracker.tracks) == 1
    assert tracker.objects()[0].id == 1 and tracker.objects()[0].age == 17


@pytest.mark.parametrize(
    "velocity, width, size, center",
    [
        (
            (9.0, 0.0, 0.0),
            1.8,
            (3.96, 1.8),
            1.98,
        ),  # a car's rear is seen: its box reaches away along the view
        ((0.0, 9.0, 0.0), 4.5, (4.5, 1.8), 0.9),  # its side is seen
        ((0.0, 1.5, 0.0), 0.6, (0.6, 0.6), 0.3),  # a pedestrian
    ],
)
def test_an_object_is_the_centre_of_its_box_and_what_is_seen_its_near_side(
    velocity, width, size, center
):
    tracker = Tracker(3.0, 2, 0.6, 0.5)
    for n in range(5):
        tracker.predict(0.1)
        seen = detection(0, [20 + 0.1 * n * velocity[0], 0.1 * n * velocity[1], 0.7], velocity)
        tracker.update([dataclasses.replace(seen, width=width)])
    (found,) = tracker.objects()
    assert found.position - tracker.tracks[0].state[:3] == pytest.approx([center, 0, 0], abs=0.02)
    assert found.size == pytest.approx([*size, 1.5], abs=0.02)
    assert found.position_covariance[0, 0] > tracker.tracks[0].P[0, 0]


def test_a_track_that_stops_is_no_object_and_one_that_is_gone_is_forgotten():
    tracker = Tracker(3.0, 2, 0.5, 0.5)
    for n in range(6):
        tracker.predict(0.1)
        tracker.update([detection(0, (10, n * 0.3, 0.7))])
    assert len(tracker.objects()) == 1
    for _ in range(15):
        tracker.predict(0.1)
        tracker.update([detection(0, (10, 1.5, 0.7), (0, 0, 0))])
    assert tracker.objects() == () and len(tracker.tracks) == 1
    for _ in range(6):
        tracker.predict(0.1)
        tracker.update([])
    assert tracker.tracks == []


def test_what_seems_faster_than_traffic_is_no_object():
    for speed, count in ((30.0, 1), (60.0, 0)):
        tracker = Tracker(3.0, 2, 0.5, 0.5)
        for n in range(6):
            tracker.predict(0.1)
            tracker.update([detection(0, (30, n * speed * 0.1, 0.7), (0, speed, 0))])
        assert len(tracker.objects()) == count
