"""Folders of images with a table of labels."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semrsm_dist.datasets.annotations import read_annotations
from semrsm_dist.datasets.labels import read_labelled_images, read_labels
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

FULL = """file_name,class_id,class_name,count,group_id,video_id
b.jpg,3,cat,2,G1,01
sub/a.jpg,3,cat,,G2,01
b.jpg,1,"dog, small",1,G1,01
empty.jpg,,,,,
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.jpg", "empty.jpg", "unlisted.jpg", "007.jpg"):
        (tmp_path / "images" / name).touch()
    return tmp_path / "images"


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return tmp_path / "labels.csv"


def rows(table: pa.Table | None) -> list[tuple[object, ...]]:
    assert table is not None and table.schema == tables.ANNOTATIONS
    return [tuple(row.values()) for row in table.to_pylist()]


def test_the_table_names_images_classes_counts_and_videos(tmp_path: Path, images: Path) -> None:
    dataset = read_labelled_images(write(tmp_path, FULL), images)
    assert [sample.sample_id for sample in dataset.samples] == ["b.jpg", "sub/a.jpg", "empty.jpg"]  # and not the unlisted one
    assert rows(dataset.annotations) == [("b.jpg", 1, "dog, small", 1), ("b.jpg", 3, "cat", 2), ("sub/a.jpg", 3, "cat", 1)]
    assert [(sample.group_id, sample.video_id) for sample in dataset.samples] == [("G1", "01"), ("G2", "01"), (None, None)]
    assert dataset.samples[1].path == images / "sub/a.jpg"


def test_parquet_says_the_same_as_csv(tmp_path: Path, images: Path) -> None:
    columns = {
        "file_name": ["b.jpg", "sub/a.jpg", "b.jpg", "empty.jpg"],
        "class_id": pa.array([3.0, 3.0, 1.0, None]),  # pandas makes floats of integers with gaps
        "class_name": pa.array(["cat", "cat", "dog, small", ""]).dictionary_encode(),
        "count": pa.array([2, None, 1, None], pa.int16()),
        "group_id": ["G1", "G2", "G1", None],
        "video_id": ["01", "01", "01", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    from_parquet = read_labelled_images(tmp_path / "labels.parquet", images)
    assert from_parquet == read_labelled_images(write(tmp_path, FULL), images)


def test_a_class_without_an_id_has_the_same_id_in_every_table(tmp_path: Path) -> None:
    queries = read_labels(write(tmp_path, "file_name,class\nb.jpg,cat\n")).annotations
    database = read_labels(write(tmp_path, "file_name,class\nb.jpg,ant\nb.jpg, cat \n")).annotations  # blanks around are none
    ids = {name: class_id for _, class_id, name, _ in rows(database)}
    assert rows(queries) == [("b.jpg", ids["cat"], "cat", 1)]
    assert len(set(ids.values())) == 2 and min(ids.values()) >= 0


def test_names_that_look_like_numbers_stay_as_they_are(tmp_path: Path, images: Path) -> None:
    dataset = read_labelled_images(write(tmp_path, "file_name,class,video_id\n007.jpg,012,01\n"), images)
    assert rows(dataset.annotations)[0][2] == "012"
    assert dataset.samples[0].video_id == "01"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file_name,clas\nb.jpg,cat\n", "has the unknown column 'clas'; did you mean class?"),
        ("file_name,colour\nb.jpg,red\n", "has the unknown column 'colour'; a table of labels has class, file_name,"),
        ("class\ncat\n", "has no column file_name; add the names of the images"),
        ("file_name\nb.jpg\n", "has no column class_name; add the names of the classes"),
        ("file_name,class_id\nb.jpg,3\n", "has no column class_name; add the names of the classes"),
        ("file_name,class,class_name\nb.jpg,cat,cat\n", "has the column class_name more than once"),
        ("file_name,class_id,class_name\nb.jpg,3,cat\nb.jpg,4,\n", "Row 2 of .* has a class id without a name"),
        ("file_name,class_id,class_name\nb.jpg,3,cat\nb.jpg,,dog\n", "Row 2 of .* has a class without an id"),
        ("file_name,class_id,class_name\nb.jpg,3,cat\nc.jpg,3,dog\n", "gives more than one class_name to the class_id 3"),
        ("file_name,class_id,class_name\nb.jpg,three,cat\n", "The column class_id of .* does not hold whole numbers"),
        ("file_name,class,count\nb.jpg,cat,1.5\n", "The column count of .* does not hold whole numbers"),
        ("file_name,class,count\nb.jpg,cat,0\n", "Row 1 of .* has a count below 1"),
        ("file_name,class\nb.jpg,cat\nb.jpg,dog\nb.jpg,cat\n", "has more than one row for cat in b.jpg; give each one row"),
        (
            "file_name,class,group_id,video_id\nb.jpg,a,G,1\nb.jpg,b,G,2\n",
            "gives more than one video_id to the file_name b.jpg",
        ),
        ("file_name,class\n,cat\n", "Row 1 of .* has no file_name"),
        ("file_name,class\n", "names no images"),
        ("", "is not a readable table"),
        ("file_name,class\nb.jpg,cat,7\n", "is not a readable table .*Expected 2 columns, got 3"),
    ],
)
def test_mistakes_in_a_table_are_told_in_one_sentence(tmp_path: Path, images: Path, text: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}[^\n]*$".replace("?", r"\?")):
        read_labelled_images(write(tmp_path, text), images)


def test_unknown_files_are_named_and_none_outside_of_the_folder_is_read(tmp_path: Path, images: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^1 of the 2 images that [^\n]*labels\.csv names are not in [^\n]*: c\.jpg;"):
        read_labelled_images(write(tmp_path, "file_name,class\nb.jpg,cat\nc.jpg,cat\n"), images)
    with pytest.raises(InvalidInputError, match="an image outside the root named by an annotation"):
        read_labelled_images(write(tmp_path, "file_name,class\n../labels.csv,cat\n"), images)


def test_a_table_that_is_none_or_not_there_is_told(tmp_path: Path, images: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no table of labels [^\n]*nowhere\.csv; check the path\.$"):
        read_labelled_images(tmp_path / "nowhere.csv", images)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InvalidInputError, match=r"^[^\n]*labels\.parquet is not a readable table [^\n]*$"):
        read_labelled_images(tmp_path / "labels.parquet", images)
    (tmp_path / "latin.csv").write_bytes(b"file_name,class\nb.jpg,\xe9t\xe9\n")
    with pytest.raises(InvalidInputError, match=r"^[^\n]*latin\.csv is not a readable table [^\n]*$"):
        read_labelled_images(tmp_path / "latin.csv", images)


def test_retrieval_reads_tables_of_labels_and_of_annotations(tmp_path: Path) -> None:
    labels = write(tmp_path, FULL)
    expected = rows(read_labels(labels).annotations)
    pq.write_table(read_labels(labels).annotations, tmp_path / "annotations.parquet")
    pq.write_table(pa.table({"file_name": ["b.jpg"], "class": ["cat"]}), tmp_path / "labels.parquet")
    assert sorted(rows(read_annotations([labels], ["b.jpg", "sub/a.jpg", "empty.jpg"]))) == sorted(expected)
    assert sorted(rows(read_annotations([tmp_path / "annotations.parquet"], ["b.jpg", "sub/a.jpg"]))) == sorted(expected)
    assert rows(read_annotations([tmp_path / "labels.parquet"], ["b.jpg"]))[0][2] == "cat"
