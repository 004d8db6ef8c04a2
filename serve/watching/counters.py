"""Counts that one event loop makes and another thread reads: plain numbers and lists, without locks.

Every value has one writer, the replica's event loop. A reader may see a histogram between two of its
updates, which is one observation more or less; it never sees a bucket without its count, because counts are
made of the buckets.
Knows Prometheus' text, not what is counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from serve.watching.exposition import label_text

#: Lines of a text, by the name of the family they belong to.
Lines = dict[str, list[str]]


class Family(NamedTuple):
    """What is told about a metric: its name, its type and what it means."""

    name: str
    kind: str
    help: str

    @property
    def heads(self) -> tuple[str, str]:
        """The two lines before its samples."""
        return f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"


class Histogram:
    """Observations by size.

    Args:
        name: The metric.
        bounds: Upper bounds of the buckets, ascending; one more holds what is above.
        labels: Names and values of the series.
    """

    __slots__ = ("_count", "_prefixes", "_sum", "bounds", "counts", "name", "total")

    def __init__(self, name: str, *, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self.name = name
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        shown = label_text(labels)
        comma = "," if shown else ""
        edges = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        self._prefixes = [f'{name}_bucket{{{shown}{comma}le="{edge}"}} ' for edge in edges]
        braces = f"{{{shown}}}" if shown else ""
        self._sum, self._count = f"{name}_sum{braces} ", f"{name}_count{braces} "

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def write(self, lines: Lines) -> None:
        """Add the histogram's lines."""
        into = lines[self.name]
        running = 0
        total = self.total
        for prefix, count in zip(self._prefixes, self.counts.copy(), strict=True):
            running += count
            into.append(f"{prefix}{running}")
        into.append(f"{self._sum}{total!r}")
        into.append(f"{self._count}{running}")


class Tally:
    """How often each of a few words was said.

    Args:
        name: The metric.
        labels: Names and values of all its series.
        words: Names of the labels that tell them apart.
    """

    __slots__ = ("_labels", "_words", "counts", "name")

    def __init__(self, name: str, *, labels: Mapping[str, str], words: tuple[str, ...]) -> None:
        self.name = name
        self._labels = dict(labels)
        self._words = words
        self.counts: dict[tuple[str, ...], int] = {}

    def add(self, *words: str) -> None:
        """Count one."""
        counts = self.counts
        counts[words] = counts.get(words, 0) + 1

    def write(self, lines: Lines) -> None:
        """Add a line for each combination of words that was counted."""
        for words, count in self.counts.copy().items():
            labels = self._labels | dict(zip(self._words, words, strict=True))
            lines[self.name].append(f"{self.name}{{{label_text(labels)}}} {count}")


def gauge_line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """Write one line."""
    shown = f"{{{label_text(labels)}}}" if labels else ""
    return f"{name}{shown} {value!r}"


def asked(read: Callable[[], float] | None) -> float | None:
    """Ask for a number that somebody else keeps; None where nobody does any more."""
    if read is None:
        return None
    try:
        return read()
    except Exception:  # another room's attribute on its way out must not end the writing of metrics
        return None
