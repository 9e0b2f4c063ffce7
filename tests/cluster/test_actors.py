"""A pool of Ray actors under the dispatch loop: workers are made once and kept, and replaced when they die."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray

from semrsm_dist.grid import TileKey
from semrsm_dist.runtime.dispatch import Attempt, Policy, dispatch
from semrsm_dist.runtime.ray_executor import RayActorExecutor
from semrsm_dist.runtime.units import Receipt, Unit
from storage_schemas import InvalidInputError

UNITS = [Unit(TileKey(number, 0), "none", "activations") for number in range(12)]


class Scripted:
    """A worker that leaves a mark when it is made and for each unit, and heeds the faults that lie in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / f"made-{os.getpid()}").touch()

    def run(self, units: Iterable[Unit]) -> list[Receipt]:
        return [self._do(unit) for unit in units]

    def _do(self, unit: Unit) -> Receipt:
        fault = self._folder / f"fault-{unit.key.row}"
        with suppress(FileNotFoundError):
            what = fault.read_text()
            fault.unlink()
            if what == "die":
                os.kill(os.getpid(), 9)
            time.sleep(600)
        started = datetime.now(UTC)
        time.sleep(0.05)
        with (self._folder / "done").open("a") as done:
            done.write(f"{unit.key.row}\n")
        return Receipt(unit, None, None, "sum", started, datetime.now(UTC), 0.0, 0.05, 0.0, 1, "node", os.getpid())


def make(job: dict[str, Any]) -> Scripted:
    """What an actor makes."""
    if job.get("refuse"):
        raise InvalidInputError("There is no such network; check its name.")
    return Scripted(Path(job["folder"]))


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for the module."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]


def run(
    folder: Path, policy: Policy | None = None, workers: int | None = None, **job: Any
) -> tuple[list[Attempt], dict[Unit, str]]:
    """Every attempt, and what was set aside."""
    executor = RayActorExecutor(make, lambda cpus: {"folder": str(folder), **job}, "out", workers=workers)
    attempts: list[Attempt] = []
    try:
        result = dispatch(UNITS, executor, policy=policy, on_attempt=attempts.append)
    finally:
        executor.close()
    return attempts, result.set_aside


def done(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "done").read_text().split()))


def test_each_actor_makes_its_worker_once(tmp_path: Path) -> None:
    attempts, set_aside = run(tmp_path)
    assert (len(attempts), set_aside) == (12, {})
    assert done(tmp_path) == list(range(12))
    made = {path.name for path in tmp_path.glob("made-*")}
    assert made == {f"made-{each.receipt.pid}" for each in attempts if each.receipt}
    assert len(made) == 2


def test_an_actor_that_dies_is_replaced_and_its_units_are_done_again(tmp_path: Path) -> None:
    (tmp_path / "fault-3").write_text("die")
    attempts, set_aside = run(tmp_path, workers=1)
    assert set_aside == {}
    assert set(done(tmp_path)) == set(range(12))
    assert [each.status for each in attempts if each.unit == UNITS[3]] == ["lost", "done"]
    assert len(list(tmp_path.glob("made-*"))) == 2


def test_an_actor_that_hangs_is_killed_after_its_deadline(tmp_path: Path) -> None:
    (tmp_path / "fault-5").write_text("hang")
    attempts, set_aside = run(tmp_path, Policy(least_deadline=4.0))
    assert set_aside == {}
    assert [each.status for each in attempts if each.unit == UNITS[5]][-1] == "done"
    assert "overdue" in {each.status for each in attempts}
    assert set(done(tmp_path)) == set(range(12))


def test_workers_that_cannot_be_made_say_why(tmp_path: Path) -> None:
    attempts, set_aside = run(tmp_path, refuse=True)
    assert set(set_aside) == set(UNITS)
    assert set(set_aside.values()) == {"There is no such network; check its name."}
    assert {each.status for each in attempts} == {"failed"}


class NotToBeMade:
    """What an actor cannot be, as on a node that lacks this package."""

    def __init__(self, make: object, job: object) -> None:
        raise ImportError("No module named 'semrsm_dist'")

    def ready(self) -> None:
        """Never called."""

    def run(self, units: object) -> None:
        """Never called."""


def test_actors_that_cannot_start_end_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semrsm_dist.runtime.ray_executor._Actor", NotToBeMade)
    attempts, set_aside = run(tmp_path, Policy(losses=2))
    assert set(set_aside) == set(UNITS)
    assert all("in a row could not be started: " in reason and "No module named" in reason for reason in set_aside.values())
    assert {each.status for each in attempts} == {"lost"}


def test_an_actor_reserves_no_more_cpus_than_a_node_has(tmp_path: Path) -> None:
    given: list[int] = []

    def job(cpus: int) -> dict[str, Any]:
        given.append(cpus)
        return {"folder": str(tmp_path)}

    RayActorExecutor(make, job, "out", cpus=64).close()
    assert given == [2]


def test_an_actor_without_its_resources_is_waited_for(tmp_path: Path) -> None:
    executor = RayActorExecutor(make, lambda cpus: {"folder": str(tmp_path)}, "out", gpus=1.0)
    try:
        assert executor.slots() == 1
        assert executor.poll(0.5) == []
    finally:
        executor.close()
