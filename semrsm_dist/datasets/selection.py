"""Drawing samples from a seed, and refusing queries that are in the database."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from semrsm_dist.datasets.samples import Dataset, first_few
from storage_schemas.errors import InvalidInputError


def draw(dataset: Dataset, seed: int, *, skip: int = 0, take: int | None = None) -> Dataset:
    """A range of the samples in an order that only their ids and a seed decide.

    The order is that of the SHA-256 of ``"{seed}:{sample_id}"``. So it is the same on every machine and with every version of
    NumPy, the order in which a file system lists images has no part in it, and two samples keep their order when others are
    added or removed. Ranges of one seed that do not overlap have no sample in common; longer ranges that begin at the same
    place contain the shorter ones as their beginning.

    Parameters
    ----------
    dataset
        What to draw from.
    seed
        Seed of the order.
    skip
        Samples to leave out at the beginning of the order.
    take
        Samples to take after them; all the others when None.

    Returns
    -------
    Dataset
        The samples in the order drawn, with their annotations.

    Raises
    ------
    InvalidInputError
        When there are fewer samples than are to be skipped and taken.
    """
    there = len(dataset.samples)
    if skip + (1 if take is None else take) > there:
        wanted = "none is left" if take is None else f"{take:,} cannot be taken"
        raise InvalidInputError(
            f"There are {there:,} images to draw from, so that {wanted} after skipping {skip:,}; choose a smaller range."
        )
    ordered = sorted(dataset.samples, key=lambda sample: (_rank(seed, sample.sample_id), sample.sample_id))
    chosen = tuple(ordered[skip : None if take is None else skip + take])
    annotations = dataset.annotations
    if annotations is not None:
        annotations = _of_samples(annotations, [sample.sample_id for sample in chosen])
    return replace(dataset, samples=chosen, annotations=annotations)


def check_disjoint(queries: Dataset, database: Dataset) -> None:
    """Refuse queries that are in the database: the same file, or the same sample id with the same bytes.

    Bytes are compared as far as both have a hash, so that this can be asked before and after hashing.

    Raises
    ------
    InvalidInputError
        When there are any, with how many and the first of them.
    """
    paths = {sample.path for sample in database.samples}
    hashes = {(sample.sample_id, sample.sha256) for sample in database.samples if sample.sha256 is not None}
    shared = [
        sample.sample_id for sample in queries.samples if sample.path in paths or (sample.sample_id, sample.sha256) in hashes
    ]
    if shared:
        raise InvalidInputError(
            f"{len(shared):,} of the {len(queries.samples):,} queries are in the database too: {first_few(shared)}; draw both "
            "with one seed from ranges that do not overlap, or leave the queries out, so that every database image is one."
        )


def _rank(seed: int, sample_id: str) -> bytes:
    """Where a sample comes in the order of a seed."""
    return hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()


def _of_samples(annotations: pa.Table, sample_ids: list[str]) -> pa.Table:
    """The annotations of some samples, in their order."""
    place = pc.index_in(annotations.column("sample_id"), value_set=pa.array(sample_ids, pa.string()))
    placed = annotations.append_column("place", place).filter(pc.is_valid(place))
    return placed.sort_by([("place", "ascending"), ("class_id", "ascending")]).select(annotations.column_names)
