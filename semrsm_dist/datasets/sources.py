"""What a recipe says about a set of images, one model for each kind of data set, and reading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from semrsm_dist.datasets import cifar100, cityscapes, egoobjects, imagenet, tiny_imagenet
from semrsm_dist.datasets.coco import read_coco
from semrsm_dist.datasets.image_folder import read_image_folder
from semrsm_dist.datasets.labels import read_labelled_images
from semrsm_dist.datasets.samples import Dataset
from semrsm_dist.datasets.selection import draw
from semrsm_dist.progress import Report


class _Part(BaseModel):
    """Unknown keys are refused, field docstrings become descriptions in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Selection(_Part):
    """Images drawn from a seed: a range of an order that the seed and the sample ids decide."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order; queries and database drawn without overlap have the same."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Images to leave out at the beginning of the order."""
    take: Annotated[int, Field(gt=0)] | None = None
    """Images to take after them; all the others when left out."""


class _Source(_Part):
    """What every kind of data set has."""

    PATHS: ClassVar[tuple[str, ...]] = ("root",)
    """Fields that are paths on this machine."""

    select: Selection | None = None
    """Take a part of the images, drawn from a seed; all of them, in their own order, when left out."""

    @property
    def annotated(self) -> bool:
        """Whether it is known what is in the images."""
        return True

    def located(self, absolute: Callable[[str], str]) -> Self:
        """The same with its paths made absolute."""
        paths = {name: getattr(self, name) for name in self.PATHS}
        return self.model_copy(update={name: absolute(path) for name, path in paths.items() if path is not None})

    def options(self) -> dict[str, Any]:
        """Every choice that decides which samples there are, without the paths, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.PATHS), exclude_none=True)


class FolderSource(_Source):
    """A folder of images, with or without a file that says what is in them."""

    PATHS: ClassVar[tuple[str, ...]] = ("images", "annotations")

    dataset: Literal["folder"] = "folder"
    """A folder of images: what is meant when ``dataset`` is left out."""
    images: str
    """Folder of images. Relative paths are relative to the recipe's own folder."""
    annotations: str | None = None
    """COCO-format annotation file (.json) or table of labels (.csv, .parquet), whose images are taken; without one every image
    of the folder is taken, and there is no retrieval table."""

    @property
    def annotated(self) -> bool:
        """Whether there is an annotation file."""
        return self.annotations is not None

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the folder, or those of the annotation file."""
        if self.annotations is None:
            return read_image_folder(self.images)
        if self.annotations.lower().endswith((".csv", ".parquet")):
            return read_labelled_images(self.annotations, self.images)
        return read_coco(self.annotations, self.images)


class CocoSource(_Source):
    """COCO-format annotations."""

    PATHS: ClassVar[tuple[str, ...]] = ("images", "annotations")

    dataset: Literal["coco"]
    """COCO-format annotations."""
    images: str
    """Folder that file names are relative to."""
    annotations: str
    """Annotation file, e.g. ``instances_val2017.json``."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images that the file lists."""
        return read_coco(self.annotations, self.images)


class EgoObjectsSource(_Source):
    """EgoObjects v1."""

    PATHS: ClassVar[tuple[str, ...]] = ("root", "images")

    dataset: Literal["egoobjects"]
    """EgoObjects v1."""
    root: str
    """Folder of ``EgoObjectsV1_unified_train.json``, ``…_eval.json`` and ``…_metadata.json``."""
    split: egoobjects.Split
    """``train`` or ``eval``."""
    subset: str | None = None
    """Keep this subset of the eval split: ``val`` or ``test``."""
    images: str | None = None
    """Folder of images; ``images`` below the root when left out."""
    any_shape: bool = False
    """Keep images of every shape; otherwise only those of 16:9 are kept, as in the paper."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the split, without those of another shape."""
        return egoobjects.read_egoobjects(
            self.root, self.split, subset=self.subset, images=self.images, any_shape=self.any_shape
        )


class CityscapesSource(_Source):
    """Cityscapes with fine annotations."""

    dataset: Literal["cityscapes"]
    """Cityscapes with fine annotations."""
    root: str
    """Folder of ``leftImg8bit`` and ``gtFine``."""
    split: cityscapes.Split
    """``train`` or ``val``."""
    classes: cityscapes.Classes = "eval19"
    """Which classes count: ``eval19`` of the benchmark, the 27 ``non-void``, or ``all34``."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the split, with the classes that have a pixel."""
        return cityscapes.read_cityscapes(self.root, self.split, classes=self.classes, report=report)


class ImageNetSource(_Source):
    """ImageNet (ILSVRC 2012)."""

    dataset: Literal["imagenet"]
    """ImageNet (ILSVRC 2012)."""
    root: str
    """Folder of ``train`` and ``val``, each with a folder for each class, or of the download from Kaggle."""
    split: imagenet.Split
    """``train`` or ``val``."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the split."""
        return imagenet.read_imagenet(self.root, self.split)


class TinyImageNetSource(_Source):
    """Tiny-ImageNet."""

    dataset: Literal["tiny_imagenet"]
    """Tiny-ImageNet."""
    root: str
    """Folder that ``tiny-imagenet-200.zip`` unpacks to."""
    split: tiny_imagenet.Split
    """``train`` or ``val``."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the split."""
        return tiny_imagenet.read_tiny_imagenet(self.root, self.split)


class Cifar100Source(_Source):
    """CIFAR-100, from its binary files."""

    PATHS: ClassVar[tuple[str, ...]] = ("root", "unpack_to")

    dataset: Literal["cifar100"]
    """CIFAR-100, from its binary files."""
    root: str
    """Folder that ``cifar-100-binary.tar.gz`` unpacks to."""
    split: cifar100.Split
    """``train`` or ``test``."""
    unpack_to: str
    """Folder that the images are unpacked to, once, as BMP files."""
    classes: cifar100.Classes = "fine"
    """``fine`` (100 classes) or ``coarse`` (20)."""

    def read(self, report: Report | None = None) -> Dataset:
        """The images of the split, unpacked."""
        return cifar100.read_cifar100(self.root, self.split, self.unpack_to, classes=self.classes, report=report)


_Kind = FolderSource | CocoSource | EgoObjectsSource | CityscapesSource | ImageNetSource | TinyImageNetSource | Cifar100Source
SOURCES: dict[str, type[_Kind]] = {get_args(kind.model_fields["dataset"].annotation)[0]: kind for kind in get_args(_Kind)}
"""The model of each kind of data set."""


def _with_kind(value: Any) -> Any:
    """A folder is meant where no data set is named."""
    if not isinstance(value, dict):
        return value
    kind = value.get("dataset", "folder")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise ValueError(f"there is no dataset {kind!r:.40}; choose {', '.join(SOURCES)}")
    return {**value, "dataset": kind}


ImageSource = Annotated[_Kind, Field(discriminator="dataset"), BeforeValidator(_with_kind)]
"""Images on disk and what is in them; the key ``dataset`` tells the kind."""


def read_dataset(source: ImageSource, report: Report | None = None) -> Dataset:
    """The samples and annotations that a recipe or the command line asks for.

    Parameters
    ----------
    source
        A kind of data set and its options.
    report
        Told how far it is, by the kinds that read or write many files.

    Returns
    -------
    Dataset
        With its :attr:`~Dataset.origin`, unless it is a plain folder that is taken as it is.

    Raises
    ------
    SemrsmError
        What the reader of the kind raises, and when fewer images are there than are to be drawn.
    """
    dataset = source.read(report)
    origin = {**source.options(), "n_images": len(dataset.samples), **dataset.origin}
    if source.select is not None:
        dataset = draw(dataset, **source.select.model_dump())
    elif source.dataset == "folder":
        return dataset
    return replace(dataset, origin=origin)


def describe(dataset: Dataset) -> str | None:
    """How the samples were chosen, as a line for a person; None for a plain folder.

    >>> from semrsm_dist.datasets.samples import Dataset
    >>> origin = {"dataset": "egoobjects", "n_images": 9000, "left_out": {"not 16:9": 1234}, "select": {"seed": 7, "skip": 0}}
    >>> describe(Dataset((), origin=origin))
    '0 of 9,000 images of egoobjects, drawn with seed 7 after skipping 0; left out before: 1,234 not 16:9'
    """
    origin = dataset.origin
    if not origin:
        return None
    select, left_out = origin.get("select"), origin.get("left_out")
    line = f"{len(dataset.samples):,} of {origin['n_images']:,} images of {origin['dataset']}"
    line += f", drawn with seed {select['seed']} after skipping {select['skip']:,}" if select else ""
    return line + (f"; left out before: {', '.join(f'{n:,} {why}' for why, n in left_out.items())}" if left_out else "")
