"""The map's part of the picture: from above, with our way, the truth's and the dynamic objects'
trails."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from recon4d_ros.overview.data import OverviewData, Pixels, Trail
from recon4d_ros.overview.page import BACKGROUND, FAINT, OURS, PANEL, TEXT, TRUE, identity_color

_LONGEST_ARROW = 15.0  # m: an arrow is a second of motion, at most this long


def draw_map(axes: Axes, data: OverviewData) -> None:
    """From above; the drive's main direction lies along the panel."""
    turn = _turn(data.trajectory)
    box = axes.get_window_extent()
    bounds = _bounds(data, turn, box.width / box.height)
    axes.set_facecolor("#0b0d12")
    picture = _raster(data.points, data.colors, turn, bounds, round(box.width), round(box.height))
    axes.imshow(picture, extent=bounds, interpolation="none", zorder=1)
    axes.set_xlim(bounds[0], bounds[1])
    axes.set_ylim(bounds[2], bounds[3])
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    longest = sorted(
        (trail for trail in data.trails if len(trail.positions) >= 3),
        key=lambda trail: len(trail.positions),
    )[-40:]
    for trail in longest:
        _draw_trail(axes, trail, turn)
    if data.truth is not None and len(data.truth):
        way = data.truth[:, :2, 3] @ turn.T
        axes.plot(way[:, 0], way[:, 1], color=TRUE, lw=1.4, ls=(0, (4, 3)), zorder=6, label="truth")
    if len(data.trajectory):
        way = data.trajectory[:, :2, 3] @ turn.T
        axes.plot(
            way[:, 0],
            way[:, 1],
            color=OURS,
            lw=2.6,
            zorder=5,
            label="our way",
            solid_capstyle="round",
        )
        axes.plot(*way[0], "o", color=OURS, ms=7, mec=BACKGROUND, zorder=7)
        pose = data.shown_pose if data.shown_pose is not None else data.trajectory[-1]
        _draw_car(axes, pose, turn)
    if longest:
        axes.plot([], [], color=identity_color(1), lw=2, label="dynamic objects, with id")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left",
            facecolor=PANEL,
            edgecolor="#333a47",
            labelcolor=TEXT,
            fontsize=11,
            framealpha=0.9,
        )
    _scale_bar(axes, bounds)
    axes.text(
        0.995,
        0.985,
        "the static map from above",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=11,
        color=FAINT,
        zorder=9,
    )


def _turn(trajectory: NDArray[np.float64]) -> NDArray[np.float64]:
    """[2, 2] rotation that lays the drive's longest extent along x, forward to the right."""
    if not len(trajectory):
        return np.eye(2)
    way = trajectory[:, :2, 3]
    spread = way - way.mean(axis=0)
    if np.abs(spread).max() < 1.0:  # standing: forward is right
        along = trajectory[0, :2, 0]
    else:
        along = np.linalg.svd(spread, full_matrices=False)[2][0]
        along = along if along @ (way[-1] - way[0]) >= 0 else -along
    along = along / np.linalg.norm(along)
    return np.array([[along[0], along[1]], [-along[1], along[0]]])


def _bounds(
    data: OverviewData, turn: NDArray[np.float64], aspect: float
) -> tuple[float, float, float, float]:
    """left, right, bottom, top in turned metres: the drive with what was seen beside it, in the
    panel's aspect."""
    way = data.trajectory[:, :2, 3] @ turn.T if len(data.trajectory) else np.zeros((1, 2))
    beside = np.array([18.0, 14.0])
    low, high = way.min(axis=0) - beside, way.max(axis=0) + beside
    if len(
        data.points
    ):  # as far as most of the map reaches, but never so far that the drive gets small
        seen = data.points[:, :2].astype(np.float64) @ turn.T
        reach = np.percentile(seen, [1.0, 99.0], axis=0)
        low, high = (
            np.maximum(np.minimum(low, reach[0]), low - 25),
            np.minimum(np.maximum(high, reach[1]), high + 25),
        )
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    half = np.array([max(half[0], half[1] * aspect), max(half[1], half[0] / aspect)])
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def _raster(
    points: NDArray[np.float32],
    colors: Pixels,
    turn: NDArray[np.float64],
    bounds: tuple[float, float, float, float],
    width: int,
    height: int,
) -> Pixels:
    """[height, width, 3]: the highest point of each pixel, its colour stretched to be seen (by
    height where the images are grey)."""
    out = np.full((height, width, 3), (11, 13, 18), np.uint8)
    if not len(points):
        return out
    low, high = np.percentile(points[:, 2], [2, 96])
    upright = np.clip((points[:, 2] - low) / max(high - low, 0.5), 0, 1)
    if np.mean(np.ptp(colors, axis=1)) < 4:
        shade = matplotlib.colormaps["viridis"](0.1 + 0.85 * upright)[:, :3]
        gray = colors[:, 0] / max(float(np.percentile(colors[:, 0], 90)), 1.0)
        rgb = 255 * shade * np.clip(0.45 + 0.65 * gray, 0, 1.15)[:, None]
    else:
        rgb = (
            colors
            * (215.0 / max(float(np.percentile(colors, 92)), 1.0))
            * (0.75 + 0.25 * upright)[:, None]
        )
    flat = points[:, :2].astype(np.float64) @ turn.T
    u = (flat[:, 0] - bounds[0]) / (bounds[1] - bounds[0]) * width
    v = (bounds[3] - flat[:, 1]) / (bounds[3] - bounds[2]) * height
    size = max(
        1, math.ceil(0.2 * width / (bounds[1] - bounds[0]))
    )  # px of a voxel: a surface has no holes
    order = np.argsort(points[:, 2], kind="stable")
    rgb = np.clip(rgb, 0, 255).astype(np.uint8)[order]
    for dv in range(size):
        for du in range(size):
            x, y = (
                np.floor(u[order]).astype(np.int64) + du - size // 2,
                np.floor(v[order]).astype(np.int64) + dv - size // 2,
            )
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            out[y[inside], x[inside]] = rgb[inside]
    return out


def _draw_trail(axes: Axes, trail: Trail, turn: NDArray[np.float64]) -> None:
    color = identity_color(trail.id)
    way = trail.positions[:, :2] @ turn.T
    if len(way) > 1:
        axes.plot(way[:, 0], way[:, 1], color=color, lw=1.6, alpha=0.85, zorder=3)
    cos, sin = np.cos(trail.yaw), np.sin(trail.yaw)
    half = 0.5 * trail.size[:2]
    corners = (
        np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half @ np.array([[cos, sin], [-sin, cos]])
        + trail.positions[-1, :2]
    )
    axes.fill(*(corners @ turn.T).T, facecolor=(*color, 0.35), edgecolor=color, lw=1.2, zorder=4)
    tip = turn @ trail.velocity[:2]
    tip *= min(1.0, _LONGEST_ARROW / max(float(np.linalg.norm(tip)), 1e-6))
    arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", way[-1] + tip, way[-1], arrowprops=arrow, zorder=4, annotation_clip=True)
    axes.text(
        way[-1, 0],
        way[-1, 1] + half.max() * 0.6,
        str(trail.id),
        color=color,
        fontsize=9,
        ha="center",
        va="bottom",
        zorder=8,
        clip_on=True,
    )


def _draw_car(axes: Axes, pose: NDArray[np.float64], turn: NDArray[np.float64]) -> None:
    shape = np.array(
        [[3.4, 0], [2.6, 0.95], [-1.0, 0.95], [-1.0, -0.95], [2.6, -0.95]]
    )  # base_link is near the rear axle
    axes.fill(
        *((shape @ pose[:2, :2].T + pose[:2, 3]) @ turn.T).T,
        facecolor=OURS,
        edgecolor=BACKGROUND,
        lw=1,
        zorder=8,
    )


def _scale_bar(axes: Axes, bounds: tuple[float, float, float, float]) -> None:
    width = bounds[1] - bounds[0]
    length = next(
        (metres for metres in (5, 10, 20, 50, 100, 200, 500, 1000) if metres > 0.08 * width), 1000
    )
    x, y = bounds[0] + 0.02 * width, bounds[2] + 0.035 * (bounds[3] - bounds[2])
    axes.plot([x, x + length], [y, y], color=TEXT, lw=3, solid_capstyle="butt", zorder=9)
    above = y + 0.01 * (bounds[3] - bounds[2])
    axes.text(
        x + length / 2,
        above,
        f"{length} m",
        color=TEXT,
        fontsize=11,
        ha="center",
        va="bottom",
        zorder=9,
    )
