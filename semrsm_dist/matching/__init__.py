"""How two samples are aligned: the invariances, the matching methods and the solvers, by name.

Their modules are imported on first use, since numba, SciPy, OR-Tools and PyTorch take long to import.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, get_args

from semrsm_dist.matching.protocol import Alignment, Matched, Solver
from semrsm_dist.names import AffinityType, Invariance, Method, SolverName
from storage_schemas.errors import InvalidInputError

__all__ = ["Alignment", "Matched", "MatchingSettings", "Solver", "alignment", "check_name", "solver"]


@dataclass(frozen=True)
class MatchingSettings:
    """How the positions of two samples are matched under the permutation invariance."""

    method: Method = "batch_optimal"
    """``optimal``; ``batch_optimal`` inside windows; ``greedy``; ``topk_greedy``."""
    window: int = 512
    """Concept vectors per window of ``batch_optimal``; with ``window ≥ S`` it is optimal."""
    k: int = 128
    """Concept vectors of largest norm that ``topk_greedy`` matches optimally, before the rest is matched greedily."""
    solver: SolverName = "auction"
    """What solves the assignment problems: ``auction``, ``ortools``, ``scipy`` or ``lapjv``."""
    tolerance: float = 1e-6
    """Largest certified gap of ``auction``, relative to the matched inner product of a window."""
    affinity: AffinityType = "float32"
    """What affinities are multiplied in; ``bfloat16`` is faster where the processor has it, and certifies less."""

    def __post_init__(self) -> None:
        check_name("matching", self.method, get_args(Method))
        check_name("solver", self.solver, get_args(SolverName))
        check_name("affinity type", self.affinity, get_args(AffinityType))
        for name, value in (("window", self.window), ("k", self.k)):
            if value < 1:
                raise InvalidInputError(f"The {name} is {value}; it must be at least 1.")
        if self.affinity != "float32" and not self.certifies:
            raise InvalidInputError(
                f"The matching {self.method} takes float32 affinities only; use optimal or batch_optimal with {self.affinity}."
            )
        if not 1e-7 <= self.tolerance < 1:
            raise InvalidInputError(
                f"The tolerance is {self.tolerance:g}; it must be at least 1e-7, which is what float32 affinities resolve, "
                "and less than 1."
            )

    @property
    def certifies(self) -> bool:
        """Whether matched inner products come with upper bounds."""
        return self.method in ("optimal", "batch_optimal")

    def check_positions(self, n_positions: int) -> None:
        """Raise :class:`InvalidInputError` when samples of ``n_positions`` cannot be matched so."""
        if self.method == "topk_greedy":
            from semrsm_dist.matching.greedy import check_k

            check_k(self.k, n_positions)

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on, which is not every setting under every method."""
        unused = {
            "optimal": {"window", "k"},
            "batch_optimal": {"k"},
            "greedy": {"window", "k", "solver", "tolerance", "affinity"},
            "topk_greedy": {"window", "affinity"},
        }[self.method]
        if self.solver != "auction":
            unused = unused | {"tolerance"}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def packages(self) -> list[str]:
        """Distributions whose versions the numbers may depend on."""
        described = self.describe()
        by_solver = {"auction": "numba", "lapjv": "lap"}
        wanted = ["numpy", "numba"]
        if "solver" in described:
            wanted.append(by_solver.get(self.solver, self.solver))
        if described.get("affinity") == "bfloat16":
            wanted.append("torch")
        return list(dict.fromkeys(wanted))


def alignment(
    invariance: Invariance,
    matching: MatchingSettings | None = None,
    spatial_shape: tuple[int, int] | None = None,
) -> Alignment:
    """The alignment of an invariance.

    Parameters
    ----------
    invariance
        ``none``, ``permutation``, ``translation`` or ``pooled``.
    matching
        How ``permutation`` matches; the default settings when None.
    spatial_shape
        ``(H, W)``, which ``translation`` needs.

    Raises
    ------
    InvalidInputError
        For an unknown name, or a translation without a map.
    """
    check_name("invariance", invariance, get_args(Invariance))
    settings = matching or MatchingSettings()
    match invariance:
        case "none":
            from semrsm_dist.matching.same_position import SamePosition

            return SamePosition()
        case "pooled":
            from semrsm_dist.matching.pooled import Pooled

            return Pooled()
        case "translation":
            from semrsm_dist.matching.translation import Translation

            return Translation(spatial_shape)
        case "permutation":
            return _permutation(settings)


def _permutation(settings: MatchingSettings) -> Alignment:
    """The alignment of the permutation invariance."""
    if settings.method in ("greedy", "topk_greedy"):
        from semrsm_dist.matching.greedy import GreedyMatching

        if settings.method == "greedy":
            return GreedyMatching()
        return GreedyMatching(settings.k, solver(settings.solver, settings.tolerance))
    from semrsm_dist.matching.products import AffinityProduct, Float32Product
    from semrsm_dist.matching.windowed import WindowedMatching

    product: AffinityProduct = Float32Product()
    if settings.affinity == "bfloat16":
        from semrsm_dist.matching.bfloat16 import BFloat16Product

        product = BFloat16Product()
    window = None if settings.method == "optimal" else settings.window
    return WindowedMatching(solver(settings.solver, settings.tolerance), window, product)


def solver(name: SolverName, tolerance: float = 1e-6) -> Solver:
    """A solver by name; its library is imported here, on first use.

    Raises
    ------
    InvalidInputError
        For an unknown name, or an optional solver that is not installed.
    """
    check_name("solver", name, get_args(SolverName))
    match name:
        case "auction":
            from semrsm_dist.matching.auction import AuctionSolver

            return AuctionSolver(tolerance)
        case "ortools":
            from semrsm_dist.matching.ortools_solver import OrtoolsSolver

            return OrtoolsSolver()
        case "scipy":
            from semrsm_dist.matching.scipy_solver import ScipySolver

            return ScipySolver()
        case "lapjv":
            from semrsm_dist.matching.lapjv_solver import LapjvSolver

            return LapjvSolver()


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raise :class:`InvalidInputError`, naming the nearest known name, unless ``name`` is known."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? Known are" if near else "known are"
    raise InvalidInputError(f"There is no {what} called {name!r}; {hint} {', '.join(known)}.")
