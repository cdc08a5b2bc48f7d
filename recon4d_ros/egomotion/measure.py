"""One frame's pose looked for: sightings from a prediction, the joint solver, the memory beside it,
and whether to believe the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import klt, pnp
from recon4d_ros.egomotion.camera_rig import Cameras, Images, at_their_stamps
from recon4d_ros.egomotion.klt import Sightings
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.parameters import EgomotionParameters
from recon4d_ros.egomotion.pnp import Prior, Solution
from recon4d_ros.types import Frame

Array = NDArray[np.float64]

# Pixels of the input image that predictions may have been off without another look: half the wider
# of the windows to follow points in.
FAR = 8.0
FEW = 0.6  # share of the points found below which a second look is worth it
TYPICAL = 1.39  # median of a squared Mahalanobis distance of two degrees of freedom


@dataclass(frozen=True)
class Instant:
    """All that one frame's pose is found from; nothing of it changes while it is looked for.

    T_base_camera: [N, 4, 4] as adjusted. pose: T_map_base of the last frame, `seconds` ago. moving:
    whether there is a velocity.
    """

    frame: Frame
    seconds: float
    cameras: Cameras
    T_base_camera: Array
    images: Images
    landmarks: Landmarks
    pose: Array
    moving: bool
    parameters: EgomotionParameters

    def velocity(self, T_map_base: Array) -> Array:
        """The twist [6] that leads there from the last frame."""
        return geometry.log(geometry.inverse(self.pose) @ T_map_base) / self.seconds

    def T_camera_base(self, velocity: Array) -> Array:
        return at_their_stamps(self.T_base_camera, self.frame, velocity)

    def sight(self, prior: Prior, velocity: Array) -> Sightings:
        noise = self.parameters.pixel_noise
        return klt.sight(
            self.cameras,
            self.images,
            self.landmarks,
            prior.T_map_base,
            self.T_camera_base(velocity),
            noise,
        )


@dataclass(frozen=True)
class Attempt:
    """A pose and what it rests on. covariance [6, 6]: of its error in base_link. problem: why not
    to believe it, if it is not."""

    sightings: Sightings
    prior: Prior
    solution: Solution
    T_camera_base: Array
    covariance: Array
    problem: str


def attempt(now: Instant, prior: Prior) -> Attempt:
    """Sightings and solution from one prediction; if that was far off and many points were not
    found, again from the solution."""
    seen = now.sight(prior, now.velocity(prior.T_map_base))
    first = solved(now, seen, prior)
    asked = now.frame.present[now.landmarks.camera]
    few = seen.found[asked].sum() < FEW * asked.sum()
    if first.solution.inliers < 8 or not (few or not now.moving):
        return first
    nearer = Prior(first.solution.T_map_base, prior.covariance)
    if klt.shift(now.cameras, now.landmarks, seen, nearer.T_map_base, first.T_camera_base) <= FAR:
        return first
    again = now.sight(nearer, now.velocity(nearer.T_map_base))
    return solved(now, again, nearer) if again.found.sum() > seen.found.sum() else first


def solved(now: Instant, seen: Sightings, prior: Prior, start: Array | None = None) -> Attempt:
    """The joint solution. start: a pose [4, 4] already near, to be polished only."""
    frame, velocity = now.frame, now.velocity(prior.T_map_base)
    solution = None
    for _ in range(2):  # the cameras' skew in time needs the velocity, which needs the pose
        T_camera_base = now.T_camera_base(velocity)
        solution = pnp.solve(
            T_camera_base, seen.observations, prior, seed=frame.stamp_ns % 2**32, start=start
        )
        found = now.velocity(solution.T_map_base)
        skew = np.abs(frame.stamps_ns - frame.stamp_ns).max() * 1e-9
        if np.abs(found - velocity).max() * skew < 1e-3:
            break
        velocity = found
    assert solution is not None
    excess = (
        max(1.0, float(np.median(solution.distance[solution.inlier])) / TYPICAL)
        if solution.inliers
        else 1.0
    )
    covariance = np.asarray(
        np.linalg.inv(solution.information / excess + np.eye(6) * 1e-4), np.float64
    )
    return Attempt(
        seen, prior, solution, T_camera_base, covariance, problem(now, seen, solution, covariance)
    )


def problem(now: Instant, seen: Sightings, solution: Solution, covariance: Array) -> str:
    """Why this solution is not to be believed; empty if it is."""
    present, needed = now.frame.present, now.parameters.min_inliers
    if not present.any():
        return "no camera has sent an image"
    if seen.blind[present].all() and len(now.landmarks):
        return "the images show none of the points followed"
    if solution.inliers < needed:
        return f"{solution.inliers} sightings agree, {needed} are needed"
    share = solution.inliers / max(len(seen.observations), 1)
    if share < 0.25:
        return f"{100 * share:.0f} % of the sightings agree, 25 % are needed"
    doubt = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
    moved = float(np.linalg.norm(solution.T_map_base[:3, 3] - now.pose[:3, 3]))
    if doubt > 0.05 + 0.1 * moved:
        return f"the motion is known to {doubt:.2f} m only"
    return ""
