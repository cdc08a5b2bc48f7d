"""What a run could not keep is told: in summary.json and its report, on /diagnostics, and in the
answer of ~/save_map."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recon4d_ros.bags import BagReader, BagWriter
from recon4d_ros.bags.topics import TRUTH
from recon4d_ros.cameras.preprocess import make_calibration
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.commands.replay import replay
from recon4d_ros.evaluation import format_report
from recon4d_ros.mapping import Mapper, MappingParameters, spill
from recon4d_ros.mapping.cloud_files import PLY_POINT
from recon4d_ros.parameters import build
from recon4d_ros.paths import rigs
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.runs.statistics import map_losses

ROOM, DISK = (
    "no room in the map (mapping.max_voxels)",
    "no room on the disk for what left the radius",
)


def test_what_a_full_map_and_a_full_disk_refuse_is_counted_until_the_drive_begins_anew():
    rig = load_rig(rigs() / "mono.yaml")
    mapper = Mapper(make_calibration(rig, (540, 960), (64, 96)), MappingParameters(max_voxels=1000))
    assert map_losses(mapper) == {}
    mapper.refused = 5
    assert mapper._spill is not None
    with open("/dev/full", "wb", buffering=0) as full:
        before, mapper._spill._file = mapper._spill._file, full
        mapper._spill.add(np.arange(7), np.zeros(7, PLY_POINT))
        mapper._spill._file = before
    assert map_losses(mapper) == {ROOM: 5, DISK: 7}
    mapper.reset()
    assert map_losses(mapper) == {}


def test_a_replay_tells_its_losses(tmp_path, small_bag):
    count: Counter[str] = Counter()
    with BagReader(small_bag) as reader, BagWriter(tmp_path / "bag") as writer:
        for topic, kind, receive_ns, data in reader.raw_messages():
            if not topic.startswith(TRUTH) and count[topic] < 2:
                count[topic] += 1
                message = reader.deserialize(data, kind)
                if topic.startswith("/camera/left/image_raw"):
                    message.header.stamp.sec = message.header.stamp.nanosec = 0
                writer.write(topic, kind, message, receive_ns)
    summary = replay(
        tmp_path / "bag",
        tmp_path / "run",
        parameters=build(Parameters, {"mapping.max_voxels": 1000}),
    )
    assert summary["stamps_replaced"] == {"left": 2} and summary["map_lost"][ROOM] > 0
    report = format_report(summary)
    assert (
        "no stamp     2 x left" in report
        and f"map lost     {summary['map_lost'][ROOM]} x {ROOM}" in report
    )


def test_peak_memory_is_this_programs_and_not_that_of_whoever_started_it():
    ballast = np.ones(
        600 * 2**17
    )  # 600 MiB: what the kernel hands on to a child as its own maximum
    code = (
        "from recon4d_ros.runs.statistics import RunStatistics;"
        " print(RunStatistics().summary()['peak_rss_mib'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 10 < float(done.stdout) < 400 and ballast[-1] == 1.0


def test_diagnostics_warn_of_a_map_that_loses():
    pytest.importorskip(
        "recon4d_msgs.msg",
        reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
    )
    from recon4d_ros.ros.diagnostics import OK, WARN, Health

    def memory(health):
        message = health.diagnostics_msg(
            0, "recon4d", state="active", waiting=(), paused=False, silence=2.0
        )
        return next(status for status in message.status if status.name.endswith(": memory"))

    health = Health(("left",))
    assert memory(health).level == OK
    health.map_losses = {ROOM: 5, DISK: 7}
    status = memory(health)
    assert (
        status.level == WARN
        and f"5 voxels lost: {ROOM}" in status.message
        and f"7 voxels lost: {DISK}" in status.message
    )
    assert {pair.key: pair.value for pair in status.values}["map voxels lost"] == "12"
    health.reset()
    assert memory(health).level == OK


def test_the_answer_of_save_map_tells_what_is_not_in_the_file(tmp_path):
    pytest.importorskip(
        "recon4d_msgs.srv",
        reason="recon4d_msgs is not built or not sourced: run inside scripts/ros_env.sh",
    )
    from recon4d_msgs.srv import SaveMap

    from recon4d_ros.ros.node import Recon4dNode

    def answer(losses):
        session = SimpleNamespace(
            save_map=lambda path: 9, health=SimpleNamespace(map_losses=losses)
        )
        node = SimpleNamespace(
            _session=session, get_parameter=lambda name: SimpleNamespace(value=str(tmp_path))
        )
        request = SaveMap.Request(path=os.fspath(tmp_path / "map.ply"))
        return Recon4dNode._on_save_map(node, request, SaveMap.Response())

    assert answer({}).message == f"9 points written to {tmp_path / 'map.ply'}"
    told = answer({DISK: 7})
    assert told.success and told.points == 9 and f"7 voxels are not in it: {DISK}" in told.message


MOUNTS = """/dev/sda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
tmpfs /var tmpfs rw 0 0
/dev/sdb /var/tmp xfs rw 0 0
"""


def test_what_left_the_radius_is_not_kept_in_memory_that_nobody_counts(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert spill.in_memory(Path("/tmp/x"), str(mounts))
    assert not spill.in_memory(Path("/var/tmp"), str(mounts))
    assert spill.in_memory(Path("/var/lib"), str(mounts))
    assert not spill.in_memory(Path("/home"), str(mounts))
    assert not spill.in_memory(tmp_path, str(tmp_path / "there_is_none"))
    monkeypatch.setattr(spill.tempfile, "gettempdir", lambda: "/tmp")
    assert spill.folder_on_disk(str(mounts)) == Path("/var/tmp")
    mounts.write_text("tmpfs / tmpfs rw 0 0\n")
    assert spill.folder_on_disk(str(mounts)) is None


def test_without_a_disk_what_left_the_radius_is_counted_as_lost(monkeypatch):
    monkeypatch.setattr(spill, "folder_on_disk", lambda: None)
    nowhere = spill.Spill()
    nowhere.add(np.arange(7), np.zeros(7, PLY_POINT))
    assert (nowhere.lost, nowhere.count, list(nowhere.blocks())) == (7, 0, [])
    assert len(nowhere.latest()) == 0
    nowhere.clear()
    assert nowhere.lost == 0
