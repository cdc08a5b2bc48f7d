"""Occupancy for planners: which cells of the ground plane are free, occupied or unknown.

`Grids` is the stage. It keeps a lasting grid of the static world (lasting.py) and a rolling one
around the car with the dynamic objects in it (local.py); both live by what cameras see of the road
(sight.py). map_server.py has the files.
"""

from recon4d_ros.grids.distance import distance_field
from recon4d_ros.grids.grids import Grids
from recon4d_ros.grids.lasting import LastingGrid
from recon4d_ros.grids.map_server import read_map, write_map
from recon4d_ros.grids.parameters import GridParameters

__all__ = [
    "GridParameters",
    "Grids",
    "LastingGrid",
    "distance_field",
    "read_map",
    "write_map",
]
