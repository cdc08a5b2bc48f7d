"""Where the car is, from its images: points followed, a robust solver for the rig, the memory
looked for, the road as a ruler.

A frame goes egomotion -> attempts -> sightings (settling, patches) -> pnp, then learning, mounts
(bundle), ruler, planting.
"""

from recon4d_ros.egomotion.egomotion import Egomotion
from recon4d_ros.egomotion.parameters import EgomotionParameters

__all__ = ["Egomotion", "EgomotionParameters"]
