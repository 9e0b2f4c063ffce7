"""Tensors of any network as positions and channels, and which of the positions are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from storage_schemas.errors import InvalidInputError

PixelSize = tuple[int, int]
"""Height and width."""


class Positions(NamedTuple):
    """Concept vectors of a batch of images."""

    values: torch.Tensor
    """``(n, S, C)``."""
    spatial_shape: tuple[int, int] | None
    """``(H, W)`` with ``H * W == S`` when the positions form a map."""


@dataclass(frozen=True)
class Patches:
    """Positions of a network that cuts images into patches, and which of them are left out."""

    size: PixelSize
    """Height and width of a patch in pixels."""
    prefix_tokens: int = 0
    """Tokens before those of the patches, which are dropped; 0 when they are kept or there are none."""
    padded_to: PixelSize | None = None
    """Size in pixels that images are padded to, if positions that see nothing but padding are dropped."""

    def pad(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images ``(n, 3, H, W)`` with zeros on the right and below, as their image processor would have padded them."""
        if self.padded_to is None:
            return pixels
        below, right = (whole - own for whole, own in zip(self.padded_to, pixels.shape[-2:], strict=True))
        if min(below, right) < 0:
            raise InvalidInputError(
                f"An image of {_written(pixels.shape[-2:])} pixels is larger than the {_written(self.padded_to)} that images "
                "are padded to; keep the padding."
            )
        return torch.nn.functional.pad(pixels, (0, right, 0, below))

    def keep(self, what: str, positions: Positions, image_size: PixelSize) -> Positions:
        """The positions that are kept.

        Parameters
        ----------
        what
            The layer, as errors call it.
        positions
            What it gives.
        image_size
            Height and width in pixels of the images before padding.

        Raises
        ------
        InvalidInputError
            When the layer's positions are neither the patches nor the patches after the prefix tokens.
        """
        grid = tuple(pixels // patch for pixels, patch in zip(self.padded_to or image_size, self.size, strict=True))
        height, width = grid
        n_positions = positions.values.shape[1]
        if n_positions == height * width and positions.spatial_shape in (None, grid):
            values = positions.values
        elif n_positions == height * width + self.prefix_tokens and positions.spatial_shape is None:
            values = positions.values[:, self.prefix_tokens :]
        else:
            tokens = f"{self.prefix_tokens} + {height} × {width}" if self.prefix_tokens else f"{height} × {width}"
            raise InvalidInputError(
                f"{what} gives {n_positions} positions and not the {tokens} of its tokens and patches, so which of them to "
                "leave out is unknown; keep all of them, or choose another layer."
            )
        if self.padded_to is None:
            return Positions(values, (height, width))
        rows, columns = (-(-pixels // patch) for pixels, patch in zip(image_size, self.size, strict=True))
        seen = values.reshape(len(values), height, width, -1)[:, :rows, :columns]
        return Positions(seen.flatten(1, 2), (rows, columns))


def find_tensor(value: object) -> torch.Tensor | None:
    """The tensor that a module gives: itself, the first item of a tuple, or the last hidden state of several outputs."""
    if isinstance(value, Mapping):
        value = value.get("last_hidden_state")
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def to_positions(what: str, values: torch.Tensor, n_images: int, image_size: PixelSize | None = None) -> Positions:
    """A layer's tensor as positions and channels.

    Parameters
    ----------
    what
        The layer, as errors call it.
    values
        ``(n, S, C)``; ``(n, C, H, W)``; or ``(n, C)``, which is one position. With `image_size`, also ``(n, H, W, C)``: it is
        told from ``(n, C, H, W)`` by the proportions of the image, which a map shares.
    n_images
        ``n``.
    image_size
        Height and width in pixels of the images that the network saw; None where maps are known to be ``(n, C, H, W)``.

    Raises
    ------
    InvalidInputError
        When it is of another shape, or holds no floating-point numbers.
    """
    shape = tuple(values.shape)
    if values.ndim not in (2, 3, 4) or shape[0] != n_images or not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise InvalidInputError(
            f"{what} gives {kind} of shape {shape} for a batch of {n_images}, which is not positions and channels of each "
            "image; choose a layer that gives (n, S, C), (n, C, H, W) or (n, C)."
        )
    if values.ndim == 2:
        return Positions(values[:, None], None)
    if values.ndim == 3:
        return Positions(values, None)
    channels_last = image_size is not None and _is_map(shape[1:3], image_size) and not _is_map(shape[2:4], image_size)
    if channels_last:
        return Positions(values.flatten(1, 2), (shape[1], shape[2]))
    return Positions(values.flatten(2).transpose(1, 2), (shape[2], shape[3]))


def _is_map(shape: tuple[int, ...], image_size: PixelSize) -> bool:
    """Whether a height and width have the proportions of an image, to the rounding of one position."""
    height, width = shape
    return abs(height * image_size[1] - width * image_size[0]) < max(image_size)


def _written(size: Sequence[int]) -> str:
    """Width and height for a sentence."""
    return f"{size[1]} × {size[0]}"
