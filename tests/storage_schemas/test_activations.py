"""Activation stores: whole samples in chunks, resumable, refusing what is not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from storage_schemas import (
    ActivationStore,
    DamagedChunkError,
    FingerprintMismatchError,
    IncompleteStoreError,
    InvalidInputError,
    NonFiniteError,
)


def make(folder: Path, **changes: Any) -> ActivationStore:
    """A store of 10 samples with logits, in chunks of 4."""
    settings: dict[str, Any] = {
        "n_samples": 10,
        "n_positions": 6,
        "n_channels": 3,
        "n_classes": 2,
        "spatial_shape": (2, 3),
        "chunk_samples": 4,
        "computed_from": {"model": "m"},
    }
    return ActivationStore.create(str(folder / "a.zarr"), **{**settings, **changes})


def test_chunks_come_back_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    store = make(tmp_path)
    features, logits = rng.standard_normal((10, 6, 3)).astype("f4"), rng.standard_normal((10, 2)).astype("f4")
    assert store.missing_chunks() == [0, 1, 2]
    for index in (2, 0, 1):
        store.write_chunk(index, features[store.chunk_slice(index)], logits[store.chunk_slice(index)])
    opened = ActivationStore.open(str(tmp_path / "a.zarr"))
    assert opened.missing_chunks() == []
    np.testing.assert_array_equal(opened.read(3, 9), features[3:9])
    np.testing.assert_array_equal(opened.read(8, 100), features[8:])
    np.testing.assert_array_equal(opened.read_logits(), logits)
    np.testing.assert_array_equal(np.concatenate([block for _, block in opened.blocks()]), features)
    assert (opened.n_samples, opened.n_positions, opened.n_channels, opened.spatial_shape) == (10, 6, 3, (2, 3))


def test_a_chunk_without_its_logits_is_missing(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.write_chunk(0, np.zeros((4, 6, 3)), np.zeros((4, 2)))
    store.location.delete("logits/c/0/0")
    assert store.missing_chunks() == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_non_finite_activations_are_refused_naming_the_sample(tmp_path: Path, bad: float) -> None:
    features = np.zeros((4, 6, 3))
    features[2, 1, 1] = bad
    with pytest.raises(NonFiniteError, match="features of sample 6 hold NaN, infinity or a value too large for float32"):
        make(tmp_path).write_chunk(1, features, np.zeros((4, 2)))


def test_reading_what_has_not_been_extracted_is_an_error(tmp_path: Path) -> None:
    store = make(tmp_path)
    with pytest.raises(IncompleteStoreError, match="finish its extraction"):
        store.read(0, 4)
    with pytest.raises(IncompleteStoreError, match="lacks 3 of 3 chunks"):
        store.require_complete()


def test_a_flipped_bit_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    store = make(tmp_path)
    store.write_chunk(0, rng.standard_normal((4, 6, 3)), np.zeros((4, 2)))
    path = tmp_path / "a.zarr/features/c/0/0/0"
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(DamagedChunkError):
            store.read(0, 4)


def test_float16_is_stored_and_its_overflow_refused(tmp_path: Path) -> None:
    store = make(tmp_path, dtype="float16", n_classes=None)
    store.write_chunk(0, np.full((4, 6, 3), 0.5))
    assert store.read(0, 4).dtype == np.float16
    with pytest.raises(NonFiniteError, match="too large for float16"):
        store.write_chunk(1, np.full((4, 6, 3), 1e6))


def test_another_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(FingerprintMismatchError, match='model is "m" in the store and "other" now'):
        make(tmp_path, computed_from={"model": "other"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_samples": 0}, "must be at least 1"),
        ({"dtype": "int8"}, "float32 or float16"),
        ({"spatial_shape": (2, 2)}, "does not have 6 positions"),
    ],
)
def test_impossible_stores_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        make(tmp_path, **changes)


def test_xarray_opens_the_store_with_named_dimensions(tmp_path: Path) -> None:
    store = make(tmp_path)
    for index in range(3):
        n = store.chunk_slice(index).stop - store.chunk_slice(index).start
        store.write_chunk(index, np.full((n, 6, 3), index), np.zeros((n, 2)))
    opened = xarray.open_zarr(tmp_path / "a.zarr", consolidated=False)
    assert opened["features"].dims == ("sample", "position", "channel")
    assert opened["logits"].dims == ("sample", "class")
    assert float(opened["features"][9, 0, 0]) == 2
    assert opened.attrs["schema"] == "activations"
    assert json.loads((tmp_path / "a.zarr/features/zarr.json").read_text())["codecs"][-1]["name"] == "crc32c"


def test_damaged_chunks_are_found_and_can_be_extracted_again(tmp_path: Path) -> None:
    store = make(tmp_path)
    for index in range(3):
        n = store.chunk_slice(index).stop - store.chunk_slice(index).start
        store.write_chunk(index, np.ones((n, 6, 3)), np.ones((n, 2)))
    assert store.damaged_chunks() == []
    for array, index in (("features", "1/0/0"), ("logits", "2/0")):
        path = tmp_path / "a.zarr" / array / "c" / index
        path.write_bytes(path.read_bytes()[:-2])
    assert store.damaged_chunks() == [1, 2]
    for index in (1, 2):
        store.delete_chunk(index)
    assert store.missing_chunks() == [1, 2]


def test_another_type_in_the_same_store_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(FingerprintMismatchError, match=r'stored_as.dtype is "float32" in the store and "float16" now'):
        make(tmp_path, dtype="float16")
