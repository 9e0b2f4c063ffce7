"""No invariance: concept vectors are compared at the same position (the *spatio-semantic* RSM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.values import frobenius_norms

_VALUES_AT_A_TIME = 2**13  # features of a sample that are widened to float64 together


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
        """Inner products ``(n, m)``, in float64, summed over slices of the features in a fixed order."""
        values = np.zeros((len(rows), len(columns)))
        for start in range(0, rows.shape[1], _VALUES_AT_A_TIME):
            part = slice(start, start + _VALUES_AT_A_TIME)
            values += rows[:, part].astype(np.float64) @ columns[:, part].astype(np.float64).T
        values = (values + values.T) / 2 if same else values
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Two widened slices of ``n_samples``."""
        return 2 * n_samples * min(_VALUES_AT_A_TIME, n_positions * n_channels) * 8
