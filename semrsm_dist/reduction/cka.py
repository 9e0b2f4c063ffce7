"""Centred kernel alignment of two RSMs over the same samples.

``CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` (Kornblith et al., ICML 2019; equations 1 and 2 of Wald et al.,
NeurIPS 2024). ``biased`` is ``tr(KHLH)``; ``unbiased`` is the estimator of Song et al. (JMLR 2012), with which a minibatch
estimate averages the HSIC terms over batches before the ratio (Nguyen et al., ICLR 2021).

Both need only ``Σ K∘L`` and the row sums, so that kernels are read tile by tile: a strip of tiles becomes a :class:`StripSums`,
and strips are added up in their order. Sums are NumPy's within a tile and compensated beyond it; no BLAS is used, whose order
depends on the processor and on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.names import Estimator
from semrsm_dist.reduction.sums import CompensatedSum
from storage_schemas.errors import InvalidInputError

LEAST_SAMPLES = 4
"""The unbiased estimator divides by ``n (n − 3)``."""
Kernel = NDArray[np.float64]
_BLOCK_ROWS = 128  # of a kernel in memory whose products are summed at once
_CONSTANT = 1e-12  # a self-HSIC below this share of the kernel's energy is rounding


@dataclass(frozen=True)
class Hsic:
    """The three terms of a CKA."""

    kl: float
    kk: float
    ll: float

    def __add__(self, other: Hsic) -> Hsic:
        return Hsic(self.kl + other.kl, self.kk + other.kk, self.ll + other.ll)

    def ratio(self) -> float:
        """``kl / sqrt(kk · ll)``."""
        return self.kl / float(np.sqrt(self.kk) * np.sqrt(self.ll))


@dataclass(frozen=True)
class StripSums:
    """What a strip of tiles on and above the diagonal adds to the sums over both kernels."""

    rows: slice
    """Samples of its rows."""
    columns: slice
    """Samples of its columns."""
    products: NDArray[np.float64]
    """``Σ K∘L``, ``Σ K∘K``, ``Σ L∘L``; a tile above the diagonal counts for its mirror image too."""
    row_sums: NDArray[np.float64]
    """Of ``K`` and of ``L``, ``(2, rows)``."""
    column_sums: NDArray[np.float64]
    """Of ``K`` and of ``L``, ``(2, columns)``, which are row sums of the mirror image; 0 for a tile on the diagonal."""

    def moved(self, by: int) -> StripSums:
        """The same sums for samples that are counted from elsewhere."""
        rows, columns = (slice(part.start + by, part.stop + by) for part in (self.rows, self.columns))
        return replace(self, rows=rows, columns=columns)


def sum_strip(rows: slice, tiles: Iterable[tuple[slice, Kernel, Kernel]], estimator: Estimator) -> StripSums:
    """Sums over the tiles of one strip, reading one at a time.

    Parameters
    ----------
    rows
        Samples of the rows of every tile.
    tiles
        From left to right, the samples of the columns (equal to the rows for a tile on the diagonal) and the tile of either
        kernel; at least one.
    estimator
        ``biased`` or ``unbiased``, which leaves the diagonal out.
    """
    products, row_sums = CompensatedSum(3), CompensatedSum((2, rows.stop - rows.start))
    spans, column_sums = [], []
    for columns, k, l in tiles:
        on_diagonal = columns == rows
        if on_diagonal and estimator == "unbiased":
            k, l = _without_diagonal(k), _without_diagonal(l)
        weight = 1.0 if on_diagonal else 2.0
        products.add(weight * np.array([_sum_of_products(k, l), _sum_of_products(k, k), _sum_of_products(l, l)]))
        row_sums.add([k.sum(axis=1), l.sum(axis=1)])
        column_sums.append(np.zeros((2, k.shape[1])) if on_diagonal else np.stack([k.sum(axis=0), l.sum(axis=0)]))
        spans.append(columns)
    together = slice(spans[0].start, spans[-1].stop)
    return StripSums(rows, together, products.value(), row_sums.value(), np.concatenate(column_sums, axis=1))


class HsicAccumulator:
    """HSIC terms of two symmetric kernels, added tile by tile or strip by strip.

    Parameters
    ----------
    n_samples
        Samples of the kernels (of the batch, for a minibatch).
    estimator
        ``biased`` or ``unbiased``.
    """

    def __init__(self, n_samples: int, estimator: Estimator) -> None:
        if n_samples < LEAST_SAMPLES:
            raise InvalidInputError(f"CKA needs at least {LEAST_SAMPLES} samples, and there are {n_samples}.")
        if estimator not in ("biased", "unbiased"):
            raise InvalidInputError(f"There is no CKA estimator called {estimator!r}; known are biased, unbiased.")
        self._n, self._estimator = n_samples, estimator
        self._row_sums = [CompensatedSum(n_samples), CompensatedSum(n_samples)]
        self._products = CompensatedSum(3)

    def add(self, rows: slice, columns: slice, k: Kernel, l: Kernel) -> None:
        """Add a tile on or above the diagonal; one above it counts for its mirror image too.

        Parameters
        ----------
        rows, columns
            Samples of the tile; equal for a tile on the diagonal.
        k, l
            The tile of either kernel.
        """
        self.add_strip(sum_strip(rows, [(columns, k, l)], self._estimator))

    def add_strip(self, strip: StripSums) -> None:
        """Add a strip; the order of strips is that of the sums."""
        self._products.add(strip.products)
        for sums, of_rows, of_columns in zip(self._row_sums, strip.row_sums, strip.column_sums, strict=True):
            sums.add(of_rows, strip.rows)
            sums.add(of_columns, strip.columns)

    def result(self) -> Hsic:
        """The terms; raises `InvalidInputError` when a kernel is constant."""
        k_rows, l_rows = (sums.value() for sums in self._row_sums)
        products = self._products.value()
        pairs = ((k_rows, l_rows), (k_rows, k_rows), (l_rows, l_rows))
        terms = [self._term(float(product), a, b) for product, (a, b) in zip(products, pairs, strict=True)]
        for term, energy in zip(terms[1:], products[1:], strict=True):
            if not term > _CONSTANT * energy / self._scale():
                raise InvalidInputError(
                    "A kernel is constant over all pairs, so its CKA is not defined; check that the samples differ."
                )
        return Hsic(*terms)

    def _scale(self) -> float:
        """What the sums are divided by."""
        n = self._n
        return float((n - 1) ** 2 if self._estimator == "biased" else n * (n - 3))

    def _term(self, product: float, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """HSIC from ``Σ A∘B`` and the row sums of both."""
        n = self._n
        cross, totals = float((a * b).sum()), float(a.sum() * b.sum())
        if self._estimator == "biased":
            return (product - 2 * cross / n + totals / n**2) / self._scale()
        return (product + totals / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / self._scale()


def cka_of_arrays(k: NDArray[np.float64], l: NDArray[np.float64], estimator: Estimator = "unbiased") -> float:
    """CKA of two square kernels over the same samples.

    Parameters
    ----------
    k, l
        Kernels, ``(N, N)``, symmetric.
    estimator
        ``biased`` or ``unbiased``.

    Raises
    ------
    InvalidInputError
        When a kernel is not square, they differ in size, N < 4, a value is not finite, or a kernel is constant.
    """
    return minibatch_cka([(k, l)], estimator)


def minibatch_cka(
    batches: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]], estimator: Estimator = "unbiased"
) -> float:
    """CKA over minibatches: HSIC terms are averaged over batches before the ratio.

    Parameters
    ----------
    batches
        The two kernels ``(n, n)`` of each batch.
    """
    sums = Hsic(0.0, 0.0, 0.0)
    for k, l in batches:
        for kernel in (k, l):
            if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
                raise InvalidInputError(f"CKA takes square kernels, and one has shape {kernel.shape}.")
            if not np.isfinite(kernel).all():
                raise InvalidInputError("A kernel holds NaN or infinity, so its CKA is not defined.")
        if k.shape != l.shape:
            raise InvalidInputError(f"CKA compares kernels over the same samples; they have {len(k)} and {len(l)}.")
        accumulator = HsicAccumulator(len(k), estimator)
        every = slice(0, len(k))
        accumulator.add(every, every, np.asarray(k, dtype=np.float64), np.asarray(l, dtype=np.float64))
        sums += accumulator.result()
    return sums.ratio()


def _sum_of_products(a: Kernel, b: Kernel) -> float:
    """``Σ a∘b`` in an order of its own, whatever the processor: that of NumPy's pairwise sums."""
    starts = range(0, len(a), _BLOCK_ROWS)
    return float(sum((a[start : start + _BLOCK_ROWS] * b[start : start + _BLOCK_ROWS]).sum() for start in starts))


def _without_diagonal(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """A copy whose diagonal is zero."""
    copy = kernel.copy()
    np.fill_diagonal(copy, 0.0)
    return copy
