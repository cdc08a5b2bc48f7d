"""A run's numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Tree = Mapping[str, Any]
_REASONS = 6  # of each kind are told


def format_report(summary: Tree) -> str:
    """Text of what summary.json holds, or of `evaluate_run`'s metrics alone. What was not measured
    is not mentioned."""
    metrics: Tree = summary.get("metrics", summary if "frames" not in summary else {})
    return "\n".join([*_run_lines(summary), *_metric_lines(metrics)])


def nothing_usable(summary: Tree) -> str:
    """ "" or, of a run that could use no image at all, the sentence that says why."""
    if summary["images_used"]:
        return ""
    what = (
        f"no image of its {summary['frames']} frame sets could be used"
        if summary["frames"]
        else "no frame set came together"
    )
    return (
        f"bag {summary['bag']}: {what}:"
        f" {most_frequent({**summary['drops'], **summary.get('undecodable', {})})}"
    )


def nothing_tracked(summary: Tree) -> str:
    """ "" or, of a run in which not one of several frame sets was tracked, the sentence that says
    so: its trajectory and map mean nothing."""
    if summary["frames"] < 2 or summary["not_tracking"] < summary["frames"]:
        return ""
    clocks = [note for note in summary.get("notes", ()) if note.startswith("clocks of ")]
    return "; ".join(
        [
            f"bag {summary['bag']}: none of its {summary['frames']} frame sets was tracked:"
            f" {most_frequent({**summary.get('not_tracked', {}), **summary['drops']})}",
            *clocks,
        ]
    )


def most_frequent(counts: Mapping[str, int], most: int = 3) -> str:
    """Reasons in one line: `4 x left: too late, 1 x ...`."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    more = f", and {len(ordered) - most} other reasons" if len(ordered) > most else ""
    return (
        ", ".join(f"{count} x {reason}" for reason, count in ordered[:most])
        or "no reason was counted"
    ) + more


def _run_lines(summary: Tree) -> Iterator[str]:
    if "frames" not in summary:
        return
    if warning := summary.get("engine", {}).get("warning"):
        yield f"WARNING      {warning}"
    rate = f" at {summary['rate_step_hz']:.1f} frame sets/s" if "rate_step_hz" in summary else ""
    memory = f", {summary['peak_rss_mib']:.0f} MiB at most" if "peak_rss_mib" in summary else ""
    yield f"run          {summary['frames']} frame sets{rate}{memory}"
    if lost := summary.get("not_tracking"):
        yield f"not tracked  {lost} of {summary['frames']} frame sets"
        yield from _count_lines("", summary.get("not_tracked") or {})
    for title, key in (
        ("not used", "drops"),
        ("undecodable", "undecodable"),
        ("no stamp", "stamps_replaced"),
        ("odometry", "odometry_dropped"),
        ("map lost", "map_lost"),
    ):
        yield from _count_lines(title, summary.get(key) or {})
    for note in summary.get("notes", ()):
        yield f"note         {note}"
    stages = summary.get("latency_ms", {})
    if stages:
        yield (
            "latency      "
            + "  ".join(f"{name} {values['p50']:.1f}" for name, values in stages.items())
            + "  (ms, median)"
        )
    for scale in filter(None, summary.get("engine", {}).get("metres_per_unit", ())):
        yield (
            f"scale        {scale['value']:.4g} +- {scale['sigma']:.2g} m per unit of the network"
            f" ({scale['observations']} baselines)"
        )
    if "map_points" in summary:
        yield f"map          {summary['map_points']:,} points"


def _count_lines(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    """What was lost and why, the most frequent first; beyond a few the rest in one."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    for reason, count in ordered[:_REASONS]:
        yield f"{title:<13}{count} x {reason}"
        title = ""
    if rest := ordered[_REASONS:]:
        yield (
            f"{'':<13}{sum(count for _, count in rest)} x {len(rest)} other reasons (summary.json"
            " has them)"
        )


def _metric_lines(metrics: Tree) -> Iterator[str]:
    if score := metrics.get("trajectory"):
        yield (
            f"trajectory   ATE {score['ate_first']:.2f} m ({score['ate']:.2f} m best fit), drift"
            f" {_percent(score['end_drift'], True)} of {score['path']:.0f} m, segments"
            f" {_percent(score['segment_drift'], True)}, RPE {100 * score['rpe_translation']:.1f}"
            f" cm {score['rpe_rotation']:.3f} deg"
        )
    for name, title in (("depth", "depth"), ("lidar_depth", "depth/lidar")):
        if score := metrics.get(name):
            yield from _depth_lines(title, score)
    if score := metrics.get("masks"):
        yield (
            f"masks        IoU {_number(score['iou'])}, precision {_number(score['precision'])},"
            f" recall {_number(score['recall'])}, static marked {_percent(score['static_marked'])}"
            f" ({score['movers']} dynamic objects)"
        )
    if score := metrics.get("objects"):
        yield (
            f"objects      MOTA {_number(score['mota'])}, precision {_number(score['precision'])},"
            f" recall {_number(score['recall'])}, {score['switches']} id switches, velocity error"
            f" {_number(score['velocity_error'])} m/s, position {_number(score['position_error'])}"
            f" m ({score['movers']} sightings)"
        )
    if score := metrics.get("map_swept"):
        yield (
            f"map, dynamic {_percent(score['share'])} of {score['points']:,} points where dynamic"
            " objects drove"
        )
    if score := metrics.get("cloud"):
        yield (
            f"map, cloud   accuracy {_number(score['accuracy'])} m ({_percent(score['precision'])}"
            f" within {score['threshold']:g} m), completion {_number(score['completion'])} m"
            f" ({_percent(score['recall'])})"
        )
    if score := metrics.get("grid"):
        yield (
            f"grid         {_percent(score['free_occupied'])} of {score['free']:,} free cells are"
            f" occupied, {_percent(score['found_beside'])} of {score['occupied']:,} occupied ones"
            f" within 20 m found ({_percent(score['glimpsed_beside'])} of all"
            f" {score['glimpsed']:,} that were ever in view), {_percent(score['blocked'])} of the"
            " road in view is blocked"
        )
    if score := metrics.get("local_grid"):
        yield (
            f"local grid   {_percent(score['free_occupied'])} of the free cells are occupied,"
            f" {_percent(score['movers_found'])} of {score['movers']:,} cells of dynamic objects"
            " within 20 m found"
        )


def _depth_lines(title: str, score: Tree) -> Iterator[str]:
    def line(values: Tree) -> str:
        return (
            f"AbsRel {_number(values['abs_rel'])}  RMSE {values['rmse']:.2f} m  delta"
            f" {_number(values['delta1'])}  coverage {_number(values['coverage'])}"
        )

    yield f"{title:<13}< 40 m: {line(score['near'])}"
    if "near_confident" in score:
        yield f"{'':<13}< 40 m, confident: {line(score['near_confident'])}"
    for name, values in score["ranges"].items():
        if values["pixels"]:
            yield f"{'':<13}{name + ' m':<9} {line(values)}"
    if len(score["cameras"]) > 1:
        for name, values in score["cameras"].items():
            yield f"{'':<13}{name}: {line(values)}"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3f}"


def _percent(value: float, already: bool = False) -> str:
    return "none" if math.isnan(value) else f"{value if already else 100 * value:.2f} %"
