"""What a reader of a format gives: the names of its arrays, and arrays that are read row by row."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import InvalidInputError, SemrsmError, StoreNotFoundError
from storage_schemas.location import storage_errors

_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    SystemError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
)
"""What the libraries of the formats raise where a file does not hold what its header promises."""


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which rows are read: indices along its first axis."""

    shape: tuple[int, ...]
    """Its shape; ``()`` when it has no rows."""
    dtype: np.dtype[Any]
    """Type of its values."""
    read: Callable[[int, int], NDArray[Any]]
    """Gives the rows from a start to a stop."""
    chunk_rows: int = 1
    """Rows that are stored, and decoded, together."""


@dataclass(frozen=True)
class Source:
    """The arrays of a file, folder or object-store prefix while it is open."""

    where: str
    """Its address, for sentences."""
    names: tuple[str, ...]
    """Names of its arrays."""
    open_array: Callable[[str], StoredArray]
    """Opens one of them."""
    file_names: Path | None = None
    """A text file beside it with the name of each sample on a line."""

    def array(self, name: str) -> StoredArray:
        """One array; raises `InvalidInputError` when it is not there, damaged, or of Python objects."""
        if name not in self.names:
            raise InvalidInputError(f"{self.where} has no array {name!r}; it has {', '.join(self.names) or 'none'}.")
        with reading(self.where, name):
            return self.open_array(name)


def in_memory(values: NDArray[Any]) -> StoredArray:
    """An array that was read as a whole."""
    return StoredArray(values.shape, values.dtype, lambda start, stop: values[start:stop])


def refuse_objects(where: str, name: str = "") -> InvalidInputError:
    """The error for an array of Python objects."""
    return InvalidInputError(
        f"{_what(where, name)} holds Python objects, which are not read because reading them can run code; "
        "save it as an array of numbers or texts."
    )


@contextmanager
def reading(where: str, name: str = "") -> Iterator[None]:
    """Turn whatever the library of a format raises into one sentence."""
    what = _what(where, name)
    try:
        with storage_errors(where):
            try:
                yield
            except SemrsmError:
                raise
            except MemoryError as error:
                raise InvalidInputError(
                    f"{what} does not fit into the memory; save it as .npy, HDF5 or Zarr, which are read piece by piece."
                ) from error
            except (*_DAMAGE, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                if "allow_pickle" in str(error) or "Python objects" in str(error):
                    raise refuse_objects(where, name) from error
                raise InvalidInputError(f"{what} is damaged ({_one_line(error)}); save it again.") from error
    except FileNotFoundError as error:
        if isinstance(error, StoreNotFoundError):
            raise
        raise StoreNotFoundError(f"There is no file {error.filename or where}; check the path.") from error


def _what(where: str, name: str) -> str:
    """An array of a file, or the file."""
    return f"The array {name!r} in {where}" if name else where


def _one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
