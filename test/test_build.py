"""The package as it is built and installed: one colcon build, what it installs, what its parts may
import."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ON_WHEELS = (Path(sys.prefix) / "share/ament_index").is_dir()
EXECUTABLES = ("recon4d", "recon4d_node", "recon4d_player", "recon4d_recorder")
WITH_TORCH = ("recon4d_ros.networks", "recon4d_ros.export", "recon4d_ros.training")
WITH_GPU = (
    "recon4d_ros.engine.torch",
    "recon4d_ros.engine.tensorrt",
    "recon4d_ros.engine.cuda",
)  # packages that only a GPU machine has
WITH_ROS = ("recon4d_ros.ros",)


def in_ros(
    *command: str, install: Path, cwd: Path, **variables: str
) -> subprocess.CompletedProcess:
    """Run a command in the ROS environment on top of one colcon prefix (on a ROS 2 machine: in the
    environment as it is)."""
    env = os.environ | {"RECON4D_VENV": sys.prefix, "RECON4D_INSTALL": str(install)} | variables
    prefix = [str(ROOT / "scripts/ros_env.sh")] if ON_WHEELS else []
    return subprocess.run(
        [*prefix, *command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def copy_repository(target: Path) -> None:
    """What a clone would hold, uncommitted work included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        shutil.copytree(
            ROOT,
            target,
            ignore=shutil.ignore_patterns(".venv", "build", "install", "log", "demo", ".git"),
        )
        return
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A workspace with a copy of the repository under src/, built by one plain `colcon build`."""
    if (
        shutil.which("colcon") is None
        or shutil.which("cmake") is None
        or importlib.util.find_spec("rclpy") is None
    ):
        pytest.skip("ROS 2, colcon or cmake is not in this environment: run `make test`")
    path = tmp_path_factory.mktemp("workspace")
    copy_repository(path / "src/recon4d_ros")
    done = in_ros("colcon", "build", install=path / "nothing", cwd=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def installed(workspace: Path, script: str) -> subprocess.CompletedProcess:
    """Run a shell script with the workspace sourced on top of what `make` built (which has tf2_msgs
    where the wheels have none)."""
    return in_ros(
        "bash",
        "-c",
        f"source install/local_setup.bash && {script}",
        install=ROOT / "install",
        cwd=workspace,
    )


@pytest.mark.full  # `make setup` has just built the same
def test_messages_and_node_come_from_the_workspace(workspace: Path) -> None:
    code = textwrap.dedent("""
        import sys
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "torch":
                    raise ImportError("the runtime must not need torch")
        sys.meta_path.insert(0, NoTorch())
        from rclpy.serialization import deserialize_message, serialize_message
        import recon4d_msgs.msg
        import recon4d_ros.ros.node, recon4d_ros.ros.player, recon4d_ros.ros.recorder
        sent = recon4d_msgs.msg.DynamicObjectArray(objects=[recon4d_msgs.msg.DynamicObject(id=7)])
        sent.objects[0].twist.twist.linear.x = 3.5
        assert deserialize_message(serialize_message(sent), recon4d_msgs.msg.DynamicObjectArray) == sent
        from recon4d_msgs.srv import SaveMap
        for kind in (recon4d_msgs.msg.MapUpdate, recon4d_msgs.msg.Status, SaveMap.Request, SaveMap.Response):
            assert deserialize_message(serialize_message(kind()), kind) == kind()
        print(recon4d_msgs.__file__)
        print(recon4d_ros.ros.node.__file__)
    """)  # noqa: E501
    done = installed(workspace, f"python3 -c '{code}'")
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split()
    assert len(paths) == 2
    for path in paths:
        assert Path(path).is_relative_to(workspace / "install"), path


@pytest.mark.full  # `make setup` has just built the same
def test_share_holds_launch_config_and_engines(workspace: Path) -> None:
    share = workspace / "install/recon4d_ros/share/recon4d_ros"
    source = workspace / "src/recon4d_ros"
    expected = [
        path
        for folder in ("launch", "config", "engines")
        for path in (source / folder).rglob("*")
        if path.is_file()
    ]
    assert {path.relative_to(source).parts[0] for path in expected} == {
        "launch",
        "config",
        "engines",
    }
    for path in expected:
        assert (share / path.relative_to(source)).read_bytes() == path.read_bytes()


@pytest.mark.full  # `make setup` has just built the same
def test_executables_are_on_path_and_where_ros2_run_looks(workspace: Path) -> None:
    folder = workspace / "install/recon4d_ros/lib/recon4d_ros"
    done = installed(workspace, f"which {' '.join(EXECUTABLES)} && recon4d --help")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[: len(EXECUTABLES)] == [str(folder / name) for name in EXECUTABLES]
    assert all(
        command in done.stdout
        for command in ("demo", "replay", "simulate", "export", "bench", "evaluate", "info")
    )


@pytest.mark.parametrize("version", ["3.10.13", "3.13.0"])
def test_an_unsupported_python_gets_one_sentence(tmp_path: Path, version: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    fake = tmp_path / "python"
    fields = (*map(int, version.split(".")), "final", 0)
    pretend = (
        f"import sys, runpy; sys.version_info = {fields}; runpy.run_path(sys.argv[1],"
        " run_name='__main__')"
    )
    fake.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
exec "{sys.executable}" -c "{pretend}" "$@"
""")
    fake.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", f"PYTHON={fake}", "demo"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1, done.stderr
    assert f"Python {version}" in said[0] and "3.11 and 3.12" in said[0] and "PYTHON=" in said[0]
    assert not (tmp_path / ".venv").exists()


def modules() -> list[str]:
    return sorted(
        module.name for module in pkgutil.walk_packages([str(ROOT / "recon4d_ros")], "recon4d_ros.")
    )


def below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def test_the_core_imports_without_torch_and_without_ros() -> None:
    core = [name for name in modules() if not below(name, (*WITH_TORCH, *WITH_GPU, *WITH_ROS))]
    assert "recon4d_ros.reconstructor" in core
    code = textwrap.dedent(f"""
        import importlib, sys
        blocked = {{"torch", "onnx", "onnxscript", "rclpy", "tf2_ros", "cv_bridge", "message_filters", "launch"}}
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                top = name.split(".")[0]
                if top in blocked or top.endswith("_msgs"):
                    raise ImportError(name + " is not the core's to import")
        sys.meta_path.insert(0, Blocked())
        for name in {core!r}:
            importlib.import_module(name)
    """)  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_only_ros_imports_ros() -> None:
    """Also inside functions, where an import would only show at run time."""
    wrong = []
    for path in sorted((ROOT / "recon4d_ros").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if below(name, WITH_ROS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            wrong += [
                f"{name}: {found}"
                for found in names
                if found.split(".")[0] in ("rclpy", "tf2_ros", "cv_bridge", "message_filters")
            ]
    assert not wrong
