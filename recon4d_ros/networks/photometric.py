"""How well older images of a camera look like its image now, at every pixel and depth: the photometric cost volume of MonoRec (Wimbauer et
al., CVPR 2021, eq. 1 and 2), which Dynamic-multiframe-depth takes over.

Each neighbour is warped to the image at every depth; the structural dissimilarity (SSIM over 3x3, averaged over 3x3) is a matching cost;
the neighbours are averaged with a weight that says how far the best depth stands out among the others. All depths and neighbours are
sampled at once, the image's own part of SSIM is computed once, and the reflection at the border is in the sampling positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_WEIGHTS = (5 / 32, 16 / 32, 11 / 32)  # red, green, blue
STANDS_OUT = 10.0  # how fast a rival stops counting as its cost grows
BORDER = 2  # pixels at the border of any image have no full neighbourhood
LEAST, LARGEST = 0.01**2, 0.03**2  # SSIM's constants for images of range 1


def cost_volume(image: Tensor, neighbours: Tensor, k: Tensor, relative: Tensor, valid: Tensor, depths: Tensor, at_once: int = 0) -> Tensor:
    """image [N, 3, h, w] in -0.5..0.5; its F neighbours [N, F, 3, h, w]; k [N, 3, 3] of all of them (no skew); relative [N, F, 4, 4]
    T_neighbour_image, metres; valid [N, F] 1 or 0 (does not count); depths [D] metres; at_once: depths per pass (0: all), which changes
    only how much memory is live.

    -> [N, D, h, w]: 1 for equal, -1 for opposite, 0 where no neighbour shows the pixel at all depths.
    """
    n, count, _, h, w = neighbours.shape
    constant, slope = _projection(k, relative, h, w)
    frames = neighbours.reshape(n * count, 3, h, w)
    own = _own(image, count)
    costs, far_x, far_y = [], [], []
    for some in depths.split(at_once or depths.shape[0]):
        x, y = _positions(constant, slope, some)
        costs.append(_dissimilarity(frames, x, y, own))
        inner = (..., slice(1, -1), slice(1, -1))
        far_x.append(x[inner].abs().amax(1))
        far_y.append(y[inner].abs().amax(1))
    cost = torch.cat(costs, 1).reshape(n, count, -1, h, w) if len(costs) > 1 else costs[0].reshape(n, count, -1, h, w)
    # a bilinear sample touches the inside (without its border) of the neighbour where it is this near to the middle
    shown = (torch.stack(far_x).amax(0) < 1 - (2 * BORDER - 1) / w) & (torch.stack(far_y).amax(0) < 1 - (2 * BORDER - 1) / h)
    shown = F.pad(shown[:, BORDER:-BORDER, BORDER:-BORDER].to(image.dtype), (BORDER,) * 4).reshape(n, count, h, w)
    rivals = torch.exp((cost - cost.amin(2, keepdim=True)).square() * -STANDS_OUT).sum(2)
    weight = (1 - (rivals - 1) / (depths.shape[0] - 1)) * shown * valid[:, :, None, None]
    total = weight.sum(1, keepdim=True)
    mean = (cost * weight[:, :, None]).sum(1) / torch.where(total == 0, 1.0, total)
    return torch.where(total == 0, 0.0, 1 - 2 * mean)


def _projection(k: Tensor, relative: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """constant [N F, 3, 1, 1, 1] and slope [N F, 3, 1, h + 2, w + 2] of q = constant + depth * slope; q_x / q_z and q_y / q_z are -1..1 on
    the neighbour, whose corner pixels' centres the authors put at -1 and 1. The image is continued by a pixel, reflected at its border.
    """
    u, v = (torch.cat([x[1:2], x, x[-2:-1]]) for x in (torch.arange(float(w), device=k.device), torch.arange(float(h), device=k.device)))
    rays = torch.stack(
        [
            ((u - k[:, 0, 2:]) / k[:, 0, :1])[:, None, :].expand(-1, h + 2, -1),
            ((v - k[:, 1, 2:]) / k[:, 1, 1:2])[:, :, None].expand(-1, -1, w + 2),
            torch.ones(k.shape[0], h + 2, w + 2, device=k.device),
        ],
        1,
    )
    rows = torch.stack([k[:, 0] * (2 / (w - 1)) - k[:, 2], k[:, 1] * (2 / (h - 1)) - k[:, 2], k[:, 2]], 1)
    matrix = torch.matmul(rows[:, None], relative[:, :, :3])
    slope = torch.matmul(matrix[..., :3], rays.flatten(2)[:, None])
    return matrix[..., 3].reshape(-1, 3, 1, 1, 1), slope.reshape(-1, 3, 1, h + 2, w + 2)


def _positions(constant: Tensor, slope: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """x, y [N F, D, h + 2, w + 2]: where the neighbours show the image's pixels at these depths; at most twice outside."""
    q = constant + slope * depths[:, None, None]
    z = 1 / (q[:, 2] + 1e-7)
    return (q[:, 0] * z).clamp(-2, 2), (q[:, 1] * z).clamp(-2, 2)


def _box(x: Tensor) -> Tensor:
    """Sum over 3x3 of [..., h + 2, w + 2]: [..., h, w]."""
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def _own(image: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What SSIM needs of the image, for each of its neighbours: padded (divided by 9), mean (of the image in 0..1), and variance, all
    [N F, 3, 1, ., .]."""
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    mean = _box(padded) / 9
    variance = _box(padded.square()) / 9 - mean.square()

    def each(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)[:, :, None]

    return each(padded / 9), each(mean + 0.5), each(variance)


def _dissimilarity(frames: Tensor, x: Tensor, y: Tensor, own: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(1 - SSIM) / 2, weighted over the channels and averaged over 3x3: [N F, D, h, w]."""
    many, depths, rows, columns = x.shape
    there = F.grid_sample(frames, torch.stack([x, y], -1).reshape(many, depths * rows, columns, 2), align_corners=False)
    there = there.reshape(many, 3, depths, rows, columns)
    padded, mean, variance = own
    mean_there = _box(there) / 9
    variance_there = _box(there.square()) / 9 - mean_there.square()
    covariance = _box(there * padded) - mean_there * (mean - 0.5)
    mean_there = mean_there + 0.5
    above = (2 * mean * mean_there + LEAST) * (2 * covariance + LARGEST)
    below = (mean.square() + mean_there.square() + LEAST) * (variance + variance_there + LARGEST)
    unlike = ((1 - above / below) / 2).clamp(0, 1)
    red, green, blue = CHANNEL_WEIGHTS
    mixed = unlike[:, 0] * red + unlike[:, 1] * green + unlike[:, 2] * blue
    return _box(F.pad(mixed, (1, 1, 1, 1))) / 9
