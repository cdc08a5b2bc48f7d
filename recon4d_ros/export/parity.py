"""Is what a runtime computes what PyTorch computes? The differences as numbers, and where they are
too large.

A learned network's outputs are smooth in its inputs: the relative norm of each output's difference
says it. The geometric network chooses planes: a pixel whose two best ones tie to the last bit may
choose the other one, so that the share of values that differ says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.engine.base import OBJECTS, STAND_IN, EngineSpec
from recon4d_ros.errors import EngineError

# learned: largest relative norm of any output's difference, each step from PyTorch's own memory,
# and in float32 largest typical difference. The norm has more room there: Dynamic-multiframe-depth
# puts its monocular depth into one of 32 bins, and where two tie to the sixth digit a few pixels
# take the other one (measured: norm 4.4e-3, typical 4e-5).
TOLERANCE = {"fp32": 0.01, "fp16": 0.02, "bf16": 0.02}
TYPICAL_FP32 = 1e-3
# learned, int8: the same for the typical difference. A norm would not do: where a network takes a
# depth from one over a number near zero, a few pixels at infinity are most of it (docs/export.md).
# What has nothing to do with the truth is off by more than half.
TYPICAL = 0.3
# stand-in weights, less than float32: a confidence that is the exponential of noise was off by 0.18
# in bf16; what is broken is off by 1
STAND_IN_TOLERANCE = 0.3
HOLES = {
    "fp32": 0.01,
    "fp16": 0.01,
    "bf16": 0.01,
    "int8": 0.05,
}  # learned: largest share of values that are none on one side only
# geometric: largest share of values of any output that differ (ties: 0.9 % at most in the shipped
# engines, measured)
OFF = 0.03
# geometric: a value differs when it is off by more than this: relative, or absolute for what is not
# named here
RELATIVE = {
    "depth": 0.01,
    "sigma": 0.05,
    "new_before_inverse": 0.01,
    "new_key_inverse": 0.01,
    "new_next_inverse": 0.01,
}
ABSOLUTE = {"confidence": 0.02, "color": 1.5}
# objects: what belongs to one row, its key first (the centre in metres, and what comes after it); a
# row without a partner whose key is that near is on one side only
ROWS = (
    ("boxes", "labels", "velocity", "scores", "class_scores", "ids"),
    ("new_instance_anchor", "new_instance_feature", "new_instance_confidence", "new_instance_id"),
)
# largest share of rows on one side only: two of the tests' 90 may tie
ALONE = {"fp32": 0.03, "fp16": 0.3, "bf16": 0.3}
NEAR = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.1}
MAY_BE_NONE = ("depth", "sigma", "confidence")  # outputs in which 0 says that there is none


def difference(name: str, got: NDArray, truth: NDArray, width: int) -> dict[str, float]:
    """max: largest absolute difference; relative: norm of it over the norm of the truth; typical:
    median of it over the truth's, where that is not 0; all leave out `holes`, the share of values
    that are none on one side only. off: share of values that are off by more than their name's
    tolerance. Not finite is infinitely off.

    width: of the working image, which numbers its pixels row by row.
    """
    a, b = got.astype(np.float64), truth.astype(np.float64)
    off = share_off(name, a, b, width)
    if got.dtype == np.uint8:  # runtimes may round a half to either side
        a = np.where(np.abs(a - b) <= 1, b, a)
    # a depth within rounding of zero is none in one runtime and something in the other: counted,
    # not measured
    holes = (a == 0) != (b == 0) if name in MAY_BE_NONE else np.zeros(a.shape, bool)
    a = np.where(holes, b, a)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {
            "max": np.inf,
            "relative": np.inf,
            "typical": np.inf,
            "holes": float(holes.mean()),
            "off": off,
        }
    relative = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-9)
    there = (b != 0) & ~holes
    typical = (
        float(np.median(np.abs(a - b)[there]) / np.median(np.abs(b)[there]))
        if there.any()
        else float((a != b).any())
    )
    largest = float(np.abs(a - b).max(initial=0.0))
    return {
        "max": largest,
        "relative": relative,
        "typical": typical,
        "holes": float(holes.mean()),
        "off": off,
    }


def align_rows(
    got: Mapping[str, NDArray], truth: Mapping[str, NDArray], near: float
) -> tuple[dict[str, NDArray], dict[str, float]]:
    """Outputs of an engine of objects with their rows in the truth's order: rows of nearly equal
    score change places, and at the end of a list of the best one may take another's place.

    Gives the outputs, in which rows without a partner are the truth's own, and for each name the
    share of those: boxes that are farther than `near` apart (each number of the box, but its yaw),
    or have another label.
    """
    aligned, alone = dict(got), {}
    for key, *others in ROWS:
        if not np.isfinite(got[key]).all():
            continue  # seen as that by `difference`
        columns = [*range(6)] if key == "boxes" else [*range(got[key].shape[1])]
        a, b = got[key][:, columns].astype(np.float64), truth[key][:, columns].astype(np.float64)
        if key == "boxes":
            a, b = (
                np.c_[x, 10 * y["labels"]] for x, y in ((a, got), (b, truth))
            )  # two classes are far apart
        distance = np.abs(a[None] - b[:, None]).max(2)  # [truth, got]
        partner = distance.argmin(1)
        mutual = distance.argmin(0)[partner] == np.arange(len(partner))
        lonely = ~mutual | (distance.min(1) > near)
        for name in (key, *others):
            rows = got[name][partner]
            rows[lonely] = truth[name][lonely]
            aligned[name], alone[name] = rows, float(lonely.mean())
    return aligned, alone


def share_off(name: str, got: NDArray, truth: NDArray, width: int) -> float:
    """Share of values that differ by more than the tolerance of their name; one that is not finite
    always does."""
    a, b = got.astype(np.float64), truth.astype(np.float64)
    tolerance = (
        RELATIVE[name] * np.maximum(np.abs(b), 1e-3)
        if name in RELATIVE
        else ABSOLUTE.get(name, 0.02)
    )
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
        if name.endswith("_pixel"):  # of a place between two pixels: either of them
            apart, tolerance = (
                np.maximum(np.abs(a // width - b // width), np.abs(a % width - b % width)),
                1.0,
            )
        alike = np.isfinite(a) & np.isfinite(b) & (apart <= tolerance)
    return float(1 - alike.mean()) if alike.size else 0.0


def in_shares(report: Mapping[str, Any]) -> dict[str, Any]:
    """A geometric network's report of compare.py, as engine.yaml has it."""
    differs = {
        name.removeprefix("new_"): round(values["off"], 6)
        for name, values in report["outputs"].items()
    }
    return {
        "milliseconds": report["milliseconds"],
        "worst": max(differs.values()),
        "differs": differs,
    }


def check_parity(parity: Mapping[str, Any], spec: EngineSpec, truth: str = "PyTorch") -> None:
    """Raises EngineError if no runtime takes the model, or one computes something else than
    `truth`."""
    int8 = spec.precision == "int8"
    bounds = {"typical": TYPICAL} if int8 else {"fed": TOLERANCE[spec.precision]}
    if spec.precision == "fp32":
        bounds["typical"] = TYPICAL_FP32
    elif spec.checkpoint_sha256 == STAND_IN:
        bounds = {measure: max(bound, STAND_IN_TOLERANCE) for measure, bound in bounds.items()}
    holes = (ALONE if spec.config == OBJECTS else HOLES)[spec.precision]
    good = {name: report for name, report in parity.items() if "error" not in report}
    if not good:
        said = "; ".join(f"{name}: {report['error']}" for name, report in parity.items())
        raise EngineError(f"no runtime takes the exported model: {said or 'none is installed'}")
    for runtime, report in good.items():
        wrong = f"{runtime} does not compute what {truth} does"
        for name, share in report.get("differs", {}).items():
            if not share <= OFF:
                raise EngineError(
                    f"{wrong}: {share:.1%} of {name} differ, expected {OFF:.0%} at most"
                )
        for name, values in report.get("outputs", {}).items():
            if not values["holes"] <= holes:
                raise EngineError(f"{wrong}: {values['holes']:.2%} of {name} are none on one side")
            for measure, bound in bounds.items():
                if not values[measure] <= bound:
                    how = "relative norm" if measure == "fed" else "median"
                    raise EngineError(
                        f"{wrong}: output {name} is off by {values[measure]:.1e} ({how}) in a step"
                        f" from the same memory, expected {bound:g} at most in {spec.precision}"
                    )
