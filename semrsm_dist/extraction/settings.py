"""How images are extracted. Nothing here imports PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage_schemas.errors import InvalidInputError

Autocast = Literal["bfloat16", "float16"]
"""Types that a forward pass may be computed in instead of float32."""
StoredType = Literal["float32", "float16"]
"""Types that features are stored in."""
OnError = Literal["stop", "skip"]
"""What an image that cannot be decoded does."""


@dataclass(frozen=True)
class ExtractionSettings:
    """How images are extracted into activation stores; changes the numbers, but for :attr:`on_error`."""

    batch_size: int | None = None
    """Images in a forward pass, which do not cross units of work. When None: what a store was begun with; else on a CPU eight
    of 224 × 224 pixels, fewer of larger images; on a GPU the largest power of two that its memory holds twice."""
    dtype: StoredType = "float32"
    """Type that features are stored in; logits too."""
    on_error: OnError = "stop"
    """An image that cannot be decoded stops the extraction, with a list of all such images; or is left out, and recorded."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidInputError(f"A batch size of {self.batch_size} is not possible; it must be at least 1.")


@dataclass(frozen=True)
class PoolSettings:
    """Where images are extracted; changes no bit of the result."""

    address: str | None = None
    """Address of a Ray cluster."""
    workers: int | None = None
    """Actors at the most; as many as the cluster holds when None."""
    cpus_per_worker: int = 4
    """CPUs that an actor reserves: its forward passes at the same time, or its threads that decode for a GPU."""
    gpus_per_worker: float = 0.0
    """GPUs that an actor reserves; fractions are shared."""
    device: str = "auto"
    """What was asked for; actors run on a GPU if and only if they reserve one."""

    def __post_init__(self) -> None:
        gpus = self.gpus_per_worker
        if not 0 <= gpus < float("inf") or (gpus > 1 and gpus != int(gpus)):
            raise InvalidInputError(f"An actor cannot have {gpus:g} GPUs; give a share of one, or a whole number.")
        if gpus and self.device == "cpu":
            raise InvalidInputError(f"Actors with {gpus:g} GPUs do not run on the CPU; leave the device or the GPUs out.")
        if not gpus and self.device.startswith("cuda"):
            raise InvalidInputError(f"Actors on {self.device} need a GPU; say how much of one with gpus_per_worker.")
