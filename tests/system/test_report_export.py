"""Rules of what is shown of an export: its own page, and its section of the report."""

from __future__ import annotations

import copy
import html
import re
from typing import Any

import pytest

from kit.errors import InputError
from kit.project import Project
from kit.report import export_report, report
from kit.report.formats import NO_FIGURE
from kit.report.plots import shipping as plots
from kit.settings import ReportSettings

REFUSED: dict[str, Any] = {
    "recipe": "int8",
    "says": "8-bit weights, 8-bit activations, true ranges",
    "value": 0.9125,
    "drop": 0.0775,
    "agreement": 0.9175,
    "output_error": 0.4321,
    "size_bytes": 101_500,
    "latency_ms": {"p50": 0.0217, "p95": 0.0328},
    "memory_mb": 41.7,
    "load_s": 0.0113,
    "passed": False,
    "reason": "output error 0.4321 is above max_output_error = 0.05",
    "kept": [],
}
CHOSEN: dict[str, Any] = {
    "recipe": "int8-keep-2",
    "says": "8-bit weights, 8-bit activations, true ranges, 2 layers in float",
    "value": 0.98,
    "drop": 0.01,
    "agreement": 0.9825,
    "output_error": 0.0271,
    "size_bytes": 150_000,
    "model_bytes": 109_233,
    "latency_ms": {"p50": 0.025, "p95": 0.0439},
    "memory_mb": 42.9,
    "load_s": 0.0124,
    "passed": True,
    "reason": "",
    "kept": ["features/conv_1", "head/linear"],
}
TARGET: dict[str, Any] = {
    **{"target": "litert-int8", "engine": "litert", "precision": "int8", "recipe": "int8-keep-2"},
    **{"metric": "accuracy", "n_rows": 400, "measured_in": "litert 2.3.0", "note": ""},
    **{key: CHOSEN[key] for key in ("value", "drop", "agreement", "output_error", "size_bytes")},
    **{"model_bytes": 109_233, "float_bytes": 327_700},
    **{key: CHOSEN[key] for key in ("latency_ms", "memory_mb", "load_s", "passed", "reason")},
    "float_latency_ms": {"p50": 0.075, "p95": 0.0878},
    "bundle": "bundles/digits-litert-int8.bundle",
    "bundle_digest": "cd" * 32,
    "ladder": [REFUSED, CHOSEN],
    "confusion": {"labels": ["no", "yes"], "counts": [[198, 2], [5, 195]]},
    "errors": {"edges": [-0.2, -0.1, 0.0, 0.1, 0.2], "counts": [3, 40, 50, 1]},
    "layers": [
        {"name": "features/conv_0", "kind": "CONV_2D", "error": 0.012, "added": 0.012},
        {"name": "features/conv_1", "kind": "DEPTHWISE_CONV_2D", "error": 0.051, "added": 0.039},
    ],
}
NOTHING: dict[str, Any] = dict.fromkeys(TARGET)
UNBUILT: dict[str, Any] = {
    **NOTHING,
    **{"target": "tensorrt-int8", "engine": "tensorrt", "precision": "int8", "measured_in": "", "note": ""},
    **{"passed": False, "reason": "no recipe could be built", "layers": []},
    "ladder": [
        {
            **dict.fromkeys(REFUSED),
            **{"recipe": "int8", "says": "8-bit weights", "passed": False, "kept": []},
            "reason": "operator 'Loop' at block/loop_3 has no converter",
        }
    ],
}
SLOW: dict[str, Any] = {
    **TARGET,
    **{"target": "litert-int16x8", "precision": "int16x8", "recipe": "int16x8"},
    **{"latency_ms": {"p50": 0.3, "p95": 0.4}, "model_bytes": 400_000, "note": "4 times slower than float32"},
    **{"drop": -0.005, "ladder": [], "confusion": None, "errors": None, "layers": []},
}
RUN: dict[str, Any] = {
    "model": "digits@3",
    "digest": "ab" * 32,
    "settings": {
        **{"model": "digits", "target": ["litert-int8"], "max_metric_drop": 0.02, "max_output_error": 0.05},
        **{"max_size_mb": 64.0, "max_latency_ms": 100.0, "max_memory_mb": 512.0},
    },
    "machine": {"cpu": "AMD EPYC", "arch": "x86_64", "cores": 2, "threads": 1},
    "calibration": {"n_rows": 200, "fingerprint": "ef" * 32, "n_left_out": 3},
    "reference": {
        **{"metric": "accuracy", "value": 0.99, "size_bytes": 327_700},
        "latency_ms": {"p50": 0.041, "p95": 0.092},
    },
    "targets": [TARGET, SLOW, UNBUILT],
}
#: What the kit wrote before recipes: none of the newer keys.
OLD_TARGET: dict[str, Any] = {
    key: TARGET[key]
    for key in (
        *("target", "metric", "value", "agreement", "output_error", "n_rows", "size_bytes", "latency_ms"),
        *("passed", "reason", "bundle", "bundle_digest"),
    )
}
OLD_RUN: dict[str, Any] = {key: RUN[key] for key in ("model", "digest", "reference")}


def read(page: str) -> str:
    """Give what a reader reads of a page outside its drawings, with single spaces and signs of a keyboard."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    said = html.unescape(re.sub(r"<[^>]+>", " ", text))
    return " ".join(said.replace("\N{MULTIPLICATION SIGN}", "x").replace(NO_FIGURE, "-").split())


def page_of(project: Project, **changes: Any) -> str:
    return export_report(project, {**RUN, **changes}).decode("utf-8")


def captions(page: str) -> list[str]:
    return [html.unescape(each) for each in re.findall(r"<figcaption>(.*?)</figcaption>", page)]


def details_of(page: str) -> list[str]:
    return re.findall(r"<details.*?</details>", page, flags=re.DOTALL)


def test_the_page_names_the_model_and_the_machine_that_measured(project: Project) -> None:
    page = page_of(project)
    assert "<h2>digits@3</h2>" in page
    text = read(page)
    assert text.startswith("digits - export of digits@3")
    for shown in (
        "exported for 3 targets: 2 written.",
        "Measured on AMD EPYC (x86_64), 2 cores, 1 thread.",
        "Calibrated with 200 training rows efefefefefef ; 3 were left out.",
        "Budgets: accuracy at most 0.02 worse, output error at most 0.05, size at most 64.0 MB, median "
        "latency at most 100 ms, resident memory at most 512 MB.",
    ):
        assert shown in text, shown


def test_every_figure_of_a_target_stands_in_the_table(project: Project) -> None:
    text = read(page_of(project))
    assert "float ONNX 99.00 % - - 327.7 kB 0.041 0.092 - - reference" in text
    assert (
        "litert-int8 int8-keep-2 litert 2.3.0 98.00 % 0.01 worse 98.25 % 0.0271 109.2 kB 3.00x smaller "
        "150.0 kB packed "
        "0.025 3.00x faster 0.0439 2.00x faster 42.9 0.0124 written cdcdcdcdcdcd"
    ) in text


def test_what_costs_more_than_float_says_so(project: Project) -> None:
    text = read(page_of(project))
    assert "0.005 better" in text
    assert "400.0 kB 1.22x larger 150.0 kB packed 0.3 4.00x slower 0.4 4.56x slower" in text
    assert "4 times slower than float32" in text


def test_every_recipe_of_the_ladder_is_shown_with_what_became_of_it(project: Project) -> None:
    page = page_of(project)
    text = read(details_of(page)[0])
    assert "litert-int8 written 2 recipes tried, int8-keep-2 chosen" in text
    assert (
        "int8 8-bit weights, 8-bit activations, true ranges 91.25 % 0.0775 worse 91.75 % 0.432 101.5 kB "
        "0.0217 0.0328 41.7 0.0113 refused output error 0.4321 is above max_output_error = 0.05"
    ) in text
    assert (
        "int8-keep-2 8-bit weights, 8-bit activations, true ranges, 2 layers in float 98.00 % 0.01 worse "
        "98.25 % 0.0271 109.2 kB 0.025 0.0439 42.9 0.0124 chosen In float: features/conv_1 , head/linear"
    ) in text
    assert (
        "Engine litert, int8; compared on 400 held-out rows. Float32 in the same engine: median 0.075 ms, "
        "95th percentile 0.0878 ms."
    ) in text


def test_details_are_closed_until_somebody_opens_them_and_need_no_script(project: Project) -> None:
    page = page_of(project)
    shown = details_of(page)
    assert len(shown) == 2  # the slow target has nothing to open
    assert all(each.startswith("<details>") and "<summary>" in each for each in shown)
    assert "<script" not in page


def test_a_target_that_could_not_be_built_shows_its_ladder_and_the_reason(project: Project) -> None:
    page = page_of(project)
    assert "tensorrt-int8 was not written: no recipe could be built" in read(page)
    text = read(details_of(page)[1])
    assert "tensorrt-int8 not written 1 recipe tried" in text
    assert "refused operator 'Loop' at block/loop_3 has no converter" in text


def test_answers_errors_and_layers_are_drawn_beside_the_reference(project: Project) -> None:
    page = page_of(project)
    assert captions(page) == [
        "accuracy against size",
        "accuracy against latency",
        "Errors of the outputs",
        "Rows by the reference's class and the target's: 7 differ",
        "Layers that add most error",
    ]
    assert "yes no 5 2.50 % no yes 2 1.00 %" in read(page)
    for drawn in ("the reference's class", "share of outputs", "DEPTHWISE_CONV_2D", "features/conv_1"):
        assert f">{drawn}<" in page, drawn


def test_a_target_that_answers_as_the_reference_does_says_it_in_a_sentence(project: Project) -> None:
    same = {**TARGET, "confusion": {"labels": ["no", "yes"], "counts": [[200, 0], [0, 200]]}}
    page = page_of(project, targets=[same])
    assert "Every row is given the reference's class." in read(page)
    assert not [each for each in captions(page) if each.startswith("Rows by")]


def test_a_regression_has_no_agreement_and_no_confusion(project: Project) -> None:
    reference = {**RUN["reference"], "metric": "rmse", "value": 1.5}
    target = {**TARGET, "metric": "rmse", "value": 1.5123, "agreement": None, "confusion": None}
    page = page_of(project, reference=reference, targets=[target])
    assert "1.5123 0.01 worse - 0.0271" in read(page)
    assert captions(page)[2:] == ["Errors of the outputs", "Layers that add most error"]


@pytest.mark.parametrize("key", sorted({*TARGET} - {"target", "passed", "reason", "engine", "precision"}))
def test_a_figure_that_was_not_measured_leaves_the_page_whole(project: Project, key: str) -> None:
    empty: dict[str, Any] = {"ladder": [], "layers": [], "note": "", "measured_in": ""}
    page = page_of(project, targets=[{**TARGET, key: empty.get(key)}])
    assert "litert-int8" in read(page)


@pytest.mark.parametrize(
    "wrong",
    [
        {"confusion": {"labels": ["no", "yes"], "counts": [[1, 2]]}},
        {"confusion": {"labels": [], "counts": []}},
        {"errors": {"edges": [0.0, 1.0], "counts": [1, 2, 3]}},
        {"errors": {"edges": [0.0, 0.0], "counts": [4]}},
        {"errors": {"edges": [], "counts": []}},
        {"layers": [{"name": "", "kind": "", "error": 0.0, "added": 0.0}]},
    ],
)
def test_counts_that_fit_nothing_are_left_out(project: Project, wrong: dict[str, Any]) -> None:
    assert "litert-int8" in read(page_of(project, targets=[{**TARGET, **wrong}]))


def test_what_a_record_names_is_escaped(project: Project) -> None:
    bad = "<script>alert(1)</script>"
    target = copy.deepcopy(TARGET)
    target |= {"target": bad, "engine": bad, "precision": "b", "recipe": bad, "measured_in": bad, "note": bad}
    target["confusion"]["labels"] = [bad, "yes"]
    target["layers"] = [{**each, "name": bad, "kind": bad} for each in target["layers"]]
    target["ladder"] = [{**each, "recipe": bad, "says": bad, "kept": [bad]} for each in target["ladder"]]
    machine = {**RUN["machine"], "cpu": bad, "arch": bad}
    failed = {**UNBUILT, "reason": bad}
    page = page_of(project, model=bad, digest=bad, machine=machine, targets=[target, failed])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


def test_a_record_of_an_earlier_kit_is_shown_without_what_it_lacks(project: Project) -> None:
    project.write_record("export", "one", {**OLD_RUN, "targets": [OLD_TARGET]})
    page = report(project, ReportSettings()).path.read_text(encoding="utf-8")
    text = read(page)
    assert "litert-int8 98.00 % 98.25 % 0.0271 150.0 kB 0.025 0.0439 written" in text
    assert details_of(page) == []
    for absent in ("memory", "Measured on", "Calibrated", "Budgets:"):
        assert absent not in text, absent


def test_targets_of_several_exports_stand_together_and_name_their_machines(project: Project) -> None:
    other = {"cpu": "Cortex-A76", "arch": "aarch64", "cores": 4, "threads": 2}
    project.write_record("export", "one", {**RUN, "targets": [TARGET]})
    project.write_record("export", "two", {**RUN, "machine": other, "targets": [UNBUILT]})
    text = read(report(project, ReportSettings()).path.read_text(encoding="utf-8"))
    assert "Measured on Cortex-A76 (aarch64), 4 cores, 2 threads." in text
    assert "Some targets on AMD EPYC (x86_64), 2 cores, 1 thread." in text
    assert "Measured on AMD EPYC, 2" in text  # beside its target, with the day


def test_the_pages_ids_are_unique_and_every_reference_has_its_target(project: Project) -> None:
    page = page_of(project, targets=[TARGET, {**TARGET, "target": "openvino-int8"}, SLOW])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert not re.search(r"<(script|iframe|object|embed|img|form|base)\b|@import", page)


def test_hundreds_of_layers_and_classes_stay_readable(project: Project) -> None:
    target = copy.deepcopy(TARGET)
    n_classes = 45
    counts = [[int(row != column) for column in range(n_classes)] for row in range(n_classes)]
    target["confusion"] = {"labels": [f"class {index}" for index in range(n_classes)], "counts": counts}
    target["layers"] = [
        {"name": f"layer {index}", "kind": "ADD", "error": index, "added": index} for index in range(500)
    ]
    target["ladder"][1]["kept"] = [f"layer {index}" for index in range(40)]
    page = page_of(project, targets=[target])
    text = read(page)
    for said in (
        "1,975 more pairs are not shown",
        "480 more layers, which add less, are not shown",
        "layer 11 and 28 more",
    ):
        assert said in text, said
    assert ">layer 499<" in page
    assert ">layer 479<" not in page
    assert len(page) < 300_000


def test_facts_that_are_no_exports_are_refused(project: Project) -> None:
    with pytest.raises(InputError, match=r"'targets\.0\.passed' is not what an export holds there"):
        page_of(project, targets=[{**TARGET, "passed": "perhaps"}])


def test_targets_of_one_engine_share_a_colour_and_no_two_look_alike() -> None:
    names = ("litert-int8", "litert-float16", "onnx-int8", "onnx-float16")
    points = [plots.Point(name, name.partition("-")[0], 3.0, 97.0) for name in names]
    reference = plots.Point("float", "", 9.0, 97.0)
    drawn = plots.trade_off(reference, points, x_label="size", y_label="m", ceiling=None, name="n")
    looks = re.findall(r'<use href="#([^"]+)"[^>]*stroke: var\(--(ink|series-\d)\)', drawn)[:5]
    assert [colour for _, colour in looks] == ["ink", "series-1", "series-1", "series-2", "series-2"]
    assert len(set(looks)) == 5


def test_a_target_that_was_not_written_is_drawn_hollow() -> None:
    def drawn(*, written: bool) -> str:
        return plots.trade_off(
            plots.Point("float", "", 9.0, 97.0),
            [plots.Point("onnx-int8", "onnx", 3.0, 97.0, written)],
            x_label="size",
            y_label="m",
            ceiling=None,
            name="n",
        )

    assert "fill: var(--paper)" in drawn(written=False)
    assert "fill: var(--paper)" not in drawn(written=True)


def test_the_same_figures_give_the_same_drawing() -> None:
    def drawn() -> list[str]:
        return [
            plots.output_errors([1, 2], edges=[-0.1, 0.0, 0.1], name="n"),
            plots.layer_errors([("a", "ADD", 0.2, 0.1), ("b" * 90, "C" * 90, 0.0, 0.0)], name="n"),
        ]

    assert drawn() == drawn()
    assert not re.search(r"#[0-9a-f]{6}|\b20\d\d-\d\d", "".join(drawn()))
