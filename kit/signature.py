"""The signature of a model: what goes in, what comes out, and which values are allowed.

The one place where rows become tensors and where a value is refused. Training, batch, endpoint
and device all call it, so the four cannot disagree. It knows nothing of files, runtimes or
tables. Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kit.cells import missing_column, read_column, refuse_truth
from kit.errors import InputError, VerificationError, nearest
from kit.tensors import ClassName, Tensors, TensorSpec, check_tensor, is_list_of


@dataclass(frozen=True)
class Signature:
    """Describe a model's inputs and outputs.

    Attributes:
        task: ``classification`` or ``regression``.
        inputs: What the model reads, in order.
        outputs: What it answers: ``label``, ``probabilities`` and ``logits``, or ``value``.
    """

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the signature as the object ``signature.json`` holds."""
        return {
            "task": self.task,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """Read the object ``signature.json`` holds.

        Raises:
            VerificationError: It is not a signature this kit can read.
        """
        if set(value) != {"task", "inputs", "outputs"} or not all(
            is_list_of(value[key], Mapping) for key in ("inputs", "outputs")
        ):
            raise VerificationError(
                f"the signature has the keys {sorted(value)}; it needs a task and lists of inputs and outputs"
            )
        return cls(
            task=str(value["task"]),
            inputs=tuple(TensorSpec.from_json(spec) for spec in value["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in value["outputs"]),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every table column the inputs are made of, in order."""
        return tuple(column for spec in self.inputs for column in spec.columns)

    @property
    def string_columns(self) -> tuple[str, ...]:
        """The table columns whose cells are strings, even where they look like numbers or dates."""
        return tuple(column for spec in self.inputs if spec.dtype == "string" for column in spec.columns)

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The classes that ``label`` may name; empty for regression."""
        return next((spec.classes for spec in self.outputs if spec.name == "label"), ())

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.inputs)

    def validate(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """Check tensors before any runtime sees them.

        Args:
            inputs: One array per input, all with the same number of rows.

        Returns:
            The same tensors, contiguous, in the signature's order and dtypes.

        Raises:
            InputError: A name, dtype, shape or value is not allowed; the message names the
                tensor, the first offending row (from 0) and the rule.
        """
        names = self._names
        if inputs.keys() != names:
            _refuse_names(inputs, names=[spec.name for spec in self.inputs])
        checked: Tensors = {}
        for spec in self.inputs:
            checked[spec.name] = check_tensor(spec, inputs[spec.name])
        if len(checked) > 1 and len({len(array) for array in checked.values()}) > 1:
            rows = {name: len(array) for name, array in checked.items()}
            listed = ", ".join(f"{name} has {count}" for name, count in rows.items())
            raise InputError(f"the inputs differ in their number of rows: {listed}")
        return checked

    def from_columns(self, columns: Mapping[str, Any]) -> Tensors:
        """Make validated input tensors out of table columns.

        Args:
            columns: Column name to an array or list of N values; a list-typed column is an
                array (N, k) or a sequence of N sequences. Columns that are not needed are
                ignored.

        Raises:
            InputError: A column is missing, or its values break the signature.
        """
        tensors: Tensors = {}
        for spec in self.inputs:
            if not spec.columns:
                raise InputError(f"input {spec.name!r} is made of no columns; send it as a tensor")
            parts = []
            for column in spec.columns:
                if column not in columns:
                    raise missing_column(spec, column, columns)
                parts.append(read_column(spec, column, columns[column]))
            n_rows = len(parts[0])
            uneven = [name for name, part in zip(spec.columns, parts) if len(part) != n_rows]
            if uneven:
                raise InputError(f"column {uneven[0]!r} does not have {n_rows} rows like {spec.columns[0]!r}")
            stacked = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
            tensors[spec.name] = stacked.reshape((n_rows, *spec.row_shape))
        return self.validate(tensors)

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> Tensors:
        """Make validated input tensors out of JSON rows.

        Args:
            rows: One object per row, column name to value; an absent or null value counts as
                missing, a whole number may be written 3.0, and true is not a number.

        Raises:
            InputError: A row is not an object, or a value breaks the signature.
        """
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InputError(f"row {index} is a {type(row).__name__}; each row must be an object")
        if rows:
            for spec in self.inputs:
                for column in spec.columns:
                    if all(column not in row for row in rows):
                        raise missing_column(spec, column, rows[0])
        columns = {column: [row.get(column) for row in rows] for column in self.columns}
        for spec in self.inputs:
            if spec.dtype not in ("bool", "string"):
                for column in spec.columns:
                    for index, value in enumerate(columns[column]):
                        refuse_truth(spec, column, index, value)
        return self.from_columns(columns)

    def class_names(self, indices: np.ndarray) -> list[ClassName]:
        """Name the classes that an output ``label`` stands for.

        Args:
            indices: Class indices, shape (n_rows,).
        """
        classes = self.classes
        return [classes[int(index)] for index in indices]


def _refuse_names(inputs: Iterable[str], *, names: list[str]) -> None:
    """Name the input that is unknown or missing."""
    for name in inputs:
        if name not in names:
            raise InputError(f"{name!r} is not an input of this model", hint=nearest(name, names))
    missing = next(name for name in names if name not in inputs)
    raise InputError(f"input {missing!r} is missing", hint=f"send every input: {', '.join(names)}")
