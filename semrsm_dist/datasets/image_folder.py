"""A folder of images: all of them, or those that an annotation file names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from semrsm_dist.datasets.samples import Dataset, Sample, first_few
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import storage_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File names that end so, in any case, are images."""


def read_image_folder(root: str | os.PathLike[str]) -> Dataset:
    """Every image below a folder, as a dataset without annotations.

    Parameters
    ----------
    root
        The folder, searched as :func:`find_images` does.

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
    return Dataset(tuple(Sample(name, path, path.as_uri()) for name, path in find_images(root).items()))


def find_images(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Every image below a folder: POSIX path relative to it, sorted, to the image.

    Hidden files and folders are skipped (macOS leaves ``._photo.jpg`` beside ``photo.jpg``), and links to folders are not
    followed. Raises what :func:`read_image_folder` does.
    """
    root = absolute(root)
    if not root.exists():
        raise StoreNotFoundError(f"There is no folder {root}; check the path.")
    if not root.is_dir():
        raise InvalidInputError(f"{root} is a file; give the folder that the images are in.")
    paths = {path.relative_to(root).as_posix(): path for path in _image_paths(root)}
    if not paths:
        raise InvalidInputError(f"{root} holds no image whose name ends in {', '.join(EXTENSIONS)}; check the path.")
    return dict(sorted(paths.items()))


def named_images(root: str | os.PathLike[str], names: Sequence[str], named_by: Path) -> list[Path]:
    """The images that an annotation file names, all of them there and inside of the root.

    Parameters
    ----------
    root
        The folder that the names are relative to, and may not leave: not by name and not by a link.
    names
        File names.
    named_by
        The annotation file, for the sentences.

    Raises
    ------
    StoreNotFoundError
        When the folder or some of the images are not there.
    InvalidInputError
        When a name leads outside of the root.
    """
    root = absolute(root)
    if not root.is_dir():
        raise StoreNotFoundError(f"There is no image folder {root}; check the path.")
    real_root = root.resolve()
    paths = [_path_inside(root, real_root, name, named_by) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        raise StoreNotFoundError(
            f"{len(missing)} of the {len(names)} images that {named_by} names are not in {root}: {first_few(missing)}; "
            "check the image folder."
        )
    return paths


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path of the user, from the root of the file system, with links as they are."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _path_inside(root: Path, real_root: Path, name: str, named_by: Path) -> Path:
    """The path of an image, once it is sure that it does not leave the root."""
    relative = PurePath(name)
    try:
        inside = (
            not relative.is_absolute() and ".." not in relative.parts and (root / relative).resolve().is_relative_to(real_root)
        )
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a NUL or a lone surrogate
        inside = False
    if not inside:
        raise InvalidInputError(
            f"{named_by} names {name!a:.200}, an image outside the root named by an annotation; "
            f"only files inside {root} are read, so correct the file."
        )
    return root / relative


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
