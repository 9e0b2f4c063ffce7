"""A thousand random single-bit flips over the chunks of stores: all found, all repaired, none returned as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from semrsm_dist.extraction.arrays import import_arrays
from semrsm_dist.grid import TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.runtime.audit import audit_store
from semrsm_dist.runtime.inventory import damaged_units, grid_of
from semrsm_dist.runtime.rsm_run import RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, RsmStore, SemrsmError

TILE_FLIPS, ACTIVATION_FLIPS, CENTRE_FLIPS = 600, 350, 50
AT_ONCE = 12
INVARIANCES = ("none", "permutation", "pooled")
Make = Callable[..., ActivationStore]
Tree = Callable[[Path], dict[str, bytes]]


def flip(path: Path, random: np.random.Generator) -> None:
    """Invert one random bit of a file."""
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def batches(chunks: list[Path], n_flips: int, random: np.random.Generator) -> Iterator[list[Path]]:
    """Random chunks, several different ones at a time, ``n_flips`` in all."""
    left = n_flips
    while left:
        count = min(AT_ONCE, left, len(chunks))
        left -= count
        yield [chunks[index] for index in random.choice(len(chunks), count, replace=False)]


def unit_of(store: RsmStore, chunk: Path) -> Unit:
    """The unit that wrote a chunk."""
    array, invariance, *_ = chunk.relative_to(str(store.location)).parts
    part = array if array.endswith("norms") else "tile"
    index = [int(name) for name in chunk.relative_to(str(store.location)).parts[3:]]
    return Unit(TileKey(index[0], index[1] if part == "tile" else 0), invariance, part)  # type: ignore[arg-type]


def read(store: RsmStore, chunk: Path) -> None:
    """Read what a chunk holds, with the store's own function."""
    unit = unit_of(store, chunk)
    if unit.part == "tile":
        reader = store.read_upper_bounds if "upper_bound" in chunk.parts else store.read_tile
        reader(unit.invariance, unit.key.row, unit.key.column)
    else:
        store.read_norm_block(unit.invariance, "row" if unit.part == "row_norms" else "column", unit.key.row)


@pytest.mark.parametrize("symmetric", [True, False])
def test_flips_in_tiles_and_norms(make_activations: Make, tmp_path: Path, tree: Tree, symmetric: bool) -> None:
    rows = make_activations("q", n_samples=17, seed=1)
    columns = None if symmetric else make_activations("d", n_samples=13, seed=2)
    out = tmp_path / "r.zarr"
    settings = RsmSettings(INVARIANCES, matching=MatchingSettings("optimal"), tile_size=5, store_upper_bound=True)
    job = create_rsm(str(rows.location), columns and str(columns.location), str(out), settings)
    run_rsm(job, INVARIANCES, RunSettings("serial"))
    whole = tree(out)
    random = np.random.default_rng(int(symmetric))
    chunks = sorted(path for path in out.glob("*/*/c/**/*") if path.is_file())
    assert len({path.relative_to(out).parts[:2] for path in chunks}) == len(INVARIANCES) * (2 if symmetric else 3) + 1
    flips = 0
    for flipped in batches(chunks, TILE_FLIPS // 2, random):
        for chunk in flipped:
            flip(chunk, random)
            flips += 1
        store = RsmStore.open(str(out))
        for chunk in flipped:
            with pytest.raises(SemrsmError, match="damaged"):
                read(store, chunk)
        units = {unit_of(store, chunk) for chunk in flipped}
        assert set(damaged_units(store, INVARIANCES)) == units
        assert set(audit_store(store, INVARIANCES, n_pairs=0).bad) == units
        assert run_rsm(job, INVARIANCES, RunSettings("serial")).computed == len(units)
        assert tree(out) == whole
    assert flips == TILE_FLIPS // 2


def test_flips_in_the_centre(make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    rows, out = make_activations("q", n_samples=7), tmp_path / "r.zarr"
    settings = RsmSettings(("none",), tile_size=5)
    run_rsm(create_rsm(str(rows.location), None, str(out), settings), ("none",), RunSettings("serial"))
    whole, random = tree(out), np.random.default_rng(2)
    for _ in range(CENTRE_FLIPS):
        flip(out / "centre/c/0/0", random)
        with pytest.raises(SemrsmError, match="damaged"):
            RsmStore.open(str(out)).read_centre()
        job = create_rsm(str(rows.location), None, str(out), settings)
        assert run_rsm(job, ("none",), RunSettings("serial")).computed == 0
        assert tree(out) == whole


def test_flips_in_activations(tmp_path: Path, tree: Tree) -> None:
    """Repaired by the steps of an extraction: damaged chunks are deleted, missing ones are written."""
    random = np.random.default_rng(3)
    features, logits = random.standard_normal((46, 6, 5)).astype(np.float32), random.standard_normal((46, 7)).astype(np.float32)
    features[8:20] = 0.0  # what compresses well has other headers
    store = ActivationStore.create(
        str(tmp_path / "a.zarr"),
        n_samples=46,
        n_positions=6,
        n_channels=5,
        n_classes=7,
        computed_from={},
        chunk_samples=4,
    )

    def fill() -> list[int]:
        missing = store.missing_chunks()
        for index in missing:
            store.write_chunk(index, features[store.chunk_slice(index)], logits[store.chunk_slice(index)])
        return missing

    assert fill() == list(range(12))
    out = tmp_path / "a.zarr"
    whole, flips = tree(out), 0
    chunks = sorted(path for path in out.glob("*/c/**/*") if path.is_file())
    assert len(chunks) == 2 * 12
    for flipped in batches(chunks, ACTIVATION_FLIPS, random):
        for chunk in flipped:
            flip(chunk, random)
            flips += 1
        found, bad = ActivationStore.open(str(out)), set()
        for chunk in flipped:
            index = int(chunk.relative_to(out).parts[2])
            part = found.chunk_slice(index)
            with pytest.raises(SemrsmError, match="damaged"):
                (found.read_logits if "logits" in chunk.parts else found.read)(part.start, part.stop)
            bad.add(index)
        assert found.damaged_chunks() == sorted(bad)
        for index in bad:
            found.delete_chunk(index)
        assert fill() == sorted(bad)
        assert tree(out) == whole
    assert flips == ACTIVATION_FLIPS


def test_an_import_repairs_flips(tmp_path: Path, tree: Tree) -> None:
    random = np.random.default_rng(4)
    np.savez(tmp_path / "a.npz", features=random.standard_normal((9, 6, 5)).astype(np.float32))
    import_arrays(tmp_path / "a.npz", str(tmp_path / "a.zarr"))
    whole = tree(tmp_path / "a.zarr")
    for _ in range(20):
        flip(tmp_path / "a.zarr/features/c/0/0/0", random)
        import_arrays(tmp_path / "a.npz", str(tmp_path / "a.zarr"))
        assert tree(tmp_path / "a.zarr") == whole


def test_flips_in_activations_are_not_computed_with(make_activations: Make, tmp_path: Path, tree: Tree) -> None:
    rows = make_activations("q", n_samples=17)
    settings = RsmSettings(("permutation",), matching=MatchingSettings("optimal"), tile_size=5)
    job = create_rsm(str(rows.location), None, str(tmp_path / "whole.zarr"), settings)
    assert run_rsm(job, ("permutation",), RunSettings("serial")).computed == 10 + 4
    job = create_rsm(str(rows.location), None, str(tmp_path / "r.zarr"), settings)
    chunk = Path(str(rows.location)) / "features/c/2/0/0"  # samples 8 to 11: of the blocks 1 and 2
    before = chunk.read_bytes()
    flip(chunk, np.random.default_rng(5))
    run = run_rsm(job, ("permutation",), RunSettings("serial"))
    touched = {unit for unit in run.set_aside if unit.part == "tile"}
    assert touched == {
        Unit(key, "permutation") for key in grid_of(RsmStore.open(job.out)).tile_keys() if {1, 2} & {key.row, key.column}
    }
    assert all("features is damaged" in reason for reason in run.set_aside.values())
    assert run.computed == 10 + 4 - len(run.set_aside)
    chunk.write_bytes(before)
    assert run_rsm(job, ("permutation",), RunSettings("serial")).computed == len(run.set_aside)
    whole, found = tree(tmp_path / "whole.zarr"), tree(tmp_path / "r.zarr")
    assert found == whole
