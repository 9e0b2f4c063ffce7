"""What is written of the results: Parquet, tables in Markdown and on the terminal, and the figure."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from suite.claims import Claim
from suite.timing import Row

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

FILES = ("matching.parquet", "matching_table5.md", "matching_claims.md", "matching_figure5.png")

_TABLE_5 = (
    "greedy",
    "topk_greedy 128",
    "paper 512",
    "auction 512",
    "bfloat16 512",
    "paper optimal",
    "scipy optimal",
    "lapjv optimal",
    "auction optimal",
    "bfloat16 optimal",
)
"""Methods that are columns of Table 5; those of fewer cases are in the Parquet file and the figure."""
_WINDOWED = ("paper", "ortools", "scipy", "lapjv", "auction", "bfloat16")
"""Families that match inside windows."""
_STYLES = {
    "paper": ("the paper's path (OR-Tools)", "tab:red", "s"),
    "scipy": ("SciPy", "tab:orange", "v"),
    "lapjv": ("lapjv", "tab:olive", "^"),
    "topk_greedy": ("TopK-Greedy, auction", "tab:purple", "D"),
    "greedy": ("Greedy", "tab:gray", "*"),
    "auction": ("auction, float32", "tab:blue", "o"),
    "bfloat16": ("auction, bfloat16", "tab:cyan", "o"),
}
"""Label, colour and marker of what the figure shows."""
_EXACT = 2e-6
"""Losses below this are the tolerances of two matchings that are both optimal."""


def machine() -> str:
    """Processor, bfloat16 arithmetic, packages and load, in one line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith(("model name", "flags")):
            key, value = (part.strip() for part in line.split(":", 1))
            if key == "model name":
                model = value
            else:
                kinds = [kind for kind in ("amx_bf16", "avx512_bf16") if kind in value.split()]
                model += f" ({', '.join(kinds) or 'no bfloat16 arithmetic'})"
                break
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch", "ortools", "scipy"))
    return f"{model}, one thread; {packages}; load average {os.getloadavg()[0]:.1f}; torch threads {torch.get_num_threads()}"


def write(rows: list[Row], claims: list[Claim], folder: Path) -> None:
    """Write :data:`FILES` into the folder."""
    parquet, table, claimed, figure = (folder / name for name in FILES)
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), parquet)
    table.write_text(table_5(rows), encoding="utf-8")
    claimed.write_text(_claims_markdown(claims), encoding="utf-8")
    draw_figure_5(rows, figure)


def table_5(rows: list[Row]) -> str:
    """The paper's Table 5 as Markdown: milliseconds for a pair, and k/k_opt in per cent.

    First each method for each map; then each window for the maps of the figure.
    """
    cases = {case: {row.method: row for row in rows if row.case == case} for case in dict.fromkeys(row.case for row in rows)}
    lines = _markdown_heading(("map",), ("S", "C", *_TABLE_5))
    for case, methods in cases.items():
        first = next(iter(methods.values()))
        cells = (_table_5_cell(methods.get(name)) for name in _TABLE_5)
        lines.append(_markdown_row((case, str(first.n_positions), str(first.n_channels), *cells)))
    lines += ["", *_markdown_heading(("map", "window"), _WINDOWED)]
    for case, methods in cases.items():
        if _is_drawn(rows, case):
            for window in dict.fromkeys(row.window or "optimal" for row in methods.values() if row.family == "auction"):
                cells = (_table_5_cell(methods.get(f"{family} {window}")) for family in _WINDOWED)
                lines.append(_markdown_row((case, str(window), *cells)))
    return "\n".join(lines) + "\n"


def _markdown_heading(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """The first two lines of a table: texts on the left, numbers on the right."""
    return [_markdown_row((*left, *right)), _markdown_row((*("---" for _ in left), *("--:" for _ in right)))]


def _table_5_cell(row: Row | None) -> str:
    """Time and quality of one method in one case; empty where it was not run."""
    if row is None:
        return ""
    quality = "" if row.k_over_k_opt is None else f" ({_percent(row.k_over_k_opt)})"
    return f"{row.ms_per_pair:.3g}{quality}" if row.ms_per_pair < 1000 else f"{row.ms_per_pair:.0f}{quality}"


def _percent(quality: float) -> str:
    """k/k_opt with as many digits as its distance from the optimum needs, and ``100 %`` for an optimum."""
    loss = 1 - quality
    return "100 %" if loss < _EXACT else f"{100 * quality:.{min(4, max(1, 1 - math.floor(math.log10(100 * loss))))}f} %"


def _markdown_row(cells: Sequence[str]) -> str:
    """Cells between bars."""
    return f"| {' | '.join(cells)} |"


def _claims_markdown(claims: list[Claim]) -> str:
    """The claims as a Markdown table, and every case that fails below it."""
    lines = [_markdown_row(("claim", "worst measured", "target", "cases", "holds")), _markdown_row(["---"] * 5)]
    lines += [_markdown_row((one.text, one.measured, one.target, str(one.n_cases), one.verdict)) for one in claims]
    lines += ["", *(f"- Fails: {one.text}: {'; '.join(one.failing)}" for one in claims if one.failing)]
    return "\n".join(lines).rstrip() + "\n"


def claims_table(claims: list[Claim]) -> Table:
    """The claims for a terminal."""
    table = Table(title="claims", title_justify="left")
    for heading in ("claim", "worst measured", "target", "cases", "holds", "fails in"):
        table.add_column(heading)
    for one in claims:
        table.add_row(one.text, one.measured, one.target, str(one.n_cases), one.verdict, "\n".join(one.failing))
    return table


def results_table(rows: list[Row]) -> Table:
    """Every row for a terminal."""
    table = Table(title="one core, medians", title_justify="left")
    table.add_column("map")
    table.add_column("method")
    for heading in ("pairs × reps", "ms per pair", "k / k_opt", "certified gap", "× GEMM floor", "× faster than paper"):
        table.add_column(heading, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            f"{row.case} ({row.n_positions}×{row.n_channels})",
            row.method,
            f"{row.n_pairs} × {row.n_repetitions}",
            f"{row.ms_per_pair:.3f}",
            "" if row.k_over_k_opt is None else f"{row.k_over_k_opt:.7f}",
            "" if row.largest_relative_gap is None else f"{row.largest_relative_gap:.1e}",
            f"{row.times_floor:.2f}",
            f"{row.times_faster_than_paper:.1f}",
            end_section=following is None or following.case != row.case,
        )
    return table


def draw_figure_5(rows: list[Row], path: Path) -> None:
    """The paper's Figure 5: time of a pair against quality, one panel for each case that was timed with many windows."""
    cases = [case for case in dict.fromkeys(row.case for row in rows) if _is_drawn(rows, case)]
    if not cases:
        return
    across = min(2, len(cases))
    down = -(-len(cases) // across)
    figure, axes = plt.subplots(down, across, figsize=(6.4 * across, 4.2 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases, strict=False):
        _draw_panel(axis, [row for row in rows if row.case == case])
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("What a pair costs and how close to the optimal matching it comes (numbers: window; k of TopK-Greedy)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _is_drawn(rows: list[Row], case: str) -> bool:
    """Whether a case has more than one window."""
    return len({row.window for row in rows if row.case == case and row.family == "auction"}) > 2


def _draw_panel(axis: Axes, rows: list[Row]) -> None:
    """One case; points of a family are joined in the order of their windows."""
    for family, (label, colour, marker) in _STYLES.items():
        points = [
            (row.ms_per_pair, 100 * row.k_over_k_opt, str(row.k or row.window or "optimal"))
            for row in rows
            if row.family == family and row.k_over_k_opt is not None
        ]
        if not points:
            continue
        times, qualities, names = zip(*points, strict=True)
        size = 11 if marker == "*" else 6
        axis.plot(times, qualities, color=colour, marker=marker, markersize=size, linewidth=1.2, label=label)
        for index in {"paper": range(len(points)), "auction": range(len(points)), "topk_greedy": (0, -1)}.get(family, ()):
            name = f"k = {names[index]}" if family == "topk_greedy" else names[index]
            axis.annotate(name, points[index][:2], (5, -10), textcoords="offset points", fontsize=7, color=colour)
    axis.set(xscale="log", xlabel="milliseconds per pair, one core", ylabel="k / k_opt (%)")
    axis.set_title(f"{rows[0].case} (S = {rows[0].n_positions}, C = {rows[0].n_channels})", fontsize=11)
    axis.axhline(100, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axis.margins(x=0.1, y=0.12)
    decades = math.log10(max(row.ms_per_pair for row in rows) / min(row.ms_per_pair for row in rows))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=20))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
