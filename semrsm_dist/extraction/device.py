"""Where a network runs, and in what precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch

from semrsm_dist.extraction.settings import Autocast
from storage_schemas.errors import InvalidInputError


@dataclass(frozen=True)
class Device:
    """A device and the precision of the forward pass there; :meth:`find` makes one."""

    torch_device: torch.device
    autocast: torch.dtype | None = None
    """Type that PyTorch may compute in where it thinks fit; None computes everything in float32."""

    @classmethod
    def find(cls, name: str = "auto", autocast: str | None = None) -> Device:
        """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, which is a GPU if there is one.

        Raises
        ------
        InvalidInputError
            When there is no such device, or no such type.
        """
        if autocast is not None and autocast not in get_args(Autocast):
            raise InvalidInputError(f"Autocast to {autocast!r} is not possible; choose {' or '.join(get_args(Autocast))}.")
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise InvalidInputError(f"There is no device called {name!r}; choose cpu, cuda, cuda:N or auto.") from error
        if device.type not in ("cpu", "cuda"):
            raise InvalidInputError(f"Networks do not run on {name} here; choose cpu, cuda, cuda:N or auto.")
        there = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
        if device.type == "cuda" and (device.index or 0) >= there:
            raise InvalidInputError(f"There is no device {name} on this machine, which has {there} GPUs; choose cpu or auto.")
        return cls(device, None if autocast is None else getattr(torch, autocast))

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.torch_device.type == "cpu"

    def describe(self) -> dict[str, Any]:
        """What of it the numbers depend on; nothing for float32 on a CPU."""
        described: dict[str, Any] = {} if self.is_cpu else {"device": self.torch_device.type}
        if self.autocast is not None:
            described["autocast"] = str(self.autocast).removeprefix("torch.")
        return described

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Forward passes in here have the precision that was asked for, and the same numbers each time."""
        if not self.is_cpu:
            torch.backends.cudnn.allow_tf32 = False  # 10 bits instead of 23, where float32 was asked for
            torch.backends.cudnn.deterministic = True
        autocast = nullcontext() if self.autocast is None else torch.autocast(self.torch_device.type, self.autocast)
        with torch.inference_mode(), autocast:
            yield


def mostly_convolutions(network: torch.nn.Module) -> bool:
    """Whether most weights of a network are those of convolutions, which then run faster with channels last in memory."""
    convolutions = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    return 2 * convolutions > sum(parameter.numel() for parameter in network.parameters())
