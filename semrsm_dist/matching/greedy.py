"""Permutation invariance by greedy matching: `Greedy` and `TopK-Greedy` of Wald et al., NeurIPS 2024, Appendix F.

Positions of the row sample choose one after another, those of large norm first, since they contribute most to the sum. Nothing
certifies the result: it is a lower bound of the optimal matching, and no upper bound comes with it.

Positions choose in strips of :data:`STRIP`. One float32 product gives the affinities of a strip with the columns that are still
free; those it takes are dropped before the next strip is multiplied. So memory is linear in S, and where there are many strips
about half of all affinities are never computed. The search that follows takes a few per cent of the time of the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.protocol import Matched, Solver
from semrsm_dist.matching.values import frobenius_norms, matched_values, mirror, position_norms_squared
from semrsm_dist.matching.windowed import at_safe_scale
from storage_schemas.errors import InvalidInputError

STRIP = 256
"""Positions that choose after one product: more would be multiplied with columns that are taken meanwhile, fewer make products
that do not use the processor well. Measured at S from 169 to 8192 and C from 64 to 2048."""

_HIGHEST = np.int32(2**31 - 1)
_LOWEST = np.int32(-(2**31))


@dataclass(frozen=True)
class SortedBlock:
    """A block of ``n`` samples with the concept vectors of largest norm first."""

    samples: NDArray[np.float32]
    """``(n, S, C)``, C-contiguous."""
    exponents: NDArray[np.int32]
    """``(n,)``: sample ``i`` was divided by ``2 ** exponents[i]``, which is exact; 0 unless its scale is extreme."""

    def __len__(self) -> int:
        return len(self.exponents)


@dataclass(frozen=True)
class GreedyMatching:
    """Greedy matching, optionally after an optimal one of the concept vectors of largest norm.

    The positions of both samples are ordered by descending L2 norm, equal norms as they are stored. In that order each position
    of the row sample takes the free position of the column sample with which its affinity is highest; of several such, the
    first in the column sample's order. With `k`, the first `k` positions of both are matched with each other optimally
    beforehand, and the rest of the one greedily with the rest of the other; ``k = S`` is the optimal matching.

    Greedy matching is not symmetric: exchanging the two samples can give another value. In a block with itself, row ``i`` is
    matched with columns ``j > i``, and the value stands for both orders. A sample and itself are matched by the identity, which
    the definition gives too: the vector ``x`` whose turn it is has the largest norm of all that remain, so
    ``x·y ≤ |x| |y| ≤ |x|²`` for each of them.

    Affinities are float32: of two that it does not tell apart, either may count as higher.

    Parameters
    ----------
    k
        Concept vectors of each sample that are matched optimally; None (`greedy`) is none of them.
    solver
        Solves their assignment; given exactly if `k` is.
    """

    k: int | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise InvalidInputError(f"The k is {self.k}; it must be at least 1.")
        if (self.k is None) != (self.solver is None):
            raise InvalidInputError("Only one of k and solver was given; topk_greedy needs both, greedy neither.")

    def prepare(self, block: NDArray[np.float32]) -> SortedBlock:
        """The block at a scale that float32 affinities can hold, concept vectors sorted by descending norm.

        Raises
        ------
        InvalidInputError
            When `k` exceeds the number of positions.
        """
        if self.k is not None:
            check_k(self.k, block.shape[1])
        block, exponents = at_safe_scale(block)
        order = np.argsort(-position_norms_squared(block), axis=1, kind="stable")
        return SortedBlock(np.take_along_axis(block, order[:, :, None], axis=1), exponents)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: SortedBlock, columns: SortedBlock, *, same: bool) -> Matched:
        """Matched inner products ``(n, m)``, the value of each permutation recomputed in float64, without upper bounds."""
        values = np.empty((len(rows), len(columns)))
        identity = np.arange(rows.samples.shape[1])
        for j, column in enumerate(columns.samples):
            samples = rows.samples[: j + 1] if same else rows.samples
            permutations = [
                identity if same and i == j else self._permutation(sample, column) for i, sample in enumerate(samples)
            ]
            values[: len(samples), j] = matched_values(samples, column, np.array(permutations))
        if same:
            mirror(values)
        return Matched(np.ldexp(values, np.add.outer(rows.exponents, columns.exponents)), None)

    def _permutation(self, row: NDArray[np.float32], column: NDArray[np.float32]) -> NDArray[np.int64]:
        """What one pair of sorted samples ``(S, C)`` is matched by, ``(S,)``."""
        if self.k is None or self.solver is None:
            return _greedy(row, column)
        top = self.solver.solve((row[: self.k] @ column[: self.k].T)[None]).permutations[0]
        return np.concatenate([top, self.k + _greedy(row[self.k :], column[self.k :])])

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Sorted copies of two blocks, the permutations of one column, and a pair's free vectors and strip, or its top."""
        copies = 2 * n_samples * n_positions * n_channels * 4
        permutations = 2 * n_samples * n_positions * 8
        strip = n_positions * (min(STRIP, n_positions) * 4 + n_channels * 4 + 64)
        top = 0 if self.k is None or self.solver is None else self.k**2 * self.solver.bytes_per_affinity
        return copies + permutations + max(strip, top)


def check_k(k: int, n_positions: int) -> None:
    """Raise :class:`InvalidInputError` when samples do not have `k` concept vectors."""
    if k > n_positions:
        raise InvalidInputError(
            f"topk_greedy is to match the {k} concept vectors of largest norm optimally, but the samples have "
            f"{n_positions}; set k to at most {n_positions}, or choose the method optimal."
        )


def _greedy(row: NDArray[np.float32], column: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each vector of ``row`` ``(S, C)`` in its order takes its best free one of ``column``: ``(S,)``."""
    permutation = np.empty(len(row), dtype=np.int64)
    free = np.arange(len(row))
    for start in range(0, len(row), STRIP):
        strip = row[start : start + STRIP]
        # Affinities get no name: one would keep those of this strip while the next ones are computed.
        taken = _take_best((strip @ (column[free] if start else column).T).view(np.int32))
        permutation[start : start + STRIP] = free[taken]
        free = np.delete(free, taken)
    return permutation


@compiled
def _take_best(bits: Any) -> Any:
    """The column that each row of a strip takes, in the order of the rows; float32 affinities come as the ``bits`` of int32.

    The search is over integers because compilers vectorise a maximum of integers, and one of floats only where they may reorder
    its NaN and zeros. As integers, finite floats are in their order once the lower 31 bits of negative ones are flipped.
    """
    n_rows, n_columns = bits.shape
    taken = np.empty(n_rows, dtype=np.int64)
    limits = np.full(n_columns, _HIGHEST)  # of taken columns: the lowest, which is not the key of any finite float
    keys = np.empty(n_columns, dtype=np.int32)
    for row in range(n_rows):
        best = _LOWEST
        for column in range(n_columns):
            entry = bits[row, column]
            keys[column] = min(np.int32(entry ^ (entry >> 31 & _HIGHEST)), limits[column])
            best = max(best, keys[column])
        first = np.int32(n_columns)
        for column in range(n_columns):
            first = min(first, np.int32(column if keys[column] == best else n_columns))
        taken[row] = first
        limits[first] = _LOWEST
    return taken
