"""Numbers in a graph: scaled, ranked, selected; as scikit-learn and ``kit.arithmetic`` compute them."""

from __future__ import annotations

import numpy as np

from jobs.exporting.converters.nodes import DOUBLE, FLOAT, INT64, Graph
from kit.arithmetic import rank_tables


def write_scaled(graph: Graph) -> None:
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
            wide = graph.add("Cast", name, to=DOUBLE)
            wide = graph.add(kind, wide, np.asarray(value, dtype=np.float64).reshape(1, -1))
            name = graph.add("Cast", wide, to=FLOAT)
    if getattr(step, "clip", False):
        low, high = (np.float32(bound) for bound in step.feature_range)
        name = graph.add("Clip", name, np.float32(low), np.float32(high))
    graph.add("Identity", name, output=graph.output)


def write_ranks(graph: Graph) -> None:
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
        "Add", add("Mul", add("Cast", wide, to=INT64), np.array(0), version=14), offsets - 1, version=14
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


def write_selection(graph: Graph) -> None:
    """Keep the selected features, in their order."""
    kept = graph.add("Gather", graph.input, graph.step.kept_, axis=1, version=13)
    graph.finish(kept)
