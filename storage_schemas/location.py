"""One code path to local directories and object stores.

A :class:`Location` is a directory-like prefix, local or remote, reached through obstore. Every ``put`` is atomic: local
files are written under a temporary name and renamed, object stores do the same on their side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url
from zarr.storage import ObjectStore

from storage_schemas.errors import StorageUnavailableError, StoreNotFoundError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore

_TEMPORARY = re.compile(r"#\d+$")  # what obstore's local writer appends until it renames
_OS_ERROR = re.compile(r"os error (\d+)")
_REASONS = {
    13: ("permission is denied", "change the permissions or choose another directory"),
    20: ("a part of the path is a file, not a directory", "choose another path"),
    28: ("the disk is full", "free some space and run the same command again; what is finished is kept"),
    30: ("the file system is read-only", "make it writable or choose another directory"),
    122: ("the disk quota is used up", "free some space and run the same command again; what is finished is kept"),
}


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn an error of the disk or the object store into one sentence that says what to do."""
    try:
        yield
    except (FileNotFoundError, AlreadyExistsError, StorageUnavailableError):
        raise
    except (BaseError, OSError) as error:
        text = str(error)
        number = getattr(error, "errno", None) or next(iter(_OS_ERROR.findall(text)), 0)
        words = (getattr(error, "strerror", None) or text or type(error).__name__).splitlines()[0].rstrip(".")
        unknown = (words, "check the address, the credentials and the network" if "://" in where else "check the path")
        reason, advice = _REASONS.get(int(number), unknown)
        raise StorageUnavailableError(f"Cannot use {where}: {reason}; {advice}.") from error


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
        """The location one level up."""
        return Location(self.url.rstrip("/").rsplit("/", 1)[0] or "/")

    def __truediv__(self, part: str) -> Location:
        return Location(f"{self.url.rstrip('/')}/{part}")

    def __str__(self) -> str:
        return self.url

    @cached_property
    def store(self) -> ObstoreStore:
        """The obstore store, which creates a missing local directory."""
        with storage_errors(self.url):
            path = self.local_path
            return LocalStore(prefix=path, mkdir=True) if path is not None else from_url(self.url)

    def zarr_store(self, *, read_only: bool = False) -> ObjectStore[ObstoreStore]:
        """This location as a Zarr store."""
        return ObjectStore(self.store, read_only=read_only)

    def exists(self, key: str) -> bool:
        """Whether an object is there; never creates a directory."""
        path = self.local_path
        with storage_errors(self.url):
            if path is not None:
                return (path / key).exists()
            try:
                obstore.head(self.store, key)
            except FileNotFoundError:
                return False
            return True

    def get(self, key: str) -> bytes:
        """The bytes of an object; raises :class:`StoreNotFoundError`."""
        if self.local_path is not None and not self.local_path.is_dir():
            raise StoreNotFoundError(f"There is no {self / key}; check the path.")
        with storage_errors(self.url):
            try:
                return bytes(obstore.get(self.store, key).bytes())
            except FileNotFoundError as error:
                raise StoreNotFoundError(f"There is no {self / key}; check the path.") from error

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically, over what was there."""
        with storage_errors(self.url):
            obstore.put(self.store, key, data, use_multipart=False)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with storage_errors(self.url):
            try:
                obstore.delete(self.store, key)
            except FileNotFoundError:
                return

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every object under ``prefix`` with its size in bytes, from one listing."""
        if self.local_path is not None and not (self.local_path / prefix).is_dir():
            return {}
        found: dict[str, int] = {}
        with storage_errors(self.url):
            for batch in obstore.list(self.store, prefix=prefix or None, chunk_size=1000):
                found.update((item["path"], item["size"]) for item in batch)
        return found

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
