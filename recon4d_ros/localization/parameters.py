"""The parameters of the room."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter


@dataclass(frozen=True)
class LocalizationParameters:
    """Keyframes, and finding the car in them."""

    mode: str = parameter(
        "auto",
        "mapping: keyframes are kept, and a loaded map is extended; localization: a loaded map is"
        " not changed; none; auto = mapping where a map is loaded or saved as a folder, else none",
        # `off` would be a boolean in YAML
        choices=("auto", "none", "mapping", "localization"),
    )
    keyframe_distance: float = parameter(
        3.0, "metres driven from one keyframe to the next", minimum=0.2, maximum=100.0
    )
    keyframe_angle: float = parameter(
        20.0, "degrees turned from one keyframe to the next", minimum=2.0, maximum=180.0
    )
    features: int = parameter(
        1500,
        "features of a frame set, all cameras together, that are described",
        minimum=100,
        maximum=20_000,
    )
    candidates: int = parameter(
        8,
        "keyframes that the car is looked for in, of those that look most alike",
        minimum=1,
        maximum=100,
    )
    min_inliers: int = parameter(
        25,
        "features that have to agree on a pose before it is believed, all cameras together",
        minimum=8,
        maximum=10_000,
    )
    loops: bool = parameter(
        True,
        "close loops: where the car comes back to a place of this drive, map and way are corrected"
        " by a pose graph (needs GTSAM, requirements/maps.txt)",
    )
    give_up: float = parameter(
        100.0,
        "metres driven without being found in the loaded map, or without agreeing with it, after"
        " which that is said and a new map is begun; looking goes on",
        minimum=5.0,
        maximum=1e6,
    )
