"""Driv3R's flow predictor and alignment on geometry that is known exactly: the rules alone, and as
parts of the pipeline."""

from __future__ import annotations

import copy
import functools

import cv2
import numpy as np
import pytest
from dynamics_scene import Box, Street, iou, make_rig, observe
from scipy.spatial.transform import Rotation

from recon4d_ros.dynamics import Dynamics, DynamicsParameters
from recon4d_ros.dynamics.rigid_flow import (
    NEWEST,
    PAIRS,
    flow_difference,
    motion_score,
    normalized,
    returning,
)
from recon4d_ros.dynamics.views import STRIDE, View, make_views
from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import HostedEngine
from recon4d_ros.geometry import inverse, project, se3, transform, unproject
from recon4d_ros.types import Calibration, Frame, Motion, Rig

BOXES = (
    Box((14, 4, 0), (4, 1.8, 1.6), (-6, 0, 0), 3),  # comes towards us
    Box((18, -4, 0), (1, 1, 2), (0, 3, 0), 4),  # crosses
    Box((12, -5, 0), (3, 2, 1.5), (0, 0, 0), 5),  # stands
)
MOVES = (0, 1)
STEP = 0.1  # seconds


@functools.cache
def plain_street() -> Street:
    """Its textures take seconds to make."""
    return Street()


def street_of(boxes: tuple[Box, ...]) -> Street:
    street = copy.copy(plain_street())
    street.boxes = boxes
    return street


Clip = tuple[
    View, list[np.ndarray], list[np.ndarray], dict[tuple[int, int], np.ndarray], list[np.ndarray]
]


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Five images of a street from a car that drives and turns, on the motion grid: inverse depth,
    poses, exact flow, what moves."""
    _, calibration = make_rig([(0.0, (0.0, 0.0, 1.5))], 384, 224, 280.0)
    street = street_of(BOXES)
    view = make_views(calibration)[0]
    T_base_camera = calibration.T_base_camera[0]
    q, masks, metres, poses = [], [], [], []
    for i in range(5):
        T = (
            se3(Rotation.from_rotvec([0, 0, 0.02 * i]).as_matrix(), np.array([0.8 * i, 0, 0]))
            @ T_base_camera
        )
        _, depth, box = (
            image[::STRIDE, ::STRIDE] for image in street.render(calibration, 0, T, STEP * i)
        )
        q.append((1 / depth).astype(np.float32))
        masks.append(np.isin(box, MOVES) & np.isfinite(depth))
        metres.append((transform(T, unproject(depth, view.k).astype(np.float64)), box))
        poses.append(T)
    flows = {}
    v, u = np.indices(masks[0].shape)
    for a, b in PAIRS:
        for i, j in ((a, b), (b, a)):
            points, box = metres[i]
            velocity = np.array([BOXES[n].velocity for n in range(len(BOXES))] + [(0, 0, 0)])[box]
            then = points + velocity * STEP * (j - i)
            flows[i, j] = (
                project(transform(inverse(poses[j]), then), view.k)[0] - np.stack([u, v], -1)
            ).astype(np.float32)
    return view, q, poses, flows, masks


def differences(clip: Clip, i: int) -> list[np.ndarray]:
    view, q, poses, flows, _ = clip
    return [
        flow_difference(view, q[i], inverse(poses[b]) @ poses[a], flow)
        for (a, b), flow in flows.items()
        if a == i
    ]


def test_rigid_flow_is_the_flow_of_what_stands(clip: Clip) -> None:
    view, q, poses, flows, masks = clip
    for (i, j), flow in flows.items():
        difference = flow_difference(view, q[i], inverse(poses[j]) @ poses[i], flow)
        known = np.isfinite(difference)
        assert known.mean() > 0.5 and difference[known & ~masks[i]].max() < 0.02
        assert np.median(difference[known & masks[i]]) > 1
        nothing = np.where(masks[i], np.float32(np.nan), q[i])
        assert np.array_equal(
            np.isfinite(flow_difference(view, nothing, inverse(poses[j]) @ poses[i], flow)),
            known & ~masks[i],
        )


def test_what_moves_is_found_exactly_from_exact_flow(clip: Clip) -> None:
    """At a low threshold every pixel of what moves; at the published one what moves most, and
    nothing that stands."""
    for i, mask in enumerate(clip[-1]):
        score = motion_score([normalized(difference) for difference in differences(clip, i)])
        assert mask.sum() > 100 and score.min() >= 0 and score.max() <= 1
        low = score > 0.02
        assert (low & mask).sum() / (low | mask).sum() > 0.95
        assert (score > 0.6).any() and not ((score > 0.6) & ~mask).any()


def test_the_newest_image_of_a_clip_is_compared_with_two() -> None:
    assert NEWEST == (1, 2)


def test_where_nothing_moves_noise_is_not_motion_and_one_wrong_match_hides_nothing(
    clip: Clip,
) -> None:
    """The published rule normalizes by the largest difference, whatever it is."""
    mask = clip[-1][4]
    rng = np.random.default_rng(0)
    still = [
        np.where(np.isfinite(difference), rng.rayleigh(0.2, mask.shape), np.nan)
        for difference in differences(clip, 4)
    ]
    assert not (
        motion_score([normalized(difference, 3.0, 5.0) for difference in still]) > 0.4
    ).any()
    assert (motion_score([normalized(difference) for difference in still]) > 0.4).any()
    wrong = differences(clip, 4)
    for difference in wrong:
        difference[
            np.unravel_index(np.flatnonzero(np.isfinite(difference) & ~mask)[:3], mask.shape)
        ] = 200
    assert not (motion_score([normalized(difference) for difference in wrong]) > 0.6)[mask].any()
    assert (motion_score([normalized(difference, 3.0, 5.0) for difference in wrong]) > 0.6)[
        mask
    ].mean() > 0.3


def test_flow_that_does_not_return_is_none() -> None:
    flow, back = np.zeros((10, 12, 2), np.float32), np.zeros((10, 12, 2), np.float32)
    flow[..., 0], back[..., 0] = 3, -3
    back[4, 8] = 7, 0
    kept = np.isfinite(returning(flow, back, 3.0)).all(-1)
    assert not kept[:, 9:].any() and not kept[4, 5] and kept.sum() == 10 * 9 - 1


def test_what_no_pair_knows_does_not_move() -> None:
    nothing = np.full((4, 5), np.nan, np.float32)
    some = np.where(np.arange(5) < 2, np.float32(6), nothing)
    some[0, 0] = 0
    score = motion_score([normalized(nothing), normalized(some)])
    assert (
        not score[:, 2:].any()
        and score[1, 1] == 1
        and not motion_score([normalized(nothing)]).any()
    )


CROSSING = Box((16, -5, 0), (1, 2, 1.6), (0, 4.0, 0), 3)
STANDING = Box((18, 4, 0), (4, 2, 1.6), texture=2)
CLIP = DynamicsParameters(source="rigid_flow")


Results = list[tuple[Motion, np.ndarray]]


def watched(
    boxes: tuple[Box, ...], times: list[float], dynamics: Dynamics, rig: tuple[Rig, Calibration]
) -> Results:
    """What the rule says of a drive at 8 m/s, and the truth."""
    street, rng, results = street_of(boxes), np.random.default_rng(1), []
    for seconds in times:
        frame, pose, geometry, truth = observe(
            street,
            rig[1],
            se3(np.eye(3), np.array([8 * seconds, 0, 0])),
            seconds,
            disparity_noise=0.25,
            rng=rng,
        )
        results.append((dynamics(frame, pose, geometry), truth))
    return results


@pytest.mark.parametrize("positions", [[0.0], [0.0, -0.54]], ids=["single", "stereo"])
def test_as_a_source_of_dynamics(positions: list[float]) -> None:
    """Masks and a tracked object, by the parameter alone; nothing in a world that stands, nothing
    at the first image or after a reset."""
    rig = make_rig([(0.0, (0.0, y, 1.6)) for y in positions])
    dynamics = Dynamics(*rig, CLIP)
    times = [0.1 * n for n in range(8)]
    first = watched((STANDING, CROSSING), times, dynamics, rig)
    assert not first[0][0].mask.any()
    assert np.mean([iou(motion.mask, truth) for motion, truth in first[2:]]) > 0.4
    assert max((motion.mask & ~truth).mean() for motion, truth in first) < 0.01
    found = first[-1][0].objects
    assert len(found) == 1 and np.linalg.norm(found[0].velocity - CROSSING.velocity) < 1.5
    dynamics.reset()
    again = watched((STANDING, CROSSING), times, dynamics, rig)
    assert all(np.array_equal(a.mask, b.mask) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not any(
        motion.mask.mean() > 0.002 or motion.objects
        for motion, _ in watched((STANDING,), times, Dynamics(*rig, CLIP), rig)
    )


def test_images_that_come_faster_than_the_baseline_are_compared_over_it() -> None:
    """At 40 Hz a mover is found as at 10 Hz, and no more images are kept than two baselines
    hold."""
    rig = make_rig([(0.0, (0.0, 0.0, 1.6))])
    dynamics = Dynamics(*rig, CLIP)
    results = watched((STANDING, CROSSING), [0.025 * n for n in range(16)], dynamics, rig)
    assert np.mean([iou(motion.mask, truth) for motion, truth in results[9:]]) > 0.4
    assert len(dynamics._source._watchers[0]._clip) <= 10


def test_a_single_image_before_is_enough_and_a_gap_begins_anew() -> None:
    rig = make_rig([(0.0, (0.0, 0.0, 1.6))])
    results = watched((STANDING, CROSSING), [0.0, 0.1, 3.0, 3.1], Dynamics(*rig, CLIP), rig)
    assert iou(results[1][0].mask, results[1][1]) > 0.3
    assert not results[2][0].mask.any()


class Cameras:
    """In place of a runtime with Driv3R's graph: Driv3R's own step around a network that says the
    truth of a street, up to the unit of each camera and clip, with noise.

    Depth is wrong by a smooth field (over pixels and images) and pixel by pixel, 3 % each; rays by
    0.1 degree; what moves is said as it is.
    """

    name = device = "PyTorch"

    def __init__(
        self, calibration: Calibration, poses: np.ndarray, units: np.ndarray, clip: int
    ) -> None:
        import torch

        from recon4d_ros.networks import driv3r, driv3r_step, driv3r_stream
        from recon4d_ros.networks.step import StepOptions

        self.torch, self.driv3r, self.pair = torch, driv3r, driv3r_stream.Pair
        with torch.device("meta"):
            network = driv3r.build(driv3r.Configuration(1, 64, 1, 4, 64, 1, 1))
        options = StepOptions(
            len(calibration.names), calibration.input_size, calibration.working_size, pointers=24
        )
        self.step = driv3r_step.Driv3RStep(network, options, clip=clip)
        self.stream = self.step.stream
        self.memory_shapes, self.restarts = self.stream.memory_shapes, self.stream.restarts
        del self.step._modules["stream"]
        self.step.stream = self
        self.calibration, self.poses, self.units = calibration, poses, units
        self.street, self.rng = (
            street_of((STANDING, CROSSING, Box((30, -9, 0), (4, 2, 3), texture=5))),
            np.random.default_rng(4),
        )
        n = len(calibration.names)
        self.i, self.origin, self.last, self.clips = (
            -1,
            poses[0].copy(),
            np.zeros(n, int),
            np.zeros(n, int),
        )
        self.field = np.zeros((n, 4, 5))
        self.truth: list[np.ndarray] = []  # depth, NaN where something moves
        self.said: list[np.ndarray] = []
        self.reset()

    def reset(self) -> None:
        self.state = [self.torch.zeros(shape) for shape in self.step.memory_shapes().values()]

    def close(self) -> None: ...

    def memory(self, name: str) -> np.ndarray:
        return self.state[list(self.step.memory_shapes()).index(name)].numpy()

    def run(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        frame = (self.torch.from_numpy(np.array(inputs[name])) for name in self.step.frame_inputs())
        with self.torch.inference_mode():
            result = self.step(*frame, *self.state)
        for array, value in zip(outputs.values(), result, strict=False):
            array[...] = value.numpy()
        self.state = list(result[len(outputs) :])

    def __call__(self, images, memory, here, moved):
        """In place of the network's stream."""
        again = self.restarts(memory).numpy()
        new = memory._replace(
            seen=self.torch.where(
                here, self.torch.where(self.restarts(memory), 1.0, memory.seen) + 1, memory.seen
            )
        )
        self.i += 1
        n, (h, w) = len(self.units), self.calibration.working_size
        self.clips += again
        self.field = 0.8 * self.field + 0.6 * self.rng.normal(size=self.field.shape)
        depth, said, moves = np.empty((n, h, w)), np.empty((n, h, w, 3)), np.empty((n, h, w), bool)
        for i in range(n):
            _, depth[i], box = self.street.render(
                self.calibration, i, self.poses[self.i, i], 0.1 * self.i
            )
            moves[i] = box == 1
            wrong = 0.03 * cv2.resize(
                self.field[i], (w, h), interpolation=cv2.INTER_CUBIC
            ) + 0.03 * self.rng.normal(size=(h, w))
            rays = unproject(
                np.ones((h, w), np.float32), self.calibration.k[i]
            ) + 0.0017 * self.rng.normal(size=(h, w, 3))
            said[i] = rays * (depth[i] * np.exp(wrong))[..., None]
        self.truth.append(np.where(moves, np.nan, depth).astype(np.float32))
        self.said.append(said)
        seen = memory.seen.numpy() > 0.5
        for i in np.flatnonzero(again):
            self.origin[i] = self.poses[self.last[i], i]
        for i in np.flatnonzero(~seen):
            self.origin[i], self.last[i] = self.poses[self.i, i], self.i
        maps = [self._map(self.last), self._map(np.full(n, self.i))]
        self.last[here.numpy()] = self.i
        return self.pair(maps[1], maps[0]), new

    def _map(self, at: np.ndarray):
        """What is said of each camera's image number at[i], in its clip's frame and unit."""
        points = [
            transform(inverse(self.origin[i]) @ self.poses[t, i], self.said[t][i])
            * self.units[i]
            * (1 + 0.3 * (self.clips[i] % 3))
            for i, t in enumerate(at)
        ]
        map_ = self.torch.from_numpy(np.stack(points)).float()
        return self.driv3r.PointMap(map_, self.torch.full(map_.shape[:3], 5.0))


@pytest.mark.parametrize("clip", [0, 7])
def test_cameras_with_units_of_their_own_become_one_metric_world(clip: int) -> None:
    """Several cameras whose networks agree on nothing, one of them dead at first, one for a while:
    metres in the world, and how sure."""
    pytest.importorskip("torch")
    _, calibration = make_rig(
        [(0.0, (1.0, 0, 1.5)), (1.2, (0.5, 0.5, 1.5)), (np.pi, (-1.0, 0, 1.5))], 64, 48, 40.0
    )
    frames, units = 30, np.array([0.05, 0.7, 12.0])
    car = [
        se3(
            Rotation.from_rotvec([0, 0, 0.02 * t]).as_matrix(),
            np.array([0.6 * t, 0.004 * t * t, 0]),
        )
        for t in range(frames)
    ]
    poses = np.stack([T @ calibration.T_base_camera for T in car])
    runtime = Cameras(calibration, poses, units, clip)
    memory = {name: tuple(shape) for name, shape in runtime.step.memory_shapes().items()}
    spec = EngineSpec(
        "driv3r",
        "learned",
        "PyTorch",
        3,
        (48, 64),
        3,
        (48, 64),
        24,
        0,
        "fp32",
        "model.onnx",
        "",
        inputs=(*runtime.step.frame_inputs(), *memory),
        options={"memory": memory, "one_world": False},
        extra_outputs={"network_position": (3, 3)},
    )
    engine = HostedEngine(spec, runtime, "engine test")
    still = np.zeros((3, 48, 64), bool)
    found = []
    for t in range(frames):
        present = np.array([True, not 8 <= t < 15, t >= 6])
        frame = Frame(t, np.full((3, 48, 64, 3), 100, np.uint8), present, np.full(3, t))
        geometry = engine.step(frame, calibration, poses[t], still)
        scales = [
            scale.metres_per_unit * unit if scale else None
            for scale, unit in zip(engine.scales, units, strict=True)
        ]
        found.append(scales)
        known = np.isfinite(geometry.depth)
        assert not known[~present].any() and not geometry.confidence[~known].any()
        told = present & np.array([scale is not None for scale in found[-2 if t else -1]])
        assert t < 2 or known[told].mean() > 0.9
        for i in np.flatnonzero(present & (t > 20)):
            good = known[i] & np.isfinite(runtime.truth[t][i])
            pair = geometry.depth[i], runtime.truth[t][i]
            world, truth = (transform(poses[t, i], unproject(z, calibration.k[i])) for z in pair)
            off = np.linalg.norm(world - truth, axis=-1)[good] / runtime.truth[t][i][good]
            assert np.median(off) < 0.06, (t, i)
            error = np.abs(geometry.depth[i] - runtime.truth[t][i])[good] / geometry.sigma[i][good]
            assert (error < 3).mean() > 0.9
    assert found[0] == [None] * 3, "who has not moved says nothing of the scale"
    assert all(scales[2] is None for scales in found[:7]) and found[9][2] is not None, (
        "the third camera begins when it comes"
    )
    assert len({scales[1] for scales in found[7:15]}) == 1, (
        "the second one keeps what it had while it is dead"
    )
    for scale, value in zip(engine.scales, found[-1], strict=True):
        assert (
            value == pytest.approx(1, abs=0.04)
            and abs(value - 1) < 4 * scale.relative_sigma
            and scale.relative_sigma < 0.04
        )
