"""One code path to local directories and object stores.

A :class:`Location` is a directory-like prefix, local or remote, reached through obstore. Every ``put`` is atomic: local
files are written under a temporary name and renamed, object stores do the same on their side.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import quote, unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, from_url
from zarr.storage import ObjectStore

from storage_schemas.errors import InvalidInputError, SemrsmError, StorageUnavailableError, StoreNotFoundError

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as ObstoreStore

T = TypeVar("T")
_TEMPORARY = re.compile(r"#\d+$")  # what obstore's local writer appends until it renames
_OS_ERROR = re.compile(r"os error (\d+)")
_REASONS = {
    13: ("permission is denied", "change the permissions or choose another directory"),
    20: ("a part of the path is a file, not a directory", "choose another path"),
    28: ("the disk is full", "free some space and run the same command again; what is finished is kept"),
    30: ("the file system is read-only", "make it writable or choose another directory"),
    122: ("the disk quota is used up", "free some space and run the same command again; what is finished is kept"),
}

_KEPT = "what is finished is kept, and the same command goes on from there"
_BROKEN = "the server cannot be reached or breaks off"
_LONGEST_WAIT = 15.0
_NO_BUCKET = r"NoSuchBucket|ContainerNotFound|bucket does not exist"
_ANSWERS = (  # what an object store or the network says, what it means and what to do; the first that is found counts
    (_NO_BUCKET, "the bucket does not exist", "create it or correct the address"),
    (r"169\.254\.169\.254|metadata\.google", "no credentials were found", "set them in the environment ({advice})"),
    (r"status code: 40[13]", "access is denied", "check the credentials ({advice}) and what they may do"),
    (r"BadScheme", "its endpoint is not https://", "set AWS_ALLOW_HTTP=true if plain HTTP is meant"),
    (r"(?<=status code: )(?:429|5\d\d)[\w ]*", "the server answers {found}", f"try again later: {_KEPT}"),
    (r"HTTP error", _BROKEN, f"check the endpoint and the network: {_KEPT}"),
)

PATIENCE_SECONDS = 180.0
"""How long a request to an object store is repeated; ``SEMRSM_STORAGE_PATIENCE`` in the environment says otherwise."""
_ENVIRONMENT = {"s3": "AWS", "s3a": "AWS", "gs": "GOOGLE", "az": "AZURE", "azure": "AZURE", "abfs": "AZURE", "abfss": "AZURE"}
_CLIENT_OPTIONS: dict[str, str] = {
    "connect_timeout": "5 s",
    "read_timeout": "30 s",  # without a byte: obstore would wait for ever
    "timeout": "5 min",  # of a whole request: obstore's 30 s break off 16 MiB at less than 560 KiB/s, again and again
}
_OTHER_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "user_agent",
)


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn an error of the disk or the object store into one sentence that says what to do."""
    try:
        yield
    except (SemrsmError, AlreadyExistsError):
        raise
    except FileNotFoundError as error:
        if "://" not in where or not re.search(_NO_BUCKET, str(error)):
            raise
        raise StorageUnavailableError(f"Cannot use {where}: {'; '.join(_remote_reason(where, error))}.") from error
    except (BaseError, OSError) as error:
        reason = _remote_reason(where, error) if "://" in where else _local_reason(error)
        raise StorageUnavailableError(f"Cannot use {where}: {'; '.join(reason)}.") from error


def persist(where: str, operation: Callable[[], T]) -> T:
    """Do what may be done twice; again while the network breaks off in a way that obstore does not repeat.

    That is in the middle of a listing or of an error's text, and in a bulk deletion. Whatever else obstore repeats has had
    its time when it comes here as an error. The whole takes twice the patience at most.

    Raises
    ------
    StorageUnavailableError
        As :func:`storage_errors` says it.
    """
    deadline, wait = time.monotonic() + _patience(), 0.1
    while True:
        try:
            with storage_errors(where):
                return operation()
        except StorageUnavailableError as error:
            broken = "://" in where and _remote_reason(where, error.__cause__ or error)[0].startswith(_BROKEN)
            if not broken or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def _first_line(error: BaseException) -> str:
    """An error's own words, without obstore's debugging output."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _local_reason(error: Exception) -> tuple[str, str]:
    """What an error of the disk means and what to do."""
    number = getattr(error, "errno", None) or next(iter(_OS_ERROR.findall(str(error))), 0)
    return _REASONS.get(int(number), (_first_line(error), "check the path"))


def _remote_reason(where: str, error: BaseException) -> tuple[str, str]:
    """What an error of an object store means and what to do."""
    prefix = _ENVIRONMENT.get(urlparse(where).scheme, "")
    credentials = {"AWS": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION"}.get(prefix, f"{prefix}_…")
    text = f"{type(error).__name__} {error}"
    for pattern, reason, advice in _ANSWERS:
        found = re.search(pattern, text)
        if found:
            retried = re.search(r"after [1-9]\d* retries", text)
            again = f", {retried[0]} too" if retried else ""
            return reason.format(found=found[0]) + again, advice.format(advice=credentials)
    return _first_line(error), "check the address, the credentials and the network"


def _patience() -> float:
    """For how many seconds a request is repeated."""
    said = os.environ.get("SEMRSM_STORAGE_PATIENCE", "")
    try:
        patience = float(said) if said else PATIENCE_SECONDS
    except ValueError:
        patience = -1
    if not 0 <= patience <= 3600:
        raise InvalidInputError(f"SEMRSM_STORAGE_PATIENCE is {said!r}; it takes seconds between 0 and 3600.")
    return patience


def _retry_config() -> RetryConfig:
    """Waits of 0.1 s that grow to 15 s, until the patience ends."""
    return {
        # Each wait is random between the first and three times the last. obstore's own base of 2 leaves them at 0.1 s on
        # average, so that its ten retries outlast a few seconds only.
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=_LONGEST_WAIT), "base": 3},
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=_patience()),
    }


def _client_options(scheme: str) -> ClientConfig:
    """Our limits of time under what the environment says: obstore reads none of it once it is given options."""
    prefix = _ENVIRONMENT.get(scheme, "AWS")
    said = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in (*_CLIENT_OPTIONS, *_OTHER_CLIENT_OPTIONS)}
    return cast("ClientConfig", {**_CLIENT_OPTIONS, **{name: value for name, value in said.items() if value}})


@dataclass(frozen=True)
class Location:
    """A directory or an object-store prefix.

    Parameters
    ----------
    url : str
        A path, or ``file://…``, ``s3://…``, ``gs://…``, ``az://…``. Credentials are read from the environment, as obstore
        documents it.
    """

    url: str

    @classmethod
    def of(cls, url: str | os.PathLike[str] | Location) -> Location:
        """The location of a path or URL; local paths become absolute."""
        if isinstance(url, Location):
            return url
        text = os.fspath(url)
        parsed = urlparse(text)
        if parsed.scheme == "file":
            text = unquote(parsed.path)
        elif len(parsed.scheme) > 1 and "://" in text:  # one letter would be a Windows drive
            return cls(text.rstrip("/"))
        return cls(os.path.abspath(os.path.expanduser(text)))  # unlike pathlib's, never an error for an unknown user

    @property
    def local_path(self) -> Path | None:
        """The path on this machine, or None for an object store."""
        return None if "://" in self.url else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The location one level up; a bucket and the root directory are their own."""
        above = self.url.rstrip("/").rpartition("/")[0] or "/"
        return self if above.endswith(":/") else Location(above)

    def __truediv__(self, part: str) -> Location:
        return Location(f"{self.url.rstrip('/')}/{part}")

    def __str__(self) -> str:
        return self.url

    @cached_property
    def store(self) -> ObstoreStore:
        """The obstore store, which creates a missing local directory."""
        with storage_errors(self.url):
            path = self.local_path
            if path is not None:
                return LocalStore(prefix=path, mkdir=True)
            scheme, _, rest = self.url.partition("://")
            url = f"{scheme}://{quote(rest, safe='/:@')}"  # obstore would drop what follows a # or ? and decode a %
            return from_url(url, client_options=_client_options(scheme), retry_config=_retry_config())

    def zarr_store(self, *, read_only: bool = False) -> ObjectStore[ObstoreStore]:
        """This location as a Zarr store."""
        return ObjectStore(self.store, read_only=read_only)

    def exists(self, key: str) -> bool:
        """Whether an object is there; never creates a directory."""
        path = self.local_path

        def look() -> bool:
            if path is not None:
                return (path / key).exists()
            try:
                obstore.head(self.store, key)
            except FileNotFoundError:
                return False
            return True

        return persist(self.url, look)

    def get(self, key: str) -> bytes:
        """The bytes of an object; raises :class:`StoreNotFoundError`."""
        if self.local_path is not None and not self.local_path.is_dir():
            raise StoreNotFoundError(f"There is no {self / key}; check the path.")
        try:
            return persist(self.url, lambda: bytes(obstore.get(self.store, key).bytes()))
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no {self / key}; check the path.") from error

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically, over what was there."""
        persist(self.url, lambda: obstore.put(self.store, key, data, use_multipart=False))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless one is there; returns whether this call wrote it, as one of several at a time does."""
        try:
            persist(self.url, lambda: obstore.put(self.store, key, data, mode="create", use_multipart=False))
        except AlreadyExistsError:
            return self.peek(key) == data  # the network repeats a request whose answer was lost
        return True

    def swap(self, key: str, old: bytes, new: bytes | None) -> bool:
        """Replace an object, or remove it, if it still holds what it held; returns whether it did.

        Of several writers at a time one succeeds. Local files are locked meanwhile, objects are replaced by their ETag. What is
        left: a file system without locks, an object store without conditional writes, and the removal of an object, where
        another writer's object is lost if it comes between the look and the removal.

        Parameters
        ----------
        key
            The object.
        old
            What it must still hold, unlike anything that it held before.
        new
            What to write, or None to remove it.
        """
        path = self.local_path
        if path is None:
            return persist(self.url, lambda: self._swap_object(key, old, new))
        with storage_errors(self.url), _locked(path / key) as held:
            if held == old:
                self.delete(key) if new is None else self.put(key, new)
            return held == old

    def _swap_object(self, key: str, old: bytes, new: bytes | None) -> bool:
        """Replace or remove an object of an object store if it still holds ``old``."""
        try:
            found = obstore.get(self.store, key)
        except FileNotFoundError:
            return False
        held = bytes(found.bytes())
        if held != old:
            return held == new  # repeated, since the first answer was lost
        if new is None:
            self.delete(key)
            return True
        version: UpdateVersion = {}
        if found.meta["e_tag"]:
            version["e_tag"] = found.meta["e_tag"]
        if found.meta["version"]:
            version["version"] = found.meta["version"]
        try:
            obstore.put(self.store, key, new, mode=version, use_multipart=False)
        except PreconditionError:
            return self.peek(key) == new  # the network repeats a request whose answer was lost
        except NotImplementedError:
            self.put(key, new)
        return True

    def peek(self, key: str) -> bytes | None:
        """The bytes of an object, or None when it is not there."""
        try:
            return self.get(key)
        except StoreNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with suppress(FileNotFoundError):
            persist(self.url, lambda: obstore.delete(self.store, key))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every object under ``prefix`` with its size in bytes, from one listing."""
        if self.local_path is not None and not (self.local_path / prefix).is_dir():
            return {}

        def look() -> dict[str, int]:
            batches = obstore.list(self.store, prefix=prefix or None, chunk_size=1000)
            return {item["path"]: item["size"] for batch in batches for item in batch}

        return persist(self.url, look)

    def sweep(self) -> int:
        """Remove what killed local writers left half-written; returns how many files went."""
        if self.local_path is None or not self.local_path.is_dir():
            return 0
        swept = 0
        for folder, _, names in os.walk(self.local_path):
            for name in names:
                if _TEMPORARY.search(name):
                    with storage_errors(self.url):
                        Path(folder, name).unlink(missing_ok=True)
                    swept += 1
        return swept


def relative(target: Location, store: Location) -> str:
    """Address of ``target`` as seen from beside ``store``, so that a work directory can be moved as a whole."""
    if target.local_path is not None and store.local_path is not None:
        return os.path.relpath(target.local_path, store.local_path.parent)
    prefix = f"{store.parent.parent}/"
    return f"../{target.url.removeprefix(prefix)}" if target.url.startswith(prefix) else target.url


def resolve(address: str, store: Location) -> Location:
    """The location that :func:`relative` described."""
    if "://" in address or os.path.isabs(address):
        return Location.of(address)
    if store.local_path is not None:
        return Location.of(os.path.normpath(store.local_path.parent / address))
    return store.parent.parent / address.removeprefix("../")


@contextmanager
def _locked(path: Path) -> Iterator[bytes | None]:
    """The bytes of a file while no other caller of this function has it; None when it is not there."""
    while True:
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            yield None
            return
        with file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                continue
            if current:  # and not replaced while this one waited
                yield file.read()
                return
