"""NumPy's own files, never unpickled: ``.npz`` members are read whole, ``.npy`` piece by piece through a memory map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.extraction.sources.protocol import Source, StoredArray, in_memory, reading
from storage_schemas.errors import InvalidInputError


@contextmanager
def open_numpy(path: Path) -> Iterator[Source]:
    """The arrays of an ``.npz`` file, or the one of an ``.npy`` file as ``features``; which one it is, its bytes say."""
    with reading(str(path)):
        with path.open("rb") as file:
            magic = file.read(6)
        if not magic.startswith((b"PK", b"\x93NUMPY")):  # NumPy would take it for a pickle
            raise InvalidInputError(f"{path} is not a NumPy file whatever its name; save the arrays with numpy.savez.")
        if magic.startswith(b"PK"):
            members = np.load(path, allow_pickle=False)
    if not magic.startswith(b"PK"):
        features = mapped(path)
        yield Source(str(path), ("features",), lambda name: features)
        return
    with members:
        yield Source(str(path), tuple(sorted(members.files)), lambda name: in_memory(np.asarray(members[name])))


def mapped(path: Path) -> StoredArray:
    """The array of an ``.npy`` file, mapped anew for each piece so that the pages of the last one are given back."""

    def load() -> NDArray[Any]:
        return np.lib.format.open_memmap(path, mode="r")

    with reading(str(path)):
        whole = load()
    return StoredArray(whole.shape, whole.dtype, lambda start, stop: np.array(load()[start:stop]))
