"""Ray workers that write to S3 over a bad network: the driver is killed, the same command again, the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_schemas import RsmStore
from storage_schemas.location import Location
from tests.cluster.conftest import INVARIANCES, descendants, kill, rsm_command, wait_for
from tests.s3.bucket import S3, s3_fixture, s3_server_fixture
from tests.s3.faults import FaultyProxy, RandomFaults

__all__ = ["s3_fixture", "s3_server_fixture"]

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]
N_TILES = len(INVARIANCES) * 8 * 9 // 2


@pytest.fixture
def faulty(s3: S3) -> Iterator[FaultyProxy]:
    """One in twelve requests fails in one of the ways that a client sees."""
    with s3.through(FaultyProxy(s3.endpoint, RandomFaults(2, 0.08), stall_seconds=0.4), AWS_READ_TIMEOUT="300 ms") as proxy:
        yield proxy


def test_a_killed_driver_loses_nothing_on_an_object_store(
    s3: S3, faulty: FaultyProxy, activations: Path, undisturbed: Path, launch: Launch, tree: Tree
) -> None:
    rows = Location.of(f"{s3.url}/{activations.parent.name}/{activations.name}")
    for name, data in tree(activations).items():
        rows.put(name, data)
    out = f"{s3.url}/{undisturbed.parent.name}/{undisturbed.name}"
    command = rsm_command(rows, out, "--workers", 2)

    def written() -> set[tuple[str, int, int]]:
        if not Location.of(out).exists(f"inner_product/{INVARIANCES[-1]}/zarr.json"):
            return set()
        store = RsmStore.open(out)
        return {(name, *tile) for name in INVARIANCES for tile in store.present_tiles(name)}

    process = launch(*command)
    wait_for(lambda: process.poll() is not None or len(written()) > 10, 120, "tiles in the bucket")
    below = descendants(process.pid)
    kill([process.pid])
    assert process.wait() == -9
    wait_for(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid, what in below.items() if "_run_units" in what), 60, "its end"
    )
    kill(below)
    kept = written()
    assert 0 < len(kept) < N_TILES
    process = launch(*command)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    n_norms = len(INVARIANCES) * 8
    computed = int(output.rpartition("r.zarr: ")[2].split()[0])
    assert N_TILES - len(kept) <= computed <= N_TILES - len(kept) + n_norms
    assert faulty.injected.total() > 20
    assert s3.tree(f"{undisturbed.parent.name}/{undisturbed.name}") == tree(undisturbed)
