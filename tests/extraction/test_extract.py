"""Extraction into activation stores: values, resume, and what is refused."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semrsm_dist.datasets.coco import read_coco
from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.extraction import loading
from semrsm_dist.extraction.batching import Blocks
from semrsm_dist.extraction.extract import extract, extract_layers
from semrsm_dist.extraction.images import open_image
from semrsm_dist.extraction.model import VisionModel, load_model
from semrsm_dist.extraction.settings import ExtractionSettings
from semrsm_dist.runtime.standing import Observer
from storage_schemas import ActivationStore, activations, tables
from storage_schemas.activations import samples_url
from storage_schemas.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    NonFiniteError,
    StorageUnavailableError,
    StoreNotFoundError,
    UnreadableImageError,
)
from storage_schemas.location import Location
from storage_schemas.tables import SAMPLES, UNREADABLE, read_table

SHARED = Path(__file__).parents[3] / "shared"
MOBILENET = SHARED / "models" / "mobilenet_v2_imagenet"
CARDS = SHARED / "data" / "playing_cards"
needs_real_data = pytest.mark.skipif(
    not (MOBILENET.is_dir() and CARDS.is_dir()), reason=f"SKIPPED REAL DATA: {MOBILENET} or {CARDS} is not there"
)


@pytest.fixture(autouse=True)
def four_samples_in_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven images are three chunks, of 4, 4 and 3 samples."""
    monkeypatch.setattr(activations, "CHUNK_BYTES", 4 * 64 * 16 * 4)


@pytest.fixture(scope="session")
def resnet(resnet_folder: Path) -> VisionModel:
    return load_model(resnet_folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_store_holds_what_the_model_gives(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"), batch_size=3)
    whole = resnet.represent(torch.stack([resnet.preprocess(open_image(s.path)) for s in dataset.samples]))
    assert store.n_chunks == 3
    assert store.spatial_shape == (8, 8)
    assert whole.logits is not None
    np.testing.assert_allclose(store.read(0, 11), whole.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(store.read_logits(), whole.logits, rtol=1e-5, atol=1e-6)


def test_a_model_without_classes_makes_a_store_without_logits(dinov2_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    store = extract(read_image_folder(image_folder), load_model(dinov2_folder), str(tmp_path / "a.zarr"))
    assert (store.n_samples, store.n_positions, store.n_channels) == (11, 17, 16)
    assert not store.has_logits
    assert store.spatial_shape is None


def test_samples_and_model_are_recorded(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"))
    table = tables.read_table(samples_url(store.location), tables.SAMPLES)
    assert table["sample_id"].to_pylist() == [sample.sample_id for sample in dataset.samples]
    assert all(len(digest) == 64 for digest in table["sha256"].to_pylist())
    computed_from = store.attributes["computed_from"]
    assert computed_from["model"] == resnet.description
    assert computed_from["n_samples"] == 11


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_threads(resnet: VisionModel, image_folder: Path, tmp_path: Path, threads: int) -> None:
    dataset = read_image_folder(image_folder)
    extract(dataset, resnet, str(tmp_path / "one" / "a.zarr"), batch_size=3, threads=1)
    extract(dataset, resnet, str(tmp_path / "many" / "a.zarr"), batch_size=3, threads=threads)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


def test_pytorch_keeps_its_threads(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    extract(read_image_folder(image_folder), resnet, str(tmp_path / "a.zarr"))
    assert torch.get_num_threads() == before


def test_batches_do_not_cross_chunks(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"))
    store.location.delete("features/c/0/0/0")
    store.location.delete("logits/c/2/0")
    batches = Blocks((store,), store.chunk_samples, 3).batches((frozenset({0, 2}),), dataset.samples)
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 3), (3, 4), (8, 11)]
    assert batches[1].samples == dataset.samples[3:4]


class InterruptedHereError(Exception):
    """What a test interrupts an extraction with."""


@pytest.mark.parametrize("after", [0, 2, 5, 9])
def test_an_interrupted_extraction_is_finished_with_the_same_bytes(
    resnet: VisionModel, image_folder: Path, tmp_path: Path, after: int
) -> None:
    dataset = read_image_folder(image_folder)
    extract(dataset, resnet, str(tmp_path / "whole" / "a.zarr"), batch_size=2)

    def interrupt(done: int, total: int) -> None:
        if done >= after:
            raise InterruptedHereError

    out = tmp_path / "resumed" / "a.zarr"
    with pytest.raises(InterruptedHereError):
        extract(dataset, resnet, str(out), batch_size=2, progress=interrupt)
    assert (tmp_path / "resumed" / "a.samples.parquet").is_file()
    (out / "features" / "zarr.json#1").write_text("left behind by a killed writer")
    extract(dataset, resnet, str(out), batch_size=2)
    assert tree(tmp_path / "resumed") == tree(tmp_path / "whole")


def test_only_missing_chunks_are_computed_again(
    resnet: VisionModel, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_image_folder(image_folder)
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"), batch_size=2)
    before = tree(tmp_path)
    store.location.delete("features/c/1/0/0")
    opened: list[str] = []

    def recording(path: Path) -> Image.Image:
        opened.append(path.name)
        return open_image(path)

    monkeypatch.setattr(loading, "open_image", recording)
    reports: list[tuple[int, int]] = []
    extract(
        dataset,
        resnet,
        str(tmp_path / "a.zarr"),
        batch_size=2,
        threads=1,
        progress=lambda done, total: reports.append((done, total)),
    )
    names = [sample.path.name for sample in dataset.samples]
    assert opened == [names[0], *names[4:8]]  # the first image tells the shapes
    assert reports == [(7, 11), (9, 11), (11, 11)]
    assert tree(tmp_path) == before


def test_a_complete_store_is_left_as_it_is(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    extract(dataset, resnet, str(tmp_path / "a.zarr"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*")}
    reports: list[tuple[int, int]] = []
    extract(dataset, resnet, str(tmp_path / "a.zarr"), progress=lambda done, total: reports.append((done, total)))
    assert reports == [(11, 11)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*")} == before


def test_another_model_image_or_batch_size_is_refused_and_named(
    resnet: VisionModel, resnet_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    dataset = read_image_folder(image_folder)
    out = str(tmp_path / "a.zarr")
    extract(dataset, resnet, out)
    before = tree(tmp_path)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*model\.image_size is null in the store and 128[^\n]*$"):
        extract(dataset, load_model(resnet_folder, image_size=128), out)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*batch_size is 16 in the store and 4 now[^\n]*$"):
        extract(dataset, resnet, out, batch_size=4)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*n_samples is 11 in the store and 5 now[^\n]*$"):
        extract(Dataset(dataset.samples[:5]), resnet, out)
    Image.new("RGB", (50, 50)).save(dataset.samples[0].path)
    with pytest.raises(FingerprintMismatchError, match=r"^[^\n]*samples is [^\n]*$"):
        extract(dataset, resnet, out)
    for changed in (dataset.samples[0].path.relative_to(tmp_path).as_posix(), "images.parquet"):
        del before[changed]
    assert before.items() <= tree(tmp_path).items()


def test_an_unreadable_image_is_named_and_finished_chunks_stay(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    dataset.samples[9].path.write_bytes(b"no image")
    out = tmp_path / "a.zarr"
    with pytest.raises(InvalidInputError, match=r"^[^\n]*image09[^\n]* is not an image[^\n]*$"):
        extract(dataset, resnet, str(out), batch_size=2)
    assert ActivationStore.open(str(out)).missing_chunks() == [2]


def test_all_unreadable_images_are_named_and_listed(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    for index in (1, 9):  # not of one batch
        dataset.samples[index].path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"^2 of 11 images cannot be decoded: image01\.png, image09\.png; [^\n]*$"):
        extract(dataset, resnet, str(tmp_path / "a.zarr"), batch_size=2)
    listed = read_table(Location.of(tmp_path / "a.unreadable.parquet"), UNREADABLE).to_pylist()
    assert [row["sample_id"] for row in listed] == ["image01.png", "image09.png"]
    assert all("is not an image of a known format" in row["problem"] for row in listed)


def test_unreadable_images_can_be_left_out_and_are_recorded(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    dataset.samples[1].path.write_bytes(b"no image")
    settings = ExtractionSettings(batch_size=2, on_error="skip")
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"), settings=settings)
    assert store.n_samples == 10
    assert store.attributes["left_out"] == 1
    listed = read_table(Location.of(tmp_path / "a.unreadable.parquet"), UNREADABLE)
    assert listed["sample_id"].to_pylist() == ["image01.png"]
    kept = read_table(samples_url(store.location), SAMPLES)["sample_id"].to_pylist()
    assert kept == [sample.sample_id for sample in dataset.samples if sample.sample_id != "image01.png"]
    before = tree(tmp_path)
    extract(dataset, resnet, str(tmp_path / "a.zarr"), settings=settings)
    assert tree(tmp_path) == before
    for sample in dataset.samples:
        sample.path.write_bytes(b"no image")
    with pytest.raises(
        InvalidInputError, match=r"^The dataset holds no images to extract; give at least one that can be decoded\.$"
    ):
        extract(dataset, resnet, str(tmp_path / "none.zarr"), settings=settings)


def test_a_store_that_was_killed_while_it_was_made_is_gone_on_with(
    resnet: VisionModel, image_folder: Path, tmp_path: Path
) -> None:
    dataset, out = read_image_folder(image_folder), str(tmp_path / "a.zarr")
    extract(dataset, resnet, out)
    before = tree(tmp_path)
    store = ActivationStore.open(out)
    for path in ("features", "logits"):
        for key in store.location.sizes(path):
            store.location.delete(key)
    assert Observer().activations("a", store.location).planned == 0
    checked: list[tuple[object, ...]] = []
    extract_layers(dataset, resnet, {"last_hidden_state": out}, report_check=lambda *told: checked.append(told))
    assert tree(tmp_path) == before
    assert checked == []  # there was nothing to check


def test_what_a_store_holds_can_be_checked_on_the_way(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset, out = read_image_folder(image_folder), str(tmp_path / "a.zarr")
    extract(dataset, resnet, out)
    before = tree(tmp_path)
    chunk = tmp_path / "a.zarr/features/c/1/0/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    checked: list[tuple[object, ...]] = []
    extract_layers(dataset, resnet, {"last_hidden_state": out}, report_check=lambda *told: checked.append(told))
    assert checked == [(1, 3), (2, 3), (3, 3)]
    assert tree(tmp_path) == before


def test_a_disk_that_fails_is_not_taken_for_a_broken_image(
    resnet: VisionModel, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, original = read_image_folder(image_folder), Image.open

    def fail(path: Path, **options: object) -> object:
        if path.name.startswith("image05"):
            raise OSError(errno.EIO, "Input/output error")
        return original(path, **options)

    settings = ExtractionSettings(on_error="skip")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fail)
        with pytest.raises(StorageUnavailableError, match="image05"):
            extract(dataset, resnet, str(tmp_path / "a.zarr"), settings=settings)
    assert extract(dataset, resnet, str(tmp_path / "a.zarr"), settings=settings).n_samples == 11


def test_a_store_is_gone_on_with_at_the_batch_size_it_was_begun_with(
    resnet: VisionModel, image_folder: Path, tmp_path: Path
) -> None:
    dataset = read_image_folder(image_folder)
    store = extract(dataset, resnet, str(tmp_path / "a.zarr"), batch_size=3)
    store.delete_chunk(1)
    assert extract(dataset, resnet, str(tmp_path / "a.zarr")).fingerprint == store.fingerprint
    assert extract(dataset, resnet, str(tmp_path / "b.zarr")).attributes["computed_from"]["batch_size"] == 16


def test_features_can_be_stored_in_half_precision(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    whole = extract(dataset, resnet, str(tmp_path / "a.zarr"))
    half = extract(dataset, resnet, str(tmp_path / "b.zarr"), settings=ExtractionSettings(dtype="float16"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.read(0, 11), whole.read(0, 11).astype(np.float16))
    assert half.fingerprint != whole.fingerprint


def test_the_forward_pass_can_be_computed_in_bfloat16(resnet_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    whole = extract(dataset, load_model(resnet_folder), str(tmp_path / "a.zarr")).read(0, 11)
    fast = extract(dataset, load_model(resnet_folder, autocast="bfloat16"), str(tmp_path / "b.zarr"))
    assert fast.attributes["computed_from"]["model"]["autocast"] == "bfloat16"
    difference = np.abs(fast.read(0, 11) - whole).max() / np.abs(whole).max()
    assert 1e-4 < difference < 0.1


def test_a_missing_image_stops_before_a_store_is_made(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    dataset = read_image_folder(image_folder)
    dataset.samples[3].path.unlink()
    with pytest.raises(StoreNotFoundError, match=r"^There is no image [^\n]*image03[^\n]*$"):
        extract(dataset, resnet, str(tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


def test_images_that_stay_of_different_sizes_are_refused(copied: Path, image_folder: Path, tmp_path: Path) -> None:
    (copied / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 64}}'
    )
    with pytest.raises(InvalidInputError, match=r"^[^\n]*image01[^\n]* pixels after preprocessing [^\n]*$"):
        extract(read_image_folder(image_folder), load_model(copied), str(tmp_path / "a.zarr"))


def test_numbers_that_are_not_finite_are_refused(resnet_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    broken = load_model(resnet_folder)
    with torch.no_grad():
        next(broken._network.module.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"^The \w+ of sample 0 hold NaN[^\n]*$"):
        extract(read_image_folder(image_folder), broken, str(tmp_path / "a.zarr"))


def test_nothing_to_extract_and_impossible_numbers_are_refused(resnet: VisionModel, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"^The dataset holds no images[^\n]*$"):
        extract(Dataset(()), resnet, str(tmp_path / "a.zarr"))
    with pytest.raises(InvalidInputError, match=r"^A batch size of 0 [^\n]*$"):
        extract(read_image_folder(image_folder), resnet, str(tmp_path / "a.zarr"), batch_size=0)


@needs_real_data
@pytest.mark.parametrize(("image_size", "side"), [(None, 7), (448, 14)])
def test_mobilenet_on_playing_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int | None, side: int) -> None:
    cards = read_coco(CARDS / "query.json", CARDS / "images")
    model = load_model(MOBILENET, image_size=image_size)
    store = extract(Dataset(cards.samples[:3]), model, Location.of(tmp_path / "cards.zarr"))
    assert (store.n_positions, store.n_channels, store.spatial_shape) == (side * side, 1280, (side, side))
    assert store.read_logits().shape == (3, 1001)
    features = store.read(0, 3)
    assert features.min() >= 0 and features.max() <= 6  # ReLU6
