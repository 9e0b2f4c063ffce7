"""Verbs that read finished RSMs: retrieve, cka."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import click

from semrsm_dist.commands.output import json_option, print_json, print_retrieval
from semrsm_dist.names import Estimator, Invariance, KernelName
from semrsm_dist.progress import progress
from storage_schemas import RsmStore
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location, resolve
from storage_schemas.tables import NEIGHBOURS, RETRIEVAL, SAMPLES, read_table, write_table

sigma_option = click.option(
    "--sigma", default="median_sq", show_default=True, help="σ of the RBF kernel: median_sq, median, tile, or a number."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that read tiles; the result does not depend on it.  [default: this one, or all of the cluster]",
)
address_option = click.option("--address", help="Address of an existing Ray cluster.")


@click.command()
@click.argument("rsm")
@click.option(
    "--annotations",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="COCO-format file or annotation table; may be given several times. Images are matched by id or file stem.",
)
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(get_args(KernelName)), help="[default: all three]")
@click.option("--invariance", "invariances", multiple=True, help="[default: all in the store]")
@click.option(
    "--top-k", multiple=True, type=click.IntRange(min=1), default=(1,), show_default=True, help="Samples to average over."
)
@click.option("--out", help="Folder to write retrieval.parquet and neighbours.parquet to.")
@sigma_option
@workers_option
@address_option
@json_option
def retrieve(
    rsm: str,
    annotations: tuple[Path, ...],
    kernels: tuple[KernelName, ...],
    invariances: tuple[Invariance, ...],
    top_k: tuple[int, ...],
    out: str | None,
    sigma: str,
    workers: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Print how much the most similar database samples share with each query of the RSM store RSM.

    \b
    Example:   semrsm retrieve rsm.zarr --annotations query.json --annotations database.json --top-k 1 --top-k 10
    """
    from semrsm_dist.datasets.annotations import read_annotations
    from semrsm_dist.reduction.samples import describe_samples
    from semrsm_dist.reduction.stored_retrieval import retrieve as retrieve_stored
    from storage_schemas.activations import samples_url

    rule = parse_sigma(sigma)
    store = RsmStore.open(rsm)
    sides = [resolve(store.attributes[side], store.location) for side in ("rows", "columns")]
    samples = [read_table(samples_url(side), SAMPLES) for side in sides]
    tables = [read_annotations(annotations, table.column("sample_id").to_pylist()) for table in samples]
    wanted: Any = invariances or _by_baseline(store.invariances())
    with _map_strips(address, workers) as map_strips, progress("Retrieval", "tiles", quiet=as_json) as report:
        found = retrieve_stored(
            store,
            *describe_samples(samples, tables),
            representation=store.location.name.removesuffix(".zarr"),
            invariances=wanted,
            kernel_names=kernels or get_args(KernelName),
            top_k=top_k,
            sigma=rule,
            report=report,
            map_strips=map_strips,
        )
    if out is not None:
        write_table(Location.of(out) / "retrieval.parquet", found.summary, RETRIEVAL)
        write_table(Location.of(out) / "neighbours.parquet", found.neighbours, NEIGHBOURS)
    rows = found.summary.to_pylist()
    if as_json:
        print_json(rows)
    else:
        print_retrieval(rows)


@click.command()
@click.argument("rsm1")
@click.argument("rsm2")
@click.option(
    "--invariance", default="permutation", show_default=True, type=click.Choice(get_args(Invariance)), help="Of RSM1."
)
@click.option("--invariance2", type=click.Choice(get_args(Invariance)), help="Of RSM2.  [default: the same]")
@click.option("--kernel", default="linear", show_default=True, type=click.Choice(get_args(KernelName)), help="What to compare.")
@click.option(
    "--estimator", default="unbiased", show_default=True, type=click.Choice(get_args(Estimator)), help="Estimator of HSIC."
)
@sigma_option
@workers_option
@address_option
@json_option
def cka(
    rsm1: str,
    rsm2: str,
    invariance: Invariance,
    invariance2: Invariance | None,
    kernel: KernelName,
    estimator: Estimator,
    sigma: str,
    workers: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Print the centred kernel alignment of the RSM stores RSM1 and RSM2, which are over the same samples.

    \b
    Example:   semrsm cka rsm/resnet.zarr rsm/vit.zarr --kernel rbf
    """
    from semrsm_dist.reduction.stored import StoredRsm
    from semrsm_dist.reduction.stored_cka import stored_cka

    rule = parse_sigma(sigma)
    with _map_strips(address, workers) as map_strips, progress("CKA", "tiles", quiet=as_json) as report:
        first = StoredRsm(RsmStore.open(rsm1), invariance, rule, map_strips)
        second = StoredRsm(RsmStore.open(rsm2), invariance2 or invariance, rule, map_strips)
        value = stored_cka(first, second, kernel, estimator, report)
    if as_json:
        print_json({"cka": value, "kernel": kernel, "estimator": estimator, "n_samples": first.grid.shape[0]})
    else:
        click.echo(f"CKA {value:.6f}  ({estimator}, {kernel} kernel, {first.grid.shape[0]:,} samples)")


def parse_sigma(text: str) -> Any:
    """A rule by name, or a number."""
    if text in ("median_sq", "median", "tile"):
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"--sigma is {text!r}; it takes median_sq, median, tile, or a positive number.") from None


def _map_strips(address: str | None, workers: int | None) -> AbstractContextManager[Any]:
    """How reducers go through an RSM: in this process, or on Ray when there is a cluster or more than one worker."""
    from semrsm_dist.runtime.mapping import TILES_WORTH_RAY, strip_mapper
    from semrsm_dist.runtime.rsm_run import RunSettings

    serial = address is None and workers in (None, 1)
    return strip_mapper(RunSettings("serial" if serial else "ray", address, workers), TILES_WORTH_RAY)


def _by_baseline(invariances: list[str]) -> list[str]:
    """Invariances with the baseline first."""
    return sorted(invariances, key=lambda name: (name != "none", name))
