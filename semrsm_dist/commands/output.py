"""What the verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print results as JSON, for programs; no progress.")


def print_json(value: Any) -> None:
    """Plain values as JSON on stdout."""
    click.echo(json.dumps(value, indent=1, default=str))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; text columns to the left, numbers to the right."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a log has no width; do not fold its tables
        console = Console(highlight=False, width=max(console.width, 120))
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        cells = [row[index] for row in rows]
        numeric = all(cell[:1] in "+-−0123456789" for cell in cells if cell)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_retrieval(rows: Sequence[Mapping[str, Any]], ks: Sequence[int] | None = None) -> None:
    """The retrieval table: each kernel and invariance with its gain over the baseline."""
    for representation in dict.fromkeys(row["representation"] for row in rows):
        own = [row for row in rows if row["representation"] == representation and (not ks or row["k"] in ks)]
        if not own:
            continue
        by_key = {(row["kernel"], row["invariance"], row["k"], row["metric"]): row for row in own}
        cells = []
        for kernel, invariance, k in dict.fromkeys((row["kernel"], row["invariance"], row["k"]) for row in own):
            line = [kernel, invariance, str(k)]
            for metric in ("F1", "IoU"):
                row = by_key[kernel, invariance, k, metric]
                gain = "" if invariance == row["baseline"] else _gain(row)
                line += [f"{row['value']:.3f}", gain]
            cells.append(line)
        baseline = own[0]["baseline"]
        header = ("kernel", "invariance", "k", "F1", f"gain over {baseline} [95 %]", "IoU", f"gain over {baseline} [95 %]")
        print_table(f"Retrieval with {representation}, {own[0]['n_queries']} queries", header, cells)


def _gain(row: Mapping[str, Any]) -> str:
    """A paired difference with its interval."""
    return f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
