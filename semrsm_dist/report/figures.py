"""Pictures of RSMs and of retrieval, as PNG bytes.

Plain `matplotlib.figure.Figure` objects on the Agg canvas: no global pyplot state, so that figures can be drawn from
any thread and on a machine without a display.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from semrsm_dist.report.drawing import COLOUR_MAP, INK, MARKERS, Ink, Theme, png, style
from semrsm_dist.report.wording import invariance_title, kernel_title, metric_title, ordered_invariances
from storage_schemas.errors import InvalidInputError

MAX_PIXELS = 400
"""The longest side of a drawn RSM; larger ones are averaged in blocks."""

_PERCENTILES = (0.5, 99.5)  # a few outliers must not take the contrast from everything else


@dataclass(frozen=True)
class ColourScale:
    """The values that the two ends of a colour bar stand for."""

    low: float
    high: float
    clipped_below: bool
    """Whether some values lie under `low` and share its colour."""
    clipped_above: bool


def block_mean(matrix: NDArray[np.float64], limit: int = MAX_PIXELS) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Average a matrix in blocks until no side is longer than `limit`.

    Parameters
    ----------
    matrix : ndarray, (N, M)
        NaN entries are left out of the means; a block of NaN alone stays NaN.
    limit : int
        The longest side of the result.

    Returns
    -------
    ndarray
        The means; the last block of an axis may hold fewer values than the others.
    tuple of int
        Rows and columns of a block, ``(1, 1)`` when nothing was averaged.
    """
    rows, columns = (max(1, math.ceil(size / limit)) for size in matrix.shape)
    if rows == columns == 1:
        return matrix, (1, 1)
    finite = np.isfinite(matrix)
    totals = _block_sum(np.where(finite, matrix, 0.0), rows, columns)
    counts = _block_sum(finite.astype(np.float64), rows, columns)
    means = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return means, (rows, columns)


def _block_sum(values: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    down = np.add.reduceat(values, np.arange(0, values.shape[0], rows), axis=0)
    summed: NDArray[np.float64] = np.add.reduceat(down, np.arange(0, values.shape[1], columns), axis=1)
    return summed


def colour_scale(matrices: Sequence[NDArray[np.float64]], *, symmetric: bool) -> ColourScale:
    """One colour scale for several RSMs: the 0.5th to the 99.5th percentile of all their values.

    The diagonal of a symmetric RSM, each sample with itself, says nothing and is left out. Constant values get a scale
    around them.
    """
    parts = [_off_diagonal(matrix) if symmetric else matrix.ravel() for matrix in matrices]
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    everything = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    if not everything.size:
        return ColourScale(0.0, 1.0, clipped_below=False, clipped_above=False)
    low, high = (float(value) for value in np.percentile(values if values.size else everything, _PERCENTILES))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = 0.05 * max(abs(low), abs(high)) or 0.5
        low, high = low - margin, high + margin
    return ColourScale(low, high, bool(everything.min() < low), bool(everything.max() > high))


def _off_diagonal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    if matrix.shape[0] != matrix.shape[1]:
        return matrix.ravel()
    values: NDArray[np.float64] = matrix[~np.eye(len(matrix), dtype=bool)]
    return values


def _checked(matrices: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    if not matrices:
        raise InvalidInputError("There is no RSM to draw; give at least one.")
    checked: dict[str, NDArray[np.float64]] = {}
    for name in ordered_invariances(matrices):
        matrix = np.asarray(matrices[name], dtype=np.float64)
        if matrix.ndim != 2 or not matrix.size:
            raise InvalidInputError(f"The RSM of {name!r} has shape {matrix.shape}; expected (N, M) with N, M ≥ 1.")
        checked[name] = matrix
    return checked


def rsm_picture(
    matrices: Mapping[str, NDArray[np.float64]],
    *,
    symmetric: bool = False,
    kernel: str = "cosine",
    columns: int = 4,
    theme: Theme = "light",
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """Draw the RSMs of several invariances next to each other with one colour scale.

    Parameters
    ----------
    matrices : mapping of str to ndarray, (N, M)
        Invariance to RSM. A side longer than `max_pixels` is averaged in blocks; :func:`rsm_caption` says so.
    symmetric : bool
        Whether rows and columns are the same samples.
    kernel : str
        What the colours show; the label of the colour bar.
    columns : int
        The most RSMs in one row of the picture; with one or two the panels are small, for a phone.
    theme : {"light", "dark"}
        Colours of the page.
    max_pixels : int
        The longest side of a drawn RSM.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    InvalidInputError
        When there is no matrix, or one is empty or not two-dimensional.
    """
    full = _checked(matrices)
    drawn = {name: block_mean(matrix, max_pixels)[0] for name, matrix in full.items()}
    scale = colour_scale(list(drawn.values()), symmetric=symmetric)
    ink = INK[theme]
    across = min(columns, len(full))
    down = math.ceil(len(full) / across)
    n, m = next(iter(full.values())).shape
    shape = min(max(n / m, 0.5), 1.6)  # a very long RSM is squeezed rather than drawn as a thread
    panel = 1.95 if columns <= 2 else 2.55 if across > 2 else 2.9  # few columns are for a phone: larger letters
    figure = Figure(figsize=(across * panel + 0.9, down * (panel * shape + 0.45) + 0.2), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    norm = Normalize(scale.low, scale.high)
    for index, axis in enumerate(axes.flat):
        if index >= len(full):
            axis.set_visible(False)
            continue
        name = list(full)[index]
        rows, cols = full[name].shape
        axis.imshow(drawn[name], cmap=COLOUR_MAP, norm=norm, aspect="auto", extent=(-0.5, cols - 0.5, rows - 0.5, -0.5))
        axis.set_box_aspect(shape)
        style(axis, ink)
        axis.set_title(invariance_title(name), fontsize=9, color=ink.text, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        below = index + across >= len(full)
        axis.tick_params(labelbottom=below, labelleft=index % across == 0)
        axis.set_xlabel(("sample" if symmetric else "database sample") if below else "", color=ink.text, fontsize=9)
        if index % across == 0:
            axis.set_ylabel("sample" if symmetric else "query sample", color=ink.text, fontsize=9)
    _colour_bar(figure, list(axes.flat)[: len(full)], norm, scale, kernel, ink)
    return png(figure, ink, dpi=160 if columns <= 2 else 110, coloured=True)  # sharp, yet small enough to mail


def _colour_bar(figure: Figure, axes: Sequence[Axes], norm: Normalize, scale: ColourScale, kernel: str, ink: Ink) -> None:
    ends: dict[tuple[bool, bool], Literal["neither", "min", "max", "both"]] = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    bar = figure.colorbar(
        ScalarMappable(norm, COLOUR_MAP),
        ax=axes,
        extend=ends[scale.clipped_below, scale.clipped_above],
        fraction=0.05,
        pad=0.02,
        aspect=24,
    )
    bar.set_label(kernel_title(kernel), color=ink.text, fontsize=9)
    bar.locator = MaxNLocator(nbins=5)
    bar.update_ticks()
    bar.ax.tick_params(colors=ink.text, labelsize=8, length=3)
    bar.outline.set_visible(False)


def rsm_caption(
    matrices: Mapping[str, NDArray[np.float64]],
    *,
    symmetric: bool = False,
    kernel: str = "cosine",
    max_pixels: int = MAX_PIXELS,
) -> str:
    """Say what :func:`rsm_picture` shows: sizes, means, and whether blocks were averaged or colours clipped."""
    full = _checked(matrices)
    reduced = {name: block_mean(matrix, max_pixels) for name, matrix in full.items()}
    scale = colour_scale([matrix for matrix, _ in reduced.values()], symmetric=symmetric)
    n, m = next(iter(full.values())).shape
    who = f"{n} × {m} samples" if symmetric else f"{n} query × {m} database samples"
    parts = [f"{kernel_title(kernel)} of {who}; brighter is more similar, and all panels share one colour scale."]
    blocks = sorted({block for _, block in reduced.values() if block != (1, 1)})
    if blocks:
        sizes = " or ".join(f"{rows} × {columns}" for rows, columns in blocks)
        parts.append(f"The picture is smaller than the matrix: each pixel is the mean of a block of {sizes} values.")
    if scale.clipped_below or scale.clipped_above:
        beyond = " The diagonal, each sample with itself, is left out of the scale." if symmetric else ""
        parts.append(f"The colours span the 0.5th to the 99.5th percentile; values beyond share the end colour.{beyond}")
    means = []
    for name, matrix in full.items():
        values = _off_diagonal(matrix) if symmetric and matrix.size > 1 else matrix.ravel()
        values = values[np.isfinite(values)]
        if values.size:
            means.append(f"{name} {values.mean():.3f}".replace("-", "\N{MINUS SIGN}"))
    if means:
        parts.append(f"Mean value{' off the diagonal' if symmetric else ''}: {', '.join(means)}.")
    return " ".join(parts)


def retrieval_chart(table: pa.Table, *, kernel: str = "cosine", columns: int = 2, theme: Theme = "light") -> bytes:
    """Draw F1@k and IoU@k of each invariance, and their paired differences to the baseline.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of `storage_schemas.tables.RETRIEVAL` of one representation.
    kernel : str
        The kernel to show.
    columns : {1, 2}
        Two puts the differences beside the values, one puts them below (for a phone).
    theme : {"light", "dark"}
        Colours of the page.

    Returns
    -------
    bytes
        A PNG file. Whiskers are the 95 % intervals of the paired differences, as the table has them.

    Raises
    ------
    InvalidInputError
        When the table has no F1 or IoU of that kernel, or rows of several representations.
    """
    rows: list[dict[str, Any]] = [row for row in table.to_pylist() if row["kernel"] == kernel]
    if len({row["representation"] for row in rows}) > 1:
        raise InvalidInputError("The retrieval chart shows one representation; select its rows first.")
    metrics = [name for name in ("f1", "iou") if any(row["metric"].casefold() == name for row in rows)]
    if not metrics:
        raise InvalidInputError(f"The retrieval table has no F1 or IoU of the kernel {kernel!r}; nothing can be drawn.")
    ink = INK[theme]
    beside = columns > 1
    n_panels = 2 * len(metrics)
    size = (9.6, 2.6 * len(metrics) + 0.4) if beside else (4.6, 2.3 * n_panels + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(metrics) if beside else n_panels, 2 if beside else 1, squeeze=False).reshape(-1, 2)
    names = ordered_invariances({row["invariance"] for row in rows})
    ks = sorted({row["k"] for row in rows})
    for metric, (left, right) in zip(metrics, axes, strict=True):
        chosen = [row for row in rows if row["metric"].casefold() == metric]
        _draw_values(left, chosen, names, ks, metric, ink)
        _draw_differences(right, chosen, names, ks, metric, ink)
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=len(names) if beside else 2, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_color(ink.text)
    return png(figure, ink)


def _draw_values(axis: Axes, rows: list[dict[str, Any]], names: list[str], ks: list[int], metric: str, ink: Ink) -> None:
    """The values of each invariance over k."""
    for name in names:
        points = sorted((ks.index(row["k"]), row["value"]) for row in rows if row["invariance"] == name)
        colour = ink.invariances.get(name, ink.text)
        axis.plot(
            [x for x, _ in points],
            [y for _, y in points],
            marker=MARKERS.get(name, "v"),
            color=colour,
            markersize=6,
            linewidth=1.6,
            label=invariance_title(name),
        )
    style(axis, ink, grid=True)
    _set_ks(axis, ks)
    axis.set_title(f"{metric_title(metric)}@k", fontsize=10, color=ink.text, loc="left")
    axis.margins(y=0.14)


def _draw_differences(axis: Axes, rows: list[dict[str, Any]], names: list[str], ks: list[int], metric: str, ink: Ink) -> None:
    """The paired differences to the baseline with their intervals; filled markers exclude 0, hollow ones do not."""
    baselines = ordered_invariances({row["baseline"] for row in rows})
    others = [name for name in names if name not in baselines]
    axis.axhline(0, color=ink.text, linewidth=1)
    for position, name in enumerate(others):
        shift = 0.16 * (position - (len(others) - 1) / 2)
        colour = ink.invariances.get(name, ink.text)
        for row in (row for row in rows if row["invariance"] == name):
            x = ks.index(row["k"]) + shift
            low, high = row["difference_low"], row["difference_high"]
            axis.vlines(x, low, high, color=colour, linewidth=2.4)
            axis.hlines([low, high], x - 0.035, x + 0.035, color=colour, linewidth=1.6)
            certain = low > 0 or high < 0
            axis.plot(
                x,
                row["difference"],
                marker=MARKERS.get(name, "v"),
                markersize=7,
                color=colour,
                markerfacecolor=colour if certain else ink.page,
                markeredgewidth=1.6,
            )
    if not others:
        axis.text(0.5, 0.6, "only the baseline was computed", transform=axis.transAxes, ha="center", color=ink.text)
    style(axis, ink, grid=True)
    _set_ks(axis, ks)
    title = f"{metric_title(metric)}@k minus that of {' / '.join(baselines)}, 95 % interval"
    axis.set_title(title, fontsize=10, color=ink.text, loc="left")
    axis.margins(y=0.14)


def _set_ks(axis: Axes, ks: list[int]) -> None:
    axis.set_xlim(-0.5, len(ks) - 0.5)
    axis.set_xticks(range(len(ks)), [f"k = {k}" for k in ks])
