"""How badly a static world explains what was measured, pixel by pixel, in its own standard
deviations.

A pixel of the current image at normalised coordinates (x, y) with inverse depth q lies, if it does
not move, in the previous camera at a + q t up to scale, with a = R (x, y, 1) and (R, t) the motion
of the camera. Everything measured is linear in q:

    flow, ending at p         (a_xy - p a_z) + q (t_xy - p t_z) = 0        two equations
    depth now, q_d            q - q_d = 0                                  where it does not come from time itself
    depth before at p, q_p    q (1 - q_p t_z) - q_p a_z = 0                scene flow (Vedula et al., ICCV 1999)
    the road, q_g             q >= q_g                                     nothing static is seen below the ground

so the best static explanation is a weighted mean, and what is left, in units of the measurements'
covariance, is chi-square distributed if nothing moves. With two cameras that is the disagreement of
scene flow, along the epipolar line too; with one it is the flow across the epipolar line, and the
points that would have to be below the road or behind infinity.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import INDEPENDENT, Flow, FlowMeter, ends
from recon4d_ros.dynamics.views import View
from recon4d_ros.geometry import inverse

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Depth:
    """Depth on the motion grid as inverse depth. q: [h, w] 1/m, NaN = none. sigma: [h, w] 1/m."""

    q: Plane
    sigma: Plane


@dataclass(frozen=True)
class Road:
    """The road seen by one camera. q: [h, w] 1/m, inverse depth of the road along each ray, 0 at
    and above the horizon. sigma: [h, w]."""

    q: Plane
    sigma: Plane


@dataclass(frozen=True)
class Residual:
    """chi2: [h, w] what a static world leaves unexplained (0 where nothing can be said). q: [h, w]
    1/m, inverse depth of the static explanation from flow and depth together, the road left aside.
    sigma: [h, w] of q. inside: [h, w] bool, the static point and the flow both end in the previous
    image.
    """

    chi2: Plane
    q: Plane
    sigma: Plane
    inside: NDArray[np.bool_]


def make_depth(depth: Plane, sigma: Plane) -> Depth:
    """Inverse depth and its standard deviation from metres (sigma_q = sigma / depth^2); at least 1
    % is always in doubt."""
    with np.errstate(divide="ignore"):
        q = (1 / depth).astype(np.float32)
    return Depth(q, np.maximum(sigma.astype(np.float32) * q * q, np.float32(0.01) * q))


def see_road(
    view: View, plane: NDArray[np.float64] | None, height_sigma: float, slope_sigma: float
) -> Road:
    """The road plane (n, d) in base_link, n . p + d = 0 with n up, along each ray of a camera.

    None: no road is known. A ray with direction r from height H over the plane meets it at inverse
    depth -(n . r) / H.
    """
    if plane is None:
        return Road(np.zeros_like(view.x), np.full_like(view.x, np.inf))
    normal = view.T_base_camera[:3, :3].T @ plane[:3]
    height = float(plane[:3] @ view.T_base_camera[:3, 3] + plane[3])
    if height < 0.1:
        return Road(np.zeros_like(view.x), np.full_like(view.x, np.inf))
    down = -(
        np.float32(normal[0]) * view.x + np.float32(normal[1]) * view.y + np.float32(normal[2])
    )
    q = np.maximum(down / np.float32(height), 0)
    return Road(
        q, np.hypot(q * np.float32(height_sigma / height), np.float32(slope_sigma / height))
    )


def static_flow(
    view: View, q: Plane, T_previous_current: NDArray[np.float64]
) -> tuple[Plane, Plane]:
    """Flow [h, w] in grid pixels of points at inverse depth q that do not move. NaN q is taken as
    infinitely far."""
    a, t = _moved_rays(view, T_previous_current)
    if not np.isfinite(q).all():
        q = np.nan_to_num(q, nan=0.0)
    per_z = 1 / np.maximum(a[2] + q * t[2], np.float32(1e-3))
    return (
        ((a[0] + q * t[0]) * per_z - view.x) * np.float32(view.k[0, 0]),
        ((a[1] + q * t[1]) * per_z - view.y) * np.float32(view.k[1, 1]),
    )


def static_residual(
    view: View,
    flow: Flow,
    T_previous_current: NDArray[np.float64],
    pose_sigma: tuple[float, float],
    road: Road,
    depth: Depth | None = None,
    previous_depth: Depth | None = None,
) -> Residual:
    """The residual of the static explanation. pose_sigma: metres, radians of the motion between the
    two images.

    depth, previous_depth: where they were measured without the help of time; None or NaN where not.
    """
    fx, fy = np.float32(view.k[0, 0]), np.float32(view.k[1, 1])
    (ax, ay, az), (tx, ty, tz) = _moved_rays(view, T_previous_current)
    px, py = view.x + flow.u / fx, view.y + flow.v / fy
    q_guess = road.q if depth is None else np.where(np.isfinite(depth.q), depth.q, road.q)
    scale = np.maximum(az + q_guess * tz, np.float32(0.05))

    # Information of the flow's end in normalised coordinates, with the pose's share in it;
    # residuals below carry the factor `scale`.
    pose_variance = (fx * np.float32(pose_sigma[1])) ** 2 + (
        fx * np.float32(pose_sigma[0]) * q_guess
    ) ** 2
    wuu, wuv, wvv = _inflate(flow.wuu, flow.wuv, flow.wvv, pose_variance)
    wuu, wuv, wvv = wuu * (fx / scale) ** 2, wuv * (fx * fy / scale**2), wvv * (fy / scale) ** 2

    bx, by = ax - px * az, ay - py * az
    cx, cy = tx - px * tz, ty - py * tz
    # Minimise sum w (b + q c)^2 over q: information, mean, and the rest by completing the square.
    wcx, wcy = wuu * cx + wuv * cy, wuv * cx + wvv * cy
    information = wcx * cx + wcy * cy
    moment = -(wcx * bx + wcy * by)
    rest = wuu * bx * bx + 2 * wuv * bx * by + wvv * by * by
    if depth is not None:
        weight = np.nan_to_num(1 / depth.sigma**2)
        measured = np.nan_to_num(depth.q)
        information += weight
        moment += weight * measured
        rest += weight * measured * measured
    if previous_depth is not None:
        xs, ys = ends(flow.u, flow.v)
        before = cv2.remap(
            previous_depth.q,
            xs,
            ys,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=np.nan,
        )
        sigma = cv2.remap(
            previous_depth.sigma,
            xs,
            ys,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=np.nan,
        )
        # The depth before may be off by its own error and by the flow's, which lands beside the
        # point where depth varies.
        weight = np.nan_to_num(1 / (sigma * scale) ** 2)
        before = np.nan_to_num(before)
        b3, c3 = -before * az, 1 - before * tz
        information += weight * c3 * c3
        moment -= weight * b3 * c3
        rest += weight * b3 * b3
    information = np.maximum(information, np.float32(1e-9))
    best = moment / information
    chi2 = np.maximum(rest - moment * best, 0)

    below = np.maximum(road.q - best, 0)
    chi2 += below * below / (1 / information + road.sigma**2)

    q = np.maximum(best, road.q)
    z = np.maximum(az + q * tz, np.float32(1e-3))
    us, vs = (ax + q * tx) / z, (ay + q * ty) / z
    inside = _inside(us, vs, view) & _inside(px, py, view)
    return Residual(np.where(inside, chi2, 0), best, 1 / np.sqrt(information), inside)


def static_alternative(
    view: View,
    meter: FlowMeter,
    now: Plane,
    before: NDArray[np.uint8],
    flow: Flow,
    residual: Residual,
    T_previous_current: NDArray[np.float64],
    road: Road,
    depth: Depth | None,
    seen: Depth | None,
    guess: Plane,
) -> Plane:
    """What is left against a static world that may pick its own match: [h, w] chi-square to compare
    with `Residual.chi2`.

    Flow is one match of many. If the image that a static world predicts fits as well as what flow
    found, flow has shown nothing (a likelihood ratio: the squared photometric errors differ by no
    more than noise), and only depth can tell: the previous depth there, `seen`, against what was
    predicted, within the range of its 3x3 neighbours. guess: [h, w] inverse depth of the static
    world where depth has none of its own.
    """
    best = np.clip(residual.q, road.q, 2.0)
    error = meter.error(now, before, *static_flow(view, best, T_previous_current))
    if depth is not None:
        own = np.where(np.isfinite(depth.q), depth.q, guess)
        u, v = static_flow(view, own, T_previous_current)
        error = np.minimum(error, meter.error(now, before, u, v))
    noise = np.maximum(flow.error, np.float32(meter.image_noise))
    chi2 = (
        np.maximum(error * error - flow.error * flow.error, 0)
        / (noise * noise)
        * np.float32(INDEPENDENT)
    )
    if depth is None or seen is None:
        return chi2
    xs, ys = ends(u, v)
    known = np.isfinite(seen.q)
    kernel = np.ones((3, 3), np.uint8)
    low = cv2.remap(
        cv2.erode(np.where(known, seen.q, np.float32(1e3)), kernel),
        xs,
        ys,
        cv2.INTER_NEAREST,
        borderValue=1e3,
    )
    high = cv2.remap(
        cv2.dilate(np.where(known, seen.q, np.float32(-1)), kernel),
        xs,
        ys,
        cv2.INTER_NEAREST,
        borderValue=-1,
    )
    sigma = cv2.remap(
        np.nan_to_num(seen.sigma, nan=1e3), xs, ys, cv2.INTER_NEAREST, borderValue=1e3
    )
    (_, _, az), t = _moved_rays(view, T_previous_current)
    z = az + own * t[2]
    predicted = own / z
    off = np.maximum(np.maximum(low - predicted, predicted - high), 0)
    variance = sigma**2 + (depth.sigma * az / (z * z)) ** 2
    apart = off * off / variance
    return chi2 + np.where((low < 1e2) & np.isfinite(apart), apart, 0)


def hidden_before(
    view: View,
    pixels: NDArray[np.intp],
    q: Plane,
    T_previous_current: NDArray[np.float64],
    q_now: Plane,
    q_before: Plane,
    tolerance: float = 0.12,
) -> NDArray[np.bool_]:
    """Which pixels [K] (flat indices) a standing thing hid from the previous camera: they match
    nothing there, and nothing is to be learnt.

    q: [K] inverse depth of the pixels' static points. q_now, q_before: [h, w] inverse depth of both
    images, NaN = none. The thing that the previous image shows in the static point's place is
    nearer than that point, and is still where it was: the current image shows it, to within
    `tolerance` of its depth, where a static world puts it. A dynamic object is not, and does not
    hide itself."""
    h, w = view.x.shape
    u, v, z = move(
        view, view, view.x.ravel()[pixels], view.y.ravel()[pixels], q, T_previous_current
    )
    in_place = nearest(q_before, u, v)
    nearer = in_place * z > 1 + tolerance
    x, y = (
        (u - np.float32(view.k[0, 2])) / np.float32(view.k[0, 0]),
        (v - np.float32(view.k[1, 2])) / np.float32(view.k[1, 1]),
    )
    u, v, z = move(view, view, x, y, in_place, inverse(T_previous_current))
    dv, du = np.mgrid[-1:2, -1:2].reshape(2, 9, 1).astype(np.float32)
    around = nearest(q_now, u + du, v + dv) * z  # [9, K]
    with np.errstate(invalid="ignore"):
        still_there = (np.abs(around - 1) < tolerance).any(0)
    gone = (u < 0) | (v < 0) | (u > w - 1) | (v > h - 1)  # out of sight by now: it cannot be asked
    return nearer & (still_there | gone)


def move(
    view: View, other: View, x: Plane, y: Plane, q: Plane, T: NDArray[np.float64]
) -> tuple[Plane, Plane, Plane]:
    """Pixel u, v and depth z (metres) in the other camera of points at normalised x, y and inverse
    depth q."""
    m = T.astype(np.float32)
    q = np.maximum(q, np.float32(1e-4))
    a = [m[i, 0] * x + m[i, 1] * y + m[i, 2] + q * m[i, 3] for i in range(3)]
    below = np.maximum(a[2], np.float32(1e-3))
    k = other.k.astype(np.float32)
    return a[0] / below * k[0, 0] + k[0, 2], a[1] / below * k[1, 1] + k[1, 2], a[2] / q


def nearest(plane: Plane, u: Plane, v: Plane) -> Plane:
    """Values of a plane at pixels, nearest neighbour; NaN outside."""
    h, w = plane.shape
    with np.errstate(invalid="ignore"):
        good = (u > -0.5) & (v > -0.5) & (u < w - 0.5) & (v < h - 0.5)
    i = np.where(good, np.rint(np.where(good, v, 0)) * w + np.rint(np.where(good, u, 0)), 0).astype(
        np.intp
    )
    return np.where(good, plane.ravel()[i], np.float32(np.nan))


def _inside(x: Plane, y: Plane, view: View) -> NDArray[np.bool_]:
    """Normalised coordinates that lie in the image, 1 px from its border."""
    u = x * np.float32(view.k[0, 0]) + np.float32(view.k[0, 2])
    v = y * np.float32(view.k[1, 1]) + np.float32(view.k[1, 2])
    h, w = view.x.shape
    return (u > 1) & (u < w - 2) & (v > 1) & (v < h - 2)


def _inflate(wuu: Plane, wuv: Plane, wvv: Plane, variance: Plane) -> tuple[Plane, Plane, Plane]:
    """Information of a 2D measurement after isotropic variance is added to its covariance:
    inverse(inverse(W) + s I)."""
    det = wuu * wvv - wuv * wuv
    # inverse(W) + s I = (adj(W) + s det I) / det, whose determinant times det is 1 + s trace + s^2
    # det.
    below = 1 + variance * (wuu + wvv) + variance * variance * det
    return (wuu + variance * det) / below, wuv / below, (wvv + variance * det) / below


def _moved_rays(
    view: View, T_previous_current: NDArray[np.float64]
) -> tuple[tuple[Plane, Plane, Plane], NDArray[np.float32]]:
    r = T_previous_current[:3, :3].astype(np.float32)
    x, y = (
        view.x[:1],
        view.y[:, :1],
    )  # the grid's columns and rows: x is the same in every row, y in every column
    rays = tuple(r[i, 0] * x + (r[i, 1] * y + r[i, 2]) for i in range(3))
    return rays, T_previous_current[:3, 3].astype(np.float32)  # type: ignore[return-value]
