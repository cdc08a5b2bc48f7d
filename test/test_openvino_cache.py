"""A second start reads what OpenVINO compiled in the first one, and computes the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
ov = pytest.importorskip("openvino")

from tiny_engine import SIZE, tiny_engine  # noqa: E402

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros.engine import openvino_cache  # noqa: E402


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts an engine and steps it twice; gives what comes out, and whether it was compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = tiny_engine(tmp_path / "tiny")
    compiled = []

    class Core(ov.Core):
        def compile_model(self, *given):
            compiled.append(given[0])
            return super().compile_model(*given)

    monkeypatch.setattr(ov, "Core", Core)

    def start(threads: int = 0) -> tuple[list[np.ndarray], bool]:
        compiled.clear()
        runtime = engines.start_runtime(tmp_path / "tiny", spec, "openvino", threads)
        images = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(1, *SIZE, 1)
        depths = []
        for _ in range(2):
            outputs = {
                name: np.empty((1, *SIZE), np.float32) for name in ("depth", "sigma", "confidence")
            }
            outputs["color"] = np.empty((1, *SIZE, 1), np.uint8)
            runtime.run({"images": images}, outputs)
            depths.append(outputs["depth"])
        runtime.close()
        return depths, bool(compiled)

    return start


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/recon4d_ros/openvino").iterdir())


def test_the_second_start_reads_what_the_first_one_compiled(started, tmp_path) -> None:
    first, compiled = started()
    assert compiled and len(files(tmp_path)) == 1
    second, compiled = started()
    assert not compiled
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != first[1]).all(), "it remembers"
    _, compiled = started(threads=1)
    assert compiled, "another number of threads is another model"


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, None])
def test_a_damaged_file_is_made_anew(started, tmp_path, damage) -> None:
    first, _ = started()
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?" if damage is None else damage)
    again, compiled = started()
    assert compiled and file.read_bytes()[32:] != damage
    np.testing.assert_array_equal(first, again)
    assert not started()[1]


def test_a_file_of_another_openvino_is_made_anew(started, tmp_path, monkeypatch) -> None:
    started()
    (file,) = files(tmp_path)
    openvino_cache._write(file, b"not what OpenVINO reads")
    assert started()[1] and not started()[1]


def test_it_starts_where_nothing_can_be_kept(started, tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert started()[1] and started()[1]
    monkeypatch.setattr(
        openvino_cache.paths,
        "cache",
        lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")),
    )
    assert started()[1]


def test_the_folder_keeps_what_was_used_last(tmp_path, monkeypatch) -> None:
    size = 32 + 1  # a checksum, and a byte
    monkeypatch.setattr(openvino_cache, "KEPT", 3 * size + 5)
    for index in range(5):
        file = tmp_path / f"{index}.blob"
        openvino_cache._write(file, b"x")
        os.utime(file, (index, index))
        if index == 3:
            assert openvino_cache._read(tmp_path / "1.blob") == b"x"
    assert {path.name for path in tmp_path.iterdir()} == {"1.blob", "3.blob", "4.blob"}
    openvino_cache._write(tmp_path / "5.blob", b"x" * (size + 1))  # takes the room of two
    assert {path.name for path in tmp_path.iterdir()} == {"1.blob", "5.blob"}
    openvino_cache._write(tmp_path / "6.blob", b"x" * 9 * size)
    assert {path.name for path in tmp_path.iterdir()} == {"6.blob"}, "the new one stays"
