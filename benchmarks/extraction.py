"""What extraction costs beside the forward pass, and how it compares with a plain loop over transformers.

    python benchmarks/extraction.py            # about five minutes; needs ../shared
    python benchmarks/extraction.py --turns 1

The photographs of ../shared/data/playing_cards go through the MobileNetV2 of ../shared/models at 224 pixels, in a process of
its own each time, turn by turn; the fastest of each kind counts, since others use the machine too. Loading the network is not
counted, hashing and writing are.

*Plain* is what one writes without this package: open 16 images, `AutoImageProcessor`, `AutoModel`, one `numpy.save` at the end,
with PyTorch's threads as they come. *Extract* is `semrsm_dist.extraction.extract`, into an activation store. The share of the
forward pass is that of the time of the threads that compute, the rest of which is waiting for images. *Without reuse of
memory* leaves out `keep_freed_memory`. *Pool* is two Ray actors of one CPU each, from the start of the first block to the end
of the last.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import click
import numpy as np

SHARED = Path(__file__).parents[2] / "shared"
IMAGES, NETWORK = SHARED / "data" / "playing_cards" / "images", SHARED / "models" / "mobilenet_v2_imagenet"
BATCH = 16
KINDS = ("plain", "extract", "without reuse of memory", "pool")


def plain(folder: Path) -> dict[str, float]:
    """A loop over transformers in one process."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(NETWORK, backend="pil")
    network = AutoModel.from_pretrained(NETWORK).eval()
    paths = sorted(IMAGES.glob("*.jpg"))
    begin, found = time.perf_counter(), []
    for start in range(0, len(paths), BATCH):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        with torch.inference_mode():
            hidden = network(**processor(images=images, return_tensors="pt")).last_hidden_state
        found.append(hidden.flatten(2).transpose(1, 2).numpy())
    np.save(folder / "features.npy", np.concatenate(found))
    return {"images_a_second": len(paths) / (time.perf_counter() - begin)}


def extracted(folder: Path, *, keep: bool = True) -> dict[str, float]:
    """This package, in one process."""
    from semrsm_dist.datasets.image_folder import read_image_folder
    from semrsm_dist.extraction import extract as module
    from semrsm_dist.extraction.flow import Flow
    from semrsm_dist.extraction.model import load_model

    model, dataset = load_model(NETWORK, device="cpu"), read_image_folder(IMAGES)
    flows: list[Flow] = []
    original = module.open_flow

    def remembered(*arguments: object) -> Flow:
        flows.append(original(*arguments))
        return flows[-1]

    with (
        mock.patch.object(module, "open_flow", remembered),
        mock.patch.object(module, "keep_freed_memory", module.keep_freed_memory if keep else bool),
    ):
        begin = time.perf_counter()
        module.extract(dataset, model, folder / "a.zarr")
        seconds = time.perf_counter() - begin
    (flow,) = flows
    return {
        "images_a_second": len(dataset.samples) / seconds,
        "forward_share": flow.forward_seconds / (flow.forward_seconds + flow.waiting_seconds),
    }


def pooled(folder: Path) -> dict[str, float]:
    """This package, on two Ray actors."""
    from semrsm_dist.datasets.image_folder import read_image_folder
    from semrsm_dist.extraction.extract import extract_layers
    from semrsm_dist.extraction.model import load_model
    from semrsm_dist.extraction.settings import PoolSettings
    from storage_schemas.location import Location
    from storage_schemas.rsm import events_url
    from storage_schemas.tables import EVENTS, read_folder

    dataset, out = read_image_folder(IMAGES), folder / "a.zarr"
    model = load_model(NETWORK, device="cpu")
    pool = PoolSettings(workers=2, cpus_per_worker=1)
    extract_layers(dataset, model, {model.representations[0]: str(out)}, pool=pool)
    events = read_folder(events_url(Location.of(out)), EVENTS)
    first, last = min(events["started"].to_pylist()), max(events["ended"].to_pylist())
    return {"images_a_second": len(dataset.samples) / (last - first).total_seconds()}


def turn(kind: str) -> None:
    """One turn in this process; prints its figures as JSON."""
    folder = Path(tempfile.mkdtemp())
    try:
        match kind:
            case "plain":
                figures = plain(folder)
            case "pool":
                figures = pooled(folder)
            case _:
                figures = extracted(folder, keep=kind == "extract")
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures))


@click.command()
@click.option("--turns", default=5, show_default=True, help="Turns of each kind.")
@click.option("--only", type=click.Choice(KINDS), hidden=True)
def main(turns: int, only: str | None) -> None:
    """Print the figures."""
    if only:
        turn(only)
        return
    if not (IMAGES.is_dir() and NETWORK.is_dir()):
        print(f"There is nothing to extract: {IMAGES} or {NETWORK} is not there.")
        return
    best: dict[str, dict[str, float]] = {kind: {"images_a_second": 0.0} for kind in KINDS}
    for _ in range(turns):
        for kind in KINDS:
            command = [sys.executable, __file__, "--only", kind]
            ended = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
            figures = json.loads(ended.stdout.splitlines()[-1])
            best[kind] = max(best[kind], figures, key=lambda each: each["images_a_second"])
    print(f"{len(list(IMAGES.glob('*.jpg')))} photographs through MobileNetV2, {os.cpu_count()} CPUs")
    for kind in KINDS:
        ratio = best[kind]["images_a_second"] / best["plain"]["images_a_second"]
        print(f"  {kind:<26}{best[kind]['images_a_second']:6.1f} images/s, {ratio:.2f} × plain")
    print(f"  forward pass of extract   {best['extract']['forward_share']:6.1%} of the time (target: at least 95 %)")
    print("  extract / plain           target: at least 1.6 ×")


if __name__ == "__main__":
    main()
