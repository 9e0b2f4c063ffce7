"""A bucket for each test, on the server of the tests or on another that the environment names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import pytest

from storage_schemas.location import Location
from tests.s3.faults import FaultyProxy
from tests.s3.server import ACCESS_KEY, REGION, SECRET_KEY, Bucket, S3Server

OUTSIDE = os.environ.get("SEMRSM_TEST_S3", "")
"""``http://HOST:PORT/BUCKET`` of another server to run the tests against; its credentials are in ``AWS_…``."""


@dataclass(frozen=True)
class S3:
    """An empty prefix, and the environment that leads there."""

    endpoint: str
    url: str
    """Address of the prefix, ``s3://…``."""
    patch: pytest.MonkeyPatch
    server: S3Server | None
    """The server of the tests, or None for another."""

    def tree(self, folder: str) -> dict[str, bytes]:
        """Every object below a folder with its bytes, like the files of a local one."""
        location = Location.of(f"{self.url}/{folder}")
        return {key: location.get(key) for key in sorted(location.sizes())}

    @contextmanager
    def through(self, proxy: FaultyProxy, **environment: str) -> Iterator[FaultyProxy]:
        """Everything goes through the proxy until the block ends."""
        with proxy.running() as endpoint, self.patch.context() as patch:
            for name, value in {"AWS_ENDPOINT_URL": endpoint, **environment}.items():
                patch.setenv(name, value)
            yield proxy


@contextmanager
def empty_prefix(server: S3Server | None, patch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Set the environment as a user would, and make a place in a bucket."""
    name = f"semrsm-{secrets.token_hex(6)}"
    if server is None:
        endpoint, _, bucket = OUTSIDE.rpartition("/")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        url = f"s3://{bucket}/{name}"
    else:
        for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
            patch.delenv(variable)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_REGION", REGION)
        server.buckets[name] = Bucket()
        url = f"s3://{name}"
    patch.setenv("AWS_ALLOW_HTTP", "true")
    yield S3(os.environ["AWS_ENDPOINT_URL"], url, patch, server)
    if server is not None:
        del server.buckets[name]


@pytest.fixture(scope="session", name="s3_server")
def s3_server_fixture() -> Iterator[S3Server | None]:
    """The server of the tests, in a thread."""
    if OUTSIDE:
        yield None
        return
    with S3Server().running() as server:
        yield server


@pytest.fixture(name="s3")
def s3_fixture(s3_server: S3Server | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty place in a bucket."""
    with empty_prefix(s3_server, monkeypatch) as s3:
        yield s3


def own(s3: S3) -> S3Server:
    """The server of the tests, for what is asked of no other."""
    if s3.server is None:
        pytest.skip(f"{OUTSIDE} is not asked for this")
    return cast("S3Server", s3.server)
