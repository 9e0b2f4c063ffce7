"""The small protocols that every invariance and every solver shares."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Solver(Protocol):
    """Solves one linear assignment problem."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    @property
    def bytes_per_affinity(self) -> int:
        """Bytes allocated for each entry of the affinity matrix, the matrix included."""

    def solve(self, affinity: NDArray[np.float32]) -> NDArray[np.intp]:
        """The permutation that maximises the sum of matched affinities.

        Parameters
        ----------
        affinity
            ``(S, S)``, finite.

        Returns
        -------
        ndarray
            ``(S,)``: position ``s`` of the row sample is matched to position ``permutation[s]`` of the column sample.
        """


class Alignment(Protocol):
    """How two samples are aligned before the kernel: one class for each invariance.

    Blocks are ``(n, S, C)`` float32, centred. What is needed once per block (norms, sort orders, spectra) is done in
    :meth:`prepare`; :meth:`inner_products` then does all pairs of two prepared blocks.
    """

    def prepare(self, block: NDArray[np.float32]) -> Any:
        """Whatever of a block of samples is worth computing once."""

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Norms ``(n,)`` of the samples, such that ``m_ij ≤ n_i n_j``."""

    def inner_products(self, rows: Any, columns: Any, *, same: bool) -> NDArray[np.float64]:
        """Matched inner products ``(n, m)`` of every pair.

        Parameters
        ----------
        rows, columns
            What :meth:`prepare` returned for the two blocks.
        same
            Whether both are the same block of samples; then each unordered pair is computed once.
        """

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Bytes that :meth:`inner_products` allocates beside the two blocks of ``n_samples``, for the plan."""


def frobenius_norms(block: NDArray[np.float32]) -> NDArray[np.float64]:
    """Frobenius norms of ``(n, S, C)`` samples, summed in float64."""
    squares = [matched_value(sample, sample) for sample in block]
    return np.sqrt(np.array(squares, dtype=np.float64))


def matched_value(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Inner product of two ``(S, C)`` samples position by position, products and sum in float64."""
    return float(np.einsum("sc,sc->", first, second, dtype=np.float64, casting="same_kind"))
