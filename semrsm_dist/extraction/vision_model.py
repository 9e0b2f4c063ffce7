"""A vision model as a function from an image to its representations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.datasets.samples import first_few
from semrsm_dist.extraction.capture import Capture, Captured, copy_of_tensor
from semrsm_dist.extraction.checkpoint import first_sentence
from semrsm_dist.extraction.device import Device, mostly_convolutions
from semrsm_dist.extraction.layer import LAST_HIDDEN_STATE, Layer
from semrsm_dist.extraction.positions import Patches, find_tensor, to_positions
from storage_schemas.errors import InvalidInputError, SemrsmError


@dataclass(frozen=True)
class Representation:
    """What a network computed for a batch of images."""

    features: NDArray[np.float32]
    """Concept vectors, ``(n, S, C)``."""
    logits: NDArray[np.float32] | None
    """Class scores, ``(n, K)``, when the model classifies."""
    spatial_shape: tuple[int, int] | None
    """``(H, W)`` with ``H * W == S`` when the positions form a map."""

    def then(self, other: Representation) -> Representation:
        """This batch with another behind it."""
        logits = None
        if self.logits is not None and other.logits is not None:
            logits = np.concatenate([self.logits, other.logits])
        return Representation(np.concatenate([self.features, other.features]), logits, self.spatial_shape)

    def rows(self, start: int, stop: int) -> Representation:
        """Some images of the batch."""
        logits = None if self.logits is None else self.logits[start:stop]
        return Representation(self.features[start:stop], logits, self.spatial_shape)


class Network(Protocol):
    """A network in evaluation mode, of transformers or the user's own."""

    module: torch.nn.Module
    """The network itself."""

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """Every module that can be a layer, by its dotted name."""

    def outputs(self, pixels: torch.Tensor) -> Mapping[str, Any]:
        """What one forward pass of images ``(n, 3, H, W)`` gives, by name; ``logits`` among it when the model classifies."""


class VisionModel:
    """A network in evaluation mode with its image processor; :func:`load_model` makes one.

    Its methods may be called from several threads at a time.

    Parameters
    ----------
    network
        Gives outputs and has modules.
    processor
        Image processor of transformers.
    description
        What the numbers depend on.
    layers
        Each becomes a representation.
    patches
        Which positions to leave out, or None to keep all.
    device
        Where it runs; the CPU when None.
    """

    loading: dict[str, Any] | None = None
    """How to load it again, elsewhere: arguments of :func:`load_model` as plain values; None when nobody said."""
    description: dict[str, Any]
    """What the numbers depend on: model, revision, hashes, architecture, layer and preprocessing. JSON-compatible.

    With layers, :meth:`describe` tells each from the other.
    """

    def __init__(
        self,
        network: Network,
        processor: Any,
        description: Mapping[str, Any],
        *,
        layers: Sequence[Layer] = (),
        patches: Patches | None = None,
        device: Device | None = None,
    ) -> None:
        self.device = device or Device(torch.device("cpu"))
        """Where it runs."""
        self._memory_format = torch.channels_last if mostly_convolutions(network.module) else torch.contiguous_format
        network.module.to(device=self.device.torch_device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self.description = {**description, **self.device.describe()}
        if self._memory_format is torch.channels_last:
            self.description["memory_format"] = "channels_last"
        self.has_layers = bool(layers)
        """Whether layers were asked for by name; each has then an activation store of its own."""
        self._network = network
        self._processor = processor
        self._patches = patches
        self._layers = {layer.name: layer for layer in layers or [Layer(str(description["layer"]))]}
        modules = {layer.name: self._module(layer.name) for layer in layers if layer.is_module}
        self._capture = Capture(modules, keep=copy_of_tensor)

    @property
    def representations(self) -> tuple[str, ...]:
        """Names of the layers that become representations, in the order they were asked for."""
        return tuple(self._layers)

    def describe(self, representation: str) -> dict[str, Any]:
        """The description of one representation."""
        return {**self.description, "layer": str(self._layers[representation])}

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Pixels of an RGB image as the network takes them, ``(3, H, W)`` float32; raises `InvalidInputError`."""
        try:
            pixels = self._processor(images=[image], return_tensors="np")["pixel_values"][0]
        except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            raise InvalidInputError(
                f"The image processor of {self._name} cannot prepare an image of {image.width} × {image.height} pixels "
                f"({first_sentence(error)}); remove it from the dataset, or choose another image size."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))

    def represent(self, pixels: torch.Tensor) -> Representation:
        """Like :meth:`represent_layers`, of a model with one representation."""
        (representation,) = self.represent_layers(pixels).values()
        return representation

    def represent_layers(self, pixels: torch.Tensor) -> dict[str, Representation]:
        """Every representation, with logits if the model classifies, of a batch of prepared images in one forward pass.

        Parameters
        ----------
        pixels
            ``(n, 3, H, W)`` float32, from :meth:`preprocess`.

        Raises
        ------
        InvalidInputError
            When the network does not take images of this size, or a layer gives no positions and channels.
        """
        seen = pixels if self._patches is None else self._patches.pad(pixels)
        seen = seen.to(self.device.torch_device).contiguous(memory_format=self._memory_format)
        try:
            with self.device.computing(), self._capture.forward_pass() as captured:
                outputs = self._network.outputs(seen)
        except (SemrsmError, torch.OutOfMemoryError):
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            raise InvalidInputError(
                f"{self._name} cannot process images of {pixels.shape[-1]} × {pixels.shape[-2]} pixels "
                f"({first_sentence(error)}); choose another image size."
            ) from error
        logits = outputs.get("logits")
        scores = _to_numpy(logits) if isinstance(logits, torch.Tensor) and logits.ndim == 2 else None
        return {
            name: self._represent(layer, self._tensor(layer, outputs, captured), scores, pixels)
            for name, layer in self._layers.items()
        }

    def _represent(
        self, layer: Layer, values: torch.Tensor, logits: NDArray[np.float32] | None, pixels: torch.Tensor
    ) -> Representation:
        """A layer's tensor as a representation."""
        what = self._called(layer)
        height, width = pixels.shape[-2:]
        padded = None if self._patches is None else self._patches.padded_to
        # transformers documents maps of last hidden states as (n, C, H, W); those of other layers may lie either way
        seen = None if layer.name == LAST_HIDDEN_STATE else padded or (height, width)
        positions = to_positions(what, values, len(pixels), seen)
        if self._patches is not None:
            positions = self._patches.keep(what, positions, (height, width))
        return Representation(_to_numpy(positions.values), logits, positions.spatial_shape)

    def _tensor(self, layer: Layer, outputs: Mapping[str, Any], captured: Captured) -> torch.Tensor:
        """What a layer gave in a forward pass."""
        what = self._called(layer)
        if layer.is_module:
            given = captured.get(layer.name, [])
            if len(given) != 1:
                raise InvalidInputError(
                    f"{what} runs {len(given)} times in a forward pass; choose a module that runs once, such as one inside it."
                )
            value = given[0]
        elif layer.index is not None:
            states = outputs.get("hidden_states") or ()
            if layer.index >= len(states):
                there = f"hidden_states.0 to hidden_states.{len(states) - 1}" if states else "no hidden states"
                raise InvalidInputError(f"{what} is not there; the model gives {there}.")
            value = states[layer.index]
        else:
            value = outputs.get(layer.name)
        tensor = find_tensor(value)
        if tensor is None:
            kind = value if isinstance(value, str) else type(value).__name__
            raise InvalidInputError(
                f"{what} gives no tensor of positions and channels for an image ({kind}); choose another layer."
            )
        return tensor

    def _module(self, name: str) -> torch.nn.Module:
        """The module of a dotted name."""
        modules = self._network.modules
        if name not in modules:
            number = re.search(r"\d+$", name)
            known = [LAST_HIDDEN_STATE, f"hidden_states.{number[0] if number else 0}", *filter(None, modules)]
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"close to it are {', '.join(near)}." if near else f"its modules begin with {first_few(known[2:])}."
            raise InvalidInputError(f"{self._name} has no layer {name}; {hint}")
        return modules[name]

    def _called(self, layer: Layer) -> str:
        """A layer in a sentence."""
        return f"The layer {layer.name} of {self._name}"

    @property
    def advice_on_size(self) -> str:
        """What to do when images end up with different sizes."""
        if self._patches is not None and self._patches.padded_to is not None:
            return "keep the padding, or extract images of each shape on their own"
        return "use an image processor that brings all images to one size"

    @property
    def _name(self) -> str:
        """The model's name, for errors."""
        return str(self.description["model"])


def _to_numpy(values: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as a contiguous array."""
    return np.ascontiguousarray(values.float().cpu().numpy(), dtype=np.float32)
