"""The vector loops against the same in plain NumPy and Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from semrsm_dist.matching.auction import best_two_plainly
from semrsm_dist.matching.simd import (
    LANES,
    LOWEST,
    PRODUCT_LANES,
    PRODUCT_STEP,
    best_two,
    best_two_of_2,
    best_two_of_4,
    sum_of_products,
)
from semrsm_dist.matching.values import frobenius_norms, matched_values

HIGHEST = 2**31 - 1


@njit
def scan_one(matrix: Any, prices: Any, rows: Any) -> Any:
    """:func:`best_two` of one row."""
    return best_two(matrix, prices, (rows[0],), matrix.shape[1])


@njit
def scan_two(matrix: Any, prices: Any, rows: Any) -> Any:
    """:func:`best_two_of_2` of two rows."""
    return best_two_of_2(matrix, prices, (rows[0], rows[1]), matrix.shape[1])


@njit
def scan_four(matrix: Any, prices: Any, rows: Any) -> Any:
    """:func:`best_two_of_4` of four rows."""
    return best_two_of_4(matrix, prices, (rows[0], rows[1], rows[2], rows[3]), matrix.shape[1])


@njit
def sum_products(first: Any, first_at: int, second: Any, second_at: int, length: int) -> float:
    """:func:`sum_of_products`."""
    return sum_of_products(first, first_at, second, second_at, length)


SCANS = {1: scan_one, 2: scan_two, 4: scan_four}


def check_scan(scan: Callable[..., Any], matrix: np.ndarray, prices: np.ndarray, rows: np.ndarray) -> None:
    """Every row's best, its column and the second best are those of the plain search."""
    found = np.array(scan(matrix, prices, rows)).reshape(len(rows), 3)
    profits = matrix.astype(np.int64) - prices
    for row, (best, column, second) in zip(rows, found, strict=True):
        assert (best, second) == best_two_plainly(matrix[row], prices)
        equal = np.flatnonzero(profits[row] == best)
        assert column == min(equal, key=lambda j: (j % LANES, j))


@pytest.mark.parametrize("n_rows", SCANS)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 5),
    padding=st.integers(0, LANES - 1),
    largest=st.sampled_from([0, 1, 3, 50, 2**28]),
)
@settings(max_examples=150, deadline=None)
def test_best_two_equals_the_plain_search(n_rows: int, seed: int, blocks: int, padding: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    width = blocks * LANES
    matrix = rng.integers(-largest, largest, (7, width), dtype=np.int32, endpoint=True)
    prices = rng.integers(0, 4 * largest, width, dtype=np.int32, endpoint=True)
    matrix[:, width - padding :], prices[width - padding :] = LOWEST, 0
    check_scan(SCANS[n_rows], matrix, prices, rng.choice(7, n_rows, replace=bool(seed % 2)))


@pytest.mark.parametrize("n_rows", SCANS)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_best_two_holds_for_all_of_int32(n_rows: int, seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.choice(np.array([LOWEST, LOWEST + 1, -1, 0, 1, HIGHEST - 1, HIGHEST], dtype=np.int32), (5, blocks * LANES))
    check_scan(SCANS[n_rows], matrix, np.zeros(blocks * LANES, dtype=np.int32), rng.choice(5, n_rows))


@pytest.mark.parametrize("n_rows", SCANS)
@pytest.mark.parametrize("width", [16, 32, 48, 64, 80])
def test_best_two_finds_the_best_and_second_wherever_they_are(n_rows: int, width: int) -> None:
    prices = np.arange(width, dtype=np.int32)
    for best in range(width):
        for second in {(best + step) % width for step in (1, 7, LANES, LANES + 1, width - 1)} - {best}:
            for gain in (0, 5):  # 0: both are as good
                matrix = np.full((4, width), -1000, dtype=np.int32) + prices
                matrix[:, best] += 100 + gain
                matrix[:, second] += 100
                check_scan(SCANS[n_rows], matrix, prices, np.arange(n_rows)[::-1])


def test_rows_of_one_scan_do_not_mix() -> None:
    matrix = np.random.default_rng(0).integers(-9, 9, (4, 32), dtype=np.int32)
    matrix[1], matrix[2] = LOWEST, 3
    matrix[3, 5] = 1000
    check_scan(scan_four, matrix, np.zeros(32, dtype=np.int32), np.array([3, 2, 1, 0]))
    assert scan_four(matrix, np.zeros(32, dtype=np.int32), np.array([3, 1, 2, 3]))[:6] == (1000, 5, 8, LOWEST, 0, LOWEST)


def products_in_lanes(first: np.ndarray, second: np.ndarray) -> float:
    """The sum of products in the one order of additions that :func:`sum_of_products` promises."""
    products = (first.astype(np.float64) * second).reshape(-1, PRODUCT_STEP // PRODUCT_LANES, PRODUCT_LANES)
    totals = np.zeros(products.shape[1:])
    for step in products:
        totals += step
    lanes = (totals[0] + totals[1]) + (totals[2] + totals[3])
    total = float(lanes[0])
    for lane in lanes[1:]:
        total += float(lane)
    return total


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 6), before=st.integers(0, 40), after=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_sum_of_products_adds_in_its_own_order_to_the_bit(seed: int, steps: int, before: int, after: int) -> None:
    rng = np.random.default_rng(seed)
    length = steps * PRODUCT_STEP
    first = (rng.standard_normal(before + length + after) * 10.0 ** rng.integers(-5, 5)).astype(np.float32)
    second = rng.standard_cauchy(after + length + before).astype(np.float32)
    a, b = first[before : before + length], second[after : after + length]
    assert sum_products(first, before, second, after, length) == products_in_lanes(a, b)


def summed_once(row: np.ndarray, column: np.ndarray, permutation: np.ndarray) -> tuple[float, float]:
    """The matched inner product, rounded once, and the sum of the products' magnitudes."""
    products = (row.astype(np.float64) * column[permutation].astype(np.float64)).ravel()
    return math.fsum(products), math.fsum(np.abs(products))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 4),
    s=st.integers(1, 9),
    c=st.integers(1, 100),
    exponent=st.integers(-15, 15),
)
@settings(max_examples=200, deadline=None)
def test_matched_values_equal_the_sum_that_is_rounded_once(seed: int, n: int, s: int, c: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((n, s, c)) * 10.0**exponent).astype(np.float32)
    column = (rng.standard_normal((s, c)) * 10.0 ** rng.integers(-9, 9, (s, 1))).astype(np.float32)
    permutations = np.array([rng.permutation(s) for _ in range(n)])
    values = matched_values(rows, column, permutations)
    assert values.shape == (n,) and values.dtype == np.float64
    for row, permutation, value in zip(rows, permutations, values, strict=True):
        expected, magnitude = summed_once(row, column, permutation)
        assert abs(value - expected) <= s * c * 2.0**-53 * magnitude
        assert value == pytest.approx(
            float(np.einsum("sc,sc->", row, column[permutation], dtype=np.float64)), abs=1e-12 * magnitude
        )


@pytest.mark.parametrize("c", [1, 31, 32, 33, 64, 100])
def test_matched_values_keep_what_cancels_in_float32(c: int) -> None:
    rows = np.full((1, 2, c), 1e4, dtype=np.float32)
    column = np.full((2, c), 1e4, dtype=np.float32)
    rows[0, 1] *= -1
    rows[0, 1, -1] = -1e4 - 2.0**-10  # the one digit that differs is float32's last
    assert matched_values(rows, column, np.array([[0, 1]]))[0] == -1e4 * 2.0**-10


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-5, 1.0, 1e30, 1e37])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 1), (4, 6, 32), (2, 49, 100)])
def test_frobenius_norms_are_those_of_float64(scale: float, shape: tuple[int, int, int]) -> None:
    block = (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)
    expected = [math.sqrt(math.fsum((sample.astype(np.float64) ** 2).ravel())) for sample in block]
    np.testing.assert_allclose(frobenius_norms(block), expected, rtol=1e-14)
    for other in (np.asfortranarray(block), block[:, ::-1][:, ::-1]):  # the same features laid out differently
        np.testing.assert_array_equal(frobenius_norms(other), frobenius_norms(block))


def test_frobenius_norms_of_nothing() -> None:
    np.testing.assert_array_equal(frobenius_norms(np.zeros((2, 3, 40), dtype=np.float32)), [0.0, 0.0])
    assert frobenius_norms(np.zeros((0, 3, 4), dtype=np.float32)).shape == (0,)
