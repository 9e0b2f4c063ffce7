"""EgoObjects v1 (https://github.com/facebookresearch/EgoObjects): frames of first-person videos with boxes of objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Literal

from semrsm_dist.datasets.annotation_file import AnnotationFile, Entry
from semrsm_dist.datasets.image_folder import absolute, named_images
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample
from storage_schemas.errors import InvalidInputError

Split = Literal["train", "eval"]
FORM = "EgoObjects v1"
_IMAGE_KEYS: dict[str, tuple[type, ...]] = {
    "id": (int,),
    "url": (str,),
    "width": (int,),
    "height": (int,),
    "group_id": (str, int),
    "video_id": (str, int),
}


def read_egoobjects(
    root: str | os.PathLike[str],
    split: Split,
    *,
    subset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    any_shape: bool = False,
) -> Dataset:
    """Images and instance counts of a split of EgoObjects v1.

    Parameters
    ----------
    root
        The folder of ``EgoObjectsV1_unified_{train,eval,metadata}.json``.
    split
        ``train`` or ``eval``.
    subset
        Keep the images of this subset: the eval split has ``val`` and ``test``.
    images
        The folder of images; ``images`` below `root` when None.
    any_shape
        Keep images of every shape, where otherwise only those of 16:9 are kept, as in the paper.

    Returns
    -------
    Dataset
        Samples in the order of the file. Their id is the file name, which the format calls ``url``. A video is its
        ``group_id`` and ``video_id`` together, since video ids are numbered anew in every group. Annotations count boxes by
        ``category_id``; boxes without one name an instance only, and do not count.

    Raises
    ------
    StoreNotFoundError
        When a file, the folder or some of the images are not there.
    InvalidInputError
        When a file is of another format, an annotation is of an unknown image or of a category without a name, an image lies
        outside of the folder, or no image is left.
    """
    root = absolute(root)
    file = AnnotationFile.read(root / f"EgoObjectsV1_unified_{split}.json", FORM)
    metadata = AnnotationFile.read(root / "EgoObjectsV1_unified_metadata.json", FORM)
    entries = file.entries("images", _IMAGE_KEYS, {"subset": (str,)})
    known = file.names_by_id("images", entries, "url")
    for index, entry in enumerate(entries):
        for key in ("width", "height"):
            file.pixels("images", index, entry, key)  # refuses what is none, such as 0
    of_subset = _of_subset(entries, subset, file.path)
    chosen = of_subset if any_shape else [entry for entry in of_subset if is_16_by_9(entry["width"], entry["height"])]
    if not chosen:
        raise InvalidInputError(f"{file.path} has no image of 16:9 among {len(of_subset):,}; take images of any shape.")
    names = [entry["url"] for entry in chosen]
    paths = named_images(root / "images" if images is None else images, names, file.path)
    sample_rows, class_ids = _instances(file, known, chosen)
    annotations = count_instances(names, sample_rows, class_ids, _class_names(metadata), file.path)
    samples = tuple(_sample(entry, path) for entry, path in zip(chosen, paths, strict=True))
    left_out = {"other subsets": len(entries) - len(of_subset), "not 16:9": len(of_subset) - len(chosen)}
    return Dataset(samples, annotations, {"left_out": {reason: count for reason, count in left_out.items() if count}})


def is_16_by_9(width: int, height: int) -> bool:
    """Whether an image is 16:9 to within a pixel of its height.

    >>> is_16_by_9(1920, 1080), is_16_by_9(854, 480), is_16_by_9(1440, 1080), is_16_by_9(1080, 1920)
    (True, True, False, False)
    """
    return abs(9 * width - 16 * height) < 16


def _of_subset(entries: list[Entry], subset: str | None, path: Path) -> list[Entry]:
    """The images of a subset; all of them when None."""
    if not entries:
        raise InvalidInputError(f"{path} lists no images; check that it is the right file.")
    if subset is None:
        return entries
    found = [entry for entry in entries if entry.get("subset") == subset]
    if not found:
        there = Counter(entry.get("subset") or "none" for entry in entries)
        subsets = ", ".join(f"{name} ({count:,} images)" for name, count in sorted(there.items()))
        raise InvalidInputError(f"{path} has no image of the subset {subset}; it has {subsets}.")
    return found


def _instances(file: AnnotationFile, known: Container[int], chosen: Sequence[Entry]) -> tuple[list[int], list[int]]:
    """Sample row and category of every box that counts."""
    rows = {entry["id"]: row for row, entry in enumerate(chosen)}
    sample_rows, class_ids = [], []
    annotations = file.entries("annotations", {"image_id": (int,)}, {"category_id": (int,)})
    for index, annotation in enumerate(annotations):
        image_id, class_id = annotation["image_id"], annotation.get("category_id")
        if image_id not in known:
            raise InvalidInputError(
                f'Entry {index} of "annotations" in {file.path} is of image {image_id}, which "images" does not list; '
                "correct the file."
            )
        if class_id is not None and image_id in rows:
            sample_rows.append(rows[image_id])
            class_ids.append(class_id)
    return sample_rows, class_ids


def _class_names(metadata: AnnotationFile) -> dict[int, str]:
    """Names of categories: ``categories`` are all of them, ``cat_det_cats`` those of the detection benchmark."""
    sections = [section for section in ("categories", "cat_det_cats") if section in metadata.document]
    keys: dict[str, tuple[type, ...]] = {"id": (int,), "name": (str,)}
    return {
        category["id"]: category["name"]
        for section in sections or ["categories"]
        for category in metadata.entries(section, keys)
    }


def _sample(entry: Entry, path: Path) -> Sample:
    """One image."""
    return Sample(
        sample_id=entry["url"],
        path=path,
        uri=path.as_uri(),
        group_id=str(entry["group_id"]),
        video_id=str(entry["video_id"]),
        width=entry["width"],
        height=entry["height"],
    )
