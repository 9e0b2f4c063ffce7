"""A folder of images as a dataset."""

from __future__ import annotations

import os
from pathlib import Path

from semrsm_dist.datasets.samples import Dataset, Sample
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File names that end so, in any case, are images."""


def read_image_folder(root: str | os.PathLike[str]) -> Dataset:
    """Every image below a folder, as a dataset without annotations.

    Parameters
    ----------
    root
        The folder. Hidden files and folders are skipped (macOS leaves ``._photo.jpg`` beside ``photo.jpg``), and links
        to folders are not followed.

    Returns
    -------
    Dataset
        Samples sorted by their id, which is the POSIX path relative to `root`.

    Raises
    ------
    StoreNotFoundError
        When there is no such folder.
    InvalidInputError
        When it is a file, holds no image, or holds a name that is not valid Unicode.
    StorageUnavailableError
        When a folder cannot be read.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not root.exists():
        raise StoreNotFoundError(f"There is no folder {root}; check the path.")
    if not root.is_dir():
        raise InvalidInputError(f"{root} is a file; give the folder that the images are in.")
    paths = {path.relative_to(root).as_posix(): path for path in _image_paths(root)}
    if not paths:
        raise InvalidInputError(f"{root} holds no image whose name ends in {', '.join(EXTENSIONS)}; check the path.")
    return Dataset(tuple(Sample(name, paths[name], paths[name].as_uri()) for name in sorted(paths)))


def _image_paths(root: Path) -> list[Path]:
    """Images below a folder, in no order."""
    found = []
    with storage_errors(str(root)):
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                    found.append(Path(folder, name))
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"The file name {str(path)!a} is not valid Unicode; rename the file.") from error
    return found


def _raise(error: OSError) -> None:
    """Make `os.walk` stop at a folder that it cannot list, where it would skip it in silence."""
    raise error
