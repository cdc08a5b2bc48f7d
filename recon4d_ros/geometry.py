"""Rigid motions and pinhole projection on arrays. Poses are 4x4 float64, `T_a_b` takes points in b
to points in a."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def se3(rotation: Array, translation: Array) -> Array:
    """4x4 pose from a 3x3 rotation and a translation in metres."""
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = translation
    return pose


def se3_from_quaternion(xyz: Array, xyzw: Array) -> Array:
    """4x4 pose from metres and a unit quaternion (ROS order x y z w)."""
    return se3(Rotation.from_quat(xyzw).as_matrix(), np.asarray(xyz, np.float64))


def quaternion(pose: Array) -> Array:
    """Unit quaternion x y z w of a pose, with w >= 0 so that equal poses give equal numbers."""
    return Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)


def inverse(pose: Array) -> Array:
    """Inverse of rigid poses [..., 4, 4]."""
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    out = np.zeros_like(pose)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def exp(xi: Array) -> Array:
    """SE(3) exponential of a twist (vx vy vz wx wy wz): metres and radians."""
    w = np.asarray(xi[3:], np.float64)
    theta = float(np.linalg.norm(w))
    k = skew(w)
    if theta < 1e-8:
        v = np.eye(3) + 0.5 * k
    else:
        v = (
            np.eye(3)
            + (1 - np.cos(theta)) / theta**2 * k
            + (theta - np.sin(theta)) / theta**3 * (k @ k)
        )
    rotation = (
        np.eye(3)
        + (np.sin(theta) / theta if theta >= 1e-8 else 1.0) * k
        + 0.5 * np.sinc(theta / (2 * np.pi)) ** 2 * (k @ k)
    )
    return se3(rotation, v @ np.asarray(xi[:3], np.float64))


def along(twist: Array, times: Array) -> Array:
    """SE(3) exponentials [M, 4, 4] of a twist [6], or of one each [M, 6], times each of `times`
    [M]: where a constant motion has come to by then."""
    v, w = twist[..., :3], twist[..., 3:]
    rate = np.linalg.norm(w, axis=-1, keepdims=True)
    known = np.maximum(rate, 1e-8)
    x, y, z = np.moveaxis(np.where(rate > 1e-8, w / known, 0.0), -1, 0)
    none = np.zeros_like(x)
    axis = np.stack([none, -z, y, z, none, -x, -y, x, none], axis=-1).reshape(*x.shape, 3, 3)
    twice = axis @ axis
    angle, over = rate[..., 0] * times, 1.0 / known[..., 0]
    sine, cosine = np.sin(angle), 1.0 - np.cos(angle)
    out = np.zeros((len(times), 4, 4))
    out[:, :3, :3] = np.eye(3) + sine[:, None, None] * axis + cosine[:, None, None] * twice
    out[:, :3, 3] = times[:, None] * v + (cosine * over)[:, None] * (axis @ v[..., None])[..., 0]
    out[:, :3, 3] += (times - sine * over)[:, None] * (twice @ v[..., None])[..., 0]
    out[:, 3, 3] = 1.0
    return out


def log(pose: Array) -> Array:
    """Twist (vx vy vz wx wy wz) of a pose: the inverse of `exp`."""
    w = _rotation_vector(pose[:3, :3])
    theta = float(np.linalg.norm(w))
    k = skew(w)
    if theta < 1e-8:
        v_inv = np.eye(3) - 0.5 * k
    else:
        v_inv = (
            np.eye(3)
            - 0.5 * k
            + (1 / theta**2 - (1 + np.cos(theta)) / (2 * theta * np.sin(theta))) * (k @ k)
        )
    return np.concatenate([v_inv @ pose[:3, 3], w])


def _rotation_vector(rotation: Array) -> Array:
    """Axis times angle of a rotation [3, 3]; near half a turn, where the antisymmetric part
    vanishes, by SciPy."""
    w = 0.5 * np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = (
        float(np.sqrt(w @ w)),
        0.5 * (float(rotation[0, 0] + rotation[1, 1] + rotation[2, 2]) - 1.0),
    )
    if cosine < -0.9:
        return Rotation.from_matrix(rotation).as_rotvec()
    return w * (float(np.arctan2(sine, cosine)) / sine if sine > 1e-12 else 1.0)


def skew(w: Array) -> Array:
    """3x3 cross-product matrix."""
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]], np.float64)


def interpolate(a: Array, b: Array, fraction: float) -> Array:
    """Pose at `fraction` of the constant-twist motion from a to b; fractions outside [0, 1]
    extrapolate."""
    return a @ exp(fraction * log(inverse(a) @ b))


def transform(pose: Array, points: NDArray) -> NDArray:
    """Points [..., 3] by a pose; keeps the points' dtype."""
    rotation = pose[:3, :3].astype(points.dtype)
    return points @ rotation.T + pose[:3, 3].astype(points.dtype)


def unproject(depth: NDArray[np.float32], k: Array) -> NDArray[np.float32]:
    """Points [h, w, 3] in the camera's optical frame from z-depth [h, w] in metres; NaN depth gives
    NaN points."""
    v, u = np.indices(depth.shape, dtype=np.float32)
    x = (u - np.float32(k[0, 2])) / np.float32(k[0, 0]) * depth
    y = (v - np.float32(k[1, 2])) / np.float32(k[1, 1]) * depth
    return np.stack([x, y, depth], axis=-1)


def project(points: NDArray, k: Array) -> tuple[NDArray, NDArray]:
    """Pixels [..., 2] (u, v; centre of the first pixel is 0, 0) and z [...] of points in the
    optical frame.

    Points at or behind the camera (z <= 1e-6) give NaN pixels.
    """
    z = points[..., 2]
    safe = np.where(z > 1e-6, z, np.nan)
    u = k[0, 0] * points[..., 0] / safe + k[0, 2]
    v = k[1, 1] * points[..., 1] / safe + k[1, 2]
    return np.stack([u, v], axis=-1), z


def rectangles_shared(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """[K, M] the area that rectangles a [K, 4] and b [M, 4] (left, top, right, bottom) share, and
    the areas of a [K, 1] and b [1, M]."""
    a, b = a[:, None], b[None]
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    sizes = [(one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (a, b)]
    return np.maximum(wide, 0) * np.maximum(high, 0), sizes[0], sizes[1]


def box_corners(center: Array, size: Array, yaw: float) -> Array:
    """Corners [8, 3] of an upright box (length, width, height) turned by yaw about z; x slowest, z
    fastest."""
    corners = (
        np.stack(
            np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij"), axis=-1
        ).reshape(8, 3)
        * size
    )
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.asarray(corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + center)
