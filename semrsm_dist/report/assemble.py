"""From stores and tables to what the report shows of one representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semrsm_dist.names import Invariance, KernelName
from semrsm_dist.reduction.stored import StoredRsm
from semrsm_dist.report.html import RepresentationReport
from storage_schemas import ActivationStore, RsmStore

_PICTURE_SAMPLES = 800  # rows and columns at most, evenly chosen, that are kept for the picture


def representation_report(
    name: str,
    store: RsmStore,
    invariances: Sequence[Invariance],
    activations: ActivationStore,
    *,
    retrieval: pa.Table,
    neighbours: pa.Table,
    samples: Sequence[pa.Table],
    annotations: Sequence[pa.Table],
    kernel: KernelName,
) -> RepresentationReport:
    """What the report shows of one representation.

    Parameters
    ----------
    name
        The representation's name.
    store, invariances
        Its RSMs, computed.
    activations
        The database's activations, for the facts on the model.
    retrieval, neighbours
        The tables of :func:`semrsm_dist.reduction.stored_retrieval.retrieve`.
    samples, annotations
        Tables of the queries and of the database, in this order; no annotations when they are unknown.
    kernel
        The kernel of the pictures.
    """
    whole = store.grid["kind"] != "minibatch"
    return RepresentationReport(
        name=name,
        facts=_facts(store, activations),
        retrieval=retrieval,
        neighbours=neighbours,
        rsms={each: _picture_values(StoredRsm(store, each), kernel) for each in invariances} if whole else {},
        symmetric=store.symmetric,
        images=_local_images(samples[-1]),
        classes=_classes(annotations[-1]) if annotations else {},
        query_images=_local_images(samples[0]),
        query_classes=_classes(annotations[0]) if annotations else {},
    )


def _picture_values(stored: StoredRsm, kernel: KernelName) -> NDArray[np.float64]:
    """A kernel's values at evenly chosen rows and columns, so that the largest RSM fits into a picture."""
    n_rows, n_columns = stored.grid.shape
    rows, columns = (np.arange(0, length, max(-(-length // _PICTURE_SAMPLES), 1)) for length in (n_rows, n_columns))
    values = np.empty((len(rows), len(columns)))
    for key in stored.all_keys():
        of_rows, of_columns = stored.grid.slices(key)
        inside_rows = (rows >= of_rows.start) & (rows < of_rows.stop)
        inside_columns = (columns >= of_columns.start) & (columns < of_columns.stop)
        if inside_rows.any() and inside_columns.any():
            tile = stored.tile(key, kernel)
            chosen = tile[np.ix_(rows[inside_rows] - of_rows.start, columns[inside_columns] - of_columns.start)]
            values[np.ix_(inside_rows, inside_columns)] = chosen
    return values


def _facts(store: RsmStore, activations: ActivationStore) -> dict[str, str]:
    """Where the numbers come from, for a reader."""
    source: Mapping[str, Any] = activations.attributes["computed_from"]
    model: Mapping[str, Any] = source.get("model") or {}
    matching: Mapping[str, Any] = store.attributes["computed_from"]["matching"]
    shape = activations.spatial_shape
    described = {
        "Model": model.get("model"),
        "Revision": model.get("revision"),
        "Architecture": model.get("architecture"),
        "Layer": model.get("layer"),
        "Image size": model.get("image_size"),
        "S × C": f"{activations.n_positions:,}{f' ({shape[0]} × {shape[1]})' if shape else ''} × {activations.n_channels:,}",
        "Database": _origin_note(activations.attributes.get("dataset")),
        "RSM": " × ".join(f"{length:,}" for length in store.shape),
        "Picture of it": _picture_note(store),
        "Centring": store.attributes["computed_from"]["centring"],
        "Matching": ", ".join(f"{key} {value}" for key, value in matching.items()),
        "Fingerprint": store.fingerprint[:16],
    }
    return {key: str(value) for key, value in described.items() if value is not None}


def _origin_note(origin: Mapping[str, Any] | None) -> str | None:
    """Which data set the database's images are of, and how they were drawn."""
    if origin is None:
        return None
    nested = {"": origin, **{f"{key}: ": value for key, value in origin.items() if isinstance(value, Mapping) and value}}
    parts = [
        name + ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, Mapping))
        for name, values in nested.items()
    ]
    return "; ".join(parts)


def _picture_note(store: RsmStore) -> str | None:
    """Said where the picture does not show every sample."""
    steps = [-(-length // _PICTURE_SAMPLES) for length in store.shape]
    return None if max(steps) == 1 else f"every {steps[0]}th row and every {steps[1]}th column"


def _local_images(samples: pa.Table) -> dict[str, str]:
    """Local paths of the images of samples."""
    found = {}
    for sample_id, uri in zip(samples.column("sample_id").to_pylist(), samples.column("uri").to_pylist(), strict=True):
        parsed = urlparse(uri or "")
        if parsed.scheme in ("", "file") and parsed.path:
            found[sample_id] = unquote(parsed.path)
    return found


def _classes(annotations: pa.Table) -> dict[str, dict[str, int]]:
    """Class names and counts of each sample."""
    found: dict[str, dict[str, int]] = {}
    for row in annotations.to_pylist():
        found.setdefault(row["sample_id"], {})[row["class_name"] or str(row["class_id"])] = row["count"]
    return found
