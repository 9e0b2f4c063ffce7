"""What a store was computed from, as a canonical mapping and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from storage_schemas.errors import FingerprintMismatchError

PACKAGES = ("semrsm-dist", "numpy", "scipy", "ortools", "zarr", "obstore", "ray", "torch", "transformers", "pillow")


def canonical(computed_from: Mapping[str, Any]) -> str:
    """The one JSON text of a mapping: keys sorted, no spaces, no NaN.

    >>> canonical({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(computed_from, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(computed_from: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(computed_from).encode()).hexdigest()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two mappings, one short phrase each.

    >>> differences({"a": 1, "m": {"window": 4}}, {"a": 1, "m": {"window": 8}})
    ['m.window is 4 in the store and 8 now']
    """
    found = []
    for key in sorted({*stored, *wanted}):
        before, now = stored.get(key), wanted.get(key)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key} is {_short(before)} in the store and {_short(now)} now")
    return found


def check_same(where: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`FingerprintMismatchError`, naming what differs, unless both mappings are equal."""
    stored, wanted = json.loads(canonical(stored)), json.loads(canonical(wanted))
    if stored != wanted:
        raise FingerprintMismatchError(
            f"{where} was computed from something else: {'; '.join(differences(stored, wanted))}; "
            "choose another output, or remove the old store if it is no longer wanted."
        )


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number, for the provenance of a store."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _short(value: object) -> str:
    """A value cut to a length that fits into a sentence."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
