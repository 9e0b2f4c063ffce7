"""Every registered model: a small one of its architecture through the code of a hub id, and the shapes of the published one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.extraction.extract import extract
from semrsm_dist.extraction.model import load_model
from semrsm_dist.extraction.positions import to_positions
from semrsm_dist.extraction.pretrained import PretrainedNetwork
from semrsm_dist.extraction.registry import ARCHITECTURES, MODELS, RegisteredModel, close_names, find_model
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

COMMIT = "0123456789" * 4
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)

# What the config.json of each published model says that its shapes depend on.
PUBLISHED: dict[str, dict[str, Any]] = {
    "clip-vit-base-patch32": {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
    "clipseg-rd64": {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    "clipseg-rd64-refined": {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    "dinov2-giant": {
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "image_size": 518,
        "patch_size": 14,
        "use_swiglu_ffn": True,
    },
    "sam-vit-base": {"hidden_size": 768, "num_hidden_layers": 12, "output_channels": 256, "image_size": 1024, "patch_size": 16},
    "bit-50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "preactivation"},
    "resnet-18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet-50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    "resnet-101": {"depths": [3, 4, 23, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    "convnextv2-base-1k-224": {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024], "image_size": 224},
    "vit-base-patch16-224": {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    "vit-large-patch32-384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 384,
        "patch_size": 32,
    },
}
PUBLISHED["dinov2-giant-imagenet1k-1-layer"] = PUBLISHED["dinov2-giant"]

# What the preprocessor_config.json of each says about sizes.
SIZES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "SamImageProcessor": {"size": {"longest_edge": 1024}, "pad_size": {"height": 1024, "width": 1024}},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "dinov2": {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    "bit": {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}},
    "clipseg": {"size": {"height": 352, "width": 352}},
    "vit-base-patch16-224": {"size": {"height": 224, "width": 224}},
    "vit-large-patch32-384": {"size": {"height": 384, "width": 384}},
}

_TOKENS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {**_TOKENS, "image_size": 32, "patch_size": 8}
_TEXT = {**_TOKENS, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
_SAM = {**_TOKENS, "output_channels": 8, "image_size": 64, "patch_size": 8, "window_size": 3, "global_attn_indexes": [1]}
_SAM_PROMPTS = {"hidden_size": 8, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
_SAM_MASKS = {"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2, "iou_head_hidden_dim": 8, "iou_head_depth": 2}
_SQUARE = {"size": {"height": 32, "width": 32}}
_CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}

# By architecture: the class that is saved, its small configuration, the processor's settings, and S × C (with CLS and padding).
SMALL: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "clip": ("CLIPModel", {"vision_config": _VIT, "text_config": _TEXT, "projection_dim": 8}, _CROP, (17, 16)),
    "clipseg": (
        "CLIPSegForImageSegmentation",
        {
            "vision_config": {**_VIT, "image_size": 16},  # positions are interpolated, as those of the published one
            "text_config": _TEXT,
            "projection_dim": 8,
            "extract_layers": [0, 1],
            "reduce_dim": 8,
        },
        _SQUARE,
        (17, 16),
    ),
    "sam": (
        "SamModel",
        {"vision_config": _SAM, "prompt_encoder_config": _SAM_PROMPTS, "mask_decoder_config": _SAM_MASKS},
        {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}},
        (64, 8),
    ),
    "dinov2": ("Dinov2Model", {**_VIT, "use_swiglu_ffn": True}, _CROP, (17, 16)),
    "bit": ("BitForImageClassification", {**_STAGES, "num_groups": 4}, _CROP, (16, 16)),
    "resnet": ("ResNetForImageClassification", _STAGES, {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, (16, 16)),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2, "num_labels": 5},
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875},
        (16, 16),
    ),
    "vit": ("ViTForImageClassification", {**_VIT, "num_labels": 5}, _SQUARE, (17, 16)),
}


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Numbers in every tensor, so that no part of a network is without effect; networks begin with zeros in some."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.3
            tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return network


def save_small(model: RegisteredModel, folder: Path) -> Path:
    """A small network of a registered model's architecture and its image processor, as the hub has them."""
    saved_class, config, settings, _ = SMALL[model.model_type]
    if model.name == "dinov2-giant-imagenet1k-1-layer":
        saved_class, config = model.model_class, {**config, "num_labels": 5}
    network_class = getattr(transformers, saved_class)
    randomise(network_class(network_class.config_class(**config))).save_pretrained(folder)
    getattr(transformers, f"{model.processor}Pil")(**settings).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_processor_type": model.processor}))
    return folder


def plain(model: RegisteredModel, folder: Path, images: list[Image.Image]) -> tuple[NDArray[np.float32], Any]:
    """The representation ``(n, S, C)`` and the logits that the whole checkpoint gives when transformers is used directly."""
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    pixels = pixels["pixel_values"]
    network = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    network = network.from_pretrained(folder).eval()
    with torch.no_grad():
        if model.model_type == "clip":
            hidden = network.vision_model(pixels).last_hidden_state
        elif model.model_type == "clipseg":
            hidden = network.clip.vision_model(pixels).last_hidden_state
        elif model.model_type == "sam":
            hidden = network.get_image_embeddings(pixels)
        else:
            hidden = network.base_model(pixels).last_hidden_state
        logits = network(pixels).logits.numpy() if model.has_logits else None
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    return hidden.numpy(), logits


Publish = Callable[[RegisteredModel], Path]


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each registered model."""
    folder = tmp_path_factory.mktemp("small")
    return {model.name: save_small(model, folder / model.name) for model in MODELS}


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_models: dict[str, Path]) -> Publish:
    """Puts a small model where the hub's client has what it downloaded, under its hub id; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(model: RegisteredModel) -> Path:
        cached = tmp_path / "hub" / f"models--{model.hub_id.replace('/', '--')}"
        shutil.copytree(small_models[model.name], cached / "snapshots" / (model.revision or COMMIT))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
        return small_models[model.name]

    return put


@pytest.fixture
def wide_images(tmp_path: Path) -> Path:
    """Five images of noise, 16:9."""
    generator = np.random.default_rng(4)
    folder = tmp_path / "wide"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(generator.integers(0, 256, (72, 128, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.iterdir())]


@every_model
def test_a_registered_model_is_extracted_by_name(
    model: RegisteredModel, publish: Publish, wide_images: Path, tmp_path: Path
) -> None:
    folder = publish(model)
    loaded = load_model(model.name)
    assert loaded.description["architecture"] == model.model_class
    assert (loaded.description["model"], loaded.description["revision"]) == (model.hub_id, model.revision or COMMIT)
    store = extract(read_image_folder(wide_images), loaded, str(tmp_path / "a.zarr"), batch_size=2)
    hidden, logits = plain(model, folder, opened(wide_images))
    _, _, _, shape = SMALL[model.model_type]
    assert (store.n_positions, store.n_channels) == shape == hidden.shape[1:]
    np.testing.assert_allclose(store.read(0, 5), hidden, rtol=1e-4, atol=1e-5)
    assert store.has_logits == model.has_logits
    if model.has_logits:
        np.testing.assert_allclose(store.read_logits(), logits, rtol=1e-4, atol=1e-5)
    side = math.isqrt(shape[0])
    assert store.spatial_shape == (None if model.prefix_tokens else (side, side))
    assert store.attributes["computed_from"]["model"] == loaded.description
    assert not {"drop_cls", "drop_padding"} & loaded.description.keys()


@every_model
def test_a_registered_model_is_the_same_by_name_and_by_hub_id(model: RegisteredModel, publish: Publish) -> None:
    publish(model)
    assert load_model(model.hub_id).description == load_model(model.name).description


@every_model
def test_a_copy_of_a_registered_model_in_a_folder_is_treated_alike(
    model: RegisteredModel, publish: Publish, wide_images: Path
) -> None:
    folder = publish(model)
    by_name, copy = load_model(model.name), load_model(folder)
    pixels = torch.stack([by_name.preprocess(image) for image in opened(wide_images)])
    assert copy.description["architecture"] == model.model_class
    assert copy.description["model"] == folder.name
    assert np.array_equal(copy.represent(pixels).features, by_name.represent(pixels).features)


@pytest.mark.parametrize("model", [model for model in MODELS if model.prefix_tokens], ids=lambda model: model.name)
def test_without_its_cls_token_a_transformer_gives_a_map(
    model: RegisteredModel, publish: Publish, wide_images: Path, tmp_path: Path
) -> None:
    publish(model)
    whole, patches = load_model(model.name), load_model(model.name, drop_cls=True)
    assert patches.description == {**whole.description, "drop_cls": True}
    kept = extract(read_image_folder(wide_images), whole, str(tmp_path / "whole.zarr"))
    dropped = extract(read_image_folder(wide_images), patches, str(tmp_path / "patches.zarr"))
    assert np.array_equal(dropped.read(0, 5), kept.read(0, 5)[:, 1:])
    assert dropped.spatial_shape == (4, 4)
    assert dropped.has_logits == model.has_logits


@pytest.mark.parametrize("model", [model for model in MODELS if not model.prefix_tokens], ids=lambda model: model.name)
def test_a_map_has_no_cls_token_to_drop(model: RegisteredModel, publish: Publish) -> None:
    publish(model)
    with pytest.raises(InvalidInputError, match=rf"^{model.hub_id} has no CLS token to drop[^\n]*leave drop_cls out\.$"):
        load_model(model.name, drop_cls=True)


def test_every_token_before_the_patches_is_dropped(tmp_path: Path) -> None:
    networks: dict[str, tuple[int, Any]] = {
        "DeiTModel": (2, transformers.DeiTConfig(**_VIT)),
        "Dinov2WithRegistersModel": (4, transformers.Dinov2WithRegistersConfig(**_VIT, num_register_tokens=3)),
    }
    for name, (n_tokens, config) in networks.items():
        folder = tmp_path / name
        randomise(getattr(transformers, name)(config)).save_pretrained(folder)
        transformers.ViTImageProcessorPil(**_SQUARE).save_pretrained(folder)
        pixels = torch.rand(2, 3, 32, 32)
        whole, patches = load_model(folder).represent(pixels), load_model(folder, drop_cls=True).represent(pixels)
        assert whole.features.shape == (2, n_tokens + 16, 16)
        assert np.array_equal(patches.features, whole.features[:, n_tokens:])
        assert patches.spatial_shape == (4, 4)


def test_the_map_without_cls_follows_the_image_size(publish: Publish, wide_images: Path) -> None:
    vit = find_model("vit-base-patch16-224")
    assert vit is not None
    publish(vit)
    model = load_model("vit-base-patch16-224", drop_cls=True, image_size=48)
    assert model.represent(torch.zeros(1, 3, 48, 48)).spatial_shape == (6, 6)


def test_the_positions_of_an_unknown_architecture_are_all_kept(tmp_path: Path) -> None:
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, image_size=32, num_labels=3)
    transformers.MobileNetV2Model(config).save_pretrained(tmp_path / "mobile")
    transformers.ViTImageProcessorPil(**_SQUARE).save_pretrained(tmp_path / "mobile")
    for option in ("drop_cls", "drop_padding"):
        with pytest.raises(InvalidInputError, match=r"^[^\n]*\(mobilenet_v2\) are CLS tokens or padding is not known; [^\n]*$"):
            load_model(tmp_path / "mobile", **{option: True})


@pytest.fixture
def sam(publish: Publish) -> Path:
    """A small SAM under its hub id: 64 pixels, patches of 8."""
    model = find_model("sam-vit-base")
    assert model is not None
    return publish(model)


def test_positions_of_padding_are_dropped(sam: Path, wide_images: Path, tmp_path: Path) -> None:
    whole, content = load_model("sam-vit-base"), load_model("sam-vit-base", drop_padding=True)
    assert content.description == {**whole.description, "drop_padding": True}
    padded = extract(read_image_folder(wide_images), whole, str(tmp_path / "whole.zarr"))
    masked = extract(read_image_folder(wide_images), content, str(tmp_path / "content.zarr"))
    assert padded.spatial_shape == (8, 8)
    assert masked.spatial_shape == (5, 8)  # 36 of 64 rows of pixels are the image: four patches and a half
    expected = padded.read(0, 5).reshape(5, 8, 8, 8)[:, :5].reshape(5, 40, 8)
    assert np.array_equal(masked.read(0, 5), expected)


def test_padding_fills_1792_of_4096_positions_of_a_wide_image() -> None:
    processor = transformers.SamImageProcessorPil()
    height, width = processor(Image.new("RGB", (1920, 1080)), return_tensors="np")["reshaped_input_sizes"][0]
    assert 64 * 64 - (height // 16) * (width // 16) == 1792


def test_without_padding_all_images_must_have_one_shape(sam: Path, wide_images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(wide_images / "z.png")
    assert extract(read_image_folder(wide_images), load_model(sam), str(tmp_path / "padded.zarr")).n_positions == 64
    with pytest.raises(
        InvalidInputError, match=r"^[^\n]*z\.png has 64 × 64 pixels [^\n]* 64 × 36; keep the padding, or [^\n]*$"
    ):
        extract(read_image_folder(wide_images), load_model(sam, drop_padding=True), str(tmp_path / "masked.zarr"))


def test_a_model_that_pads_nothing_has_no_padding_to_drop(publish: Publish) -> None:
    publish(MODELS[0])
    with pytest.raises(InvalidInputError, match=r"^The image processor of openai/clip[^\n]* pads no images; [^\n]*$"):
        load_model(MODELS[0].name, drop_padding=True)


@pytest.mark.parametrize("name", ["vit-base-patch16-224", "dinov2-giant", "dinov2-giant-imagenet1k-1-layer", "sam-vit-base"])
def test_the_last_of_the_hidden_states_is_not_the_last_hidden_state(name: str, publish: Publish, wide_images: Path) -> None:
    model = find_model(name)
    assert model is not None
    folder = publish(model)
    loaded = load_model(name, layers=["hidden_states.2", "last_hidden_state"])
    found = loaded.represent_layers(torch.stack([loaded.preprocess(image) for image in opened(wide_images)]))
    hidden, _ = plain(model, folder, opened(wide_images))
    last, before = found["last_hidden_state"], found["hidden_states.2"]
    np.testing.assert_allclose(last.features, hidden, rtol=1e-4, atol=1e-5)
    assert before.features.shape[1] == last.features.shape[1]
    assert before.features.shape[2] == 16
    assert before.features.shape != last.features.shape or not np.allclose(before.features, last.features, atol=0.1)


def test_maps_with_channels_last_are_told_from_maps_with_channels_first(sam: Path, wide_images: Path) -> None:
    for options in ({}, {"drop_padding": True}):
        model = load_model(sam, layers=["hidden_states.1", "vision_encoder.layers.0", "vision_encoder.neck"], **options)
        found = model.represent_layers(torch.stack([model.preprocess(image) for image in opened(wide_images)]))
        grid = (5, 8) if options else (8, 8)
        assert all(each.spatial_shape == grid for each in found.values())
        assert found["vision_encoder.layers.0"].features.shape == (5, grid[0] * grid[1], 16)
        assert found["vision_encoder.neck"].features.shape == (5, grid[0] * grid[1], 8)
        assert np.array_equal(found["vision_encoder.layers.0"].features, found["hidden_states.1"].features)


@pytest.mark.parametrize("model_type", ["clip", "clipseg", "sam"])
def test_a_vision_part_that_lacks_weights_is_refused(model_type: str, publish: Publish, tmp_path: Path) -> None:
    model = next(model for model in MODELS if model.model_type == model_type)
    folder = Path(shutil.copytree(publish(model), tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "vision" in name and name.endswith("layers.1.layer_norm1.weight"))
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*damaged lack 1 of the tensors of a {model.model_class} [^\n]*$"):
        load_model(folder)


def test_text_weights_are_not_needed(publish: Publish, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(publish(MODELS[0]), tmp_path / "vision_only"))
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "vision" in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pixels = torch.rand(2, 3, 32, 32)
    assert np.array_equal(load_model(folder).represent(pixels).features, load_model(MODELS[0].name).represent(pixels).features)


def test_the_processor_that_early_clipseg_checkpoints_describe_is_read(publish: Publish, tmp_path: Path) -> None:
    model = find_model("clipseg-rd64-refined")
    assert model is not None
    folder = Path(shutil.copytree(publish(model), tmp_path / "early"))
    settings = {"feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "size": 32, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_model(folder).preprocess(Image.new("RGB", (90, 60))).shape == (3, 32, 32)


@every_model
def test_the_published_configuration_has_the_registered_shape(model: RegisteredModel) -> None:
    network_class = getattr(transformers, model.model_class)
    config = network_class.config_class(**PUBLISHED[model.name])
    with torch.device("meta"), torch.inference_mode():
        network = PretrainedNetwork(
            network_class(config), classifies=model.has_logits, interpolates=False, gives_hidden_states=False
        )
        outputs = network.outputs(torch.empty(1, 3, model.image_size, model.image_size))
    positions = to_positions(model.name, outputs["last_hidden_state"], 1)
    assert positions.values.shape == (1, model.n_positions, model.n_channels)
    side = math.isqrt(model.n_positions)
    assert positions.spatial_shape == (None if model.prefix_tokens else (side, side))
    if model.prefix_tokens:
        assert model.n_positions == model.prefix_tokens + (model.image_size // config.patch_size) ** 2
    assert ("logits" in outputs) == model.has_logits


@every_model
def test_the_published_processor_makes_images_of_the_registered_size(model: RegisteredModel) -> None:
    sizes = next(SIZES[key] for key in (model.name, model.model_type, model.processor) if key in SIZES)
    processor = getattr(transformers, f"{model.processor}Pil")(**sizes)
    pixels = processor(Image.new("RGB", (640, 360)), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, model.image_size, model.image_size)


def test_names_and_hub_ids_are_unique_and_architectures_known() -> None:
    names = [name for model in MODELS for name in (model.name, model.hub_id)]
    assert len(set(names)) == len(names)
    assert {model.model_type for model in MODELS} <= set(ARCHITECTURES)
    assert [find_model(model.hub_id) for model in MODELS] == list(MODELS)
    assert find_model("resnet") is None


def test_a_registered_model_out_of_reach_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        StoreNotFoundError, match=r"^microsoft/resnet-50 was not found locally and [^\n]* cannot be reached; give"
    ):
        load_model("resnet-50")


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("resnet-5O", "resnet-50"),
        ("clip-vit-base-patch16", "clip-vit-base-patch32"),
        ("facebook/dinov2-gaint", "facebook/dinov2-giant"),
    ],
)
def test_a_mistyped_name_is_answered_with_close_ones(
    mistyped: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert close_names(mistyped)[0] == meant
    with pytest.raises(StoreNotFoundError, match=rf"^[^\n]*{mistyped}[^\n]*; did you mean {meant}[^\n]*\?$"):
        load_model(mistyped)


def test_a_folder_goes_before_a_registered_name(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(publish(MODELS[0]), tmp_path / "resnet-50")
    monkeypatch.chdir(tmp_path)
    assert load_model("resnet-50").description["architecture"] == "CLIPVisionModel"


def test_the_document_has_the_registered_facts() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for model in MODELS:
        cls, logits = (" yes |" if told else " |" for told in (model.prefix_tokens, model.has_logits))
        shape = f"{model.n_positions:,} × {model.n_channels:,} | {model.image_size:,} |{cls}{logits}"
        assert f"| `{model.name}` | {model.hub_id} | `{model.representation}` | {shape}\n" in text
