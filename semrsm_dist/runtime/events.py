"""Events: one Parquet row for each attempt at a unit, written by the driver in small files and joined at the end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from semrsm_dist.runtime.dispatch import Attempt
from semrsm_dist.runtime.units import Receipt
from storage_schemas.errors import DamagedChunkError, SemrsmError, StoreNotFoundError
from storage_schemas.location import Location
from storage_schemas.tables import EVENTS, join_tables, read_table, write_table

_SECONDS_BETWEEN_FILES = 60.0
"""At most: a week then makes ten thousand files, where five seconds would make a hundred thousand."""
_PART = re.compile(r"(?P<run>.+)-\d{6}\.parquet")
_OF_RECEIPTS = tuple(each.name for each in fields(Receipt) if each.name in EVENTS.names and each.name != "error")
"""Columns that are taken from receipts as they are."""


class EventRecorder:
    """Collects attempts and writes them every few seconds; call :meth:`close` at the end.

    A file ``RUN-000042.parquet`` is written at a time. The longer the run, the longer it waits for the next; :meth:`close`
    joins the files to ``RUN.parquet``, beside which its parts do not count (:func:`event_files`).

    Parameters
    ----------
    folder
        Where the Parquet files go.
    seconds
        How long rows wait in memory at the least; after a day at most a minute. What a killed driver loses. Events are a
        record, not the state of the run: that is in the store alone.
    clock
        Seconds, monotonic.
    """

    def __init__(self, folder: Location, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._seconds, self._clock = folder, seconds, clock
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
        self._rows: list[dict[str, Any]] = []
        self._files: list[str] = []
        self._begin = self._last = clock()

    def record(self, attempt: Attempt) -> None:
        """Take one attempt."""
        receipt = attempt.receipt
        row: dict[str, Any] = dict.fromkeys(EVENTS.names)
        row |= {
            "invariance": attempt.unit.invariance,
            "row": attempt.unit.key.row,
            "column": attempt.unit.key.column,
            "part": attempt.unit.part,
            "attempt": attempt.attempt,
            "status": attempt.status,
            "error": attempt.error,
            "queued": attempt.queued,
            "received": attempt.received,
        }
        if receipt is not None:
            row |= {name: getattr(receipt, name) for name in _OF_RECEIPTS}
        self._rows.append(row)

    def flush_if_due(self) -> None:
        """Write the rows when they have waited long enough: a hundredth of the run, within the bounds."""
        now = self._clock()
        if self._rows and now - self._last >= min(max(self._seconds, (now - self._begin) / 100), _SECONDS_BETWEEN_FILES):
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        self._last = self._clock()
        if self._rows:
            self._files.append(f"{self._run}-{len(self._files):06d}.parquet")
            write_table(self._folder / self._files[-1], pa.Table.from_pylist(self._rows, schema=EVENTS), EVENTS)
            self._rows.clear()

    def close(self) -> None:
        """Write what is waiting, and one file instead of many."""
        self.flush()
        if len(self._files) > 1:
            with suppress(DamagedChunkError, StoreNotFoundError):  # then the parts stay, and are read as parts
                join_tables(self._folder, self._files, f"{self._run}.parquet", EVENTS)
                for name in self._files:
                    self._folder.delete(name)
                self._files.clear()


def event_files(names: Iterable[str]) -> list[str]:
    """The files that count, oldest run first: parts only of runs that are not joined.

    >>> event_files(["a-000000.parquet", "b-000000.parquet", "b.parquet", "b-000001.parquet"])
    ['a-000000.parquet', 'b.parquet']
    """
    found = {name for name in names if name.endswith(".parquet")}
    parts = {name: match["run"] for name in found if (match := _PART.fullmatch(name))}
    return sorted(name for name in found if name not in parts or f"{parts[name]}.parquet" not in found)


class EventReader:
    """Events of a store, as they come: a file is read once, since none is ever changed.

    Parameters
    ----------
    folder
        See :func:`storage_schemas.rsm.events_url`.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._read: dict[str, pa.Table] = {}

    def read(self) -> pa.Table:
        """All events, oldest first; those of files that another release wrote are left out."""
        for _ in range(2):  # files may be joined between listing and reading them
            names = event_files(self._folder.sizes())
            self._read = {name: table for name, table in self._read.items() if name in names}
            for name in names:
                if name not in self._read:
                    with suppress(SemrsmError):  # a record, not the state of the run: what cannot be read is not shown
                        self._read[name] = read_table(self._folder / name, EVENTS)
            if len(self._read) == len(names):
                break
        tables = [self._read[name] for name in sorted(self._read)]
        return (pa.concat_tables(tables) if tables else EVENTS.empty_table()).sort_by("received")
