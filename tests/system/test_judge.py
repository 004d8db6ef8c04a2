"""Holding a version against a champion: real signed versions, answered on onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.judge import Contender, answer_rows, find_champion, judge
from kit.bootstrap import INDEPENDENT, Draw
from kit.engines import open_engine
from kit.errors import InputError, VerificationError
from kit.gates import GateResult, Judgement
from kit.model_version import ModelVersion, Parts, write_model_version
from kit.project import Project
from kit.rows import Part
from kit.settings import GatesSettings
from kit.signature import Signature
from kit.tensors import TensorSpec

DATA = {"fingerprint": "ab" * 32, "held_out": "cd" * 32, "label": "side", "windows": []}


@pytest.fixture
def project(digits_project: Path) -> Project:
    return Project.open(digits_project)


def register(
    project: Project, parts: Parts, folder: Path, *, data: dict[str, Any] | None = None
) -> ModelVersion:
    """Put a version into the project's registry and open it."""
    manifest = {"metrics": {"accuracy": 1.0}, "lineage": {"data": DATA if data is None else data}}
    made = replace(parts, name=project.name, manifest=manifest)
    digest = write_model_version(made, folder=folder, key=project.signing_key())
    uri = project.store().put(folder, digest=digest)
    record = project.registry().register(project.name, digest=digest, uri=uri, summary=dict(manifest))
    return project.open_version(f"{project.name}@{record.number}")[1]


def rows(n_rows: int = 200) -> Part:
    x = np.random.default_rng(0).uniform(-1, 1, size=(n_rows, 2)).astype(np.float32)
    labels = (x @ np.array([[2.0, -1.0], [-1.0, 2.0]], dtype=np.float32)).argmax(axis=1)
    return Part({"x": x}, labels, np.arange(n_rows))


def contender(version: ModelVersion, part: Part, *, wrong: int = 0, **changes: Any) -> Contender:
    """Make a candidate of a version's file whose first answers are wrong."""
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    outputs = answer_rows(engine, part.tensors)
    for name in ("probabilities", "logits"):
        outputs[name][:wrong] = outputs[name][:wrong, ::-1]
    outputs["label"][:wrong] = 1 - outputs["label"][:wrong]
    values = {
        "model_path": version.model_path,
        "signature": version.signature,
        "outputs": outputs,
        "data": DATA,
    }
    return Contender(**{**values, **changes})


def with_gates(project: Project, **gates: Any) -> Project:
    made = GatesSettings.model_validate(gates)
    return replace(project, settings=project.settings.model_copy(update={"gates": made}))


def named(judgement: Judgement) -> dict[str, GateResult]:
    return {gate.metric: gate for gate in judgement.results}


def test_the_first_version_has_nobody_to_lose_to(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    assert find_champion(project) is None
    version = register(project, tiny_parts, tmp_path / "v")
    strict = with_gates(project, floors={"accuracy": 0.9}, max_loss={"auc": 0.0, "latency": 0.0})
    judgement = judge(strict, contender(version, rows()), rows=rows(), champion=None)
    assert judgement.passed
    assert judgement.champion is None
    assert named(judgement)["auc"].reason == "there is no champion yet"


def test_a_candidate_is_held_against_the_champion_on_every_gate(
    project: Project, tiny_parts: Parts, tmp_path: Path
) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    project.registry().promote(f"{project.name}@1")
    found = find_champion(project)
    assert found is not None
    strict = with_gates(
        project, max_loss={"accuracy": 0.05, "latency": 5.0, "size": 0.0, "calibration_error": 1.0}
    )
    good = judge(strict, contender(version, rows()), rows=rows(), champion=found[1])
    assert good.passed
    assert good.champion == version.digest
    assert good.results[0].reason == good.results[-1].reason == ""
    bad = judge(strict, contender(version, rows(), wrong=12), rows=rows(), champion=found[1])
    assert {name for name, gate in named(bad).items() if not gate.passed} == {"accuracy"}
    accuracy = named(bad)["accuracy"]
    assert (accuracy.value, accuracy.champion, accuracy.n_rows) == (0.94, 1.0, 200)
    latency = named(bad)["latency"]
    assert latency.low is not None
    assert latency.high is not None
    assert latency.low <= latency.high
    assert latency.low < 0.2  # one file twice, in turns: neither order nor history favours one
    assert latency.high > -0.2


def test_a_larger_file_fails_the_size_gate_alone(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    larger = tmp_path / "model.onnx"
    larger.write_bytes(version.model_path.read_bytes() * 2)
    strict = with_gates(project, max_loss={"size": 0.5, "accuracy": 0.5})
    judgement = judge(strict, contender(version, rows(), model_path=larger), rows=rows(), champion=version)
    assert [gate.metric for gate in judgement.results if not gate.passed] == ["size"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"classes": ("low", "middle")}, "its classes are not the champion's; they differ in high, middle"),
        ({"columns": ("width", "depth")}, "its inputs are not the champion's"),
        ({"task": "regression"}, "it answers a classification and the champion a regression"),
    ],
)
def test_models_that_cannot_be_compared_fail_with_the_reason(
    project: Project, tiny_parts: Parts, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    signature = tiny_parts.signature
    if "classes" in change:
        label = replace(signature.outputs[0], classes=change["classes"])
        signature = replace(signature, outputs=(label, *signature.outputs[1:]))
        mine, other = replace(tiny_parts, signature=signature), tiny_parts
    elif "columns" in change:
        mine = replace(
            tiny_parts, signature=replace(signature, inputs=(replace(signature.inputs[0], **change),))
        )
        other = tiny_parts
    else:
        outputs = (TensorSpec("value", "float32", (-1,)),)
        mine, other = (
            tiny_parts,
            replace(tiny_parts, signature=Signature("regression", signature.inputs, outputs)),
        )
    champion = register(project, other, tmp_path / "champion")
    version = register(project, mine, tmp_path / "candidate")
    strict = with_gates(project, max_loss={"accuracy": 0.5, "latency": 9.0, "size": 0.5})
    judgement = judge(strict, contender(version, rows()), rows=rows(), champion=champion)
    results = named(judgement)
    assert results["size"].passed  # files can be compared whatever they answer
    for metric in ("accuracy", "latency"):
        assert not results[metric].passed
        assert reason in results[metric].reason


@pytest.mark.parametrize(
    "trained_on, said",
    [
        (DATA, ""),
        ({**DATA, "fingerprint": "12" * 32}, "trained on other data (121212121212)"),
        ({**DATA, "held_out": "12" * 32}, "trained on another split of the same data"),
        ({}, "what the champion was trained on is not known"),
    ],
)
def test_a_champion_that_may_have_seen_the_rows_is_said_to(
    project: Project, tiny_parts: Parts, tmp_path: Path, trained_on: dict[str, Any], said: str
) -> None:
    champion = register(project, tiny_parts, tmp_path / "champion", data=trained_on)
    strict = with_gates(project, max_loss={"accuracy": 0.5})
    (gate,) = judge(strict, contender(champion, rows()), rows=rows(), champion=champion).results
    assert gate.passed
    assert said in gate.reason
    assert bool(said) == ("may have seen some of them" in gate.reason)


@pytest.mark.parametrize(
    "trained_on, table, said",
    [
        (DATA, DATA["fingerprint"], "the candidate and the champion were trained on rows of this table"),
        (
            {**DATA, "fingerprint": "12" * 32},
            "12" * 32,
            "the champion was trained on rows of this table",
        ),
        (DATA, "34" * 32, "whether one of the two has learned from rows of this table is not known"),
    ],
)
def test_of_a_labelled_table_it_is_said_who_was_trained_on_it(
    project: Project, tiny_parts: Parts, tmp_path: Path, trained_on: dict[str, Any], table: str, said: str
) -> None:
    champion = register(project, tiny_parts, tmp_path / "champion", data=trained_on)
    strict = with_gates(project, max_loss={"accuracy": 0.5})
    own = contender(champion, rows())
    (gate,) = judge(strict, own, rows=rows(), champion=champion, table=table).results
    assert gate.reason == said


@pytest.mark.parametrize(
    "trained_on, said",
    [
        ({**DATA, "label": "top"}, "label = 'top', not 'side'"),
        ({**DATA, "windows": [{"name": "w", "column": "a", "length": 4}]}, "with the window 'w'"),
    ],
)
def test_a_champion_that_was_trained_on_another_question_decides_nothing(
    project: Project, tiny_parts: Parts, tmp_path: Path, trained_on: dict[str, Any], said: str
) -> None:
    champion = register(project, tiny_parts, tmp_path / "champion", data=trained_on)
    strict = with_gates(project, max_loss={"accuracy": 0.5, "latency": 9.0, "size": 0.5})
    judgement = judge(strict, contender(champion, rows()), rows=rows(), champion=champion)
    assert {name for name, gate in named(judgement).items() if gate.passed} == {"size"}
    assert named(judgement)["accuracy"].reason == f"the champion was trained on another question: {said}"


def test_rows_that_belong_together_are_drawn_together(
    project: Project, tiny_parts: Parts, tmp_path: Path
) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    strict = with_gates(project, max_loss={"accuracy": 0.09})
    part = rows(1000)
    wrong = contender(version, part, wrong=50)
    groups = np.arange(1000) // 25  # the wrong answers are two whole groups of forty

    def verdict(draw: Draw) -> GateResult:
        return judge(strict, wrong, rows=part, champion=version, draw=draw).results[0]

    assert verdict(INDEPENDENT).passed
    assert not verdict(Draw.of_groups(groups)).passed


def test_the_champion_is_not_held_against_itself(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    strict = with_gates(project, max_loss={"accuracy": 0.0}, min_rows=5000)
    own = contender(version, rows(), digest=version.digest)
    (gate,) = judge(strict, own, rows=rows(), champion=version).results
    assert (gate.passed, gate.reason) == (True, "it is the champion")


def test_answers_that_are_no_numbers_are_refused(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    broken = contender(version, rows())
    broken.outputs["probabilities"][0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        judge(with_gates(project), broken, rows=rows(), champion=None)


def test_a_damaged_champion_judges_nobody(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    version = register(project, tiny_parts, tmp_path / "v")
    project.registry().promote(f"{project.name}@1")
    version.model_path.write_bytes(b"other")
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        find_champion(project)
