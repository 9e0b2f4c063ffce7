"""Every format gives the same store, piece by piece."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.cli import main
from semrsm_dist.extraction.arrays import import_arrays
from semrsm_dist.extraction.sources import kept_rows
from storage_schemas import activations
from storage_schemas.errors import InvalidInputError, NonFiniteError, StoreNotFoundError
from storage_schemas.location import Location
from tests.extraction import formats
from tests.extraction.formats import ALL, content, features, sample_ids
from tests.s3.bucket import S3, s3_fixture, s3_server_fixture

__all__ = ["s3_fixture", "s3_server_fixture"]


@settings(max_examples=10, deadline=None)
@given(
    n_samples=st.integers(3, 12),
    sample_shape=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple),
    dtype=st.sampled_from(["<f2", "<f4", "<f8", ">f4"]),
    chunk_bytes=st.sampled_from([16, 200, 1000]),
    slab_bytes=st.sampled_from([16, 200, 1000]),
    largest_slab_bytes=st.sampled_from([64, 10_000]),
    some=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_format_gives_the_same_store(
    n_samples: int,
    sample_shape: tuple[int, ...],
    dtype: str,
    chunk_bytes: int,
    slab_bytes: int,
    largest_slab_bytes: int,
    some: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    arrays = {
        "features": random.normal(size=(n_samples, *sample_shape)).astype(dtype),
        "logits": random.normal(size=(n_samples, 3)).astype(dtype),
        "sample_id": np.array([f"bild {i} ü" for i in range(n_samples)]),
        "fold": random.permutation(n_samples) % 2,
    }
    where = {"fold": "1"} if some else None
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(kept_rows, "SLAB_BYTES", slab_bytes)
        patch.setattr(kept_rows, "LARGEST_SLAB_BYTES", largest_slab_bytes)
        for family, wanted, options in (
            (formats.WITH_NAMES, arrays, {"where": where}),
            (formats.FEATURES_ALONE, {"features": arrays["features"]}, {}),
        ):
            expected: dict[str, bytes] | None = None
            for number, write in enumerate({"npz": formats.write_npz, **family}.values()):
                folder = Path(name, f"{len(wanted)} {number}")
                folder.mkdir()
                store = import_arrays(write(folder, wanted), str(folder / "out.zarr"), **options)  # type: ignore[arg-type]
                found = content(store)
                expected = expected or found
                assert found == expected
                rows = arrays["fold"] == 1 if options.get("where") else slice(None)
                stored = arrays["features"][rows].astype(np.float32).reshape(store.n_samples, *sample_shape[:1], -1)
                stored = stored if len(sample_shape) == 2 else stored.transpose(0, 2, 1)
                np.testing.assert_array_equal(store.read(0, store.n_samples), stored)


def test_the_fingerprints_of_imports_are_those_of_0_1_0(tmp_path: Path) -> None:
    values = (np.arange(6 * 4 * 3, dtype=np.float32).reshape(6, 4, 3) - 30) / 7
    logits = np.arange(12, dtype=np.float64).reshape(6, 2) / 3
    np.savez(tmp_path / "a.npz", features=values, logits=logits, sample_id=list("abcdef"), role=["q", "d"] * 3)
    np.save(tmp_path / "a.npy", values.reshape(6, 3, 2, 2).astype(np.float16))
    whole = import_arrays(tmp_path / "a.npz", str(tmp_path / "whole.zarr"))
    some = import_arrays(tmp_path / "a.npz", str(tmp_path / "some.zarr"), where={"role": "d"})
    maps = import_arrays(tmp_path / "a.npy", str(tmp_path / "maps.zarr"))
    assert whole.fingerprint == "96ac1f8b3d20f4b193e90c6db269be34da02429d3997ead6127e57280e156ea0"
    assert some.fingerprint == "808333e79185ea1ba7a8a33baa6dcc905419150d148d991fda83b018f0ac276b"
    assert maps.fingerprint == "e9255281afd4acdfe9643542b68acd0d553bcffd9718a6108492be2ae22af24f"


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", ["npy", "chunked hdf5", "zarr 2"])
def test_an_import_goes_on_where_it_was_interrupted(tmp_path: Path, form: str) -> None:
    path = ALL[form](tmp_path, {"features": features()})
    told: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        told.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_arrays(path, str(tmp_path / "a.zarr"), report_write=interrupt)
    chunks = tmp_path / "a.zarr/features/c"
    before = {chunk: chunk.stat().st_mtime_ns for chunk in chunks.glob("*/0/0")}
    assert told == [(2, 7), (4, 7)] and len(before) == 2
    told.clear()
    store = import_arrays(path, str(tmp_path / "a.zarr"), report_write=lambda done, total: told.append((done, total)))
    assert told == [(6, 7), (7, 7)]
    assert {chunk: chunk.stat().st_mtime_ns for chunk in before} == before
    assert content(store) == content(import_arrays(path, str(tmp_path / "b.zarr")))


@pytest.mark.usefixtures("small_pieces")
def test_progress_counts_samples(tmp_path: Path) -> None:
    path = formats.write_hdf5(tmp_path, {"features": features()})
    read: list[tuple[int, int]] = []
    import_arrays(path, str(tmp_path / "a.zarr"), report=lambda done, total: read.append((done, total)))
    assert read == [(2, 7), (4, 7), (6, 7), (7, 7)]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("form", ["npy", "hdf5", "zarr 3"])
def test_a_file_that_changes_meanwhile_is_not_taken_for_what_was_hashed(tmp_path: Path, form: str) -> None:
    path = ALL[form](tmp_path, {"features": features((20, 64, 64))})
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]
    if form == "zarr 3":
        (tmp_path / "other").mkdir()
        other = ALL[form](tmp_path / "other", {"features": features((20, 64, 64)) + 1})

    def change(done: int, total: int) -> None:
        if done < total:
            return
        for file in files:
            if form == "zarr 3":
                file.write_bytes((other / file.relative_to(path)).read_bytes())
            else:  # a value in the first sample; the file stays open
                with file.open("r+b") as opened:
                    opened.seek(file.read_bytes().index(features((20, 64, 64)).tobytes()))
                    opened.write(bytes(4))

    with pytest.raises(InvalidInputError, match=r"^[^\n]* was changed while it was imported \(sample 0\)[^\n]*$"):
        import_arrays(path, str(tmp_path / "a.zarr"), report=change)


MEMORY = """
import resource, sys
from semrsm_dist.extraction.arrays import import_arrays
from semrsm_dist.extraction.sources import kept_rows, zarr_stores
from storage_schemas import activations

small, large, out = sys.argv[1:]
activations.CHUNK_BYTES = kept_rows.SLAB_BYTES = 4 * 2**20
import_arrays(small, out + "/small.zarr")  # what libraries need once does not count
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_arrays(large, out + "/large.zarr")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("form", ["npy", "hdf5", "zarr 3"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str) -> None:
    rows = np.random.default_rng(0).standard_normal((64, 64, 256), dtype=np.float32)  # 4 MiB
    paths = []
    for name, n_samples in (("small", 128), ("large", 3072)):
        (tmp_path / name).mkdir()
        values = np.broadcast_to(rows, (n_samples // 64, *rows.shape)).reshape(n_samples, 64, 256)
        write = {"npy": formats.write_npy, "hdf5": formats.write_hdf5}.get(form)
        paths.append(
            write(tmp_path / name, {"features": values})
            if write
            else formats.write_zarr(tmp_path / name, {"features": values}, rows=64)
        )
    command = [sys.executable, "-c", MEMORY, *map(str, paths), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 60  # MiB, of a file of 192 MiB


def test_an_array_that_is_not_needed_may_be_of_any_type(tmp_path: Path) -> None:
    path = formats.write_zarr(tmp_path, {"features": features(), "other": features()})
    metadata = (path / "other/zarr.json").read_text()
    (path / "other/zarr.json").write_text(metadata.replace('"float32"', '"bfloat16"'))
    assert import_arrays(path, str(tmp_path / "a.zarr")).n_samples == 7


def test_an_activation_store_can_be_imported(tmp_path: Path) -> None:
    first = import_arrays(formats.write_npz(tmp_path, {"features": features()}), str(tmp_path / "a.zarr"))
    second = import_arrays(tmp_path / "a.zarr", str(tmp_path / "b.zarr"))
    assert content(first) == content(second)
    (tmp_path / "a.zarr/features/c/0/0/0").unlink()  # and reads as NaN, which is not taken for a number
    with pytest.raises(NonFiniteError, match=r"^The features of sample 0 in [^\n]*$"):
        import_arrays(tmp_path / "a.zarr", str(tmp_path / "c.zarr"))


def test_names_that_are_no_unicode_are_replaced(tmp_path: Path) -> None:
    names = np.array(["a\udcff", "b", "ü"])
    store = import_arrays(
        formats.write_npz(tmp_path, {"features": features((3, 2, 2)), "sample_id": names}), str(tmp_path / "a")
    )
    assert sample_ids(store) == ["a?", "b", "ü"]
    path = formats.write_hdf5(tmp_path, {"features": features((3, 2, 2)), "sample_id": np.array([b"\xff", b"b", "ü".encode()])})
    assert sample_ids(import_arrays(path, str(tmp_path / "b"))) == ["\ufffd", "b", "ü"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_comes_from_an_object_store_too(tmp_path: Path, s3: S3, zarr_format: int) -> None:
    arrays = {"features": features(), "sample_id": np.array(list("abcdefg"))}
    there = Location.of(f"{s3.url}/arrays.zarr")
    formats.fill_group(zarr.open_group(there.zarr_store(), mode="w", zarr_format=zarr_format), arrays)  # type: ignore[arg-type]
    store = import_arrays(there.url, str(tmp_path / "a.zarr"))
    assert content(store) == content(import_arrays(formats.write_npz(tmp_path, arrays), str(tmp_path / "b.zarr")))
    with pytest.raises(StoreNotFoundError, match=r"^There is no Zarr array or group at s3://[^\n]*$"):
        import_arrays(f"{s3.url}/nothing.zarr", str(tmp_path / "c.zarr"))


def test_the_command_line_tells_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    formats.save_like_thingsvision(tmp_path, features(), "hdf5", [f"b{i}.jpg" for i in range(7)])
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path), "--out", str(tmp_path / "a.zarr")])
    output = capfd.readouterr()
    assert not ended.value.code
    assert "features of 7 samples, S = 4, C = 3" in output.out
    assert [line.split(" (")[0] for line in output.err.splitlines()] == ["Reading: 7 of 7 samples", "Writing: 7 of 7 samples"]
