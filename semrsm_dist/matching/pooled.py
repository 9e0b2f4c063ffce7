"""Invariance by pooling: the mean over positions, which no permutation of them changes. A baseline, not a matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.protocol import Matched


@dataclass(frozen=True)
class Pooled:
    """The inner product of mean concept vectors."""

    def prepare(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean concept vectors, ``(n, C)``."""
        return np.asarray(block.mean(axis=1, dtype=np.float64))

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Norms of the mean concept vectors, ``(n,)``."""
        pooled = self.prepare(block)
        return np.asarray(np.sqrt(np.einsum("nc,nc->n", pooled, pooled)))

    def inner_products(self, rows: NDArray[np.float64], columns: NDArray[np.float64], *, same: bool) -> Matched:
        """Inner products of the means, ``(n, m)``."""
        values = rows @ columns.T
        values = (values + values.T) / 2 if same else values
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """The means of two blocks."""
        return 2 * n_samples * n_channels * 8
