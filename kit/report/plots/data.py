"""Plots of data: how classes are spread over the parts, and one small histogram per column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.report.plots.drawing import MUTED, SERIES, legend, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Most classes that are drawn; the page says how many are left.
MAX_CLASSES = 25
_SPARK_WIDTH, _SPARK_HEIGHT = 132, 30


def class_balance(counts: Sequence[tuple[str, int, int, int]], *, n_rows: int, name: str) -> str:
    """Draw the rows of each class, divided into the parts they came into.

    Args:
        counts: Class, and its rows to train on, to validate with and held out; at most ``MAX_CLASSES``.
        n_rows: Rows of all classes together.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    parts = ("train", "validation", "held out")

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        places = range(len(counts))
        starts = [0] * len(counts)
        by_part = (
            [train for _, train, _, _ in counts],
            [n for _, _, n, _ in counts],
            [n for *_, n in counts],
        )
        for index, (part, rows) in enumerate(zip(parts, by_part, strict=True)):
            axes.barh(places, rows, left=starts, height=0.68, color=SERIES[index], label=part)
            starts = [start + n for start, n in zip(starts, rows, strict=True)]
        for place, total in enumerate(starts):
            axes.annotate(
                f"{total:,}  ({total / (n_rows or 1):.1%})",
                (total, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=9,
                color=MUTED,
            )
        axes.set_yticks(places, [shorten(line[0]) for line in counts])
        axes.invert_yaxis()
        axes.set_xlim(0, (max(starts) or 1) * 1.35)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("rows")
        legend(figure, axes, columns=3)

    height = 1.3 + 0.26 * max(len(counts), 2)
    return svg(draw, height_in=height, name=name, title="Rows by class and part")


def histogram(
    train: Sequence[int], test: Sequence[int], *, label: str = "training rows and held-out rows"
) -> str:
    """Draw two small histograms over the same bins: training rows filled, held-out rows as a line.

    Each is scaled to its own number of rows, so that equal distributions lie on each other. It is
    written without matplotlib, because a table has hundreds of columns.

    Args:
        train: Rows per bin.
        test: Likewise, on the same bins.
        label: What the two are, for a reader who does not see them.

    Returns:
        One ``<svg>`` element; the empty text where there is nothing to draw.
    """
    shares = [[count / (sum(counts) or 1) for count in counts] for counts in (train, test)]
    highest = max((share for each in shares for share in each), default=0.0)
    if not highest or len(train) != len(test):
        return ""
    step, room = _SPARK_WIDTH / len(train), _SPARK_HEIGHT - 2

    def height(share: float) -> float:
        # A bin that holds anything shows, however little it is beside the fullest one.
        return max(room * share / highest, 1.0) if share else 0.0

    gap = 1.0 if step > 3 else 0.0
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{_SPARK_HEIGHT - height(share):.1f}" '
        f'width="{step - gap:.1f}" height="{height(share):.1f}"/>'
        for index, share in enumerate(shares[0])
        if share
    )
    line = "".join(
        f"{'L' if index else 'M'}{index * step:.1f} {_SPARK_HEIGHT - height(share):.1f}"
        f"H{(index + 1) * step - gap:.1f}"
        for index, share in enumerate(shares[1])
    )
    drawn_line = f'<path d="{line}"/>' if any(test) else ""
    return (
        f'<svg class="spark" role="img" aria-label="{len(train)} bins, {label}" '
        f'viewBox="0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}">'
        f"<g>{bars}</g>{drawn_line}</svg>"
    )
