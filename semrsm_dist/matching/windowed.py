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

    def prepare(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The block, each sample's concept vectors sorted by norm (ascending, stable) when there are several windows."""
        if self.window is None or self.window >= block.shape[1]:
            return block
        norms = np.einsum("nsc,nsc->ns", block, block, dtype=np.float64, casting="same_kind")
        order = np.argsort(norms, axis=1, kind="stable")
        return np.take_along_axis(block, order[:, :, None], axis=1)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: NDArray[np.float32], columns: NDArray[np.float32], *, same: bool) -> NDArray[np.float64]:
        """Matched inner products ``(n, m)``, the value of each permutation recomputed in float64."""
        values = np.empty((len(rows), len(columns)))
        for i, row in enumerate(rows):
            for j in range(i if same else 0, len(columns)):
                if same and i == j:  # the identity is optimal for a sample and itself
                    values[i, i] = matched_value(row, row)
                    continue
                values[i, j] = matched_value(row, columns[j][self.permutation(row, columns[j])])
                if same:
                    values[j, i] = values[i, j]
        return values

    def permutation(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.intp]:
        """Matching ``(S,)`` of two prepared samples ``(S, C)``: position ``s`` of the first goes with ``result[s]``."""
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
