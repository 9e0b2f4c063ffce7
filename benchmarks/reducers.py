"""What σ, CKA and retrieval cost on a large RSM in a store: seconds, and memory of the process against 1 GiB.

    python benchmarks/reducers.py            # 20,000 × 20,000, about five minutes, 3.0 GiB of disk
    python benchmarks/reducers.py --quick    # 4,000 × 4,000, under a minute

The store is fabricated: the inner products of random vectors under two invariances, in tiles of 100 × 100 on and above the
diagonal, written as a run writes them. Each reducer runs in a process of its own, serially. Its peak is the largest resident
set, interpreter and libraries included. Ratios are of CPU seconds, which others on the machine disturb least, to reading every
tile of one invariance once and doing nothing with it, in the same run; CKA and top-10 read twice as many, σ two to five times.
σ² is compared with `numpy.median` of all distances in memory, to the bit.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from semrsm_dist import kernels
from semrsm_dist.grid import SymmetricGrid
from semrsm_dist.names import Invariance
from semrsm_dist.progress import binary_size, progress
from semrsm_dist.reduction.samples import Samples
from semrsm_dist.reduction.stored import StoredRsm
from semrsm_dist.reduction.stored_cka import stored_cka
from semrsm_dist.reduction.stored_retrieval import retrieve
from storage_schemas import RsmStore

TILE_SIZE = 100
N_CHANNELS = 24
FULL, QUICK = 20_000, 4_000
SMALLER = (20_000, 14_000, 10_000, 7_000, 4_000)
LIMIT_MIB = 1024
INVARIANCES: tuple[Invariance, ...] = ("none", "permutation")
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "semrsm-benchmark-reducers"


@dataclass(frozen=True)
class Measured:
    """What a reducer came to in its own process."""

    result: str
    """Its number, printed."""
    seconds: float
    """By the clock, without the start of the process."""
    cpu_seconds: float
    """Of all threads."""
    peak_mib: float
    """Largest resident set of the process."""


def vectors(invariance: Invariance, n_samples: int) -> np.ndarray:
    """Vectors whose inner products are the RSM; those of the two invariances are related, so that their CKA is not trivial."""
    shared, own = (np.random.default_rng(seed).standard_normal((n_samples, N_CHANNELS)) for seed in (0, 1))
    return shared if invariance == "none" else shared + 0.5 * own


def bytes_needed(n_samples: int) -> int:
    """Disk that the store takes."""
    return len(INVARIANCES) * SymmetricGrid(n_samples, TILE_SIZE).n_tiles * (TILE_SIZE**2 * 8 + 4)


def fabricate(url: str, n_samples: int) -> None:
    """Write what a store lacks; one that is complete is used again."""
    grid = SymmetricGrid(n_samples, TILE_SIZE)
    store = RsmStore.create(
        url,
        n_rows=n_samples,
        n_columns=n_samples,
        grid=grid.describe(),
        tile_size=TILE_SIZE,
        computed_from={"benchmark": "reducers", "channels": N_CHANNELS},
    )
    with progress("Fabricating", "tiles") as report:
        for number, invariance in enumerate(INVARIANCES):
            store.add_invariance(invariance)
            samples = vectors(invariance, n_samples)
            norms = np.linalg.norm(samples, axis=1)
            for block in range(-(-n_samples // TILE_SIZE)):
                store.write_norms(invariance, "row", block, norms[block * TILE_SIZE : (block + 1) * TILE_SIZE])
            present = store.present_tiles(invariance)
            for done, key in enumerate(grid.tile_keys(), start=1 + number * grid.n_tiles):
                if (key.row, key.column) not in present:
                    rows, columns = grid.slices(key)
                    store.write_tile(invariance, key.row, key.column, samples[rows] @ samples[columns].T)
                report(done, len(INVARIANCES) * grid.n_tiles)


def read_tiles(store: RsmStore) -> str:
    """The reference: every tile of one invariance, once."""
    stored = StoredRsm(store, INVARIANCES[0])
    n_bytes = sum(stored.inner_product(key).nbytes for key in stored.grid.tile_keys())
    return binary_size(n_bytes)


def sigma(store: RsmStore) -> str:
    """σ² under ``median_sq``, with all its digits."""
    return repr(StoredRsm(store, INVARIANCES[0]).sigma_squared)


def median_in_memory(store: RsmStore) -> str:
    """σ² as :func:`numpy.median` gives it, of all distances at once."""
    stored = StoredRsm(store, INVARIANCES[0])
    n = store.shape[0]
    values, filled = np.empty(n * (n - 1) // 2), 0
    for key in stored.grid.tile_keys():
        rows, columns = stored.grid.slices(key)
        norms = stored.row_norms
        distances = kernels.squared_distance(stored.inner_product(key), norms[rows], norms[columns])
        found = distances[np.triu_indices(len(distances), 1)] if key.on_diagonal else distances.ravel()
        found = found[found > 0]
        values[filled : filled + len(found)] = found
        filled += len(found)
    return repr(float(np.median(values[:filled], overwrite_input=True)))


def cka(store: RsmStore) -> str:
    """Unbiased CKA of the two invariances, linear kernel."""
    first, second = (StoredRsm(store, invariance) for invariance in INVARIANCES)
    return f"{stored_cka(first, second, 'linear', 'unbiased'):.9f}"


def top_10(store: RsmStore) -> str:
    """F1@10 under the cosine kernel, with the table of neighbours; samples are frames of videos of five, in 80 classes."""
    n = store.shape[0]
    counts = (np.random.default_rng(2).random((n, 80)) < 0.05).astype(np.int64)
    samples = Samples([f"{index:012d}" for index in range(n)], [f"video{i // 5}" for i in range(n)], [None] * n, counts)
    found = retrieve(
        store,
        samples,
        samples,
        representation="fabricated",
        invariances=INVARIANCES[:1],
        kernel_names=("cosine",),
        top_k=(10,),
    )
    return f"F1@10 {found.summary.column('value')[0].as_py():.6f}, {len(found.neighbours):,} neighbours"


REDUCERS: dict[str, Callable[[RsmStore], str]] = {
    "read all tiles": read_tiles,
    "σ, exact median": sigma,
    "CKA, unbiased": cka,
    "top-10, cosine": top_10,
    "numpy.median": median_in_memory,
}


def measure_here(name: str, url: str) -> Measured:
    """Run one reducer in this process."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    result = REDUCERS[name](RsmStore.open(url))
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return Measured(result, seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(name: str, url: str) -> Measured:
    """Run one reducer in a process of its own."""
    command = [sys.executable, __file__, "--reducer", name, "--store", url]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(done.stdout))


def size_that_fits(wanted: int, folder: Path) -> int:
    """Samples of the largest store that leaves a tenth of the free disk free."""
    present = sum(path.stat().st_size for path in folder.glob(f"{wanted}.zarr/**/*") if path.is_file())
    free = 0.9 * shutil.disk_usage(folder).free + present
    fitting = [n for n in (wanted, *SMALLER) if n <= wanted and bytes_needed(n) <= free]
    if not fitting:
        raise click.ClickException(f"{folder} has {binary_size(free)} free, and the smallest store needs more.")
    if fitting[0] < wanted:
        print(f"{folder} has {binary_size(free)} free: {fitting[0]:,} samples instead of {wanted:,}.")
    return fitting[0]


def run(url: str, n_samples: int) -> bool:
    """Fabricate the store, measure every reducer and print the table; returns whether all claims hold."""
    n_tiles = len(INVARIANCES) * SymmetricGrid(n_samples, TILE_SIZE).n_tiles
    print(f"{n_samples:,} × {n_samples:,}, {n_tiles:,} tiles, {binary_size(bytes_needed(n_samples))}, at {url}", flush=True)
    fabricate(url, n_samples)
    measured: dict[str, Measured] = {}
    print(f"{'':<16} {'seconds':>8} {'CPU s':>6} {'ratio':>6} {'peak MiB':>9} {'of 1 GiB':>9}  result")
    for name in REDUCERS:
        measured[name] = found = measure(name, url)
        ratio = found.cpu_seconds / measured["read all tiles"].cpu_seconds
        share = f"{found.peak_mib / LIMIT_MIB:.2f}"
        times = f"{found.seconds:>8.1f} {found.cpu_seconds:>6.1f} {ratio:>6.2f}"
        print(f"{name:<16} {times} {found.peak_mib:>9.0f} {share:>9}  {found.result}", flush=True)
    own = [name for name in REDUCERS if name != "numpy.median"]  # which holds all distances, as it must
    within = all(measured[name].peak_mib <= LIMIT_MIB for name in own)
    equal = measured["σ, exact median"].result == measured["numpy.median"].result
    print(f"Every reducer within 1 GiB: {'yes' if within else 'NO'}.")
    print(f"σ² equal to numpy.median to the bit: {'yes' if equal else 'NO'}.")
    return within and equal


@click.command()
@click.option("--quick", is_flag=True, help=f"{QUICK:,} samples instead of {FULL:,}: under a minute.")
@click.option("--keep", is_flag=True, help="Leave the store for later runs; one that was found is always left.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where the store is made; one that is there is used.",
)
@click.option("--reducer", type=click.Choice(list(REDUCERS)), hidden=True)
@click.option("--store", hidden=True)
def main(quick: bool, keep: bool, folder: Path, reducer: str | None, store: str | None) -> None:
    """Measure the reducers."""
    if reducer is not None and store is not None:
        print(json.dumps(asdict(measure_here(reducer, store))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    n_samples = size_that_fits(QUICK if quick else FULL, folder)
    url = folder / f"{n_samples}.zarr"
    found = url.exists()
    try:
        holds = run(str(url), n_samples)
    finally:
        if not (keep or found):
            shutil.rmtree(url, ignore_errors=True)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
