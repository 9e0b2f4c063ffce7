"""ImageNet (ILSVRC 2012, https://www.image-net.org): a folder of images for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from semrsm_dist.datasets.image_folder import absolute, find_images
from semrsm_dist.datasets.samples import Dataset, first_few
from semrsm_dist.datasets.synsets import classified_dataset, is_synset, read_synset_names
from storage_schemas.errors import InvalidInputError

Split = Literal["train", "val"]
KAGGLE_FOLDER = Path("ILSVRC", "Data", "CLS-LOC")
"""Where the splits are in the download from Kaggle."""
NAME_FILES = ("LOC_synset_mapping.txt", "words.txt")
"""Files of class names; the first that is there is read."""


def read_imagenet(root: str | os.PathLike[str], split: Split) -> Dataset:
    """Images of a split of ImageNet and their classes.

    Parameters
    ----------
    root
        The folder of ``train/nXXXXXXXX/*.JPEG`` and ``val/nXXXXXXXX/*.JPEG``, or the one that the download from Kaggle unpacks
        to. ``LOC_synset_mapping.txt`` or ``words.txt`` in it give the classes their names; without either, a class is
        called as its folder.
    split
        ``train`` or ``val``.

    Returns
    -------
    Dataset
        Samples sorted by their id, e.g. ``val/n01440764/ILSVRC2012_val_00000293.JPEG``, each with the count 1 of its class.

    Raises
    ------
    StoreNotFoundError
        When there is no such folder.
    InvalidInputError
        When images lie outside of folders of classes, or a class has no name.
    """
    root = absolute(root)
    folder = (root / KAGGLE_FOLDER if (root / KAGGLE_FOLDER).is_dir() else root) / split
    images = find_images(folder)
    synsets = [name.partition("/")[0] for name in images]
    strange = [name for name, synset in zip(images, synsets, strict=True) if not is_synset(synset)]
    if strange:
        raise InvalidInputError(
            f"{len(strange)} of {len(images)} images in {folder} are in no folder of a class such as n01440764: "
            f"{first_few(strange)}; sort them into one folder a class."
        )
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    names = {synset: synset for synset in synsets} if file is None else read_synset_names(file)
    return classified_dataset({f"{split}/{name}": path for name, path in images.items()}, synsets, names, folder)
