"""Copy each stand-in whose real package is missing into site-packages: `python pip_ros/install.py`,
with the environment's Python."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("cv_bridge", "message_filters", "sensor_msgs_py", "tf2_ros", "tf_transformations")


def is_missing(module: str, site_packages: Path) -> bool:
    """True where nothing but (an older copy of) our stand-in answers to this name."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return True
    path = Path(spec.origin)
    return path == site_packages / module / "__init__.py" and "STAND_IN = True" in path.read_text()


def main() -> int:
    sys.path[:] = [
        entry for entry in sys.path if Path(entry).resolve() != HERE
    ]  # Python puts a script's own folder there
    site_packages = Path(sysconfig.get_paths()["purelib"])
    for module in MODULES:
        if not is_missing(module, site_packages):
            print(f"{module}: the real one is there")
            continue
        shutil.rmtree(site_packages / module, ignore_errors=True)
        shutil.copytree(
            HERE / module, site_packages / module, ignore=shutil.ignore_patterns("__pycache__")
        )
        print(f"{module}: stand-in installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
