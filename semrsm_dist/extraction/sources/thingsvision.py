"""Folders that thingsvision wrote: its features, whole or in parts, and ``file_names.txt`` with the names of the samples.

``save_features`` writes ``features.hdf5`` (``features.h5`` in old releases) or ``features.npy``, and splits what is too large
into ``features_01.npy``, ``features_02.npy``, …; ``extract_features(output_dir=…)`` writes ``features_0-512.npy``,
``features_512-1024.npy``, …, a file for some batches. Its other formats are not read: ``.pt`` is a pickle, ``.txt`` holds
flattened features only, and the reader for ``.mat`` that SciPy has can crash on a damaged file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from semrsm_dist.extraction.sources import open_file
from semrsm_dist.extraction.sources.numpy_files import mapped
from semrsm_dist.extraction.sources.parts import in_order, joined
from semrsm_dist.extraction.sources.protocol import Source, StoredArray, reading
from storage_schemas.errors import InvalidInputError

_WHOLE = ("features.hdf5", "features.h5", "features.npy")
_PART = re.compile(r"features_(\d+)(?:-(\d+))?\.npy")


@contextmanager
def open_folder(folder: Path) -> Iterator[Source]:
    """The features in a folder, whole or in parts."""
    with reading(str(folder)):
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
    whole = [name for name in _WHOLE if name in found]
    parts = {name: match for name in found if (match := _PART.fullmatch(name))}
    kinds = [*whole, *list(parts)[:1]]
    if not kinds:
        raise InvalidInputError(
            f"The folder {folder} is neither a Zarr store nor has it features as thingsvision writes them "
            f"({', '.join(_WHOLE)}, features_01.npy or features_0-100.npy); save them in one of these formats, or name a file."
        )
    if len(kinds) > 1:
        raise InvalidInputError(f"The folder {folder} has {' and '.join(kinds)}; give the path of the one that is meant.")
    names = folder / "file_names.txt" if "file_names.txt" in found else None
    if whole:
        with open_file(folder / whole[0]) as source:
            yield replace(source, file_names=names)
        return
    features = _joined(folder, parts)
    yield Source(str(folder), ("features",), lambda name: features, names)


def _joined(folder: Path, parts: Mapping[str, re.Match[str]]) -> StoredArray:
    """The parts as one array, in the order of their numbers."""
    starts = {name: int(match[1]) for name, match in parts.items()}
    if all(match[2] is None for match in parts.values()):
        return joined(str(folder), {name: mapped(folder / name) for name in in_order(str(folder), starts)})
    arrays = {name: mapped(folder / name) for name in sorted(starts, key=lambda name: starts[name])}
    stop = 0
    for name, array in arrays.items():
        n_rows = array.shape[0] if array.shape else 0
        if f"{stop}-{stop + n_rows}" != f"{starts[name]}-{parts[name][2]}":
            raise InvalidInputError(
                f"The features in {folder} are in parts, and {name} holds {n_rows} samples where those from {stop} on are "
                "expected; save all parts of one extraction, and nothing else, in a folder."
            )
        stop += n_rows
    return joined(str(folder), arrays)
