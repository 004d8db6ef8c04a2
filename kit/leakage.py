"""What a held-out row must not share with the rows a model learned from.

An id, a time or a group that stays together fails the run when it crosses. So does a window through which
a training row holds a value of a validation or held-out row, where parts are kept apart; elsewhere such
rows are counted, as are those that are equal in every input. A held-out row may hold values of training
rows: that is forecasting. The rows are only compared: how they were split is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError
from kit.windows import Reach

if TYPE_CHECKING:
    import pyarrow as pa

#: Part to how a message calls its rows.
_WORDS = {"train": "training", "validation": "validation", "test": "held-out"}


@dataclass(frozen=True)
class Evidence:
    """What is compared between parts; each array has shape (n_rows,).

    Attributes:
        table: The rows, for the values in messages.
        inputs: Codes that are equal where every input is.
        id: The column of ids, where one is declared.
        ids: Its codes, -1 where an id is missing; None where none is declared.
        time: The column of time, where one is declared.
        times: Its values; None where none is declared.
        group: The column of groups, where one is declared.
        groups: Its codes, none missing; None where none is declared.
        together: Whether a group must not cross, as an id must not.
        windows: Whose values the windows hold.
        apart: Whether no window of a training row may hold a value of another part.
    """

    table: pa.Table
    inputs: np.ndarray
    id: str = ""
    ids: np.ndarray | None = None
    time: str = ""
    times: np.ndarray | None = None
    group: str = ""
    groups: np.ndarray | None = None
    together: bool = False
    windows: tuple[Reach, ...] = ()
    apart: bool = False


def check_leakage(evidence: Evidence, parts: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], ...]:
    """Refuse parts between which an id, a group, a time or a window crosses; count what may cross.

    Args:
        evidence: What is compared.
        parts: ``train``, ``validation`` and ``test`` to the positions of their rows.

    Returns:
        One object per check made: ``check``, ``found`` (how many) and ``detail`` in words.

    Raises:
        InputError: A value of the id, or of a group that stays together, is in two parts, or a training
            row is not earlier than the validation and held-out rows, or a validation row not earlier than
            the held-out ones; or, where parts are kept apart, a training row's window holds a value of a
            validation or held-out row.
    """
    facts = []
    if evidence.ids is not None:
        hint = f"set split = 'grouped' and group = {evidence.id!r} under [data]"
        _check_codes(evidence, evidence.ids, parts, what="id", hint=hint)
        detail = f"no value of {evidence.id!r} is in two parts"
        compared = np.concatenate(list(parts.values()))
        n_missing = int((evidence.ids[compared] < 0).sum())
        if n_missing:
            detail += f"; {n_missing} of {len(compared)} rows have none and were not compared"
        facts.append({"check": "id", "found": 0, "detail": detail})
    if evidence.groups is not None and evidence.together:
        hint = "split by group: use grouped folds, or split = 'grouped' under [data]"
        _check_codes(evidence, evidence.groups, parts, what="group", hint=hint)
        detail = f"no value of {evidence.group!r} is in two parts"
        facts.append({"check": "group", "found": 0, "detail": detail})
    if evidence.times is not None:
        _check_times(evidence, evidence.times, parts)
        detail = f"every training row is earlier by {evidence.time!r} than what it is judged on"
        facts.append({"check": "time", "found": 0, "detail": detail})
    facts += [_check_window(evidence, reach, parts) for reach in evidence.windows]
    n_codes = int(evidence.inputs.max(initial=-1)) + 1
    learnt = np.zeros(n_codes, dtype=bool)
    learnt[evidence.inputs[parts["train"]]] = True
    counts = {part: int(learnt[evidence.inputs[parts[part]]].sum()) for part in ("validation", "test")}
    found = sum(counts.values())
    detail = (
        f"{counts['validation']} validation rows and {counts['test']} held-out rows are equal to a training "
        "row in every input"
    )
    facts.append({"check": "duplicate rows", "found": found, "detail": detail})
    return tuple(facts)


def _check_codes(
    evidence: Evidence, codes: np.ndarray, parts: Mapping[str, np.ndarray], *, what: str, hint: str
) -> None:
    """Refuse a value of an id or a group (-1 where it is missing) that is in two parts."""
    name = evidence.id if what == "id" else evidence.group
    n_codes = int(codes.max(initial=-1)) + 1
    seen = {}
    for part, positions in parts.items():
        mine = codes[positions]
        seen[part] = np.zeros(n_codes, dtype=bool)
        seen[part][mine[mine >= 0]] = True
    crossing = sum(mask.astype(np.int64) for mask in seen.values()) > 1
    if not np.any(crossing):
        return
    code = int(np.argmax(crossing))
    where = [_WORDS[part] for part, mask in seen.items() if mask[code]]
    value = evidence.table.column(name)[int((codes == code).argmax())].as_py()
    count = int(np.sum(crossing))
    raise InputError(
        f"leakage: {value!r} of the {what} {name!r} is in the {where[0]} and the {where[1]} rows "
        f"({count} {what}s are in two parts)",
        hint=hint,
    )


def _check_times(evidence: Evidence, times: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if not len(parts[earlier]) or not len(parts[later]):
            continue
        before, after = times[parts[earlier]], times[parts[later]]
        start = after.min()
        count = int((before >= start).sum())
        if count:
            column = evidence.table.column(evidence.time)
            last = column[int(parts[earlier][before.argmax()])].as_py()
            first = column[int(parts[later][after.argmin()])].as_py()
            raise InputError(
                f"leakage: by {evidence.time!r} a {_WORDS[earlier]} row is of {last}, and the "
                f"{_WORDS[later]} rows start at {first} ({count} {_WORDS[earlier]} rows are not earlier)",
                hint="set split = 'time' under [data], or take time out where order does not matter",
            )


def _check_window(evidence: Evidence, reach: Reach, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Count the training rows whose windows hold a value of a validation or held-out row; see the module."""
    name, later = reach.window.name, np.zeros(len(reach.order), dtype=bool)
    for part in ("validation", "test"):
        later[parts[part]] = True
    found = int(reach.holding(later)[parts["train"]].sum())
    if found and evidence.apart:
        by, column = ("group", evidence.group) if evidence.together else ("time", evidence.time)
        raise InputError(
            f"leakage: the window {name!r} of {found} of {len(parts['train'])} training rows holds values of "
            "validation or held-out rows",
            hint=f"set {by} = {column!r} under [[prepare.windows]] {name!r}, the {by} the rows are split by",
        )
    detail = f"{found} training rows have a window {name!r} that holds values of validation or held-out rows"
    return {"check": "window", "found": found, "detail": detail}
