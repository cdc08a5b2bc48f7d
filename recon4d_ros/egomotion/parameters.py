"""What a user can set of ego-motion."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter


@dataclass(frozen=True)
class EgomotionParameters:
    odometry: str = parameter(
        "prior",
        "what odometry is for: `none` ignores it, `prior` starts from it and refines, `trust` takes"
        " its motion as it is",
        choices=("none", "prior", "trust"),
    )
    features: int = parameter(
        400, "points followed, all cameras together (at most 200 each)", minimum=40, maximum=4000
    )
    min_inliers: int = parameter(
        15, "sightings that must agree for the pose to count as tracked", minimum=6, maximum=500
    )
    extrapolate: float = parameter(
        0.5,
        "for so long a motion that neither images nor odometry confirm is carried on, s; then the"
        " pose stays and a new segment begins: map and memory start anew. A car that brakes by 4"
        " m/s^2 unseen is 0.5 m off after this time, 2 m after twice of it",
        minimum=0.0,
        maximum=10.0,
    )
    pixel_noise: float = parameter(
        0.5,
        "standard deviation of a followed point in pixels of the input image",
        minimum=0.05,
        maximum=5.0,
    )
    odometry_noise: float = parameter(
        0.02,
        "standard deviation of the odometry's motion, as a share of it",
        minimum=0.0001,
        maximum=1.0,
    )
