"""How far the nearest obstacle is, everywhere in a grid."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.types import OCCUPIED, OccupancyGrid


def distance_field(grid: OccupancyGrid) -> NDArray[np.float32]:
    """[rows, columns] metres from each cell's middle to that of the nearest occupied cell: 0 in
    occupied cells, inf where the grid has none. Unknown cells count as not occupied.

    Exact Euclidean distances (Felzenszwalb and Huttenlocher 2012, by OpenCV).
    """
    empty = (grid.values != OCCUPIED).view(np.uint8)
    if empty.all():
        return np.full(grid.values.shape, np.inf, np.float32)
    cells = cv2.distanceTransform(empty, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(cells * np.float32(grid.resolution), np.float32)
