"""The data sets of a run, read and hashed: its database, and its queries where it has any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from semrsm_dist.datasets.inspection import Decode, inspect_images
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.datasets.selection import check_disjoint
from semrsm_dist.datasets.sources import ImageSource, describe, read_dataset
from semrsm_dist.progress import progress
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location
from storage_schemas.tables import UNREADABLE, write_table


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


def inspect_sides(
    datasets: Mapping[str, Dataset],
    folder: Location,
    say: Callable[[str], None],
    *,
    decode: Decode | None = None,
    quiet: bool = False,
) -> dict[str, Dataset]:
    """The same with the hash of every image, and without those that cannot be decoded if that is asked.

    Parameters
    ----------
    datasets
        From :func:`read_sides`.
    folder
        Where ``images.parquet`` remembers what is known of images, and ``SIDE.unreadable.parquet`` lists what is left out.
    say
        Told how many images of a side are left out.
    decode
        How to decode an image; only hashes are wanted when None.
    quiet
        Show no progress.

    Raises
    ------
    InvalidInputError
        When a query is a copy of a database image, or no image of a side can be decoded.
    """
    inspected = {}
    for side, dataset in datasets.items():
        with progress(f"Inspecting {side}", "images", quiet=quiet) as report:
            found = inspect_images(dataset.samples, folder / "images.parquet", decode=decode, report=report)
        inspected[side] = replace(dataset.keep(found.samples), left_out=len(found.unreadable))
        n_left_out, listed = len(found.unreadable), folder / f"{side}.unreadable.parquet"
        if n_left_out:
            write_table(listed, found.unreadable, UNREADABLE)
            say(f"{side.capitalize()}: {n_left_out:,} images cannot be decoded and are left out; {listed} lists them.")
        elif folder.exists(listed.name):  # of an earlier run, before they were mended
            folder.delete(listed.name)
        if not found.samples:
            raise InvalidInputError(f"No image of the {side} can be decoded; {listed} lists them with their reasons.")
    _check_disjoint(inspected)
    return inspected


def _check_disjoint(datasets: Mapping[str, Dataset]) -> None:
    """Refuse queries that are in the database."""
    if "queries" in datasets:
        check_disjoint(datasets["queries"], datasets["database"])
