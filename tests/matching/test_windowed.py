"""Matching in windows against a plain loop over pairs, its bounds, and what its bits may not depend on."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from semrsm_dist.matching import MatchingSettings, alignment, solver, windowed
from semrsm_dist.matching.auction import AuctionSolver
from semrsm_dist.matching.bfloat16 import BFloat16Product
from semrsm_dist.matching.products import Float32Product
from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.scipy_solver import ScipySolver
from semrsm_dist.matching.windowed import WindowedMatching
from storage_schemas import InvalidInputError

KINDS = ("normal", "rectified", "ties", "zeros", "duplicated", "negative")


def samples(seed: int, n: int, s: int, c: int, kind: str = "normal") -> np.ndarray:
    """Samples ``(n, S, C)`` of a kind."""
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((n, s, c))
    match kind:
        case "rectified":
            block = np.maximum(block, 0)
        case "ties":
            block = np.rint(block)
        case "zeros":
            block[rng.random((n, s)) < 0.6] = 0
        case "duplicated":
            block[:, rng.random(s) < 0.45] = block[:, :1]
        case "negative":
            block = np.abs(block) * (1 if seed % 2 else -1)
        case "nearly equal":  # float32's rounding decides which is matched with which
            block = np.repeat(block[:, : s // 2 + 1], 2, axis=1)[:, :s] * (1 + 3e-7 * rng.standard_normal((n, s, 1)))
    return block.astype(np.float32)


def matched(matching: WindowedMatching, first: np.ndarray, second: np.ndarray | None = None) -> Matched:
    """All pairs of two blocks, or of a block with itself, on one thread as workers do."""
    with threadpool_limits(1):
        rows = matching.prepare(first)
        columns = rows if second is None else matching.prepare(second)
        return matching.inner_products(rows, columns, same=second is None)


def windows_of(sample: np.ndarray, window: int | None) -> list[np.ndarray]:
    """Concept vectors in float64, by ascending norm, equal norms as they are stored, in windows."""
    vectors = sample.astype(np.float64)
    squares = [math.fsum(vector**2) for vector in vectors]
    vectors = vectors[sorted(range(len(vectors)), key=squares.__getitem__)]
    window = window or len(vectors)
    return [vectors[start : start + window] for start in range(0, len(vectors), window)]


def one_pair(first: np.ndarray, second: np.ndarray, window: int | None = None) -> float:
    """The optimum of one pair, each window by SciPy in float64."""
    total = 0.0
    for x, y in zip(windows_of(first, window), windows_of(second, window), strict=True):
        affinity = x @ y.T
        total += affinity[linear_sum_assignment(affinity, maximize=True)].sum()
    return total


def every_pair(first: np.ndarray, second: np.ndarray, window: int | None = None) -> np.ndarray:
    """:func:`one_pair` of all pairs."""
    return np.array([[one_pair(x, y, window) for y in second] for x in first])


def norm_products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``n_i n_j`` of all pairs."""
    return np.outer(*(np.sqrt((block.astype(np.float64) ** 2).sum(axis=(1, 2))) for block in (first, second)))


def float32_rounding(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What the rounding of float32 affinities can do to the optimum and to what is chosen, of all pairs."""
    return 2 * first.shape[2] * 2.0**-24 * norm_products(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@given(
    seed=st.integers(0, 2**32 - 3),
    s=st.integers(1, 30),
    c=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(1, 35)),
)
@settings(max_examples=80, deadline=None)
def test_values_and_bounds_enclose_the_optimum_of_a_plain_loop(
    kind: str, tolerance: float, seed: int, s: int, c: int, window: int | None
) -> None:
    first, second = samples(seed, 3, s, c, kind), samples(seed + 1, 2, s, c, kind)
    if window is not None and window < s and kind not in ("ties", "zeros", "duplicated"):
        first, second = (np.rint(block * 64) for block in (first, second))  # norms exact, so the windows are unambiguous
    found = matched(WindowedMatching(AuctionSolver(tolerance), window), first, second)
    optimum, rounding = every_pair(first, second, window), float32_rounding(first, second)
    assert found.upper_bounds is not None
    assert (found.inner_products <= optimum + 1e-13 * norm_products(first, second)).all()
    assert (found.upper_bounds >= optimum - rounding).all()
    gaps = found.upper_bounds - found.inner_products
    assert (gaps >= 0).all()
    assert (gaps <= tolerance * (1 + tolerance) * (np.abs(found.inner_products) + rounding)).all()


def test_windows_are_cut_from_ascending_norms_and_the_last_may_be_shorter() -> None:
    first, second = samples(0, 3, 11, 5), samples(1, 4, 11, 5)
    prepared = WindowedMatching(AuctionSolver(), 4).prepare(first)
    assert [window.shape for window in prepared.windows] == [(3, 4, 5), (3, 4, 5), (3, 3, 5)]
    norms = np.concatenate([np.linalg.norm(window.astype(np.float64), axis=2) for window in prepared.windows], axis=1)
    assert (np.diff(norms, axis=1) >= 0).all()
    for window in (1, 2, 3, 4, 5, 10):
        found = matched(WindowedMatching(AuctionSolver(1e-7), window), first, second)
        np.testing.assert_allclose(found.inner_products, every_pair(first, second, window), rtol=1e-6, atol=1e-5)
        assert not np.allclose(found.inner_products, every_pair(first, second), rtol=1e-3)


def test_norms_that_differ_only_in_float64_are_sorted() -> None:
    vectors = [[4096, 1], [4096, 0], [4096, 2]]  # squares 2²⁴ + 1, 2²⁴ and 2²⁴ + 4; float32 has no 2²⁴ + 1
    prepared = WindowedMatching(AuctionSolver(), 2).prepare(np.array([vectors], dtype=np.float32))
    np.testing.assert_array_equal(np.concatenate(prepared.windows, axis=1)[0, :, 1], [0, 1, 2])


def test_equal_norms_stay_in_stored_order() -> None:
    rng = np.random.default_rng(0)
    block = np.where(rng.random((2, 40, 6)) < 0.5, -1.0, 1.0).astype(np.float32)  # every norm is √6
    prepared = WindowedMatching(AuctionSolver(), 7).prepare(block)
    np.testing.assert_array_equal(np.concatenate(prepared.windows, axis=1), block)
    found = matched(WindowedMatching(AuctionSolver(), 7), block[:1], block[1:])
    assert found.inner_products[0, 0] == one_pair(block[0], block[1], 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [13, 14, 512])
def test_a_window_of_at_least_all_positions_is_optimal_to_the_bit(kind: str, window: int) -> None:
    first, second = samples(2, 5, 13, 33, kind), samples(3, 4, 13, 33, kind)
    whole, optimal = (matched(WindowedMatching(AuctionSolver(), w), first, second) for w in (window, None))
    np.testing.assert_array_equal(whole.inner_products, optimal.inner_products)
    np.testing.assert_array_equal(whole.upper_bounds, optimal.upper_bounds)


@pytest.mark.parametrize("product", [Float32Product(), BFloat16Product()])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_one_position_is_the_inner_product(product: Float32Product | BFloat16Product, window: int | None) -> None:
    first, second = samples(0, 4, 1, 50), samples(1, 3, 1, 50)
    found = matched(WindowedMatching(AuctionSolver(), window, product), first, second)
    expected = np.einsum("isc,jsc->ij", first.astype(np.float64), second.astype(np.float64))
    np.testing.assert_allclose(found.inner_products, expected, rtol=1e-12, atol=1e-12)
    assert (found.upper_bounds >= found.inner_products).all()


@pytest.mark.parametrize("product", [Float32Product(), BFloat16Product()])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 4])
def test_a_block_with_itself_is_symmetric_and_its_diagonal_the_squared_norm(
    product: Float32Product | BFloat16Product, kind: str, window: int | None
) -> None:
    block, matching = samples(7, 9, 14, 40, kind), WindowedMatching(AuctionSolver(), window, product)
    found = matched(matching, block)
    assert found.upper_bounds is not None
    np.testing.assert_array_equal(found.inner_products, found.inner_products.T)
    np.testing.assert_array_equal(found.upper_bounds, found.upper_bounds.T)
    np.testing.assert_allclose(np.diag(found.inner_products), matching.norms(block) ** 2, rtol=1e-14)
    other = matched(matching, block, block.copy())
    both_rounded = 2 * product.rounding * norm_products(block, block)
    difference = np.abs(found.inner_products - other.inner_products)
    assert (difference <= both_rounded + float32_rounding(block, block) + 2e-6 * np.abs(found.inner_products)).all()


SHAPES = ((20, 64, None), (17, 1000, None), (20, 500, 7), (12, 1500, 6))


@pytest.mark.parametrize("kind", ["normal", "nearly equal", "duplicated"])
@pytest.mark.parametrize(("s", "c", "window"), SHAPES)
def test_nothing_depends_on_how_many_pairs_are_multiplied_together(
    kind: str, s: int, c: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = samples(0, 30, s, c, kind), samples(1, 5, s, c, kind)
    matching = WindowedMatching(AuctionSolver(), window)
    expected = matched(matching, first, second)
    for affinity_bytes in (1, 3 * 4 * s * s, 2**26):
        monkeypatch.setattr(windowed, "AFFINITY_BYTES", affinity_bytes)
        found = matched(matching, first, second)
        np.testing.assert_array_equal(found.inner_products, expected.inner_products)
        np.testing.assert_array_equal(found.upper_bounds, expected.upper_bounds)


@pytest.mark.parametrize("kind", ["normal", "nearly equal", "duplicated"])
@pytest.mark.parametrize(("s", "c", "window"), SHAPES)
def test_a_pair_does_not_depend_on_the_rest_of_its_block(kind: str, s: int, c: int, window: int | None) -> None:
    first, second = samples(0, 30, s, c, kind), samples(1, 5, s, c, kind)
    matching = WindowedMatching(AuctionSolver(), window)
    expected = matched(matching, first, second)
    assert expected.upper_bounds is not None
    for rows in (slice(3, 4), slice(0, 7), slice(None, None, -1), slice(1, 30, 9)):
        found = matched(matching, np.ascontiguousarray(first[rows]), second[2:4])
        np.testing.assert_array_equal(found.inner_products, expected.inner_products[rows, 2:4])
        np.testing.assert_array_equal(found.upper_bounds, expected.upper_bounds[rows, 2:4])
    itself, with_a_copy = matched(matching, first), matched(matching, first, first.copy())
    upper = np.triu_indices(len(first), 1)
    np.testing.assert_array_equal(itself.inner_products[upper], with_a_copy.inner_products[upper])


def test_nothing_depends_on_how_many_pairs_are_multiplied_together_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = samples(0, 30, 20, 500, "duplicated"), samples(1, 5, 20, 500, "duplicated")
    matching = WindowedMatching(AuctionSolver(), 7, BFloat16Product())
    expected = matched(matching, first, second)
    monkeypatch.setattr(windowed, "AFFINITY_BYTES", 1)
    found = matched(matching, first, second)
    np.testing.assert_array_equal(found.inner_products, expected.inner_products)
    np.testing.assert_array_equal(found.upper_bounds, expected.upper_bounds)


@pytest.mark.parametrize("window", [None, 4])
def test_the_layout_of_a_block_in_memory_changes_nothing(window: int | None) -> None:
    first, second = samples(0, 6, 13, 37), samples(1, 4, 13, 37)
    matching = WindowedMatching(AuctionSolver(), window)
    expected = matched(matching, first, second)
    maps = np.ascontiguousarray(first.transpose(0, 2, 1))  # as a network leaves them: (n, C, H·W)
    frozen = first.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(first), maps.transpose(0, 2, 1), first.repeat(2, axis=0)[::2], frozen):
        found = matched(matching, other, np.asfortranarray(second))
        np.testing.assert_array_equal(found.inner_products, expected.inner_products)
        np.testing.assert_array_equal(found.upper_bounds, expected.upper_bounds)


@pytest.mark.parametrize("product", [Float32Product(), BFloat16Product()])
@pytest.mark.parametrize("window", [None, 5])
@given(seed=st.integers(0, 2**32 - 2), exponents=st.lists(st.integers(-110, 90), min_size=5, max_size=5))
@settings(max_examples=30, deadline=None)
def test_powers_of_two_change_nothing_but_the_exponent(
    product: Float32Product | BFloat16Product, window: int | None, seed: int, exponents: list[int]
) -> None:
    first, second = (np.rint(samples(seed + k, n, 12, 40) * 256) for k, n in enumerate((3, 2)))
    rows, columns = np.array(exponents[:3]), np.array(exponents[3:])
    matching = WindowedMatching(AuctionSolver(), window, product)
    expected = matched(matching, first, second)
    found = matched(matching, np.ldexp(first, rows[:, None, None]), np.ldexp(second, columns[:, None, None]))
    by = np.add.outer(rows, columns)
    np.testing.assert_array_equal(found.inner_products, np.ldexp(expected.inner_products, by))
    np.testing.assert_allclose(found.upper_bounds, np.ldexp(expected.upper_bounds, by), rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 3e37])
@pytest.mark.parametrize("window", [None, 5])
def test_values_at_the_ends_of_float32_are_those_of_float64(scale: float, window: int | None) -> None:
    first, second = samples(0, 3, 12, 4), samples(1, 3, 12, 4)
    first = (first * np.float64(scale)).astype(np.float32)
    for other in (second, (second * np.float64(scale)).astype(np.float32)):
        found = matched(WindowedMatching(AuctionSolver(), window), first, other)
        np.testing.assert_allclose(found.inner_products, every_pair(first, other, window), rtol=1e-6)
        assert np.isfinite(found.upper_bounds).all()


def test_a_large_negative_value_is_seen_as_large() -> None:
    first, second = samples(0, 2, 9, 4), samples(1, 2, 9, 4)
    first[0, 3, 1], second[1, 5, 1] = -1e25, -1e25
    found = matched(WindowedMatching(AuctionSolver()), first, second)
    np.testing.assert_allclose(found.inner_products, every_pair(first, second), rtol=1e-6)
    assert found.inner_products[0, 1] > 9e49


def test_samples_of_nothing_match_with_nothing() -> None:
    first = np.concatenate([np.zeros((1, 9, 6), dtype=np.float32), samples(0, 2, 9, 6)])
    for window in (None, 4):
        found = matched(WindowedMatching(AuctionSolver(), window), first, first.copy())
        np.testing.assert_array_equal(found.inner_products[0], 0.0)
        np.testing.assert_array_equal(found.upper_bounds[:, 0], 0.0)
        assert (found.relative_gaps()[0] == 0).all()


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_the_tolerance_holds_for_pairs_whose_windows_cancel(tolerance: float) -> None:
    rng = np.random.default_rng(0)
    first, second = 1 + 0.3 * rng.standard_normal((2, 4, 40, 8))
    lengths = np.concatenate([np.full(20, 1.0), np.full(20, 1.01)])
    first, second = (block / np.linalg.norm(block, axis=2, keepdims=True) * lengths[:, None] for block in (first, second))
    second[:, 20:] *= -1
    first, second = first.astype(np.float32), second.astype(np.float32)
    found = matched(WindowedMatching(AuctionSolver(tolerance), 20), first, second)
    optimal = WindowedMatching(AuctionSolver(tolerance))
    halves = [matched(optimal, first[:, half], second[:, half]) for half in (slice(0, 20), slice(20, 40))]
    together = sum(half.upper_bounds - half.inner_products for half in halves)
    assert (together > tolerance * np.abs(found.inner_products)).any(), "no pair of this test cancels"
    assert (found.relative_gaps() <= tolerance * (1 + 1e-9)).all()
    optimum = every_pair(first, second, 20)
    assert (found.upper_bounds >= optimum - float32_rounding(first, second)).all()
    assert (found.inner_products <= optimum + 1e-12).all()


@pytest.mark.parametrize("name", ["scipy", "ortools"])
@pytest.mark.parametrize("window", [None, 6])
def test_other_solvers_agree_and_their_bounds_hold(name: str, window: int | None) -> None:
    first, second = samples(4, 4, 20, 16), samples(5, 3, 20, 16)
    found = matched(WindowedMatching(solver(name), window), first, second)
    optimum = every_pair(first, second, window)
    np.testing.assert_allclose(found.inner_products, optimum, rtol=1e-6, atol=1e-5)
    assert (found.upper_bounds >= optimum - float32_rounding(first, second)).all()


@pytest.mark.parametrize("kind", [*KINDS, "nearly equal"])
@given(
    seed=st.integers(0, 2**32 - 2),
    s=st.integers(1, 24),
    c=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(1, 30)),
    exponent=st.integers(-12, 12),
)
@settings(max_examples=80, deadline=None)
def test_the_bound_of_bfloat16_affinities_is_never_below_the_optimum(
    kind: str, seed: int, s: int, c: int, window: int | None, exponent: int
) -> None:
    first, second = (np.rint(samples(seed + k, 2, s, c, kind) * 512) * np.float32(2.0**exponent) for k in range(2))
    matching = WindowedMatching(AuctionSolver(), window, BFloat16Product())
    found = matched(matching, first, second)
    optimum, largest = every_pair(first, second, window), norm_products(first, second)
    assert found.upper_bounds is not None
    assert (found.upper_bounds >= optimum - 1e-13 * largest).all()
    assert (found.inner_products <= optimum + 1e-13 * largest).all()


@pytest.mark.parametrize("window", [None, 10])
def test_bfloat16_affinities_cost_a_few_thousandths(window: int | None) -> None:
    first, second = samples(0, 6, 40, 64), samples(1, 6, 40, 64)
    found = matched(WindowedMatching(AuctionSolver(), window, BFloat16Product()), first, second)
    optimum = every_pair(first, second, window)
    loss = (optimum - found.inner_products) / optimum
    assert (loss >= -1e-12).all() and loss.max() < 3e-3
    assert loss.max() > 0, "nothing was rounded"
    widths = (found.upper_bounds - found.inner_products) / norm_products(first, second)
    assert (widths >= 2 * 2 * 2.0**-8).all() and (widths < 0.017).all()


@given(seed=st.integers(0, 2**32 - 2), s=st.integers(1, 5), c=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_values_of_bfloat16_affinities_are_exact_values_of_some_permutation(seed: int, s: int, c: int) -> None:
    first, second = samples(seed, 1, s, c), samples(seed + 1, 1, s, c)
    value = matched(WindowedMatching(AuctionSolver(), None, BFloat16Product()), first, second).inner_products[0, 0]
    affinity = first[0].astype(np.float64) @ second[0].astype(np.float64).T
    attainable = np.array([affinity[range(s), list(order)].sum() for order in permutations(range(s))])
    assert np.abs(attainable - value).min() <= 1e-14 * norm_products(first, second)[0, 0]


def test_bfloat16_affinities_are_float32_sums_of_rounded_features() -> None:
    first, second, product = samples(0, 3, 33, 129), samples(1, 1, 33, 129), BFloat16Product()
    rows, columns = product.operand(first), product.operand(second)
    affinities = np.full((3, 33, 33), np.nan, dtype=np.float32)
    product.multiply(rows, columns[0], affinities)
    x, y = (torch.from_numpy(block).to(torch.bfloat16).to(torch.float64).numpy() for block in (first, second[0]))
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_allclose(affinities, x @ y.T, rtol=0, atol=129 * 2.0**-24 * np.abs(x).max() * np.abs(y).max() * 129)
    assert len(np.unique(affinities)) > 0.99 * affinities.size, "results in bfloat16 would be full of ties"


def test_the_process_keeps_its_precision_of_float32_products() -> None:
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        matched(WindowedMatching(AuctionSolver(), None, BFloat16Product()), samples(0, 2, 20, 64), samples(1, 2, 20, 64))
        assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = before


def test_threads_leave_the_process_its_precision_of_float32_products() -> None:
    product = BFloat16Product()
    rows, column = product.operand(samples(0, 30, 40, 64)), product.operand(samples(1, 1, 40, 64))[0]
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        with ThreadPoolExecutor(4) as executor:
            for _ in range(10):
                affinities = [np.empty((30, 40, 40), dtype=np.float32) for _ in range(20)]
                list(executor.map(lambda found: product.multiply(rows, column, found), affinities))
                assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = before


@pytest.mark.parametrize("product", [Float32Product(), BFloat16Product()])
def test_a_read_only_block_is_taken_without_a_warning(product: Float32Product | BFloat16Product) -> None:
    block = samples(0, 3, 9, 20)
    block.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matched(WindowedMatching(AuctionSolver(), None, product), block)


def test_threads_that_match_at_once_find_the_same() -> None:
    first, second = samples(0, 6, 20, 64), samples(1, 5, 20, 64)
    matching = WindowedMatching(AuctionSolver(), 8)
    rows, columns = matching.prepare(first), matching.prepare(second)
    with threadpool_limits(1), ThreadPoolExecutor(4) as executor:
        found = list(executor.map(lambda _: matching.inner_products(rows, columns, same=False), range(16)))
    for one in found:
        np.testing.assert_array_equal(one.inner_products, found[0].inner_products)
        np.testing.assert_array_equal(one.upper_bounds, found[0].upper_bounds)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 0}, "The window is 0; it must be at least 1."),
        ({"window": -3}, "The window is -3; it must be at least 1."),
        ({"k": 0}, "The k is 0; it must be at least 1."),
        ({"solver": "simplex"}, "There is no solver called 'simplex'; known are auction, ortools, scipy, lapjv."),
        ({"solver": "auktion"}, "There is no solver called 'auktion'; did you mean auction? Known are auction,"),
        ({"method": "optimum"}, "There is no matching called 'optimum'; did you mean optimal?"),
        ({"affinity": "float16"}, "There is no affinity type called 'float16'; did you mean"),
        ({"tolerance": 0.0}, "The tolerance is 0; it must be at least 1e-7"),
        ({"tolerance": 9e-8}, "The tolerance is 9e-08; it must be at least 1e-7"),
        ({"tolerance": 1.0}, "The tolerance is 1; it must be at least 1e-7"),
        ({"tolerance": -1e-3}, "and less than 1."),
        ({"tolerance": math.nan}, "The tolerance is nan; it must be at least 1e-7"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=r".") as caught:
        MatchingSettings(**settings)
    assert sentence in str(caught.value)


def test_a_window_of_no_positions_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"The window is 0; it must be at least 1\."):
        WindowedMatching(ScipySolver(), 0)


def test_settings_reach_the_matching() -> None:
    found = alignment("permutation", MatchingSettings("batch_optimal", 7, tolerance=1e-4, affinity="bfloat16"))
    assert isinstance(found, WindowedMatching) and isinstance(found.product, BFloat16Product)
    assert (found.window, found.solver) == (7, AuctionSolver(1e-4))
    optimal = alignment("permutation", MatchingSettings("optimal", 7, solver="scipy"))
    assert isinstance(optimal, WindowedMatching) and isinstance(optimal.product, Float32Product)
    assert (optimal.window, optimal.solver.name) == (None, "scipy")
