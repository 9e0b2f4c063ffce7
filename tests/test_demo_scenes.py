"""The demo's generated scenes: what they promise to whoever reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semrsm_dist.demo.scenes import CLASSES, MAX_OBJECTS, SCENE_SIZE, render_scene, scene_generator, write_scenes

N_QUERIES, N_DATABASE, SEED = 12, 40, 31


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, N_QUERIES, N_DATABASE, SEED)
    return path


def _document(folder: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    document: dict[str, list[dict[str, Any]]] = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    return document


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _pixel_digests(folder: Path, split: str) -> Iterator[str]:
    for record in _document(folder, split)["images"]:
        with Image.open(folder / "images" / record["file_name"]) as image:
            yield hashlib.sha256(image.tobytes()).hexdigest()


def test_same_seed_writes_identical_files(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, N_QUERIES, N_DATABASE, SEED)
    assert _digests(tmp_path) == _digests(folder)


def test_another_seed_writes_other_scenes(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, N_QUERIES, 1, SEED + 1)
    assert not set(_pixel_digests(tmp_path, "query")) & set(_pixel_digests(folder, "query"))


def test_a_scene_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 5, SEED)
    assert list(_pixel_digests(tmp_path, "database")) == list(_pixel_digests(folder, "database"))[:5]


def test_queries_and_database_share_no_scene(folder: Path) -> None:
    digests = [*_pixel_digests(folder, "query"), *_pixel_digests(folder, "database")]
    assert len(set(digests)) == N_QUERIES + N_DATABASE


def test_splits_of_one_seed_have_streams_of_their_own() -> None:
    splits = ("query", "database", "training", "validation")
    draws = {tuple(scene_generator(5, split, index).integers(2**62, size=2)) for split in splits for index in range(5)}
    assert len(draws) == 20


@pytest.mark.parametrize("size", [32, SCENE_SIZE, 160])
def test_boxes_lie_inside_the_image_and_do_not_overlap(size: int) -> None:
    for index in range(30):
        image, boxes = render_scene(scene_generator(SEED, "query", index), size=size)
        assert image.size == (size, size) and image.mode == "RGB"
        assert 1 <= len(boxes) <= MAX_OBJECTS
        covered = np.zeros((size, size), dtype=int)
        for box in boxes:
            assert 0 <= box.left and box.left + box.width <= size
            assert 0 <= box.top and box.top + box.height <= size
            assert 0 < box.area <= box.width * box.height
            rows = slice(int(np.ceil(box.top)), int(box.top + box.height))
            covered[rows, int(np.ceil(box.left)) : int(box.left + box.width)] += 1
        assert covered.max() == 1


def test_objects_are_painted_inside_their_boxes_only() -> None:
    # Both scenes have the same background, so that they differ inside the boxes alone.
    for index in range(10):
        few, _ = render_scene(scene_generator(SEED, "query", index), max_objects=1)
        many, boxes = render_scene(scene_generator(SEED, "query", index), max_objects=MAX_OBJECTS)
        changed = (np.asarray(few) != np.asarray(many)).any(axis=2)
        for box in [*boxes, *render_scene(scene_generator(SEED, "query", index), max_objects=1)[1]]:
            top, left = int(box.top) - 1, int(box.left) - 1
            changed[max(top, 0) : int(box.top + box.height) + 2, max(left, 0) : int(box.left + box.width) + 2] = False
        assert not changed.any()


def test_all_classes_occur(folder: Path) -> None:
    found = {annotation["category_id"] for annotation in _document(folder, "database")["annotations"]}
    assert found == set(range(1, len(CLASSES) + 1))


@pytest.mark.parametrize("split", ["query", "database"])
def test_coco_files_are_consistent(folder: Path, split: str) -> None:
    document = _document(folder, split)
    assert [category["name"] for category in document["categories"]] == list(CLASSES)
    images = {record["id"]: record for record in document["images"]}
    assert len(images) == {"query": N_QUERIES, "database": N_DATABASE}[split]
    for record in images.values():
        with Image.open(folder / "images" / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
    assert {annotation["image_id"] for annotation in document["annotations"]} == set(images)
    categories = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        left, top, width, height = annotation["bbox"]
        record = images[annotation["image_id"]]
        assert annotation["category_id"] in categories and annotation["iscrowd"] == 0
        assert left >= 0 and top >= 0 and left + width <= record["width"] and top + height <= record["height"]
        assert 0 < annotation["area"] <= width * height


def test_ids_are_unique_across_both_files(folder: Path) -> None:
    for kind in ("images", "annotations"):
        ids = [record["id"] for split in ("query", "database") for record in _document(folder, split)[kind]]
        assert len(set(ids)) == len(ids)


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one object"):
        render_scene(np.random.default_rng(0), max_objects=0)
    with pytest.raises(ValueError, match="16 pixels"):
        render_scene(np.random.default_rng(0), size=8)
    with pytest.raises(ValueError, match="negative"):
        scene_generator(-1, "query", 0)
    with pytest.raises(ValueError, match="At least one query"):
        write_scenes(tmp_path, 0, 5, 1)
