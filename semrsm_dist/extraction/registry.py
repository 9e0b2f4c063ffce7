"""Models whose representation is known: those of the paper by name, and every checkpoint of their architectures.

Plain facts; nothing here imports PyTorch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """What is known about every checkpoint of one ``model_type``, on the hub or in a folder."""

    model_type: str
    """``model_type`` of the checkpoint's ``config.json``."""
    vision_class: str | None = None
    """Class of transformers that is the vision part of a checkpoint of images and text or prompts; None: it has none."""
    weight_names: tuple[tuple[str, str], ...] = ()
    """Patterns of weight names in the whole checkpoint and what the vision part calls them."""
    prefix_tokens: int = 0
    """Tokens before those of the patches: CLS, distillation; register tokens are told by the configuration."""
    pads_images: bool = False
    """Whether the image processor pads images on the right and below, so that some positions see nothing."""

    def n_prefix_tokens(self, config: Any) -> int:
        """Tokens before those of the patches under a configuration of this architecture; 0 for maps."""
        return self.prefix_tokens + int(getattr(config, "num_register_tokens", 0))


@dataclass(frozen=True)
class RegisteredModel:
    """A published model and its spatial representation."""

    name: str
    """What ``--model`` and recipes call it."""
    hub_id: str
    """Repository on the Hugging Face hub."""
    model_class: str
    """Class of transformers that is loaded."""
    model_type: str
    """Its architecture, a key of :data:`ARCHITECTURES`."""
    n_positions: int
    """``S`` under its published configuration, with CLS token and padding."""
    n_channels: int
    """``C``."""
    image_size: int
    """Height and width in pixels of what its image processor makes of an image."""
    processor: str
    """Class of its image processor."""
    representation: str
    """Where the representation is, in words of transformers."""
    has_logits: bool = False
    """Whether logits come with the representation, from the same forward pass."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None for its default branch. The commit it stands for is recorded."""
    notes: str = ""
    """What to know before using it."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches; 0 for maps."""
        return ARCHITECTURES[self.model_type].prefix_tokens

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("name", "hub_id", "revision", "model_class", "representation", "n_positions", "n_channels", "prefix_tokens")
        more = ("has_logits", "image_size", "processor", "notes")
        return {name: getattr(self, name) for name in (*names, *more)}


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture("bit"),
        Architecture("clip", vision_class="CLIPVisionModel", prefix_tokens=1),
        Architecture("clip_vision_model", prefix_tokens=1),
        Architecture(
            "clipseg",
            vision_class="CLIPSegVisionModel",
            weight_names=((r"^clip\.(?=vision_model\.)", ""),),  # of a CLIPSegForImageSegmentation, as published
            prefix_tokens=1,
        ),
        Architecture("clipseg_vision_model", prefix_tokens=1),
        Architecture("convnextv2"),
        Architecture("deit", prefix_tokens=2),
        Architecture("dinov2", prefix_tokens=1),
        Architecture("dinov2_with_registers", prefix_tokens=1),
        Architecture("resnet"),
        Architecture("sam", vision_class="SamVisionModel", pads_images=True),
        Architecture("sam_vision_model", pads_images=True),
        Architecture("vit", prefix_tokens=1),
    )
}
"""Architectures by ``model_type``."""

_CLIPSEG_NOTES = "the CLIP encoder of the segmentation model, patches of 16 pixels, positions interpolated from 224 pixels"


def _resnet(depth: int, n_channels: int) -> RegisteredModel:
    """One of the residual networks, which differ in depth and channels only."""
    return RegisteredModel(
        name=f"resnet-{depth}",
        hub_id=f"microsoft/resnet-{depth}",
        model_class="ResNetForImageClassification",
        model_type="resnet",
        n_positions=49,
        n_channels=n_channels,
        image_size=224,
        processor="ConvNextImageProcessor",
        representation="ResNetModel.last_hidden_state",
        has_logits=True,
        notes="7 × 7 map after the last ReLU",
    )


MODELS = (
    RegisteredModel(
        name="clip-vit-base-patch32",
        hub_id="openai/clip-vit-base-patch32",
        model_class="CLIPVisionModel",
        model_type="clip",
        n_positions=50,
        n_channels=768,
        image_size=224,
        processor="CLIPImageProcessor",
        representation="CLIPVisionModel.last_hidden_state",
        revision="c237dc49a33fc61debc9276459120b7eac67e7ef",  # the hub's conversion: main has a pickle only
        notes="before the layer norm and the projection of the image embedding; safetensors are not on main but at c237dc49",
    ),
    RegisteredModel(
        name="clipseg-rd64",
        hub_id="CIDAS/clipseg-rd64",
        model_class="CLIPSegVisionModel",
        model_type="clipseg",
        n_positions=485,
        n_channels=768,
        image_size=352,
        processor="ViTImageProcessor",
        representation="CLIPSegVisionModel.last_hidden_state",
        notes=_CLIPSEG_NOTES,
    ),
    RegisteredModel(
        name="clipseg-rd64-refined",
        hub_id="CIDAS/clipseg-rd64-refined",
        model_class="CLIPSegVisionModel",
        model_type="clipseg",
        n_positions=485,
        n_channels=768,
        image_size=352,
        processor="ViTImageProcessor",
        representation="CLIPSegVisionModel.last_hidden_state",
        notes=_CLIPSEG_NOTES,
    ),
    RegisteredModel(
        name="dinov2-giant",
        hub_id="facebook/dinov2-giant",
        model_class="Dinov2Model",
        model_type="dinov2",
        n_positions=257,
        n_channels=1536,
        image_size=224,
        processor="BitImageProcessor",
        representation="Dinov2Model.last_hidden_state",
        notes="after the final layer norm, which hidden_states.40 is before",
    ),
    RegisteredModel(
        name="sam-vit-base",
        hub_id="facebook/sam-vit-base",
        model_class="SamVisionModel",
        model_type="sam",
        n_positions=4096,
        n_channels=256,
        image_size=1024,
        processor="SamImageProcessor",
        representation="SamVisionModel.last_hidden_state",
        notes="image embeddings, a 64 × 64 map after the neck; a 16:9 image fills 2304 positions and 1792 are padding",
    ),
    RegisteredModel(
        name="bit-50",
        hub_id="google/bit-50",
        model_class="BitForImageClassification",
        model_type="bit",
        n_positions=196,
        n_channels=2048,
        image_size=448,
        processor="BitImageProcessor",
        representation="BitModel.last_hidden_state",
        has_logits=True,
        notes="14 × 14 map after the final group norm and ReLU",
    ),
    _resnet(18, 512),
    _resnet(50, 2048),
    _resnet(101, 2048),
    RegisteredModel(
        name="convnextv2-base-1k-224",
        hub_id="facebook/convnextv2-base-1k-224",
        model_class="ConvNextV2ForImageClassification",
        model_type="convnextv2",
        n_positions=49,
        n_channels=1024,
        image_size=224,
        processor="ConvNextImageProcessor",
        representation="ConvNextV2Model.last_hidden_state",
        has_logits=True,
        notes="7 × 7 map before the layer norm of its mean",
    ),
    RegisteredModel(
        name="vit-base-patch16-224",
        hub_id="google/vit-base-patch16-224",
        model_class="ViTForImageClassification",
        model_type="vit",
        n_positions=197,
        n_channels=768,
        image_size=224,
        processor="ViTImageProcessor",
        representation="ViTModel.last_hidden_state",
        has_logits=True,
        notes="after the final layer norm, which hidden_states.12 is before",
    ),
    RegisteredModel(
        name="vit-large-patch32-384",
        hub_id="google/vit-large-patch32-384",
        model_class="ViTForImageClassification",
        model_type="vit",
        n_positions=145,
        n_channels=1024,
        image_size=384,
        processor="ViTImageProcessor",
        representation="ViTModel.last_hidden_state",
        has_logits=True,
        notes="after the final layer norm, which hidden_states.24 is before",
    ),
    RegisteredModel(
        name="dinov2-giant-imagenet1k-1-layer",
        hub_id="facebook/dinov2-giant-imagenet1k-1-layer",
        model_class="Dinov2ForImageClassification",
        model_type="dinov2",
        n_positions=257,
        n_channels=1536,
        image_size=224,
        processor="BitImageProcessor",
        representation="Dinov2Model.last_hidden_state",
        has_logits=True,
        notes="after the final layer norm, which hidden_states.40 is before",
    ),
)
"""Every registered model, in the order of the table in ``docs/models.md``."""


def find_model(name: str) -> RegisteredModel | None:
    """The registered model of a name or hub id, or None.

    >>> find_model("resnet-50") is find_model("microsoft/resnet-50")
    True
    """
    return next((model for model in MODELS if name in (model.name, model.hub_id)), None)


def close_names(name: str) -> list[str]:
    """Names and hub ids of registered models that a mistyped one may stand for, the closest first.

    >>> close_names("resnet-5")
    ['resnet-50', 'resnet-18', 'resnet-101']
    >>> close_names("openai/clip-vit-base-patch23")
    ['openai/clip-vit-base-patch32']
    """
    known = [model.hub_id if "/" in name else model.name for model in MODELS]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.75)
