"""CIFAR-100's binary files, unpacked."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from semrsm_dist.datasets.cifar100 import encode_bmp, read_cifar100
from semrsm_dist.datasets.samples import hash_samples, samples_table
from semrsm_dist.extraction.images import open_image
from semrsm_dist.report.assemble import _local_images
from semrsm_dist.report.examples import thumbnail
from storage_schemas.errors import InvalidInputError, StorageUnavailableError, StoreNotFoundError


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """Five images, (n, 3, 32, 32)."""
    return np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    """The folder that the published archive unpacks to, with fewer images."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    labels = np.array([(1, 99), (0, 4), (19, 0), (1, 99), (0, 7)], np.uint8)  # coarse, fine
    records = np.concatenate([labels, pixels.reshape(5, -1)], axis=1)
    assert records.shape[1] == 3074
    (folder / "train.bin").write_bytes(records.tobytes())
    (folder / "test.bin").write_bytes(records[:2].tobytes())
    (folder / "fine_label_names.txt").write_text("".join(f"fine {number}\n" for number in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse {number}\n" for number in range(20)))
    return folder


def test_every_image_becomes_a_file_with_its_pixels(root: Path, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    samples = read_cifar100(root, "train", tmp_path / "unpacked").samples
    assert [sample.sample_id for sample in samples] == [f"train/0000{number}.bmp" for number in range(5)]
    for sample, expected in zip(samples, pixels, strict=True):
        assert sample.path == tmp_path / "unpacked" / sample.sample_id
        assert np.array_equal(np.asarray(open_image(sample.path)), expected.transpose(1, 2, 0))
        assert (sample.width, sample.height) == (32, 32)


def test_classes_are_the_fine_or_the_coarse_labels(root: Path, tmp_path: Path) -> None:
    fine = read_cifar100(root, "train", tmp_path / "unpacked").annotations
    coarse = read_cifar100(root, "train", tmp_path / "unpacked", classes="coarse").annotations
    assert fine is not None and coarse is not None
    assert fine["class_id"].to_pylist() == [99, 4, 0, 99, 7]
    assert coarse["class_name"].to_pylist() == ["coarse 1", "coarse 0", "coarse 19", "coarse 1", "coarse 0"]
    assert fine.slice(2, 1).to_pylist() == [{"sample_id": "train/00002.bmp", "class_id": 0, "class_name": "fine 0", "count": 1}]


def test_unpacked_images_work_where_files_do(root: Path, tmp_path: Path) -> None:
    samples = read_cifar100(root, "test", tmp_path / "un packed").samples
    hashes = {sample.sha256 for sample in hash_samples(samples)}
    assert len(hashes) == 2
    local = _local_images(samples_table(samples))
    assert (thumbnail(local["test/00001.bmp"], 240) or "").startswith("data:image/jpeg;base64,")


def test_the_bytes_of_an_unpacked_image_are_fixed() -> None:
    data = encode_bmp(np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4))
    assert data[:2] == b"BM" and len(data) == 54 + 24
    assert list(data[54:60]) == [20, 12, 4, 21, 13, 5]  # the lowest row first; blue, green, red


def test_what_is_unpacked_is_kept_and_what_is_missing_is_added(root: Path, tmp_path: Path) -> None:
    first = read_cifar100(root, "train", tmp_path / "unpacked").samples
    times = [sample.path.stat().st_mtime_ns for sample in first]
    content = first[3].path.read_bytes()
    first[3].path.unlink()
    (tmp_path / "unpacked/train/00003.bmp#7").touch()  # what a killed run left is no image
    reports: list[tuple[int, int]] = []
    again = read_cifar100(root, "train", tmp_path / "unpacked", report=lambda *done: reports.append(done)).samples
    assert again == first
    assert again[3].path.read_bytes() == content
    assert [again[number].path.stat().st_mtime_ns for number in (0, 1, 2, 4)] == [times[number] for number in (0, 1, 2, 4)]
    assert reports[-1] == (5, 5)


def test_a_folder_of_other_images_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    strange = tmp_path / "photos" / "train" / "00001.bmp"
    strange.parent.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(strange)
    before = strange.read_bytes()
    with pytest.raises(InvalidInputError, match=r"^[^\n]*00001\.bmp is not image 1 of [^\n]*train\.bin; [^\n]*$"):
        read_cifar100(root, "train", tmp_path / "photos")
    assert strange.read_bytes() == before


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))  # type: ignore[return-value]


def test_the_pickled_version_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InvalidInputError, match=r"^[^\n]* is pickled; [^\n]*download the binary version [^\n]*$"):
        read_cifar100(tmp_path, "train", tmp_path / "unpacked")
    assert not (tmp_path / "unpickled").exists()


def test_damaged_and_missing_files_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no file [^\n]*nowhere/test\.bin; [^\n]*$"):
        read_cifar100(tmp_path / "nowhere", "test", tmp_path / "unpacked")
    (root / "fine_label_names.txt").write_text("only one\n")
    with pytest.raises(InvalidInputError, match=r"train\.bin has annotations of class ids without a name: 4, 7, 99;"):
        read_cifar100(root, "train", tmp_path / "unpacked")
    for content in (b"", (root / "test.bin").read_bytes()[:-1]):
        (root / "test.bin").write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"^[^\n]*test\.bin has [\d,]+ bytes, which are no whole records"):
            read_cifar100(root, "test", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()  # nothing is written before all of that is known


def test_a_folder_that_cannot_be_written_is_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailableError, match=r"^Cannot use [^\n]*$"):
        read_cifar100(root, "test", tmp_path / "file" / "unpacked")
