"""The car's pose, frame by frame: predicted from odometry or constant velocity, refined with all cameras of the rig together.

Points followed in the images are landmarks with an inverse depth; one robust solver takes the sightings of all cameras, and of the
engine's pointer memory, at once (see pnp.py). What is known of a landmark's depth decides what it constrains, so the same lines serve
stereo, surround and one camera. It says when it is lost, goes on predicting with a covariance that grows, and finds its way back.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import bundle, features, ground, landmark_memory, pnp
from recon4d_ros.egomotion.bundle import Adjusted, Keyframe
from recon4d_ros.egomotion.features import Landmarks
from recon4d_ros.egomotion.lens import lens_at, own_car_at
from recon4d_ros.egomotion.odometry import OdometryBuffer
from recon4d_ros.egomotion.pnp import Observations, Prior, Solution
from recon4d_ros.parallel import each
from recon4d_ros.parameters import parameter
from recon4d_ros.types import Calibration, Frame, Geometry, OdometrySample, Pointers, PoseEstimate, Rig, Tracking

Array = NDArray[np.float64]

STALE_NS = 1_000_000_000  # a camera that saw nothing for so long restarts its points
STEADY_SECONDS = 1.5  # for so long a motion that nothing confirms is carried on as it was
PARALLEL = np.cos(np.radians(20.0))  # cameras that look this much the same way see the same patch the same way
KEYFRAME_TRAVEL, KEYFRAMES = 1.0, 6  # metres between keyframes, keyframes adjusted together
VAGUE = 0.02  # relative deviation of an inverse depth above which the engine's is worth asking for
MEMORY_NOISE = 0.5  # pixels of the working image
MOUNT = 0.001  # rad: how far a camera's mount may be turned from its calibration
FAR = 8.0  # pixels of the input image that predictions may have been off without another look: half the window that points are followed in
BLIND_SHARE, BLIND_COUNT = 0.2, 10
AROUND = np.array([[0, 0], [-2, 0], [2, 0], [0, -2], [0, 2]])  # working pixels (u, v): where a depth must agree with the one at 0, 0


@dataclass(frozen=True)
class EgomotionParameters:
    odometry: str = parameter(
        "prior",
        "what odometry is for: `none` ignores it, `prior` starts from it and refines, `trust` takes its motion as it is",
        choices=("none", "prior", "trust"),
    )
    features: int = parameter(400, "points followed, all cameras together (at most 200 each)", minimum=40, maximum=4000)
    memory: str = parameter(
        "auto",
        "hold the pose against the engine's pointer memory: `always`, `never`, or `auto`, where it was measured to help: cameras without a "
        "second one beside them, and any camera while the followed points do not hold the pose",
        choices=("auto", "always", "never"),
    )
    min_inliers: int = parameter(15, "sightings that must agree for the pose to count as tracked", minimum=6, maximum=500)
    pixel_noise: float = parameter(0.5, "standard deviation of a followed point in pixels of the input image", minimum=0.05, maximum=5.0)
    odometry_noise: float = parameter(0.02, "standard deviation of the odometry's motion, as a share of it", minimum=0.0001, maximum=1.0)


@dataclass(frozen=True)
class _Sightings:
    """Where the landmarks are in the new images. pixel [L, 2], found [L], blind [N]: cameras that found next to none of theirs.

    guess [L, 2]: where they were looked for.

    observations: of the found ones; the last ones, from `second` on, are those on the supposed road once more, without that supposition.
    """

    pixel: NDArray[np.float32]
    guess: NDArray[np.float32]
    found: NDArray[np.bool_]
    blind: NDArray[np.bool_]
    observations: Observations
    second: int


@dataclass(frozen=True)
class _Seen:
    """Landmarks index [M] of a table, seen by one camera along rays [M, 2]."""

    camera: int
    index: NDArray[np.int64]
    rays: Array


@dataclass(frozen=True)
class _Attempt:
    sightings: _Sightings
    prior: Prior
    solution: Solution
    T_camera_base: Array
    covariance: Array
    problem: str


class Egomotion:
    """`estimate` before the engine's step, `observe` after the dynamics. map is base_link at the first frame."""

    def __init__(self, rig: Rig, calibration: Calibration, parameters: EgomotionParameters | None = None) -> None:
        self.parameters = parameters or EgomotionParameters()
        self._calibration = calibration
        self._nominal = np.asarray(calibration.T_base_camera, np.float64)
        self._lenses = [lens_at(camera, calibration.input_size) for camera in rig.cameras]
        self._own_car = [own_car_at(camera, calibration.input_size) for camera in rig.cameras]
        axes = self._nominal[:, :3, 2]
        centres = self._nominal[:, :3, 3]
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        self._neighbours = [np.flatnonzero((axes @ axes[i] > PARALLEL) & (apart[i] > 0.03)) for i in range(len(rig.cameras))]
        leaders = sum(not any(other < camera for other in beside) for camera, beside in enumerate(self._neighbours))
        self._quota = min(max(self.parameters.features // leaders, 12), 200)
        self.reset()

    def reset(self) -> None:
        """Forget the drive."""
        self._landmarks = Landmarks.empty()
        self._odometry = OdometryBuffer()
        self._grey: list[NDArray[np.uint8] | None] = [None] * len(self._lenses)
        self._seen_ns = np.zeros(len(self._lenses), np.int64)
        self._current: list[NDArray[np.uint8] | None] = [None] * len(self._lenses)
        self._stamp_ns: int | None = None
        self._pose = np.eye(4)
        self._velocity = np.zeros(6)
        self._velocity_known = False
        self._covariance = np.eye(6) * 1e-8
        self._tracked_once = False
        self._unheld = 0.0  # seconds since an image or odometry confirmed the motion
        self._lost_covariance: Array = np.zeros((6, 6))  # what those seconds have added to the covariance
        self._odometry_doubted = 0
        self._born = 0
        self._births = landmark_memory.Births.none()
        self._places = [np.zeros(3)] * 2  # base_link at the last two frames: the memory's newest pointers are from the older
        self._odometry_used = False
        self._keyframes: list[Keyframe] = []
        self._turn = np.zeros((len(self._lenses), 3))
        loose = np.array([camera > 0 and len(self._neighbours[camera]) > 0 for camera in range(len(self._lenses))])
        self._turn_covariance = np.diag(np.repeat(np.where(loose, MOUNT, 1e-7) ** 2, 3))
        self._T_base_camera = self._nominal.copy()

    # -- before the engine ---------------------------------------------------------------------------------------------------------

    def estimate(self, frame: Frame, odometry: tuple[OdometrySample, ...], pointers: Pointers) -> PoseEstimate:
        """The pose at the frame's stamp. Never raises and never gives NaN: what it cannot know it says in `tracking` and `reason`."""
        if self.parameters.odometry != "none":
            self._odometry.add(odometry)
        images = zip(frame.images, frame.present, strict=True)
        self._current = each(lambda image: features.grey(image[0]) if image[1] else None, images)
        if self._stamp_ns is None:
            return self._begin(frame)
        seconds = max((frame.stamp_ns - self._stamp_ns) * 1e-9, 1e-3)
        self._forget_stale(frame)
        if self.parameters.memory != "never":
            self._births.update(pointers, self._places[0])
        motion, said = self._odometry.motion(self._stamp_ns, frame.stamp_ns, self._velocity if self._velocity_known else None)
        if self.parameters.odometry == "none":
            said = ""
        self._odometry_used = motion is not None
        if motion is not None and self.parameters.odometry == "trust":
            return self._follow_odometry(frame, motion, seconds)
        steady = Prior(self._pose @ geometry.exp(self._velocity * seconds), self._steady_covariance(seconds))
        if motion is None:
            attempt, reason = self._attempt(frame, steady, seconds), said
        else:
            attempt, reason = self._with_odometry(frame, motion, steady, seconds)
        if self.parameters.memory != "never":
            attempt = self._held(frame, attempt, pointers, seconds)
        return self._conclude(frame, attempt, motion, steady, seconds, reason)

    def _begin(self, frame: Frame) -> PoseEstimate:
        self._stamp_ns = frame.stamp_ns
        self._adopt(frame, np.ones(len(self._lenses), np.bool_))
        reason = "first frame: no motion yet" if frame.present.any() else "no camera has sent an image yet"
        return self._said(frame, Tracking.STARTING, 0, reason)

    def _follow_odometry(self, frame: Frame, motion: Array, seconds: float) -> PoseEstimate:
        """The odometry's motion as it is; the images only keep the landmarks alive."""
        prior = Prior(self._pose @ motion, self._odometry_covariance(motion))
        velocity = geometry.log(motion) / seconds
        sightings = self._sight(frame, prior, velocity)
        T_camera_base = self._T_camera_base(frame, velocity)
        distance = pnp.evaluate(prior.T_map_base[None], T_camera_base, sightings.observations)[0]
        inlier = distance < pnp.GATE
        solution = Solution(prior.T_map_base, distance, inlier, np.zeros((6, 6)), 0.0)
        attempt = _Attempt(sightings, prior, solution, T_camera_base, prior.covariance, "")
        self._accept(frame, attempt, prior.T_map_base, prior.covariance, seconds)
        self._hold()
        return self._said(frame, Tracking.TRACKING, int(inlier.sum()), "odometry is trusted as it is")

    def _with_odometry(self, frame: Frame, motion: Array, steady: Prior, seconds: float) -> tuple[_Attempt, str]:
        """From the odometry first; from constant velocity where the images disagree with it."""
        told = self._pose @ motion
        covariance = self._odometry_covariance(motion)
        loose = Prior(told, np.maximum(covariance, 0) + self._steady_covariance(seconds, known=True))
        first, second = (loose, steady) if self._odometry_doubted == 0 else (steady, loose)
        attempt = self._attempt(frame, first, seconds)
        if attempt.problem:
            other = self._attempt(frame, second, seconds)
            if not other.problem or other.solution.inliers > attempt.solution.inliers:
                attempt = other
        if attempt.problem:
            return attempt, ""
        error = geometry.log(geometry.inverse(attempt.solution.T_map_base) @ told)
        if error @ np.linalg.solve(covariance + attempt.covariance, error) > 40.0:
            self._odometry_doubted = 10
            return attempt, f"odometry contradicts the images by {np.linalg.norm(error[:3]):.2f} m: it is left out"
        self._odometry_doubted = max(self._odometry_doubted - 1, 0)
        if self._odometry_doubted:
            return attempt, "odometry contradicted the images a moment ago: it is left out"
        return self._solved(frame, attempt.sightings, Prior(told, covariance), seconds), ""

    def _attempt(self, frame: Frame, prior: Prior, seconds: float) -> _Attempt:
        """Sightings and solution from one prediction; if that was far off and many points were not found, again from the solution."""
        velocity = geometry.log(geometry.inverse(self._pose) @ prior.T_map_base) / seconds
        sightings = self._sight(frame, prior, velocity)
        attempt = self._solved(frame, sightings, prior, seconds)
        asked = frame.present[self._landmarks.camera]
        few = sightings.found[asked].sum() < 0.6 * asked.sum()
        nearer = Prior(attempt.solution.T_map_base, prior.covariance)
        if attempt.solution.inliers >= 8 and (few or not self._velocity_known) and self._shift(sightings, nearer, attempt) > FAR:
            again = self._sight(frame, nearer, geometry.log(geometry.inverse(self._pose) @ nearer.T_map_base) / seconds)
            if again.found.sum() > sightings.found.sum():
                attempt = self._solved(frame, again, nearer, seconds)
        return attempt

    def _shift(self, sightings: _Sightings, prior: Prior, attempt: _Attempt) -> float:
        """Pixels, in the median, between where the points were looked for and where they would be by another prior."""
        table = self._landmarks
        guess = self._guess(table, np.arange(len(table)), table.camera, prior.T_map_base, attempt.T_camera_base, sightings.guess)
        there = (sightings.guess != table.pixel).any(-1)
        return float(np.median(np.linalg.norm(guess - sightings.guess, axis=1)[there])) if there.any() else np.inf

    def _solved(self, frame: Frame, sightings: _Sightings, prior: Prior, seconds: float, start: Array | None = None) -> _Attempt:
        velocity = geometry.log(geometry.inverse(self._pose) @ prior.T_map_base) / seconds
        solution = None
        for _ in range(2):  # the cameras' skew in time needs the velocity, which needs the pose
            T_camera_base = self._T_camera_base(frame, velocity)
            solution = pnp.solve(T_camera_base, sightings.observations, prior, seed=frame.stamp_ns % 2**32, start=start)
            solved = geometry.log(geometry.inverse(self._pose) @ solution.T_map_base) / seconds
            skew = np.abs(frame.stamps_ns - frame.stamp_ns).max() * 1e-9
            if np.abs(solved - velocity).max() * skew < 1e-3:
                break
            velocity = solved
        assert solution is not None
        excess = max(1.0, float(np.median(solution.distance[solution.inlier])) / 1.39) if solution.inliers else 1.0
        covariance = np.asarray(np.linalg.inv(solution.information / excess + np.eye(6) * 1e-4), np.float64)
        problem = self._problem(frame, sightings, solution, covariance)
        return _Attempt(sightings, prior, solution, T_camera_base, covariance, problem)

    def _held(self, frame: Frame, attempt: _Attempt, pointers: Pointers, seconds: float) -> _Attempt:
        """The attempt with the memory's sightings beside those of the tracks."""
        base = attempt.prior.T_map_base if attempt.problem else attempt.solution.T_map_base
        T_map_camera = base @ geometry.inverse(attempt.T_camera_base)
        everywhere = self.parameters.memory == "always" or bool(attempt.problem)
        views = [
            landmark_memory.View(camera, image, self._lenses[camera], self._calibration.k[camera], T_map_camera[camera])
            for camera, image in enumerate(self._current)
            if image is not None and (everywhere or not len(self._neighbours[camera]))
        ]
        room = landmark_memory.PATCHES // max(int(frame.present.sum()), 1)
        found = landmark_memory.find(pointers, self._births, views, MEMORY_NOISE, room)
        if found is None:
            return attempt
        together = replace(attempt.sightings, observations=Observations.join([attempt.sightings.observations, found]))
        held = self._solved(frame, together, attempt.prior, seconds, None if attempt.problem else base)
        return held if not held.problem or attempt.problem else attempt

    def _problem(self, frame: Frame, sightings: _Sightings, solution: Solution, covariance: Array) -> str:
        """Why this solution is not to be believed; empty if it is."""
        if not frame.present.any():
            return "no camera has sent an image"
        if sightings.blind[frame.present].all() and len(self._landmarks):
            return "the images show none of the points followed"
        if solution.inliers < self.parameters.min_inliers:
            return f"{solution.inliers} sightings agree, {self.parameters.min_inliers} are needed"
        share = solution.inliers / max(len(sightings.observations), 1)
        if share < 0.25:
            return f"{100 * share:.0f} % of the sightings agree, 25 % are needed"
        doubt = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
        moved = float(np.linalg.norm(solution.T_map_base[:3, 3] - self._pose[:3, 3]))
        if doubt > 0.05 + 0.1 * moved:
            return f"the motion is known to {doubt:.2f} m only"
        return ""

    def _conclude(self, frame: Frame, attempt: _Attempt, motion: Array | None, steady: Prior, seconds: float, reason: str) -> PoseEstimate:
        if not attempt.problem:
            self._accept(frame, attempt, attempt.solution.T_map_base, attempt.covariance, seconds)
            self._hold()
            self._tracked_once = True
            return self._said(frame, Tracking.TRACKING, attempt.solution.inliers, reason)
        told = attempt.problem if not reason else f"{attempt.problem}; {reason}"
        if motion is not None:
            pose, covariance = self._pose @ motion, self._odometry_covariance(motion)
            self._accept(frame, attempt, pose, covariance, seconds)
            self._hold()
            return self._said(frame, Tracking.TRACKING, 0, f"odometry alone: {told}")
        self._unheld += seconds
        if self._unheld > STEADY_SECONDS:
            self._velocity = self._velocity * np.exp(-seconds)  # nobody knows any more: better to stay than to fly on
        growth = np.maximum(steady.covariance - self._lost_covariance, 1e-8 * np.eye(6))
        self._lost_covariance = steady.covariance
        self._accept(frame, attempt, steady.T_map_base, np.diag(np.diag(growth)), seconds, keep_velocity=True)
        return self._said(frame, Tracking.LOST if self._tracked_once else Tracking.STARTING, attempt.solution.inliers, told)

    # -- after the engine ----------------------------------------------------------------------------------------------------------

    def observe(self, frame: Frame, geometry_: Geometry, pose: PoseEstimate, mask: NDArray[np.bool_]) -> None:
        """Gives landmarks their depth, drops those on movers (mask [N, h, w], True = moving) and finds new ones."""
        # An absent or blind camera's points wait for its next good image.
        looking = np.array([image is not None and before is image for before, image in zip(self._grey, self._current, strict=True)])
        mine = np.flatnonzero(looking[self._landmarks.camera])
        rays = self._rays(self._landmarks.camera[mine], self._landmarks.pixel[mine])
        working = features.rays_to_pixels(rays, self._calibration.k[self._landmarks.camera[mine]])
        self._learn_depth(mine, rays, working, geometry_, pose)
        moving = features.sample(mask, self._landmarks.camera[mine], working)
        if moving.any():
            keep = np.ones(len(self._landmarks), np.bool_)
            keep[mine[moving]] = False
            self._landmarks = self._landmarks.keep(keep)
        table = self._landmarks
        wanted = self._quota - np.bincount(table.camera, minlength=len(looking))
        led = np.array([looking[beside[beside < camera]].any() for camera, beside in enumerate(self._neighbours)])
        finders = np.flatnonzero(looking & ~led & (wanted > 0.2 * self._quota))  # of cameras side by side the first one that sees leads

        def corners(camera: int) -> NDArray[np.float32]:
            image, room = self._current[camera], features.spacing(self._lenses[camera], self._quota)
            assert image is not None
            taken = table.pixel[table.camera == camera]
            return features.detect(image, taken, int(wanted[camera]), room, self._own_car[camera])

        found = each(corners, finders.tolist())
        if found:
            self._add(np.repeat(finders, [len(pixel) for pixel in found]), np.concatenate(found), geometry_, pose, mask)

    def _rays(self, camera: NDArray[np.int64], pixel: NDArray) -> Array:
        """Normalised coordinates [M, 2] of pixels [M, 2] of cameras [M]."""
        rays = np.empty((len(camera), 2))
        for one in np.unique(camera):
            rays[camera == one] = self._lenses[one].rays(pixel[camera == one])
        return rays

    def _learn_depth(self, mine: NDArray, rays: Array, working: Array, geometry_: Geometry, pose: PoseEstimate) -> None:
        """Landmarks whose depth is less well known than the engine's take the engine's."""
        table = self._landmarks
        vague = table.variance[mine] > (VAGUE * table.rho[mine]) ** 2
        mine, rays, working = mine[vague], rays[vague], working[vague]
        rho, variance = _inverse_depth(geometry_, table.camera[mine], working)
        with np.errstate(invalid="ignore"):
            better = np.isfinite(rho) & (variance < 0.5 * table.variance[mine])
        index = mine[better]
        # the same point, seen from now: a new anchor
        table.origin[index], table.bearing[index] = self._hung(table.camera[index], rays[better], pose)
        table.rho[index], table.variance[index], table.assumed[index] = rho[better], variance[better], False

    def _hung(self, camera: NDArray[np.int64], rays: Array, pose: PoseEstimate) -> tuple[Array, Array]:
        """Origin and bearing in map [M, 3] of rays [M, 2] of cameras [M]."""
        place = pose.T_map_camera[camera]
        bearing = np.einsum("mij,mj->mi", place[:, :3, :2], rays) + place[:, :3, 2]
        return place[:, :3, 3], bearing

    def _add(
        self, camera: NDArray[np.int64], pixel: NDArray[np.float32], geometry_: Geometry, pose: PoseEstimate, mask: NDArray[np.bool_]
    ) -> None:
        """New landmarks at pixels [M, 2] of cameras [M], but for those on movers and those that the camera beside contradicts."""
        rays = self._rays(camera, pixel)
        working = features.rays_to_pixels(rays, self._calibration.k[camera])
        still = ~features.sample(mask, camera, working).astype(bool)
        camera, pixel, rays, working = camera[still], pixel[still], rays[still], working[still]
        rho, variance, assumed = self._with_road(camera, rays, *_inverse_depth(geometry_, camera, working))
        count = len(pixel)
        origin, bearing = self._hung(camera, rays, pose)
        new = Landmarks(
            camera,
            pixel,
            origin,
            bearing,
            np.where(np.isfinite(rho), rho, features.UNKNOWN_RHO),
            np.where(np.isfinite(rho), variance, features.UNKNOWN_VARIANCE),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            self._born + np.arange(count),
            assumed,
        )
        self._born += count
        T_camera_base = geometry.inverse(pose.T_map_camera) @ pose.T_map_base
        seen = []
        for one in np.unique(camera).tolist():
            image, at = self._current[one], np.flatnonzero(camera == one)
            assert image is not None
            seen += self._across(one, image, new, at, pixel[at], pose.T_map_base, T_camera_base)
        if seen:
            o = self._observations(new, seen)
            distance = pnp.evaluate(pose.T_map_base[None], T_camera_base, o)[0]
            self._refine(new, o, distance < pnp.GATE, pose.T_map_base, T_camera_base)
            wrong = np.zeros(count, np.bool_)
            wrong[o.landmark[distance >= pnp.GATE]] = True
            new = new.keep(~wrong)
        self._landmarks = self._landmarks.extend(new)

    def _with_road(self, camera: NDArray[np.int64], rays: Array, rho: Array, variance: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Depths with the road's beside them, of cameras that have no second one to measure with; and which are the road's alone."""
        road, doubt = np.full(len(rho), np.nan), np.full(len(rho), np.nan)
        for one in np.unique(camera).tolist() if not self._odometry_used else []:
            if not len(self._neighbours[one]):
                road[camera == one], doubt[camera == one] = ground.inverse_depth(rays[camera == one], self._nominal[one])
        with np.errstate(invalid="ignore"):
            assumed = np.isnan(rho) & np.isfinite(road)
            both = np.abs(rho - road) < 0.2 * road
        weight = np.where(both, variance / (variance + doubt), 0.0)
        rho, variance = np.where(both, rho + weight * (road - rho), rho), np.where(both, (1.0 - weight) * variance, variance)
        return np.where(assumed, road, rho), np.where(assumed, doubt, variance), assumed

    # -- sightings -----------------------------------------------------------------------------------------------------------------

    def _sight(self, frame: Frame, prior: Prior, velocity: Array) -> _Sightings:
        """Follows every camera's points into its new image, and into the images of cameras that look the same way."""
        table = self._landmarks
        pixel, found = table.pixel.copy(), np.zeros(len(table), np.bool_)
        blind = np.zeros(len(self._lenses), np.bool_)
        T_camera_base = self._T_camera_base(frame, velocity)
        guess = self._guess(table, np.arange(len(table)), table.camera, prior.T_map_base, T_camera_base, table.pixel)

        def follow(camera: int) -> list[_Seen]:
            """One camera; each writes only where its own landmarks are."""
            before, after, lens = self._grey[camera], self._current[camera], self._lenses[camera]
            mine = np.flatnonzero(table.camera == camera)
            if before is None or len(mine) == 0:
                return []
            if after is None:  # absent: the cameras beside it look for its points
                return self._across(camera, before, table, mine, table.pixel[mine], prior.T_map_base, T_camera_base)
            pixel[mine], good = features.follow(before, after, table.pixel[mine], guess[mine], 1.0)
            good &= lens.inside(pixel[mine], 3.0)
            if len(mine) >= BLIND_COUNT and good.mean() < BLIND_SHARE:
                blind[camera] = True
                return self._across(camera, before, table, mine, table.pixel[mine], prior.T_map_base, T_camera_base)
            found[mine] = good
            seen = mine[good]
            own = _Seen(camera, seen, lens.rays(pixel[seen]))
            return [own, *self._across(camera, after, table, seen, pixel[seen], prior.T_map_base, T_camera_base)]

        seen = [one for each_camera in each(follow, range(len(self._lenses))) for one in each_camera]
        first = self._observations(table, seen)
        doubtful = first.take(table.assumed[first.landmark])
        doubtful = replace(doubtful, variance=np.full(len(doubtful), features.UNKNOWN_VARIANCE))
        return _Sightings(pixel, guess, found, blind, Observations.join([first, doubtful]), len(first))

    def _guess(
        self, table: Landmarks, index: NDArray, camera: NDArray[np.int64], T_map_base: Array, T_camera_base: Array, otherwise: NDArray
    ) -> NDArray[np.float32]:
        """Pixels [M, 2] where landmarks should be in cameras [M]; `otherwise` [M, 2] where that is not in the image."""
        T_camera_map = T_camera_base @ geometry.inverse(T_map_base)
        place = T_camera_map[camera]
        at = table.bearing[index] + table.rho[index, None] * table.origin[index]
        q = np.einsum("mij,mj->mi", place[:, :3, :3], at) + table.rho[index, None] * place[:, :3, 3]
        ahead = q[:, 2] > 1e-3
        rays = q[:, :2] / np.where(ahead, q[:, 2], 1.0)[:, None]
        pixels = np.array(otherwise, np.float32)
        for one in np.unique(camera):
            which, lens = np.flatnonzero((camera == one) & ahead), self._lenses[one]
            there = lens.pixels(rays[which])
            inside = lens.inside(there, 0.0)
            pixels[which[inside]] = there[inside]
        return pixels

    def _across(
        self,
        camera: int,
        here: NDArray[np.uint8],
        table: Landmarks,
        index: NDArray,
        pixel: NDArray,
        T_map_base: Array,
        T_camera_base: Array,
    ) -> list[_Seen]:
        """This instant's sightings in the cameras that look the same way, of points at `pixel` in `here`, an image of `camera`."""
        parts = []
        for other in self._neighbours[camera].tolist():
            there = self._current[other]
            if there is None or len(index) == 0:
                continue
            lens = self._lenses[other]
            nowhere = np.full((len(index), 2), -100.0)
            guess = self._guess(table, index, np.full(len(index), other), T_map_base, T_camera_base, nowhere)
            inside = lens.inside(guess, 3.0)
            place, good = features.follow(here, there, pixel[inside], guess[inside], 1.0)
            good &= lens.inside(place, 3.0)
            parts.append(_Seen(other, index[inside][good], lens.rays(place[good])))
        return parts

    def _observations(self, table: Landmarks, parts: list[_Seen]) -> Observations:
        """The landmarks of a table as they were seen, part by part."""
        index = np.concatenate([np.zeros(0, np.int64), *(part.index for part in parts)])
        camera = np.repeat(np.array([part.camera for part in parts], np.int64), [len(part.index) for part in parts])
        ray = np.concatenate([np.zeros((0, 2)), *(part.rays for part in parts)])
        sigma = (self.parameters.pixel_noise / np.array([lens.focal for lens in self._lenses]))[camera]
        return Observations(table.origin[index], table.bearing[index], table.rho[index], table.variance[index], camera, ray, sigma, index)

    # -- state ---------------------------------------------------------------------------------------------------------------------

    def _accept(self, frame: Frame, attempt: _Attempt, pose: Array, covariance: Array, seconds: float, keep_velocity: bool = False) -> None:
        """The frame's pose and what it teaches of the landmarks."""
        motion = geometry.inverse(self._pose) @ pose
        carry = pnp.adjoint(geometry.inverse(motion))
        self._covariance = carry @ self._covariance @ carry.T + covariance
        if not keep_velocity:
            self._velocity, self._velocity_known = geometry.log(motion) / seconds, True
        self._pose, self._stamp_ns = pose, frame.stamp_ns
        self._places = [self._places[1], pose[:3, 3].copy()]
        sightings, o = attempt.sightings, attempt.sightings.observations
        held = not attempt.problem
        lost = np.zeros(len(self._landmarks), np.bool_)
        if held and sightings.second:
            main = np.arange(sightings.second)
            again, o, good = o.take(np.arange(sightings.second, len(o))), o.take(main), attempt.solution.inlier[main]
            self._drop_suppositions(o.landmark[~good], again, attempt.solution.inlier[sightings.second :])
            self._refine(self._landmarks, o, good, pose, attempt.T_camera_base)
            wrong = np.bincount(o.landmark[~good], minlength=len(self._landmarks)) > 0
            self._landmarks.missed[:] = np.where(wrong, self._landmarks.missed + 1, 0)
            self._landmarks.age[sightings.found] += 1
            lost = self._landmarks.missed >= 2
            if self.parameters.odometry != "trust" or not self._odometry_used:
                self._remember(frame, o.take(good))
        seeing = frame.present & ~sightings.blind
        self._landmarks.pixel[:] = np.where(sightings.found[:, None], sightings.pixel, self._landmarks.pixel)
        lost |= seeing[self._landmarks.camera] & ~sightings.found
        self._landmarks = self._landmarks.keep(~lost)
        self._adopt(frame, seeing)

    def _remember(self, frame: Frame, o: Observations) -> None:
        """Keyframes for the adjustment, and the adjustment when there are enough of them."""
        if not any(len(neighbours) for neighbours in self._neighbours):
            return
        if self._keyframes and np.linalg.norm(self._keyframes[-1].T_map_base[:3, 3] - self._pose[:3, 3]) < KEYFRAME_TRAVEL:
            return
        table = self._landmarks
        T_base_camera = geometry.inverse(self._T_camera_base(frame, self._velocity, self._nominal))
        own = table.camera[o.landmark] == o.camera
        self._keyframes.append(Keyframe(self._pose, T_base_camera, table.identity[o.landmark], o.camera, own, o.ray, o.sigma))
        if len(self._keyframes) < KEYFRAMES:
            return
        start = dict(zip(table.identity.tolist(), table.origin + table.bearing / table.rho[:, None], strict=True))
        self._keyframes = [_only(keyframe, table.identity) for keyframe in self._keyframes]
        adjusted = bundle.adjust(self._keyframes, start, self._turn, self._turn_covariance)
        self._keyframes = self._keyframes[-1:]
        if adjusted is None:
            return
        self._turn, self._turn_covariance = adjusted.turn, adjusted.covariance
        self._T_base_camera = bundle.turned(self._nominal, self._turn)
        self._take(frame, adjusted)

    def _drop_suppositions(self, wrong: NDArray, again: Observations, fits: NDArray[np.bool_]) -> None:
        """Landmarks that are not on the road but would fit at another depth go on with an unknown one."""
        table = self._landmarks
        index = np.intersect1d(wrong[table.assumed[wrong]], again.landmark[fits])
        table.variance[index], table.assumed[index], table.missed[index] = features.UNKNOWN_VARIANCE, False, -1

    def _take(self, frame: Frame, adjusted: Adjusted) -> None:
        """The adjusted pose and landmarks become the current ones."""
        correction = adjusted.T_map_base[-1] @ geometry.inverse(self._pose)
        self._pose = adjusted.T_map_base[-1]
        self._keyframes = [replace(self._keyframes[-1], T_map_base=self._pose)]
        table = self._landmarks
        table.origin[:] = geometry.transform(correction, table.origin)
        table.bearing[:] = table.bearing @ correction[:3, :3].T
        order = np.argsort(table.identity)
        index = order[np.searchsorted(table.identity[order], adjusted.identity)]
        place = (self._pose @ geometry.inverse(self._T_camera_base(frame, self._velocity)))[table.camera[index]]
        ray = adjusted.position - place[:, :3, 3]
        depth = (ray * place[:, :3, 2]).sum(-1)
        ahead = depth > 0.3
        index, ray, depth = index[ahead], ray[ahead], depth[ahead]
        table.variance[index] *= 1.0 / (table.rho[index] * depth) ** 4
        table.origin[index], table.bearing[index], table.rho[index] = place[ahead, :3, 3], ray / depth[:, None], 1.0 / depth

    def _refine(self, table: Landmarks, o: Observations, good: NDArray[np.bool_], pose: Array, T_camera_base: Array) -> None:
        o = o.take(good)
        linear = pnp.linearise(pose[None], pnp.View.of(T_camera_base, o))
        features.refine(table, o.landmark, linear.residual[0] * linear.ahead, linear.along[0] * linear.ahead, o.sigma, 0.002)

    def _hold(self) -> None:
        """The motion is confirmed: seconds without confirmation, and what they added to the covariance, start anew."""
        self._unheld = 0.0
        self._lost_covariance = np.zeros((6, 6))

    def _adopt(self, frame: Frame, seeing: NDArray[np.bool_]) -> None:
        """These cameras' images become the ones that points are followed from."""
        for camera in np.flatnonzero(frame.present & seeing):
            self._grey[camera] = self._current[camera]
            self._seen_ns[camera] = frame.stamps_ns[camera]

    def _forget_stale(self, frame: Frame) -> None:
        stale = (frame.stamps_ns - self._seen_ns > STALE_NS) & np.array([grey is not None for grey in self._grey])
        if stale.any():
            self._landmarks = self._landmarks.keep(~stale[self._landmarks.camera])
            for camera in np.flatnonzero(stale):
                self._grey[camera] = None

    def _said(self, frame: Frame, tracking: Tracking, inliers: int, reason: str) -> PoseEstimate:
        T_map_camera = self._pose @ geometry.inverse(self._T_camera_base(frame, self._velocity))
        return PoseEstimate(self._pose.copy(), T_map_camera, tracking, self._covariance.copy(), self._velocity.copy(), inliers, reason)

    def _T_camera_base(self, frame: Frame, velocity: Array, mounts: Array | None = None) -> Array:
        """[N, 4, 4]: base at the frame's stamp to each camera at its own."""
        late = (frame.stamps_ns - frame.stamp_ns) * 1e-9
        T_base_camera = (self._T_base_camera if mounts is None else mounts).copy()
        for camera in np.flatnonzero(late != 0):
            T_base_camera[camera] = geometry.exp(velocity * late[camera]) @ T_base_camera[camera]
        return geometry.inverse(T_base_camera)

    def _steady_covariance(self, seconds: float, known: bool = False) -> Array:
        """How far constant velocity can be off after `seconds`, and after all those before them that nothing confirmed."""
        seconds = seconds + self._unheld
        if self._velocity_known or known:
            deviation = np.concatenate([0.03 + seconds**2 * np.array([4.0, 1.5, 1.5]), 0.004 + seconds**2 * np.array([0.5, 0.5, 1.0])])
        else:
            deviation = np.concatenate([0.03 + seconds * np.array([25.0, 3.0, 2.0]), 0.01 + seconds * np.array([0.2, 0.2, 0.7])])
        return np.diag(np.minimum(deviation, 100.0) ** 2)

    def _odometry_covariance(self, motion: Array) -> Array:
        twist = geometry.log(motion)
        share = self.parameters.odometry_noise
        travel, turn = share * np.linalg.norm(twist[:3]) + 0.005, share * np.linalg.norm(twist[3:]) + 0.001
        return np.diag(np.repeat([travel, turn], 3) ** 2)


def _only(keyframe: Keyframe, identities: NDArray[np.int64]) -> Keyframe:
    """The keyframe's sightings of these landmarks."""
    keep = np.isin(keyframe.identity, identities)
    seen = (keyframe.identity[keep], keyframe.camera[keep], keyframe.own[keep], keyframe.ray[keep], keyframe.sigma[keep])
    return Keyframe(keyframe.T_map_base, keyframe.T_base_camera, *seen)


def _inverse_depth(geometry_: Geometry, camera: NDArray[np.int64], working: Array) -> tuple[Array, Array]:
    """Inverse depth and its variance [M] at working pixels [M, 2] of cameras [M]; NaN where there is none or where the depth breaks off."""
    depths = features.sample(geometry_.depth, camera, working + AROUND[:, None]).astype(np.float64)
    sigma = features.sample(geometry_.sigma, camera, working).astype(np.float64)
    with np.errstate(invalid="ignore"):
        depth = np.where(depths[0] > 0.1, depths[0], np.nan)
        spread = np.abs(1.0 / depths[1:] - 1.0 / depth)
        rho = np.where(np.where(np.isfinite(spread), spread, 0.0).max(axis=0) < 0.15 / depth + 0.01, 1.0 / depth, np.nan)
        variance = np.maximum(sigma / depth**2, 0.01 * rho) ** 2
    return rho, variance
