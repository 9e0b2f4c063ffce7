"""The assignment solver of OR-Tools: cost-scaling push-relabel in integers (Goldberg and Kennedy, 1995).

Affinities are scaled by their own largest magnitude. A fixed factor, as in the method's released code, loses the value of
maps whose features are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment

LARGEST_COST = 2**31
"""Costs lie within ± this: a rounding of 2.3e-10 of the largest affinity for each position, and the solver's internal
multiplication by ``S + 1`` stays far inside int64."""


@dataclass(frozen=True)
class OrtoolsSolver:
    """:class:`ortools.graph.python.linear_sum_assignment.SimpleLinearSumAssignment` on scaled integers."""

    name: str = "ortools"
    bytes_per_affinity: int = 4 + 8 + 8 + 2 * 4 + 5 * 8
    """float32, scaled float64, int64, two int32 end points, and the solver's own arcs."""

    def solve(self, affinity: NDArray[np.float32]) -> NDArray[np.intp]:
        """The maximising permutation of an ``(S, S)`` affinity, to the rounding of :data:`LARGEST_COST`."""
        size = len(affinity)
        largest = float(np.abs(affinity).max())
        if largest == 0.0:
            return np.arange(size, dtype=np.intp)
        costs = np.rint(affinity.astype(np.float64) * (-LARGEST_COST / largest)).astype(np.int64)
        left = np.repeat(np.arange(size, dtype=np.int32), size)
        right = np.tile(np.arange(size, dtype=np.int32), size)
        problem = SimpleLinearSumAssignment()
        problem.add_arcs_with_cost(left, right, costs.ravel())
        status = problem.solve()
        if status != problem.OPTIMAL:
            raise RuntimeError(f"OR-Tools ended an assignment of {size} positions with status {status}.")
        return np.fromiter((problem.right_mate(position) for position in range(size)), dtype=np.intp, count=size)
