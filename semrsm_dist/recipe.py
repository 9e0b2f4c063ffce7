"""The recipe: what a run computes, as a YAML file checked against pydantic models."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator

from semrsm_dist.datasets.sources import SOURCES, ImageSource, Selection
from semrsm_dist.extraction.layer import parse_layers
from semrsm_dist.extraction.preprocessing import Interpolation, Preprocessing
from semrsm_dist.extraction.settings import Autocast, OnError, StoredType
from semrsm_dist.grid import DEFAULT_TILE_SIZE
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.names import AffinityType, Centring, Estimator, Invariance, KernelName, Method, SolverName
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings
from storage_schemas.errors import InvalidInputError, StoreNotFoundError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Part(BaseModel):
    """A part of the recipe: unknown keys are refused, field docstrings become descriptions in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ImagePreparation(_Part):
    """How the images of an own module are prepared: resized to ``image_size``, divided by 255, normalised."""

    mean: tuple[float, float, float]
    """What is subtracted from each channel, whose values are between 0 and 1."""
    std: tuple[Positive, Positive, Positive]
    """What each channel is divided by afterwards."""
    interpolation: Interpolation = "bilinear"
    """How images are resized."""


class ModelSource(_Part):
    """A network whose activations are compared."""

    name: Name
    """Name of the representation, used in file names and tables."""
    model: str
    """A name of ``semrsm models``, a hub id, a local folder in the transformers format (start a relative path with ``./`` or
    ``../``), or the import path of an own module, ``package.module:Class``."""
    revision: str | None = None
    """Revision of a hub model."""
    image_size: Annotated[int, Field(gt=0)] | None = None
    """Height and width of the network's input in pixels; the image processor's own when left out."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers, such as ``hidden_states.6`` or the dotted name of a module, each a representation ``NAME.LAYER`` of its own."""
    drop_cls: bool = False
    """Leave out CLS and other tokens that stand for no place."""
    drop_padding: bool = False
    """Leave out positions that see nothing but padding (SAM)."""
    weights: str | None = None
    """Safetensors file of an own module's weights."""
    processor: str | None = None
    """Folder of the image processor that prepares images for an own module."""
    preprocessing: ImagePreparation | None = None
    """How images are prepared for an own module, instead of ``processor``; needs ``image_size``."""
    batch_size: Annotated[int, Field(gt=0)] | None = None
    """Images in a forward pass; when left out, what suits the image size, or what a store was begun with."""

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            parse_layers(layers or ())
        except InvalidInputError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return layers

    @property
    def representations(self) -> tuple[Self, ...]:
        """The model under its name, or each of its layers under a name of its own."""
        if self.layers is None:
            return (self,)
        return tuple(self.model_copy(update={"name": f"{self.name}.{layer.name}"}) for layer in parse_layers(self.layers))

    def loading(self) -> dict[str, Any]:
        """How to load the model: arguments of :func:`semrsm_dist.extraction.model.load_model`."""
        values = {
            key: getattr(self, key) for key in ("revision", "image_size", "drop_cls", "drop_padding", "weights", "processor")
        }
        preprocessing = None if self.preprocessing is None else Preprocessing(**self.preprocessing.model_dump())
        return {**values, "layers": self.layers or (), "preprocessing": preprocessing}


class Matching(_Part):
    """How positions are matched under the permutation invariance."""

    method: Method = "batch_optimal"
    """``optimal``, ``batch_optimal`` inside windows, ``greedy``, or ``topk_greedy``."""
    window: Annotated[int, Field(gt=0)] = 512
    """Concept vectors per window of ``batch_optimal``; with a window of at least S it is optimal."""
    k: Annotated[int, Field(gt=0)] = 128
    """Concept vectors of largest norm that ``topk_greedy`` matches optimally."""
    solver: SolverName = "auction"
    """What solves the assignment problems: ``auction``, ``ortools``, ``scipy``, or ``lapjv`` (an optional extra)."""
    tolerance: Annotated[float, Field(ge=1e-7, lt=1)] = 1e-6
    """Largest certified gap of ``auction``, relative to the matched inner product."""
    affinity: AffinityType = "float32"
    """What affinities are multiplied in: ``float32``, or ``bfloat16`` (faster where the processor has it, certifies less)."""


class Rsm(_Part):
    """What is computed for every pair."""

    invariances: Annotated[tuple[Invariance, ...], Field(min_length=1)] = ("none", "permutation", "pooled")
    """How two samples are aligned before the kernel; ``none`` is the baseline of the tables."""
    centring: Centring = "position"
    """The mean over the database that is subtracted: per position and channel, per channel, or none."""
    matching: Matching = Matching()
    tile_size: Annotated[int, Field(gt=0)] = DEFAULT_TILE_SIZE
    """Rows and columns of a tile."""
    batch_size: Annotated[int, Field(gt=0)] | None = None
    """Compute pairs within batches of this many samples only (minibatch CKA); a multiple of the tile size."""
    store_upper_bound: bool = False
    """Store beside each inner product of the permutation invariance what no matching exceeds; doubles its size."""


class Retrieval(_Part):
    """Which retrieval figures are computed."""

    kernels: Annotated[tuple[KernelName, ...], Field(min_length=1)] = ("cosine", "linear", "rbf")
    """What to rank by."""
    top_k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 5, 10)
    """How many retrieved samples are averaged over."""


class Cka(_Part):
    """Which kernels are compared across representations and invariances. Needs a recipe without queries."""

    kernels: Annotated[tuple[KernelName, ...], Field(min_length=1)] = ("linear", "rbf")
    estimator: Estimator = "unbiased"
    """``unbiased`` or ``biased``."""


def _number_or_rule(value: object) -> object:
    """YAML gives numbers as they are."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Extraction(_Part):
    """How and where activations are extracted."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU if there is one."""
    autocast: Autocast | None = None
    """What the forward pass may be computed in, instead of float32: ``bfloat16`` or ``float16``."""
    dtype: StoredType = "float32"
    """What features are stored in: ``float32``, or ``float16`` for half the disk and less precision."""
    on_error: OnError = "stop"
    """What an image that cannot be decoded does: ``stop``, or ``skip``, which leaves it out and records it."""
    cpus_per_worker: Annotated[int, Field(gt=0)] = 4
    """CPUs of an actor on a Ray cluster."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of an actor on a Ray cluster; fractions are shared by several."""

    def loading(self) -> dict[str, Any]:
        """Further arguments of :func:`semrsm_dist.extraction.model.load_model`."""
        return {"device": self.device, "autocast": self.autocast}


class Runtime(_Part):
    """Where it runs; changes no bit of the result."""

    executor: Literal["ray", "serial"] = "ray"
    """``ray`` (a local one unless an address is given) or ``serial`` (in this process)."""
    address: str | None = None
    """Address of an existing Ray cluster."""
    workers: Annotated[int, Field(gt=0)] | None = None
    """Tiles computed at once; every CPU when left out."""
    memory_per_worker: ByteSize | None = None
    """What a worker may use, e.g. ``4 GiB``; its share of the machine's memory when left out."""


class Recipe(_Part):
    """A run from images to the report."""

    name: Name
    """Title of the report."""
    workdir: str
    """Directory or object-store URL that everything is written to."""
    database: ImageSource
    """The images that are searched, and that centring takes its mean from."""
    queries: ImageSource | None = None
    """The images to search with; without them every image of the database is a query for the others."""
    models: Annotated[tuple[ModelSource, ...], Field(min_length=1)]
    extraction: Extraction = Extraction()
    rsm: Rsm = Rsm()
    sigma: Annotated[
        Literal["median_sq", "median", "tile"] | Annotated[float, Field(gt=0, allow_inf_nan=False)],
        BeforeValidator(_number_or_rule),
    ] = "median_sq"
    """Rule of the RBF kernel's σ, or σ itself."""
    retrieval: Retrieval = Retrieval()
    cka: Cka = Cka()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [model.name for model in self.representations]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name; give each its own")
        if self.rsm.batch_size is not None and self.queries is not None:
            raise ValueError("rsm.batch_size pairs images within batches of the database; leave it out, or the queries")
        return self

    @property
    def representations(self) -> tuple[ModelSource, ...]:
        """What is compared: every model, or every layer of those that name layers, in order."""
        return tuple(representation for model in self.models for representation in model.representations)

    def rsm_settings(self) -> RsmSettings:
        """What every RSM is computed with."""
        return RsmSettings(
            invariances=tuple(dict.fromkeys(self.rsm.invariances)),
            centring=self.rsm.centring,
            matching=MatchingSettings(**self.rsm.matching.model_dump()),
            tile_size=self.rsm.tile_size,
            batch_size=self.rsm.batch_size,
            store_upper_bound=self.rsm.store_upper_bound,
        )

    def run_settings(self) -> RunSettings:
        """Where and how tiles are computed."""
        runtime = self.runtime
        memory = None if runtime.memory_per_worker is None else int(runtime.memory_per_worker)
        return RunSettings(runtime.executor, runtime.address, runtime.workers, memory)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; its relative paths become absolute, seen from its own folder.

    Raises
    ------
    StoreNotFoundError
        When the file is not there.
    InvalidInputError
        When it is not YAML, a key is unknown (the nearest known one is named), or a value is of the wrong kind.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"There is no recipe {path}; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"Cannot read the recipe {path} ({error}); give a YAML file.") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"{path} is not valid YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{path} is not a recipe; expected a mapping with the keys {', '.join(Recipe.model_fields)}.")
    return _absolute(recipe_from(values, str(path)), path.parent)


def recipe_from(values: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain values; raises `InvalidInputError` with one sentence on the first mistake."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(_sentence(error, where)) from error


def _sentence(error: ValidationError, where: str) -> str:
    """What is wrong first, as a sentence, and how many mistakes follow."""
    mistakes = error.errors()
    inner = {mistake["loc"][:-1] for mistake in mistakes} | {mistake["loc"][:-2] for mistake in mistakes}
    mistakes = [mistake for mistake in mistakes if mistake["type"] != "too_short" or mistake["loc"] not in inner]
    first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part not in SOURCES))
    more = f" (and {len(mistakes) - 1} more mistakes)" if len(mistakes) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys there are {', '.join(known)}."
        return f"{where} has the unknown key {key}{more}; {hint}"
    if first["type"] == "missing":
        return f"{where} lacks the key {key}{more}; `semrsm schema` lists what a recipe holds."
    message = first["msg"].removeprefix("Value error, ")
    at = f"at {key} " if key else ""
    return f"{where} has a mistake {at}({first['input']!r:.60}){more}: {message[:1].lower()}{message[1:]}."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys of the part of a recipe that a location leads to."""
    part: type[BaseModel] = Recipe
    for key in location:
        if key in SOURCES:
            part = SOURCES[str(key)]
        elif not isinstance(key, int):
            annotation = str(part.model_fields[key].annotation)
            parts = (ModelSource, ImagePreparation, Extraction, Matching, Rsm, Retrieval, Cka, Runtime, Selection)
            part = next((candidate for candidate in parts if candidate.__name__ in annotation), part)
    return list(part.model_fields)


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its relative paths seen from a folder."""

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(folder, os.path.expanduser(path)).resolve())

    def model(value: ModelSource) -> ModelSource:
        changes = {key: absolute(path) for key in ("weights", "processor") if (path := getattr(value, key)) is not None}
        if value.model.startswith((".", "/", "~")):
            changes["model"] = absolute(value.model)
        return value.model_copy(update=changes)

    return recipe.model_copy(
        update={
            "workdir": absolute(recipe.workdir),
            "database": recipe.database.located(absolute),
            "queries": None if recipe.queries is None else recipe.queries.located(absolute),
            "models": tuple(model(value) for value in recipe.models),
        }
    )
