"""Rules of the report's sections on what makes a version: data, study, evaluation, compression."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest

from kit.project import Project
from kit.report import report
from kit.report.formats import NO_FIGURE
from kit.report.plots import bars, data, evaluation, study
from kit.report.records.making import Gate
from kit.report.sections.evaluation import interval_of, loss_of
from kit.settings import ReportSettings

Records = dict[str, dict[str, Any]]


def page(project: Project) -> str:
    """Write the page and give its text, without the sheet of styles."""
    text = report(project, ReportSettings()).path.read_text(encoding="utf-8")
    return re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def words(project: Project, *, drawings: bool = False) -> str:
    """Give what a reader reads, with single spaces."""
    text = page(project)
    if not drawings:
        text = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def drawn(project: Project) -> list[str]:
    """Give the captions of the plots."""
    return [html.unescape(each) for each in re.findall(r"<figcaption>(.*?)</figcaption>", page(project))]


def test_data_are_shown_with_parts_changes_columns_and_leakage(
    project: Project, making_records: Records
) -> None:
    project.write_record("prepare", "one", making_records["prepare"])
    text = words(project)
    assert "100 rows in 2 files, 4.2 kB. Stratified split, seed 7" in text
    assert "held out 20 20.41 %" in text
    assert "rule kind 100 98 2 2 2 values did not match" in text
    assert "width number 3.00 % 90 1.50 0.5" in text
    assert "12,346" in text
    assert "kind string, label 0 7 oak 60.00 % elm 30.00 % ash 5.00 % and 4 more" in text
    assert text.index("duplicate rows 4 found") < text.index("id none")
    assert page(project).count('<svg class="spark"') == 2
    assert drawn(project) == ["Rows by class and part"]


def test_the_newest_preparation_is_shown(project: Project, making_records: Records) -> None:
    record = making_records["prepare"]
    project.write_record("prepare", "one", record)
    project.write_record("prepare", "two", {**record, "n_features": 77})
    assert "the network reads 77 values of a row" in words(project)


def test_a_regression_has_no_class_balance(project: Project, making_records: Records) -> None:
    project.write_record("prepare", "one", {**making_records["prepare"], "classes": {}, "leakage": []})
    assert drawn(project) == []
    assert "No check was made" in words(project)


def test_a_study_shows_its_trials_the_best_first_and_names_the_failed(
    project: Project, making_records: Records
) -> None:
    project.write_record("tune", "one", making_records["tune"])
    text = words(project)
    assert "4 trials: 1 failed, 2 finished, 1 stopped. Best: trial 3 with 0.167" in text
    assert "Failed trials trial reason parameters 4 the loss is not a number in epoch 2" in text
    assert "2 stopped ASHA stopped it after 3 epochs 0.2" in text
    assert text.index("3 best 0.167") < text.index("2 stopped") < text.index("4 failed")
    assert "digits@3" in text
    captions = [
        "Parameters and validation_loss of each trial",
        "Learning curves",
        "Which parameters mattered",
    ]
    assert drawn(project) == captions


def test_a_study_where_every_trial_failed_is_shown(project: Project, making_records: Records) -> None:
    record = making_records["tune"]
    for trial in record["trials"]:
        trial |= {"status": "failed", "reason": "out of memory", "value": None, "epochs": []}
    project.write_record("tune", "one", {**record, "best": None, "version": None, "importance": {}})
    text = words(project)
    assert "No trial finished" in text
    assert text.count("out of memory") == 4
    assert drawn(project) == []


def test_a_study_that_maximizes_ranks_its_trials_the_other_way(
    project: Project, making_records: Records
) -> None:
    record = {**making_records["tune"], "mode": "max", "metric": "accuracy", "best": 1}
    project.write_record("tune", "one", record)
    text = words(project)
    assert "more is better" in text
    assert text.index("1 best 0.25") < text.index("2 stopped") < text.index("3 finished")


def test_an_evaluation_shows_metrics_beside_the_champion_and_every_part_of_it(
    project: Project, making_records: Records
) -> None:
    project.write_record("evaluate", "one", making_records["evaluate"])
    text = words(project)
    assert "accuracy 95.50 % 96.00 % 95.00 % ± 1.00 %" in text
    assert "elm 60 0.8000 0.7000 0.7467" in text
    assert "kind elm 60 accuracy 70.00 % 0.2550" in text
    assert f"2 {NO_FIGURE}" in text  # a fold that was not measured
    assert drawn(project) == [
        "Calibration",
        "Each gate against its bound",
        "Permutation importance, with one standard deviation",
        "SHAP",
        "Learning curve: growing shares of the rows",
        "Validation curve: parameters.activation",
    ]


def test_an_evaluation_shows_intervals_what_is_undefined_and_notes(
    project: Project, making_records: Records
) -> None:
    record = making_records["evaluate"]
    record["intervals"] = {"confidence": 0.95, "resamples": 2000, "bounds": {"accuracy": [0.91, 0.98]}}
    record["undefined"] = {"auc": "not defined on these 60 rows"}
    record["notes"] = ["these are the rows it was trained on"]
    project.write_record("evaluate", "one", record)
    text = words(project)
    assert "95.0 % interval" in text
    assert "accuracy 95.50 % 91.00 % to 98.00 %" in text
    assert "auc is not defined on these 60 rows." in text
    assert "These are the rows it was trained on." in text


def test_a_gate_shows_the_loss_its_interval_and_why_it_was_not_decided(
    project: Project, making_records: Records
) -> None:
    project.write_record("evaluate", "one", making_records["evaluate"])
    text = words(project)
    assert f"accuracy floor 95.50 % {NO_FIGURE} {NO_FIGURE} {NO_FIGURE} ≥ 90.00 % {NO_FIGURE} passed" in text
    assert "auc loss 0.9850 0.9910 0.006 \N{MINUS SIGN}0.008 to 0.02 ≤ 0.05 200 passed" in text
    assert "latency loss 0.05 ms 0.04 ms 0.25 0.1 to 0.4 ≤ 0.1 200 failed" in text
    assert "40 held-out rows are fewer than min_rows = 100" in text


@pytest.mark.parametrize(
    "metric,value,champion,loss,interval",
    [
        ("auc", 0.9, 0.95, 0.05, (-0.02, 0.1)),
        ("log_loss", 0.3, 0.2, 0.1, (-0.1, 0.02)),
        ("latency", 3.0, 2.0, 0.5, (-0.1, 0.02)),
        ("size", 100.0, 0.0, None, (-0.1, 0.02)),
        ("auc", None, 0.95, None, (-0.02, 0.1)),
    ],
)
def test_a_loss_is_positive_where_the_candidate_is_worse(
    metric: str, value: float | None, champion: float, loss: float | None, interval: tuple[float, float]
) -> None:
    gate = Gate(
        metric=metric,
        value=value,
        champion=champion,
        bound=1,
        passed=True,
        kind="max_loss",
        low=-0.1,
        high=0.02,
    )
    assert loss_of(gate) == (None if loss is None else pytest.approx(loss))
    assert interval_of(gate) == interval


def test_a_regression_is_evaluated_without_classes(project: Project, making_records: Records) -> None:
    kept = ("model", "number", "digest", "n_rows", "importance")
    record = {key: making_records["evaluate"][key] for key in kept}
    project.write_record(
        "evaluate", "one", {**record, "task": "regression", "metrics": {"rmse": 1.5, "r2": 0.8}}
    )
    text = words(project)
    assert "r2 0.8000 rmse 1.5000" in text
    assert drawn(project) == ["Permutation importance, with one standard deviation"]


def test_a_compression_shows_before_and_after_and_whether_it_paid(
    project: Project, making_records: Records
) -> None:
    project.write_record("compress", "one", making_records["compress"])
    text = words(project)
    assert "prune: digits@3 → digits@4 does not pay latency does not fall" in text
    assert "size 327.7 kB 120.0 kB \N{MINUS SIGN}63 %" in text
    assert "accuracy 0.9750 0.9680 \N{MINUS SIGN}0.0070" in text


def test_a_compression_shows_batches_and_every_int8_figure(project: Project, making_records: Records) -> None:
    record = making_records["compress"]
    record["before"] |= {"batch_latency_ms": 4.0, "batch_rows": 256, "int8_error": 0.2}
    record["after"] |= {"batch_latency_ms": 3.0, "batch_rows": 256, "int8_error": 0.1}
    record["before"]["int8_metrics"] = record["after"]["int8_metrics"] = {"f1_macro": 0.5}
    project.write_record("compress", "one", record)
    text = words(project)
    assert "latency of 256 rows, ms 4.00 3.00 \N{MINUS SIGN}25 %" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "f1_macro in INT8 0.5000 0.5000" in text
    assert "INT8 error, standard deviations 0.2 0.1" in text


def test_hundreds_of_everything_stay_readable(project: Project, making_records: Records) -> None:
    prepare, tune, evaluate = (making_records[kind] for kind in ("prepare", "tune", "evaluate"))
    counts = {"train": 7, "validation": 1, "test": 2}
    prepare["columns"] = [{**prepare["columns"][1], "name": f"column {index}"} for index in range(500)]
    prepare["classes"] = {f"class {index}": counts for index in range(400)}
    prepare["changes"] *= 100
    parameters = {f"parameter_{index}": index / 7 for index in range(30)}
    tune["trials"] = [
        {**tune["trials"][0], "number": index, "parameters": parameters} for index in range(600)
    ]
    tune["trials"] += [
        {**tune["trials"][0], "number": 600 + index, "status": "failed"} for index in range(50)
    ]
    evaluate["by_class"] = {f"class {index}": evaluate["by_class"]["elm"] for index in range(400)}
    evaluate["importance"] = [{"column": f"c{index}", "mean": index, "std": 1.0} for index in range(500)]
    evaluate["slices"] *= 100
    evaluate["cross_validation"]["folds"] *= 100
    for kind in ("prepare", "tune", "evaluate"):
        project.write_record(kind, "one", making_records[kind])
    text = words(project)
    for said in (
        "400 more columns are not shown",
        "375 more classes are not shown",
        "160 more steps are not shown",
        "35 more failed trials are not shown",
        "610 more trials are not shown",
        "24 more parameters of each trial are not shown",
        "370 more classes, with a better F1, are not shown",
        "480 more columns are not shown",
        "75 more slices are not shown",
        "188 more folds are not shown",
    ):
        assert said in text
    assert len(page(project)) < 1_500_000


def test_strange_figures_of_a_study_are_drawn_all_the_same() -> None:
    strange = [
        study.Line({"a": True, "b": None, "c": 1e308}, 0.0, best=False),
        study.Line({"a": 1, "b": "x" * 99, "c": -1e308}, 0.0, best=True),
        study.Line({}, 0.0, best=False),
    ]
    names = ("a", "b", "c", "d")
    drawing = study.parallel_coordinates(
        strange, names=names, logarithmic=names, metric="f1", lower_is_better=False, name="p"
    )
    assert "nan" not in drawing.lower()
    assert study.trial_curves([study.Curve([1], [0.0], "running", best=False)], name="c")


def test_what_was_drawn_from_a_logarithmic_scale_is_shown_on_one() -> None:
    lines = [study.Line({"rate": 0.001 * 1.5**power}, float(power), best=power == 0) for power in range(6)]

    def shown(*logarithmic: str) -> str:
        return study.parallel_coordinates(
            lines, names=("rate",), logarithmic=logarithmic, metric="m", lower_is_better=True, name="n"
        )

    middle = f"{0.001 * 1.5**2.5:.3g}"  # of six values that grow by a half each
    assert middle in shown("rate")
    assert middle not in shown()


def test_the_new_plots_are_the_same_every_time_and_take_the_pages_colours() -> None:
    gate = evaluation.Bounded("auc", 0.0, 0.0, 0.0, 0.0, fails_above=True, is_loss=True, passed=True)
    lines = [study.Line({"a": 1e-4}, 1.0, best=True), study.Line({"a": 1.0}, 2.0, best=False)]
    draws: tuple[Callable[[], str], ...] = (
        lambda: data.class_balance([("a", 0, 0, 0)], n_rows=0, name="n"),
        lambda: bars.importance([("a", 0.0, None), ("b", -1.0, 0.5)], x_label="x", title="t", name="n"),
        lambda: evaluation.forest([gate], name="n"),
        lambda: evaluation.calibration([(1.0, 1.0, 3)], name="n"),
        lambda: evaluation.curve(
            [(1, 0.5, float("nan")), (100, 1.0, 0.5)], x_label="x", y_label="y", title="t", name="n"
        ),
        lambda: study.parallel_coordinates(
            lines, names=("a",), logarithmic=(), metric="m", lower_is_better=True, name="n"
        ),
    )
    for draw in draws:
        assert draw() == draw()
        assert not re.search(r"#[0-9a-f]{6}|\b20\d\d-\d\d", draw())


def test_a_small_histogram_shows_what_is_rare_and_leaves_out_what_is_not_there() -> None:
    assert data.histogram([], []) == ""
    assert data.histogram([0, 0], [0, 0]) == ""
    drawing = data.histogram([1_000_000, 1, 0], [0, 0, 0])
    assert drawing.count("<rect") == 2
    assert 'height="1.0"' in drawing
    assert "<path" not in drawing
