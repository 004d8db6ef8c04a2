"""Statistics of windows in a graph, as ``kit.arithmetic.measure`` computes them."""

from __future__ import annotations

import numpy as np

from jobs.exporting.converters.nodes import DOUBLE, Graph


def write_window_statistics(graph: Graph) -> None:
    """Write ``jobs.preparation.columns.WindowStatistics``, list by list."""
    wide = graph.double()
    ends = np.cumsum(graph.step.lengths)
    parts = []
    for end, length in zip(ends, graph.step.lengths, strict=True):
        columns = graph.add("Gather", wide, np.arange(end - length, end), axis=1, version=13)
        parts.append(_measured(graph, columns, int(length)))
    graph.finish(graph.add("Concat", *parts, axis=1, version=13))


def _measured(graph: Graph, values: str, length: int) -> str:
    """Write ``kit.arithmetic.measure`` for one list."""
    add, zero, one = graph.add, np.array(0.0), np.array(1.0)
    present = add("Not", add("IsNaN", values, version=13), version=1)
    mask = add("Cast", present, to=DOUBLE)
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
