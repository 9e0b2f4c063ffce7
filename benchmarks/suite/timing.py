"""One case: a block of pairs, every method on it in turn, and one row of results for each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.matching import Matched, MatchingSettings, alignment
from suite.maps import Maps
from suite.methods import LARGEST_OPTIMUM, WINDOW, Block, Timed, references, timed_methods


@dataclass(frozen=True)
class Effort:
    """How long methods are timed."""

    repetitions: int
    """Times that every method is called, in turns with the others."""
    seconds: float
    """A method that has taken as long in a case is called no more than :attr:`fewest` times."""
    fewest: int


@dataclass(frozen=True)
class Case:
    """Maps to match: all pairs of ``n_rows`` with ``n_columns`` of them."""

    name: str
    source: Literal["real", "synthetic", "degenerate"]
    n_rows: int
    n_columns: int
    make: Callable[[int], Maps]
    """``n`` maps, ``(n, S, C)``."""
    quick: bool = False
    """Whether ``--quick`` runs it."""
    drawn: bool = False
    """Whether the figure shows it; then more windows are timed."""


@dataclass(frozen=True)
class Row:
    """What was measured of one method in one case. Times are medians over the repetitions."""

    case: str
    source: str
    n_positions: int
    n_channels: int
    method: str
    family: str
    window: int | None
    k: int | None
    n_pairs: int
    n_repetitions: int
    ms_per_pair: float
    fastest_ms_per_pair: float
    k_over_k_opt: float | None
    """Mean, over the leading pairs, of the matched inner product divided by the optimal matching's."""
    largest_relative_gap: float | None
    """The worst certificate of a pair."""
    floor_ms_per_pair: float
    """Float32 affinities of the same windows alone; of the whole affinity for greedy methods."""
    times_floor: float
    paper_window: int | None
    paper_ms_per_pair: float
    """The paper's path in the same windows; in windows of 512 for greedy methods."""
    times_faster_than_paper: float

    @property
    def default_window(self) -> bool:
        """Whether this matches in windows of 512 positions, or in one because there are fewer."""
        return self.window == WINDOW or (self.window is None and self.n_positions <= WINDOW)


def measure(case: Case, effort: Effort, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Time every method on the case's block: once to warm up, then in turns."""
    maps = case.make(case.n_rows + case.n_columns)
    block = Block(maps[: case.n_rows], maps[case.n_rows :])
    optimum = _optimum(block)
    timed = list(timed_methods(block, drawn=case.drawn, quick=quick, say=say))
    results, seconds = _results_and_seconds(timed, effort)
    medians = [statistics.median(taken) / one.n_pairs * 1e3 for one, taken in zip(timed, seconds, strict=True)]
    floors, papers = (
        {one.window: median for one, median in zip(timed, medians, strict=True) if one.family == family}
        for family in ("floor", "paper")
    )
    table = []
    for one, result, taken, median in zip(timed, results, seconds, medians, strict=True):
        greedy = one.family in ("greedy", "topk_greedy")
        paper_window = WINDOW if greedy and WINDOW in papers else one.window
        table.append(
            Row(
                case=case.name,
                source=case.source,
                n_positions=maps.shape[1],
                n_channels=maps.shape[2],
                method=one.name,
                family=one.family,
                window=one.window,
                k=one.k,
                n_pairs=one.n_pairs,
                n_repetitions=len(taken),
                ms_per_pair=median,
                fastest_ms_per_pair=min(taken) / one.n_pairs * 1e3,
                k_over_k_opt=_mean_quality(result, optimum),
                largest_relative_gap=_largest_gap(result),
                floor_ms_per_pair=floors[one.window],
                times_floor=median / floors[one.window],
                paper_window=paper_window,
                paper_ms_per_pair=papers[paper_window],
                times_faster_than_paper=papers[paper_window] / median,
            )
        )
    return table


def _results_and_seconds(timed: list[Timed], effort: Effort) -> tuple[list[Matched | None], list[list[float]]]:
    """What every method returned, and the seconds of its calls after the first.

    The first call compiles, and touches memory for the first time, which may take longer than the matching. All turns begin
    after all first calls.
    """
    results = [one.call() for one in timed]
    seconds: list[list[float]] = [[] for _ in timed]
    for _ in range(effort.repetitions):
        for one, taken in zip(timed, seconds, strict=True):
            if sum(taken) < effort.seconds or len(taken) < effort.fewest:
                begin = time.process_time()
                one.call()
                taken.append(time.process_time() - begin)
    return results, seconds


def _optimum(block: Block) -> NDArray[np.float64] | None:
    """Optimal inner products of the pairs that slow methods match, to the solver's tolerance; None for maps too large."""
    n_positions = block.rows.shape[1]
    if n_positions > LARGEST_OPTIMUM:
        return None
    few = block.leading(references(n_positions))
    aligned = alignment("permutation", MatchingSettings("optimal"))
    return aligned.inner_products(aligned.prepare(few.rows), aligned.prepare(few.columns), same=False).inner_products


def _mean_quality(result: Matched | None, optimum: NDArray[np.float64] | None) -> float | None:
    """k / k_opt of the linear kernel, over the leading pairs of which both are known."""
    if result is None or optimum is None:
        return None
    n_rows = min(len(result.inner_products), len(optimum))
    return float(np.mean(result.inner_products[:n_rows, :1] / optimum[:n_rows]))


def _largest_gap(result: Matched | None) -> float | None:
    """The largest certified relative gap of a pair; None when nothing is certified."""
    gaps = None if result is None else result.relative_gaps()
    return None if gaps is None else float(gaps.max())
