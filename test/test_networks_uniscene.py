"""UniScene against the authors' outputs (test/golden); its static step against the plain network;
its engine, its labels. Weights of a checkpoint were not at hand: where there is no golden output,
stand-in weights mean nothing, and only what is computed of them is compared."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from golden_files import golden_weights, manifest, outputs, relative
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from recon4d_ros import bev  # noqa: E402
from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros.cameras.calibration import make_calibration  # noqa: E402
from recon4d_ros.cameras.rig import load_rig  # noqa: E402
from recon4d_ros.engine import occupancy as occupancy_engine  # noqa: E402
from recon4d_ros.engine.base import EngineSpec, sha256_of  # noqa: E402
from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.export.graph import write_graph  # noqa: E402
from recon4d_ros.geometry import se3_from_quaternion  # noqa: E402
from recon4d_ros.networks import checkpoint, uniscene  # noqa: E402
from recon4d_ros.networks import occupancy_labels as labels  # noqa: E402
from recon4d_ros.networks.step import StepOptions  # noqa: E402
from recon4d_ros.networks.uniscene_step import LIDAR, options_for  # noqa: E402
from recon4d_ros.paths import rigs  # noqa: E402
from recon4d_ros.types import Frame, Occupancy  # noqa: E402

NAMES = {"occupancy": "uniscene_small", "detection": "uniscene_small_detection"}
SIZE = (64, 96)
TINY = "depth=50,rows=20,columns=24,encoders=2,levels_z=8"
BAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return outputs("uniscene_small")


def small(kind: str, golden: dict[str, np.ndarray]) -> uniscene.UniScene:
    shapes = manifest(NAMES[kind])
    with torch.device("meta"):
        network = uniscene.build(uniscene.configuration_of(shapes, None))
    weights = golden_weights(NAMES[kind])
    for name in weights:
        weights[name] = weights[name] * golden.get(f"scale/{name}", np.float32(1)).item()
    network.load_state_dict(weights, assign=True)
    return network.eval()


def views_of(tables: bev.CellsInView, cameras: int) -> uniscene.Views:
    arrays = (torch.from_numpy(array) for array in (tables.cell, tables.point, tables.slot))
    return uniscene.Views(*arrays, torch.ones(cameras), torch.arange(cameras))


# --- the authors' outputs


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("uniscene_full", uniscene.Configuration()),
        ("uniscene_full_detection", uniscene.Configuration("detection")),
        (
            "uniscene_small",
            uniscene.Configuration("occupancy", 50, rows=50, columns=50, encoders=3),
        ),
        (
            "uniscene_small_detection",
            uniscene.Configuration(
                "detection", 50, rows=50, columns=50, encoders=3, decoders=3, queries=100
            ),
        ),
    ],
)
def test_parameter_names_and_shapes(name: str, configuration: uniscene.Configuration) -> None:
    shapes = manifest(name)
    assert uniscene.configuration_of(shapes, None) == configuration
    with torch.device("meta"):
        network = uniscene.build(configuration)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes
    assert {"uniscene_full": 873, "uniscene_full_detection": 1089}.get(name, len(shapes)) == len(
        shapes
    )


@pytest.mark.parametrize("kind", NAMES)
def test_the_authors_outputs_frame_by_frame(kind: str, golden: dict[str, np.ndarray]) -> None:
    network = small(kind, golden)
    grid = network.configuration.grid
    lidar = kind == "detection"
    matrix = golden["lidar2img"] if lidar else golden["lidar2img"] @ golden["ego2lidar"]
    points, seen = bev.project_pillars(grid, matrix, (96, 192))
    views, prefix = views_of(bev.cells_in_view(points, seen), 6), "det/" * lidar
    history, before, worst = torch.zeros(grid.cells, 256), None, {}
    for t in range(3):
        np.testing.assert_array_equal(seen.sum(1), golden[f"{t}/{prefix}pillars_seen"])
        told = bev.streamed(golden[f"{t}/can_bus"], before)
        np.testing.assert_array_equal(told, golden[f"{t}/can_bus_seen"])
        before = golden[f"{t}/can_bus"]
        turned = torch.cat([history, torch.zeros(1, 256)])[
            torch.from_numpy(bev.turned_cells(told[bev.YAW_DEGREES], grid))
        ]
        # the two kinds' difference: the present is shifted along, or it is not
        shift = bev.history_shift(told, grid)
        shifts = torch.tensor(np.stack([shift, shift * (not lidar)]), dtype=torch.float32)
        images = torch.from_numpy(golden[f"{t}/images"].astype(np.float32))
        with torch.inference_mode():
            past = uniscene.History(turned, torch.tensor([float(t > 0)]), shifts)
            can_bus = torch.from_numpy(told).float()
            history, out = network(images, can_bus, views, past)
        every = history.reshape(50, 50, -1)[::5, ::5]
        worst[f"{t}/bev"] = relative(every, golden[f"{t}/{prefix}bev_embed"])
        for name, got in (("mean", history.mean(0)), ("std", history.std(0))):
            worst[f"{t}/bev {name}"] = relative(got, golden[f"{t}/{prefix}bev_embed_{name}"])
        if lidar:
            worst[f"{t}/scores"] = relative(out.scores, golden[f"{t}/det/cls_scores"])
            worst[f"{t}/boxes"] = relative(out.boxes, golden[f"{t}/det/bbox_preds"])
            found = uniscene.detections(out.scores[-1], out.boxes[-1], 50)
            assert_same_boxes(found, golden, t)
        else:
            worst[f"{t}/logits"] = relative(out, golden[f"{t}/occ_logits"])
            # a voxel whose two logits tie may flip
            assert (out.argmax(-1).numpy() != golden[f"{t}/occ"]).mean() < 1e-3
    assert len(worst) >= 12 and max(worst.values()) < BAR, worst
    if not lidar:
        truth = torch.from_numpy(golden["loss/voxel_semantics"])
        loss = float(uniscene.occupancy_loss(out, truth))
        assert loss == pytest.approx(float(golden["loss/loss_occ"]), rel=BAR)


def assert_same_boxes(found: uniscene.Detections, golden: dict[str, np.ndarray], t: int) -> None:
    """As a set: nearly equal scores change places."""
    theirs = np.c_[golden[f"{t}/det/boxes"], golden[f"{t}/det/labels"]]
    ours = np.c_[found.box.numpy(), found.label.numpy()]
    apart = np.abs(ours[:, None] - theirs[None]).max(-1).min(0)
    assert len(ours) == len(theirs) and np.mean(apart < 1e-3) >= 0.98


def test_the_pyramid_sees_what_the_authors_does(golden: dict[str, np.ndarray]) -> None:
    network = small("occupancy", golden)
    with torch.inference_mode():
        levels = network.features(torch.from_numpy(golden["0/images"].astype(np.float32)))
    assert relative(levels[2][1], golden["0/feature_level2_camera1"]) < BAR
    means = torch.stack([level.mean((1, 2, 3)) for level in levels])
    assert relative(means, golden["0/feature_means"]) < BAR


def test_a_deformable_convolution_without_offsets_is_one() -> None:
    torch.manual_seed(0)
    layer, x = uniscene.DeformableConv(8), torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(
        layer(x), 0.5 * torch.nn.functional.conv2d(x, layer.weight, padding=1), rtol=1e-4, atol=1e-5
    )
    layer.conv_offset.bias.data[2 * 4 + 1] = 2.0  # the middle tap looks two pixels to the right
    layer.weight.data[:] = 0
    layer.weight.data[:, :, 1, 1] = 2 * torch.eye(8)
    moved = torch.nn.functional.pad(x, (0, 2))[..., 2:]
    torch.testing.assert_close(layer(x), moved, rtol=1e-4, atol=1e-5)


# --- checkpoint files


@pytest.mark.parametrize(
    ("name", "kind", "millions"),
    [("uniscene_full", "occupancy", "63.0"), ("uniscene_full_detection", "detection", "69.1")],
)
def test_published_files_are_told_apart(
    name: str, kind: str, millions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recon4d_ros.cli import main

    hollow = {key: torch.ones(()).expand(shape) for key, shape in manifest(name).items()}
    meta = {"epoch": 24, "iter": 675264, "config": "model = dict()", "CLASSES": ("car",)}
    torch.save({"meta": meta, "state_dict": hollow, "optimizer": {}}, tmp_path / "epoch_24.pth")
    found = checkpoint.identify(tmp_path / "epoch_24.pth")
    assert found.title == "UniScene" and found.problems == ()
    assert found.configuration == uniscene.Configuration(kind)
    assert main(["info", str(tmp_path / "epoch_24.pth")]) == 0
    said = capsys.readouterr().out
    assert f"UniScene, {millions} million" in said and kind in said and "complete" in said


def test_what_is_not_this_network_is_said() -> None:
    shapes = manifest("uniscene_small")
    plain = {name: shape for name, shape in shapes.items() if "conv_offset" not in name}
    with pytest.raises(EngineError, match="no deformable convolutions in stage 3"):
        uniscene.configuration_of(plain, None)
    shallow = {name: shape for name, shape in shapes.items() if ".layer3.5." not in name}
    with pytest.raises(EngineError, match=r"backbone of .* blocks is not known"):
        uniscene.configuration_of(shallow, None)
    with pytest.raises(EngineError, match="kind 'boxes' is not known"):
        checkpoint.obtain("stand-in:kind=boxes", "uniscene")


# --- grid and motion


GRID = bev.BevGrid(20, 24, (-12.0, -10.0, -5.0), (12.0, 10.0, 3.0))


def test_pillars_are_where_the_code_has_them() -> None:
    np.testing.assert_allclose(bev.pillar_heights(GRID), [-4.5, -2.1667, 0.1667, 2.5], atol=1e-4)
    centres = bev.cell_centres(GRID)
    np.testing.assert_allclose(centres[0], [-11.5, -9.5])
    np.testing.assert_allclose(centres[25], [-10.5, -8.5])  # row 1, column 1


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_tables_hold_every_cell_that_is_seen_and_no_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.random((3, 40, 4)) < 0.15
    points = rng.random((3, 40, 4, 2)).astype(np.float32)
    needed = bev.needed(seen)
    tables = bev.cells_in_view(points, seen, needed[0] + 2, 3)
    slots = tables.cell.shape[1]
    for cell in range(40):
        used = tables.slot[cell][tables.slot[cell] < 3 * slots]
        assert set(used // slots) == set(np.flatnonzero(seen[:, cell].any(-1)))
        for slot in used:
            camera, place = divmod(int(slot), slots)
            assert tables.cell[camera, place] == cell
            np.testing.assert_array_equal(tables.point[camera, place], points[camera, cell])
    if needed[0] > 1:
        with pytest.raises(ValueError, match="are needed"):
            bev.cells_in_view(points, seen, needed[0] - 1, 3)


def pose_of(x: float, y: float, yaw: float) -> np.ndarray:
    half = yaw / 2
    return se3_from_quaternion(np.array([x, y, 0.3]), np.array([0, 0, np.sin(half), np.cos(half)]))


@settings(max_examples=30)
@given(*(st.floats(-3, 3) for _ in range(4)))
def test_the_mended_history_is_where_it_was(yaw: float, turn: float, dx: float, dy: float) -> None:
    """A thing of the world: its place in the grid of before is the place of now, turned, plus the
    shift, up to half a cell's rounding in the turn."""
    still = np.zeros(6)
    before = bev.can_bus(pose_of(500.0, -200.0, yaw), still, np.zeros(3))
    now_pose = pose_of(500.0 + dx, -200.0 + dy, yaw + turn / 10)
    told = bev.streamed(bev.can_bus(now_pose, still, np.zeros(3)), before)
    grid = bev.BevGrid(80, 96, (-12.0, -10.0, -5.0), (12.0, 10.0, 3.0))
    shift = bev.history_shift_in_base(told, grid) * grid.extent[:2]
    here = np.array([2.0, -3.0])  # metres in base_link of now, as the history is sampled there
    moved = here + shift
    column, row = np.floor((moved - grid.low[:2]) / grid.extent[:2] * (96, 80)).astype(int)
    cell = bev.turned_cells(told[bev.YAW_DEGREES], grid)[row * 96 + column]
    found = bev.cell_centres(grid)[cell]
    world = now_pose[:3, :3] @ [*here, 0] + now_pose[:3, 3]
    old_pose = pose_of(500.0, -200.0, yaw)
    truth = old_pose[:3, :3].T @ (world - old_pose[:3, 3])
    assert np.abs(found - truth[:2]).max() < 0.25 * 1.5  # cells of 0.25 m


def test_the_published_shift_is_right_for_a_grid_that_looks_forward() -> None:
    """Driving ahead by 2 m, whatever the heading: along y of a grid whose y is forward; and in
    base_link along x."""
    for yaw in (0.0, 1.1, 4.0):
        ahead = pose_of(2 * np.cos(yaw), 2 * np.sin(yaw), yaw)
        before = bev.can_bus(pose_of(0, 0, yaw), np.zeros(6), np.zeros(3))
        told = bev.streamed(bev.can_bus(ahead, np.zeros(6), np.zeros(3)), before)
        np.testing.assert_allclose(bev.history_shift(told, GRID), [0, 2 / 20], atol=1e-9)
        np.testing.assert_allclose(bev.history_shift_in_base(told, GRID), [2 / 24, 0], atol=1e-9)


def test_cameras_take_the_embedding_of_who_looked_there() -> None:
    rig = load_rig(rigs() / "nuscenes_like.yaml")
    trained = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)
    order = [3, 5, 1, 0, 2, 4]
    by_name = {
        "front": 0, "front_right": 1, "front_left": 2, "back": 3, "back_left": 4, "back_right": 5,
    }  # fmt: skip
    wanted = [
        next(place for name, place in reversed(by_name.items()) if c.name.endswith(name))
        if c.name.endswith(("left", "right"))
        else by_name[c.name.rsplit("_", 1)[-1]]
        for c in rig.cameras
    ]
    np.testing.assert_array_equal(bev.trained_places(rig.T_base_camera, trained), wanted)
    np.testing.assert_array_equal(
        bev.trained_places(rig.T_base_camera[order], trained), np.array(wanted)[order]
    )
    twice = bev.trained_places(np.concatenate([rig.T_base_camera] * 2), trained)
    np.testing.assert_array_equal(twice, wanted * 2)


# --- the engine's step


class Drive:
    """Frames of a rig of three cameras around a car that turns, and what a host gives a step."""

    def __init__(self, network: uniscene.UniScene, **own: float) -> None:
        rig = load_rig(rigs() / "nuscenes_like.yaml")
        self.rig = type(rig)("three", rig.cameras[:3])
        self.calibration = make_calibration(self.rig, (180, 320), SIZE)
        self.options = StepOptions(3, (180, 320), SIZE, 3, 16)
        self.step = checkpoint.make_step(
            network, "uniscene", self.options, own, self.calibration
        ).eval()
        rng = np.random.default_rng(3)
        self.images = rng.integers(0, 255, (4, 3, 180, 320, 3), dtype=np.uint8)
        self.poses = [pose_of(40 + 2.5 * i, 7 + 0.3 * i, 0.9 + 0.12 * i) for i in range(4)]
        self.twist = np.array([5.0, 0.1, 0, 0, 0, 0.24])

    def states(self) -> list[np.ndarray]:
        every = [bev.can_bus(pose, self.twist, occupancy_engine.AT_REST) for pose in self.poses]
        return [bev.streamed(now, old) for now, old in zip(every, [None, *every], strict=False)]

    def spec(self, **fields: object) -> EngineSpec:
        c, step = self.step.network.configuration, self.step
        memory = {name: tuple(shape) for name, shape in step.memory_shapes().items()}
        shapes = {
            "occupancy": (c.columns, c.rows, c.levels_z),
            "class_scores": (c.queries, c.classes),
            "boxes": (c.queries, uniscene.BOX),
        }
        return EngineSpec(
            "uniscene", step.config, "onnxruntime", 3, (180, 320), 3, SIZE, 16, 0, "fp32",
            "model.onnx", "", "stand-in", (*step.frame_inputs(), *memory),
            (*step.outputs, *(f"new_{name}" for name in memory)),
            {**step.described, "memory": memory},
            extra_outputs={name: shapes[name] for name in step.outputs}, **fields,
        )  # fmt: skip

    def given(self, index: int, present: tuple[int, ...] = (1, 1, 1)) -> dict[str, np.ndarray]:
        spec = self.spec()
        return {
            "images": self.images[index],
            "present": np.array(present, np.float32),
            **occupancy_engine.rig_inputs(spec, self.calibration),
            **occupancy_engine.motion_inputs(
                spec, self.states()[index], occupancy_engine.grid_of(spec)
            ),
        }

    def roll_out(
        self, absent: dict[int, tuple[int, ...]] | None = None
    ) -> list[list[torch.Tensor]]:
        memory = [torch.zeros(shape) for shape in self.step.memory_shapes().values()]
        results = []
        for index in range(len(self.poses)):
            frame = self.given(index, (absent or {}).get(index, (1, 1, 1)))
            inputs = [torch.from_numpy(frame[name]) for name in self.step.frame_inputs()]
            with torch.inference_mode():
                result = self.step(*inputs, *memory)
            memory = list(result[-len(memory) :])
            results.append(list(result))
        return results


@pytest.fixture(scope="module")
def tiny() -> uniscene.UniScene:
    return checkpoint.obtain(f"stand-in:{TINY}", "uniscene")[0]


@pytest.fixture(scope="module")
def tiny_detector() -> uniscene.UniScene:
    text = f"stand-in:kind=detection,{TINY},decoders=2,queries=30,classes=5"
    return checkpoint.obtain(text, "uniscene")[0]


def plainly(drive: Drive) -> list[tuple[torch.Tensor, torch.Tensor | uniscene.Boxes]]:
    """The published streaming, outside of a graph and without the step."""
    network = drive.step.network
    grid, detection = network.configuration.grid, drive.step.config == "detection"
    matrix = bev.image_from_grid(drive.calibration, LIDAR if detection else None)
    views = views_of(bev.cells_in_view(*bev.project_pillars(grid, matrix, SIZE)), 3)
    trained = drive.step.described["trained_cameras"]
    place = bev.trained_places(drive.calibration.T_base_camera, tuple(trained))
    views = views._replace(place=torch.from_numpy(place))
    history, results = torch.zeros(grid.cells, 256), []
    for index, told in enumerate(drive.states()):
        x = torch.from_numpy(drive.images[index]).permute(0, 3, 1, 2).float()
        place_in = torch.from_numpy(drive.calibration.grid)
        size = torch.tensor([320.0, 180.0])
        x = torch.nn.functional.grid_sample(
            x, (place_in + 0.5) / size * 2 - 1, padding_mode="border", align_corners=False
        )
        x = x.flip(1) - torch.tensor(uniscene.MEAN)[:, None, None]
        x = x * (place_in[..., 0] > -2)[:, None]
        turned = torch.cat([history, torch.zeros(1, 256)])[
            torch.from_numpy(bev.turned_cells(told[bev.YAW_DEGREES], grid))
        ]
        shift = torch.from_numpy(bev.history_shift(told, grid)).float()
        past = uniscene.History(
            turned,
            torch.tensor([float(index > 0)]),
            torch.stack([shift, 0 * shift if detection else shift]),
        )
        with torch.inference_mode():
            history, out = network(x, torch.from_numpy(told).float(), views, past)
        results.append((history, out))
    return results


def test_the_step_is_the_network(tiny: uniscene.UniScene, tiny_detector: uniscene.UniScene) -> None:
    """Over four frames with history; tables with more room than the rig needs change nothing."""
    drive = Drive(tiny, cells_in_view=300, cameras_per_cell=3)
    assert 0 < options_for(tiny, drive.calibration, {})["cells_in_view"] < 300
    for (bev_features, logits), got in zip(plainly(drive), drive.roll_out(), strict=True):
        assert relative(got[1], bev_features.numpy()) < BAR
        chance = torch.sigmoid(logits[..., 1] - logits[..., 0])
        assert relative(got[0], chance.numpy()) < BAR
    drive = Drive(tiny_detector)
    for (bev_features, boxes), got in zip(plainly(drive), drive.roll_out(), strict=True):
        assert relative(got[2], bev_features.numpy()) < BAR
        assert relative(got[0], boxes.scores[-1].numpy()) < BAR
        assert relative(got[1], boxes.boxes[-1].numpy()) < BAR


def test_an_absent_camera_leaves_nothing(tiny: uniscene.UniScene) -> None:
    drive = Drive(tiny)
    absent = {1: (1, 0, 1), 2: (0, 1, 1)}
    before = drive.roll_out(absent)
    drive.images[1, 1], drive.images[2, 0] = 255, 3
    for a, b in zip(before, drive.roll_out(absent), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
        torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
    drive.images[3, 2] = 0
    assert relative(drive.roll_out(absent)[3][1], before[3][1].numpy()) > 1e-3


def test_the_history_counts_and_is_shifted_as_asked(tiny: uniscene.UniScene) -> None:
    published, mended = Drive(tiny), Drive(tiny, mended_shift=1)
    shifts = [drive.given(1)["shift"] for drive in (published, mended)]
    np.testing.assert_array_equal(shifts[0][0], shifts[0][1])
    assert not shifts[1][1].any() and shifts[1][0].any()
    a, b = published.roll_out(), mended.roll_out()
    torch.testing.assert_close(a[0][1], b[0][1], rtol=0, atol=0)  # nothing to shift yet
    assert relative(a[1][1], b[1][1].numpy()) > 1e-3


@pytest.fixture(scope="module")
def built(tiny: uniscene.UniScene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Drive, Path]:
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    folder.mkdir()
    drive = Drive(tiny)
    step = drive.step
    write_graph(
        folder / "model.onnx", step, step.frame_inputs(), step.memory_shapes(), step.outputs
    )
    from dataclasses import replace

    spec = replace(drive.spec(), model_sha256=sha256_of(folder / "model.onnx"))
    spec.save(folder / "engine.yaml")
    return drive, folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_engine_computes_what_pytorch_does(built: tuple[Drive, Path], runtime: str) -> None:
    """Four frames on its own memory. No threshold is left in the graph that could flip: masks and
    rounding are in the host's tables."""
    drive, folder = built
    engine = occupancy_engine.load_occupancy(folder, drive.rig, runtime, threads=1)
    wanted = drive.roll_out({2: (1, 0, 1)})
    for run in range(2):
        for index, pose in enumerate(drive.poses):
            present = np.array([True, index != 2, True])
            frame = Frame(7 + index, drive.images[index], present, np.full(3, 7))
            got = engine.step(frame, drive.calibration, pose, drive.twist)
            unknown = np.isnan(got.score)
            assert 0.05 < unknown.mean() < 0.95
            truth = wanted[index][0].numpy()
            assert got.stamp_ns == 7 + index and got.score.shape == truth.shape
            assert relative(torch.from_numpy(got.score[~unknown]), truth[~unknown]) < 1e-3
            if index == 1:
                seen_by_all = unknown
        assert (
            relative(torch.from_numpy(engine._runtime.memory("bev")), wanted[3][1].numpy()) < 1e-3
        )
        assert engine.forgotten == 0
        engine.reset()
        assert run == 1 or not engine._runtime.memory("bev").any()
    assert not np.isnan(got.score[~seen_by_all]).any(), "a camera that is back is looked with again"
    engine.close()


def test_where_the_voxels_lie(built: tuple[Drive, Path]) -> None:
    """A voxel lies where a labelled point of the training would have been, put to base_link; and it
    is unknown where no camera sees it, e.g. behind cameras that look ahead."""
    drive, _ = built
    spec = drive.spec()
    size, origin = occupancy_engine.voxels_of(spec)
    shape = spec.extra_outputs["occupancy"]
    rule = labels.LabelRule(shape=shape)
    np.testing.assert_allclose(size, rule.voxel_size)
    in_base = np.array([7.3, -4.2, 0.9])
    x, y, z = in_base - LIDAR
    index = np.argwhere(labels.voxelised(np.array([[-y, x, z]]), rule))[0]
    assert (origin + index * size <= in_base).all() and (
        in_base < origin + (index + 1) * size
    ).all()
    score = np.where(np.arange(np.prod(shape)).reshape(shape) % 7 == 0, 0.9, np.nan)
    occupancy = Occupancy(0, score.astype(np.float32), size, origin)
    centres, scores = occupancy.occupied()
    assert len(centres) == np.isfinite(score[1:-1, 1:-1, 1:-1]).sum() and (scores > 0.5).all()
    again = np.floor((centres - origin) / size).astype(int)
    assert np.isfinite(score[tuple(again.T)]).all() and (again > 0).all()
    assert (again < np.subtract(shape, 1)).all()

    seen = occupancy_engine.seen_voxels(drive.calibration, shape, size, origin)
    centres = (np.indices(shape).reshape(3, -1).T + 0.5) * size + origin
    for camera, T in enumerate(drive.calibration.T_base_camera):
        ahead = (centres - T[:3, 3]) @ T[:3, 2]
        shown = seen[camera].reshape(-1)
        assert 0.02 < shown.mean() < 0.5 and (ahead[shown] > 0).all()


def test_what_cannot_be_is_said(built: tuple[Drive, Path], tiny: uniscene.UniScene) -> None:
    drive, folder = built
    with pytest.raises(EngineError, match="uniscene gives occupancy and no depth"):
        engines.load(folder)
    assert "its occupancy means nothing" in engines.describe(folder)
    assert "trained with 6 cameras and runs with 3" in engines.describe(folder)
    engine = occupancy_engine.load_occupancy(folder)
    frame = Frame(0, drive.images[0], np.ones(3, bool), np.zeros(3, np.int64))
    with pytest.raises(EngineError, match="T_map_base has a number that is not finite"):
        engine.step(frame, drive.calibration, np.full((4, 4), np.nan), drive.twist)
    with pytest.raises(EngineError, match=r"velocity has shape \[3\]: expected \[6\]"):
        engine.step(frame, drive.calibration, drive.poses[0], np.zeros(3))
    wide = load_rig(rigs() / "nuscenes_like.yaml")
    wider = make_calibration(type(wide)("others", wide.cameras[3:]), (180, 320), SIZE)
    with pytest.raises(EngineError, match=r"cells in a camera's view .* export it again"):
        engine.use(wider)
    for own, said in (
        ({"mended_shift": 2}, "mended_shift is 2"),
        ({"cells_in_view": -1}, "cells_in_view is -1"),
        ({"lidar": 1}, "has no option 'lidar'"),
    ):
        with pytest.raises(EngineError, match=said):
            checkpoint.make_step(tiny, "uniscene", drive.options, own)
    with pytest.raises(EngineError, match="multiples of 32 pixels"):
        checkpoint.make_step(tiny, "uniscene", StepOptions(3, SIZE, (60, 96)), {})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_memory_that_is_not_finite_is_forgotten(built: tuple[Drive, Path], runtime: str) -> None:
    drive, folder = built
    engine = occupancy_engine.load_occupancy(folder, runtime=runtime, threads=1)
    frame = Frame(0, drive.images[0], np.ones(3, bool), np.zeros(3, np.int64))
    engine.step(frame, drive.calibration, drive.poses[0], drive.twist)
    broken = engine._runtime.memory("bev").copy()
    broken[:] = np.nan
    engine._runtime.remember({"bev": broken})
    got = engine.step(frame, drive.calibration, drive.poses[0], drive.twist)
    assert np.isnan(got.score).all() and engine.forgotten == 1
    got = engine.step(frame, drive.calibration, drive.poses[0], drive.twist)
    assert np.isfinite(got.score).any() and engine.forgotten == 1


def test_tensorrt_takes_every_operator(built: tuple[Drive, Path]) -> None:
    model = onnx.load(str(built[1] / "model.onnx"), load_external_data=False)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["GridSample"] > 10
    assert not {"Scatter", "ScatterElements", "ScatterND", "Loop", "NonZero"} & operators.keys()
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed here")
    from recon4d_ros.export.tensorrt_compiler import Parsed

    assert Parsed("tensorrt-rtx", built[1] / "model.onnx").network.num_layers > 100


@pytest.mark.full
def test_export_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recon4d_ros.cli import main

    small = TINY.replace("depth=50", "depth=18,width=64,geometry=mended,reach=25.6")
    for kind, sizes in zip(uniscene.KINDS, (TINY, small), strict=True):
        given = f"stand-in:kind={kind},{sizes},decoders=2,queries=30"
        arguments = ["--network", "uniscene", "--checkpoint", given, "--size", "64x96"]
        out = tmp_path / kind
        rig = str(rigs() / "nuscenes_like.yaml")
        assert main(["export", "--rig", rig, "--out", str(out), *arguments]) == 0
        assert f"its {kind} means nothing" in capsys.readouterr().out
        spec = engines.load_spec(out)
        assert spec.config == kind and set(spec.parity) == {"openvino", "onnxruntime"}
        assert spec.options["grid_frame"] == "base_link" and spec.options["high"][0] in (51.2, 25.6)
        assert all(report["worst"] < 1e-3 for report in spec.parity.values())
    engine = occupancy_engine.load_occupancy(tmp_path / "occupancy", load_rig(Path(rig)))
    engine.close()
    with pytest.raises(EngineError, match=r"uniscene \(detection\) gives no occupancy"):
        occupancy_engine.load_occupancy(tmp_path / "detection")


# --- labels


@pytest.fixture(scope="module")
def drive_of_sweeps() -> tuple[dict[str, np.ndarray], list[np.ndarray], np.ndarray]:
    arrays = outputs("uniscene_labels")
    count = sum(name.endswith("/points") for name in arrays)

    def pose(name: str) -> np.ndarray:
        wxyz = arrays[f"{name}_rotation"]
        return se3_from_quaternion(arrays[f"{name}_translation"], wxyz[[1, 2, 3, 0]])

    poses = np.stack([pose(f"sweep{i}/ego2global") @ pose("lidar2ego") for i in range(count)])
    return arrays, [arrays[f"sweep{i}/points"] for i in range(count)], poses


@pytest.mark.parametrize("key", [3, 0])
def test_the_authors_labels(drive_of_sweeps: tuple, key: int) -> None:
    arrays, sweeps, poses = drive_of_sweeps
    fused = labels.accumulated_points(sweeps, poses, arrays["key_sweeps"], key)
    assert len(fused) == arrays[f"key{key}/fused_count"]
    np.testing.assert_allclose(fused.sum(0), arrays[f"key{key}/fused_sum"], atol=0.05)
    ours = labels.occupancy_labels(sweeps, poses, arrays["key_sweeps"], key) > 0
    theirs = arrays[f"key{key}/semantics"] > 0
    assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.998


def test_labels_of_nothing_and_beyond() -> None:
    nothing = labels.voxelised(labels.thinned(np.zeros((0, 3))))
    assert nothing.shape == (200, 200, 16) and not nothing.any()
    far = labels.voxelised(np.array([[-500.0, 500.0, 50.0], [500.0, -500.0, -50.0]]))
    assert [list(index) for index in np.argwhere(far)] == [[0, 0, 0], [199, 199, 15]]
    own = np.array([[0.5, 1.8, 0], [0.5, 2.1, 0], [1.2, 0, 0]])
    np.testing.assert_array_equal(labels.without_ego_vehicle(own), own[1:])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_thinning_leaves_a_mean_for_every_cell(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-1, 1, (200, 3))
    few = labels.thinned(points)
    cells = {tuple(c) for c in np.floor((points - points.min(0) + 0.1) / 0.2).astype(int)}
    assert len(few) == len(cells)
    assert {tuple(c) for c in np.floor((few - points.min(0) + 0.1) / 0.2).astype(int)} == cells


def test_the_golden_files_are_of_this_configuration(golden: dict[str, np.ndarray]) -> None:
    """What the tests above take for granted of it."""
    config = json.loads(str(golden["config"]))
    assert config["rotate_center"] == [25, 25] and config["bev"] == [50, 50]
    assert config["pc"] == [*uniscene.Configuration().grid.low, *uniscene.Configuration().grid.high]
