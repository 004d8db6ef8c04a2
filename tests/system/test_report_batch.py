"""Rules of what is shown of a batch run: its own page, and the newest run in the report."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from kit.errors import InputError
from kit.project import Project
from kit.report import batch_report, report
from kit.report.plots import batch as plots
from kit.settings import ReportSettings

RUN: dict[str, Any] = {
    "model": "digits@3",
    "digest": "ab" * 32,
    "engine": "onnxruntime",
    "input": "s3://bucket/in",
    "output": "s3://bucket/out",
    "classes": ["no", "yes"],
    "retry": None,
    "batch_rows": 4096,
    "rows_in": 2000,
    "rows_out": 1990,
    "rows_refused": 10,
    "n_shards": 8,
    "n_parts": 8,
    "n_bytes": 80_000,
    "seconds": 75.0,
    "rows_per_second": 26.5,
    "n_sittings": 2,
    "throughput": {"bucket_s": 25.0, "rows_per_second": [20.0, 30.0, 29.6], "resumed_at_s": [50.0]},
    "stages": {
        "infer": {"seconds": 30.0, "share": 0.5},
        "prepare": {"seconds": 12.0, "share": 0.2},
        "read": {"seconds": 15.0, "share": 0.25},
        "write": {"seconds": 3.0, "share": 0.05},
    },
    "bare_rows_per_second": 20.0,
    "actors": 2.0,
    "efficiency": 0.6625,
    "cost": {
        "node_seconds": {"reserved": 10.0, "spot": 75.0},
        "usd_by_market": {"reserved": None, "spot": 0.003333},
        "usd": 0.003333,
        "usd_per_million_rows": 1.6749,
        "unpriced": ["reserved"],
    },
    "labels": {"no": 1500, "yes": 490},
    "reasons": {"input 'x', row 3: a value is missing": 9, "rare": 1},
    "n_reasons": 4,
    "nodes": [
        {"node": "a1" * 16, "market": "spot", "seconds": 75.0, "rows": 1500, "n_shards": 6},
        {"node": "b2" * 16, "market": "reserved", "seconds": 10.0, "rows": 500, "n_shards": 2},
    ],
    "observed": {"n_rows": 2000, "n_sampled": 1000, "n_columns": 2, "n_columns_left": 3},
    "profile": {"n_rows": 9000, "n_held_out": 400},
    "drift": [
        {
            **{
                "name": "label",
                "role": "answer",
                "index": 0.01,
                "threshold": 0.2,
                "drifted": False,
                "n": 1990,
            },
            **{"distance": None, "missing": 0.0, "missing_before": 0.0, "unseen": 0.0},
            **{"categories": ["no", "yes"], "reference": [280, 120, 0], "observed": [1500, 490, 0]},
        },
        {
            **{"name": "confidence", "role": "answer", "index": 0.1, "threshold": 0.2, "drifted": False},
            **{"n": 1000, "distance": 0.1, "missing": 0.0, "missing_before": 0.0, "unseen": 0.0},
            **{"edges": [0.0, 0.5, 1.0], "reference": [0, 100, 300, 0], "observed": [0, 400, 600, 0]},
        },
        {
            **{"name": "width", "role": "input", "index": 1.25, "threshold": 0.2, "drifted": True, "n": 1000},
            **{"distance": 1.5, "missing": 0.25, "missing_before": 0.0, "unseen": 0.4},
            **{"edges": [0.0, 1.0, 2.0], "reference": [0, 10, 10, 0], "observed": [1, 2, 3, 4]},
        },
    ],
}


def read(page: str, *, drawings: bool = False) -> str:
    """Give what a reader reads of a page, with single spaces."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    if not drawings:
        text = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def page_of(project: Project, **changes: Any) -> str:
    return batch_report(project, {**RUN, **changes}).decode("utf-8")


def captions(page: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", page)


ALL = [
    "Rows per second over time",
    "Where the time of the shards went",
    "Rows by answered class",
    "How sure the answers are",
]


def test_a_runs_page_shows_its_pace_its_cost_its_answers_and_their_drift(project: Project) -> None:
    page = page_of(project)
    text = read(page)
    assert captions(page) == ALL
    for shown in (
        "rows answered 1,990 refused 10 time, 2 sittings 1:15 min",
        "of the engine alone, in 2.00 actors 66.25 % cost, US$ 0.00333 1.67 per million rows",
        "No price is set for reserved; the cost leaves it out.",
        "reserved 1 10.0 s no price spot 1 1:15 min 0.00333",
        "input 'x', row 3: a value is missing 9 rare 1",
        "2 more reasons are not shown.",
        "1 drifted",
        "over 1,000 of 2,000 rows",
        "width input drifted 1.250 0.200 1.500 25.00 % 0 40.00 %",
        "3 more columns were not looked at.",
        "a1a1a1a1a1a1 spot 1,500 6 1:15 min",
    ):
        assert shown in text, shown
    assert page.count('<svg class="spark"') == 3


def test_what_has_drifted_stands_above_what_has_not(project: Project) -> None:
    text = read(page_of(project))
    assert text.index("width input") < text.index("confidence answer") < text.index("label answer")


def test_a_version_made_before_answers_were_described_says_so(project: Project) -> None:
    page = page_of(
        project, drift=RUN["drift"][2:], profile={"n_rows": 9000, "n_held_out": None}, actors=None, cost=None
    )
    assert "The version was made before answers were described" in read(page)
    assert captions(page) == ALL[:3]
    assert "expected from held-out rows" not in page


def test_a_regressions_numbers_are_drawn(project: Project) -> None:
    value = {**RUN["drift"][2], "name": "value", "role": "answer"}
    page = page_of(project, drift=[value], labels={}, classes=[])
    assert captions(page)[-1] == "Answered values"


def test_the_page_loads_nothing_and_every_reference_has_its_target(project: Project) -> None:
    page = page_of(project)
    assert "default-src 'none'" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert not re.search(r"<(script|iframe|object|embed|img|form|base)\b|@import", page)


def test_what_a_table_says_is_escaped(project: Project) -> None:
    bad = "<script>alert(1)</script>"
    column = {**RUN["drift"][0], "name": "label", "categories": [bad, "yes"]}
    page = page_of(
        project,
        labels={bad: 3, "yes": 4},
        classes=[bad, "yes"],
        reasons={bad: 1},
        input=bad,
        drift=[column, {**RUN["drift"][2], "name": bad}],
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_facts_that_are_no_runs_are_refused(project: Project) -> None:
    with pytest.raises(InputError, match="'rows_in' is not what a batch run holds there"):
        page_of(project, rows_in="many")


def test_the_report_shows_the_newest_run_in_full_and_a_line_for_each(project: Project) -> None:
    old = {name: RUN[name] for name in ("model", "digest", "engine", "output", "labels", "n_parts")}
    old |= {"rows_in": 77, "rows_out": 77, "seconds": 1.0, "rows_per_second": 77.0}
    project.write_record("predict", "0001", old)
    project.write_record("predict", "0002", RUN)
    page = report(project, ReportSettings()).path.read_text(encoding="utf-8")
    text = read(page)
    assert captions(page) == ALL
    assert "2,000 1,990 10 8 1:15 min 26 0.00333 1 of 3 s3://bucket/out" in text
    assert "77 77 0 8 1.00 s 77 \N{EN DASH} \N{EN DASH}" in text


def test_shares_beside_labels_are_those_of_the_held_out_rows() -> None:
    drawn = plots.label_counts([("no", 100), ("yes", 0)], shares=[0.5, 0.5], name="l")
    assert "expected from held-out rows" in drawn
    assert drawn == plots.label_counts([("no", 100), ("yes", 0)], shares=[0.5, 0.5], name="l")
    assert "expected" not in plots.label_counts([("no", 100)], name="l")


def test_answers_outside_the_profiles_range_are_drawn_as_such() -> None:
    edges = [0.0, 1.0, 2.0]
    outside = plots.distribution([0, 1, 1, 5], [0, 2, 2, 0], edges=edges, x_label="value", name="v")
    assert outside.count(">outside<") == 1
    inside = plots.distribution([0, 1, 1, 0], [0, 2, 2, 0], edges=edges, x_label="value", name="v")
    assert "outside" not in inside
