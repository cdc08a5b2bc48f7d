"""config/recon4d.yaml from the code: every parameter with its default, range and description.

python -m recon4d_ros.ros.parameter_file > config/recon4d.yaml        (a test holds the file to this)
"""  # noqa: E501

from __future__ import annotations

import json
import textwrap

from recon4d_ros.parameters import ParameterInfo, describe
from recon4d_ros.reconstructor import Parameters
from recon4d_ros.ros.parameters import CameraParameters, NodeParameters

_HEAD = """\
# Every parameter of recon4d_node, at its default. Generated: python -m recon4d_ros.ros.parameter_file > config/recon4d.yaml
# `recon4d replay --parameters` takes the same file. Values in [..] are ranges, inclusive; in {..} choices.
/**:
  ros__parameters:
"""  # noqa: E501


def parameter_file() -> str:
    """The YAML text."""
    lines: list[str] = []
    group = ""
    for info in (*describe(NodeParameters), *describe(Parameters)):
        *above, name = info.name.split(".")
        if ".".join(above) != group:
            group = ".".join(above)
            lines += ["", f"    {group}:"]
        lines += _entry(info, name, "      " if above else "    ")
    lines += ["", "    # Per camera, below its name:", "    # front:"]
    for info in describe(CameraParameters):
        lines += [
            line.replace("      ", "    #   ", 1) for line in _entry(info, info.name, "      ")
        ]
    return _HEAD + "\n".join(lines) + "\n"


def _entry(info: ParameterInfo, name: str, indent: str) -> list[str]:
    bounds = ""
    if info.choices:
        bounds = f" {{{', '.join(info.choices)}}}"
    elif info.minimum is not None or info.maximum is not None:
        bounds = (
            f" [{'' if info.minimum is None else info.minimum},"
            f" {'' if info.maximum is None else info.maximum}]"
        )
    comment = textwrap.wrap(
        info.description + bounds,
        118,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
    )
    if info.type is tuple and not info.default:
        return [*comment, f"{indent}# {name}: [...]"]  # YAML has no typed empty list
    value = list(info.default) if info.type is tuple else info.default
    return [*comment, f"{indent}{name}: {json.dumps(value)}"]


if __name__ == "__main__":
    print(parameter_file(), end="")
