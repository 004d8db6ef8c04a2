"""kit evaluate on a small project with a real network: what it measures, refuses, keeps and writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from jobs.candidate import register_candidate
from jobs.evaluate import EvaluateResult, evaluate
from jobs.evaluation.refit import recipe_of
from jobs.evaluation.slices import rank_slices
from jobs.fitting.local import fit_here
from jobs.fitting.loop import FitConfig
from jobs.fitting.network import build_network
from jobs.preparation.prepared import prepare_rows
from kit.errors import GateError, InputError, NotFoundError, ProjectError, SettingsError
from kit.gates import Judgement
from kit.keypair import generate_key
from kit.models import models
from kit.project import Project
from kit.settings import EvaluateSettings, ModelsSettings, TrainSettings

KIT_TOML = """
[project]
name = "line"

[data]
path = "rows.parquet"
label = "side"
group = "place"
test_fraction = 0.4
inputs = [{ name = "x", columns = ["a", "b"] }]

[model]
factory = "model:build"

[gates.floors]
accuracy = 0.6

[gates.max_loss]
accuracy = 0.2
size = 0.5

[train]
epochs = 4
learning_rate = 0.05
"""
MODEL = """from torch import nn


def build(*, n_classes, width=4):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, n_classes))
"""
N_ROWS = 300


def table(n_rows: int = N_ROWS, *, seed: int = 0) -> pa.Table:
    """Rows of which those of place "c" have their label at random."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n_rows, 2)).astype(np.float32)
    place = np.array(["a", "b", "c"])[np.arange(n_rows) % 3]
    clear = np.where(x[:, 0] > 0, "right", "left")
    side = np.where(place == "c", generator.choice(["left", "right"], n_rows), clear)
    noise = generator.normal(size=n_rows)
    columns = {
        "a": x[:, 0],
        "b": x[:, 1],
        "side": side,
        "place": place,
        "noise": noise,
        "day": np.arange(n_rows),
        "mirror": np.where(side == "left", "right", "left"),
    }
    return pa.table(columns)


def register(
    project: Project, *, promote: bool, lineage: dict[str, Any] | None = None, **changes: Any
) -> int:
    """Train in this process and register, as the commands that train do."""
    settings = project.command("train", TrainSettings).model_copy(update=changes)
    prepared = prepare_rows(project)
    n_classes = len(prepared.split.classes)
    fitted = fit_here(
        project,
        FitConfig.of(settings, project=project, n_classes=n_classes),
        prepared.arrays,
        build=partial(build_network, n_features=prepared.n_features, n_classes=n_classes),
        hear=lambda figures: None,
    )
    made = register_candidate(project, settings, prepared, fitted, promote=promote, lineage=lineage)
    return made.version.number


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose champion, line@1, does what the data allow, and whose candidate, line@2, does not."""
    folder = tmp_path_factory.mktemp("evaluate") / "line"
    folder.mkdir()
    (folder / "kit.toml").write_text(KIT_TOML)
    (folder / "model.py").write_text(MODEL)
    parquet.write_table(table(), folder / "rows.parquet")
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    assert register(project, promote=True) == 1
    assert register(project, promote=False, epochs=1, learning_rate=1e-9, seed=5) == 2
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Project:
    """The trained project, to be changed."""
    return Project.open(Path(shutil.copytree(trained, tmp_path / "line")))


def run(project: Project, **settings: Any) -> EvaluateResult:
    settings = {"card": "card", **settings}
    return evaluate(project, project.command("evaluate", EvaluateSettings, settings))


def test_everything_is_measured_and_written(project: Project) -> None:
    result = run(
        project, model="line@1", slices=("place", "noise"), json_report="all.json", junit="gates.xml"
    )
    result.require_passed()
    names = [path.name for path in result.written]
    assert names == ["all.json", "gates.xml", "card.md", "card.html", "0001.json"]
    facts = json.loads((project.folder / "all.json").read_text())
    record = json.loads(result.written[-1].read_text())
    assert {key: record[key] for key in facts} == facts
    assert facts["n_rows"] == sum(each["support"] for each in facts["by_class"].values())
    assert sum(facts["calibration"]["counts"]) == facts["n_rows"]
    low, high = facts["intervals"]["bounds"]["accuracy"]
    assert low <= facts["metrics"]["accuracy"] <= high
    assert (facts["slices"][0]["column"], facts["slices"][0]["value"]) == ("place", "c")
    assert facts["slices"][0]["worse_by"] > 0.15
    assert len([each for each in facts["slices"] if each["column"] == "noise"]) == 4
    assert facts["importance"][0]["column"] == "a"
    assert ElementTree.parse(project.folder / "gates.xml").getroot().get("failures") == "0"


def test_a_candidate_worse_than_the_champion_fails_and_is_not_promoted(project: Project) -> None:
    result = run(project)
    assert result.model == "line@2"
    assert result.facts["champion"]["number"] == 1
    failed = {gate.metric for gate in result.gates if not gate.passed}
    assert "accuracy" in failed
    assert "size" not in failed
    with pytest.raises(GateError, match=r"line@2 does not pass: accuracy is 0\.\d+"):
        result.require_passed()
    run(project, gates=False).require_passed()
    promote = ModelsSettings(action="promote", reference="line@2")
    with pytest.raises(GateError, match="worse than the champion's"):
        models(project, promote)


def test_what_was_judged_in_training_is_what_promote_reads(project: Project) -> None:
    summary = project.registry().resolve("line@2").summary
    judgement = Judgement.from_json(summary["judgement"])
    assert judgement is not None
    assert judgement.champion == project.registry().resolve("line@1").digest
    assert not judgement.passed
    again = Judgement.from_json(run(project).facts["judgement"])
    assert again == judgement  # the seed decides: the same rows give the same intervals


def test_two_evaluations_of_one_version_are_equal(project: Project) -> None:
    assert run(project, model="line@1").facts == run(project, model="line@1").facts


def test_a_table_of_new_rows_is_measured_and_promotes_nobody(project: Project) -> None:
    parquet.write_table(table(150, seed=9), project.folder / "new.parquet")
    facts = run(project, model="line@1", data="new.parquet").facts
    assert facts["n_rows"] == 150
    assert facts["judgement"] is None
    assert "new.parquet" in facts["data"]["source"]
    shutil.copy(project.folder / "rows.parquet", project.folder / "copy.parquet")
    for name in ("rows.parquet", "copy.parquet"):
        own = run(project, model="line@1", data=name).facts
        assert own["notes"] == [
            "these are the rows it was trained on, so the figures say little about new ones"
        ]


@pytest.mark.parametrize("data", [None, "rows.parquet"])
def test_a_version_is_not_measured_by_another_question_than_it_was_trained_on(
    project: Project, data: str | None
) -> None:
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace('label = "side"', 'label = "mirror"'))
    with pytest.raises(
        InputError, match="model 'line' was trained on: label = 'mirror', not 'side'"
    ) as caught:
        run(Project.open(project.folder), model="line@1", data=data)
    assert "restore [data] label" in str(caught.value.hint)


def test_a_candidate_with_another_question_than_the_champions_is_not_promoted(project: Project) -> None:
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace('label = "side"', 'label = "mirror"'))
    changed = Project.open(project.folder)
    number = register(changed, promote=True)
    assert changed.registry().resolve("line@champion").number == 1
    facts = run(changed, model=f"line@{number}", gates=False).facts
    assert facts["champion"]["reason"] == "it was trained on another question: label = 'side', not 'mirror'"
    assert facts["champion"]["metrics"] == {}


@pytest.mark.parametrize(
    "split, drawn", [('split = "grouped"', "groups"), ('split = "time"\ntime = "day"', "blocks")]
)
def test_rows_that_the_split_keeps_together_are_drawn_together(
    project: Project, split: str, drawn: str
) -> None:
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace('group = "place"', f'group = "place"\n{split}'))
    changed = Project.open(project.folder)
    number = register(changed, promote=False)  # decided as it is registered, and again as it is evaluated
    judged = Judgement.from_json(changed.registry().resolve(f"line@{number}").summary["judgement"])
    result = run(changed, model=f"line@{number}", gates=False)
    assert result.facts["intervals"]["drawn"] == drawn
    assert judged == Judgement.from_json(result.facts["judgement"])
    (gate,) = [gate for gate in result.gates if (gate.kind, gate.metric) == ("max_loss", "accuracy")]
    assert ("groups are fewer than" in gate.reason) == (drawn == "groups")
    assert (gate.low is None) == (drawn == "groups")
    parquet.write_table(table(200, seed=9).drop_columns(["place", "day"]), project.folder / "bare.parquet")
    bare = run(changed, model=f"line@{number}", data="bare.parquet", gates=False).facts
    assert bare["intervals"]["drawn"] == "rows"
    assert "its rows for independent ones" in bare["notes"][0]


def test_a_value_that_is_refused_is_in_the_row_of_the_table_as_it_was_given(project: Project) -> None:
    text = project.folder / "kit.toml"
    rule = "[[prepare.rules]]\ncolumn = 'code'\npattern = 'ok'\notherwise = 'drop'\n\n[train]"
    text.write_text(text.read_text().replace("[train]", rule))
    rows = table(30).append_column("code", pa.array(["bad"] * 5 + ["ok"] * 25))
    a = rows["a"].to_numpy().copy()
    a[10] = np.inf
    parquet.write_table(rows.set_column(0, "a", pa.array(a)), project.folder / "new.parquet")
    with pytest.raises(InputError, match=r"column 'a'.*, row 10\b"):
        run(Project.open(project.folder), model="line@1", data="new.parquet", gates=False)


@pytest.mark.parametrize(
    "column, first",
    [
        (pa.array([time(each % 24, each) for each in range(60)], pa.time32("s")), "00:00:00 to "),
        (pa.array([time(each % 24, each) for each in range(60)], pa.time64("us")), "00:00:00.000000 to "),
        (pa.array([timedelta(seconds=each) for each in range(60)], pa.duration("s")), "0 seconds to 14 "),
        (pa.array([date(2024, 1, 1) + timedelta(each) for each in range(60)]), "2024-01-01 to 2024-01-15"),
        (pa.array(range(60)).dictionary_encode(), "0 to 14"),
        (pa.array([None, *np.arange(59.0)]).dictionary_encode(), "0 to 14"),
    ],
)
def test_numbers_and_times_of_every_kind_are_cut_into_ranges(column: pa.Array, first: str) -> None:
    labels = np.arange(60) % 2
    outputs = {"label": np.zeros(60, dtype=np.int64), "probabilities": np.full((60, 2), 0.5, np.float32)}
    found = rank_slices(pa.table({"c": column}), ["c"], labels=labels, outputs=outputs, metric="accuracy")
    ranges = [each for each in found if each.value != "(missing)"]
    assert len(ranges) == 4
    assert any(each.value.startswith(first) for each in ranges)
    assert sum(each.n_rows for each in found) == 60


def test_rows_of_one_class_leave_the_rankings_out_and_their_gates_undecided(project: Project) -> None:
    rows = table(200, seed=3)
    parquet.write_table(rows.filter(pa.compute.equal(rows["side"], "left")), project.folder / "left.parquet")
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace("accuracy = 0.6", "accuracy = 0.6\nauc = 0.6"))
    result = run(Project.open(project.folder), model="line@1", data="left.parquet")
    assert set(result.facts["undefined"]) == {"auc", "average_precision"}
    (auc,) = [gate for gate in result.gates if gate.metric == "auc"]
    assert (auc.passed, auc.value) == (False, None)


def test_few_rows_decide_no_loss(project: Project) -> None:
    parquet.write_table(table(30, seed=3), project.folder / "few.parquet")
    result = run(project, model="line@2", data="few.parquet")
    (gate,) = [gate for gate in result.gates if (gate.kind, gate.metric) == ("max_loss", "accuracy")]
    assert not gate.passed
    assert "30 rows are fewer than min_rows = 100" in gate.reason


@pytest.mark.parametrize(
    "settings, error, message, hint",
    [
        ({"slices": ("plaec",)}, InputError, "no column 'plaec' to slice by", "did you mean 'place'"),
        ({"model": "line@9"}, NotFoundError, "line has no version 9", "kit models list"),
        ({"card": "s3://bucket/card"}, SettingsError, "is an address", "name a file"),
        ({"validation_curve": "train.learning_rat=1"}, SettingsError, "no 'learning_rat'", "learning_rate"),
        ({"validation_curve": "train.workers=1,2"}, SettingsError, "'workers' of .train. changes no", None),
        ({"validation_curve": "train.epochs=0"}, SettingsError, "epochs", None),
        ({"validation_curve": "train.epochs=2,2"}, SettingsError, "names a value twice", None),
        ({"validation_curve": "parameters.widht=4"}, ProjectError, "no parameter 'widht'", "width"),
        ({"data": "rows.parquet", "learning_curve": True}, SettingsError, "do not go with data", None),
        ({"cross_validation": "k-fold", "folds": 200}, InputError, "for 200 folds", "fewer folds"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    project: Project, settings: dict[str, Any], error: type[Exception], message: str, hint: str | None
) -> None:
    with pytest.raises(error, match=message) as caught:
        run(project, **settings)
    assert hint is None or hint in str(getattr(caught.value, "hint", ""))
    assert not (project.state / "runs" / "evaluate").exists()


def test_a_table_without_labels_or_with_unknown_ones_is_refused(project: Project) -> None:
    rows = table(40)
    for name, changed, message in (
        ("bare", rows.drop_columns(["side"]), "no label column 'side'"),
        ("gaps", rows.set_column(2, "side", pa.array(["left"] * 39 + [None])), "missing in 1 rows"),
        ("odd", rows.set_column(2, "side", pa.array(["left"] * 39 + ["up"])), "has the class 'up' in 1 rows"),
        ("none", rows.slice(0, 0), "no rows"),
    ):
        parquet.write_table(changed, project.folder / f"{name}.parquet")
        with pytest.raises(InputError, match=message):
            run(project, data=f"{name}.parquet")


def test_data_or_a_split_that_changed_since_training_is_refused(project: Project) -> None:
    text = project.folder / "kit.toml"
    before = text.read_text()
    text.write_text(before.replace("test_fraction = 0.4", "test_fraction = 0.4\nseed = 8"))
    with pytest.raises(InputError, match="hold out other rows") as caught:
        run(Project.open(project.folder))
    assert "--data TABLE" in str(caught.value.hint)
    text.write_text(before)
    parquet.write_table(table(N_ROWS, seed=1), project.folder / "rows.parquet")
    with pytest.raises(InputError, match="which rows were held out is not known"):
        run(Project.open(project.folder))


@pytest.mark.parametrize("kind, n_folds", [("k-fold", 3), ("grouped", 3), ("time-series", 2)])
def test_folds_train_the_project_again(project: Project, kind: str, n_folds: int) -> None:
    if kind == "time-series":  # rows of a random split cross in time, which the leakage check refuses
        text = project.folder / "kit.toml"
        text.write_text(text.read_text().replace('group = "place"', 'split = "time"\ntime = "day"'))
        project = Project.open(project.folder)
        register(project, promote=False)
    found = run(project, cross_validation=kind, folds=n_folds, gates=False).facts["cross_validation"]
    assert (found["kind"], len(found["folds"])) == (kind, n_folds)
    assert found["mean"]["accuracy"] == pytest.approx(
        np.mean([f["metrics"]["accuracy"] for f in found["folds"]])
    )
    assert not [path for path in (project.state / "evaluate").iterdir() if path.is_dir()]


def test_folds_train_what_the_version_was_trained_with_whatever_kit_toml_says(project: Project) -> None:
    def loss(model: str) -> float:
        found = run(project, model=model, cross_validation="k-fold", folds=2, gates=False)
        return float(found.facts["cross_validation"]["mean"]["log_loss"])

    learned, idle = loss("line@1"), loss("line@2")  # line@2 took steps of 1e-9
    assert learned < idle - 0.05
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace("learning_rate = 0.05", "learning_rate = 1e-9"))
    project = Project.open(project.folder)
    assert loss("line@1") == learned


def test_a_tuned_versions_parameters_are_those_that_folds_train(project: Project) -> None:
    model = {**project.settings.model.model_dump(mode="json"), "parameters": {"width": 7}}
    number = register(project, promote=False, epochs=2, lineage={"model": model})
    recipe = recipe_of(project, project.open_version(f"line@{number}")[1], name="tuned")
    assert recipe.project.settings.model.parameters == {"width": 7}
    assert (recipe.train.epochs, recipe.train.learning_rate) == (2, 0.05)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('factory = "model:build"', 'factory = "model:other"', "factory = 'model:other', not 'model:build'"),
        ("[train]", "[[prepare.features]]\ncolumns = ['a']\nscale = 'standard'\n\n[train]", "prepare"),
    ],
)
def test_folds_of_a_version_that_the_project_would_not_make_now_are_refused(
    project: Project, old: str, new: str, message: str
) -> None:
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        run(Project.open(project.folder), model="line@1", cross_validation="k-fold")


def test_folds_of_a_compressed_version_are_refused_and_its_parent_named(project: Project) -> None:
    number = register(
        project, promote=False, lineage={"compress": {"method": "prune"}, "parent": {"number": 1}}
    )
    with pytest.raises(InputError, match=f"line@{number} was made from version 1 by kit compress") as caught:
        run(project, learning_curve=True)
    assert "kit evaluate line@1" in str(caught.value.hint)
    run(project, gates=False)  # it is measured like any other


def test_what_an_earlier_evaluation_of_the_same_rows_measured_stays(project: Project) -> None:
    found = run(project, model="line@1", cross_validation="k-fold", folds=2, learning_curve=True).facts
    again = run(project, model="line@1")
    record = json.loads(again.written[-1].read_text())
    for name in ("cross_validation", "learning_curve"):
        assert record[name] == json.loads(json.dumps(found[name]))
    assert record["notes"] == [
        "measured by an earlier evaluation of the same rows: cross validation, learning curve"
    ]
    assert "cross-validation, 2 folds" in (project.folder / "card.md").read_text()
    assert (
        run(project, model="line@1", cross_validation="k-fold", folds=3).facts["cross_validation"]
        != (found["cross_validation"])
    )
    other = run(project, model="line@2", gates=False).facts
    assert other["cross_validation"] is None


def test_columns_of_rules_are_strings_in_a_labelled_table_too(project: Project) -> None:
    text = project.folder / "kit.toml"
    rule = "[[prepare.rules]]\ncolumn = 'code'\npattern = '0[0-9]'\notherwise = 'drop'\n\n[train]"
    text.write_text(text.read_text().replace("[train]", rule))
    code = ["01"] * 20 + ["11"] * 10
    csv.write_csv(table(30).append_column("code", pa.array(code)), project.folder / "new.csv")
    facts = run(Project.open(project.folder), model="line@1", data="new.csv", gates=False).facts
    assert facts["n_rows"] == 20


def test_leaving_rows_out_one_by_one_measures_them_together(project: Project) -> None:
    parquet.write_table(table(24), project.folder / "rows.parquet")
    text = project.folder / "kit.toml"
    text.write_text(text.read_text().replace("epochs = 4", "epochs = 1"))
    few = Project.open(project.folder)
    register(few, promote=False)
    found = run(few, cross_validation="leave-one-out", gates=False).facts["cross_validation"]
    assert len(found["folds"]) == 24
    assert "auc" in found["mean"]  # which no single row determines
    assert found["std"] == {}


def test_curves_measure_each_training(project: Project) -> None:
    facts = run(project, learning_curve=True, validation_curve="parameters.width=2,4", gates=False).facts
    sizes = [each["n_rows"] for each in facts["learning_curve"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(prepare_rows(project).split.train.rows)
    assert facts["validation_curve"]["name"] == "parameters.width"
    assert [each["value"] for each in facts["validation_curve"]["values"]] == [2, 4]


def test_an_interrupted_cross_validation_goes_on_with_the_next_fold(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.evaluation.refit import Refit

    trained: list[int] = []
    real = Refit.answer

    def answer(self: Refit, split: Any) -> Any:
        if len(trained) == 2:
            trained.append(0)
            raise KeyboardInterrupt
        trained.append(len(split.train.rows))
        return real(self, split)

    monkeypatch.setattr(Refit, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        run(project, cross_validation="k-fold", folds=3, gates=False)
    folds = run(project, cross_validation="k-fold", folds=3, gates=False).facts["cross_validation"]["folds"]
    assert len(folds) == 3
    assert len(trained) == 4  # two, the one that was interrupted, and the third alone


def test_shap_values_name_the_column_that_decides(project: Project) -> None:
    pytest.importorskip("shap")
    found = run(project, model="line@1", shap=True, explain_rows=30).facts["shap"]
    assert [each["column"] for each in found] == ["a", "b"]
    assert found[0]["mean_abs"] > 2 * found[1]["mean_abs"]
    kept = run(project, model="line@1", explain_rows=30)
    assert json.loads(kept.written[-1].read_text())["shap"] == json.loads(json.dumps(found))
    fewer = run(project, model="line@1", explain_rows=20).facts
    assert (fewer["explained"]["n_rows"], list(fewer["shap"])) == (20, [])  # the others were of 30 rows


def test_a_setting_that_came_to_be_later_leaves_an_older_version_as_it_was(project: Project) -> None:
    version = project.open_version("line@1")[1]
    model = {"factory": "model:build", "parameters": {"width": 7}}  # no estimator, no preprocessing
    older = {"model": model, "prepare": {}, "train": {"epochs": 2}}
    recipe = recipe_of(project, replace(version, manifest={"lineage": older}), name="older")
    assert recipe.train.epochs == 2
    assert recipe.train.learning_rate == TrainSettings().learning_rate


@pytest.mark.parametrize("section", ["prepare", "train", "model"])
def test_a_recorded_setting_nobody_knows_is_named(project: Project, section: str) -> None:
    version = project.open_version("line@1")[1]
    recorded: dict[str, Any] = {"model": {"factory": "model:build"}, "prepare": {}, "train": {"epochs": 2}}
    recorded[section]["once"] = 1
    with pytest.raises(InputError, match=r"the lineage of newer.*once") as caught:
        recipe_of(project, replace(version, manifest={"lineage": recorded}), name="newer")
    assert caught.value.hint == "train again with this kit: kit train"
