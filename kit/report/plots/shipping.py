"""Plots of exports and batch runs: what a target costs, and how answers are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.report.plots.drawing import MARKERS, MUTED, SERIES, legend, quality_range, scale, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 25


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


def label_counts(counts: Sequence[tuple[str, int]], *, name: str) -> str:
    """Draw how many rows were given each label, as horizontal bars.

    Args:
        counts: Label and rows, in the order to be shown; at most ``MAX_BARS``.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    total = sum(count for _, count in counts) or 1

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        heights = [count for _, count in counts]
        axes.barh(range(len(counts)), heights, height=0.7, color=SERIES[0])
        for place, count in enumerate(heights):
            axes.annotate(
                f"{count:,}  ({count / total:.1%})",
                (count, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=9,
                color=MUTED,
            )
        axes.set_yticks(range(len(counts)), [shorten(label) for label, _ in counts])
        axes.invert_yaxis()
        axes.set_xlim(0, (max(heights) or 1) * 1.35)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("rows")
        axes.set_ylabel("answered class")

    return svg(draw, height_in=1.0 + 0.26 * max(len(counts), 2), name=name, title="Rows by answered class")
