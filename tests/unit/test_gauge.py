"""Rules of a gauge: what it measures, in which process, and how it says that it could not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import golden
from kit.errors import InputError, MissingDependencyError, ModelError, VerificationError
from kit.gauge import Gauge, gauge, gauge_in_child, main
from kit.keypair import generate_key
from tests.conftest import BundleMaker


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Gauge:
    folder = tmp_path_factory.mktemp("gauge")
    generate_key(folder / "signing.pem")
    return gauge(BundleMaker(folder, folder / "signing.pem").make().folder, threads=1, n_calls=20)


def test_a_gauge_names_what_was_measured(bundles) -> None:
    bundle = bundles.make(release=3)
    found = gauge(bundle.folder, threads=2, n_calls=10)
    assert (found.name, found.target, found.release) == ("shapes", "onnx-test", 3)
    assert found.digest == bundle.digest
    assert (found.engine, found.runtime, found.device, found.threads) == (
        "onnxruntime",
        "onnxruntime",
        "cpu",
        2,
    )
    assert found.runtime_version[0].isdigit()


def test_figures_are_there_and_in_order(measured: Gauge) -> None:
    assert 0 < measured.load_s < measured.first_answer_s
    assert 0 < measured.p50_ms <= measured.p95_ms <= measured.p99_ms
    assert measured.n_calls == 20
    assert measured.rows_per_s > 0
    assert measured.memory_before_mb is not None
    assert measured.memory_loaded_mb is not None
    assert 0 < measured.memory_loaded_mb <= measured.memory_peak_mb


def test_golden_rows_are_asked(bundles) -> None:
    right = gauge(bundles.make().folder, threads=1, n_calls=10)
    assert (right.golden_passed, right.golden_reason, right.agreement) == (True, "", 1.0)
    wrong = gauge(bundles.make(golden_shift=0.5).folder, threads=1, n_calls=10)
    assert not wrong.golden_passed
    assert "output error 0.2500 is above 0.0500" in wrong.golden_reason


def test_a_bundle_that_answers_nan_is_measured_and_does_not_pass(bundles) -> None:
    found = gauge(bundles.make(network="nan").folder, threads=1, n_calls=10)
    assert (found.golden_passed, found.output_error) == (False, None)
    assert json.dumps(found.to_json(), allow_nan=False)


def test_batches_are_as_large_as_the_file_allows(bundles) -> None:
    assert gauge(bundles.make().folder, threads=1, n_calls=10).batch_rows == 1
    sizes = {"batch_sizes": [1, 4, 16]}
    assert gauge(bundles.make(manifest=sizes).folder, threads=1, n_calls=10).batch_rows == 16


def test_power_that_nothing_measures_is_said_to_be_not_measured(measured: Gauge) -> None:
    assert (measured.watts is None) == (measured.millijoules_per_row is None)
    assert (measured.watts is None) == measured.power.startswith("not measured: ")


def test_a_bundle_without_golden_rows_cannot_be_measured(bundles) -> None:
    folder = bundles.make().folder
    golden.write_tensors(folder / "golden" / "inputs.npz", {"features": np.zeros((0, 2), np.float32)})
    with pytest.raises(VerificationError, match="no golden rows"):
        gauge(folder, threads=1)


def test_a_gauge_survives_its_json(measured: Gauge) -> None:
    assert Gauge.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"p50_ms": "fast"}, "the gauge has p50_ms = 'fast', which is no float"),
        ({"p50_ms": None}, "the gauge has p50_ms = 'None', which is no float"),
        ({"p50_ms": math.nan}, "the gauge has p50_ms = 'nan'"),
        ({"n_calls": True}, "the gauge has n_calls = 'True', which is no int"),
        ({"machine": {"cpu": "x"}}, "its machine lacks 'arch'"),
        ({"machine": []}, "the gauge has machine = "),
        ({"speed": 1}, "the gauge has 'speed', which no gauge writes"),
        ({"digest": ...}, "the gauge lacks 'digest'"),
    ],
)
def test_json_that_no_gauge_wrote_is_refused(measured: Gauge, change: dict[str, Any], sentence: str) -> None:
    value = {**measured.to_json(), **change}
    with pytest.raises(InputError) as caught:
        Gauge.from_json({name: each for name, each in value.items() if each is not ...})
    assert sentence in caught.value.message


def test_the_program_prints_one_line_whatever_happens(bundles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundles.make().folder), "--calls", "10"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert Gauge.from_json(json.loads(line)).n_calls == 10
    assert main([str(bundles.make(manifest={"engine": "abacus"}).folder)]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["message"]) == ("InputError", "there is no engine 'abacus'")


def test_a_child_measures_a_process_of_its_own(bundles) -> None:
    ballast = bytearray(400_000_000)
    found = gauge_in_child(bundles.make().folder, threads=1, n_calls=10)
    assert found.memory_peak_mb < len(ballast) / 1e6, "what this process holds is not the bundle's"
    assert found.golden_passed


def test_what_the_child_refuses_is_raised_as_if_it_had_happened_here(bundles) -> None:
    folder = bundles.make().folder
    (folder / "model.bin").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"onnxruntime cannot load model\.bin"):
        gauge_in_child(folder, threads=1)


def test_a_missing_runtime_comes_with_the_line_that_installs_it(bundles) -> None:
    folder = bundles.make(manifest={"engine": "tensorrt"}).folder
    with pytest.raises(MissingDependencyError, match="'tensorrt' needs tensorrt") as caught:
        gauge_in_child(folder, threads=1)
    assert "batch-edge-kit[tensorrt]" in str(caught.value.hint)


def test_a_child_that_hangs_is_ended_and_named(bundles) -> None:
    folder = bundles.make(network="hang").folder
    with pytest.raises(ModelError, match=rf"measuring {folder.name} did not end within 3 s"):
        gauge_in_child(folder, threads=1, timeout_s=3)


def test_an_interpreter_that_is_not_there_is_named(bundles) -> None:
    with pytest.raises(InputError, match="/nowhere/python cannot be started: No such file"):
        gauge_in_child(bundles.make().folder, threads=1, python=Path("/nowhere/python"))
