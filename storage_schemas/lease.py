"""One writer: a lease on a store, which a run holds while it writes and renews while it lives.

The lease of ``NAME.zarr`` is the object ``NAME.lease.json`` beside it (inside, Zarr would warn of it). Making it, renewing it
and taking it over are atomic, so of several runs that start together one gets the store. A lease that is not renewed
expires; that of a process of this machine that has ended is taken over at once.

Expiry is a time of the holder's clock, compared with that of whoever wants the store. A lease is renewed when a quarter of its
time has passed, so it is never taken from a living holder while the clocks of the machines differ by less than the other
three quarters: 45 of 60 seconds. Should two runs write after all, nothing is lost: a tile is the same bytes whoever writes it.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage_schemas.errors import LeaseLostError, StorageUnavailableError, StoreInUseError
from storage_schemas.location import Location

LEASE_SECONDS = 60.0
_LAST_BEAT_SECONDS = 4.0  # what a release waits for a renewal that the network holds up; Ctrl-C should be quick


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: what the object beside the store says."""

    token: str
    """Random, so that no two holders are taken for one."""
    host: str
    pid: int
    machine: str
    """Of the boot of the kernel and its space of process ids; empty where there is no ``/proc``."""
    started: str
    """When the process started, which tells it from a later one of the same id."""
    since: datetime
    expires: datetime

    @classmethod
    def this_process(cls, seconds: float) -> Self:
        """This process, from now on."""
        now = datetime.now(UTC)
        expires = now + timedelta(seconds=seconds)
        pid = os.getpid()
        return cls(secrets.token_hex(16), socket.gethostname(), pid, _machine(), _started(pid), now, expires)

    @classmethod
    def from_json(cls, data: bytes) -> Self | None:
        """The holder that an object describes, or None when it describes none (a machine that lost power, say)."""
        try:
            values: dict[str, Any] = json.loads(data)
            times = {name: datetime.fromisoformat(values[name]).astimezone(UTC) for name in ("since", "expires")}
            return cls(**{**values, "pid": int(values["pid"]), **times})
        except (ValueError, TypeError, KeyError):
            return None

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        return json.dumps(vars(self), indent=1, default=datetime.isoformat).encode()

    def seconds_left(self) -> float:
        """Until the lease expires by this machine's clock; negative when it has."""
        return (self.expires - datetime.now(UTC)).total_seconds()

    def has_ended(self) -> bool:
        """Whether the lease has expired, or its process ran on this machine and has ended."""
        here = self.machine != "" and self.machine == _machine()
        return self.seconds_left() <= 0 or (here and _started(self.pid) != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since:%Y-%m-%d %H:%M:%S} UTC"


class Lease:
    """The right to write a store; a context manager that holds it.

    Parameters
    ----------
    store
        The store; its lease is the object ``NAME.lease.json`` beside it.
    seconds
        How long the lease lasts unless it is renewed, which a thread does four times as often.

    Raises
    ------
    StoreInUseError
        On entering, when another run holds the lease; it says who, since when and for how long.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Location.of(folder) / "rsm.zarr"
    ...     with Lease(store) as lease:
    ...         lease.check()
    ...         try:
    ...             Lease(store).acquire()
    ...         except StoreInUseError as error:
    ...             print(type(error).__name__)
    StoreInUseError
    """

    def __init__(self, store: Location, seconds: float = LEASE_SECONDS) -> None:
        self._store, self._seconds = store, seconds
        self._folder, self._key = store.parent, _key(store)
        self._holder: Holder | None = None
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name=f"lease of {store}", daemon=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lease and go on renewing it; raises :class:`StoreInUseError`."""
        while True:
            mine = Holder.this_process(self._seconds)
            found = self._folder.peek(self._key)
            if found is None:
                taken = self._folder.create(self._key, mine.to_json())
            else:
                other = Holder.from_json(found)
                if other is not None and not other.has_ended():
                    raise StoreInUseError(
                        f"{self._store} is in use by {other}; wait for that run or stop it: "
                        f"its lease expires in {math.ceil(other.seconds_left())} s unless it is renewed."
                    )
                taken = self._folder.swap(self._key, found, mine.to_json())
            if taken:
                self._holder = mine
                self._thread.start()
                return

    def check(self) -> None:
        """Raise :class:`LeaseLostError` when the lease could not be renewed."""
        if self._lost:
            raise LeaseLostError(
                f"This run no longer holds {self._store}: {self._lost}; it stopped, what is finished is kept, "
                "and the same command goes on from there."
            )

    def release(self) -> None:
        """Stop renewing the lease and give it back; one that cannot be given back expires."""
        self._ended.set()
        self._thread.join(_LAST_BEAT_SECONDS)
        if self._holder is not None and not self._lost and not self._thread.is_alive():
            with suppress(StorageUnavailableError):
                self._folder.swap(self._key, self._holder.to_json(), None)

    def _renew_until_ended(self) -> None:
        """What the thread does."""
        while not self._ended.wait(self._seconds / 4) and not self._lost:
            assert self._holder is not None
            renewed = replace(self._holder, expires=datetime.now(UTC) + timedelta(seconds=self._seconds))
            try:
                if self._folder.swap(self._key, self._holder.to_json(), renewed.to_json()):
                    self._holder = renewed
                    continue
                found = self._folder.peek(self._key)
                other = None if found is None else Holder.from_json(found)
                if other is not None and other.token == self._holder.token:  # written, but the answer was lost
                    self._holder = other
                else:
                    self._lost = "its lease was removed" if other is None else f"{other} took it over"
            except StorageUnavailableError as error:
                if self._holder.seconds_left() <= 0:
                    self._lost = f"its lease could not be renewed ({str(error).rstrip('.')})"


def holder_of(store: Location) -> Holder | None:
    """Who holds the lease of a store, or held it last without giving it back; None when nobody does."""
    data = store.parent.peek(_key(store))
    return None if data is None else Holder.from_json(data)


def _key(store: Location) -> str:
    """Name of the lease of a store, in the folder of the store."""
    return f"{store.name.removesuffix('.zarr')}.lease.json"


def _machine() -> str:
    """What two processes have in common that can see each other's ids; empty where the system does not say."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since the boot; empty when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "XZ" else fields[18]
