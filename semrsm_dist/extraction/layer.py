"""Layers of a network by name: an output of the model, or any module inside it. Nothing here imports PyTorch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from storage_schemas.errors import InvalidInputError

LAST_HIDDEN_STATE = "last_hidden_state"
"""The representation of a model of transformers, unless layers are asked for."""
OUTPUT = "output"
"""The representation of an own module, unless layers are asked for: what it returns."""
OUTPUTS = (LAST_HIDDEN_STATE, "pooler_output", OUTPUT)
"""Outputs of a forward pass that are layers, beside ``hidden_states.N``."""
PLACEHOLDER = "{layer}"
"""What stands for the layer's name in the address of an activation store."""
_HIDDEN_STATE = re.compile(r"hidden_states\.(\d+)")
_MODULE_PREFIX = "module:"
_IN_FILE_NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Layer:
    """One layer; :meth:`parse` reads its name.

    >>> Layer.parse("hidden_states.6")
    Layer(name='hidden_states.6', index=6, is_module=False)
    >>> str(Layer.parse("encoder.layer.3"))
    'module:encoder.layer.3'
    """

    name: str
    """What files and tables call it, without ``module:``."""
    index: int | None = None
    """Which of the hidden states it is, if it is one of them."""
    is_module: bool = False
    """Whether it is what a module gives, rather than an output of the model."""

    @classmethod
    def parse(cls, text: str) -> Layer:
        """Read ``last_hidden_state``, ``hidden_states.6``, ``encoder.layer.3`` or ``module:encoder.layer.3``.

        Raises
        ------
        InvalidInputError
            When the text is no name, or has characters that no file name should have.
        """
        name = text.removeprefix(_MODULE_PREFIX)
        if not _IN_FILE_NAMES.fullmatch(name):
            raise InvalidInputError(
                f"{text!r} is not the name of a layer; give an output such as hidden_states.6, or the dotted name of a module."
            )
        if name == "hidden_states" and name == text:
            raise InvalidInputError("hidden_states are many; say which one, as in hidden_states.6.")
        hidden_state = _HIDDEN_STATE.fullmatch(text)
        if hidden_state:
            return cls(name, int(hidden_state[1]))
        return cls(name, is_module=text not in OUTPUTS)

    def __str__(self) -> str:
        return f"{_MODULE_PREFIX}{self.name}" if self.is_module else self.name


def parse_layers(texts: Sequence[str]) -> tuple[Layer, ...]:
    """Read the names of several layers; raises `InvalidInputError` also when two of them would share files."""
    layers = tuple(Layer.parse(text) for text in texts)
    names = [layer.name for layer in layers]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InvalidInputError(f"The layer {repeated} is named more than once; name every layer once.")
    return layers


def layer_stores(template: str, layers: Sequence[Layer]) -> dict[str, str]:
    """The address of each layer's activation store.

    Parameters
    ----------
    template
        Address with ``{layer}`` where the name of the layer goes; a single layer does not need it.
    layers
        The layers, by :func:`parse_layers`.

    Raises
    ------
    InvalidInputError
        When several layers would be written to one store.

    >>> layer_stores("x.{layer}.zarr", parse_layers(["encoder.layer.3"]))
    {'encoder.layer.3': 'x.encoder.layer.3.zarr'}
    """
    if len(layers) > 1 and PLACEHOLDER not in template:
        raise InvalidInputError(
            f"{len(layers)} layers do not go into one store {template}; write {PLACEHOLDER} where the layer's name goes, "
            f"as in activations/x.{PLACEHOLDER}.zarr."
        )
    return {layer.name: template.replace(PLACEHOLDER, layer.name) for layer in layers}
