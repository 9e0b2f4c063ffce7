"""The figures of docs/matching.md beside its tables: scans of the auction, what integer costs and windows lose, and what it
costs that the bits of a product do not depend on its neighbours.

    python benchmarks/matching_facts.py      # under a minute

On Gaussian and rectified maps, and on SqueezeNet's maps of the playing cards where ``../shared`` is there.
"""

from __future__ import annotations

import time
import timeit
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from semrsm_dist.matching import MatchingSettings, alignment, auction
from semrsm_dist.matching.products import Float32Product
from semrsm_dist.matching.simd import LANES
from semrsm_dist.tile import compute_tile

FEATURES = Path(__file__).parents[1] / "../shared/data/features/playing_cards_squeezenet_fire9.npz"
PHASES = 8
BUDGET = 10**9


def scans_per_row(affinity: np.ndarray, *, ours: bool) -> float:
    """Bids for each row until ε certifies about 10⁻⁶: with our prices and ε, or with prices of zero and ε of the range."""
    size = len(affinity)
    width = -(-size // LANES) * LANES
    scaled, prices = np.empty((size, width), dtype=np.int32), np.empty(width, dtype=np.int32)
    owners, waiting = np.empty(width, dtype=np.int64), np.empty(size + 4, dtype=np.int64)
    auction._scale(affinity, scaled, prices, np.empty(size, dtype=np.float32))
    last = max(int(1e-6 * scaled[:, :size].max(axis=1).mean()), 1)
    if ours:
        first = 0.03 * auction._spread(scaled, size, prices)
        schedule = [first, first / 10, first / 300]
    else:
        prices[:] = 0
        first = 0.02 * float(np.ptp(scaled[:, :size].astype(np.int64)))
        schedule = [first / 8**phase for phase in range(PHASES) if first / 8**phase > last]
    left = BUDGET
    for epsilon in [*schedule, last]:
        left = auction._phase(scaled, size, prices, owners, waiting, max(int(epsilon), 1), left)
    return (BUDGET - left) / size


def lost_by_thousandths(maps: np.ndarray, scale: float) -> float:
    """Share of the optimum that costs of ``A · 1000``, truncated, lose at a root mean square of ``scale``."""
    maps = maps / np.sqrt((maps**2).mean()) * scale
    losses = []
    for row, column in zip(maps[::2], maps[1::2], strict=True):
        affinity = (row @ column.T).astype(np.float64)
        best, found = (linear_sum_assignment(cost) for cost in (-affinity, (-affinity * 1000).astype(np.int64)))
        losses.append(1 - affinity[found].sum() / affinity[best].sum())
    return float(np.mean(losses))


def below_none(maps: np.ndarray, noise: float, window: int) -> tuple[float, float]:
    """Of maps and their noisy copies, the share that windows put below the same positions, and the mean ratio."""
    random = np.random.default_rng(0)
    copies = (maps + noise * maps.std() * random.standard_normal(maps.shape)).astype(np.float32)
    settings = MatchingSettings(window=window)
    none, windows = (
        np.diag(compute_tile(maps, copies, alignment(name, settings)).inner_products) for name in ("none", "permutation")
    )
    return float((windows < none).mean()), float((windows / none).mean())


def cost_of_one_shape(s: int, c: int) -> float:
    """CPU time of one product of a fixed shape for each pair, over that of one product for all of them."""
    random = np.random.default_rng(0)
    together = max(1, min(100, 2**20 // (s * s)))
    rows, column = (random.standard_normal(shape).astype(np.float32) for shape in ((together, s, c), (s, c)))
    affinities = np.empty((together, s, s), dtype=np.float32)

    def at_once() -> None:
        np.matmul(rows.reshape(-1, c), column.T, out=affinities.reshape(-1, s))

    def each() -> None:
        Float32Product().multiply(rows, column, affinities)

    with threadpool_limits(1):
        seconds = {run: min(timeit.repeat(run, number=5, repeat=10, timer=time.thread_time)) for run in (each, at_once)}
    return seconds[each] / seconds[at_once]


def main() -> None:
    """Print the figures."""
    for s, c in ((49, 512), (49, 1280), (196, 256), (196, 1280), (257, 1536), (512, 256), (1024, 256)):
        print(f"one shape a pair, S = {s}, C = {c}: {cost_of_one_shape(s, c):.2f} × one product for all")
    random = np.random.default_rng(0)
    maps = {
        f"Gaussian {s}×{c}": random.standard_normal((8, s, c)).astype(np.float32)
        for s, c in ((169, 64), (256, 256), (512, 256))
    }
    maps["rectified 512×256"] = np.maximum(random.standard_normal((8, 512, 256)), 0).astype(np.float32)
    if FEATURES.exists():
        uncentred = np.load(FEATURES)["features"]
        maps["SqueezeNet, centred"] = (uncentred - uncentred.mean(axis=0))[:40].astype(np.float32)
        maps["SqueezeNet"] = uncentred[:40]
    else:
        print(f"SKIPPED SqueezeNet's maps: there is no {FEATURES}")
    for name, samples in maps.items():
        pairs = [samples[i] @ samples[i + 1].T for i in range(0, 8, 2)]
        ours, plain = (np.mean([scans_per_row(pair, ours=each) for pair in pairs]) for each in (True, False))
        losses = ", ".join(
            f"{100 * lost_by_thousandths(samples[:8], scale):.1f} % at {scale:g}" for scale in (1, 0.01, 0.003, 0.001)
        )
        print(f"{name}: {ours:.1f} scans a row, {plain:.1f} from zero prices; costs · 1000 lose {losses}")
    if FEATURES.exists():
        for window in (16, 32, 64, 128):
            share, ratio = below_none(maps["SqueezeNet, centred"], 0.05, window)
            print(f"copies with 5 % noise, window {window}: {100 * share:.0f} % below none, mean ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
