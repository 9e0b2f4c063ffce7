"""Kernels from inner products and norms against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist import kernels


@given(st.integers(0, 2**32 - 1))
def test_kernels_equal_their_definitions_on_vectors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((4, 6)), rng.standard_normal((3, 6))
    inner, row_norms, column_norms = x @ y.T, np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    distances = ((x[:, None] - y[None]) ** 2).sum(-1)
    np.testing.assert_allclose(kernels.cosine(inner, row_norms, column_norms), inner / np.outer(row_norms, column_norms))
    np.testing.assert_allclose(kernels.squared_distance(inner, row_norms, column_norms), distances, atol=1e-12)
    np.testing.assert_allclose(kernels.rbf(distances, 2.5), np.exp(-distances / 5))
    assert kernels.linear(inner) is inner


def test_a_sample_is_at_distance_zero_from_itself() -> None:
    norms = np.array([3.0, 1e-9])
    inner = np.outer(norms, norms) * (1 - 1e-15)
    assert kernels.squared_distance(inner, norms, norms)[0, 0] == 0
    assert kernels.squared_distance(inner * 1.5, norms, norms)[0, 0] == 0


def test_the_cosine_with_a_zero_vector_is_zero() -> None:
    assert kernels.cosine(np.zeros((1, 1)), np.zeros(1), np.ones(1))[0, 0] == 0


@pytest.mark.parametrize("sigma_squared", [0.0, -1.0, np.nan])
def test_an_rbf_without_a_positive_width_is_refused(sigma_squared: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        kernels.rbf(np.ones((1, 1)), sigma_squared)
