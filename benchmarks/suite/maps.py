"""The maps that matchings are timed on: real ones from ``../shared``, and synthetic ones of any size."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SHARED = Path(__file__).resolve().parents[3] / "shared"
SQUEEZENET = SHARED / "data/features/playing_cards_squeezenet_fire9.npz"
MOBILENET = SHARED / "models/mobilenet_v2_imagenet"
IMAGES = SHARED / "data/playing_cards/images"

MOBILENET_LAYERS = {224: (1, 3, 6, 9, -1), 512: (3, 6, 10, 13, -1)}
"""Hidden states that are kept, by image size; -1 is the last one, after the head's convolution."""
_CENTRE_OF = {224: 64, 512: 24}
"""Photographs whose mean is the centre, by image size."""

Maps = NDArray[np.float32]


class MapsAbsentError(FileNotFoundError):
    """What real maps are computed from is not on this machine."""


def centred(maps: Maps) -> Maps:
    """Maps less their mean per position and channel."""
    return np.asarray(maps - maps.mean(axis=0, dtype=np.float64), dtype=np.float32)


def squeezenet(n_maps: int, centre: bool) -> Maps:
    """The stored 13×13×512 maps of playing cards; the centre is that of all 363."""
    if not SQUEEZENET.exists():
        raise MapsAbsentError(f"{SQUEEZENET} is absent")
    features = np.load(SQUEEZENET, allow_pickle=False)["features"]
    return np.ascontiguousarray((centred(features) if centre else features)[:: len(features) // n_maps][:n_maps])


def mobilenet(n_maps: int, pixels: int, layer: int, centre: bool) -> Maps:
    """Maps of one hidden state of MobileNetV2 for photographs of playing cards."""
    maps = np.stack([_hidden_states(index, pixels)[layer] for index in range(max(n_maps, _CENTRE_OF[pixels]))])
    return (centred(maps) if centre else maps)[:n_maps]


@functools.cache
def _network() -> tuple[object, list[Path]]:
    """The network and the photographs, spread over the data set."""
    images = sorted(IMAGES.glob("*.jpg"))
    if not (MOBILENET / "model.safetensors").exists() or not images:
        raise MapsAbsentError(f"{MOBILENET} or {IMAGES} is absent")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(MOBILENET, local_files_only=True).eval(), images


@functools.cache
def _hidden_states(index: int, pixels: int) -> dict[int, Maps]:
    """The kept hidden states of one photograph, each ``(S, C)``."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor

    network, images = _network()
    processor = AutoImageProcessor.from_pretrained(MOBILENET, backend="pil", local_files_only=True)
    with Image.open(images[index * 17 % len(images)]) as image:
        inputs = processor(
            image.convert("RGB"),
            size={"shortest_edge": pixels * 256 // 224},
            crop_size={"height": pixels, "width": pixels},
            return_tensors="pt",
        )
    with torch.inference_mode():
        output = network(**inputs, output_hidden_states=True)
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    return {layer: np.ascontiguousarray(states[layer][0].flatten(1).T.numpy()) for layer in MOBILENET_LAYERS[pixels]}


def synthetic(kind: str, n_maps: int, n_positions: int, n_channels: int, seed: int = 0) -> Maps:
    """Synthetic maps ``(n, S, C)`` of a square image, always the same for the same arguments.

    ``gaussian`` and ``relu`` have independent entries; ``smooth`` is noise filtered over the image; ``classes`` looks like the
    map of a segmentation network: eight classes in smooth regions, and smooth noise. Degenerate are ``identical`` (45 % of the
    concept vectors are one and the same), ``zeros`` (60 % are zero) and ``clusters`` (five, with little noise).
    """
    generator = np.random.default_rng([seed, n_positions, n_channels])
    side = math.isqrt(n_positions)
    assert side * side == n_positions

    def noise(n_values: int) -> Maps:
        return generator.standard_normal((n_maps, n_positions, n_values), dtype=np.float32)

    def smooth(n_values: int, width: float) -> Maps:
        image = noise(n_values).reshape(n_maps, side, side, n_values)
        filtered = gaussian_filter(image, width, axes=(1, 2), mode="wrap")
        return np.asarray(filtered / filtered.std(), dtype=np.float32).reshape(n_maps, n_positions, n_values)

    def centres(n_classes: int, labels: NDArray[np.int64]) -> Maps:
        return generator.standard_normal((n_classes, n_channels), dtype=np.float32)[labels]

    if kind == "gaussian":
        return noise(n_channels)
    if kind == "relu":
        return np.maximum(noise(n_channels), 0)
    if kind == "smooth":
        return smooth(n_channels, 2.0)
    if kind == "classes":
        return centres(8, smooth(8, 4.0).argmax(axis=2)) + np.float32(0.5) * smooth(n_channels, 2.0)
    if kind == "clusters":
        return centres(5, generator.integers(5, size=(n_maps, n_positions))) + np.float32(0.01) * noise(n_channels)
    share, value = {"identical": (0.45, noise(n_channels)[0, 0]), "zeros": (0.6, np.float32(0))}[kind]
    chosen = generator.random((n_maps, n_positions, 1)) < share
    return np.where(chosen, value, np.maximum(noise(n_channels), 0)).astype(np.float32)
