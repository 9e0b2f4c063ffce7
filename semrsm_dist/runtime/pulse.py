"""The pulse of a run: what it is doing now, in a small object beside the store that ``semrsm status`` reads from anywhere.

The object is ``NAME.pulse.json`` beside ``NAME.zarr``, written every few seconds by the driver and removed at the end. Like the
events it is a record, not the state of the run: losing it loses nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from storage_schemas.errors import StorageUnavailableError
from storage_schemas.location import Location

PULSE_SECONDS = 5.0
"""How often it is written."""


@dataclass(frozen=True)
class Pulse:
    """What a driver is doing."""

    at: datetime
    done: int
    """Units in the store."""
    planned: int
    set_aside: int
    """Units that were given up in this run."""
    slots: int
    """Tasks that can run at once."""
    tasks: int
    """Tasks in flight: running, or queued for a worker."""
    units: int
    """Units in them."""
    oldest_seconds: float
    """Since the submission of the oldest of these tasks."""
    seconds_left: float | None
    """Until everything is done."""

    @classmethod
    def from_json(cls, data: bytes) -> Self | None:
        """The pulse that an object describes, or None when it describes none."""
        try:
            values: dict[str, Any] = json.loads(data)
            return cls(**{**values, "at": datetime.fromisoformat(values["at"]).astimezone(UTC)})
        except (ValueError, TypeError, KeyError):
            return None

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=1, default=datetime.isoformat).encode()

    def seconds_ago(self) -> float:
        """How long ago it was written, by this machine's clock."""
        return max((datetime.now(UTC) - self.at).total_seconds(), 0.0)


def write_pulse(store: Location, pulse: Pulse) -> None:
    """Write the pulse of the run that writes a store."""
    store.parent.put(_name(store), replace(pulse, at=pulse.at.astimezone(UTC)).to_json())


def read_pulse(store: Location) -> Pulse | None:
    """The last pulse of a run that is not over, or None."""
    data = store.parent.peek(_name(store))
    return None if data is None else Pulse.from_json(data)


def end_pulse(store: Location) -> None:
    """Remove the pulse, if storage lets us."""
    try:
        store.parent.delete(_name(store))
    except StorageUnavailableError:
        return


def _name(store: Location) -> str:
    return f"{store.name.removesuffix('.zarr')}.pulse.json"
