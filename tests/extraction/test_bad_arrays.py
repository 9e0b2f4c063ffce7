"""Arrays that cannot be imported: each is refused in one sentence, and nothing in a file is run or followed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr

from semrsm_dist.extraction.arrays import import_arrays
from semrsm_dist.extraction.sources import zarr_stores
from storage_schemas.errors import InvalidInputError, NonFiniteError, SemrsmError, StoreNotFoundError
from tests.extraction import formats
from tests.extraction.formats import ALL, features

GOOD = {"features": features(), "logits": features((7, 2)), "role": np.array(["db"] * 7)}


@pytest.mark.parametrize("form", formats.WITH_NAMES)
@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"x": features()}, {}, "has no array 'features'; it has x"),
        ({"features": features((7, 4))}, {}, r"have shape \(7, 4\); expected"),
        ({"features": np.ones((7, 4, 3), int)}, {}, "are of type int64; expected floating-point"),
        ({"features": np.array(list("abcdefg"))}, {}, "are of type .*; expected floating-point"),
        ({**GOOD, "logits": features((6, 2))}, {}, r"logits in .* expected \(7, classes\)"),
        ({**GOOD, "sample_id": np.array(["a", "b"])}, {}, r"'sample_id' in .* has shape \(2,\)"),
        ({**GOOD, "sample_id": np.array(list("aabcdef"))}, {}, "more than once: a"),
        (GOOD, {"sample_id": "files"}, "has no array 'files'; it has features, logits, role"),
        (GOOD, {"where": {"fold": "query"}}, "has no array 'fold'"),
        (GOOD, {"where": {"role": "query"}}, "No sample in .* has role = query; role is one of db"),
    ],
)
def test_arrays_that_do_not_fit_are_told_in_one_sentence(
    tmp_path: Path, form: str, arrays: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        import_arrays(formats.WITH_NAMES[form](tmp_path, arrays), str(tmp_path / "a.zarr"), **options)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused_before_a_store_is_made(tmp_path: Path, form: str, value: float) -> None:
    values = features().astype(float)
    values[4, 1, 1] = value
    with pytest.raises(NonFiniteError, match=r"^The features of sample 4 in [^\n]*$"):
        import_arrays(ALL[form](tmp_path, {"features": values}), str(tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("form", [form for form in ALL if "zarr" not in form and "thingsvision" not in form])
def test_a_file_that_was_cut_is_damaged(tmp_path: Path, form: str) -> None:
    path = ALL[form](tmp_path, {"features": features((50, 4, 3))})
    data = path.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:size])
        with pytest.raises(SemrsmError, match=rf"^[^\n]*{path.name}[^\n]* (is damaged|is not a NumPy file)[^\n]*$"):
            import_arrays(path, str(tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("form", [form for form in ALL if "zarr" in form])
def test_a_chunk_of_zarr_that_was_cut_is_damaged(tmp_path: Path, form: str) -> None:
    path = ALL[form](tmp_path, {"features": features()})
    chunk = max((p for p in path.rglob("*") if p.is_file() and p.suffix != ".json" and not p.name.startswith(".")), key=str)
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(InvalidInputError, match=rf"^The array 'features' in [^\n]*{path.name} is damaged \([^\n]*$"):
        import_arrays(path, str(tmp_path / "a.zarr"))


def _external_link(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("other.h5", "/features")


def _soft_link(file: h5py.File) -> None:
    file["away"] = h5py.ExternalLink("other.h5", "/")
    file["features"] = h5py.SoftLink("/away/features")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("features", (7, 4, 3), "f4", external=[("other.bin", 0, 7 * 4 * 3 * 4)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((7, 4, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "features", (7, 4, 3))
    file.create_virtual_dataset("features", layout)


def _objects(file: h5py.File) -> None:
    file.create_dataset("features", (7, 4, 3), h5py.vlen_dtype(np.float32))


def _references(file: h5py.File) -> None:
    file.create_dataset("features", (7,), h5py.ref_dtype)


def _group(file: h5py.File) -> None:
    file["features/layer1"] = features()


def _nothing(file: h5py.File) -> None:
    file["features"] = h5py.Empty("f4")


def _parts_with_a_gap(file: h5py.File) -> None:
    file["features_01"] = file["features_03"] = features()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_external_link, "is a link to another array or file, which is not followed"),
        (_soft_link, "is a link to another array or file, which is not followed"),
        (_external_storage, "has its values in another file, which is not followed"),
        (_virtual, "is made of pieces of other arrays or files, which is not followed"),
        (_objects, "holds Python objects"),
        (_references, "holds Python objects"),
        (_group, "is a group and not an array"),
        (_nothing, r"have shape \(\); expected"),
        (_parts_with_a_gap, "there is features_03 where part 2 is expected"),
    ],
)
def test_hdf5_that_leads_elsewhere_or_is_no_array_is_refused(
    tmp_path: Path, make: Callable[[h5py.File], None], sentence: str
) -> None:
    formats.write_hdf5(tmp_path, {"features": features()}, "other.h5")  # what they lead to is there and good
    (tmp_path / "other.bin").write_bytes(features().tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        import_arrays(tmp_path / "a.h5", str(tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


def test_hdf5_that_is_being_written_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = features()
        file.flush()
        command = [sys.executable, "-m", "semrsm_dist.cli", "import", str(tmp_path / "a.h5"), "--out", str(tmp_path / "a.zarr")]
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "is being written by another program" in result.stderr


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("field", ["compressor", "filters"])
def test_zarr_that_is_pickled_is_not_unpickled(tmp_path: Path, field: str) -> None:
    pickled = numcodecs.Pickle().encode(np.array([Bomb(tmp_path / "unpickled")], dtype=object))
    zarr.create_array(tmp_path / "z.zarr", data=features(), chunks=(7, 4, 3), zarr_format=2)
    edit(tmp_path / "z.zarr/.zarray", compressor=None, filters=None)
    codec = {"id": "pickle", "protocol": 5}
    edit(tmp_path / "z.zarr/.zarray", **{field: codec if field == "compressor" else [{"id": "delta", "dtype": "<f4"}, codec]})
    (tmp_path / "z.zarr/0.0.0").write_bytes(pickled)
    with pytest.raises(InvalidInputError, match=r"^[^\n]*pickle[^\n]*$"):
        import_arrays(tmp_path / "z.zarr", str(tmp_path / "a.zarr"))
    assert not (tmp_path / "unpickled").exists()


def edit(path: Path, **fields: Any) -> None:
    """Change some fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_codecs_that_are_not_known_to_be_harmless_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "z.zarr", data=features(), chunks=(7, 4, 3), zarr_format=2)
    edit(tmp_path / "z.zarr/.zarray", compressor={"id": "base64"})
    with pytest.raises(InvalidInputError, match=r"^The array 'features' in [^\n]* is encoded with base64, [^\n]*$"):
        import_arrays(tmp_path / "z.zarr", str(tmp_path / "a.zarr"))
    monkeypatch.setattr(zarr_stores, "_CODECS", zarr_stores._CODECS - {"zstd"})
    sharded = formats.write_zarr(tmp_path, {"features": features()}, shards=True)  # where the codec is one of the shard's
    with pytest.raises(InvalidInputError, match=r"^The array 'features' in [^\n]* is encoded with zstd, [^\n]*$"):
        import_arrays(sharded, str(tmp_path / "a.zarr"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_of_blosc_that_was_cut_is_not_read_beyond_its_end(tmp_path: Path, zarr_format: int) -> None:
    compressor: Any = numcodecs.Blosc() if zarr_format == 2 else zarr.codecs.BloscCodec()
    path = tmp_path / "z.zarr"
    zarr.create_array(path, data=features(), chunks=(7, 4, 3), zarr_format=zarr_format, compressors=compressor)  # type: ignore[arg-type]
    chunk = path / ("0.0.0" if zarr_format == 2 else "c/0/0/0")
    data = chunk.read_bytes()
    for size in (0, 15, 16, len(data) - 1):
        chunk.write_bytes(data[:size])
        with pytest.raises(
            InvalidInputError, match=r"^The array 'features' in [^\n]* is damaged \(its chunk [^\n]* was cut\)[^\n]*$"
        ):
            import_arrays(path, str(tmp_path / "a.zarr"))
    chunk.write_bytes(data)
    assert np.array_equal(import_arrays(path, str(tmp_path / "a.zarr")).read(0, 7), features())


def test_zarr_metadata_that_is_damaged_is_told(tmp_path: Path) -> None:
    path = formats.write_zarr(tmp_path, {"features": features()})
    (path / "features/zarr.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"^The array 'features' in [^\n]* is damaged[^\n]*$"):
        import_arrays(path, str(tmp_path / "a.zarr"))


@pytest.mark.parametrize("form", ["npz", "npy", "zarr 3"])  # the libraries of HDF5 and Blosc are not made for that
def test_whatever_bytes_are_damaged_nothing_but_a_sentence_is_raised(tmp_path: Path, form: str) -> None:
    path = ALL[form](tmp_path, {"features": features()})
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    random = np.random.default_rng(0)
    sentences = []
    for file in files:
        whole = file.read_bytes()
        for _ in range(150 // len(files)):
            damaged = bytearray(whole)
            damaged[random.integers(min(len(whole), 400))] = random.integers(256)
            file.write_bytes(damaged)
            shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
            try:
                import_arrays(path, str(tmp_path / "a.zarr"))
            except SemrsmError as error:
                sentences.append(str(error))
        file.write_bytes(whole)
    assert len(sentences) > 20
    assert not any("\n" in sentence for sentence in sentences)


def test_an_object_store_is_asked_for_zarr_only() -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no Zarr array or group at memory:///a\.npz; files are [^\n]*$"):
        import_arrays("memory:///a.npz", "unused.zarr")


def test_a_folder_with_the_suffix_of_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(InvalidInputError, match=r"^The folder [^\n]*a\.h5 is neither a Zarr store nor [^\n]*$"):
        import_arrays(tmp_path / "a.h5", str(tmp_path / "a.zarr"))
