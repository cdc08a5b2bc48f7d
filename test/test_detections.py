"""Detections from elsewhere: which boxes move, what they mark, and how they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from dynamics_scene import FORWARD, Box, Street, iou, make_rig, observe
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.dynamics import Dynamics, DynamicsParameters, learned
from recon4d_ros.dynamics.candidates import NO_STAMP, TOO_OLD, joined, on_rays
from recon4d_ros.dynamics.ground_motion import (
    PERSON,
    RIDER,
    SURE,
    THING,
    VEHICLE,
    Look,
    fit,
    kind_of,
)
from recon4d_ros.geometry import box_corners, se3
from recon4d_ros.messages import image_boxes
from recon4d_ros.types import (
    Camera,
    Detection,
    Detections,
    ImageBox,
    ImageBoxes,
    Motion,
)

CAR = (4.4, 1.8, 1.5)


# --- the test itself: cars as boxes, seen from a car that drives


def looks(
    rng: np.random.Generator,
    start: tuple[float, float],
    velocity: tuple[float, float],
    ego: float,
    *,
    size: tuple[float, float, float] = CAR,
    yaw: float = 0.0,
    noise: float = 0.02,
    jolt: float = 0.002,
    count: int = 11,
) -> list[Look]:
    """A second of boxes: edges wrong by `noise` of the height and a pixel, the camera tilted by
    what the calibration does not know, and jolted in each image."""
    out, tilt = [], rng.normal(0, 0.003)
    for i in range(count):
        t = 0.1 * i
        T = se3(FORWARD, np.array([ego * t, 0, 1.6]))
        centre = np.array([start[0] + velocity[0] * t, start[1] + velocity[1] * t, size[2] / 2])
        points = (box_corners(centre, np.array(size), yaw) - T[:3, 3]) @ T[:3, :3]
        if points[:, 2].min() < 1:
            break
        rays = points[:, :2] / points[:, 2:]
        box = np.array([*rays.min(0), *rays.max(0)])
        box[[1, 3]] += tilt + rng.normal(0, jolt)
        box += rng.normal(0, noise, 4) * (box[3] - box[1]) + rng.normal(0, 1 / 700, 4)
        motion = np.diag([0.02**2] * 3 + [0.002**2] * 3)
        road = np.array([0, 0, 1.0, 0])
        out.append(
            Look(
                round(t * 1e9) + 1, box, np.ones(3, bool), 1 / 700, T, road, motion, T[:3, 3].copy()
            )
        )
    return out


def share_that_moves(count: int, make) -> float:
    rng = np.random.default_rng(7)
    fits = [fit(make(rng), VEHICLE) for _ in range(count)]
    return float(np.mean([one is not None and one.faster(0.5) < SURE for one in fits]))


def test_a_car_ahead_at_our_own_speed_moves() -> None:
    seen = share_that_moves(
        60, lambda r: looks(r, (r.uniform(9, 35), r.uniform(-1, 1)), (12, 0), 12)
    )
    assert seen > 0.95


def test_what_stands_does_not_whether_we_drive_or_not() -> None:
    def parked(rng: np.random.Generator) -> list[Look]:
        side = float(rng.choice([-1, 1]) * rng.uniform(3, 8))
        return looks(rng, (rng.uniform(14, 50), side), (0, 0), 12, yaw=float(rng.uniform(0, 3)))

    def both_stand(rng: np.random.Generator) -> list[Look]:
        return looks(rng, (rng.uniform(6, 50), rng.uniform(-8, 8)), (0, 0), 0)

    for make in (parked, both_stand):
        assert share_that_moves(150, make) <= 0.02


def test_its_velocity_is_what_it_says_it_is() -> None:
    rng, worst = np.random.default_rng(3), []
    for _ in range(60):
        velocity = (float(rng.uniform(4, 14)), float(rng.uniform(-1, 1)))
        found = fit(looks(rng, (rng.uniform(10, 30), 0.0), velocity, 9), VEHICLE)
        assert found is not None
        off = found.velocity - velocity
        worst.append(float(off @ np.linalg.solve(found.covariance[2:, 2:], off)))
    assert np.mean(np.array(worst) < 13.8) > 0.9  # chi-square of two, 99.9 %


def test_ego_motion_that_is_in_doubt_proves_nothing() -> None:
    rng = np.random.default_rng(0)
    sure = looks(rng, (20.0, 0.0), (12, 0), 12)
    doubt = [
        Look(one.stamp_ns, one.box, one.known, one.edge, one.T_map_camera, one.plane,
             np.diag([25.0] * 3 + [1e-6] * 3), one.base)
        for one in sure
    ]  # fmt: skip
    assert fit(sure, VEHICLE).faster(0.5) < SURE < fit(doubt, VEHICLE).faster(0.5)  # type: ignore[union-attr]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_boxes_give_numbers_or_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = looks(rng, (15.0, 0.0), (0, 0), 5)
    wild = []
    for one in made:
        corner, side = rng.uniform(-2, 2, 2), rng.exponential(0.3, 2) + 1e-4
        box = np.array([*corner, *(corner + side)])
        wild.append(
            Look(one.stamp_ns, box, rng.random(3) < 0.7, one.edge, one.T_map_camera, one.plane,
                 one.motion, one.base)
        )  # fmt: skip
    found = fit(wild, THING)
    if found is not None:
        assert np.isfinite(found.covariance).all() and 0 <= found.faster(0.5) <= 1


def test_few_or_short_looks_say_nothing() -> None:
    every = looks(np.random.default_rng(0), (20.0, 0.0), (12, 0), 12)
    assert fit(every[:3], VEHICLE) is None
    assert fit(every[:4], VEHICLE) is None  # 0.3 s


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("car", VEHICLE),
        ("vehicle.car", VEHICLE),
        ("Construction Vehicle", VEHICLE),
        ("human.pedestrian.adult", PERSON),
        ("person", PERSON),
        ("bicycle", RIDER),
        ("traffic light", None),
        ("traffic_cone", None),
        ("", THING),
        ("7", THING),
        ("forklift", THING),
    ],
)
def test_class_names(name: str, kind: object) -> None:
    assert kind_of(name) is kind


def test_one_box_for_one_thing() -> None:
    van = ImageBox(100, 100, 200, 180, "car", 0.6)
    twin = ImageBox(102, 98, 201, 181, "truck", 0.8)
    beside = ImageBox(190, 100, 290, 180, "car", 0.7)
    bicycle = ImageBox(20, 150, 60, 190, "bicycle", 0.5)
    rides = ImageBox(25, 110, 55, 180, "person", 0.9)
    walks = ImageBox(70, 100, 95, 190, "person", 0.9)
    before = ImageBox(22, 90, 58, 260, "person", 0.9)  # walks before a bicycle
    lamp = ImageBox(0, 0, 9, 30, "traffic light", 0.9)
    found = joined([van, twin, beside, bicycle, rides, walks, lamp])
    assert [(box.class_name, kind) for box, kind in found] == [
        ("person", PERSON),
        ("truck", VEHICLE),
        ("car", VEHICLE),
        ("bicycle", RIDER),
    ]
    assert found[0][0] is walks
    assert found[-1][0] == ImageBox(20, 110, 60, 190, "bicycle", 0.5)
    assert len(joined([bicycle, before])) == 2 and joined([]) == []


# --- boxes in dynamics: a street, its boxes told


class Blind:
    """In the motion engine's place: sees nothing, or a share of what moves."""

    def __init__(self) -> None:
        self.truth = np.zeros((1, 0, 0), bool)
        self.forgotten = 0

    def step(self, inputs: dict) -> np.ndarray:
        out = np.zeros(inputs["grey"].shape, np.float32)
        if self.truth.size:
            seen = self.truth[:, ::2, ::2]
            out[:, : seen.shape[1], : seen.shape[2]] = seen
        return out

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Blind:
    engine = Blind()
    monkeypatch.setattr(learned, "load_motion", lambda *_: engine)
    return engine


def boxes_of(
    street: Street, calibration, T_map_camera: np.ndarray, seconds: float, stamp: int
) -> ImageBoxes:
    """What a perfect detector says: a car for each box of the street that is seen."""
    which = street.render(calibration, 0, T_map_camera, seconds)[2]
    out = []
    for index in range(len(street.boxes)):
        v, u = np.nonzero(which == index)
        if len(u):
            out.append(
                ImageBox(u.min() - 0.5, v.min() - 0.5, u.max() + 0.5, v.max() + 0.5, "car", 0.9)
            )
    return ImageBoxes(stamp, tuple(out))


street_of = lru_cache(Street)  # its textures take half a second

LEAD = Box((16, 0.3, 0), CAR, (8.0, 0, 0))
PARKED = Box((24, -5, 0), CAR, texture=2)
SINGLE = make_rig([(0, (0, 0, 1.6))])
STEREO = make_rig([(0, (0, 0, 1.6)), (0, (0, -0.54, 1.6))])


def drive(
    rig_and_calibration,
    boxes: Sequence[Box],
    *,
    ego: float = 8.0,
    count: int = 12,
    detect=lambda index: True,
    late: int = 0,
    seen: float = 0.0,
    engine: Blind | None = None,
    source: str = "network",
) -> list[tuple[Motion, np.ndarray]]:
    """Motion and truth of each image at 10 Hz; a detector tells of those images that `detect` says,
    `late` images later. seen: share (from the left) of what moves that the network marks."""
    rig, calibration = rig_and_calibration
    street, rng = street_of(tuple(boxes)), np.random.default_rng(2)
    dynamics = Dynamics(rig, calibration, DynamicsParameters(source=source))
    out, queue = [], []
    for index in range(count):
        t = 0.1 * index
        T = se3(np.eye(3), np.array([ego * t, 0, 0]))
        frame, pose, geometry, truth = observe(
            street, calibration, T, t, disparity_noise=0.1, rng=rng
        )
        shift = 10**9
        frame = type(frame)(
            frame.stamp_ns + shift, frame.images, frame.present, frame.stamps_ns + shift
        )
        if detect(index):
            told = boxes_of(street, calibration, pose.T_map_camera[0], t, int(frame.stamps_ns[0]))
            queue.append((index + late, told))
        while queue and queue[0][0] <= index:
            dynamics.candidates.offer(0, queue.pop(0)[1])
        if engine is not None and seen:
            part = np.zeros_like(truth)
            for i, plane in enumerate(truth):
                u = np.nonzero(plane.any(0))[0]
                if len(u):
                    part[i, :, : u.min() + round(seen * (np.ptp(u) + 1))] = True
            engine.truth = truth & part
        out.append((dynamics(frame, pose, geometry), truth))
    dynamics.close()
    return out


def test_a_car_ahead_that_nothing_else_sees_is_marked_within_a_second(blind: Blind) -> None:
    results = drive(SINGLE, (LEAD, PARKED))
    assert not any(motion.mask.any() for motion, _ in results[:4])
    assert [motion.mask.any() for motion, _ in results[8:]] == [True] * 4
    motion, truth = results[-1]
    assert iou(motion.mask[0], truth[0]) > 0.75  # the parked car is not in it
    (thing,) = motion.objects
    assert thing.class_name == "car" and thing.class_score == pytest.approx(0.9)
    assert np.linalg.norm(thing.velocity[:2] - (8, 0)) < 1.0
    place = np.array([16 + 8 * 1.1, 0.3])
    assert np.linalg.norm(thing.position[:2] - place) < 2.0


def test_without_boxes_it_stays_unseen_and_a_box_less_is_no_evidence(blind: Blind) -> None:
    assert not any(
        motion.mask.any() for motion, _ in drive(SINGLE, (LEAD,), detect=lambda i: False)
    )
    with_gaps = drive(SINGLE, (LEAD,), count=16, detect=lambda i: i < 12)
    kept = [motion.mask.any() for motion, _ in with_gaps[12:]]
    assert all(kept)  # 0.4 s without a box


def test_a_slow_and_late_detector_is_carried(blind: Blind) -> None:
    results = drive(SINGLE, (LEAD, PARKED), count=20, detect=lambda i: i % 2 == 0, late=2)
    motion, truth = results[-1]
    assert iou(motion.mask[0], truth[0]) > 0.7


def test_what_stands_marks_nothing(blind: Blind) -> None:
    standing = Box((22, 0.5, 0), CAR)
    results = drive(SINGLE, (standing, PARKED), ego=6.0)
    assert not any(motion.mask.any() for motion, _ in results)
    assert not any(motion.objects for motion, _ in results)


def test_a_car_half_marked_is_filled_and_is_one_object(blind: Blind) -> None:
    crossing = Box((16, -4, 0), (1.8, 4.4, 1.5), (0, 5.0, 0))
    results = drive(SINGLE, (crossing,), ego=2.0, count=14, seen=0.6, engine=blind)
    half = blind.truth[0]
    motion, truth = results[-1]
    assert iou(half, truth[0]) < 0.65
    assert iou(motion.mask[0], truth[0]) > 0.8
    assert len(motion.objects) == 1 and motion.objects[0].class_name == "car"


def test_its_depth_keeps_what_stands_before_it_out(blind: Blind) -> None:
    post = Box((15.5, 0.15, 0), (0.3, 0.3, 2.5), texture=3)
    motion, truth = drive(STEREO, (LEAD, post))[-1]
    frame_post = ~truth[0] & motion.mask[0]
    rows = np.nonzero(truth[0].any(1))[0]
    columns = np.nonzero(truth[0].any(0))[0]
    hole = ~truth[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    marked = frame_post[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert hole.sum() > 40 and marked[hole].mean() < 0.35


def test_driv3rs_rule_takes_boxes_too() -> None:
    motion, truth = drive(SINGLE, (LEAD, PARKED), source="rigid_flow")[-1]
    assert iou(motion.mask[0], truth[0]) > 0.7
    assert any(thing.class_name == "car" for thing in motion.objects)


def test_boxes_in_3d_that_move_mark_their_pixels_and_those_that_stand_do_not(blind: Blind) -> None:
    """What an engine of objects says enters as the rest does, in every camera that sees it."""
    street, rng = street_of((LEAD, PARKED)), np.random.default_rng(2)
    dynamics = Dynamics(*SINGLE, DynamicsParameters(source="network"))
    for index in range(14):
        t = 0.1 * index
        T = se3(np.eye(3), np.array([8.0 * t, 0, 0]))
        frame, pose, geometry, truth = observe(
            street, SINGLE[1], T, t, disparity_noise=0.1, rng=rng
        )
        if index % 2 == 0:
            dynamics.candidates.offer_objects(
                Detections(
                    frame.stamp_ns,
                    tuple(
                        told(number, box, t + rng.normal(0, 0.01))
                        for number, box in enumerate(street.boxes)
                    ),
                )
            )
        motion = dynamics(frame, pose, geometry)
    assert iou(motion.mask[0], truth[0]) > 0.75
    (thing,) = motion.objects
    assert thing.class_name == "car"
    assert np.linalg.norm(thing.position[:2] - (16 + 8 * 1.3, 0.3)) < 1.0


def told(number: int, box: Box, t: float) -> Detection:
    centre = np.array(box.start) + np.array(box.velocity) * t + (0, 0, box.size[2] / 2)
    placed = np.array([*centre, *box.size, 0.0])
    return Detection(number, "car", 0.8, 0.7, placed, placed, np.zeros(3), np.zeros(3))


def test_what_cannot_be_placed_is_counted(blind: Blind) -> None:
    street = street_of((LEAD,))
    dynamics = Dynamics(*SINGLE, DynamicsParameters(source="network"))
    for t in (2.0, 2.1, 5.0):
        dynamics.candidates.offer(0, ImageBoxes(0, ()))
        dynamics.candidates.offer(0, ImageBoxes(10**9, (ImageBox(1, 1, 9, 9, "car"),)))
        dynamics(*observe(street, SINGLE[1], np.eye(4), t, disparity_noise=0.1)[:3])
    assert dynamics.candidates.dropped == {NO_STAMP: 3, TOO_OLD: 3}
    assert not dynamics.candidates.candidates
    future = ImageBoxes(6 * 10**9, ())
    dynamics.candidates.offer(0, future)
    dynamics(*observe(street, SINGLE[1], np.eye(4), 5.1, disparity_noise=0.1)[:3])
    assert not dynamics.candidates.idle  # it waits for its image
    dynamics.reset()
    assert dynamics.candidates.idle


# --- how boxes come


def test_a_box_lies_where_its_corners_do_and_knows_what_is_cut() -> None:
    k = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    forward = se3(FORWARD, np.zeros(3))
    camera = Camera("a", 640, 480, k, forward)
    box, known, edge = on_rays(camera, ImageBox(100, 200, 300, 260))  # type: ignore[misc]
    np.testing.assert_allclose(box * 500 + [320, 240] * 2, [100, 200, 300, 260])
    assert known.all() and edge == pytest.approx(1 / 500)
    assert list(on_rays(camera, ImageBox(-5, 200, 300, 479))[1]) == [False, False, False]  # type: ignore[index]
    assert list(on_rays(camera, ImageBox(40, -9, 300, 400))[1]) == [True, True, False]  # type: ignore[index]
    assert on_rays(camera, ImageBox(5, 5, 5, 9)) is None
    assert on_rays(camera, ImageBox(float("nan"), 5, 50, 90)) is None
    # a camera on its side: right in its image is down in the world
    turned = forward.copy()
    turned[:3, :3] = turned[:3, :3] @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])
    on_its_side = Camera("b", 640, 480, k, turned)
    a = on_rays(on_its_side, ImageBox(300, 100, 420, 200))
    assert a is not None
    ends = (
        turned[:3, :3] @ np.array([[300 - 320, 100 - 240, 500], [420 - 320, 200 - 240, 500]]).T
    ).T
    upright = ends @ FORWARD
    rays = upright[:, :2] / upright[:, 2:]
    np.testing.assert_allclose(a[0], [*rays.min(0), *rays.max(0)], atol=1e-9)


def message(position: bool, nested: bool) -> SimpleNamespace:
    """A vision_msgs/Detection2DArray as Humble and later have it, or as Foxy has it."""
    point = SimpleNamespace(x=50.0, y=40.0)
    centre = SimpleNamespace(position=point, theta=0.0) if position else point

    def result(name: str, score: float) -> SimpleNamespace:
        if nested:
            return SimpleNamespace(hypothesis=SimpleNamespace(class_id=name, score=score))
        return SimpleNamespace(id=name, score=score)

    def detection(wide: float, results: list) -> SimpleNamespace:
        return SimpleNamespace(
            header=SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=5)),
            results=results,
            bbox=SimpleNamespace(center=centre, size_x=wide, size_y=10.0),
        )

    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0)),
        detections=[
            detection(20.0, [result("car", 0.4), result("truck", 0.6)]),
            detection(float("nan"), [result("car", 0.9)]),
            detection(0.0, []),
            detection(4.0, []),
        ],
    )


@pytest.mark.parametrize(("position", "nested"), [(True, True), (False, False)])
def test_messages_of_any_version(position: bool, nested: bool) -> None:
    said = image_boxes(message(position, nested))
    assert said.stamp_ns == 1_000_000_005  # the array has none: a detection's own
    assert said.boxes == (
        ImageBox(40, 35, 60, 45, "truck", 0.6),
        ImageBox(48, 35, 52, 45, "", 1.0),
    )
