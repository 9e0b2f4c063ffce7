"""Images of a folder with a table of labels, CSV or Parquet: for data sets of one's own."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from semrsm_dist.datasets.image_folder import absolute, named_images
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample, first_few
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

_TYPES: dict[str, Any] = {
    "file_name": pa.string(),
    "class_id": pa.int64(),
    "class_name": pa.string(),
    "count": pa.int32(),
    "group_id": pa.string(),
    "video_id": pa.string(),
}
COLUMNS = ("class", *_TYPES)
"""What a table of labels may hold; ``class`` is another word for ``class_name``."""


@dataclass(frozen=True)
class Labels:
    """A table of labels, checked."""

    path: Path
    """Where it is."""
    file_names: list[str]
    """Every image that it names, in the order in which it first does."""
    annotations: pa.Table
    """In the schema :data:`storage_schemas.tables.ANNOTATIONS`."""
    group_ids: Mapping[str, str]
    """Group of each image that has one."""
    video_ids: Mapping[str, str]
    """Video of each image that has one."""


def read_labelled_images(labels: str | os.PathLike[str], image_root: str | os.PathLike[str]) -> Dataset:
    """The images that a table of labels names, with their classes.

    Parameters
    ----------
    labels
        As :func:`read_labels` takes it.
    image_root
        The folder that ``file_name`` is relative to, and may not leave.

    Returns
    -------
    Dataset
        Samples in the order in which the table first names them, ``file_name`` being their id.

    Raises
    ------
    StoreNotFoundError
        When the table, the folder or some of the images are not there.
    InvalidInputError
        As :func:`read_labels` does, and when a name leads outside of `image_root`.
    """
    table = read_labels(labels)
    paths = named_images(image_root, table.file_names, table.path)
    samples = (
        Sample(name, path, path.as_uri(), table.group_ids.get(name), table.video_ids.get(name))
        for name, path in zip(table.file_names, paths, strict=True)
    )
    return Dataset(tuple(samples), table.annotations)


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """A table of labels, without looking at the images.

    Parameters
    ----------
    path
        A ``.csv`` file with a header, or a ``.parquet`` file: a row for each class in an image, with ``file_name``,
        ``class_name`` (or ``class``), and optionally ``class_id``, ``count``, ``group_id`` and ``video_id``. A row without a
        class is of an image with nothing in it. A row without a count is one instance. Where there is no ``class_id``, it is
        made of the name, so that a class has the same id in every table.

    Raises
    ------
    StoreNotFoundError
        When the table is not there.
    InvalidInputError
        When it cannot be read, has unknown columns, classes without a name, or a row twice, or contradicts itself.
    """
    path = absolute(path)
    table = _conform(path, _read_table(path))
    file_names = table["file_name"].unique()
    labelled = table.filter(pc.is_valid(table["class_name"]))
    rows = pc.index_in(labelled["file_name"], value_set=file_names)
    class_names = _one_each(path, labelled, "class_id", "class_name")
    _refuse_repeated(path, labelled)
    annotations = count_instances(
        file_names.to_pylist(), rows, labelled["class_id"], class_names, path, counts=labelled["count"]
    )
    group_ids, video_ids = (_one_each(path, table, "file_name", column) for column in ("group_id", "video_id"))
    return Labels(path, file_names.to_pylist(), annotations, group_ids, video_ids)


def holds_labels(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a table of labels: a CSV file is one, and a Parquet file with the column ``file_name``."""
    path = absolute(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return path.suffix.lower() == ".csv"
    try:
        return "file_name" in pa.parquet.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False  # whoever reads it as annotations says what is wrong


def _read_table(path: Path) -> pa.Table:
    """The table as it is in the file."""
    with storage_errors(str(path)):
        try:
            if path.suffix.lower() == ".parquet":
                return pa.parquet.read_table(path)
            as_text = {column: pa.string() for column in COLUMNS}  # "007" is a name and not a number
            options = pa.csv.ConvertOptions(column_types=as_text, strings_can_be_null=True, null_values=[""])
            return pa.csv.read_csv(path, convert_options=options)
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no table of labels {path}; check the path.") from error
        except pa.ArrowException as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InvalidInputError(f"{path} is not a readable table ({reason}); give a CSV or Parquet file.") from error


def _conform(path: Path, table: pa.Table) -> pa.Table:
    """The table with all columns in their types, null where there is nothing; the last checks that concern single rows."""
    _check_columns(path, table.column_names)
    table = table.rename_columns(["class_name" if name == "class" else name for name in table.column_names])
    columns = {
        name: _cast(path, name, table[name], kind) if name in table.column_names else pa.nulls(len(table), kind)
        for name, kind in _TYPES.items()
    }
    if not len(table):
        raise InvalidInputError(f"{path} names no images; check that it is the right file.")
    _refuse(path, pc.is_null(columns["file_name"]), "has no file_name")
    nameless, unnumbered = pc.is_null(columns["class_name"]), pc.is_null(columns["class_id"])
    _refuse(path, pc.and_(nameless, pc.invert(unnumbered)), "has a class id without a name")
    if "class_id" in table.column_names:
        _refuse(path, pc.and_(unnumbered, pc.invert(nameless)), "has a class without an id, where others have one")
    else:
        names = pc.unique(columns["class_name"])
        ids = pa.array([None if name is None else _id_of(name) for name in names.to_pylist()], pa.int64())
        columns["class_id"] = ids.take(pc.index_in(columns["class_name"], value_set=names))
    columns["count"] = pc.fill_null(columns["count"], 1)
    _refuse(path, pc.less(columns["count"], 1), "has a count below 1")
    return pa.table(columns)


def _check_columns(path: Path, names: list[str]) -> None:
    """Refuse unknown columns, which are misspelt as a rule, and the lack of those that are needed."""
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a table of labels has {', '.join(COLUMNS)}."
            raise InvalidInputError(f"{path} has the unknown column {name!r:.60}; {hint}")
    meant = ["class_name" if name == "class" else name for name in names]
    repeated = [name for name, count in Counter(meant).items() if count > 1]
    if repeated:
        raise InvalidInputError(f"{path} has the column {repeated[0]} more than once; keep one.")
    for name, what in (("file_name", "images"), ("class_name", "classes")):
        if name not in meant:
            raise InvalidInputError(f"{path} has no column {name}; add the names of the {what}.")


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: Any) -> pa.ChunkedArray:
    """A column in its type, with blank texts as null."""
    try:
        if not pa.types.is_string(kind):
            return column.cast(kind)
        text = column.cast(kind) if name == "file_name" else pc.utf8_trim_whitespace(column.cast(kind))
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, kind), text)
    except pa.ArrowException as error:
        what = "texts" if pa.types.is_string(kind) else "whole numbers"
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidInputError(f"The column {name} of {path} does not hold {what} ({reason}); correct the table.") from error


def _refuse(path: Path, wrong: pa.ChunkedArray, what: str) -> None:
    """Raise `InvalidInputError` with the first row that is wrong, if there is one."""
    rows = pc.indices_nonzero(wrong)
    if len(rows):
        raise InvalidInputError(f"Row {rows[0].as_py() + 1:,} of {path} {what}; correct the table.")


def _refuse_repeated(path: Path, labelled: pa.Table) -> None:
    """Refuse an image and class that have more than one row."""
    counted = labelled.group_by(["file_name", "class_name"], use_threads=False).aggregate([([], "count_all")])
    repeated = counted.filter(pc.greater(counted["count_all"], 1))
    if len(repeated):
        rows = [f"{row['class_name']} in {row['file_name']}" for row in repeated.to_pylist()]
        raise InvalidInputError(f"{path} has more than one row for {first_few(rows)}; give each one row, with a count.")


def _one_each(path: Path, table: pa.Table, key: str, value: str) -> dict[Any, str]:
    """The value of each key that has one; several are an error."""
    pairs = table.filter(pc.is_valid(table[value])).group_by([key, value], use_threads=False).aggregate([]).to_pylist()
    found = {pair[key]: pair[value] for pair in pairs}
    if len(found) < len(pairs):
        several = [str(name) for name, count in Counter(pair[key] for pair in pairs).items() if count > 1]
        raise InvalidInputError(f"{path} gives more than one {value} to the {key} {first_few(several)}; correct the table.")
    return found


def _id_of(class_name: str) -> int:
    """A class id that only the name decides: 63 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(class_name.encode()).digest()[:8]) >> 1
