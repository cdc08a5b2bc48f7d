"""`recon4d evaluate`: a run's folder against the truth in its bag."""

from __future__ import annotations

import argparse
import json

from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.commands.common import add_bag_rig, bag_rig
from recon4d_ros.evaluation import format_report
from recon4d_ros.paths import user_path
from recon4d_ros.runs.evaluate import evaluate_run
from recon4d_ros.runs.files import without_nan

EPILOG = """Depth and masks are scored where the run kept its frames (`recon4d replay --save-frames`); trajectory, objects and map always.

examples:
  recon4d evaluate run --bag drive
  recon4d evaluate run --bag drive --json > scores.json
"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_folder",
        type=user_path,
        metavar="RUN",
        help="folder that `recon4d replay` or `recon4d demo` wrote",
    )
    parser.add_argument(
        "--bag",
        type=user_path,
        required=True,
        help="the bag it was made from, with /ground_truth/*",
    )
    parser.add_argument(
        "--rig", type=user_path, metavar="YAML", help="rig file, if the run used one"
    )
    add_bag_rig(parser)
    parser.add_argument("--json", action="store_true", help="print all scores as JSON")


def run(arguments: argparse.Namespace) -> int:
    metrics = evaluate_run(
        arguments.run_folder,
        arguments.bag,
        load_rig(arguments.rig) if arguments.rig else None,
        **bag_rig(arguments),
    )
    print(json.dumps(without_nan(metrics), indent=1) if arguments.json else format_report(metrics))
    return 0
