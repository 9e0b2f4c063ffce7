"""How long what is left of a run will take: from the plan's figures at first, from what was observed more and more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from semrsm_dist.runtime.units import Receipt, Unit

Kind = tuple[str, str]
"""Part and invariance: units of one kind take about the same time."""

_WEIGHT_OF_THE_PLAN = 3.0
"""Units of a kind that the plan's figure counts as."""
_SECONDS_OF_THE_PLAN = 30.0
"""Time for which the planned number of workers counts as observed."""


@dataclass
class _Observed:
    """Seconds of the units of a kind."""

    seconds: float = 0.0
    units: float = 0.0

    def mean(self) -> float:
        return self.seconds / self.units if self.units else 0.0


class Forecast:
    """Seconds until units are done, of kinds that may differ a thousandfold in time.

    Counting units would be wrong by that factor while the short ones come first. Here each kind has its mean, and the sum is
    divided by the parallelism that was observed, whatever slowed the workers down or made them wait.

    Parameters
    ----------
    units
        What is to be done.
    expected_seconds
        Seconds of a unit by kind, as the plan timed them; kinds without are learnt.
    workers
        How many are expected to work.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        units: Iterable[Unit],
        expected_seconds: Mapping[Kind, float],
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = Counter((unit.part, unit.invariance) for unit in units)
        self._kinds: dict[Kind, _Observed] = {
            kind: _Observed(seconds * _WEIGHT_OF_THE_PLAN, _WEIGHT_OF_THE_PLAN) for kind, seconds in expected_seconds.items()
        }
        self._workers, self._clock, self._begin, self._busy = workers, clock, clock(), 0.0

    def take(self, unit: Unit, receipt: Receipt) -> None:
        """A unit was done."""
        kind = (unit.part, unit.invariance)
        self._left[kind] -= 1
        seconds = (receipt.ended - receipt.started).total_seconds()
        self._busy += seconds
        observed = self._kinds.setdefault(kind, _Observed())
        observed.seconds += seconds
        observed.units += 1

    def seconds_left(self) -> float:
        """Until the last unit is done, as far as one can tell."""
        work = sum(count * self._kinds[kind].mean() for kind, count in self._left.items() if kind in self._kinds)
        elapsed = self._clock() - self._begin
        parallelism = (self._busy + self._workers * _SECONDS_OF_THE_PLAN) / (elapsed + _SECONDS_OF_THE_PLAN)
        return work / max(parallelism, 1e-3)
