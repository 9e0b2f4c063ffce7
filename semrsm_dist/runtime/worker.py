"""What a worker does: read two blocks, compute the tile, write it, say so."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.grid import Grid, grid_from
from semrsm_dist.matching import Alignment, MatchingSettings, alignment
from semrsm_dist.names import Invariance
from semrsm_dist.runtime.units import Receipt, Unit
from semrsm_dist.tile import ReadBlock, centred, compute_tile_in_blocks
from storage_schemas import ActivationStore, RsmStore, SemrsmError
from storage_schemas.errors import FingerprintMismatchError
from storage_schemas.location import Location
from storage_schemas.rsm import Side


@dataclass(frozen=True)
class RsmJob:
    """Everything a worker must know to compute any tile of one RSM; plain values, so that it travels as JSON."""

    rows: str
    """URL of the activation store of the rows."""
    columns: str
    """URL of the activation store of the columns; the same as ``rows`` when the grid is symmetric."""
    out: str
    """URL of the RSM store, already created."""
    fingerprint: str
    """Of the RSM store, so that a worker that lives on never serves blocks of a store that was made anew."""
    matching: MatchingSettings = field(default_factory=MatchingSettings)
    block_samples: int | None = None
    """Samples that are read and matched together; a tile's, when None."""
    cache_bytes: int = 0
    """Budget of a worker for blocks of samples that it keeps beyond the two in use."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The job that :meth:`to_json` described."""
        return cls(**{**values, "matching": MatchingSettings(**values["matching"])})


class TileWorker:
    """Computes units of one RSM, keeping recently used blocks of samples."""

    def __init__(self, job: RsmJob) -> None:
        self._job = job
        self._rows = ActivationStore.open(job.rows)
        self._columns = self._rows if job.columns == job.rows else ActivationStore.open(job.columns)
        self._store = RsmStore.open(job.out, writable=True)
        check_packages(self._store.location, self._store.attributes["computed_from"])
        self._grid: Grid = grid_from(self._store.grid, self._store.shape, self._store.tile_size)
        self._centre = self._store.read_centre()
        self._bounded = {name for name in self._store.invariances() if self._store.has_upper_bounds(name)}
        self._alignments: dict[Invariance, Alignment] = {}
        self._block_samples = min(job.block_samples or self._grid.tile_size, self._grid.tile_size)
        self._blocks: OrderedDict[tuple[Side, int], NDArray[np.float32]] = OrderedDict()

    def run(self, units: Iterable[Unit]) -> list[Receipt]:
        """Do the units one after the other; an error in one is its receipt's, and the others go on."""
        with threadpool_limits(limits=1):  # one core a worker: the executor runs as many as there are cores
            return [self._attempt(unit) for unit in units]

    def _attempt(self, unit: Unit) -> Receipt:
        """One unit, timed."""
        started, clock = datetime.now(UTC), _Stopwatch()
        checksum, gaps, error = None, None, None
        try:
            checksum, gaps = self._do(unit, clock)
        except Exception as caught:
            error = caught
        return Receipt(
            unit=unit,
            error=None if error is None else (str(error) or repr(error)).splitlines()[0],
            error_type=None if error is None else type(error).__name__,
            checksum=checksum,
            started=started,
            ended=datetime.now(UTC),
            read_seconds=clock.seconds["read"],
            solve_seconds=clock.seconds["solve"],
            write_seconds=clock.seconds["write"],
            peak_memory_bytes=peak_memory_bytes(),
            node=socket.gethostname(),
            pid=os.getpid(),
            largest_gap=None if gaps is None else float(gaps.max()),
            mean_gap=None if gaps is None else float(gaps.mean()),
        )

    def _do(self, unit: Unit, clock: _Stopwatch) -> tuple[str, NDArray[np.float64] | None]:
        """Compute and write the chunk of a unit; returns its checksum and, of a tile, the relative gaps of its pairs."""
        aligned = self._alignment(unit.invariance)
        if unit.part != "tile":
            side: Side = "row" if unit.part == "row_norms" else "column"
            read, length = self._reader(side, unit.key.row, clock)
            blocks = range(0, length, self._block_samples)
            norms = np.concatenate([aligned.norms(read(slice(first, first + self._block_samples))) for first in blocks])
            clock.lap("solve")
            checksum = self._store.write_norms(unit.invariance, side, unit.key.row, norms)
            clock.lap("write")
            return checksum, None
        (rows, n_rows), (columns, n_columns) = (
            self._reader("row", unit.key.row, clock),
            self._reader("column", unit.key.column, clock),
        )
        same = self._grid.symmetric and unit.key.on_diagonal
        matched = compute_tile_in_blocks(rows, columns, (n_rows, n_columns), self._block_samples, aligned, same=same)
        clock.lap("solve")
        bounds = matched.upper_bounds if unit.invariance in self._bounded else None
        checksum = self._store.write_tile(unit.invariance, unit.key.row, unit.key.column, matched.inner_products, bounds)
        clock.lap("write")
        return checksum, matched.relative_gaps()

    def _alignment(self, invariance: Invariance) -> Alignment:
        if invariance not in self._alignments:
            self._alignments[invariance] = alignment(invariance, self._job.matching, self._rows.spatial_shape)
        return self._alignments[invariance]

    def _reader(self, side: Side, index: int, clock: _Stopwatch) -> tuple[ReadBlock, int]:
        """What reads slices of the rows or columns of a tile, and how many there are."""
        store = self._rows if side == "row" else self._columns
        begin = index * self._grid.tile_size
        end = min(begin + self._grid.tile_size, store.n_samples)

        def read(part: slice) -> NDArray[np.float32]:
            clock.lap("solve")
            block = self._block(side, begin + part.start, min(begin + part.stop, end))
            clock.lap("read")
            return block

        return read, end - begin

    def _block(self, side: Side, start: int, stop: int) -> NDArray[np.float32]:
        """A centred block of samples, from the cache or the store."""
        store = self._rows if side == "row" else self._columns
        wanted: tuple[Side, int] = ("row" if store is self._rows else side, start)
        if wanted in self._blocks:
            self._blocks.move_to_end(wanted)
            return self._blocks[wanted]
        block_bytes = self._block_samples * store.n_positions * store.n_channels * 4
        room = max(2 + self._job.cache_bytes // block_bytes, 2)
        while len(self._blocks) >= room:  # before the new one is read, so that there are never more
            self._blocks.popitem(last=False)
        block = centred(store.read(start, stop), self._centre)
        self._blocks[wanted] = block
        return block


def check_packages(store: Location, computed_from: Mapping[str, Any]) -> None:
    """Refuse to write where this node has other versions of the packages than a store was created with."""
    recorded: Mapping[str, str] = computed_from["packages"]
    here = {name: version(name) for name in recorded}
    other = [f"{name} {here[name]} instead of {recorded[name]}" for name in recorded if here[name] != recorded[name]]
    if other:
        raise FingerprintMismatchError(
            f"Node {socket.gethostname()} has other packages than {store} was created with ({', '.join(other)}); "
            "give every node the same."
        )


def refusals(units: Iterable[Unit], error: SemrsmError) -> list[Receipt]:
    """Receipts of units that a worker could not begin with, because it cannot work with the stores."""
    now = datetime.now(UTC)
    node, pid = socket.gethostname(), os.getpid()
    text, kind = str(error), type(error).__name__
    return [Receipt(unit, text, kind, None, now, now, 0.0, 0.0, 0.0, peak_memory_bytes(), node, pid) for unit in units]


class _Stopwatch:
    """Seconds since the last lap, added up by name."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "solve": 0.0, "write": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    with suppress(OSError), open("/proc/self/status") as status:  # getrusage begins with what the parent had
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
