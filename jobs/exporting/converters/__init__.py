"""How the kit's own preprocessing steps are written into an ONNX graph, for skl2onnx.

Each converter repeats what the step's ``transform`` computes, operation by operation: the same order, the
same width of numbers. ``jobs.exporting.parity`` proves it on every export. It knows nothing of fitting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.exporting.converters.imputing import write_chain, write_neighbors
from jobs.exporting.converters.nodes import Graph
from jobs.exporting.converters.numbers import write_ranks, write_scaled, write_selection
from jobs.exporting.converters.outliers import write_flags, write_isolated, write_limits
from jobs.exporting.converters.strings import RULES_OPSET, write_matching, write_target_means, write_terms
from jobs.exporting.converters.windows import write_window_statistics

__all__ = ["RULES_OPSET", "register_converters"]


def register_converters() -> None:
    """Tell skl2onnx of the kit's steps; calling it again changes nothing."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.operator_converters.imputer_op import convert_sklearn_imputer
    from skl2onnx.operator_converters.k_bins_discretiser import convert_sklearn_k_bins_discretiser
    from skl2onnx.shape_calculators.imputer import calculate_sklearn_imputer_output_shapes
    from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

    from jobs.preparation import columns, imputing, outliers, selection

    def register(
        kind: type,
        width: Callable[[Any], int],
        write: Callable[[Graph], None] | None,
        tensor: Any = FloatTensorType,
    ) -> None:
        def shape(operator: Any) -> None:
            operator.outputs[0].type = tensor([None, width(operator.raw_operator)])

        def convert(scope: Any, operator: Any, container: Any) -> None:
            if write is None:
                convert_sklearn_k_bins_discretiser(scope, operator, container)
            else:
                write(Graph(scope, operator, container))

        update_registered_converter(kind, f"Kit{kind.__name__}", shape, convert)

    register(columns.Matching, lambda step: step.n_features_in_, write_matching, StringTensorType)
    register(columns.Terms, lambda step: len(step.vectorizer_.vocabulary_), write_terms)
    register(
        columns.WindowStatistics,
        lambda step: len(step.lengths) * len(step.statistics),
        write_window_statistics,
    )
    register(columns.Bins, _n_bins, None)
    register(columns.Ranks, lambda step: step.n_features_in_, write_ranks)
    register(columns.TargetMeans, lambda step: len(step.encodings_), write_target_means)
    update_registered_converter(
        imputing.ColumnImputer,
        "KitColumnImputer",
        calculate_sklearn_imputer_output_shapes,
        convert_sklearn_imputer,
    )
    register(imputing.ChainedImputer, lambda step: step.n_features_in_, write_chain)
    register(imputing.NeighborImputer, lambda step: step.n_features_in_, write_neighbors)
    register(outliers.Limits, lambda step: step.n_features_in_, write_limits)
    register(outliers.Flags, lambda step: step.n_features_in_, write_flags)
    register(outliers.Isolated, lambda step: 1, write_isolated)
    register(selection.Selection, lambda step: len(step.kept_), write_selection)
    for kind in (StandardScaler, RobustScaler, MinMaxScaler):
        register(kind, lambda step: step.n_features_in_, write_scaled)


def _n_bins(step: Any) -> int:
    return len(step.n_bins_) if step.encode == "ordinal" else int(sum(step.n_bins_))
