"""What pre-training on occupancy gains for detection: a small UniScene on the procedural world,
fine-tuned on a share of the drives, started from nothing and from pre-trained weights.

    python benchmarks/uniscene_gain.py OUT [--drives 44] [--pre 240] [--fine 250] [--seeds 3]
    python benchmarks/uniscene_gain.py OUT --table

Everything lies in OUT; a run that was cut off goes on. Seeds change the start, the order and which
drives the share is; the pre-training is one, of all drives, without their boxes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recon4d_ros import paths
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.networks.uniscene import MENDED, Configuration
from recon4d_ros.training.uniscene import Recipe, Trainer
from recon4d_ros.training.uniscene_data import make_piece, simulated_drive, write_shard

SIZE = (64, 128)
NETWORK = Configuration(
    "occupancy", 18, width=64, rows=50, columns=50, cameras=3, encoders=1, decoders=2, queries=60,
    levels_z=8, reach=25.6, bottom=-1.0, top=3.0, geometry=MENDED,
)  # fmt: skip
SHARES = ((0.25,), (1.0,), (0.5,))  # in this order, all seeds of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    for name, default in (("drives", 44), ("pre", 240), ("fine", 250), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pre-rate", type=float, default=1e-3)
    parser.add_argument("--fine-rate", type=float, default=4e-4)
    parser.add_argument("--table", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.table:
        table(a.out)
        return
    shards = a.out / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    rig = load_rig(paths.rigs() / "nuscenes_like.yaml")
    rig = replace(rig, cameras=rig.cameras[:3])  # front, front left, front right
    for number in range(a.drives):
        if not (file := shards / f"{number:05d}.npz").exists():
            drive = simulated_drive(make_piece(number), rig, SIZE, NETWORK, np.zeros(3))
            write_shard(drive, file)
    recipe = Recipe(a.pre, rate=a.pre_rate, backbone=1.0, warm_up=20, bf16=True)
    before = Trainer(shards, a.out / "pre", NETWORK, recipe)
    if before.step < a.pre:
        print("pre", before.run(), flush=True)
    detector = replace(NETWORK, kind="detection")
    starts = {"none": None, "pre": a.out / "pre" / "last.pt"}
    for shares, seed in ((shares, seed) for shares in SHARES for seed in range(a.seeds)):
        for share, (start, weights) in ((x, y) for x in shares for y in starts.items()):
            name = f"fine_{round(100 * share)}_{start}_{seed}"
            recipe = replace(recipe, steps=a.fine, rate=a.fine_rate, share=share, seed=seed)
            run = Trainer(shards, a.out / name, detector, recipe, weights)
            if run.step < a.fine:
                print(name, run.run(), flush=True)


def table(out: Path) -> None:
    """Scores of all finished runs."""
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    seconds = 0.0
    for log in sorted(out.glob("*/log.jsonl")):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        seconds += max((entry.get("seconds", 0.0) for entry in entries), default=0.0)
        score = next((entry for entry in entries if "map" in entry), None)
        if score is not None:
            _, share, start, _ = log.parent.name.split("_")
            scores.setdefault((share, start), []).append(score)
    print("| drives | start | mAP of each seed | mean, sd | loss of each seed | mean, sd |")
    print("|---|---|---|---|---|---|")
    for (share, start), every in sorted(scores.items(), key=lambda item: (int(item[0][0]), item)):
        row = f"| {share} % | {start} |"
        for name in ("map", "held_out_loss"):
            values = [score[name] for score in every]
            spread = f", {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            row += f" {', '.join(f'{v:.3f}' for v in values)} | {np.mean(values):.3f}{spread} |"
        print(row)
    print(f"{seconds / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
