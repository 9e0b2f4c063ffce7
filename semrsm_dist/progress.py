"""Progress: a bar on a terminal, a line every few seconds elsewhere, always with the time left. Goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Report(Protocol):
    """Told how far a stage is."""

    def __call__(self, done: int, total: int, /, seconds_left: float | None = None) -> None:
        """How much is done, how much there is, and how long the rest takes when the stage knows better than by counting."""


SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(label: str, unit: str, *, quiet: bool = False) -> Iterator[Report]:
    """A function ``report(done, total, seconds_left=None)`` that shows how far a stage is.

    Parameters
    ----------
    label
        What is being done, e.g. ``Extracting queries``.
    unit
        What is counted, in the plural, e.g. ``images``.
    quiet
        Show nothing.
    """
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(label, unit) as report:
            yield report
    else:
        yield _Lines(label, unit)


def _silent(done: int, total: int, /, seconds_left: float | None = None) -> None:
    """Show nothing."""


class _Left(TimeRemainingColumn):
    """The time left as the stage says it, or else by the speed of the bar."""

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("seconds_left")
        return super().render(task) if seconds is None else Text(duration(seconds), style="progress.remaining")


class _Speed(ProgressColumn):
    """How much is done a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{rate(task.speed)} {self._unit}/s")


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Report]:
    """A bar that appears with the first report and stays on the screen when it is full."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        _Speed(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        _Left(),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    bar = bars.add_task(label, total=None)
    begun = False

    def report(done: int, total: int, /, seconds_left: float | None = None) -> None:
        nonlocal begun
        if not begun:  # what an earlier run had done does not count for the speed
            bars.reset(bar, total=total, completed=done)
            begun = True
        bars.start()
        bars.update(bar, completed=done, total=total, seconds_left=seconds_left if done < total else None)
        if done >= total:  # so that the bar of the next stage begins below it
            bars.stop()

    try:
        yield report
    finally:
        bars.stop()


class _Lines:
    """A line every few seconds, and one at the end."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._begin, self._last, self._first = time.monotonic(), 0.0, -1

    def __call__(self, done: int, total: int, /, seconds_left: float | None = None) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._begin, self._first = now, done
            self._last = now if 0 < done < total else 0.0  # a start is worth a line, a first step is not
        if done < total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        elapsed, gained = now - self._begin, done - self._first
        if seconds_left is None and gained > 0:
            seconds_left = elapsed / gained * (total - done)
        left = f", {duration(seconds_left)} left" if seconds_left is not None and done < total else ""
        speed = f", {rate(gained / elapsed)} {self._unit}/s" if gained > 0 and elapsed >= 1 else ""
        share = 100 * done / total if total else 100
        sys.stderr.write(
            f"{self._label}: {done} of {total} {self._unit} ({share:.0f} %){speed}, {duration(elapsed)} elapsed{left}\n"
        )
        sys.stderr.flush()


def rate(per_second: float) -> str:
    """A speed as a person says it.

    >>> rate(0.0312), rate(7.25), rate(153.4), rate(12345)
    ('0.031', '7.2', '153', '12,345')
    """
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(7.25), duration(75), duration(7300), duration(200000)
    ('7.2 s', '1 min 15 s', '2 h 01 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"


def binary_size(count: float) -> str:
    """Bytes as a person says them.

    >>> binary_size(512), binary_size(3 * 2**20), binary_size(1.5 * 2**40)
    ('512 B', '3.0 MiB', '1.5 TiB')
    """
    for name in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or name == "TiB":
            return f"{count:.0f} B" if name == "B" else f"{count:.1f} {name}"
        count /= 1024
    raise AssertionError
