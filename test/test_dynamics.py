"""The parts that turn what moves into objects: the static world as a camera sees it, the road,
tracks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dynamics_scene import Street, make_rig
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.dynamics.flow import FlowMeter, make_picture
from recon4d_ros.dynamics.ground import LEVEL, find_level, refine_plane
from recon4d_ros.dynamics.infill import fill_in
from recon4d_ros.dynamics.static_world import inverse_depth, move, see_road, static_flow
from recon4d_ros.dynamics.tracker import Detection, Tracker
from recon4d_ros.dynamics.views import make_views
from recon4d_ros.geometry import exp, inverse, se3

SINGLE = make_rig([(0, (0, 0, 1.6))])


@settings(max_examples=20, deadline=None)
@given(
    twist=st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6),
    range_m=st.floats(2.0, 200.0),
)
def test_static_flow_leads_to_where_the_point_is_seen(twist: list[float], range_m: float) -> None:
    view = make_views(SINGLE[1])[0]
    T = exp(np.array(twist) * [10, 10, 10, 1, 1, 1])
    q = np.full(view.x.shape, 1 / range_m, np.float32)
    u, v, z = move(view, view, view.x, view.y, q, T)
    points = np.stack([view.x, view.y, np.ones_like(view.x)], -1).astype(np.float64) * range_m
    there = points @ T[:3, :3].T + T[:3, 3]
    ahead = there[..., 2] > 0.5
    pixels = there[..., :2] / there[..., 2:] * view.k[[0, 1], [0, 1]] + view.k[:2, 2]
    np.testing.assert_allclose(np.stack([u, v], -1)[ahead], pixels[ahead], atol=0.02, rtol=1e-3)
    np.testing.assert_allclose(z, there[..., 2], atol=0.01, rtol=1e-4)
    flow = np.stack(static_flow(view, q, T), -1)
    columns, rows = np.meshgrid(*(np.arange(side) for side in view.x.shape[::-1]))
    ends = np.stack([columns, rows], -1) + flow
    np.testing.assert_allclose(ends[ahead], pixels[ahead], atol=0.02, rtol=1e-3)
    far = static_flow(view, np.full_like(q, np.nan), T)
    np.testing.assert_array_equal(far, static_flow(view, np.zeros_like(q), T))


def test_the_road_is_as_far_as_it_is_and_flow_finds_it() -> None:
    view = make_views(SINGLE[1])[0]
    street = Street()
    poses = [se3(np.eye(3), np.array([0.8 * n, 0, 0])) @ view.T_base_camera for n in (0, 1)]
    (before, z, _), (now, _, _) = (street.render(SINGLE[1], 0, pose, 0.0) for pose in poses)
    road, seen = see_road(view, LEVEL), inverse_depth(z[::2, ::2])
    on_road = (road > 1 / 20) & (np.abs(seen - road) < 0.001)
    assert on_road.mean() > 0.2 and not road[: view.x.shape[0] // 2 - 1].any()
    pictures = [make_picture(np.repeat(grey[..., None], 3, 2)) for grey in (now, before)]
    rigid = static_flow(view, road, inverse(poses[0]) @ poses[1])
    flow = FlowMeter()(*pictures, np.stack(rigid, -1))
    off = np.hypot(flow.u - rigid[0], flow.v - rigid[1])
    inside = np.zeros_like(on_road)
    inside[:-12, 12:-12] = True  # what has just come into the image's edge has no flow
    assert np.median(off[on_road & inside]) < 0.5  # of flow over 3 pixels
    assert np.median(np.hypot(*rigid)[on_road & inside]) > 3
    for plane in (None, np.array([0.0, 0, 1, -1.6])):  # not known; a camera on the road
        assert not see_road(view, plane).any()


def test_gaps_in_depth_are_closed_from_around_them():
    q = np.tile(np.linspace(0.1, 0.3, 64, dtype=np.float32), (40, 1))
    holes = q.copy()
    holes[10:20, 15:25] = np.nan
    filled = fill_in(holes)
    known = np.isfinite(holes)
    assert np.abs(filled - q)[known].max() < 0.02
    assert np.abs(filled - q)[~known].max() < 0.03
    assert np.isfinite(fill_in(np.where(np.arange(64) == 5, q, np.float32(np.nan)))).all()


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
