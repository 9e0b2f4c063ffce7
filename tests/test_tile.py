"""A tile computed block by block has the bits of one computed at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from semrsm_dist.matching import MatchingSettings, alignment
from semrsm_dist.matching.panels import PANEL, inner_products_of_rows
from semrsm_dist.names import Invariance
from semrsm_dist.tile import compute_tile, compute_tile_in_blocks

SETTINGS = {
    "optimal": MatchingSettings("optimal"),
    "windows": MatchingSettings("batch_optimal", window=5),
    "bfloat16": MatchingSettings("batch_optimal", window=5, affinity="bfloat16"),
    "greedy": MatchingSettings("greedy"),
    "topk_greedy": MatchingSettings("topk_greedy", k=3),
    "scipy": MatchingSettings("optimal", solver="scipy"),
}
CASES: list[tuple[Invariance, str]] = [("none", "optimal"), ("pooled", "optimal"), ("translation", "optimal")]
CASES += [("permutation", name) for name in SETTINGS]


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("invariance", "method"), CASES)
@pytest.mark.parametrize(("shape", "n_channels"), [((60, 60), 37), ((51, 75), 300), ((26, 7), 5)])
def test_blocks_have_the_bits_of_the_whole(
    invariance: Invariance, method: str, shape: tuple[int, int], n_channels: int, same: bool
) -> None:
    random = np.random.default_rng(0)
    rows: NDArray[np.float32] = random.standard_normal((shape[0], 12, n_channels)).astype(np.float32)
    columns = rows if same else random.standard_normal((shape[1], 12, n_channels)).astype(np.float32)
    aligned = alignment(invariance, SETTINGS[method], (4, 3))
    whole = compute_tile(rows, columns, aligned, same=same)
    for block_samples in (PANEL, 2 * PANEL):
        read: list[tuple[str, slice]] = []

        def read_rows(part: slice) -> NDArray[np.float32]:
            read.append(("row", part))  # noqa: B023
            return rows[part]

        def read_columns(part: slice) -> NDArray[np.float32]:
            read.append(("column", part))  # noqa: B023
            return columns[part]

        tile_shape = (len(rows), len(columns))
        found = compute_tile_in_blocks(read_rows, read_columns, tile_shape, block_samples, aligned, same=same)
        np.testing.assert_array_equal(found.inner_products, whole.inner_products)
        assert (found.upper_bounds is None) == (whole.upper_bounds is None)
        if whole.upper_bounds is not None:
            np.testing.assert_array_equal(found.upper_bounds, whole.upper_bounds)
        np.testing.assert_array_equal(
            np.concatenate(
                [aligned.norms(rows[start : start + block_samples]) for start in range(0, len(rows), block_samples)]
            ),
            aligned.norms(rows),
        )
        assert all(part.stop - part.start <= block_samples for _, part in read)


def test_blocks_that_cut_panels_are_refused() -> None:
    block = np.ones((30, 2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="panels of 25"):
        compute_tile_in_blocks(lambda part: block[part], lambda part: block[part], (30, 30), 10, alignment("none"))


@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (24, 26, 2049), (75, 3, 5000)])
def test_panels_multiply_as_numpy_does(n: int, m: int, k: int) -> None:
    random = np.random.default_rng(0)
    rows, columns = random.standard_normal((n, k)).astype(np.float32), random.standard_normal((m, k)).astype(np.float32)
    expected = rows.astype(np.float64) @ columns.astype(np.float64).T
    np.testing.assert_allclose(inner_products_of_rows(rows, columns), expected, rtol=0, atol=1e-12 * k)
