"""Verbs that look at a run without touching it: status, timeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semrsm_dist.commands.output import json_option, print_json, print_table
from semrsm_dist.commands.recipes import pipeline_of, recipe_argument
from semrsm_dist.progress import binary_size, duration
from storage_schemas.location import Location

if TYPE_CHECKING:  # PyArrow takes long to import
    from semrsm_dist.runtime.history import History
    from semrsm_dist.runtime.standing import Observer, Stage


@click.command()
@click.argument("recipe")
@click.option("--workdir", help="Directory or object-store URL to look at, instead of the recipe's.")
@click.option("--watch", is_flag=True, help="Look again and again, until everything is there or Ctrl-C.")
@click.option(
    "--every", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds between looks of --watch."
)
@json_option
def status(recipe: str, workdir: str | None, watch: bool, every: float, as_json: bool) -> None:
    """Show how far RECIPE, or one RSM store (NAME.zarr), is, from any machine that sees the stores.

    Says what is done, who runs it and what is in flight, how long the rest will take, how fast each node was in the last ten
    minutes of the run, and what failed.

    \b
    Example:   semrsm status recipes/playing_cards.yaml --watch
               semrsm status work/stores/rsm.zarr
    """
    from semrsm_dist.runtime.standing import Observer

    observer = Observer()
    if recipe.endswith(".zarr"):
        location = Location.of(recipe)
        title = str(location.parent)

        def look() -> list[Stage]:
            return [observer.rsm(location.name, location)]
    else:
        pipeline = pipeline_of(Path(recipe), as_json, {"workdir": workdir})
        title = f"{pipeline.recipe.name} in {pipeline.workdir}"

        def look() -> list[Stage]:
            return list(stages_of(pipeline, observer))

    while True:
        stages = look()
        if as_json:
            print_json([stage.to_json() for stage in stages])
        else:
            if watch:
                click.clear()
            _print(title, stages)
        if not watch or all(stage.planned and not stage.missing for stage in stages):
            return
        time.sleep(every)


@click.command()
@recipe_argument
@click.option("--workdir", help="Directory or object-store URL to look at, instead of the recipe's.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder to write to.  [default: .]"
)
def timeline(recipe: Path, workdir: str | None, out: Path) -> None:
    """Draw when each unit of RECIPE was queued, ran and returned, by worker and node: MODEL.timeline.png for each model.

    \b
    Example:   semrsm timeline recipes/playing_cards.yaml --out pictures
    """
    from semrsm_dist.report.timeline import timeline as draw
    from semrsm_dist.runtime.events import EventReader
    from storage_schemas.location import Location, storage_errors
    from storage_schemas.rsm import events_url

    pipeline = pipeline_of(recipe, False, {"workdir": workdir})
    for model in pipeline.recipe.representations:
        picture = draw(EventReader(events_url(pipeline.rsm(model))).read())
        path = out / f"{model.name}.timeline.png"
        with storage_errors(str(path)):
            Location.of(out).put(path.name, picture)
        click.echo(path)


def stages_of(pipeline: Any, observer: Observer) -> Iterator[Stage]:
    """The stages of a pipeline, as far as they are."""
    invariances = pipeline.recipe.rsm_settings().invariances
    sides = ("database",) if pipeline.recipe.queries is None else ("queries", "database")
    for model in pipeline.recipe.representations:
        for side in sides:
            yield observer.activations(f"{model.name}: activations of {side}", pipeline.activations(side, model))
        yield observer.rsm(f"{model.name}: RSM", pipeline.rsm(model), invariances)


def _print(title: str, stages: list[Stage]) -> None:
    """The stages as a table, and what the events of unfinished RSMs tell."""
    cells = []
    for stage in stages:
        left = duration(stage.seconds_left) if stage.missing and stage.seconds_left is not None else ""
        planned = str(stage.planned) if stage.planned else "not started"
        cells.append([stage.what, str(stage.done), planned, stage.unit, left])
    print_table(title, ("stage", "done", "of", "", "left"), cells)
    for stage in stages:
        _print_run(stage)
        if stage.history is not None:
            _print_history(stage, stage.history)


def _print_run(stage: Stage) -> None:
    """Who works on a store, and what is in flight."""
    if stage.running and stage.pulse is not None:
        now = stage.pulse
        by = "" if stage.holder is None else f"run by {stage.holder}; "
        given_up = f"; {now.set_aside:,} given up" if now.set_aside else ""
        click.echo(
            f"{stage.what}: {by}{now.tasks:,} tasks with {now.units:,} units in flight for {now.slots:,} workers, "
            f"the oldest for {duration(now.oldest_seconds)}{given_up}"
        )
    elif stage.holder is not None and stage.holder.has_ended():
        click.echo(f"{stage.what}: {stage.holder} has ended without finishing; the same command goes on from there")
    elif stage.holder is not None:
        heard = "begins" if stage.pulse is None else f"was last heard of {duration(stage.pulse.seconds_ago())} ago"
        click.echo(f"{stage.what}: {stage.holder} {heard}")


def _print_history(stage: Stage, told: History) -> None:
    """What happened to one RSM."""
    from semrsm_dist.runtime.history import seconds_ago

    trouble = "".join(f", {count} {status}" for status, count in told.not_done.items())
    gap = "" if told.largest_gap is None else f"; largest certified gap {told.largest_gap:.1e}"
    if told.newest is not None:
        ago = duration(seconds_ago(told.newest))
        click.echo(f"{stage.what}: {told.attempts:,} attempts{trouble}; the last returned {ago} ago{gap}")
    if stage.missing and told.nodes:
        cells = [
            [
                each.node,
                str(each.workers),
                f"{each.units_per_minute:.1f}",
                f"{100 * each.busy:.0f} %",
                binary_size(each.peak_memory_bytes),
            ]
            for each in told.nodes
        ]
        print_table("Recent speed", ("node", "workers", "units a minute", "busy", "largest worker"), cells)
    for error in told.last_errors:
        click.echo(f"  {error}")
