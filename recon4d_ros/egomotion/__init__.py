"""Where the car is, from its images: points followed, a robust solver for the rig, the road as a
ruler; odometry, wheel speed and a gyro beside them where there are some. See docs/egomotion.md.
"""

from recon4d_ros.egomotion.egomotion import Egomotion
from recon4d_ros.egomotion.parameters import EgomotionParameters

__all__ = ["Egomotion", "EgomotionParameters"]
