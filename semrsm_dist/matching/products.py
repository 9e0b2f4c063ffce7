"""How the affinities of a window are multiplied: in float32 here, in bfloat16 in a module of its own."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class AffinityProduct(Protocol):
    """The affinities of many row samples with one column sample, in one matrix product."""

    @property
    def rounding(self) -> float:
        """Largest error of a matched inner product that comes from rounding the features, relative to the product of norms."""

    @property
    def bytes_per_feature(self) -> int:
        """Bytes that :meth:`operand` allocates for each feature."""

    def operand(self, window: NDArray[np.float32]) -> Any:
        """A window ``(n, W, C)`` as this product takes it; slices along its first axis are taken of it."""

    def multiply(self, rows: Any, column: Any, affinities: NDArray[np.float32]) -> None:
        """Write the affinities ``(k, W, W)`` of ``rows`` ``(k, W, C)`` with ``column`` ``(W, C)``."""


_SMALL_PRODUCT = 10**6
"""Libraries add in another order in products of fewer multiplications than this, on some processors."""


def rows_at_least(size: int, n_channels: int) -> int:
    """Rows that a product with ``(C, W)`` needs so that it is not a small one."""
    return _SMALL_PRODUCT // (size * n_channels) + 1


class Float32Product:
    """NumPy's float32 product, such that an affinity does not depend on which others are computed with it."""

    rounding = 0.0
    bytes_per_feature = 0

    def operand(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """The window itself."""
        return window

    def multiply(self, rows: NDArray[np.float32], column: NDArray[np.float32], affinities: NDArray[np.float32]) -> None:
        """One product for all rows; a small one is padded with rows of zeros until it is not."""
        size, n_channels = column.shape
        flat = rows.reshape(-1, n_channels)
        least = rows_at_least(size, n_channels)
        if len(flat) >= least:
            np.matmul(flat, column.T, out=affinities.reshape(-1, size))
        else:
            padded = np.zeros((least, n_channels), dtype=np.float32)
            padded[: len(flat)] = flat
            affinities.reshape(-1, size)[:] = (padded @ column.T)[: len(flat)]
