"""The audit of a computed store: right numbers pass, whatever computed them; a wrong one is found where it is."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semrsm_dist.grid import MinibatchGrid, RectangularGrid, SymmetricGrid, TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.runtime.audit import Check, allowed_shortfall, audit_store, exact_inner_product, random_pairs
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, DamagedChunkError, RsmStore, StoreNotFoundError

EVERY = ("none", "permutation", "translation", "pooled")
Make = Callable[..., ActivationStore]
TILE = Unit(TileKey(0, 1), "permutation")


def computed(out: Path, rows: ActivationStore, columns: ActivationStore | None, **matching: Any) -> RsmStore:
    """A finished store with tiles of 5."""
    settings = RsmSettings(EVERY, "position", MatchingSettings(**matching), tile_size=5)
    job = create_rsm(str(rows.location), columns and str(columns.location), str(out), settings)
    assert not run_rsm(job, EVERY, RunSettings(executor="serial")).set_aside
    return RsmStore.open(str(out), writable=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "matching",
    [
        {"method": "optimal"},
        {"method": "batch_optimal", "window": 4},
        {"method": "optimal", "tolerance": 1e-3},
        {"method": "optimal", "solver": "scipy"},
        {"method": "optimal", "solver": "ortools"},
        {"method": "batch_optimal", "window": 3, "affinity": "bfloat16"},
        {"method": "greedy"},
        {"method": "topk_greedy", "k": 3},
    ],
    ids=lambda matching: " ".join(str(value) for value in matching.values()),
)
def test_what_is_right_agrees(make_activations: Make, tmp_path: Path, matching: dict[str, Any], symmetric: bool) -> None:
    shape: dict[str, Any] = {"spatial_shape": (3, 4), "n_channels": 16}
    rows = make_activations("q", n_samples=13, **shape)
    store = computed(
        tmp_path / "r.zarr", rows, None if symmetric else make_activations("d", n_samples=11, seed=5, **shape), **matching
    )
    audit = audit_store(store, EVERY, n_pairs=60)
    assert audit.bad == {}
    assert len(audit.checks) == 60 * len(EVERY) * 3
    assert audit.n_units == len(EVERY) * ((6 + 3) if symmetric else (3 * 3 + 3 + 3))
    deviations = audit.largest_deviations()
    assert all(deviations[name] < 1e-14 for name in ("none", "pooled"))
    assert deviations["translation"] < 1e-13
    assert deviations["permutation"] < (1e-2 if "affinity" in matching else 1e-3 if "tolerance" in matching else 1e-6)


@pytest.mark.parametrize("invariance", EVERY)
@pytest.mark.parametrize("factor", [1 + 1e-5, 1 - 1e-5])
def test_a_wrong_tile_is_found_whichever_way_it_is_wrong(
    make_activations: Make, tmp_path: Path, invariance: str, factor: float
) -> None:
    store = computed(tmp_path / "r.zarr", make_activations(n_samples=9), None, method="optimal")
    right = store.read_tile(invariance, 0, 1)
    store.write_tile(invariance, 0, 1, right * factor)  # whole and finite, so that no checksum tells
    assert audit_store(store, EVERY, n_pairs=0).bad == {}
    bad = audit_store(store, EVERY, n_pairs=40).bad
    assert set(bad) == {Unit(TileKey(0, 1), invariance)}
    assert " is stored and " in next(iter(bad.values()))


def test_wrong_norms_are_found_on_both_sides(make_activations: Make, tmp_path: Path) -> None:
    store = computed(tmp_path / "r.zarr", make_activations("q", n_samples=7), make_activations("d", n_samples=13, seed=2))
    for side, block in (("row", 1), ("column", 2)):
        norms = store.read_norm_block("none", side, block)
        store.write_norms("none", side, block, norms * (1 + 1e-6))
    bad = audit_store(store, EVERY, n_pairs=60).bad
    assert set(bad) == {Unit(TileKey(1, 0), "none", "row_norms"), Unit(TileKey(2, 0), "none", "column_norms")}


def test_what_cannot_be_read_is_told_once_and_the_rest_is_audited(make_activations: Make, tmp_path: Path) -> None:
    store = computed(tmp_path / "r.zarr", make_activations(n_samples=9), None)
    tile, norms = tmp_path / "r.zarr/inner_product/none/c/0/1", tmp_path / "r.zarr/row_norms/pooled/c/0"
    tile.unlink()
    norms.write_bytes(bytes(reversed(norms.read_bytes())))
    audit = audit_store(store, EVERY, n_pairs=40)
    assert set(audit.bad) == {Unit(TileKey(0, 1), "none"), Unit(TileKey(0, 0), "pooled", "row_norms")}
    assert 0 < len(audit.checks) < 40 * len(EVERY) * 3


def test_activations_are_needed_for_pairs_only(make_activations: Make, tmp_path: Path) -> None:
    activations = make_activations(n_samples=9)
    store = computed(tmp_path / "r.zarr", activations, None)
    for chunk in Path(activations.location.url, "features/c").rglob("*/0/0"):
        chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(DamagedChunkError, match="features is damaged"):
        audit_store(store, EVERY)
    shutil.rmtree(activations.location.url)
    with pytest.raises(StoreNotFoundError):
        audit_store(store, EVERY)
    assert audit_store(store, EVERY, n_pairs=0).bad == {}


def test_samples_of_zeros_agree(make_activations: Make, tmp_path: Path) -> None:
    features = np.zeros((9, 6, 5), np.float32)
    features[4:] = np.random.default_rng(0).standard_normal((5, 6, 5))
    store = computed(tmp_path / "r.zarr", make_activations(features=features), None)
    assert audit_store(store, EVERY, n_pairs=40).bad == {}


def test_the_exact_permutation_is_that_of_brute_force(rng: np.random.Generator) -> None:
    row, column = rng.standard_normal((2, 6, 3)).astype(np.float32)
    affinity = row.astype(float) @ column.astype(float).T
    best = max(sum(affinity[s, t] for s, t in enumerate(order)) for order in itertools.permutations(range(6)))
    for matching in (MatchingSettings("optimal"), MatchingSettings("batch_optimal", window=6)):
        assert exact_inner_product(row, column, "permutation", matching) == pytest.approx(best, rel=1e-14)
    windows = exact_inner_product(row, column, "permutation", MatchingSettings("batch_optimal", window=2))
    by_norm = [sample[np.argsort(np.linalg.norm(sample, axis=1))].astype(float) for sample in (row, column)]
    pairs = [by_norm[0][s : s + 2] @ by_norm[1][s : s + 2].T for s in (0, 2, 4)]
    assert windows == pytest.approx(sum(max(a[0, 0] + a[1, 1], a[0, 1] + a[1, 0]) for a in pairs), rel=1e-14)
    assert windows < best


def test_the_exact_translation_is_the_best_shift(rng: np.random.Generator) -> None:
    sample = rng.standard_normal((3, 4, 5)).astype(np.float32)
    moved = np.roll(sample, (2, 3), axis=(0, 1))
    value = exact_inner_product(sample.reshape(12, 5), moved.reshape(12, 5), "translation", MatchingSettings(), (3, 4))
    assert value == pytest.approx((sample.astype(float) ** 2).sum(), rel=1e-14)


def test_a_number_above_the_optimum_is_wrong_even_within_the_solver_s_tolerance() -> None:
    unit = Unit(TileKey(0, 0), "permutation")
    below, above = (Check(unit, (0, 1), stored, 1.0, 1.0, shortfall=1e-6) for stored in (1 - 5e-7, 1 + 5e-7))
    assert below.agrees
    assert not above.agrees
    assert not Check(unit, (0, 1), 1 - 2e-6, 1.0, 1.0, shortfall=1e-6).agrees
    assert not Check(unit, (0, 1), 1e-300, 0.0, 0.0).agrees
    assert not Check(unit, (0, 1), float("nan"), 1.0, 1.0).agrees


def test_a_larger_tolerance_allows_more() -> None:
    allowed = [allowed_shortfall(MatchingSettings(tolerance=each), 50.0, 100.0, 64) for each in (1e-7, 1e-6, 1e-2)]
    assert allowed[0] == allowed[1] < allowed[2] == pytest.approx(5e-3, rel=1e-3)


@pytest.mark.parametrize("grid", [RectangularGrid(23, 31, 7), SymmetricGrid(23, 7), MinibatchGrid(23, 8, 4)])
def test_random_pairs_lie_in_their_tiles_and_reach_all_of_them(grid: Any) -> None:
    pairs = random_pairs(grid, 2000, seed=1)
    assert len(pairs) == 2000
    assert pairs == random_pairs(grid, 2000, seed=1) != random_pairs(grid, 2000, seed=2)
    assert {key for key, _, _ in pairs} == set(grid.tile_keys())
    for key, row, column in pairs:
        rows, columns = grid.slices(key)
        assert row in range(rows.start, rows.stop)
        assert column in range(columns.start, columns.stop)
        assert not grid.symmetric or row <= column
