"""How two samples are aligned: the invariances, the matching methods and the solvers, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, get_args

from semrsm_dist.matching.pooled import Pooled
from semrsm_dist.matching.protocol import Alignment, Solver
from semrsm_dist.matching.same_position import SamePosition
from semrsm_dist.matching.translation import Translation
from semrsm_dist.matching.windowed import WindowedMatching
from semrsm_dist.names import Invariance, Method, SolverName
from storage_schemas.errors import InvalidInputError

__all__ = ["Alignment", "MatchingSettings", "Solver", "alignment", "check_name", "solver"]


@dataclass(frozen=True)
class MatchingSettings:
    """How the positions of two samples are matched under the permutation invariance."""

    method: Method = "batch_optimal"
    """``optimal``, or ``batch_optimal`` inside windows."""
    window: int = 512
    """Concept vectors per window of ``batch_optimal``; with ``window ≥ S`` it is optimal."""
    solver: SolverName = "scipy"
    """What solves the assignment problems: ``scipy`` or ``ortools``."""

    def __post_init__(self) -> None:
        check_name("matching", self.method, get_args(Method))
        check_name("solver", self.solver, get_args(SolverName))
        if self.window < 1:
            raise InvalidInputError(f"The window is {self.window}; it must be at least 1.")

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on; ``optimal`` has no window."""
        described = asdict(self)
        if self.method == "optimal":
            del described["window"]
        return described


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
    makers: dict[Invariance, Callable[[], Alignment]] = {
        "none": SamePosition,
        "pooled": Pooled,
        "translation": lambda: Translation(spatial_shape),
        "permutation": lambda: WindowedMatching(
            solver(settings.solver), None if settings.method == "optimal" else settings.window
        ),
    }
    return makers[invariance]()


def solver(name: SolverName) -> Solver:
    """A solver by name; its library is imported here, on first use."""
    check_name("solver", name, get_args(SolverName))
    if name == "scipy":
        from semrsm_dist.matching.scipy_solver import ScipySolver

        return ScipySolver()
    from semrsm_dist.matching.ortools_solver import OrtoolsSolver

    return OrtoolsSolver()


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raise :class:`InvalidInputError`, naming the nearest known name, unless ``name`` is known."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? Known are" if near else "known are"
    raise InvalidInputError(f"There is no {what} called {name!r}; {hint} {', '.join(known)}.")
