"""Values of given matchings, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.jit import compiled
from semrsm_dist.matching.simd import PRODUCT_STEP, sum_of_products


def position_norms_squared(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared L2 norms ``(n, S)`` of the concept vectors of ``(n, S, C)`` samples, summed in float64."""
    return np.asarray(np.einsum("nsc,nsc->ns", block, block, dtype=np.float64, casting="same_kind"))


def mirror(matrix: NDArray[np.float64]) -> None:
    """Copy what is above the diagonal below it."""
    lower = np.tril_indices(len(matrix), -1)
    matrix[lower] = matrix.T[lower]


def frobenius_norms(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Frobenius norms ``(n,)`` of ``(n, S, C)`` samples, summed in float64."""
    block = np.ascontiguousarray(block)
    same_position = np.broadcast_to(np.arange(block.shape[1]), block.shape[:2])
    return np.sqrt([matched_values(block[i : i + 1], block[i], same_position[i : i + 1])[0] for i in range(len(block))])


def matched_values(
    rows: NDArray[np.float32], column: NDArray[np.float32], permutations: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Inner products of matched positions, every product and sum in float64.

    Parameters
    ----------
    rows
        ``(k, S, C)``, C-contiguous.
    column
        ``(S, C)``, C-contiguous.
    permutations
        ``(k, S)``: position ``s`` of ``rows[i]`` goes with position ``permutations[i, s]`` of ``column``.

    Returns
    -------
    ndarray
        ``(k,)``. The order of the additions is fixed, so the result is the same on every processor.
    """
    values = np.empty(len(rows))
    _fill_values(rows, column, permutations, values)
    return values


@compiled
def _fill_values(rows: Any, column: Any, permutations: Any, values: Any) -> None:
    """Sum position by position; channels that do not fill a vector are added one by one."""
    n_samples, n_positions, n_channels = rows.shape
    in_vectors = n_channels // PRODUCT_STEP * PRODUCT_STEP
    for sample in range(n_samples):
        total = 0.0
        for position in range(n_positions):
            here = (sample * n_positions + position) * n_channels
            there = permutations[sample, position] * n_channels
            if in_vectors > 0:
                total += sum_of_products(rows, here, column, there, in_vectors)
            for channel in range(in_vectors, n_channels):
                total += np.float64(rows[sample, position, channel]) * np.float64(
                    column[permutations[sample, position], channel]
                )
        values[sample] = total
