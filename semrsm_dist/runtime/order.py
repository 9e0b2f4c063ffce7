"""The order in which tiles are handed out, and what it costs to read their blocks.

Tiles follow a Hilbert curve over the grid, so that any run of consecutive tiles, a task's say, lies in a compact patch: ``n``
tiles need about ``2 √n`` blocks of samples, where a row of tiles needs ``n + 1``. No size of cache has to be known for that.
The curve is that of D. Hilbert, "Über die stetige Abbildung einer Linie auf ein Flächenstück" (1891).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.grid import TileKey
from semrsm_dist.runtime.units import Unit

_KEYS_TO_REPLAY = 20_000
"""Tiles whose reads are counted one by one; more are taken to be like these."""


def hilbert_index(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of tiles along a Hilbert curve that covers the whole grid.

    Parameters
    ----------
    rows, columns
        ``(n,)`` each, at least 0.

    Returns
    -------
    ndarray
        ``(n,)``, all different where the tiles are; tiles with consecutive numbers are neighbours.

    >>> grid = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    >>> [tuple(map(int, grid[i])) for i in np.argsort(hilbert_index(grid[:, 0], grid[:, 1]))]
    [(0, 0), (1, 0), (1, 1), (0, 1)]
    """
    x, y = columns.astype(np.int64), rows.astype(np.int64)
    index = np.zeros_like(x)
    digits = int(max(x.max(initial=0), y.max(initial=0))).bit_length()
    for digit in reversed(range(digits)):
        side = np.int64(1) << digit
        right, down = (x & side) > 0, (y & side) > 0
        index += side * side * ((3 * right) ^ down)
        turned = ~down  # the quadrant's own curve is turned, and turned round in the last one
        flipped = turned & right
        x[flipped], y[flipped] = ~x[flipped], ~y[flipped]
        x, y = np.where(turned, y, x) & (side - 1), np.where(turned, x, y) & (side - 1)
    return index


def along_the_curve(units: Sequence[Unit]) -> list[Unit]:
    """Units with the tiles along a Hilbert curve: norms first and as they come, invariances of a tile beside each other."""
    norms = [unit for unit in units if unit.part != "tile"]
    tiles = [unit for unit in units if unit.part == "tile"]
    rows = np.fromiter((unit.key.row for unit in tiles), np.int64, len(tiles))
    columns = np.fromiter((unit.key.column for unit in tiles), np.int64, len(tiles))
    return norms + [tiles[position] for position in np.argsort(hilbert_index(rows, columns), kind="stable")]


def blocks_read(keys: Iterable[TileKey], n_keys: int, *, room: int, per_task: int, workers: int, symmetric: bool) -> float:
    """How often blocks of samples are read from the store for tiles in this order.

    Parameters
    ----------
    keys
        Tiles, in order; the first of them are replayed, and more are taken to be like these.
    n_keys
        How many there are.
    room
        Blocks that a worker keeps.
    per_task
        Tiles in a task.
    workers
        Tasks go to the workers in turn, each with a cache of its own.
    symmetric
        Whether rows and columns are the same samples, so that a block of one serves as the other.

    >>> blocks_read([TileKey(0, 0), TileKey(0, 1)], 2, room=2, per_task=2, workers=1, symmetric=False)
    3.0
    """
    caches: list[OrderedDict[tuple[bool, int], None]] = [OrderedDict() for _ in range(max(workers, 1))]
    reads = replayed = 0
    for key in islice(keys, _KEYS_TO_REPLAY):
        cache = caches[replayed // max(per_task, 1) % len(caches)]
        replayed += 1
        for block in ((False, key.row), (not symmetric, key.column)):
            if block in cache:
                cache.move_to_end(block)
                continue
            reads += 1
            while len(cache) >= room:
                cache.popitem(last=False)
            cache[block] = None
    return reads * n_keys / replayed if replayed else 0.0
