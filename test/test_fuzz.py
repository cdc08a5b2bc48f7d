"""Untrusted bytes: the fuzz targets' seeds, what fuzzing found once, and some hundred inputs broken
at random, the same every time. Coverage-guided runs are test/fuzz/run.py's, and test-full's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FOLDER))
from targets import FOUND, TARGETS, attempt  # noqa: E402


def broken(seed: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut out, doubled, or numbers set to their extremes."""
    data = bytearray(seed)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(0, max(len(data), 1)))
        long = int(random.integers(1, 40))
        how = int(random.integers(0, 5))
        if how == 0 and data:
            data[at] = int(random.integers(0, 256))
        elif how == 1:
            del data[at : at + long]
        elif how == 2:
            data[at:at] = data[at : at + long]
        elif how == 3:
            data[at : at + 4] = bytes([(0, 255, 127, 1)[long % 4]]) * 4
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", list(TARGETS))
def test_untrusted_bytes_give_one_sentence(name: str) -> None:
    if name == "checkpoint":
        pytest.importorskip("torch")
    target, random = TARGETS[name], np.random.default_rng(0)
    seeds = list(target.seeds())
    target.run(seeds[0])  # a good one raises nothing
    for seed in seeds:
        attempt(target, seed)
    for path in sorted((FOUND / name).glob("*")):
        attempt(target, path.read_bytes())
    for index in range(120):
        attempt(target, broken(seeds[index % len(seeds)], random))


@pytest.mark.full
@pytest.mark.parametrize("name", list(TARGETS))
def test_ten_seconds_of_fuzzing(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install -r requirements/fuzz.txt")
    argv = [sys.executable, FOLDER / "run.py", name, "--seconds", "10", "--corpus", tmp_path]
    # by a shell of its own: Linux hands the peak memory of who starts a program on to it, and the
    # fuzzer takes what 3 GB of other tests left for the input's
    between = ["sh", "-c", '"$@"; exit $?', "sh"]
    done = subprocess.run([*between, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
