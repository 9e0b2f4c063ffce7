"""The promises of the stores over HTTP on S3: listings, refusals, checksums, whole runs, kills, and a faulty network."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.matching import MatchingSettings
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from storage_schemas import (
    ActivationStore,
    DamagedChunkError,
    FingerprintMismatchError,
    IncompleteStoreError,
    RsmStore,
    StorageUnavailableError,
    StoreNotFoundError,
)
from storage_schemas.location import Location, relative, resolve
from tests.s3.bucket import S3, own
from tests.s3.faults import SEEN_BY_THE_CLIENT, Fault, FaultyProxy, RandomFaults

Tree = Callable[[Path], dict[str, bytes]]
SERIAL = RunSettings(executor="serial")
INVARIANCES = ("none", "permutation")
SETTINGS = RsmSettings(INVARIANCES, "position", MatchingSettings("batch_optimal", window=4), tile_size=4)
PLANNED = len(INVARIANCES) * (3 * 4 + 3 + 4)  # tiles, and norms of both sides
QUICK = {"SEMRSM_STORAGE_PATIENCE": "0.5", "AWS_READ_TIMEOUT": "200 ms"}
BRISK = {"AWS_READ_TIMEOUT": "200 ms"}
CHUNK = re.compile(r"/c/\d+(/\d+)*$")


def activations(place: str | Path, name: str, n_samples: int) -> str:
    """An activation store of random numbers; returns its address."""
    url = f"{place}/activations/{name}.zarr"
    features = np.random.default_rng(n_samples).standard_normal((n_samples, 6, 5)).astype(np.float32)
    store = ActivationStore.create(
        url, n_samples=n_samples, n_positions=6, n_channels=5, chunk_samples=4, computed_from={"name": name}
    )
    for index in store.missing_chunks():
        store.write_chunk(index, features[store.chunk_slice(index)])
    return url


def compute(place: str | Path) -> int:
    """Make activations and their RSM in a place, serially; returns how many units were computed."""
    rows, columns = activations(place, "queries", 11), activations(place, "database", 13)
    job = create_rsm(rows, columns, f"{place}/rsm/r.zarr", SETTINGS)
    run = run_rsm(job, INVARIANCES, SERIAL)
    assert not run.set_aside
    assert run.planned == PLANNED
    return run.computed


def command(place: str) -> list[str]:
    """The command line for the RSM of :func:`compute`."""
    arguments = ["rsm", "--rows", f"{place}/activations/queries.zarr", "--columns", f"{place}/activations/database.zarr"]
    arguments += ["--out", f"{place}/rsm/r.zarr", "--tile-size", "4", "--window", "4", "--executor", "serial"]
    arguments += [part for name in INVARIANCES for part in ("--invariance", name)]
    return [sys.executable, "-m", "semrsm_dist.cli", *arguments]


def call(place: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(command(place), capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run computes in a local directory."""
    place = tmp_path_factory.mktemp("local")
    assert compute(place) == PLANNED
    return place


@pytest.fixture
def whole(undisturbed: Path, tree: Tree) -> dict[str, bytes]:
    """Files of the undisturbed RSM."""
    return tree(undisturbed / "rsm/r.zarr")


# Objects


@pytest.mark.parametrize("name", ["plain", "a b", "50%20", "#1?x=y", "ü/é"])
def test_what_was_put_is_listed_and_read_under_any_name(s3: S3, name: str) -> None:
    location = Location.of(s3.url) / name
    assert location.sizes() == {}
    location.put("a/b c#%20", b"123")
    location.put("a/d", b"")
    (Location.of(s3.url) / "plai").put("x", b"beside, not below")
    assert location.sizes() == {"a/b c#%20": 3, "a/d": 0}
    assert location.sizes("a") == location.sizes()
    assert location.get("a/b c#%20") == b"123"
    assert location.exists("a/d")
    location.delete("a/d")
    location.delete("a/d")
    assert not location.exists("a/d")
    with pytest.raises(StoreNotFoundError, match="a/d; check the path"):
        location.get("a/d")


def test_stores_at_the_root_of_a_bucket_find_each_other() -> None:
    store, other = Location.of("s3://b/r.zarr"), Location.of("s3://other/a.zarr")
    assert store.parent == store.parent.parent == Location.of("s3://b")
    for target in (Location.of("s3://b/a.zarr"), other, Location.of("s3://b/x/a.zarr")):
        assert resolve(relative(target, store), store) == target
    assert relative(other, store) == other.url


def test_a_listing_has_as_many_pages_as_it_needs(s3: S3) -> None:
    side, size = 34, 1
    store = RsmStore.create(
        f"{s3.url}/r.zarr",
        n_rows=side,
        n_columns=side,
        grid={"kind": "rectangular"},
        tile_size=size,
        computed_from={"rows": "r"},
    )
    store.add_invariance("none")
    gone = {(3, 4), (33, 33), (0, 0)}
    tiles = set(product(range(side), range(side)))
    store.write_tile("none", 1, 1, np.ones((size, size)))
    chunk = store.location.get("inner_product/none/c/1/1")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tile: store.location.put(f"inner_product/none/c/{tile[0]}/{tile[1]}", chunk), tiles - gone))
    before = len(s3.server.requests) if s3.server else 0
    assert store.present_tiles("none") == tiles - gone
    assert len(tiles - gone) > 1000
    if s3.server:
        listings = [target for _, target in s3.server.requests[before:] if "list-type=2" in target]
        assert len(listings) == 2
        assert "continuation-token" in listings[1]


# Stores


def test_activations_are_created_opened_and_gone_on_with(s3: S3) -> None:
    url = f"{s3.url}/a.zarr"
    features = np.random.default_rng(0).standard_normal((5, 64, 7000)).astype(np.float32)
    logits = np.arange(10, dtype=np.float32).reshape(5, 2)

    def create(name: str) -> ActivationStore:
        return ActivationStore.create(
            url, n_samples=5, n_positions=64, n_channels=7000, n_classes=2, chunk_samples=4, computed_from={"name": name}
        )

    store = create("a")
    store.write_chunk(0, features[:4], logits[:4])  # 7 MB: uploaded in parts
    assert store.location.sizes()["features/c/0/0/0"] > 5 * 2**20
    assert create("a").missing_chunks() == [1]
    with pytest.raises(IncompleteStoreError, match=r"lacks 1 of 2 chunks"):
        ActivationStore.open(url).require_complete()
    create("a").write_chunk(1, features[4:], logits[4:])
    opened = ActivationStore.open(url)
    np.testing.assert_array_equal(opened.read(0, 5), features)
    np.testing.assert_array_equal(opened.read_logits(), logits)
    opened.delete_chunk(1)
    assert opened.missing_chunks() == [1]
    with pytest.raises(FingerprintMismatchError, match='name is "a" in the store and "b" now'):
        create("b")


def test_stores_that_are_not_there_are_said(s3: S3) -> None:
    with pytest.raises(StoreNotFoundError, match="no Zarr store at s3://"):
        RsmStore.open(f"{s3.url}/nothing.zarr")


def test_only_what_is_missing_or_damaged_is_computed(s3: S3, whole: dict[str, bytes]) -> None:
    assert compute(s3.url) == PLANNED
    assert s3.tree("rsm/r.zarr") == whole
    assert compute(s3.url) == 0
    store = RsmStore.open(f"{s3.url}/rsm/r.zarr", writable=True)
    store.delete_tile("none", 1, 2)
    store.delete_norms("permutation", "column", 3)
    key = "inner_product/permutation/c/2/3"
    data = bytearray(store.location.get(key))
    data[17] ^= 4
    store.location.put(key, bytes(data))
    store.location.put("inner_product/permutation/c/0/0", whole["inner_product/permutation/c/0/0"][:-1])
    with pytest.raises(DamagedChunkError, match="inner_product/permutation is damaged within"):
        store.read_tile("permutation", 2, 3)
    assert store.present_tiles("permutation") == set(product(range(3), range(4))) - {(0, 0)}
    with pytest.raises(IncompleteStoreError, match=r"Tile \(1, 2\) under none .* has not been computed"):
        store.read_tile("none", 1, 2)
    assert compute(s3.url) == 4
    assert s3.tree("rsm/r.zarr") == whole


def test_another_configuration_is_refused(s3: S3, whole: dict[str, bytes]) -> None:
    compute(s3.url)
    other = RsmSettings(INVARIANCES, "channel", SETTINGS.matching, 4)
    addresses = (f"{s3.url}/activations/queries.zarr", f"{s3.url}/activations/database.zarr", f"{s3.url}/rsm/r.zarr")
    with pytest.raises(FingerprintMismatchError, match='centring is "position" in the store and "channel" now'):
        create_rsm(*addresses, other)
    assert s3.tree("rsm/r.zarr") == whole


# The command line


@pytest.mark.parametrize("fault", [None, "drop", "forget"])
def test_a_killed_run_goes_on_where_it_was(s3: S3, whole: dict[str, bytes], fault: Fault | None) -> None:
    """Not killed; killed at its tenth tile before the server sees that; killed when the server has it."""
    for name, n_samples in (("queries", 11), ("database", 13)):
        activations(s3.url, name, n_samples)
    tiles: list[str] = []
    ended: list[int] = []

    def kill_at_the_tenth(method: str, target: str, attempt: int) -> Fault | None:
        if method == "PUT" and "/inner_product/" in target and CHUNK.search(target):
            tiles.append(target)
            if fault is not None and len(tiles) == 10 and not ended:
                process.send_signal(signal.SIGKILL)
                ended.append(process.wait())
                return fault
        return None

    with s3.through(FaultyProxy(s3.endpoint, kill_at_the_tenth)):
        process = subprocess.Popen(command(s3.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, error = process.communicate(timeout=60)
        assert process.returncode == (0 if fault is None else -signal.SIGKILL), error
        store = RsmStore.open(f"{s3.url}/rsm/r.zarr")
        kept = {(name, *tile) for name in INVARIANCES for tile in store.present_tiles(name)}
        assert len(kept) == {None: 24, "drop": 9, "forget": 10}[fault]
        tiles.clear()
        again = call(s3.url)
        assert again.returncode == 0, again.stderr
        assert "all verified" in again.stdout
        assert len(tiles) == 24 - len(kept)
    assert s3.tree("rsm/r.zarr") == whole


def refused(s3: S3, words: str) -> None:
    """Expect the command line to end with status 2 and one sentence, soon."""
    started = time.monotonic()
    run = call(s3.url)
    assert run.returncode == 2, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert re.search(f"^semrsm: .*{words}.*[.]$", last), run.stderr
    assert "Traceback" not in run.stderr
    assert time.monotonic() - started < 20


def test_a_bucket_that_does_not_exist_is_one_sentence(s3: S3) -> None:
    own(s3)
    for name, n_samples in (("queries", 11), ("database", 13)):
        activations(s3.url, name, n_samples)
    elsewhere = [part.replace(f"{s3.url}/rsm", "s3://nowhere/rsm") for part in command(s3.url)]
    run = subprocess.run(elsewhere, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1] == (
        "semrsm: Cannot use s3://nowhere/rsm/r.zarr: the bucket does not exist; create it or correct the address."
    )


def test_wrong_credentials_are_one_sentence(s3: S3) -> None:
    own(s3)
    s3.patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(s3, r"access is denied; check the credentials \(AWS_ACCESS_KEY_ID, .*\) and what they may do")


def test_no_server_is_one_sentence(s3: S3) -> None:
    s3.patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3.patch.setenv("SEMRSM_STORAGE_PATIENCE", "0.5")
    refused(s3, "the server cannot be reached or breaks off, after .* retries too; check the endpoint and the network")


# A faulty network


def test_a_fifth_of_all_requests_fails_and_the_bytes_are_the_same(s3: S3, whole: dict[str, bytes]) -> None:
    with s3.through(FaultyProxy(s3.endpoint, RandomFaults(1, 0.2), stall_seconds=0.4), **BRISK) as proxy:
        assert compute(s3.url) == PLANNED
    assert set(proxy.injected) == set(SEEN_BY_THE_CLIENT)
    assert proxy.injected.total() > 30
    assert s3.tree("rsm/r.zarr") == whole


@pytest.mark.parametrize("fault", SEEN_BY_THE_CLIENT)
def test_every_operation_survives_two_faults_in_a_row(s3: S3, fault: Fault) -> None:
    data = os.urandom(100_000)
    twice = FaultyProxy(s3.endpoint, lambda method, target, attempt: fault if attempt < 2 else None, stall_seconds=0.4)
    with s3.through(twice, **BRISK):
        location = Location.of(s3.url) / "x"
        location.put("a/b", data)
        assert location.get("a/b") == data
        assert location.exists("a/b")
        assert location.sizes() == {"a/b": len(data)}
        location.delete("a/b")
        assert location.sizes() == {}
        assert location.create("c", b"1")
        assert not location.create("c", b"2")
        assert location.swap("c", b"1", b"2")
        assert location.get("c") == b"2"
    assert twice.injected[fault] >= 10


@pytest.mark.parametrize("fault", SEEN_BY_THE_CLIENT)
def test_a_server_that_always_fails_is_one_sentence_within_bounded_time(s3: S3, fault: Fault) -> None:
    (Location.of(s3.url) / "x").put("a", b"123")
    proxy = FaultyProxy(s3.endpoint, lambda method, target, attempt: fault, stall_seconds=0.4)
    with s3.through(proxy, **QUICK):
        location = Location.of(s3.url) / "x"
        for operation in (
            lambda: location.put("b", b"456"),
            lambda: location.get("a"),
            lambda: location.sizes(),
            lambda: location.delete("a"),
        ):
            started = time.monotonic()
            with pytest.raises(StorageUnavailableError, match=r"^Cannot use s3://[^\n]*; [^\n]*[.]$"):
                operation()
            assert time.monotonic() - started < 6


def test_an_outage_ends_the_run_and_keeps_what_was_written(s3: S3, whole: dict[str, bytes]) -> None:
    tiles: set[str] = set()

    def from_the_tenth_tile(method: str, target: str, attempt: int) -> Fault | None:
        if method == "PUT" and "/inner_product/" in target and CHUNK.search(target):
            tiles.add(target)
        return "refuse" if len(tiles) >= 10 else None

    started = time.monotonic()
    with (
        s3.through(FaultyProxy(s3.endpoint, from_the_tenth_tile), **QUICK),
        pytest.raises(
            StorageUnavailableError, match=r"the server answers 503 .* retries too; try again later: what is finished"
        ),
    ):
        compute(s3.url)
    assert time.monotonic() - started < 30
    (Location.of(s3.url) / "rsm").delete("r.lease.json")  # could not be given back, and this process lives
    store = RsmStore.open(f"{s3.url}/rsm/r.zarr")
    assert sum(len(store.present_tiles(name)) for name in INVARIANCES) == 9
    assert compute(s3.url) <= PLANNED - 9
    assert s3.tree("rsm/r.zarr") == whole


def test_a_body_that_is_cut_is_never_returned(s3: S3) -> None:
    data = os.urandom(300_000)
    (Location.of(s3.url) / "x").put("a", data)
    always = FaultyProxy(s3.endpoint, lambda method, target, attempt: "cut" if method == "GET" else None)
    with s3.through(always, **QUICK), pytest.raises(StorageUnavailableError):
        (Location.of(s3.url) / "x").get("a")


def test_a_chunk_that_is_shortened_on_its_way_is_read_again_or_refused(s3: S3) -> None:
    url = activations(s3.url, "a", 11)
    expected = ActivationStore.open(url).read(0, 11)
    for attempts in (1, 1000):

        def shorten(method: str, target: str, attempt: int, attempts: int = attempts) -> Fault | None:
            return "shorten" if method == "GET" and CHUNK.search(target) and attempt < attempts else None

        with s3.through(FaultyProxy(s3.endpoint, shorten)):
            store = ActivationStore.open(url)
            if attempts == 1:
                np.testing.assert_array_equal(store.read(0, 11), expected)
            else:
                with pytest.raises(DamagedChunkError, match="features is damaged"):
                    store.read(0, 11)
