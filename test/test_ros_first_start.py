"""The node builds its engine when it starts: it stays responsive, says how far it is, and does
without where it cannot be. TensorRT and the GPU are stand-ins (tiny_engine.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)
pytest.importorskip("onnx")

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.context import Context
from rclpy.parameter import Parameter
from tiny_engine import SIZE, StandIn, tiny_engine

from recon4d_ros.cameras.rig import save_rig
from recon4d_ros.errors import EngineError
from recon4d_ros.ros.graph import graph_environment
from recon4d_ros.ros.node import Recon4dNode
from recon4d_ros.types import Camera, FrameSet, RawImage, Rig

START = 1_700_000_000_000_000_000
Make = Callable[..., Recon4dNode]


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    context = Context()
    context.init(domain_id=int(graph_environment()["ROS_DOMAIN_ID"]))
    yield context
    context.try_shutdown()


@pytest.fixture
def machine(monkeypatch, tmp_path) -> StandIn:
    return StandIn().install(monkeypatch)


@pytest.fixture
def make(context, tmp_path) -> Iterator[Make]:
    """A node of a rig of one small camera, with a tiny engine for it, that nobody spins."""
    nodes = []
    optical = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
    k = np.array([[40.0, 0, 23.5], [0, 40.0, 15.5], [0, 0, 1]])
    save_rig(Rig("one", (Camera("front", SIZE[1], SIZE[0], k, optical),)), tmp_path / "rig.yaml")
    tiny_engine(tmp_path / "mine")

    def one(**values: Any) -> Recon4dNode:
        given = {
            "rig_file": str(tmp_path / "rig.yaml"),
            "engine": str(tmp_path / "mine"),
            "engine_cache": str(tmp_path / "cache"),
            **values,
        }
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        nodes.append(Recon4dNode(context=context, parameter_overrides=overrides))
        return nodes[-1]

    yield one
    for node in nodes:
        node.finish()
        node.destroy_node()


def until(node: Recon4dNode, ready: Callable[[], bool], timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end, node.failure or "nothing happens"
        node._tick()
        time.sleep(0.01)


def diagnostics(node: Recon4dNode) -> dict[str, DiagnosticStatus]:
    """What /diagnostics says now, by concern."""
    sent = []

    class Publisher:
        publish = staticmethod(sent.append)

    before, node._diagnostics = node._diagnostics, Publisher()
    try:
        node._report()
    finally:
        node._diagnostics = before
    return {status.name.removeprefix("recon4d: "): status for status in sent[0].status}


def running(node: Recon4dNode) -> bool:
    return node._session is not None and node._session._reconstructor is not None


def test_the_node_is_heard_while_its_engine_is_built(make, machine, capfd) -> None:
    machine.pause, machine.steps = 0.1, 20
    node = make()
    start = time.monotonic()
    node.start()
    assert time.monotonic() - start < 1.5 and node._state == "active" and not running(node)
    until(node, lambda: "Building engine" in diagnostics(node)["node"].message)
    said = diagnostics(node)["node"]
    assert said.level == DiagnosticStatus.WARN
    assert "waiting for engine mine, built by TensorRT 10.0 (Building engine, " in said.message
    until(node, lambda: running(node))
    session = node._session
    assert session._reconstructor.engine.device == "stand-in GPU"
    assert session.health.engine.name == "mine" and session.health.engine.runtime == "tensorrt"
    assert "engine mine (tensorrt on stand-in GPU) for 1 camera(s)" in capfd.readouterr().err
    again = make()
    again.start()
    assert running(again) and len(machine.built) == 1, "the second start takes what is there"


def test_the_log_tells_the_progress_now_and_then(make, machine, capfd, monkeypatch) -> None:
    from recon4d_ros.ros import engine_start

    monkeypatch.setattr(engine_start, "LOG_PERIOD", 0.2)
    machine.pause, machine.steps = 0.5, 3
    node = make()
    node.start()
    end = time.monotonic() + 30
    while not running(node) and time.monotonic() < end:
        node._tick()
        node._report()
        time.sleep(0.05)
    told = [line for line in capfd.readouterr().err.splitlines() if " %, " in line]
    assert len(told) > 3, "more often than the library says anything"


@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_what_cannot_be_built_runs_as_engine_yaml_has_it_unless_asked_otherwise(
    make, machine, runtime, tmp_path
) -> None:
    def fails(model: Path, out: Path) -> None:
        raise EngineError("TensorRT does not take model.onnx: node a/b (Det): no importer")

    machine.write = fails
    node = make(runtime=runtime)
    node.start()
    if runtime == "auto":
        until(node, lambda: running(node))
        assert "onnxruntime CPU" in node._session._reconstructor.engine.device
        warned = diagnostics(node)["engine"]
        assert warned.level == DiagnosticStatus.WARN and "node a/b (Det)" in warned.message
        assert "could not be built" in node._session.status_msg().engine
    else:
        until(node, lambda: bool(node.failure))
        assert node.failure.startswith("engine mine: TensorRT does not take")
        assert node._state == "unconfigured"
    assert not list((tmp_path / "cache").rglob("model.engine"))


def test_an_engine_for_another_rig_is_not_even_built(make, machine, tmp_path) -> None:
    tiny_engine(tmp_path / "two", cameras=2)
    node = make(engine=str(tmp_path / "two"))
    node.start()
    assert "does not fit rig one" in node.failure and machine.built == []


def test_a_node_that_ends_meanwhile_ends_the_build(make, machine, tmp_path) -> None:
    machine.pause, machine.steps = 0.05, 10_000
    node = make()
    node.start()
    until(node, lambda: "Building engine" in diagnostics(node)["node"].message)
    start = time.monotonic()
    node.finish()
    assert time.monotonic() - start < 10
    files = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files == [".lock"] and machine.built == []


def test_build_only_builds_says_where_and_does_not_drive(make, machine, tmp_path, capfd) -> None:
    machine.gpu, machine.installed = None, ("tensorrt-rtx",)
    node = make(build_only=True, compute_capabilities=["8.6", "8.9"])
    done = node.build()
    assert wait([done], 30).done and not node.failure
    (engine,) = (tmp_path / "cache").rglob("model.engine")
    assert engine.parent.name == "tensorrt-rtx-10.0-8.6-8.9"
    assert f"is there for TensorRT for RTX 10.0: {engine.parent}" in capfd.readouterr().err
    assert node._state == "unconfigured"


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"engine": "", "rig_file": ""}, "build_only: expected an engine"),
        ({"engine": "/nowhere"}, "/nowhere: no such folder"),
        ({"runtime": "openvino"}, "runs by openvino: there is nothing to build"),
        ({"runtime": "tensorrt-rtx"}, "TensorRT for RTX is not installed here"),
        ({"runtime": "cuda"}, "cuda"),
    ],
)
def test_what_build_only_cannot_do_is_a_sentence(make, machine, given, sentence) -> None:
    node = make(build_only=True, **given)
    assert wait([node.build()], 30).done
    assert sentence in node.failure and "bug" not in node.failure
    assert sentence in diagnostics(node)["node"].message


def test_the_gpus_memory_is_in_status_and_diagnostics(make, machine, monkeypatch) -> None:
    node = make()
    node.start()
    until(node, lambda: running(node))
    session = node._session
    assert session.status_msg().gpu_memory == session.status_msg().gpu_memory_total == 0
    engine = session._reconstructor.engine
    monkeypatch.setattr(engine._runtime, "gpu_memory", lambda: (3000.0, 8192.0))
    image = RawImage(START, "mono8", np.zeros(SIZE[0] * SIZE[1], np.uint8), SIZE[1], *SIZE)
    session._worker.call(lambda: session._process(FrameSet(START, {"front": image}))).result(60)
    message = session.status_msg()
    assert (message.gpu_memory, message.gpu_memory_total) == (3000.0, 8192.0)
    values = {pair.key: pair.value for pair in diagnostics(node)["memory"].values}
    assert values["gpu MiB"] == "3000" and values["gpu total MiB"] == "8192"
