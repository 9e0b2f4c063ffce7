"""Loading models of transformers, and the equality of what they give with a plain forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from semrsm_dist.extraction.checkpoint import Checkpoint, checkpoint_errors
from semrsm_dist.extraction.model import VisionModel, load_model
from semrsm_dist.extraction.preprocessing import resized
from storage_schemas.errors import InvalidInputError, SemrsmError, StoreNotFoundError
from storage_schemas.fingerprint import canonical


def noise(count: int = 3) -> list[Image.Image]:
    generator = np.random.default_rng(3)
    return [Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(count)]


def prepared(model: VisionModel, images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([model.preprocess(image) for image in images])


def plain(auto: Any, folder: Path, images: list[Image.Image]) -> tuple[NDArray[np.float32], Any]:
    """The last hidden state and the whole output that transformers gives when used directly."""
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    network = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = network.base_model(**pixels).last_hidden_state
        return hidden.numpy(), network(**pixels)


def test_a_convolutional_classifier_gives_its_map_and_logits(resnet_folder: Path) -> None:
    model = load_model(str(resnet_folder))
    found = model.represent(prepared(model, noise()))
    hidden, output = plain(AutoModelForImageClassification, resnet_folder, noise())
    assert hidden.shape == (3, 16, 8, 8)
    assert found.spatial_shape == (8, 8)
    assert found.features.shape == (3, 64, 16)
    assert found.logits is not None
    np.testing.assert_allclose(found.features, hidden.reshape(3, 16, 64).transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, output.logits.numpy(), rtol=1e-5, atol=1e-6)


def test_a_transformer_that_classifies_gives_its_tokens_and_logits(vit_folder: Path) -> None:
    model = load_model(vit_folder)
    found = model.represent(prepared(model, noise()))
    hidden, output = plain(AutoModelForImageClassification, vit_folder, noise())
    assert found.features.shape == (3, 17, 16)
    assert found.spatial_shape is None
    assert found.logits is not None
    np.testing.assert_allclose(found.features, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, output.logits.numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_without_classes_gives_its_tokens_only(dinov2_folder: Path) -> None:
    model = load_model(dinov2_folder)
    found = model.represent(prepared(model, noise()))
    hidden, _ = plain(AutoModel, dinov2_folder, noise())
    assert found.logits is None
    np.testing.assert_allclose(found.features, hidden, rtol=1e-5, atol=1e-6)


def test_image_size_makes_a_larger_map(resnet_folder: Path) -> None:
    model = load_model(resnet_folder, image_size=128)
    assert model.preprocess(noise()[0]).shape == (3, 128, 128)
    assert model.represent(prepared(model, noise())).spatial_shape == (16, 16)


def test_image_size_scales_the_resize_with_the_crop(dinov2_folder: Path) -> None:
    model = load_model(dinov2_folder, image_size=64)
    assert model.description["preprocessing"]["size"] == {"shortest_edge": 80}
    assert model.description["preprocessing"]["crop_size"] == {"height": 64, "width": 64}
    assert model.represent(prepared(model, noise())).features.shape == (3, 65, 16)


def test_image_size_interpolates_the_position_embeddings_of_a_vit(vit_folder: Path) -> None:
    model = load_model(vit_folder, image_size=64)
    assert model.represent(prepared(model, noise())).features.shape == (3, 65, 16)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 224}}, {"size": {"shortest_edge": 448}}),
        (
            {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}},
            {"size": {"height": 512, "width": 512}, "crop_size": {"height": 448, "width": 448}},
        ),
        (
            {"size": {"height": 256, "width": 192}, "crop_size": {"height": 9, "width": 9}, "do_center_crop": False},
            {"size": {"height": 448, "width": 448}, "crop_size": {"height": 9, "width": 9}, "do_center_crop": False},
        ),
    ],
)
def test_sizes_are_replaced_where_they_decide_what_the_network_sees(settings: Any, expected: Any) -> None:
    assert resized(settings, 448) == expected


def test_an_impossible_image_size_is_refused(resnet_folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^An image size of 0 pixels[^\n]*$"):
        load_model(resnet_folder, image_size=0)
    with pytest.raises(InvalidInputError, match=r"^The image processor has no size[^\n]*$"):
        resized({"do_resize": True}, 10)


def test_the_description_is_the_same_wherever_the_folder_is(resnet_folder: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(resnet_folder, tmp_path / "elsewhere" / resnet_folder.name)
    description = load_model(elsewhere).description
    assert description == load_model(resnet_folder).description
    assert description["model"] == "resnet"
    assert str(tmp_path) not in canonical(description)
    assert description["preprocessing"]["size"] == {"height": 64, "width": 64}
    assert description["layer"] == "last_hidden_state"


def test_the_description_changes_with_weights_configuration_and_size(resnet_folder: Path, copied: Path) -> None:
    before = load_model(copied).description
    assert load_model(copied, image_size=128).description != before
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert load_model(copied).description["sha256"] != before["sha256"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_text(content))


def void(_: object) -> None:
    return None


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def set_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("model.safetensors"), "has no model.safetensors"),
        (rename_weights, "has no model.safetensors"),
        (remove("config.json"), "has no config.json"),
        (remove("preprocessor_config.json"), "has no preprocessor_config.json"),
        (truncate, "are damaged"),
        (write("config.json", '{"mo'), "not a valid JSON file"),
        (write("preprocessor_config.json", "{"), "not a valid JSON file"),
        (set_config(model_type="nonsense"), "does not recognize"),
        (set_config(id2label={str(i): str(i) for i in range(9)}), "do not fit a ResNetForImageClassification"),
        (set_config(depths=[1, 2]), "lack \\d+ of the tensors"),
        (set_config(hidden_sizes="many"), "hidden_sizes"),
        (set_config(architectures=["Other"], auto_map={"AutoConfig": "a.B"}, model_type="own"), "code of its own"),
    ],
)
def test_a_damaged_model_folder_is_told_in_one_sentence(copied: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(copied)
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*copied[^\n]*{sentence}[^\n]*$"):
        load_model(copied)


def test_a_classifier_without_its_head_is_refused(vit_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vit_folder, tmp_path / "headless"))
    ViTModel(ViTConfig.from_pretrained(vit_folder)).save_pretrained(folder)
    shutil.copy(vit_folder / "config.json", folder)
    with pytest.raises(InvalidInputError, match=r"^[^\n]*lack 2 of the tensors [^\n]*classifier\.bias[^\n]*$"):
        load_model(folder)


def test_a_missing_pooler_is_no_error_where_nothing_uses_it(vit_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vit_folder, tmp_path / "vit"))
    set_config(architectures=["ViTModel"])(folder)
    model, classifier = load_model(folder), load_model(vit_folder)
    pixels = prepared(model, noise())
    assert np.array_equal(model.represent(pixels).features, classifier.represent(pixels).features)
    assert model.represent(pixels).logits is None


def test_a_missing_folder_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no model folder [^\n]*nowhere[^\n]*$"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"^[^\n]* is a file; [^\n]*$"):
        load_model(tmp_path / "file")


def test_a_local_folder_has_no_revision(resnet_folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^[^\n]* has no revision main; [^\n]*$"):
        load_model(resnet_folder, revision="main")


def test_a_hub_model_out_of_reach_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StoreNotFoundError, match=r"^some/model was not found locally and [^\n]* cannot be reached[^\n]*$"):
        load_model("some/model")


def test_a_hub_model_without_safetensors_is_told_in_one_sentence() -> None:
    checkpoint = Checkpoint("some/model", "some/model", None, "0123", None)
    told = "some/model does not appear to have a file named model.safetensors or model.safetensors.index.json and thus\ncannot"
    with (
        pytest.raises(InvalidInputError, match=r"^some/model has no model\.safetensors at revision 0123, [^\n]*$"),
        checkpoint_errors(checkpoint),
    ):
        raise OSError(told)


def test_a_cached_hub_model_is_recorded_with_its_commit(
    resnet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, cached = "0123456789" * 4, tmp_path / "models--some--model"
    shutil.copytree(resnet_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    description = load_model("some/model").description
    assert (description["model"], description["revision"], description["sha256"]) == ("some/model", commit, None)
    assert load_model("some/model", revision=commit).description == description


def test_a_name_that_no_hub_model_can_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreNotFoundError, match=r"^no such model is neither a local folder nor [^\n]*$"):
        load_model("no such model")


def test_models_that_do_not_take_an_image_alone_are_refused(resnet_folder: Path, tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = SiglipModel(SiglipConfig(text_config={**small, "vocab_size": 9}, vision_config=small))
    bert = BertModel(BertConfig(**small, vocab_size=9))
    for name, network, sentence in (("siglip", siglip, "is a model of images and text"), ("bert", bert, "takes input_ids")):
        network.save_pretrained(tmp_path / name)
        shutil.copy(resnet_folder / "preprocessor_config.json", tmp_path / name)
        with pytest.raises(InvalidInputError, match=rf"^[^\n]*{name}[^\n]* {sentence}[^\n]*$"):
            load_model(tmp_path / name)


def test_an_image_size_that_the_network_cannot_take_is_told(vit_folder: Path) -> None:
    model = load_model(vit_folder)
    with pytest.raises(InvalidInputError, match=r"^vit cannot process images of 40 × 40 pixels[^\n]*$"):
        model.represent(torch.zeros(1, 3, 40, 40))


def test_errors_are_a_users_to_mend() -> None:
    assert issubclass(InvalidInputError, SemrsmError) and issubclass(StoreNotFoundError, SemrsmError)
