"""The order of the rooms: code imports from its own room and from lower ones, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "recon4d_ros"
# Lowest first. Rooms that stand on one level do not know each other.
LEVELS = (
    ("errors",),
    ("types", "geometry", "parameters", "parallel", "tally", "paths", "depth_png", "yaml_text"),
    ("cameras", "alignment", "bev"),
    ("messages",),
    ("bags", "sync", "networks", "engine", "egomotion", "mapping"),
    ("dynamics", "grids", "localization"),
    ("reconstructor", "perception", "sim", "evaluation"),
    ("overview", "viewer"),
    ("runs",),
    ("export", "training"),
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


NETWORKS = sorted((PACKAGE / "networks").glob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Those of its own room, wherever in the file they are imported."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "recon4d_ros.networks":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            head, _, name = node.module.partition("recon4d_ros.networks.")
            modules |= {name} if not head and name else set()
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            start = "recon4d_ros.networks."
            modules |= {name.removeprefix(start) for name in names if name.startswith(start)}
    return modules


def test_networks_do_not_import_in_circles() -> None:
    """A network knows nothing of its step, which knows the network."""
    needs = {path.stem: imported_modules(path) for path in NETWORKS}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs, f"networks import each other: {', '.join(sorted(needs))}"


def test_no_network_imports_its_step() -> None:
    for path in NETWORKS:
        steps = {name for name in imported_modules(path) if name.endswith("_step")}
        assert not steps, f"networks/{path.name} imports {', '.join(sorted(steps))}"
