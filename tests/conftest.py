"""What several test modules need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from semrsm_dist.cli import main
from storage_schemas import ActivationStore

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

MakeActivations = Callable[..., ActivationStore]


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(12345)


@pytest.fixture
def make_activations(tmp_path: Path) -> MakeActivations:
    """Makes an activation store of given features, or of random ones."""

    def make(
        name: str = "a",
        features: NDArray[np.float32] | None = None,
        *,
        n_samples: int = 23,
        spatial_shape: tuple[int, int] | None = (2, 3),
        n_channels: int = 5,
        seed: int = 0,
        chunk_samples: int | None = 4,
        folder: Path | None = None,
    ) -> ActivationStore:
        if features is None:
            n_positions = 6 if spatial_shape is None else spatial_shape[0] * spatial_shape[1]
            shape = (n_samples, n_positions, n_channels)
            features = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        store = ActivationStore.create(
            str((folder or tmp_path) / f"{name}.zarr"),
            n_samples=features.shape[0],
            n_positions=features.shape[1],
            n_channels=features.shape[2],
            spatial_shape=spatial_shape,
            chunk_samples=chunk_samples,
            computed_from={"name": name, "seed": seed, "sum": float(features.sum())},
        )
        for index in range(store.n_chunks):
            store.write_chunk(index, features[store.chunk_slice(index)])
        return store

    return make


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, to compare stores to the bit."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(name="tree")
def tree_fixture() -> Callable[[Path], dict[str, bytes]]:
    """See :func:`tree`."""
    return tree


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"REAL DATA ABSENT: {SHARED / 'data'} is not there, so this test checks nothing")
    return SHARED


@dataclass
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


def refused(result: Result, *words: str) -> None:
    """Exit status 2, one sentence on stderr, no traceback."""
    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("semrsm: ")
    for word in words:
        assert word in last
