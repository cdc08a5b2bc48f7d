"""The car's pose, frame by frame: predicted from odometry or constant velocity, refined with all
cameras of the rig together.

Points followed in the images are landmarks with an inverse depth; one robust solver takes the
sightings of all cameras, and of the engine's pointer memory, at once (see pnp.py). What is known of
a landmark's depth decides what it constrains, so the same lines serve stereo, surround and one
camera. It says when it is lost, goes on predicting with a covariance that grows, and finds its way
back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras import health
from recon4d_ros.cameras.health import CameraHealth
from recon4d_ros.egomotion import klt, landmarks, measure, motion_prior, pnp
from recon4d_ros.egomotion.camera_rig import Cameras, Images, at_their_stamps
from recon4d_ros.egomotion.ground_scale import Scale
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.local_ba import Mounts
from recon4d_ros.egomotion.measure import Attempt, Instant
from recon4d_ros.egomotion.motion_prior import OdometryBuffer
from recon4d_ros.egomotion.parameters import EgomotionParameters
from recon4d_ros.egomotion.pnp import Prior, Solution
from recon4d_ros.egomotion.road import Road
from recon4d_ros.types import (
    Calibration,
    Frame,
    Geometry,
    Jump,
    OdometrySample,
    PoseEstimate,
    Rig,
    Tracking,
)

Array = NDArray[np.float64]

# squared Mahalanobis distance between odometry and images (six degrees of freedom) at which it is
# left out
CONTRADICTION = 40.0
ROUNDING = 1e-3  # s: what stamps may add to a time that a user set
# s without the road, after which a rig whose cameras all look alone has lost its metre
ROADLESS = 1.5
FIRST_SCORE, FIRST_LEAD = 0.45, 0.06
STILL, STILL_TURN = 0.003, 0.0003
DOUBTED_FRAMES = 10  # for so many frames then


class Egomotion:
    """`estimate` before the engine's step, `observe` after the dynamics. map is base_link at the
    first frame."""

    def __init__(
        self, rig: Rig, calibration: Calibration, parameters: EgomotionParameters | None = None
    ) -> None:
        self.parameters = parameters or EgomotionParameters()
        self._names = rig.names
        self._cameras = Cameras.of(rig, calibration, self.parameters.features)
        self._road = Road(self._cameras)
        self.reset()

    def reset(self) -> None:
        """Forget the drive."""
        self._born = 0
        self._images = Images(len(self._cameras))
        self._mounts = Mounts(self._cameras)
        self._odometry = OdometryBuffer()
        self._odometry_doubted = 0
        self._odometry_followed = False  # in the last frame, as it is
        self._stamp_ns: int | None = None
        self._pose = np.eye(4)
        self._scale = Scale()
        self._road.reset()
        self._health = CameraHealth(len(self._cameras))
        self.health: tuple[tuple[str, ...], ...] = ((),) * len(self._cameras)
        self._seconds = 0.0  # between the last two frames
        self._segment = 0
        self._lost_before = False  # in an earlier segment
        self._start_segment()

    def _start_segment(self) -> None:
        """Nothing is known of the motion, nor of what the images show; the pose stays."""
        self._landmarks = Landmarks.empty()
        self._images.forget()
        self._mounts.start_segment()
        self._covariance = np.eye(6) * 1e-8
        self._motion_covariance = np.eye(6) * 1e-8
        self._velocity = np.zeros(6)
        self._velocity_known = False
        self._unconfirmed = motion_prior.Unconfirmed()
        self._tracked_once = False
        self._roadless = 0.0

    # --- before the engine

    def estimate(
        self,
        frame: Frame,
        odometry: tuple[OdometrySample, ...],
        jump: Jump = Jump.NONE,
    ) -> PoseEstimate:
        """The pose at the frame's stamp. Never raises and never gives NaN: what it cannot know it
        says in `tracking` and `reason`.

        jump: whether time jumped forward since the last frame: without odometry over that time a
        new segment begins, as it does where nothing confirmed the motion for `extrapolate` seconds.
        """
        if self.parameters.odometry != "none":
            self._odometry.add(odometry)
        self._images.take(frame)
        travel = float(np.linalg.norm(self._velocity[:3])) * self._seconds
        self.health = self._health.look(self._images.now, travel)
        if self._stamp_ns is None:
            return self._begin(frame)
        self._seconds = max((frame.stamp_ns - self._stamp_ns) * 1e-9, 1e-3)
        now = self._instant(frame, self._seconds)
        motion, said = self._odometry.motion(
            self._stamp_ns, frame.stamp_ns, self._velocity if self._velocity_known else None
        )
        unconfirmed = self._unconfirmed.seconds + now.seconds
        if motion is None and (
            jump is Jump.FORWARD or unconfirmed > self.parameters.extrapolate + ROUNDING
        ):
            return self._begin_anew(frame, unconfirmed)
        self._odometry_followed = motion is not None and self.parameters.odometry == "trust"
        if motion is not None and self._odometry_followed:
            return self._follow_odometry(now, motion)
        steady = self._unconfirmed.prior(
            self._pose, self._velocity if self._velocity_known else None, now.seconds
        )
        if motion is None:
            attempt = self._tried(now, steady)
            reason = said if self.parameters.odometry != "none" else ""
        else:
            attempt, reason = self._with_odometry(now, motion, steady)
        if not attempt.problem:
            self._road_seen(now, attempt)
            if measure.stands(now, attempt, self._road):
                return self._stand(now, attempt, reason)
            return self._tracked(now, attempt, reason)
        parts = (attempt.problem, reason, health.told(self._names, self.health))
        told = "; ".join(part for part in parts if part)
        return (
            self._on_odometry_alone(now, attempt, motion, told)
            if motion is not None
            else self._lost(now, attempt, steady, told)
        )

    def _tried(self, now: Instant, prior: Prior) -> Attempt:
        """Points and road from a prediction; where none is known, from the speed that the road fits
        best."""
        if not self._velocity_known:
            prior = self._first(now, prior)
        attempt = measure.attempt(now, prior)
        said = measure.metres(now, attempt, prior, self._road)
        if said is None:
            return attempt
        if self._cameras.all_alone and not attempt.problem:
            went = (geometry.inverse(self._pose) @ attempt.solution.T_map_base)[0, 3]
            variance = float(attempt.covariance[0, 0])
            excess = self._scale.excess(float(went), variance, said.travel, said.variance)
            self._shorten(1.0 + excess)
            attempt = measure.rescaled(now, attempt, self._landmarks)
        return measure.joined(now, attempt, prior, said)

    def _first(self, now: Instant, prior: Prior) -> Prior:
        """The prediction of a segment's first motion: searched on the road at all speeds."""
        motion, score, rival = self._road.search(now.road, now.seconds, np.eye(3))
        if score < FIRST_SCORE or score - rival < FIRST_LEAD:
            return prior
        deviation = np.array([0.1, 0.05, 0.05, 0.01, 0.01, 0.03])
        deviation[:3] += 0.03 * abs(motion[0, 3])
        return Prior(self._pose @ motion, np.diag(deviation**2))

    def _stand(self, now: Instant, attempt: Attempt, reason: str) -> PoseEstimate:
        """The car has not moved (zero-velocity update)."""
        still = np.diag([STILL] * 3 + [STILL_TURN] * 3) ** 2
        self._accept(now, attempt, Prior(self._pose, still))
        self._velocity = np.zeros(6)
        self._unconfirmed.confirmed()
        self._tracked_once = True
        return self._said(now.frame, Tracking.TRACKING, attempt.solution.inliers, reason)

    def _begin(self, frame: Frame) -> PoseEstimate:
        """The segment's first frame: points are followed from its images."""
        self._stamp_ns = frame.stamp_ns
        every = np.ones(len(self._cameras), np.bool_)
        self._images.adopt(frame, every, self._pose, self._T_map_camera(frame))
        reason = (
            "first frame: no motion yet"
            if frame.present.any()
            else "no camera has sent an image yet"
        )
        return self._said(frame, self._untracked, 0, reason)

    def _begin_anew(self, frame: Frame, unconfirmed: float) -> PoseEstimate:
        """A new segment, with this frame as its first. Its pose is the last one that was said, so
        that odom -> base_link does not jump; where that is from the old segment is not known."""
        if self._tracked_once:
            self._segment += 1
            self._lost_before = True
        self._start_segment()
        self._begin(frame)
        reason = f"nothing confirmed the motion for {unconfirmed:.1f} s"
        if self._lost_before:
            reason += ": the pose is kept, a new segment begins"
        return self._said(frame, self._untracked, 0, reason)

    def _instant(self, frame: Frame, seconds: float) -> Instant:
        """What this frame's pose is found from; points whose camera saw nothing for too long are
        not in it."""
        stale = self._images.forget_stale(frame)
        if stale.any():
            self._landmarks = self._landmarks.keep(~stale[self._landmarks.camera])
        mounts, known = self._mounts.T_base_camera, self._velocity_known
        return Instant(
            frame,
            seconds,
            self._cameras,
            mounts,
            self._images,
            self._landmarks,
            self._pose,
            known,
            self._road.views(self._images, self._pose),
            self.parameters,
        )

    def _follow_odometry(self, now: Instant, motion: Array) -> PoseEstimate:
        """The odometry's motion as it is; the images only keep the landmarks alive."""
        prior = Prior(
            self._pose @ motion, motion_prior.of_odometry(motion, self.parameters.odometry_noise)
        )
        velocity = geometry.log(motion) / now.seconds
        seen, T_camera_base = now.sight(prior, velocity), now.T_camera_base(velocity)
        distance = pnp.evaluate(prior.T_map_base[None], T_camera_base, seen.observations)[0]
        solution = Solution(prior.T_map_base, distance, distance < pnp.GATE, np.zeros((6, 6)), 0.0)
        pose = prior.T_map_base
        attempt = Attempt(seen, prior, solution, T_camera_base, prior.covariance, "", pose)
        self._accept(now, attempt, prior)
        self._unconfirmed.confirmed()
        return self._said(
            now.frame, Tracking.TRACKING, solution.inliers, "odometry is trusted as it is"
        )

    def _with_odometry(self, now: Instant, motion: Array, steady: Prior) -> tuple[Attempt, str]:
        """From the odometry first; from constant velocity where the images disagree with it."""
        told = self._pose @ motion
        covariance = motion_prior.of_odometry(motion, self.parameters.odometry_noise)
        around = self._unconfirmed.prior(
            self._pose, geometry.log(motion) / now.seconds, now.seconds
        )
        loose = Prior(told, covariance + around.covariance)
        first, second = (loose, steady) if self._odometry_doubted == 0 else (steady, loose)
        attempt = self._tried(now, first)
        if attempt.problem:
            other = self._tried(now, second)
            if not other.problem or other.solution.inliers > attempt.solution.inliers:
                attempt = other
        if attempt.problem:
            return attempt, ""
        error = geometry.log(geometry.inverse(attempt.pose) @ told)
        if error @ np.linalg.solve(covariance + attempt.covariance, error) > CONTRADICTION:
            self._odometry_doubted = DOUBTED_FRAMES
            return (
                attempt,
                (
                    f"odometry contradicts the images by {np.linalg.norm(error[:3]):.2f} m: it is"
                    " left out"
                ),
            )
        self._odometry_doubted = max(self._odometry_doubted - 1, 0)
        if self._odometry_doubted:
            return attempt, "odometry contradicted the images a moment ago: it is left out"
        return measure.solved(now, attempt.sightings, Prior(told, covariance)), ""

    # --- what becomes of an attempt

    def _tracked(self, now: Instant, attempt: Attempt, reason: str) -> PoseEstimate:
        doubt = attempt.doubt or measure.doubt(
            now, attempt, self._velocity if self._velocity_known else None
        )
        if not doubt and self._roadless > ROADLESS and self._cameras.all_alone:
            doubt = f"the road was not seen for {self._roadless:.1f} s: nothing says how long a"
            doubt += " metre is"
        if attempt.road is not None and not doubt:
            self._road.believe()
        self._accept(now, attempt, Prior(attempt.pose, attempt.covariance))
        self._unconfirmed.confirmed()
        self._tracked_once = True
        if doubt:
            told = "; ".join(
                part for part in (doubt, reason, health.told(self._names, self.health)) if part
            )
            return self._said(now.frame, Tracking.DEGRADED, attempt.solution.inliers, told)
        return self._said(now.frame, Tracking.TRACKING, attempt.solution.inliers, reason)

    def _road_seen(self, now: Instant, attempt: Attempt) -> None:
        """How long the road has not been agreed with, where a camera looks at it."""
        seen = attempt.road is not None or not self._road.visible
        self._roadless = 0.0 if seen else self._roadless + now.seconds

    def _on_odometry_alone(
        self, now: Instant, attempt: Attempt, motion: Array, told: str
    ) -> PoseEstimate:
        self._accept(
            now,
            attempt,
            Prior(
                self._pose @ motion,
                motion_prior.of_odometry(motion, self.parameters.odometry_noise),
            ),
        )
        self._unconfirmed.confirmed()
        return self._said(now.frame, Tracking.TRACKING, 0, f"odometry alone: {told}")

    def _lost(self, now: Instant, attempt: Attempt, steady: Prior, told: str) -> PoseEstimate:
        """The predicted pose, with a covariance that grows."""
        growth = self._unconfirmed.carried_on(now.seconds, steady.covariance)
        velocity, known = self._velocity, self._velocity_known
        self._accept(now, attempt, Prior(steady.T_map_base, growth))
        self._velocity, self._velocity_known = velocity, known  # nothing was learnt of it
        return self._said(now.frame, self._untracked, attempt.solution.inliers, told)

    def _accept(self, now: Instant, attempt: Attempt, found: Prior) -> None:
        """The frame's pose, and what it teaches of the landmarks if the attempt is believed."""
        motion = geometry.inverse(self._pose) @ found.T_map_base
        carry = pnp.adjoint(geometry.inverse(motion))
        self._covariance = carry @ self._covariance @ carry.T + found.covariance
        self._motion_covariance = found.covariance
        self._velocity, self._velocity_known = geometry.log(motion) / now.seconds, True
        self._pose, self._stamp_ns = found.T_map_base, now.frame.stamp_ns
        table, seen = self._landmarks, attempt.sightings
        lost = np.zeros(len(table), np.bool_)
        if not attempt.problem and seen.second:
            agreeing = landmarks.from_sightings(
                table,
                seen.observations,
                seen.second,
                seen.found,
                attempt.solution,
                attempt.solution.T_map_base,
                attempt.T_camera_base,
            )
            # the world keeps its place in the images: it comes along with what moves the car
            table.move(found.T_map_base @ geometry.inverse(attempt.solution.T_map_base))
            lost = table.missed >= 2
            if not self._odometry_followed:
                self._adjust(now.frame, agreeing)
        table.pixel[:] = np.where(seen.found[:, None], seen.pixel, table.pixel)
        seeing = now.frame.present & ~seen.blind
        lost |= seeing[table.camera] & ~seen.found
        self._landmarks = table.keep(~lost)
        self._images.adopt(now.frame, seeing, self._pose, self._T_map_camera(now.frame))

    def _adjust(self, frame: Frame, seen: pnp.Observations) -> None:
        """The adjusted mounts and landmarks become the current ones, where there are keyframes
        enough to adjust."""
        adjusted = self._mounts.remember(frame, self._pose, self._velocity, self._landmarks, seen)
        if adjusted is not None:
            landmarks.from_adjustment(
                self._landmarks, adjusted.identity, adjusted.position, self._T_map_camera(frame)
            )

    def _T_camera_base(self, frame: Frame) -> Array:
        """[N, 4, 4]: base at the frame's stamp to each camera at its own."""
        return at_their_stamps(self._mounts.T_base_camera, frame, self._velocity)

    def _T_map_camera(self, frame: Frame) -> Array:
        return np.asarray(self._pose @ geometry.inverse(self._T_camera_base(frame)), np.float64)

    @property
    def _untracked(self) -> Tracking:
        """What it is while there is no motion: lost, if there ever was one."""
        found = self._tracked_once or self._lost_before
        return Tracking.LOST if found else Tracking.STARTING

    def _said(self, frame: Frame, tracking: Tracking, inliers: int, reason: str) -> PoseEstimate:
        T_map_camera = self._T_map_camera(frame)
        return PoseEstimate(
            self._pose.copy(),
            T_map_camera,
            tracking,
            self._covariance.copy(),
            self._motion_covariance.copy(),
            self._velocity.copy(),
            inliers,
            reason,
            self._segment,
        )

    def _shorten(self, factor: float) -> None:
        """Lengths that are too long by a factor become right: each landmark comes nearer to the
        camera that follows it, so that no image changes."""
        table = self._landmarks
        place = self._images.T_map_camera[table.camera, :3, 3]
        table.origin[:] = place + (table.origin - place) / factor
        table.rho *= factor
        table.variance *= factor**2

    # --- after the engine

    def observe(
        self, frame: Frame, engine: Geometry, pose: PoseEstimate, mask: NDArray[np.bool_]
    ) -> None:
        """Gives landmarks their depth, drops those on movers (mask [N, h, w], True = moving) and
        finds new ones."""
        cameras, table, looking = self._cameras, self._landmarks, self._images.looking
        mine = np.flatnonzero(looking[table.camera])
        rays = cameras.rays(table.camera[mine], table.pixel[mine])
        working = landmarks.rays_to_pixels(rays, cameras.k[table.camera[mine]])
        landmarks.from_engine(table, mine, rays, working, engine, pose.T_map_camera)
        moving = np.zeros(len(table), np.bool_)
        moving[mine] = landmarks.sample(mask, table.camera[mine], working)
        if moving.any():
            table = table.keep(~moving)
        camera, pixel = klt.corners(cameras, self._images, looking, table)
        if len(pixel):
            noise, road = self.parameters.pixel_noise, not self._odometry_followed
            new = klt.planted(
                cameras, self._images, camera, pixel, engine, pose, mask, self._born, noise, road
            )
            table = table.extend(new)
            self._born += len(pixel)
        self._landmarks = table
