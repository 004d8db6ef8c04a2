"""Estimators of scikit-learn, LightGBM and XGBoost, fitted to prepared rows and asked.

The other door beside the project's own network. It runs in the calling process, on threads, and knows
nothing of Ray, registries or ONNX.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jobs.fitting.estimator_class import build_estimator, first_line, package_of
from jobs.fitting.loop import Fitted
from jobs.fitting.thresholds import settle_thresholds
from jobs.preparation.prepared import Prepared
from kit.errors import ProjectError, SettingsError
from kit.project import Project
from kit.settings import TrainSettings

_log = logging.getLogger("kit")

#: Settings of train that an estimator's fit is decided by; the version remembers no others.
USED = ("seed", "threads", "parity_tolerance", "golden_rows")
#: Settings of train that say what happens around a fit, whatever is fitted.
_AROUND = ("promote", "resume", "address")


def check_settings(project: Project, settings: TrainSettings, *, varied: Iterable[str] = ()) -> None:
    """Refuse settings of train that mean something to networks alone, where an estimator is fitted.

    Args:
        project: Names what is fitted; with a factory nothing is refused.
        settings: As kit.toml and the flags gave them; what neither names counts as not said.
        varied: Keys of train that get other values later, in a study or on a curve.

    Raises:
        SettingsError: A key was given that the estimator has no use for.
    """
    reference = project.settings.model.estimator
    if reference is None:
        return
    varied = tuple(varied)
    for name in TrainSettings.model_fields:
        if name in (*USED, *_AROUND) or name not in {*settings.model_fields_set, *varied}:
            continue
        raise SettingsError(
            f"[train] {name} means nothing to the estimator {reference!r}, which is fitted in one go",
            hint=f"vary an argument of its own, such as n_estimators, instead of {name}"
            if name in varied
            else f"leave {name} out, and set the estimator's own arguments in [model.parameters]",
        )


def used_settings(project: Project, settings: TrainSettings) -> dict[str, Any]:
    """Give the settings of train that decide the outcome, as a version remembers them.

    Args:
        project: Names what is fitted.
        settings: Of train.
    """
    if project.settings.model.estimator is not None:
        return settings.model_dump(mode="json", include=set(USED))
    return settings.model_dump(mode="json", exclude=set(_AROUND))


def fit_estimator(
    project: Project,
    prepared: Prepared,
    *,
    seed: int,
    threads: int,
    parameters: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit the project's estimator on the training rows.

    Equal inputs give an equal estimator: the seed goes into ``random_state``, and LightGBM computes in an
    order that does not depend on threads. With ``early_stopping_rounds`` in its parameters a booster stops
    by the validation rows; nothing else reads them.

    Args:
        project: Names the class, its parameters and the task.
        prepared: The rows, as the estimator reads them.
        seed: Of what is random, where the class has something random.
        threads: CPU threads, where the class can use them.
        parameters: Stand in for those of the same name in kit.toml.

    Returns:
        The fitted estimator, without epochs. Its classes are 0, 1, ..., in the order of the signature.

    Raises:
        ProjectError: As for ``check_estimator``; the estimator refuses the rows or a parameter's value.
        MissingDependencyError: Its package is not installed.
    """
    estimator = build_estimator(project, parameters=parameters, seed=seed, threads=threads)
    package, name = package_of(estimator), type(estimator).__name__
    rows, labels = _flat(prepared.train), prepared.split.train.labels
    _check_rows(rows, labels, package=package, name=name, n_classes=len(prepared.split.classes))
    stopping: dict[str, Any] = {}
    if package != "sklearn" and estimator.get_params().get("early_stopping_rounds"):
        stopping["eval_set"] = [(_flat(prepared.validation), prepared.split.validation.labels)]
        stopping |= {"verbose": False} if package == "xgboost" else {}
    _log.info("fitting %s on %d rows of %d features", name, *rows.shape)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        try:
            estimator.fit(rows, labels, **stopping)
        except MemoryError:
            raise
        except Exception as error:  # each library raises kinds of its own for values it does not take
            raise ProjectError(
                f"{name} cannot be fitted: {first_line(error)}", hint="check [model.parameters]"
            ) from error
    for each in noted:
        if each.category.__name__ == "ConvergenceWarning":
            _log.warning("%s: %s", name, first_line(each.message))
    settle_thresholds(estimator, rows, threads=threads)
    return Fitted(model=estimator, epochs=(), best_epoch=0)


def predict_rows(estimator: Any, rows: np.ndarray, *, task: str) -> np.ndarray:
    """Ask a fitted estimator.

    Args:
        estimator: As ``fit_estimator`` gives it.
        rows: float32, shape (n_rows, ...); values of a row are laid out flat.
        task: ``classification`` or ``regression``.

    Returns:
        float32: probabilities, shape (n_rows, n_classes), or values, shape (n_rows,).

    Raises:
        ProjectError: The estimator does not answer such rows.
    """
    import sklearn

    try:
        # Values are the signature's to refuse; what an extreme gives, the graph must give as well.
        with sklearn.config_context(assume_finite=True), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if task == "classification":
                return np.asarray(estimator.predict_proba(_flat(rows)), dtype=np.float32)
            return np.asarray(estimator.predict(_flat(rows)), dtype=np.float32).reshape(-1)
    except ValueError as error:
        raise ProjectError(
            f"{type(estimator).__name__} does not answer rows the inputs allow: {first_line(error)}",
            hint="bound the inputs with minimum and maximum in kit.toml, or use another estimator",
        ) from error


def _check_rows(rows: np.ndarray, labels: np.ndarray, *, package: str, name: str, n_classes: int) -> None:
    missing = ~np.isfinite(rows) if package == "sklearn" else np.isinf(rows)
    if missing.any():
        column = int(np.argmax(missing.any(axis=0)))
        n_rows = int(missing[:, column].sum())
        # Forests would take missing values; their graphs send them another way without saying so.
        raise ProjectError(
            f"feature {column} is missing or infinite in {n_rows} of {len(rows)} training rows; "
            f"{name} cannot be exported with such values",
            hint="give the column a rule with missing, or use lightgbm or xgboost, which learn where missing "
            "values go",
        )
    if n_classes:
        absent = sorted(set(range(n_classes)) - set(np.unique(labels).tolist()))
        if absent:
            raise ProjectError(
                f"class number {absent[0]} has no training row, so {name} would not know it",
                hint="split with stratify, or drop the class's rows",
            )


def _flat(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(len(rows), -1), dtype=np.float32)
