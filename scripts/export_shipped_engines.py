"""Writes engines/: one geometric engine of any size per number of cameras, and one for a rectified
pair. Takes PyTorch (`make dev`) and about ten minutes.

python scripts/export_shipped_engines.py [FOLDER] [NAME...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from recon4d_ros import paths
from recon4d_ros.cameras.calibration import sizes_for
from recon4d_ros.export import ExportArguments, export_engine
from recon4d_ros.types import Camera, Rig

CAMERAS = range(1, 9)
WIDE, PANORAMIC = (1936, 1216), (1242, 375)  # images that they are measured with, (width, height)


def measured_with(cameras: int, size: tuple[int, int], *, stereo: bool) -> ExportArguments:
    """An engine for so many cameras, measured at the sizes that images of `size` have."""
    width, height = size
    k = np.array([[width / 2, 0, (width - 1) / 2], [0, width / 2, (height - 1) / 2], [0, 0, 1.0]])
    rig = Rig("any", tuple(Camera(f"c{i}", width, height, k, np.eye(4)) for i in range(cameras)))
    return ExportArguments(
        "stereo" if stereo else "surround", cameras, *sizes_for(rig, stereo), any_size=True
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else paths.engines()
    engines = {"geometric_stereo": measured_with(2, PANORAMIC, stereo=True)} | {
        f"geometric_surround{n}": measured_with(n, WIDE, stereo=False) for n in CAMERAS
    }
    for name in sys.argv[2:] or engines:
        print(name, flush=True)
        export_engine(folder / name, engines[name], force=True, progress=True)


if __name__ == "__main__":
    main()
