"""Samples of a dataset: what they are called, where their bytes are, and what those bytes hash to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from semrsm_dist.progress import Report
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import Location, storage_errors


@dataclass(frozen=True)
class Sample:
    """One image of a dataset."""

    sample_id: str
    """Name of the sample, unique in its dataset and the same on every machine."""
    path: Path
    """The image on this machine."""
    uri: str
    """Address of the image, for readers of the samples table."""
    group_id: str | None = None
    """Group of the video; two samples are of the same video when group and video are equal."""
    video_id: str | None = None
    """Video within its group, or None for a single photograph."""
    width: int | None = None
    """Pixels across, as the dataset states it."""
    height: int | None = None
    """Pixels down, as the dataset states it."""
    sha256: str | None = None
    """Hash of the file's bytes, where it is known."""


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order, and what is in them; raises `InvalidInputError` when two samples share an id."""

    samples: tuple[Sample, ...]
    """Every sample, in the order of the activation store's first axis."""
    annotations: pa.Table | None = None
    """Classes and instance counts in the schema :data:`storage_schemas.tables.ANNOTATIONS`, or None when unknown."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the samples were chosen from and how, for the reader of a store: plain values, without paths."""
    left_out: int = 0
    """Images that cannot be decoded and were left out."""

    def __post_init__(self) -> None:
        check_unique((sample.sample_id for sample in self.samples), "The dataset")

    def keep(self, samples: Sequence[Sample]) -> Dataset:
        """The dataset with some of its samples, or with more known of them, and with the annotations of these alone."""
        annotations = self.annotations
        if annotations is not None and len(samples) < len(self.samples):
            kept = pa.array([sample.sample_id for sample in samples], pa.string())
            annotations = annotations.filter(pc.is_in(annotations["sample_id"], kept))
        return dataclasses.replace(self, samples=tuple(samples), annotations=annotations)


def check_unique(sample_ids: Iterable[str], where: str) -> None:
    """Raise `InvalidInputError`, naming them, when sample ids occur more than once."""
    repeated = [sample_id for sample_id, count in Counter(sample_ids).items() if count > 1]
    if repeated:
        raise InvalidInputError(f"{where} uses these sample ids more than once: {first_few(repeated)}; make them unique.")


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """The first names and how many more there are, for a sentence.

    >>> first_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def hash_samples(samples: Sequence[Sample], progress: Report | None = None, threads: int | None = None) -> tuple[Sample, ...]:
    """Samples with the SHA-256 of their files.

    Parameters
    ----------
    samples
        Samples to hash; those that have a hash keep it and are not read.
    progress
        Called after each file with the number of samples done and their total.
    threads
        Files read at the same time; chosen by Python when None.

    Returns
    -------
    tuple of Sample
        The same samples in the same order, each with its ``sha256``.

    Raises
    ------
    StoreNotFoundError
        When a file has gone.
    StorageUnavailableError
        When a file cannot be read.
    """
    hashed = []
    with ThreadPoolExecutor(threads) as pool:
        for sample, digest in zip(samples, pool.map(_sha256, samples), strict=True):
            hashed.append(dataclasses.replace(sample, sha256=digest))
            if progress is not None:
                progress(len(hashed), len(samples))
    return tuple(hashed)


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """Samples as a table in the schema :data:`storage_schemas.tables.SAMPLES`, one row each, in order."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in tables.SAMPLES.names}
    return pa.table(columns, schema=tables.SAMPLES)


def write_annotations(dataset: Dataset, location: str | Location) -> None:
    """Write a dataset's annotations as one Parquet file, atomically.

    Parameters
    ----------
    dataset
        A dataset with annotations.
    location
        Path or URL of the file, by custom ``annotations/NAME.parquet`` in the working directory.

    Raises
    ------
    InvalidInputError
        When the dataset has no annotations.
    """
    if dataset.annotations is None:
        raise InvalidInputError(f"The dataset has no annotations to write to {location}; name the file that holds them.")
    tables.write_table(Location.of(location), dataset.annotations, tables.ANNOTATIONS)


def hash_file(path: Path) -> str:
    """SHA-256 of an image file; raises `StoreNotFoundError` when it has gone."""
    with storage_errors(str(path)):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no image {path}; put it back, or read the dataset anew.") from error


def _sha256(sample: Sample) -> str:
    """The hash a sample has, or that of its file."""
    return sample.sha256 or hash_file(sample.path)
