"""What is known of images is remembered while the files do not change, also by a call that was interrupted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from semrsm_dist.datasets.inspection import inspect_images
from semrsm_dist.datasets.samples import Sample
from storage_schemas import StoreNotFoundError, UnreadableImageError
from storage_schemas.location import Location
from storage_schemas.tables import IMAGES, read_table


def make_samples(folder: Path, count: int) -> list[Sample]:
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 100)
    return [Sample(path.name, path, path.as_uri()) for path in paths]


class Decoder:
    """Refuses files that begin with a byte of its list, and remembers what it was asked."""

    def __init__(self, *bad: int) -> None:
        self.bad, self.asked = bad, list[str]()

    def __call__(self, path: Path) -> None:
        self.asked.append(path.name)
        if path.read_bytes()[0] in self.bad:
            raise UnreadableImageError(f"{path.name} is broken; replace it.")


@pytest.fixture
def known(tmp_path: Path) -> Location:
    return Location.of(tmp_path / "known.parquet")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed."""
    hashed: list[str] = []
    original = hashlib.file_digest

    def digest(file: object, name: str) -> object:
        hashed.append(Path(file.name).name)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return hashed


def test_only_files_that_changed_are_read_again(tmp_path: Path, known: Location, reads: list[str]) -> None:
    samples = make_samples(tmp_path, 5)
    first = inspect_images(samples, known)
    assert [sample.sha256 for sample in first.samples] == [hashlib.sha256(s.path.read_bytes()).hexdigest() for s in samples]
    reads.clear()
    assert inspect_images(samples, known) == first
    assert reads == []
    samples[2].path.write_bytes(b"other")
    os.utime(samples[4].path, ns=(1, 1))
    second = inspect_images(samples, known)
    assert sorted(reads) == ["2.jpg", "4.jpg"]
    assert second.samples[2].sha256 == hashlib.sha256(b"other").hexdigest()
    assert second.samples[4] == first.samples[4]


def test_images_that_cannot_be_decoded_are_told_and_the_others_remembered(tmp_path: Path, known: Location) -> None:
    samples, decoder = make_samples(tmp_path, 5), Decoder(1, 3)
    found = inspect_images(samples, known, decode=decoder)
    assert [sample.sample_id for sample in found.samples] == ["0.jpg", "2.jpg", "4.jpg"]
    assert found.unreadable["sample_id"].to_pylist() == ["1.jpg", "3.jpg"]
    assert found.unreadable["problem"].to_pylist() == ["1.jpg is broken; replace it.", "3.jpg is broken; replace it."]
    decoder.asked.clear()
    samples[3].path.write_bytes(b"mended")
    found = inspect_images(samples, known, decode=decoder)
    assert sorted(decoder.asked) == ["1.jpg", "3.jpg"]  # what failed is tried again, what could be decoded is not
    assert found.unreadable["sample_id"].to_pylist() == ["1.jpg"]


def test_hashes_that_are_known_do_not_mean_that_images_can_be_decoded(tmp_path: Path, known: Location) -> None:
    samples, decoder = make_samples(tmp_path, 3), Decoder(0)
    assert len(inspect_images(samples, known).samples) == 3
    assert len(inspect_images(samples, known, decode=decoder).samples) == 2
    assert len(inspect_images(samples, known).samples) == 3  # nobody asked


def test_what_was_learnt_before_an_error_is_remembered(tmp_path: Path, known: Location, reads: list[str]) -> None:
    samples = make_samples(tmp_path, 5)
    samples[3].path.unlink()
    with pytest.raises(StoreNotFoundError, match=r"There is no image .*3\.jpg"):
        inspect_images(samples, known, threads=1)
    assert len(read_table(known, IMAGES)) == 3
    samples[3].path.write_bytes(b"back")
    reads.clear()
    inspect_images(samples, known)
    assert sorted(reads) == ["3.jpg", "4.jpg"]


def test_a_damaged_memory_is_no_memory(tmp_path: Path, known: Location) -> None:
    samples = make_samples(tmp_path, 2)
    first = inspect_images(samples, known)
    (tmp_path / "known.parquet").write_bytes(b"nothing")
    assert inspect_images(samples, known) == first
    assert len(read_table(known, IMAGES)) == 2


def test_every_file_is_reported(tmp_path: Path, known: Location) -> None:
    reports: list[tuple[object, ...]] = []
    inspect_images(
        make_samples(tmp_path, 3), known, report=lambda done, total, seconds_left=None: reports.append((done, total))
    )
    assert reports == [(1, 3), (2, 3), (3, 3)]
