"""No invariance: concept vectors are compared at the same position (the *spatio-semantic* RSM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.panels import inner_products_bytes, inner_products_of_rows
from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.values import frobenius_norms, mirror


@dataclass(frozen=True)
class SamePosition:
    """The inner product of flattened representations."""

    def prepare(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples flattened to ``(n, S · C)``."""
        return block.reshape(len(block), -1)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: NDArray[np.float32], columns: NDArray[np.float32], *, same: bool) -> Matched:
        """Inner products ``(n, m)``, in float64."""
        values = inner_products_of_rows(rows, columns, same=same)
        if same:
            mirror(values)
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Widened slices and the result."""
        return inner_products_bytes(n_samples)
