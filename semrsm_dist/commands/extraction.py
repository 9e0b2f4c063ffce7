"""The verb extract."""

from __future__ import annotations

import os
from typing import Any, get_args

import click

from semrsm_dist.commands.output import json_option, print_json
from semrsm_dist.commands.sources import source_of, source_options
from semrsm_dist.datasets.samples import Dataset, Sample
from semrsm_dist.extraction.layer import layer_stores, parse_layers
from semrsm_dist.extraction.preprocessing import Interpolation, Preprocessing
from semrsm_dist.extraction.settings import Autocast, ExtractionSettings, OnError, PoolSettings, StoredType
from semrsm_dist.progress import progress
from storage_schemas import ActivationStore
from storage_schemas.activations import samples_url
from storage_schemas.errors import InvalidInputError
from storage_schemas.tables import SAMPLES, read_table

_LOADING = ("revision", "image_size", "drop_cls", "drop_padding", "weights", "processor", "device", "autocast")
"""Options that :func:`semrsm_dist.extraction.model.load_model` takes as they are."""


def _model_options(command: Any) -> Any:
    """Options that say what is extracted with; the keyword arguments of `load_model`."""
    three = (float, float, float)
    for option in reversed(
        (
            click.option("--model", required=True, help="Name of `semrsm models`, hub id, folder, or package.module:Class."),
            click.option("--revision", help="Revision of a hub model."),
            click.option("--image-size", type=click.IntRange(min=1), help="Height and width of the network's input in pixels."),
            click.option(
                "--layer",
                "layers",
                multiple=True,
                metavar="LAYER",
                help="hidden_states.N or the dotted name of a module; may be given several times, with {layer} in --out.",
            ),
            click.option("--drop-cls", is_flag=True, help="Leave out CLS and other tokens that stand for no place."),
            click.option("--drop-padding", is_flag=True, help="Leave out positions that see nothing but padding (SAM)."),
            click.option("--weights", type=click.Path(), help="Safetensors file of an own module's weights."),
            click.option("--processor", type=click.Path(), help="Folder of the image processor for an own module."),
            click.option("--mean", type=three, metavar="R G B", help="For an own module: subtracted from channels in 0–1."),
            click.option("--std", type=three, metavar="R G B", help="For an own module: what they are divided by then."),
            click.option("--interpolation", type=click.Choice(get_args(Interpolation)), help="For an own module.  [bilinear]"),
        )
    ):
        command = option(command)
    return command


def _how_options(command: Any) -> Any:
    """Options that say how and where images are extracted."""
    for option in reversed(
        (
            click.option("--batch-size", type=click.IntRange(min=1), help="Images in a forward pass.  [default: by size]"),
            click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto."),
            click.option("--autocast", type=click.Choice(get_args(Autocast)), help="Compute in this type where PyTorch may."),
            click.option(
                "--dtype", type=click.Choice(get_args(StoredType)), default="float32", show_default=True, help="Stored type."
            ),
            click.option(
                "--on-error",
                type=click.Choice(get_args(OnError)),
                default="stop",
                show_default=True,
                help="What an image that cannot be decoded does.",
            ),
            click.option("--address", help="Address of a Ray cluster, whose actors extract."),
            click.option("--workers", type=click.IntRange(min=1), help="Actors, or forward passes on this CPU, at once."),
            click.option("--cpus-per-worker", type=click.IntRange(min=1), default=4, show_default=True, help="Of an actor."),
            click.option(
                "--gpus-per-worker", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Of an actor."
            ),
        )
    ):
        command = option(command)
    return command


def _stored(dataset: Dataset, store: ActivationStore) -> list[Sample]:
    """The samples of a dataset that are in a store."""
    there = set(read_table(samples_url(store.location), SAMPLES)["sample_id"].to_pylist())
    return [sample for sample in dataset.samples if sample.sample_id in there]


def _pool(
    address: str | None, workers: int | None, cpus_per_worker: int, gpus_per_worker: float, device: str
) -> PoolSettings | None:
    """The actors that options or Ray's job environment ask for; None where this process is to extract."""
    if not (address or os.environ.get("RAY_ADDRESS") or gpus_per_worker):
        return None
    return PoolSettings(address, workers, cpus_per_worker, gpus_per_worker, device)


@click.command()
@source_options
@_model_options
@click.option("--out", required=True, help="Activation store to write, e.g. activations/database.zarr.")
@click.option("--annotations-out", help="Table to write of what is in the images, e.g. annotations/database.parquet.")
@_how_options
@json_option
def extract(
    model: str,
    out: str,
    annotations_out: str | None,
    layers: tuple[str, ...],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    interpolation: Interpolation | None,
    batch_size: int | None,
    dtype: StoredType,
    on_error: OnError,
    as_json: bool,
    **options: Any,
) -> None:
    """Extract the activations of images into an activation store.

    Chunks that are in the store already are not computed again, so an interrupted extraction goes on with the same command.
    With --layer, one forward pass fills a store for each layer. With --address, Ray actors do the work.

    \b
    Example:   semrsm extract --images photos --model ./mobilenet --out activations/photos.zarr
               semrsm extract --dataset egoobjects --root EgoObjects --split eval --subset test --seed 0 --take 2000 \\
                 --model ./mobilenet --out activations/queries.zarr --annotations-out annotations/queries.parquet
               semrsm extract --images photos --model vit-base-patch16-224 --layer hidden_states.6 --layer last_hidden_state \\
                 --out 'activations/photos.{layer}.zarr'
    """
    stores = layer_stores(out, parse_layers(layers)) if layers else {}
    preprocessing = _preprocessing(mean, std, interpolation)

    from semrsm_dist.datasets.samples import write_annotations
    from semrsm_dist.datasets.sources import describe, read_dataset
    from semrsm_dist.extraction.extract import extract_layers, unreadable_url
    from semrsm_dist.extraction.model import load_model

    loading = {name: options.pop(name) for name in _LOADING}
    where = {name: options.pop(name) for name in ("address", "workers", "cpus_per_worker", "gpus_per_worker")}
    pool = _pool(**where, device=loading["device"])
    if pool is not None:
        loading["device"] = "cpu"  # for the shapes; the actors have devices of their own
    with progress("Reading", "images", quiet=as_json) as report:
        dataset = read_dataset(source_of(options), report)
    chosen = describe(dataset)
    if chosen and not as_json:
        click.echo(f"{chosen}.", err=True)
    if annotations_out is not None and dataset.annotations is None:
        raise InvalidInputError("--annotations-out has nothing to write; name --annotations, or a data set that has its own.")
    loaded = load_model(model, layers=layers, preprocessing=preprocessing, **loading)
    outs = stores or dict.fromkeys(loaded.representations, out)
    with (
        progress("Inspecting", "images", quiet=as_json) as report_inspect,
        progress("Checking what is there", "chunks", quiet=as_json) as report_check,
        progress("Extracting", "images", quiet=as_json) as report,
    ):
        extracted = extract_layers(
            dataset,
            loaded,
            outs,
            settings=ExtractionSettings(batch_size, dtype, on_error),
            threads=where["workers"],
            pool=pool,
            progress=report,
            report_inspect=report_inspect,
            report_check=report_check,
        )
    left_out = len(dataset.samples) - next(iter(extracted.values())).n_samples
    if left_out and not as_json:
        listed = unreadable_url(next(iter(extracted.values())).location)
        click.echo(f"{left_out:,} images cannot be decoded and were left out; {listed} lists them.", err=True)
    if annotations_out is not None:
        write_annotations(dataset.keep(_stored(dataset, next(iter(extracted.values())))), annotations_out)
    if layers and as_json:
        print_json({"layers": {name: _activations(store) for name, store in extracted.items()}})
        return
    for store in extracted.values():
        print_activations(store, as_json)


def _preprocessing(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, interpolation: Interpolation | None
) -> Preprocessing | None:
    """What the options say about preparing images for an own module; None when they say nothing."""
    if mean is None and std is None and interpolation is None:
        return None
    if mean is None or std is None:
        raise InvalidInputError("--mean and --std belong together; give both, e.g. --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5.")
    return Preprocessing(mean, std, interpolation or "bilinear")


def _activations(store: ActivationStore) -> dict[str, Any]:
    """What is in an activation store, as plain values."""
    return {
        "store": str(store.location),
        "n_samples": store.n_samples,
        "n_positions": store.n_positions,
        "n_channels": store.n_channels,
        "logits": store.has_logits,
        "fingerprint": store.fingerprint,
    }


def print_activations(store: ActivationStore, as_json: bool) -> None:
    """What is in an activation store."""
    if as_json:
        print_json(_activations(store))
    else:
        logits = " and logits" if store.has_logits else ""
        click.echo(
            f"{store.location}: features{logits} of {store.n_samples:,} samples, "
            f"S = {store.n_positions:,}, C = {store.n_channels:,}"
        )
