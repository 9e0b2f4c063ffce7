"""From instances, one entry each, to the table of how many of each class a sample has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from semrsm_dist.datasets.samples import first_few
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError


def count_instances(
    sample_ids: Sequence[str],
    sample_rows: ArrayLike,
    class_ids: ArrayLike,
    class_names: Mapping[int, str],
    where: object,
    counts: ArrayLike | None = None,
) -> pa.Table:
    """Count instances by sample and class.

    Parameters
    ----------
    sample_ids
        Every sample, ``(N,)``.
    sample_rows
        The sample of each instance, as its position in `sample_ids`, ``(n,)``.
    class_ids
        The class of each instance, ``(n,)``.
    class_names
        Name of each class.
    where
        Where the instances are from, for the sentence.
    counts
        How many instances each entry stands for, ``(n,)``; one when None.

    Returns
    -------
    pyarrow.Table
        In the schema :data:`storage_schemas.tables.ANNOTATIONS`, in the order of the samples, then of the class.

    Raises
    ------
    InvalidInputError
        When a class has no name.
    """
    rows = np.asarray(sample_rows, dtype=np.int64)
    classes, codes = np.unique(np.asarray(class_ids, dtype=np.int64), return_inverse=True)
    nameless = [str(class_id) for class_id in classes.tolist() if not class_names.get(class_id)]
    if nameless:
        raise InvalidInputError(f"{where} has annotations of class ids without a name: {first_few(nameless)}; name them.")
    pairs, places = np.unique(rows * len(classes) + codes, return_inverse=True)
    totals = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(totals, places, 1 if counts is None else np.asarray(counts, dtype=np.int64))
    of_sample, of_class = np.divmod(pairs, max(len(classes), 1))
    names = pa.array([class_names[class_id] for class_id in classes.tolist()], pa.string())
    columns = [
        pa.array(sample_ids, pa.string()).take(pa.array(of_sample)),
        pa.array(classes[of_class]),
        names.take(pa.array(of_class)),
        pa.array(totals).cast(pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=tables.ANNOTATIONS)
