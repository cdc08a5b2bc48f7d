"""What the Reconstructor lets into memory and map, and what it forgets, by what ego-motion says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recon4d_ros import geometry, reconstructor
from recon4d_ros.reconstructor import Reconstructor
from recon4d_ros.types import (
    Camera,
    FrameSet,
    Geometry,
    Jump,
    MapMotion,
    Pointers,
    PoseEstimate,
    RawImage,
    Rig,
    Tracking,
)

H, W = 48, 96
NONE = np.zeros(0, np.float32)


class FakeEngine:
    """A wall ten metres ahead; remembers which pixels it was told not to take into its memory."""

    spec = SimpleNamespace(input_size=(H, W), working_size=(H, W), channels=1)
    device, memory_fill = "CPU", 0.0

    def __init__(self) -> None:
        self.held_back: list[float] = []
        self.resets = 0

    def step(self, frame, calibration, T_map_camera, moving_previous):
        self.held_back.append(float(moving_previous.mean()))
        depth = np.full((1, H, W), 10.0, np.float32)
        color = np.full((1, H, W, 3), 90, np.uint8)
        return Geometry(depth, 0.01 * depth, np.ones_like(depth), color)

    def pointers(self):
        return Pointers(np.zeros((0, 3)), np.zeros((0, 66), np.float32), NONE, NONE, NONE > 0)

    def reset(self):
        self.resets += 1


def rig() -> Rig:
    turn = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    k = np.array([[80.0, 0, 47.5], [0, 80, 23.5], [0, 0, 1]])
    return Rig("one", (Camera("front", W, H, k, geometry.se3(turn, np.array([0.0, 0, 1.5]))),))


def say(one: Reconstructor, tracking: Tracking, segment: int, x: float):
    """One step in which ego-motion says this."""
    pose = geometry.se3(np.eye(3), np.array([x, 0.0, 0.0]))
    estimate = PoseEstimate(
        pose,
        pose @ one.rig.T_base_camera,
        tracking,
        np.eye(6),
        np.eye(6) * 1e-4,
        np.zeros(6),
        segment=segment,
    )
    one.egomotion = SimpleNamespace(
        estimate=lambda *_: estimate, observe=lambda *_: None, reset=lambda: None, health=((),)
    )
    stamp = say.stamp = getattr(say, "stamp", 0) + 100_000_000
    image = RawImage(stamp, "mono8", np.full(H * W, 90, np.uint8), W, H, W)
    return one.step(FrameSet(stamp, {"front": image}))


@pytest.fixture
def one(monkeypatch) -> Reconstructor:
    monkeypatch.setattr(reconstructor.engines, "load", lambda *_: FakeEngine())
    return Reconstructor(rig(), Path("nowhere"))


@pytest.mark.parametrize("tracking", [Tracking.STARTING, Tracking.DEGRADED, Tracking.LOST])
def test_nothing_of_a_frame_whose_pose_is_not_usable_is_kept(one, tracking):
    for _ in range(8):
        say(one, tracking, 0, 0.0)
    assert one.mapper.size == 0
    assert one.engine.held_back == [0.0] + [1.0] * 7
    for _ in range(8):
        say(one, Tracking.TRACKING, 0, 0.0)
    assert one.mapper.size > 0 and one.engine.held_back[-7:] == [0.0] * 7


def test_a_new_segment_forgets_map_and_memory_once(one):
    for _ in range(8):
        say(one, Tracking.TRACKING, 0, 0.0)
    assert one.mapper.size > 0 and one.engine.resets == 0
    say(one, Tracking.LOST, 1, 0.0)
    assert one.mapper.size == 0 and one.engine.resets == 1
    for _ in range(8):
        say(one, Tracking.TRACKING, 1, 0.0)
    assert one.mapper.size > 0 and one.engine.resets == 1


class FoundWhileSaved:
    """Places that find the car while a map is saved."""

    motion: MapMotion | None = None
    entered = anew = False
    found, T_map_odom = True, np.eye(4)

    def begin(self) -> None:
        """Says the same again after a `settle`."""

    def settle(self) -> None:
        self.motion = MapMotion.whole(geometry.se3(np.eye(3), np.array([5.0, 0.0, 0.0])))

    def save(self, path: Path, grid: object) -> tuple[int, int, str]:
        return 1, 1, ""

    def take(self, *_: object) -> None: ...

    def use(self, *_: object) -> None: ...

    def reset(self) -> None: ...

    grid, folder = None, None


def test_what_a_save_takes_up_moves_the_grid_once_and_is_told(one, monkeypatch):
    moved = []
    monkeypatch.setattr(one.grids, "moved", moved.append)
    one.places = FoundWhileSaved()
    for _ in range(2):
        assert one.save_map(Path("street")) == (1, 1, "")
    assert len(moved) == 1
    assert say(one, Tracking.TRACKING, 0, 0.0).map_motion is moved[0] and len(moved) == 1


@pytest.mark.parametrize("forget", [lambda one: one.use_map(None), lambda one: one.reset()])
def test_a_map_that_is_begun_after_a_save_moves_its_grid_again(one, monkeypatch, forget):
    moved = []
    monkeypatch.setattr(one.grids, "moved", moved.append)
    one.places = FoundWhileSaved()
    one.save_map(Path("street"))
    forget(one)
    say(one, Tracking.TRACKING, 0, 0.0)
    assert len(moved) == 2


@pytest.mark.parametrize("where", ["_adopt", "_begin_map"])
def test_a_map_that_cannot_be_used_is_closed_and_the_drive_goes_on(one, monkeypatch, where):
    places = one.keep_places()
    closed, begin = [], getattr(places, where)

    def fails(*_):
        monkeypatch.setattr(places, where, begin)
        raise ValueError("no such thing")

    monkeypatch.setattr(places, where, fails)
    lock = SimpleNamespace(held=True, close=lambda: setattr(lock, "held", False))
    folder = SimpleNamespace(path=Path("street"), lock=lock, close=lambda: closed.append(1))
    with pytest.raises(ValueError, match="no such thing"):
        one.use_map(folder, "mapping")
    assert closed and not lock.held and places.folder is None
    for _ in range(8):
        say(one, Tracking.TRACKING, 0, 0.0)
    assert one.mapper.size > 0 and places.found


def test_time_that_jumps_forward_is_told_to_ego_motion(one):
    told = []
    estimate = one.egomotion.estimate
    one.egomotion.estimate = lambda *given: told.append(given[2]) or estimate(*given)
    image = RawImage(5, "mono8", np.full(H * W, 90, np.uint8), W, H, W)
    one.step(FrameSet(5, {"front": image}, jump=Jump.FORWARD))
    assert told == [Jump.FORWARD]
