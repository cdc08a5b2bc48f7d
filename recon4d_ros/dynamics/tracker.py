"""Dynamic objects over time: constant-velocity Kalman filters in map, one detection per camera and
track, ids that live as long as the track."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from recon4d_ros.types import DynamicObject

Array = NDArray[np.float64]

GATE = 16.0
"""Squared Mahalanobis distance in three dimensions beyond which a detection is not this track's
(99.9 %)."""

PEDESTRIAN = 1.2
"""Metres across the view below which an object is about as long as wide."""

UNSEEN = 0.3
"""Standard deviation of the half of a box that is not seen, as a share of it."""

FASTEST = 40.0
"""m/s over the ground. What seems faster is a wrong match, and no object."""


@dataclass(frozen=True)
class Detection:
    """One moving region lifted to 3D. position: [3] metres in map, centre of what is seen; width,
    height: metres, across the view.

    velocity: [3] m/s in map. *_covariance: [3, 3]. label: region in its camera. pixels: on the
    motion grid. sure: in 0..1, how strong the evidence of motion is. bearing: direction of the view
    in map, radians about z.
    """

    camera: int
    label: int
    position: Array
    position_covariance: Array
    velocity: Array
    velocity_covariance: Array
    width: float
    height: float
    pixels: int
    sure: float
    bearing: float


@dataclass
class Track:
    """A dynamic object believed in. state: position of what is seen of it, and velocity, [6] in
    map; P: [6, 6]. bearing: direction it was last seen in, radians about z. hits: frame sets in
    which it was seen."""

    id: int
    state: Array
    P: Array
    size: Array
    yaw: float
    bearing: float
    sure: float
    age: int = 0
    hits: int = 1
    missed: int = 0
    missing: float = 0.0
    confirmed: bool = False
    cameras: set[int] = field(default_factory=set)

    @property
    def behind(self) -> Array:
        """[3] metres in map: from what is seen of it, its near side, to the centre of its box."""
        turned = self.yaw - self.bearing
        half = np.hypot(self.size[0] * np.cos(turned), self.size[1] * np.sin(turned)) / 2
        return np.asarray(half * np.array([np.cos(self.bearing), np.sin(self.bearing), 0.0]))

    @property
    def significance(self) -> float:
        """Speed over the ground in its own standard deviations."""
        v, p = self.state[3:5], self.P[3:5, 3:5]
        return float(np.sqrt(v @ np.linalg.solve(p, v)))


class Tracker:
    """acceleration: m/s^2 that velocity wanders by. confirm: hits until a track is an object.
    keep_missing: seconds without a hit."""

    def __init__(
        self, acceleration: float, confirm: int, keep_missing: float, minimum_speed: float
    ) -> None:
        self._acceleration = acceleration
        self._confirm = confirm
        self._keep_missing = keep_missing
        self._minimum_speed = minimum_speed
        self.reset()

    def reset(self) -> None:
        """Forget every track; ids start again."""
        self.tracks: list[Track] = []
        self._next_id = 1

    def predict(self, seconds: float) -> None:
        """Move every track on by `seconds` at constant velocity."""
        step = np.eye(6)
        step[:3, 3:] = np.eye(3) * seconds
        # White acceleration; upward a tenth of it, because cars stay on the road.
        strength = np.array([1.0, 1.0, 0.01]) * self._acceleration**2
        noise = np.zeros((6, 6))
        noise[:3, :3] = np.diag(strength * seconds**4 / 4)
        noise[:3, 3:] = noise[3:, :3] = np.diag(strength * seconds**3 / 2)
        noise[3:, 3:] = np.diag(strength * seconds**2)
        for track in self.tracks:
            track.state = step @ track.state
            track.P = step @ track.P @ step.T + noise
            track.age += 1
            track.missed += 1
            track.missing += seconds
            track.cameras = set()

    def update(self, detections: list[Detection]) -> dict[tuple[int, int], int]:
        """One frame's detections, camera by camera, so that an object that two cameras see is one
        track.

        Returns (camera, label) -> track id for every detection.
        """
        owner: dict[tuple[int, int], int] = {}
        for camera in sorted({d.camera for d in detections}):
            mine = [d for d in detections if d.camera == camera]
            cost = self._distances(mine)
            rows, columns = linear_sum_assignment(np.minimum(cost, 1e3)) if cost.size else ((), ())
            taken = {
                int(r): int(c) for r, c in zip(rows, columns, strict=True) if cost[r, c] < GATE
            }
            for i, detection in enumerate(mine):
                track = self.tracks[taken[i]] if i in taken else self._born(detection)
                if i in taken:
                    self._correct(track, detection)
                owner[(camera, detection.label)] = track.id
        self.tracks = [track for track in self.tracks if self._alive(track)]
        return owner

    def objects(self) -> tuple[DynamicObject, ...]:
        """Confirmed tracks whose speed is significantly above zero, oldest id first."""
        return tuple(
            _object(track) for track in self.tracks if track.confirmed and self.is_moving(track)
        )

    def is_moving(self, track: Track) -> bool:
        """Speed above the smallest that counts, below what traffic does, and three standard
        deviations above zero."""
        return bool(
            self._minimum_speed < np.hypot(*track.state[3:5]) < FASTEST and track.significance > 3.0
        )

    def _distances(self, detections: list[Detection]) -> Array:
        if not self.tracks or not detections:
            return np.zeros((len(detections), 0))
        position = np.stack([t.state[:3] for t in self.tracks])
        covariance = np.stack([t.P[:3, :3] for t in self.tracks])
        delta = np.stack([d.position for d in detections])[:, None] - position[None]
        total = np.stack([d.position_covariance for d in detections])[:, None] + covariance[None]
        return np.einsum("dti,dti->dt", delta, np.linalg.solve(total, delta[..., None])[..., 0])

    def _born(self, d: Detection) -> Track:
        P = np.zeros((6, 6))
        P[:3, :3] = d.position_covariance
        P[3:, 3:] = d.velocity_covariance
        yaw = float(np.arctan2(d.velocity[1], d.velocity[0]))
        state = np.concatenate([d.position, d.velocity])
        track = Track(
            self._next_id, state, P, _along(d, yaw), yaw, d.bearing, d.sure, cameras={d.camera}
        )
        track.confirmed = self._confirm <= 1
        self._next_id += 1
        self.tracks.append(track)
        return track

    def _correct(self, track: Track, d: Detection) -> None:
        z = np.concatenate([d.position, d.velocity])
        R = np.zeros((6, 6))
        R[:3, :3] = d.position_covariance
        R[3:, 3:] = d.velocity_covariance
        gain = np.linalg.solve((track.P + R).T, track.P.T).T
        track.state = track.state + gain @ (z - track.state)
        rest = np.eye(6) - gain
        track.P = rest @ track.P @ rest.T + gain @ R @ gain.T
        first_this_frame = not track.cameras
        track.cameras = track.cameras | {d.camera}
        if first_this_frame:
            track.hits += 1
        track.bearing = d.bearing
        track.missed = 0
        track.missing = 0.0
        track.confirmed = track.confirmed or track.hits >= self._confirm
        track.sure = 0.7 * track.sure + 0.3 * d.sure
        if np.hypot(*track.state[3:5]) > self._minimum_speed and track.significance > 2.0:
            track.yaw = float(np.arctan2(track.state[4], track.state[3]))
        # A view shows at most the whole object, often less: growing is believed sooner than
        # shrinking.
        size = _along(d, track.yaw)
        track.size = track.size + np.where(size > track.size, 0.3, 0.15) * (size - track.size)

    def _alive(self, track: Track) -> bool:
        # A track that was never confirmed gets half the patience.
        return track.missing <= self._keep_missing * (1.0 if track.confirmed else 0.5)


def _object(track: Track) -> DynamicObject:
    behind = track.behind
    covariance = track.P[:3, :3] + UNSEEN**2 * np.outer(behind, behind)
    sure = float(track.sure * track.hits / (track.hits + track.missed))
    return DynamicObject(
        track.id,
        track.state[:3] + behind,
        track.yaw,
        track.size.copy(),
        track.state[3:].copy(),
        covariance,
        track.P[3:, 3:].copy(),
        sure,
        track.age,
        track.missed,
    )


def _along(d: Detection, yaw: float) -> Array:
    """Length, width, height of a detection that heads along `yaw`. One side is seen; the other is
    what things of that side have: as much for a pedestrian; two fifths of its length where a
    vehicle's or a cyclist's side is seen; twice its width where a vehicle's end is."""
    if d.width < PEDESTRIAN:
        return np.array([d.width, d.width, d.height])
    if abs(np.sin(yaw - d.bearing)) > 0.7:
        return np.array([d.width, min(0.4 * d.width, 2.5), d.height])
    return np.array([max(min(2.2 * d.width, 4.5), d.width), d.width, d.height])
