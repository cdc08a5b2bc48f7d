"""The last few keyframes adjusted together: their poses, the landmarks' depths, and how the cameras
of a pair are turned to each other.

Stereo makes every metre from the angle between two cameras; a hundredth of a degree of error there
is a per cent of scale at 20 m, and mounts and calibrations are not better than that. Landmarks seen
by the pair from several places say what the angle is: points near and far agree on one motion only
if it is right. Bundle adjustment as in Triggs et al. (2000), section 6, with inverse depths (one
number per landmark, eliminated in closed form) and the cameras' rotations as further unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion.camera_rig import Cameras, at_their_stamps
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.pnp import GATE, TOGETHER, Observations
from recon4d_ros.types import Frame

Array = NDArray[np.float64]

ROUNDS = 5


@dataclass(frozen=True)
class Keyframe:
    """Where landmarks were seen at one instant.

    identity, camera [M]; ray [M, 2] normalised; sigma [M]; own [M]: seen by the camera that follows
    it. T_base_camera: [N, 4, 4] nominal extrinsics at that instant (skew in time included, turns
    not). row: [M, 4, 4] as in `Observations`, of rolling shutters.
    """

    T_map_base: Array
    T_base_camera: Array
    identity: NDArray[np.int64]
    camera: NDArray[np.int64]
    own: NDArray[np.bool_]
    ray: Array
    sigma: Array
    row: Array | None = None


@dataclass(frozen=True)
class Adjusted:
    """T_map_base: [K, 4, 4]. turn: [N, 3] rotation vectors of the cameras about their own axes,
    rad. covariance: [3N, 3N] of the turns."""

    T_map_base: Array
    turn: Array
    covariance: Array
    identity: NDArray[np.int64]
    position: Array
    residual: float

    def seen_from(self, T_map_base: Array) -> Adjusted:
        """The same with the last pose at T_map_base [4, 4]: the car does not jump, what is around
        it moves."""
        move = T_map_base @ geometry.inverse(self.T_map_base[-1])
        return replace(
            self,
            T_map_base=move @ self.T_map_base,
            position=geometry.transform(move, self.position),
        )


@dataclass(frozen=True)
class _Problem:
    """Observations [M] of landmarks [L], each with its anchor: the first keyframe in which its own
    camera saw it."""

    landmark: NDArray[np.int64]
    at: NDArray[np.int64]
    camera: NDArray[np.int64]
    ray: Array
    sigma: Array
    anchor_at: NDArray[np.int64]
    anchor_camera: NDArray[np.int64]
    anchor_ray: Array
    identity: NDArray[np.int64]
    row: Array | None
    anchor_row: Array | None

    def anchors(self, T_base_camera: Array) -> Array:
        """T_base_camera [L, 4, 4] of the anchors, where their rows were read out."""
        place = T_base_camera[self.anchor_at, self.anchor_camera]
        return place if self.anchor_row is None else geometry.inverse(self.anchor_row) @ place

    def cameras(self, T_base_camera: Array) -> Array:
        """T_camera_base [M, 4, 4] of the observations, where their rows were read out."""
        place = geometry.inverse(T_base_camera[self.at, self.camera])
        return place if self.row is None else np.asarray(place @ self.row, np.float64)


def _arrange(keyframes: list[Keyframe]) -> _Problem | None:
    """Landmarks seen from at least two keyframes, observations sorted by landmark; None if there
    are too few."""
    identity = np.concatenate([keyframe.identity for keyframe in keyframes])
    at = np.concatenate(
        [np.full(len(keyframe.identity), index) for index, keyframe in enumerate(keyframes)]
    )
    camera, own = (
        np.concatenate([keyframe.camera for keyframe in keyframes]),
        np.concatenate([keyframe.own for keyframe in keyframes]),
    )
    ray, sigma = (
        np.concatenate([keyframe.ray for keyframe in keyframes]),
        np.concatenate([keyframe.sigma for keyframe in keyframes]),
    )
    own_index = np.flatnonzero(own)
    _, first, places = np.unique(identity[own_index], return_index=True, return_counts=True)
    anchors = own_index[
        first[places >= 2]
    ]  # unique gives the first occurrence, and keyframes come oldest first
    if len(anchors) < 20:
        return None
    identities = identity[anchors]
    which = np.minimum(np.searchsorted(identities, identity), len(identities) - 1)
    use = identities[which] == identity
    use[anchors] = False
    order = np.flatnonzero(use)[np.argsort(which[use], kind="stable")]
    rays = np.concatenate([ray[anchors], np.ones((len(anchors), 1))], axis=1)
    rows = [keyframe.row for keyframe in keyframes if keyframe.row is not None]
    row = np.concatenate(rows) if rows else None
    return _Problem(
        which[order],
        at[order],
        camera[order],
        ray[order],
        sigma[order],
        at[anchors],
        camera[anchors],
        rays,
        identities,
        None if row is None else row[order],
        None if row is None else row[anchors],
    )


def _blocks(
    problem: _Problem, poses: Array, T_base_camera: Array, rho: Array
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Residuals [M, 2], Jacobian [M, 2, 6K + 3N] by poses and turns, [M, 2] by inverse depth, and
    what lies ahead of its camera."""
    p, cameras = problem, T_base_camera.shape[1]
    count, rows = len(p.landmark), np.arange(len(p.landmark))
    a_at, a_camera, r = p.anchor_at[p.landmark], p.anchor_camera[p.landmark], rho[p.landmark]
    mount = p.anchors(T_base_camera)[p.landmark]
    ray = p.anchor_ray[p.landmark]
    there = p.cameras(T_base_camera)
    between = geometry.inverse(poses[p.at]) @ poses[a_at]
    start = np.einsum("mij,mj->mi", mount[:, :3, :3], ray) + r[:, None] * mount[:, :3, 3]
    base = np.einsum("mij,mj->mi", between[:, :3, :3], start) + r[:, None] * between[:, :3, 3]
    q = np.einsum("mij,mj->mi", there[:, :3, :3], base) + r[:, None] * there[:, :3, 3]
    good = q[:, 2] > 1e-3
    z = np.where(good, q[:, 2], 1.0)
    xy = q[:, :2] / z[:, None]
    lens = np.zeros((count, 2, 3))
    lens[:, 0, 0] = lens[:, 1, 1] = 1.0 / z
    lens[:, :, 2] = -xy / z[:, None]
    toward = lens @ there[:, :3, :3]
    back = toward @ between[:, :3, :3]
    jacobian = np.zeros((count, 2, 6 * len(poses) + 3 * cameras))

    def add(block: Array, column: NDArray) -> None:
        columns = column[:, None] + np.arange(block.shape[-1])
        for row in (0, 1):
            jacobian[rows[:, None], row, columns] += block[:, row]

    add(
        np.concatenate([-r[:, None, None] * toward, np.cross(toward, base[:, None])], axis=-1),
        6 * p.at,
    )
    add(
        np.concatenate([r[:, None, None] * back, np.cross(start[:, None], back)], axis=-1), 6 * a_at
    )
    add(np.cross(lens, q[:, None]), 6 * len(poses) + 3 * p.camera)
    add(np.cross(ray[:, None], back @ mount[:, :3, :3]), 6 * len(poses) + 3 * a_camera)
    shift = np.einsum("mij,mj->mi", between[:, :3, :3], mount[:, :3, 3]) + between[:, :3, 3]
    along = np.einsum("mij,mj->mi", toward, shift) + np.einsum("mij,mj->mi", lens, there[:, :3, 3])
    return p.ray - xy, jacobian, along, good


def _gram(left: Array, right: Array) -> Array:
    """left.T @ right for tall matrices, in slices: one large product would wake the BLAS threads,
    which costs more than it saves here."""
    rows = 64
    pad = (-len(left)) % rows
    a = np.pad(left, ((0, pad), (0, 0))).reshape(-1, rows, left.shape[1])
    b = np.pad(right, ((0, pad), (0, 0))).reshape(-1, rows, right.shape[1])
    return np.asarray((np.swapaxes(a, 1, 2) @ b).sum(axis=0), np.float64)


def turned(T_base_camera: Array, turn: Array) -> Array:
    """Extrinsics [..., N, 4, 4] with every camera turned about its own axes by `turn` [N, 3]
    (rotation vector, rad)."""
    twist = np.stack([geometry.exp(np.concatenate([np.zeros(3), one])) for one in turn])
    return np.asarray(T_base_camera @ twist, np.float64)


def adjust(
    keyframes: list[Keyframe], start: dict[int, Array], turn: Array, covariance: Array
) -> Adjusted | None:
    """Keyframes (oldest first), landmarks' positions in map by identity, and the turns' prior: [N,
    3] and its covariance [3N, 3N].

    The first keyframe stays where it is. None if too few landmarks are shared.
    """
    problem = _arrange(keyframes)
    if problem is None:
        return None
    poses = np.stack([keyframe.T_map_base for keyframe in keyframes])
    nominal = np.stack([keyframe.T_base_camera for keyframe in keyframes])
    prior, prior_strength = turn.copy(), np.linalg.inv(covariance)
    anchor = poses[problem.anchor_at] @ problem.anchors(turned(nominal, turn))
    points = np.stack([start[int(identity)] for identity in problem.identity])
    depth = np.einsum("lij,lj->li", geometry.inverse(anchor)[:, :3, :3], points - anchor[:, :3, 3])[
        :, 2
    ]
    rho = np.where(depth > 0.3, 1.0 / np.maximum(depth, 0.3), 0.02)
    landmarks, size, hold = len(rho), 6 * len(poses), 6
    edges = np.searchsorted(problem.landmark, np.arange(landmarks))
    schur_inverse: Array = np.zeros((0, 0))
    spread = 0.0
    for _ in range(ROUNDS):
        residual, jacobian, along, good = _blocks(problem, poses, turned(nominal, turn), rho)
        distance = (residual**2).sum(-1) / problem.sigma**2
        weight = np.where(good, (GATE / (distance + GATE)) ** 2, 0.0) / problem.sigma**2
        inlier = distance[good] < GATE
        spread = max(1.0, float(np.median(distance[good][inlier])) / 1.39) if inlier.any() else 1.0
        spread *= TOGETHER
        flat = jacobian.reshape(-1, jacobian.shape[-1])
        full = np.repeat(weight, 2)[:, None] * flat
        normal, gradient = _gram(full, flat), _gram(full, residual.reshape(-1, 1))[:, 0]
        edge = np.add.reduceat(np.einsum("mi,mip->mp", weight[:, None] * along, jacobian), edges)
        own = np.add.reduceat(weight * (along**2).sum(-1), edges) + 1.0
        pull = np.add.reduceat(weight * (along * residual).sum(-1), edges)
        schur = normal - _gram(edge, edge / own[:, None])
        right = gradient - _gram(edge, (pull / own)[:, None])[:, 0]
        schur[size:, size:] += prior_strength * spread
        right[size:] += spread * prior_strength @ (prior - turn).reshape(-1)
        schur_inverse = np.asarray(
            np.linalg.inv(schur[hold:, hold:] + 1e-6 * np.eye(len(right) - hold)), np.float64
        )
        xi = np.concatenate([np.zeros(hold), schur_inverse @ right[hold:]])
        rho = np.clip(rho + (pull - edge @ xi) / own, 1e-4, 5.0)
        poses = np.stack(
            [pose @ geometry.exp(xi[6 * k : 6 * k + 6]) for k, pose in enumerate(poses)]
        )
        turn = turn + xi[size:].reshape(-1, 3)
        if np.abs(xi).max() < 1e-6:
            break
    anchor = poses[problem.anchor_at] @ problem.anchors(turned(nominal, turn))
    position = (
        anchor[:, :3, 3]
        + np.einsum("lij,lj->li", anchor[:, :3, :3], problem.anchor_ray) / rho[:, None]
    )
    return Adjusted(
        poses,
        turn,
        schur_inverse[size - hold :, size - hold :] * spread,
        problem.identity,
        position,
        spread,
    )


KEYFRAME_TRAVEL, KEYFRAMES = 1.0, 6  # metres between keyframes, keyframes adjusted together
MOUNT = 0.001  # rad: how far a camera's mount may be turned from its calibration
# rad: how far one may be that is the measure of the others, or has none to be measured against
FIXED = 1e-7


class Mounts:
    """T_base_camera: [N, 4, 4] as adjusted so far."""

    def __init__(self, cameras: Cameras) -> None:
        self._cameras = cameras
        self._keyframes: list[Keyframe] = []
        self._turn = np.zeros((len(cameras), 3))
        loose = np.array(
            [camera > 0 and not cameras.alone(camera) for camera in range(len(cameras))]
        )
        self._covariance: Array = np.diag(np.repeat(np.where(loose, MOUNT, FIXED) ** 2, 3))
        self.T_base_camera = cameras.T_base_camera.copy()

    def turn_doubt(self) -> float:
        """Standard deviation of the lengths that the pairs measure, as a share of them, per metre
        of distance: a pair that is turned by an angle errs in disparity, by angle times distance
        over base line. Infinite where all cameras look alone."""
        best = np.inf
        centres = self._cameras.T_base_camera[:, :3, 3]
        for camera, others in enumerate(self._cameras.beside):
            for other in others[others > camera].tolist():
                line = float(np.linalg.norm(centres[camera] - centres[other]))
                block = slice(3 * other, 3 * other + 3)
                turn = float(np.sqrt(np.diag(self._covariance[block, block]).max()))
                best = min(best, turn / line)
        return best

    def start_segment(self) -> None:
        """The keyframes' poses have nothing to do with what follows; the mounts are what they
        were."""
        self._keyframes = []

    def remember(
        self, frame: Frame, pose: Array, velocity: Array, table: Landmarks, o: Observations
    ) -> Adjusted | None:
        """A keyframe if the car has gone far enough, and the adjustment when there are enough of
        them.

        pose [4, 4], velocity [6]: of the car at the frame. o: what was seen there of the table's
        landmarks, without outliers.
        """
        if self._cameras.all_alone:
            return None
        if (
            self._keyframes
            and np.linalg.norm(self._keyframes[-1].T_map_base[:3, 3] - pose[:3, 3])
            < KEYFRAME_TRAVEL
        ):
            return None
        T_base_camera = geometry.inverse(
            at_their_stamps(self._cameras.T_base_camera, frame, velocity)
        )
        own = table.camera[o.landmark] == o.camera
        self._keyframes.append(
            Keyframe(
                pose,
                T_base_camera,
                table.identity[o.landmark],
                o.camera,
                own,
                o.ray,
                o.sigma,
                o.row,
            )
        )
        if len(self._keyframes) < KEYFRAMES:
            return None
        start = dict(
            zip(
                table.identity.tolist(),
                table.origin + table.bearing / table.rho[:, None],
                strict=True,
            )
        )
        keyframes = [_only(keyframe, table.identity) for keyframe in self._keyframes]
        adjusted = adjust(keyframes, start, self._turn, self._covariance)
        self._keyframes = keyframes[-1:]
        if adjusted is None:
            return None
        adjusted = adjusted.seen_from(pose)
        self._turn, self._covariance = adjusted.turn, adjusted.covariance
        self.T_base_camera = turned(self._cameras.T_base_camera, self._turn)
        self._keyframes = [replace(self._keyframes[-1], T_map_base=adjusted.T_map_base[-1])]
        return adjusted


def _only(keyframe: Keyframe, identities: NDArray[np.int64]) -> Keyframe:
    """The keyframe's sightings of these landmarks."""
    keep = np.isin(keyframe.identity, identities)
    seen = (
        keyframe.identity[keep],
        keyframe.camera[keep],
        keyframe.own[keep],
        keyframe.ray[keep],
        keyframe.sigma[keep],
        None if keyframe.row is None else keyframe.row[keep],
    )
    return Keyframe(keyframe.T_map_base, keyframe.T_base_camera, *seen)
