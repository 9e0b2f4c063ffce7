"""COCO-format annotations (https://cocodataset.org/#format-data) as a dataset with instance counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from semrsm_dist.datasets.annotation_file import AnnotationFile, Entry
from semrsm_dist.datasets.image_folder import named_images
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample, check_unique
from storage_schemas.errors import InvalidInputError

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
    paths = named_images(image_root, coco.file_names, coco.file.path)
    samples = tuple(
        Sample(
            sample_id=image["file_name"],
            path=path,
            uri=path.as_uri(),
            group_id=_text(image.get("group_id")),
            video_id=_text(image.get("video_id")),
            width=coco.file.pixels("images", index, image, "width"),
            height=coco.file.pixels("images", index, image, "height"),
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
    check_unique(coco.file_names, str(coco.file.path))
    return coco.file_names, coco.count()


@dataclass(frozen=True)
class _Coco:
    """A COCO-format file, checked."""

    file: AnnotationFile
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
        return count_instances(self.file_names, sample_rows, class_ids, self.class_names, self.file.path)


def _parse(annotations_json: str | os.PathLike[str]) -> _Coco:
    """Read and check a COCO-format file."""
    file = AnnotationFile.read(annotations_json, "COCO-format")
    path = file.path
    images = file.entries("images", {"id": _ID_TYPES, "file_name": (str,)})
    annotations = file.entries("annotations", {"image_id": _ID_TYPES, "category_id": (int,)})
    categories = file.entries("categories", {"id": (int,), "name": (str,)})
    if not images:
        raise InvalidInputError(f"{path} lists no images; check that it is the right file.")
    file_names = file.names_by_id("images", images, "file_name")
    class_names = file.names_by_id("categories", categories, "name")
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
    return _Coco(file, images, annotations, class_names)


def _text(value: object) -> str | None:
    """An optional id as text."""
    return None if value is None else str(value)
