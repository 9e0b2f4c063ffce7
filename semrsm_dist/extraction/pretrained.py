"""Networks and image processors of transformers, from a checkpoint."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from semrsm_dist.extraction.capture import Capture
from semrsm_dist.extraction.checkpoint import PROCESSOR_FILES, Checkpoint, checkpoint_errors
from semrsm_dist.extraction.layer import Layer
from semrsm_dist.extraction.preprocessing import resized
from semrsm_dist.extraction.registry import ARCHITECTURES
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

WITHOUT_EFFECT = re.compile(r"(^|\.)(num_batches_tracked|mask_token|position_ids|relative_position_index)$")
"""Names of weights that no output depends on."""
_POOLER = re.compile(r"(^|\.)pooler\.")  # works on the last hidden state; without effect on what it works on
_OUTPUTS = ("last_hidden_state", "pooler_output", "hidden_states")


class PretrainedNetwork:
    """A network of transformers, or the vision part of one, with the outputs that are its representations."""

    def __init__(self, module: Any, *, classifies: bool, interpolates: bool, gives_hidden_states: bool) -> None:
        self.module = module.eval()
        self._classifies = classifies
        self._options: dict[str, Any] = {}
        if interpolates and _takes(module, "interpolate_pos_encoding"):
            self._options["interpolate_pos_encoding"] = True
        if gives_hidden_states:
            self._options["output_hidden_states"] = True
        self._base = Capture({"base": module.base_model}, keep=lambda output: output) if classifies else None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Every module by its dotted name in the network, and also by its name in the base model of a classifier."""
        return {**dict(self.module.base_model.named_modules()), **dict(self.module.named_modules())}

    def outputs(self, pixels: torch.Tensor) -> dict[str, Any]:
        """The outputs of one forward pass by name; those of a classifier's base model, and its logits."""
        with self._base.forward_pass() if self._base is not None else nullcontext() as captured:
            output = self.module(pixel_values=pixels, **self._options)
        logits = {"logits": output.logits} if self._classifies else {}
        if captured is not None:
            output = captured.get("base", [None])[0]
        return {**{name: getattr(output, name, None) for name in _OUTPUTS}, **logits}


def load_network(checkpoint: Checkpoint, layers: Sequence[Layer], image_size: int | None) -> PretrainedNetwork:
    """Load the network of a checkpoint, on the CPU, in float32.

    Of a checkpoint of images and text or prompts, the vision part alone is loaded, where the registry knows it.

    Parameters
    ----------
    checkpoint
        From :func:`semrsm_dist.extraction.checkpoint.find_checkpoint`.
    layers
        What is wanted of it, besides or instead of its last hidden state.
    image_size
        Size of the images if it is not the image processor's own: position embeddings are interpolated then.

    Raises
    ------
    InvalidInputError
        When weights are missing or do not fit, or the network does not take an image alone.
    """
    config = checkpoint.config
    architecture = (getattr(config, "architectures", None) or [""])[0]
    classifies = architecture.endswith("ForImageClassification")
    known = ARCHITECTURES.get(config.model_type)
    options: dict[str, Any] = {"config": config}
    auto: Any = AutoModelForImageClassification if classifies else AutoModel
    if hasattr(config, "vision_config") and not classifies:
        if known is None or known.vision_class is None:
            raise InvalidInputError(
                f"{checkpoint.source} is a model of images and text ({architecture or config.model_type}); "
                "save its vision model on its own and give that."
            )
        auto, options = getattr(transformers, known.vision_class), {"config": config.vision_config}
        if known.weight_names:
            options["key_mapping"] = dict(known.weight_names)
    needs_pooler = classifies or any("pooler" in layer.name for layer in layers)
    module = _load(checkpoint, auto, options, needs_pooler)
    if module.main_input_name != "pixel_values":
        raise InvalidInputError(
            f"{checkpoint.source} ({type(module).__name__}) takes {module.main_input_name}, not images; choose a vision model."
        )
    return PretrainedNetwork(
        module,
        classifies=classifies,
        interpolates=image_size is not None,
        gives_hidden_states=any(layer.index is not None for layer in layers),
    )


def load_processor(checkpoint: Checkpoint, image_size: int | None) -> Any:
    """The image processor on Pillow, whose numbers do not depend on what else is installed."""
    with checkpoint_errors(checkpoint):
        processor = AutoImageProcessor.from_pretrained(checkpoint.source, backend="pil", **checkpoint.options)
        if image_size is not None:
            processor = type(processor).from_dict(resized(processor.to_dict(), image_size))
    return processor


def load_processor_folder(folder: str | os.PathLike[str], image_size: int | None) -> Any:
    """The image processor that ``save_pretrained`` wrote to a local folder, for a network that comes from elsewhere."""
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    if not any((path / name).is_file() for name in PROCESSOR_FILES):
        raise StoreNotFoundError(
            f"There is no {PROCESSOR_FILES[0]} in {path}; give a folder that an image processor was saved to."
        )
    return load_processor(Checkpoint(str(path), path.name, path, None, None), image_size)


def _load(checkpoint: Checkpoint, auto: Any, options: Mapping[str, Any], needs_pooler: bool) -> Any:
    """The network with every weight that its outputs depend on."""
    with checkpoint_errors(checkpoint):
        network, loading = auto.from_pretrained(
            checkpoint.source,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told in the loading information, and refused below
            **options,
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
        key for key in loading["missing_keys"] if not WITHOUT_EFFECT.search(key) and (needs_pooler or not _POOLER.search(key))
    )
    if missing:
        raise InvalidInputError(
            f"The weights of {checkpoint.source} lack {len(missing)} of the tensors of a {type(network).__name__} "
            f"({missing[0]} first), which would be random; choose a checkpoint of this architecture."
        )
    return network


def _takes(network: Any, parameter: str) -> bool:
    """Whether a network's forward pass has a parameter."""
    return parameter in inspect.signature(network.forward).parameters
