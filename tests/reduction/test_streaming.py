"""Reducers over stores equal the simple versions over whole matrices, whatever the tiles, the strips and the processes."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from semrsm_dist.cli import semrsm
from semrsm_dist.grid import Grid, MinibatchGrid, RectangularGrid, SymmetricGrid
from semrsm_dist.names import Estimator, KernelName
from semrsm_dist.reduction import stored as stored_rsms
from semrsm_dist.reduction import stored_retrieval
from semrsm_dist.reduction.retrieval import f1_scores, iou_scores
from semrsm_dist.reduction.samples import Samples
from semrsm_dist.reduction.stored import StoredRsm, load_rsm
from semrsm_dist.reduction.stored_cka import stored_cka
from semrsm_dist.reduction.stored_retrieval import Retrieval, retrieve
from semrsm_dist.reduction.strips import MapStrips, Strip, strips_of
from semrsm_dist.runtime.ray_executor import ray_map
from storage_schemas import InvalidInputError, RsmStore
from storage_schemas.tables import NEIGHBOURS
from tests.reduction.test_cka import plain_hsic

KERNELS: tuple[KernelName, ...] = ("linear", "cosine", "rbf")


def fabricate(url: str, grid: Grid, invariances: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> RsmStore:
    """A finished store whose inner products are those of given vectors, ``(N, C)`` and ``(M, C)``, under each invariance."""
    n_rows, n_columns = grid.shape
    store = RsmStore.create(
        url, n_rows=n_rows, n_columns=n_columns, grid=grid.describe(), tile_size=grid.tile_size, computed_from={}
    )
    for name, (rows, columns) in invariances.items():
        store.add_invariance(name)
        for key in grid.tile_keys():
            of_rows, of_columns = grid.slices(key)
            # Summed in one order, so that mirrored tiles are equal to the bit.
            products = (rows[of_rows, None, :] * columns[None, of_columns, :]).sum(axis=-1)
            store.write_tile(name, key.row, key.column, products)
        for side, vectors in (("row", rows), ("column", columns)):
            norms = np.sqrt((vectors**2).sum(axis=-1))
            for block in range(0 if grid.symmetric and side == "column" else -(-len(vectors) // grid.tile_size)):
                part = slice(block * grid.tile_size, (block + 1) * grid.tile_size)
                store.write_norms(name, side, block, norms[part])
    return RsmStore.open(url)


def plain_ranking(values: np.ndarray, allowed: np.ndarray, k: int) -> list[list[int]]:
    """The ``k`` best allowed columns of each row, by sorting whole rows; ties in the order of the columns."""
    return [
        [int(column) for column in np.argsort(-row, kind="stable") if may[column]][:k]
        for row, may in zip(values, allowed, strict=True)
    ]


def plain_kernel(store: RsmStore, invariance: str, kernel: KernelName) -> np.ndarray:
    """A kernel of a whole RSM; RBF as the negative distance, which orders pairs as it does."""
    rsm = load_rsm(str(store.location), invariance)
    return -rsm.squared_distance() if kernel == "rbf" else getattr(rsm, kernel)()


def plain_rows(
    store: RsmStore, queries: Samples, database: Samples, allowed: np.ndarray, invariances: Iterable[str], k: int
) -> list[dict[str, Any]]:
    """Rows of the table of neighbours, one after the other."""
    rows = []
    for kernel in KERNELS:
        for invariance in invariances:
            ranking = plain_ranking(plain_kernel(store, invariance, kernel), allowed, k)
            similarity = getattr(load_rsm(str(store.location), invariance), kernel)()
            rows += [
                {
                    "kernel": kernel,
                    "invariance": invariance,
                    "query_id": queries.ids[query],
                    "rank": rank,
                    "database_id": database.ids[column],
                    "similarity": float(similarity[query, column]),
                    "f1": float(f1_scores(queries.counts[query], database.counts[column])),
                    "iou": float(iou_scores(queries.counts[query], database.counts[column])),
                }
                for query, columns in enumerate(ranking)
                for rank, column in enumerate(columns, start=1)
            ]
    return rows


def in_threads(function: Callable[[Strip], Any], items: Iterable[Strip], /) -> Iterator[Any]:
    """Strips in four threads."""
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(function, items)


def backwards(function: Callable[[Strip], Any], items: Iterable[Strip], /) -> Iterator[Any]:
    """The last strip first, and the results in order."""
    return reversed([function(item) for item in reversed(list(items))])


@st.composite
def samples_of(draw: st.DrawFn, n: int, name: str) -> Samples:
    """Samples of few videos, with ids that may be those of other samples."""
    videos = draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=n, max_size=n))
    hashes = draw(st.lists(st.sampled_from([None, "x"]), min_size=n, max_size=n))
    counts = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 3, size=(n, 4))
    ids = [f"{draw(st.sampled_from([name, 'both']))}{index}" for index in range(n)]
    return Samples(ids, videos, hashes, counts)


def allowed_pairs(queries: Samples, database: Samples) -> np.ndarray:
    """Which pairs may be retrieved, pair by pair as the definition reads."""
    return np.array(
        [
            [
                (queries.videos[i] is None or queries.videos[i] != database.videos[j])
                and (queries.ids[i], queries.hashes[i]) != (database.ids[j], database.hashes[j])
                for j in range(len(database.ids))
            ]
            for i in range(len(queries.ids))
        ]
    )


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_retrieval_equals_sorting_whole_rows(data: st.DataObject) -> None:
    n, m, tile_size = (data.draw(st.integers(1, top), label=label) for top, label in ((9, "N"), (13, "M"), (6, "tile")))
    symmetric = data.draw(st.booleans(), label="symmetric")
    grid = SymmetricGrid(m, tile_size) if symmetric else RectangularGrid(n, m, tile_size)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    database = data.draw(samples_of(m, "d"))
    queries = database if symmetric else data.draw(samples_of(n, "q"))
    allowed = allowed_pairs(queries, database)
    assume(allowed.any(axis=1).all())  # a query without any candidate is refused
    vectors = {}
    for name in ("none", "permutation"):
        columns = rng.integers(-2, 3, size=(m, 3)).astype(float)  # whole numbers: many ties
        vectors[name] = (columns if symmetric else rng.integers(-2, 3, size=(n, 3)).astype(float), columns)
    k = data.draw(st.integers(1, m), label="k")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rsms, "strips_of", partial(strips_of, longest=data.draw(st.integers(1, 4), label="longest strip")))
        store = fabricate(f"{folder}/r.zarr", grid, vectors)
        found = retrieve(
            store, queries, database, representation="x", invariances=("none", "permutation"), kernel_names=KERNELS, top_k=(k,),
            sigma=2.0, map_strips=data.draw(st.sampled_from([map, backwards])),
        )  # fmt: skip
        expected = plain_rows(store, queries, database, allowed, ("none", "permutation"), k)
    assert found.neighbours.schema == NEIGHBOURS
    rows = found.neighbours.to_pylist()
    for row in rows + expected:
        if row["kernel"] == "rbf":
            row["similarity"] = 2.0 * np.log(row["similarity"])  # the plain version has a σ of its own
    without = [{name: value for name, value in row.items() if name != "similarity"} for row in rows]
    assert without == [{name: value for name, value in row.items() if name != "similarity"} for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["kernel"] == "rbf" or row["similarity"] == other["similarity"]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_cka_equals_its_definition_on_whole_kernels(data: st.DataObject) -> None:
    tile_size = data.draw(st.integers(1, 6), label="tile")
    n = data.draw(st.integers(4, 17), label="N")
    batch = data.draw(
        st.one_of(st.none(), st.integers(4, 17).filter(lambda size: size % tile_size == 0 and not 0 < n % size < 4))
    )
    estimator: Estimator = data.draw(st.sampled_from(["biased", "unbiased"]))
    kernel: KernelName = data.draw(st.sampled_from(KERNELS))
    grid = SymmetricGrid(n, tile_size) if batch is None else MinibatchGrid(n, batch, tile_size)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    x, y = rng.standard_normal((2, n, 5))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rsms, "strips_of", partial(strips_of, longest=data.draw(st.integers(1, 4), label="longest strip")))
        store = fabricate(f"{folder}/r.zarr", grid, {"none": (x, x), "permutation": (y, y)})
        whole = fabricate(f"{folder}/w.zarr", SymmetricGrid(n, 5), {"none": (x, x), "permutation": (y, y)})
        kernels = [plain_sigma_two(whole, name, kernel) for name in ("none", "permutation")]
        pair = [StoredRsm(store, name, 2.0, data.draw(st.sampled_from([map, backwards]))) for name in ("none", "permutation")]
        parts = [slice(0, n)] if batch is None else grid.batches
        terms = [[plain_hsic(a[p, p], b[p, p], estimator) for p in parts] for a, b in pairs_of(*kernels)]
        kl, kk, ll = np.sum(terms, axis=1)
        if min(terms[1] + terms[2]) > 1e-9 * np.max(np.abs(kernels)) ** 2:
            assert stored_cka(*pair, kernel, estimator) == pytest.approx(kl / np.sqrt(kk * ll), rel=1e-6, abs=1e-9)


def pairs_of(k: np.ndarray, l: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels of the three terms of a CKA."""
    return [(k, l), (k, k), (l, l)]


def plain_sigma_two(store: RsmStore, invariance: str, kernel: KernelName) -> np.ndarray:
    """A kernel of a whole RSM, with σ = 2."""
    rsm = load_rsm(str(store.location), invariance)
    return rsm.rbf(2.0) if kernel == "rbf" else getattr(rsm, kernel)()


@given(
    st.integers(2, 23), st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["median_sq", "median"])
)
@settings(max_examples=25, deadline=None)
def test_sigma_equals_the_median_of_all_pairs_to_the_bit(n: int, tile_size: int, seed: int, symmetric: bool, rule: str) -> None:
    x = np.random.default_rng(seed).integers(-3, 4, size=(n, 4)) / 3
    y = x if symmetric else x[::-1] + 1
    grid = SymmetricGrid(n, tile_size) if symmetric else RectangularGrid(n, n, tile_size)
    with tempfile.TemporaryDirectory() as folder:
        store = fabricate(f"{folder}/r.zarr", grid, {"none": (x, y)})
        distances = load_rsm(str(store.location), "none").squared_distance()
        values = distances[np.triu_indices(n, 1)] if symmetric else distances
        if values.any():
            positive = values[values > 0]
            expected = np.median(positive if rule == "median_sq" else np.sqrt(positive))
            assert StoredRsm(store, "none", rule, backwards).sigma_squared == expected


@pytest.fixture(scope="module")
def stored() -> Iterator[tuple[RsmStore, Samples]]:
    """A store of 37 samples in tiles of 4 with values of large mean, whose sums round."""
    rng = np.random.default_rng(5)
    x = 30 + rng.standard_normal((37, 6))
    videos = [None if index % 3 else f"v{index % 4}" for index in range(37)]
    samples = Samples([f"s{index}" for index in range(37)], videos, [None] * 37, rng.integers(0, 3, size=(37, 4)))
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/r.zarr"
        yield fabricate(url, SymmetricGrid(37, 4), {"none": (x, x), "permutation": (x + 1, x + 1)}), samples


def figures(store: RsmStore, samples: Samples, map_strips: MapStrips) -> tuple[list[float], Retrieval]:
    """Everything that is read from a store."""
    pair = [StoredRsm(store, name, "median_sq", map_strips) for name in ("none", "permutation")]
    numbers = [stored_cka(*pair, kernel, estimator) for kernel in KERNELS for estimator in ("biased", "unbiased")]
    invariances = ("none", "permutation")
    found = retrieve(store, samples, samples, representation="x", invariances=invariances, top_k=(1, 5), map_strips=map_strips)
    return [*numbers, *(each.sigma_squared for each in pair)], found


@pytest.fixture
def on_ray() -> Iterator[MapStrips]:
    """Strips in the two processes of a local Ray."""
    with ray_map(workers=2) as map_strips:
        yield map_strips


@pytest.mark.parametrize("other", ["backwards", "in_threads", "on_ray"])
def test_results_have_the_same_bits_whoever_computes_the_strips(
    stored: tuple[RsmStore, Samples], other: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(stored_rsms, "strips_of", partial(strips_of, longest=3))
    numbers, found = figures(*stored, map)
    maps: dict[str, MapStrips] = {"backwards": backwards, "in_threads": in_threads}
    other_numbers, other_found = figures(*stored, maps.get(other) or request.getfixturevalue(other))
    assert other_numbers == numbers
    assert other_found.neighbours.equals(found.neighbours)
    assert other_found.summary.equals(found.summary)


def test_a_map_on_ray_takes_few_items_ahead_and_raises_what_the_function_raised(on_ray: MapStrips) -> None:
    taken = []

    def count() -> Iterator[Strip]:
        for row in range(50):
            taken.append(row)
            yield Strip(row, 0, 1)

    def refuse_the_last(strip: Strip) -> int:
        if strip.row == 49:
            raise InvalidInputError("The last strip is refused.")
        return strip.row

    results = iter(on_ray(refuse_the_last, count()))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + 2 * 2
    with pytest.raises(InvalidInputError, match=r"^The last strip is refused\.$"):
        list(results)


def test_the_command_line_gives_the_same_number_with_more_workers(stored: tuple[RsmStore, Samples]) -> None:
    url = str(stored[0].location)
    command = ["cka", url, url, "--invariance", "none", "--invariance2", "permutation", "--kernel", "rbf", "--json"]
    alone, together = (CliRunner().invoke(semrsm, [*command, "--workers", workers]) for workers in ("1", "2"))
    assert alone.exit_code == together.exit_code == 0
    assert json.loads(alone.stdout) == json.loads(together.stdout)


def test_progress_counts_the_tiles_that_are_read(stored: tuple[RsmStore, Samples]) -> None:
    store, samples = stored
    told: list[tuple[int, int]] = []
    retrieve(
        store, samples, samples, representation="x", invariances=("none", "permutation"), report=lambda *done: told.append(done)
    )
    assert told == [(10 * step, 200) for step in range(1, 21)]
    told.clear()
    stored_cka(StoredRsm(store, "none"), StoredRsm(store, "permutation"), report=lambda *done: told.append(done))
    assert [done for done, _ in told] == list(np.cumsum(range(10, 0, -1)))
    assert told[-1] == (55, 55)


@dataclass(frozen=True)
class ManyTiles:
    """Enough of a store to be reduced, with tiles made from nothing, so that there can be very many of them."""

    n_samples: int
    tile_size: int = 1
    location: str = "nowhere"
    grid: Mapping[str, Any] = field(default_factory=lambda: {"kind": "symmetric"})
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_samples, self.n_samples

    def invariances(self) -> list[str]:
        return ["none", "permutation"]

    def read_norms(self, invariance: str, side: str) -> np.ndarray:
        return np.ones(self.n_samples)

    def read_tile(self, invariance: str, row: int, column: int) -> np.ndarray:
        row, column = min(row, column), max(row, column)
        return np.full((1, 1), 1.0 if row == column else (row * 7919 + column * 104_729) % 9973 / 20_000)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call held at once."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reducer", ["sigma", "cka", "retrieval"])
def test_memory_does_not_grow_with_the_number_of_tiles(reducer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_retrieval, "bootstrap_interval", lambda differences: (0.0, 0.0))  # keeps 64 MiB of its own

    def reduce(n: int) -> None:
        store: Any = ManyTiles(n)
        first, second = StoredRsm(store, "none"), StoredRsm(store, "permutation")
        if reducer == "sigma":
            assert first.sigma_squared > 0
        elif reducer == "cka":
            assert stored_cka(first, second) == pytest.approx(1)
        else:
            side = Samples([str(index) for index in range(n)], [None] * n, [None] * n, np.ones((n, 1), dtype=np.int64))
            retrieve(store, side, side, representation="x", invariances=("none",), kernel_names=("linear",), top_k=(3,))

    reduce(20)  # what is made once, such as caches of modules
    few, many = (peak_bytes(lambda n=n: reduce(n)) for n in (64, 192))  # 2,080 and 18,528 tiles, or 4,096 and 36,864
    assert many < few + 2**19
