"""Cityscapes (https://www.cityscapes-dataset.com): street scenes with a class for every pixel."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from semrsm_dist.datasets.image_folder import absolute, find_images
from semrsm_dist.datasets.instances import count_instances
from semrsm_dist.datasets.samples import Dataset, Sample, first_few
from semrsm_dist.progress import Report
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

Split = Literal["train", "val"]
Classes = Literal["eval19", "non-void", "all34"]

CLASS_NAMES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track"),
    *("building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    *("pole", "polegroup", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky"),
    *("person", "rider"),
    *("car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Name of each id in the label images, from 0; by category, which are void, flat, construction, object, nature and sky,
human, and vehicle."""
N_VOID = 7
"""The first ids are of the category void."""
IGNORED_IN_EVALUATION = frozenset({*range(N_VOID), 9, 10, 14, 15, 16, 18, 29, 30})
"""Ids whose pixels the benchmark does not count."""
CLASS_IDS: dict[Classes, frozenset[int]] = {
    "eval19": frozenset(range(len(CLASS_NAMES))) - IGNORED_IN_EVALUATION,
    "non-void": frozenset(range(N_VOID, len(CLASS_NAMES))),
    "all34": frozenset(range(len(CLASS_NAMES))),
}
"""Ids of each choice of classes."""
_FILE_NAME = re.compile(r"(?P<city>[^/]+)/(?P=city)_(?P<sequence>\d{6})_(?P<frame>\d{6})_leftImg8bit\.png")


def read_cityscapes(
    root: str | os.PathLike[str], split: Split, *, classes: Classes = "eval19", report: Report | None = None
) -> Dataset:
    """Images of a split of Cityscapes, and which classes are in them.

    Parameters
    ----------
    root
        The folder of ``leftImg8bit`` and ``gtFine``.
    split
        ``train`` or ``val``; the annotations of ``test`` are not published.
    classes
        Which classes count: the 19 of the benchmark, the 27 that are not void, or all 34.
    report
        Told how many label images have been read.

    Returns
    -------
    Dataset
        Samples sorted by their id, e.g. ``val/lindau/lindau_000000_000019_leftImg8bit.png``. Label images do not tell instances
        apart, so the count of a class is 1 where it has a pixel. A video is a recorded sequence of a city.

    Raises
    ------
    StoreNotFoundError
        When a folder or a label image is not there.
    InvalidInputError
        When a file is named in another way, or a label image cannot be decoded or holds an id without a name.
    """
    root = absolute(root)
    images = find_images(root / "leftImg8bit" / split)
    named = {name: match for name in images if (match := _FILE_NAME.fullmatch(name))}
    strange = [name for name in images if name not in named]
    if strange:
        raise InvalidInputError(
            f"{root / 'leftImg8bit' / split} holds images that are not named CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png: "
            f"{first_few(strange)}; move them away."
        )
    labels = [root / "gtFine" / split / name.replace("_leftImg8bit.png", "_gtFine_labelIds.png") for name in images]
    missing = [path.name for path in labels if not path.is_file()]
    if missing:
        raise StoreNotFoundError(
            f"{len(missing)} of {len(labels)} label images are not in {root / 'gtFine' / split}: {first_few(missing)}; "
            "unpack gtFine_trainvaltest.zip there."
        )
    described = _describe_all(labels, report)
    sample_ids = [f"{split}/{name}" for name in images]
    present = [
        (row, class_id) for row, label in enumerate(described) for class_id in label.class_ids if class_id in CLASS_IDS[classes]
    ]
    annotations = count_instances(
        sample_ids, [row for row, _ in present], [class_id for _, class_id in present], dict(enumerate(CLASS_NAMES)), root
    )
    samples = tuple(
        Sample(
            sample_id=sample_id,
            path=path,
            uri=path.as_uri(),
            group_id=match["city"],
            video_id=match["sequence"],
            width=label.width,
            height=label.height,
        )
        for sample_id, path, match, label in zip(sample_ids, images.values(), named.values(), described, strict=True)
    )
    return Dataset(samples, annotations)


class _LabelImage(NamedTuple):
    """What is in a label image."""

    width: int
    height: int
    class_ids: tuple[int, ...]


def _describe_all(paths: Sequence[Path], report: Report | None) -> list[_LabelImage]:
    """Read label images, several at a time: decoding them takes nearly all of the time."""
    described = []
    with ThreadPoolExecutor() as pool:
        try:
            for label in pool.map(_describe, paths):
                described.append(label)
                if report is not None:
                    report(len(described), len(paths))
        finally:
            pool.shutdown(cancel_futures=True)
    return described


def _describe(path: Path) -> _LabelImage:
    """Size and class ids of a label image."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, (width, height), pixels = image.mode, image.size, image.histogram()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InvalidInputError(f"The label image {path} cannot be decoded ({reason}); unpack it again.") from error
    if mode != "L":
        raise InvalidInputError(f"{path} has pixels of mode {mode}; expected 8-bit class ids, as in *_labelIds.png.")
    class_ids = tuple(class_id for class_id, count in enumerate(pixels) if count)
    nameless = [str(class_id) for class_id in class_ids if class_id >= len(CLASS_NAMES)]
    if nameless:
        raise InvalidInputError(
            f"{path} holds class ids without a name: {first_few(nameless)}; Cityscapes has 0 to {len(CLASS_NAMES) - 1}, "
            "so use *_labelIds.png as they were published."
        )
    return _LabelImage(width, height, class_ids)
