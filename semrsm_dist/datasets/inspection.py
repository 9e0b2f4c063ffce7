"""Hashes of image files, and which of them cannot be decoded, remembered as long as the files do not change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from semrsm_dist.datasets.samples import Sample, hash_file
from semrsm_dist.progress import Report
from storage_schemas.errors import SemrsmError, StoreNotFoundError, UnreadableImageError
from storage_schemas.location import Location, storage_errors
from storage_schemas.tables import IMAGES, UNREADABLE, read_table, write_table

Decode = Callable[[Path], object]
"""Decodes an image; raises `UnreadableImageError` when it cannot."""


@dataclass(frozen=True)
class Inspection:
    """What was found out about the images of samples."""

    samples: tuple[Sample, ...]
    """Those that can be decoded (all of them where that was not asked), in order, with their hashes."""
    unreadable: pa.Table
    """The others, in the schema :data:`storage_schemas.tables.UNREADABLE`."""


@dataclass(frozen=True)
class _Facts:
    """A row of :data:`storage_schemas.tables.IMAGES`."""

    uri: str
    size: int
    modified_ns: int
    sha256: str
    decoded: bool
    problem: str | None


def inspect_images(
    samples: Sequence[Sample],
    known: Location,
    *,
    decode: Decode | None = None,
    report: Report | None = None,
    threads: int | None = None,
) -> Inspection:
    """Hash the images of samples, and decode them if that is asked, reading only what has changed since the last time.

    A file counts as unchanged while its size and its time of modification are those of the last time, as for ``make``.

    Parameters
    ----------
    samples
        Samples; those that have a hash keep it.
    known
        Parquet file in the schema :data:`storage_schemas.tables.IMAGES` that remembers; made, or written anew when something
        was learnt, also by a call that ends with an error or Ctrl-C.
    decode
        How to decode an image; when None, only hashes are wanted.
    report
        Called after each file with the number of samples done and their total.
    threads
        Files read at the same time; chosen by Python when None.

    Raises
    ------
    StoreNotFoundError
        When a file has gone.
    StorageUnavailableError
        When a file cannot be read, or `known` cannot be written.
    """
    before = _read(known)
    found: dict[str, _Facts] = {}
    readable: list[Sample] = []
    unreadable: list[dict[str, str]] = []
    try:
        with ThreadPoolExecutor(threads) as pool:
            looked = pool.map(lambda sample: _look(sample, before.get(sample.uri), decode), samples)
            for done, (sample, facts) in enumerate(zip(samples, looked, strict=True), start=1):
                found[facts.uri] = facts
                if decode is not None and facts.problem is not None:
                    unreadable.append({"sample_id": sample.sample_id, "uri": sample.uri, "problem": facts.problem})
                else:
                    readable.append(replace(sample, sha256=sample.sha256 or facts.sha256))
                if report is not None:
                    report(done, len(samples))
    finally:
        if any(before.get(uri) != facts for uri, facts in found.items()):
            rows = [asdict(facts) for facts in {**before, **found}.values()]
            write_table(known, pa.Table.from_pylist(rows, IMAGES), IMAGES)
    return Inspection(tuple(readable), pa.Table.from_pylist(unreadable, UNREADABLE))


def _read(known: Location) -> Mapping[str, _Facts]:
    """What is remembered; nothing where the file is not there or cannot be read."""
    with suppress(SemrsmError):
        return {row["uri"]: _Facts(**row) for row in read_table(known, IMAGES).to_pylist()}
    return {}


def _look(sample: Sample, before: _Facts | None, decode: Decode | None) -> _Facts:
    """What is known of an image, reading it only if need be."""
    with storage_errors(str(sample.path)):
        try:
            status = os.stat(sample.path)
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no image {sample.path}; put it back, or read the dataset anew.") from error
    same = before is not None and (before.size, before.modified_ns) == (status.st_size, status.st_mtime_ns)
    facts = before if same and before is not None else None
    if facts is None:
        facts = _Facts(sample.uri, status.st_size, status.st_mtime_ns, hash_file(sample.path), False, None)
    if decode is None or (facts.decoded and facts.problem is None):  # another release may decode what this one could not
        return facts
    try:
        decode(sample.path)
    except UnreadableImageError as error:
        return replace(facts, decoded=True, problem=str(error))
    return replace(facts, decoded=True)
