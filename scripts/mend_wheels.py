"""Make the ROS 2 wheels' CMake files fit this machine: `python scripts/mend_wheels.py`, with the
virtual environment's Python.

The wheels were built elsewhere, and the exported CMake targets of their messages still name that
machine's NumPy and Python headers (/opt/python/cp311-cp311/...), so that nothing that depends on
those messages can be compiled. Doing it twice changes nothing.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

BUILDER = re.compile(
    r"/opt/python/cp3\d+-cp3\d+/(?P<kind>include/python3\.\d+|lib/python3\.\d+/site-packages)"
)


def mend(prefix: Path, include: str, site_packages: str) -> int:
    """Rewrite the foreign paths in every .cmake file under prefix/share; returns how many files
    changed."""
    changed = 0
    for path in sorted((prefix / "share").rglob("*.cmake")):
        text = path.read_text()
        new = BUILDER.sub(
            lambda match: include if match["kind"].startswith("include") else site_packages, text
        )
        if new != text:
            path.write_text(new)
            changed += 1
    return changed


def main() -> int:
    include = sysconfig.get_path(
        "include", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}
    )
    count = mend(Path(sys.prefix), include, sysconfig.get_path("purelib"))
    print(f"mended {count} CMake files of the ROS 2 wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
