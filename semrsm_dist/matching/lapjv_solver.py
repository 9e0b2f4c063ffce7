"""The assignment solver of the package lap: Jonker–Volgenant in float64, exact (Jonker and Volgenant, 1987).

An optional extra. The package takes 10⁶ for infinity: larger costs give wrong matchings, and no error. Affinities are therefore
divided by a power of two, which is exact, such that none is larger than 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching.protocol import Solution
from storage_schemas.errors import InvalidInputError

try:
    from lap import lapjv
except ImportError:
    lapjv = None


@dataclass(frozen=True)
class LapjvSolver:
    """:func:`lap.lapjv`.

    Raises
    ------
    InvalidInputError
        When lap is not installed.
    """

    name: str = "lapjv"
    tolerance: float = math.inf
    bytes_per_affinity: int = 4 + 8
    """float32 and float64."""

    def __post_init__(self) -> None:
        if lapjv is None:
            raise InvalidInputError(
                "The solver lapjv needs the package lap, which is not installed: pip install 'semrsm-dist[lapjv]', or choose "
                "another solver."
            )

    def solve(self, affinities: NDArray[np.float32]) -> Solution:
        """Optimal matchings ``(k, S)`` of ``k`` affinities ``(k, S, S)``; the gaps are 0 to float64's rounding."""
        permutations = np.empty(affinities.shape[:2], dtype=np.int64)
        for affinity, permutation in zip(affinities, permutations, strict=True):
            exponent = np.frexp(np.abs(affinity).max())[1]
            costs = np.ldexp(affinity, -exponent, dtype=np.float64)
            np.negative(costs, out=costs)
            permutation[:], _ = lapjv(costs, return_cost=False)
        return Solution(permutations, np.zeros(len(affinities)))
