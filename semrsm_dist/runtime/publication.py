"""Publication of a finished RSM store: few large objects, the whole matrix, a manifest; all of it or nothing.

A store is computed with an object for each tile, so that any worker can write any tile. A million objects are slow to copy
and to list, so one writer puts them into shards of ``shard_tiles × shard_tiles`` tiles (Zarr's sharding codec). Inside a
shard each tile is still a chunk with a CRC32C, and can be read alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from semrsm_dist.grid import Grid, MinibatchGrid, TileKey
from semrsm_dist.names import Invariance
from semrsm_dist.progress import Report
from semrsm_dist.runtime.inventory import grid_of, missing_units, sides_of
from storage_schemas import DamagedChunkError, IncompleteStoreError, InvalidInputError, RsmStore, StoreNotFoundError
from storage_schemas.fingerprint import package_versions
from storage_schemas.groups import create_array, read_selection, write_selection
from storage_schemas.lease import Lease
from storage_schemas.location import Location, persist, relative, resolve, storage_errors
from storage_schemas.rsm import MANIFEST, PUBLISHED, SCHEMA, VERSION, checksum

DEFAULT_SHARD_TILES = 10
ReadTile = Callable[[int, int], NDArray[np.float64]]


def publish(
    source: str | Location, out: str | Location, *, shard_tiles: int = DEFAULT_SHARD_TILES, report: Report | None = None
) -> dict[str, Any]:
    """Write a finished RSM store anew, in shards.

    A symmetric RSM becomes a whole matrix, mirrored below the diagonal. One shard is in memory at a time; it is read back and
    compared with its source to the bit. In a directory everything is written to ``OUT.unfinished`` and renamed; in an object
    store the manifest is written last, and a store without one is refused. What an interrupted publication left is
    removed by the next.

    Parameters
    ----------
    source
        A finished RSM store.
    out
        Where the published store will be. When it is there already and is that of ``source``, nothing is done.
    shard_tiles
        Tiles along each side of a shard.
    report
        Told how many shards have been written.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    IncompleteStoreError
        When something is missing in the source.
    DamagedChunkError
        When a tile of the source is damaged, or the storage does not keep what is written.
    InvalidInputError
        When the source is published already, or something else is at ``out``.
    StoreInUseError
        When another publication is writing ``out``.
    """
    store, target = RsmStore.open(source), Location.of(out)
    if store.shard_tiles is not None:
        raise InvalidInputError(f"{store.location} is published already; copy it as it is, or name the store it was made of.")
    if shard_tiles < 1:
        raise InvalidInputError(f"A shard would have {shard_tiles} tiles along each side; it takes at least 1.")
    _require_complete(store)
    with Lease(target) as lease:
        if target.exists(MANIFEST):
            return _same_publication(store, target, shard_tiles)
        staging = target if target.local_path is None else target.parent / f"{target.name}.unfinished"
        for location in {target, staging}:
            _clear(location)
        manifest = _Publication(store, target, staging, shard_tiles, lease, report).write()
        lease.check()
        staging.put(MANIFEST, json.dumps(manifest, indent=1).encode())
        if staging.local_path is not None and target.local_path is not None:
            with storage_errors(str(target)):
                os.rename(staging.local_path, target.local_path)
    return manifest


def read_manifest(store: Location) -> dict[str, Any]:
    """What a published store says of itself; raises `StoreNotFoundError` and `DamagedChunkError`."""
    try:
        return cast("dict[str, Any]", json.loads(store.get(MANIFEST)))
    except ValueError as error:
        raise DamagedChunkError(f"{store / MANIFEST} is damaged ({error}); publish the store again.") from error


@dataclass
class _Publication:
    """One store on its way into shards."""

    source: RsmStore
    target: Location
    staging: Location
    shard_tiles: int
    lease: Lease
    report: Report | None
    _done: int = 0

    def write(self) -> dict[str, Any]:
        """Everything but the manifest, which is returned."""
        self._write_group()
        centre = self.source.read_centre()
        if centre is not None:
            self._write_whole("centre", centre, ("position", "channel")[2 - centre.ndim :])
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "fingerprint": self.source.fingerprint,
            "shape": list(self.source.shape),
            "tile_size": self.source.tile_size,
            "shard_tiles": self.shard_tiles,
            "invariances": {name: self._write_invariance(name) for name in self.source.invariances()},
            "centre": None if centre is None else checksum(centre),
            "published_with": package_versions(),
        }

    def _write_group(self) -> None:
        """The group, whose attributes are those of the source, seen from where the store will be."""
        attributes = {**self.source.attributes, PUBLISHED: self.shard_tiles}
        for side in ("rows", "columns"):
            if side in attributes:
                attributes[side] = relative(resolve(attributes[side], self.source.location), self.target)
        persist(str(self.staging), lambda: zarr.create_group(self.staging.zarr_store(), attributes=attributes))

    def _write_invariance(self, invariance: str) -> dict[str, Any]:
        """Norms and tiles under one invariance; returns what the manifest says of them."""
        entry: dict[str, Any] = {"tiles": self._grid.n_tiles}
        for side in sides_of(self.source):
            norms = self.source.read_norms(invariance, side)
            self._write_whole(f"{side}_norms/{invariance}", norms, (side,))
            entry[f"{side}_norms"] = checksum(norms)
        entry["inner_product"] = self._write_tiles(f"inner_product/{invariance}", partial(self.source.read_tile, invariance))
        if self.source.has_upper_bounds(invariance):
            read = partial(self.source.read_upper_bounds, invariance)
            entry["upper_bound"] = self._write_tiles(f"upper_bound/{invariance}", read)
        return entry

    def _write_tiles(self, path: str, read: ReadTile) -> str:
        """An array of tiles, shard by shard; returns the hash of the planned tiles' checksums in row-major order."""
        size, shape = self.source.tile_size, self.source.shape
        shards = [min(self.shard_tiles * size, -(-length // size) * size) for length in shape]
        array = create_array(
            self.staging,
            path,
            shape=shape,
            chunks=(size, size),
            shards=shards,
            dtype="float64",
            dimension_names=("row", "column"),
        )
        digest = hashlib.sha256()
        for band, keys in groupby(self._grid.tile_keys(), lambda key: key.row // self.shard_tiles):
            checksums = dict.fromkeys(keys, "")  # of one row of shards, so that memory stays bounded
            for number in range(-(-shape[1] // shards[1])):
                self.lease.check()
                values, slices = self._shard(read, band, number, checksums)
                if values is not None:
                    self._write(path, array, values, *slices)
                self._done += 1
                if self.report:
                    self.report(self._done, self._n_shards)
            digest.update("".join(f"{text}\n" for text in checksums.values()).encode())
        return digest.hexdigest()

    def _shard(
        self, read: ReadTile, band: int, number: int, checksums: dict[TileKey, str]
    ) -> tuple[NDArray[np.float64] | None, tuple[slice, slice]]:
        """Values of one shard, None when no tile of it exists, and the part of the matrix that they are."""
        size, tiles = self.source.tile_size, self.shard_tiles
        rows, columns = (
            slice(index * tiles * size, min((index + 1) * tiles * size, length))
            for index, length in zip((band, number), self.source.shape, strict=True)
        )
        values: NDArray[np.float64] | None = None
        for row in range(rows.start // size, -(-rows.stop // size)):
            for column in range(columns.start // size, -(-columns.stop // size)):
                if not _holds(self._grid, row, column):
                    continue
                tile = read(row, column)
                key = TileKey(row, column)
                if key in checksums:
                    checksums[key] = checksum(tile)
                if values is None:
                    values = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan)
                top, left = row * size - rows.start, column * size - columns.start
                values[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        return values, (rows, columns)

    def _write_whole(self, path: str, values: NDArray[np.float64], names: tuple[str, ...]) -> None:
        """An array that is one chunk."""
        array = create_array(
            self.staging, path, shape=values.shape, chunks=values.shape, dtype="float64", dimension_names=names
        )
        self._write(path, array, values, *(slice(0, length) for length in values.shape))

    def _write(self, path: str, array: zarr.Array[Any], values: NDArray[np.float64], *selection: slice) -> None:
        """Write, read back, and compare every bit."""
        write_selection(self.staging, array, values, *selection)
        written = read_selection(self.staging, array, *selection)
        if not np.array_equal(written.view(np.uint64), values.view(np.uint64)):
            raise DamagedChunkError(
                f"{self.staging / path} does not hold what was written into it; check the disk, and publish again."
            )

    @cached_property
    def _grid(self) -> Grid:
        return grid_of(self.source)

    @cached_property
    def _n_shards(self) -> int:
        """Shards of all arrays."""
        invariances = self.source.invariances()
        arrays = len(invariances) + sum(map(self.source.has_upper_bounds, invariances))
        rows, columns = (-(-length // (self.source.tile_size * self.shard_tiles)) for length in self.source.shape)
        return arrays * rows * columns


def _holds(grid: Grid, row: int, column: int) -> bool:
    """Whether a tile, or its mirror, is planned."""
    if not isinstance(grid, MinibatchGrid):
        return True
    tiles = grid.batch_size // grid.tile_size
    return row // tiles == column // tiles


def _require_complete(store: RsmStore) -> None:
    """Raise :class:`IncompleteStoreError`, naming what is missing."""
    missing = [str(unit) for unit in missing_units(store, cast("list[Invariance]", store.invariances()))]
    if store.attributes["computed_from"].get("centring", "none") != "none" and not store.has_centre():
        missing.insert(0, "the centre")
    if missing or not store.invariances():
        what = f"{len(missing)} parts ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''})" if missing else "all tiles"
        raise IncompleteStoreError(f"{store.location} lacks {what}; give the command that computes it again, then finalise it.")


def _same_publication(store: RsmStore, target: Location, shard_tiles: int) -> dict[str, Any]:
    """The manifest at ``target`` if it is this store's; raises `InvalidInputError` otherwise."""
    manifest = read_manifest(target)
    wanted = {"fingerprint": store.fingerprint, "invariances": store.invariances(), "shard_tiles": shard_tiles}
    found = {**manifest, "invariances": sorted(manifest.get("invariances", ()))}
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise InvalidInputError(
            f"{target} is published already, with another {' and another '.join(differing)}; "
            "choose another output, or remove it."
        )
    return manifest


def _clear(location: Location) -> None:
    """Remove what an interrupted publication left, and nothing else; raises `InvalidInputError` for anything else."""
    keys = location.sizes()
    if keys:
        try:
            ours = PUBLISHED in json.loads(location.get("zarr.json"))["attributes"]
        except (StoreNotFoundError, ValueError, KeyError):
            ours = False
        if not ours:
            raise InvalidInputError(f"{location} is there and is not the rest of a publication; choose another output.")
        for key in sorted(keys, key="zarr.json".__eq__):  # the group last: it tells whose the rest is
            location.delete(key)
    if location.local_path is not None and location.local_path.exists():
        with storage_errors(str(location)):
            shutil.rmtree(location.local_path)
