"""The static world: what is kept of every frame once the dynamic objects are taken out.

`Mapper` is the stage; `write_cloud` and `read_cloud` are its files (PLY and PCD); a `VoxelArchive`
is another map that it goes on with.
"""

from recon4d_ros.mapping.archive import VoxelArchive, read_squares, write_squares
from recon4d_ros.mapping.cloud_files import Cloud, read_cloud, write_cloud
from recon4d_ros.mapping.mapper import Mapper, MappingParameters

__all__ = [
    "Cloud",
    "Mapper",
    "MappingParameters",
    "VoxelArchive",
    "read_cloud",
    "read_squares",
    "write_cloud",
    "write_squares",
]
