"""Fuzz one target, coverage-guided (atheris; pip install -r requirements/fuzz.txt):

scripts/ros_env.sh python test/fuzz/run.py bag --seconds 600

Ends with 0 where nothing was found after so many seconds of processor time, which other work on the
machine does not shorten. What was found lies in the corpus folder (default:
/tmp/recon4d_fuzz/TARGET) as crash-*, timeout-* or oom-*; mended, it goes to test/fuzz/found/TARGET.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["recon4d_ros", "rosbags", "targets"]):
    from targets import FOUND, TARGETS, attempt

MEMORY = 1024  # MiB above what the libraries take
HANG = 10.0  # seconds of processor time that one input may take
STUCK = 900  # seconds by the wall's clock: it waits for something that never comes


class Runs:
    """Runs inputs until `seconds` of processor time are over; then the process ends with 0."""

    def __init__(self, name: str, seconds: float, corpus: Path) -> None:
        self._name, self._seconds, self._corpus = name, seconds, corpus
        self._count, self._longest = 0, 0.0

    def __call__(self, data: bytes) -> None:
        began = time.process_time()
        attempt(TARGETS[self._name], data)
        now = time.process_time()
        self._count += 1
        self._longest = max(self._longest, now - began)
        if now - began > HANG:
            raise TimeoutError(f"{now - began:.1f} s of processor time for {len(data)} bytes")
        if now > self._seconds:
            print(
                f"{self._name}: {self._count} inputs in {now:.0f} s of processor time, the longest"
                f" {self._longest:.2f} s; {len(list((self._corpus / 'inputs').iterdir()))} kept",
                flush=True,
            )
            os._exit(0)  # atheris has no other way out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=600, help="of processor time")
    parser.add_argument("--corpus", type=Path, default=Path("/tmp/recon4d_fuzz"))
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    corpus: Path = arguments.corpus / arguments.target
    (corpus / "inputs").mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(target.seeds()):
        (corpus / f"inputs/seed{index}").write_bytes(seed)
    for index, path in enumerate(sorted((FOUND / arguments.target).glob("*"))):
        (corpus / f"inputs/found{index}").write_bytes(path.read_bytes())
    status = Path("/proc/self/status").read_text()
    taken = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    options = [
        f"-rss_limit_mb={taken // 1024 + MEMORY}",
        f"-timeout={STUCK}",
        f"-report_slow_units={STUCK}",  # they are by the wall's clock
        "-max_len=65536",
        "-handle_int=0",  # libFuzzer took the end of some runs for an interrupt (exit code 72)
        "-handle_term=0",
        f"-artifact_prefix={corpus}/",
        str(corpus / "inputs"),
    ]
    atheris.Setup([sys.argv[0], *options], Runs(arguments.target, arguments.seconds, corpus))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
