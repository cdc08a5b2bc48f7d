"""Fuzz one target, coverage-guided (atheris; pip install -r requirements/fuzz.txt):

scripts/ros_env.sh python test/fuzz/run.py bag --seconds 600

Ends with 0 where nothing was found. What was found lies in the corpus folder (default:
/tmp/recon4d_fuzz/TARGET) as crash-*, timeout-* or oom-*; mended, it goes to test/fuzz/found/TARGET.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["recon4d_ros", "rosbags", "targets"]):
    from targets import FOUND, TARGETS, attempt

MEMORY = 1024  # MiB above what the libraries take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
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
        f"-max_total_time={arguments.seconds}",
        f"-rss_limit_mb={taken // 1024 + MEMORY}",
        "-timeout=10",
        "-max_len=65536",
        "-print_final_stats=1",
        "-handle_int=0",  # libFuzzer took the end of some runs for an interrupt (exit code 72)
        "-handle_term=0",
        f"-artifact_prefix={corpus}/",
        str(corpus / "inputs"),
    ]
    atheris.Setup([sys.argv[0], *options], lambda data: attempt(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
