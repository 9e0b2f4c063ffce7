"""Arrays that other programs wrote, behind one small protocol (:mod:`.protocol`): one module for each format."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from semrsm_dist.extraction.sources.protocol import Source
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import Location, storage_errors

FORMATS = "an .npz, .npy, .h5 or .hdf5 file, a Zarr store, or a folder of thingsvision"
"""What can be imported, for a sentence."""


def open_source(path: str | os.PathLike[str]) -> AbstractContextManager[Source]:
    """Open a file, folder or object-store prefix of arrays, whatever its format.

    Parameters
    ----------
    path
        An ``.npz``, ``.npy``, ``.h5`` or ``.hdf5`` file; a Zarr group or array (format 2 or 3), local or by URL;
        or a folder that thingsvision wrote its features to.

    Returns
    -------
    context manager of Source
        The arrays, open until the end of the ``with`` statement.

    Raises
    ------
    StoreNotFoundError
        When there is nothing at this path.
    InvalidInputError
        When it is of no format that is read, or damaged.
    """
    # Modules are imported when their format is met: h5py takes a while.
    from semrsm_dist.extraction.sources.zarr_stores import is_zarr, open_zarr

    text = os.path.expanduser(os.fspath(path))
    location = Location.of(text)
    local = location.local_path if "://" in text else Path(text)
    if local is None:
        if not is_zarr(location):
            raise StoreNotFoundError(f"There is no Zarr array or group at {location}; files are imported from a local path.")
        return open_zarr(location)
    with storage_errors(text):
        if not local.exists():
            raise StoreNotFoundError(f"There is no file {local}; check the path.")
    if local.is_dir():
        if is_zarr(location):
            return open_zarr(location)
        from semrsm_dist.extraction.sources.thingsvision import open_folder

        return open_folder(local)
    return open_file(local)


def open_file(path: Path) -> AbstractContextManager[Source]:
    """Open a file of arrays by its suffix; raises as :func:`open_source` does."""
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        from semrsm_dist.extraction.sources.numpy_files import open_numpy

        return open_numpy(path)
    if suffix in (".h5", ".hdf5"):
        from semrsm_dist.extraction.sources.hdf5_files import open_hdf5

        return open_hdf5(path)
    raise InvalidInputError(f"{path} cannot be imported; expected {FORMATS}.")
