"""What a user can set about moving things."""
from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter


@dataclass(frozen=True)
class DynamicsParameters:
    """Thresholds in standard deviations, metres or seconds, so that they hold for any camera and resolution."""

    weak_sigma: float = parameter(3.0, "a pixel may belong to a mover from this many standard deviations", minimum=1.0, maximum=20.0)
    strong_sigma: float = parameter(5.0, "a new mover needs pixels of at least this many standard deviations", minimum=1.0, maximum=40.0)
    memory: float = parameter(0.7, "share of the evidence of motion that is carried from image to image", minimum=0.0, maximum=0.95)
    minimum_area: float = parameter(0.25, "smallest mover as seen, square metres", minimum=0.0, maximum=10.0)
    maximum_range: float = parameter(80.0, "farthest mover looked for, metres", minimum=1.0, maximum=500.0)
    minimum_speed: float = parameter(0.5, "slowest mover that is published as an object, m/s", minimum=0.0, maximum=20.0)
    baseline: float = parameter(0.1, "time between the two images whose motion is compared, seconds", minimum=0.01, maximum=1.0)
    flow_noise: float = parameter(0.12, "error of optical flow where texture is good, pixels of the flow image", minimum=0.01, maximum=2.0)
    image_noise: float = parameter(3.0, "noise of the grey image, standard deviation in grey levels", minimum=0.1, maximum=50.0)
    ground_noise: float = parameter(0.08, "how far the road may be from a plane near the car, metres", minimum=0.0, maximum=2.0)
    clearance: float = parameter(0.35, "how high static things may begin over the road seen under them, metres", minimum=0.0, maximum=2.0)
    acceleration: float = parameter(3.0, "how strongly movers change their velocity, m/s^2", minimum=0.1, maximum=30.0)
    confirm: int = parameter(3, "frame sets with the same mover before it is published as an object", minimum=1, maximum=20)
    keep_missing: float = parameter(0.6, "how long an unseen object is kept, seconds", minimum=0.0, maximum=10.0)
