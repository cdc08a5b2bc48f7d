"""A TensorFlow.js graph as ONNX: each operator computes what TensorFlow's does."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="a model is made with onnx (requirements/dev.txt)")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed here")

from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.export.tfjs import convert  # noqa: E402

RNG = np.random.default_rng(0)


def attribute(text: str) -> dict:
    return {"s": base64.b64encode(text.encode()).decode()}


def sides(*values: int) -> dict:
    return {"list": {"i": [str(one) for one in values]}}


class Model:
    """A graph model as files, weight by weight and node by node."""

    def __init__(self) -> None:
        self.nodes: list[dict] = []
        self.weights: list[dict] = []
        self.data = b""

    def const(self, name: str, values: np.ndarray, half: bool = False) -> str:
        entry = {
            "name": name,
            "shape": list(values.shape),
            "dtype": "int32" if values.dtype.kind == "i" else "float32",
        }
        if half:
            entry["quantization"] = {"dtype": "float16"}
        kind = "<f2" if half else "<i4" if values.dtype.kind == "i" else "<f4"
        self.weights.append(entry)
        self.data += values.astype(kind).tobytes()
        self.nodes.append({"name": name, "op": "Const"})
        return name

    def node(self, op: str, name: str, inputs: list[str], **attr: dict) -> str:
        self.nodes.append({"name": name, "op": op, "input": inputs, "attr": attr})
        return name

    def run(self, folder: Path, output: str, shape: tuple[int, ...], image: np.ndarray):
        dims = [{"size": str(side)} for side in shape]
        tree = {
            "weightsManifest": [{"paths": ["w.bin"], "weights": self.weights}],
            "modelTopology": {"node": self.nodes},
            "signature": {"outputs": {f"{output}:0": {"tensorShape": {"dim": dims}}}},
        }
        (folder / "model.json").write_text(json.dumps(tree))
        (folder / "w.bin").write_bytes(self.data)
        convert(folder / "model.json", folder / "w.bin", folder / "m.onnx")
        session = ort.InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: image})[0]


def start(shape: tuple[int, ...]) -> Model:
    model = Model()
    dims = {"shape": {"dim": [{"size": str(side)} for side in shape]}}
    model.node("Placeholder", "x", [], shape=dims)
    return model


def convolved(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Channels last, no padding: by the definition."""
    rows, columns = kernel.shape[:2]
    high = (image.shape[1] - rows) // stride + 1
    wide = (image.shape[2] - columns) // stride + 1
    out = np.zeros((1, high, wide, kernel.shape[3]))
    for v in range(high):
        for u in range(wide):
            part = image[0, v * stride : v * stride + rows, u * stride : u * stride + columns]
            out[0, v, u] = np.einsum("ijc,ijco->o", part, kernel)
    return out


@pytest.mark.parametrize(
    ("padding", "stride"), [("VALID", 1), ("VALID", 2), ("SAME", 1), ("SAME", 2)]
)
def test_a_convolution_with_its_padding(tmp_path: Path, padding: str, stride: int) -> None:
    image = RNG.normal(size=(1, 6, 8, 2)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, 2, 4)).astype(np.float16).astype(np.float32)
    model = start(image.shape)
    model.const("k", kernel, half=True)
    model.node(
        "Conv2D", "y", ["x", "k"], padding=attribute(padding), strides=sides(1, stride, stride, 1)
    )
    padded = image
    if padding == "SAME":  # TensorFlow's: what is odd goes below and to the right
        both = 2 if stride == 1 else 1
        padded = np.pad(
            image, [(0, 0), (both // 2, both - both // 2), (both // 2, both - both // 2), (0, 0)]
        )
    expected = convolved(padded, kernel, stride)
    found = model.run(tmp_path, "y", expected.shape, image)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_around_convolutions(tmp_path: Path) -> None:
    """Pad, LeakyRelu, MaxPool, SplitV, ConcatV2, Sigmoid, Reshape by a shape that is computed."""
    image = RNG.normal(size=(1, 3, 5, 4)).astype(np.float32)
    model = start(image.shape)
    model.const("pads", np.array([[0, 0], [1, 0], [0, 1], [0, 0]]))
    model.const("low", np.float32(-9).reshape(()))
    model.node("PadV2", "p", ["x", "pads", "low"])
    model.node("LeakyRelu", "l", ["p"], alpha={"f": 0.1})
    model.node(
        "MaxPool", "m", ["l"], padding=attribute("VALID"), strides=sides(1, 2, 2, 1),
        ksize=sides(1, 2, 2, 1),
    )  # fmt: skip
    model.const("parts", np.array([1, 3]))
    model.const("three", np.array(3))
    model.node("SplitV", "s", ["m", "parts", "three"], num_split={"i": "2"})
    model.node("Sigmoid", "g", ["s"])
    model.node("ConcatV2", "c", ["s:1", "g", "three"])
    model.const("where", np.zeros((0, 1), int))
    model.const("size", np.array([2]))
    model.const("none", np.zeros(0, int))
    model.const("nil", np.array(0))
    model.node("SparseToDense", "d", ["where", "size", "none", "nil"])
    model.const("wanted", np.array([6, 4]))
    model.node("AddV2", "shape", ["wanted", "d"])
    model.node("Reshape", "r", ["c", "shape"])
    model.const("order", np.array([1, 0]))
    model.node("Transpose", "t", ["r", "order"])
    model.node("Identity", "y", ["t"])
    padded = np.pad(image, [(0, 0), (1, 0), (0, 1), (0, 0)], constant_values=-9)
    leaky = np.where(padded > 0, padded, 0.1 * padded)
    pooled = leaky.reshape(1, 2, 2, 3, 2, 4).max((2, 4))
    first, rest = pooled[..., :1], pooled[..., 1:]
    expected = np.concatenate([rest, 1 / (1 + np.exp(-first))], 3).reshape(6, 4).T
    found = model.run(tmp_path, "y", expected.shape, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_resize_with_half_pixels(tmp_path: Path) -> None:
    image = RNG.normal(size=(1, 4, 6, 2)).astype(np.float32)
    model = start(image.shape)
    model.const("size", np.array([8, 12]))
    model.node("ResizeBilinear", "y", ["x", "size"], half_pixel_centers={"b": True})
    found = model.run(tmp_path, "y", (1, 8, 12, 2), image)
    at = [np.clip((np.arange(n) + 0.5) / 2 - 0.5, 0, n // 2 - 1) for n in (8, 12)]
    v, u = (np.floor(one).astype(int) for one in at)
    dv, du = at[0] - v, at[1] - u
    v1, u1 = np.minimum(v + 1, 3), np.minimum(u + 1, 5)
    rows = image[0, v] * (1 - dv)[:, None, None] + image[0, v1] * dv[:, None, None]
    expected = rows[:, u] * (1 - du)[None, :, None] + rows[:, u1] * du[None, :, None]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_what_it_does_not_know_it_says(tmp_path: Path) -> None:
    model = start((1, 2, 2, 1))
    model.node("Softmax", "y", ["x"])
    image = np.zeros((1, 2, 2, 1), np.float32)
    with pytest.raises(EngineError, match="y: operator Softmax is not known"):
        model.run(tmp_path, "y", (1, 2, 2, 1), image)
    model = start((1, 2, 2, 1))
    model.const("k", np.zeros((1, 1, 1, 1), np.float32))
    model.data = model.data[:-1]
    with pytest.raises(EngineError, match="the weights end before it"):
        model.run(tmp_path, "x", (1, 2, 2, 1), image)
    model.data += b"more"
    with pytest.raises(EngineError, match="expected 4"):
        model.run(tmp_path, "x", (1, 2, 2, 1), image)
