"""SIGKILL at twenty random moments, the same command after each: identical bytes, no tile that was kept computed twice."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import INVARIANCES, descendants, kill, present, rsm_command, start, wait_for

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]
SERIAL_KILLS, RAY_KILLS = 17, 3
LONGEST_SECONDS = 7.0
N_TILES = 36 * len(INVARIANCES)
SLOWLY = ("--solver", "ortools")


@pytest.fixture(scope="module")
def slowly(activations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing disturbed, with a solver that gives kills time to strike."""
    out = tmp_path_factory.mktemp("slowly") / "r.zarr"
    process = start(*rsm_command(activations, out, *SLOWLY, "--executor", "serial"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return out


def tiles_as_written(out: Path) -> dict[Path, tuple[int, int]]:
    """Of each tile that is in the store: when its file was written, and its number in the file system."""
    paths = [out / f"inner_product/{name}/c/{row}/{column}" for name, row, column in present(out)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def moment(process: subprocess.Popen[str], out: Path, moments: random.Random, first: float, *, by_clock: bool) -> bool:
    """Wait for a random moment: some seconds after the start, or after some tiles; whether the process is still there then.

    By the clock a slow machine is caught before its first tile only, and a fast one after its last.
    """
    if by_clock:
        seconds, more = moments.uniform(first, first + LONGEST_SECONDS), N_TILES
    else:
        seconds, more = 100.0, moments.randint(1, 8)
    deadline, wanted = time.monotonic() + seconds, len(present(out)) + more
    while process.poll() is None and time.monotonic() < deadline and len(present(out)) < wanted:
        time.sleep(moments.uniform(0.0, 0.04))
    return process.poll() is None


@pytest.mark.timeout(900)  # eighteen starts of the command line, on machines that may be slow
@pytest.mark.parametrize(("executor", "kills"), [("serial", SERIAL_KILLS), ("ray", RAY_KILLS)])
def test_random_moments(
    launch: Launch, activations: Path, slowly: Path, tmp_path: Path, tree: Tree, executor: str, kills: int
) -> None:
    moments = random.Random(executor)
    first = 1.0 if executor == "serial" else 6.0
    kept: dict[Path, tuple[int, int]] = {}
    stores, killed = 0, 0
    out = tmp_path / "r0.zarr"
    tiles_at_kills: list[int] = []
    while killed < kills or out.exists():
        process = launch(*rsm_command(activations, out, *SLOWLY, "--executor", executor))
        if killed < kills and moment(process, out, moments, first, by_clock=killed % 2 == 0):
            below = descendants(process.pid)
            kill([process.pid])
            process.wait()
            workers = [pid for pid, command in below.items() if command.startswith("ray::_run_units")]
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60, "workers to end")  # noqa: B023
            kill(below)
            killed += 1
        output, _ = process.communicate(timeout=200)
        found = tiles_as_written(out)
        assert {path: found.get(path) for path in kept} == kept, "a tile that was finished was written again"
        kept = found
        if process.returncode == 0:
            assert tree(out) == tree(slowly)
            stores += 1
            kept, out = {}, tmp_path / f"r{stores}.zarr"
        else:
            assert process.returncode == -9, output
            tiles_at_kills.append(len(found))
    assert killed == kills
    assert sum(0 < count < N_TILES for count in tiles_at_kills) >= kills // 3, tiles_at_kills
