"""Vision models of transformers as functions from an image to its representation."""

from __future__ import annotations

import inspect
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from semrsm_dist.extraction.checkpoint import Checkpoint, checkpoint_errors, find_checkpoint, first_sentence
from semrsm_dist.extraction.images import DECODING
from storage_schemas.errors import InvalidInputError

LAYER = "last_hidden_state"
_NOT_NUMBERS = ("processor_class", "auto_map", "feature_extractor_type", "_processor_class", "name_or_path")
_WITHOUT_EFFECT = re.compile(r"(^|\.)(num_batches_tracked|mask_token|position_ids|relative_position_index)$")
_POOLER = re.compile(r"(^|\.)pooler\.")  # works on the last hidden state; without effect on what it works on


@dataclass(frozen=True)
class Representation:
    """What a network computed for a batch of images."""

    features: NDArray[np.float32]
    """Concept vectors, ``(n, S, C)``."""
    logits: NDArray[np.float32] | None
    """Class scores, ``(n, K)``, when the model classifies."""
    spatial_shape: tuple[int, int] | None
    """``(H, W)`` with ``H * W == S`` when the positions form a map."""


class VisionModel:
    """A network in evaluation mode with its image processor; :func:`load_model` makes one.

    Its methods may be called from several threads at a time.
    """

    description: dict[str, Any]
    """What the numbers depend on: model, revision, hashes, architecture, layer and preprocessing. JSON-compatible."""

    def __init__(self, network: Any, processor: Any, description: Mapping[str, Any], *, classifies: bool) -> None:
        self.description = dict(description)
        self.classifies = classifies
        self._network = network.eval()
        self._processor = processor
        self._captured = threading.local()
        self._options: dict[str, Any] = {}
        if description["image_size"] is not None and _takes(network, "interpolate_pos_encoding"):
            self._options["interpolate_pos_encoding"] = True
        if classifies:
            network.base_model.register_forward_hook(self._capture)

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
        """Features, and logits if the model classifies, of a batch of prepared images.

        Parameters
        ----------
        pixels
            ``(n, 3, H, W)`` float32, from :meth:`preprocess`.

        Raises
        ------
        InvalidInputError
            When the network does not take images of this size, or gives no last hidden state.
        """
        try:
            with torch.inference_mode():
                output = self._network(pixel_values=pixels, **self._options)
        except (ValueError, RuntimeError, TypeError) as error:
            raise InvalidInputError(
                f"{self._name} cannot process images of {pixels.shape[-1]} × {pixels.shape[-2]} pixels "
                f"({first_sentence(error)}); choose another image size."
            ) from error
        hidden = self._captured.__dict__.pop(LAYER, None) if self.classifies else getattr(output, LAYER, None)
        if not isinstance(hidden, torch.Tensor) or hidden.ndim not in (3, 4):
            raise InvalidInputError(
                f"{self._name} gives no {LAYER} of positions and channels for an image; "
                "choose a model of which transformers documents one."
            )
        shape = (int(hidden.shape[2]), int(hidden.shape[3])) if hidden.ndim == 4 else None
        positions = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        logits = _to_numpy(output.logits) if self.classifies else None
        return Representation(_to_numpy(positions), logits, shape)

    @property
    def _name(self) -> str:
        """The model's name, for errors."""
        return str(self.description["model"])

    def _capture(self, network: Any, inputs: Any, output: Any) -> None:
        """Keep the base model's last hidden state of the pass that this thread is in."""
        setattr(self._captured, LAYER, getattr(output, LAYER, None))


def load_model(model: str | os.PathLike[str], *, revision: str | None = None, image_size: int | None = None) -> VisionModel:
    """Load a vision model of transformers for extraction, on the CPU, in float32.

    An image classifier gives logits besides features; its features are its base model's ``last_hidden_state``, from the
    same forward pass. Any other vision model gives its ``last_hidden_state``. Weights are read as safetensors only, and
    code that comes with a model is never run.

    Parameters
    ----------
    model
        A local folder that ``save_pretrained`` wrote (model and image processor), or a hub id.
    revision
        Branch, tag or commit of a hub model; the commit it resolves to is recorded.
    image_size
        Width and height in pixels of what the network sees, instead of the image processor's own. A resize before a
        centre crop keeps its proportion to the crop, so 448 instead of 224 makes 512 of 256. Position embeddings are
        interpolated where the network can.

    Returns
    -------
    VisionModel
        In evaluation mode. Its description tells a local folder by name and hashes, not by path, so that a store is the
        same on every machine.

    Raises
    ------
    StoreNotFoundError
        When the folder is not there, or the hub has no such model or cannot be reached.
    InvalidInputError
        When the folder lacks a file, the checkpoint lacks weights, or the model is not one that takes an image alone.
    """
    if image_size is not None and image_size < 1:
        raise InvalidInputError(f"An image size of {image_size} pixels is not possible; give a positive number.")
    checkpoint = find_checkpoint(model, revision)
    architecture = (getattr(checkpoint.config, "architectures", None) or [""])[0]
    classifies = architecture.endswith("ForImageClassification")
    if hasattr(checkpoint.config, "vision_config") and not classifies:
        raise InvalidInputError(
            f"{checkpoint.source} is a model of images and text ({architecture or checkpoint.config.model_type}); "
            "save its vision model on its own and give that."
        )
    processor = _load_processor(checkpoint, image_size)
    network = _load_network(checkpoint, classifies)
    if network.main_input_name != "pixel_values":
        raise InvalidInputError(
            f"{checkpoint.source} ({type(network).__name__}) takes {network.main_input_name}, not images; "
            "choose a vision model."
        )
    description = {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "sha256": checkpoint.file_hashes(),
        "architecture": type(network).__name__,
        "layer": LAYER,
        "image_size": image_size,
        "preprocessing": _describe_processor(processor),
    }
    return VisionModel(network, processor, description, classifies=classifies)


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


def _load_processor(checkpoint: Checkpoint, image_size: int | None) -> Any:
    """The image processor on Pillow, whose numbers do not depend on what else is installed."""
    with checkpoint_errors(checkpoint):
        processor = AutoImageProcessor.from_pretrained(checkpoint.source, backend="pil", **checkpoint.options)
        if image_size is not None:
            processor = type(processor).from_dict(resized(processor.to_dict(), image_size))
    return processor


def _load_network(checkpoint: Checkpoint, classifies: bool) -> Any:
    """The network with every weight that its outputs depend on."""
    auto: Any = AutoModelForImageClassification if classifies else AutoModel
    with checkpoint_errors(checkpoint):
        network, loading = auto.from_pretrained(
            checkpoint.source,
            config=checkpoint.config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told in the loading information, and refused below
            **checkpoint.options,
        )
    if loading["mismatched_keys"]:
        key, *shapes = min(loading["mismatched_keys"])
        found, expected = (tuple(shape) for shape in shapes)
        raise InvalidInputError(
            f"The weights of {checkpoint.source} do not fit a {type(network).__name__}: {key} has shape {found} and the "
            f"configuration asks for {expected}; choose a checkpoint whose files belong together."
        )
    missing = sorted(
        key for key in loading["missing_keys"] if not _WITHOUT_EFFECT.search(key) and (classifies or not _POOLER.search(key))
    )
    if missing:
        raise InvalidInputError(
            f"The weights of {checkpoint.source} lack {len(missing)} of the tensors of a {type(network).__name__} "
            f"({missing[0]} first), which would be random; choose a checkpoint of this architecture."
        )
    return network


def _describe_processor(processor: Any) -> dict[str, Any]:
    """What is done to an image before the network sees it, as JSON."""
    settings = {key: value for key, value in processor.to_dict().items() if key not in _NOT_NUMBERS}
    described = {"decoding": DECODING, "backend": getattr(processor, "backend", "pil"), **settings}
    return cast("dict[str, Any]", json.loads(json.dumps(described, default=str)))


def _takes(network: Any, parameter: str) -> bool:
    """Whether a network's forward pass has a parameter."""
    return parameter in inspect.signature(network.forward).parameters


def _to_numpy(values: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as a contiguous array."""
    return np.ascontiguousarray(values.float().numpy(), dtype=np.float32)
