"""Verbs that make stores from arrays and stores: import, rsm."""

from __future__ import annotations

from typing import Any, get_args

import click

from semrsm_dist.commands.extraction import print_activations
from semrsm_dist.commands.output import json_option, print_json
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.names import AffinityType, Centring, Invariance, Method, SolverName
from semrsm_dist.progress import progress
from storage_schemas import RsmStore
from storage_schemas.errors import InvalidInputError


@click.command("import")
@click.argument("arrays")
@click.option("--out", required=True, help="Activation store to write.")
@click.option("--where", multiple=True, metavar="ARRAY=VALUE", help="Keep the samples whose entry in ARRAY is VALUE.")
@click.option("--sample-id", help="Array, or .txt file, that holds the sample ids.  [default: sample_id or file_names.txt]")
@click.option("--spatial-shape", type=(click.IntRange(min=1), click.IntRange(min=1)), metavar="H W", help="Map of (N,S,C).")
@json_option
def import_(
    arrays: str,
    out: str,
    where: tuple[str, ...],
    sample_id: str | None,
    spatial_shape: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Make an activation store of ARRAYS: an .npz, .npy, .h5 or .hdf5 file, a Zarr store, or a folder of thingsvision.

    Reads `features` (N,S,C) or (N,C,H,W), and `logits` and `sample_id` where there are any. Never unpickles. Chunks that are
    in the store already are not written again, so an interrupted import goes on with the same command.

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
    with (
        progress("Reading", "samples", quiet=as_json) as report,
        progress("Writing", "samples", quiet=as_json) as report_write,
    ):
        store = import_arrays(
            arrays,
            out,
            where=conditions or None,
            sample_id=sample_id,
            spatial_shape=spatial_shape,
            report=report,
            report_write=report_write,
        )
    print_activations(store, as_json)


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
