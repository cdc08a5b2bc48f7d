"""The command line as a user meets it: help that teaches, one clear sentence for bad input, exit
codes."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recon4d_ros import cli
from recon4d_ros.bags import BagReader, BagWriter
from recon4d_ros.bags.topics import TRUTH
from recon4d_ros.cameras.rig import chosen, load_rig, load_rig_file
from recon4d_ros.commands import bench as bench_command
from recon4d_ros.commands.bench import to_and_fro
from recon4d_ros.commands.common import parameter_values
from recon4d_ros.errors import ParameterError, Recon4dError
from recon4d_ros.evaluation import format_report
from recon4d_ros.parameters import describe
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.ros.graph import bag_parameters
from recon4d_ros.runs.evaluate import evaluate_run
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import FrameSet, RawImage, Tracking

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
    def help_without(package):
        code = (
            f"import sys; sys.modules[{package!r}] = None\nfrom recon4d_ros import"
            " cli\nsys.exit(cli.main(['replay', '--help']))"
        )
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )

    done = help_without("torch")
    assert done.returncode == 0 and "recon4d replay" in done.stdout
    assert (
        help_without("tqdm").returncode == 2
    )  # a package that it does need is missed, so the line above can fail


def test_missing_bag(capsys, tmp_path):
    one_sentence(capsys, ["replay", tmp_path / "no_bag", "--out", tmp_path / "run"], "no_bag")
    one_sentence(capsys, ["info", tmp_path / "no_bag"], "no_bag")


def test_truncated_bag(capsys, tmp_path, small_bag):
    whole = next(small_bag.glob("*.mcap")).read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: len(whole) // 2])
    one_sentence(capsys, ["replay", cut, "--out", tmp_path / "run"], "truncated")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def broken_bag(small_bag, tmp_path_factory):
    """Two frame sets whose JPEGs are cut off, the right camera's stamped a millisecond after the
    left's."""
    path = tmp_path_factory.mktemp("broken") / "broken"
    with BagReader(small_bag) as reader, BagWriter(path) as writer:
        count = Counter()
        for topic, kind, receive_ns, data in reader.raw_messages():
            if not topic.startswith(TRUTH) and count[topic] < 2:
                count[topic] += 1
                message = reader.deserialize(data, kind)
                if topic.endswith("/compressed"):
                    message.data = message.data[:400]
                    message.header.stamp.nanosec += 1_000_000 * ("right" in topic)
                writer.write(topic, kind, message, receive_ns)
    return path


def test_a_bag_of_broken_images_is_said_to_be_one(capsys, tmp_path, broken_bag):
    one_sentence(
        capsys,
        ["replay", broken_bag, "--out", tmp_path / "run"],
        broken_bag,
        "no image of its 2 frame sets",
        "truncated",
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert sum(summary["undecodable"].values()) == 4 and summary["not_tracking"] == 2


def test_a_bag_of_which_no_frame_set_comes_together_is_said_to_be_one(capsys, tmp_path, broken_bag):
    argv = ["replay", broken_bag, "--out", tmp_path / "run", "-p", "sync.policy=exact"]
    one_sentence(capsys, argv, broken_bag, "no frame set came together")


def test_the_report_tells_what_went_wrong():
    drops = {f"left: reason {n}": n for n in range(1, 10)}
    text = format_report(
        {
            "frames": 12,
            "not_tracking": 5,
            "drops": drops,
            "undecodable": {"camera right: jpeg is truncated": 3},
        }
    )
    assert (
        "not tracked  5 of 12 frame sets" in text and "3 x camera right: jpeg is truncated" in text
    )
    assert "9 x left: reason 9" in text and "6 x 3 other reasons" in text and "reason 3" not in text
    clean = format_report({"frames": 12, "not_tracking": 0, "drops": {}, "undecodable": {}})
    assert "not" not in clean and "undecodable" not in clean


def test_a_bag_without_a_message_is_described(capsys, tmp_path):
    with BagWriter(tmp_path / "empty"):
        pass
    assert cli.main(["info", str(tmp_path / "empty")]) == 0
    assert "no rig" in capsys.readouterr().out
    one_sentence(capsys, ["replay", tmp_path / "empty", "--out", tmp_path / "run"], "empty")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seconds", "nan"),
        ("--seconds", "inf"),
        ("--seconds", "-3"),
        ("--seconds", "0.01"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--seed", "-1"),
    ],
)
def test_a_drive_that_cannot_be(capsys, tmp_path, option, value):
    one_sentence(capsys, ["simulate", "--out", tmp_path / "drive", option, value], option, value)
    assert not (tmp_path / "drive").exists()


def test_unknown_camera_and_topic(capsys, tmp_path, small_bag):
    one_sentence(
        capsys,
        ["replay", small_bag, "--out", tmp_path / "run", "--cameras", "nose"],
        "nose",
        "left",
    )
    one_sentence(
        capsys,
        ["replay", small_bag, "--out", tmp_path / "run", "--odometry", "/nothing"],
        "/nothing",
    )


def test_cameras_are_chosen_from_a_rig_file_too(capsys, tmp_path, small_bag):
    file = ROOT / "config/rigs/kitti_like.yaml"
    one_sentence(
        capsys,
        ["replay", small_bag, "--out", tmp_path / "run", "--rig", file, "--cameras", "nose"],
        "nose",
        "left",
    )
    rig = load_rig(file)
    assert chosen(rig, ["right"]).names == ("right",) and chosen(rig, ["right", "left"]).names == (
        "right",
        "left",
    )
    assert chosen(rig, None) is rig


def test_the_cars_frame_may_have_another_name(capsys, tmp_path, small_bag):
    assert cli.main(["info", str(small_bag), "--base-frame", "left"]) == 0
    assert "at (0.00, 0.00, 0.00)" in capsys.readouterr().out
    out = tmp_path / "out"
    for argv in (
        ["replay", small_bag, "--out", out],
        ["bench", small_bag],
        ["demo", "--bag", small_bag, "--out", out],
    ):
        one_sentence(capsys, [*argv, "--base-frame", "chassis"], "chassis", "base_link")
    out.mkdir()
    (out / "trajectory.tum").write_text("")
    one_sentence(
        capsys, ["evaluate", out, "--bag", small_bag, "--base-frame", "chassis"], "chassis"
    )
    assert bag_parameters(small_bag, out, "left") and np.allclose(
        load_rig(out / "rig.yaml").cameras[0].T_base_camera, np.eye(4)
    )


def test_odometry_is_brought_to_the_cars_frame(small_bag):
    def first(base_frame):
        with BagReader(small_bag) as reader:
            sets = frame_sets(
                reader,
                Synchronizer(("left", "right")),
                MotionTopics(f"{TRUTH}odom"),
                base_frame=base_frame,
            )
            return next(entry.odometry[0].T_odom_base for entry in sets if entry.odometry)

    with BagReader(small_bag) as reader:
        T_base_left = reader.rig().cameras[0].T_base_camera
    assert np.allclose(first("left"), first("base_link") @ T_base_left) and not np.allclose(
        T_base_left, np.eye(4)
    )


def test_a_parameter_file_is_read_as_the_node_reads_it(tmp_path):
    def read(text):
        file = tmp_path / "parameters.yaml"
        file.write_text(text)
        return parameter_values(file, [])

    def section(name, *lines):
        return f"{name}:\n  ros__parameters:\n" + "".join(f"    {line}\n" for line in lines)

    other = section("/other", "mapping: {voxel_size: 9.0}")
    ours = section(
        "/recon4d",
        "mapping.voxel_size: 0.3",
        "publish_tf: none",
        "front: {image_topic: /a}",
        "use_sim_time: true",
    )
    every = section(
        "/**",
        "mapping: {voxel_size: 0.4, radius: 70.0}",
        "qos_overrides: {/tf: {publisher: {depth: 3}}}",
    )
    assert read(other + ours + every) == {"mapping.voxel_size": 0.3, "mapping.radius": 70.0}
    assert read("car:\n  recon4d: {ros__parameters: {mapping: {radius: 50.0}}}\n") == {
        "mapping.radius": 50.0
    }
    assert read("mapping: {radius: 40.0}\n") == {"mapping.radius": 40.0}
    assert read((ROOT / "config/recon4d.yaml").read_text()).keys() == {
        info.name for info in describe(Parameters)
    }
    wrong = [
        (other, "/other"),
        ("maping: {radius: 9.0}", "maping.radius"),
        (section("/recon4d", "publsh_tf: none"), "publsh_tf"),
    ]
    for text, word in [*wrong, (section("/**", "maping: {radius: 9.0}"), "maping.radius")]:
        with pytest.raises(ParameterError, match=word):
            read(text)


def test_parameter_out_of_range_unknown_and_not_a_number(capsys, tmp_path, small_bag):
    for assignment, word in (
        ("mapping.voxel_size=-1", "at least"),
        ("mapping.voxel=1", "unknown"),
        ("mapping.voxel_size=.nan", "finite"),
        ("x", "NAME=VALUE"),
        ("mapping.voxel_size={", "mapping.voxel_size={"),
    ):
        one_sentence(
            capsys, ["replay", small_bag, "--out", tmp_path / "run", "-p", assignment], word
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda folder: (folder / "engine.yaml").unlink(), "engine.yaml"),
        (
            lambda folder: (folder / "model.onnx").write_bytes(
                (folder / "model.onnx").read_bytes()[:1000]
            ),
            "truncated",
        ),
        (
            lambda folder: (folder / "engine.yaml").write_text(
                (folder / "engine.yaml").read_text().replace("format: 1", "format: 99")
            ),
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
    one_sentence(
        capsys,
        ["replay", small_bag, "--out", tmp_path / "run", "--engine", tmp_path / "nothing"],
        "no such folder",
    )
    surround = ROOT / "engines/geometric_surround6"
    one_sentence(
        capsys, ["replay", small_bag, "--out", tmp_path / "run", "--engine", surround], "camera"
    )


def test_existing_and_unwritable_output(capsys, tmp_path, small_bag):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "run"], "run")
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    one_sentence(capsys, ["replay", small_bag, "--out", tmp_path / "file/run"], "file")
    one_sentence(capsys, ["simulate", "--out", tmp_path / "file/drive", "--seconds", "0.1"], "file")


def test_unknown_rig(capsys, tmp_path):
    one_sentence(
        capsys, ["simulate", "--out", tmp_path / "drive", "--rig", "tank"], "tank", "nuscenes_like"
    )


def test_errors_that_are_ours_are_all_one_class():
    from recon4d_ros import errors

    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(ours) >= 7 and all(issubclass(kind, Recon4dError) for kind in ours)


def test_replay_writes_the_contract_and_repeats_bit_for_bit(tmp_path, small_bag):
    environment = dict(os.environ, PYTHONHASHSEED="1")
    for name in ("one", "two"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "recon4d_ros.cli",
                "replay",
                small_bag,
                "--out",
                tmp_path / name,
                "--save-frames",
                *("--max-frames", "5"),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    grid = ("occupancy_grid.pgm", "occupancy_grid.yaml")
    for name in ("trajectory.tum", "map.ply", "objects.jsonl", *grid):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    frames = sorted(path.relative_to(one) for path in one.glob("d*/*/*.png"))
    assert frames and all((one / path).read_bytes() == (two / path).read_bytes() for path in frames)
    summary = json.loads((one / "summary.json").read_text())
    assert summary["frames"] == len((one / "trajectory.tum").read_text().splitlines()) > 0
    assert summary["latency_ms"]["engine"]["p50"] > 0 and summary["peak_rss_mib"] > 0
    assert (one / "overview.png").stat().st_size > 10_000
    scores = summary["metrics"]["grid"]
    assert scores["free"] > 1000 and scores["free_occupied"] < 0.01
    assert scores == evaluate_run(one, small_bag)["grid"]


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


def test_a_bench_times_every_stage_of_a_drive_played_to_and_fro(
    capsys, monkeypatch, tmp_path, small_bag
):
    class Steady:
        """A reconstruction of known times: 30 ms, from the hundredth set on 60, and lost at
        first."""

        def __init__(self, rig, folder, parameters):
            self.engine = SimpleNamespace(
                spec=SimpleNamespace(network="none", runtime="test"), device="CPU"
            )
            self.mapper = SimpleNamespace(size=77)
            self.stamps = []

        def step(self, frame_set):
            assert not self.stamps or frame_set.stamp_ns > self.stamps[-1], "time goes on"
            self.stamps.append(frame_set.stamp_ns)
            engine = 0.02 if len(self.stamps) <= 200 else 0.05
            pose = SimpleNamespace(
                tracking=Tracking.LOST if len(self.stamps) < 3 else Tracking.TRACKING
            )
            return SimpleNamespace(
                latency={"engine": engine, "mapping": 0.01}, memory_fill=0.5, pose=pose
            )

        def close(self):
            closed.append(len(self.stamps))

    closed: list[int] = []
    monkeypatch.setattr(bench_command, "Reconstructor", Steady)
    assert (
        cli.main(
            ["bench", str(small_bag), "--frames", "300", "--json", str(tmp_path / "bench.json")]
        )
        == 0
    )
    result = json.loads((tmp_path / "bench.json").read_text())
    assert (
        closed == [300]
        and result["frames"] == 300
        and result["rig"] == "2 x 621x188"
        and result["not_tracking"] == 2
    )
    assert result["latency_ms"]["engine"] == {"mean": 30.0, "p50": 20.0, "p95": 50.0, "max": 50.0}
    assert (result["step_ms_early"], result["step_ms_late"], result["map_voxels"]) == (
        30.0,
        60.0,
        77,
    )
    assert result["rss_mib_end"] > 50 and result["rss_mib_warm"] > 50
    assert (
        "300 frame sets, 2 not tracked" in (text := capsys.readouterr().out) and "+100.0%" in text
    )
    one_sentence(capsys, ["bench", small_bag, "--frames", "0"], "--frames")
    one_sentence(
        capsys,
        ["bench", small_bag, "--frames", "1", "--json", "/proc/bench.json"],
        "/proc/bench.json",
    )


def test_to_and_fro_goes_on_in_time_and_back_in_space():
    image = RawImage(0, "jpeg", b"")
    sets = [
        FrameSet(1000 + 100 * n, {"left": replace(image, stamp_ns=1003 + 100 * n)})
        for n in range(3)
    ]
    played = list(
        to_and_fro([replace(entry, absent={"right": str(n)}) for n, entry in enumerate(sets)], 7)
    )
    assert [entry.absent["right"] for entry in played] == list("0121012")  # which of them
    assert [entry.stamp_ns for entry in played] == [1000 + 100 * n for n in range(7)]
    assert all(entry.images["left"].stamp_ns == entry.stamp_ns + 3 for entry in played)
    assert len(list(to_and_fro(sets[:1], 4))) == 4


@pytest.mark.parametrize(
    "words", [["--rate", "nan"], ["--rate", "inf"], ["--rate", "0"], ["--timeout", "nan"]]
)
def test_the_player_refuses_a_pace_that_is_none(capsys, small_bag, words):
    pytest.importorskip("rclpy", reason="ROS 2 is not installed here")
    from recon4d_ros.ros import player

    assert player.main([str(small_bag), *words]) == 2
    assert f"{words[0]} is {words[1]}" in capsys.readouterr().err


def test_a_bags_rig_becomes_a_rig_file_to_add_masks_to(capsys, tmp_path, small_bag):
    file = tmp_path / "car.yaml"
    assert cli.main(["info", str(small_bag), "--save-rig", str(file)]) == 0
    assert f"wrote {file}" in capsys.readouterr().out
    given = load_rig_file(file)
    assert given.rig.names == ("left", "right") and given.topics["left"].image.startswith(
        "/camera/left/"
    )
    assert given.topics["left"].camera_info == "/camera/left/camera_info"
    one_sentence(capsys, ["info", small_bag, "--save-rig", file], "car.yaml", "is there already")
    assert cli.main(["info", str(file), "--save-rig", str(tmp_path / "copy.yaml")]) == 0
    assert load_rig_file(tmp_path / "copy.yaml").topics == given.topics


def test_bench_times_the_steps_of_one_engine(tmp_path: Path, capsys) -> None:
    file = tmp_path / "times.json"
    arguments = ["bench", "--step", "motion", "--steps", "2", "--threads", "1", "--json", str(file)]
    assert cli.main(arguments) == 0
    found = json.loads(file.read_text())
    assert len(found["milliseconds"]) == 2 and found["peak_rss_mib"] > 50
    assert "recon4d_motion on" in capsys.readouterr().out
    for wrong, said in (
        (["--step", "motion", "--steps", "0"], "--steps is 0"),
        (["--step", "nowhere"], "no such folder"),
        (["--step", "motion", "--runtime", "tensorrt"], "which tensorrt does not run"),
    ):
        assert cli.main(["bench", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_export_of_the_motion_network_takes_no_sizes(tmp_path: Path, capsys) -> None:
    command = ["export", "--network", "recon4d_motion", "--out", str(tmp_path / "m")]
    assert cli.main([*command, "--size", "96x160"]) == 2
    assert "--size does not apply to recon4d_motion" in capsys.readouterr().err
    assert cli.main([*command, "--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt: no such file" in capsys.readouterr().err
