"""The command line as a user meets it: help that teaches, one clear sentence for bad input, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recon4d_ros import cli
from recon4d_ros.errors import Recon4dError

ROOT = Path(__file__).resolve().parents[1]


def one_sentence(capsys, argv, *words):
    """The command fails with exit code 2 and a single line that holds every word."""
    assert cli.main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("recon4d ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    for word in words:
        assert str(word) in lines[0]


@pytest.mark.parametrize("command", [name for name, _, _ in cli.COMMANDS])
def test_help_shows_examples_and_every_argument_has_text(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"recon4d {command}" in text and "example" in text
    parser = cli.build_parser(command)
    sub = next(action for action in parser._actions if action.dest == "command").choices[command]
    assert all(action.help for action in sub._actions)


def test_top_help_lists_commands_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "exit codes" in text and all(name in text for name, _, _ in cli.COMMANDS)


def test_help_needs_no_pytorch():
    code = "import sys; sys.modules['torch'] = None\nfrom recon4d_ros import cli\ncli.main(['replay', '--help'])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_missing_bag(capsys, tmp_path):
    one_sentence(capsys, ["replay", tmp_path / "no_bag", "--out", tmp_path / "run"], "no_bag")
    one_sentence(capsys, ["info", tmp_path / "no_bag"], "no_bag")


def test_truncated_bag(capsys, tmp_path, small_bag):
    whole = next(small_bag.glob("*.mcap")).read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: len(whole) // 2])
    one_sentence(capsys, ["replay", cut, "--out", tmp_path / "run"], "truncated")
    assert not (tmp_path / "run").exists()


def test_unknown_camera_and_topic(capsys, tmp_path, small_bag):
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "--cameras", "nose"], "nose", "left")
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "--odometry", "/nothing"], "/nothing")


def test_parameter_out_of_range_unknown_and_not_a_number(capsys, tmp_path, small_bag):
    for assignment, word in (
        ("mapping.voxel_size=-1", "at least"),
        ("mapping.voxel=1", "unknown"),
        ("mapping.voxel_size=.nan", "finite"),
        ("x", "NAME=VALUE"),
    ):
        one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "-p", assignment], word)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda folder: (folder / "engine.yaml").unlink(), "engine.yaml"),
        (lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:1000]), "truncated"),
        (
            lambda folder: (folder / "engine.yaml").write_text((folder / "engine.yaml").read_text().replace("format: 1", "format: 99")),
            "format 99",
        ),
    ],
)
def test_broken_engine(capsys, tmp_path, small_bag, stereo_engine, break_it, word):
    folder = tmp_path / "engine"
    folder.mkdir()
    for file in stereo_engine.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    break_it(folder)
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "--engine", folder], word)


def test_engine_missing_or_for_another_rig(capsys, tmp_path, small_bag):
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "--engine", tmp_path / "nothing"], "no such folder")
    surround = next(path.parent for path in (ROOT / "engines").glob("*surround*/engine.yaml"))
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run", "--engine", surround], "camera")


def test_existing_and_unwritable_output(capsys, tmp_path, small_bag):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run"], "run")
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "file/run"], "file")
    one_sentence(capsys, ["simulate", "--out", tmp_path / "file/drive", "--seconds", "0.1"], "file")


def test_unknown_rig(capsys, tmp_path):
    one_sentence(capsys, ["simulate", "--out", tmp_path / "drive", "--rig", "tank"], "tank", "nuscenes_like")


def test_errors_that_are_ours_are_all_one_class():
    from recon4d_ros import errors

    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(ours) >= 7 and all(issubclass(kind, Recon4dError) for kind in ours)


def test_replay_writes_the_contract_and_repeats_bit_for_bit(tmp_path, small_bag):
    environment = dict(os.environ, PYTHONHASHSEED="1")
    for name in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "-m", "recon4d_ros.cli", "replay", small_bag, "--out", tmp_path / name, "--save-frames"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("trajectory.tum", "map.ply", "objects.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    frames = sorted(path.relative_to(one) for path in one.glob("d*/*/*.png"))
    assert frames and all((one / path).read_bytes() == (two / path).read_bytes() for path in frames)
    summary = json.loads((one / "summary.json").read_text())
    assert summary["frames"] == len((one / "trajectory.tum").read_text().splitlines()) > 0
    assert summary["latency_ms"]["engine"]["p50"] > 0 and summary["peak_rss_mib"] > 0
    assert (one / "overview.png").stat().st_size > 10_000


def test_info_of_a_checkpoint_says_what_it_is_or_why_not(capsys, tmp_path):
    pytest.importorskip("torch", reason="checkpoints are read with PyTorch")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    one_sentence(capsys, ["info", tmp_path / "broken.pth"], "broken.pth")


def test_info_of_bag_engine_and_rig(capsys, small_bag, stereo_engine):
    for path, word in (
        (small_bag, "/camera/left/image_raw/compressed"),
        (stereo_engine, "recon4d_geometric"),
        (ROOT / "config/rigs/mono.yaml", "1 camera"),
    ):
        assert cli.main(["info", str(path)]) == 0
        assert word in capsys.readouterr().out
