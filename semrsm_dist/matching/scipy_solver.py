"""The assignment solver of SciPy: a modified Jonker–Volgenant algorithm in float64, exact (Crouse, 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching.protocol import Solution


@dataclass(frozen=True)
class ScipySolver:
    """:func:`scipy.optimize.linear_sum_assignment`."""

    name: str = "scipy"
    tolerance: float = math.inf
    bytes_per_affinity: int = 4 + 8 + 8
    """float32, its float64 copy and the negated copy."""

    def solve(self, affinities: NDArray[np.float32]) -> Solution:
        """Optimal matchings ``(k, S)`` of ``k`` affinities ``(k, S, S)``; the gaps are 0 to float64's rounding."""
        permutations = [linear_sum_assignment(affinity, maximize=True)[1] for affinity in affinities]
        return Solution(np.array(permutations, dtype=np.int64), np.zeros(len(affinities)))
