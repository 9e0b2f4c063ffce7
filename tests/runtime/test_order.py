"""Tiles are handed out along a Hilbert curve, which needs few blocks of samples; the plan counts them as workers read them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from semrsm_dist.grid import RectangularGrid, SymmetricGrid, TileKey
from semrsm_dist.runtime.inventory import missing_units
from semrsm_dist.runtime.order import along_the_curve, blocks_read, hilbert_index
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, plan_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, RsmStore

TILES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), unique=True, max_size=50)


@pytest.mark.parametrize("side", [1, 2, 8, 64])
def test_the_curve_goes_from_neighbour_to_neighbour_through_every_tile(side: int) -> None:
    grid = np.array([(row, column) for row in range(side) for column in range(side)])
    index = hilbert_index(grid[:, 0], grid[:, 1])
    assert sorted(index) == list(range(side * side))
    walk = grid[np.argsort(index)]
    assert (np.abs(np.diff(walk, axis=0)).sum(axis=1) == 1).all()


@given(TILES)
def test_no_two_tiles_share_an_index(tiles: list[tuple[int, int]]) -> None:
    rows, columns = (np.array([tile[side] for tile in tiles], dtype=np.int64) for side in (0, 1))
    assert len(set(hilbert_index(rows, columns))) == len(tiles)


@given(TILES)
def test_units_are_the_same_and_those_of_a_tile_stay_together(tiles: list[tuple[int, int]]) -> None:
    norms = [Unit(TileKey(block, 0), "none", "row_norms") for block in range(3)]
    units = norms + [Unit(TileKey(*tile), name) for tile in tiles for name in ("none", "permutation")]
    ordered = along_the_curve(units)
    assert ordered[:3] == norms
    assert sorted(ordered) == sorted(units)
    assert all(first.key == second.key for first, second in zip(ordered[3::2], ordered[4::2], strict=True))


@pytest.mark.parametrize("grid", [RectangularGrid(2000, 20_000), SymmetricGrid(10_000)])
@pytest.mark.parametrize(("room", "share"), [(10, 0.75), (20, 0.6), (40, 0.55)])
def test_the_curve_needs_far_fewer_blocks_than_rows_of_tiles(grid: Any, room: int, share: float) -> None:
    by_row = list(grid.tile_keys())
    by_curve = [unit.key for unit in along_the_curve([Unit(key, "none") for key in by_row])]
    along, across = (
        blocks_read(keys, len(keys), room=room, per_task=30, workers=8, symmetric=grid.symmetric) for keys in (by_curve, by_row)
    )
    assert along <= share * across


def test_reads_beyond_the_replay_are_taken_to_be_like_those_before() -> None:
    keys = [TileKey(0, column) for column in range(50_000)]
    assert blocks_read(keys, len(keys), room=2, per_task=len(keys), workers=1, symmetric=False) == pytest.approx(
        50_000, rel=1e-3
    )


def test_the_plan_says_what_a_worker_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ActivationStore.create(
        str(tmp_path / "a.zarr"), n_samples=47, n_positions=4, n_channels=8, computed_from={}, chunk_samples=10
    )
    for index in range(store.n_chunks):
        part = store.chunk_slice(index)
        store.write_chunk(
            index, np.random.default_rng(index).standard_normal((part.stop - part.start, 4, 8)).astype(np.float32)
        )
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), RsmSettings(("none", "pooled"), tile_size=10))
    run = RunSettings("serial", memory_per_worker=2**30)
    plan = plan_rsm(job, ("none", "pooled"), run)
    read: list[tuple[int, int]] = []
    original = ActivationStore.read

    def counted(self: ActivationStore, start: int, stop: int) -> NDArray[np.floating]:
        read.append((start, stop))
        return original(self, start, stop)

    monkeypatch.setattr(ActivationStore, "read", counted)
    run_rsm(job, ("none", "pooled"), run, plan=plan)
    # Norms are counted as if the tiles found nothing of them in the cache; here everything fits.
    assert plan.bytes_read == 2 * len(read) * 10 * 4 * 8 * 4
    assert sorted(read) == [(start, min(start + 10, 47)) for start in range(0, 47, 10)]
    assert plan.bytes_written == 2 * 15 * (10 * 10 * 8 + 4)


def test_what_is_missing_goes_along_the_curve_too(tmp_path: Path) -> None:
    store = ActivationStore.create(str(tmp_path / "a.zarr"), n_samples=64, n_positions=1, n_channels=2, computed_from={})
    store.write_chunk(0, np.ones((64, 1, 2), dtype=np.float32))
    job = create_rsm(str(store.location), str(store.location), str(tmp_path / "r.zarr"), RsmSettings(("none",), tile_size=8))
    units = along_the_curve(missing_units(RsmStore.open(job.out), ("none",)))
    tiles = [unit.key for unit in units if unit.part == "tile"]
    assert all(abs(a.row - b.row) + abs(a.column - b.column) == 1 for a, b in pairwise(tiles))
