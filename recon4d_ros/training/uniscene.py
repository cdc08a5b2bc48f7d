"""Training of UniScene (networks/uniscene.py) on the shards of uniscene_data.py: occupancy (the
pre-training) or detection (the fine-tuning).

Streams: each runs through one drive from key frame to key frame, what the grid held is carried to
the next without gradients (as BEVFormer trains its queue of frames). Augmentation: exposure, and
the whole world mirrored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recon4d_ros import bev
from recon4d_ros.engine.occupancy import AT_REST
from recon4d_ros.errors import EngineError
from recon4d_ros.evaluation.metrics.detection import Found, mean_average_precision
from recon4d_ros.networks.mended_labels import OCCUPIED, UNKNOWN
from recon4d_ros.networks.sparse4d import CLASSES
from recon4d_ros.networks.uniscene import (
    MEAN,
    MENDED,
    Boxes,
    Configuration,
    History,
    UniScene,
    Views,
    detections,
    occupancy_loss,
)
from recon4d_ros.networks.uniscene_step import TRAINED_CAMERAS
from recon4d_ros.training.run_folder import RunFolder, cosine, warmed_up
from recon4d_ros.training.set_prediction import Targets, set_loss, targets_of
from recon4d_ros.training.uniscene_data import labels_of
from recon4d_ros.training.uniscene_start import CarriedOver, carry_over, start_network
from recon4d_ros.types import Calibration

HELD_OUT = 5
"""Every so many-th shard is for validation, from the fifth on."""

WEIGHT_DECAY, CLIP, LAST_RATE, FIRST_RATE = 0.01, 35.0, 1e-3, 1 / 3  # published
GAIN = 0.15  # standard deviation of the logarithm of a stream's exposure
SAVED_EVERY = 50  # steps


@dataclass(frozen=True)
class Recipe:
    """steps of `frames` streams. rate: the highest; backbone: times this for the backbone
    (published: 2e-4, 0.1). warm_up: steps. share: of the drives that are not held out. seed: of
    everything random, and of which drives the share is. fixed_norm: batch normalisation keeps what
    it starts with (published). bf16: convolutions in it."""

    steps: int = 2000
    frames: int = 2
    rate: float = 2e-4
    backbone: float = 0.1
    warm_up: int = 500
    share: float = 1.0
    seed: int = 0
    fixed_norm: bool = False
    bf16: bool = False


# --- drives


class Shard:
    """One drive, plain or mirrored (left is right), as the network is given it."""

    def __init__(
        self, arrays: dict[str, NDArray], c: Configuration, mirrored: bool = False
    ) -> None:
        a = mirror(arrays) if mirrored else arrays
        self.count, self.lidar = len(a["images"]), a["lidar"]
        self._a, self._c = a, c
        height, width = a["images"].shape[2:4]
        names = tuple(str(i) for i in range(len(a["k"])))
        grid = np.zeros((len(names), 1, 1, 2), np.float32)
        rig = Calibration(names, grid, a["k"], a["T_base_camera"], (height, width), (height, width))
        matrix = bev.image_from_grid(rig, self.lidar if c.in_lidar else None)
        tables = bev.cells_in_view(*bev.project_pillars(c.grid, matrix, (height, width)))
        place = bev.trained_places(rig.T_base_camera, TRAINED_CAMERAS[: c.cameras])
        cell, point, slot = (
            torch.from_numpy(table) for table in (tables.cell, tables.point, tables.slot)
        )
        everyone = torch.ones(len(names))
        self._views = Views(cell, point, slot, everyone, torch.from_numpy(place))
        self._covered = torch.from_numpy(np.ascontiguousarray(a["covered"]))

    def views(self, t: int) -> Views:
        return self._views._replace(present=torch.from_numpy(self._a["present"][t]).float())

    def images(self, t: int, gain: float = 1.0) -> Tensor:
        """[N, 3, h, w] as the network takes them."""
        bgr = torch.from_numpy(np.ascontiguousarray(self._a["images"][t][..., ::-1]))
        x = (bgr.permute(0, 3, 1, 2).float() * gain).clamp(0, 255)  # the channels last in memory
        return torch.where(self._covered[:, None], x - torch.tensor(MEAN)[:, None, None], 0.0)

    def state(self, t: int) -> NDArray[np.float64]:
        return bev.can_bus(self._a["T_map_base"][t], self._a["velocity"][t], AT_REST)

    def occupancy(self, t: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._a["occupancy"][t]))

    def targets(self, t: int) -> Targets:
        here = self._a["box_frame"] == t
        boxes, kinds = self._a["boxes"][here], self._a["box_class"][here]
        return targets_of(boxes, kinds, self._c, self.lidar)


def mirror(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """The same drive with left and right changed. The last voxel of an axis is no place of its own
    (occupancy_labels.voxelised) and stays."""
    a = dict(arrays)
    y, x = np.diag([1.0, -1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    a["images"], a["covered"] = a["images"][:, :, :, ::-1], a["covered"][:, :, ::-1]
    a["k"] = a["k"].copy()
    a["k"][:, 0, 2] = a["images"].shape[3] - 1 - a["k"][:, 0, 2]
    a["T_base_camera"], a["T_map_base"] = y @ a["T_base_camera"] @ x, y @ a["T_map_base"] @ y
    a["lidar"] = a["lidar"] * (1, -1, 1)
    a["velocity"] = a["velocity"] * (1, -1, 1, -1, 1, -1)
    a["occupancy"] = a["occupancy"].copy()
    a["occupancy"][:, :, :-1] = arrays["occupancy"][:, :, -2::-1]
    a["boxes"] = a["boxes"] * np.array((1, -1, 1, 1, 1, 1, -1, 1, -1), np.float32)
    return a


def read_shards(folder: Path, c: Configuration, held_out: bool) -> list[tuple[Shard, Shard]]:
    """Each plain and mirrored. Raises EngineError if one has labels of another kind."""
    found = []
    for file in sorted(folder.glob("[0-9]*[0-9].npz")):
        if (int(file.stem) % HELD_OUT == HELD_OUT - 1) != held_out:
            continue
        with np.load(file) as data:
            arrays = dict(data)
        if c.kind == "occupancy" and str(arrays["labels"]) != labels_of(c):
            raise EngineError(
                f"{file}: its labels are of {arrays['labels']}, the network is of {labels_of(c)}:"
                " another --out, or the same --model and --labels"
            )
        found.append((Shard(arrays, c), Shard(arrays, c, mirrored=True)))
    return found


# --- one frame


class Carried(NamedTuple):
    """What a stream keeps from frame to frame: the grid's features [Q, C] and the car's state."""

    bev: Tensor
    state: NDArray[np.float64]


def look(
    network: UniScene,
    shard: Shard,
    t: int,
    before: Carried | None,
    gain: float = 1.0,
    bf16: bool = False,
) -> tuple[Tensor | Boxes, Carried]:
    """One key frame, with what the one before left. bf16: convolutions in it; where cells look at
    images, float32 is as fast."""
    c = network.configuration
    state = shard.state(t)
    given = bev.streamed(state, before.state if before else None)
    shifts = bev.history_shifts(given, c.grid, c.in_lidar, c.geometry == MENDED)
    turned = torch.zeros(c.grid.cells, c.width)
    if before is not None:
        cells = torch.from_numpy(bev.turned_cells(given[bev.YAW_DEGREES], c.grid))
        turned = nn.functional.pad(before.bev, (0, 0, 0, 1)).index_select(0, cells)
    history = History(
        turned, torch.tensor([float(before is not None)]), torch.from_numpy(shifts).float()
    )
    can_bus = torch.from_numpy(given).float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        features = network.features(shard.images(t, gain))
    seen = network.head.encode([x.float() for x in features], can_bus, shard.views(t), history)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16 and c.kind == "occupancy"):
        out = network.head.decode(seen)
    return out, Carried(seen.detach(), state)


def loss_of(out: Tensor | Boxes, shard: Shard, t: int) -> Tensor:
    if isinstance(out, Boxes):
        return set_loss(Boxes(out.scores.float(), out.boxes.float()), shard.targets(t))
    return occupancy_loss(out.float(), shard.occupancy(t))


@dataclass(eq=False)
class Stream:
    shard: Shard
    at: int
    gain: float
    carried: Carried | None = None


# --- a run


class Trainer:
    """One run. `out` holds the last checkpoint, which `recon4d export` takes, and the log; a run
    that was cut off goes on."""

    def __init__(
        self,
        shards: Path,
        out: Path,
        c: Configuration,
        recipe: Recipe = Recipe(),
        init: Path | None = None,
    ) -> None:
        self.recipe, self.configuration = recipe, c
        self.folder = RunFolder(out)
        self._rng = np.random.default_rng(recipe.seed)
        kept = self.folder.load()
        if kept is not None and kept.get("args", {}).get("model") != c.text:
            raise EngineError(f"{self.folder.checkpoint}: is of another run: another --out")
        every = read_shards(shards, c, False)
        order = np.random.default_rng([recipe.seed, 1]).permutation(len(every))
        chosen = order[: max(1, round(recipe.share * len(every)))]
        self.drives = [every[index] for index in sorted(chosen)]
        self.held_out = [plain for plain, _ in read_shards(shards, c, True)]
        if not self.drives:
            raise EngineError(f"{shards}: holds no shard to train on")
        self.network = start_network(c, recipe.seed)
        self.carried_over: CarriedOver | None = None
        if init is not None:
            self.carried_over = carry_over(self.network, init)
        # as the images lie in memory
        backbone = self.network.img_backbone
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = _groups(self.network, recipe)
        self._optimizer = torch.optim.AdamW(
            groups, lr=recipe.rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.step, self.spent = 0, 0.0
        self._streams: list[Stream] = []
        if kept is not None:
            self.network.load_state_dict(kept["state_dict"])
            self._optimizer.load_state_dict(kept["optimizer"])
            self.step, self.spent = kept["step"], kept["spent"]
            self._rng = np.random.default_rng([recipe.seed, self.step])
        elif self.carried_over is not None:
            self.folder.log({"init": self.carried_over.sentence})

    def run(self, progress: Callable[[int], None] = lambda step: None) -> dict[str, float]:
        """To the end of the recipe's steps; the score on the drives held out."""
        mean: float | None = None
        while self.step < self.recipe.steps:
            start = time.process_time()
            loss = self.one_step()
            mean = loss if mean is None else 0.95 * mean + 0.05 * loss
            self.step += 1
            self.spent += time.process_time() - start
            progress(self.step)
            if self.step % SAVED_EVERY == 0 or self.step == self.recipe.steps:
                self._save()
                self.folder.log({"step": self.step, "seconds": round(self.spent, 1), "loss": mean})
        score = self.validate()
        self.folder.log({"step": self.step, "drives": len(self.drives)} | score)
        return score

    def one_step(self) -> float:
        recipe = self.recipe
        share = cosine(self.step / recipe.steps, LAST_RATE)
        share *= warmed_up(self.step, recipe.warm_up, FIRST_RATE)
        for group in self._optimizer.param_groups:
            group["lr"] = group["highest"] * share
        while len(self._streams) < recipe.frames:
            self._streams.append(self._start())
        self.network.train()
        if recipe.fixed_norm:
            for part in self.network.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        self._optimizer.zero_grad()
        total = 0.0
        for number, stream in enumerate(self._streams):
            if stream.at >= stream.shard.count:
                stream = self._streams[number] = self._start()
            out, stream.carried = look(
                self.network, stream.shard, stream.at, stream.carried, stream.gain, recipe.bf16
            )
            loss = loss_of(out, stream.shard, stream.at) / recipe.frames
            loss.backward()  # type: ignore[no-untyped-call]
            stream.at += 1
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self._optimizer.step()
        return total

    def _start(self) -> Stream:
        rng = self._rng
        shard = self.drives[int(rng.integers(len(self.drives)))][int(rng.integers(2))]
        first = int(rng.integers(max(1, shard.count - 2)))
        return Stream(shard, first, float(np.exp(rng.normal(0, GAIN))))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """On the drives held out, each from its first frame on: the loss, and IoU of the voxels
        that are known; or the loss, and mean average precision by centre distance, of all and of
        every class that is there."""
        self.network.eval()
        if self.configuration.kind == "occupancy":
            return _occupancy_score(self.network, self.held_out)
        return _detection_score(self.network, self.held_out)

    def _save(self) -> None:
        self.folder.save(
            {
                "state_dict": self.network.state_dict(),
                "args": {"model": self.configuration.text},
                "optimizer": self._optimizer.state_dict(),
                "step": self.step,
                "spent": self.spent,
            }
        )


def _groups(network: UniScene, recipe: Recipe) -> list[dict]:
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts[name.startswith("img_backbone")].append(parameter)
    rates = recipe.rate, recipe.rate * recipe.backbone
    return [
        {"params": part, "highest": rate} for part, rate in zip(parts, rates, strict=True) if part
    ]


def _outputs(
    network: UniScene, shards: list[Shard]
) -> Iterator[tuple[int, Shard, int, Tensor | Boxes]]:
    """Number of the frame over all shards, shard, frame in it, what the network says."""
    number = 0
    for shard in shards:
        before = None
        for t in range(shard.count):
            out, before = look(network, shard, t, before)
            yield number, shard, t, out
            number += 1


def _occupancy_score(network: UniScene, shards: list[Shard]) -> dict[str, float]:
    hit = said = true = 0
    losses = []
    for _, shard, t, out in _outputs(network, shards):
        assert isinstance(out, Tensor)
        losses.append(float(loss_of(out, shard, t)))
        label = shard.occupancy(t)
        found, occupied = out.argmax(-1) == 1, label == OCCUPIED
        found &= label != UNKNOWN
        hit, said = hit + int((found & occupied).sum()), said + int(found.sum())
        true += int(occupied.sum())
    return {
        "held_out_loss": float(np.mean(losses)) if losses else float("nan"),
        "iou": hit / max(1, said + true - hit),
        "precision": hit / max(1, said),
        "recall": hit / max(1, true),
    }


def _detection_score(network: UniScene, shards: list[Shard]) -> dict[str, float]:
    found: list[list[NDArray]] = [[], []]
    losses = []
    for number, shard, t, out in _outputs(network, shards):
        assert isinstance(out, Boxes)
        losses.append(float(loss_of(out, shard, t)))
        best, truth = detections(out.scores[-1], out.boxes[-1], 100), shard.targets(t)
        for kept, label, xy, sure in (
            (found[0], best.label, best.box[:, :2], best.score),
            (found[1], truth.label, truth.box[:, :2], torch.ones(len(truth.label))),
        ):
            frame = torch.full((len(label), 1), float(number))
            kept.append(torch.cat([frame, label[:, None], xy, sure[:, None]], 1).numpy())
    ours, theirs = (
        Found(rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2:4], rows[:, 4])
        for rows in (np.concatenate([*part, np.zeros((0, 5))]) for part in found)
    )
    mean, by_class = mean_average_precision(ours, theirs)
    held_out_loss = float(np.mean(losses)) if losses else float("nan")
    counts = {f"{CLASSES[k]}_true": float((theirs.label == k).sum()) for k in by_class}
    named = {CLASSES[k]: value for k, value in by_class.items()}
    return {"held_out_loss": held_out_loss, "map": mean} | named | counts
