"""A user's own module: where it comes from, its weights, its images, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file, save_model
from transformers import BitImageProcessorPil

from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.extraction.extract import extract, extract_layers
from semrsm_dist.extraction.model import load_model
from semrsm_dist.extraction.own_module import is_import_path
from semrsm_dist.extraction.preprocessing import Preprocessing
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

CODE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.tied = self.conv

    def forward(self, pixels):
        return self.relu(self.norm(self.conv(pixels)))

class Classifier(Small):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, pixels):
        maps = super().forward(pixels)
        return {"last_hidden_state": maps, "logits": self.head(maps.mean((2, 3)))}

class Inner:
    Net = Small

def build():
    torch.manual_seed(3)
    return Small()

def build_half():
    return build().half()

def means():
    return nn.AvgPool2d(4)

def needs(depth):
    return Small()

def fails():
    raise LookupError("no such depth")

def crashes():
    return Crashes()

class Crashes(nn.Module):
    def forward(self, pixels):
        raise KeyError("depth")

number = 3
network = Small()
"""
SQUARE: dict[str, Any] = {"image_size": 16, "preprocessing": Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the working directory, which is not on the Python path; it may be imported anew."""
    name = "own_networks_of_a_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "small.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    for module in [each for each in sys.modules if each.startswith(name)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return f"{name}.small"


@pytest.fixture
def weights(package: str, tmp_path: Path) -> Path:
    """Weights of the small network that no generator of a test draws."""
    torch.manual_seed(11)
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    network = namespace["Small"]()
    with torch.no_grad():
        network.norm.running_mean.normal_()
        network.norm.running_var.uniform_(0.5, 2)
    save_model(network, str(tmp_path / "small.safetensors"))
    return tmp_path / "small.safetensors"


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, which may then be written anew: safetensors maps files into memory."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def expected(weights: Path, images: list[Image.Image]) -> torch.Tensor:
    """What the small network gives, by hand: (n, S, C)."""
    tensors = read(weights)
    squares = [np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32) / 255 for image in images]
    pixels = (torch.from_numpy(np.stack(squares)) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    conv = "conv" if "conv.weight" in tensors else "tied"
    maps = torch.nn.functional.conv2d(pixels.permute(0, 3, 1, 2), tensors[f"{conv}.weight"], tensors[f"{conv}.bias"], stride=4)
    statistics = [tensors[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    return torch.nn.functional.batch_norm(maps, *statistics).relu().flatten(2).transpose(1, 2)


def test_an_own_module_is_extracted(package: str, weights: Path, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    model = load_model(f"{package}:Small", weights=weights, **SQUARE)
    store = extract(dataset, model, str(tmp_path / "a.zarr"))
    images = [Image.open(sample.path).convert("RGB") for sample in dataset.samples]
    assert (store.n_positions, store.n_channels, store.spatial_shape) == (16, 6, (4, 4))
    assert not store.has_logits
    np.testing.assert_allclose(store.read(0, 11), expected(weights, images), rtol=1e-4, atol=1e-5)
    assert str(tmp_path) not in sys.path


def test_the_description_names_code_weights_and_preprocessing(package: str, weights: Path, tmp_path: Path) -> None:
    def describe(**changes: Any) -> dict[str, Any]:
        return load_model(f"{package}:Small", **{"weights": weights, **SQUARE, **changes}).description

    description = describe()
    assert (description["model"], description["architecture"]) == (f"{package}:Small", "Small")
    assert (description["revision"], description["layer"], description["image_size"]) == (None, "output", 16)
    assert sorted(description["sha256"]) == ["code", "weights"]
    assert description["preprocessing"]["image_mean"] == [0.5, 0.4, 0.3]
    assert description["preprocessing"]["resample"] == 3
    assert str(tmp_path) not in str(description)
    assert describe() == description
    assert describe(preprocessing=Preprocessing((0, 0, 0), (1, 1, 1))) != description
    tensors = read(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    assert describe()["sha256"]["weights"] != description["sha256"]["weights"]


def test_layers_of_an_own_module(package: str, weights: Path, image_folder: Path, tmp_path: Path) -> None:
    model = load_model(f"{package}:Small", weights=weights, layers=["conv", "norm", "output"], **SQUARE)
    outs = {name: str(tmp_path / f"{name}.zarr") for name in model.representations}
    found = {name: store.read(0, 11) for name, store in extract_layers(read_image_folder(image_folder), model, outs).items()}
    assert found["norm"].min() < 0
    assert np.array_equal(np.maximum(found["norm"], 0), found["output"])
    with pytest.raises(InvalidInputError, match=rf"^{package}:Small has no layer cnv; close to it are conv\.$"):
        load_model(f"{package}:Small", weights=weights, layers=["cnv"], **SQUARE)
    states = load_model(f"{package}:Small", weights=weights, layers=["hidden_states.1"], **SQUARE)
    with pytest.raises(
        InvalidInputError, match=r"^[^\n]*hidden_states\.1 [^\n]* is not there; the model gives no hidden states\.$"
    ):
        states.represent(torch.zeros(1, 3, 16, 16))


def test_a_mapping_may_hold_logits(package: str, weights: Path, tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(4, 6), "head.bias": torch.arange(4.0)}
    save_file({**read(weights), **head}, tmp_path / "classifier.safetensors")
    model = load_model(f"{package}:Classifier", weights=tmp_path / "classifier.safetensors", **SQUARE)
    found = model.represent(torch.rand(2, 3, 16, 16))
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, found.features.mean(1).sum(-1)[:, None] + np.arange(4), rtol=1e-4)


def test_a_function_may_bring_weights_of_its_own(package: str) -> None:
    model = load_model(f"{package}:build", **SQUARE)
    assert sorted(model.description["sha256"]) == ["code", "parameters"]
    assert model.description == load_model(f"{package}:build", **SQUARE).description
    assert load_model(f"{package}:means", **SQUARE).represent(torch.ones(1, 3, 16, 16)).features.shape == (1, 16, 3)
    half = load_model(f"{package}:build_half", **SQUARE)
    assert half.represent(torch.rand(1, 3, 16, 16)).features.dtype == np.float32


def test_images_may_be_prepared_by_a_saved_processor(package: str, weights: Path, tmp_path: Path) -> None:
    processor = BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "processor")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    model = load_model(f"{package}:Small", weights=weights, processor=tmp_path / "processor")
    assert np.array_equal(model.preprocess(image), processor(image, return_tensors="np")["pixel_values"][0])
    larger = load_model(f"{package}:Small", weights=weights, processor=tmp_path / "processor", image_size=32)
    assert larger.preprocess(image).shape == (3, 32, 32)
    with pytest.raises(StoreNotFoundError, match=r"^There is no preprocessor_config\.json in [^\n]*nowhere; [^\n]*$"):
        load_model(f"{package}:Small", weights=weights, processor=tmp_path / "nowhere")


Save = Callable[[Path, dict[str, torch.Tensor]], None]


def without(name: str) -> Save:
    return lambda file, tensors: save_file({key: tensors[key] for key in tensors if name not in key}, file)


def cut(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def stretch(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({key: tensor.repeat(2) if key == "norm.bias" else tensor for key, tensor in tensors.items()}, file)


def pickled(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, file)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            without("norm.running_mean"),
            r"lacks 1 of the tensors of [^\n]*:Small \(norm\.running_mean first\), which would be random",
        ),
        (without("bias"), r"lacks \d of the tensors of [^\n]*:Small \([^\n]*bias first\)"),
        (cut, "is no whole safetensors file"),
        (pickled, "is no whole safetensors file"),
        (stretch, r"do not fit [^\n]*:Small \([^\n]*norm\.bias"),
        (lambda file, tensors: file.unlink(), "There is no file of weights"),
    ],
)
def test_weights_that_are_not_whole_are_refused(package: str, weights: Path, damage: Save, sentence: str) -> None:
    damage(weights, read(weights))
    with pytest.raises((InvalidInputError, StoreNotFoundError), match=rf"^[^\n]*{sentence}[^\n]*$"):
        load_model(f"{package}:Small", weights=weights, **SQUARE)


def test_batch_counters_are_not_missed(package: str, weights: Path) -> None:
    without("num_batches_tracked")(weights, read(weights))
    load_model(f"{package}:Small", weights=weights, **SQUARE)


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        ("Small", r":Small has other weights each time it is made: they are random; give trained ones"),
        ("Smal", r"\.small has no Smal for the model [^\n]*; did you mean Small"),
        ("zzz", r"\.small has no zzz for the model [^\n]*; check the import path"),
        ("Inner.Nt", r"\.small has no Nt for the model [^\n]*; did you mean Net"),
        ("number", r":number is neither a class nor a function"),
        ("network", r":network is neither a class nor a function"),
        ("Inner", r":Inner makes a Inner; expected a torch\.nn\.Module"),
        ("needs", r"Calling [^\n]*:needs without arguments fails \(TypeError: [^\n]*depth"),
        ("fails", r"Calling [^\n]*:fails without arguments fails \(LookupError: no such depth\)"),
    ],
)
def test_what_makes_no_trained_module_is_refused(package: str, attribute: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        load_model(f"{package}:{attribute}", **SQUARE)


def test_a_nested_class_is_found(package: str, weights: Path) -> None:
    assert load_model(f"{package}:Inner.Net", weights=weights, **SQUARE).description["architecture"] == "Small"


def test_a_module_that_fails_is_told_with_its_error(package: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^[^\n]*:crashes fails on a batch of images of 16 × 16 pixels \(KeyError: [^\n]*$"
    ):
        load_model(f"{package}:crashes", **SQUARE).represent(torch.zeros(1, 3, 16, 16))


def test_packages_that_cannot_be_imported_are_told(package: str, tmp_path: Path) -> None:
    folder = tmp_path / package.partition(".")[0]
    (folder / "broken.py").write_text("raise RuntimeError('no licence')")
    (folder / "lacking.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(StoreNotFoundError, match=r"^There is no Python module nowhere for the model nowhere\.net:Net; [^\n]*$"):
        load_model("nowhere.net:Net", **SQUARE)
    with pytest.raises(
        InvalidInputError, match=r"^Importing [^\n]*\.broken [^\n]* fails \(RuntimeError: no licence\); mend it\.$"
    ):
        load_model(f"{folder.name}.broken:Net", **SQUARE)
    with pytest.raises(InvalidInputError, match=r"^[^\n]*\.lacking needs a package [^\n]*\(a_package_that_nobody_has\)[^\n]*$"):
        load_model(f"{folder.name}.lacking:Net", **SQUARE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "How to prepare images for"),
        ({"image_size": 16}, "How to prepare images for"),
        ({"preprocessing": SQUARE["preprocessing"]}, "How to prepare images for"),
        ({**SQUARE, "processor": "folder"}, "How to prepare images for"),
        ({**SQUARE, "drop_cls": True}, "is a module of your own, which has no revision, CLS token or padding"),
        ({**SQUARE, "revision": "main"}, "is a module of your own, which has no revision, CLS token or padding"),
    ],
)
def test_options_that_do_not_belong_to_an_own_module_are_refused(
    package: str, weights: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        load_model(f"{package}:Small", weights=weights, **options)


@pytest.mark.parametrize("option", ["weights", "processor", "preprocessing"])
def test_options_of_own_modules_are_refused_elsewhere(resnet_folder: Path, option: str) -> None:
    value = SQUARE["preprocessing"] if option == "preprocessing" else "file"
    with pytest.raises(InvalidInputError, match=r"^[^\n]*resnet brings its own weights and image processor; [^\n]*$"):
        load_model(resnet_folder, **{option: value})


@pytest.mark.parametrize(
    ("mean", "std", "interpolation"),
    [
        ((0.5, 0.5), (1, 1, 1), "bilinear"),
        ((0.5, 0.5, float("nan")), (1, 1, 1), "bilinear"),
        ((0.5, 0.5, 0.5), (1, 0, 1), "bilinear"),
        ((0.5, 0.5, 0.5), (1, 1, 1), "cubic"),
    ],
)
def test_impossible_preprocessing_is_refused(mean: Any, std: Any, interpolation: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^[^\n]+\.$"):
        Preprocessing(mean, std, interpolation)


def test_import_paths_are_told_from_folders_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_import_path("a:B") and is_import_path("a.b:c.D")
    assert not any(map(is_import_path, ("resnet-50", "microsoft/resnet-50", "./a:b", "a:", ":B", "a.py:B.", "C:\\models")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:B").mkdir()
    assert not is_import_path("a:B")
