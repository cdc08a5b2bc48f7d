"""docs/benchmarks.md from benchmarks/results/*.json: every number beside its bar, met or not, with
machine and date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = """# Benchmarks

Measured by `make bench` (benchmarks/run.py), one process per measurement; this page is generated from benchmarks/results/.
Nothing here is from a GPU: docs/gpu.md is. Measured before the ego-motion of 2026-11-27.
Why a bar is missed is said in [notes](benchmarks_notes.md).

| what | measured | bar | met | where, when |
|---|---|---|---|---|
"""  # noqa: E501


@dataclass(frozen=True)
class Row:
    what: str
    measured: str
    bar: str = ""
    met: bool | None = None

    def line(self, where: str) -> str:
        return (
            f"| {self.what} | {self.measured} | {self.bar} |"
            f" {'' if self.met is None else 'yes' if self.met else '**no**'} | {where} |"
        )


def write(results: Path) -> str:
    """The page. A measurement that was not made has no rows."""
    lines, tables = [], []
    for name, rows, table in SECTIONS:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        stored = json.loads(path.read_text())
        where = f"{stored['machine']}, {stored['date']}"
        lines += [row.line(where) for row in rows(stored["result"])]
        if table:
            tables.append(table(stored["result"]))
    return HEAD + "\n".join(lines) + "\n" + "".join(tables)


def kitti(result: dict) -> Iterator[Row]:
    ours, theirs = result["ours"], result["opencv"]
    score, other = ours["metrics"]["trajectory"], theirs["trajectory"]
    engine, rate = ours["latency_ms"]["engine"]["p50"], ours["rate_step_hz"]
    yield Row(
        "kitti_stereo_a, drift at the end",
        f"{score['end_drift']:.2f} % (OpenCV {other['end_drift']:.2f} %)",
        "≤ 1.0 %",
        score["end_drift"] <= 1,
    )
    yield Row(
        "kitti_stereo_a, ATE, best fit (first pose aligned)",
        f"{score['ate']:.2f} m ({score['ate_first']:.2f} m; OpenCV {other['ate']:.2f} m,"
        f" {other['ate_first']:.2f} m)",
        "≤ 0.30 m",
        score["ate"] <= 0.30,
    )
    yield Row(
        "kitti_stereo_a, frame sets/s, decoding included",
        f"{rate:.1f} (OpenCV {theirs['rate_hz']:.1f})",
        "≥ 8",
        rate >= 8,
    )
    yield Row("kitti_stereo_a, engine, median", f"{engine:.1f} ms", "≤ 60 ms", engine <= 60)


def ddad(result: dict) -> Iterator[Row]:
    score = result["metrics"]["lidar_depth"]
    sure, near = score["near_confident"], score["near"]
    yield Row(
        "ddad_surround, < 40 m, confident (over 0.5)",
        f"AbsRel {sure['abs_rel']:.3f}, delta {sure['delta1']:.3f}, coverage"
        f" {sure['coverage']:.3f}",
        "AbsRel ≤ 0.15",
        sure["abs_rel"] <= 0.15,
    )
    yield Row(
        "ddad_surround, < 40 m, all",
        f"AbsRel {near['abs_rel']:.3f}, delta {near['delta1']:.3f}, coverage"
        f" {near['coverage']:.3f}",
    )


def nuscenes(result: dict) -> Iterator[Row]:
    near = result["metrics"]["lidar_depth"]["near"]
    yield Row(
        "nuscenes_sample, < 40 m (one frame set: overlaps only)",
        f"AbsRel {near['abs_rel']:.3f}, coverage {near['coverage']:.3f}",
    )


def simulated_stereo(result: dict) -> Iterator[Row]:
    near = result["metrics"]["depth"]["near"]
    yield Row(
        "simulated stereo, static, < 40 m",
        f"AbsRel {near['abs_rel']:.3f}, coverage {near['coverage']:.3f}",
        "≤ 0.035 at ≥ 0.90",
        near["abs_rel"] <= 0.035 and near["coverage"] >= 0.90,
    )
    yield from _movers("simulated stereo", result)


def simulated_surround(result: dict) -> Iterator[Row]:
    near, sure = (
        result["metrics"]["depth"]["near"],
        result["metrics"]["depth"].get("near_confident"),
    )
    text = f"AbsRel {near['abs_rel']:.3f}, coverage {near['coverage']:.3f}"
    yield Row(
        "six simulated cameras, static, < 40 m",
        text + (f"; confident: {sure['abs_rel']:.3f}, {sure['coverage']:.3f}" if sure else ""),
    )
    yield from _movers("six simulated cameras", result)


def held_out_surround(result: dict) -> Iterator[Row]:
    yield from _movers("six simulated cameras, a held-out drive", result)


def _movers(what: str, result: dict) -> Iterator[Row]:
    metrics = result["metrics"]
    masks, swept, score = metrics["masks"], metrics["map_swept"], metrics["trajectory"]
    yield Row(
        f"{what}, movers' mask IoU",
        f"{masks['iou']:.3f} ({masks['movers']} sightings)",
        "≥ 0.5",
        masks["iou"] >= 0.5,
    )
    yield Row(
        f"{what}, static pixels marked",
        f"{100 * masks['static_marked']:.2f} %",
        "< 2 %",
        masks["static_marked"] < 0.02,
    )
    yield Row(
        f"{what}, map points where movers drove",
        f"{100 * swept['share']:.2f} % of {swept['points']:,}",
        "< 1 %",
        swept["share"] < 0.01,
    )
    yield Row(
        f"{what}, no odometry",
        f"drift {score['end_drift']:.2f} % of {score['path']:.0f} m, ATE {score['ate']:.2f} m;"
        f" {result['rate_step_hz']:.1f} frame sets/s",
    )


def endurance(what: str) -> Any:
    def rows(result: dict) -> Iterator[Row]:
        slower = result["step_ms_late"] / result["step_ms_early"] - 1
        grown = result["rss_mib_end"] - result["rss_mib_warm"]
        yield Row(
            f"2,000 frame sets, {what}: step of the last 100 against sets 100 to 200",
            f"{result['step_ms_late']:.1f} against {result['step_ms_early']:.1f} ms"
            f" ({slower:+.1%})",
            "within 10 %",
            abs(slower) <= 0.10,
        )
        yield Row(
            f"2,000 frame sets, {what}: resident memory after warm-up",
            f"{grown:+.1f} MiB to {result['rss_mib_end']:.0f}",
            "< +50 MB",
            grown < 47.7,
        )

    return rows


def graph(result: dict) -> Iterator[Row]:
    for rate, heard in result.items():
        reasons: dict[str, int] = {}
        for entry, count in heard["drops"].items():  # "camera: reason"
            reason = entry.split(": ", 1)[-1]
            reasons[reason] = reasons.get(reason, 0) + count
        drops = (
            "; ".join(f"{count} images dropped: {reason}" for reason, count in reasons.items())
            or "no drops"
        )
        yield Row(
            f"six cameras over DDS at {rate} x real time",
            f"p50 {heard['latency_p50_ms']:.0f} ms, p95 {heard['latency_p95_ms']:.0f} ms from"
            f" reception to publication; {heard['frame_sets']} frame sets; engine"
            f" {heard['engine_p50_ms']:.0f} ms; {drops}",
        )
        yield Row(
            f"the same: host outside the engine, per camera, median (p95), at {rate} x",
            f"{heard['host_per_camera_p50_ms']:.2f} ms ({heard['host_per_camera_p95_ms']:.2f})"
            + (
                f"; of processor time {heard['host_cpu_per_camera_p50_ms']:.2f} ms"
                if "host_cpu_per_camera_p50_ms" in heard
                else ""
            ),
            "< 5 ms",
            heard["host_per_camera_p50_ms"] < 5,
        )


def point3r(run: dict) -> Iterator[Row]:
    authors = 1e3 * sum(run["authors_seconds"].values())
    drift = run["frame_100_ms"] / run["frame_10_ms"] - 1
    pointers = run["pointers"]
    bar = pointers == 1024  # the bars are for this capacity, the others are for the table
    yield Row(
        f"Point3R at its published size, 224x224, {pointers} pointers, fp32, {run['runtime']}:"
        " frame 8, best of ten",
        f"{run['frame_8_ms']:.0f} ms; the authors' code on another machine {authors:.0f}:"
        f" {authors / run['frame_8_ms']:.2f} x",
        "≥ 1.3 x" if bar else "",
        authors / run["frame_8_ms"] >= 1.3 if bar else None,
    )
    yield Row(
        f"the same, {pointers} pointers: frame 100 against frame 10",
        f"{run['frame_100_ms']:.0f} against {run['frame_10_ms']:.0f} ms ({drift:+.1%})",
        "within 5 %",
        abs(drift) <= 0.05,
    )
    yield Row(
        f"the same, {pointers} pointers: peak memory, exporting and running",
        f"{run['export_peak_rss_mib'] / 1024:.1f} and {run['run_peak_rss_mib'] / 1024:.1f} GiB",
        "< 16 and < 8 GB",
        run["export_peak_rss_mib"] * 2**20 < 16e9 and run["run_peak_rss_mib"] * 2**20 < 8e9,
    )


def fusion_table(result: dict) -> str:
    """The two fusion rules over the drive."""
    rules = result["rules"]
    lines = [
        (
            f"\n## Point3R's fusion rules on a simulated drive of {result['metres']:.0f} m,"
            f" {result['capacity']} pointers, true positions\n"
        ),
        (
            "Per rule: pointers in use, threshold (m), median gap (m) from what is seen below 15 m"
            " to the nearest pointer from before.\n"
        ),
        "| metres driven | " + " | ".join(rules) + " |",
        "|---" * (len(rules) + 1) + "|",
    ]
    for rows in zip(*(rule["over_time"] for rule in rules.values()), strict=True):
        gaps = ("none" if row["gap_near"] is None else f"{row['gap_near']:.2f}" for row in rows)
        cells = (
            f"{row['pointers']}, {row['threshold']:.2f}, {gap}"
            for row, gap in zip(rows, gaps, strict=True)
        )
        lines.append(f"| {rows[0]['metres']:.0f} | " + " | ".join(cells) + " |")
    ties = "; ".join(
        f"{name}: "
        + ", ".join(f"{count} within {margin}" for margin, count in rule["near_ties"].items())
        + f" of {rule['offers']:,}"
        for name, rule in rules.items()
    )
    return (
        "\n".join(lines)
        + f"\n\nMerge decisions by their relative distance to the threshold (near-ties): {ties}.\n"
    )


def camera_table(result: dict) -> str:
    """Per camera and range, against lidar."""
    score = result["metrics"]["lidar_depth"]
    ranges = [name for name in score["ranges"] if score["ranges"][name]["pixels"]]
    cells = {
        camera: [score["camera_ranges"][camera][name] for name in ranges]
        for camera in score["cameras"]
    }
    lines = [
        f"| {camera} | "
        + " | ".join(
            f"{c['abs_rel']:.3f} / {c['delta1']:.2f} / {c['coverage']:.2f}" if c["pixels"] else ""
            for c in row
        )
        + " |"
        for camera, row in cells.items()
    ]
    head = (
        "\n## ddad_surround by camera and range: AbsRel / delta / coverage\n\n| camera | "
        + " | ".join(f"{name} m" for name in ranges)
        + " |\n"
    )
    return head + "|---" * (len(ranges) + 1) + "|\n" + "\n".join(lines) + "\n"


SECTIONS = (
    ("kitti", kitti, None),
    ("ddad", ddad, camera_table),
    ("nuscenes", nuscenes, None),
    ("simulated_stereo", simulated_stereo, None),
    ("simulated_surround", simulated_surround, None),
    ("held_out_surround", held_out_surround, None),
    ("graph", graph, None),
    ("point3r_512", point3r, None),
    ("point3r_1024", point3r, None),
    ("point3r_2048", point3r, None),
    ("fusion_rules", lambda result: iter(()), fusion_table),
    ("endurance_stereo", endurance("stereo"), None),
    ("endurance_surround", endurance("six cameras"), None),
)
