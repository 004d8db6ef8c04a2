"""What a version remembers of its data, held against the data there is now.

Which rows were held out follows from the table, the rules and the split; where one of them has changed, a
row held out now may be one the model has learned from, and nothing measured on it would count.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from kit.errors import InputError

if TYPE_CHECKING:
    from kit.model_version import ModelVersion
    from kit.project import Project
    from kit.rows import Part, Split
    from kit.signature import ClassName


def held_out_digest(part: Part) -> str:
    """Name a choice of rows, so that two versions can be told to have held out the same."""
    return hashlib.sha256(np.sort(part.rows).astype("<i8").tobytes()).hexdigest()


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
        InputError: The table, the split or the choice of rows is another; the message says which.
    """
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


def _hint(said: str, otherwise: str) -> str:
    return f"{said}; or {otherwise}" if otherwise else said
