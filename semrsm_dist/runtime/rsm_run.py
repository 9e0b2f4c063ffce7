"""One RSM from start to end: create the store, find what is missing, dispatch it, verify the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Literal

from semrsm_dist.grid import DEFAULT_TILE_SIZE, Grid, MinibatchGrid, RectangularGrid, SymmetricGrid
from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.names import Centring, Invariance
from semrsm_dist.progress import Report
from semrsm_dist.runtime.dispatch import Attempt, Executor, Policy, Standing, dispatch
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.forecast import Forecast
from semrsm_dist.runtime.inventory import count_units, damaged_units, delete_unit, grid_of, missing_units
from semrsm_dist.runtime.order import along_the_curve
from semrsm_dist.runtime.plan import RsmPlan, machine_cpus, machine_memory_bytes, make_plan, time_pairs
from semrsm_dist.runtime.pulse import end_pulse
from semrsm_dist.runtime.serial_executor import SerialExecutor
from semrsm_dist.runtime.units import Unit
from semrsm_dist.runtime.watch import Watch
from semrsm_dist.runtime.worker import RsmJob, TileWorker
from semrsm_dist.tile import CentreAccumulator
from storage_schemas import (
    ActivationStore,
    DamagedChunkError,
    IncompleteStoreError,
    InvalidInputError,
    RsmStore,
    StorageUnavailableError,
)
from storage_schemas.activations import samples_url
from storage_schemas.fingerprint import fingerprint
from storage_schemas.lease import LEASE_SECONDS, Lease
from storage_schemas.location import Location, relative
from storage_schemas.rsm import events_url
from storage_schemas.tables import SAMPLES, read_table

NUMERICS = 3
"""Version of how numbers are computed; part of every fingerprint, raised when a change alters a bit of a result."""


_VERIFY_ROUNDS = 3
_MEMORY_SHARE = 0.8
"""Of the machine's memory; the rest is for the driver, Ray and the system."""


@dataclass(frozen=True)
class RsmSettings:
    """What an RSM is computed with."""

    invariances: tuple[Invariance, ...] = ("none", "permutation", "pooled")
    centring: Centring = "position"
    matching: MatchingSettings = field(default_factory=MatchingSettings)
    tile_size: int = DEFAULT_TILE_SIZE
    batch_size: int | None = None
    """Compute pairs within batches of this size only (for minibatch CKA); needs rows and columns to be the same."""
    store_upper_bound: bool = False
    """Store what no matching of a pair exceeds beside its inner product, under the permutation invariance."""

    def __post_init__(self) -> None:
        if self.store_upper_bound and not self.matching.certifies:
            raise InvalidInputError(
                f"There is no upper bound to store under {self.matching.method}; "
                "use optimal or batch_optimal, or leave store_upper_bound out."
            )


@dataclass(frozen=True)
class RunSettings:
    """Where and how an RSM is computed; changes no bit of the result."""

    executor: Literal["ray", "serial"] = "ray"
    address: str | None = None
    """Address of a Ray cluster; a local Ray when None."""
    workers: int | None = None
    """Tasks at once; every CPU when None."""
    memory_per_worker: int | None = None
    """Bytes a worker may use; its share of the machine's when None."""
    policy: Policy = field(default_factory=Policy)
    lease_seconds: float = LEASE_SECONDS
    """How long the store stays this run's after its last sign of life."""


@dataclass(frozen=True)
class RsmRun:
    """What a run came to."""

    planned: int
    """Units (tiles and blocks of norms) that make the finished store."""
    computed: int
    """Of those, what this run computed."""
    set_aside: dict[Unit, str]
    """What was given up, each with its reason."""


def create_rsm(
    rows_url: str, columns_url: str | None, out: str | Location, settings: RsmSettings, report: Report | None = None
) -> RsmJob:
    """Create an RSM store, or open the one that is to be gone on with, with its centre.

    Parameters
    ----------
    rows_url, columns_url
        Activation stores of the rows (queries) and columns (database); columns None is the symmetric RSM of the rows.
    out
        The RSM store.
    settings
        What it is computed with.
    report
        Told how many samples of the database have gone into the centre.

    Returns
    -------
    RsmJob
        What workers need to know.

    Raises
    ------
    InvalidInputError
        When rows and columns differ in S or C, or an invariance cannot work on them.
    IncompleteStoreError
        When an activation store is not finished.
    FingerprintMismatchError
        When the store is there and was computed from something else.
    """
    rows = ActivationStore.open(rows_url)
    columns = rows if columns_url is None else ActivationStore.open(columns_url)
    _check_alike(rows, columns)
    for invariance in settings.invariances:
        alignment(invariance, settings.matching, rows.spatial_shape)
    settings.matching.check_positions(rows.n_positions)
    grid = _grid(rows, columns, settings, symmetric=columns_url is None)
    for store in {rows.location: rows, columns.location: columns}.values():
        store.require_complete()
    location = Location.of(out)
    rsm = RsmStore.create(
        location,
        n_rows=grid.shape[0],
        n_columns=grid.shape[1],
        grid=grid.describe(),
        tile_size=grid.tile_size,
        computed_from={
            "rows": rows.fingerprint,
            "columns": columns.fingerprint,
            "centring": settings.centring,
            "matching": settings.matching.describe(),
            "numerics": NUMERICS,
            "packages": {name: version(name) for name in settings.matching.packages()},
        },
        provenance={
            "rows": relative(rows.location, location),
            "columns": relative(columns.location, location),
            "spatial_shape": list(rows.spatial_shape) if rows.spatial_shape else None,
            "samples": {"rows": _samples_hash(rows), "columns": _samples_hash(columns)},
        },
    )
    for invariance in settings.invariances:
        rsm.add_invariance(invariance, upper_bounds=settings.store_upper_bound and invariance == "permutation")
    if settings.centring != "none" and not _has_whole_centre(rsm):
        accumulator = CentreAccumulator(settings.centring)
        for samples, block in columns.blocks():
            accumulator.add(block)
            if report:
                report(samples.stop, columns.n_samples)
        centre = accumulator.result()
        assert centre is not None
        rsm.write_centre(centre)
    return RsmJob(str(rows.location), str(columns.location), str(location), rsm.fingerprint, settings.matching)


def plan_rsm(job: RsmJob, invariances: Sequence[Invariance], run: RunSettings) -> RsmPlan:
    """The plan of what is missing in a created store; raises `InvalidInputError` when it does not fit the memory."""
    store = RsmStore.open(job.out)
    rows = ActivationStore.open(job.rows)
    columns = ActivationStore.open(job.columns)
    workers = _slots(run)
    return make_plan(
        grid_of(store),
        rows,
        columns,
        invariances,
        job.matching,
        missing=along_the_curve(missing_units(store, invariances)),
        pair_seconds=time_pairs(rows, columns, store, invariances, job.matching),
        workers=workers,
        memory_limit=run.memory_per_worker or _memory_per_worker(run, workers),
    )


def run_rsm(
    job: RsmJob,
    invariances: Sequence[Invariance],
    run: RunSettings,
    *,
    plan: RsmPlan | None = None,
    discard: Collection[Unit] = (),
    report: Report | None = None,
    report_verify: Report | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> RsmRun:
    """Compute what is missing or damaged, then verify every unit, as the only writer of the store.

    A store that is finished and whole is read only: that needs no lease, and changes nothing.

    Parameters
    ----------
    job
        From :func:`create_rsm`.
    invariances
        Which ones; their arrays exist already.
    run
        Where and how.
    plan
        From :func:`plan_rsm`: gives workers their cache and reservation, and the loop what to expect; not needed.
    discard
        Units that are known to be wrong, to be computed again; they are removed once the store is this run's.
    report, report_verify
        Told how many units are in the store, and how many have been verified.
    on_attempt
        Told of every attempt.

    Raises
    ------
    StoreInUseError
        When another run is writing the store.
    LeaseLostError
        When the store has become another run's, because this one was not heard of for too long.
    StorageUnavailableError
        When the disk is full, read-only or out of reach; what is written stays.
    """
    store = RsmStore.open(job.out, writable=True)
    discard, missing = set(discard), missing_units(store, invariances)
    if not discard and not missing:
        discard = set(damaged_units(store, invariances, report_verify))
        if not discard:
            return RsmRun(count_units(store, invariances), 0, {})
    with Lease(store.location, run.lease_seconds) as lease:
        store.location.sweep()
        for unit in discard:
            delete_unit(store, unit)
        # Should another run have come and gone since the listing, its tiles are written again, with the same bytes.
        todo = [*missing, *sorted(discard - set(missing))]
        return _write(job, store, invariances, todo, run, lease, plan, report, report_verify, on_attempt)


def _write(
    job: RsmJob,
    store: RsmStore,
    invariances: Sequence[Invariance],
    todo: list[Unit],
    run: RunSettings,
    lease: Lease,
    plan: RsmPlan | None,
    report: Report | None,
    report_verify: Report | None,
    on_attempt: Callable[[Attempt], None] | None,
) -> RsmRun:
    """Rounds of computing and verifying, until nothing is damaged, while the lease is held."""
    planned = count_units(store, invariances)
    computed, set_aside = 0, dict[Unit, str]()
    executor: Executor | None = None
    expected = plan.tile_seconds if plan else {}

    def verified(done: int, total: int, /, seconds_left: float | None = None) -> None:
        lease.check()
        if report_verify:
            report_verify(done, total)

    recorder = EventRecorder(events_url(store.location))
    finished = False
    try:
        for _ in range(_VERIFY_ROUNDS):
            if todo:
                executor = executor or make_executor(job, run, plan)
                forecast = Forecast(todo, expected, executor.slots())
                watch = Watch(store.location, executor, recorder, forecast, planned - len(todo), planned, report, on_attempt)

                def idle(standing: Callable[[], Standing], watch: Watch = watch) -> None:
                    lease.check()
                    watch.idle(standing)

                result = dispatch(
                    along_the_curve(todo),
                    executor,
                    policy=run.policy,
                    on_attempt=watch.follow,
                    on_idle=idle,
                    expected_seconds=expected,
                )
                computed += result.done
                set_aside = result.set_aside
            damaged = {} if set_aside else damaged_units(store, invariances, verified)
            if not damaged:
                finished = True
                return RsmRun(planned, computed, set_aside)
            for unit in damaged:
                delete_unit(store, unit)
            todo = list(damaged)
        raise DamagedChunkError(
            f"{store.location} held {len(todo)} damaged chunks after each of {_VERIFY_ROUNDS} rounds of computing them; "
            "its storage does not keep what is written, so check the disk."
        )
    finally:
        if executor is not None:
            executor.close()
        with nullcontext() if finished else suppress(StorageUnavailableError):  # it must not hide what went wrong before
            recorder.close()
            end_pulse(store.location)
            store.location.sweep()


def make_executor(job: RsmJob, run: RunSettings, plan: RsmPlan | None = None) -> Executor:
    """The executor that the settings name; Ray is imported on first use."""
    if plan:
        job = replace(job, block_samples=plan.block_samples, cache_bytes=plan.cache_bytes)
    if run.executor == "serial":
        return SerialExecutor(TileWorker(job).run)
    keep_on_loopback(run)
    from semrsm_dist.runtime.ray_executor import RayExecutor

    return RayExecutor(job, address=run.address, workers=run.workers, memory_bytes=plan.memory_per_worker if plan else None)


def keep_on_loopback(run: RunSettings) -> None:
    """Before Ray is imported, which reads this then: a Ray of one node binds its ports to loopback, not to every interface."""
    if not on_cluster(run):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def on_cluster(run: RunSettings) -> bool:
    """Whether tiles run on an existing Ray cluster; inside a Ray job the environment names it."""
    return run.executor == "ray" and bool(run.address or os.environ.get("RAY_ADDRESS"))


def _slots(run: RunSettings) -> int:
    """How many tiles will be computed at once."""
    if run.executor == "serial":
        return 1
    if on_cluster(run):
        from semrsm_dist.runtime.ray_executor import cluster_slots

        slots = cluster_slots(run.address)
        return min(slots, run.workers) if run.workers else slots
    return run.workers or machine_cpus()


def _memory_per_worker(run: RunSettings, workers: int) -> int | None:
    """Bytes of a worker's share: of the cluster's smallest node, or of this machine."""
    if on_cluster(run):
        from semrsm_dist.runtime.ray_executor import cluster_memory_per_cpu

        return cluster_memory_per_cpu(run.address)
    return int(machine_memory_bytes() * _MEMORY_SHARE) // workers


def _samples_hash(store: ActivationStore) -> str | None:
    """Hash of the sample ids, so that two RSMs can be seen to be over the same samples; None without a samples table."""
    table = samples_url(store.location)
    if not table.parent.exists(table.name):
        return None
    return fingerprint({"sample_id": read_table(table, SAMPLES).column("sample_id").to_pylist()})


def _has_whole_centre(store: RsmStore) -> bool:
    """Whether the centre is there and can be read."""
    try:
        return store.read_centre() is not None
    except (DamagedChunkError, IncompleteStoreError):
        return False


def _grid(rows: ActivationStore, columns: ActivationStore, settings: RsmSettings, *, symmetric: bool) -> Grid:
    """The grid that the settings ask for."""
    if settings.batch_size is not None:
        if not symmetric:
            raise InvalidInputError("A minibatch grid pairs samples of one store; leave the columns out.")
        return MinibatchGrid(rows.n_samples, settings.batch_size, settings.tile_size)
    if symmetric:
        return SymmetricGrid(rows.n_samples, settings.tile_size)
    return RectangularGrid(rows.n_samples, columns.n_samples, settings.tile_size)


def _check_alike(rows: ActivationStore, columns: ActivationStore) -> None:
    """Refuse to match representations of different shapes."""
    for name, first, second in (
        ("positions", rows.n_positions, columns.n_positions),
        ("channels", rows.n_channels, columns.n_channels),
    ):
        if first != second:
            raise InvalidInputError(
                f"{rows.location} has {first} {name} and {columns.location} has {second}; "
                "rows and columns must come from the same layer at the same image size."
            )
