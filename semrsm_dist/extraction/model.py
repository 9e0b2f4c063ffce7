"""Loading vision models: of the registry, of the hub, from a folder, or the user's own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from transformers import ViTImageProcessorPil

from semrsm_dist.extraction.checkpoint import Checkpoint, find_checkpoint
from semrsm_dist.extraction.device import Device
from semrsm_dist.extraction.images import DECODING
from semrsm_dist.extraction.layer import LAST_HIDDEN_STATE, OUTPUT, Layer, parse_layers
from semrsm_dist.extraction.own_module import is_import_path, load_own_network
from semrsm_dist.extraction.positions import Patches
from semrsm_dist.extraction.preprocessing import Preprocessing, padded_size
from semrsm_dist.extraction.pretrained import load_network, load_processor, load_processor_folder
from semrsm_dist.extraction.registry import ARCHITECTURES
from semrsm_dist.extraction.vision_model import Representation, VisionModel
from storage_schemas.errors import InvalidInputError

__all__ = ["Representation", "VisionModel", "load_again", "load_model"]
_NOT_NUMBERS = ("processor_class", "auto_map", "feature_extractor_type", "_processor_class", "name_or_path")


def load_model(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    image_size: int | None = None,
    layers: Sequence[str] = (),
    drop_cls: bool = False,
    drop_padding: bool = False,
    weights: str | os.PathLike[str] | None = None,
    processor: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    device: str = "auto",
    autocast: str | None = None,
) -> VisionModel:
    """Load a vision model for extraction; its weights are float32.

    A model of transformers gives its ``last_hidden_state``; an image classifier that of its base model, and logits from the
    same forward pass; a checkpoint of CLIP, CLIPSeg or SAM that of its vision part. Weights are read as safetensors only,
    and code that comes with a model is never run. A module of the user's own gives what it returns.

    Parameters
    ----------
    model
        A local folder that ``save_pretrained`` wrote (model and image processor), a name of the registry
        (:data:`semrsm_dist.extraction.registry.MODELS`), a hub id, or an import path ``package.module:Class``.
    revision
        Branch, tag or commit of a hub model; the commit it resolves to is recorded.
    image_size
        Width and height in pixels of what the network sees, instead of the image processor's own. A resize before a
        centre crop keeps its proportion to the crop, so 448 instead of 224 makes 512 of 256. Position embeddings are
        interpolated where the network can.
    layers
        Layers that each become a representation, instead of the one above: outputs (``hidden_states.6``) or modules
        (``encoder.layer.3``, ``module:encoder.layer.3``).
    drop_cls
        Leave out CLS and other tokens that stand for no place, so that the positions form a map.
    drop_padding
        Leave out positions that see nothing of the image but padding (SAM).
    weights
        Safetensors file of an own module's weights.
    processor
        Folder of the image processor that prepares images for an own module.
    preprocessing
        How to prepare images for an own module, with `image_size` and instead of `processor`.
    device
        ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if there is one.
    autocast
        ``bfloat16`` or ``float16``: what the forward pass may be computed in, instead of float32.

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
        When the folder lacks a file, the checkpoint lacks weights, the model is not one that takes an image alone, or there
        is no such layer, or no such device.
    """
    loaded = _load(
        os.fspath(model),
        revision,
        image_size,
        layers,
        drop_cls,
        drop_padding,
        weights,
        processor,
        preprocessing,
        Device.find(device, autocast),
    )
    loaded.loading = {
        "model": os.path.abspath(folder) if os.path.isdir(folder := os.path.expanduser(model)) else os.fspath(model),
        "revision": loaded.description["revision"],
        "image_size": image_size,
        "layers": list(layers),
        "drop_cls": drop_cls,
        "drop_padding": drop_padding,
        "weights": None if weights is None else os.path.abspath(os.path.expanduser(weights)),
        "processor": None if processor is None else os.path.abspath(os.path.expanduser(processor)),
        "preprocessing": None if preprocessing is None else asdict(preprocessing),
        "device": device,
        "autocast": autocast,
    }
    return loaded


def load_again(loading: Mapping[str, Any]) -> VisionModel:
    """Load a model as :attr:`VisionModel.loading` says."""
    preprocessing = loading["preprocessing"]
    return load_model(**{**loading, "preprocessing": None if preprocessing is None else Preprocessing(**preprocessing)})


def _load(
    model: str,
    revision: str | None,
    image_size: int | None,
    layers: Sequence[str],
    drop_cls: bool,
    drop_padding: bool,
    weights: str | os.PathLike[str] | None,
    processor: str | os.PathLike[str] | None,
    preprocessing: Preprocessing | None,
    device: Device,
) -> VisionModel:
    """What :func:`load_model` returns."""
    if image_size is not None and image_size < 1:
        raise InvalidInputError(f"An image size of {image_size} pixels is not possible; give a positive number.")
    wanted = parse_layers(layers)
    if is_import_path(model):
        if revision is not None or drop_cls or drop_padding:
            raise InvalidInputError(
                f"{model} is a module of your own, which has no revision, CLS token or padding that is known; "
                "leave these options out, and let it return the positions that you want."
            )
        return _load_own(model, wanted, image_size, weights, processor, preprocessing, device)
    if weights is not None or processor is not None or preprocessing is not None:
        raise InvalidInputError(
            f"{model} brings its own weights and image processor; other ones are for import paths such as package.module:Class."
        )
    checkpoint = find_checkpoint(model, revision)
    image_processor = load_processor(checkpoint, image_size)
    settings = image_processor.to_dict()
    patches = _patches(checkpoint, settings, drop_cls, drop_padding)
    network = load_network(checkpoint, wanted, image_size)
    description = {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "sha256": checkpoint.file_hashes(),
        "architecture": type(network.module).__name__,
        "layer": LAST_HIDDEN_STATE,
        "image_size": image_size,
        "preprocessing": _describe_processor(image_processor),
        **({"drop_cls": True} if drop_cls else {}),
        **({"drop_padding": True} if drop_padding else {}),
    }
    if drop_padding:  # images are padded in the forward pass, which so knows what is padding
        image_processor = type(image_processor).from_dict({**settings, "do_pad": False})
    return VisionModel(network, image_processor, description, layers=wanted, patches=patches, device=device)


def _load_own(
    path: str,
    layers: Sequence[Layer],
    image_size: int | None,
    weights: str | os.PathLike[str] | None,
    processor: str | os.PathLike[str] | None,
    preprocessing: Preprocessing | None,
    device: Device,
) -> VisionModel:
    """A module of the user's own."""
    if processor is not None and preprocessing is None:
        image_processor = load_processor_folder(processor, image_size)
    elif processor is None and preprocessing is not None and image_size is not None:
        image_processor = ViTImageProcessorPil(**preprocessing.settings(image_size))
    else:
        raise InvalidInputError(
            f"How to prepare images for {path} is unknown; give either the folder of an image processor, or an image size with "
            "a mean and a std (0 0 0 and 1 1 1 leave values between 0 and 1)."
        )
    network, hashes = load_own_network(path, weights)
    description = {
        "model": path,
        "revision": None,
        "sha256": hashes,
        "architecture": type(network.module).__name__,
        "layer": OUTPUT,
        "image_size": image_size,
        "preprocessing": _describe_processor(image_processor),
    }
    return VisionModel(network, image_processor, description, layers=layers, device=device)


def _patches(checkpoint: Checkpoint, processor: Mapping[str, Any], drop_cls: bool, drop_padding: bool) -> Patches | None:
    """Which positions to leave out, as far as that is known of the architecture; None to keep all."""
    if not (drop_cls or drop_padding):
        return None
    model_type, config = checkpoint.config.model_type, getattr(checkpoint.config, "vision_config", checkpoint.config)
    known = ARCHITECTURES.get(model_type)
    if known is None:
        raise InvalidInputError(
            f"Which positions of {checkpoint.source} ({model_type}) are CLS tokens or padding is not known; "
            f"it is for {', '.join(ARCHITECTURES)}; keep all of them."
        )
    prefix_tokens = known.n_prefix_tokens(config) if drop_cls else 0
    padded_to = padded_size(processor) if drop_padding and known.pads_images else None
    if drop_cls and not prefix_tokens:
        raise InvalidInputError(f"{checkpoint.source} has no CLS token to drop: its positions are a map; leave drop_cls out.")
    if drop_padding and padded_to is None:
        raise InvalidInputError(f"The image processor of {checkpoint.source} pads no images; leave drop_padding out.")
    size = config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    return Patches((height, width), prefix_tokens, padded_to)


def _describe_processor(processor: Any) -> dict[str, Any]:
    """What is done to an image before the network sees it, as JSON."""
    settings = {key: value for key, value in processor.to_dict().items() if key not in _NOT_NUMBERS}
    described = {"decoding": DECODING, "backend": getattr(processor, "backend", "pil"), **settings}
    return cast("dict[str, Any]", json.loads(json.dumps(described, default=str)))
