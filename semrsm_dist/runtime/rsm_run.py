"""One RSM from start to end: create the store, find what is missing, dispatch it, verify the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Literal

from semrsm_dist.grid import DEFAULT_TILE_SIZE, Grid, MinibatchGrid, RectangularGrid, SymmetricGrid, TileKey, grid_from
from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.names import Centring, Invariance
from semrsm_dist.progress import Report
from semrsm_dist.runtime.dispatch import Attempt, Executor, Policy, dispatch
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.plan import RsmPlan, check_memory, make_plan, time_pairs
from semrsm_dist.runtime.serial_executor import SerialExecutor
from semrsm_dist.runtime.units import Unit
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
from storage_schemas.location import Location
from storage_schemas.rsm import Side, events_url

NUMERICS = 1
"""Version of how numbers are computed; part of every fingerprint, raised when a change alters a bit of a result."""


_VERIFY_ROUNDS = 3


@dataclass(frozen=True)
class RsmSettings:
    """What an RSM is computed with."""

    invariances: tuple[Invariance, ...] = ("none", "permutation", "pooled")
    centring: Centring = "position"
    matching: MatchingSettings = field(default_factory=MatchingSettings)
    tile_size: int = DEFAULT_TILE_SIZE
    batch_size: int | None = None
    """Compute pairs within batches of this size only (for minibatch CKA); needs rows and columns to be the same."""


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
        },
        provenance={
            "rows": relative(rows.location, location),
            "columns": relative(columns.location, location),
            "spatial_shape": list(rows.spatial_shape) if rows.spatial_shape else None,
        },
    )
    for invariance in settings.invariances:
        rsm.add_invariance(invariance)
    if settings.centring != "none" and not rsm.has_centre():
        accumulator = CentreAccumulator(settings.centring)
        for samples, block in columns.blocks():
            accumulator.add(block)
            if report:
                report(samples.stop, columns.n_samples)
        centre = accumulator.result()
        assert centre is not None
        rsm.write_centre(centre)
    return RsmJob(rows=str(rows.location), columns=str(columns.location), out=str(location), matching=settings.matching)


def units_of(store: RsmStore, invariances: Sequence[Invariance]) -> Iterator[Unit]:
    """Every unit of the finished store: norms first, then tiles, the invariances of a tile beside each other."""
    grid = grid_of(store)
    for side in _sides(store):
        length = grid.shape[0] if side == "row" else grid.shape[1]
        for block in range(-(-length // grid.tile_size)):
            for invariance in invariances:
                yield Unit(TileKey(block, 0), invariance, "row_norms" if side == "row" else "column_norms")
    for key in grid.tile_keys():
        for invariance in invariances:
            yield Unit(key, invariance)


def missing_units(store: RsmStore, invariances: Sequence[Invariance]) -> list[Unit]:
    """The plan minus what one listing of each array finds."""
    tiles = {name: store.present_tiles(name) for name in invariances}
    norms = {(name, side): store.present_norms(name, side) for name in invariances for side in _sides(store)}

    def present(unit: Unit) -> bool:
        if unit.part == "tile":
            return (unit.key.row, unit.key.column) in tiles[unit.invariance]
        return unit.key.row in norms[unit.invariance, "row" if unit.part == "row_norms" else "column"]

    return [unit for unit in units_of(store, invariances) if not present(unit)]


def damaged_units(store: RsmStore, invariances: Sequence[Invariance], report: Report | None = None) -> dict[Unit, str]:
    """Read every unit of the store; returns those that are missing, damaged or not finite, each with the reason."""
    units = list(units_of(store, invariances))
    found = {}
    for number, unit in enumerate(units, start=1):
        try:
            if unit.part == "tile":
                store.read_tile(unit.invariance, unit.key.row, unit.key.column)
            else:
                store.read_norm_block(unit.invariance, "row" if unit.part == "row_norms" else "column", unit.key.row)
        except (DamagedChunkError, IncompleteStoreError) as error:
            found[unit] = str(error)
        if report:
            report(number, len(units))
    return found


def plan_rsm(job: RsmJob, invariances: Sequence[Invariance], run: RunSettings) -> RsmPlan:
    """The plan of what is missing in a created store; raises `InvalidInputError` when it does not fit the memory."""
    store = RsmStore.open(job.out)
    rows = ActivationStore.open(job.rows)
    columns = ActivationStore.open(job.columns)
    missing: dict[str, int] = dict.fromkeys(invariances, 0)
    for unit in missing_units(store, invariances):
        missing[unit.invariance] += unit.part == "tile"
    plan = make_plan(
        grid_of(store),
        rows,
        invariances,
        job.matching,
        missing=missing,
        pair_seconds=time_pairs(rows, columns, store, invariances, job.matching),
        workers=1 if run.executor == "serial" else run.workers or os.cpu_count() or 1,
    )
    if not run.address:  # on a cluster the memory of this machine says nothing
        check_memory(plan, run.memory_per_worker)
    return plan


def run_rsm(
    job: RsmJob,
    invariances: Sequence[Invariance],
    run: RunSettings,
    *,
    memory_bytes: int | None = None,
    report: Report | None = None,
    report_verify: Report | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> RsmRun:
    """Compute what is missing or damaged, then verify every unit.

    Parameters
    ----------
    job
        From :func:`create_rsm`.
    invariances
        Which ones; their arrays exist already.
    run
        Where and how.
    memory_bytes
        Memory to reserve for a task on a cluster, from the plan.
    report, report_verify
        Told how many units are in the store, and how many have been verified.
    on_attempt
        Told of every attempt.

    Raises
    ------
    StorageUnavailableError
        When the disk is full, read-only or out of reach; what is written stays.
    """
    store = RsmStore.open(job.out, writable=True)
    store.location.sweep()
    planned = sum(1 for _ in units_of(store, invariances))
    todo = missing_units(store, invariances)
    computed, set_aside = 0, dict[Unit, str]()
    executor: Executor | None = None
    recorder = EventRecorder(events_url(store.location))
    finished = False
    try:
        for _ in range(_VERIFY_ROUNDS):
            if todo:
                executor = executor or make_executor(job, run, memory_bytes)
                there, total = planned - len(todo), planned

                def follow(attempt: Attempt) -> None:
                    nonlocal there
                    recorder.record(attempt)
                    there += attempt.status == "done"
                    if report:
                        report(there, total)  # noqa: B023 - called within this turn of the loop only
                    if on_attempt:
                        on_attempt(attempt)

                if report:
                    report(there, total)
                result = dispatch(todo, executor, policy=run.policy, on_attempt=follow, on_idle=recorder.flush_if_due)
                computed += len(result.done)
                set_aside = result.set_aside
            damaged = {} if set_aside else damaged_units(store, invariances, report_verify)
            if not damaged:
                finished = True
                return RsmRun(planned, computed, set_aside)
            for unit in damaged:
                _delete(store, unit)
            todo = list(damaged)
        raise DamagedChunkError(
            f"{store.location} held {len(todo)} damaged chunks after each of {_VERIFY_ROUNDS} rounds of computing them; "
            "its storage does not keep what is written, so check the disk."
        )
    finally:
        if executor is not None:
            executor.close()
        with nullcontext() if finished else suppress(StorageUnavailableError):  # it must not hide what went wrong before
            recorder.flush()
            store.location.sweep()


def make_executor(job: RsmJob, run: RunSettings, memory_bytes: int | None = None) -> Executor:
    """The executor that the settings name; Ray is imported on first use."""
    if run.executor == "serial":
        return SerialExecutor(TileWorker(job).run)
    if run.address is None and "RAY_ADDRESS" not in os.environ:
        # Read when Ray is imported: a Ray of one node then binds all its ports to loopback and not to every interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from semrsm_dist.runtime.ray_executor import RayExecutor

    return RayExecutor(job, address=run.address, workers=run.workers, memory_bytes=memory_bytes)


def grid_of(store: RsmStore) -> Grid:
    """The grid of a store."""
    return grid_from(store.grid, store.shape, store.tile_size)


def relative(target: Location, store: Location) -> str:
    """Address of ``target`` as seen from beside ``store``, so that a work directory can be moved as a whole."""
    if target.local_path is not None and store.local_path is not None:
        return os.path.relpath(target.local_path, store.local_path.parent)
    prefix = f"{store.parent.parent}/"
    return f"../{target.url.removeprefix(prefix)}" if target.url.startswith(prefix) else target.url


def resolve(address: str, store: Location) -> Location:
    """The location that :func:`relative` described."""
    if "://" in address or os.path.isabs(address):
        return Location.of(address)
    if store.local_path is not None:
        return Location.of(os.path.normpath(store.local_path.parent / address))
    return store.parent.parent / address.removeprefix("../")


def _sides(store: RsmStore) -> tuple[Side, ...]:
    """Sides that have norms of their own."""
    return ("row",) if store.symmetric else ("row", "column")


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


def _delete(store: RsmStore, unit: Unit) -> None:
    """Remove a damaged chunk."""
    if unit.part == "tile":
        store.delete_tile(unit.invariance, unit.key.row, unit.key.column)
    else:
        store.delete_norms(unit.invariance, "row" if unit.part == "row_norms" else "column", unit.key.row)
