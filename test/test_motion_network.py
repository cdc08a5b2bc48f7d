"""What the motion network is told (cues), where geometry has the answer; and its shipped engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the network needs PyTorch (requirements/dev.txt)")

from recon4d_ros.networks.motion import (  # noqa: E402
    CUES,
    STATE,
    Look,
    MotionNetwork,
    cues,
    frame_inputs,
)

H, W, FOCAL, HEIGHT = 32, 48, 60.0, 1.5
ALONG, ACROSS, OFF_ROAD, OFF_RIGID, RIGID_U, RIGID_V = range(6)
HEIGHT_NOW, HEIGHT_FLOW, CHANGE, INSIDE = 19, 20, 21, 22


def rays() -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[0:H, 0:W].astype(np.float64)
    return (u - (W - 1) / 2) / FOCAL, (v - (H - 1) / 2) / FOCAL


def looking(q: np.ndarray, ahead: float, turn: float, moves: np.ndarray | None = None) -> Look:
    """A camera that went `ahead` metres and turned by `turn` (about y) sees a static world at
    inverse depth q, where `moves` [2, h, w] adds to its flow."""
    x, y = rays()
    c, s = np.cos(turn), np.sin(turn)
    T = np.eye(4)
    T[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    T[2, 3] = ahead
    points = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    there = (T[:3, :3] @ points).reshape(3, H, W) + q * T[:3, 3, None, None]
    flow = np.stack([(there[0] / there[2] - x) * FOCAL, (there[1] / there[2] - y) * FOCAL])
    q_before = q / there[2]
    if moves is not None:
        flow = flow + moves
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (1, H, W), np.uint8)

    def plane(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(a, np.float32)[None])

    return Look(
        grey=torch.from_numpy(grey),
        grey_before=torch.from_numpy(grey),
        flow=plane(flow),
        q=plane(q),
        sigma=plane(np.full((H, W), 0.02)),
        confidence=plane(np.ones((H, W))),
        q_before=plane(q_before),
        covered=torch.zeros(1, H, W, dtype=torch.uint8),
        T_before_now=plane(T),
        k=plane([[FOCAL, 0, (W - 1) / 2], [0, FOCAL, (H - 1) / 2], [0, 0, 1]]),
        road=plane([0, -1, 0, HEIGHT]),
        seconds=torch.full((1,), 0.1),
        share=torch.ones(1),
        keep=torch.ones(1),
    )


def wall(distance: float) -> np.ndarray:
    """Inverse depth of a road HEIGHT below and a wall at the end of it."""
    return np.maximum(1 / distance, rays()[1] / HEIGHT)


@given(
    ahead=st.floats(0.2, 3.0),
    turn=st.floats(-0.03, 0.03),
    distance=st.floats(8.0, 60.0),
)
@settings(max_examples=30, deadline=None)
def test_a_static_world_leaves_nothing(ahead: float, turn: float, distance: float) -> None:
    known, _ = cues(looking(wall(distance), ahead, turn), torch.zeros(1, 1 + STATE, H, W))
    for cue in (ACROSS, OFF_RIGID, RIGID_U, RIGID_V):
        assert known[0, cue].abs().max() < 0.02, cue
    on_road = torch.from_numpy(rays()[1] / HEIGHT > 1 / distance + 0.01)
    assert known[0, OFF_ROAD][on_road].abs().max() < 0.02
    # the height over the road by depth and by flow is the same: 0 on the road
    assert known[0, HEIGHT_NOW][on_road].abs().max() < 0.02
    x, y = rays()
    parallax = torch.from_numpy(np.hypot(x, y) * FOCAL * ahead > 2)
    assert known[0, HEIGHT_FLOW][on_road & parallax].abs().max() < 0.05


def test_what_moves_sideways_shows_across_and_what_comes_nearer_along() -> None:
    sideways, along = (np.zeros((2, H, W)) for _ in range(2))
    x, y = rays()
    thing = np.s_[4:10, 30:40]
    direction = np.stack([x, y])[(slice(None), *thing)]
    direction /= np.linalg.norm(direction, axis=0)
    sideways[(slice(None), *thing)] = 3 * np.stack([-direction[1], direction[0]])
    along[(slice(None), *thing)] = -3 * direction
    memory = torch.zeros(1, 1 + STATE, H, W)
    base = looking(wall(20), 1.0, 0.0)
    for moves, cue, other in ((sideways, ACROSS, OFF_RIGID), (along, OFF_RIGID, ACROSS)):
        known, _ = cues(looking(wall(20), 1.0, 0.0, moves), memory)
        assert (known[0, cue][thing].abs() - np.arcsinh(3 / 0.3)).abs().max() < 0.02
        assert known[0, other][thing].abs().max() < 0.02
    none = dataclasses.replace(base, road=torch.zeros(1, 4))
    assert torch.isfinite(cues(none, memory)[0]).all(), "no road is known"


def test_memory_goes_with_the_flow_and_only_where_it_is_this_cameras() -> None:
    memory = torch.zeros(1, 1 + STATE, H, W)
    memory[0, 0, 10, 20] = 1.0
    moves = np.zeros((2, H, W))
    moves[0], moves[1] = 5, -2  # from now to before: what was at (10, 20) is at (12, 15)
    look = looking(np.zeros((H, W)), 0.0, 0.0, moves)
    carried = cues(look, memory)[1]
    assert carried[0, 0, 12, 15] == pytest.approx(1.0, abs=1e-4)
    half = dataclasses.replace(look, share=torch.full((1,), 0.5))
    assert cues(half, memory)[1][0, 0, 11].max() > 0.4
    forgotten = dataclasses.replace(look, keep=torch.zeros(1))
    assert not cues(forgotten, memory)[1].any()
    gone = dataclasses.replace(look, flow=torch.full((1, 2, H, W), 500.0))
    assert not cues(gone, memory)[1].any()


def test_every_input_has_its_place_and_nothing_gives_nan() -> None:
    """At rest, without depth, without a road: no division by nothing."""
    n, h, w = 2, 32, 48
    inputs = [torch.zeros(shape, dtype=kind) for kind, shape in frame_inputs(n, h, w).values()]
    look = dataclasses.replace(
        Look(*inputs), T_before_now=torch.eye(4).repeat(n, 1, 1), k=looking(wall(9), 1, 0).k
    )
    look = dataclasses.replace(look, k=look.k.repeat(n, 1, 1), seconds=torch.full((n,), 0.1))
    known, carried = cues(look, torch.zeros(n, 1 + STATE, h, w))
    assert known.shape == (n, CUES, h, w) and torch.isfinite(known).all()
    probability, memory = MotionNetwork().eval()(
        *(getattr(look, field.name) for field in dataclasses.fields(look)), carried
    )
    assert probability.shape == (n, h, w) and memory.shape == (n, 1 + STATE, h, w)
    assert (memory.abs() <= 1).all()
