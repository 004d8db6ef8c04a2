from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.errors import ConflictError, GateError, InputError, NotFoundError, VerificationError
from kit.files import read_json
from kit.gates import GateResult, Judgement
from kit.model_version import Parts, write_model_version
from kit.models import ModelsResult, models
from kit.project import Project
from kit.settings import GatesSettings, ModelsSettings


@pytest.fixture
def empty(digits_project: Path) -> Project:
    return Project.open(digits_project)


@pytest.fixture
def project(empty: Project, tiny_parts: Parts, tmp_path: Path) -> Project:
    """A project with the versions tiny@1, tiny@2 and tiny@3, which all pass the gates."""
    for number in (1, 2, 3):
        folder = tmp_path / f"version-{number}"
        parts = replace(tiny_parts, manifest={"metrics": {"accuracy": 0.95 + number / 100}})
        digest = write_model_version(parts, folder=folder, key=empty.signing_key())
        uri = empty.store().put(folder, digest=digest)
        empty.registry().register("tiny", digest=digest, uri=uri, summary=dict(parts.manifest))
    return empty


def run(project: Project, action: str, reference: str | None = None, **more: Any) -> ModelsResult:
    return models(project, ModelsSettings.model_validate({"action": action, "reference": reference, **more}))


def stored(project: Project, number: int, name: str) -> Path:
    return project.store().fetch(project.registry().resolve(f"tiny@{number}").digest) / name


def test_list_shows_every_version(project: Project) -> None:
    assert [(record.model, record.number) for record in run(project, "list").versions] == [
        ("tiny", 1),
        ("tiny", 2),
        ("tiny", 3),
    ]
    assert len(run(project, "list", "tiny").versions) == 3
    with pytest.raises(NotFoundError, match="there is no model 'tyni'"):
        run(project, "list", "tyni")


def test_list_without_models_is_empty(empty: Project) -> None:
    assert run(empty, "list").versions == ()
    assert run(empty, "log").events == ()
    assert run(empty, "verify").checked == ("log 0",)


def test_show_reads_the_verified_manifest(project: Project) -> None:
    result = run(project, "show", "tiny@2")
    assert [record.number for record in result.versions] == [2]
    assert result.manifest["metrics"] == {"accuracy": 0.97}


def test_promote_and_rollback_move_the_alias(project: Project) -> None:
    assert run(project, "promote", "tiny@1").versions[0].aliases == ("champion",)
    assert run(project, "promote", "tiny@3").versions[0].number == 3
    assert run(project, "rollback", "tiny").versions[0].number == 1
    assert run(project, "promote", "tiny@2", alias="candidate").versions[0].aliases == ("candidate",)
    assert run(project, "show", "tiny").versions[0].number == 1


def test_a_version_that_misses_a_gate_becomes_champion_only_without_gates(project: Project) -> None:
    floors = GatesSettings(floors={"accuracy": 0.965, "log_loss": 0.2})
    strict = replace(project, settings=project.settings.model_copy(update={"gates": floors}))
    with pytest.raises(GateError) as caught:
        run(strict, "promote", "tiny@1")
    assert caught.value.message == (
        "tiny@1 was not promoted: it has no log_loss, the gate asks 0.2; accuracy is 0.9600, the gate 0.965"
    )
    assert "--no-gates" in str(caught.value.hint)
    assert run(strict, "promote", "tiny@1", alias="candidate").versions[0].number == 1
    run(project, "promote", "tiny@3")
    promoted = run(strict, "promote", "tiny@1", gates=False).versions[0]
    assert promoted.aliases == ("candidate", "champion")
    assert run(strict, "rollback", "tiny").versions[0].number == 3


def with_max_loss(project: Project, **more: Any) -> Project:
    gates = GatesSettings.model_validate({"max_loss": {"accuracy": 0.05}, **more})
    return replace(project, settings=project.settings.model_copy(update={"gates": gates}))


def judged(project: Project, number: int, *, against: int, passed: bool = True, **more: Any) -> None:
    """Leave the record of an evaluation against a champion."""
    rules = project.settings.gates.model_dump(mode="json", exclude={"floors"}) | more
    found = {"champion": 0.99, "low": -0.01, "high": 0.0, "n_rows": 200}
    gate = GateResult("accuracy", 0.98, 0.05, passed=passed, kind="max_loss", **found)
    champion = project.registry().resolve(f"tiny@{against}").digest
    facts = {
        "digest": project.registry().resolve(f"tiny@{number}").digest,
        "judgement": Judgement((gate,), champion, rules).to_json(),
    }
    project.write_record("evaluate", f"{number:04d}", facts)


def test_without_a_champion_there_is_nothing_to_be_held_against(project: Project) -> None:
    strict = with_max_loss(project)
    assert run(strict, "promote", "tiny@1").versions[0].number == 1
    assert run(strict, "promote", "tiny@1").versions[0].number == 1  # nor is the champion against itself


def test_a_version_that_was_not_held_against_the_champion_is_not_promoted(project: Project) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    with pytest.raises(GateError, match="was not held against the champion tiny@1") as caught:
        run(strict, "promote", "tiny@2")
    assert caught.value.hint == "run kit evaluate tiny@2, then promote it"
    judged(strict, 2, against=1)
    assert run(strict, "promote", "tiny@2").versions[0].number == 2
    judged(strict, 3, against=1)  # which is not the champion any more
    with pytest.raises(GateError, match="was not held against the champion tiny@2"):
        run(strict, "promote", "tiny@3")
    assert run(strict, "promote", "tiny@3", gates=False).versions[0].number == 3


@pytest.mark.parametrize("newest", ["0001-first", "9999-last"])
def test_the_newest_evaluation_decides_whatever_its_record_is_called(project: Project, newest: str) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    folder = project.state / "runs" / "evaluate"
    for passed in (False, True):
        judged(strict, 2, against=1, passed=passed)
        facts = read_json(folder / "0002.json")
        name = newest if passed else "0500-between"
        strict.write_record("evaluate", name, facts | {"written_at_s": 2e9 if passed else 1e9})
    (folder / "0002.json").unlink()
    assert run(strict, "promote", "tiny@2").versions[0].number == 2


def test_a_judgement_by_other_gates_does_not_count(project: Project) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    judged(strict, 2, against=1, max_loss={"accuracy": 0.5})
    with pytest.raises(GateError, match="by these gates"):
        run(strict, "promote", "tiny@2")


def test_a_lost_comparison_is_told_with_its_figures(project: Project) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    judged(strict, 2, against=1, passed=False)
    with pytest.raises(
        GateError, match=r"accuracy is 0\.9800 and may be 0\.0100 worse than the champion's 0\.99"
    ):
        run(strict, "promote", "tiny@2")


def test_what_was_judged_at_registration_counts(project: Project, tiny_parts: Parts, tmp_path: Path) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    judgement = Judgement(
        (),
        project.registry().resolve("tiny@1").digest,
        strict.settings.gates.model_dump(mode="json", exclude={"floors"}),
    )
    folder = tmp_path / "version-4"
    digest = write_model_version(
        replace(tiny_parts, manifest={"metrics": {"accuracy": 0.5}}), folder=folder, key=project.signing_key()
    )
    uri = project.store().put(folder, digest=digest)
    project.registry().register("tiny", digest=digest, uri=uri, summary={"judgement": judgement.to_json()})
    assert run(strict, "promote", "tiny@4").versions[0].number == 4


def test_a_damaged_record_is_no_judgement(project: Project) -> None:
    strict = with_max_loss(project)
    run(strict, "promote", "tiny@1")
    judged(strict, 2, against=1)
    (project.state / "runs" / "evaluate" / "0002.json").write_bytes(b"{")
    with pytest.raises(GateError, match="was not held against the champion"):
        run(strict, "promote", "tiny@2")


def test_promote_moves_only_from_the_expected_digest(project: Project) -> None:
    run(project, "promote", "tiny@1")
    expect = project.registry().resolve("tiny@2").digest
    with pytest.raises(ConflictError):
        run(project, "promote", "tiny@3", expect=expect)
    run(project, "promote", "tiny@3", expect=project.registry().resolve("tiny@1").digest)
    assert project.registry().resolve("tiny").number == 3


def test_a_damaged_version_is_not_promoted(project: Project) -> None:
    stored(project, 2, "model.onnx").write_bytes(b"other")
    with pytest.raises(VerificationError, match=r"'model\.onnx'"):
        run(project, "promote", "tiny@2")
    with pytest.raises(NotFoundError, match="has no champion"):
        project.registry().resolve("tiny")


def test_log_tells_what_happened(project: Project) -> None:
    run(project, "promote", "tiny@1")
    assert [event.kind for event in run(project, "log", "tiny").events] == ["register"] * 3 + ["promote"]


def test_verify_checks_the_log_and_every_byte(project: Project) -> None:
    head = project.registry().log()[-1].hash[:12]
    assert run(project, "verify").checked == (f"log 3 {head}", "tiny@1", "tiny@2", "tiny@3")
    assert run(project, "verify", "tiny@2").checked == (f"log 3 {head}", "tiny@2")
    stored(project, 3, "profile.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match=r"'profile\.json'"):
        run(project, "verify")
    assert run(project, "verify", "tiny@1").checked == (f"log 3 {head}", "tiny@1")


def test_verify_and_log_refuse_a_log_somebody_edited(project: Project) -> None:
    with sqlite3.connect(project.registry().path) as db:
        db.execute("DROP TRIGGER events_update")
        db.execute("UPDATE events SET at_ns = 0 WHERE seq = 2")
    db.close()
    for action in ("verify", "log"):
        with pytest.raises(VerificationError, match="event 2 in the log"):
            run(project, action)


def test_verify_refuses_a_version_signed_under_another_name(project: Project) -> None:
    record = project.registry().resolve("tiny@1")
    project.registry().register("other", digest=record.digest, uri=record.uri, summary={})
    with pytest.raises(VerificationError, match="other@1 was signed as 'tiny'"):
        run(project, "verify")


@pytest.mark.parametrize("action", ["show", "promote", "rollback"])
def test_an_action_on_a_version_needs_one(empty: Project, action: str) -> None:
    with pytest.raises(InputError, match=f"kit models {action} needs a model") as caught:
        run(empty, action)
    assert caught.value.hint == f"name it: kit models {action} digits"
