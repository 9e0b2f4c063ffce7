"""The executor that runs tasks on Ray: an embedded local one, or an existing cluster. The only module that imports Ray."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.metrics import Counter, Gauge, Histogram

from semrsm_dist.runtime.head import Head
from semrsm_dist.runtime.plan import machine_cpus
from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit
from semrsm_dist.runtime.worker import RsmJob, TileWorker, refusals
from storage_schemas.errors import InvalidInputError, SemrsmError

_SECONDS_BETWEEN_RESOURCE_QUERIES = 5.0
_STARTS = 3  # of actors that fail in a row, before the tasks that wait for them are lost
_SECONDS_BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_RESULTS_AHEAD = 2  # for each CPU: one that is computed while another waits to be taken
Item = TypeVar("Item")
Result = TypeVar("Result")


def _run_units(job: dict[str, Any], units: tuple[Unit, ...]) -> list[Receipt]:
    """What a Ray worker runs; the worker of the last job is kept in the process, with its blocks."""
    global _kept
    if _kept is None or _kept[0] != job:
        try:
            _kept = (job, TileWorker(RsmJob.from_json(job)))
        except SemrsmError as error:
            return refusals(units, error)
    return _kept[1].run(units)


_kept: tuple[dict[str, Any], TileWorker] | None = None


class _Metrics:
    """What Ray's own metrics say of a run, for dashboards: Prometheus scrapes them from every node as ``ray_semrsm_…``."""

    def __init__(self, out: str) -> None:
        self._tags = {"store": out}
        kind = ("store", "part", "invariance", "node")
        self._attempts = Counter("semrsm_attempts", "Attempts at tiles and norms that came back.", (*kind, "status"))
        self._seconds = Histogram("semrsm_unit_seconds", "Seconds of a tile or of norms.", _SECONDS_BOUNDARIES, kind)
        self._memory = Gauge(
            "semrsm_worker_peak_bytes", "Largest resident memory of a worker so far.", ("store", "node", "pid")
        )
        self._lost = Counter("semrsm_lost_tasks", "Tasks that came to nothing.", ("store", "out_of_memory"))
        self._figures: dict[str, Gauge] = {}

    def outcome(self, outcome: Outcome) -> None:
        """One task that ended."""
        if outcome.lost is not None:
            self._lost.inc(tags={**self._tags, "out_of_memory": str(outcome.out_of_memory).lower()})
        for receipt in outcome.receipts:
            unit = receipt.unit
            tags = {**self._tags, "part": unit.part, "invariance": unit.invariance, "node": receipt.node}
            self._attempts.inc(tags={**tags, "status": "failed" if receipt.error else "done"})
            self._seconds.observe((receipt.ended - receipt.started).total_seconds(), tags=tags)
            where = {**self._tags, "node": receipt.node, "pid": str(receipt.pid)}
            self._memory.set(receipt.peak_memory_bytes, tags=where)

    def figure(self, name: str, value: float) -> None:
        """A figure of the whole run."""
        if name not in self._figures:
            self._figures[name] = Gauge(f"semrsm_{name}", f"{name.replace('_', ' ').capitalize()} of the run.", ("store",))
        self._figures[name].set(value, tags=self._tags)


class _OnRay(ABC):
    """What every executor on Ray has: the connection, the watch over the head, tasks that wait or run, and metrics.

    Parameters
    ----------
    out
        Store that is written, for the metrics.
    address
        Address of an existing cluster; ``RAY_ADDRESS`` of the environment when None (as inside ``ray job submit``);
        without either a local Ray is started on loopback, and stopped by :meth:`close`.
    workers
        Tasks at once at the most; as many as there is room for when None.
    cpus
        CPUs of the embedded Ray; the machine's when None.

    Raises
    ------
    InvalidInputError
        When the cluster cannot be reached.
    """

    def __init__(self, out: str, address: str | None, workers: int | None, cpus: int | None) -> None:
        self._workers = workers
        self._tasks: dict[Any, Task] = {}
        self._waiting: deque[Task] = deque()
        self._slots, self._next_query = 1, 0.0
        self._started_ray = connect(address, cpus)
        self._metrics = _Metrics(out)
        self._head = Head(ray.get_runtime_context().gcs_address)

    def slots(self) -> int:
        """Tasks that the cluster can run at once, or ``workers`` when that is less."""
        now = time.monotonic()
        if now >= self._next_query:
            self._slots = self._head.call(lambda: max(self._count_slots(ray.cluster_resources()), 1))
            self._next_query = now + _SECONDS_BETWEEN_RESOURCE_QUERIES
        return min(self._slots, self._workers) if self._workers else self._slots

    def submit(self, task: Task) -> None:
        """Submit a task."""
        self._waiting.append(task)
        self._head.call(self._start_waiting)

    def poll(self, timeout: float) -> list[Outcome]:
        """Tasks that have ended; one whose worker or node died is lost.

        Raises
        ------
        ClusterLostError
            When the head of the cluster does not answer any more, as every other call.
        """
        return self._head.call(lambda: self._poll(timeout))

    def abandon(self, task: Task) -> None:
        """Cancel a task, by force."""
        if task in self._waiting:
            self._waiting.remove(task)
        for reference, known in list(self._tasks.items()):
            if known.number == task.number:
                del self._tasks[reference]
                self._head.call(partial(self._stop, reference))

    def show(self, figures: Mapping[str, float]) -> None:
        """Figures of the run as Ray metrics."""
        for name, value in figures.items():
            self._metrics.figure(name, value)

    def close(self) -> None:
        """Cancel what still runs; stop the embedded Ray."""
        self._head.end()
        if self._head.lost:
            return
        self._waiting.clear()
        for task in list(self._tasks.values()):
            self.abandon(task)
        if self._started_ray:
            ray.shutdown()

    def _poll(self, timeout: float) -> list[Outcome]:
        outcomes = [self._outcome(reference) for reference in _ended(list(self._tasks), timeout)]
        for outcome in outcomes:
            self._metrics.outcome(outcome)
        self._start_waiting()
        return outcomes

    def _outcome(self, reference: Any) -> Outcome:
        """What a finished reference came to."""
        task = self._tasks.pop(reference)
        try:
            return Outcome(task, tuple(ray.get(reference, timeout=60)))
        except (RayError, GetTimeoutError, TaskCancelledError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no further word'}"
            return Outcome(task, lost=reason, out_of_memory=isinstance(error, OutOfMemoryError))

    def _count_slots(self, resources: Mapping[str, float]) -> int:
        """Tasks that run at once on these resources."""
        return int(resources.get("CPU", 1))

    @abstractmethod
    def _start_waiting(self) -> None:
        """Hand over to Ray what may be."""

    @abstractmethod
    def _stop(self, reference: Any) -> None:
        """End what computes a reference."""


def _ended(references: list[Any], timeout: float) -> list[Any]:
    """Those that have ended, all of them, waiting for the first."""
    if not references:
        return []
    ended, _ = ray.wait(references, num_returns=1, timeout=timeout)
    if ended:
        ended, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return list(ended)


class RayExecutor(_OnRay):
    """Runs the tiles of an RSM as Ray tasks.

    Parameters
    ----------
    job
        What the workers compute.
    address, workers
        Where, and how many at once; a local Ray on loopback when there is no address.
    memory_bytes
        Memory to reserve for each task on an existing cluster.

    Raises
    ------
    InvalidInputError
        When the cluster cannot be reached.
    """

    def __init__(
        self, job: RsmJob, *, address: str | None = None, workers: int | None = None, memory_bytes: int | None = None
    ) -> None:
        super().__init__(job.out, address, workers, cpus=workers)
        self._job = job.to_json()
        # max_retries=0: the dispatch loop sees every loss, and submits again by its own policy.
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": 0}
        if memory_bytes and not self._started_ray:
            options["memory"] = memory_bytes
        self._remote = ray.remote(**options)(_run_units)

    def _start_waiting(self) -> None:
        """On a cluster with more CPUs than workers are wanted, Ray would start all at once."""
        most = None if self._started_ray else self._workers
        while self._waiting and (most is None or len(self._tasks) < most):
            task = self._waiting.popleft()
            self._tasks[self._remote.remote(self._job, task.units)] = task

    def _stop(self, reference: Any) -> None:
        ray.cancel(reference, force=True)


class Worker(Protocol):
    """What an actor keeps: a network on its device, say."""

    def run(self, units: Iterable[Unit]) -> list[Receipt]:
        """Do the units one after the other."""


class _Actor:
    """What a Ray actor is: a worker that is made with the first task and kept for the others."""

    def __init__(self, make: Callable[[dict[str, Any]], Worker], job: dict[str, Any]) -> None:
        self._make, self._job = make, job
        self._worker: Worker | None = None

    def ready(self) -> None:
        """Returns once the actor has a place on a node."""

    def run(self, units: tuple[Unit, ...]) -> list[Receipt]:
        """The receipts of one task."""
        if self._worker is None:
            try:
                self._worker = self._make(self._job)
            except SemrsmError as error:
                return refusals(units, error)
        return self._worker.run(units)


class RayActorExecutor(_OnRay):
    """Runs tasks on a pool of Ray actors, which keep what is expensive to make; the pool follows the cluster.

    Parameters
    ----------
    make
        Makes the worker of an actor from ``job``; a function of a module, which the actors import.
    job
        Plain values for ``make``, given the CPUs that an actor gets.
    out
        Store that is written, for the metrics.
    address, workers
        Where, and how many actors at the most; a local Ray on loopback when there is no address.
    cpus, gpus
        What an actor reserves: CPUs, but no more than the largest node has, and GPUs, of which fractions are shared.

    Raises
    ------
    InvalidInputError
        When the cluster cannot be reached, or the embedded Ray has no such GPUs.
    """

    def __init__(
        self,
        make: Callable[[dict[str, Any]], Worker],
        job: Callable[[int], dict[str, Any]],
        out: str,
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
    ) -> None:
        super().__init__(out, address, workers, cpus=None)
        there = int(ray.cluster_resources().get("GPU", 0))
        if self._started_ray and there < gpus:
            ray.shutdown()
            raise InvalidInputError(f"An actor needs {gpus:g} GPUs and this machine has {there}; name a cluster that has them.")
        cpus = min(cpus, _largest_node_cpus())  # an actor that no node can hold would be waited for
        self._make, self._job, self._cpus, self._gpus = make, job(cpus), cpus, gpus
        self._failed_starts, self._why = 0, ""
        self._actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}

    def close(self) -> None:
        """End the actors; stop the embedded Ray."""
        if not self._head.lost:
            for actor in (*self._starting.values(), *self._idle, *self._busy.values()):
                self._head.call(partial(ray.kill, actor))
            self._tasks.clear()
        super().close()

    def _count_slots(self, resources: Mapping[str, float]) -> int:
        by_cpu = resources.get("CPU", 1) / self._cpus if self._cpus else float("inf")
        by_gpu = resources.get("GPU", 0) / self._gpus if self._gpus else float("inf")
        return int(min(by_cpu, by_gpu))

    def _start_waiting(self) -> None:
        """Give tasks to actors that are idle, and start more actors while more can run and are wanted."""
        while self._waiting and self._idle:
            actor, task = self._idle.pop(), self._waiting.popleft()
            reference = actor.run.remote(task.units)
            self._tasks[reference], self._busy[reference] = task, actor
        most = min(self._slots, self._workers) if self._workers else self._slots
        wanted = min(len(self._waiting), most - len(self._busy) - len(self._idle)) - len(self._starting)
        for _ in range(wanted):
            actor = self._actor.remote(self._make, self._job)
            self._starting[actor.ready.remote()] = actor

    def _poll(self, timeout: float) -> list[Outcome]:
        for reference in _ended(list(self._starting), 0 if self._tasks else timeout):
            actor = self._starting.pop(reference)
            try:
                ray.get(reference, timeout=60)
                self._idle.append(actor)
                self._failed_starts = 0
            except RayError as error:  # its node has gone, or lacks this package: another is started below
                self._failed_starts += 1
                self._why = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no word")
        self._start_waiting()
        outcomes = super()._poll(timeout)
        if self._failed_starts >= _STARTS and self._waiting and not (self._idle or self._busy):
            reason = f"{self._failed_starts} actors in a row could not be started: {self._why}"
            outcomes.append(Outcome(self._waiting.popleft(), lost=reason))
        return outcomes

    def _outcome(self, reference: Any) -> Outcome:
        actor = self._busy.pop(reference)
        outcome = super()._outcome(reference)
        if outcome.lost is None:
            self._idle.append(actor)
        else:
            ray.kill(actor)
        return outcome

    def _stop(self, reference: Any) -> None:
        ray.kill(self._busy.pop(reference))


@contextmanager
def ray_map(address: str | None = None, workers: int | None = None) -> Iterator[Callable[..., Iterator[Any]]]:
    """:func:`map_on_ray` for as long as the context lasts, on the Ray that :class:`RayExecutor` would use."""
    started = connect(address, workers)
    try:
        yield partial(map_on_ray, workers=workers)
    finally:
        if started:
            ray.shutdown()


def map_on_ray(function: Callable[[Item], Result], items: Iterable[Item], /, *, workers: int | None = None) -> Iterator[Result]:
    """Apply a function to every item on Ray, and give the results in the order of the items.

    Needs a Ray that is connected (:func:`connect`). At most two items for each CPU are submitted and not yet taken, so that
    results do not pile up; items whose worker or node dies are computed again by Ray, which suits functions without side
    effects.

    Parameters
    ----------
    function
        Sent to the cluster once.
    items
        Taken only as they are submitted.
    workers
        The most CPUs to use; all of them when None.

    Raises
    ------
    Exception
        What the function raised.
    """
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    most = _RESULTS_AHEAD * (min(cpus, workers) if workers else cpus)
    shared = ray.put(function)
    apply = ray.remote(num_cpus=1)(_apply)
    waiting: deque[Any] = deque()
    try:
        for item in items:
            if len(waiting) == most:
                yield _taken(waiting.popleft())
            waiting.append(apply.remote(shared, item))
        while waiting:
            yield _taken(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    """What a Ray worker runs for :func:`map_on_ray`."""
    return function(item)


def _taken(reference: Any) -> Any:
    """A result; an exception as the function raised it, without Ray's around it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error


def cluster_slots(address: str | None) -> int:
    """CPUs of an existing cluster."""
    connect(address, None)
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def _largest_node_cpus() -> int:
    """CPUs of the node that has most."""
    return max((int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]), default=1) or 1


def cluster_memory_per_cpu(address: str | None) -> int | None:
    """Bytes of memory for each CPU, on the node of an existing cluster that has least; None when Ray does not say."""
    connect(address, None)
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min(
        (int(each["memory"] / each["CPU"]) for each in resources if each.get("CPU") and each.get("memory")), default=None
    )


def connect(address: str | None, workers: int | None) -> bool:
    """Connect to Ray unless connected; returns whether a local Ray was started here."""
    if ray.is_initialized():
        return False
    wanted = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if wanted:
        try:
            ray.init(address=wanted, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"There is no Ray cluster at {wanted} ({str(error).splitlines()[0]}); "
                "start one with `ray start --head`, or leave the address out for a local Ray."
            ) from error
        return False
    ray.init(
        address="local",
        num_cpus=workers or machine_cpus(),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        **quiet,
    )
    return True
