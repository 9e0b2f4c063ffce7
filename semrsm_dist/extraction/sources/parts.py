"""Arrays that were saved in parts, as one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.extraction.sources.protocol import StoredArray
from storage_schemas.errors import InvalidInputError


def in_order(where: str, numbers: Mapping[str, int]) -> list[str]:
    """Names of parts by their numbers; raises `InvalidInputError` unless these are 1, 2, 3, …"""
    names = sorted(numbers, key=lambda name: numbers[name])
    for expected, name in enumerate(names, start=1):
        if numbers[name] != expected:
            raise InvalidInputError(
                f"The features in {where} are in parts, and there is {name} where part {expected} is expected; "
                "save all parts, numbered from 1."
            )
    return names


def joined(where: str, parts: Mapping[str, StoredArray]) -> StoredArray:
    """Parts of one array as the array, without reading them.

    Parameters
    ----------
    where
        Where the parts are, for sentences.
    parts
        The parts by name, in order.

    Returns
    -------
    StoredArray
        Their rows, those of the first part first.

    Raises
    ------
    InvalidInputError
        When two parts differ in more than their number of rows.
    """
    arrays = list(parts.values())
    first_name, first = next(iter(parts.items()))
    for name, array in parts.items():
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype or not array.shape:
            raise InvalidInputError(
                f"{first_name} and {name} in {where} are parts of one array, but of shapes {first.shape} and {array.shape} "
                f"and types {first.dtype} and {array.dtype}; save them anew."
            )
    ends = np.cumsum([array.shape[0] for array in arrays]).tolist()
    starts = [0, *ends[:-1]]

    def read(start: int, stop: int) -> NDArray[np.generic]:
        pieces = [
            array.read(max(start, begin) - begin, min(stop, end) - begin)
            for array, begin, end in zip(arrays, starts, ends, strict=True)
            if max(start, begin) < min(stop, end)
        ]
        return np.concatenate(pieces) if pieces else first.read(0, 0)

    return StoredArray((ends[-1], *first.shape[1:]), first.dtype, read)
