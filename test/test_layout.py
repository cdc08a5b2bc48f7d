"""The order of the rooms: code imports from its own room and from lower ones, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "recon4d_ros"
# Lowest first. Rooms that stand on one level do not know each other.
LEVELS = (
    ("errors",),
    ("types", "geometry", "parameters", "parallel", "tally", "paths", "depth_png"),
    ("cameras", "alignment", "bev"),
    ("messages",),
    ("bags", "sync", "networks", "engine", "egomotion", "dynamics", "mapping"),
    ("reconstructor", "perception", "sim", "evaluation"),
    ("overview",),
    ("runs",),
    ("export",),
    ("ros",),
    ("commands",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "recon4d_ros":
            names = [f"recon4d_ros.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        rooms |= {name.split(".")[1] for name in names if name.startswith("recon4d_ros.")}
    return rooms


def test_every_room_has_its_level() -> None:
    assert {room_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_reaches_up(path: Path) -> None:
    room = room_of(path)
    up = {other for other in imported_rooms(path) - {room} if LEVEL[other] >= LEVEL[room]}
    assert not up, f"{room} imports {', '.join(sorted(up))}"
