"""How badly a static world explains what was measured, pixel by pixel, in its own standard deviations.

A pixel of the current image at normalised coordinates (x, y) with inverse depth q lies, if it does not move, in the previous camera at
a + q t up to scale, with a = R (x, y, 1) and (R, t) the motion of the camera. Everything measured is linear in q:

    flow, ending at p         (a_xy - p a_z) + q (t_xy - p t_z) = 0        two equations
    depth now, q_d            q - q_d = 0                                  where it does not come from time itself
    depth before at p, q_p    q (1 - q_p t_z) - q_p a_z = 0                scene flow (Vedula et al., ICCV 1999)
    the road, q_g             q >= q_g                                     nothing static is seen below the ground

so the best static explanation is a weighted mean, and what is left, in units of the measurements' covariance, is chi-square
distributed if nothing moves. With two cameras that is the disagreement of scene flow, along the epipolar line too; with one it
is the flow across the epipolar line, and the points that would have to be below the road or behind infinity.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow
from recon4d_ros.dynamics.views import View

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Depth:
    """Depth on the motion grid as inverse depth. q: [h, w] 1/m, NaN = none. sigma: [h, w] 1/m."""

    q: Plane
    sigma: Plane


@dataclass(frozen=True)
class Road:
    """The road seen by one camera. q: [h, w] 1/m, inverse depth of the road along each ray, 0 at and above the horizon. sigma: [h, w]."""

    q: Plane
    sigma: Plane


@dataclass(frozen=True)
class Residual:
    """chi2: [h, w] what a static world leaves unexplained (0 where nothing can be said). q: [h, w] 1/m, inverse depth of the static
    explanation from flow and depth together, the road left aside. sigma: [h, w] of q. inside: [h, w] bool, the static point and the
    flow both end in the previous image.
    """

    chi2: Plane
    q: Plane
    sigma: Plane
    inside: NDArray[np.bool_]


def make_depth(depth: Plane, sigma: Plane) -> Depth:
    """Inverse depth and its standard deviation from metres (sigma_q = sigma / depth^2); at least 1 % is always in doubt."""
    q = 1 / depth
    return Depth(q, np.maximum(sigma * q * q, 0.01 * q))


def see_road(view: View, plane: NDArray[np.float64], height_sigma: float, slope_sigma: float) -> Road:
    """The road plane (n, d) in base_link, n . p + d = 0 with n up, along each ray of a camera.

    A ray with direction r from height H over the plane meets it at inverse depth -(n . r) / H.
    """
    normal = view.T_base_camera[:3, :3].T @ plane[:3]
    height = float(plane[:3] @ view.T_base_camera[:3, 3] + plane[3])
    if height < 0.1:
        return Road(np.zeros_like(view.x), np.full_like(view.x, np.inf))
    down = -(np.float32(normal[0]) * view.x + np.float32(normal[1]) * view.y + np.float32(normal[2]))
    q = np.maximum(down / np.float32(height), 0)
    return Road(q, np.hypot(q * np.float32(height_sigma / height), np.float32(slope_sigma / height)))


def static_flow(view: View, q: Plane, T_previous_current: NDArray[np.float64]) -> tuple[Plane, Plane]:
    """Flow [h, w] in grid pixels of points at inverse depth q that do not move. NaN q is taken as infinitely far."""
    a, t = _moved_rays(view, T_previous_current)
    q = np.nan_to_num(q, nan=0.0)
    z = np.maximum(a[2] + q * t[2], 1e-3)
    return (((a[0] + q * t[0]) / z - view.x) * np.float32(view.k[0, 0]),
            ((a[1] + q * t[1]) / z - view.y) * np.float32(view.k[1, 1]))


def static_residual(view: View, flow: Flow, T_previous_current: NDArray[np.float64], pose_sigma: tuple[float, float], road: Road,
                    depth: Depth | None = None, previous_depth: Depth | None = None) -> Residual:
    """The residual of the static explanation. pose_sigma: metres, radians of the motion between the two images.

    depth, previous_depth: where they were measured without the help of time; None or NaN where not.
    """
    h, w = flow.u.shape
    fx, fy = np.float32(view.k[0, 0]), np.float32(view.k[1, 1])
    (ax, ay, az), (tx, ty, tz) = _moved_rays(view, T_previous_current)
    px, py = view.x + flow.u / fx, view.y + flow.v / fy
    q_guess = road.q if depth is None else np.where(np.isfinite(depth.q), depth.q, road.q)
    scale = np.maximum(az + q_guess * tz, np.float32(0.05))

    # Information of the flow's end in normalised coordinates, with the pose's share in it; residuals below carry the factor `scale`.
    pose_variance = (fx * np.float32(pose_sigma[1])) ** 2 + (fx * np.float32(pose_sigma[0]) * q_guess) ** 2
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
        xs = np.arange(w, dtype=np.float32)[None, :] + flow.u
        ys = np.arange(h, dtype=np.float32)[:, None] + flow.v
        before = cv2.remap(previous_depth.q, xs, ys, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan)
        sigma = cv2.remap(previous_depth.sigma, xs, ys, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan)
        # The depth before may be off by its own error and by the flow's, which lands beside the point where depth varies.
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


def _inside(x: Plane, y: Plane, view: View) -> NDArray[np.bool_]:
    """Normalised coordinates that lie in the image, 1 px from its border."""
    u = x * np.float32(view.k[0, 0]) + np.float32(view.k[0, 2])
    v = y * np.float32(view.k[1, 1]) + np.float32(view.k[1, 2])
    h, w = view.x.shape
    return (u > 1) & (u < w - 2) & (v > 1) & (v < h - 2)


def _inflate(wuu: Plane, wuv: Plane, wvv: Plane, variance: Plane) -> tuple[Plane, Plane, Plane]:
    """Information of a 2D measurement after isotropic variance is added to its covariance: inverse(inverse(W) + s I)."""
    det = wuu * wvv - wuv * wuv
    # inverse(W) + s I = (adj(W) + s det I) / det, whose determinant times det is 1 + s trace + s^2 det.
    below = 1 + variance * (wuu + wvv) + variance * variance * det
    return (wuu + variance * det) / below, wuv / below, (wvv + variance * det) / below


def _moved_rays(view: View, T_previous_current: NDArray[np.float64]) -> tuple[tuple[Plane, Plane, Plane], NDArray[np.float32]]:
    r = T_previous_current[:3, :3].astype(np.float32)
    rays = tuple(r[i, 0] * view.x + r[i, 1] * view.y + r[i, 2] for i in range(3))
    return rays, T_previous_current[:3, 3].astype(np.float32)  # type: ignore[return-value]
