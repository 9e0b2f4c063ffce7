"""Where reducers go through the strips of an RSM: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from semrsm_dist.reduction.strips import MapStrips
from semrsm_dist.runtime.rsm_run import RunSettings, keep_on_loopback, on_cluster

TILES_WORTH_RAY = 2_000
"""Fewer tiles are read sooner than a local Ray starts."""


@contextmanager
def strip_mapper(run: RunSettings, n_tiles: int) -> Iterator[MapStrips]:
    """How to map over strips for as long as the context lasts; the results are the same to the bit everywhere.

    Parameters
    ----------
    run
        Where tiles are computed, and how many at once.
    n_tiles
        Tiles that will be read.
    """
    worth_it = on_cluster(run) or (n_tiles >= TILES_WORTH_RAY and run.workers != 1)
    if run.executor == "serial" or not worth_it:
        yield map
        return
    keep_on_loopback(run)
    from semrsm_dist.runtime.ray_executor import ray_map

    with ray_map(run.address, run.workers) as mapper:
        yield mapper
