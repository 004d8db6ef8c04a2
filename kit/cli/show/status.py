"""How an endpoint's state is shown: its versions, then its replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kit.cli.show.tables import table

if TYPE_CHECKING:
    from serve.watching.status import EndpointStatus, ReplicaStatus, VersionStatus

_VERSIONS = (
    *("model", "version", "traffic", "state", "req/s", "p50 ms", "p99 ms", "errors/s", "queue", "batch"),
    *("cache", "breaker", "MB"),
)
_REPLICAS = ("replica", "node", "pid", "release", "in flight", "req/s", "CPU", "MB")


def serving(result: EndpointStatus) -> None:
    """Show what an endpoint does."""
    if not result.replicas:
        print("no replica is running")
        return
    table(_VERSIONS, [_version(each) for each in result.versions])
    print()
    table(_REPLICAS, [_replica(each) for each in result.replicas])
    if result.refused:
        print(f"refused before a version was chosen: {_rates(result.refused)}")
    if len(result.replicas) < result.wanted:
        print(f"{len(result.replicas)} of at least {result.wanted} replicas are running")
    for replica in result.replicas:
        for endpoint, reason in replica.failed.items():
            print(f"{replica.name}: a newer release of {endpoint} is not in force: {reason}")


def _version(each: VersionStatus) -> tuple[object, ...]:
    return (
        each.model,
        each.version,
        _percent(each.share),
        ", ".join(f"{n} {state}" for state, n in sorted(each.states.items())) or None,
        round(each.requests_per_s, 1),
        each.p50_ms,
        each.p99_ms,
        _rates(each.errors) or None,
        each.queue_rows,
        each.batch_rows,
        _percent(each.cache_share),
        each.breaker,
        round(each.loaded_bytes / 1e6, 1) or None,
    )


def _replica(each: ReplicaStatus) -> tuple[object, ...]:
    return (
        each.name,
        each.node or None,
        str(each.pid) if each.pid else None,
        ", ".join(f"{endpoint} {sequence}" for endpoint, sequence in sorted(each.releases.items())) or None,
        each.in_flight,
        round(each.requests_per_s, 1),
        f"{each.cpu_share:.0%}",
        round(each.memory_bytes / 1e6, 1),
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share * 100:.4g}%"


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{outcome} {rate:.3g}" for outcome, rate in sorted(rates.items()))
