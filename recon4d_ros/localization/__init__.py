"""Maps that last: keyframes, the folder they are saved in with the static world, and finding the
car in one."""

from recon4d_ros.localization.correction import in_odom, moved_objects, moved_pose
from recon4d_ros.localization.map_folder import MapFolder, check_place, is_map, open_map
from recon4d_ros.localization.parameters import LocalizationParameters
from recon4d_ros.localization.places import Places
from recon4d_ros.localization.runner import Background, Inline, Runner

__all__ = [
    "Background",
    "Inline",
    "LocalizationParameters",
    "MapFolder",
    "Places",
    "Runner",
    "check_place",
    "in_odom",
    "is_map",
    "moved_objects",
    "moved_pose",
    "open_map",
]
