"""Units of work and the receipts they return: what travels between the driver and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from semrsm_dist.grid import TileKey
from semrsm_dist.names import Invariance

Part = Literal["tile", "row_norms", "column_norms", "activations"]


@dataclass(frozen=True, order=True, slots=True)
class Unit:
    """One chunk of a store: a tile or the norms of a block of samples, under one invariance; or the activations of a block."""

    key: TileKey
    """The tile; for norms and activations the block is ``key.row`` and ``key.column`` is 0."""
    invariance: Invariance
    """``none`` for activations, which have none."""
    part: Part = "tile"

    def __str__(self) -> str:
        if self.part == "tile":
            return f"tile {self.key} under {self.invariance}"
        if self.part == "activations":
            return f"chunk {self.key.row} of the activations"
        return f"{self.part.replace('_', ' ')} {self.key.row} under {self.invariance}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker reports of one attempt at a unit; never an array."""

    unit: Unit
    error: str | None
    """One line on what went wrong, or None when the chunk is in the store."""
    error_type: str | None
    """Name of the exception's class."""
    checksum: str | None
    """Checksum of the values written."""
    started: datetime
    ended: datetime
    read_seconds: float
    solve_seconds: float
    write_seconds: float
    peak_memory_bytes: int
    """Largest resident memory of the worker process so far."""
    node: str
    pid: int
    largest_gap: float | None = None
    """Largest certified gap of the tile's pairs, relative to their matched inner products; None where nothing certifies one."""
    mean_gap: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """Several units that a worker does one after the other."""

    number: int
    """Counts up with each submission, so that a second attempt is another task."""
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task."""

    task: Task
    receipts: tuple[Receipt, ...] = ()
    """One receipt a unit, unless the task was lost."""
    lost: str | None = None
    """Why the whole task came to nothing (its worker died, say), or None."""
    out_of_memory: bool = False
    """Whether it was lost because its worker was killed for memory."""
