"""The report's plots, as SVG that takes its colours and its font from the page around it.

matplotlib draws with placeholder colours; they become CSS variables, so one drawing serves the
light and the dark page. The same figures give the same bytes. Knows nothing of records or pages.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kit.errors import MissingDependencyError, install_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Placeholder colour to what the page paints there.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--paper)",
    "#050505": "var(--series-1)",
    "#060606": "var(--series-2)",
    "#070707": "var(--series-3)",
    "#080808": "var(--series-4)",
    "#090909": "var(--series-5)",
}
_INK, _MUTED, _LINE, _PAPER, *_SERIES = _COLOURS
_MARKERS = ("D", "o", "s", "^", "v")
_WIDTH_IN = 5.0  # at 72 units to the inch; the page scales it to its column
_LABEL_CHARACTERS = 18
#: Above this ratio of largest to smallest value an axis is logarithmic.
_LOG_RATIO = 30
#: Most classes drawn as a heat map; a larger one cannot be read.
MAX_CLASSES = 40
_COUNTED_CLASSES = 16
MAX_BARS = 25


def training_curves(
    epochs: Sequence[int], train: Sequence[float], validation: Sequence[float], *, best_epoch: int, name: str
) -> str:
    """Draw the losses by epoch, the best epoch marked.

    Args:
        epochs: Numbers of the epochs, ascending.
        train: Loss on the training rows per epoch.
        validation: Loss on the validation rows per epoch.
        best_epoch: The epoch whose weights were kept.
        name: Prefix of the ids in the drawing, unique in the page.

    Returns:
        One ``<svg>`` element.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        marker = "o" if len(epochs) < 2 else None
        axes.plot(epochs, train, color=_SERIES[0], marker=marker, label="training")
        axes.plot(epochs, validation, color=_SERIES[1], marker=marker, label="validation")
        if best_epoch in epochs:
            loss = validation[list(epochs).index(best_epoch)]
            axes.axvline(best_epoch, color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.plot(
                [best_epoch], [loss], "o", color=_SERIES[1], label=f"best: epoch {best_epoch}, {loss:.4g}"
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _scale(axes, "y", [*train, *validation])
        _legend(figure, axes, columns=3)

    return _svg(draw, height_in=3.1, name=name, title="Loss by epoch, training and validation")


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], *, name: str) -> str:
    """Draw a confusion matrix, each row shaded by its share.

    Args:
        counts: Rows by true class and answered class, shape (n_classes, n_classes).
        classes: Their names; at most ``MAX_CLASSES``.
        name: Prefix of the ids in the drawing, unique in the page.
    """
    labels = [_label(each) for each in classes]
    side = len(labels)
    longest = max(len(label) for label in labels)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        for row, line in enumerate(counts):
            total = sum(line) or 1
            for column, count in enumerate(line):
                share = count / total
                # The palest shade still shows: one wrong row in a thousand is worth a look.
                alpha = 0.12 + 0.88 * share if count else 0.0
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, color=_SERIES[0], alpha=alpha, linewidth=0))
                if count and side <= _COUNTED_CLASSES:
                    ink = _PAPER if alpha > 0.55 else _INK
                    size = 10 if side <= 12 else 8
                    axes.text(column, row, f"{count:,}", color=ink, size=size, ha="center", va="center")
        axes.set_xlim(-0.5, side - 0.5)
        axes.set_ylim(side - 0.5, -0.5)
        axes.set_aspect("equal")
        size = 10 if side <= 12 else 8 if side <= 24 else 6
        axes.set_xticks(range(side), labels, size=size, rotation=90 if longest > 3 and side > 3 else 0)
        axes.set_yticks(range(side), labels, size=size)
        axes.grid(visible=False)
        for edge in range(side + 1):
            axes.axhline(edge - 0.5, color=_LINE, linewidth=0.4)
            axes.axvline(edge - 0.5, color=_LINE, linewidth=0.4)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("answered class")
        axes.set_ylabel("true class")

    return _svg(draw, height_in=4.4 if side > 4 else 3.6, name=name, title="Rows by true and answered class")


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

    y_label = _label(y_label)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        for index, (label, cost, quality) in enumerate(points):
            axes.plot(
                [cost],
                [quality],
                linestyle="none",
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=9,
                color=_SERIES[index % len(_SERIES)],
                label=_label(label),
                clip_on=False,
                alpha=0.9,
            )
        axes.axhline(points[0][2], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_ylim(*_quality_range([quality for _, _, quality in points], ceiling=ceiling))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        costs = [cost for _, cost, _ in points]
        if not _scale(axes, "x", costs):
            axes.set_xlim(0, max(costs) * 1.12 or 1.0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        _legend(figure, axes, columns=3)

    return _svg(draw, height_in=3.1, name=name, title=f"{y_label} against {x_label}")


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
        axes.barh(range(len(counts)), heights, height=0.7, color=_SERIES[0])
        for place, count in enumerate(heights):
            axes.annotate(
                f"{count:,}  ({count / total:.1%})",
                (count, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=9,
                color=_MUTED,
            )
        axes.set_yticks(range(len(counts)), [_label(label) for label, _ in counts])
        axes.invert_yaxis()
        axes.set_xlim(0, (max(heights) or 1) * 1.35)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("rows")
        axes.set_ylabel("answered class")

    return _svg(draw, height_in=1.0 + 0.26 * max(len(counts), 2), name=name, title="Rows by answered class")


def _svg(draw: Callable[[Figure], None], *, height_in: float, name: str, title: str) -> str:
    """Draw a figure and make it part of a page."""
    with _style(name):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained", facecolor="none")
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", facecolor="none", metadata=nothing)
    return _embeddable(file.getvalue(), name=name, title=title)


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Set everything that decides how a figure looks, whatever the user's matplotlibrc says."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            f"the report's plots need {error.name}, which is not installed", hint=install_line("cluster")
        ) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # Letters that matplotlib's own font lacks are drawn by the page, which has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": name,
                "font.family": "DejaVu Sans",
                "font.size": 10,
                "text.parse_math": False,
                "text.color": _INK,
                "axes.facecolor": "none",
                "axes.edgecolor": _LINE,
                "axes.labelcolor": _MUTED,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "grid.color": _LINE,
                "grid.linewidth": 0.6,
                "xtick.color": _LINE,
                "ytick.color": _LINE,
                "xtick.labelcolor": _INK,
                "ytick.labelcolor": _INK,
                "xtick.minor.visible": False,
                "lines.linewidth": 1.8,
                "lines.markersize": 6,
                "legend.frameon": False,
            }
        )
        yield


def _legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Put the legend above the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(columns, len(labels)),
        fontsize=10,
        handlelength=1.4,
        columnspacing=1.4,
        borderpad=0.1,
    )


def _quality_range(values: Sequence[float], *, ceiling: float | None) -> tuple[float, float]:
    """Choose what a quality axis shows: every value, and never so little that noise looks like a loss."""
    low, high = min(values), max(values)
    span = max(high - low, 0.02 * (max(abs(low), abs(high)) or 1.0))
    middle = (low + high) / 2
    top = middle + 0.75 * span
    return middle - 0.75 * span, top if ceiling is None else min(top, max(ceiling, high))


def _scale(axes: Axes, which: str, values: Sequence[float]) -> bool:
    """Make an axis logarithmic when its values span orders of magnitude; say whether it is."""
    from matplotlib.ticker import NullFormatter

    if not values or min(values) <= 0 or max(values) / min(values) < _LOG_RATIO:
        return False
    if which == "y":
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{axes.get_ylabel()} (logarithmic)")
    else:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    decades = math.log10(max(values) / min(values))
    if decades < 2:
        from matplotlib.ticker import LogLocator

        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    return True


def _label(text: str) -> str:
    """Cut a name to what fits beside an axis; what cannot be printed becomes a replacement sign."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return shown if len(shown) <= _LABEL_CHARACTERS else f"{shown[: _LABEL_CHARACTERS - 1]}…"


def _embeddable(svg: str, *, name: str, title: str) -> str:
    """Turn matplotlib's document into an element: no prolog, own ids, the page's colours and font."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if str(child.tag).rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
        kept = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in kept.items():
            element.set(key, _attribute(key, value, name=name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "plot", "role": "img", "aria-label": title})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _attribute(key: str, value: str, *, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    value = re.sub(r"#[0-9a-f]{6}", lambda found: _COLOURS.get(found[0], found[0]), value)
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?|(font: [^;']*?px) [^;]*", _without_family, value)
    return value


def _without_family(found: re.Match[str]) -> Any:
    """Keep a font's size and drop its name, so that the page's font is used."""
    shorthand: str | None = found[1]
    return f"{shorthand.replace('font:', 'font-size:')}" if shorthand else ""
