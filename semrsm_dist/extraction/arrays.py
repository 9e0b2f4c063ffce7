"""Features that another program computed, from files or Zarr stores to an activation store, piece by piece, without pickle.

What is imported is hashed in a first pass, because the store's fingerprint is made of it; a second pass writes the chunks
that the store lacks. So memory does not grow with the number of samples, but for their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semrsm_dist.extraction.sources import open_source
from semrsm_dist.extraction.sources.samples import Samples, select_samples
from semrsm_dist.progress import Report
from storage_schemas import tables
from storage_schemas.activations import ActivationStore, default_chunk_samples, samples_url
from storage_schemas.errors import InvalidInputError
from storage_schemas.fingerprint import canonical
from storage_schemas.location import Location


def import_arrays(
    path: str | os.PathLike[str],
    out: str | Location,
    *,
    where: Mapping[str, str] | None = None,
    sample_id: str | None = None,
    spatial_shape: tuple[int, int] | None = None,
    report: Report | None = None,
    report_write: Report | None = None,
) -> ActivationStore:
    """Import features as an activation store, with its samples table beside it.

    A store that is there already is gone on with: chunks that it holds are not written again.

    Parameters
    ----------
    path
        Anything that :func:`~semrsm_dist.extraction.sources.open_source` opens, with ``features`` ``(N, S, C)`` or
        ``(N, C, H, W)``, and optionally ``logits`` ``(N, K)`` and ``sample_id`` ``(N,)``. Values of any floating-point
        type become float32. Maps that were flattened to ``(N, C·H·W)`` are taken too when `spatial_shape` is given.
    out
        Path or URL of the store, by custom ``activations/NAME.zarr``.
    where
        Keep the samples whose entry in the named array is the given text: ``{"role": "query"}``.
    sample_id
        Array that holds the sample ids instead of ``sample_id``, or a text file (``.txt``) with one on each line. Without
        either, HDF5 files and folders of thingsvision take ``file_names.txt`` beside them; what is left is named ``0`` to
        ``N - 1`` by row.
    spatial_shape
        ``(H, W)`` of features that are given as ``(N, S, C)``; features ``(N, C, H, W)`` bring their own.
    report
        Told how many samples have been read and how many there are.
    report_write
        Told how many samples are in the store.

    Returns
    -------
    ActivationStore
        The complete store, ``(N, S, C)`` float32.

    Raises
    ------
    StoreNotFoundError
        When the file is not there.
    InvalidInputError
        When the file is damaged, holds Python objects, lacks an array, or holds arrays of other shapes or types; and when
        it is changed meanwhile.
    NonFiniteError
        When a value is NaN or infinite.
    FingerprintMismatchError
        When a store is there that was computed from something else.
    """
    with open_source(path) as source:
        samples = select_samples(source, where or {}, sample_id, spatial_shape)
        hashes = _hash(samples, report)
        return _write(Location.of(out), samples, hashes, Location.of(os.path.expanduser(path)).name, report_write)


@dataclass(frozen=True)
class _Hashes:
    """SHA-256 of little-endian float32 values in C order."""

    features: str
    logits: str | None
    samples: list[str]
    """Of the features of each sample."""


def _hash(samples: Samples, report: Report | None) -> _Hashes:
    """Read everything once; raises before a store is made."""
    features, logits, each = hashlib.sha256(), hashlib.sha256(), []
    n_samples, step = len(samples.ids), default_chunk_samples(samples.layout.n_positions, samples.layout.n_channels)
    for start in range(0, n_samples, step):
        stop = min(start + step, n_samples)
        block = samples.read_features(start, stop)
        features.update(_bytes_of(block))
        each += [hashlib.sha256(_bytes_of(sample)).hexdigest() for sample in block]
        block_logits = samples.read_logits(start, stop)
        if block_logits is not None:
            logits.update(_bytes_of(block_logits))
        if report:
            report(stop, n_samples)
    return _Hashes(features.hexdigest(), None if samples.n_classes is None else logits.hexdigest(), each)


def _write(location: Location, samples: Samples, hashes: _Hashes, source: str, report: Report | None) -> ActivationStore:
    """Write what a store lacks of these samples."""
    layout, n_samples = samples.layout, len(samples.ids)
    shape = [n_samples, layout.n_positions, layout.n_channels]
    store = ActivationStore.create(
        location,
        n_samples=n_samples,
        n_positions=layout.n_positions,
        n_channels=layout.n_channels,
        n_classes=samples.n_classes,
        spatial_shape=layout.spatial_shape,
        computed_from={
            "samples": hashlib.sha256(canonical({"samples": samples.ids}).encode()).hexdigest(),
            "n_samples": n_samples,
            "shape": shape,
            "spatial_shape": None if layout.spatial_shape is None else list(layout.spatial_shape),
            "features": hashes.features,
            "logits": hashes.logits,
        },
        provenance={"imported_from": source},
    )
    location.sweep()
    empty = {field.name: pa.nulls(n_samples, field.type) for field in tables.SAMPLES}
    # There is no image; its features stand for it.
    known = {"sample_id": pa.array(samples.ids, pa.string()), "sha256": pa.array(hashes.samples, pa.string())}
    tables.write_table(samples_url(location), pa.table({**empty, **known}, schema=tables.SAMPLES), tables.SAMPLES)
    lacking = sorted({*store.missing_chunks(), *store.damaged_chunks()})
    done = n_samples - sum(store.chunk_slice(index).stop - store.chunk_slice(index).start for index in lacking)
    for index in lacking:
        rows = store.chunk_slice(index)
        features = samples.read_features(rows.start, rows.stop)
        _check_unchanged(samples, features, rows.start, hashes.samples)
        store.write_chunk(index, features, samples.read_logits(rows.start, rows.stop))
        done += rows.stop - rows.start
        if report:
            report(done, n_samples)
    return store


def _check_unchanged(samples: Samples, features: NDArray[np.float32], start: int, hashes: Sequence[str]) -> None:
    """Refuse to write what the fingerprint does not stand for."""
    for row, sample in enumerate(features, start):
        if hashlib.sha256(_bytes_of(sample)).hexdigest() != hashes[row]:
            raise InvalidInputError(
                f"{samples.where} was changed while it was imported (sample {samples.ids[row]}); remove the store, "
                "and import it again when nothing writes there any more."
            )


def _bytes_of(values: NDArray[np.float32]) -> memoryview:
    """Values as the bytes that are hashed: little-endian, in C order."""
    return np.ascontiguousarray(values, dtype="<f4").data
