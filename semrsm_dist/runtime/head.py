"""The watch over the head of a Ray cluster: calls to Ray end when the head is lost, instead of hanging."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from storage_schemas.errors import ClusterLostError

_SECONDS_BETWEEN_CALLS = 3.0
_SILENT_CALLS = 5  # to the head; Ray itself ends the process after a minute, without a word of ours
Result = TypeVar("Result")


class Head:
    """The head of the cluster, and calls to Ray that end when it is lost: left alone, they hang until Ray ends the process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._silent = 0
        self._ended = threading.Event()
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        for run in (self._watch, self._call_one_after_the_other):
            threading.Thread(target=run, name=f"head at {address}", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the head has not been reached several times in a row."""
        return self._silent >= _SILENT_CALLS

    def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns; raises :class:`ClusterLostError` when the head is lost, whether or not it returns."""
        future: Future[Any] = Future()
        self._calls.put((function, future))
        while not self.lost:
            try:
                return cast("Result", future.result(timeout=_SECONDS_BETWEEN_CALLS))
            except TimeoutError:
                if future.done():
                    raise
        raise ClusterLostError(
            f"The Ray cluster at {self.address} does not answer any more; what is finished is kept, "
            "and the same command goes on from there with another cluster."
        )

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _call_one_after_the_other(self) -> None:
        """What the thread that talks to Ray does."""
        while True:
            function, future = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _watch(self) -> None:
        """What the thread that watches does."""
        host, _, port = self.address.rpartition(":")
        while not self._ended.wait(_SECONDS_BETWEEN_CALLS):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_BETWEEN_CALLS).close()
                self._silent = 0
            except OSError:
                self._silent += 1
