"""Events are written in small files and joined at the end; a crash while joining shows nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from semrsm_dist.grid import TileKey
from semrsm_dist.runtime.dispatch import Attempt
from semrsm_dist.runtime.events import EventReader, EventRecorder
from semrsm_dist.runtime.units import Receipt, Unit
from storage_schemas.location import Location

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(number: int) -> Attempt:
    unit = Unit(TileKey(0, number), "none")
    receipt = Receipt(unit, None, None, "sum", NOW, NOW, 0.0, 1.0, 0.0, 0, "node", 1)
    return Attempt(unit, 1, "done", None, NOW, NOW, receipt)


def recorded(folder: Location, files: int) -> EventRecorder:
    recorder = EventRecorder(folder)
    for number in range(files):
        recorder.record(attempt(number))
        recorder.flush()
    return recorder


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "r.events").iterdir())


def test_a_run_that_ends_leaves_one_file(tmp_path: Path) -> None:
    folder = Location.of(tmp_path / "r.events")
    recorder = recorded(folder, 3)
    assert len(names(tmp_path)) == 3
    recorder.record(attempt(3))
    recorder.close()
    assert len(names(tmp_path)) == 1
    assert EventReader(folder).read()["column"].to_pylist() == [0, 1, 2, 3]


def test_one_file_is_not_joined_and_nothing_is_not_written(tmp_path: Path) -> None:
    folder = Location.of(tmp_path / "r.events")
    EventRecorder(folder).close()
    assert names(tmp_path) == [] if (tmp_path / "r.events").exists() else True
    recorded(folder, 1).close()
    assert len(names(tmp_path)) == 1
    assert names(tmp_path)[0].endswith("-000000.parquet")


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_crash_while_joining_shows_nothing_twice(tmp_path: Path, deleted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Location.of(tmp_path / "r.events")
    recorder = recorded(folder, 3)
    deletions: list[str] = []

    def delete(self: Location, key: str) -> None:
        if len(deletions) == deleted:
            raise KeyboardInterrupt
        deletions.append(key)
        (Path(self.url) / key).unlink()

    monkeypatch.setattr(Location, "delete", delete)
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    assert len(names(tmp_path)) == 4 - deleted
    assert EventReader(folder).read()["column"].to_pylist() == [0, 1, 2]


def test_a_reader_sees_what_was_written_since_and_reads_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Location.of(tmp_path / "r.events")
    recorder, reader = recorded(folder, 2), EventReader(folder)
    assert len(reader.read()) == 2
    recorder.record(attempt(2))
    recorder.flush()
    read: list[str] = []
    original = Location.get
    monkeypatch.setattr(Location, "get", lambda self, key: (read.append(key), original(self, key))[1])
    assert reader.read()["column"].to_pylist() == [0, 1, 2]
    assert len(read) == 1
    recorder.close()
    assert reader.read()["column"].to_pylist() == [0, 1, 2]


def test_the_longer_a_run_the_longer_it_waits(tmp_path: Path) -> None:
    now = [0.0]
    recorder = EventRecorder(Location.of(tmp_path / "r.events"), clock=lambda: now[0])
    written = []
    while now[0] < 4 * 86400:
        recorder.record(attempt(0))
        before = len(recorder._files)
        recorder.flush_if_due()
        if len(recorder._files) > before:
            written.append(now[0])
        now[0] += 1.0
    assert written[0] == 5
    assert written[-1] - written[-2] == 60
    assert len(written) < 4 * 86400 / 60 + 500
