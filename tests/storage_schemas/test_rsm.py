"""RSM stores: one tile is one chunk, checksummed, found by one listing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import xarray

from storage_schemas import (
    DamagedChunkError,
    FingerprintMismatchError,
    IncompleteStoreError,
    InvalidInputError,
    NonFiniteError,
    RsmStore,
    SchemaVersionError,
    StoreNotFoundError,
)

VALUES = np.arange(7 * 9, dtype=np.float64).reshape(7, 9)


def make(folder: Path, **changes: Any) -> RsmStore:
    """A store of 7 × 9 with tiles of 4."""
    settings: dict[str, Any] = {
        "n_rows": 7,
        "n_columns": 9,
        "grid": {"kind": "rectangular"},
        "tile_size": 4,
        "computed_from": {"rows": "r", "matching": {"window": 4}},
    }
    store = RsmStore.create(str(folder / "r.zarr"), **{**settings, **changes})
    store.add_invariance("none")
    return store


def fill(store: RsmStore) -> None:
    """Write every tile and norm."""
    for row in range(2):
        for column in range(3):
            store.write_tile("none", row, column, VALUES[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4])
    for side, length in (("row", 7), ("column", 9)):
        for block in range(-(-length // 4)):
            store.write_norms("none", side, block, np.arange(length, dtype=float)[block * 4 : block * 4 + 4])


def test_tiles_come_back_at_the_ragged_edges_too(tmp_path: Path) -> None:
    fill(make(tmp_path))
    store = RsmStore.open(str(tmp_path / "r.zarr"))
    np.testing.assert_array_equal(store.read_tile("none", 1, 2), VALUES[4:7, 8:9])
    np.testing.assert_array_equal(store.read_norms("none", "column"), np.arange(9))
    assert store.present_tiles("none") == {(row, column) for row in range(2) for column in range(3)}
    assert store.present_norms("none", "row") == {0, 1}


def test_a_tile_is_one_file_of_a_fixed_size(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.write_tile("none", 1, 2, VALUES[4:7, 8:9])
    files = [path for path in (tmp_path / "r.zarr/inner_product/none/c").rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in files] == [4 * 4 * 8 + 4]


def test_a_missing_tile_is_said_and_never_nan(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.present_tiles("none") == set()
    with pytest.raises(IncompleteStoreError, match=r"Tile \(0, 0\) under none .* has not been computed"):
        store.read_tile("none", 0, 0)


@pytest.mark.parametrize("position", [0, 77, 131])
def test_a_flipped_bit_is_found_when_the_tile_is_read(tmp_path: Path, position: int) -> None:
    store = make(tmp_path)
    fill(store)
    path = tmp_path / "r.zarr/inner_product/none/c/1/2"
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedChunkError, match="damaged within"):
        store.read_tile("none", 1, 2)
    store.write_tile("none", 1, 2, VALUES[4:7, 8:9])  # and can be written over
    np.testing.assert_array_equal(store.read_tile("none", 1, 2), VALUES[4:7, 8:9])


def test_a_truncated_tile_is_missing_by_the_listing(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    path = tmp_path / "r.zarr/inner_product/none/c/0/1"
    path.write_bytes(path.read_bytes()[:-1])
    assert (0, 1) not in store.present_tiles("none")


def test_tiles_of_zeros_are_written(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.write_tile("none", 0, 0, np.zeros((4, 4)))
    reopened = RsmStore.open(str(tmp_path / "r.zarr"), writable=True)
    reopened.write_tile("none", 0, 1, np.zeros((4, 4)))
    assert store.present_tiles("none") == {(0, 0), (0, 1)}


def test_a_tile_with_upper_bounds_is_there_when_both_are(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.add_invariance("permutation", upper_bounds=True)
    tile = VALUES[:4, :4]
    store.write_tile("permutation", 0, 0, tile, tile + 1)
    assert store.present_tiles("permutation") == {(0, 0)}
    np.testing.assert_array_equal(store.read_upper_bounds("permutation", 0, 0), tile + 1)
    (tmp_path / "r.zarr/upper_bound/permutation/c/0/0").unlink()
    assert store.present_tiles("permutation") == set()
    with pytest.raises(IncompleteStoreError, match="has not been computed"):
        store.read_upper_bounds("permutation", 0, 0)
    with pytest.raises(InvalidInputError, match="keeps 2 arrays under permutation, and a tile came with 1"):
        store.write_tile("permutation", 0, 0, tile)
    with pytest.raises(InvalidInputError, match="keeps 1 arrays under none, and a tile came with 2"):
        store.write_tile("none", 0, 0, tile, tile)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        store.write_tile("permutation", 0, 0, tile, tile + np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_tiles_are_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        make(tmp_path).write_tile("none", 0, 0, np.full((4, 4), bad))


def test_a_tile_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has shape \(3, 1\), not \(4, 4\)"):
        make(tmp_path).write_tile("none", 1, 2, np.zeros((4, 4)))


def test_a_symmetric_store_keeps_one_triangle_and_reads_both(tmp_path: Path) -> None:
    store = make(tmp_path, n_columns=7, grid={"kind": "symmetric"})
    store.write_tile("none", 0, 1, VALUES[:4, 4:7])
    np.testing.assert_array_equal(store.read_tile("none", 1, 0), VALUES[:4, 4:7].T)
    with pytest.raises(InvalidInputError, match="below the diagonal"):
        store.write_tile("none", 1, 0, VALUES[:3, :4])


def test_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path)  # the same is opened
    with pytest.raises(FingerprintMismatchError, match=r"matching.window is 4 in the store and 8 now; tile_size is 4 .* 5 now"):
        make(tmp_path, computed_from={"rows": "r", "matching": {"window": 8}}, tile_size=5)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "r.zarr/zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["version"] = 99
    path.write_text(json.dumps(metadata))
    with pytest.raises(SchemaVersionError, match="version 99 of the rsm schema and this release reads version 1"):
        RsmStore.open(str(tmp_path / "r.zarr"))


def test_a_store_of_another_schema_is_refused(tmp_path: Path, make_activations: Any) -> None:
    activations = make_activations()
    with pytest.raises(SchemaVersionError, match="holds activations; expected a store of schema rsm"):
        RsmStore.open(activations.location)


def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no Zarr store at"):
        RsmStore.open(str(tmp_path / "x.zarr"))
    assert not (tmp_path / "x.zarr").exists()


def test_xarray_opens_the_store_with_named_dimensions(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    store.write_centre(np.ones((5, 2)))
    opened = xarray.open_zarr(tmp_path / "r.zarr", group="inner_product", consolidated=False)
    assert opened["none"].dims == ("row", "column")
    np.testing.assert_array_equal(opened["none"].values, VALUES)
    assert xarray.open_zarr(tmp_path / "r.zarr", consolidated=False)["centre"].dims == ("position", "channel")
    norms = xarray.open_zarr(tmp_path / "r.zarr", group="row_norms", consolidated=False)
    assert norms["none"].dims == ("row",)


def test_every_array_ends_in_a_crc32c_and_is_filled_with_nan(tmp_path: Path) -> None:
    make(tmp_path).write_centre(np.ones(3))
    arrays = [json.loads(path.read_text()) for path in (tmp_path / "r.zarr").rglob("zarr.json")]
    arrays = [metadata for metadata in arrays if metadata["node_type"] == "array"]
    assert len(arrays) == 4
    for metadata in arrays:
        assert metadata["codecs"][-1]["name"] == "crc32c"
        assert metadata["fill_value"] == "NaN"


def test_files_that_are_not_tiles_are_overlooked(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    for name in (".nfs0001", "0/.nfs0002", "0/1.bak"):
        (tmp_path / "r.zarr/inner_product/none/c" / name).write_bytes(b"0" * (4 * 4 * 8 + 4))
    assert store.present_tiles("none") == {(row, column) for row in range(2) for column in range(3)}


def test_many_runs_may_create_a_store_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for name in range(5):
            starts = [pool.submit(make, tmp_path / str(name)) for _ in range(8)]
            assert len({start.result().fingerprint for start in starts}) == 1


def test_a_sweep_beside_a_writer_loses_nothing(tmp_path: Path) -> None:
    store = make(tmp_path)
    done = Event()

    def sweep() -> int:
        swept = 0
        while not done.is_set():
            swept += store.location.sweep()
        return swept

    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(sweep)
        try:
            for _ in range(200):
                store.write_tile("none", 0, 0, VALUES[:4, :4])
        finally:
            done.set()
        sweeping.result()
    np.testing.assert_array_equal(store.read_tile("none", 0, 0), VALUES[:4, :4])
