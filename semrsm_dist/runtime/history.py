"""What the events of a run tell: how fast each node is, how long what is missing will take, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

RECENT = timedelta(minutes=10)
"""Speed is measured over the last this long before the newest event."""


@dataclass(frozen=True)
class NodeSpeed:
    """What one node did recently."""

    node: str
    workers: int
    """Worker processes that returned something."""
    units: int
    units_per_minute: float
    busy: float
    """Share of its workers' time that went into reading, solving and writing."""
    peak_memory_bytes: int
    """Of its largest worker."""


@dataclass(frozen=True)
class History:
    """What the events of one RSM store tell."""

    attempts: int
    not_done: dict[str, int]
    """Attempts that came to nothing, by status: failed, lost, overdue."""
    newest: datetime | None
    """When the driver last heard of a unit."""
    units_per_minute: float
    """Over all nodes, recently."""
    parallelism: float
    """Workers that were busy on average, recently."""
    kind_seconds: dict[str, float]
    """Mean seconds of a unit by its kind, ``tile permutation`` say."""
    nodes: tuple[NodeSpeed, ...]
    largest_gap: float | None
    """Largest certified gap of a tile, relative to the inner product."""
    last_errors: tuple[str, ...]
    """The latest different errors, newest first."""

    def seconds_left(self, missing: Mapping[str, int]) -> float | None:
        """Time until units are done, how many of each kind, with as many workers as recently; None where nothing tells."""
        if not self.parallelism or not missing.keys() <= self.kind_seconds.keys():
            return None
        return sum(count * self.kind_seconds[kind] for kind, count in missing.items()) / self.parallelism


def history(events: pa.Table) -> History:
    """Summarise the events of a store.

    Parameters
    ----------
    events
        From :class:`~semrsm_dist.runtime.events.EventReader`.
    """
    if not len(events):
        return History(0, {}, None, 0.0, 0.0, {}, (), None, ())
    newest = events["received"][-1].as_py()
    counts = {row["values"]: row["counts"] for row in pc.value_counts(events["status"]).to_pylist()}
    done = events.filter(pc.equal(events["status"], "done"))
    begin = max(newest - RECENT, events["received"][0].as_py())
    recent = done.filter(pc.greater_equal(done["received"], pa.scalar(begin, type=events["received"].type)))
    minutes = max((newest - begin).total_seconds(), 1.0) / 60
    errors = pc.drop_null(events["error"]).to_pylist()
    nodes = tuple(_speeds(recent, minutes))
    return History(
        attempts=len(events),
        not_done={status: count for status, count in sorted(counts.items()) if status != "done"},
        newest=newest,
        units_per_minute=len(recent) / minutes,
        parallelism=sum(each.busy * each.workers for each in nodes),
        kind_seconds=_kind_seconds(done),
        nodes=nodes,
        largest_gap=pc.max(events["largest_gap"]).as_py(),
        last_errors=tuple(dict.fromkeys(reversed(errors)))[:5],
    )


def kind_of(part: str, invariance: str) -> str:
    """What a kind of units is called, which take about the same time."""
    return f"{part} {invariance}"


def _kind_seconds(done: pa.Table) -> dict[str, float]:
    """Mean seconds of a unit by kind."""
    took = pa.array(_busy_seconds(done))
    columns = {"part": done["part"], "invariance": done["invariance"], "seconds": took}
    means = pa.table(columns).group_by(["part", "invariance"]).aggregate([("seconds", "mean")])
    return {kind_of(row["part"], row["invariance"]): row["seconds_mean"] for row in means.to_pylist()}


def _busy_seconds(events: pa.Table) -> NDArray[np.float64]:
    """What each attempt took of its worker's time."""
    busy = np.add.reduce([events[name].to_numpy() for name in ("read_seconds", "solve_seconds", "write_seconds")])
    return np.asarray(busy, dtype=np.float64)


def _speeds(recent: pa.Table, minutes: float) -> Iterable[NodeSpeed]:
    """One line for each node, the fastest first."""
    columns = {
        "node": recent["node"],
        "pid": recent["pid"],
        "busy": _busy_seconds(recent),
        "memory": recent["peak_memory_bytes"],
    }
    grouped = pa.table(columns).group_by("node")
    table = grouped.aggregate([("pid", "count_distinct"), ("pid", "count"), ("busy", "sum"), ("memory", "max")])
    for row in table.sort_by([("pid_count", "descending"), ("node", "ascending")]).to_pylist():
        yield NodeSpeed(
            node=row["node"],
            workers=row["pid_count_distinct"],
            units=row["pid_count"],
            units_per_minute=row["pid_count"] / minutes,
            busy=min(row["busy_sum"] / (60 * minutes * row["pid_count_distinct"]), 1.0),
            peak_memory_bytes=row["memory_max"],
        )


def seconds_ago(moment: datetime) -> float:
    """Seconds since a moment."""
    return max((datetime.now(UTC) - moment).total_seconds(), 0.0)
