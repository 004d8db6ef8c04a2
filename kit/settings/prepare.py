"""Settings of what happens to rows and columns before a network sees them.

Rules, duplicates and dropped outliers change which rows are learned from; windows lay history
into a row; features and selection are fitted on the training rows and become part of the graph.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import CommandSettings, Scalar, Settings, in_file, path

Columns = Literal["numbers", "strings"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class RuleSettings(Settings):
    """A regular expression that a column's values must match, or that is replaced in them."""

    column: str = Field(min_length=1, description="Column of strings the rule reads.")
    pattern: str = Field(
        min_length=1,
        description="Regular expression of Python, in which digits, words and spaces are those of ASCII; it "
        "must match the whole value.",
    )
    otherwise: Literal["missing", "drop", "fail", "replace"] = Field(
        default="fail",
        description="What happens to a value that does not match: it becomes missing (also where the model "
        "answers), its row is dropped from the data, or the run stops. With replace, every part that "
        "matches is "
        "replaced instead, which is allowed in columns the model does not read.",
    )
    replacement: str = Field(default="", description="What replaces a match; for otherwise = 'replace'.")

    @model_validator(mode="after")
    def _can_be_compiled(self) -> RuleSettings:
        try:
            re.compile(self.pattern, re.ASCII)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        if self.replacement and self.otherwise != "replace":
            raise ValueError("replacement belongs to otherwise = 'replace'")
        return self


class DuplicatesSettings(Settings):
    """Which rows count as the same, and which of them is kept."""

    keys: tuple[str, ...] = Field(
        default=(), strict=False, description="Columns that must be equal; all of them when left out."
    )
    keep: Literal["first", "last", "most-complete", "latest"] = Field(
        default="first",
        description="Which of them is kept: by place in the table, by fewest missing values, or by time.",
    )
    time: str | None = Field(
        default=None,
        min_length=1,
        description="Column of moments or numbers for keep = 'latest'; [data] time when left out.",
    )

    @model_validator(mode="after")
    def _time_is_used(self) -> DuplicatesSettings:
        if self.time is not None and self.keep != "latest":
            raise ValueError(f"time = {self.time!r} belongs to keep = 'latest'")
        return self


class WindowSettings(Settings):
    """The last values of a column, laid into each row as a column of lists."""

    name: str = Field(min_length=1, description="Column it makes; declare it under [[data.inputs]].")
    column: str = Field(min_length=1, description="Column of numbers it collects.")
    time: str | None = Field(
        default=None, description="Column that orders the rows; [data] time when left out."
    )
    group: str | None = Field(default=None, description="Column whose values have a history each.")
    length: int = Field(
        ge=2, le=4096, description="Values per row: this row's and those before, oldest first."
    )


class FeatureSettings(Settings):
    """What is done to some of the input columns, in this order: rule, missing, outliers, scale or encode."""

    columns: Columns = Field(
        description="Input columns, or 'numbers' or 'strings' for all of the kind that no other entry names.",
    )
    missing: Literal["mean", "median", "most-frequent", "constant", "knn", "mice"] | None = Field(
        default=None, description="What replaces a missing value."
    )
    fill: Scalar | None = Field(default=None, description="The value for missing = 'constant'.")
    neighbors: int = Field(default=5, ge=1, le=100, description="Neighbours for missing = 'knn'.")
    outliers: Literal["iqr", "z-score", "isolation-forest"] | None = Field(
        default=None, description="How extreme values are found."
    )
    outlier_action: Literal["clip", "flag", "drop"] = Field(
        default="clip",
        description="clip moves them to the limit, flag adds a column that says so, drop leaves "
        "their training "
        "rows out.",
    )
    outlier_limit: float | None = Field(
        default=None,
        gt=0,
        description="Interquartile ranges (1.5), standard deviations (3), or the share of isolated "
        "rows (0.01).",
    )
    scale: Literal["standard", "minmax", "robust", "quantile", "bins"] | None = Field(
        default=None, description="How numbers are scaled."
    )
    n_bins: int = Field(default=5, ge=2, le=255, description="Bins for scale = 'bins'.")
    bins: Literal["uniform", "quantile", "kmeans"] = Field(
        default="quantile", description="How bins are cut."
    )
    encode: Literal["one-hot", "ordinal", "target"] | None = Field(
        default=None, description="How categories become numbers; for bins, one-hot or ordinal."
    )
    text: Literal["tf-idf"] | None = Field(default=None, description="How free text becomes numbers.")
    max_terms: int = Field(default=1000, ge=1, le=100_000, description="Most terms for text = 'tf-idf'.")
    ngrams: tuple[Annotated[int, Field(ge=1, le=5)], Annotated[int, Field(ge=1, le=5)]] = Field(
        default=(1, 1), strict=False, description="Shortest and longest run of words that is a term."
    )
    statistics: tuple[Literal["mean", "std", "minimum", "maximum", "first", "last", "slope"], ...] = Field(
        default=(), strict=False, description="What is measured over a column of lists, such as a window."
    )


class SelectSettings(Settings):
    """Which of the features the network reads."""

    method: Literal["variance", "chi-squared", "mutual-information", "recursive", "l1"] = Field(
        description="How features are chosen; the label is used by all but variance."
    )
    keep: int | None = Field(
        default=None,
        ge=1,
        description="How many are kept; by variance and l1, as many as pass when left out.",
    )
    threshold: float = Field(default=0.0, ge=0, description="Smallest variance that is kept.")
    strength: float = Field(
        default=1.0, gt=0, description="Inverse of the L1 penalty, C; smaller keeps fewer."
    )

    @model_validator(mode="after")
    def _says_how_many(self) -> SelectSettings:
        if self.keep is None and self.method in ("chi-squared", "mutual-information", "recursive"):
            raise ValueError(f"method = {self.method!r} needs keep; say how many features are kept")
        return self

    @model_validator(mode="after")
    def _method_uses_what_is_given(self) -> SelectSettings:
        for name, method in (("threshold", "variance"), ("strength", "l1")):
            if name in self.model_fields_set and self.method != method:
                raise ValueError(
                    f"{name} = {getattr(self, name):g} does nothing with method = {self.method!r}; take it "
                    f"out, or set method = {method!r}"
                )
        return self


class PrepareSettings(CommandSettings):
    """Check, clean, split and describe the project's data, as train does before it fits."""

    rules: tuple[RuleSettings, ...] = in_file("Cleaning rules, in order.", default=(), strict=False)
    duplicates: DuplicatesSettings | None = in_file(
        "How duplicates are removed; they stay by default.", default=None
    )
    windows: tuple[WindowSettings, ...] = in_file("Sliding windows.", default=(), strict=False)
    features: tuple[FeatureSettings, ...] = in_file("What is done to columns.", default=(), strict=False)
    select: SelectSettings | None = in_file("Which features are kept; all by default.", default=None)
    input: str | None = path(
        "Other table to lay out as the model reads it, windows included; needs --output.", default=None
    )
    output: str | None = path("Folder for the prepared rows, as Parquet.", default=None)
    report: str = path("Data report to write.", default="data-report.html", min_length=1)

    @model_validator(mode="after")
    def _input_goes_somewhere(self) -> PrepareSettings:
        if self.input is not None and self.output is None:
            raise ValueError("input needs output; name a folder for the prepared rows")
        return self

    @property
    def steps(self) -> dict[str, object]:
        """What changes rows or features, JSON-ready; part of a training's identity."""
        return self.model_dump(mode="json", include={"rules", "duplicates", "windows", "features", "select"})
