"""What a batch run costs: how long nodes were held, by market, and the price of an hour of each.

A node that held several actors at once is counted once. Prices are the user's; a market without a price
is named, not guessed. Knows no cloud, no discount and nothing but nodes: storage, requests and traffic
are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.batch.ledger import Commit

_SECONDS_PER_HOUR = 3600
_MILLION = 1_000_000


@dataclass(frozen=True)
class Stay:
    """How long a node held an actor.

    Attributes:
        node: Its id.
        market: spot, on-demand or local.
        from_s: When it began, in seconds since 1970.
        to_s: When it ended.
    """

    node: str
    market: str
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Cost:
    """What a run cost.

    Attributes:
        node_seconds: Market to seconds of nodes.
        usd_by_market: Market to US dollars; None where the market has no price.
        usd: US dollars over all markets with a price.
        usd_per_million_rows: Likewise per million rows answered; None without rows.
        unpriced: Markets nodes were held on that have no price, sorted.
    """

    node_seconds: dict[str, float]
    usd_by_market: dict[str, float | None]
    usd: float
    usd_per_million_rows: float | None
    unpriced: tuple[str, ...]


def cost(stays: Iterable[Stay], *, prices: Mapping[str, float], n_rows: int) -> Cost:
    """Count what nodes cost.

    Args:
        stays: When which node held actors; those of one node may overlap.
        prices: Market to US dollars per hour of a node.
        n_rows: Rows answered.
    """
    seconds: dict[str, float] = {}
    for (_, market), length_s in node_seconds(stays).items():
        seconds[market] = seconds.get(market, 0.0) + length_s
    seconds = dict(sorted(seconds.items()))
    by_market = {
        market: seconds[market] / _SECONDS_PER_HOUR * prices[market] if market in prices else None
        for market in seconds
    }
    usd = sum(each for each in by_market.values() if each is not None)
    unpriced = tuple(market for market, each in by_market.items() if each is None)
    return Cost(
        node_seconds=seconds,
        usd_by_market=by_market,
        usd=usd,
        usd_per_million_rows=usd / n_rows * _MILLION if n_rows else None,
        unpriced=unpriced,
    )


def node_seconds(stays: Iterable[Stay]) -> dict[tuple[str, str], float]:
    """Give node and market to how long it was held, overlaps counted once."""
    by_node: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for each in stays:
        by_node.setdefault((each.node, each.market), []).append((each.from_s, each.to_s))
    return {node: sum(to_s - from_s for from_s, to_s in union(spans)) for node, spans in by_node.items()}


def union(spans: Iterable[tuple[float, float]], *, gap_s: float = 0.0) -> list[tuple[float, float]]:
    """Join spans that overlap or touch.

    Args:
        spans: Start and end, in seconds; one that ends before it starts is left out.
        gap_s: Spans with no more than this between them are joined as well.

    Returns:
        Spans apart from each other, in order.
    """
    joined: list[tuple[float, float]] = []
    for from_s, to_s in sorted(spans):
        if to_s < from_s:
            continue
        if joined and from_s <= joined[-1][1] + gap_s:
            joined[-1] = joined[-1][0], max(joined[-1][1], to_s)
        else:
            joined.append((from_s, to_s))
    return joined


def worked(commits: Iterable[Commit]) -> list[Stay]:
    """Give the times in which nodes are known to have worked, by the records of shards.

    What an earlier, interrupted sitting held is known by these alone.
    """
    return [Stay(each.node, each.market, each.started_s, each.ended_s) for each in commits]
