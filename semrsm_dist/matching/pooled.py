"""Invariance by pooling: the mean over positions, which no permutation of them changes. A baseline, not a matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.panels import inner_products_bytes, inner_products_of_rows
from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.values import mirror


@dataclass(frozen=True)
class Pooled:
    """The inner product of mean concept vectors."""

    def prepare(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean concept vectors, ``(n, C)``."""
        return np.stack([sample.mean(axis=0, dtype=np.float64) for sample in block])

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Norms of the mean concept vectors, ``(n,)``."""
        return np.sqrt([mean @ mean for mean in self.prepare(block)])

    def inner_products(self, rows: NDArray[np.float64], columns: NDArray[np.float64], *, same: bool) -> Matched:
        """Inner products of the means, ``(n, m)``."""
        values = inner_products_of_rows(rows, columns, same=same)
        if same:
            mirror(values)
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """The means of two blocks, and what their product takes."""
        return 2 * n_samples * n_channels * 8 + inner_products_bytes(n_samples)
