"""int8 by explicit quantization: from a bag to an engine that runs on the CPU's runtimes, with a
network of a few layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import Tensor, nn  # noqa: E402

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.egomotion import EgomotionParameters  # noqa: E402
from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.export import learned, quantize  # noqa: E402
from recon4d_ros.export.parity import check_parity, difference  # noqa: E402
from recon4d_ros.networks import step as steps  # noqa: E402
from recon4d_ros.networks.working_image import as_bytes, working_images  # noqa: E402

CAMERAS, SIZE, WORKING = 2, (47, 156), (32, 96)  # the small bag's stereo pair, reduced by 8
GROWTH = 0.5  # how much the memory of TinyStep grows a step


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.mixer = nn.Linear(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def quantizable(self) -> tuple[str, ...]:
        return "encoder", "mixer"

    def forward(self, image: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(image)
        mixed = self.mixer((features + before).permute(0, 2, 3, 1))
        return features + before, self.head(mixed.permute(0, 3, 1, 2))[:, 0]


class TinyStep(nn.Module):
    """Its memory grows with every step, it is read by a product that becomes int8, and by geometry
    that must not."""

    extra_outputs = ()

    def __init__(self, network: TinyNet) -> None:
        super().__init__()
        self.network = network
        self.options = steps.StepOptions(CAMERAS, SIZE, WORKING)

    def frame_inputs(self) -> steps.Signature:
        every = steps.frame_inputs(self.options)
        return {name: every[name] for name in ("images", "present", "grid", "pose")}

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"sum": (CAMERAS, 16, *WORKING), "travelled": (CAMERAS, 3)}

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        grid: Tensor,
        pose: Tensor,
        total: Tensor,
        travelled: Tensor,
    ) -> tuple[Tensor, ...]:
        x, _ = working_images(images, grid)
        new, raw = self.network(x / 255 - 0.5, total)
        where = pose[:, :3, 3] + travelled
        depth = raw.exp() + 5 + where.norm(dim=1)[:, None, None] * present[:, None, None]
        return depth, 0.1 * depth, new.mean(1).sigmoid(), as_bytes(x), new + GROWTH, where


def tiny() -> tuple[TinyNet, TinyStep]:
    torch.manual_seed(0)
    network = TinyNet()
    return network, TinyStep(network).eval()


def export(out: Path, bag: Path, *more: str) -> int:
    command = [
        "export",
        "--network",
        "dymultidepth",
        "--checkpoint",
        "stand-in",
        "--rig",
        str(bag),
        "--size",
        "32x96",
        "--out",
        str(out),
    ]
    return main([*command, "--precision", "int8", "--calibration", str(bag), *more])


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, small_bag) -> tuple[Path, dict[str, list[dict[str, np.ndarray]]]]:
    """The engine, and what its float32 graph was given in the steps to calibrate on and in those
    held out."""
    folder, kept = tmp_path_factory.mktemp("engines") / "tiny", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "make", lambda a, own: (*tiny(), "stand-in"))
        original = quantize.roll_out

        def roll_out(*arguments):
            calibrated, held_out = original(*arguments)
            kept.update(
                calibrated=[dict(np.load(path)) for path in calibrated],
                held_out=[dict(np.load(path)) for path in held_out],
            )
            return calibrated, held_out

        patch.setattr(quantize, "roll_out", roll_out)
        # images of 96 pixels hold no pose: the drive's own
        patch.setattr(
            quantize.MotionTopics, "of", lambda *_: quantize.MotionTopics("/ground_truth/odom")
        )
        trust = EgomotionParameters(odometry="trust")
        patch.setattr(quantize, "EgomotionParameters", lambda: trust)
        assert export(folder, small_bag) == 0
    return folder, kept


@pytest.mark.full
def test_both_cpu_runtimes_take_it_and_stay_near_pytorch(quantized, capsys) -> None:
    """Not equal: then nothing would have been quantized. The comparison is on frames that it was
    not calibrated on, with real memory."""
    spec = engines.load_spec(quantized[0])
    assert spec.precision == "int8" and spec.options["int8_products"] == 3
    for runtime in ("openvino", "onnxruntime"):
        outputs = spec.parity[runtime]["outputs"]
        assert set(outputs) == set(spec.outputs)
        assert 1e-5 < outputs["depth"]["fed"] < 0.02 and 1e-4 < outputs["new_sum"]["fed"] < 0.02
        assert (
            outputs["depth"]["typical"] < 0.02
            and outputs["new_travelled"]["fed"] < 1e-6
            and outputs["color"]["fed"] == 0.0
        )
    assert sorted(path.name for path in quantized[0].iterdir()) == ["engine.yaml", "model.onnx"]
    assert main(["info", str(quantized[0])]) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.full
def test_only_the_named_products_read_quantized_values(quantized) -> None:
    """Weights are int8 in the file, per output channel; zero points are 0; nobody but the products
    reads what was rounded."""
    graph = onnx.load(quantized[0] / "model.onnx").graph
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    rounded = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in graph.node if node.input and node.input[0] in rounded]
    assert len(products) == 3
    for node in products:
        assert node.name.startswith(("network.encoder.", "network.mixer/")) and node.op_type in (
            "Conv",
            "MatMul",
        )
        weights = rounded[node.input[1]]
        assert values[weights.input[0]].dtype == np.int8 and values[weights.input[1]].shape == (
            16 if node.op_type == "Conv" else 8,
        )
        assert len(node.input) == 2 or values[node.input[2]].dtype == np.float32
    readers = [node.name for node in graph.node for name in node.input if name in rounded]
    assert len(readers) == 2 * len(products) and set(readers) == {node.name for node in products}
    assert not {value.name for value in graph.output} & rounded.keys()
    zeros = [
        values[node.input[2]]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert zeros and not any(zero.any() for zero in zeros)
    head = next(node for node in graph.node if node.name.startswith("network.head/"))
    assert values[head.input[1]].dtype == np.float32


@pytest.mark.full
def test_the_memory_is_carried_through_the_calibration(quantized) -> None:
    """Every recorded step starts with what the step before left; the range of a tensor that is fed
    by the memory covers all of it."""
    folder, kept = quantized
    recorded = [*kept["calibrated"], *kept["held_out"]]
    assert len(kept["calibrated"]) == 5 and len(kept["held_out"]) == 3
    assert not recorded[0]["sum"].any() and not recorded[0]["travelled"].any()
    _, step = tiny()
    for before, after in itertools.pairwise(recorded):
        inputs = [
            torch.from_numpy(before[name]) for name in (*step.frame_inputs(), *step.memory_shapes())
        ]
        with torch.inference_mode():
            *_, total, travelled = step(*inputs)
        np.testing.assert_allclose(after["sum"], total.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(after["travelled"], travelled.numpy(), rtol=1e-4, atol=1e-4)
    assert (
        recorded[-1]["pose"][0, 0, 3] - recorded[0]["pose"][0, 0, 3] > 3
    )  # metres: the car drives
    graph = onnx.load(folder / "model.onnx").graph
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    mixer = next(
        node
        for node in graph.node
        if node.name.startswith("network.mixer/") and node.op_type == "MatMul"
    )
    dequantize = next(node for node in graph.node if node.output[0] == mixer.input[0])
    assert (
        127 * float(values[dequantize.input[1]]) >= 4 * GROWTH
    )  # of the fifth step's memory; an empty one gives far less


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--calibration", "/nowhere"], "/nowhere"),
        (["--calibration", ""], "precision int8 takes --calibration BAG"),
        (["--precision", "fp32"], "--calibration is for precision int8"),
        (["--cameras", "1"], "its rig of 2 camera(s) is not the engine's"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_read(
    small_bag, tmp_path, capsys, monkeypatch, more, sentence
) -> None:
    monkeypatch.setattr(learned, "make", lambda a, own: pytest.fail("the network was read first"))
    assert export(tmp_path / "engine", small_bag, *more) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_bag_that_is_too_short_is_refused(small_bag, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(quantize, "LEAST", 9)
    assert export(tmp_path / "engine", small_bag) == 2
    assert "8 frame set(s) with all cameras: expected 9 at least" in capsys.readouterr().err


def test_a_network_that_does_not_name_its_modules_is_refused(
    small_bag, tmp_path, capsys, monkeypatch
) -> None:
    network, step = tiny()
    monkeypatch.setattr(TinyNet, "quantizable", lambda self: ("decoder",))
    monkeypatch.setattr(learned, "make", lambda a, own: (network, step, "stand-in"))
    assert export(tmp_path / "engine", small_bag) == 2
    assert "has no product with weights in network.decoder" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


@pytest.mark.full
def test_nonsense_is_refused_and_a_few_values_far_off_are_not(quantized) -> None:
    """Depths that have nothing to do with the truth, though of its range, are off by more than
    half; depths with an error of a tenth, of which some are at infinity instead, are not."""
    spec = engines.load_spec(quantized[0])
    rng = np.random.default_rng(1)
    truth = 5 + rng.gamma(2, 20, (1, 64, 64))

    def held_against(got: np.ndarray) -> None:
        check_parity(
            {
                "openvino": {
                    "outputs": {"depth": {"fed": 0.0} | difference("depth", got, truth, 64)}
                }
            },
            spec,
        )

    noisy = truth * (1 + 0.1 * rng.standard_normal(truth.shape))
    noisy[:, :2] = 1e5
    held_against(noisy)
    for nonsense in (
        rng.permutation(truth.ravel()).reshape(truth.shape),
        truth * 2,
        np.full_like(truth, np.nan),
    ):
        with pytest.raises(EngineError, match="output depth is off by"):
            held_against(nonsense)


def test_every_learned_network_names_modules_that_it_has() -> None:
    from recon4d_ros.networks import driv3r, dymultidepth, point3r

    with torch.device("meta"):
        networks = (
            point3r.Point3R(),
            driv3r.Driv3R(),
            dymultidepth.DyMultiDepth(),
            dymultidepth.DyMultiDepth(dymultidepth.Configuration("efficientnetb5")),
        )
    for network in networks:
        modules = dict(network.named_modules())
        for name in network.quantizable():
            weights = [
                module
                for module in modules[name].modules()
                if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
            ]
            assert weights, name


def test_a_convolution_of_a_concatenation_stays_in_float32() -> None:
    """OpenVINO 2026.4.1 computes something else for it in int8 (docs/export.md)."""
    helper = onnx.helper
    nodes = [helper.make_node("Concat", ["a", "b"], ["ab"], axis=1)]
    nodes += [
        helper.make_node(kind, [source, "w"], [f"{kind}{source}"], name=f"net.{kind}/{source}")
        for kind in ("Conv", "ConvTranspose", "MatMul")
        for source in ("a", "ab")
    ]
    graph = helper.make_graph(
        nodes, "g", [], [], [onnx.numpy_helper.from_array(np.zeros((2, 2, 1, 1), np.float32), "w")]
    )
    assert quantize.products_of(graph, ["net"]) == [
        "net.Conv/a",
        "net.ConvTranspose/a",
        "net.ConvTranspose/ab",
        "net.MatMul/a",
    ]
    assert quantize.products_of(graph, ["net.Conv"]) == ["net.Conv/a"]
