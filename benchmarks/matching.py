"""What matching a pair costs, how close to the optimum it comes, and how both compare with the paper's own path.

    python benchmarks/matching.py            # about ten minutes
    python benchmarks/matching.py --quick    # under a minute

Times are of one core (of this process: what else runs on the machine does not count), for pairs in a block whose samples are
prepared (sorted by norm, cut into windows) beforehand, as in a tile of 100 × 100 pairs; slow methods are timed on a few of its
pairs. Ratios are of medians over repetitions that take turns. The references are *the paper's path*
(:func:`suite.methods.papers_path`) and *the GEMM floor*, the float32 affinities alone (:func:`suite.methods.products_alone`).
Written are ``matching.parquet``, ``matching_claims.md``, and the paper's Table 5 and Figure 5 with our methods added, as
``matching_table5.md`` and ``matching_figure5.png``.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from suite import maps, report
from suite.claims import Claim, at_most, claims_of_rows
from suite.probes import growth_of_cost_per_position, peak_bytes
from suite.timing import Case, Effort, Row, measure
from threadpoolctl import threadpool_limits

FULL = Effort(repetitions=7, seconds=1.0, fewest=2)
QUICK = Effort(repetitions=3, seconds=0.4, fewest=1)
DEGENERATE = ("identical", "zeros", "clusters")


def block_shape(n_positions: int) -> tuple[int, int]:
    """Row and column samples: enough for products as large as in a tile, and for what is done once for each sample."""
    return (32, 4) if n_positions <= 256 else (16, 4) if n_positions <= 1024 else (16, 2) if n_positions <= 4096 else (1, 1)


def real_cases() -> list[Case]:
    """Maps of SqueezeNet and MobileNetV2 for photographs of playing cards, centred by position unless named otherwise."""
    cases = [
        Case("squeezenet fire9", "real", *block_shape(169), partial(maps.squeezenet, centre=True), quick=True, drawn=True),
        Case("squeezenet fire9 uncentred", "real", *block_shape(169), partial(maps.squeezenet, centre=False), quick=True),
    ]
    at_224 = {1: 3136, 3: 784, 6: 196, 9: 196, -1: 49}
    at_512 = {3: 4096, 6: 1024, 10: 1024, 13: 256, -1: 256}
    for pixels, layers in ((224, at_224), (512, at_512)):
        for layer, n_positions in layers.items():
            n_rows, n_columns = block_shape(n_positions) if pixels == 224 else (16, 2)
            name = f"mobilenet_v2 {pixels} px {'last layer' if layer == -1 else f'layer {layer}'}"
            make = partial(maps.mobilenet, pixels=pixels, layer=layer, centre=True)
            drawn = (pixels, layer) in ((512, 3), (512, 10))
            cases.append(Case(name, "real", n_rows, n_columns, make, quick=pixels == 224 and layer in (3, 6), drawn=drawn))
    make = partial(maps.mobilenet, pixels=512, layer=3, centre=False)
    return [*cases, Case("mobilenet_v2 512 px layer 3 uncentred", "real", 16, 2, make)]


def synthetic_cases() -> list[Case]:
    """Maps from noise, regular and degenerate."""
    quick = {("gaussian", 256, 256), ("gaussian", 1024, 256), ("gaussian", 4096, 256), ("identical", 256, 256)}
    sizes = {
        "gaussian": ((49, 1536), (196, 64), (256, 256), (1024, 256), (1024, 1536), (4096, 256), (4096, 512), (4096, 1280)),
        "relu": ((169, 512), (256, 256), (1024, 512), (4096, 256)),
        "smooth": ((256, 256), (1024, 256), (4096, 256)),
        "classes": ((1024, 64), (4096, 64), (65_536, 64)),
        "identical": ((256, 256), (1024, 256)),
        "zeros": ((256, 256), (1024, 256)),
        "clusters": ((256, 256), (1024, 256)),
    }
    return [
        Case(
            f"{kind} {n_positions}×{n_channels}",
            "degenerate" if kind in DEGENERATE else "synthetic",
            *block_shape(n_positions),
            partial(maps.synthetic, kind, n_positions=n_positions, n_channels=n_channels),
            quick=(kind, n_positions, n_channels) in quick,
            drawn=(kind, n_positions, n_channels) == ("gaussian", 4096, 256),
        )
        for kind, all_sizes in sizes.items()
        for n_positions, n_channels in all_sizes
    ]


def probe_claims(repetitions: int) -> list[Claim]:
    """The claims about memory and about very large maps."""
    gaussian = maps.synthetic("gaussian", 2, 4096, 256)
    large, small = (maps.synthetic("classes", 2, n_positions, 64) for n_positions in (65_536, 4096))
    affinity_bytes = 4 * 4096**2
    growth, growth_with_preparation = growth_of_cost_per_position(large, small, repetitions)
    return [
        at_most(
            "optimal, S = 4096: peak memory over the affinity matrix",
            2.5,
            [("gaussian 4096×256", peak_bytes(gaussian, "optimal") / affinity_bytes)],
        ),
        at_most(
            "S = 65,536, C = 64, window 512: time of a position over that at S = 4096",
            1.15,
            [("matching", growth), ("with preparation", growth_with_preparation)],
        ),
        at_most(
            "S = 65,536, C = 64, window 512: memory beyond the two maps",
            64,
            [("classes 65536×64", peak_bytes(large, "batch_optimal") / 2**20)],
            unit=" MiB",
        ),
    ]


@click.command()
@click.option("--quick", is_flag=True, help="Fewer cases, methods and repetitions: under a minute.")
@click.option("--only", metavar="PATTERN", help="Only cases whose name matches this regular expression; no probes of memory.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    show_default=True,
    help="Folder for tables and figures.",
)
def main(quick: bool, only: str | None, out: Path) -> None:
    """Time every matching method against the paper's path and against the products alone."""
    console = Console(highlight=False)
    console.width = max(console.width, 150)  # a log file or a pipe is as wide as the tables
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    effort = QUICK if quick else FULL
    cases = [case for case in real_cases() + synthetic_cases() if case.quick or not quick]
    cases = [replace(case, drawn=case.drawn and (case.source == "real" or not quick)) for case in cases]
    cases = [case for case in cases if only is None or re.search(only, case.name)]
    console.print(report.machine())
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress, threadpool_limits(limits=1):
        rows = run_cases(cases, effort, quick, progress)
        claims = claims_of_rows(rows)
        if only is None:
            progress.console.print("Probes: memory in fresh processes, and maps of 65,536 positions")
            claims += probe_claims(effort.repetitions)
    report.write(rows, claims, out)
    console.print(report.results_table(rows), report.claims_table(claims))
    console.print(f"Load average at the end: {os.getloadavg()[0]:.1f}. Written to {out}:", *report.FILES, sep="\n  ")


def run_cases(cases: list[Case], effort: Effort, quick: bool, progress: Progress) -> list[Row]:
    """Measure one case after another; maps that are absent, and solvers that are not installed, are named once."""
    rows: list[Row] = []
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            progress.console.print(line)
        said.add(line)

    task = progress.add_task("cases", total=len(cases))
    for number, case in enumerate(cases, start=1):
        progress.update(task, description=case.name)
        begin = time.perf_counter()
        try:
            rows += measure(case, effort, quick, say)
        except maps.MapsAbsentError as error:
            say(f"SKIPPED {case.name} and others of its kind: {error}")
        progress.console.print(f"[{number}/{len(cases)}] {case.name}: {time.perf_counter() - begin:.1f} s")
        progress.advance(task)
    return rows


if __name__ == "__main__":
    main()
