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
    from kit.data import Part, Split
    from kit.model_version import ModelVersion
    from kit.project import Project


def held_out_digest(part: Part) -> str:
    """Name a choice of rows, so that two versions can be told to have held out the same."""
    return hashlib.sha256(np.sort(part.rows).astype("<i8").tobytes()).hexdigest()


def require_same_rows(project: Project, version: ModelVersion, split: Split) -> None:
    """Refuse a split whose held-out rows a version may have learned from.

    Args:
        project: Whose data was split.
        version: Its manifest says what it was trained on.
        split: Of the data as it is now.

    Raises:
        InputError: The table, the split or the choice of rows is another; the message says which.
    """
    trained_on = version.manifest["lineage"]["data"]
    settings = project.settings.data
    if split.fingerprint != trained_on["fingerprint"]:
        raise InputError(
            f"{settings.path} has the fingerprint {split.fingerprint[:12]}, but model {version.name!r} was "
            f"trained on {trained_on['fingerprint'][:12]}, so which rows were held out is not known",
            hint="restore the data the model was trained on, or train again",
        )
    if held_out_digest(split.test) == trained_on["held_out"]:
        return
    now = {
        "n_test": len(split.test.rows),
        "n_validation": len(split.validation.rows),
        **settings.model_dump(mode="json", include={"split", "group", "time", "gap", "seed"}),
    }
    changed = [
        f"{name} = {value}, not {trained_on[name]}"
        for name, value in now.items()
        if value != trained_on[name]
    ]
    raise InputError(
        f"[data] and [prepare] hold out other rows than model {version.name!r} was trained without"
        + (f" ({'; '.join(changed)})" if changed else ""),
        hint="restore them in kit.toml, or train again",
    )
