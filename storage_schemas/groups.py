"""Zarr groups and arrays as both stores need them: NaN-filled, checksummed, every chunk written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec
from zarr.core.array_spec import ArrayConfigParams
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import GroupMetadata
from zarr.errors import ContainsArrayError, ContainsGroupError, GroupNotFoundError

from storage_schemas.errors import (
    DamagedChunkError,
    IncompleteStoreError,
    SchemaVersionError,
    StorageUnavailableError,
    StoreNotFoundError,
)
from storage_schemas.fingerprint import check_same, fingerprint, package_versions
from storage_schemas.location import Location, persist

_ALWAYS_WRITE: ArrayConfigParams = {"write_empty_chunks": True}  # not persisted by Zarr, so set on every open


_COORDINATES = re.compile(r"\d+(/\d+)*")  # anything else in a folder of chunks is not ours


def create_group(
    location: Location,
    schema: str,
    version: int,
    computed_from: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> zarr.Group:
    """A new group, or the existing one when it was computed from the same; raises `FingerprintMismatchError`."""
    if location.exists("zarr.json"):
        group = open_group(location, schema, version, writable=True)
        check_same(str(location), cast("Mapping[str, Any]", group.attrs["computed_from"]), computed_from)
        return group
    described = {
        "schema": schema,
        "version": version,
        "fingerprint": fingerprint(computed_from),
        "computed_from": dict(computed_from),
        "packages": package_versions(),
        **attributes,
    }
    try:
        return persist(str(location), lambda: zarr.create_group(location.zarr_store(), attributes=described))
    except ContainsGroupError:  # another run was faster, or the answer to the first try was lost
        return create_group(location, schema, version, computed_from, attributes)


def open_group(location: Location, schema: str, version: int, *, writable: bool = False) -> zarr.Group:
    """An existing group of this schema and version; raises `StoreNotFoundError` and `SchemaVersionError`."""
    if not location.exists("zarr.json"):
        raise StoreNotFoundError(f"There is no Zarr store at {location}; check the path.")
    zarr_store = location.zarr_store(read_only=not writable)
    mode: Literal["r", "r+"] = "r+" if writable else "r"
    try:
        group = persist(str(location), lambda: zarr.open_group(zarr_store, mode=mode, zarr_format=3))
    except (GroupNotFoundError, ValueError) as error:
        raise SchemaVersionError(f"{location} is not a group of semrsm-dist; expected a {schema} store.") from error
    found, found_version = group.attrs.get("schema"), group.attrs.get("version")
    if found != schema:
        raise SchemaVersionError(f"{location} holds {found or 'no known schema'}; expected a store of schema {schema}.")
    if found_version != version:
        raise SchemaVersionError(
            f"{location} has version {found_version} of the {schema} schema and this release reads version {version}; "
            "use the release that wrote it, or compute it again."
        )
    return group


def create_array(
    location: Location,
    path: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: str,
    dimension_names: Sequence[str],
    compressors: Sequence[BytesBytesCodec] = (),
    shards: Sequence[int] | None = None,
) -> zarr.Array[Any]:
    """A new float array whose chunks end in a CRC32C, filled with NaN; one that is there already is opened.

    With ``shards``, objects of that shape hold many chunks each, and an index with a checksum of its own.
    """
    if "/" in path:
        _require_group(location, path.rpartition("/")[0])
    if location.exists(f"{path}/zarr.json"):
        return open_array(location, path, writable=True)

    def create() -> zarr.Array[Any]:
        return zarr.create_array(
            location.zarr_store(),
            name=path,
            shape=tuple(shape),
            chunks=tuple(chunks),
            shards=None if shards is None else tuple(shards),
            dtype=dtype,
            fill_value=np.nan,
            filters=None,
            compressors=[*compressors, Crc32cCodec()],
            dimension_names=tuple(dimension_names),
            config=_ALWAYS_WRITE,
        )

    with suppress(ContainsArrayError):
        return persist(str(location), create)
    return open_array(location, path, writable=True)  # another run was faster, or the answer to the first try was lost


def _require_group(location: Location, path: str) -> None:
    """Write the metadata of a group inside a store unless it is there and whole.

    In one put, which replaces a damaged one: runs that start together write the same bytes, and none sees it missing.
    """
    with suppress(ValueError, KeyError, TypeError):
        if json.loads(location.peek(f"{path}/zarr.json") or b"")["node_type"] == "group":
            return
    for key, metadata in GroupMetadata().to_buffer_dict(default_buffer_prototype()).items():
        location.put(f"{path}/{key}", metadata.to_bytes())


def open_array(location: Location, path: str, *, writable: bool = False) -> zarr.Array[Any]:
    """An existing array, set to write every chunk."""
    if not location.exists(f"{path}/zarr.json"):
        raise IncompleteStoreError(f"{location} has no {path}; it has not been computed yet.")
    zarr_store = location.zarr_store(read_only=not writable)
    mode: Literal["r", "r+"] = "r+" if writable else "r"
    try:
        array = persist(str(location), lambda: zarr.open_array(zarr_store, path=path, mode=mode, zarr_format=3))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedChunkError(
            f"{location}/{path}/zarr.json is damaged ({error}); delete that file and run the same command again."
        ) from error
    return cast("zarr.Array[Any]", array.with_config(_ALWAYS_WRITE))


def read_selection(location: Location, array: zarr.Array[Any], *selection: slice) -> NDArray[Any]:
    """Values of a selection; raises :class:`DamagedChunkError` where a checksum or the decoding fails."""
    for last in (location.local_path is not None, True):  # what the network damaged is whole the second time
        try:
            return persist(str(location), lambda: np.asarray(array[selection]))
        except (ValueError, RuntimeError) as error:
            if last:
                spans = ", ".join(f"{part.start}:{part.stop}" for part in selection)
                raise DamagedChunkError(
                    f"{location}/{array.path} is damaged within [{spans}] ({error}); compute that part again."
                ) from error
    raise AssertionError("unreachable")


def write_selection(location: Location, array: zarr.Array[Any], values: NDArray[Any], *selection: slice) -> None:
    """Write values into a selection; once more when a sweep took the temporary file of the first try."""
    for last in (False, False, True):
        try:
            persist(str(location), lambda: array.__setitem__(selection, values))
            return
        except StorageUnavailableError as error:
            if last or "os error 2)" not in str(error.__cause__):
                raise


def chunk_indices(sizes: Mapping[str, int], path: str, *, exact_bytes: int | None = None) -> set[tuple[int, ...]]:
    """Chunk coordinates of an array among the listed objects.

    Parameters
    ----------
    sizes
        Object keys and their sizes in bytes, as :meth:`Location.sizes` lists them.
    path
        The array's path inside the store.
    exact_bytes
        Size of a whole chunk when the codecs fix it; another size is a truncated chunk and is left out.

    >>> sorted(chunk_indices({"m/c/0/1": 12, "m/c/0/0": 8, "m/zarr.json": 9}, "m", exact_bytes=12))
    [(0, 1)]
    """
    prefix = f"{path}/c/"
    found = set()
    for key, size in sizes.items():
        if (
            key.startswith(prefix)
            and _COORDINATES.fullmatch(key, len(prefix))
            and (size == exact_bytes if exact_bytes is not None else size > 4)
        ):
            found.add(tuple(int(part) for part in key[len(prefix) :].split("/")))
    return found
