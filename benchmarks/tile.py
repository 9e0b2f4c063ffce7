"""What a pair costs in a tile, against the plain loop that a reader would write first, in the same run on one core.

    python benchmarks/tile.py            # about a minute

The plain loop is ``linear_sum_assignment(z_i @ z_j.T, maximize=True)`` in float32 and the sum of the matched affinities; the
floor is the product ``z_i @ z_j.T`` alone. Figures are ratios of medians over interleaved repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.tile import compute_tile

CASES = ((49, 1280), (100, 96), (169, 512), (196, 1280), (512, 256))
REPETITIONS = 5


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def plain(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The loop that a reader would write first."""
    values = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            affinity = row @ column.T
            values[i, j] = affinity[linear_sum_assignment(affinity, maximize=True)].sum()
    return values


def main() -> None:
    """Print the table."""
    generator = np.random.default_rng(0)
    print(f"{'S':>5} {'C':>5} {'plain ms':>9} {'floor':>7} " + " ".join(f"{name:>8}" for name in ("scipy", "ortools")))
    for n_positions, n_channels in CASES:
        n = 6 if n_positions >= 169 else 12
        rows, columns = (
            np.maximum(generator.standard_normal((n, n_positions, n_channels)), 0).astype(np.float32) for _ in range(2)
        )
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda x=rows, y=columns: plain(x, y),
            "floor": lambda x=rows, y=columns: [a @ b.T for a in x for b in y],
        }
        for solver in ("scipy", "ortools"):
            aligned = alignment("permutation", MatchingSettings("optimal", solver=solver))
            calls[solver] = lambda x=rows, y=columns, aligned=aligned: compute_tile(x, y, aligned)
        times: dict[str, list[float]] = {name: [] for name in calls}
        with threadpool_limits(limits=1):
            for _ in range(REPETITIONS):
                for name, call in calls.items():
                    times[name].append(seconds(call))
        median = {name: float(np.median(values)) for name, values in times.items()}
        ratios = [median[name] / median["plain"] for name in ("floor", "scipy", "ortools")]
        per_pair = median["plain"] / n**2 * 1e3
        print(f"{n_positions:>5} {n_channels:>5} {per_pair:>9.3f} {ratios[0]:>7.2f} {ratios[1]:>8.2f} {ratios[2]:>8.2f}")


if __name__ == "__main__":
    main()
