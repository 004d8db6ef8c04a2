"""How releases are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import table, when

if TYPE_CHECKING:
    from serve.releases.command import ReleaseResult, ReplicaView
    from serve.releases.table import Release, Weighted


def release(result: ReleaseResult) -> None:
    """Show an endpoint's traffic, who has it in force, or what it was before."""
    if result.action == "history":
        _history(result)
        return
    newest = result.release
    in_force = [each for each in result.replicas if each.in_force == newest.sequence]
    title = f"{result.endpoint}: release {newest.sequence} ({newest.origin})"
    title += f", {newest.note}" if newest.note else ""
    if result.action == "show":
        table(
            ("version", "percent", "digest", "since (UTC)", "replicas"),
            (
                (
                    each.number,
                    f"{each.percent:g} %",
                    each.digest[:12],
                    when(newest.made_ns),
                    f"{len(in_force)} of {len(result.replicas)}",
                )
                for each in newest.versions
            ),
            title=title,
        )
    else:  # a line, without the tenth of a second a table takes to load: this may be a rollback
        print(f"{title}: {_shares(newest)}")
    if newest.paused:
        print(f"{result.endpoint} is unloaded: nothing of it answers until it is loaded again")
    if newest.sticky != "none":
        print(f"sticky: {newest.sticky}; a request without it falls on a version by chance")
    if newest.follow:
        print(f"follows {result.endpoint}@{newest.follow}")
    for sentence in result.warnings:
        print(f"note: {sentence}")
    _stragglers(result)
    if newest.shadow is not None and result.action == "show":
        _shadow(newest.shadow, result)
    if result.waited_s is not None and result.replicas and len(in_force) == len(result.replicas):
        print(f"in force on {len(in_force)} replicas after {result.waited_s:.2f} s")


def _stragglers(result: ReleaseResult) -> None:
    """Show the replicas that do not have the newest release in force, and why."""
    late: list[ReplicaView] = [*result.failed, *result.pending]
    if late:
        table(
            ("replica", "in force", "loading", "failed", "because"),
            (
                (each.replica, each.in_force or None, each.loading or None, each.failed or None, each.reason)
                for each in late
            ),
        )


def _shadow(shadow: Weighted, result: ReleaseResult) -> None:
    counts = result.shadow
    title = f"shadow: version {shadow.number} ({shadow.digest[:12]}), {shadow.percent:g} % of the requests"
    if counts is None or not (counts.compared or counts.errors or counts.dropped):
        print(f"{title}; nothing compared yet")
        return
    figures: list[tuple[str, Any]] = [
        ("compared", counts.compared),
        ("errors", counts.errors),
        ("in another shape, or NaN", counts.unlike),
        ("dropped for want of room", counts.dropped),
        ("labels alike", None if counts.agreement is None else f"{counts.agreement:.2%}"),
        ("mean difference", counts.mean_difference),
        ("largest difference", counts.difference_max if counts.numbers else None),
        ("slower by, ms", counts.slower_ms),
    ]
    table(("", ""), ((name, _figure(value)) for name, value in figures), title=title)


def _figure(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _history(result: ReleaseResult) -> None:
    from serve.releases.store import Damage

    rows = [
        (each.sequence, "-", "damaged", "-", each.reason)
        if isinstance(each, Damage)
        else (each.sequence, when(each.made_ns), each.origin, _shares(each), each.note)
        for each in result.history
    ]
    table(("#", "when (UTC)", "origin", "versions", "note"), rows, title=f"{result.endpoint}: releases")


def _shares(release: Release) -> str:
    shares = ", ".join(f"{each.number} {each.percent:g} %" for each in release.versions)
    return shares + (f", shadow {release.shadow.number}" if release.shadow else "")
