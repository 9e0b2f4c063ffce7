"""The dispatch loop: from units of work to receipts, over any executor. Pure but for the executor and the clock.

Several units travel in one task, so that a task takes about :attr:`Policy.task_seconds`. The number of tasks in flight is
bounded by the executor's slots. A unit that fails is tried again alone; a task that is lost or overdue is submitted again;
a unit that keeps failing is set aside with its reason while the rest goes on. A straggler gets a backup: the same units as a
second task, of which the first to end counts. Writing a unit twice writes the same bytes, so a task that was given up and
still ends does no harm.

What the loop keeps grows with what is still to do and with what went wrong, not with what is done.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit
from storage_schemas.errors import SemrsmError, StorageUnavailableError

FATAL_ERRORS: Mapping[str, type[SemrsmError]] = MappingProxyType({StorageUnavailableError.__name__: StorageUnavailableError})
"""Errors that no other worker would be spared: the run stops at once, keeping what is written."""


class Executor(Protocol):
    """Somewhere that tasks run."""

    def slots(self) -> int:
        """How many tasks can run at once now; changes as nodes join and leave."""

    def submit(self, task: Task) -> None:
        """Start a task, or queue it."""

    def poll(self, timeout: float) -> list[Outcome]:
        """Tasks that have ended since the last call, waiting up to ``timeout`` seconds for the first."""

    def abandon(self, task: Task) -> None:
        """Stop caring for a task, and stop it where that is possible."""

    def show(self, figures: Mapping[str, float]) -> None:
        """Show figures of the whole run on the executor's dashboards, where it has any."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True)
class Policy:
    """How the loop decides. Times are seconds."""

    task_seconds: float = 15.0
    """What a task should take; units are put together to reach it."""
    queue_factor: float = 2.0
    """Tasks in flight for each slot."""
    attempts: int = 3
    """How often a unit may fail for its own reason before it is set aside."""
    losses: int = 8
    """How often a unit may be lost with its worker before it is set aside."""
    least_deadline: float = 300.0
    """No task is overdue before this."""
    deadline_factor: float = 20.0
    """A task is overdue after this many times its expected duration."""
    memory_kills: int = 3
    """How often a unit's worker may be killed for memory before the unit is set aside."""
    least_straggling: float = 30.0
    """No task is a straggler before this."""
    straggler_factor: float = 2.5
    """A task is a straggler after this many times what it and its wait should take."""
    backups: int = 3
    """The most backups of a task: a backup may straggle too."""
    backup_share: float = 0.05
    """Share of the slots that backups may take while other work waits; at the end they may take all that idle."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a unit, as the driver saw it: what subscribers are told and event rows are made of."""

    unit: Unit
    attempt: int
    """1 for the first."""
    status: str
    """``done``, ``failed``, ``lost`` or ``overdue``."""
    error: str | None
    queued: datetime
    received: datetime
    receipt: Receipt | None


@dataclass(frozen=True)
class Standing:
    """How the loop stands at a moment."""

    slots: int
    """Tasks that can run at once."""
    tasks: int
    """Tasks in flight: running, or queued for a worker."""
    units: int
    """Units in them."""
    oldest_seconds: float
    """Since the oldest of these tasks was submitted."""
    set_aside: int
    """Units that were given up so far."""


@dataclass
class DispatchResult:
    """What a run of the loop came to."""

    done: int = 0
    """How many units were done."""
    set_aside: dict[Unit, str] = field(default_factory=dict)
    """Units that were given up, each with its last error."""


@dataclass
class _InFlight:
    """A submitted task and when it was submitted."""

    task: Task
    queued: datetime
    submitted: float
    copies: list[int]
    """Numbers of the tasks with the same units, itself among them, oldest first: one list, which they share."""


class _Dispatch:
    """State of one run of the loop."""

    def __init__(
        self,
        units: Iterable[Unit],
        executor: Executor,
        policy: Policy,
        on_attempt: Callable[[Attempt], None],
        clock: Callable[[], float],
        expected_seconds: Mapping[tuple[str, str], float],
        fatal: Mapping[str, type[SemrsmError]],
    ) -> None:
        self.pending = deque(units)
        self.retries: deque[Unit] = deque()
        self.in_flight: dict[int, _InFlight] = {}
        self.result = DispatchResult()
        self._executor, self._policy, self._on_attempt, self._clock = executor, policy, on_attempt, clock
        self._fatal = fatal
        self._failures: dict[Unit, int] = {}
        self._losses: dict[Unit, int] = {}
        self._submitted = 0
        self._unit_seconds = dict(expected_seconds)
        self._overdue: dict[Unit, int] = {}
        self._memory_kills: dict[Unit, int] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_look = 0.0

    def fill(self) -> None:
        """Submit until enough is in flight."""
        slots = max(self._executor.slots(), 1)
        limit = max(int(slots * self._policy.queue_factor), 1)
        while len(self.in_flight) < limit and (self.pending or self.retries):
            self._submit((self.retries.popleft(),) if self.retries else self._next_units(slots))
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + self._policy.least_straggling / 10
            self._back_up_stragglers(slots)

    def collect(self, timeout: float) -> None:
        """Take in what has ended, and give up what is overdue."""
        for outcome in self._executor.poll(timeout):
            flight = self.in_flight.pop(outcome.task.number, None)
            if flight is None:
                continue  # given up before; if it wrote tiles, their bytes are the same
            if outcome.lost is not None:
                self._lose(flight, outcome.lost, "lost", out_of_memory=outcome.out_of_memory)
                continue
            for copy in flight.copies:
                self._give_up(copy)
            for receipt in outcome.receipts:
                self._receive(flight, receipt)
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] < now:
            flight = self._give_up(heapq.heappop(self._deadlines)[1])
            if flight is not None:
                self._lose(flight, "the task did not end before its deadline", "overdue")

    def standing(self) -> Standing:
        """What is in flight now."""
        flights = self.in_flight.values()
        oldest = min((flight.submitted for flight in flights), default=self._clock())
        return Standing(
            slots=self._executor.slots(),
            tasks=len(flights),
            units=sum(len(flight.task.units) for flight in flights),
            oldest_seconds=self._clock() - oldest,
            set_aside=len(self.result.set_aside),
        )

    def _submit(self, units: tuple[Unit, ...], copies: list[int] | None = None) -> None:
        """Send a task off, as one more copy of others or by itself."""
        self._submitted += 1
        task, now = Task(self._submitted, units), self._clock()
        copies = [] if copies is None else copies
        copies.append(task.number)
        self.in_flight[task.number] = _InFlight(task, datetime.now(UTC), now, copies)
        heapq.heappush(self._deadlines, (now + self._patience(units), task.number))
        self._executor.submit(task)

    def _give_up(self, number: int) -> _InFlight | None:
        """Stop caring for a task that is in flight, if it still is."""
        flight = self.in_flight.pop(number, None)
        if flight is not None:
            self._executor.abandon(flight.task)
        return flight

    def _back_up_stragglers(self, slots: int) -> None:
        """Send the units of tasks that take far too long off a second time, the oldest first."""
        policy = self._policy
        backups = sum(flight.copies[0] != flight.task.number for flight in self.in_flight.values())
        busy = bool(self.pending or self.retries)
        room = int(slots * policy.backup_share) - backups if busy else slots - len(self.in_flight)
        if room <= 0:
            return
        now = self._clock()
        late: list[_InFlight] = []
        for flight in self.in_flight.values():  # in the order of submission
            if flight.copies[-1] != flight.task.number or len(flight.copies) > policy.backups:
                continue
            expected = sum(self._expected(unit) for unit in flight.task.units) * policy.queue_factor
            patience = max(policy.least_straggling, policy.straggler_factor * expected)
            if expected and now - flight.submitted > patience and len(late) < room:
                late.append(flight)
        for flight in late:
            self._submit(flight.task.units, flight.copies)

    def _next_units(self, slots: int) -> tuple[Unit, ...]:
        """As many pending units as make a task of the wanted length, leaving work for every slot."""
        share = max(len(self.pending) // (4 * slots), 1)
        units: list[Unit] = []
        seconds = 0.0
        while self.pending and len(units) < share and seconds < self._policy.task_seconds:
            units.append(self.pending.popleft())
            seconds += self._expected(units[-1], unknown=self._policy.task_seconds)
        return tuple(units)

    def _patience(self, units: tuple[Unit, ...]) -> float:
        """Seconds after which a task is overdue; twice as long each time that it was."""
        expected = sum(self._expected(unit) for unit in units) * self._policy.queue_factor  # others run before it
        doubled = 2.0 ** max(self._overdue.get(unit, 0) for unit in units)
        return doubled * max(self._policy.least_deadline, self._policy.deadline_factor * expected)

    def _expected(self, unit: Unit, unknown: float = 0.0) -> float:
        """Seconds that a unit should take, by those before it."""
        return self._unit_seconds.get((unit.part, unit.invariance), unknown)

    def _receive(self, flight: _InFlight, receipt: Receipt) -> None:
        """One receipt of a task that came back."""
        unit = receipt.unit
        if receipt.error is None:
            self.result.done += 1
            seconds = (receipt.ended - receipt.started).total_seconds()
            kind = (unit.part, unit.invariance)
            before = self._unit_seconds.get(kind, seconds)
            self._unit_seconds[kind] = 0.8 * before + 0.2 * min(seconds, 2 * before)  # a straggler must not stretch it
            self._tell(flight, unit, "done", None, receipt)
            return
        self._tell(flight, unit, "failed", receipt.error, receipt)
        if receipt.error_type is not None and receipt.error_type in self._fatal:
            raise self._fatal[receipt.error_type](receipt.error)
        self._failures[unit] = self._failures.get(unit, 0) + 1
        self._again(unit, self._failures[unit] >= self._policy.attempts, receipt.error)

    def _lose(self, flight: _InFlight, reason: str, status: str, *, out_of_memory: bool = False) -> None:
        """Every unit of a task that came to nothing, unless a copy still works on them."""
        copied = any(copy in self.in_flight for copy in flight.copies)
        for unit in flight.task.units:
            self._tell(flight, unit, status, reason, None)
            self._overdue[unit] = self._overdue.get(unit, 0) + (status == "overdue")
            self._losses[unit] = self._losses.get(unit, 0) + 1
            self._memory_kills[unit] = self._memory_kills.get(unit, 0) + out_of_memory
            if copied:
                continue
            if self._memory_kills[unit] >= self._policy.memory_kills:
                kills = self._memory_kills[unit]
                self._again(unit, True, f"its worker was killed for memory {kills} times; use fewer workers or more memory")
            else:
                self._again(unit, self._losses[unit] >= self._policy.losses, reason)

    def _again(self, unit: Unit, enough: bool, reason: str) -> None:
        """Try a unit once more, alone, or set it aside."""
        if enough:
            self.result.set_aside[unit] = reason
        else:
            self.retries.append(unit)

    def _tell(self, flight: _InFlight, unit: Unit, status: str, error: str | None, receipt: Receipt | None) -> None:
        """Tell the subscriber about an attempt."""
        attempt = 1 + self._failures.get(unit, 0) + self._losses.get(unit, 0)
        self._on_attempt(Attempt(unit, attempt, status, error, flight.queued, datetime.now(UTC), receipt))


def dispatch(
    units: Iterable[Unit],
    executor: Executor,
    *,
    policy: Policy | None = None,
    on_attempt: Callable[[Attempt], None] = lambda attempt: None,
    on_idle: Callable[[Callable[[], Standing]], None] = lambda standing: None,
    clock: Callable[[], float] = time.monotonic,
    expected_seconds: Mapping[tuple[str, str], float] = MappingProxyType({}),
    fatal: Mapping[str, type[SemrsmError]] = FATAL_ERRORS,
) -> DispatchResult:
    """Run units of work to their end.

    Parameters
    ----------
    units
        What is to be done, in the order in which it should start.
    executor
        Where it runs.
    policy
        How the loop decides; the defaults when None.
    on_attempt
        Told of every attempt at a unit.
    on_idle
        Called at least once a second, for progress and for flushing events, with what tells how the loop stands.
    clock
        Seconds, monotonic.
    expected_seconds
        Seconds that a unit should take, by part and invariance, as the plan timed them; units that are done correct it.
    fatal
        Errors of workers, by name, that end the loop.

    Returns
    -------
    DispatchResult
        Receipts of what was done, and what was set aside with its reason.

    Raises
    ------
    SemrsmError
        As soon as one worker reports a fatal error: by default, that the disk is full, read-only or out of reach.
    """
    loop = _Dispatch(units, executor, policy or Policy(), on_attempt, clock, expected_seconds, fatal)
    while loop.pending or loop.retries or loop.in_flight:
        loop.fill()
        loop.collect(timeout=1.0)
        on_idle(loop.standing)
    return loop.result
