"""Grids as files that Nav2's map_server reads: a picture (PGM) and a YAML file beside it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from recon4d_ros.errors import Recon4dError
from recon4d_ros.paths import beside
from recon4d_ros.types import FREE, OCCUPIED, UNKNOWN, OccupancyGrid
from recon4d_ros.yaml_text import load_yaml

# what map_saver writes, and with these thresholds map_server reads back (mode trinary)
BLACK, WHITE, GREY = 0, 254, 205
OCCUPIED_THRESH, FREE_THRESH = 0.65, 0.196


def write_map(stem: Path, grid: OccupancyGrid) -> None:
    """Writes <stem>.pgm and <stem>.yaml, each beside its place first. Raises OutputError."""
    picture: NDArray[np.uint8] = np.full(grid.values.shape, GREY, np.uint8)
    picture[grid.values == FREE] = WHITE
    picture[grid.values == OCCUPIED] = BLACK
    rows, columns = grid.values.shape
    text = yaml.safe_dump(
        {
            "image": f"{stem.name}.pgm",
            "mode": "trinary",
            "resolution": float(grid.resolution),
            "origin": [float(grid.origin[0]), float(grid.origin[1]), 0.0],
            "negate": 0,
            "occupied_thresh": OCCUPIED_THRESH,
            "free_thresh": FREE_THRESH,
        },
        sort_keys=False,
    )
    header = f"P5\n# recon4d_ros, {grid.resolution:.3f} m/pix\n{columns} {rows}\n255\n"
    files = {".pgm": header.encode() + picture[::-1].tobytes(), ".yaml": text.encode()}
    for suffix, data in files.items():
        with beside(stem.with_suffix(suffix), "grid") as new:
            new.write_bytes(data)


def read_map(path: Path, stamp_ns: int = 0) -> OccupancyGrid:
    """A map of map_server in mode trinary, without a turn. Raises Recon4dError."""
    try:
        about = load_yaml(path.read_text(encoding="utf-8"))
        image = cv2.imread(str(path.parent / about["image"]), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise Recon4dError(f"grid {path}: its image {about['image']} cannot be read")
        x, y, yaw = map(float, about["origin"])
        dark = np.asarray(image[::-1], np.float32) / 255
        if not about.get("negate", 0):
            dark = 1 - dark
        resolution = float(about["resolution"])
        occupied, free = float(about["occupied_thresh"]), float(about["free_thresh"])
    except OSError as error:
        raise Recon4dError(f"grid {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise Recon4dError(
            f"grid {path} is damaged: {' '.join(str(error).split())} (expected a YAML file of"
            " map_server)"
        ) from None
    if yaw != 0:
        raise Recon4dError(f"grid {path} is turned by {yaw:g} rad: expected 0")
    values: NDArray[np.int8] = np.full(dark.shape, UNKNOWN, np.int8)
    values[dark > occupied] = OCCUPIED
    values[dark < free] = FREE
    return OccupancyGrid(stamp_ns, values, resolution, np.array([x, y]))
