"""Dynamic-multiframe-depth against the authors' outputs (test/golden), and its step against the
network itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_files import golden_weights, manifest, outputs, relative
from graph_parity import check_graph

torch = pytest.importorskip("torch")

from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.networks import checkpoint, dymultidepth, stand_in  # noqa: E402
from recon4d_ros.networks.dymultidepth import DyMultiDepth  # noqa: E402
from recon4d_ros.networks.dymultidepth_step import DyMultiDepthStep, relative_poses  # noqa: E402
from recon4d_ros.networks.photometric import cost_volume  # noqa: E402
from recon4d_ros.networks.step import OUTPUTS, StepOptions  # noqa: E402

SIZE = (32, 64)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> DyMultiDepth:
    """The golden weights, by way of a checkpoint file such as the authors' trainer writes."""
    path = tmp_path_factory.mktemp("checkpoint") / "model_best.pth"
    state = {f"module.{name}": value for name, value in golden_weights("dymultidepth").items()}
    torch.save(
        {"arch": "DataParallel", "epoch": 1, "state_dict": state, "config": {"name": "train"}}, path
    )
    description = checkpoint.identify(path)
    assert description.problems == () and description.configuration == dymultidepth.Configuration(
        "resnet18", 2
    )
    network = checkpoint.load(path, "dymultidepth")
    assert isinstance(network, DyMultiDepth)
    return network


def test_the_authors_outputs(published: DyMultiDepth) -> None:
    golden = {name: torch.from_numpy(value) for name, value in outputs("dymultidepth").items()}
    # a second camera in the batch changes nothing for the first
    images = torch.stack([golden["keyframe"], golden["frames"][0]])
    frames = torch.stack([golden["frames"], golden["frames"].flip(0)])
    poses = relative_poses(torch.stack([golden["poses"]] * 2), torch.eye(4).expand(2, 4, 4))
    with torch.inference_mode():
        p = published(
            images, frames, golden["intrinsics"][:3, :3].expand(2, 3, 3), poses, torch.ones(2, 2)
        )
    found = {
        "cost_volume": p.cost_volume[0, :, ::4, ::4],
        "fused_volume_mean": p.fused[0].mean(0),
        "inverse_depth": p.inverse[0],
        "inverse_depth_mono": p.inverse_mono[0],
    }
    errors = {name: relative(value, golden[name].numpy()) for name, value in found.items()}
    assert max(errors.values()) < 1e-3, errors
    assert errors["cost_volume"] < 1e-4, errors


def test_parameter_names_and_shapes() -> None:
    with torch.device("meta"):
        small, large = (
            dymultidepth.build(dymultidepth.Configuration(name))
            for name in ("resnet18", "efficientnetb5")
        )
        wide = dymultidepth.build(dymultidepth.Configuration("resnet18", 3))
    assert {name: tuple(value.shape) for name, value in small.state_dict().items()} == manifest(
        "dymultidepth"
    )
    shapes = {name: tuple(value.shape) for name, value in large.state_dict().items()}
    # the authors' model has 1,054 entries (counted by running it); the ends of its encoder
    assert len(shapes) == 1054 and sum(np.prod(shape) for shape in shapes.values()) > 28e6
    assert shapes["_feature_extractor.original_model.blocks.6.2.conv_dw.weight"] == (3072, 1, 3, 3)
    assert shapes["_feature_extractor.original_model.blocks.2.0.se.conv_reduce.weight"] == (
        10,
        240,
        1,
        1,
    )
    assert shapes["mono_module.dec.3.conv2d_t.weight"] == (152, 48, 4, 4)
    for network in (small, large, wide):
        found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert dymultidepth.configuration_of(found, None) == network.configuration


def plain_cost_volume(image: np.ndarray, frame: np.ndarray, shift: float) -> np.ndarray:
    """[h, w] (1 - SSIM) / 2 averaged as in the paper, between an image and a frame whose pixels lie
    `shift` columns further right."""
    h, w = image.shape[1:]

    def box(x: np.ndarray, mode: str) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode=mode)  # type: ignore[call-overload]
        return sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9

    columns = (np.arange(w) + shift) * w / (w - 1) - 0.5
    rows = np.arange(h) * h / (h - 1) - 0.5

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        inside = ((y >= 0) & (y < h))[:, None] & ((x >= 0) & (x < w))[None]
        return frame[:, y.clip(0, h - 1)][:, :, x.clip(0, w - 1)] * inside

    x0, y0 = np.floor(columns).astype(int), np.floor(rows).astype(int)
    fx, fy = columns - x0, (rows - y0)[:, None]
    there = (at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx) * (1 - fy) + (
        at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx
    ) * fy
    a, b = there + 0.5, image + 0.5
    ma, mb = box(a, "reflect"), box(b, "reflect")
    va, vb, vab = (
        box(a * a, "reflect") - ma**2,
        box(b * b, "reflect") - mb**2,
        box(a * b, "reflect") - ma * mb,
    )
    ssim = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    mixed = np.tensordot(np.array([5, 16, 11]) / 32, ((1 - ssim) / 2).clip(0, 1), 1)
    return box(mixed[None], "constant")[0]


def test_cost_volume_written_plainly() -> None:
    rng = np.random.default_rng(3)
    h, w, f, b = 20, 30, 20.0, 0.4
    image, frame = rng.uniform(-0.5, 0.5, (2, 3, h, w))
    depths = torch.tensor([8.0, 4.0, 2.0, 1.0])
    k = torch.tensor([[[f, 0.0, 14.0], [0.0, f, 9.0], [0.0, 0.0, 1.0]]])
    there = torch.eye(4)[None, None].repeat(1, 2, 1, 1)
    there[..., 0, 3] = b
    frames = torch.from_numpy(np.stack([frame, frame])[None]).float()
    valid = torch.tensor([[1.0, 0.0]])
    found = cost_volume(torch.from_numpy(image[None]).float(), frames, k, there, valid, depths)
    cost = np.stack([plain_cost_volume(image, frame, f * b / float(depth)) for depth in depths])
    inside = np.zeros((h, w), bool)
    inside[2:-2, 2:-2] = True
    last = (np.arange(w) + f * b) * w / (w - 1) - 0.5  # the nearest depth moves most
    inside &= (last < w - 2)[None]
    np.testing.assert_allclose(found[0].numpy(), np.where(inside, 1 - 2 * cost, 0), atol=2e-4)
    assert inside.sum() > 100
    for at_once in (1, 3):
        again = cost_volume(
            torch.from_numpy(image[None]).float(), frames, k, there, valid, depths, at_once
        )
        torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-5)
    nothing = cost_volume(
        torch.from_numpy(image[None]).float(), frames * 0, k, there * 0, valid * 0, depths
    )
    assert not nothing.any()


# ------------------------------------------------------------------------------------------------
# the step


def step_of(
    cameras: int, keyframe_motion: float = 0.25, backbone: str = "resnet18"
) -> DyMultiDepthStep:
    network = stand_in.fill(dymultidepth.build(dymultidepth.Configuration(backbone)))
    options = StepOptions(cameras, SIZE, SIZE)
    made = checkpoint.make_step(
        network, "dymultidepth", options, {"keyframe_motion": keyframe_motion}
    )
    assert isinstance(made, DyMultiDepthStep)
    return made


def frame(step: DyMultiDepthStep, seed: int, travelled: float) -> list[torch.Tensor]:
    n, (h, w) = step.options.cameras, SIZE
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator)
    v, u = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    k = torch.tensor([[0.7 * w, 0.0, w / 2], [0.0, 0.7 * w, h / 2], [0.0, 0.0, 1.0]]).expand(
        n, 3, 3
    )
    pose = torch.eye(4).repeat(n, 1, 1)
    pose[:, 2, 3] = travelled
    return [
        images,
        torch.ones(n),
        torch.stack([u, v], -1).expand(n, h, w, 2),
        k,
        pose,
        torch.zeros(3),
    ]


def empty(step: DyMultiDepthStep) -> list[torch.Tensor]:
    return [torch.zeros(shape) for shape in step.memory_shapes().values()]


@torch.inference_mode()
def test_step_is_the_network_on_the_last_two_images() -> None:
    step = step_of(2)
    memory, seen = empty(step), []
    for i in range(4):
        now = frame(step, i, 0.8 * i)
        depth, sigma, confidence, color, *memory = step(*now, *memory)
        assert torch.equal(color, now[0])
        image = now[0].permute(0, 3, 1, 2) / 255 - 0.5
        seen.insert(0, (image, now[4]))
        past = (seen[1:3] + [(torch.zeros_like(image), torch.eye(4).expand(2, 4, 4))] * 2)[:2]
        valid = torch.tensor([[float(i > 0), float(i > 1)]]).expand(2, 2)
        poses = relative_poses(torch.stack([p for _, p in past], 1), now[4])
        p = step.network(image, torch.stack([x for x, _ in past], 1), now[3], poses, valid)
        torch.testing.assert_close(depth, 1 / p.inverse, rtol=1e-3, atol=1e-3)
        assert bool(p.cost_volume.any()) == (i > 0)
        assert ((depth >= 1 / 0.33 - 1e-3) & (depth <= 400.1)).all() and (
            sigma >= 0.049 * depth
        ).all()
        assert ((confidence >= 0) & (confidence <= (1 if i else 0.5))).all()


@torch.inference_mode()
def test_an_image_enters_only_when_the_camera_has_moved() -> None:
    step = step_of(1)
    memory = empty(step)
    kept = []
    for i, travelled in enumerate((0.0, 0.1, 0.3, 0.35, 0.6)):
        *_, frames, poses, valid = step(*frame(step, i, travelled), *memory)
        memory = [frames, poses, valid]
        kept.append((poses[0, :, 2, 3] * valid[0]).tolist())
    assert kept == [
        pytest.approx(x, abs=1e-6) for x in ([0, 0], [0, 0], [0.3, 0], [0.3, 0], [0.6, 0.3])
    ]


@torch.inference_mode()
def test_the_anchor_may_move() -> None:
    step = step_of(1)
    *_, frames, poses, valid = step(*frame(step, 0, 5.0), *empty(step))
    now = frame(step, 1, 6.0)
    plain = step(*now, frames, poses, valid)
    now[4] = now[4] - torch.nn.functional.pad(torch.tensor([[[0.0], [0.0], [4.0]]]), (3, 0, 0, 1))
    now[5] = torch.tensor([0.0, 0.0, 4.0])
    shifted = step(*now, frames, poses, valid)
    torch.testing.assert_close(shifted[0], plain[0], rtol=1e-4, atol=1e-4)
    assert shifted[5][0, :, 2, 3].tolist() == pytest.approx([2.0, 1.0])


@torch.inference_mode()
def test_an_absent_camera_is_none_and_changes_nothing() -> None:
    step = step_of(2)
    memory = empty(step)
    for i in range(2):
        *_, a, b, c = step(*frame(step, i, 0.5 * i), *memory)
        memory = [a, b, c]
    now = frame(step, 2, 1.0)
    both = step(*now, *memory)
    now[1] = torch.tensor([1.0, 0.0])
    now[0][1] = 0
    one = step(*now, *memory)
    for name, x, y in zip(("depth", "sigma", "confidence"), one, both, strict=False):
        torch.testing.assert_close(x[0], y[0], msg=name)
        assert not x[1].any()
    for before, after in zip(memory, one[4:], strict=True):
        torch.testing.assert_close(after[1], before[1])


@torch.inference_mode()
def test_confidence_says_what_supports_the_depth() -> None:
    step = step_of(1)
    place, count = 10, 32
    inverse = torch.full((1, 2, 4), 0.0025 + place * (0.33 - 0.0025) / (count - 1))
    sharp, blind = torch.zeros(1, count, 2, 4), torch.zeros(1, count, 2, 4)
    sharp[:, place], sharp[:, place + 5] = 0.9, 0.1
    away = sharp.roll(8, 1)

    def judged(volume: torch.Tensor, mono: float) -> tuple[float, float]:
        depth, sigma, confidence = step.judge(
            dymultidepth.Prediction(inverse, inverse * mono, volume, volume)
        )
        torch.testing.assert_close(depth, 1 / inverse)
        return float(confidence.mean()), float((sigma / depth).mean())

    both, match, mono, none, unseen = (
        judged(*x) for x in ((sharp, 1.0), (sharp, 2.0), (away, 1.0), (away, 2.0), (blind, 2.0))
    )
    assert (
        both[0] > 0.95
        and 0.45 < match[0] < 0.55
        and 0.45 < mono[0] < 0.55
        and none[0] < 0.05
        and unseen[0] < 0.05
    )
    assert (
        both[1] == pytest.approx(0.05)
        and match[1] < 0.1 < none[1]
        and unseen[1] == pytest.approx(0.69, abs=0.02)
    )


@pytest.mark.full  # in make test the engine of test_learned_replay.py is compared by its export
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnetb5"])
def test_the_exported_step_computes_the_same(backbone: str, tmp_path: Path) -> None:
    step = step_of(2, backbone=backbone).eval()
    outputs = [*OUTPUTS, *step.extra_outputs, *step.memory_shapes()]
    frames, expected, memory = [], [], empty(step)
    for i in range(3):
        now = frame(step, i, 0.5 * i)
        with torch.inference_mode():
            out = step(*now, *memory)
        memory = list(out[4:])
        frames.append(dict(zip(step.frame_inputs(), now, strict=True)))
        expected.append(dict(zip(outputs, out, strict=True)))
    check_graph(step, frames, expected, tmp_path / "model.onnx")


def test_sizes_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        network = dymultidepth.build(dymultidepth.Configuration())
    with pytest.raises(EngineError, match="multiples of 16"):
        DyMultiDepthStep(network, StepOptions(1, SIZE, (40, 64)))
    with pytest.raises(EngineError, match="keyframe_motion"):
        DyMultiDepthStep(network, StepOptions(1, SIZE, SIZE), -1.0)
    with pytest.raises(EngineError, match="backbone"):
        dymultidepth.Configuration("vgg")
