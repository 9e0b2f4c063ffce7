"""The small protocols that every invariance, method and solver shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Solution:
    """Matchings of ``k`` affinities."""

    permutations: NDArray[np.int64]
    """``(k, S)``: position ``s`` of the row sample is matched to position ``permutations[problem, s]`` of the column sample."""
    gaps: NDArray[np.float64]
    """``(k,)``: no matching of this affinity is better than the one found by more than this, in units of the affinity."""


class Solver(Protocol):
    """Solves linear assignment problems."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    @property
    def tolerance(self) -> float:
        """Largest gap that it may leave, relative to the value; infinite when it promises none beyond its own rounding."""

    @property
    def bytes_per_affinity(self) -> int:
        """Bytes allocated for each entry of one affinity matrix, the matrix included."""

    def solve(self, affinities: NDArray[np.float32]) -> Solution:
        """The permutations that maximise the sum of matched affinities.

        Parameters
        ----------
        affinities
            ``(k, S, S)``, finite, C-contiguous.

        Returns
        -------
        Solution
            One matching for each of the ``k``, with its certified gap.
        """


@dataclass(frozen=True)
class Matched:
    """Matched inner products of all pairs of two blocks."""

    inner_products: NDArray[np.float64]
    """``(n, m)``."""
    upper_bounds: NDArray[np.float64] | None
    """``(n, m)``: ``m ≤ optimum ≤ bound``, the optimum being that of the method (of the windows, if there are windows). None
    where the method certifies nothing (greedy)."""

    def relative_gaps(self) -> NDArray[np.float64] | None:
        """``(bound − m) / |m|``, ``(n, m)``; 0 where both are equal, None without bounds."""
        if self.upper_bounds is None:
            return None
        gaps = self.upper_bounds - self.inner_products
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gaps == 0.0, 0.0, gaps / np.abs(self.inner_products))


class Alignment(Protocol):
    """How two samples are aligned before the kernel: one class for each invariance.

    Blocks are ``(n, S, C)`` float32, centred. What is needed once per block (norms, sort orders, spectra) is done in
    :meth:`prepare`; :meth:`inner_products` then does all pairs of two prepared blocks.
    """

    def prepare(self, block: NDArray[np.float32]) -> Any:
        """Whatever of a block of samples is worth computing once."""

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Norms ``(n,)`` of the samples, such that ``m_ij ≤ n_i n_j``."""

    def inner_products(self, rows: Any, columns: Any, *, same: bool) -> Matched:
        """Matched inner products ``(n, m)`` of every pair, with their upper bounds.

        Parameters
        ----------
        rows, columns
            What :meth:`prepare` returned for the two blocks.
        same
            Whether both are the same block of samples; then each unordered pair is computed once.
        """

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Bytes that :meth:`inner_products` allocates beside the two blocks of ``n_samples``, for the plan."""
