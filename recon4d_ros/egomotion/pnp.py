"""One robust solver for the pose of a rig: all cameras' observations together, landmarks known to
any degree.

A landmark is an inverse depth along a ray from where it was first seen, with a variance. Its
uncertainty is projected into the image and added to the measurement's own, so a landmark of known
depth constrains two directions, and one of unknown depth constrains only the distance from its
epipolar line: points with and without depth need no separate treatment. (Inverse depth: Civera,
Davison and Montiel, T-RO 2008, eq. 3-5; the marginal of the depth is eq. 7 of the usual extended
Kalman filter.)

Outliers: graduated non-convexity with the Geman-McClure loss (Yang, Antonante, Tzoumas and Carlone,
RA-L 2020, eq. 12), which does not need a start inside the basin; where too few agree, hypotheses
from random subsets, scored together in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry

Array = NDArray[np.float64]

# squared Mahalanobis distance beyond which an observation is an outlier (two degrees of freedom:
# 98.9 %)
GATE = 9.0
# variance of what points say together over what they would say if they erred independently, where
# next to half of them disagree (see `together`)
TOGETHER = 12.0
# observations per random hypothesis; the minimum for a rig with depth is 3, two more steady it
SUBSET = 5
HYPOTHESES = 96
GLANCE, FINALISTS = (
    64,
    12,
)  # observations that all hypotheses are scored on, hypotheses that are then scored on all


@dataclass(frozen=True)
class Observations:
    """M sightings of landmarks.

    origin [M, 3], bearing [M, 3]: in map; the landmark is origin + bearing / rho. rho [M], variance
    [M]: inverse depth (1/m) and its variance. camera [M]: which camera sees it. ray [M, 2]: where,
    as normalised coordinates. sigma [M]: standard deviation of ray. landmark [M]: index of the
    landmark in the caller's table.

    Of rolling shutters: late [M]: seconds after the camera's stamp at which the row was read out
    that shows it; row [M, 4, 4]: base_link at the frame's stamp to base_link then (see `moving`).
    None where every row is read out at once. (A pose for each row, by constant velocity: Hedborg,
    Forssen, Felsberg and Ringaby, CVPR 2012, section 3.)
    """

    origin: Array
    bearing: Array
    rho: Array
    variance: Array
    camera: NDArray[np.int64]
    ray: Array
    sigma: Array
    landmark: NDArray[np.int64]
    late: Array | None = None
    row: Array | None = None

    def __len__(self) -> int:
        return len(self.rho)

    def take(self, index: NDArray) -> Observations:
        values: list[Any] = [getattr(self, field.name) for field in fields(self)]
        taken: list[Any] = [None if value is None else value[index] for value in values]
        return Observations(*taken)

    def moving(self, twist: Array) -> Observations:
        """The same of a car that moves with a twist [6] while rows are read out."""
        if self.late is None:
            return self
        return replace(self, row=geometry.along(twist, -self.late))

    @staticmethod
    def join(parts: list[Observations]) -> Observations:
        columns: list[list[Any]] = [
            [getattr(part, field.name) for part in parts] for field in fields(Observations)
        ]
        joined: list[Any] = [
            None if values[0] is None else np.concatenate(values) for values in columns
        ]
        return Observations(*joined)


@dataclass(frozen=True)
class Prior:
    """Where the base is expected: pose in map and covariance of its error in base_link (v, w
    order)."""

    T_map_base: Array
    covariance: Array

    @cached_property
    def strength(self) -> Array:
        """The inverse of the covariance."""
        return np.asarray(np.linalg.inv(self.covariance), np.float64)


def fused(prior: Prior, T_map_base: Array, information: Array, pull: Array) -> Prior:
    """The prior and another measurement of the pose together: information [6, 6] of steps at
    T_map_base [4, 4], and its pull [6] there (zero where that is its own best)."""
    toward = geometry.log(geometry.inverse(T_map_base) @ prior.T_map_base)
    normal = prior.strength + information
    step = np.asarray(np.linalg.solve(normal, prior.strength @ toward + pull), np.float64)
    return Prior(T_map_base @ geometry.exp(step), np.asarray(np.linalg.inv(normal), np.float64))


@dataclass(frozen=True)
class Solution:
    """distance [M]: squared Mahalanobis distance of every observation. inlier [M]. information: [6,
    6] of the observations alone."""

    T_map_base: Array
    distance: Array
    inlier: NDArray[np.bool_]
    information: Array
    cost: float

    @property
    def inliers(self) -> int:
        return int(self.inlier.sum())


def together(share: float) -> float:
    """Variance of what sightings say together, over what it would be if they erred independently,
    where a share of them agrees on one motion.

    The more disagree, the more of those that agree do so by chance or share a wrong depth. The law,
    in the odds of disagreeing, is that of the squared errors of 440 simulated motions by day and
    night, seeds 11 to 15: from 0.6 where nine in ten agree to 20 where less than half do, beyond
    which it does not grow.
    """
    odds = (1.0 - share) / max(share, 0.05)
    return min(0.75 + 13.0 * odds**2, 20.0)


def adjoint(pose: Array) -> Array:
    """[6, 6]: a twist (v, w) in b as one in a, for `pose` = T_a_b."""
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = pose[:3, :3]
    out[:3, 3:] = geometry.skew(pose[:3, 3]) @ pose[:3, :3]
    return out


def _moved(poses: Array, xi: Array) -> Array:
    """Poses [K, 4, 4] with steps [K, 6] applied on the right: Rodrigues for the rotation, the
    translation as it is (a retraction)."""
    w = xi[:, 3:]
    angle = np.sqrt((w * w).sum(-1)) / np.pi
    sine, cosine = (
        np.sinc(angle),
        0.5 * np.square(np.sinc(0.5 * angle)),
    )  # sin(a) / a and (1 - cos(a)) / a^2, whole at zero
    k = np.zeros((len(xi), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -w[:, 2], w[:, 1], -w[:, 0]
    k -= np.swapaxes(k, 1, 2)
    turn = sine[:, None, None] * k + cosine[:, None, None] * (k @ k)
    out = poses.copy()
    out[:, :3, :3] += poses[:, :3, :3] @ turn
    out[:, :3, 3] += (poses[:, :3, :3] @ xi[:, :3, None])[..., 0]
    return out


def _toward(poses: Array, prior: Prior) -> Array:
    """Step [K, 6] that takes each pose to the prior, the inverse of `_moved` for turns well below a
    right angle."""
    back = np.swapaxes(poses[:, :3, :3], 1, 2)
    turn = back @ prior.T_map_base[:3, :3]
    out = np.empty((len(poses), 6))
    out[:, :3] = (back @ (prior.T_map_base[:3, 3] - poses[:, :3, 3])[..., None])[..., 0]
    out[:, 3], out[:, 4], out[:, 5] = (
        turn[:, 2, 1] - turn[:, 1, 2],
        turn[:, 0, 2] - turn[:, 2, 0],
        turn[:, 1, 0] - turn[:, 0, 1],
    )
    out[:, 3:] *= 0.5
    return out


@dataclass(frozen=True)
class View:
    """Observations laid out for the solver: the last axis runs over the M observations, so that
    every operation is one over M numbers.

    The first axis is 1, or K where each pose has observations of its own. origin, bearing, centre
    [K, 3, M]; turn [K, 3, 3, M]: rotation of base_link into the seeing camera, centre the base's
    origin in it; ray [K, 2, M]; rho, variance [K, M]; noise [K, M]: variance of ray.
    """

    origin: Array
    bearing: Array
    rho: Array
    variance: Array
    turn: Array
    centre: Array
    ray: Array
    noise: Array

    @staticmethod
    def of(T_camera_base: Array, o: Observations) -> View:
        camera = np.moveaxis(T_camera_base[:, :3], 0, -1).take(o.camera, axis=-1)  # [3, 4, M]
        if o.row is not None:
            moved = np.einsum("ijm,mjk->ikm", camera[:, :3], o.row[:, :3])
            moved[:, 3] += camera[:, 3]
            camera = moved
        turn, centre = (
            np.ascontiguousarray(camera[None, :, :3]),
            np.ascontiguousarray(camera[None, :, 3]),
        )
        origin, bearing, ray = (
            np.ascontiguousarray(values.T)[None] for values in (o.origin, o.bearing, o.ray)
        )
        return View(
            origin,
            bearing,
            o.rho[None],
            o.variance[None],
            turn,
            centre,
            ray,
            np.square(o.sigma)[None],
        )

    def thinned(self, every: int) -> View:
        """One observation in `every`."""
        return View(
            *(
                np.ascontiguousarray(getattr(self, field.name)[..., ::every])
                for field in fields(self)
            )
        )

    def subsets(self, index: NDArray) -> View:
        """For each of K poses the observations index [K, S] of the one set that is here."""
        return View(
            *(
                np.moveaxis(getattr(self, field.name)[0].take(index, axis=-1), -2, 0)
                for field in fields(self)
            )
        )


@dataclass(frozen=True)
class Linear:
    """residual [K, 2, M]: measured minus predicted ray. along [K, 2, M]: derivative of the
    prediction by rho. ahead [K, M]: in front of the camera. jacobian [K, 6, 2, M]: of the
    prediction by xi, for T_map_base exp(xi)."""

    residual: Array
    along: Array
    ahead: NDArray[np.bool_]
    jacobian: Array


def project(T_map_base: Array, T_camera_base: Array, o: Observations) -> Array:
    """Landmarks times their rho in the seeing cameras' optical frames [K, M, 3], for poses [K, 4,
    4]."""
    return np.moveaxis(_placed(T_map_base, View.of(T_camera_base, o))[0], 1, 2)


def _placed(T_map_base: Array, view: View) -> tuple[Array, Array, Array]:
    """Landmarks times rho in the camera and in base_link, and the derivative of the former by rho:
    each [K, 3, M]."""
    back = np.swapaxes(T_map_base[:, :3, :3], 1, 2)
    around = back @ (view.origin - T_map_base[:, :3, 3:])
    rho = view.rho[:, None]
    base = back @ view.bearing
    base += rho * around
    q, slope = (view.turn * base[:, None]).sum(2), (view.turn * around[:, None]).sum(2)
    q += rho * view.centre
    slope += view.centre
    return q, base, slope


def _predicted(
    q: Array, slope: Array, view: View
) -> tuple[Array, Array, Array, Array, NDArray[np.bool_]]:
    """Residual and its derivative by rho as in `Linear`, the ray [K, 2, M], 1 / z [K, 1, M], and
    what is in front of the camera [K, M]."""
    ahead = q[:, 2] > 1e-3
    over = 1.0 / np.where(ahead, q[:, 2], 1.0)[:, None]
    xy = q[:, :2] * over
    return view.ray - xy, (slope[:, :2] - xy * slope[:, 2:]) * over, xy, over, ahead


def linearise(T_map_base: Array, view: View) -> Linear:
    """At poses [K, 4, 4]."""
    q, base, slope = _placed(T_map_base, view)
    residual, along, xy, over, ahead = _predicted(q, slope, view)
    # d(xy)/dq = [I | -xy] / z, applied to the camera's rows; [K, 3, 2, M]
    toward = view.turn[:, :2] - xy[:, :, None] * view.turn[:, 2:]
    toward *= over[:, None]
    toward = np.swapaxes(toward, 1, 2)
    jacobian = np.empty((toward.shape[0], 6, 2, toward.shape[-1]))
    # dq_base = -rho v + q x w, as rows: a . (q x w) = (a x q) . w
    np.multiply(toward, -view.rho[:, None, None], out=jacobian[:, :3])
    for row, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        np.subtract(
            toward[:, i] * base[:, j, None],
            toward[:, j] * base[:, i, None],
            out=jacobian[:, 3 + row],
        )
    return Linear(residual, along, ahead, jacobian)


def whiten(residual: Array, along: Array, view: View) -> tuple[Array, Array]:
    """Squared Mahalanobis distance [K, M] with the depth's variance marginalised, and the share s
    [K, M] of `along` that it takes away: the weight matrix is (I - s along along^T) / noise
    (Sherman-Morrison)."""
    share = view.variance / (view.noise + view.variance * np.square(along).sum(1))
    return (
        np.square(residual).sum(1) - share * np.square((along * residual).sum(1))
    ) / view.noise, share


def step(
    T_map_base: Array, linear: Linear, share: Array, scale: Array, prior: Prior | None
) -> tuple[Array, Array]:
    """One Gauss-Newton step for K poses: new poses [K, 4, 4] and the observations' information [K,
    6, 6].

    scale [K, M]: robust weights divided by the rays' variance. share: as `whiten` gives it.
    """
    count, unknowns, _, seen = linear.jacobian.shape
    # J^T (I - s a a^T) J: both directions of the image, and less of what lies along the unknown
    # depth
    rows = linear.jacobian.reshape(count, unknowns, 2 * seen)
    weighted = (linear.jacobian * scale[:, None, None]).reshape(count, unknowns, 2 * seen)
    along = (
        linear.jacobian[:, :, 0] * linear.along[:, None, 0]
        + linear.jacobian[:, :, 1] * linear.along[:, None, 1]
    )
    lost = along * (share * scale)[:, None]
    residual = (
        linear.residual[:, 0] * linear.along[:, 0] + linear.residual[:, 1] * linear.along[:, 1]
    )
    information = weighted @ np.swapaxes(rows, 1, 2) - lost @ np.swapaxes(along, 1, 2)
    gradient = (
        weighted @ linear.residual.reshape(count, 2 * seen, 1) - lost @ residual[..., None]
    )[..., 0]
    normal = information + 1e-9 * np.eye(6)
    if prior is not None:
        normal = normal + prior.strength
        gradient = gradient + _toward(T_map_base, prior) @ prior.strength
    return _moved(
        T_map_base, np.minimum(np.maximum(_solved(normal, gradient), -20.0), 20.0)
    ), information


def _solved(normal: Array, right: Array) -> Array:
    """Steps [K, 6] of normal equations [K, 6, 6]; none where these say nothing, as where all that
    is seen stands at one point."""
    try:
        steps = np.linalg.solve(normal, right[..., None])[..., 0]
    except np.linalg.LinAlgError:  # next to such numbers the prior is lost to rounding
        largest = np.maximum(np.abs(normal).max((1, 2)), 1.0)[:, None, None]
        steps = np.linalg.solve(normal / largest + 1e-12 * np.eye(6), right[..., None] / largest)[
            ..., 0
        ]
    return np.where(np.isfinite(steps), steps, 0.0)


def distances(T_map_base: Array, view: View) -> Array:
    """Squared Mahalanobis distances [K, M] at poses [K, 4, 4]; infinite behind the camera."""
    q, _, slope = _placed(T_map_base, view)
    residual, along, _, _, ahead = _predicted(q, slope, view)
    return np.where(ahead, whiten(residual, along, view)[0], np.inf)


def evaluate(T_map_base: Array, T_camera_base: Array, o: Observations) -> Array:
    """Squared Mahalanobis distances [K, M] at poses [K, 4, 4]; infinite behind the camera."""
    return distances(T_map_base, View.of(T_camera_base, o))


def anneal(start: Array, view: View, prior: Prior, rounds: int = 10) -> Array:
    """Pose [4, 4] by graduated non-convexity from `start`."""
    pose = start[None]
    control = 0.0
    for index in range(rounds):
        linear = linearise(pose, view)
        distance, share = whiten(linear.residual, linear.along, view)
        if index == 0:
            ahead = distance[linear.ahead]
            control = (
                float(np.clip(2.0 * np.quantile(ahead, 0.9) / GATE, 1.0, 1e4))
                if len(ahead)
                else 1.0
            )
        width = control * GATE
        moved, _ = step(
            pose,
            linear,
            share,
            linear.ahead * np.square(width / (distance + width)) / view.noise,
            prior,
        )
        change = np.linalg.norm(moved[0, :3] - pose[0, :3])
        pose = moved
        if control <= 1.0 and change < 1e-4:
            break
        control = max(1.0, control / 4.0)
    return pose[0]


def cost(distance: Array, pose: Array, prior: Prior, share: float = 1.0) -> Array:
    """Truncated sum of distances [K] plus the prior's (so that a big mover must outweigh the
    expected motion).

    share: of the observations that are here.
    """
    back = _toward(pose, prior)
    return np.minimum(distance, GATE).sum(-1) / share + np.einsum(
        "ki,ij,kj->k", back, prior.strength, back
    )


def best(poses: Array, view: View, prior: Prior) -> Array:
    """The cheapest of poses [K, 4, 4]: the few that a part of the observations likes best go to all
    (preemption: Nister, ICCV 2003)."""
    every = view.rho.shape[1] // GLANCE
    if every > 1:
        rough = cost(distances(poses, view.thinned(every)), poses, prior, 1.0 / every)
        poses = poses[np.argsort(rough)[:FINALISTS]]
    return np.asarray(poses[int(np.argmin(cost(distances(poses, view), poses, prior)))], np.float64)


def hypotheses(start: Array, view: View, prior: Prior, rng: np.random.Generator) -> Array:
    """Poses [K, 4, 4], each from a few random observations and a prior too weak to hold it."""
    subset = view.subsets(
        np.argpartition(rng.random((HYPOTHESES, view.rho.shape[1])), SUBSET, axis=1)[:, :SUBSET]
    )
    loose = Prior(prior.T_map_base, prior.covariance * 16.0)
    poses = np.repeat(start[None], HYPOTHESES, axis=0)
    for _ in range(5):
        linear = linearise(poses, subset)
        _, share = whiten(linear.residual, linear.along, subset)
        poses, _ = step(poses, linear, share, linear.ahead / subset.noise, loose)
    return poses


def solve(
    T_camera_base: Array,
    o: Observations,
    prior: Prior,
    seed: int = 0,
    enough: float = 0.7,
    start: Array | None = None,
) -> Solution:
    """The rig's pose from all cameras' observations and a prior.

    T_camera_base: [N, 4, 4], each camera's skew in time already in it. enough: share of inliers
    above which the annealed solution is taken as it is; below it, random hypotheses compete with
    it. start: a pose [4, 4] already near, to be polished only. Never raises: without observations
    the prior comes back.
    """
    if len(o) == 0:
        return Solution(prior.T_map_base, np.empty(0), np.empty(0, np.bool_), np.zeros((6, 6)), 0.0)
    view = View.of(T_camera_base, o)
    pose = anneal(prior.T_map_base, view, prior) if start is None else start
    if start is None and len(o) > SUBSET and (distances(pose[None], view) < GATE).mean() < enough:
        rng = np.random.default_rng(seed)
        candidates = np.concatenate(
            [hypotheses(prior.T_map_base, view, prior, rng), pose[None], prior.T_map_base[None]]
        )
        pose = best(candidates, view, prior)
    information = np.zeros((6, 6))
    for _ in range(3):  # polish: Geman-McClure at its final width
        linear = linearise(pose[None], view)
        distance, share = whiten(linear.residual, linear.along, view)
        moved, informations = step(
            pose[None],
            linear,
            share,
            linear.ahead * np.square(GATE / (distance + GATE)) / view.noise,
            prior,
        )
        information = informations[0]
        change = np.linalg.norm(moved[0, :3] - pose[:3])
        pose = moved[0]
        if change < 1e-4:
            break
    distance = distances(pose[None], view)
    return Solution(
        pose,
        distance[0],
        distance[0] < GATE,
        information,
        float(cost(distance, pose[None], prior)[0]),
    )
