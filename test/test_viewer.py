"""The viewer: what a recording holds, what is refused, and that nobody else can look."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rrd import rows

from recon4d_ros.cli import main
from recon4d_ros.errors import OutputError, Recon4dError
from recon4d_ros.runs.files import read_tracking
from recon4d_ros.types import Tracking
from recon4d_ros.viewer.sinks import Sinks, view_to
from recon4d_ros.viewer.view_log import ViewLog


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 65000)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, small_bag) -> Path:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    path = tmp_path_factory.mktemp("view") / "drive.rrd"
    assert main(["view", str(small_bag), "--save", str(path)]) == 0
    return path


def test_a_drive_is_on_the_timeline(recorded) -> None:
    """Eight frame sets of two cameras."""
    counts = rows(recorded)
    for camera in ("left", "right"):
        for what in ("image", "depth", "dynamic_mask"):
            assert counts[f"/world/car/{camera}/{what}"] == 8
        assert counts[f"/world/car/{camera}"] == 2  # pose and lens
    for entity in ("/world/car", "/world/objects", "/world/objects/velocity", "/latency/engine"):
        assert counts[entity] == 8, entity
    assert counts["/speed"] == 8 and counts["/latency/grids"] == 8
    assert 1 <= counts["/tracking"] <= 3  # it starts, and it tracks
    assert counts["/world/map"] == 2 and counts["/world/trajectory"] >= 1
    assert 1 <= counts["/world/local_grid"] <= 8
    assert counts["/summary"] == 1


def test_stamps_and_poses_come_back(recorded) -> None:
    reader = pytest.importorskip("rerun.chunk").RrdReader(str(recorded))
    stamps, travelled = [], []
    for chunk in reader.store().stream().to_chunks():
        if chunk.entity_path == "/world/car":
            batch = chunk.to_record_batch()
            stamps += batch["time"].cast("int64").to_pylist()
            place = batch["Transform3D:translation"].to_pylist()
            travelled += [one[0] for one in place]
    assert len(stamps) == 8 and np.allclose(np.diff(sorted(stamps)), 1e8, atol=1e6)
    assert 1.0 < np.linalg.norm(np.subtract(travelled[-1], travelled[0])) < 20.0


def test_a_runs_folder_is_shown_as_it_is(tmp_path, small_bag) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    run, path = tmp_path / "run", tmp_path / "deep/er/run.rrd"
    arguments = ["--out", str(run), "--save-frames", "--max-frames", "3"]
    assert main(["replay", str(small_bag), *arguments]) == 0
    assert main(["view", str(run), "--save", str(path)]) == 0
    counts = rows(path)
    assert counts["/world/car"] == counts["/world/car/left/depth"] == 3
    assert counts["/world/car/left/image"] == counts["/world/car/right/image"] == 3
    states = read_tracking(run / "tracking.jsonl")
    assert next(state for state, _ in states.values()) is Tracking.STARTING
    assert counts["/tracking"] == len(states) >= 2
    assert counts["/world/map"] == counts["/world/occupancy_grid"] == counts["/summary"] == 1


def test_a_run_whose_bag_is_gone_is_shown_without_images(tmp_path, small_bag, capsys) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    bag, run = tmp_path / "bag", tmp_path / "run"
    shutil.copytree(small_bag, bag)
    assert main(["replay", str(bag), "--out", str(run), "--max-frames", "2"]) == 0
    shutil.rmtree(bag)
    capsys.readouterr()
    assert main(["view", str(run), "--save", str(tmp_path / "run.rrd")]) == 0
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "no images are shown: " in said and str(bag) in said
    counts = rows(tmp_path / "run.rrd")
    assert counts["/world/car"] == 2 and not counts["/world/car/left/image"]


def test_what_is_damaged_in_a_run_is_one_sentence(tmp_path) -> None:
    for text in ("{", '{"stamp_ns": 1, "tracking": "happy", "reason": ""}', "[]"):
        (tmp_path / "tracking.jsonl").write_text(text)
        with pytest.raises(Recon4dError, match=r"tracking.jsonl, line 1 is damaged"):
            read_tracking(tmp_path / "tracking.jsonl")
    assert read_tracking(tmp_path / "none") == {}


def test_the_page_is_served_here_alone() -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    port = free_port()
    view = view_to(Sinks(serve=True, port=port), "test")
    try:
        assert view.url.startswith(f"http://127.0.0.1:{port}/?url=rerun%2Bhttp%3A%2F%2F127.0.0.1")
        listening = [
            line.split()[1]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        ]
        ours = [one for one in listening if int(one.split(":")[1], 16) in (port, port + 1)]
        assert len(ours) == 2 and all(one.startswith("0100007F:") for one in ours)
        with socket.create_connection(("127.0.0.1", port), 5.0) as page:
            page.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"200" in page.recv(100).splitlines()[0]
        with pytest.raises(Recon4dError, match=r"cannot be served on 127\.0\.0\.1"):
            view_to(Sinks(serve=True, port=port), "second")
    finally:
        view.close()
    time.sleep(0.1)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1.0)


def screenshot(url: str, folder: Path) -> NDArray[np.uint8]:
    """[900, 1400, 3] BGR: a page in headless Chromium, drawn by its software rasterizer. Its clock
    runs as fast as it can, so seconds of it pass while the page loads."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        pytest.skip("Chromium is not installed here")
    options = (
        *("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"),
        *("--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--hide-scrollbars"),
        *("--window-size=1400,900", "--virtual-time-budget=150000"),
        *(f"--user-data-dir={folder / 'browser'}", f"--screenshot={folder / 'page.png'}"),
    )
    subprocess.run(
        [browser, *options, f"{url}&renderer=webgl"], check=True, timeout=120, capture_output=True
    )
    page = cv2.imread(str(folder / "page.png"))
    assert page is not None and page.shape == (900, 1400, 3)
    return page


@pytest.mark.full
def test_a_browser_shows_what_was_logged(tmp_path) -> None:
    """A magenta image to the right, a map of cyan points to the left."""
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    view = view_to(Sinks(serve=True, port=free_port()), "test")
    try:
        log = ViewLog(view.recording, ("left",))
        log.at(10**18, 0)
        k = np.array([[80.0, 0, 80], [0, 80, 60], [0, 0, 1]])
        log.calibrate_camera("left", k, (120, 160), None)
        log.camera("left", np.full((120, 160, 3), (255, 0, 255), np.uint8))
        xyz = np.random.default_rng(0).uniform(-5, 5, (20_000, 3)).astype(np.float32)
        log.add_map(xyz, np.full((20_000, 3), (0, 255, 255), np.uint8))
        view.flush()
        blue, green, red = screenshot(view.url, tmp_path).astype(int).transpose(2, 0, 1)
    finally:
        view.close()
    magenta = (red > 200) & (blue > 200) & (green < 60)
    cyan = (green > 120) & (blue > 120) & (red < 60)
    assert magenta[:, 700:].sum() > 20_000 and magenta[:, :690].sum() < 10_000
    assert cyan[:, :690].sum() > 5_000 and cyan[:, 700:].sum() < 1000


def test_what_cannot_be_written_is_one_sentence() -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed here (make viewer)")
    with pytest.raises(OutputError, match=r"cannot write view /proc/none/a.rrd: "):
        view_to(Sinks(file=Path("/proc/none/a.rrd")), "test")


# ---- where it is not installed, too


def test_the_core_does_not_need_it() -> None:
    """Nothing but the viewer imports rerun, and that only when it opens."""
    program = "import sys, recon4d_ros.commands.view; sys.exit('rerun' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_it_the_command_says_what_to_do(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", str(tmp_path), "--save", str(tmp_path / "a.rrd")]) == 2
    said = capsys.readouterr().err
    assert "the viewer needs the package rerun-sdk, which is not installed here" in said
    assert "make viewer" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "a.rrd").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "expected a bag, a run's folder, or --live, and one of them"),
        (["somewhere", "--live"], "expected a bag, a run's folder, or --live, and one of them"),
        (["somewhere", "--save", "a.bag"], "expected a name that ends in .rrd"),
        (["somewhere", "--port", "70000"], "--port is 70000: expected 1 to 65534"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(arguments, sentence, capsys) -> None:
    assert main(["view", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
