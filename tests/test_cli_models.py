"""Models, layers and own modules from the command line and in recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from semrsm_dist.extraction.registry import MODELS
from semrsm_dist.recipe import load_recipe, recipe_from
from storage_schemas import ActivationStore, InvalidInputError
from tests.conftest import Run, refused

NETWORK = Path(__file__).parents[1] / "semrsm_dist" / "demo" / "network"
OWN = """
from torch import nn

def pooled():
    return nn.Sequential(nn.AvgPool2d(8), nn.ReLU())
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images of noise."""
    generator = np.random.default_rng(5)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a module in the working directory."""
    (tmp_path / "own_pooling_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_pooling_of_a_test", raising=False)
    return "own_pooling_of_a_test:pooled"


def test_models_are_listed_for_people_and_programs(run: Run) -> None:
    table = run("models")
    assert table.status == 0
    listed = json.loads(run("models", "--json").out)
    assert [entry["name"] for entry in listed] == [model.name for model in MODELS]
    for model, entry in zip(MODELS, listed, strict=True):
        assert model.name in table.out and model.hub_id in table.out
        assert f"{model.n_positions:,} × {model.n_channels:,}" in table.out
        assert entry["hub_id"] == model.hub_id
        assert (entry["n_positions"], entry["n_channels"], entry["image_size"]) == (
            model.n_positions,
            model.n_channels,
            model.image_size,
        )


def test_listing_models_does_not_import_torch() -> None:
    code = "import sys; from semrsm_dist.cli import main\ntry:\n main(['models'])\nfinally:\n assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resnet-50" in done.stdout


def test_several_layers_are_extracted_in_one_go(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.{layer}.zarr"
    layers = ("--layer", "hidden_states.0", "--layer", "module:encoder.stages.0")
    command = ("extract", "--images", images, "--model", NETWORK, *layers, "--out", out, "--json")
    printed = json.loads(run(*command).out)["layers"]
    assert list(printed) == ["hidden_states.0", "encoder.stages.0"]
    for name, values in printed.items():
        store = ActivationStore.open(str(tmp_path / f"x.{name}.zarr"))
        assert (values["n_samples"], values["fingerprint"]) == (6, store.fingerprint)
    assert (tmp_path / "x.hidden_states.0.samples.parquet").is_file()
    chunk = tmp_path / "x.encoder.stages.0.zarr" / "features" / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3] + b"???")
    told = run(*command[:-1])
    assert told.status == 0
    assert told.out.count("features and logits of 6 samples") == 2
    assert chunk.read_bytes() == whole


def test_an_own_module_is_extracted(run: Run, images: Path, tmp_path: Path, own_module: str) -> None:
    normal = ("--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25)
    options = ("--image-size", 32, *normal, "--interpolation", "nearest")
    result = run("extract", "--images", images, "--model", own_module, *options, "--out", tmp_path / "a.zarr")
    assert result.status == 0, result.err
    store = ActivationStore.open(str(tmp_path / "a.zarr"))
    assert (store.n_positions, store.n_channels, store.spatial_shape) == (16, 3, (4, 4))
    assert store.attributes["computed_from"]["model"]["preprocessing"]["resample"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", NETWORK, "--layer", "a", "--layer", "b"), ("2 layers do not go into one store", "{layer}")),
        (("--model", NETWORK, "--layer", "encoder.stage.0"), ("has no layer encoder.stage.0", "encoder.stages.0")),
        (("--model", NETWORK, "--layer", "../x"), ("is not the name of a layer",)),
        (("--model", NETWORK, "--drop-cls"), ("has no CLS token to drop",)),
        (("--model", NETWORK, "--drop-padding"), ("pads no images",)),
        (("--model", NETWORK, "--mean", 0, 0, 0), ("--mean and --std belong together",)),
        (("--model", NETWORK, "--weights", "w.safetensors"), ("brings its own weights",)),
        (("--model", "nowhere:Net", "--image-size", 8, "--mean", 0, 0, 0, "--std", 1, 1, 1), ("no Python module nowhere",)),
    ],
)
def test_mistakes_are_one_sentence(run: Run, images: Path, tmp_path: Path, options: Any, words: Any) -> None:
    refused(run("extract", "--images", images, *options, "--out", tmp_path / "a.zarr"), *words)
    assert not (tmp_path / "a.zarr").exists()


def write_recipe(folder: Path, models: list[dict[str, Any]]) -> Path:
    path = folder / "recipe.yaml"
    recipe = {"name": "layers", "workdir": "work", "database": {"images": "images"}, "models": models}
    settings = {"rsm": {"tile_size": 4, "invariances": ["none", "pooled"]}, "runtime": {"executor": "serial"}}
    path.write_text(yaml.safe_dump({**recipe, **settings}))
    return path


def test_the_layers_of_a_recipe_are_representations_of_their_own(
    run: Run, images: Path, tmp_path: Path, own_module: str
) -> None:
    normal = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    recipe = write_recipe(
        tmp_path,
        [
            {"name": "demo", "model": str(NETWORK), "layers": ["hidden_states.1", "encoder.stages.1"]},
            {"name": "own", "model": own_module, "image_size": 16, "preprocessing": normal},
        ],
    )
    result = run("run", recipe)
    assert result.status == 0, result.err
    names = ["demo.hidden_states.1", "demo.encoder.stages.1", "own"]
    for name in names:
        assert ActivationStore.open(str(tmp_path / f"work/activations/{name}.database.zarr")).missing_chunks() == []
        assert (tmp_path / f"work/rsm/{name}.zarr").is_dir()
        assert (tmp_path / f"work/figures/rsm-{name}.png").is_file()
    cka = pq.read_table(tmp_path / "work/results/cka.parquet").to_pylist()
    pairs = {(row["representation_1"], row["representation_2"]) for row in cka}
    assert pairs == {(first, second) for index, first in enumerate(names) for second in names[index:]}
    stages = json.loads(run("status", recipe, "--json").out)
    assert [stage["what"] for stage in stages if "RSM" in stage["what"]] == [f"{name}: RSM" for name in names]
    again = run("run", recipe)
    assert again.status == 0
    assert "Tables: up to date." in again.err
    verified = json.loads(run("verify", recipe, "--json").out)
    assert list(verified["models"]) == names


def test_paths_of_an_own_module_are_seen_from_the_recipe(tmp_path: Path) -> None:
    model = {"name": "own", "model": "a.b:C", "weights": "w.safetensors", "processor": "../p"}
    (read,) = load_recipe(write_recipe(tmp_path, [model])).models
    assert (read.model, read.weights) == ("a.b:C", str(tmp_path / "w.safetensors"))
    assert read.processor == str(tmp_path.parent / "p")


def test_a_registered_name_stays_as_it_is(tmp_path: Path) -> None:
    (read,) = load_recipe(write_recipe(tmp_path, [{"name": "r", "model": "resnet-50", "drop_cls": True}])).models
    assert read.model == "resnet-50"
    assert read.loading() == {
        "revision": None,
        "image_size": None,
        "layers": (),
        "drop_cls": True,
        "drop_padding": False,
        "weights": None,
        "processor": None,
        "preprocessing": None,
    }


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([{"name": "m", "model": "x", "layers": []}], "at models.0.layers ([])"),
        ([{"name": "m", "model": "x", "layers": ["a/b"]}], "'a/b' is not the name of a layer; give an output such as"),
        ([{"name": "m", "model": "x", "layers": ["a", "module:a"]}], "the layer a is named more than once"),
        (
            [{"name": "m", "model": "x", "layers": ["a"]}, {"name": "m.a", "model": "y"}],
            "two models have the same name",
        ),
        (
            [{"name": "m", "model": "x", "preprocessing": {"mean": [0, 0, 0], "std": [1, 0, 1]}}],
            "mistake at models.0.preprocessing.std.1 (0)",
        ),
        (
            [{"name": "m", "model": "x", "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "size": 3}}],
            "known keys there are mean, std, interpolation.",
        ),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(models: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        recipe_from({"name": "r", "workdir": "w", "database": {"images": "i"}, "models": models}, "recipe.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and ".." not in str(caught.value)
