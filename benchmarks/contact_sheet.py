#!/usr/bin/env python3
"""docs/pictures/scenarios.jpg: a frame or two of every scenario, to be looked at; and with --speed
how fast each renders."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon4d_ros.commands.simulate import find_rig  # noqa: E402
from recon4d_ros.sim.scenario import NAMES  # noqa: E402
from recon4d_ros.sim.simulate import Simulator  # noqa: E402
from recon4d_ros.types import Rig  # noqa: E402

# Scenario, second, camera of nuscenes_like.
FRAMES = (
    ("city", 1.0, "front"),
    ("queue", 6.0, "front"),
    ("queue", 11.0, "front_left"),
    ("motorway", 3.0, "front"),
    ("tunnel", 2.6, "front"),
    ("tunnel", 6.0, "front"),
    ("parking", 11.0, "front_right"),
    ("roundabout", 4.0, "front"),
    ("pedestrians", 6.0, "front"),
    ("night", 4.0, "front"),
    ("night", 4.0, "front_left"),
    ("motorway+night+rain", 2.0, "front"),
    ("rain", 1.0, "front"),
    ("fog", 1.0, "front"),
    ("sun", 1.0, "front"),
    ("leaves", 1.0, "back"),
    ("exposure", 6.0, "front"),
    ("motorway+blur", 1.0, "front_left"),
    ("motorway+shutter", 1.0, "front_right"),
    ("jpeg", 1.0, "front"),
    ("roundabout+night+rain", 5.0, "front"),
)
COLUMNS, WIDTH = 3, 400


def sheet(seed: int) -> np.ndarray:
    """The frames side by side, RGB."""
    rig = find_rig("nuscenes_like")
    cells = []
    for name, second, camera in FRAMES:
        alone = Rig("one", (rig.cameras[rig.names.index(camera)],))
        simulator = Simulator(alone, 20.0, seed=seed, name=name)
        image = simulator.frame(round(second * 10)).images[0]
        quality = simulator.drive.conditions.jpeg_quality
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
        height = round(WIDTH * image.shape[0] / image.shape[1])
        image = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
        cv2.putText(image, name, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(
            image, name, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
        )
        cells.append(image)
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    return np.vstack(rows)


def speed(name: str, frames: int) -> float:
    """Pictures of 640x360 per second and camera, of one thread, once the world around is made."""
    simulator = Simulator(find_rig("nuscenes_like"), 20.0, name=name)
    simulator.frame(0)
    start = time.process_time()
    for index in range(1, frames + 1):
        simulator.frame(index)
    return frames * len(simulator.cameras) / (time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/scenarios.jpg")
    parser.add_argument("--speed", action="store_true", help="time every scenario instead")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.speed:
        for name in (*NAMES, "motorway+night+rain"):
            print(f"{name:20} {speed(name, 5):.1f} pictures/s", flush=True)
        return 0
    cv2.imwrite(str(arguments.out), sheet(arguments.seed), [cv2.IMWRITE_JPEG_QUALITY, 82])
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
