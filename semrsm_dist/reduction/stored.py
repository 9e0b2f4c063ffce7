"""Kernels of an RSM in a store, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from semrsm_dist import kernels
from semrsm_dist.grid import Grid, TileKey, grid_from
from semrsm_dist.matching import check_name
from semrsm_dist.names import Invariance, KernelName, SigmaRule
from semrsm_dist.reduction.sigma import Answer, Question, rbf_of_tile, sigma_squared_of_parts
from semrsm_dist.reduction.strips import MapStrips, Strip, strips_of
from semrsm_dist.rsm import RSM
from storage_schemas import IncompleteStoreError, InvalidInputError, RsmStore


@dataclass(frozen=True)
class StoredRsm:
    """An RSM of a store under one invariance; reads one tile at a time.

    Parameters
    ----------
    store
        The RSM store.
    invariance
        Which inner products.
    sigma
        Rule of the RBF kernel: see :meth:`semrsm_dist.RSM.rbf`.
    map_strips
        How reducers go through the strips of tiles: one after the other in this process, or in parallel.
    """

    store: RsmStore
    invariance: Invariance
    sigma: SigmaRule | float = "median_sq"
    map_strips: MapStrips = map

    def __post_init__(self) -> None:
        known = self.store.invariances()
        if not known:
            raise IncompleteStoreError(f"{self.store.location} holds no inner products yet; run it first.")
        check_name(f"invariance in {self.store.location}", self.invariance, known)

    @cached_property
    def grid(self) -> Grid:
        """The grid of the store."""
        return grid_from(self.store.grid, self.store.shape, self.store.tile_size)

    @cached_property
    def row_norms(self) -> NDArray[np.float64]:
        """Norms of the rows, ``(N,)``."""
        return self.store.read_norms(self.invariance, "row")

    @cached_property
    def column_norms(self) -> NDArray[np.float64]:
        """Norms of the columns, ``(M,)``."""
        return self.store.read_norms(self.invariance, "column")

    @cached_property
    def sigma_squared(self) -> float:
        """``σ²`` of the RBF kernel over the whole RSM."""
        self._read_norms()  # here, and not once in every process
        return sigma_squared_of_parts(
            lambda question: self.map_strips(partial(_ask_strip, self, question), self.strips()), self.sigma
        )

    def prepare(self, kernel: KernelName) -> None:
        """Read norms and σ now where the kernel needs them, so that copies in other processes have them."""
        if kernel != "linear":
            self._read_norms()
        if kernel == "rbf" and self.sigma != "tile":
            _ = self.sigma_squared

    def tile(self, key: TileKey, kernel: KernelName) -> NDArray[np.float64]:
        """A kernel's values of one tile, ``(n, m)``."""
        return self.kernel_of(key, self.inner_product(key), kernel)

    def inner_product(self, key: TileKey) -> NDArray[np.float64]:
        """Matched inner products of one tile, ``(n, m)``."""
        return self.store.read_tile(self.invariance, key.row, key.column)

    def kernel_of(self, key: TileKey, inner_product: NDArray[np.float64], kernel: KernelName) -> NDArray[np.float64]:
        """A kernel's values of one tile from its inner products, ``(n, m)``."""
        if kernel == "linear":
            return kernels.linear(inner_product)
        if kernel == "rbf":
            distance = self.squared_distance_of(key, inner_product)
            return rbf_of_tile(distance) if self.sigma == "tile" else kernels.rbf(distance, self.sigma_squared)
        check_name("kernel", kernel, get_args(KernelName))
        return kernels.cosine(inner_product, *self._norms_of(key))

    def squared_distance(self, key: TileKey) -> NDArray[np.float64]:
        """Squared distances of one tile, ``(n, m)``."""
        return self.squared_distance_of(key, self.inner_product(key))

    def squared_distance_of(self, key: TileKey, inner_product: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared distances of one tile from its inner products, ``(n, m)``."""
        return kernels.squared_distance(inner_product, *self._norms_of(key))

    def strips(self) -> Iterator[Strip]:
        """Strips of the tiles in the store."""
        return strips_of(self.grid.tile_keys())

    def all_strips(self) -> Iterator[Strip]:
        """Strips of every tile of the matrix, those below the diagonal of a symmetric RSM included."""
        return strips_of(self.all_keys())

    @property
    def tiles_of_matrix(self) -> tuple[int, int]:
        """How many tiles the whole matrix has from top to bottom and from left to right."""
        n_rows, n_columns = (-(-length // self.grid.tile_size) for length in self.grid.shape)
        return n_rows, n_columns

    def all_keys(self) -> Iterator[TileKey]:
        """Every tile of the matrix in row-major order, those below the diagonal of a symmetric RSM included."""
        n_rows, n_columns = self.tiles_of_matrix
        if self.grid.describe()["kind"] == "minibatch":
            raise InvalidInputError(f"{self.store.location} holds the pairs within batches only, not a whole matrix.")
        for row in range(n_rows):
            for column in range(n_columns):
                yield TileKey(row, column)

    def distances(self, strip: Strip) -> Iterator[NDArray[np.float64]]:
        """Squared distances, tile by tile: every unordered pair equally often (those of a sample with itself are zero)."""
        for key in strip.tile_keys():
            distances = self.squared_distance(key)
            if self.grid.symmetric and key.on_diagonal:
                yield distances[np.triu_indices(len(distances), 1)]
            else:
                yield distances

    def _read_norms(self) -> None:
        """Read the norms of both sides unless they are there."""
        _ = self.row_norms, self.column_norms

    def _norms_of(self, key: TileKey) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Norms of the rows and of the columns of one tile."""
        rows, columns = self.grid.slices(key)
        return self.row_norms[rows], self.column_norms[columns]


def _ask_strip(stored: StoredRsm, question: Question[Answer], strip: Strip) -> Answer:
    """The answer to a question about the distances of one strip."""
    return question(stored.distances(strip))


def load_rsm(url: str, invariance: Invariance = "permutation") -> RSM:
    """Read a whole RSM into memory.

    Parameters
    ----------
    url
        An RSM store that has been computed.
    invariance
        Which inner products.

    Raises
    ------
    IncompleteStoreError
        While a tile is missing.
    """
    stored = StoredRsm(RsmStore.open(url), invariance)
    values = np.empty(stored.grid.shape)
    bounds = np.empty(stored.grid.shape) if stored.store.has_upper_bounds(invariance) else None
    for key in stored.all_keys():
        part = stored.grid.slices(key)
        values[part] = stored.tile(key, "linear")
        if bounds is not None:
            bounds[part] = stored.store.read_upper_bounds(invariance, key.row, key.column)
    return RSM(values, stored.row_norms, stored.column_norms, stored.grid.symmetric, bounds)
