"""The plan: what a run will cost in tiles, bytes, memory and time, before it starts."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.grid import DEFAULT_TILE_SIZE, Grid
from semrsm_dist.matching import Alignment, MatchingSettings, alignment
from semrsm_dist.matching.panels import PANEL, whole_panels
from semrsm_dist.names import Invariance
from semrsm_dist.progress import binary_size, duration
from semrsm_dist.runtime.dispatch import Policy
from semrsm_dist.runtime.order import blocks_read
from semrsm_dist.runtime.units import Unit
from semrsm_dist.tile import centred, compute_tile
from storage_schemas import ActivationStore, InvalidInputError, RsmStore

PROCESS_BYTES = 300 * 2**20
"""Resident memory of a worker process without samples: Python, NumPy, SciPy, Numba, Zarr and Ray; 235 MiB when measured."""
TORCH_BYTES = 250 * 2**20
"""What PyTorch adds, where bfloat16 needs it; 195 MiB when measured."""
_CHUNKS_AT_ONCE = 10
"""That Zarr reads and decodes at a time, unless it is configured otherwise."""
CACHE_BYTES = 2**30
"""The most that a worker's cache of blocks is given."""
_SAMPLES_TO_TIME = (4, 32)
"""Rows and columns of the pairs that are timed: at least, and when those take no time, at most."""
_SECONDS_TO_TIME = 0.2


@dataclass(frozen=True)
class RsmPlan:
    """What a run will cost."""

    shape: tuple[int, int]
    """``(N, M)``."""
    n_positions: int
    n_channels: int
    invariances: tuple[str, ...]
    n_tiles: int
    """Tiles of all invariances."""
    n_missing: int
    """Of those, what is not in the store yet."""
    n_pairs: int
    """Pairs of all invariances."""
    store_bytes: int
    """Size on disk of the finished tiles."""
    bytes_read: float
    """Activations that workers will read, uncompressed, with the caches that they have."""
    bytes_written: int
    """Tiles that will be written."""
    memory_per_worker: int
    """Projected peak memory of one worker, in bytes, the cache included."""
    block_samples: int
    """Samples that a worker reads and matches together: those of a tile, or fewer where a tile's do not fit its memory."""
    cache_bytes: int
    """Of the memory, for blocks of samples that are kept beyond the two in use."""
    pair_seconds: Mapping[str, float]
    """Seconds for one pair under each invariance, timed on real pairs, on one core."""
    cpu_seconds: float
    """Estimated CPU time of what is missing."""
    workers: int

    @property
    def tile_seconds(self) -> dict[tuple[str, str], float]:
        """Seconds for one tile under each invariance, as the dispatch loop takes them."""
        pairs = self.n_pairs / self.n_tiles if self.n_tiles else 0.0
        return {("tile", name): seconds * pairs for name, seconds in self.pair_seconds.items()}

    @property
    def seconds(self) -> float:
        """Estimated time to the end."""
        return self.cpu_seconds / self.workers

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "seconds": self.seconds}

    def __str__(self) -> str:
        timed = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in self.pair_seconds.items())
        return "\n".join(
            (
                f"  RSM          {self.shape[0]:,} × {self.shape[1]:,}, S = {self.n_positions:,}, C = {self.n_channels:,}, "
                f"invariances {', '.join(self.invariances)}",
                f"  tiles        {self.n_tiles:,} ({self.n_missing:,} to compute), {self.n_pairs:,} pairs",
                f"  disk         {binary_size(self.store_bytes)} when finished; about {binary_size(self.bytes_read)} to read, "
                f"{binary_size(self.bytes_written)} to write",
                f"  memory       {binary_size(self.memory_per_worker)} per worker, in blocks of {self.block_samples} samples",
                f"  one pair     {timed}",
                f"  time         {duration(self.cpu_seconds)} of CPU, about {duration(self.seconds)} "
                f"with {self.workers} worker{'s' if self.workers != 1 else ''}",
            )
        )


def project_memory(
    block_samples: int,
    n_positions: int,
    n_channels: int,
    itemsize: int,
    working_bytes: int,
    chunk_samples: int,
    tile_size: int = DEFAULT_TILE_SIZE,
) -> int:
    """Peak memory of a worker in bytes, from shapes alone, beside the process itself.

    Two centred float32 blocks; one block as stored; the chunks it is decoded from, compressed and decoded; and what the
    alignment allocates. All of it is added up although it is not in use at the same time, since the C library keeps much
    of what it was given back. A cache of more blocks comes on top, from what the worker may use.

    >>> project_memory(100, 49, 1280, 4, 0, 50) // 2**20
    119
    """
    sample = n_positions * n_channels
    before = chunk_samples - math.gcd(tile_size, block_samples, chunk_samples)  # of a block in its first chunk, at most
    in_flight = min((before + block_samples - 1) // chunk_samples + 1, _CHUNKS_AT_ONCE) * chunk_samples
    return 2 * block_samples * sample * 4 + (block_samples + 2 * in_flight) * sample * itemsize + working_bytes


def fit_blocks(project: Callable[[int], int], tile_samples: int, memory_limit: int | None) -> int:
    """The largest blocks whose memory is within a limit: a tile's samples, or a multiple of panels.

    Parameters
    ----------
    project
        Bytes that blocks of so many samples need.
    tile_samples
        Samples of a tile.
    memory_limit
        Bytes a worker may use; blocks are a tile's when None.

    Raises
    ------
    InvalidInputError
        When not even the smallest block fits.

    >>> fit_blocks(lambda samples: samples * 10, 100, 800)
    75
    """
    sizes = [tile_samples, *(size for size in range(whole_panels(tile_samples) - PANEL, 0, -PANEL))]
    fitting = next((size for size in sizes if memory_limit is None or project(size) <= memory_limit), None)
    if fitting is None:
        assert memory_limit is not None
        raise InvalidInputError(
            f"A worker would need {binary_size(project(sizes[-1]))} for blocks of {sizes[-1]} samples, the smallest, "
            f"and may use {binary_size(memory_limit)}; use fewer workers, or a machine with more memory."
        )
    return fitting


def time_pairs(
    rows: ActivationStore,
    columns: ActivationStore,
    store: RsmStore,
    invariances: Sequence[Invariance],
    matching: MatchingSettings,
) -> dict[str, float]:
    """Seconds of one pair under each invariance, from a few real pairs on one core."""
    centre = store.read_centre()
    least, most = _SAMPLES_TO_TIME
    found: dict[str, float] = {}
    first, second = (centred(side.read(0, min(least, side.n_samples)), centre) for side in (rows, columns))
    with threadpool_limits(limits=1):
        for invariance in invariances:
            aligned = alignment(invariance, matching, rows.spatial_shape)
            compute_tile(first[:1], second[:1], aligned)  # the first call loads libraries and compiles
            seconds, n_pairs = _timed(first, second, aligned)
            if seconds < _SECONDS_TO_TIME and least < min(rows.n_samples, columns.n_samples):
                more = [centred(side.read(0, min(most, side.n_samples)), centre) for side in (rows, columns)]
                seconds, n_pairs = _timed(more[0], more[1], aligned)
            found[invariance] = seconds / n_pairs
    return found


def _timed(first: NDArray[np.float32], second: NDArray[np.float32], aligned: Alignment) -> tuple[float, int]:
    """Seconds that a tile takes, and its number of pairs."""
    begin = time.perf_counter()
    compute_tile(first, second, aligned)
    return time.perf_counter() - begin, len(first) * len(second)


def make_plan(
    grid: Grid,
    rows: ActivationStore,
    columns: ActivationStore,
    invariances: Sequence[Invariance],
    matching: MatchingSettings,
    *,
    missing: Sequence[Unit],
    pair_seconds: Mapping[str, float],
    workers: int,
    memory_limit: int | None = None,
) -> RsmPlan:
    """Put a plan together.

    Parameters
    ----------
    missing
        Units to compute, in the order in which they will be handed out.
    pair_seconds
        See :func:`time_pairs`.
    workers
        How many run at once.
    memory_limit
        Bytes a worker may use, of which what is left goes to the cache; no cache when None.

    Raises
    ------
    InvalidInputError
        When a worker needs more than it may use.
    """
    n_positions, n_channels, size = rows.n_positions, rows.n_channels, grid.tile_size
    alignments = [alignment(name, matching, rows.spatial_shape) for name in invariances]

    def project(block_samples: int) -> int:
        working = max(aligned.working_bytes(block_samples, n_positions, n_channels) for aligned in alignments)
        process = PROCESS_BYTES + (TORCH_BYTES if "torch" in matching.packages() else 0)
        itemsize, chunk_samples = rows.dtype.itemsize, max(rows.chunk_samples, columns.chunk_samples)
        return process + project_memory(block_samples, n_positions, n_channels, itemsize, working, chunk_samples, size)

    block_samples = fit_blocks(project, min(size, max(grid.shape)), memory_limit)
    least = project(block_samples)
    pairs_per_tile = grid.n_pairs / grid.n_tiles
    tiles = Counter(unit.invariance for unit in missing if unit.part == "tile")
    tile_bytes = size * size * 8 + 4
    all_blocks = (grid.shape[0] + (0 if grid.symmetric else grid.shape[1])) * n_positions * n_channels * 4
    cache = 0 if memory_limit is None else min(memory_limit - least, CACHE_BYTES, all_blocks)
    seconds = pairs_per_tile * sum(pair_seconds[name] for name in invariances)
    return RsmPlan(
        shape=grid.shape,
        n_positions=n_positions,
        n_channels=n_channels,
        invariances=tuple(invariances),
        n_tiles=grid.n_tiles * len(invariances),
        n_missing=tiles.total(),
        n_pairs=grid.n_pairs * len(invariances),
        store_bytes=grid.n_tiles * len(invariances) * tile_bytes,
        bytes_read=_bytes_read(missing, grid, block_samples, n_positions * n_channels * 4, cache, seconds, workers),
        bytes_written=tiles.total() * tile_bytes,
        memory_per_worker=least + cache,
        block_samples=block_samples,
        cache_bytes=cache,
        pair_seconds=dict(pair_seconds),
        cpu_seconds=float(sum(tiles[name] * pairs_per_tile * pair_seconds[name] for name in invariances)),
        workers=workers,
    )


def _bytes_read(
    missing: Sequence[Unit],
    grid: Grid,
    block_samples: int,
    sample_bytes: int,
    cache_bytes: int,
    seconds_per_key: float,
    workers: int,
) -> float:
    """Bytes of features that workers read for the missing units; a tile in several blocks finds none of them in a cache."""
    block_bytes = block_samples * sample_bytes
    blocks_a_side = -(-min(grid.tile_size, max(grid.shape)) // block_samples)
    keys = list(dict.fromkeys(unit.key for unit in missing if unit.part == "tile"))
    norms = len({(unit.key, unit.part) for unit in missing if unit.part != "tile"}) * blocks_a_side
    if blocks_a_side > 1:
        return (norms + len(keys) * (2 * blocks_a_side + (blocks_a_side - 1) ** 2)) * block_bytes
    per_task = max(int(Policy.task_seconds / seconds_per_key), 1) if seconds_per_key else len(keys)
    room = 2 + cache_bytes // block_bytes
    reads = blocks_read(keys, len(keys), room=room, per_task=per_task, workers=workers, symmetric=grid.symmetric)
    return (norms + reads) * block_bytes


def machine_memory_bytes() -> int:
    """Memory that this process may use, in bytes: the machine's, or its container's when that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def machine_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
