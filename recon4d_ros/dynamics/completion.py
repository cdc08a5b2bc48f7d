"""From a mover's surest pixels to its outline: what lies between is divided along the edges of the picture.

A car's side has no texture: nothing there contradicts a static world, and flow around it bleeds onto the road. So only pixels that
the road cannot explain stand for the mover, only pixels that the static world does explain stand against it, and the watershed
transform (Meyer, Color image segmentation, 1992) gives each other pixel to the one it is joined to without an edge.
"""
from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow, FlowMeter, Picture
from recon4d_ros.dynamics.regions import fill_holes
from recon4d_ros.dynamics.residual import Road, static_flow
from recon4d_ros.dynamics.views import View

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

HORIZON = 0.02
"""Inverse depth of the road, 1/m, above which a pixel is held against the road."""

LIKELY = 4.0
"""Chi-square up to which the road explains a pixel as well as flow does."""

GROW = 0.4
"""How far beyond its surest pixels a mover may reach, as a share of their larger side."""

STATIC, MOVING = 1, 2


def held_against_road(view: View, meter: FlowMeter, now: Picture, before: Picture, flow: Flow, road: Road,
                      T_previous_current: NDArray[np.float64], moved_before: Mask) -> tuple[Mask, Mask]:
    """Which pixels [h, w] are the road, as it would be seen in the previous image, and which cannot be; most may be either.

    moved_before: [h, w] what moved in the previous image. Road that a mover hid there looks like nothing of it, and is no mover.
    """
    grey = now.grid.astype(np.float32)
    h, w = grey.shape
    u, v = static_flow(view, road.q, T_previous_current)
    xs, ys = np.arange(w, dtype=np.float32)[None, :] + u, np.arange(h, dtype=np.float32)[:, None] + v
    asked = (road.q > HORIZON) & (xs > 0) & (xs < w - 1) & (ys > 0) & (ys < h - 1)
    error = meter.error(grey, before.grid, u, v)
    noise = np.maximum(flow.error, np.float32(meter.image_noise))
    worse = np.maximum(error * error - flow.error * flow.error, 0) / (noise * noise) * 6
    mean = cv2.boxFilter(grey, -1, (5, 5))
    contrast = np.sqrt(np.maximum(cv2.boxFilter(grey * grey, -1, (5, 5)) - mean * mean, 0))
    is_road = asked & (worse < LIKELY) & (error < 2 * meter.image_noise) & (contrast > 0.8 * meter.image_noise)
    hidden = cv2.remap(cv2.dilate(moved_before.astype(np.uint8), np.ones((3, 3), np.uint8)), xs, ys, cv2.INTER_NEAREST) > 0
    matched = flow.error < np.maximum(1.3 * meter.image_noise, 0.3 * contrast)
    return is_road, ((worse > LIKELY) | ~asked) & (~hidden | matched)


def complete(moving: Mask, is_road: Mask, cannot_be_road: Mask, is_static: Mask, picture: Picture) -> Mask:
    """The movers' whole outlines [h, w]. moving: as found; is_static: pixels whose depth and flow a static world explains."""
    core = np.asarray(cv2.morphologyEx((moving & cannot_be_road).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)), np.uint8) > 0
    inner = cv2.erode(core.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    static = (is_road | (is_static & ~moving)) & ~inner
    static = (cv2.boxFilter(static.astype(np.float32), -1, (3, 3)) > 0.5) & ~core
    reach = np.zeros(moving.shape, bool)
    _, _, stats, _ = cv2.connectedComponentsWithStats(core.astype(np.uint8))
    for left, top, width, height, _ in stats[1:]:
        border = int(3 + GROW * max(width, height))
        reach[max(top - border, 0):top + height + border, max(left - border, 0):left + width + border] = True
    markers = np.zeros(moving.shape, np.int32)
    markers[~reach | static] = STATIC
    markers[core] = MOVING
    # The transform leaves a border of one pixel unlabelled.
    frame, seeds = (cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for image in (picture.color, markers))
    divided = cv2.watershed(np.ascontiguousarray(frame), np.ascontiguousarray(seeds))[1:-1, 1:-1]
    return fill_holes(((divided == MOVING) | ((divided == -1) & core)).astype(np.uint8)) > 0
