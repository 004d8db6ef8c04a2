"""What a version remembers of its data, held against the data there is now.

Which rows were held out follows from the table, the rules and the split; where one of them has changed, a
row held out now may be one the model has learned from, and nothing measured on it would count. What is asked
of a row follows from the label and from what windows lay into it; where one of them has changed, a figure
would be of another question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError

if TYPE_CHECKING:
    from kit.model_version import ModelVersion
    from kit.project import Project
    from kit.rows import Part, Split
    from kit.tensors import ClassName


def held_out_digest(part: Part) -> str:
    """Name a choice of rows, so that two versions can be told to have held out the same."""
    return hashlib.sha256(np.sort(part.rows).astype("<i8").tobytes()).hexdigest()


def question(project: Project) -> dict[str, Any]:
    """Say what the project asks of a row, as a version's lineage keeps it.

    Returns:
        ``label``, the column to predict, and ``windows``, each with its order of time filled in.
    """
    data = project.settings.data
    windows = [
        {**each.model_dump(mode="json"), "time": each.time or data.time} for each in project.prepare().windows
    ]
    return {"label": data.label, "windows": windows}


def question_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say in what two questions differ; empty where they do not, or where one of them is not recorded.

    Args:
        one: What ``question`` gives, or a lineage's ``data``, which holds it.
        other: Likewise.
    """
    said = []
    if "label" in one and "label" in other and one["label"] != other["label"]:
        said.append(f"label = {one['label']!r}, not {other['label']!r}")
    if "windows" in one and "windows" in other:
        mine, theirs = ({each["name"]: each for each in data["windows"]} for data in (one, other))
        for name in dict.fromkeys([*mine, *theirs]):
            said += _window_difference(name, mine.get(name), theirs.get(name))
    return "; ".join(said)


def require_same_question(project: Project, version: ModelVersion) -> None:
    """Refuse a version that was trained to predict another column, or that windows showed other values.

    Args:
        project: Whose label and windows would be measured by.
        version: Its lineage holds those it was trained with.

    Raises:
        InputError: The label or a window differs; the message holds both.
    """
    trained_on = version.manifest.get("lineage", {}).get("data", {})
    differs = question_difference(question(project), trained_on)
    if differs:
        raise InputError(
            f"kit.toml asks another question than model {version.name!r} was trained on: {differs}",
            hint="restore [data] label and [[prepare.windows]] in kit.toml, or train again",
        )


def require_same_signature(
    project: Project, version: ModelVersion, *, classes: tuple[ClassName, ...], otherwise: str = ""
) -> None:
    """Refuse a version whose inputs or classes are not those that the project's rows have now.

    Args:
        project: Whose [[data.inputs]] and task.
        version: What is to answer its rows.
        classes: Of the project's label, in the order of their indices; empty for regression.
        otherwise: What else the caller's user can do, for the hint.

    Raises:
        InputError: The task, an input or the classes differ.
    """
    task, signature = project.settings.project.task, version.signature
    if task != signature.task:
        raise InputError(
            f"[project] task is {task!r}, and model {version.name!r} answers a {signature.task}",
            hint=_hint("restore kit.toml, or train again", otherwise),
        )
    if project.settings.input_signature() != signature.inputs:
        raise InputError(
            f"[[data.inputs]] is not what model {version.name!r} was trained with",
            hint=_hint("restore kit.toml, or train again", otherwise),
        )
    if classes != signature.classes:
        only = sorted(map(str, set(classes) ^ set(signature.classes)))
        raise InputError(
            f"the label {project.settings.data.label!r} has other classes than model {version.name!r} knows: "
            f"{', '.join(only[:5]) or 'their order differs'}",
            hint=_hint("restore the label in kit.toml, or train again", otherwise),
        )


def require_same_rows(project: Project, version: ModelVersion, split: Split, *, otherwise: str = "") -> None:
    """Refuse a split whose held-out rows a version may have learned from.

    Args:
        project: Whose data was split.
        version: Its manifest says what it was trained on.
        split: Of the data as it is now.
        otherwise: What else the caller's user can do, for the hint.

    Raises:
        InputError: The table, the split or the choice of rows is another, or what is asked of them; the
            message says which.
    """
    require_same_question(project, version)
    trained_on = version.manifest["lineage"]["data"]
    settings = project.settings.data
    if split.fingerprint != trained_on["fingerprint"]:
        raise InputError(
            f"{settings.path} has the fingerprint {split.fingerprint[:12]}, but model {version.name!r} was "
            f"trained on {trained_on['fingerprint'][:12]}, so which rows were held out is not known",
            hint=_hint("restore the data the model was trained on, or train again", otherwise),
        )
    if held_out_digest(split.test) == trained_on.get("held_out"):
        return
    now = {
        "n_test": len(split.test.rows),
        "n_validation": len(split.validation.rows),
        **settings.model_dump(mode="json", include={"split", "group", "time", "gap", "seed"}),
    }
    changed = [
        f"{name} = {value}, not {trained_on[name]}"
        for name, value in now.items()
        if name in trained_on and value != trained_on[name]
    ]
    raise InputError(
        f"[data] and [prepare] hold out other rows than model {version.name!r} was trained without"
        + (f" ({'; '.join(changed)})" if changed else ""),
        hint=_hint("restore them in kit.toml, or train again", otherwise),
    )


def _window_difference(
    name: str, mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None
) -> list[str]:
    if mine is None or theirs is None:
        return [f"{'without' if mine is None else 'with'} the window {name!r}"]
    return [
        f"the window {name!r} has {key} = {mine.get(key)!r}, not {theirs.get(key)!r}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]


def _hint(said: str, otherwise: str) -> str:
    return f"{said}; or {otherwise}" if otherwise else said
