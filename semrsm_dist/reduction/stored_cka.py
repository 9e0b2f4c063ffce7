"""CKA of two RSM stores over the same samples, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

from semrsm_dist.grid import MinibatchGrid, TileKey
from semrsm_dist.names import Estimator, KernelName
from semrsm_dist.progress import Report
from semrsm_dist.reduction.cka import LEAST_SAMPLES, Hsic, HsicAccumulator
from semrsm_dist.reduction.stored import StoredRsm
from storage_schemas.errors import InvalidInputError


@dataclass(frozen=True)
class _Batch:
    """Tiles whose HSIC terms belong together."""

    samples: slice
    keys: tuple[TileKey, ...]


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
        before the ratio.
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
    done, sums = 0, Hsic(0.0, 0.0, 0.0)
    for batch in _batches(first):
        offset = batch.samples.start
        accumulator = HsicAccumulator(batch.samples.stop - offset, estimator)
        for key in batch.keys:
            rows, columns = (slice(part.start - offset, part.stop - offset) for part in first.grid.slices(key))
            accumulator.add(rows, columns, first.tile(key, kernel), second.tile(key, kernel))
            done += 1
            if report:
                report(done, first.grid.n_tiles)
        sums += accumulator.result()
    return sums.ratio()


def _batches(stored: StoredRsm) -> list[_Batch]:
    """The whole grid as one batch, or the batches of a minibatch grid."""
    grid = stored.grid
    if not isinstance(grid, MinibatchGrid):
        return [_Batch(slice(0, grid.shape[0]), tuple(grid.tile_keys()))]
    by_row: dict[int, list[TileKey]] = {}
    for key in grid.tile_keys():
        by_row.setdefault(key.row, []).append(key)
    found = []
    for samples in grid.batches:
        size = samples.stop - samples.start
        if size < LEAST_SAMPLES:
            raise InvalidInputError(
                f"The last batch of {stored.store.location} has {size} samples and CKA needs {LEAST_SAMPLES}; "
                "choose another batch size."
            )
        rows = range(samples.start // grid.tile_size, -(-samples.stop // grid.tile_size))
        found.append(_Batch(samples, tuple(key for row in rows for key in by_row[row])))
    return found
