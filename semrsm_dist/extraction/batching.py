"""From samples to forward passes to chunks: batches that never cross a unit of work, and chunks put together from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from semrsm_dist.datasets.samples import Sample
from semrsm_dist.extraction.vision_model import Representation
from semrsm_dist.grid import DEFAULT_TILE_SIZE, TileKey
from semrsm_dist.runtime.units import Unit
from storage_schemas.activations import ActivationStore

LAYER_BLOCK = DEFAULT_TILE_SIZE
"""Samples of a unit of work when layers are asked for by name: chunks of every store are divisors of it."""


Missing = tuple[frozenset[int], ...]
"""Chunks that each store lacks."""


class Batch(NamedTuple):
    """Samples that go through the network together."""

    start: int
    """Row of the first."""
    samples: tuple[Sample, ...]
    """The samples, in order."""

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.samples)


class Blocks(NamedTuple):
    """The units of work of an extraction: so many samples each, which are whole chunks of every store."""

    stores: tuple[ActivationStore, ...]
    """One for each representation."""
    size: int
    """Samples of a block."""
    batch_size: int
    """Images in a forward pass."""

    @classmethod
    def of(cls, stores: Mapping[str, ActivationStore], batch_size: int, *, layers: bool) -> Blocks:
        """The blocks of stores: a chunk of the only one, or a fixed number where layers were asked for by name.

        So the numbers of a layer do not depend on which other layers are extracted with it, now or later.
        """
        each = tuple(stores.values())
        return cls(each, LAYER_BLOCK if layers else each[0].chunk_samples, batch_size)

    @property
    def n_samples(self) -> int:
        """``N``."""
        return self.stores[0].n_samples

    def rows(self, block: int) -> slice:
        """The samples of a block."""
        return slice(block * self.size, min((block + 1) * self.size, self.n_samples))

    def missing_chunks(self) -> Missing:
        """Chunks that each store lacks, from one listing of each."""
        return tuple(frozenset(store.missing_chunks()) for store in self.stores)

    def missing_chunks_of(self, block: int) -> Missing:
        """Those of one block, without a listing: there may be thousands of blocks."""
        rows = self.rows(block)
        return tuple(
            frozenset(
                chunk
                for chunk in range(rows.start // store.chunk_samples, (rows.stop - 1) // store.chunk_samples + 1)
                if store.lacks_chunk(chunk)
            )
            for store in self.stores
        )

    def with_chunks(self, missing: Missing) -> list[int]:
        """The blocks that chunks are of, ascending."""
        pairs = zip(self.stores, missing, strict=True)
        return sorted({store.chunk_slice(chunk).start // self.size for store, chunks in pairs for chunk in chunks})

    def batches(self, missing: Missing, samples: Sequence[Sample]) -> list[Batch]:
        """The batches that missing chunks need, in order."""
        wanted = [(store.chunk_samples, chunks) for store, chunks in zip(self.stores, missing, strict=True)]
        batches = []
        for block in self.with_chunks(missing):
            rows = self.rows(block)
            for start in range(rows.start, rows.stop, self.batch_size):
                stop = min(start + self.batch_size, rows.stop)
                if any(not chunks.isdisjoint(range(start // size, (stop - 1) // size + 1)) for size, chunks in wanted):
                    batches.append(Batch(start, tuple(samples[start:stop])))
        return batches


def unit_of(block: int) -> Unit:
    """A block as the dispatch loop takes it."""
    return Unit(TileKey(block, 0), "none", "activations")


class ChunkWriter:
    """Puts the batches of one store together and writes each chunk that it lacks as soon as it is whole.

    Batches and writer must be of the same missing chunks: a copy of the task may write some meanwhile.
    """

    def __init__(self, store: ActivationStore, missing: frozenset[int]) -> None:
        self._store, self._missing = store, missing
        self._parts: list[Representation] = []

    def add(self, batch: Batch, result: Representation) -> None:
        """Take the next batch."""
        size = self._store.chunk_samples
        for chunk in range(batch.start // size, (batch.stop - 1) // size + 1):
            if chunk not in self._missing:
                continue
            rows = self._store.chunk_slice(chunk)
            start, stop = max(rows.start, batch.start), min(rows.stop, batch.stop)
            self._parts.append(result.rows(start - batch.start, stop - batch.start))
            if stop == rows.stop:
                self._write(chunk)

    def _write(self, chunk: int) -> None:
        """Write one chunk."""
        logits = [part.logits for part in self._parts if part.logits is not None]
        features = np.concatenate([part.features for part in self._parts])
        self._store.write_chunk(chunk, features, np.concatenate(logits) if logits else None)
        self._parts = []
