"""`recon4d train`: the motion network on the procedural world; or UniScene
(train_uniscene.py)."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from recon4d_ros.commands import train_uniscene
from recon4d_ros.errors import ExporterMissing, ParameterError
from recon4d_ros.paths import make_folder, user_path

EPILOG = """examples:
  recon4d train --out motion                              hours on two cores (docs/motion.md: how the shipped one was made)
  recon4d train --out motion --pieces 20 --minutes 5      a try
  recon4d train --out motion --first 60 --pieces 60 --minutes 0   the second half of the shards, on another machine
  recon4d train --network uniscene --out pre                                            occupancy, on the procedural world
  recon4d train --network uniscene --out pre --data BAG BAG ...                         occupancy, labels from the bags' lidar
  recon4d train --network uniscene --out fine --kind detection --init pre/last.pt --shards pre/shards

--out holds the shards (shards/*.npz), the last checkpoint (last.pt), the log (log.jsonl), and at the
end the engine (engine/; of uniscene not: recon4d export --network uniscene --checkpoint OUT/last.pt). A command that was
cut off goes on where it was.
"""  # noqa: E501


PIECES = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="DIR", help="folder of the run"
    )
    parser.add_argument(
        "--network",
        choices=("motion", "uniscene"),
        default="motion",
        help="what is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--pieces",
        type=int,
        metavar="N",
        help=f"short simulated drives to learn from (default: {PIECES}; uniscene"
        f" {train_uniscene.PIECES})",
    )
    parser.add_argument(
        "--first", type=int, default=0, metavar="K", help="number of the first piece (default: 0)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=50.0,
        help="of processor time to train for; 0: only the shards (default: %(default)s; uniscene:"
        " --steps)",
    )
    parser.add_argument(
        "--start",
        type=user_path,
        metavar="FILE",
        help="checkpoint (last.pt) of another run, whose weights this one starts from (default:"
        " from nothing)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of everything random in training (default: %(default)s)",
    )
    train_uniscene.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    pieces = PIECES if arguments.pieces is None else arguments.pieces
    if pieces < 1 or arguments.first < 0:
        raise ParameterError(
            f"--pieces is {pieces}, --first {arguments.first}: expected at least 1 and 0"
        )
    if not 0 <= arguments.minutes < 1e5:
        raise ParameterError(f"--minutes is {arguments.minutes:g}: expected 0 or more")
    try:
        import torch  # noqa: F401

        from recon4d_ros.export import MOTION, ExportArguments, export_engine
        from recon4d_ros.export.motion import CAMERAS, GRID
        from recon4d_ros.training.motion import Recipe, Trainer
        from recon4d_ros.training.motion_data import make_piece, write_piece
    except ImportError as error:
        raise ExporterMissing(
            f"training needs PyTorch, which is not installed here ({error}): pip install -r"
            " requirements/dev.txt"
        ) from None
    if arguments.network == "uniscene":
        return train_uniscene.run(arguments, arguments.pieces)
    out: Path = arguments.out
    shards = make_folder(out / "shards")
    for number in tqdm(range(arguments.first, arguments.first + pieces), desc="shards"):
        file, empty = shards / f"{number:05d}.npz", shards / f"{number:05d}.none"
        if not file.exists() and not empty.exists() and not write_piece(make_piece(number), file):
            empty.touch()  # nothing was tracked in it
    if not arguments.minutes:
        return 0
    trainer = Trainer(
        shards, out, Recipe(arguments.minutes, seed=arguments.seed, start=arguments.start)
    )
    trainer.run()
    export_engine(
        out / "engine",
        ExportArguments("", CAMERAS, GRID, GRID, 1, MOTION, checkpoint=str(out / "last.pt")),
        force=True,
        progress=True,
    )
    return 0
