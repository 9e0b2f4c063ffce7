"""A picture of a run: every attempt at a unit, when it waited, ran and returned, by worker and node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from semrsm_dist.report.drawing import INK, Theme, png, style
from storage_schemas.errors import InvalidInputError

MAX_BARS = 20_000
"""Longer runs are drawn from every n-th attempt."""

_COLOURS = {"read": "#e69f00", "solve": "#0072b2", "write": "#009e73", "return": "#cc79a7"}


def timeline(events: pa.Table, *, theme: Theme = "light") -> bytes:
    """Draw the events of a run.

    Each worker process is a row, grouped by node. Of every unit it shows reading, solving and writing, and until the driver
    knew of it; below, how many units were with the workers and how many ran at each time.

    Parameters
    ----------
    events
        From :class:`semrsm_dist.runtime.events.EventReader`.
    theme
        Colours for a light or a dark page.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    InvalidInputError
        When no unit was done.
    """
    done = events.filter(pc.is_valid(events["started"]))
    if not len(done):
        raise InvalidInputError("There are no events to draw yet; a run records them as tiles are done.")
    ink = INK[theme]
    begin = done["queued"].cast(pa.int64()).to_numpy().min()
    seconds = {
        name: (done[name].cast(pa.int64()).to_numpy() - begin) / 1e6 for name in ("queued", "started", "ended", "received")
    }
    workers, rows = _rows(done)
    figure = Figure(figsize=(11, min(2.2 + 0.22 * len(workers), 12)), layout="constrained")
    bars, load = figure.subplots(2, 1, sharex=True, height_ratios=[max(len(workers), 4), 3])
    every = slice(None, None, max(len(done) // MAX_BARS, 1))
    at = seconds["started"]
    for part in ("read", "solve", "write"):
        until = at + done[f"{part}_seconds"].to_numpy()
        _bars(bars, rows[every], at[every], until[every], _COLOURS[part], 0.8)
        at = until
    _bars(bars, rows[every], at[every], seconds["received"][every], _COLOURS["return"], 0.15)
    bars.set_yticks(range(len(workers)), workers, fontsize=7)
    bars.set_ylim(len(workers) - 0.4, -0.6)
    for axis in (bars, load):
        style(axis, ink, grid=True)
    _load(load, seconds, ink)
    handles = [Patch(color=colour, label=part) for part, colour in _COLOURS.items()]
    bars.legend(
        handles=handles, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, labelcolor=ink.text, fontsize=8
    )
    bars.set_title(f"{len(done):,} attempts by {len(workers)} workers", loc="left", color=ink.text, fontsize=10)
    load.set_xlabel("seconds since the first unit was queued", color=ink.text, fontsize=9)
    return png(figure, ink)


def _rows(done: pa.Table) -> tuple[list[str], Any]:
    """Names of the workers, nodes together, and the row of each event."""
    names = [f"{node}  {pid}" for node, pid in zip(done["node"].to_pylist(), done["pid"].to_pylist(), strict=True)]
    workers, rows = np.unique(names, return_inverse=True)
    return list(workers), rows


def _bars(axis: Any, rows: Any, begin: Any, end: Any, colour: str, height: float) -> None:
    """Horizontal bars, all at once."""
    low, high = rows - height / 2, rows + height / 2
    corners = np.stack([np.stack(corner, axis=1) for corner in ((begin, low), (end, low), (end, high), (begin, high))], axis=1)
    axis.add_collection(PolyCollection(list(corners), facecolors=colour, linewidths=0))
    axis.autoscale_view(scaley=False)


def _load(axis: Any, seconds: dict[str, Any], ink: Any) -> None:
    """How many units were queued with the workers, running or returning, and how many ran, over time."""
    for begin, end, label, colour in (
        ("queued", "received", "with the workers", ink.faint),
        ("started", "ended", "running", _COLOURS["solve"]),
    ):
        times = np.concatenate([seconds[begin], seconds[end]])
        change = np.repeat([1, -1], len(seconds[begin]))
        order = np.lexsort((change, times))
        axis.step(times[order], np.cumsum(change[order]), where="post", color=colour, label=label, linewidth=1)
    axis.set_ylabel("units", color=ink.text, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, labelcolor=ink.text, fontsize=8, loc="upper right")
