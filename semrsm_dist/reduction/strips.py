"""Strips: the parts of an RSM that reducers map over.

Every reducer is a tree of two levels. A strip of tiles becomes one small partial result, in any process; partial results are
joined here, in the order of the strips. Which strips there are follows from the grid alone, so the numbers do not depend on how
many processes there are nor on which of them ends first.

>>> from semrsm_dist.grid import SymmetricGrid
>>> [str(strip) for strip in strips_of(SymmetricGrid(500, tile_size=100).tile_keys(), longest=3)]
['(0, 0:3)', '(0, 3:5)', '(1, 1:4)', '(1, 4:5)', '(2, 2:5)', '(3, 3:5)', '(4, 4:5)']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from semrsm_dist.grid import TileKey

LONGEST = 256
"""Tiles of a strip: a third of a second of reading, and partial results of at most some hundred KiB."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Strip:
    """Tiles that follow one another in one row of tiles."""

    row: int
    """Row of tiles."""
    first: int
    """First column of tiles."""
    stop: int
    """Column of tiles after the last."""

    def __len__(self) -> int:
        return self.stop - self.first

    def __str__(self) -> str:
        return f"({self.row}, {self.first}:{self.stop})"

    def tile_keys(self) -> Iterator[TileKey]:
        """The tiles from left to right."""
        return (TileKey(self.row, column) for column in range(self.first, self.stop))


class MapStrips(Protocol):
    """Applies a function to every strip and gives the results in the order of the strips, as the built-in ``map`` does.

    Another process may do the work: function and results can be pickled. Only a bounded number of strips may be taken ahead of
    the result that was asked for last, since results wait in memory.
    """

    def __call__(self, function: Callable[[Strip], Result], strips: Iterable[Strip], /) -> Iterable[Result]: ...


def strips_of(keys: Iterable[TileKey], longest: int = LONGEST) -> Iterator[Strip]:
    """Cut tiles into strips.

    Parameters
    ----------
    keys
        Tiles in row-major order.
    longest
        The most tiles of a strip.
    """
    strip: Strip | None = None
    for key in keys:
        if strip is not None and (key.row, key.column) == (strip.row, strip.stop) and len(strip) < longest:
            strip = Strip(strip.row, strip.first, strip.stop + 1)
            continue
        if strip is not None:
            yield strip
        strip = Strip(key.row, key.column, key.column + 1)
    if strip is not None:
        yield strip
