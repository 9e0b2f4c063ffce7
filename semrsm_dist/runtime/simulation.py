"""A discrete-event run of the dispatch loop itself on a cluster that exists on paper only.

The loop is the one that runs on Ray, and so are its subscribers: events are written, to a temporary folder, and the time left
is forecast. What is simulated is the executor and the clock. Nodes are lost and come back, some tasks straggle, and losses are
noticed late, as on a real cluster. What comes out is how long the run would take, how much of the cluster's time would be
useful, and what the driver itself costs, which is measured and not simulated.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from semrsm_dist.grid import TileKey
from semrsm_dist.progress import duration
from semrsm_dist.runtime.dispatch import Policy, dispatch
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.forecast import Forecast
from semrsm_dist.runtime.order import along_the_curve
from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit
from semrsm_dist.runtime.watch import Watch
from semrsm_dist.runtime.worker import peak_memory_bytes
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location
from storage_schemas.rsm import events_url

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cluster:
    """The cluster and its troubles. Times are seconds."""

    workers: int = 1000
    """Tasks that run at once while all nodes are there."""
    workers_per_node: int = 8
    stragglers: float = 0.01
    """Share of the tasks that take :attr:`slowdown` times as long."""
    slowdown: float = 5.0
    failures: float = 1.0
    """Nodes lost per minute; what runs on them is lost."""
    notice: float = 30.0
    """From the loss of a node to the driver being told."""
    replacement: float = 120.0
    """From the loss of a node to another in its place."""
    spread: float = 0.1
    """Standard deviation of a unit's duration, relative to its mean."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("workers", self.workers, 1),
            ("workers_per_node", self.workers_per_node, 1),
            ("slowdown", self.slowdown, 1),
            ("stragglers", self.stragglers, 0),
            ("failures", self.failures, 0),
            ("notice", self.notice, 0),
            ("replacement", self.replacement, 0),
            ("spread", self.spread, 0),
        ):
            if not least <= value < float("inf"):
                raise InvalidInputError(f"A cluster to simulate has {name}={value:g}; it must be at least {least}.")
        if self.stragglers > 1:
            raise InvalidInputError(f"A cluster to simulate has stragglers={self.stragglers:g}; it is a share, at most 1.")

    def __str__(self) -> str:
        return (
            f"{self.workers:,} workers, {self.workers_per_node} to a node, {self.failures:g} nodes lost a minute, "
            f"{self.stragglers:.1%} of tasks {self.slowdown:g} × slower"
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """A cluster from ``workers=1000,failures=1,stragglers=0.01``.

        >>> Cluster.parse("workers=50,failures=0").workers
        50
        """
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, sign, value = part.partition("=")
            if name not in known or not sign:
                raise InvalidInputError(f"A simulation takes {', '.join(f'{name}=…' for name in known)}, and not {part!r}.")
            try:
                values[name] = int(value) if str(known[name].type) == "int" else float(value)
            except ValueError as error:
                raise InvalidInputError(f"A simulation cannot take {part!r}; {name} is a number.") from error
        return cls(**values)


@dataclass(frozen=True)
class Simulation:
    """What a simulated run came to."""

    units: int
    makespan: float
    """Seconds from the first submission to the last receipt."""
    efficiency: float
    """Time that units should take, over the time that workers were there."""
    tasks: int
    nodes_lost: int
    tasks_lost: int
    abandoned: int
    """Tasks given up because a copy ended first, or at their deadline."""
    driver_seconds_per_unit: float
    """CPU time of ordering, dispatching, recording events and forecasting, measured."""
    driver_bytes_per_unit: float
    """Memory that the driver took beyond what it had before, at its peak, the simulation included; measured."""

    def __str__(self) -> str:
        return "\n".join(
            (
                f"  units        {self.units:,} in {self.tasks:,} tasks",
                f"  makespan     {duration(self.makespan)}",
                f"  efficiency   {self.efficiency:.1%} of the workers' time",
                f"  lost         {self.nodes_lost:,} nodes, {self.tasks_lost:,} tasks; {self.abandoned:,} given up",
                f"  driver       {self.driver_seconds_per_unit * 1e3:.3f} ms, {self.driver_bytes_per_unit:,.0f} bytes a unit",
            )
        )


def simulate(n_units: int, unit_seconds: float, cluster: Cluster, policy: Policy | None = None) -> Simulation:
    """Run the dispatch loop over ``n_units`` of ``unit_seconds`` each on a cluster on paper.

    Parameters
    ----------
    n_units
        Tiles to compute.
    unit_seconds
        Mean duration of one, as the plan estimates it.
    cluster
        Workers, and what happens to them.
    policy
        How the loop decides; the defaults when None.
    """
    memory = peak_memory_bytes()
    executor = SimulatedExecutor(cluster, unit_seconds)
    expected = {("tile", "permutation"): unit_seconds}

    def clock() -> float:
        return executor.now

    with TemporaryDirectory() as folder:
        store = Location.of(folder) / "paper.zarr"
        begin = time.process_time()
        side = math.isqrt(n_units - 1) + 1
        units = along_the_curve([Unit(TileKey(number // side, number % side), "permutation") for number in range(n_units)])
        recorder = EventRecorder(events_url(store), clock=clock)
        forecast = Forecast(units, expected, cluster.workers, clock)
        watch = Watch(store, executor, recorder, forecast, 0, n_units, clock=clock)
        result = dispatch(
            units,
            executor,
            policy=policy,
            on_attempt=watch.follow,
            on_idle=watch.idle,
            clock=clock,
            expected_seconds=expected,
        )
        recorder.close()
        driver = time.process_time() - begin - executor.own_seconds
    return Simulation(
        units=result.done,
        makespan=executor.last_end,
        efficiency=n_units * unit_seconds / executor.worker_seconds(executor.last_end),
        tasks=executor.submitted,
        nodes_lost=executor.nodes_lost,
        tasks_lost=executor.tasks_lost,
        abandoned=executor.abandoned,
        driver_seconds_per_unit=driver / n_units,
        driver_bytes_per_unit=(peak_memory_bytes() - memory) / n_units,
    )


class SimulatedExecutor:
    """An executor whose time passes when it is polled.

    Parameters
    ----------
    cluster
        Workers, and what happens to them.
    unit_seconds
        Mean duration of a unit.
    """

    def __init__(self, cluster: Cluster, unit_seconds: float) -> None:
        self.now = self.last_end = self.own_seconds = 0.0
        self.submitted = self.nodes_lost = self.tasks_lost = self.abandoned = 0
        self._cluster, self._unit_seconds = cluster, unit_seconds
        self._random = np.random.default_rng(cluster.seed)
        per_node = cluster.workers_per_node
        sizes = [min(per_node, cluster.workers - first) for first in range(0, cluster.workers, per_node)]
        self._capacity = sizes
        self._free = list(sizes)
        self._alive = [True] * len(sizes)
        self._idle_nodes = deque(range(len(sizes)))  # may name a node twice, or one that is full or gone
        self._queue: deque[Task] = deque()
        self._running: dict[int, tuple[int, float, Task]] = {}  # task number: node, start, task
        self._gone: set[int] = set()  # numbers of queued tasks that were abandoned
        self._events: list[tuple[float, int, str, Any]] = []
        self._sequence = 0
        self._workers_there, self._counted_to, self._worker_seconds = cluster.workers, 0.0, 0.0
        if cluster.failures:
            self._after(self._until_next_loss(), "lose a node", None)

    def slots(self) -> int:
        """Workers that are there."""
        return self._workers_there

    def submit(self, task: Task) -> None:
        """Queue a task, and start it if a worker is free."""
        begin = time.process_time()
        self.submitted += 1
        self._queue.append(task)
        self._start_queued()
        self.own_seconds += time.process_time() - begin

    def poll(self, timeout: float) -> list[Outcome]:
        """Let time pass until a task ends, or the timeout."""
        begin = time.process_time()
        until, outcomes = self.now + timeout, list[Outcome]()
        while self._events and self._events[0][0] <= (self.now if outcomes else until):
            self.now, _, kind, subject = heapq.heappop(self._events)
            outcomes += self._happen(kind, subject)
        if not outcomes:
            self.now = until
        self.own_seconds += time.process_time() - begin
        return outcomes

    def abandon(self, task: Task) -> None:
        """Kill a task, or take it off the queue."""
        self.abandoned += 1
        if task.number in self._running:
            self._release(task.number)
            self._start_queued()
        else:
            self._gone.add(task.number)

    def show(self, figures: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing to give back."""

    def worker_seconds(self, until: float) -> float:
        """Time that workers were there, summed over workers."""
        return self._worker_seconds + (until - self._counted_to) * self._workers_there

    def _happen(self, kind: str, subject: Any) -> list[Outcome]:
        """One event; returns what the driver is told."""
        if kind == "end":
            if subject not in self._running:
                return []  # abandoned, or lost with its node
            start, task = self._release(subject)
            self._start_queued()
            self.last_end = self.now
            return [Outcome(task, tuple(self._receipt(unit, start, len(task.units)) for unit in task.units))]
        if kind == "tell":
            return [subject]
        if kind == "return a node":
            self._count_workers(self._capacity[subject])
            self._alive[subject], self._free[subject] = True, self._capacity[subject]
            self._idle_nodes.append(subject)
            self._start_queued()
            return []
        self._after(self._until_next_loss(), "lose a node", None)
        node = int(self._random.integers(len(self._alive)))
        if not self._alive[node]:
            return []
        self.nodes_lost += 1
        self._count_workers(-self._capacity[node])
        self._alive[node], self._free[node] = False, 0
        for number in [number for number, (where, _, _) in self._running.items() if where == node]:
            _, _, task = self._running.pop(number)
            self.tasks_lost += 1
            self._after(self._cluster.notice, "tell", Outcome(task, lost="its node was lost"))
        self._after(self._cluster.replacement, "return a node", node)
        return []

    def _start_queued(self) -> None:
        """Start what is queued on the workers that are free."""
        while self._queue and self._idle_nodes:
            node = self._idle_nodes[0]
            if self._free[node] == 0:
                self._idle_nodes.popleft()
                continue
            task = self._queue.popleft()
            if task.number in self._gone:
                self._gone.discard(task.number)
                continue
            self._free[node] -= 1
            self._running[task.number] = (node, self.now, task)
            seconds = self._unit_seconds * self._random.normal(1.0, self._cluster.spread, len(task.units)).clip(0.1).sum()
            if self._random.random() < self._cluster.stragglers:
                seconds *= self._cluster.slowdown
            self._after(float(seconds), "end", task.number)

    def _release(self, number: int) -> tuple[float, Task]:
        """Free the worker of a running task; returns when it started, and the task."""
        node, start, task = self._running.pop(number)
        if self._free[node] == 0:
            self._idle_nodes.append(node)
        self._free[node] += 1
        return start, task

    def _receipt(self, unit: Unit, start: float, units: int) -> Receipt:
        """A receipt of one of the units of a task."""
        begin = _EPOCH + timedelta(seconds=start)
        end = begin + timedelta(seconds=(self.now - start) / units)
        return Receipt(unit, None, None, "simulated", begin, end, 0.0, 0.0, 0.0, 0, "node", 0)

    def _count_workers(self, change: int) -> None:
        """Workers came or went."""
        self._worker_seconds += (self.now - self._counted_to) * self._workers_there
        self._counted_to = self.now
        self._workers_there += change

    def _until_next_loss(self) -> float:
        return float(self._random.exponential(60.0 / self._cluster.failures))

    def _after(self, seconds: float, kind: str, subject: Any) -> None:
        """Something happens later."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + seconds, self._sequence, kind, subject))
