"""Drawing from a seed, and queries that are in the database."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.datasets.samples import Dataset, Sample
from semrsm_dist.datasets.selection import check_disjoint, draw
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError


def dataset(*names: str, folder: str = "/images") -> Dataset:
    samples = tuple(Sample(name, Path(folder, name), f"file://{folder}/{name}") for name in names)
    rows = [{"sample_id": name, "class_id": class_id, "class_name": "x", "count": 1} for name in names for class_id in (1, 5)]
    return Dataset(samples, pa.Table.from_pylist(rows, tables.ANNOTATIONS))


def ids(drawn: Dataset) -> list[str]:
    return [sample.sample_id for sample in drawn.samples]


NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=2, max_size=40, unique=True
)


@given(names=NAMES, seed=st.integers(0, 2**64), data=st.data())
def test_ranges_of_a_seed_are_disjoint_nested_and_independent_of_the_order(
    names: list[str], seed: int, data: st.DataObject
) -> None:
    n_queries = data.draw(st.integers(1, len(names) - 1))
    smaller = data.draw(st.integers(1, len(names) - n_queries))
    whole = dataset(*names)
    queries = draw(whole, seed, take=n_queries)
    database = draw(whole, seed, skip=n_queries)
    nested = draw(whole, seed, skip=n_queries, take=smaller)
    assert sorted(ids(queries) + ids(database)) == sorted(names)
    assert ids(nested) == ids(database)[:smaller]
    shuffled = dataset(*data.draw(st.permutations(names)))
    assert ids(draw(shuffled, seed, take=n_queries)) == ids(queries)
    without = [name for name in names if name != ids(queries)[0]]
    assert ids(draw(dataset(*without), seed)) == [*ids(queries), *ids(database)][1:]


def test_the_order_is_that_of_the_hashes_and_another_for_another_seed() -> None:
    names = [f"{number}.jpg" for number in range(100)]
    expected = sorted(names, key=lambda name: hashlib.sha256(f"7:{name}".encode()).hexdigest())
    assert ids(draw(dataset(*names), 7)) == expected
    assert ids(draw(dataset(*names), 7, take=3)) == ["57.jpg", "78.jpg", "62.jpg"]  # as sha256sum and sort say
    assert ids(draw(dataset(*names), 8)) != expected


def test_annotations_follow_the_samples() -> None:
    drawn = draw(dataset("a", "b", "c", "d"), 0, skip=1, take=2)
    assert drawn.annotations is not None
    assert drawn.annotations.schema == tables.ANNOTATIONS
    rows = [(row["sample_id"], row["class_id"]) for row in drawn.annotations.to_pylist()]
    assert rows == [(sample_id, class_id) for sample_id in ids(drawn) for class_id in (1, 5)]
    assert draw(Dataset(dataset("a").samples), 0).annotations is None


@pytest.mark.parametrize(
    ("skip", "take", "sentence"),
    [
        (0, 4, "There are 3 images to draw from, so that 4 cannot be taken after skipping 0"),
        (2, 2, "so that 2 cannot be taken after skipping 2"),
        (3, None, "so that none is left after skipping 3"),
    ],
)
def test_more_than_there_is_cannot_be_drawn(skip: int, take: int | None, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*{sentence}; choose a smaller range\.$"):
        draw(dataset("a", "b", "c"), 0, skip=skip, take=take)


def test_a_query_that_is_a_file_of_the_database_is_refused_before_anything_is_hashed() -> None:
    with pytest.raises(InvalidInputError, match=r"^1 of the 2 queries are in the database too: b; [^\n]*$"):
        check_disjoint(dataset("a", "b"), dataset("b", "c"))
    check_disjoint(dataset("a", "b"), dataset("c"))


def test_a_query_that_is_a_copy_of_a_database_image_is_refused_when_name_and_bytes_are_the_same() -> None:
    def hashed(name: str, folder: str, sha256: str) -> Dataset:
        made = dataset(name, folder=folder)
        return replace(made, samples=tuple(replace(sample, sha256=sha256) for sample in made.samples))

    with pytest.raises(InvalidInputError, match="queries are in the database too: a;"):
        check_disjoint(hashed("a", "/one", "0" * 64), hashed("a", "/two", "0" * 64))
    check_disjoint(hashed("a", "/one", "0" * 64), hashed("a", "/two", "1" * 64))  # another image of the same name
    check_disjoint(hashed("a", "/one", "0" * 64), hashed("b", "/two", "0" * 64))  # data sets hold some images twice
