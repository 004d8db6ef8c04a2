"""Rules of how an export is shown in the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.export import ExportReport, Reference, TargetResult
from edge.ladder import Rung
from edge.layers import Layer
from edge.listing import TargetEntry, TargetList
from edge.measure import Comparison, Figures, Latency
from edge.recipes import Recipe
from kit.cli.show.exporting import export


def comparison(*, output_error: float) -> Comparison:
    return Comparison(
        metric="accuracy",
        reference=0.99,
        value=0.9725,
        drop=0.0175,
        agreement=0.985,
        output_error=output_error,
        n_rows=400,
    )


FIGURES = Figures(
    comparison=comparison(output_error=0.4321),
    size_bytes=160_000,
    model_bytes=101_500,
    float_bytes=304_500,
    latency=Latency(0.0217, 0.0328),
    float_latency=Latency(0.075, 0.09),
    memory_mb=41.7,
    load_s=0.0113,
)
ABOVE = "output error 0.4321 is above max_output_error = 0.05"
REFUSED = Rung(Recipe("int8"), (), FIGURES, {"accuracy": ABOVE})
CHOSEN = Rung(
    Recipe("int8-keep-8", n_kept=8),
    tuple(f"conv_{index}" for index in range(8)),
    replace(FIGURES, comparison=comparison(output_error=0.0271)),
    {},
)
UNBUILT = Rung(
    Recipe("int8-narrow", narrow_weights=True), (), None, {"broken": "operator 'Loop' has no converter"}
)
WRITTEN = TargetResult(
    target="litert-int8",
    engine="litert",
    precision="int8",
    recipe="int8-keep-8",
    figures=CHOSEN.figures,
    measured_in="litert 2.3.0",
    note="",
    passed=True,
    reason="",
    bundle=Path("bundles/digits-litert-int8.bundle"),
    digest="cd" * 32,
    ladder=(CHOSEN,),
    winner=CHOSEN,
    layers=(),
    confusion=None,
    errors=None,
)
FAILED = replace(
    WRITTEN,
    target="onnx-int8",
    engine="onnxruntime",
    recipe=None,
    figures=None,
    winner=None,
    passed=False,
    reason="no recipe keeps every budget",
    bundle=None,
    digest=None,
    ladder=(REFUSED, UNBUILT),
    layers=tuple(Layer(f"layer_{index}", "Conv", 0.1 * index, 0.01 * index) for index in range(8)),
)


def shown(capsys: pytest.CaptureFixture[str], *targets: TargetResult) -> str:
    """Give what is printed of an export, with single spaces in a line."""
    export(
        ExportReport(
            model="digits@3",
            digest="ab" * 32,
            reference=Reference("accuracy", 0.99, 327_700, Latency(0.041, 0.092)),
            targets=targets,
            record=Path("record.json"),
            page=Path("bundles/digits-export.html"),
        )
    )
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def test_each_target_is_one_line_beside_the_float_model(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, WRITTEN)
    assert "float (ONNX) - 0.9900 - - 327.7 - 0.0410 - reference" in said
    assert (
        "litert-int8 int8-keep-8 0.9725 0.9850 0.0271 101.5 3.00x 0.0217 3.46x "
        "bundles/digits-litert-int8.bundle"
    ) in said
    assert said.endswith("report: bundles/digits-export.html")


def test_a_target_whose_first_recipe_passed_needs_no_remark(capsys: pytest.CaptureFixture[str]) -> None:
    assert "passed" not in shown(capsys, WRITTEN)


def test_a_target_that_failed_shows_every_recipe_and_its_worst_layers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = shown(capsys, WRITTEN, FAILED)
    assert "onnx-int8 - - - - - - - - NOT WRITTEN" in said
    assert "onnx-int8 was not written: no recipe keeps every budget" in said
    assert (
        "int8: accuracy 0.9725, agreement 0.9850, output error 0.4321, 101.5 kB, p50 0.0217 ms, "
        f"p95 0.0328 ms, 41.7 MB of memory, loaded in 0.011 s: {ABOVE}"
    ) in said
    assert "int8-narrow: operator 'Loop' has no converter" in said
    assert "layer_7 (Conv): adds 0.0700 to 0.7000 in all" in said
    assert "layer_3 " in said
    assert "layer_2 " not in said


def test_a_reason_that_a_recipe_gives_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, replace(FAILED, ladder=(UNBUILT,), reason=UNBUILT.reason, layers=()))
    assert said.count("operator 'Loop' has no converter") == 1
    assert "onnx-int8 was not written; recipes tried:" in said


def test_a_later_recipe_says_why_the_first_was_not_taken_and_what_it_keeps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = shown(capsys, replace(WRITTEN, ladder=(REFUSED, CHOSEN)))
    assert ABOVE in said
    assert "passed; in float: conv_0, conv_1, conv_2, conv_3 and 4 more" in said


def test_a_note_is_shown_with_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, replace(WRITTEN, note="2.3 times slower than float32"))
    assert "litert-int8: 2.3 times slower than float32" in said


def test_a_list_says_what_can_be_built_and_run_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    entries = (
        TargetEntry(
            name="openvino-int8",
            builds=True,
            runs=True,
            why="",
            files=("model.bin", "model.xml"),
            recipes=("int8", "int8-smooth"),
        ),
        TargetEntry(
            name="tensorrt-int8",
            builds=True,
            runs=False,
            why="tensorrt is not installed",
            files=("model.onnx",),
            recipes=("int8",),
        ),
    )
    export(TargetList(targets=entries))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "openvino-int8 yes yes int8, int8-smooth" in lines
    assert "tensorrt-int8: tensorrt is not installed" in lines
