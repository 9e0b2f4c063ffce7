"""Whatever happens to a store, in any order: nothing damaged is read as data, and the next run computes what is bad, no more.

A crash is an exception at the moment of a write, after which nothing is tidied up: no event is written, no temporary file is
removed, and the lease stays behind as that of a process that has ended. Real SIGKILLs are in ``test_random_kills.py``.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from semrsm_dist.grid import TileKey
from semrsm_dist.matching import MatchingSettings
from semrsm_dist.reduction.stored import load_rsm
from semrsm_dist.runtime.dispatch import Attempt
from semrsm_dist.runtime.events import EventRecorder
from semrsm_dist.runtime.rsm_run import RsmRun, RsmSettings, RunSettings, create_rsm, run_rsm
from semrsm_dist.runtime.units import Unit
from storage_schemas import ActivationStore, RsmStore, SemrsmError, groups
from storage_schemas.lease import Holder
from storage_schemas.location import Location
from tests.conftest import tree

INVARIANCES = ("permutation", "pooled")
SETTINGS = RsmSettings(INVARIANCES, matching=MatchingSettings("optimal"), tile_size=3, store_upper_bound=True)
write_chunk = groups.write_selection
sweep = Location.sweep


class CrashError(BaseException):
    """The process is gone."""


def make_activations(path: Path, n_samples: int, seed: int) -> str:
    """Features of a few samples."""
    store = ActivationStore.create(
        str(path), n_samples=n_samples, n_positions=4, n_channels=3, computed_from={"seed": seed}, chunk_samples=2
    )
    features = np.random.default_rng(seed).standard_normal((n_samples, 4, 3)).astype(np.float32)
    for index in range(store.n_chunks):
        store.write_chunk(index, features[store.chunk_slice(index)])
    return str(store.location)


def unit_of(key: str) -> Unit | None:
    """The unit that a chunk belongs to, by its path in the store; None of the centre and of metadata."""
    array, *rest = key.split("/")
    if array not in ("inner_product", "upper_bound", "row_norms", "column_norms") or rest[1:2] != ["c"]:
        return None
    if array.endswith("norms"):
        return Unit(TileKey(int(rest[2]), 0), rest[0], array)  # type: ignore[arg-type]
    return Unit(TileKey(int(rest[2]), int(rest[3])), rest[0])  # type: ignore[arg-type]


class Adversity(RuleBasedStateMachine):
    """A store, and all that may happen to it."""

    folder: Path

    @initialize(symmetric=st.booleans(), finished=st.booleans())
    def begin(self, symmetric: bool, finished: bool) -> None:
        """An undisturbed store to compare with, and nothing or all of the other."""
        self.folder = Path(tempfile.mkdtemp())
        self.rows = make_activations(self.folder / "q.zarr", 8, 1)
        self.columns = None if symmetric else make_activations(self.folder / "d.zarr", 5, 2)
        self.out = self.folder / "whole.zarr"
        assert self.run().computed == 2 * (6 + 3 if symmetric else 6 + 3 + 2)
        self.whole = tree(self.out)
        self.chunks = sorted(key for key in self.whole if "/c/" in key)
        self.out = self.folder / "r.zarr"
        if finished:
            self.run()

    def teardown(self) -> None:
        """Whatever happened, the next run mends it."""
        try:
            self.resume()
        finally:
            shutil.rmtree(self.folder)

    def run(self, **how: Any) -> RsmRun:
        """What the command does."""
        job = create_rsm(self.rows, self.columns, str(self.out), SETTINGS)
        return run_rsm(job, INVARIANCES, RunSettings("serial"), **how)

    def there(self) -> dict[str, bytes]:
        """The files of the store."""
        return tree(self.out) if self.out.is_dir() else {}

    def present(self) -> list[str]:
        """Chunks that have a file."""
        return [key for key in self.chunks if (self.out / key).is_file()]

    def draw_chunk(self, data: st.DataObject) -> str:
        """A chunk that has a file, of each array as often."""
        present = self.present()
        array = data.draw(st.sampled_from(sorted({key.split("/c/")[0] for key in present})))
        return data.draw(st.sampled_from([key for key in present if key.startswith(f"{array}/c/")]))

    @rule(after=st.integers(1, 12))
    def interrupt(self, after: int) -> None:
        """Ctrl-C after some units: those are kept."""
        before, done = self.units_to_do(), 0

        def stop(attempt: Attempt) -> None:
            nonlocal done
            done += 1
            if done == after:
                raise KeyboardInterrupt

        try:
            self.run(on_attempt=stop)
        except KeyboardInterrupt:
            assert self.units_to_do() < before
            assert len(self.units_to_do()) <= len(before) - after  # a task has several units
        else:
            assert len(before) < after

    @rule(at=st.integers(0, 30), share=st.floats(0, 1), renamed=st.booleans())
    def crash(self, at: int, share: float, renamed: bool) -> None:
        """The process goes before or after a chunk gets its name; before, a part of it is in a temporary file."""
        writes, crashed = 0, False

        def write(location: Location, array: Any, values: Any, *selection: slice) -> None:
            nonlocal writes, crashed
            writes += 1
            if writes <= at:
                return write_chunk(location, array, values, *selection)
            crashed = True
            if renamed:
                write_chunk(location, array, values, *selection)
            else:
                index = [
                    part.start // size for part, size in zip(selection, array.chunks, strict=True) if part.start is not None
                ]
                chunk = Path(location.url, array.path, "c", *map(str, index or [0] * values.ndim))
                chunk.parent.mkdir(parents=True, exist_ok=True)
                data = values.tobytes()
                Path(f"{chunk}#1").write_bytes(data[: int(share * len(data))])
            raise CrashError

        with ExitStack() as stack:
            stack.enter_context(patch.object(groups, "write_selection", write))
            stack.enter_context(patch.object(EventRecorder, "flush", lambda recorder: None))
            stack.enter_context(patch.object(Location, "sweep", lambda place: 0 if crashed else sweep(place)))
            try:
                self.run()
            except CrashError:
                ended = Holder.this_process(60.0)
                self.lease.write_bytes(ended.to_json().replace(f'"{ended.started}"'.encode(), b'"1"'))

    @property
    def lease(self) -> Path:
        """Where the lease is."""
        return self.folder / "r.lease.json"

    @rule(data=st.binary(max_size=40))
    def leave_a_damaged_lease(self, data: bytes) -> None:
        """As after a loss of power."""
        self.lease.write_bytes(data)

    @precondition(lambda self: self.present())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        """A chunk loses its end."""
        path = self.out / self.draw_chunk(data)
        length = path.stat().st_size
        path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, max(length - 1, 0)))])

    @precondition(lambda self: self.present())
    @rule(data=st.data(), tail=st.binary(min_size=1, max_size=9))
    def lengthen(self, data: st.DataObject, tail: bytes) -> None:
        """A chunk gains something."""
        path = self.out / self.draw_chunk(data)
        path.write_bytes(path.read_bytes() + tail)

    @precondition(lambda self: self.present())
    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        """Bits turn over, in a few chunks."""
        for _ in range(data.draw(st.integers(1, 4))):
            path = self.out / self.draw_chunk(data)
            content = bytearray(path.read_bytes())
            if content:
                content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                path.write_bytes(content)

    @precondition(lambda self: self.present())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A chunk goes."""
        (self.out / self.draw_chunk(data)).unlink()

    @precondition(lambda self: len(self.there()) > 1)
    @rule(data=st.data())
    def damage_metadata(self, data: st.DataObject) -> None:
        """An array's metadata is cut off; the run says which file to delete, and it is deleted."""
        arrays = [key for key in self.there() if key.endswith("/zarr.json") and key in self.whole]
        if arrays:
            path = self.out / data.draw(st.sampled_from(arrays))
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, 300))])
            for _ in range(2):
                try:
                    self.run(on_attempt=self.stop_at_once)
                except SemrsmError as error:
                    assert str(path.parent) in str(error)  # noqa: PT017 - one of three ways to end
                    path.unlink()
                except KeyboardInterrupt:
                    break

    @staticmethod
    def stop_at_once(attempt: Attempt) -> None:
        raise KeyboardInterrupt

    @rule()
    def read(self) -> None:
        """What is read is what an undisturbed store holds, or it is not read."""
        try:
            store = RsmStore.open(str(self.out))
        except SemrsmError:
            return
        reference = RsmStore.open(str(self.folder / "whole.zarr"))
        for unit in {unit_of(key) for key in self.chunks} - {None}:
            assert unit is not None
            readers = ["read_tile", "read_upper_bounds"][: 1 + (unit.invariance == "permutation")]
            arguments: tuple[Any, ...] = (unit.invariance, unit.key.row, unit.key.column)
            if unit.part != "tile":
                readers, arguments = ["read_norm_block"], (unit.invariance, unit.part.removesuffix("_norms"), unit.key.row)
            for reader in readers:
                try:
                    found = getattr(store, reader)(*arguments)
                except SemrsmError:
                    continue
                np.testing.assert_array_equal(found, getattr(reference, reader)(*arguments))
        for invariance in INVARIANCES:
            try:
                loaded = load_rsm(str(self.out), invariance).inner_product
            except SemrsmError:
                continue
            np.testing.assert_array_equal(loaded, load_rsm(str(self.folder / "whole.zarr"), invariance).inner_product)

    def units_to_do(self) -> set[Unit]:
        """Units of which a chunk is not what it should be, by comparing bytes."""
        there = self.there()
        return {unit for key in self.chunks if there.get(key) != self.whole[key] and (unit := unit_of(key)) is not None}

    @rule()
    def resume(self) -> None:
        """The same command: computes what is missing or damaged and no more, and the bytes are those of an undisturbed run."""
        to_do = self.units_to_do()
        untouched = {key: (self.out / key).stat() for key in self.present() if unit_of(key) not in {*to_do, None}}
        done: list[Unit] = []
        run = self.run(on_attempt=lambda attempt: done.append(attempt.unit))
        assert not run.set_aside
        assert set(done) == to_do
        assert run.computed == len(done) == len(to_do)
        assert self.there() == self.whole
        for key, before in untouched.items():
            after = (self.out / key).stat()
            assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
        assert not (to_do and self.lease.exists())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestAdversity(Adversity.TestCase):  # type: ignore[misc]
    """Runs the machine."""

    settings = settings(
        max_examples=55,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
