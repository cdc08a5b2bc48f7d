"""`recon4d_geometric`: what is fixed at export, and the names, types and shapes that follow from
it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recon4d_ros.errors import ParameterError
from recon4d_ros.networks import step
from recon4d_ros.networks.matching import CENSUS_8
from recon4d_ros.networks.pointer_memory import FEATURE

NETWORK = "recon4d_geometric"


@dataclass(frozen=True)
class GeometricOptions:
    """Fixed at export. Sizes in working pixels unless named otherwise.

    stride: working pixels per volume pixel. planes: of the volume (stereo: disparities 0..planes-1
    volume pixels; surround: inverse depths from 0 to 1 / near). near, far: metres. step_penalty,
    jump_penalty: of semi-global matching, in units of a perfect match. cell: side of the square
    that offers one token. patch_step: pixels between a patch's samples. merge_radius: metres.
    keyframe_motion: metres a camera moves before its older frame is replaced. cue: weight of a
    pointer's projection, in units of a perfect match. agree: correlation from which a patch counts
    as seen again. precision: standard deviation of a match in volume pixels (surround). floor:
    confidence below which a pixel gets no depth. fade: what a depth recalled from the frame before
    keeps of its confidence (stereo).
    """

    config: str
    cameras: int
    input_size: tuple[int, int]
    channels: int
    working_size: tuple[int, int]
    pointers: int = 2048
    stride: int = 4
    planes: int = 48
    near: float = 1.5
    far: float = 150.0
    step_penalty: float = 0.4
    jump_penalty: float = 2.0
    cell: int = 32
    patch_step: float = 2.0
    merge_radius: float = 0.3
    keyframe_motion: float = 0.5
    cue: float = 1.0
    agree: float = 0.7
    precision: float = 0.3
    floor: float = 0.2
    fade: float = 0.7

    def __post_init__(self) -> None:
        """Raises ParameterError."""
        for name, (kind, least, most) in LIMITS.items():
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if kind is int else int | float)
                or not least <= value <= most
            ):
                what = "a whole number" if kind is int else "a number"
                raise ParameterError(
                    f"option {name} is {value!r}: expected {what} from {least:g} to {most:g}"
                )
        if self.far <= self.near:
            raise ParameterError(
                f"option far is {self.far:g}: expected more than near, {self.near:g}"
            )
        if self.stereo and self.stride % 2:
            raise ParameterError(
                f"option stride is {self.stride}: expected an even number in config stereo"
            )
        if any(size % self.stride for size in self.working_size):
            height, width = self.working_size
            raise ParameterError(
                f"option stride is {self.stride}: expected a divisor of the working size,"
                f" {height}x{width}"
            )
        if self.cell % self.depth_stride or self.cell > min(self.working_size):
            raise ParameterError(
                f"option cell is {self.cell}: expected a multiple of {self.depth_stride} up to the"
                f" working size's {min(self.working_size)}"
            )

    @property
    def stereo(self) -> bool:
        return self.config == "stereo"

    @property
    def volume_size(self) -> tuple[int, int]:
        return self.working_size[0] // self.stride, self.working_size[1] // self.stride

    @property
    def depth_stride(self) -> int:
        """Working pixels per pixel of the depth before it is brought to full resolution: a pair's
        is refined to twice its volume's."""
        return self.stride // 2 if self.stereo else self.stride

    @property
    def token_cameras(self) -> int:
        """Both views of a pair see the same points: only the left one offers tokens."""
        return 1 if self.stereo else self.cameras

    @property
    def tokens(self) -> int:
        return (
            self.token_cameras
            * (self.working_size[0] // self.cell)
            * (self.working_size[1] // self.cell)
        )


LIMITS: dict[str, tuple[type, float, float]] = {
    "stride": (int, 1, 16),
    "planes": (int, 4, 512),
    "near": (float, 0.01, 1000.0),
    "far": (float, 0.1, 10_000.0),
    "step_penalty": (float, 0.0, 100.0),
    "jump_penalty": (float, 0.0, 100.0),
    "cell": (int, 4, 512),
    "patch_step": (float, 0.1, 32.0),
    "merge_radius": (float, 0.0, 100.0),
    "keyframe_motion": (float, 0.0, 100.0),
    "cue": (float, 0.0, 100.0),
    "agree": (float, -1.0, 1.0),
    "precision": (float, 0.001, 100.0),
    "floor": (float, 0.0, 1.0),
    "fade": (float, 0.0, 1.0),
}

# what a rig without a rectified pair wants otherwise
SURROUND = {"stride": 2, "planes": 40, "patch_step": 1.0, "floor": 0.3}


def frame_inputs(o: GeometricOptions) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, types and shapes of what a step takes beside the memory, in order: those of
    networks/step.py, and for a rig of more than one without a pair, partner: per volume pixel the
    index of the rig neighbour to match with, -1 for none."""
    every = step.frame_inputs(step.StepOptions(o.cameras, o.input_size, o.working_size, o.channels))
    inputs = {
        name: every[name]
        for name in ("images", "present", "grid", "k", "pose", "anchor_shift", "moving")
    }
    if not o.stereo and o.cameras > 1:
        inputs["partner"] = (torch.float32, (o.cameras, *o.volume_size))
    return inputs


def shapes_of_any_size(o: GeometricOptions) -> dict[str, tuple[int | str, ...]]:
    """The shapes of all inputs with the sizes as symbols, in the notation of engine/any_size.py."""
    y, x = f"h//{o.stride}", f"w//{o.stride}"
    fine = (f"h//{o.depth_stride}", f"w//{o.depth_stride}")
    tokens = f"{o.token_cameras}*(h//{o.cell})*(w//{o.cell})"
    symbols: dict[str, dict[int, str]] = {
        "images": {1: "H", 2: "W"},
        "grid": {1: "h", 2: "w"},
        "moving": {1: "h", 2: "w"},
        "partner": {1: y, 2: x},
        "before_inverse": {1: fine[0], 2: fine[1]},
        "before_sure": {1: fine[0], 2: fine[1]},
    }
    for frame in ("key", "next"):
        symbols |= {f"{frame}_descriptor": {2: y, 3: x}, f"{frame}_inverse": {1: y, 2: x}}
    every = {name: shape for name, (_, shape) in frame_inputs(o).items()} | memory_shapes(o)
    return {
        name: tuple(
            tokens
            if name.startswith("token_") and axis == 0
            else symbols.get(name, {}).get(axis, size)
            for axis, size in enumerate(shape)
        )
        for name, shape in every.items()
    }


def memory_shapes(o: GeometricOptions) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the memory, all float32, all zeros at the start. `*_pixel` are flat
    indices into [n, h, w], -1 for none (and 0 at the start, where nothing is valid)."""
    n, m, t, (y, x) = o.cameras, o.pointers, o.tokens, o.volume_size
    shapes: dict[str, tuple[int, ...]] = {
        "pointer_position": (m, 3),
        "pointer_feature": (m, FEATURE),
        "pointer_weight": (m,),
        "pointer_age": (m,),
        "pointer_valid": (m,),
        "pointer_pixel": (n, m),
        "token_position": (t, 3),
        "token_feature": (t, FEATURE),
        "token_weight": (t,),
        "token_again": (t,),
        "token_pixel": (t,),
    }
    if o.stereo:  # the depth of the frame before, for what only one of the two sees now
        shapes |= {
            "before_inverse": (2, 2 * y, 2 * x),
            "before_sure": (2, 2 * y, 2 * x),
            "before_pose": (2, 4, 4),
        }
    else:
        c = len(CENSUS_8)
        for name in (
            "key",
            "next",
        ):  # the older frame that is matched against, and the one that will take its place
            shapes |= {
                f"{name}_descriptor": (n, c, y, x),
                f"{name}_inverse": (n, y, x),
                f"{name}_pose": (n, 4, 4),
                f"{name}_valid": (n,),
            }
    return shapes
