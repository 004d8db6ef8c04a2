"""Adding nodes and constants to a graph that skl2onnx is writing; knows nothing of the kit's steps."""

from __future__ import annotations

from typing import Any

import numpy as np

DOUBLE, FLOAT, INT64, STRING = 11, 1, 7, 8
_TYPES = {"f4": FLOAT, "f8": DOUBLE, "i8": INT64, "b1": 9}


class Graph:
    """Adds nodes and constants behind one operator's input; names are made up as needed."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self.scope = scope
        self.container = container
        self.step = operator.raw_operator
        self.input: str = operator.inputs[0].full_name
        self.output: str = operator.outputs[0].full_name

    def add(
        self, kind: str, *inputs: Any, output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node; arrays among the inputs become constants. Gives the name of its output."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        name = output or self.scope.get_unique_variable_name(kind.lower())
        self.container.add_node(
            kind,
            names,
            name,
            name=self.scope.get_unique_operator_name(kind),
            op_domain=domain,
            op_version=attributes.pop("version", 3 if domain == "ai.onnx.ml" else 1 if domain else 18),
            **attributes,
        )
        return name

    def constant(self, value: Any) -> str:
        """Add a constant of float32, float64, int64, bool or strings."""
        array = np.asarray(value)
        name: str = self.scope.get_unique_variable_name("constant")
        if array.dtype.kind in "OU":
            content: list[Any] = [str(each).encode() for each in array.reshape(-1)]
            self.container.add_initializer(name, STRING, list(array.shape), content)
        else:
            kind = _TYPES[array.dtype.str[1:]]
            self.container.add_initializer(name, kind, list(array.shape), array.reshape(-1).tolist())
        return name

    def double(self) -> str:
        """Give the input as float64."""
        return self.add("Cast", self.input, to=DOUBLE)

    def finish(self, name: str) -> None:
        """Round to float32 once, as the output."""
        self.add("Cast", name, output=self.output, to=FLOAT)

    def sum(self, name: str) -> str:
        """Sum each row, shape (n_rows, 1)."""
        return self.add("ReduceSum", name, np.array([1]), keepdims=1)
