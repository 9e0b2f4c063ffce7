"""Sums of very many terms that lose nothing but their last rounding."""

from __future__ import annotations

from types import EllipsisType

import numpy as np
from numpy.typing import ArrayLike, NDArray


class CompensatedSum:
    """An array of running sums, each with the rounding errors of all its additions in a second number.

    The result is as if it were summed with twice the digits and then rounded: its relative error does not grow with the
    number of terms, unless they cancel to a share of about 10⁻¹⁶.

    Parameters
    ----------
    shape
        Shape of the array.

    References
    ----------
    Ogita, Rump and Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 2005, algorithm 4.4 (``Sum2``); the error of an
    addition is Knuth's ``TwoSum``.
    """

    def __init__(self, shape: int | tuple[int, ...]) -> None:
        self._rounded, self._lost = np.zeros(shape), np.zeros(shape)

    def add(self, values: ArrayLike, where: slice | EllipsisType = ...) -> None:
        """Add values to a part of the array."""
        terms = np.asarray(values, dtype=np.float64)
        before = self._rounded[where]
        after = before + terms
        arrived = after - before
        self._lost[where] += (before - (after - arrived)) + (terms - arrived)
        self._rounded[where] = after

    def value(self) -> NDArray[np.float64]:
        """The sums."""
        return self._rounded + self._lost
