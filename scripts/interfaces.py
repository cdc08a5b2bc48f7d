#!/usr/bin/env python3
"""Rewrite the tables of docs/interfaces.md between their markers from the code that they describe;
`--check` only says whether they are in step.

Runs in the ROS environment: `scripts/ros_env.sh python scripts/interfaces.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from recon4d_ros.commands.info import parameter_range
from recon4d_ros.parameters import ParameterInfo, describe
from recon4d_ros.ros.parameters import CameraParameters, all_parameters
from recon4d_ros.ros.publishers import topic_table

PAGE = Path(__file__).resolve().parents[1] / "docs/interfaces.md"


def topics() -> str:
    rows = [f"| `{topic}` | {kind} | {text} |" for topic, kind, text in topic_table()]
    return "\n".join(["| topic | type | what |", "|---|---|---|", *rows])


def parameters() -> str:
    rows = [_row(info) for info in all_parameters()] + [
        _row(info, "<camera>.") for info in describe(CameraParameters)
    ]
    return "\n".join(["| parameter | default | range | what |", "|---|---|---|---|", *rows])


def _row(info: ParameterInfo, prefix: str = "") -> str:
    default = f"`{info.default}`" if info.default not in ("", ()) else "empty"
    return (
        f"| `{prefix}{info.name}` | {default} | {parameter_range(info).replace('|', ',')} |"
        f" {info.description} |"
    )


def rewritten(text: str, tables: Iterable[tuple[str, str]]) -> str:
    """The page with each table put between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, table in tables:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"docs/interfaces.md has no markers for {name}")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def main() -> int:
    text = PAGE.read_text()
    new = rewritten(text, (("topics", topics()), ("parameters", parameters())))
    if "--check" in sys.argv:
        print(
            "docs/interfaces.md is in step with the code"
            if new == text
            else "docs/interfaces.md is out of step: run scripts/ros_env.sh python"
            " scripts/interfaces.py"
        )
        return int(new != text)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
