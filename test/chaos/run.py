"""Drive the running graph through faults, and say what became of each:

scripts/ros_env.sh python test/chaos/run.py --out /tmp/chaos

Driver, node and recorder are processes over DDS. Ends with 1 where a bar was missed
(docs/faults.md).
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
for folder in (HERE.parents[2], HERE.parents[1], HERE.parent):
    sys.path.insert(0, str(folder))

from campaign import FRAMES, Campaign, Row, resources, table  # noqa: E402
from faults import FAULTS  # noqa: E402


def campaign(
    folder: Path, names: list[str], seed: int, frames: int = FRAMES
) -> tuple[list[Row], list[str]]:
    """The faults in this order. frames: of the way to and fro, each to be rendered once. Rows, and
    what else is to be said."""
    rows, notes = [], []
    began = time.monotonic()
    one = Campaign(folder, seed, frames)
    try:
        one.wait_for_node()
        first = resources(one.node.pid)
        for name in names:
            one.ready()
            row = one.run(FAULTS[name])
            rows.append(row)
            note = one.notes.get(name, "")
            numbers = (
                f"{row.recovery} s, {row.error} m of {row.way:.1f}, lost {row.lost}, {row.drops}"
            )
            print(f"{name}: {'; '.join(row.missed) or 'ok'} {note} [{numbers}]", flush=True)
        notes.append(f"the node at the start {first}, at the end {resources(one.node.pid)}")
        notes += [f"{name}: {note}" for name, note in one.notes.items()]
    finally:
        codes = one.close()
    notes.append(f"exit codes: {codes}; {time.monotonic() - began:.0f} s in all")
    if any(codes.values()):
        rows[-1].missed.append(f"exit codes {codes}")
    return rows, notes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order and their chance")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="these, in this order")
    parser.add_argument("--groups", nargs="+", default=[], help="of the catalogue")
    parser.add_argument("--list", action="store_true", help="the catalogue, and end")
    parser.add_argument(
        "--out", type=Path, help="folder for logs and the table (default: temporary)"
    )
    arguments = parser.parse_args()
    names = arguments.only or [
        name
        for name, fault in FAULTS.items()
        if not arguments.groups or fault.group in arguments.groups
    ]
    if unknown := set(names) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows those that there are")
    if arguments.list:
        for name in names:
            print(f"{FAULTS[name].group:12s} {name:22s} {FAULTS[name].words}")
        return 0
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="recon4d_chaos_"))
    folder = folder / datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
    folder.mkdir(parents=True)
    rows, notes = campaign(folder, names, arguments.seed)
    text = table(rows) + "\n\n" + "\n".join(notes) + "\n"
    (folder / "table.md").write_text(text)
    print(text)
    missed = [row.fault.name for row in rows if row.missed]
    print(f"{len(rows)} faults, {len(missed)} with a bar missed {missed}; logs in {folder}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
