"""scikit-learn preprocessing: what the kit feeds it, refuses in it, and carries away as data.

It knows nothing of networks or ONNX files; ``jobs.exporting.graph`` joins the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import ProjectError
from kit.signature import Signature, TensorSpec
from kit.steps import Block, Steps

if TYPE_CHECKING:
    import pandas

_TOKENS = "[a-zA-Z0-9_]+"


def to_frame(tensors: Mapping[str, np.ndarray], *, signature: Signature) -> pandas.DataFrame:
    """Lay input tensors out as the columns a scikit-learn transformer reads.

    Args:
        tensors: The signature's inputs, shape (n_rows, ...) each.
        signature: Names the columns; every input must be made of scalar columns.

    Returns:
        One column per table column: float32 for numbers and booleans, objects of str for
        strings. float32 on purpose: the graph computes in it, and scikit-learn follows the
        dtype it is given.

    Raises:
        ProjectError: An input is made of a list column.
    """
    import pandas

    columns: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        expect_scalar_columns(spec)
        array = np.asarray(tensors[spec.name])
        flat = array.reshape(len(array), spec.row_size)
        dtype = object if spec.dtype == "string" else np.float32
        for index, column in enumerate(spec.columns):
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
    dense = result.toarray() if hasattr(result, "toarray") else np.asarray(result)
    try:
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


def expect_scalar_columns(spec: TensorSpec) -> None:
    """Refuse an input that has no table column of its own for every value.

    Raises:
        ProjectError: The input is made of a list column.
    """
    if len(spec.columns) != spec.row_size:
        raise ProjectError(
            f"input {spec.name!r} is made of {len(spec.columns)} columns for {spec.row_size} values; "
            "scikit-learn preprocessing needs one table column per value",
            hint="name one scalar column per value, or drop the preprocessing",
        )


def check_transformer(transformer: Any) -> None:
    """Refuse preprocessing steps that ONNX cannot repeat, or repeats wrongly without saying so.

    Cheap, and needs nothing fitted: call it before training.

    Args:
        transformer: A scikit-learn transformer, pipeline or column transformer.

    Raises:
        ProjectError: Names the step and what to use instead.
    """
    for path, step in _steps_of(transformer, "preprocessing"):
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


def fitted_steps(transformer: Any, *, signature: Signature) -> Steps | None:
    """Write a fitted transformer as data, where all of its steps are ones the kit can run.

    Args:
        transformer: Fitted on the frame of ``to_frame``.
        signature: Names the columns.

    Returns:
        The steps, or None when one of them has no counterpart in ``kit.steps``.

    Raises:
        ProjectError: A step is one that ``check_transformer`` refuses.
    """
    from sklearn.compose import ColumnTransformer

    check_transformer(transformer)
    places = {
        column: (spec.name, index, "string" if spec.dtype == "string" else "number")
        for spec in signature.inputs
        for index, column in enumerate(spec.columns)
    }
    if isinstance(transformer, ColumnTransformer):
        names = [str(name) for name in transformer.feature_names_in_]
        parts = [(step, _chosen(chosen, names)) for _, step, chosen in transformer.transformers_]
    else:
        parts = [(transformer, list(places))]
    blocks: list[Block] = []
    for step, chosen in parts:
        if not chosen or (isinstance(step, str) and step == "drop"):
            continue
        block = _fitted_block(step, [places[column] for column in chosen])
        if block is None:
            return None
        blocks.append(block)
    if not blocks:
        return None
    # One trip through JSON types now, so what is written is what was checked.
    unchecked = Steps(blocks=tuple(blocks), n_features=_n_features(blocks))
    return Steps.from_json(unchecked.to_json())


def _steps_of(step: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Walk a transformer's parts, fitted or not, with the name a user gave each."""
    yield path, step
    if hasattr(step, "transformers"):
        parts = [(name, part) for name, part, _ in step.transformers]
        parts.append(("remainder", step.remainder))
    else:
        parts = list(getattr(step, "steps", ())) + list(getattr(step, "transformer_list", ()))
    for name, part in parts:
        if part is not None and not isinstance(part, str):
            yield from _steps_of(part, f"{path}.{name}")


def _chosen(chosen: Any, names: list[str]) -> list[str]:
    if isinstance(chosen, str):
        return [chosen]
    if isinstance(chosen, slice):
        return names[chosen]
    listed = list(chosen)
    if listed and isinstance(listed[0], (bool, np.bool_)):
        return [name for name, keep in zip(names, listed, strict=True) if keep]
    return [item if isinstance(item, str) else names[int(item)] for item in listed]


def _fitted_block(step: Any, places: list[tuple[str, int, str]]) -> Block | None:
    kinds = {kind for _, _, kind in places}
    parts = [part for _, part in step.steps] if hasattr(step, "steps") else [step]
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    operations: list[dict[str, Any]] = []
    for part in parts:
        if _does_nothing(part):
            continue
        converter = _OPERATIONS.get(type(part).__name__)
        operation = converter(part, kind) if converter else None
        if operation is None or (operations and operations[-1]["op"] in ("one_hot", "ordinal", "bins")):
            return None
        operations.append(operation)
    if kind == "string" and (not operations or operations[-1]["op"] == "impute"):
        return None
    columns = tuple((name, index) for name, index, _ in places)
    return Block(kind=kind, columns=columns, operations=tuple(operations))


def _does_nothing(step: Any) -> bool:
    if step is None or isinstance(step, str):  # "passthrough" as a user writes it
        return True
    return type(step).__name__ == "FunctionTransformer" and step.func is None  # and as it is fitted


def _n_features(blocks: list[Block]) -> int:
    total = 0
    for block in blocks:
        last = block.operations[-1] if block.operations else {"op": ""}
        if last["op"] == "one_hot":
            total += sum(len(categories) for categories in last["categories"])
        elif last["op"] == "bins" and last["one_hot"]:
            total += sum(len(edges) + 1 for edges in last["edges"])
        else:
            total += len(block.columns)
    return total


def _imputer(step: Any, kind: str) -> dict[str, Any] | None:
    values = [_plain(value, kind) for value in step.statistics_]
    missing = step.missing_values
    is_nan = isinstance(missing, float) and np.isnan(missing)
    if any(value is None for value in values):  # a column without any value: scikit-learn drops it
        return None
    if kind == "string" and not isinstance(missing, str):
        return None
    return {"op": "impute", "missing": None if is_nan else _plain(missing, kind), "values": values}


def _standard(step: Any, kind: str) -> dict[str, Any] | None:
    # Unlike its relatives this one rounds what it learned to the data's dtype before using it.
    mean = None if step.mean_ is None or not step.with_mean else np.float32(step.mean_)
    scale = None if step.scale_ is None else np.float32(step.scale_)
    return _scaling(step.n_features_in_, mean, scale)


def _robust(step: Any, kind: str) -> dict[str, Any] | None:
    return _scaling(step.n_features_in_, step.center_, step.scale_)


def _scaling(n_columns: int, subtract: Any, divide: Any) -> dict[str, Any]:
    return {
        "op": "scale",
        "subtract": _floats(np.zeros(n_columns) if subtract is None else subtract),
        "divide": _floats(np.ones(n_columns) if divide is None else divide),
    }


def _min_max(step: Any, kind: str) -> dict[str, Any] | None:
    clip = [float(bound) for bound in step.feature_range] if step.clip else None
    return {"op": "affine", "multiply": _floats(step.scale_), "add": _floats(step.min_), "clip": clip}


def _one_hot(step: Any, kind: str) -> dict[str, Any] | None:
    if getattr(step, "infrequent_categories_", None) or getattr(step, "_infrequent_enabled", False):
        return None
    categories = [[_plain(value, kind) for value in known] for known in step.categories_]
    if any(value is None for known in categories for value in known):
        return None
    if step.drop_idx_ is not None:  # a dropped category is all zeros, like an unseen one
        for known, index in zip(categories, step.drop_idx_, strict=True):
            if index is not None:
                del known[int(index)]
    return {"op": "one_hot", "categories": categories}


def _ordinal(step: Any, kind: str) -> dict[str, Any] | None:
    if getattr(step, "_infrequent_enabled", False):
        return None
    categories = [[_plain(value, kind) for value in known] for known in step.categories_]
    if any(value is None for known in categories for value in known):
        return None
    return {"op": "ordinal", "categories": categories, "unknown": _plain(step.unknown_value, "number")}


def _bins(step: Any, kind: str) -> dict[str, Any] | None:
    edges = [_floats(column[1:-1]) for column in step.bin_edges_]
    return {"op": "bins", "edges": edges, "one_hot": step.encode != "ordinal"}


_OPERATIONS: dict[str, Callable[[Any, str], dict[str, Any] | None]] = {
    "SimpleImputer": _imputer,
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MinMaxScaler": _min_max,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "KBinsDiscretizer": _bins,
}


def _plain(value: Any, kind: str) -> float | str | None:
    """Turn a fitted value into a JSON one; None for what JSON or the kind cannot hold."""
    if kind == "string":
        return value if isinstance(value, str) else None
    if isinstance(value, str) or value is None or not np.isfinite(value):
        return None
    return float(value)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
