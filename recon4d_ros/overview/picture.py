"""One picture of a run: what the cameras saw and what moved, the depth, the map from above with
where we and the others drove, the errors.

Takes plain data and gives pixels; it reads nothing and writes nothing. Works for any number of
cameras and any aspect.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recon4d_ros.overview.cameras import camera_block, depth_scale
from recon4d_ros.overview.data import OverviewData, Pixels
from recon4d_ros.overview.map_view import draw_map
from recon4d_ros.overview.numbers import draw_panels, draw_title, panels_of
from recon4d_ros.overview.page import BACKGROUND, GAP, MARGIN, STYLE, WIDTH, Page

_DPI = 100
_TITLE, _MAP_HEIGHT, _SCALE = 92, 780, 46  # px


def draw_overview(data: OverviewData) -> Pixels:
    """The picture [H, WIDTH, 3] RGB; its height follows from the cameras."""
    block = camera_block(data.cameras)
    map_top = _TITLE + block.shape[0] + _SCALE + GAP
    height = map_top + _MAP_HEIGHT + MARGIN
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        page = Page(figure, WIDTH, height)
        draw_title(page, data.summary)
        axes = page.axes(MARGIN, _TITLE, block.shape[1], block.shape[0])
        axes.imshow(block, interpolation="none", aspect="auto")
        axes.set_axis_off()
        depth_scale(page, _TITLE + block.shape[0] + 8)
        panels = panels_of(data)
        side = 560 if panels else 0
        draw_map(
            page.axes(
                MARGIN, map_top, WIDTH - 2 * MARGIN - side - (40 if side else 0), _MAP_HEIGHT
            ),
            data,
        )
        draw_panels(page, data, panels, WIDTH - MARGIN - side, map_top, side, _MAP_HEIGHT)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
