"""How figures are written in the report: counts, shares, sizes, moments; each a filter of the templates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

#: Metrics that are shares of the rows, shown in percent.
SHARES = frozenset({"accuracy"})
NO_FIGURE = "\N{EN DASH}"
_MAX_CHARACTERS = 120


def count(value: float | None) -> str:
    """Write a whole number with thousands separators."""
    return NO_FIGURE if value is None else f"{value:,.0f}"


def digits(value: float | None) -> str:
    """Write a figure with three significant digits, without an exponent from 0.001 to a million."""
    if value is None:
        return NO_FIGURE
    if not value:
        return "0"
    if value < 0:
        return f"\N{MINUS SIGN}{digits(-value)}"
    if not 0.001 <= value < 1e6:
        return f"{value:.1e}"
    if value < 1:
        return f"{value:.3g}"
    whole = len(str(int(value)))
    return f"{value:,.{max(0, 3 - whole)}f}"


def index(value: float | None) -> str:
    """Write a stability index with three decimals, so that a column of them can be compared."""
    return NO_FIGURE if value is None else f"{value:,.3f}"


def dollars(value: float | None) -> str:
    """Write US dollars: cents from a dollar on, three significant digits below."""
    if value is None:
        return NO_FIGURE
    if value >= 1 or not value:
        return f"{value:,.2f}"
    places = 2 - math.floor(math.log10(value))
    return f"{value:.{min(places, 8)}f}"


def percent(value: float | None) -> str:
    """Write a share; only all of the rows is 100 %, and only none is 0 %."""
    if value is None:
        return NO_FIGURE
    shown = round(value * 100, 2)
    if value < 1:
        shown = min(shown, 99.99)
    if value > 0:
        shown = max(shown, 0.01)
    return f"{shown:.2f}\N{NO-BREAK SPACE}%"


def metric(value: float | None, name: str | None) -> str:
    """Write a metric: a share in percent, any other with four decimals."""
    if value is None:
        return NO_FIGURE
    return percent(value) if name in SHARES else f"{value:,.4f}"


def size(n_bytes: int | None) -> str:
    """Write a size in decimal units."""
    if n_bytes is None:
        return NO_FIGURE
    if n_bytes < 1000:
        return f"{n_bytes}\N{NO-BREAK SPACE}B"
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1000:.1f}\N{NO-BREAK SPACE}kB"
    return f"{n_bytes / 1_000_000:,.2f}\N{NO-BREAK SPACE}MB"


def duration(seconds: float | None) -> str:
    """Write a time span."""
    if seconds is None:
        return NO_FIGURE
    if seconds < 60:
        return f"{digits(seconds)}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02}:{rest:02}\N{NO-BREAK SPACE}h"
        if hours
        else f"{minutes}:{rest:02}\N{NO-BREAK SPACE}min"
    )


def moment(at: datetime) -> str:
    """Write a moment to the minute, in UTC."""
    return f"{at:%Y-%m-%d %H:%M}"


def drawing(svg: str) -> Any:
    """Let one of our own drawings through unescaped; what users wrote in it was escaped when it was drawn."""
    from markupsafe import Markup

    return Markup(svg)


def scalar(value: object) -> str:
    """Write a setting's or a column's value, whatever its type."""
    if value is None:
        return NO_FIGURE
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def brief(text: object, length: int = _MAX_CHARACTERS) -> str:
    """Cut a name that would fill the page."""
    shown = str(text)
    return shown if len(shown) <= length else f"{shown[:length]}…"


def change(pair: tuple[float | None, float | None]) -> str:
    """Write by how much a cost has changed, in percent of what it was."""
    before, after = pair
    if before is None or after is None or not before:
        return NO_FIGURE
    moved = (after - before) / abs(before) * 100
    return f"{moved:+,.0f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def difference(pair: tuple[float | None, float | None]) -> str:
    """Write by how much a metric has changed, in its own unit."""
    before, after = pair
    if before is None or after is None:
        return NO_FIGURE
    return f"{after - before:+,.4f}".replace("-", "\N{MINUS SIGN}")


def times(pair: tuple[float | None, float | None], better: str, worse: str) -> str:
    """Say how many times less a cost is than what it was, or more: ``3.03x smaller``.

    Args:
        pair: What it was and what it is.
        better: What less of it is called.
        worse: What more of it is called.
    """
    before, after = pair
    if not before or not after:
        return NO_FIGURE
    factor = max(before / after, after / before)
    if round(factor, 2) == 1:
        return "the same"
    return f"{digits(factor)}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{better if after < before else worse}"


def drop(value: float) -> str:
    """Say by how much a metric is worse than the reference's, in the unit its budget is in."""
    if not value:
        return "no drop"
    return f"{digits(abs(value))}\N{NO-BREAK SPACE}{'worse' if value > 0 else 'better'}"


FILTERS: Mapping[str, Any] = {
    "count": count,
    "digits": digits,
    "index": index,
    "dollars": dollars,
    "percent": percent,
    "metric": metric,
    "size": size,
    "duration": duration,
    "moment": moment,
    "drawing": drawing,
    "scalar": scalar,
    "brief": brief,
    "change": change,
    "difference": difference,
    "times": times,
    "drop": drop,
}
