"""Retrieval over an RSM store: neighbours of every query and the table of mean figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
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
)
from semrsm_dist.reduction.samples import Samples
from semrsm_dist.reduction.stored import StoredRsm
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
        Told how many tiles have been read.

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
    found: dict[tuple[KernelName, Invariance], Neighbours] = {}
    pairs = list(product(kernel_names, invariances))
    for number, (kernel, invariance) in enumerate(pairs):
        stored = StoredRsm(store, invariance, sigma)
        found[kernel, invariance] = _neighbours(stored, kernel, queries, database, k_max)
        if report:
            report(number + 1, len(pairs))
    scores = {
        name: {
            pair: score(queries.counts[:, None, :], database.counts[neighbours.indices]) for pair, neighbours in found.items()
        }
        for name, score in (("F1", f1_scores), ("IoU", iou_scores))
    }
    rows = _summary(scores, {pair: neighbours.indices for pair, neighbours in found.items()}, top_k, representation)
    neighbour_rows = _neighbour_rows(found, scores, queries, database)
    return Retrieval(pa.Table.from_pylist(neighbour_rows, NEIGHBOURS), pa.Table.from_pylist(rows, RETRIEVAL))


def _neighbours(stored: StoredRsm, kernel: KernelName, queries: Samples, database: Samples, k: int) -> Neighbours:
    """The ``k`` most similar database samples of each query; RBF is ranked by distance, which cannot underflow."""
    top = TopK(len(queries.ids), k)
    query_codes, database_codes = _codes(queries, database)
    by_distance = kernel == "rbf" and stored.sigma != "tile"
    for key in stored.all_keys():
        rows, columns = stored.grid.slices(key)
        values = -stored.squared_distance(key) if by_distance else stored.tile(key, kernel)
        same = np.zeros(values.shape, dtype=np.bool_)
        for of_queries, of_database in zip(query_codes, database_codes, strict=True):
            left, right = of_queries[rows, None], of_database[None, columns]
            same |= (left == right) & (left >= 0)
        top.add(rows, columns, values, ~same)
    neighbours = top.result()
    if by_distance:
        with np.errstate(over="ignore"):
            similar = kernels.rbf(-neighbours.similarities, stored.sigma_squared)
        return Neighbours(neighbours.indices, similar)
    return neighbours


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


def _neighbour_rows(
    found: Mapping[tuple[KernelName, Invariance], Neighbours],
    scores: Mapping[str, Mapping[tuple[KernelName, Invariance], NDArray[np.float64]]],
    queries: Samples,
    database: Samples,
) -> list[dict[str, Any]]:
    """A row for each query and rank."""
    return [
        {
            "kernel": kernel,
            "invariance": invariance,
            "query_id": queries.ids[query],
            "rank": rank + 1,
            "database_id": database.ids[column],
            "similarity": float(neighbours.similarities[query, rank]),
            "f1": float(scores["F1"][kernel, invariance][query, rank]),
            "iou": float(scores["IoU"][kernel, invariance][query, rank]),
        }
        for (kernel, invariance), neighbours in found.items()
        for query, columns in enumerate(neighbours.indices)
        for rank, column in enumerate(columns)
        if column >= 0
    ]
