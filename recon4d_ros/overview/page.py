"""What all parts of the picture share: its size, its colours, and a page measured in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 2000  # pixels of the picture
MARGIN, GAP = 28, 12
BACKGROUND, PANEL, TEXT, FAINT = "#0f1218", "#171b23", "#e8ebf0", "#8b93a3"
OURS, TRUE, MASK = "#35d0ff", "#ffffff", (255, 64, 129)
STYLE = {
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#333a47",
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.facecolor": PANEL,
    "text.color": TEXT,
    "axes.titlecolor": TEXT,
    "axes.grid": True,
    "grid.color": "#262c37",
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Page:
    """A figure measured in pixels from its top left corner."""

    figure: Figure
    width: int
    height: int

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (
                x / self.width,
                1 - (y + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )

    def text(
        self, x: float, y: float, text: str, size: float = 12, color: str = TEXT, **style: Any
    ) -> None:
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            color=color,
            va=style.pop("va", "top"),
            **style,
        )


def identity_color(identity: int) -> tuple[float, float, float]:
    """A bright colour that stays with an id: hues a golden angle apart."""
    hue = (identity * 0.61803398875) % 1.0
    rgb = matplotlib.colors.hsv_to_rgb((hue, 0.65, 1.0))
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


def number(value: float | None, digits: int) -> str:
    """With so many digits after the point; `none` for what was not measured."""
    return "none" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
