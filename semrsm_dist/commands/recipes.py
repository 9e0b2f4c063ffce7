"""Verbs that work on a recipe: demo, run, plan, report, schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import click

from semrsm_dist.commands.output import json_option, print_json, print_retrieval, print_table
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import storage_errors

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))


def run_options(command: Any) -> Any:
    """Options that say where tiles are computed; they override the recipe."""
    for option in (
        click.option("--workdir", help="Directory or object-store URL to write to, instead of the recipe's."),
        click.option("--address", help="Address of an existing Ray cluster, e.g. 127.0.0.1:6379, or auto."),
        click.option("--workers", type=click.IntRange(min=1), help="Tiles computed at once.  [default: every CPU]"),
        click.option("--executor", type=click.Choice(["ray", "serial"]), help="Where tiles are computed.  [default: ray]"),
    ):
        command = option(command)
    return command


@click.command()
@recipe_argument
@run_options
@json_option
def run(recipe: Path, as_json: bool, **overrides: Any) -> int:
    """Run RECIPE from images to the report.

    Stages that are complete are skipped, and of an unfinished one only what is missing or damaged is computed: after any
    interruption, give the same command again.

    \b
    Example:   semrsm run recipes/playing_cards.yaml --workers 8
    """
    return _run(pipeline_of(recipe, as_json, overrides), as_json)


@click.command()
@recipe_argument
@run_options
@click.option(
    "--simulate",
    metavar="NAME=VALUE,…",
    help="Run the dispatch loop on a cluster on paper: workers, workers_per_node, failures (nodes lost a minute), stragglers "
    "(share of tasks), slowdown, notice, replacement (seconds), spread, seed.",
)
@json_option
def plan(recipe: Path, simulate: str | None, as_json: bool, **overrides: Any) -> None:
    """Print what RECIPE will cost: tiles, disk, memory per worker, and time from timing real pairs.

    Activations that are missing are extracted first, since the time is measured on them. With --simulate, what is missing is
    also run through the dispatch loop on a cluster that exists on paper only.

    \b
    Example:   semrsm plan recipes/playing_cards.yaml
               semrsm plan recipes/playing_cards.yaml --simulate workers=1000,failures=1,stragglers=0.01
    """
    from semrsm_dist.runtime.simulation import Cluster
    from semrsm_dist.runtime.simulation import simulate as run_on_paper

    cluster = None if simulate is None else Cluster.parse(simulate)  # a mistake in it is told before the long part
    pipeline = pipeline_of(recipe, as_json, overrides)
    pipeline.extract()
    plans = pipeline.plan()
    simulations = {}
    if cluster is not None:
        simulations = {
            name: run_on_paper(each.n_missing, each.cpu_seconds / each.n_missing, cluster)
            for name, each in plans.items()
            if each.n_missing
        }
    if as_json:
        print_json(
            {
                name: {**each.to_json(), **({"simulation": asdict(simulations[name])} if name in simulations else {})}
                for name, each in plans.items()
            }
        )
        return
    for name, each in plans.items():
        click.echo(f"Plan of {name}:\n{each}")
        if name in simulations:
            click.echo(f"On paper, with {cluster}:\n{simulations[name]}")
        elif cluster is not None:
            click.echo("On paper: nothing is missing.")


@click.command()
@recipe_argument
@click.option("--workdir", help="Directory or object-store URL to look at, instead of the recipe's.")
@json_option
def report(recipe: Path, workdir: str | None, as_json: bool) -> None:
    """Compute the tables of a finished RECIPE and write its report.

    \b
    Example:   semrsm report recipes/playing_cards.yaml
    """
    pipeline = pipeline_of(recipe, as_json, {"workdir": workdir})
    summary = pipeline.reduce()
    location = pipeline.report()
    if as_json:
        print_json({**summary, "report": str(location)})
    else:
        print_retrieval(summary["retrieval"])
        click.echo(f"Report: {location}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors and validators.

    \b
    Example:   semrsm schema > recipe.schema.json
    """
    from semrsm_dist.recipe import Recipe

    click.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@click.command()
@click.option("--workdir", default="demo-run", show_default=True, help="Directory to write to.")
@click.option("--queries", default=60, show_default=True, type=click.IntRange(min=4), help="Query scenes to render.")
@click.option("--database", default=240, show_default=True, type=click.IntRange(min=10), help="Database scenes to render.")
@click.option("--executor", type=click.Choice(["ray", "serial"]), default="ray", show_default=True, help="Where tiles run.")
@click.option("--workers", type=click.IntRange(min=1), help="Tiles computed at once.  [default: every CPU]")
@json_option
def demo(workdir: str, queries: int, database: int, executor: str, workers: int | None, as_json: bool) -> int:
    """Run everything on generated scenes: see in a minute what the method is for.

    Renders scenes with several objects each in varying places, extracts them with a small network that comes with the
    package, computes their RSMs, and compares retrieval with and without permutation invariance.

    \b
    Example:   semrsm demo
    """
    from semrsm_dist.demo.scenes import write_scenes
    from semrsm_dist.pipeline import Pipeline
    from semrsm_dist.recipe import recipe_from

    folder = Path(workdir).absolute() / "scenes"
    if not as_json:
        click.echo(f"Rendering {queries} query scenes and {database} database scenes into {folder}", err=True)
    with storage_errors(str(folder)):
        try:
            write_scenes(folder, n_queries=queries, n_database=database, seed=_DEMO_SEED)
        except FileNotFoundError as error:
            raise InvalidInputError(f"Cannot write the scenes to {folder}; choose another --workdir.") from error
    with resources.as_file(resources.files("semrsm_dist.demo") / "network") as network:
        images = str(folder / "images")
        values = {
            "name": "demo",
            "workdir": str(Path(workdir).absolute()),
            "queries": {"images": images, "annotations": str(folder / "query.json")},
            "database": {"images": images, "annotations": str(folder / "database.json")},
            "models": [{"name": "demo_network", "model": str(network)}],
            "rsm": {"matching": {"method": "optimal"}},
            "retrieval": {"kernels": ["cosine"], "top_k": [1, 5]},
            "runtime": {"executor": executor, "workers": workers},
        }
        recipe = recipe_from(values, "The demo")
        return _run(Pipeline(recipe, say=_say(as_json), quiet=as_json), as_json)


_DEMO_SEED = 2024


def _say(as_json: bool) -> Any:
    """Where lines about the stages go."""
    return (lambda line: None) if as_json else lambda line: click.echo(line, err=True)


def pipeline_of(path: Path, as_json: bool, overrides: dict[str, Any]) -> Any:
    """The pipeline of a recipe file with the command line's overrides."""
    from semrsm_dist.pipeline import Pipeline
    from semrsm_dist.recipe import load_recipe

    recipe = load_recipe(path)
    runtime = {key: overrides[key] for key in ("address", "workers", "executor") if overrides.get(key)}
    changed: dict[str, Any] = {"runtime": recipe.runtime.model_copy(update=runtime)}
    if overrides.get("workdir"):
        changed["workdir"] = overrides["workdir"]
    return Pipeline(recipe.model_copy(update=changed), say=_say(as_json), quiet=as_json)


def _run(pipeline: Any, as_json: bool) -> int:
    """Run all stages and print what came out."""
    outcome = pipeline.run()
    if as_json:
        set_aside = {str(unit): reason for unit, reason in outcome.set_aside.items()}
        print_json({**outcome.summary, "set_aside": set_aside, "report": str(pipeline.workdir / "report.html")})
    elif not outcome.set_aside:
        print_retrieval(outcome.summary["retrieval"])
        if outcome.summary["cka"]:
            print_cka(outcome.summary["cka"])
        click.echo(f"The report is {pipeline.workdir / 'report.html'}")
    for unit, reason in list(outcome.set_aside.items())[:20]:
        click.echo(f"semrsm: {unit} could not be computed: {reason}", err=True)
    if outcome.set_aside:
        click.echo(f"semrsm: {len(outcome.set_aside)} units are missing; the same command tries them again.", err=True)
    return 1 if outcome.set_aside else 0


def print_cka(rows: list[dict[str, Any]]) -> None:
    """The CKA table."""
    names = ("representation_1", "invariance_1", "representation_2", "invariance_2", "kernel", "estimator")
    cells = [[*(row[name] for name in names), f"{row['value']:.4f}"] for row in rows]
    print_table("CKA", ("first", "invariance", "second", "invariance", "kernel", "estimator", "CKA"), cells)
