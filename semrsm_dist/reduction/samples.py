"""Samples of the two sides of an RSM, with what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semrsm_dist.reduction.retrieval import count_matrix
from storage_schemas.errors import InvalidInputError


@dataclass(frozen=True)
class Samples:
    """One side of an RSM: its samples and what is in them."""

    ids: Sequence[str]
    """Sample ids in the order of the RSM."""
    videos: Sequence[str | None]
    """What video each is of (group and video id together), or None."""
    hashes: Sequence[str | None]
    """Hash of each image, or None; two samples of one id are the same only if their hashes do not differ."""
    counts: NDArray[np.int64]
    """Instances of each class, ``(samples, classes)``."""


def describe_samples(samples: Sequence[pa.Table], annotations: Sequence[pa.Table]) -> list[Samples]:
    """Samples of several sides with their class counts over the classes of all of them.

    Parameters
    ----------
    samples
        Samples of each side in the order of the store, in the schema :data:`storage_schemas.tables.SAMPLES`.
    annotations
        Annotations of each side, in the schema :data:`storage_schemas.tables.ANNOTATIONS`.
    """
    names: dict[int, str | None] = {}
    for table in annotations:
        for class_id, name in zip(table.column("class_id").to_pylist(), table.column("class_name").to_pylist(), strict=True):
            if names.setdefault(class_id, name) != name:
                raise InvalidInputError(
                    f"Class {class_id} is called {names[class_id]!r} in one annotation table and {name!r} in another; "
                    "queries and database must use the same classes."
                )
    classes = {class_id: column for column, class_id in enumerate(sorted(names))}
    described = []
    for table, annotated in zip(samples, annotations, strict=True):
        ids = table.column("sample_id").to_pylist()
        rows = zip(*(annotated.column(name).to_pylist() for name in ("sample_id", "class_id", "count")), strict=True)
        hashes = table.column("sha256").to_pylist()
        described.append(Samples(ids, sample_videos(table), hashes, count_matrix(ids, rows, classes)))
    return described


def sample_videos(samples: pa.Table) -> list[str | None]:
    """What video each sample is of: group and video id together, or None."""
    groups, videos = (samples.column(name).to_pylist() for name in ("group_id", "video_id"))
    return [None if video is None else f"{group}/{video}" for group, video in zip(groups, videos, strict=True)]
