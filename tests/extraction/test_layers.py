"""Several layers in one forward pass: names, values, stores, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.extraction.batching import Blocks
from semrsm_dist.extraction.extract import extract, extract_layers
from semrsm_dist.extraction.layer import Layer, layer_stores, parse_layers
from semrsm_dist.extraction.model import VisionModel, load_model
from semrsm_dist.extraction.own_module import OwnNetwork
from semrsm_dist.extraction.positions import to_positions
from storage_schemas import ActivationStore, activations
from storage_schemas.errors import FingerprintMismatchError, InvalidInputError

STAGES = ("embedder", "encoder.stages.0", "last_hidden_state")
"""Layers of the small ResNet with different S and C: 16 × 16 × 8, 16 × 16 × 8 and 8 × 8 × 16."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samples of 64 × 16 in a chunk, two of 256 × 8."""
    monkeypatch.setattr(activations, "CHUNK_BYTES", 4 * 64 * 16 * 4)


@pytest.fixture
def dataset(image_folder: Path) -> Dataset:
    return read_image_folder(image_folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stores(folder: Path, model: VisionModel) -> dict[str, str]:
    return {name: str(folder / f"x.{name}.zarr") for name in model.representations}


@pytest.mark.parametrize(
    ("text", "layer", "canonical"),
    [
        ("last_hidden_state", Layer("last_hidden_state"), "last_hidden_state"),
        ("pooler_output", Layer("pooler_output"), "pooler_output"),
        ("hidden_states.12", Layer("hidden_states.12", index=12), "hidden_states.12"),
        ("encoder.layer.3", Layer("encoder.layer.3", is_module=True), "module:encoder.layer.3"),
        ("module:encoder.layer.3", Layer("encoder.layer.3", is_module=True), "module:encoder.layer.3"),
        ("module:hidden_states.1", Layer("hidden_states.1", is_module=True), "module:hidden_states.1"),
        ("module:output", Layer("output", is_module=True), "module:output"),
    ],
)
def test_a_layer_is_an_output_or_a_module(text: str, layer: Layer, canonical: str) -> None:
    assert Layer.parse(text) == layer
    assert str(layer) == canonical


@pytest.mark.parametrize("text", ["", "module:", "a/b", "../x", "a b", "hidden_states", "{layer}", "-1"])
def test_what_no_file_should_be_called_is_no_layer(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^[^\n]+\.$"):
        parse_layers([text])


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"^The layer encoder is named more than once; [^\n]*$"):
        parse_layers(["encoder", "module:encoder"])


def test_each_layer_has_a_store_of_its_own() -> None:
    layers = parse_layers(["hidden_states.0", "module:embedder"])
    assert layer_stores("a/x.{layer}.zarr", layers) == {
        "hidden_states.0": "a/x.hidden_states.0.zarr",
        "embedder": "a/x.embedder.zarr",
    }
    assert layer_stores("x.zarr", layers[:1]) == {"hidden_states.0": "x.zarr"}
    with pytest.raises(InvalidInputError, match=r"^2 layers do not go into one store x\.zarr; write \{layer\}[^\n]*$"):
        layer_stores("x.zarr", layers)


def test_layers_are_what_transformers_gives(resnet_folder: Path, image_folder: Path) -> None:
    names = ["hidden_states.0", "hidden_states.1", "hidden_states.2", *STAGES, "resnet.encoder", "pooler_output", "pooler"]
    model = load_model(resnet_folder, layers=names)
    images = [Image.open(path).convert("RGB") for path in sorted(image_folder.iterdir())[:3]]
    found = model.represent_layers(torch.stack([model.preprocess(image) for image in images]))
    network = AutoModelForImageClassification.from_pretrained(resnet_folder).eval()
    pixels = AutoImageProcessor.from_pretrained(resnet_folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        plain = network(**pixels, output_hidden_states=True)
        base = network.base_model(**pixels)
    expected = {
        **{f"hidden_states.{index}": state for index, state in enumerate(plain.hidden_states)},
        "embedder": plain.hidden_states[0],
        "encoder.stages.0": plain.hidden_states[1],
        "last_hidden_state": base.last_hidden_state,
        "resnet.encoder": base.last_hidden_state,
        "pooler_output": base.pooler_output,
        "pooler": base.pooler_output,
    }
    assert list(found) == names
    for name in names:
        maps = expected[name]
        assert found[name].spatial_shape == maps.shape[2:]
        np.testing.assert_allclose(found[name].features, maps.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)
        logits = found[name].logits
        assert logits is not None
        np.testing.assert_allclose(logits, plain.logits, rtol=1e-5, atol=1e-6)


def test_layers_of_one_forward_pass_fill_stores_of_their_own(resnet_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    model = load_model(resnet_folder, layers=STAGES)
    passes: list[int] = []
    model._network.module.register_forward_hook(lambda module, inputs, output: passes.append(len(output.logits)))
    extracted = extract_layers(dataset, model, stores(tmp_path, model), batch_size=3, threads=1)
    assert passes == [1, 3, 3, 3, 2]  # the first tells the shapes
    assert [(store.n_positions, store.n_channels) for store in extracted.values()] == [(256, 8), (256, 8), (64, 16)]
    assert [store.spatial_shape for store in extracted.values()] == [(16, 16), (16, 16), (8, 8)]
    assert [store.chunk_samples for store in extracted.values()] == [2, 2, 4]
    assert {path.name for path in tmp_path.glob("x.*")} == {
        f"x.{name}.{ending}" for name in STAGES for ending in ("zarr", "samples.parquet")
    }
    whole = extract(dataset, load_model(resnet_folder), str(tmp_path / "whole.zarr"), batch_size=3)
    np.testing.assert_allclose(extracted["last_hidden_state"].read(0, 11), whole.read(0, 11), rtol=1e-5, atol=1e-6)
    for name, store in extracted.items():
        np.testing.assert_allclose(store.read_logits(), whole.read_logits(), rtol=1e-5, atol=1e-6)
        layer = name if name == "last_hidden_state" else f"module:{name}"
        assert store.attributes["computed_from"]["model"] == {**whole.attributes["computed_from"]["model"], "layer": layer}


def test_the_bytes_of_a_layer_do_not_depend_on_the_other_layers(resnet_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    together = load_model(resnet_folder, layers=STAGES)
    extract_layers(dataset, together, stores(tmp_path / "together", together), batch_size=3)
    for name in STAGES:
        alone = load_model(resnet_folder, layers=[name])
        extract_layers(dataset, alone, stores(tmp_path / "alone", alone), batch_size=3, threads=1)
    assert tree(tmp_path / "alone") == tree(tmp_path / "together")


def test_only_the_batches_that_a_layer_lacks_run_again(
    resnet_folder: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(resnet_folder, layers=STAGES)
    extracted = extract_layers(dataset, model, stores(tmp_path, model), batch_size=3)
    before = tree(tmp_path)
    extracted["embedder"].location.delete("features/c/1/0/0")  # samples 2 and 3
    extracted["last_hidden_state"].location.delete("features/c/2/0/0")  # samples 8 to 10
    blocks = Blocks.of(extracted, 3, layers=True)
    assert blocks.with_chunks(blocks.missing_chunks()) == [0]
    assert blocks.missing_chunks_of(0) == blocks.missing_chunks()
    batches = blocks.batches(blocks.missing_chunks(), dataset.samples)
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 3), (3, 6), (6, 9), (9, 11)]
    extracted["embedder"].location.delete("features/c/1/0/0")
    written: list[tuple[str, int]] = []
    write = ActivationStore.write_chunk

    def recording(store: ActivationStore, index: int, *values: Any) -> None:
        written.append((store.location.name, index))
        write(store, index, *values)

    monkeypatch.setattr(ActivationStore, "write_chunk", recording)
    extract_layers(dataset, model, stores(tmp_path, model), batch_size=3)
    assert written == [("x.embedder.zarr", 1), ("x.last_hidden_state.zarr", 2)]
    assert tree(tmp_path) == before


def test_batches_stay_within_blocks_of_samples(resnet_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    model = load_model(resnet_folder, layers=["last_hidden_state"])
    extract_layers(dataset, model, stores(tmp_path, model))
    store = ActivationStore.open(str(tmp_path / "x.last_hidden_state.zarr"))
    store.location.delete("features/c/1/0/0")
    batches = Blocks((store,), 8, 3).batches((frozenset({1}),), dataset.samples)
    assert [(batch.start, batch.stop) for batch in batches] == [(3, 6), (6, 8)]


def test_a_layer_is_not_mixed_with_another_or_with_the_model_itself(
    resnet_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = str(tmp_path / "a.zarr")
    extract(dataset, load_model(resnet_folder, layers=["hidden_states.2"]), out)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*model\.layer is \"hidden_states\.2\" in the store[^\n]*$"):
        extract(dataset, load_model(resnet_folder, layers=["last_hidden_state"]), out)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*batches_within is 100 in the store and null now[^\n]*$"):
        extract(dataset, load_model(resnet_folder), out)
    with pytest.raises(InvalidInputError, match=r"^The model gives 3 representations, [^\n]*use extract_layers\.$"):
        extract(dataset, load_model(resnet_folder, layers=STAGES), out)


def test_cls_is_dropped_from_every_layer_that_has_it(vit_folder: Path) -> None:
    names = ["hidden_states.1", "embeddings.patch_embeddings", "last_hidden_state"]
    whole, patches = load_model(vit_folder, layers=names), load_model(vit_folder, layers=names, drop_cls=True)
    pixels = torch.rand(2, 3, 32, 32)
    kept, dropped = whole.represent_layers(pixels), patches.represent_layers(pixels)
    assert [kept[name].features.shape[1] for name in names] == [17, 16, 17]
    for name in names:
        assert dropped[name].spatial_shape == (4, 4)
        assert np.array_equal(dropped[name].features, kept[name].features[:, -16:])
    scores = load_model(vit_folder, layers=["classifier"], drop_cls=True)
    with pytest.raises(
        InvalidInputError, match=r"^The layer classifier of vit gives 1 positions and not the 1 \+ 4 × 4 [^\n]*$"
    ):
        scores.represent(pixels)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("encoder.stages.7", r"^resnet has no layer encoder\.stages\.7; close to it are encoder\.stages\.\d, [^\n]*\.$"),
        ("encodr", r"^resnet has no layer encodr; close to it are [^\n]*encoder[^\n]*\.$"),
        ("hiden_states.1", r"^resnet has no layer hiden_states\.1; close to it are hidden_states\.1[^\n]*\.$"),
        ("last_hiden_state", r"^resnet has no layer last_hiden_state; close to it are last_hidden_state[^\n]*\.$"),
        ("zzz", r"^resnet has no layer zzz; its modules begin with embedder, [^\n]* more\.$"),
    ],
)
def test_a_layer_that_does_not_exist_is_answered_with_close_ones(resnet_folder: Path, name: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        load_model(resnet_folder, layers=["last_hidden_state", name])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "hidden_states.9",
            r"^The layer hidden_states\.9 of resnet is not there; the model gives hidden_states\.0 to hidden_states\.2\.$",
        ),
        ("encoder.stages", r"^The layer encoder\.stages of resnet runs 0 times in a forward pass; [^\n]*$"),
        ("output", r"^The layer output of resnet gives no tensor [^\n]*\(NoneType\)[^\n]*$"),
    ],
)
def test_a_layer_that_gives_nothing_stops_before_a_store_is_made(
    resnet_folder: Path, dataset: Dataset, tmp_path: Path, name: str, sentence: str
) -> None:
    model = load_model(resnet_folder, layers=["last_hidden_state", name])
    with pytest.raises(InvalidInputError, match=sentence):
        extract_layers(dataset, model, stores(tmp_path / "out", model))
    assert list((tmp_path / "out").glob("*.zarr")) == []


def test_a_random_pooler_is_no_layer(vit_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vit_folder, tmp_path / "vit"))  # a classifier's checkpoint has no pooler
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTModel"]}))
    load_model(folder, layers=["hidden_states.1"])
    for layer in ("pooler_output", "pooler.dense"):
        with pytest.raises(InvalidInputError, match=r"^[^\n]*lack 2 of the tensors [^\n]*pooler[^\n]*$"):
            load_model(folder, layers=[layer])


class Identity:
    """An image processor for networks that need none."""

    def __call__(self, images: list[Image.Image], **_: Any) -> dict[str, Any]:
        return {"pixel_values": [np.asarray(image, dtype=np.float32).transpose(2, 0, 1) for image in images]}


def wrapped(network: nn.Module, *layers: str) -> VisionModel:
    """A module as a model, with some of its layers."""
    description = {"model": "net", "layer": "output", "image_size": None}
    return VisionModel(OwnNetwork("net", network), Identity(), description, layers=parse_layers(layers))


class Returns(nn.Module):
    """Gives what it was made with, for a batch."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.value


def test_what_the_next_module_does_in_place_is_not_seen() -> None:
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1), relu=nn.ReLU(inplace=True)))
    pixels = torch.randn(2, 3, 5, 6)
    found = wrapped(network, "conv", "relu").represent_layers(pixels)
    with torch.no_grad():
        expected = network.conv(pixels).flatten(2).transpose(1, 2).numpy()
    assert expected.min() < 0
    assert np.array_equal(found["conv"].features, expected)
    assert np.array_equal(found["relu"].features, np.maximum(expected, 0))


@pytest.mark.parametrize(
    ("value", "shape", "spatial_shape"),
    [
        (torch.zeros(2, 7, 5), (2, 7, 5), None),
        (torch.zeros(2, 5, 3, 4), (2, 12, 5), (3, 4)),
        (torch.zeros(2, 3, 4, 9), (2, 12, 9), (3, 4)),  # channels last: 3 × 4 has the proportions of the image
        (torch.zeros(2, 5), (2, 1, 5), None),
        ((torch.zeros(2, 7, 5), None), (2, 7, 5), None),
        ([torch.zeros(2, 7, 5)], (2, 7, 5), None),
        ({"last_hidden_state": torch.zeros(2, 7, 5)}, (2, 7, 5), None),
        (torch.zeros(2, 7, 5, dtype=torch.bfloat16), (2, 7, 5), None),
    ],
)
def test_what_modules_give_is_understood(value: Any, shape: Any, spatial_shape: Any) -> None:
    network = nn.Sequential(OrderedDict(inner=Returns(value), outer=Returns(torch.zeros(2, 1, 1))))
    found = wrapped(network, "inner").represent(torch.zeros(2, 3, 30, 40))
    assert found.features.shape == shape
    assert found.features.dtype == np.float32
    assert found.spatial_shape == spatial_shape


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 2, 3, 4, 5), r"gives float32 of shape \(2, 2, 3, 4, 5\) for a batch of 2"),
        (torch.zeros(6, 7, 5), r"gives float32 of shape \(6, 7, 5\) for a batch of 2"),
        (torch.zeros(2, 7, 5, dtype=torch.int64), r"gives int64 of shape \(2, 7, 5\) for a batch of 2"),
        ((None, torch.zeros(2, 7, 5)), r"gives no tensor of positions and channels for an image \(tuple\)"),
        ((), r"gives no tensor of positions and channels for an image \(tuple\)"),
        ("text", r"gives no tensor of positions and channels for an image \(str\)"),
    ],
)
def test_other_things_are_refused(value: Any, words: str) -> None:
    network = nn.Sequential(OrderedDict(inner=Returns(value), outer=Returns(torch.zeros(2, 1, 1))))
    with pytest.raises(InvalidInputError, match=rf"^The layer inner of net {words}[^\n]*$"):
        wrapped(network, "inner").represent(torch.zeros(2, 3, 30, 40))


def test_a_module_that_runs_twice_is_no_layer() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(OrderedDict(relu=relu, conv=nn.Conv2d(3, 3, 1), again=relu))
    with pytest.raises(InvalidInputError, match=r"^The layer relu of net runs 2 times in a forward pass; [^\n]*$"):
        wrapped(network, "relu").represent(torch.zeros(2, 3, 4, 4))


def test_a_map_without_the_images_proportions_is_read_channels_first() -> None:
    assert to_positions("it", torch.zeros(1, 8, 3, 9), 1, (30, 40)).spatial_shape == (3, 9)
    assert to_positions("it", torch.zeros(1, 7, 7, 8), 1, (224, 224)).spatial_shape == (7, 7)
    assert to_positions("it", torch.zeros(1, 7, 7, 8), 1).spatial_shape == (7, 8)
    assert to_positions("it", torch.zeros(1, 36, 64, 768), 1, (576, 1024)).spatial_shape == (36, 64)
    assert to_positions("it", torch.zeros(1, 768, 36, 64), 1, (576, 1024)).spatial_shape == (36, 64)


def test_threads_do_not_see_each_others_layers(resnet_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    model = load_model(resnet_folder, layers=STAGES)
    extract_layers(dataset, model, stores(tmp_path / "one", model), batch_size=2, threads=1)
    extract_layers(dataset, model, stores(tmp_path / "many", model), batch_size=2, threads=5)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
