"""One code path to directories and object stores: atomic writes, one listing, errors as sentences."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import MemoryStore

from storage_schemas import StorageUnavailableError, StoreNotFoundError
from storage_schemas.location import Location, storage_errors


def test_paths_and_file_urls_are_the_same_place(tmp_path: Path) -> None:
    assert Location.of(tmp_path / "a b") == Location.of(f"file://{tmp_path}/a%20b")
    assert Location.of("s3://bucket/x/").url == "s3://bucket/x"
    assert (Location.of("s3://bucket/x") / "y.zarr").parent.url == "s3://bucket/x"
    assert Location.of("s3://bucket/x").local_path is None


def test_what_was_put_is_listed_and_read(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "store #1")
    location.put("a/b c", b"123")
    location.put("a/d", b"")
    assert location.sizes() == {"a/b c": 3, "a/d": 0}
    assert location.sizes("a") == location.sizes()
    assert location.get("a/b c") == b"123"
    assert location.exists("a/d")
    location.delete("a/d")
    location.delete("a/d")
    assert not location.exists("a/d")


def test_looking_does_not_create_directories(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "nowhere")
    assert location.sizes() == {}
    assert not location.exists("x")
    with pytest.raises(StoreNotFoundError, match=r"There is no .*nowhere/x; check the path"):
        location.get("x")
    assert not (tmp_path / "nowhere").exists()


def test_half_written_files_of_killed_writers_are_swept_and_never_listed(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    location.put("c/0/0", b"whole")
    (tmp_path / "c/0/1#1").write_bytes(b"half")
    assert location.sizes() == {"c/0/0": 5}
    assert location.sweep() == 1
    assert sorted(path.name for path in (tmp_path / "c/0").iterdir()) == ["0"]


def test_a_path_through_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageUnavailableError, match="; ") as caught:
        Location.of(tmp_path / "file" / "store").put("a", b"1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "words"), [(28, "the disk is full"), (30, "the file system is read-only")])
def test_an_error_of_the_disk_is_one_sentence(number: int, words: str) -> None:
    with pytest.raises(StorageUnavailableError, match=words), storage_errors("/data"):
        raise OSError(number, os.strerror(number))


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(small_disk: Path) -> None:
    location = Location.of(small_disk / "store")
    location.put("first", b"1" * 100_000)
    with pytest.raises(StorageUnavailableError, match="the disk is full; free some space and run the same command again"):
        location.put("second", b"2" * 300_000)
    assert location.get("first") == b"1" * 100_000
    assert set(location.sizes()) == {"first"}


def test_a_read_only_disk_is_one_sentence(small_disk: Path) -> None:
    location = Location.of(small_disk / "store")
    location.put("first", b"1")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageUnavailableError, match="read-only"):
        location.put("second", b"2")
    assert location.get("first") == b"1"


def test_an_object_is_created_once(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    assert location.create("a", b"1")
    assert not location.create("a", b"2")
    assert location.get("a") == b"1"


def test_an_object_is_swapped_or_removed_only_while_it_holds_what_it_held(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    assert not location.swap("a", b"1", b"2")
    location.put("a", b"1")
    assert location.swap("a", b"1", b"2")
    assert not location.swap("a", b"1", b"3")
    assert not location.swap("a", b"1", None)
    assert location.get("a") == b"2"
    assert location.swap("a", b"2", None)
    assert location.sizes() == {}


def test_of_many_swaps_of_the_same_object_one_succeeds(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    for turn in range(30):
        location.put("a", b"old")
        start = threading.Barrier(8)

        def swap(number: int, turn: int = turn, start: threading.Barrier = start) -> bool:
            start.wait()
            return location.swap("a", b"old", f"{turn} {number}".encode())

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(swap, range(8))) == 1


def test_an_object_that_changes_during_a_swap_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryStore()
    monkeypatch.setattr(Location, "store", memory)
    location = Location.of("s3://bucket/x")
    location.put("a", b"old")
    get = obstore.get

    def get_and_be_overtaken(store: MemoryStore, key: str) -> obstore.GetResult:
        found = get(store, key)
        obstore.put(store, key, b"theirs")
        return found

    monkeypatch.setattr(obstore, "get", get_and_be_overtaken)
    assert not location.swap("a", b"old", b"mine")
    monkeypatch.setattr(obstore, "get", get)
    assert location.get("a") == b"theirs"


@pytest.mark.parametrize("error", [AlreadyExistsError, PreconditionError])
def test_a_write_that_the_network_repeats_has_still_succeeded(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    memory = MemoryStore()
    monkeypatch.setattr(Location, "store", memory)
    location = Location.of("s3://bucket/x")
    put = obstore.put

    def put_twice(*arguments: object, **options: object) -> None:
        put(*arguments, **options)
        raise error

    if error is PreconditionError:
        location.put("a", b"old")
    monkeypatch.setattr(obstore, "put", put_twice)
    assert location.create("a", b"mine") if error is AlreadyExistsError else location.swap("a", b"old", b"mine")
