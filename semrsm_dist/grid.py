"""Tiles of the pair grid, and the grids: which tiles are to be computed.

>>> grid = SymmetricGrid(n_samples=250, tile_size=100)
>>> [str(key) for key in grid.tile_keys()]
['(0, 0)', '(0, 1)', '(0, 2)', '(1, 1)', '(1, 2)', '(2, 2)']
>>> grid.slices(TileKey(row=1, column=2))
(slice(100, 200, None), slice(200, 250, None))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from storage_schemas.errors import InvalidInputError

DEFAULT_TILE_SIZE = 100


@dataclass(frozen=True, order=True, slots=True)
class TileKey:
    """Coordinates of one tile in the grid of tiles: the unit of work, of storage and of resume.

    >>> TileKey(row=3, column=7) < TileKey(row=4, column=0)
    True
    """

    row: int
    """Row of tiles, from 0."""
    column: int
    """Column of tiles, from 0."""

    def __str__(self) -> str:
        return f"({self.row}, {self.column})"

    @property
    def on_diagonal(self) -> bool:
        """Whether the tile pairs a block of samples with itself, in a grid whose rows are its columns."""
        return self.row == self.column


class Grid(Protocol):
    """Which tiles of an ``N × M`` pair grid are computed."""

    @property
    def tile_size(self) -> int:
        """Rows and columns of a whole tile."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, M)``."""

    @property
    def symmetric(self) -> bool:
        """Whether columns are the rows, so that each unordered pair is computed once."""

    @property
    def n_tiles(self) -> int:
        """How many tiles are planned."""

    @property
    def n_pairs(self) -> int:
        """How many pairs of samples are computed; a symmetric grid counts each unordered pair once."""

    def tile_keys(self) -> Iterator[TileKey]:
        """The planned tiles in row-major order."""

    def slices(self, key: TileKey) -> tuple[slice, slice]:
        """The rows and columns a tile stands for."""

    def describe(self) -> dict[str, Any]:
        """The grid as a mapping for :func:`grid_from`, which is what an RSM store keeps."""


@dataclass(frozen=True)
class RectangularGrid:
    """Every pair of ``n_rows`` queries and ``n_columns`` database samples."""

    n_rows: int
    n_columns: int
    tile_size: int = DEFAULT_TILE_SIZE
    symmetric = False

    def __post_init__(self) -> None:
        _check_counts(self.n_rows, self.n_columns, self.tile_size)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_rows, self.n_columns

    @property
    def n_tiles(self) -> int:
        return _count(self.n_rows, self.tile_size) * _count(self.n_columns, self.tile_size)

    @property
    def n_pairs(self) -> int:
        return self.n_rows * self.n_columns

    def tile_keys(self) -> Iterator[TileKey]:
        for row in range(_count(self.n_rows, self.tile_size)):
            for column in range(_count(self.n_columns, self.tile_size)):
                yield TileKey(row, column)

    def slices(self, key: TileKey) -> tuple[slice, slice]:
        return _slices(key, self.shape, self.tile_size)

    def describe(self) -> dict[str, Any]:
        return {"kind": "rectangular"}


@dataclass(frozen=True)
class SymmetricGrid:
    """Every unordered pair of ``n_samples`` samples: the tiles on and above the diagonal."""

    n_samples: int
    tile_size: int = DEFAULT_TILE_SIZE
    symmetric = True

    def __post_init__(self) -> None:
        _check_counts(self.n_samples, self.n_samples, self.tile_size)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_samples, self.n_samples

    @property
    def n_tiles(self) -> int:
        count = _count(self.n_samples, self.tile_size)
        return count * (count + 1) // 2

    @property
    def n_pairs(self) -> int:
        return self.n_samples * (self.n_samples + 1) // 2

    def tile_keys(self) -> Iterator[TileKey]:
        count = _count(self.n_samples, self.tile_size)
        for row in range(count):
            for column in range(row, count):
                yield TileKey(row, column)

    def slices(self, key: TileKey) -> tuple[slice, slice]:
        return _slices(key, self.shape, self.tile_size)

    def describe(self) -> dict[str, Any]:
        return {"kind": "symmetric"}


@dataclass(frozen=True)
class MinibatchGrid:
    """Unordered pairs within consecutive batches only: blocks along the diagonal, for minibatch CKA.

    ``batch_size`` is a multiple of ``tile_size``, so that a tile never holds pairs of two batches.
    """

    n_samples: int
    batch_size: int
    tile_size: int = DEFAULT_TILE_SIZE
    symmetric = True

    def __post_init__(self) -> None:
        _check_counts(self.n_samples, self.n_samples, self.tile_size)
        if self.batch_size < 1 or self.batch_size % self.tile_size:
            raise InvalidInputError(
                f"A batch size of {self.batch_size} is not a multiple of the tile size {self.tile_size}; "
                "choose a tile size that divides it."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_samples, self.n_samples

    @property
    def batches(self) -> list[slice]:
        """The samples of each batch; the last one may be smaller."""
        starts = range(0, self.n_samples, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.n_samples)) for start in starts]

    @property
    def n_tiles(self) -> int:
        counts = [_count(batch.stop - batch.start, self.tile_size) for batch in self.batches]
        return sum(count * (count + 1) // 2 for count in counts)

    @property
    def n_pairs(self) -> int:
        sizes = [batch.stop - batch.start for batch in self.batches]
        return sum(size * (size + 1) // 2 for size in sizes)

    def tile_keys(self) -> Iterator[TileKey]:
        for batch in self.batches:
            first, end = batch.start // self.tile_size, _count(batch.stop, self.tile_size)
            for row in range(first, end):
                for column in range(row, end):
                    yield TileKey(row, column)

    def slices(self, key: TileKey) -> tuple[slice, slice]:
        return _slices(key, self.shape, self.tile_size)

    def describe(self) -> dict[str, Any]:
        return {"kind": "minibatch", "batch_size": self.batch_size}


def grid_from(description: Mapping[str, Any], shape: tuple[int, int], tile_size: int) -> Grid:
    """The grid of a store from what :meth:`Grid.describe` gave."""
    match description["kind"]:
        case "rectangular":
            return RectangularGrid(*shape, tile_size=tile_size)
        case "symmetric":
            return SymmetricGrid(shape[0], tile_size=tile_size)
        case "minibatch":
            return MinibatchGrid(shape[0], int(description["batch_size"]), tile_size=tile_size)
        case kind:
            raise InvalidInputError(f"There is no grid of kind {kind!r}; known are rectangular, symmetric, minibatch.")


def _count(length: int, tile_size: int) -> int:
    """How many tiles cover a length."""
    return -(-length // tile_size)


def _slices(key: TileKey, shape: tuple[int, int], tile_size: int) -> tuple[slice, slice]:
    """Rows and columns of a tile, cut at the ragged edges."""
    row, column = key.row * tile_size, key.column * tile_size
    return slice(row, min(row + tile_size, shape[0])), slice(column, min(column + tile_size, shape[1]))


def _check_counts(n_rows: int, n_columns: int, tile_size: int) -> None:
    """Refuse empty grids and tiles."""
    if min(n_rows, n_columns) < 1:
        raise InvalidInputError(f"A grid of {n_rows} × {n_columns} samples has no pairs; both sides need a sample.")
    if tile_size < 1:
        raise InvalidInputError(f"The tile size is {tile_size}; it must be at least 1.")
