"""From images to an activation store, chunk by chunk; what an earlier run has finished is kept.

The numbers do not depend on how many threads work: a forward pass runs on one thread, and several batches are decoded,
prepared and passed through the network at the same time. With more threads inside of one pass, PyTorch would sum in
another order (values of MobileNetV2 then differ by 1e-5), and a store would depend on the machine's number of cores.
The size of a batch has the same effect, so it belongs to what the store was computed from.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch

from semrsm_dist.datasets.samples import Dataset, Sample, first_few, hash_samples, samples_table
from semrsm_dist.extraction.images import open_image
from semrsm_dist.extraction.model import Representation, VisionModel
from semrsm_dist.progress import Report
from storage_schemas import tables
from storage_schemas.activations import ActivationStore, samples_url
from storage_schemas.errors import InvalidInputError, SemrsmError
from storage_schemas.fingerprint import canonical
from storage_schemas.location import Location

NUMERICS = 1
"""Version of how activations are computed; part of every fingerprint, raised when a change alters a bit of a result."""


class Batch(NamedTuple):
    """Samples that go through the network together; all of them are of one chunk."""

    chunk: int
    """The chunk they are of."""
    samples: tuple[Sample, ...]
    """The samples, in order."""
    is_last: bool
    """Whether the chunk is complete with this batch."""


def extract(
    dataset: Dataset,
    model: VisionModel,
    out: str | Location,
    *,
    batch_size: int = 16,
    threads: int | None = None,
    progress: Report | None = None,
) -> ActivationStore:
    """Extract the representation of every image of a dataset into an activation store.

    Beside the store, ``NAME.samples.parquet`` is written before the first features. A store that is there already is
    gone on with: only chunks that it lacks are computed, and it ends up with the same bytes as one that was never
    interrupted.

    Parameters
    ----------
    dataset
        The images, in the order of the store's first axis.
    model
        From :func:`semrsm_dist.extraction.model.load_model`.
    out
        Path or URL of the store, by custom ``activations/NAME.zarr``.
    batch_size
        Images in a forward pass. Batches do not cross chunks.
    threads
        Batches that are worked on at the same time, which memory is proportional to; as many as this process may use
        cores when None. Does not change the result.
    progress
        Called with how many samples are in the store (or computed and soon to be) and how many there are.

    Returns
    -------
    ActivationStore
        The complete store, ``(N, S, C)`` float32, with logits ``(N, K)`` when the model classifies.

    Raises
    ------
    InvalidInputError
        When an image cannot be read, or images end up with different sizes; finished chunks stay.
    StoreNotFoundError
        When an image has gone.
    FingerprintMismatchError
        When the store was computed from other images, another model or another batch size.
    NonFiniteError
        When the network gives NaN or infinity.
    """
    if not dataset.samples:
        raise InvalidInputError("The dataset holds no images to extract; give at least one.")
    if batch_size < 1 or (threads is not None and threads < 1):
        raise InvalidInputError(f"Batch size {batch_size} and threads {threads} must both be at least 1.")
    samples = hash_samples(dataset.samples)
    location = Location.of(out)
    threads = threads or _available_cores()
    with _workers(threads) as pool:
        pixels = _prepare(model, samples[:1])
        probe = pool.submit(model.represent, pixels).result()
        samples_hash = _samples_hash(samples)
        _amend(location, samples, samples_hash)
        store = ActivationStore.create(
            location,
            n_samples=len(samples),
            n_positions=probe.features.shape[1],
            n_channels=probe.features.shape[2],
            n_classes=None if probe.logits is None else probe.logits.shape[1],
            spatial_shape=probe.spatial_shape,
            computed_from={
                "samples": samples_hash,
                "n_samples": len(samples),
                "model": model.description,
                "batch_size": batch_size,
                "numerics": NUMERICS,
                "packages": {name: version(name) for name in ("pillow", "torch", "transformers")},
            },
            provenance={"dataset": dict(dataset.origin)} if dataset.origin else None,
        )
        location.sweep()
        tables.write_table(samples_url(location), samples_table(samples), tables.SAMPLES)
        batches = plan_batches(store, samples, batch_size)
        _fill(store, batches, _compute(pool, model, batches, pixels.shape[1:], ahead=threads), progress)
    return store


def _amend(location: Location, samples: Sequence[Sample], samples_hash: str) -> None:
    """Let an unfinished store go on where images were mended that it has nothing of yet."""
    table = samples_url(location)
    if not (location.exists("zarr.json") and table.parent.exists(table.name)):
        return
    store = ActivationStore.open(location)
    before = tables.read_table(table, tables.SAMPLES)
    ids, hashes = (before.column(name).to_pylist() for name in ("sample_id", "sha256"))
    if ids != [sample.sample_id for sample in samples] or len(ids) != store.n_samples:
        return
    changed = [row for row, (sample, sha256) in enumerate(zip(samples, hashes, strict=True)) if sample.sha256 != sha256]
    if changed and {row // store.chunk_samples for row in changed} <= set(store.missing_chunks()):
        store.amend({"samples": samples_hash})


def plan_batches(store: ActivationStore, samples: Sequence[Sample], batch_size: int) -> list[Batch]:
    """The batches of the chunks that a store lacks, in order."""
    batches = []
    for chunk in store.missing_chunks():
        rows = store.chunk_slice(chunk)
        for start in range(rows.start, rows.stop, batch_size):
            stop = min(start + batch_size, rows.stop)
            batches.append(Batch(chunk, tuple(samples[start:stop]), stop == rows.stop))
    return batches


def _fill(store: ActivationStore, batches: Sequence[Batch], results: Iterator[Representation], progress: Report | None) -> None:
    """Write the chunks that the batches make up, as their results come in."""
    done = store.n_samples - sum(len(batch.samples) for batch in batches)
    if progress is not None:
        progress(done, store.n_samples)
    chunk: list[Representation] = []
    for batch, result in zip(batches, results, strict=True):
        chunk.append(result)
        if batch.is_last:
            _write(store, batch.chunk, chunk)
            chunk = []
        done += len(batch.samples)
        if progress is not None:
            progress(done, store.n_samples)


def _compute(
    pool: ThreadPoolExecutor, model: VisionModel, batches: Sequence[Batch], size: torch.Size, ahead: int
) -> Iterator[Representation]:
    """Results of the batches in order, with at most `ahead` batches under way while the caller has one."""
    running: deque[Future[Representation]] = deque()
    for batch in batches:
        running.append(pool.submit(_represent, model, batch.samples, size))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _write(store: ActivationStore, index: int, parts: Sequence[Representation]) -> None:
    """Write the batches of one chunk."""
    logits = [part.logits for part in parts if part.logits is not None]
    features = np.concatenate([part.features for part in parts])
    store.write_chunk(index, features, np.concatenate(logits) if logits else None)


def _represent(model: VisionModel, samples: Sequence[Sample], size: torch.Size) -> Representation:
    """Decode, prepare and pass one batch through the network; every image ends up with `size`."""
    return model.represent(_prepare(model, samples, size))


def _prepare(model: VisionModel, samples: Sequence[Sample], size: torch.Size | None = None) -> torch.Tensor:
    """Decode and prepare images, ``(n, 3, H, W)``; raises one error for all that cannot be read."""
    pixels, failures = [], []
    for sample in samples:
        try:
            pixels.append(model.preprocess(open_image(sample.path)))
        except SemrsmError as error:
            failures.append((sample, error))
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        names = first_few([sample.sample_id for sample, _ in failures])
        raise InvalidInputError(
            f"{len(failures)} images cannot be read ({names}); replace them, or remove them from the dataset."
        ) from failures[0][1]
    for sample, image in zip(samples, pixels, strict=True):
        if size is not None and image.shape != size:
            raise InvalidInputError(
                f"{sample.path} has {_written(image.shape)} pixels after preprocessing and the first image has "
                f"{_written(size)}; use an image processor that brings all images to one size."
            )
    return torch.stack(pixels)


def _written(size: torch.Size) -> str:
    """Width and height for a sentence."""
    return f"{size[-1]} × {size[-2]}"


def _samples_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over the ids and file hashes of all samples, in order."""
    text = canonical({"samples": [[sample.sample_id, sample.sha256] for sample in samples]})
    return hashlib.sha256(text.encode()).hexdigest()


def _available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool in whose threads PyTorch runs single-threaded, whatever the environment says."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "extract", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
