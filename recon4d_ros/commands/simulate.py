"""`recon4d simulate`: a bag of a drive through the procedural world."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tqdm import tqdm

from recon4d_ros import paths
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.errors import CalibrationError, ParameterError
from recon4d_ros.paths import user_path
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.sim.scenario import NAMES
from recon4d_ros.sim.scenario import scenario as scenario_of
from recon4d_ros.types import Rig

EPILOG = """examples:
  recon4d simulate --out drive                                    20 s of the six-camera rig
  recon4d simulate --out drive --rig kitti_like --seconds 60      stereo
  recon4d simulate --out drive --rig my_car.yaml --seed 7         your own rig in another world
  recon4d simulate --out drive --scenario motorway+night+rain     fast, dark and wet
  recon4d simulate --list-scenarios                               what there is
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="BAG",
        help="bag folder to write (must not exist)",
    )
    parser.add_argument(
        "--rig",
        default="nuscenes_like",
        metavar="NAME|YAML",
        help="rig file, or the name of one in config/rigs (default: %(default)s)",
    )
    parser.add_argument(
        "--scenario",
        default="city",
        metavar="NAME",
        help=(
            "what kind of drive: names of --list-scenarios joined by +, e.g. motorway+night+rain"
            " (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--list-scenarios", action="store_true", help="say what scenarios there are, and end"
    )
    parser.add_argument(
        "--imu",
        action="store_true",
        help="also /imu (sensor_msgs/Imu, 100 Hz) with noise and bias",
    )
    parser.add_argument(
        "--odometry",
        action="store_true",
        help="also /odom (wheel odometry, 50 Hz) with an error of scale and noise",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="length of the drive (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=10.0, help="frame sets per second (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help=(
            "another seed is another world; the same seed repeats bit for bit (default:"
            " %(default)s)"
        ),
    )
    parser.add_argument(
        "--traffic-seed",
        type=int,
        metavar="SEED",
        help=(
            "another drive through the same streets: how all drive, and what is parked (default:"
            " the seed)"
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.list_scenarios:
        print("\n".join(f"{name:12} {text}" for name, text in NAMES.items()))
        return 0
    if arguments.out is None:
        raise ParameterError("--out is missing: expected the bag folder to write")
    simulate_to(
        arguments.out,
        find_rig(arguments.rig),
        arguments.seconds,
        arguments.rate,
        arguments.seed,
        scenario=arguments.scenario,
        imu=arguments.imu,
        odometry=arguments.odometry,
        traffic_seed=arguments.traffic_seed,
    )
    print(
        f"wrote {arguments.out}: {arguments.seconds:g} s of {arguments.scenario}, rig"
        f" {arguments.rig}, with /ground_truth/*"
    )
    return 0


def find_rig(name: str) -> Rig:
    """A rig from a file or by the name of a shipped one. Raises CalibrationError."""
    path = user_path(name)
    if path.suffix in (".yaml", ".yml"):
        return load_rig(path)
    file = paths.rigs() / f"{name}.yaml"
    if not file.is_file():
        shipped = ", ".join(sorted(path.stem for path in paths.rigs().glob("*.yaml")))
        raise CalibrationError(
            f"rig {name}: no such rig: expected a .yaml file or one of {shipped}"
        )
    return load_rig(file)


def check_drive(seconds: float, rate: float, seed: int) -> None:
    """Raises ParameterError where these make no drive."""
    for name, value in (("--seconds", seconds), ("--rate", rate)):
        if not (math.isfinite(value) and value > 0):
            raise ParameterError(f"{name} is {value:g}: expected a number above 0")
    if not round(seconds * rate):
        raise ParameterError(
            f"--seconds is {seconds:g}: at {rate:g} frame sets per second expected at least"
            f" {1 / rate:g}"
        )
    if seed < 0:
        raise ParameterError(f"--seed is {seed}: expected at least 0")


def simulate_to(
    bag: Path,
    rig: Rig,
    seconds: float,
    rate: float,
    seed: int,
    truth_every: int = 1,
    scenario: str = "city",
    imu: bool = False,
    odometry: bool = False,
    traffic_seed: int | None = None,
) -> None:
    """write_bag with a progress bar; true depth and masks for every truth_every-th frame. Raises
    ParameterError, OutputError."""
    check_drive(seconds, rate, seed)
    if traffic_seed is not None and traffic_seed < 0:
        raise ParameterError(f"--traffic-seed is {traffic_seed}: expected at least 0")
    scenario_of(scenario, seed)
    with tqdm(total=round(seconds * rate), unit="set", desc="simulate", mininterval=0.5) as bar:
        write_bag(
            bag,
            rig,
            seconds=seconds,
            rate=rate,
            seed=seed,
            ground_truth_every=truth_every,
            progress=lambda done, _: bar.update(done - bar.n),
            scenario=scenario,
            imu=imu,
            odometry=odometry,
            traffic_seed=traffic_seed,
        )
