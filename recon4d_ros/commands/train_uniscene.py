"""`recon4d train --network uniscene`: UniScene's pre-training on occupancy, and the fine-tuning of
its detector."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from recon4d_ros.cameras.rig import chosen
from recon4d_ros.commands.common import parse_size
from recon4d_ros.commands.simulate import find_rig
from recon4d_ros.errors import EngineError, ParameterError
from recon4d_ros.paths import make_folder, user_path

if TYPE_CHECKING:
    from recon4d_ros.networks.uniscene import Configuration

PIECES, STEPS = 50, 1000
SMALL = (
    "depth=18,width=64,rows=50,columns=50,encoders=1,decoders=2,queries=60,levels_z=8,reach=25.6,"
    "bottom=-1,top=3"
)
MOST_CAMERAS = 6  # that have an embedding of their own
MULTIPLE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --network uniscene")
    group.add_argument(
        "--kind",
        choices=("occupancy", "detection"),
        default="occupancy",
        help="occupancy: the pre-training; detection: the fine-tuning (default: %(default)s)",
    )
    group.add_argument(
        "--init",
        type=user_path,
        metavar="FILE",
        help="start from a checkpoint of UniScene, published or last.pt of another run: every"
        " tensor of the same name and shape is taken",
    )
    group.add_argument(
        "--data",
        type=user_path,
        nargs="+",
        metavar="BAG",
        help="bags with a lidar and odometry to learn from, one shard each (default: the procedural"
        " world)",
    )
    group.add_argument(
        "--labels",
        choices=("mended", "published"),
        help="rule of the occupancy labels, and the geometry that goes with it"
        " (docs/networks_uniscene.md; default: that of --init, else mended)",
    )
    group.add_argument(
        "--model",
        default="",
        metavar="FIELD=VALUE,...",
        help=f"sizes of the network; published: the published ones (default: those of --init, else"
        f" {SMALL})",
    )
    group.add_argument(
        "--size", default="64x128", metavar="HxW", help="of the images (default: %(default)s)"
    )
    group.add_argument(
        "--rig",
        metavar="RIG",
        default="nuscenes_like",
        help="of the procedural world: name or file (default: %(default)s)",
    )
    group.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="of the rig or the bags (default: all)"
    )
    for name, text in (
        ("--lidar-topic", "sensor_msgs/PointCloud2 (default: the truth's, else the only one)"),
        ("--odometry", "nav_msgs/Odometry (default: the truth's, else the only one)"),
        ("--boxes", "recon4d_msgs/DynamicObjectArray (default: the truth's)"),
    ):
        group.add_argument(name, default="", metavar="TOPIC", help=f"of the bags: {text}")
    group.add_argument(
        "--lidar",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="metres in base_link, where the lidar stands if its frame does not say it (default:"
        " nuScenes')",
    )
    group.add_argument(
        "--shards", type=user_path, metavar="DIR", help="of another run (default: OUT/shards)"
    )
    group.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the drives to learn from, 0 to 1; which ones follows from --seed (default: 1)",
    )
    group.add_argument(
        "--steps", type=int, default=STEPS, help="0: only the shards (default: %(default)s)"
    )
    group.add_argument(
        "--frames", type=int, default=2, help="frame sets of a step (default: %(default)s)"
    )
    group.add_argument(
        "--rate", type=float, default=1e-3, help="highest learning rate (published: 2e-4)"
    )
    group.add_argument(
        "--backbone-rate", type=float, default=1.0, help="times --rate (published: 0.1)"
    )
    group.add_argument(
        "--fixed-norm",
        action="store_true",
        help="batch normalisation keeps what it starts with (as published; only with --init)",
    )
    group.add_argument(
        "--bf16", action="store_true", help="convolutions in bfloat16 (faster if the CPU has it)"
    )


def run(arguments: argparse.Namespace, pieces: int | None) -> int:
    """pieces: simulated drives; None: PIECES."""
    import torch  # noqa: F401

    from recon4d_ros.networks.uniscene_step import LIDAR
    from recon4d_ros.training.uniscene import Recipe, Trainer

    size = _size(arguments.size)
    for name, value, least in (
        ("--steps", arguments.steps, 0),
        ("--frames", arguments.frames, 1),
    ):
        if value < least:
            raise ParameterError(f"{name} is {value}: expected {least} or more")
    if not 0 < arguments.share <= 1:
        raise ParameterError(f"--share is {arguments.share:g}: expected more than 0, 1 at most")
    if not (0 < arguments.rate < 1 and 0 <= arguments.backbone_rate <= 100):
        raise ParameterError(
            f"--rate is {arguments.rate:g}, --backbone-rate {arguments.backbone_rate:g}: expected"
            " a number between 0 and 1, and 0 to 100"
        )
    c = _configuration(arguments)
    shards: Path = arguments.shards or arguments.out / "shards"
    lidar = np.array(arguments.lidar or LIDAR, np.float64)
    if arguments.shards is None:
        _make_shards(arguments, pieces or PIECES, shards, size, c, lidar)
    if not arguments.steps:
        return 0
    recipe = Recipe(
        arguments.steps,
        arguments.frames,
        arguments.rate,
        arguments.backbone_rate,
        warm_up=min(500, max(1, arguments.steps // 20)),
        share=arguments.share,
        seed=arguments.seed,
        fixed_norm=arguments.fixed_norm,
        bf16=arguments.bf16,
    )
    trainer = Trainer(shards, arguments.out, c, recipe, arguments.init)
    if trainer.carried_over is not None:
        print(trainer.carried_over.sentence)
    print(f"{len(trainer.drives)} drives to learn from, {len(trainer.held_out)} held out")
    with tqdm(total=recipe.steps, initial=trainer.step, desc=c.kind) as bar:
        score = trainer.run(lambda step: bar.update(step - bar.n) and None)
    print(", ".join(f"{name} {value:.3g}" for name, value in score.items()))
    place = ""
    if c.geometry == "published":  # voxels and the detector's grid lie around the lidar
        found = zip("xyz", trainer.drives[0][0].lidar, strict=True)
        place = "".join(f" --option lidar_{axis}={value:g}" for axis, value in found)
    print(
        f"recon4d export --network uniscene --checkpoint {trainer.folder.checkpoint} --rig RIG"
        f" --size {arguments.size}{place} --out DIR"
    )
    return 0


def _make_shards(
    arguments: argparse.Namespace,
    pieces: int,
    shards: Path,
    size: tuple[int, int],
    c: Configuration,
    lidar: np.ndarray,
) -> None:
    from recon4d_ros.training import uniscene_bags as bags
    from recon4d_ros.training import uniscene_data as data

    make_folder(shards)
    if arguments.data:
        topics = bags.BagTopics(arguments.lidar_topic, arguments.odometry, arguments.boxes)
        for number, bag in enumerate(tqdm(arguments.data, desc="shards")):
            if not (file := shards / f"{number:05d}.npz").exists():
                arrays, notes = bags.bag_drive(bag, size, c, lidar, topics, arguments.cameras)
                data.write_shard(arrays, file)
                for note in notes:
                    tqdm.write(f"{bag}: {note}")
        return
    rig = chosen(find_rig(arguments.rig), arguments.cameras)
    for number in tqdm(range(arguments.first, arguments.first + pieces), desc="shards"):
        if not (file := shards / f"{number:05d}.npz").exists():
            piece = data.make_piece(number)
            data.write_shard(data.simulated_drive(piece, rig, size, c, lidar), file)


def _size(text: str) -> tuple[int, int]:
    size = parse_size("--size", text)
    if size[0] % MULTIPLE or size[1] % MULTIPLE:
        raise ParameterError(f"--size is {text}: expected multiples of {MULTIPLE} pixels")
    return size


def _configuration(arguments: argparse.Namespace) -> Configuration:
    """Of --init or --model, with --kind and --labels."""
    from recon4d_ros.networks import stand_in
    from recon4d_ros.training.uniscene_start import configuration_from

    words = [word for word in arguments.model.split(",") if word]
    known = SMALL + f",geometry=mended,cameras={MOST_CAMERAS}"
    if arguments.init is not None:
        c = configuration_from(arguments.init)
        known = ",".join(f"{field.name}={getattr(c, field.name)}" for field in fields(c))
    elif "published" in words:
        known = ""
    parts = [known, *(word for word in words if word != "published"), f"kind={arguments.kind}"]
    if arguments.labels:
        parts.append(f"geometry={arguments.labels}")
    try:
        return stand_in.configuration("uniscene", ",".join(parts))
    except EngineError as error:
        raise ParameterError(str(error).replace("stand-in weights", "--model")) from None
