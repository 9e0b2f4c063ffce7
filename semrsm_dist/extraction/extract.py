"""From images to an activation store, chunk by chunk; what an earlier run has finished is kept.

The numbers do not depend on how many threads work: a forward pass runs on one thread, and several batches are decoded,
prepared and passed through the network at the same time. With more threads inside of one pass, PyTorch would sum in
another order (values of MobileNetV2 then differ by 1e-5), and a store would depend on the machine's number of cores.
The size of a batch has the same effect, so it belongs to what the store was computed from.

Layers that are asked for by name share a forward pass, and each has a store of its own, with chunks of its own size. Their
batches are cut within blocks of samples that are whole chunks of every store, so that the numbers of a layer do not depend
on which other layers are extracted with it, now or later.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch

from semrsm_dist.datasets.samples import Dataset, Sample, first_few, hash_samples, samples_table
from semrsm_dist.extraction.images import open_image
from semrsm_dist.extraction.vision_model import Representation, VisionModel
from semrsm_dist.grid import DEFAULT_TILE_SIZE
from semrsm_dist.progress import Report
from storage_schemas import tables
from storage_schemas.activations import ActivationStore, samples_url
from storage_schemas.errors import InvalidInputError, SemrsmError
from storage_schemas.fingerprint import canonical
from storage_schemas.location import Location

NUMERICS = 1
"""Version of how activations are computed; part of every fingerprint, raised when a change alters a bit of a result."""
LAYER_BLOCK = DEFAULT_TILE_SIZE
"""Samples within which batches are cut when layers are asked for by name: chunks of every store are divisors of it."""


class Batch(NamedTuple):
    """Samples that go through the network together."""

    start: int
    """Row of the first."""
    samples: tuple[Sample, ...]
    """The samples, in order."""

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.samples)


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
        When an image cannot be read, or images end up with different sizes; finished chunks stay. Also when the model gives
        several representations.
    StoreNotFoundError
        When an image has gone.
    FingerprintMismatchError
        When the store was computed from other images, another model or another batch size.
    NonFiniteError
        When the network gives NaN or infinity.
    """
    if len(model.representations) != 1:
        raise InvalidInputError(
            f"The model gives {len(model.representations)} representations, which do not go into one store; use extract_layers."
        )
    outs = {model.representations[0]: out}
    (store,) = extract_layers(dataset, model, outs, batch_size=batch_size, threads=threads, progress=progress).values()
    return store


def extract_layers(
    dataset: Dataset,
    model: VisionModel,
    outs: Mapping[str, str | Location],
    *,
    batch_size: int = 16,
    threads: int | None = None,
    progress: Report | None = None,
) -> dict[str, ActivationStore]:
    """Like :func:`extract`, of a model with several representations: one forward pass fills a store for each.

    Parameters
    ----------
    dataset, model, batch_size, threads, progress
        As for :func:`extract`. What is done is counted in samples that every store has.
    outs
        Path or URL of the store of each of ``model.representations``.

    Returns
    -------
    dict of ActivationStore
        The complete stores, by representation; logits are in all of them.
    """
    if not dataset.samples:
        raise InvalidInputError("The dataset holds no images to extract; give at least one.")
    if batch_size < 1 or (threads is not None and threads < 1):
        raise InvalidInputError(f"Batch size {batch_size} and threads {threads} must both be at least 1.")
    samples = hash_samples(dataset.samples)
    locations = {name: Location.of(outs[name]) for name in model.representations}
    threads = threads or _available_cores()
    with _workers(threads) as pool:
        pixels = _prepare(model, samples[:1])
        probe = pool.submit(model.represent_layers, pixels).result()
        computed_from = {
            "samples": _samples_hash(samples),
            "n_samples": len(samples),
            "model": model.description,
            "batch_size": batch_size,
            "numerics": NUMERICS,
            "packages": {name: version(name) for name in ("pillow", "torch", "transformers")},
            **({"batches_within": LAYER_BLOCK} if model.has_layers else {}),
        }
        stores = {
            name: _create(location, samples, probe[name], {**computed_from, "model": model.describe(name)}, dataset.origin)
            for name, location in locations.items()
        }
        block = LAYER_BLOCK if model.has_layers else next(iter(stores.values())).chunk_samples
        batches = plan_batches(list(stores.values()), samples, batch_size, block)
        _fill(stores, batches, _compute(pool, model, batches, pixels.shape[1:], ahead=threads), progress)
    return stores


def _create(
    location: Location,
    samples: Sequence[Sample],
    probe: Representation,
    computed_from: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> ActivationStore:
    """One store with its samples table, created or gone on with."""
    _amend(location, samples, computed_from["samples"])
    store = ActivationStore.create(
        location,
        n_samples=len(samples),
        n_positions=probe.features.shape[1],
        n_channels=probe.features.shape[2],
        n_classes=None if probe.logits is None else probe.logits.shape[1],
        spatial_shape=probe.spatial_shape,
        computed_from=computed_from,
        provenance={"dataset": dict(origin)} if origin else None,
    )
    location.sweep()
    tables.write_table(samples_url(location), samples_table(samples), tables.SAMPLES)
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


def plan_batches(stores: Sequence[ActivationStore], samples: Sequence[Sample], batch_size: int, block: int) -> list[Batch]:
    """The batches that chunks which a store lacks need, in order; none crosses a block."""
    missing = [(store.chunk_samples, set(store.missing_chunks())) for store in stores]
    batches = []
    for block_start in range(0, len(samples), block):
        block_stop = min(block_start + block, len(samples))
        for start in range(block_start, block_stop, batch_size):
            stop = min(start + batch_size, block_stop)
            if any(not chunks.isdisjoint(range(start // size, (stop - 1) // size + 1)) for size, chunks in missing):
                batches.append(Batch(start, tuple(samples[start:stop])))
    return batches


class _ChunkWriter:
    """Puts the batches of one store together and writes each chunk that it lacks as soon as it is whole."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._missing = set(store.missing_chunks())
        self._parts: list[Representation] = []

    def add(self, batch: Batch, result: Representation) -> None:
        """Take the next batch."""
        size = self._store.chunk_samples
        for chunk in range(batch.start // size, (batch.stop - 1) // size + 1):
            if chunk not in self._missing:
                continue
            rows = self._store.chunk_slice(chunk)
            start, stop = max(rows.start, batch.start), min(rows.stop, batch.stop)
            self._parts.append(result.rows(start - batch.start, stop - batch.start))
            if stop == rows.stop:
                self._write(chunk)

    def _write(self, chunk: int) -> None:
        """Write one chunk."""
        logits = [part.logits for part in self._parts if part.logits is not None]
        features = np.concatenate([part.features for part in self._parts])
        self._store.write_chunk(chunk, features, np.concatenate(logits) if logits else None)
        self._parts = []


def _fill(
    stores: Mapping[str, ActivationStore],
    batches: Sequence[Batch],
    results: Iterator[dict[str, Representation]],
    progress: Report | None,
) -> None:
    """Write the chunks that the batches make up, as their results come in."""
    writers = {name: _ChunkWriter(store) for name, store in stores.items()}
    n_samples = next(iter(stores.values())).n_samples
    done = n_samples - sum(len(batch.samples) for batch in batches)
    if progress is not None:
        progress(done, n_samples)
    for batch, result in zip(batches, results, strict=True):
        for name, writer in writers.items():
            writer.add(batch, result[name])
        done += len(batch.samples)
        if progress is not None:
            progress(done, n_samples)


def _compute(
    pool: ThreadPoolExecutor, model: VisionModel, batches: Sequence[Batch], size: torch.Size, ahead: int
) -> Iterator[dict[str, Representation]]:
    """Results of the batches in order, with at most `ahead` batches under way while the caller has one."""
    running: deque[Future[dict[str, Representation]]] = deque()
    for batch in batches:
        running.append(pool.submit(_represent, model, batch.samples, size))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _represent(model: VisionModel, samples: Sequence[Sample], size: torch.Size) -> dict[str, Representation]:
    """Decode, prepare and pass one batch through the network; every image ends up with `size`."""
    return model.represent_layers(_prepare(model, samples, size))


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
                f"{_written(size)}; {model.advice_on_size}."
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
