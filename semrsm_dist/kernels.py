"""Kernels as functions of matched inner products and norms.

One matching serves every kernel (Wald et al., NeurIPS 2024, section 3): with ``m`` the matched inner product and
``n_i = ‖z_i‖``, the permutation that maximises ``m`` also maximises the cosine and the RBF kernel. So nothing but ``m``
and the norms is ever stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
ROUNDING = 1e-12
"""Squared distances below this fraction of ``n_i² + n_j²`` are rounding, and count as 0.

Features are float32, whose own rounding (6e-8) gives relative squared distances of about 4e-15; summation in float64 adds
less than 1e-13. Without the floor the distance of a sample to itself would be a tiny positive number and enter the median
of the *non-zero* distances.
"""


def linear(inner_product: Float) -> Float:
    """The matched inner product itself, ``(N, M)``."""
    return inner_product


def cosine(inner_product: Float, row_norms: Float, column_norms: Float) -> Float:
    """Cosine similarity of matched representations.

    Parameters
    ----------
    inner_product
        Matched inner products ``m``, ``(N, M)``.
    row_norms, column_norms
        Norms ``(N,)`` and ``(M,)``.

    Returns
    -------
    ndarray
        ``m_ij / (n_i n_j)``, ``(N, M)``; 0 where a norm is 0.
    """
    product = np.outer(row_norms, column_norms)
    return np.divide(inner_product, product, out=np.zeros_like(inner_product), where=product > 0)


def squared_distance(inner_product: Float, row_norms: Float, column_norms: Float) -> Float:
    """Squared Euclidean distance of matched representations.

    Returns
    -------
    ndarray
        ``n_i² + n_j² − 2 m_ij``, ``(N, M)``; 0 where it is negative or below :data:`ROUNDING`.
    """
    energy = np.add.outer(row_norms**2, column_norms**2)
    distance = energy - 2 * inner_product
    distance[distance <= ROUNDING * energy] = 0.0
    return distance


def rbf(squared_distances: Float, sigma_squared: float) -> Float:
    """The radial basis function kernel ``exp(−d² / 2σ²)``.

    Parameters
    ----------
    squared_distances
        ``d²``, ``(N, M)``.
    sigma_squared
        ``σ²``, a statistic of all pairs of the RSM (see :mod:`semrsm_dist.reduction.sigma`).

    Raises
    ------
    ValueError
        When ``σ²`` is not positive.
    """
    if not sigma_squared > 0:
        raise ValueError(f"σ² of the RBF kernel is {sigma_squared}; it must be positive.")
    return np.exp(squared_distances / (-2.0 * sigma_squared))
