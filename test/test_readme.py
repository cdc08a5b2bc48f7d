"""The tables of docs/interfaces.md say what the code says; the README's make targets, files and
links exist, and so does all that its ROS commands name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_generated_from_the_code():
    pytest.importorskip("rclpy", reason="the topics' types need the ROS environment")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/interfaces.py", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_and_pictures_exist():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), (
                    f"{document.name} points to {target}, which is not there"
                )


def ros_commands() -> list[tuple[str, str]]:
    """(document, command) of every `ros2 launch recon4d_ros ...` and recon4d_node that README and
    docs print."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pattern = (
        r"(ros2 launch recon4d_ros \S+\.launch\.py[^`\n#]*|recon4d_node --ros-args[^`\n#]*|ros2 run"
        r" recon4d_ros recon4d_node[^`\n#]*)"
    )
    return [
        (document.name, command)
        for document in documents
        for command in re.findall(pattern, document.read_text())
    ]


def launch_arguments(name: str) -> set[str]:
    tree = ast.parse((ROOT / "launch" / name).read_text())
    value = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ARGUMENTS"
    )
    return {argument for argument, _, _ in ast.literal_eval(value)}


@pytest.mark.parametrize("document, command", ros_commands())
def test_ros_commands_run_as_printed(document, command):
    """Launch files and their arguments exist, and the node is told of its cameras."""
    given = set(re.findall(r"([a-z_]+):=", command))
    if "ros2 launch" in command:
        name = command.split()[3]
        assert given <= launch_arguments(name)
        assert name != "recon4d.launch.py" or given & {"rig", "cameras", "parameters"}
        assert name != "replay.launch.py" or "bag" in given
    else:
        assert given & {"rig_file", "cameras"} or "--params-file" in command, (
            f"{document}: {command} ends with `cameras is empty`"
        )


def test_every_make_target_named_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named and named <= targets
