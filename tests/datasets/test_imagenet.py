"""ImageNet and Tiny-ImageNet in their published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from semrsm_dist.datasets.imagenet import read_imagenet
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.datasets.tiny_imagenet import read_tiny_imagenet
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

IMAGENET = (
    "train/n01440764/n01440764_10026.JPEG",
    "train/n03126707/n03126707_1.JPEG",
    "val/n02012849/ILSVRC2012_val_00000293.JPEG",
    "val/n01440764/ILSVRC2012_val_00002138.JPEG",
)
MAPPING = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"  # two classes are called crane
TINY = (
    "train/n01443537/images/n01443537_0.JPEG",
    "train/n01443537/images/n01443537_1.JPEG",
    "train/n02124075/images/n02124075_0.JPEG",
    "train/n01443537/n01443537_boxes.txt",
    "val/images/val_0.JPEG",
    "val/images/val_1.JPEG",
    "val/images/val_10.JPEG",
    "test/images/test_0.JPEG",
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_tiny(root: Path) -> Path:
    touch(root, *TINY)
    (root / "wnids.txt").write_text("n02124075\nn01443537\n")  # not sorted, as published
    (root / "words.txt").write_text("n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n")
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02124075\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\nval_10.JPEG\tn02124075\t4\t0\t60\t55\n"
    )
    return root


def classes(dataset: Dataset) -> list[tuple[str, int, str, int]]:
    assert dataset.annotations is not None
    return [(row["sample_id"], row["class_id"], row["class_name"], row["count"]) for row in dataset.annotations.to_pylist()]


def test_imagenet_classes_are_folders_and_named_by_the_mapping(tmp_path: Path) -> None:
    touch(tmp_path, *IMAGENET)
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    assert classes(read_imagenet(tmp_path, "val")) == [
        ("val/n01440764/ILSVRC2012_val_00002138.JPEG", 1440764, "tench, Tinca tinca", 1),
        ("val/n02012849/ILSVRC2012_val_00000293.JPEG", 2012849, "crane", 1),
    ]
    train = classes(read_imagenet(tmp_path, "train"))
    assert train[0] == ("train/n01440764/n01440764_10026.JPEG", 1440764, "tench, Tinca tinca", 1)  # the same class id
    assert train[1][1:3] == (3126707, "crane")


def test_imagenet_names_come_from_words_txt_too_or_are_the_folders(tmp_path: Path) -> None:
    touch(tmp_path, *IMAGENET)
    assert [row[2] for row in classes(read_imagenet(tmp_path, "train"))] == ["n01440764", "n03126707"]
    (tmp_path / "words.txt").write_text("n01440764\ttench\nn03126707\tcrane\n")
    assert [row[2] for row in classes(read_imagenet(tmp_path, "train"))] == ["tench", "crane"]


def test_the_folder_that_kaggle_unpacks_is_understood(tmp_path: Path) -> None:
    touch(tmp_path / "ILSVRC/Data/CLS-LOC", *IMAGENET)
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    dataset = read_imagenet(tmp_path, "val")
    assert classes(dataset)[1][:3] == ("val/n02012849/ILSVRC2012_val_00000293.JPEG", 2012849, "crane")
    assert dataset.samples[0].path.is_file()


def test_imagenet_mistakes_are_told(tmp_path: Path) -> None:
    touch(tmp_path, *IMAGENET)
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING.replace("n03126707", "n99999999"))
    with pytest.raises(InvalidInputError, match=r"train has classes without a name: n03126707; add them to the file of names"):
        read_imagenet(tmp_path, "train")
    touch(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")  # as the official archive unpacks
    with pytest.raises(
        InvalidInputError, match=r"^1 of 3 images in [^\n]* are in no folder of a class such as n01440764: ILSV"
    ):
        read_imagenet(tmp_path, "val")
    with pytest.raises(StoreNotFoundError, match=r"^There is no folder [^\n]*elsewhere/val"):
        read_imagenet(tmp_path / "elsewhere", "val")


def test_tiny_imagenet_training_images_are_classed_by_folder(tmp_path: Path) -> None:
    assert classes(read_tiny_imagenet(write_tiny(tmp_path), "train")) == [
        ("train/n01443537/images/n01443537_0.JPEG", 1443537, "goldfish, Carassius auratus", 1),
        ("train/n01443537/images/n01443537_1.JPEG", 1443537, "goldfish, Carassius auratus", 1),
        ("train/n02124075/images/n02124075_0.JPEG", 2124075, "Egyptian cat", 1),
    ]


def test_tiny_imagenet_validation_images_are_classed_by_the_annotation_file(tmp_path: Path) -> None:
    dataset = read_tiny_imagenet(write_tiny(tmp_path), "val")
    assert classes(dataset) == [
        ("val/images/val_0.JPEG", 2124075, "Egyptian cat", 1),
        ("val/images/val_1.JPEG", 1443537, "goldfish, Carassius auratus", 1),
        ("val/images/val_10.JPEG", 2124075, "Egyptian cat", 1),
    ]
    assert dataset.samples[2].path == tmp_path / "val/images/val_10.JPEG"


@pytest.mark.parametrize(
    ("name", "content", "split", "sentence"),
    [
        ("wnids.txt", "n01443537\n", "train", "train has classes that wnids.txt does not list: n02124075"),
        ("words.txt", "n01443537\tgoldfish\n", "val", r"val_annotations\.txt has classes without a name: n02124075"),
        ("words.txt", "n02124075\nn01443537\tgoldfish\n", "val", r"val_annotations\.txt has classes without a name: n02124075"),
        ("val/val_annotations.txt", "val_0.JPEG\tn02124075\n", "val", r"val_annotations\.txt lacks images/val_1\.JPEG"),
        ("val/val_annotations.txt", "../../x.JPEG\tn02124075\n", "val", r"names images that are not there: images/\.\./\.\./x"),
        ("val/val_annotations.txt", "val_0.JPEG n02124075\n", "val", r"Line 1 of .* is not a file name, a tab and a class"),
        ("val/val_annotations.txt", "a\tn02124075\na\tn01443537\n", "val", "uses these sample ids more than once: a"),
    ],
)
def test_tiny_imagenet_mistakes_are_told(tmp_path: Path, name: str, content: str, split: str, sentence: str) -> None:
    (write_tiny(tmp_path) / name).write_text(content)
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$"):
        read_tiny_imagenet(tmp_path, "train" if split == "train" else "val")


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_a_missing_file_of_tiny_imagenet_is_named(tmp_path: Path, name: str) -> None:
    (write_tiny(tmp_path) / name).unlink()
    with pytest.raises(StoreNotFoundError, match=rf"^There is no file [^\n]*{name}; [^\n]*$"):
        read_tiny_imagenet(tmp_path, "val")


def test_a_file_of_names_that_is_no_text_is_told(tmp_path: Path) -> None:
    (write_tiny(tmp_path) / "words.txt").write_bytes(b"n01443537\t\xff\xfe\n")
    with pytest.raises(InvalidInputError, match=r"words\.txt is not text in UTF-8"):
        read_tiny_imagenet(tmp_path, "train")
