"""One tile: two blocks of samples in, matched inner products out. Pure NumPy, no stores, no Ray."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching import Alignment, Matched
from semrsm_dist.names import Centring


def centred(features: NDArray[np.floating], centre: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Features less the database's mean, as float32.

    Parameters
    ----------
    features
        ``(n, S, C)`` of any floating type.
    centre
        ``(S, C)`` (a mean per position and channel), ``(C,)`` (a mean per channel), or None.
    """
    if centre is None:
        return np.ascontiguousarray(features, dtype=np.float32)
    block = np.empty(features.shape, dtype=np.float32)
    for index, sample in enumerate(features):  # one sample at a time is widened to float64
        block[index] = sample - centre
    return block


class CentreAccumulator:
    """The mean to subtract, accumulated in float64 over blocks of the database in the order they are added."""

    def __init__(self, centring: Centring) -> None:
        self._centring = centring
        self._total: NDArray[np.float64] | None = None
        self._n_samples = 0

    def add(self, features: NDArray[np.floating]) -> None:
        """Add a block ``(n, S, C)``."""
        if self._centring == "none":
            return
        total = features.sum(axis=0, dtype=np.float64)
        self._total = total if self._total is None else self._total + total
        self._n_samples += len(features)

    def result(self) -> NDArray[np.float64] | None:
        """The centre: ``(S, C)`` for ``position``, ``(C,)`` for ``channel``, None for ``none``."""
        if self._total is None:
            return None
        mean = self._total / self._n_samples
        return mean.mean(axis=0) if self._centring == "channel" else mean


def compute_tile(
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
    alignment: Alignment,
    *,
    same: bool = False,
) -> Matched:
    """Matched inner products of every pair of two blocks.

    Parameters
    ----------
    rows, columns
        Centred blocks ``(n, S, C)`` and ``(m, S, C)``, see :func:`centred`.
    alignment
        How two samples are aligned, see :func:`semrsm_dist.matching.alignment`.
    same
        Whether both blocks are the same samples: a tile on the diagonal of a symmetric grid. Each unordered pair is then
        computed once and the result is exactly symmetric.

    Returns
    -------
    Matched
        ``m`` and its upper bounds, each ``(n, m)`` float64.
    """
    prepared = alignment.prepare(rows)
    return alignment.inner_products(prepared, prepared if same else alignment.prepare(columns), same=same)
