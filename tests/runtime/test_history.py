"""What the events of a run tell, and the picture of it."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from semrsm_dist.report.timeline import timeline
from semrsm_dist.runtime.events import EventReader
from semrsm_dist.runtime.history import history
from storage_schemas import InvalidInputError
from storage_schemas.location import Location
from storage_schemas.tables import EVENTS, write_table

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def event(second: float, **changes: Any) -> dict[str, Any]:
    """A tile that was queued at the beginning, took two seconds and returned at ``second``."""
    values = {
        "invariance": "permutation",
        "row": 0,
        "column": int(second),
        "part": "tile",
        "attempt": 1,
        "status": "done",
        "error": None,
        "queued": BEGIN,
        "started": BEGIN + timedelta(seconds=second - 2.5),
        "ended": BEGIN + timedelta(seconds=second - 0.5),
        "received": BEGIN + timedelta(seconds=second),
        "read_seconds": 0.25,
        "solve_seconds": 1.5,
        "write_seconds": 0.25,
        "peak_memory_bytes": 100,
        "largest_gap": 1e-7,
        "mean_gap": 1e-8,
        "node": "one",
        "pid": 1,
        "checksum": "sum",
    }
    return {**values, **changes}


def table(*events: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(events), schema=EVENTS)


def test_speed_is_that_of_the_last_ten_minutes_by_node() -> None:
    early = [event(10.0 + second, node="gone", pid=9) for second in range(5)]
    one = [event(3000 + 4 * number, pid=number % 2) for number in range(100)]
    two = [event(3000 + 40 * number, node="two", peak_memory_bytes=700) for number in range(10)]
    told = history(table(*early, *one, *two, event(3400)))
    assert told.newest == BEGIN + timedelta(seconds=3400)
    assert [node.node for node in told.nodes] == ["one", "two"]
    assert [node.workers for node in told.nodes] == [2, 1]
    assert told.units_per_minute == pytest.approx(111 / 10)
    assert told.nodes[0].units_per_minute == pytest.approx(101 / 10)
    assert told.nodes[0].busy == pytest.approx(101 * 2.0 / (600 * 2))
    assert told.nodes[1].peak_memory_bytes == 700
    assert told.parallelism == pytest.approx(111 * 2 / 600)
    assert told.kind_seconds == {"tile permutation": pytest.approx(2)}
    assert told.seconds_left({"tile permutation": 222}) == pytest.approx(222 / 111 * 600)


def test_what_failed_is_counted_and_its_latest_errors_are_told_once() -> None:
    failed = {"status": "failed", "error": "no such chunk", "largest_gap": None}
    lost = {"status": "lost", "error": "its node went", "started": None, "ended": None, "node": None, "pid": None}
    told = history(table(event(10, largest_gap=3e-7), event(11, **failed), event(12, **failed), event(13, **lost)))
    assert (told.attempts, told.not_done) == (4, {"failed": 2, "lost": 1})
    assert told.last_errors == ("its node went", "no such chunk")
    assert told.largest_gap == pytest.approx(3e-7)


def test_without_events_nothing_is_told() -> None:
    told = history(EVENTS.empty_table())
    assert (told.newest, told.nodes, told.seconds_left({"tile none": 5})) == (None, (), None)
    with pytest.raises(InvalidInputError, match="no events to draw yet"):
        timeline(EVENTS.empty_table())


def test_the_time_left_weighs_kinds_by_what_they_take() -> None:
    short = [
        event(10 + number / 10, part="row_norms", read_seconds=0.0, solve_seconds=0.01, write_seconds=0.0)
        for number in range(90)
    ]
    told = history(table(*short, *(event(20 + 2 * number) for number in range(40)), event(100)))
    assert told.parallelism == pytest.approx((41 * 2 + 90 * 0.01) / 90)
    assert told.seconds_left({"tile permutation": 100}) == pytest.approx(100 * 2 / told.parallelism)
    assert told.seconds_left({"tile none": 1}) is None


def test_events_of_another_release_are_left_out(tmp_path: Path) -> None:
    folder = Location.of(tmp_path / "r.events")
    write_table(folder / "b.parquet", table(event(20)), EVENTS)
    write_table(folder / "a.parquet", table(event(30)), EVENTS)
    older = pa.schema([field for field in EVENTS if field.name != "largest_gap"])
    write_table(folder / "0.parquet", table(event(40)), older)
    (tmp_path / "r.events/broken.parquet").write_bytes(b"nothing")
    assert [row["column"] for row in EventReader(folder).read().to_pylist()] == [20, 30]


def test_the_timeline_has_a_row_for_each_worker_and_draws_long_runs(tmp_path: Path) -> None:
    few = timeline(table(*(event(10 + number, pid=number % 2) for number in range(10))))
    many = timeline(table(*(event(10 + number, pid=number % 40, node=f"n{number % 3}") for number in range(400))))
    small, large = (Image.open(io.BytesIO(picture)) for picture in (few, many))
    assert small.width == large.width
    assert large.height > 2 * small.height
    assert len(small.convert("RGB").getcolors(100_000)) > 4
