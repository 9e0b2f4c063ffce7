"""Features that another program computed, from ``.npz`` or ``.npy`` files to an activation store, without pickle."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from semrsm_dist.datasets.samples import check_unique, first_few
from storage_schemas import tables
from storage_schemas.activations import ActivationStore, samples_url
from storage_schemas.errors import InvalidInputError, NonFiniteError, SemrsmError, StoreNotFoundError
from storage_schemas.fingerprint import canonical
from storage_schemas.location import Location, storage_errors


def import_arrays(
    path: str | os.PathLike[str],
    out: str | Location,
    *,
    where: Mapping[str, str] | None = None,
    sample_id: str | None = None,
    spatial_shape: tuple[int, int] | None = None,
) -> ActivationStore:
    """Import features as an activation store, with its samples table beside it.

    Parameters
    ----------
    path
        An ``.npz`` file with ``features`` ``(N, S, C)`` or ``(N, C, H, W)``, and optionally ``logits`` ``(N, K)`` and
        ``sample_id`` ``(N,)``; or an ``.npy`` file with the features alone. Values of any floating-point type become
        float32.
    out
        Path or URL of the store, by custom ``activations/NAME.zarr``.
    where
        Keep the samples whose entry in the named array is the given text: ``{"role": "query"}``.
    sample_id
        Array that holds the sample ids instead of ``sample_id``. Without either, samples are named ``0`` to ``N - 1``
        by their row in the file.
    spatial_shape
        ``(H, W)`` of features that are given as ``(N, S, C)``; features ``(N, C, H, W)`` bring their own.

    Returns
    -------
    ActivationStore
        The complete store, ``(N, S, C)`` float32.

    Raises
    ------
    StoreNotFoundError
        When the file is not there.
    InvalidInputError
        When the file is damaged, holds Python objects, lacks an array, or holds arrays of other shapes or types.
    NonFiniteError
        When a value is NaN or infinite.
    FingerprintMismatchError
        When a store is there that was computed from something else.
    """
    path = Path(os.path.expanduser(path))
    arrays = _Arrays(path)
    features, map_shape = _positions(path, _floats(path, "features", arrays.read("features")))
    n_samples = len(features)
    logits = _floats(path, "logits", arrays.read("logits")) if "logits" in arrays.names else None
    if logits is not None and (logits.ndim != 2 or len(logits) != n_samples):
        raise InvalidInputError(f"logits in {path} have shape {logits.shape}; expected ({n_samples}, classes).")
    if map_shape is not None and spatial_shape not in (None, map_shape):
        raise InvalidInputError(f"features in {path} are maps of {map_shape}, not of {spatial_shape}; leave it out.")
    ids = _sample_ids(arrays, sample_id, n_samples)
    kept = _rows(arrays, where or {}, n_samples)
    features, logits, ids = features[kept], None if logits is None else logits[kept], [ids[row] for row in kept]
    check_unique(ids, str(path))
    _check_finite(path, "features", features, ids)
    if logits is not None:
        _check_finite(path, "logits", logits, ids)
    return _write(Location.of(out), features, logits, ids, map_shape or spatial_shape, path.name)


class _Arrays:
    """The arrays of a file, read one by one and never unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise StoreNotFoundError(f"There is no file {path}; check the path.")
        if path.suffix not in (".npz", ".npy"):
            raise InvalidInputError(f"{path} is neither an .npz nor an .npy file; save the arrays with numpy.savez.")
        self._arrays: Mapping[str, NDArray[Any]] = cast("Mapping[str, NDArray[Any]]", self._guarded(self._load))
        self.names = sorted(self._arrays)

    def read(self, name: str) -> NDArray[Any]:
        """One array."""
        if name not in self.names:
            raise InvalidInputError(f"{self.path} has no array {name!r}; it has {', '.join(self.names) or 'none'}.")
        return np.asarray(self._guarded(lambda: self._arrays[name], name))

    def read_texts(self, name: str, n_samples: int) -> list[str]:
        """One array with an entry for each sample, as texts."""
        values = self.read(name)
        if values.shape != (n_samples,):
            raise InvalidInputError(
                f"The array {name!r} in {self.path} has shape {values.shape}; expected ({n_samples},), one entry a sample."
            )
        if values.dtype.kind == "S":
            return [value.decode(errors="replace") for value in values.tolist()]
        return [str(value) for value in values.tolist()]

    def _load(self) -> Mapping[str, NDArray[Any]]:
        """The file as a mapping; members of an .npz are read when asked for."""
        with self.path.open("rb") as file:
            if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
                raise InvalidInputError(f"{self.path} is not a NumPy file whatever its name; save the arrays with numpy.savez.")
        loaded = np.load(self.path, allow_pickle=False, mmap_mode="r" if self.path.suffix == ".npy" else None)
        return {"features": loaded} if isinstance(loaded, np.ndarray) else loaded

    def _guarded(self, read: Any, name: str = "") -> Any:
        """The result of `read`, whatever NumPy raises becoming one sentence."""
        what = f"The array {name!r} in {self.path}" if name else str(self.path)
        with storage_errors(str(self.path)):
            try:
                return read()
            except SemrsmError:
                raise
            except ValueError as error:
                if "allow_pickle" in str(error) or "Python objects" in str(error):
                    raise InvalidInputError(
                        f"{what} holds Python objects, which are not read because reading them can run code; "
                        "save it as an array of numbers or texts."
                    ) from error
                raise InvalidInputError(f"{what} is damaged ({_one_line(error)}); save it again.") from error
            except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, SyntaxError, NotImplementedError) as error:
                raise InvalidInputError(f"{what} is damaged ({_one_line(error)}); save it again.") from error


def _floats(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """Floating-point values as float32."""
    if values.dtype.kind != "f":
        raise InvalidInputError(
            f"{name} in {path} are of type {values.dtype}; expected floating-point numbers, so convert them with "
            "astype('float32') if that is what they mean."
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _positions(path: Path, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[int, int] | None]:
    """Features as ``(N, S, C)``, and the shape of the map they were."""
    if features.ndim not in (3, 4) or features.size == 0:
        raise InvalidInputError(
            f"features in {path} have shape {features.shape}; expected (samples, positions, channels) or "
            "(samples, channels, height, width), none of them 0."
        )
    if features.ndim == 3:
        return features, None
    n_samples, n_channels, height, width = features.shape
    return features.reshape(n_samples, n_channels, height * width).transpose(0, 2, 1), (height, width)


def _sample_ids(arrays: _Arrays, name: str | None, n_samples: int) -> list[str]:
    """The id of every sample in the file."""
    if name is None and "sample_id" not in arrays.names:
        return [str(row) for row in range(n_samples)]
    return arrays.read_texts(name or "sample_id", n_samples)


def _rows(arrays: _Arrays, where: Mapping[str, str], n_samples: int) -> list[int]:
    """Rows of the samples that fulfil every condition."""
    conditions = [(arrays.read_texts(name, n_samples), wanted) for name, wanted in where.items()]
    kept = [row for row in range(n_samples) if all(texts[row] == wanted for texts, wanted in conditions)]
    if not kept:
        wanted_text = " and ".join(f"{name} = {value}" for name, value in where.items())
        found = "; ".join(f"{name} is one of {first_few(sorted(set(arrays.read_texts(name, n_samples))))}" for name in where)
        raise InvalidInputError(f"No sample in {arrays.path} has {wanted_text}; {found}.")
    return kept


def _check_finite(path: Path, name: str, values: NDArray[np.float32], ids: Sequence[str]) -> None:
    """Raise before a store is made."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise NonFiniteError(
            f"The {name} of sample {ids[int(np.argmin(finite))]} in {path} hold NaN, infinity or a value too large for "
            "float32; correct or leave out that sample."
        )


def _write(
    location: Location,
    features: NDArray[np.float32],
    logits: NDArray[np.float32] | None,
    ids: Sequence[str],
    spatial_shape: tuple[int, int] | None,
    source: str,
) -> ActivationStore:
    """Write what a store lacks of these arrays."""
    n_samples, n_positions, n_channels = features.shape
    store = ActivationStore.create(
        location,
        n_samples=n_samples,
        n_positions=n_positions,
        n_channels=n_channels,
        n_classes=None if logits is None else logits.shape[1],
        spatial_shape=spatial_shape,
        computed_from={
            "samples": hashlib.sha256(canonical({"samples": list(ids)}).encode()).hexdigest(),
            "n_samples": n_samples,
            "shape": list(features.shape),
            "spatial_shape": None if spatial_shape is None else list(spatial_shape),
            "features": _hash_values(features),
            "logits": None if logits is None else _hash_values(logits),
        },
        provenance={"imported_from": source},
    )
    location.sweep()
    empty = {field.name: pa.nulls(n_samples, field.type) for field in tables.SAMPLES}
    hashes = [_hash_values(sample[None]) for sample in features]  # there is no image; its features stand for it
    known = {"sample_id": pa.array(ids, pa.string()), "sha256": pa.array(hashes, pa.string())}
    table = pa.table({**empty, **known}, schema=tables.SAMPLES)
    tables.write_table(samples_url(location), table, tables.SAMPLES)
    for index in sorted({*store.missing_chunks(), *store.damaged_chunks()}):
        rows = store.chunk_slice(index)
        store.write_chunk(index, features[rows], None if logits is None else logits[rows])
    return store


def _hash_values(values: NDArray[np.float32]) -> str:
    """SHA-256 of little-endian float32 values in C order."""
    digest = hashlib.sha256()
    for row in values:
        digest.update(np.ascontiguousarray(row, dtype="<f4").tobytes())
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
