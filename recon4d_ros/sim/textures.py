"""Textures from noise: tileable layers of 512 x 512 texels with their mip levels, packed into one
image that cv2.remap samples.

Most surfaces carry noise with equal contrast in every octave, so that something can be matched from
any distance; a few (car paint, plaster, glass) are nearly plain, as in reality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 512
LEVELS = 9
PAD = 2  # texels repeated around each tile, so that bilinear sampling wraps
COLUMNS = 8

Image = NDArray[np.float32]


class Layer(IntEnum):
    """Rows of the atlas."""

    ASPHALT = 0
    COBBLE = auto()
    PAVERS = auto()
    GRASS = auto()
    FACADE_0 = auto()
    FACADE_1 = auto()
    FACADE_2 = auto()
    FACADE_3 = auto()
    FACADE_4 = auto()
    FACADE_5 = auto()
    SHOP_0 = auto()
    SHOP_1 = auto()
    ROOF = auto()
    BRICK = auto()
    PLASTER = auto()
    LEAVES = auto()
    HEDGE = auto()
    BARK = auto()
    METAL = auto()
    PAINT = auto()
    CAR_SIDE = auto()
    CAR_FRONT = auto()
    CAR_REAR = auto()
    GLASS_SIDE = auto()
    GLASS_FRONT = auto()
    WHEEL = auto()
    CLOTH = auto()
    STRIPES = auto()
    SKIN = auto()
    PLANKS = auto()
    SIGN = auto()
    CARGO = auto()


FACADES = (
    Layer.FACADE_0,
    Layer.FACADE_1,
    Layer.FACADE_2,
    Layer.FACADE_3,
    Layer.FACADE_4,
    Layer.FACADE_5,
)


@dataclass(frozen=True)
class Atlas:
    """image: uint8 RGB, linear reflectance x 255. origin: [layers, LEVELS, 2] float32, x y of each
    tile's first texel in it.

    macro: [1024, 1024] float32 around 1, a slow tileable variation that makes every place its own.
    """

    image: NDArray[np.uint8]
    origin: NDArray[np.float32]
    macro: NDArray[np.float32]


def value_noise(
    rng: np.random.Generator,
    size: int,
    first: int,
    octaves: int,
    gain: float = 0.85,
    stretch: int = 1,
) -> Image:
    """Tileable multi-octave value noise [size, size], zero mean, unit deviation. first: cells of
    the coarsest octave; stretch: more cells in x than in y by this factor (streaks along y)."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        rows, columns = first << octave, min((first << octave) * stretch, size)
        if rows > size:
            break
        grid = rng.standard_normal((rows, columns)).astype(np.float32)
        wrapped = np.pad(grid, 2, mode="wrap")
        fx, fy = size // columns, size // rows
        big = cv2.resize(
            wrapped, ((columns + 4) * fx, (rows + 4) * fy), interpolation=cv2.INTER_CUBIC
        )
        total += gain**octave * big[2 * fy : 2 * fy + size, 2 * fx : 2 * fx + size]
    total -= total.mean()
    return total / total.std()


@lru_cache(2)
def make_atlas(seed: int = 0) -> Atlas:
    """All layers and their mip levels. Deterministic by seed; about a second, kept for the next
    drive of the same seed."""
    tiles = [_tile(layer, np.random.default_rng([seed, int(layer), 77])) for layer in Layer]
    rows = -(-len(tiles) // COLUMNS)
    cell = [(SIZE >> level) + 2 * PAD for level in range(LEVELS)]
    left = [0] + [COLUMNS * cell[0]] * (LEVELS - 1)
    top = [0, *np.concatenate([[0], np.cumsum([rows * size for size in cell[1:]])])[:-1].tolist()]
    height = max(rows * cell[0], top[-1] + rows * cell[-1])
    image = np.zeros((height, left[1] + COLUMNS * cell[1], 3), np.uint8)
    origin = np.zeros((len(tiles), LEVELS, 2), np.float32)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        level_tile = np.clip(tile, 0.0, 1.0)
        for level in range(LEVELS):
            x, y = left[level] + column * cell[level], top[level] + row * cell[level]
            padded = np.pad(level_tile, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="wrap")
            image[y : y + cell[level], x : x + cell[level]] = np.rint(padded * 255.0)
            origin[index, level] = x + PAD, y + PAD
            level_tile = level_tile.reshape(
                level_tile.shape[0] // 2, 2, level_tile.shape[1] // 2, 2, 3
            ).mean((1, 3))
    macro = 1.0 + 0.16 * value_noise(np.random.default_rng([seed, 99]), 1024, 8, 6, 0.75)
    return Atlas(image, origin, np.clip(macro, 0.5, 1.5))


def _tile(layer: Layer, rng: np.random.Generator) -> Image:
    """One layer [SIZE, SIZE, 3], linear reflectance 0..1; 0.5 is neutral where the surface's own
    colour multiplies it (x 2)."""
    if layer in FACADES:
        return _facade(rng, layer - Layer.FACADE_0)
    if layer in (Layer.SHOP_0, Layer.SHOP_1):
        return _shop(rng)
    painters = {
        Layer.CAR_SIDE: _car_side,
        Layer.CAR_FRONT: _car_front,
        Layer.CAR_REAR: _car_rear,
        Layer.GLASS_SIDE: _glass_side,
        Layer.GLASS_FRONT: _glass_front,
        Layer.WHEEL: _wheel,
        Layer.COBBLE: _cobble,
        Layer.PAVERS: _pavers,
        Layer.BRICK: _brick,
        Layer.STRIPES: _stripes,
        Layer.PLANKS: _planks,
        Layer.SIGN: _sign,
        Layer.LEAVES: _leaves,
        Layer.HEDGE: _leaves,
        Layer.ASPHALT: _asphalt,
        Layer.GRASS: _grass,
        Layer.CARGO: _cargo,
    }
    if layer in painters:
        return painters[layer](rng)
    contrast, first, stretch = {
        Layer.ROOF: (0.13, 8, 1),
        Layer.PLASTER: (0.035, 4, 1),
        Layer.BARK: (0.16, 8, 8),
        Layer.METAL: (0.06, 4, 1),
        Layer.PAINT: (0.025, 2, 1),
        Layer.CLOTH: (0.10, 4, 1),
        Layer.SKIN: (0.05, 4, 1),
    }[layer]
    return _grey(0.5 + contrast * value_noise(rng, SIZE, first, 8, 0.9, stretch))


def _grey(values: Image) -> Image:
    return np.repeat(values[..., None], 3, axis=2).astype(np.float32)


def _write(
    tile: Image,
    text: str,
    origin: tuple[int, int],
    scale: float,
    color: Sequence[float] | NDArray,
    thickness: int,
) -> None:
    """Letters on a tile, in place (OpenCV 5 writes on bytes only)."""
    mask = np.zeros(tile.shape[:2], np.uint8)
    cv2.putText(mask, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, 255, thickness)
    alpha = mask[..., None].astype(np.float32) / 255.0
    tile += alpha * (np.asarray(color, np.float32) - tile)


def _asphalt(rng: np.random.Generator) -> Image:
    tile = 0.5 + 0.11 * value_noise(rng, SIZE, 4, 8, 0.95)
    for _ in range(10):  # cracks and sealed joints
        start = rng.integers(0, SIZE, 2)
        points = start + np.cumsum(rng.normal(0, 9, (14, 2)) + rng.normal(0, 9, 2), axis=0)
        _wrapped_line(tile, points, float(rng.uniform(0.28, 0.4)), int(rng.integers(1, 3)))
    for _ in range(5):  # patches
        x, y = rng.integers(0, SIZE - 140, 2)
        w, h = rng.integers(40, 140, 2)
        tile[y : y + h, x : x + w] *= float(rng.uniform(0.78, 1.2))
    return _grey(tile)


def _wrapped_line(tile: Image, points: NDArray, value: float, thickness: int) -> None:
    for dx in (-SIZE, 0, SIZE):
        for dy in (-SIZE, 0, SIZE):
            cv2.polylines(
                tile,
                [np.rint(points + np.array((dx, dy))).astype(np.int32)],
                False,
                value,
                thickness,
            )


def _grass(rng: np.random.Generator) -> Image:
    noise = value_noise(rng, SIZE, 4, 8, 1.0)
    dry = value_noise(rng, SIZE, 4, 5)
    tile = _grey(0.5 + 0.15 * noise)
    tile[..., 0] *= 1.0 + 0.16 * dry
    tile[..., 2] *= 1.0 - 0.1 * dry
    return tile


def _leaves(rng: np.random.Generator) -> Image:
    noise = value_noise(rng, SIZE, 8, 7, 1.0)
    tile = 0.5 + 0.24 * np.tanh(1.2 * noise)
    colour = value_noise(rng, SIZE, 8, 5)
    return tile[..., None] * np.stack(
        [1.0 + 0.14 * colour, np.ones_like(colour), 1.0 - 0.1 * colour], -1
    )


def _courses(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    joint: int,
    spread: float,
    gap: float,
    grain: float,
) -> Image:
    """Staggered stones: rows x columns of them, joints of `joint` texels with reflectance `gap`."""
    y, x = np.indices((SIZE, SIZE))
    row = y * rows // SIZE
    shifted = (x + (row % 2) * (SIZE // columns // 2)) % SIZE
    column = shifted * columns // SIZE
    tile = (0.5 * (1.0 + spread * rng.standard_normal((rows, columns))))[row, column]
    in_joint = ((y * rows % SIZE) < joint * rows) | ((shifted * columns % SIZE) < joint * columns)
    tile = np.where(in_joint, gap, tile).astype(np.float32)
    return tile + grain * value_noise(rng, SIZE, 8, 7, 0.95)


def _cobble(rng: np.random.Generator) -> Image:
    return _grey(_courses(rng, 32, 32, 3, 0.16, 0.3, 0.05))


def _pavers(rng: np.random.Generator) -> Image:
    return _grey(_courses(rng, 8, 8, 3, 0.09, 0.34, 0.06))


def _brick(rng: np.random.Generator) -> Image:
    return _grey(_courses(rng, 32, 16, 3, 0.16, 0.62, 0.05))


def _planks(rng: np.random.Generator) -> Image:
    tile = _courses(rng, 1, 16, 4, 0.15, 0.2, 0.0)
    return _grey(tile + 0.07 * value_noise(rng, SIZE, 4, 7, 0.9, 4))


def _cargo(rng: np.random.Generator) -> Image:
    tile = _grey(0.5 + 0.02 * value_noise(rng, SIZE, 2, 6))
    tile[:, ::32] *= 0.8
    cv2.rectangle(tile, (90, 170), (420, 330), (0.12, 0.2, 0.5), -1)
    _write(tile, "CARGO", (110, 285), 3.0, (0.8, 0.8, 0.75), 10)
    return tile


def _stripes(rng: np.random.Generator) -> Image:
    tile = 0.5 + 0.08 * value_noise(rng, SIZE, 4, 8)
    band = (np.arange(SIZE) // 48) % 2 == 0
    tile[band] *= 1.5
    tile[~band] *= 0.6
    return _grey(tile)


def _sign(rng: np.random.Generator) -> Image:
    tile = _grey(np.full((SIZE, SIZE), 0.75, np.float32))
    cv2.circle(tile, (256, 256), 250, (0.6, 0.03, 0.04), -1)
    cv2.circle(tile, (256, 256), 185, (0.8, 0.8, 0.8), -1)
    _write(tile, "50", (120, 335), 7.0, (0.03, 0.03, 0.03), 26)
    return tile


def _facade(rng: np.random.Generator, kind: int) -> Image:
    """4 x 4 windows on 12.8 m of wall (4 storeys of 3.2 m). Row 0 of the tile is the highest."""
    walls = [
        (0.55, 0.49, 0.40),
        (0.42, 0.2, 0.14),
        (0.62, 0.60, 0.55),
        (0.5, 0.36, 0.22),
        (0.33, 0.36, 0.4),
        (0.58, 0.5, 0.3),
    ]
    base = np.array(walls[kind], np.float32)
    if kind in (1, 3):
        wall = _courses(rng, 64, 32, 2, 0.15, 0.55, 0.05)
    else:
        wall = 0.5 + 0.055 * value_noise(rng, SIZE, 4, 8, 0.95)
    tile = 2.0 * wall[..., None] * base
    stains = value_noise(rng, SIZE, 4, 6, 0.8, 4)
    tile *= 1.0 + 0.06 * stains[..., None]
    cell = SIZE // 4
    width, height = int(cell * rng.uniform(0.36, 0.62)), int(cell * rng.uniform(0.48, 0.62))
    frames = [
        (0.75, 0.75, 0.72),
        (0.7, 0.68, 0.6),
        (0.12, 0.12, 0.13),
        (0.3, 0.16, 0.08),
        (0.8, 0.8, 0.8),
        (0.15, 0.25, 0.17),
    ]
    frame = np.array(frames[kind])
    for row in range(4):
        for column in range(4):
            x, y = column * cell + (cell - width) // 2, row * cell + int(cell * 0.2)
            shade = tuple(float(v) for v in frame * rng.uniform(0.85, 1.0))
            cv2.rectangle(tile, (x - 5, y - 5), (x + width + 5, y + height + 5), shade, -1)
            glass = float(rng.uniform(0.02, 0.12))
            pane = (
                np.linspace(1.5, 0.7, height, dtype=np.float32)[:, None, None]
                * np.array([0.8, 0.95, 1.1], np.float32)
                * glass
            )
            pane = np.repeat(pane, width, axis=1)
            pane *= 1.0 + 0.25 * value_noise(rng, 128, 4, 4)[:height, :width, None]
            if rng.random() < 0.6:  # curtain or blind
                cut = int(height * rng.uniform(0.2, 0.9))
                pane[:cut] = np.array(
                    rng.uniform(0.2, 0.6, 3) * 0.3 + rng.uniform(0.1, 0.4), np.float32
                )
                pane[:cut:5] *= 0.85
            tile[y : y + height, x : x + width] = pane
            cv2.line(
                tile,
                (x + width // 2, y),
                (x + width // 2, y + height),
                tuple(float(v) for v in frame),
                4,
            )
            cv2.line(
                tile,
                (x, y + height // 3),
                (x + width, y + height // 3),
                tuple(float(v) for v in frame),
                3,
            )
            cv2.rectangle(
                tile,
                (x - 9, y + height + 5),
                (x + width + 9, y + height + 12),
                tuple(float(v) for v in base * 0.6),
                -1,
            )
            if kind in (0, 5):  # shutters
                for side in (x - 5 - width // 3, x + width + 6):
                    cv2.rectangle(
                        tile,
                        (side, y),
                        (side + width // 3, y + height),
                        tuple(float(v) for v in base * (0.35, 0.6, 0.55)),
                        -1,
                    )
        if kind in (2, 4):
            cv2.rectangle(
                tile,
                (0, row * cell),
                (SIZE, row * cell + 9),
                tuple(float(v) for v in base * 1.25),
                -1,
            )
    return tile


def _shop(rng: np.random.Generator) -> Image:
    """12.8 m of shop fronts, one storey: three of them, each with sign, window and door."""
    tile = (
        np.repeat((0.5 + 0.07 * value_noise(rng, SIZE, 4, 8))[..., None], 3, 2).astype(np.float32)
        * 0.5
    )
    edges = [0, int(rng.uniform(140, 190)), int(rng.uniform(310, 370)), SIZE]
    for left, right in pairwise(edges):
        colour = rng.uniform(0.04, 0.5, 3)
        cv2.rectangle(tile, (left + 4, 10), (right - 4, 100), tuple(float(v) for v in colour), -1)
        word = "".join(rng.choice(list("ABCDEGHKLMNOPRSTU"), int(rng.integers(3, 6))))
        _write(tile, word, (left + 14, 84), 1.9, 0.9 - colour, 6)
        cv2.rectangle(tile, (left + 12, 120), (right - 60, 430), (0.05, 0.06, 0.07), -1)
        for _ in range(14):  # goods behind the glass
            x, y = (
                int(rng.integers(left + 14, max(right - 80, left + 15))),
                int(rng.integers(200, 400)),
            )
            w, h = rng.integers(10, 40, 2)
            goods = tuple(float(v) for v in rng.uniform(0.05, 0.5, 3))
            cv2.rectangle(
                tile, (x, y), (min(x + int(w), right - 62), min(y + int(h), 428)), goods, -1
            )
        cv2.rectangle(
            tile, (right - 52, 120), (right - 10, 505), tuple(float(v) for v in colour * 0.5), -1
        )
        cv2.rectangle(tile, (right - 46, 130), (right - 16, 330), (0.08, 0.09, 0.1), -1)
    return tile


def _car_side(rng: np.random.Generator) -> Image:
    """The side of a car's lower body; the paint is 0.5, multiplied by the car's colour. Front is to
    the right (x grows forward)."""
    shade = np.interp(
        np.arange(SIZE), [0, 60, 200, 330, SIZE], [0.62, 0.56, 0.5, 0.42, 0.34]
    ).astype(np.float32)
    tile = np.repeat(_grey(np.zeros((SIZE, 1), np.float32) + shade[:, None]), SIZE, axis=1)
    tile += 0.02 * value_noise(rng, SIZE, 2, 7)[..., None]
    for x in (150, 258, 372):
        cv2.line(tile, (x, 0), (x, 420), (0.12, 0.12, 0.12), 5)
    for x in (235, 348):
        cv2.rectangle(tile, (x - 22, 70), (x, 92), (0.1, 0.1, 0.1), -1)
    cv2.line(tile, (20, 150), (490, 130), (0.64, 0.64, 0.64), 6)
    cv2.rectangle(tile, (0, 430), (SIZE, SIZE), (0.06, 0.06, 0.06), -1)
    for x in (96, 416):  # wheel arches
        cv2.ellipse(tile, (x, 520), (50, 300), 0, 180, 360, (0.03, 0.03, 0.03), -1)
    cv2.rectangle(tile, (494, 60), (SIZE, 150), (0.8, 0.8, 0.75), -1)
    cv2.rectangle(tile, (0, 60), (16, 170), (0.6, 0.02, 0.02), -1)
    return tile


def _car_front(rng: np.random.Generator) -> Image:
    """Lamps, grille, number plate; the paint is 0.5."""
    tile = _car_end(rng)
    cv2.rectangle(tile, (150, 150), (362, 260), (0.05, 0.05, 0.05), -1)
    for x in (20, 392):
        cv2.rectangle(tile, (x, 110), (x + 100, 210), (0.75, 0.75, 0.7), -1)
        cv2.rectangle(tile, (x + 30, 130), (x + 72, 196), (0.25, 0.25, 0.25), -1)
    return tile


def _car_rear(rng: np.random.Generator) -> Image:
    """Red lamps, boot lid, number plate; the paint is 0.5."""
    tile = _car_end(rng)
    cv2.rectangle(tile, (96, 60), (416, 280), (0.32, 0.32, 0.32), 4)
    for x in (6, 426):
        cv2.rectangle(tile, (x, 70), (x + 80, 240), (0.7, 0.02, 0.02), -1)
        cv2.rectangle(tile, (x, 160), (x + 80, 195), (0.8, 0.45, 0.3), -1)
    return tile


def _car_end(rng: np.random.Generator) -> Image:
    """What a car's front and rear share."""
    shade = np.interp(np.arange(SIZE), [0, 80, 300, SIZE], [0.6, 0.52, 0.46, 0.34]).astype(
        np.float32
    )
    tile = np.repeat(_grey(np.zeros((SIZE, 1), np.float32) + shade[:, None]), SIZE, axis=1)
    tile += 0.02 * value_noise(rng, SIZE, 2, 7)[..., None]
    cv2.rectangle(tile, (0, 400), (SIZE, SIZE), (0.07, 0.07, 0.07), -1)
    cv2.rectangle(tile, (170, 300), (342, 372), (0.8, 0.8, 0.7), -1)
    text = "".join(rng.choice(list("ABCDEFHKLMNPRSTX0123456789"), 6))
    _write(tile, text, (176, 354), 1.35, (0.03, 0.03, 0.03), 5)
    return tile


def _glass_side(rng: np.random.Generator) -> Image:
    """Side windows with roof pillars in the car's colour (paint is 0.5)."""
    tile = _grey(np.full((SIZE, SIZE), 0.5, np.float32))
    for left, right in ((70, 232), (262, 430)):
        tile[70:490, left:right] = np.linspace(0.13, 0.03, 420, dtype=np.float32)[:, None, None]
        tile[300:490, left + 60 : left + 100] *= 0.4
    return tile + 0.01 * value_noise(rng, SIZE, 4, 6)[..., None]


def _glass_front(rng: np.random.Generator) -> Image:
    tile = _grey(np.full((SIZE, SIZE), 0.5, np.float32))
    tile[40:480, 36:476] = np.linspace(0.2, 0.04, 440, dtype=np.float32)[:, None, None]
    for x in (150, 362):  # headrests
        cv2.ellipse(tile, (x, 400), (46, 70), 0, 0, 360, (0.015, 0.015, 0.015), -1)
    return tile + 0.012 * value_noise(rng, SIZE, 4, 6)[..., None]


def _wheel(rng: np.random.Generator) -> Image:
    """A wheel's disc, seen from the side: the tile's middle is the hub."""
    tile = _grey(np.full((SIZE, SIZE), 0.03, np.float32))
    cv2.circle(tile, (256, 256), 165, (0.42, 0.42, 0.44), -1)
    for angle in np.arange(5) * 2 * np.pi / 5:
        x, y = 256 + 100 * np.cos(angle), 256 + 100 * np.sin(angle)
        cv2.circle(tile, (int(x), int(y)), 42, (0.04, 0.04, 0.04), -1)
    cv2.circle(tile, (256, 256), 34, (0.2, 0.2, 0.2), -1)
    return tile
