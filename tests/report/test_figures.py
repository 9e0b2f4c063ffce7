"""The figures are valid PNG files of sensible size, whatever the numbers are."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from semrsm_dist.report.figures import block_mean, colour_scale, retrieval_chart, rsm_caption, rsm_picture
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    image.load()
    return image


def retrieval(representation: str = "net", invariances: tuple[str, ...] = ("none", "permutation")) -> pa.Table:
    rows = [
        {
            "representation": representation, "kernel": "cosine", "invariance": invariance, "k": k, "metric": metric,
            "value": 0.4 + 0.1 * i, "baseline": "none", "difference": 0.1 * i, "difference_low": 0.1 * i - 0.05,
            "difference_high": 0.1 * i + 0.05, "n_queries": 20,
        }
        for i, invariance in enumerate(invariances) for k in (1, 5) for metric in ("f1", "iou")
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=tables.RETRIEVAL)


@pytest.fixture
def rsms() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"permutation": random.normal(size=(30, 50)), "none": random.normal(size=(30, 50))}


def test_rsms_side_by_side_make_a_wide_picture_and_two_columns_a_narrower_one(rsms: dict[str, np.ndarray]) -> None:
    four = {**rsms, "pooled": rsms["none"], "translation": rsms["none"]}
    wide, narrow = opened(rsm_picture(four)), opened(rsm_picture(four, columns=2))
    assert 1000 < wide.width < 1800
    assert wide.width / wide.height > 2 > narrow.width / narrow.height


@pytest.mark.parametrize(
    "matrix",
    [
        np.ones((1, 1)),
        np.zeros((5, 5)),
        np.full((4, 4), 1e-300),
        np.full((3, 3), np.nan),
        np.array([[1.0, np.nan], [0.2, 1.0]]),
        np.linspace(0, 1, 900).reshape(1, 900),
        np.linspace(0, 1, 900).reshape(900, 1),
    ],
    ids=["one sample", "zeros", "tiny constant", "all missing", "partly missing", "one row", "one column"],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_odd_matrices_are_drawn_without_a_warning(matrix: np.ndarray, symmetric: bool, recwarn: object) -> None:
    opened(rsm_picture({"none": matrix}, symmetric=symmetric))
    rsm_caption({"none": matrix}, symmetric=symmetric)
    assert not list(recwarn)  # type: ignore[call-overload]


def test_the_dark_page_is_dark(rsms: dict[str, np.ndarray]) -> None:
    for png in (rsm_picture(rsms, theme="dark"), retrieval_chart(retrieval(), theme="dark")):
        assert max(opened(png).convert("RGB").getpixel((0, 0))) < 60


def test_a_large_rsm_is_averaged_in_blocks_and_the_caption_says_so() -> None:
    matrix = np.arange(1000.0 * 7).reshape(1000, 7)
    assert rsm_picture({"none": matrix})
    assert "mean of a block of 3 × 1 values" in rsm_caption({"none": matrix})
    assert "block" not in rsm_caption({"none": matrix[:400]})


def test_block_means_weigh_every_value_once_and_leave_missing_ones_out() -> None:
    matrix = np.array([[1.0, 3.0, 5.0], [np.nan, 5.0, 7.0], [2.0, 4.0, np.nan]])
    means, block = block_mean(matrix, limit=2)
    assert block == (2, 2)
    np.testing.assert_allclose(means, [[3.0, 6.0], [3.0, np.nan]])


def test_a_small_rsm_is_drawn_as_it_is() -> None:
    matrix = np.eye(400)
    assert block_mean(matrix)[0] is matrix


def test_the_colour_scale_leaves_the_diagonal_of_a_symmetric_rsm_out() -> None:
    matrix = np.full((10, 10), 0.2) + np.diag(np.full(10, 0.8))
    matrix[0, 1] = matrix[1, 0] = 0.3
    scale = colour_scale([matrix], symmetric=True)
    assert scale.high <= 0.3
    assert scale.clipped_above
    assert not colour_scale([np.linspace(0, 0, 9).reshape(3, 3)], symmetric=False).clipped_above


def test_no_rsm_or_an_empty_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no RSM"):
        rsm_picture({})
    with pytest.raises(InvalidInputError, match="shape"):
        rsm_picture({"none": np.empty((0, 3))})


def test_the_chart_is_wide_or_for_a_phone_tall() -> None:
    wide, tall = opened(retrieval_chart(retrieval())), opened(retrieval_chart(retrieval(), columns=1))
    assert wide.width > wide.height
    assert tall.height > tall.width


def test_a_baseline_alone_and_intervals_that_are_not_known_can_be_charted() -> None:
    table = retrieval()
    unknown = pa.array([float("nan")] * table.num_rows)
    for name in ("difference", "difference_low", "difference_high"):
        table = table.set_column(table.schema.get_field_index(name), tables.RETRIEVAL.field(name), unknown)
    opened(retrieval_chart(table))
    opened(retrieval_chart(retrieval(invariances=("none",))))


def test_a_chart_of_nothing_or_of_several_representations_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no F1 or IoU"):
        retrieval_chart(retrieval(), kernel="rbf")
    with pytest.raises(InvalidInputError, match="one representation"):
        retrieval_chart(pa.concat_tables([retrieval("a"), retrieval("b")]))


def test_the_same_numbers_give_the_same_bytes(rsms: dict[str, np.ndarray]) -> None:
    assert rsm_picture(rsms) == rsm_picture(rsms)
