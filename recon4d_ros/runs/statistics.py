"""What a run took: latency percentiles per stage, rate and memory, gathered at bounded cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import psutil

if (
    TYPE_CHECKING
):  # exporters measure their memory with this file: it must not bring in more than it needs
    from recon4d_ros.mapping import Mapper


@dataclass
class RunStatistics:
    """Per-stage seconds of every frame set, kept whole for exact percentiles (8 bytes a stage: 60
    kB for a 2,000-set drive)."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, list[float]] = field(default_factory=dict)
    memory_fill: float = 0.0

    def add(self, latency: Mapping[str, float], memory_fill: float) -> None:
        for stage, seconds in latency.items():
            self.stages.setdefault(stage, []).append(seconds)
        self.stages.setdefault("step", []).append(sum(latency.values()))
        self.memory_fill = memory_fill

    @property
    def frames(self) -> int:
        return len(self.stages.get("step", ()))

    def summary(self) -> dict:
        """Rates in frame sets/s, latencies in milliseconds, memory in MiB."""
        wall = time.perf_counter() - self.started
        steps = float(np.sum(self.stages.get("step", [0.0])))
        return {
            "frames": self.frames,
            "rate_step_hz": round(self.frames / steps, 2) if steps else 0.0,
            "rate_wall_hz": round(self.frames / wall, 2),
            "latency_ms": {stage: percentiles(values) for stage, values in self.stages.items()},
            "memory_fill": round(self.memory_fill, 4),
            "peak_rss_mib": round(peak_rss_mib(), 1),
        }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: mean, p50, p95, max."""
    values = np.asarray(seconds) * 1e3
    return {
        "mean": round(float(values.mean()), 2),
        "p50": round(float(np.percentile(values, 50)), 2),
        "p95": round(float(np.percentile(values, 95)), 2),
        "max": round(float(values.max()), 2),
    }


def map_losses(mapper: Mapper) -> dict[str, int]:
    """What the map could not keep of this drive: reason -> voxels (one that is refused again is
    counted again). Empty if it kept all."""
    spilled = mapper._spill.lost if mapper._spill else 0
    counts = {
        "no room in the map (mapping.max_voxels)": mapper.refused,
        "no room on the disk for what left the radius": spilled,
    }
    return {reason: count for reason, count in counts.items() if count}


def peak_rss_mib() -> float:
    """The most resident memory this program had, MiB (unlike getrusage's, without what the process
    was before it became this program)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def rss_mib() -> float:
    """Resident memory of this process, MiB."""
    return psutil.Process().memory_info().rss / 2**20
