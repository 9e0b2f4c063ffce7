"""Zarr groups and arrays of format 2 and 3, local or in an object store, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import obstore
import zarr

from semrsm_dist.extraction.sources.protocol import Source, StoredArray, reading, refuse_objects
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location, persist

_METADATA = ("zarr.json", ".zgroup", ".zarray")
_BYTES_CODECS = {"blosc", "bz2", "crc32c", "gzip", "lz4", "lzma", "shuffle", "zlib", "zstd"}
_CHECKSUMS = {"adler32", "crc32", "fletcher32", "jenkins_lookup3"}
_ARRAY_CODECS = {"astype", "bitround", "bytes", "delta", "fixedscaleoffset", "packbits", "quantize", "transpose"}
_BLOSC_HEADER = 16  # bytes, the last four of which are the size of the whole
_CODECS = _BYTES_CODECS | _CHECKSUMS | _ARRAY_CODECS | {"sharding_indexed", "vlen-bytes", "vlen-utf8"}
"""Codecs that turn bytes into numbers and texts. Among those that are left out is pickle, which runs code."""


def is_zarr(location: Location) -> bool:
    """Whether a Zarr array or group is there."""
    return any(location.exists(name) for name in _METADATA)


@contextmanager
def open_zarr(location: Location) -> Iterator[Source]:
    """The arrays of a Zarr group, or a single array as ``features``.

    A chunk that is not there reads as the array's fill value, as Zarr defines it: NaN, which is refused, or 0.
    """
    where = str(location)
    with reading(where):
        store = location.zarr_store(read_only=True)
        root = persist(where, lambda: zarr.open(store, mode="r"))
    if isinstance(root, zarr.Array):
        yield Source(where, ("features",), lambda name: _stored(location, "features", root))
        return

    def open_array(name: str) -> StoredArray:
        found = persist(where, lambda: root[name])
        if not isinstance(found, zarr.Array):
            raise InvalidInputError(f"{name!r} in {where} is a group and not an array; name the group that the array is in.")
        return _stored(location, name, found)

    yield Source(where, _members(location), open_array)


def _members(location: Location) -> tuple[str, ...]:
    """Names of what is in a group."""
    listed = persist(str(location), lambda: obstore.list_with_delimiter(location.store)["common_prefixes"])
    names = sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in listed)
    return tuple(name for name in names if any(location.exists(f"{name}/{file}") for file in _METADATA))


def _stored(location: Location, name: str, array: zarr.Array[Any]) -> StoredArray:
    """One array, when its codecs are known to be harmless."""
    where, metadata = str(location), array.metadata.to_dict()
    codecs = list(_codec_names([metadata.get(key) for key in ("codecs", "filters", "compressor")]))
    unknown = sorted(set(codecs) - _CODECS)
    if unknown:
        raise InvalidInputError(
            f"The array {name!r} in {where} is encoded with {', '.join(unknown)}, which is not read; "
            "save it with Zarr's default codecs."
        )
    if array.dtype.kind == "O":
        raise refuse_objects(where, name)
    if codecs and codecs[-1] == "blosc" and array.shards is None:
        _check_blosc(location / array.path if array.path else location)
    return StoredArray(
        array.shape,
        array.dtype,
        lambda start, stop: persist(where, lambda: np.asarray(array[start:stop])),
        array.chunks[0] if array.chunks else 1,
    )


def _check_blosc(array: Location) -> None:
    """Raise `ValueError` where a local chunk is shorter than its header says: Blosc would read on in the memory behind it."""
    if array.local_path is None:  # an object store takes an object whole or not at all
        return
    for key, size in array.sizes().items():
        if key.rpartition("/")[2] in (*_METADATA, ".zattrs"):
            continue
        with (array.local_path / key).open("rb") as chunk:
            header = chunk.read(_BLOSC_HEADER)
        if len(header) < _BLOSC_HEADER or int.from_bytes(header[-4:], "little") != size:
            raise ValueError(f"its chunk {key} was cut")


def _codec_names(described: Any) -> Iterator[str]:
    """Names of described codecs in order, those inside of shards too."""
    if isinstance(described, (list, tuple)):
        for item in described:
            yield from _codec_names(item)
    elif isinstance(described, Mapping):
        yield str(described.get("id") or described.get("name")).removeprefix("numcodecs.")
        inside = described.get("configuration") or {}
        yield from _codec_names([inside.get("codecs"), inside.get("index_codecs")])
