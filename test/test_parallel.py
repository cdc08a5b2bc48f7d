"""Work beside other work of the same frame."""

from __future__ import annotations

import threading

import pytest

from recon4d_ros.parallel import Beside, _pool


def test_what_runs_beside_gives_its_result_and_its_error() -> None:
    with Beside(lambda: 7) as seven:
        assert seven.result() == 7
    with pytest.raises(ValueError, match="none"), Beside(lambda: int("none")) as broken:
        broken.result()


def test_nothing_waits_for_a_pool_that_is_busy() -> None:
    """The caller then does the work itself, or it is never begun."""
    go, ran = threading.Event(), []
    busy = [_pool().submit(go.wait) for _ in range(_pool()._max_workers)]
    try:
        with Beside(lambda: ran.append(threading.current_thread())) as own:
            own.result()
        with Beside(lambda: ran.append(None)):
            pass
    finally:
        go.set()
    for one in busy:
        one.result()
    assert ran == [threading.current_thread()]


def test_a_block_that_fails_leaves_nothing_running() -> None:
    begun, ended = threading.Event(), []

    def slow() -> None:
        begun.set()
        threading.Event().wait(0.02)
        ended.append(True)

    with pytest.raises(KeyError), Beside(slow):
        begun.wait()
        raise KeyError
    assert ended
