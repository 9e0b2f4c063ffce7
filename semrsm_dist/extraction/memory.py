"""Batches and the memory of a device: the largest that fits, and halves of one that does not fit any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from storage_schemas.errors import InvalidInputError

Result = TypeVar("Result")
MOST = 256
"""The largest batch that is tried; larger ones are no faster on the devices of today."""


def largest_batch(forward: Callable[[torch.Tensor], object], image: torch.Tensor, most: int = MOST) -> int:
    """The largest batch, in powers of two, whose forward pass the memory of the device holds twice.

    Twice, because other batches, and other processes, take memory too.

    Parameters
    ----------
    forward
        One forward pass.
    image
        A prepared image, ``(3, H, W)``, which is repeated.
    most
        The largest to try.

    Raises
    ------
    InvalidInputError
        When the memory does not even hold one image.
    """
    size = 1
    while 2 * size <= most and _fits(forward, image, 4 * size):
        size *= 2
    if size == 1 and not _fits(forward, image, 1):
        raise InvalidInputError(_TOO_LARGE)
    return size


def forward_in_parts(
    forward: Callable[[torch.Tensor], Result], join: Callable[[Result, Result], Result], pixels: torch.Tensor
) -> Result:
    """A forward pass, in two halves where the memory of the device does not hold it, and so on.

    Parameters
    ----------
    forward
        One forward pass.
    join
        Puts the results of two parts of a batch together.
    pixels
        The batch, ``(n, 3, H, W)``.

    Raises
    ------
    InvalidInputError
        When the memory does not even hold one image.
    """
    try:
        return forward(pixels)
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            raise InvalidInputError(_TOO_LARGE) from error
    torch.cuda.empty_cache()  # does nothing where there is no such device
    half = len(pixels) // 2
    first = forward_in_parts(forward, join, pixels[:half])
    return join(first, forward_in_parts(forward, join, pixels[half:]))


_TOO_LARGE = (
    "The memory of the device does not hold the forward pass of one image; end what else runs there, choose a smaller image "
    "size, or extract on the CPU (device: cpu)."
)


def _fits(forward: Callable[[torch.Tensor], object], image: torch.Tensor, size: int) -> bool:
    """Whether a batch of this size goes through."""
    try:
        forward(image.expand(size, *image.shape).contiguous())
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True
