"""Annotations of the samples of a store, from whatever files hold them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from semrsm_dist.datasets.coco import read_coco_counts
from semrsm_dist.datasets.image_folder import EXTENSIONS
from semrsm_dist.datasets.labels import holds_labels, read_labels
from semrsm_dist.datasets.samples import first_few
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location
from storage_schemas.tables import ANNOTATIONS, read_table


def read_annotations(paths: Sequence[str | os.PathLike[str]], sample_ids: Sequence[str]) -> pa.Table:
    """Annotations of samples from COCO-format files or annotation tables.

    Parameters
    ----------
    paths
        COCO-format ``.json`` files, ``.parquet`` tables in the schema :data:`storage_schemas.tables.ANNOTATIONS`, and tables of
        labels (:mod:`semrsm_dist.datasets.labels`).
    sample_ids
        Samples to annotate. One that no file names in full is looked up by the stem of its file name.

    Returns
    -------
    pyarrow.Table
        In the schema :data:`storage_schemas.tables.ANNOTATIONS`, with these sample ids.

    Raises
    ------
    InvalidInputError
        When a sample is in none of the files, or its stem stands for several images.
    """
    named: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for name, rows in _rows_by_name(path).items():
            if named.setdefault(name, rows) != rows:
                raise InvalidInputError(
                    f"{name} has other annotations in {path} than in a file named before it; give each sample one file."
                )
    stems: dict[str, set[str]] = {}
    for name in named:
        stems.setdefault(_stem(name), set()).add(name)
    wanted: dict[str, list[str]] = {}
    missing = []
    for sample_id in sample_ids:
        candidates = {sample_id} if sample_id in named else stems.get(_stem(sample_id), set())
        if len(candidates) > 1:
            raise InvalidInputError(
                f"Sample {sample_id} could be any of {first_few(sorted(candidates))}; give it the full name of its image."
            )
        if candidates:
            wanted.setdefault(next(iter(candidates)), []).append(sample_id)
        else:
            missing.append(sample_id)
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {len(sample_ids)} samples have no annotations: {first_few(missing)}; "
            "name the annotation files of queries and database both."
        )
    found = [
        {**row, "sample_id": sample_id}
        for name, sample_ids in wanted.items()
        for sample_id in sample_ids
        for row in named[name]
    ]
    return pa.Table.from_pylist(found, ANNOTATIONS)


def _rows_by_name(path: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """The annotation rows of every image that a file lists, those without any included."""
    if holds_labels(path):
        labels = read_labels(path)
        names, table = labels.file_names, labels.annotations
    elif Path(path).suffix.lower() == ".parquet":
        names, table = [], read_table(Location.of(path), ANNOTATIONS)
    else:
        names, table = read_coco_counts(path)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in table.to_pylist():
        found.setdefault(row["sample_id"], []).append(row)
    return found


def _stem(name: str) -> str:
    """File name without folder and without the extension of an image."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name
