"""What `semrsm status` says of a run from another process: while it runs, after it was killed, at the end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from semrsm_dist.cli import semrsm
from tests.cluster.conftest import INVARIANCES, end, present, rsm_command, wait_for

Launch = Callable[..., subprocess.Popen[str]]


def status(out: Path) -> dict[str, Any]:
    """The only stage of the status of an RSM store, as programs read it."""
    result = CliRunner().invoke(semrsm, ["status", str(out), "--json"])
    assert result.exit_code == 0, result.output
    (stage,) = json.loads(result.stdout)
    return dict(stage)


def text(out: Path) -> str:
    """What a person reads, on one line."""
    result = CliRunner().invoke(semrsm, ["status", str(out)])
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_a_run_is_seen_from_outside(activations: Path, launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "r.zarr"
    command = rsm_command(activations, out, "--executor", "serial")
    process = launch(*command)
    wait_for(lambda: (tmp_path / "r.pulse.json").exists() and len(present(out)) > 4, 60, "a pulse and some tiles")
    running = status(out)
    assert running["planned"] > running["done"] >= 0
    assert running["running"]["tasks"] > 0
    assert running["running"]["slots"] == 1
    assert f"process {process.pid} on" in running["holder"]
    assert 0 < running["seconds_left"] < 3600
    assert f"r.zarr: run by process {process.pid} on" in text(out)
    end(process)
    killed = status(out)
    assert killed["running"] is None
    assert killed["done"] < killed["planned"]
    assert "has ended without finishing; the same command goes on from there" in text(out)
    process = launch(*command)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    finished = status(out)
    assert (finished["running"], finished["holder"], finished["seconds_left"]) == (None, None, 0)
    assert finished["done"] == finished["planned"]
    assert set(finished["history"]["not_done"]) == set()
    assert len(present(out)) == len(INVARIANCES) * 8 * 9 // 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.events", "r.zarr"]
