"""The exact median by selection, and the σ rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semrsm_dist.reduction.sigma import exact_median, sigma_squared
from storage_schemas import InvalidInputError

values = arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.one_of(st.floats(0, 1e300, allow_subnormal=True), st.sampled_from([0.0, 1.0, 1.0 + 2**-52, 2.0, 1e-310])),
)


@given(values, st.sampled_from([0, 1, 5, 1000]), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_the_median_equals_numpy_to_the_bit(data: np.ndarray, keep: int, n_blocks: int) -> None:
    positive = data[data > 0]
    if not positive.size:
        with pytest.raises(InvalidInputError, match="All distances"):
            exact_median(lambda: [data])
        return
    assert exact_median(lambda: np.array_split(data, n_blocks), keep) == np.median(positive)


def test_the_median_of_many_values_equals_numpy_to_the_bit(rng: np.random.Generator) -> None:
    data = rng.chisquare(5, size=200_001) * 1e-3
    blocks = np.array_split(data, 13)
    assert exact_median(lambda: blocks, keep=100) == np.median(data)
    assert exact_median(lambda: blocks[:-1], keep=100) == np.median(np.concatenate(blocks[:-1]))


def test_the_rules() -> None:
    squared = np.array([0.0, 1.0, 4.0, 9.0, 16.0])
    assert sigma_squared(lambda: [squared], "median_sq") == np.median([1, 4, 9, 16])
    assert sigma_squared(lambda: [squared], "median") == np.median([1, 2, 3, 4])
    assert sigma_squared(lambda: [squared], 3.0) == 9.0


@pytest.mark.parametrize("rule", [0.0, -2.0, np.nan, np.inf, "tile"])
def test_a_rule_without_one_sigma_is_refused(rule: object) -> None:
    with pytest.raises(InvalidInputError):
        sigma_squared(lambda: [np.ones(3)], rule)
