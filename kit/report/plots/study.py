"""Plots of a study: its trials as lines through their parameters, and all their learning curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.report.plots.drawing import INK, LINE, LOG_RATIO, MUTED, PAPER, SERIES, legend, scale, shorten, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Most trials and most parameters that are drawn; the page says how many are left.
MAX_TRIALS = 200
MAX_AXES = 8
_MAX_TICKS = 12


@dataclass(frozen=True)
class Line:
    """A trial as it is drawn.

    Attributes:
        parameters: Name to value.
        value: What the study compares.
        best: Whether it is the one that was kept.
    """

    parameters: Mapping[str, Any]
    value: float
    best: bool


@dataclass(frozen=True)
class Curve:
    """A trial's validation loss by epoch.

    Attributes:
        epochs: Numbers of the epochs, ascending.
        losses: Likewise many, finite.
        status: finished, stopped, failed or running.
        best: Whether it is the one that was kept.
    """

    epochs: Sequence[int]
    losses: Sequence[float]
    status: str
    best: bool


def parallel_coordinates(
    lines: Sequence[Line],
    *,
    names: Sequence[str],
    logarithmic: Collection[str],
    metric: str,
    lower_is_better: bool,
    name: str,
) -> str:
    """Draw each trial as a line through its parameters to what it reached.

    Args:
        lines: The trials; at most ``MAX_TRIALS``.
        names: The parameters, from left to right; at most ``MAX_AXES``.
        logarithmic: Those of them that were drawn from a logarithmic scale.
        metric: What the rightmost axis shows.
        lower_is_better: Whether a small value is a good one.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    axes_shown = [
        _axis(each, [line.parameters.get(each) for line in lines], logarithmic=each in logarithmic)
        for each in names
    ]
    axes_shown.append(_axis(metric, [line.value for line in lines]))
    order = sorted(lines, key=lambda line: line.value, reverse=not lower_is_better)
    rank = {id(line): place / max(len(order) - 1, 1) for place, line in enumerate(order)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line in sorted(lines, key=lambda each: (each.best, -rank[id(each)])):
            values = [*(line.parameters.get(each) for each in names), line.value]
            heights = [axis.place(value) for axis, value in zip(axes_shown, values, strict=True)]
            good = 1 - rank[id(line)]
            axes.plot(
                range(len(heights)),
                [math.nan if height is None else height for height in heights],
                color=SERIES[1] if line.best else SERIES[0],
                alpha=1.0 if line.best else 0.12 + 0.6 * good**2,
                linewidth=2.6 if line.best else 1.2,
                marker="o" if line.best else None,
                markersize=5,
                label="best" if line.best else None,
                clip_on=False,
            )
        for place, axis in enumerate(axes_shown):
            room = 17 if len(axes_shown) <= 7 else 12
            axis.draw(axes, place, room=room, last=place == len(axes_shown) - 1)
        axes.set_xlim(-0.1, len(axes_shown) - 1 + 0.35)
        axes.set_ylim(-0.04, 1.04)
        axes.set_axis_off()

    return svg(
        draw,
        height_in=3.6,
        width_in=10.0,
        name=name,
        title=f"Parameters and {shorten(metric)} of {len(lines)} trials",
    )


def trial_curves(curves: Sequence[Curve], *, name: str) -> str:
    """Draw the validation loss of every trial by epoch, the best trial's on top.

    Args:
        curves: The trials that ended an epoch; at most ``MAX_TRIALS``.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    styles = {
        "best": (SERIES[1], 1.0, 2.6, "-"),
        "finished": (SERIES[0], 0.55, 1.3, "-"),
        "stopped early": (MUTED, 0.55, 1.0, "-"),
        "failed": (SERIES[3], 0.9, 1.3, (0, (3, 2))),
    }
    kinds = {"stopped": "stopped early", "failed": "failed"}

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        named: set[str] = set()
        for curve in sorted(curves, key=lambda each: each.best):
            kind = "best" if curve.best else kinds.get(curve.status, "finished")
            colour, alpha, width, dashes = styles[kind]
            axes.plot(
                curve.epochs,
                curve.losses,
                color=colour,
                alpha=alpha,
                linewidth=width,
                linestyle=dashes,
                marker="o" if len(curve.epochs) < 2 else None,
                markersize=4,
                label=None if kind in named else kind,
            )
            if kind == "failed":
                axes.plot(curve.epochs[-1:], curve.losses[-1:], "x", color=colour, markersize=6)
            named.add(kind)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        scale(axes, "y", [loss for curve in curves for loss in curve.losses])
        legend(figure, axes, columns=4)

    return svg(draw, height_in=3.4, name=name, title=f"Validation loss by epoch of {len(curves)} trials")


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: where values lie on it, from 0 to 1, and what is written beside it."""

    title: str
    places: Mapping[Any, float]
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: Any) -> float | None:
        """Give a value's height; None where the trial has no such value."""
        return self.places.get(_key(value))

    def draw(self, axes: Axes, x: int, *, room: int, last: bool) -> None:
        axes.plot([x, x], [0, 1], color=MUTED if last else LINE, linewidth=1.2, zorder=0)
        for height, text in self.ticks:
            axes.plot([x - 0.012, x + 0.012], [height, height], color=MUTED, linewidth=0.8, zorder=0)
            behind = {"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "boxstyle": "square,pad=0.12"}
            axes.text(
                x + 0.03, height, text, size=8.5, va="center", ha="left", color=INK, bbox=behind, zorder=5
            )
        axes.text(x, 1.06, shorten(self.title, length=room), size=9.5, ha="center", va="bottom", color=MUTED)


def _key(value: Any) -> Any:
    """Tell True from 1, which are equal as keys."""
    return (isinstance(value, bool), value)


def _axis(title: str, values: Sequence[Any], *, logarithmic: bool = False) -> _Axis:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        return _numeric_axis(title, sorted(set(known)), logarithmic=logarithmic)
    names = sorted({_key(value) for value in known}, key=lambda key: (str(type(key[1])), str(key[1])))
    places = {key: (index + 0.5) / len(names) for index, key in enumerate(names)}
    stride = math.ceil(len(names) / _MAX_TICKS) if names else 1
    ticks = tuple((places[key], shorten(str(key[1]), length=12)) for key in names[::stride])
    return _Axis(title, places, ticks)


def _numeric_axis(title: str, known: Sequence[float], *, logarithmic: bool) -> _Axis:
    low, high = known[0], known[-1]
    logarithmic = low > 0 and (logarithmic or high / low >= LOG_RATIO)

    def height(value: float) -> float:
        if low == high:
            return 0.5
        if logarithmic:
            return math.log(value / low) / math.log(high / low)
        return value / (high - low) - low / (high - low)  # the difference of two extremes may overflow

    if len(known) <= 5:
        ticks = [(height(value), f"{value:.4g}") for value in known]
    else:
        marks = [index / 4 for index in range(5)]
        shown = [
            low * (high / low) ** mark if logarithmic else low * (1 - mark) + high * mark for mark in marks
        ]
        ticks = [(mark, f"{value:.3g}") for mark, value in zip(marks, shown, strict=True)]
    spaced: list[tuple[float, str]] = []
    for tick in ticks:
        if not spaced or tick[0] - spaced[-1][0] > 0.06:
            spaced.append(tick)
    return _Axis(title, {_key(value): height(value) for value in known}, tuple(spaced))
