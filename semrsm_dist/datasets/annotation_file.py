"""JSON annotation files: sections of entries whose keys and types are checked, so that a mistake is told in a sentence."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semrsm_dist.datasets.samples import first_few
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

Entry = dict[str, Any]
Types = tuple[type, ...]


@dataclass(frozen=True)
class AnnotationFile:
    """A JSON file that holds an object of lists; make one with :meth:`read`."""

    path: Path
    """Where it is."""
    form: str
    """What it should be, for a sentence, e.g. ``COCO-format``."""
    document: Entry
    """What it holds."""

    @classmethod
    def read(cls, path: str | os.PathLike[str], form: str) -> AnnotationFile:
        """Parse a file; raises `StoreNotFoundError` when it is not there and `InvalidInputError` when it is no JSON object."""
        path = Path(os.path.expanduser(path))
        with storage_errors(str(path)):
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise StoreNotFoundError(f"There is no annotation file {path}; check the path.") from error
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            reason = str(error).rstrip(".")
            raise InvalidInputError(f"{path} is not JSON ({reason}); give a {form} annotation file.") from error
        if not isinstance(document, dict):
            raise InvalidInputError(f"{path} holds a JSON {type(document).__name__}; a {form} file holds an object.")
        return cls(path, form, document)

    def entries(self, section: str, required: Mapping[str, Types], optional: Mapping[str, Types] | None = None) -> list[Entry]:
        """The entries of a section.

        Parameters
        ----------
        section
            Key of the list in the file.
        required
            Keys that every entry has, and the types of their values.
        optional
            Keys that may be absent, or null, and the types of their values otherwise.

        Raises
        ------
        InvalidInputError
            When there is no such list, or an entry lacks a key or has a value of another type.
        """
        if section not in self.document:
            raise InvalidInputError(f'{self.path} has no "{section}"; check that it is a {self.form} annotation file.')
        entries = self.document[section]
        if not isinstance(entries, list):
            raise InvalidInputError(f'"{section}" of {self.path} is not a list; give a {self.form} annotation file.')
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise InvalidInputError(f'Entry {index} of "{section}" in {self.path} is not an object; correct the file.')
            for key, types in required.items():
                if key not in entry:
                    raise InvalidInputError(f'Entry {index} of "{section}" in {self.path} has no "{key}"; correct the file.')
                self._check(section, index, key, entry[key], types)
            for key, types in (optional or {}).items():
                if entry.get(key) is not None:
                    self._check(section, index, key, entry[key], types)
        return entries

    def names_by_id(self, section: str, entries: Sequence[Entry], name: str) -> dict[Any, str]:
        """The names of entries by their ``id``; an id that occurs twice is an `InvalidInputError`."""
        found = {entry["id"]: entry[name] for entry in entries}
        if len(found) < len(entries):
            repeated = [str(key) for key, count in Counter(entry["id"] for entry in entries).items() if count > 1]
            raise InvalidInputError(f'"{section}" in {self.path} uses these ids more than once: {first_few(repeated)}.')
        return found

    def pixels(self, section: str, index: int, entry: Entry, key: str) -> int | None:
        """The width or height in an entry, or None when it has none; raises `InvalidInputError` when it is no such number."""
        value = entry.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise InvalidInputError(
                f'"{key}" of entry {index} of "{section}" in {self.path} is {value!r:.60}; expected a number of pixels.'
            )
        return value

    def _check(self, section: str, index: int, key: str, value: object, types: Types) -> None:
        """Refuse a value of another type, and integers that no table can hold."""
        if not isinstance(value, types) or isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63):
            kinds = " or ".join({int: "an integer", str: "a text"}[kind] for kind in types)
            raise InvalidInputError(
                f'"{key}" of entry {index} of "{section}" in {self.path} is {value!r:.60}; expected {kinds}.'
            )
