"""Detectors of objects in images, as ONNX: any of the usual layouts, described by a small YAML file
beside the model.

    model.onnx, model.yaml:
    layout: yolox            # nanodet, yolox, yolov8 (also 9 and 11), rtdetr
    size: [416, 640]         # height, width of the input; needed only where the model leaves it open
    color: bgr               # or rgb
    mean: [0, 0, 0]          # taken off the pixels (0..255), then divided by std
    std: [1, 1, 1]
    fit: top_left            # where the image, its proportions kept, lies in the input: top_left, centre; or stretch
    pad: 114                 # grey level of the rest
    classes: coco            # or a list of names, in the model's order
    score: 0.3               # least score
    iou: 0.5                 # overlap from which of two boxes the better one stays
    tiles: 0                 # so many more looks at parts of the image, side by side, for what is small
    strides: [8, 16, 32]     # nanodet, yolox
    bins: 8                  # nanodet: bins of a distance (reg_max + 1)
    centre: 0.5              # nanodet: where in its cell a point is; 0 for NanoDet-Plus

Only layout and classes have to be said; the rest has each layout's usual value (LAYOUTS). The model
takes one image, [1, 3, h, w] float32. Its outputs:

    yolov8   [1, 4 + classes, cells] or its transpose: middle x, y, width, height in pixels of the input, scores
    yolox    [1, cells, 5 + classes]: offsets in the cell, logarithms of the sides in strides, objectness, scores
    nanodet  [1, cells, classes + 4 bins], or these as scores and distances of each stride
    rtdetr   labels, boxes, scores in the image's pixels (a second input takes its size); or logits and boxes
             (middle and sides as shares of the input); or both in one [1, queries, 4 + classes]
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from recon4d_ros.errors import EngineError
from recon4d_ros.geometry import rectangles_shared
from recon4d_ros.types import ImageBox
from recon4d_ros.yaml_text import load_yaml

Array = NDArray[Any]

COCO = tuple(
    "person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;"
    "stop sign;parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;"
    "backpack;umbrella;handbag;tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;"
    "baseball glove;skateboard;surfboard;tennis racket;bottle;wine glass;cup;fork;knife;spoon;bowl;"
    "banana;apple;sandwich;orange;broccoli;carrot;hot dog;pizza;donut;cake;chair;couch;"
    "potted plant;bed;dining table;toilet;tv;laptop;mouse;remote;keyboard;cell phone;microwave;"
    "oven;toaster;sink;refrigerator;book;clock;vase;scissors;teddy bear;hair drier;"
    "toothbrush".split(";")
)

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "nanodet": {
        "color": "bgr",
        "mean": (103.53, 116.28, 123.675),
        "std": (57.375, 57.12, 58.395),
        "fit": "centre",
        "pad": 0,
    },
    "yolox": {"color": "bgr", "fit": "top_left"},
    "yolov8": {"color": "rgb", "std": (255.0, 255.0, 255.0), "fit": "centre"},
    "rtdetr": {"color": "rgb", "std": (255.0, 255.0, 255.0), "fit": "stretch"},
}
"""What each layout's own tools do before the model."""

INSIDE = 0.75
"""Share of the smaller box that lies in a better one of its class from which it goes: a part of the
same thing (the tiles' edges, and NanoDet's habit)."""


@dataclass(frozen=True)
class Description:
    """The YAML file beside the model, field by field; see above."""

    layout: str
    classes: tuple[str, ...]
    size: tuple[int, int] | None = None
    color: str = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fit: str = "centre"
    pad: int = 114
    score: float = 0.3
    iou: float = 0.5
    tiles: int = 0
    strides: tuple[int, ...] = (8, 16, 32)
    bins: int = 8
    centre: float = 0.5


def read_description(model: Path) -> Description:
    """The description beside a model. Raises EngineError with one sentence."""
    file = model.with_suffix(".yaml")
    where = f"detector {model}"
    if not model.is_file():
        raise EngineError(f"{where}: no such file")
    try:
        tree = load_yaml(file.read_text(encoding="utf-8"))
    except OSError:
        raise EngineError(
            f"{where}: its description {file.name} is missing: expected at least `layout:"
            f" {' or '.join(LAYOUTS)}` and `classes: coco` or a list of names"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{where}: {file.name} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tree, dict):
        raise EngineError(f"{where}: {file.name} is not a table of fields")
    if tree.get("layout") not in LAYOUTS:
        raise EngineError(
            f"{where}: {file.name}: layout is {tree.get('layout')!r}: expected one of"
            f" {', '.join(LAYOUTS)}"
        )
    known = [field.name for field in fields(Description)]
    if unknown := [name for name in tree if name not in known]:
        raise EngineError(
            f"{where}: {file.name} has unknown field {unknown[0]!r}: expected {', '.join(known)}"
        )
    values = {**LAYOUTS[tree["layout"]], **tree}
    name = "classes"
    try:
        names: Any = values.get(name)
        values[name] = COCO if names == "coco" else tuple(str(one) for one in names)
        if not values[name] or (isinstance(names, str) and names != "coco"):
            raise ValueError
        for name, count, kind in (("mean", 3, float), ("std", 3, float), ("size", 2, int)):
            if values.get(name) is not None:
                values[name] = tuple(kind(one) for one in values[name])
                if len(values[name]) != count:
                    raise ValueError
        name = "size"
        if values.get(name) and min(values[name]) < 32:
            raise ValueError
        name = "std"
        if 0 in values.get(name, (1,)):
            raise ValueError
        name = "strides"
        values[name] = tuple(int(one) for one in values.get(name, Description.strides))
        if not values[name] or min(values[name]) < 1:
            raise ValueError
        for name, choices in (
            ("color", ("rgb", "bgr")),
            ("fit", ("top_left", "centre", "stretch")),
        ):
            if values.get(name, choices[0]) not in choices:
                raise ValueError
        for name, low, high in (("score", 0, 1), ("iou", 0, 1), ("centre", 0, 1), ("pad", 0, 255)):
            if name in values and not low <= float(values[name]) <= high:
                raise ValueError
        name = "tiles"
        if not 0 <= int(values.get(name, 0)) <= 16:
            raise ValueError
        name = "bins"
        if not 2 <= int(values.get(name, 8)) <= 64:
            raise ValueError
    except (TypeError, ValueError):
        raise EngineError(
            f"{where}: {file.name}: {name} is {tree.get(name)!r}, which is not what this field"
            " holds"
        ) from None
    return Description(**values)


class Detector:
    """A detector, loaded. Not thread-safe. Raises EngineError with one sentence where model or
    description are missing, broken, or not of the layout that is said."""

    def __init__(self, model: Path, runtime: str = "", threads: int = 0) -> None:
        """runtime: openvino, onnxruntime, or the one of them that is installed, in this order."""
        self.description = read_description(model)
        self._where = f"detector {model}"
        self.name = model.stem
        self._run, self.device, inputs = _open(model, runtime, threads, self.description.size)
        images = [name for name, shape in inputs.items() if len(shape) == 4]
        if len(images) != 1 or inputs[images[0]][1] != 3:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
            raise EngineError(
                f"{self._where}: its inputs are {shapes}: expected one image [1, 3, h, w]"
            )
        self._image = images[0]
        self._sizes = [name for name in inputs if name != self._image]
        height, width = inputs[self._image][2:]
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 32):
            raise EngineError(
                f"{self._where}: the model leaves its input's size open: expected `size: [HEIGHT,"
                " WIDTH]` in its description"
            )
        self.size = (height, width)

    def __call__(self, image: NDArray[np.uint8]) -> tuple[ImageBox, ...]:
        """What is in an image [H, W, 3] uint8 RGB, in its pixels, best first. Raises EngineError
        where the outputs are not of the layout."""
        parts = [(0, 0, image.shape[1], image.shape[0])]
        parts += tiles(image.shape[1], image.shape[0], self.description.tiles)
        found = []
        for left, top, right, bottom in parts:
            boxes, scores = self._look(np.ascontiguousarray(image[top:bottom, left:right]))
            found.append((boxes + np.array([left, top, left, top]), scores))
        boxes, scores = (np.concatenate(every) for every in zip(*found, strict=True))
        return chosen(boxes, scores, self.description)

    def _look(self, image: NDArray[np.uint8]) -> tuple[Array, Array]:
        """Edges [K, 4] in pixels of the image, and scores [K, classes]."""
        tensor, scale, shift = prepared(image, self.size, self.description)
        inputs: dict[str, NDArray] = {self._image: tensor}
        for name in self._sizes:  # rtdetr: boxes come out in pixels of an image of this size
            inputs[name] = np.array([[image.shape[1], image.shape[0]]], np.int64)
        outputs = self._run(inputs)
        try:
            boxes, scores, of_image = decoded(outputs, self.size, self.description)
        except (ValueError, IndexError, KeyError) as error:
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in outputs.items())
            raise EngineError(
                f"{self._where}: its outputs are {shapes}, which layout"
                f" {self.description.layout} with {len(self.description.classes)} classes does not"
                f" have: {error}"
            ) from None
        if not of_image:
            boxes = (boxes - np.tile(shift, 2)) / np.tile(scale, 2)
        return boxes, scores


def tiles(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """Parts of an image (left, top, right, bottom), side by side about the middle of its height,
    where the horizon is: square if the image is high enough, a fifth of each shared with its
    neighbours."""
    if not count:
        return []
    side = min(width, round(1.2 * width / count))
    top = max(0, (height - side) // 2)
    lefts = np.rint(np.linspace(0, width - side, count)).astype(int).tolist()
    return [(left, top, left + side, min(height, top + side)) for left in lefts]


def prepared(
    image: NDArray[np.uint8], size: tuple[int, int], description: Description
) -> tuple[Array, Array, Array]:
    """The model's input [1, 3, h, w], and scale and shift [2] by which a pixel edge of the image
    (0 at its left) goes to one of the input."""
    (high, wide), (height, width) = size, image.shape[:2]
    if description.fit == "stretch":
        scale = np.array([wide / width, high / height])
    else:
        scale = np.full(2, min(wide / width, high / height))
    inner = np.maximum(np.rint(np.array([width, height]) * scale), 1).astype(int)
    scale = inner / np.array([width, height])
    shift = np.zeros(2, int)
    if description.fit == "centre":
        shift = (np.array([wide, high]) - inner) // 2
    shrinks = scale.min() < 1
    small = cv2.resize(
        image, tuple(inner.tolist()), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    canvas = np.full((high, wide, 3), description.pad, np.uint8)
    canvas[shift[1] : shift[1] + inner[1], shift[0] : shift[0] + inner[0]] = small
    if description.color == "bgr":
        canvas = canvas[..., ::-1]
    mean, std = (np.array(one, np.float32) for one in (description.mean, description.std))
    tensor = (canvas.astype(np.float32) - mean) / std
    return np.ascontiguousarray(tensor.transpose(2, 0, 1)[None]), scale, shift.astype(np.float64)


def decoded(
    outputs: Mapping[str, Array], size: tuple[int, int], description: Description
) -> tuple[Array, Array, bool]:
    """Edges [K, 4] (left, top, right, bottom), scores [K, classes], and whether the edges are of
    the image already (else of the input). Raises ValueError."""
    count = len(description.classes)
    if description.layout == "rtdetr":
        return _rtdetr(outputs, size, count)
    if description.layout == "nanodet":
        return (*_nanodet(outputs, size, description), False)
    (name,) = outputs if len(outputs) == 1 else (max(outputs, key=lambda one: outputs[one].size),)
    table = _table(outputs[name])
    head = 4 if description.layout == "yolov8" else 5
    if table.shape[0] == head + count and table.shape[1] != head + count:
        table = table.T
    if table.shape[1] != head + count:
        raise ValueError(f"expected {head + count} values a box")
    if description.layout == "yolov8":
        return _edges(table[:, :2], table[:, 2:4]), table[:, 4:], False
    points, strides = cells(size, description.strides, 0.0)
    if len(points) != len(table):
        raise ValueError(f"expected {len(points)} cells")
    middle = (table[:, :2] + points) * strides[:, None]
    sides = np.exp(np.minimum(table[:, 2:4], 20)) * strides[:, None]
    return _edges(middle, sides), table[:, 4:5] * table[:, 5:], False


def _rtdetr(
    outputs: Mapping[str, Array], size: tuple[int, int], count: int
) -> tuple[Array, Array, bool]:
    high, wide = size
    if len(outputs) == 3:
        boxes = next(one for one in outputs.values() if one.ndim and one.shape[-1] == 4)
        named = {name: one for name, one in outputs.items() if one is not boxes}
        labels = named.get("labels", next(iter(named.values()))).reshape(-1).astype(int)
        scores = named.get("scores", list(named.values())[-1]).reshape(-1)
        spread = np.zeros((len(labels), count))
        if len(labels) and labels.max() >= count:
            raise ValueError(f"label {labels.max()}")
        spread[np.arange(len(labels)), labels] = scores
        return boxes.reshape(-1, 4).astype(np.float64), spread, True
    tables = [_table(one) for one in outputs.values()]
    if len(tables) == 1 and tables[0].shape[1] == 4 + count:
        boxes, scores = tables[0][:, :4], tables[0][:, 4:]
    else:
        boxes = next((one for one in tables if one.shape[1] == 4), np.zeros((0, 0)))
        logits = next((one for one in tables if one.shape[1] == count), np.zeros((0, 0)))
        if not boxes.size or len(boxes) != len(logits):
            raise ValueError(f"expected [queries, 4] and [queries, {count}]")
        scores = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    return _edges(boxes[:, :2], boxes[:, 2:]) * [wide, high, wide, high], scores, False


def _nanodet(
    outputs: Mapping[str, Array], size: tuple[int, int], description: Description
) -> tuple[Array, Array]:
    count, bins = len(description.classes), description.bins
    tables = [one.reshape(-1, one.shape[-1]).astype(np.float64) for one in outputs.values()]
    points, strides = cells(size, description.strides, description.centre)
    if len(tables) == 1:
        table = tables[0]
        if table.shape[1] != count + 4 * bins:
            raise ValueError(f"expected {count + 4 * bins} values a cell")
        scores, distances = table[:, :count], table[:, count:]
    else:
        parts = {
            width: sorted((one for one in tables if one.shape[1] == width), key=len, reverse=True)
            for width in (count, 4 * bins)
        }
        if not all(len(one) == len(description.strides) for one in parts.values()):
            raise ValueError(f"expected scores [cells, {count}] and distances [cells, {4 * bins}]")
        scores, distances = (np.concatenate(parts[width]) for width in (count, 4 * bins))
    if len(scores) != len(points) or len(distances) != len(points):
        raise ValueError(f"expected {len(points)} cells")
    # the expectation of a softmax over bins (generalised focal loss; Li et al., 2020)
    logits = distances.reshape(-1, 4, bins)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    reach = (share * np.arange(bins)).sum(-1) / share.sum(-1) * strides[:, None]
    middle = points * strides[:, None]
    return np.concatenate([middle - reach[:, :2], middle + reach[:, 2:]], 1), scores


def cells(size: tuple[int, int], strides: Sequence[int], centre: float) -> tuple[Array, Array]:
    """The cells' points [K, 2] (x, y, in strides) and strides [K] of an input, finest first."""
    points, steps = [], []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in size)
        y, x = np.mgrid[0:rows, 0:columns]
        points.append(np.stack([x, y], -1).reshape(-1, 2) + centre)
        steps.append(np.full(rows * columns, float(stride)))
    return np.concatenate(points), np.concatenate(steps)


def _table(output: Array) -> Array:
    """An output's last two dimensions."""
    table: Array = output.reshape(output.shape[-2:]).astype(np.float64)
    return table


def _edges(middle: Array, sides: Array) -> Array:
    return np.concatenate([middle - sides / 2, middle + sides / 2], 1)


def chosen(boxes: Array, scores: Array, description: Description) -> tuple[ImageBox, ...]:
    """Those that score enough, without a second one of the same thing (greedy, class by class),
    best first. A box's edges in pixels from the middle of the first pixel."""
    label, best = scores.argmax(1), scores.max(1)
    good = np.flatnonzero((best >= description.score) & np.isfinite(boxes).all(1))
    good = good[np.argsort(-best[good], kind="stable")][:300]
    kept: list[int] = []
    for index in good:
        others = [one for one in kept if label[one] == label[index]]
        if others:
            both, mine, theirs = rectangles_shared(boxes[index][None], boxes[others])
            same = both > description.iou * (mine + theirs - both)
            if (same | (both > INSIDE * np.minimum(mine, theirs))).any():
                continue
        kept.append(int(index))
    out = []
    for one in kept:
        left, top, right, bottom = (boxes[one] - 0.5).tolist()
        name = description.classes[int(label[one])]
        out.append(ImageBox(left, top, right, bottom, name, float(best[one])))
    return tuple(out)


def _open(
    model: Path, runtime: str, threads: int, size: tuple[int, int] | None
) -> tuple[Any, str, dict[str, tuple[Any, ...]]]:
    """What runs the model, what that is, and name and shape of its inputs. Raises EngineError."""
    opened = {"openvino": _open_openvino, "onnxruntime": _open_onnxruntime}
    if runtime and runtime not in opened:
        raise EngineError(
            f"detector {model}: runtime {runtime!r} does not run it: expected one of"
            f" {', '.join(opened)}"
        )
    missing: ImportError | None = None
    for name in [runtime] if runtime else opened:
        try:
            return opened[name](model, threads, size)
        except ImportError as error:
            missing = error
        except Exception as error:  # their own types, none of them public
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise EngineError(f"detector {model}: {name} cannot load it: {reason}") from error
    raise EngineError(f"detector {model}: no runtime for it is installed here ({missing})")


def _open_openvino(
    model: Path, threads: int, size: tuple[int, int] | None
) -> tuple[Any, str, dict[str, tuple[Any, ...]]]:
    import openvino as ov

    core = ov.Core()
    graph = core.read_model(str(model))
    wanted = {}
    for node in graph.inputs:
        shape = node.get_partial_shape()
        if len(shape) == 4 and size is not None:
            wanted[node.get_any_name()] = [1, 3, *size]
        elif (
            len(shape) == 4
            and shape.is_dynamic
            and not (shape[2].is_dynamic or shape[3].is_dynamic)
        ):
            wanted[node.get_any_name()] = [1, 3, shape[2].get_length(), shape[3].get_length()]
        elif len(shape) == 2 and shape.is_dynamic:
            wanted[node.get_any_name()] = [1, 2]
    if wanted:
        graph.reshape(wanted)
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(graph, "CPU", config)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Mapping[str, NDArray]) -> dict[str, Array]:
        results = compiled(dict(inputs))
        return {name: np.asarray(results[i]) for i, name in enumerate(names)}

    shapes = {
        node.get_any_name(): tuple(
            "open" if one.is_dynamic else one.get_length() for one in node.get_partial_shape()
        )
        for node in compiled.inputs
    }
    return run, f"openvino CPU ({core.get_property('CPU', 'FULL_DEVICE_NAME')})", shapes


def _open_onnxruntime(
    model: Path, threads: int, size: tuple[int, int] | None
) -> tuple[Any, str, dict[str, tuple[Any, ...]]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    shapes = {}
    for node in session.get_inputs():
        shape = tuple(node.shape)
        open_ = len(shape) == 4 and any(not isinstance(one, int) for one in shape[2:])
        shapes[node.name] = (1, shape[1], *size) if open_ and size is not None else shape

    def run(inputs: Mapping[str, NDArray]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run, "onnxruntime CPU", shapes
