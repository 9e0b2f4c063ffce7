"""Rows of an array in a file, read in pieces of bounded size whatever the array's own chunks are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.extraction.sources.protocol import StoredArray, reading

SLAB_BYTES = 16 * 2**20
"""Rows are read from the file in slabs of about this size."""
LARGEST_SLAB_BYTES = 256 * 2**20
"""A slab may grow to this size where the array's chunks have so many rows, each of which would be decoded again and again."""


class KeptRows:
    """The rows of an array that are kept, as float32.

    Parameters
    ----------
    where
        The array's file, for sentences.
    name
        The array's name, for sentences.
    array
        The array, of floating-point numbers of any size.
    kept
        Its rows that are kept, ascending.
    """

    def __init__(self, where: str, name: str, array: StoredArray, kept: NDArray[np.int64]) -> None:
        self._where, self._name, self._array, self._kept = where, name, array, kept
        row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        self._slab_rows = slab_rows(row_bytes, array.chunk_rows)
        self._slab_index = -1
        self._slab: NDArray[np.floating] = np.empty(0, np.float32)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return self._array.shape[1:]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """The kept rows from ``start`` to ``stop``, counted among those that are kept, ``(stop - start, …)``."""
        rows = self._kept[start:stop]
        values = np.empty((len(rows), *self.row_shape), dtype=np.float32)
        slabs = rows // self._slab_rows
        for index in np.unique(slabs).tolist():
            inside = slabs == index
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
                values[inside] = self._read_slab(index)[rows[inside] - index * self._slab_rows]
        return values

    def _read_slab(self, index: int) -> NDArray[np.floating]:
        """One slab; the last one is kept, since the next block mostly begins in it."""
        if index != self._slab_index:
            self._slab = np.empty(0, np.float32)  # not two of them at a time
            start = index * self._slab_rows
            with reading(self._where, self._name):
                self._slab = self._array.read(start, min(start + self._slab_rows, self._array.shape[0]))
            self._slab_index = index
        return self._slab


def slab_rows(row_bytes: int, chunk_rows: int) -> int:
    """Rows to read at once: whole chunks where they fit.

    >>> slab_rows(row_bytes=2**20, chunk_rows=5), slab_rows(2**20, 100), slab_rows(2**20, 10**6), slab_rows(2**40, 1)
    (15, 100, 256, 1)
    """
    fitting = max(1, SLAB_BYTES // max(1, row_bytes))
    if fitting >= chunk_rows:
        return fitting // chunk_rows * chunk_rows
    return max(1, min(chunk_rows, LARGEST_SLAB_BYTES // max(1, row_bytes)))
