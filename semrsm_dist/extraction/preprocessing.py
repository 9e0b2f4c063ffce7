"""Settings of image processors: changed in size, without padding, or declared by the user. Nothing here imports PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from storage_schemas.errors import InvalidInputError

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""How Pillow resizes, in the order of its numbers."""


@dataclass(frozen=True)
class Preprocessing:
    """How the images of an own module are prepared: resized to a square, divided by 255, normalised.

    Raises `InvalidInputError` when a number is impossible.
    """

    mean: tuple[float, float, float]
    """What is subtracted from each channel, whose values are between 0 and 1."""
    std: tuple[float, float, float]
    """What each channel is divided by afterwards."""
    interpolation: Interpolation = "bilinear"
    """How images are resized."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InvalidInputError(f"The {name} of the preprocessing is {values}; give three numbers, one a channel.")
        if min(self.std) <= 0:
            raise InvalidInputError(f"The std of the preprocessing is {self.std}; every channel needs a positive number.")
        if self.interpolation not in get_args(Interpolation):
            raise InvalidInputError(
                f"There is no interpolation {self.interpolation!r}; choose one of {', '.join(get_args(Interpolation))}."
            )

    def settings(self, image_size: int) -> dict[str, Any]:
        """The same as settings of an image processor of transformers, for squares of `image_size` pixels."""
        return {
            "size": {"height": image_size, "width": image_size},
            "resample": get_args(Interpolation).index(self.interpolation),
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def resized(settings: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Settings of an image processor, changed so that the network sees squares of another size.

    Parameters
    ----------
    settings
        What ``to_dict`` of the image processor gives.
    image_size
        Width and height in pixels.

    Raises
    ------
    InvalidInputError
        When the settings have no size that could be changed.

    >>> resized({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 448)
    {'size': {'shortest_edge': 512}, 'crop_size': {'height': 448, 'width': 448}}
    >>> resized({"size": {"height": 224, "width": 224}}, 448)
    {'size': {'height': 448, 'width': 448}}
    """
    size, crop = settings.get("size"), settings.get("crop_size")
    square = {"height": image_size, "width": image_size}
    changed = dict(settings)
    if crop and settings.get("do_center_crop", True):
        changed["crop_size"] = square
        edge = crop.get("height") or crop.get("shortest_edge")
        if size and edge:
            changed["size"] = {key: round(value * image_size / edge) for key, value in size.items()}
    elif size and "height" in size and "width" in size:
        changed["size"] = square
    elif size and "shortest_edge" in size:
        factor = image_size / size["shortest_edge"]
        changed["size"] = {key: round(value * factor) for key, value in size.items()}
    else:
        raise InvalidInputError(f"The image processor has no size that could become {image_size}; leave it out.")
    return changed


def padded_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that an image processor pads images to, or None when it pads none.

    >>> padded_size({"do_pad": True, "pad_size": {"height": 1024, "width": 1024}})
    (1024, 1024)
    """
    size = settings.get("pad_size")
    return (int(size["height"]), int(size["width"])) if settings.get("do_pad") and size else None
