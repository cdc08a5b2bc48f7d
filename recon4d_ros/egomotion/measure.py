"""One frame's motion measured: points followed from a prediction, the joint solver, the road beside
it, and whether to believe the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import geometry
from recon4d_ros.egomotion import klt, pnp
from recon4d_ros.egomotion.calibration import CALIBRATION
from recon4d_ros.egomotion.camera_rig import LOWEST, Cameras, Images, at_their_stamps
from recon4d_ros.egomotion.klt import Sightings
from recon4d_ros.egomotion.landmarks import Landmarks
from recon4d_ros.egomotion.parameters import EgomotionParameters
from recon4d_ros.egomotion.pnp import Prior, Solution
from recon4d_ros.egomotion.road import Road, RoadMotion, RoadView
from recon4d_ros.types import Frame

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeasureThresholds:
    """Chosen on simulated drives (seeds below 1000; `common` on seed 3001), see
    docs/egomotion.md."""

    far: float = 8.0  # pixels a prediction may be off without another look
    few: float = 0.6  # share of the points found below which a second look is worth it
    patches: float = 2.0  # as pnp.TOGETHER, of the road's patches
    turn_known: float = 0.0015  # rad that the points may be off in rotation, for the road
    turn_unknown: float = 0.01  # and where there are no points
    share: float = 0.25  # of the sightings that have to agree
    sound: float = 0.5  # of the road's patches, from which they count as sightings
    doubt: float = 0.05  # m that the motion may be unsure by, and as a share of it:
    doubt_share: float = 0.1
    turn_doubt: float = 0.02  # rad: 20 pixels
    common: float = 0.1  # pixels that all points of an image may be off by together, as a rotation
    fits: float = 0.8  # mean correlation of a motion that need not be looked for further
    contradiction: float = 9.0  # squared deviation of road and points, one degree of freedom
    road_better: float = 0.06  # mean correlation by which one motion fits the road better
    # m, and share of it, that road and points may differ by
    differ: float = 0.03
    differ_share: float = 0.04
    slide: float = 0.08  # sideways, as a share of the speed: slip of 5 degrees
    slide_speed: float = 0.4  # m/s of it that no noise makes
    axle: float = 2.0  # m that base_link may be from the rear axle
    hardest: float = 12.0  # m/s^2 that no car brakes by
    jolt: float = 0.4  # m/s that two frames' noise makes
    creep: float = 1.0  # m/s: what is faster does not stand
    still_road: float = 0.025  # mean correlation that standing may cost
    still_deviation: float = 22.5  # squared deviation of standing: six degrees of freedom, 99.9 %
    still_pixels: float = 0.6  # pixels a point may move while the car stands
    still_share: float = 0.5  # of the points that have to stay
    way: float = 0.1  # m: by a shorter one the road says nothing of shares


THRESHOLDS = MeasureThresholds()
QUIETEST = 0.25  # of a sighting's variance: no residuals are believed to be smaller
TYPICAL = 1.39  # median of a squared Mahalanobis distance of two degrees of freedom


@dataclass(frozen=True)
class Instant:
    """All that one frame's pose is found from; nothing of it changes while it is looked for.

    T_base_camera: [N, 4, 4] as adjusted. pose: T_map_base of the last frame, `seconds` ago. moving:
    whether there is a velocity. road: what the images show of it. turn_doubt: of lengths that pairs
    of cameras measure, see `Mounts.turn_doubt`. lane: whether any camera looks at the lane. turns
    [N, 3, 3]: how cameras may be turned against the rig, see `MountCheck.doubt`. road_doubt: what
    that and the turn of the rig make of lengths, as a share, while this road says nothing of it.
    """

    frame: Frame
    seconds: float
    cameras: Cameras
    T_base_camera: Array
    images: Images
    landmarks: Landmarks
    pose: Array
    moving: bool
    road: list[RoadView]
    turn_doubt: float
    lane: bool
    turns: Array
    road_doubt: float
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
            velocity,
            noise,
        )


@dataclass(frozen=True)
class Attempt:
    """A pose and what it rests on.

    solution: of the points alone. pose [4, 4], covariance [6, 6] in base_link: with all else.
    problem: why not to believe it, if it is not. road: what the road says of it, and by_road: its
    share in how long the motion is. doubt: what makes it unsure.
    """

    sightings: Sightings
    prior: Prior
    solution: Solution
    T_camera_base: Array
    covariance: Array
    problem: str
    pose: Array
    road: RoadMotion | None = None
    doubt: str = ""
    by_road: float = 0.0

    def pair_error(self, now: Instant) -> float:
        """Standard deviation of its points' lengths by the calibration of a pair, as a share of
        them; infinite where all cameras look alone."""
        o, agree = self.sightings.observations, self.solution.inlier
        near = o.rho[agree] if agree.any() else np.full(1, 1.0 / CALIBRATION.typical)
        distance = min(1.0 / float(np.median(near)), CALIBRATION.farthest)
        return float(np.hypot(CALIBRATION.lens, now.turn_doubt * distance))

    def scale_error(self, now: Instant) -> float:
        """The same of the motion, of whose length the road says the share `by_road`."""
        by_road = float(np.hypot(CALIBRATION.height, self.turn_error(now)))
        if not now.lane:  # what is taken for the road is the ground beside it
            up = float(np.median(now.cameras.T_base_camera[:, 2, 3]))
            by_road = float(np.hypot(by_road, CALIBRATION.beside / max(up, LOWEST)))
        if not np.isfinite(now.turn_doubt):
            return by_road
        return float(np.hypot((1.0 - self.by_road) * self.pair_error(now), self.by_road * by_road))

    def turn_error(self, now: Instant) -> float:
        """The same of lengths by the road, by how the cameras are turned."""
        if self.road is None or abs(self.road.T[0, 3]) < THRESHOLDS.way:
            return now.road_doubt
        return float(self.road.turned / abs(self.road.T[0, 3]))


def attempt(now: Instant, prior: Prior) -> Attempt:
    """Sightings and solution from one prediction; if that was far off and many points were not
    found, again from the solution."""
    t = THRESHOLDS
    seen = now.sight(prior, now.velocity(prior.T_map_base))
    first = solved(now, seen, prior)
    asked = now.frame.present[now.landmarks.camera]
    few = seen.found[asked].sum() < t.few * asked.sum()
    if first.solution.inliers < 8 or not (few or not now.moving):
        return first
    nearer = Prior(first.solution.T_map_base, prior.covariance)
    place, twist = nearer.T_map_base, now.velocity(nearer.T_map_base)
    if klt.shift(now.cameras, now.landmarks, seen, place, first.T_camera_base, twist) <= t.far:
        return first
    again = now.sight(nearer, twist)
    return solved(now, again, nearer) if again.found.sum() > seen.found.sum() else first


def solved(
    now: Instant,
    seen: Sightings,
    prior: Prior,
    start: Array | None = None,
    road: tuple[Array, RoadMotion] | None = None,
) -> Attempt:
    """The joint solution. start: a pose [4, 4] already near, to be polished only. road: information
    [6, 6] in the prior that was measured, not predicted, and what measured it."""
    frame, velocity = now.frame, now.velocity(prior.T_map_base)
    solution = None
    firm = Prior(prior.T_map_base, prior.covariance / pnp.TOGETHER)
    for _ in range(2):  # skew in time and late rows need the velocity, which needs the pose
        T_camera_base = now.T_camera_base(velocity)
        seen = replace(seen, observations=seen.observations.moving(velocity))
        solution = pnp.solve(
            T_camera_base, seen.observations, firm, seed=frame.stamp_ns % 2**32, start=start
        )
        found = now.velocity(solution.T_map_base)
        skew = np.abs(frame.stamps_ns - frame.stamp_ns).max() * 1e-9 + 0.5 * now.cameras.read_out
        if np.abs(found - velocity).max() * skew < 1e-3:
            break
        velocity = found
    assert solution is not None
    excess = QUIETEST
    if solution.inliers:
        excess = max(excess, float(np.median(solution.distance[solution.inlier])) / TYPICAL)
    share = solution.inliers / max(len(seen.observations), 1)
    known = solution.information / (excess * pnp.together(share))
    measured = known if road is None else known + road[0]
    alone = np.asarray(np.linalg.inv(measured + np.eye(6) * 1e-4), np.float64)
    covariance = np.asarray(np.linalg.inv(known + prior.strength), np.float64)
    covariance[3:, 3:] += np.eye(3) * (THRESHOLDS.common / now.cameras.focal) ** 2
    wrong = problem(now, seen, solution, alone, None if road is None else road[1])
    pose = solution.T_map_base
    return Attempt(seen, prior, solution, T_camera_base, covariance, wrong, pose)


def problem(
    now: Instant,
    seen: Sightings,
    solution: Solution,
    covariance: Array,
    road: RoadMotion | None = None,
) -> str:
    """Why this solution is not to be believed; empty if it is. road: that is part of it; where most
    of its patches agree they are sightings as well as points are."""
    present, needed, t = now.frame.present, now.parameters.min_inliers, THRESHOLDS
    if not present.any():
        return "no camera has sent an image"
    if seen.blind[present].all() and len(now.landmarks):
        return "the images show none of the points followed"
    agree, of = solution.inliers, len(seen.observations)
    if road is not None and road.agreeing > t.sound * road.textured:
        agree, of = agree + road.agreeing, of + road.textured
    if agree < needed:
        return f"{agree} sightings agree, {needed} are needed"
    share = agree / max(of, 1)
    if share < t.share:
        return (
            f"no one motion explains what is seen: {100 * share:.0f} % of the sightings agree,"
            f" {100 * t.share:.0f} % are needed"
        )
    doubt = float(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
    moved = float(np.linalg.norm(solution.T_map_base[:3, 3] - now.pose[:3, 3]))
    if doubt > t.doubt + t.doubt_share * moved:
        if _stay(now, seen) > t.still_share:
            return "standing or following: no parallax"
        return f"the motion is known to {doubt:.2f} m only"
    turn = float(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1]))
    if turn > t.turn_doubt:
        return f"the rotation is known to {np.degrees(turn):.1f} degrees only"
    return ""


@dataclass(frozen=True)
class Metres:
    """How far the car went along its own axis by the road, and the variance of that; `motion`: all
    that the road said."""

    travel: float
    variance: float
    motion: RoadMotion


def metres(now: Instant, tried: Attempt, prior: Prior, road: Road) -> Metres | None:
    """What the road says of the motion, looked for from what the points say, from the prediction,
    and, where both fit it badly, along the car's axis."""
    t = THRESHOLDS
    views = now.road
    if sum(len(view.use) for view in views) < road.thresholds.fewest:
        return None
    back = geometry.inverse(now.pose)
    expected, found = back @ prior.T_map_base, back @ tried.solution.T_map_base
    turned = expected.copy()
    turned[:3, :3] = found[:3, :3]
    starts = np.stack([found, turned, expected])
    lean = road.lean
    if not tried.problem:  # where the points go says how the road lies
        lean = lean.by_way(found, tried.covariance, now.seconds)
    scores, _ = road.score(views, starts, lean)
    best = int(np.argmax(scores - np.array([0.0, t.road_better, t.road_better])))
    start = starts[best]
    free = max(0.05, 2.0 * float(np.sqrt(prior.covariance[0, 0])))
    if scores[best] < t.fits:
        start, _ = road.along(views, start, free, lean)
    # the points know the rotation, if there are points
    turn = t.turn_known if not tried.problem else t.turn_unknown
    around = Prior(start, np.diag([free, 0.03, 0.03, turn, turn, turn]) ** 2)
    said = road.measure(views, around, start, lean, now.turns)
    if said is None or said.score < road.thresholds.score:
        return None
    spread = np.linalg.inv(said.agreed / t.patches + around.strength)[0, 0]
    return Metres(float(said.T[0, 3]), float(spread), said)


def joined(now: Instant, tried: Attempt, prior: Prior, said: Metres) -> Attempt:
    """The attempt with the road's metres beside its points: across and in rotation the points are
    better. Each is weighed by its noise and by what its calibration may be off by; of cameras that
    look alone that is the same for both, the height above the road. Where the two contradict each
    other the points are asked again, from the road's motion: the largest group of them may be a
    vehicle. Without points the road says all."""
    t = THRESHOLDS
    if not tried.problem:
        went = float((geometry.inverse(now.pose) @ tried.solution.T_map_base)[0, 3])
        off = said.travel - went
        road = said.variance
        points = tried.covariance.copy()
        if np.isfinite(now.turn_doubt):
            points[0, 0] += (tried.pair_error(now) * went) ** 2
            road += (CALIBRATION.height * went) ** 2 + said.motion.turned**2
        both = float(points[0, 0]) + road
        if off**2 < t.contradiction * both:
            gain = points[:, 0] / both
            kept = np.eye(6)
            kept[:, 0] -= gain
            covariance = kept @ tried.covariance @ kept.T + said.variance * np.outer(gain, gain)
            pose = tried.solution.T_map_base @ geometry.exp(gain * off)
            return replace(
                tried, pose=pose, covariance=covariance, road=said.motion, by_road=float(gain[0])
            )
    if tried.problem:
        information = said.motion.agreed / t.patches
    else:
        information = np.zeros((6, 6))
        information[0, 0] = 1.0 / said.variance
    fused = pnp.fused(prior, now.pose @ said.motion.T, information, np.zeros(6))
    better = solved(now, tried.sightings, fused, road=(information, said.motion))
    by_road = min(1.0, float(better.covariance[0, 0] * information[0, 0]))
    return replace(better, prior=prior, road=said.motion, by_road=by_road)


@dataclass(frozen=True)
class Speed:
    """Along the car's axis, with its standard deviation, m/s, at a stamp."""

    speed: float
    deviation: float
    stamp_ns: int


def impossible(now: Instant, tried: Attempt, before: Speed) -> str:
    """Why the motion found cannot be the car's after a speed that was believed, if it cannot and
    the road does not confirm it."""
    t = THRESHOLDS
    if tried.road is not None and tried.road.agreeing > t.sound * tried.road.textured:
        return ""
    elapsed = (now.frame.stamp_ns - before.stamp_ns) * 1e-9
    deviation = float(np.sqrt(tried.covariance[0, 0])) / now.seconds
    change = abs(float(now.velocity(tried.pose)[0]) - before.speed)
    allowed = t.hardest * elapsed + t.jolt + 3.0 * float(np.hypot(deviation, before.deviation))
    if change > allowed:
        return f"the speed found changes by {change:.1f} m/s in {elapsed:.1f} s: it is a vehicle's"
    return ""


def doubt(now: Instant, tried: Attempt) -> str:
    """Why a motion that fits may be that of something else; empty if no reason is known.

    A car that slides sideways has followed a vehicle; so has one that leaves the road behind it.
    """
    t = THRESHOLDS
    twist = now.velocity(tried.pose)
    deviation = np.sqrt(np.diag(tried.covariance)) / now.seconds
    slip = abs(float(twist[1])) - t.slide * abs(float(twist[0])) - t.axle * abs(float(twist[5]))
    if slip > t.slide_speed + 3.0 * deviation[1]:
        return f"the motion found slides sideways by {abs(twist[1]):.1f} m/s: it may be a vehicle's"
    if tried.road is not None:
        went = float((geometry.inverse(now.pose) @ tried.pose)[0, 3])
        apart = abs(went - float(tried.road.T[0, 3]))
        allowed = (
            t.differ + t.differ_share * abs(went) + 3.0 * float(np.sqrt(tried.covariance[0, 0]))
        )
        if apart > allowed:
            return f"road and points disagree by {apart:.2f} m"
    return ""


def rescaled(now: Instant, tried: Attempt, table: Landmarks) -> Attempt:
    """The attempt with the landmarks where the table has them now."""
    o = tried.sightings.observations
    index = o.landmark
    moved = replace(
        o,
        origin=table.origin[index],
        bearing=table.bearing[index],
        rho=table.rho[index],
        variance=np.where(
            np.arange(len(o)) < tried.sightings.second, table.variance[index], o.variance
        ),
    )
    return replace(tried, sightings=replace(tried.sightings, observations=moved))


def _stay(now: Instant, seen: Sightings) -> float:
    """Share of the points found that are where they were in the image."""
    moved = np.linalg.norm(seen.pixel[seen.found] - now.landmarks.pixel[seen.found], axis=1)
    return float((moved < THRESHOLDS.still_pixels).mean()) if len(moved) >= 10 else 0.0


def stands(now: Instant, tried: Attempt, road: Road) -> bool:
    """Whether the car has not moved since the images that its points are followed from: the motion
    found is no more than its noise, the road lies as it lay, and most points stay where they were.
    """
    t = THRESHOLDS
    motion = geometry.inverse(now.pose) @ tried.pose
    if np.linalg.norm(motion[:3, 3]) > t.creep * now.seconds:
        return False
    views = now.road
    stay = _stay(now, tried.sightings)
    if sum(len(view.use) for view in views) >= road.thresholds.fewest:
        (here, there), _ = road.score(views, np.stack([np.eye(4), motion]))
        if here < road.thresholds.score or here < there - t.still_road:
            return False
        return here > 0.8 or stay > t.still_share
    twist = geometry.log(motion)
    deviation = float(twist @ np.linalg.solve(tried.covariance, twist))
    return stay > t.still_share and deviation < t.still_deviation
