"""Images that never came are counted by the gaps in their camera's stamps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon4d_ros.sync.gaps import ENOUGH, LONGEST_NS, GapCounter

MS = 1_000_000


def missing(stamps: list[int]) -> int:
    counter = GapCounter()
    return sum(counter.add(int(stamp)) for stamp in stamps) + counter.restart()


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.13, 0.59])
@given(period=st.sampled_from([10, 33, 100]), seed=st.integers(0, 2**32 - 1))
def test_lost_images_are_counted(share: float, jitter: float, period: int, seed: int) -> None:
    """59 of 100 lost is what a public bug report saw over default DDS."""
    random = np.random.default_rng(seed)
    stamps = (np.arange(400) + jitter * random.uniform(-1, 1, 400)) * period * MS
    came = random.random(400) >= share
    came[:ENOUGH] = came[-1] = True
    lost = int((~came).sum())
    assert abs(missing(list(stamps[came])) - lost) <= (0 if share < 0.2 else 0.1 * lost)


def test_a_pause_and_a_jump_are_no_loss() -> None:
    steady = [n * 100 * MS for n in range(20)]
    later = [steady[-1] + LONGEST_NS + 1 + stamp for stamp in steady]
    assert missing(steady + later) == 0
    counter = GapCounter()
    for stamp in steady:
        counter.add(stamp)
    assert counter.restart() == 0
    assert sum(counter.add(stamp) for stamp in steady) == 0


def test_too_few_images_say_nothing() -> None:
    assert missing([0, 100 * MS, 200 * MS, 900 * MS]) == 0


def test_after_a_stall_of_ours_a_long_gap_is_a_loss() -> None:
    """The process was stopped for 5 s: the camera was not off."""
    counter = GapCounter()
    for n in range(20):
        counter.add(n * 100 * MS)
    counter.stalled()
    counter.add((19 + 50) * 100 * MS)
    counter.add((19 + 51) * 100 * MS)
    told = counter.add((19 + 100) * 100 * MS)  # the next long one is a camera that was off
    assert told == 49 and counter.restart() == 0


@given(st.lists(st.integers(0, 2), min_size=30, max_size=60), st.integers(0, 9))
def test_late_images_are_not_missing(late: list[int], lost: int) -> None:
    """Each image comes by up to two periods late, some never: only those are counted."""
    order = sorted(range(len(late)), key=lambda n: (n + late[n], n))
    order = [*range(-ENOUGH - 1, 0), *order, *range(len(late), len(late) + 3)]
    gone = set(range(10, 10 + lost))
    assert missing([n * 100 * MS for n in order if n not in gone]) == lost


def test_an_image_with_a_wrong_stamp_is_not_missing_as_well() -> None:
    counter = GapCounter()
    for n in range(20):
        counter.add(n * 100 * MS)
    counter.astray()
    counter.add(21 * 100 * MS)  # the one before had another stamp
    counter.add(23 * 100 * MS)
    assert counter.restart() == 1
