"""Rules of the report: it shows what the records hold, escapes it, and loads nothing."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.errors import MissingDependencyError, NotFoundError, SettingsError, UnavailableError
from kit.project import Project
from kit.report import report
from kit.report.plots import shipping
from kit.settings import ReportSettings

DIGEST = "ab" * 32

TRAIN: dict[str, Any] = {
    "model": "digits",
    "number": 1,
    "digest": DIGEST,
    "task": "classification",
    "classes": [0, 1],
    "epochs": [
        {"epoch": 1, "train_loss": 1.0, "validation_loss": 0.9},
        {"epoch": 2, "train_loss": 0.5, "validation_loss": 0.6},
    ],
    "best_epoch": 2,
    "metrics": {"accuracy": 0.975, "log_loss": 0.1},
    "gates": [{"metric": "accuracy", "value": 0.975, "bound": 0.96, "passed": True}],
    "promoted": True,
    "n_rows": {"train": 12930, "test": 40},
    "parity": 7e-7,
    "confusion": [[19, 1], [0, 20]],
}
PREDICT: dict[str, Any] = {
    "model": "digits@1",
    "digest": DIGEST,
    "engine": "onnxruntime",
    "output": "predictions",
    "rows_in": 1234567,
    "rows_out": 1234567,
    "n_parts": 13,
    "seconds": 3.5,
    "rows_per_second": 352733.4,
    "labels": {"0": 1000000, "1": 234567},
}
TARGET: dict[str, Any] = {
    "target": "litert-int8",
    "metric": "accuracy",
    "value": 0.97,
    "agreement": 0.995,
    "output_error": 0.01,
    "n_rows": 40,
    "size_bytes": 108000,
    "latency_ms": {"p50": 0.031, "p95": 0.05},
    "passed": True,
    "reason": "",
    "bundle": "bundles/digits-litert-int8.bundle",
    "bundle_digest": "cd" * 32,
}
FAILED: dict[str, Any] = {
    **dict.fromkeys(TARGET),
    "target": "openvino-int8",
    "passed": False,
    "reason": "operator 'Loop' cannot be converted",
}
EXPORT: dict[str, Any] = {
    "model": "digits@1",
    "digest": DIGEST,
    "reference": {
        "metric": "accuracy",
        "value": 0.975,
        "size_bytes": 327700,
        "latency_ms": {"p50": 0.04, "p95": 0.09},
    },
    "targets": [TARGET, FAILED],
}
SERVE: dict[str, Any] = {
    "status": {
        "url": "http://127.0.0.1:8000",
        "grpc": None,
        "models": [{"model": "digits", "version": 1, "digest": DIGEST, "release": 1}],
        "engine": "onnxruntime",
        "replicas": 1,
        "ingress": "haproxy",
        "key_file": None,
        "start_s": 4.2,
    },
    "uptime_s": 75.0,
    "stopped_by": "SIGTERM",
}
QUERY: dict[str, Any] = {
    "url": "http://127.0.0.1:8000",
    "model": "digits",
    "version": "1",
    "latency_ms": 2.5,
    "columns": ["row", "label", "probability"],
    "rows": [[0, 1, 0.9]],
}
FLASH: dict[str, Any] = {
    "device": "device-a",
    "digest": "ef" * 32,
    "name": "digits",
    "target": "litert-int8",
    "release": 1,
    "status": "confirmed",
    "detail": "golden rows agree",
}
DEMO: dict[str, Any] = {
    "n_rows": 40,
    "rows": [
        {
            "place": "float model",
            "accuracy": 0.975,
            "agreement": 1.0,
            "size_bytes": None,
            "latency_ms": None,
        },
        {
            "place": "device",
            "accuracy": 0.97,
            "agreement": 0.99999,
            "size_bytes": 108000,
            "latency_ms": 0.031,
        },
    ],
}
RECORDS = {
    "train": TRAIN,
    "predict": PREDICT,
    "serve": SERVE,
    "query": QUERY,
    "export": EXPORT,
    "flash": FLASH,
    "demo": DEMO,
}


def page(project: Project) -> str:
    """Write the page and give its text, without the sheet of styles."""
    path = report(project, ReportSettings()).path
    return re.sub(r"<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def words(project: Project) -> str:
    """Give what a reader reads, outside the drawings, with single spaces."""
    text = re.sub(r"<svg.*?</svg>", "", page(project), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_a_project_without_records_is_told_to_train(project: Project) -> None:
    with pytest.raises(NotFoundError) as caught:
        report(project, ReportSettings())
    assert "kit train" in (caught.value.hint or "")
    assert not Path("report.html").exists()


def test_every_kind_of_record_has_its_section_and_agreement_comes_first(
    project: Project, making_records: dict[str, Any]
) -> None:
    for kind, record in {**RECORDS, **making_records}.items():
        project.write_record(kind, "one", record)
    result = report(project, ReportSettings(output="made/page.html"))
    making = ("data", "study", "training", "evaluation", "compression")
    assert result.sections == ("agreement", *making, "export", "batch", "endpoints", "devices")
    assert (result.n_runs, result.path) == (11, Path.cwd() / "made" / "page.html")
    text = result.path.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', text) == list(result.sections)


@pytest.mark.parametrize(
    "kind,section",
    [
        ("train", "training"),
        ("predict", "batch"),
        ("serve", "endpoints"),
        ("query", "endpoints"),
        ("export", "export"),
        ("flash", "devices"),
        ("demo", "agreement"),
    ],
)
def test_a_section_without_records_is_left_out(project: Project, kind: str, section: str) -> None:
    project.write_record(kind, "one", RECORDS[kind])
    assert report(project, ReportSettings()).sections == (section,)


def test_the_champion_and_its_digest_stand_at_the_top(project: Project) -> None:
    project.write_record("train", "0001", TRAIN)
    assert "none yet" in words(project)
    project.registry().register("digits", digest=DIGEST, uri="store", summary={})
    project.registry().promote("digits@1")
    assert f"digits@1 sha256:{DIGEST}" in words(project)


def test_a_newer_candidate_does_not_hide_the_champion(project: Project) -> None:
    project.registry().register("digits", digest=DIGEST, uri="store", summary={})
    project.registry().promote("digits@1")
    project.write_record("train", "0001", TRAIN)
    project.write_record("train", "0002", {**TRAIN, "number": 2, "digest": "12" * 32})
    text = words(project)
    assert text.index("digits@2 121212121212 newest") < text.index("digits@1 abababababab champion")
    assert "All training runs" in text


def test_figures_carry_separators_and_units(project: Project) -> None:
    for kind, record in RECORDS.items():
        project.write_record(kind, "one", record)
    text = words(project)
    for shown in (
        "1,234,567",
        "352,733",
        "97.50 %",
        "≥ 96.00 %",
        "327.7 kB",
        "1:15 min",
        "12,930 rows to train",
    ):
        assert shown in text, shown


def test_only_every_row_is_a_hundred_percent(project: Project) -> None:
    project.write_record("demo", "latest", DEMO)
    assert "97.50 % 100.00 %" in words(project)
    assert "97.00 % 99.99 %" in words(project)


def test_a_failed_target_is_shown_with_its_reason(project: Project) -> None:
    project.write_record("export", "one", EXPORT)
    assert "openvino-int8 was not written: operator 'Loop' cannot be converted" in words(project)


def test_targets_exported_one_by_one_stand_together(project: Project) -> None:
    project.write_record("export", "one", {**EXPORT, "targets": [TARGET]})
    project.write_record("export", "two", {**EXPORT, "targets": [FAILED]})
    text = words(project)
    assert "litert-int8 97.00 %" in text
    assert "openvino-int8 was not written" in text


@pytest.mark.parametrize(
    "content,reason",
    [
        ("{not json", "cannot be read as JSON"),
        ("[1, 2]", "holds a list"),
        ('{"id": "x", "written_at_s": 1}', "is missing"),
        (json.dumps({**PREDICT, "id": "x", "written_at_s": 1, "rows_in": "many"}), "'rows_in' is 'many'"),
        (json.dumps({**PREDICT, "id": "x", "written_at_s": 1e300}), "'written_at_s' is '1e+300'"),
        (
            json.dumps({**PREDICT, "id": "x", "written_at_s": 1, "seconds": float("nan")}),
            "'seconds' is 'nan'",
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_named_and_the_others_are_shown(
    project: Project, content: str, reason: str
) -> None:
    project.write_record("predict", "good", PREDICT)
    (project.state / "runs" / "predict" / "bad.json").write_text(content)
    result = report(project, ReportSettings())
    assert (result.n_runs, result.sections) == (1, ("batch", "unreadable"))
    text = words(project)
    assert "predict/bad.json" in text
    assert reason in text
    assert "1,234,567" in text


HOSTILE = '<script>alert(1)</script>"\' & $\\frac{$ #010101 id="x" \x00\ud800 -->'


def test_everything_a_record_says_is_escaped(project: Project, making_records: dict[str, Any]) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: each if key == "kind" else hostile(each) for key, each in value.items()}
        if isinstance(value, list):
            return [hostile(each) for each in value]
        return HOSTILE if isinstance(value, str) else value

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {f"{HOSTILE}{index}": value for index, value in enumerate(values.values())}

    for kind, record in {**RECORDS, **making_records}.items():
        path = project.state / "runs" / kind / "x.json"
        path.parent.mkdir(parents=True)
        changed = {**hostile(record), "id": HOSTILE, "written_at_s": 1}
        if kind == "train":
            changed |= {
                "classes": [HOSTILE, f"{HOSTILE}2"],
                "metrics": {HOSTILE: 1.0},
                "n_rows": {HOSTILE: 1},
            }
        if kind == "predict":
            changed |= {"labels": {HOSTILE: 3}}
        if kind == "prepare":
            changed["classes"] = renamed(changed["classes"])
            changed["columns"][0]["categories"] = renamed(changed["columns"][0]["categories"])
        if kind == "tune":
            changed["importance"] = renamed(changed["importance"])
            for trial in changed["trials"]:
                trial["parameters"] = renamed(trial["parameters"])
        if kind == "evaluate":
            changed |= {"metrics": renamed(changed["metrics"]), "by_class": renamed(changed["by_class"])}
        path.write_text(json.dumps(changed))
    text = page(project)
    assert report(project, ReportSettings()).n_runs == 11
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_page_names_no_other_place_to_load_from(project: Project, making_records: dict[str, Any]) -> None:
    for kind, record in {**RECORDS, **making_records}.items():
        project.write_record(kind, "one", {**record})
    text = page(project)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    for target in re.findall(r'(?:href|src|action|url\()="?([^")]+)', text):
        assert target.startswith(("#", "data:")), target
    assert not re.search(r"<(script|iframe|object|embed|img|form|base)\b|@import", text)


def test_ids_are_unique_and_every_reference_has_its_target(
    project: Project, making_records: dict[str, Any]
) -> None:
    for kind, record in {**RECORDS, **making_records}.items():
        project.write_record(kind, "one", record)
    text = page(project)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_the_same_figures_give_the_same_drawing() -> None:
    reference = shipping.Point("float ONNX", "", 300.0, 97.5)
    points = [shipping.Point("litert-int8", "litert", 3.0, 97.0)]
    drawings = {
        shipping.trade_off(reference, points, x_label="size (kB)", y_label="m", ceiling=100, name="p")
        for _ in range(2)
    }
    assert len(drawings) == 1
    assert not re.search(r"#[0-9a-f]{6}|\b20\d\d-\d\d", drawings.pop())


def test_strange_figures_are_drawn_all_the_same(project: Project) -> None:
    project.write_record(
        "train", "0001", {**TRAIN, "epochs": [], "confusion": [], "classes": [], "gates": []}
    )
    project.write_record("train", "0002", {**TRAIN, "epochs": TRAIN["epochs"][:1], "best_epoch": 7})
    zero = {**TARGET, "value": 0.0, "size_bytes": 0, "latency_ms": {"p50": 0.0, "p95": 0.0}}
    reference = {**EXPORT["reference"], "value": 0.0, "size_bytes": 0, "latency_ms": {"p50": 0.0, "p95": 0.0}}
    project.write_record("export", "one", {**EXPORT, "reference": reference, "targets": [zero]})
    project.write_record("predict", "none", {**PREDICT, "labels": {"0": 0, "1": 0}})
    assert report(project, ReportSettings()).sections == ("training", "export", "batch")


def test_a_thousand_classes_are_listed_instead_of_drawn(project: Project) -> None:
    n_classes = 1000
    confusion = [[0] * n_classes for _ in range(n_classes)]
    confusion[3][7] = 2
    classes = [f"class {index}" for index in range(n_classes)]
    project.write_record("train", "0001", {**TRAIN, "classes": classes, "confusion": confusion})
    project.write_record("predict", "one", {**PREDICT, "labels": dict.fromkeys(classes, 1)})
    text = words(project)
    assert "class 3 class 7 2 100.00 %" in text
    assert "975 rarest classes are not drawn" in text
    assert len(page(project)) < 300_000


@pytest.mark.parametrize(
    "output,error", [("s3://bucket/page.html", SettingsError), ("there", UnavailableError)]
)
def test_an_output_that_is_no_file_is_refused(project: Project, output: str, error: type[Exception]) -> None:
    Path("there").mkdir()
    project.write_record("demo", "latest", DEMO)
    with pytest.raises(error, match=output):
        report(project, ReportSettings(output=output))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_what_to_install(
    project: Project, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_record("train", "0001", TRAIN)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as caught:
        report(project, ReportSettings())
    assert caught.value.hint == "pip install 'batch-edge-kit[cluster]'"


def test_importing_the_report_imports_neither_jinja_nor_matplotlib() -> None:
    code = "import sys, kit.report; print({'jinja2', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


def _luminance(colour: str) -> float:
    """Give the relative luminance of a colour such as ``#ffffff``, from 0 to 1 (WCAG 2.2)."""
    levels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(project: Project, scheme: int) -> None:
    project.write_record("demo", "latest", DEMO)
    sheet = report(project, ReportSettings()).path.read_text(encoding="utf-8")
    root = re.findall(r":root \{(.*?)\}", sheet, flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root))
    for behind in ("card", "back"):
        for text in ("ink", "muted", "link", "bad", "good"):
            assert _contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for kind in ("good", "bad"):
        assert _contrast(colours[kind], colours[f"{kind}-back"]) >= 4.5
    for index in range(1, 6):
        assert _contrast(colours[f"series-{index}"], colours["card"]) >= 3, index
