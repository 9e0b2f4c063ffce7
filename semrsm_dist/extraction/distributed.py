"""Extraction on a pool of Ray actors, under the same dispatch loop as tiles."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import replace

from semrsm_dist.extraction.batching import Blocks, unit_of
from semrsm_dist.extraction.model import load_again
from semrsm_dist.extraction.settings import PoolSettings
from semrsm_dist.extraction.vision_model import VisionModel
from semrsm_dist.extraction.worker import ExtractionJob, make_worker
from semrsm_dist.progress import Report
from semrsm_dist.runtime.dispatch import dispatch
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.forecast import Forecast
from semrsm_dist.runtime.pulse import end_pulse
from semrsm_dist.runtime.rsm_run import RunSettings, keep_on_loopback
from semrsm_dist.runtime.watch import Watch
from storage_schemas import (
    FingerprintMismatchError,
    InvalidInputError,
    NonFiniteError,
    StorageUnavailableError,
    StoreNotFoundError,
    UnfinishedError,
    UnreadableImageError,
)
from storage_schemas.rsm import events_url

_FATAL = (
    FingerprintMismatchError,
    InvalidInputError,
    NonFiniteError,
    StorageUnavailableError,
    StoreNotFoundError,
    UnreadableImageError,
)
"""Errors that another attempt would not mend: the extraction stops, keeping what is written."""


def model_for(model: VisionModel, pool: PoolSettings) -> VisionModel:
    """A model as the driver of a pool needs it: on the CPU, for the shapes, and described as the actors run it.

    Raises
    ------
    InvalidInputError
        When the model does not say how actors can load it.
    """
    if model.loading is None:
        raise InvalidInputError("A pool of actors loads the model again; make it with load_model.")
    model = copy(model) if model.device.is_cpu else load_again({**model.loading, "device": "cpu"})
    assert model.loading is not None
    device = "cuda" if pool.gpus_per_worker else "cpu"
    model.description = {**model.description, **({"device": device} if device != "cpu" else {})}
    model.loading = {**model.loading, "device": device}
    return model


def extract_on_ray(
    job: ExtractionJob, blocks: Blocks, pool: PoolSettings, seconds_per_image: float, progress: Report | None
) -> None:
    """Compute the blocks that stores lack on actors, each of which writes whole chunks.

    Parameters
    ----------
    job
        What the actors do.
    blocks
        The units of work.
    pool
        Where the actors are, how many, and what they reserve.
    seconds_per_image
        What the time left is estimated from, until blocks are done.
    progress
        Told how many samples every store has, and how many there are.

    Raises
    ------
    SemrsmError
        The first error that another attempt would not mend, as the actor raised it.
    UnfinishedError
        When blocks came to nothing although they were tried again.
    """
    keep_on_loopback(RunSettings("ray", pool.address))
    from semrsm_dist.runtime.ray_executor import RayActorExecutor

    missing = blocks.with_chunks(blocks.missing_chunks())
    store = blocks.stores[0].location
    todo = [unit_of(block) for block in missing]
    expected = {("activations", "none"): seconds_per_image * blocks.size}
    n_blocks = -(-blocks.n_samples // blocks.size)

    def report(done: int, total: int, /, seconds_left: float | None = None) -> None:
        if progress is not None:
            progress(min(done * blocks.size, blocks.n_samples), blocks.n_samples, seconds_left)

    if not todo:
        report(n_blocks, n_blocks)
        return
    executor = RayActorExecutor(
        make_worker,
        lambda cpus: replace(job, threads=cpus).to_json(),
        str(store),
        address=pool.address,
        workers=pool.workers,
        cpus=pool.cpus_per_worker,
        gpus=pool.gpus_per_worker,
    )
    recorder, finished = EventRecorder(events_url(store)), False
    try:
        forecast = Forecast(todo, expected, executor.slots())
        watch = Watch(store, executor, recorder, forecast, n_blocks - len(todo), n_blocks, report)
        result = dispatch(
            todo,
            executor,
            on_attempt=watch.follow,
            on_idle=watch.idle,
            expected_seconds=expected,
            fatal={kind.__name__: kind for kind in _FATAL},
        )
        finished = True
    finally:
        executor.close()
        with nullcontext() if finished else suppress(StorageUnavailableError):  # it must not hide what went wrong before
            recorder.close()
        end_pulse(store)
    if result.set_aside:
        unit, reason = next(iter(result.set_aside.items()))
        raise UnfinishedError(
            f"{len(result.set_aside)} of {n_blocks} blocks of {store} could not be extracted ({unit}: {reason.rstrip('.')}); "
            "what is finished is kept, and the same command tries the others again."
        )
