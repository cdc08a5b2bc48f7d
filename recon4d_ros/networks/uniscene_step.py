"""UniScene as an engine's step: the cameras' uint8 images and the car's motion in, occupancy (or
boxes) out; the bird's-eye-view features of the step before are the memory.

One static graph of ordinary operators. What depends on rig and motion alone comes as tables that
the host makes in float64 (../bev.py), so that no threshold, no rounding and no arc tangent is left
in the graph on which runtimes could differ: which cells a camera sees, which cell of the history
each cell shows after a turn, how far the history is shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.bev import CAN_BUS, HEIGHTS, image_from_grid, needed, project_pillars
from recon4d_ros.errors import EngineError
from recon4d_ros.networks import step
from recon4d_ros.networks.uniscene import MEAN, MENDED, History, UniScene, Views
from recon4d_ros.networks.working_image import as_rgb, working_images
from recon4d_ros.types import Calibration

MULTIPLE = 32  # of pixels, that images' sides have to be
SHARE_IN_VIEW = 0.4  # of the cells, that a camera may see at most if no rig says it
CAMERAS_PER_CELL = 3  # that see a cell at most if no rig says it
# the cameras of the training (nuScenes), in the order of their embeddings: where they look, degrees
# counter-clockwise from ahead
TRAINED_CAMERAS = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)
# of the training (nuScenes): its lidar, to which the labels' voxels are put, in its base_link
LIDAR = (0.943713, 0.0, 1.84023)
# options of a step whose network's geometry is mended
OF_MENDED = {"mended_shift": 1.0, "lidar_x": 0.0, "lidar_y": 0.0, "lidar_z": 0.0}


class Memory(NamedTuple):
    """Float32, all zeros at first: bev [Q, C] features of the grid, as the last step left them;
    started [1], 1 once a camera was there."""

    bev: Tensor
    started: Tensor


class UniSceneStep(nn.Module):
    """See networks/step.py; its outputs are no depth.

    Of a network of kind `occupancy`: occupancy [X, Y, Z] float32, 0..1, the softmax of occupied
    against free: above one half where the published code says occupied. It is no calibrated
    probability: the training takes both logits as sigmoids of their own. X runs forward, Y to the
    left. Of kind `detection`: class_scores [queries, classes] as logits and boxes [queries, 10] of
    the last layer (uniscene.detections makes boxes of them).

    cells_in_view, cameras_per_cell: room in the tables of bev.CellsInView (0: SHARE_IN_VIEW of the
    cells, CAMERAS_PER_CELL); the export takes what the rig needs. mended_shift: 1 to shift the
    history along the car's path, and nothing else. The published pre-training shifts it at right
    angles to it, and the present with it, and published weights have learned with that: 0.
    lidar_x, lidar_y, lidar_z: metres, the training's lidar in its base_link. The labels' voxels are
    laid around it. Weights whose geometry is mended (uniscene.Configuration) have other defaults
    of these four (OF_MENDED).
    """

    extra_outputs: tuple[str, ...] = ()

    def __init__(
        self,
        network: UniScene,
        options: step.StepOptions,
        cells_in_view: float = 0,
        cameras_per_cell: float = 0,
        mended_shift: float = 0,
        lidar_x: float = LIDAR[0],
        lidar_y: float = LIDAR[1],
        lidar_z: float = LIDAR[2],
    ) -> None:
        super().__init__()
        self.network, self.options = network, options
        c = network.configuration
        height, width = options.working_size
        if height % MULTIPLE or width % MULTIPLE:
            raise EngineError(
                f"size {height}x{width}: uniscene takes multiples of {MULTIPLE} pixels in height"
                " and width"
            )
        for name, value in (
            ("cells_in_view", cells_in_view),
            ("cameras_per_cell", cameras_per_cell),
        ):
            if value != int(value) or value < 0:
                raise EngineError(f"{name} is {value}: expected a whole number, 0 or more")
        if mended_shift not in (0, 1):
            raise EngineError(f"mended_shift is {mended_shift}: expected 1 or 0")
        cells = c.rows * c.columns
        self.slots = min(cells, int(cells_in_view) or round(SHARE_IN_VIEW * cells))
        self.views = min(options.cameras, int(cameras_per_cell) or CAMERAS_PER_CELL)
        self.occupancy = c.kind == "occupancy"
        self.outputs = ("occupancy",) if self.occupancy else ("class_scores", "boxes")
        self.config = c.kind
        self.described: dict[str, Any] = {
            "rows": c.rows,
            "columns": c.columns,
            "low": list(c.grid.low),
            "high": list(c.grid.high),
            "cells_in_view": self.slots,
            "cameras_per_cell": self.views,
            "mended_shift": int(mended_shift),
            "grid_frame": "lidar" if c.in_lidar else "base_link",
            "lidar": [float(lidar_x), float(lidar_y), float(lidar_z)],
            "trained_cameras": list(TRAINED_CAMERAS[: c.cameras]),
        }
        """What engine.yaml says of it beside the memory."""
        if options.cameras != c.cameras:
            self.described["caution"] = (
                f"uniscene was trained with {c.cameras} cameras and runs with {options.cameras}:"
                " each takes the embedding of the one that looked in the most similar direction;"
                " what its weights are worth on such a rig is not known"
            )

    def frame_inputs(self) -> step.Signature:
        """images, present, grid: as for every network. can_bus [18]: bev.streamed. shift [2, 2] of
        history and present, from_cell [Q]: bev.turned_cells. cell [N, K], point [N, K, 4, 2], slot
        [Q, V]: bev.CellsInView. place [N]: bev.trained_places."""
        n, cells = self.options.cameras, self.described["rows"] * self.described["columns"]
        every = step.frame_inputs(self.options)
        return {name: every[name] for name in ("images", "present", "grid")} | {
            "can_bus": (torch.float32, (CAN_BUS,)),
            "shift": (torch.float32, (2, 2)),
            "from_cell": (torch.int32, (cells,)),
            "cell": (torch.int32, (n, self.slots)),
            "point": (torch.float32, (n, self.slots, HEIGHTS, 2)),
            "slot": (torch.int32, (cells, self.views)),
            "place": (torch.int32, (n,)),
        }

    def memory_shapes(self) -> Mapping[str, tuple[int, ...]]:
        cells = self.described["rows"] * self.described["columns"]
        return {"bev": (cells, self.network.configuration.width), "started": (1,)}

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        grid: Tensor,
        can_bus: Tensor,
        shift: Tensor,
        from_cell: Tensor,
        cell: Tensor,
        point: Tensor,
        slot: Tensor,
        place: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, ...]:
        old = Memory(*memory)
        x, covered = working_images(images, grid)
        rgb = as_rgb(x)
        bgr = torch.cat([rgb[:, 2:], rgb[:, 1:2], rgb[:, :1]], 1)
        mean = torch.tensor(MEAN, device=x.device)[:, None, None]
        # what shows nothing is zero after normalising, as the training's padding
        bgr = torch.where(covered[:, None], bgr - mean, 0.0)
        turned = F.pad(old.bev, (0, 0, 0, 1)).index_select(0, from_cell)
        bev, out = self.network(
            bgr,
            can_bus,
            Views(cell, point, slot, present, place),
            History(turned, old.started, shift),
        )
        new = Memory(bev, torch.maximum(old.started, present.amax(0, keepdim=True)))
        if self.occupancy:
            return (out.softmax(-1)[..., 1], *new)
        return (out.scores[-1], out.boxes[-1], *new)


def options_for(
    network: UniScene, calibration: Calibration, own: Mapping[str, Any]
) -> dict[str, float]:
    """The step's options that follow from a rig: room for the cells that its cameras see."""
    c = network.configuration
    lidar = [
        float(own.get(f"lidar_{axis}", known)) for axis, known in zip("xyz", LIDAR, strict=True)
    ]
    matrix = image_from_grid(calibration, lidar if c.in_lidar else None)
    slots, views = needed(project_pillars(c.grid, matrix, calibration.working_size)[1])
    return {"cells_in_view": slots, "cameras_per_cell": views}


def make_step(network: UniScene, options: step.StepOptions, **own: float) -> UniSceneStep:
    known = OF_MENDED if network.configuration.geometry == MENDED else {}
    return UniSceneStep(network, options, **(known | own))
