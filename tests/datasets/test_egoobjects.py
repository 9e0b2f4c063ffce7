"""EgoObjects v1 in its published format, with what is easily got wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semrsm_dist.datasets.egoobjects import read_egoobjects
from semrsm_dist.datasets.samples import samples_table
from semrsm_dist.reduction.samples import sample_videos
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

CATEGORIES = [
    {"id": 7, "name": "mug", "image_count": 3, "instance_count": 4, "frequency": "f"},
    {"id": 300, "name": "tin opener", "image_count": 1, "instance_count": 1, "frequency": "r"},
    {"id": 12, "name": "book", "image_count": 2, "instance_count": 3, "frequency": "c"},
]
METADATA = {  # tin opener is a category, but not one of the detection benchmark
    "categories": CATEGORIES,
    "cat_det_cats": [CATEGORIES[0], CATEGORIES[2]],
    "inst_det_cats": [{"id": "A_1", "category_id": 7}],
}


def image(number: int, group: str, video: str, size: tuple[int, int] = (1920, 1080), subset: str = "test") -> dict[str, Any]:
    """An image as the eval file lists it; ids have 15 digits there."""
    return {
        "id": 667431057639000 + number,
        "url": f"{group}_{video}_{number}.jpg",
        "width": size[0],
        "height": size[1],
        "gaia_id": number,
        "timestamp": [0.5],
        "stream_ids": [],
        "group_id": group,
        "video_id": video,
        "frame_id": number,
        "main_category": "mug",
        "main_category_instance_ids": [number],
        "subset": subset,
        "difficulty": "easy",
    }


def box(number: int, of_image: int, **keys: object) -> dict[str, Any]:
    """A box as the file lists it: with a category, an instance, or both."""
    return {
        "id": number,
        "image_id": 667431057639000 + of_image,
        "bbox": [1.0, 2.0, 30.0, 40.0],
        "area": 1200.0,
        "category_freeform": "mug",
        **keys,
    }


def evaluation() -> dict[str, Any]:
    return {
        "info": {"version": "v1"},
        "images": [
            image(3, "G1", "01"),
            image(1, "G1", "02"),
            image(2, "G2", "01"),
            image(4, "G2", "01", (1080, 1920)),
            image(5, "G2", "01", (1440, 1080)),
            image(6, "G3", "V1", (854, 480)),
            image(7, "G3", "V1", subset="val"),
        ],
        "annotations": [
            box(1, 3, category_id=12, instance_id="B_1"),
            box(2, 3, category_id=7, instance_id="A_1"),
            box(3, 3, category_id=7),
            box(4, 3, instance_id="C_9"),  # no category: the box names an instance only
            box(5, 2, category_id=None, instance_id="C_9"),
            box(6, 1, category_id=300),
            box(7, 4, category_id=7),  # of an image of another shape
            box(8, 7, category_id=12),  # of another subset
        ],
    }


def write(root: Path, document: dict[str, Any], split: str = "eval", metadata: dict[str, Any] | None = None) -> Path:
    (root / "images").mkdir(exist_ok=True)
    for entry in document["images"]:
        (root / "images" / entry["url"]).touch()
    (root / f"EgoObjectsV1_unified_{split}.json").write_text(json.dumps(document))
    (root / "EgoObjectsV1_unified_metadata.json").write_text(json.dumps(METADATA if metadata is None else metadata))
    return root


def test_url_is_the_file_name_and_other_shapes_and_subsets_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = read_egoobjects(write(tmp_path, evaluation()), "eval", subset="test")
    assert [sample.sample_id for sample in dataset.samples] == ["G1_01_3.jpg", "G1_02_1.jpg", "G2_01_2.jpg", "G3_V1_6.jpg"]
    assert dataset.samples[0].path == tmp_path / "images" / "G1_01_3.jpg"
    assert (dataset.samples[3].width, dataset.samples[3].height) == (854, 480)  # 16:9 to within a pixel
    assert dataset.origin == {"left_out": {"other subsets": 1, "not 16:9": 2}}


def test_every_shape_and_subset_is_kept_when_asked_for(tmp_path: Path) -> None:
    dataset = read_egoobjects(write(tmp_path, evaluation()), "eval", any_shape=True)
    assert len(dataset.samples) == 7
    assert dataset.origin == {"left_out": {}}


def test_the_same_video_is_group_and_video_together(tmp_path: Path) -> None:
    dataset = read_egoobjects(write(tmp_path, evaluation()), "eval", subset="test")
    videos = sample_videos(samples_table(dataset.samples))
    assert videos == ["G1/01", "G1/02", "G2/01", "G3/V1"]  # 01 of G1 and 01 of G2 are two videos


def test_boxes_are_counted_by_category_and_those_without_one_are_not(tmp_path: Path) -> None:
    table = read_egoobjects(write(tmp_path, evaluation()), "eval", subset="test").annotations
    assert table is not None
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [("G1_01_3.jpg", 7, "mug", 2), ("G1_01_3.jpg", 12, "book", 1), ("G1_02_1.jpg", 300, "tin opener", 1)]


def test_the_training_split_has_no_subsets(tmp_path: Path) -> None:
    document = evaluation()
    for entry in document["images"]:
        del entry["subset"], entry["difficulty"]
    write(tmp_path, document, "train")
    assert len(read_egoobjects(tmp_path, "train").samples) == 5
    with pytest.raises(InvalidInputError, match=r"^[^\n]* has no image of the subset test; it has none \(7 images\)\.$"):
        read_egoobjects(tmp_path, "train", subset="test")


def test_an_unknown_subset_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no image of the subset tets; it has test \(6 images\), val \(1 images\)\.$"):
        read_egoobjects(write(tmp_path, evaluation()), "eval", subset="tets")


def test_a_category_without_a_name_is_refused(tmp_path: Path) -> None:
    document = evaluation()
    document["annotations"][0]["category_id"] = 99
    with pytest.raises(InvalidInputError, match=r"^[^\n]*_eval\.json has annotations of class ids without a name: 99; [^\n]*$"):
        read_egoobjects(write(tmp_path, document), "eval")


def changed(section: str, index: int, **values: object) -> dict[str, Any]:
    document = evaluation()
    document[section][index] |= values
    return document


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (changed("annotations", 2, image_id=5), 'Entry 2 of "annotations" in .* is of image 5, which "images" does not list'),
        (changed("annotations", 2, category_id="mug"), '"category_id" of entry 2 of "annotations" in .* expected an integer'),
        (changed("images", 1, id=667431057639003), "uses these ids more than once: 667431057639003"),
        (changed("images", 1, url="G1_01_3.jpg"), "uses these sample ids more than once: G1_01_3.jpg"),
        (changed("images", 1, width=0), '"width" of entry 1 of "images" in .* is 0; expected a number of pixels'),
        (changed("images", 1, video_id=None), '"video_id" of entry 1 of "images" in .* is None; expected a text or an integer'),
        (evaluation() | {"images": []}, "lists no images"),
        ({"images": [image(4, "G2", "01", (1080, 1920))], "annotations": []}, "has no image of 16:9 among 1;"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_one_sentence(tmp_path: Path, document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        read_egoobjects(write(tmp_path, document), "eval")


def test_an_image_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, evaluation())
    (tmp_path / "EgoObjectsV1_unified_eval.json").write_text(json.dumps(changed("images", 0, url="../../secret.jpg")))
    with pytest.raises(InvalidInputError, match="an image outside the root named by an annotation"):
        read_egoobjects(tmp_path, "eval")


def test_missing_images_and_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, evaluation())
    (tmp_path / "images" / "G1_02_1.jpg").unlink()
    with pytest.raises(StoreNotFoundError, match=r"^1 of the 4 images [^\n]*: G1_02_1\.jpg; check the image folder\.$"):
        read_egoobjects(tmp_path, "eval", subset="test")
    with pytest.raises(StoreNotFoundError, match=r"no annotation file [^\n]*_train\.json"):
        read_egoobjects(tmp_path, "train")


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, evaluation())
    (tmp_path / "images").rename(tmp_path / "frames")
    dataset = read_egoobjects(tmp_path, "eval", images=tmp_path / "frames")
    assert dataset.samples[0].path.parent == tmp_path / "frames"
