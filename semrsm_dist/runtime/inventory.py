"""What an RSM store should hold, what it lacks, and what in it is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semrsm_dist.grid import Grid, TileKey, grid_from
from semrsm_dist.names import Invariance
from semrsm_dist.progress import Report
from semrsm_dist.runtime.units import Unit
from storage_schemas import DamagedChunkError, IncompleteStoreError, RsmStore
from storage_schemas.rsm import Side


def units_of(store: RsmStore, invariances: Sequence[Invariance]) -> Iterator[Unit]:
    """Every unit of the finished store: norms first, then tiles, the invariances of a tile beside each other."""
    grid = grid_of(store)
    for side in sides_of(store):
        length = grid.shape[0] if side == "row" else grid.shape[1]
        for block in range(-(-length // grid.tile_size)):
            for invariance in invariances:
                yield Unit(TileKey(block, 0), invariance, "row_norms" if side == "row" else "column_norms")
    for key in grid.tile_keys():
        for invariance in invariances:
            yield Unit(key, invariance)


def count_units(store: RsmStore, invariances: Sequence[Invariance]) -> int:
    """How many units :func:`units_of` gives."""
    grid = grid_of(store)
    blocks = sum(-(-length // grid.tile_size) for length in grid.shape[: len(sides_of(store))])
    return (blocks + grid.n_tiles) * len(invariances)


def missing_units(store: RsmStore, invariances: Sequence[Invariance]) -> list[Unit]:
    """The plan minus what one listing of each array finds."""
    tiles = {name: store.present_tiles(name) for name in invariances}
    norms = {(name, side): store.present_norms(name, side) for name in invariances for side in sides_of(store)}

    def present(unit: Unit) -> bool:
        if unit.part == "tile":
            return (unit.key.row, unit.key.column) in tiles[unit.invariance]
        return unit.key.row in norms[unit.invariance, "row" if unit.part == "row_norms" else "column"]

    return [unit for unit in units_of(store, invariances) if not present(unit)]


def damaged_units(store: RsmStore, invariances: Sequence[Invariance], report: Report | None = None) -> dict[Unit, str]:
    """Read every unit of the store; returns those that are missing, damaged or not finite, each with the reason."""
    units = list(units_of(store, invariances))
    found = {}
    bounded = {name for name in invariances if store.has_upper_bounds(name)}
    for number, unit in enumerate(units, start=1):
        try:
            if unit.part == "tile":
                store.read_tile(unit.invariance, unit.key.row, unit.key.column)
                if unit.invariance in bounded:
                    store.read_upper_bounds(unit.invariance, unit.key.row, unit.key.column)
            else:
                store.read_norm_block(unit.invariance, "row" if unit.part == "row_norms" else "column", unit.key.row)
        except (DamagedChunkError, IncompleteStoreError) as error:
            found[unit] = str(error)
        if report:
            report(number, len(units))
    return found


def grid_of(store: RsmStore) -> Grid:
    """The grid of a store."""
    return grid_from(store.grid, store.shape, store.tile_size)


def delete_unit(store: RsmStore, unit: Unit) -> None:
    """Remove a damaged chunk."""
    if unit.part == "tile":
        store.delete_tile(unit.invariance, unit.key.row, unit.key.column)
    else:
        store.delete_norms(unit.invariance, "row" if unit.part == "row_norms" else "column", unit.key.row)


def sides_of(store: RsmStore) -> tuple[Side, ...]:
    """Sides that have norms of their own."""
    return ("row",) if store.symmetric else ("row", "column")
