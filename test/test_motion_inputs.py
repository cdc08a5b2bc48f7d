"""The host's side of the motion network: its grid, what it is given, and what is made of its
answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from dynamics_scene import Box, Street, make_rig, observe
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon4d_ros import paths
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.dynamics import Dynamics, DynamicsParameters, learned
from recon4d_ros.dynamics.motion_inputs import MULTIPLE, NetworkGrid, make_grid
from recon4d_ros.dynamics.static_world import road_in_camera
from recon4d_ros.dynamics.views import make_views
from recon4d_ros.engine.base import load_spec
from recon4d_ros.engine.motion import load_motion, motion_at, suited
from recon4d_ros.errors import EngineError
from recon4d_ros.export import onnx_engine
from recon4d_ros.export.scene import example_inputs
from recon4d_ros.geometry import se3
from recon4d_ros.reconstructor import Reconstructor
from recon4d_ros.types import Tracking

CROSSING = Box((16, -3, 0), (1, 2, 1.6), (0, 4.0, 0))
STILL = Box((18, 4, 0), (4, 2, 1.6), texture=2)
SINGLE = make_rig([(0, (0, 0, 1.6))])
STEREO = make_rig([(0, (0, 0, 1.6)), (0, (0, -0.54, 1.6))])
RING = make_rig([(0, (1.5, 0, 1.6)), (np.deg2rad(-35), (1.0, -0.5, 1.6))])


class Told:
    """In the engine's place: says the truth. Keeps what it was given. truth: [N, H, W] bool of the
    working images."""

    truth: NDArray[np.bool_]

    def __init__(self) -> None:
        self.given: list[dict[str, NDArray]] = []
        self.resets = 0
        self.forgotten = 0

    def step(self, inputs: dict[str, NDArray]) -> NDArray[np.float32]:
        self.given.append(inputs)
        out = np.zeros(inputs["grey"].shape, np.float32)
        seen = self.truth[:, ::2, ::2]
        out[:, : seen.shape[1], : seen.shape[2]] = seen
        return out

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        pass


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    engine = Told()
    monkeypatch.setattr(learned, "load_motion", lambda *_: engine)
    return engine


def drive(rig_and_calibration, told: Told, times: list[float]):
    """What the cameras see at 6 m/s, the truth being told."""
    street, rng = Street((STILL, CROSSING)), np.random.default_rng(1)
    for t in times:
        T = se3(np.eye(3), np.array([6.0 * t, 0, 0]))
        frame, pose, geometry, told.truth = observe(
            street, rig_and_calibration[1], T, t, disparity_noise=0.1, rng=rng
        )
        yield frame, pose, geometry


def watch(rig_and_calibration, told: Told, times: list[float]):
    dynamics = Dynamics(*rig_and_calibration, DynamicsParameters(source="network"))
    return [(dynamics(*seen), told.truth) for seen in drive(rig_and_calibration, told, times)]


@given(
    h=st.integers(20, 120),
    w=st.integers(20, 200),
    step=st.sampled_from([1, 2]),
)
@settings(max_examples=40, deadline=None)
def test_the_grid_pads_to_whole_multiples_and_keeps_what_is_there(
    h: int, w: int, step: int
) -> None:
    size = (-(-h // step), -(-w // step))
    padded = tuple(-(-side // MULTIPLE) * MULTIPLE for side in size)
    grid = NetworkGrid(step, size, padded)
    plane = np.arange(h * w, dtype=np.float32).reshape(h, w)
    taken = grid.take(plane)
    assert taken.shape == padded and all(side % MULTIPLE == 0 for side in taken.shape)
    assert np.array_equal(taken[: size[0], : size[1]], plane[::step, ::step])
    assert not taken[size[0] :].any() and not taken[:, size[1] :].any()
    back = learned.enlarged(taken[: size[0], : size[1]], step, (h, w))
    assert np.array_equal(back[::step, ::step], plane[::step, ::step])


def test_a_long_lens_gets_a_coarser_grid() -> None:
    views = make_views(SINGLE[1])
    assert make_grid(views).step == 1
    long = dataclasses.replace(views[0], k=views[0].k * 4)
    grid = make_grid((long,))
    assert grid.step == 2 and grid.intrinsics(long)[0, 0] == pytest.approx(long.k[0, 0] / 2)


def test_the_road_as_a_camera_sees_it() -> None:
    view = make_views(SINGLE[1])[0]
    assert road_in_camera(view, np.array([0.0, 0, 1, 0])) == pytest.approx([0, -1, 0, 1.6])
    assert not road_in_camera(view, None).any()
    assert not road_in_camera(view, np.array([0.0, 0, 1, -1.6])).any(), "a camera on the road"


@pytest.mark.parametrize("rig", [SINGLE, STEREO, RING], ids=["single", "stereo", "ring"])
def test_the_mask_lies_on_what_moves_and_objects_are_where_they_are(rig, told: Told) -> None:
    results = watch(rig, told, [0.1 * n for n in range(8)])
    assert not results[0][0].mask.any(), "a first image is compared with nothing"
    for motion, truth in results[2:]:
        assert motion.mask.shape == truth.shape
        assert (motion.mask & truth)[0].sum() / (motion.mask | truth)[0].sum() > 0.9
    found = results[-1][0].objects
    assert len(found) == 1
    assert np.hypot(found[0].position[0] - 16, found[0].position[1] - (-3 + 4 * 0.7)) < 1.5
    assert np.linalg.norm(found[0].velocity[:2] - CROSSING.velocity[:2]) < 1.0
    first, later = told.given[0], told.given[-1]
    assert not first["keep"].any() and later["keep"].all() and (later["share"] == 1).all()
    assert later["T_before_now"][0, 2, 3] == pytest.approx(0.6, abs=1e-5)
    assert later["seconds"] == pytest.approx(0.1, abs=1e-6)


def test_fast_cameras_are_compared_over_the_baseline_and_memory_with_the_last_image(
    told: Told,
) -> None:
    watch(SINGLE, told, [n / 30 for n in range(8)])
    later = told.given[-1]
    assert later["seconds"][0] == pytest.approx(0.1, abs=1e-6)
    assert later["share"][0] == pytest.approx(1 / 3, abs=1e-4)


def test_an_absent_camera_and_a_lost_pose_begin_anew(told: Told) -> None:
    dynamics = Dynamics(*RING, DynamicsParameters(source="network"))
    seen = drive(RING, told, [0.1 * n for n in range(7)])
    for n, (frame, pose, geometry) in enumerate(seen):
        if n == 3:
            frame = dataclasses.replace(frame, present=np.array([True, False]))
        if n == 5:
            pose = dataclasses.replace(pose, tracking=Tracking.LOST)
        motion = dynamics(frame, pose, geometry)
        if n == 3:
            assert not motion.mask[1].any() and told.given[-1]["keep"].tolist() == [1, 0]
        if n == 4:  # its first image after the gap is compared with nothing
            assert not motion.mask[1].any() and told.given[-1]["keep"].tolist() == [1, 0]
        if n == 5:
            assert not motion.mask.any() and told.resets
        if n == 6:
            assert not motion.mask.any(), "the frame after a lost pose is a first frame again"


def test_an_engine_of_something_else_is_told() -> None:
    with pytest.raises(EngineError, match="does not say what moves"):
        load_motion(paths.engines() / "geometric_surround1", 1, (96, 160))
    with pytest.raises(EngineError):
        load_motion(Path("/nowhere"), 1, (96, 160))


@pytest.mark.parametrize(
    ("runtime", "model", "own", "source", "taken"),
    [
        ("", "model.onnx", "openvino", {}, ""),
        ("onnxruntime", "model.onnx", "openvino", {}, "onnxruntime"),
        ("tensorrt", "model.onnx", "openvino", {}, ""),  # not built for it: its own
        ("tensorrt-rtx", "model.engine", "tensorrt-rtx", {}, "tensorrt-rtx"),
        ("tensorrt", "model.engine", "tensorrt-rtx", {}, ""),
        ("openvino", "model.engine", "tensorrt-rtx", {}, ""),
        ("openvino", "model.engine", "tensorrt-rtx", {"model.onnx": "0"}, "openvino"),
    ],
)
def test_it_runs_on_what_the_reconstruction_runs_on_if_it_can(
    runtime: str, model: str, own: str, source: dict[str, str], taken: str
) -> None:
    spec = load_spec(paths.engines() / "motion")
    spec = dataclasses.replace(spec, model=model, runtime=own, source=source)
    assert suited(spec, runtime) == taken


def test_the_runtime_and_what_was_forgotten_reach_through(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(learned, "load_motion", lambda *all_: given.append(all_) or told)
    rig = make_rig([(0, (0, 0, 1.6))])[0]
    one = Reconstructor(rig, paths.engines() / "geometric_surround1", runtime="onnxruntime")
    assert given[0][3] == "onnxruntime" and "onnxruntime" in one.engine.device
    told.forgotten = 2
    assert one.forgotten == {"engine": 0, "motion engine": 2}
    one.close()


def test_an_engine_built_for_a_rig_has_its_cameras_and_its_grid() -> None:
    rig = load_rig(paths.rigs() / "kitti_like.yaml")
    spec = onnx_engine(paths.engines() / "motion", rig)
    assert (spec.cameras, spec.working_size) == (2, (80, 224))
    assert spec.options["memory"]["belief"][0] == 2
    fixed = dataclasses.replace(spec, shapes={})
    assert motion_at(fixed, 3, (96, 160)) is fixed


@pytest.mark.parametrize("cameras, size", [(1, (64, 96)), (3, (48, 80))])
def test_the_shipped_engine_serves_any_rig_and_remembers(cameras, size) -> None:
    """Runtimes agree, for any number of cameras and any grid; the second step is not the first."""
    said = {}
    for runtime in ("openvino", "onnxruntime"):
        pytest.importorskip(runtime)
        engine = load_motion(paths.engines() / "motion", cameras, size, runtime, threads=1)
        said[runtime] = [
            engine.step(
                {
                    name: array
                    for name, array in example_inputs(engine.spec, index).items()
                    if name in engine.spec.inputs
                }
            )
            for index in range(2)
        ]
        assert said[runtime][0].shape == (cameras, *size)
        assert (said[runtime][0] != said[runtime][1]).any()
        engine.reset()
        engine.close()
    for one, other in zip(*said.values(), strict=True):
        assert (np.abs(one - other) > 0.02).mean() < 0.005
