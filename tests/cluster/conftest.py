"""Runs of the command line in processes of their own, that tests may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from storage_schemas import ActivationStore, RsmStore

TILE_SIZE = 8
INVARIANCES = ("none", "permutation")


def descendants(pid: int) -> dict[int, str]:
    """Ids and command lines of all processes below one."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            commands[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier and child not in found}
        found |= {child: commands[child] for child in frontier}
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds; fails after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "semrsm_dist.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
        env={**os.environ, **environment},
    )


def _heed_interrupts() -> None:
    """Undo what a shell does to its background jobs, the tests among them: they ignore Ctrl-C, and so would the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and what it started, by their ids."""
    kill((*descendants(process.pid), process.pid))
    process.wait()


def kill(pids: Iterable[int]) -> None:
    """SIGKILL processes, those that have ended already left out."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """:func:`start`, whose processes are gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        started.append(start(*arguments, **environment))
        return started[-1]

    yield call
    for process in started:
        end(process)


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations whose tiles take about half a second each."""
    path = tmp_path_factory.mktemp("activations") / "a.zarr"
    features = np.random.default_rng(0).standard_normal((60, 256, 16)).astype(np.float32)
    store = ActivationStore.create(
        str(path), n_samples=60, n_positions=256, n_channels=16, computed_from={"seed": 0}, chunk_samples=20
    )
    for index in range(store.n_chunks):
        store.write_chunk(index, features[store.chunk_slice(index)])
    return path


def rsm_command(activations: object, out: object, *more: object) -> tuple[object, ...]:
    """Arguments that compute the RSM of the fixture."""
    chosen = [part for name in INVARIANCES for part in ("--invariance", name)]
    return ("rsm", "--rows", activations, "--out", out, "--tile-size", TILE_SIZE, *chosen, *more)


@pytest.fixture(scope="module")
def undisturbed(activations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The RSM store of a run that nothing disturbed, in one process."""
    out = tmp_path_factory.mktemp("undisturbed") / "r.zarr"
    process = start(*rsm_command(activations, out, "--executor", "serial"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return out


def present(out: Path) -> set[tuple[str, int, int]]:
    """The tiles that are in a store."""
    if not (out / "inner_product" / INVARIANCES[-1] / "zarr.json").is_file():
        return set()
    store = RsmStore.open(str(out))
    return {(name, row, column) for name in INVARIANCES for row, column in store.present_tiles(name)}
