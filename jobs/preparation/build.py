"""A plan as a scikit-learn transformer: built unfitted, fitted on training rows, described.

The order inside an entry is that of the settings: rule, statistics of lists, missing, outliers, then scale or
encode. It knows nothing of ONNX.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from jobs.preparation.columns import Bins, Matching, Ranks, TargetMeans, Terms, WindowStatistics
from jobs.preparation.imputing import ChainedImputer, ColumnImputer, NeighborImputer
from jobs.preparation.outliers import LIMITS, Flags, Isolated, Limits
from jobs.preparation.plan import Entry, Plan
from jobs.preparation.selection import Selection
from kit.settings import FeatureSettings, SelectSettings

if TYPE_CHECKING:
    import pandas

_FOLDS = 5


def build_transformer(
    plan: Plan, *, select: SelectSettings | None, n_classes: int
) -> ColumnTransformer | Pipeline:
    """Build the transformer a plan describes, unfitted.

    Args:
        plan: Checked.
        select: What is kept at the end; None for everything.
        n_classes: 0 for regression.
    """
    parts: list[tuple[str, Any, list[str]]] = []
    for number, entry in enumerate(plan.entries, start=1):
        if entry.settings.text is not None:
            parts += [
                (f"entry{number}:{column.name}", _text(entry, index), list(column.frame))
                for index, column in enumerate(entry.columns)
            ]
        else:
            last = _last_steps(entry, n_classes=n_classes)
            parts.append((f"entry{number}", _pipeline([*first_steps(entry), *last]), list(entry.frame)))
    if plan.rest:
        parts.append(("rest", FunctionTransformer(), [name for each in plan.rest for name in each.frame]))
    # Nothing sparse: the graph holds dense tensors.
    columns = ColumnTransformer(parts, sparse_threshold=0.0)
    if select is None:
        return columns
    chosen = Selection(select.method, select.keep, select.threshold, select.strength, n_classes > 0)
    return Pipeline([("columns", columns), ("select", chosen)])


def first_steps(entry: Entry) -> list[tuple[str, Any]]:
    """Give what stands before outliers: rule, statistics, missing."""
    settings = entry.settings
    steps: list[tuple[str, Any]] = []
    if any(column.patterns for column in entry.columns):
        patterns = tuple(column.patterns for column in entry.columns for _ in column.frame)
        steps.append(("rule", Matching(patterns)))
    if settings.statistics:
        lengths = tuple(len(column.frame) for column in entry.columns)
        steps.append(("statistics", WindowStatistics(lengths, settings.statistics)))
    if settings.missing is not None:
        steps.append(("missing", _imputer(settings, string=entry.columns[0].kind == "string")))
    return steps


def finder(settings: FeatureSettings) -> Limits | Isolated:
    """Give what finds an entry's outliers, unfitted."""
    assert settings.outliers is not None
    limit = settings.outlier_limit or LIMITS[settings.outliers]
    if settings.outliers == "isolation-forest":
        return Isolated(limit)
    return (Flags if settings.outlier_action == "flag" else Limits)(settings.outliers, limit)


def fit_transformer(transformer: Any, frame: pandas.DataFrame, labels: np.ndarray) -> np.ndarray:
    """Fit on the training rows and give their features.

    What is learned from differs from what ``transform`` gives in one place: target encoding is
    cross-fitted, so that a row's own label is not in its features.

    Returns:
        float32, shape (n_rows, n_features).
    """
    import sklearn

    with sklearn.config_context(assume_finite=True), warnings.catch_warnings():
        # a bin that would be empty is left out, and columns without a value are refused before
        warnings.filterwarnings("ignore", message="Bins whose width are too small")
        warnings.filterwarnings("ignore", message="The least populated class in y")
        features = transformer.fit_transform(frame, labels)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(features, dtype=np.float32)


def fitted_parts(transformer: Any) -> Iterator[tuple[str, list[tuple[str, Any]], list[str]]]:
    """Give each part's name, its fitted steps and the frame columns it reads."""
    columns = (
        transformer if isinstance(transformer, ColumnTransformer) else transformer.named_steps["columns"]
    )
    for name, part, chosen in columns.transformers_:
        if len(chosen):
            yield name, list(part.steps) if isinstance(part, Pipeline) else [(name, part)], list(chosen)


def feature_names(transformer: Any) -> tuple[str, ...]:
    """Name the features a fitted transformer gives, in order: ``age``, ``color=red``, ``note:word``."""
    names: list[str] = []
    for _, steps, columns in fitted_parts(transformer):
        own = columns
        for _, step in steps:
            own = step_names(step, own)
        names += own
    if isinstance(transformer, Pipeline):
        return tuple(names[index] for index in transformer.named_steps["select"].kept_)
    return tuple(names)


def step_names(step: Any, names: list[str]) -> list[str]:
    """Name what a fitted step gives, from the names of what it reads."""
    if isinstance(step, FeatureUnion):
        return [name for _, part in step.transformer_list for name in step_names(part, names)]
    if isinstance(step, Pipeline):
        for _, part in step.steps:
            names = step_names(part, names)
        return names
    if isinstance(step, WindowStatistics):
        starts = np.cumsum([0, *step.lengths])[:-1]
        lists = [names[start].rsplit("[", 1)[0] for start in starts]
        return [f"{name}:{statistic}" for name in lists for statistic in step.statistics]
    if isinstance(step, Flags):
        return [f"{name}:outlier" for name in names]
    if isinstance(step, Isolated):
        return [f"outlier({','.join(names if len(names) < 4 else [names[0], '...', names[-1]])})"]
    if isinstance(step, OneHotEncoder):
        pairs = zip(names, step.categories_, strict=True)
        return [f"{name}={value or '(missing)'}" for name, known in pairs for value in known]
    if isinstance(step, Bins):
        if step.encode == "ordinal":
            return names
        pairs = zip(names, step.n_bins_, strict=True)
        return [f"{name}:bin{index}" for name, count in pairs for index in range(count)]
    if isinstance(step, TargetMeans):
        if step.target_type_ != "multiclass":
            return [f"{name}:target" for name in names]
        return [f"{name}:target{index}" for name in names for index in range(len(step.classes_))]
    if isinstance(step, Terms):
        return [f"{names[0]}:{term}" for term in step.vectorizer_.get_feature_names_out()]
    return names


def _pipeline(steps: list[tuple[str, Any]]) -> Pipeline | FunctionTransformer:
    return Pipeline(steps) if steps else FunctionTransformer()


def _text(entry: Entry, index: int) -> Pipeline:
    settings, column = entry.settings, entry.columns[index]
    steps: list[tuple[str, Any]] = [("text", Terms(settings.max_terms, settings.ngrams))]
    if column.patterns:
        steps.insert(0, ("rule", Matching((column.patterns,))))
    return Pipeline(steps)


def _imputer(settings: FeatureSettings, *, string: bool) -> Any:
    if settings.missing == "knn":
        return NeighborImputer(settings.neighbors)
    if settings.missing == "mice":
        return ChainedImputer()
    strategy = "most_frequent" if settings.missing == "most-frequent" else settings.missing
    if string:
        return SimpleImputer(missing_values="", strategy=strategy, fill_value=settings.fill)
    return ColumnImputer(
        strategy=strategy, fill_value=None if settings.fill is None else float(settings.fill)
    )


def _last_steps(entry: Entry, *, n_classes: int) -> list[tuple[str, Any]]:
    settings = entry.settings
    if settings.encode is not None and settings.scale is None:
        return [("encode", _encoder(settings, n_classes=n_classes))]
    scaler = [] if settings.scale is None else [("scale", _scaler(settings))]
    if settings.outliers is None or settings.outlier_action == "drop":
        return scaler
    if settings.outlier_action == "clip":
        return [("outliers", finder(settings)), *scaler]
    union = [("values", _pipeline(scaler)), ("flags", finder(settings))]
    return [("outliers", FeatureUnion(union))]


def _scaler(settings: FeatureSettings) -> Any:
    if settings.scale == "quantile":
        return Ranks()
    if settings.scale == "bins":
        return Bins(
            n_bins=settings.n_bins,
            encode="ordinal" if settings.encode == "ordinal" else "onehot-dense",
            strategy=settings.bins,
            random_state=0,
        )
    return {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}[str(settings.scale)]()


def _encoder(settings: FeatureSettings, *, n_classes: int) -> Any:
    # float32 as all else: one part in float64 would make the joined features float64
    if settings.encode == "one-hot":
        return OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    if settings.encode == "ordinal":
        return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    kind = "continuous" if n_classes == 0 else "binary" if n_classes == 2 else "multiclass"
    folds = (StratifiedKFold if n_classes else KFold)(_FOLDS, shuffle=True, random_state=0)
    return TargetMeans(target_type=kind, cv=folds)
