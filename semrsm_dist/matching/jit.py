"""Compiling the inner loops with numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """A function compiled without the GIL, kept in numba's cache where a directory for it can be written.

    Without one (a read-only installation and no home directory, as in a locked-down container) numba refuses to cache; each
    process then compiles for itself, which takes some seconds.
    """
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


inlined = njit(nogil=True, inline="always")
"""For small functions that compiled ones call."""
