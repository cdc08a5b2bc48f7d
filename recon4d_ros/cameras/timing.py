"""Whether cameras that look the same way were exposed at the instants that their stamps say, told
from the images themselves.

Of a point that two cameras see at one instant the two rays meet: its ray in the second camera lies
in the epipolar plane of the first's. If the second camera was exposed later by D, the ray has moved
on: it is off that plane by D times the speed at which it leaves it. That speed is known from the
second camera's own last image, whatever moves, car or point. Many points together say D, to
milliseconds while the car drives. What a wrong calibration adds (a rotation between the cameras, a
focal length) is linear in the place in the image, and is estimated with it. So an offset is found
that no time of reception can tell: latency differs by as much. (The speed of features as the
measure of a camera's clock: Qin and Shen, IROS 2018, there against an inertial sensor.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import reduction, turned_pixels
from recon4d_ros.cameras.distortion import to_rays
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Camera, Frame, Rig

Array = NDArray[np.float64]
Grey = NDArray[np.uint8]
Points = NDArray[np.float32]


@dataclass(frozen=True)
class TimingThresholds:
    """When images are looked at, and what makes a claim sure."""

    same_way: float = float(np.cos(np.radians(40.0)))  # between optical axes
    apart: float = 0.03  # m between cameras: nearer ones have no epipolar plane to speak of
    wide: int = 640  # pixels: larger images are made smaller
    features: int = 400
    every: int = 3  # frame sets between looks until it is known
    later: int = 100  # and afterwards, since clocks drift; and where `tries` looks said nothing
    tries: int = 100
    reach: float = 0.3  # s: the largest offset looked for
    longest: float = 0.5  # s between two images of a camera that a speed is taken from
    inlier: float = 1.5  # pixels of the image made smaller
    moved: float = 3.0  # pixels by which a match may be put right
    least: int = 30  # points that agree
    share: float = 0.5  # of those matched
    noise: float = 0.3  # pixels: of a point
    calibrated: float = 1e-3  # to which focal length and roll of one against the other are known
    motion: float = 1.0  # pixels: deviation of what the points moved off their lines
    sure: float = 0.005  # s: deviation of one look's answer
    looks: int = 5  # that have to say the same
    limit: float = 0.025  # s: two to three deviations of one look's answer on real images
    alike: float = 0.005  # s by which they may differ, or a fifth of the offset


THRESHOLDS = TimingThresholds()


@dataclass
class _Pair:
    """Two cameras that look the same way, by index. said: offset that was told last, s."""

    first: int
    second: int
    E: Array  # essential matrix: x_second^T E x_first = 0
    offsets: deque[float] = field(default_factory=lambda: deque(maxlen=THRESHOLDS.looks))
    known: bool = False
    said: float = 0.0


@dataclass(frozen=True)
class _Look:
    stamp_ns: int
    image: NDArray[np.uint8]


class TimingCheck:
    """given: seconds by camera that are already taken off its stamps (`sync.offset`)."""

    def __init__(
        self,
        rig: Rig,
        input_size: tuple[int, int],
        given: Mapping[str, float | None],
        thresholds: TimingThresholds = THRESHOLDS,
    ) -> None:
        self._t, self._rig, self._given = thresholds, rig, given
        self._reduce = [reduction(camera, input_size) for camera in rig.cameras]
        self._pairs = _pairs(rig, thresholds)
        self._count = self._looks = 0
        self._last: dict[int, _Look] = {}
        if self._pairs:
            self._orb = cv2.ORB.create(nfeatures=thresholds.features, fastThreshold=10)
            self._matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)

    def look(self, frame: Frame) -> list[str]:
        """A frame; sentences about clocks that differ, each once."""
        t, self._count = self._t, self._count + 1
        seldom = self._looks >= t.tries or all(pair.known for pair in self._pairs)
        period = t.later if seldom else t.every
        step = self._count % period
        said = []
        if step == 0:
            self._looks += 1
            for pair in self._pairs:
                if (offset := self._offset(pair, frame)) is not None:
                    pair.offsets.append(offset)
                    said += self._say(pair)
        if step == period - 1:  # the image before the next look
            self._last = {}
            for index in {pair.second for pair in self._pairs}:
                if frame.present[index]:
                    self._last[index] = self._small(frame, index)
        return said

    def _say(self, pair: _Pair) -> list[str]:
        """What the last looks say together."""
        t = self._t
        if len(pair.offsets) < t.looks:
            return []
        middle = float(np.median(pair.offsets))
        spread = float(np.median(np.abs(np.array(pair.offsets) - middle)))
        if spread > max(t.alike, abs(middle) / 5):
            return []
        pair.known = True
        if abs(middle - pair.said) < t.limit:
            return []
        pair.said = middle
        if abs(middle) < t.limit:
            return []
        first, second = self._rig.names[pair.first], self._rig.names[pair.second]
        given = self._given.get(second, 0.0)
        remedy = (
            f"sync.offset.{second}={middle + given:.3f} takes it off"
            if given is not None
            else f"sync.offset.{second} in seconds takes it off, auto did not find it"
        )
        return [
            f"clocks of {first} and {second} differ by {abs(middle):.3f} s, as their images show:"
            f" {remedy}"
        ]

    def _small(self, frame: Frame, index: int) -> _Look:
        image = frame.images[index]
        height, width = self._size(index)
        image = image[:height, :width]
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0]
        scale = self._scale(index)
        if scale > 1:
            size = round(width / scale), round(height / scale)
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return _Look(int(frame.stamps_ns[index]), np.ascontiguousarray(grey, np.uint8))

    def _size(self, index: int) -> tuple[int, int]:
        """(height, width) of a camera's part of the input."""
        camera, reduce = self._rig.cameras[index], self._reduce[index]
        turn, _ = turned_pixels(camera, reduce)
        size = np.abs(turn @ [-(-camera.width // reduce), -(-camera.height // reduce)])
        return round(size[1]), round(size[0])

    def _scale(self, index: int) -> float:
        return max(self._size(index)[1] / self._t.wide, 1.0)

    def _rays(self, index: int, points: NDArray[np.float32]) -> Array:
        """[K, 3] in the camera's own frame of pixels [K, 2] of its small image."""
        camera, reduce, scale = self._rig.cameras[index], self._reduce[index], self._scale(index)
        pixels = (points.astype(np.float64) + 0.5) * scale - 0.5
        turn, shift = turned_pixels(camera, reduce)
        pixels = ((pixels - shift) @ turn + 0.5) * reduce - 0.5
        rays = to_rays(camera, pixels)
        return np.concatenate([rays, np.ones((len(rays), 1))], axis=1)

    def _offset(self, pair: _Pair, frame: Frame) -> float | None:
        """Seconds by which the second camera's clock is ahead of the first's; None where this
        frame does not say."""
        t, before = self._t, self._last.get(pair.second)
        if before is None or not (frame.present[pair.first] and frame.present[pair.second]):
            return None
        first, second = (self._small(frame, index) for index in (pair.first, pair.second))
        elapsed = (second.stamp_ns - before.stamp_ns) * 1e-9
        if not 0 < elapsed <= t.longest:
            return None
        points = self._matched(first.image, second.image)
        if points is None:
            return None
        here, there = points
        finer, kept = _followed(first.image, second.image, here, there)
        kept &= np.linalg.norm(finer - there, axis=1) < t.moved
        here, there = here[kept], finer[kept]
        if len(here) < t.least:
            return None
        past, found = _followed(second.image, before.image, there)
        back, again = _followed(before.image, second.image, past)
        sound = found & again & (np.linalg.norm(back - there, axis=1) < 0.5)
        one = self._rays(pair.first, here[sound])
        now, then = (self._rays(pair.second, points[sound]) for points in (there, past))
        camera = self._rig.cameras[pair.second]
        pixel = self._reduce[pair.second] * self._scale(pair.second) / float(camera.k[0, 0])
        later = exposed_later(one, now, now - then, elapsed, pair.E, pixel, t)
        if later is None:
            return None
        return (second.stamp_ns - first.stamp_ns) * 1e-9 - later

    def _matched(
        self, first: NDArray[np.uint8], second: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        (one, of_one), (other, of_other) = (
            self._orb.detectAndCompute(image, None) for image in (first, second)
        )
        if of_one is None or of_other is None:
            return None
        matches = [m for m in self._matcher.match(of_one, of_other) if m.distance < 48]
        if len(matches) < self._t.least:
            return None
        here = np.array([one[m.queryIdx].pt for m in matches], np.float32)
        there = np.array([other[m.trainIdx].pt for m in matches], np.float32)
        return here, there


def _followed(
    one: Grey, other: Grey, points: Points, start: Points | None = None
) -> tuple[Points, NDArray[np.bool_]]:
    """Points [K, 2] of one image in another, and which were found. start: about where."""
    out, found, _ = cv2.calcOpticalFlowPyrLK(
        one,
        other,
        points,
        points.copy() if start is None else start.copy(),
        winSize=(15, 15),
        maxLevel=4 if start is None else 0,
        flags=0 if start is None else cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.asarray(out, np.float32), np.asarray(found).ravel() > 0


def exposed_later(
    first: Array,
    second: Array,
    motion: Array,
    elapsed: float,
    E: Array,
    pixel: float,
    t: TimingThresholds = THRESHOLDS,
) -> float | None:
    """Seconds by which the second camera was exposed after the first; None where the points do not
    say.

    first, second: rays [K, 3], third component 1, of the same points. motion: [K, 3], by how much
    the second's have moved since its last image, `elapsed` seconds before. E: essential matrix.
    pixel: one in units of the rays.
    """
    lines = first @ E.T  # epipolar lines in the second image
    length = np.linalg.norm(lines[:, :2], axis=1)
    usable = np.isfinite(lines).all(1) & np.isfinite(second).all(1) & np.isfinite(motion).all(1)
    usable &= length > 1e-9
    if usable.sum() < t.least:
        return None
    lines = lines[usable] / length[usable, None]
    off = (lines * second[usable]).sum(1) / pixel
    away = (lines * motion[usable]).sum(1) / pixel  # pixels away from the line since then
    tries = np.linspace(-t.reach, t.reach, 121) / elapsed
    left = off - tries[:, None] * away
    left -= np.median(left, axis=1, keepdims=True)
    inlier = np.abs(left[int(np.argmax((np.abs(left) < t.inlier).sum(1)))]) < t.inlier
    table = np.column_stack([away, second[usable, :2], np.ones(len(away))])
    # what is known of the calibration before: its part of `off` that is linear in the place
    prior = np.diag([0.0, 1.0, 1.0, 0.0]) * (t.noise * pixel / t.calibrated) ** 2
    for _ in range(3):
        used = inlier
        if used.sum() < max(t.least, t.share * len(off)):
            return None
        squares = table[used].T @ table[used] + prior
        if np.linalg.cond(squares) > 1e12:
            return None
        solved = np.linalg.solve(squares, table[used].T @ off[used])
        left_over = off - table @ solved
        inlier = np.abs(left_over) < t.inlier
    noise = max(float(np.square(left_over[used]).mean()), t.noise**2)
    later = float(solved[0]) * elapsed
    sure = noise * float(np.linalg.inv(squares)[0, 0]) * elapsed**2 < t.sure**2
    clear = away[used].std() > t.motion  # motions have noise, too, which makes D small
    return later if clear and sure and abs(later) < t.reach else None


def _pairs(rig: Rig, t: TimingThresholds) -> list[_Pair]:
    """Each camera with the one before it that looks most its way."""
    best: dict[int, tuple[float, int]] = {}
    for a, b in combinations(range(len(rig.cameras)), 2):
        one, other = rig.cameras[a].T_base_camera, rig.cameras[b].T_base_camera
        along = float(one[:3, 2] @ other[:3, 2])
        if along > t.same_way and np.linalg.norm(one[:3, 3] - other[:3, 3]) > t.apart:
            best[b] = max(best.get(b, (-1.0, a)), (along, a))
    return [_Pair(a, b, _essential(rig.cameras[a], rig.cameras[b])) for b, (_, a) in best.items()]


def _essential(one: Camera, other: Camera) -> Array:
    """E [3, 3]: x_other^T E x_one = 0 for the rays of a point, each in its camera's frame."""
    T_other_one = inverse(other.T_base_camera) @ one.T_base_camera
    x, y, z = T_other_one[:3, 3] / np.linalg.norm(T_other_one[:3, 3])
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ T_other_one[:3, :3]
