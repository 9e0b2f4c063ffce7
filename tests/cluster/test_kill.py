"""Kill anything in the middle of the tile stage, give the same command again: identical bytes, nothing done twice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.location import Location
from storage_schemas.rsm import events_url
from storage_schemas.tables import EVENTS, read_folder
from tests.cluster.conftest import descendants, kill, present, rsm_command, wait_for

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]
N_TILES = 2 * 36


def attempts(out: Path) -> list[tuple[str, str, int, int, str]]:
    """Part, invariance, row, column and status of every recorded attempt."""
    rows = read_folder(events_url(Location.of(out)), EVENTS).to_pylist()
    return [(row["part"], row["invariance"], row["row"], row["column"], row["status"]) for row in rows]


@pytest.mark.parametrize("tiles_before", [5, 40])
def test_sigkill_of_the_driver(
    launch: Launch, activations: Path, undisturbed: Path, tmp_path: Path, tree: Tree, tiles_before: int
) -> None:
    out = tmp_path / "r.zarr"
    driver = launch(*rsm_command(activations, out))
    wait_for(lambda: len(present(out)) >= tiles_before, 120, f"{tiles_before} tiles")
    below = descendants(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    workers = [pid for pid, command in below.items() if command.startswith("ray::_run_units")]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60, "workers to end with their driver")
    kill(below)  # agents of Ray that outlive it
    kept = present(out)
    assert tiles_before <= len(kept) < N_TILES
    first = Counter(attempts(out))
    again = launch(*rsm_command(activations, out))
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert tree(out) == tree(undisturbed)
    second = Counter(attempts(out)) - first
    computed = {(invariance, row, column) for part, invariance, row, column, _ in second if part == "tile"}
    assert not computed & kept
    assert len(computed) + len(kept) == N_TILES
    assert set(second.values()) == {1}


def test_sigkill_of_a_worker(launch: Launch, activations: Path, undisturbed: Path, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "r.zarr"
    driver = launch(*rsm_command(activations, out))

    def working() -> list[int]:
        return [pid for pid, command in descendants(driver.pid).items() if command.startswith("ray::_run_units")]

    for tiles_before in (4, 20):
        wait_for(lambda: len(present(out)) >= tiles_before and bool(working()), 120, "a worker at work")  # noqa: B023
        os.kill(working()[0], signal.SIGKILL)
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    assert tree(out) == tree(undisturbed)
    tiles = [attempt for attempt in attempts(out) if attempt[0] == "tile"]
    done = Counter(attempt[1:4] for attempt in tiles if attempt[4] == "done")
    lost = Counter(attempt[1:4] for attempt in tiles if attempt[4] == "lost")
    assert len(done) == N_TILES
    assert set(done.values()) == {1}  # no finished tile was computed twice
    assert sum(lost.values()) >= 1


def test_ctrl_c_says_how_to_go_on(launch: Launch, activations: Path, undisturbed: Path, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "r.zarr"
    driver = launch(*rsm_command(activations, out, "--executor", "serial"))
    wait_for(lambda: len(present(out)) >= 5, 120, "five tiles")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "Traceback" not in output
    assert output.strip().splitlines()[-1].startswith("semrsm: Interrupted; what is finished is kept")
    again = launch(*rsm_command(activations, out))
    assert again.communicate(timeout=200)[0] is not None
    assert again.returncode == 0
    assert tree(out) == tree(undisturbed)
