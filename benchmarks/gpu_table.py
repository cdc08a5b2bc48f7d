#!/usr/bin/env python3
"""Each network on a GPU, six cameras: PyTorch as it is, PyTorch as a CUDA graph, compiled ahead of
time (AOTInductor), TensorRT for RTX. Latency, memory, parity, and what crosses to the host.

    python benchmarks/gpu_table.py --out table.json                       all rows
    python benchmarks/gpu_table.py --out table.json --rows 'driv3r/*' '*/eager/*'
    python benchmarks/gpu_table.py --list                                 their names
    python benchmarks/gpu_table.py --out /tmp/t.json --device cpu --small      to see that it runs

A row is a process of its own with a time limit, and is written as soon as it is there: what fails
or hangs is a row that says so. Rows that are in the file already are not measured again (--again
does, those with an error are in any case). Weights are stand-ins: they change no time, and the
outputs mean nothing.

A step here is what the vehicle's is: images and poses from the host, depth, sigma, confidence and
color back, the memory stays on the device. Needs PyTorch, onnx and onnxscript; rows of TensorRT for
RTX also its two wheels (requirements/tensorrt.txt). No ROS, no bags, no network.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.overrides  # noqa: E402

from recon4d_ros.engine import load_spec, start_runtime  # noqa: E402
from recon4d_ros.engine.base import SPEC_FILE, EngineSpec, sha256_of  # noqa: E402
from recon4d_ros.engine.hosted import empty_outputs  # noqa: E402
from recon4d_ros.errors import Recon4dError  # noqa: E402
from recon4d_ros.export import ExportArguments  # noqa: E402
from recon4d_ros.export.parity import difference  # noqa: E402
from recon4d_ros.export.reference import inputs_of  # noqa: E402
from recon4d_ros.networks.step import OUTPUTS  # noqa: E402

CAMERAS = 6
SIZES = {  # of the working image; the geometric network's: as `recon4d export --rig` chooses them
    "geometric": ((450, 800), (180, 320)),
    "dymultidepth": ((256, 512), (256, 512)),
    "driv3r": ((224, 224), (224, 224)),
    "point3r": ((224, 224), (224, 224)),
}
POINTERS = {"geometric": 2048, "dymultidepth": 1024, "driv3r": 1024, "point3r": 2048}
BLOCKS = "encoder_depth=1,encoder_width=64,encoder_heads=2,decoder_depth=4,decoder_width=96,decoder_heads=2"  # noqa: E501
SMALL_SIZES = {
    "geometric": ((128, 256), (64, 128)),
    "dymultidepth": ((32, 64), (32, 64)),
    "driv3r": ((32, 64), (32, 64)),
    "point3r": ((32, 64), (32, 64)),
}
SMALL = {
    "dymultidepth": "stand-in",
    "driv3r": f"stand-in:{BLOCKS},value_depth=1",
    "point3r": f"stand-in:{BLOCKS},pointer_heads=4,pose_slots=8",
}
WARM_UP, STEPS, PROFILED = 10, 100, 8
FRAMES = 12  # different ones, driven to and fro
LIMITS = {"onnx": 600, "build": 600, "aoti": 600}  # seconds; the others: LIMIT
LIMIT = 240
METHODS = ("eager", "graph", "onnx", "build", "rtx", "rtx-parity", "aoti", "aoti-graph")
PRECISIONS = {
    "geometric": ("fp32",),
    "dymultidepth": ("fp32",),
    "driv3r": ("fp32", "bf16"),
    "point3r": ("fp32", "bf16"),
}
# in the order of what they teach for the time they take
ROWS = [
    f"{network}/{method}/{precision}"
    for network in SIZES
    for precision in PRECISIONS[network]
    for method in METHODS
]


class Run(Protocol):
    """One way to run a network: NumPy in, NumPy out, the memory inside."""

    def __call__(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None: ...

    def memory(self, name: str) -> NDArray: ...

    def remember(self, memory: Mapping[str, NDArray]) -> None: ...


# --- what is run


def make(network: str, precision: str, small: bool) -> tuple[torch.nn.Module, EngineSpec]:
    """The network's step, and the specification of its engine."""
    input_size, working = (SMALL_SIZES if small else SIZES)[network]
    pointers = 200 if small else POINTERS[network]
    geometric = network == "geometric"
    a = ExportArguments(
        "surround" if geometric else "learned",
        CAMERAS,
        input_size,
        working,
        network="recon4d_geometric" if geometric else network,
        pointers=pointers,
        precision=precision,
        checkpoint="" if geometric else SMALL[network] if small else "stand-in",
    )
    step: Any
    if geometric:
        from recon4d_ros.export.geometric import geometric_options
        from recon4d_ros.networks import geometric_options as options_of
        from recon4d_ros.networks.geometric import GeometricStep

        chosen = geometric_options(a, {})
        step = GeometricStep(chosen).eval()
        frame, memory = options_of.frame_inputs(chosen), options_of.memory_shapes(chosen)
        extra: tuple[str, ...] = ()
        own: dict[str, Any] = {"stride": chosen.stride}
    else:
        from recon4d_ros.export.learned import lower
        from recon4d_ros.export.learned import make as make_learned

        net, step, _ = make_learned(a, {})
        if precision != "fp32":
            lower(net, a)
        frame, memory = step.frame_inputs(), step.memory_shapes()
        extra = tuple(step.extra_outputs)
        own = {"one_world": getattr(step, "one_world", True)}
    memory = {name: tuple(shape) for name, shape in memory.items()}
    spec = EngineSpec(
        network=a.network,
        config=a.config,
        runtime="onnxruntime",
        cameras=CAMERAS,
        input_size=input_size,
        channels=3,
        working_size=working,
        pointers=pointers,
        feature=0,
        precision=precision,
        model="model.onnx",
        model_sha256="",
        checkpoint_sha256="none" if geometric else "stand-in",
        inputs=(*frame, *memory),
        outputs=(*OUTPUTS, *extra, *(f"new_{name}" for name in memory)),
        options={**own, "memory": memory},
        extra_outputs=dict.fromkeys(extra, (CAMERAS, 3)),
    )
    step.signature = frame
    return step, spec


class ConstantsOnce(torch.overrides.TorchFunctionMode):
    """`torch.tensor` of the same numbers gives the same tensor: to make one anew is a copy from the
    host, which a CUDA graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, torch.Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is not torch.tensor:
            return func(*args, **(kwargs or {}))
        key = repr((args, kwargs))
        if key not in self.made:
            self.made[key] = func(*args, **(kwargs or {}))
        return self.made[key]


class Eager:
    """PyTorch as it is. model: the step, or a compiled package of it."""

    def __init__(self, model: Callable, spec: EngineSpec, device: str) -> None:
        self.model, self.spec, self.device = model, spec, torch.device(device)
        self.state: dict[str, torch.Tensor] = {}
        self.remember({name: np.zeros(s, np.float32) for name, s in spec.options["memory"].items()})

    def __call__(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        given = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        given |= self.state
        with torch.inference_mode():
            results = dict(
                zip(
                    self.spec.outputs,
                    self.model(*(given[name] for name in self.spec.inputs)),
                    strict=True,
                )
            )
        for name, array in outputs.items():
            np.copyto(array, results[name].cpu().numpy())
        self.state = {name: results[f"new_{name}"] for name in self.state}

    def memory(self, name: str) -> NDArray:
        return self.state[name].float().cpu().numpy()

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        self.state |= {
            name: torch.from_numpy(np.array(array, np.float32)).to(self.device)
            for name, array in memory.items()
        }


class Graph:
    """The same as one CUDA graph: inputs up, the step, the memory into its place, outputs down."""

    def __init__(self, model: Callable, spec: EngineSpec, inputs: Mapping[str, NDArray]) -> None:
        self.spec = spec
        self.pinned = {name: torch.from_numpy(a.copy()).pin_memory() for name, a in inputs.items()}
        self.given = {name: tensor.cuda() for name, tensor in self.pinned.items()}
        self.state = {
            name: torch.zeros(shape, device="cuda")
            for name, shape in spec.options["memory"].items()
        }
        down = {
            name: torch.from_numpy(array).pin_memory()
            for name, array in empty_outputs(spec).items()
        }
        self.down = down

        def step() -> None:
            for name, tensor in self.given.items():
                tensor.copy_(self.pinned[name], non_blocking=True)
            every = {**self.given, **self.state}
            results = dict(
                zip(spec.outputs, model(*(every[name] for name in spec.inputs)), strict=True)
            )
            for name, tensor in self.state.items():
                tensor.copy_(results[f"new_{name}"])
            for name, tensor in down.items():
                tensor.copy_(results[name], non_blocking=True)

        with torch.inference_mode(), ConstantsOnce():
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            side.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                step()
        self.remember({name: np.zeros(s, np.float32) for name, s in spec.options["memory"].items()})

    def __call__(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        for name, array in inputs.items():
            np.copyto(self.pinned[name].numpy(), array)
        self.graph.replay()
        torch.cuda.synchronize()
        for name, array in outputs.items():
            np.copyto(array, self.down[name].numpy())

    def memory(self, name: str) -> NDArray:
        return self.state[name].cpu().numpy()

    def remember(self, memory: Mapping[str, NDArray]) -> None:
        with torch.inference_mode():
            for name, array in memory.items():
                self.state[name].copy_(torch.from_numpy(np.array(array, np.float32)))


class Runtime:
    """The package's own runtime of an engine's folder."""

    def __init__(self, folder: Path) -> None:
        self.runtime = start_runtime(folder, load_spec(folder))
        self.memory, self.remember = self.runtime.memory, self.runtime.remember

    def __call__(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None:
        self.runtime.run(inputs, outputs)


# --- how it is measured


class GpuMemory:
    """The most MiB that were in use on the GPU, beyond what was before this program."""

    def __init__(self, device: str) -> None:
        self.on = device == "cuda"
        self.before, self.most = self._used(), 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _used(self) -> float:
        if not self.on:
            return 0.0
        try:  # asks the driver, without a context of our own
            import pynvml

            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 2**20
        except Exception:
            free, total = torch.cuda.mem_get_info()
            return (total - free) / 2**20

    def _watch(self) -> None:
        while self.on and not self._end.wait(0.05):
            self.most = max(self.most, self._used())

    def now(self) -> float:
        return round(self._used() - self.before, 1)

    def result(self) -> dict[str, float]:
        self._end.set()
        self._thread.join()
        self.most = max(self.most, self._used())
        return {"gpu_peak_mib": round(self.most - self.before, 1)} if self.on else {}


def drive(spec: EngineSpec) -> list[dict[str, NDArray]]:
    """The inputs of FRAMES frames: a textured wall that the car passes."""
    return [inputs_of(spec, index) for index in range(FRAMES)]


def to_and_fro(index: int) -> int:
    return min(index % (2 * FRAMES - 2), -index % (2 * FRAMES - 2))


def timed(run: Run, spec: EngineSpec, memory: GpuMemory, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, and the GPU's memory after the tenth and the last."""
    frames, outputs, times = drive(spec), empty_outputs(spec), []
    for index in range(WARM_UP):
        run(frames[to_and_fro(index)], outputs)
    early = memory.now()
    for index in range(steps):
        start = time.perf_counter()
        run(frames[to_and_fro(WARM_UP + index)], outputs)
        times.append(1e3 * (time.perf_counter() - start))
    values = np.array(times)
    finite = all(np.isfinite(array).all() for array in outputs.values())
    return {
        "steps": steps,
        "p50_ms": round(float(np.percentile(values, 50)), 2),
        "p95_ms": round(float(np.percentile(values, 95)), 2),
        "min_ms": round(float(values.min()), 2),
        "max_ms": round(float(values.max()), 2),
        "gpu_mib_after_10_and_last": [early, memory.now()],
        "outputs_finite": finite,
    }


def profiled(run: Run, spec: EngineSpec) -> dict[str, Any]:
    """What a step calls and copies, by PyTorch's profiler, which sees all of CUDA. Bytes that cross
    are held against the inputs and outputs: more would be the memory, on a round trip."""
    from torch.profiler import ProfilerActivity, profile

    frames, outputs = drive(spec), empty_outputs(spec)
    run(frames[0], outputs)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for index in range(PROFILED):
            run(frames[to_and_fro(index)], outputs)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    calls: Counter[str] = Counter()
    crossed: Counter[str] = Counter()
    kernels = 0
    for event in events:
        kind, name = event.get("cat", ""), event.get("name", "")
        if kind in ("cuda_runtime", "cuda_driver"):
            calls[name] += 1
        elif kind == "gpu_memcpy":
            way = "HtoD" if "HtoD" in name else "DtoH" if "DtoH" in name else "DtoD"
            crossed[f"{way}_bytes"] += int(event.get("args", {}).get("bytes", 0))
            crossed[f"{way}_copies"] += 1
        elif kind == "kernel":
            kernels += 1
    kept = ("Launch", "Synchronize", "Memcpy", "Malloc", "Free")
    return {
        "per_step": {
            "kernels": kernels / PROFILED,
            **{name: count / PROFILED for name, count in sorted(crossed.items())},
            "calls": {
                name: count / PROFILED
                for name, count in sorted(calls.items())
                if any(word in name for word in kept)
            },
        },
        "input_bytes": sum(array.nbytes for array in frames[0].values()),
        "output_bytes": sum(array.nbytes for array in outputs.values()),
        "memory_bytes": sum(4 * int(np.prod(s)) for s in spec.options["memory"].values()),
    }


def held_against(run: Run, truth: Run, spec: EngineSpec, steps: int) -> dict[str, Any]:
    """Differences from PyTorch over the steps (parity.py: difference): each on its own memory, and
    of a step from PyTorch's memory (`fed`), every tenth. Of outputs and memory, the worst step."""
    frames = drive(spec)
    own: dict[str, dict[str, float]] = {}
    fed: dict[str, dict[str, float]] = {}
    names = list(spec.options["memory"])
    nothing = {name: np.zeros(shape, np.float32) for name, shape in spec.options["memory"].items()}
    run.remember(nothing)
    truth.remember(nothing)

    def compare(into: dict[str, dict[str, float]], got: Mapping, expected: Mapping) -> None:
        for name in expected:
            now = difference(name, got[name], expected[name], spec.working_size[1])
            worst = into.setdefault(name, now)
            into[name] = {key: max(value, worst[key]) for key, value in now.items()}

    for index in range(steps):
        frame = frames[to_and_fro(index)]
        before = {name: np.array(truth.memory(name)) for name in names}
        expected, got = empty_outputs(spec), empty_outputs(spec)
        truth(frame, expected)
        run(frame, got)
        last = index in (0, 9, steps - 1) or index % 10 == 9
        after = {f"new_{name}": np.array(truth.memory(name)) for name in names} if last else {}
        mine = {f"new_{name}": np.array(run.memory(name)) for name in names}
        compare(own, {**got, **mine}, {**expected, **after})
        if last:
            run.remember(before)
            run(frame, got)
            again = {f"new_{name}": np.array(run.memory(name)) for name in names}
            compare(fed, {**got, **again}, {**expected, **after})
            run.remember({name: mine[f"new_{name}"] for name in names})
    return {
        "steps": steps,
        "own": {name: _rounded(values) for name, values in own.items()},
        "fed": {name: _rounded(values) for name, values in fed.items()},
        "worst_fed_relative": max(values["relative"] for values in fed.values()),
        "worst_own_relative": max(values["relative"] for values in own.values()),
        "worst_fed_off": max(values["off"] for values in fed.values()),
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.3g}") for key, value in values.items()}


# --- the rows


def measure(row: str, work: Path, device: str, small: bool) -> dict[str, Any]:
    """One row, in this process."""
    network, method, precision = row.split("/")
    if device != "cuda" and method in ("graph", "aoti-graph", "rtx", "rtx-parity"):
        raise SystemExit("takes a GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    steps = 5 if small else STEPS
    folder = work / f"{network}_{precision}{'_small' if small else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    memory = GpuMemory(device)
    if method == "rtx":
        start = time.perf_counter()
        run: Run = Runtime(folder / "engine")
        result: dict[str, Any] = {"load_seconds": round(time.perf_counter() - start, 2)}
        spec = load_spec(folder / "engine")
        result |= {"device": run.runtime.device, **timed(run, spec, memory, steps)}  # type: ignore[attr-defined]
        result |= memory.result() | {"device": run.runtime.device}  # type: ignore[attr-defined]
        start = time.perf_counter()
        Runtime(folder / "engine")
        result["second_load_seconds"] = round(time.perf_counter() - start, 2)
        return result | {"profile": profiled(run, spec)}
    if method == "build":
        return _build(folder)
    start = time.perf_counter()
    step, spec = make(network, precision, small)
    made = {"make_seconds": round(time.perf_counter() - start, 1)}
    if method == "onnx":
        return made | _write(folder, step, spec)
    step = step.to(device)
    torch.set_default_device(device)  # of constants that a step makes
    if method == "rtx-parity":
        return held_against(Runtime(folder / "engine"), Eager(step, spec, device), spec, steps)
    if method == "eager":
        run = Eager(step, spec, device)
    elif method == "graph":
        run = Graph(step, spec, inputs_of(spec, 0))
    else:
        model, compiled = _compiled(folder, step, spec, device)
        made |= compiled
        if method == "aoti":
            run = Eager(model, spec, device)
        else:
            run = Graph(model, spec, inputs_of(spec, 0))
    result = made | timed(run, spec, memory, steps) | memory.result()
    if device == "cuda":
        result |= {
            "torch_peak_mib": round(torch.cuda.max_memory_reserved() / 2**20, 1),
            "profile": profiled(run, spec),
        }
    if method != "eager":
        result["parity"] = held_against(run, Eager(step, spec, device), spec, min(steps, 30))
    return result


def _write(folder: Path, step: Any, spec: EngineSpec) -> dict[str, Any]:
    from recon4d_ros.export.graph import write_graph

    target = folder / "onnx"
    target.mkdir(exist_ok=True)
    start = time.perf_counter()
    extra = tuple(spec.extra_outputs)
    write_graph(
        target / "model.onnx", step, step.signature, spec.options["memory"], (*OUTPUTS, *extra)
    )
    files = {path.name: sha256_of(path) for path in target.glob("model.onnx.*")}
    spec = replace(spec, model_sha256=sha256_of(target / "model.onnx"), files=files)
    spec.save(target / SPEC_FILE)
    size = sum(path.stat().st_size for path in target.iterdir())
    return {
        "export_seconds": round(time.perf_counter() - start, 1),
        "onnx_mb": round(size / 1e6, 1),
    }


def _build(folder: Path) -> dict[str, Any]:
    from recon4d_ros.export import tensorrt

    source, target = folder / "onnx", folder / "engine"
    if not (source / SPEC_FILE).is_file():
        raise SystemExit("there is no ONNX: row onnx comes first")
    target.mkdir(exist_ok=True)
    spec, model = load_spec(source), target / tensorrt.MODEL
    build = tensorrt.build(source / spec.model, model, "tensorrt-rtx", tensorrt.GpuOptions())
    fields = asdict(build)
    replace(
        spec,
        runtime="tensorrt-rtx",
        model=model.name,
        model_sha256=sha256_of(model),
        files={},
        build=fields,
    ).save(target / SPEC_FILE)
    return fields | {"engine_mb": round(model.stat().st_size / 1e6, 1)}


def _compiled(folder: Path, step: Any, spec: EngineSpec, device: str) -> tuple[Callable, dict]:
    """The step as a package of AOTInductor, made once."""
    package = folder / "model.pt2"
    start = time.perf_counter()
    if not package.exists():
        every = inputs_of(spec, 0)
        example = tuple(torch.from_numpy(every[name]).to(device) for name in step.signature)
        example += tuple(torch.zeros(s, device=device) for s in spec.options["memory"].values())
        with torch.no_grad():
            program = torch.export.export(step, example)
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    seconds = round(time.perf_counter() - start, 1)
    return torch._inductor.aoti_load_package(str(package)), {"compile_seconds": seconds}


# --- the table


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
    }
    for name in ("tensorrt_rtx_bindings", "onnx", "onnxscript", "numpy"):
        try:
            from importlib.metadata import version

            known = {"tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings"}
            found[name] = version(known.get(name, name))
        except ImportError:
            found[name] = "not installed"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_mib": round(properties.total_memory / 2**20),
        }
    return found


def apart(row: str, limit: float, options: list[str]) -> dict[str, Any]:
    """A row in a process of its own, which is ended at its limit with all that it started."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--here", row, *options]
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "row.json"
        with open(Path(scratch) / "log", "w+", errors="replace") as log:
            child = subprocess.Popen(
                [*command, "--out", str(answer)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                late = child.poll() is None
                if late:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            log.seek(0)
            lines = [line.rstrip() for line in log.read().splitlines() if line.strip()]
        result = json.loads(answer.read_text()) if answer.exists() else {}
    if late:
        result["error"] = f"not done after {limit:.0f} s"
    elif not result:
        result["error"] = f"ended with {child.returncode}: {lines[-1] if lines else 'no words'}"
    if "error" in result:
        result["last_words"] = lines[-25:]
    return result | {"row_seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file of the table")
    parser.add_argument("--rows", nargs="+", default=["*"], help="names or patterns (see --list)")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--again", action="store_true", help="measure what is in the file anew")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "recon4d_gpu_table",
        help="folder for ONNX and engines (tens of GB), kept between calls (default: %(default)s)",
    )
    parser.add_argument("--limit", type=float, help="seconds for a row, instead of its own limit")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds after which no row is begun"
    )
    parser.add_argument("--here", help=argparse.SUPPRESS)  # the child: one row, in this process
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(ROWS))
        return 0
    if arguments.out is None:
        parser.error("--out FILE.json is missing")
    if arguments.here:
        try:
            result = measure(arguments.here, arguments.work, arguments.device, arguments.small)
        except (Recon4dError, RuntimeError, SystemExit) as error:
            if not isinstance(error, Recon4dError | SystemExit):
                import traceback

                traceback.print_exc()
            words = " ".join(str(error).split())
            result = {"error": words[:600] or type(error).__name__}
        arguments.out.write_text(json.dumps(result))
        sys.stdout.flush()
        os._exit(0)  # CUDA's and TensorRT's own ends may hang
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: --device cpu --small shows that this runs", file=sys.stderr)
        return 2
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row, p) for p in arguments.rows)]
    if not rows:
        print(f"no row is called {', '.join(arguments.rows)}: see --list", file=sys.stderr)
        return 2
    table: dict[str, Any] = {"rows": {}}
    if arguments.out.exists():
        table = json.loads(arguments.out.read_text())
    table["machine"] = machine(arguments.device) | {"small": arguments.small}
    options = ["--device", arguments.device, "--work", str(arguments.work)]
    options += ["--small"] * arguments.small
    start = time.monotonic()
    for row in rows:
        before = table["rows"].get(row, {"error": "not there"})
        if "error" not in before and not arguments.again:
            continue
        left = arguments.budget - (time.monotonic() - start)
        if left <= 0:
            print(f"{row}: no time left")
            continue
        limit = arguments.limit or LIMITS.get(row.split("/")[1], LIMIT)
        table["rows"][row] = result = apart(row, min(limit, left), options)
        new = arguments.out.with_suffix(".new")
        new.write_text(json.dumps(table, indent=1) + "\n")
        new.replace(arguments.out)
        print(f"{row:28} {_in_words(result)}", flush=True)
    return 0


def _in_words(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"{result['error'][:160]} ({result['row_seconds']} s)"
    shown = {
        key: result[key]
        for key in (
            "p50_ms",
            "p95_ms",
            "gpu_peak_mib",
            "gpu_mib_after_10_and_last",
            "load_seconds",
            "second_load_seconds",
            "compile_seconds",
            "export_seconds",
            "seconds",
            "engine_mb",
            "worst_fed_relative",
            "worst_own_relative",
        )
        if key in result
    }
    return ", ".join(f"{key} {value}" for key, value in shown.items()) + (
        f" ({result['row_seconds']} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
