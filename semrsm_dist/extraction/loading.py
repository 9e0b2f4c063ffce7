"""Images of a batch, decoded and prepared; and what is said when some cannot be decoded."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa
import torch

from semrsm_dist.datasets.inspection import inspect_images
from semrsm_dist.datasets.samples import Sample, first_few
from semrsm_dist.extraction.images import open_image
from semrsm_dist.extraction.vision_model import VisionModel
from storage_schemas.errors import InvalidInputError, UnreadableImageError
from storage_schemas.location import Location
from storage_schemas.tables import UNREADABLE, write_table

_SECONDS_TO_LIST = 60.0
"""For looking at the other images when one cannot be decoded."""
_IMAGES_AT_A_TIME = 500


def load_pixels(model: VisionModel, samples: Sequence[Sample], size: torch.Size | None = None) -> torch.Tensor:
    """Decode and prepare images, ``(n, 3, H, W)``.

    Parameters
    ----------
    model
        Knows how to prepare an image.
    samples
        The images.
    size
        What every image must come to, ``(3, H, W)``.

    Raises
    ------
    UnreadableImageError
        When an image cannot be decoded.
    InvalidInputError
        When one cannot be prepared, or comes to another size.
    """
    pixels = []
    for sample in samples:
        image = model.preprocess(open_image(sample.path))
        if size is not None and image.shape != size:
            raise InvalidInputError(
                f"{sample.path} has {_written(image.shape)} pixels after preprocessing and the first image has "
                f"{_written(size)}; {model.advice_on_size}."
            )
        pixels.append(image)
    return torch.stack(pixels)


def all_unreadable(samples: Sequence[Sample], first: UnreadableImageError, known: Location, listed: Location) -> Exception:
    """The error for all images that cannot be decoded, which are listed in a table; for up to a minute they are looked for.

    Parameters
    ----------
    samples
        All samples.
    first
        The error of one of them.
    known
        What is remembered of images, see :func:`~semrsm_dist.datasets.inspection.inspect_images`.
    listed
        Where the table goes, in the schema :data:`storage_schemas.tables.UNREADABLE`.
    """
    deadline, parts, looked_at = time.monotonic() + _SECONDS_TO_LIST, [], 0
    while looked_at < len(samples) and time.monotonic() < deadline:
        part = samples[looked_at : looked_at + _IMAGES_AT_A_TIME]
        parts.append(inspect_images(part, known, decode=open_image).unreadable)
        looked_at += len(part)
    unreadable = pa.concat_tables(parts)
    write_table(listed, unreadable, UNREADABLE)
    if len(unreadable) < 2 and looked_at == len(samples):
        return first
    more = "" if looked_at == len(samples) else f" Only the first {looked_at:,} images were looked at."
    names = first_few(unreadable["sample_id"].to_pylist())
    return UnreadableImageError(
        f"{len(unreadable):,} of {len(samples):,} images cannot be decoded: {names}; the table {listed} lists them with their "
        f"reasons. Replace them, remove them from the dataset, or leave them out with on_error: skip.{more}"
    )


def _written(size: torch.Size) -> str:
    """Width and height for a sentence."""
    return f"{size[-1]} × {size[-2]}"
