"""Ego-motion: the solver on exact sightings, and the whole stage on a street that is rendered here
(planes, textured by noise)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros import geometry
from recon4d_ros.bags import BagReader, ImageEvent
from recon4d_ros.cameras.distortion import to_pixels
from recon4d_ros.cameras.lens import Lens, lens_at
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.egomotion import (
    Egomotion,
    EgomotionParameters,
    calibration,
    ground_scale,
    klt,
    local_ba,
    patch_alignment,
    pnp,
)
from recon4d_ros.egomotion.camera_rig import Cameras, Images
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.lean import Lean
from recon4d_ros.egomotion.local_ba import Keyframe
from recon4d_ros.egomotion.motion_prior import OdometryBuffer
from recon4d_ros.egomotion.pnp import Observations, Prior
from recon4d_ros.egomotion.road import Road
from recon4d_ros.types import (
    Calibration,
    Camera,
    Frame,
    FrameSet,
    Geometry,
    Jump,
    OdometrySample,
    PoseEstimate,
    RawImage,
    Rig,
    Tracking,
)

Shots = tuple[tuple[Frame, Geometry, np.ndarray], ...]
OPTICAL = np.array(
    [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]
)  # optical axes in a body that looks along x


def mount(x: float, y: float, z: float, yaw: float = 0.0, pitch: float = 0.0) -> np.ndarray:
    turn = geometry.exp(np.array([0, 0, 0, 0, 0, np.radians(yaw)])) @ geometry.exp(
        np.array([0, 0, 0, 0, np.radians(pitch), 0])
    )
    return geometry.se3(turn[:3, :3] @ OPTICAL, np.array([x, y, z]))


def camera(
    name: str, pose: np.ndarray, size: tuple[int, int] = (144, 256), fov: float = 80.0
) -> Camera:
    height, width = size
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    return Camera(
        name,
        width,
        height,
        np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]]),
        pose,
    )


STEREO = Rig(
    "stereo",
    (
        camera("left", mount(1.5, 0.27, 1.6), (192, 448)),
        camera("right", mount(1.5, -0.27, 1.6), (192, 448)),
    ),
)
SURROUND = Rig(
    "surround",
    tuple(
        camera(
            f"c{yaw}",
            mount(np.cos(np.radians(yaw)), np.sin(np.radians(yaw)), 1.5, yaw),
            (180, 320),
            70.0,
        )
        for yaw in (0, 60, 120, 180, 240, 300)
    ),
)
MONO = Rig("mono", (camera("front", mount(1.5, 0.0, 1.6), (240, 480)),))


def calibrate(rig: Rig) -> Calibration:
    """Working image and input image are the same: no distortion, no resize."""
    size = (rig.cameras[0].height, rig.cameras[0].width)
    v, u = np.indices(size, np.float32)
    count = len(rig.cameras)
    grid, k = np.stack([np.stack([u, v], -1)] * count), np.stack([c.k for c in rig.cameras])
    return Calibration(rig.names, grid, k, rig.T_base_camera, size, size)


# --- a street: road at z = 0, house fronts at y = -7 and y = 8, its ends at x = 140 and -60


@lru_cache(maxsize=1)
def texture() -> np.ndarray:
    rng = np.random.default_rng(7)
    out = np.zeros((1024, 1024), np.float32)
    for sigma, weight in ((1.2, 1.0), (3.0, 1.6), (9.0, 2.5)):
        layer = cv2.GaussianBlur(
            rng.standard_normal((1024, 1024)).astype(np.float32), (0, 0), sigma
        )
        out += weight * layer / layer.std()
    return np.clip(out * 14 + 120, 5, 250).astype(np.float32)


PLANES = (  # normal, offset (n.x = d), the two axes that texture follows, texels per metre
    (np.array([0.0, 0, 1]), 0.0, (0, 1), 14.0),
    (np.array([0.0, 1, 0]), 8.0, (0, 2), 12.0),
    (np.array([0.0, 1, 0]), -7.0, (0, 2), 12.0),
    (np.array([1.0, 0, 0]), 140.0, (1, 2), 5.0),
    (np.array([1.0, 0, 0]), -60.0, (1, 2), 5.0),
)


def render(
    T_world_camera: np.ndarray, k: np.ndarray, size: tuple[int, int], lens: Lens | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Grey image uint8 [h, w] and z-depth float32 [h, w] (NaN: sky) of the street; through a lens
    if there is one, else by k. T_world_camera: [4, 4], or one for each row [h, 4, 4]."""
    rays = geometry.unproject(np.ones(size, np.float32), k)
    if lens is not None:
        seen = lens.rays(np.indices(size)[::-1].reshape(2, -1).T.astype(np.float64)).reshape(
            *size, 2
        )
        rays = np.concatenate([seen, np.ones((*size, 1))], axis=-1).astype(np.float32)
    rays = rays @ np.swapaxes(T_world_camera[..., :3, :3], -1, -2).astype(np.float32)
    origin = T_world_camera[..., :3, 3].reshape(-1, 1, 3)
    depth, grey = np.full(size, np.inf, np.float32), np.full(size, 200, np.float32)
    for index, (normal, offset, axes, scale) in enumerate(PLANES):
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (offset - origin @ normal) / (rays @ normal.astype(np.float32))
            hit = origin.astype(np.float32) + rays * z[..., None]
        nearer = (z > 0.1) & (z < depth) & (hit[..., 2] < 9.0) & (hit[..., 2] > -0.01)
        at = np.where(nearer[..., None], hit, 0)[..., list(axes)] * scale + 137.0 * index
        at = np.mod(at, 1022).astype(np.float32)
        grey = np.where(
            nearer, cv2.remap(texture(), at[..., 0], at[..., 1], cv2.INTER_LINEAR), grey
        )
        depth = np.where(nearer, z, depth)
    return np.clip(grey, 0, 255).astype(np.uint8), np.where(
        np.isfinite(depth), depth, np.nan
    ).astype(np.float32)


def drive(
    frames: int, speed: float = 8.0, yaw_rate: float = 0.0, period_ns: int = 100_000_000
) -> list[tuple[int, np.ndarray]]:
    """Stamps and poses of base_link in the world."""
    step = geometry.exp(np.array([speed, 0, 0, 0, 0, yaw_rate]) * period_ns * 1e-9)
    poses = [np.eye(4)]
    for _ in range(frames - 1):
        poses.append(poses[-1] @ step)
    return [(1_000_000_000 + index * period_ns, pose) for index, pose in enumerate(poses)]


def frame_at(
    rig: Rig, stamp: int, pose: np.ndarray, present: tuple[bool, ...] | None = None
) -> tuple[Frame, Geometry]:
    images, depths = zip(
        *(render(pose @ c.T_base_camera, c.k, (c.height, c.width)) for c in rig.cameras),
        strict=True,
    )
    there = np.array(present if present is not None else [True] * len(images))
    stack = np.stack(images)[..., None] * there[:, None, None, None]
    depth = np.where(there[:, None, None], np.stack(depths), np.nan).astype(np.float32)
    frame = Frame(stamp, stack.astype(np.uint8), there, np.full(len(images), stamp, np.int64))
    return frame, Geometry(
        depth, 0.01 * depth, np.isfinite(depth).astype(np.float32), np.repeat(stack, 3, -1)
    )


def blank(truth: Geometry) -> Geometry:
    nothing = np.full_like(truth.depth, np.nan)
    return Geometry(nothing, nothing, np.zeros_like(nothing), truth.color)


# --- the solver


def scene(
    seed: int, count: int = 160, known: float = 1e-8
) -> tuple[np.ndarray, np.ndarray, Observations]:
    """True pose, T_camera_base of a surround rig, and exact sightings of landmarks hung on the
    rig's places at the map's origin."""
    rng = np.random.default_rng(seed)
    T_camera_base = geometry.inverse(SURROUND.T_base_camera)
    truth = geometry.exp(
        np.array([*rng.normal([0.9, 0, 0], [0.2, 0.05, 0.05]), *rng.normal(0, 0.02, 3)])
    )
    cam = rng.integers(0, len(SURROUND.cameras), count)
    rays = np.concatenate(
        [rng.uniform([-0.6, -0.35], [0.6, 0.35], (count, 2)), np.ones((count, 1))], axis=1
    )
    rho = 1 / rng.uniform(3, 40, count)
    mounts = SURROUND.T_base_camera[cam]
    origin, bearing = mounts[:, :3, 3], np.einsum("mij,mj->mi", mounts[:, :3, :3], rays)
    sigma, variance = np.full(count, 1e-3), known * rho**2
    o = Observations(
        origin, bearing, rho, variance, cam, np.zeros((count, 2)), sigma, np.arange(count)
    )
    q = pnp.project(truth[None], T_camera_base, o)[0]
    seen = np.flatnonzero(q[:, 2] > 0.2 * rho)
    ray = q[:, :2] / q[:, 2:]
    return truth, T_camera_base, replace(o, ray=ray).take(seen)


def seen_at(o: Observations, ray: np.ndarray) -> Observations:
    return replace(o, ray=ray)


def loose_prior(pose: np.ndarray | None = None) -> Prior:
    return Prior(np.eye(4) if pose is None else pose, np.diag([4.0, 1, 1, 0.04, 0.04, 0.04]))


def error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Metres and radians between two poses."""
    difference = geometry.log(geometry.inverse(a) @ b)
    return float(np.linalg.norm(difference[:3])), float(np.linalg.norm(difference[3:]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_solver_recovers_exact_poses(seed: int) -> None:
    truth, T_camera_base, o = scene(seed)
    solution = pnp.solve(T_camera_base, o, Prior(np.eye(4), np.diag([1e4] * 6)))
    assert max(error(truth, solution.T_map_base)) < 1e-5
    assert solution.inliers == len(o)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_solver_stands_half_the_sightings_being_wrong(seed: int, share: float) -> None:
    truth, T_camera_base, o = scene(seed)
    rng = np.random.default_rng(seed + 1)
    ray = o.ray + rng.normal(0, 5e-4, o.ray.shape)
    wrong = rng.random(len(o)) < share
    ray[wrong] += rng.uniform(-0.3, 0.3, (int(wrong.sum()), 2))
    solution = pnp.solve(T_camera_base, seen_at(o, ray), loose_prior())
    metres, radians = error(truth, solution.T_map_base)
    assert metres < 0.02 and radians < 0.002
    assert solution.inlier[~wrong].mean() > 0.95


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.6))
def test_a_glance_at_a_part_of_the_sightings_does_not_lose_the_best_pose(
    seed: int, share: float
) -> None:
    truth, T_camera_base, o = scene(seed, count=600)
    rng = np.random.default_rng(seed)
    ray = o.ray + rng.normal(0, 5e-4, o.ray.shape)
    wrong = rng.random(len(o)) < share
    ray[wrong] += rng.uniform(-0.3, 0.3, (int(wrong.sum()), 2))
    view = pnp.View.of(T_camera_base, seen_at(o, ray))
    poses = np.stack([truth @ geometry.exp(rng.normal(0, 0.3, 6)) for _ in range(80)])
    poses[rng.integers(80)] = truth
    assert (
        len(o) >= 2 * pnp.GLANCE and len(poses) > pnp.FINALISTS
    )  # else it would look at all of them
    assert np.array_equal(pnp.best(poses, view, loose_prior()), truth)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_big_mover_does_not_capture_the_pose(seed: int) -> None:
    """45 % of the sightings agree with each other on another motion: a lorry beside the car."""
    truth, T_camera_base, o = scene(seed)
    mover = np.arange(len(o)) < 0.45 * len(o)
    other = pnp.project(
        (truth @ geometry.exp(np.array([-0.7, 0.2, 0, 0, 0, 0.01])))[None], T_camera_base, o
    )[0]
    ray = np.where(mover[:, None], other[:, :2] / other[:, 2:], o.ray)
    solution = pnp.solve(T_camera_base, seen_at(o, ray), loose_prior())
    assert error(truth, solution.T_map_base)[0] < 0.02


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_the_map_frame_does_not_matter(seed: int, yaw: float, x: float, y: float) -> None:
    _, T_camera_base, o = scene(seed)
    move = geometry.exp(np.array([0, 0, 0, 0.1, -0.2, yaw]))
    move[:3, 3] = x, y, 3.0
    o = seen_at(o, o.ray + 1e-4)
    moved = replace(
        o, origin=geometry.transform(move, o.origin), bearing=o.bearing @ move[:3, :3].T
    )
    here = pnp.solve(T_camera_base, o, loose_prior())
    there = pnp.solve(T_camera_base, moved, loose_prior(move))
    assert max(error(move @ here.T_map_base, there.T_map_base)) < 1e-6


def test_points_of_unknown_depth_still_hold_the_rotation() -> None:
    truth, T_camera_base, o = scene(3, known=1e2)
    guess = replace(o, rho=np.full(len(o), 0.1), variance=np.full(len(o), 4.0))
    start = truth @ geometry.exp(np.array([0.0, 0, 0, 0.02, -0.02, 0.03]))
    solution = pnp.solve(
        T_camera_base, guess, Prior(start, np.diag([1e-4, 1e-4, 1e-4, 0.04, 0.04, 0.04]))
    )
    assert error(truth, solution.T_map_base)[1] < 1e-3


def test_no_sightings_give_the_prior_back() -> None:
    _, T_camera_base, o = scene(0)
    prior = loose_prior(geometry.exp(np.array([1.0, 0, 0, 0, 0, 0.1])))
    assert np.array_equal(
        pnp.solve(T_camera_base, o.take(np.zeros(0, int)), prior).T_map_base, prior.T_map_base
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_jacobians_agree_with_differences(seed: int) -> None:
    truth, T_camera_base, o = scene(seed, count=20)
    here = pnp.linearise(truth[None], pnp.View.of(T_camera_base, o))
    good = here.ahead[0]
    assert good.all()
    step = 1e-6
    for axis in range(6):
        moved = truth @ geometry.exp(step * np.eye(6)[axis])
        there = pnp.linearise(moved[None], pnp.View.of(T_camera_base, o))
        assert np.allclose(
            -(there.residual - here.residual) / step, here.jacobian[:, axis], atol=1e-3, rtol=1e-3
        )
    deeper = pnp.linearise(truth[None], pnp.View.of(T_camera_base, replace(o, rho=o.rho + step)))
    assert np.allclose(-(deeper.residual - here.residual) / step, here.along, atol=1e-3, rtol=1e-3)


# --- lens, road, adjustment, memory

DISTORTIONS = (
    ("none", ()),
    ("plumb_bob", (-0.3, 0.1, 0.001, -0.0005, 0.0)),
    ("rational_polynomial", (0.4, 0.2, 0.0005, 0.0003, 0.01, 0.7, 0.3, 0.05)),
    ("equidistant", (0.02, -0.01, 0.003, -0.001)),
)


@pytest.mark.parametrize(("model", "d"), DISTORTIONS, ids=[name for name, _ in DISTORTIONS])
def test_lens_goes_there_and_back(model: str, d: tuple[float, ...]) -> None:
    cam = Camera(
        "c", 640, 480, np.array([[320.0, 0, 318], [0, 322, 241], [0, 0, 1]]), np.eye(4), model, d
    )
    lens = lens_at(cam, (480, 640))
    rays = np.random.default_rng(0).uniform([-0.8, -0.6], [0.8, 0.6], (50, 2))
    assert np.abs(lens.rays(lens.pixels(rays)) - rays).max() * 320 < 0.002  # pixels
    assert (
        np.abs(lens.pixels(rays) - to_pixels(cam, rays)).max() < 1e-6
    )  # as the images themselves are undistorted
    half = lens_at(cam, (240, 320))
    assert np.abs(half.pixels(rays) - ((lens.pixels(rays) + 0.5) / 2 - 0.5)).max() < 1e-6


def test_the_road_gives_the_depth_of_what_lies_on_it() -> None:
    cam, level = MONO.cameras[0], Lean.unknown()
    points = np.array([[8.0, 1.0, 0], [6.0, -2.0, 0], [15.0, 3.0, 0]])
    q = geometry.transform(geometry.inverse(cam.T_base_camera), points)
    rho, variance = ground_scale.inverse_depth(q[:, :2] / q[:, 2:], cam.T_base_camera, level)
    assert np.allclose(rho, 1 / q[:, 2])
    assert (variance > 0).all()
    above = ground_scale.inverse_depth(np.array([[0.0, -0.2]]), cam.T_base_camera, level)[0]
    low = geometry.se3(cam.T_base_camera[:3, :3], np.zeros(3))
    beside = ground_scale.inverse_depth(q[:, :2] / q[:, 2:], low, level)[0]
    assert np.isnan(above).all() and np.isnan(beside).all()


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.0004, -0.0008, 0.001)])
def test_adjustment_finds_how_a_camera_is_turned(turn: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(5)
    truth = np.array([[0.0, 0, 0], turn])
    nominal = STEREO.T_base_camera
    real = local_ba.turned(nominal, truth)
    points = rng.uniform([8, -10, -1], [40, 10, 6], (150, 3))
    keyframes = []
    for index in range(6):
        pose = geometry.exp(np.array([1.2 * index, 0, 0, 0, 0, 0.01 * index]))
        seen = [geometry.transform(geometry.inverse(pose @ mount_), points) for mount_ in real]
        rays = np.concatenate([q[:, :2] / q[:, 2:] for q in seen]) + rng.normal(0, 1e-4, (300, 2))
        told = (
            pose @ geometry.exp(rng.normal(0, [0.01, 0.01, 0.01, 0.001, 0.001, 0.001]))
            if index
            else pose
        )
        names, cams = np.tile(np.arange(150), 2), np.repeat([0, 1], 150)
        keyframes.append(Keyframe(told, nominal, names, cams, cams == 0, rays, np.full(300, 5e-4)))
    start = {index: point + rng.normal(0, 0.3, 3) for index, point in enumerate(points)}
    adjusted = local_ba.adjust(
        keyframes, start, np.zeros((2, 3)), np.diag([1e-14] * 3 + [9e-6] * 3)
    )
    assert adjusted is not None
    assert np.abs(adjusted.turn - truth).max() < 1e-4
    assert error(geometry.exp(np.array([6.0, 0, 0, 0, 0, 0.05])), adjusted.T_map_base[-1])[0] < 0.02


def test_a_patch_of_the_road_is_found_where_it_is() -> None:
    """Between two frames the road below the car grows and shears: a window moved as it is comes to
    rest beside the point."""
    cam, size = MONO.cameras[0], (240, 480)
    before, after = (
        cam.T_base_camera,
        geometry.exp(np.array([1.2, 0.03, 0, 0, 0.003, 0.01])) @ cam.T_base_camera,
    )
    (here, _), (there, _) = render(before, cam.k, size), render(after, cam.k, size)
    rng = np.random.default_rng(0)
    road = np.column_stack([rng.uniform([5.8, -1.5], [8.5, 1.5], (60, 2)), np.zeros(60)])
    at = geometry.transform(geometry.inverse(before), road)
    pixel = at[:, :2] / at[:, 2:] * cam.k[0, 0] + cam.k[:2, 2]
    T_there_here = geometry.inverse(after) @ before
    q = geometry.transform(T_there_here, at)
    truth = q[:, :2] / q[:, 2:] * cam.k[0, 0] + cam.k[:2, 2]
    near = truth + rng.uniform(-1, 1, truth.shape)
    warp, _ = patch_alignment.warps(
        at, np.tile(before[2, :3], (len(at), 1)), np.tile(T_there_here, (len(at), 1, 1))
    )
    pair = [patch_alignment.Pair(here, there, 0, len(at))]
    place, alike, _ = patch_alignment.align(pair, pixel, near, warp)
    assert (alike > patch_alignment.ALIKE).mean() > 0.7
    off = np.linalg.norm(place - truth, axis=1)
    as_it_is, *_ = patch_alignment.align(pair, pixel, near, np.tile(np.eye(2), (len(at), 1, 1)))
    assert np.median(off[alike > patch_alignment.ALIKE]) < 0.2
    assert np.median(np.linalg.norm(as_it_is - truth, axis=1)) > 3 * np.median(off)
    noise = rng.integers(0, 255, there.shape).astype(np.uint8)
    nothing = [patch_alignment.Pair(here, noise, 0, len(at))]
    assert (patch_alignment.align(nothing, pixel, near, warp)[1] < patch_alignment.ALIKE).all()


@pytest.mark.parametrize(
    ("fx", "fy", "model", "d"),
    [
        (286.0, 286.0, "none", ()),
        (286.0, 215.0, "none", ()),
        (205.0, 205.0, "equidistant", (-0.012, 0.006, -0.004, 0.0008)),
    ],
    ids=["pinhole", "oblong pixels", "fisheye"],
)
def test_points_come_to_rest_through_any_lens(
    fx: float, fy: float, model: str, d: tuple[float, ...]
) -> None:
    """The road beside and before a car that drives on: how it changes is known in pixels, whatever
    the lens makes of them."""
    size = (360, 480)
    cam = Camera(
        "c",
        480,
        360,
        np.array([[fx, 0, 239.5], [0, fy, 179.5], [0, 0, 1]]),
        mount(1.5, 0.0, 1.2, 40.0, 20.0),
        model,
        d,
    )
    rig, lens = Rig("one", (cam,)), lens_at(cam, size)
    poses = [np.eye(4), geometry.exp(np.array([0.7, 0.02, 0, 0, 0, 0.01]))]
    places = [pose @ cam.T_base_camera for pose in poses]
    images = Images(1)
    images.before, images.now = ([render(place, cam.k, size, lens)[0]] for place in places)
    images.T_map_camera = places[0][None]
    rng = np.random.default_rng(0)
    road = np.column_stack([rng.uniform([1.5, 0.0], [9.0, 7.0], (400, 2)), np.zeros(400)])
    seen = [geometry.transform(geometry.inverse(place), road) for place in places]
    pixels = [lens.pixels(q[:, :2] / q[:, 2:]) for q in seen]
    use = (
        (seen[0][:, 2] > 0.2)
        & (seen[1][:, 2] > 0.2)
        & lens.inside(pixels[0], 10)
        & lens.inside(pixels[1], 10)
    )
    count, truth = int(use.sum()), pixels[1][use]
    one, nothing = np.ones(count), np.zeros(count, np.int64)
    origin = np.repeat(places[0][None, :3, 3], count, axis=0)
    before = pixels[0][use].astype(np.float32)
    table = Landmarks(
        nothing,
        before,
        origin,
        road[use] - origin,
        one,
        1e-6 * one,
        nothing,
        nothing,
        nothing,
        nothing > 0,
    )
    place, found = (
        (truth + rng.uniform(-1, 1, truth.shape)).astype(np.float32),
        np.ones(count, np.bool_),
    )
    patch_alignment.settle(
        Cameras.of(rig, calibrate(rig), 100), images, table, place, found, places[1][None], poses[1]
    )
    off = np.linalg.norm(place - truth, axis=1)
    assert count > 60 and found.mean() > 0.8
    assert np.median(off[found]) < 0.24 and np.quantile(off[found], 0.9) < 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-0.04, 0.04))
def test_the_road_says_how_much_too_long_lengths_are(seed: int, excess: float) -> None:
    """Points that say a share too much, beside a road that errs by 2 % a frame: the scale comes out
    of many frames, and what belongs to a vehicle changes nothing."""
    rng, scale = np.random.default_rng(seed), ground_scale.Scale(0.05)
    left = excess
    for index in range(40):
        by_road = 0.8 * (1 + rng.normal(0, 0.02))
        went = 0.8 * (1 + left) + rng.normal(0, 0.008)
        if index % 5 == 4:
            assert scale.excess(0.0, 0.008**2, by_road, 0.016**2) == 0.0  # a lorry beside the car
        left = (1 + left) / (1 + scale.excess(went, 0.008**2, by_road, 0.016**2)) - 1
    assert abs(left) < 0.03
    assert scale.excess(0.02, 1e-6, 0.01, 1e-6) == 0.0  # next to no way says nothing


# --- the road


@pytest.mark.parametrize("name", ["mono", "stereo"])
@pytest.mark.parametrize("speed", [0.0, 14.0, 40.0])
def test_the_road_tells_the_first_motion_at_any_speed(name: str, speed: float) -> None:
    rig = {"stereo": STEREO, "surround": SURROUND, "mono": MONO}[name]
    cameras = Cameras.of(rig, calibrate(rig), 400)
    images, road, every = Images(len(cameras)), Road(cameras), np.ones(len(cameras), np.bool_)
    places = drive(2, speed)
    for index, (stamp, pose) in enumerate(places):
        frame, _ = frame_at(rig, stamp, pose)
        images.take(frame)
        if index == 0:
            images.adopt(frame, every, pose, pose @ rig.T_base_camera)
    views = road.views(images, places[0][1], 0.1)
    found, score, rival = road.search(views, 0.1, np.eye(3))
    assert score > rival + 0.1
    around = Prior(found, np.diag([0.1, 0.05, 0.05, 0.01, 0.01, 0.01]) ** 2)
    said = road.measure(views, around, found)
    assert said is not None and abs(said.T[0, 3] - 0.1 * speed) < 0.01 + 0.003 * speed


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("surround", SURROUND)])
@pytest.mark.parametrize("speed", [30.0, 40.0])
def test_is_tracked_from_the_third_frame_at_any_speed(name: str, rig: Rig, speed: float) -> None:
    shots = tuple((*frame_at(rig, *shot), shot[1]) for shot in drive(5, speed))
    poses = run(rig, shots)
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[2:])
    assert np.allclose(motions(poses)[1:], 0.1 * speed, rtol=0.02)


# --- rolling shutters


@given(st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6), st.floats(0.0, 1.0))
def test_a_constant_motion_is_the_exponential_of_its_twist(twist: list[float], most: float) -> None:
    times, one = np.linspace(-most, most, 5), np.array(twist)
    expected = np.stack([geometry.exp(one * t) for t in times])
    assert np.allclose(geometry.along(one, times), expected, atol=1e-9)


@pytest.mark.parametrize("quarters", range(4))
def test_a_row_is_late_by_its_place_in_the_raw_image(quarters: int) -> None:
    """Images of a camera that is mounted on its side are turned; its read-out is not."""
    turn = np.eye(4)
    turn[:3, :3] = geometry.exp(np.array([0, 0, 0, 0, 0, quarters * np.pi / 2]))[:3, :3]
    cam = replace(camera("rolled", mount(1.5, 0.0, 1.6) @ turn, (100, 200)), rolling_shutter=0.03)
    lens, still = (lens_at(one, (200, 200)) for one in (cam, replace(cam, rolling_shutter=0.0)))
    raw = np.array([[10.0, 0.0], [199.0, 49.5], [70.0, 99.0]])
    rays = (raw - cam.k[:2, 2]) / cam.k[0, 0]
    pixels = lens.pixels(rays if lens.turn is None else rays @ lens.turn)
    assert np.allclose(lens.late(pixels), [-0.015, 0.0, 0.015], atol=1e-9)
    assert (still.late(pixels) == 0.0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_sightings_of_rows_read_out_one_after_another_give_the_pose_of_the_stamp(seed: int) -> None:
    truth, T_camera_base, o = scene(seed)
    rng = np.random.default_rng(seed)
    twist = np.array([30.0, 0.2, 0.1, 0.02, 0.1, 0.5])
    late = rng.uniform(-0.015, 0.015, len(o))
    rows = replace(o, late=late).moving(twist)
    q = pnp.project(truth[None], T_camera_base, rows)[0]
    seen = np.flatnonzero(q[:, 2] > 0.2 * o.rho)
    rows = replace(rows, ray=q[:, :2] / np.maximum(q[:, 2:], 1e-9)).take(seen)
    solution = pnp.solve(T_camera_base, rows, loose_prior())
    assert error(solution.T_map_base, truth)[0] < 1e-4
    at_once = replace(rows, late=None, row=None)
    assert at_once.moving(twist) is at_once  # nothing changes where no row is late
    assert error(pnp.solve(T_camera_base, at_once, loose_prior()).T_map_base, truth)[0] > 1e-3


def rolling_street(rig: Rig, frames: int, speed: float, yaw_rate: float) -> Shots:
    """The street seen by rolling shutters: each row from where its camera is when it is read
    out."""
    twist, shots = np.array([speed, 0, 0, 0, 0, yaw_rate]), []
    for stamp, pose in drive(frames, speed, yaw_rate):
        images, depths = [], []
        for c in rig.cameras:
            late = (np.arange(c.height) / (c.height - 1) - 0.5) * c.rolling_shutter
            rows = pose @ geometry.along(twist, late) @ c.T_base_camera
            image, depth = render(rows, c.k, (c.height, c.width))
            images.append(image)
            depths.append(depth)
        stack, depth = np.stack(images)[..., None], np.stack(depths)
        count = len(images)
        frame = Frame(stamp, stack, np.ones(count, np.bool_), np.full(count, stamp, np.int64))
        known = np.isfinite(depth).astype(np.float32)
        engine = Geometry(depth, 0.01 * depth, known, np.repeat(stack, 3, -1))
        shots.append((frame, engine, pose))
    return tuple(shots)


@pytest.mark.parametrize(("rig", "gain"), [(STEREO, 1.6), (MONO, 10.0)], ids=["stereo", "mono"])
def test_a_rolling_shutter_costs_no_accuracy_where_the_rig_tells_it(rig: Rig, gain: float) -> None:
    """25 m/s through a bend, 30 ms of read-out; also the first motion, before which no speed was
    known. Untold, the end and the first motion are off by `gain` as much at least."""
    told = replace(rig, cameras=tuple(replace(c, rolling_shutter=0.03) for c in rig.cameras))
    shots = rolling_street(told, 5, 25.0, 0.1)
    truth = shots[-1][2]
    right, wrong = run(told, shots, depth=False), run(rig, shots, depth=False)
    assert all(pose.tracking is Tracking.TRACKING for pose in right[1:])
    assert error(right[-1].T_map_base, truth)[0] < 0.03 * 10.0
    for index in (1, -1):
        ours, blind = (error(p[index].T_map_base, shots[index][2])[0] for p in (right, wrong))
        assert blind > gain * ours


def test_points_are_looked_for_where_their_rows_show_them() -> None:
    """A landmark of known depth, 30 m/s and 30 ms of read-out: within half a pixel of where its row
    sees it; 5 pixels beside, were all rows read out at once."""
    rig = replace(MONO, cameras=tuple(replace(c, rolling_shutter=0.03) for c in MONO.cameras))
    cameras, count = Cameras.of(rig, calibrate(rig), 100), 40
    rng, twist = np.random.default_rng(0), np.array([30.0, 0, 0, 0, 0, 0.1])
    mount_ = rig.cameras[0].T_base_camera
    pixel = rng.uniform([60, 20], [420, 220], (count, 2)).astype(np.float32)
    rays = np.column_stack([cameras.lenses[0].rays(pixel), np.ones(count)])
    late = cameras.lenses[0].late(pixel)
    depth, places = rng.uniform(6, 20, count), geometry.along(twist, late) @ mount_
    bearing = (places[:, :3, :3] @ rays[..., None])[..., 0]
    none = np.zeros(count, np.int64)
    table = Landmarks(
        none, pixel, places[:, :3, 3], bearing, 1 / depth, depth, none, none, none, none > 0
    )
    seen = cameras, table, np.arange(count), none, np.eye(4), geometry.inverse(mount_)[None]
    found = [klt.guess(*seen, moving, pixel) for moving in (twist, np.zeros(6))]
    off = [np.linalg.norm(one - pixel, axis=1) for one in found]
    assert off[0].max() < 0.5 and off[1].max() > 5.0


def test_rows_of_the_first_frame_are_placed_by_odometry_too() -> None:
    """The second frame is dark, odometry alone says the motion, and ends there: what the first
    frame saw lies where its rows saw it, and the images go on from it."""
    told = replace(STEREO, cameras=tuple(replace(c, rolling_shutter=0.03) for c in STEREO.cameras))
    shots = list(rolling_street(told, 4, 30.0, 0.0))
    frame, engine, pose = shots[1]
    shots[1] = replace(frame, images=np.zeros_like(frame.images)), engine, pose
    told_motion = {index: said for index, said in wheel(shots).items() if index < 2}
    poses = run(told, tuple(shots), told_motion, depth=False)
    assert all(one.tracking is Tracking.TRACKING for one in poses[1:]), [p.reason for p in poses]


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("mono", MONO)])
def test_stands_while_it_stands(name: str, rig: Rig) -> None:
    """Noisy images of one place, after a drive: no millimetre."""
    shots, rng = list(street(name, 20)[:4]), np.random.default_rng(0)
    frame, truth, pose = shots[-1]
    for index in range(1, 8):
        images = frame.images.astype(np.int16) + rng.normal(0, 2, frame.images.shape).astype(int)
        stamp = frame.stamp_ns + index * 100_000_000
        seen = np.clip(images, 0, 255).astype(np.uint8)
        still = replace(frame, images=seen, stamp_ns=stamp, stamps_ns=np.full(len(seen), stamp))
        shots.append((still, truth, pose))
    poses = run(rig, tuple(shots))
    assert motions(poses)[4:].max() < 0.002
    assert all(one.tracking is Tracking.TRACKING for one in poses[4:])


@pytest.mark.parametrize("speed", [0.0, 12.0])
def test_the_cars_own_body_in_the_images_is_no_road(speed: float) -> None:
    """A third of each lane's view shows the same texture in every image: the car's own side. It
    tells neither that a car stands which drives, nor the other way round."""
    rig, shots = SURROUND, []
    body = np.random.default_rng(4).integers(40, 220, (64, 64), np.uint8)
    for stamp, pose in drive(6, speed):
        frame, truth = frame_at(rig, stamp, pose)
        height, width = frame.images.shape[1:3]
        left = cv2.resize(body, (width // 3, height // 2), interpolation=cv2.INTER_NEAREST)
        frame.images[:, height - height // 2 :, : width // 3, 0] = left
        shots.append((frame, truth, pose))
    poses = run(rig, tuple(shots))
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[2:])
    assert np.allclose(motions(poses)[1:], 0.1 * speed, atol=0.005 + 0.002 * speed)


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("surround", SURROUND)])
@pytest.mark.parametrize("hertz", [2.0, 5.0])
def test_few_frames_a_second_are_measured(name: str, rig: Rig, hertz: float) -> None:
    places = drive(6, 4.0, 0.1, round(1e9 / hertz))
    shots = tuple((*frame_at(rig, *shot), shot[1]) for shot in places)
    poses = run(rig, shots)
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[2:])
    assert np.allclose(motions(poses)[1:], 4.0 / hertz, rtol=0.03)


def test_what_calibration_is_off_by_does_not_average_out() -> None:
    """Ten motions straight ahead: ten times the deviation of one, and sideways by the mount."""
    step = geometry.exp(np.array([1.0, 0, 0, 0, 0, 0]))
    height, mount = calibration.CALIBRATION.height, calibration.CALIBRATION.mount
    errors = calibration.calibration_errors(step, height)
    assert np.allclose(np.sqrt(np.diag(errors @ errors.T)[:3]), [height, mount, mount])
    pair = calibration.calibration_errors(step, 0.001)
    assert pair[0, 0] < errors[0, 0] < calibration.calibration_errors(step, height, 0.2)[0, 0]
    ego = Egomotion(MONO, calibrate(MONO))
    shots = street("mono", 20, yaw_rate=0.0)[:12]
    last = run(MONO, shots, ego=ego)[-1]
    assert np.sqrt(last.covariance[0, 0]) > 0.9 * height * 0.8 * 11
    assert np.all(np.diag(last.motion_covariance) >= np.diag(last.calibration_covariance))


# --- the stage


@lru_cache(maxsize=4)
def street(name: str, frames: int, speed: float = 8.0, yaw_rate: float = 0.1) -> Shots:
    rig = {"stereo": STEREO, "surround": SURROUND, "mono": MONO}[name]
    return tuple(
        (*frame_at(rig, stamp, pose), pose) for stamp, pose in drive(frames, speed, yaw_rate)
    )


def run(
    rig: Rig,
    shots: Shots,
    odometry: dict[int, tuple[OdometrySample, ...]] | None = None,
    depth: bool = True,
    parameters: EgomotionParameters | None = None,
    ego: Egomotion | None = None,
) -> list[PoseEstimate]:
    ego = ego or Egomotion(rig, calibrate(rig), parameters)
    out = []
    for index, (frame, truth, _) in enumerate(shots):
        pose = ego.estimate(frame, (odometry or {}).get(index, ()))
        ego.observe(
            frame, truth if depth else blank(truth), pose, np.zeros(truth.depth.shape, np.bool_)
        )
        assert np.isfinite(pose.T_map_base).all() and np.isfinite(pose.T_map_camera).all()
        assert np.isfinite(pose.covariance).all() and np.isfinite(pose.velocity).all()
        assert np.linalg.eigvalsh(pose.covariance)[0] > 0
        out.append(pose)
    return out


def drift(poses: list[PoseEstimate], shots: Shots) -> float:
    """Error at the end as a share of the path."""
    path = np.linalg.norm(np.diff([pose[:3, 3] for *_, pose in shots], axis=0), axis=1).sum()
    return float(np.linalg.norm(poses[-1].T_map_base[:3, 3] - shots[-1][2][:3, 3]) / path)


@pytest.mark.parametrize(
    ("name", "rig", "bound"),
    [("stereo", STEREO, 0.015), ("surround", SURROUND, 0.01), ("mono", MONO, 0.015)],
)
def test_drift_with_depth(name: str, rig: Rig, bound: float) -> None:
    shots = street(name, 20)
    poses = run(rig, shots)
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])
    assert drift(poses, shots) < bound
    assert np.abs(poses[-1].velocity[0] - 8.0) < 0.3 and np.abs(poses[-1].velocity[5] - 0.1) < 0.02


@pytest.mark.parametrize(
    ("name", "rig", "bound"),
    [("stereo", STEREO, 0.02), ("surround", SURROUND, 0.06), ("mono", MONO, 0.04)],
)
def test_starts_without_any_depth_and_is_metric(name: str, rig: Rig, bound: float) -> None:
    shots = street(name, 20)
    poses = run(rig, shots, depth=False)
    assert poses[0].tracking is Tracking.STARTING and poses[0].reason
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[2:])
    assert drift(poses, shots) < bound


def test_the_road_takes_out_a_wrong_scale() -> None:
    """An engine whose depths are all 3 % too long; the cameras' height above the road says so."""
    true = street("surround", 20)
    shots = tuple(
        (frame, replace(truth, depth=1.03 * truth.depth, sigma=0.05 * truth.depth), pose)
        for frame, truth, pose in true
    )
    poses = run(SURROUND, shots)
    steps = [error(a.T_map_base, b.T_map_base)[0] / 0.8 - 1 for a, b in pairwise(poses)]
    assert abs(np.mean(steps[-8:])) < 0.01


def test_dim_and_noisy_images_are_followed() -> None:
    """Contrast of four grey levels under noise of three: no two patches are more alike than that
    allows."""
    rng, shots = np.random.default_rng(0), []
    for frame, truth, pose in street("surround", 20)[:10]:
        dim = np.clip(0.1 * frame.images + rng.normal(0, 3, frame.images.shape), 0, 255).astype(
            np.uint8
        )
        shots.append((replace(frame, images=dim), truth, pose))
    poses = run(SURROUND, tuple(shots))
    assert all(pose.tracking is Tracking.TRACKING and pose.inliers > 60 for pose in poses[1:])
    assert drift(poses, tuple(shots)) < 0.03


def test_without_any_measure_of_a_metre_it_says_that_it_does_not_know() -> None:
    """A camera on the ground itself, as where base_link is the camera, and no depth: the scale is
    nobody's to know."""
    low = Rig("low", (replace(MONO.cameras[0], T_base_camera=mount(0.0, 0.0, 0.0)),))
    shots = tuple((frame, blank(truth), pose) for frame, truth, pose in street("mono", 20))
    poses = run(low, shots)  # which holds that all is finite
    assert all(pose.tracking is Tracking.STARTING and pose.reason for pose in poses)


def test_the_solver_stands_equations_that_say_nothing() -> None:
    _, T_camera_base, o = scene(1)
    one = o.take(np.zeros(40, np.int64))
    far = replace(
        one, sigma=np.full(40, 1e-14), variance=np.full(40, 1e-30)
    )  # weights beside which a prior is lost to rounding
    assert np.isfinite(pnp.solve(T_camera_base, far, loose_prior()).T_map_base).all()
    linear = pnp.linearise(np.eye(4)[None], pnp.View.of(T_camera_base, one))
    scale = np.full((1, 40), 1e40)
    for prior in (None, loose_prior()):
        moved, _ = pnp.step(np.eye(4)[None], linear, np.zeros((1, 40)), scale, prior)
        assert np.isfinite(moved).all()


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("surround", SURROUND)])
def test_two_runs_are_identical_and_a_reset_starts_a_new_one(name: str, rig: Rig) -> None:
    shots, reused = street(name, 20)[:8], Egomotion(rig, calibrate(rig))
    first, second = run(rig, shots, ego=reused), run(rig, shots)
    reused.reset()
    for a, b, c in zip(first, second, run(rig, shots, ego=reused), strict=True):
        assert np.array_equal(a.T_map_base, b.T_map_base) and np.array_equal(
            a.covariance, b.covariance
        )
        assert np.array_equal(a.T_map_base, c.T_map_base) and np.array_equal(
            a.covariance, c.covariance
        )


def wheel(shots: Shots, scale: float = 1.0) -> dict[int, tuple[OdometrySample, ...]]:
    """Odometry at every frame, in a frame of its own, its translations too long by `scale`."""
    start = geometry.exp(np.array([100.0, -50, 0, 0, 0, 2.0]))
    pose = start
    out: dict[int, tuple[OdometrySample, ...]] = {0: (OdometrySample(shots[0][0].stamp_ns, start),)}
    for index in range(1, len(shots)):
        motion = geometry.inverse(shots[index - 1][2]) @ shots[index][2]
        motion[:3, 3] *= scale
        pose = pose @ motion
        out[index] = (OdometrySample(shots[index][0].stamp_ns, pose),)
    return out


def test_trusted_odometry_is_taken_as_it_is() -> None:
    shots = street("stereo", 20)
    poses = run(STEREO, shots, wheel(shots), parameters=EgomotionParameters(odometry="trust"))
    assert (
        max(
            error(pose.T_map_base, truth)[0] for pose, (*_, truth) in zip(poses, shots, strict=True)
        )
        < 1e-6
    )
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])


def test_odometry_helps_and_is_left_out_when_the_images_contradict_it() -> None:
    shots = street("stereo", 20)
    helped = run(STEREO, shots, wheel(shots, 1.01))
    assert drift(helped, shots) < 0.02 and not helped[-1].reason
    wrong = run(STEREO, shots, wheel(shots, 1.6))
    assert any("contradict" in pose.reason for pose in wrong)
    assert drift(wrong, shots) < 0.04
    ignored = run(STEREO, shots, wheel(shots, 1.6), parameters=EgomotionParameters(odometry="none"))
    assert drift(ignored, shots) < 0.015


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_road_measures_lengths_beside_odometry_too(scale: float) -> None:
    """Cameras that look alone, no depth: neither right odometry nor such that is left out costs the
    scale."""
    shots = street("surround", 20)[:14]
    poses = run(SURROUND, shots, wheel(shots, scale), depth=False)
    steps = [error(a.T_map_base, b.T_map_base)[0] / 0.8 - 1 for a, b in pairwise(poses)]
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])
    assert abs(np.mean(steps[4:])) < 0.012


def test_the_road_is_not_asked_while_the_car_is_lost() -> None:
    shots = street("surround", 20)[:5]
    ego = Egomotion(SURROUND, calibrate(SURROUND))
    run(SURROUND, shots[:4], depth=False, ego=ego)
    frame, truth, _ = darkened(shots, range(4, 5))[4]
    pose = ego.estimate(frame, ())
    rho = ego._landmarks.rho.copy()
    ego.observe(frame, blank(truth), pose, np.zeros(truth.depth.shape, np.bool_))
    assert (
        pose.tracking is Tracking.LOST
        and len(rho) > 100
        and np.array_equal(ego._landmarks.rho, rho)
    )


def test_odometry_that_stops_jumps_or_is_not_a_number() -> None:
    shots = street("stereo", 20)
    odometry = wheel(shots)
    stopped = run(STEREO, shots, {index: sample for index, sample in odometry.items() if index < 8})
    assert "odometry stopped" in stopped[-1].reason and drift(stopped, shots) < 0.02
    jump = geometry.se3(np.eye(3), np.array([30.0, 0, 0]))
    jumped = {
        i: tuple(
            replace(s, T_odom_base=(jump if i >= 10 else np.eye(4)) @ s.T_odom_base)
            for s in odometry[i]
        )
        for i in odometry
    }
    poses = run(STEREO, shots, jumped, parameters=EgomotionParameters(odometry="trust"))
    assert "odometry jumped" in poses[10].reason and drift(poses, shots) < 0.02
    broken = {
        i: tuple(
            replace(s, T_odom_base=s.T_odom_base * (np.nan if i % 3 else 1)) for s in odometry[i]
        )
        for i in odometry
    }
    assert drift(run(STEREO, shots, broken), shots) < 0.02


def test_odometry_alone_carries_the_pose_through_the_dark() -> None:
    shots = darkened(street("mono", 20), range(8, 14))
    poses = run(MONO, shots, wheel(shots))
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])
    assert "odometry alone" in poses[10].reason
    assert drift(poses, shots) < 0.015


def darkened(shots: Shots, which: range) -> Shots:
    return tuple(
        (
            (replace(frame, images=np.zeros_like(frame.images)), blank(truth), pose)
            if index in which
            else (frame, truth, pose)
        )
        for index, (frame, truth, pose) in enumerate(shots)
    )


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("surround", SURROUND)])
def test_says_when_it_is_lost_and_recovers(name: str, rig: Rig) -> None:
    dark = range(8, 11)
    shots = darkened(street(name, 20), dark)
    poses = run(rig, shots)
    assert all(poses[index].tracking is Tracking.LOST and poses[index].reason for index in dark)
    assert not any(poses[index].usable for index in dark)
    sizes = [np.trace(poses[index].covariance[:3, :3]) for index in dark]
    assert all(b > a for a, b in pairwise(sizes))
    assert poses[-1].tracking is Tracking.TRACKING and poses[-1].segment == 0
    assert drift(poses, shots) < 0.08


def motions(poses: list[PoseEstimate]) -> np.ndarray:
    """Metres between frames."""
    return np.array([error(a.T_map_base, b.T_map_base)[0] for a, b in pairwise(poses)])


@pytest.mark.parametrize(("name", "rig"), [("stereo", STEREO), ("surround", SURROUND)])
def test_a_motion_that_nothing_confirms_is_carried_on_for_a_stated_time_only(
    name: str, rig: Rig
) -> None:
    """0.8 m a frame. In the dark the pose goes on for half a second, then it stays; what follows is
    a new segment, right in itself."""
    dark = range(4, 17)
    shots = darkened(street(name, 20), dark)
    poses = run(rig, shots)
    assert all(poses[index].tracking is Tracking.LOST and poses[index].reason for index in dark)
    steps = motions(poses)
    assert np.allclose(steps[3:8], 0.8, atol=0.1) and np.allclose(steps[8:16], 0.0, atol=1e-9)
    assert [pose.segment for pose in poses] == [0] * 9 + [1] * 11
    assert poses[-1].tracking is Tracking.TRACKING and abs(steps[-1] - 0.8) < 0.03


@pytest.mark.parametrize("seconds", [1.0, 30.0])
def test_a_gap_does_not_teleport(seconds: float) -> None:
    """8 m/s and no images: the pose is kept, a new segment begins, and the images after the gap are
    followed from one another."""
    shots = [
        (
            replace(
                frame,
                stamp_ns=frame.stamp_ns + round(seconds * 1e9) * (index >= 6),
                stamps_ns=frame.stamps_ns + round(seconds * 1e9) * (index >= 6),
            ),
            *rest,
        )
        for index, (frame, *rest) in enumerate(street("stereo", 20))
    ]
    poses = run(STEREO, tuple(shots))
    steps = motions(poses)
    assert steps[5] < 1e-9 and np.allclose(steps[6:], 0.8, atol=0.05)
    assert poses[6].tracking is Tracking.LOST and "segment" in poses[6].reason
    assert [pose.segment for pose in poses] == [0] * 6 + [1] * 14
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[8:])


def test_a_jump_of_time_that_was_told_is_a_gap_and_odometry_bridges_it() -> None:
    shots = street("stereo", 20)[:8]
    for odometry, segments in ((None, 1), (wheel(shots), 0)):
        ego = Egomotion(STEREO, calibrate(STEREO))
        for index, (frame, truth, _) in enumerate(shots):
            jump = Jump.FORWARD if index == 5 else Jump.NONE
            pose = ego.estimate(frame, (odometry or {}).get(index, ()), jump)
            ego.observe(frame, truth, pose, np.zeros(truth.depth.shape, np.bool_))
        assert pose.segment == segments


def without(shots: Shots, cameras: list[int], which: range) -> Shots:
    out = []
    for index, (frame, truth, pose) in enumerate(shots):
        if index in which:
            present, images, depth = frame.present.copy(), frame.images.copy(), truth.depth.copy()
            present[cameras], images[cameras], depth[cameras] = False, 0, np.nan
            frame, truth = (
                replace(frame, present=present, images=images),
                replace(truth, depth=depth, sigma=0.01 * depth),
            )
        out.append((frame, truth, pose))
    return tuple(out)


@pytest.mark.parametrize(
    ("name", "rig", "cameras"),
    [("stereo", STEREO, [0]), ("stereo", STEREO, [1]), ("surround", SURROUND, [0, 3])],
)
def test_a_camera_that_dies_and_comes_back_does_not_matter(
    name: str, rig: Rig, cameras: list[int]
) -> None:
    shots = without(street(name, 20), cameras, range(5, 13))
    poses = run(rig, shots)
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])
    assert drift(poses, shots) < 0.02


def test_all_cameras_absent() -> None:
    shots = without(street("stereo", 20), [0, 1], range(6, 9))
    poses = run(STEREO, shots)
    assert [pose.tracking for pose in poses[6:9]] == [Tracking.LOST] * 3 and "no camera" in poses[
        7
    ].reason
    assert poses[-1].tracking is Tracking.TRACKING and drift(poses, shots) < 0.03
    nothing = run(STEREO, without(street("stereo", 20), [0, 1], range(20)))
    assert all(pose.tracking is Tracking.STARTING for pose in nothing)


def test_movers_that_dynamics_marks_are_dropped() -> None:
    frame, truth, _ = street("mono", 20)[0]
    ego = Egomotion(MONO, calibrate(MONO))
    pose = ego.estimate(frame, ())
    mask = np.zeros(truth.depth.shape, np.bool_)
    ego.observe(frame, truth, pose, mask)
    held = len(ego._landmarks)
    mask[:, :, :240] = True
    ego.observe(frame, truth, pose, mask)
    left = ego._landmarks.pixel[:, 0]
    assert held > len(left) > 20 and left.min() > 238


LATE = np.array([0, 12, 24, 36, 48, 60]) * 1_000_000 - 30_000_000  # ns


def skewed_street(frames: int, twist: np.ndarray) -> Shots:
    """Six cameras that fire one after another over 60 ms."""
    shots = []
    for stamp, pose in drive(frames, twist[0], twist[5]):
        own = [pose @ geometry.exp(twist * delay * 1e-9) for delay in LATE]
        views = [
            render(p @ c.T_base_camera, c.k, (c.height, c.width))
            for p, c in zip(own, SURROUND.cameras, strict=True)
        ]
        images, depths = zip(*views, strict=True)
        depth = np.stack(depths)
        frame = Frame(stamp, np.stack(images)[..., None], np.ones(6, np.bool_), stamp + LATE)
        doubt, known = (0.01 * depth).astype(np.float32), np.ones_like(depth)
        shots.append((frame, Geometry(depth, doubt, known, np.repeat(frame.images, 3, -1)), pose))
    return tuple(shots)


def test_cameras_that_fire_at_other_times() -> None:
    """At 8 m/s and turning: each has its own pose, and the car's has no error from it."""
    twist = np.array([8.0, 0, 0, 0, 0, 0.3])
    shots = skewed_street(14, twist)
    poses = run(SURROUND, shots)
    assert drift(poses, shots) < 0.015
    truth = (
        shots[-1][2] @ geometry.exp(twist * LATE[-1] * 1e-9) @ SURROUND.cameras[-1].T_base_camera
    )
    assert (
        error(poses[-1].T_map_camera[-1], truth)[0]
        < 0.03 + error(poses[-1].T_map_base, shots[-1][2])[0]
    )
    blind_to_time = tuple(
        (replace(frame, stamps_ns=np.full(6, frame.stamp_ns)), depth, pose)
        for frame, depth, pose in shots
    )
    assert error(run(SURROUND, blind_to_time)[-1].T_map_camera[-1], truth)[0] > 0.15


def test_cameras_that_fire_at_other_times_are_placed_by_the_first_motion() -> None:
    """25 m/s: a camera that fired 30 ms late stood 0.75 m farther than the first frame's pose, in
    which no speed was known."""
    shots = skewed_street(2, np.array([25.0, 0, 0, 0, 0, 0.3]))
    poses = run(SURROUND, shots)
    assert error(poses[1].T_map_base, shots[1][2])[0] < 0.02


def test_a_real_drive(kitti_bag: Path) -> None:
    """Half of a real stereo drive with no odometry and no engine: the pair's own sightings
    alone."""
    poses: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    with BagReader(kitti_bag) as bag:
        rig = bag.rig()
        size = (rig.cameras[0].height, rig.cameras[0].width)
        calibration = make_calibration(rig, size, (320, 1024))
        preprocess, ego = Preprocessor(rig, calibration, 1), Egomotion(rig, calibration)
        waiting: dict[str, RawImage] = {}
        nothing, color = (
            np.full((2, 320, 1024), np.nan, np.float32),
            np.zeros((2, 320, 1024, 3), np.uint8),
        )
        for event in bag.events():
            if not isinstance(event, ImageEvent):
                continue
            waiting[event.camera] = event.image
            if len(waiting) < 2:
                continue
            frame, dropped = preprocess(FrameSet(event.image.stamp_ns, waiting))
            assert not dropped
            waiting = {}
            pose = ego.estimate(frame, ())
            ego.observe(
                frame,
                Geometry(nothing, nothing, nothing, color),
                pose,
                np.zeros((2, 320, 1024), np.bool_),
            )
            poses.append(pose.T_map_base)
            if len(poses) == 26:
                break
        for topic, _, message in bag.messages(["/ground_truth/odom"]):
            assert topic == "/ground_truth/odom"
            at, turn = message.pose.pose.position, message.pose.pose.orientation
            truth.append(
                geometry.se3_from_quaternion(
                    np.array([at.x, at.y, at.z]), np.array([turn.x, turn.y, turn.z, turn.w])
                )
            )
    start = geometry.inverse(truth[0])
    assert np.linalg.norm((start @ truth[25])[:3, 3] - poses[-1][:3, 3]) < 0.015 * 30


def test_odometry_between_and_beyond_its_samples() -> None:
    def at(seconds: float, jitter: float = 0.0) -> OdometrySample:
        return OdometrySample(
            int(seconds * 1e9),
            geometry.exp(np.array([10.0 * seconds + jitter, 0, 0, 0, 0, 0.2 * seconds])),
        )

    buffer = OdometryBuffer()
    assert buffer.at(0) is None
    buffer.add((at(0.0), at(0.009, 0.05)))
    assert (
        buffer.at(100_000_000) is None
    )  # 9 ms with 5 cm of jitter: not to be carried on for 90 ms
    buffer.add((at(0.1), at(0.2), at(0.209, 0.05)))
    between, beyond = buffer.at(150_000_000), buffer.at(300_000_000)
    assert between is not None and error(between, at(0.15).T_odom_base)[0] < 1e-6
    assert beyond is not None and error(beyond, at(0.3).T_odom_base)[0] < 0.1
    assert buffer.at(800_000_000) is None
