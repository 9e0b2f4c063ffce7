"""Annotations of the samples of a store, from whatever files hold them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa

from semrsm_dist.datasets.coco import read_coco_counts
from semrsm_dist.datasets.samples import first_few
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location
from storage_schemas.tables import ANNOTATIONS, read_table


def read_annotations(paths: Sequence[str | os.PathLike[str]], sample_ids: Sequence[str]) -> pa.Table:
    """Annotations of samples from COCO-format files or annotation tables.

    Parameters
    ----------
    paths
        COCO-format ``.json`` files and ``.parquet`` tables in the schema :data:`storage_schemas.tables.ANNOTATIONS`.
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
    named: set[str] = set()
    tables = []
    for path in paths:
        if Path(path).suffix.lower() == ".parquet":
            table = read_table(Location.of(path), ANNOTATIONS)
            named.update(table.column("sample_id").to_pylist())
        else:
            file_names, table = read_coco_counts(path)
            named.update(file_names)
        tables.append(table)
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
            wanted.setdefault(candidates.pop(), []).append(sample_id)
        else:
            missing.append(sample_id)
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {len(sample_ids)} samples have no annotations: {first_few(missing)}; "
            "name the annotation files of queries and database both."
        )
    rows = [
        {**row, "sample_id": sample_id}
        for row in pa.concat_tables(tables).to_pylist()
        for sample_id in wanted.get(row["sample_id"], ())
    ]
    return pa.Table.from_pylist(rows, ANNOTATIONS)


def _stem(name: str) -> str:
    """File name without folder and extension."""
    return PurePosixPath(name).stem
