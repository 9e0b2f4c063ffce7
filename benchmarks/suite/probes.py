"""What timing on a block does not show: peak memory, in a fresh process, and the cost of a position as maps grow.

Run as a program, this file is that fresh process: ``probes.py MAPS.npy METHOD`` prints the bytes that matching two maps takes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.tile import compute_tile

_WARM_UP_POSITIONS = 256
_SMALL_MAPS_PER_LARGE = 4


def peak_bytes(pair: NDArray[np.float32], method: str) -> int:
    """Most memory that matching a pair ``(2, S, C)`` takes beside the two maps, preparation included."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pair.npy"
        np.save(path, pair)
        command = [sys.executable, __file__, str(path), method]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def growth_of_cost_per_position(
    large: NDArray[np.float32], small: NDArray[np.float32], repetitions: int
) -> tuple[float, float]:
    """Time of a position of ``large`` over one of ``small``, both ``(2, S, C)``: of matching, and of preparing and matching."""
    aligned = alignment("permutation", MatchingSettings())

    def seconds(pair: NDArray[np.float32]) -> tuple[float, float]:
        begin = time.process_time()
        prepared = aligned.prepare(pair[:1]), aligned.prepare(pair[1:])
        middle = time.process_time()
        aligned.inner_products(*prepared, same=False)
        end = time.process_time()
        return end - middle, end - begin

    seconds(small)
    taken: dict[str, list[tuple[float, float]]] = {"large": [], "small": []}
    for _ in range(repetitions):
        taken["large"].append(seconds(large))
        taken["small"] += [seconds(small) for _ in range(_SMALL_MAPS_PER_LARGE)]
    grown = large.shape[1] / small.shape[1]
    matching, with_preparation = (
        statistics.median(one[part] for one in taken["large"]) / statistics.median(one[part] for one in taken["small"]) / grown
        for part in (0, 1)
    )
    return matching, with_preparation


def _resident(field: str) -> int:
    """Bytes in a field of this process's status: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _measure_peak(path: str, method: str) -> int:
    """The peak above what was resident before, once libraries and compiled code are loaded."""
    pair = np.load(path, allow_pickle=False)
    aligned = alignment("permutation", MatchingSettings(method))
    with threadpool_limits(limits=1):
        compute_tile(pair[:1, :_WARM_UP_POSITIONS], pair[1:, :_WARM_UP_POSITIONS], aligned)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _resident("VmRSS")
        compute_tile(pair[:1], pair[1:], aligned)
        return _resident("VmHWM") - before


if __name__ == "__main__":
    print(_measure_peak(sys.argv[1], sys.argv[2]))
