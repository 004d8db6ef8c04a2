"""How every plot is drawn: as SVG that takes its colours and its font from the page around it.

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
INK, MUTED, LINE, PAPER, *SERIES = _COLOURS
MARKERS = ("D", "o", "s", "^", "v")
WIDTH_IN = 5.0  # at 72 units to the inch; the page scales it to its column
_LABEL_CHARACTERS = 18
#: Above this ratio of largest to smallest value an axis is logarithmic.
LOG_RATIO = 30


def svg(
    draw: Callable[[Figure], None], *, height_in: float, name: str, title: str, width_in: float = WIDTH_IN
) -> str:
    """Draw a figure and make it part of a page.

    Args:
        draw: Fills an empty figure.
        height_in: Height, at 72 units to the inch.
        name: Prefix of the ids in the drawing, unique in the page.
        title: What a reader who does not see it is told.
        width_in: Width; the page scales every drawing to its column.

    Returns:
        One ``<svg>`` element.
    """
    with _style(name):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="none")
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
                "text.color": INK,
                "axes.facecolor": "none",
                "axes.edgecolor": LINE,
                "axes.labelcolor": MUTED,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "axes.formatter.useoffset": False,
                "grid.color": LINE,
                "grid.linewidth": 0.6,
                "xtick.color": LINE,
                "ytick.color": LINE,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "xtick.minor.visible": False,
                "lines.linewidth": 1.8,
                "lines.markersize": 6,
                "legend.frameon": False,
            }
        )
        yield


def legend(figure: Figure, axes: Axes, *, columns: int) -> None:
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


def quality_range(values: Sequence[float], *, ceiling: float | None) -> tuple[float, float]:
    """Choose what a quality axis shows: every value, and never so little that noise looks like a loss."""
    low, high = min(values), max(values)
    span = max(high - low, 0.02 * (max(abs(low), abs(high)) or 1.0))
    middle = (low + high) / 2
    top = middle + 0.75 * span
    return middle - 0.75 * span, top if ceiling is None else min(top, max(ceiling, high))


def scale(axes: Axes, which: str, values: Sequence[float]) -> bool:
    """Make an axis logarithmic when its values span orders of magnitude; say whether it is."""
    from matplotlib.ticker import NullFormatter

    if not values or min(values) <= 0 or max(values) / min(values) < LOG_RATIO:
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


def shorten(text: str, *, length: int = _LABEL_CHARACTERS) -> str:
    """Cut a name to what fits beside an axis; what cannot be printed becomes a replacement sign."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def _embeddable(document: str, *, name: str, title: str) -> str:
    """Turn matplotlib's document into an element: no prolog, own ids, the page's colours and font."""
    root = ElementTree.fromstring(document)
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
