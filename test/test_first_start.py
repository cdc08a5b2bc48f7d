"""An engine is built where it runs, once, and again when TensorRT or the GPU is another.

The library and the GPU are stand-ins (tiny_engine.py); the real builder: test_tensorrt_build.py."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from tiny_engine import StandIn, network, tiny_engine  # noqa: E402

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros import export, paths  # noqa: E402
from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.engine.base import identity, load_spec, sha256_of, source_spec  # noqa: E402
from recon4d_ros.engine.tensorrt_library import Build, Gpu  # noqa: E402
from recon4d_ros.errors import EngineError, OutputError, ParameterError  # noqa: E402
from recon4d_ros.export import gpu  # noqa: E402
from recon4d_ros.export.apart import Stop, Stopped  # noqa: E402
from recon4d_ros.export.first_start import Wanted, build, wanted  # noqa: E402
from recon4d_ros.export.tensorrt import GpuOptions  # noqa: E402
from recon4d_ros.types import Camera, Rig  # noqa: E402


@pytest.fixture
def machine(monkeypatch, tmp_path) -> StandIn:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return StandIn().install(monkeypatch)


@pytest.fixture
def onnx_folder(tmp_path) -> Path:
    tiny_engine(tmp_path / "mine")
    return tmp_path / "mine"


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- recon4d export


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_is_held_against_its_onnx_and_timed(
    tmp_path, machine, onnx_folder, runtime, capsys
) -> None:
    machine.installed = (runtime,)
    before = load_spec(onnx_folder)
    built = tmp_path / "gpu"
    arguments = ["export", "--from", str(onnx_folder), "--runtime", runtime]
    assert main([*arguments, "--out", str(built)]) == 0
    spec = load_spec(built)
    assert (spec.runtime, spec.model, set(spec.parity)) == (
        runtime,
        "model.engine",
        {"onnxruntime", runtime},
    )
    assert spec.parity[runtime]["worst"] == 0
    assert sorted(path.name for path in built.iterdir()) == [
        "engine.yaml",
        "model.engine",
        "model.onnx",
    ]
    assert identity(source_spec(spec)) == identity(before) == spec.build["source"]
    capsys.readouterr()
    assert main(["info", str(built)]) == 0
    said = capsys.readouterr().out
    title = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}[runtime]
    for part in (f"{title} 10.0", "Stand-In 1 (8.6)", "2 gemm", "it runs here", runtime):
        assert part in said
    machine.gpu = Gpu("Other 2", "8.9")
    assert main(["info", str(built)]) == 0
    refused = "it does not run here: it was built by TensorRT 10.0 for Stand-In 1"
    assert (refused in capsys.readouterr().out) == (runtime == "tensorrt")


def test_its_onnx_can_still_be_run_and_built_anew(tmp_path, machine, onnx_folder) -> None:
    export.rebuild(onnx_folder, tmp_path / "gpu", "tensorrt", GpuOptions())
    spec = load_spec(tmp_path / "gpu")
    assert "CPU" in engines.start_runtime(tmp_path / "gpu", spec, "onnxruntime").device
    export.rebuild(tmp_path / "gpu", tmp_path / "again", "tensorrt", GpuOptions())
    assert load_spec(tmp_path / "again").build["source"] == spec.build["source"]
    (tmp_path / "gpu/model.onnx").write_bytes(b"changed")
    with pytest.raises(EngineError, match=r"model\.onnx .* is truncated or changed"):
        export.rebuild(tmp_path / "gpu", tmp_path / "x", "tensorrt", GpuOptions())
    assert engines.start_runtime(tmp_path / "gpu", spec).device == "stand-in GPU"


def test_one_that_computes_something_else_is_not_left_there(tmp_path, machine, onnx_folder) -> None:
    machine.write = lambda model, out: network(out, remembers=False)
    with pytest.raises(
        EngineError, match=r"tensorrt does not compute what model\.onnx with onnxruntime does"
    ):
        export.rebuild(onnx_folder, tmp_path / "gpu", "tensorrt", GpuOptions())
    assert not list(tmp_path.glob("*gpu*"))


def test_without_a_gpu_tensorrt_builds_nothing_and_tensorrt_for_rtx_does_not_run_it(
    tmp_path, machine, onnx_folder, capsys
) -> None:
    machine.gpu, machine.installed = None, ("tensorrt", "tensorrt-rtx")
    with pytest.raises(
        EngineError, match=r"needs an NVIDIA GPU, .*: the TensorRT engine cannot be"
    ):
        export.rebuild(onnx_folder, tmp_path / "gpu", "tensorrt", GpuOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    said: list[str] = []
    spec = gpu.build_here(
        onnx_folder, load_spec(onnx_folder), "tensorrt-rtx", GpuOptions(), said.append
    )
    assert "tensorrt-rtx" not in spec.parity
    assert said[-1] == "model.engine has not been run: there is no GPU that it is for here"
    with pytest.raises(EngineError, match="cannot be built"):
        machine.installed = ()
        export.rebuild(onnx_folder, tmp_path / "gpu", "tensorrt-rtx", GpuOptions())


def test_what_is_built_for_other_gpus_is_not_run_on_this_one(machine, onnx_folder) -> None:
    machine.installed = ("tensorrt-rtx",)
    for targets, run in ((("8.9",), False), (("8.9", "8.6"), True)):
        spec = gpu.build_here(
            onnx_folder,
            load_spec(onnx_folder),
            "tensorrt-rtx",
            GpuOptions(targets=targets),
            lambda sentence: None,
        )
        assert ("tensorrt-rtx" in spec.parity) is run and spec.build["targets"] == targets


# --- what runs an engine here


def test_auto_takes_tensorrt_where_it_can_be_used_and_what_engine_yaml_says_elsewhere(
    machine, onnx_folder
) -> None:
    assert wanted(onnx_folder).runtime == "tensorrt" and wanted(onnx_folder).to_build
    machine.installed = ("tensorrt-rtx",)
    assert wanted(onnx_folder).runtime == "tensorrt-rtx"
    machine.gpu = None
    assert wanted(onnx_folder) == Wanted(
        onnx_folder,
        reason="tensorrt-rtx needs an NVIDIA GPU, and there is none (CUDA: no)",
    )
    machine.installed = ()
    assert wanted(onnx_folder) == Wanted(onnx_folder)
    for runtime in ("own", "openvino"):
        assert wanted(onnx_folder, runtime).runtime == runtime.replace("own", "")
    with pytest.raises(EngineError, match="TensorRT is not installed here"):
        wanted(onnx_folder, "tensorrt")
    machine.installed = ("tensorrt",)
    with pytest.raises(EngineError, match=r"engine .*mine: tensorrt needs an NVIDIA GPU"):
        wanted(onnx_folder, "tensorrt")
    with pytest.raises(ParameterError, match="runtime 'gpu' is not known: expected one of auto"):
        wanted(onnx_folder, "gpu")


def test_it_is_built_once_into_the_cache_and_taken_from_there(
    machine, onnx_folder, tmp_path
) -> None:
    before = content(onnx_folder)
    first: list = []
    done = build(wanted(onnx_folder), first.append, lambda phase, share: first.append(share))
    assert not done.to_build and done.folder.is_relative_to(tmp_path / "home/recon4d_ros/engines")
    assert 0.0 in first and any("building model.engine" in str(said) for said in first)
    assert sorted(path.name for path in done.folder.iterdir()) == ["engine.yaml", "model.engine"]
    assert content(onnx_folder) == before, "the engine's own folder may be read-only"
    assert wanted(onnx_folder) == done
    assert engines.start_runtime(done.folder, load_spec(done.folder)).device == "stand-in GPU"
    assert len(machine.built) == 1
    elsewhere = wanted(onnx_folder, cache=tmp_path / "other")
    assert elsewhere.to_build and elsewhere.folder.is_relative_to(tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [
        lambda machine, folder: setattr(machine, "version", "10.3"),
        lambda machine, folder: setattr(machine, "gpu", Gpu("Stand-In 2", "8.6")),
        lambda machine, folder: replace(load_spec(folder), options={"memory": {"state": [2]}}).save(
            folder / "engine.yaml"
        ),
    ],
    ids=["version", "gpu", "engine"],
)
def test_it_is_built_anew_when_library_gpu_or_engine_is_another(
    machine, onnx_folder, change
) -> None:
    old = build(wanted(onnx_folder)).folder
    change(machine, onnx_folder)
    want = wanted(onnx_folder)
    assert want.to_build and want.folder != old and (old / "model.engine").is_file()


def test_a_new_version_replaces_the_old_one_of_this_gpu_alone(machine, onnx_folder) -> None:
    first = build(wanted(onnx_folder)).folder
    machine.gpu = Gpu("Stand-In 2", "8.9")
    second = build(wanted(onnx_folder)).folder
    machine.version = "10.3"
    third = build(wanted(onnx_folder)).folder
    assert first.is_dir() and third.is_dir() and not second.exists()


def test_an_engine_of_any_size_is_built_for_each_rigs_sizes(machine, tmp_path) -> None:
    """Its own file stays of any size: the engine's is a copy with the sizes put in."""
    machine.gpu, machine.installed = None, ("tensorrt-rtx",)
    folder = paths.engines() / "geometric_surround1"
    before = sha256_of(folder / "model.onnx")
    optical = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    made = []
    for width, height in ((256, 128), (320, 192)):
        k = np.array([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]])
        rig = Rig("one", (Camera("front", width, height, k, optical),))
        want = wanted(folder, rig=rig, without_gpu=True)
        assert want.to_build and want.folder not in made
        made.append(build(want).folder)
        spec = load_spec(made[-1])
        assert spec.input_size == (height, width) and not spec.shapes
        engines.check_rig(spec, rig, "engine")
        graph = onnx.load(made[-1] / "model.engine").graph  # the stand-in's engine is its ONNX
        shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
        assert shapes["images"] == [1, height, width, spec.channels]
        assert all(all(shape) for shape in shapes.values()), "no dimension is left open"
        assert wanted(folder, rig=rig, without_gpu=True).folder == made[-1]
    assert sha256_of(folder / "model.onnx") == before


def test_where_the_onnx_or_its_place_is_read_only_makes_no_difference(machine, onnx_folder) -> None:
    for path in (*onnx_folder.iterdir(), onnx_folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert (build(wanted(onnx_folder)).folder / "model.engine").is_file()
    finally:
        onnx_folder.chmod(0o755)


def test_an_engine_built_in_the_cloud_is_taken_by_the_gpus_it_was_built_for(
    machine, onnx_folder
) -> None:
    machine.gpu, machine.installed = None, ("tensorrt-rtx",)
    want = wanted(onnx_folder, targets=("8.6", "8.9"), without_gpu=True)
    assert want.to_build and want.folder.name == "tensorrt-rtx-10.0-8.6-8.9"
    done = build(want)
    assert wanted(onnx_folder, targets=("8.6", "8.9"), without_gpu=True) == done
    assert wanted(onnx_folder, targets=("8.6",), without_gpu=True).to_build
    machine.gpu = Gpu("On the vehicle", "8.9")
    assert wanted(onnx_folder) == done
    machine.gpu = Gpu("Another", "12.0")
    assert wanted(onnx_folder).to_build
    machine.gpu, machine.installed = None, ("tensorrt",)
    with pytest.raises(EngineError, match="nothing can be built here: tensorrt needs an NVIDIA"):
        wanted(onnx_folder, without_gpu=True)
    machine.installed = ()
    with pytest.raises(EngineError, match="neither TensorRT nor TensorRT for RTX is installed"):
        wanted(onnx_folder, without_gpu=True)


def test_an_exported_engine_is_run_as_it_is_where_it_fits_and_built_anew_where_not(
    machine, onnx_folder, tmp_path
) -> None:
    export.rebuild(onnx_folder, tmp_path / "gpu", "tensorrt", GpuOptions())
    assert wanted(tmp_path / "gpu") == Wanted(tmp_path / "gpu", "tensorrt")
    machine.version = "10.3"
    done = build(wanted(tmp_path / "gpu"))
    assert Build.of(load_spec(done.folder)).version == "10.3"
    assert wanted(tmp_path / "gpu") == done
    (tmp_path / "gpu/model.onnx").unlink()
    replace(load_spec(tmp_path / "gpu"), source={}).save(tmp_path / "gpu/engine.yaml")
    with pytest.raises(
        EngineError,
        match=r"built by TensorRT 10\.0, here is 10\.3; and there is no ONNX beside it to build",
    ):
        wanted(tmp_path / "gpu")


# --- what goes wrong


def test_a_damaged_engine_in_the_cache_is_built_anew(machine, onnx_folder) -> None:
    folder = build(wanted(onnx_folder)).folder
    model = folder / "model.engine"
    for damage in (model.read_bytes()[:-7], b""):
        model.write_bytes(damage)
        assert wanted(onnx_folder).to_build
        assert build(wanted(onnx_folder)).folder == folder
        assert engines.start_runtime(folder, load_spec(folder)).device == "stand-in GPU"
    (folder / "engine.yaml").write_text("builder: [")
    assert build(wanted(onnx_folder)).folder == folder
    (folder / "engine.yaml").unlink()
    assert build(wanted(onnx_folder)).folder == folder
    assert engines.start_runtime(folder, load_spec(folder)).device == "stand-in GPU"


def test_a_failed_build_says_why_and_leaves_what_was_there(machine, onnx_folder, tmp_path) -> None:
    old = build(wanted(onnx_folder)).folder
    before = content(tmp_path / "home/recon4d_ros")

    def fails(model: Path, out: Path) -> None:
        out.write_bytes(b"half")
        raise EngineError("TensorRT does not take model.onnx: node a/b (Det): no importer")

    machine.version, machine.write = "10.3", fails
    with pytest.raises(EngineError, match=r"node a/b \(Det\)"):
        build(wanted(onnx_folder))
    assert content(tmp_path / "home/recon4d_ros") == before
    machine.version = "10.0"
    assert wanted(onnx_folder).folder == old


def test_a_build_that_is_stopped_leaves_nothing_and_the_next_one_works(
    machine, onnx_folder, tmp_path
) -> None:
    stop, machine.pause, machine.steps = Stop(), 0.05, 1000
    begun, ended = threading.Event(), []

    def run() -> None:
        with pytest.raises(Stopped):
            build(wanted(onnx_folder), progress=lambda phase, done: begun.set(), stop=stop)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    stop()
    thread.join(10)
    assert ended and set(content(tmp_path / "home/recon4d_ros")) == {
        f"engines/{wanted(onnx_folder).folder.parent.name}/.lock"
    }
    machine.pause, machine.steps = 0.0, 1
    assert (build(wanted(onnx_folder)).folder / "model.engine").is_file()


def test_what_a_crash_left_is_swept_away(machine, onnx_folder) -> None:
    want = wanted(onnx_folder)
    left = want.folder.parent / f".{want.folder.name}.abc123"
    left.mkdir(parents=True)
    (left / "model.engine").write_bytes(b"half")
    assert wanted(onnx_folder) == want
    build(want)
    assert not left.exists()


def test_of_two_that_start_at_once_one_builds_and_the_other_takes_it(machine, onnx_folder) -> None:
    machine.pause, said, results = 0.05, [], []
    want = wanted(onnx_folder)
    threads = [
        threading.Thread(target=lambda: results.append(build(want, said.append))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(machine.built) == 1 and results[0] == results[1]
    assert "another process builds it: waiting" in said


def test_a_cache_that_cannot_be_written_is_a_sentence(machine, onnx_folder, monkeypatch) -> None:
    for cache in ("/dev/full", "/proc/nowhere"):
        with pytest.raises(OutputError, match=r"cannot be written: .* parameter engine_cache"):
            build(wanted(onnx_folder, cache=Path(cache)))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache() == Path("~/.cache/recon4d_ros").expanduser()


def test_the_old_engine_drives_on_after_a_failed_export_with_force(
    machine, onnx_folder, tmp_path, capsys
) -> None:
    arguments = ["export", "--from", str(onnx_folder), "--runtime", "tensorrt", "--force"]
    assert main([*arguments, "--out", str(tmp_path / "gpu")]) == 0
    before = content(tmp_path / "gpu")

    def full(model: Path, out: Path) -> None:
        raise OutputError(f"{out}: cannot be written: {os.strerror(28)}")

    machine.write = full
    assert main([*arguments, "--out", str(tmp_path / "gpu")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].endswith("No space left on device") and content(tmp_path / "gpu") == before
    assert not list(tmp_path.glob(".gpu.*"))
