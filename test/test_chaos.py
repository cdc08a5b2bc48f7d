"""A short campaign of faults into the running graph: chosen by seed, the same every time. The whole
catalogue is test/chaos/run.py's (docs/faults.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
pytest.importorskip(
    "recon4d_msgs.msg",
    reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "chaos"), str(HERE.parent)]
from faults import FAULTS  # noqa: E402
from run import campaign  # noqa: E402

SEED, COUNT, FRAMES = 6, 1, 24
SLOW = ("lifecycle", "process", "disk", "services")  # seconds each: the whole campaign has them


def test_there_are_more_than_forty_kinds_of_faults():
    assert len(FAULTS) > 40


def test_a_few_faults_do_no_harm(tmp_path):
    names = [name for name, fault in FAULTS.items() if fault.group not in ("none", *SLOW)]
    chosen = np.random.default_rng(SEED).choice(names, COUNT, replace=False)
    rows, notes = campaign(tmp_path, list(map(str, chosen)), SEED, FRAMES)
    # slower than 3 s is the load of other tests; not back after 15 s is another word
    missed = {row.fault.name: bars for row in rows if (bars := set(row.missed) - {"slow"})}
    assert not missed, (missed, [(row.lost, row.drops, row.error) for row in rows], notes)
