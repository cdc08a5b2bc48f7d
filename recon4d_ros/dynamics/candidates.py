"""Detections from elsewhere: boxes in images and in 3D, of any detector, are candidates with a
class; geometry decides which of them move.

A candidate moves if its boxes say so (ground_motion.py: its speed over the ground, by a test at
0.1 %, twice running). Where what looks for motion marks most of it, a test at 5 % does. What
moves is marked in the masks as a whole, within its box and its depth (`fill`), and is
a detection for the tracks, with the class that most of its boxes said. What stands marks nothing,
and where nothing was detected nothing follows.

A detector is slower than the images and late. Boxes are therefore placed by their own stamp, at the
pose the camera had then, and a candidate is carried to later images by its motion, as long as it
was seen within `keep_missing`.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from recon4d_ros.cameras.calibration import upright
from recon4d_ros.cameras.distortion import to_rays
from recon4d_ros.dynamics.ground_motion import (
    DOUBT,
    EDGE,
    PERSON,
    RIDER,
    SURE,
    GroundMotion,
    Kind,
    Look,
    box_at,
    fit,
    fit_places,
    kind_of,
)
from recon4d_ros.dynamics.parameters import DynamicsParameters
from recon4d_ros.dynamics.tracker import FASTEST
from recon4d_ros.dynamics.tracker import Detection as Region
from recon4d_ros.dynamics.views import STRIDE, View
from recon4d_ros.geometry import box_corners, interpolate, inverse, rectangles_shared
from recon4d_ros.types import (
    Camera,
    Detections,
    DynamicObject,
    Frame,
    ImageBox,
    ImageBoxes,
    PoseEstimate,
    Rig,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

WINDOW = 1_000_000_000
"""ns of boxes that a motion is fitted to; a detector that gives fewer than MOST in it, twice."""

MOST, KEPT_NS = 12, 2_000_000_000
SAME = 0.3
"""Intersection over union from which a box continues a candidate (SORT's; Bewley et al., 2016)."""

ONE = 0.7
"""Intersection over union from which two boxes of a kind in one image are of one thing."""

HIDDEN = 0.5
"""Share of its width from which a foot is hidden."""

AT_EDGE = 2.0
"""Pixels of the source image: a box that comes so near to the image's edge, and three standard
deviations of its own edge nearer, is cut off there."""

WAITING = 8
"""Results of one camera that wait for the pose of their image; newer ones displace the oldest."""

MARKED = 0.5
"""Share of a candidate that has to be marked for the test's level to be DOUBT."""

RUNNING = 2
"""Looks running that a test has to be passed in."""

BULGE = 1.0
"""Metres by which a thing may stick out from where it stands, or from its box in 3D."""

FIRST_LABEL = 1 << 20
"""Labels of regions that are candidates; those of the masks' own are below."""

TOO_OLD = "came too late for the images they are of"
NO_STAMP = "have no time stamp, so that it is not known which image they are of"
DISPLACED = "newer ones came before they could be used"


@dataclass(frozen=True, eq=False)
class Moment:
    """Where everything was at one frame set. stamps_ns: [N] of the cameras. T_map_camera: [N, 4,
    4]. plane: [4] of the road in map. motion: [6, 6], base: [3] as in ground_motion.Look. q: by
    camera [h, w] 1/m on the motion grid, depth that does not come from time, NaN = none; None of a
    camera that looks alone."""

    stamp_ns: int
    stamps_ns: NDArray[np.int64]
    T_map_camera: Array
    plane: Array
    motion: Array
    base: Array
    q: tuple[NDArray[np.float32] | None, ...]


@dataclass(eq=False)
class Candidate:
    """One thing in one camera, over time. camera: -1 of a thing that a network gives in 3D."""

    camera: int
    number: int
    kind: Kind
    looks: list[Look] = field(default_factory=list)
    places: list[tuple[int, Array]] = field(default_factory=list)  # in 3D: stamp, box [7] in map
    votes: dict[str, float] = field(default_factory=dict)
    seen: int = 0
    motion: GroundMotion | None = None
    moves: bool = False
    marked: bool = False
    """Whether most of it was marked in the last image."""
    passed: int = 0
    """Looks running by which it moves."""

    @property
    def stamp_ns(self) -> int:
        return self.looks[-1].stamp_ns if self.looks else self.places[-1][0]

    @property
    def class_name(self) -> str:
        return max(self.votes, key=lambda name: self.votes[name], default="")

    @property
    def class_score(self) -> float:
        """The mean of what its boxes scored for its class; those of another count as 0."""
        return self.votes.get(self.class_name, 0.0) / max(self.seen, 1)

    def vote(self, class_name: str, score: float) -> None:
        self.votes[class_name] = self.votes.get(class_name, 0.0) + score
        self.seen += 1

    def decide(self, least: float) -> None:
        """After a look."""
        level = DOUBT if self.moves or self.marked else SURE
        so = (
            self.motion is not None
            and self.motion.speed < FASTEST
            and self.motion.faster(least) < level
        )
        self.passed = self.passed + 1 if so else 0
        self.moves = self.passed >= RUNNING or (so and self.moves)


@dataclass(frozen=True, eq=False)
class Mover:
    """A candidate that moves, in one camera's image. box: [4] as in Look. outline: [K, 2] the
    corners of its shape, likewise. depth: metres from the camera. near, far: between them it is,
    the error of its depth included. velocity: [2] m/s in map."""

    candidate: Candidate
    box: Array
    outline: Array
    depth: float
    near: float
    far: float
    velocity: Array


class Candidates:
    """All cameras' candidates. `offer` and `offer_objects` take detections, from any thread;
    `remember` and `judge` are asked once for every frame set of a usable pose, in order.

    dropped: reason -> results that were not used; used: those that were.
    """

    def __init__(self, rig: Rig, views: Sequence[View], parameters: DynamicsParameters) -> None:
        self._cameras, self._views, self._p = rig.cameras, tuple(views), parameters
        names = parameters.class_names.split(",") if parameters.class_names.strip() else []
        self._names = [name.strip() for name in names]
        self._lock = threading.Lock()
        self.dropped: Counter[str] = Counter()
        self.used = 0
        self._heard = False  # whether anything was ever detected
        self._next = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything; what comes later of images from before is not used."""
        with self._lock:
            self._waiting: list[deque[ImageBoxes]] = [deque(maxlen=WAITING) for _ in self._cameras]
            self._objects: Detections | None = None
        self._history: deque[Moment] = deque()
        self.candidates: list[Candidate] = []

    @property
    def idle(self) -> bool:
        """Whether nothing has been detected lately."""
        with self._lock:
            waits = any(self._waiting) or self._objects is not None
        return not waits and not self.candidates

    def offer(self, camera: int, boxes: ImageBoxes) -> None:
        """Boxes of one image of a camera."""
        self._heard = True
        with self._lock:
            if boxes.stamp_ns <= 0:
                self.dropped[NO_STAMP] += 1
                return
            waiting = self._waiting[camera]
            if len(waiting) == WAITING:
                self.dropped[DISPLACED] += 1
            waiting.append(boxes)

    def offer_objects(self, detections: Detections) -> None:
        """What an engine of objects says of one frame set, in this world's map; newest wins."""
        with self._lock:
            if self._objects is not None:
                self.dropped[DISPLACED] += 1
            self._objects = detections

    def remember(
        self, frame: Frame, pose: PoseEstimate, depth: NDArray[np.float32], ground: Array | None
    ) -> None:
        """Where everything was at a frame set. depth: [N, H, W] metres of the working images."""
        R = pose.T_map_base[:3, :3]
        seconds = max(frame.stamp_ns - self._history[-1].stamp_ns, 1) * 1e-9 if self._history else 1
        turn = np.kron(np.eye(2), R)
        motion = turn @ pose.motion_covariance @ turn.T / seconds**2
        plane = np.array([0.0, 0.0, 1.0, 0.0]) if ground is None else ground
        normal = R @ plane[:3]
        in_map = np.array([*normal, plane[3] - normal @ pose.T_map_base[:3, 3]])
        self._history.append(
            Moment(
                frame.stamp_ns,
                frame.stamps_ns,
                pose.T_map_camera,
                in_map,
                motion,
                pose.T_map_base[:3, 3],
                tuple(
                    _measured(view, depth[i]) if view.mostly_covered and self._heard else None
                    for i, view in enumerate(self._views)
                ),
            )
        )
        while frame.stamp_ns - self._history[0].stamp_ns > KEPT_NS:
            self._history.popleft()

    def judge(self, frame: Frame, marked: Sequence[Mask | None]) -> dict[int, list[Mover]]:
        """What moves in the newest remembered frame set, by camera. marked: by camera, [h, w] on
        the motion grid, what was found without boxes; None: nothing is known of this image."""
        self._take_boxes()
        self._take_objects()
        now = self._history[-1]
        self.candidates = [
            one for one in self.candidates if now.stamp_ns - one.stamp_ns <= self._patience(one)
        ]
        out: dict[int, list[Mover]] = {}
        for one in self.candidates:
            places = self._places(one, now, frame.present)
            for camera, place in places:
                self._count(one, camera, place, marked[camera])
            if one.moves:
                for camera, place in places:
                    if marked[camera] is not None:
                        out.setdefault(camera, []).append(place)
        return out

    def _patience(self, one: Candidate) -> float:
        """ns without a box after which a candidate is given up: a detector that is slow is given
        twice the time between its boxes."""
        stamps = [look.stamp_ns for look in one.looks] or [stamp for stamp, _ in one.places]
        gap = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0
        return max(self._p.keep_missing * 1e9, min(2.0 * gap, KEPT_NS))

    def _count(self, one: Candidate, camera: int, place: Mover, marked: Mask | None) -> None:
        """Whether most of it is marked. Its middle alone is asked: at its edges something else
        shows."""
        if marked is None:
            return
        view = self._views[camera]
        left, top, right, bottom = place.box
        dx, dy = 0.15 * (right - left), 0.15 * (bottom - top)
        window = window_of(view, np.array([left + dx, top + dy, right - dx, bottom - dy]))
        inside = marked[window]
        if inside.size:
            one.marked = bool(inside.mean() > MARKED)

    # --- what came

    def _take_boxes(self) -> None:
        newest, oldest = self._history[-1], self._history[0]
        for camera in range(len(self._cameras)):
            ready: list[ImageBoxes] = []
            with self._lock:
                waiting = self._waiting[camera]
                while waiting and waiting[0].stamp_ns <= newest.stamps_ns[camera]:
                    ready.append(waiting.popleft())
                # the clock was set back, or is another one: they would wait for ever
                while waiting and waiting[0].stamp_ns - newest.stamp_ns > 2 * KEPT_NS:
                    waiting.popleft()
                    self.dropped[TOO_OLD] += 1
            for boxes in sorted(ready, key=lambda one: one.stamp_ns):
                last = max(
                    (one.stamp_ns for one in self.candidates if one.camera == camera), default=0
                )
                if boxes.stamp_ns < oldest.stamps_ns[camera] or boxes.stamp_ns < last:
                    self.dropped[TOO_OLD] += 1
                    continue
                self.used += 1
                self._see(camera, boxes)

    def _see(self, camera: int, boxes: ImageBoxes) -> None:
        """One image's boxes, each given to the candidate that it continues, or begins."""
        moment, T = self._at(boxes.stamp_ns, camera)
        found: list[tuple[ImageBox, Kind, Look]] = []
        named = [replace(box, class_name=self._named(box.class_name)) for box in boxes.boxes]
        for box, kind in joined([box for box in named if box.score >= self._p.least_score]):
            placed = on_rays(self._cameras[camera], box)
            if placed is not None:
                rays, known, edge = placed
                look = Look(
                    boxes.stamp_ns,
                    rays,
                    known,
                    edge,
                    T,
                    moment.plane,
                    moment.motion,
                    moment.base,
                    *self._depth_in(camera, rays, boxes.stamp_ns),
                )
                found.append((box, kind, look))
        seen = _seen([look.box for _, _, look in found], [kind for _, kind, _ in found])
        found = [
            (box, kind, replace(look, known=look.known & own))
            for (box, kind, look), own in zip(found, seen, strict=True)
        ]
        mine = [one for one in self.candidates if one.camera == camera]
        expected = [self._expected(one, boxes.stamp_ns, T) for one in mine]
        pairs = _matched(
            expected,
            [one.kind for one in mine],
            [look.box for _, _, look in found],
            [kind for _, kind, _ in found],
        )
        for index, (box, kind, look) in enumerate(found):
            if index in pairs:
                one = mine[pairs[index]]
            else:
                one = Candidate(camera, self._number(), kind)
                self.candidates.append(one)
            one.vote(box.class_name, box.score)
            one.kind = kind_of(one.class_name) or one.kind
            if one.looks and look.stamp_ns == one.looks[-1].stamp_ns:
                continue  # another word on the same image
            recent = [old for old in one.looks if look.stamp_ns - old.stamp_ns <= KEPT_NS]
            in_window = [old for old in recent if look.stamp_ns - old.stamp_ns <= WINDOW]
            enough = len(in_window) >= MOST // 2
            one.looks = [*(in_window if enough else recent[-MOST:]), look]
            one.motion = fit(one.looks[-3 * MOST :], one.kind)
            one.decide(self._p.minimum_speed)

    def _depth_in(self, camera: int, box: Array, stamp_ns: int) -> tuple[float, float]:
        """Inverse depth of the middle of a box, and its standard deviation, 1/m; NaN where no other
        camera measures it."""
        moment = next((m for m in self._history if m.stamps_ns[camera] == stamp_ns), None)
        q = moment.q[camera] if moment is not None else None
        if q is None:
            return np.nan, np.nan
        dx, dy = 0.25 * (box[2] - box[0]), 0.25 * (box[3] - box[1])
        inside = q[window_of(self._views[camera], box + np.array([dx, dy, -dx, -dy]))]
        measured = inside[np.isfinite(inside)]
        if len(measured) < max(4, 0.25 * inside.size):
            return np.nan, np.nan
        middle = float(np.median(measured))
        spread = 1.48 * float(np.median(np.abs(measured - middle)))
        return middle, spread / np.sqrt(max(len(measured) / 25, 1)) + 0.02 * middle

    def _take_objects(self) -> None:
        with self._lock:
            if self._objects is None or self._objects.stamp_ns > self._history[-1].stamp_ns:
                return
            detections, self._objects = self._objects, None
        if detections.stamp_ns < self._history[0].stamp_ns:
            self.dropped[TOO_OLD] += 1
            return
        self.used += 1
        moment, _ = self._at(detections.stamp_ns, None)
        known = {one.number: one for one in self.candidates if one.camera < 0}
        for thing in detections.objects:
            kind = kind_of(thing.class_name)
            if thing.id < 0 or kind is None or thing.class_score < self._p.least_score:
                continue
            number = -1 - thing.id
            if (one := known.get(number)) is None:
                one = Candidate(-1, number, kind)
                self.candidates.append(one)
            if one.places and detections.stamp_ns <= one.places[-1][0]:
                continue
            one.vote(thing.class_name, thing.class_score)
            one.places = [
                *(p for p in one.places if detections.stamp_ns - p[0] <= KEPT_NS),
                (detections.stamp_ns, thing.box_map),
            ]
            boxes = np.stack([box for _, box in one.places])
            foot = boxes[:, :3] - np.stack([np.zeros(len(boxes))] * 2 + [boxes[:, 5] / 2], -1)
            one.motion = fit_places(
                [stamp for stamp, _ in one.places],
                foot,
                float(boxes[-1, 5]),
                moment.motion,
                moment.base,
            )
            one.decide(self._p.minimum_speed)

    def _named(self, class_name: str) -> str:
        names = self._names
        if names and class_name.isdigit() and int(class_name) < len(names):
            return names[int(class_name)]
        return class_name

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _at(self, stamp_ns: int, camera: int | None) -> tuple[Moment, Array]:
        """The moment nearest to a stamp, and the camera's pose at it, between two moments."""

        def time(moment: Moment) -> int:
            return moment.stamp_ns if camera is None else int(moment.stamps_ns[camera])

        after = next((m for m in self._history if time(m) >= stamp_ns), self._history[-1])
        if camera is None:
            return after, np.eye(4)
        before = max(
            (m for m in self._history if time(m) <= stamp_ns), key=time, default=self._history[0]
        )
        span = time(after) - time(before)
        if span <= 0:
            return after, after.T_map_camera[camera]
        share = (stamp_ns - time(before)) / span
        pose = interpolate(before.T_map_camera[camera], after.T_map_camera[camera], share)
        return after, pose

    # --- where a candidate is

    def _expected(self, one: Candidate, stamp_ns: int, T_map_camera: Array) -> Array:
        """[4] its box at a later time, as in Look."""
        last = one.looks[-1]
        if one.motion is None:
            return last.box
        before = box_at(one.motion, last.stamp_ns, last.T_map_camera)
        now = box_at(one.motion, stamp_ns, T_map_camera)
        if before is None or now is None:
            return last.box
        # what the motion says of the change; the box itself is as it was seen
        (x0, y0, h0), (x1, y1, h1) = before[0], now[0]
        grow = h1 / h0
        left, top, right, bottom = last.box
        middle = x1 + ((left + right) / 2 - x0) * grow
        foot = y1 + (bottom - y0) * grow
        wide, high = (right - left) * grow, (bottom - top) * grow
        return np.array([middle - wide / 2, foot - high, middle + wide / 2, foot])

    def _places(
        self, one: Candidate, now: Moment, present: NDArray[np.bool_]
    ) -> list[tuple[int, Mover]]:
        """Where it is in the images of now, by camera."""
        if one.camera >= 0:
            if not present[one.camera]:
                return []
            T = now.T_map_camera[one.camera]
            stamp = int(now.stamps_ns[one.camera])
            box = self._expected(one, stamp, T)
            at = box_at(one.motion, stamp, T) if one.motion is not None else None
            depth = at[1] if at else _depth_of(one, T)
            outline = box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
            velocity = one.motion.velocity if one.motion is not None else np.zeros(2)
            sigma = _range_sigma(one.motion, T) if one.motion is not None else depth / 3
            near, far = depth - 3 * sigma - BULGE, depth + 3 * sigma + one.kind.reach
            return [(one.camera, Mover(one, box, outline, depth, near, far, velocity))]
        out = []
        stamp, box_map = one.places[-1]
        velocity = one.motion.velocity if one.motion is not None else np.zeros(2)
        for camera in np.flatnonzero(present):
            seconds = (int(now.stamps_ns[camera]) - stamp) * 1e-9
            centre = box_map[:3] + seconds * np.array([*velocity, 0.0])
            corners = box_corners(centre, box_map[3:6], float(box_map[6]))
            T = inverse(now.T_map_camera[camera])
            points = corners @ T[:3, :3].T + T[:3, 3]
            if points[:, 2].min() < 0.5:
                continue
            rays = points[:, :2] / points[:, 2:]
            rect = np.array([*rays.min(0), *rays.max(0)])
            middle = float((points[:, 2].min() + points[:, 2].max()) / 2)
            near, far = points[:, 2].min() - BULGE, points[:, 2].max() + BULGE
            if window_size(self._views[camera], rect):
                out.append(
                    (int(camera), Mover(one, rect, rays, middle, float(near), float(far), velocity))
                )
        return out

    def region(self, camera: int, mover: Mover, label: int) -> Region:
        """A mover as a region lifted to 3D, for the tracks. Its covariance is that of one image:
        every image of the fit's window gives it again."""
        one, now = mover.candidate, self._history[-1]
        T, stamp = now.T_map_camera[camera], int(now.stamps_ns[camera])
        view = self._views[camera]
        left, top, right, bottom = mover.box
        width, height = (right - left) * mover.depth, (bottom - top) * mover.depth
        motion = one.motion
        if motion is not None:
            foot, P = motion.at(stamp), motion.covariance * max(motion.looks, 1)
            seconds = (stamp - motion.stamp_ns) * 1e-9
            carry = np.eye(4)
            carry[:2, 2:] = np.eye(2) * seconds
            P = carry @ P @ carry.T
            velocity = np.array([*motion.velocity, 0.0])
        else:
            ray = np.array([(left + right) / 2, bottom, 1.0]) * mover.depth
            foot = T[:3, :3] @ ray + T[:3, 3]
            P = np.diag([1.0, 1.0, 25.0, 25.0]) * max(1.0, (mover.depth / 10) ** 2)
            velocity = np.zeros(3)
        away = foot - T[:3, 3]
        bearing = float(np.arctan2(away[1], away[0]))
        if one.camera < 0:  # its middle is known: what is seen of it is nearer by half of it
            box = one.places[-1][1]
            turned = float(box[6]) - bearing
            half = np.hypot(box[3] * np.cos(turned), box[4] * np.sin(turned)) / 2
            foot = foot - half * np.array([np.cos(bearing), np.sin(bearing), 0.0])
            height = float(box[5])
        position_P, velocity_P = np.eye(3) * 0.3**2, np.eye(3) * 0.3**2
        position_P[:2, :2] = P[:2, :2] + 0.1**2 * np.eye(2)
        velocity_P[:2, :2] = P[2:, 2:]
        return Region(
            camera,
            label,
            foot + np.array([0.0, 0.0, height / 2]),
            position_P,
            velocity,
            velocity_P,
            float(width),
            float(height),
            window_size(view, mover.box),
            1.0 - SURE if one.moves else 1.0 - DOUBT,
            bearing,
        )


def named(
    objects: tuple[DynamicObject, ...], classes: dict[int, tuple[str, float]]
) -> tuple[DynamicObject, ...]:
    """Objects with the classes that are known, by id."""
    return tuple(
        replace(thing, class_name=classes[thing.id][0], class_score=classes[thing.id][1])
        if thing.id in classes
        else thing
        for thing in objects
    )


def joined(boxes: Sequence[ImageBox]) -> list[tuple[ImageBox, Kind]]:
    """One box for one thing, best first, without what stands by its nature. Of two boxes of a kind
    that are nearly one (a van is a car and a truck to many detectors) the better one stays. Who
    sits on a bicycle or motorcycle and what he sits on are one."""
    kinds = [(box, kind_of(box.class_name)) for box in boxes]
    kept: list[tuple[ImageBox, Kind]] = []
    for box, kind in sorted(kinds, key=lambda one: -one[0].score):
        if kind is None:
            continue
        twin = any(kind is its and _iou(_edges(box), _edges(other)) > ONE for other, its in kept)
        if not twin:
            kept.append((box, kind))
    out = list(kept)
    for box, kind in kept:
        if kind is not RIDER:
            continue
        sits = [one for one in out if one[1] is PERSON and _sits_on(one[0], box)]
        if sits:
            whole = _around([box, *(one[0] for one in sits)])
            out = [(whole if one[0] is box else one[0], one[1]) for one in out if one not in sits]
    return out


def _sits_on(person: ImageBox, cycle: ImageBox) -> bool:
    """Whether most of the narrower one's width is the other's, too, and the person's foot is beside
    the wheels, not before or behind them."""
    shared = min(person.right, cycle.right) - max(person.left, cycle.left)
    narrower = min(person.right - person.left, cycle.right - cycle.left)
    high = cycle.bottom - cycle.top
    return (
        shared > 0.5 * narrower
        and cycle.top < person.bottom < cycle.bottom + 0.25 * high
        and person.top < cycle.top + 0.25 * high
    )


def _around(boxes: Sequence[ImageBox]) -> ImageBox:
    """The first one, as large as all."""
    return replace(
        boxes[0],
        left=min(box.left for box in boxes),
        top=min(box.top for box in boxes),
        right=max(box.right for box in boxes),
        bottom=max(box.bottom for box in boxes),
    )


def _iou(a: Array, b: Array) -> Array:
    """[K, M] intersection over union of boxes [K, 4] and [M, 4]."""
    both, mine, theirs = rectangles_shared(a, b)
    return np.asarray(both / np.maximum(mine + theirs - both, 1e-9))


def _edges(box: ImageBox) -> Array:
    """[1, 4]"""
    return np.array([[box.left, box.top, box.right, box.bottom]])


def on_rays(camera: Camera, box: ImageBox) -> tuple[Array, NDArray[np.bool_], float] | None:
    """A box of the source image as Look has it: box [4], known [3] and the standard deviation of a
    pixel, in rays of the upright working camera; None of one that is empty or beyond the lens."""
    right_edge, bottom_edge = camera.width - 1.0, camera.height - 1.0
    left, right = np.clip([box.left, box.right], -0.5, right_edge + 0.5)
    top, bottom = np.clip([box.top, box.bottom], -0.5, bottom_edge + 0.5)
    if not (right - left >= 2 and bottom - top >= 2):  # also NaN
        return None
    u, v = (left + right) / 2, (top + bottom) / 2
    ends = np.array([[left, v], [u, top], [right, v], [u, bottom]])
    close = AT_EDGE + 3 * EDGE * (bottom - top)
    cut = np.array(
        [left < close, top < close, right > right_edge - close, bottom > bottom_edge - close]
    )
    rays = to_rays(camera, ends)
    if not np.isfinite(rays).all():
        return None
    turn = upright(camera)
    if turn is not None:
        rays = rays @ turn[:2, :2]
    which = [rays[:, 0].argmin(), rays[:, 1].argmin(), rays[:, 0].argmax(), rays[:, 1].argmax()]
    edges = np.array([rays[w, axis] for w, axis in zip(which, (0, 1, 0, 1), strict=True)])
    if not (edges[2] > edges[0] and edges[3] > edges[1]):
        return None
    free = ~cut[which]
    known = np.array([free[0] and free[2], free[3], free[1] and free[3]])
    return edges, known, 1.0 / float(camera.k[1, 1])


def window_of(view: View, box: Array) -> tuple[slice, slice]:
    """Rows and columns of the motion grid that a box [4] of rays covers."""
    h, w = view.x.shape
    left, right = (view.k[0, 0] * box[[0, 2]] + view.k[0, 2]).tolist()
    top, bottom = (view.k[1, 1] * box[[1, 3]] + view.k[1, 2]).tolist()
    rows = slice(int(np.clip(np.ceil(top), 0, h)), int(np.clip(np.floor(bottom) + 1, 0, h)))
    columns = slice(int(np.clip(np.ceil(left), 0, w)), int(np.clip(np.floor(right) + 1, 0, w)))
    return rows, columns


def window_size(view: View, box: Array) -> int:
    """Pixels of the motion grid in it."""
    rows, columns = window_of(view, box)
    return max(rows.stop - rows.start, 0) * max(columns.stop - columns.start, 0)


def _depth_of(one: Candidate, T_map_camera: Array) -> float:
    """Metres ahead of the camera by where its foot meets the road, or by its height."""
    look = one.looks[-1]
    left, _, right, bottom = look.box
    ray = look.T_map_camera[:3, :3] @ np.array([(left + right) / 2, bottom, 1.0])
    slope = float(look.plane[:3] @ ray)
    above = float(look.plane[:3] @ look.T_map_camera[:3, 3] + look.plane[3])
    by_height = one.kind.height / max(look.box[3] - look.box[1], 1e-3)
    return float(min(-above / slope, 200.0)) if look.known[1] and slope < -1e-3 else by_height


def _range_sigma(motion: GroundMotion, T_map_camera: Array) -> float:
    """Standard deviation of its range, metres."""
    away = motion.foot[:2] - T_map_camera[:2, 3]
    away = away / max(float(np.hypot(*away)), 1e-6)
    return float(np.sqrt(away @ motion.covariance[:2, :2] @ away))


def _measured(view: View, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """[h, w] 1/m on the motion grid where another camera sees the same, else NaN."""
    with np.errstate(divide="ignore"):
        q = 1 / depth[::STRIDE, ::STRIDE]
    return np.where(view.covered, q, np.float32(np.nan))


def _seen(boxes: Sequence[Array], kinds: Sequence[Kind]) -> list[NDArray[np.bool_]]:
    """[3] by box, whether middle, foot and height are its own. Another box whose foot is lower is
    nearer: where it lies over a side of a box, that is no side of the thing; where it covers most
    of its foot, neither foot nor height are. What is too narrow for its kind is hidden in part by
    something that is no box."""
    out = []
    for box, kind in zip(boxes, kinds, strict=True):
        wide = box[2] - box[0]
        middle = foot = wide >= kind.slender * (box[3] - box[1])
        for other in boxes:
            if other is box or other[3] <= box[3] or other[1] >= box[3]:
                continue
            share = (min(other[2], box[2]) - max(other[0], box[0])) / wide
            beside = other[0] <= box[0] + 0.1 * wide or other[2] >= box[2] - 0.1 * wide
            middle = middle and not (share > 0 and beside)
            foot = foot and share < HIDDEN
        out.append(np.array([middle, foot, foot]))
    return out


def _matched(
    expected: Sequence[Array], kinds: Sequence[Kind], found: Sequence[Array], its: Sequence[Kind]
) -> dict[int, int]:
    """Index of the box found -> index of the candidate, by overlap as a whole (assignment). What is
    of another kind does not continue it, a thing of no known kind may."""
    if not expected or not found:
        return {}
    iou = _iou(np.stack(found), np.stack(expected))
    same = np.array([[m is k or "thing" in (m.name, k.name) for k in kinds] for m in its])
    may = (iou >= SAME) & same
    rows, columns = linear_sum_assignment(np.where(may, -iou, 1.0))
    return {int(r): int(c) for r, c in zip(rows, columns, strict=True) if may[r, c]}
