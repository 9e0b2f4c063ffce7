"""Tasks that fail on Ray workers, by a script that the workers read: twice, for ever, and by hanging."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray

from semrsm_dist.grid import TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.runtime import ray_executor, rsm_run
from semrsm_dist.runtime.dispatch import Attempt, Policy
from semrsm_dist.runtime.ray_executor import RayExecutor
from semrsm_dist.runtime.rsm_run import RsmRun, RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.units import Receipt, Unit
from storage_schemas import ActivationStore

Make = Callable[..., ActivationStore]
Tree = Callable[[Path], dict[str, bytes]]
SETTINGS = RsmSettings(("permutation",), matching=MatchingSettings("optimal"), tile_size=5)
N_UNITS = 15 + 5
VICTIM = Unit(TileKey(1, 3), "permutation")


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for the module."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]


def run_by_script(job: dict[str, Any], units: tuple[Unit, ...], script: str) -> list[Receipt]:
    """What a worker runs: the units, but for the victim, on which the folder ``script`` says what is to happen."""
    receipts = []
    for unit in units:
        if unit == VICTIM:
            for fault in sorted(Path(script).glob("*")):
                with suppress(FileNotFoundError):
                    if fault.name != "fail-for-ever":
                        fault.unlink()
                    if fault.name == "hang":
                        Path(script).with_name("hanging").write_text(str(os.getpid()))
                        time.sleep(600)
                    if fault.name.startswith("die"):
                        os.kill(os.getpid(), 9)
                    job = {**job, "rows": "/nowhere/at-all.zarr"}
                    break
        receipts += ray_executor._run_units(job, (unit,))
        job = {**job, "rows": job["columns"]}
    return receipts


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of faults, which the executor of every run heeds."""
    folder = tmp_path / "script"
    folder.mkdir()

    class Scripted(RayExecutor):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            remote = ray.remote(num_cpus=1, max_retries=0)(run_by_script)
            self._remote = type("Bound", (), {"remote": lambda _, job, units: remote.remote(job, units, str(folder))})()

    monkeypatch.setattr(ray_executor, "RayExecutor", Scripted)
    return folder


def compute(rows: ActivationStore, out: Path, attempts: list[Attempt] | None = None, policy: Policy | None = None) -> RsmRun:
    """The RSM of a store."""
    job = create_rsm(str(rows.location), None, str(out), SETTINGS)
    run = RunSettings("ray", policy=policy or Policy())
    return run_rsm(job, ("permutation",), run, on_attempt=None if attempts is None else attempts.append)


@pytest.fixture
def rows(make_activations: Make) -> ActivationStore:
    return make_activations(n_samples=23)


@pytest.fixture
def expected(rows: ActivationStore, tmp_path: Path, tree: Tree) -> dict[str, bytes]:
    """The bytes of a run that nothing disturbed."""
    job = create_rsm(str(rows.location), None, str(tmp_path / "whole.zarr"), SETTINGS)
    assert run_rsm(job, ("permutation",), replace(rsm_run.RunSettings(), executor="serial")).computed == N_UNITS
    return tree(tmp_path / "whole.zarr")


@pytest.mark.parametrize("fault", ["fail", "die"])
def test_twice_and_then_no_more(
    rows: ActivationStore, expected: dict[str, bytes], scripted: Path, tmp_path: Path, tree: Tree, fault: str
) -> None:
    for number in (1, 2):
        (scripted / f"{fault}-{number}").touch()
    attempts: list[Attempt] = []
    run = compute(rows, tmp_path / "r.zarr", attempts)
    assert run.computed == N_UNITS
    assert not run.set_aside
    assert [each.status for each in attempts if each.unit == VICTIM] == [{"fail": "failed", "die": "lost"}[fault]] * 2 + [
        "done"
    ]
    assert sum(each.status == "done" for each in attempts) == N_UNITS  # whatever shared a task with the victim is done once
    assert tree(tmp_path / "r.zarr") == expected


def test_for_ever_is_set_aside_and_tried_again_by_the_next_run(
    rows: ActivationStore, expected: dict[str, bytes], scripted: Path, tmp_path: Path, tree: Tree
) -> None:
    (scripted / "fail-for-ever").touch()
    attempts: list[Attempt] = []
    run = compute(rows, tmp_path / "r.zarr", attempts)
    assert run.computed == N_UNITS - 1
    assert list(run.set_aside) == [VICTIM]
    assert "There is no Zarr store at /nowhere/at-all.zarr" in run.set_aside[VICTIM]
    assert [each.status for each in attempts if each.unit == VICTIM] == ["failed"] * Policy().attempts
    (scripted / "fail-for-ever").unlink()
    again: list[Attempt] = []
    assert compute(rows, tmp_path / "r.zarr", again).computed == 1
    assert [(each.unit, each.status) for each in again] == [(VICTIM, "done")]
    assert tree(tmp_path / "r.zarr") == expected


def test_a_hanging_task_is_ended_and_done_again(
    rows: ActivationStore, expected: dict[str, bytes], scripted: Path, tmp_path: Path, tree: Tree
) -> None:
    (scripted / "hang").touch()
    attempts: list[Attempt] = []
    policy = Policy(least_deadline=8.0, deadline_factor=1.0, backups=0)
    run = compute(rows, tmp_path / "r.zarr", attempts, policy)
    assert run.computed == N_UNITS
    assert [each.status for each in attempts if each.unit == VICTIM] == ["overdue", "done"]
    hanging = int((tmp_path / "hanging").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{hanging}").exists():
        assert time.monotonic() < deadline, "the hanging worker was not ended"
        time.sleep(0.1)
    assert tree(tmp_path / "r.zarr") == expected


def test_a_hanging_task_gets_a_backup(
    rows: ActivationStore, expected: dict[str, bytes], scripted: Path, tmp_path: Path, tree: Tree
) -> None:
    (scripted / "hang").touch()
    attempts: list[Attempt] = []
    run = compute(rows, tmp_path / "r.zarr", attempts, Policy(least_straggling=4.0))
    assert run.computed == N_UNITS
    assert [each.status for each in attempts if each.unit == VICTIM] == ["done"]
    assert tree(tmp_path / "r.zarr") == expected


def test_workers_bound_what_runs_at_once_on_a_larger_cluster(rows: ActivationStore, tmp_path: Path) -> None:
    attempts: list[Attempt] = []
    job = create_rsm(str(rows.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    run_rsm(job, ("permutation",), RunSettings("ray", workers=1), on_attempt=attempts.append)
    receipts = sorted((each.receipt for each in attempts if each.receipt), key=lambda receipt: receipt.started)
    assert len(receipts) == N_UNITS
    assert all(before.ended <= after.started for before, after in pairwise(receipts))
