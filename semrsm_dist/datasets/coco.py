"""COCO-format annotations (https://cocodataset.org/#format-data) as a dataset with instance counts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

import pyarrow as pa

from semrsm_dist.datasets.samples import Dataset, Sample, check_unique, first_few
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

_Entry = dict[str, Any]
_Id = TypeVar("_Id", int, int | str)
_ID_TYPES = (int, str)


def read_coco(annotations_json: str | os.PathLike[str], image_root: str | os.PathLike[str]) -> Dataset:
    """Images and instance counts of a COCO-format file.

    Parameters
    ----------
    annotations_json
        The file, with ``images`` (``id``, ``file_name``, and optionally ``width``, ``height``, ``group_id`` and
        ``video_id``), ``annotations`` (``image_id``, ``category_id``) and ``categories`` (``id``, ``name``).
    image_root
        The folder that ``file_name`` is relative to, and may not leave.

    Returns
    -------
    Dataset
        Samples in the order of the file, ``file_name`` being their id. Annotations in the order of the samples, then of
        the class; an image without annotations has no row, and a crowd region counts as one instance.

    Raises
    ------
    StoreNotFoundError
        When the file, the folder or some of the images are not there.
    InvalidInputError
        When the file is not COCO-format JSON, refers to an image or category that it does not list, or names an image
        outside of `image_root`.
    """
    root = Path(os.path.abspath(os.path.expanduser(image_root)))
    coco = _parse(annotations_json)
    if not root.is_dir():
        raise StoreNotFoundError(f"There is no image folder {root}; check the path.")
    samples = _samples(coco.path, coco.images, root)
    return Dataset(samples, _annotations_table([sample.sample_id for sample in samples], coco))


def read_coco_counts(annotations_json: str | os.PathLike[str]) -> tuple[list[str], pa.Table]:
    """File names and instance counts of a COCO-format file, without looking at the images.

    Returns
    -------
    file_names : list of str
        Every image that the file lists, in its order.
    annotations : pyarrow.Table
        In the schema :data:`storage_schemas.tables.ANNOTATIONS`, as :func:`read_coco` gives it.
    """
    coco = _parse(annotations_json)
    file_names = [image["file_name"] for image in coco.images]
    check_unique(file_names, str(coco.path))
    return file_names, _annotations_table(file_names, coco)


@dataclass(frozen=True)
class _Coco:
    """A COCO-format file, checked."""

    path: Path
    images: list[_Entry]
    counts: dict[str, Counter[int]]
    class_names: dict[int, str]


def _parse(annotations_json: str | os.PathLike[str]) -> _Coco:
    """Read and check a COCO-format file."""
    path = Path(os.path.expanduser(annotations_json))
    document = _read_json(path)
    images = _entries(path, document, "images", {"id": _ID_TYPES, "file_name": (str,)})
    annotations = _entries(path, document, "annotations", {"image_id": _ID_TYPES, "category_id": (int,)})
    categories = _entries(path, document, "categories", {"id": (int,), "name": (str,)})
    if not images:
        raise InvalidInputError(f"{path} lists no images; check that it is the right file.")
    file_names = _unique(path, "images", [(image["id"], image["file_name"]) for image in images])
    class_names = _unique(path, "categories", [(category["id"], category["name"]) for category in categories])
    return _Coco(path, images, _count(path, annotations, file_names, class_names), class_names)


def _read_json(path: Path) -> _Entry:
    """The JSON object in a file."""
    with storage_errors(str(path)):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"There is no annotation file {path}; check the path.") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise InvalidInputError(f"{path} is not JSON ({reason}); give a COCO-format annotation file.") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path} holds a JSON {type(document).__name__}; a COCO-format file holds an object.")
    return document


def _entries(path: Path, document: _Entry, section: str, required: dict[str, tuple[type, ...]]) -> list[_Entry]:
    """The entries of a section, each with the required keys and types."""
    if section not in document:
        raise InvalidInputError(f'{path} has no "{section}"; a COCO-format file has images, annotations and categories.')
    entries = document[section]
    if not isinstance(entries, list):
        raise InvalidInputError(f'"{section}" of {path} is not a list; give a COCO-format annotation file.')
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidInputError(f'Entry {index} of "{section}" in {path} is not an object; correct the file.')
        for key, types in required.items():
            if key not in entry:
                raise InvalidInputError(f'Entry {index} of "{section}" in {path} has no "{key}"; correct the file.')
            value = entry[key]
            if not isinstance(value, types) or isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63):
                kinds = " or ".join({int: "an integer", str: "a text"}[kind] for kind in types)
                raise InvalidInputError(
                    f'"{key}" of entry {index} of "{section}" in {path} is {value!r:.60}; expected {kinds}.'
                )
    return entries


def _unique(path: Path, section: str, pairs: Sequence[tuple[_Id, str]]) -> dict[_Id, str]:
    """The pairs as a mapping; an id that occurs twice is an error."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [str(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise InvalidInputError(f'"{section}" in {path} uses these ids more than once: {first_few(repeated)}.')
    return found


def _count(
    path: Path, annotations: list[_Entry], file_names: dict[int | str, str], class_names: dict[int, str]
) -> dict[str, Counter[int]]:
    """Instances of each class in each annotated sample."""
    counts: dict[str, Counter[int]] = {}
    for index, annotation in enumerate(annotations):
        image_id, class_id = annotation["image_id"], annotation["category_id"]
        if image_id not in file_names:
            raise InvalidInputError(
                f'Entry {index} of "annotations" in {path} is of image {image_id!r}, which "images" does not list; '
                "correct the file."
            )
        if class_id not in class_names:
            raise InvalidInputError(
                f'Entry {index} of "annotations" in {path} is of category {class_id}, which "categories" does not '
                "list; correct the file."
            )
        counts.setdefault(file_names[image_id], Counter())[class_id] += 1
    return counts


def _samples(path: Path, images: list[_Entry], root: Path) -> tuple[Sample, ...]:
    """A sample for each image; all of them are there and inside of the root."""
    real_root = root.resolve()
    samples, missing = [], []
    for index, image in enumerate(images):
        file_name = image["file_name"]
        image_path = _path_inside(path, root, real_root, file_name)
        if not image_path.is_file():
            missing.append(file_name)
        samples.append(
            Sample(
                sample_id=file_name,
                path=image_path,
                uri=image_path.as_uri(),
                group_id=_text(image.get("group_id")),
                video_id=_text(image.get("video_id")),
                width=_pixels(path, index, image, "width"),
                height=_pixels(path, index, image, "height"),
            )
        )
    if missing:
        raise StoreNotFoundError(
            f"{len(missing)} of the {len(images)} images that {path} names are not in {root}: {first_few(missing)}; "
            "check the image folder."
        )
    return tuple(samples)


def _path_inside(path: Path, root: Path, real_root: Path, file_name: str) -> Path:
    """The path of an image, once it is sure that it does not leave the root: not by name and not by a link."""
    relative = PurePath(file_name)
    try:
        inside = (
            not relative.is_absolute() and ".." not in relative.parts and (root / relative).resolve().is_relative_to(real_root)
        )
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a NUL or a lone surrogate
        inside = False
    if not inside:
        raise InvalidInputError(
            f"{path} names {file_name!a:.200}, an image outside the root named by an annotation; "
            f"only files inside {root} are read, so correct the file."
        )
    return root / relative


def _text(value: object) -> str | None:
    """An optional id as text."""
    return None if value is None else str(value)


def _pixels(path: Path, index: int, image: _Entry, key: str) -> int | None:
    """An optional width or height."""
    value = image.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InvalidInputError(
            f'"{key}" of entry {index} of "images" in {path} is {value!r:.60}; expected a number of pixels.'
        )
    return value


def _annotations_table(sample_ids: Sequence[str], coco: _Coco) -> pa.Table:
    """One row for each class of each sample."""
    rows = [
        (sample_id, class_id, coco.class_names[class_id], count)
        for sample_id in sample_ids
        for class_id, count in sorted(coco.counts.get(sample_id, Counter()).items())
    ]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in tables.ANNOTATIONS]
    return pa.table(dict(zip(tables.ANNOTATIONS.names, columns, strict=True)), schema=tables.ANNOTATIONS)
