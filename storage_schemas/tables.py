"""Arrow schemas of every Parquet file, and reading and writing them whole."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from storage_schemas.errors import DamagedChunkError, InvalidInputError
from storage_schemas.location import Location

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("video_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),
    ]
)
"""One row a sample, in the order of the activation store."""

ANNOTATIONS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("class_id", pa.int64(), nullable=False),
        pa.field("class_name", pa.string()),
        pa.field("count", pa.int32(), nullable=False),
    ]
)
"""One row for each class that occurs in a sample, with its number of instances."""

IMAGES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("decoded", pa.bool_(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
"""What is known of image files, so that a file that has not changed since is not read again."""

UNREADABLE = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
    ]
)
"""Images that cannot be decoded, each with the reason."""

_UTC = pa.timestamp("us", tz="UTC")
EVENTS = pa.schema(
    [
        pa.field("invariance", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("column", pa.int32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("queued", _UTC, nullable=False),
        pa.field("started", _UTC),
        pa.field("ended", _UTC),
        pa.field("received", _UTC, nullable=False),
        pa.field("read_seconds", pa.float64()),
        pa.field("solve_seconds", pa.float64()),
        pa.field("write_seconds", pa.float64()),
        pa.field("peak_memory_bytes", pa.int64()),
        pa.field("largest_gap", pa.float64()),
        pa.field("mean_gap", pa.float64()),
        pa.field("node", pa.string()),
        pa.field("pid", pa.int64()),
        pa.field("checksum", pa.string()),
    ]
)
"""One row for each attempt at a tile (or at a block of norms: ``part`` tells which)."""

NEIGHBOURS = pa.schema(
    [
        pa.field("kernel", pa.string(), nullable=False),
        pa.field("invariance", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("database_id", pa.string(), nullable=False),
        pa.field("similarity", pa.float64(), nullable=False),
        pa.field("f1", pa.float64(), nullable=False),
        pa.field("iou", pa.float64(), nullable=False),
    ]
)
"""The most similar database samples of each query, best first (rank 1)."""

RETRIEVAL = pa.schema(
    [
        pa.field("representation", pa.string(), nullable=False),
        pa.field("kernel", pa.string(), nullable=False),
        pa.field("invariance", pa.string(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("baseline", pa.string(), nullable=False),
        pa.field("difference", pa.float64(), nullable=False),
        pa.field("difference_low", pa.float64(), nullable=False),
        pa.field("difference_high", pa.float64(), nullable=False),
        pa.field("n_queries", pa.int32(), nullable=False),
    ]
)
"""Mean retrieval figures with their difference to a baseline invariance and its 95 % interval."""

CKA = pa.schema(
    [
        pa.field("representation_1", pa.string(), nullable=False),
        pa.field("invariance_1", pa.string(), nullable=False),
        pa.field("representation_2", pa.string(), nullable=False),
        pa.field("invariance_2", pa.string(), nullable=False),
        pa.field("kernel", pa.string(), nullable=False),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("n_samples", pa.int32(), nullable=False),
    ]
)
"""CKA of pairs of RSMs over the same samples."""


def write_table(location: Location, table: pa.Table, schema: pa.Schema) -> None:
    """Write a table as one Parquet file, atomically, after casting it to its schema."""
    buffer = io.BytesIO()
    pq.write_table(table.select(schema.names).cast(schema), buffer, compression="zstd")
    location.parent.put(location.name, buffer.getvalue())


def read_table(location: Location, schema: pa.Schema) -> pa.Table:
    """Read one Parquet file; raises `StoreNotFoundError`, and `InvalidInputError` when columns are missing."""
    data = location.parent.get(location.name)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedChunkError(f"{location} is not a readable Parquet file ({error}); write it again.") from error
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise InvalidInputError(f"{location} lacks the columns {', '.join(missing)}; expected {', '.join(schema.names)}.")
    return table.select(schema.names).cast(schema)


def join_tables(folder: Location, names: Sequence[str], joined: str, schema: pa.Schema) -> None:
    """Write the tables of several Parquet files as one, holding one of them in memory at a time and the result compressed."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for name in names:
            writer.write_table(read_table(folder / name, schema))
    folder.put(joined, buffer.getvalue())


def read_folder(location: Location, schema: pa.Schema) -> pa.Table:
    """Every Parquet file of a folder as one table, in the order of the file names; empty when there is none."""
    names = sorted(name for name in location.sizes() if name.endswith(".parquet"))
    tables = [read_table(location / name, schema) for name in names]
    return pa.concat_tables(tables) if tables else schema.empty_table()
