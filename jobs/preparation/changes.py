"""What the fitted preprocessing did to the training rows, step by step, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas
from sklearn.pipeline import FeatureUnion, Pipeline

from jobs.preparation.build import feature_names, finder, first_steps, fitted_parts, step_names
from jobs.preparation.outliers import Limits
from jobs.preparation.plan import Plan
from kit.cleaning import Change
from kit.errors import InputError

# Steps whose changes are told, by the name they have in a pipeline. Nothing after the last one is run.
_TOLD = ("rule", "missing", "outliers")


def describe_changes(transformer: Any, frame: pandas.DataFrame) -> tuple[Change, ...]:
    """Say what each step of a fitted transformer does to the training rows.

    Args:
        transformer: Made by ``build_transformer``, fitted.
        frame: The rows it was fitted on.
    """
    changes: list[Change] = []
    for _, steps, names in fitted_parts(transformer):
        told = [index for index, (name, _) in enumerate(steps) if name in _TOLD]
        values: Any = frame[names]
        for index, (name, step) in enumerate(steps[: max(told, default=-1) + 1]):
            # what is filled is seen before it is, and a union's flags are all that is asked of it
            needed = index < told[-1] or name not in ("missing", "outliers") or isinstance(step, Limits)
            after = step.transform(values) if needed else values
            changes += _of_step(name, step, np.asarray(values), np.asarray(after), names)
            names = step_names(step, names)
            values = after
    if isinstance(transformer, Pipeline):
        changes.append(_of_selection(transformer, n_rows=len(frame)))
    return tuple(changes)


def rows_to_drop(plan: Plan, frame: pandas.DataFrame) -> tuple[np.ndarray, list[Change]]:
    """Find the training rows that an entry with outlier_action = 'drop' leaves out.

    Returns:
        bool, shape (n_rows,), and what to report: one change per entry.

    Raises:
        InputError: No row would be left.
    """
    drop = np.zeros(len(frame), dtype=bool)
    changes = []
    for entry in plan.entries:
        settings = entry.settings
        if settings.outliers is None or settings.outlier_action != "drop":
            continue
        values: Any = frame[list(entry.frame)]
        for _, step in first_steps(entry):
            values = step.fit_transform(values)
        beyond = finder(settings).fit(values).beyond(values).any(axis=1)
        new = beyond & ~drop
        before = int((~drop).sum())
        drop |= beyond
        column = entry.columns[0].name if len(entry.columns) == 1 else None
        count = int(new.sum())
        changes.append(
            Change(
                "outliers",
                column,
                before,
                before - count,
                count,
                f"{count} training rows dropped ({settings.outliers})",
            )
        )
    if drop.all() and len(drop):
        raise InputError(
            "outlier_action = 'drop' leaves no training row",
            hint="raise outlier_limit, or use outlier_action = 'clip'",
        )
    return drop, changes


def check_values(plan: Plan, frame: pandas.DataFrame) -> None:
    """Refuse what only the training rows show, before anything is fitted.

    Raises:
        InputError: A column has no value in any training row, one value only where bins are
            cut, or an interquartile range of 0 where that decides about outliers.
    """
    for entry in plan.entries:
        settings = entry.settings
        if entry.columns[0].kind == "string":
            continue
        for column in entry.columns:
            values = frame[list(column.frame)].to_numpy()
            parts = [values] if settings.statistics else [values[:, [i]] for i in range(values.shape[1])]
            for part in parts:
                present = part[~np.isnan(part)]
                if not len(present):
                    raise InputError(
                        f"column {column.name!r} has no value in any training row",
                        hint="take it out of [[data.inputs]]",
                    )
                one = present.min() == present.max() and not settings.statistics
                if one and settings.scale in ("bins", "quantile"):
                    raise InputError(
                        f"column {column.name!r} has the one value {present[0]:g}, which tells nothing",
                        hint="take it out of [[data.inputs]]",
                    )


def check_fitted(transformer: Any) -> None:
    """Refuse fitted steps that would erase a column.

    Raises:
        InputError: Limits fall together, or every value lies in one bin.
    """
    from jobs.preparation.columns import Bins

    for _, steps, names in fitted_parts(transformer):
        for _, step in steps:
            for each in _leaves(step):
                if isinstance(each, Limits) and each.method == "iqr" and (each.low_ >= each.high_).any():
                    name = names[int((each.low_ >= each.high_).argmax())]
                    raise InputError(
                        f"column {name!r} has an interquartile range of 0, so outliers = 'iqr' would call "
                        "every other value extreme",
                        hint="use outliers = 'z-score' for it, or none",
                    )
                if isinstance(each, Bins) and min(each.n_bins_) < 2:
                    name = names[int(np.argmin(each.n_bins_))]
                    raise InputError(
                        f"nearly all values of column {name!r} are equal, so they fall into one bin",
                        hint="use bins = 'uniform' for it, or another scale",
                    )
            names = step_names(step, names)


def _leaves(step: Any) -> Iterator[Any]:
    if isinstance(step, FeatureUnion):
        for _, part in step.transformer_list:
            yield from _leaves(part)
    elif isinstance(step, Pipeline):
        for _, part in step.steps:
            yield from _leaves(part)
    else:
        yield step


def _of_step(
    name: str, step: Any, before: np.ndarray, after: np.ndarray, names: Sequence[str]
) -> Iterator[Change]:
    rows = len(before)
    if name == "rule":
        for index, column in enumerate(names):
            count = int(((after[:, index] == "") & (before[:, index] != "")).sum())
            if step.patterns[index]:
                yield Change("rule", column, rows, rows, count, f"{count} values do not match: made missing")
    elif name == "missing":
        absent = before == "" if before.dtype == object else np.isnan(before)
        kind = getattr(step, "strategy", None) or type(step).__name__
        how = {"ChainedImputer": "MICE", "NeighborImputer": "nearest neighbours"}.get(
            kind, kind.replace("_", " ")
        )
        for index, column in enumerate(names):
            count = int(absent[:, index].sum())
            yield Change("missing", column, rows, rows, count, f"{count} missing values filled ({how})")
    elif name == "outliers" and isinstance(step, FeatureUnion):
        flag = dict(step.transformer_list)["flags"]
        flagged, flags = step_names(flag, list(names)), flag.transform(before)
        for index, column in enumerate(flagged):
            count = int(flags[:, index].sum())
            yield Change("outliers", column, rows, rows, count, f"{count} values flagged")
    elif name == "outliers":
        for index, column in enumerate(names):
            count = int((before[:, index] != after[:, index]).sum())
            low, high = step.low_[index], step.high_[index]
            detail = f"{count} values clipped to {low:g} to {high:g}"
            yield Change("outliers", column, rows, rows, count, detail)


def _of_selection(transformer: Pipeline, *, n_rows: int) -> Change:
    selection = transformer.named_steps["select"]
    kept, total = len(selection.kept_), selection.n_features_in_
    listed = ", ".join(feature_names(transformer)[:20]) + (", ..." if kept > 20 else "")
    detail = f"{kept} of {total} features kept by {selection.method}: {listed}"
    return Change("select", None, n_rows, n_rows, total - kept, detail)
