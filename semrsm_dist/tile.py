"""One tile: two blocks of samples in, matched inner products out. Pure NumPy, no stores, no Ray."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching import Alignment, Matched
from semrsm_dist.matching.panels import PANEL
from semrsm_dist.matching.values import mirror
from semrsm_dist.names import Centring

ReadBlock = Callable[[slice], NDArray[np.float32]]
"""Gives the centred samples ``(n, S, C)`` of a slice of a tile's rows or columns, counted from the tile's first."""


def centred(features: NDArray[np.floating], centre: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Features less the database's mean, as float32.

    Parameters
    ----------
    features
        ``(n, S, C)`` of any floating type.
    centre
        ``(S, C)`` (a mean per position and channel), ``(C,)`` (a mean per channel), or None.
    """
    if centre is None:
        return np.ascontiguousarray(features, dtype=np.float32)
    block = np.empty(features.shape, dtype=np.float32)
    for index, sample in enumerate(features):  # one sample at a time is widened to float64
        block[index] = sample - centre
    return block


class CentreAccumulator:
    """The mean to subtract, accumulated in float64 over blocks of the database in the order they are added.

    Samples are added one after the other within a block, and then block after block. Such a sum of float32 values is exact
    while their magnitudes differ by less than 2²⁹ divided by the number of samples. Where they differ by more, it is off by
    some 10⁻¹⁶ of the mean magnitude, and its last bits depend on the size of the blocks: the chunks of the store.
    """

    def __init__(self, centring: Centring) -> None:
        self._centring = centring
        self._total: NDArray[np.float64] | None = None
        self._n_samples = 0

    def add(self, features: NDArray[np.floating]) -> None:
        """Add a block ``(n, S, C)``."""
        if self._centring == "none":
            return
        total = features.sum(axis=0, dtype=np.float64)
        self._total = total if self._total is None else self._total + total
        self._n_samples += len(features)

    def result(self) -> NDArray[np.float64] | None:
        """The centre: ``(S, C)`` for ``position``, ``(C,)`` for ``channel``, None for ``none``."""
        if self._total is None:
            return None
        mean = self._total / self._n_samples
        return mean.mean(axis=0) if self._centring == "channel" else mean


def compute_tile(
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
    alignment: Alignment,
    *,
    same: bool = False,
) -> Matched:
    """Matched inner products of every pair of two blocks.

    Parameters
    ----------
    rows, columns
        Centred blocks ``(n, S, C)`` and ``(m, S, C)``, see :func:`centred`.
    alignment
        How two samples are aligned, see :func:`semrsm_dist.matching.alignment`.
    same
        Whether both blocks are the same samples: a tile on the diagonal of a symmetric grid. Each unordered pair is then
        computed once and the result is exactly symmetric.

    Returns
    -------
    Matched
        ``m`` and its upper bounds, each ``(n, m)`` float64.
    """
    prepared = alignment.prepare(rows)
    return alignment.inner_products(prepared, prepared if same else alignment.prepare(columns), same=same)


def compute_tile_in_blocks(
    read_rows: ReadBlock,
    read_columns: ReadBlock,
    shape: tuple[int, int],
    block_samples: int,
    alignment: Alignment,
    *,
    same: bool = False,
) -> Matched:
    """Matched inner products of a tile that is too large for the memory, block by block: :func:`compute_tile`, to the bit.

    Parameters
    ----------
    read_rows, read_columns
        Called for one block after the other; from one call to the next at least one of the two blocks stays the same.
    shape
        ``(n, m)`` of the tile.
    block_samples
        Samples of a block: a multiple of :data:`~semrsm_dist.matching.panels.PANEL`, or at least ``max(n, m)``.
    alignment, same
        As :func:`compute_tile` takes them.
    """
    if block_samples % PANEL and block_samples < max(shape):
        raise ValueError(f"blocks of {block_samples} samples are not whole panels of {PANEL}")
    values, bounds = np.empty(shape), np.empty(shape)
    bounded = True
    row_blocks, column_blocks = (_slices(length, block_samples) for length in shape)
    for number, i in enumerate(row_blocks):
        rows = read_rows(i)
        for j in column_blocks if number % 2 == 0 else reversed(column_blocks):  # back and forth: each turn shares a block
            if same and j.start < i.start:
                continue
            on_diagonal = same and i == j
            matched = compute_tile(rows, rows if on_diagonal else read_columns(j), alignment, same=on_diagonal)
            values[i, j] = matched.inner_products
            if matched.upper_bounds is None:
                bounded = False
            else:
                bounds[i, j] = matched.upper_bounds
    if same:
        mirror(values)
        mirror(bounds)
    return Matched(values, bounds if bounded else None)


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover a length."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
