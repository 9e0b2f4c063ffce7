"""What an actor of a distributed extraction does: read some images, pass them through its network, write whole chunks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlparse

import torch

from semrsm_dist.datasets.samples import Sample
from semrsm_dist.extraction.allocation import keep_freed_memory
from semrsm_dist.extraction.batching import Blocks, ChunkWriter
from semrsm_dist.extraction.extract import open_flow
from semrsm_dist.extraction.model import load_again
from semrsm_dist.runtime.units import Receipt, Unit
from semrsm_dist.runtime.worker import check_packages, peak_memory_bytes
from storage_schemas.activations import ActivationStore, samples_url
from storage_schemas.errors import FingerprintMismatchError
from storage_schemas.fingerprint import canonical
from storage_schemas.tables import SAMPLES, read_table


@dataclass(frozen=True)
class ExtractionJob:
    """Everything that an actor must know; plain values, so that it travels as JSON."""

    loading: dict[str, Any]
    """How to load the model, see :attr:`VisionModel.loading`."""
    outs: tuple[str, ...]
    """URLs of the stores, already created, in the order of the model's representations."""
    size: tuple[int, int, int]
    """What every image comes to, ``(3, H, W)``."""
    batch_size: int
    threads: int
    """CPUs of an actor: its forward passes at the same time, or its threads that decode for a GPU."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The job that :meth:`to_json` described."""
        return cls(**{**values, "outs": tuple(values["outs"]), "size": tuple(values["size"])})


def make_worker(job: dict[str, Any]) -> ExtractionWorker:
    """What an actor calls."""
    return ExtractionWorker(ExtractionJob.from_json(job))


class ExtractionWorker:
    """Extracts blocks of samples with a network that stays loaded."""

    def __init__(self, job: ExtractionJob) -> None:
        keep_freed_memory()
        self._model = load_again(job.loading)
        stores = {
            name: ActivationStore.open(out, writable=True)
            for name, out in zip(self._model.representations, job.outs, strict=True)
        }
        for name, store in stores.items():
            _check_same(store, self._model.describe(name))
        self._stores = stores
        self._blocks = Blocks.of(stores, job.batch_size, layers=self._model.has_layers)
        self._samples = _samples(next(iter(stores.values())))
        self._flow = open_flow(self._model, torch.Size(job.size), job.threads)

    def run(self, units: Iterable[Unit]) -> list[Receipt]:
        """Do the units; while one is computed and written, the images of the next are decoded."""
        todo, receipts = list(units), list[Receipt]()
        while todo:  # each turn ends with all of them, or with the first that fails
            done = self._extract(todo)
            receipts += done
            todo = todo[len(done) :]
        return receipts

    def _extract(self, units: Sequence[Unit]) -> list[Receipt]:
        """Receipts of units up to the first that fails, that one included."""
        receipts: list[Receipt] = []
        missing = [self._blocks.missing_chunks_of(unit.key.row) for unit in units]
        batches = [self._blocks.batches(chunks, self._samples) for chunks in missing]
        results = self._flow.run(batch for of_unit in batches for batch in of_unit)
        for unit, chunks, of_unit in zip(units, missing, batches, strict=True):
            pairs = zip(self._stores.items(), chunks, strict=True)
            writers = {name: ChunkWriter(store, lacking) for (name, store), lacking in pairs}
            started, forward, write_seconds = datetime.now(UTC), self._flow.forward_seconds, 0.0
            error: Exception | None = None
            try:
                for _ in of_unit:
                    batch, result = next(results)
                    begin = time.perf_counter()
                    for name, writer in writers.items():
                        writer.add(batch, result[name])
                    write_seconds += time.perf_counter() - begin
            except Exception as caught:
                error = caught
            receipts.append(_receipt(unit, started, error, self._flow.forward_seconds - forward, write_seconds))
            if error is not None:
                break
        return receipts


def _receipt(unit: Unit, started: datetime, error: Exception | None, forward: float, writing: float) -> Receipt:
    """What is reported of a unit; the time that is neither forward passes nor writing is waiting for images."""
    ended = datetime.now(UTC)
    return Receipt(
        unit=unit,
        error=None if error is None else (str(error) or repr(error)).splitlines()[0],
        error_type=None if error is None else type(error).__name__,
        checksum=None,
        started=started,
        ended=ended,
        read_seconds=max((ended - started).total_seconds() - forward - writing, 0.0),
        solve_seconds=forward,
        write_seconds=writing,
        peak_memory_bytes=peak_memory_bytes(),
        node=socket.gethostname(),
        pid=os.getpid(),
    )


def _check_same(store: ActivationStore, description: dict[str, Any]) -> None:
    """Refuse to write what this node computes from another model, or with other packages, than the store was created with."""
    computed_from = store.attributes["computed_from"]
    check_packages(store.location, computed_from)
    recorded = computed_from["model"]
    if canonical(description) != canonical(recorded):
        names = [key for key in description if canonical({key: description[key]}) != canonical({key: recorded.get(key)})]
        raise FingerprintMismatchError(
            f"Node {socket.gethostname()} has another model than {store.location} was created with ({', '.join(names)}); "
            "give every node the same."
        )


def _samples(store: ActivationStore) -> list[Sample]:
    """The samples of a store, from the table beside it."""
    rows = read_table(samples_url(store.location), SAMPLES).to_pylist()
    return [Sample(path=Path(unquote(urlparse(row["uri"]).path)), **row) for row in rows]
