"""The static map: a confidence-weighted voxel hash around the car, with free space that takes away
what is no longer there.

Per frame, at a cost that does not depend on the drive: `_integrate` adds a bounded sample of the
frame's static pixels, `_revise` goes through the next part of the table and removes what one sees
through (evidence as clamped log-odds, as in OctoMap, Hornung et al. 2013), what never became sure,
and what left the radius. A voxel holds the weighted mean of its points (so a map point is finer
than the grid) and of their colours, and is part of the map while its evidence says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import MapError
from recon4d_ros.geometry import inverse, transform
from recon4d_ros.mapping import submaps
from recon4d_ros.mapping.archive import Archive, Chunks, VoxelArchive
from recon4d_ros.mapping.cloud_files import PLY_POINT, check_suffix, write_points
from recon4d_ros.mapping.keys import pack, unpack_relative
from recon4d_ros.mapping.spill import Spill
from recon4d_ros.mapping.views import Gate, Samples, free_until, rays, sample, steps
from recon4d_ros.mapping.voxel_table import EMPTY, VoxelTable
from recon4d_ros.parallel import each
from recon4d_ros.parameters import parameter
from recon4d_ros.types import Calibration, Geometry, MapDelta, PoseEstimate

# Columns of a voxel's row: mean position within the voxel (0..1), mean colour (0..255), weight,
# evidence.
POSITION, COLOR, WEIGHT, EVIDENCE = slice(0, 3), slice(3, 6), 6, 7
_FREE_PIXELS = 30_000  # of a camera are enough to tell where one sees through
_NEVER = -(1 << 30)  # the frame in which an empty slot was last seen
_WATCH_FRAMES = 12  # what was seen in as many frames is revised in every second frame
_RECALLED = 5_000  # voxels of the archive that come back in one frame, about
_MAX_WEIGHT = 100.0  # beyond it the mean follows slowly instead of freezing


@dataclass(frozen=True)
class MappingParameters:
    """The static map."""

    voxel_size: float = parameter(
        0.2, "edge of a voxel, m: at most one map point in each", minimum=0.02, maximum=5.0
    )
    radius: float = parameter(
        60.0, "radius of the map around the ego-vehicle, m", minimum=5.0, maximum=1000.0
    )
    keep_outside: str = parameter(
        "file",
        "voxels that leave the radius are kept on disk for the saved file, or dropped",
        choices=("file", "drop"),
    )
    max_voxels: int = parameter(
        300_000,
        "capacity in voxels (about 80 bytes each); the radius shrinks when it is reached",
        minimum=1000,
        maximum=50_000_000,
    )
    min_range: float = parameter(
        1.5, "nearer points are not mapped (the ego-vehicle itself), m", minimum=0.0, maximum=20.0
    )
    max_range: float = parameter(
        50.0, "farther points are not mapped, m", minimum=1.0, maximum=500.0
    )
    min_confidence: float = parameter(
        0.3, "points of lower confidence are not mapped", minimum=0.0, maximum=1.0
    )
    max_sigma: float = parameter(
        1.2,
        "points of a larger standard deviation in depth are not mapped, m",
        minimum=0.01,
        maximum=50.0,
    )
    edge: float = parameter(
        0.25,
        "points beside a larger relative step of inverse depth (an occlusion edge) are not mapped",
        minimum=0.01,
        maximum=10.0,
    )
    mask_margin: int = parameter(
        3, "margin around dynamic objects that is not mapped either, pixels", minimum=0, maximum=100
    )
    points_per_camera: int = parameter(
        12_000,
        "most pixels of a camera that are integrated per frame",
        minimum=100,
        maximum=10_000_000,
    )
    min_evidence: float = parameter(
        2.5,
        "evidence (frames that agree) from which a voxel is in the map",
        minimum=0.0,
        maximum=20.0,
    )
    max_evidence: float = parameter(
        6.0,
        "largest evidence of a voxel: more keep longer what has left",
        minimum=0.5,
        maximum=100.0,
    )
    baseline: float = parameter(
        0.25,
        "distance driven after which frames count as independent observations, m",
        minimum=0.0,
        maximum=10.0,
    )
    carve_range: float = parameter(
        30.0, "free space is carved up to this range, m", minimum=0.0, maximum=500.0
    )
    carve_evidence: float = parameter(
        2.0,
        "evidence that one observation of free space takes from a voxel",
        minimum=0.0,
        maximum=100.0,
    )
    revisit_frames: int = parameter(
        8, "every voxel is revised once in as many frames", minimum=1, maximum=1000
    )
    forget_frames: int = parameter(
        20,
        "a voxel that is not in the map yet is forgotten after as many frames without observation",
        minimum=1,
        maximum=100_000,
    )
    max_delta: int = parameter(
        20_000,
        "voxels in one map update; the rest follow in the next",
        minimum=1,
        maximum=10_000_000,
    )


class Mapper:
    """`mapper(pose, geometry, mask, stamp_ns) -> MapDelta`, once per frame set; `points`, `size`
    and `save` at any time between."""

    def __init__(
        self, calibration: Calibration, parameters: MappingParameters = MappingParameters()
    ) -> None:
        p = self._parameters = parameters
        self._calibration = calibration
        self._rays = rays(calibration)
        self._step = steps(calibration.working_size, p.points_per_camera)
        # Nearer than this, two steps of the sampling are less than a voxel.
        self._dense = p.voxel_size * calibration.k[:, 0, 0] / (2.0 * self._step[1])
        self._gate = Gate(
            p.min_range, p.max_range, p.min_confidence, p.max_sigma, p.edge, p.mask_margin
        )
        self._table = VoxelTable(int(p.max_voxels / 0.6))
        capacity = self._table.capacity
        self._rows = np.zeros((capacity, 8), np.float32)
        self._last_seen = np.zeros(capacity, np.int32)
        self._published = np.zeros(capacity, bool)
        self._waiting = np.zeros(capacity, bool)  # is in _pending
        self._sent_weight = np.zeros(
            capacity, np.float32
        )  # weight when last in a delta; 0 = whoever follows does not have it
        for array in (
            self._rows,
            self._last_seen,
            self._published,
            self._waiting,
            self._sent_weight,
        ):
            array.fill(0)  # touch every page now: memory does not grow later
        self._submap = np.zeros(capacity, np.int32)  # -1: came from the archive as it is
        self._spill = self._new_spill()
        self._archive: Archive | None = None
        self._attached = False
        self.trouble = ""
        """Why the archive cannot be read any more; empty while it can."""
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next frame is the first."""
        self._table.clear()
        self._published[:] = False
        self._waiting[:] = False
        self._sent_weight[:] = 0
        self._last_seen[:] = _NEVER
        self._pending = np.zeros(
            0, np.int64
        )  # slots that changed and wait for their delta, oldest first, each once
        self._removed: list[NDArray[np.int64]] = []
        self._sequence = 0
        self._frame = 0
        self._cursor = 0
        self._size = 0
        self._integrated_at: NDArray[np.float64] | None = None
        self._center = np.zeros(3, np.int64)  # voxel of the car
        self.refused = 0  # voxels that found no room
        self.reach = self._parameters.radius  # m: the radius, as far as there was room for it
        self._submap[:] = 0
        # where the submaps are in map, and where they were when the table's voxels were placed
        self._placed = np.eye(4)[None]
        self._set_anchors(self._placed)
        self._attached = False
        if self._archive is not None:
            self._archive.all_back()
        if self._spill:
            self._spill.clear()

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel, m."""
        return self._parameters.voxel_size

    @property
    def size(self) -> int:
        """Voxels in the map around the car."""
        return self._size

    @property
    def outside(self) -> int:
        """Voxels that left the radius and wait in the temporary file (a place driven by twice
        counts twice)."""
        return self._spill.count if self._spill else 0

    def __call__(
        self, pose: PoseEstimate, geometry: Geometry, mask: NDArray[np.bool_], stamp_ns: int
    ) -> MapDelta:
        """One frame. mask: [N, h, w] True on dynamic objects. With a pose that is not usable the
        map stays as it is (the delta is empty but counted).

        stamp_ns is not used by the map itself: its deltas are stamped by whoever publishes them.
        """
        if pose.usable:
            self._center = np.floor(pose.T_map_base[:3, 3] / self._parameters.voxel_size).astype(
                np.int64
            )
            # local: the axes of map, the origin at the corner of the car's voxel, so that float32
            # is exact enough
            T_local_camera = pose.T_map_camera.copy()
            T_local_camera[:, :3, 3] -= self._center * self._parameters.voxel_size
            self._recall(pose.T_map_base[:3, 3])
            self._revise(T_local_camera, geometry)
            self._integrate(T_local_camera, geometry, mask, pose.T_map_base[:3, 3])
            self._frame += 1
        return self._delta()

    def points(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """The map around the car: positions [K, 3] in map (m), colours [K, 3], weights [K]."""
        packed = self._pack_points(np.flatnonzero(self._published))
        return packed["xyz"], packed["rgb"], packed["weight"]

    def positions(self) -> NDArray[np.float32]:
        """Of `points`, the positions [K, 3] alone, at half the cost."""
        return self._positions(np.flatnonzero(self._published)).astype(np.float32)

    def save(self, path: str | Path) -> int:
        """Writes the whole map, what left the radius included, as .ply or .pcd; returns how many
        points. Raises OutputError."""
        check_suffix(Path(path))
        inside = np.flatnonzero(self._published)
        keep = _kept(self._spill, self._table.keys[inside])
        count = int(np.count_nonzero(keep)) + len(inside)
        if self._attached and self._archive is not None:
            count += self._archive.count
        write_points(path, self.chunks()(), count)
        return count

    # ---- another map: loaded, or set aside

    @property
    def attached(self) -> bool:
        """Whether what is seen lies in the archive's map."""
        return self._attached

    def use(self, archive: VoxelArchive | None) -> None:
        """Another map, in which the car is not found yet: see `attach`."""
        self._archive = Archive([archive]) if archive is not None else None
        self._attached, self.trouble = False, ""

    def attach(self, T_archive_map: NDArray[np.float64]) -> None:
        """Where the map of until now lies in the archive's is known: it goes there, and from now on
        the archive's voxels around the car are part of it."""
        self.move(T_archive_map)
        self._attached = True

    def move(self, T: NDArray[np.float64]) -> None:
        """All that was seen since the start, or came from the archive and was confirmed, lies
        elsewhere by a rigid motion [4, 4]; what came from the archive as it is stays."""
        self._replace_submaps(T @ self._anchors)

    # ---- submaps

    def begin_submap(self, T_map_anchor: NDArray[np.float64]) -> int:
        """What is seen from now on moves with this anchor [4, 4]; returns its number. (What was
        seen before the first one is submap 0, whose anchor is the map itself.)"""
        self._set_anchors(np.concatenate([self._anchors, T_map_anchor[None]]))
        self._placed = np.concatenate([self._placed, T_map_anchor[None]])
        return len(self._anchors) - 1

    @property
    def anchors(self) -> NDArray[np.float64]:
        """[S, 4, 4], where the submaps are in map."""
        return self._anchors

    @property
    def placed(self) -> NDArray[np.float64]:
        """[S, 4, 4], where they were when the voxels inside the radius were put in their place."""
        return self._placed

    def place_submaps(self, anchors: NDArray[np.float64]) -> bool:
        """The submaps are at these anchors [S, 4, 4] now. What is outside the radius follows when
        it is read; the voxels inside once one would be off by half its edge: whether that was
        now."""
        inside = np.zeros(len(anchors), bool)
        inside[np.maximum(self._submap[self._table.keys != EMPTY], 0)] = True
        moved = submaps.displacement(self._placed, anchors)
        if (moved[inside] > 0.5 * self._parameters.voxel_size).any():
            self._replace_submaps(anchors)
            return True
        self._set_anchors(anchors)
        return False

    def _set_anchors(self, anchors: NDArray[np.float64]) -> None:
        self._anchors = anchors
        if self._spill:
            self._spill.anchors = anchors

    def _replace_submaps(self, anchors: NDArray[np.float64]) -> None:
        """Puts the voxels inside the radius where they are by these anchors."""
        size = self._parameters.voxel_size
        motion = submaps.motions(self._placed, anchors)
        slots = np.flatnonzero(self._table.keys != EMPTY)
        rows, submap = self._rows[slots], self._submap[slots]
        mine = submap >= 0
        index = unpack_relative(self._table.keys[slots], self._center) + self._center
        xyz = (index + rows[:, POSITION].astype(np.float64)) * size
        xyz[mine] = submaps.placed(motion, submap[mine], xyz[mine])
        self._removed.append(self._table.keys[slots[self._sent_weight[slots] > 0]])
        cell = np.floor(xyz / size)
        keys = pack(cell.astype(np.int64))
        rows[:, POSITION] = xyz / size - cell
        seen = self._last_seen[slots]
        # where two fall into one voxel, the one with more evidence stands for both
        order = np.lexsort((-rows[:, EVIDENCE], keys))
        first = order[np.diff(keys[order], prepend=-1) != 0]
        self._empty()
        here = motion[-1]  # the car is in the newest
        middle = here[:3, :3] @ (self._center * size) + here[:3, 3]
        self._center = np.floor(middle / size).astype(np.int64)
        self._fill(keys[first], rows[first], seen[first], submap[first])
        if self._integrated_at is not None:
            self._integrated_at = here[:3, :3] @ self._integrated_at + here[:3, 3]
        self._placed = anchors
        self._set_anchors(anchors)

    def set_aside(self) -> Callable[[], str]:
        """The next frame is the first of another map; that of until now becomes the archive, if it
        is the archive's, or there is none. What is returned writes it to disk, in any thread,
        before `attach` or `chunks`: a sentence where that cannot be done, else empty."""
        if self._archive is not None and not self._attached:
            self.reset()
            return lambda: ""
        inside = np.flatnonzero(self._published)
        points, keys = self._pack_points(inside), self._table.keys[inside]
        spill, self._spill = self._spill, self._new_spill()
        archive = self._archive.and_another() if self._archive is not None else Archive([])
        self._archive = archive
        self.reset()

        def write() -> str:
            keep = _kept(spill, keys)
            layer = VoxelArchive.set_aside(lambda: _all_blocks(spill, keep, points))
            if spill is not None:
                spill.close()
            if layer is None:
                return (
                    "the voxels of the map so far are lost: no disk takes them (expected a"
                    " temporary folder, TMPDIR, with room)"
                )
            archive.add(layer)
            return ""

        return write

    def _new_spill(self) -> Spill | None:
        p = self._parameters
        return Spill(p.voxel_size) if p.keep_outside == "file" else None

    def chunks(self) -> Chunks:
        """The whole map as `write_squares` takes it: what was seen, and where the car was found in
        the archive, the archive."""
        inside = np.flatnonzero(self._published)
        points = self._pack_points(inside)
        keep = _kept(self._spill, self._table.keys[inside])

        def blocks() -> Iterator[NDArray[np.void]]:
            if self._attached and self._archive is not None:
                yield from self._archive.rest()
            yield from _all_blocks(self._spill, keep, points)

        return blocks

    def _recall(self, position: NDArray[np.float64]) -> None:
        """The archive's voxels that the car comes near to."""
        p = self._parameters
        if not self._attached or self._archive is None or self.trouble:
            return
        try:
            parts = list(self._archive.near(position, p.radius, _RECALLED))
        except MapError as error:
            self.trouble = str(error)
            return
        if not parts:
            return
        points = np.concatenate(parts)
        scaled = points["xyz"].astype(np.float64) / p.voxel_size
        cell = np.floor(scaled)
        keys, first = np.unique(pack(cell.astype(np.int64)), return_index=True)
        new = self._table.find(keys) < 0
        keys, first = keys[new], first[new]
        rows = np.empty((len(keys), 8), np.float32)
        rows[:, POSITION] = scaled[first] - cell[first]
        rows[:, COLOR], rows[:, WEIGHT] = points["rgb"][first], points["weight"][first]
        rows[:, EVIDENCE] = p.max_evidence
        seen = np.full(len(keys), self._frame - _WATCH_FRAMES, np.int32)
        self._fill(keys, rows, seen, np.full(len(keys), -1, np.int32))

    def _empty(self) -> None:
        self._table.clear()
        for flags in (self._published, self._waiting):
            flags[:] = False
        self._sent_weight[:] = 0
        self._last_seen[:] = _NEVER
        self._pending = np.zeros(0, np.int64)
        self._size = 0

    def _fill(
        self,
        keys: NDArray[np.int64],
        rows: NDArray[np.float32],
        seen: NDArray[np.int32],
        submap: NDArray[np.int32],
    ) -> None:
        """Voxels that are not in the table, each once."""
        slots = self._table.insert(keys)
        fits = slots >= 0
        self.refused += int(np.count_nonzero(~fits))
        slots, rows = slots[fits], rows[fits]
        self._rows[slots], self._last_seen[slots] = rows, seen[fits]
        self._submap[slots] = submap[fits]
        self._published[slots], self._sent_weight[slots] = False, 0
        self._publish(slots[rows[:, EVIDENCE] >= self._enough()])

    # ---- adding

    def _integrate(
        self,
        T_local_camera: NDArray[np.float64],
        geometry: Geometry,
        mask: NDArray[np.bool_],
        position: NDArray[np.float64],
    ) -> None:
        size = self._parameters.voxel_size
        rows, columns = self._step
        turn = (
            (self._frame * 7) % (rows * columns)
            if (rows * columns) % 7
            else self._frame % (rows * columns)
        )
        phase = (turn // columns, turn % columns)

        def look(n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            """One camera's voxels and what it says of them."""
            view = sample(
                geometry, mask, n, self._rays[n], self._gate, self._step, phase, self._dense[n]
            )
            scaled = transform(T_local_camera[n], view.points) / np.float32(size)
            cell = np.floor(scaled)
            return pack(cell.astype(np.int64) + self._center), _observations(
                view, np.subtract(scaled, cell, dtype=np.float32), size
            )

        said = each(look, range(len(self._dense)))
        keys = np.concatenate([keys for keys, _ in said])
        if len(keys):
            self._merge(
                *_group(keys, np.concatenate([rows for _, rows in said], axis=1)),
                self._independence(position),
            )

    def _independence(self, position: NDArray[np.float64]) -> float:
        """How much this frame adds to what the last one said: 1 when the car moved by the baseline,
        a tenth when it stands."""
        baseline = self._parameters.baseline
        moved = (
            np.inf
            if self._integrated_at is None
            else float(np.linalg.norm(position - self._integrated_at))
        )
        if moved >= baseline:
            self._integrated_at = position.copy()
            return 1.0
        return max(0.1, moved / baseline)

    def _merge(self, keys: NDArray[np.int64], sums: NDArray[np.float32], gain: float) -> None:
        """Adds grouped observations: keys [K] unique and sorted, sums [9, K] as in
        `_observations`."""
        p = self._parameters
        slots = self._table.find(keys)
        unknown = np.flatnonzero((slots < 0) & (sums[6] > 0))
        if len(unknown):
            fresh = self._table.insert(keys[unknown])
            slots[unknown] = fresh
            self.refused += int(np.count_nonzero(fresh < 0))
            fresh = fresh[fresh >= 0]
            self._rows[fresh] = 0
            self._published[fresh] = False
            self._sent_weight[fresh] = 0
        here = slots >= 0
        slots, sums = slots[here], sums[:, here]
        row = np.ascontiguousarray(
            self._rows.take(slots, axis=0).T
        )  # [8, K]: the arithmetic runs along the voxels
        weight = row[WEIGHT] + sums[6]
        share = sums[6] / np.maximum(weight, np.float32(1e-9))  # of what is new in the mean
        mean = sums[:6] / np.maximum(sums[6], np.float32(1e-9))
        mean -= row[:6]
        mean *= share
        row[:6] += mean
        np.minimum(weight, np.float32(_MAX_WEIGHT), out=row[WEIGHT])
        said = np.float32(gain) * np.minimum(sums[7], np.float32(1.0)) - np.float32(
            2.0
        ) * np.minimum(sums[8], np.float32(1.0))
        np.clip(row[EVIDENCE] + said, 0.0, p.max_evidence, out=row[EVIDENCE])
        self._rows[slots] = row.T
        self._last_seen[slots] = self._frame
        self._submap[slots] = len(self._anchors) - 1
        published = self._published[slots]
        now = row[EVIDENCE] >= np.where(published, 0.5, 1.0) * self._enough()
        self._unpublish(slots[published & ~now])
        self._publish(slots[~published & now])
        # A voxel is sent again when it weighs twice what it did: the mean moves less each time, and
        # updates stay few.
        self._enqueue(slots[published & now & (row[WEIGHT] >= 2.0 * self._sent_weight[slots])])

    def _enough(self) -> float:
        """Evidence that makes a voxel part of the map: at first half of what the frames so far
        could have given, then the full demand."""
        return min(self._parameters.min_evidence, 0.5 * (self._frame + 1))

    def _publish(self, slots: NDArray[np.int64]) -> None:
        self._published[slots] = True
        self._size += len(slots)
        self._enqueue(slots)

    def _enqueue(self, slots: NDArray[np.int64]) -> None:
        fresh = slots[~self._waiting[slots]]
        self._waiting[fresh] = True
        self._pending = np.concatenate([self._pending, fresh])

    # ---- taking away

    def _revise(self, T_local_camera: NDArray[np.float64], geometry: Geometry) -> None:
        """Goes through what was seen lately and through the next part of the table: removes what
        one sees through, what stayed unsure, and what left the radius."""
        p = self._parameters
        capacity = self._table.capacity
        start, stop = self._cursor, min(self._cursor + -(-capacity // p.revisit_frames), capacity)
        self._cursor = stop % capacity
        part = start + np.flatnonzero(self._table.keys[start:stop] != EMPTY)
        # A dynamic object is gone soon after it was taken for a part of the world: what is behind
        # it is seen
        # then, while the car is still near.
        turn = self._frame % 2
        lately = turn + 2 * np.flatnonzero(self._last_seen[turn::2] > self._frame - _WATCH_FRAMES)
        slots = np.concatenate([part, lately[(lately < start) | (lately >= stop)]])
        local = unpack_relative(self._table.keys.take(slots), self._center).T.astype(
            np.float32, order="C"
        )
        local += np.float32(0.5)
        local *= np.float32(p.voxel_size)  # [3, K] middles of the voxels
        distance = np.square(local[0]) + np.square(local[1])
        fill = self._table.size / capacity
        radius = (
            p.radius if fill < 0.6 else p.radius * (0.6 / fill) ** 2
        )  # room runs out: the farthest go first
        self.reach = radius
        near = np.flatnonzero(distance < np.float32(min(p.carve_range, radius) ** 2))
        refuted = slots[
            near[self._seen_through(local.take(near, axis=1), T_local_camera, geometry)]
        ]
        self._rows[refuted, EVIDENCE] = np.maximum(
            self._rows[refuted, EVIDENCE] - np.float32(p.carve_evidence), 0.0
        )

        outside = distance[: len(part)] > np.float32(radius * radius)
        self._forget(part[outside], spill=True)
        part = part[~outside]
        doubtful = np.concatenate(
            [part[self._published.take(part)], refuted[(refuted < start) | (refuted >= stop)]]
        )
        doubtful = doubtful[self._published.take(doubtful)]
        self._unpublish(doubtful[self._rows[doubtful, EVIDENCE] < 0.5 * self._enough()])
        part = part[self._last_seen.take(part) < self._frame - p.forget_frames]
        refuted = refuted[
            (self._rows[refuted, EVIDENCE] <= 0.0)
            & (self._last_seen.take(refuted) >= self._frame - p.forget_frames)
        ]
        stale = np.concatenate([part, refuted])
        self._forget(stale[~self._published.take(stale)], spill=False)

    def _seen_through(
        self, local: NDArray[np.float32], T_local_camera: NDArray[np.float64], geometry: Geometry
    ) -> NDArray[np.bool_]:
        """[K] True where a camera measures a surface with certainty behind the point (local: [3,
        K])."""
        p = self._parameters
        h, w = self._calibration.working_size
        coarse = max(1, round(np.sqrt(h * w / _FREE_PIXELS)))
        k = self._calibration.k.copy()
        k[:, :2, 2] += 0.5  # a pixel's column and row are its (u, v) floored
        k[:, :2] /= coarse
        rows, columns = -(-h // coarse), -(-w // coarse)
        project = (k @ inverse(T_local_camera)[:, :3]).astype(
            np.float32
        )  # [N, 3, 4]: (u z, v z, z) of a point

        def look(n: int) -> NDArray[np.int64]:
            depth, sigma, confidence = (
                image[n, ::coarse, ::coarse]
                for image in (geometry.depth, geometry.sigma, geometry.confidence)
            )
            limit = free_until(depth, sigma, confidence, p.min_confidence, 1.5 * p.voxel_size)
            u, v, z = project[n, :, :3] @ local + project[n, :, 3:]
            inside = (z > np.float32(0.5)) & (u >= 0) & (v >= 0)
            inside &= u < columns * z
            inside &= v < rows * z
            seen = np.flatnonzero(inside)
            z = z[seen]
            pixel = (v[seen] / z).astype(np.int32) * columns + (u[seen] / z).astype(np.int32)
            return seen[z < limit.reshape(-1).take(pixel, mode="clip")]

        through = np.zeros(local.shape[1], bool)
        for index in each(look, range(len(T_local_camera))):
            through[index] = True
        return through

    def _unpublish(self, slots: NDArray[np.int64]) -> None:
        """Takes voxels out of the map; they stay in the table as candidates."""
        self._published[slots] = False
        self._size -= len(slots)
        known = slots[self._sent_weight[slots] > 0]
        self._removed.append(self._table.keys[known])
        self._sent_weight[known] = 0

    def _forget(self, slots: NDArray[np.int64], spill: bool) -> None:
        published = slots[self._published[slots]]
        if spill and self._spill and len(published):
            points, submap = self._pack_points(published), self._submap[published]
            if self._placed is not self._anchors:  # kept where it is by the anchors of now
                mine = submap >= 0
                points["xyz"][mine] = submaps.placed(
                    submaps.motions(self._placed, self._anchors), submap[mine], points["xyz"][mine]
                )
            self._spill.add(self._table.keys[published], points, submap)
        self._unpublish(published)
        self._table.remove(slots)
        self._last_seen[slots] = _NEVER

    # ---- telling

    def _delta(self) -> MapDelta:
        """What changed since the last delta, at most `max_delta` voxels of it, and all that
        went."""
        p = self._parameters
        alive = self._published[self._pending]
        self._waiting[self._pending[~alive]] = False
        queued = self._pending[alive]
        slots, self._pending = queued[: p.max_delta], queued[p.max_delta :].copy()
        self._waiting[slots] = False
        self._sent_weight[slots] = np.maximum(self._rows[slots, WEIGHT], 1e-6)
        packed = self._pack_points(slots)
        removed = np.concatenate([*self._removed, np.zeros(0, np.int64)])
        self._removed = []
        delta = MapDelta(
            self._sequence,
            p.voxel_size,
            self._index(self._table.keys[slots]),
            packed["xyz"],
            packed["rgb"],
            packed["weight"],
            self._index(removed),
        )
        self._sequence += 1
        return delta

    def _index(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return (unpack_relative(keys, self._center) + self._center).astype(np.int32)

    def _positions(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """[K, 3] m in map."""
        index = unpack_relative(self._table.keys[slots], self._center) + self._center
        within = self._rows.take(slots, axis=0)[:, POSITION]
        return np.asarray((index + within) * self._parameters.voxel_size, np.float64)

    def _pack_points(self, slots: NDArray[np.int64]) -> NDArray[np.void]:
        out = np.empty(len(slots), PLY_POINT)
        row = self._rows.take(slots, axis=0)
        out["xyz"] = self._positions(slots)
        out["rgb"] = np.clip(np.rint(row[:, COLOR]), 0, 255)
        out["weight"] = row[:, WEIGHT]
        return out


def _kept(spill: Spill | None, inside: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[S] which of the records outside the radius are the map's: the last of each voxel, and none
    that is also inside (keys)."""
    if spill is None or spill.count == 0:
        return np.zeros(0, bool)
    keep = np.zeros(spill.count, bool)
    keep[spill.latest()] = True
    start = 0
    for keys, _ in spill.blocks():
        keep[start : start + len(keys)] &= ~np.isin(keys, inside)
        start += len(keys)
    return keep


def _all_blocks(
    spill: Spill | None, keep: NDArray[np.bool_], inside: NDArray[np.void]
) -> Iterator[NDArray[np.void]]:
    """Those of the records outside the radius that are kept, and the points inside."""
    start = 0
    for keys, points in spill.blocks() if spill and len(keep) else ():
        yield points[keep[start : start + len(keys)]]
        start += len(keys)
    yield inside


def _observations(
    view: Samples, offset: NDArray[np.float32], voxel_size: float
) -> NDArray[np.float32]:
    """[9, K] to be summed per voxel: weighted offset (3), weighted colour (3), weight, evidence
    for, evidence against (dynamic objects).

    Weight: confidence, less where the depth is less sure than a voxel is wide.
    """
    weight = view.confidence / (1 + np.square(view.sigma / np.float32(voxel_size)))
    weight[view.moving] = 0
    rows = np.empty((9, len(weight)), np.float32)
    np.multiply(offset.T, weight, out=rows[0:3])
    np.multiply(view.colors.T, weight, out=rows[3:6])
    rows[6] = weight
    rows[7] = np.where(
        view.moving, 0, 2 * view.confidence
    )  # what is half sure says as much as a frame can say
    rows[8] = np.where(view.moving, 2 * view.confidence, 0)
    return rows


def _group(
    keys: NDArray[np.int64], rows: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Unique keys in order, and the sums of the columns [9, K] of each."""
    order = np.argsort(keys)
    ordered = keys[order]
    new = np.diff(ordered, prepend=ordered[0] - 1) != 0
    group = np.empty(len(keys), np.int64)
    group[order] = np.cumsum(new) - 1
    # bincount adds in the order of the pixels, whatever order the sort gave to equal keys: the same
    # sums on every machine.
    return ordered[new], np.stack([np.bincount(group, row) for row in rows]).astype(np.float32)
