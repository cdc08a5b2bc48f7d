"""Synchronization: what must hold for any interleaving, and the situations that the resilient
policy is for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros import geometry
from recon4d_ros.bags import BagReader, ImageEvent
from recon4d_ros.errors import ParameterError
from recon4d_ros.sync import Synchronizer, SyncParameters
from recon4d_ros.sync import odometry as sync_odometry
from recon4d_ros.sync.policies import LATE
from recon4d_ros.sync.synchronizer import ALONE, BEFORE_JUMP, DUPLICATE, JUMPED, TOO_FEW
from recon4d_ros.types import FrameSet, Jump, OdometrySample, RawImage

MS = 1_000_000
START = 1_700_000_000_000_000_000
PIXELS = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Arrival:
    """One image on its way in."""

    camera: str
    stamp: int
    now: int


@dataclass(frozen=True)
class Run:
    """What came out: sets with the time at which each came, and the synchronizer as it is left."""

    sets: list[tuple[int, FrameSet]]
    synchronizer: Synchronizer
    arrivals: dict[int, int]  # id of the image -> when it came in


def run(
    arrivals: list[Arrival], cameras: list[str], parameters: SyncParameters, poll_ms: float = 5.0
) -> Run:
    """Feed arrivals in their order, polling in between, and flush; holds the bounds that are
    promised after every call."""
    synchronizer = Synchronizer(cameras, parameters)
    sets: list[tuple[int, FrameSet]] = []
    came: dict[int, int] = {}
    now = arrivals[0].now if arrivals else 0
    for arrival in arrivals:
        while poll_ms and now + poll_ms * MS < arrival.now:
            now += round(poll_ms * MS)
            sets += [(now, frame_set) for frame_set in synchronizer.poll(now)]
        now = arrival.now
        image = RawImage(arrival.stamp, "mono8", PIXELS)
        came[id(image)] = now
        _KEEP.append(image)
        aside = synchronizer._aside
        sets += [
            (now, frame_set) for frame_set in synchronizer.add_image(arrival.camera, image, now)
        ]
        if aside is not None and synchronizer._aside is not aside:
            came[id(aside.image)] = now  # until now it was not known whether time jumped
        # and the one that is set aside until it is known whether time jumped
        assert synchronizer.held <= len(cameras) * parameters.queue + 1
    sets += [(now, frame_set) for frame_set in synchronizer.flush()]
    return Run(sets, synchronizer, came)


_KEEP: list[RawImage] = []  # ids must stay unique while a run is examined


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[Arrival], list[str]]:
    """Cameras with periods, phases, jitter, drops, duplicates, wrong stamps, transport delays that
    reorder, deaths, and time set back."""
    cameras = [f"c{i}" for i in range(draw(st.integers(1, 4)))]
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    period = draw(st.sampled_from([33.3, 50.0, 83.3, 100.0]))
    jitter, drop, duplicate = (
        draw(st.floats(0, 0.3)),
        draw(st.floats(0, 0.4)),
        draw(st.floats(0, 0.2)),
    )
    delay = draw(st.sampled_from([0.0, 2.0, 30.0, 150.0]))
    wrong = draw(st.sampled_from([0.0, 0.0, 0.05]))
    loop_at = draw(st.sampled_from([None, 1.0, 1.5]))
    arrivals = []
    for index, camera in enumerate(cameras):
        own = period * draw(st.sampled_from([1.0, 1.0, 2.0, 3.3]))
        phase = random.uniform(0, 0.4) * period
        dead = sorted(random.uniform(0, 3000, 2)) if draw(st.booleans()) and index else (0.0, 0.0)
        for time in np.arange(phase, 2500, own):
            if random.random() < drop or dead[0] < time < dead[1]:
                continue
            stamp = time + random.normal(0, jitter * own * 0.2)
            if loop_at is not None and time > loop_at * 1000:
                stamp -= loop_at * 1000
            if random.random() < wrong:
                stamp = random.choice([-START / MS, -1e6, 1e6])
            came = time + random.exponential(delay) if delay else time
            arrivals += [Arrival(camera, START + round(stamp * MS), round(came * MS))] * (
                2 if random.random() < duplicate else 1
            )
    return sorted(arrivals, key=lambda a: (a.now, a.camera)), cameras


@settings(max_examples=120, deadline=None)
@given(
    traffic(),
    st.sampled_from(["resilient", "exact", "approximate"]),
    st.integers(1, 4),
    st.sampled_from([2, 16]),
)
def test_no_image_is_lost_or_used_twice_and_sets_increase(
    scene: tuple[list[Arrival], list[str]], policy: str, least: int, queue: int
) -> None:
    arrivals, cameras = scene
    parameters = SyncParameters(policy=policy, min_cameras=min(least, len(cameras)), queue=queue)
    result = run(arrivals, cameras, parameters)
    statistics = result.synchronizer.statistics
    used = [
        (camera, id(image))
        for _, frame_set in result.sets
        for camera, image in frame_set.images.items()
    ]
    assert len(used) == len(set(used))
    assert Counter(camera for camera, _ in used) == statistics.used
    assert result.synchronizer.held == 0
    for camera in cameras:
        dropped = sum(count for (name, _), count in statistics.dropped.items() if name == camera)
        assert (
            statistics.received[camera]
            == statistics.used[camera] + dropped
            == sum(a.camera == camera for a in arrivals)
        )
    for (_, before), (_, after) in zip(result.sets, result.sets[1:], strict=False):
        assert after.stamp_ns > before.stamp_ns or after.jump is Jump.BACKWARD
    for _, frame_set in result.sets:
        stamps = [image.stamp_ns for image in frame_set.images.values()]
        assert (
            frame_set.stamp_ns == int(np.median(np.array(stamps) - START)) + START
            or len(stamps) % 2 == 0
        )
        assert min(stamps) <= frame_set.stamp_ns <= max(stamps)
        assert set(frame_set.images) | set(frame_set.absent) == set(cameras) and not set(
            frame_set.images
        ) & set(frame_set.absent)
        assert all(frame_set.absent.values())
        assert len(stamps) >= parameters.min_cameras
        if policy == "exact":
            assert max(stamps) == min(stamps) and len(stamps) == len(cameras)
        if policy == "approximate":
            assert max(stamps) - min(stamps) <= 50 * MS and len(stamps) == len(cameras)


@settings(max_examples=60, deadline=None)
@given(traffic(), st.sampled_from([0.0, 20.0, 80.0]))
def test_resilient_waits_at_most_max_wait(
    scene: tuple[list[Arrival], list[str]], max_wait: float
) -> None:
    arrivals, cameras = scene
    result = run(arrivals, cameras, SyncParameters(max_wait=max_wait / 1000), poll_ms=5.0)
    for now, frame_set in result.sets:
        first = min(result.arrivals[id(image)] for image in frame_set.images.values())
        assert now - first <= (max_wait + 5.0) * MS + 1


@settings(max_examples=20, deadline=None)
@given(traffic())
def test_same_calls_give_same_sets(scene: tuple[list[Arrival], list[str]]) -> None:
    arrivals, cameras = scene
    first, second = (run(arrivals, cameras, SyncParameters()) for _ in range(2))

    def seen(result: Run) -> list:
        return [
            (now, s.stamp_ns, {c: i.stamp_ns for c, i in s.images.items()}, dict(s.absent), s.jump)
            for now, s in result.sets
        ]

    assert seen(first) == seen(second)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 6),
    st.sampled_from([33.3, 83.3, 100.0, 500.0]),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 0.03),
)
def test_cameras_with_fixed_phases_make_complete_sets(
    count: int, period: float, seed: int, jitter: float
) -> None:
    """Skew up to 0.5 periods (nuScenes: 43 ms of 83) and 50 ms, jitter of 3 % of the period: all
    sets complete, none mixed."""
    random = np.random.default_rng(seed)
    cameras = [f"c{i}" for i in range(count)]
    phases = random.uniform(0, min(0.5 * period, 48.0), count)
    arrivals = []
    for index, camera in enumerate(cameras):
        for k in range(20):
            time = k * period + phases[index] + random.uniform(-jitter, jitter) * min(period, 60.0)
            arrivals.append(
                Arrival(camera, START + k * 0 + round(time * MS), round((time + 1) * MS))
            )
    arrivals.sort(key=lambda a: a.now)
    result = run(arrivals, cameras, SyncParameters())
    assert [len(frame_set.images) for _, frame_set in result.sets] == [count] * 20
    for k, (_, frame_set) in enumerate(result.sets):
        for index, camera in enumerate(cameras):
            assert (
                abs(frame_set.images[camera].stamp_ns - START - (k * period + phases[index]) * MS)
                < 0.1 * period * MS
            )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.3))
def test_dropped_images_do_not_mix_turns_of_a_skewed_rig(seed: int, drop: float) -> None:
    """nuScenes: six cameras fired over 43 ms, 12 turns a second. Once the phases are known, a set's
    images are of one turn."""
    random = np.random.default_rng(seed)
    cameras = [f"c{i}" for i in range(6)]
    phases = np.array([0.0, 7.6, 15.5, 23.0, 32.7, 42.6])
    period = 1000 / 12
    arrivals = [
        Arrival(
            camera, START + round((k * period + phase) * MS), round((k * period + phase + 5) * MS)
        )
        for k in range(40)
        for camera, phase in zip(cameras, phases, strict=True)
        if k < 3 or random.random() >= drop
    ]
    result = run(sorted(arrivals, key=lambda a: a.now), cameras, SyncParameters(), poll_ms=2.0)
    for _, frame_set in result.sets:
        since = {
            camera: (image.stamp_ns - START) / MS - phases[cameras.index(camera)]
            for camera, image in frame_set.images.items()
        }
        assert len({round(time / period) for time in since.values()}) == 1
    assert (
        sum(result.synchronizer.statistics.used.values()) == len(arrivals)
        and not result.synchronizer.statistics.dropped
    )


def steady(
    cameras: list[str], count: int, period: float = 100.0, skip: dict[str, range] | None = None
) -> list[Arrival]:
    """Equal stamps, 10 ms between the cameras' arrivals; `skip` says which images a camera does not
    send."""
    return [
        Arrival(camera, START + round(k * period * MS), round((k * period + 10 * index) * MS))
        for k in range(count)
        for index, camera in enumerate(cameras)
        if k not in (skip or {}).get(camera, range(0))
    ]


def test_a_camera_that_dies_is_marked_and_soon_not_waited_for_and_taken_back() -> None:
    cameras = ["a", "b", "c"]
    result = run(
        steady(cameras, 60, skip={"b": range(10, 40)}), cameras, SyncParameters(), poll_ms=1.0
    )
    assert len(result.sets) == 60 and result.synchronizer.statistics.used == Counter(
        a=60, b=30, c=60
    )
    for k, (now, frame_set) in enumerate(result.sets):
        latency = (now - k * 100 * MS) / MS
        assert ("b" in frame_set.absent) == (k in range(10, 40))
        if k in range(10, 40):
            assert frame_set.absent["b"].startswith(
                "dead" if k >= 19 else "late"
            )  # b was last heard at 910 ms
            assert latency <= (
                20 if k >= 20 else 82
            )  # at once after dead_after (1 s), at latest after max_wait (80 ms) before
        else:
            assert latency <= 20


def test_a_camera_that_never_comes_does_not_hold_the_others() -> None:
    result = run(
        steady(["a", "b"], 30, skip={"b": range(30)}), ["a", "b"], SyncParameters(), poll_ms=1.0
    )
    assert len(result.sets) == 30
    assert (result.sets[-1][0] - 2900 * MS) == 0


def test_a_dropped_image_is_absent_once_and_nothing_slips() -> None:
    result = run(
        steady(["a", "b"], 30, skip={"a": range(5, 6), "b": range(9, 11)}),
        ["a", "b"],
        SyncParameters(),
    )
    assert [len(s.images) for _, s in result.sets] == [
        1 if k in (5, 9, 10) else 2 for k in range(30)
    ]
    assert all(len({image.stamp_ns for image in s.images.values()}) == 1 for _, s in result.sets)


def test_older_image_after_a_newer_one_is_put_in_its_place() -> None:
    a = [Arrival("a", START + k * 100 * MS, k * 100 * MS) for k in range(6)]
    b = [
        Arrival("b", START + k * 100 * MS, (k * 100 + (104 if k == 2 else 1)) * MS)
        for k in range(6)
    ]
    result = run(
        sorted(a + b, key=lambda x: x.now), ["a", "b"], SyncParameters(max_wait=0.2), poll_ms=1.0
    )
    assert [len(s.images) for _, s in result.sets] == [2] * 6


def test_an_image_that_comes_after_its_set_is_counted_as_late() -> None:
    a = [Arrival("a", START + k * 100 * MS, k * 100 * MS) for k in range(6)]
    b = [Arrival("b", START + k * 100 * MS, (k * 100 + 90) * MS) for k in range(6)]
    result = run(
        sorted(a + b, key=lambda x: x.now), ["a", "b"], SyncParameters(max_wait=0.05), poll_ms=1.0
    )
    assert [list(s.images) for _, s in result.sets] == [["a"]] * 6
    assert result.synchronizer.statistics.dropped == Counter({("b", LATE): 6})


def test_slower_camera_is_not_waited_for() -> None:
    a = [Arrival("a", START + round(k * 33.3 * MS), round(k * 33.3 * MS)) for k in range(60)]
    b = [Arrival("b", START + k * 100 * MS, k * 100 * MS + 1) for k in range(20)]
    result = run(sorted(a + b, key=lambda x: x.now), ["a", "b"], SyncParameters(), poll_ms=1.0)
    assert result.synchronizer.statistics.used == Counter(a=60, b=20) and len(result.sets) == 60
    waited = [now - s.stamp_ns + START for now, s in result.sets if "b" in s.absent]
    assert max(waited[4:]) < 2 * MS  # the first ones, before the periods are known, may wait


def test_bag_loop_clears_and_marks_once() -> None:
    """A 3 s bag played twice; b's last two images of the first round come after the others have
    started the second."""
    cameras = ["a", "c", "b"]
    first = steady(cameras, 30)
    second = [Arrival(x.camera, x.stamp, x.now + 3000 * MS) for x in first]
    late = [
        Arrival(x.camera, x.stamp, 3015 * MS) if x.camera == "b" and x.now >= 2800 * MS else x
        for x in first
    ]
    result = run(sorted(late + second, key=lambda x: x.now), cameras, SyncParameters(), poll_ms=1.0)
    jumps = [s.jump for _, s in result.sets]
    assert (
        jumps.count(Jump.BACKWARD) == 1
        and jumps.count(Jump.FORWARD) == 0
        and result.synchronizer.statistics.jumps == 1
    )
    after = [s for _, s in result.sets[jumps.index(Jump.BACKWARD) :]]
    assert after[0].stamp_ns == START and [len(s.images) for s in after] == [3] * 30
    assert result.synchronizer.statistics.dropped == Counter({("b", BEFORE_JUMP): 2})


def test_a_bag_shorter_than_the_threshold_loops_too() -> None:
    once = steady(["a"], 4)
    arrivals = [Arrival("a", x.stamp, x.now + loop * 400 * MS) for loop in range(3) for x in once]
    result = run(arrivals, ["a"], SyncParameters())
    assert [s.jump for _, s in result.sets].count(Jump.BACKWARD) == 2
    disorder = run(
        [Arrival("a", START + k * MS, k) for k in (10, 8, 9, 20, 18, 19, 30)],
        ["a"],
        SyncParameters(),
    )
    assert [s.jump for _, s in disorder.sets] == [Jump.NONE] * 3


def test_images_held_when_time_jumps_are_counted() -> None:
    synchronizer = Synchronizer(["a", "b"])
    assert synchronizer.add_image("a", RawImage(START, "mono8", PIXELS), 0) == []
    synchronizer.add_image("a", RawImage(START - 10**12, "mono8", PIXELS), 1)
    assert not synchronizer.statistics.dropped and synchronizer.held == 2  # one alone may be wrong
    synchronizer.add_image("a", RawImage(START - 10**12 + 100 * MS, "mono8", PIXELS), 2)
    assert synchronizer.statistics.dropped == Counter({("a", JUMPED): 1}) and synchronizer.held == 2


@pytest.mark.parametrize("policy", ["resilient", "exact", "approximate"])
@pytest.mark.parametrize("stamp", [0, START - 10**12, START + 10**12])
def test_one_wrong_stamp_is_no_jump(policy: str, stamp: int) -> None:
    cameras = ["a", "b", "c"]
    arrivals = steady(cameras, 20)
    wrong = next(
        i for i, x in enumerate(arrivals) if x.camera == "b" and x.stamp == START + 1000 * MS
    )
    arrivals[wrong] = Arrival("b", stamp, arrivals[wrong].now)
    result = run(arrivals, cameras, SyncParameters(policy=policy))
    assert [s.jump for _, s in result.sets] == [Jump.NONE] * len(result.sets)
    assert [len(s.images) for _, s in result.sets] == [
        2 if policy == "resilient" and k == 10 else 3 for k in range(len(result.sets))
    ]
    assert len(result.sets) >= 19 and result.synchronizer.statistics.dropped["b", ALONE] == 1


def test_a_wrong_stamp_just_before_a_loop_does_not_become_a_set() -> None:
    arrivals = [
        *steady(["a"], 10),
        Arrival("a", 0, 1000 * MS),
        *(Arrival("a", x.stamp, x.now + 1100 * MS) for x in steady(["a"], 5)),
    ]
    result = run(arrivals, ["a"], SyncParameters())
    assert [s.stamp_ns for _, s in result.sets[10:]] == [START + k * 100 * MS for k in range(5)]
    assert [s.jump for _, s in result.sets[10:]] == [Jump.BACKWARD] + [Jump.NONE] * 4
    assert result.synchronizer.statistics.dropped == Counter({("a", ALONE): 1})


def test_a_wrong_stamp_of_a_camera_that_then_dies_is_forgotten() -> None:
    arrivals = steady(["a", "b"], 60, skip={"b": range(11, 60)})
    arrivals = [
        Arrival("b", 0, x.now) if (x.camera, x.stamp) == ("b", START + 1000 * MS) else x
        for x in arrivals
    ]
    result = run(arrivals, ["a", "b"], SyncParameters())
    assert len(result.sets) == 60 and not result.synchronizer.statistics.jumps
    assert (
        result.synchronizer.statistics.dropped == Counter({("b", ALONE): 1})
        and result.synchronizer.held == 0
    )


def test_gap_in_time_is_marked_forward() -> None:
    arrivals = [
        *steady(["a"], 5),
        *(Arrival("a", x.stamp + 10**10, x.now + 10**10) for x in steady(["a"], 5)),
    ]
    result = run(arrivals, ["a"], SyncParameters())
    assert [s.jump for _, s in result.sets] == [Jump.NONE] * 5 + [Jump.FORWARD] + [Jump.NONE] * 4


@pytest.mark.parametrize("policy", ["resilient", "exact"])
def test_after_a_gap_every_image_is_used(policy: str) -> None:
    cameras = ["a", "b"]
    arrivals = [
        *steady(cameras, 5),
        *(Arrival(x.camera, x.stamp + 10**10, x.now + 10**10) for x in steady(cameras, 5)),
    ]
    result = run(arrivals, cameras, SyncParameters(policy=policy))
    assert [s.jump for _, s in result.sets] == [Jump.NONE] * 5 + [Jump.FORWARD] + [Jump.NONE] * 4
    assert (
        all(len(s.images) == 2 for _, s in result.sets)
        and not result.synchronizer.statistics.dropped
    )


def test_a_camera_slower_than_the_threshold_goes_on() -> None:
    result = run(steady(["a"], 20, period=5000.0), ["a"], SyncParameters())
    assert len(result.sets) == 19 and result.synchronizer.statistics.dropped == Counter(
        {("a", ALONE): 1}
    )
    assert all(
        now == s.stamp_ns - START for now, s in result.sets[1:]
    )  # not one waited for the next


def test_a_camera_that_comes_back_is_taken_at_once() -> None:
    cameras = ["a", "b", "c"]
    result = run(steady(cameras, 60, skip={"b": range(10, 40)}), cameras, SyncParameters())
    assert (
        result.synchronizer.statistics.used == Counter(a=60, b=30, c=60)
        and not result.synchronizer.statistics.jumps
    )


def test_duplicates_and_sets_below_min_cameras_are_counted() -> None:
    synchronizer = Synchronizer(["a", "b"], SyncParameters(min_cameras=2))
    for _ in range(2):
        synchronizer.add_image("a", RawImage(START, "mono8", PIXELS), 0)
    assert synchronizer.flush() == []
    assert synchronizer.statistics.dropped == Counter({("a", DUPLICATE): 1, ("a", TOO_FEW): 1})
    synchronizer.add_image("a", RawImage(START, "mono8", PIXELS), 1)  # its set is long out
    assert synchronizer.statistics.dropped["a", DUPLICATE] == 2 and synchronizer.held == 0


def test_exact_and_approximate_match_as_they_say() -> None:
    a = [Arrival("a", START + k * 100 * MS, k * 100 * MS) for k in range(10)]
    b = [Arrival("b", START + (k * 100 + 20 * (k % 2)) * MS, (k * 100 + 1) * MS) for k in range(10)]
    arrivals = sorted(a + b, key=lambda x: x.now)
    assert len(run(arrivals, ["a", "b"], SyncParameters(policy="exact")).sets) == 5
    assert (
        len(run(arrivals, ["a", "b"], SyncParameters(policy="approximate", slop=0.03)).sets) == 10
    )
    assert len(run(arrivals, ["a", "b"], SyncParameters(policy="approximate", slop=0.01)).sets) == 5


def test_approximate_takes_the_better_partner() -> None:
    arrivals = [
        Arrival("a", START, 0),
        Arrival("a", START + 30 * MS, 1),
        Arrival("b", START + 32 * MS, 2),
    ]
    ((_, frame_set),) = run(arrivals, ["a", "b"], SyncParameters(policy="approximate")).sets
    assert frame_set.images["a"].stamp_ns == START + 30 * MS


def test_odometry_door_and_delivery() -> None:
    synchronizer = Synchronizer(["a"])
    pose, broken = np.eye(4), np.full((4, 4), np.nan)
    for stamp, matrix in ((0, pose), (10, pose), (10, pose), (20, broken), (30, pose), (40, pose)):
        synchronizer.add_odometry(OdometrySample(START + stamp, matrix))
    (frame_set,) = synchronizer.add_image("a", RawImage(START + 30, "mono8", PIXELS), 0)
    assert [sample.stamp_ns - START for sample in frame_set.odometry] == [0, 10, 30]
    dropped = Counter({sync_odometry.NOT_FINITE: 1, sync_odometry.NOT_NEWER: 1})
    assert (
        synchronizer.statistics.odometry_dropped == dropped
        and synchronizer.statistics.odometry_received == 6
    )


@pytest.mark.parametrize("leap", [(50.0, 0.0), (1e300, 0.0), (0.0, np.pi)])
def test_odometry_that_leaps_is_counted_and_a_new_beginning_is_taken(
    leap: tuple[float, float],
) -> None:
    """Driving at 80 m/s: sample 2 is wrong alone; from 5 on the odometry has begun anew."""
    queue = sync_odometry.OdometryQueue(100, 500 * MS, dropped := Counter())
    elsewhere = geometry.exp(np.array([0, 0, 0, 0, 0, leap[1]]))
    elsewhere[0, 3] = leap[0]
    poses = [geometry.exp(np.array([8.0 * i, 0, 0, 0, 0, 0])) for i in range(8)]
    for i, pose in enumerate(poses):
        queue.add(OdometrySample(100 * i * MS, elsewhere @ pose if i in (2, 5, 6, 7) else pose))
    assert [sample.stamp_ns // (100 * MS) for sample in queue.take(10**18)] == [0, 1, 3, 4, 6, 7]
    assert dropped == {sync_odometry.LEAPT: 2}
    queue.add(OdometrySample(-1000 * MS, np.eye(4)))  # a bag loops
    assert len(queue) == 1 and sum(dropped.values()) == 2


def test_odometry_from_before_a_jump_is_not_given_to_the_sets_after_it() -> None:
    synchronizer = Synchronizer(["a"])
    synchronizer.add_image("a", RawImage(START, "mono8", PIXELS), 0)
    synchronizer.add_odometry(OdometrySample(START + 50 * MS, np.eye(4)))
    assert synchronizer.add_image("a", RawImage(START - 5000 * MS, "mono8", PIXELS), 1) == []
    synchronizer.add_odometry(OdometrySample(START - 4950 * MS, np.eye(4)))
    before, after = synchronizer.add_image("a", RawImage(START - 4900 * MS, "mono8", PIXELS), 2)
    assert before.jump is Jump.BACKWARD and before.odometry == ()
    assert [sample.stamp_ns for sample in after.odometry] == [START - 4950 * MS]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=60), st.integers(1, 5))
def test_odometry_is_bounded_increasing_and_all_accounted_for(
    samples: list[tuple[int, bool]], limit: int
) -> None:
    dropped: Counter[str] = Counter()
    buffer = sync_odometry.SampleQueue(limit, 500 * MS, dropped)
    for stamp, finite in samples:
        buffer.add(OdometrySample(stamp * MS, np.eye(4) if finite else np.full((4, 4), np.inf)))
        assert len(buffer) <= limit
    taken = buffer.take(10**18)
    assert [s.stamp_ns for s in taken] == sorted({s.stamp_ns for s in taken})
    assert len(taken) + sum(dropped.values()) == len(samples)


def test_unknown_camera_and_impossible_min_cameras() -> None:
    with pytest.raises(ValueError, match="'z' is not one of a, b"):
        Synchronizer(["a", "b"]).add_image("z", RawImage(0, "mono8", PIXELS), 0)
    with pytest.raises(ParameterError, match="min_cameras is 3"):
        Synchronizer(["a", "b"], SyncParameters(min_cameras=3))


@pytest.mark.parametrize(
    ("bag", "sets", "cameras"), [("kitti_bag", 51, 2), ("ddad_bag", 3, 6), ("nuscenes_bag", 1, 6)]
)
def test_real_bags_make_complete_sets(
    bag: str, sets: int, cameras: int, request: pytest.FixtureRequest
) -> None:
    with BagReader(request.getfixturevalue(bag)) as reader:
        synchronizer = Synchronizer(list(reader.cameras()))
        out = [
            s
            for event in reader.events()
            if isinstance(event, ImageEvent)
            for s in synchronizer.add_image(event.camera, event.image, event.receive_ns)
        ]
        out += synchronizer.flush()
    assert [len(s.images) for s in out] == [cameras] * sets and not synchronizer.statistics.dropped


# --- cameras on different clocks


def on_clocks(
    offsets: dict[str, float],
    count: int = 12,
    parameters: SyncParameters | None = None,
    late: dict[str, float] | None = None,
) -> Run:
    """Cameras that fire together every 100 ms, each on a clock that is ahead by so many seconds,
    their images on the way for 5 ms, and by so much more."""
    arrivals = [
        Arrival(
            camera,
            START + round(k * 100 * MS + ahead * 1000 * MS),
            round((k * 100 + 5 + 1000 * (late or {}).get(camera, 0.0)) * MS),
        )
        for k in range(count)
        for camera, ahead in offsets.items()
    ]
    arrivals.sort(key=lambda arrival: arrival.now)
    return run(arrivals, list(offsets), parameters or SyncParameters())


@pytest.mark.parametrize("ahead", [37.0, -37.0, 1.53, 0.43, -0.43])
def test_clocks_that_differ_are_said_corrected_or_learned(ahead: float) -> None:
    cameras = {"left": 0.0, "right": ahead}
    plain = on_clocks(cameras)
    (finding,) = plain.synchronizer.findings
    assert f"clocks of left and right differ by {abs(ahead):.2f} s though they arrive" in finding
    assert f"sync.offset.right={ahead:.2f} takes it off" in finding
    for text in (f"right={ahead}", "right=auto", "auto"):
        result = on_clocks(cameras, parameters=SyncParameters(offset=text))
        sets = [frame_set for _, frame_set in result.sets]
        assert [len(frame_set.images) for frame_set in sets] == [2] * 12
        assert not result.synchronizer.statistics.dropped
        for k, frame_set in enumerate(sets):
            stamps = {image.stamp_ns for image in frame_set.images.values()}
            assert stamps == {START + k * 100 * MS}  # exactly: they fire at once
        findings = result.synchronizer.findings
        assert any(f"{ahead:.3f} s against left" in one for one in findings) == ("auto" in text)
        assert not any("differ" in one for one in findings)


def test_one_clock_with_latency_is_left_alone() -> None:
    """Images that take 150 ms longer are of the same clock, and auto takes nothing off."""
    for text in ("", "auto"):
        result = on_clocks(
            {"left": 0.0, "right": 0.0},
            parameters=SyncParameters(offset=text, max_wait=0.3),
            late={"right": 0.15},
        )
        assert not any("differ" in finding for finding in result.synchronizer.findings)
        assert result.synchronizer.statistics.used == {"left": 12, "right": 12}
        stamps = [
            image.stamp_ns for _, frame_set in result.sets for image in frame_set.images.values()
        ]
        assert sorted(set(stamps)) == [START + k * 100 * MS for k in range(12)]


def test_three_cameras_of_which_one_is_on_another_clock_and_one_is_dead() -> None:
    offsets = {"a": 0.0, "b": 2.0, "c": 0.0}
    result = on_clocks(offsets, parameters=SyncParameters(offset="b=auto"))
    assert [set(s.images) for _, s in result.sets] == [set(offsets)] * 12
    synchronizer = Synchronizer(("a", "b"), SyncParameters(offset="b=auto", max_wait=0.0))
    sets = []
    for k in range(60):  # b never comes: a waits for its clock for three seconds, no longer
        image = RawImage(START + k * 100 * MS, "mono8", np.zeros(1, np.uint8), 1, 1, 1)
        sets += synchronizer.add_image("a", image, k * 100 * MS)
    assert (len(sets) >= 59 and synchronizer.held == 0) or len(sets) == 60
    sets += synchronizer.flush()
    assert len(sets) == 60 and "too few images" in synchronizer.findings[-1]


def test_odometry_of_another_clock_is_not_used_until_it_is_corrected() -> None:
    def taken(text: str, ahead: float) -> tuple[int, Synchronizer]:
        synchronizer = Synchronizer(("a",), SyncParameters(offset=text))
        count = 0
        for k in range(40):
            now = k * 50 * MS
            stamp = START + now + round(ahead * 1000) * MS
            synchronizer.add_odometry(OdometrySample(stamp, np.eye(4)), now)
            image = RawImage(START + now, "mono8", np.zeros(1, np.uint8), 1, 1, 1)
            for frame_set in synchronizer.add_image("a", image, now):
                assert all(sample.stamp_ns <= frame_set.stamp_ns for sample in frame_set.odometry)
                count += len(frame_set.odometry)
        return count, synchronizer

    for ahead in (37.0, -1e6):
        count, synchronizer = taken("", ahead)
        assert count <= 5
        assert synchronizer.statistics.odometry_dropped["its clock is not the cameras'"] >= 34
        (finding,) = synchronizer.findings
        assert "clocks of cameras and odometry differ" in finding
        assert "odometry is not used" in finding
        assert taken(f"odometry={ahead}", ahead)[0] >= 39
        assert taken("odometry=auto", ahead)[0] >= 34
    count, synchronizer = taken("", 0.0)
    assert count >= 39 and not synchronizer.findings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("right", "expected auto, or seconds by camera"),
        ("middle=1.0", "the names are left, right, odometry"),
        ("right=soon", "'soon': expected seconds or auto"),
        ("right=inf", "expected seconds"),
        ("right=nan", "expected seconds"),
    ],
)
def test_offsets_that_mean_nothing(text: str, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        Synchronizer(("left", "right"), SyncParameters(offset=text))


def test_offsets_by_camera_are_parameters_of_their_own() -> None:
    from recon4d_ros.parameters import build
    from recon4d_ros.reconstructor import Parameters

    one = build(Parameters, {"sync.offset.right": 37.0, "sync.offset.front": "auto"})
    assert one.sync.offset == "right=37.0,front=auto"
    assert build(Parameters, {"sync.offset": "auto"}).sync.offset == "auto"
    with pytest.raises(ParameterError, match=r"unknown parameter sync\.slop\.right"):
        build(Parameters, {"sync.slop.right": 1.0})


@pytest.mark.parametrize("ahead", [3600.0, -3600.0, 5.0, -5.0, -0.4])
def test_one_cameras_clock_is_not_time(ahead: float) -> None:
    """Two cameras go on; the third one's stamps are wrong for two seconds, and right again. The two
    lose nothing, and time does not jump."""
    cameras = ("a", "b", "c")
    sync = Synchronizer(cameras)
    sets: list[FrameSet] = []
    for n in range(60):
        for camera in cameras:
            now = START + n * 100 * MS
            wrong = round(ahead * 1e9) if camera == "b" and 20 <= n < 40 else 0
            stamped = RawImage(now + wrong, "mono8", np.zeros(4, np.uint8), 2, 2, 2)
            sets += sync.add_image(camera, stamped, now)
    sets += sync.flush()
    used = Counter(camera for one in sets for camera in one.images)
    assert used["a"] == used["c"] == 60 and used["b"] >= 40 - 2
    assert all(one.jump is Jump.NONE for one in sets)
    lost = sum(n for (camera, _), n in sync.statistics.dropped.items() if camera == "b")
    assert used["b"] + lost == 60


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, False), (0.5, False), (1e-3, True), (1e3, True)]
)
def test_stamps_that_do_not_go_as_time_does(factor: float, told: bool) -> None:
    """Milliseconds or ticks in place of nanoseconds."""
    synchronizer = Synchronizer(["left"])
    for index in range(12):
        now = START + index * 100 * MS
        stamp = START + round(index * factor * 100 * MS)
        synchronizer.add_image("left", RawImage(stamp, "mono8", np.zeros(4, np.uint8), 2, 2), now)
    words = [one for one in synchronizer.findings if "stamps of left advance by" in one]
    assert len(words) == told
