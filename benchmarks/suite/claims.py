"""What the matching is to hold, next to what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from suite.timing import Row

LARGE = (1024, 4096)
"""Positions of the maps that are compared with the paper's path, whatever their channels."""
MOST_CHANNELS_OF_EARLY_LAYERS = 128


@dataclass(frozen=True)
class Claim:
    """One claim over all cases it is about."""

    text: str
    measured: str
    """The worst case."""
    target: str
    n_cases: int
    failing: tuple[str, ...]
    """Cases in which it does not hold, with their values."""

    @property
    def verdict(self) -> str:
        """``yes``, ``NO``, or ``not run``."""
        return "not run" if self.n_cases == 0 else "NO" if self.failing else "yes"


def at_most(text: str, target: float, values: Iterable[tuple[str, float]], unit: str = "×") -> Claim:
    """A claim that no value, given with the name of its case, exceeds the target."""
    return _claim(text, f"≤ {target:g}{unit}", list(values), lambda value: value <= target, max, unit)


def at_least(text: str, target: float, values: Iterable[tuple[str, float]], unit: str = "×") -> Claim:
    """A claim that no value, given with the name of its case, falls short of the target."""
    return _claim(text, f"≥ {target:g}{unit}", list(values), lambda value: value >= target, min, unit)


def _claim(
    text: str,
    target: str,
    values: list[tuple[str, float]],
    holds: Callable[[float], bool],
    worst: Callable[..., tuple[str, float]],
    unit: str,
) -> Claim:
    """A claim with its worst case."""
    said = [f"{value:.3g}{unit} ({case})" for case, value in values]
    failing = tuple(words for words, (_, value) in zip(said, values, strict=True) if not holds(value))
    if not values:
        return Claim(text, "", target, 0, ())
    return Claim(text, said[values.index(worst(values, key=lambda one: one[1]))], target, len(values), failing)


def claims_of_rows(rows: list[Row]) -> list[Claim]:
    """The claims about times and certificates. Those about times leave the degenerate maps out."""

    def select(family: str, fits: Callable[[Row], bool]) -> list[Row]:
        return [row for row in rows if row.family == family and row.source != "degenerate" and fits(row)]

    def floor(family: str) -> list[tuple[str, float]]:
        chosen = select(family, lambda row: row.default_window and row.n_channels >= 256 and row.n_positions >= 169)
        return [(row.case, row.times_floor) for row in chosen]

    def paper(family: str, fits: Callable[[Row], bool]) -> list[tuple[str, float]]:
        """With what would be reached if float32 affinities were all there is to compute."""
        return [
            (f"{row.case}; floor: {row.paper_ms_per_pair / row.floor_ms_per_pair:.3g}×", row.times_faster_than_paper)
            for row in select(family, fits)
        ]

    def large(row: Row) -> bool:
        return row.default_window and row.n_positions in LARGE

    def early(row: Row) -> bool:
        return row.default_window and row.source == "real" and row.n_channels <= MOST_CHANNELS_OF_EARLY_LAYERS

    def whole(row: Row) -> bool:
        return row.window is None and (row.n_positions, row.n_channels) == (4096, 256)

    gaps = [(f"{row.case}, {row.method}", row.largest_relative_gap) for row in rows if row.family == "auction"]
    return [
        at_most("float32, C ≥ 256, window 512: time over the GEMM floor", 1.5, floor("auction")),
        at_most("bfloat16, C ≥ 256, window 512: time over the float32 GEMM floor", 0.8, floor("bfloat16")),
        at_least("real maps, C ≤ 128, window 512: faster than the paper's path", 15, paper("auction", early)),
        at_least("S = 1024 and 4096, window 512: faster than the paper's path", 15, paper("auction", large)),
        at_least("the same with bfloat16 affinities", 20, paper("bfloat16", large)),
        at_least("optimal, S = 4096, C = 256: faster than OR-Tools on the whole matrix", 25, paper("auction", whole)),
        at_most("certified relative gap of every float32 pair", 1e-6, [one for one in gaps if one[1] is not None], unit=""),
    ]
