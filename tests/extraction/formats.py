"""Small files of features in every format that is imported, as the programs write them whose formats they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from storage_schemas import ActivationStore, tables
from storage_schemas.activations import samples_url

Arrays = Mapping[str, NDArray[Any]]


def write_npz(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    return folder / "arrays.npz"


def write_compressed_npz(folder: Path, arrays: Arrays) -> Path:
    np.savez_compressed(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    return folder / "arrays.npz"


def write_npy(folder: Path, arrays: Arrays) -> Path:
    np.save(folder / "f.npy", arrays["features"])
    return folder / "f.npy"


def write_fortran_npy(folder: Path, arrays: Arrays) -> Path:
    np.save(folder / "f.npy", np.asfortranarray(arrays["features"]))
    return folder / "f.npy"


def write_hdf5(folder: Path, arrays: Arrays, name: str = "arrays.h5", **options: Any) -> Path:
    with h5py.File(folder / name, "w") as file:
        for key, values in arrays.items():
            texts = values.dtype.kind == "U"
            file.create_dataset(key, data=values.tolist() if texts else values, **({} if texts else options))
    return folder / name


def write_chunked_hdf5(folder: Path, arrays: Arrays) -> Path:
    """Chunks that cut samples and positions, as h5py guesses them, compressed and with a checksum."""
    options = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}
    return write_hdf5(folder, arrays, "chunked.hdf5", **options)


def write_zarr(folder: Path, arrays: Arrays, zarr_format: int = 3, rows: int = 2, shards: bool = False) -> Path:
    """A group whose chunks hold some rows, and all but one of the channels or so."""
    group = zarr.open_group(folder / "arrays.zarr", mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    fill_group(group, arrays, rows, shards)
    return folder / "arrays.zarr"


def fill_group(group: zarr.Group, arrays: Arrays, rows: int = 2, shards: bool = False) -> None:
    """Write arrays into a group."""
    for key, values in arrays.items():
        chunks = (min(rows, len(values)), *(max(1, length - 1) for length in values.shape[1:]))
        shape = (2 * chunks[0], *(2 * length for length in chunks[1:])) if shards else None
        if values.dtype.kind == "U" and group.metadata.zarr_format == 3:
            values = values.astype(np.dtypes.StringDType())  # format 3 has no texts of fixed length
        group.create_array(key, data=values, chunks=chunks, shards=shape)


def write_file_names(folder: Path, names: Sequence[str]) -> None:
    """Names of images, as thingsvision writes them beside the features."""
    with (folder / "file_names.txt").open("w") as file:
        for name in names:
            file.write(f"{name}\n")


def save_like_thingsvision(
    folder: Path, features: NDArray[Any], file_format: str, names: Sequence[str] | None = None, splits: int = 1
) -> None:
    """What ``save_features`` of thingsvision leaves in a folder, in one of its formats, whole or split."""
    if names is not None:
        write_file_names(folder, names)
    bounds = np.linspace(0, len(features), splits + 1, dtype=int)
    parts = {f"features_{i:02d}": features[bounds[i - 1] : bounds[i]] for i in range(1, splits + 1)}
    if splits == 1:
        parts = {"features": features}
    if file_format == "hdf5":
        with h5py.File(folder / "features.hdf5", "w") as file:
            for name, part in parts.items():
                file.create_dataset(name, data=part)
    else:
        assert file_format == "npy"
        for name, part in parts.items():
            with (folder / f"{name}.npy").open("wb") as opened:
                np.save(opened, part)


def extract_like_thingsvision(folder: Path, features: NDArray[Any], step: int) -> None:
    """What ``extract_features(output_dir=…, step_size=…)`` of thingsvision leaves in the folder of a module."""
    for start in range(0, len(features), step):
        stop = min(start + step, len(features))
        np.save(folder / f"features_{start}-{stop}.npy", features[start:stop])


WITH_NAMES: dict[str, Callable[[Path, Arrays], Path]] = {
    "npz": write_npz,
    "compressed npz": write_compressed_npz,
    "hdf5": write_hdf5,
    "chunked hdf5": write_chunked_hdf5,
    "zarr 2": lambda folder, arrays: write_zarr(folder, arrays, zarr_format=2, rows=3),
    "zarr 3": write_zarr,
    "zarr 3 in shards": lambda folder, arrays: write_zarr(folder, arrays, shards=True),
}
"""Formats that hold several arrays."""


def _in_folder(write: Callable[[Path, NDArray[Any]], None]) -> Callable[[Path, Arrays], Path]:
    """A writer that gives the folder and not a file."""

    def write_folder(folder: Path, arrays: Arrays) -> Path:
        write(folder, arrays["features"])
        return folder

    return write_folder


def _write_zarr_array(folder: Path, arrays: Arrays, zarr_format: int) -> Path:
    path = folder / f"features{zarr_format}.zarr"
    zarr.create_array(path, data=arrays["features"], chunks=(2, *arrays["features"].shape[1:]), zarr_format=zarr_format)  # type: ignore[arg-type]
    return path


FEATURES_ALONE: dict[str, Callable[[Path, Arrays], Path]] = {
    "npy": write_npy,
    "npy in Fortran's order": write_fortran_npy,
    "zarr 2 array": lambda folder, arrays: _write_zarr_array(folder, arrays, 2),
    "zarr 3 array": lambda folder, arrays: _write_zarr_array(folder, arrays, 3),
    "thingsvision's hdf5": _in_folder(lambda folder, features: save_like_thingsvision(folder, features, "hdf5")),
    "thingsvision's npy": _in_folder(lambda folder, features: save_like_thingsvision(folder, features, "npy")),
    "thingsvision's split hdf5": _in_folder(
        lambda folder, features: save_like_thingsvision(folder, features, "hdf5", splits=3)
    ),
    "thingsvision's split npy": _in_folder(lambda folder, features: save_like_thingsvision(folder, features, "npy", splits=3)),
    "thingsvision's steps": _in_folder(lambda folder, features: extract_like_thingsvision(folder, features, 2)),
}
"""Formats that hold features and nothing else."""

ALL = {**WITH_NAMES, **FEATURES_ALONE}
"""All of them."""


def features(shape: tuple[int, ...] = (7, 4, 3)) -> NDArray[np.float32]:
    """Random features of a shape, the same in every call."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def sample_ids(store: ActivationStore) -> list[str]:
    """What the samples of a store are called."""
    ids: list[str] = tables.read_table(samples_url(store.location), tables.SAMPLES)["sample_id"].to_pylist()
    return ids


def content(store: ActivationStore) -> dict[str, bytes]:
    """Every file of a store and its samples table, but for the name of the file that it was imported from."""
    folder = store.location.local_path
    assert folder is not None
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    metadata = json.loads(found["zarr.json"])
    assert metadata["attributes"].pop("imported_from")
    table = samples_url(store.location).local_path
    assert table is not None
    return {**found, "zarr.json": json.dumps(metadata).encode(), "samples": table.read_bytes()}
