"""A worker stays below the memory that the plan says, however many samples there are; tiles that do not fit go in blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.grid import TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.names import Invariance
from semrsm_dist.runtime.inventory import grid_of
from semrsm_dist.runtime.plan import RsmPlan, fit_blocks, make_plan
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from semrsm_dist.runtime.worker import RsmJob
from storage_schemas import ActivationStore, InvalidInputError, RsmStore

MIB = 2**20
OPTIMAL = MatchingSettings("optimal")
WINDOWS = MatchingSettings("batch_optimal", window=64)
BFLOAT16 = MatchingSettings("batch_optimal", window=64, affinity="bfloat16")
COMPUTE = """
import json, sys
import ray
from semrsm_dist.grid import TileKey
from semrsm_dist.runtime.units import Unit
from semrsm_dist.runtime.worker import RsmJob, TileWorker
worker, invariance = TileWorker(RsmJob.from_json(json.loads(sys.argv[1]))), sys.argv[2]
tiles = [(0, 0), (0, 1), (1, 1)]
units = [Unit(TileKey(0, 0), invariance, "row_norms"), *(Unit(TileKey(*tile), invariance) for tile in tiles)]
receipts = worker.run(units)
assert not any(receipt.error for receipt in receipts), receipts
print(receipts[-1].peak_memory_bytes)
"""


def activations(path: Path, n: int, s: int, c: int, chunk_samples: int | None = None) -> ActivationStore:
    """Random features, which no codec makes smaller; the same ones in every chunk."""
    store = ActivationStore.create(
        str(path), n_samples=n, n_positions=s, n_channels=c, computed_from={}, spatial_shape=(1, s), chunk_samples=chunk_samples
    )
    features = np.random.default_rng(0).standard_normal((store.chunk_samples, s, c)).astype(np.float32)
    for index in range(store.n_chunks):
        part = store.chunk_slice(index)
        store.write_chunk(index, features[: part.stop - part.start])
    return store


def planned(job: RsmJob, store: ActivationStore, invariance: Invariance, memory: int | None = None) -> RsmPlan:
    """The plan, but for the time."""
    grid = grid_of(RsmStore.open(job.out))
    tile = Unit(TileKey(0, 0), invariance)
    return make_plan(
        grid,
        store,
        store,
        (invariance,),
        job.matching,
        missing=[tile],
        pair_seconds={invariance: 1.0},
        workers=1,
        memory_limit=memory,
    )


def peak(job: RsmJob, invariance: Invariance, plan: RsmPlan) -> int:
    """Resident memory in bytes of a process that computes three tiles."""
    job = replace(job, block_samples=plan.block_samples, cache_bytes=plan.cache_bytes)
    command = [sys.executable, "-c", COMPUTE, json.dumps(job.to_json()), invariance]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


@pytest.mark.parametrize("chunk_samples", [7, 25, 100])
def test_a_worker_stays_below_the_plan_for_any_chunks(tmp_path: Path, chunk_samples: int) -> None:
    store = activations(tmp_path / "a.zarr", 200, 196, 256, chunk_samples)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), RsmSettings(("none",)))
    plan = planned(job, store, "none")
    assert plan.block_samples == 100
    assert 0.5 * plan.memory_per_worker < peak(job, "none", plan) <= plan.memory_per_worker


@pytest.mark.parametrize(
    ("invariance", "matching"),
    [
        ("pooled", OPTIMAL),
        ("translation", OPTIMAL),
        ("permutation", OPTIMAL),
        ("permutation", WINDOWS),
        ("permutation", BFLOAT16),
        ("permutation", MatchingSettings("greedy")),
    ],
)
@pytest.mark.parametrize("tight", [False, True])
def test_a_worker_stays_below_the_plan(tmp_path: Path, invariance: Invariance, matching: MatchingSettings, tight: bool) -> None:
    store = activations(tmp_path / "a.zarr", 200, 128, 256)
    settings = RsmSettings((invariance,), matching=matching)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), settings)
    plan = planned(job, store, invariance)
    if tight:
        plan = planned(job, store, invariance, plan.memory_per_worker - 20 * MIB)
        assert plan.block_samples < 100
    measured = peak(job, invariance, plan)
    assert 0.5 * plan.memory_per_worker < measured <= plan.memory_per_worker


def test_a_hundred_thousand_samples_take_no_more_than_a_hundred(tmp_path: Path) -> None:
    peaks = []
    for n in (200, 100_000):
        store = activations(tmp_path / f"a{n}.zarr", n, 8, 64, 100)
        job = create_rsm(str(store.location), None, str(tmp_path / f"r{n}.zarr"), RsmSettings(("permutation",)))
        plan = planned(job, store, "permutation")
        peaks.append(peak(job, "permutation", plan))
        assert peaks[-1] <= plan.memory_per_worker
    assert peaks[1] < peaks[0] + 8 * MIB


def test_tiles_in_blocks_are_the_same_bytes(tmp_path: Path, tree: object) -> None:
    store = activations(tmp_path / "a.zarr", 130, 6, 8)
    invariances: tuple[Invariance, ...] = ("none", "permutation", "pooled", "translation")
    settings = RsmSettings(invariances, store_upper_bound=True)
    run = RunSettings("serial")
    trees = []
    for name, block_samples in (("whole", 100), ("blocks", 25)):
        job = create_rsm(str(store.location), None, str(tmp_path / name / "r.zarr"), settings)
        plan = replace(planned(job, store, "none"), block_samples=block_samples)
        assert run_rsm(job, invariances, run, plan=plan).computed == 4 * (3 + 2)
        trees.append(tree(tmp_path / name / "r.zarr"))  # type: ignore[operator]
    assert trees[0] == trees[1]


def test_blocks_are_the_largest_that_fit() -> None:
    assert fit_blocks(lambda samples: samples, 60, None) == 60
    assert fit_blocks(lambda samples: samples, 60, 60) == 60
    assert fit_blocks(lambda samples: samples, 60, 59) == 50
    assert fit_blocks(lambda samples: samples, 60, 49) == 25
    with pytest.raises(
        InvalidInputError, match=r"need 25 B for blocks of 25 samples, the smallest, and may use 24 B; use fewer workers"
    ):
        fit_blocks(lambda samples: samples, 60, 24)
    with pytest.raises(InvalidInputError, match="blocks of 8 samples"):
        fit_blocks(lambda samples: samples, 8, 7)
