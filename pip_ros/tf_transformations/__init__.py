"""Stand-in for tf_transformations: quaternions (x y z w) and homogeneous matrices. Same names as
the real package, only the calls we make.

Euler angles are about the static axes x, y, z (the real package's default, `sxyz`), in radians.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

STAND_IN = True


def quaternion_from_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    """Unit quaternion, w >= 0, of the rotation in a 4x4 matrix."""
    quaternion = Rotation.from_matrix(np.asarray(matrix, np.float64)[:3, :3]).as_quat()
    return -quaternion if quaternion[3] < 0 else quaternion


def quaternion_matrix(quaternion: ArrayLike) -> NDArray[np.float64]:
    """4x4 matrix of a quaternion, which need not be of unit length."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    return matrix


def quaternion_from_euler(ai: float, aj: float, ak: float) -> NDArray[np.float64]:
    """Quaternion of the rotations ai about x, then aj about y, then ak about z."""
    return Rotation.from_euler("xyz", [ai, aj, ak]).as_quat()
