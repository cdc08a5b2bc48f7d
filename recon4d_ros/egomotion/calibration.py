"""What a car's calibration may be off by, and what that does to a motion. It does not average out
from frame to frame, and images show little of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationThresholds:
    """How well a car's calibration is known, one standard deviation each. Chosen by what real rigs
    show (docs/egomotion.md): lengths of kitti0013_a and ddad_surround are off by 1.7 and 4 %."""

    height: float = 0.02  # share: load, tyres, and a height that was measured by hand
    # m that the ground beside the lane is above it: half of it may be a pavement, 0.12 m up
    beside: float = 0.06
    lens: float = 0.004  # share: focal length and base line of a pair
    typical: float = 12.0  # m that points are away, where none are known
    farthest: float = 60.0  # m: what is farther says nothing of a length
    mount: float = 0.010  # rad that all cameras together are turned against the car's axis
    # rad that one camera of several is turned against the others: half of what a user is told of
    # (mount_check), so that nobody has seen it
    single: float = 0.0026
    # m and rad that body, mounts and lenses give between two frames, beside the images' noise
    give: float = 0.006
    give_turn: float = 0.0005
    # share of the image's height that points move by between two frames (0.15), times that by which
    # the speed of the read-out and that of the car within it may be off
    rows: float = 0.015


CALIBRATION = CalibrationThresholds()
# covariance [6, 6] of one motion that comes of what gives; it averages out
GIVE = np.diag([CALIBRATION.give**2] * 3 + [CALIBRATION.give_turn**2] * 3)


def calibration_errors(motion: Array, scale_error: float, read_out: float = 0.0) -> Array:
    """Errors [6, 3] of a motion [4, 4] by one standard deviation each of what the calibration may
    be off by: all lengths, and the rig turned about z and about y. scale_error: share of the
    lengths (`Attempt.scale_error`). read_out: of a rolling shutter, as a share of the time between
    two frames. None of it averages out.
    """
    c, twist = CALIBRATION, geometry.log(motion)
    scale = float(np.hypot(scale_error, c.rows * read_out))
    out = np.zeros((6, 3))
    out[:3, 0] = scale * twist[:3]
    for column, axis in ((1, 2), (2, 1)):
        turn = np.zeros(3)
        turn[axis] = c.mount
        out[:3, column], out[3:, column] = np.cross(turn, twist[:3]), np.cross(turn, twist[3:])
    return out
