"""One picture of a run: what the cameras saw and what moved, the depth, the map from above with where we and the others drove, the errors.

Takes plain data and gives pixels; it reads nothing and writes nothing. Works for any number of cameras and any aspect.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WIDTH = 2000  # pixels of the picture
_DPI = 100
_MARGIN, _GAP = 28, 12
_TITLE, _MAP_HEIGHT, _SCALE = 92, 780, 46
_BACKGROUND, _PANEL, _TEXT, _FAINT = "#0f1218", "#171b23", "#e8ebf0", "#8b93a3"
_OURS, _TRUE, _MASK = "#35d0ff", "#ffffff", (255, 64, 129)
_NEAR, _FAR = 3.0, 80.0  # m: ends of the depth colours
_LONGEST_ARROW = 15.0  # m: an arrow is a second of motion, at most this long
_STYLE = {"font.family": "DejaVu Sans", "axes.edgecolor": "#333a47", "axes.labelcolor": _FAINT, "xtick.color": _FAINT,
          "ytick.color": _FAINT, "axes.facecolor": _PANEL, "text.color": _TEXT, "axes.titlecolor": _TEXT, "axes.grid": True,
          "grid.color": "#262c37", "axes.axisbelow": True}
_LONGEST_TILE = 460  # px: a tall image is made narrower rather than taller


@dataclass(frozen=True)
class ObjectView:
    """A mover in one camera. edges: [12, K, 2] pixels along its box's edges. speed: m/s."""

    id: int
    edges: NDArray[np.float64]
    speed: float


@dataclass(frozen=True)
class CameraView:
    """One camera of the shown frame, at any one size. image: [h, w, 3] RGB. mask: [h, w] bool. depth: [h, w] m, NaN = none."""

    name: str
    image: Pixels
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]
    objects: Sequence[ObjectView]


@dataclass(frozen=True)
class Trail:
    """A mover's way over the map. positions: [K, 3] oldest first. velocity: [3] m/s, size: [3] m, yaw: rad, at the last of them."""

    id: int
    positions: NDArray[np.float64]
    velocity: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: float


@dataclass(frozen=True)
class OverviewData:
    """All that the picture shows, in map. points: [K, 3], colors: [K, 3]. trajectory: [F, 4, 4]. summary: what summary.json holds.

    shown_pose: T_map_base of the frame whose cameras are shown. truth: [T, 4, 4], the first pose aligned. distance, errors: [T] m.
    """

    cameras: Sequence[CameraView]
    points: NDArray[np.float32]
    colors: Pixels
    trajectory: NDArray[np.float64]
    trails: Sequence[Trail]
    summary: Mapping[str, Any]
    shown_pose: NDArray[np.float64] | None = None
    truth: NDArray[np.float64] | None = None
    distance: NDArray[np.float64] | None = None
    errors: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class _Page:
    """A figure measured in pixels from its top left corner."""

    figure: Figure
    width: int
    height: int

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, size: float = 12, color: str = _TEXT, **style: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=color, va=style.pop("va", "top"), **style)


def draw_overview(data: OverviewData) -> Pixels:
    """The picture [H, WIDTH, 3] RGB; its height follows from the cameras."""
    block = _camera_block(data.cameras)
    map_top = _TITLE + block.shape[0] + _SCALE + _GAP
    height = map_top + _MAP_HEIGHT + _MARGIN
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        page = _Page(figure, WIDTH, height)
        _title(page, data.summary)
        axes = page.axes(_MARGIN, _TITLE, block.shape[1], block.shape[0])
        axes.imshow(block, interpolation="none", aspect="auto")
        axes.set_axis_off()
        _depth_scale(page, _TITLE + block.shape[0] + 8)
        panels = _panels(data)
        side = 560 if panels else 0
        _map(page.axes(_MARGIN, map_top, WIDTH - 2 * _MARGIN - side - (40 if side else 0), _MAP_HEIGHT), data)
        _side(page, data, panels, WIDTH - _MARGIN - side, map_top, side)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---- title

def _title(page: _Page, summary: Mapping[str, Any]) -> None:
    name = str(summary.get("bag", "")).rstrip("/").rsplit("/", 1)[-1]
    page.text(_MARGIN, 18, "recon4d", 24, _OURS, weight="bold")
    page.text(_MARGIN + 176, 25, name, 17)
    page.text(_MARGIN, 62, "     ".join(headline(summary)), 13.5, _TEXT)


def headline(summary: Mapping[str, Any]) -> list[str]:
    """The run's most telling numbers; what was not measured is left out."""
    metrics = summary.get("metrics") or {}
    parts = []
    if "frames" in summary:
        parts.append(f"{summary['frames']} frame sets")
    if "rate_step_hz" in summary:
        parts.append(f"{summary['rate_step_hz']:.1f} frame sets/s")
    if score := metrics.get("trajectory"):
        parts += [f"{score['path']:.0f} m driven", f"drift {_number(score['end_drift'], 2)} %", f"ATE {_number(score['ate_first'], 2)} m"]
    depth = metrics.get("depth") or metrics.get("lidar_depth")
    if depth:
        near = depth["near"]
        parts.append(f"depth < 40 m: AbsRel {_number(near['abs_rel'], 3)} at {_number(100 * near['coverage'], 0)} % coverage")
    if (score := metrics.get("masks")) and score["movers"]:
        parts.append(f"mask IoU {_number(score['iou'], 2)}")
    if "map_points" in summary:
        parts.append(f"{summary['map_points']:,} map points")
    return parts


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


# ---- cameras

def _camera_block(cameras: Sequence[CameraView]) -> Pixels:
    """Images with masks and boxes, each with its depth below (beside it where there is one camera only): [H, WIDTH - 2 margins, 3]."""
    width = WIDTH - 2 * _MARGIN
    background = np.array([int(_BACKGROUND[i:i + 2], 16) for i in (1, 3, 5)], np.uint8)
    if not cameras:
        return np.tile(background, (1, width, 1))
    tiles = [(_image_tile, view) for view in cameras]
    columns = len(cameras) if len(cameras) <= 3 else math.ceil(len(cameras) / 2)
    if len(cameras) == 1:
        rows = [[*tiles, (_depth_tile, cameras[0])]]
        columns = 2
    else:
        rows = []
        for start in range(0, len(cameras), columns):
            part = cameras[start:start + columns]
            rows += [[(_image_tile, view) for view in part], [(_depth_tile, view) for view in part]]
    tile_width = (width - (columns - 1) * _GAP) // columns
    out = []
    for number, row in enumerate(rows):
        aspect = max(view.image.shape[0] / view.image.shape[1] for _, view in row)
        height = min(round(tile_width * aspect), _LONGEST_TILE)
        strip = np.tile(background, (height, width, 1))
        for column, (draw, view) in enumerate(row):
            picture = _fit(draw(view, tile_width), (tile_width, height))
            x = column * (tile_width + _GAP) + (tile_width - picture.shape[1]) // 2
            y = (height - picture.shape[0]) // 2
            strip[y:y + picture.shape[0], x:x + picture.shape[1]] = picture
        out.append(strip)
        if number < len(rows) - 1:
            out.append(np.tile(background, (_GAP if number % 2 and len(cameras) > 1 else 4, width, 1)))
    return np.concatenate(out)


def _fit(picture: Pixels, box: tuple[int, int]) -> Pixels:
    """As large as fits into box (width, height), aspect kept."""
    scale = min(box[0] / picture.shape[1], box[1] / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)


def _image_tile(view: CameraView, width: int) -> Pixels:
    scale = width / view.image.shape[1]
    size = (width, max(1, round(view.image.shape[0] * scale)))
    tile = np.asarray(cv2.resize(view.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)
    mask = np.asarray(cv2.resize(view.mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)) > 127
    tile[mask] = (0.5 * tile[mask] + 0.5 * np.array(_MASK)).astype(np.uint8)
    outline = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(tile, outline, -1, (255, 255, 255), 1, cv2.LINE_AA)
    centre = (np.array([scale, scale]), 0.5 * scale - 0.5)
    for o in view.objects:
        color = tuple(int(255 * c) for c in identity_color(o.id))
        lines = [np.round((edge * centre[0] + centre[1]) * 16).astype(np.int32) for edge in o.edges]
        cv2.polylines(tile, lines, False, color, 2, cv2.LINE_AA, 4)
        points = o.edges.reshape(-1, 2) * scale
        _label(tile, f"{o.id}  {o.speed:.0f} m/s", (int(points[:, 0].min()), int(points[:, 1].min()) - 6), color)
    _label(tile, view.name, (8, 20), (255, 255, 255))
    return tile


def _depth_tile(view: CameraView, width: int) -> Pixels:
    scale = width / view.depth.shape[1]
    size = (width, max(1, round(view.depth.shape[0] * scale)))
    return depth_colors(np.asarray(cv2.resize(view.depth, size, interpolation=cv2.INTER_NEAREST), np.float32))


def depth_colors(depth: NDArray[np.float32]) -> Pixels:
    """[h, w, 3] RGB: near is red, far is blue (turbo over the root of inverse depth, which keeps 40 m apart from 20 m); none is dark."""
    known = np.isfinite(depth)
    value = _depth_value(np.where(known, depth, _FAR))
    colors = cv2.cvtColor(cv2.applyColorMap((255 * value).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colors[~known] = (30, 34, 42)
    return np.asarray(colors, np.uint8)


def _depth_value(depth: NDArray) -> NDArray:
    inverse = (1.0 / np.clip(depth, _NEAR, _FAR) - 1.0 / _FAR) / (1.0 / _NEAR - 1.0 / _FAR)
    return 0.06 + 0.9 * np.sqrt(np.clip(inverse, 0, 1))


def _depth_scale(page: _Page, y: float) -> None:
    axes = page.axes(WIDTH - _MARGIN - 420, y, 420, 10)
    ticks = np.array([3, 5, 8, 12, 20, 40, 80])
    line = np.geomspace(_NEAR, _FAR, 420).astype(np.float32)
    axes.imshow(depth_colors(line[None]), aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks(np.log(ticks / _NEAR) / np.log(_FAR / _NEAR), [f"{tick}" for tick in ticks], fontsize=9)
    axes.tick_params(length=0, pad=3)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    page.text(WIDTH - _MARGIN - 432, y - 3, "depth, m", 10.5, _FAINT, ha="right")
    page.text(_MARGIN, y - 3, "pink: found moving     box: tracked mover with id and speed     dark: no depth", 10.5, _FAINT)


def _label(tile: Pixels, text: str, at: tuple[int, int], color: tuple[int, ...]) -> None:
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x = int(np.clip(at[0], 2, max(2, tile.shape[1] - width - 6)))
    y = int(np.clip(at[1], height + 4, tile.shape[0] - base - 2))
    patch = tile[y - height - 4:y + base + 1, x - 2:x + width + 4]
    patch[:] = patch // 4
    cv2.putText(tile, text, (x + 1, y - 1), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)


def identity_color(identity: int) -> tuple[float, float, float]:
    """A bright colour that stays with an id: hues a golden angle apart."""
    hue = (identity * 0.61803398875) % 1.0
    rgb = matplotlib.colors.hsv_to_rgb((hue, 0.65, 1.0))
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


# ---- map

def _map(axes: Axes, data: OverviewData) -> None:
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
    longest = sorted((trail for trail in data.trails if len(trail.positions) >= 3), key=lambda trail: len(trail.positions))[-40:]
    for trail in longest:
        _draw_trail(axes, trail, turn)
    if data.truth is not None and len(data.truth):
        way = data.truth[:, :2, 3] @ turn.T
        axes.plot(way[:, 0], way[:, 1], color=_TRUE, lw=1.4, ls=(0, (4, 3)), zorder=6, label="truth")
    if len(data.trajectory):
        way = data.trajectory[:, :2, 3] @ turn.T
        axes.plot(way[:, 0], way[:, 1], color=_OURS, lw=2.6, zorder=5, label="our way", solid_capstyle="round")
        axes.plot(*way[0], "o", color=_OURS, ms=7, mec=_BACKGROUND, zorder=7)
        pose = data.shown_pose if data.shown_pose is not None else data.trajectory[-1]
        _draw_car(axes, pose, turn)
    if longest:
        axes.plot([], [], color=identity_color(1), lw=2, label="movers, with id")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", facecolor=_PANEL, edgecolor="#333a47", labelcolor=_TEXT, fontsize=11, framealpha=0.9)
    _scale_bar(axes, bounds)
    axes.text(0.995, 0.985, "the static map from above", transform=axes.transAxes, ha="right", va="top", fontsize=11, color=_FAINT,
              zorder=9)


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


def _bounds(data: OverviewData, turn: NDArray[np.float64], aspect: float) -> tuple[float, float, float, float]:
    """left, right, bottom, top in turned metres: the drive with what was seen beside it, in the panel's aspect."""
    way = data.trajectory[:, :2, 3] @ turn.T if len(data.trajectory) else np.zeros((1, 2))
    beside = np.array([18.0, 14.0])
    low, high = way.min(axis=0) - beside, way.max(axis=0) + beside
    if len(data.points):  # as far as most of the map reaches, but never so far that the drive gets small
        seen = data.points[:, :2].astype(np.float64) @ turn.T
        reach = np.percentile(seen, [1.0, 99.0], axis=0)
        low, high = np.maximum(np.minimum(low, reach[0]), low - 25), np.minimum(np.maximum(high, reach[1]), high + 25)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    half = np.array([max(half[0], half[1] * aspect), max(half[1], half[0] / aspect)])
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def _raster(points: NDArray[np.float32], colors: Pixels, turn: NDArray[np.float64], bounds: tuple[float, float, float, float],
            width: int, height: int) -> Pixels:
    """[height, width, 3]: the highest point of each pixel, its colour stretched to be seen (by height where the images are grey)."""
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
        rgb = colors * (215.0 / max(float(np.percentile(colors, 92)), 1.0)) * (0.75 + 0.25 * upright)[:, None]
    flat = points[:, :2].astype(np.float64) @ turn.T
    u = (flat[:, 0] - bounds[0]) / (bounds[1] - bounds[0]) * width
    v = (bounds[3] - flat[:, 1]) / (bounds[3] - bounds[2]) * height
    size = max(1, math.ceil(0.2 * width / (bounds[1] - bounds[0])))  # px of a voxel: a surface has no holes
    order = np.argsort(points[:, 2], kind="stable")
    rgb = np.clip(rgb, 0, 255).astype(np.uint8)[order]
    for dv in range(size):
        for du in range(size):
            x, y = np.floor(u[order]).astype(np.int64) + du - size // 2, np.floor(v[order]).astype(np.int64) + dv - size // 2
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
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half @ np.array([[cos, sin], [-sin, cos]]) + trail.positions[-1, :2]
    axes.fill(*(corners @ turn.T).T, facecolor=(*color, 0.35), edgecolor=color, lw=1.2, zorder=4)
    tip = turn @ trail.velocity[:2]
    tip *= min(1.0, _LONGEST_ARROW / max(float(np.linalg.norm(tip)), 1e-6))
    arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", way[-1] + tip, way[-1], arrowprops=arrow, zorder=4, annotation_clip=True)
    axes.text(way[-1, 0], way[-1, 1] + half.max() * 0.6, str(trail.id), color=color, fontsize=9, ha="center", va="bottom", zorder=8,
              clip_on=True)


def _draw_car(axes: Axes, pose: NDArray[np.float64], turn: NDArray[np.float64]) -> None:
    shape = np.array([[3.4, 0], [2.6, 0.95], [-1.0, 0.95], [-1.0, -0.95], [2.6, -0.95]])  # base_link is near the rear axle
    axes.fill(*((shape @ pose[:2, :2].T + pose[:2, 3]) @ turn.T).T, facecolor=_OURS, edgecolor=_BACKGROUND, lw=1, zorder=8)


def _scale_bar(axes: Axes, bounds: tuple[float, float, float, float]) -> None:
    width = bounds[1] - bounds[0]
    length = next((metres for metres in (5, 10, 20, 50, 100, 200, 500, 1000) if metres > 0.08 * width), 1000)
    x, y = bounds[0] + 0.02 * width, bounds[2] + 0.035 * (bounds[3] - bounds[2])
    axes.plot([x, x + length], [y, y], color=_TEXT, lw=3, solid_capstyle="butt", zorder=9)
    above = y + 0.01 * (bounds[3] - bounds[2])
    axes.text(x + length / 2, above, f"{length} m", color=_TEXT, fontsize=11, ha="center", va="bottom", zorder=9)


# ---- numbers

def _panels(data: OverviewData) -> list[str]:
    metrics = data.summary.get("metrics") or {}
    panels = []
    if data.errors is not None and len(data.errors) > 1:
        panels.append("trajectory")
    if "depth" in metrics or "lidar_depth" in metrics:
        panels.append("depth")
    if (metrics.get("masks") or {}).get("movers") or (metrics.get("objects") or {}).get("movers"):
        panels.append("movers")
    if data.summary.get("latency_ms"):
        panels.append("latency")
    return panels


def _side(page: _Page, data: OverviewData, panels: list[str], x: float, y: float, width: float) -> None:
    if not panels:
        return
    metrics = data.summary.get("metrics") or {}
    each = _MAP_HEIGHT / len(panels)
    for index, name in enumerate(panels):
        axes = page.axes(x + 62, y + index * each + 30, width - 62 - 46, each - 30 - 46)
        if name == "trajectory" and data.distance is not None and data.errors is not None:
            _trajectory_panel(axes, data.distance, data.errors, metrics["trajectory"])
        elif name == "depth":
            _depth_panel(axes, metrics)
        elif name == "movers":
            _movers_panel(axes, metrics)
        elif name == "latency":
            _latency_panel(axes, data.summary["latency_ms"])
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=10, length=0)


def _trajectory_panel(axes: Axes, distance: NDArray[np.float64], errors: NDArray[np.float64], score: Mapping[str, Any]) -> None:
    axes.plot(distance, errors, color=_OURS, lw=2)
    axes.fill_between(distance, errors, color=_OURS, alpha=0.18)
    axes.set_ylim(0, max(float(errors.max()) * 1.15, 0.05))
    axes.set_xlim(float(distance[0]), max(float(distance[-1]), 1e-3))
    axes.set_ylabel("m", fontsize=10)
    axes.set_xlabel("m driven", fontsize=10, labelpad=2)
    axes.set_title(f"position error: {_number(score['end_drift'], 2)} % of the way at its end", fontsize=12, loc="left")


def _depth_panel(axes: Axes, metrics: Mapping[str, Any]) -> None:
    depth = metrics.get("depth") or metrics["lidar_depth"]
    names = [name for name, score in depth["ranges"].items() if score["pixels"]]
    scores = [depth["ranges"][name] for name in names]
    bars = axes.bar(range(len(names)), [100 * score["abs_rel"] for score in scores], color="#ffb454", width=0.55)
    axes.bar_label(bars, [_number(100 * score["abs_rel"], 1) for score in scores], color=_TEXT, fontsize=10, padding=2)
    axes.margins(y=0.25)
    axes.set_xticks(range(len(names)), [f"{name.replace('-inf', '+')} m" for name in names])
    axes.set_ylabel("AbsRel, %", fontsize=10)
    axes.grid(axis="x", visible=False)
    other = axes.twinx()
    other.plot(range(len(names)), [100 * score["coverage"] for score in scores], "o-", color="#7ee787", lw=1.6, ms=5)
    other.set_ylim(0, 105)
    other.set_ylabel("coverage, %", fontsize=10, color="#7ee787")
    other.tick_params(labelsize=10, length=0, colors="#7ee787")
    other.grid(False)
    for spine in other.spines.values():
        spine.set_visible(False)
    axes.set_title("depth error by range" + ("" if "depth" in metrics else " (against lidar)"), fontsize=12, loc="left")


def _movers_panel(axes: Axes, metrics: Mapping[str, Any]) -> None:
    entries: list[tuple[str, float]] = []
    if (masks := metrics.get("masks")) and masks["movers"]:
        entries += [("mask IoU", masks["iou"]), ("mask precision", masks["precision"]), ("mask recall", masks["recall"])]
    if (objects := metrics.get("objects")) and objects["movers"]:
        entries += [("movers: precision", objects["precision"]), ("movers: recall", objects["recall"])]
    values = [value if value is not None and math.isfinite(value) else 0.0 for _, value in entries]
    pink = tuple(c / 255 for c in _MASK)
    bars = axes.barh(range(len(entries)), values, color=[pink if name.startswith("mask") else "#c792ea" for name, _ in entries], height=0.6)
    axes.bar_label(bars, [_number(value, 2) for _, value in entries], color=_TEXT, fontsize=10, padding=4)
    axes.set_yticks(range(len(entries)), [name for name, _ in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.grid(axis="y", visible=False)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.03, box.y0, box.width - 0.03, box.height))
    marked = f", {_number(100 * masks['static_marked'], 2)} % of static pixels marked" if masks else ""
    axes.set_title(f"movers{marked}", fontsize=12, loc="left")


def _latency_panel(axes: Axes, latency: Mapping[str, Mapping[str, float]]) -> None:
    stages = [name for name in latency if name != "step"]
    p50, p95 = [latency[name]["p50"] for name in stages], [latency[name]["p95"] for name in stages]
    axes.barh(range(len(stages)), p95, color="#3b4454", height=0.6)
    bars = axes.barh(range(len(stages)), p50, color=_OURS, height=0.6)
    axes.bar_label(bars, [f"{value:.1f}" for value in p50], color=_TEXT, fontsize=10, padding=4)
    axes.set_yticks(range(len(stages)), stages)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.03, box.y0, box.width - 0.03, box.height))
    axes.set_title("latency per stage, ms: median (grey: p95)", fontsize=12, loc="left")
