"""The class that ``[model] estimator`` names: found, built, and refused by name where it cannot work.

Parameters are checked against the class before anything starts, and so is whether a graph can say the same.
It knows nothing of rows and of ONNX (``jobs.exporting.estimator_graph`` writes the graph).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.errors import MissingDependencyError, ProjectError, install_line, nearest
from kit.project import Project

#: Package to the extra that installs it.
PACKAGES = {"sklearn": "cluster", "lightgbm": "boosting", "xgboost": "boosting"}
_PACKAGES_OF_GRAPHS = {"sklearn": "skl2onnx", "lightgbm": "onnxmltools", "xgboost": "onnxmltools"}
_NAMES = {"sklearn": "scikit-learn", "lightgbm": "LightGBM", "xgboost": "XGBoost"}
#: LightGBM's constructors take any keyword; these are the useful ones that get_params() does not list.
_MORE_PARAMETERS = {
    "lightgbm": [
        "early_stopping_rounds",
        "max_bin",
        "min_data_in_bin",
        "path_smooth",
        "extra_trees",
        "feature_fraction",
        "feature_fraction_bynode",
        "lambda_l1",
        "lambda_l2",
        "bagging_fraction",
        "bagging_freq",
        "max_delta_step",
        "scale_pos_weight",
        "is_unbalance",
        "alpha",
        "tweedie_variance_power",
        "verbosity",
    ]
}
#: Classes no converter writes exactly, and what does the same work.
_NO_GRAPH = {
    "DummyClassifier": "sklearn.tree:DecisionTreeClassifier with max_depth = 1",
    "DummyRegressor": "sklearn.tree:DecisionTreeRegressor with max_depth = 1",
    "GaussianProcessClassifier": "sklearn.svm:SVC with probability = true",
    "HistGradientBoostingClassifier": "lightgbm:LGBMClassifier, or GradientBoostingClassifier",
    "HistGradientBoostingRegressor": "lightgbm:LGBMRegressor, or GradientBoostingRegressor",
    "IsotonicRegression": "sklearn.ensemble:GradientBoostingRegressor",
    "KernelRidge": "sklearn.svm:SVR",
    "LabelPropagation": "sklearn.neighbors:KNeighborsClassifier",
    "LabelSpreading": "sklearn.neighbors:KNeighborsClassifier",
    "RadiusNeighborsClassifier": "sklearn.neighbors:KNeighborsClassifier",
    "RadiusNeighborsRegressor": "sklearn.neighbors:KNeighborsRegressor",
    "XGBRFClassifier": "sklearn.ensemble:RandomForestClassifier",
}
#: Classifiers that give no probabilities as they come, and what to do about it.
_PROBABILITIES = {
    "LinearSVC": "name sklearn.calibration:CalibratedClassifierCV, which calibrates one",
    "NuSVC": "set probability = true in [model.parameters]",
    "SGDClassifier": "set loss = 'log_loss' in [model.parameters]",
    "SVC": "set probability = true in [model.parameters]",
}
#: Values with which a converter fails or, worse, answers something else.
_NO_VALUES: dict[tuple[str, str, Any], str] = {
    ("xgboost", "booster", "gblinear"): "leave booster out, or name sklearn.linear_model:LogisticRegression",
    ("xgboost", "booster", "dart"): "leave booster out, or name lightgbm with boosting_type = 'dart'",
    ("lightgbm", "boosting_type", "rf"): "leave boosting_type out; a RandomForestClassifier does it",
    ("lightgbm", "objective", "multiclassova"): "leave objective out",
}
#: Parameters whose meaning a graph loses whatever their value.
_NO_PARAMETERS = {
    ("xgboost", "missing"): "say under [[prepare.rules]] which values count as missing",
    ("xgboost", "enable_categorical"): "encode categories under [[prepare.features]]",
}
#: Parameters of boosters whose values fit one number of columns or one machine: a trial knows neither.
_NOT_TRIED = frozenset({"monotone_constraints", "interaction_constraints", "feature_types", "device"})
_TRIAL_ROWS, _TRIAL_COLUMNS = 60, 8
_ROUNDS = ("n_estimators", "early_stopping_rounds")
#: XGBoost's messages begin with the time and the place in its own source.
_PLACE = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ")


def check_estimator(project: Project, *, parameters: Mapping[str, Any] | None = None) -> None:
    """Refuse an estimator that cannot work, before any data is read.

    Args:
        project: Names the class, its parameters and the task.
        parameters: Stand in for those of the same name in kit.toml.

    Raises:
        ProjectError: The class is none, does not fit the task, gives no probabilities, does not take a
            parameter or its value, or cannot be exported.
        MissingDependencyError: Its package is not installed.
    """
    estimator = build_estimator(project, parameters=parameters, seed=0, threads=1)
    if package_of(estimator) != "sklearn":
        _try_booster(estimator, task=project.settings.project.task)


def build_estimator(
    project: Project, *, parameters: Mapping[str, Any] | None, seed: int, threads: int
) -> Any:
    """Make the unfitted estimator, everything about it checked that can be.

    Args:
        project: Names the class, its parameters and the task.
        parameters: Stand in for those of the same name in kit.toml.
        seed: Of what is random, where the class has something random.
        threads: CPU threads, where the class can use them.

    Raises:
        ProjectError: As for ``check_estimator``.
        MissingDependencyError: Its package is not installed.
    """
    reference = project.settings.model.estimator
    if reference is None:
        raise ProjectError(
            f"[model] names the factory {project.settings.model.factory!r} and no estimator",
            hint="set estimator in [model]; a network is trained by epochs",
        )
    cls = _load(reference)
    package = reference.partition(":")[0].partition(".")[0]
    given = {**project.settings.model.parameters, **(parameters or {})}
    try:
        plain = cls()
    except TypeError as error:
        raise ProjectError(
            f"{reference!r} needs arguments that kit.toml cannot give: {first_line(error)}",
            hint="name a class that works without arguments, or write a network with factory",
        ) from error
    known = {*plain.get_params(), *_MORE_PARAMETERS.get(package, ())}
    for name, value in given.items():
        if name not in known:
            raise ProjectError(f"{reference!r} takes no parameter {name!r}", hint=nearest(name, known))
        instead = _NO_PARAMETERS.get((package, name)) or _NO_VALUES.get((package, name, value))
        if instead:
            raise ProjectError(f"{name} = {value!r} of {reference!r} cannot be written as ONNX", hint=instead)
    arguments = {**_arguments(plain, package=package, seed=seed, threads=threads), **given}
    try:
        estimator = cls(**arguments)
        if package == "sklearn":
            estimator._validate_params()  # what its fit does first
    except (TypeError, ValueError) as error:
        raise ProjectError(
            f"{reference!r} refuses its parameters: {first_line(error)}", hint="check [model.parameters]"
        ) from error
    _check_task(estimator, reference=reference, task=project.settings.project.task)
    return estimator


def is_estimator(model: Any) -> bool:
    """Tell a fitted estimator from a network."""
    return package_of(model) in PACKAGES


def package_of(model: Any) -> str:
    """Name the package that an object's class comes from."""
    return type(model).__module__.partition(".")[0]


def library_versions(reference: str | None) -> dict[str, str]:
    """Give the versions of what an estimator comes from and is written with.

    Args:
        reference: As in kit.toml; None for a network.
    """
    package = (reference or "").partition(":")[0].partition(".")[0]
    if package not in PACKAGES:
        return {}
    wanted = (package, _PACKAGES_OF_GRAPHS[package])
    names = {"sklearn": "scikit-learn"}
    return {names.get(each, each): str(importlib.import_module(each).__version__) for each in wanted}


def first_line(error: Any) -> str:
    """Say in one line what a library said in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _PLACE.sub("", lines[0])[:200] if lines else type(error).__name__


def _try_booster(estimator: Any, *, task: str) -> None:
    """Fit one round to a few made rows: boosters look at their parameters nowhere else.

    Raises:
        ProjectError: A value is refused.
    """
    from sklearn.base import clone

    name, given = type(estimator).__name__, estimator.get_params()
    for rounds in _ROUNDS:
        value = given.get(rounds)
        if value is not None and (type(value) is not int or value < 1):
            raise ProjectError(
                f"{rounds} = {value!r} of {name} is not a whole number from 1 on",
                hint="check [model.parameters]",
            )
    trial = clone(estimator)
    trial.set_params(n_estimators=1, **{each: None for each in _NOT_TRIED if given.get(each) is not None})
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(_TRIAL_ROWS, _TRIAL_COLUMNS)).astype(np.float32)
    objective = str(given.get("objective"))
    n_classes = 3 if "multi" in objective or "softmax" in objective else 2
    # Between 0 and 1 lie values that every objective takes: shares, counts, what has a logarithm.
    labels = np.arange(_TRIAL_ROWS) % n_classes if task == "classification" else generator.random(_TRIAL_ROWS)
    stopping: dict[str, Any] = {}
    if given.get("early_stopping_rounds"):
        stopping["eval_set"] = [(rows, labels)]
        stopping |= {"verbose": False} if package_of(estimator) == "xgboost" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial.fit(rows, labels, **stopping)
        except Exception as error:  # each library raises kinds of its own for values it does not take
            raise ProjectError(
                f"{name} refuses its parameters: {first_line(error)}", hint="check [model.parameters]"
            ) from error


def _load(reference: str) -> Any:
    """Import an estimator's class; only from the libraries of ``PACKAGES``, so kit.toml runs nothing else."""
    from_module, _, name = reference.partition(":")
    package = from_module.partition(".")[0]
    if package not in PACKAGES:
        raise ProjectError(
            f"the estimator {reference!r} is not of {', '.join(_NAMES.values())}",
            hint="use factory = 'module:function' in [model] for a model of your own",
        )
    for needed in (package, _PACKAGES_OF_GRAPHS[package]):
        if importlib.util.find_spec(needed) is None:
            raise MissingDependencyError(
                f"the estimator {reference!r} needs {needed}, which is not installed",
                hint=install_line(PACKAGES[package]),
            )
    try:
        module = importlib.import_module(from_module)
    except ImportError as error:
        raise ProjectError(
            f"there is no module {from_module!r} in {_NAMES[package]}: {first_line(error)}",
            hint="write it as in its documentation, for example sklearn.ensemble:RandomForestClassifier",
        ) from error
    from sklearn.base import BaseEstimator

    offered = [
        each for each in dir(module) if _is_estimator_class(getattr(module, each, None), BaseEstimator)
    ]
    if name not in offered:
        raise ProjectError(f"{from_module} has no estimator {name!r}", hint=nearest(name, offered))
    if name in _NO_GRAPH:
        raise ProjectError(f"{name} cannot be written as ONNX exactly", hint=f"use {_NO_GRAPH[name]}")
    return getattr(module, name)


def _is_estimator_class(found: Any, base: type) -> bool:
    return isinstance(found, type) and issubclass(found, base) and hasattr(found, "fit")


def _arguments(plain: Any, *, package: str, seed: int, threads: int) -> dict[str, Any]:
    """Choose what makes runs equal and keeps to the threads the user gave."""
    takes = plain.get_params()
    chosen: dict[str, Any] = {}
    if "random_state" in takes:
        chosen["random_state"] = seed if package == "sklearn" else seed % 2**31  # theirs is an int32
    # scikit-learn's default is one; some of its classes warn when they are told the same.
    if "n_jobs" in takes and (package != "sklearn" or threads > 1):
        chosen["n_jobs"] = threads
    if package == "lightgbm":
        chosen |= {"deterministic": True, "force_row_wise": True, "verbosity": -1}
    return chosen


def _check_task(estimator: Any, *, reference: str, task: str) -> None:
    from sklearn.base import is_classifier, is_regressor

    fits = is_classifier(estimator) if task == "classification" else is_regressor(estimator)
    if not fits:
        kind = "classifier" if task == "classification" else "regressor"
        raise ProjectError(
            f"the task is {task}, but {reference!r} is no {kind}", hint=f"name a {kind}, or change the task"
        )
    if task == "classification" and not hasattr(estimator, "predict_proba"):
        instead = _PROBABILITIES.get(
            type(estimator).__name__, "name another, for example sklearn.linear_model:LogisticRegression"
        )
        raise ProjectError(f"{reference!r} gives no probabilities", hint=instead)
