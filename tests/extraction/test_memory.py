"""Batches on a device with little memory, which here is a function that refuses more images than it holds."""

from __future__ import annotations

import pytest
import torch

from semrsm_dist.extraction.memory import MOST, forward_in_parts, largest_batch
from storage_schemas import InvalidInputError

IMAGE = torch.arange(12.0).reshape(3, 2, 2)


class Device:
    """Holds so many images at a time, and remembers what it was given."""

    def __init__(self, holds: int) -> None:
        self.holds, self.given = holds, list[int]()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.given.append(len(pixels))
        if len(pixels) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels.sum(dim=(1, 2, 3))


@pytest.mark.parametrize(("holds", "found"), [(1, 1), (3, 1), (4, 2), (100, 32), (10_000, MOST)])
def test_the_largest_batch_fits_twice(holds: int, found: int) -> None:
    assert largest_batch(Device(holds), IMAGE) == found


@pytest.mark.parametrize("holds", [1, 2, 5, 100])
def test_what_does_not_fit_goes_in_halves_with_the_same_results(holds: int) -> None:
    pixels, device = torch.rand(13, 3, 2, 2), Device(holds)
    found = forward_in_parts(device, lambda first, second: torch.cat([first, second]), pixels)
    assert torch.equal(found, pixels.sum(dim=(1, 2, 3)))
    assert device.given[0] == 13
    assert sum(size for size in device.given if size <= holds) == 13


def test_one_image_that_does_not_fit_is_said() -> None:
    with pytest.raises(InvalidInputError, match=r"does not hold the forward pass of one image; .* \(device: cpu\)\.$"):
        forward_in_parts(Device(0), lambda first, second: first, torch.rand(4, 3, 2, 2))
    with pytest.raises(InvalidInputError, match="does not hold"):
        largest_batch(Device(0), IMAGE)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def refuse(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        forward_in_parts(refuse, lambda first, second: first, torch.rand(4, 3, 2, 2))
