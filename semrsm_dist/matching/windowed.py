"""Permutation invariance: optimal matching, whole or in windows (Batch-Optimal).

Wald et al., NeurIPS 2024: the permutation of positions that maximises the sum of matched affinities (section 3.1), and its
Batch-Optimal approximation (Appendix F): concept vectors of each sample are sorted by L2 norm, cut into windows, and matched
optimally inside windows. With ``window ≥ S`` the approximation is the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.protocol import Solver, frobenius_norms, matched_value
from storage_schemas.errors import InvalidInputError

_SAFE_EXPONENT = 30
"""Samples whose largest value is within 2 to the power of ± this are used as they are: their products stay in float32."""


@dataclass(frozen=True)
class PreparedBlock:
    """A block of samples as the matching works on it."""

    samples: NDArray[np.float32]
    """``(n, S, C)``: concept vectors sorted by norm when there are several windows."""
    exponents: NDArray[np.int32]
    """``(n,)``: sample ``i`` was divided by ``2 ** exponents[i]``, which is exact; 0 unless its scale is extreme."""


@dataclass(frozen=True)
class WindowedMatching:
    """Optimal matching inside windows of concept vectors of similar norm.

    Parameters
    ----------
    solver
        Solves the assignment inside a window.
    window
        Concept vectors per window; None is one window of all positions: the optimal matching.
    """

    solver: Solver
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InvalidInputError(f"The window is {self.window}; it must be at least 1.")

    def prepare(self, block: NDArray[np.float32]) -> PreparedBlock:
        """The block at a scale that float32 affinities can hold, concept vectors sorted by norm (ascending, stable)."""
        exponents = np.frexp(np.maximum(block.max(axis=(1, 2)), -block.min(axis=(1, 2))))[1]
        exponents[np.abs(exponents) <= _SAFE_EXPONENT] = 0
        if exponents.any():
            block = np.ldexp(block, -exponents[:, None, None])
        return PreparedBlock(self._sorted(block), exponents)

    def _sorted(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each sample's concept vectors sorted by norm when there are several windows."""
        if self.window is None or self.window >= block.shape[1]:
            return block
        norms = np.einsum("nsc,nsc->ns", block, block, dtype=np.float64, casting="same_kind")
        order = np.argsort(norms, axis=1, kind="stable")
        return np.take_along_axis(block, order[:, :, None], axis=1)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: PreparedBlock, columns: PreparedBlock, *, same: bool) -> NDArray[np.float64]:
        """Matched inner products ``(n, m)``, the value of each permutation recomputed in float64."""
        values = np.empty((len(rows.samples), len(columns.samples)))
        for i, row in enumerate(rows.samples):
            for j in range(i if same else 0, len(columns.samples)):
                column = columns.samples[j]
                # The identity is optimal for a sample and itself.
                matched = column if same and i == j else column[self.permutation(row, column)]
                values[i, j] = matched_value(row, matched)
                if same:
                    values[j, i] = values[i, j]
        return np.ldexp(values, np.add.outer(rows.exponents, columns.exponents))

    def permutation(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.intp]:
        """Matching ``(S,)`` of two samples ``(S, C)`` of prepared blocks: position ``s`` goes with ``result[s]``."""
        n_positions = len(first)
        window = n_positions if self.window is None else self.window
        matched = np.empty(n_positions, dtype=np.intp)
        for start in range(0, n_positions, window):
            part = slice(start, start + window)
            matched[part] = start + self.solver.solve(first[part] @ second[part].T)
        return matched

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Sorted copies of two blocks when there are several windows, and one window's affinities with the solver's copy."""
        window = n_positions if self.window is None else min(self.window, n_positions)
        copies = 2 * n_samples * n_positions * n_channels * 4 if window < n_positions else 0
        return copies + window * window * self.solver.bytes_per_affinity + n_positions * n_channels * 12
