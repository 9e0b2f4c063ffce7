"""The samples of a source: which are kept, what they are called, and their features and logits as float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.datasets.samples import check_unique, first_few
from semrsm_dist.extraction.sources.kept_rows import KeptRows
from semrsm_dist.extraction.sources.protocol import Source, StoredArray, reading
from storage_schemas.errors import InvalidInputError, NonFiniteError


@dataclass(frozen=True)
class Layout:
    """How the features of a sample are arranged in a file."""

    n_positions: int
    """``S``."""
    n_channels: int
    """``C``."""
    channels_first: bool
    """Whether they are ``(C, H, W)``, as a map or flattened, and not ``(S, C)``."""
    spatial_shape: tuple[int, int] | None
    """``(H, W)`` when the positions form a map."""

    def arrange(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of ``n`` samples as they are in the file as ``(n, S, C)``."""
        if not self.channels_first:
            return block
        maps = block.reshape(len(block), self.n_channels, self.n_positions)
        return np.ascontiguousarray(maps.transpose(0, 2, 1))


@dataclass(frozen=True)
class Samples:
    """The samples of a source that are kept; see :func:`select_samples`."""

    where: str
    """Address of the source, for sentences."""
    ids: list[str]
    """Their names."""
    layout: Layout
    """How their features are arranged."""
    _features: KeptRows
    _logits: KeptRows | None

    @property
    def n_classes(self) -> int | None:
        """``K`` of the logits, or None without any."""
        return None if self._logits is None else self._logits.row_shape[0]

    def read_features(self, start: int, stop: int) -> NDArray[np.float32]:
        """Features ``(n, S, C)`` of some samples; raises `NonFiniteError`."""
        return self._finite("features", self.layout.arrange(self._features.read(start, stop)), start)

    def read_logits(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """Logits ``(n, K)`` of some samples; raises `NonFiniteError`."""
        return None if self._logits is None else self._finite("logits", self._logits.read(start, stop), start)

    def _finite(self, name: str, values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Values, unless one of them is not finite."""
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            sample = self.ids[start + int(np.argmin(finite))]
            raise NonFiniteError(
                f"The {name} of sample {sample} in {self.where} hold NaN, infinity or a value too large for float32; "
                "correct or leave out that sample."
            )
        return values


def select_samples(
    source: Source, where: Mapping[str, str], sample_id: str | None, spatial_shape: tuple[int, int] | None
) -> Samples:
    """Find the samples in a source, without reading their features yet.

    Parameters
    ----------
    source
        An open source with ``features``, and optionally ``logits`` and ``sample_id``.
    where, sample_id, spatial_shape
        As :func:`semrsm_dist.extraction.arrays.import_arrays` takes them.

    Raises
    ------
    InvalidInputError
        When an array is missing or damaged, is of another shape or type than it should be, or leaves no sample.
    """
    features, logits = _floats(source, "features"), None
    layout = _layout(source.where, features.shape, spatial_shape)
    n_samples = features.shape[0]
    if "logits" in source.names:
        logits = _floats(source, "logits")
        if len(logits.shape) != 2 or logits.shape[0] != n_samples:
            raise InvalidInputError(f"logits in {source.where} have shape {logits.shape}; expected ({n_samples}, classes).")
    names = _names(source, sample_id, n_samples)
    kept = _kept(source, where, n_samples)
    ids = [names[row] for row in kept]
    check_unique(ids, source.where)
    return Samples(
        source.where,
        ids,
        layout,
        KeptRows(source.where, "features", features, kept),
        None if logits is None else KeptRows(source.where, "logits", logits, kept),
    )


def _floats(source: Source, name: str) -> StoredArray:
    """An array of floating-point numbers."""
    array = source.array(name)
    if array.dtype.kind != "f":
        raise InvalidInputError(
            f"{name} in {source.where} are of type {array.dtype}; expected floating-point numbers, so convert them with "
            "astype('float32') if that is what they mean."
        )
    return array


def _layout(where: str, shape: tuple[int, ...], spatial_shape: tuple[int, int] | None) -> Layout:
    """How features of a shape are arranged."""
    if len(shape) == 4 and 0 not in shape:
        found = (shape[2], shape[3])
        if spatial_shape not in (None, found):
            raise InvalidInputError(f"features in {where} are maps of {found}, not of {spatial_shape}; leave it out.")
        return Layout(found[0] * found[1], shape[1], True, found)
    if len(shape) == 3 and 0 not in shape:
        if spatial_shape is not None and spatial_shape[0] * spatial_shape[1] != shape[1]:
            raise InvalidInputError(f"A map of {spatial_shape} does not have {shape[1]} positions.")
        return Layout(shape[1], shape[2], False, spatial_shape)
    if len(shape) == 2 and 0 not in shape and spatial_shape is not None:
        n_positions = spatial_shape[0] * spatial_shape[1]
        if shape[1] % n_positions:
            raise InvalidInputError(
                f"features in {where} have {shape[1]} values a sample, which no number of maps of {spatial_shape} has."
            )
        return Layout(n_positions, shape[1] // n_positions, True, spatial_shape)
    flat = "; for maps that were flattened, tell the spatial shape" if len(shape) == 2 else ""
    raise InvalidInputError(
        f"features in {where} have shape {shape}; expected (samples, positions, channels) or "
        f"(samples, channels, height, width), none of them 0{flat}."
    )


def _names(source: Source, sample_id: str | None, n_samples: int) -> list[str]:
    """The id of every sample in the source."""
    if sample_id is not None and sample_id.endswith(".txt") and sample_id not in source.names:
        return _lines(Path(sample_id).expanduser(), source.where, n_samples)
    if sample_id is not None or "sample_id" in source.names:
        return _texts(source, sample_id or "sample_id", n_samples)
    if source.file_names is not None:
        return _lines(source.file_names, source.where, n_samples)
    return [str(row) for row in range(n_samples)]


def _texts(source: Source, name: str, n_samples: int) -> list[str]:
    """An array with an entry for each sample, as texts."""
    array = source.array(name)
    if array.shape != (n_samples,):
        raise InvalidInputError(
            f"The array {name!r} in {source.where} has shape {array.shape}; expected ({n_samples},), one entry a sample."
        )
    with reading(source.where, name):
        values = array.read(0, n_samples).tolist()
    encoded = (value if isinstance(value, bytes) else str(value).encode(errors="replace") for value in values)
    return [value.decode(errors="replace") for value in encoded]


def _lines(path: Path, where: str, n_samples: int) -> list[str]:
    """The lines of a text file, one for each sample."""
    with reading(str(path)):
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if len(lines) != n_samples:
        raise InvalidInputError(
            f"{path} names {len(lines)} samples, and the features in {where} are of {n_samples}; correct or remove it, "
            "or say what names the samples (--sample-id)."
        )
    return lines


def _kept(source: Source, where: Mapping[str, str], n_samples: int) -> NDArray[np.int64]:
    """Rows of the samples that fulfil every condition."""
    texts = {name: _texts(source, name, n_samples) for name in where}
    kept = [row for row in range(n_samples) if all(texts[name][row] == wanted for name, wanted in where.items())]
    if not kept:
        wanted_text = " and ".join(f"{name} = {value}" for name, value in where.items())
        found = "; ".join(f"{name} is one of {first_few(sorted(set(texts[name])))}" for name in where)
        raise InvalidInputError(f"No sample in {source.where} has {wanted_text}; {found}.")
    return np.array(kept, dtype=np.int64)
