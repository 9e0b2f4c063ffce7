"""The executor that runs tasks in this process, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from semrsm_dist.runtime.units import Outcome, Receipt, Task, Unit


class SerialExecutor:
    """Runs each task when it is polled for.

    Parameters
    ----------
    run
        Does the units of a task, as :meth:`semrsm_dist.runtime.worker.TileWorker.run`.
    """

    def __init__(self, run: Callable[[Sequence[Unit]], list[Receipt]]) -> None:
        self._run = run
        self._queue: deque[Task] = deque()

    def slots(self) -> int:
        """One."""
        return 1

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)

    def poll(self, timeout: float) -> list[Outcome]:
        """Run the first queued task."""
        if not self._queue:
            return []
        task = self._queue.popleft()
        return [Outcome(task, tuple(self._run(task.units)))]

    def abandon(self, task: Task) -> None:
        """Forget a task that has not started."""
        if task in self._queue:
            self._queue.remove(task)

    def show(self, figures: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def close(self) -> None:
        """Nothing to give back."""
