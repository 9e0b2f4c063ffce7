"""The mean that is subtracted: its order of summation, its accuracy, and its memory."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from semrsm_dist.names import Centring
from semrsm_dist.runtime.rsm_run import RsmSettings, create_rsm
from semrsm_dist.tile import CentreAccumulator
from storage_schemas import ActivationStore, RsmStore


def centre(values: NDArray[Any], block_samples: int, centring: Centring = "position") -> NDArray[np.float64]:
    """The centre of samples that come in blocks."""
    accumulator = CentreAccumulator(centring)
    for start in range(0, len(values), block_samples):
        accumulator.add(values[start : start + block_samples])
    result = accumulator.result()
    assert result is not None
    return result


def exact_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over samples, whose sum is rounded once."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.array([math.fsum(column) / len(values) for column in flat.T.tolist()]).reshape(values.shape[1:])


def spread(shape: tuple[int, ...], decades: float = 8) -> NDArray[np.float32]:
    """Values of which a float64 cannot hold the sum: from 10⁻⁸ to 10⁸, of both signs."""
    random = np.random.default_rng(0)
    return (random.standard_normal(shape) * 10.0 ** random.uniform(-decades, decades, shape)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(301, 2, 1), (301, 1, 2), (77, 5, 3), (9, 40, 33)])
@pytest.mark.parametrize("block_samples", [1, 8, 100])
def test_samples_are_added_one_by_one_in_each_block(dtype: Any, shape: tuple[int, ...], block_samples: int) -> None:
    values = spread(shape, 2 if dtype == np.float16 else 8).astype(dtype)
    total = np.zeros(shape[1:])
    for start in range(0, len(values), block_samples):
        block = values[start].astype(np.float64)
        for sample in values[start + 1 : start + block_samples]:
            block = block + sample
        total = total + block
    np.testing.assert_array_equal(centre(values, block_samples), total / len(values))


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e6, 1), (-3e4, 1e-2), (0, 1e5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_mean_of_values_of_like_magnitude_is_exact_whatever_the_blocks(offset: float, scale: float, dtype: Any) -> None:
    values = offset + scale * np.random.default_rng(0).standard_normal((20_000, 2, 4))
    values = np.clip(values, -6e4, 6e4).astype(dtype) if dtype == np.float16 else values.astype(dtype)
    expected = exact_mean(values)
    for block_samples in (1, 7, 50, 20_000):
        np.testing.assert_array_equal(centre(values, block_samples), expected)
    np.testing.assert_array_equal(centre(values, 50, "channel"), (expected[0] + expected[1]) / 2)


@pytest.mark.parametrize("block_samples", [1, 25, 100])
def test_the_mean_is_as_good_as_float64_where_it_cannot_be_exact(block_samples: int) -> None:
    values = spread((20_000, 1, 16))
    error = np.abs(centre(values, block_samples) - exact_mean(values))
    assert (error <= 16 * np.finfo(np.float64).eps * np.abs(values.astype(np.float64)).mean(axis=0)).all()
    naive = np.abs(np.add.reduce(values, axis=0, dtype=np.float32) / len(values) - exact_mean(values))
    assert naive.max() > 1e6 * error.max()  # so that the bound says something


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_rsm_has_the_mean_of_what_its_database_stores(tmp_path: Path, dtype: str) -> None:
    values = (100 + np.random.default_rng(0).standard_normal((23, 6, 5))).astype(np.float32)
    store = ActivationStore.create(
        str(tmp_path / "d.zarr"),
        n_samples=23,
        n_positions=6,
        n_channels=5,
        dtype=dtype,
        chunk_samples=4,
        computed_from={"name": dtype},
    )
    for index in range(store.n_chunks):
        store.write_chunk(index, values[store.chunk_slice(index)])
    told: list[tuple[int, int]] = []
    job = create_rsm(
        str(store.location), None, str(tmp_path / "r.zarr"), RsmSettings(), lambda done, total: told.append((done, total))
    )
    np.testing.assert_array_equal(RsmStore.open(job.out).read_centre(), exact_mean(values.astype(dtype)))
    assert told == [(4, 23), (8, 23), (12, 23), (16, 23), (20, 23), (23, 23)]


def test_memory_does_not_grow_with_the_database(tmp_path: Path) -> None:
    peaks = []
    for n_chunks in (4, 40):
        store = ActivationStore.create(
            str(tmp_path / f"{n_chunks}.zarr"),
            n_samples=10 * n_chunks,
            n_positions=64,
            n_channels=400,
            chunk_samples=10,
            computed_from={"n": n_chunks},
        )
        for index in range(n_chunks):
            store.write_chunk(index, np.full((10, 64, 400), index + 1, dtype=np.float32))  # 1 MB
        tracemalloc.start()
        accumulator = CentreAccumulator("position")
        for _, block in store.blocks():
            accumulator.add(block)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert float(accumulator.result().mean()) == (n_chunks + 1) / 2  # type: ignore[union-attr]
    assert peaks[0] > 1e6
    assert peaks[1] < 1.2 * peaks[0]
