"""Which queries the report shows, and the thumbnails of their images."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from semrsm_dist.report.wording import BASELINE, compared_invariance, ordered_invariances

_MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are not decoded for a thumbnail: a small file can claim to be enormous."""


@dataclass(frozen=True)
class Neighbour:
    """One database image that was found for a query."""

    rank: int
    sample_id: str
    similarity: float
    f1: float
    iou: float


@dataclass(frozen=True)
class Example:
    """A query with what each invariance found for it."""

    query_id: str
    before: float
    """F1 of the most similar image under the baseline; NaN without annotations."""
    after: float
    """F1 of the most similar image under the compared invariance."""
    neighbours: Mapping[str, tuple[Neighbour, ...]]
    """Invariance to neighbours, best first."""


@dataclass(frozen=True)
class Examples:
    """The queries to show, and how the others fared, so that nobody takes the extremes for the rule."""

    kernel: str
    baseline: str
    invariance: str
    helped: tuple[Example, ...] = ()
    hurt: tuple[Example, ...] = ()
    other: tuple[Example, ...] = ()
    """Shown when F1 cannot tell them apart: the most similar image is another one, or nothing changed at all."""
    n_helped: int = 0
    n_hurt: int = 0
    n_same: int = 0
    measured: bool = False
    """Whether there is an F1 to judge by."""


def choose_examples(
    neighbours: pa.Table,
    *,
    classes: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    kernel: str = "cosine",
    n_examples: int = 8,
    n_neighbours: int = 3,
) -> Examples | None:
    """Choose the queries where the invariance helps most, and as many where it hurts most.

    Parameters
    ----------
    neighbours : pyarrow.Table
        `storage_schemas.tables.NEIGHBOURS`.
    classes : mapping
        Sample id to class name to number of instances. Among equal gains, queries with more objects come first: they
        show more.
    kernel : str
        The kernel to show; the table's first one when it is not there.
    n_examples : int
        How many queries in all. When fewer hurt than half of them, more of the helped are shown, and the reverse.
    n_neighbours : int
        How many images for each query and invariance.

    Returns
    -------
    Examples or None
        None when there is nothing to compare: no rows, or a single invariance. The gain is F1 of the most similar image
        under permutation (or another invariance when there is none) minus that under ``none``.
    """
    kernels = neighbours.column("kernel").unique().to_pylist()
    if not kernels:
        return None
    kernel = kernel if kernel in kernels else kernels[0]
    table = neighbours.filter(pc.equal(neighbours.column("kernel"), kernel))
    names = ordered_invariances(table.column("invariance").unique().to_pylist())
    baseline = BASELINE if BASELINE in names else names[0]
    chosen = compared_invariance(names, baseline)
    if chosen is None:
        return None
    before, after = _nearest(table, baseline), _nearest(table, chosen)
    both = [query for query in before if query in after]
    gains = {query: after[query][1] - before[query][1] for query in both}
    measured = any(math.isfinite(gain) for gain in gains.values())
    size = {query: sum(classes.get(query, {}).values()) for query in both}
    helped = sorted((query for query in both if gains[query] > 0), key=lambda query: (-gains[query], -size[query]))
    hurt = sorted((query for query in both if gains[query] < 0), key=lambda query: (gains[query], -size[query]))
    n_hurt = min(len(hurt), max(n_examples // 2, n_examples - len(helped)))
    shown_hurt = hurt[:n_hurt]
    shown_helped = helped[: n_examples - n_hurt]
    rest = [query for query in both if not gains[query]] if measured else both
    changed = sorted(rest, key=lambda query: before[query][0] == after[query][0])
    shown_other = changed[: 0 if shown_helped or shown_hurt else n_examples]
    groups = _groups(table, [*shown_helped, *shown_hurt, *shown_other], names, n_neighbours)

    def examples(queries: list[str]) -> tuple[Example, ...]:
        return tuple(Example(query, before[query][1], after[query][1], groups[query]) for query in queries)

    return Examples(
        kernel=kernel,
        baseline=baseline,
        invariance=chosen,
        helped=examples(shown_helped),
        hurt=examples(shown_hurt),
        other=examples(shown_other),
        n_helped=len(helped),
        n_hurt=len(hurt),
        n_same=len(both) - len(helped) - len(hurt),
        measured=measured,
    )


def _nearest(table: pa.Table, invariance: str) -> dict[str, tuple[str, float]]:
    """Query to its most similar database sample and that one's F1."""
    mask = pc.and_(pc.equal(table.column("invariance"), invariance), pc.equal(table.column("rank"), 1))
    rows = table.filter(mask)
    columns = (rows.column(name).to_pylist() for name in ("query_id", "database_id", "f1"))
    return {query: (found, f1) for query, found, f1 in zip(*columns, strict=True)}


def _groups(
    table: pa.Table, queries: list[str], names: list[str], n_neighbours: int
) -> dict[str, dict[str, tuple[Neighbour, ...]]]:
    """Of each query, the neighbours under each invariance."""
    wanted = pc.is_in(table.column("query_id"), value_set=pa.array(queries, pa.string()))
    rows = table.filter(pc.and_(wanted, pc.less_equal(table.column("rank"), n_neighbours))).to_pylist()
    found: dict[str, dict[str, list[Neighbour]]] = {query: {name: [] for name in names} for query in queries}
    for row in sorted(rows, key=lambda row: int(row["rank"])):
        neighbour = Neighbour(row["rank"], row["database_id"], row["similarity"], row["f1"], row["iou"])
        found[row["query_id"]][row["invariance"]].append(neighbour)
    return {query: {name: tuple(items) for name, items in of_query.items() if items} for query, of_query in found.items()}


@dataclass
class Thumbnails:
    """Small JPEG pictures of local images as data URIs, each decoded once."""

    images: Mapping[str, str]
    """Sample id to the path of its image."""
    _made: dict[tuple[str, int], str | None] = field(default_factory=dict)

    def uri(self, sample_id: str, side: int = 240) -> str | None:
        """The picture with its longest side at most `side` pixels; None when the image is missing or unreadable."""
        key = (sample_id, side)
        if key not in self._made:
            path = self.images.get(sample_id)
            self._made[key] = None if path is None else thumbnail(path, side)
        return self._made[key]


def thumbnail(path: str, side: int) -> str | None:
    """A JPEG data URI of an image file; None when it is missing, unreadable or unreasonably large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MAX_IMAGE_PIXELS:
                    return None
                image.draft("RGB", (2 * side, 2 * side))
                upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # a report without one picture is better than no report
    upright.thumbnail((side, side))
    flat = Image.new("RGB", upright.size, "white")
    flat.paste(upright, mask=upright)
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=80, optimize=True)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(media_type: str, data: bytes) -> str:
    """Bytes as an address that a page can hold in itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
