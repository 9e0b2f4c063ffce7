"""COCO-format annotations as samples and counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from semrsm_dist.datasets.coco import read_coco
from semrsm_dist.datasets.samples import write_annotations
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError, SemrsmError, StoreNotFoundError
from storage_schemas.location import Location

CARDS = Path(__file__).parents[3] / "shared" / "data" / "playing_cards"


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 640, "height": 480},
            {"id": 3, "file_name": "sub/a.jpg", "group_id": 5, "video_id": "v1"},
            {"id": 4, "file_name": "empty.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2},
            {"id": 2, "image_id": 7, "category_id": 9},
            {"id": 3, "image_id": 7, "category_id": 2},
            {"id": 4, "image_id": 7, "category_id": 9, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write(folder: Path, document: object) -> Path:
    root = folder / "images"
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("b.jpg", "sub/a.jpg", "empty.jpg"):
        (root / name).touch()
    path = folder / "coco.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_samples_follow_the_file_and_carry_video_and_size(tmp_path: Path) -> None:
    samples = read_coco(write(tmp_path, coco()), tmp_path / "images").samples
    assert [sample.sample_id for sample in samples] == ["b.jpg", "sub/a.jpg", "empty.jpg"]
    assert (samples[0].width, samples[0].height, samples[0].video_id) == (640, 480, None)
    assert (samples[1].group_id, samples[1].video_id, samples[1].width) == ("5", "v1", None)
    assert samples[1].path == tmp_path / "images/sub/a.jpg"


def test_instances_are_counted_per_class_and_an_image_without_any_has_no_row(tmp_path: Path) -> None:
    table = read_coco(write(tmp_path, coco()), tmp_path / "images").annotations
    assert table is not None
    assert table.schema == tables.ANNOTATIONS
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [("b.jpg", 2, "dog", 1), ("b.jpg", 9, "cat", 2), ("sub/a.jpg", 2, "dog", 1)]


def test_annotations_are_written_and_read_back(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path, coco()), tmp_path / "images")
    location = Location.of(tmp_path / "annotations" / "cards.parquet")
    write_annotations(dataset, location)
    assert tables.read_table(location, tables.ANNOTATIONS) == dataset.annotations


def test_a_file_without_annotations_gives_an_empty_table(tmp_path: Path) -> None:
    table = read_coco(write(tmp_path, coco() | {"annotations": []}), tmp_path / "images").annotations
    assert table is not None and table.num_rows == 0 and table.schema == tables.ANNOTATIONS


def without(section: str, key: str | None = None) -> dict[str, Any]:
    document = coco()
    if key is None:
        del document[section]
    else:
        del document[section][1][key]
    return document


def changed(section: str, index: int, **values: object) -> dict[str, Any]:
    document = coco()
    document[section][index] |= values
    return document


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{not json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([1, 2], "holds a JSON list"),
        (without("categories"), 'has no "categories"'),
        (without("images", "file_name"), 'Entry 1 of "images" in .* has no "file_name"'),
        (without("annotations", "category_id"), 'Entry 1 of "annotations" in .* has no "category_id"'),
        (coco() | {"images": {}}, '"images" of .* is not a list'),
        (coco() | {"images": [3]}, 'Entry 0 of "images" in .* is not an object'),
        (coco() | {"images": []}, "lists no images"),
        (changed("images", 0, file_name=3), '"file_name" of entry 0 of "images" in .* is 3; expected a text'),
        (changed("images", 0, width="wide"), '"width" of entry 0 of "images" in .* expected a number of pixels'),
        (changed("images", 0, id=4), '"images" in .* more than once: 4'),
        (changed("images", 0, file_name="empty.jpg"), "more than once: empty.jpg"),
        (changed("categories", 0, id=2**70), "expected an integer"),
        (changed("annotations", 2, image_id=99), 'Entry 2 of "annotations" in .* is of image 99'),
        (changed("annotations", 1, category_id=99), 'Entry 1 of "annotations" in .* is of category 99'),
    ],
)
def test_a_file_that_is_not_coco_is_told_in_one_sentence(tmp_path: Path, document: object, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        read_coco(write(tmp_path, document), tmp_path / "images")


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.jpg", "sub/../../outside.jpg", "link.jpg", "a\0b", "\ud800"])
def test_an_image_outside_of_the_root_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, changed("images", 0, file_name=name))
    (tmp_path / "outside.jpg").touch()
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(InvalidInputError, match=r"^[^\n]*outside the root named by an annotation[^\n]*$"):
        read_coco(path, tmp_path / "images")


def test_a_link_that_stays_inside_of_the_root_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, changed("images", 0, file_name="link.jpg"))
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "images" / "b.jpg")
    assert read_coco(path, tmp_path / "images").samples[0].sample_id == "link.jpg"


def test_missing_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    document = coco()
    document["images"] += [{"id": 100 + index, "file_name": f"gone{index}.jpg"} for index in range(5)]
    path = write(tmp_path, document)
    sentence = r"^5 of the 8 images [^\n]*gone0\.jpg, gone1\.jpg, gone2\.jpg and 2 more[^\n]*$"
    with pytest.raises(StoreNotFoundError, match=sentence):
        read_coco(path, tmp_path / "images")


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    with pytest.raises(StoreNotFoundError, match=r"^There is no annotation file [^\n]*$"):
        read_coco(tmp_path / "nowhere.json", tmp_path / "images")
    with pytest.raises(StoreNotFoundError, match=r"^There is no image folder [^\n]*$"):
        read_coco(path, tmp_path / "nowhere")
    with pytest.raises(SemrsmError, match=r"^[^\n]*$"):
        read_coco(tmp_path, tmp_path / "images")


@pytest.mark.skipif(not CARDS.is_dir(), reason=f"SKIPPED REAL DATA: {CARDS} is not there")
def test_playing_cards_have_the_published_counts() -> None:
    dataset = read_coco(CARDS / "query.json", CARDS / "images")
    assert dataset.annotations is not None
    document = json.loads((CARDS / "query.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    expected = Counter(names[annotation["category_id"]] for annotation in document["annotations"])
    found: Counter[str] = Counter()
    for row in dataset.annotations.to_pylist():
        found[row["class_name"]] += row["count"]
    assert found == expected
    assert len(dataset.samples) == 67
