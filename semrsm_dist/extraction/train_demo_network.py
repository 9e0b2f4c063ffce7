"""Train the small network that `semrsm demo` extracts features with: which classes are in a generated scene?

    python -m semrsm_dist.extraction.train_demo_network --out semrsm_dist/demo/network

Scenes are drawn from streams that the demo never uses, whatever its seed. Two runs with the same seed, versions and
number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from semrsm_dist.demo.scenes import CLASSES, SCENE_SIZE, Split, render_scene, scene_generator

CHANNEL_MEAN = (0.5, 0.5, 0.5)
CHANNEL_STD = (0.25, 0.25, 0.25)


def build_network(hidden_sizes: Sequence[int], depths: Sequence[int], embedding_size: int) -> ResNetForImageClassification:
    """Build an untrained residual network with one label per class of the scenes.

    Parameters
    ----------
    hidden_sizes : sequence of int
        Channels of each stage; the last is the ``C`` of the extracted features.
    depths : sequence of int
        Blocks of each stage, as many as `hidden_sizes`. The stem divides width and height by 4 and every stage after
        the first by 2, so two stages make ``S = (SCENE_SIZE / 8) ** 2``.
    embedding_size : int
        Channels of the stem.

    Returns
    -------
    ResNetForImageClassification
        In training mode, with weights drawn from torch's global generator.

    Raises
    ------
    ValueError
        If `hidden_sizes` and `depths` differ in length.
    """
    if len(hidden_sizes) != len(depths):
        raise ValueError(f"Every stage needs a depth: found {len(hidden_sizes)} hidden sizes and {len(depths)} depths.")
    config = ResNetConfig(
        embedding_size=embedding_size,
        hidden_sizes=list(hidden_sizes),
        depths=list(depths),
        layer_type="basic",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
        problem_type="multi_label_classification",
    )
    return ResNetForImageClassification(config).train()


def draw_scenes(split: Split, n_scenes: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw scenes into memory.

    Parameters
    ----------
    split : {"training", "validation"}
        Which streams to draw from.
    n_scenes : int
        Number of scenes ``N``.
    seed : int
        Not negative.

    Returns
    -------
    pixels : ndarray of uint8, shape (N, 3, SCENE_SIZE, SCENE_SIZE)
        RGB values, 0–255.
    labels : ndarray of float32, shape (N, K)
        1 where the class is in the scene, otherwise 0.
    """
    pixels = np.empty((n_scenes, 3, SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    labels = np.zeros((n_scenes, len(CLASSES)), dtype=np.float32)
    for index in range(n_scenes):
        image, boxes = render_scene(scene_generator(seed, split, index))
        pixels[index] = np.asarray(image).transpose(2, 0, 1)
        labels[index, [box.class_index for box in boxes]] = 1
    return pixels, labels


def mean_average_precision(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Mean over classes of the average precision.

    Parameters
    ----------
    scores, labels : ndarray, shape (N, K)
        Logits, and 1 where the class is present.

    Returns
    -------
    float
        Between 0 and 1. Classes that never occur are left out.

    Raises
    ------
    ValueError
        If no class occurs at all.
    """
    precisions: list[float] = []
    for score, label in zip(scores.T, labels.T, strict=True):
        hits = label[np.argsort(-score, kind="stable")]
        if hits.any():
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            precisions.append(float(precision[hits > 0].mean()))
    if not precisions:
        raise ValueError("No class occurs in the labels, so there is no average precision.")
    return float(np.mean(precisions))


def _say(line: str) -> None:
    """Write a line now, also where standard output is a file."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _normalise(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """The image processor's arithmetic, on a batch (N, 3, H, W)."""
    mean = torch.tensor(CHANNEL_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(CHANNEL_STD).view(1, 3, 1, 1)
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


def _augment(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Turn a whole batch by a multiple of 90°, mirror it and permute its colours: none of it changes a class."""
    batch = torch.rot90(batch, int(rng.integers(4)), dims=(2, 3))
    if rng.integers(2):
        batch = batch.flip(3)
    return batch[:, torch.from_numpy(rng.permutation(3))]


def validate(
    network: ResNetForImageClassification, pixels: NDArray[np.uint8], labels: NDArray[np.float32]
) -> tuple[float, float]:
    """Measure the network on scenes that it was not trained on.

    Parameters
    ----------
    network : ResNetForImageClassification
        Left in evaluation mode.
    pixels : ndarray of uint8, shape (N, 3, H, W)
    labels : ndarray of float32, shape (N, K)

    Returns
    -------
    mean_average_precision : float
    accuracy : float
        Share of (scene, class) pairs judged rightly at probability 0.5.
    """
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(_normalise(part)).logits for part in np.array_split(pixels, len(pixels) // 100 + 1)])
    scores = logits.numpy()
    return mean_average_precision(scores, labels), float(((scores > 0) == (labels > 0)).mean())


def train(
    network: ResNetForImageClassification, n_scenes: int, n_epochs: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[float, float]:
    """Train in place by AdamW with a one-cycle learning rate, printing loss and validation after each epoch.

    Parameters
    ----------
    network : ResNetForImageClassification
    n_scenes : int
        Training scenes; as many as a tenth of it, at least 100, are drawn for validation.
    n_epochs, batch_size : int
    learning_rate : float
        Highest learning rate of the cycle.
    seed : int
        Of the scenes and of their order.

    Returns
    -------
    mean_average_precision, accuracy : float
        On the validation scenes, after the last epoch.
    """
    started = time.perf_counter()
    pixels, labels = draw_scenes("training", n_scenes, seed)
    held_out = draw_scenes("validation", max(100, n_scenes // 10), seed)
    _say(f"drew {n_scenes} training scenes in {time.perf_counter() - started:.0f} s")
    rng = np.random.default_rng(seed)
    n_steps = -(-n_scenes // batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=n_steps * n_epochs)
    measured = (0.0, 0.0)
    for epoch in range(1, n_epochs + 1):
        network.train()
        losses: list[float] = []
        for chosen in np.array_split(rng.permutation(n_scenes), n_steps):
            batch = _augment(_normalise(pixels[chosen]), rng)
            loss = network(batch, labels=torch.from_numpy(labels[chosen])).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        measured = validate(network, *held_out)
        _say(
            f"epoch {epoch:2d}/{n_epochs}  loss {np.mean(losses):.4f}  validation mAP {measured[0]:.4f}  "
            f"accuracy {measured[1]:.4f}  {time.perf_counter() - started:.0f} s"
        )
    return measured


def save_network(network: ResNetForImageClassification, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Parameters
    ----------
    network : ResNetForImageClassification
    folder : Path
        It is created if need be; files of the same names are replaced.
    """
    network.eval().save_pretrained(folder)
    processor = ViTImageProcessorPil(
        size={"height": SCENE_SIZE, "width": SCENE_SIZE},
        do_resize=True,
        resample=2,
        do_rescale=True,
        do_normalize=True,
        image_mean=list(CHANNEL_MEAN),
        image_std=list(CHANNEL_STD),
    )
    processor.save_pretrained(folder)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m semrsm_dist.extraction.train_demo_network",
        description="Train the network of `semrsm demo` on generated scenes and save it in the transformers format.",
        epilog="Example: python -m semrsm_dist.extraction.train_demo_network --out semrsm_dist/demo/network",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the network to")
    parser.add_argument("--scenes", type=int, default=8000, help="number of training scenes")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training scenes")
    parser.add_argument("--batch-size", type=int, default=64, help="scenes per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="highest learning rate of the cycle")
    parser.add_argument("--embedding-size", type=int, default=32, help="channels of the stem")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[48, 96], help="channels of each stage")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 1], help="blocks of each stage")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, scenes and their order")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; the weights depend on it in their last bits")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save the network, as the command line asks."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    network = build_network(options.hidden_sizes, options.depths, options.embedding_size)
    _say(f"{sum(parameter.numel() for parameter in network.parameters())} parameters")
    train(network, options.scenes, options.epochs, options.batch_size, options.learning_rate, options.seed)
    save_network(network, options.out)
    _say(f"saved to {options.out}")


if __name__ == "__main__":
    main()
