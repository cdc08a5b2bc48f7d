"""What moves: a small recurrent U-Net over what geometry says of each pixel, one static-shape graph
with its memory.

Read `MotionNetwork.forward` from top to bottom: it is one image of each camera. Flow is held
against a static world in every way that is known: against rotation alone (epipolar geometry), the
engine's depth, the road; each of these also by the picture it predicts. What was believed of the
last image is carried along the flow. The U-Net (Ronneberger et al., 2015; residual blocks after He
et al., 2016) says what moves. Nothing in it is of one lens: lengths are in pixels of a grid that is
chosen by focal length (dynamics/motion_inputs.py), ranges in metres.

Names: n cameras, (h, w) the grid, multiples of 16. A point at inverse depth q along the ray r = (x,
y, 1) lies at R r + q t, up to scale, in the camera of the image before, (R, t) = T_before_now.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recon4d_ros.errors import EngineError
from recon4d_ros.networks.step import Signature

CUES = 36
STATE = 8
"""Channels of the memory beside the belief."""

WIDTHS = (24, 48, 80, 112)
SKIP = 12

NEAR = 1e-3
"""Least z in the camera before, as a share of the depth now: what is behind it is not seen."""


@dataclass(frozen=True)
class Look:
    """What the network takes of one image of each camera.

    grey, grey_before: [n, h, w] uint8, the image and the one it is compared with. flow: [n, 2, h,
    w] from the first to the second, pixels. q, q_before: [n, h, w] 1/m, the engine's inverse depth
    of both, 0 = none. sigma: [n, h, w] its standard deviation as a share of the depth, 1 = none.
    confidence: [n, h, w] 0..1. covered: [n, h, w] uint8, 1 where another camera sees the same at
    the same time, so that depth does not come from time. T_before_now: [n, 4, 4] metres. k: [n, 3,
    3] of the grid. road: [n, 4] its normal in the camera's frame and the camera's height over it,
    metres; zeros: not known. seconds: [n] between the two images. share: [n] of the flow, from
    where to take the memory: 1 where the image before is the last one. keep: [n] 1, or 0 where the
    memory is not of this camera's last images.
    """

    grey: Tensor
    grey_before: Tensor
    flow: Tensor
    q: Tensor
    sigma: Tensor
    confidence: Tensor
    q_before: Tensor
    covered: Tensor
    T_before_now: Tensor
    k: Tensor
    road: Tensor
    seconds: Tensor
    share: Tensor
    keep: Tensor


def frame_inputs(n: int, h: int, w: int) -> Signature:
    """Type and shape of every field of `Look`, in order."""
    plane, byte = (torch.float32, (n, h, w)), (torch.uint8, (n, h, w))
    one = (torch.float32, (n,))
    return {
        "grey": byte,
        "grey_before": byte,
        "flow": (torch.float32, (n, 2, h, w)),
        "q": plane,
        "sigma": plane,
        "confidence": plane,
        "q_before": plane,
        "covered": byte,
        "T_before_now": (torch.float32, (n, 4, 4)),
        "k": (torch.float32, (n, 3, 3)),
        "road": (torch.float32, (n, 4)),
        "seconds": one,
        "share": one,
        "keep": one,
    }


def memory_shapes(n: int, h: int, w: int) -> dict[str, tuple[int, ...]]:
    """The memory: belief in -1..1 (1: it moves, 0: not known), and what the network keeps
    beside."""
    return {"belief": (n, 1 + STATE, h, w)}


class MotionNetwork(nn.Module):
    """probability [n, h, w] that a pixel shows something that moves over the ground, and the
    memory."""

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.skip = _unit(CUES + 1 + STATE, SKIP, 1)
        self.down1 = nn.Sequential(_unit(CUES + 1 + STATE, a, 3, 2), Block(a))
        self.down2 = nn.Sequential(_unit(a, b, 3, 2), Block(b))
        self.down3 = nn.Sequential(_unit(b, c, 3, 2), Block(c), Block(c))
        self.down4 = nn.Sequential(_unit(c, d, 3, 2), Block(d), Block(d))
        self.side3, self.up3 = _unit(d, c, 1), _unit(c, c, 3)
        self.side2, self.up2 = _unit(c, b, 1), _unit(b, b, 3)
        self.side1, self.up1 = _unit(b, a, 1), _unit(a, a, 3)
        self.join = _unit(a + SKIP, 16, 3)
        self.out = nn.Conv2d(16, 1 + STATE, 1)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """(fields of Look..., belief) -> (probability [n, h, w], new belief)."""
        planes, carried = cue_planes(Look(*tensors[:-1]), tensors[-1])
        # one copy: each plane is clamped where it is made
        logit, state = self._judge(torch.cat([*(_clamped(one) for one in planes), carried], 1))
        return torch.sigmoid(logit), remembered(logit, state)

    def decide(self, known: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """known: [n, CUES, h, w]; carried: [n, 1 + STATE, h, w] -> (logit [n, h, w], state [n,
        STATE, h, w])."""
        return self._judge(torch.cat([known, carried], 1))

    def _judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.skip(x)
        x1 = self.down1(x)
        x2 = self.down2(x1)
        x3 = self.down3(x2)
        x4 = self.down4(x3)
        y = self.up3(x3 + _twice(self.side3(x4)))
        y = self.up2(x2 + _twice(self.side2(y)))
        y = self.up1(x1 + _twice(self.side1(y)))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = self.out(self.join(torch.cat([y, skip], 1)))
        return y[:, 0].float(), torch.tanh(y[:, 1:].float())


def remembered(logit: Tensor, state: Tensor) -> Tensor:
    """The memory [n, 1 + STATE, h, w] of what `decide` gave: the belief, and the state."""
    return torch.cat([torch.tanh(logit[:, None] / 2), state], 1)


class Block(nn.Module):
    """Two 3x3 convolutions and a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _unit(width, width, 3)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, momentum=0.05)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _unit(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(),
    )


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


# -------------------------------------------------------------------------------------------------
# what geometry says


def cues(look: Look, belief: Tensor) -> tuple[Tensor, Tensor]:
    """[n, CUES, h, w] in -8..8, and the memory [n, 1 + STATE, h, w] carried to this image."""
    planes, carried = cue_planes(look, belief)
    return torch.cat([_clamped(one) for one in planes], 1), carried


def _clamped(plane: Tensor) -> Tensor:
    return plane.clamp(-8, 8)[:, None]


def cue_planes(look: Look, belief: Tensor) -> tuple[list[Tensor], Tensor]:
    """CUES times [n, h, w], and the memory [n, 1 + STATE, h, w] carried to this image."""
    now, before = look.grey.float(), look.grey_before.float()
    h, w = now.shape[-2:]
    fx, fy = (look.k[:, i, i, None, None] for i in (0, 1))
    u = torch.arange(w, device=now.device, dtype=torch.float32)[None, None, :]
    v = torch.arange(h, device=now.device, dtype=torch.float32)[None, :, None]
    # rays (x, y, 1), and R times them: x is the same in each row, y in each column
    x, y = (u - look.k[:, 0, 2, None, None]) / fx, (v - look.k[:, 1, 2, None, None]) / fy
    R, (tx, ty, tz) = look.T_before_now, (look.T_before_now[:, i, 3, None, None] for i in range(3))
    ax, ay, az = (
        R[:, i, 0, None, None] * x + (R[:, i, 1, None, None] * y + R[:, i, 2, None, None])
        for i in range(3)
    )
    flow_u, flow_v = look.flow[:, 0], look.flow[:, 1]

    def static(q: Tensor) -> tuple[Tensor, Tensor]:
        """Flow of a static point at inverse depth q, pixels."""
        z = (az + q * tz).clamp_min(NEAR)
        return ((ax + q * tx) / z - x) * fx, ((ay + q * ty) / z - y) * fy

    # the road along each ray, and the engine's depth with the road in its gaps
    nx, ny, nz, height = (look.road[:, i, None, None] for i in range(4))
    road_known = (height > 0).float()
    up = nx * x + (ny * y + nz)
    q_road = (-up / height.clamp_min(0.1)).clamp_min(0) * road_known
    known = (look.q > 0).float()
    q = torch.where(look.q > 0, look.q, q_road)

    # flow in a static world: infinitely far, on the road, at the engine's depth
    far_u, far_v = static(torch.zeros_like(q))
    road_u, road_v = static(q_road)
    rigid_u, rigid_v = static(q)
    # epipolar direction: where flow goes as a point comes nearer; pixels per 1/m
    ahead = az.clamp_min(NEAR)
    lead_u, lead_v = (tx - ax / ahead * tz) / ahead * fx, (ty - ay / ahead * tz) / ahead * fy
    parallax = (lead_u * lead_u + lead_v * lead_v + 1e-8).sqrt()
    along_u, along_v = lead_u / parallax, lead_v / parallax
    off_u, off_v = flow_u - far_u, flow_v - far_v
    along = off_u * along_u + off_v * along_v
    across = off_v * along_u - off_u * along_v
    road_along = (road_u - far_u) * along_u + (road_v - far_v) * along_v
    rigid_along = (rigid_u - far_u) * along_u + (rigid_v - far_v) * along_v

    # inverse depth that explains the flow (least squares along the epipolar line)
    px, py = x + flow_u / fx, y + flow_v / fy
    bx, by = ax - px * az, ay - py * az
    cx, cy = tx - px * tz, ty - py * tz
    q_flow = (-(bx * cx + by * cy) / (cx * cx + cy * cy + 1e-8)).clamp(-2, 4)

    # the image that each of them predicts
    at_flow = _place(flow_u, flow_v)
    others = [_place(*to) for to in ((rigid_u, rigid_v), (road_u, road_v), (far_u, far_v))]
    errors = photometric(now, before, [at_flow, *others])
    mean, deviation = _moments(now, 5)
    around, spread = _moments(now, 25)

    # where the flow leads: depth there, and what was believed
    share = look.share[:, None, None]
    carried = _fetch(belief, _place(flow_u * share, flow_v * share))
    carried = carried * look.keep[:, None, None, None]
    q_there = _fetch(look.q_before[:, None], at_flow, nearest=True)[:, 0]
    expected = q / (az + q * tz).clamp_min(NEAR)
    change = torch.where(
        (q_there > 0) & (look.q > 0), (q_there - expected) / (expected.abs() + 0.02), 0.0
    )
    inside = (u + flow_u >= 0) & (u + flow_u <= w - 1) & (v + flow_v >= 0) & (v + flow_v <= h - 1)

    tall = height.clamp_min(0.1)

    def over_road(depth: Tensor) -> Tensor:
        """Height over the road of a point at inverse depth `depth`, in camera heights."""
        return (1 - q_road / depth.clamp_min(1e-3)).clamp(-3, 3) * road_known

    moved = (tx * tx + ty * ty + tz * tz + 1e-8).sqrt()
    toward = (x * tx + (y * ty + tz)) / ((x * x + (y * y + 1)).sqrt() * moved)
    seconds = look.seconds[:, None, None]
    flat = torch.zeros_like(now)
    planes = [
        _signed(along),
        _signed(across),
        _signed(along - road_along) * road_known,
        _signed(along - rigid_along),
        _signed(flow_u - rigid_u),
        _signed(flow_v - rigid_v),
        _signed(off_u),
        _signed(off_v),
        *(torch.log1p(error / 3) for error in errors),
        torch.log1p(deviation / 3),
        look.confidence,
        look.sigma.clamp(0, 1),
        known,
        torch.tanh(2 * tall * q),
        torch.tanh(2 * tall * q_flow),
        torch.tanh(2 * tall * q_road),
        over_road(q),
        over_road(q_flow),
        change.clamp(-3, 3),
        inside.float(),
        look.covered.float(),
        torch.log1p(parallax * 0.1),
        _asinh(road_along / 0.5) * road_known,
        toward,
        up * road_known,
        moved + flat,
        (moved / seconds * 0.1).clamp(0, 4) + flat,
        seconds * 4 + flat,
        torch.log2(fx / 100) + flat,
        torch.log(tall) * road_known + flat,
        road_known + flat,
        (now - around) / (spread + 8),
        (now - mean) / (spread + 8),
    ]
    return planes, carried


def photometric(now: Tensor, before: Tensor, places: list[Tensor]) -> list[Tensor]:
    """For each of `places` (as `_place` gives them) the root mean square over 5x5 of what the image
    before, fetched there, leaves unexplained, the local mean taken out (exposure); grey levels,
    each [n, h, w]."""
    fetched = torch.cat([_fetch(before[:, None], place) for place in places], 1)
    difference = now[:, None] - fetched
    mean = _mean(difference, 5)
    square = _mean(difference.square(), 5)
    return list(((square - mean.square()).clamp_min(0) + 1e-4).sqrt().unbind(1))


def _place(u: Tensor, v: Tensor) -> Tensor:
    """[n, h, w, 2] each pixel moved by u, v [n, h, w], as grid_sample counts."""
    h, w = u.shape[-2:]
    x = torch.arange(w, device=u.device, dtype=torch.float32)[None, None, :] + u
    y = torch.arange(h, device=u.device, dtype=torch.float32)[None, :, None] + v
    x, y = ((x * 2 + 1) / w - 1).clamp(-3, 3), ((y * 2 + 1) / h - 1).clamp(-3, 3)
    return torch.stack([x, y], -1)


def _fetch(planes: Tensor, place: Tensor, nearest: bool = False) -> Tensor:
    """planes [n, c, h, w] at place [n, h, w, 2]; 0 outside."""
    return F.grid_sample(
        planes, place, mode="nearest" if nearest else "bilinear", align_corners=False
    )


def _signed(pixels: Tensor) -> Tensor:
    return _asinh(pixels / 0.3)


def _asinh(x: Tensor) -> Tensor:
    """By its logarithm: runtimes have that in vectors, and asinh one by one."""
    size = x.abs()
    return torch.sign(x) * torch.log(size + (size * size + 1).sqrt())


def _mean(x: Tensor, side: int) -> Tensor:
    """Over a window, columns after rows; at the border over what there is of it."""
    half = side // 2
    x = F.avg_pool2d(x, (side, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, half), count_include_pad=False)


def _moments(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over a window, [n, h, w] each."""
    mean = _mean(x[:, None], side)[:, 0]
    square = _mean(x.square()[:, None], side)[:, 0]
    return mean, ((square - mean.square()).clamp_min(0) + 1e-4).sqrt()


def load_network(checkpoint: Path) -> MotionNetwork:
    """The network of a checkpoint that `recon4d train` wrote, with its averaged weights where it
    keeps them. Raises EngineError."""
    try:
        kept = torch.load(checkpoint, weights_only=True)
        network = MotionNetwork()
        network.load_state_dict(kept.get("averaged", kept["network"]))
    except FileNotFoundError:
        raise EngineError(f"{checkpoint}: no such file") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise EngineError(f"{checkpoint}: is no checkpoint of recon4d_motion: {reason}") from None
    return network.eval()
