"""What every engine is to the rest of the package: its specification (engine.yaml) and the one call
a frame makes.

An engine is a folder: a model file of static shapes and `engine.yaml`, which `EngineSpec` mirrors
field by field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from recon4d_ros.alignment import Scale
from recon4d_ros.cameras.calibration import REDUCTIONS, reduced_size, sizes_for, upright
from recon4d_ros.engine.any_size import at_sizes, check_shapes
from recon4d_ros.errors import EngineError
from recon4d_ros.types import Calibration, Frame, Geometry, Pointers, Rig
from recon4d_ros.yaml_text import load_yaml

FORMAT = 1  # of engine.yaml; a reader of another number refuses with a sentence
SPEC_FILE = "engine.yaml"
STAND_IN = "stand-in"  # instead of the SHA-256 of a checkpoint
STAND_IN_WARNING = (
    "this engine has stand-in weights, not a checkpoint's: its depth, masks and map mean nothing"
)
OBJECTS = "objects"  # config of engines that give objects: engine/objects.py
MOTION = "motion"  # config of the engine that says what moves: engine/motion.py
WITHOUT_DEPTH = (
    OBJECTS,
    "occupancy",
    "detection",
    MOTION,
)  # configs of engines that give something else
STAND_IN_OTHER = "this engine has stand-in weights, not a checkpoint's: its {} {} nothing"


@dataclass(frozen=True)
class EngineSpec:
    """engine.yaml, field by field.

    network: the published system or `recon4d_geometric`; config: its variant (`stereo`, `surround`,
    `learned`, or what it gives in place of depth: WITHOUT_DEPTH). runtime: the default, measured
    fastest at export (`openvino`, `onnxruntime`). cameras: N. input_size: (H, W) of the uint8
    images, channels: 1 grey or 3 RGB. working_size: (h, w) of depth. pointers: capacity M of the
    memory, feature: F. precision: `fp32`. model: file name beside engine.yaml, model_sha256: its
    checksum. checkpoint_sha256: of the learned weights, `none` without. inputs, outputs: names in
    the graph's order. options: the network's parameters at export, `memory` (name: shape) among
    them. versions: of the libraries that built it. parity: differences between PyTorch and each
    runtime, per output. extra_outputs: name: shape of what the graph gives after depth, sigma,
    confidence and color, or of all where it gives no depth. files: name: SHA-256 of what lies
    beside the model file and belongs to it (weights of a large model). source: the same of the ONNX
    that lies beside a TensorRT engine, to build it anew from; its model first. build: how a
    TensorRT engine was built (tensorrt_library.py: Build). shapes: of an engine of any size, name:
    shape of each input of the graph, with H, W, h, w for the sizes (engine/any_size.py);
    input_size, working_size and the memory's shapes are then those it was measured at, until
    `at_sizes` puts in a rig's. Empty where they are fixed.
    """

    network: str
    config: str
    runtime: str
    cameras: int
    input_size: tuple[int, int]
    channels: int
    working_size: tuple[int, int]
    pointers: int
    feature: int
    precision: str
    model: str
    model_sha256: str
    checkpoint_sha256: str = "none"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    extra_outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        tree = _plain(dataclasses.asdict(self))
        path.write_text(yaml.safe_dump(tree, sort_keys=False, width=140), encoding="utf-8")

    @property
    def stereo(self) -> bool:
        return self.config == "stereo"

    @property
    def gives_depth(self) -> bool:
        """Whether it is an engine of the reconstruction; if not, `config` says what it gives."""
        return self.config not in WITHOUT_DEPTH

    @property
    def warning(self) -> str:
        """What everyone who sees this engine's results has to know first; empty if there is
        nothing."""
        verb = "mean" if self.config == OBJECTS else "means"
        other = STAND_IN_OTHER.format(self.config, verb)
        stand_in = STAND_IN_WARNING if self.gives_depth else other
        said = [stand_in] if self.checkpoint_sha256 == STAND_IN else []
        trained = self.options.get("trained_cameras", self.cameras)
        if isinstance(trained, int) and trained != self.cameras:  # UniScene lists angles: `caution`
            said.append(
                f"{self.network} was trained with {trained} cameras and runs with {self.cameras}:"
                " the order and the number of cameras are free in its design, but what its weights"
                " are worth on other rigs is not known"
            )
        return "; ".join([*said, *filter(None, [self.options.get("caution")])])


def _plain(value: Any) -> Any:
    """Without tuples, which YAML does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


class Engine(Protocol):
    """One loaded engine with its memory. Not thread-safe: one caller steps it, in the order of the
    frames."""

    spec: EngineSpec
    forgotten: int
    """How often the memory held what is not finite since the engine was loaded, and was therefore
    forgotten as by `reset`."""

    @property
    def device(self) -> str:
        """What runs it on what, and what of it is not as it should be: that may show with the first
        steps."""
        ...

    def reset(self) -> None:
        """Forgets everything seen: as after loading."""

    def step(
        self,
        frame: Frame,
        calibration: Calibration,
        T_map_camera: NDArray[np.float64],
        moving_previous: NDArray[np.bool_],
    ) -> Geometry:
        """Depth of one frame, and the memory's next state.

        T_map_camera: [N, 4, 4] poses of the cameras at their own stamps. moving_previous: [N, h,
        w], what dynamics found moving in the frame before (all False at first): the tokens of that
        frame enter the memory now, without these pixels. The arrays of the result are the caller's:
        the next step does not overwrite them. Raises EngineError if a shape is not the engine's or
        a pose is not finite.
        """
        ...

    def pointers(self) -> Pointers:
        """A copy of the memory as the last step left it, positions in map; none of a network whose
        pointers are its own affair."""
        ...

    @property
    def memory_fill(self) -> float:
        """Fraction of the memory in use, 0..1."""
        ...

    @property
    def scales(self) -> tuple[Scale | None, ...]:
        """The metric scale of a network that predicts up to scale, by now (None: not known): one
        for all cameras, or one for each where the network gives each a unit of its own. Empty where
        none is needed."""
        ...

    def gpu_memory(self) -> tuple[float, float]:
        """MiB in use on the GPU, by all programs, and MiB there are; 0 if it runs on the CPU, NaN
        if that is not known."""
        ...

    def close(self) -> None:
        """Gives the runtime's memory back."""


def load_spec(folder: Path, rig: Rig | None = None) -> EngineSpec:
    """engine.yaml of an engine's folder, checked; with a rig, as it is for this one: an engine of
    any size has a rig's own sizes (the motion network's are dynamics': engine/motion.py). Raises
    EngineError with one sentence."""
    spec = _read_spec(Path(folder))
    if rig is not None and spec.shapes and spec.config != MOTION:
        return at_sizes(spec, *sizes_for(rig, spec.stereo))
    return spec


def _read_spec(folder: Path) -> EngineSpec:
    if not folder.is_dir():
        raise EngineError(
            f"engine {folder}: no such folder: expected one with model.onnx and {SPEC_FILE}"
            " (`recon4d export` makes one)"
        )
    path = folder / SPEC_FILE
    if not path.is_file():
        raise EngineError(
            f"engine {folder}: {SPEC_FILE} is missing: this is not an engine, or its export was"
            " interrupted"
        )
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise EngineError(
            f"engine {folder}: {SPEC_FILE} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tree, dict):
        raise EngineError(f"engine {folder}: {SPEC_FILE} is not a table of fields")
    if tree.get("format") != FORMAT:
        raise EngineError(
            f"engine {folder}: format {_words(tree.get('format'))} of {SPEC_FILE}: this version"
            f" reads format {FORMAT}; export it again"
        )
    fields = {f.name: f for f in dataclasses.fields(EngineSpec)}
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, unknown = sorted(required - set(tree)), sorted(set(tree) - set(fields), key=str)
    if missing or unknown:
        raise EngineError(
            f"engine {folder}: {SPEC_FILE} "
            + (
                f"lacks {', '.join(missing)}"
                if missing
                else f"has unknown field {_words(unknown[0])}"
            )
        )
    try:
        for name in ("input_size", "working_size"):
            tree[name] = (int(tree[name][0]), int(tree[name][1]))
        for name in ("inputs", "outputs"):
            tree[name] = tuple(str(n) for n in tree.get(name) or ())
        for name in ("cameras", "channels", "pointers", "feature"):
            tree[name] = int(tree[name])
        name = "extra_outputs"
        tree[name] = {
            str(key): tuple(int(size) for size in shape)
            for key, shape in (tree.get(name) or {}).items()
        }
        for name in ("files", "source"):
            tree[name] = {str(key): str(value) for key, value in (tree.get(name) or {}).items()}
        for name in ("network", "config", "runtime", "precision", "model", "model_sha256"):
            if not isinstance(tree[name], str):
                raise TypeError
        for name in ("cameras", "channels"):
            if tree[name] < 1:
                raise ValueError
        for name in ("input_size", "working_size"):
            if min(tree[name]) < 1:
                raise ValueError
        for name in ("options", "versions", "parity", "build"):
            if not isinstance(tree.setdefault(name, {}), dict):
                raise TypeError
        name = "shapes"
        tree[name] = check_shapes(tree.get(name) or {})
        if tree[name] and set(tree[name]) != set(tree["inputs"]):
            raise ValueError
        name = "options"
        memory = tree[name].setdefault("memory", None)
        if any(int(size) < 1 for shape in memory.values() for size in shape):
            raise ValueError
        name = "model"
        if any(Path(key).name != key for key in (tree["model"], *tree["files"], *tree["source"])):
            raise ValueError
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError):
        raise EngineError(
            f"engine {folder}: {SPEC_FILE}: {name} is {_words(repr(tree[name]))}, which is not what"
            " this field holds"
        ) from None
    return EngineSpec(**tree)


def _words(value: object) -> str:
    """What a file says, for a sentence: on one line, and not for pages."""
    said = " ".join(str(value).split())
    return said if len(said) < 80 else said[:77] + "..."


def check_files(folder: Path, spec: EngineSpec) -> Path:
    """The model file; it and those that belong to it are whole and unchanged since export. Raises
    EngineError."""
    for name, expected in {spec.model: spec.model_sha256, **spec.files}.items():
        path = Path(folder) / name
        if not path.is_file():
            raise EngineError(f"engine {folder}: its model file {name} is missing")
        if sha256_of(path) != expected:
            raise EngineError(
                f"engine {folder}: {name} ({path.stat().st_size} bytes) is truncated or changed"
                " since its export (SHA-256): export it again"
            )
    return Path(folder) / spec.model


def source_spec(spec: EngineSpec) -> EngineSpec | None:
    """The ONNX engine that a TensorRT engine was built from, where its files lie beside it."""
    if not spec.source:
        return None
    model = next(iter(spec.source))
    milliseconds = {
        name: report["milliseconds"]
        for name, report in spec.parity.items()
        if name != spec.runtime and "milliseconds" in report
    }
    return dataclasses.replace(
        spec,
        model=model,
        model_sha256=spec.source[model],
        files={name: digest for name, digest in spec.source.items() if name != model},
        runtime=min(milliseconds, key=lambda name: milliseconds[name], default="onnxruntime"),
        source={},
        build={},
        parity={name: report for name, report in spec.parity.items() if name != spec.runtime},
    )


def identity(spec: EngineSpec) -> str:
    """A checksum of all that decides what an ONNX engine computes: two engines with one are the
    same."""
    tree = _plain(dataclasses.asdict(spec))
    for name in ("runtime", "versions", "parity", "source", "build"):
        del tree[name]
    return hashlib.sha256(yaml.safe_dump(tree, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_rectified_pair(
    k: NDArray[np.float64], T_base_camera: NDArray[np.float64], size: tuple[int, int]
) -> bool:
    """Whether two cameras (left first) are a rectified stereo pair: rows of both see the same
    points to within half a pixel.

    k: [2, 3, 3] of images of `size` (h, w). T_base_camera: [2, 4, 4].
    """
    left, right = T_base_camera
    relative = np.linalg.inv(left) @ right
    baseline = relative[0, 3]
    off_axis = math.hypot(relative[1, 3], relative[2, 3])
    turn = math.acos(max(-1.0, min(1.0, (np.trace(relative[:3, :3]) - 1) / 2)))
    return bool(
        baseline > 0.02
        and off_axis < 0.01 * baseline
        and turn * k[0, 0, 0] < 0.5
        and np.abs(k[0] - k[1])[[0, 1, 1], [0, 1, 2]].max() < 0.5 * max(1.0, size[1] / 1024)
    )


def check_fits(spec: EngineSpec, calibration: Calibration, where: str) -> None:
    """Raises EngineError if the engine was made for another rig."""
    if len(calibration.names) != spec.cameras:
        raise EngineError(
            f"{where} is made for {spec.cameras} camera(s): this rig has {len(calibration.names)}"
        )
    if tuple(calibration.input_size) != spec.input_size:
        raise EngineError(
            f"{where} takes images of {_size(spec.input_size)}: this rig's are"
            f" {_size(calibration.input_size)}"
        )
    if tuple(calibration.working_size) != spec.working_size:
        raise EngineError(
            f"{where} works at {_size(spec.working_size)}: the calibration was made for"
            f" {_size(calibration.working_size)}"
        )
    if spec.stereo and not is_rectified_pair(
        calibration.k, calibration.T_base_camera, calibration.working_size
    ):
        raise EngineError(
            f"{where} is made for a rectified stereo pair, left camera first: cameras"
            f" {', '.join(calibration.names)} are not one"
        )


def fits_rig(spec: EngineSpec, rig: Rig) -> bool:
    """Whether the engine can serve a rig: same number of cameras; an input size that is the images'
    (or theirs averaged down by 2, 4 or 8), where it is not of any size; a rectified pair for a
    stereo one."""
    if len(rig.cameras) != spec.cameras:
        return False
    if spec.shapes:
        return not spec.stereo or is_rectified_rig(rig)
    sizes = [
        tuple(max(reduced_size(camera, reduce)[axis] for camera in rig.cameras) for axis in (0, 1))
        for reduce in REDUCTIONS
    ]
    if spec.input_size not in sizes:
        return False
    return not spec.stereo or is_rectified_rig(rig)


def is_rectified_rig(rig: Rig) -> bool:
    """Whether a rig's raw images are a rectified stereo pair, left camera first."""
    first = rig.cameras[0]
    return (
        len(rig.cameras) == 2
        and all(
            (camera.width, camera.height) == (first.width, first.height)
            and not any(camera.d)
            and upright(camera) is None
            for camera in rig.cameras
        )
        and is_rectified_pair(
            np.stack([camera.k for camera in rig.cameras]),
            rig.T_base_camera,
            (first.height, first.width),
        )
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
