"""Importing arrays that another program computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from semrsm_dist.extraction.arrays import import_arrays
from storage_schemas import activations, tables
from storage_schemas.activations import samples_url
from storage_schemas.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    NonFiniteError,
    SemrsmError,
    StoreNotFoundError,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "features" / "playing_cards_squeezenet_fire9.npz"


def features(shape: tuple[int, ...] = (6, 4, 3)) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"


def sample_ids(folder: Path) -> list[str]:
    from storage_schemas.location import Location

    ids: list[str] = tables.read_table(samples_url(Location.of(folder / "a.zarr")), tables.SAMPLES)["sample_id"].to_pylist()
    return ids


def test_features_and_logits_are_stored_as_they_are(tmp_path: Path) -> None:
    path = save(tmp_path, features=features(), logits=features((6, 2)), sample_id=[f"s{i}" for i in range(6)], hw=[2, 2])
    store = import_arrays(path, str(tmp_path / "a.zarr"))
    assert np.array_equal(store.read(0, 6), features())
    assert np.array_equal(store.read_logits(), features((6, 2)))
    assert store.spatial_shape is None
    assert sample_ids(tmp_path) == ["s0", "s1", "s2", "s3", "s4", "s5"]


def test_maps_are_flattened_row_by_row(tmp_path: Path) -> None:
    maps = features((2, 3, 4, 5))
    store = import_arrays(save(tmp_path, features=maps), str(tmp_path / "a.zarr"))
    assert store.spatial_shape == (4, 5)
    assert np.array_equal(store.read(0, 2)[1, 2 * 5 + 3], maps[1, :, 2, 3])


def test_an_npy_file_is_features_named_by_their_row(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", features())
    store = import_arrays(tmp_path / "f.npy", str(tmp_path / "a.zarr"))
    assert np.array_equal(store.read(0, 6), features())
    assert sample_ids(tmp_path) == ["0", "1", "2", "3", "4", "5"]


def test_the_shape_of_the_map_can_be_told(tmp_path: Path) -> None:
    path = save(tmp_path, features=features())
    assert import_arrays(path, str(tmp_path / "a.zarr"), spatial_shape=(2, 2)).spatial_shape == (2, 2)
    with pytest.raises(InvalidInputError, match=r"^A map of \(3, 2\) does not have 4 positions\.$"):
        import_arrays(path, str(tmp_path / "b.zarr"), spatial_shape=(3, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_every_floating_point_type_becomes_float32(tmp_path: Path, dtype: Any) -> None:
    store = import_arrays(save(tmp_path, features=features().astype(dtype)), str(tmp_path / "a.zarr"))
    assert store.dtype == np.float32
    assert np.array_equal(store.read(0, 6), features().astype(dtype).astype(np.float32))


def test_where_keeps_matching_rows_with_their_ids(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        features=features(),
        role=["query", "db", "query", "db", "db", "query"],
        fold=[1, 1, 2, 1, 1, 1],
        files=np.array([b"a", b"b", b"c", b"d", b"e", b"f"]),
    )
    store = import_arrays(path, str(tmp_path / "a.zarr"), where={"role": "query", "fold": "1"}, sample_id="files")
    assert np.array_equal(store.read(0, 2), features()[[0, 5]])
    assert sample_ids(tmp_path) == ["a", "f"]


def test_rows_without_ids_keep_the_number_they_have_in_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, features=features(), role=["db", "query"] * 3)
    import_arrays(path, str(tmp_path / "a.zarr"), where={"role": "query"})
    assert sample_ids(tmp_path) == ["1", "3", "5"]


def test_an_interrupted_import_is_finished_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "CHUNK_BYTES", 2 * 4 * 3 * 4)
    path = save(tmp_path, features=features())
    store = import_arrays(path, str(tmp_path / "a.zarr"))
    chunk = tmp_path / "a.zarr/features/c/1/0/0"
    before = chunk.read_bytes()
    chunk.unlink()
    assert store.missing_chunks() == [1]
    import_arrays(path, str(tmp_path / "a.zarr"))
    assert chunk.read_bytes() == before


def test_other_numbers_are_refused_by_an_existing_store(tmp_path: Path) -> None:
    import_arrays(save(tmp_path, features=features()), str(tmp_path / "a.zarr"))
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*features is [^\n]*$"):
        import_arrays(save(tmp_path, features=features() + 1), str(tmp_path / "a.zarr"))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return open, (str(tmp_path / "unpickled"), "w")  # type: ignore[return-value]

    np.savez(tmp_path / "o.npz", features=np.array([Bomb()], dtype=object))
    np.save(tmp_path / "o.npy", np.array([Bomb()], dtype=object))
    for name in ("o.npz", "o.npy"):
        with pytest.raises(InvalidInputError, match=r"^[^\n]* holds Python objects[^\n]*$"):
            import_arrays(tmp_path / name, str(tmp_path / "a.zarr"))
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"x": features()}, {}, "has no array 'features'; it has x"),
        ({"features": features((6, 4))}, {}, r"have shape \(6, 4\); expected"),
        ({"features": features((0, 4, 3))}, {}, r"have shape \(0, 4, 3\); expected"),
        ({"features": np.ones((6, 4, 3), int)}, {}, "are of type int64; expected floating-point"),
        ({"features": features(), "logits": features((5, 2))}, {}, r"logits in .* expected \(6, classes\)"),
        ({"features": features(), "sample_id": ["a", "b"]}, {}, r"'sample_id' in .* has shape \(2,\)"),
        ({"features": features(), "sample_id": list("aabcde")}, {}, "more than once: a"),
        ({"features": features()}, {"sample_id": "files"}, "has no array 'files'; it has features"),
        ({"features": features()}, {"where": {"role": "query"}}, "has no array 'role'; it has features"),
        (
            {"features": features(), "role": ["db"] * 6},
            {"where": {"role": "query"}},
            "No sample in .* has role = query; role is one of db",
        ),
        ({"features": features((2, 3, 4, 5))}, {"spatial_shape": (5, 4)}, r"are maps of \(4, 5\), not of \(5, 4\)"),
    ],
)
def test_arrays_that_do_not_fit_are_told_in_one_sentence(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        import_arrays(save(tmp_path, **arrays), str(tmp_path / "a.zarr"), **options)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("array", ["features", "logits"])
def test_numbers_that_are_not_finite_are_refused_before_a_store_is_made(tmp_path: Path, array: str, value: float) -> None:
    arrays = {"features": features().astype(float), "logits": features((6, 2)).astype(float)}
    arrays[array][4] = value
    with pytest.raises(NonFiniteError, match=rf"^The {array} of sample 4 in [^\n]*$"):
        import_arrays(save(tmp_path, **arrays), str(tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no file [^\n]*gone\.npz[^\n]*$"):
        import_arrays(tmp_path / "gone.npz", str(tmp_path / "a.zarr"))
    (tmp_path / "a.txt").touch()
    with pytest.raises(InvalidInputError, match=r"^[^\n]*cannot be imported; expected an \.npz, [^\n]*thingsvision[^\n]*$"):
        import_arrays(tmp_path / "a.txt", str(tmp_path / "a.zarr"))
    whole = save(tmp_path, features=features()).read_bytes()
    corrupt = bytearray(whole)
    corrupt[len(whole) // 2] ^= 255
    np.save(tmp_path / "whole.npy", features())
    for name, data in {
        "empty.npz": b"",
        "cut.npz": whole[:200],
        "text.npz": b"text",
        "corrupt.npz": bytes(corrupt),
        "cut.npy": (tmp_path / "whole.npy").read_bytes()[:150],
        "empty.npy": b"",
        "zip.npy": whole[:100],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SemrsmError, match=rf"^[^\n]*{name}[^\n]*$"):
            import_arrays(tmp_path / name, str(tmp_path / "a.zarr"))


@pytest.mark.skipif(not REAL.is_file(), reason=f"SKIPPED REAL DATA: {REAL} is not there")
def test_the_shared_squeezenet_features_are_imported(tmp_path: Path) -> None:
    store = import_arrays(REAL, str(tmp_path / "a.zarr"), where={"role": "query"}, sample_id="files")
    with np.load(REAL) as arrays:
        queries = arrays["role"] == "query"
        assert np.array_equal(store.read(0, store.n_samples), arrays["features"][queries])
        assert np.array_equal(store.read_logits(), arrays["logits"][queries])
        assert sample_ids(tmp_path) == arrays["files"][queries].tolist()
    assert (store.n_samples, store.n_positions, store.n_channels) == (67, 169, 512)
