"""Images of many cameras -> sets that belong together. Pure Python, no ROS, no clock of its own: a
function of the calls made.

Every image that comes in goes out in exactly one set, or is counted in `statistics` with its camera
and a reason. Memory is bounded. Two clocks: an image's stamp (the sensors') says what belongs
together, `now_ns` (any monotonic clock of reception) how long to wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from recon4d_ros.errors import ParameterError
from recon4d_ros.parameters import parameter
from recon4d_ros.sync.clocks import IMU, ODOMETRY, TWIST, ClockOffsets, parse_offsets
from recon4d_ros.sync.gaps import GapCounter
from recon4d_ros.sync.odometry import OdometryQueue, SampleQueue
from recon4d_ros.sync.policies import Group, MatchedPolicy, Policy, ResilientPolicy
from recon4d_ros.types import (
    FrameSet,
    ImageBoxes,
    ImuSample,
    Jump,
    OdometrySample,
    RawImage,
    TwistSample,
)

SECOND = 1_000_000_000
# images in a row older than one that was used: no disorder on the way, but a short bag that loops
_SET_BACK = 3

DUPLICATE = "duplicate stamp"
OLDER = "older than an image that was used"
JUMPED = "time jumped backward"
BEFORE_JUMP = "from before the time jump"
TOO_FEW = "set has fewer than min_cameras"
NOT_NEWER = "set is not newer than the last"
ALONE = "its stamp is far from all others"
OTHER_CLOCK = "its clock is not the cameras'"


@dataclass(frozen=True)
class SyncParameters:
    """How images become sets."""

    policy: str = parameter(
        "resilient",
        "How images are grouped: `exact` (equal stamps, all cameras), `approximate` (within slop,"
        " all cameras) or `resilient` (bounded wait; a camera that is late or dead is absent and"
        " the others go on)",
        choices=("exact", "approximate", "resilient"),
    )
    slop: float = parameter(
        0.05,
        "Largest difference of stamps within a set, s; resilient: from the set's reference, each"
        " camera's fixed phase taken off, and at most half the period",
        minimum=0.0,
        maximum=10.0,
    )
    max_wait: float = parameter(
        0.08,
        "Resilient: longest wait for a set after its first image came in, s",
        minimum=0.0,
        maximum=10.0,
    )
    reorder: float = parameter(
        0.01,
        "Resilient: how long a camera's older image may still come in after a newer one, s",
        minimum=0.0,
        maximum=1.0,
    )
    dead_after: float = parameter(
        1.0,
        "Resilient: after this long without an image a camera is not waited for, s",
        minimum=0.01,
        maximum=60.0,
    )
    min_cameras: int = parameter(
        1, "Sets of fewer images than this are dropped", minimum=1, maximum=64
    )
    queue: int = parameter(16, "Most images held per camera", minimum=1, maximum=1000)
    backward_jump: float = parameter(
        0.5,
        "A camera's stamp that is older than its last by more than this means that time was set"
        " back (a bag loops); by less, three such in a row do, s. One such image alone does not, a"
        " second of any camera has to say the same",
        minimum=0.0,
        maximum=3600.0,
    )
    forward_jump: float = parameter(
        2.0,
        "A set that is newer than the last by more than this is marked as a jump, s",
        minimum=0.01,
        maximum=3600.0,
    )
    offset: str = parameter(
        "",
        "What the cameras' clocks are ahead by, taken off their stamps: seconds by camera"
        " (right=37.0,front=auto), also as sync.offset.<camera>; auto learns it from the times of"
        " reception, for one camera or, alone, for all. `odometry` is a name too. Cameras that then"
        " fire within a quarter period of each other are taken to fire at once",
        keyed=True,
    )
    odometry_queue: int = parameter(
        2000, "Most odometry samples held until the next set", minimum=1, maximum=100000
    )


@dataclass
class SyncStatistics:
    """Counts since the start. dropped: (camera, reason) -> images that came and are not used.
    missing: images of each camera that never came, by the gaps in its stamps. odometry_dropped:
    reason -> samples; imu_dropped, twist_dropped likewise."""

    received: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    odometry_received: int = 0
    odometry_dropped: Counter[str] = field(default_factory=Counter)
    imu_dropped: Counter[str] = field(default_factory=Counter)
    twist_dropped: Counter[str] = field(default_factory=Counter)
    sets: int = 0
    jumps: int = 0


@dataclass(frozen=True)
class _Aside:
    """An image that came out of time: the first after time jumped, or one whose stamp is wrong. The
    next ones tell."""

    camera: str
    image: RawImage
    now_ns: int
    back: bool


class Synchronizer:
    """Groups images into FrameSets in strictly increasing order of stamps (until time jumps
    backward).

    Call `add_image` for each image and `poll` every few milliseconds (or never, offline); both
    return the sets that became due, and with the resilient policy no image is ever held longer than
    max_wait beyond the last call (but the first after time jumped, until a second says so too).
    `flush` at the end gives what is left.
    """

    def __init__(self, cameras: Sequence[str], parameters: SyncParameters | None = None) -> None:
        p = parameters or SyncParameters()
        if p.min_cameras > len(cameras):
            raise ParameterError(
                f"parameter sync.min_cameras is {p.min_cameras}: expected at most the number of"
                f" cameras, {len(cameras)}"
            )
        self.parameters = p
        self.cameras = tuple(cameras)
        self.statistics = SyncStatistics()
        self._clocks = ClockOffsets(self.cameras, parse_offsets(p.offset, self.cameras))
        self._backward, self._forward, self._dead_after = (
            round(s * SECOND) for s in (p.backward_jump, p.forward_jump, p.dead_after)
        )
        self._odometry = OdometryQueue(
            p.odometry_queue, self._backward, self.statistics.odometry_dropped
        )
        self._imu: SampleQueue[ImuSample] = SampleQueue(
            p.odometry_queue, self._backward, self.statistics.imu_dropped
        )
        self._twist: SampleQueue[TwistSample] = SampleQueue(
            p.odometry_queue, self._backward, self.statistics.twist_dropped
        )
        self._policy: Policy
        if p.policy == "resilient":
            slop, max_wait, reorder = (round(s * SECOND) for s in (p.slop, p.max_wait, p.reorder))
            self._policy = ResilientPolicy(
                self.cameras, self._drop, slop, max_wait, reorder, self._dead_after, p.queue
            )
        else:
            self._policy = MatchedPolicy(
                self.cameras,
                self._drop,
                round(p.slop * SECOND) if p.policy == "approximate" else 0,
                p.queue,
            )
        self._gaps = {name: GapCounter() for name in self.cameras}
        self._newest: dict[str, int] = {}  # newest stamp of each camera since time jumped
        self._used: dict[str, int] = {}  # stamp of each camera's last image that went out
        self._older: Counter[str] = Counter()  # images in a row that were older than that
        self._older_since: dict[str, int] = {}  # when the first of them came
        self._in_time: dict[str, int] = {}  # when each camera's last image came that was in time
        self._before_jump: dict[
            str, int
        ] = {}  # cameras that have not followed the last jump yet, and their newest stamp then
        self._jumped_at_ns = 0
        self._last_stamp_ns: int | None = None
        self._spacing = 0  # ns between the last two sets
        self._jump = Jump.NONE
        self._aside: _Aside | None = None

    def add_image(self, camera: str, image: RawImage, now_ns: int) -> list[FrameSet]:
        """Take an image of one of the cameras; the sets that are due. Raises ValueError for a
        camera that is not the rig's."""
        if camera not in self.cameras:
            raise ValueError(f"camera {camera!r} is not one of {', '.join(self.cameras)}")
        self.statistics.received[camera] += 1
        sets = []
        for one in self._clocks.image(camera, image, now_ns):
            self._take(one.camera, one.image, one.now_ns)
            sets += self.poll(one.now_ns)
        return sets + self.poll(now_ns)

    def _take(self, camera: str, image: RawImage, now_ns: int) -> None:
        if (out := self._out_of_time(camera, image.stamp_ns)) is not None:
            self._set_aside(_Aside(camera, image, now_ns, back=out < 0))
        else:
            if self._aside is not None and (
                camera == self._aside.camera or now_ns - self._aside.now_ns > self._dead_after
            ):
                self._end_aside(ALONE)  # time goes on as before
            self._admit(camera, image, now_ns)

    @property
    def held(self) -> int:
        """Images that are waiting for their set."""
        return self._policy.count() + (self._aside is not None) + len(self._clocks)

    @property
    def findings(self) -> list[str]:
        """Sentences about the streams' clocks, in the order they were found."""
        return self._clocks.findings

    def add_odometry(self, sample: OdometrySample, now_ns: int | None = None) -> None:
        """Take an odometry sample; one that is not finite, not newer than the last, farther from it
        than a car drives, or (where the time of its reception is given) of another clock than the
        cameras' is counted and dropped."""
        self.statistics.odometry_received += 1
        stamp_ns = self._clocks.sensor(ODOMETRY, sample.stamp_ns, now_ns)
        if stamp_ns is None:
            self.statistics.odometry_dropped[OTHER_CLOCK] += 1
        else:
            self._odometry.add(replace(sample, stamp_ns=stamp_ns))

    def stalled(self) -> None:
        """The caller did not run for a while: images that are missing from it are lost, not of
        cameras that were off."""
        for gaps in self._gaps.values():
            gaps.stalled()

    def add_imu(self, sample: ImuSample, now_ns: int | None = None) -> None:
        """As `add_odometry`."""
        stamp_ns = self._clocks.sensor(IMU, sample.stamp_ns, now_ns)
        if stamp_ns is None:
            self.statistics.imu_dropped[OTHER_CLOCK] += 1
        else:
            self._imu.add(replace(sample, stamp_ns=stamp_ns))

    def add_twist(self, sample: TwistSample, now_ns: int | None = None) -> None:
        """As `add_odometry`."""
        stamp_ns = self._clocks.sensor(TWIST, sample.stamp_ns, now_ns)
        if stamp_ns is None:
            self.statistics.twist_dropped[OTHER_CLOCK] += 1
        else:
            self._twist.add(replace(sample, stamp_ns=stamp_ns))

    def corrected(self, camera: str, boxes: ImageBoxes) -> ImageBoxes:
        """Boxes of an image of a camera with the stamp that the image has in its set: what the
        camera's clock is ahead by is taken off. Their detector copies the image's stamp. Zero
        stays zero."""
        if not boxes.stamp_ns:
            return boxes
        stamp_ns = self._clocks.sensor(camera, boxes.stamp_ns, None)
        return boxes if stamp_ns is None else replace(boxes, stamp_ns=stamp_ns)

    def poll(self, now_ns: int) -> list[FrameSet]:
        """The sets that are due by now."""
        return self._assemble(self._policy.due(now_ns))

    def flush(self) -> list[FrameSet]:
        """Everything that is held, without waiting."""
        sets = []
        for one in self._clocks.flush():
            self._take(one.camera, one.image, one.now_ns)
            sets += self.poll(one.now_ns)
        self._end_aside(ALONE)
        self._restart_gaps()
        return sets + self._assemble(self._policy.due(None))

    def _admit(self, camera: str, image: RawImage, now_ns: int) -> None:
        reason = self._door(camera, image.stamp_ns, now_ns)
        if reason in (None, OLDER):
            self._miss(camera, self._gaps[camera].add(image.stamp_ns))
        if reason:
            self._drop(camera, reason)
        elif reason := self._policy.offer(camera, image, now_ns):
            self._drop(camera, reason)

    def _out_of_time(self, camera: str, stamp: int) -> int | None:
        """Below zero: far older than its camera's last. Above: far newer than every camera's. None:
        in time."""
        if camera in self._before_jump or not self._newest:
            return None
        back = stamp - self._newest.get(camera, stamp) + self._backward
        ahead = stamp - max(self._newest.values()) - max(self._forward, 3 * self._spacing)
        return back if back < 0 else ahead if ahead > 0 else None

    def _set_aside(self, new: _Aside) -> None:
        """The first image out of time waits; with a second, near it or after it, time jumped."""
        first, stamp = self._aside, new.image.stamp_ns
        if first is None or first.back != new.back or stamp < first.image.stamp_ns - self._backward:
            self._end_aside(ALONE)
            self._aside = new
        elif (first.camera, first.image.stamp_ns) == (new.camera, stamp):
            self._gaps[new.camera].astray()
            self._drop(new.camera, DUPLICATE)
        elif first.camera == new.camera and self._others_go_on(new.camera, first.now_ns):
            self._end_aside(ALONE)  # it is this camera's clock, not time
            self._aside = new
        else:
            self._aside = None
            if new.back:
                self._jump_backward(new.camera, max(stamp, first.image.stamp_ns), new.now_ns)
            if stamp - first.image.stamp_ns <= self._forward:
                self._admit(first.camera, first.image, first.now_ns)
            else:
                self._drop(first.camera, ALONE)
            self._admit(new.camera, new.image, new.now_ns)

    def _others_go_on(self, camera: str, since_ns: int) -> bool:
        """Whether other cameras' images came in time since then: then time did not jump."""
        return any(at > since_ns for name, at in self._in_time.items() if name != camera)

    def _end_aside(self, reason: str) -> None:
        if self._aside is not None:
            self._gaps[self._aside.camera].astray()
            self._drop(self._aside.camera, reason)
            self._aside = None

    def _door(self, camera: str, stamp: int, now_ns: int) -> str | None:
        """Why an image may not come in at all; notices when time was set back by a little."""
        if camera in self._before_jump:
            old = self._before_jump[camera]
            now_newest = max(self._newest.values(), default=stamp)
            if (
                stamp >= old
                and abs(stamp - now_newest) > self._backward
                and now_ns - self._jumped_at_ns <= self._dead_after
            ):
                return BEFORE_JUMP
            del self._before_jump[
                camera
                # it followed the jump (or, after a while, never will: then its clock is taken as it
                # is)
            ]
        if camera in self._used and stamp < self._used[camera]:
            self._older[camera] += 1
            if self._older[camera] == 1:
                self._older_since[camera] = now_ns
            if self._older[camera] < _SET_BACK or self._others_go_on(
                camera, self._older_since[camera]
            ):
                return OLDER
            self._jump_backward(camera, stamp, now_ns)
        elif camera in self._used and stamp == self._used[camera]:
            return DUPLICATE
        self._older[camera] = 0
        self._in_time[camera] = now_ns
        if self._policy.holds(camera, stamp):
            return DUPLICATE
        self._newest[camera] = max(stamp, self._newest.get(camera, stamp))
        return None

    def _jump_backward(self, camera: str, stamp: int, now_ns: int) -> None:
        for held in self._policy.clear():
            self._drop(held, JUMPED)
        self._restart_gaps()
        self._before_jump = {
            **self._before_jump,
            **{name: newest for name, newest in self._newest.items() if name != camera},
        }
        self._newest.clear()
        self._used.clear()
        self._older.clear()
        self._in_time.clear()
        for queue in (self._odometry, self._imu, self._twist):
            queue.jump_backward(stamp)
        self._jumped_at_ns = now_ns
        self._last_stamp_ns = None
        self._jump = Jump.BACKWARD
        self.statistics.jumps += 1

    def _assemble(self, groups: list[Group]) -> list[FrameSet]:
        sets = []
        for group in groups:
            stamps = sorted(image.stamp_ns for image in group.images.values())
            middle = len(stamps) // 2
            stamp = (
                stamps[middle] if len(stamps) % 2 else (stamps[middle - 1] + stamps[middle]) // 2
            )
            for camera, image in group.images.items():
                self._used[camera] = image.stamp_ns
            if len(stamps) < self.parameters.min_cameras:
                self._drop_group(group, TOO_FEW)
            elif self._last_stamp_ns is not None and stamp <= self._last_stamp_ns:
                self._drop_group(group, NOT_NEWER)
            else:
                sets.append(self._emit(group, stamp))
        return sets

    def _emit(self, group: Group, stamp: int) -> FrameSet:
        jump, self._jump = self._jump, Jump.NONE
        if (
            jump is Jump.NONE
            and self._last_stamp_ns is not None
            and stamp - self._last_stamp_ns > self._forward
        ):
            jump = Jump.FORWARD
            self.statistics.jumps += 1
        if self._last_stamp_ns is not None:
            self._spacing = stamp - self._last_stamp_ns
        self._last_stamp_ns = stamp
        self.statistics.sets += 1
        self.statistics.used.update(group.images.keys())
        return FrameSet(
            stamp,
            group.images,
            group.absent,
            self._odometry.take(stamp),
            jump,
            self._imu.take(stamp),
            self._twist.take(stamp),
        )

    def _drop_group(self, group: Group, reason: str) -> None:
        for camera in group.images:
            self._drop(camera, reason)

    def _miss(self, camera: str, count: int) -> None:
        if count:
            self.statistics.missing[camera] += count

    def _restart_gaps(self) -> None:
        for camera, gaps in self._gaps.items():
            self._miss(camera, gaps.restart())

    def _drop(self, camera: str, reason: str) -> None:
        self.statistics.dropped[camera, reason] += 1
