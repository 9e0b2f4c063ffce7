"""The executor that runs tasks on Ray: an embedded local one, or an existing cluster. The only module that imports Ray."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.metrics import Counter, Gauge, Histogram

from semrsm_dist.runtime.plan import machine_cpus
from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit
from semrsm_dist.runtime.worker import RsmJob, TileWorker, refusals
from storage_schemas.errors import ClusterLostError, InvalidInputError, SemrsmError

_SECONDS_BETWEEN_RESOURCE_QUERIES = 5.0
_SECONDS_BETWEEN_CALLS = 3.0
_SILENT_CALLS = 5  # to the head; Ray itself ends the process after a minute, without a word of ours
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


class _Head:
    """The head of the cluster, and calls to Ray that end when it is lost: left alone, they hang until Ray ends the process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._silent = 0
        self._ended = threading.Event()
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        for run in (self._watch, self._call_one_after_the_other):
            threading.Thread(target=run, name=f"head at {address}", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the head has not been reached several times in a row."""
        return self._silent >= _SILENT_CALLS

    def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns; raises :class:`ClusterLostError` when the head is lost, whether or not it returns."""
        future: Future[Any] = Future()
        self._calls.put((function, future))
        while not self.lost:
            try:
                return cast("Result", future.result(timeout=_SECONDS_BETWEEN_CALLS))
            except TimeoutError:
                if future.done():
                    raise
        raise ClusterLostError(
            f"The Ray cluster at {self.address} does not answer any more; what is finished is kept, "
            "and the same command goes on from there with another cluster."
        )

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _call_one_after_the_other(self) -> None:
        """What the thread that talks to Ray does."""
        while True:
            function, future = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _watch(self) -> None:
        """What the thread that watches does."""
        host, _, port = self.address.rpartition(":")
        while not self._ended.wait(_SECONDS_BETWEEN_CALLS):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_BETWEEN_CALLS).close()
                self._silent = 0
            except OSError:
                self._silent += 1


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


class RayExecutor:
    """Runs tasks on Ray.

    Parameters
    ----------
    job
        What the workers compute.
    address
        Address of an existing cluster; ``RAY_ADDRESS`` of the environment when None (as inside ``ray job submit``);
        without either a local Ray is started on loopback, and stopped by :meth:`close`.
    workers
        Tasks at once: CPUs of the embedded Ray, or the most to use of a cluster; all of them when None.
    memory_bytes
        Memory to reserve for each task on an existing cluster.

    Raises
    ------
    InvalidInputError
        When the cluster cannot be reached.
    """

    def __init__(
        self,
        job: RsmJob,
        *,
        address: str | None = None,
        workers: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self._job, self._workers = job.to_json(), workers
        self._tasks: dict[Any, Task] = {}
        self._waiting: deque[Task] = deque()
        self._slots, self._next_query = 1, 0.0
        self._started_ray = connect(address, workers)
        self._metrics = _Metrics(job.out)
        self._head = _Head(ray.get_runtime_context().gcs_address)
        # max_retries=0: the dispatch loop sees every loss, and submits again by its own policy.
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": 0}
        if memory_bytes and not self._started_ray:
            options["memory"] = memory_bytes
        self._remote = ray.remote(**options)(_run_units)

    def slots(self) -> int:
        """CPUs of the cluster, or ``workers`` when that is less."""
        now = time.monotonic()
        if now >= self._next_query:
            self._slots = self._head.call(lambda: max(int(ray.cluster_resources().get("CPU", 1)), 1))
            self._next_query = now + _SECONDS_BETWEEN_RESOURCE_QUERIES
        return min(self._slots, self._workers) if self._workers else self._slots

    def submit(self, task: Task) -> None:
        """Submit a task."""
        self._waiting.append(task)
        self._head.call(self._start_waiting)

    def _start_waiting(self) -> None:
        """Hand over to Ray what may be: on a cluster with more CPUs than workers are wanted, Ray would start all at once."""
        most = None if self._started_ray else self._workers
        while self._waiting and (most is None or len(self._tasks) < most):
            task = self._waiting.popleft()
            self._tasks[self._remote.remote(self._job, task.units)] = task

    def poll(self, timeout: float) -> list[Outcome]:
        """Tasks that have ended; one whose worker or node died is lost.

        Raises
        ------
        ClusterLostError
            When the head of the cluster does not answer any more, as every other call.
        """
        return self._head.call(lambda: self._poll(timeout))

    def _poll(self, timeout: float) -> list[Outcome]:
        if not self._tasks:
            return []
        ended, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        if ended:  # take all that have ended by now, not only the first
            ended, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        outcomes = [self._outcome(reference) for reference in ended]
        for outcome in outcomes:
            self._metrics.outcome(outcome)
        self._start_waiting()
        return outcomes

    def abandon(self, task: Task) -> None:
        """Cancel a task, by force."""
        if task in self._waiting:
            self._waiting.remove(task)
        for reference, known in list(self._tasks.items()):
            if known.number == task.number:
                del self._tasks[reference]
                self._head.call(partial(ray.cancel, reference, force=True))

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

    def _outcome(self, reference: Any) -> Outcome:
        """What a finished reference came to."""
        task = self._tasks.pop(reference)
        try:
            return Outcome(task, tuple(ray.get(reference, timeout=60)))
        except (RayError, GetTimeoutError, TaskCancelledError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no further word'}"
            return Outcome(task, lost=reason, out_of_memory=isinstance(error, OutOfMemoryError))


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
