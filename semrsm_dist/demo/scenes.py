"""Scenes of simple objects in varying places, drawn from a seed, with COCO annotations.

What a scene shows is a multiset of object classes. Classes differ in shape only: colour, size, rotation and place of an
object, and the background, are random and say nothing about the class. Two scenes with the same objects in
different places are therefore similar in meaning and different at every position.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SCENE_SIZE = 80
"""Width and height of a scene, in pixels."""

MAX_OBJECTS = 4
"""Most objects in a scene."""

Split = Literal["query", "database", "training", "validation"]
"""What a scene is for. Scenes of different splits never share a random stream, whatever their seeds."""

_SPLIT_KEYS: dict[Split, int] = {"query": 0, "database": 1, "training": 2, "validation": 3}

_Points = NDArray[np.float64]
_Outline = Callable[[], list[_Points]]

_OVERSAMPLING = 4
_RADII = (9.0, 13.0)
_LEAST_CONTRAST = 90.0
_PLACEMENT_ATTEMPTS = 200


@dataclass(frozen=True)
class Box:
    """One object of a scene: its class and its bounding box, in pixels from the upper left corner."""

    class_index: int
    """Index into `CLASSES`."""
    left: float
    top: float
    width: float
    height: float
    area: float
    """Area of the object itself, in square pixels; at most ``width * height``."""

    @property
    def class_name(self) -> str:
        """Name of the object's class."""
        return CLASSES[self.class_index]


def _on_circle(n_points: int, radius: float = 1.0, start: float = 0.0) -> _Points:
    angles = start + np.arange(n_points) * (2 * math.pi / n_points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disc() -> list[_Points]:
    return [_on_circle(40, 0.9)]


def _ring() -> list[_Points]:
    return [_on_circle(40), _on_circle(40, 0.58)]


def _triangle() -> list[_Points]:
    return [_on_circle(3, 1.1)]


def _square() -> list[_Points]:
    return [_on_circle(4, 1.1)]


def _star() -> list[_Points]:
    points = np.empty((10, 2))
    points[0::2] = _on_circle(5, 1.15)
    points[1::2] = _on_circle(5, 0.45, start=math.pi / 5)
    return [points]


def _cross() -> list[_Points]:
    arm = 0.33
    corner = [(1.05, -arm), (1.05, arm), (arm, arm)]
    points = [(x, y) for x, y in corner]
    for _ in range(3):
        points += [(-y, x) for x, y in points[-3:]]
    return [np.array(points)]


def _crescent() -> list[_Points]:
    outer = np.linspace(0.22 * math.pi, 1.78 * math.pi, 30)
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    centre = 0.45
    radius = math.hypot(tip_x - centre, tip_y)
    opening = math.atan2(tip_y, tip_x - centre)
    inner = np.linspace(2 * math.pi - opening, opening, 24)[1:-1]
    x = np.concatenate([np.cos(outer), centre + radius * np.cos(inner)])
    y = np.concatenate([np.sin(outer), radius * np.sin(inner)])
    return [np.stack([x, y], axis=1)]


# Each outline is a polygon, and where there is a second one, it is a hole.
_OUTLINES: dict[str, _Outline] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
}

CLASSES: tuple[str, ...] = tuple(_OUTLINES)
"""Names of the object classes; they differ in shape only."""


def scene_generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """Return the random generator of one scene.

    Parameters
    ----------
    seed : int
        Seed of the collection of scenes, not negative.
    split : {"query", "database", "training", "validation"}
        What the scene is for.
    index : int
        Number of the scene in its split, not negative.

    Returns
    -------
    numpy.random.Generator
        A stream of its own for every (seed, split, index).

    Raises
    ------
    ValueError
        If `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index of a scene must not be negative, found {seed} and {index}.")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SPLIT_KEYS[split], index)))


def render_scene(
    rng: np.random.Generator, size: int = SCENE_SIZE, max_objects: int = MAX_OBJECTS
) -> tuple[Image.Image, list[Box]]:
    """Draw one scene: 1 to `max_objects` objects that do not overlap, on a textured background.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything random; the same state draws the same scene.
    size : int
        Width and height in pixels, at least 16. Objects grow with it.
    max_objects : int
        Most objects, at least 1. The number is uniform; an object for which there is no room is left out.

    Returns
    -------
    image : PIL.Image.Image
        RGB, ``size × size`` pixels.
    boxes : list of Box
        One per object, in the order drawn, each inside the image; at least one.

    Raises
    ------
    ValueError
        If `size` is below 16 or `max_objects` below 1.
    """
    if size < 16:
        raise ValueError(f"A scene must be at least 16 pixels wide, found size={size}.")
    if max_objects < 1:
        raise ValueError(f"A scene shows at least one object, found max_objects={max_objects}.")
    background = _background(rng, size)
    image = Image.fromarray(background)
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        class_index = int(rng.integers(len(CLASSES)))
        outlines = _place(rng, class_index, size, boxes)
        if outlines is None:
            continue
        box = _bounding_box(class_index, outlines)
        _paint(image, outlines, _colour_against(rng, background, box))
        boxes.append(box)
    return image, boxes


def write_scenes(folder: Path, n_queries: int, n_database: int, seed: int) -> None:
    """Write scenes and their annotations: ``images/*.png``, ``query.json`` and ``database.json`` (COCO).

    Parameters
    ----------
    folder : Path
        Where to write; it is created if need be. Files of the same names are replaced.
    n_queries, n_database : int
        Numbers of scenes, at least 1 each. No scene is in both.
    seed : int
        Not negative. The same seed writes the same scenes, and a scene does not depend on how many there are.

    Raises
    ------
    ValueError
        If a number is below 1 or the seed is negative.

    Notes
    -----
    ``file_name`` is relative to ``images/``; category ids count from 1 in the order of `CLASSES`; image and annotation
    ids count from 1 and are not shared by the two files. Boxes are ``[left, top, width, height]`` in pixels.
    """
    if n_queries < 1 or n_database < 1:
        raise ValueError(f"At least one query and one database scene are needed, found {n_queries} and {n_database}.")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    query = _write_split(folder, "query", n_queries, seed, first_image_id=1, first_annotation_id=1)
    database = _write_split(
        folder,
        "database",
        n_database,
        seed,
        first_image_id=n_queries + 1,
        first_annotation_id=len(query["annotations"]) + 1,
    )
    for split, document in (("query", query), ("database", database)):
        (folder / f"{split}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _write_split(
    folder: Path, split: Split, n_scenes: int, seed: int, first_image_id: int, first_annotation_id: int
) -> dict[str, list[dict[str, Any]]]:
    """Write the images of one split and return its COCO document."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(n_scenes):
        image, boxes = render_scene(scene_generator(seed, split, index))
        file_name = f"{split}_{index:05d}.png"
        image.save(folder / "images" / file_name, compress_level=1)
        image_id = first_image_id + index
        images.append({"id": image_id, "file_name": file_name, "width": image.width, "height": image.height})
        for box in boxes:
            annotation_id = first_annotation_id + len(annotations)
            annotations.append(_coco_annotation(annotation_id, image_id, box))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_annotation(annotation_id: int, image_id: int, box: Box) -> dict[str, Any]:
    # Rounded down, so that a rounded box cannot reach over the edge of the image.
    left, top, width, height = (math.floor(value * 100) / 100 for value in (box.left, box.top, box.width, box.height))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": box.class_index + 1,
        "bbox": [left, top, width, height],
        "area": round(box.area, 2),
        "iscrowd": 0,
    }


def _background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A gradient between two colours, blotches, stripes and grain: (size, size, 3)."""
    first, second = rng.uniform(30, 225, size=(2, 3))
    rows, columns = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    angle, stripe_angle, phase = rng.uniform(0, 2 * math.pi, size=3)
    slope = 0.5 + 0.35 * (math.cos(angle) * columns + math.sin(angle) * rows)
    texture = first + (second - first) * slope[..., None]
    n_blotches = int(rng.integers(3, 9))
    blotches = Image.fromarray(rng.uniform(-1, 1, size=(n_blotches, n_blotches)).astype(np.float32))
    texture += rng.uniform(0, 35) * np.asarray(blotches.resize((size, size), Image.Resampling.BICUBIC))[..., None]
    waves = rng.uniform(4, 25) * (math.cos(stripe_angle) * columns + math.sin(stripe_angle) * rows)
    texture += rng.uniform(0, 18) * np.sin(waves + phase)[..., None]
    texture += rng.normal(0, rng.uniform(2, 8), size=(size, size, 1))
    pixels: NDArray[np.uint8] = np.clip(texture, 0, 255).astype(np.uint8)
    return pixels


def _place(rng: np.random.Generator, class_index: int, size: int, taken: Sequence[Box]) -> list[_Points] | None:
    """Outlines of an object in pixels, at a free place; None when none is found."""
    shape = _OUTLINES[CLASSES[class_index]]()
    radius = rng.uniform(*_RADII) * size / SCENE_SIZE
    angle = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = [radius * points @ rotation for points in shape]
    least, most = turned[0].min(axis=0), turned[0].max(axis=0)
    for _ in range(_PLACEMENT_ATTEMPTS):
        centre = rng.uniform(1 - least, size - 1 - most)
        left, top = centre + least
        right, bottom = centre + most
        if all(
            right + 1 < box.left or box.left + box.width + 1 < left
            or bottom + 1 < box.top or box.top + box.height + 1 < top
            for box in taken
        ):  # fmt: skip
            return [points + centre for points in turned]
    return None


def _polygon_area(points: _Points) -> float:
    """Area inside a polygon (the shoelace formula)."""
    x, y = points.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _bounding_box(class_index: int, outlines: Sequence[_Points]) -> Box:
    left, top = (float(value) for value in outlines[0].min(axis=0))
    right, bottom = (float(value) for value in outlines[0].max(axis=0))
    area = _polygon_area(outlines[0]) - sum(_polygon_area(hole) for hole in outlines[1:])
    return Box(class_index, left, top, right - left, bottom - top, area)


def _colour_against(rng: np.random.Generator, background: NDArray[np.uint8], box: Box) -> tuple[int, int, int]:
    """A random colour that stands out from the background behind the box."""
    rows = slice(int(box.top), int(box.top + box.height) + 1)
    columns = slice(int(box.left), int(box.left + box.width) + 1)
    behind = background[rows, columns].reshape(-1, 3).mean(axis=0)
    while True:  # at least half of all colours are far enough from any one colour
        colour = rng.uniform(0, 255, size=3)
        if float(np.linalg.norm(colour - behind)) >= _LEAST_CONTRAST:
            red, green, blue = (int(value) for value in colour)
            return red, green, blue


def _paint(image: Image.Image, outlines: Sequence[_Points], colour: tuple[int, int, int]) -> None:
    """Fill the outlines, with smooth edges."""
    corner = np.floor(outlines[0].min(axis=0)).astype(int)
    width, height = (int(value) for value in np.ceil(outlines[0].max(axis=0)).astype(int) - corner + 1)
    mask = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING), 0)
    draw = ImageDraw.Draw(mask)
    for outline, value in zip(outlines, (255, 0), strict=False):
        corners = (outline - corner) * _OVERSAMPLING
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=value)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    image.paste(colour, (int(corner[0]), int(corner[1])), mask)
