"""Horizontal bars for named shares and importances, with their spread where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.report.plots.drawing import INK, MUTED, SERIES, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Most bars that are drawn; whoever has more draws the longest and says how many are left.
MAX_BARS = 20


def importance(
    values: Sequence[tuple[str, float, float | None]], *, x_label: str, title: str, name: str
) -> str:
    """Draw how much each of some names matters.

    Args:
        values: Name, value and standard deviation (None: not known), in the order to be shown; at
            most ``MAX_BARS``.
        x_label: What the value is.
        title: What a reader who does not see it is told.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        axes.barh(range(len(values)), [value for _, value, _ in values], height=0.66, color=SERIES[0])
        for place, (_, value, spread) in enumerate(values):
            if spread:
                axes.plot([value - spread, value + spread], [place, place], color=INK, linewidth=1.2)
                axes.plot([value - spread, value + spread], [place, place], "|", color=INK, markersize=7)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(range(len(values)), [shorten(label, length=24) for label, _, _ in values], size=9)
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel(shorten(x_label, length=60))

    return svg(draw, height_in=0.9 + 0.24 * max(len(values), 2), name=name, title=title)
