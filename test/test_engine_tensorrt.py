"""The TensorRT runtime's own logic, on a device that this test stands in for. It cannot show that
TensorRT or CUDA do what we expect.

The stand-in has CUDA's rules that matter here: copies and steps happen in the stream's order, what
is captured does not run and keeps its addresses, and every call gives (error, value).
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.errors import EngineError

SHAPE = (2, 3)


class Device:
    """Memory, one stream, graphs."""

    def __init__(self, *, capturable: bool = True) -> None:
        self.blocks: dict[int, ctypes.Array] = {}
        self.capturing: list | None = None
        self.capturable = capturable
        self.launches = self.enqueued = self.uploads = self.waits = 0
        self.graphs: set[str] = set()  # not given back
        self.streams = self.made = 0

    def module(self) -> ModuleType:
        ok, wrong = 0, 1
        cudart = ModuleType("cuda.bindings.runtime")

        def allocate(size, flags=0):
            block = (ctypes.c_uint8 * size)()
            ctypes.memset(block, 0xAB, size)  # nobody may count on zeros
            self.blocks[ctypes.addressof(block)] = block
            return ok, ctypes.addressof(block)

        def free(address):
            del self.blocks[address]
            return (ok,)

        def in_stream(work):
            if self.capturing is not None:
                self.capturing.append(work)
            else:
                work()

        def copy(target, source, size, kind, stream):
            self.uploads += kind == "up"
            in_stream(lambda: ctypes.memmove(target, source, size))
            return (ok,)

        def copy_now(target, source, size, kind):
            ctypes.memmove(target, source, size)
            return (ok,)

        def zero(target, value, size, stream):
            in_stream(lambda: ctypes.memset(target, value, size))
            return (ok,)

        def begin(stream, mode):
            self.capturing = []
            return (ok,)

        def graph_of(kind, work):
            self.made += 1
            self.graphs.add(f"{kind} {self.made}")
            return f"{kind} {self.made}", work

        def end(stream):
            work, self.capturing = self.capturing, None
            return (ok, graph_of("graph", work)) if self.capturable else (wrong, None)

        def destroy(graph):
            self.graphs.remove(graph[0])
            return (ok,)

        def launch(graph, stream):
            assert graph[0] in self.graphs
            self.launches += 1
            for work in graph[1]:
                work()
            return (ok,)

        def stream(count, value):
            self.streams += count
            return (ok, *value)

        def wait(stream):
            self.waits += 1
            return (ok,)

        calls = {
            "cudaMalloc": allocate,
            "cudaHostAlloc": allocate,
            "cudaFree": free,
            "cudaFreeHost": free,
            "cudaMemcpyAsync": copy,
            "cudaMemcpy": copy_now,
            "cudaMemsetAsync": zero,
            "cudaStreamBeginCapture": begin,
            "cudaStreamEndCapture": end,
            "cudaGraphLaunch": launch,
            "cudaStreamSynchronize": wait,
            "cudaGraphInstantiate": lambda graph, flags: (ok, graph_of("ready", graph[1])),
            "cudaGraphDestroy": destroy,
            "cudaGraphExecDestroy": destroy,
            "cudaStreamCreateWithFlags": lambda flags: stream(1, [7]),
            "cudaStreamDestroy": lambda handle: stream(-1, []),
            "cudaGetDevice": lambda: (ok, 0),
            "cudaGetDeviceProperties": lambda index: (
                ok,
                SimpleNamespace(name=b"a stand-in", major=8, minor=6, totalGlobalMem=2**33),
            ),
            "cudaMemGetInfo": lambda: (ok, 3 * 2**30, 2**33),
            "cudaGetErrorString": lambda error: (
                ok,
                b"operation not permitted when stream is capturing",
            ),
        }
        for name, function in calls.items():
            setattr(cudart, name, function)
        cudart.cudaError_t = SimpleNamespace(cudaSuccess=ok)
        cudart.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"
        )
        cudart.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        cudart.cudaHostAllocDefault, cudart.cudaStreamNonBlocking = 0, 1
        return cudart


TENSORS = {
    "images": ("in", np.uint8),
    "grid": ("in", np.float32),
    "sum": ("in", np.float32),
    "depth": ("out", np.float32),
    "new_sum": ("out", np.float32),
}


class Engine:
    """new_sum = sum + images * grid; depth = 10 * sum. Through addresses, as TensorRT reads and
    writes them."""

    num_io_tensors = len(TENSORS)

    def __init__(self, device: Device) -> None:
        self.device = device

    def get_tensor_name(self, index):
        return list(TENSORS)[index]

    def get_tensor_mode(self, name):
        return TENSORS[name][0]

    def get_tensor_shape(self, name):
        return SHAPE

    def get_tensor_dtype(self, name):
        return TENSORS[name][1]

    def create_execution_context(self):
        addresses: dict[str, int] = {}
        engine = self

        def view(addresses, name):
            kind = np.dtype(TENSORS[name][1])
            block = (ctypes.c_uint8 * (6 * kind.itemsize)).from_address(addresses[name])
            return np.ctypeslib.as_array(block).view(kind).reshape(SHAPE)

        class Context:
            def set_tensor_address(self, name, address):
                assert name in TENSORS and address in engine.device.blocks
                addresses[name] = address
                return True

            def execute_async_v3(self, stream):
                then = dict(addresses)
                engine.device.enqueued += 1

                def work():
                    before = view(then, "sum").copy()
                    view(then, "depth")[:] = 10 * before
                    view(then, "new_sum")[:] = before + view(then, "images") * view(then, "grid")

                if engine.device.capturing is not None:
                    engine.device.capturing.append(work)
                else:
                    work()
                return True

        return Context()


class Cache:
    """TensorRT for RTX's kernels: it takes back what it gave on the same machine."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        good = blob.startswith(b"this machine")
        self.content = blob if good else b""
        return good

    def serialize(self) -> bytes:
        self.content = self.content or b"this machine: kernels"
        return self.content


@pytest.fixture
def start(monkeypatch, tmp_path):
    """A TensorRtRuntime on a Device, and the Device. runtime: which library stands in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def make(*, capturable=True, engine=Engine, runtime="tensorrt", folder=tmp_path, **fields):
        device = make.device = Device(capturable=capturable)
        cudart, trt = device.module(), ModuleType(runtime.replace("-", "_"))
        bindings, cuda = ModuleType("cuda.bindings"), ModuleType("cuda")
        bindings.runtime, cuda.bindings = cudart, bindings
        trt.__version__, trt.nptype = "10.0", lambda kind: kind
        trt.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        trt.ILogger = ILogger
        loaded = engine(device) if engine else None

        def deserialize(data):
            if loaded is None:
                make.logger.log(1, "magic tag\n does not match")
            return loaded

        make.runtime = SimpleNamespace(deserialize_cuda_engine=deserialize)

        def loader(logger):
            make.logger = logger
            return make.runtime

        trt.Runtime = loader
        if runtime == "tensorrt-rtx":
            make.config = SimpleNamespace(
                create_runtime_cache=lambda: make.cache,
                set_runtime_cache=lambda cache: setattr(make.config, "cache", cache),
            )
            make.cache = Cache()
            trt.IRuntimeCache, trt.CudaGraphStrategy = Cache, SimpleNamespace(DISABLED="off")
            if loaded is not None:
                context = loaded.create_execution_context
                loaded.create_runtime_config = lambda: make.config
                loaded.create_execution_context = lambda config: context()
        for name, module in (
            ("cuda", cuda),
            ("cuda.bindings", bindings),
            ("cuda.bindings.runtime", cudart),
            (trt.__name__, trt),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        for name in ("recon4d_ros.engine.cuda", "recon4d_ros.engine.tensorrt"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("recon4d_ros.engine.tensorrt")
        runtime_class = {
            "tensorrt": module.TensorRtRuntime,
            "tensorrt-rtx": module.TensorRtRtxRuntime,
        }[runtime]
        path = folder / "model.engine"
        if not path.exists():
            path.write_bytes(b"engine")
        return runtime_class(path, spec(runtime=runtime, **fields), {"sum": SHAPE}), device

    yield make
    for name in ("recon4d_ros.engine.cuda", "recon4d_ros.engine.tensorrt"):
        sys.modules.pop(name, None)


def spec(**fields) -> EngineSpec:
    given = {
        "network": "n",
        "config": "learned",
        "runtime": "tensorrt",
        "cameras": 1,
        "input_size": SHAPE,
        "channels": 1,
        "working_size": SHAPE,
        "pointers": 1,
        "feature": 0,
        "precision": "fp16",
        "model": "model.engine",
        "model_sha256": "",
        "inputs": ("images", "grid", "sum"),
        "outputs": ("depth", "new_sum"),
        "options": {"memory": {"sum": SHAPE}},
    }
    return EngineSpec(**{**given, **fields})


def run(runtime, value, grid):
    depth = np.empty(SHAPE, np.float32)
    runtime.run({"images": np.full(SHAPE, value, np.uint8), "grid": grid}, {"depth": depth})
    return depth


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("capturable", [True, False])
def test_the_memory_alternates_and_every_step_sees_the_one_before(
    start, capturable, library
) -> None:
    runtime, device = start(capturable=capturable, runtime=library)
    assert runtime.name == library and runtime.device == f"{library} 10.0 on a stand-in, fp16"
    assert runtime.gpu_memory() == (5 * 1024, 8 * 1024)
    grid, total = np.full(SHAPE, 0.5, np.float32), 0.0
    for value in (2, 4, 6, 8, 10, 12, 14):
        assert np.all(run(runtime, value, grid) == 10 * total)
        total += 0.5 * value
        assert np.all(runtime.memory("sum") == total)
    runtime.reset()
    assert np.all(runtime.memory("sum") == 0)
    assert np.all(run(runtime, 3, grid) == 0) and np.all(run(runtime, 3, grid) == 15)
    assert device.launches == (7 if capturable else 0), (
        "one graph for each role of the memory, from its second turn on"
    )


def test_a_captured_step_is_one_launch_and_one_wait(start) -> None:
    runtime, device = start()
    grid = np.ones(SHAPE, np.float32)
    for value in range(4):
        run(runtime, value, grid)
    before = (device.enqueued, device.uploads, device.waits, device.launches)
    run(runtime, 9, grid)
    assert (device.enqueued, device.uploads, device.waits, device.launches) == (
        *before[:2],
        before[2] + 1,
        before[3] + 1,
    )


def test_a_new_calibration_is_seen(start) -> None:
    runtime, _ = start()
    run(runtime, 1, np.ones(SHAPE, np.float32))
    run(runtime, 1, np.full(SHAPE, 5, np.float32))
    assert np.all(runtime.memory("sum") == 6)


def test_closing_gives_every_byte_back(start) -> None:
    runtime, device = start()
    for _ in range(3):
        run(runtime, 1, np.ones(SHAPE, np.float32))
    assert len(device.graphs) == 2, "one for each role of the memory"
    runtime.close()
    assert device.blocks == {} and device.graphs == set() and device.streams == 0


def test_an_engine_of_another_gpu_or_with_other_tensors_is_refused(start) -> None:
    with pytest.raises(
        EngineError,
        match=r"model\.engine is not for TensorRT 10\.0 on a stand-in \(8\.6\): .* does not match",
    ):
        start(engine=None)

    class Other(Engine):
        num_io_tensors = len(TENSORS) - 1

    with pytest.raises(EngineError, match=r"other tensors than engine\.yaml: new_sum"):
        start(engine=Other)


def test_an_engine_that_is_refused_half_way_gives_everything_back(start) -> None:
    class Full(Engine):
        def create_execution_context(self):
            return None

    class Refusing(Engine):
        def create_execution_context(self):
            context = super().create_execution_context()
            context.set_tensor_address = lambda name, address: name != "depth"
            return context

    for engine, sentence in (
        (Full, "TensorRT makes no context"),
        (Refusing, "TensorRT refused the address of depth"),
    ):
        with pytest.raises(EngineError, match=sentence):
            start(engine=engine)
        device = start.device
        assert device.blocks == {} and device.streams == 0


def test_a_step_that_cannot_be_captured_says_so_and_leaves_no_graph(start) -> None:
    runtime, device = start(capturable=False)
    assert "CUDA graph" not in runtime.device
    run(runtime, 1, np.ones(SHAPE, np.float32))
    assert runtime.device.endswith(
        "without a CUDA graph: CUDA: operation not permitted when stream is capturing"
    )
    runtime, device = start()
    enqueue = runtime._enqueue

    def refused():
        enqueue()
        if device.capturing is not None:
            raise EngineError("TensorRT refused to run the step")

    runtime._enqueue = refused
    run(runtime, 1, np.ones(SHAPE, np.float32))
    assert runtime.device.endswith("without a CUDA graph: TensorRT refused to run the step")
    assert device.graphs == set() and device.capturing is None


def test_the_memory_can_be_given(start) -> None:
    runtime, _ = start()
    runtime.remember({"sum": np.full(SHAPE, 3, np.float32)})
    assert np.all(run(runtime, 1, np.ones(SHAPE, np.float32)) == 30) and np.all(
        runtime.memory("sum") == 4
    )


def built(**fields) -> dict:
    return {"builder": "tensorrt", "version": "10.0", "gpu": "a stand-in"} | fields


@pytest.mark.parametrize(
    "build, sentence",
    [
        (built(version="10.3"), r"built by TensorRT 10\.3, here is 10\.0"),
        (built(gpu="NVIDIA L4"), r"10\.0 for NVIDIA L4, here is a stand-in \(8\.6\)"),
        (
            built(builder="tensorrt-rtx", targets=["8.9", "12.0"]),
            r"for compute capability 8\.9, 12\.0, here is a stand-in \(8\.6\)",
        ),
        (built(version=[]), "build in engine.yaml does not say"),
        (built(layers={"gemm": None}), "build in engine.yaml does not say"),
        (built(weights="many"), "build in engine.yaml does not say"),
        (built(builder="other"), "build in engine.yaml does not say"),
    ],
)
def test_an_engine_of_another_library_or_gpu_is_not_even_loaded(start, build, sentence) -> None:
    with pytest.raises(EngineError, match=sentence):
        start(build=build, runtime=build["builder"].replace("other", "tensorrt"))
    assert not hasattr(start, "logger") and start.device.blocks == {}


@pytest.mark.parametrize(
    "build",
    [
        built(),
        built(gpu="NVIDIA A2", hardware_compatible=True),
        built(version="10.0", version_compatible=True),
        built(builder="tensorrt-rtx", gpu=""),
        built(builder="tensorrt-rtx", targets=["8.6"]),
    ],
)
def test_one_that_fits_is_loaded_and_its_code_runs_only_where_it_was_built_with_it(
    start, build
) -> None:
    start(build=build, runtime=build["builder"])
    allowed = getattr(start.runtime, "engine_host_code_allowed", False)
    assert allowed is build.get("version_compatible", False)


def test_the_kernels_of_the_first_load_are_kept_beside_the_engine(start, tmp_path) -> None:
    grid = np.ones(SHAPE, np.float32)
    for blob in (None, b"another driver: kernels"):
        file = tmp_path / "model.a-stand-in.cache"
        if blob:
            file.write_bytes(blob)
        runtime, _ = start(runtime="tensorrt-rtx")
        assert start.config.cache is start.cache and start.config.cuda_graph_strategy == "off"
        run(runtime, 1, grid)
        assert file.read_bytes() == b"this machine: kernels"
    written = file.stat().st_mtime_ns
    runtime, _ = start(runtime="tensorrt-rtx")
    assert start.cache.content == b"this machine: kernels", "taken from the file"
    run(runtime, 1, grid)
    assert file.stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "model.engine"]


def test_kernels_of_an_engine_in_a_folder_that_cannot_be_written_go_to_the_cache(
    start, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    write = Path.write_bytes

    def refusing(path: Path, data: bytes) -> int:
        if path.parent == folder and path.name != "model.engine":
            raise PermissionError(13, "Permission denied")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", refusing)
    runtime, _ = start(runtime="tensorrt-rtx", folder=folder)
    run(runtime, 1, np.ones(SHAPE, np.float32))
    (kept,) = (tmp_path / "home/recon4d_ros/kernels").iterdir()
    assert kept.read_bytes() == b"this machine: kernels"
    assert [path.name for path in folder.iterdir()] == ["model.engine"]
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: refusing(folder / "x", data))
    runtime, _ = start(runtime="tensorrt-rtx", folder=folder)  # a full disk costs time only
    start.cache.content = b"this machine: more kernels"
    assert np.all(run(runtime, 1, np.ones(SHAPE, np.float32)) == 0)


def test_a_step_that_the_library_says_cannot_be_captured_is_not(start) -> None:
    class Looping(Engine):
        def create_execution_context(self):
            context = super().create_execution_context()
            context.is_stream_capturable = lambda stream: False
            return context

    runtime, device = start(engine=Looping, runtime="tensorrt-rtx")
    run(runtime, 1, np.ones(SHAPE, np.float32))
    assert runtime.device.endswith("TensorRT says that its steps cannot be captured")
    assert device.made == 0


def test_cuda_calls_are_those_of_nvidias_bindings() -> None:
    """Every name is there, and every function takes as many arguments as we give it."""
    import ast

    cudart = pytest.importorskip("cuda.bindings.runtime")  # of requirements/dev.txt

    source = (Path(__file__).parents[1] / "recon4d_ros/engine/cuda.py").read_text()
    names = set(re.findall(r"cudart\.(cuda\w+)", source))
    assert len(names) > 15 and [name for name in names if not hasattr(cudart, name)] == []
    calls = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.fullmatch(
            r"cudart\.cuda\w+", name := ast.unparse(node.func)
        ):
            signature = getattr(cudart, name.partition(".")[2]).__doc__.splitlines()[0]
            taken = [part for part in re.search(r"\((.*)\)", signature)[1].split(", ") if part]
            needed = [part for part in taken if "=" not in part]
            assert not node.keywords and len(needed) <= len(node.args) <= len(taken), (
                f"{ast.unparse(node)}: {signature}"
            )
            calls += 1
    assert calls > 15


def test_without_a_gpu_cuda_says_so_in_a_sentence(monkeypatch) -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime")  # of requirements/dev.txt

    if cudart.cudaGetDevice()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU here")
    monkeypatch.delitem(sys.modules, "recon4d_ros.engine.cuda", raising=False)
    with pytest.raises(EngineError, match=r"^CUDA: .+"):
        importlib.import_module("recon4d_ros.engine.cuda").device()
    monkeypatch.delitem(sys.modules, "recon4d_ros.engine.cuda")
