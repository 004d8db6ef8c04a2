"""What [[prepare.features]] asks for, checked against the inputs before a row is read.

An entry names columns; the plan says which columns of the frame that are, and refuses what makes no
sense or cannot be exported exactly. It knows nothing of scikit-learn or of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jobs.preparation.frame import frame_columns
from jobs.preparation.patterns import portable_pattern
from kit.errors import SettingsError, nearest
from kit.project import Project
from kit.settings import FeatureSettings, PrepareSettings, RuleSettings
from kit.tensors import TensorSpec
from kit.windows import check_windows

#: Most columns that missing = "knn" or "mice" reads: each adds operations to the graph.
MOST_IMPUTED_TOGETHER = 64

#: The largest number of float32, in which the graph computes.
_MOST = 3.4028234663852886e38

_NUMBER_RULES = ("mean", "median", "most-frequent", "constant", "knn", "mice")
_DEPENDS = (
    ("fill", "missing", ("constant",)),
    ("neighbors", "missing", ("knn",)),
    ("outlier_action", "outliers", ("iqr", "z-score", "isolation-forest")),
    ("outlier_limit", "outliers", ("iqr", "z-score", "isolation-forest")),
    ("n_bins", "scale", ("bins",)),
    ("bins", "scale", ("bins",)),
    ("max_terms", "text", ("tf-idf",)),
    ("ngrams", "text", ("tf-idf",)),
)


@dataclass(frozen=True)
class Column:
    """An input column as an entry reads it.

    Attributes:
        name: The table's column.
        kind: ``number``, or ``list`` of numbers, or ``string``.
        frame: Its columns in the frame: itself, or one per value of a list.
        nullable: Whether values may be missing.
        patterns: What its values must match, or else become missing.
    """

    name: str
    kind: Literal["number", "list", "string"]
    frame: tuple[str, ...]
    nullable: bool
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One entry of [[prepare.features]] with its columns found.

    Attributes:
        settings: What the user wrote.
        columns: What it is done to; all strings, or none of them.
    """

    settings: FeatureSettings
    columns: tuple[Column, ...]

    @property
    def frame(self) -> tuple[str, ...]:
        """The columns of the frame it reads, in order."""
        return tuple(name for column in self.columns for name in column.frame)


@dataclass(frozen=True)
class Plan:
    """Everything that becomes part of the graph.

    Attributes:
        entries: In the order of the file.
        rest: Columns of numbers that no entry names; they pass through as they are.
    """

    entries: tuple[Entry, ...]
    rest: tuple[Column, ...]


def plan_features(project: Project) -> Plan | None:
    """Check a project's [[prepare.features]], [prepare.select] and [[prepare.windows]].

    Returns:
        The plan; None where the file asks for nothing of the kind.

    Raises:
        SettingsError: A column is unknown, named twice or of the wrong kind; a combination makes
            no sense or cannot be exported; a column of strings or with missing values is left out; a
            window shows the label.
    """
    prepare = project.prepare()
    check_windows(
        prepare.windows,
        label=project.settings.data.label,
        columns=[each for spec in project.settings.input_signature() for each in spec.columns],
    )
    inputs = project.settings.input_signature()
    if not prepare.features and prepare.select is None:
        _refuse_lost_rules(prepare, inputs, own=project.settings.model.preprocessing is not None)
        return None
    if project.settings.model.preprocessing is not None:
        raise SettingsError(
            f"[model] preprocessing = {project.settings.model.preprocessing!r} and "
            f"{'[[prepare.features]]' if prepare.features else '[prepare.select]'} are both set",
            hint="keep one of them; [[prepare.features]] where it says enough",
        )
    columns = _columns(prepare, inputs)
    entries = tuple(_entries(prepare.features, columns))
    for entry in entries:
        _check_entry(entry)
    taken = {column.name for entry in entries for column in entry.columns}
    rest = tuple(column for name, column in columns.items() if name not in taken)
    for column in rest:
        if column.kind == "string":
            raise SettingsError(
                f"column {column.name!r} holds strings and no entry of [[prepare.features]] names it",
                hint="give it encode = 'one-hot', 'ordinal' or 'target', or text = 'tf-idf'",
            )
        if column.nullable:
            raise SettingsError(
                f"column {column.name!r} may be missing and no entry of [[prepare.features]] names it",
                hint="give it a missing rule, for example missing = 'median'",
            )
    if prepare.select is not None and prepare.select.method == "chi-squared":
        _check_counts(entries, task=project.settings.project.task)
    return Plan(entries, rest)


def _refuse_lost_rules(prepare: PrepareSettings, inputs: tuple[TensorSpec, ...], *, own: bool) -> None:
    columns = {column for spec in inputs for column in spec.columns}
    for rule in prepare.rules:
        if rule.otherwise == "missing" and rule.column in columns:
            other = "[model] preprocessing" if own else "nothing under [[prepare.features]]"
            raise SettingsError(
                f"the rule for column {rule.column!r} makes values missing in the graph, but the file has "
                f"{other}",
                hint="say under [[prepare.features]] what is done to the column, or set otherwise = 'drop'",
            )


def _columns(prepare: PrepareSettings, inputs: tuple[TensorSpec, ...]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    seen: dict[str, str] = {}
    for spec in inputs:
        names = frame_columns(spec)
        for name in spec.columns:
            own = names if len(spec.columns) == 1 else (name,)
            kind: Literal["number", "list", "string"] = "list" if len(own) > 1 else "number"
            columns[name] = Column(
                name,
                "string" if spec.dtype == "string" else kind,
                own,
                spec.nullable,
                tuple(_patterns(prepare.rules, name, spec)),
            )
            for each in own:
                if each in seen:
                    raise SettingsError(
                        f"column {name!r} and a value of {seen[each]!r} are both called {each!r}",
                        hint="rename one of the columns",
                    )
                seen[each] = name
    return columns


def _patterns(rules: tuple[RuleSettings, ...], column: str, spec: TensorSpec) -> Iterator[str]:
    for rule in rules:
        if rule.column == column and rule.otherwise == "missing":
            if spec.dtype != "string":
                raise SettingsError(
                    f"the rule for column {column!r} reads strings, but input {spec.name!r} is {spec.dtype}",
                    hint="bound numbers with minimum and maximum under [[data.inputs]]",
                )
            portable_pattern(rule.pattern)
            yield rule.pattern


def _entries(features: tuple[FeatureSettings, ...], columns: dict[str, Column]) -> Iterator[Entry]:
    named: dict[str, int] = {}
    for number, settings in enumerate(features, start=1):
        for name in () if isinstance(settings.columns, str) else settings.columns:
            if name not in columns:
                raise SettingsError(
                    f"entry {number} of [[prepare.features]] names the column {name!r}, which is no input",
                    hint=nearest(name, columns),
                )
            if name in named:
                raise SettingsError(
                    f"column {name!r} is named in entries {named[name]} and {number} of [[prepare.features]]",
                    hint="name each column once; one entry can hold several steps",
                )
            named[name] = number
    for number, settings in enumerate(features, start=1):
        if not isinstance(settings.columns, str):
            yield Entry(settings, tuple(columns[name] for name in settings.columns))
            continue
        wanted = settings.columns
        chosen = [
            column
            for name, column in columns.items()
            if name not in named and (column.kind == "string") == (wanted == "strings")
        ]
        if not chosen:
            raise SettingsError(
                f"entry {number} of [[prepare.features]] takes the {wanted} that no other entry names, "
                "and there are none",
                hint="remove the entry, or name its columns",
            )
        named.update({column.name: number for column in chosen})
        yield Entry(settings, tuple(chosen))


def _check_entry(entry: Entry) -> None:
    settings, columns = entry.settings, entry.columns
    strings = [column for column in columns if column.kind == "string"]
    if strings and len(strings) < len(columns):
        other = next(column for column in columns if column.kind != "string")
        raise SettingsError(
            f"one entry of [[prepare.features]] names {strings[0].name!r}, which holds strings, and "
            f"{other.name!r}, which holds numbers",
            hint="write an entry for each kind",
        )
    given = settings.model_fields_set
    for key, owner, values in _DEPENDS:
        if key in given and getattr(settings, key) is not None and getattr(settings, owner) not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise _refused(entry, f"sets {key} without {owner} = {wanted}", f"leave {key} out")
    if settings.missing == "constant" and settings.fill is None:
        raise _refused(
            entry, "has missing = 'constant' without fill", "set fill to the value, such as fill = 0"
        )
    if strings:
        _check_strings(entry)
    else:
        _check_numbers(entry)


def _check_strings(entry: Entry) -> None:
    settings = entry.settings
    for key in ("scale", "outliers", "statistics"):
        if getattr(settings, key):
            raise _refused(
                entry,
                f"asks for {key} of strings",
                "use encode or text, or declare the column as a number under [[data.inputs]]",
            )
    if (settings.encode is None) == (settings.text is None):
        raise _refused(
            entry,
            "has both encode and text" if settings.text else "leaves strings as they are",
            "give it either encode = 'one-hot', 'ordinal' or 'target', or text = 'tf-idf'",
        )
    if settings.missing is not None and settings.text is not None:
        raise _refused(
            entry, f"has missing = {settings.missing!r} for text", "leave it out: a missing text has no terms"
        )
    if settings.missing not in (None, "most-frequent", "constant"):
        raise _refused(
            entry,
            f"has missing = {settings.missing!r} for strings",
            "use 'most-frequent' or 'constant', or leave it out: a missing value is a category of its own",
        )
    if settings.missing == "constant" and (not isinstance(settings.fill, str) or not settings.fill):
        raise _refused(entry, f"fills strings with {settings.fill!r}", "set fill to a text")
    if settings.ngrams[0] > settings.ngrams[1]:
        raise _refused(
            entry, f"has ngrams = {list(settings.ngrams)}", "write the shortest first, such as [1, 2]"
        )


def _check_numbers(entry: Entry) -> None:
    settings, columns = entry.settings, entry.columns
    if settings.text is not None:
        raise _refused(
            entry,
            f"asks for text = {settings.text!r} of numbers",
            "name columns whose input has dtype = 'string'",
        )
    if settings.encode is not None and settings.scale != "bins":
        raise _refused(
            entry,
            f"asks for encode = {settings.encode!r} of numbers",
            "set scale = 'bins' as well, or declare the column with dtype = 'string' under [[data.inputs]]",
        )
    if settings.encode == "target":
        raise _refused(entry, "has encode = 'target' for bins", "use 'one-hot' or 'ordinal'")
    if settings.missing == "constant" and (
        isinstance(settings.fill, (bool, str)) or not isinstance(settings.fill, (int, float))
    ):
        raise _refused(entry, f"fills numbers with {settings.fill!r}", "set fill to a number")
    if settings.missing == "constant" and abs(settings.fill) > _MOST:  # type: ignore[arg-type]  # a number, as just checked
        raise _refused(
            entry,
            f"fills numbers with {str(settings.fill)[:20]}, which float32 does not hold",
            "set fill to a number up to 3.4e38",
        )
    scalars = [column.name for column in columns if column.kind != "list"]
    if settings.statistics and scalars:
        raise _refused(
            entry,
            f"asks for statistics of {scalars[0]!r}, which holds one value per row",
            "name a column of lists, such as one that [[prepare.windows]] makes",
        )
    if settings.missing is None and any(column.nullable for column in columns):
        absent = next(column.name for column in columns if column.nullable)
        raise _refused(
            entry,
            f"leaves {absent!r} without a rule for missing values, which its input allows",
            f"set missing to one of {', '.join(_NUMBER_RULES)}",
        )
    _check_imputed_together(entry)
    if settings.outliers == "isolation-forest" and settings.outlier_action == "clip":
        raise _refused(
            entry,
            "has outliers = 'isolation-forest' with outlier_action = 'clip', but whole rows have no limit "
            "to be moved to",
            "set outlier_action = 'flag' or 'drop'",
        )
    if settings.outliers == "isolation-forest" and (settings.outlier_limit or 0) > 0.5:
        raise _refused(
            entry,
            f"isolates a share of {settings.outlier_limit:g} of the rows",
            "set outlier_limit to a share up to 0.5",
        )


def _check_imputed_together(entry: Entry) -> None:
    settings = entry.settings
    if settings.missing not in ("knn", "mice"):
        return
    width = len(settings.statistics) * len(entry.columns) if settings.statistics else len(entry.frame)
    if width < 2:
        raise _refused(
            entry,
            f"has missing = {settings.missing!r} for one column, which leaves nothing to fill it from",
            "name the columns it depends on in the same entry, or use 'median'",
        )
    if width > MOST_IMPUTED_TOGETHER:
        raise _refused(
            entry,
            f"has missing = {settings.missing!r} for {width} columns; {MOST_IMPUTED_TOGETHER} is the most",
            "write entries of related columns, or use 'median'",
        )


def _check_counts(entries: tuple[Entry, ...], *, task: str) -> None:
    """Refuse what chi-squared cannot be computed from, as far as the settings show it."""
    if task == "regression":
        raise SettingsError(
            "[prepare.select] method = 'chi-squared' needs classes, but the task is regression",
            hint="use method = 'mutual-information'",
        )
    for entry in entries:
        if entry.settings.scale in ("standard", "robust"):
            raise SettingsError(
                f"[prepare.select] method = 'chi-squared' needs features that are not negative, but "
                f"{entry.columns[0].name!r} has scale = {entry.settings.scale!r}",
                hint="use scale = 'minmax' with outliers or bounds, 'quantile' or 'bins', "
                "or another method of selection",
            )


def _refused(entry: Entry, what: str, hint: str) -> SettingsError:
    names = ", ".join(repr(column.name) for column in entry.columns[:3])
    more = ", ..." if len(entry.columns) > 3 else ""
    return SettingsError(f"the entry of [[prepare.features]] for {names}{more} {what}", hint=hint)
