"""Activation stores: what a network computed at every position of every image.

``features`` is ``(N, S, C)``: samples, positions, channels; ``logits`` is ``(N, K)`` when the model classifies. A chunk
holds whole samples and is written by one writer, so that extraction resumes at the granularity of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from storage_schemas import groups
from storage_schemas.errors import DamagedChunkError, IncompleteStoreError, InvalidInputError, NonFiniteError
from storage_schemas.fingerprint import fingerprint
from storage_schemas.location import Location, storage_errors

SCHEMA, VERSION = "activations", 1
CHUNK_BYTES = 16 * 2**20
"""Target size in bytes of an uncompressed chunk of features."""
_DIVISORS = (100, 50, 25, 20, 10, 5, 4, 2, 1)  # of the default tile size, so that a block reads whole chunks


def default_chunk_samples(n_positions: int, n_channels: int, itemsize: int = 4) -> int:
    """Samples per chunk: the largest divisor of 100 whose chunk is at most :data:`CHUNK_BYTES`.

    >>> default_chunk_samples(49, 1280)
    50
    """
    sample_bytes = n_positions * n_channels * itemsize
    return next((count for count in _DIVISORS if count * sample_bytes <= CHUNK_BYTES), 1)


@dataclass(frozen=True)
class ActivationStore:
    """Features (and logits) of ``N`` samples in a Zarr group; make one with :meth:`create` or :meth:`open`."""

    location: Location
    """Where the group is."""
    group: zarr.Group
    """The Zarr group, for its attributes."""

    @classmethod
    def create(
        cls,
        url: str | Location,
        *,
        n_samples: int,
        n_positions: int,
        n_channels: int,
        computed_from: Mapping[str, Any],
        n_classes: int | None = None,
        spatial_shape: Sequence[int] | None = None,
        dtype: str = "float32",
        chunk_samples: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create a store, or open the existing one to go on with it.

        Parameters
        ----------
        url
            Directory or object-store URL, by custom ending in ``.zarr``.
        n_samples, n_positions, n_channels
            ``N``, ``S`` and ``C`` of the features.
        computed_from
            Everything the numbers depend on (model, preprocessing, samples); the store's fingerprint is made of it.
        n_classes
            ``K`` of the logits, or None when the model does not classify.
        spatial_shape
            ``(H, W)`` with ``H * W == n_positions`` when the positions form a map.
        dtype
            ``float32`` or ``float16``.
        chunk_samples
            Samples per chunk; chosen by size when None.
        provenance
            Further attributes that are for the reader and not part of the fingerprint.

        Raises
        ------
        FingerprintMismatchError
            When a store is there that was computed from something else.
        """
        location = Location.of(url)
        if min(n_samples, n_positions, n_channels) < 1:
            raise InvalidInputError(
                f"{location} would hold {n_samples} samples of {n_positions} positions and {n_channels} channels; "
                "each must be at least 1."
            )
        if dtype not in ("float32", "float16"):
            raise InvalidInputError(f"Activations are stored as float32 or float16, not as {dtype}.")
        if spatial_shape is not None and int(np.prod(spatial_shape)) != n_positions:
            raise InvalidInputError(f"A map of {tuple(spatial_shape)} does not have {n_positions} positions.")
        chunk = chunk_samples or default_chunk_samples(n_positions, n_channels, np.dtype(dtype).itemsize)
        group = groups.create_group(
            location,
            SCHEMA,
            VERSION,
            {**computed_from, "stored_as": {"shape": [n_samples, n_positions, n_channels], "dtype": dtype}},
            {"spatial_shape": list(spatial_shape) if spatial_shape else None, **(provenance or {})},
        )
        names = ("sample", "position", "channel")
        shapes: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {"features": ((n_samples, n_positions, n_channels), names)}
        if n_classes is not None:
            shapes["logits"] = ((n_samples, n_classes), ("sample", "class"))
        for path, (shape, dimension_names) in shapes.items():
            groups.create_array(
                location,
                path,
                shape=shape,
                chunks=(min(chunk, n_samples), *shape[1:]),
                dtype=dtype,
                dimension_names=dimension_names,
                compressors=[ZstdCodec(level=1)],
            )
        return cls(location, group)

    @classmethod
    def open(cls, url: str | Location, *, writable: bool = False) -> Self:
        """Open an existing store; raises `StoreNotFoundError` or `SchemaVersionError`."""
        location = Location.of(url)
        return cls(location, groups.open_group(location, SCHEMA, VERSION, writable=writable))

    @cached_property
    def _features(self) -> zarr.Array[Any]:
        return groups.open_array(self.location, "features", writable=not self.group.store.read_only)

    @cached_property
    def _logits(self) -> zarr.Array[Any]:
        return groups.open_array(self.location, "logits", writable=not self.group.store.read_only)

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's attributes."""
        return dict(self.group.attrs)

    @property
    def fingerprint(self) -> str:
        """Hash of everything the numbers depend on."""
        return str(self.group.attrs["fingerprint"])

    @property
    def n_samples(self) -> int:
        """``N``."""
        return int(self._features.shape[0])

    @property
    def n_positions(self) -> int:
        """``S``."""
        return int(self._features.shape[1])

    @property
    def n_channels(self) -> int:
        """``C``."""
        return int(self._features.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the features on disk."""
        return self._features.dtype

    @property
    def spatial_shape(self) -> tuple[int, int] | None:
        """``(H, W)`` of the map, or None when the positions do not form one."""
        shape = cast("list[int] | None", self.group.attrs.get("spatial_shape"))
        return (shape[0], shape[1]) if shape else None

    @property
    def has_logits(self) -> bool:
        """Whether the model classifies."""
        return self.location.exists("logits/zarr.json")

    @property
    def chunk_samples(self) -> int:
        """Samples per chunk."""
        return int(self._features.chunks[0])

    @property
    def n_chunks(self) -> int:
        """How many chunks the samples fill."""
        return -(-self.n_samples // self.chunk_samples)

    def chunk_slice(self, index: int) -> slice:
        """The samples of a chunk."""
        start = index * self.chunk_samples
        return slice(start, min(start + self.chunk_samples, self.n_samples))

    def missing_chunks(self) -> list[int]:
        """Chunks that are not there yet, ascending, from one directory listing."""
        sizes = self.location.sizes()
        present = {index[0] for index in groups.chunk_indices(sizes, "features")}
        if self.has_logits:
            present &= {index[0] for index in groups.chunk_indices(sizes, "logits")}
        return [index for index in range(self.n_chunks) if index not in present]

    def lacks_chunk(self, index: int) -> bool:
        """Whether a chunk is not there yet, without a listing."""
        paths = [f"features/c/{index}/0/0", *([f"logits/c/{index}/0"] if self.has_logits else [])]
        return not all(self.location.exists(path) for path in paths)

    def amend(self, computed_from: Mapping[str, Any]) -> None:
        """Record what the rest of an unfinished store is computed from, for a caller who knows that what is there agrees."""
        stored = cast("Mapping[str, Any]", self.group.attrs["computed_from"])
        amended = {**stored, **computed_from}
        writable = groups.open_group(self.location, SCHEMA, VERSION, writable=True)
        with storage_errors(str(self.location)):
            writable.update_attributes({"computed_from": amended, "fingerprint": fingerprint(amended)})

    def damaged_chunks(self) -> list[int]:
        """Chunks that are there and whose bytes do not match their checksums; reads everything."""
        missing = set(self.missing_chunks())
        return [index for index in range(self.n_chunks) if index not in missing and not self.is_whole(index)]

    def delete_chunk(self, index: int) -> None:
        """Remove one chunk, so that the next extraction computes it."""
        self.location.delete(f"features/c/{index}/0/0")
        self.location.delete(f"logits/c/{index}/0")

    def write_chunk(self, index: int, features: NDArray[Any], logits: NDArray[Any] | None = None) -> None:
        """Write one chunk.

        Parameters
        ----------
        index
            Number of the chunk.
        features
            ``(n, S, C)``, where ``n`` is the number of samples of this chunk.
        logits
            ``(n, K)`` when the store has logits.

        Raises
        ------
        NonFiniteError
            When a value is NaN or infinite (or overflows the stored type).
        """
        samples = self.chunk_slice(index)
        expected = (samples.stop - samples.start, self.n_positions, self.n_channels)
        if features.shape != expected:
            raise InvalidInputError(
                f"Chunk {index} of {self.location} takes features of shape {expected}, not {features.shape}."
            )
        checked = self._checked(features, "features", samples)
        if self.has_logits:
            if logits is None:
                raise InvalidInputError(f"{self.location} has logits; chunk {index} was given without them.")
            groups.write_selection(self.location, self._logits, self._checked(logits, "logits", samples), samples, slice(None))
        groups.write_selection(self.location, self._features, checked, samples, slice(None), slice(None))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Features of the samples ``start:stop``, ``(n, S, C)``; raises `NonFiniteError` and `DamagedChunkError`."""
        samples = slice(start, min(stop, self.n_samples))
        values = groups.read_selection(self.location, self._features, samples, slice(None), slice(None))
        if not np.isfinite(values).all():
            raise IncompleteStoreError(
                f"{self.location} has no features for some of the samples {start} to {stop - 1}; finish its extraction first."
            )
        return values

    def read_logits(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Logits of the samples ``start:stop``, ``(n, K)``."""
        samples = slice(start, self.n_samples if stop is None else stop)
        return groups.read_selection(self.location, self._logits, samples, slice(None))

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Features chunk by chunk, in order."""
        for index in range(self.n_chunks):
            samples = self.chunk_slice(index)
            yield samples, self.read(samples.start, samples.stop)

    def require_complete(self) -> None:
        """Raise :class:`IncompleteStoreError` while a chunk is missing."""
        missing = self.missing_chunks()
        if missing:
            raise IncompleteStoreError(
                f"{self.location} lacks {len(missing)} of {self.n_chunks} chunks; run its extraction again to finish it."
            )

    def is_whole(self, index: int) -> bool:
        """Whether a chunk can be read."""
        samples = self.chunk_slice(index)
        try:
            self.read(samples.start, samples.stop)
            if self.has_logits:
                self.read_logits(samples.start, samples.stop)
        except (DamagedChunkError, IncompleteStoreError):
            return False
        return True

    def _checked(self, values: NDArray[Any], what: str, samples: slice) -> NDArray[Any]:
        """Values in the stored type, refused where one is not finite."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
        if not finite.all():
            first = samples.start + int(np.argmin(finite))
            raise NonFiniteError(
                f"The {what} of sample {first} hold NaN, infinity or a value too large for {self.dtype}; "
                f"{self.location} refuses them."
            )
        return stored


def samples_url(store: Location) -> Location:
    """Where the samples table of an activation store is: ``NAME.samples.parquet`` beside ``NAME.zarr``."""
    return store.parent / f"{store.name.removesuffix('.zarr')}.samples.parquet"
