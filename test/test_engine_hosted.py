"""The host's side of an engine, over a runtime that gives what it is told to: what is not finite
reaches nobody, and does not stay."""

from __future__ import annotations

import numpy as np
import pytest

from recon4d_ros.engine.base import EngineSpec
from recon4d_ros.engine.hosted import LOOK_AT_MEMORY, HostedEngine
from recon4d_ros.types import Calibration, Frame

N, SIZE = 2, (4, 6)
INPUTS = ("images", "present", "pose", "state")


class Told:
    """A runtime whose outputs are `given`, and whose one memory tensor is `state`."""

    name = device = "told"

    def __init__(self) -> None:
        self.given = {
            name: np.ones((N, *SIZE), np.float32) for name in ("depth", "sigma", "confidence")
        }
        self.given["color"] = np.zeros((N, *SIZE, 3), np.uint8)
        self.given["network_position"] = np.zeros((N, 3), np.float32)
        self.state = np.zeros(3, np.float32)
        self.looked = 0

    def run(self, inputs, outputs) -> None:
        assert set(inputs) == {"images", "present", "pose"}
        for name, array in outputs.items():
            array[:] = self.given[name]

    def memory(self, name):
        self.looked += 1
        return self.state

    def reset(self) -> None:
        self.state = np.zeros(3, np.float32)

    def close(self) -> None:
        pass


def make(learned: bool = False) -> tuple[HostedEngine, Told]:
    spec = EngineSpec(
        "n",
        "learned",
        "told",
        N,
        SIZE,
        3,
        SIZE,
        0,
        0,
        "fp32",
        "m",
        "",
        inputs=INPUTS,
        options={"memory": {"state": [3]}},
        extra_outputs={"network_position": (N, 3)} if learned else {},
    )
    runtime = Told()
    return HostedEngine(spec, runtime, "engine told"), runtime


def step(engine: HostedEngine, index: int = 0):
    k = np.tile(np.eye(3), (N, 1, 1))
    pose = np.tile(np.eye(4), (N, 1, 1))
    pose[:, 0, 3] = index
    calibration = Calibration(
        ("a", "b"),
        np.zeros((N, *SIZE, 2), np.float32),
        k,
        np.tile(np.eye(4), (N, 1, 1)),
        SIZE,
        SIZE,
    )
    frame = Frame(index, np.zeros((N, *SIZE, 3), np.uint8), np.ones(N, bool), np.full(N, index))
    return engine.step(frame, calibration, pose, np.zeros((N, *SIZE), bool))


@pytest.mark.parametrize("name", ["depth", "sigma", "confidence"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_is_no_depth(name: str, value: float) -> None:
    engine, runtime = make()
    runtime.given[name][0, 1, 2] = value
    geometry = step(engine)
    none = np.zeros((N, *SIZE), bool)
    none[0, 1, 2] = True
    assert np.array_equal(np.isnan(geometry.depth), none) and np.array_equal(
        np.isnan(geometry.sigma), none
    )
    assert np.array_equal(geometry.confidence, np.where(none, 0, 1))
    assert engine.forgotten == 0, "the memory was sound"


def test_where_there_is_no_depth_there_is_no_confidence() -> None:
    engine, runtime = make()
    runtime.given["depth"][1] = 0
    geometry = step(engine)
    assert not geometry.confidence[1].any() and geometry.confidence[0].all()


@pytest.mark.parametrize(
    "shown", [np.nan, 0.0], ids=["as numbers that are not finite", "as no depth at all"]
)
def test_a_memory_that_is_not_finite_is_forgotten_and_counted(shown: float) -> None:
    engine, runtime = make()
    step(engine)
    runtime.state[1] = np.nan
    runtime.given["depth"][:] = shown
    step(engine)
    assert engine.forgotten == 1 and np.isfinite(runtime.state).all()
    step(engine)
    assert engine.forgotten == 1


def test_a_memory_that_is_not_finite_is_found_even_if_nothing_shows_it() -> None:
    engine, runtime = make()
    runtime.state[0] = np.inf
    for index in range(LOOK_AT_MEMORY):
        assert engine.forgotten == 0 and runtime.looked == 0, (
            "reading the memory every time would cost"
        )
        step(engine, index)
    assert engine.forgotten == 1 and np.isfinite(runtime.state).all()


def test_a_position_that_is_not_finite_says_nothing_of_the_scale() -> None:
    engine, runtime = make(learned=True)
    for index in range(6):
        runtime.given["network_position"][:, 0] = index / 2  # two metres a unit
        if index == 3:
            runtime.given["network_position"][0] = np.nan
        step(engine, index)
    (scale,) = engine.scales
    assert scale is not None and scale.metres_per_unit == pytest.approx(2, rel=0.01)


def test_positions_before_and_after_forgetting_are_of_two_worlds() -> None:
    engine, runtime = make(learned=True)
    for index in range(12):
        if index == 6:
            runtime.state[0] = np.nan
            runtime.given["confidence"][0, 0, 0] = np.nan
        if index == 7:
            runtime.given["confidence"][:] = 1
        runtime.given["network_position"][:, 0] = (
            index / 2 if index < 7 else 1000 + index / 4
        )  # a new world: four metres a unit
        step(engine, index)
        if index == 6:
            assert engine.forgotten == 1 and engine.scales == (None,)
    (scale,) = engine.scales
    assert scale is not None and scale.metres_per_unit == pytest.approx(4, rel=0.01)
