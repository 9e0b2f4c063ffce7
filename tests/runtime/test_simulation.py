"""The dispatch loop on a cluster on paper."""

from __future__ import annotations

import pytest

from semrsm_dist.runtime.dispatch import Policy
from semrsm_dist.runtime.simulation import Cluster, SimulatedExecutor, simulate
from storage_schemas import InvalidInputError

CALM = {"stragglers": 0.0, "failures": 0.0, "spread": 0.0}


def test_without_trouble_the_makespan_is_the_work_over_the_workers() -> None:
    told = simulate(6000, 10.0, Cluster(workers=100, **CALM))
    assert told.units == 6000
    assert told.makespan == pytest.approx(600.0, rel=0.02)
    assert told.efficiency == pytest.approx(1.0, abs=0.02)
    assert (told.nodes_lost, told.tasks_lost, told.abandoned) == (0, 0, 0)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    cluster = Cluster(workers=50, failures=5)
    first, again, other = (simulate(2000, 5.0, Cluster(workers=50, failures=5, seed=seed)) for seed in (0, 0, 1))
    assert cluster.seed == 0
    assert (first.makespan, first.tasks_lost, first.tasks) == (again.makespan, again.tasks_lost, again.tasks)
    assert first.makespan != other.makespan


def test_what_is_lost_with_its_node_is_done_elsewhere() -> None:
    told = simulate(3000, 20.0, Cluster(workers=64, workers_per_node=8, failures=6, stragglers=0, notice=20))
    assert told.units == 3000
    assert told.nodes_lost > 20
    assert told.tasks_lost > 20
    assert 0.7 < told.efficiency < 1


def test_backups_shorten_a_run_with_stragglers() -> None:
    cluster = Cluster(workers=100, stragglers=0.02, slowdown=50, failures=0)
    with_backups, without = (
        simulate(4000, 10.0, cluster, Policy(least_straggling=least, least_deadline=1e9)) for least in (30.0, 1e12)
    )
    assert with_backups.makespan < 0.6 * without.makespan
    assert with_backups.abandoned > 0 == without.abandoned


def test_a_large_run_stays_efficient_and_the_driver_cheap() -> None:
    told = simulate(50_000, 10.0, Cluster(workers=100, failures=0.1))
    assert told.units == 50_000
    assert told.efficiency >= 0.95
    assert told.driver_seconds_per_unit < 1e-3
    assert told.driver_bytes_per_unit < 1024


def test_worker_time_counts_the_nodes_that_are_there() -> None:
    executor = SimulatedExecutor(Cluster(workers=10, workers_per_node=5, failures=1e-9), 1.0)
    executor.poll(10.0)
    executor._happen("lose a node", None)
    executor.poll(10.0)
    assert executor.slots() == 5
    assert executor.worker_seconds(20.0) == pytest.approx(10 * 10 + 10 * 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("worker=5", "A simulation takes workers=…"),
        ("workers", "and not 'workers'"),
        ("workers=ten", "workers is a number"),
        ("workers=0", "workers=0; it must be at least 1"),
        ("stragglers=2", "it is a share, at most 1"),
        ("failures=-1", "it must be at least 0"),
        ("slowdown=nan", "it must be at least 1"),
    ],
)
def test_a_mistaken_cluster_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Cluster.parse(text)
    assert sentence in str(caught.value)
