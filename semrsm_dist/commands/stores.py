"""Verbs that make stores: extract, import, rsm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from semrsm_dist.commands.output import json_option, print_json
from semrsm_dist.commands.sources import source_of, source_options
from semrsm_dist.extraction.layer import layer_stores, parse_layers
from semrsm_dist.extraction.preprocessing import Interpolation, Preprocessing
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.names import AffinityType, Centring, Invariance, Method, SolverName
from semrsm_dist.progress import progress
from storage_schemas import ActivationStore, RsmStore
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location

_LOADING = ("revision", "image_size", "drop_cls", "drop_padding", "weights", "processor")
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


@click.command()
@source_options
@_model_options
@click.option("--out", required=True, help="Activation store to write, e.g. activations/database.zarr.")
@click.option("--annotations-out", help="Table to write of what is in the images, e.g. annotations/database.parquet.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Images in a forward pass.")
@json_option
def extract(
    model: str,
    out: str,
    annotations_out: str | None,
    layers: tuple[str, ...],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    interpolation: Interpolation | None,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Extract the activations of images into an activation store.

    Chunks that are in the store already are not computed again, so an interrupted extraction goes on with the same command.
    With --layer, one forward pass fills a store for each layer.

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
    from semrsm_dist.extraction.extract import extract_layers
    from semrsm_dist.extraction.model import load_model

    loading = {name: options.pop(name) for name in _LOADING}
    with progress("Reading", "images", quiet=as_json) as report:
        dataset = read_dataset(source_of(options), report)
    chosen = describe(dataset)
    if chosen and not as_json:
        click.echo(f"{chosen}.", err=True)
    if annotations_out is not None and dataset.annotations is None:
        raise InvalidInputError("--annotations-out has nothing to write; name --annotations, or a data set that has its own.")
    loaded = load_model(model, layers=layers, preprocessing=preprocessing, **loading)
    outs = stores or dict.fromkeys(loaded.representations, out)
    for each in outs.values():
        if Location.of(each).exists("zarr.json"):
            store = ActivationStore.open(each)
            for index in store.damaged_chunks():
                store.delete_chunk(index)
    with progress("Extracting", "images", quiet=as_json) as report:
        extracted = extract_layers(dataset, loaded, outs, batch_size=batch_size, progress=report)
    if annotations_out is not None:
        write_annotations(dataset, annotations_out)
    if layers and as_json:
        print_json({"layers": {name: _activations(store) for name, store in extracted.items()}})
        return
    for store in extracted.values():
        _print_activations(store, as_json)


def _preprocessing(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, interpolation: Interpolation | None
) -> Preprocessing | None:
    """What the options say about preparing images for an own module; None when they say nothing."""
    if mean is None and std is None and interpolation is None:
        return None
    if mean is None or std is None:
        raise InvalidInputError("--mean and --std belong together; give both, e.g. --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5.")
    return Preprocessing(mean, std, interpolation or "bilinear")


@click.command("import")
@click.argument("arrays", type=click.Path(path_type=Path))
@click.option("--out", required=True, help="Activation store to write.")
@click.option("--where", multiple=True, metavar="ARRAY=VALUE", help="Keep the samples whose entry in ARRAY is VALUE.")
@click.option("--sample-id", help="Name of the array that holds the sample ids.  [default: sample_id]")
@click.option("--spatial-shape", type=(click.IntRange(min=1), click.IntRange(min=1)), metavar="H W", help="Map of (N,S,C).")
@json_option
def import_(
    arrays: Path,
    out: str,
    where: tuple[str, ...],
    sample_id: str | None,
    spatial_shape: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Make an activation store of ARRAYS, an .npz or .npy file.

    Reads `features` (N,S,C) or (N,C,H,W), and `logits` and `sample_id` where there are any. Never unpickles.

    \b
    Example:   semrsm import features.npz --where role=query --sample-id files --out queries.zarr
    """
    from semrsm_dist.extraction.arrays import import_arrays

    conditions: dict[str, str] = {}
    for condition in where:
        name, sign, value = condition.partition("=")
        if not sign or not name:
            raise InvalidInputError(f"--where takes ARRAY=VALUE, e.g. role=query, and not {condition!r}.")
        conditions[name] = value
    store = import_arrays(arrays, out, where=conditions or None, sample_id=sample_id, spatial_shape=spatial_shape)
    _print_activations(store, as_json)


@click.command()
@click.option("--rows", required=True, help="Activation store of the rows (queries).")
@click.option("--columns", help="Activation store of the columns (database).  [default: the rows, a symmetric RSM]")
@click.option("--out", required=True, help="RSM store to write.")
@click.option(
    "--invariance",
    "invariances",
    multiple=True,
    type=click.Choice(get_args(Invariance)),
    default=("none", "permutation", "pooled"),
    show_default=True,
    help="How samples are aligned; may be given several times.",
)
@click.option(
    "--centring",
    type=click.Choice(get_args(Centring)),
    default="position",
    show_default=True,
    help="The database's mean to subtract.",
)
@click.option(
    "--matching",
    type=click.Choice(get_args(Method)),
    default="batch_optimal",
    show_default=True,
    help="How positions are matched.",
)
@click.option("--window", type=click.IntRange(min=1), default=512, show_default=True, help="Window of batch_optimal.")
@click.option(
    "--k",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Largest vectors that topk_greedy matches optimally.",
)
@click.option(
    "--solver",
    type=click.Choice(get_args(SolverName)),
    default="auction",
    show_default=True,
    help="What solves the assignments.",
)
@click.option("--tolerance", type=float, default=1e-6, show_default=True, help="Largest relative certified gap of auction.")
@click.option(
    "--affinity",
    type=click.Choice(get_args(AffinityType)),
    default="float32",
    show_default=True,
    help="Precision of affinities.",
)
@click.option("--store-upper-bound", is_flag=True, help="Store what no matching exceeds beside each inner product.")
@click.option("--tile-size", type=click.IntRange(min=1), default=100, show_default=True, help="Rows and columns of a tile.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Pair samples within batches of this size only.")
@click.option("--executor", type=click.Choice(["ray", "serial"]), default="ray", show_default=True, help="Where tiles run.")
@click.option("--address", help="Address of an existing Ray cluster.")
@click.option("--workers", type=click.IntRange(min=1), help="Tiles computed at once.  [default: every CPU]")
@json_option
def rsm(
    rows: str,
    columns: str | None,
    out: str,
    invariances: tuple[Invariance, ...],
    centring: Centring,
    matching: Method,
    window: int,
    k: int,
    solver: SolverName,
    tolerance: float,
    affinity: AffinityType,
    store_upper_bound: bool,
    tile_size: int,
    batch_size: int | None,
    as_json: bool,
    **where: Any,
) -> int:
    """Compute an RSM store from activation stores; computes only what is missing or damaged.

    \b
    Example:   semrsm rsm --rows queries.zarr --columns database.zarr --out rsm.zarr
    """
    from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, plan_rsm, run_rsm

    wanted = tuple(dict.fromkeys(invariances))
    how = MatchingSettings(matching, window, k, solver, tolerance, affinity)
    settings = RsmSettings(wanted, centring, how, tile_size, batch_size, store_upper_bound)
    where_to_run = RunSettings(**where)
    with progress("Centre", "samples", quiet=as_json) as report:
        job = create_rsm(rows, columns, out, settings, report)
    plan = plan_rsm(job, wanted, where_to_run)
    if not as_json:
        click.echo(f"Plan:\n{plan}", err=True)
    with (
        progress("Tiles", "units", quiet=as_json) as report,
        progress("Verifying", "units", quiet=as_json) as report_verify,
    ):
        run = run_rsm(job, wanted, where_to_run, plan=plan, report=report, report_verify=report_verify)
    for unit, reason in list(run.set_aside.items())[:20]:
        click.echo(f"semrsm: {unit} could not be computed: {reason}", err=True)
    store = RsmStore.open(job.out)
    if as_json:
        set_aside = {str(unit): reason for unit, reason in run.set_aside.items()}
        print_json(
            {
                "store": str(store.location),
                "fingerprint": store.fingerprint,
                "planned": run.planned,
                "computed": run.computed,
                "set_aside": set_aside,
            }
        )
    elif not run.set_aside:
        click.echo(f"{store.location}: {run.computed} of {run.planned} tiles and norms computed now, all verified")
    return 1 if run.set_aside else 0


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


def _print_activations(store: ActivationStore, as_json: bool) -> None:
    """What is in an activation store."""
    if as_json:
        print_json(_activations(store))
    else:
        logits = " and logits" if store.has_logits else ""
        click.echo(
            f"{store.location}: features{logits} of {store.n_samples:,} samples, "
            f"S = {store.n_positions:,}, C = {store.n_channels:,}"
        )
