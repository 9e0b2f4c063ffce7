"""Events: one Parquet row for each attempt at a unit, written by the driver in small files."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from semrsm_dist.runtime.dispatch import Attempt
from storage_schemas.location import Location
from storage_schemas.tables import EVENTS, write_table


class EventRecorder:
    """Collects attempts and writes them every few seconds; call :meth:`flush` at the end.

    Parameters
    ----------
    folder
        Where the Parquet files go.
    seconds
        How long rows wait in memory at most; what a killed driver loses. Events are a record, not the state of the run:
        that is in the store alone.
    """

    def __init__(self, folder: Location, seconds: float = 5.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
        self._rows: list[dict[str, Any]] = []
        self._files, self._last = 0, time.monotonic()

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
            row |= {name: getattr(receipt, name) for name in EVENTS.names if hasattr(receipt, name) and name != "error"}
        self._rows.append(row)

    def flush_if_due(self) -> None:
        """Write the rows when they have waited long enough."""
        if self._rows and time.monotonic() - self._last >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        self._last = time.monotonic()
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=EVENTS)
            write_table(self._folder / f"{self._run}-{self._files:06d}.parquet", table, EVENTS)
            self._files += 1
            self._rows.clear()
