"""From images to activation stores, block by block; what an earlier run has finished is kept.

The numbers do not depend on how many threads, processes or machines work (:mod:`semrsm_dist.extraction.flow` says why). The
size of a batch changes their last bits, so it belongs to what a store was computed from, and a store is gone on with at the
size that it was begun with.

Layers that are asked for by name share a forward pass, and each has a store of its own, with chunks of its own size.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from semrsm_dist.datasets.inspection import inspect_images
from semrsm_dist.datasets.samples import Dataset, Sample, samples_table
from semrsm_dist.extraction.allocation import give_back_memory, keep_freed_memory
from semrsm_dist.extraction.batching import LAYER_BLOCK, Blocks, ChunkWriter
from semrsm_dist.extraction.flow import Flow
from semrsm_dist.extraction.images import open_image
from semrsm_dist.extraction.loading import all_unreadable, load_pixels
from semrsm_dist.extraction.memory import forward_in_parts, largest_batch
from semrsm_dist.extraction.settings import ExtractionSettings, PoolSettings
from semrsm_dist.extraction.vision_model import Representation, VisionModel
from semrsm_dist.progress import Report
from semrsm_dist.runtime.plan import machine_cpus
from storage_schemas import tables
from storage_schemas.activations import ActivationStore, samples_url
from storage_schemas.errors import InvalidInputError, SemrsmError, UnreadableImageError
from storage_schemas.fingerprint import canonical
from storage_schemas.location import Location

NUMERICS = 2
"""Version of how activations are computed; part of every fingerprint, raised when a change alters a bit of a result."""
CPU_BATCH_PIXELS, CPU_MOST_IMAGES = 8 * 224 * 224, 16
"""Of a forward pass on a CPU, at most: larger arrays leave its caches, and the C library's reuse of memory."""

POOL_BATCH_SIZE = 32
"""Images in a forward pass on the GPUs of a pool, whose memory the driver does not see."""

Representations = dict[str, Representation]
"""Of a batch, by the name of the layer."""


def extract(
    dataset: Dataset,
    model: VisionModel,
    out: str | Location,
    *,
    batch_size: int | None = None,
    settings: ExtractionSettings | None = None,
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
        Images in a forward pass, for ``settings``.
    settings
        Batch size, stored type, and what an image that cannot be decoded does; the defaults when None.
    threads
        Forward passes at the same time, which memory is proportional to; as many as this process may use cores when None, and
        one on a GPU. Does not change the result.
    progress
        Called with how many samples are in the store (or computed and soon to be) and how many there are.

    Returns
    -------
    ActivationStore
        The complete store, ``(N, S, C)``, with logits ``(N, K)`` when the model classifies.

    Raises
    ------
    UnreadableImageError
        When images cannot be decoded, with all of them; finished chunks stay.
    InvalidInputError
        When images end up with different sizes; finished chunks stay. Also when the model gives several representations.
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
    (store,) = extract_layers(
        dataset, model, outs, batch_size=batch_size, settings=settings, threads=threads, progress=progress
    ).values()
    return store


def extract_layers(
    dataset: Dataset,
    model: VisionModel,
    outs: Mapping[str, str | Location],
    *,
    batch_size: int | None = None,
    settings: ExtractionSettings | None = None,
    threads: int | None = None,
    pool: PoolSettings | None = None,
    progress: Report | None = None,
    report_inspect: Report | None = None,
    report_check: Report | None = None,
) -> dict[str, ActivationStore]:
    """Like :func:`extract`, of a model with several representations: one forward pass fills a store for each.

    Parameters
    ----------
    dataset, model, batch_size, settings, threads, progress
        As for :func:`extract`. What is done is counted in samples that every store has.
    outs
        Path or URL of the store of each of ``model.representations``.
    pool
        Ray actors that do the work; this process does when None.
    report_inspect
        Told how many images have been inspected, where hashes or images that can be decoded are not known yet.
    report_check
        Told how many chunks have been checked; when given, what the stores hold already is read, and damaged chunks are
        computed again.

    Returns
    -------
    dict of ActivationStore
        The complete stores, by representation; logits are in all of them.
    """
    settings = settings or ExtractionSettings()
    if batch_size is not None:
        settings = replace(settings, batch_size=batch_size)
    if threads is not None and threads < 1:
        raise InvalidInputError(f"{threads} threads cannot extract anything; give at least 1.")
    if pool is not None:
        from semrsm_dist.extraction.distributed import extract_on_ray, model_for
        from semrsm_dist.extraction.worker import ExtractionJob

        model = model_for(model, pool)
    if model.device.is_cpu:
        keep_freed_memory()
    locations = {name: Location.of(outs[name]) for name in model.representations}
    first = next(iter(locations.values()))
    samples = prepare_samples(dataset, first, settings, report_inspect)
    try:
        pixels = load_pixels(model, samples[:1])
        size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        with open_flow(model, pixels.shape[1:], threads) as flow:
            begin = time.perf_counter()
            probe = flow.once(lambda: model.represent_layers(pixels))
            seconds = time.perf_counter() - begin
            batch = settings.batch_size or _recorded_batch_size(locations.values())
            batch = batch or flow.once(lambda: _best_batch_size(model, pixels[0]))
            stores = create_stores(locations, probe, dataset, samples, model, replace(settings, batch_size=batch))
            if report_check is not None:
                remove_damaged(stores.values(), report_check)
            blocks = Blocks.of(stores, batch, layers=model.has_layers)
            if pool is None:
                _fill(blocks, samples, flow, progress)
        if pool is not None:
            assert model.loading is not None
            job = ExtractionJob(model.loading, tuple(map(str, locations.values())), size, batch, pool.cpus_per_worker)
            extract_on_ray(job, blocks, pool, seconds, progress)
    except UnreadableImageError as error:
        raise all_unreadable(samples, error, images_url(first), unreadable_url(first)) from error
    finally:
        give_back_memory()
    return stores


def remove_damaged(stores: Iterable[ActivationStore], report: Report) -> int:
    """Read what stores hold, and remove the chunks whose checksums do not fit, so that they are computed again; how many."""
    each = list(stores)
    total, done, removed = sum(store.n_chunks for store in each), 0, 0
    for store in each:
        missing = set(store.missing_chunks())
        for index in range(store.n_chunks):
            if index not in missing and not store.is_whole(index):
                store.delete_chunk(index)
                removed += 1
            done += 1
            if len(missing) < store.n_chunks:
                report(done, total)
    return removed


def prepare_samples(
    dataset: Dataset, first: Location, settings: ExtractionSettings, report: Report | None = None
) -> tuple[Sample, ...]:
    """Samples with their hashes, without those that are to be left out since they cannot be decoded.

    What is found out about images is remembered in the folder of the first store, in ``images.parquet``; those that are left
    out are listed in ``NAME.unreadable.parquet``.
    """
    skip = settings.on_error == "skip"
    samples = dataset.samples
    if skip or not all(sample.sha256 for sample in samples):
        inspection = inspect_images(samples, images_url(first), decode=open_image if skip else None, report=report)
        samples, listed = inspection.samples, unreadable_url(first)
        if len(inspection.unreadable):
            tables.write_table(listed, inspection.unreadable, tables.UNREADABLE)
        elif listed.parent.exists(listed.name):  # of an earlier run, before they were mended
            listed.parent.delete(listed.name)
    if not samples:
        raise InvalidInputError("The dataset holds no images to extract; give at least one that can be decoded.")
    return samples


def open_flow(model: VisionModel, size: torch.Size, threads: int | None = None) -> Flow[Any, Representations]:
    """A flow of images, which must all come to one size, through the network."""
    forward = model.represent_layers if model.device.is_cpu else partial(forward_in_parts, model.represent_layers, _join)
    cores = machine_cpus()
    return Flow(
        lambda batch: load_pixels(model, batch.samples, size),
        forward,
        passes=(threads or cores) if model.device.is_cpu else 1,
        loaders=None if model.device.is_cpu else (threads or cores),
    )


def create_stores(
    locations: Mapping[str, Location],
    probe: Representations,
    dataset: Dataset,
    samples: Sequence[Sample],
    model: VisionModel,
    settings: ExtractionSettings,
) -> dict[str, ActivationStore]:
    """The stores, created or gone on with, with their samples tables; their shapes are those of a probe."""
    samples_hash = _samples_hash(samples)
    computed_from: dict[str, Any] = {
        "samples": samples_hash,
        "n_samples": len(samples),
        "model": model.description,
        "batch_size": settings.batch_size,
        "numerics": NUMERICS,
        "packages": {name: version(name) for name in ("pillow", "torch", "transformers")},
        **({"batches_within": LAYER_BLOCK} if model.has_layers else {}),
    }
    provenance: dict[str, Any] = {"dataset": dict(dataset.origin)} if dataset.origin else {}
    left_out = dataset.left_out + len(dataset.samples) - len(samples)
    if left_out:
        provenance["left_out"] = left_out
    stores = {}
    for name, location in locations.items():
        _amend(location, samples, samples_hash)
        stores[name] = ActivationStore.create(
            location,
            n_samples=len(samples),
            n_positions=probe[name].features.shape[1],
            n_channels=probe[name].features.shape[2],
            n_classes=None if (logits := probe[name].logits) is None else logits.shape[1],
            spatial_shape=probe[name].spatial_shape,
            dtype=settings.dtype,
            computed_from={**computed_from, "model": model.describe(name)},
            provenance=provenance or None,
        )
        location.sweep()
        tables.write_table(samples_url(location), samples_table(samples), tables.SAMPLES)
    return stores


def images_url(store: Location) -> Location:
    """Where it is remembered what is known of images: ``images.parquet`` in the folder of the stores."""
    return store.parent / "images.parquet"


def unreadable_url(store: Location) -> Location:
    """Where the images that cannot be decoded are listed: ``NAME.unreadable.parquet`` beside ``NAME.zarr``."""
    return store.parent / f"{store.name.removesuffix('.zarr')}.unreadable.parquet"


def _fill(blocks: Blocks, samples: Sequence[Sample], flow: Flow[Any, Representations], progress: Report | None) -> None:
    """Write the chunks that the stores lack, as the results of their batches come in."""
    missing, n_samples = blocks.missing_chunks(), blocks.n_samples
    writers = [ChunkWriter(store, chunks) for store, chunks in zip(blocks.stores, missing, strict=True)]
    batches = blocks.batches(missing, samples)
    done = n_samples - sum(len(batch.samples) for batch in batches)
    if progress is not None:
        progress(done, n_samples)
    for batch, result in flow.run(batches):
        for writer, representation in zip(writers, result.values(), strict=True):
            writer.add(batch, representation)
        done += len(batch.samples)
        if progress is not None:
            progress(done, n_samples)


def _recorded_batch_size(locations: Any) -> int | None:
    """The batch size that a store was begun with, if one is there."""
    for location in locations:
        with suppress(SemrsmError):
            recorded = ActivationStore.open(location).attributes["computed_from"].get("batch_size")
            return None if recorded is None else int(recorded)
    return None


def _best_batch_size(model: VisionModel, image: torch.Tensor) -> int:
    """Images in a forward pass: by their size on a CPU, the same on every machine; on a GPU by what its memory holds."""
    if model.description.get("device", "cpu") != model.device.torch_device.type:  # actors have GPUs, and this process none
        return POOL_BATCH_SIZE
    if model.device.is_cpu:
        return min(max(1, CPU_BATCH_PIXELS // (image.shape[-1] * image.shape[-2])), CPU_MOST_IMAGES)
    return largest_batch(model.represent_layers, image)


def _join(first: Representations, second: Representations) -> Representations:
    """The representations of two parts of a batch together."""
    return {name: representation.then(second[name]) for name, representation in first.items()}


def _amend(location: Location, samples: Sequence[Sample], samples_hash: str) -> None:
    """Let an unfinished store go on where images were mended that it has nothing of yet."""
    table = samples_url(location)
    if not (location.exists("zarr.json") and table.parent.exists(table.name)):
        return
    store = ActivationStore.open(location)
    before = tables.read_table(table, tables.SAMPLES)
    ids, hashes = (before.column(name).to_pylist() for name in ("sample_id", "sha256"))
    if not location.exists("features/zarr.json"):  # killed while it was made
        return
    if ids != [sample.sample_id for sample in samples] or len(ids) != store.n_samples:
        return
    changed = [row for row, (sample, sha256) in enumerate(zip(samples, hashes, strict=True)) if sample.sha256 != sha256]
    if changed and {row // store.chunk_samples for row in changed} <= set(store.missing_chunks()):
        store.amend({"samples": samples_hash})


def _samples_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over the ids and file hashes of all samples, in order."""
    text = canonical({"samples": [[sample.sample_id, sample.sha256] for sample in samples]})
    return hashlib.sha256(text.encode()).hexdigest()
