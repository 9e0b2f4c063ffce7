"""The assignment solver of SciPy: a modified Jonker–Volgenant algorithm in float64, exact (Crouse, 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class ScipySolver:
    """:func:`scipy.optimize.linear_sum_assignment`."""

    name: str = "scipy"
    bytes_per_affinity: int = 4 + 8 + 8
    """float32, its float64 copy and the negated copy."""

    def solve(self, affinity: NDArray[np.float32]) -> NDArray[np.intp]:
        """The maximising permutation of an ``(S, S)`` affinity."""
        return np.asarray(linear_sum_assignment(affinity, maximize=True)[1], dtype=np.intp)
