"""The stages of a recipe in order: extract, plan, run and verify RSMs, reduce, report. Each is skipped when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from semrsm_dist.datasets.samples import Dataset, write_annotations
from semrsm_dist.datasets.sides import inspect_sides, read_sides
from semrsm_dist.datasets.sources import ImageSource
from semrsm_dist.extraction.settings import ExtractionSettings, PoolSettings
from semrsm_dist.names import KernelName
from semrsm_dist.progress import binary_size, progress
from semrsm_dist.recipe import ModelSource, Recipe
from semrsm_dist.reduction.samples import Samples, describe_samples
from semrsm_dist.reduction.stored import StoredRsm
from semrsm_dist.reduction.stored_cka import stored_cka
from semrsm_dist.reduction.stored_retrieval import retrieve
from semrsm_dist.reduction.strips import MapStrips
from semrsm_dist.runtime.inventory import grid_of, missing_units
from semrsm_dist.runtime.mapping import strip_mapper
from semrsm_dist.runtime.plan import RsmPlan
from semrsm_dist.runtime.rsm_run import RsmRun, RunSettings, create_rsm, on_cluster, plan_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, DamagedChunkError, IncompleteStoreError, InvalidInputError, RsmStore, SemrsmError
from storage_schemas.activations import samples_url
from storage_schemas.fingerprint import fingerprint, package_versions
from storage_schemas.location import Location
from storage_schemas.tables import ANNOTATIONS, CKA, NEIGHBOURS, RETRIEVAL, SAMPLES, read_table, write_table

if TYPE_CHECKING:  # importing PyTorch takes seconds
    from semrsm_dist.extraction.model import VisionModel

REDUCTIONS = 2
"""Version of how tables are computed from RSMs; raised when a change alters one, so that old tables are not kept."""
SIDES = ("queries", "database")
_IDENTITY = ["sample_id", "group_id", "video_id", "sha256"]  # of a sample; where its image lies does not matter


@dataclass
class Outcome:
    """What a run of the stages came to."""

    set_aside: dict[Unit, str] = field(default_factory=dict)
    """Units that could not be computed, each with its reason."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What is in ``results/summary.json``."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of one recipe in its work directory.

    Parameters
    ----------
    recipe
        From :func:`semrsm_dist.recipe.load_recipe`.
    say
        Told one line about each stage.
    quiet
        Show no progress.
    """

    recipe: Recipe
    say: Callable[[str], None] = lambda line: None
    quiet: bool = False

    @property
    def workdir(self) -> Location:
        """Where everything is."""
        return Location.of(self.recipe.workdir)

    def run(self) -> Outcome:
        """Every stage; stops before the reductions when tiles are missing."""
        try:
            outcome = self._activations_to_rsms()
        except DamagedChunkError:
            if not self._remove_damaged_activations():
                raise
            outcome = self._activations_to_rsms()
        if outcome.set_aside and self._remove_damaged_activations():
            outcome = self._activations_to_rsms()
        if not outcome.set_aside:
            outcome.summary = self.reduce()
            self.say(f"Report: {self.report()}")
        return outcome

    def extract(self) -> None:
        """Activation stores of every model, and annotation tables."""
        from semrsm_dist.extraction.images import open_image
        from semrsm_dist.extraction.model import load_model

        datasets = read_sides(self._sources(), self.say, quiet=self.quiet)
        self._check_top_k(len(datasets["database"].samples))
        decode = open_image if self.recipe.extraction.on_error == "skip" else None
        datasets = inspect_sides(datasets, self.workdir / "activations", self.say, decode=decode, quiet=self.quiet)
        self._check_top_k(len(datasets["database"].samples))
        for model in self.recipe.models:
            loading = {**model.loading(), **self.recipe.extraction.loading()}
            if self._pool() is not None:
                loading["device"] = "cpu"  # for the shapes; the actors have devices of their own
            loaded = load_model(model.model, **loading)
            for side, dataset in datasets.items():
                self._extract(side, dataset, model, loaded)
        for side, dataset in datasets.items():  # after every store has accepted its samples
            if dataset.annotations is not None:
                write_annotations(dataset, self._annotations(side))

    def plan(self) -> dict[str, RsmPlan]:
        """The plan of every model's RSM; needs the activations, and creates the stores."""
        plans = {}
        for model in self.recipe.representations:
            job = self._create(model)
            plans[model.name] = plan_rsm(job, self._invariances, self._run_settings())
        return plans

    def compute(self, model: ModelSource, discard: Collection[Unit] = ()) -> RsmRun:
        """One model's RSM: plan, run what is missing and what is to be discarded, verify."""
        settings = self._run_settings()
        job = self._create(model)
        store = RsmStore.open(job.out)
        plan = None
        if missing_units(store, self._invariances):
            plan = plan_rsm(job, self._invariances, settings)
            self.say(f"Plan of {model.name}:\n{plan}")
        with (
            progress(f"Tiles of {model.name}", "units", quiet=self.quiet) as report,
            progress(f"Verifying {model.name}", "units", quiet=self.quiet) as report_verify,
        ):
            run = run_rsm(
                job, self._invariances, settings, plan=plan, discard=discard, report=report, report_verify=report_verify
            )
        verdict = f"{len(run.set_aside)} could not be computed" if run.set_aside else "all verified"
        self.say(f"RSM of {model.name}: {run.computed} of {run.planned} tiles and norms computed now, {verdict}.")
        return run

    def reduce(self) -> dict[str, Any]:
        """Retrieval and CKA tables and the summary; skipped when they are those of the present stores."""
        wanted = fingerprint(self._reduction_inputs())
        summary = self._summary()
        if summary is not None and summary["computed_from"] == wanted:
            self.say("Tables: up to date.")
            return summary
        sides = self._samples()
        results = self.workdir / "results"
        results.delete("summary.json")  # tables without a summary are never taken for those of the present stores
        with strip_mapper(self._run_settings(), self._n_tiles()) as map_strips:
            retrieval, neighbours = self._retrieval(sides, map_strips)
            cka = self._cka(map_strips)
        for name, table in neighbours.items():
            write_table(results / f"{name}.neighbours.parquet", table, NEIGHBOURS)
        table = pa.concat_tables(retrieval) if retrieval else RETRIEVAL.empty_table()
        write_table(results / "retrieval.parquet", table, RETRIEVAL)
        write_table(results / "cka.parquet", cka, CKA)
        summary = {
            "name": self.recipe.name,
            "computed_from": wanted,
            "retrieval": table.to_pylist(),
            "cka": cka.to_pylist(),
        }
        results.put("summary.json", json.dumps(summary, indent=1).encode())
        self.say(f"Tables: {results}")
        return summary

    def report(self) -> Location:
        """The HTML report and the figures."""
        from semrsm_dist.report.assemble import representation_report
        from semrsm_dist.report.html import write_report

        retrieval = self.retrieval_table()
        samples = [self.samples_table(side) for side in SIDES]
        annotations = [self.annotations_table(side) for side in SIDES]
        sections = [
            representation_report(
                model.name,
                self._open_rsm(model),
                self._invariances,
                ActivationStore.open(self.activations("database", model)),
                retrieval=retrieval,
                neighbours=self.neighbours_table(model),
                samples=samples,
                annotations=[] if any(table is None for table in annotations) else annotations,
                kernel=self._report_kernel,
            )
            for model in self.recipe.representations
        ]
        cka = self.cka_table()
        return write_report(
            self.workdir,
            self.recipe.name,
            sections,
            cka=cka if len(cka) else None,
            run=package_versions(),
            kernel=self._report_kernel,
        )

    def activations(self, side: str, model: ModelSource) -> Location:
        """The activation store of one side under one model."""
        return self.workdir / "activations" / f"{model.name}.{side}.zarr"

    def rsm(self, model: ModelSource) -> Location:
        """The RSM store of one model."""
        return self.workdir / "rsm" / f"{model.name}.zarr"

    def retrieval_table(self) -> pa.Table:
        """Mean retrieval figures of all models."""
        return read_table(self.workdir / "results" / "retrieval.parquet", RETRIEVAL)

    def neighbours_table(self, model: ModelSource) -> pa.Table:
        """Retrieved samples of one model; empty without annotations."""
        return read_table(self.workdir / "results" / f"{model.name}.neighbours.parquet", NEIGHBOURS)

    def cka_table(self) -> pa.Table:
        """CKA of pairs of RSMs."""
        return read_table(self.workdir / "results" / "cka.parquet", CKA)

    def samples_table(self, side: str) -> pa.Table:
        """Samples of one side; without queries both sides are the database."""
        return read_table(samples_url(self.activations(self._side(side), self.recipe.representations[0])), SAMPLES)

    def annotations_table(self, side: str) -> pa.Table | None:
        """Annotations of one side, or None when the recipe names none."""
        side = self._side(side)
        return read_table(self._annotations(side), ANNOTATIONS) if self._sources()[side].annotated else None

    @property
    def _invariances(self) -> tuple[Any, ...]:
        return self.recipe.rsm_settings().invariances

    @property
    def _report_kernel(self) -> KernelName:
        """The kernel of pictures and examples: cosine, unless the recipe leaves it out."""
        kernels = self.recipe.retrieval.kernels
        return "cosine" if "cosine" in kernels else kernels[0]

    def _run_settings(self) -> RunSettings:
        return self.recipe.run_settings()

    def _side(self, side: str) -> str:
        """The side that a side's samples are of."""
        return "database" if self.recipe.queries is None else side

    def _sources(self) -> dict[str, ImageSource]:
        """The sides that have images of their own; the database first, since it is the larger."""
        sources = {"database": self.recipe.database}
        return sources if self.recipe.queries is None else {**sources, "queries": self.recipe.queries}

    def _annotations(self, side: str) -> Location:
        return self.workdir / "annotations" / f"{side}.parquet"

    def _activations_to_rsms(self) -> Outcome:
        """The stages before the reductions."""
        self.extract()
        outcome = Outcome()
        for model in self.recipe.representations:
            outcome.set_aside |= self.compute(model).set_aside
        return outcome

    def _remove_damaged_activations(self) -> int:
        """Read all activations and remove damaged chunks, so that they are extracted again; returns how many."""
        removed = 0
        for model in self.recipe.representations:
            for side in self._sources():
                store = ActivationStore.open(self.activations(side, model))
                for index in store.damaged_chunks():
                    self.say(f"Chunk {index} of {store.location} is damaged; it is extracted again.")
                    store.delete_chunk(index)
                    removed += 1
        return removed

    def _check_top_k(self, n_samples: int) -> None:
        """Refuse before the long part what retrieval would refuse after it."""
        k = max(self.recipe.retrieval.top_k)
        if self.recipe.database.annotated and k > n_samples:
            raise InvalidInputError(
                f"The recipe retrieves the {k} most similar of {n_samples} database images; "
                f"choose retrieval.top_k up to {n_samples}."
            )

    def _extract(self, side: str, dataset: Dataset, model: ModelSource, loaded: VisionModel) -> None:
        """One activation store, or one for each layer."""
        from semrsm_dist.extraction.extract import extract_layers

        named = dict(zip(loaded.representations, model.representations, strict=True))
        outs = {layer: self.activations(side, representation) for layer, representation in named.items()}
        with progress(f"Extracting {side} with {model.name}", "images", quiet=self.quiet) as report:
            stores = extract_layers(
                dataset,
                loaded,
                outs,
                settings=ExtractionSettings(model.batch_size, self.recipe.extraction.dtype),
                threads=self._run_settings().workers,
                pool=self._pool(),
                progress=report,
            )
        for layer, store in stores.items():
            size = store.n_samples * store.n_positions * store.n_channels * store.dtype.itemsize
            self.say(
                f"Activations of {side} with {named[layer].name}: N = {store.n_samples:,}, S = {store.n_positions:,}, "
                f"C = {store.n_channels:,}, {binary_size(size)} uncompressed."
            )

    def _pool(self) -> PoolSettings | None:
        """Actors that extract: on a cluster, or where GPUs are asked for; else this process does."""
        run, wanted = self._run_settings(), self.recipe.extraction
        if run.executor == "serial" or not (on_cluster(run) or wanted.gpus_per_worker):
            return None
        return PoolSettings(run.address, run.workers, wanted.cpus_per_worker, wanted.gpus_per_worker, wanted.device)

    def _create(self, model: ModelSource) -> Any:
        """The RSM store of a model, created or opened."""
        rows = self.activations(self._side("queries"), model)
        columns = None if self.recipe.queries is None else str(self.activations("database", model))
        with progress(f"Centre of {model.name}", "images", quiet=self.quiet) as report:
            return create_rsm(str(rows), columns, self.rsm(model), self.recipe.rsm_settings(), report)

    def _open_rsm(self, model: ModelSource) -> RsmStore:
        """A finished RSM store."""
        store = RsmStore.open(self.rsm(model))
        missing = missing_units(store, self._invariances)
        if missing:
            raise IncompleteStoreError(f"{store.location} lacks {len(missing)} tiles or norms; use `semrsm run` to finish it.")
        return store

    def _samples(self) -> tuple[Samples, Samples] | None:
        """Both sides with their class counts; None without annotations, or on a minibatch grid."""
        annotations = [self.annotations_table(side) for side in SIDES]
        if any(table is None for table in annotations) or self.recipe.rsm.batch_size is not None:
            return None
        queries, database = describe_samples([self.samples_table(side) for side in SIDES], annotations)
        return queries, database

    def _n_tiles(self) -> int:
        """Tiles that the reductions of every model read."""
        grids = [grid_of(self._open_rsm(model)) for model in self.recipe.representations]
        return sum(grid.n_tiles for grid in grids) * len(self._invariances)

    def _retrieval(
        self, sides: tuple[Samples, Samples] | None, map_strips: MapStrips
    ) -> tuple[list[pa.Table], dict[str, pa.Table]]:
        """Retrieval figures of every model, and what was retrieved; nothing without annotations."""
        figures = []
        neighbours = {model.name: NEIGHBOURS.empty_table() for model in self.recipe.representations}
        for model in self.recipe.representations if sides is not None else ():
            assert sides is not None
            with progress(f"Retrieval with {model.name}", "tiles", quiet=self.quiet) as report:
                found = retrieve(
                    self._open_rsm(model),
                    *sides,
                    representation=model.name,
                    invariances=self._invariances,
                    kernel_names=self.recipe.retrieval.kernels,
                    top_k=self.recipe.retrieval.top_k,
                    sigma=self.recipe.sigma,
                    report=report,
                    map_strips=map_strips,
                )
            figures.append(found.summary)
            neighbours[model.name] = found.neighbours
        return figures, neighbours

    def _cka(self, map_strips: MapStrips) -> pa.Table:
        """CKA of every pair of representations under the same invariance, and of every invariance with the baseline."""
        rows: list[Mapping[str, Any]] = []
        if self.recipe.queries is None:
            settings = self.recipe.cka
            pairs = self._cka_pairs()
            with progress("CKA", "pairs of RSMs", quiet=self.quiet) as report:
                for number, (first, second) in enumerate(pairs):
                    for kernel in settings.kernels:
                        left, right = (
                            StoredRsm(self._open_rsm(model), invariance, self.recipe.sigma, map_strips)
                            for model, invariance in (first, second)
                        )
                        rows.append(
                            {
                                "representation_1": first[0].name,
                                "invariance_1": first[1],
                                "representation_2": second[0].name,
                                "invariance_2": second[1],
                                "kernel": kernel,
                                "estimator": settings.estimator,
                                "value": stored_cka(left, right, kernel, settings.estimator),
                                "n_samples": left.grid.shape[0],
                            }
                        )
                    report(number + 1, len(pairs))
        return pa.Table.from_pylist(rows, CKA)

    def _cka_pairs(self) -> list[tuple[tuple[ModelSource, Any], tuple[ModelSource, Any]]]:
        """Which RSMs are compared."""
        models, invariances = self.recipe.representations, self._invariances
        across = [
            ((first, invariance), (second, invariance))
            for index, first in enumerate(models)
            for second in models[index + 1 :]
            for invariance in invariances
        ]
        within = [((model, invariances[0]), (model, invariance)) for model in models for invariance in invariances[1:]]
        return across + within

    def _reduction_inputs(self) -> dict[str, Any]:
        """Everything that the tables depend on."""
        annotations = {side: self.annotations_table(side) for side in SIDES}
        return {
            "rsm": {model.name: self._open_rsm(model).fingerprint for model in self.recipe.representations},
            "invariances": list(self._invariances),
            "annotations": {
                side: None if table is None else fingerprint(table.to_pydict()) for side, table in annotations.items()
            },
            "samples": {side: fingerprint(self.samples_table(side).select(_IDENTITY).to_pydict()) for side in SIDES},
            "reductions": REDUCTIONS,
            "settings": self.recipe.model_dump(mode="json", include={"sigma", "retrieval", "cka"}),
        }

    def _summary(self) -> dict[str, Any] | None:
        """The summary of an earlier run, if it and its tables can be read."""
        try:
            summary = json.loads((self.workdir / "results").get("summary.json"))
            for table in (self.retrieval_table, self.cka_table):
                table()
            for model in self.recipe.representations:
                self.neighbours_table(model)
            return cast("dict[str, Any]", summary)
        except (SemrsmError, ValueError):
            return None
