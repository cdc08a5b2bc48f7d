"""The cameras' part of the picture: images with masks and boxes, and their depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.overview.data import CameraView, Pixels
from recon4d_ros.overview.page import (
    BACKGROUND,
    FAINT,
    GAP,
    MARGIN,
    MASK,
    WIDTH,
    Page,
    identity_color,
)

_NEAR, _FAR = 3.0, 80.0  # m: ends of the depth colours
_LONGEST_TILE = 460  # px: a tall image is made narrower rather than taller


def camera_block(cameras: Sequence[CameraView]) -> Pixels:
    """Images with masks and boxes, each with its depth below (beside it where there is one camera
    only): [H, WIDTH - 2 margins, 3]."""
    width = WIDTH - 2 * MARGIN
    background = np.array([int(BACKGROUND[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    if not cameras:
        return np.tile(background, (1, width, 1))
    tiles = [(_image_tile, view) for view in cameras]
    columns = len(cameras) if len(cameras) <= 3 else math.ceil(len(cameras) / 2)
    if len(cameras) == 1:
        rows = [[*tiles, (_depth_tile, cameras[0])]]
        columns = 2
    else:
        rows = []
        for start in range(0, len(cameras), columns):
            part = cameras[start : start + columns]
            rows += [[(_image_tile, view) for view in part], [(_depth_tile, view) for view in part]]
    tile_width = (width - (columns - 1) * GAP) // columns
    out = []
    for number, row in enumerate(rows):
        aspect = max(view.image.shape[0] / view.image.shape[1] for _, view in row)
        height = min(round(tile_width * aspect), _LONGEST_TILE)
        strip = np.tile(background, (height, width, 1))
        for column, (draw, view) in enumerate(row):
            picture = _fit(draw(view, tile_width), (tile_width, height))
            x = column * (tile_width + GAP) + (tile_width - picture.shape[1]) // 2
            y = (height - picture.shape[0]) // 2
            strip[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        out.append(strip)
        if number < len(rows) - 1:
            out.append(
                np.tile(background, (GAP if number % 2 and len(cameras) > 1 else 4, width, 1))
            )
    return np.concatenate(out)


def _fit(picture: Pixels, box: tuple[int, int]) -> Pixels:
    """As large as fits into box (width, height), aspect kept."""
    scale = min(box[0] / picture.shape[1], box[1] / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC),
        np.uint8,
    )


def _image_tile(view: CameraView, width: int) -> Pixels:
    scale = width / view.image.shape[1]
    size = (width, max(1, round(view.image.shape[0] * scale)))
    tile = np.asarray(
        cv2.resize(
            view.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        ),
        np.uint8,
    )
    mask = (
        np.asarray(
            cv2.resize(view.mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
        )
        > 127
    )
    tile[mask] = (0.5 * tile[mask] + 0.5 * np.array(MASK)).astype(np.uint8)
    outline = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(tile, outline, -1, (255, 255, 255), 1, cv2.LINE_AA)
    centre = (np.array([scale, scale]), 0.5 * scale - 0.5)
    for o in view.objects:
        color = tuple(int(255 * c) for c in identity_color(o.id))
        lines = [np.round((edge * centre[0] + centre[1]) * 16).astype(np.int32) for edge in o.edges]
        cv2.polylines(tile, lines, False, color, 2, cv2.LINE_AA, 4)
        points = o.edges.reshape(-1, 2) * scale
        _label(
            tile,
            f"{o.id}  {o.speed:.0f} m/s",
            (int(points[:, 0].min()), int(points[:, 1].min()) - 6),
            color,
        )
    _label(tile, view.name, (8, 20), (255, 255, 255))
    return tile


def _depth_tile(view: CameraView, width: int) -> Pixels:
    scale = width / view.depth.shape[1]
    size = (width, max(1, round(view.depth.shape[0] * scale)))
    return depth_colors(
        np.asarray(cv2.resize(view.depth, size, interpolation=cv2.INTER_NEAREST), np.float32)
    )


def depth_colors(depth: NDArray[np.float32]) -> Pixels:
    """[h, w, 3] RGB: near is red, far is blue (turbo over the root of inverse depth, which keeps 40
    m apart from 20 m); none is dark."""
    known = np.isfinite(depth)
    value = _depth_value(np.where(known, depth, _FAR))
    colors = cv2.cvtColor(
        cv2.applyColorMap((255 * value).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB
    )
    colors[~known] = (30, 34, 42)
    return np.asarray(colors, np.uint8)


def _depth_value(depth: NDArray) -> NDArray:
    inverse = (1.0 / np.clip(depth, _NEAR, _FAR) - 1.0 / _FAR) / (1.0 / _NEAR - 1.0 / _FAR)
    return 0.06 + 0.9 * np.sqrt(np.clip(inverse, 0, 1))


def depth_scale(page: Page, y: float) -> None:
    """What the colours mean, in a line of the page at y pixels."""
    axes = page.axes(WIDTH - MARGIN - 420, y, 420, 10)
    ticks = np.array([3, 5, 8, 12, 20, 40, 80])
    line = np.geomspace(_NEAR, _FAR, 420).astype(np.float32)
    axes.imshow(depth_colors(line[None]), aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks(
        np.log(ticks / _NEAR) / np.log(_FAR / _NEAR), [f"{tick}" for tick in ticks], fontsize=9
    )
    axes.tick_params(length=0, pad=3)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    page.text(WIDTH - MARGIN - 432, y - 3, "depth, m", 10.5, FAINT, ha="right")
    page.text(
        MARGIN,
        y - 3,
        "pink: found moving     box: tracked dynamic object with id and speed     dark: no depth",
        10.5,
        FAINT,
    )


def _label(tile: Pixels, text: str, at: tuple[int, int], color: tuple[int, ...]) -> None:
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x = int(np.clip(at[0], 2, max(2, tile.shape[1] - width - 6)))
    y = int(np.clip(at[1], height + 4, tile.shape[0] - base - 2))
    patch = tile[y - height - 4 : y + base + 1, x - 2 : x + width + 4]
    patch[:] = patch // 4
    cv2.putText(tile, text, (x + 1, y - 1), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
