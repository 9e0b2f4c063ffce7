"""CKA of two RSM stores over the same samples, tile by tile."""

from __future__ import annotations

from functools import partial

from semrsm_dist.grid import MinibatchGrid
from semrsm_dist.names import Estimator, KernelName
from semrsm_dist.progress import Report
from semrsm_dist.reduction.cka import LEAST_SAMPLES, Hsic, HsicAccumulator, StripSums, sum_strip
from semrsm_dist.reduction.stored import StoredRsm
from semrsm_dist.reduction.strips import Strip
from storage_schemas.errors import InvalidInputError


def stored_cka(
    first: StoredRsm,
    second: StoredRsm,
    kernel: KernelName = "linear",
    estimator: Estimator = "unbiased",
    report: Report | None = None,
) -> float:
    """CKA of two stored RSMs in bounded memory.

    Parameters
    ----------
    first, second
        Symmetric RSMs over the same samples, on the same grid; on a minibatch grid the HSIC terms are averaged over batches
        before the ratio. The strips of both are mapped over by ``first.map_strips``.
    kernel
        ``linear``, ``cosine`` or ``rbf``.
    estimator
        ``unbiased`` or ``biased``.
    report
        Told how many tiles have been read.

    Raises
    ------
    InvalidInputError
        When an RSM is not symmetric, the samples or grids differ, N < 4, or a kernel is constant.
    """
    for stored in (first, second):
        if not stored.grid.symmetric:
            raise InvalidInputError(
                f"{stored.store.location} compares queries with a database; CKA needs RSMs of one set of samples with itself."
            )
    if first.grid != second.grid:
        raise InvalidInputError(
            f"{first.store.location} and {second.store.location} differ in their grids ({first.grid} and {second.grid}); "
            "CKA needs the same samples, tile size and batches."
        )
    samples = [stored.store.attributes.get("samples", {}).get("rows") for stored in (first, second)]
    if None not in samples and samples[0] != samples[1]:
        raise InvalidInputError(
            f"{first.store.location} and {second.store.location} are over different samples; CKA compares two "
            "representations of the same ones, in the same order."
        )
    batches = iter(_batches(first))
    batch = next(batches)
    accumulator = HsicAccumulator(batch.stop - batch.start, estimator)
    for stored in (first, second):
        stored.prepare(kernel)
    done, total = 0, Hsic(0.0, 0.0, 0.0)
    for sums in first.map_strips(partial(_sum_strip, first, second, kernel, estimator), first.strips()):
        if sums.rows.start >= batch.stop:
            total += accumulator.result()
            batch = next(batches)
            accumulator = HsicAccumulator(batch.stop - batch.start, estimator)
        accumulator.add_strip(sums.moved(-batch.start))
        done += -(-(sums.columns.stop - sums.columns.start) // first.grid.tile_size)
        if report:
            report(done, first.grid.n_tiles)
    return (total + accumulator.result()).ratio()


def _sum_strip(first: StoredRsm, second: StoredRsm, kernel: KernelName, estimator: Estimator, strip: Strip) -> StripSums:
    """What one strip of both RSMs adds to the sums."""
    rows = first.grid.slices(next(strip.tile_keys()))[0]
    tiles = ((first.grid.slices(key)[1], first.tile(key, kernel), second.tile(key, kernel)) for key in strip.tile_keys())
    return sum_strip(rows, tiles, estimator)


def _batches(stored: StoredRsm) -> list[slice]:
    """Samples whose HSIC terms belong together: all of them, or the batches of a minibatch grid."""
    grid = stored.grid
    if not isinstance(grid, MinibatchGrid):
        return [slice(0, grid.shape[0])]
    last = grid.batches[-1]
    if last.stop - last.start < LEAST_SAMPLES:
        raise InvalidInputError(
            f"The last batch of {stored.store.location} has {last.stop - last.start} samples and CKA needs {LEAST_SAMPLES}; "
            "choose another batch size."
        )
    return grid.batches
