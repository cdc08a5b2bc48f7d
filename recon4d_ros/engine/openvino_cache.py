"""What OpenVINO made of a model, kept in the user's cache folder: the next start takes a quarter of
the time. Not OpenVINO's own CACHE_DIR, which neither notices a damaged file nor bounds its
folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import openvino as ov

from recon4d_ros import paths

LARGEST = 32 << 20  # bytes of model: a larger one is run, not started, for long
KEPT = 256 << 20  # bytes of all files, of 2 to 6 MB each for the shipped engines
_DIGEST = 32  # bytes: SHA-256 of what follows


def compiled(
    core: ov.Core, graph: ov.Model, model: Path, digest: str, config: Mapping[str, str]
) -> ov.CompiledModel:
    """`graph`, read from `model` and at its sizes, compiled for the CPU, or read from the cache: it
    computes the same numbers, bit by bit. digest: a checksum of all that the graph was read from;
    empty: nothing is kept."""
    file = _file(core, graph, digest, config)
    if not digest or file is None or model.stat().st_size > LARGEST:
        return core.compile_model(graph, "CPU", dict(config))
    if kept := _read(file):
        with contextlib.suppress(RuntimeError):  # then it is made anew
            return core.import_model(kept, "CPU", dict(config))
    made = core.compile_model(graph, "CPU", dict(config))
    with contextlib.suppress(OSError, RuntimeError):  # to be without costs time, no more
        blob = io.BytesIO()
        made.export_model(blob)
        _write(file, blob.getvalue())
    return made


def _file(core: ov.Core, graph: ov.Model, digest: str, config: Mapping[str, str]) -> Path | None:
    """Named by all that decides what OpenVINO makes of a model; None where there is no home."""
    limits = {name: value for name, value in os.environ.items() if name.endswith("_MAX_CPU_ISA")}
    said = (
        ov.get_version(),
        digest,
        [(port.get_any_name(), str(port.get_partial_shape())) for port in graph.inputs],
        sorted(config.items()),
        sorted(limits.items()),
        _processor(core),
        len(os.sched_getaffinity(0)),
    )
    name = hashlib.sha256(repr(said).encode()).hexdigest()[:32]
    try:
        return paths.cache() / "openvino" / f"{name}.blob"
    except RuntimeError:  # a user without an entry, as in a container
        return None


def _processor(core: ov.Core) -> tuple[str, ...]:
    """What it is and can do. Virtual machines hide its name, not its instructions."""
    flags = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    name = core.get_property("CPU", "FULL_DEVICE_NAME")
    return name, platform.machine(), flags, *sorted(capabilities)


def _read(file: Path) -> bytes:
    """The blob; nothing where the file is missing or damaged."""
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            os.utime(file)
            return data[_DIGEST:]
    return b""


def _write(file: Path, blob: bytes) -> None:
    """Whole or not at all, also where another process writes the same; where there are more bytes
    than KEPT, those unused the longest go, and this one stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        new.write_bytes(hashlib.sha256(blob).digest() + blob)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    room = KEPT - file.stat().st_size
    others = [(path.stat(), path) for path in file.parent.iterdir() if path != file]
    for stat, path in sorted(others, key=lambda one: one[0].st_mtime, reverse=True):
        room -= stat.st_size
        if room < 0:
            path.unlink(missing_ok=True)
