"""What modules give in a forward pass, by forward hooks that several threads may run through at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from semrsm_dist.extraction.positions import find_tensor

Captured = dict[str, list[Any]]
"""What each module gave, once for every time that it ran."""


class Capture:
    """Forward hooks on modules.

    Parameters
    ----------
    modules
        The modules, by the names they are asked for with.
    keep
        What is kept of that which a module gives.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], keep: Callable[[Any], Any]) -> None:
        self._keep = keep
        self._pass = threading.local()
        for name, module in modules.items():
            module.register_forward_hook(partial(self._hook, name))

    @contextmanager
    def forward_pass(self) -> Iterator[Captured]:
        """Collect what the modules give to this thread while the context is open."""
        self._pass.captured = captured = Captured()
        try:
            yield captured
        finally:
            self._pass.captured = None

    def _hook(self, name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Called by PyTorch after a module has run."""
        captured = getattr(self._pass, "captured", None)
        if captured is not None:
            captured.setdefault(name, []).append(self._keep(output))


def copy_of_tensor(output: object) -> torch.Tensor | str:
    """A copy of the tensor that a module gives, because the next module may work in place; or the type of what it gives."""
    tensor = find_tensor(output)
    return type(output).__name__ if tensor is None else tensor.clone()
