"""σ of the RBF kernel: one statistic of all pairs of an RSM, exact and in bounded memory.

Wald et al. (NeurIPS 2024) set σ from the median distance. A σ of each tile would make values of different tiles
incomparable, so the median is taken over the whole RSM here, by selection on the bits of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.kernels import rbf
from semrsm_dist.names import SigmaRule
from storage_schemas.errors import InvalidInputError

Blocks = Callable[[], Iterable[NDArray[np.float64]]]
"""Gives the values anew, block by block, each time it is called."""

KEEP = 2**22
"""Values that may be held at once; a smaller range is gathered and sorted instead of counted again."""
_BITS = 16


def sigma_squared(squared_distances: Blocks, rule: SigmaRule | float = "median_sq") -> float:
    """``σ²`` of the RBF kernel under a global rule.

    Parameters
    ----------
    squared_distances
        Gives blocks of ``d²`` that hold every unordered pair equally often.
    rule
        ``median_sq``: the median of the non-zero ``d²`` (the authors' code); ``median``: the median of the non-zero ``d``
        (the paper's text); a number: σ itself (``fixed``).

    Raises
    ------
    InvalidInputError
        When all distances are zero, or the rule is not a global one.
    """
    if not isinstance(rule, str):
        if not (rule > 0 and np.isfinite(rule)):
            raise InvalidInputError(f"σ is {rule}; a fixed σ must be a positive number.")
        return float(rule) ** 2
    if rule == "median_sq":
        return exact_median(squared_distances)
    if rule == "median":
        return exact_median(lambda: (np.sqrt(block) for block in squared_distances()))
    raise InvalidInputError(
        f"The σ rule {rule!r} does not give one σ for the RSM; use median_sq, median, or a number for a fixed σ."
    )


def rbf_of_tile(squared_distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """RBF kernel of one tile with a σ of its own (the rule ``tile``); 1 where the tile has no distances but zeros."""
    if not squared_distances.any():
        return np.ones_like(squared_distances)
    return rbf(squared_distances, exact_median(lambda: [squared_distances]))


def exact_median(blocks: Blocks, keep: int = KEEP) -> float:
    """The median of the non-zero values, equal to :func:`numpy.median` to the bit.

    Non-negative float64 values are ordered as their bits are, read as unsigned integers. Each pass counts the next 16 bits
    of the values that share the median's leading bits, until few enough are left to be sorted.

    Parameters
    ----------
    blocks
        Gives blocks of non-negative values; called at most six times.
    keep
        How many values may be held in memory.

    Raises
    ------
    InvalidInputError
        When there is no non-zero value.
    """
    total, below, prefix, shift = 0, 0, 0, 64
    lower = upper = 0
    while True:
        shift -= _BITS
        counts = np.zeros(2**_BITS, dtype=np.int64)
        for keys in _keys(blocks, prefix, shift + _BITS):
            digits = (keys >> np.uint64(shift)) & np.uint64(2**_BITS - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=2**_BITS)
        if shift == 64 - _BITS:
            total = int(counts.sum())
            if total == 0:
                raise InvalidInputError(
                    "All distances between samples are zero, so the RBF kernel has no σ; check that the samples differ."
                )
            lower, upper = (total - 1) // 2, total // 2
        reached = below + np.cumsum(counts)
        first, second = (int(np.searchsorted(reached, rank, side="right")) for rank in (lower, upper))
        if first != second:  # the middle falls between two ranges
            low, high = (prefix << _BITS) | first, (prefix << _BITS) | second
            largest = max(int(keys.max()) for keys in _keys(blocks, low, shift) if keys.size)
            smallest = min(int(keys.min()) for keys in _keys(blocks, high, shift) if keys.size)
            return float(np.mean(np.array([largest, smallest], dtype=np.uint64).view(np.float64)))
        below = int(reached[first] - counts[first])
        prefix = (prefix << _BITS) | first
        if shift == 0:
            return float(np.array([prefix], dtype=np.uint64).view(np.float64)[0])
        if counts[first] <= keep:
            values = np.sort(np.concatenate(list(_keys(blocks, prefix, shift)))).view(np.float64)
            return float(np.mean(values[[lower - below, upper - below]]))


def _keys(blocks: Blocks, prefix: int, shift: int) -> Iterator[NDArray[np.uint64]]:
    """Bits of the non-zero values whose leading bits, from ``shift`` upwards, are ``prefix``."""
    for block in blocks():
        values = np.ascontiguousarray(block, dtype=np.float64).ravel()
        keys = values[values > 0].view(np.uint64)
        yield keys if shift == 64 else keys[keys >> np.uint64(shift) == prefix]
