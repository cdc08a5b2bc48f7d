"""Training of the motion network (networks/motion.py) on the shards of motion_data.py.

Streams: each runs through one camera of one shard, T images a step, gradients through these
(truncated backpropagation through time), the memory carried to the next step without. What is wrong
with real cameras and poses is added here: exposure, noise, a pose that is off, depth that is not
there, and a belief that is wrong, without which false alarms feed themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from recon4d_ros.dynamics.motion_inputs import FARTHEST
from recon4d_ros.errors import EngineError
from recon4d_ros.networks.motion import (
    STATE,
    Look,
    MotionNetwork,
    cues,
    load_network,
    remembered,
)
from recon4d_ros.training.motion_data import NEAR_WALLS
from recon4d_ros.training.run_folder import RunFolder, cosine, warmed_up

HELD_OUT = 10
"""Every so many-th shard is for validation."""

RATE, WEIGHT_DECAY, LAST_RATE = 1.5e-3, 1e-3, 0.02
RATE_ON = 6e-4
"""The highest rate of a run that starts from another's weights."""

WARM_UP = 60
AVERAGED = 0.998
"""Share of the averaged weights that stays at each step (Polyak and Juditsky, 1992): single steps
are far apart in what they mark, their mean is not."""

OFTEN = 3.0
"""How many times more often a piece from NEAR_WALLS on is looked at than one before it."""

CLIP = 2.0
FROM_START, FORGET, WRONG_BELIEF = 0.4, 0.04, 0.2
NO_GREY, NO_DEPTH = 0.4, 0.12
TONE = 0.25
"""Standard deviation of the logarithm of a stream's gamma."""

POSE_TURN, POSE_LENGTH = 3e-4, 0.01
"""rad, and share of the way, by which a stream's poses are off (standard deviation)."""


@dataclass(frozen=True)
class Recipe:
    """minutes: of processor time. streams, images: of each step. seed: of everything random.
    start: a checkpoint whose weights the run starts from; None: from nothing."""

    minutes: float = 60.0
    streams: int = 4
    images: int = 3
    seed: int = 0
    start: Path | None = None


@dataclass(eq=False)
class Stream:
    """A camera of a shard, from image `at` on. Its augmentation stays while it runs."""

    shard: dict[str, NDArray]
    camera: int
    at: int
    mirror: bool
    gain: float
    gain_before: float
    gamma: float
    noise: float
    no_grey: bool
    no_depth: bool
    turn: NDArray[np.float32]
    length: float

    def left(self, images: int) -> bool:
        return self.at + images <= len(self.shard["label"])


class Shards:
    """All shards of a folder in memory, by the size of their grid; new ones are found by `look`."""

    def __init__(self, folder: Path, held_out: bool) -> None:
        self._folder, self._held_out = folder, held_out
        self._seen: set[str] = set()
        self.by_size: dict[tuple[int, int], list[dict[str, NDArray]]] = {}
        self.look()

    def look(self) -> int:
        """Reads what is new; how many shards there are."""
        for file in sorted(self._folder.glob("[0-9]*[0-9].npz")):
            if file.name in self._seen or (int(file.stem) % HELD_OUT == HELD_OUT - 1) != (
                self._held_out
            ):
                continue
            self._seen.add(file.name)
            with np.load(file) as data:
                shard = dict(data)
            often = OFTEN if int(file.stem) >= NEAR_WALLS else 1.0
            shard["often"] = np.array(often * np.sqrt(shard["label"].shape[1]))
            self.by_size.setdefault(shard["label"].shape[-2:], []).append(shard)
        return len(self._seen)

    def choose_size(self, rng: np.random.Generator) -> tuple[int, int]:
        sizes = list(self.by_size)
        count = np.array(
            [sum(float(shard["often"]) for shard in self.by_size[size]) for size in sizes]
        )
        return sizes[int(rng.choice(len(sizes), p=count / count.sum()))]


def start_stream(shards: list[dict[str, NDArray]], images: int, rng: np.random.Generator) -> Stream:
    """A new stream, in two of three cases rather of a camera that sees something move: one that
    looks aside at a wall sees nothing move, and has to be learned, too."""
    weights = np.array([float(shard["often"]) for shard in shards])
    for _ in range(3 if rng.random() < 2 / 3 else 1):
        shard = shards[int(rng.choice(len(shards), p=weights / weights.sum()))]
        camera = int(rng.integers(shard["label"].shape[1]))
        if (shard["label"][:, camera] > 127).mean() > 0.003:
            break
    last = len(shard["label"]) - images
    return Stream(
        shard,
        camera,
        0 if rng.random() < FROM_START else int(rng.integers(0, max(last, 0) + 1)),
        bool(rng.random() < 0.5),
        float(np.exp(rng.normal(0, 0.15))),
        float(np.exp(rng.normal(0, 0.03))),
        float(np.exp(rng.normal(0, TONE))),
        float(rng.choice([0.0, 1.0, 3.0])),
        bool(rng.random() < NO_GREY),
        bool(rng.random() < NO_DEPTH),
        rng.normal(0, POSE_TURN, 3).astype(np.float32),
        float(np.exp(rng.normal(0, POSE_LENGTH))),
    )


def read(stream: Stream, rng: np.random.Generator | None) -> dict[str, NDArray]:
    """A stream's next image as arrays named after `Look`, with label and weight. rng: for noise."""
    s, c, t = stream.shard, stream.camera, stream.at
    one = {
        name: s[name][t, c].astype(np.float32)
        for name in ("grey", "grey_before", "flow", "q", "sigma", "confidence", "q_before")
    }
    one |= {name: s[name][t, c].copy() for name in ("T_before_now", "road", "label", "weight")}
    one |= {"k": s["k"][c].copy(), "covered": s["covered"][c]}
    one["seconds"] = s["seconds"][t]
    one["share"] = s["share"][t] if "share" in s else np.float32(1)  # shards from before have none
    one["flow"] = np.clip(np.nan_to_num(one["flow"]), -FARTHEST, FARTHEST)
    if rng is not None:
        for name, gain in (
            ("grey", stream.gain),
            ("grey_before", stream.gain * stream.gain_before),
        ):
            noise = rng.normal(0, stream.noise, one[name].shape) if stream.noise else 0.0
            toned = 255 * (one[name] / 255) ** np.float32(stream.gamma)
            one[name] = np.clip(toned * gain + noise, 0, 255)
        T = one["T_before_now"]
        turn = stream.turn
        skew = np.array(
            [[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]], np.float32
        )
        T[:3, :3] = T[:3, :3] + skew @ T[:3, :3]
        T[:3, 3] *= stream.length
        if stream.no_depth:
            for name, none in (("q", 0), ("q_before", 0), ("sigma", 1), ("confidence", 0)):
                one[name][:] = none
    if stream.mirror:
        for name, value in one.items():
            if value.ndim >= 2 and name not in ("k", "T_before_now"):
                one[name] = value[..., ::-1]
        one["flow"] = one["flow"] * np.array([-1, 1], np.float32)[:, None, None]
        mirror = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(np.float32)
        one["T_before_now"] = mirror @ one["T_before_now"] @ mirror
        one["road"][0] *= -1
        one["k"][0, 2] = one["label"].shape[-1] - 1 - one["k"][0, 2]
    stream.at += 1
    return one


def batch(ones: list[dict[str, NDArray]]) -> tuple[Look, Tensor, Tensor]:
    """The network's inputs, and label and weight [n, h, w]."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.stack([one[name] for one in ones])))

    look = Look(
        **{name: stack(name) for name in Look.__dataclass_fields__ if name != "keep"},
        keep=torch.ones(len(ones)),
    )
    return look, stack("label").float() / 255, stack("weight").float() / 50


GREY = slice(34, 36)
"""The cues that show the image itself."""


def loss_of(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy, and soft Dice (Milletari et al., 2016) over the batch and by
    stream."""
    entropy = F.binary_cross_entropy_with_logits(logit, label, weight)
    p, asked = torch.sigmoid(logit), (weight > 0).float()
    both = (p * label * asked).sum((1, 2))
    either = ((p + label) * asked).sum((1, 2))
    dice = 1 - (2 * both.sum() + 1) / (either.sum() + 1)
    by_stream = (1 - (2 * both + 20) / (either + 20)).mean()
    return 3 * entropy + 0.5 * dice + 0.25 * by_stream


def spoil(belief: Tensor, rng: np.random.Generator) -> None:
    """Forget some memories, and put a rectangle of wrong belief into others, in place."""
    h, w = belief.shape[-2:]
    for i in range(len(belief)):
        if rng.random() < FORGET:
            belief[i] = 0
        elif rng.random() < WRONG_BELIEF:
            top, left = int(rng.integers(0, h - 4)), int(rng.integers(0, w - 4))
            high, wide = int(rng.integers(3, h // 2)), int(rng.integers(3, w // 3))
            belief[i, 0, top : top + high, left : left + wide] = float(
                rng.choice([-1, 0.2, 0.8, 1])
            )


class Trainer:
    """One run; its folder holds the last checkpoint and a log, and a run that was cut off goes
    on."""

    def __init__(self, shards: Path, out: Path, recipe: Recipe) -> None:
        self.recipe, self._run = recipe, RunFolder(out)
        torch.manual_seed(recipe.seed)
        self._rng = np.random.default_rng(recipe.seed)
        self.network, self.averaged = MotionNetwork(), MotionNetwork().eval()
        if recipe.start is not None:
            self.network.load_state_dict(load_network(recipe.start).state_dict())
        self.averaged.load_state_dict(self.network.state_dict())
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY
        )
        self._step, self._spent = 0, 0.0
        self._train, self._valid = Shards(shards, False), Shards(shards, True)
        if not self._train.by_size:
            raise EngineError(
                f"{shards}: holds no shard to train on (every {HELD_OUT}th is held out): make more"
                " pieces"
            )
        self._streams: dict[tuple[int, int], tuple[list[Stream], Tensor]] = {}
        if (kept := self._run.load()) is not None:
            try:
                self.network.load_state_dict(kept["network"])
                self.averaged.load_state_dict(kept["averaged"])
                self._optimizer.load_state_dict(kept["optimizer"])
                self._step, self._spent = kept["step"], kept["spent"]
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise EngineError(
                    f"{self._run.checkpoint}: is of another version of this training ({reason}):"
                    " another --out begins anew"
                ) from None
            self._rng = np.random.default_rng([recipe.seed, self._step])

    def run(self) -> None:
        """To the end of the recipe's minutes."""
        budget, mean = self.recipe.minutes * 60, None
        while self._spent < budget:
            start = time.process_time()
            loss = self._one_step(self._spent / budget)
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            self._step += 1
            self._spent += time.process_time() - start
            if self._step % 200 == 0:
                self._train.look()
                self._valid.look()
                self._save()
                self._log({"step": self._step, "minutes": self._spent / 60, "loss": mean})
            if self._step % 1000 == 0:
                self._log({"step": self._step} | self.validate(60))
        self._save()
        self._log({"step": self._step} | self.validate(400))

    def _one_step(self, progress: float) -> float:
        recipe, rng = self.recipe, self._rng
        rate = cosine(progress, LAST_RATE) * warmed_up(self._step, WARM_UP)
        for group in self._optimizer.param_groups:
            highest = RATE if recipe.start is None else RATE_ON
            group["lr"] = highest * rate
        size = self._train.choose_size(rng)
        shards = self._train.by_size[size]
        streams, belief = self._streams.get(size) or ([], torch.zeros(0, 1 + STATE, *size))
        belief = belief.clone()
        if not streams:
            streams = [start_stream(shards, recipe.images, rng) for _ in range(recipe.streams)]
            belief = torch.zeros(recipe.streams, 1 + STATE, *size)
        for i, stream in enumerate(streams):
            if not stream.left(recipe.images):
                streams[i] = start_stream(shards, recipe.images, rng)
                belief[i] = 0
        spoil(belief, rng)
        self.network.train()
        total = torch.zeros(())
        for _ in range(recipe.images):
            look, label, weight = batch([read(stream, rng) for stream in streams])
            known, carried = cues(look, belief)
            if any(stream.no_grey for stream in streams):
                shown = torch.tensor([float(not stream.no_grey) for stream in streams])
                known[:, GREY] *= shown[:, None, None, None]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logit, state = self.network.decide(known, carried)
            belief = remembered(logit, state)
            total = total + loss_of(logit, label, weight) / recipe.images
        self._optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self._optimizer.step()
        self._average()
        self._streams[size] = streams, belief.detach()
        return float(total.detach())

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights, and what batch normalisation has counted, on by one step."""
        stays = min(AVERAGED, (1 + self._step) / (10 + self._step))
        for mean, one in zip(
            self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(one, 1 - stays)
            else:
                mean.copy_(one)

    @torch.no_grad()
    def validate(self, most: int) -> dict[str, float]:
        """IoU, and the share of what is static that is marked, by the averaged weights on the grid
        of up to so many cameras of the shards held out, each from its first image on."""
        hit = said = true = static = 0
        for one in _cameras(self._valid, most):
            belief = torch.zeros(1, 1 + STATE, *one.shard["label"].shape[-2:])
            while one.left(1):
                look, label, weight = batch([read(one, None)])
                known, carried = cues(look, belief)
                logit, state = self.averaged.decide(known, carried)
                belief = remembered(logit, state)
                found, moves, asked = logit > 0, label > 0.5, weight > 0
                hit += int((found & moves & asked).sum())
                said += int((found & asked).sum())
                true += int((moves & asked).sum())
                static += int((asked & ~moves).sum())
        return {
            "iou": hit / max(said + true - hit, 1),
            "precision": hit / max(said, 1),
            "recall": hit / max(true, 1),
            "static_marked": (said - hit) / max(static, 1),
        }

    def _save(self) -> None:
        self._run.save(
            {
                "network": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "step": self._step,
                "spent": self._spent,
            }
        )

    def _log(self, entry: dict[str, float]) -> None:
        self._run.log({"shards": self._train.look()} | entry)


def _cameras(shards: Shards, most: int) -> Iterator[Stream]:
    every = [
        (shard, camera)
        for size in sorted(shards.by_size)
        for shard in shards.by_size[size]
        for camera in range(shard["label"].shape[1])
    ]
    step = max(1, len(every) // most)
    for shard, camera in every[::step]:
        yield Stream(
            shard, camera, 0, False, 1.0, 1.0, 1.0, 0.0, False, False, np.zeros(3, np.float32), 1.0
        )
