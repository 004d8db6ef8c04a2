"""Prometheus' text format between the replicas of an endpoint: each writes a file, any of them gives all.

A request for ``/metrics`` reaches whichever replica the proxy chose, so every replica leaves its own text in
one folder, and the answer is all of them with a ``replica`` label. It knows the format and files, not what is
measured.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

#: What a ``/metrics`` answer is sent as.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: A replica whose file is older than this counts as dead.
LIVING_S = 10.0
#: When the file a dead replica left is removed.
FORGOTTEN_S = 600.0
SUFFIX = ".prom"
EVERY_S = 1.0
_WRITES_PER_TIDY = 60

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>[^ ]+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class Sample(NamedTuple):
    """One line of a text: a series' name, its labels and its value."""

    name: str
    labels: dict[str, str]
    value: float


def label_text(labels: Mapping[str, str]) -> str:
    """Write labels as the format wants them, without the braces: ``model="digits",version="3"``."""
    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())


def escaped(value: str) -> str:
    """Write a label's value so that it stays within its quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def read_samples(text: str) -> Iterator[Sample]:
    """Read a text that ``Metrics`` wrote; lines of another shape are passed over."""
    for line in text.splitlines():
        found = _SAMPLE.fullmatch(line)
        if found is None:
            continue
        with contextlib.suppress(ValueError):
            labels = {name: _plain(value) for name, value in _LABEL.findall(found["labels"] or "")}
            yield Sample(found["name"], labels, float(found["value"]))


def _plain(value: str) -> str:
    return re.sub(r"\\.", lambda each: _ESCAPED.get(each[0], each[0]), value) if "\\" in value else value


def living(folder: Path, *, own: str | None = None) -> dict[str, str]:
    """Read the texts of the replicas that live.

    Args:
        folder: Where replicas leave their files.
        own: The replica that asks. Its own file says what time it is on the disk that holds the folder, so
            neither a clock that steps nor the clocks of other nodes make a living replica look dead.

    Returns:
        Replica to its text, by name.
    """
    ages: dict[str, float] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    ages[entry.name.removesuffix(SUFFIX)] = entry.stat().st_mtime
    now_s = ages.get(own, time.time()) if own is not None else time.time()
    texts = {}
    for replica, written_s in sorted(ages.items()):
        if abs(now_s - written_s) < LIVING_S:
            with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
                texts[replica] = (folder / f"{replica}{SUFFIX}").read_text(encoding="utf-8")
    return texts


def merge(folder: Path, *, own: str | None = None) -> bytes:
    """Give what all living replicas measure as one text, each series with the label ``replica``.

    Reads files; call it from a thread. About 0.5 ms per replica that serves five versions.

    Args:
        folder: ``<state>/serve/replicas``. Replicas on other nodes are among them if the folder is shared;
            otherwise each node gives its own, and each has to be asked.
        own: The replica that asks; see ``living``.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for replica, text in living(folder, own=own).items():
        _add(families, text, label=f'replica="{escaped(replica)}"')
    lines = [line for heads, samples in families.values() for line in (*heads, *samples)]
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _add(families: dict[str, tuple[list[str], list[str]]], text: str, *, label: str) -> None:
    """Put a replica's lines to their families; a family's help and type are kept once."""
    heads: list[str] = []
    samples: list[str] = []
    is_new = False
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            is_new = name not in families
            heads, samples = families.setdefault(name, ([], []))
        if line.startswith("#"):
            if is_new:
                heads.append(line)
            continue
        name, brace, rest = line.partition("{")
        if brace:
            samples.append(f"{name}{{{label},{rest}")
        else:
            name, _, value = line.partition(" ")
            samples.append(f"{name}{{{label}}} {value}")


class Publisher:
    """Leaves a replica's text in the folder once a second, from a thread of its own.

    The name is replaced in one step and never flushed to the disk: after a power cut there is nothing to
    scrape. A disk that refuses is tried again a second later.

    Args:
        render: Gives the text.
        folder: Where it goes.
        replica: The replica's name, which the file gets.
        every_s: Seconds between texts.
    """

    def __init__(
        self, render: Callable[[], bytes], *, folder: Path, replica: str, every_s: float = EVERY_S
    ) -> None:
        self._render = render
        self._every_s = every_s
        self._path = folder / f"{replica}{SUFFIX}"
        self._work = folder / f".{replica}{SUFFIX}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kit-metrics", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Write the first text and go on once a second."""
        self._publish()
        self._thread.start()

    def close(self) -> None:
        """Stop and take the file away, so that a replica that ended is gone at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        for path in (self._path, self._work):
            with contextlib.suppress(OSError):
                path.unlink()

    def _run(self) -> None:
        n_written = 0
        while not self._ended.wait(self._every_s):
            try:
                self._publish()
            except Exception:  # a number that cannot be read once may be read a second later
                self.failures += 1
            n_written += 1
            if n_written % _WRITES_PER_TIDY == 1:
                self._tidy()

    def _publish(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._work.write_bytes(self._render())
            os.replace(self._work, self._path)
        except OSError:
            self.failures += 1

    def _tidy(self) -> None:
        """Remove what replicas that died left long ago."""
        with contextlib.suppress(OSError):
            now_s = self._path.stat().st_mtime
            for path in (*self._path.parent.glob(f"*{SUFFIX}"), *self._path.parent.glob(f".*{SUFFIX}")):
                with contextlib.suppress(OSError):
                    if now_s - path.stat().st_mtime > FORGOTTEN_S:
                        path.unlink()
