"""The auction against SciPy, its certificate, its guards, and that its bits depend on nothing but the affinities."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching import auction
from semrsm_dist.matching.auction import AuctionSolver
from semrsm_dist.matching.simd import LANES, LOWEST
from semrsm_dist.matching.values import matched_values

KINDS = (
    "normal",
    "product",
    "rectified",
    "negative",
    "ties",
    "zero",
    "zero rows",
    "zero vectors",
    "duplicated",
    "positive outlier",
    "negative outlier",
    "no competition",
    "two values",
    "rank one",
)
LARGEST = 2**28
LARGEST_EPSILON = int(auction._FIRST_EPSILON * 2 * (2 * LARGEST))
"""Profits spread by at most twice the range of the affinities."""


def affinities(kind: str, seed: int, size: int, exponent: float = 0.0) -> np.ndarray:
    """One affinity matrix ``(S, S)`` float32 of a kind, about ``10 ** exponent`` large."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, size, 1 + seed % 12))
    if kind == "zero vectors":
        for sample in (first, second):
            sample[rng.random(size) < 0.6] = 0
    if kind == "duplicated":
        for sample in (first, second):
            sample[rng.random(size) < 0.45] = sample[0]
    if kind == "rectified":
        first, second = np.maximum(first, 0), np.maximum(second, 0)
    affinity = first @ second.T
    match kind:
        case "normal":
            affinity = rng.standard_normal((size, size))
        case "negative":
            affinity = -np.abs(affinity) - 0.1
        case "ties":
            affinity = rng.integers(-3, 4, (size, size)).astype(np.float64)
        case "zero":
            affinity[:] = 0
        case "zero rows":
            affinity[rng.random(size) < 0.3] = 0
        case "positive outlier":
            affinity[rng.integers(size), rng.integers(size)] = 10.0 ** rng.integers(6, 13)
        case "negative outlier":
            affinity[rng.integers(size), rng.integers(size)] = -(10.0 ** rng.integers(6, 13))
        case "no competition":
            affinity = np.diag(np.abs(affinity[0]))
        case "two values":
            affinity = rng.choice([-1.0, 1.0], (size, size))
        case "rank one":
            affinity = np.outer(rng.standard_normal(size), rng.standard_normal(size))
    return (affinity * 10.0**exponent).astype(np.float32)


def value_of(affinity: np.ndarray, permutation: np.ndarray) -> float:
    """The sum of matched affinities, rounded once."""
    return math.fsum(affinity[np.arange(len(affinity)), permutation].astype(np.float64))


def check_certificate(affinity: np.ndarray, permutation: np.ndarray, gap: float, tolerance: float) -> None:
    """A permutation, no better than SciPy's, no worse by more than the gap, which is within tolerance."""
    assert sorted(permutation) == list(range(len(affinity)))
    value = value_of(affinity, permutation)
    optimum = value_of(affinity, linear_sum_assignment(affinity, maximize=True)[1])
    rounding = 1e-15 * len(affinity) * float(np.abs(affinity).max())  # float64's, in SciPy
    assert value <= optimum + rounding
    assert optimum <= value + gap + rounding
    assert 0 <= gap <= tolerance * abs(value) * (1 + tolerance)  # the value is known to within the tolerance only
    assert optimum - value <= tolerance * abs(value) + rounding


def kernel_arrays(affinity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``scaled``, ``prices``, ``owners`` and ``waiting`` as the kernels take them."""
    size = len(affinity)
    width = -(-size // LANES) * LANES
    scaled, prices = np.empty((size, width), dtype=np.int32), np.empty(width, dtype=np.int32)
    auction._scale(affinity, scaled, prices, np.empty(size, dtype=np.float32))
    return scaled, prices, np.empty(width, dtype=np.int64), np.empty(size + 4, dtype=np.int64)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 64), exponent=st.floats(-12, 12))
@settings(max_examples=100, deadline=None)
def test_every_matching_is_within_its_certified_gap_of_the_optimum(
    kind: str, tolerance: float, seed: int, size: int, exponent: float
) -> None:
    affinity = affinities(kind, seed, size, exponent)
    solution = AuctionSolver(tolerance).solve(affinity[None])
    assert solution.permutations.shape == (1, size) and solution.permutations.dtype == np.int64
    assert solution.gaps.shape == (1,) and solution.gaps.dtype == np.float64
    check_certificate(affinity, solution.permutations[0], solution.gaps[0], tolerance)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-37, 1e36])
def test_scales_at_the_ends_of_float32_are_matched(scale: float) -> None:
    affinity = (affinities("normal", 0, 30) * np.float64(scale)).astype(np.float32)
    solution = AuctionSolver().solve(affinity[None])
    check_certificate(affinity, solution.permutations[0], solution.gaps[0], auction.TOLERANCE)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 40), outlier=st.floats(5e6, 5e9))
@settings(max_examples=100, deadline=None)
def test_what_integers_cannot_resolve_beside_an_outlier_is_in_the_gap(seed: int, size: int, outlier: float) -> None:
    affinity = affinities("normal", seed, size)
    affinity[0, 0] = outlier
    solution = AuctionSolver(1e-6).solve(affinity[None])
    check_certificate(affinity, solution.permutations[0], solution.gaps[0], 1e-6)


def test_easy_maps_are_certified_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auction, "linear_sum_assignment", lambda *_, **__: pytest.fail("SciPy was asked"))
    for kind in ("normal", "product", "rectified", "ties", "zero", "duplicated", "two values", "no competition"):
        AuctionSolver(1e-5).solve(np.stack([affinities(kind, 7 + seed, 48) for seed in range(10)]))


@pytest.mark.parametrize("kind", ["normal", "duplicated", "ties"])
def test_a_matching_that_spends_its_budget_is_given_to_scipy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = np.stack([affinities(kind, 5 + seed, 40) for seed in range(4)])
    permutations, gaps = np.full((4, 40), -1, dtype=np.int64), np.zeros(4)
    auction._solve_all(problems, np.empty((40, 48), dtype=np.int32), 1e-6, 1, permutations, gaps)
    assert np.isnan(gaps).all() and (permutations == -1).all()
    monkeypatch.setattr(auction, "BIDS_PER_POSITION", 1)
    solution = AuctionSolver().solve(problems)
    np.testing.assert_array_equal(solution.gaps, 0.0)
    for affinity, permutation in zip(problems, solution.permutations, strict=True):
        np.testing.assert_array_equal(permutation, linear_sum_assignment(affinity, maximize=True)[1])


def test_only_the_matching_that_is_given_up_is_given_to_scipy() -> None:
    problems = np.stack([affinities("normal", 0, 20), affinities("normal", 1, 20), affinities("normal", 2, 20)])
    problems[1, 3, 4] = -1e12
    permutations, gaps = np.empty((3, 20), dtype=np.int64), np.empty(3)
    scaled = np.empty((20, 32), dtype=np.int32)
    auction._solve_all(problems, scaled, 1e-6, auction.BIDS_PER_POSITION, permutations, gaps)
    np.testing.assert_array_equal(np.isnan(gaps), [False, True, False])
    solution = AuctionSolver(1e-6).solve(problems)
    np.testing.assert_array_equal(solution.permutations[::2], permutations[::2])
    np.testing.assert_array_equal(solution.gaps[::2], gaps[::2])
    assert solution.gaps[1] == 0.0
    np.testing.assert_array_equal(solution.permutations[1], linear_sum_assignment(problems[1], maximize=True)[1])


def test_no_problems_have_no_matchings() -> None:
    solution = AuctionSolver().solve(np.empty((0, 5, 5), dtype=np.float32))
    assert solution.permutations.shape == (0, 5) and solution.gaps.shape == (0,)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), exponent=st.floats(-30, 30))
@settings(max_examples=100, deadline=None)
def test_affinities_are_scaled_by_a_power_of_two_and_rounded(seed: int, size: int, exponent: float) -> None:
    affinity = affinities(KINDS[seed % len(KINDS)], seed, size, min(exponent, 25))
    if not affinity.any():
        return
    scaled, prices, _, _ = kernel_arrays(affinity)
    assert (scaled[:, size:] == LOWEST).all() and (prices[size:] == 0).all()
    power = 28 - np.frexp(np.abs(affinity).max())[1]
    np.testing.assert_array_equal(scaled[:, :size], np.rint(np.ldexp(affinity.astype(np.float64), min(power, 120))))
    if power <= 120:
        assert LARGEST // 2 <= np.abs(scaled[:, :size].astype(np.int64)).max() <= LARGEST
    assert np.abs(prices.astype(np.int64)).max() <= LARGEST


def best_two_in_python(row: list[int], prices: list[int]) -> tuple[int, int, int]:
    """Best profit, its column (of equal ones that of the lowest lane, there the first) and the second-best profit."""
    profits = [a - p for a, p in zip(row, prices, strict=True)]
    assert min(profits) >= LOWEST, "a profit left int32"
    best = max(profits)
    column = min((j for j, profit in enumerate(profits) if profit == best), key=lambda j: (j % LANES, j))
    return best, column, max(profits[:column] + profits[column + 1 :])


def phase_in_python(
    rows: list[list[int]], prices: list[int], epsilon: int, budget: int
) -> tuple[list[int], list[int], int, int]:
    """:func:`auction._phase` with Python's integers: prices, owners, what is left of the budget, and the highest price."""
    prices, owners, waiting, highest = list(prices), [-1] * len(rows), list(range(len(rows)))[::-1], max(prices)
    while waiting and budget >= 0:
        together = 4 if len(waiting) >= 4 else 2 if len(waiting) >= 2 else 1
        group = [waiting.pop() for _ in range(together)]
        budget -= together
        bids = [best_two_in_python(rows[bidder], prices) for bidder in group]
        taken: set[int] = set()
        for bidder, (best, column, second) in zip(group, bids, strict=True):
            if column in taken:
                waiting.append(bidder)
                continue
            taken.add(column)
            if owners[column] >= 0:
                waiting.append(owners[column])
            owners[column] = bidder
            prices[column] += best - second + epsilon
            highest = max(highest, prices[column])
    return prices, owners, budget, highest


def extreme(seed: int, size: int) -> np.ndarray:
    """Entries of ± 2²⁸ only, dense or sparse, free or in blocks: what drives prices apart the most."""
    rng = np.random.default_rng(seed)
    matrix = np.where(rng.random((size, size)) < rng.choice([0.1, 0.5, 0.9]), LARGEST, -LARGEST)
    if seed % 3 == 1:
        matrix[:] = np.where(rng.random(size) < 0.5, LARGEST, -LARGEST)[None]
    if seed % 3 == 2:
        matrix[:] = -LARGEST
        matrix[:, : 1 + seed % (size - 1)] = LARGEST
    return matrix.astype(np.int32)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 20), epsilon=st.integers(2**18, LARGEST_EPSILON))
@settings(max_examples=150, deadline=None)
def test_prices_stay_below_the_documented_bound_and_never_leave_int32(seed: int, size: int, epsilon: int) -> None:
    matrix = extreme(seed, size)
    scaled, prices, owners, waiting = kernel_arrays(matrix.astype(np.float32))
    scaled[:, :size] = matrix  # 2²⁸ itself is what rounding may lead to
    largest_range, before = 2 * LARGEST, epsilon
    for step in (epsilon, epsilon // 10, epsilon // 300):
        expected, expected_owners, expected_left, highest = phase_in_python(matrix.tolist(), prices[:size].tolist(), step, 3000)
        left = auction._phase(scaled, size, prices, owners, waiting, step, 3000)
        assert prices[:size].tolist() == expected
        assert owners[:size].tolist() == expected_owners
        assert left == expected_left
        assert not prices[size:].any()
        assert highest < 3 * (largest_range + before) < 2**31 - LARGEST
        if left < 0:
            return
        assert sorted(expected_owners) == list(range(size))
        assert prices[:size].max().astype(np.int64) - prices[:size].min() <= largest_range + step
        profits = matrix.astype(np.int64) - prices[:size]
        assert (profits[owners[:size], np.arange(size)] >= profits[owners[:size]].max(axis=1) - step).all()
        prices[:size] -= prices[:size].min()
        before = step


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_prices_are_shifted_to_zero_after_every_phase(seed: int, size: int) -> None:
    affinity = affinities("product", seed, size)
    scaled, prices, owners, waiting = kernel_arrays(affinity)
    gap = auction._auction(scaled, size, prices, owners, waiting, 1e-4, 100_000, np.empty(size, dtype=np.int64))
    assert prices[:size].min() == 0
    value = scaled[owners[:size], np.arange(size)].astype(np.int64).sum()
    profits = scaled[:, :size].astype(np.int64) - prices[:size]
    bound = prices[:size].astype(np.int64).sum() + profits.max(axis=1).sum()
    assert gap == -1 or gap == bound - value + size


def batch(size: int) -> np.ndarray:
    """Problems of every kind, ``(k, S, S)``."""
    return np.stack([affinities(kind, 11 * k + size, size, k - 6) for k, kind in enumerate(KINDS * 2)])


@pytest.mark.parametrize("size", [2, 7, 16, 33, 64])
def test_a_matching_does_not_depend_on_what_else_is_solved(size: int) -> None:
    problems, solver = batch(size), AuctionSolver()
    together = solver.solve(problems)
    shuffled = np.random.default_rng(size).permutation(len(problems))
    alone = [solver.solve(problem[None]) for problem in problems]
    other = solver.solve(problems[shuffled])
    np.testing.assert_array_equal(np.concatenate([one.permutations for one in alone]), together.permutations)
    np.testing.assert_array_equal(np.concatenate([one.gaps for one in alone]), together.gaps)
    np.testing.assert_array_equal(other.permutations, together.permutations[shuffled])
    np.testing.assert_array_equal(other.gaps, together.gaps[shuffled])


def test_threads_do_not_disturb_each_other() -> None:
    batches = [batch(size) for size in (5, 16, 33, 48)] * 8
    solver = AuctionSolver()
    expected = [solver.solve(problems) for problems in batches]
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(solver.solve, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.permutations, other.permutations)
        np.testing.assert_array_equal(one.gaps, other.gaps)


ON_ANOTHER_PROCESSOR = """
import sys
import numpy as np
from semrsm_dist.matching import auction, values
given, found = np.load(sys.argv[1]), {}
for name in given.files:
    if name.startswith("problems"):
        solution = auction.AuctionSolver().solve(given[name])
        found[name + " permutations"], found[name + " gaps"] = solution.permutations, solution.gaps
        size = given[name].shape[1]
        rows = given["rows"][:, :size].repeat(len(given[name]), axis=0)
        found[name + " values"] = values.matched_values(rows, given["column"][:size], solution.permutations)
np.savez(sys.argv[2], **found)
kernels = (auction._solve_all, auction._auction, auction._phase, auction._scale, values._fill_values)
print("".join(code for kernel in kernels for code in kernel.inspect_asm().values()))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the other processors named here are x86")
def test_kernels_compiled_for_other_processors_give_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, column = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 64, 107), (64, 107)))
    problems = {f"problems {size}": batch(size) for size in (2, 7, 16, 33, 64)}
    np.savez(tmp_path / "given.npz", rows=rows, column=column, **problems)
    running = []
    for name, processor in (("avx2", "x86-64-v3"), ("sse2", "x86-64")):
        environment = {
            **os.environ,
            "NUMBA_CPU_NAME": processor,
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": str(tmp_path / name),
        }
        arguments = [sys.executable, "-c", ON_ANOTHER_PROCESSOR, str(tmp_path / "given.npz"), str(tmp_path / f"{name}.npz")]
        running.append((name, subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)))
    for name, process in running:
        assembly, _ = process.communicate(timeout=200)
        assert process.returncode == 0
        assert "xmm" in assembly and "zmm" not in assembly
        assert ("ymm" in assembly) == (name == "avx2")
        found = np.load(tmp_path / f"{name}.npz")
        for key, affinity in problems.items():
            solution = AuctionSolver().solve(affinity)
            np.testing.assert_array_equal(found[f"{key} permutations"], solution.permutations)
            np.testing.assert_array_equal(found[f"{key} gaps"], solution.gaps)
            size = affinity.shape[1]
            values = matched_values(rows[:, :size].repeat(len(affinity), axis=0), column[:size], solution.permutations)
            np.testing.assert_array_equal(found[f"{key} values"], values)
