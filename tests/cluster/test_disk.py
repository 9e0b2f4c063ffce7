"""A disk that fills up or turns read-only in the middle of a run: one sentence, exit status 2, nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import present, rsm_command, wait_for

Launch = Callable[..., "subprocess.Popen[str]"]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("executor", ["serial", "ray"])
def test_a_full_disk(launch: Launch, activations: Path, undisturbed: Path, disk: Path, tree: Tree, executor: str) -> None:
    command = rsm_command(activations, disk / "r.zarr", "--executor", executor)
    full = launch(*command)
    output, _ = full.communicate(timeout=200)
    assert full.returncode == 2, output
    assert "Traceback" not in output
    assert "the disk is full; free some space and run the same command again" in output.strip().splitlines()[-1]
    kept = {path: path.stat().st_mtime_ns for path in (disk / "r.zarr/inner_product").rglob("*/c/*/*") if path.is_file()}
    assert 0 < len(present(disk / "r.zarr")) < 72
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    again = launch(*command)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert tree(disk / "r.zarr") == tree(undisturbed)


def test_a_disk_that_turns_read_only(launch: Launch, activations: Path, undisturbed: Path, disk: Path, tree: Tree) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    command = rsm_command(activations, disk / "r.zarr", "--executor", "serial")
    process = launch(*command)
    wait_for(lambda: len(present(disk / "r.zarr")) >= 3, 120, "three tiles")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert "read-only" in output.strip().splitlines()[-1]
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    again = launch(*command)
    assert again.communicate(timeout=200)[0]
    assert again.returncode == 0
    assert tree(disk / "r.zarr") == tree(undisturbed)
