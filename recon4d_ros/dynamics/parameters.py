"""What a user can set about moving things."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter


@dataclass(frozen=True)
class DynamicsParameters:
    """Thresholds in metres or seconds where they can be, so that they hold for any camera and
    resolution."""

    source: str = parameter(
        "network",
        "what says that something moves: `network`, the motion network; or `rigid_flow`, Driv3R's"
        " rule",
        choices=("network", "rigid_flow"),
    )
    engine: str = parameter(
        "motion", "network: folder of the motion network's engine, or the name of a shipped one"
    )
    clip_threshold: float = parameter(
        0.6,
        "rigid_flow: share of the largest difference between rigid and measured flow above which a"
        " pixel moves",
        minimum=0.0,
        maximum=1.0,
    )
    clip_least: float = parameter(
        3.0,
        "rigid_flow: where nothing differs by more pixels of the motion grid, this is the largest"
        " difference; 0: as published",
        minimum=0.0,
        maximum=100.0,
    )
    clip_most: float = parameter(
        5.0,
        "rigid_flow: where something differs by more pixels, this is the largest difference; 10000:"
        " as published",
        minimum=0.1,
        maximum=1e4,
    )
    minimum_area: float = parameter(
        0.25, "smallest dynamic object as seen, square metres", minimum=0.0, maximum=10.0
    )
    maximum_range: float = parameter(
        80.0,
        "largest range at which dynamic objects are looked for, metres",
        minimum=1.0,
        maximum=500.0,
    )
    minimum_speed: float = parameter(
        0.5, "slowest dynamic object that is published, m/s", minimum=0.0, maximum=20.0
    )
    baseline: float = parameter(
        0.1,
        "time between the two images whose motion is compared, seconds",
        minimum=0.01,
        maximum=1.0,
    )
    acceleration: float = parameter(
        3.0,
        "acceleration of dynamic objects (process noise of the tracks), m/s^2",
        minimum=0.1,
        maximum=30.0,
    )
    confirm: int = parameter(
        3,
        "observations of a track before it is published as an object, frame sets",
        minimum=1,
        maximum=20,
    )
    keep_missing: float = parameter(
        0.6, "how long an object without observations is kept, seconds", minimum=0.0, maximum=10.0
    )
    least_score: float = parameter(
        0.3,
        "detections from elsewhere (boxes in images, object_engine): those that score less are not"
        " looked at",
        minimum=0.0,
        maximum=1.0,
    )
    class_names: str = parameter(
        "",
        "names of the classes 0, 1, .., with commas between them, where detections from elsewhere"
        " have numbers for classes",
    )
