"""Verbs that look at a run without touching it: status, timeline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from semrsm_dist.commands.output import json_option, print_json, print_table
from semrsm_dist.commands.recipes import pipeline_of, recipe_argument
from semrsm_dist.progress import binary_size, duration
from storage_schemas.errors import StoreNotFoundError


@dataclass(frozen=True)
class Stage:
    """How far one store of a recipe is."""

    what: str
    done: int
    planned: int
    """0 when the store is not there yet."""
    unit: str
    history: Any = None
    """Of an RSM, what its events tell."""

    @property
    def missing(self) -> int:
        """What is still to do."""
        return self.planned - self.done

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {"what": self.what, "done": self.done, "planned": self.planned, "unit": self.unit}
        if self.history is None:
            return plain
        return {**plain, "seconds_left": self.history.seconds_left(self.missing), "history": self.history.to_json()}


@click.command()
@recipe_argument
@click.option("--workdir", help="Directory or object-store URL to look at, instead of the recipe's.")
@click.option("--watch", is_flag=True, help="Look again and again, until everything is there or Ctrl-C.")
@click.option(
    "--every", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds between looks of --watch."
)
@json_option
def status(recipe: Path, workdir: str | None, watch: bool, every: float, as_json: bool) -> None:
    """Show how far RECIPE is, from any machine that sees its stores.

    Says what is done, how fast each node was in the last ten minutes of the run, how long the rest will take at that speed,
    and what failed.

    \b
    Example:   semrsm status recipes/playing_cards.yaml --watch
    """
    pipeline = pipeline_of(recipe, as_json, {"workdir": workdir})
    while True:
        stages = list(stages_of(pipeline))
        if as_json:
            print_json([stage.to_json() for stage in stages])
        else:
            if watch:
                click.clear()
            _print(f"{pipeline.recipe.name} in {pipeline.workdir}", stages)
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
    from semrsm_dist.runtime.history import read_events
    from storage_schemas.location import Location, storage_errors
    from storage_schemas.rsm import events_url

    pipeline = pipeline_of(recipe, False, {"workdir": workdir})
    for model in pipeline.recipe.models:
        picture = draw(read_events(events_url(pipeline.rsm(model))))
        path = out / f"{model.name}.timeline.png"
        with storage_errors(str(path)):
            Location.of(out).put(path.name, picture)
        click.echo(path)


def stages_of(pipeline: Any) -> Any:
    """The stages of a pipeline, as far as they are."""
    from semrsm_dist.runtime.history import history, read_events
    from semrsm_dist.runtime.inventory import missing_units, units_of
    from storage_schemas import ActivationStore, RsmStore
    from storage_schemas.rsm import events_url

    invariances = pipeline.recipe.rsm_settings().invariances
    sides = ("database",) if pipeline.recipe.queries is None else ("queries", "database")
    for model in pipeline.recipe.models:
        for side in sides:
            try:
                store = ActivationStore.open(pipeline.activations(side, model))
                done, planned = store.n_chunks - len(store.missing_chunks()), store.n_chunks
            except StoreNotFoundError:
                done, planned = 0, 0
            yield Stage(f"{model.name}: activations of {side}", done, planned, "chunks")
        told = None
        try:
            rsm = RsmStore.open(pipeline.rsm(model))
            present = [each for each in invariances if each in rsm.invariances()]
            planned = sum(1 for _ in units_of(rsm, invariances))
            unknown = sum(1 for _ in units_of(rsm, [each for each in invariances if each not in present]))
            done = planned - unknown - len(missing_units(rsm, present))
            told = history(read_events(events_url(rsm.location)))
        except StoreNotFoundError:
            done, planned = 0, 0
        yield Stage(f"{model.name}: RSM", done, planned, "tiles and norms", told)


def _print(title: str, stages: list[Stage]) -> None:
    """The stages as a table, and what the events of unfinished RSMs tell."""
    cells = []
    for stage in stages:
        left = ""
        if stage.missing and stage.history is not None and stage.history.units_per_minute:
            left = duration(stage.history.seconds_left(stage.missing))
        planned = str(stage.planned) if stage.planned else "not started"
        cells.append([stage.what, str(stage.done), planned, stage.unit, left])
    print_table(title, ("stage", "done", "of", "", "left"), cells)
    for stage in stages:
        if stage.history is not None and stage.history.newest is not None:
            _print_history(stage)


def _print_history(stage: Stage) -> None:
    """What happened to one RSM."""
    from semrsm_dist.runtime.history import seconds_ago

    told = stage.history
    trouble = "".join(f", {count} {status}" for status, count in told.not_done.items())
    gap = "" if told.largest_gap is None else f"; largest certified gap {told.largest_gap:.1e}"
    click.echo(
        f"{stage.what}: {told.attempts:,} attempts{trouble}; the last returned {duration(seconds_ago(told.newest))} ago{gap}"
    )
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
