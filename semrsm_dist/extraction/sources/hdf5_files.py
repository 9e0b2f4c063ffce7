"""HDF5 files, as thingsvision and others write them: the arrays of the root group, read piece by piece.

Only arrays whose bytes are in the file itself are read. A file may also name other files (external links, external
storage, virtual datasets), and would then bring in what its reader did not ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from semrsm_dist.extraction.sources.parts import in_order, joined
from semrsm_dist.extraction.sources.protocol import Source, StoredArray, reading, refuse_objects
from storage_schemas.errors import InvalidInputError, StorageUnavailableError

_PART = re.compile(r"features_(\d+)")  # how thingsvision calls the parts of features that it had to split


@contextmanager
def open_hdf5(path: Path) -> Iterator[Source]:
    """The arrays in the root group of an HDF5 file; parts ``features_01``, ``features_02``, … are joined to ``features``."""
    with reading(str(path)):
        try:
            file = h5py.File(path, "r")
        except BlockingIOError as error:
            raise StorageUnavailableError(f"{path} is being written by another program; wait until it is closed.") from error
    with file:
        with reading(str(path)):
            names = tuple(sorted(name for name in file if isinstance(name, str)))  # bytes where it is not UTF-8
        parts = {name: int(match[1]) for name in names if (match := _PART.fullmatch(name))}

        def open_array(name: str) -> StoredArray:
            if name == "features" and name not in names:
                return joined(str(path), {part: _dataset(file, path, part) for part in in_order(str(path), parts)})
            return _dataset(file, path, name)

        shown = tuple(sorted({*names, "features"})) if parts else names
        beside = path.parent / "file_names.txt"
        yield Source(str(path), shown, open_array, beside if beside.is_file() else None)


def _dataset(file: Any, path: Path, name: str) -> StoredArray:
    """One dataset, when all of it is in the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise _elsewhere(path, name, "is a link to another array or file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InvalidInputError(f"{name!r} in {path} is a group and not an array; save the array in the root of the file.")
    if dataset.is_virtual:
        raise _elsewhere(path, name, "is made of pieces of other arrays or files")
    if dataset.external:
        raise _elsewhere(path, name, "has its values in another file")
    shape, chunk_rows = dataset.shape or (), dataset.chunks[0] if dataset.chunks else 1
    if h5py.check_string_dtype(dataset.dtype) and dataset.dtype.hasobject:
        texts = dataset.asstr(errors="replace")
        return StoredArray(shape, np.dtypes.StringDType(), lambda start, stop: texts[start:stop], chunk_rows)
    if dataset.dtype.hasobject:
        raise refuse_objects(str(path), name)
    return StoredArray(shape, dataset.dtype, lambda start, stop: dataset[start:stop], chunk_rows)


def _elsewhere(path: Path, name: str, how: str) -> InvalidInputError:
    """The error for an array that leads out of its file."""
    return InvalidInputError(f"The array {name!r} in {path} {how}, which is not followed; copy its values into the file.")
