# ruff: noqa: UP032
"""Whether `make` can set up here: one sentence and exit code 1 where it cannot. Also runs on the
Pythons that are too old for the rest."""

import os
import sys

SUPPORTED = ((3, 11), (3, 12))


def problem(environment):
    """The sentence, or an empty string. environment: prefix of the virtual environment that is
    there already, or None."""
    version = "{}.{}.{}".format(*sys.version_info[:3])
    if sys.version_info[:2] not in SUPPORTED:
        return (
            "Python {} ({}) is not supported: the ROS 2 wheels are made for Python 3.11 and 3.12; "
            "install one of these and name it, for example `make PYTHON=python3.12 demo`."
        ).format(version, sys.executable)

    if environment:
        with open(os.path.join(environment, "pyvenv.cfg")) as lines:
            made_with = dict(line.strip().split(" = ", 1) for line in lines if " = " in line)[
                "version"
            ]
        if made_with.split(".")[:2] != version.split(".")[:2]:
            return (
                "{} was made with Python {}, not {}: run `make clean` first to change it.".format(
                    environment, made_with, version
                )
            )
        return ""

    import importlib.util
    import shutil
    import sysconfig

    python = "python{}.{}".format(*sys.version_info[:2])
    missing = []  # what, Debian package
    if not shutil.which("cmake"):
        missing.append(("cmake", "cmake"))
    if not (shutil.which("c++") and shutil.which("cc")):
        missing.append(("a C++ compiler", "g++"))
    if not (shutil.which("make") or shutil.which("gmake")):
        missing.append(("make", "make"))
    if importlib.util.find_spec("ensurepip") is None:
        missing.append((python + "'s venv module", python + "-venv"))
    if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append((python + "'s headers", python + "-dev"))
    if not missing:
        return ""
    return (
        "Needed here and not found: {}. On Debian or Ubuntu run `sudo apt install {}` and try"
        " again.".format(
            ", ".join(name for name, _ in missing), " ".join(package for _, package in missing)
        )
    )


if __name__ == "__main__":
    SENTENCE = problem(sys.argv[1] if len(sys.argv) > 1 else None)
    if SENTENCE:
        sys.stderr.write(SENTENCE + "\n")
        sys.exit(1)
