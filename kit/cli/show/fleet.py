"""How the fleet, its rollouts and its devices are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.cli.show.tables import table, when

if TYPE_CHECKING:
    from edge.fleet.command import FleetResult
    from edge.fleet.devices import DevicesResult


def fleet(result: FleetResult) -> None:
    """Show what would be rolled out, how a rollout stands, or the whole fleet."""
    from edge.fleet.command import intent_lines, progress

    if result.action == "serve":
        return
    if result.intent is not None and result.rollout is None:
        print("\n".join(intent_lines(result.intent)))
        print("nothing was begun: this was a dry run")
    elif result.rollout is not None:
        if result.exit_code:
            return
        if result.action == "status" or result.followed:
            _rollout(result.rollout)
        else:
            print(progress(result.rollout))
            if result.action == "abort":
                print(f"its devices return: {result.rollout['running_it']:,} run it now")
    elif result.overview is not None:
        _overview(result.overview)


def devices(result: DevicesResult) -> None:
    """Show devices, one device, or the code with which one comes in."""
    if result.action == "list":
        _devices(result)
    elif result.action == "show":
        _device(result.device)
    elif result.action == "remove":
        print(f"{result.name} is no device of the fleet any more; its token and its codes are worthless")
    elif result.code is not None:
        print(f"one-time code for {result.name}: {result.code}")
        print("on the device, with this server's address:")
        print(f"  python -m edge.agent enrol DIR --server URL --code {result.code}")
    else:
        (row,) = result.devices
        print(f"{row['name']} is at {row['place']}")
        print(f"bring it a bundle: kit flash BUNDLE {row['name']}")


def _devices(result: DevicesResult) -> None:
    rows = [
        (
            *(each["name"], each["group"], each["kind"], each["health"], _short(each["digest"])),
            *(each["release"] or None, each["answers"], each["errors"], each["p95_ms"]),
            "-" if each["heard_ns"] is None else when(each["heard_ns"]),
        )
        for each in result.devices
    ]
    headings = ("device", "group", "kind", "health", "runs", "release", "answers", "errors", "p95 ms")
    if rows:
        table((*headings, "heard (UTC)"), rows)
    for name, group, expires_ns in result.invited:
        print(f"{name} ({group}) has a code that holds until {when(expires_ns)} UTC")
    if not rows and not result.invited:
        print("there are no devices; let one in: kit devices add NAME")


def _device(device: Mapping[str, Any]) -> None:
    facts = [
        ("group", device["group"]),
        ("kind", f"{device['kind']} {device['place']}".strip()),
        ("health", device["health"]),
        ("runs", device["digest"]),
        ("release", device["release"]),
        ("can go back to", device["previous"]),
        ("phase", device["phase"]),
        ("answers", device["answers"]),
        ("errors", device["errors"]),
        ("p50 ms", device["p50_ms"]),
        ("p95 ms", device["p95_ms"]),
        ("agent", device["status"].get("agent")),
        ("machine", _words(device["status"].get("machine", {}))),
        ("heard (UTC)", None if device["heard_ns"] is None else when(device["heard_ns"])),
    ]
    table(
        ("", ""),
        [(name, str(value)) for name, value in facts if value not in (None, "")],
        title=device["name"],
    )
    if device["moments"]:
        table(
            ("when (UTC)", "what", "bundle", "detail"),
            [
                (when(each["at_ns"]), each["what"], _short(each["digest"]), each["detail"])
                for each in device["moments"][:20]
            ],
        )
    drifted = [each["name"] for each in device["drift"] if each["drifted"]]
    if drifted:
        print(f"drifted: {', '.join(drifted)}")


def _rollout(row: Mapping[str, Any]) -> None:
    title = f"{row['id']} of group {row['group']}: {row['status']}"
    title += f", {row['reason']}" if row["reason"] else ""
    table(
        ("wave", "reaches", "", "confirmed", "waiting", "failed", "silent"),
        [
            (
                *(each["label"], each["reaches"], each["state"]),
                *(each[outcome] for outcome in ("confirmed", "waiting", "failed", "silent")),
            )
            for each in row["waves"]
        ],
        title=title,
    )
    if row["status"] in ("stopped", "aborted"):
        left = row["running_it"]
        print(f"{left:,} still to return" if left else "every device runs what it ran before")
    for each in row["failures"][:10]:
        print(f"{each['name']} {each['outcome']}: {each['reason']}")
    if len(row["failures"]) > 10:
        print(f"and {len(row['failures']) - 10:,} more")


def _overview(view: Mapping[str, Any]) -> None:
    names = {digest: f"{each['name']} release {each['release']}" for digest, each in view["bundles"].items()}
    for group in view["groups"]:
        confirmed = group["confirmed"]
        runs = f", confirmed {names.get(confirmed, '')} ({confirmed[:12]})" if confirmed else ""
        table(
            ("runs", "bundle", "health", "devices"),
            [
                (_short(each["digest"]), names.get(each["digest"], "-"), each["health"], each["devices"])
                for each in group["bundles"]
            ],
            title=f"group {group['name']}: {group['devices']:,} devices{runs}",
        )
    live = [each for each in view["rollouts"] if each["status"] in ("running", "paused")]
    for each in live or view["rollouts"][:1]:
        _rollout(each)
    if not view["served"]:
        print("no server listens to devices: kit fleet serve")


def _short(digest: str | None) -> str:
    return "-" if not digest else digest[:12]


def _words(facts: Mapping[str, Any]) -> str:
    """Write what a machine says of itself; its engines without the word for them."""
    words = []
    for key, value in facts.items():
        inner = value.items() if isinstance(value, Mapping) else [(key, value)]
        words += [f"{name} {each}" for name, each in inner if key != "free_bytes"]
    return ", ".join(words)
