"""How long it takes to read data sets of their published size, without the images themselves.

    python benchmarks/datasets.py                  # about a minute and 2 GiB of disk on two cores
    python benchmarks/datasets.py --images 10000   # smaller

Files of the published formats are generated in a temporary folder: annotations, label images and CIFAR-100's records are real
files, photographs are empty ones. Hashing and decoding photographs is not part of it.
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from semrsm_dist.datasets.cifar100 import RECORD_BYTES, read_cifar100
from semrsm_dist.datasets.cityscapes import CLASS_NAMES, read_cityscapes
from semrsm_dist.datasets.egoobjects import read_egoobjects
from semrsm_dist.datasets.imagenet import read_imagenet
from semrsm_dist.datasets.labels import read_labelled_images
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.datasets.selection import draw

N_CATEGORIES, BOXES_PER_IMAGE = 368, 6.5  # of EgoObjects v1


def measure(name: str, read: Callable[[], Dataset]) -> Dataset:
    """Read once and print a row."""
    begin = time.perf_counter()
    dataset = read()
    seconds = time.perf_counter() - begin
    rows = 0 if dataset.annotations is None else len(dataset.annotations)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {name} | {len(dataset.samples):,} | {rows:,} | {seconds:.1f} s | {peak:.1f} GiB |", flush=True)
    return dataset


def write_egoobjects(root: Path, n_images: int) -> int:
    """Annotations of random boxes, one in nine without a category; returns the size of the larger file."""
    (root / "images").mkdir(parents=True)
    images = [
        {
            "id": 10**15 + number,
            "url": f"{number:08X}-0000-4000-8000-{number:012X}_99_6.jpg",
            "width": 1920,
            "height": 1080 if number % 20 else 1440,
            "group_id": f"G{number // 100}",
            "video_id": f"{number // 10 % 10:02d}",
            "frame_id": number,
            "main_category": "mug",
            "main_category_instance_ids": [number],
        }
        for number in range(n_images)
    ]
    random = np.random.default_rng(0)
    n_boxes = int(BOXES_PER_IMAGE * n_images)
    pairs = zip(random.integers(n_images, size=n_boxes), random.integers(1, N_CATEGORIES + 1, size=n_boxes), strict=True)
    annotations = [
        {
            "id": number,
            "image_id": 10**15 + int(image),
            "bbox": [1.5, 2.5, 300.25, 400.125],
            "area": 120150.03125,
            "segmentation": [[1.5, 2.5, 301.75, 2.5, 301.75, 402.625, 1.5, 402.625]],
            "category_freeform": "mug",
            "instance_id": f"INSTANCE_{number % 14_400}",
            **({"category_id": int(category)} if number % 9 else {}),
        }
        for number, (image, category) in enumerate(pairs)
    ]
    path = root / "EgoObjectsV1_unified_train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    categories = [{"id": number, "name": f"category {number}"} for number in range(1, N_CATEGORIES + 1)]
    (root / "EgoObjectsV1_unified_metadata.json").write_text(json.dumps({"categories": categories}))
    for image in images:
        (root / "images" / str(image["url"])).touch()
    return path.stat().st_size


def write_imagenet(root: Path, n_images: int) -> None:
    """A thousand folders of empty files."""
    for synset in range(1000):
        folder = root / "train" / f"n{synset:08d}"
        folder.mkdir(parents=True)
        for number in range(n_images // 1000):
            (folder / f"n{synset:08d}_{number}.JPEG").touch()


def write_cifar100(root: Path, n_images: int) -> None:
    """Records of noise."""
    root.mkdir()
    records = np.random.default_rng(0).integers(0, 20, (n_images, RECORD_BYTES), dtype=np.uint8)
    (root / "train.bin").write_bytes(records.tobytes())
    (root / "fine_label_names.txt").write_text("".join(f"class {number}\n" for number in range(100)))


def write_cityscapes(root: Path, n_images: int) -> None:
    """Label images of 2048 × 1024 with two hundred rectangles."""
    random = np.random.default_rng(0)
    label = np.zeros((1024, 2048), np.uint8)
    for class_id in random.integers(len(CLASS_NAMES), size=200):
        top, left, height, width = random.integers((0, 0, 10, 10), (900, 1800, 120, 250))
        label[top : top + height, left : left + width] = class_id
    for number in range(n_images):
        name = f"val/ulm/ulm_{number:06d}_000019"
        image, labels = root / f"leftImg8bit/{name}_leftImg8bit.png", root / f"gtFine/{name}_gtFine_labelIds.png"
        for path in (image, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        if number == 0:
            Image.fromarray(label).save(labels)
            data = labels.read_bytes()
        labels.write_bytes(data)


@click.command()
@click.option("--images", default=100_000, show_default=True, type=click.IntRange(min=1000), help="Images of a large data set.")
def main(images: int) -> None:
    """Generate the files, read them, print a table."""
    root = Path(tempfile.mkdtemp())
    try:
        size = write_egoobjects(root / "ego", images)
        write_imagenet(root / "imagenet", images)
        write_cifar100(root / "cifar", images // 2)
        write_cityscapes(root / "cityscapes", images // 200)
        print("| what | images | rows of annotations | time | peak so far |\n|---|---|---|---|---|")
        name = f"EgoObjects, {size / 2**20:.0f} MiB of JSON"
        ego = measure(name, lambda: read_egoobjects(root / "ego", "train"))
        measure("drawing a tenth of them", lambda: draw(ego, 0, take=images // 10))
        rows = "".join(f"{sample.sample_id},class {row % 100},1\n" for row, sample in enumerate(ego.samples))
        (root / "labels.csv").write_text(f"file_name,class,count\n{rows}")
        measure("a table of labels", lambda: read_labelled_images(root / "labels.csv", root / "ego/images"))
        measure("ImageNet `train`", lambda: read_imagenet(root / "imagenet", "train"))
        for again in ("unpacked", "again"):
            measure(f"CIFAR-100 `train`, {again}", lambda: read_cifar100(root / "cifar", "train", root / "unpacked"))
        measure("Cityscapes `val`", lambda: read_cityscapes(root / "cityscapes", "val"))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
