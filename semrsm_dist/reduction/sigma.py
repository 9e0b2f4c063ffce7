"""σ of the RBF kernel: one statistic of all pairs of an RSM, exact and in bounded memory.

Wald et al. (NeurIPS 2024) set σ from the median distance. A σ of each tile would make values of different tiles
incomparable, so the median is taken over the whole RSM here, by selection on the bits of the values.

The selection asks a few questions about all values (how many begin with these bits? which are they?). A question is answered
for each part of the values by itself, in any process, and the answers are joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.kernels import rbf
from semrsm_dist.names import SigmaRule
from storage_schemas.errors import InvalidInputError

Values = Iterable[NDArray[np.float64]]
"""Values, block by block."""
Blocks = Callable[[], Values]
"""Gives the values anew, block by block, each time it is called."""
Answer = TypeVar("Answer")
Question = Callable[[Values], Answer]
"""What is asked about the values of one part; can be pickled."""

KEEP = 2**22
"""Values that may be held at once; a smaller range is gathered and sorted instead of counted again."""
_BITS = 16


class Parts(Protocol):
    """Values in parts, each of which is asked by itself."""

    def __call__(self, question: Question[Answer], /) -> Iterable[Answer]:
        """The answer of each part; answers are small, but for those that gather values."""


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
    return sigma_squared_of_parts(_one_part(squared_distances), rule)


def sigma_squared_of_parts(squared_distances: Parts, rule: SigmaRule | float) -> float:
    """:func:`sigma_squared` of values in parts."""
    if not isinstance(rule, str):
        if not (rule > 0 and np.isfinite(rule)):
            raise InvalidInputError(f"σ is {rule}; a fixed σ must be a positive number.")
        return float(rule) ** 2
    if rule == "median_sq":
        return median_of_parts(squared_distances)
    if rule == "median":
        return median_of_parts(lambda question: squared_distances(partial(_ask_roots, question)))
    raise InvalidInputError(
        f"The σ rule {rule!r} does not give one σ for the RSM; use median_sq, median, or a number for a fixed σ."
    )


def rbf_of_tile(squared_distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """RBF kernel of one tile with a σ of its own (the rule ``tile``); 1 where the tile has no distances but zeros."""
    if not squared_distances.any():
        return np.ones_like(squared_distances)
    return rbf(squared_distances, exact_median(lambda: [squared_distances]))


def exact_median(blocks: Blocks, keep: int = KEEP) -> float:
    """:func:`median_of_parts` of values in one part, which ``blocks`` gives anew at most six times."""
    return median_of_parts(_one_part(blocks), keep)


def median_of_parts(parts: Parts, keep: int = KEEP) -> float:
    """The median of the non-zero values, equal to :func:`numpy.median` to the bit.

    Non-negative float64 values are ordered as their bits are, read as unsigned integers. Each pass counts the next 16 bits
    of the values that share the median's leading bits, until few enough are left to be sorted.

    Parameters
    ----------
    parts
        Non-negative values; asked at most five times.
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
        for part in parts(partial(_count_digits, prefix=prefix, shift=shift)):
            counts += part
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
            largest, smallest = -1, 2**64
            for end, start in parts(partial(_inner_ends, low=low, high=high, shift=shift)):
                largest, smallest = max(largest, end), min(smallest, start)
            return float(np.mean(np.array([largest, smallest], dtype=np.uint64).view(np.float64)))
        below = int(reached[first] - counts[first])
        prefix = (prefix << _BITS) | first
        if shift == 0:
            return float(np.array([prefix], dtype=np.uint64).view(np.float64)[0])
        if counts[first] <= keep:
            keys, filled = np.empty(counts[first], dtype=np.uint64), 0
            for found in parts(partial(_gather, prefix=prefix, shift=shift)):
                keys[filled : filled + len(found)] = found
                filled += len(found)
            keys.sort()
            return float(np.mean(keys.view(np.float64)[[lower - below, upper - below]]))


def _one_part(blocks: Blocks) -> Parts:
    """Values that are asked in this process, all at once."""

    def parts(question: Question[Answer], /) -> Iterable[Answer]:
        return [question(blocks())]

    return parts


def _ask_roots(question: Question[Answer], values: Values) -> Answer:
    """The answer to a question about the square roots of the values."""
    return question(np.sqrt(block) for block in values)


def _count_digits(values: Values, *, prefix: int, shift: int) -> NDArray[np.int64]:
    """How often each 16 bits from ``shift`` upwards follow the leading bits ``prefix``."""
    counts = np.zeros(2**_BITS, dtype=np.int64)
    for keys in _keys(values, prefix, shift + _BITS):
        if keys.size:
            digits = ((keys >> np.uint64(shift)) & np.uint64(2**_BITS - 1)).astype(np.int64)
            least = int(digits.min())  # leading digits lie close together, and so few counters are touched
            found = np.bincount(digits - least)
            counts[least : least + len(found)] += found
    return counts


def _inner_ends(values: Values, *, low: int, high: int, shift: int) -> tuple[int, int]:
    """The largest key of one range and the smallest of a higher one; out of both where there is none."""
    largest, smallest = -1, 2**64
    for keys in _keys(values, 0, 64):
        leading = keys >> np.uint64(shift)
        lower, higher = keys[leading == low], keys[leading == high]
        if lower.size:
            largest = max(largest, int(lower.max()))
        if higher.size:
            smallest = min(smallest, int(higher.min()))
    return largest, smallest


def _gather(values: Values, *, prefix: int, shift: int) -> NDArray[np.uint64]:
    """All keys with the leading bits ``prefix``."""
    found = [keys for keys in _keys(values, prefix, shift) if keys.size]
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)


def _keys(values: Values, prefix: int, shift: int) -> Iterator[NDArray[np.uint64]]:
    """Bits of the non-zero values whose leading bits, from ``shift`` upwards, are ``prefix``."""
    for block in values:
        flat = np.ascontiguousarray(block, dtype=np.float64).ravel()
        keys = flat[flat > 0].view(np.uint64)
        yield keys if shift == 64 else keys[keys >> np.uint64(shift) == prefix]
