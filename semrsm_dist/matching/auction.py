"""Optimal matching by an auction: the default solver, with a certificate for every matching.

The method
----------
The positions of one sample are *bidders*, those of the other are *objects* with prices. A bidder that has no object bids for
the one of highest *profit* (affinity less price), raises its price to where its second-best object would be as good, and by
ε more, and displaces whoever had it (the forward auction; Bertsekas, 1979). Whoever holds an object then satisfies
*ε-complementary slackness*: its profit is within ε of the best it could have. Prices only rise, and an object that was bid for
once stays assigned, so the auction ends.

**Why the bound holds.** For any prices ``p`` and any matching σ, ``Σ a[i, σ(i)] = Σ (a[i, σ(i)] − p[σ(i)]) + Σ p[j]``, because
a matching uses every object once. The first sum is at most the sum of the best profits, so

    optimum ≤ Σ_j p[j] + Σ_i max_j (a[i, j] − p[j])

for *any* prices: weak duality of the assignment problem. It needs no trust in the algorithm, and it is evaluated after the
auction from the prices it left. By ε-complementary slackness the bound is at most ``S·ε`` above the value found.

**ε-scaling** (Bertsekas, 1979; Goldberg and Tarjan, 1990). A small ε lets two bidders outbid each other by small steps for very
long. The auction therefore runs in phases of falling ε; prices are kept from one to the next, assignments are not. The last
ε is the one that the tolerance asks for.

**Integers.** Affinities are scaled by a power of two, which is exact, such that their largest magnitude lies between 2²⁷ and
2²⁸, and rounded to int32. From there on every operation is exact: the result is the same to the bit on every processor, and
does not depend on threads or on what else is solved beside it. The rounding, at most ½ per position for the value and as much
for the optimum, is part of the certificate.

What is ours
------------
- Prices start at the mean affinity of each object. That removes what all bidders agree on: without it the first phase spends
  itself on raising the popular objects one by one.
- ε starts at a share of the *spread* (the mean over bidders of the best profit less the mean profit), not of the range: one
  outlier, or a heavy tail, stretches the range and tells nothing about the competition.
- Four bidders bid at a time at the same prices. Of those that choose the same object the first gets it and the others bid
  again; for the rest a price that a neighbour raised meanwhile can only have been a *second* best, and bidding up to a second
  best that is too high keeps ε-complementary slackness. Four scans share their price loads and hide each other's latency,
  and the search for the best is explicit vector code (:mod:`semrsm_dist.matching.simd`).

Guards
------
- *No overflow.* With ``|a| ≤ 2²⁸`` the range is ``R ≤ 2²⁹``. After a phase, prices differ by at most ``R + ε`` (if ``i`` holds
  ``j``: ``p[j] − p[k] ≤ a[i,j] − a[i,k] + ε``), and they are shifted so that the lowest is 0. Within a phase a bid ends at most
  ``R + ε`` above the price of any other object; while another object is free, that is at most ``R + ε`` above where the phase
  began, and the bid that ends the phase adds at most as much again. So prices stay below ``3 (R + ε)``, which is
  less than ``2³¹ − 2²⁸`` since ε starts at 0.03 of a spread that the range bounds.
- *A bid budget* (:data:`BIDS_PER_POSITION`): when a matching spends it, or when even ε = 1 cannot certify the tolerance (an
  outlier so large that the others fall below the resolution), SciPy's exact solver takes that pair.

References
----------
.. [1] D. P. Bertsekas, "A distributed algorithm for the assignment problem", MIT LIDS working paper, 1979.
.. [2] D. P. Bertsekas, "Auction algorithms for network flow problems: a tutorial introduction", Computational Optimization and
   Applications 1, 1992.
.. [3] A. V. Goldberg and R. E. Tarjan, "Finding minimum-cost circulations by successive approximation", Mathematics of
   Operations Research 15, 1990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching.jit import compiled, inlined
from semrsm_dist.matching.protocol import Solution
from semrsm_dist.matching.simd import LANES, LOWEST, best_two, best_two_of_2, best_two_of_4

TOLERANCE = 1e-6
"""Largest relative certified gap, unless told otherwise."""
BIDS_PER_POSITION = 2000
"""Bids that a matching may spend for each of its positions; easy maps need about 10, maps with many equal tokens 100."""

_LARGEST_EXPONENT = 28
"""Affinities are scaled to at most two to the power of this."""
_LARGEST_SCALE = 120
"""The scale itself must be a float32."""
_FIRST_EPSILON = 0.03
"""ε of the first phase, as a share of the spread of profits."""
_DIVISORS = (10, 30, 100)
"""ε of each phase is that of the phase before divided by these; the last one repeats."""
_SAMPLED_BIDDERS = 16
"""Bidders from which the spread of profits is estimated."""


@dataclass(frozen=True)
class AuctionSolver:
    """Forward auction with ε-scaling in integers.

    Parameters
    ----------
    tolerance
        Largest certified gap between the value found and the optimum, relative to the value.
    """

    tolerance: float = TOLERANCE
    name: str = "auction"
    bytes_per_affinity: int = 4 + 4
    """float32 and int32."""

    def solve(self, affinities: NDArray[np.float32]) -> Solution:
        """Matchings ``(k, S)`` of ``k`` affinities ``(k, S, S)`` with their certified gaps ``(k,)``."""
        n_problems, size, _ = affinities.shape
        permutations = np.empty((n_problems, size), dtype=np.int64)
        gaps = np.empty(n_problems)
        _solve_all(affinities, _workspace(size), self.tolerance, BIDS_PER_POSITION, permutations, gaps)
        for problem in np.flatnonzero(np.isnan(gaps)):  # the budget or the resolution did not suffice
            permutations[problem] = linear_sum_assignment(affinities[problem], maximize=True)[1]
            gaps[problem] = 0.0
        return Solution(permutations, gaps)


_kept = local()


def _workspace(size: int) -> NDArray[np.int32]:
    """Room for a scaled affinity with padded rows; kept by each thread, since new memory costs a tenth of a matching."""
    workspace: NDArray[np.int32] | None = getattr(_kept, "workspace", None)
    if workspace is None or len(workspace) != size:
        _kept.workspace = None  # before the next is there
        workspace = _kept.workspace = np.empty((size, -(-size // LANES) * LANES), dtype=np.int32)
    return workspace


@compiled
def _solve_all(affinities: Any, scaled: Any, tolerance: float, bids_per_position: int, permutations: Any, gaps: Any) -> None:
    """Solve each ``(S, S)`` of ``affinities``; a gap of NaN says that it was given up."""
    size, width = scaled.shape
    prices = np.empty(width, dtype=np.int32)
    owners = np.empty(width, dtype=np.int64)
    waiting = np.empty(size + 4, dtype=np.int64)
    sums = np.empty(size, dtype=np.float32)
    for problem in range(len(affinities)):
        exponent = _scale(affinities[problem], scaled, prices, sums)
        if size == 1 or exponent == _NOTHING_TO_MATCH:
            permutations[problem] = np.arange(size)
            gaps[problem] = 0.0
            continue
        units = _auction(scaled, size, prices, owners, waiting, tolerance, bids_per_position * size, permutations[problem])
        gaps[problem] = math.ldexp(float(units), -exponent) if units >= 0 else np.nan


_NOTHING_TO_MATCH = 2**31


@compiled
def _scale(affinity: Any, scaled: Any, prices: Any, sums: Any) -> int:
    """Write ``affinity * 2 ** exponent`` as int32 with padded rows, the prices it starts with, and return the exponent."""
    size, width = scaled.shape
    largest = np.float32(0.0)
    sums[:] = np.float32(0.0)
    peaks = np.zeros(size, dtype=np.float32)
    whole = size // 4 * 4
    for row in range(0, whole, 4):  # four rows at a time: the sums are loaded and stored a quarter as often
        for column in range(size):
            a, b, c, d = affinity[row, column], affinity[row + 1, column], affinity[row + 2, column], affinity[row + 3, column]
            sums[column] += (a + b) + (c + d)
            peaks[column] = max(peaks[column], max(max(abs(a), abs(b)), max(abs(c), abs(d))))
    for row in range(whole, size):
        for column in range(size):
            sums[column] += affinity[row, column]
            peaks[column] = max(peaks[column], abs(affinity[row, column]))
    for column in range(size):
        largest = max(largest, peaks[column])
    if largest == 0.0:
        return _NOTHING_TO_MATCH
    exponent = min(_LARGEST_EXPONENT - math.frexp(largest)[1], _LARGEST_SCALE)
    factor = np.float32(math.ldexp(1.0, exponent))
    for row in range(size):
        for column in range(size):
            scaled[row, column] = np.int32(np.rint(affinity[row, column] * factor))
        for column in range(size, width):
            scaled[row, column] = LOWEST
    for column in range(size):
        prices[column] = np.int32(sums[column] / np.float32(size) * factor)
    prices[size:] = 0
    return exponent


@compiled
def _auction(
    scaled: Any, size: int, prices: Any, owners: Any, waiting: Any, tolerance: float, budget: int, permutation: Any
) -> int:
    """Match; returns the certified gap in units of the scaled affinities, or -1 when given up."""
    epsilon = max(int(_FIRST_EPSILON * _spread(scaled, size, prices)), 1)
    phase = 0
    while True:
        budget = _phase(scaled, size, prices, owners, waiting, epsilon, budget)
        if budget < 0:
            return -1
        value = 0
        lowest = prices[0]
        for column in range(size):
            value += scaled[owners[column], column]
            lowest = min(lowest, prices[column])
        for column in range(size):
            prices[column] -= lowest
        # The certified gap is at most size * (epsilon + 1): complementary slackness, and the rounding to integers.
        target = max(int(tolerance * abs(value) / size) - 1, 1)
        if epsilon <= target:
            gap = _dual_bound(scaled, size, prices) - value + size
            if gap > tolerance * abs(value):
                return -1
            for column in range(size):
                permutation[owners[column]] = column
            return int(gap)
        following = epsilon // _DIVISORS[min(phase, len(_DIVISORS) - 1)]
        epsilon = target if following < 3 * target else following
        phase += 1


@compiled
def _spread(scaled: Any, size: int, prices: Any) -> float:
    """Mean over some bidders of the best profit less the mean profit."""
    bidders = min(size, _SAMPLED_BIDDERS)
    total = 0.0
    for k in range(bidders):
        row = k * size // bidders
        best = np.int64(LOWEST)
        profits = np.int64(0)
        for column in range(size):
            profit = np.int64(scaled[row, column]) - prices[column]
            profits += profit
            best = max(best, profit)
        total += best - profits / size
    return total / bidders


@compiled
def _phase(scaled: Any, size: int, prices: Any, owners: Any, waiting: Any, epsilon: int, budget: int) -> int:
    """One auction from no assignment at all to a complete one; returns what is left of the budget, negative if spent."""
    width = scaled.shape[1]
    owners[:] = -1
    for bidder in range(size):
        waiting[bidder] = size - 1 - bidder
    n = size  # bidders that wait; the last of `waiting` bids next
    while n > 0 and budget >= 0:
        if n >= 4:
            n -= 4
            budget -= 4
            i0, i1, i2, i3 = waiting[n + 3], waiting[n + 2], waiting[n + 1], waiting[n]
            b0, j0, s0, b1, j1, s1, b2, j2, s2, b3, j3, s3 = best_two_of_4(scaled, prices, (i0, i1, i2, i3), width)
            n = _bid(i0, j0, b0 - s0 + epsilon, False, prices, owners, waiting, n)
            n = _bid(i1, j1, b1 - s1 + epsilon, j1 == j0, prices, owners, waiting, n)
            n = _bid(i2, j2, b2 - s2 + epsilon, (j2 == j0) | (j2 == j1), prices, owners, waiting, n)
            n = _bid(i3, j3, b3 - s3 + epsilon, (j3 == j0) | (j3 == j1) | (j3 == j2), prices, owners, waiting, n)
        elif n >= 2:
            n -= 2
            budget -= 2
            i0, i1 = waiting[n + 1], waiting[n]
            b0, j0, s0, b1, j1, s1 = best_two_of_2(scaled, prices, (i0, i1), width)
            n = _bid(i0, j0, b0 - s0 + epsilon, False, prices, owners, waiting, n)
            n = _bid(i1, j1, b1 - s1 + epsilon, j1 == j0, prices, owners, waiting, n)
        else:
            n -= 1
            budget -= 1
            i0 = waiting[n]
            b0, j0, s0 = best_two(scaled, prices, (i0,), width)
            n = _bid(i0, j0, b0 - s0 + epsilon, False, prices, owners, waiting, n)
    return budget


@inlined
def _bid(bidder: int, column: int, increment: int, outbid: bool, prices: Any, owners: Any, waiting: Any, n: int) -> int:
    """Give ``column`` to ``bidder`` unless a bidder of the same group just took it; whoever is without one waits."""
    owner = owners[column]
    without = bidder if outbid else owner
    waiting[n] = without  # written always, counted only if someone is without: no branch to mispredict
    owners[column] = owner if outbid else bidder
    prices[column] += np.int32(0) if outbid else np.int32(increment)
    return n + int(without >= 0)


@compiled
def _dual_bound(scaled: Any, size: int, prices: Any) -> int:
    """``Σ_j p[j] + Σ_i max_j (a[i, j] − p[j])``, which no matching exceeds."""
    bound = 0
    for column in range(size):
        bound += prices[column]
    for row in range(size):
        best = np.int32(LOWEST)
        for column in range(size):
            best = max(best, np.int32(scaled[row, column] - prices[column]))
        bound += int(best)
    return bound


def best_two_plainly(row: NDArray[np.int32], prices: NDArray[np.int32]) -> tuple[int, int]:
    """Best and second-best profit of one bidder: what :data:`semrsm_dist.matching.simd.best_two` finds with its column."""
    second, best = np.partition(row.astype(np.int64) - prices, -2)[-2:]
    return int(best), int(second)
