"""The command line as a person meets it: help, results, and one sentence with exit status 2 for each mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from semrsm_dist.cli import semrsm
from semrsm_dist.demo.scenes import write_scenes
from storage_schemas import ActivationStore, RsmStore
from storage_schemas.lease import Lease
from storage_schemas.location import Location
from tests.conftest import Run, refused

NETWORK = Path(__file__).parents[1] / "semrsm_dist" / "demo" / "network"
Make = Callable[..., ActivationStore]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rendered scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, n_queries=5, n_database=11, seed=3)
    return folder


def write_recipe(folder: Path, scenes: Path, **changes: object) -> Path:
    """A recipe over the scenes with the demo's network, run serially."""
    values = {
        "name": "scenes",
        "workdir": "work",
        "queries": {"images": str(scenes / "images"), "annotations": str(scenes / "query.json")},
        "database": {"images": str(scenes / "images"), "annotations": str(scenes / "database.json")},
        "models": [{"name": "net", "model": str(NETWORK)}],
        "rsm": {"tile_size": 4, "matching": {"method": "optimal"}},
        "retrieval": {"top_k": [1, 3]},
        "runtime": {"executor": "serial"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


@pytest.mark.parametrize("verb", sorted(semrsm.commands))
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.status == 0
    assert f"Example:   semrsm {verb}" in result.out


def test_a_recipe_runs_from_images_to_the_report_and_again_does_nothing(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes)
    first = run("run", recipe)
    assert first.status == 0, first.err
    assert "Retrieval with net, 5 queries" in first.out
    assert "Plan of net:" in first.err
    work = tmp_path / "work"
    for name in ("report.html", "results/summary.json", "results/retrieval.parquet", "figures/rsm-net.png"):
        assert (work / name).stat().st_size > 100
    assert (work / "annotations/queries.parquet").is_file()
    assert (work / "activations/net.database.samples.parquet").is_file()
    before = {path: path.stat().st_mtime_ns for path in (work / "rsm" / "net.zarr").rglob("*") if path.is_file()}
    second = run("run", recipe)
    assert second.status == 0
    assert "0 of" in second.err
    assert "Tables: up to date." in second.err
    assert second.out == first.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_life_of_a_run_verb_by_verb(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes)
    assert "not started" in run("status", recipe).out
    refused(run("verify", recipe), "There is no Zarr store")
    plan = json.loads(run("plan", recipe, "--json").out)["net"]
    assert (plan["n_tiles"], plan["n_missing"], plan["shape"]) == (18, 18, [5, 11])
    refused(run("report", recipe), "use `semrsm run` to finish it")
    summary = json.loads(run("run", recipe, "--json").out)
    assert {row["invariance"] for row in summary["retrieval"]} == {"none", "permutation", "pooled"}
    status = json.loads(run("status", recipe, "--json").out)
    assert all(row["done"] == row["planned"] > 0 for row in status)
    assert run("verify", recipe).status == 0
    tile = tmp_path / "work/rsm/net.zarr/inner_product/permutation/c/1/2"
    data = bytearray(tile.read_bytes())
    data[5] ^= 16
    tile.write_bytes(data)
    damaged = run("verify", recipe)
    assert damaged.status == 1
    assert "tile (1, 2) under permutation" in damaged.out
    assert run("run", recipe).status == 0
    assert run("verify", recipe).status == 0
    assert run("report", recipe).status == 0


def test_verify_finds_what_is_wrong_and_repairs_it(
    run: Run, scenes: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = write_recipe(tmp_path, scenes)
    assert run("run", recipe).status == 0
    path = tmp_path / "work/rsm/net.zarr"
    whole = tree(path)
    store = RsmStore.open(str(path), writable=True)
    store.write_tile("permutation", 0, 1, store.read_tile("permutation", 0, 1) * 1.01)  # no checksum tells
    (path / "inner_product/none/c/1/2").unlink()
    norms = path / "row_norms/pooled/c/0"
    norms.write_bytes(bytes(reversed(norms.read_bytes())))
    assert "2 missing, damaged or wrong" in run("verify", recipe, "--sample", "0").out
    found = run("verify", recipe, "--sample", "200")
    assert found.status == 1
    assert "3 missing, damaged or wrong" in found.out
    assert "tile (0, 1) under permutation: samples " in found.out
    assert "verify" in found.out.splitlines()[-1] and "--repair" in found.out.splitlines()[-1]
    assert tree(path) != whole
    repaired = json.loads(run("verify", recipe, "--sample", "200", "--repair", "--json").out)
    assert repaired["damaged"] == 0
    assert repaired["models"]["net"]["repaired"] == [
        "row norms 0 under pooled",
        "tile (0, 1) under permutation",
        "tile (1, 2) under none",
    ]
    assert repaired["models"]["net"]["largest_deviation"]["permutation"] < 1e-6
    assert tree(path) == whole
    plain = run("verify", recipe)
    assert plain.status == 0
    assert "every one is present and whole" in plain.out
    assert "permutation: 20 pairs recomputed, largest deviation " in plain.out


def test_a_published_store_is_read_by_the_verbs_that_read_its_source(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes, queries=None)
    assert run("run", recipe).status == 0
    source, out = tmp_path / "work/rsm/net.zarr", tmp_path / "public/net.zarr"
    result = run("finalise", source, "--out", out, "--shard-tiles", 2)
    assert result.status == 0, result.err
    assert "11 × 11 under none, permutation, pooled, every value compared with" in result.out
    assert json.loads(run("finalise", source, "--out", out, "--shard-tiles", 2, "--json").out)["shape"] == [11, 11]
    annotations = ("--annotations", scenes / "database.json", "--json")
    for verb in ("retrieve", "cka"):
        stores = [[each] * (2 if verb == "cka" else 1) for each in (source, out)]
        more = annotations if verb == "retrieve" else ("--invariance2", "none", "--json")
        mine, other = (json.loads(run(verb, *each, *more).out) for each in stores)
        assert mine == other
    (source / "inner_product/none/c/0/1").unlink()
    refused(run("finalise", source, "--out", tmp_path / "new.zarr"), "lacks 1 parts (tile (0, 1) under none)")
    refused(run("finalise", tmp_path / "nothing.zarr", "--out", out), "There is no Zarr store")


def test_a_store_that_another_run_is_writing_is_refused(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes)
    assert run("run", recipe).status == 0
    location = Location.of(tmp_path / "work/rsm/net.zarr")
    with Lease(location):
        assert run("run", recipe).status == 0  # a finished one is only read
        location.delete("inner_product/none/c/0/0")
        refused(run("run", recipe), "net.zarr is in use by process", "its lease expires in", " s unless it is renewed")
        refused(run("verify", recipe, "--repair"), "is in use by process")
    assert run("run", recipe).status == 0


def test_tables_follow_the_samples_they_were_computed_from(run: Run, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    recipe = write_recipe(tmp_path, tmp_path / "scenes")
    before = json.loads(run("run", recipe, "--json").out)["retrieval"]
    neighbours = pq.read_table(tmp_path / "work/results/net.neighbours.parquet").to_pylist()
    best = next(row for row in neighbours if row["invariance"] == "none" and row["rank"] == 1)
    for name, sample_id in (("query", best["query_id"]), ("database", best["database_id"])):
        path = tmp_path / f"scenes/{name}.json"
        coco = json.loads(path.read_text())
        for image in coco["images"]:
            if image["file_name"] == sample_id:
                image["video_id"] = 7  # from now on they are of one video
        path.write_text(json.dumps(coco))
    after = json.loads(run("run", recipe, "--json").out)["retrieval"]
    assert after != before
    found = pq.read_table(tmp_path / "work/results/net.neighbours.parquet").to_pylist()
    assert (best["query_id"], best["database_id"]) not in {(row["query_id"], row["database_id"]) for row in found}


@pytest.mark.parametrize("before_the_centre", [True, False])
def test_damaged_activations_are_extracted_again(
    run: Run, scenes: Path, tmp_path: Path, before_the_centre: bool, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = write_recipe(tmp_path, scenes)
    assert run("run", recipe).status == 0
    rsm, activations = tmp_path / "work/rsm/net.zarr", tmp_path / "work/activations/net.database.zarr"
    whole = {**tree(rsm), **tree(activations)}
    if before_the_centre:
        shutil.rmtree(rsm)
    else:
        (rsm / "inner_product/none/c/0/0").unlink()
    path = activations / "features/c/0/0/0"
    path.write_bytes(path.read_bytes()[:-7])
    again = run("run", recipe)
    assert again.status == 0, again.err
    assert "is damaged; it is extracted again" in again.err
    assert {**tree(rsm), **tree(activations)} == whole


def test_without_queries_the_database_is_compared_with_itself_and_cka_is_computed(
    run: Run, scenes: Path, tmp_path: Path
) -> None:
    models = [{"name": name, "model": str(NETWORK), "image_size": size} for name, size in (("small", 48), ("large", 80))]
    recipe = write_recipe(tmp_path, scenes, queries=None, models=models, cka={"kernels": ["linear"]})
    summary = json.loads(run("run", recipe, "--json").out)
    assert {row["n_queries"] for row in summary["retrieval"]} == {11}
    pairs = {
        (row["representation_1"], row["invariance_1"], row["representation_2"], row["invariance_2"]) for row in summary["cka"]
    }
    assert ("small", "permutation", "large", "permutation") in pairs
    assert ("small", "none", "small", "pooled") in pairs
    rsm = tmp_path / "work/rsm"
    result = json.loads(run("cka", rsm / "small.zarr", rsm / "large.zarr", "--json").out)
    expected = next(
        row for row in summary["cka"] if row["representation_2"] == "large" and row["invariance_2"] == "permutation"
    )
    assert result["cka"] == expected["value"]
    assert "CKA 0." in run("cka", rsm / "small.zarr", rsm / "large.zarr").out


def test_arrays_go_from_import_to_retrieval(run: Run, tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tmp_path / "arrays.npz"
    names = np.array([f"folder/img_{i}.png" for i in range(9)])
    roles = np.array(["query"] * 3 + ["db"] * 6)
    np.savez(arrays, features=rng.standard_normal((9, 4, 2, 3)).astype("f4"), files=names, role=roles)
    for role in ("query", "db"):
        result = run("import", arrays, "--where", f"role={role}", "--sample-id", "files", "--out", tmp_path / f"{role}.zarr")
        assert result.status == 0, result.err
        assert "S = 6, C = 4" in result.out
    common = ("rsm", "--rows", tmp_path / "query.zarr", "--columns", tmp_path / "db.zarr", "--out", tmp_path / "r.zarr")
    result = run(*common, "--executor", "serial", "--invariance", "translation", "--invariance", "none", "--json")
    assert json.loads(result.out)["set_aside"] == {}
    coco = {
        "images": [{"id": i, "file_name": f"img_{i}.jpg"} for i in range(9)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(9)],
        "categories": [{"id": 0, "name": "zero"}, {"id": 1, "name": "one"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    result = run(
        "retrieve", tmp_path / "r.zarr", "--annotations", tmp_path / "coco.json", "--out", tmp_path / "results", "--json"
    )
    rows = json.loads(result.out)
    assert {(row["invariance"], row["kernel"]) for row in rows} == {
        (invariance, kernel) for invariance in ("none", "translation") for kernel in ("cosine", "linear", "rbf")
    }
    assert (tmp_path / "results/neighbours.parquet").is_file()
    twice = run("retrieve", tmp_path / "r.zarr", *["--annotations", tmp_path / "coco.json"] * 2, "--json")
    assert json.loads(twice.out) == rows
    coco["images"] = coco["images"][:5]
    coco["annotations"] = coco["annotations"][:5]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    refused(run("retrieve", tmp_path / "r.zarr", "--annotations", tmp_path / "coco.json"), "4 of 6 samples have no annotations")
    refused(run("retrieve", tmp_path / "r.zarr", "--annotations", tmp_path / "coco.json", "--sigma", "x"), "--sigma is 'x'")


def test_the_schema_is_json(run: Run) -> None:
    assert "workdir" in json.loads(run("schema").out)["properties"]


def test_misused_options_exit_with_2(run: Run) -> None:
    result = run("rsm", "--rows", "x")
    assert result.status == 2
    assert "Missing option '--out'" in result.err
    assert run("nonsense").status == 2


def test_a_refused_run_leaves_the_annotations_of_the_first(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes)
    assert run("run", recipe).status == 0
    before = (tmp_path / "work/annotations/database.parquet").read_bytes()
    coco = json.loads((scenes / "database.json").read_text())
    coco["images"] = coco["images"][:8]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [each for each in coco["annotations"] if each["image_id"] in kept]
    (tmp_path / "half.json").write_text(json.dumps(coco))
    half = {"images": str(scenes / "images"), "annotations": str(tmp_path / "half.json")}
    refused(run("run", write_recipe(tmp_path, scenes, database=half)), "was computed from something else")
    assert (tmp_path / "work/annotations/database.parquet").read_bytes() == before


def test_lost_tables_are_computed_again(run: Run, scenes: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, scenes)
    first = run("run", recipe)
    (tmp_path / "work/results/retrieval.parquet").unlink()
    again = run("run", recipe)
    assert (again.status, again.out) == (0, first.out)


def test_the_demo_does_not_write_into_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(run("demo", "--workdir", tmp_path / "file"), "file")


class TestMistakes:
    """Each bad input of a run: one sentence, exit status 2, nothing lost."""

    def test_a_recipe_that_is_not_there(self, run: Run, tmp_path: Path) -> None:
        refused(run("run", tmp_path / "x.yaml"), "There is no recipe", "check the path")

    def test_an_unknown_key_of_a_recipe(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        refused(run("run", write_recipe(tmp_path, scenes, retreival={})), "unknown key retreival; did you mean retrieval?")

    def test_a_missing_image_folder(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, scenes, database={"images": "nowhere"}, queries=None)
        refused(run("run", recipe), "nowhere")

    def test_a_missing_annotation_file(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        source = {"images": str(scenes / "images"), "annotations": "x.json"}
        refused(run("run", write_recipe(tmp_path, scenes, database=source)), "There is no annotation file")

    def test_an_unreadable_image_keeps_what_was_extracted(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for index in range(110):  # two chunks
            Image.new("RGB", (80, 80), (index, 0, 0)).save(folder / f"{index:03}.png")
        data = (folder / "109.png").read_bytes()
        (folder / "109.png").write_bytes(data[: len(data) // 2])
        models = [{"name": "net", "model": str(NETWORK), "batch_size": 10}]
        recipe = write_recipe(tmp_path, scenes, database={"images": "images"}, queries=None, models=models, rsm={})
        refused(run("run", recipe), "109.png")
        chunks = tmp_path / "work/activations/net.database.zarr/features/c"
        kept = {path: path.stat().st_mtime_ns for path in chunks.rglob("0")}
        assert kept
        (folder / "109.png").write_bytes(data)  # mended: nothing had been extracted from it, so the store goes on
        assert run("run", recipe).status == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        Image.new("RGB", (80, 80), (9, 9, 9)).save(folder / "000.png")  # but an image that is in the store may not change
        refused(run("run", recipe), "samples is")

    def test_an_image_outside_the_root(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        coco = json.loads((scenes / "database.json").read_text())
        coco["images"][0]["file_name"] = "../../secret.png"
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        source = {"images": str(scenes / "images"), "annotations": str(tmp_path / "coco.json")}
        refused(run("run", write_recipe(tmp_path, scenes, database=source)), "image outside the root named by an annotation")

    def test_a_model_folder_without_weights(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        model = tmp_path / "network"
        model.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            (model / name).write_bytes((NETWORK / name).read_bytes())
        recipe = write_recipe(tmp_path, scenes, models=[{"name": "net", "model": "./network"}])
        refused(run("run", recipe), "network", "model.safetensors")

    def test_a_model_that_is_not_there(self, run: Run, scenes: Path, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, scenes, models=[{"name": "net", "model": "./nothing"}])
        refused(run("run", recipe), "nothing")

    def test_stores_of_different_shapes(self, run: Run, make_activations: Make, tmp_path: Path) -> None:
        rows, columns = make_activations("q"), make_activations("d", n_channels=4)
        result = run("rsm", "--rows", rows.location, "--columns", columns.location, "--out", tmp_path / "r.zarr")
        refused(result, "5 channels", "has 4", "same layer")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_arrays_that_are_not_finite(self, run: Run, tmp_path: Path, bad: float) -> None:
        features = np.zeros((3, 4, 2), dtype=np.float32)
        features[1, 2, 0] = bad
        np.savez(tmp_path / "x.npz", features=features)
        refused(run("import", tmp_path / "x.npz", "--out", tmp_path / "x.zarr"), "NaN")

    def test_translation_without_a_map(self, run: Run, make_activations: Make, tmp_path: Path) -> None:
        store = make_activations(spatial_shape=None)
        result = run("rsm", "--rows", store.location, "--out", tmp_path / "r.zarr", "--invariance", "translation")
        refused(result, "H×W map")

    def test_a_store_of_another_version(self, run: Run, make_activations: Make, tmp_path: Path) -> None:
        store = make_activations()
        path = Path(store.location.url, "zarr.json")
        path.write_text(path.read_text().replace('"version": 1', '"version": 7'))
        refused(run("rsm", "--rows", store.location, "--out", tmp_path / "r.zarr"), "version 7 of the activations schema")

    def test_the_same_store_with_another_configuration(self, run: Run, make_activations: Make, tmp_path: Path) -> None:
        store = make_activations()
        common = ("rsm", "--rows", store.location, "--out", tmp_path / "r.zarr", "--executor", "serial")
        assert run(*common).status == 0
        refused(run(*common, "--centring", "channel"), 'centring is "position" in the store and "channel" now')
        assert "0 of" in run(*common).out

    def test_a_cluster_that_is_not_there(self, run: Run, make_activations: Make, tmp_path: Path) -> None:
        store = make_activations()
        common = ("rsm", "--rows", store.location, "--out", tmp_path / "r.zarr")
        refused(run(*common, "--address", "nonsense"), "There is no Ray cluster at nonsense")
