"""The car's pose, frame by frame: predicted from odometry or constant velocity, refined with all
cameras of the rig together.

Points followed in the images are landmarks with an inverse depth; one robust solver takes the
sightings of all cameras, and of the engine's pointer memory, at once (see pnp.py). What is known of
a landmark's depth decides what it constrains, so the same lines serve stereo, surround and one
camera. It says when it is lost, goes on predicting with a covariance that grows, and finds its way
back.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.cameras import health
from recon4d_ros.cameras.health import CameraHealth
from recon4d_ros.egomotion import ground_scale, klt, landmarks, measure, motion_prior, pnp
from recon4d_ros.egomotion.calibration import GIVE, calibration_errors
from recon4d_ros.egomotion.camera_rig import Cameras, Images, at_their_stamps
from recon4d_ros.egomotion.ground_scale import Scale
from recon4d_ros.egomotion.imu import Imu
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.local_ba import Mounts
from recon4d_ros.egomotion.measure import Attempt, Instant
from recon4d_ros.egomotion.motion_prior import OdometryBuffer, TwistBuffer
from recon4d_ros.egomotion.mount_check import MountCheck
from recon4d_ros.egomotion.parameters import EgomotionParameters
from recon4d_ros.egomotion.pnp import Prior, Solution
from recon4d_ros.egomotion.road import Road
from recon4d_ros.types import (
    Calibration,
    Frame,
    Geometry,
    ImuSample,
    Jump,
    OdometrySample,
    PoseEstimate,
    Rig,
    Tracking,
    TwistSample,
)

Array = NDArray[np.float64]

# squared Mahalanobis distance between odometry and images (six degrees of freedom) at which it is
# left out
CONTRADICTION = 40.0
LONGEST = 1.0  # s between two frames over which a motion is measured: sets of 1 Hz
ROUNDING = 1e-3  # s: what stamps may add to a time that a user set
# s without the road, after which a rig whose cameras all look alone has lost its metre
ROADLESS = 1.5
FIRST_SCORE, FIRST_LEAD = 0.45, 0.06
# share of the sightings that a motion without another before it has to explain where the road does
# not confirm it
STRONG = 0.5
# the same of cameras that all look alone, whose points know no depth: of a first motion, of others.
# On sound drives by day and night it is 0.7 to 0.9, of wrong motions 0.3 to 0.52 (motorway+night,
# mixed_four, seed 11)
# (ALONE also of the road's patches, where these say more)
ALONE_NEW, ALONE = 0.65, 0.5
# relative deviation of a depth that knows what a metre is, and share of the sightings that have one
DEPTH_KNOWN, DEPTHS_KNOWN = 0.1, 0.3
STILL, STILL_TURN = 0.003, 0.0003
DOUBTED_FRAMES = 10  # for so many frames then
CHECKED = 3  # one motion in so many is held against the mounts: it costs 2 ms


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
        self._read_out = max(camera.rolling_shutter for camera in rig.cameras)
        self.reset()

    def reset(self) -> None:
        """Forget the drive."""
        self._born = 0
        self._images = Images(len(self._cameras))
        self._mounts = Mounts(self._cameras)
        self._odometry = OdometryBuffer()
        self._wheels = TwistBuffer()
        self._imu = Imu()
        self._odometry_doubted = 0
        self._odometry_followed = False  # in the last frame, as it is
        self._stamp_ns: int | None = None
        self._pose = np.eye(4)
        self._road.reset()
        self._health = CameraHealth(len(self._cameras))
        self._mount_check = MountCheck(self._cameras)
        self._road_doubt = self._road.turned(self._road.lean.lasting)
        self._believed = 0  # motions
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
        self._scale = Scale(self._road.turned(self._road.lean.spread))
        self._covariance = np.eye(6) * 1e-8
        self._motion_covariance = np.eye(6) * 1e-8
        self._calibration = np.zeros((6, 3))  # what calibration adds to the pose's error
        self._calibration_covariance = np.zeros((6, 6))  # and to the last motion's
        self._velocity = np.zeros(6)
        self._velocity_covariance = np.zeros((6, 6))
        self._velocity_known = False
        self._hung = np.zeros(6)  # the twist by which what the first frame saw late was placed
        self._skew: Array = np.zeros(len(self._cameras))  # s that its cameras fired after its stamp
        self._believed_speed: measure.Speed | None = None
        self._unconfirmed = motion_prior.Unconfirmed()
        self._tracked_once = False
        self._sure = False  # whether the last motions were believed
        self._roadless = 0.0
        self._metre_known = False

    # --- before the engine

    def estimate(
        self,
        frame: Frame,
        odometry: tuple[OdometrySample, ...],
        jump: Jump = Jump.NONE,
        imu: tuple[ImuSample, ...] = (),
        twist: tuple[TwistSample, ...] = (),
    ) -> PoseEstimate:
        """The pose at the frame's stamp. Never raises and never gives NaN: what it cannot know it
        says in `tracking` and `reason`.

        jump: whether time jumped forward since the last frame: without odometry over that time a
        new segment begins, as it does where nothing confirmed the motion for `extrapolate` seconds.
        odometry, imu, twist: what came since the last frame.
        """
        if self.parameters.odometry != "none":
            self._odometry.add(odometry)
            self._wheels.add(twist)
        self._imu.add(imu)
        self._images.take(frame)
        travel = float(np.linalg.norm(self._velocity[:3])) * self._seconds
        mounts = self._mount_check.troubles()
        self.health = tuple(
            (*seen, *filter(None, [mount]))
            for seen, mount in zip(self._health.look(self._images.now, travel), mounts, strict=True)
        )
        if self._stamp_ns is None:
            return self._begin(frame)
        self._seconds = max((frame.stamp_ns - self._stamp_ns) * 1e-9, 1e-3)
        now = self._instant(frame, self._seconds)
        plain = self._unconfirmed.prior(
            self._pose,
            self._velocity if self._velocity_known else None,
            now.seconds,
            self._velocity_covariance,
            float(self._road.lean.stays[0]),
        )
        turn = self._imu.turn(self._stamp_ns, frame.stamp_ns)
        steady = plain if turn is None else motion_prior.turned(plain, self._pose, *turn)
        told, said = self._told_motion(frame, steady)
        unconfirmed = self._unconfirmed.seconds + now.seconds
        too_long = unconfirmed > self.parameters.extrapolate + ROUNDING
        if told is None and (
            jump is Jump.FORWARD
            or now.seconds > LONGEST
            or (too_long and self._unconfirmed.seconds > 0.0)
        ):
            return self._begin_anew(frame, unconfirmed)
        self._odometry_followed = told is not None and self.parameters.odometry == "trust"
        if told is not None and self._odometry_followed:
            return self._follow_odometry(now, told)
        if told is None:
            attempt, reason = self._tried(now, steady), said
            if attempt.problem and turn is not None:  # the gyro may be what is wrong
                attempt = self._tried(now, plain)
        else:
            attempt, reason = self._with_odometry(now, told, steady, said)
        if self._imu.trouble:
            reason = "; ".join(part for part in (reason, self._imu.trouble) if part)
        if not attempt.problem and told is None and self._believed_speed is not None:
            impossible = measure.impossible(now, attempt, self._believed_speed)
            attempt = replace(attempt, problem=impossible)
        if not attempt.problem:
            self._road_seen(now, attempt, told is not None and not self._odometry_doubted)
            turning = self._imu.turning(self._stamp_ns, frame.stamp_ns)
            if not turning and measure.stands(now, attempt, self._road):
                return self._stand(now, attempt, reason)
            return self._tracked(now, attempt, reason)
        parts = (attempt.problem, reason, health.told(self._names, self.health))
        why = "; ".join(part for part in parts if part)
        if told is not None:
            return self._on_odometry_alone(now, attempt, told, why, said)
        if too_long or not self._velocity_known:  # points are followed from this frame only
            return self._begin_anew(frame, unconfirmed, why)
        return self._lost(now, attempt, steady, why)

    def _told_motion(self, frame: Frame, steady: Prior) -> tuple[Prior | None, str]:
        """Where odometry, or else wheel speed, says that the car is, and which of them says so;
        None with a reason where neither does."""
        assert self._stamp_ns is not None
        span = self._stamp_ns, frame.stamp_ns
        velocity = self._velocity if self._velocity_known else None
        motion, said = self._odometry.motion(*span, velocity)
        if motion is not None:
            return self._from_odometry(motion), "odometry"
        motion, missing = self._wheels.motion(*span, velocity)
        if motion is None:
            return None, said or missing
        told = self._from_odometry(motion)
        if self._wheels.turns:
            return told, "twist"
        # of a car whose wheels tell a speed alone: it turns as gyro or last motion say
        turn = geometry.log(geometry.inverse(self._pose) @ steady.T_map_base)[3:]
        return motion_prior.turned(told, self._pose, turn, steady.covariance[3:, 3:]), "twist"

    def _from_odometry(self, motion: Array) -> Prior:
        noise = self.parameters.odometry_noise
        return Prior(self._pose @ motion, motion_prior.of_odometry(motion, noise))

    def _tried(self, now: Instant, prior: Prior) -> Attempt:
        """Points and road from a prediction; where none is known, from the speed that the road fits
        best."""
        if not self._velocity_known:
            prior = self._first(now, prior)
            self._hang(now.velocity(prior.T_map_base))
        attempt = measure.attempt(now, prior)
        if not self._velocity_known and not attempt.problem:
            self._hang(now.velocity(attempt.solution.T_map_base))
            self._lay(now, attempt)
            seen = measure.rescaled(now, attempt, self._landmarks).sightings
            attempt = measure.solved(now, seen, prior)
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
        # the search takes the road to lie as it did
        deviation[0] += self._road.turned(self._road.lean.spread) * abs(motion[0, 3])
        return Prior(self._pose @ motion, np.diag(deviation**2))

    def _hang(self, twist: Array) -> None:
        """The landmarks of a segment's first frame, found before any motion was known, where
        cameras that fired one after another, and rows that are read out so, saw them from while the
        car moved with this twist [6]."""
        table, images = self._landmarks, self._images
        rows = self._cameras.late(table.camera, table.pixel)
        late = self._skew[table.camera] + (0.0 if rows is None else rows)
        if not late.any():
            return
        skewed = self._moved_on(twist, self._skew)
        images.T_map_camera = skewed @ images.T_map_camera
        moved = self._moved_on(twist, late)
        table.origin[:] = (moved[:, :3, :3] @ table.origin[..., None])[..., 0] + moved[:, :3, 3]
        table.bearing[:] = (moved[:, :3, :3] @ table.bearing[..., None])[..., 0]
        self._hung = twist

    def _moved_on(self, twist: Array, late: Array) -> Array:
        """[M, 4, 4] in map: from where the car was thought to be `late` [M] seconds after the first
        frame to where it was, if it moved with a twist [6]."""
        moved = geometry.along(twist, late) @ geometry.inverse(geometry.along(self._hung, late))
        return np.asarray(self._pose @ moved @ geometry.inverse(self._pose), np.float64)

    def _lay(self, now: Instant, attempt: Attempt) -> None:
        """The landmarks of a segment's first frame that are taken to lie on the road, whose slope
        the first motion says."""
        motion = geometry.inverse(self._pose) @ attempt.solution.T_map_base
        lean = self._road.lean.by_way(motion, attempt.covariance, now.seconds)
        table, mounts = self._landmarks, self._cameras.T_base_camera
        for camera in np.unique(table.camera[table.assumed]).tolist():
            mine = np.flatnonzero(table.assumed & (table.camera == camera))
            toward = table.bearing[mine] @ self._images.T_map_camera[camera, :3, :3]
            rays = toward[:, :2] / toward[:, 2:]
            rho, variance = ground_scale.inverse_depth(rays, mounts[camera], lean)
            on = mine[np.isfinite(rho)]
            table.rho[on], table.variance[on] = rho[np.isfinite(rho)], variance[np.isfinite(rho)]

    def _stand(self, now: Instant, attempt: Attempt, reason: str) -> PoseEstimate:
        """The car has not moved (zero-velocity update)."""
        still = np.diag([STILL] * 3 + [STILL_TURN] * 3) ** 2
        self._accept(now, attempt, Prior(self._pose, still))
        self._velocity, self._velocity_covariance = np.zeros(6), np.zeros((6, 6))
        self._believe_speed()
        self._sure = True
        self._imu_learns(now, np.zeros(3), still)
        self._unconfirmed.confirmed()
        self._tracked_once = True
        return self._said(now.frame, Tracking.TRACKING, attempt.solution.inliers, reason)

    def _imu_learns(self, now: Instant, turn: Array, covariance: Array) -> None:
        """The turn [3] that the images say, with the motion's covariance [6, 6]."""
        end = now.frame.stamp_ns
        unsure = covariance[3:, 3:] + GIVE[3:, 3:]
        self._imu.learn(end - round(now.seconds * 1e9), end, turn, unsure)

    def _begin(self, frame: Frame) -> PoseEstimate:
        """The segment's first frame: points are followed from its images."""
        self._stamp_ns = frame.stamp_ns
        self._skew = np.where(frame.present, (frame.stamps_ns - frame.stamp_ns) * 1e-9, 0.0)
        every = np.ones(len(self._cameras), np.bool_)
        self._images.adopt(frame, every, self._pose, self._T_map_camera(frame))
        reason = (
            "first frame: no motion yet"
            if frame.present.any()
            else "no camera has sent an image yet"
        )
        return self._said(frame, self._untracked, 0, reason)

    def _begin_anew(self, frame: Frame, unconfirmed: float, why: str = "") -> PoseEstimate:
        """A new segment, with this frame as its first. Its pose is the last one that was said, so
        that odom -> base_link does not jump; where that is from the old segment is not known."""
        reason = why
        if self._velocity_known or not why:
            reason = f"nothing confirmed the motion for {unconfirmed:.1f} s"
            reason += f" ({why})" if why else ""
        if self._tracked_once:
            self._segment += 1
            self._lost_before = True
            reason += ": the pose is kept, a new segment begins"
        self._start_segment()
        self._begin(frame)
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
            self._road.views(self._images, self._pose, seconds),
            self._mounts.turn_doubt(),
            self._road.visible,
            self._mount_check.doubt(),
            self._road_doubt,
            self.parameters,
        )

    def _follow_odometry(self, now: Instant, prior: Prior) -> PoseEstimate:
        """The odometry's motion as it is; the images only keep the landmarks alive."""
        velocity = now.velocity(prior.T_map_base)
        if not self._velocity_known:
            self._hang(velocity)
        seen, T_camera_base = now.sight(prior, velocity), now.T_camera_base(velocity)
        seen = replace(seen, observations=seen.observations.moving(velocity))
        distance = pnp.evaluate(prior.T_map_base[None], T_camera_base, seen.observations)[0]
        solution = Solution(prior.T_map_base, distance, distance < pnp.GATE, np.zeros((6, 6)), 0.0)
        pose = prior.T_map_base
        attempt = Attempt(seen, prior, solution, T_camera_base, prior.covariance, "", pose)
        self._accept(now, attempt, prior)
        self._unconfirmed.confirmed()
        return self._said(
            now.frame, Tracking.TRACKING, solution.inliers, "odometry is trusted as it is"
        )

    def _with_odometry(
        self, now: Instant, told: Prior, steady: Prior, what: str
    ) -> tuple[Attempt, str]:
        """From the odometry first; from constant velocity where the images disagree with it. what:
        odometry or twist."""
        covariance = told.covariance
        around = self._unconfirmed.prior(self._pose, now.velocity(told.T_map_base), now.seconds)
        loose = Prior(told.T_map_base, covariance + around.covariance)
        first, second = (loose, steady) if self._odometry_doubted == 0 else (steady, loose)
        attempt = self._tried(now, first)
        if attempt.problem:
            other = self._tried(now, second)
            if not other.problem or other.solution.inliers > attempt.solution.inliers:
                attempt = other
        if attempt.problem:
            return attempt, ""
        error = geometry.log(geometry.inverse(attempt.pose) @ told.T_map_base)
        if error @ np.linalg.solve(covariance + attempt.covariance, error) > CONTRADICTION:
            self._odometry_doubted = DOUBTED_FRAMES
            return (
                attempt,
                (
                    f"{what} contradicts the images by {np.linalg.norm(error[:3]):.2f} m: it is"
                    " left out"
                ),
            )
        self._odometry_doubted = max(self._odometry_doubted - 1, 0)
        if self._odometry_doubted:
            return attempt, f"{what} contradicted the images a moment ago: it is left out"
        return measure.solved(now, attempt.sightings, told), ""

    # --- what becomes of an attempt

    def _tracked(self, now: Instant, attempt: Attempt, reason: str) -> PoseEstimate:
        doubt = attempt.doubt or measure.doubt(now, attempt)
        few = "" if doubt else self._new(now, attempt)
        if doubt:
            self._sure = False
        if few and self._cameras.all_alone and not self._velocity_known:
            # what it would teach is wrong: the next frame searches at all speeds again
            return self._begin_anew(now.frame, now.seconds, few)
        doubt = doubt or few or self._metre()
        motion = geometry.inverse(self._pose) @ attempt.pose
        if not doubt:
            self._believe_road(now, attempt, motion)
        self._accept(now, attempt, Prior(attempt.pose, attempt.covariance))
        self._unconfirmed.confirmed()
        self._tracked_once = True
        if not doubt:
            turn = self._velocity[3:] * now.seconds
            self._imu_learns(now, turn, attempt.covariance)
            self._believe_speed()
            self._believed += 1
            if self._believed % CHECKED == 0:
                self._check_mounts(now, attempt, motion)
        else:
            told = "; ".join(
                part for part in (doubt, reason, health.told(self._names, self.health)) if part
            )
            return self._said(now.frame, Tracking.DEGRADED, attempt.solution.inliers, told)
        return self._said(now.frame, Tracking.TRACKING, attempt.solution.inliers, reason)

    def _believe_road(self, now: Instant, attempt: Attempt, motion: Array) -> None:
        """How the road lies is learnt of it, or of a motion [4, 4] along it."""
        if attempt.road is not None:
            self._road.believe(now.road, motion, now.seconds)
            self._road_doubt = attempt.turn_error(now)
        else:
            self._road.rolled(motion, attempt.covariance, now.seconds)
            self._road_doubt = self._road.turned(self._road.lean.lasting)

    def _believe_speed(self) -> None:
        """The speed is held against what comes: no car changes it at once."""
        assert self._stamp_ns is not None
        deviation = float(np.sqrt(self._velocity_covariance[0, 0]))
        self._believed_speed = measure.Speed(float(self._velocity[0]), deviation, self._stamp_ns)

    def _check_mounts(self, now: Instant, attempt: Attempt, motion: Array) -> None:
        o = attempt.sightings.observations.take(np.arange(attempt.sightings.second))
        own = now.landmarks.camera[o.landmark] == o.camera
        place = at_their_stamps(
            self._cameras.T_base_camera, now.frame, now.velocity(attempt.solution.T_map_base)
        )
        self._mount_check.add(o, own, attempt.solution.T_map_base, place, motion)

    def _road_goes(self, now: Instant, motion: Array) -> str:
        """Why a first motion [4, 4] is not to be believed: the road clearly goes by at another
        speed."""
        goes, score, _ = self._road.search(now.road, now.seconds, motion[:3, :3])
        here = float(self._road.score(now.road, motion[None])[0][0])
        if score < self._road.thresholds.score or score - here < FIRST_LEAD:
            return ""
        return (
            f"the road goes by at {goes[0, 3] / now.seconds:.1f} m/s: it may be a vehicle's motion"
        )

    def _new(self, now: Instant, attempt: Attempt) -> str:
        """Why a motion on which too few sightings and patches of the road agree is not to be
        believed: the largest group that moves alike may be a small one."""
        road, of = attempt.road, len(attempt.sightings.observations)
        share = attempt.solution.inliers / max(of, 1)
        if road is not None and self._cameras.all_alone:
            patches = road.agreeing / max(road.textured, 1)
            if max(share, patches) < ALONE:
                self._sure = False
                return (
                    f"only {100 * share:.0f} % of the sightings and {100 * patches:.0f} % of the"
                    " road's patches agree"
                )
        if self._cameras.all_alone:
            needed = ALONE if self._sure else ALONE_NEW
        else:
            needed = 0.0 if self._sure else STRONG
        if road is not None or share >= needed:
            if not self._sure and road is None:
                motion = geometry.inverse(now.pose) @ attempt.pose
                if other := self._road_goes(now, motion):
                    return other
            self._sure = True
            return ""
        return (
            f"{100 * share:.0f} % of the sightings agree, {100 * needed:.0f} % are needed where the"
            " road does not confirm it"
        )

    def _road_seen(self, now: Instant, attempt: Attempt, told: bool) -> None:
        """How long nothing has said what a metre is: the road, where a camera looks at it, odometry
        (told), or, at the start, depths that no motion can have given."""
        seen = attempt.road is not None or not self._road.visible or told
        self._roadless = 0.0 if seen else self._roadless + now.seconds
        self._metre_known |= seen
        if not self._velocity_known:
            o = attempt.sightings.observations.take(attempt.solution.inlier)
            known = o.variance < (DEPTH_KNOWN * o.rho) ** 2
            known &= ~now.landmarks.assumed[o.landmark]
            self._metre_known |= len(o) > 0 and float(known.mean()) > DEPTHS_KNOWN

    def _metre(self) -> str:
        """Why lengths are not to be believed: cameras that look alone know none but by the road."""
        if not self._cameras.all_alone or (self._metre_known and self._roadless <= ROADLESS):
            return ""
        since = f"for {self._roadless:.1f} s" if self._metre_known else "yet"
        return f"the road was not seen {since}: nothing says how long a metre is"

    def _on_odometry_alone(
        self, now: Instant, attempt: Attempt, told: Prior, why: str, what: str
    ) -> PoseEstimate:
        """The odometry's motion, as long as the images have not contradicted it."""
        doubted = self._odometry_doubted > 0
        self._accept(now, attempt, told)
        self._unconfirmed.confirmed()
        state = Tracking.DEGRADED if doubted else Tracking.TRACKING
        contradicted = ", which contradicted the images a moment ago" if doubted else ""
        return self._said(now.frame, state, 0, f"{what} alone{contradicted}: {why}")

    def _lost(self, now: Instant, attempt: Attempt, steady: Prior, told: str) -> PoseEstimate:
        """The predicted pose, with a covariance that grows."""
        self._sure = False
        growth = self._unconfirmed.carried_on(now.seconds, steady.covariance)
        kept = self._velocity, self._velocity_covariance, self._velocity_known
        self._accept(now, attempt, Prior(steady.T_map_base, growth))
        # nothing was learnt of it
        self._velocity, self._velocity_covariance, self._velocity_known = kept
        return self._said(now.frame, self._untracked, attempt.solution.inliers, told)

    def _accept(self, now: Instant, attempt: Attempt, found: Prior) -> None:
        """The frame's pose, and what it teaches of the landmarks if the attempt is believed."""
        motion = geometry.inverse(self._pose) @ found.T_map_base
        carry = pnp.adjoint(geometry.inverse(motion))
        by_images = not attempt.problem and not self._odometry_followed
        errors, give = np.zeros((6, 3)), np.zeros((6, 6))
        if by_images:
            give = GIVE * min(1.0, float(np.linalg.norm(motion[:3, 3])))
            scale = attempt.scale_error(now)
            if self._cameras.all_alone:
                scale = float(np.hypot(scale, self._scale.deviation))
            errors = calibration_errors(motion, scale, self._read_out / now.seconds)
        self._calibration = carry @ self._calibration + errors
        self._calibration_covariance = errors @ errors.T + give
        self._covariance = carry @ self._covariance @ carry.T + found.covariance + give
        self._motion_covariance = found.covariance + self._calibration_covariance
        velocity = geometry.log(motion) / now.seconds
        if not self._velocity_known:  # odometry may have said it, without a try
            self._hang(velocity)
        self._velocity, self._velocity_known = velocity, True
        self._velocity_covariance = found.covariance / now.seconds**2
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
            self._covariance + self._calibration @ self._calibration.T,
            self._motion_covariance.copy(),
            self._velocity.copy(),
            inliers,
            reason,
            self._segment,
            self._calibration_covariance.copy(),
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
        late = cameras.late(table.camera[mine], table.pixel[mine])
        moved = landmarks.carried(pose.T_map_base, pose.velocity, late)
        landmarks.from_engine(table, mine, rays, working, engine, pose.T_map_camera, moved)
        moving = np.zeros(len(table), np.bool_)
        moving[mine] = landmarks.sample(mask, table.camera[mine], working)
        if moving.any():
            table = table.keep(~moving)
        camera, pixel = klt.corners(cameras, self._images, looking, table)
        if len(pixel):
            noise = self.parameters.pixel_noise
            road = None if self._odometry_followed else self._road.lean
            new = klt.planted(
                cameras, self._images, camera, pixel, engine, pose, mask, self._born, noise, road
            )
            table = table.extend(new)
            self._born += len(pixel)
        self._landmarks = table
