"""Retrieval and CKA read from stores equal the same numbers from memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from semrsm_dist import cka
from semrsm_dist.grid import TileKey
from semrsm_dist.reduction.retrieval import f1_scores, iou_scores
from semrsm_dist.reduction.samples import Samples, sample_videos
from semrsm_dist.reduction.stored import StoredRsm, load_rsm
from semrsm_dist.reduction.stored_cka import stored_cka
from semrsm_dist.reduction.stored_retrieval import retrieve
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from storage_schemas import ActivationStore, IncompleteStoreError, InvalidInputError, RsmStore
from storage_schemas.activations import samples_url
from storage_schemas.tables import SAMPLES, write_table

Make = Callable[..., ActivationStore]


def compute(out: Path, rows: ActivationStore, columns: ActivationStore | None = None, **settings: object) -> RsmStore:
    """A finished RSM store."""
    wanted = RsmSettings(("none", "permutation"), "position", tile_size=5, **settings)
    job = create_rsm(str(rows.location), columns and str(columns.location), str(out), wanted)
    run_rsm(job, wanted.invariances, RunSettings(executor="serial"))
    return RsmStore.open(str(out))


def samples(n: int, name: str, rng: np.random.Generator, videos: list[str | None] | None = None) -> Samples:
    """Samples with one to three classes each."""
    return Samples([f"{name}{i}" for i in range(n)], videos or [None] * n, [None] * n, rng.integers(0, 3, size=(n, 4)))


@pytest.mark.parametrize("kernel", ["cosine", "linear", "rbf"])
def test_neighbours_and_figures_equal_a_plain_ranking(
    make_activations: Make, tmp_path: Path, rng: np.random.Generator, kernel: str
) -> None:
    store = compute(tmp_path / "r.zarr", make_activations("q", n_samples=7, seed=1), make_activations("d", n_samples=13))
    queries, database = samples(7, "q", rng), samples(13, "d", rng)
    found = retrieve(
        store,
        queries,
        database,
        representation="x",
        invariances=("none", "permutation"),
        kernel_names=(kernel,),
        top_k=(1, 3),
    )
    figures = {(row["invariance"], row["k"], row["metric"]): row for row in found.summary.to_pylist()}
    for invariance in ("none", "permutation"):
        rsm = load_rsm(str(tmp_path / "r.zarr"), invariance)
        values = getattr(rsm, kernel)()
        order = np.argsort(-values, axis=1, kind="stable")[:, :3]
        rows = [row for row in found.neighbours.to_pylist() if row["invariance"] == invariance]
        assert [row["database_id"] for row in rows] == [f"d{j}" for line in order for j in line]
        assert [row["rank"] for row in rows] == [1, 2, 3] * 7
        np.testing.assert_allclose([row["similarity"] for row in rows], np.take_along_axis(values, order, 1).ravel())
        for metric, score in (("F1", f1_scores), ("IoU", iou_scores)):
            each = score(queries.counts[:, None], database.counts[order])
            assert figures[invariance, 1, metric]["value"] == pytest.approx(each[:, 0].mean())
            assert figures[invariance, 3, metric]["value"] == pytest.approx(each.mean())
    difference = figures["permutation", 1, "F1"]
    assert difference["difference"] == pytest.approx(difference["value"] - figures["none", 1, "F1"]["value"])
    assert difference["difference_low"] <= difference["difference"] <= difference["difference_high"]


def test_samples_of_the_same_video_and_the_query_itself_are_not_retrieved(
    make_activations: Make, tmp_path: Path, rng: np.random.Generator
) -> None:
    store = compute(tmp_path / "r.zarr", make_activations(n_samples=12))
    videos = ["a", "a", None, None, "b", "b", "b", None, "a", "c", None, "c"]
    side = samples(12, "s", rng, videos)
    found = retrieve(store, side, side, representation="x", invariances=("none",), top_k=(12,)).neighbours.to_pylist()
    for row in found:
        query, retrieved = int(row["query_id"][1:]), int(row["database_id"][1:])
        assert query != retrieved
        assert videos[query] is None or videos[query] != videos[retrieved]
    cosine = [row for row in found if row["kernel"] == "cosine"]
    assert len(cosine) == sum(
        1 for i in range(12) for j in range(12) if i != j and (videos[i] is None or videos[i] != videos[j])
    )


def test_a_video_is_its_group_and_its_number() -> None:
    rows = [dict.fromkeys(SAMPLES.names) | {"sample_id": str(i)} for i in range(3)]
    rows[0] |= {"group_id": "g", "video_id": "1"}
    rows[1] |= {"group_id": "h", "video_id": "1"}
    table = SAMPLES.empty_table().from_pylist(rows, SAMPLES)
    assert sample_videos(table) == ["g/1", "h/1", None]


@pytest.mark.parametrize("k", [0, 14])
def test_more_neighbours_than_samples_are_refused(
    make_activations: Make, tmp_path: Path, rng: np.random.Generator, k: int
) -> None:
    store = compute(tmp_path / "r.zarr", make_activations("q", n_samples=3), make_activations("d", n_samples=13))
    with pytest.raises(InvalidInputError, match="choose top_k between 1 and 13"):
        retrieve(store, samples(3, "q", rng), samples(13, "d", rng), representation="x", invariances=("none",), top_k=(k,))


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["cosine", "linear", "rbf"])
def test_cka_of_stores_equals_cka_of_arrays(make_activations: Make, tmp_path: Path, kernel: str, estimator: str) -> None:
    for name, seed in (("x", 1), ("y", 2)):
        compute(tmp_path / f"{name}.zarr", make_activations(f"a{name}", n_samples=13, seed=seed))
    stores = [StoredRsm(RsmStore.open(str(tmp_path / name)), "permutation") for name in ("x.zarr", "y.zarr")]
    arrays = [getattr(load_rsm(str(tmp_path / name)), kernel)() for name in ("x.zarr", "y.zarr")]
    assert stored_cka(*stores, kernel, estimator) == pytest.approx(cka(*arrays, estimator), rel=1e-9)


def test_minibatch_cka_averages_over_batches(make_activations: Make, tmp_path: Path) -> None:
    pairs = []
    for name, seed in (("x", 1), ("y", 2)):
        activations = make_activations(f"a{name}", n_samples=24, seed=seed)
        whole = compute(tmp_path / f"{name}-whole.zarr", activations)
        batched = compute(tmp_path / f"{name}.zarr", activations, batch_size=10)
        assert batched.grid["batch_size"] == 10
        pairs.append((StoredRsm(batched, "none"), load_rsm(str(whole.location), "none").linear()))
    (first, k), (second, l) = pairs
    batches = [slice(0, 10), slice(10, 20), slice(20, 24)]
    from semrsm_dist.reduction.cka import minibatch_cka

    expected = minibatch_cka([(k[b, b], l[b, b]) for b in batches])
    assert stored_cka(first, second, "linear") == pytest.approx(expected, rel=1e-9)


def test_cka_refuses_what_it_is_not_defined_for(make_activations: Make, tmp_path: Path) -> None:
    rectangular = compute(tmp_path / "r.zarr", make_activations("q", n_samples=7), make_activations("d", n_samples=7, seed=3))
    small, large = (compute(tmp_path / f"{n}.zarr", make_activations(f"n{n}", n_samples=n)) for n in (7, 8))
    with pytest.raises(InvalidInputError, match="compares queries with a database"):
        stored_cka(StoredRsm(rectangular, "none"), StoredRsm(small, "none"))
    with pytest.raises(InvalidInputError, match="differ in their grids"):
        stored_cka(StoredRsm(small, "none"), StoredRsm(large, "none"))
    leftover = compute(tmp_path / "b.zarr", make_activations("leftover", n_samples=12), batch_size=10)
    with pytest.raises(InvalidInputError, match=r"last batch of .* has 2 samples and CKA needs 4"):
        stored_cka(StoredRsm(leftover, "none"), StoredRsm(leftover, "none"))


def test_cka_over_different_samples_is_refused(make_activations: Make, tmp_path: Path) -> None:
    stores = []
    for name in ("x", "y"):
        activations = make_activations(f"a{name}", n_samples=7)
        rows = [dict.fromkeys(SAMPLES.names) | {"sample_id": f"{name}{i}"} for i in range(7)]
        write_table(samples_url(activations.location), pa.Table.from_pylist(rows, SAMPLES), SAMPLES)
        stores.append(StoredRsm(compute(tmp_path / f"{name}.zarr", activations), "none"))
    assert stored_cka(stores[0], stores[0]) == pytest.approx(1)
    with pytest.raises(InvalidInputError, match="are over different samples"):
        stored_cka(*stores)


def test_equal_names_of_different_images_may_be_retrieved(
    make_activations: Make, tmp_path: Path, rng: np.random.Generator
) -> None:
    store = compute(tmp_path / "r.zarr", make_activations("q", n_samples=2), make_activations("d", n_samples=3))
    queries = replace(samples(2, "s", rng), hashes=["a", "b"])
    database = replace(samples(3, "s", rng), hashes=["a", "c", "d"])  # s0 is the same image, s1 another of that name
    found = retrieve(store, queries, database, representation="x", invariances=("none",), top_k=(3,)).neighbours.to_pylist()
    pairs = {(row["query_id"], row["database_id"]) for row in found}
    assert ("s0", "s0") not in pairs
    assert ("s1", "s1") in pairs


def test_reading_an_invariance_that_was_not_computed_names_those_that_were(make_activations: Make, tmp_path: Path) -> None:
    store = compute(tmp_path / "r.zarr", make_activations(n_samples=7))
    with pytest.raises(InvalidInputError, match=r"no invariance in .* called 'pooled'; known are none, permutation"):
        StoredRsm(store, "pooled")
    store.location.delete("inner_product/none/c/0/1")
    with pytest.raises(IncompleteStoreError, match="has not been computed"):
        load_rsm(str(store.location), "none")


def test_a_tile_without_distances_has_kernel_one(make_activations: Make, tmp_path: Path) -> None:
    stored = StoredRsm(compute(tmp_path / "r.zarr", make_activations(n_samples=11)), "none", "tile")
    assert stored.tile(TileKey(2, 2), "rbf") == 1  # one sample with itself


def test_a_sigma_per_tile_is_there_for_reproduction(make_activations: Make, tmp_path: Path) -> None:
    store = compute(tmp_path / "r.zarr", make_activations(n_samples=12))
    stored = StoredRsm(store, "none", "tile")
    distances = load_rsm(str(store.location), "none").squared_distance()
    for key in stored.grid.tile_keys():
        block = distances[stored.grid.slices(key)]
        expected = np.exp(-block / (2 * np.median(block[block > 0])))
        np.testing.assert_allclose(stored.tile(key, "rbf"), expected, rtol=1e-9)
