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


_TRANSPOSED_SIZE = 256
"""Up to this many positions a transposed copy of the column is multiplied faster than the column in place."""


class Float32Product:
    """NumPy's float32 product, such that an affinity does not depend on which others are computed with it."""

    rounding = 0.0
    bytes_per_feature = 0

    def operand(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """The window itself."""
        return window

    def multiply(self, rows: NDArray[np.float32], column: NDArray[np.float32], affinities: NDArray[np.float32]) -> None:
        """One product of the same shape for each pair.

        A library chooses kernels, and in them the order of addition, by the shape of a product and by a row's place in it.
        """
        transposed = column.T
        if len(column) <= _TRANSPOSED_SIZE:
            transposed = np.ascontiguousarray(transposed)
        np.matmul(rows, transposed, out=affinities)
