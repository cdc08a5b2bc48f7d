"""`recon4d demo` around its graph: whose folder it takes, what it refuses before it begins, and
what it says of a process that failed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import one_sentence

from recon4d_ros import cli
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.commands import demo, demo_folder
from recon4d_ros.engine.choose import NoEngineFits
from recon4d_ros.errors import OutputError
from recon4d_ros.paths import rigs
from recon4d_ros.ros.graph import GraphResult, run_graph, write_parameters
from recon4d_ros.types import Rig

SOMEBODYS = (
    "drive/tour.mcap",
    "bag/notes.txt",
    "depth/left.png",
    "dynamic/a.png",
    "logs/syslog",
    "engine/v8.txt",
    "report.md",
    "map.ply",
)


def filled(folder: Path, marked: bool) -> dict[Path, str]:
    for name in SOMEBODYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    if marked:
        (folder / demo_folder.MARKER).write_text("")
    return contents(folder)


def contents(folder: Path) -> dict[Path, str]:
    return {
        path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_that_no_demo_wrote_is_left_as_it_is(capsys, tmp_path):
    before = filled(tmp_path / "home", marked=False)
    one_sentence(
        capsys,
        ["demo", "--out", tmp_path / "home", "--rig", "kitti_like", "--seconds", "0.2"],
        "home",
        "no demo wrote it",
    )
    assert contents(tmp_path / "home") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rig", "tank"], "tank"),
        (["--bag", "nowhere"], "nowhere"),
        (["--engine", "/no/engine"], "/no/engine"),
        (["--rig", "mono", "--engine", "geometric_stereo"], "does not fit"),
        (["-p", "mapping.voxel=1"], "mapping.voxel"),
        (["-p", "a={"], "a={"),
        (["--odometry", "/wheels"], "/wheels"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "-1"], "--rate"),
        (["--seconds", "nan"], "--seconds"),
        (["--seed", "-4"], "--seed"),
    ],
)
def test_a_slip_costs_no_earlier_demo(capsys, tmp_path, words, said):
    before = filled(tmp_path / "demo", marked=True)
    one_sentence(capsys, ["demo", "--out", tmp_path / "demo", *words], said)
    assert contents(tmp_path / "demo") == before


def test_an_earlier_demo_is_replaced_and_what_is_beside_it_stays(tmp_path):
    filled(tmp_path, marked=True)
    (tmp_path / "mine.txt").write_text("keep")
    demo_folder.check(tmp_path, ())
    demo_folder.empty(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [demo_folder.MARKER, "mine.txt"]
    demo_folder.empty(tmp_path / "new")
    (tmp_path / "new/map.ply").write_text("of the demo")
    demo_folder.check(tmp_path / "new", ())  # the next demo may take it


@pytest.mark.parametrize(
    ("option", "name"),
    [("--bag", "drive"), ("--engine", "engine"), ("--parameters", "logs/parameters.yaml")],
)
def test_what_a_demo_reads_may_not_lie_where_it_writes(capsys, tmp_path, option, name):
    filled(tmp_path / "demo", marked=True)
    (tmp_path / "demo/logs/parameters.yaml").write_text("")
    before = contents(tmp_path / "demo")
    one_sentence(
        capsys,
        ["demo", "--out", tmp_path / "demo", option, tmp_path / "demo" / name],
        f"demo/{name}",
        "lies in the output",
    )
    assert contents(tmp_path / "demo") == before


def test_a_bag_is_not_the_place_for_a_demo(capsys, small_bag):
    one_sentence(capsys, ["demo", "--out", small_bag, "--bag", small_bag], small_bag)
    assert any(small_bag.glob("*.mcap"))


@pytest.mark.parametrize("out", ["/proc/demo", "/dev/null"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    capsys, monkeypatch, small_bag, stereo_engine, out
):
    monkeypatch.setattr(demo, "_engine", lambda *_: stereo_engine)
    one_sentence(capsys, ["demo", "--out", out, "--bag", small_bag], out)


def test_a_graph_that_cannot_write_says_so(small_bag, tmp_path):
    with pytest.raises(OutputError, match="/proc/graph"):
        run_graph(small_bag, Path("/proc/graph"))
    with pytest.raises(OutputError, match="/proc"):
        write_parameters(Path("/proc/parameters.yaml"), {})
    (tmp_path / "logs/node.log").mkdir(
        parents=True
    )  # in the way of the first log: nothing is started
    with pytest.raises(OutputError, match="logs"):
        run_graph(small_bag, tmp_path)


@pytest.fixture
def ended(monkeypatch, tmp_path, small_bag, stereo_engine):
    """A demo whose graph has ended with these exit codes and was heard to say this summary -> its
    arguments."""
    logs = {name: tmp_path / f"{name}.log" for name in ("player", "node", "recorder")}
    for name, log in logs.items():
        log.write_text(f"start\n{name}: last words\n\n")

    monkeypatch.setattr(demo, "_engine", lambda *_: stereo_engine)  # the test below loads it

    def demo_that_ended(summary, **codes):
        every = {name: codes.get(name, 0) for name in logs}
        monkeypatch.setattr(
            demo, "run_graph", lambda bag, out, *_, **__: GraphResult(every, logs, out / "bag", 1.0)
        )
        monkeypatch.setattr(
            demo,
            "collect",
            lambda *_: {"bag": "drive", "frames": 3, "drops": {"left: too late": 4}, **summary},
        )
        return ["demo", "--out", tmp_path / "demo", "--bag", small_bag, "--rate", "1"]

    return demo_that_ended


def test_the_process_that_failed_is_named_with_its_log(capsys, tmp_path, ended):
    argv = ended({"images_used": 6, "not_tracking": 2}, node=-11)
    one_sentence(capsys, argv, "the node ended with -11", "node: last words", tmp_path / "node.log")
    report = (tmp_path / "demo/report.md").read_text()
    assert (
        "the node ended with -11" in report
        and "not tracked  2 of 3" in report
        and "4 x left: too late" in report
    )


def test_a_demo_that_used_no_image_is_no_success(capsys, tmp_path, ended):
    one_sentence(
        capsys,
        ended({"images_used": 0, "not_tracking": 3}),
        "no image of its 3 frame sets",
        "4 x left: too late",
    )
    assert "not tracked  3 of 3" in (tmp_path / "demo/report.md").read_text()
    assert cli.main([str(word) for word in ended({"images_used": 6, "not_tracking": 0})]) == 0


def test_the_rate_is_what_this_machine_keeps_up_with(monkeypatch, tmp_path, small_bag):
    class Slow:
        def __init__(self, *_):
            self.closed = False

        def step(self, frame_set):
            return SimpleNamespace(latency={"engine": 0.15, "mapping": 0.05})

        def close(self):
            closed.append(self)

    closed: list[Slow] = []
    monkeypatch.setattr(demo, "Reconstructor", Slow)
    rig = load_rig(rigs() / "kitti_like.yaml")
    plan = SimpleNamespace(rig=rig, parameters=demo.Parameters(), found={})
    rate = demo._sustainable_rate(tmp_path, plan, small_bag)
    assert (
        rate == pytest.approx(0.1 / (demo.HEADROOM * 0.2), rel=1e-3) and demo.HEADROOM > 1
    )  # ten frame sets per second, each of 0.2 s
    monkeypatch.setattr(
        Slow, "step", lambda self, frame_set: SimpleNamespace(latency={"engine": 1e-3})
    )
    assert demo._sustainable_rate(tmp_path, plan, small_bag) == 1.0
    assert len(closed) == 2


def test_the_engine_is_found_or_exported_or_missed_before_anything_is_written(
    monkeypatch, stereo_engine
):
    rig = load_rig(rigs() / "kitti_like.yaml")
    assert demo._engine("", rig) == stereo_engine
    many = Rig("many", tuple(replace(rig.cameras[0], name=f"camera_{i}") for i in range(9)))
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda package: object())
    assert demo._engine("", many) is None  # to be exported
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(NoEngineFits, match="9 cameras, as rig many has them"):
        demo._engine("", many)


def test_the_default_plan_is_a_simulated_drive_of_six_cameras(monkeypatch):
    monkeypatch.setattr(
        demo.engines, "load", lambda folder, rig: SimpleNamespace(close=lambda: None)
    )
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    plan = demo._plan(parser.parse_args(["--out", "/tmp/no_demo_here"]))
    assert len(plan.rig.cameras) == 6 and plan.odometry is None and plan.engine is not None
