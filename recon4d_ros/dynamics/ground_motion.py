"""Whether a detected thing moves over the ground: a test on where its box stands on the road and how
large it is, over about a second.

A box says three things of what is in it: the direction of its middle, the direction of its foot,
which is on the road, and its height, which is that of one and the same thing. Where two cameras see
it, depth is a fourth. A thing ahead at our
own speed leaves no trace in flow; but if it stood, its box would grow and sink as we come nearer.
The parameters

    direction and log range of the foot at the last look, velocity over the ground (2),
    log height of the thing, tilt of the road against the camera, shift of what is seen along the thing as it turns (2)

are fitted to all boxes of a track by least squares (Gauss-Newton), the last four with priors, for
these errors are the same in every image and do not average out. The covariance of the velocity is
scaled by the residual's chi-square where that is above its expectation, ego-motion's share is
added, and a one-sided t-test with the fit's degrees of freedom asks whether the speed is above the
least that counts (DynamicsParameters.minimum_speed).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from recon4d_ros.geometry import inverse, skew

Array = NDArray[np.float64]

SURE = 1e-3
"""Level of the test by which a thing begins to be one that moves."""

DOUBT = 0.05
"""Level that one that moves has to miss before it is not believed any more; and by which one begins
to move that is marked without its boxes."""

LEAST = 4
"""Looks from which a motion is estimated at all: of fewer the residual says nothing of its
error."""

SPAN = 0.4
"""Seconds between the first and the last look, likewise."""

EDGE = 0.02
"""Standard deviation of a box's edge beside a pixel of the source image, as a share of the box's
height. Where a detector's is more, the residual says so."""

TILT = 0.004
"""rad: the road against the camera, within a second (a mount's calibration, a slope)."""

FASTEST = 30.0
"""m/s, standard deviation of what a speed is before anything is known."""

CENTRE_3D = 0.55
"""m: error of the centre of a box that a network gives in 3D (mATE of Sparse4Dv3-R50 on nuScenes as
published)."""

ROUNDS = 6
CONVERGED = np.array([1e-4, 1e-3, 0.02, 0.02, 1e-3, 1e-4, 0.02, 0.02])
"""Changes of the parameters at which the fit ends."""


@dataclass(frozen=True)
class Kind:
    """What is known of things of a class before they are seen. height: metres, and spread of its
    logarithm. body: metres by which what is seen of it shifts per radian of turning (half its
    length, standard deviation). reach: metres from its seen side to its far one. slender: what is
    narrower, as a share of its height, is hidden in part."""

    name: str
    height: float
    spread: float
    body: float
    reach: float
    slender: float = 0.0


VEHICLE = Kind("vehicle", 1.7, 0.35, 2.3, 5.0, 0.6)
PERSON = Kind("person", 1.7, 0.2, 0.3, 1.0)
RIDER = Kind("rider", 1.7, 0.2, 0.9, 2.0)
THING = Kind("thing", 1.6, 0.6, 2.3, 5.0)

KINDS = {
    PERSON: "person pedestrian people adult child walker",
    RIDER: "rider cyclist bicycle bike motorcycle motorbike motorcyclist bicyclist scooter",
    VEHICLE: (
        "car truck bus van trailer vehicle train tram suv pickup lorry taxi ambulance"
        " construction_vehicle motor_vehicle vehicle.car"
    ),
}
STAND = frozenset(
    "traffic_light traffic_sign stop_sign parking_meter fire_hydrant bench barrier traffic_cone"
    " potted_plant pole tree building sign cone sky road bollard".split()
)
"""Classes of things that do not move by themselves: no candidates."""


def kind_of(class_name: str) -> Kind | None:
    """None for what stands by its nature."""
    name = class_name.strip().lower().replace(" ", "_").replace("-", "_")
    if name in STAND:
        return None
    words = {name, name.rsplit(".", 1)[-1], *name.split("."), *name.split("_")}
    for kind, names in KINDS.items():
        if words & set(names.split()):
            return kind
    return THING


@dataclass(frozen=True, eq=False)
class Look:
    """One box, and the camera that saw it. box: [4] left, top, right, bottom as (x / z, y / z) of
    the upright working camera. known: [3] whether its middle, foot and height are seen (not cut off
    by the image's edge, not hidden by another box). edge: standard deviation of an edge, of a focal
    length. T_map_camera: [4, 4]. plane: [4] of the road in map (normal upward, offset). motion:
    [6, 6] covariance of the car's velocity (m/s, rad/s) in map, base: [3] where the car is. q,
    q_sigma: 1/m, inverse depth of what is in its middle, where that does not come from time; NaN:
    not known."""

    stamp_ns: int
    box: Array
    known: NDArray[np.bool_]
    edge: float
    T_map_camera: Array
    plane: Array
    motion: Array
    base: Array
    q: float = np.nan
    q_sigma: float = np.nan


@dataclass(frozen=True, eq=False)
class GroundMotion:
    """How a thing moves, at stamp_ns. foot: [3] metres in map. velocity: [2] m/s in map.
    covariance: [4, 4] of foot (x, y) and velocity. height: metres. tilt: rad. freedom: degrees of
    freedom. looks: how many boxes it rests on."""

    stamp_ns: int
    foot: Array
    velocity: Array
    covariance: Array
    height: float
    tilt: float
    freedom: int
    looks: int

    @property
    def speed(self) -> float:
        return float(np.hypot(*self.velocity))

    def faster(self, least: float) -> float:
        """P value of "it is not faster than `least` m/s": small where it surely is."""
        return float(stdtr(self.freedom, (least - self.speed) / self._sigma))

    @property
    def _sigma(self) -> float:
        """Standard deviation of the speed: along the velocity, or, where none is seen, the largest
        there is."""
        P = self.covariance[2:, 2:]
        if self.speed < 1e-6:
            return float(np.sqrt(np.linalg.eigvalsh(P)[-1]))
        way = self.velocity / self.speed
        return float(np.sqrt(way @ P @ way))

    def at(self, stamp_ns: int) -> Array:
        """[3] the foot at another time, metres in map."""
        seconds = (stamp_ns - self.stamp_ns) * 1e-9
        return np.asarray(self.foot + seconds * np.array([*self.velocity, 0.0]))


def box_at(motion: GroundMotion, stamp_ns: int, T_map_camera: Array) -> tuple[Array, float] | None:
    """Middle, foot and height [3] of the thing's box in a camera at another time, as `Look.box` has
    them, and its depth in metres; None where it is not ahead of the camera."""
    point = inverse(T_map_camera) @ np.array([*motion.at(stamp_ns), 1.0])
    if point[2] < 0.5:
        return None
    x, y = point[:2] / point[2]
    return np.array([x, y + motion.tilt, motion.height / point[2]]), float(point[2])


def fit(looks: Sequence[Look], kind: Kind) -> GroundMotion | None:
    """The motion that explains the boxes of one thing, oldest first; None where they are too few or
    do not say where it is."""
    if len(looks) < LEAST or (looks[-1].stamp_ns - looks[0].stamp_ns) * 1e-9 < SPAN:
        return None
    q, q_sigma = np.array([(look.q, look.q_sigma) for look in looks]).T
    deep = np.isfinite(q) & (q_sigma > 0)
    known = np.column_stack([np.stack([look.known for look in looks]), deep])
    if known[:, 1:].sum() < LEAST or known[:, 0].sum() < LEAST:
        return None
    last = looks[-1]
    tau = np.array([(look.stamp_ns - last.stamp_ns) * 1e-9 for look in looks])
    T = np.stack([look.T_map_camera for look in looks])
    boxes = np.stack([look.box for look in looks])
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    height = np.maximum(boxes[:, 3] - boxes[:, 1], 1e-6)
    plane = np.mean([look.plane for look in looks], axis=0)
    measured = np.stack([middle, boxes[:, 3], np.log(height), np.where(deep, q, 0.0)], -1)
    edge = np.array([look.edge for look in looks])
    edge = np.hypot(edge, EDGE * height)
    sigma = np.stack(
        [edge / np.sqrt(2), edge, np.sqrt(2) * edge / height, np.where(deep, q_sigma, 1.0)], -1
    )
    weight = np.where(known, 1 / sigma, 0.0)

    rays = np.einsum(
        "kij,kj->ki", T[:, :3, :3], np.stack([middle, boxes[:, 3], np.ones_like(tau)], -1)
    )
    bearing = np.arctan2(rays[:, 1], rays[:, 0])
    turned = np.angle(np.exp(1j * (bearing - bearing[-1])))
    up = plane[:3]
    # where the last foot meets the road, or, where that is not seen, by the height
    ray, origin = rays[-1], T[-1, :3, 3]
    slope, above = float(up @ ray), float(up @ origin + plane[3])
    by_foot = -above / slope if known[-1, 1] and slope < -1e-4 else np.inf
    by_depth = 1 / max(float(q[-1]), 1e-3) if deep[-1] else np.inf
    depth = by_depth if deep[-1] else min(by_foot, kind.height / height[-1], 300.0)
    first = np.array(
        [
            bearing[-1],
            np.log(max(depth * np.hypot(*ray[:2]), 0.5)),
            0,
            0,
            np.log(kind.height),
            0,
            0,
            0,
        ]
    )
    spread = np.array([np.inf, np.inf, FASTEST, FASTEST, kind.spread, TILT, kind.body, kind.body])
    prior = np.where(np.isfinite(spread), 1 / spread, 0.0)
    R, C = np.swapaxes(T[:, :3, :3], 1, 2), T[:, :3, 3]

    def predicted(theta: Array) -> Array:
        """[P, K, 4] for parameters [P, 8]."""
        range_ = np.exp(np.clip(theta[:, 1], -1, 7))
        xy = origin[:2] + range_[:, None] * np.stack([np.cos(theta[:, 0]), np.sin(theta[:, 0])], -1)
        xy = (
            xy[:, None] + theta[:, None, 2:4] * tau[:, None] + theta[:, None, 6:8] * turned[:, None]
        )
        z = -(xy @ up[:2] + plane[3]) / up[2]
        point = np.einsum("kij,pkj->pki", R, np.concatenate([xy, z[..., None]], -1) - C)
        ahead = np.maximum(point[..., 2], 0.3)
        return np.stack(
            [
                point[..., 0] / ahead,
                point[..., 1] / ahead + theta[:, 5:6],
                theta[:, 4:5] - np.log(ahead),
                1 / ahead,
            ],
            -1,
        )

    ridge = np.eye(8) * 1e-9  # of what nothing is known, nothing follows: not a singular matrix
    steps = np.array([1e-5, 1e-5, 1e-3, 1e-3, 1e-5, 1e-6, 1e-4, 1e-4])
    theta: Array = first
    for _ in range(ROUNDS):
        every = predicted(np.concatenate([theta[None], theta + np.diag(steps)]))
        J = ((every[1:] - every[0]) / steps[:, None, None] * weight).reshape(8, -1).T
        rest = ((measured - every[0]) * weight).ravel()
        normal = J.T @ J + np.diag(prior**2) + ridge
        change = np.linalg.solve(normal, J.T @ rest + prior**2 * (first - theta))
        change[1] = np.clip(change[1], -0.7, 0.7)
        theta = theta + change
        if np.all(np.abs(change) < CONVERGED):
            break
    rest = ((measured - predicted(theta[None])[0]) * weight).ravel()
    chi2 = float(rest @ rest + np.sum(np.square((theta - first) * prior)))
    freedom = int(known.sum()) + 4 - 8
    if freedom < 2 or not np.isfinite([*theta, chi2]).all() or not -1 < theta[1] < 6:
        return None
    P = np.linalg.inv(normal) * max(1.0, chi2 / freedom)
    range_ = float(np.exp(theta[1]))
    cos, sin = np.cos(theta[0]), np.sin(theta[0])
    to_map = np.zeros((4, 8))
    to_map[:2, :2] = [[-range_ * sin, range_ * cos], [range_ * cos, range_ * sin]]
    to_map[2:, 2:4] = np.eye(2)
    P = to_map @ P @ to_map.T
    xy = origin[:2] + range_ * np.array([cos, sin])
    foot = np.array([*xy, -(xy @ up[:2] + plane[3]) / up[2]])
    P[2:, 2:] += of_ego_motion(last.motion, foot - last.base)
    return GroundMotion(
        last.stamp_ns,
        foot,
        np.array(theta[2:4].tolist()),
        P,
        float(np.exp(theta[4])),
        float(theta[5]),
        freedom,
        len(looks),
    )


def of_ego_motion(motion: Array, away: Array) -> Array:
    """[2, 2] covariance that the car's own velocity, [6, 6] in map, puts into that of a thing at
    `away` [3] metres from it; one error over all looks."""
    turn = skew(away)
    return np.asarray((motion[:3, :3] + turn @ motion[3:, 3:] @ turn.T)[:2, :2])


def fit_places(
    stamps_ns: Sequence[int], places: Array, height: float, motion: Array, base: Array
) -> GroundMotion | None:
    """The same of a thing whose place [K, 3] in map (its box's bottom) a network gives: a straight
    line through them."""
    count = len(stamps_ns)
    if count < LEAST or (stamps_ns[-1] - stamps_ns[0]) * 1e-9 < SPAN:
        return None
    tau = (np.array(stamps_ns) - stamps_ns[-1]) * 1e-9
    design = np.stack([np.ones(count), tau], -1)
    solved = np.linalg.lstsq(design, places[:, :2], rcond=None)[0]
    rest = (places[:, :2] - design @ solved) / CENTRE_3D
    freedom = 2 * count - 4
    scale = CENTRE_3D**2 * max(1.0, float(np.sum(rest**2)) / freedom)
    P = np.kron(np.linalg.inv(design.T @ design) * scale, np.eye(2))
    velocity: Array = np.array(solved[1].tolist(), np.float64)
    foot: Array = np.array([*solved[0], places[-1, 2]], np.float64)
    P[2:, 2:] += of_ego_motion(motion, foot - base)
    return GroundMotion(
        stamps_ns[-1], foot, velocity, np.asarray(P, np.float64), height, 0.0, freedom, count
    )
