"""Verbs that vouch for computed stores: verify, finalise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from semrsm_dist.commands.output import json_option, print_json
from semrsm_dist.commands.recipes import pipeline_of, recipe_argument, run_options
from semrsm_dist.progress import progress

_SHOWN = 10


@click.command()
@recipe_argument
@run_options
@click.option("--sample", type=click.IntRange(min=0), default=20, show_default=True, help="Pairs of each model to recompute.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of pairs.")
@click.option("--repair", is_flag=True, help="Compute again what is missing, damaged or wrong, then verify once more.")
@json_option
def verify(recipe: Path, sample: int, seed: int, repair: bool, as_json: bool, **overrides: Any) -> int:
    """Read every tile of RECIPE again, and recompute a sample of pairs by other means.

    Every tile and norm must be there, whole and finite. Random pairs, the same for every invariance, are computed
    again in float64, those of the permutation invariance with SciPy's exact solver; the largest deviation is printed,
    relative to the product of the norms. With --sample 0 the activations are not needed.

    Exit status 1 when something is missing, damaged or wrong at the end. --repair computes it again.

    \b
    Example:   semrsm verify recipes/playing_cards.yaml --sample 100 --repair
    """
    pipeline = pipeline_of(recipe, as_json, overrides)
    results: dict[str, dict[str, Any]] = {}
    for model in pipeline.recipe.representations:
        audit = _audit(pipeline, model, sample, seed, as_json)
        found = dict(audit.bad)
        if found and repair:
            pipeline.compute(model, discard=found)
            audit = _audit(pipeline, model, sample, seed, as_json)
        results[model.name] = {
            "read": audit.n_units,
            "bad": {str(unit): reason for unit, reason in audit.bad.items()},
            "repaired": sorted(str(unit) for unit in found if unit not in audit.bad),
            "pairs": sample,
            "largest_deviation": audit.largest_deviations(),
        }
    n_bad = sum(len(result["bad"]) for result in results.values())
    if as_json:
        print_json({"damaged": n_bad, "models": results})
        return 1 if n_bad else 0
    for name, result in results.items():
        _print_result(name, result)
    if n_bad:
        click.echo(f"`semrsm verify {recipe} --repair` computes again what is missing, damaged or wrong.")
    return 1 if n_bad else 0


@click.command()
@click.argument("rsm")
@click.option("--out", required=True, help="Published store to write, e.g. published.zarr.")
@click.option("--shard-tiles", type=click.IntRange(min=1), default=10, show_default=True, help="Tiles along a shard's sides.")
@json_option
def finalise(rsm: str, out: str, shard_tiles: int, as_json: bool) -> None:
    """Publish the finished RSM store RSM: few large objects instead of one for each tile.

    Tiles become chunks of Zarr shards, checksummed each; a symmetric RSM becomes a whole matrix. Every value is read
    back and compared with RSM. The published store is there whole or not at all, with a manifest.json of its
    checksums; it is only read, by every verb that reads RSM. RSM itself stays as it is.

    \b
    Example:   semrsm finalise rsm/resnet.zarr --out published/resnet.zarr
    """
    from semrsm_dist.runtime.publication import publish

    with progress("Publishing", "shards", quiet=as_json) as report:
        manifest = publish(rsm, out, shard_tiles=shard_tiles, report=report)
    if as_json:
        print_json(manifest)
        return
    n_rows, n_columns = manifest["shape"]
    invariances = ", ".join(manifest["invariances"])
    click.echo(f"{out}: {n_rows:,} × {n_columns:,} under {invariances}, every value compared with {rsm}")


def _audit(pipeline: Any, model: Any, n_pairs: int, seed: int, quiet: bool) -> Any:
    """Audit the RSM of one model."""
    from semrsm_dist.runtime.audit import audit_store
    from storage_schemas import RsmStore

    with (
        progress(f"Verifying {model.name}", "units", quiet=quiet) as report,
        progress(f"Recomputing pairs of {model.name}", "pairs", quiet=quiet) as report_pairs,
    ):
        return audit_store(
            RsmStore.open(pipeline.rsm(model)),
            pipeline.recipe.rsm_settings().invariances,
            n_pairs=n_pairs,
            seed=seed,
            report=report,
            report_pairs=report_pairs,
        )


def _print_result(name: str, result: dict[str, Any]) -> None:
    """What a person wants to know of one model."""
    bad, repaired = result["bad"], result["repaired"]
    verdict = f"{len(bad)} missing, damaged or wrong" if bad else "every one is present and whole"
    click.echo(f"{name}: {result['read']:,} tiles and blocks of norms read, {verdict}")
    for invariance, deviation in result["largest_deviation"].items():
        click.echo(f"  {invariance}: {result['pairs']} pairs recomputed, largest deviation {deviation:.1e}")
    if repaired:
        click.echo(f"  repaired: {', '.join(repaired[:_SHOWN])}{' …' if len(repaired) > _SHOWN else ''}")
    for unit, reason in list(bad.items())[:_SHOWN]:
        click.echo(f"  {unit}: {reason}")
