"""What subscribes to a run: events, the pulse, progress and metrics hear of the same attempts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

from semrsm_dist.progress import Report
from semrsm_dist.runtime.dispatch import Attempt, Executor, Standing
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.forecast import Forecast
from semrsm_dist.runtime.pulse import PULSE_SECONDS, Pulse, write_pulse
from storage_schemas.location import Location


class Watch:
    """What subscribes to the attempts of one turn of the loop: events, pulse, and the caller's reports."""

    def __init__(
        self,
        store: Location,
        executor: Executor,
        recorder: EventRecorder,
        forecast: Forecast,
        there: int,
        planned: int,
        report: Report | None = None,
        on_attempt: Callable[[Attempt], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._executor, self._recorder, self._forecast = store, executor, recorder, forecast
        self._there, self._planned, self._report, self._on_attempt = there, planned, report, on_attempt
        self._clock, self._next_pulse = clock, clock()
        self._tell()

    def follow(self, attempt: Attempt) -> None:
        """One attempt at a unit."""
        self._recorder.record(attempt)
        if attempt.status == "done" and attempt.receipt is not None:
            self._there += 1
            self._forecast.take(attempt.unit, attempt.receipt)
        self._tell()
        if self._on_attempt:
            self._on_attempt(attempt)

    def idle(self, standing: Callable[[], Standing]) -> None:
        """Write what is due."""
        self._recorder.flush_if_due()
        if self._clock() >= self._next_pulse:
            self._next_pulse = self._clock() + PULSE_SECONDS
            now, left = standing(), self._forecast.seconds_left()
            pulse = Pulse(datetime.now(UTC), self._there, self._planned, seconds_left=left, **asdict(now))
            write_pulse(self._store, pulse)
            self._executor.show(
                {
                    "units_done": pulse.done,
                    "units_planned": pulse.planned,
                    "units_set_aside": pulse.set_aside,
                    "tasks_in_flight": pulse.tasks,
                    "units_in_flight": pulse.units,
                    "slots": pulse.slots,
                    "seconds_left": left,
                }
            )

    def _tell(self) -> None:
        if self._report:
            self._report(self._there, self._planned, seconds_left=self._forecast.seconds_left())
