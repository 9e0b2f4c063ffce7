"""Publication of a finished store: the same bits in few objects, whole or not at all, and read by what reads its source."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from semrsm_dist.matching import MatchingSettings
from semrsm_dist.reduction.stored import StoredRsm, load_rsm
from semrsm_dist.reduction.stored_cka import stored_cka
from semrsm_dist.runtime import publication
from semrsm_dist.runtime.audit import audit_store
from semrsm_dist.runtime.inventory import damaged_units, grid_of, missing_units
from semrsm_dist.runtime.publication import publish, read_manifest
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from storage_schemas import (
    ActivationStore,
    DamagedChunkError,
    IncompleteStoreError,
    InvalidInputError,
    LeaseLostError,
    RsmStore,
    StoreInUseError,
)
from storage_schemas.lease import Lease
from storage_schemas.location import Location
from storage_schemas.rsm import checksum
from tests.s3.bucket import S3, s3_fixture, s3_server_fixture

__all__ = ["s3_fixture", "s3_server_fixture"]
NAMES = ("none", "permutation")
Make = Callable[..., ActivationStore]
Tree = Callable[[Path], dict[str, bytes]]


def computed(out: Path, rows: ActivationStore, columns: ActivationStore | None = None, **changes: Any) -> RsmStore:
    """A finished store with tiles of 3 and upper bounds."""
    settings = RsmSettings(NAMES, matching=MatchingSettings("optimal"), tile_size=3, store_upper_bound=True, **changes)
    job = create_rsm(str(rows.location), columns and str(columns.location), str(out), settings)
    assert not run_rsm(job, NAMES, RunSettings(executor="serial")).set_aside
    return RsmStore.open(str(out))


@pytest.fixture
def source(make_activations: Make, tmp_path: Path) -> RsmStore:
    """A store of 20 × 23, which is 7 × 8 tiles."""
    return computed(tmp_path / "rsm/r.zarr", make_activations("q", n_samples=20), make_activations("d", n_samples=23, seed=1))


@pytest.mark.parametrize("shard_tiles", [1, 3, 7, 50])
def test_a_published_store_holds_the_same_bits_and_is_read_alike(source: RsmStore, tmp_path: Path, shard_tiles: int) -> None:
    out = tmp_path / "for/everyone/p.zarr"
    publish(source.location, str(out), shard_tiles=shard_tiles)
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.zarr"]
    published = RsmStore.open(str(out))
    assert (published.shape, published.fingerprint, published.invariances()) == (source.shape, source.fingerprint, list(NAMES))
    np.testing.assert_array_equal(published.read_centre(), source.read_centre())
    for name in NAMES:
        mine, other = load_rsm(str(out), name), load_rsm(source.location.url, name)
        for attribute in ("inner_product", "row_norms", "column_norms", "upper_bound"):
            np.testing.assert_array_equal(getattr(mine, attribute), getattr(other, attribute))
        assert StoredRsm(published, name).sigma_squared == StoredRsm(source, name).sigma_squared
    assert missing_units(published, NAMES) == []
    assert damaged_units(published, NAMES) == {}
    assert audit_store(published, NAMES).bad == {}  # which finds the activations from where the store is now
    shards = [path for path in (out / "inner_product/none/c").rglob("*") if path.is_file()]
    assert len(shards) == -(-7 // shard_tiles) * -(-8 // shard_tiles)


@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_symmetric_matrix_is_published_whole(make_activations: Make, tmp_path: Path, batch_size: int | None) -> None:
    source = computed(tmp_path / "r.zarr", make_activations(n_samples=20), batch_size=batch_size)
    publish(source.location, str(tmp_path / "p.zarr"), shard_tiles=3)
    published = RsmStore.open(str(tmp_path / "p.zarr"))
    opened = xarray.open_zarr(tmp_path / "p.zarr", group="inner_product", consolidated=False)["none"]
    assert opened.dims == ("row", "column")
    within = np.equal.outer(np.arange(20) // (batch_size or 20), np.arange(20) // (batch_size or 20))
    assert np.array_equal(np.isfinite(opened.values), within)
    assert np.array_equal(opened.values, opened.values.T, equal_nan=True)
    for key in grid_of(source).tile_keys():
        np.testing.assert_array_equal(
            published.read_tile("none", key.row, key.column), source.read_tile("none", key.row, key.column)
        )
    assert missing_units(published, NAMES) == []
    if batch_size is None:
        cka = [stored_cka(StoredRsm(store, "none"), StoredRsm(store, "permutation")) for store in (source, published)]
        assert cka[0] == cka[1]


def test_the_manifest_says_what_is_in_the_store(source: RsmStore, tmp_path: Path) -> None:
    manifest = publish(source.location, str(tmp_path / "p.zarr"), shard_tiles=3)
    assert (
        manifest
        == json.loads((tmp_path / "p.zarr/manifest.json").read_text())
        == read_manifest(Location.of(tmp_path / "p.zarr"))
    )
    assert (manifest["fingerprint"], manifest["shape"], manifest["shard_tiles"]) == (source.fingerprint, [20, 23], 3)
    assert manifest["published_with"]["zarr"]
    for name in NAMES:
        entry = manifest["invariances"][name]
        sums = [checksum(source.read_tile(name, key.row, key.column)) for key in grid_of(source).tile_keys()]
        assert entry["tiles"] == len(sums) == 56
        assert entry["inner_product"] == hashlib.sha256("".join(f"{each}\n" for each in sums).encode()).hexdigest()
        assert entry["row_norms"] == checksum(source.read_norms(name, "row"))
        assert ("upper_bound" in entry) == (name == "permutation")


def test_publishing_again_does_nothing_and_another_store_is_refused(
    source: RsmStore, make_activations: Make, tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "p.zarr"
    first = publish(source.location, str(out))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert publish(source.location, str(out)) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(InvalidInputError, match="is published already, with another shard_tiles; choose another output"):
        publish(source.location, str(out), shard_tiles=2)
    other = computed(tmp_path / "other.zarr", make_activations("o", n_samples=7))
    with pytest.raises(InvalidInputError, match="with another fingerprint and another shard_tiles"):
        publish(other.location, str(out), shard_tiles=2)
    with pytest.raises(InvalidInputError, match=r"p\.zarr is published already; copy it as it is"):
        publish(str(out), str(tmp_path / "q.zarr"))


def test_two_publications_are_the_same_bytes(source: RsmStore, tmp_path: Path, tree: Tree) -> None:
    for name in ("one.zarr", "two.zarr"):
        publish(source.location, str(tmp_path / name), shard_tiles=3)
    assert tree(tmp_path / "one.zarr") == tree(tmp_path / "two.zarr")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("inner_product/none/c/1/2", r"lacks 1 parts \(tile \(1, 2\) under none\); give the command"),
        ("upper_bound/permutation/c/0/0", r"lacks 1 parts \(tile \(0, 0\) under permutation\)"),
        ("column_norms/none/c/3", r"lacks 1 parts \(column norms 3 under none\)"),
        ("centre/c/0/0", r"lacks 1 parts \(the centre\)"),
    ],
)
def test_an_unfinished_store_is_not_published(source: RsmStore, tmp_path: Path, gone: str, words: str) -> None:
    source.location.delete(gone)
    with pytest.raises(IncompleteStoreError, match=words):
        publish(source.location, str(tmp_path / "p.zarr"))
    assert not list(tmp_path.glob("p.*"))


@pytest.mark.parametrize("path", ["inner_product/none/c/6/7", "row_norms/none/c/0", "centre/c/0/0"])
def test_a_damaged_store_is_not_published(source: RsmStore, tmp_path: Path, path: str) -> None:
    chunk = Path(source.location.url, path)
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DamagedChunkError, match="is damaged"):
        publish(source.location, str(tmp_path / "p.zarr"))
    assert not (tmp_path / "p.zarr").exists()


@pytest.mark.parametrize("shards_before", [0, 1, 5])
@pytest.mark.parametrize("where", ["directory", "object store"])
def test_an_interrupted_publication_is_never_half_there_and_starts_over(
    source: RsmStore, tmp_path: Path, tree: Tree, s3: S3, shards_before: int, where: str
) -> None:
    publish(source.location, str(tmp_path / "whole.zarr"), shard_tiles=3)
    out = Location.of(tmp_path / "p.zarr" if where == "directory" else f"{s3.url}/p.zarr")

    def interrupt(done: int, total: int) -> None:
        assert total == 3 * 9  # none, permutation and its upper bounds
        if done > shards_before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(source.location, out, shard_tiles=3, report=interrupt)
    if where == "directory":
        assert not (tmp_path / "p.zarr").exists()
        Path(f"{out}.unfinished", "inner_product/none/c/9/9").parent.mkdir(parents=True)
    else:
        with pytest.raises(IncompleteStoreError, match="has not been published to its end; run `semrsm finalise` again"):
            RsmStore.open(out)
        out.put("inner_product/none/c/9/9", b"of a larger one")
    assert publish(source.location, out, shard_tiles=3) == read_manifest(out)
    written = {key: out.get(key) for key in out.sizes()}
    whole = tree(tmp_path / "whole.zarr")
    assert {key for key in whole if written.get(key) != whole[key]} <= {"zarr.json"}  # which says where the activations are
    assert set(written) == set(whole)
    assert not Path(f"{out}.unfinished").exists()
    np.testing.assert_array_equal(RsmStore.open(out).read_tile("none", 6, 7), source.read_tile("none", 6, 7))


@pytest.mark.parametrize("name", ["p.zarr", "p.zarr.unfinished"])
def test_what_is_not_a_publication_is_left_alone(source: RsmStore, tmp_path: Path, tree: Tree, name: str) -> None:
    (tmp_path / name / "photos").mkdir(parents=True)
    (tmp_path / name / "photos/1.jpg").write_bytes(b"dear")
    with pytest.raises(InvalidInputError, match=f"{name} is there and is not the rest of a publication; choose another"):
        publish(source.location, str(tmp_path / "p.zarr"))
    assert tree(tmp_path / name) == {"photos/1.jpg": b"dear"}
    whole = tree(Path(source.location.url))
    with pytest.raises(InvalidInputError, match="is not the rest of a publication"):
        publish(source.location, source.location)
    assert tree(Path(source.location.url)) == whole


def test_a_publication_has_one_writer(source: RsmStore, tmp_path: Path) -> None:
    with Lease(Location.of(tmp_path / "p.zarr")), pytest.raises(StoreInUseError):
        publish(source.location, str(tmp_path / "p.zarr"))


@pytest.mark.parametrize("shard", [1, 27])
def test_a_publication_that_loses_its_lease_publishes_nothing(
    source: RsmStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    folder = Location.of(tmp_path)
    monkeypatch.setattr(publication, "Lease", partial(Lease, seconds=0.1))

    def lose(done: int, total: int) -> None:
        if done == shard:
            while not folder.swap("p.lease.json", folder.get("p.lease.json"), None):  # renewed meanwhile
                pass
            time.sleep(0.2)

    with pytest.raises(LeaseLostError, match="its lease was removed"):
        publish(source.location, str(tmp_path / "p.zarr"), shard_tiles=3, report=lose)
    assert not (tmp_path / "p.zarr").exists()


def test_storage_that_does_not_keep_a_bit_is_found(source: RsmStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = publication.write_selection

    def forget(location: Location, array: Any, values: np.ndarray, *selection: slice) -> None:
        write(location, array, np.where(values == values.max(), np.nextafter(values, 0), values), *selection)

    monkeypatch.setattr(publication, "write_selection", forget)
    with pytest.raises(DamagedChunkError, match="does not hold what was written into it"):
        publish(source.location, str(tmp_path / "p.zarr"))
    assert not (tmp_path / "p.zarr").exists()


def test_a_published_store_is_not_written_again(source: RsmStore, make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "p.zarr"
    publish(source.location, str(out), shard_tiles=3)
    whole = tree(out)
    with pytest.raises(InvalidInputError, match="is a published store, which is only read; choose another output"):
        RsmStore.open(str(out), writable=True)
    stores = (str(tmp_path / "q.zarr"), str(tmp_path / "d.zarr"))
    settings = RsmSettings(("pooled",), matching=MatchingSettings("optimal"), tile_size=3)
    with pytest.raises(InvalidInputError, match="is a published store"):
        create_rsm(*stores, str(out), settings)
    assert tree(out) == whole


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_of_a_shard_is_found_when_its_tile_is_read(source: RsmStore, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "p.zarr"
    publish(source.location, str(out), shard_tiles=3)
    shard = out / "inner_product/none/c/1/2"
    data = bytearray(shard.read_bytes())
    bit = int(np.random.default_rng(seed).integers(len(data) * 8))
    data[bit // 8] ^= 1 << bit % 8
    shard.write_bytes(data)
    assert damaged_units(RsmStore.open(str(out)), NAMES)
    shard.unlink()
    published = RsmStore.open(str(out))
    missing = {(unit.key.row, unit.key.column) for unit in missing_units(published, NAMES)}
    assert missing == {(row, column) for row in (3, 4, 5) for column in (6, 7)}


def test_one_shard_is_in_memory_at_a_time(make_activations: Make, tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((1500, 1, 4)).astype(np.float32)
    rows = make_activations(features=features, spatial_shape=None, chunk_samples=500)
    job = create_rsm(str(rows.location), None, str(tmp_path / "r.zarr"), RsmSettings(("none",), tile_size=50))
    run_rsm(job, ("none",), RunSettings(executor="serial"))
    publish(job.out, str(tmp_path / "warm.zarr"), shard_tiles=4)
    tracemalloc.start()
    publish(job.out, str(tmp_path / "p.zarr"), shard_tiles=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * (200 * 200 * 8) < 1500 * 1500 * 8 / 4
