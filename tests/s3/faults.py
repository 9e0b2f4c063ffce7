"""An HTTP proxy that spoils a share of the requests, by a script that is the same in every run."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal["refuse", "stall", "drop", "forget", "cut", "shorten"]
"""What can happen to a request.

refuse: 503 SlowDown, and the server never sees it. stall: no answer for a while. drop: the connection closes, and the server
never sees it. forget: the server does it, and the connection closes before its answer. cut: the connection closes amid the
body, of an upload on its way there or of an answer on its way back. shorten: half of an answer, with the length of the half.
"""
SEEN_BY_THE_CLIENT: tuple[Fault, ...] = get_args(Fault)[:-1]
"""Faults after which HTTP itself says that something is wrong."""

Script = Callable[[str, str, int], Fault | None]
"""What happens to a request of this method and target, asked for the n-th time (from 0)."""


@dataclass(frozen=True)
class RandomFaults:
    """Faults for a share of the requests, drawn from the seed, the request and how often it was tried: not from their order."""

    seed: int
    share: float
    kinds: tuple[Fault, ...] = SEEN_BY_THE_CLIENT

    def __call__(self, method: str, target: str, attempt: int) -> Fault | None:
        """What happens to a request."""
        digest = hashlib.sha256(f"{self.seed} {method} {target} {attempt}".encode()).digest()
        if int.from_bytes(digest[:8]) >= self.share * 2**64:
            return None
        return self.kinds[int.from_bytes(digest[8:16]) % len(self.kinds)]


@dataclass
class FaultyProxy:
    """A proxy in front of an endpoint; :meth:`running` starts it in a thread on a free port of this machine."""

    endpoint: str
    """Where requests go."""
    script: Script = lambda method, target, attempt: None
    """What happens to them."""
    stall_seconds: float = 1.0
    injected: Counter[Fault] = field(default_factory=Counter)
    """How often each fault has happened."""
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each method and target has been asked for."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def decide(self, method: str, target: str) -> Fault | None:
        """Ask the script about a request."""
        with self.lock:
            attempt = self.tried[method, target]
            self.tried[method, target] += 1
            fault = self.script(method, target, attempt)
            if fault:
                self.injected[fault] += 1
            return fault

    @contextmanager
    def running(self) -> Iterator[str]:
        """The proxy's own endpoint, until the block ends."""
        server = _Server(self)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="proxy", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""


class _Connection(BaseHTTPRequestHandler):
    """One connection from a client, and one to the server for each request."""

    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = 60

    def pass_on(self) -> None:
        """Forward a request and its answer, or spoil either."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.decide(self.command, self.path)
        if fault == "refuse":
            self.answer(
                503, "Slow Down", [], b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
            )
            return
        if fault == "drop":
            self.hang_up()
            return
        if fault == "cut" and body:
            self.forward(body, len(body) // 2).close()
            self.hang_up()
            return
        upstream = self.forward(body, len(body))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        if fault == "stall":
            time.sleep(self.server.proxy.stall_seconds)
        if fault == "forget":
            self.hang_up()
            return
        headers = [
            (name, value) for name, value in response.getheaders() if name.lower() not in ("content-length", "connection")
        ]
        half = len(data) // 2
        if fault == "cut" and data:
            self.answer(response.status, response.reason, headers, data[:half], len(data))
            self.hang_up()
        elif fault == "shorten":
            self.answer(response.status, response.reason, headers, data[:half])
        else:
            length = response.getheader("Content-Length")
            self.answer(response.status, response.reason, headers, data, int(length) if length else None)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on  # noqa: N815 - http.server's names

    def forward(self, body: bytes, length: int) -> HTTPConnection:
        """Send the request on as it came, signature and all, with the first ``length`` bytes of its body."""
        address = urlsplit(self.server.proxy.endpoint)
        upstream = HTTPConnection(str(address.hostname), address.port, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body[:length])
        return upstream

    def answer(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        """Respond, with a length that need not be the body's."""
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def hang_up(self) -> None:
        """Close the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
