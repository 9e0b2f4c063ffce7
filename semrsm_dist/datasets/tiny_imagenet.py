"""Tiny-ImageNet (http://cs231n.stanford.edu/tiny-imagenet-200.zip): 200 classes at 64 × 64 pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from semrsm_dist.datasets.image_folder import absolute, find_images
from semrsm_dist.datasets.samples import Dataset, check_unique, first_few
from semrsm_dist.datasets.synsets import classified_dataset, read_lines, read_synset_names
from storage_schemas.errors import InvalidInputError

Split = Literal["train", "val"]


def read_tiny_imagenet(root: str | os.PathLike[str], split: Split) -> Dataset:
    """Images of a split of Tiny-ImageNet and their classes.

    Parameters
    ----------
    root
        The folder of ``train/nXXXXXXXX/images/*.JPEG``, ``val/images/*.JPEG``, ``val/val_annotations.txt``, ``wnids.txt`` and
        ``words.txt``.
    split
        ``train`` or ``val``; the classes of ``test`` are not published.

    Returns
    -------
    Dataset
        Samples sorted by their id, e.g. ``val/images/val_0.JPEG``, each with the count 1 of its class.

    Raises
    ------
    StoreNotFoundError
        When a file or folder is not there.
    InvalidInputError
        When an image has no class, a class is not in ``wnids.txt``, or it has no name.
    """
    root = absolute(root)
    if split == "train":
        images = find_images(root / "train")
        where = root / "train"
        synsets = [name.partition("/")[0] for name in images]
    else:
        images = {f"images/{name}": path for name, path in find_images(root / "val" / "images").items()}
        where = root / "val" / "val_annotations.txt"
        synsets = _validation_synsets(where, images)
    _check_classes(root / "wnids.txt", synsets, where)
    names = read_synset_names(root / "words.txt")
    return classified_dataset({f"{split}/{name}": path for name, path in images.items()}, synsets, names, where)


def _validation_synsets(path: Path, images: Mapping[str, Path]) -> list[str]:
    """The class of each image of the validation split."""
    rows = [line.split("\t") for line in read_lines(path)]
    short = [index + 1 for index, row in enumerate(rows) if len(row) < 2]
    if short:
        raise InvalidInputError(f"Line {short[0]} of {path} is not a file name, a tab and a class; unpack it again.")
    check_unique((row[0] for row in rows), str(path))
    synset_of = {f"images/{row[0]}": row[1].strip() for row in rows}
    unknown = [name for name in synset_of if name not in images]
    missing = [name for name in images if name not in synset_of]
    if unknown or missing:
        what = f"names images that are not there: {first_few(unknown)}" if unknown else f"lacks {first_few(missing)}"
        raise InvalidInputError(f"{path} {what}; unpack the data set again.")
    return [synset_of[name] for name in images]


def _check_classes(path: Path, synsets: Sequence[str], where: Path) -> None:
    """Refuse a class that is not one of the data set."""
    known = {line.strip() for line in read_lines(path)}
    unknown = sorted(set(synsets) - known)
    if unknown:
        raise InvalidInputError(f"{where} has classes that {path.name} does not list: {first_few(unknown)}; correct the files.")
