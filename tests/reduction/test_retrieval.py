"""Retrieval figures on cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.reduction.retrieval import TopK, bootstrap_interval, count_matrix, f1_scores, iou_scores, mean_at_k
from storage_schemas import InvalidInputError


def test_f1_and_iou_by_hand() -> None:
    query = np.array([2, 1, 0, 0])
    retrieved = np.array([1, 0, 3, 0])
    # TP = 1, FN = 1 + 1, FP = 3
    assert f1_scores(query, retrieved) == pytest.approx(2 / (2 + 3 + 2))
    assert iou_scores(query, retrieved) == pytest.approx(1 / 3)


def test_nothing_in_both_images_is_full_agreement() -> None:
    empty, full = np.zeros(3, dtype=int), np.array([1, 0, 0])
    assert f1_scores(empty, empty) == iou_scores(empty, empty) == 1
    assert f1_scores(empty, full) == iou_scores(full, empty) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_top_k_over_tiles_equals_a_stable_sort(seed: int, k: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, size=(7, 9)).astype(float)  # many ties
    allowed = rng.random(values.shape) < 0.8
    top = TopK(7, k)
    for row in range(0, 7, size):
        for column in rng.permutation(np.arange(0, 9, size)):
            tile = slice(row, min(row + size, 7)), slice(int(column), min(int(column) + size, 9))
            top.add(*tile, values[tile], allowed[tile])
    for row, found in enumerate(top.result().indices):
        order = [j for j in np.argsort(-values[row], kind="stable") if allowed[row, j]][:k]
        assert [j for j in found if j >= 0] == order
        assert len(found) == k


def test_the_mean_leaves_out_ranks_that_are_not_there() -> None:
    scores, indices = np.array([[1.0, 0.5, 9.0]]), np.array([[4, 2, -1]])
    assert mean_at_k(scores, indices, 3) == pytest.approx([0.75])
    with pytest.raises(InvalidInputError, match="Query 0 has no database sample"):
        mean_at_k(scores, np.full((1, 3), -1), 3)


def test_the_bootstrap_interval_is_that_of_the_mean(rng: np.random.Generator) -> None:
    differences = rng.normal(0.3, 1.0, size=400)
    low, high = bootstrap_interval(differences)
    error = differences.std() / 20
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.01)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.01)
    assert bootstrap_interval(differences) == (low, high)
    assert bootstrap_interval(np.zeros(5)) == (0, 0)


def test_counts_are_summed_by_sample_and_class() -> None:
    counts = count_matrix(["b", "a"], [("a", 7, 2), ("b", 5, 1), ("a", 7, 1), ("c", 5, 9)], {5: 0, 7: 1})
    assert counts.tolist() == [[1, 0], [0, 3]]
