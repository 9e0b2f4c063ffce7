"""One writer: of many that want a store one gets it, its death frees it, and who loses it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage_schemas import LeaseLostError, StorageUnavailableError, StoreInUseError
from storage_schemas.lease import Holder, Lease
from storage_schemas.location import Location
from tests.s3.bucket import S3

HOLD = """
import sys, time
from storage_schemas.lease import Lease
from storage_schemas.location import Location

Lease(Location.of(sys.argv[1]), 60).acquire()
print("held", flush=True)
time.sleep(60)
"""
TAKE = """
import sys, time
from storage_schemas import StoreInUseError
from storage_schemas.lease import Lease
from storage_schemas.location import Location

print("ready", flush=True)
sys.stdin.readline()
try:
    Lease(Location.of(sys.argv[1]), 60).acquire()
    print("mine", flush=True)
    sys.stdin.readline()
except StoreInUseError as error:
    print("refused", flush=True)
"""


@pytest.fixture(params=["directory", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> Location:
    """A store in a directory, and one in an object store with conditional writes."""
    return Location.of(tmp_path / "r.zarr" if request.param == "directory" else f"{s3.url}/work/r.zarr")


def written(store: Location, **changes: object) -> Holder:
    """Put another machine's lease beside a store."""
    now = datetime.now(UTC)
    other = replace(
        Holder.this_process(60), host="elsewhere", pid=4321, machine="another", since=now - timedelta(hours=1), **changes
    )
    store.parent.put("r.lease.json", other.to_json())
    return other


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether something comes to hold within some seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_second_writer_is_told_who_holds_the_store_since_when_and_for_how_long(store: Location) -> None:
    other = written(store, expires=datetime.now(UTC) + timedelta(seconds=42.5))
    with pytest.raises(StoreInUseError) as refused:
        Lease(store).acquire()
    assert str(refused.value) == (
        f"{store} is in use by process 4321 on elsewhere since {other.since:%Y-%m-%d %H:%M:%S} UTC; "
        "wait for that run or stop it: its lease expires in 43 s unless it is renewed."
    )
    assert store.parent.get("r.lease.json") == other.to_json()


def test_a_lease_is_given_back_at_the_end_and_after_an_error(store: Location) -> None:
    def fail() -> None:
        with Lease(store):
            with pytest.raises(StoreInUseError):
                Lease(store).acquire()
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert store.parent.peek("r.lease.json") is None


def test_an_expired_lease_is_taken_over(store: Location) -> None:
    written(store, expires=datetime.now(UTC) - timedelta(seconds=0.1))
    with Lease(store) as lease:
        lease.check()
        holder = Holder.from_json(store.parent.get("r.lease.json"))
        assert holder is not None and holder.pid == os.getpid()


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b'{"pid": 1}', b'"x"'])
def test_a_lease_that_says_nothing_is_taken_over(store: Location, rubbish: bytes) -> None:
    store.parent.put("r.lease.json", rubbish)
    with Lease(store) as lease:
        lease.check()


def test_a_lease_is_renewed_while_its_run_lives(store: Location) -> None:
    with Lease(store, 0.4) as lease:
        first = store.parent.get("r.lease.json")
        time.sleep(1.0)
        lease.check()
        now = json.loads(store.parent.get("r.lease.json"))
        assert {name for name, value in json.loads(first).items() if now[name] != value} == {"expires"}
        with pytest.raises(StoreInUseError):
            Lease(store).acquire()


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda store: written(store), "process 4321 on elsewhere since .* took it over"),
        (lambda store: store.parent.delete("r.lease.json"), "its lease was removed"),
    ],
)
def test_a_run_whose_lease_is_lost_is_told_and_leaves_the_others_alone(
    store: Location, happens: Callable[[Location], object], words: str
) -> None:
    with Lease(store, 0.2) as lease:
        happens(store)
        after = store.parent.peek("r.lease.json")

        def lost() -> bool:
            try:
                lease.check()
            except LeaseLostError:
                return True
            return False

        assert eventually(lost)
        with pytest.raises(LeaseLostError, match=f"no longer holds .*: {words}; it stopped"):
            lease.check()
    assert store.parent.peek("r.lease.json") == after


def test_a_lease_outlives_storage_that_is_away_for_less_than_its_time(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = Location.swap
    away = threading.Event()

    def fail_while_away(self: Location, key: str, old: bytes, new: bytes | None) -> bool:
        if away.is_set():
            raise StorageUnavailableError("Cannot use the store: it is away; wait.")
        return swap(self, key, old, new)

    monkeypatch.setattr(Location, "swap", fail_while_away)
    with Lease(store, 2.0) as lease:
        away.set()
        time.sleep(1.2)  # two renewals fail
        lease.check()
        away.clear()
        time.sleep(1.2)
        lease.check()
        away.set()
        time.sleep(3.5)
        with pytest.raises(LeaseLostError, match=r"could not be renewed \(Cannot use the store: it is away; wait\)"):
            lease.check()


def test_a_renewal_whose_answer_was_lost_is_known_again(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = Location.swap
    lost = threading.Event()

    def lose_one_answer(self: Location, key: str, old: bytes, new: bytes | None) -> bool:
        done = swap(self, key, old, new)
        if not lost.is_set():
            lost.set()
            raise StorageUnavailableError("Cannot use the store: the server breaks off; wait.")
        return done

    monkeypatch.setattr(Location, "swap", lose_one_answer)
    with Lease(store, 0.4) as lease:
        time.sleep(1.0)
        assert lost.is_set()
        lease.check()
        holder = Holder.from_json(store.parent.get("r.lease.json"))
        assert holder is not None and holder.seconds_left() > 0
    assert store.parent.peek("r.lease.json") is None


@pytest.mark.parametrize("before", ["nothing", "an expired lease"])
def test_of_many_threads_that_want_a_store_one_gets_it(store: Location, before: str) -> None:
    for _ in range(20):
        if before != "nothing":
            written(store, expires=datetime.now(UTC) - timedelta(seconds=1))
        start = threading.Barrier(8)

        def take(start: threading.Barrier = start) -> Lease | None:
            lease = Lease(store)
            start.wait()
            try:
                lease.acquire()
            except StoreInUseError:
                return None
            return lease

        with ThreadPoolExecutor(8) as pool:
            leases = [future.result() for future in [pool.submit(take) for _ in range(8)]]
        winners = [lease for lease in leases if lease is not None]
        assert len(winners) == 1
        winners[0].check()
        winners[0].release()
        assert store.parent.peek("r.lease.json") is None


def test_of_many_processes_that_want_an_expired_store_one_gets_it(tmp_path: Path) -> None:
    store = Location.of(tmp_path / "r.zarr")
    written(store, expires=datetime.now(UTC) - timedelta(seconds=1))
    command = [sys.executable, "-c", TAKE, str(store)]
    takers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [taker.stdout.readline() for taker in takers if taker.stdout] == ["ready\n"] * 4
    for taker in takers:
        assert taker.stdin
        taker.stdin.write("\n")
        taker.stdin.flush()
    answers = [taker.stdout.readline() for taker in takers if taker.stdout]
    assert sorted(answers) == ["mine\n", *["refused\n"] * 3]
    for taker in takers:
        taker.communicate("\n")


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    store = Location.of(tmp_path / "r.zarr")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(StoreInUseError, match=f"process {process.pid} on "):
        Lease(store).acquire()
    process.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":  # dead, and not buried yet
        assert time.monotonic() < deadline
    with Lease(store) as lease:
        lease.check()
    process.wait()


def test_a_later_process_of_the_same_id_is_not_taken_for_the_holder(store: Location) -> None:
    now = datetime.now(UTC)
    gone = replace(Holder.this_process(60), started="1", since=now, expires=now + timedelta(hours=1))
    store.parent.put("r.lease.json", gone.to_json())
    with Lease(store) as lease:
        lease.check()


def test_a_process_of_another_machine_is_not_looked_for_here(store: Location) -> None:
    written(store, started="1", expires=datetime.now(UTC) + timedelta(seconds=30))
    with pytest.raises(StoreInUseError):
        Lease(store).acquire()
