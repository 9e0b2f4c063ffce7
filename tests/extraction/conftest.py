"""Small networks with random weights, saved as transformers saves them, and small images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from semrsm_dist.extraction.sources import kept_rows
from storage_schemas import activations


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two samples of ``(4, 3)``, read in slabs of a few rows."""
    monkeypatch.setattr(activations, "CHUNK_BYTES", 2 * 4 * 3 * 4)
    monkeypatch.setattr(kept_rows, "SLAB_BYTES", 3 * 4 * 3 * 4)
    monkeypatch.setattr(kept_rows, "LARGEST_SLAB_BYTES", 5 * 4 * 3 * 4)


def _save(folder: Path, network: Any, processor: Any) -> Path:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional classifier: S = 8 × 8 = 64 positions, C = 16 channels, K = 3 classes."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    return _save(tmp_path_factory.mktemp("models") / "resnet", ResNetForImageClassification(config), processor)


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer that classifies: S = 1 + 4 × 4 tokens, C = 16 channels, K = 5 classes."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return _save(tmp_path_factory.mktemp("models") / "vit", ViTForImageClassification(config), processor)


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer without classes, whose processor resizes to 40 and crops to 32: S = 1 + 4 × 4, C = 16."""
    torch.manual_seed(2)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    processor = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    return _save(tmp_path_factory.mktemp("models") / "dinov2", Dinov2Model(config), processor)


@pytest.fixture
def copied(tmp_path: Path, resnet_folder: Path) -> Path:
    """A copy of the convolutional classifier that a test may damage."""
    return Path(shutil.copytree(resnet_folder, tmp_path / "copied"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Eleven images of noise, of several sizes and formats."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(11):
        height, width = 40 + 7 * index, 90 - 5 * index
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{index:02d}{'.png' if index % 2 else '.jpg'}")
    return folder
