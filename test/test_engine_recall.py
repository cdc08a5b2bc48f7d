"""The stereo step's match over time: the frame before, seen from here, where the pair is not
sure."""

import pytest

torch = pytest.importorskip("torch", reason="the network is PyTorch; engines run without it")

from recon4d_ros.networks.geometric import GeometricStep  # noqa: E402
from recon4d_ros.networks.geometric_options import GeometricOptions  # noqa: E402

DEPTH = 10.0
OPTIONS = GeometricOptions("stereo", 2, (64, 96), 1, (64, 96))
ROWS, COLUMNS = 32, 48


def inputs(forward=0.0, moving=0):
    """Both cameras saw a wall 10 m ahead in the frame before; now they are `forward` metres nearer
    to it."""
    k = torch.tensor([[60.0, 0, 47.5], [0, 60.0, 31.5], [0, 0, 1]]).repeat(2, 1, 1)
    before, now = torch.eye(4).repeat(2, 1, 1), torch.eye(4).repeat(2, 1, 1)
    now[:, 2, 3] = forward
    return {
        "k": k,
        "pose": now,
        "before_pose": before,
        "anchor_shift": torch.zeros(3),
        "moving": torch.full((2, 64, 96), moving, dtype=torch.uint8),
        "before_inverse": torch.full((2, ROWS, COLUMNS), 1 / DEPTH),
        "before_sure": torch.full((2, ROWS, COLUMNS), 0.8),
    }


def recalled(at, confidence=0.0):
    unknown = torch.full((2, ROWS, COLUMNS), 1 / 50.0)
    return GeometricStep(OPTIONS).recall(
        at, unknown, torch.full_like(unknown, 1e-3), torch.full_like(unknown, confidence)
    )


@pytest.mark.parametrize("forward", [0.0, 1.0, 2.0])
def test_depth_before_is_brought_to_the_camera_now(forward):
    inverse, spread, confidence = recalled(inputs(forward))
    middle = (slice(None), slice(8, 24), slice(12, 36))
    assert torch.allclose(1 / inverse[middle], torch.tensor(DEPTH - forward), atol=1e-3)
    assert torch.allclose(confidence[middle], torch.tensor(0.8 * OPTIONS.fade))
    assert torch.allclose(spread[middle], torch.tensor(2e-3))  # recalled is less sure than matched


def test_what_moved_is_not_recalled():
    inverse, _, confidence = recalled(inputs(1.0, moving=255))
    assert float(confidence.max()) == 0.0
    assert torch.allclose(1 / inverse, torch.tensor(50.0))


def test_a_surer_match_stands():
    inverse, _, confidence = recalled(inputs(1.0), confidence=0.9)
    assert torch.allclose(1 / inverse, torch.tensor(50.0))
    assert torch.allclose(confidence, torch.tensor(0.9))


def test_the_anchor_may_move_in_between():
    at = inputs(1.0)
    shifted = {**at, "anchor_shift": torch.tensor([64.0, -64.0, 0.0])}
    shifted["pose"] = at["pose"].clone()
    shifted["pose"][:, :3, 3] -= shifted["anchor_shift"]
    for one, two in zip(recalled(at), recalled(shifted), strict=True):
        assert torch.allclose(one, two, atol=1e-4)
