"""Plots of exports: how good a target is for its cost, how far its outputs are off, which layers did it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kit.report.plots.drawing import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    WIDTH_IN,
    legend,
    quality_range,
    scale,
    shorten,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Most layers that are drawn; whoever has more draws the worst and says how many are left.
MAX_LAYERS = 20
_NAME_CHARACTERS = 40
_COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """A target as it is drawn.

    Attributes:
        label: What the legend calls it.
        engine: Targets of one engine share a colour and differ in their marker.
        cost: What it costs.
        quality: How good it is.
        written: Whether its bundle was written; a hollow marker says it was not.
    """

    label: str
    engine: str
    cost: float
    quality: float
    written: bool = True


def trade_off(
    reference: Point,
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    ceiling: float | None,
    name: str,
) -> str:
    """Draw how good each target is against what it costs.

    Args:
        reference: What they are compared with.
        points: The targets.
        x_label: The cost, with its unit.
        y_label: The quality.
        ceiling: The best there is, past which the axis does not go; None when there is no best.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    y_label = shorten(y_label)
    everything = [reference, *points]
    looks = [(INK, MARKERS[0]), *_looks(points)]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        for point, (colour, marker) in zip(everything, looks, strict=True):
            axes.plot(
                [point.cost],
                [point.quality],
                linestyle="none",
                marker=marker,
                markersize=9,
                color=colour,
                markerfacecolor=colour if point.written else PAPER,
                markeredgewidth=1.6,
                label=shorten(point.label, length=20),
                clip_on=False,
                alpha=0.9,
            )
        axes.axhline(reference.quality, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_ylim(*quality_range([each.quality for each in everything], ceiling=ceiling))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        costs = [each.cost for each in everything]
        if not scale(axes, "x", costs):
            axes.set_xlim(0, max(costs) * 1.12 or 1.0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        legend(figure, axes, columns=_COLUMNS)

    height = 2.75 + 0.24 * -(-len(everything) // _COLUMNS)
    return svg(draw, height_in=height, name=name, title=f"{y_label} against {x_label}")


def _looks(points: Sequence[Point]) -> list[tuple[str, str]]:
    """Give each target its engine's colour and a marker of its own among that engine's."""
    seen: dict[str, int] = {}
    looks = []
    for point in points:
        seen[point.engine] = seen.get(point.engine, 0) + 1
        colour = SERIES[list(seen).index(point.engine) % len(SERIES)]
        looks.append((colour, MARKERS[seen[point.engine] % len(MARKERS)]))
    return looks


def output_errors(counts: Sequence[int], *, edges: Sequence[float], name: str) -> str:
    """Draw how far outputs are off, and to which side.

    Args:
        counts: Outputs per bin, shape (n_bins,).
        edges: Bounds of the bins, ascending, in standard deviations of the reference's outputs, shape
            (n_bins + 1,).
        name: Prefix of the ids in the drawing, unique in the page.
    """
    total = sum(counts) or 1
    shares = [count / total for count in counts]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

        axes = figure.add_subplot()
        axes.stairs(shares, edges, fill=True, color=SERIES[0], alpha=0.35, linewidth=0)
        axes.stairs(shares, edges, color=SERIES[0], linewidth=1.4)
        axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max(shares) * 1.08 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("error (standard deviations of the reference's outputs)")
        axes.set_ylabel("share of outputs")

    return svg(draw, height_in=2.7, name=name, title=f"Signed errors of {total:,} outputs")


def layer_errors(layers: Sequence[tuple[str, str, float, float]], *, name: str) -> str:
    """Draw what each layer adds to the error of its inputs, beside its own whole error.

    Args:
        layers: Name, kind, error and what of it is added, in the order to be shown; at most ``MAX_LAYERS``.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    reach = [max(error, added, 0.0) for _, _, error, added in layers]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        places = range(len(layers))
        axes.barh(places, [added for *_, added in layers], height=0.66, color=SERIES[0], label="added here")
        axes.plot(
            [error for _, _, error, _ in layers],
            places,
            linestyle="none",
            marker="|",
            markersize=11,
            markeredgewidth=2.2,
            color=SERIES[1],
            label="whole error",
        )
        for place, (_, kind, _, _) in enumerate(layers):
            axes.annotate(
                shorten(kind, length=22),
                (reach[place], place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                size=8.5,
                color=MUTED,
            )
        axes.set_yticks(places, [_ending(label) for label, *_ in layers], size=9)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(0, max(reach) * 1.3 or 1.0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("error (standard deviations of the float layer)")
        legend(figure, axes, columns=2)

    height = 1.15 + 0.24 * max(len(layers), 2)
    return svg(draw, height_in=height, width_in=2 * WIDTH_IN, name=name, title="Layers by the error they add")


def _ending(label: str) -> str:
    """Cut a layer's name in front: the names of one network differ in their last parts."""
    if len(label) <= _NAME_CHARACTERS:
        return shorten(label, length=_NAME_CHARACTERS)
    return shorten(f"…{label[1 - _NAME_CHARACTERS :]}", length=_NAME_CHARACTERS)
