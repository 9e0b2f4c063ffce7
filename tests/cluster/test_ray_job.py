"""A recipe through a real `ray job submit` on a head that listens on loopback only, with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from semrsm_dist.demo.scenes import write_scenes
from tests.cluster.conftest import descendants, end

NETWORK = Path(__file__).parents[2] / "semrsm_dist" / "demo" / "network"
RAY = Path(sys.executable).with_name("ray")
Tree = Callable[[Path], dict[str, bytes]]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Head:
    """A running head."""

    process: subprocess.Popen[str]
    jobs: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head on loopback."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    dashboard = free_port()
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": free_port(),
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": free_port(),
        "--ray-client-server-port": free_port(),
        "--num-cpus": 2,
        "--include-dashboard": "true",
    }
    arguments = [str(part) for option in options.items() for part in option]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        [str(RAY), "start", "--head", "--block", "--disable-usage-stats", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    head = Head(process, f"http://127.0.0.1:{dashboard}", environment)
    try:
        deadline = time.monotonic() + 90
        while submit(head, "--", "true").returncode:
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(1)
        yield head
    finally:
        end(process)
        log.close()


def submit(head: Head, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`ray job submit` that waits for the job and carries its output."""
    command = [str(RAY), "job", "submit", "--address", head.jobs, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=head.environment, timeout=250, check=False)


def test_a_job_gives_the_bytes_of_a_run_in_one_process(head: Head, tmp_path: Path, tree: Tree) -> None:
    write_scenes(tmp_path / "scenes", n_queries=5, n_database=9, seed=1)
    images = str(tmp_path / "scenes/images")
    recipe = {
        "name": "scenes",
        "workdir": "job",
        "queries": {"images": images, "annotations": "scenes/query.json"},
        "database": {"images": images, "annotations": "scenes/database.json"},
        "models": [{"name": "net", "model": str(NETWORK)}],
        "retrieval": {"top_k": [1, 3]},
        "rsm": {"tile_size": 4, "invariances": ["none", "permutation", "translation", "pooled"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    job = submit(head, "--", "python", "-m", "jobs.run", path)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "Retrieval with net, 5 queries" in job.stdout
    local = [sys.executable, "-m", "semrsm_dist.cli", "run", path, "--executor", "serial", "--workdir", tmp_path / "local"]
    subprocess.run([str(part) for part in local], check=True, capture_output=True, timeout=250)
    for store in ("rsm/net.zarr", "activations/net.queries.zarr", "activations/net.database.zarr"):
        assert tree(tmp_path / "job" / store) == tree(tmp_path / "local" / store)
    events = list((tmp_path / "job/rsm/net.events").glob("*.parquet"))
    assert events


def test_a_mistake_in_a_job_fails_it_with_the_sentence(head: Head, tmp_path: Path) -> None:
    job = submit(head, "--", "python", "-m", "jobs.run", tmp_path / "x.yaml")
    assert job.returncode != 0
    assert "semrsm: There is no recipe" in job.stdout + job.stderr


def test_the_head_and_its_workers_listen_on_loopback_only(head: Head) -> None:
    inodes = set()
    for pid in (head.process.pid, *descendants(head.process.pid)):
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert listening
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(listening) <= loopback
