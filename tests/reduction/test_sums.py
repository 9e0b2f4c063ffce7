"""Compensated sums against exactly rounded ones."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.reduction.sums import CompensatedSum

numbers = st.lists(st.floats(-1e100, 1e100, allow_subnormal=False), min_size=1, max_size=60)


@given(numbers)
def test_the_error_is_that_of_one_rounding_but_for_cancellation(terms: list[float]) -> None:
    total = CompensatedSum(())
    for term in terms:
        total.add(term)
    error = abs(float(total.value()) - math.fsum(terms))
    n, unit = len(terms), 2.0**-53
    bound = unit * abs(math.fsum(terms)) + (n * unit) ** 2 * math.fsum(map(abs, terms))  # Ogita et al., proposition 4.5
    assert error <= 2 * bound


def test_what_a_plain_sum_loses_is_kept(rng: np.random.Generator) -> None:
    terms = np.concatenate([[1e16], rng.random(10_000), [-1e16]])
    total, plain = CompensatedSum(()), 0.0
    for term in terms:
        total.add(term)
        plain += term
    exact = math.fsum(terms)
    assert abs(float(total.value()) - exact) < 1e-9 * exact
    assert abs(plain - exact) > 1e-3 * exact


def test_parts_of_an_array_have_sums_of_their_own() -> None:
    total = CompensatedSum((2, 3))
    total.add(np.ones((2, 3)))
    total.add([5, 7, 9], slice(1, 2))
    np.testing.assert_array_equal(total.value(), [[1, 1, 1], [6, 8, 10]])
