"""Fingerprints and Parquet tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from storage_schemas import DamagedChunkError, InvalidInputError
from storage_schemas.fingerprint import fingerprint
from storage_schemas.location import Location
from storage_schemas.tables import ANNOTATIONS, SAMPLES, read_folder, read_table, write_table


def test_the_order_of_keys_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_a_table_comes_back(tmp_path: Path) -> None:
    table = pa.table({"sample_id": ["a"], "class_id": [3], "class_name": ["cat"], "count": [2]})
    write_table(Location.of(tmp_path) / "folder" / "0.parquet", table, ANNOTATIONS)
    write_table(Location.of(tmp_path) / "folder" / "1.parquet", table, ANNOTATIONS)
    assert read_table(Location.of(tmp_path) / "folder" / "0.parquet", ANNOTATIONS).to_pylist() == table.to_pylist()
    assert len(read_folder(Location.of(tmp_path) / "folder", ANNOTATIONS)) == 2
    assert len(read_folder(Location.of(tmp_path) / "nothing", ANNOTATIONS)) == 0
    with pytest.raises(InvalidInputError, match="lacks the columns uri, group_id"):
        read_table(Location.of(tmp_path) / "folder" / "0.parquet", SAMPLES)


def test_a_file_that_is_not_parquet_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nonsense")
    with pytest.raises(DamagedChunkError, match="not a readable Parquet file"):
        read_table(Location.of(tmp_path) / "x.parquet", ANNOTATIONS)


def test_the_package_imports_neither_ray_nor_torch_nor_the_library() -> None:
    code = "import sys, storage_schemas; print([m for m in ('ray', 'torch', 'semrsm_dist') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_library_imports_neither_ray_nor_torch_until_they_are_needed() -> None:
    code = "import sys, semrsm_dist.pipeline, semrsm_dist.cli; print([m for m in ('ray', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
