"""One RSM from activation stores: resume, damage, refusals; serially, so that every count is exact."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist import semantic_rsm
from semrsm_dist.grid import TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.reduction.stored import StoredRsm, load_rsm
from semrsm_dist.runtime import rsm_run, worker
from semrsm_dist.runtime.inventory import damaged_units, missing_units, units_of
from semrsm_dist.runtime.plan import project_memory
from semrsm_dist.runtime.rsm_run import (
    RsmSettings,
    RunSettings,
    create_rsm,
    plan_rsm,
    run_rsm,
)
from semrsm_dist.runtime.units import Unit
from storage_schemas import (
    ActivationStore,
    FingerprintMismatchError,
    IncompleteStoreError,
    InvalidInputError,
    LeaseLostError,
    RsmStore,
    StoreInUseError,
    StoreNotFoundError,
)
from storage_schemas.lease import Holder, Lease
from storage_schemas.location import Location, relative, resolve
from storage_schemas.rsm import events_url
from storage_schemas.tables import EVENTS, read_folder

SERIAL = RunSettings(executor="serial")
EVERY = ("none", "permutation", "translation", "pooled")
SETTINGS = RsmSettings(EVERY, "position", MatchingSettings("batch_optimal", window=4), tile_size=5)
Make = Callable[..., ActivationStore]
Tree = Callable[[Path], dict[str, bytes]]


def compute(out: Path, rows: ActivationStore, columns: ActivationStore | None, settings: RsmSettings = SETTINGS) -> int:
    """Create and run; returns how many units were computed."""
    job = create_rsm(str(rows.location), columns and str(columns.location), str(out), settings)
    run = run_rsm(job, settings.invariances, SERIAL)
    assert not run.set_aside
    return run.computed


def features(store: ActivationStore) -> np.ndarray:
    return store.read(0, store.n_samples)


@pytest.mark.parametrize("centring", ["position", "channel", "none"])
@pytest.mark.parametrize("invariance", EVERY)
def test_tiles_give_the_same_numbers_as_memory(make_activations: Make, tmp_path: Path, invariance: str, centring: str) -> None:
    rows, columns = make_activations("q", n_samples=7, seed=1), make_activations("d", n_samples=13, seed=2)
    settings = RsmSettings((invariance,), centring, MatchingSettings("optimal"), tile_size=5)
    compute(tmp_path / "r.zarr", rows, columns, settings)
    stored = load_rsm(str(tmp_path / "r.zarr"), invariance)
    maps = [features(store).transpose(0, 2, 1).reshape(-1, 5, 2, 3) for store in (rows, columns)]
    memory = semantic_rsm(*maps, invariance=invariance, matching="optimal", centring=centring)
    for mine, other in (
        (stored.inner_product, memory.inner_product),
        (stored.row_norms, memory.row_norms),
        (stored.column_norms, memory.column_norms),
        (stored.rbf(), memory.rbf()),
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


def test_the_symmetric_grid_equals_the_rectangular_one(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    compute(tmp_path / "s.zarr", store, None)
    compute(tmp_path / "r.zarr", store, store)
    for invariance in EVERY:
        symmetric, rectangular = (load_rsm(str(tmp_path / name), invariance) for name in ("s.zarr", "r.zarr"))
        np.testing.assert_array_equal(symmetric.inner_product, symmetric.inner_product.T)
        np.testing.assert_allclose(symmetric.inner_product, rectangular.inner_product, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(symmetric.column_norms, rectangular.column_norms)
        sigmas = [StoredRsm(RsmStore.open(str(tmp_path / n)), invariance).sigma_squared for n in ("s.zarr", "r.zarr")]
        assert sigmas[0] == pytest.approx(sigmas[1], rel=1e-6)
        off_diagonal = symmetric.squared_distance()[~np.eye(13, dtype=bool)]
        assert sigmas[0] == np.median(off_diagonal[off_diagonal > 0])


def test_a_minibatch_grid_holds_pairs_within_batches(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    settings = RsmSettings(("none",), "none", tile_size=3, batch_size=6)
    compute(tmp_path / "b.zarr", store, None, settings)
    rsm = RsmStore.open(str(tmp_path / "b.zarr"))
    assert rsm.present_tiles("none") == {(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3), (4, 4)}
    with pytest.raises(InvalidInputError, match="within batches only"):
        load_rsm(str(tmp_path / "b.zarr"), "none")


def test_only_what_is_missing_is_computed_and_the_bytes_are_the_same(
    make_activations: Make, tmp_path: Path, tree: Tree
) -> None:
    rows, columns = make_activations("q", n_samples=7), make_activations("d", n_samples=13)
    planned = len(EVERY) * (2 * 3 + 2 + 3)
    assert compute(tmp_path / "r.zarr", rows, columns) == planned
    whole = tree(tmp_path / "r.zarr")
    assert compute(tmp_path / "r.zarr", rows, columns) == 0
    gone = [
        "inner_product/permutation/c/0/2",
        "inner_product/none/c/1/0",
        "row_norms/pooled/c/1",
        "column_norms/translation/c/2",
    ]
    for path in gone:
        (tmp_path / "r.zarr" / path).unlink()
    assert compute(tmp_path / "r.zarr", rows, columns) == len(gone)
    assert tree(tmp_path / "r.zarr") == whole
    events = read_folder(events_url(Location.of(tmp_path / "r.zarr")), EVENTS).to_pylist()
    tries = Counter((event["part"], event["invariance"], event["row"], event["column"]) for event in events)
    assert sum(tries.values()) == planned + len(gone)
    assert sum(count == 2 for count in tries.values()) == len(gone)
    assert all(event["checksum"] and event["status"] == "done" for event in events)


def test_upper_bounds_are_stored_resumed_and_verified_with_their_tiles(
    make_activations: Make, tmp_path: Path, tree: Tree
) -> None:
    rows, columns = make_activations("q", n_samples=7), make_activations("d", n_samples=13)
    settings = replace(SETTINGS, store_upper_bound=True)
    planned = compute(tmp_path / "r.zarr", rows, columns, settings)
    whole = tree(tmp_path / "r.zarr")
    rsm = load_rsm(str(tmp_path / "r.zarr"))
    assert rsm.upper_bound is not None
    assert (rsm.inner_product <= rsm.upper_bound).all()
    np.testing.assert_allclose(rsm.upper_bound, rsm.inner_product, rtol=1e-6)
    assert [path.name for path in (tmp_path / "r.zarr/upper_bound").iterdir() if path.is_dir()] == ["permutation"]
    (tmp_path / "r.zarr/upper_bound/permutation/c/1/2").unlink()
    flipped = tmp_path / "r.zarr/upper_bound/permutation/c/0/1"
    data = bytearray(flipped.read_bytes())
    data[9] ^= 1
    flipped.write_bytes(data)
    assert compute(tmp_path / "r.zarr", rows, columns, settings) == 2
    assert tree(tmp_path / "r.zarr") == whole
    assert compute(tmp_path / "without.zarr", rows, columns) == planned
    assert compute(tmp_path / "without.zarr", rows, columns, settings) == 6  # wanted later: the tiles of one invariance
    assert tree(tmp_path / "without.zarr") == whole


def test_events_tell_the_certified_gaps(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    compute(tmp_path / "r.zarr", store, None, replace(SETTINGS, store_upper_bound=True))
    rsm = load_rsm(str(tmp_path / "r.zarr"))
    gaps = rsm.upper_bound / rsm.inner_product - 1
    events = read_folder(events_url(Location.of(tmp_path / "r.zarr")), EVENTS).to_pylist()
    tiles = [event for event in events if event["part"] == "tile" and event["invariance"] == "permutation"]
    for event in tiles:
        part = gaps[5 * event["row"] :, 5 * event["column"] :][:5, :5]
        assert event["largest_gap"] == pytest.approx(np.abs(part).max(), abs=1e-12)
        assert 0 <= event["mean_gap"] <= event["largest_gap"] <= 1e-6
    assert max(event["largest_gap"] for event in tiles) > 0
    assert all(event["largest_gap"] is None for event in events if event["part"] != "tile")


def test_a_greedy_matching_has_no_upper_bound_to_store(make_activations: Make, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no upper bound to store under greedy; use optimal or batch_optimal"):
        replace(SETTINGS, matching=MatchingSettings("greedy"), store_upper_bound=True)
    store = make_activations(n_samples=7)
    compute(tmp_path / "r.zarr", store, None, replace(SETTINGS, matching=MatchingSettings("greedy")))
    events = read_folder(events_url(Location.of(tmp_path / "r.zarr")), EVENTS).to_pylist()
    assert all(event["largest_gap"] is None for event in events if event["invariance"] == "permutation")


def test_damaged_tiles_and_half_written_files_are_mended(make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    store = make_activations(n_samples=13)
    compute(tmp_path / "r.zarr", store, None)
    whole = tree(tmp_path / "r.zarr")
    flipped = tmp_path / "r.zarr/inner_product/pooled/c/1/2"
    data = bytearray(flipped.read_bytes())
    data[17] ^= 1
    flipped.write_bytes(data)
    truncated = tmp_path / "r.zarr/inner_product/none/c/0/0"
    truncated.write_bytes(truncated.read_bytes()[:50])
    norms = tmp_path / "r.zarr/row_norms/none/c/0"
    norms.write_bytes(bytes(reversed(norms.read_bytes())))
    (tmp_path / "r.zarr/inner_product/none/c/0/1#1").write_bytes(b"half")
    damaged = damaged_units(RsmStore.open(str(tmp_path / "r.zarr")), EVERY)
    assert len(damaged) == 3
    assert compute(tmp_path / "r.zarr", store, None) == 3
    assert tree(tmp_path / "r.zarr") == whole


def test_an_invariance_can_be_added_later(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=7)
    compute(tmp_path / "r.zarr", store, None, RsmSettings(("none",), tile_size=5))
    assert compute(tmp_path / "r.zarr", store, None, RsmSettings(("none", "pooled"), tile_size=5)) == 3 + 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RsmSettings(EVERY, "channel", SETTINGS.matching, 5), 'centring is "position" in the store and "channel" now'),
        (RsmSettings(EVERY, "position", MatchingSettings("optimal"), 5), 'method is "batch_optimal" .* "optimal" now'),
        (RsmSettings(EVERY, "position", SETTINGS.matching, 4), "tile_size is 5 in the store and 4 now"),
    ],
)
def test_another_configuration_is_refused(make_activations: Make, tmp_path: Path, settings: RsmSettings, words: str) -> None:
    store = make_activations(n_samples=7)
    compute(tmp_path / "r.zarr", store, None)
    with pytest.raises(FingerprintMismatchError, match=words):
        create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), settings)
    assert compute(tmp_path / "r.zarr", store, None) == 0


def test_other_activations_are_refused(make_activations: Make, tmp_path: Path) -> None:
    compute(tmp_path / "r.zarr", make_activations("a", n_samples=7), None)
    other = make_activations("b", n_samples=7, seed=9)
    with pytest.raises(FingerprintMismatchError, match="rows is"):
        create_rsm(str(other.location), None, str(tmp_path / "r.zarr"), SETTINGS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_channels": 4}, "has 5 channels and .* has 4; rows and columns must come from the same layer"),
        ({"spatial_shape": (3, 3)}, "has 6 positions and .* has 9"),
    ],
)
def test_rows_and_columns_of_different_shapes_are_refused(
    make_activations: Make, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    rows, columns = make_activations("q"), make_activations("d", **changes)
    with pytest.raises(InvalidInputError, match=words):
        create_rsm(str(rows.location), str(columns.location), str(tmp_path / "r.zarr"), SETTINGS)
    assert not (tmp_path / "r.zarr").exists()


def test_translation_of_positions_that_form_no_map_is_refused(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(spatial_shape=None)
    with pytest.raises(InvalidInputError, match="needs positions that form an H×W map"):
        create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)


def test_unfinished_activations_are_refused(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    store.location.delete("features/c/1/0/0")
    with pytest.raises(IncompleteStoreError, match="lacks 1 of 4 chunks"):
        create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)


def test_activations_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no Zarr store at .*nothing\.zarr"):
        create_rsm(str(tmp_path / "nothing.zarr"), None, str(tmp_path / "r.zarr"), SETTINGS)


def test_damaged_activations_set_their_tiles_aside_and_the_rest_is_computed(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13, chunk_samples=5)
    settings = RsmSettings(("none",), "none", tile_size=5)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), settings)
    path = Path(store.location.url, "features/c/2/0/0")
    path.write_bytes(path.read_bytes()[:-3])
    run = run_rsm(job, ("none",), SERIAL)
    assert {(unit.part, unit.key.row, unit.key.column) for unit in run.set_aside} == {
        ("row_norms", 2, 0),
        ("tile", 0, 2),
        ("tile", 1, 2),
        ("tile", 2, 2),
    }
    assert all("features is damaged" in reason for reason in run.set_aside.values())
    assert len(missing_units(RsmStore.open(str(tmp_path / "r.zarr")), ("none",))) == 4


def test_the_plan_counts_what_is_missing_and_memory_is_bounded_whatever_n_is(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    plan = plan_rsm(job, EVERY, SERIAL)
    assert (plan.n_tiles, plan.n_missing, plan.n_pairs) == (24, 24, 4 * 91)
    assert plan.cpu_seconds > 0
    run_rsm(job, EVERY, SERIAL)
    assert plan_rsm(job, EVERY, SERIAL).n_missing == 0
    large = make_activations("large", n_samples=200)
    job = create_rsm(str(large.location), None, str(tmp_path / "l.zarr"), SETTINGS)
    bigger = plan_rsm(job, EVERY, SERIAL)
    assert bigger.memory_per_worker - bigger.cache_bytes == plan.memory_per_worker - plan.cache_bytes
    assert plan.cache_bytes == 13 * 6 * 5 * 4
    limit = 2**30
    tight = plan_rsm(job, EVERY, RunSettings(executor="serial", memory_per_worker=limit))
    assert tight.memory_per_worker <= limit


def test_a_plan_that_does_not_fit_the_memory_is_refused(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=13)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    with pytest.raises(InvalidInputError, match=r"would need .* MiB for blocks of 5 samples, .* may use 1.0 MiB"):
        plan_rsm(job, EVERY, RunSettings(executor="serial", memory_per_worker=2**20))
    assert project_memory(100, 4096, 256, 4, 0, 1) > 2 * 100 * 4096 * 256 * 4


def test_a_worker_with_other_packages_refuses_to_write(
    make_activations: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_activations(n_samples=7)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    monkeypatch.setattr(worker, "version", lambda name: "0.0.1")
    with pytest.raises(FingerprintMismatchError, match=r"has other packages than .*r\.zarr .*numpy 0\.0\.1 instead of"):
        run_rsm(job, EVERY, SERIAL)


def test_a_disk_that_does_not_keep_what_is_written_ends_the_run(
    make_activations: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_activations(n_samples=7)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    run_rsm(job, EVERY, SERIAL)
    monkeypatch.setattr(rsm_run, "damaged_units", lambda store, names, report: {next(units_of(store, names)): "bad"})
    with pytest.raises(rsm_run.DamagedChunkError, match=r"does not keep what is written"):
        run_rsm(job, EVERY, SERIAL)


@pytest.mark.parametrize(
    ("target", "store", "address"),
    [
        ("/w/activations/a.zarr", "/w/rsm/r.zarr", "../activations/a.zarr"),
        ("s3://b/w/activations/a.zarr", "s3://b/w/rsm/r.zarr", "../activations/a.zarr"),
        ("s3://other/a.zarr", "s3://b/w/rsm/r.zarr", "s3://other/a.zarr"),
    ],
)
def test_stores_point_to_each_other_so_that_a_work_directory_can_move(target: str, store: str, address: str) -> None:
    assert relative(Location.of(target), Location.of(store)) == address
    assert resolve(address, Location.of(store)) == Location.of(target)


def test_a_moved_work_directory_still_works(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=7, folder=tmp_path / "w")
    compute(tmp_path / "w" / "r.zarr", store, None)
    shutil.move(tmp_path / "w", tmp_path / "moved")
    rsm = RsmStore.open(str(tmp_path / "moved" / "r.zarr"))
    assert ActivationStore.open(resolve(rsm.attributes["rows"], rsm.location)).n_samples == 7


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_centre_is_computed_again(make_activations: Make, tmp_path: Path, tree: Tree, damage: str) -> None:
    store = make_activations(n_samples=7)
    compute(tmp_path / "r.zarr", store, None)
    whole = tree(tmp_path / "r.zarr")
    path = tmp_path / "r.zarr/centre/c/0/0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    compute(tmp_path / "r.zarr", store, None)
    assert tree(tmp_path / "r.zarr") == whole


def test_numbers_of_another_solver_release_are_not_mixed_in(
    make_activations: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_activations(n_samples=7)
    compute(tmp_path / "r.zarr", store, None)
    monkeypatch.setattr(rsm_run, "version", lambda name: "0.1")
    with pytest.raises(FingerprintMismatchError, match=r'packages\.numba is ".*" in the store and "0\.1" now'):
        create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)


def test_a_store_has_one_writer_and_a_finished_one_needs_none(make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    store = make_activations(n_samples=7)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    location, half = Location.of(tmp_path / "r.zarr"), tmp_path / "r.zarr/half#1"
    half.write_bytes(b"")
    with Lease(location):
        with pytest.raises(StoreInUseError, match=r"r\.zarr is in use by process"):
            run_rsm(job, EVERY, SERIAL)
        assert half.exists()  # another's unfinished file is not swept
    assert run_rsm(job, EVERY, SERIAL).computed
    assert not (tmp_path / "r.lease.json").exists()
    with Lease(location):
        whole = tree(tmp_path)
        assert run_rsm(job, EVERY, SERIAL).computed == 0
        assert tree(tmp_path) == whole
        tile = tmp_path / "r.zarr/inner_product/none/c/0/1"
        data = tile.read_bytes()
        tile.write_bytes(bytes(reversed(data)))
        with pytest.raises(StoreInUseError):
            run_rsm(job, EVERY, SERIAL)
        assert tile.read_bytes() == bytes(reversed(data))
    assert run_rsm(job, EVERY, SERIAL).computed == 1
    assert tile.read_bytes() == data


@pytest.mark.parametrize("during", ["computing", "verifying"])
def test_a_run_that_loses_its_lease_stops_and_can_be_gone_on_with(make_activations: Make, tmp_path: Path, during: str) -> None:
    store = make_activations(n_samples=23)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    lease = tmp_path / "r.lease.json"
    other = Holder.this_process(3600).to_json()
    units: list[int] = []

    def take(done: int, total: int, seconds_left: float | None = None) -> None:
        units.append(done)
        lease.write_bytes(other)
        time.sleep(0.1)

    quick = replace(SERIAL, lease_seconds=0.2)
    reports = {"report" if during == "computing" else "report_verify": take}
    with pytest.raises(LeaseLostError, match="took it over"):
        run_rsm(job, EVERY, quick, **reports)
    assert 0 < len(units) < 10
    assert lease.read_bytes() == other
    lease.unlink()
    run = run_rsm(job, EVERY, SERIAL)
    assert not run.set_aside
    assert run.computed < run.planned


def test_units_that_are_known_to_be_wrong_are_computed_again(make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    store = make_activations(n_samples=13)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    run_rsm(job, EVERY, SERIAL)
    whole = tree(tmp_path / "r.zarr")
    RsmStore.open(job.out, writable=True).write_tile("none", 0, 1, np.zeros((5, 5)))  # whole, finite, and wrong
    assert run_rsm(job, EVERY, SERIAL).computed == 0
    assert run_rsm(job, EVERY, SERIAL, discard=[Unit(TileKey(0, 1), "none")]).computed == 1
    assert tree(tmp_path / "r.zarr") == whole
