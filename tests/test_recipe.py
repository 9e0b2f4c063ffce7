"""The recipe: defaults, paths, and one sentence for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from semrsm_dist.datasets.sources import Cifar100Source, EgoObjectsSource, FolderSource, Selection
from semrsm_dist.recipe import Recipe, load_recipe, recipe_from
from storage_schemas import InvalidInputError, StoreNotFoundError

SMALL: dict[str, Any] = {
    "name": "small",
    "workdir": "work",
    "database": {"images": "images"},
    "models": [{"name": "m", "model": "./network"}],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def test_relative_paths_are_seen_from_the_recipe(tmp_path: Path) -> None:
    queries = {"images": "../q", "annotations": "/abs/q.json"}
    recipe = load_recipe(write(tmp_path, queries=queries))
    assert isinstance(recipe.database, FolderSource) and isinstance(recipe.queries, FolderSource)
    assert recipe.database.images == str(tmp_path / "images")
    assert (recipe.queries.images, recipe.queries.annotations) == (str(tmp_path.parent / "q"), "/abs/q.json")
    assert recipe.models[0].model == str(tmp_path / "network")
    assert recipe.workdir == str(tmp_path / "work")


def test_every_path_of_a_dataset_is_seen_from_the_recipe(tmp_path: Path) -> None:
    cifar100 = {"dataset": "cifar100", "root": "cifar", "split": "train", "unpack_to": "/abs/unpacked", "select": {"take": 5}}
    egoobjects = {"dataset": "egoobjects", "root": "~/ego", "split": "eval", "subset": "test"}
    recipe = load_recipe(write(tmp_path, database=cifar100, queries=egoobjects))
    assert recipe.database == Cifar100Source(
        dataset="cifar100",
        root=str(tmp_path / "cifar"),
        split="train",
        unpack_to="/abs/unpacked",
        select=Selection(seed=0, skip=0, take=5),
    )
    assert isinstance(recipe.queries, EgoObjectsSource)
    assert (recipe.queries.root, recipe.queries.images) == (str(Path.home() / "ego"), None)


def test_hub_ids_and_urls_stay_as_they_are(tmp_path: Path) -> None:
    models = [{"name": "m", "model": "google/vit-base-patch16-224"}]
    recipe = load_recipe(write(tmp_path, models=models, workdir="s3://bucket/run"))
    assert (recipe.models[0].model, recipe.workdir) == ("google/vit-base-patch16-224", "s3://bucket/run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"modles": []}, "has the unknown key modles; did you mean models?"),
        ({"rsm": {"matching": {"windw": 3}}}, "has the unknown key rsm.matching.windw; did you mean window?"),
        ({"models": [{"name": "m", "mdel": "x"}]}, "unknown key models.0.mdel (and 1 more mistakes); did you mean model?"),
        ({"retrieval": {"zzz": 1}}, "known keys there are kernels, top_k."),
        ({"models": []}, "mistake at models"),
        ({"models": [{"model": "x"}]}, "lacks the key models.0.name; `semrsm schema` lists what a recipe holds."),
        ({"rsm": {"invariances": ["rotation"]}}, "mistake at rsm.invariances.0 ('rotation')"),
        ({"rsm": {"tile_size": 0}}, "mistake at rsm.tile_size (0): input should be greater than 0."),
        ({"sigma": "mode"}, "mistake at sigma ('mode')"),
        ({"runtime": {"memory_per_worker": "4 XB"}}, "could not interpret byte unit: XB."),
        ({"models": [SMALL["models"][0]] * 2}, "two models have the same name"),
        ({"name": "a/b"}, "mistake at name ('a/b')"),
        ({"rsm": {"batch_size": 100}, "queries": {"images": "q"}}, "leave it out, or the queries"),
        ({"database": {"images": "i", "annotatons": "a"}}, "the unknown key database.annotatons; did you mean annotations?"),
        ({"database": {"images": "i", "split": "val"}}, "known keys there are select, dataset, images, annotations."),
        ({"database": {"images": "i", "select": {"sed": 1}}}, "the unknown key database.select.sed; did you mean seed?"),
        ({"database": {"images": "i", "select": {"take": 0}}}, "at database.select.take (0): input should be greater than 0."),
        ({"database": {"dataset": "imagenet"}}, "lacks the key database.root (and 1 more mistakes)"),
        ({"database": {"dataset": "cifar100", "root": "r", "split": "test"}}, "lacks the key database.unpack_to"),
        (
            {"queries": {"dataset": "imagnet", "root": "r"}},
            "at queries ({'dataset': 'imagnet', 'root': 'r'}): there is no dataset",
        ),
        ({"database": {"dataset": ["coco"]}}, "there is no dataset ['coco']; choose folder, coco, egoobjects, cityscapes,"),
        (
            {"database": {"dataset": "cityscapes", "root": "r", "split": "test"}},
            "split ('test'): input should be 'train' or 'val'.",
        ),
        ({"database": "images"}, "mistake at database ('images')"),
    ],
)
def test_each_mistake_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        recipe_from({**SMALL, **changes}, "recipe.yaml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "is not valid YAML"),
        ("just text", "is not a recipe; expected a mapping"),
        ("!!python/none x", "not valid YAML"),
    ],
)
def test_what_is_not_a_recipe_is_said(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        load_recipe(path)


def test_a_recipe_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no recipe .*x\.yaml; check the path"):
        load_recipe(tmp_path / "x.yaml")


def test_every_key_of_the_schema_is_described() -> None:
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for key, described in part["properties"].items():
            if "$ref" not in json.dumps(described):
                assert described.get("description") or key in ("kernels", "models"), key


def test_sizes_of_memory_and_fixed_sigmas_are_read() -> None:
    recipe = recipe_from({**SMALL, "runtime": {"memory_per_worker": "2 GiB"}, "sigma": 3}, "r")
    assert recipe.run_settings().memory_per_worker == 2 * 2**30
    assert recipe.sigma == 3.0


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_the_repository_are_valid(path: Path) -> None:
    load_recipe(path)
