"""Strips cover every tile once, in order, and follow from the grid alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.grid import Grid, MinibatchGrid, RectangularGrid, SymmetricGrid
from semrsm_dist.reduction.strips import LONGEST, strips_of

sizes = st.integers(1, 40)
grids = st.one_of(
    st.builds(RectangularGrid, sizes, sizes, st.integers(1, 7)),
    st.builds(SymmetricGrid, sizes, st.integers(1, 7)),
    st.builds(lambda n, tiles, size: MinibatchGrid(n, tiles * size, size), sizes, st.integers(1, 4), st.integers(1, 7)),
)


@given(grids, st.integers(1, 9))
def test_strips_are_the_tiles_in_their_order(grid: Grid, longest: int) -> None:
    strips = list(strips_of(grid.tile_keys(), longest))
    assert [key for strip in strips for key in strip.tile_keys()] == list(grid.tile_keys())
    assert all(1 <= len(strip) <= longest for strip in strips)


def test_tiles_that_do_not_follow_one_another_are_not_in_one_strip() -> None:
    keys = [key for key in RectangularGrid(2, 5, 1).tile_keys() if key.column != 2]
    assert [str(strip) for strip in strips_of(keys)] == ["(0, 0:2)", "(0, 3:5)", "(1, 0:2)", "(1, 3:5)"]


@pytest.mark.parametrize("n", [0, 1, LONGEST, LONGEST + 1])
def test_the_longest_strip_is_cut(n: int) -> None:
    keys = list(RectangularGrid(1, max(n, 1), 1).tile_keys())[:n]
    assert [len(strip) for strip in strips_of(keys)] == [LONGEST] * (n // LONGEST) + [n % LONGEST] * bool(n % LONGEST)
