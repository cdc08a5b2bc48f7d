"""How well older images of a camera look like its image now, at every pixel and depth: the
photometric cost volume of MonoRec (Wimbauer et al., CVPR 2021, eq. 1 and 2), which
Dynamic-multiframe-depth takes over.

Each neighbour is warped to the image at every depth; the structural dissimilarity (SSIM over 3x3,
averaged over 3x3) is a matching cost; the neighbours are averaged with a weight that says how far
the best depth stands out among the others. All depths and neighbours are sampled at once, the
image's own part of SSIM is computed once, and the reflection at the border is in the sampling
positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_WEIGHTS = (5 / 32, 16 / 32, 11 / 32)  # red, green, blue
STANDS_OUT = 10.0  # how fast a rival stops counting as its cost grows
BORDER = 2  # pixels at the border of any image have no full neighbourhood
LEAST, LARGEST = 0.01**2, 0.03**2  # SSIM's constants for images of range 1


def cost_volume(
    image: Tensor,
    neighbours: Tensor,
    k: Tensor,
    relative: Tensor,
    valid: Tensor,
    depths: Tensor,
    at_once: int = 0,
) -> Tensor:
    """image [N, 3, h, w] in -0.5..0.5; its F neighbours [N, F, 3, h, w]; k [N, 3, 3] of all of them
    (no skew); relative [N, F, 4, 4] T_neighbour_image, metres; valid [N, F] 1 or 0 (does not
    count); depths [D] metres; at_once: depths per pass (0: all), which changes only how much memory
    is live.

    -> [N, D, h, w]: 1 for equal, -1 for opposite, 0 where no neighbour shows the pixel at all
    depths.
    """
    n, count, _, h, w = neighbours.shape
    above, below = _projection(k, relative, h, w)
    frames = neighbours.reshape(n * count, 3, h, w)
    own = _own(image, count)
    costs, reaches = [], []
    for some in depths.split(at_once or depths.shape[0]):
        place = _positions(above, below, some)
        costs.append(_dissimilarity(frames, place, own))
        reaches.append(place.abs().amax(1))
    cost = (torch.cat(costs, 1) if len(costs) > 1 else costs[0]).reshape(n, count, -1, h, w)
    reach = torch.stack(reaches).amax(0).reshape(n, count, h + 2, w + 2, 2)
    # a bilinear sample touches the inside (without its border) of the neighbour where it is this
    # near to the middle
    inside = reach < 1 - (2 * BORDER - 1) / torch.tensor([w, h], device=image.device)
    shown = F.pad(
        inside[:, :, BORDER + 1 : -BORDER - 1, BORDER + 1 : -BORDER - 1].all(-1).to(image.dtype),
        (BORDER,) * 4,
    )
    rivals = (cost - cost.amin(2, keepdim=True)).square_().mul_(-STANDS_OUT).exp_().sum(2)
    weight = (1 - (rivals - 1) / (depths.shape[0] - 1)) * shown * valid[:, :, None, None]
    total = weight.sum(1, keepdim=True)
    mean = (cost * weight[:, :, None]).sum(1) / torch.where(total == 0, 1.0, total)
    return torch.where(total == 0, 0.0, 1 - 2 * mean)


def _projection(
    k: Tensor, relative: Tensor, h: int, w: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Where a neighbour shows a pixel of the image at depth d: (a0 + d a1) / (b0 + d b1), with a
    and b [N F, 1, h + 2, 2 (w + 2)], x and y in turn as grid_sample wants them; -1 and 1 are the
    neighbour's corner pixels' centres (the authors'; grid_sample then takes them for the corners).
    The image is continued by a pixel, reflected at its border.
    """
    u, v = (
        torch.cat([x[1:2], x, x[-2:-1]])
        for x in (torch.arange(float(w), device=k.device), torch.arange(float(h), device=k.device))
    )
    x = ((u - k[:, 0, 2:]) / k[:, 0, :1])[:, None, :].expand(-1, h + 2, -1)
    y = ((v - k[:, 1, 2:]) / k[:, 1, 1:2])[:, :, None].expand(-1, -1, w + 2)
    rays = torch.stack([x, y, torch.ones_like(x)], -1).flatten(1, 2)  # [N, pixels, 3]
    onto = torch.stack(
        [k[:, 0] * (2 / (w - 1)) - k[:, 2], k[:, 1] * (2 / (h - 1)) - k[:, 2], k[:, 2], k[:, 2]], 1
    )
    matrix = torch.matmul(onto[:, None], relative[:, :, :3]).flatten(
        0, 1
    )  # [N F, 4, 4]: x, y, and what each is divided by
    many = matrix.shape[0] // rays.shape[0]
    slopes = torch.matmul(
        rays[:, None].expand(-1, many, -1, -1).flatten(0, 1), matrix[:, :, :3].transpose(1, 2)
    )
    constants = matrix[:, None, None, :, 3].expand(-1, 1, w + 2, -1)

    def pair(first: int) -> tuple[Tensor, Tensor]:
        slope = slopes[..., first : first + 2].reshape(-1, 1, h + 2, 2 * (w + 2))
        return constants[..., first : first + 2].reshape(-1, 1, 1, 2 * (w + 2)), slope

    return pair(0), pair(2)


def _positions(
    above: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor], depths: Tensor
) -> Tensor:
    """x and y in turn [N F, D, h + 2, 2 (w + 2)]; at most twice outside."""
    d = depths[:, None, None]
    return (
        torch.addcmul(above[0], above[1], d)
        .div_(torch.addcmul(below[0] + 1e-7, below[1], d))
        .clamp_(-2, 2)
    )


def _mean(x: Tensor) -> Tensor:
    """Over 3x3 of [..., D, h + 2, w + 2]: [..., D, h, w]. Compiled graphs are fastest at pooling,
    PyTorch itself at sums of slices."""
    if torch.compiler.is_exporting():
        return F.avg_pool2d(x.flatten(0, -4), 3, 1).reshape(
            *x.shape[:-2], x.shape[-2] - 2, x.shape[-1] - 2
        )
    rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).mul_(1 / 9)


class _Own(NamedTuple):
    """What SSIM needs of the image, for each of its neighbours, all [N F, 3, 1, ., .]: twice the
    padded image p, twice its mean m, m + 1/2 and its constant, the square of m + 1/2 with all that
    does not depend on the neighbour, and the variance with its constant."""

    padded: Tensor
    mean: Tensor
    above: Tensor
    below: Tensor
    variance: Tensor


def _reflected(x: Tensor) -> Tensor:
    """[..., h, w] -> [..., h + 2, w + 2]. By indices: where a padding or a concatenation reads what
    was sampled, and a convolution does as well, TensorRT for RTX 1.7.1 builds no engine
    (test/test_tensorrt_build.py)."""
    for axis in (-2, -1):
        place = torch.arange(x.shape[axis], device=x.device)
        x = x.index_select(axis, torch.cat([place[1:2], place, place[-2:-1]]))
    return x


def _own(image: Tensor, count: int) -> _Own:
    padded = _reflected(image)
    mean = _mean(padded)
    variance = _mean(padded.square()) - mean.square()
    light = mean + 0.5  # the images are -0.5..0.5, SSIM is of 0..1
    parts = 2 * padded, 2 * mean, light + LEAST, light.square() + (0.25 + LEAST), variance + LARGEST
    return _Own(
        *(x[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)[:, :, None] for x in parts)
    )


def _dissimilarity(frames: Tensor, place: Tensor, own: _Own) -> Tensor:
    """(1 - SSIM) / 2, weighted over the channels and averaged over 3x3: [N F, D, h, w].

    With m and m' the means of both, of images -0.5..0.5: 2 (m + 1/2) (m' + 1/2) + c = 2 m m' + m' +
    own.above, and so on.
    """
    many, depths, rows, columns = *place.shape[:3], place.shape[3] // 2
    there = F.grid_sample(
        frames, place.reshape(many, depths * rows, columns, 2), align_corners=False
    )
    there = there.reshape(many, 3, depths, rows, columns)
    mean = _mean(there)
    square = _mean(there.square())
    product = _mean(there * own.padded)
    similar = torch.addcmul(own.above, mean, own.mean + 1).mul_(
        torch.addcmul(product, mean, own.mean, value=-1).add_(LARGEST)
    )
    energy = torch.addcmul(own.below, mean, mean + 1).mul_(
        torch.addcmul(square, mean, mean, value=-1).add_(own.variance)
    )
    red, green, blue = similar.div_(energy).clamp_(-1, 1).unbind(1)
    mixed = (
        (red * CHANNEL_WEIGHTS[0])
        .add_(green, alpha=CHANNEL_WEIGHTS[1])
        .add_(blue, alpha=CHANNEL_WEIGHTS[2])
    )
    return _mean(F.pad(mixed.mul_(-0.5).add_(0.5), (1, 1, 1, 1))[None])[0]
