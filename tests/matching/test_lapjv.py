"""The optional solver lapjv against SciPy."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from semrsm_dist.matching import MatchingSettings, alignment, solver
from semrsm_dist.tile import compute_tile
from storage_schemas import InvalidInputError


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e7, 1e30])  # the package takes 10⁶ for infinity
@pytest.mark.parametrize("kind", ["normal", "positive", "negative", "ties", "duplicated", "zero", "outlier"])
@pytest.mark.parametrize("s", [1, 2, 7, 40])
def test_the_value_equals_that_of_scipy(s: int, kind: str, scale: float) -> None:
    affinities = np.random.default_rng(s).standard_normal((20, s, s)).astype(np.float32)
    match kind:
        case "positive":
            affinities = np.abs(affinities)
        case "negative":
            affinities = -np.abs(affinities)
        case "ties":
            affinities = np.rint(affinities)
        case "duplicated":
            affinities[:, ::2] = affinities[:, :1]
        case "zero":
            affinities[:] = 0
        case "outlier":
            affinities[:, 0, 0] = 1e6
    affinities *= np.float32(scale)
    solution = solver("lapjv").solve(affinities)
    assert (solution.gaps == 0).all()
    for affinity, permutation in zip(affinities.astype(np.float64), solution.permutations, strict=True):
        assert sorted(permutation) == list(range(s))
        best = affinity[linear_sum_assignment(affinity, maximize=True)].sum()
        assert affinity[np.arange(s), permutation].sum() == pytest.approx(best, rel=1e-12, abs=1e-12 * np.abs(affinity).max())


def test_optimal_matching_with_it_equals_that_with_scipy() -> None:
    first, second = (np.random.default_rng(seed).standard_normal((3, 20, 4)).astype(np.float32) for seed in range(2))
    tiles = [
        compute_tile(first, second, alignment("permutation", MatchingSettings("optimal", solver=name)))
        for name in ("lapjv", "scipy")
    ]
    np.testing.assert_allclose(tiles[0].inner_products, tiles[1].inner_products, rtol=1e-12)


def test_bytes_per_affinity_are_what_it_allocates() -> None:
    affinities = np.random.default_rng(0).standard_normal((1, 500, 500)).astype(np.float32)
    tracemalloc.start()
    solver("lapjv").solve(affinities)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + affinities.nbytes == pytest.approx(solver("lapjv").bytes_per_affinity * affinities.size, rel=0.1)


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lap", None)  # importing it now raises ImportError
    monkeypatch.delitem(sys.modules, "semrsm_dist.matching.lapjv_solver", raising=False)
    with pytest.raises(InvalidInputError, match=r"is not installed: pip install 'semrsm-dist\[lapjv\]'"):
        solver("lapjv")
