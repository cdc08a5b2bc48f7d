"""Where the car is, from its images: points followed, a robust solver for the rig, keyframes adjusted together, the memory looked for."""
from recon4d_ros.egomotion.egomotion import Egomotion
from recon4d_ros.egomotion.parameters import EgomotionParameters

__all__ = ["Egomotion", "EgomotionParameters"]
