"""`recon4d`: the command line. Thin: it parses, calls one room of commands/, and turns our errors
into one sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys

from recon4d_ros.errors import Recon4dError

# Name, module, what it is for. A module is imported only when its command runs, so `--help` is
# instant and the runtime needs no PyTorch.
COMMANDS = (
    (
        "demo",
        "recon4d_ros.commands.demo",
        "simulate a drive (or take a bag) and run the real ROS 2 graph on it",
    ),
    (
        "replay",
        "recon4d_ros.commands.replay",
        "run the reconstruction over a bag, offline and repeatable",
    ),
    (
        "simulate",
        "recon4d_ros.commands.simulate",
        "write a bag of a drive through the procedural world, with exact truth",
    ),
    (
        "evaluate",
        "recon4d_ros.commands.evaluate",
        "score a run's folder against the truth in its bag",
    ),
    (
        "view",
        "recon4d_ros.commands.view",
        "see a bag, a run or a running node in the browser (Rerun)",
    ),
    (
        "bench",
        "recon4d_ros.commands.bench",
        "time an engine and every stage around it on this machine",
    ),
    (
        "export",
        "recon4d_ros.commands.export",
        "turn a network (and its checkpoint) into an engine folder",
    ),
    (
        "train",
        "recon4d_ros.commands.train",
        "train the motion network, or UniScene, on simulated drives or bags",
    ),
    (
        "info",
        "recon4d_ros.commands.info",
        "say what a bag, an engine, a rig file or a checkpoint holds, or list all parameters",
    ),
)
EXIT_CODES = """exit codes:
  0  done
  2  bad input or usage, or a process of the demo's graph failed: one sentence on standard error says what, where and what was expected
  3  an engine has to be exported first and the exporter (PyTorch) is not installed here
  4  the run went to its end and not one of its frame sets was tracked: its files are there, and say why
  130  interrupted
"""  # noqa: E501
EXAMPLES = """examples:
  recon4d demo --out demo                          a simulated drive through the real graph, with a report
  recon4d replay BAG --out run                     a drive of your own; rig and topics are found in the bag
  recon4d replay BAG --out run --odometry /odom    with odometry as motion prior
  recon4d evaluate run --bag BAG                   the run against /ground_truth/* of the bag
  recon4d info BAG | ENGINE | RIG.yaml             what is in it
"""  # noqa: E501


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; `only` names the one command whose arguments are needed (importing all would
    import PyTorch)."""
    parser = argparse.ArgumentParser(
        prog="recon4d",
        description=(
            "Online 4D reconstruction on the vehicle: cameras in; metric map, moving objects and"
            " pose out."
        ),
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module, purpose in COMMANDS:
        sub = commands.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=True,
        )
        if name == only:
            loaded = importlib.import_module(module)
            sub.epilog = loaded.EPILOG
            loaded.add_arguments(sub)
            sub.set_defaults(run=loaded.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (see EXIT_CODES)."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a name that the locale cannot write ends no run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    names = [name for name, _, _ in COMMANDS]
    only = next((word for word in argv if word in names), None)
    try:
        arguments = build_parser(only).parse_args(argv)
    except ModuleNotFoundError as missing:
        print(
            f"recon4d {only}: the Python package {missing.name} is not installed: docs/install.md"
            " says how",
            file=sys.stderr,
        )
        return 2
    try:
        return arguments.run(arguments)
    except Recon4dError as error:
        print(f"recon4d {arguments.command}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print(f"recon4d {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `recon4d info ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
