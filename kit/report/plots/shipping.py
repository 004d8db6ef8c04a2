"""Plots of exports: what a target costs and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.report.plots.drawing import MARKERS, MUTED, SERIES, legend, quality_range, scale, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trade_off(
    points: Sequence[tuple[str, float, float]],
    *,
    x_label: str,
    y_label: str,
    ceiling: float | None,
    name: str,
) -> str:
    """Draw how good each target is against what it costs.

    Args:
        points: Name, cost and quality; the first is the reference the others are compared with.
        x_label: The cost, with its unit.
        y_label: The quality.
        ceiling: The best there is, past which the axis does not go; None when there is no best.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    y_label = shorten(y_label)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        for index, (label, cost, quality) in enumerate(points):
            axes.plot(
                [cost],
                [quality],
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                markersize=9,
                color=SERIES[index % len(SERIES)],
                label=shorten(label),
                clip_on=False,
                alpha=0.9,
            )
        axes.axhline(points[0][2], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_ylim(*quality_range([quality for _, _, quality in points], ceiling=ceiling))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        costs = [cost for _, cost, _ in points]
        if not scale(axes, "x", costs):
            axes.set_xlim(0, max(costs) * 1.12 or 1.0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        legend(figure, axes, columns=3)

    return svg(draw, height_in=3.1, name=name, title=f"{y_label} against {x_label}")
