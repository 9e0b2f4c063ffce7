"""The grids: every pair that is asked for, once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.grid import Grid, MinibatchGrid, RectangularGrid, SymmetricGrid, TileKey, grid_from
from storage_schemas import InvalidInputError

lengths = st.integers(1, 40)
sizes = st.integers(1, 12)


def covered(grid: Grid) -> np.ndarray:
    """How often each cell of the matrix lies in a planned tile."""
    counts = np.zeros(grid.shape, dtype=int)
    for key in grid.tile_keys():
        counts[grid.slices(key)] += 1
    return counts


@given(lengths, lengths, sizes)
def test_rectangular_grid_covers_every_pair_once(n_rows: int, n_columns: int, size: int) -> None:
    grid = RectangularGrid(n_rows, n_columns, size)
    assert (covered(grid) == 1).all()
    assert grid.n_tiles == len(list(grid.tile_keys()))
    assert grid.n_pairs == n_rows * n_columns


@given(lengths, sizes)
def test_symmetric_grid_covers_every_unordered_pair_once(n_samples: int, size: int) -> None:
    grid = SymmetricGrid(n_samples, size)
    counts = covered(grid)
    rows, columns = np.triu_indices(n_samples)
    assert (counts[rows, columns] == 1).all()
    below_diagonal_blocks = np.add.outer(-(np.arange(n_samples) // size), np.arange(n_samples) // size) < 0
    assert (counts[below_diagonal_blocks] == 0).all()
    assert grid.n_tiles == len(list(grid.tile_keys()))
    assert grid.n_pairs == len(rows)


@given(lengths, st.integers(1, 4), sizes)
def test_minibatch_grid_covers_pairs_within_batches_only(n_samples: int, tiles_per_batch: int, size: int) -> None:
    grid = MinibatchGrid(n_samples, tiles_per_batch * size, size)
    batch = np.arange(n_samples) // grid.batch_size
    counts = covered(grid)
    upper = np.triu(np.equal.outer(batch, batch))
    assert (counts[upper] == 1).all()
    assert (counts[~np.equal.outer(batch, batch)] == 0).all()
    assert grid.n_tiles == len(list(grid.tile_keys()))
    assert grid.n_pairs == upper.sum()


@pytest.mark.parametrize("grid", [RectangularGrid(7, 9, 4), SymmetricGrid(9, 4), MinibatchGrid(9, 4, 2)])
def test_a_grid_comes_back_from_its_description(grid: Grid) -> None:
    assert grid_from(grid.describe(), grid.shape, grid.tile_size) == grid


def test_tile_keys_are_ordered_and_print_as_coordinates() -> None:
    assert sorted([TileKey(1, 0), TileKey(0, 2)]) == [TileKey(0, 2), TileKey(1, 0)]
    assert str(TileKey(row=3, column=7)) == "(3, 7)"


def test_a_batch_that_tiles_do_not_fill_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="not a multiple of the tile size 4"):
        MinibatchGrid(20, 10, 4)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="both sides need a sample"):
        RectangularGrid(0, 3)
