"""COCO-format annotations (https://cocodataset.org/#format-data) as a dataset with instance counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from semrsm_dist.datasets.annotation_file import AnnotationFile, Entry
from semrsm_dist.datasets.image_folder import named_images
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample, check_unique, first_few
from storage_schemas.errors import InvalidInputError

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
    coco = _parse(annotations_json)
    paths = named_images(image_root, coco.file_names, coco.path)
    samples = tuple(
        Sample(
            sample_id=image["file_name"],
            path=path,
            uri=path.as_uri(),
            group_id=_text(image.get("group_id")),
            video_id=_text(image.get("video_id")),
            width=_pixels(coco.path, index, image, "width"),
            height=_pixels(coco.path, index, image, "height"),
        )
        for index, (image, path) in enumerate(zip(coco.images, paths, strict=True))
    )
    return Dataset(samples, coco.count())


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
    check_unique(coco.file_names, str(coco.path))
    return coco.file_names, coco.count()


@dataclass(frozen=True)
class _Coco:
    """A COCO-format file, checked."""

    path: Path
    images: list[Entry]
    annotations: list[Entry]
    class_names: Mapping[int, str]

    @property
    def file_names(self) -> list[str]:
        """Of every image, in the order of the file."""
        return [image["file_name"] for image in self.images]

    def count(self) -> pa.Table:
        """Instances of each class in each image."""
        rows = {image["id"]: row for row, image in enumerate(self.images)}
        sample_rows = [rows[annotation["image_id"]] for annotation in self.annotations]
        class_ids = [annotation["category_id"] for annotation in self.annotations]
        return count_instances(self.file_names, sample_rows, class_ids, self.class_names, self.path)


def _parse(annotations_json: str | os.PathLike[str]) -> _Coco:
    """Read and check a COCO-format file."""
    file = AnnotationFile.read(annotations_json, "COCO-format")
    path = file.path
    images = file.entries("images", {"id": _ID_TYPES, "file_name": (str,)})
    annotations = file.entries("annotations", {"image_id": _ID_TYPES, "category_id": (int,)})
    categories = file.entries("categories", {"id": (int,), "name": (str,)})
    if not images:
        raise InvalidInputError(f"{path} lists no images; check that it is the right file.")
    file_names = _unique(path, "images", [(image["id"], image["file_name"]) for image in images])
    class_names = _unique(path, "categories", [(category["id"], category["name"]) for category in categories])
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
    return _Coco(path, images, annotations, class_names)


def _unique(path: Path, section: str, pairs: Sequence[tuple[_Id, str]]) -> dict[_Id, str]:
    """The pairs as a mapping; an id that occurs twice is an error."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [str(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise InvalidInputError(f'"{section}" in {path} uses these ids more than once: {first_few(repeated)}.')
    return found


def _text(value: object) -> str | None:
    """An optional id as text."""
    return None if value is None else str(value)


def _pixels(path: Path, index: int, image: Entry, key: str) -> int | None:
    """An optional width or height."""
    value = image.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InvalidInputError(
            f'"{key}" of entry {index} of "images" in {path} is {value!r:.60}; expected a number of pixels.'
        )
    return value
