"""The numbers' part of the picture: its headline, and a panel for each thing that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from recon4d_ros.overview.data import OverviewData
from recon4d_ros.overview.page import MARGIN, MASK, OURS, TEXT, Page, number
from recon4d_ros.paths import shown


def draw_title(page: Page, summary: Mapping[str, Any]) -> None:
    """Name of the drive and headline, at the top of the page."""
    name = shown(str(summary.get("bag", "")).rstrip("/").rsplit("/", 1)[-1])
    page.text(MARGIN, 18, "recon4d", 24, OURS, weight="bold")
    page.text(MARGIN + 176, 25, name, 17)
    page.text(MARGIN, 62, "     ".join(headline(summary)), 13.5, TEXT)


def headline(summary: Mapping[str, Any]) -> list[str]:
    """The run's most telling numbers; what was not measured is left out."""
    metrics = summary.get("metrics") or {}
    parts = []
    if "frames" in summary:
        parts.append(f"{summary['frames']} frame sets")
    if "rate_step_hz" in summary:
        parts.append(f"{summary['rate_step_hz']:.1f} frame sets/s")
    if score := metrics.get("trajectory"):
        parts += [
            f"{score['path']:.0f} m driven",
            f"drift {number(score['end_drift'], 2)} %",
            f"ATE {number(score['ate_first'], 2)} m",
        ]
    depth = metrics.get("depth") or metrics.get("lidar_depth")
    if depth:
        near = depth["near"]
        parts.append(
            f"depth < 40 m: AbsRel {number(near['abs_rel'], 3)} at"
            f" {number(100 * near['coverage'], 0)} % coverage"
        )
    if (score := metrics.get("masks")) and score["movers"]:
        parts.append(f"mask IoU {number(score['iou'], 2)}")
    if "map_points" in summary:
        parts.append(f"{summary['map_points']:,} map points")
    return parts


def panels_of(data: OverviewData) -> list[str]:
    """Names of the panels that there are numbers for."""
    metrics = data.summary.get("metrics") or {}
    panels = []
    if data.errors is not None and len(data.errors) > 1:
        panels.append("trajectory")
    if "depth" in metrics or "lidar_depth" in metrics:
        panels.append("depth")
    if (metrics.get("masks") or {}).get("movers") or (metrics.get("objects") or {}).get("movers"):
        panels.append("dynamic objects")
    if data.summary.get("latency_ms"):
        panels.append("latency")
    return panels


def draw_panels(
    page: Page,
    data: OverviewData,
    panels: list[str],
    x: float,
    y: float,
    width: float,
    height: float,
) -> None:
    """One below the other in the box from (x, y), in pixels of the page."""
    if not panels:
        return
    metrics = data.summary.get("metrics") or {}
    each = height / len(panels)
    for index, name in enumerate(panels):
        axes = page.axes(x + 62, y + index * each + 30, width - 62 - 46, each - 30 - 46)
        if name == "trajectory" and data.distance is not None and data.errors is not None:
            _trajectory_panel(axes, data.distance, data.errors, metrics["trajectory"])
        elif name == "depth":
            _depth_panel(axes, metrics)
        elif name == "dynamic objects":
            _movers_panel(axes, metrics)
        elif name == "latency":
            _latency_panel(axes, data.summary["latency_ms"])
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=10, length=0)


def _trajectory_panel(
    axes: Axes, distance: NDArray[np.float64], errors: NDArray[np.float64], score: Mapping[str, Any]
) -> None:
    axes.plot(distance, errors, color=OURS, lw=2)
    axes.fill_between(distance, errors, color=OURS, alpha=0.18)
    axes.set_ylim(0, max(float(errors.max()) * 1.15, 0.05))
    axes.set_xlim(float(distance[0]), max(float(distance[-1]), 1e-3))
    axes.set_ylabel("m", fontsize=10)
    axes.set_xlabel("m driven", fontsize=10, labelpad=2)
    axes.set_title(
        f"position error: {number(score['end_drift'], 2)} % of the way at its end",
        fontsize=12,
        loc="left",
    )


def _depth_panel(axes: Axes, metrics: Mapping[str, Any]) -> None:
    depth = metrics.get("depth") or metrics["lidar_depth"]
    names = [name for name, score in depth["ranges"].items() if score["pixels"]]
    scores = [depth["ranges"][name] for name in names]
    bars = axes.bar(
        range(len(names)), [100 * score["abs_rel"] for score in scores], color="#ffb454", width=0.55
    )
    axes.bar_label(
        bars,
        [number(100 * score["abs_rel"], 1) for score in scores],
        color=TEXT,
        fontsize=10,
        padding=2,
    )
    axes.margins(y=0.25)
    axes.set_xticks(range(len(names)), [f"{name.replace('-inf', '+')} m" for name in names])
    axes.set_ylabel("AbsRel, %", fontsize=10)
    axes.grid(axis="x", visible=False)
    other = axes.twinx()
    other.plot(
        range(len(names)),
        [100 * score["coverage"] for score in scores],
        "o-",
        color="#7ee787",
        lw=1.6,
        ms=5,
    )
    other.set_ylim(0, 105)
    other.set_ylabel("coverage, %", fontsize=10, color="#7ee787")
    other.tick_params(labelsize=10, length=0, colors="#7ee787")
    other.grid(False)
    for spine in other.spines.values():
        spine.set_visible(False)
    axes.set_title(
        "depth error by range" + ("" if "depth" in metrics else " (against lidar)"),
        fontsize=12,
        loc="left",
    )


def _movers_panel(axes: Axes, metrics: Mapping[str, Any]) -> None:
    entries: list[tuple[str, float]] = []
    if (masks := metrics.get("masks")) and masks["movers"]:
        entries += [
            ("mask IoU", masks["iou"]),
            ("mask precision", masks["precision"]),
            ("mask recall", masks["recall"]),
        ]
    if (objects := metrics.get("objects")) and objects["movers"]:
        entries += [
            ("objects: precision", objects["precision"]),
            ("objects: recall", objects["recall"]),
        ]
    values = [value if value is not None and math.isfinite(value) else 0.0 for _, value in entries]
    pink = tuple(c / 255 for c in MASK)
    bars = axes.barh(
        range(len(entries)),
        values,
        color=[pink if name.startswith("mask") else "#c792ea" for name, _ in entries],
        height=0.6,
    )
    axes.bar_label(
        bars, [number(value, 2) for _, value in entries], color=TEXT, fontsize=10, padding=4
    )
    axes.set_yticks(range(len(entries)), [name for name, _ in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.grid(axis="y", visible=False)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.03, box.y0, box.width - 0.03, box.height))
    marked = (
        f", {number(100 * masks['static_marked'], 2)} % of static pixels marked" if masks else ""
    )
    axes.set_title(f"dynamic objects{marked}", fontsize=12, loc="left")


def _latency_panel(axes: Axes, latency: Mapping[str, Mapping[str, float]]) -> None:
    stages = [name for name in latency if name != "step"]
    p50, p95 = [latency[name]["p50"] for name in stages], [latency[name]["p95"] for name in stages]
    axes.barh(range(len(stages)), p95, color="#3b4454", height=0.6)
    bars = axes.barh(range(len(stages)), p50, color=OURS, height=0.6)
    axes.bar_label(bars, [f"{value:.1f}" for value in p50], color=TEXT, fontsize=10, padding=4)
    axes.set_yticks(range(len(stages)), stages)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.03, box.y0, box.width - 0.03, box.height))
    axes.set_title("latency per stage, ms: median (grey: p95)", fontsize=12, loc="left")
