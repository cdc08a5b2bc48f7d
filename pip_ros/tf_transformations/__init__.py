"""Stand-in for tf_transformations: quaternions (x y z w) and homogeneous matrices. Same names as the real package, only the calls we make.

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


def euler_from_quaternion(quaternion: ArrayLike) -> tuple[float, float, float]:
    """Angles about x, y, z (roll, pitch, yaw)."""
    x, y, z = Rotation.from_quat(quaternion).as_euler("xyz")
    return float(x), float(y), float(z)


def euler_from_matrix(matrix: ArrayLike) -> tuple[float, float, float]:
    """Angles about x, y, z of the rotation in a 3x3 or 4x4 matrix."""
    x, y, z = Rotation.from_matrix(np.asarray(matrix, np.float64)[:3, :3]).as_euler("xyz")
    return float(x), float(y), float(z)


def quaternion_multiply(quaternion1: ArrayLike, quaternion0: ArrayLike) -> NDArray[np.float64]:
    """The rotation quaternion0 followed by quaternion1 (Hamilton product quaternion1 * quaternion0)."""
    x1, y1, z1, w1 = np.asarray(quaternion1, np.float64)
    x0, y0, z0, w0 = np.asarray(quaternion0, np.float64)
    return np.array([
        w1 * x0 + x1 * w0 + y1 * z0 - z1 * y0,
        w1 * y0 - x1 * z0 + y1 * w0 + z1 * x0,
        w1 * z0 + x1 * y0 - y1 * x0 + z1 * w0,
        w1 * w0 - x1 * x0 - y1 * y0 - z1 * z0,
    ])


def quaternion_inverse(quaternion: ArrayLike) -> NDArray[np.float64]:
    """Inverse: quaternion_multiply(q, quaternion_inverse(q)) is the identity."""
    q = np.asarray(quaternion, np.float64)
    return q * (-1.0, -1.0, -1.0, 1.0) / (q @ q)
