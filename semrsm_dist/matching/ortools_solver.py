"""The assignment solver of OR-Tools: cost-scaling push-relabel in integers (Goldberg and Kennedy, 1995).

Affinities are scaled by their own largest magnitude. A fixed factor, as in the method's released code, loses the value of
maps whose features are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment

from semrsm_dist.matching.protocol import Solution

LARGEST_COST = 2**31
"""Costs lie within ± this: a rounding of 2.3e-10 of the largest affinity for each position, and the solver's internal
multiplication by ``S + 1`` stays far inside int64."""


@dataclass(frozen=True)
class OrtoolsSolver:
    """:class:`ortools.graph.python.linear_sum_assignment.SimpleLinearSumAssignment` on scaled integers."""

    name: str = "ortools"
    tolerance: float = math.inf
    bytes_per_affinity: int = 4 + 8 + 8 + 2 * 4 + 5 * 8
    """float32, scaled float64, int64, two int32 end points, and the solver's own arcs."""

    def solve(self, affinities: NDArray[np.float32]) -> Solution:
        """Matchings ``(k, S)`` of ``k`` affinities ``(k, S, S)``, optimal to the rounding of :data:`LARGEST_COST`."""
        n_problems, size, _ = affinities.shape
        permutations = np.tile(np.arange(size), (n_problems, 1))
        gaps = np.zeros(n_problems)
        left, right = (ends.ravel() for ends in np.indices((size, size), dtype=np.int32))
        for problem, affinity in enumerate(affinities):
            largest = float(np.abs(affinity).max())
            if largest == 0.0:
                continue
            costs = np.rint(affinity.astype(np.float64) * (-LARGEST_COST / largest)).astype(np.int64)
            assignment = SimpleLinearSumAssignment()
            assignment.add_arcs_with_cost(left, right, costs.ravel())
            status = assignment.solve()
            if status != assignment.OPTIMAL:
                raise RuntimeError(f"OR-Tools ended an assignment of {size} positions with status {status}.")
            permutations[problem] = [assignment.right_mate(position) for position in range(size)]
            gaps[problem] = size * (largest / LARGEST_COST)  # half a unit for each position, of the value and of the optimum
        return Solution(permutations, gaps)
