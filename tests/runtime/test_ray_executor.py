"""The Ray executor on one embedded Ray: fresh blocks for fresh stores, and sentences of workers that cannot begin."""

from __future__ import annotations

import re
import shutil
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.grid import TileKey
from semrsm_dist.reduction.stored import load_rsm
from semrsm_dist.runtime.dispatch import dispatch
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, make_executor, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, InvalidInputError

Make = Callable[..., ActivationStore]
SETTINGS = RsmSettings(("none",), "none", tile_size=5)


@pytest.fixture(scope="module", autouse=True)
def metrics_port() -> Iterator[int]:
    """A Ray that lives on between runs, as in a notebook; the port where it tells its metrics."""
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
    yield port
    ray.shutdown()


def test_a_store_made_anew_at_the_same_place_is_read_anew(make_activations: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
        shutil.rmtree(tmp_path / "r.zarr", ignore_errors=True)
        store = make_activations(n_samples=7, seed=seed)
        job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
        assert run_rsm(job, ("none",), RunSettings()).set_aside == {}
        flat = store.read(0, 7).reshape(7, -1).astype(np.float64)
        np.testing.assert_allclose(load_rsm(str(tmp_path / "r.zarr"), "none").inner_product, flat @ flat.T, rtol=1e-9)


def test_dashboards_see_the_run_through_rays_metrics(make_activations: Make, tmp_path: Path, metrics_port: int) -> None:
    store = make_activations(n_samples=7)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    run_rsm(job, ("none",), RunSettings())
    sample = re.compile(r"ray_(semrsm_\w+)\{(.*)\} (\S+)")

    def told() -> dict[str, float]:
        """Sums of the figures of this store by name, once the node has collected them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
            lines = [sample.fullmatch(line) for line in answer.read().decode().splitlines()]
        sums: Counter[str] = Counter()
        for line in lines:
            if line and f'store="{job.out}"' in line[2]:
                sums[line[1]] += float(line[3])
        return sums

    deadline = time.monotonic() + 60
    while not {"semrsm_attempts_total", "semrsm_units_planned"} <= told().keys() and time.monotonic() < deadline:
        time.sleep(0.5)
    figures = told()
    assert figures["semrsm_attempts_total"] == figures["semrsm_unit_seconds_count"] == figures["semrsm_units_planned"] == 5
    assert figures["semrsm_worker_peak_bytes"] > 2**20


def test_workers_that_cannot_begin_say_why(make_activations: Make, tmp_path: Path) -> None:
    store = make_activations(n_samples=7)
    job = create_rsm(str(store.location), None, str(tmp_path / "r.zarr"), SETTINGS)
    elsewhere = replace(job, rows=str(tmp_path / "not-here.zarr"))
    unit = Unit(TileKey(0, 0), "none")
    executor = make_executor(elsewhere, RunSettings())
    result = dispatch([unit], executor)
    assert result.set_aside == {unit: f"There is no Zarr store at {tmp_path / 'not-here.zarr'}; check the path."}


def test_a_cluster_that_is_not_there_is_said(make_activations: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from semrsm_dist.runtime import ray_executor

    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**arguments: object) -> None:
        raise ConnectionError("nobody answers\nat all")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InvalidInputError, match=r"no Ray cluster at 127\.0\.0\.1:1 \(nobody answers\); start one"):
        ray_executor.connect("127.0.0.1:1", None)
