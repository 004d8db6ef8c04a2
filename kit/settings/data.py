"""Settings of the table a model learns from, and of how its rows are split."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import Seed, Settings
from kit.tensors import TensorSpec

#: A duration: a number and s, m, h or d.
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class InputSettings(Settings):
    """One model input: a tensor and the table columns it is made of."""

    name: str = Field(min_length=1, description="Name of the tensor.")
    dtype: Literal[
        "float32",
        "float64",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "string",
    ] = Field(default="float32", description="Type of its values.")
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, strict=False, description="Shape of one row; [number of columns] when left out."
    )
    columns: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="Columns it is stacked from: scalar columns, or one of lists; its name when left out.",
    )
    nullable: bool = Field(default=False, description="Whether missing values are allowed.")
    minimum: float | None = Field(default=None, description="Smallest allowed value, inclusive.")
    maximum: float | None = Field(default=None, description="Largest allowed value, inclusive.")

    @model_validator(mode="after")
    def _consistent(self) -> InputSettings:
        spec = self.spec()
        if len(spec.columns) not in (1, spec.row_size):
            raise ValueError(
                f"input {self.name!r}: shape {list(spec.row_shape)} holds {spec.row_size} values, but "
                f"{len(spec.columns)} columns are named; name 1 or {spec.row_size}"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"input {self.name!r}: minimum {self.minimum:g} is above maximum {self.maximum:g}"
            )
        if self.dtype in ("string", "bool") and (self.minimum, self.maximum) != (None, None):
            raise ValueError(f"input {self.name!r}: a {self.dtype} has no minimum or maximum")
        if self.nullable and self.dtype not in ("float32", "float64", "float16", "string"):
            raise ValueError(
                f"input {self.name!r}: {self.dtype} cannot hold missing values; use float32 or string"
            )
        return self

    def spec(self) -> TensorSpec:
        """Give the tensor's specification, with what was left out filled in."""
        columns = self.columns or (self.name,)
        return TensorSpec(
            name=self.name,
            dtype=self.dtype,
            shape=(-1, *(self.shape or (len(columns),))),
            columns=columns,
            nullable=self.nullable,
            minimum=self.minimum,
            maximum=self.maximum,
        )


class DataSettings(Settings):
    """The table the model learns from."""

    path: str = Field(
        min_length=1,
        description="Parquet, CSV or JSON Lines file, folder of them, folder of images by class, or "
        "s3:// address.",
    )
    label: str = Field(min_length=1, description="Column to predict.")
    inputs: tuple[InputSettings, ...] = Field(min_length=1, strict=False, description="The model's inputs.")
    images: Literal["exact", "resize"] = Field(
        default="exact",
        description="exact refuses an image of another size than the input's shape; resize scales it.",
    )
    split: Literal["random", "stratified", "grouped", "time"] | None = Field(
        default=None,
        description="How rows are held out; stratified for classification and random for regression "
        "when left out.",
    )
    group: str | None = Field(
        default=None, min_length=1, description="Column whose values stay together; for a grouped split."
    )
    time: str | None = Field(
        default=None, min_length=1, description="Column of moments or numbers that order the rows."
    )
    gap: str | float = Field(
        default=0.0,
        description="Time left out before each later part of a time split: a number in the unit of a "
        "numeric time column, or a duration such as '90s', '12h', '7d'.",
    )
    id: str | None = Field(
        default=None,
        min_length=1,
        description="Column that identifies what a row is about; one value in two parts fails the "
        "leakage check.",
    )
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows held out.")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the remaining rows that early stopping watches."
    )
    seed: Seed = Field(default=0, description="Seed of the split.")

    @model_validator(mode="after")
    def _no_overlap(self) -> DataSettings:
        names = [spec.name for spec in self.inputs]
        columns = [column for spec in self.inputs for column in spec.spec().columns]
        for kind, values in (("input", names), ("column", columns)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{kind} {sorted(twice)[0]!r} is named twice")
        if self.label in columns:
            raise ValueError(f"the label {self.label!r} is also an input column, so the model would see it")
        return self

    @model_validator(mode="after")
    def _split_has_its_column(self) -> DataSettings:
        if self.split == "grouped" and self.group is None:
            raise ValueError("split = 'grouped' needs group; name the column whose values stay together")
        if self.split == "time" and self.time is None:
            raise ValueError("split = 'time' needs time; name the column that orders the rows")
        if self.gap != 0.0 and self.split != "time":
            raise ValueError(f"gap = {self.gap!r} belongs to split = 'time'")
        if isinstance(self.gap, str) and not DURATION.fullmatch(self.gap):
            raise ValueError(f"gap = {self.gap!r} is no duration; write '90s', '15m', '12h' or '7d'")
        if not isinstance(self.gap, str) and self.gap < 0:
            raise ValueError(f"gap = {self.gap:g} is below 0; it says how much time is left out")
        for field in ("group", "time", "id"):
            if getattr(self, field) == self.label:
                raise ValueError(f"{field} = {self.label!r} is the label; name another column")
        return self
