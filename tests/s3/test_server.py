"""The S3 server of the tests, judged by a client that is not ours: the AWS SDK for C++ in pyarrow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from pyarrow.fs import FileSelector, FileType, S3FileSystem

from tests.s3.server import ACCESS_KEY, REGION, SECRET_KEY, Bucket, S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server with one bucket."""
    with S3Server().running() as server:
        server.buckets["b"] = Bucket()
        yield server


def sdk(server: S3Server, secret_key: str = SECRET_KEY) -> S3FileSystem:
    """A client of the SDK."""
    return S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=secret_key,
        region=REGION,
        scheme="http",
        endpoint_override=server.url.removeprefix("http://"),
    )


@pytest.mark.parametrize("size", [10, 12_000_000])
def test_the_sdk_reads_what_it_wrote_whole_and_in_ranges(server: S3Server, size: int) -> None:
    client, data = sdk(server), bytes(range(256)) * (size // 256) + bytes(size % 256)
    with client.open_output_stream("b/folder/a b+c#é") as stream:  # in several parts where it is large
        stream.write(data)
    with client.open_input_file("b/folder/a b+c#é") as file:
        assert file.read() == data
        assert file.read_at(5, 3) == data[3:8]
    assert not server.buckets["b"].uploads


def test_the_sdk_lists_more_than_a_page_and_deletes(server: S3Server) -> None:
    client = sdk(server)
    for index in range(1003):
        server.buckets["b"].put(f"many/{index % 7}/{index}", b"1")
    listed = client.get_file_info(FileSelector("b/many", recursive=True))
    assert sum(info.type == FileType.File for info in listed) == 1003
    assert len(client.get_file_info(FileSelector("b/many"))) == 7
    client.delete_dir_contents("b/many")
    assert not [key for key in server.buckets["b"].objects if key.startswith("many/0")]


def test_a_wrong_secret_is_refused(server: S3Server) -> None:
    with pytest.raises(OSError, match=r"ACCESS_DENIED|[Ss]ignature"):
        sdk(server, "wrong").get_file_info(FileSelector("b/folder"))


def test_an_unsigned_request_and_half_a_body_leave_nothing(server: S3Server) -> None:
    address = urlsplit(server.url)
    for body in (b"1234", b"12"):
        with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
            connection.sendall(b"PUT /b/half HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n" + body)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))
    assert "half" not in server.buckets["b"].objects
