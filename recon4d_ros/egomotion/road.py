"""The road as a sensor of the car's motion: it is flat, a known way below the cameras, and it does
not move.

A grid of patches on the lane ahead and behind is looked for in the images before, each as the plane
changes it (Baker and Matthews, IJCV 2004; homography of a plane: Hartley and Zisserman, 13.1). How
alike they are tells one speed from another before anything is tracked or triangulated, whatever
moves beside the car; where they come to rest says how far the car went, in metres. That is what
monocular odometry on vehicles takes its scale from (Song, Chandraker and Guest, PAMI 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import patch_alignment
from recon4d_ros.egomotion.calibration import CALIBRATION
from recon4d_ros.egomotion.camera_rig import LOWEST, Cameras, Images
from recon4d_ros.egomotion.lean import Lean
from recon4d_ros.egomotion.patch_alignment import Pair, Reference
from recon4d_ros.egomotion.pnp import Prior

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RoadThresholds:
    """Chosen on simulated drives (seeds below 1000), see docs/egomotion.md."""

    half_lane: float = 2.3  # m: a lane with its markings
    nearest: float = 2.5  # m from base_link: less is the car itself
    farthest: float = 28.0  # m: a row of pixels is more than a metre there
    rows: float = 11.0  # pixels between patches: as wide as one
    columns: float = 17.0
    most: int = 280  # patches of one camera
    asked: int = 80  # of them, with texture, are looked for
    fewest: int = 14  # patches with texture that a road has to have
    agree: float = 0.2  # share of them that have to move as it does; on sound drives half does
    alike: float = 0.7  # correlation of a patch that is followed
    score: float = 0.35  # mean correlation below which it is no road, or another motion
    fastest: float = 62.0  # m/s, looked for when nothing is known
    backward: float = 6.0  # m/s
    basin: float = (
        2.5  # pixels in the nearest row: as far as patches find their place by themselves
    )
    uneven: float = 0.010  # m that one patch of the road is off the plane
    patch_noise: float = 0.15  # pixels, beside what the image's noise makes
    gate: float = 9.0  # squared deviation of a patch that does not move as the road does
    stays: float = 0.9  # correlation of a patch with the image before at the very same pixels
    moves: float = 3.0  # pixels: a patch that stays although a motion moves it this far is no road
    body: int = 4  # motions in which a patch stayed, from which it is the car's own


THRESHOLDS = RoadThresholds()
# area of a patch in the image before, as a share of what it is now, below which half the resolution
# tells as much
HALF = 0.5
RIPPLE = 0.01  # of the score, by which a slope may rise
AT_ONCE = 4096  # patches that are looked up together: their samples are a megabyte
STEP = 0.05  # m ahead, to see which way patches move


@dataclass(frozen=True)
class RoadMotion:
    """What the road says of the motion `T` [4, 4] (pose of base_link now in base_link before).

    information, pull [6, 6], [6]: of steps xi at T (T exp(xi)), the road's lean taken out; for the
    cameras' height as calibrated. score: mean correlation of the patches at T; agreeing: patches
    that move as the road does; textured: patches that could. turned: standard deviation of the way
    along x by how the cameras are turned, m; it does not average out.
    """

    T: Array
    information: Array
    pull: Array
    score: float
    agreeing: int
    textured: int
    turned: float = 0.0

    @property
    def agreed(self) -> Array:
        """The information, less as more patches disagree: lamps that go along, reflections and
        drops spoil those that agree, too. The squared error of simulated days and nights (seeds 11
        to 15) grows as the share of those that agree falls, at night with its square."""
        return self.information * (self.agreeing / max(self.textured, 1)) ** 2


@dataclass
class _Grid:
    """Patches of one camera: pixel [K, 2], ray in base_link [K, 3], centre [3] of the camera.

    way [K, 2]: unit vectors along which they move in the image as the car goes ahead. late [K]:
    seconds after the image's stamp at which their rows are read out. stayed [K]: motions in which
    each stayed where it was, less those in which it did not.
    """

    camera: int
    pixel: NDArray
    toward: Array
    centre: Array
    way: Array
    late: Array
    stayed: NDArray[np.int64]


@dataclass(frozen=True)
class _Seen:
    """Where the image before shows patches: place [K, 2], warp [K, 2, 2] and bend [K, 2] in pixels
    (see `patch_alignment.warps`); inside [K]: which are in it."""

    place: Array
    warp: Array
    bend: Array
    inside: NDArray[np.bool_]

    def only(self, which: NDArray) -> _Seen:
        return _Seen(self.place[which], self.warp[which], self.bend[which], self.inside[which])

    @property
    def far(self) -> NDArray[np.bool_]:
        """[K]: which are shown less than half as large (by area)."""
        return np.asarray(np.abs(np.linalg.det(self.warp)) < HALF)


@dataclass
class RoadView:
    """One camera in one frame: the grid's patches in the newest image, and the one before.

    use [K]: patches with texture; stays [K]: of these, which look the same at the same pixels of
    both images: all of them where the car stands; while it moves, the car's own body, its shadow or
    headlights, or drops on the lens. seconds: between the two images.
    """

    grid: _Grid
    reference: Reference
    now: NDArray[np.uint8]
    before: NDArray[np.uint8]
    T_camera_base: Array
    use: NDArray
    stays: NDArray[np.bool_]
    seconds: float

    @cached_property
    def half(self) -> NDArray[np.uint8]:
        """The newest image at half size: pixel p of it is pixel 2 p of the whole one."""
        return np.asarray(cv2.pyrDown(self.now), np.uint8)

    @cached_property
    def coarse(self) -> Reference:
        """The patches at half size, twice as wide."""
        return Reference(self.half, self.grid.pixel / 2, self.grid.way)

    def alike(self, which: NDArray, seen: _Seen) -> NDArray[np.float32]:
        """How alike patches `which` [K] are to the image before where they are seen; at half
        size where that image shows them half as large: of what it does not resolve
        it has nothing to compare."""
        out, far = np.empty(len(which), np.float32), seen.far
        for reference, mine, size in ((self.reference, ~far, 1.0), (self.coarse, far, 2.0)):
            if mine.any():
                out[mine] = reference.alike(
                    self.before,
                    which[mine],
                    seen.place[mine],
                    size * seen.warp[mine],
                    size * seen.bend[mine],
                )
        return out

    def found(
        self, which: NDArray, seen: _Seen
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Where the image before shows patches `which` [K], from where they are expected, as
        `patch_alignment.align` gives it."""
        far = seen.far
        order = np.argsort(far, kind="stable")
        whole = int((~far).sum())
        pairs = [
            pair
            for pair in (
                Pair(self.now, self.before, 0, whole),
                Pair(self.half, self.before, whole, len(which)),
            )
            if pair.first < pair.last
        ]
        size = np.where(far, 2.0, 1.0)[order]
        pixel = self.grid.pixel[which][order] / size[:, None]
        aligned = patch_alignment.align(
            pairs,
            pixel,
            seen.place[order],
            seen.warp[order] * size[:, None, None],
            seen.bend[order] * size[:, None],
        )
        back = np.argsort(order, kind="stable")
        pixels, alike, spread = (values[back] for values in aligned)
        return pixels, alike, spread


@dataclass(frozen=True)
class _Found:
    """M patches found along rays [M, 2] of the images before, with covariance [M, 2, 2].

    camera [M]: which shows them. T_camera_base [M, 4, 4]: of their cameras; toward, centre [M, 3]:
    rays of now in base_link, and where they begin. shares [M]: as `Road._shares` gives them.
    """

    camera: NDArray[np.int64]
    T_camera_base: Array
    toward: Array
    centre: Array
    rays: Array
    covariance: Array
    shares: Array

    def __len__(self) -> int:
        return len(self.rays)

    @staticmethod
    def join(parts: list[_Found]) -> _Found:
        columns = ([getattr(part, field.name) for part in parts] for field in fields(_Found))
        return _Found(*map(np.concatenate, columns))


class Road:
    """lean: how the road lies under the rig, the package's one estimate of it."""

    def __init__(self, cameras: Cameras, thresholds: RoadThresholds = THRESHOLDS) -> None:
        self._cameras, self.thresholds = cameras, thresholds
        self._grids = [
            grid
            for camera in range(len(cameras))
            if (grid := _grid(cameras, camera, thresholds)) is not None
        ]
        seen = [grid.camera for grid in self._grids] or list(range(len(cameras)))
        arms = [_arm(cameras, camera, thresholds) for camera in seen]
        self._arms = np.array([arm for arm in arms if arm is not None]).reshape(-1, 2)
        self.reset()

    def reset(self) -> None:
        """Forget how the car leans, and what of it its cameras show."""
        for grid in self._grids:
            grid.stayed[:] = 0
        self.lean = Lean.unknown()
        self._found = self.lean, self.lean.slope, self.lean.spread  # by the last measurement

    @property
    def visible(self) -> bool:
        """Whether any camera looks at the lane from a known height."""
        return bool(self._grids)

    def turned(self, lean: Array) -> float:
        """Standard deviation of the lengths that the road gives, as a share of them, by a
        covariance [2, 2] of its lean, and by how each camera may be turned: an angle, times how far
        what is seen of the road is, over the height it is seen from."""
        if not len(self._arms):
            return 0.0
        rig = self._arms.mean(0)
        each = CALIBRATION.single**2 * np.square(self._arms).sum() / len(self._arms) ** 2
        return float(np.sqrt(rig @ lean @ rig + each))

    def views(self, images: Images, T_map_base: Array, seconds: float) -> list[RoadView]:
        """What of the road the newest images show and those taken at the last pose T_map_base [4,
        4], `seconds` ago.

        A camera that fires late does so in both images: between them it moves as the car does.
        """
        out = []
        for grid in self._grids:
            before, now = images.before[grid.camera], images.now[grid.camera]
            there = images.T_map_base[grid.camera]
            if before is None or now is None or not np.array_equal(there, T_map_base):
                continue
            reference = Reference(now, grid.pixel, grid.way)
            use = np.flatnonzero(reference.textured & (grid.stayed < self.thresholds.body))
            if len(use) > self.thresholds.asked:
                use = use[np.linspace(0, len(use) - 1, self.thresholds.asked).astype(int)]
            place = geometry.inverse(self._cameras.T_base_camera[grid.camera])
            same = np.tile(np.eye(2), (len(use), 1, 1))
            stays = reference.alike(before, use, grid.pixel[use], same) > self.thresholds.stays
            out.append(RoadView(grid, reference, now, before, place, use, stays, seconds))
        return out

    def score(
        self, views: list[RoadView], motions: Array, lean: Lean | None = None
    ) -> tuple[Array, NDArray[np.int64]]:
        """Mean correlation [K] of the patches with the images before, for motions [K, 4, 4], and of
        how many patches that is. lean: if it is not the last one."""
        lean = lean or self.lean
        total, count = np.zeros(len(motions)), np.zeros(len(motions), np.int64)
        for view in views:
            if len(view.use) < self.thresholds.fewest:
                continue
            ground = _ground(view.grid, view.use, lean)
            some = max(1, AT_ONCE // len(view.use))
            for first in range(0, len(motions), some):
                tried = motions[first : first + some]
                seen = self._moved(view, view.use, ground, tried, lean)
                inside = seen.inside & ~self._no_road(view, seen.place)
                which = np.tile(view.use, len(tried))[inside]
                alike = np.clip(view.alike(which, seen.only(inside)), 0.0, 1.0)
                motion = np.repeat(np.arange(len(tried)), len(view.use))[inside]
                part = slice(first, first + len(tried))
                total[part] += np.bincount(motion, alike, len(tried))
                count[part] += np.bincount(motion, minlength=len(tried))
        textured = sum(len(view.use) for view in views)
        shown = np.maximum(count, 1)
        return np.where(
            count >= max(self.thresholds.fewest, 0.15 * textured), total / shown, 0.0
        ), count

    def search(
        self, views: list[RoadView], seconds: float, turn: Array
    ) -> tuple[Array, float, float]:
        """Any motion along the car's axis, coarse to fine, with rotation `turn` [3, 3]: the best
        [4, 4], its score, and that of the best other one."""
        t = self.thresholds
        if not views:
            return np.eye(4), 0.0, 0.0
        step = min(self._pixel_travel(view) for view in views) * t.basin
        travel = np.arange(-t.backward * seconds, t.fastest * seconds, step)
        motions = np.tile(np.eye(4), (len(travel), 1, 1))
        motions[:, :3, :3] = turn
        motions[:, 0, 3] = travel
        scores, _ = self.score(views, motions)
        best = int(np.argmax(scores))
        rival = _others(scores, best)
        fine = travel[best] + step * np.linspace(-1.0, 1.0, 9)
        motions = np.tile(motions[best], (9, 1, 1))
        motions[:, 0, 3] = fine
        finer, _ = self.score(views, motions)
        top = int(np.argmax(finer))
        return motions[top], float(finer[top]), float(scores[rival].max(initial=0.0))

    def along(
        self, views: list[RoadView], start: Array, reach: float, lean: Lean | None = None
    ) -> tuple[Array, float]:
        """The motion within `reach` metres of `start` [4, 4], along the car's axis, that the road
        fits best, and its score."""
        step = min(self._pixel_travel(view) for view in views) * self.thresholds.basin
        count = int(np.clip(np.ceil(reach / step), 1, 8))
        motions = np.tile(start, (2 * count + 1, 1, 1))
        motions[:, 0, 3] += step * np.arange(-count, count + 1)
        scores, _ = self.score(views, motions, lean)
        best = int(np.argmax(scores))
        return motions[best], float(scores[best])

    def _pixel_travel(self, view: RoadView) -> float:
        """Metres that move the nearest patches by a pixel."""
        every = np.arange(len(view.grid.pixel))
        ground = _ground(view.grid, every, self.lean)
        forward = np.eye(4)
        forward[0, 3] = 0.01
        seen = self._moved(view, every, ground, np.stack([np.eye(4), forward]), self.lean)
        still, moved = np.split(seen.place, 2)
        pixels = np.linalg.norm(moved - still, axis=1)[seen.inside[len(every) :]]
        fastest = np.nanmax(pixels, initial=1e-3)
        return float(0.01 / fastest)

    def measure(
        self,
        views: list[RoadView],
        prior: Prior,
        start: Array,
        lean: Lean | None = None,
        turns: Array | None = None,
    ) -> RoadMotion | None:
        """The motion near `start` [4, 4] that the patches agree on; None if too few do.

        prior: of the motion, relative to base_link before; it holds what patches cannot see. lean:
        if more is known of it than was. turns [N, 3, 3]: covariances of how cameras are turned
        against the rig, rotation vectors in base_link.
        """
        t, motion, lean = self.thresholds, start, lean or self.lean
        slope_of = lean.slope.copy()
        nuisance = np.linalg.inv(lean.spread)
        information = np.zeros((8, 8))
        gradient, agreeing, textured = np.zeros(8), 0, 0
        parts: list[_Found] = []
        for view in views:
            textured += len(view.use)
            if len(view.use) < t.fewest:
                continue
            ground = _ground(view.grid, view.use, lean)
            seen = self._moved(view, view.use, ground, motion[None], lean)
            inside = seen.inside & ~self._no_road(view, seen.place)
            use = view.use[inside]
            if len(use) < t.fewest:
                continue
            found, alike, spread = view.found(use, seen.only(inside))
            good = alike > t.alike
            if good.sum() < 4:
                continue
            use, found, spread = use[good], found[good], spread[good]
            lens = self._cameras.lenses[view.grid.camera]
            rays = lens.rays(found)
            back = patch_alignment.inverted(lens.derivative(rays))
            noise = spread + np.eye(2) * t.patch_noise**2
            covariance = back @ noise @ np.swapaxes(back, 1, 2)
            mount = np.broadcast_to(view.T_camera_base, (len(use), 4, 4))
            toward, centre = view.grid.toward[use], np.tile(view.grid.centre, (len(use), 1))
            shares = self._shares(view, use, found)
            camera = np.full(len(use), view.grid.camera)
            parts.append(_Found(camera, mount, toward, centre, rays, covariance, shares))
        if sum(map(len, parts)) < t.fewest:
            return None
        seen_before = _Found.join(parts)
        pivots = lean.pivots(seen_before.centre)
        motion = self._voted(seen_before, prior, motion, slope_of, pivots)
        for index in range(6):
            residual, jacobian, slope = self._linearised(seen_before, motion, slope_of, pivots)
            bumps = slope[:, :, None] * slope[:, None] * t.uneven**2
            weight = patch_alignment.inverted(seen_before.covariance + bumps)
            pulled = (weight @ residual[..., None])[..., 0]
            distance = (residual * pulled).sum(1)
            width = t.gate * max(1.0, 4.0 / 2.0**index)
            robust = np.square(width / (width + distance))
            agreeing = int((distance < t.gate).sum())
            rows = jacobian.reshape(-1, 8)
            scaled = (weight * robust[:, None, None]) @ jacobian
            information = rows.T @ scaled.reshape(-1, 8)
            gradient = rows.T @ (pulled * robust[:, None]).reshape(-1)
            normal, right = information.copy(), gradient.copy()
            normal[6:, 6:] += nuisance
            right[6:] -= nuisance @ (slope_of - lean.slope)
            normal[:6, :6] += prior.strength
            toward = geometry.log(geometry.inverse(motion) @ prior.T_map_base)
            right[:6] += prior.strength @ toward
            step = np.asarray(np.linalg.solve(normal, right), np.float64)
            motion = motion @ geometry.exp(step[:6])
            slope_of = slope_of + step[6:]
            if np.abs(step[:6]).max() < 1e-5 and index >= 3:
                break
        a, b, d = information[:6, :6], information[:6, 6:], information[6:, 6:] + nuisance
        pulled = gradient[6:] - nuisance @ (slope_of - lean.slope)
        across = b @ np.linalg.inv(d)
        if agreeing < t.agree * textured:
            return None
        known = np.linalg.inv(normal)
        self._found = lean, slope_of, known[6:, 6:]
        score = float(self.score(views, motion[None], lean.found(slope_of, known[6:, 6:]))[0][0])
        pull = gradient[:6] - across @ pulled
        by_lean = known[0, 6:] @ nuisance
        turned = float(by_lean @ lean.lasting @ by_lean)
        if turns is not None:
            change = self._by_turn(seen_before, motion, slope_of, pivots).reshape(-1, 3)
            pulls = (known[0] @ scaled.reshape(-1, 8).T)[:, None] * change
            by_turn = np.zeros((len(turns), 3))
            np.add.at(by_turn, np.repeat(seen_before.camera, 2), pulls)
            turned += float(np.einsum("ni,nij,nj->", by_turn, turns, by_turn))
        moved = float(np.sqrt(turned))
        return RoadMotion(motion, a - across @ b.T, pull, score, agreeing, textured, moved)

    def _voted(
        self,
        found: _Found,
        prior: Prior,
        motion: Array,
        slope_of: Array,
        pivots: tuple[Array, Array],
    ) -> Array:
        """`motion` with the travel along the car's axis that most patches vote for: what drives
        ahead or lies in the shade of the car agrees on another one."""
        t = self.thresholds
        residual, jacobian, slope = self._linearised(found, motion, slope_of, pivots)
        bumps = slope[:, :, None] * slope[:, None] * t.uneven**2
        weight = patch_alignment.inverted(found.covariance + bumps)
        along = (jacobian[:, None, :, 0] @ weight)[:, 0]
        strength = np.maximum((along * jacobian[:, :, 0]).sum(1), 1e-9)
        vote, width = (along * residual).sum(1) / strength, 1.0 / strength
        reach = 3.0 * float(np.sqrt(prior.covariance[0, 0]))
        travel = np.linspace(-reach, reach, 121)
        off = np.square(travel[:, None] - vote) / (t.gate * width + (reach / 60) ** 2)
        support = (1.0 / np.square(1.0 + off)).sum(1)
        support *= np.exp(-0.5 * np.square(travel / reach))
        chosen = motion.copy()
        chosen[:3, 3] += chosen[:3, 0] * travel[int(np.argmax(support))]
        return chosen

    def believe(self, views: list[RoadView], motion: Array, seconds: float) -> None:
        """The last measurement's lean becomes the estimate, and what stays in the images though
        the car moved by `motion` [4, 4], in `seconds`, is the car's own."""
        most = 2 * self.thresholds.body
        for view in views:
            ground = _ground(view.grid, view.use, self.lean)
            place = self._moved(view, view.use, ground, motion[None], self.lean).place
            moved = np.abs(place - view.grid.pixel[view.use]).max(1) > self.thresholds.moves
            seen = view.use[moved]
            step = np.where(view.stays[moved], 1, -1)
            view.grid.stayed[seen] = np.clip(view.grid.stayed[seen] + step, 0, most)
        lean, slope_of, spread = self._found
        way = float(np.linalg.norm(motion[:3, 3]))
        self.lean = lean.found(slope_of, spread, way).carried(seconds)

    def rolled(self, motion: Array, covariance: Array, seconds: float) -> None:
        """The car has moved by this [4, 4], covariance [6, 6], and nothing measured the road."""
        self.lean = self.lean.by_way(motion, covariance, seconds).carried(seconds)

    def _shares(self, view: RoadView, use: NDArray, place: NDArray) -> Array:
        """The time that patches `use` [M] move for until the image before shows them at `place` [M,
        2], as a share of that between the images: with a rolling shutter each row has its own;
        1 without."""
        lens = self._cameras.lenses[view.grid.camera]
        if not lens.read_out:
            return np.ones(len(use))
        at = np.nan_to_num(place, nan=0.0)
        before = np.clip(lens.late(at), -0.5 * lens.read_out, 0.5 * lens.read_out)
        return np.asarray(1.0 + (view.grid.late[use] - before) / view.seconds, np.float64)

    def _moved(
        self, view: RoadView, use: NDArray, ground: Array, motions: Array, lean: Lean
    ) -> _Seen:
        """Where the image before shows ground points [K, 3] of now, which patches `use` [K] show,
        by each of the motions [J, 4, 4]: one after the other, [J K]."""
        lens, now = self._cameras.lenses[view.grid.camera], view.T_camera_base
        count, back = len(motions), geometry.inverse(now)
        at = geometry.transform(now, ground)
        at[:, 2] = np.maximum(at[:, 2], 0.1)
        every = np.tile(at, (count, 1))
        T = now @ motions @ back
        there = (at @ np.swapaxes(T[:, :3, :3], 1, 2) + T[:, None, :3, 3]).reshape(-1, 3)
        T = np.repeat(T, len(at), axis=0)
        if lens.read_out:
            rough = lens.pixels(there[:, :2] / np.maximum(there[:, 2:], 0.5))
            shares = self._shares(view, np.tile(use, count), rough)
            twists = np.stack([geometry.log(motion) for motion in motions])
            T = now @ geometry.along(np.repeat(twists, len(at), axis=0), shares) @ back
            there = (T[:, :3, :3] @ every[..., None])[..., 0] + T[:, :3, 3]
        ahead = there[:, 2] > 0.5
        there[:, 2] = np.where(ahead, there[:, 2], 1.0)
        xy = there[:, :2] / there[:, 2:]
        pixel = lens.pixels(xy)
        inside = ahead & lens.inside(pixel, 7.0)
        normal = np.broadcast_to(
            now[:3, :3] @ np.array([-lean.slope[0], -lean.slope[1], 1.0]), every.shape
        )
        warp, bend = patch_alignment.warps(every, normal, T)
        if lens.model == "none":
            f = lens.k[[0, 1], [0, 1]]
            warp, bend = warp * (f[:, None] / f[None]), bend / f
        else:
            inward = patch_alignment.inverted(lens.derivative(at[:, :2] / at[:, 2:]))
            inward = np.tile(inward, (count, 1, 1))
            warp = lens.derivative(xy) @ warp @ inward
            bend = (bend[:, None] @ inward)[:, 0]
        sane = np.isfinite(warp).all((1, 2)) & (np.abs(warp).max((1, 2)) < 4.0)
        warp = np.where(sane[:, None, None], warp, np.eye(2))
        return _Seen(pixel, warp, np.where(sane[:, None], bend, 0.0), inside & sane)

    def _no_road(self, view: RoadView, place: Array) -> NDArray[np.bool_]:
        """Patches that stay where they are in the image, though a motion moves them to `place` [J
        K, 2], J motions one after the other: if that is the motion, they do not show the road."""
        still = view.grid.pixel[view.use]
        moved = np.abs(place.reshape(-1, *still.shape) - still).max(-1)
        return (view.stays & (moved > self.thresholds.moves)).reshape(-1)

    def _linearised(
        self, found: _Found, motion: Array, slope_of: Array, pivots: tuple[Array, Array]
    ) -> tuple[Array, Array, Array]:
        """Residual [M, 2] of rays in the image before, its derivative [M, 2, 8] by motion and lean,
        and by a bump of the road there [M, 2]. slope_of [2]: of the road, about pivots as `Lean`
        gives them."""
        ground, over = _on_plane(found.toward, found.centre, slope_of, pivots)
        T = self._rows_moved(found, motion)
        xy, toward = _seen_along(T, ground)
        along = (toward @ found.toward[..., None])[..., 0]
        x, y, height = ground.T
        jacobian = np.empty((len(xy), 2, 8))
        jacobian[:, :, :3] = toward
        jacobian[:, :, 3] = y[:, None] * toward[:, :, 2] - height[:, None] * toward[:, :, 1]
        jacobian[:, :, 4] = height[:, None] * toward[:, :, 0] - x[:, None] * toward[:, :, 2]
        jacobian[:, :, 5] = x[:, None] * toward[:, :, 1] - y[:, None] * toward[:, :, 0]
        # a step of the motion is so much of it for a row of its own time
        jacobian[:, :, :6] *= found.shares[:, None, None]
        arm = (ground[:, :2] - pivots[0]) * over[:, None]
        jacobian[:, :, 6:] = along[..., None] * arm[:, None]
        slope = along * over[:, None]
        return found.rays - xy, jacobian, slope

    def _rows_moved(self, found: _Found, motion: Array) -> Array:
        """[M, 4, 4]: base_link now to the cameras before, where the rows that show them were read
        out."""
        if not self._cameras.read_out:
            return np.asarray(found.T_camera_base @ motion, np.float64)
        moved = geometry.along(geometry.log(motion), found.shares)
        return np.asarray(found.T_camera_base @ moved, np.float64)

    def _by_turn(
        self, found: _Found, motion: Array, slope_of: Array, pivots: tuple[Array, Array]
    ) -> Array:
        """[M, 2, 3]: how rays in the image before change if the camera that sees them is turned
        about itself, rotation vector in base_link: it looks along another ray now, and from another
        direction before."""
        ground, over = _on_plane(found.toward, found.centre, slope_of, pivots)
        T = self._rows_moved(found, motion)
        _, toward = _seen_along(T, ground)
        normal = np.array([-slope_of[0], -slope_of[1], 1.0])
        reach = ground - found.centre  # along the ray
        # the camera before, turned, sees the point as if that were turned back about its centre
        back = geometry.inverse(found.T_camera_base)
        arm = (T[:, :3, :3] @ ground[..., None])[..., 0] + T[:, :3, 3]
        arm = (back[:, :3, :3] @ arm[..., None])[..., 0]  # in base_link before, from the centre
        turn_back = np.swapaxes(T[:, :3, :3], 1, 2) @ found.T_camera_base[:, :3, :3]
        out = np.empty((len(ground), 2, 3))
        for axis in range(3):
            one = np.zeros(3)
            one[axis] = 1.0
            aside = np.cross(one, reach)
            along = aside - found.toward * ((aside @ normal) * over)[:, None]
            turned = (turn_back @ np.cross(arm, one)[..., None])[..., 0]
            out[:, :, axis] = (toward @ (along + turned)[..., None])[..., 0]
        return out


def _seen_along(T: Array, ground: Array) -> tuple[Array, Array]:
    """Rays [M, 2] along which cameras see points [M, 3], by T [M, 4, 4], and how they change with
    these [M, 2, 3]."""
    q = (T[:, :3, :3] @ ground[..., None])[..., 0] + T[:, :3, 3]
    z = np.maximum(q[:, 2], 0.1)
    xy = q[:, :2] / z[:, None]
    lens = np.zeros((len(q), 2, 3))
    lens[:, 0, 0] = lens[:, 1, 1] = 1.0 / z
    lens[:, :, 2] = -xy / z[:, None]
    return xy, lens @ T[:, :3, :3]


def _ground(grid: _Grid, use: NDArray, lean: Lean) -> Array:
    """Points [K, 3] of the road in base_link that patches `use` show."""
    pivots = lean.pivots(grid.centre[None])
    return _on_plane(grid.toward[use], grid.centre, lean.slope, pivots)[0]


def _on_plane(
    toward: Array, centre: Array, slope: Array, pivots: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Where rays [K, 3] from centres [K, 3] (or one) meet the road of this slope [2] about pivots
    (of each, or one), in base_link, and how these points move along them with the plane's height
    [K]."""
    normal = np.array([-slope[0], -slope[1], 1.0])
    over = 1.0 / np.minimum(toward @ normal, -1e-3)
    place, height = pivots
    high = height - place @ slope - centre @ normal
    return centre + toward * (high * over)[:, None], over


def _others(scores: Array, best: int) -> NDArray[np.bool_]:
    """Which of the scores [K] do not lie on the slopes of the best one: the faster a car, the
    wider they are."""
    first = last = best
    while first > 0 and scores[first - 1] <= scores[first] + RIPPLE:
        first -= 1
    while last < len(scores) - 1 and scores[last + 1] <= scores[last] + RIPPLE:
        last += 1
    other = np.ones(len(scores), np.bool_)
    other[first : last + 1] = False
    return other


def _on_ground(
    cameras: Cameras, camera: int, t: RoadThresholds, half_lane: float
) -> tuple[NDArray, Array, Array] | None:
    """Pixels [K, 2] of a camera that show the ground up to half_lane beside the car, their rays [K,
    3] in base_link, and where these meet it [K, 3]; None if the camera stands too low to measure by
    it."""
    lens, mount = cameras.lenses[camera], cameras.T_base_camera[camera]
    if mount[2, 3] < LOWEST:
        return None
    height, width = lens.size
    v, u = np.meshgrid(
        np.arange(height - 9.0, 8.0, -t.rows), np.arange(8.0, width - 8.0, t.columns), indexing="ij"
    )
    pixel = np.column_stack([u.ravel(), v.ravel()])
    if (own := cameras.ego_vehicle[camera]) is not None:
        at = np.rint(pixel).astype(int)
        pixel = pixel[~own[at[:, 1], at[:, 0]]]
    rays = lens.rays(pixel)
    toward = np.column_stack([rays, np.ones(len(rays))]) @ mount[:3, :3].T
    with np.errstate(divide="ignore"):
        ground = mount[:3, 3] + toward * (mount[2, 3] / -toward[:, 2])[:, None]
    ahead = toward[:, 2] < -1e-3
    ahead &= np.abs(ground[:, 1]) < half_lane
    ahead &= np.abs(ground[:, 0]) < t.farthest
    return pixel[ahead], toward[ahead], ground[ahead]


def _arm(cameras: Cameras, camera: int, t: RoadThresholds) -> Array | None:
    """How far [2] what a camera shows of the ground is from it, over its height, in the median."""
    seen = _on_ground(cameras, camera, t, t.farthest)
    if seen is None or len(seen[0]) < t.fewest:
        return None
    centre = cameras.T_base_camera[camera, :3, 3]
    return np.asarray(np.median(seen[2][:, :2] - centre[:2], axis=0) / centre[2], np.float64)


def _grid(cameras: Cameras, camera: int, t: RoadThresholds) -> _Grid | None:
    """Where a camera shows the lane; None if it does not, or stands too low to measure by it."""
    lens, mount = cameras.lenses[camera], cameras.T_base_camera[camera]
    shown = _on_ground(cameras, camera, t, t.half_lane)
    if shown is None:
        return None
    pixel, toward, ground = shown
    which = np.flatnonzero(np.abs(ground[:, 0]) > t.nearest)
    if len(which) < t.fewest:
        return None
    if len(which) > t.most:
        which = which[np.linspace(0, len(which) - 1, t.most).astype(int)]
    stayed = np.zeros(len(which), np.int64)
    ahead_by = ground[which] + np.array([STEP, 0.0, 0.0])
    q = geometry.transform(geometry.inverse(mount), ahead_by)
    way = lens.pixels(q[:, :2] / np.maximum(q[:, 2:], 0.1)) - pixel[which]
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
    seen = pixel[which].astype(np.float32)
    return _Grid(camera, seen, toward[which], mount[:3, 3], way, lens.late(seen), stayed)
