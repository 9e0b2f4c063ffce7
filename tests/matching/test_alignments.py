"""Invariances and matchings against brute force and against what they promise."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching import Alignment, MatchingSettings, alignment, solver
from semrsm_dist.matching.values import frobenius_norms
from semrsm_dist.tile import compute_tile
from storage_schemas import InvalidInputError

SOLVERS = ("auction", "scipy", "ortools", "lapjv")


def samples(seed: int, n: int, s: int, c: int, scale: float = 1.0) -> np.ndarray:
    """Random samples ``(n, S, C)``."""
    return (np.random.default_rng(seed).standard_normal((n, s, c)) * scale).astype(np.float32)


def inner_products(first: np.ndarray, second: np.ndarray, aligned: Alignment, *, same: bool = False) -> np.ndarray:
    """Matched inner products of two blocks; where there are bounds they hold."""
    matched = compute_tile(first, second, aligned, same=same)
    assert matched.upper_bounds is not None
    assert (matched.inner_products <= matched.upper_bounds).all()
    return matched.inner_products


def brute_force(first: np.ndarray, second: np.ndarray) -> float:
    """The best sum of matched affinities over all permutations."""
    affinity = first.astype(np.float64) @ second.astype(np.float64).T
    positions = range(len(first))
    return max(float(sum(affinity[s, t] for s, t in zip(positions, order, strict=True))) for order in permutations(positions))


@pytest.mark.parametrize("name", SOLVERS)
@given(seed=st.integers(0, 2**32 - 1), s=st.integers(1, 6), c=st.integers(1, 4), exponent=st.integers(-12, 12))
@settings(max_examples=30, deadline=None)
def test_optimal_matching_equals_brute_force(name: str, seed: int, s: int, c: int, exponent: int) -> None:
    first, second = samples(seed, 2, s, c), samples(seed + 1, 3, s, c, 10.0**exponent)
    values = inner_products(first, second, alignment("permutation", MatchingSettings("optimal", solver=name)))
    expected = np.array([[brute_force(x, y) for y in second] for x in first])
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * 10.0**exponent)


def test_optimal_matching_equals_brute_force_at_seven_positions() -> None:
    first, second = samples(0, 1, 7, 3), samples(1, 1, 7, 3)
    for name in SOLVERS:
        value = inner_products(first, second, alignment("permutation", MatchingSettings("optimal", solver=name)))
        assert value[0, 0] == pytest.approx(brute_force(first[0], second[0]), rel=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("scale", [1e-12, 1e-2, 1.0, 1e12])
@pytest.mark.parametrize("kind", ["normal", "rectified", "negative", "ties", "duplicated", "zero", "outlier"])
def test_optimal_matching_equals_scipy_on_float64_affinities(name: str, scale: float, kind: str) -> None:
    first, second = samples(2, 2, 40, 8), samples(3, 2, 40, 8)
    match kind:
        case "rectified":
            first, second = np.maximum(first, 0), np.maximum(second, 0)
        case "negative":
            first, second = np.abs(first), -np.abs(second)
        case "ties":
            first, second = np.rint(first), np.rint(second)
        case "duplicated":
            first[:, ::2], second[:, ::3] = first[:, :1], second[:, :1]
        case "zero":
            first, second = np.zeros_like(first), np.zeros_like(second)
        case "outlier":
            first[0, 0, 0] = 1e4
    first *= np.float32(scale)
    values = inner_products(first, second, alignment("permutation", MatchingSettings("optimal", solver=name)))
    for i, j in np.ndindex(2, 2):
        affinity = first[i].astype(np.float64) @ second[j].astype(np.float64).T
        best = affinity[linear_sum_assignment(affinity, maximize=True)].sum()
        assert values[i, j] == pytest.approx(best, rel=1e-6, abs=1e-6 * np.abs(affinity).max())
        assert values[i, j] <= best + 1e-6 * np.abs(affinity).sum()


@pytest.mark.parametrize("name", SOLVERS)
@given(seed=st.integers(0, 2**32 - 1), s=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_a_solver_returns_a_permutation(name: str, seed: int, s: int) -> None:
    solution = solver(name).solve(np.rint(samples(seed, 3, s, s)))
    np.testing.assert_array_equal(np.sort(solution.permutations), np.tile(np.arange(s), (3, 1)))


@given(seed=st.integers(0, 2**32 - 1), s=st.integers(1, 20), window=st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_batch_optimal_lies_below_optimal_and_equals_it_with_window_at_least_s(seed: int, s: int, window: int) -> None:
    first, second = samples(seed, 2, s, 4), samples(seed + 1, 2, s, 4)
    optimal = inner_products(first, second, alignment("permutation", MatchingSettings("optimal")))
    windowed = inner_products(first, second, alignment("permutation", MatchingSettings("batch_optimal", window)))
    assert (windowed <= optimal + 1e-5).all()
    if window >= s:
        np.testing.assert_array_equal(windowed, optimal)


def test_windows_hold_concept_vectors_of_similar_norm() -> None:
    first, second = samples(4, 1, 10, 3), samples(5, 1, 10, 3)
    order = [np.argsort(np.linalg.norm(x[0].astype(np.float64), axis=1), kind="stable") for x in (first, second)]
    expected = 0.0
    for start in range(0, 10, 4):
        a, b = first[0][order[0][start : start + 4]], second[0][order[1][start : start + 4]]
        affinity = a.astype(np.float64) @ b.astype(np.float64).T
        expected += affinity[linear_sum_assignment(affinity, maximize=True)].sum()
    value = inner_products(first, second, alignment("permutation", MatchingSettings("batch_optimal", window=4)))
    assert value[0, 0] == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), s=st.integers(2, 12), invariance=st.sampled_from(["permutation", "pooled"]))
@settings(max_examples=30, deadline=None)
def test_permuting_positions_changes_nothing(seed: int, s: int, invariance: str) -> None:
    first, second = samples(seed, 2, s, 4), samples(seed + 1, 2, s, 4)
    order = np.random.default_rng(seed).permutation(s)
    aligned = alignment(invariance, MatchingSettings("optimal"))
    np.testing.assert_allclose(
        inner_products(first[:, order], second, aligned), inner_products(first, second, aligned), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("scales", [(1e-23, 1.0), (1e-23, 1e-23), (1e25, 1e25), (1e-30, 1e30)])
@pytest.mark.parametrize("window", [4, 100])
def test_extreme_scales_do_not_change_the_matching(scales: tuple[float, float], window: int) -> None:
    first, second = samples(0, 3, 12, 4), samples(1, 3, 12, 4)
    aligned = alignment("permutation", MatchingSettings("batch_optimal", window))
    scaled = [(x.astype(np.float64) * scale).astype(np.float32) for x, scale in zip((first, second), scales, strict=True)]
    expected = inner_products(first, second, aligned) * scales[0] * scales[1]
    np.testing.assert_allclose(inner_products(*scaled, aligned), expected, rtol=1e-5)


def test_permuting_positions_changes_the_value_without_invariance() -> None:
    first, second = samples(0, 1, 6, 4), samples(1, 1, 6, 4)
    aligned = alignment("none")
    assert inner_products(first[:, ::-1], second, aligned)[0, 0] != pytest.approx(inner_products(first, second, aligned)[0, 0])


def test_none_is_the_inner_product_of_flattened_samples() -> None:
    first, second = samples(0, 4, 50, 300), samples(1, 3, 50, 300)
    expected = first.reshape(4, -1).astype(np.float64) @ second.reshape(3, -1).astype(np.float64).T
    np.testing.assert_allclose(inner_products(first, second, alignment("none")), expected, rtol=1e-12, atol=1e-9)


def test_pooled_is_the_inner_product_of_means() -> None:
    first, second = samples(0, 4, 5, 3), samples(1, 3, 5, 3)
    expected = first.astype(np.float64).mean(1) @ second.astype(np.float64).mean(1).T
    np.testing.assert_allclose(inner_products(first, second, alignment("pooled")), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (4, 3), (5, 5), (1, 7)])
def test_translation_is_the_best_circular_shift(shape: tuple[int, int]) -> None:
    height, width = shape
    first, second = samples(0, 3, height * width, 4), samples(1, 2, height * width, 4)
    values = inner_products(first, second, alignment("translation", spatial_shape=shape))
    for i, j in np.ndindex(3, 2):
        x, y = (z.reshape(height, width, 4).astype(np.float64) for z in (first[i], second[j]))
        shifts = [(np.roll(x, (a, b), (0, 1)) * y).sum() for a in range(height) for b in range(width)]
        assert values[i, j] == pytest.approx(max(shifts), rel=1e-9, abs=1e-9)


def test_a_shifted_map_is_the_same_under_translation() -> None:
    x = samples(0, 1, 12, 4)
    moved = np.roll(x.reshape(1, 3, 4, 4), (1, 2), axis=(1, 2)).reshape(1, 12, 4)
    value = inner_products(x, moved, alignment("translation", spatial_shape=(3, 4)))
    assert value[0, 0] == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-9)


@pytest.mark.parametrize("invariance", ["none", "permutation", "translation", "pooled"])
def test_a_block_with_itself_is_symmetric_and_its_diagonal_the_squared_norm(invariance: str) -> None:
    block = samples(0, 5, 6, 4)
    aligned = alignment(invariance, spatial_shape=(2, 3))
    values = inner_products(block, block, aligned, same=True)
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_allclose(values, inner_products(block, block, aligned), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.diag(values), aligned.norms(block) ** 2, rtol=1e-12)


def test_the_order_of_invariances_holds_for_optimal_matching() -> None:
    first, second = samples(0, 4, 6, 4), samples(1, 4, 6, 4)
    none, translation, permutation = (
        inner_products(first, second, alignment(name, MatchingSettings("optimal"), (2, 3)))
        for name in ("none", "translation", "permutation")
    )
    assert (none <= translation + 1e-6).all()
    assert (translation <= permutation + 1e-5).all()
    bound = np.outer(frobenius_norms(first), frobenius_norms(second))
    assert (permutation <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: alignment("permutations"), "no invariance called 'permutations'; did you mean permutation?"),
        (lambda: MatchingSettings(method="optmal"), "did you mean optimal?"),
        (lambda: MatchingSettings(solver="simplex"), "known are auction, ortools, scipy, lapjv"),
        (lambda: MatchingSettings(window=0), "must be at least 1"),
        (lambda: alignment("translation"), "needs positions that form an H×W map"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(call: object, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=r".") as caught:
        call()
    assert sentence in str(caught.value)
