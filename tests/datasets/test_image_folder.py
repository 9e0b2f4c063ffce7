"""A folder of images as a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from semrsm_dist.datasets.image_folder import read_image_folder
from storage_schemas.errors import InvalidInputError, StoreNotFoundError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_of_all_levels_are_sorted_by_their_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/deep/c.tiff", "A.Jpeg", "w.webp", "x.bmp", "y.TIF")
    dataset = read_image_folder(tmp_path)
    ids = [sample.sample_id for sample in dataset.samples]
    assert ids == ["A.Jpeg", "a/deep/c.tiff", "a/z.PNG", "b.jpg", "w.webp", "x.bmp", "y.TIF"]
    assert dataset.annotations is None
    assert dataset.samples[1].path == tmp_path / "a/deep/c.tiff"
    assert dataset.samples[1].uri == (tmp_path / "a/deep/c.tiff").as_uri()


def test_other_and_hidden_files_are_no_samples(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "jpg", "._a.jpg", ".cache/b.jpg")
    assert [sample.sample_id for sample in read_image_folder(tmp_path).samples] == ["a.jpg"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no folder [^\n]*nowhere[^\n]*$"):
        read_image_folder(tmp_path / "nowhere")


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(InvalidInputError, match=r"^[^\n]* holds no image [^\n]*$"):
        read_image_folder(tmp_path)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(InvalidInputError, match=r"^[^\n]* is a file; [^\n]*$"):
        read_image_folder(tmp_path / "a.jpg")
