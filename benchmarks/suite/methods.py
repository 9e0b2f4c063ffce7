"""What is timed: the library's matching methods, the path of the paper's script, and the products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment

from semrsm_dist.matching import Matched, MatchingSettings, alignment
from semrsm_dist.matching.windowed import AFFINITY_BYTES, PreparedBlock
from storage_schemas.errors import InvalidInputError
from suite.maps import Maps

WINDOW = 512
"""The window of the paper's experiments, and the library's default."""
WINDOWS_DRAWN = (64, 128, 256, 512, 1024)
"""Windows, and numbers of concept vectors that TopK-Greedy matches optimally, of the cases that the figure shows."""
LARGEST_OPTIMUM = 4096
"""Maps with more positions are matched in windows only."""
LARGEST_FOR_OTHERS = 1024
"""Maps with more positions are given to other solvers than the default one only if drawn, and in windows of 512 at most: they
take many seconds for some."""


@dataclass(frozen=True)
class Block:
    """Pairs to match, as in a tile."""

    rows: Maps
    columns: Maps

    def leading(self, n_rows: int) -> Block:
        """Some of its row samples with its first column sample, for what is too slow for all pairs."""
        return Block(self.rows[:n_rows], self.columns[:1])


@dataclass(frozen=True)
class Timed:
    """One method, prepared for one block of pairs."""

    family: str
    """``floor``, ``paper``, ``auction``, ``bfloat16``, ``scipy``, ``ortools``, ``lapjv``, ``greedy`` or ``topk_greedy``."""
    window: int | None
    """None: the whole affinity."""
    k: int | None
    block: Block
    call: Callable[[], Matched | None]

    @property
    def name(self) -> str:
        """What the tables call it."""
        if self.family == "greedy":
            return self.family
        return f"{self.family} {self.k or self.window or 'optimal'}"

    @property
    def n_pairs(self) -> int:
        """Pairs of one call."""
        return len(self.block.rows) * len(self.block.columns)


def references(n_positions: int) -> int:
    """Row samples that slow methods are timed on, each with one column sample."""
    return 16 if n_positions <= 256 else 8 if n_positions <= 1024 else 4


def timed_methods(block: Block, *, drawn: bool, quick: bool, say: Callable[[str], None]) -> Iterator[Timed]:
    """Every method that makes sense for ``S`` positions; those whose library is missing are named and left out.

    Parameters
    ----------
    block
        Fast methods take all of it. Slow ones, and all on the whole affinity of large maps, take its leading pairs.
    drawn
        Whether all windows are wanted, or :data:`WINDOW` and the optimum.
    quick
        Whether to leave out other solvers than the default one.
    say
        Takes a line about what is left out.
    """
    n_positions = block.rows.shape[1]
    sizes = WINDOWS_DRAWN if drawn else (WINDOW,)
    others = not quick and (drawn or n_positions <= LARGEST_FOR_OTHERS)
    for window in [size for size in sizes if size < n_positions]:
        yield from _windowed(block, MatchingSettings(window=window), others and window <= WINDOW, say)
    if n_positions > LARGEST_OPTIMUM:
        return
    whole = block if n_positions < 1024 else block.leading(max(1, 2048 // n_positions))
    yield from _windowed(whole, MatchingSettings("optimal"), others and n_positions <= LARGEST_FOR_OTHERS, say)
    yield from _library(whole, MatchingSettings("greedy"), "greedy", say)
    for k in [size for size in (sizes if drawn else (128,)) if size < n_positions]:
        yield from _library(whole, MatchingSettings("topk_greedy", k=k), "topk_greedy", say)


def _windowed(block: Block, settings: MatchingSettings, others: bool, say: Callable[[str], None]) -> Iterator[Timed]:
    """Optimal matching inside windows, by other solvers too if asked for, after the references for this window."""
    aligned = alignment("permutation", settings)
    few = block.leading(references(block.rows.shape[1]))
    prepared, prepared_few = ((aligned.prepare(one.rows), aligned.prepare(one.columns)) for one in (block, few))
    window = _window(settings)
    yield Timed("floor", window, None, block, products_alone(*prepared))
    yield Timed("paper", window, None, few, partial(papers_path, *prepared_few))
    yield from _library(block, settings, "auction", say)
    yield from _library(block, replace(settings, affinity="bfloat16"), "bfloat16", say)
    for solver in ("ortools", "scipy", "lapjv") if others else ():
        yield from _library(few, replace(settings, solver=solver), solver, say)


def _window(settings: MatchingSettings) -> int | None:
    """The window, None when the affinity is matched as a whole."""
    return settings.window if settings.method == "batch_optimal" else None


def _library(block: Block, settings: MatchingSettings, family: str, say: Callable[[str], None]) -> Iterator[Timed]:
    """One of the library's methods, unless what it needs is not installed."""
    try:
        aligned = alignment("permutation", settings)
    except (ImportError, InvalidInputError) as error:
        say(f"SKIPPED {family}: {error}")
        return
    prepared = aligned.prepare(block.rows), aligned.prepare(block.columns)
    k = settings.k if settings.method == "topk_greedy" else None
    yield Timed(family, _window(settings), k, block, partial(aligned.inner_products, *prepared, same=False))


def products_alone(rows: PreparedBlock, columns: PreparedBlock) -> Callable[[], None]:
    """The GEMM floor: float32 affinities of all windows, in products of the size that the library uses, into one buffer."""
    n_rows, largest = rows.windows[0].shape[:2]
    buffer = np.empty(max(AFFINITY_BYTES // 4, largest * largest), dtype=np.float32)

    def multiply() -> None:
        for row_window, column_window in zip(rows.windows, columns.windows, strict=True):
            size = row_window.shape[1]
            together = max(1, min(n_rows, AFFINITY_BYTES // (4 * size * size)))
            for column in column_window:
                for start in range(0, n_rows, together):
                    part = row_window[start : start + together].reshape(-1, row_window.shape[2])
                    np.matmul(part, column.T, out=buffer[: len(part) * size].reshape(-1, size))

    return multiply


def papers_path(rows: PreparedBlock, columns: PreparedBlock) -> Matched:
    """What the paper's released script computes for each pair, less its detours.

    The float32 affinity of each window, arcs between all of its positions, OR-Tools, one call for each matched position, and
    the inner product of the permuted maps. The script also multiplies the affinities between windows, and sorts both samples
    again for every pair; neither is charged here. Its fixed factor of 1000 is replaced by the affinity's own scale, which
    takes the solver as long and finds the optimum.
    """
    values = np.zeros((len(rows), len(columns)))
    for row_window, column_window in zip(rows.windows, columns.windows, strict=True):
        for i, row in enumerate(row_window):
            for j, column in enumerate(column_window):
                values[i, j] += np.vdot(row, column[_assigned_by_ortools(row @ column.T)])
    return Matched(values, None)


def _assigned_by_ortools(affinity: Maps) -> NDArray[np.int64]:
    """The permutation, with the arcs built as the public interface needs them."""
    size = len(affinity)
    largest = float(np.abs(affinity).max())
    if largest == 0:
        return np.arange(size)
    costs = (affinity * np.float32(-(2**31) / largest)).astype(np.int64)
    ends, starts = np.meshgrid(np.arange(size), np.arange(size))
    assignment = SimpleLinearSumAssignment()
    assignment.add_arcs_with_cost(starts.ravel(), ends.ravel(), costs.ravel())
    if assignment.solve() != assignment.OPTIMAL:
        raise RuntimeError(f"OR-Tools found no assignment of {size} positions.")
    return np.array([assignment.right_mate(position) for position in range(size)])
