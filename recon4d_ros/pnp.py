"""One robust solver for the pose of a rig: all cameras' observations together, landmarks known to any degree.

A landmark is an inverse depth along a ray from where it was first seen, with a variance. Its uncertainty is projected into the
image and added to the measurement's own, so a landmark of known depth constrains two directions, and one of unknown depth
constrains only the distance from its epipolar line: points with and without depth need no separate treatment. (Inverse depth:
Civera, Davison and Montiel, T-RO 2008, eq. 3-5; the marginal of the depth is eq. 7 of the usual extended Kalman filter.)

Outliers: graduated non-convexity with the Geman-McClure loss (Yang, Antonante, Tzoumas and Carlone, RA-L 2020, eq. 12), which
does not need a start inside the basin; where too few agree, hypotheses from random subsets, scored together in one batch.
"""
from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry

Array = NDArray[np.float64]

GATE = 9.0  # squared Mahalanobis distance beyond which an observation is an outlier (two degrees of freedom: 98.9 %)
SUBSET = 5  # observations per random hypothesis; the minimum for a rig with depth is 3, two more steady it
HYPOTHESES = 96


@dataclass(frozen=True)
class Observations:
    """M sightings of landmarks.

    origin [M, 3], bearing [M, 3]: in map; the landmark is origin + bearing / rho. rho [M], variance [M]: inverse depth (1/m) and its
    variance. camera [M]: which camera sees it. ray [M, 2]: where, as normalised coordinates. sigma [M]: standard deviation of ray.
    landmark [M]: index of the landmark in the caller's table.
    """

    origin: Array
    bearing: Array
    rho: Array
    variance: Array
    camera: NDArray[np.int64]
    ray: Array
    sigma: Array
    landmark: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rho)

    def take(self, index: NDArray) -> Observations:
        return Observations(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def join(parts: list[Observations]) -> Observations:
        return Observations(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Observations)))


@dataclass(frozen=True)
class Prior:
    """Where the base is expected: pose in map and covariance of its error in base_link (v, w order)."""

    T_map_base: Array
    covariance: Array


@dataclass(frozen=True)
class Solution:
    """distance [M]: squared Mahalanobis distance of every observation. inlier [M]. information: [6, 6] of the observations alone."""

    T_map_base: Array
    distance: Array
    inlier: NDArray[np.bool_]
    information: Array
    cost: float

    @property
    def inliers(self) -> int:
        return int(self.inlier.sum())


def adjoint(pose: Array) -> Array:
    """[6, 6]: a twist (v, w) in b as one in a, for `pose` = T_a_b."""
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = pose[:3, :3]
    out[:3, 3:] = geometry.skew(pose[:3, 3]) @ pose[:3, :3]
    return out


def _cross(a: Array, b: Array) -> Array:
    """np.cross on the last axis, without its overhead."""
    x, y, z = a[..., 0], a[..., 1], a[..., 2]
    u, v, w = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=-1)


def _moved(poses: Array, xi: Array) -> Array:
    """Poses [K, 4, 4] with steps [K, 6] applied on the right: Rodrigues for the rotation, the translation as it is (a retraction)."""
    w = xi[:, 3:]
    angle = np.linalg.norm(w, axis=-1)
    small = angle < 1e-8
    safe = np.where(small, 1.0, angle)
    sine, cosine = np.where(small, 1.0, np.sin(safe) / safe), np.where(small, 0.5, (1.0 - np.cos(safe)) / safe**2)
    k = np.zeros((len(xi), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -w[:, 2], w[:, 1], -w[:, 0]
    k -= np.swapaxes(k, 1, 2)
    out = poses.copy()
    out[:, :3, :3] = poses[:, :3, :3] @ (np.eye(3) + sine[:, None, None] * k + cosine[:, None, None] * (k @ k))
    out[:, :3, 3] += np.einsum("kij,kj->ki", poses[:, :3, :3], xi[:, :3])
    return out


def _toward(poses: Array, prior: Prior) -> Array:
    """Step [K, 6] that takes each pose to the prior, the inverse of `_moved` for turns well below a right angle."""
    turn = np.swapaxes(poses[:, :3, :3], 1, 2) @ prior.T_map_base[:3, :3]
    w = 0.5 * np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]], axis=-1)
    v = np.einsum("kji,kj->ki", poses[:, :3, :3], prior.T_map_base[:3, 3] - poses[:, :3, 3])
    return np.concatenate([v, w], axis=-1)


def project(T_map_base: Array, T_camera_base: Array, o: Observations) -> tuple[Array, Array, Array]:
    """Landmarks in the cameras' frames for K poses.

    T_map_base: [K, 4, 4]; T_camera_base: [N, 4, 4]; observations [K, M] or [M]. Returns q [K, M, 3] (landmark times rho, optical
    frame), q in base_link [K, M, 3], and dq/drho [K, M, 3].
    """
    rotation = T_map_base[:, :3, :3]
    offset = o.origin - T_map_base[:, None, :3, 3]
    camera = T_camera_base[o.camera]
    around = offset @ rotation
    base = o.rho[..., None] * around + o.bearing @ rotation
    turn = camera[..., :3, :3]
    slope = np.einsum("...ij,...j->...i", turn, around) + camera[..., :3, 3]
    q = np.einsum("...ij,...j->...i", turn, base) + o.rho[..., None] * camera[..., :3, 3]
    return q, base, slope


def linearise(T_map_base: Array, T_camera_base: Array, o: Observations) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Residual (measured minus predicted) [K, M, 2], its derivative [K, M, 2] by rho (of the prediction), the Jacobian [K, M, 2, 6]
    of the prediction for T exp(xi), and validity [K, M] (in front of the camera)."""
    q, base, slope = project(T_map_base, T_camera_base, o)
    turn = T_camera_base[o.camera][..., :3, :3]
    good = q[..., 2] > 1e-3
    z = np.where(good, q[..., 2], 1.0)
    xy = q[..., :2] / z[..., None]
    residual = o.ray - xy
    # d(xy)/dq = [I | -xy] / z, applied row by row
    toward = (turn[..., :2, :] - xy[..., :, None] * turn[..., 2:3, :]) / z[..., None, None]
    along = (slope[..., :2] - xy * slope[..., 2:3]) / z[..., None]
    # dq_base = -rho v + q x w, as rows: a . (q x w) = (a x q) . w
    rho = np.broadcast_to(o.rho, z.shape)
    turning = _cross(toward, base[..., None, :])
    jacobian = np.concatenate([-rho[..., None, None] * toward, turning], axis=-1)
    return residual, along, jacobian, good


def whiten(residual: Array, along: Array, o: Observations) -> tuple[Array, Array]:
    """Squared Mahalanobis distance [K, M] and weight matrices [K, M, 2, 2] with the depth's variance marginalised (Sherman-Morrison)."""
    noise = o.sigma**2
    spread = o.variance / (noise + o.variance * (along**2).sum(-1))
    weight = (np.eye(2) - spread[..., None, None] * along[..., :, None] * along[..., None, :]) / noise[..., None, None]
    distance = np.einsum("...i,...ij,...j->...", residual, weight, residual)
    return distance, weight


def step(T_map_base: Array, jacobian: Array, weight: Array, residual: Array, scale: Array, prior: Prior | None) -> tuple[Array, Array]:
    """One Gauss-Newton step for K poses: new poses [K, 4, 4] and the observations' information [K, 6, 6]. scale [K, M]: robust weights."""
    count = T_map_base.shape[0]
    weighted = np.einsum("kmij,kmjl->kmil", weight * scale[..., None, None], jacobian).reshape(count, -1, 6)
    flat = jacobian.reshape(count, -1, 6)
    information = np.swapaxes(flat, 1, 2) @ weighted
    gradient = (np.swapaxes(weighted, 1, 2) @ residual.reshape(count, -1, 1))[..., 0]
    normal = information + 1e-9 * np.eye(6)
    if prior is not None:
        strength = np.linalg.inv(prior.covariance)
        normal = normal + strength
        gradient = gradient + _toward(T_map_base, prior) @ strength
    xi = np.linalg.solve(normal, gradient[..., None])[..., 0]
    return _moved(T_map_base, np.clip(xi, -20.0, 20.0)), information


def evaluate(T_map_base: Array, T_camera_base: Array, o: Observations) -> Array:
    """Squared Mahalanobis distances [K, M]; infinite behind the camera."""
    residual, along, _, good = linearise(T_map_base, T_camera_base, o)
    return np.where(good, whiten(residual, along, o)[0], np.inf)


def anneal(start: Array, T_camera_base: Array, o: Observations, prior: Prior, rounds: int = 10) -> Array:
    """Pose [4, 4] by graduated non-convexity from `start`."""
    pose = start[None]
    control = 0.0
    for index in range(rounds):
        residual, along, jacobian, good = linearise(pose, T_camera_base, o)
        distance, weight = whiten(residual, along, o)
        if index == 0:
            control = float(np.clip(2.0 * np.quantile(distance[good], 0.9) / GATE, 1.0, 1e4)) if good.any() else 1.0
        scale = np.where(good, (control * GATE / (distance + control * GATE)) ** 2, 0.0)
        moved, _ = step(pose, jacobian, weight, residual, scale, prior)
        change = np.linalg.norm(moved[0, :3] - pose[0, :3])
        pose = moved
        if control <= 1.0 and change < 1e-4:
            break
        control = max(1.0, control / 4.0)
    return pose[0]


def cost(distance: Array, pose: Array, prior: Prior) -> Array:
    """Truncated sum of distances [K] plus the prior's (so that a big mover must outweigh the expected motion)."""
    back = _toward(pose, prior)
    return np.minimum(distance, GATE).sum(-1) + np.einsum("ki,ij,kj->k", back, np.linalg.inv(prior.covariance), back)


def hypotheses(start: Array, T_camera_base: Array, o: Observations, prior: Prior, rng: np.random.Generator) -> Array:
    """Poses [K, 4, 4], each from a few random observations and a prior too weak to hold it."""
    subset = o.take(np.argsort(rng.random((HYPOTHESES, len(o))), axis=1)[:, :SUBSET])
    loose = Prior(prior.T_map_base, prior.covariance * 16.0)
    poses = np.repeat(start[None], HYPOTHESES, axis=0)
    for _ in range(5):
        residual, along, jacobian, good = linearise(poses, T_camera_base, subset)
        _, weight = whiten(residual, along, subset)
        poses, _ = step(poses, jacobian, weight, residual, good.astype(np.float64), loose)
    return poses


def solve(
    T_camera_base: Array, o: Observations, prior: Prior, seed: int = 0, enough: float = 0.7, start: Array | None = None
) -> Solution:
    """The rig's pose from all cameras' observations and a prior.

    T_camera_base: [N, 4, 4], each camera's skew in time already in it. enough: share of inliers above which the annealed solution
    is taken as it is; below it, random hypotheses compete with it. start: a pose [4, 4] already near, to be polished only.
    Never raises: without observations the prior comes back.
    """
    if len(o) == 0:
        return Solution(prior.T_map_base, np.empty(0), np.empty(0, np.bool_), np.zeros((6, 6)), 0.0)
    pose = anneal(prior.T_map_base, T_camera_base, o, prior) if start is None else start
    if start is None and len(o) > SUBSET and (evaluate(pose[None], T_camera_base, o) < GATE).mean() < enough:
        rng = np.random.default_rng(seed)
        candidates = np.concatenate([hypotheses(prior.T_map_base, T_camera_base, o, prior, rng), pose[None], prior.T_map_base[None]])
        distances = evaluate(candidates, T_camera_base, o)
        best = candidates[int(np.argmin(cost(distances, candidates, prior)))]
        pose = best
    information = np.zeros((6, 6))
    for _ in range(3):  # polish: Geman-McClure at its final width
        residual, along, jacobian, good = linearise(pose[None], T_camera_base, o)
        distance, weight = whiten(residual, along, o)
        scale = np.where(good, (GATE / (distance + GATE)) ** 2, 0.0)
        moved, informations = step(pose[None], jacobian, weight, residual, scale, prior)
        information = informations[0]
        change = np.linalg.norm(moved[0, :3] - pose[:3])
        pose = moved[0]
        if change < 1e-5:
            break
    distance = evaluate(pose[None], T_camera_base, o)
    return Solution(pose, distance[0], distance[0] < GATE, information, float(cost(distance, pose[None], prior)[0]))
