"""The map's places: keyframes of the drive and of a loaded map, and where the car is among them.

`begin` and `take` are called around every step, in the frames' thread, and are cheap. Features,
search and pose are a job for a runner beside it; what came of it is taken up by the next `begin`,
so that map -> odom never changes within a step. Where the car comes back to a place of its own
drive, a pose graph (loops.py) says where keyframes, submaps and car are.

    of until now           what becomes of it
    nothing                keyframes are the map's; odometry's frame is the map's
    a loaded map           not found: what is seen is a map of its own, in odometry's frame
                           found: it goes into the loaded one, and both are one
    a new segment          the map so far is set aside, and is as a loaded one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.camera_rig import grey
from recon4d_ros.errors import MapError, OutputError
from recon4d_ros.localization import pose_graph
from recon4d_ros.localization.agreement import Agreement, Said
from recon4d_ros.localization.features import Features, Orb, Snapshot
from recon4d_ros.localization.keyframes import FeatureFile, Keyframe
from recon4d_ros.localization.loops import LoopCloser, Solution
from recon4d_ros.localization.map_folder import Contents, MapFolder, save_map
from recon4d_ros.localization.nearby import Nearby
from recon4d_ros.localization.parameters import LocalizationParameters
from recon4d_ros.localization.relocalizer import Answer, apart, find
from recon4d_ros.localization.runner import Inline, Runner
from recon4d_ros.localization.vocabulary import Index, Vocabulary
from recon4d_ros.mapping import Mapper
from recon4d_ros.types import (
    Calibration,
    Frame,
    Geometry,
    GridTiles,
    MapMotion,
    PoseEstimate,
    Rig,
)

Array = NDArray[np.float64]

LOOK_NS = 300_000_000  # between two looks while the car is not found
NEAR = 12.0  # metres from a keyframe at which the car should agree with it
NEAREST = 4  # keyframes that are asked then
KNOWN_DEPTH = 0.15  # largest relative deviation of a depth that a keyframe keeps
SUBMAP = 4  # keyframes from one submap to the next
FEWEST = 40  # features of a keyframe, and of a frame set that can contradict a map
SAME, SAME_TURN = 0.7, np.radians(15.0)  # share of the keyframes' distance; radians
THUMBNAIL = 120  # pixels of each camera's width


@dataclass(frozen=True)
class _Task:
    """A frame set to be worked on. look: whether the car is looked for; near: where it is expected,
    in map, if that is known. keep: whether it is to be a keyframe. era: what came of a task of an
    earlier one is of no use. error: [6, 6], sum of the motions' covariances by then. where, loops:
    of the segment that it belongs to; another may have begun when it is worked on."""

    era: int
    stamp_ns: int
    snapshot: Snapshot
    T_odom_base: Array
    T_base_camera: Array
    way: float
    look: bool
    near: Array | None
    keep: bool
    error: Array
    where: Nearby
    loops: LoopCloser


@dataclass(frozen=True)
class _Done:
    """What came of a task. candidates: keyframes that were asked.
    loop: whether they are of this drive."""

    task: _Task
    keyframe: Keyframe | None
    answer: Answer | None
    candidates: int
    loop: bool
    features: int
    trouble: str


class Places:
    """found: whether the car's place in the map is known. motion: how the map moved in the last
    `begin`; entered: whether the car was found in it then; anew: whether the map began anew. notes:
    sentences for the user, once each."""

    motion: MapMotion | None = None
    entered = False
    anew = False
    _loops: LoopCloser
    _main: list[Keyframe]  # of the map
    _local: list[Keyframe]  # of what was seen since, while the car is not found
    _near: Nearby  # where those are that are added to now
    _index: Index | None
    _done: _Done | None
    _last: Array | None  # odometry's pose
    _way: float  # metres driven
    _agreed_way: float  # by then an answer was believed
    _looked_way: float
    _looked_ns: int
    _settled: bool  # what was taken up outside a step is not told yet
    _error: Array  # [6, 6], sum of the motions' covariances
    _found: bool
    _keyframe_at: Array | None
    _writing: Callable[[], str] | None  # puts the map that was set aside on disk

    def __init__(
        self,
        rig: Rig,
        calibration: Calibration,
        mapper: Mapper,
        parameters: LocalizationParameters | None = None,
        runner: Runner | None = None,
    ) -> None:
        """mapper: whose map the keyframes belong to; it is moved as they are."""
        self._rig, self._mapper = rig, mapper
        self._p = parameters or LocalizationParameters()
        self._orb = Orb(rig, calibration, self._p.features)
        self._runner: Runner = runner or Inline()
        self._folder: MapFolder | None = None
        self._extends = self._p.mode != "localization"
        self.notes: list[str] = []
        self._said: set[str] = set()
        self._era = 0
        if self._p.loops and self._extends and not pose_graph.available():
            self._note(
                "loops are not closed: GTSAM is not installed (pip install -r"
                " requirements/maps.txt)"
            )
        self._begin_map()

    # --- the drive

    @property
    def T_map_odom(self) -> Array:
        """[4, 4], where odometry's frame is in map; constant from a `begin` to the next."""
        return self._agreement.T_map_odom

    @property
    def found(self) -> bool:
        return self._found

    @property
    def folder(self) -> Path | None:
        """Of the loaded map."""
        return self._folder.path if self._folder else None

    @property
    def grid(self) -> GridTiles | None:
        """Of the loaded map."""
        return self._folder.grid if self._folder else None

    @property
    def keyframes(self) -> int:
        """Of the map that the car is in."""
        return len(self._main) if self._found else len(self._local)

    @property
    def loops(self) -> int:
        """Edges by which this drive's way was closed."""
        return self._loops.loops

    def begin(self) -> None:
        """Before a step: takes up what was found since. `motion` and `anew` then say what became of
        the map by it."""
        if self._settled:  # what a save took up is not told yet
            self._settled = False
            return
        self.motion, self.entered, self.anew = None, False, False
        done = None
        if self._runner.idle:
            done, self._done = self._done, None
        if self._loops.solution is not None and self._runner.idle:
            self._correct(self._loops.take())
        if done is None or done.task.era != self._era:
            return
        if done.trouble:
            self._note(done.trouble)
        sound = False
        if done.task.look and done.candidates and not done.loop:
            sound = self._heard(done)
        if done.keyframe is not None and self._extends:
            self._keep(done.keyframe, done, sound)

    def take(
        self,
        frame: Frame,
        pose: PoseEstimate,
        engine: Geometry,
        mask: NDArray[np.bool_],
    ) -> None:
        """After a step. pose: in odometry's frame."""
        if self._mapper.trouble:
            self._note(self._mapper.trouble)
        if self._last is not None:
            self._way += float(np.linalg.norm(pose.T_map_base[:3, 3] - self._last[:3, 3]))
        self._last = pose.T_map_base
        self._error = self._error + pose.motion_covariance
        if not self._runner.idle or self._done is not None or not frame.present.any():
            return
        if self._writing is not None:
            self._runner.put(self._write_aside)
            return
        if self._loops.due:
            self._solve()
            return
        due = self._due(pose)
        keep = due and pose.usable and self._extends
        others = self._others()
        if not self._found:
            look = others > 0 and not 0 <= frame.stamp_ns - self._looked_ns < LOOK_NS
        else:
            look = due and pose.usable and (others > 0 or (keep and self._loops.may(self._way)))
        if not (look or keep):
            return
        if due and pose.usable:
            self._keyframe_at = pose.T_map_base
        if look:
            self._looked_ns = frame.stamp_ns
        task = _Task(
            self._era,
            frame.stamp_ns,
            _snapshot(frame, engine if pose.usable else None, mask),
            pose.T_map_base,
            geometry.inverse(pose.T_map_base) @ pose.T_map_camera,
            self._way,
            look,
            self.T_map_odom @ pose.T_map_base if self._found else None,
            keep,
            self._error,
            self._near,
            self._loops,
        )
        self._runner.put(lambda: self._work(task))

    def new_segment(self) -> None:
        """Odometry began anew: where the car is among the keyframes is not known."""
        self._era += 1
        self._local = []
        if self._main:
            if self._found:
                self._note(
                    "tracking was lost: the map so far is set aside until the car is found in it"
                )
            writing = self._mapper.set_aside()
            if self._found:
                self._writing = writing
            self._found = False
        else:
            self._mapper.reset()
        self._start_looking()

    def reset(self) -> None:
        """Forget the drive; a loaded map is as it was loaded."""
        self._runner.wait()
        folder = self._folder
        self._begin_map()
        if folder is not None:
            self._adopt(folder)
        else:
            self._mapper.use(None)
        self._mapper.reset()

    def use(self, folder: MapFolder, mode: str = "") -> None:
        """A map in which the car is to be found; what was seen until now is dropped unless it is
        found there. mode: mapping or localization, as it was if empty."""
        self._runner.wait()
        if mode:
            self._extends = mode != "localization"
        old = self._folder
        if old is not None and old.lock.held and old.path.resolve() == folder.path.resolve():
            folder.lock.close()  # it was refused, because of ours
            folder, old = replace(folder, lock=old.lock), None
        if not self._extends:
            folder.lock.close()
        if old is not None:
            old.lock.close()
        self._folder = folder
        self._begin_map()
        self._adopt(folder)
        self._mapper.reset()
        if self._extends and folder.read_only:
            self._note(f"map {folder.path} is used, but cannot be saved there: {folder.read_only}")

    def drop(self) -> None:
        """There is no loaded map any more, and nothing is known."""
        self.unlock()
        self._folder = None
        self.reset()

    def save(self, path: Path, grid: GridTiles | None = None) -> tuple[int, int, str]:
        """Writes the map the car is in as a folder; returns voxels, keyframes, and what has to be
        said beside. grid: its lasting grid. Raises OutputError or MapError."""
        self.settle()
        own = self._folder
        same = own is not None and path.resolve() == own.path.resolve()
        if own is not None and not self._extends:
            raise OutputError(
                f"map {path} is not saved: the loaded one is used for localization, which does not"
                " change it (localization.mode is what says so)"
            )
        if same and not self._found:
            raise OutputError(
                f"map {path} is not saved: the car was not found in it, so what was seen is no part"
                " of it; save it under another name"
            )
        frames = [one for one in (self._main if self._found else self._local) if one.count]
        if not frames:
            raise OutputError(f"map {path} is not saved: there is no keyframe yet")
        aside = ""
        if own is not None and not self._found:
            aside = f"the loaded map {own.path} is not in it: the car was not found there"
        vocabulary = self._index.vocabulary if self._index else self._learn(frames)
        voxels = save_map(
            path,
            Contents(
                self._rig,
                frames,
                self._file.blocks(frames),
                (self._file.thumbnail(one) for one in frames),
                vocabulary,
                self._mapper.chunks(),
                self._mapper.voxel_size,
                grid,
            ),
            own.lock if same and own is not None else None,
        )
        return voxels, len(frames), aside

    def settle(self) -> None:
        """A `begin` outside a step that also takes up what runs now; the next `begin` says the same
        again."""
        if self._settled:
            return
        self._runner.wait()
        if self._writing is not None:
            self._write_aside()
        self.begin()
        self._settled = True

    def unlock(self) -> None:
        """Another one may write the loaded map."""
        if self._folder is not None:
            self._folder.lock.close()

    def close(self) -> None:
        self._runner.close()
        if self._folder is not None:
            self._folder.lock.close()

    # --- the map

    def _begin_map(self) -> None:
        """Nothing is known, and nothing is looked for."""
        self._era += 1
        self._main = []
        self._local = []
        self._writing = None
        self._file = FeatureFile()
        self._index = None
        self._learned = 0  # keyframes when the words were learned; 0 for a loaded map's
        self._own_from = 0  # keyframes of the map from here on are of this segment
        self._found = True
        self._done = None
        self._last = None
        self._way = 0.0
        self._error = np.zeros((6, 6))
        self._settled = False
        self._start_looking()

    def _start_looking(self) -> None:
        self._near = Nearby()
        self._submaps: dict[int, int] = {}  # number in the mapper -> keyframe
        self._agreement = Agreement()
        self._loops = LoopCloser(self._p.loops and pose_graph.available())
        self._believed_error = self._error
        self._keyframe_at = None
        self._looked_ns = -LOOK_NS - 1
        self._agreed_way = self._looked_way = self._way

    def _adopt(self, folder: MapFolder) -> None:
        self._main, self._found = list(folder.frames), False
        self._own_from = len(self._main)
        self._file = FeatureFile(folder.features, folder.feature_count, str(folder.path))
        self._index = Index(folder.vocabulary)
        self._mapper.use(folder.archive.whole())

    def _others(self) -> int:
        """Keyframes that the car may be found by."""
        return self._own_from if self._found else len(self._main)

    def _due(self, pose: PoseEstimate) -> bool:
        if self._keyframe_at is None:
            return True
        metres, radians = apart(self._keyframe_at, pose.T_map_base)
        return metres >= self._p.keyframe_distance or radians >= np.radians(self._p.keyframe_angle)

    def _keep(self, keyframe: Keyframe, done: _Done, sound: bool) -> None:
        """keyframe: in odometry's frame. sound: whether other keyframes' answer was believed."""
        frames = self._main if self._found else self._local
        T_odom_base = keyframe.T_map_base
        if self._found:
            keyframe = replace(keyframe, T_map_base=self.T_map_odom @ T_odom_base)
        if frames and not self._adds(keyframe, frames):
            keyframe = replace(keyframe, count=0)  # the way goes through it, nobody is found by it
        frames.append(keyframe)
        self._loops.goes(len(frames) - 1, T_odom_base, done.task.way, done.task.error)
        if self._loops.nodes % SUBMAP == 1:
            self._submaps[self._mapper.begin_submap(keyframe.T_map_base)] = len(frames) - 1
        if sound and done.answer is not None:
            self._loops.tie(done.answer, len(frames) - 1, self._main)
        if done.loop and done.answer is not None:
            said = Said(done.answer, T_odom_base, done.task.way)
            self._loops.hear(said, len(frames) - 1, self._main, self.T_map_odom)

    def _adds(self, keyframe: Keyframe, frames: list[Keyframe]) -> bool:
        """Whether no other keyframe was made at that place: a street that is driven every day has
        no more of them than one that is driven once."""
        self._near.follow(frames)
        reach = SAME * self._p.keyframe_distance
        for index in self._near(keyframe.T_map_base, reach, 1):
            if apart(frames[index].T_map_base, keyframe.T_map_base)[1] <= SAME_TURN:
                return False
        return True

    def _heard(self, done: _Done) -> bool:
        """Whether the answer is believed."""
        task = done.task
        event = "waiting"
        if done.answer is not None:
            before = self.T_map_odom
            said = Said(done.answer, task.T_odom_base, task.way)
            event = self._agreement.hear(said, task.error - self._believed_error)
            if event != "waiting":
                self._believed_error = task.error
            if event == "found":
                self._enter()
            elif event == "moved":
                self._move(self.T_map_odom @ geometry.inverse(before))
        if event != "waiting":
            self._agreed_way = task.way
        elif done.features < FEWEST:
            self._agreed_way += task.way - self._looked_way  # blind cameras contradict nothing
        self._looked_way = task.way
        if self._folder is not None and task.way - self._agreed_way > self._p.give_up:
            self._give_up(self._folder, task.way - self._agreed_way)
            self._agreed_way = task.way
        return event != "waiting"

    def _enter(self) -> None:
        """The car is found: what was seen meanwhile goes into the map."""
        T = self.T_map_odom
        self._own_from, self._found = len(self._main), True
        if self._extends:
            self._main += [replace(one, T_map_base=T @ one.T_map_base) for one in self._local]
            self._loops.shift(self._own_from)
            self._submaps = {one: node + self._own_from for one, node in self._submaps.items()}
        self._local = []
        self._near = Nearby()
        self._mapper.attach(T)
        self.motion, self.entered = MapMotion.whole(T), True

    def _move(self, T: Array) -> None:
        """What was seen since the car was found lies elsewhere."""
        self._note("the car was found elsewhere in the map, twice: map -> odom was set anew")
        own = self._main[self._own_from :]
        self._main[self._own_from :] = [replace(one, T_map_base=T @ one.T_map_base) for one in own]
        self._near = Nearby()
        self._mapper.move(T)
        self.motion = MapMotion.whole(T)

    def _solve(self) -> None:
        """Asks the runner for the poses that fit all that is known of this drive."""
        job, era = self._loops.job(self._main, self._own_from), self._era

        def work() -> None:
            try:
                job()
            except Exception as error:  # the frames go on, whatever it was
                self._done = _nothing(era, f"a loop could not be closed: {error}")

        self._runner.put(work)

    def _correct(self, solution: Solution) -> None:
        """Keyframes, map and way are where the pose graph says."""
        before, count = self.T_map_odom, len(solution.frames)
        self._main[:count] = solution.frames
        newest = count - 1
        self._agreement.T_map_odom = self._main[newest].T_map_base @ geometry.inverse(
            self._loops.T_odom_base(newest)
        )
        late = self.T_map_odom @ geometry.inverse(before)
        for i in range(count, len(self._main)):  # made meanwhile
            frame = self._main[i]
            self._main[i] = replace(frame, T_map_base=late @ frame.T_map_base)
        self._near = solution.near
        anchors = self._mapper.anchors.copy()
        for submap, node in self._submaps.items():
            anchors[submap] = self._main[node].T_map_base
        before = self._mapper.placed
        if self._mapper.place_submaps(anchors):
            self.motion = _as_submaps(before, anchors)

    def _give_up(self, folder: MapFolder, way: float) -> None:
        if not self._found:
            self._note(
                f"the car was not found in map {folder.path} for {way:.0f} m: what is seen goes"
                " into a new one, and the loaded one stays as it is; looking goes on"
            )
            return
        self._note(
            f"map {folder.path} contradicts what is seen for {way:.0f} m: a new one is begun, and"
            " the loaded one stays as it is"
        )
        index = self._index
        self._main, self._local, self._found = list(folder.frames), [], False
        self._own_from = len(self._main)
        if index is not None:
            index.keep(len(self._main))
        self._mapper.use(folder.archive.whole())
        self._mapper.reset()
        self.motion, self.anew = MapMotion.whole(geometry.inverse(self.T_map_odom)), True
        self._start_looking()

    def _write_aside(self) -> None:
        """In the runner's thread, or while it waits."""
        writing, self._writing = self._writing, None
        trouble = writing() if writing is not None else ""
        if trouble:
            self._done = _nothing(self._era, trouble)

    def _note(self, sentence: str) -> None:
        kind = "".join(c for c in sentence if not c.isdigit())
        if kind not in self._said:
            self._said.add(kind)
            self.notes.append(sentence)

    # --- in the runner's thread; what the frames' thread owns is only read

    def _work(self, task: _Task) -> None:
        keyframe, answer, trouble, loop = None, None, "", False
        candidates: list[int] = []
        features: Features | None = None
        try:
            features = self._orb(task.snapshot)
            if task.look:
                candidates, loop = self._candidates(task, features)
                if candidates:
                    answer, _ = find(
                        features,
                        geometry.inverse(task.T_base_camera),
                        self._main,
                        candidates,
                        self._file.features,
                        self._p.min_inliers,
                    )
            if task.keep:
                keyframe = self._keyframe(task, features)
        except MapError as error:
            trouble = str(error)
        except Exception as error:  # the frames go on, whatever it was
            trouble = f"bug in localization, please report it: {type(error).__name__}: {error}"
        self._done = _Done(
            task,
            keyframe,
            answer,
            len(candidates),
            loop,
            len(features) if features is not None else 0,
            trouble,
        )

    def _candidates(self, task: _Task, features: Features) -> tuple[list[int], bool]:
        """Keyframes to be asked, and whether they are of this drive."""
        if task.near is None:
            useful = np.array([frame.count > 0 for frame in self._main])
            return _best(self._scores(features, useful), useful, self._p.candidates), False
        task.where.follow(self._main)
        near = task.where(task.near, NEAR, NEAREST, self._own_from)
        if near or not task.keep:
            return near, False
        reach = task.loops.reach(task.where, task.near, task.way)
        if not reach.any():
            return [], True
        return _best(self._scores(features, reach), reach, self._p.candidates), True

    def _scores(self, features: Features, among: NDArray[np.bool_]) -> Array:
        """How much the keyframes look like these features. among: [K] those that are asked."""
        count = len(among)
        if self._index is None or (self._learned and count > 4 * self._learned):
            self._learned = count
            self._index = Index(self._learn(self._main))
        while len(self._index) < count:
            frame = self._main[len(self._index)]
            self._index.add(self._file.features(frame).descriptor)
        return self._index.scores(features.descriptor, among)

    def _learn(self, frames: Sequence[Keyframe]) -> Vocabulary:
        frames = [frame for frame in frames if frame.count]
        every = max(1, len(frames) // 60)
        some = [self._file.features(frame).descriptor for frame in frames[::every]]
        return Vocabulary.learn(np.concatenate(some))

    def _keyframe(self, task: _Task, features: Features) -> Keyframe | None:
        """In odometry's frame; None where too little of what is seen has a depth."""
        with np.errstate(invalid="ignore"):
            known = np.sqrt(features.variance) < KNOWN_DEPTH * features.rho
        kept = features.take(known)
        if len(kept) < FEWEST:
            return None
        start, count = self._file.append(kept)
        thumbnail = self._file.append_thumbnail(_thumbnail(task.snapshot))
        return Keyframe(
            task.stamp_ns, task.T_odom_base, task.T_base_camera, start, count, thumbnail
        )


def _as_submaps(before: Array, after: Array) -> MapMotion:
    """From anchors [S, 4, 4] to others. (Submap 0 has no place of its own.)"""
    first = min(1, len(before) - 1)
    motion = after[first:] @ geometry.inverse(before[first:])
    return MapMotion(before[first:, :3, 3], np.asarray(motion, np.float64))


def _best(scores: Array, among: NDArray[np.bool_], count: int) -> list[int]:
    """Indices of the highest scores among some."""
    index = np.flatnonzero(among)
    return index[np.argsort(-scores[index], kind="stable")[:count]].tolist()


def _nothing(era: int, trouble: str) -> _Done:
    """What comes of work that failed."""
    none = Snapshot((), None, np.zeros((0, 0, 0), bool))
    zero = np.zeros((6, 6))
    task = _Task(
        *(era, 0, none, np.eye(4), np.eye(4)[None], 0.0, False, None, False, zero),
        *(Nearby(), LoopCloser(False)),
    )
    return _Done(task, None, None, 0, False, 0, trouble)


def _snapshot(frame: Frame, engine: Geometry | None, mask: NDArray[np.bool_]) -> Snapshot:
    """A copy of what is needed: the arrays of a frame may be filled again by the next."""
    images = tuple(
        grey(image).copy() if present else None
        for image, present in zip(frame.images, frame.present, strict=True)
    )
    kept = None
    if engine is not None:
        kept = replace(engine, depth=engine.depth.copy(), sigma=engine.sigma.copy())
    return Snapshot(images, kept, mask.copy())


def _thumbnail(snapshot: Snapshot) -> bytes:
    """JPEG: the cameras side by side."""
    strip = [
        cv2.resize(image, (THUMBNAIL, max(1, round(THUMBNAIL * image.shape[0] / image.shape[1]))))
        for image in snapshot.images
        if image is not None
    ]
    if not strip:
        return b""
    options = [cv2.IMWRITE_JPEG_QUALITY, 70]
    return cv2.imencode(".jpg", np.hstack(strip), options)[1].tobytes()
