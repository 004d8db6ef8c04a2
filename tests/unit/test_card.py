from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kit.card import limits, write_card
from kit.signature import Signature

EVIL = "<script>alert(1)</script>|`x`_y_\n# heading"
FACTS: dict[str, Any] = {
    "model": "tiny",
    "number": 3,
    "digest": "ab" * 32,
    "task": "classification",
    "n_rows": 120,
    "classes": ["low", EVIL],
    "data": {
        "source": "held-out rows of rows.parquet",
        "fingerprint": "cd" * 32,
        "held_out": True,
        "label": "side",
    },
    "notes": [],
    "size_bytes": 14_074,
    "metric": "accuracy",
    "metrics": {"accuracy": 0.9, "calibration_error": 0.04},
    "undefined": {"auc": "not defined on these 120 rows; some class is absent"},
    "intervals": {
        "confidence": 0.95,
        "resamples": 2000,
        "drawn": "groups",
        "bounds": {"accuracy": [0.85, 0.94]},
    },
    "by_class": {
        "low": {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 110},
        EVIL: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 10},
    },
    "calibration": None,
    "slices": [
        {
            "column": "place",
            "value": EVIL,
            "n_rows": 60,
            "metric": "accuracy",
            "score": 0.8,
            "worse_by": 0.1,
            "small": False,
        },
        {
            "column": "place",
            "value": "b",
            "n_rows": 2,
            "metric": "accuracy",
            "score": 0.0,
            "worse_by": 0.9,
            "small": True,
        },
    ],
    "gates": [
        {"metric": "accuracy", "value": 0.9, "bound": 0.95, "passed": False, "kind": "floor"},
        {
            "metric": "auc",
            "value": None,
            "bound": 0.05,
            "passed": False,
            "kind": "max_loss",
            "reason": "too few rows",
        },
    ],
    "champion": {
        "model": "tiny",
        "number": 2,
        "digest": "ef" * 32,
        "metrics": {"accuracy": 0.88},
        "reason": "",
    },
    "explained": {"n_rows": 100, "metric": "accuracy"},
    "importance": [{"column": "width", "mean": 0.217, "std": 0.01}],
    "shap": [{"column": "width", "mean_abs": 0.321}],
    "cross_validation": {
        "kind": "k-fold",
        "folds": [{"metrics": {"accuracy": 0.9}}] * 3,
        "mean": {"accuracy": 0.9},
        "std": {"accuracy": 0.02},
        "undefined": [],
    },
    "learning_curve": [],
    "validation_curve": None,
}
MANIFEST: dict[str, Any] = {
    "lineage": {
        "data": {
            "path": "rows.parquet",
            "fingerprint": "cd" * 32,
            "n_train": 400,
            "n_validation": 50,
            "n_test": 120,
        },
        "prepare": {"rules": [{"column": EVIL, "pattern": "x*"}]},
        "train": {"epochs": 30, "min_workers": None},
        "compress": {"method": "prune", "ratio": 0.375},
    },
    "parity": {"tolerance": 1e-4, "n_rows": 556},
}


class Page(HTMLParser):
    """Collects what a browser would run or load, and what it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [given[key] or "" for key in ("src", "href") if key in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def card(tmp_path: Path, tiny_signature: Signature) -> tuple[str, str]:
    """The card as Markdown and as HTML."""
    written = write_card(FACTS, manifest=MANIFEST, signature=tiny_signature, path=tmp_path / "model-card")
    assert [path.name for path in written] == ["model-card.md", "model-card.html"]
    return written[0].read_text(), written[1].read_text()


def test_the_page_runs_nothing_and_loads_nothing(card: tuple[str, str]) -> None:
    page = Page()
    page.feed(card[1])
    assert not {"script", "iframe", "object", "img", "form"} & set(page.tags)
    assert page.loads == ["data:,"]
    assert page.policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert any("<script>alert(1)</script>" in text for text in page.text)  # shown, not run


def test_what_users_wrote_is_no_markup_in_markdown(card: tuple[str, str]) -> None:
    assert "\n# heading" not in card[0]
    assert "<script>" not in card[0].replace("\\<script\\>", "")
    rows = [line for line in card[0].splitlines() if "alert" in line and line.startswith("|")]
    assert rows
    for row in rows:
        assert row.count("|") - row.count("\\|") in (3, 6), row  # no value leaves its cell


def test_every_table_in_markdown_is_as_wide_as_its_heading(card: tuple[str, str]) -> None:
    tables = [block for block in card[0].split("\n\n") if block.lstrip().startswith("|")]
    assert len(tables) >= 8
    for block in tables:
        lines = block.strip().splitlines()
        widths = {line.count("|") - line.count("\\|") for line in lines}
        assert len(widths) == 1, block
        assert set(lines[1]) <= set("|-"), block


@pytest.mark.parametrize(
    "figure",
    [
        "90.00",
        "85.00",
        "94.00",
        "88.00",
        "0.0400",
        "held-out rows of rows.parquet",
        "14.1",
        "400",
        "0.217",
        "0.321",
        "prune",
        "0.375",
        "bootstrap resamples of whole groups of rows",
    ],
)
def test_both_cards_hold_what_was_measured(card: tuple[str, str], figure: str) -> None:
    for text in card:
        assert figure in text


def test_what_was_not_measured_is_called_so(tmp_path: Path, tiny_signature: Signature) -> None:
    facts = copy.deepcopy(FACTS) | {
        "slices": [],
        "gates": [],
        "champion": None,
        "shap": [],
        "cross_validation": None,
        "by_class": {},
        "importance": [],
    }
    path = tmp_path / "card.md"
    markdown, _ = write_card(facts, manifest={}, signature=tiny_signature, path=path)
    text = markdown.read_text()
    assert markdown == path
    assert "None were measured." in text
    assert "None are set." in text
    assert "The manifest does not say what it was trained on." in text
    assert "tiny@2" not in text


def test_the_limits_follow_from_the_figures() -> None:
    alone = FACTS | {"cross_validation": None}
    assert (
        limits(alone)[0] == "All figures are of 120 held-out rows of rows.parquet; nothing else was measured."
    )
    said = " ".join(limits(FACTS))
    assert "each fold's are of its own share of all rows" in said
    assert "All figures but those of the folds are of 120 held-out rows of rows.parquet" in said
    assert "from 0.8500 to 0.9400" in said
    assert "auc is not defined" in said
    assert "(10)" in said  # the class with few rows
    assert "0.1000 worse than on all rows" in said
    assert "0.9000 worse" not in said  # two rows say nothing
    assert "does not pass these gates: accuracy, auc" in said


def test_a_version_without_weaknesses_has_the_plain_limits_alone() -> None:
    facts = FACTS | {"undefined": {}, "by_class": {}, "gates": [], "metrics": {"accuracy": 0.9}}
    facts["slices"] = [FACTS["slices"][0] | {"worse_by": -0.1}]
    assert len(limits(facts)) == 2
