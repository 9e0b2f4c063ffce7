"""RSMs in memory: the public Python interface."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist import kernels
from semrsm_dist.grid import DEFAULT_TILE_SIZE, RectangularGrid, SymmetricGrid
from semrsm_dist.matching import MatchingSettings, alignment, check_name
from semrsm_dist.names import AffinityType, Centring, Estimator, Invariance, Method, SigmaRule, SolverName
from semrsm_dist.reduction.cka import cka_of_arrays
from semrsm_dist.reduction.sigma import rbf_of_tile, sigma_squared
from semrsm_dist.tile import CentreAccumulator, centred, compute_tile
from storage_schemas import ActivationStore, InvalidInputError, NonFiniteError

if TYPE_CHECKING:
    from semrsm_dist.runtime.rsm_run import RsmSettings


@dataclass(frozen=True)
class RSM:
    """A representational similarity matrix: matched inner products and norms, from which every kernel follows."""

    inner_product: NDArray[np.float64]
    """Matched inner products ``m``, ``(N, M)``."""
    row_norms: NDArray[np.float64]
    """Norms of the rows' representations, ``(N,)``."""
    column_norms: NDArray[np.float64]
    """Norms of the columns' representations, ``(M,)``."""
    symmetric: bool = False
    """Whether columns are the rows."""
    upper_bound: NDArray[np.float64] | None = None
    """``(N, M)``: ``m ≤ optimum ≤ bound`` under the permutation invariance, where the method certifies one."""

    def linear(self) -> NDArray[np.float64]:
        """The linear kernel, ``(N, M)``: the matched inner product itself."""
        return kernels.linear(self.inner_product)

    def cosine(self) -> NDArray[np.float64]:
        """The cosine kernel, ``(N, M)``."""
        return kernels.cosine(self.inner_product, self.row_norms, self.column_norms)

    def squared_distance(self) -> NDArray[np.float64]:
        """Squared distances ``d²``, ``(N, M)``."""
        return kernels.squared_distance(self.inner_product, self.row_norms, self.column_norms)

    def rbf(self, sigma: SigmaRule | float = "median_sq") -> NDArray[np.float64]:
        """The RBF kernel ``exp(−d² / 2σ²)``, ``(N, M)``.

        Parameters
        ----------
        sigma
            ``median_sq``: ``σ²`` is the median of all non-zero ``d²`` (the authors' code); ``median``: ``σ²`` is the median of
            all non-zero ``d`` (the paper's text); a number: σ itself; ``tile``: ``median_sq`` of each 100 × 100 tile by
            itself, as published, for reproduction only (values of different tiles are not comparable).

        Raises
        ------
        InvalidInputError
            When all distances are zero, or σ is not positive.
        """
        distances = self.squared_distance()
        if sigma != "tile":
            return kernels.rbf(distances, sigma_squared(lambda: [distances], sigma))
        values = np.empty_like(distances)
        grid = RectangularGrid(*distances.shape)
        for key in grid.tile_keys():
            tile = grid.slices(key)
            block = distances[tile]
            values[tile] = rbf_of_tile(block)
        return values


def semantic_rsm(
    x: ArrayLike,
    y: ArrayLike | None = None,
    invariance: Invariance = "permutation",
    matching: Method = "batch_optimal",
    window: int = 512,
    solver: SolverName = "auction",
    centring: Centring = "none",
    workers: int = 1,
    *,
    k: int = 128,
    tolerance: float = 1e-6,
    affinity: AffinityType = "float32",
) -> RSM:
    """Similarity of every sample of ``x`` with every sample of ``y``, wherever things are in them.

    Parameters
    ----------
    x
        Representations ``(N, S, C)`` or maps ``(N, C, H, W)``.
    y
        Representations ``(M, S, C)`` or maps ``(M, C, H, W)``; ``x`` itself when None.
    invariance
        ``permutation`` (the semantic RSM), ``none`` (the spatio-semantic one), ``translation`` (the best circular shift; needs
        maps) or ``pooled`` (means over positions).
    matching
        ``batch_optimal`` in windows, ``optimal``, ``greedy`` or ``topk_greedy``.
    window
        Concept vectors per window of ``batch_optimal``.
    solver
        ``auction``, ``ortools``, ``scipy``, or ``lapjv`` (an optional extra).
    centring
        Subtract a mean over the samples of ``y``: ``position`` (per position and channel), ``channel``, or ``none``.
    workers
        Processes; more than one run on a local Ray.
    k
        Concept vectors of largest norm that ``topk_greedy`` matches optimally.
    tolerance
        Largest certified gap of ``auction``, relative to the matched inner product.
    affinity
        What affinities are multiplied in, ``float32`` or ``bfloat16``.

    Returns
    -------
    RSM
        Inner products and norms, float64.

    Raises
    ------
    InvalidInputError
        For arrays of other shapes, different S or C, or an unknown name.
    NonFiniteError
        When a value is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((3, 4, 8))
    >>> moved = x[:, [2, 0, 3, 1]]  # the same things, elsewhere
    >>> rsm = semantic_rsm(x, moved)
    >>> bool(np.allclose(np.diag(rsm.cosine()), 1))
    True

    References
    ----------
    Wald et al., "Decoupling Semantic Similarity from Spatial Alignment for Neural Networks", NeurIPS 2024.
    """
    settings = MatchingSettings(matching, window, k, solver, tolerance, affinity)
    check_name("centring", centring, ("position", "channel", "none"))
    first, shape = _representation(x, "x")
    second, second_shape = (first, shape) if y is None else _representation(y, "y")
    if first.shape[1:] != second.shape[1:]:
        raise InvalidInputError(
            f"x has S × C = {first.shape[1]} × {first.shape[2]} and y has {second.shape[1]} × {second.shape[2]}; "
            "both must come from the same layer at the same image size."
        )
    if shape != second_shape:
        raise InvalidInputError(f"x has maps of {shape} and y of {second_shape}; both must have the same shape.")
    if workers < 1:
        raise InvalidInputError(f"workers is {workers}; it must be at least 1.")
    aligned = alignment(invariance, settings, shape)
    bounded = invariance == "permutation" and settings.certifies
    if workers > 1:
        from semrsm_dist.runtime.rsm_run import RsmSettings

        wanted = RsmSettings((invariance,), centring, settings, store_upper_bound=bounded)
        return _on_ray(first, None if y is None else second, wanted, workers, shape)
    accumulator = CentreAccumulator(centring)
    accumulator.add(second)
    centre = accumulator.result()
    grid = SymmetricGrid(len(first)) if y is None else RectangularGrid(len(first), len(second))
    values = np.empty(grid.shape)
    bounds = np.empty(grid.shape) if bounded else None
    with threadpool_limits(limits=1):
        for key in grid.tile_keys():
            rows, columns = grid.slices(key)
            same = grid.symmetric and key.on_diagonal
            left, right = centred(first[rows], centre), centred(second[columns], centre)
            tile = compute_tile(left, right, aligned, same=same)
            for whole, part in ((values, tile.inner_products), (bounds, tile.upper_bounds)):
                if whole is not None:
                    whole[rows, columns] = part
                    if grid.symmetric and not same:
                        whole[columns, rows] = whole[rows, columns].T
        row_norms = _norms(first, centre, aligned)
        column_norms = row_norms if y is None else _norms(second, centre, aligned)
    return RSM(values, row_norms, column_norms, y is None, bounds)


def cka(k: NDArray[np.float64] | RSM, l: NDArray[np.float64] | RSM, estimator: Estimator = "unbiased") -> float:
    """Centred kernel alignment of two kernels over the same samples.

    Parameters
    ----------
    k, l
        Symmetric kernels ``(N, N)``, or RSMs, whose linear kernel is taken.
    estimator
        ``unbiased`` (Song et al., JMLR 2012) or ``biased``.

    Raises
    ------
    InvalidInputError
        When a kernel is not square, they differ in size, N < 4, a value is not finite, or a kernel is constant.
    """
    first, second = (kernel.linear() if isinstance(kernel, RSM) else np.asarray(kernel) for kernel in (k, l))
    return cka_of_arrays(first, second, estimator)


def _representation(values: ArrayLike, name: str) -> tuple[NDArray[np.float32], tuple[int, int] | None]:
    """An array as ``(N, S, C)`` float32, and the shape of its maps."""
    array = np.asarray(values)
    if array.ndim not in (3, 4) or 0 in array.shape or not np.issubdtype(array.dtype, np.number):
        raise InvalidInputError(
            f"{name} is an array of {array.dtype} with shape {array.shape}; expected numbers, (N, S, C) or (N, C, H, W)."
        )
    shape = None
    if array.ndim == 4:
        shape = (array.shape[2], array.shape[3])
        array = array.reshape(array.shape[0], array.shape[1], -1).transpose(0, 2, 1)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} holds NaN, infinity or a value too large for float32; remove such samples first.")
    return array, shape


def _norms(samples: NDArray[np.float32], centre: NDArray[np.float64] | None, aligned: Any) -> NDArray[np.float64]:
    """Norms of all samples, block by block."""
    starts = range(0, len(samples), DEFAULT_TILE_SIZE)
    return np.concatenate([aligned.norms(centred(samples[start : start + DEFAULT_TILE_SIZE], centre)) for start in starts])


def _on_ray(
    first: NDArray[np.float32],
    second: NDArray[np.float32] | None,
    settings: RsmSettings,
    workers: int,
    shape: tuple[int, int] | None,
) -> RSM:
    """The same numbers through temporary stores and Ray workers."""
    from semrsm_dist.reduction.stored import load_rsm
    from semrsm_dist.runtime.rsm_run import RunSettings, create_rsm, run_rsm

    with tempfile.TemporaryDirectory(prefix="semrsm-") as folder:
        rows, columns, out = (str(Path(folder, name)) for name in ("x.zarr", "y.zarr", "rsm.zarr"))
        _store(first, rows, shape)
        if second is not None:
            _store(second, columns, shape)
        job = create_rsm(rows, None if second is None else columns, out, settings)
        run = run_rsm(job, settings.invariances, RunSettings(workers=workers))
        if run.set_aside:
            raise RuntimeError("; ".join(f"{unit}: {reason}" for unit, reason in run.set_aside.items()))
        return load_rsm(out, settings.invariances[0])


def _store(samples: NDArray[np.float32], url: str, shape: tuple[int, int] | None) -> None:
    """An activation store of samples in memory."""
    n_samples, n_positions, n_channels = samples.shape
    store = ActivationStore.create(
        url,
        n_samples=n_samples,
        n_positions=n_positions,
        n_channels=n_channels,
        spatial_shape=shape,
        computed_from={"source": "memory"},
    )
    for index in range(store.n_chunks):
        store.write_chunk(index, samples[store.chunk_slice(index)])
