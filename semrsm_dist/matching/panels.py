"""Products of fixed shape, so that the bits of a pair do not depend on which other pairs are computed with it.

Libraries of linear algebra choose their order of addition by the shape of a product. So samples are multiplied in panels of
:data:`PANEL`, filled up with zeros, counted from the first sample of a tile: whether a tile is computed at once, or in blocks
that begin at multiples of a panel, each pair is then at the same place of a product of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PANEL = 25
"""Samples of a panel: a quarter of the usual tile."""
_FEATURES_AT_A_TIME = 2**11  # that are widened to float64 together


def panels(length: int) -> Iterator[slice]:
    """Slices of whole panels that cover a length.

    >>> list(panels(30))
    [slice(0, 25, None), slice(25, 50, None)]
    """
    for start in range(0, length, PANEL):
        yield slice(start, start + PANEL)


def whole_panels(length: int) -> int:
    """A length, rounded up to whole panels.

    >>> whole_panels(30)
    50
    """
    return -(-length // PANEL) * PANEL


def inner_products_of_rows(
    rows: NDArray[np.floating], columns: NDArray[np.floating], *, same: bool = False
) -> NDArray[np.float64]:
    """``rows @ columns.T`` in float64, panel by panel and summed over slices of the features in a fixed order.

    Parameters
    ----------
    rows, columns
        ``(n, K)`` and ``(m, K)``.
    same
        Whether both are the same; then what is above the diagonal counts, and the panels below it are not computed.

    Returns
    -------
    ndarray
        ``(n, m)``.
    """
    values = np.zeros((whole_panels(len(rows)), whole_panels(len(columns))))
    wide_rows = np.zeros((len(values), _FEATURES_AT_A_TIME))
    wide_columns = np.zeros((values.shape[1], _FEATURES_AT_A_TIME))
    for start in range(0, rows.shape[1], _FEATURES_AT_A_TIME):
        width = min(_FEATURES_AT_A_TIME, rows.shape[1] - start)
        wide_rows[: len(rows), :width] = rows[:, start : start + width]
        wide_columns[: len(columns), :width] = columns[:, start : start + width]
        for i in panels(len(rows)):
            for j in panels(len(columns)):
                if not (same and j.start < i.start):
                    values[i, j] += wide_rows[i, :width] @ wide_columns[j, :width].T
    return np.ascontiguousarray(values[: len(rows), : len(columns)])


def inner_products_bytes(n_samples: int) -> int:
    """Bytes that :func:`inner_products_of_rows` allocates for two blocks of ``n_samples``."""
    return 2 * whole_panels(n_samples) * (_FEATURES_AT_A_TIME + whole_panels(n_samples)) * 8
