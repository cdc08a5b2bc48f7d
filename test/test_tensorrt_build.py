"""Every graph goes through a real TensorRT parser and builder: TensorRT for RTX's, which needs no
GPU. To load what it built takes one; what names, shapes and types it will have is asked before.

`make test` parses every graph, and builds one of each kind: a rectified pair, a surround rig, a
block of attention in fp16 and bf16, and a learned network in int8. `make test-full` builds all of
them."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed here: `make tensorrt`"
)
onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch", reason="exporting needs PyTorch (requirements/dev.txt)")

from onnx import TensorProto, helper  # noqa: E402
from test_export_learned import Encoder  # noqa: E402
from tiny_engine import network, tiny_engine  # noqa: E402

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros import paths  # noqa: E402
from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.engine import tensorrt_library  # noqa: E402
from recon4d_ros.engine.any_size import write_fixed  # noqa: E402
from recon4d_ros.engine.base import EngineSpec, load_spec  # noqa: E402
from recon4d_ros.engine.tensorrt_library import Build  # noqa: E402
from recon4d_ros.errors import EngineError, OutputError, ParameterError  # noqa: E402
from recon4d_ros.export import apart, tensorrt, tensorrt_compiler  # noqa: E402
from recon4d_ros.export.tensorrt import GpuOptions  # noqa: E402
from recon4d_ros.export.tensorrt_compiler import Parsed  # noqa: E402

RTX = "tensorrt-rtx"
SHIPPED = sorted(path.name for path in paths.engines().iterdir())
BUILT = ("geometric_stereo", "motion")  # the others in `make test-full`
LEARNED = ("point3r", "driv3r", "dymultidepth")
UINT8 = {"images", "moving", "color", "grey", "grey_before", "covered"}
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

Built = Callable[[Path], Future]


def has_gpu() -> bool:
    with contextlib.suppress(EngineError):
        tensorrt_library.gpu(RTX)
        return True
    return False


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two builds at once: each is a process of its own."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def begin(pool, tmp_path_factory) -> Built:
    """Begins to build an ONNX file, once; gives what will be (Build, size of the engine)."""
    begun: dict[Path, Future] = {}
    folder = tmp_path_factory.mktemp("built")

    def build(model: Path) -> tuple[Build, int]:
        out = folder / f"{model.parent.name}.engine"
        try:
            built = tensorrt.build(model, out, RTX, GpuOptions())
            return built, out.stat().st_size
        finally:
            out.unlink(missing_ok=True)  # hundreds of megabytes

    def begin(model: Path) -> Future:
        if model not in begun:
            begun[model] = pool.submit(build, model)
        return begun[model]

    return begin


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Callable[[str], tuple[EngineSpec, Path]]:
    """Gives specification and model of a shipped engine, of the size it was measured at."""

    def fixed(name: str) -> tuple[EngineSpec, Path]:
        folder, spec = paths.engines() / name, load_spec(paths.engines() / name)
        model = tmp_path_factory.mktemp("fixed") / name / "model.onnx"
        model.parent.mkdir()
        write_fixed(folder / spec.model, spec, model)
        return spec, model

    return fixed


def check_parsed(parsed: Parsed, spec: EngineSpec) -> None:
    assert parsed.network.num_layers > 100
    assert set(parsed.tensors) == {*spec.inputs, *spec.outputs}
    n, (h, w) = spec.cameras, spec.working_size
    shapes = {"images": (n, *spec.input_size, spec.channels), "color": (n, h, w, spec.channels)}
    shapes |= dict.fromkeys(("depth", "sigma", "confidence", "moving"), (n, h, w))
    shapes |= {name: tuple(shape) for name, shape in spec.extra_outputs.items()}
    for name, shape in spec.options["memory"].items():
        shapes[name] = shapes[f"new_{name}"] = tuple(shape)
    for name, (shape, kind) in parsed.tensors.items():
        assert shape == shapes.get(name, shape), name
        assert kind == (np.uint8 if name in UINT8 else np.float32), name


def check_built(built: tuple[Build, int], parsed: Parsed) -> None:
    build, size = built
    assert build.builder == RTX and build.version == tensorrt_library.library(RTX).__version__
    assert build.network_layers >= parsed.network.num_layers
    assert sum(build.layers.values()) > 20 and size > 1e6 * build.weights
    assert 0 < build.scratch < 4096 and build.seconds < 300


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_engine_is_taken_by_the_parser(name, shipped) -> None:
    spec, model = shipped(name)
    check_parsed(Parsed(RTX, model), spec)


@pytest.mark.parametrize(
    "name", [n if n in BUILT else pytest.param(n, marks=pytest.mark.full) for n in SHIPPED]
)
def test_every_shipped_engine_is_built(name, shipped, begin) -> None:
    _, model = shipped(name)
    check_built(begin(model).result(), Parsed(RTX, model))


@pytest.mark.full
@pytest.mark.parametrize("name", LEARNED)
def test_every_published_network_is_taken_by_the_parser(name, learned_engine) -> None:
    folder = learned_engine(name)
    check_parsed(Parsed(RTX, folder / "model.onnx"), load_spec(folder))


@pytest.mark.full
@pytest.mark.parametrize("name", LEARNED)
def test_every_published_network_is_built(name, begin, learned_engine) -> None:
    model = learned_engine(name) / "model.onnx"
    check_built(begin(model).result(), Parsed(RTX, model))


PRECISIONS = ("fp16", "bf16", "int8")


def lowered(model: Path, precision: str) -> None:
    """Writes the ONNX of a published network, tiny, in fp16 or bf16, as recon4d export does."""
    from conftest import LEARNED as CHECKPOINTS

    from recon4d_ros.export import ExportArguments, learned
    from recon4d_ros.export.graph import write_graph
    from recon4d_ros.networks.step import OUTPUTS

    a = ExportArguments(
        *("learned", 1, (32, 64), (32, 64)),
        network="driv3r",
        pointers=60,
        precision=precision,
        checkpoint=CHECKPOINTS["driv3r"],
    )
    net, step, _ = learned.make(a, {})
    learned.lower(net, a)
    outputs = (*OUTPUTS, *step.extra_outputs)
    write_graph(model, step, step.frame_inputs(), step.memory_shapes(), outputs)


def quantized(model: Path, engine: Path) -> None:
    """Writes the ONNX of an engine in int8, its activations' ranges those of one step of noise."""
    from recon4d_ros.export import quantize
    from recon4d_ros.export.reference import inputs_of
    from recon4d_ros.networks import dymultidepth

    spec = load_spec(engine)
    shutil.copy(engine / spec.model, model)
    rng = np.random.default_rng(0)
    memory = {name: rng.random(s, np.float32) for name, s in spec.options["memory"].items()}
    np.savez(model.with_name("step.npz"), **inputs_of(spec, 0), **memory)
    with torch.device("meta"):
        modules = dymultidepth.DyMultiDepth().quantizable()
    inside = [f"network.{name}" for name in modules]
    assert quantize.quantize(model, inside, [model.with_name("step.npz")]) > 10


@pytest.mark.full
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_is_built_in_every_precision_that_is_offered(
    precision, begin, learned_engine, tmp_path
) -> None:
    model = tmp_path / precision / "model.onnx"
    model.parent.mkdir()
    if precision == "int8":
        quantized(model, learned_engine("dymultidepth"))
    else:
        lowered(model, precision)
    future = begin(model)
    kinds = {value.data_type for value in onnx.load(model).graph.initializer}
    assert {
        "fp16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
        "int8": TensorProto.INT8,
    }[precision] in kinds
    build, size = future.result()
    assert build.network_layers > 100 and size > 1e6 * build.weights


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_block_in_less_than_float32_is_built(dtype, tmp_path, begin) -> None:
    """Patches and attention, as every learned network has them."""
    from recon4d_ros.export.graph import write_graph

    encoder = Encoder().eval().to(dtype)
    model = tmp_path / str(dtype) / "model.onnx"
    model.parent.mkdir()
    image, state = (torch.float32, (1, 3, 32, 48)), {"state": (1,)}
    write_graph(model, encoder, {"image": image}, state, ("tokens",))
    build, size = begin(model).result()
    assert build.network_layers > 30 and size > 1e6 * build.weights


def test_products_in_fp8_are_built(tmp_path, begin) -> None:
    """As onnxruntime.quantization writes them from opset 19 on. No CPU multiplies in FP8, so that
    recon4d export does not offer it."""
    fp8 = TensorProto.FLOAT8E4M3FN
    weights = helper.make_tensor("w", fp8, [8, 8], [0.5] * 64)
    one = helper.make_tensor("one", FLOAT, [], [1.0])
    zero = helper.make_tensor("zero", fp8, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    model = tmp_path / "fp8" / "model.onnx"
    save(model, nodes, [("x", FLOAT, [4, 8])], [("y", FLOAT, [4, 8])], [weights, one, zero], 19)
    build, _ = begin(model).result()
    assert build.network_layers >= 4


@pytest.mark.parametrize(
    "mode",
    [pytest.param("pad", marks=pytest.mark.xfail(raises=EngineError, strict=False)), "indices"],
)
def test_the_border_of_what_was_sampled_is_made_by_indices(mode, tmp_path, begin) -> None:
    """The smallest piece of Dynamic-multiframe-depth that TensorRT for RTX 1.7.1.116 cannot build
    (`myl_fusion_heuristics.cpp:1174 ssa_validation`): what GridSample gives is read by a
    convolution, by two operations element by element, and by a Pad, of whatever mode. An XPASS says
    that a later version can; networks/photometric.py may use F.pad then."""
    constants = {
        "half": np.float32(0.5),
        "one": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "rows": np.array([1, *range(8), 6]),
        "columns": np.array([1, *range(16), 14]),
        "weight": np.ones((4, 3, 3, 1), np.float32),
    }
    border = {
        "pad": [helper.make_node("Pad", ["x", "one"], ["wide"], mode="reflect")],
        "indices": [
            helper.make_node("Gather", ["x", "rows"], ["tall"], axis=2),
            helper.make_node("Gather", ["tall", "columns"], ["wide"], axis=3),
        ],
    }[mode]
    nodes = [
        helper.make_node("GridSample", ["image", "grid"], ["x"], align_corners=1, mode="bilinear"),
        helper.make_node("Add", ["x", "half"], ["more"]),
        helper.make_node("Sub", ["more", "half"], ["less"]),
        helper.make_node("Conv", ["x", "weight"], ["convolved"], pads=[1, 0, 1, 0]),
        *border,
    ]
    model = tmp_path / mode / "model.onnx"
    save(
        model,
        nodes,
        [("image", FLOAT, [1, 3, 8, 16]), ("grid", FLOAT, [1, 8, 16, 2])],
        [
            ("less", FLOAT, [1, 3, 8, 16]),
            ("convolved", FLOAT, [1, 4, 8, 16]),
            ("wide", FLOAT, [1, 3, 10, 18]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    begin(model).result()


# --- what goes wrong


def save(
    path: Path, nodes: list, inputs: list, outputs: list, initializers: list = (), opset: int = 18
) -> None:
    path.parent.mkdir(exist_ok=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs], list(initializers)
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


REFUSED = {
    "an operator there is none of": (
        [helper.make_node("Det", ["m"], ["y"], name="geometry/det")],
        [("m", FLOAT, [2, 2])],
        [("y", FLOAT, [])],
        r"does not take model\.onnx: node geometry/det \(Det\): ",
    ),
    "one that is not taken as it is used": (
        [helper.make_node("ScatterElements", ["m", "i", "m"], ["y"], "net/splat", reduction="max")],
        [("m", FLOAT, [4]), ("i", INT64, [4])],
        [("y", FLOAT, [4])],
        r"does not take model\.onnx: node net/splat \(ScatterElements\): Unsupported reduction",
    ),
    "a type that is not taken": (
        [helper.make_node("Add", ["m", "m"], ["y"], name="net/twice")],
        [("m", TensorProto.UINT8, [4])],
        [("y", TensorProto.UINT8, [4])],
        r"does not take model\.onnx: node net/twice \(Add\): .*UInt8\. .*cpp:\d+\)$",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_what_the_parser_refuses_is_named(tmp_path, case) -> None:
    *graph, sentence = case
    save(tmp_path / "model.onnx", *graph)
    with pytest.raises(EngineError, match=f"^TensorRT for RTX [0-9.]+ {sentence}") as refused:
        tensorrt.build(tmp_path / "model.onnx", tmp_path / "model.engine", RTX, GpuOptions())
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_truncated_onnx_is_a_sentence(tmp_path) -> None:
    network(tmp_path / "model.onnx")
    whole = (tmp_path / "model.onnx").read_bytes()
    for data in (whole[: len(whole) // 2], b""):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(
            EngineError, match=r"does not take model\.onnx|cannot build model\.onnx"
        ):
            tensorrt.build(tmp_path / "model.onnx", tmp_path / "model.engine", RTX, GpuOptions())
    with pytest.raises(EngineError, match=r"does not take nothing\.onnx"):
        tensorrt.parse(tmp_path / "nothing.onnx", RTX)


def test_options_that_cannot_be_are_a_sentence(tmp_path, capsys) -> None:
    tiny_engine(tmp_path / "mine")
    for more, sentence in (
        (["--compute-capability", "9.9"], "'9.9' is not one that TensorRT for RTX"),
        (["--compute-capability", "8"], "expected some of 7.5, 8.0, 8.6"),
        (["--hardware-compatible"], "--hardware-compatible is for --runtime tensorrt, not"),
        (["--timing-cache", "x"], "--timing-cache is for --runtime tensorrt, not"),
        (["--workspace", "-1"], "--workspace is -1: expected GiB up to 4096, 0 for all there is"),
        (["--workspace", "nan"], "--workspace is nan: expected GiB"),
    ):
        arguments = ["export", "--from", str(tmp_path / "mine"), "--runtime", RTX, *more]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert sentence in said[-1] and not list(tmp_path.glob("*out*"))
    with pytest.raises(ParameterError, match="--compute-capability is for --runtime tensorrt-rtx"):
        tensorrt._check_options("tensorrt", GpuOptions(targets=("8.6",)))


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch) -> None:
    """Before the build, where it is known, and where the disk fills up meanwhile."""
    network(tmp_path / "model.onnx")
    usage = tensorrt.shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt.shutil, "disk_usage", lambda path: usage(path)._replace(free=10**6))
        with pytest.raises(OutputError, match=r"too little room .* 67 MB, 1 MB are free"):
            tensorrt.build(tmp_path / "model.onnx", tmp_path / "model.engine", RTX, GpuOptions())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"model\.engine: cannot be written: "):
            tensorrt.build(tmp_path / "model.onnx", tmp_path / "model.engine", RTX, GpuOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_ctrl_c_leaves_the_engine_that_was_there(tmp_path) -> None:
    tiny_engine(tmp_path / "mine")
    arguments = ["export", "--from", str(tmp_path / "mine"), "--runtime", RTX]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    long = str(paths.engines() / "geometric_surround1")  # takes seconds
    command = [sys.executable, "-m", "recon4d_ros.cli", "export", "--from", long]
    command += ["--runtime", RTX, "--out", str(out), "--force"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "building model.engine" in line:
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said.strip().splitlines()[-1].endswith("interrupted")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    gone(str(tmp_path))


def gone(words: str) -> None:
    """Within seconds there is no process left with these words on its command line."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        left = [
            process
            for process in psutil.process_iter(["cmdline"])
            if process.pid != os.getpid() and words in " ".join(process.info["cmdline"] or [])
        ]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {left}")


def test_without_a_gpu_the_runtime_says_so_in_one_sentence(tmp_path, capsys) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")
    tiny_engine(tmp_path / "mine")
    arguments = ["export", "--from", str(tmp_path / "mine"), "--runtime", RTX]
    assert main([*arguments, "--compute-capability", "8.6", "--out", str(tmp_path / "out")]) == 0
    spec = load_spec(tmp_path / "out")
    assert spec.build["targets"] == ["8.6"] and RTX not in spec.parity
    with pytest.raises(
        EngineError, match=r"TensorRT for RTX needs an NVIDIA GPU, and none can be used here \(CUDA"
    ):
        engines.start_runtime(tmp_path / "out", spec)
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for part in (
        "for compute capability 8.6, built where there is no GPU",
        "layers of the network",
        "it was not run when it was built",
        "it does not run here: TensorRT for RTX needs an NVIDIA GPU",
    ):
        assert part in said
    assert main(["info", str(tmp_path / "out"), "--layers"]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_with_a_gpu_it_computes_what_its_onnx_does(tmp_path, capsys) -> None:
    if not has_gpu():
        pytest.skip("there is no GPU here")
    tiny_engine(tmp_path / "mine")
    arguments = ["export", "--from", str(tmp_path / "mine"), "--runtime", RTX]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert load_spec(tmp_path / "out").parity[RTX]["worst"] < 1e-6
    assert list((tmp_path / "out").glob("model.*.cache"))
    assert main(["info", str(tmp_path / "out"), "--layers"]) == 0
    assert "layer" in capsys.readouterr().out


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(tmp_path) -> None:
    said: list[str] = []
    keep, kept = tensorrt_compiler._keep, tensorrt_compiler._kept
    keep(tmp_path / "no" / "cache", memoryview(b"timings"), said.append)
    assert kept(tmp_path, said.append) == b""  # a folder
    assert len(said) == 2 and all(
        str(tmp_path) in line and line.startswith("warning: --timing-cache") for line in said
    )
    keep(tmp_path / "cache", memoryview(b"timings"), said.append)
    assert kept(tmp_path / "cache", said.append) == b"timings" and len(said) == 2


def test_progress_counts_the_phases_within_phases() -> None:
    told: list[tuple[str, float]] = []
    trt = tensorrt_library.library(RTX)
    monitor = tensorrt_compiler._progress(trt, lambda *word: told.append(word))
    monitor._told = -1e9
    monitor.phase_start("all", None, 4)
    monitor.step_complete("all", 0)
    monitor.phase_start("part", "all", 2)
    monitor._told = -1e9
    assert monitor.step_complete("part", 0)
    assert told == [("all", 0.0), ("part", 0.25 + 0.5 / 4)]
    monitor.phase_finish("part")
    monitor.phase_finish("all")
    monitor.phase_finish("all")
    assert monitor.step_complete("gone", 3), "it goes on whatever it is told"


def test_the_runtimes_calls_are_the_librarys() -> None:
    """What is only called where there is a GPU has at least the right names."""
    import re

    trt = tensorrt_library.library(RTX)
    source = (Path(engines.__file__).parent / "tensorrt.py").read_text()
    for holder, kind in (
        ("self._engine", trt.ICudaEngine),
        ("self._context", trt.IExecutionContext),
        ("self._config", trt.IRuntimeConfig),
        ("self._cache", trt.IRuntimeCache),
        ("loader", trt.Runtime),
        ("trt", trt),
        ("self._trt", trt),
    ):
        names = set(re.findall(rf"(?<![\w.]){re.escape(holder)}\.(\w+)", source))
        assert names and [name for name in names if not hasattr(kind, name)] == [], holder


# --- processes of their own

SLOW = """
import sys, subprocess, time
from recon4d_ros.export.apart import end_with_parent
end_with_parent()
print("begun", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *sys.argv[1:]])
time.sleep(60)
"""


def test_a_stop_ends_a_process_and_what_it_started(tmp_path, monkeypatch) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop, start = apart.Stop(), time.monotonic()

    def hear(line: str) -> None:
        time.sleep(0.2)  # so that it has started something
        stop()

    with pytest.raises(apart.Stopped):
        apart.run_apart("slow_module", str(tmp_path), hear=hear, stop=stop)
    assert time.monotonic() - start < 30 and stop.asked
    gone(str(tmp_path))
    with pytest.raises(apart.Stopped):
        apart.run_apart("slow_module", stop=stop)


def test_a_process_ends_with_its_parent_however_that_came(tmp_path, monkeypatch) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW.replace("child = ", "0 and "))
    code = (
        "from recon4d_ros.export.apart import run_apart;"
        f"run_apart('slow_module', {str(tmp_path)!r}, hear=lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"begun\n"
    parent.kill()
    parent.wait()
    gone(str(tmp_path))


def test_what_a_process_dies_of_is_said(tmp_path, monkeypatch) -> None:
    (tmp_path / "dying_module.py").write_text(
        "import os, signal, sys; print('a line'); sys.stdout.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL) if len(sys.argv) > 1 else sys.exit('no reason')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = apart.run_apart("dying_module")
    assert (ended.code, ended.last, ended.said) == (1, "a line", "no reason")
    ended = apart.run_apart("dying_module", "hard")
    assert ended.said == "killed by signal 9 (out of memory?)"
