"""A learned network from stand-in weights to an engine that runs: Point3R, tiny. Errors leave one
sentence and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LEARNED
from golden_files import golden_weights, outputs

torch = pytest.importorskip("torch")

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros.cameras.calibration import make_calibration  # noqa: E402
from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.engine.base import STAND_IN  # noqa: E402
from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.networks import checkpoint, point3r  # noqa: E402
from recon4d_ros.networks.attention import EncoderBlock, PatchEmbed  # noqa: E402
from recon4d_ros.networks.point3r_step import Memory, Point3RStep  # noqa: E402
from recon4d_ros.networks.pointer_stream import PointerStream  # noqa: E402
from recon4d_ros.networks.step import StepOptions  # noqa: E402
from recon4d_ros.types import Camera, Frame, Rig  # noqa: E402

SIZE, WORKING, POINTERS = (96, 128), (48, 64), 60


@pytest.fixture(scope="module")
def network() -> point3r.Point3R:
    return checkpoint.obtain(LEARNED["point3r"], "point3r")[0]


def step_of(network, cameras=1, **own) -> Point3RStep:
    return checkpoint.make_step(
        network, "point3r", StepOptions(cameras, SIZE, WORKING, 3, POINTERS), own
    ).eval()


def empty(step) -> Memory:
    return Memory(*(torch.zeros(shape) for shape in step.memory_shapes().values()))


def advance(step, images, memory, present=None, moved=None, unit=None):
    n = step.options.cameras
    present = torch.ones(n) if present is None else torch.tensor(present)
    moved = torch.zeros(n, step.patches, dtype=torch.bool) if moved is None else moved
    with torch.inference_mode():
        return step.advance(images, present, moved, unit, memory)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(8, 3, *WORKING, generator=torch.Generator().manual_seed(4)) * 2 - 1


# --- the step against the stream, which equals the authors' outputs (test_networks_point3r.py)


@pytest.mark.full
def test_the_step_equals_the_authors_outputs() -> None:
    """Every frame of the stream, the number of pointers included, though offers enter one step
    later. (That the stream equals them, and the step the stream, is seen without.)"""
    with torch.device("meta"):
        net = point3r.build(point3r.Configuration(encoder_depth=4, decoder_depth=4))
    net.load_state_dict(golden_weights("point3r_small"), assign=True)
    golden = outputs("point3r_small")
    step = checkpoint.make_step(
        net, "point3r", StepOptions(1, (96, 128), (96, 128), 3, 192), {"fusion_metres": 0}
    ).eval()
    memory = empty(step)
    names = ("pts3d_in_self_view", "conf_self", "camera_pose", "pts3d_in_other_view", "conf")
    for i, image in enumerate(golden["images"]):
        prediction, memory = advance(step, torch.from_numpy(image)[None], memory)
        if i:
            assert int(memory.pointer_valid.sum()) == golden["memory_sizes"][i - 1]
        for name, ours in zip(names, prediction, strict=True):
            theirs = golden[f"{i}/{name}"]
            assert np.linalg.norm(ours[0].numpy() - theirs) < 1e-3 * np.linalg.norm(theirs), (
                f"{i}/{name}"
            )


def test_cameras_that_share_the_memory_follow_the_stream(network, images) -> None:
    """The stream begins a camera that was never seen where the one before it was, at its first step
    only: so do we."""
    stream, step = (
        PointerStream(network, WORKING, cameras=2, capacity=POINTERS),
        step_of(network, 2, fusion_metres=0),
    )
    theirs, ours = stream.begin(), empty(step)
    for pair in images.split(2):
        with torch.inference_mode():
            expected, theirs = stream(pair, theirs)
        got, ours = advance(step, pair, ours)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_what_moves_does_not_enter(network, images) -> None:
    """A step that is told that some patches moved has the memory of a step that was never offered
    them."""
    step = step_of(network, fusion_metres=0)
    moved = torch.zeros(1, step.patches, dtype=torch.bool)
    moved[0, :5] = True
    _, first = advance(step, images[:1], empty(step))
    _, second = advance(step, images[1:2], first, moved=moved)
    assert int(second.pointer_valid.sum()) == step.patches - 5
    kept = second.pointer_position[second.pointer_valid > 0.5]
    torch.testing.assert_close(kept, first.token_position[0, 5:])
    everything = torch.ones(1, step.patches, dtype=torch.bool)
    _, nothing = advance(step, images[1:2], first, moved=everything)
    assert int(nothing.pointer_valid.sum()) == 0


def test_an_absent_camera_does_not_poison(network, images) -> None:
    """What the absent camera's buffer holds is of no effect: on outputs, memory, and the cameras
    after it."""
    step = step_of(network, 2)
    results = []
    for junk in (torch.zeros(1, 3, *WORKING), 1e3 * torch.ones(1, 3, *WORKING)):
        memory = empty(step)
        for index in range(3):
            pair = torch.cat([junk, images[index : index + 1]])
            prediction, memory = advance(step, pair, memory, present=[0.0, 1.0])
        results.append((prediction.points_self[1], *memory))
    for a, b in zip(*results, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    alone = step_of(network, 1)
    memory = empty(alone)
    for index in range(3):
        prediction, memory = advance(alone, images[index : index + 1], memory)
    torch.testing.assert_close(prediction.points_self[0], results[0][0], rtol=1e-4, atol=1e-5)


def test_fusion_is_bounded_in_metres_once_the_scale_is_known(network) -> None:
    step = step_of(network, fusion_metres=0.5)
    assert float(step.fusion(torch.tensor([2.0])).longest) == pytest.approx(0.25)
    assert float(step.fusion(torch.zeros(1)).longest) > 1e20
    assert "metres_per_unit" in step.frame_inputs()
    assert "metres_per_unit" not in step_of(network, fusion_metres=0).frame_inputs()


# --- the engine


def export(*more: str) -> int:
    command = [
        "export",
        "--network",
        "point3r",
        "--checkpoint",
        LEARNED["point3r"],
        "--cameras",
        "1",
        "--size",
        "48x64",
    ]
    return main([*command, "--image-size", "96x128", "--pointers", str(POINTERS), *more])


@pytest.fixture(scope="module")
def built(learned_engine) -> Path:
    return learned_engine("point3r")


def test_every_output_is_compared_and_what_it_is_worth_is_said(built, capsys) -> None:
    spec = engines.load_spec(built)
    assert {"openvino", "onnxruntime"} <= spec.parity.keys() and spec.runtime in spec.parity
    for report in spec.parity.values():
        assert set(report["outputs"]) == set(spec.outputs)
        assert report["worst"] < 1e-3 and report["milliseconds"] > 0 and report["peak_rss_mib"] > 50
    assert spec.checkpoint_sha256 == STAND_IN and "mean nothing" in spec.warning
    assert sorted(path.name for path in built.iterdir()) == ["engine.yaml", "model.onnx"]
    assert main(["info", str(built)]) == 0
    said = capsys.readouterr().out
    assert "mean nothing" in said and "network_position" in said


class Encoder(torch.nn.Module):
    """Patches and one block of attention, [1, 3, h, w] to tokens; and a state, as an engine has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = PatchEmbed(64), EncoderBlock(64, 4)

    def forward(self, image, state):
        return self.block(self.patches(image)).float(), state + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_less_than_float32_is_onnx_that_a_runtime_takes(tmp_path, dtype) -> None:
    """Patches and a block, as every network has them: ONNX has no convolution of bfloat16, and no
    checker lets one pass."""
    from recon4d_ros.engine.openvino import ov
    from recon4d_ros.export.graph import write_graph

    torch.manual_seed(0)
    encoder, image = Encoder().eval(), torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        whole = encoder(image, torch.zeros(1))[0].numpy()
        encoder.to(dtype)
        said = encoder(image, torch.zeros(1))[0].numpy()
    write_graph(
        tmp_path / "m.onnx",
        encoder,
        {"image": (torch.float32, tuple(image.shape))},
        {"state": (1,)},
        ("tokens",),
    )
    model = ov.Core().compile_model(
        str(tmp_path / "m.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    got = model([image.numpy(), np.zeros(1, np.float32)])[0]
    for truth, most in ((whole, 0.02), (said, 0.02)):
        assert 1e-5 < np.linalg.norm(got - truth) / np.linalg.norm(truth) < most


@pytest.mark.full
def test_bf16_is_smaller_and_held_against_float32(built, tmp_path, monkeypatch) -> None:
    from recon4d_ros.export import learned

    monkeypatch.setattr(
        learned, "CPU_RUNTIMES", ("openvino",)
    )  # the other has no bfloat16, and this is long enough
    assert export("--out", str(tmp_path / "bf16"), "--precision", "bf16") == 0
    spec = engines.load_spec(tmp_path / "bf16")
    fed = {name: values["fed"] for name, values in spec.parity["openvino"]["outputs"].items()}
    assert 1e-3 < max(fed.values()) < 0.3 and fed["color"] == 0
    assert fed["new_token_feature"] < 0.03 and fed["depth"] < 0.1
    size = {folder: (folder / "model.onnx").stat().st_size for folder in (built, tmp_path / "bf16")}
    assert size[tmp_path / "bf16"] < 0.96 * size[built]


def make_rig() -> Rig:
    optical = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    return Rig(
        "one",
        (
            Camera(
                "front", 128, 96, np.array([[100.0, 0, 63.5], [0, 100.0, 47.5], [0, 0, 1]]), optical
            ),
        ),
    )


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_it_drives(built, runtime) -> None:
    """No depth before the scale is known; then metric depth with its doubt in sigma; reset forgets;
    a repeat is bit-identical."""
    rig = make_rig()
    engine = engines.load(built, rig, runtime=runtime)
    calibration = make_calibration(rig, SIZE, WORKING)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (6, 1, *SIZE, 3), dtype=np.uint8)
    runs = []
    for _ in range(2):
        for index, images in enumerate(frames):
            pose = rig.T_base_camera.copy()
            pose[:, 0, 3] += 0.7 * index
            frame = Frame(index, images, np.ones(1, bool), np.full(1, index))
            geometry = engine.step(frame, calibration, pose, np.zeros((1, *WORKING), bool))
            if index == 0:
                assert (
                    np.isnan(geometry.depth).all()
                    and not geometry.confidence.any()
                    and engine.scales == (None,)
                )
        runs.append(geometry)
        assert 0 < engine.memory_fill <= 1
        assert len(engine.pointers().position) == 0
        engine.reset()
        assert engine.memory_fill == 0 and engine.scales == (None,)
    np.testing.assert_array_equal(runs[0].depth, runs[1].depth)
    np.testing.assert_array_equal(runs[0].color, runs[1].color)
    engine.close()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--size", "50x64"], "multiples of 16 pixels"),
        (["--pointers", "16", "--size", "96x128"], "16 pointers are too few"),
        (["--precision", "int8"], "precision int8 takes --calibration BAG"),
        (["--precision", "fp4"], "precision 'fp4' is not known"),
        (["--checkpoint", ""], "--checkpoint is missing"),
        (["--checkpoint", "/nowhere.pth"], "no such file"),
        (["--checkpoint", "stand-in:depth=3"], "point3r has no 'depth'"),
        (["--checkpoint", "stand-in:encoder_width=60"], "do not divide"),
        (["--option", "fusion_miles=1"], "has no option 'fusion_miles'"),
        (["--option", "fusion_metres=-1"], "fusion_metres is -1"),
        (["--runtime", "vulkan"], "runtime 'vulkan' is not known"),
        (["--network", "point4r"], "network 'point4r' is not known"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    tmp_path, capsys, more, sentence
) -> None:
    assert export("--out", str(tmp_path / "engine"), *more) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays(built, tmp_path, capsys) -> None:
    (tmp_path / "engine").mkdir()
    assert export("--out", str(tmp_path / "engine")) == 2
    assert "is there already" in capsys.readouterr().err


def test_too_little_memory_is_said_before_it_is_taken(tmp_path, capsys, monkeypatch) -> None:
    from recon4d_ros.export import learned

    monkeypatch.setattr(
        learned.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6})()
    )
    assert export("--out", str(tmp_path / "engine")) == 2
    assert "too little memory" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_stand_in_is_never_chosen_by_itself(built) -> None:
    assert engines.find_engine(make_rig(), built.parent) is None


def test_a_model_file_that_changed_is_not_run(built, tmp_path) -> None:
    import shutil

    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-100])
    with pytest.raises(EngineError, match="truncated or changed"):
        engines.load(copy)


def test_tensorrt_from_an_engine_says_what_is_missing_here(built, tmp_path, capsys) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here: this is about a machine without")
    arguments = ["export", "--from", str(built), "--runtime", "tensorrt"]
    assert main([*arguments, "--out", str(tmp_path / "gpu")]) == 2
    said = capsys.readouterr()
    assert (
        "TensorRT is not installed here" in said.err
        and "the TensorRT engine cannot be built" in said.err
    )
    assert "wrote" not in said.out and not list(tmp_path.iterdir())


def test_comparing_needs_no_pytorch(built) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from recon4d_ros import engine; import"
        " recon4d_ros.export.compare; print('fine')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "fine", done.stderr
