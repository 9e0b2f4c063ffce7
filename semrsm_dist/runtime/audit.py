"""Audit of a computed store: every chunk read again, and pairs drawn at random computed again, plainly and in float64.

A checksum says that a tile is what was written. That what was written is right is checked here by other means than those
that computed it: affinities in float64, SciPy's exact solver, shifts one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.grid import Grid, TileKey
from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.matching.values import position_norms_squared
from semrsm_dist.names import Invariance
from semrsm_dist.progress import Report
from semrsm_dist.runtime.inventory import damaged_units, grid_of
from semrsm_dist.runtime.units import Unit
from semrsm_dist.tile import centred
from storage_schemas import ActivationStore, RsmStore
from storage_schemas.location import resolve
from storage_schemas.rsm import Side

ROUNDING = 1e-10
"""What sums in float64 may differ by, relative to the product of norms."""


@dataclass(frozen=True)
class Check:
    """One stored number beside the same number computed again."""

    unit: Unit
    """The tile or block of norms that holds it."""
    samples: tuple[int, ...]
    """Row and column of an inner product; one sample of a norm."""
    stored: float
    exact: float
    scale: float
    """What deviations are relative to: the product of the norms, or the norm."""
    shortfall: float = ROUNDING
    """How far, relative to the scale, the stored number may be below the exact one."""

    @property
    def deviation(self) -> float:
        """Difference relative to the scale; infinite when only one of them is zero."""
        difference = abs(self.stored - self.exact)
        return 0.0 if difference == 0 else difference / self.scale if self.scale > 0 else float("inf")

    @property
    def agrees(self) -> bool:
        """Whether the stored number is right."""
        return self.deviation <= (self.shortfall if self.stored < self.exact else ROUNDING)

    def __str__(self) -> str:
        where = f"samples {self.samples[0]} and {self.samples[1]}" if len(self.samples) == 2 else f"sample {self.samples[0]}"
        return f"{where}: {self.stored:.17g} is stored and {self.exact:.17g} was computed"


@dataclass(frozen=True)
class Audit:
    """What reading a store again, and recomputing some of it, came to."""

    n_units: int
    """Tiles and blocks of norms that were read."""
    bad: dict[Unit, str]
    """Those that are missing, damaged or deviate, each with the reason."""
    checks: list[Check] = field(default_factory=list)
    """Every number that was computed again."""

    def largest_deviations(self) -> dict[str, float]:
        """By invariance, over pairs and norms, relative to the norms."""
        found: dict[str, float] = {}
        for check in self.checks:
            found[check.unit.invariance] = max(check.deviation, found.get(check.unit.invariance, 0.0))
        return found


def audit_store(
    store: RsmStore,
    invariances: Sequence[Invariance],
    *,
    n_pairs: int = 20,
    seed: int = 0,
    report: Report | None = None,
    report_pairs: Report | None = None,
) -> Audit:
    """Read every unit of a store, and compute random pairs again from the activations that it names.

    Parameters
    ----------
    store
        The RSM store; it is not changed.
    invariances
        Which ones.
    n_pairs
        How many pairs, the same ones for every invariance; with 0 the activations are not needed.
    seed
        Of the choice of pairs.
    report, report_pairs
        Told how many units have been read, and how many pairs computed.

    Raises
    ------
    StoreNotFoundError
        When pairs are wanted and the activations are not where they were.
    DamagedChunkError
        When the activations of a pair are damaged.
    """
    bad = damaged_units(store, invariances, report)
    checks: list[Check] = []
    if n_pairs:
        activations = _Activations(store)
        pairs = random_pairs(grid_of(store), n_pairs, seed)
        for number, (key, row, column) in enumerate(pairs, start=1):
            checks += _checks_of_pair(store, activations, invariances, key, row, column, bad)
            if report_pairs:
                report_pairs(number, len(pairs))
    for check in checks:
        if not check.agrees:
            bad.setdefault(check.unit, str(check))
    grid = grid_of(store)
    blocks = sum(-(-length // grid.tile_size) for length in (grid.shape[:1] if grid.symmetric else grid.shape))
    return Audit(len(invariances) * (grid.n_tiles + blocks), bad, checks)


def random_pairs(grid: Grid, n_pairs: int, seed: int) -> list[tuple[TileKey, int, int]]:
    """Tiles drawn at random, with a pair of each: row and column of the matrix; of a symmetric one, on or above the diagonal.

    >>> from semrsm_dist.grid import SymmetricGrid
    >>> [(str(key), row, column) for key, row, column in random_pairs(SymmetricGrid(250, 100), 3, seed=0)]
    [('(1, 1)', 126, 130), ('(1, 1)', 104, 107), ('(2, 2)', 200, 208)]
    """
    rng = np.random.default_rng(seed)
    drawn = np.bincount(rng.integers(grid.n_tiles, size=n_pairs), minlength=grid.n_tiles)
    pairs = []
    for key, times in zip(grid.tile_keys(), drawn, strict=True):
        for _ in range(times):
            row, column = (int(rng.integers(part.start, part.stop)) for part in grid.slices(key))
            if grid.symmetric and row > column:
                row, column = column, row
            pairs.append((key, row, column))
    return pairs


def exact_inner_product(
    row: NDArray[np.float32],
    column: NDArray[np.float32],
    invariance: Invariance,
    matching: MatchingSettings,
    spatial_shape: tuple[int, int] | None = None,
) -> float:
    """The matched inner product of two samples, as plainly as it can be computed.

    Parameters
    ----------
    row, column
        Centred samples ``(S, C)``.
    invariance, matching, spatial_shape
        As for :func:`semrsm_dist.matching.alignment`. A greedy matching has no plain form that breaks ties alike: its own code
        computes it.
    """
    if invariance == "permutation" and not matching.certifies:
        greedy = alignment("permutation", matching)
        prepared = [greedy.prepare(sample[None]) for sample in (row, column)]
        return float(greedy.inner_products(*prepared, same=False).inner_products[0, 0])
    first, second = row.astype(np.float64), column.astype(np.float64)
    match invariance:
        case "none":
            return float((first * second).sum())
        case "pooled":
            return float(first.mean(axis=0) @ second.mean(axis=0))
        case "translation":
            assert spatial_shape is not None
            maps = second.reshape(*spatial_shape, -1)
            return max(
                float((first * np.roll(maps, (down, right), axis=(0, 1)).reshape(first.shape)).sum())
                for down in range(spatial_shape[0])
                for right in range(spatial_shape[1])
            )
        case "permutation":
            return _optimum(row, column, len(row) if matching.method == "optimal" else matching.window)


def _optimum(row: NDArray[np.float32], column: NDArray[np.float32], window: int) -> float:
    """The optimal matching inside windows of concept vectors sorted by norm, by SciPy."""
    from scipy.optimize import linear_sum_assignment

    if window < len(row):
        orders = np.argsort(position_norms_squared(np.stack([row, column])), axis=1, kind="stable")
        row, column = row[orders[0]], column[orders[1]]
    total = 0.0
    for start in range(0, len(row), window):
        part = slice(start, start + window)
        affinity = row[part].astype(np.float64) @ column[part].astype(np.float64).T
        total += float(affinity[linear_sum_assignment(affinity, maximize=True)].sum())
    return total


def allowed_shortfall(matching: MatchingSettings, exact: float, scale: float, n_channels: int) -> float:
    """How far a matched inner product may be below the exact optimum, relative to the product of norms.

    The solver's tolerance, and twice what rounding the affinities (to float32, a sum of ``C`` products each) may hide.
    """
    rounding = float(np.sqrt(n_channels)) * 2.0**-23
    if matching.affinity == "bfloat16":
        rounding += 2 * (2 * 2.0**-8 + 2.0**-16)
    tolerance = max(matching.tolerance, 1e-6)  # integer solvers without one resolve about as much
    return rounding + (tolerance * abs(exact) / scale if scale > 0 else 0.0)


class _Activations:
    """Centred samples of both sides of a store, and how they are matched."""

    def __init__(self, store: RsmStore) -> None:
        attributes = store.attributes
        self._rows, self._columns = (
            ActivationStore.open(resolve(attributes[side], store.location)) for side in ("rows", "columns")
        )
        self._centre = store.read_centre()
        described = cast("dict[str, Any]", attributes["computed_from"]["matching"])
        self.matching = MatchingSettings(**described)
        self.spatial_shape = self._rows.spatial_shape

    def pair(self, row: int, column: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two samples ``(S, C)``."""
        return (
            centred(self._rows.read(row, row + 1), self._centre)[0],
            centred(self._columns.read(column, column + 1), self._centre)[0],
        )


def _checks_of_pair(
    store: RsmStore,
    activations: _Activations,
    invariances: Sequence[Invariance],
    key: TileKey,
    row: int,
    column: int,
    unreadable: Collection[Unit],
) -> Iterator[Check]:
    """The inner product and both norms of a pair under every invariance, but for what cannot be read."""
    samples = activations.pair(row, column)
    matching, size = activations.matching, store.tile_size
    sides: tuple[Side, Side] = ("row", "row" if store.symmetric else "column")
    for invariance in invariances:
        norms = [float(np.linalg.norm(_normed(sample, invariance))) for sample in samples]
        tile = Unit(key, invariance)
        if tile not in unreadable:
            stored = store.read_tile(invariance, key.row, key.column)[row - key.row * size, column - key.column * size]
            exact = exact_inner_product(*samples, invariance, matching, activations.spatial_shape)
            scale, shortfall = norms[0] * norms[1], ROUNDING
            if invariance == "permutation" and matching.certifies:
                shortfall = allowed_shortfall(matching, exact, scale, samples[0].shape[1])
            yield Check(tile, (row, column), float(stored), exact, scale, shortfall)
        for side, sample, norm in zip(sides, (row, column), norms, strict=True):
            unit = Unit(TileKey(sample // size, 0), invariance, "row_norms" if side == "row" else "column_norms")
            if unit not in unreadable:
                stored = store.read_norm_block(invariance, side, sample // size)[sample % size]
                yield Check(unit, (sample,), float(stored), norm, norm)


def _normed(sample: NDArray[np.float32], invariance: Invariance) -> NDArray[np.float64]:
    """What the norm of a sample is the norm of."""
    wide = sample.astype(np.float64)
    return wide.mean(axis=0) if invariance == "pooled" else wide
