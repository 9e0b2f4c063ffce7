"""The data sets of a run, read and hashed: its database, and its queries where it has any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from semrsm_dist.datasets.samples import Dataset, hash_samples
from semrsm_dist.datasets.selection import check_disjoint
from semrsm_dist.datasets.sources import ImageSource, describe, read_dataset
from semrsm_dist.progress import progress


def read_sides(sources: Mapping[str, ImageSource], say: Callable[[str], None], *, quiet: bool = False) -> dict[str, Dataset]:
    """Samples and annotations of each side.

    Parameters
    ----------
    sources
        ``database`` and, where there are any, ``queries``.
    say
        Told how the samples of a side were chosen.
    quiet
        Show no progress.

    Raises
    ------
    InvalidInputError
        When a query is a file of the database, or as :func:`~semrsm_dist.datasets.sources.read_dataset` does.
    """
    datasets = {}
    for side, source in sources.items():
        with progress(f"Reading {side}", "images", quiet=quiet) as report:
            datasets[side] = read_dataset(source, report)
        chosen = describe(datasets[side])
        if chosen:
            say(f"{side.capitalize()}: {chosen}.")
    _check_disjoint(datasets)
    return datasets


def hash_sides(datasets: Mapping[str, Dataset], *, quiet: bool = False) -> dict[str, Dataset]:
    """The same with the hash of every image; raises `InvalidInputError` when a query is a copy of a database image."""
    hashed = {}
    for side, dataset in datasets.items():
        with progress(f"Hashing {side}", "images", quiet=quiet) as report:
            hashed[side] = replace(dataset, samples=hash_samples(dataset.samples, report))
    _check_disjoint(hashed)
    return hashed


def _check_disjoint(datasets: Mapping[str, Dataset]) -> None:
    """Refuse queries that are in the database."""
    if "queries" in datasets:
        check_disjoint(datasets["queries"], datasets["database"])
