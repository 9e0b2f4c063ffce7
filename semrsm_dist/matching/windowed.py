"""Permutation invariance: optimal matching, whole or in windows (Batch-Optimal).

Wald et al., NeurIPS 2024: the permutation of positions that maximises the sum of matched affinities (section 3.1), and its
Batch-Optimal approximation (Appendix F): concept vectors of each sample are sorted by L2 norm, cut into windows, and matched
optimally inside windows. With ``window ≥ S`` the approximation is the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.products import AffinityProduct, Float32Product
from semrsm_dist.matching.protocol import Matched, Solver
from semrsm_dist.matching.scipy_solver import ScipySolver
from semrsm_dist.matching.values import frobenius_norms, matched_values, mirror, position_norms_squared
from storage_schemas.errors import InvalidInputError

AFFINITY_BYTES = 4 * 2**20
"""One product computes the affinities of as many pairs as fit into this, at least one: few calls, and still in cache when
they are matched."""

_SAFE_EXPONENT = 30
"""Samples whose largest value is within 2 to the power of ± this are used as they are: their products stay in float32."""


@dataclass(frozen=True)
class PreparedBlock:
    """A block of ``n`` samples as the matching works on it."""

    windows: tuple[NDArray[np.float32], ...]
    """Each ``(n, W, C)``, C-contiguous: concept vectors in windows of similar norm; one window of all is in stored order."""
    operands: tuple[Any, ...]
    """The same windows as the affinity product takes them."""
    norms: NDArray[np.float64] | None
    """Norms ``(n,)`` of the windows together, where the product rounds and they bound by how much."""
    exponents: NDArray[np.int32]
    """``(n,)``: sample ``i`` was divided by ``2 ** exponents[i]``, which is exact; 0 unless its scale is extreme."""

    def __len__(self) -> int:
        return len(self.exponents)


@dataclass(frozen=True)
class WindowedMatching:
    """Optimal matching inside windows of concept vectors of similar norm.

    Parameters
    ----------
    solver
        Solves the assignments inside a window.
    window
        Concept vectors per window; None is one window of all positions: the optimal matching.
    product
        How affinities are multiplied.
    """

    solver: Solver
    window: int | None = None
    product: AffinityProduct = field(default_factory=Float32Product)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InvalidInputError(f"The window is {self.window}; it must be at least 1.")

    def prepare(self, block: NDArray[np.float32]) -> PreparedBlock:
        """The block at a scale that float32 affinities can hold, in windows of concept vectors sorted by norm."""
        block, exponents = at_safe_scale(block)
        n_positions = block.shape[1]
        if self.window is None or self.window >= n_positions:
            return self._prepared((np.ascontiguousarray(block),), exponents)
        order = np.argsort(position_norms_squared(block), axis=1, kind="stable")
        windows = tuple(
            np.take_along_axis(block, order[:, start : start + self.window, None], axis=1)
            for start in range(0, n_positions, self.window)
        )
        return self._prepared(windows, exponents)

    def _prepared(self, windows: tuple[NDArray[np.float32], ...], exponents: NDArray[np.int32]) -> PreparedBlock:
        """Windows with their operands."""
        operands = tuple(self.product.operand(window) for window in windows)
        squares = sum(frobenius_norms(window) ** 2 for window in windows) if self.product.rounding else None
        return PreparedBlock(windows, operands, None if squares is None else np.sqrt(squares), exponents)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: PreparedBlock, columns: PreparedBlock, *, same: bool) -> Matched:
        """Matched inner products ``(n, m)``, the value of each permutation recomputed in float64, and their upper bounds."""
        values = np.zeros((len(rows), len(columns)))
        gaps = np.zeros_like(values)
        for number in range(len(rows.windows)):
            self._add_window(rows, columns, number, same, values, gaps)
        if len(rows.windows) > 1 and self.solver.tolerance < np.inf:
            self._solve_cancelling_pairs_exactly(rows, columns, values, gaps)
        if rows.norms is not None and columns.norms is not None:
            # Once for what the optimum gains from the rounding, once for what was chosen by it.
            gaps += 2 * self.product.rounding * np.outer(rows.norms, columns.norms)
        if same:
            mirror(values)
            mirror(gaps)
        exponents = np.add.outer(rows.exponents, columns.exponents)
        return Matched(np.ldexp(values, exponents), np.ldexp(values + gaps, exponents))

    def _add_window(
        self,
        rows: PreparedBlock,
        columns: PreparedBlock,
        number: int,
        same: bool,
        values: NDArray[np.float64],
        gaps: NDArray[np.float64],
    ) -> None:
        """Add what one window contributes to each pair; of a block with itself, on and above the diagonal."""
        samples, operands = rows.windows[number], rows.operands[number]
        size = samples.shape[1]
        together = max(1, min(len(samples), AFFINITY_BYTES // (4 * size * size)))
        buffer = np.empty((together, size, size), dtype=np.float32)
        identity = np.arange(size, dtype=np.int64)[None]
        for j, column in enumerate(columns.windows[number]):
            last = j if same else len(samples)
            for start in range(0, last, together):
                part = slice(start, min(start + together, last))
                affinities = buffer[: part.stop - start]
                self.product.multiply(operands[part], columns.operands[number][j], affinities)
                solution = self.solver.solve(affinities)
                values[part, j] += matched_values(samples[part], column, solution.permutations)
                gaps[part, j] += solution.gaps
            if same:  # the identity is optimal for a sample and itself
                values[j, j] += matched_values(column[None], column, identity)[0]

    def _solve_cancelling_pairs_exactly(
        self, rows: PreparedBlock, columns: PreparedBlock, values: NDArray[np.float64], gaps: NDArray[np.float64]
    ) -> None:
        """Match again those few pairs whose windows cancel, so that gaps within tolerance of each exceed it for the sum."""
        exact = ScipySolver()
        for i, j in np.argwhere(gaps > self.solver.tolerance * np.abs(values)):
            values[i, j] = gaps[i, j] = 0.0
            for number, window in enumerate(rows.windows):
                affinity = np.empty((1, window.shape[1], window.shape[1]), dtype=np.float32)
                self.product.multiply(rows.operands[number][i : i + 1], columns.operands[number][j], affinity)
                permutation = exact.solve(affinity).permutations
                values[i, j] += matched_values(window[i : i + 1], columns.windows[number][j], permutation)[0]

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Sorted copies of two blocks when there are several windows, and affinities with the solver's own copy."""
        window = n_positions if self.window is None else min(self.window, n_positions)
        copies = (
            2 * n_samples * n_positions * n_channels * ((4 if window < n_positions else 0) + self.product.bytes_per_feature)
        )
        together = max(AFFINITY_BYTES, window * window * 4)
        return copies + together + window * window * (self.solver.bytes_per_affinity - 4) + n_positions * n_channels * 12


def at_safe_scale(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Samples whose affinities would leave float32's range, divided by a power of two, and the exponents ``(n,)``."""
    exponents = np.frexp(np.maximum(block.max(axis=(1, 2)), -block.min(axis=(1, 2))))[1]
    exponents[np.abs(exponents) <= _SAFE_EXPONENT] = 0
    return (np.ldexp(block, -exponents[:, None, None]) if exponents.any() else block), exponents
