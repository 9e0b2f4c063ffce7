"""Data sets in recipes and on the command line, from their files to stores and reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from semrsm_dist.cli import main
from semrsm_dist.datasets.sources import SOURCES, CocoSource, FolderSource, Selection, read_dataset
from semrsm_dist.demo.scenes import write_scenes
from semrsm_dist.recipe import recipe_from
from storage_schemas import ActivationStore
from storage_schemas.tables import ANNOTATIONS

NETWORK = Path(__file__).parents[2] / "semrsm_dist" / "demo" / "network"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "datasets.md"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: its status, and what it wrote to stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), capfd.readouterr().err

    return call


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen scenes in one folder and one COCO-format file."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, n_queries=4, n_database=11, seed=3)
    first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("query", "database"))
    both = {**first, **{section: first[section] + second[section] for section in ("images", "annotations")}}
    (folder / "all.json").write_text(json.dumps(both))
    return folder


def write_recipe(folder: Path, queries: dict[str, Any] | None, database: dict[str, Any]) -> Path:
    values = {
        "name": "drawn",
        "workdir": "work",
        "queries": queries,
        "database": database,
        "models": [{"name": "net", "model": str(NETWORK)}],
        "rsm": {"tile_size": 5, "invariances": ["none", "pooled"]},
        "retrieval": {"kernels": ["cosine"]},
        "runtime": {"executor": "serial"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def drawn(scenes: Path, **select: int) -> dict[str, Any]:
    return {"dataset": "coco", "images": str(scenes / "images"), "annotations": str(scenes / "all.json"), "select": select}


def sample_ids(work: Path, side: str) -> list[str]:
    found: list[str] = pq.read_table(work / f"activations/net.{side}.samples.parquet")["sample_id"].to_pylist()
    return found


def test_queries_and_database_are_drawn_from_one_set_and_the_seed_is_recorded(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, drawn(scenes, seed=9, take=4), drawn(scenes, seed=9, skip=4))
    status, err = run("run", recipe)
    assert status == 0, err
    assert "Database: 11 of 15 images of coco, drawn with seed 9 after skipping 4." in err
    work = tmp_path / "work"
    queries, database = (sample_ids(work, side) for side in ("queries", "database"))
    assert (len(queries), len(database), len({*queries, *database})) == (4, 11, 15)
    annotated = pq.read_table(work / "annotations/queries.parquet")["sample_id"].to_pylist()
    assert set(annotated) <= set(queries)
    origin = ActivationStore.open(str(work / "activations/net.queries.zarr")).attributes["dataset"]
    assert origin == {"dataset": "coco", "n_images": 15, "select": {"seed": 9, "skip": 0, "take": 4}}
    assert "select: seed 9, skip 4" in (work / "report.html").read_text()


def test_queries_that_are_in_the_database_are_refused_before_anything_is_computed(
    run: Run, scenes: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, drawn(scenes, seed=9, take=4), drawn(scenes, seed=9, skip=3))
    status, err = run("run", recipe)
    assert status == 2
    assert "semrsm: 1 of the 4 queries are in the database too: " in err
    assert not (tmp_path / "work/activations").exists()


def test_copies_of_queries_in_the_database_are_refused(run: Run, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    for name in ("query_00001.png", "database_00000.png"):
        (tmp_path / "copies" / name).write_bytes((scenes / "images" / name).read_bytes())
    queries = {"images": str(scenes / "images"), "annotations": str(scenes / "query.json")}
    status, err = run("run", write_recipe(tmp_path, queries, {"images": str(tmp_path / "copies")}))
    assert status == 2
    assert "semrsm: 1 of the 4 queries are in the database too: query_00001.png; " in err


def test_nothing_is_recorded_of_a_folder_that_is_taken_as_it_is(scenes: Path) -> None:
    folder = FolderSource(images=str(scenes / "images"), annotations=str(scenes / "all.json"))
    whole = read_dataset(folder)
    assert whole.origin == {}
    assert read_dataset(folder.model_copy(update={"select": Selection(take=2)})).origin["n_images"] == 15
    coco = CocoSource(dataset="coco", images=folder.images, annotations=str(folder.annotations))
    assert (read_dataset(coco).samples, read_dataset(coco).origin) == (whole.samples, {"dataset": "coco", "n_images": 15})


def test_the_recipe_lines_of_the_documentation_are_valid() -> None:
    lines = re.findall(r"^(?:queries|database): .*$", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    values = [value for line in lines for value in yaml.safe_load(line).values()]
    assert {value.get("dataset", "folder") for value in values} == set(SOURCES)
    for value in values:
        recipe_from(
            {"name": "n", "workdir": "w", "models": [{"name": "m", "model": "m"}], "database": value}, "docs/datasets.md"
        )


def write_cityscapes(root: Path) -> None:
    for number in range(3):
        image = root / f"leftImg8bit/val/ulm/ulm_00000{number}_000019_leftImg8bit.png"
        label = root / f"gtFine/val/ulm/ulm_00000{number}_000019_gtFine_labelIds.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(image)
        Image.new("L", (80, 40), 7 + number).save(label)


def write_cifar100(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "test.bin").write_bytes(np.random.default_rng(0).integers(0, 20, (4, 3074), dtype=np.uint8).tobytes())
    (root / "fine_label_names.txt").write_text("".join(f"fine {number}\n" for number in range(100)))


def test_extract_takes_a_data_set_and_writes_its_annotations(run: Run, tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "cityscapes")
    out = ("--model", NETWORK, "--out", tmp_path / "a.zarr", "--annotations-out", tmp_path / "a.parquet")
    source = ("--dataset", "cityscapes", "--root", tmp_path / "cityscapes", "--split", "val", "--classes", "non-void")
    status, err = run("extract", *source, "--seed", 3, "--take", 2, *out)
    assert status == 0, err
    assert "2 of 3 images of cityscapes, drawn with seed 3 after skipping 0." in err
    store = ActivationStore.open(str(tmp_path / "a.zarr"))
    assert store.n_samples == 2
    assert store.attributes["dataset"] == {
        "dataset": "cityscapes",
        "split": "val",
        "classes": "non-void",
        "n_images": 3,
        "select": {"seed": 3, "skip": 0, "take": 2},
    }
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.equals(ANNOTATIONS)
    assert set(table["class_name"].to_pylist()) <= {"road", "sidewalk", "parking"}


def test_extract_unpacks_cifar100_and_reads_it_like_any_images(run: Run, tmp_path: Path) -> None:
    write_cifar100(tmp_path / "cifar")
    source = ("--dataset", "cifar100", "--root", tmp_path / "cifar", "--split", "test", "--unpack-to", tmp_path / "unpacked")
    for out in ("a", "b"):
        status, err = run("extract", *source, "--model", NETWORK, "--out", tmp_path / f"{out}.zarr")
        assert status == 0, err
    first, second = (ActivationStore.open(str(tmp_path / f"{out}.zarr")) for out in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    images = pq.read_table(tmp_path / "a.samples.parquet")
    assert images["uri"].to_pylist()[1] == (tmp_path / "unpacked/test/00001.bmp").as_uri()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--dataset folder needs --images: Folder of images."),
        (("--images", "i", "--split", "val"), "--dataset folder takes no --split; it takes --images, --annotations."),
        (("--dataset", "imagenet", "--root", "r"), "--dataset imagenet needs --split: train or val."),
        (("--dataset", "imagenet", "--root", "r", "--split", "test"), "--split is 'test': input should be 'train' or 'val'."),
        (("--dataset", "cifar100", "--root", "r", "--split", "test"), "needs --unpack-to: "),
        (("--dataset", "coco", "--root", "r"), "--dataset coco takes no --root; it takes --images, --annotations."),
        (("--images", "{scenes}/images", "--skip", "15"), "There are 15 images to draw from, so that none is left after"),
        (("--images", "{scenes}/images", "--annotations-out", "a.parquet"), "--annotations-out has nothing to write;"),
    ],
)
def test_options_that_do_not_fit_end_in_one_sentence(
    run: Run, scenes: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    filled = [option.format(scenes=scenes) for option in options]
    status, err = run("extract", *filled, "--model", NETWORK, "--out", tmp_path / "a.zarr")
    assert status == 2
    assert err.strip().splitlines()[-1].startswith("semrsm: ") and sentence in err
    assert not (tmp_path / "a.zarr").exists()
