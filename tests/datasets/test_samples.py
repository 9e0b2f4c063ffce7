"""Samples, their hashes and their tables."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from semrsm_dist.datasets.samples import Dataset, Sample, hash_samples, samples_table, write_annotations
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError, StoreNotFoundError


def make_samples(folder: Path, count: int) -> tuple[Sample, ...]:
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 100)
    return tuple(Sample(path.name, path, path.as_uri()) for path in paths)


def test_a_dataset_refuses_samples_of_the_same_id_and_names_them(tmp_path: Path) -> None:
    sample = Sample("twice.jpg", tmp_path / "twice.jpg", "file:///twice.jpg")
    with pytest.raises(InvalidInputError, match=r"^[^\n]*more than once: twice\.jpg;[^\n]*$"):
        Dataset((sample, sample))


def test_hashes_are_those_of_the_files_in_the_order_of_the_samples(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 20)
    hashed = hash_samples(samples)
    assert [sample.sha256 for sample in hashed] == [hashlib.sha256(s.path.read_bytes()).hexdigest() for s in samples]
    assert [sample.sample_id for sample in hashed] == [sample.sample_id for sample in samples]


def test_hashing_reports_every_file(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    hash_samples(make_samples(tmp_path, 3), lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_hashing_a_file_that_has_gone_names_it(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 3)
    samples[1].path.unlink()
    with pytest.raises(StoreNotFoundError, match=r"^There is no image [^\n]*1\.jpg[^\n]*$"):
        hash_samples(samples)


def test_the_samples_table_has_one_row_each_in_the_stored_schema(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 2)
    table = samples_table(samples)
    assert table.schema == tables.SAMPLES
    assert table["sample_id"].to_pylist() == ["0.jpg", "1.jpg"]
    assert table["uri"].to_pylist() == [sample.path.as_uri() for sample in samples]
    assert table["video_id"].to_pylist() == [None, None]


def test_annotations_cannot_be_written_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^The dataset has no annotations[^\n]*$"):
        write_annotations(Dataset(make_samples(tmp_path, 1)), str(tmp_path / "annotations.parquet"))
