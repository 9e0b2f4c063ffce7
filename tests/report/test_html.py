"""The report is one escaped, self-contained file that says honestly what was measured."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from semrsm_dist.report.examples import choose_examples, thumbnail
from semrsm_dist.report.html import RepresentationReport, write_report
from semrsm_dist.report.wording import headline
from storage_schemas import tables
from storage_schemas.errors import InvalidInputError
from storage_schemas.location import Location

HOSTILE = "<script>alert('x')</script>\"&"


def retrieval(low: float = 0.09, high: float = 0.24, *, name: str = "net", pooled: float | None = None, k: int = 1) -> pa.Table:
    gain = (low + high) / 2
    values = {"none": (0.438, 0.0, 0.0, 0.0), "permutation": (0.438 + gain, gain, low, high)}
    if pooled is not None:
        values["pooled"] = (pooled, pooled - 0.438, pooled - 0.5, pooled - 0.3)
    rows = [
        {
            "representation": name, "kernel": kernel, "invariance": invariance, "k": k, "metric": metric,
            "value": value, "baseline": "none", "difference": difference, "difference_low": bottom,
            "difference_high": top, "n_queries": 3,
        }
        for kernel in ("cosine", "rbf") for metric in ("f1", "iou")
        for invariance, (value, difference, bottom, top) in values.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=tables.RETRIEVAL)


def neighbours(f1: dict[str, tuple[float, float]]) -> pa.Table:
    """Of each query, F1 of the most similar image under none and under permutation."""
    rows = [
        {
            "kernel": "cosine", "invariance": invariance, "query_id": query, "rank": rank,
            "database_id": f"{invariance}-{rank}", "similarity": 0.9 - 0.1 * rank, "f1": value, "iou": value,
        }
        for query, pair in f1.items() for invariance, value in zip(("none", "permutation"), pair, strict=True)
        for rank in (1, 2)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=tables.NEIGHBOURS)


@pytest.fixture
def report(tmp_path: Path) -> RepresentationReport:
    path = tmp_path / "image.png"
    Image.new("RGB", (600, 300), "teal").save(path)
    return RepresentationReport(
        name="net",
        facts={"Model": "mobilenet_v2"},
        retrieval=retrieval(),
        neighbours=neighbours({"up": (0.2, 0.8), "down": (0.6, 0.5), "same": (0.4, 0.4)}),
        rsms={"none": np.eye(3), "permutation": np.full((3, 3), 0.5)},
        symmetric=True,
        images={"up": str(path), "none-1": str(path)},
        classes={"up": {"cat": 2, "dog": 1}, "none-1": {"cat": 1}},
    )


@pytest.fixture
def real_figures() -> None:
    """Asked for by the tests that draw; the others only care about the page around the figures."""


@pytest.fixture(autouse=True)
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_figures" not in request.fixturenames:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "PNG")
        for name in ("rsm_picture", "retrieval_chart"):
            monkeypatch.setattr(f"semrsm_dist.report.html.{name}", lambda *_, **__: buffer.getvalue())


def page_of(out: Path, *reports: RepresentationReport, **options: object) -> str:
    where = write_report(Location.of(out), "A title", reports, **options)  # type: ignore[arg-type]
    assert where == Location.of(out) / "report.html"
    return (out / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """The tags of a page with their attributes; complains about tags that do not close in order."""

    void = frozenset({"meta", "img", "source", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_gain_whose_interval_excludes_zero_is_called_a_gain() -> None:
    assert headline(retrieval(0.09, 0.24)) == (
        "With permutation invariance the most similar image shares more objects: "
        "F1@1 0.603 against 0.438, +0.165 [0.090, 0.240]."
    )


def test_a_loss_is_called_a_loss() -> None:
    text = headline(retrieval(-0.2, -0.1))
    assert "shares fewer objects" in text
    assert "−0.150 [−0.200, −0.100]" in text


@pytest.mark.parametrize(("low", "high"), [(-0.02, 0.1), (-0.1, 0.02), (0.0, 0.1), (-0.1, 0.0)])
def test_an_interval_that_includes_zero_is_not_called_a_gain_or_a_loss(low: float, high: float) -> None:
    text = headline(retrieval(low, high))
    assert "neither clearly more nor clearly fewer" in text
    assert "interval includes 0" in text


def test_an_unknown_interval_claims_nothing() -> None:
    text = headline(retrieval(float("nan"), float("nan")))
    assert "could not be computed" in text
    assert "more objects" not in text


def test_the_headline_names_the_pooled_baseline_and_admits_when_it_is_better() -> None:
    assert headline(retrieval(pooled=0.5)).endswith("far cheaper, reaches 0.500.")
    assert headline(retrieval(pooled=0.7)).endswith("far cheaper, reaches 0.700, a higher value.")


def test_the_headline_speaks_of_the_smallest_k_and_of_a_kernel_that_is_there() -> None:
    assert "the 5 most similar images share more objects: F1@5" in headline(retrieval(k=5), kernel="linear")


def test_without_annotations_the_headline_says_that_nothing_was_measured() -> None:
    assert "not measured" in headline(tables.RETRIEVAL.empty_table())


def test_a_baseline_alone_has_no_gain() -> None:
    only = retrieval().filter(pa.array([True, False] * 4))
    assert "no gain to report: F1@1 0.438" in headline(only)


def test_examples_are_those_that_help_most_and_those_that_hurt() -> None:
    table = neighbours({"a": (0.1, 0.2), "b": (0.0, 0.9), "c": (0.9, 0.0), "d": (0.5, 0.5), "e": (0.3, 0.5)})
    chosen = choose_examples(table, n_examples=2)
    assert chosen is not None
    assert [example.query_id for example in chosen.helped] == ["b"]
    assert [example.query_id for example in chosen.hurt] == ["c"]
    assert (chosen.n_helped, chosen.n_hurt, chosen.n_same) == (3, 1, 1)
    assert [found.sample_id for found in chosen.helped[0].neighbours["permutation"]] == [
        "permutation-1",
        "permutation-2",
    ]


def test_among_equal_gains_the_query_with_more_objects_is_shown(tmp_path: Path, report: RepresentationReport) -> None:
    table = neighbours({"poor": (0.0, 1.0), "rich": (0.0, 1.0)})
    classes = {"poor": {"cat": 1}, "rich": {"cat": 2, "dog": 1}}
    chosen = choose_examples(table, classes=classes, n_examples=1)
    assert chosen is not None
    assert [example.query_id for example in chosen.helped] == ["rich"]
    page = page_of(tmp_path, replace(report, neighbours=table, classes=classes), n_examples=1)
    assert ">rich" in page
    assert ">poor" not in page


def test_no_examples_can_be_asked_for(tmp_path: Path, report: RepresentationReport) -> None:
    assert "What was found" not in page_of(tmp_path, report, n_examples=0)


def test_examples_without_f1_are_shown_without_a_verdict() -> None:
    chosen = choose_examples(neighbours({"a": (float("nan"), float("nan"))}))
    assert chosen is not None
    assert not chosen.measured
    assert [example.query_id for example in chosen.other] == ["a"]


def test_a_single_invariance_has_no_examples() -> None:
    table = neighbours({"a": (0.1, 0.2)})
    assert choose_examples(table.slice(0, 2)) is None
    assert choose_examples(tables.NEIGHBOURS.empty_table()) is None


def test_the_report_shows_everything_and_asks_nothing_of_the_network(
    tmp_path: Path, report: RepresentationReport, real_figures: None
) -> None:
    page = page_of(tmp_path / "out", report, run={"Recipe": "cards.yaml"})
    texts = (
        "shares more objects",
        "Where permutation helps most",
        "Where permutation hurts most",
        "helped 1 of 3 queries, hurt 1 and left 1 the same",
        "How to read this",
        "cards.yaml",
        "mobilenet_v2",
        "cat ×2",
    )
    for text in texts:
        assert text in page
    assert not re.search(r"""(?:src|href|srcset)=["'](?!data:|#)""", page)
    assert "url(" not in page
    assert "default-src 'none'" in page
    for name in ("rsm-net.png", "retrieval-net.png"):
        assert (tmp_path / "out" / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_is_well_formed_and_accessible(tmp_path: Path, report: RepresentationReport) -> None:
    outline = Outline(page_of(tmp_path, report, cka=cka("net")))
    assert all(attributes.get("alt") for tag, attributes in outline.tags if tag == "img")
    assert all(attributes.get("scope") for tag, attributes in outline.tags if tag == "th")
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("caption") == tags.count("table") > 0
    assert tags.count("h1") == 1
    assert "script" not in tags
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def cka(name: str) -> pa.Table:
    row = {
        "representation_1": name, "invariance_1": "none", "representation_2": name, "invariance_2": "permutation",
        "kernel": "cosine", "estimator": "unbiased", "value": 0.8125, "n_samples": 30,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=tables.CKA)


def test_whatever_a_user_named_is_escaped(tmp_path: Path, report: RepresentationReport) -> None:
    hostile = replace(
        report,
        name=HOSTILE,
        facts={HOSTILE: HOSTILE},
        retrieval=retrieval(name=HOSTILE),
        neighbours=neighbours({HOSTILE: (0.1, 0.9)}),
        images={HOSTILE: report.images["up"]},
        classes={HOSTILE: {HOSTILE: 2}},
    )
    where = write_report(Location.of(tmp_path), HOSTILE, [hostile], cka=cka(HOSTILE), run={HOSTILE: HOSTILE})
    page = Path(where.url).read_text(encoding="utf-8")
    outline = Outline(page)
    assert "<script" not in page
    assert all(not name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert "&lt;script&gt;" in page


def test_names_cannot_leave_the_folder_nor_overwrite_each_other(tmp_path: Path, report: RepresentationReport) -> None:
    names = ("../../a b", "a b", "..", "A-B")
    reports = [
        replace(report, name=name, retrieval=tables.RETRIEVAL.empty_table(), neighbours=tables.NEIGHBOURS.empty_table())
        for name in names
    ]
    page_of(tmp_path / "out", *reports)
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == [
        "rsm-A-B-3.png", "rsm-a-b-2.png", "rsm-a-b.png", "rsm-representation.png"]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "out"]


def test_no_annotations_leave_the_pictures(tmp_path: Path, report: RepresentationReport) -> None:
    bare = replace(
        report,
        retrieval=tables.RETRIEVAL.empty_table(),
        neighbours=neighbours({"up": (float("nan"), float("nan"))}),
        classes={},
    )
    page = page_of(tmp_path, bare)
    assert "Retrieval was not measured" in page
    assert "Without annotations nothing says which is better" in page
    assert "Similarity matrices" in page
    assert not (tmp_path / "figures" / "retrieval-net.png").exists()


def test_nothing_but_a_name_is_a_report(tmp_path: Path, report: RepresentationReport) -> None:
    empty = replace(report, facts={}, retrieval=tables.RETRIEVAL.empty_table(), rsms={}, images={}, classes={},
                    neighbours=tables.NEIGHBOURS.empty_table())  # fmt: skip
    Outline(page_of(tmp_path, empty))


def test_missing_and_broken_images_are_simply_not_shown(tmp_path: Path, report: RepresentationReport) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    page = page_of(tmp_path / "out", replace(report, images={"up": str(tmp_path / "no.jpg"), "none-1": str(broken)}))
    assert "data:image/jpeg" not in page
    assert "up" in page


def test_a_thumbnail_is_small_and_upright(tmp_path: Path) -> None:
    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (1000, 500), "teal").save(path, exif=exif)
    uri = thumbnail(str(path), 100)
    assert uri is not None
    assert len(uri) < 5000

    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (50, 100)


def test_an_enormous_image_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semrsm_dist.report.examples._MAX_IMAGE_PIXELS", 99)
    path = tmp_path / "image.png"
    Image.new("1", (10, 10)).save(path)
    assert thumbnail(str(path), 100) is None


def test_the_best_value_and_the_direction_are_marked(tmp_path: Path, report: RepresentationReport) -> None:
    page = page_of(tmp_path, replace(report, retrieval=retrieval(-0.2, -0.1)))
    assert re.search(r'<b class="best">0\.438', page)
    assert "▼ −0.150" in page
    assert "[−0.200, −0.100]" in page


def test_cka_shows_a_pair_that_was_not_computed_as_such(tmp_path: Path, report: RepresentationReport) -> None:
    page = page_of(tmp_path, report, cka=cka("net"))
    assert "unbiased estimator" in page
    assert re.search(r">0\.81[23]</td>", page)


def test_a_retrieval_table_of_other_representations_is_refused(tmp_path: Path, report: RepresentationReport) -> None:
    with pytest.raises(InvalidInputError, match="no rows of the representation 'net'; it has 'other'"):
        page_of(tmp_path, replace(report, retrieval=retrieval(name="other")))
    with pytest.raises(InvalidInputError, match="no representation"):
        page_of(tmp_path)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, report: RepresentationReport) -> None:
    assert page_of(tmp_path / "1", report) == page_of(tmp_path / "2", report)
