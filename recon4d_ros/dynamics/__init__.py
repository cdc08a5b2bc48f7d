"""What moves: probability -> regions -> objects -> tracks."""

from __future__ import annotations

from recon4d_ros.dynamics.dynamics import Dynamics
from recon4d_ros.dynamics.parameters import DynamicsParameters

__all__ = ["Dynamics", "DynamicsParameters"]
