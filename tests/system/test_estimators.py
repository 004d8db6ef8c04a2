"""Estimators, fitted, written as ONNX and asked like a network: exactly, or refused by name."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from pyarrow import parquet

from edge.export import export
from jobs.evaluation.curves import Variation, check_variation
from jobs.exporting.converters import register_converters
from jobs.exporting.estimator_graph import check_estimator_parity
from jobs.exporting.graph import export_onnx, export_program, python_reference
from jobs.exporting.parity import adversarial_rows, run_onnx
from jobs.fitting.estimator_class import check_estimator
from jobs.fitting.estimators import check_settings, fit_estimator
from jobs.fitting.thresholds import settle_thresholds
from jobs.predict import predict
from jobs.preparation.prepared import Prepared
from jobs.train import train
from kit.data import load
from kit.errors import GateError, InputError, MissingDependencyError, ProjectError, SettingsError
from kit.init import init
from kit.keypair import generate_key
from kit.models import models
from kit.project import Project
from kit.rows import Part, Split
from kit.runner import softmax
from kit.settings import ExportSettings, InitSettings, ModelsSettings, PredictSettings, TrainSettings
from kit.signature import Signature

COLUMNS = ("a", "b", "c", "d")
KIT_TOML = """
[project]
name = "trees"
task = "{task}"

[data]
path = "rows.parquet"
label = "answer"
inputs = [{{ name = "x", columns = ["a", "b", "c", "d"]{bounds} }}]

[model]
estimator = "{estimator}"
parameters = {{ {parameters} }}
"""

SMALL = "n_estimators = 8"
CLASSIFIERS = {
    "sklearn.linear_model:LogisticRegression": "",
    "sklearn.linear_model:SGDClassifier": "loss = 'log_loss'",
    "sklearn.tree:DecisionTreeClassifier": "max_depth = 5",
    "sklearn.ensemble:RandomForestClassifier": SMALL,
    "sklearn.ensemble:ExtraTreesClassifier": SMALL,
    "sklearn.ensemble:GradientBoostingClassifier": SMALL,
    "sklearn.ensemble:AdaBoostClassifier": SMALL,
    "sklearn.ensemble:BaggingClassifier": "n_estimators = 4",
    "sklearn.calibration:CalibratedClassifierCV": "",
    "sklearn.svm:SVC": "probability = true",
    "sklearn.svm:NuSVC": "probability = true, nu = 0.1",
    "sklearn.neural_network:MLPClassifier": "hidden_layer_sizes = 8, learning_rate_init = 0.02",
    "sklearn.naive_bayes:GaussianNB": "",
    "sklearn.naive_bayes:BernoulliNB": "",
    "sklearn.discriminant_analysis:QuadraticDiscriminantAnalysis": "",
    "lightgbm:LGBMClassifier": SMALL,
    "xgboost:XGBClassifier": SMALL,
}
REGRESSORS = {
    "sklearn.linear_model:LinearRegression": "",
    "sklearn.linear_model:Ridge": "alpha = 0.5",
    "sklearn.linear_model:Lasso": "alpha = 0.01",
    "sklearn.linear_model:ElasticNet": "alpha = 0.01",
    "sklearn.linear_model:HuberRegressor": "",
    "sklearn.svm:SVR": "",
    "sklearn.svm:LinearSVR": "",
    "sklearn.neural_network:MLPRegressor": "hidden_layer_sizes = 8, learning_rate_init = 0.02",
    "sklearn.tree:DecisionTreeRegressor": "max_depth = 5",
    "sklearn.ensemble:RandomForestRegressor": SMALL,
    "sklearn.ensemble:ExtraTreesRegressor": SMALL,
    "sklearn.ensemble:GradientBoostingRegressor": SMALL,
    "sklearn.ensemble:AdaBoostRegressor": SMALL,
    "lightgbm:LGBMRegressor": SMALL,
    "xgboost:XGBRegressor": SMALL,
}


def project_of(
    folder: Path, estimator: str, parameters: str = "", *, task: str = "classification", bounds: str = ""
) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kit.toml").write_text(
        KIT_TOML.format(task=task, estimator=estimator, parameters=parameters, bounds=bounds)
    )
    return Project.open(folder)


def clouds(n_rows: int, *, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre for each class, close enough to overlap."""
    random = np.random.default_rng(seed)
    labels = np.arange(n_rows) % n_classes
    return (random.normal(size=(n_rows, 4)) + 2.0 * np.eye(4)[labels]).astype(np.float32), labels


def prepared_of(
    project: Project, rows: np.ndarray, labels: np.ndarray, *, signature: Signature | None = None
) -> Prepared:
    """Lay rows out as training reads them: three quarters to learn from, the rest to validate and test."""
    regression = project.settings.project.task == "regression"
    classes: tuple[Any, ...] = () if regression else tuple(range(int(labels.max()) + 1))
    signature = signature or project.settings.signature(classes)
    labels = labels.astype(np.float32 if regression else np.int64)
    cut = 3 * len(rows) // 4
    parts = [
        Part({"x": rows[chosen]}, labels[chosen], np.arange(len(rows))[chosen])
        for chosen in (slice(0, cut), slice(cut, None), slice(cut, None))
    ]
    split = Split(*parts, classes=classes, fingerprint="0" * 64, n_rows=len(rows))
    return Prepared(split, signature, None, rows[:cut], rows[cut:])


def proven(project: Project, prepared: Prepared) -> tuple[Any, bytes]:
    """Fit, export, and compare on ordinary and adversarial rows."""
    fitted = fit_estimator(project, prepared, seed=0, threads=1)
    signature = prepared.signature
    model = export_onnx(fitted.model, transformer=None, signature=signature, sample=prepared.train[:2])
    tests = prepared.split.test.tensors
    strange = adversarial_rows(signature, sample={name: array[:8] for name, array in tests.items()})
    check_estimator_parity(
        fitted.model,
        python_reference(fitted.model, transformer=None, signature=signature),
        run_onnx(model),
        rows=tests,
        adversarial=strange,
        tolerance=1e-4,
    )
    return fitted.model, model


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("estimator", CLASSIFIERS)
def test_a_classifier_answers_as_onnx_like_itself(tmp_path: Path, estimator: str, n_classes: int) -> None:
    project = project_of(tmp_path, estimator, CLASSIFIERS[estimator])
    rows, labels = clouds(240, n_classes=n_classes)
    _, model = proven(project, prepared_of(project, rows, labels))
    answers = run_onnx(model)({"x": rows})
    assert [answers[name].dtype for name in ("label", "probabilities", "logits")] == [
        np.int64,
        np.float32,
        np.float32,
    ]
    assert answers["probabilities"].shape == answers["logits"].shape == (240, n_classes)
    np.testing.assert_allclose(softmax(answers["logits"]), answers["probabilities"], atol=1e-5)
    assert (answers["label"] == labels).mean() > 0.6


@pytest.mark.parametrize("estimator", REGRESSORS)
def test_a_regressor_answers_as_onnx_like_itself(tmp_path: Path, estimator: str) -> None:
    project = project_of(tmp_path, estimator, REGRESSORS[estimator], task="regression")
    rows, labels = clouds(240, n_classes=3)
    prepared = prepared_of(project, rows, rows @ np.array([1.0, 2.0, -1.0, 0.5]) + labels)
    _, model = proven(project, prepared)
    value = run_onnx(model)({"x": rows})["value"]
    assert (value.dtype, value.shape) == (np.float32, (240,))


@pytest.mark.parametrize("size, offset", [(1e-5, 0.0), (12.0, 1e6)])
@pytest.mark.parametrize(
    "estimator",
    ["sklearn.ensemble:GradientBoostingRegressor", "xgboost:XGBRegressor", "lightgbm:LGBMRegressor"],
)
def test_boosting_answers_alike_in_small_units_and_on_a_large_offset(
    tmp_path: Path, estimator: str, size: float, offset: float
) -> None:
    project = project_of(tmp_path, estimator, "", task="regression")
    rows, _ = clouds(1600, n_classes=1)
    truth = (rows[:, 0] * rows[:, 1] + np.sin(rows[:, 2])) * size + offset
    _, model = proven(project, prepared_of(project, rows, truth))
    value = run_onnx(model)({"x": rows})["value"]
    assert np.sqrt(np.mean((value - truth) ** 2)) <= 1.01 * truth.std()  # XGBoost splits nothing so small


@pytest.mark.parametrize(
    "estimator, parameters, task, said, hint",
    [
        ("sklearn.svm:LinearSVC", "", "classification", "gives no probabilities", "CalibratedClassifierCV"),
        ("sklearn.svm:SVC", "", "classification", "gives no probabilities", "probability = true"),
        ("sklearn.linear_model:RidgeClassifier", "", "classification", "no probabilities", "LogisticRegr"),
        ("sklearn.linear_model:SGDClassifier", "", "classification", "no probabilities", "log_loss"),
        ("sklearn.ensemble:HistGradientBoostingClassifier", "", "classification", "exactly", "lightgbm"),
        ("sklearn.gaussian_process:GaussianProcessClassifier", "", "classification", "exactly", "SVC"),
        ("sklearn.kernel_ridge:KernelRidge", "", "regression", "exactly", "SVR"),
        ("xgboost:XGBRFClassifier", "", "classification", "exactly", "RandomForest"),
        (
            "xgboost:XGBClassifier",
            "booster = 'gblinear'",
            "classification",
            "'gblinear'",
            "leave booster out",
        ),
        ("xgboost:XGBRegressor", "missing = 0", "regression", "missing = 0", "prepare"),
        ("lightgbm:LGBMRegressor", "boosting_type = 'rf'", "regression", "'rf'", "leave boosting_type out"),
        ("lightgbm:LGBMClassifier", "num_leafs = 7", "classification", "'num_leafs'", "'num_leaves'"),
        (
            "sklearn.ensemble:RandomForestClassifier",
            "n_estimator = 7",
            "classification",
            "no parameter",
            "'n_es",
        ),
        ("sklearn.ensemble:RandomForestClasifier", "", "classification", "no estimator", "ForestClassifier'"),
        ("sklearn.ensembles:RandomForestClassifier", "", "classification", "no module", "documentation"),
        (
            "sklearn.ensemble:RandomForestRegressor",
            "",
            "classification",
            "no classifier",
            "name a classifier",
        ),
        ("sklearn.linear_model:LogisticRegression", "", "regression", "is no regressor", "name a regressor"),
        ("lightgbm:LGBMRanker", "", "regression", "is no regressor", "name a regressor"),
        ("sklearn.preprocessing:StandardScaler", "", "regression", "is no regressor", "name a regressor"),
        ("sklearn.ensemble:StackingClassifier", "", "classification", "arguments that kit.toml", "factory"),
        ("catboost:CatBoostClassifier", "", "classification", "not of scikit-learn", "factory"),
        ("os:system", "", "classification", "not of scikit-learn", "factory"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name_before_any_work(
    tmp_path: Path, estimator: str, parameters: str, task: str, said: str, hint: str
) -> None:
    project = project_of(tmp_path, estimator, parameters, task=task)
    with pytest.raises(ProjectError) as caught:
        check_estimator(project)
    assert said in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxmltools", None)
    project = project_of(tmp_path, "lightgbm:LGBMClassifier")
    with pytest.raises(MissingDependencyError, match="needs onnxmltools") as caught:
        check_estimator(project)
    assert caught.value.hint == "pip install 'batch-edge-kit[boosting]'"


@pytest.mark.parametrize(
    "estimator, n_classes",
    [
        ("sklearn.neighbors:KNeighborsClassifier", 3),  # far away all distances are equal in float32
        ("sklearn.discriminant_analysis:LinearDiscriminantAnalysis", 2),  # its converter is wrong for two
    ],
)
def test_a_graph_that_answers_something_else_is_refused_with_the_estimators_name(
    tmp_path: Path, estimator: str, n_classes: int
) -> None:
    project = project_of(tmp_path, estimator)
    prepared = prepared_of(project, *clouds(240, n_classes=n_classes))
    with pytest.raises(GateError, match=estimator.partition(":")[2]) as caught:
        proven(project, prepared)
    assert "name another estimator" in str(caught.value.hint)


def test_neighbours_are_exact_where_the_inputs_are_bounded(tmp_path: Path) -> None:
    project = project_of(
        tmp_path, "sklearn.neighbors:KNeighborsClassifier", bounds=", minimum = -10, maximum = 10"
    )
    prepared = prepared_of(project, *clouds(240, n_classes=3))
    estimator, model = proven(project, prepared)
    found = run_onnx(model)({"x": prepared.train})["probabilities"]
    np.testing.assert_allclose(found, estimator.predict_proba(prepared.train), atol=1e-6)
    assert len(np.unique(found)) > 2  # neighbours disagree somewhere, or equality would say little


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("estimator", ["lightgbm:LGBMClassifier", "xgboost:XGBClassifier"])
def test_boosters_send_missing_values_where_they_learned_to(
    tmp_path: Path, estimator: str, n_classes: int
) -> None:
    rows, labels = clouds(400, n_classes=n_classes)
    rows[np.random.default_rng(1).random(rows.shape) < 0.2] = np.nan
    rows[:, 3] = np.abs(rows[:, 3])  # and where no row of a column told them
    rows[:, 3] = np.where(np.isnan(rows[:, 3]), 1.0, rows[:, 3])
    project = project_of(tmp_path, estimator, SMALL, bounds=", nullable = true")
    prepared = prepared_of(project, rows, labels)
    fitted, model = proven(project, prepared)
    asked = rows.copy()
    asked[:, 3] = np.nan
    given = run_onnx(model)({"x": asked})["probabilities"]
    np.testing.assert_allclose(given, fitted.predict_proba(asked), atol=1e-6)


@pytest.mark.parametrize("estimator", ["sklearn.ensemble:RandomForestClassifier", "sklearn.svm:SVC"])
def test_scikit_learn_is_not_fitted_on_missing_values(tmp_path: Path, estimator: str) -> None:
    rows, labels = clouds(80, n_classes=2)
    rows[5:8, 2] = np.nan
    project = project_of(tmp_path, estimator, "probability = true" if "svm" in estimator else "")
    with pytest.raises(ProjectError, match="feature 2 is missing or infinite in 3 of 60") as caught:
        fit_estimator(project, prepared_of(project, rows, labels), seed=0, threads=1)
    assert "lightgbm" in str(caught.value.hint)


def test_thresholds_between_neighbouring_floats_send_rows_the_right_way(tmp_path: Path) -> None:
    values = np.float32(1e7) + np.arange(40, dtype=np.float32)  # each the next float32 after the other
    rows = np.random.default_rng(0).choice(values, size=(3000, 4)).astype(np.float32)
    labels = rows[:, 0].astype(np.int64) % 2
    project = project_of(tmp_path, "lightgbm:LGBMClassifier", "n_estimators = 20, min_child_samples = 5")
    fitted, model = proven(project, prepared_of(project, rows, labels))
    given = run_onnx(model)({"x": rows})["probabilities"]
    np.testing.assert_allclose(given, fitted.predict_proba(rows), atol=1e-6)


@pytest.mark.parametrize("estimator", ["lightgbm:LGBMClassifier", "xgboost:XGBClassifier"])
def test_early_stopping_reads_the_validation_rows_and_only_the_best_rounds_are_written(
    tmp_path: Path, estimator: str
) -> None:
    project = project_of(
        tmp_path, estimator, "n_estimators = 200, early_stopping_rounds = 3, learning_rate = 0.5"
    )
    fitted, model = proven(project, prepared_of(project, *clouds(400, n_classes=3)))
    best = fitted.best_iteration_ if "lightgbm" in estimator else fitted.best_iteration + 1
    (ensemble,) = [node for node in onnx.load_from_string(model).graph.node if "TreeEns" in node.op_type]
    trees = next(set(each.ints) for each in ensemble.attribute if each.name == "nodes_treeids")
    assert 0 < best < 200
    assert len(trees) == 3 * best


@pytest.mark.parametrize(
    "estimator",
    ["sklearn.ensemble:RandomForestClassifier", "lightgbm:LGBMClassifier", "xgboost:XGBClassifier"],
)
def test_two_fits_on_any_number_of_threads_give_the_same_bytes(tmp_path: Path, estimator: str) -> None:
    project = project_of(tmp_path, estimator, SMALL)
    prepared = prepared_of(project, *clouds(300, n_classes=3))
    models = []
    for threads in (1, 2):
        fitted = fit_estimator(project, prepared, seed=7, threads=threads).model
        models.append(
            export_onnx(fitted, transformer=None, signature=prepared.signature, sample=prepared.train[:2])
        )
    assert models[0] == models[1]
    assert b"skl2onnx" not in models[0]
    assert b"OnnxML" not in models[0]
    graph = onnx.load_from_string(models[0])
    assert {(each.domain, each.version) for each in graph.opset_import} == {("", 18), ("ai.onnx.ml", 3)}
    assert export_program(fitted, sample=prepared.train[:2]) is None


def test_another_seed_gives_another_forest(tmp_path: Path) -> None:
    project = project_of(tmp_path, "sklearn.ensemble:RandomForestClassifier", SMALL)
    prepared = prepared_of(project, *clouds(300, n_classes=3))
    one, other = (fit_estimator(project, prepared, seed=seed, threads=1).model for seed in (1, 2))
    assert not np.array_equal(one.predict_proba(prepared.train), other.predict_proba(prepared.train))


def test_an_image_is_read_as_one_flat_row(tmp_path: Path) -> None:
    project = project_of(tmp_path, "sklearn.ensemble:ExtraTreesClassifier", SMALL)
    rows, labels = clouds(240, n_classes=2)
    folder = tmp_path / "images"
    text = (project.folder / "kit.toml").read_text()
    folder.mkdir()
    image = '[{ name = "x", columns = ["pixels"], shape = [1, 2, 2] }]'
    (folder / "kit.toml").write_text(text.replace('[{ name = "x", columns = ["a", "b", "c", "d"] }]', image))
    project = Project.open(folder)
    flat, model = proven(project, prepared_of(project, rows.reshape(-1, 1, 2, 2), labels))
    answers = run_onnx(model)({"x": rows.reshape(-1, 1, 2, 2)})
    assert answers["label"].tolist() == flat.predict(rows).tolist()


def test_a_class_without_a_training_row_is_refused(tmp_path: Path) -> None:
    project = project_of(tmp_path, "sklearn.naive_bayes:GaussianNB")
    rows, labels = clouds(80, n_classes=2)
    labels[-1] = 2
    with pytest.raises(ProjectError, match="class number 2 has no training row"):
        fit_estimator(project, prepared_of(project, rows, labels), seed=0, threads=1)


@pytest.mark.parametrize(
    "estimator, parameters, said",
    [
        ("sklearn.ensemble:RandomForestClassifier", "n_estimators = -3", r"n_estimators.*Got -3"),
        ("sklearn.svm:SVC", "probability = true, kernel = 'rfb'", r"kernel.*'rfb'"),
        ("lightgbm:LGBMClassifier", "n_estimators = 'zzz'", r"n_estimators = 'zzz'"),
        ("lightgbm:LGBMClassifier", "num_leaves = 'many'", r"num_leaves.*many"),
        (
            "xgboost:XGBClassifier",
            "n_estimators = -3",
            r"n_estimators = -3",
        ),  # which it would fit, to nothing
        (
            "xgboost:XGBClassifier",
            "max_depth = 'deep'",
            r"parameters: Invalid Parameter format for max_depth",
        ),
        ("xgboost:XGBClassifier", "early_stopping_rounds = 0", r"early_stopping_rounds = 0"),
    ],
)
def test_a_value_the_library_refuses_is_refused_before_any_work(
    tmp_path: Path, estimator: str, parameters: str, said: str
) -> None:
    with pytest.raises(ProjectError, match=said):
        check_estimator(project_of(tmp_path, estimator, parameters))


@pytest.mark.parametrize(
    "estimator, parameters, task",
    [
        ("xgboost:XGBClassifier", "objective = 'multi:softprob'", "classification"),
        ("lightgbm:LGBMClassifier", "objective = 'multiclass', early_stopping_rounds = 5", "classification"),
        ("xgboost:XGBRegressor", "monotone_constraints = '(1,0,0,-1)', n_estimators = 5000", "regression"),
        ("lightgbm:LGBMRegressor", "objective = 'gamma', verbosity = -1", "regression"),
        ("xgboost:XGBRegressor", "objective = 'reg:logistic', device = 'cuda'", "regression"),
    ],
)
def test_values_that_fit_other_rows_than_a_trials_are_not_refused(
    tmp_path: Path, estimator: str, parameters: str, task: str
) -> None:
    project = project_of(tmp_path, estimator, parameters, task=task)
    check_estimator(project)
    with pytest.raises(ProjectError, match="n_estimators"):  # and what can never work still is
        check_estimator(project, parameters={"n_estimators": -1})


@pytest.mark.parametrize(
    "given",
    [{"epochs": 5}, {"epochs": 30}, {"learning_rate": 0.1}, {"class_weights": "balanced"}, {"workers": 2}],
)
def test_settings_that_only_networks_have_are_refused_where_they_were_given(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    project = project_of(tmp_path, "sklearn.ensemble:RandomForestClassifier")
    flags = {"seed": 3, "threads": 2, "golden_rows": 4, "promote": True}
    check_settings(project, project.command("train", TrainSettings, flags))
    settings = project.command("train", TrainSettings, flags | given)
    with pytest.raises(SettingsError, match=rf"\[train\] {next(iter(given))} means nothing to the estimator"):
        train(project, settings)


def test_a_curve_over_what_only_networks_have_is_refused_for_an_estimator(tmp_path: Path) -> None:
    project = project_of(tmp_path, "sklearn.ensemble:RandomForestClassifier")
    settings = TrainSettings()
    variation = Variation.parse("train.learning_rate=0.1,0.2", train=settings)
    with pytest.raises(SettingsError, match="learning_rate means nothing to the estimator"):
        check_variation(project, variation)
    check_variation(project, Variation.parse("train.seed=1,2", train=settings))
    many = Variation.parse("parameters.n_estimators=5,none", train=settings)
    with pytest.raises(ProjectError, match="n_estimators"):
        check_variation(project, many)


def test_an_estimator_that_did_not_converge_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = project_of(tmp_path, "sklearn.linear_model:LogisticRegression", "max_iter = 1")
    with caplog.at_level(logging.WARNING, logger="kit"):
        fit_estimator(project, prepared_of(project, *clouds(80, n_classes=2)), seed=0, threads=1)
    assert any("LogisticRegression: lbfgs failed to converge" in each for each in caplog.messages)


PROJECT_TOML = """
[project]
name = "{name}"

[data]
path = "rows.parquet"
label = "kind"
inputs = [
    {{ name = "x", columns = ["a", "b"], nullable = true }},
    {{ name = "site", columns = ["site"], dtype = "string" }},
]

[model]
estimator = "{estimator}"
preprocessing = "columns:build"
parameters = {{ n_estimators = 10 }}
"""
COLUMNS_PY = """
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder


def build():
    one_hot = OneHotEncoder(handle_unknown="ignore")
    return ColumnTransformer([("x", SimpleImputer(), ["a", "b"]), ("site", one_hot, ["site"])])
"""


@pytest.mark.parametrize("estimator", ["sklearn.ensemble:RandomForestClassifier", "lightgbm:LGBMClassifier"])
def test_an_estimator_is_trained_verified_and_asked_like_a_network(tmp_path: Path, estimator: str) -> None:
    folder = tmp_path / "trees"
    folder.mkdir()
    (folder / "kit.toml").write_text(PROJECT_TOML.format(name="trees", estimator=estimator))
    (folder / "columns.py").write_text(COLUMNS_PY)
    rows, labels = clouds(400, n_classes=3)
    rows[::17, 0] = np.nan
    kinds = np.array(["red", "grün", "blue"])[labels].tolist()
    sites = [("north", "süd", "east")[index % 3] for index in range(400)]
    table = pa.table({"id": range(400), "a": rows[:, 0], "b": rows[:, 1], "site": sites, "kind": kinds})
    parquet.write_table(table, folder / "rows.parquet")
    project = Project.open(folder)
    generate_key(project.signing_key_path())

    result = train(project, project.command("train", TrainSettings, {"promote": True}))
    assert result.candidate.promoted
    assert (result.epochs, result.best_epoch) == ((), 0)
    _, version = project.open_version("trees")
    assert not (version.folder / "model.pt2").exists()
    assert set(version.manifest["lineage"]["train"]) == {
        *("seed", "threads", "parity_tolerance", "golden_rows")
    }
    library = estimator.partition(":")[0].partition(".")[0]
    assert {"sklearn": "skl2onnx", "lightgbm": "lightgbm"}[library] in version.manifest["lineage"][
        "toolchain"
    ]
    answers = run_onnx(version.model_path.read_bytes())(load(project).test.tensors)
    expected = result.candidate.metrics["accuracy"]
    assert (answers["label"] == load(project).test.labels).mean() == pytest.approx(expected)

    assert len(models(project, ModelsSettings(action="verify", reference="trees")).checked) == 2

    with pytest.raises(InputError, match="no device runtime holds its operators"):
        export(project, ExportSettings(model="trees"))
    if library == "lightgbm":  # Ray starts for it: once is enough
        settings = {"input": str(folder / "rows.parquet"), "output": str(folder / "out"), "columns": ("id",)}
        predicted = predict(
            project, project.command("predict", PredictSettings, {"model": "trees", **settings})
        )
        assert (predicted.rows_in, predicted.rows_out) == (400, 400)


@pytest.mark.parametrize("scale", ["standard", "robust", "minmax"])
def test_scaling_is_written_to_the_last_digit(scale: str) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

    register_converters()
    scaler = {"standard": StandardScaler, "robust": RobustScaler, "minmax": MinMaxScaler}[scale]()
    rows = (np.random.default_rng(0).normal(size=(2000, 3)) * [1, 37, 1e9] + 11).astype(np.float32)
    scaler.fit(rows[:500])
    graph = convert_sklearn(scaler, initial_types=[("x", FloatTensorType([None, 3]))], target_opset=18)
    (name,) = (value.name for value in graph.graph.output)
    np.testing.assert_array_equal(
        run_onnx(graph.SerializeToString())({"x": rows})[name], scaler.transform(rows)
    )


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm", "forest", "bagging"])
def test_splits_stand_clear_of_every_value_and_training_rows_fall_as_they_fell(kind: str) -> None:
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
    from xgboost import XGBClassifier

    random = np.random.default_rng(0)
    rows = (
        random.integers(1, 60, size=(400, 4)).astype(np.float32) * 2
    )  # what lies half way is a value as well
    labels = (rows[:, 0] + random.normal(size=400) * 30 > rows[:, 1]).astype(np.int64)
    made: dict[str, Any] = {
        "xgboost": XGBClassifier(n_estimators=8),
        "lightgbm": LGBMClassifier(n_estimators=8, verbosity=-1),
        "forest": RandomForestClassifier(8, random_state=0),
        "bagging": BaggingClassifier(n_estimators=4, max_features=0.5, random_state=0),
    }
    estimator = made[kind].fit(rows, labels)
    before = estimator.predict_proba(rows)
    settle_thresholds(estimator, rows, threads=1)
    np.testing.assert_array_equal(estimator.predict_proba(rows), before)
    grid = random.integers(2, 120, size=(2000, 4)).astype(np.float32)
    for nudge in (1 - 1e-6, 1 + 1e-6):
        np.testing.assert_array_equal(
            estimator.predict_proba(grid * np.float32(nudge)), estimator.predict_proba(grid)
        )


SCALED = """
[model]
estimator = "{estimator}"
parameters = {{ n_estimators = 12 }}
"""


@pytest.mark.parametrize("scale", ["standard", "robust"])
@pytest.mark.parametrize("estimator", ["XGBClassifier", "XGBRegressor"])
def test_xgboost_answers_alike_behind_scaled_columns_of_the_template(
    tmp_path: Path, estimator: str, scale: str
) -> None:
    folder = tmp_path / "demo"
    init(InitSettings(name=str(folder), template="tabular"))
    declared, _, _ = (folder / "kit.toml").read_text().partition("[model]")
    declared = declared.replace('scale = "standard"', f'scale = "{scale}"')
    if estimator == "XGBRegressor":
        table = parquet.read_table(folder / "data/biopsies.parquet")
        answer = pa.array(np.arange(table.num_rows, dtype=np.float64) % 97 + np.asarray(table["id"]))
        parquet.write_table(table.append_column("answer", answer), folder / "data/biopsies.parquet")
        declared = declared.replace('"classification"', '"regression"').replace('"diagnosis"', '"answer"')
    (folder / "kit.toml").write_text(declared + SCALED.format(estimator=f"xgboost:{estimator}"))
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    assert train(project, TrainSettings()).candidate.parity.max_relative_difference < 1e-5
