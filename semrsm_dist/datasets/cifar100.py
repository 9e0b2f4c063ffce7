"""CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), from its binary files.

Its 60,000 images lie in two files. They are unpacked once, one file an image, because then everything else holds for them as
for other images: an image has an address, a hash of its own, and a thumbnail in the report. They become BMP files, since
these are the pixels behind a fixed header: the same bytes, and so the same hash, whatever wrote them.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.datasets.image_folder import absolute
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample
from semrsm_dist.datasets.synsets import read_lines
from semrsm_dist.progress import Report
from storage_schemas.errors import InvalidInputError, StoreNotFoundError
from storage_schemas.location import Location, storage_errors

Split = Literal["train", "test"]
Classes = Literal["fine", "coarse"]

SIDE = 32
"""Pixels across and down."""
RECORD_BYTES = 2 + 3 * SIDE * SIDE
"""A record is the coarse label, the fine label, and the red, green and blue planes, row by row from the top."""
_LABEL_BYTE: dict[Classes, int] = {"coarse": 0, "fine": 1}
_PICKLED = ("train", "test", "meta")  # names of the files of the Python version


def read_cifar100(
    root: str | os.PathLike[str],
    split: Split,
    unpack_to: str | os.PathLike[str],
    *,
    classes: Classes = "fine",
    report: Report | None = None,
) -> Dataset:
    """Images of a split of CIFAR-100 and their classes.

    Parameters
    ----------
    root
        The folder of the binary version: ``train.bin``, ``test.bin``, ``fine_label_names.txt``, ``coarse_label_names.txt``.
    split
        ``train`` or ``test``.
    unpack_to
        Folder that the images are unpacked to, as ``SPLIT/NUMBER.bmp``. What is there from an earlier call is kept.
    classes
        ``fine`` (100 classes) or ``coarse`` (20).
    report
        Told how many images have been unpacked.

    Returns
    -------
    Dataset
        Samples in the order of the file. Their id is e.g. ``test/00042.bmp``. Each has the count 1 of its class.

    Raises
    ------
    StoreNotFoundError
        When a file is not there.
    InvalidInputError
        When `root` holds the pickled Python version, a file is damaged, a label has no name, or `unpack_to` holds other images.
    StorageUnavailableError
        When the images cannot be written.
    """
    root = absolute(root)
    records = _read_records(root, split)
    class_names = dict(enumerate(line.strip() for line in read_lines(root / f"{classes}_label_names.txt")))
    sample_ids = [f"{split}/{number:05d}.bmp" for number in range(len(records))]
    class_ids = records[:, _LABEL_BYTE[classes]]
    annotations = count_instances(sample_ids, range(len(records)), class_ids, class_names, root / f"{split}.bin")
    folder = absolute(unpack_to)
    _unpack(records[:, 2:].reshape(-1, 3, SIDE, SIDE), folder / split, root / f"{split}.bin", report)
    paths = [folder / sample_id for sample_id in sample_ids]
    samples = (
        Sample(sample_id, path, path.as_uri(), width=SIDE, height=SIDE)
        for sample_id, path in zip(sample_ids, paths, strict=True)
    )
    return Dataset(tuple(samples), annotations)


def encode_bmp(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB image, ``(3, H, W)`` with ``W`` a multiple of 4, as a BMP file of 24 bits a pixel.

    BMP stores rows from the bottom, each as blue, green and red of its pixels, behind a header of 54 bytes.
    """
    _, height, width = pixels.shape
    body = pixels[::-1, ::-1].transpose(1, 2, 0).tobytes()
    header = struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0) + body


def _read_records(root: Path, split: Split) -> NDArray[np.uint8]:
    """The records of a split, ``(n, 3074)``, mapped from the file."""
    path = root / f"{split}.bin"
    if not path.is_file():
        if all((root / name).is_file() for name in _PICKLED):
            raise InvalidInputError(
                f"{root} holds the Python version of CIFAR-100, which is pickled; reading a pickle can run any program, so it "
                "is never done: download the binary version (cifar-100-binary.tar.gz) and name its folder."
            )
        raise StoreNotFoundError(f"There is no file {path}; name the folder of the binary version of CIFAR-100.")
    with storage_errors(str(path)):
        size = path.stat().st_size
        if size == 0 or size % RECORD_BYTES:
            raise InvalidInputError(
                f"{path} has {size:,} bytes, which are no whole records of {RECORD_BYTES:,} bytes; download it again."
            )
        return np.memmap(path, np.uint8, "r").reshape(-1, RECORD_BYTES)


def _unpack(images: NDArray[np.uint8], folder: Path, source: Path, report: Report | None) -> None:
    """Write the images that are not there yet; those that are there must be the same."""
    location = Location.of(folder)
    there = location.sizes()  # of another run that unpacks at the same time too: it writes the same, each file at once
    for number, pixels in enumerate(images):
        name, data = f"{number:05d}.bmp", encode_bmp(pixels)
        if name not in there:
            location.put(name, data)
        elif location.get(name) != data:
            raise InvalidInputError(
                f"{folder / name} is not image {number} of {source}; remove the folder, or name another one to unpack to."
            )
        if report is not None:
            report(number + 1, len(images))
