"""Memory that forward passes free and take again a moment later stays with the process."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
"""Parameters of ``mallopt``, from malloc.h of the GNU C library."""
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""The most that the GNU C library takes on a machine of 64 bits."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, instead of giving it back to the system; returns whether it does.

    PyTorch allocates the result of every layer anew. The GNU C library maps such large arrays from the system and unmaps them
    when they are freed, so every page is mapped and cleared again for each layer of each batch; ``benchmarks/extraction.py``
    says what that costs. Results do not change, and memory does not grow beyond its peak. Where the C library is another,
    nothing is done. It holds for the process from then on; :func:`give_back_memory` gives back what is free at a moment.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 2 * _LARGEST_MMAP_THRESHOLD),
        (_M_ARENA_MAX, 1),  # the arenas of other threads are too small for large arrays
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def give_back_memory() -> None:
    """Give what the C library keeps back to the system, for whatever runs next on the machine."""
    if sys.platform.startswith("linux"):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
