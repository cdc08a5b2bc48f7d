"""Python package recon4d_ros, and beside it the interface package recon4d_msgs (msg/, built by
CMake into the same prefix).

An ament_python package cannot generate messages by itself, and two packages would need two builds,
so the install steps that colcon and pip call are extended by one: run CMake on msg/.
"""

import os
import subprocess
import sys

# isort: skip  (setuptools' own, which it must provide first)
from distutils.command.install_data import install_data as _install_data
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.develop import develop as _develop

NAME = "recon4d_ros"
HERE = Path(__file__).resolve().parent  # colcon --symlink-install runs a symlink to this file


def cmake_environment() -> dict[str, str]:
    """Environment for CMake, without the sitecustomize that colcon and pip put on PYTHONPATH (both
    change what Python sees)."""
    env = dict(os.environ)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    env["PYTHONPATH"] = os.pathsep.join(
        path for path in paths if not (Path(path) / "sitecustomize.py").exists()
    )
    for name in ("PYTHONNOUSERSITE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DESTDIR"):
        env.pop(name, None)
    root = getattr(sys, "real_prefix", sys.prefix)  # pip's build environment hides the real one
    if (
        Path(root) / "share/ament_index"
    ).is_dir():  # ROS from PyPI: the virtual environment itself is an ament prefix
        for variable in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
            parts = [part for part in env.get(variable, "").split(os.pathsep) if part]
            env[variable] = os.pathsep.join(parts if root in parts else [*parts, root])
    return env


def build_interfaces(build_dir: Path, prefix: Path) -> list[str]:
    """Generate, compile and install recon4d_msgs into `prefix`; returns the installed files."""
    build_dir, prefix = build_dir.resolve(), prefix.resolve()
    build_dir.mkdir(parents=True, exist_ok=True)
    env = cmake_environment()
    site_packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    commands = (
        [
            "cmake",
            "-S",
            str(HERE / "msg"),
            "-B",
            str(build_dir),
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPYTHON_INSTALL_DIR={site_packages}",
        ],
        ["cmake", "--build", str(build_dir), "--parallel", str(os.cpu_count() or 1)],
        ["cmake", "--install", str(build_dir)],
    )
    for command in commands:
        subprocess.run(command, check=True, env=env)
    return (build_dir / "install_manifest.txt").read_text().splitlines()


class install_data(_install_data):
    """Data files, then the interface package beside them: `colcon build`, `pip install`, wheels."""

    def run(self):
        super().run()
        build = self.get_finalized_command("build")
        self.outfiles += build_interfaces(
            Path(build.build_base) / "recon4d_msgs", Path(self.install_dir)
        )


class develop(_develop):
    """`colcon build --symlink-install`."""

    def run(self):
        super().run()
        if not self.uninstall:
            install = self.get_finalized_command("install")
            build = self.get_finalized_command("build")
            build_interfaces(Path(build.build_base) / "recon4d_msgs", Path(install.install_data))


class BinaryDistribution(Distribution):
    """A wheel of this package holds shared libraries, so it is tagged for this Python and
    platform."""

    def has_ext_modules(self):
        return True


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """data_files of a folder and all below it, installed under share/recon4d_ros with the same
    layout."""
    files = sorted(
        path.relative_to(HERE)
        for path in (HERE / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    parents = sorted({path.parent for path in files})
    return [
        (f"share/{NAME}/{parent}", [str(path) for path in files if path.parent == parent])
        for parent in parents
    ]


setup(
    name=NAME,
    version="0.1.0",
    description="Online 4D reconstruction on the vehicle",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(str(HERE), include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed", "export/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *tree("hook"),
        *tree("launch"),
        *tree("config"),
        *tree("engines"),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    extras_require={
        "test": ["pytest"],  # `colcon test` runs nothing without it
        "viewer": ["rerun-sdk>=0.41,<0.42"],  # `recon4d view`
    },
    distclass=BinaryDistribution,
    cmdclass={"install_data": install_data, "develop": develop},
    entry_points={
        "console_scripts": [
            f"recon4d = {NAME}.cli:main",
            f"recon4d_node = {NAME}.ros.node:main",
            f"recon4d_player = {NAME}.ros.player:main",
            f"recon4d_recorder = {NAME}.ros.recorder:main",
        ]
    },
)
