"""Point3R as a stream with a memory of fixed size: step(images, memory) -> (predictions, memory'),
no shape depending on data.

With room to spare it does what the authors' code does. When the slots are full, new pointers take
the places of those that are farthest from everything that the cameras show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.point3r import PATCH, Point3R, Pointers, Prediction

FAR = 1e30  # a squared distance beyond any, and finite


@dataclass(frozen=True)
class Fusion:
    """When an offered pointer merges into its nearest one: nearer than the diagonal of everything
    seen / `cells` (the published rule), but never farther than `longest` (in the network's own
    unit; a number or a tensor []). The published rule alone merges ever more on a long drive."""

    cells: float = 20.0
    longest: float | Tensor = float("inf")


class StreamMemory(NamedTuple):
    """feature [M, C], position [M, 3], valid [M] bool of the pointers; token_positions [N, T, 3]:
    where each camera's patches were last seen; slots [1, pose_slots, 2 C] of the poses; started []
    bool."""

    feature: Tensor
    position: Tensor
    valid: Tensor
    token_positions: Tensor
    slots: Tensor
    started: Tensor


class Look(NamedTuple):
    """What one image gave: its prediction, the slots of the poses after it, and the pointers it
    offers: feature [T, C], position [T, 3]."""

    prediction: Prediction
    slots: Tensor
    feature: Tensor
    position: Tensor


def look(
    net: Point3R,
    tokens: Tensor,
    grid: tuple[int, int],
    known: Tensor,
    pointers: Pointers,
    slots: Tensor,
    started: Tensor,
) -> Look:
    """One encoded image meets the memory: tokens [1, T, encoder_width] of a grid of patches; known
    [T, 3], where these were last seen; started [], whether the memory has seen an image."""
    count = tokens.shape[1]
    summary = tokens.mean(1, keepdim=True)
    pose = torch.where(started, net.pose_retriever.read(summary, slots), net.pose_token)
    # the very first image talks with its own tokens, which are nowhere yet (position zero)
    own = F.pad(net.decoder_embed_memory(tokens)[0], (0, 0, 0, pointers.valid.shape[0] - count))
    there = torch.arange(pointers.valid.shape[0], device=tokens.device) < count
    before = Pointers(
        torch.where(started, pointers.feature, own),
        pointers.position,
        pointers.valid | (there & ~started),
    )
    decoded = net.decode(tokens, known, pose, before)
    prediction = net.predict(decoded, grid)
    slots = net.pose_retriever.write(summary, decoded[-1][:, :1], slots)
    return Look(prediction, slots, *net.offer(tokens, decoded[-1][:, 1:], prediction.points))


class PointerStream(nn.Module):
    """N cameras [H, W] share M pointers. Their images are encoded together and then enter the
    memory one after the other, in camera order."""

    def __init__(
        self,
        network: Point3R,
        size: tuple[int, int],
        cameras: int = 1,
        capacity: int = 1024,
        fusion: Fusion = Fusion(),
    ) -> None:
        super().__init__()
        self.network, self.cameras, self.capacity, self.fusion = network, cameras, capacity, fusion
        self.grid = size[0] // PATCH, size[1] // PATCH
        self.patches = self.grid[0] * self.grid[1]
        if size[0] % PATCH or size[1] % PATCH:
            raise EngineError(
                f"size {size[0]}x{size[1]}: height and width must be multiples of {PATCH}"
            )
        check_capacity(capacity, cameras, self.patches)

    def begin(self) -> StreamMemory:
        """The memory before the first image."""
        slots = self.network.pose_retriever.mem.detach().clone()
        zeros = partial(torch.zeros, device=slots.device)
        return StreamMemory(
            feature=zeros(
                self.capacity, self.network.configuration.decoder_width, dtype=slots.dtype
            ),
            position=zeros(self.capacity, 3),
            valid=zeros(self.capacity, dtype=torch.bool),
            token_positions=zeros(self.cameras, self.patches, 3),
            slots=slots,
            started=zeros((), dtype=torch.bool),
        )

    def forward(self, images: Tensor, memory: StreamMemory) -> tuple[Prediction, StreamMemory]:
        """images [N, 3, H, W] in -1..1 -> Prediction of the N images, and the memory for the next
        ones."""
        net = self.network
        encoded = net.encode(images)
        pointers = Pointers(memory.feature, memory.position, memory.valid)
        slots, started = memory.slots, memory.started
        predictions: list[Prediction] = []
        positions: list[Tensor] = []
        for camera in range(self.cameras):
            known = memory.token_positions[camera]
            if (
                camera > 0
            ):  # a camera that was never seen is taken to look where the one before it does
                known = torch.where(memory.started, known, positions[-1])
            seen = look(
                net, encoded[camera : camera + 1], self.grid, known, pointers, slots, started
            )
            slots = seen.slots
            positions.append(seen.position)
            later = memory.token_positions[camera + 1 :].flatten(
                0, 1
            )  # the others' patches are taken to be where they were last seen
            shown = torch.cat([*positions, later])
            there = (
                torch.arange(len(shown), device=shown.device) < (camera + 1) * self.patches
            ) | memory.started
            pointers = fuse(
                pointers, seen.feature, seen.position, self.fusion, in_view=InView(shown, there)
            )
            started = torch.ones_like(started)
            predictions.append(seen.prediction)
        joined = Prediction(*(torch.cat(parts) for parts in zip(*predictions, strict=True)))
        return joined, StreamMemory(*pointers, torch.stack(positions), slots, started)


def check_capacity(capacity: int, cameras: int, patches: int) -> None:
    """Raises EngineError where the memory could not even hold one frame of all cameras."""
    if capacity < cameras * patches:
        one = (
            f"an image of {patches} patches offers"
            if cameras == 1
            else f"{cameras} images of {patches} patches offer"
        )
        raise EngineError(f"{capacity} pointers are too few: {one} {cameras * patches} at a time")


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[A, 3], [B, 3] -> [A, B], axis by axis (a matrix product would lose the digits that decide
    near-ties)."""
    x, y, z = ((a[:, None, axis] - b[None, :, axis]).square() for axis in range(3))
    return x + y + z


def nearest_pointers(pointers: Pointers, position: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [T] of positions [T, 3] to their nearest pointer, FAR if there is none, and
    its number [T]: what a merge is decided on. How near decisions were to their threshold is for
    reports; the step itself does not need it."""
    smallest = torch.where(pointers.valid, squared_distances(position, pointers.position), FAR).min(
        1
    )
    return smallest.values, smallest.indices


def threshold(
    pointers: Pointers, position: Tensor, fusion: Fusion, offered: Tensor | None = None
) -> Tensor:
    """The distance [] below which an offer merges. offered [T] bool: which of the positions [T, 3]
    count (default: all)."""
    everything = torch.cat([pointers.position, position])
    counts = torch.cat(
        [
            pointers.valid,
            torch.ones_like(position[:, 0], dtype=torch.bool) if offered is None else offered,
        ]
    )[:, None]
    extent = torch.where(counts, everything, -FAR).amax(0) - torch.where(
        counts, everything, FAR
    ).amin(0)
    return torch.minimum(
        (extent.clamp_min(0.0) / fusion.cells).norm(),
        torch.as_tensor(fusion.longest, dtype=extent.dtype, device=extent.device),
    )


class InView(NamedTuple):
    """What a rig shows: position [K, 3] of all its cameras' patches, there [K] bool: which of them
    count."""

    position: Tensor
    there: Tensor


def fuse(
    pointers: Pointers,
    feature: Tensor,
    position: Tensor,
    fusion: Fusion,
    offered: Tensor | None = None,
    in_view: InView | None = None,
) -> Pointers:
    """The pointers after T offers (feature [T, C], position [T, 3]; T <= M). offered [T] bool:
    those that are meant (default: all); the others leave no trace.

    An offer merges into its nearest pointer if that is nearer than threshold(); a pointer takes the
    mean of what merged into it and forgets what it was. The other offers take free slots, in order,
    then the slots of the pointers that are farthest from all that is `in_view` (default: from the
    offers). A rig's cameras offer one after the other: without the others in view, the camera that
    looks ahead would throw out what the one that looks back has just seen.
    """
    capacity, count = pointers.valid.shape[0], position.shape[0]
    apart = torch.where(
        pointers.valid, squared_distances(position, pointers.position), FAR
    )  # [T, M], as nearest_pointers has it
    nearest_distance, nearest = apart.min(1)
    meant = torch.ones_like(nearest, dtype=torch.bool) if offered is None else offered
    merges = (nearest_distance.sqrt() < threshold(pointers, position, fusion, offered)) & meant
    inserts = meant & ~merges

    into = (nearest[:, None] == torch.arange(capacity, device=nearest.device)) & merges[
        :, None
    ]  # [T, M]
    share = into.to(position.dtype)
    share = share / share.sum(0).clamp_min(1)
    merged = into.any(0)
    position_then = torch.where(merged[:, None], share.t() @ position, pointers.position)
    feature_then = torch.where(
        merged[:, None], (share.to(feature.dtype).t() @ feature), pointers.feature
    )

    # free slots first, in the order of their number in every runtime; those that were merged into
    # never, since M >= T
    free = FAR * (3 - torch.arange(capacity, device=apart.device, dtype=apart.dtype) / capacity)
    if in_view is None:
        away = torch.where(meant[:, None], apart, FAR).amin(0)
    else:
        away = torch.where(
            in_view.there[:, None], squared_distances(in_view.position, pointers.position), FAR
        ).amin(0)
    spare = torch.where(pointers.valid, torch.where(merged, -1.0, away), free)
    slots = torch.topk(spare, count).indices
    rank = (
        (torch.cumsum(inserts.to(position.dtype), 0) - 1).clamp_min(0).to(torch.int64)
    )  # exact: T is far below 2^24
    target = torch.where(
        inserts, slots[rank], capacity
    )  # the row past the end takes what is not inserted
    return Pointers(
        _put(feature_then, target, feature),
        _put(position_then, target, position),
        _put(pointers.valid.to(position.dtype), target, torch.ones_like(nearest_distance))
        > 0.5,  # TensorRT scatters no bool
    )


def _put(rows: Tensor, target: Tensor, values: Tensor) -> Tensor:
    """rows with rows[target[i]] = values[i]; a target past the end is thrown away."""
    longer = torch.cat([rows, rows[:1]])
    index = target if rows.dim() == 1 else target[:, None].expand(-1, rows.shape[1])
    return longer.scatter(0, index, values.to(rows.dtype))[:-1]
