"""What thingsvision leaves in a folder, with the names of the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.extraction.arrays import import_arrays
from storage_schemas.errors import InvalidInputError
from tests.extraction import formats
from tests.extraction.formats import content, features, sample_ids


@pytest.mark.parametrize("file_format", ["hdf5", "npy"])
def test_names_come_from_file_names(tmp_path: Path, file_format: str) -> None:
    names = [f"klasse/bild_{i}.jpg" for i in range(7)]
    formats.save_like_thingsvision(tmp_path, features(), file_format, names)
    store = import_arrays(tmp_path, str(tmp_path / "a.zarr"))
    assert sample_ids(store) == names
    assert np.array_equal(store.read(0, 7), features())


@pytest.mark.parametrize("name", ["features.hdf5", "features.h5"])
def test_a_file_is_named_by_what_is_beside_it(tmp_path: Path, name: str) -> None:
    names = [f"b{i}.png" for i in range(7)]
    formats.save_like_thingsvision(tmp_path, features(), "hdf5", names)
    (tmp_path / "features.hdf5").rename(tmp_path / name)  # old releases call it .h5
    assert sample_ids(import_arrays(tmp_path / name, str(tmp_path / "a.zarr"))) == names


def test_an_npy_file_is_named_by_a_text_file_when_told_so(tmp_path: Path) -> None:
    formats.save_like_thingsvision(tmp_path, features(), "npy", list("abcdefg"))
    alone = import_arrays(tmp_path / "features.npy", str(tmp_path / "a.zarr"))
    assert sample_ids(alone) == list("0123456")  # as ever
    names = str(tmp_path / "file_names.txt")
    told = import_arrays(tmp_path / "features.npy", str(tmp_path / "b.zarr"), sample_id=names)
    assert sample_ids(told) == list("abcdefg")


def test_an_array_of_names_goes_before_a_text_file(tmp_path: Path) -> None:
    path = formats.write_hdf5(tmp_path, {"features": features(), "sample_id": np.array(list("abcdefg"))})
    formats.write_file_names(tmp_path, ["x"])
    assert sample_ids(import_arrays(path, str(tmp_path / "a.zarr"))) == list("abcdefg")


def test_parts_are_joined_by_number_and_not_by_name(tmp_path: Path) -> None:
    values = features((23, 4, 3))
    formats.extract_like_thingsvision(tmp_path, values, 2)  # features_10-12 sorts before features_2-4
    assert np.array_equal(import_arrays(tmp_path, str(tmp_path / "a.zarr")).read(0, 23), values)


def test_flattened_maps_are_taken_with_their_shape(tmp_path: Path) -> None:
    maps = features((7, 5, 2, 3))
    formats.save_like_thingsvision(tmp_path, maps.reshape(7, -1), "hdf5", [f"b{i}.png" for i in range(7)])
    sentence = r"^[^\n]* have shape \(7, 30\); expected [^\n]* tell the spatial shape\.$"
    with pytest.raises(InvalidInputError, match=sentence):
        import_arrays(tmp_path, str(tmp_path / "a.zarr"))
    with pytest.raises(InvalidInputError, match=r"^[^\n]* have 30 values a sample, which no number of maps[^\n]*$"):
        import_arrays(tmp_path, str(tmp_path / "a.zarr"), spatial_shape=(4, 4))
    flat = import_arrays(tmp_path, str(tmp_path / "a.zarr"), spatial_shape=(2, 3))
    np.save(tmp_path / "maps.npy", maps)
    names = str(tmp_path / "file_names.txt")
    assert content(flat) == content(import_arrays(tmp_path / "maps.npy", str(tmp_path / "b.zarr"), sample_id=names))


@pytest.mark.parametrize("names", [[], ["a.jpg"] * 6, ["a.jpg"] * 8])
@pytest.mark.parametrize("file_format", ["hdf5", "npy"])
def test_names_of_another_number_are_refused(tmp_path: Path, file_format: str, names: list[str]) -> None:
    formats.save_like_thingsvision(tmp_path, features(), file_format, names)
    found = max(1, len(names))
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*file_names\.txt names {found} samples, and [^\n]* of 7; [^\n]*$"):
        import_arrays(tmp_path, str(tmp_path / "a.zarr"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], r"is neither a Zarr store nor has it features as thingsvision writes them"),
        (
            ["features.pt", "features.mat", "features.txt"],
            r"is neither a Zarr store nor has it features as thingsvision writes them",
        ),
        (["features.npy", "features_01.npy"], r"has features\.npy and features_01\.npy; give the path of the one"),
        (["features_01.npy", "features_03.npy"], r"there is features_03\.npy where part 2 is expected"),
        (["features_1.npy", "features_01.npy"], r"there is features_0?1\.npy where part 2 is expected"),
        (
            ["features_0-7.npy", "features_9-16.npy"],
            r"features_9-16\.npy holds 7 samples where those from 7 on are expected",
        ),
        (
            ["features_0-7.npy", "features_7-16.npy"],
            r"features_7-16\.npy holds 7 samples where those from 7 on are expected",
        ),
        (["features_0-7.npy", "features_7.npy"], r"features_7\.npy holds 7 samples where those from 7 on are expected"),
    ],
)
def test_a_folder_that_cannot_be_told_is_refused(tmp_path: Path, files: list[str], sentence: str) -> None:
    for name in files:
        with (tmp_path / name).open("wb") as file:
            np.save(file, features())
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        import_arrays(tmp_path, str(tmp_path / "a.zarr"))


def test_parts_of_different_shapes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "features_01.npy", features())
    np.save(tmp_path / "features_02.npy", features((7, 4, 2)))
    with pytest.raises(InvalidInputError, match=r"^features_01\.npy and features_02\.npy in [^\n]* of shapes [^\n]*$"):
        import_arrays(tmp_path, str(tmp_path / "a.zarr"))
