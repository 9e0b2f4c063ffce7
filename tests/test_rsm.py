"""The Python interface."""

from __future__ import annotations

import numpy as np
import pytest

from semrsm_dist import RSM, cka, semantic_rsm
from storage_schemas import InvalidInputError, NonFiniteError


def test_moved_things_are_the_same_only_under_permutation(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 16, 8))
    moved = x[:, rng.permutation(16)]
    assert np.allclose(np.diag(semantic_rsm(x, moved).cosine()), 1)
    assert (np.diag(semantic_rsm(x, moved, invariance="none").cosine()) < 0.9).all()


def test_maps_are_positions_in_row_major_order(rng: np.random.Generator) -> None:
    maps = rng.standard_normal((4, 5, 2, 3))
    flat = maps.reshape(4, 5, 6).transpose(0, 2, 1)
    for invariance in ("none", "permutation", "pooled"):
        one, other = (semantic_rsm(x, invariance=invariance).inner_product for x in (maps, flat))
        np.testing.assert_array_equal(one, other)


def test_more_samples_than_a_tile_are_tiled(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((130, 2, 3)), rng.standard_normal((205, 2, 3))
    rsm = semantic_rsm(x, y, matching="optimal")
    xf, yf = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    straight = np.einsum("isc,jsc->ij", xf, yf)
    crossed = np.einsum("isc,jsc->ij", xf, yf[:, ::-1])
    np.testing.assert_allclose(rsm.inner_product, np.maximum(straight, crossed), rtol=1e-6, atol=1e-6)
    symmetric = semantic_rsm(x)
    np.testing.assert_array_equal(symmetric.inner_product, symmetric.inner_product.T)
    np.testing.assert_allclose(symmetric.inner_product, semantic_rsm(x, x).inner_product, rtol=1e-6, atol=1e-6)


def test_several_workers_give_the_same_bits(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((110, 3, 2, 3)), rng.standard_normal((7, 3, 2, 3))
    for second in (None, y):
        one, several = (semantic_rsm(x, second, invariance="translation", centring="position", workers=n) for n in (1, 2))
        np.testing.assert_array_equal(one.inner_product, several.inner_product)
        np.testing.assert_array_equal(one.row_norms, several.row_norms)
        np.testing.assert_array_equal(one.column_norms, several.column_norms)


def test_the_rbf_kernel_takes_rules_and_numbers(rng: np.random.Generator) -> None:
    rsm = semantic_rsm(rng.standard_normal((120, 2, 3)), invariance="none")
    distances = rsm.squared_distance()
    positive = distances[distances > 0]
    np.testing.assert_allclose(rsm.rbf(), np.exp(-distances / (2 * np.median(positive))), rtol=1e-12)
    np.testing.assert_allclose(rsm.rbf("median"), np.exp(-distances / (2 * np.median(np.sqrt(positive)))), rtol=1e-12)
    np.testing.assert_allclose(rsm.rbf(3.0), np.exp(-distances / 18), rtol=1e-12)
    corner = distances[100:, 100:]
    expected = np.exp(-corner / (2 * np.median(corner[corner > 0])))
    np.testing.assert_allclose(rsm.rbf("tile")[100:, 100:], expected, rtol=1e-12)


def test_cka_takes_rsms(rng: np.random.Generator) -> None:
    one, other = (semantic_rsm(rng.standard_normal((9, 4, 3))) for _ in range(2))
    assert isinstance(one, RSM)
    assert cka(one, other) == cka(one.linear(), other.linear())
    assert cka(one, one, "biased") == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": np.zeros((2, 3))}, InvalidInputError, "expected numbers, \\(N, S, C\\) or \\(N, C, H, W\\)"),
        ({"x": np.zeros((0, 3, 2))}, InvalidInputError, "shape \\(0, 3, 2\\)"),
        ({"x": np.full((2, 3, 2), np.nan)}, NonFiniteError, "x holds NaN"),
        ({"x": np.ones((2, 3, 2)), "y": np.ones((2, 3, 3))}, InvalidInputError, "3 × 2 and y has 3 × 3"),
        ({"x": np.ones((2, 1, 2, 3)), "y": np.ones((2, 1, 3, 2))}, InvalidInputError, "same shape"),
        ({"x": np.ones((2, 3, 2)), "invariance": "rotation"}, InvalidInputError, "no invariance called 'rotation'"),
        ({"x": np.ones((2, 3, 2)), "invariance": "translation"}, InvalidInputError, "import them as \\(N, C, H, W\\)"),
        ({"x": np.ones((2, 3, 2)), "centring": "sample"}, InvalidInputError, "no centring called 'sample'"),
        ({"x": np.ones((2, 3, 2)), "workers": 0}, InvalidInputError, "workers is 0"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        semantic_rsm(**arguments)
    assert "\n" not in str(caught.value)
