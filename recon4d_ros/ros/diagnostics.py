"""The node's health as numbers, and as /diagnostics and ~/status say it: rates, latencies, drops
and why, tracking, memory, engine."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from recon4d_msgs.msg import Status

from recon4d_ros.ros.conversions import header
from recon4d_ros.tally import Tally
from recon4d_ros.types import Reconstruction, Tracking

BUSY = "a newer frame set came before it was free"
NO_POSE = "the pose was not usable"
SLOW = 10.0  # seconds of one step of an engine beside the reconstruction after which it is said
NOTES = 40  # sentences kept
WINDOW = 5.0  # seconds that rates and latencies are taken over
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_TRACKING = {
    Tracking.STARTING: Status.STARTING,
    Tracking.TRACKING: Status.TRACKING,
    Tracking.DEGRADED: Status.DEGRADED,
    Tracking.LOST: Status.LOST,
}


class Rate:
    """Events per second over the last WINDOW."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1000)
        self.total = 0

    def tick(self) -> None:
        self._times.append(time.monotonic())
        self.total += 1

    def __call__(self) -> float:
        times = list(self._times)
        recent = [t for t in times if t > time.monotonic() - WINDOW]
        return (
            (len(recent) - 1) / (recent[-1] - recent[0])
            if len(recent) > 1 and recent[-1] > recent[0]
            else 0.0
        )

    def silence(self) -> float:
        """Seconds since the last event; infinite if there was none."""
        return time.monotonic() - self._times[-1] if self._times else float("inf")


@dataclass(frozen=True)
class EngineInfo:
    name: str
    runtime: str
    device: str
    warning: str = ""  # what everyone who sees its results has to know first


class EngineBeside(Protocol):
    """An engine beside the reconstruction, as side_engine.SideEngine counts it."""

    name: str
    fault: str
    warnings: tuple[str, ...]
    device: str
    latency: float
    steps: Rate
    skipped: int
    without_pose: int
    failed: int

    @property
    def loading(self) -> bool: ...
    @property
    def busy(self) -> float: ...


class Health:
    """Everything that /diagnostics and ~/status are made of."""

    def __init__(self, cameras: tuple[str, ...]) -> None:
        self.cameras = cameras
        self.drops = Tally()
        self.images = {name: Rate() for name in cameras}
        self.unstamped: Counter[str] = (
            Counter()
        )  # by camera: images without a time stamp, used with their reception's
        self.frame_sets = Rate()
        self.tracking = Tracking.STARTING
        self.reason = "no frame set yet"
        self.engine = EngineInfo("", "", "")
        self.memory_fill = 0.0
        # MiB in use on the GPU and MiB there are: 0 where the engine runs on the CPU, NaN not known
        self.gpu_memory = (0.0, 0.0)
        self.map_voxels = 0
        self.map_losses: Mapping[str, int] = {}  # what the map had no room for: reason -> voxels
        self.objects = 0
        self.troubles: Mapping[str, tuple[str, ...]] = {}  # camera -> what is wrong with its images
        # what had to be made of the inputs: sentence -> whether something is lost by it
        self.notes: dict[str, bool] = {}
        self.beside: tuple[EngineBeside, ...] = ()  # engines beside the reconstruction
        self.restarts = 0  # engines that were given up as stuck
        self.present = [False] * len(cameras)
        self._stages: dict[str, deque[float]] = {}
        self._cpu: dict[str, deque[float]] = {}
        self._latency: deque[float] = deque(maxlen=200)
        self._process = psutil.Process()

    def reset(self) -> None:
        """A new drive begins; counts of drops and images stay, they are of the process."""
        self.frame_sets = Rate()
        self.tracking, self.reason = Tracking.STARTING, "reset"
        self.map_losses = {}

    def note(self, sentence: str, lossy: bool = False) -> bool:
        """Keep a sentence about what had to be made of the inputs; whether it is new. lossy:
        something is not used because of it."""
        new = sentence not in self.notes and len(self.notes) < NOTES
        if new:
            self.notes[sentence] = lossy
        return new

    def done(
        self,
        result: Reconstruction,
        stages: Mapping[str, float],
        cpu: Mapping[str, float],
        latency: float,
        voxels: int,
    ) -> None:
        """One frame set published.

        stages: seconds per stage, publication among them. cpu: processor seconds of the process in
        the same stages. latency: last image's reception to publication.
        """
        self.frame_sets.tick()
        self.tracking, self.reason = result.pose.tracking, result.pose.reason
        self.memory_fill, self.map_voxels = result.memory_fill, voxels
        self.objects = len(result.motion.objects)
        self.troubles = result.troubles
        self.present = [bool(value) for value in result.frame.present]
        self._latency.append(latency)
        for kept, now in ((self._stages, stages), (self._cpu, cpu)):
            for name, seconds in now.items():
                kept.setdefault(name, deque(maxlen=200)).append(seconds)

    def rss(self) -> float:
        """Resident memory, MiB."""
        return self._process.memory_info().rss / 2**20

    def host_overhead(self) -> float:
        """Median seconds per camera and frame set spent outside the engine, as the wall's clock has
        it."""
        return self._outside_engine(self._stages)

    def host_cpu(self) -> float:
        """Median processor seconds of this process per camera and frame set outside the engine.
        Where this is far below the overhead, the node waited: others use the same cores."""
        return self._outside_engine(self._cpu)

    def _outside_engine(self, stages: Mapping[str, Iterable[float]]) -> float:
        return sum(median(times) for name, times in stages.items() if name != "engine") / max(
            len(self.cameras), 1
        )

    def status_msg(self, stamp_ns: int, frame: str, *, paused: bool) -> Status:
        message = Status(
            header=header(stamp_ns, frame),
            tracking=Status.PAUSED if paused else _TRACKING[self.tracking],
        )
        message.reason = (
            "paused" if paused else "" if self.tracking is Tracking.TRACKING else self.reason
        )
        name = (
            f"{self.engine.name} ({self.engine.warning})"
            if self.engine.warning
            else self.engine.name
        )
        message.engine, message.runtime, message.device = (
            name,
            self.engine.runtime,
            self.engine.device,
        )
        message.frame_sets, message.rate = self.frame_sets.total, float(self.frame_sets())
        message.latency = float(self._latency[-1]) if self._latency else 0.0
        message.stages = list(self._stages)
        message.stage_latency = [float(times[-1]) for times in self._stages.values()]
        message.cameras, message.present = list(self.cameras), self.present
        drops = sorted(self.drops().items())
        left_out = [
            (f"{one.name}: {reason}", count)
            for one in self.beside
            for reason, count in ((BUSY, one.skipped), (NO_POSE, one.without_pose))
            if count
        ]
        message.drop_reasons = [f"{source}: {reason}" for (source, reason), _ in drops]
        message.drop_counts = [count for _, count in drops]
        message.drop_reasons = [*message.drop_reasons, *(reason for reason, _ in left_out)]
        message.drop_counts = [*message.drop_counts, *(count for _, count in left_out)]
        message.memory_fill, message.map_voxels, message.objects = (
            float(self.memory_fill),
            int(self.map_voxels),
            self.objects,
        )
        message.gpu_memory, message.gpu_memory_total = self.gpu_memory
        message.rss = float(self.rss())
        return message

    def diagnostics_msg(
        self,
        stamp_ns: int,
        node: str,
        *,
        state: str,
        waiting: Iterable[str],
        paused: bool,
        silence: float,
        namesakes: int = 0,
    ) -> DiagnosticArray:
        """One status per concern, named `<node>: <concern>`.

        waiting: what the node still needs. silence: seconds until a camera is said to be silent.
        namesakes: other nodes of the same name.
        """
        device = self.engine.device or "none"

        def status(name: str, level: bytes, message: str, **values: object) -> DiagnosticStatus:
            pairs = [
                KeyValue(key=key.replace("_", " "), value=str(value))
                for key, value in values.items()
            ]
            return DiagnosticStatus(
                name=f"{node}: {name}",
                level=level,
                message=message,
                hardware_id=device,
                values=pairs,
            )

        out = [self._node_status(status, state, list(waiting), paused)]
        if namesakes:
            out.append(
                status(
                    "name",
                    WARN,
                    f"{namesakes} more node(s) of the same name run: topics and services are"
                    " answered by each of them; stop one, or remap its name with -r __node:=NAME",
                )
            )
        faults = [self.engine.warning] if self.engine.warning else []
        if self.restarts:
            faults.append(f"was stuck and started anew, {self.restarts} time(s)")
        if faults:
            out.append(status("engine", WARN, "; ".join(faults), restarts=self.restarts))
        out += [self._beside_status(status, one) for one in self.beside]
        running = state == "active" and not paused
        if running:
            out.append(self._tracking_status(status))
        out.append(
            status(
                "latency",
                OK,
                f"{1e3 * percentile(self._latency, 50):.0f} ms in the median",
                p50_ms=f"{1e3 * percentile(self._latency, 50):.1f}",
                p95_ms=f"{1e3 * percentile(self._latency, 95):.1f}",
                host_overhead_per_camera_ms=f"{1e3 * self.host_overhead():.2f}",
                host_cpu_per_camera_ms=f"{1e3 * self.host_cpu():.2f}",
                **{
                    f"{name}_ms": f"{1e3 * median(times):.1f}"
                    for name, times in self._stages.items()
                },
                **{
                    f"{name}_cpu_ms": f"{1e3 * median(times):.1f}"
                    for name, times in self._cpu.items()
                },
            )
        )
        lost = "".join(
            f"; {count} voxels lost: {reason}" for reason, count in self.map_losses.items()
        )
        used, total = self.gpu_memory
        gpu = {"gpu_MiB": f"{used:.0f}", "gpu_total_MiB": f"{total:.0f}"} if total else {}
        out.append(
            status(
                "memory",
                WARN if lost else OK,
                f"{100 * self.memory_fill:.0f} % of the pointers in use{lost}",
                pointers=f"{self.memory_fill:.3f}",
                map_voxels=self.map_voxels,
                map_voxels_lost=sum(self.map_losses.values()),
                rss_MiB=f"{self.rss():.0f}",
                **gpu,
            )
        )
        drops = self.drops()
        out += [self._camera_status(status, name, drops, running, silence) for name in self.cameras]
        others = {
            f"{source}: {reason}": count
            for (source, reason), count in drops.items()
            if source not in self.cameras
        }
        out.append(
            status(
                "inputs",
                WARN if others else OK,
                f"{sum(others.values())} not used" if others else "all used",
                **others,
            )
        )
        if notes := dict(self.notes):
            out.append(
                status(
                    "notes",
                    WARN if any(notes.values()) else OK,
                    "; ".join(notes),
                    **{f"note {number}": note for number, note in enumerate(notes, 1)},
                )
            )
        return DiagnosticArray(header=header(stamp_ns, ""), status=out)

    def _node_status(
        self, status, state: str, waiting: list[str], paused: bool
    ) -> DiagnosticStatus:
        values = {
            "state": state,
            "engine": self.engine.name,
            "runtime": self.engine.runtime,
            "device": self.engine.device,
            "frame_sets": self.frame_sets.total,
            "rate_Hz": f"{self.frame_sets():.2f}",
        }
        if waiting:
            return status("node", WARN, f"waiting for {'; '.join(waiting)}", **values)
        if paused:
            return status("node", WARN, "paused", **values)
        return status(
            "node",
            OK if state == "active" else WARN,
            f"{state}, {self.frame_sets():.1f} frame sets/s",
            **values,
        )

    def _beside_status(self, status, one: EngineBeside) -> DiagnosticStatus:
        said = [*([one.fault] if one.fault else []), *one.warnings]
        if one.loading:
            said.append("it is being loaded")
        elif one.busy > SLOW:
            said.append(f"it has been at one step for {one.busy:.0f} s")
        rate = f"{one.steps():.1f} steps/s, {1e3 * one.latency:.0f} ms each"
        return status(
            one.name,
            WARN if said else OK,
            "; ".join([*said, *([rate] if one.steps.total else [])]) or "no step yet",
            device=one.device,
            steps=one.steps.total,
            rate_Hz=f"{one.steps():.2f}",
            latency_ms=f"{1e3 * one.latency:.1f}",
            frame_sets_left_out=one.skipped,
            without_pose=one.without_pose,
            failed_steps=one.failed,
        )

    def _tracking_status(self, status) -> DiagnosticStatus:
        level = {
            Tracking.TRACKING: OK,
            Tracking.STARTING: WARN,
            Tracking.DEGRADED: WARN,
            Tracking.LOST: ERROR,
        }[self.tracking]
        text = (
            self.tracking.value
            if self.tracking is Tracking.TRACKING or not self.reason
            else f"{self.tracking.value}: {self.reason}"
        )
        return status("tracking", level, text, objects=self.objects)

    def _camera_status(
        self, status, name: str, drops: Mapping[tuple[str, str], int], running: bool, silence: float
    ) -> DiagnosticStatus:
        mine = {reason: count for (source, reason), count in drops.items() if source == name}
        counts = ((sum(mine.values()), "dropped"), (self.unstamped[name], "without a time stamp"))
        losses = [f"{count} {what}" for count, what in counts if count]
        rate, quiet = self.images[name](), self.images[name].silence()
        if running and quiet > silence:
            level, text = (
                ERROR,
                "no image yet" if quiet == float("inf") else f"silent for {quiet:.1f} s",
            )
        elif losses or name in self.troubles:
            said = [*losses, *self.troubles.get(name, ())]
            level, text = WARN, f"{rate:.1f} images/s, {', '.join(said)}"
        else:
            level, text = OK, f"{rate:.1f} images/s"
        return status(
            f"camera {name}",
            level,
            text,
            images=self.images[name].total,
            without_stamp=self.unstamped[name],
            **mine,
        )


def median(values: Iterable[float]) -> float:
    return percentile(values, 50)


def percentile(values: Iterable[float], percent: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
