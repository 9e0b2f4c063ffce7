"""RSM stores: matched inner products and norms, in float64, one Zarr chunk for each tile.

    inner_product/<invariance>  (N, M)   one chunk is one tile
    row_norms/<invariance>      (N,)     one chunk is one block of samples
    column_norms/<invariance>   (M,)     absent when the grid is symmetric: the columns are the rows
    upper_bound/<invariance>    (N, M)   when wanted: what no matching exceeds, chunked like the inner products
    centre                      (S, C) or (C,) when features were centred

A symmetric store holds the tiles on and above the diagonal; :meth:`RsmStore.read_tile` transposes for those below.
Tiles are not compressed (float64 inner products do not compress), so their size is fixed and the listing that finds
missing tiles finds truncated ones too.

A published store (``semrsm finalise``) holds the whole matrix, in shards of many tiles each, and is read only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_schemas import groups
from storage_schemas.errors import IncompleteStoreError, InvalidInputError, NonFiniteError
from storage_schemas.location import Location

SCHEMA, VERSION = "rsm", 1
Side = Literal["row", "column"]
MANIFEST, PUBLISHED = "manifest.json", "shard_tiles"
"""What is written last into a published store, and the attribute that tells one."""
_CRC_BYTES = 4


@dataclass(frozen=True)
class RsmStore:
    """An ``N × M`` RSM under one or more invariances; make one with :meth:`create` or :meth:`open`."""

    location: Location
    """Where the group is."""
    group: zarr.Group
    """The Zarr group, for its attributes."""
    _arrays: dict[str, zarr.Array[Any]] = field(default_factory=dict, repr=False, compare=False)
    _bounded: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        url: str | Location,
        *,
        n_rows: int,
        n_columns: int,
        grid: Mapping[str, Any],
        tile_size: int,
        computed_from: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create a store, or open the existing one to go on with it.

        Parameters
        ----------
        url
            Directory or object-store URL, by custom ending in ``.zarr``.
        n_rows, n_columns
            ``N`` and ``M``.
        grid
            ``{"kind": "rectangular" | "symmetric" | "minibatch", …}``: which tiles are planned.
        tile_size
            Rows and columns of a tile.
        computed_from
            Everything the numbers depend on; the store's fingerprint is made of it.
        provenance
            Further attributes that are for the reader and not part of the fingerprint.

        Raises
        ------
        FingerprintMismatchError
            When a store is there that was computed from something else.
        """
        location = Location.of(url)
        attributes = {"shape": [n_rows, n_columns], "grid": dict(grid), "tile_size": tile_size, **(provenance or {})}
        group = groups.create_group(
            location, SCHEMA, VERSION, {**computed_from, "grid": dict(grid), "tile_size": tile_size}, attributes
        )
        _refuse_to_write(location, group)
        return cls(location, group)

    @classmethod
    def open(cls, url: str | Location, *, writable: bool = False) -> Self:
        """Open an existing store, published or not.

        Raises
        ------
        StoreNotFoundError, SchemaVersionError
            When there is none, or none that this release reads.
        IncompleteStoreError
            When its publication was not finished.
        InvalidInputError
            When a published store is to be written.
        """
        location = Location.of(url)
        group = groups.open_group(location, SCHEMA, VERSION, writable=writable)
        if writable:
            _refuse_to_write(location, group)
        if PUBLISHED in group.attrs and not location.exists(MANIFEST):
            raise IncompleteStoreError(f"{location} has not been published to its end; run `semrsm finalise` again.")
        return cls(location, group)

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's attributes."""
        return dict(self.group.attrs)

    @property
    def fingerprint(self) -> str:
        """Hash of everything the numbers depend on."""
        return str(self.group.attrs["fingerprint"])

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, M)``."""
        n_rows, n_columns = cast("list[int]", self.group.attrs["shape"])
        return n_rows, n_columns

    @property
    def tile_size(self) -> int:
        """Rows and columns of a whole tile."""
        return cast("int", self.group.attrs["tile_size"])

    @property
    def grid(self) -> dict[str, Any]:
        """Which tiles are planned, as given to :meth:`create`."""
        return dict(cast("Mapping[str, Any]", self.group.attrs["grid"]))

    @property
    def symmetric(self) -> bool:
        """Whether rows and columns are the same samples, so that only tiles on and above the diagonal are kept."""
        return bool(self.grid["kind"] != "rectangular")

    @property
    def shard_tiles(self) -> int | None:
        """Tiles along each side of a shard of a published store; None while the store is not published."""
        return cast("int | None", self.group.attrs.get(PUBLISHED))

    def invariances(self) -> list[str]:
        """Names of the invariances that the store has an array for."""
        found = {key.split("/")[1] for key in self.location.sizes("inner_product") if key.count("/") == 2}
        return sorted(found)

    def has_upper_bounds(self, invariance: str) -> bool:
        """Whether tiles of this invariance are written with their upper bounds."""
        if invariance not in self._bounded:
            self._bounded[invariance] = self.location.exists(f"upper_bound/{invariance}/zarr.json")
        return self._bounded[invariance]

    def add_invariance(self, invariance: str, *, upper_bounds: bool = False) -> None:
        """Make the arrays of an invariance, and one for the upper bounds if wanted, unless they are there."""
        n_rows, n_columns = self.shape
        size = self.tile_size
        wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
            f"inner_product/{invariance}": ((n_rows, n_columns), ("row", "column")),
            f"row_norms/{invariance}": ((n_rows,), ("row",)),
        }
        if not self.symmetric:
            wanted[f"column_norms/{invariance}"] = ((n_columns,), ("column",))
        if upper_bounds:
            self._bounded[invariance] = True
            wanted[f"upper_bound/{invariance}"] = ((n_rows, n_columns), ("row", "column"))
        for path, (shape, names) in wanted.items():
            groups.create_array(
                self.location,
                path,
                shape=shape,
                chunks=(size,) * len(shape),
                dtype="float64",
                dimension_names=names,
            )

    def present_tiles(self, invariance: str) -> set[tuple[int, int]]:
        """Rows and columns of the tiles that are there at full size, with their upper bounds, from one listing of each."""
        if self.shard_tiles is not None:
            return self._tiles_of_shards(invariance, self.shard_tiles)
        whole = self.tile_size**2 * 8 + _CRC_BYTES
        found = [
            groups.chunk_indices(self.location.sizes(path), path, exact_bytes=whole) for path in self._tile_arrays(invariance)
        ]
        return cast("set[tuple[int, int]]", set.intersection(*found))

    def _tiles_of_shards(self, invariance: str, shard_tiles: int) -> set[tuple[int, int]]:
        """The tiles whose shards are there; which of a shard's tiles are planned is the grid's to know."""
        found = [groups.chunk_indices(self.location.sizes(path), path) for path in self._tile_arrays(invariance)]
        n_rows, n_columns = (-(-length // self.tile_size) for length in self.shape)
        return {
            (row, column)
            for shard in set.intersection(*found)
            for row in range(shard[0] * shard_tiles, min((shard[0] + 1) * shard_tiles, n_rows))
            for column in range(shard[1] * shard_tiles, min((shard[1] + 1) * shard_tiles, n_columns))
        }

    def present_norms(self, invariance: str, side: Side) -> set[int]:
        """Blocks whose norms are there at full size, from one listing."""
        path = f"{side}_norms/{invariance}"
        if self.shard_tiles is not None:  # all in one chunk
            whole = self._array(path).shape[0]
            there = groups.chunk_indices(self.location.sizes(path), path, exact_bytes=whole * 8 + _CRC_BYTES)
            return set(range(-(-whole // self.tile_size))) if there else set()
        whole = self.tile_size * 8 + _CRC_BYTES
        return {index[0] for index in groups.chunk_indices(self.location.sizes(path), path, exact_bytes=whole)}

    def write_tile(
        self,
        invariance: str,
        row: int,
        column: int,
        values: NDArray[np.float64],
        upper_bounds: NDArray[np.float64] | None = None,
    ) -> str:
        """Write one tile and return the checksum of its values.

        Parameters
        ----------
        invariance
            The invariance the values were computed under.
        row, column
            Coordinates of the tile in the grid of tiles.
        values
            ``(n, m)`` float64, smaller than ``tile_size`` at the ragged edges only.
        upper_bounds
            ``(n, m)`` float64, when :meth:`has_upper_bounds`.

        Raises
        ------
        NonFiniteError
            When a value is NaN or infinite.
        InvalidInputError
            When the shape is not that of the tile, a symmetric store is given a tile below the diagonal, or upper bounds are
            missing.
        """
        selection = self._tile_slices(row, column)
        expected = tuple(part.stop - part.start for part in selection)
        if self.symmetric and row > column:
            raise InvalidInputError(f"Tile ({row}, {column}) of {self.location} lies below the diagonal.")
        tiles = [values] if upper_bounds is None else [values, upper_bounds]
        paths = self._tile_arrays(invariance)
        if len(tiles) != len(paths):
            raise InvalidInputError(
                f"{self.location} keeps {len(paths)} arrays under {invariance}, and a tile came with {len(tiles)}: "
                "its upper bounds are stored, or not, for all tiles."
            )
        for tile in tiles:
            if tile.shape != expected:
                raise InvalidInputError(f"Tile ({row}, {column}) of {self.location} has shape {expected}, not {tile.shape}.")
            if not np.isfinite(tile).all():
                raise NonFiniteError(
                    f"Tile ({row}, {column}) under {invariance} holds NaN or infinity; {self.location} refuses it."
                )
        for path, tile in zip(paths, tiles, strict=True):
            groups.write_selection(self.location, self._array(path), tile, *selection)
        return checksum(values)

    def read_tile(self, invariance: str, row: int, column: int) -> NDArray[np.float64]:
        """Values of one tile, ``(n, m)``; a tile below the diagonal of a symmetric store is the transpose of its mirror.

        Raises
        ------
        IncompleteStoreError
            When the tile has not been computed.
        DamagedChunkError
            When its bytes do not match their checksum.
        """
        return self._read_tile("inner_product", invariance, row, column)

    def read_upper_bounds(self, invariance: str, row: int, column: int) -> NDArray[np.float64]:
        """Upper bounds of one tile, ``(n, m)``, like :meth:`read_tile`."""
        return self._read_tile("upper_bound", invariance, row, column)

    def _read_tile(self, kind: str, invariance: str, row: int, column: int) -> NDArray[np.float64]:
        if self.symmetric and row > column:
            return np.ascontiguousarray(self._read_tile(kind, invariance, column, row).T)
        array = self._array(f"{kind}/{invariance}")
        values = groups.read_selection(self.location, array, *self._tile_slices(row, column))
        if not np.isfinite(values).all():
            raise IncompleteStoreError(
                f"Tile ({row}, {column}) under {invariance} of {self.location} has not been computed; finish the run."
            )
        return values

    def delete_tile(self, invariance: str, row: int, column: int) -> None:
        """Remove one tile, so that the next run computes it."""
        for path in self._tile_arrays(invariance):
            self.location.delete(f"{path}/c/{row}/{column}")

    def _tile_arrays(self, invariance: str) -> list[str]:
        """Arrays that every tile has a chunk in; a tile is there when all of them are."""
        paths = [f"inner_product/{invariance}"]
        return [*paths, f"upper_bound/{invariance}"] if self.has_upper_bounds(invariance) else paths

    def write_norms(self, invariance: str, side: Side, block: int, values: NDArray[np.float64]) -> str:
        """Write the norms of one block of samples, ``(n,)``, and return their checksum."""
        if not np.isfinite(values).all():
            raise NonFiniteError(f"Norms of {side} block {block} hold NaN or infinity; {self.location} refuses them.")
        array = self._array(f"{side}_norms/{invariance}")
        start = block * self.tile_size
        groups.write_selection(self.location, array, values, slice(start, start + len(values)))
        return checksum(values)

    def read_norms(self, invariance: str, side: Side) -> NDArray[np.float64]:
        """All norms of one side, ``(N,)`` or ``(M,)``; raises `IncompleteStoreError` while some are missing."""
        name = "row" if self.symmetric else side
        array = self._array(f"{name}_norms/{invariance}")
        values = groups.read_selection(self.location, array, slice(0, array.shape[0]))
        if not np.isfinite(values).all():
            raise IncompleteStoreError(f"{self.location} lacks some {name} norms; finish the run.")
        return values

    def delete_norms(self, invariance: str, side: Side, block: int) -> None:
        """Remove the norms of one block, so that the next run computes them."""
        self.location.delete(f"{side}_norms/{invariance}/c/{block}")

    def read_norm_block(self, invariance: str, side: Side, block: int) -> NDArray[np.float64]:
        """Norms of one block of samples, ``(n,)``."""
        array = self._array(f"{side}_norms/{invariance}")
        start = block * self.tile_size
        stop = min(start + self.tile_size, array.shape[0])
        values = groups.read_selection(self.location, array, slice(start, stop))
        if not np.isfinite(values).all():
            raise IncompleteStoreError(f"{self.location} lacks the norms of {side} block {block}; finish the run.")
        return values

    def has_centre(self) -> bool:
        """Whether the centre has been written."""
        return bool(self.location.sizes("centre/c"))

    def write_centre(self, centre: NDArray[np.float64]) -> None:
        """Write the mean that is subtracted from every sample, ``(S, C)`` or ``(C,)``."""
        groups.create_array(
            self.location,
            "centre",
            shape=centre.shape,
            chunks=centre.shape,
            dtype="float64",
            dimension_names=("position", "channel")[2 - centre.ndim :],
        )
        groups.write_selection(self.location, self._array("centre"), centre, *(slice(None),) * centre.ndim)

    def read_centre(self) -> NDArray[np.float64] | None:
        """The mean that is subtracted from every sample, or None when features are not centred."""
        if not self.has_centre():
            return None
        array = self._array("centre")
        return groups.read_selection(self.location, array, *(slice(0, size) for size in array.shape))

    def _array(self, path: str) -> zarr.Array[Any]:
        """An array of the store, opened once."""
        if path not in self._arrays:
            writable = not self.group.store.read_only
            self._arrays[path] = groups.open_array(self.location, path, writable=writable)
        return self._arrays[path]

    def _tile_slices(self, row: int, column: int) -> tuple[slice, slice]:
        """The rows and columns of a tile."""
        size = self.tile_size
        n_rows, n_columns = self.shape
        return (
            slice(row * size, min((row + 1) * size, n_rows)),
            slice(column * size, min((column + 1) * size, n_columns)),
        )


def _refuse_to_write(location: Location, group: zarr.Group) -> None:
    """Raise :class:`InvalidInputError` when a store is published."""
    if PUBLISHED in group.attrs:
        raise InvalidInputError(
            f"{location} is a published store, which is only read; "
            "choose another output, or go on with the store that it was made of."
        )


def checksum(values: NDArray[np.float64]) -> str:
    """BLAKE2b of the little-endian values in C order, 32 hexadecimal digits."""
    data = np.ascontiguousarray(values, dtype="<f8").tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def events_url(store: Location) -> Location:
    """Where the events of an RSM store are: ``NAME.events`` beside ``NAME.zarr``."""
    return store.parent / f"{store.name.removesuffix('.zarr')}.events"
