"""What ego-motion believes and how sure it is: patches of the road, sightings, speeds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_egomotion import MONO, calibrate

from recon4d_ros import geometry
from recon4d_ros.egomotion import Egomotion, measure, motion_prior, patch_alignment, pnp, road
from recon4d_ros.egomotion.patch_alignment import Pair, Reference
from recon4d_ros.egomotion.road import RoadMotion


def _stripes(across: bool) -> np.ndarray:
    """An image of soft stripes with a little noise: along v (across: along u)."""
    rng = np.random.default_rng(3)
    u = np.arange(200)
    wave = 120 + 60 * np.sin(u / 3.0)
    image = np.tile(wave, (200, 1)) + rng.normal(0, 2.0, (200, 200))
    return np.clip(image.T if across else image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("across", "tells"), [(False, False), (True, True)])
def test_a_marking_along_its_way_tells_nothing_of_it(across: bool, tells: bool) -> None:
    """Stripes that run the way that the road goes by look the same wherever they are."""
    pixel = np.stack(np.meshgrid(np.arange(30, 170, 20), np.arange(30, 170, 20)), -1).reshape(-1, 2)
    way = np.tile([0.0, 1.0], (len(pixel), 1))
    textured = Reference(_stripes(across), pixel, way).textured
    assert textured.mean() > 0.9 if tells else textured.mean() < 0.1


def test_a_place_is_as_unsure_as_its_patch_is_flat() -> None:
    """Along a stripe next to nothing is known, across it a tenth of a pixel: noise has slopes, too,
    and is not texture."""
    image = _stripes(across=False)
    pixel = np.stack(np.meshgrid(np.arange(30, 170, 20), np.arange(30, 170, 20)), -1).reshape(-1, 2)
    same = np.tile(np.eye(2), (len(pixel), 1, 1))
    pair = [Pair(image, image, 0, len(pixel))]
    _, alike, spread = patch_alignment.align(pair, pixel, pixel, same)
    deviation = np.median(np.sqrt(spread[:, [0, 1], [0, 1]]), axis=0)
    assert (alike > patch_alignment.ALIKE).all()
    assert deviation[0] < 0.1
    assert deviation[1] > 5.0 * deviation[0]


@given(st.floats(0.5, 4.0), st.floats(-0.05, 0.05), st.integers(0, 1000))
def test_a_step_on_the_road_is_seen_exactly(travel: float, turn: float, seed: int) -> None:
    """Warp and bend together are the homography of the road's plane, not its first order."""
    rng = np.random.default_rng(seed)
    normal = np.array([0.0, -1.0, 0.05])
    ray = np.array([rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.4), 1.0])

    def point(one: np.ndarray) -> np.ndarray:
        return one * (-1.6 / (normal @ one))

    T = geometry.exp(np.array([0.02, 0.01, travel, 0.0, turn, 0.0]))

    def there(one: np.ndarray) -> np.ndarray:
        moved = geometry.transform(T, point(one)[None])[0]
        return np.asarray(moved[:2] / moved[2])

    warp, bend = patch_alignment.warps(point(ray)[None], normal[None], T[None])
    step = rng.uniform(-0.02, 0.02, 2)
    expected = there(ray + np.array([*step, 0.0])) - there(ray)
    found = warp[0] @ step / (1.0 + bend[0] @ step)
    assert np.allclose(found, expected, atol=1e-9)


def test_the_slopes_of_a_wide_peak_are_no_rival() -> None:
    """At 40 m/s the best speed's neighbours score nearly as much; another peak does count."""
    travel = np.linspace(0, 6, 140)
    wide = 0.2 + 0.7 * np.exp(-0.5 * np.square((travel - 3.9) / 0.4))
    other = 0.3 * np.exp(-0.5 * np.square((travel - 1.5) / 0.1))
    best = int(np.argmax(wide))
    assert not road._others(wide, best)[best - 8 : best + 9].any()
    assert (wide + other)[road._others(wide + other, best)].max() > 0.45


@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0))
def test_the_more_disagree_the_less_is_known(a: float, b: float) -> None:
    less, more = sorted((a, b))
    assert pnp.together(less) >= pnp.together(more)
    assert 0.5 < pnp.together(more) <= pnp.together(less) <= 20.0


def test_a_motion_known_badly_stays_so_when_carried_on() -> None:
    """The prediction is no surer than the speed it is made from."""
    unconfirmed, twist = motion_prior.Unconfirmed(), np.array([35.0, 0, 0, 0, 0, 0])
    sure = unconfirmed.prior(np.eye(4), twist, 0.1, np.zeros((6, 6)))
    unsure = unconfirmed.prior(np.eye(4), twist, 0.1, np.diag([9.0, 0, 0, 0, 0, 0.01]))
    assert np.sqrt(unsure.covariance[0, 0]) > 0.3 > 3 * np.sqrt(sure.covariance[0, 0])
    assert unsure.covariance[5, 5] > sure.covariance[5, 5]
    assert np.allclose(unsure.T_map_base, sure.T_map_base)


def _attempt(speed: float, road_agrees: float | None = None) -> tuple:
    """An instant 0.1 s after the last, and a motion of `speed`, m/s, found in it."""
    pose = geometry.exp(np.array([speed * 0.1, 0, 0, 0, 0, 0]))
    seen = None
    if road_agrees is not None:
        seen = RoadMotion(pose, np.eye(6), np.zeros(6), 0.9, round(100 * road_agrees), 100)
    now = SimpleNamespace(
        seconds=0.1,
        frame=SimpleNamespace(stamp_ns=200_000_000),
        velocity=lambda T: geometry.log(T) / 0.1,
    )
    return now, SimpleNamespace(pose=pose, covariance=np.eye(6) * 1e-4, road=seen)


@pytest.mark.parametrize(
    ("speed", "road_agrees", "possible"),
    [(39.0, None, True), (37.0, None, True), (15.0, None, False), (15.0, 0.3, False)],
)
def test_no_car_changes_its_speed_at_once(
    speed: float, road_agrees: float | None, possible: bool
) -> None:
    """39 m/s a tenth of a second ago: 15 m/s is that of the lorry beside, however many points say
    it."""
    now, tried = _attempt(speed, road_agrees)
    said = measure.impossible(now, tried, measure.Speed(39.0, 0.3, 100_000_000))
    assert bool(said) is not possible
    if said:
        assert "24.0 m/s in 0.1 s" in said


def test_what_the_road_confirms_is_possible() -> None:
    now, tried = _attempt(15.0, 0.9)
    assert measure.impossible(now, tried, measure.Speed(39.0, 0.3, 100_000_000)) == ""


def test_a_motion_has_most_of_the_points_or_of_the_road_on_its_side() -> None:
    """Of a camera that looks alone a third of either is not believed, whether the last motions were
    or not."""
    ego = Egomotion(MONO, calibrate(MONO))

    def said(points: int, patches: int) -> str:
        road = RoadMotion(np.eye(4), np.eye(6), np.zeros(6), 0.9, patches, 100)
        solution = SimpleNamespace(inliers=points)
        sightings = SimpleNamespace(observations=range(100))
        tried = SimpleNamespace(road=road, solution=solution, sightings=sightings)
        return ego._new(SimpleNamespace(), tried)

    for sure in (True, False):
        ego._sure = sure
        assert "30 % of the sightings and 35 % of the road" in said(30, 35) and not ego._sure
        assert said(30, 60) == "" and said(60, 20) == "" and ego._sure


@pytest.mark.parametrize(
    ("moved", "deviation", "turn", "told"),
    [
        (0.0, 0.3, 0.001, "standing or following: no parallax"),
        (8.0, 0.3, 0.001, "the motion is known to 0.30 m only"),
        (8.0, 0.02, 0.05, "the rotation is known to 2.9 degrees only"),
        (8.0, 0.02, 0.001, ""),
    ],
)
def test_why_a_motion_is_not_known(moved: float, deviation: float, turn: float, told: str) -> None:
    """Points that agree but hardly hold the motion: where they stay where they were in the image,
    the car stands or follows something; else it says how little is known."""
    pixel = np.random.default_rng(0).uniform(0, 600, (40, 2)).astype(np.float32)
    now = SimpleNamespace(
        frame=SimpleNamespace(present=np.array([True])),
        parameters=SimpleNamespace(min_inliers=15),
        landmarks=SimpleNamespace(pixel=pixel, __len__=lambda: 40),
        pose=np.eye(4),
    )
    seen = SimpleNamespace(
        blind=np.array([False]),
        observations=range(40),
        pixel=pixel + np.float32(moved),
        found=np.ones(40, np.bool_),
    )
    solution = SimpleNamespace(inliers=38, T_map_base=np.eye(4))
    covariance = np.diag(np.repeat([deviation, turn], 3) ** 2)
    assert measure.problem(now, seen, solution, covariance) == told


def test_patches_of_the_road_are_sightings_where_most_agree() -> None:
    """Nine points and a road that agrees are enough; with a road of which half moves otherwise they
    are not."""
    now = SimpleNamespace(
        frame=SimpleNamespace(present=np.array([True])),
        parameters=SimpleNamespace(min_inliers=15),
        landmarks=[0],
        pose=np.eye(4),
    )
    seen = SimpleNamespace(blind=np.array([False]), observations=range(60))
    solution = SimpleNamespace(inliers=9, T_map_base=geometry.exp(np.array([3.9, 0, 0, 0, 0, 0])))
    sure = np.eye(6) * 1e-6
    agreeing = RoadMotion(np.eye(4), np.eye(6), np.zeros(6), 0.9, 130, 160)
    assert measure.problem(now, seen, solution, sure, agreeing) == ""
    half = replace(agreeing, agreeing=75)
    assert measure.problem(now, seen, solution, sure, half) == "9 sightings agree, 15 are needed"
    assert measure.problem(now, seen, solution, sure) == "9 sightings agree, 15 are needed"
    assert half.agreed[0, 0] < 0.3 * agreeing.information[0, 0]


def test_half_the_resolution_where_the_image_before_shows_half() -> None:
    """A road seen from twice as far before: compared at half size it is alike, whole it is less."""
    rng = np.random.default_rng(5)
    fine = cv2.GaussianBlur(rng.normal(0, 1, (400, 400)).astype(np.float32), (0, 0), 0.8)
    now = np.clip(128 + 60 * fine / fine.std(), 0, 255).astype(np.uint8)
    before = cv2.resize(now, (200, 200), interpolation=cv2.INTER_AREA)
    pixel = np.stack(np.meshgrid(np.arange(60, 340, 40), np.arange(60, 340, 40)), -1).reshape(-1, 2)
    way = np.tile([0.0, 1.0], (len(pixel), 1))
    none = np.zeros(len(pixel))
    grid = road._Grid(0, pixel, np.zeros((len(pixel), 3)), np.zeros(3), way, none, none)
    which = np.arange(len(pixel))
    view = road.RoadView(
        grid, Reference(now, pixel, way), now, before, np.eye(4), which, none > 0, 0.1
    )
    place, warp = pixel / 2 - 0.25, np.tile(np.eye(2) / 2, (len(pixel), 1, 1))
    bend, inside = np.zeros((len(pixel), 2)), np.ones(len(pixel), bool)
    seen = road._Seen(place, warp, bend, inside)
    assert seen.far.all()
    whole = view.reference.alike(before, which, place, warp)
    assert np.median(view.alike(which, seen)) > np.median(whole) + 0.05
    found, alike, _ = view.found(which, replace(seen, place=place + 0.4))
    good = alike > 0.7
    assert good.mean() > 0.8
    assert np.median(np.abs(found - place)[good]) < 0.1
