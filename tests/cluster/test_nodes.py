"""Nodes that vanish and join, and a cluster that is lost: the run goes on, or ends with a sentence and is gone on with."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from storage_schemas import ActivationStore
from tests.cluster.conftest import descendants, kill, present, rsm_command, start, wait_for
from tests.cluster.test_kill import attempts

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]
N_TILES = 2 * 36
SLOWLY = ("--solver", "ortools")
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(scope="module")
def slowly(activations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing disturbed, with a solver that leaves time for faults."""
    out = tmp_path_factory.mktemp("slowly") / "r.zarr"
    process = start(*rsm_command(activations, out, *SLOWLY, "--executor", "serial"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return out


@pytest.fixture
def clusters() -> Iterator[Callable[[], Cluster]]:
    """Starts heads on loopback, whose processes are gone after the test."""
    before = set(descendants(os.getpid()))
    os.environ.update(ENVIRONMENT)
    started: list[Cluster] = []

    def make() -> Cluster:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False},
        )
        started.append(cluster)
        return cluster

    yield make
    for cluster in started:
        cluster.shutdown()
    kill(set(descendants(os.getpid())) - before)
    for name in ENVIRONMENT:
        del os.environ[name]


def test_a_node_vanishes_and_another_joins(
    clusters: Callable[[], Cluster], launch: Launch, activations: Path, slowly: Path, tmp_path: Path, tree: Tree
) -> None:
    out, cluster = tmp_path / "r.zarr", clusters()
    doomed = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    driver = launch(*rsm_command(activations, out, *SLOWLY, "--address", cluster.address))
    wait_for(lambda: len(present(out)) >= 5, 120, "five tiles")
    cluster.remove_node(doomed, allow_graceful=False)
    at_loss = len(present(out))
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    assert at_loss < N_TILES
    assert tree(out) == tree(slowly)
    tiles = [attempt for attempt in attempts(out) if attempt[0] == "tile"]
    done = Counter(attempt[1:4] for attempt in tiles if attempt[4] == "done")
    assert len(done) == N_TILES
    assert set(done.values()) == {1}
    assert {attempt[4] for attempt in tiles} <= {"done", "lost"}


def test_the_cluster_is_lost_and_a_new_one_started(
    clusters: Callable[[], Cluster], launch: Launch, activations: Path, slowly: Path, tmp_path: Path, tree: Tree
) -> None:
    out, cluster = tmp_path / "r.zarr", clusters()
    driver = launch(*rsm_command(activations, out, *SLOWLY, "--address", cluster.address))
    wait_for(lambda: len(present(out)) >= 5, 120, "five tiles")
    for node in cluster.list_all_nodes():
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    output, _ = driver.communicate(timeout=150)
    assert driver.returncode in (1, 2), output
    assert "Traceback" not in output
    assert "the same command goes on" in output.strip().splitlines()[-1], output
    kept = present(out)
    assert 5 <= len(kept) < N_TILES
    first = Counter(attempts(out))
    again = launch(*rsm_command(activations, out, *SLOWLY, "--address", clusters().address))
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert tree(out) == tree(slowly)
    computed = {attempt[1:4] for attempt in Counter(attempts(out)) - first if attempt[0] == "tile"}
    assert not computed & kept
    assert len(computed) + len(kept) == N_TILES


def test_tiles_go_in_blocks_where_a_node_has_little_memory(
    clusters: Callable[[], Cluster], launch: Launch, tmp_path: Path, tree: Tree
) -> None:
    store = ActivationStore.create(
        str(tmp_path / "a.zarr"), n_samples=130, n_positions=64, n_channels=256, computed_from={}, chunk_samples=10
    )
    features = np.random.default_rng(0).standard_normal((130, 64, 256)).astype(np.float32)
    for index in range(store.n_chunks):
        store.write_chunk(index, features[store.chunk_slice(index)])
    cluster = clusters()
    cluster.add_node(num_cpus=2, memory=2 * 330 * 2**20, node_ip_address="127.0.0.1")
    outputs = []
    for name, how in (("whole", ("--executor", "serial")), ("blocks", ("--address", cluster.address))):
        (tmp_path / name).mkdir()
        arguments = ("--rows", store.location, "--out", tmp_path / name / "r.zarr", "--invariance", "none", *how)
        process = launch("rsm", *arguments)
        outputs.append(process.communicate(timeout=200)[0])
        assert process.returncode == 0, outputs[-1]
    assert "in blocks of 100 samples" in outputs[0]
    assert re.search(r"in blocks of (25|50|75) samples", outputs[1]), outputs[1]
    assert tree(tmp_path / "blocks/r.zarr") == tree(tmp_path / "whole/r.zarr")
