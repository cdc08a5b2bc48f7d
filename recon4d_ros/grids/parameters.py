"""What a user can set of the grids."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter


@dataclass(frozen=True)
class GridParameters:
    """Occupancy grids for planners."""

    enabled: bool = parameter(True, "whether the grids are made at all")
    resolution: float = parameter(0.2, "edge of a cell, m", minimum=0.02, maximum=5.0)
    size: float = parameter(
        150.0,
        "least edge of the square around the ego-vehicle that ~/occupancy_grid covers, m; it moves"
        " in steps of 128 cells, and what it leaves behind is kept",
        minimum=10.0,
        maximum=2000.0,
    )
    local_size: float = parameter(
        40.0,
        "edge of the square around the ego-vehicle that ~/local_grid and ~/distance cover, m",
        minimum=4.0,
        maximum=200.0,
    )
    min_height: float = parameter(
        0.3, "what is lower over the road is no obstacle, m", minimum=0.05, maximum=5.0
    )
    max_height: float = parameter(
        2.2,
        "what is higher over the road is none either, m: the ego-vehicle's height with a margin",
        minimum=0.2,
        maximum=20.0,
    )
    max_range: float = parameter(
        25.0,
        "up to this range the cameras' free space is believed, m: farther away the road's height is"
        " not known well enough",
        minimum=2.0,
        maximum=100.0,
    )
    min_confidence: float = parameter(
        0.3, "depth of lower confidence is not used", minimum=0.0, maximum=1.0
    )
    free_frames: int = parameter(
        2,
        "a cell is free once as many frames (a quarter of a metre apart) have seen through it",
        minimum=1,
        maximum=20,
    )
    map_period: float = parameter(
        1.0,
        "seconds between two readings of the static map's voxels",
        minimum=0.0,
        maximum=60.0,
    )
    decay: float = parameter(
        1.5,
        "seconds after which ~/local_grid forgets what it saw beside the static map and does not"
        " see any more",
        minimum=0.05,
        maximum=60.0,
    )
