"""Plots of an evaluation: calibration, gates with their intervals, learning and validation curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.report.plots.drawing import INK, MUTED, SERIES, legend, scale, shorten, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Most gates that are drawn; all of them stand in the table.
MAX_GATES = 12
_GOOD, _BAD = SERIES[2], SERIES[1]


@dataclass(frozen=True)
class Bounded:
    """A gate as it is drawn, in the unit it is decided in.

    Attributes:
        label: What was measured.
        low: The smaller end of its interval; the value itself where there is none.
        value: What was measured.
        high: The larger end.
        bound: What it is held against.
        fails_above: Whether what lies above the bound fails; below it otherwise.
        is_loss: Whether 0 is the champion.
        passed: Whether it passed.
    """

    label: str
    low: float
    value: float
    high: float
    bound: float
    fails_above: bool
    is_loss: bool
    passed: bool


def calibration(points: Sequence[tuple[float, float, int]], *, name: str) -> str:
    """Draw how often answers of some confidence are right, and how many rows have it.

    Args:
        points: Mean confidence, accuracy and rows of each bin that holds rows.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    most = max((count for *_, count in points), default=1)

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), label="perfect")
        upper.plot(
            [confidence for confidence, _, _ in points],
            [accuracy for _, accuracy, _ in points],
            color=SERIES[0],
            marker="o",
            markersize=5,
            label="this version",
            clip_on=False,
        )
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        upper.set_ylabel("share right")
        lower.bar(
            [confidence for confidence, _, _ in points],
            [count for *_, count in points],
            width=0.045,
            color=SERIES[0],
            alpha=0.6,
        )
        lower.set_ylim(0, most * 1.1)
        lower.set_ylabel("rows")
        lower.set_xlabel("confidence")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        legend(figure, upper, columns=2)

    return svg(draw, height_in=3.9, name=name, title="Share of right answers by confidence")


def forest(gates: Sequence[Bounded], *, name: str) -> str:
    """Draw each gate's interval against its bound, each on an axis of its own, its failing side shaded.

    Args:
        gates: At most ``MAX_GATES``.
        name: Prefix of the ids in the drawing, unique in the page.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        rows = figure.subplots(len(gates), 1, squeeze=False)[:, 0]
        for axes, gate in zip(rows, gates, strict=True):
            colour = _GOOD if gate.passed else _BAD
            places = [gate.low, gate.value, gate.high, gate.bound, *([0.0] if gate.is_loss else [])]
            low, high = min(places), max(places)
            room = 0.18 * (high - low) or 0.1 * (abs(high) or 1.0)
            low, high = low - room, high + room
            failing = (gate.bound, high) if gate.fails_above else (low, gate.bound)
            axes.axvspan(*failing, color=_BAD, alpha=0.13, linewidth=0)
            axes.axvline(gate.bound, color=INK, linewidth=1.4)
            if gate.is_loss:
                axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            if gate.low < gate.high:
                axes.plot([gate.low, gate.high], [0, 0], color=colour, linewidth=2.2)
                axes.plot([gate.low, gate.high], [0, 0], "|", color=colour, markersize=9)
            axes.plot([gate.value], [0], "o" if gate.passed else "X", color=colour, markersize=7)
            axes.set_xlim(low, high)
            axes.set_ylim(-1, 1)
            axes.set_yticks([0], [shorten(gate.label, length=26)], size=9.5)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8.5)
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")

    height = 0.25 + 0.62 * len(gates)
    return svg(draw, height_in=height, name=name, title="Gates: what was measured against each bound")


def curve(
    points: Sequence[tuple[Any, float, float]], *, x_label: str, y_label: str, title: str, name: str
) -> str:
    """Draw a metric on training and validation rows along something: rows, or values of a setting.

    Args:
        points: Place, metric on the training rows, metric on the validation rows. NaN leaves a gap.
            Places are all numbers, or stand side by side in the order given.
        x_label: What the place is.
        y_label: The metric.
        title: What a reader who does not see it is told.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _, _ in points)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = [x for x, _, _ in points] if numbers else list(range(len(points)))
        for index, label in enumerate(("training", "validation")):
            heights = [point[index + 1] for point in points]
            axes.plot(places, heights, color=SERIES[index], marker="o", markersize=5, label=label)
        axes.set_xlabel(shorten(x_label, length=40))
        axes.set_ylabel(shorten(y_label))
        if not numbers:
            axes.set_xticks(places, [shorten(str(x)) for x, _, _ in points])
        elif not scale(axes, "x", places):
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        legend(figure, axes, columns=2)

    return svg(draw, height_in=3.1, name=name, title=title)
