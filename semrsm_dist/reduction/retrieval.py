"""Retrieval: which database samples are most similar to a query, and how much they share with it.

Wald et al. (NeurIPS 2024), section 4: for each query the most similar database samples that are not of the same video;
``F1`` on class-instance counts and ``IoU`` on sets of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import InvalidInputError

BOOTSTRAP_SAMPLES = 10_000
BOOTSTRAP_SEED = 0
_COUNTS_AT_ONCE = 2**20  # class counts of neighbours in memory: 8 MiB, of which scores make a few copies


@dataclass(frozen=True)
class Neighbours:
    """The most similar database samples of each query, best first."""

    indices: NDArray[np.intp]
    """``(Q, k)`` columns; −1 where fewer than ``k`` samples may be retrieved."""
    similarities: NDArray[np.float64]
    """``(Q, k)``; −inf where there is none."""


class TopK:
    """The ``k`` largest values of each row, added tile by tile in any order; ties go to the smaller column.

    Parameters
    ----------
    n_rows
        Rows ``Q``.
    k
        How many to keep.
    """

    def __init__(self, n_rows: int, k: int) -> None:
        if k < 1:
            raise InvalidInputError(f"k is {k}; at least one sample must be retrieved.")
        self._indices = np.full((n_rows, k), -1, dtype=np.intp)
        self._values = np.full((n_rows, k), -np.inf)

    def add(self, rows: slice, columns: slice, values: NDArray[np.float64], allowed: NDArray[np.bool_]) -> None:
        """Add a tile; ``allowed`` is False for pairs that may not be retrieved."""
        candidates = np.where(allowed, values, -np.inf)
        # Most rows of most tiles hold nothing as good as what is kept: they need no sorting.
        changed = np.flatnonzero((candidates >= self._values[rows, -1:]).any(axis=1))
        numbers = np.where(allowed[changed], np.arange(columns.start, columns.stop), -1)
        self._merge(changed + rows.start, candidates[changed], numbers)

    def add_neighbours(self, rows: slice, found: Neighbours) -> None:
        """Add what was found for some rows among other columns."""
        self._merge(np.arange(rows.start, rows.stop), found.similarities, found.indices)

    def _merge(self, rows: NDArray[np.intp], values: NDArray[np.float64], indices: NDArray[np.intp]) -> None:
        """Keep the best of what is kept and of new candidates, whose index is −1 where there is none."""
        together = np.concatenate([self._values[rows], values], axis=1)
        numbers = np.concatenate([self._indices[rows], indices], axis=1)
        order = np.lexsort((numbers, -together), axis=1)[:, : self._values.shape[1]]
        self._values[rows] = np.take_along_axis(together, order, axis=1)
        self._indices[rows] = np.take_along_axis(numbers, order, axis=1)

    def result(self) -> Neighbours:
        """What was found."""
        return Neighbours(self._indices, self._values)


def f1_scores(queries: NDArray[np.int64], retrieved: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 on class-instance counts.

    Parameters
    ----------
    queries, retrieved
        Instances of each class, ``(…, classes)``.

    Returns
    -------
    ndarray
        ``2 TP / (2 TP + FP + FN)`` with ``TP = Σ min(Q, D)``, ``FN = Σ max(0, Q − D)``, ``FP = Σ max(0, D − Q)``;
        1 where both are empty.
    """
    positives = np.minimum(queries, retrieved).sum(axis=-1)
    total = queries.sum(axis=-1) + retrieved.sum(axis=-1)  # 2 TP + FP + FN
    scores = np.ones(total.shape)
    np.divide(2.0 * positives, total, out=scores, where=total > 0)
    return scores


def iou_scores(queries: NDArray[np.int64], retrieved: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of the sets of classes; 1 where both are empty. Shapes as in :func:`f1_scores`."""
    both = ((queries > 0) & (retrieved > 0)).sum(axis=-1)
    either = ((queries > 0) | (retrieved > 0)).sum(axis=-1)
    scores = np.ones(either.shape)
    np.divide(both, either, out=scores, where=either > 0)
    return scores


def scores_of_neighbours(
    score: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]],
    queries: NDArray[np.int64],
    database: NDArray[np.int64],
    indices: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Each query's score with each of its neighbours, ``(Q, k)``, some queries at a time.

    Parameters
    ----------
    score
        :func:`f1_scores` or :func:`iou_scores`.
    queries, database
        Instances of each class, ``(Q, classes)`` and ``(M, classes)``.
    indices
        Neighbours, ``(Q, k)``; the score of an index −1 means nothing.
    """
    scores = np.empty(indices.shape)
    step = max(_COUNTS_AT_ONCE // max(indices.shape[1] * queries.shape[1], 1), 1)
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        scores[part] = score(queries[part, None, :], database[indices[part]])
    return scores


def mean_at_k(scores: NDArray[np.float64], indices: NDArray[np.intp], k: int) -> NDArray[np.float64]:
    """Each query's mean score over its ``k`` most similar samples, ``(Q,)``.

    Parameters
    ----------
    scores, indices
        ``(Q, k_max)``; a score counts where the index is not −1.
    """
    there = indices[:, :k] >= 0
    if not there.any(axis=1).all():
        query = int(np.argmin(there.any(axis=1)))
        raise InvalidInputError(
            f"Query {query} has no database sample that may be retrieved: all are of its own video or are the query itself."
        )
    return np.asarray((scores[:, :k] * there).sum(axis=1) / there.sum(axis=1))


def bootstrap_interval(
    differences: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    n_resamples: int = BOOTSTRAP_SAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences, by resampling queries.

    Parameters
    ----------
    differences
        One difference a query, ``(Q,)``.

    Returns
    -------
    low, high
        The interval that holds the mean with the given confidence.
    """
    generator = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(2**22 // len(differences), 1)  # resamples at a time
    for start in range(0, n_resamples, step):
        count = min(step, n_resamples - start)
        chosen = generator.integers(len(differences), size=(count, len(differences)))
        means[start : start + count] = differences[chosen].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def count_matrix(
    sample_ids: Iterable[str], annotated: Iterable[tuple[str, int, int]], classes: dict[int, int]
) -> NDArray[np.int64]:
    """Instances of each class in each sample.

    Parameters
    ----------
    sample_ids
        The samples, in the order of the rows.
    annotated
        ``(sample_id, class_id, count)``.
    classes
        Column of each class id.

    Returns
    -------
    ndarray
        ``(samples, classes)``.
    """
    rows = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    counts = np.zeros((len(rows), len(classes)), dtype=np.int64)
    for sample_id, class_id, count in annotated:
        if sample_id in rows:
            counts[rows[sample_id], classes[class_id]] += count
    return counts
