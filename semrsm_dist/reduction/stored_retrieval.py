"""Retrieval over an RSM store: neighbours of every query and the table of mean figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semrsm_dist import kernels
from semrsm_dist.names import Invariance, KernelName, SigmaRule
from semrsm_dist.progress import Report
from semrsm_dist.reduction.retrieval import (
    Neighbours,
    TopK,
    bootstrap_interval,
    f1_scores,
    iou_scores,
    mean_at_k,
    scores_of_neighbours,
)
from semrsm_dist.reduction.samples import Samples
from semrsm_dist.reduction.stored import StoredRsm
from semrsm_dist.reduction.strips import MapStrips, Strip
from storage_schemas import InvalidInputError, RsmStore
from storage_schemas.tables import NEIGHBOURS, RETRIEVAL

BASELINE: Invariance = "none"
"""Differences are taken to this invariance when the store has it."""


@dataclass(frozen=True)
class Retrieval:
    """What retrieval comes to."""

    neighbours: pa.Table
    """Schema :data:`storage_schemas.tables.NEIGHBOURS`."""
    summary: pa.Table
    """Schema :data:`storage_schemas.tables.RETRIEVAL`."""


def retrieve(
    store: RsmStore,
    queries: Samples,
    database: Samples,
    *,
    representation: str,
    invariances: Sequence[Invariance],
    kernel_names: Sequence[KernelName] = ("cosine", "linear", "rbf"),
    top_k: Sequence[int] = (1,),
    sigma: SigmaRule | float = "median_sq",
    report: Report | None = None,
    map_strips: MapStrips = map,
) -> Retrieval:
    """Neighbours and retrieval figures of an RSM store.

    Parameters
    ----------
    store
        A computed RSM.
    queries, database
        The samples of its rows and columns.
    representation
        A name for the tables.
    invariances, kernel_names
        What to rank by.
    top_k
        Numbers of retrieved samples that are averaged over.
    sigma
        Rule of the RBF kernel; it does not change the ranking but under ``tile``.
    report
        Told how many tiles have been ranked.
    map_strips
        How the strips of tiles are gone through: one after the other in this process, or in parallel.

    Raises
    ------
    InvalidInputError
        When ``top_k`` exceeds the database, or a query has nothing that may be retrieved.
    """
    k_max = max(top_k)
    if min(top_k) < 1 or k_max > len(database.ids):
        raise InvalidInputError(
            f"Cannot retrieve the {k_max if min(top_k) >= 1 else min(top_k)} most similar of {len(database.ids)} samples; "
            f"choose top_k between 1 and {len(database.ids)}."
        )
    candidates = _Candidates(*_codes(queries, database), k_max)
    by_invariance = {}
    for number, invariance in enumerate(invariances):
        stored = StoredRsm(store, invariance, sigma, map_strips)
        n_tiles = prod(stored.tiles_of_matrix)
        tell = partial(_tell, report, number * n_tiles, len(invariances) * n_tiles)
        by_invariance[invariance] = _neighbours(stored, tuple(kernel_names), candidates, tell)
    found = {(kernel, each): by_invariance[each][kernel] for kernel, each in product(kernel_names, invariances)}
    scores = {
        name: {
            pair: scores_of_neighbours(score, queries.counts, database.counts, neighbours.indices)
            for pair, neighbours in found.items()
        }
        for name, score in (("F1", f1_scores), ("IoU", iou_scores))
    }
    rows = _summary(scores, {pair: neighbours.indices for pair, neighbours in found.items()}, top_k, representation)
    return Retrieval(_neighbour_table(found, scores, queries, database), pa.Table.from_pylist(rows, RETRIEVAL))


@dataclass(frozen=True)
class _Candidates:
    """Which database samples may be retrieved for which query, and how many are wanted."""

    query_codes: list[NDArray[np.int64]]
    """Number of each query's video, and of the query itself; −1 for no video."""
    database_codes: list[NDArray[np.int64]]
    """The same of each database sample: a pair with an equal number is excluded."""
    k: int
    """How many to find."""

    def allowed(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """Which pairs of a tile may be retrieved."""
        same = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.bool_)
        for of_queries, of_database in zip(self.query_codes, self.database_codes, strict=True):
            left, right = of_queries[rows, None], of_database[None, columns]
            same |= (left == right) & (left >= 0)
        return ~same


def _tell(report: Report | None, before: int, total: int, done: int) -> None:
    """Report the tiles of one invariance among those of all."""
    if report:
        report(before + done, total)


def _neighbours(
    stored: StoredRsm, kernel_names: tuple[KernelName, ...], candidates: _Candidates, tell: Callable[[int], None]
) -> dict[KernelName, Neighbours]:
    """The most similar database samples of each query under every kernel; each tile is read once."""
    for kernel in kernel_names:
        stored.prepare(kernel)
    best = {kernel: TopK(stored.grid.shape[0], candidates.k) for kernel in kernel_names}
    done = 0
    for ranked in stored.map_strips(partial(_rank_strip, stored, kernel_names, candidates), stored.all_strips()):
        for kernel, found in ranked.found.items():
            best[kernel].add_neighbours(ranked.rows, found)
        done += ranked.n_tiles
        tell(done)
    neighbours = {kernel: top.result() for kernel, top in best.items()}
    if "rbf" in neighbours and _by_distance(stored):
        ranked_by_distance = neighbours["rbf"]
        with np.errstate(over="ignore"):
            similar = kernels.rbf(-ranked_by_distance.similarities, stored.sigma_squared)
        neighbours["rbf"] = Neighbours(ranked_by_distance.indices, similar)
    return neighbours


@dataclass(frozen=True)
class _RankedStrip:
    """The most similar database samples of one strip."""

    rows: slice
    """Queries of the strip."""
    n_tiles: int
    """Tiles of the strip."""
    found: dict[KernelName, Neighbours]
    """For each kernel the neighbours of these queries; RBF has negative squared distances for similarities."""


def _rank_strip(stored: StoredRsm, kernel_names: tuple[KernelName, ...], candidates: _Candidates, strip: Strip) -> _RankedStrip:
    """Rank the columns of one strip, tile by tile."""
    rows = stored.grid.slices(next(strip.tile_keys()))[0]
    here = slice(0, rows.stop - rows.start)
    best = {kernel: TopK(here.stop, candidates.k) for kernel in kernel_names}
    for key in strip.tile_keys():
        columns = stored.grid.slices(key)[1]
        inner_product, allowed = stored.inner_product(key), candidates.allowed(rows, columns)
        for kernel, top in best.items():
            if kernel == "rbf" and _by_distance(stored):
                values = -stored.squared_distance_of(key, inner_product)
            else:
                values = stored.kernel_of(key, inner_product, kernel)
            top.add(here, columns, values, allowed)
    return _RankedStrip(rows, len(strip), {kernel: top.result() for kernel, top in best.items()})


def _by_distance(stored: StoredRsm) -> bool:
    """Whether RBF is ranked by distance, which cannot underflow; under the rule ``tile`` the published values are."""
    return stored.sigma != "tile"


def _codes(queries: Samples, database: Samples) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Numbers for videos and for samples; equal numbers mean the same one, −1 none."""
    both: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for names in ([side.videos for side in (queries, database)], [_identities(side) for side in (queries, database)]):
        numbers: dict[object, int] = {}
        for side, values in zip(both, names, strict=True):
            codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
            side.append(np.array(codes, dtype=np.int64))
    return both


def _identities(side: Samples) -> list[tuple[str, str | None]]:
    """What makes a sample the same one on both sides: its id, and its bytes where they are known."""
    return list(zip(side.ids, side.hashes, strict=True))


def _summary(
    scores: Mapping[str, Mapping[tuple[KernelName, Invariance], NDArray[np.float64]]],
    indices: Mapping[tuple[KernelName, Invariance], NDArray[np.intp]],
    top_k: Sequence[int],
    representation: str,
) -> list[dict[str, Any]]:
    """Mean figures with their paired differences to the baseline."""
    invariances = list(dict.fromkeys(invariance for _, invariance in indices))
    baseline = BASELINE if BASELINE in invariances else invariances[0]
    rows = []
    for metric, by_pair in scores.items():
        for (kernel, invariance), values in by_pair.items():
            for k in sorted(set(top_k)):
                own = mean_at_k(values, indices[kernel, invariance], k)
                differences = own - mean_at_k(by_pair[kernel, baseline], indices[kernel, baseline], k)
                low, high = bootstrap_interval(differences)
                rows.append(
                    {
                        "representation": representation,
                        "kernel": kernel,
                        "invariance": invariance,
                        "k": k,
                        "metric": metric,
                        "value": float(own.mean()),
                        "baseline": baseline,
                        "difference": float(differences.mean()),
                        "difference_low": low,
                        "difference_high": high,
                        "n_queries": len(own),
                    }
                )
    return rows


def _neighbour_table(
    found: Mapping[tuple[KernelName, Invariance], Neighbours],
    scores: Mapping[str, Mapping[tuple[KernelName, Invariance], NDArray[np.float64]]],
    queries: Samples,
    database: Samples,
) -> pa.Table:
    """A row for each query and rank, made column by column: there are as many as neighbours, and no Python objects of them."""
    query_ids, database_ids = (pa.array(side.ids, pa.string()) for side in (queries, database))
    tables = []
    for (kernel, invariance), neighbours in found.items():
        there = neighbours.indices >= 0
        query, rank = np.nonzero(there)
        columns = {
            "kernel": pa.repeat(kernel, len(query)),
            "invariance": pa.repeat(invariance, len(query)),
            "query_id": query_ids.take(pa.array(query)),
            "rank": pa.array(rank + 1, pa.int32()),
            "database_id": database_ids.take(pa.array(neighbours.indices[there])),
            "similarity": pa.array(neighbours.similarities[there]),
            "f1": pa.array(scores["F1"][kernel, invariance][there]),
            "iou": pa.array(scores["IoU"][kernel, invariance][there]),
        }
        tables.append(pa.Table.from_arrays([columns[name] for name in NEIGHBOURS.names], schema=NEIGHBOURS))
    return pa.concat_tables(tables)
