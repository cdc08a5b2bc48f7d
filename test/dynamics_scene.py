"""A street of planes and boxes with exact depth, for the tests of dynamics: a floor, walls,
standing and moving boxes, by ray casting."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from recon4d_ros.geometry import inverse, se3
from recon4d_ros.types import Calibration, Camera, Frame, Geometry, PoseEstimate, Rig, Tracking

FORWARD = np.array(
    [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]
)  # optical axes of a camera that looks along base_link's x


@dataclass(frozen=True)
class Box:
    """An upright box: centre of its floor at start + velocity * seconds, full sides size, axes of
    map."""

    start: tuple[float, float, float]
    size: tuple[float, float, float]
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    texture: int = 1


def yawed(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def make_rig(
    poses: list[tuple[float, tuple[float, float, float]]],
    width: int = 320,
    height: int = 192,
    focal: float = 230.0,
) -> tuple[Rig, Calibration]:
    """A rig from (yaw, position) per camera, without distortion, and a calibration whose working
    image is the image."""
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    cameras = tuple(
        Camera(f"c{i}", width, height, k, se3(yawed(yaw) @ FORWARD, np.array(p)))
        for i, (yaw, p) in enumerate(poses)
    )
    rig = Rig("test", cameras)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    n = len(cameras)
    size = (height, width)
    calibration = Calibration(
        rig.names,
        np.broadcast_to(grid, (n, *grid.shape)),
        np.stack([k] * n),
        rig.T_base_camera,
        size,
        size,
    )
    return rig, calibration


class Street:
    """Floor z = 0, walls at y = +-14 and x = 70 and x = -70 m, and boxes."""

    def __init__(self, boxes: tuple[Box, ...] = (), seed: int = 0) -> None:
        self.boxes = boxes
        rng = np.random.default_rng(seed)
        self.textures = []
        for _ in range(8):
            layers = [
                cv2.GaussianBlur(rng.normal(size=(1024, 1024)).astype(np.float32), (0, 0), s) * s
                for s in (2.0, 6.0, 20.0)
            ]
            texture = sum(layer / layer.std() for layer in layers)
            self.textures.append(
                np.clip(128 + 30 * texture / texture.std() * 1.2, 0, 255).astype(np.float32)
            )

    def render(
        self, calibration: Calibration, i: int, T_map_camera: np.ndarray, seconds: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Grey image [h, w] uint8, z-depth [h, w] float32 and the index of the box seen [h, w] (-1
        = none)."""
        h, w = calibration.working_size
        k = calibration.k[i]
        v, u = np.mgrid[0:h, 0:w].astype(np.float64)
        rays = (
            np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
            @ T_map_camera[:3, :3].T
        )
        origin = T_map_camera[:3, 3]
        depth = np.full((h, w), np.inf)
        image = np.zeros((h, w), np.float32)
        which = np.full((h, w), -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            for texture, (axis, at) in enumerate(
                ((2, 0.0), (1, 14.0), (1, -14.0), (0, 70.0), (0, -70.0))
            ):
                t = (at - origin[axis]) / rays[..., axis]
                hit = (t > 0) & (t < depth)
                point = origin + rays * t[..., None]
                image[hit] = self._paint(texture, np.delete(point, axis, -1)[hit])
                depth[hit] = t[hit]
            for j, box in enumerate(self.boxes):
                centre = np.array(box.start) + np.array(box.velocity) * seconds
                low = centre - np.array([box.size[0] / 2, box.size[1] / 2, 0])
                a, b = (low - origin) / rays, (low + box.size - origin) / rays
                enter, leave = np.minimum(a, b), np.maximum(a, b)
                t = enter.max(-1)
                hit = (t < leave.min(-1)) & (t > 0) & (t < depth)
                face = enter.argmax(-1)
                point = origin + rays * t[..., None] - centre
                other = np.where(face == 0, 1, 0), np.where(face == 2, 1, 2)
                flat = np.stack(
                    [np.take_along_axis(point, o[..., None], -1)[..., 0] for o in other], -1
                )
                image[hit] = self._paint(box.texture + 4, flat[hit])
                depth[hit] = t[hit]
                which[hit] = j
        return np.clip(image, 0, 255).astype(np.uint8), depth.astype(np.float32), which

    def _paint(self, texture: int, at: np.ndarray) -> np.ndarray:
        picture = self.textures[texture % len(self.textures)]
        st = ((at * 24.0) % 1000).astype(np.float32)
        x, y = st[:, 0].astype(int), st[:, 1].astype(int)
        fx, fy = st[:, 0] - x, st[:, 1] - y
        upper = picture[y, x] * (1 - fx) + picture[y, x + 1] * fx
        lower = picture[y + 1, x] * (1 - fx) + picture[y + 1, x + 1] * fx
        return upper * (1 - fy) + lower * fy


def observe(
    street: Street,
    calibration: Calibration,
    T_map_base: np.ndarray,
    seconds: float,
    *,
    disparity_noise: float | None = None,
    rng: np.random.Generator | None = None,
    present: np.ndarray | None = None,
) -> tuple[Frame, PoseEstimate, Geometry, np.ndarray]:
    """One frame as the engine would give it. disparity_noise: pixels of 0.54 m stereo; None gives
    no depth at all (NaN).

    Returns frame, pose, geometry and the truth [N, h, w] bool of moving boxes.
    """
    n = len(calibration.names)
    h, w = calibration.working_size
    rng = rng or np.random.default_rng(0)
    color = np.zeros((n, h, w, 3), np.uint8)
    depth, sigma = np.full((n, h, w), np.nan, np.float32), np.full((n, h, w), np.nan, np.float32)
    truth = np.zeros((n, h, w), bool)
    T_map_camera = T_map_base @ calibration.T_base_camera
    moving = np.array([np.linalg.norm(box.velocity) > 0 for box in street.boxes] + [False])
    for i in range(n):
        grey, z, which = street.render(calibration, i, T_map_camera[i], seconds)
        noisy = np.clip(grey + rng.normal(0, 2, grey.shape), 0, 255).astype(np.uint8)
        color[i] = noisy[..., None]
        truth[i] = moving[which]
        if disparity_noise is not None:
            bf = 0.54 * calibration.k[i, 0, 0]
            noise = (
                cv2.GaussianBlur(rng.normal(size=(h, w)).astype(np.float32), (0, 0), 1.0)
                * 3.5
                * disparity_noise
            )
            depth[i] = bf / np.maximum(bf / z + noise, 0.1)
            sigma[i] = depth[i] ** 2 / bf * disparity_noise
    present = np.ones(n, bool) if present is None else present
    stamp = round(seconds * 1e9)
    frame = Frame(stamp, color, present, np.full(n, stamp, np.int64))
    covariance = np.diag([1e-4] * 3 + [1e-7] * 3)
    tracking = Tracking.TRACKING
    pose = PoseEstimate(
        T_map_base, T_map_camera, tracking, 1e4 * covariance, covariance, np.zeros(6)
    )
    return frame, pose, Geometry(depth, sigma, np.isfinite(depth).astype(np.float32), color), truth


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / max((found | truth).sum(), 1))


__all__ = ["Box", "Street", "inverse", "iou", "make_rig", "observe", "yawed"]
