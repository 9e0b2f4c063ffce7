"""Retrieval figures on real features, through the command line; skipped, loudly, where the real data is absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KNOWN = {  # F1@1 without invariance and under permutation
    "cosine": (0.438, 0.601),
    "linear": (0.420, 0.534),
    "rbf": (0.282, 0.465),
}


def semrsm(*arguments: object) -> Any:
    """JSON that a verb prints."""
    command = [sys.executable, "-m", "semrsm_dist.cli", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=290).stdout)


def test_playing_cards_seen_by_squeezenet(shared: Path, tmp_path: Path) -> None:
    features = shared / "data/features/playing_cards_squeezenet_fire9.npz"
    for role in ("query", "db"):
        semrsm("import", features, "--where", f"role={role}", "--sample-id", "files", "--out", tmp_path / f"{role}.zarr")
    stores = ("--rows", tmp_path / "query.zarr", "--columns", tmp_path / "db.zarr", "--out", tmp_path / "r.zarr")
    invariances = ("--invariance", "none", "--invariance", "permutation")
    workers = ("--workers", os.cpu_count() or 1)
    semrsm("rsm", *stores, *invariances, "--matching", "optimal", "--centring", "position", *workers)
    coco = [("--annotations", shared / "data/playing_cards" / name) for name in ("query.json", "database.json")]
    rows = semrsm("retrieve", tmp_path / "r.zarr", *coco[0], *coco[1])
    found = {(row["kernel"], row["invariance"], row["metric"]): row["value"] for row in rows}
    for kernel, (none, permutation) in KNOWN.items():
        assert found[kernel, "none", "F1"] == pytest.approx(none, abs=0.005)
        assert found[kernel, "permutation", "F1"] == pytest.approx(permutation, abs=0.005)
    assert found["cosine", "none", "IoU"] == pytest.approx(0.398, abs=0.005)
    assert found["cosine", "permutation", "IoU"] == pytest.approx(0.551, abs=0.005)
