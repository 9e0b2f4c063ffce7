"""How far stores are and what is happening to them, seen from any machine that reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from semrsm_dist.names import Invariance
from semrsm_dist.runtime.events import EventReader
from semrsm_dist.runtime.history import History, history, kind_of
from semrsm_dist.runtime.inventory import count_units, missing_units
from semrsm_dist.runtime.pulse import PULSE_SECONDS, Pulse, read_pulse
from storage_schemas import ActivationStore, IncompleteStoreError, RsmStore, StoreNotFoundError
from storage_schemas.lease import Holder, holder_of
from storage_schemas.location import Location
from storage_schemas.rsm import events_url

_FRESH_SECONDS = 4 * PULSE_SECONDS
"""A younger pulse is believed, so that a look at a million tiles does not list them."""


@dataclass(frozen=True)
class Stage:
    """How far one store is."""

    what: str
    done: int
    planned: int
    """0 when the store is not there yet."""
    unit: str
    missing_kinds: Mapping[str, int] = field(default_factory=dict)
    """Of an RSM, how many of each kind of units are missing; empty while its driver tells the time left."""
    history: History | None = None
    """Of an RSM, what its events tell."""
    pulse: Pulse | None = None
    """What its driver said last, unless it came to an end; of activations, the driver of a pool of actors."""
    holder: Holder | None = None
    """Of an RSM, who holds its lease, or held it last without giving it back."""

    @property
    def missing(self) -> int:
        """What is still to do."""
        return self.planned - self.done

    @property
    def running(self) -> bool:
        """Whether a driver was heard of just now, and has not ended since."""
        heard = self.pulse is not None and self.pulse.seconds_ago() < _FRESH_SECONDS
        return heard and (self.holder is None or not self.holder.has_ended())

    @property
    def seconds_left(self) -> float | None:
        """Until it is finished: as the driver says, or with the workers of its last ten minutes; None when nobody knows."""
        if not self.missing:
            return 0.0 if self.planned else None
        if self.running and self.pulse is not None:
            return self.pulse.seconds_left
        return None if self.history is None else self.history.seconds_left(self.missing_kinds)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = {"what": self.what, "done": self.done, "planned": self.planned, "unit": self.unit}
        if self.pulse is not None or self.history is not None:
            told = {name: getattr(self.pulse, name) for name in ("slots", "tasks", "units")} if self.pulse else None
            plain |= {"running": told if self.running else None, "seconds_left": self.seconds_left}
        if self.history is not None:
            plain |= {"holder": None if self.holder is None else str(self.holder), "history": asdict(self.history)}
        return plain


class Observer:
    """Looks at stores, again and again if need be; what cannot have changed is not read again."""

    def __init__(self) -> None:
        self._events: dict[Location, EventReader] = {}

    def activations(self, what: str, location: Location) -> Stage:
        """How far an activation store is."""
        try:
            store = ActivationStore.open(location)
            done = store.n_chunks - len(store.missing_chunks())
        except (StoreNotFoundError, IncompleteStoreError):  # not begun, or killed while its arrays were made
            return Stage(what, 0, 0, "chunks")
        return Stage(what, done, store.n_chunks, "chunks", pulse=read_pulse(location))

    def rsm(self, what: str, location: Location, invariances: Sequence[Invariance] | None = None) -> Stage:
        """How far an RSM store is.

        Parameters
        ----------
        what
            What to call it.
        location
            The store.
        invariances
            Those that it should have; those that it has when None.
        """
        unit = "tiles and norms"
        try:
            store = RsmStore.open(location)
        except StoreNotFoundError:
            if invariances is None:
                raise
            return Stage(what, 0, 0, unit)
        there = cast("list[Invariance]", store.invariances())
        wanted = there if invariances is None else invariances
        events = self._events.setdefault(location, EventReader(events_url(location)))
        told = history(events.read())
        stage = Stage(what, 0, 0, unit, history=told, pulse=read_pulse(location), holder=holder_of(location))
        if stage.running and stage.pulse is not None:
            return replace(stage, done=stage.pulse.done, planned=stage.pulse.planned)
        present = [each for each in wanted if each in there]
        planned = count_units(store, wanted)
        unknown = planned - count_units(store, present)
        missing = missing_units(store, present)
        kinds = Counter(kind_of(unit.part, unit.invariance) for unit in missing)
        kinds.update({f"{each}, which is not begun": 1 for each in wanted if each not in there})
        return replace(stage, done=planned - unknown - len(missing), planned=planned, missing_kinds=kinds)
