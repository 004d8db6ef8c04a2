"""What is said while a batch run goes on: three lines and a bar on a terminal, lines where there is none."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.batch.ledger import Commit

_log = logging.getLogger("kit")
_LINE_S = 10.0
_LINE_SHARE = 0.1
_REFRESH_S = 0.25
_RECENT_S = 30.0
_BAR_CHARACTERS = 40


@dataclass(frozen=True)
class Extent:
    """How much there is of something.

    Attributes:
        shards: Shards.
        n_bytes: Bytes of the input; 0 where nobody counts them.
        rows: Rows; None where they are not known without reading.
    """

    shards: int
    n_bytes: int = 0
    rows: int | None = None


class Live:
    """Shows a batch run while the block lasts.

    Args:
        total: The whole run.
        resumed: What of it an earlier sitting has done.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        total: Extent,
        *,
        resumed: Extent | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.resumed, self.clock = total, resumed or Extent(0, 0, 0), clock
        self.shards = self.rows_in = self.rows_refused = self.n_bytes = 0
        self.nodes: dict[str, int] = {}
        self.actors = self.restarts = 0
        self.started_s = self.drawn_s = self.said_s = clock()
        self.said_shards = 0
        self.recent: deque[tuple[float, float, int]] = deque([(self.started_s, 0.0, 0)])
        self.live: Any = None
        self.streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the terminal out of copies: nothing that holds one can travel to another process."""
        return {**self.__dict__, "live": None, "streams": []}

    def __enter__(self) -> Live:
        if sys.stderr.isatty() and _log.isEnabledFor(logging.INFO):
            from rich.console import Console
            from rich.live import Live as RichLive

            terminal = sys.stderr
            self.live = RichLive(self._table(), console=Console(stderr=True), auto_refresh=False)
            self.live.__enter__()
            # sys.stderr now writes above the display; what holds the terminal itself would tear it.
            for handler in _log.handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is terminal:
                    self.streams.append((handler, terminal))
                    handler.setStream(sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for handler, terminal in self.streams:
            handler.setStream(terminal)
        self.streams = []
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.__exit__(kind, error, where)
            self.live = None  # what comes later is said in lines

    def begin(self) -> None:
        """Start the clocks anew: what came before was loading, not work."""
        self.started_s = self.drawn_s = self.said_s = self.clock()
        self.recent = deque([(self.started_s, 0.0, 0)])

    def done(self, commit: Commit, *, n_bytes: int = 0) -> None:
        """Take note of a shard that is done.

        Args:
            commit: Its record.
            n_bytes: Its share of the input.
        """
        self.shards += 1
        self.rows_in += commit.rows_in
        self.rows_refused += commit.rows_refused
        self.n_bytes += n_bytes
        now_s = self.clock()
        self.recent.append((now_s, self.share, self.rows_in))
        while len(self.recent) > 2 and self.recent[1][0] <= now_s - _RECENT_S:
            self.recent.popleft()
        self._show()

    def pool(self, nodes_by_market: Mapping[str, int], *, actors: int, restarts: int = 0) -> None:
        """Take note of who works.

        Args:
            nodes_by_market: Market to nodes that hold actors.
            actors: Actors at work.
            restarts: Actors that were replaced so far.
        """
        self.nodes, self.actors, self.restarts = dict(nodes_by_market), actors, restarts
        self._show()

    def note(self, text: str) -> None:
        """Say something that happened, above the display."""
        _log.info("%s", text)

    @property
    def share(self) -> float:
        """How much of this sitting's work is done: by rows, bytes or shards, the first that is known."""
        total, before = self.total, self.resumed
        if total.rows is not None and before.rows is not None and total.rows > before.rows:
            return min(self.rows_in / (total.rows - before.rows), 1.0)
        if self.n_bytes and total.n_bytes > before.n_bytes:
            return min(self.n_bytes / (total.n_bytes - before.n_bytes), 1.0)
        return self.shards / max(total.shards - before.shards, 1)

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at the recent pace; None before anything is done."""
        (from_s, share_then, _), (to_s, share_now, _) = self.recent[0], self.recent[-1]
        gained = share_now - share_then
        if gained <= 0 or to_s <= from_s:
            return None
        waited_s = self.clock() - to_s
        return max((1.0 - share_now) / gained * (to_s - from_s) - waited_s, 0.0)

    @property
    def paces(self) -> tuple[float, float]:
        """Rows per second: recently, and since the start of this sitting."""
        (from_s, _, rows_then), (to_s, _, rows_now) = self.recent[0], self.recent[-1]
        overall = self.rows_in / max(self.clock() - self.started_s, 1e-9)
        return ((rows_now - rows_then) / (to_s - from_s) if to_s > from_s else 0.0), overall

    def _show(self) -> None:
        now_s = self.clock()
        if self.live is not None:
            if now_s - self.drawn_s >= _REFRESH_S:
                self.drawn_s = now_s
                self.live.update(self._table(), refresh=True)
            return
        gained = self.shards - self.said_shards
        ended = self.shards + self.resumed.shards >= self.total.shards
        some = gained and (not self.said_shards or ended or gained >= _LINE_SHARE * self.total.shards)
        if some or now_s - self.said_s >= _LINE_S:
            self.said_s, self.said_shards = now_s, self.shards
            _log.info("%s; %s; %s", self._progress(), self._pace(), self._workers())

    def _progress(self) -> str:
        rows = self.rows_in + (self.resumed.rows or 0)
        of = f" of {self.total.rows:,}" if self.total.rows is not None else ""
        done = self.shards + self.resumed.shards
        refused = f", {self.rows_refused:,} of them refused" if self.rows_refused else ""
        return f"{done:,} of {self.total.shards:,} shards, {rows:,}{of} rows{refused}"

    def _pace(self) -> str:
        if not self.shards:
            return "nothing done yet"
        recent, overall = self.paces
        words = f"{recent:,.0f} rows/s now, {overall:,.0f} overall"
        ended = self.shards + self.resumed.shards >= self.total.shards
        return words if ended or (left_s := self.left_s) is None else f"{words}, {_clock(left_s)} left"

    def _workers(self) -> str:
        nodes = ", ".join(f"{n} {market}" for market, n in sorted(self.nodes.items()) if n)
        words = f"{self.actors} actor{'' if self.actors == 1 else 's'}" + (
            f" on nodes: {nodes}" if nodes else ""
        )
        return words + (f", {self.restarts} replaced" if self.restarts else "")

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid()
        done = self.shards + self.resumed.shards
        table.add_row(ProgressBar(total=max(self.total.shards, 1), completed=done, width=_BAR_CHARACTERS))
        table.add_row(self._progress())
        table.add_row(self._pace())
        table.add_row(self._workers())
        return table


def _clock(seconds: float) -> str:
    """Write a time span as on a clock: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
