"""What the figures share: the colours of a light and a dark page, the style of axes, and writing a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

Theme = Literal["light", "dark"]
"""Colours for a light or for a dark page."""

COLOUR_MAP = "viridis"
"""Perceptually uniform, and readable with colour-blind eyes and in print."""


@dataclass(frozen=True)
class Ink:
    """The colours of a page."""

    page: str
    text: str
    faint: str
    invariances: Mapping[str, str]


# Okabe and Ito's palette, lightened where it would sink into a dark page.
INK: dict[Theme, Ink] = {
    "light": Ink(
        "#ffffff",
        "#1c2128",
        "#d5d9de",
        {"none": "#5f6b7a", "permutation": "#0072b2", "translation": "#d55e00", "pooled": "#008f68"},
    ),
    "dark": Ink(
        "#1b1f25",
        "#e4e7eb",
        "#3b424c",
        {"none": "#a4afbd", "permutation": "#56b4e9", "translation": "#f0883e", "pooled": "#34c796"},
    ),
}
MARKERS = {"none": "s", "permutation": "o", "translation": "^", "pooled": "D"}


def style(axis: Axes, ink: Ink, *, grid: bool = False) -> None:
    """Give an axis the page's colours; a plot gets a left and a bottom line, a picture none."""
    axis.set_facecolor(ink.page)
    axis.tick_params(colors=ink.text, labelsize=8, length=3)
    for side, spine in axis.spines.items():
        spine.set_color(ink.faint)
        spine.set_visible(grid and side in ("left", "bottom"))
    if grid:
        axis.grid(axis="y", color=ink.faint, linewidth=0.7)
        axis.set_axisbelow(True)


def png(figure: Figure, ink: Ink, *, dpi: int = 144, coloured: bool = False) -> bytes:
    """The figure as a PNG with a palette, a third of true colour's size; `coloured` fits it to the colour map."""
    figure.set_facecolor(ink.page)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    picture = Image.fromarray(pixels).convert("RGB")
    palette = _palette(ink) if coloured else None
    buffer = io.BytesIO()
    picture.quantize(256, palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def _palette(ink: Ink) -> Image.Image:
    """Most colours for the colour map (so that its bar has no steps), the rest for text on the page."""
    mapped = colormaps[COLOUR_MAP](np.linspace(0, 1, 216))[:, :3]
    page, text = np.array(to_rgb(ink.page)), np.array(to_rgb(ink.text))
    blended = page + np.linspace(0, 1, 40)[:, None] * (text - page)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate([mapped, blended])).astype(np.uint8).tobytes())
    return palette
