"""scikit-learn preprocessing: what the kit feeds it, and what it refuses in it.

It knows nothing of networks or ONNX files; ``jobs.exporting.graph`` joins the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import ProjectError
from kit.signature import Signature
from kit.tensors import TensorSpec

if TYPE_CHECKING:
    import pandas

_TOKENS = "[a-zA-Z0-9_]+"


def to_frame(tensors: Mapping[str, np.ndarray], *, signature: Signature) -> pandas.DataFrame:
    """Lay input tensors out as the columns a scikit-learn transformer reads.

    Args:
        tensors: The signature's inputs, shape (n_rows, ...) each.
        signature: Names the columns.

    Returns:
        One column per value, named by ``frame_columns``: float32 for numbers and booleans, objects
        of str for strings. float32 on purpose: the graph computes in it, and scikit-learn follows
        the dtype it is given.
    """
    import pandas

    columns: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = np.asarray(tensors[spec.name])
        flat = array.reshape(len(array), spec.row_size)
        dtype = object if spec.dtype == "string" else np.float32
        for index, column in enumerate(frame_columns(spec)):
            columns[column] = flat[:, index].astype(dtype)
    # dtype=object on strings: pandas would otherwise pick its own string type, whose missing value is NaN.
    return pandas.DataFrame(
        {
            name: pandas.Series(array, dtype="object" if array.dtype == object else "float32")
            for name, array in columns.items()
        }
    )


def to_features(transformer: Any, tensors: Mapping[str, np.ndarray], *, signature: Signature) -> np.ndarray:
    """Run a fitted transformer on input tensors.

    Returns:
        float32, shape (n_rows, n_features), dense.

    Raises:
        ProjectError: The transformer yields something that is not a matrix of numbers.
    """
    import sklearn

    # The signature has checked the values; a step must not refuse what an extreme became on the way,
    # because the graph does not either: both give a number, an infinity or NaN, and those are compared.
    with sklearn.config_context(assume_finite=True), np.errstate(all="ignore"):
        result = transformer.transform(to_frame(tensors, signature=signature))
    return to_matrix(result)


def to_matrix(result: Any) -> np.ndarray:
    """Give what a transformer yields as a dense matrix: float32, shape (n_rows, n_features).

    Raises:
        ProjectError: It is not a matrix of numbers.
    """
    try:
        dense = result.toarray() if hasattr(result, "toarray") else np.asarray(result)
        with np.errstate(over="ignore"):
            features = np.ascontiguousarray(dense, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ProjectError(
            f"the preprocessing yields values that are not numbers: {error}",
            hint="encode string columns, for example with OneHotEncoder(handle_unknown='ignore')",
        ) from error
    if features.ndim != 2:
        raise ProjectError(
            f"the preprocessing yields shape {list(features.shape)}; (rows, features) is expected"
        )
    return features


def frame_columns(spec: TensorSpec) -> tuple[str, ...]:
    """Name the frame's columns for an input: its table columns, or ``name[0]``, ... for a list."""
    if len(spec.columns) == spec.row_size:
        return spec.columns
    return tuple(f"{spec.columns[0]}[{index}]" for index in range(spec.row_size))


def check_transformer(transformer: Any) -> None:
    """Refuse preprocessing steps that ONNX cannot repeat, or repeats wrongly without saying so.

    Cheap, and needs nothing fitted: call it before training.

    Args:
        transformer: A scikit-learn transformer, pipeline or column transformer.

    Raises:
        ProjectError: Names the step and what to use instead.
    """
    for path, step in steps_of(transformer, "preprocessing"):
        kind = type(step).__name__
        complaint: tuple[str, str] | None = None
        if getattr(step, "add_indicator", False):
            complaint = (
                "add_indicator=True, whose extra columns are lost in the graph",
                "leave add_indicator out; if being missing matters, make it a column of the table",
            )
        elif kind in ("TfidfVectorizer", "CountVectorizer") and step.token_pattern != _TOKENS:
            complaint = (
                f"token_pattern={step.token_pattern!r}, which the graph splits differently",
                f"set token_pattern={_TOKENS!r}",
            )
        elif kind in _NO_CONVERTER or kind.startswith("HistGradientBoosting"):
            instead = _NO_CONVERTER.get(kind, "GradientBoosting, or let the network do that part")
            complaint = ("a step that has no ONNX converter", f"use {instead}")
        elif kind == "KBinsDiscretizer" and step.encode == "onehot":
            complaint = ("encode='onehot', a sparse result ONNX cannot hold", "set encode='onehot-dense'")
        elif kind == "OneHotEncoder" and step.handle_unknown != "ignore":
            complaint = (
                f"handle_unknown={step.handle_unknown!r}, which fails on an unseen category",
                "set handle_unknown='ignore'",
            )
        elif kind == "OrdinalEncoder" and step.handle_unknown != "use_encoded_value":
            complaint = (
                f"handle_unknown={step.handle_unknown!r}, which fails on an unseen category",
                "set handle_unknown='use_encoded_value', unknown_value=-1",
            )
        if complaint:
            raise ProjectError(f"{path} ({kind}) has {complaint[0]}", hint=complaint[1])


_NO_CONVERTER = {
    "IterativeImputer": "SimpleImputer(strategy='median')",
    "HashingVectorizer": f"TfidfVectorizer(token_pattern={_TOKENS!r})",
}


def steps_of(step: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Walk a transformer's parts, fitted or not, with the name a user gave each, itself first."""
    yield path, step
    if hasattr(step, "transformers"):
        parts = [(name, part) for name, part, _ in step.transformers]
        parts.append(("remainder", step.remainder))
    else:
        parts = list(getattr(step, "steps", ())) + list(getattr(step, "transformer_list", ()))
    for name, part in parts:
        if part is not None and not isinstance(part, str):
            yield from steps_of(part, f"{path}.{name}")
