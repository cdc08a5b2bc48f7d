"""A step makes nothing on the host: a CUDA graph cannot hold a tensor that lies there, nor wait for
one. Told on PyTorch's device `meta`, whose tensors have no values: no GPU is needed, and none has
run this."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import LEARNED

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from recon4d_ros.networks import checkpoint, matching, stand_in  # noqa: E402
from recon4d_ros.networks.geometric import GeometricStep  # noqa: E402
from recon4d_ros.networks.geometric_options import (  # noqa: E402
    SURROUND,
    GeometricOptions,
    frame_inputs,
    memory_shapes,
)
from recon4d_ros.networks.step import StepOptions  # noqa: E402

GPU = "meta"


class Constants(TorchFunctionMode):
    """`torch.tensor` of plain numbers on the GPU is made once, before a graph is captured
    (benchmarks/gpu_table.py)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch.tensor and "device" in kwargs:
            plain = np.asarray(args[0])
            usual = {"f": torch.float32, "i": torch.int64, "b": torch.bool}[plain.dtype.kind]
            kind = kwargs.get("dtype") or usual
            return torch.empty(plain.shape, dtype=kind, device=kwargs["device"])
        return func(*args, **kwargs)


class OnlyOn(TorchDispatchMode):
    """What made a tensor anywhere else, in order."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.wrong = device, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != self.device:
                self.wrong.append(f"{func} makes {tuple(value.shape)} on {value.device}")
        return result


def there(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=GPU)


def made_elsewhere(step: Any, frame: Mapping, memory: Mapping) -> list[str]:
    """What a step makes that is not on the GPU that it and all its inputs are on."""
    with torch.no_grad():
        for module in step.modules():
            for name, value in module.named_parameters(recurse=False):
                module.register_parameter(name, torch.nn.Parameter(there(value), False))
            for name, value in module.named_buffers(recurse=False):
                module.register_buffer(name, there(value))
        given = [torch.empty(shape, dtype=kind, device=GPU) for kind, shape in frame.values()]
        given += [torch.empty(tuple(shape), device=GPU) for shape in memory.values()]
        with OnlyOn(GPU) as watch, Constants():
            results = step(*given)
        assert all(value.device.type == GPU for value in results)
    return watch.wrong


TINY = {
    **{name: text.partition(":")[2] for name, text in LEARNED.items()},
    "sparse4d": "backbone_depth=14,backbone_width=8,width=32,hidden=64,learned_points=2,blocks=3,"
    "anchors=90,carried=60",
    "uniscene": "depth=50,rows=20,columns=24,encoders=2,levels_z=8",
}
SIZES = {"sparse4d": (64, 160), "uniscene": (64, 96)}


@pytest.mark.parametrize("name", TINY)
def test_a_learned_step_stays_on_its_device(name: str) -> None:
    with torch.device("meta"):
        network = importlib.import_module(f"recon4d_ros.networks.{name}").build(
            stand_in.configuration(name, TINY[name])
        )
    size = SIZES.get(name, (48, 64))
    step: Any = checkpoint.make_step(network, name, StepOptions(2, size, size, 3, 60), {}).eval()
    assert made_elsewhere(step, step.frame_inputs(), step.memory_shapes()) == []


def plain_scan(step: Any, state: torch.Tensor, rows: torch.Tensor) -> tuple:
    """PyTorch's own takes no watcher."""
    states = []
    for row in rows:
        state, out = step(state, row)
        states.append(out)
    return state, torch.stack(states)


@pytest.mark.parametrize("config, cameras", [("stereo", 2), ("surround", 1), ("surround", 3)])
def test_the_geometric_step_stays_on_its_device(
    config: str, cameras: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "scan", plain_scan)
    more = {} if config == "stereo" else SURROUND
    options = GeometricOptions(config, cameras, (96, 160), 3, (64, 128), 128, **more)
    step = GeometricStep(options).eval()
    assert made_elsewhere(step, frame_inputs(options), memory_shapes(options)) == []


def test_what_lies_on_the_host_is_found() -> None:
    class Step(torch.nn.Module):
        def forward(self, x):
            return (x + torch.arange(3).sum(),)

    found = made_elsewhere(Step(), {"x": (torch.float32, (3,))}, {})
    assert found and "aten.arange" in found[0]
