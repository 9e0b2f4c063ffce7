"""What running on Ray costs beside computing, what a second worker brings, and how long a large resume takes to begin.

    python benchmarks/runtime.py            # about three minutes on two idle cores
    python benchmarks/runtime.py --tiles 6  # fewer tiles

Overhead and scaling are ratios within one run: the same tiles of a second or more (a) by the tile function in a process of one
core, (b) on Ray with one worker, (c) with two, from the start of the first tile until the receipt of the last; Ray and its
workers have been started before. Turns alternate, and the smallest of each counts, since others use the machine too.

The blocks that workers read are counted, in the order in which tiles are handed out and row by row.

The resume has 100,128 tiles in files, ten of which are missing: seconds from the call until the first task is submitted, next
to those for listing the files alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from threadpoolctl import threadpool_limits

from semrsm_dist.grid import RectangularGrid, TileKey
from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.runtime import rsm_run
from semrsm_dist.runtime.dispatch import Attempt
from semrsm_dist.runtime.order import along_the_curve, blocks_read
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.serial_executor import SerialExecutor
from semrsm_dist.runtime.units import Task, Unit
from semrsm_dist.runtime.worker import RsmJob
from semrsm_dist.tile import compute_tile
from storage_schemas import ActivationStore, RsmStore

S, C, TILE_SIZE, TURNS = 64, 512, 100, 3
RESUME_BLOCKS, RESUME_TILE_SIZE = 447, 4


def activations(path: Path, n: int, s: int, c: int) -> ActivationStore:
    """Random features."""
    store = ActivationStore.create(str(path), n_samples=n, n_positions=s, n_channels=c, computed_from={})
    random = np.random.default_rng(0)
    for index in range(store.n_chunks):
        part = store.chunk_slice(index)
        store.write_chunk(index, random.standard_normal((part.stop - part.start, s, c)).astype(np.float32))
    return store


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for a while."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def by_function(store: ActivationStore, matching: MatchingSettings, tiles: list[tuple[int, int]]) -> float:
    """Seconds for the tiles by the pure tile function, with all samples in memory."""
    blocks = [store.read(start, start + TILE_SIZE) for start in range(0, store.n_samples, TILE_SIZE)]
    aligned = alignment("permutation", matching)
    with threadpool_limits(limits=1):
        compute_tile(blocks[0][:2], blocks[1][:2], aligned)
        begin = time.perf_counter()
        for row, column in tiles:
            compute_tile(blocks[row], blocks[column], aligned)
        return time.perf_counter() - begin


def on_ray(store: ActivationStore, columns: ActivationStore, settings: RsmSettings, folder: Path, workers: int) -> float:
    """Seconds from the start of the first tile to the receipt of the last on Ray."""
    out = folder / f"{workers}.zarr"
    job = create_rsm(str(store.location), str(columns.location), str(out), settings)
    attempts: list[Attempt] = []
    run_rsm(job, settings.invariances, RunSettings("ray", workers=workers), on_attempt=attempts.append)
    shutil.rmtree(out)
    tiles = [each for each in attempts if each.unit.part == "tile"]
    started = min(each.receipt.started for each in tiles if each.receipt)
    return (max(each.received for each in tiles) - started).total_seconds()


def overhead(n_tiles: int) -> None:
    """Ray with one and two workers against the function."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        logging_level="ERROR",
        log_to_driver=False,
    )
    matching = MatchingSettings("optimal", solver="scipy")  # the slowest that is always there: tiles of a second or more
    settings = RsmSettings(("permutation",), "none", matching)
    with temporary() as folder:
        rows, columns = (
            activations(folder / "q.zarr", TILE_SIZE, S, C),
            activations(folder / "d.zarr", n_tiles * TILE_SIZE, S, C),
        )
        both = activations(folder / "both.zarr", (n_tiles + 1) * TILE_SIZE, S, C)
        tiles = [(0, column + 1) for column in range(n_tiles)]
        on_ray(rows, columns, settings, folder, 2)  # starts the workers, and compiles
        best = {"function": float("inf"), 1: float("inf"), 2: float("inf")}
        for _ in range(TURNS):
            best["function"] = min(best["function"], by_function(both, matching, tiles))
            for workers in (1, 2):
                best[workers] = min(best[workers], on_ray(rows, columns, settings, folder, workers))
    ray.shutdown()
    print(f"{n_tiles} tiles of {best['function'] / n_tiles:.2f} s (S = {S}, C = {C}, optimal with SciPy)")
    print(f"  Ray, one worker / function          {best[1] / best['function']:.3f}   (target: at most 1.05)")
    print(f"  Ray, one worker / two workers       {best[1] / best[2]:.3f}   (target: at least 1.9)")


def locality() -> None:
    """Blocks that workers read for a tile of a 100 × 100 grid of tiles, by row and along the curve; counted, not timed."""
    by_row = list(RectangularGrid(10_000, 10_000).tile_keys())
    by_curve = [unit.key for unit in along_the_curve([Unit(key, "none") for key in by_row])]
    print("Blocks read for a tile (8 workers, 30 tiles a task)")
    for room in (10, 20, 40):
        along, across = (
            blocks_read(keys, len(keys), room=room, per_task=30, workers=8, symmetric=False) / len(keys)
            for keys in (by_curve, by_row)
        )
        print(f"  room for {room} blocks                 {along:.2f} along the curve, {across:.2f} row by row")


class SubmittedError(Exception):
    """A first task was submitted."""


def resume() -> None:
    """Time to the first task of a store with 100,128 tiles."""
    with temporary() as folder:
        n = RESUME_BLOCKS * RESUME_TILE_SIZE
        store = activations(folder / "a.zarr", n, 1, 2)
        settings = RsmSettings(("none",), tile_size=RESUME_TILE_SIZE)
        job = create_rsm(str(store.location), None, str(folder / "r.zarr"), settings)
        fill(RsmStore.open(job.out, writable=True), folder / "r.zarr")
        for number in range(10):
            (folder / f"r.zarr/inner_product/none/c/{number}/{number + 40}").unlink()
        begin = time.perf_counter()
        RsmStore.open(job.out).location.sizes("inner_product/none")
        listing = time.perf_counter() - begin
        begin = time.perf_counter()
        job = create_rsm(str(store.location), None, str(folder / "r.zarr"), settings)
        try:
            run_with_first_submission(job)
        except SubmittedError:
            seconds = time.perf_counter() - begin
    print(f"Resume of {RESUME_BLOCKS * (RESUME_BLOCKS + 1) // 2:,} tile files, ten of them missing")
    print(f"  until the first task is submitted   {seconds:.2f} s (target: under 2), {seconds / listing:.1f} × listing them")


def fill(store: RsmStore, path: Path) -> None:
    """Write every unit; tiles as copies of one file, since all have the same size."""
    for block in range(RESUME_BLOCKS):
        store.write_norms("none", "row", block, np.ones(RESUME_TILE_SIZE))
    store.write_tile("none", 0, 0, np.ones((RESUME_TILE_SIZE, RESUME_TILE_SIZE)))
    tile = (path / "inner_product/none/c/0/0").read_bytes()
    for row in range(RESUME_BLOCKS):
        folder = path / f"inner_product/none/c/{row}"
        folder.mkdir(exist_ok=True)
        for column in range(row, RESUME_BLOCKS):
            (folder / str(column)).write_bytes(tile)


def run_with_first_submission(job: RsmJob) -> None:
    """Run until the first task is submitted."""

    class First(SerialExecutor):
        def submit(self, task: Task) -> None:
            assert {unit.key for unit in task.units} <= {TileKey(number, number + 40) for number in range(10)}
            raise SubmittedError

    original = rsm_run.make_executor
    rsm_run.make_executor = lambda *arguments: First(lambda units: [])  # type: ignore[assignment]
    try:
        run_rsm(job, ("none",), RunSettings("serial"))
    finally:
        rsm_run.make_executor = original


@click.command()
@click.option("--tiles", default=16, show_default=True, help="Tiles of the measure of overhead.")
def main(tiles: int) -> None:
    """Print the figures."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    locality()
    resume()
    overhead(tiles)


if __name__ == "__main__":
    main()
