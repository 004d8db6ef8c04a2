"""How the kit's own preprocessing steps are written into an ONNX graph, for skl2onnx.

Each converter repeats what the step's ``transform`` computes, operation by operation: the same order, the
same width of numbers. ``jobs.exporting.parity`` proves it on every export. It knows nothing of fitting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jobs.preparation.patterns import portable_pattern
from kit.arithmetic import rank_tables

#: The operator set that has RegexFullMatch; graphs without a rule stay at an older one.
RULES_OPSET = 20

_DOUBLE, _FLOAT, _INT64, _STRING = 11, 1, 7, 8
_TYPES = {"f4": _FLOAT, "f8": _DOUBLE, "i8": _INT64, "b1": 9}


class _Graph:
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
            self.container.add_initializer(name, _STRING, list(array.shape), content)
        else:
            kind = _TYPES[array.dtype.str[1:]]
            self.container.add_initializer(name, kind, list(array.shape), array.reshape(-1).tolist())
        return name

    def double(self) -> str:
        return self.add("Cast", self.input, to=_DOUBLE)

    def finish(self, name: str) -> None:
        """Round to float32 once, as the output."""
        self.add("Cast", name, output=self.output, to=_FLOAT)

    def sum(self, name: str) -> str:
        """Sum each row, shape (n_rows, 1)."""
        return self.add("ReduceSum", name, np.array([1]), keepdims=1)


def register_converters() -> None:
    """Tell skl2onnx of the kit's steps; calling it again changes nothing."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.operator_converters.k_bins_discretiser import convert_sklearn_k_bins_discretiser
    from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

    from jobs.preparation import columns, imputing, outliers, selection

    def register(
        kind: type,
        width: Callable[[Any], int],
        write: Callable[[_Graph], None] | None,
        tensor: Any = FloatTensorType,
    ) -> None:
        def shape(operator: Any) -> None:
            operator.outputs[0].type = tensor([None, width(operator.raw_operator)])

        def convert(scope: Any, operator: Any, container: Any) -> None:
            if write is None:
                convert_sklearn_k_bins_discretiser(scope, operator, container)
            else:
                write(_Graph(scope, operator, container))

        update_registered_converter(kind, f"Kit{kind.__name__}", shape, convert)

    register(columns.Matching, lambda step: step.n_features_in_, _matching, StringTensorType)
    register(columns.Terms, lambda step: len(step.vectorizer_.vocabulary_), _terms)
    register(
        columns.WindowStatistics, lambda step: len(step.lengths) * len(step.statistics), _window_statistics
    )
    register(columns.Bins, _n_bins, None)
    register(columns.Ranks, lambda step: step.n_features_in_, _ranks)
    register(columns.TargetMeans, lambda step: len(step.encodings_), _target_means)
    register(imputing.ChainedImputer, lambda step: step.n_features_in_, _chain)
    register(imputing.NeighborImputer, lambda step: step.n_features_in_, _neighbors)
    register(outliers.Limits, lambda step: step.n_features_in_, _limits)
    register(outliers.Flags, lambda step: step.n_features_in_, _flags)
    register(outliers.Isolated, lambda step: 1, _isolated)
    register(selection.Selection, lambda step: len(step.kept_), _selection)
    for kind in (StandardScaler, RobustScaler, MinMaxScaler):
        register(kind, lambda step: step.n_features_in_, _scaled)


def _n_bins(step: Any) -> int:
    return len(step.n_bins_) if step.encode == "ordinal" else int(sum(step.n_bins_))


def _scaled(graph: _Graph) -> None:
    """Scale as scikit-learn does, rounding to float32 after each of its two steps, to the last digit.

    skl2onnx's own way multiplies by an inverse, which differs by a digit; trees behind it notice.
    """
    step, name = graph.step, graph.input
    if hasattr(step, "data_min_"):
        parts = [("Mul", step.scale_), ("Add", step.min_)]
    else:
        centre = step.mean_ if hasattr(step, "mean_") else step.center_
        shifted = getattr(step, "with_mean", getattr(step, "with_centering", True))
        parts = [("Sub", centre if shifted else None), ("Div", step.scale_)]
    rounded = hasattr(step, "mean_")  # this one rounds its figures to the type of the rows first
    for kind, value in parts:
        if value is not None and rounded:
            name = graph.add(kind, name, np.asarray(value, dtype=np.float32).reshape(1, -1))
        elif value is not None:
            wide = graph.add("Cast", name, to=_DOUBLE)
            wide = graph.add(kind, wide, np.asarray(value, dtype=np.float64).reshape(1, -1))
            name = graph.add("Cast", wide, to=_FLOAT)
    if getattr(step, "clip", False):
        low, high = (np.float32(bound) for bound in step.feature_range)
        name = graph.add("Clip", name, np.float32(low), np.float32(high))
    graph.add("Identity", name, output=graph.output)


def _matching(graph: _Graph) -> None:
    current = graph.input
    n_columns = len(graph.step.patterns)
    by_pattern: dict[str, list[int]] = {}
    for column, patterns in enumerate(graph.step.patterns):
        for pattern in patterns:
            by_pattern.setdefault(pattern, []).append(column)
    for pattern, asked in by_pattern.items():
        matches = graph.add("RegexFullMatch", current, version=RULES_OPSET, pattern=portable_pattern(pattern))
        free = ~np.isin(np.arange(n_columns), asked)
        fine = graph.add("Or", matches, free[None, :], version=7)
        current = graph.add("Where", fine, current, np.array([""], dtype=object), version=16)
    graph.add("Identity", current, output=graph.output, version=16)


def _terms(graph: _Graph) -> None:
    vectorizer = graph.step.vectorizer_
    terms = vectorizer.get_feature_names_out()
    order = sorted(range(len(terms)), key=lambda index: (terms[index].count(" "), index))
    pool: list[str] = []
    starts: dict[int, int] = {}
    for index in order:
        words = terms[index].split(" ")
        starts.setdefault(len(words), len(pool))
        pool.extend(words)
    longest = max(starts)
    counts = []
    for length in range(1, longest + 1):  # a length without a term starts where the next one does
        counts.append(min((start for words, start in starts.items() if words >= length)))
    flat = graph.add("Reshape", graph.input, np.array([-1]), version=14)
    # The locale "C" changes ASCII alone and is installed everywhere.
    lower = graph.add(
        "StringNormalizer", flat, version=10, case_change_action="LOWER", is_case_sensitive=0, locale="C"
    )
    words = graph.add(
        "Tokenizer",
        lower,
        domain="com.microsoft",
        pad_value="#",
        mark=0,
        mincharnum=1,
        tokenexp=vectorizer.token_pattern,
    )
    counted = graph.add(
        "TfIdfVectorizer",
        words,
        version=9,
        mode="TF",
        min_gram_length=min(starts),
        max_gram_length=longest,
        max_skip_count=0,
        ngram_counts=counts,
        ngram_indexes=order,
        pool_strings=pool,
    )
    weighed = graph.add("Mul", counted, vectorizer.idf_.astype(np.float32)[None, :], version=14)
    norm = graph.add("ReduceL2", weighed, np.array([1]), keepdims=1)
    norm = graph.add("Max", norm, np.array([1e-30], np.float32), version=13)  # of a text without a term
    graph.add("Div", weighed, norm, output=graph.output, version=14)


def _window_statistics(graph: _Graph) -> None:
    wide = graph.double()
    ends = np.cumsum(graph.step.lengths)
    parts = []
    for end, length in zip(ends, graph.step.lengths, strict=True):
        columns = graph.add("Gather", wide, np.arange(end - length, end), axis=1, version=13)
        parts.append(_measured(graph, columns, int(length)))
    graph.finish(graph.add("Concat", *parts, axis=1, version=13))


def _measured(graph: _Graph, values: str, length: int) -> str:
    """Write ``kit.arithmetic.measure`` for one list."""
    add, zero, one = graph.add, np.array(0.0), np.array(1.0)
    present = add("Not", add("IsNaN", values, version=13), version=1)
    mask = add("Cast", present, to=_DOUBLE)
    count = graph.sum(mask)
    some = add("Max", count, one, version=13)

    def at(last: int) -> str:
        place = add("ArgMax", mask, axis=1, keepdims=1, select_last_index=last, version=13)
        return add("GatherElements", values, place, axis=1, version=13)

    first = at(0)
    moved = add("Where", present, add("Sub", values, first, version=14), zero, version=16)
    mean = add("Div", graph.sum(moved), some, version=14)
    parts = []
    for name in graph.step.statistics:
        if name == "first":
            measured = first
        elif name == "last":
            measured = at(1)
        elif name == "mean":
            measured = add("Add", first, mean, version=14)
        elif name == "std":
            centred = add("Where", present, add("Sub", moved, mean, version=14), zero, version=16)
            squares = graph.sum(add("Mul", centred, centred, version=14))
            measured = add("Sqrt", add("Div", squares, some, version=14), version=13)
        elif name in ("minimum", "maximum"):
            far = np.array(np.inf if name == "minimum" else -np.inf)
            filled = add("Where", present, values, far, version=16)
            kind = "ReduceMin" if name == "minimum" else "ReduceMax"
            measured = add(kind, filled, np.array([1]), keepdims=1)
        else:
            places = np.arange(length, dtype=np.float64)[None, :]
            middle = add("Div", graph.sum(add("Mul", mask, places, version=14)), some, version=14)
            away = add("Where", present, add("Sub", places, middle, version=14), zero, version=16)
            spread = graph.sum(add("Mul", away, away, version=14))
            rise = graph.sum(add("Mul", away, moved, version=14))
            spreads = add("Greater", spread, zero, version=13)
            divided = add("Div", rise, add("Where", spreads, spread, one, version=16), version=14)
            measured = add("Where", spreads, divided, zero, version=16)
        parts.append(measured)
    joined = add("Concat", *parts, axis=1, version=13)
    return add("Where", add("Greater", count, zero, version=13), joined, np.array(np.nan), version=16)


def _ranks(graph: _Graph) -> None:
    """Write ``kit.arithmetic.rank``: a binary search among each column's knots, then a line."""
    step, add = graph.step, graph.add
    size = 1 << max(len(knots) for knots in step.knots_).bit_length()  # above the number of knots
    tables = []
    for knots, before, after in zip(step.knots_, step.before_, step.after_, strict=True):
        columns = (knots, after, *rank_tables(knots, before, after))
        padding = (np.inf, 0.0, 1.0, 0.0, 0.0)
        tables.append(
            [
                np.concatenate([column, np.full(size - len(knots), pad)])
                for column, pad in zip(columns, padding, strict=True)
            ]
        )
    known, last, gap, rise, middle = (
        graph.constant(np.concatenate([table[index] for table in tables])) for index in range(5)
    )
    low = np.array([[knots[0] for knots in step.knots_]])
    high = np.array([[knots[-1] for knots in step.knots_]])
    wide = add("Min", add("Max", graph.double(), low, version=13), high, version=13)
    offsets = (np.arange(len(step.knots_)) * size)[None, :]
    # how many knots are at most the value, and one less: its place, from the column's offset
    place = add(
        "Add", add("Mul", add("Cast", wide, to=_INT64), np.array(0), version=14), offsets - 1, version=14
    )
    stride = size // 2
    while stride:
        further = add("Add", place, np.array(stride), version=14)
        reached = add("LessOrEqual", add("Gather", known, further, axis=0, version=13), wide, version=16)
        place = add("Where", reached, further, place, version=16)
        stride //= 2

    def at(table: str) -> str:
        return add("Gather", table, place, axis=0, version=13)

    share = add("Div", add("Sub", wide, at(known), version=14), at(gap), version=14)
    between = add("Add", at(last), add("Mul", at(rise), share, version=14), version=14)
    equal = add("Equal", wide, at(known), version=13)
    graph.finish(add("Where", equal, at(middle), between, version=16))


def _target_means(graph: _Graph) -> None:
    step = graph.step
    n_classes = len(step.encodings_) // len(step.categories_)
    means = np.atleast_1d(step.target_mean_)
    parts = []
    for index, encodings in enumerate(step.encodings_):
        column = graph.add("Gather", graph.input, np.array([index // n_classes]), axis=1, version=13)
        parts.append(
            graph.add(
                "LabelEncoder",
                column,
                domain="ai.onnx.ml",
                version=2,
                keys_strings=[str(each) for each in step.categories_[index // n_classes]],
                values_floats=[float(each) for each in encodings],
                default_float=float(means[index % n_classes]),
            )
        )
    graph.add("Concat", *parts, output=graph.output, axis=1, version=13)


def _chain(graph: _Graph) -> None:
    """Write ``kit.arithmetic.fill_by_chain``."""
    step, add = graph.step, graph.add
    wide = graph.double()
    missing = add("IsNaN", wide, version=13)
    filled = add("Where", missing, step.start_[None, :], wide, version=16)
    places = np.eye(step.n_features_in_, dtype=bool)
    asked = {}
    for target, weights, intercept in zip(step.targets_, step.weights_, step.intercepts_, strict=True):
        if target not in asked:
            asked[target] = add("And", missing, places[target][None, :], version=7)
        weighed = graph.sum(add("Mul", filled, weights[None, :], version=14))
        predicted = add("Add", weighed, np.array([[intercept]]), version=14)
        low, high = (np.array([[bound]]) for bound in step.bounds_[:, target])
        bounded = add("Min", add("Max", predicted, low, version=13), high, version=13)
        filled = add("Where", asked[target], bounded, filled, version=16)
    graph.finish(filled)


def _neighbors(graph: _Graph) -> None:
    """Write ``kit.arithmetic.fill_by_neighbors``: distances column by column, in order."""
    step, add, zero = graph.step, graph.add, np.array(0.0)
    donors, n_columns = step.donors_, step.n_features_in_
    wide = graph.double()
    columns, present = [], []
    total = shared = ""
    for column in range(n_columns):
        own = add("Gather", wide, np.array([column]), axis=1, version=13)
        has = add("Not", add("IsNaN", own, version=13), version=1)
        columns.append(own)
        present.append(has)
        known = ~np.isnan(donors[:, column])
        both = add("And", has, known[None, :], version=7)
        theirs = np.where(known, donors[:, column], 0.0)[None, :]
        gap = add("Where", both, add("Sub", own, theirs, version=14), zero, version=16)
        square, counted = add("Mul", gap, gap, version=14), add("Cast", both, to=_DOUBLE)
        total = add("Add", total, square, version=14) if total else square
        shared = add("Add", shared, counted, version=14) if shared else counted
    scaled = add("Mul", total, np.array(float(n_columns)), version=14)
    scaled = add("Div", scaled, add("Max", shared, np.array(1.0), version=13), version=14)
    near = add("Where", add("Greater", shared, zero, version=13), scaled, np.array(np.inf), version=16)
    parts = []
    for column in range(n_columns):
        known = ~np.isnan(donors[:, column])
        usable = add("Where", known[None, :], near, np.array(np.inf), version=16)
        distances = graph.scope.get_unique_variable_name("distances")
        indices = graph.scope.get_unique_variable_name("indices")
        graph.container.add_node(
            "TopK",
            [usable, graph.constant(np.array([min(step.neighbors, int(known.sum()))]))],
            [distances, indices],
            name=graph.scope.get_unique_operator_name("TopK"),
            op_version=11,
            axis=1,
            largest=0,
            sorted=1,
        )
        counted = add("Cast", add("Less", distances, np.array(np.inf), version=13), to=_DOUBLE)
        values = add("Gather", np.where(known, donors[:, column], 0.0), indices, axis=0, version=13)
        summed = graph.sum(add("Mul", values, counted, version=14))
        count = graph.sum(counted)
        mean = add("Div", summed, add("Max", count, np.array(1.0), version=13), version=14)
        filling = add(
            "Where", add("Greater", count, zero, version=13), mean, np.array(step.means_[column]), version=16
        )
        parts.append(add("Where", present[column], columns[column], filling, version=16))
    graph.finish(add("Concat", *parts, axis=1, version=13))


def _limits(graph: _Graph) -> None:
    step = graph.step
    raised = graph.add("Max", graph.input, step.low_[None, :], version=13)
    graph.add("Min", raised, step.high_[None, :], output=graph.output, version=13)


def _flags(graph: _Graph) -> None:
    step = graph.step
    below = graph.add("Less", graph.input, step.low_[None, :], version=13)
    above = graph.add("Greater", graph.input, step.high_[None, :], version=13)
    graph.finish(graph.add("Or", below, above, version=7))


def _isolated(graph: _Graph) -> None:
    step = graph.step
    nodes: dict[str, list[Any]] = {
        key: []
        for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    targets: dict[str, list[Any]] = {"treeids": [], "nodeids": [], "weights": []}
    for number, (estimator, lengths) in enumerate(zip(step.forest_.estimators_, step.leaves_, strict=True)):
        tree = estimator.tree_
        leaf = tree.children_left < 0
        size = tree.node_count
        nodes["treeids"] += [number] * size
        nodes["nodeids"] += range(size)
        nodes["featureids"] += np.where(leaf, 0, tree.feature).tolist()
        nodes["values"] += _rounded_down(np.where(leaf, 0.0, tree.threshold)).tolist()
        nodes["modes"] += np.where(leaf, "LEAF", "BRANCH_LEQ").tolist()
        nodes["truenodeids"] += np.where(leaf, 0, tree.children_left).tolist()
        nodes["falsenodeids"] += np.where(leaf, 0, tree.children_right).tolist()
        ends = np.flatnonzero(leaf)
        targets["treeids"] += [number] * len(ends)
        targets["nodeids"] += ends.tolist()
        targets["weights"] += lengths[ends].tolist()
    attributes: dict[str, Any] = {f"nodes_{key}": value for key, value in nodes.items()}
    attributes.update({f"target_{key}": value for key, value in targets.items()})
    summed = graph.add(
        "TreeEnsembleRegressor",
        graph.input,
        domain="ai.onnx.ml",
        n_targets=1,
        target_ids=[0] * len(targets["weights"]),
        **attributes,
    )
    graph.finish(graph.add("Less", summed, np.array([[step.bound_]], np.float32), version=13))


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """Round to float32 so that a float32 value lies on the same side as before."""
    narrow = thresholds.astype(np.float32)
    return np.where(narrow > thresholds, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def _selection(graph: _Graph) -> None:
    kept = graph.add("Gather", graph.input, graph.step.kept_, axis=1, version=13)
    graph.finish(kept)
