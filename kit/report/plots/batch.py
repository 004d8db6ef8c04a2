"""Plots of batch runs: pace over time, where time went, and answers beside those in the model's profile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from kit.report.plots.drawing import INK, LINE, MUTED, SERIES, legend, shorten, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BARS = 25
_MIN_NAMED = 0.07  # a narrower part of a bar has no room for its share


def throughput(
    paces: Sequence[float], *, bucket_s: float, resumed_at_s: Sequence[float], bare: float | None, name: str
) -> str:
    """Draw rows per second over the working time.

    Args:
        paces: Rows per second of each span.
        bucket_s: Length of a span.
        resumed_at_s: Where a later sitting began.
        bare: What the engine alone would do in all actors; None where it was not measured.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        total_s = bucket_s * len(paces)
        factor, unit = (60.0, "min") if total_s >= 300 else (1.0, "s")
        bounds = [place * bucket_s / factor for place in range(len(paces) + 1)]
        axes.stairs(paces, bounds, fill=True, color=SERIES[0], alpha=0.25, linewidth=0)
        axes.stairs(paces, bounds, color=SERIES[0], linewidth=1.6, label="this run")
        if bare:
            axes.axhline(bare, color=SERIES[1], linewidth=1.4, linestyle=(0, (4, 3)), label="engine alone")
        for moment_s in resumed_at_s:
            axes.axvline(moment_s / factor, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
            axes.annotate(
                "resumed",
                (moment_s / factor, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                size=9,
                color=MUTED,
            )
        axes.set_xlim(0, bounds[-1])
        axes.set_ylim(0, max(*paces, bare or 0.0, 1.0) * 1.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(f"working time ({unit})")
        _rows_axis(axes, "y", label="rows per second")
        if bare:
            legend(figure, axes, columns=2)

    return svg(draw, height_in=2.7, name=name, title="Rows per second over the working time")


def stages(shares: Sequence[tuple[str, float]], *, name: str) -> str:
    """Draw where the time of the shards went, as one bar.

    Args:
        shares: Stage and its share of the time of all stages.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = figure.add_subplot()
        start = 0.0
        for index, (stage, share) in enumerate(shares):
            colour = SERIES[index % len(SERIES)]
            axes.barh([0], [share], left=[start], height=0.62, color=colour, label=stage)
            if share >= _MIN_NAMED:
                axes.annotate(
                    f"{share:.0%}",
                    (start + share / 2, 0.42),
                    ha="center",
                    va="bottom",
                    size=9,
                    color=INK,
                    annotation_clip=False,
                )
            start += share
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.4, 0.75)
        axes.set_yticks([])
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xticks([])
        legend(figure, axes, columns=4)

    return svg(draw, height_in=1.15, name=name, title="Share of each stage in the time of the shards")


def label_counts(
    counts: Sequence[tuple[str, int]], *, shares: Sequence[float] | None = None, name: str
) -> str:
    """Draw how many rows were given each label, as horizontal bars.

    Args:
        counts: Label and rows, in the order to be shown; at most ``MAX_BARS``.
        shares: Share of each label in the answers the profile holds, in that order; None where it holds none.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    total = sum(count for _, count in counts) or 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        heights = [count for _, count in counts]
        expected = [share * total for share in shares or ()]
        axes.barh(range(len(counts)), heights, height=0.7, color=SERIES[0], label="this run")
        for place, count in enumerate(heights):
            axes.annotate(
                f"{count:,}  ({count / total:.1%})",
                (max(count, *expected[place : place + 1], 0), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                size=9,
                color=MUTED,
            )
        if expected:
            axes.plot(
                expected,
                range(len(expected)),
                linestyle="none",
                marker="|",
                markersize=14,
                markeredgewidth=2.6,
                color=SERIES[1],
                label="expected from held-out rows",
            )
        axes.set_yticks(range(len(counts)), [shorten(label) for label, _ in counts])
        axes.invert_yaxis()
        axes.set_xlim(0, (max(*heights, *expected, 1)) * 1.35)
        axes.grid(visible=False, axis="y")
        _rows_axis(axes, "x", label="rows")
        axes.set_ylabel("answered class")
        if expected:
            legend(figure, axes, columns=2)

    height = 1.0 + 0.26 * max(len(counts), 2) + (0.3 if shares else 0.0)
    return svg(draw, height_in=height, name=name, title="Rows by answered class")


def distribution(
    observed: Sequence[int], reference: Sequence[int], *, edges: Sequence[float], x_label: str, name: str
) -> str:
    """Draw how answers are spread, beside those the profile holds, each as shares of its own rows.

    Args:
        observed: Rows per bin, shape (n_bins + 2,): with one bin below and one above the edges.
        reference: The same of the held-out rows.
        edges: Bounds of the bins, shape (n_bins + 1,).
        x_label: What is spread.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    first, last = (0 if observed[0] else 1), (len(observed) if observed[-1] else len(observed) - 1)
    widths = [right - left for left, right in pairwise(edges)]
    bounds = [edges[0] - widths[0], *edges, edges[-1] + widths[-1]][first : last + 1]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        axes = figure.add_subplot()
        mine = [count / (sum(observed) or 1) for count in observed][first:last]
        theirs = [count / (sum(reference) or 1) for count in reference][first:last]
        axes.stairs(mine, bounds, fill=True, color=SERIES[0], alpha=0.55, linewidth=0, label="this run")
        axes.stairs(theirs, bounds, color=SERIES[1], linewidth=1.8, label="held-out rows")
        for outside, place, edge in ((observed[0], 0, edges[0]), (observed[-1], -1, edges[-1])):
            if outside:
                axes.axvline(edge, color=LINE, linewidth=1.0)
                axes.annotate(
                    "outside",
                    ((bounds[place] + edge) / 2, mine[place]),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    size=9,
                    color=MUTED,
                )
        axes.set_xlim(bounds[0], bounds[-1])
        axes.set_ylim(0, max(*mine, *theirs, 0.01) * 1.12)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of rows")
        legend(figure, axes, columns=2)

    return svg(draw, height_in=2.7, name=name, title=f"{x_label}: this run beside held-out rows")


def _rows_axis(axes: Axes, which: str, *, label: str) -> None:
    """Write counts of rows with thousands separators, or in thousands and millions where they are large."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def written(value: float, _: int | None = None) -> str:
        if value >= 1_000_000:
            return f"{value / 1_000_000:,g} M"
        return f"{value / 1000:,g} k" if value >= 10_000 else f"{value:,.0f}"

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(written))
    axis.set_label_text(label)
