"""Images flow through a network: decoded and prepared by some threads, passed through it by others, all at the same time.

The numbers do not depend on how many threads work. On a CPU a forward pass runs on one thread, and as many run at the same time
as there are cores: with more threads inside of one pass, PyTorch would sum in another order (values of MobileNetV2 then
differ by 1e-5), and a store would depend on the machine's number of cores. On another device passes follow each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Flow(AbstractContextManager["Flow[Batch, Result]"], Generic[Batch, Result]):
    """Threads that load batches and threads that pass them through a network.

    Parameters
    ----------
    load
        Decodes and prepares a batch: ``(n, 3, H, W)``.
    forward
        Passes it through the network.
    passes
        Forward passes at the same time: one for each core that may be used, or one for a device.
    loaders
        Threads that load; half as many as there are passes, at least one, when None.
    """

    def __init__(
        self,
        load: Callable[[Batch], torch.Tensor],
        forward: Callable[[torch.Tensor], Result],
        *,
        passes: int,
        loaders: int | None = None,
    ) -> None:
        self._load, self._forward = load, forward
        self._passes = passes
        self._ahead = passes + (loaders or max(passes // 2, 1))
        self._threads_before = torch.get_num_threads()
        self._loading, self._passing = _pool("load", self._ahead - passes), _pool("forward", passes)
        self.forward_seconds = 0.0
        """Time in forward passes, summed over the threads that pass."""
        self.waiting_seconds = 0.0
        """Time that those threads waited for images."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in (self._loading, self._passing):
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def __enter__(self) -> Self:
        return self

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Result]]:
        """Batches with their results, in order; few are under way beyond those that the caller has."""
        under_way: deque[tuple[Batch, Future[Result]]] = deque()
        for batch in batches:
            loading = self._loading.submit(self._load, batch)
            under_way.append((batch, self._passing.submit(self._pass, loading)))
            if len(under_way) > self._ahead:
                yield self._first(under_way)
        while under_way:
            yield self._first(under_way)

    def once(self, function: Callable[[], Value]) -> Value:
        """What a function returns in a thread of the forward passes, where PyTorch runs as it does for batches."""
        return self._passing.submit(function).result()

    def _pass(self, loading: Future[torch.Tensor]) -> Result:
        """Wait for a batch and pass it through the network."""
        begin = time.perf_counter()
        pixels = loading.result()
        loaded = time.perf_counter()
        try:
            return self._forward(pixels)
        finally:
            self.waiting_seconds += loaded - begin
            self.forward_seconds += time.perf_counter() - loaded

    @staticmethod
    def _first(under_way: deque[tuple[Batch, Future[Result]]]) -> tuple[Batch, Result]:
        """The first batch under way with its result."""
        batch, result = under_way.popleft()
        return batch, result.result()


def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    """Threads in which PyTorch runs single-threaded, whatever the environment says."""
    return ThreadPoolExecutor(threads, name, initializer=torch.set_num_threads, initargs=(1,))
