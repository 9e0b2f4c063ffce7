"""The HTML report: one file that explains a run to a person, and can be mailed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from semrsm_dist.report.drawing import Theme
from semrsm_dist.report.examples import Example, Neighbour, Thumbnails, choose_examples, data_uri
from semrsm_dist.report.figures import retrieval_chart, rsm_caption, rsm_picture
from semrsm_dist.report.wording import (
    headline,
    interval,
    kernel_title,
    metric_title,
    number,
    ordered_invariances,
    signed,
    verdict,
)
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location

_NOTHING: Mapping[str, str] = MappingProxyType({})
_MAX_CLASSES = 8  # more than that under a thumbnail is a wall of text
_VARIANTS: tuple[tuple[str, bool, Theme], ...] = (
    ("(max-width: 40rem) and (prefers-color-scheme: dark)", True, "dark"),
    ("(max-width: 40rem)", True, "light"),
    ("(prefers-color-scheme: dark)", False, "dark"),
)


@dataclass(frozen=True)
class RepresentationReport:
    """What the report shows of one representation."""

    name: str
    """For example ``mobilenet_v2_224``."""
    facts: Mapping[str, str]
    """Model, layer, S × C, centring, matching, …: shown as a small table, in this order."""
    retrieval: pa.Table
    """`tables.RETRIEVAL`; may be empty when there are no annotations. Rows of other representations are left out."""
    neighbours: pa.Table
    """`tables.NEIGHBOURS` of this representation; may be empty."""
    rsms: Mapping[str, NDArray[np.float64]]
    """Invariance to RSM of the report's kernel, (N, M), possibly sub-sampled."""
    symmetric: bool
    """Whether rows and columns of the RSMs are the same samples."""
    images: Mapping[str, str]
    """Sample id to the local path of its image; missing ones are simply not shown."""
    classes: Mapping[str, Mapping[str, int]]
    """Sample id to class name to number of instances."""
    query_images: Mapping[str, str] | None = None
    """The same of the queries, which may have ids that the database uses for other images; None when they are one set."""
    query_classes: Mapping[str, Mapping[str, int]] | None = None
    """The same of the queries; None when they are one set."""


def write_report(
    out: Location,
    title: str,
    representations: Sequence[RepresentationReport],
    *,
    cka: pa.Table | None = None,
    run: Mapping[str, str] = _NOTHING,
    kernel: str = "cosine",
    n_examples: int = 8,
) -> Location:
    """Write ``report.html``, which holds all its pictures, and the figures also as ``figures/*.png``.

    Parameters
    ----------
    out : Location
        The directory or object-store prefix to write into.
    title : str
        The heading of the report.
    representations : sequence of RepresentationReport
        One section each, in this order.
    cka : pyarrow.Table, optional
        `tables.CKA`; one table for each kernel and estimator.
    run : mapping of str to str
        Facts on the run, for provenance: versions, machine, recipe, times.
    kernel : str
        The kernel of the RSM picture, of the chart and of the examples. The retrieval table shows all of them.
    n_examples : int
        How many queries to show with their nearest images; 0 for none.

    Returns
    -------
    Location
        Where the report is. The same input gives the same bytes.

    Raises
    ------
    InvalidInputError
        When there is no representation, or an RSM is empty.
    """
    if not representations:
        raise InvalidInputError("There is no representation to report on; give at least one.")
    names = _file_names([representation.name for representation in representations])
    sections = [
        _section(out, representation, file_name, kernel, n_examples)
        for representation, file_name in zip(representations, names, strict=True)
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(
        resources.files("semrsm_dist.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title, sections=sections, cka=_cka(cka), run=dict(run), kernel=kernel, kernel_title=kernel_title
    )
    out.put("report.html", page.encode("utf-8"))
    return out / "report.html"


def _file_names(names: Sequence[str]) -> list[str]:
    """Names that are safe in a path and differ from each other."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "representation"
        candidate, counter = base, 2
        while candidate.casefold() in (taken.casefold() for taken in found):
            candidate, counter = f"{base}-{counter}", counter + 1
        found.append(candidate)
    return found


def _section(
    out: Location, representation: RepresentationReport, file_name: str, kernel: str, n_examples: int
) -> dict[str, Any]:
    """All that the template shows of one representation; its figures are written on the way."""
    retrieval = _own_rows(representation.retrieval, representation.name)
    rsms, symmetric = representation.rsms, representation.symmetric
    chart = rsm = None
    if any(row["kernel"] == kernel and row["metric"].casefold() in ("f1", "iou") for row in retrieval.to_pylist()):

        def draw_chart(narrow: bool, theme: Theme) -> bytes:
            return retrieval_chart(retrieval, kernel=kernel, columns=1 if narrow else 2, theme=theme)

        chart = _figure(out, f"retrieval-{file_name}.png", draw_chart)
    if rsms:

        def draw_rsm(narrow: bool, theme: Theme) -> bytes:
            return rsm_picture(rsms, symmetric=symmetric, kernel=kernel, columns=2 if narrow else 4, theme=theme)

        rsm = _figure(out, f"rsm-{file_name}.png", draw_rsm)
        rsm["caption"] = rsm_caption(rsms, symmetric=symmetric, kernel=kernel)
    return {
        "name": representation.name,
        "facts": dict(representation.facts),
        "headline": headline(retrieval, kernel=kernel),
        "retrieval": _retrieval(retrieval, kernel),
        "chart": chart,
        "rsm": rsm,
        "examples": _examples(representation, kernel, n_examples),
    }


def _own_rows(table: pa.Table, name: str) -> pa.Table:
    """The rows of this representation; a table that has only others' rows is a mistake, not a lack of annotations."""
    names = table.column("representation").to_pylist()
    if names and name not in names:
        others = ", ".join(sorted(map(repr, set(names))))
        raise InvalidInputError(f"The retrieval table has no rows of the representation {name!r}; it has {others}.")
    return table.filter(pa.array([value == name for value in names], pa.bool_()))


def _figure(out: Location, name: str, draw: Callable[[bool, Theme], bytes]) -> dict[str, Any]:
    """A figure for the page in four variants, wide and narrow, light and dark; the wide light one is also a file."""
    png = draw(False, "light")
    out.put(f"figures/{name}", png)
    sources = [{"media": media, "uri": data_uri("image/png", draw(narrow, theme))} for media, narrow, theme in _VARIANTS]
    return {"uri": data_uri("image/png", png), "sources": sources, "file": f"figures/{name}"}


def _retrieval(table: pa.Table, kernel: str) -> dict[str, Any] | None:
    """The retrieval table: kernels × invariances down, metrics × k across, the best of a kernel's column marked."""
    rows = table.to_pylist()
    if not rows:
        return None
    found = {(row["kernel"], row["invariance"], row["metric"], row["k"]): row for row in rows}
    metrics = sorted({row["metric"] for row in rows}, key=lambda name: (metric_title(name) not in ("F1", "IoU"), name))
    across = [(metric, k) for metric in metrics for k in sorted({row["k"] for row in rows if row["metric"] == metric})]
    kernels = sorted(dict.fromkeys(row["kernel"] for row in rows), key=lambda name: name != kernel)
    groups = []
    for name in kernels:
        of_kernel = [row for row in rows if row["kernel"] == name]
        best = {
            key: max((row["value"] for row in of_kernel if (row["metric"], row["k"]) == key), default=math.nan)
            for key in across
        }
        lines = [
            {
                "invariance": invariance,
                "cells": [_cell(found.get((name, invariance, *key)), best[key]) for key in across],
            }
            for invariance in ordered_invariances({row["invariance"] for row in of_kernel})
        ]
        groups.append({"kernel": name, "rows": lines})
    return {
        "metrics": [{"title": metric_title(metric), "ks": [k for name, k in across if name == metric]} for metric in metrics],
        "groups": groups,
        "baselines": ordered_invariances({row["baseline"] for row in rows}),
        "n_queries": sorted({row["n_queries"] for row in rows}),
    }


def _cell(row: dict[str, Any] | None, best: float) -> dict[str, Any] | None:
    if row is None:
        return None
    low, high = row["difference_low"], row["difference_high"]
    return {
        "value": number(row["value"]),
        "best": number(row["value"]) == number(best),  # what reads as equal is marked as equal
        "baseline": row["invariance"] == row["baseline"],
        "difference": signed(row["difference"]),
        "interval": interval(low, high),
        "verdict": verdict(low, high),
    }


def _examples(representation: RepresentationReport, kernel: str, n_examples: int) -> dict[str, Any] | None:
    """The chosen queries with thumbnails and classes, helped ones first."""
    if n_examples < 1:
        return None
    one_set = representation.query_images is None
    of_queries = representation.classes if representation.query_classes is None else representation.query_classes
    chosen = choose_examples(representation.neighbours, classes=of_queries, kernel=kernel, n_examples=n_examples)
    if chosen is None:
        return None
    thumbnails = Thumbnails(representation.images)
    queries = thumbnails if one_set else Thumbnails(representation.query_images or {})
    groups = [
        {
            "kind": kind,
            "items": [
                _example(example, of_queries.get(example.query_id, {}), queries, representation.classes, thumbnails)
                for example in examples
            ],
        }
        for kind, examples in (("helped", chosen.helped), ("hurt", chosen.hurt), ("other", chosen.other))
        if examples
    ]
    return {
        "groups": groups,
        "kernel": chosen.kernel,
        "baseline": chosen.baseline,
        "invariance": chosen.invariance,
        "measured": chosen.measured,
        "n_helped": chosen.n_helped,
        "n_hurt": chosen.n_hurt,
        "n_same": chosen.n_same,
        "n_queries": chosen.n_helped + chosen.n_hurt + chosen.n_same,
    }


def _example(
    example: Example,
    query: Mapping[str, int],
    queries: Thumbnails,
    classes: Mapping[str, Mapping[str, int]],
    thumbnails: Thumbnails,
) -> dict[str, Any]:
    return {
        "query_id": example.query_id,
        "image": queries.uri(example.query_id),
        "classes": _classes(query, {}),
        "before": number(example.before, 2),
        "after": number(example.after, 2),
        "gain": signed(example.after - example.before, 2),
        "measured": math.isfinite(example.before) and math.isfinite(example.after),
        "columns": [
            {
                "invariance": name,
                "first": _neighbour(found[0], query, classes, thumbnails, 240),
                "others": [_neighbour(item, query, classes, thumbnails, 120) for item in found[1:]],
            }
            for name, found in example.neighbours.items()
        ],
    }


def _neighbour(
    neighbour: Neighbour,
    query: Mapping[str, int],
    classes: Mapping[str, Mapping[str, int]],
    thumbnails: Thumbnails,
    side: int,
) -> dict[str, Any]:
    return {
        "rank": neighbour.rank,
        "sample_id": neighbour.sample_id,
        "image": thumbnails.uri(neighbour.sample_id, side),
        "classes": _classes(classes.get(neighbour.sample_id, {}), query),
        "similarity": number(neighbour.similarity, 3),
        "f1": number(neighbour.f1, 2) if math.isfinite(neighbour.f1) else None,
        "iou": number(neighbour.iou, 2) if math.isfinite(neighbour.iou) else None,
    }


def _classes(counts: Mapping[str, int], query: Mapping[str, int]) -> dict[str, Any]:
    """Class names with counts, those shared with the query first; the rest beyond the eighth is only counted."""
    items: list[dict[str, Any]] = [
        {"name": name, "count": count, "shared": min(count, query.get(name, 0)) > 0}
        for name, count in counts.items()
        if count > 0
    ]
    items.sort(key=lambda item: (not item["shared"], -item["count"], item["name"]))
    return {"items": items[:_MAX_CLASSES], "more": max(0, len(items) - _MAX_CLASSES)}


def _cka(table: pa.Table | None) -> list[dict[str, Any]]:
    """One matrix for each kernel and estimator; a pair given once stands for both its orders."""
    rows = table.to_pylist() if table is not None else []
    groups = []
    for kernel, estimator in dict.fromkeys((row["kernel"], row["estimator"]) for row in rows):
        chosen = [row for row in rows if (row["kernel"], row["estimator"]) == (kernel, estimator)]
        found: dict[tuple[Any, Any], float] = {}
        for row in chosen:
            one = (row["representation_1"], row["invariance_1"])
            two = (row["representation_2"], row["invariance_2"])
            found[one, two] = row["value"]
            found.setdefault((two, one), row["value"])
        down = list(dict.fromkeys((row["representation_1"], row["invariance_1"]) for row in chosen))
        across = list(dict.fromkeys((row["representation_2"], row["invariance_2"]) for row in chosen))
        groups.append(
            {
                "kernel": kernel,
                "estimator": estimator,
                "across": across,
                "rows": [{"label": one, "cells": [_cka_cell(found.get((one, two))) for two in across]} for one in down],
                "n_samples": sorted({row["n_samples"] for row in chosen}),
            }
        )
    return groups


def _cka_cell(value: float | None) -> dict[str, Any]:
    known = value is not None and math.isfinite(value)
    shade = min(max(value, 0.0), 1.0) if value is not None and known else 0.0
    return {"text": number(value) if value is not None else "–", "shade": round(shade, 3)}
