"""The report's words and numbers: titles, number formats and the headline sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

MINUS = "\N{MINUS SIGN}"
BASELINE = "none"

_ORDER = ("none", "permutation", "translation", "pooled")
_PREFERRED = ("permutation", "translation", "pooled")  # which invariance the report speaks about first
_TITLES = {
    "none": "none (spatio-semantic)",
    "permutation": "permutation (semantic)",
    "translation": "translation (best shift)",
    "pooled": "pooled (mean over positions)",
}
_KERNELS = {
    "cosine": "Cosine similarity",
    "linear": "Linear kernel (inner product)",
    "rbf": "RBF similarity",
}
_METRICS = {"f1": "F1", "iou": "IoU"}


def invariance_title(name: str) -> str:
    """The invariance with a word on what it means."""
    return _TITLES.get(name, name)


def kernel_title(name: str) -> str:
    """The kernel's name for an axis or a caption."""
    return _KERNELS.get(name, name)


def metric_title(name: str) -> str:
    """The metric as people write it: F1, IoU."""
    return _METRICS.get(name.casefold(), name)


def ordered_invariances(names: Iterable[str]) -> list[str]:
    """Invariances in the order of the definitions; unknown ones follow, by name."""
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def compared_invariance(names: Iterable[str], baseline: str = BASELINE) -> str | None:
    """The invariance to compare with the baseline: permutation where there is one; None when nothing else is there."""
    others = [name for name in ordered_invariances(names) if name != baseline]
    return next((name for name in _PREFERRED if name in others), others[0] if others else None)


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign; a dash when it is not finite.

    >>> number(-0.1234), number(-0.0001), number(float("nan"))
    ('−0.123', '0.000', '–')
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, always.

    >>> signed(0.1634), signed(-0.02), signed(0.0)
    ('+0.163', '−0.020', '0.000')
    """
    text = number(value, digits)
    return f"+{text}" if value > 0 and any(digit in text for digit in "123456789") else text


def interval(low: float, high: float, digits: int = 3) -> str:
    """An interval in brackets, for example ``[0.090, 0.240]``."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says: ``up``, ``down``, or ``open`` when it includes 0 or is not known."""
    if low > 0:
        return "up"
    return "down" if high < 0 else "open"


def headline(retrieval: pa.Table, *, kernel: str = "cosine") -> str:
    """Say in one or two sentences what invariance did to retrieval, whatever it did.

    Parameters
    ----------
    retrieval : pyarrow.Table
        Rows of `storage_schemas.tables.RETRIEVAL` of one representation; may be empty.
    kernel : str
        The kernel to speak about; the table's first kernel when it is not there.

    Returns
    -------
    str
        The gain (or loss) in F1 at the smallest k with its 95 % interval. A gain is called one only when the interval
        excludes 0.
    """
    rows = [row for row in retrieval.to_pylist() if row["metric"].casefold() == "f1"]
    if not rows:
        return "Retrieval was not measured: there are no annotations to compare the images found with."
    kernels = [row["kernel"] for row in rows]
    kernel = kernel if kernel in kernels else kernels[0]
    rows = [row for row in rows if row["kernel"] == kernel]
    k = min(row["k"] for row in rows)
    at_k = {row["invariance"]: row for row in rows if row["k"] == k}
    baseline = next(iter(at_k.values()))["baseline"]
    chosen = compared_invariance(at_k, baseline)
    if chosen is None:
        value = number(next(iter(at_k.values()))["value"])
        return f"Only the invariance {baseline} was computed, so there is no gain to report: F1@{k} {value}."
    return _comparison(at_k[chosen], at_k.get(baseline), k) + _pooled_remark(at_k, chosen, baseline)


def _comparison(row: dict[str, Any], base: dict[str, Any] | None, k: int) -> str:
    name = row["invariance"]
    images = "the most similar image shares" if k == 1 else f"the {k} most similar images share"
    base_value = base["value"] if base is not None else row["value"] - row["difference"]
    low, high = row["difference_low"], row["difference_high"]
    figures = f"F1@{k} {number(row['value'])} against {number(base_value)}, {signed(row['difference'])} {interval(low, high)}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"With {name} invariance against {row['baseline']}: {figures}; the interval could not be computed."
    kind = verdict(low, high)
    if kind == "open":
        return (
            f"With {name} invariance {images} neither clearly more nor clearly fewer objects: {figures}; "
            f"the 95\N{NO-BREAK SPACE}% interval includes 0."
        )
    return f"With {name} invariance {images} {'more' if kind == 'up' else 'fewer'} objects: {figures}."


def _pooled_remark(at_k: dict[str, dict[str, Any]], chosen: str, baseline: str) -> str:
    """The pooled baseline is as blind to positions and far cheaper, so the reader must see it at once."""
    if "pooled" not in at_k or "pooled" in (chosen, baseline):
        return ""
    pooled, value = at_k["pooled"]["value"], at_k[chosen]["value"]
    remark = f" Pooling over positions, which is far cheaper, reaches {number(pooled)}"
    return f"{remark}, a higher value." if pooled > value else f"{remark}."
