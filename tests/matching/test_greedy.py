"""Greedy matching against its definition, written as plain loops.

Features are small integers where results are compared: their float32 affinities are exact, ties are real ties, and the values
have to be equal, not close.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching import MatchingSettings, alignment, greedy, solver
from semrsm_dist.matching.greedy import GreedyMatching
from semrsm_dist.tile import compute_tile
from storage_schemas import InvalidInputError

ROW = [[0, 1], [3, 0], [2, 2]]
COLUMN = [[1, 0], [4, 4], [3, -3]]


def integers(seed: int, n: int, s: int, largest: int, kind: str = "all different") -> np.ndarray:
    """Random samples ``(n, S, 4)`` of integers up to ``largest``."""
    features = np.random.default_rng(seed).integers(-largest, largest + 1, (n, s, 4)).astype(np.float32)
    match kind:
        case "duplicated":
            features[:, ::2] = features[:, :1]
        case "some zero":
            features[:, ::3] = 0
        case "negative":
            features = -np.abs(features)
    return features


def by_norm(sample: np.ndarray) -> list[int]:
    """Positions by descending norm; ``sorted`` is stable."""
    return sorted(range(len(sample)), key=lambda s: -float((sample[s].astype(np.float64) ** 2).sum()))


def greedy_value(row: np.ndarray, column: np.ndarray, k: int = 0) -> float:
    """The definition: ``k`` positions of largest norm optimally, each of the others its best free one, the first of several."""
    affinity = row.astype(np.float64) @ column.astype(np.float64).T
    waiting, free = by_norm(row), by_norm(column)
    top = affinity[np.ix_(waiting[:k], free[:k])]
    value = top[linear_sum_assignment(top, maximize=True)].sum()
    waiting, free = waiting[k:], free[k:]
    for s in waiting:
        best = max(free, key=lambda t: affinity[s, t])  # max returns the first of several
        value += affinity[s, best]
        free.remove(best)
    return float(value)


def values(first: object, second: object, k: int | None = None, *, same: bool = False) -> np.ndarray:
    """What the library computes, with SciPy's solver for the top."""
    blocks = (np.asarray(block, dtype=np.float32) for block in (first, second))
    matching = GreedyMatching() if k is None else GreedyMatching(k, solver("scipy"))
    return compute_tile(*blocks, matching, same=same).inner_products


# Norms² of the rows are 1, 9, 8: they choose in the order 1, 2, 0. Those of the columns are 1, 32, 18. The affinities are
#            column 0  1   2
#    row 1          3  12  9   takes column 1, at 12
#    row 2          2  16  0   takes column 0, at 2, since column 1 is taken
#    row 0          0  4  -3   is left with column 2, at -3


def test_each_position_takes_its_best_free_one_those_of_large_norm_first() -> None:
    assert values([ROW], [COLUMN]) == 12 + 2 - 3


def test_the_other_order_of_the_samples_can_give_another_value() -> None:
    # Column 1 takes row 2, at 16; column 2 takes row 1, at 9; column 0 is left with row 0, at 0.
    assert values([COLUMN], [ROW]) == 16 + 9 + 0


def test_topk_matches_the_concept_vectors_of_largest_norm_optimally() -> None:
    # Rows 1 and 2 with columns 1 and 2: 9 + 16 is more than 12 + 0. Row 0 is left with column 0.
    assert values([ROW], [COLUMN], k=2) == 9 + 16 + 0


def test_topk_of_one_matches_the_two_concept_vectors_of_largest_norm() -> None:
    assert values([ROW], [COLUMN], k=1) == 12 + 2 - 3


def test_of_equal_affinities_the_column_of_larger_norm_is_taken() -> None:
    # Row 0 has 2 with both columns. It takes (1, 1), of norm² 2, and leaves (1, 0), with which row 1 has 1.
    assert values([[[2, 0], [1, 1]]], [[[1, 0], [1, 1]]]) == 2 + 1


@pytest.mark.parametrize(("column", "expected"), [([[1, -1], [1, 1]], 2 + 2), ([[1, 1], [1, -1]], 2 + 0)])
def test_of_equal_affinities_and_norms_the_column_stored_first_is_taken(column: list[list[int]], expected: int) -> None:
    assert values([[[2, 0], [1, 1]]], [column]) == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    s=st.integers(1, 24),
    largest=st.sampled_from([1, 3, 500]),
    kinds=st.tuples(*[st.sampled_from(["all different", "duplicated", "some zero", "negative"])] * 2),
    strip=st.integers(1, 25),
    k=st.integers(0, 24),
)
@settings(max_examples=300, deadline=None)
def test_both_methods_equal_their_definition_in_strips_of_any_size(
    seed: int, s: int, largest: int, kinds: tuple[str, str], strip: int, k: int
) -> None:
    first, second = integers(seed, 2, s, largest, kinds[0]), integers(seed + 1, 3, s, largest, kinds[1])
    k = min(k, s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "STRIP", strip)
        found = values(first, second, k or None)
    np.testing.assert_array_equal(found, [[greedy_value(x, y, k) for y in second] for x in first])


@pytest.mark.parametrize("k", [None, 300])
def test_several_strips_equal_the_definition(k: int | None) -> None:
    first, second = integers(0, 1, 2 * greedy.STRIP + 50, 3), integers(1, 1, 2 * greedy.STRIP + 50, 3)
    assert values(first, second, k) == greedy_value(first[0], second[0], k or 0)


@given(seed=st.integers(0, 2**32 - 1), s=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_greedy_lies_below_optimal_and_topk_equals_it_with_k_of_all_positions(seed: int, s: int) -> None:
    first, second = integers(seed, 2, s, 500), integers(seed + 1, 2, s, 500)
    optimal = compute_tile(first, second, alignment("permutation", MatchingSettings("optimal", solver="scipy"))).inner_products
    assert (values(first, second) <= optimal).all()
    np.testing.assert_array_equal(values(first, second, k=s), optimal)


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("kind", ["all different", "duplicated", "some zero"])
def test_a_block_with_itself_is_symmetric_and_its_diagonal_the_definition(kind: str, k: int | None) -> None:
    block = integers(0, 5, 12, 3, kind)
    symmetric = values(block, block, k, same=True)
    upper = np.triu_indices(5)
    np.testing.assert_array_equal(symmetric, symmetric.T)
    np.testing.assert_array_equal(symmetric[upper], values(block, block, k)[upper])
    np.testing.assert_array_equal(np.diag(symmetric), [greedy_value(x, x, k or 0) for x in block])
    np.testing.assert_array_equal(np.diag(symmetric), (block.astype(np.float64) ** 2).sum(axis=(1, 2)))


def test_a_sample_and_itself_have_its_squared_norm_where_float32_cannot_tell_its_concept_vectors_apart() -> None:
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((1, 1, 512)) + 1e-4 * rng.standard_normal((1, 100, 512))).astype(np.float32)
    np.testing.assert_allclose(values(block, block, same=True), GreedyMatching().norms(block)[:, None] ** 2, rtol=1e-12)
    assert values(block, block) < values(block, block, same=True) * (1 - 1e-10)  # else this block tests nothing


@pytest.mark.parametrize("scales", [(1e-23, 1.0), (1e-23, 1e-23), (1e25, 1e25), (1e-30, 1e30)])
def test_extreme_scales_do_not_change_the_matching(scales: tuple[float, float]) -> None:
    first, second = integers(0, 3, 12, 50), integers(1, 3, 12, 50)
    scaled = [(x.astype(np.float64) * scale).astype(np.float32) for x, scale in zip((first, second), scales, strict=True)]
    np.testing.assert_allclose(values(*scaled), values(first, second) * scales[0] * scales[1], rtol=1e-5)


def test_settings_make_both_methods_and_neither_certifies_anything() -> None:
    first, second = integers(0, 2, 10, 500), integers(1, 2, 10, 500)
    for chosen, k in ((MatchingSettings("greedy"), None), (MatchingSettings("topk_greedy", k=4, solver="ortools"), 4)):
        matched = compute_tile(first, second, alignment("permutation", chosen))
        np.testing.assert_array_equal(matched.inner_products, values(first, second, k))
        assert matched.upper_bounds is None


def test_norms_bound_the_values() -> None:
    first, second = integers(0, 4, 9, 3), integers(1, 4, 9, 3)
    matching = GreedyMatching()
    assert (np.abs(values(first, second)) <= np.outer(matching.norms(first), matching.norms(second)) * (1 + 1e-12)).all()


def test_k_above_the_number_of_positions_is_refused_with_a_sentence() -> None:
    with pytest.raises(InvalidInputError, match="largest norm optimally, but the samples have 49; set k to at most 49"):
        values(np.zeros((1, 49, 4)), np.zeros((1, 49, 4)), k=50)


@pytest.mark.parametrize(
    ("k", "name", "sentence"), [(0, "scipy", "it must be at least 1"), (3, None, "Only one of"), (None, "scipy", "Only one of")]
)
def test_a_k_below_1_or_half_of_the_settings_is_refused(k: int | None, name: str | None, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        GreedyMatching(k, name and solver(name))


@pytest.mark.parametrize(("k", "n", "s", "c"), [(None, 3, 1000, 8), (None, 20, 300, 200), (700, 2, 700, 16)])
def test_working_bytes_are_what_it_allocates(k: int | None, n: int, s: int, c: int) -> None:
    first, second = integers(0, n, s, 500).repeat(c // 4, axis=2), integers(1, n, s, 500).repeat(c // 4, axis=2)
    matching = GreedyMatching() if k is None else GreedyMatching(k, solver("scipy"))
    compute_tile(first[:1], second[:1], matching)  # compiles
    tracemalloc.start()
    compute_tile(first, second, matching)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 * matching.working_bytes(n, s, c) < peak <= matching.working_bytes(n, s, c)
