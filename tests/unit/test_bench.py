"""Rules of the bench: what is compared, what is refused, and how it is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edge.bench import BenchResult, bench, compare, read_gauge
from kit.cli.show.benching import bench as show
from kit.errors import ConflictError, GateError, InputError, SettingsError, VerificationError
from kit.gauge import Gauge
from kit.machine import Machine
from kit.project import Project
from kit.settings import BenchSettings

HERE = Gauge(
    name="shapes",
    target="litert-int8",
    release=3,
    digest="ab" * 32,
    engine="litert",
    runtime="ai-edge-litert",
    runtime_version="2.3.0",
    device="cpu",
    threads=1,
    load_s=0.25,
    first_answer_s=0.26,
    n_calls=200,
    p50_ms=0.5,
    p95_ms=0.75,
    p99_ms=1.5,
    batch_rows=8,
    rows_per_s=12_000.0,
    memory_before_mb=40.0,
    memory_loaded_mb=60.0,
    memory_peak_mb=64.0,
    watts=None,
    millijoules_per_row=None,
    power="not measured: this hardware has no RAPL counter and no power monitor",
    golden_passed=True,
    golden_reason="",
    agreement=1.0,
    output_error=0.01,
    machine=Machine("Quick CPU", "x86_64", 2, "Debian 12", "3.11.7"),
)
BOARD = dataclasses.replace(
    HERE,
    runtime="tflite-runtime",
    runtime_version="2.14.0",
    p50_ms=5.0,
    rows_per_s=1000.0,
    watts=4.5,
    millijoules_per_row=4.5,
    power="power monitor, VDD_IN",
    machine=Machine("Raspberry Pi 4", "aarch64", 4, "Debian 12", "3.9.2"),
)


@pytest.fixture
def project(digits_project: Path) -> Project:
    return Project.open(digits_project)


@pytest.fixture
def foreign(bundles) -> Path:
    """A bundle that a key nobody here trusts has signed."""
    path: Path = bundles.make().path
    return path


def result(here: Gauge = HERE, other: Gauge | None = None) -> BenchResult:
    return BenchResult(Path("shapes.bundle"), here, other, compare(here, other), None)


def test_two_machines_are_laid_side_by_side_with_their_ratio() -> None:
    figures = {each.name: each for each in compare(HERE, BOARD)}
    p50 = figures["one row, p50 ms"]
    assert (p50.here, p50.there, p50.ratio) == (0.5, 5.0, pytest.approx(0.1))
    assert figures["rows/s"].ratio == pytest.approx(12)


def test_a_figure_one_machine_lacks_has_no_ratio() -> None:
    watts = next(each for each in compare(HERE, BOARD) if each.name == "power, W")
    assert (watts.here, watts.there, watts.ratio) == (None, 4.5, None)
    assert all((each.there, each.ratio) == (None, None) for each in compare(HERE, None))


def test_a_figure_of_zero_has_no_ratio() -> None:
    still = dataclasses.replace(BOARD, load_s=0.0)
    assert next(each for each in compare(HERE, still) if each.name == "load, s").ratio is None


def test_a_machine_is_shown_with_what_it_did_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    show(result())
    said = capsys.readouterr().out
    assert "shapes litert-int8 release 3  sha256:abababababab" in said
    assert "here: Quick CPU, x86_64, 2 cores, Debian 12, Python 3.11.7" in said
    assert "ai-edge-litert 2.3.0 on cpu, 1 thread" in said
    assert "power: not measured: this hardware has no RAPL counter" in said
    assert "golden rows: passed" in said
    assert "there" not in said


def test_two_machines_are_shown_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    show(result(other=BOARD))
    said = capsys.readouterr().out
    assert "there: Raspberry Pi 4, aarch64, 4 cores" in said
    line = next(each for each in said.splitlines() if each.startswith("one row, p50"))
    assert line.split()[-3:] == ["0.5", "5", "0.10"]
    assert next(each for each in said.splitlines() if each.startswith("power, W")).split()[-3:] == [
        "measured",
        "4.5",
        "-",
    ]


def test_a_bundle_that_answers_wrongly_is_shown_and_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = result(dataclasses.replace(HERE, golden_passed=False, golden_reason="agreement 0.1 is below 0.9"))
    show(wrong)
    assert "golden rows: NOT PASSED, agreement 0.1 is below 0.9" in capsys.readouterr().out
    with pytest.raises(GateError, match=r"shapes\.bundle answers its golden rows wrongly .* 0\.1 is below"):
        wrong.require_passed()
    result().require_passed()


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps(BOARD.to_json()))
    assert read_gauge(path) == BOARD


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "does not exist"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"p50_ms": 1}', "the gauge lacks 'name'"),
    ],
)
def test_a_file_that_is_no_gauge_is_named(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "board.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"board\.json") as caught:
        read_gauge(path)
    assert sentence in caught.value.message
    assert "kit bench --output" in str(caught.value.hint)


def test_a_bundle_nobody_trusted_has_signed_is_not_measured(project: Project, foreign: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        bench(project, BenchSettings(bundle=str(foreign)))
    assert str(foreign) in caught.value.message, "the file the user named, not where it was unpacked"


def test_a_file_that_is_not_there_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.bundle cannot be read"):
        bench(project, BenchSettings(bundle=str(tmp_path / "absent.bundle")))


def test_figures_of_another_bundle_are_refused_before_anything_is_measured(
    project: Project, bundles, tmp_path: Path
) -> None:
    bundles.key = project.signing_key()
    made = bundles.make(network="hang")
    (tmp_path / "board.json").write_text(json.dumps(BOARD.to_json()))
    with pytest.raises(ConflictError) as caught:
        bench(project, BenchSettings(bundle=str(made.path), compare=str(tmp_path / "board.json")))
    assert "is about the bundle abababababab (litert-int8, release 3)" in caught.value.message
    assert made.digest[:12] in caught.value.message


@pytest.mark.parametrize("output", ["{tmp}", "s3://bucket/figures.json"])
def test_an_output_that_is_no_file_is_refused(
    project: Project, foreign: Path, tmp_path: Path, output: str
) -> None:
    with pytest.raises(SettingsError, match=r"output = .* is not a file"):
        bench(project, BenchSettings(bundle=str(foreign), output=output.format(tmp=tmp_path)))
