"""Outliers clipped, flagged and isolated in a graph, as ``jobs.preparation.outliers`` does it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.exporting.converters.nodes import Graph


def write_limits(graph: Graph) -> None:
    """Write ``jobs.preparation.outliers.Limits``: values are moved onto the bounds."""
    step = graph.step
    raised = graph.add("Max", graph.input, step.low_[None, :], version=13)
    graph.add("Min", raised, step.high_[None, :], output=graph.output, version=13)


def write_flags(graph: Graph) -> None:
    """Write ``jobs.preparation.outliers.Flags``: 1.0 where a value lies outside its bounds."""
    step = graph.step
    below = graph.add("Less", graph.input, step.low_[None, :], version=13)
    above = graph.add("Greater", graph.input, step.high_[None, :], version=13)
    graph.finish(graph.add("Or", below, above, version=7))


def write_isolated(graph: Graph) -> None:
    """Write ``jobs.preparation.outliers.Isolated``: the forest's path lengths, summed, against a bound."""
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
