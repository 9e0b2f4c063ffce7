"""CKA against the well-known check, a plain implementation, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist import RSM, cka
from semrsm_dist.reduction.cka import HsicAccumulator, minibatch_cka
from storage_schemas import InvalidInputError


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray]:
    """The representations of the well-known check."""
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return x, random.randn(100, 10) + x


def squared_distances(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def plain_hsic(k: np.ndarray, l: np.ndarray, estimator: str) -> float:
    """HSIC as its definition reads."""
    n = len(k)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return float(np.trace(k @ h @ l @ h)) / (n - 1) ** 2
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float(np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def test_the_linear_kernel_gives_the_known_values(known: tuple[np.ndarray, np.ndarray]) -> None:
    k, l = (x @ x.T for x in known)
    assert cka(k, l, "biased") == pytest.approx(0.55761, abs=5e-6)
    assert cka(k, l, "unbiased") == pytest.approx(0.51346, abs=5e-6)


@pytest.mark.parametrize(("with_zeros", "expected"), [(True, 0.65483), (False, 0.65401)])
def test_the_rbf_kernel_gives_the_known_values(known: tuple[np.ndarray, np.ndarray], with_zeros: bool, expected: float) -> None:
    kernels = []
    for x in known:
        d = squared_distances(x)
        sigma_squared = 0.25 * np.median(d if with_zeros else d[d > 0])
        kernels.append(np.exp(-d / (2 * sigma_squared)))
    assert cka(*kernels, "biased") == pytest.approx(expected, abs=5e-6)


def test_the_median_of_our_rule_leaves_the_diagonal_out(known: tuple[np.ndarray, np.ndarray]) -> None:
    kernels = []
    for x in known:
        norms = np.linalg.norm(x, axis=1)
        rsm = RSM(x @ x.T, norms, norms, symmetric=True)
        sigma = 0.5 * np.sqrt(np.median(rsm.squared_distance()[~np.eye(100, dtype=bool)]))
        kernels.append(rsm.rbf(sigma))
        expected = np.exp(-rsm.squared_distance() / (2 * np.median(rsm.squared_distance()[~np.eye(100, dtype=bool)])))
        np.testing.assert_allclose(rsm.rbf("median_sq"), expected, rtol=1e-12)
    assert cka(*kernels, "biased") == pytest.approx(0.65401, abs=5e-6)


@given(st.integers(0, 2**32 - 1), st.integers(4, 12), st.sampled_from(["biased", "unbiased"]))
@settings(max_examples=50)
def test_cka_equals_its_definition(seed: int, n: int, estimator: str) -> None:
    rng = np.random.default_rng(seed)
    k, l = (x @ x.T for x in rng.standard_normal((2, n, 3)))
    own = [plain_hsic(kernel, kernel, estimator) for kernel in (k, l)]
    if min(own) > 1e-6:
        expected = plain_hsic(k, l, estimator) / np.sqrt(own[0] * own[1])
        assert cka(k, l, estimator) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_cka_of_a_kernel_with_itself_is_one_and_scale_does_not_matter(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 5))
    for estimator in ("biased", "unbiased"):
        assert cka(x @ x.T, 1e-9 * x @ x.T, estimator) == pytest.approx(1)


def test_tiles_add_up_to_the_whole(rng: np.random.Generator) -> None:
    k, l = (x @ x.T for x in rng.standard_normal((2, 11, 4)))
    for estimator in ("biased", "unbiased"):
        accumulator = HsicAccumulator(11, estimator)
        parts = [slice(0, 4), slice(4, 8), slice(8, 11)]
        for i, rows in enumerate(parts):
            for columns in parts[i:]:
                accumulator.add(rows, columns, k[rows, columns], l[rows, columns])
        assert accumulator.result().ratio() == pytest.approx(cka(k, l, estimator), rel=1e-12)


def test_minibatch_terms_are_averaged_before_the_ratio(rng: np.random.Generator) -> None:
    batches = [tuple(x @ x.T for x in rng.standard_normal((2, n, 4))) for n in (6, 8)]
    terms = [[plain_hsic(a, b, "unbiased") for a, b in ((k, l), (k, k), (l, l))] for k, l in batches]
    kl, kk, ll = np.mean(terms, axis=0)
    assert minibatch_cka(batches, "unbiased") == pytest.approx(kl / np.sqrt(kk * ll))


@pytest.mark.parametrize(
    ("k", "l", "sentence"),
    [
        (np.eye(3), np.eye(3), "at least 4 samples"),
        (np.ones((5, 5)), np.diag(np.arange(5.0)), "constant"),
        (np.ones((5, 4)), np.eye(5), "square"),
        (np.eye(5), np.eye(6), "same samples; they have 5 and 6"),
        (np.full((5, 5), np.nan), np.eye(5), "NaN"),
    ],
)
def test_kernels_without_a_cka_are_refused(k: np.ndarray, l: np.ndarray, sentence: str) -> None:
    for estimator in ("biased", "unbiased"):
        with pytest.raises(InvalidInputError, match=sentence):
            cka(k, l, estimator)
