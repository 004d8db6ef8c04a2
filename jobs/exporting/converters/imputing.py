"""Missing values filled in a graph, by chains and by neighbours, as ``kit.arithmetic`` does it."""

from __future__ import annotations

import numpy as np

from jobs.exporting.converters.nodes import DOUBLE, Graph


def write_chain(graph: Graph) -> None:
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


def write_neighbors(graph: Graph) -> None:
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
        square, counted = add("Mul", gap, gap, version=14), add("Cast", both, to=DOUBLE)
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
        counted = add("Cast", add("Less", distances, np.array(np.inf), version=13), to=DOUBLE)
        values = add("Gather", np.where(known, donors[:, column], 0.0), indices, axis=0, version=13)
        summed = graph.sum(add("Mul", values, counted, version=14))
        count = graph.sum(counted)
        mean = add("Div", summed, add("Max", count, np.array(1.0), version=13), version=14)
        filling = add(
            "Where", add("Greater", count, zero, version=13), mean, np.array(step.means_[column]), version=16
        )
        parts.append(add("Where", present[column], columns[column], filling, version=16))
    graph.finish(add("Concat", *parts, axis=1, version=13))
