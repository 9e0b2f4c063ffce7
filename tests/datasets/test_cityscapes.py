"""Cityscapes in its published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semrsm_dist.datasets.cityscapes import CLASS_IDS, CLASS_NAMES, Classes, read_cityscapes
from semrsm_dist.datasets.samples import samples_table
from semrsm_dist.reduction.samples import sample_videos
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

FRAMES: dict[str, tuple[int, ...]] = {  # ids in the label image of each frame
    "lindau/lindau_000000_000019": (3, 7, 26, 9),
    "lindau/lindau_000001_000019": (7, 23),
    "frankfurt/frankfurt_000000_000294": (1, 3, 4),
    "frankfurt/frankfurt_000000_000576": (7, 33, 18),
}


def write(root: Path, split: str = "val") -> Path:
    for name, class_ids in FRAMES.items():
        image = root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
        label = root / "gtFine" / split / f"{name}_gtFine_labelIds.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 16), class_ids[0], np.uint8)
        for column, class_id in enumerate(class_ids):
            pixels[0, column] = class_id  # one pixel is enough
        Image.fromarray(pixels).save(label)
        Image.new("RGB", (16, 8)).save(image)
        label.with_name(label.name.replace("labelIds", "color")).touch()
        label.with_name(label.name.replace("labelIds", "instanceIds")).touch()
    return root


def test_the_table_of_classes_is_the_published_one() -> None:
    assert (len(CLASS_NAMES), len(set(CLASS_NAMES))) == (34, 34)
    assert [CLASS_NAMES.index(name) for name in ("road", "building", "pole", "sky", "person", "car", "bicycle")] == [
        *(7, 11, 17, 23, 24, 26, 33)
    ]
    evaluated = [CLASS_NAMES[class_id] for class_id in sorted(CLASS_IDS["eval19"])]
    assert evaluated == [  # in the order of the published train ids
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
        *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ]
    assert sorted(CLASS_IDS["non-void"]) == list(range(7, 34))
    assert sorted(CLASS_IDS["all34"]) == list(range(34))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("eval19", [(), (7, 33), (7, 26), (7, 23)]),
        ("non-void", [(), (7, 18, 33), (7, 9, 26), (7, 23)]),
        ("all34", [(1, 3, 4), (7, 18, 33), (3, 7, 9, 26), (7, 23)]),
    ],
)
def test_a_class_that_has_a_pixel_counts_once(tmp_path: Path, classes: Classes, expected: list[tuple[int, ...]]) -> None:
    dataset = read_cityscapes(write(tmp_path), "val", classes=classes)
    assert dataset.annotations is not None
    rows = [(row["sample_id"], row["class_id"], row["class_name"], row["count"]) for row in dataset.annotations.to_pylist()]
    assert rows == [
        (sample.sample_id, class_id, CLASS_NAMES[class_id], 1)
        for sample, class_ids in zip(dataset.samples, expected, strict=True)
        for class_id in class_ids
    ]


def test_samples_are_named_below_the_split_and_a_video_is_a_sequence_of_a_city(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    samples = read_cityscapes(write(tmp_path), "val", report=lambda *done: reports.append(done)).samples
    assert [sample.sample_id for sample in samples][:2] == [
        "val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        "val/frankfurt/frankfurt_000000_000576_leftImg8bit.png",
    ]
    assert sample_videos(samples_table(samples)) == [
        *("frankfurt/000000", "frankfurt/000000", "lindau/000000", "lindau/000001"),
    ]
    assert (samples[0].width, samples[0].height) == (16, 8)
    assert samples[0].path == tmp_path / "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    label = write(tmp_path) / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.array([[7, 255]], np.uint8)).save(label)  # 255 is what labelTrainIds ignore with
    with pytest.raises(InvalidInputError, match=r"^[^\n]*lindau_000000[^\n]* class ids without a name: 255; [^\n]*$"):
        read_cityscapes(tmp_path, "val")


@pytest.mark.parametrize("damage", ["cut", "colour"])
def test_a_label_image_that_is_none_is_named(tmp_path: Path, damage: str) -> None:
    label = write(tmp_path) / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    if damage == "cut":
        label.write_bytes(label.read_bytes()[:40])
    else:
        Image.new("RGB", (16, 8)).save(label)
    with pytest.raises(InvalidInputError, match=r"^[^\n]*lindau_000000_000019_gtFine_labelIds\.png [^\n]*$"):
        read_cityscapes(tmp_path, "val")


def test_missing_labels_splits_and_strange_names_are_told(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StoreNotFoundError, match=r"^There is no folder [^\n]*leftImg8bit/train; check the path\.$"):
        read_cityscapes(tmp_path, "train")
    (tmp_path / "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(StoreNotFoundError, match=r"^1 of 4 label images [^\n]*: lindau_000001_000019_gtFine_labelIds\.png;"):
        read_cityscapes(tmp_path, "val")
    (tmp_path / "leftImg8bit/val/lindau/holiday.png").touch()
    with pytest.raises(InvalidInputError, match=r"holds images that are not named [^\n]*: lindau/holiday\.png; move them away"):
        read_cityscapes(tmp_path, "val")


def test_an_empty_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit/train").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"leftImg8bit/train holds no image"):
        read_cityscapes(tmp_path, "train")
