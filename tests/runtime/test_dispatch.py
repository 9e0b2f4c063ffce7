"""The dispatch loop over an executor whose faults are scripted: exact numbers of attempts, no clock but ours."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from semrsm_dist.grid import TileKey
from semrsm_dist.runtime.dispatch import Attempt, Policy, dispatch
from semrsm_dist.runtime.serial_executor import SerialExecutor
from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit
from storage_schemas import StorageUnavailableError

UNITS = [Unit(TileKey(0, column), "none") for column in range(40)]


def receipt(unit: Unit, error: str | None = None, error_type: str = "RuntimeError", seconds: float = 1.0) -> Receipt:
    """A receipt of a unit that took some time."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(seconds=seconds)
    kind = None if error is None else error_type
    return Receipt(unit, error, kind, "sum", start, end, 0.1, 0.8, 0.1, 1, "node", 1)


class ScriptedExecutor:
    """Runs tasks at once by a script: unit and how often it was tried to its receipt, "lost" or "hang"."""

    def __init__(self, script: Callable[[Unit, int], Receipt | str], slots: int = 2) -> None:
        self._script, self._slots = script, slots
        self.tries: Counter[Unit] = Counter()
        self.tasks: list[Task] = []
        self.abandoned: list[Task] = []
        self.most_in_flight = 0
        self._waiting: deque[Task] = deque()
        self._hanging: list[Task] = []
        self.now = 0.0

    def slots(self) -> int:
        return self._slots

    def submit(self, task: Task) -> None:
        self.tasks.append(task)
        self._waiting.append(task)
        self.most_in_flight = max(self.most_in_flight, len(self._waiting) + len(self._hanging))

    def poll(self, timeout: float) -> list[Outcome]:
        self.now += timeout
        if not self._waiting:
            return []
        task = self._waiting.popleft()
        self.tries.update(task.units)
        answers = [self._script(unit, self.tries[unit]) for unit in task.units]
        if "hang" in answers:
            self._hanging.append(task)
            return []
        if "lost" in answers:
            return [Outcome(task, lost="its worker died")]
        return [Outcome(task, tuple(answer for answer in answers if isinstance(answer, Receipt)))]

    def abandon(self, task: Task) -> None:
        self.abandoned.append(task)
        self._hanging.remove(task)

    def show(self, figures: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass

    def clock(self) -> float:
        return self.now


def test_every_unit_is_done_once_when_nothing_fails() -> None:
    executor = ScriptedExecutor(lambda unit, tries: receipt(unit))
    result = dispatch(UNITS, executor, clock=executor.clock)
    assert result.done == len(UNITS)
    assert not result.set_aside
    assert set(executor.tries.values()) == {1}


def test_a_unit_that_fails_twice_then_succeeds_is_tried_three_times_and_its_mates_once() -> None:
    executor = ScriptedExecutor(lambda unit, tries: receipt(unit, "bad luck" if unit == UNITS[7] and tries < 3 else None))
    attempts: list[Attempt] = []
    result = dispatch(UNITS, executor, clock=executor.clock, on_attempt=attempts.append)
    assert result.done == len(UNITS)
    assert executor.tries[UNITS[7]] == 3
    assert {executor.tries[unit] for unit in UNITS if unit != UNITS[7]} == {1}
    assert [(a.attempt, a.status) for a in attempts if a.unit == UNITS[7]] == [(1, "failed"), (2, "failed"), (3, "done")]


def test_a_unit_that_fails_for_ever_is_set_aside_with_its_reason_and_the_rest_goes_on() -> None:
    executor = ScriptedExecutor(lambda unit, tries: receipt(unit, "no way" if unit == UNITS[3] else None))
    result = dispatch(UNITS, executor, clock=executor.clock, policy=Policy(attempts=4))
    assert result.set_aside == {UNITS[3]: "no way"}
    assert executor.tries[UNITS[3]] == 4
    assert result.done == len(UNITS) - 1


def test_a_lost_task_is_submitted_again_unit_by_unit() -> None:
    executor = ScriptedExecutor(lambda unit, tries: "lost" if unit == UNITS[20] and tries == 1 else receipt(unit))
    result = dispatch(UNITS, executor, clock=executor.clock)
    assert result.done == len(UNITS)
    lost = next(task for task in executor.tasks if UNITS[20] in task.units)
    assert {executor.tries[unit] for unit in lost.units} == {2}
    assert all(len(task.units) == 1 for task in executor.tasks if task.number > lost.number and set(task.units) & {*lost.units})


def test_a_unit_that_always_kills_its_worker_is_set_aside_in_the_end() -> None:
    executor = ScriptedExecutor(lambda unit, tries: "lost" if unit == UNITS[0] else receipt(unit))
    result = dispatch(UNITS, executor, clock=executor.clock, policy=Policy(losses=5))
    assert result.set_aside == {UNITS[0]: "its worker died"}
    assert executor.tries[UNITS[0]] == 5


def test_a_hanging_task_is_given_up_at_its_deadline_and_done_elsewhere() -> None:
    executor = ScriptedExecutor(lambda unit, tries: "hang" if unit == UNITS[0] and tries == 1 else receipt(unit))
    attempts: list[Attempt] = []
    policy = Policy(least_deadline=100, least_straggling=1e9)
    result = dispatch(UNITS, executor, clock=executor.clock, policy=policy, on_attempt=attempts.append)
    assert result.done == len(UNITS)
    assert len(executor.abandoned) == 1
    assert 100 < executor.now < 200
    assert [a.status for a in attempts if a.unit == UNITS[0]] == ["overdue", "done"]


def test_a_straggler_gets_one_backup_and_the_first_to_end_counts() -> None:
    executor = ScriptedExecutor(lambda unit, tries: "hang" if unit == UNITS[0] and tries == 1 else receipt(unit))
    attempts: list[Attempt] = []
    result = dispatch(UNITS, executor, clock=executor.clock, on_attempt=attempts.append)
    assert result.done == len(UNITS)
    assert 30 < executor.now < 60
    slow = next(task for task in executor.tasks if UNITS[0] in task.units)
    assert executor.abandoned == [slow]
    assert [task.units for task in executor.tasks].count(slow.units) == 2
    assert [(a.attempt, a.status) for a in attempts if a.unit == UNITS[0]] == [(1, "done")]


def test_a_lost_straggler_is_left_to_its_backup() -> None:
    polls = Counter[str]()

    class Dying(ScriptedExecutor):
        """The first unit's task hangs, and is lost once its backup is there."""

        def poll(self, timeout: float) -> list[Outcome]:
            if self._hanging and self._waiting and not polls["lost"]:
                polls["lost"] += 1
                return [Outcome(self._hanging.pop(), lost="its node went")]
            return super().poll(timeout)

    executor = Dying(lambda unit, tries: "hang" if unit == UNITS[0] and tries == 1 else receipt(unit), slots=2)
    attempts: list[Attempt] = []
    result = dispatch(
        UNITS[:1], executor, clock=executor.clock, expected_seconds={("tile", "none"): 1.0}, on_attempt=attempts.append
    )
    assert (result.done, polls["lost"], len(executor.tasks)) == (1, 1, 2)
    assert [a.status for a in attempts] == ["lost", "done"]


def test_a_unit_whose_worker_is_killed_for_memory_again_and_again_is_set_aside_and_says_so() -> None:
    class Killing(ScriptedExecutor):
        def poll(self, timeout: float) -> list[Outcome]:
            return [
                Outcome(outcome.task, lost="OutOfMemoryError: killed", out_of_memory=True) if outcome.lost else outcome
                for outcome in super().poll(timeout)
            ]

    executor = Killing(lambda unit, tries: "lost" if unit == UNITS[5] else receipt(unit))
    result = dispatch(UNITS, executor, clock=executor.clock)
    assert result.set_aside == {UNITS[5]: "its worker was killed for memory 3 times; use fewer workers or more memory"}
    assert executor.tries[UNITS[5]] == 3
    assert result.done == len(UNITS) - 1


def test_in_flight_work_is_bounded() -> None:
    executor = ScriptedExecutor(lambda unit, tries: receipt(unit), slots=3)
    dispatch([Unit(TileKey(0, column), "none") for column in range(500)], executor, clock=executor.clock)
    assert executor.most_in_flight == 6


def test_short_units_travel_together_and_long_ones_alone() -> None:
    many = [Unit(TileKey(0, column), "none") for column in range(500)]
    for seconds, largest in ((0.1, 30), (100.0, 1)):
        executor = ScriptedExecutor(lambda unit, tries, seconds=seconds: receipt(unit, seconds=seconds), slots=1)
        dispatch(many, executor, clock=executor.clock, policy=Policy(task_seconds=15))
        sizes = [len(task.units) for task in executor.tasks]
        assert max(sizes) >= largest if seconds < 1 else max(sizes) == largest
        assert sum(sizes) == len(many)


def test_a_full_disk_stops_the_run_at_once() -> None:
    executor = ScriptedExecutor(lambda unit, tries: receipt(unit, "the disk is full", "StorageUnavailableError"))
    with pytest.raises(StorageUnavailableError, match="the disk is full"):
        dispatch(UNITS, executor, clock=executor.clock)
    assert len(executor.tries) == 1


def test_the_serial_executor_runs_tasks_when_polled() -> None:
    executor = SerialExecutor(lambda units: [receipt(unit) for unit in units])
    assert dispatch(UNITS, executor).done == len(UNITS)
    assert executor.poll(0) == []


def finishing_after(seconds: float) -> type[ScriptedExecutor]:
    """An executor whose tasks run one after the other on each slot and take some time each."""

    class Slow(ScriptedExecutor):
        def poll(self, timeout: float) -> list[Outcome]:
            self.now += timeout
            while len(self._hanging) < self._slots and self._waiting:
                task = self._waiting.popleft()
                self.tries.update(task.units)
                self._hanging.append(task)
                self.ends[task.number] = self.now + seconds * len(task.units)
            ended = [task for task in self._hanging if self.ends[task.number] <= self.now]
            self._hanging = [task for task in self._hanging if task not in ended]
            return [Outcome(task, tuple(receipt(unit, seconds=seconds) for unit in task.units)) for task in ended]

        def abandon(self, task: Task) -> None:
            self.abandoned.append(task)
            self._hanging = [other for other in self._hanging if other.number != task.number]
            self._waiting = deque(other for other in self._waiting if other.number != task.number)

    Slow.ends = {}  # type: ignore[attr-defined]
    return Slow


def test_tiles_longer_than_the_least_deadline_are_left_to_finish_when_the_plan_knows_it() -> None:
    executor = finishing_after(1200.0)(lambda unit, tries: receipt(unit), slots=4)
    result = dispatch(UNITS[:16], executor, clock=executor.clock, expected_seconds={("tile", "none"): 1000.0})
    assert result.done == 16
    assert not executor.abandoned


def test_tiles_of_unknown_length_are_given_twice_the_time_after_each_deadline() -> None:
    executor = finishing_after(1200.0)(lambda unit, tries: receipt(unit), slots=4)
    result = dispatch(UNITS[:16], executor, clock=executor.clock)
    assert result.done == 16
    assert not result.set_aside
