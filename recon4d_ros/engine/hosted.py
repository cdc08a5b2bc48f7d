"""The host's side of an engine: what a runtime cannot know of poses, anchors, absent cameras and
NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.alignment import Scale, WorldScales
from recon4d_ros.engine.base import EngineSpec, check_fits
from recon4d_ros.errors import EngineError
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Calibration, Frame, Geometry, Pointers

ANCHOR_GRID = 64.0  # metres: anchors are whole multiples, so that a shift is exact in float32
# metres from the anchor at which it follows the car: float32 there is exact to 8 micrometres
ANCHOR_REACH = 100.0
LOOK_AT_MEMORY = 32  # steps after which the memory is looked through even if nothing seems wrong
PARTNER_DEPTHS = (
    4.0,
    10.0,
    40.0,
)  # metres at which a rig neighbour must see a pixel to be matched with


CONSTANT = ("grid", "k", "partner")
# extra output of networks that predict up to scale: [N, 3] camera centres in their own world
NETWORK_POSITION = "network_position"
POINTERS = {
    "pointer_position",
    "pointer_feature",
    "pointer_weight",
    "pointer_age",
    "pointer_valid",
}  # memory that Pointers can say
NO_POINTERS = Pointers(
    np.zeros((0, 3)),
    np.zeros((0, 0), np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, bool),
)


class Runtime(Protocol):
    """What one file per runtime provides: a model that runs, with its memory kept inside."""

    name: str
    device: str

    def run(self, inputs: Mapping[str, NDArray], outputs: Mapping[str, NDArray]) -> None: ...

    def memory(self, name: str) -> NDArray[np.float32]: ...

    def remember(self, memory: Mapping[str, NDArray[np.float32]]) -> None:
        """Puts these tensors in the memory's place (to hold one step against another runtime's)."""

    def reset(self) -> None: ...

    def gpu_memory(self) -> tuple[float, float]:
        """As Engine.gpu_memory."""
        ...

    def close(self) -> None: ...


class HostedEngine:
    """The `Engine` protocol over a `Runtime`. See engine/base.py."""

    def __init__(self, spec: EngineSpec, runtime: Runtime, where: str):
        self.spec = spec
        self._runtime = runtime
        self._where = where
        self._steps = 0
        self.forgotten = 0
        self._anchor: NDArray[np.float64] | None = None
        self._calibration: Calibration | None = None
        self._constant: dict[str, NDArray] = {}
        one_world = bool(spec.options.get("one_world", True))
        self._scales = (
            WorldScales(spec.cameras, one_world) if NETWORK_POSITION in spec.extra_outputs else None
        )

    @property
    def device(self) -> str:
        return self._runtime.device

    def reset(self) -> None:
        self._runtime.reset()
        self._anchor = None
        if self._scales:
            self._scales.reset()

    def use(self, calibration: Calibration) -> None:
        """Takes a calibration as the rig's. Raises EngineError if the engine was made for another
        rig."""
        if calibration is self._calibration:
            return
        check_fits(self.spec, calibration, self._where)
        self._constant = constant_inputs(self.spec, calibration)
        self._calibration = calibration

    def step(
        self,
        frame: Frame,
        calibration: Calibration,
        T_map_camera: NDArray[np.float64],
        moving_previous: NDArray[np.bool_],
    ) -> Geometry:
        self.use(calibration)
        spec = self.spec
        n, (h, w) = spec.cameras, spec.working_size
        self._expect("images", frame.images, (n, *spec.input_size, spec.channels))
        self._expect("T_map_camera", T_map_camera, (n, 4, 4))
        self._expect("moving_previous", moving_previous, (n, h, w))
        if not np.isfinite(T_map_camera).all():
            raise EngineError(f"{self._where}: a camera's pose is not finite")
        anchor, shift = self._follow(T_map_camera)
        pose = T_map_camera.copy()
        pose[:, :3, 3] -= anchor
        moving = np.ascontiguousarray(moving_previous).view(
            np.uint8
        )  # 0 or 1: only zero or not matters
        outputs = empty_outputs(spec)
        frame_inputs: dict[str, NDArray] = {
            "images": np.ascontiguousarray(frame.images),
            "present": frame.present.astype(np.float32),
            "pose": pose.astype(np.float32),
            "anchor_shift": shift.astype(np.float32),
            "moving": moving,
            "metres_per_unit": self._scales.metres_per_unit()[:1]
            if self._scales
            else np.zeros(1, np.float32),
        }
        self._runtime.run(
            {name: array for name, array in frame_inputs.items() if name in spec.inputs}
            | self._constant,
            outputs,
        )
        depth, sigma, confidence = outputs["depth"], outputs["sigma"], outputs["confidence"]
        finite = {
            name: np.isfinite(array) for name, array in outputs.items() if array.dtype != np.uint8
        }
        none = ~(finite["depth"] & finite["sigma"] & finite["confidence"] & (depth > 0))
        forgotten = self._forget_what_is_not_finite(
            seems_wrong=bool(none.all()) or not all(known.all() for known in finite.values())
        )
        if self._scales:
            if not forgotten:  # else the next step's positions are of another world
                there = frame.present & finite[NETWORK_POSITION].all(1)
                self._scales.observe(outputs[NETWORK_POSITION], T_map_camera[:, :3, 3], there)
            metres, relative_sigma = (
                values[:, None, None]
                for values in (self._scales.metres_per_unit(), self._scales.relative_sigma())
            )
            depth *= metres
            np.hypot(sigma * metres, depth * relative_sigma, out=sigma)
            none |= metres == 0
        confidence[none] = 0
        depth[none] = np.nan
        sigma[none] = np.nan
        return Geometry(depth, sigma, confidence, np.broadcast_to(outputs["color"], (n, h, w, 3)))

    def pointers(self) -> Pointers:
        memory = self._runtime.memory
        if not POINTERS <= self.spec.options["memory"].keys():
            return NO_POINTERS
        anchor = np.zeros(3) if self._anchor is None else self._anchor
        return Pointers(
            memory("pointer_position").astype(np.float64) + anchor,
            memory("pointer_feature").copy(),
            memory("pointer_weight").copy(),
            memory("pointer_age").copy(),
            memory("pointer_valid") > 0.5,
        )

    @property
    def memory_fill(self) -> float:
        """Share of what the memory's tensors named *_valid say is in use."""
        filled = [
            self._runtime.memory(name) > 0.5
            for name in self.spec.options["memory"]
            if name.endswith("_valid")
        ]
        filled = (
            filled
            if not POINTERS <= self.spec.options["memory"].keys()
            else [self._runtime.memory("pointer_valid") > 0.5]
        )
        return sum(int(part.sum()) for part in filled) / max(1, sum(part.size for part in filled))

    @property
    def scales(self) -> tuple[Scale | None, ...]:
        return self._scales.scales if self._scales else ()

    def gpu_memory(self) -> tuple[float, float]:
        return self._runtime.gpu_memory()

    def close(self) -> None:
        self._runtime.close()

    def _forget_what_is_not_finite(self, *, seems_wrong: bool) -> bool:
        """Whether all was forgotten, and counted: a number that is not finite stays in the memory
        and spreads.

        Reading the whole memory costs, so it is done when a step seems wrong, and now and then.
        """
        self._steps += 1
        if not seems_wrong and self._steps % LOOK_AT_MEMORY:
            return False
        if all(
            np.isfinite(self._runtime.memory(name)).all() for name in self.spec.options["memory"]
        ):
            return False
        self.forgotten += 1
        self.reset()
        return True

    def _follow(
        self, T_map_camera: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The anchor, which moves along if the car has left it behind, and by how much it moved, in
        metres."""
        car = T_map_camera[:, :3, 3].mean(0)
        nearest = np.round(car / ANCHOR_GRID) * ANCHOR_GRID
        if self._anchor is None:
            self._anchor = nearest
        if np.abs(car - self._anchor).max() <= ANCHOR_REACH:
            return self._anchor, np.zeros(3)
        shift = nearest - self._anchor
        self._anchor = nearest
        return nearest, shift

    def _expect(self, name: str, array: NDArray, shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise EngineError(
                f"{self._where}: {name} has shape {list(array.shape)}: expected {list(shape)}"
            )


def constant_inputs(spec: EngineSpec, calibration: Calibration) -> dict[str, NDArray]:
    """Those inputs of the graph that stay as they are over a drive (CONSTANT): always the same
    arrays."""
    constant = {
        "grid": np.ascontiguousarray(calibration.grid, np.float32),
        "k": np.ascontiguousarray(calibration.k, np.float32),
    }
    if "partner" in spec.inputs:
        constant["partner"] = rig_partners(calibration, int(spec.options["stride"]))
    return {name: array for name, array in constant.items() if name in spec.inputs}


def empty_outputs(spec: EngineSpec) -> dict[str, NDArray]:
    """Arrays for a step to fill."""
    n, (h, w) = spec.cameras, spec.working_size
    outputs: dict[str, NDArray] = {}
    if spec.gives_depth:
        outputs |= {
            name: np.empty((n, h, w), np.float32) for name in ("depth", "sigma", "confidence")
        }
        outputs["color"] = np.empty((n, h, w, spec.channels), np.uint8)
    return outputs | {
        name: np.empty(shape, np.float32) for name, shape in spec.extra_outputs.items()
    }


def rig_partners(calibration: Calibration, stride: int) -> NDArray[np.float32]:
    """[N, y, x] for each pixel at 1 / stride of the working size, the other camera that sees it at
    most of PARTNER_DEPTHS (the one whose image centre is nearest to it), -1 where none does."""
    n, (h, w) = len(calibration.names), calibration.working_size
    v, u = np.meshgrid(
        np.arange(h // stride) * stride + (stride - 1) / 2,
        np.arange(w // stride) * stride + (stride - 1) / 2,
        indexing="ij",
    )
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    T_camera_base = inverse(calibration.T_base_camera)
    best = np.full((n, *u.shape), 0.0)
    partner = np.full((n, *u.shape), -1, np.float32)
    for i in range(n):
        rays = pixels @ np.linalg.inv(calibration.k[i]).T
        for j in range(n):
            if i == j:
                continue
            relative = T_camera_base[j] @ calibration.T_base_camera[i]
            score = np.zeros(u.shape)
            for depth in PARTNER_DEPTHS:
                point = (rays * depth) @ relative[:3, :3].T + relative[:3, 3]
                z = np.maximum(point[..., 2], 1e-3)
                q = point / z[..., None] @ calibration.k[j].T
                seen = (
                    (point[..., 2] > 0.3)
                    & (q[..., 0] >= 0)
                    & (q[..., 0] <= w - 1)
                    & (q[..., 1] >= 0)
                    & (q[..., 1] <= h - 1)
                )
                score += seen * (2 - np.abs(q[..., 0] / w - 0.5) - np.abs(q[..., 1] / h - 0.5))
            better = score > np.maximum(best[i], 1.0)
            best[i] = np.where(better, score, best[i])
            partner[i] = np.where(better, j, partner[i])
    return partner
