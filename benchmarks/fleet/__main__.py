"""What the fleet's server bears on one core, and how a simulated fleet of 1,000 ends.

    python benchmarks/fleet [--rate 200] [--seconds 30] [--devices 1000] [--json-file FILE]
    python benchmarks/fleet --simulate [--seeds 5]

Polls come when they come (Poisson), each over a connection of its own as devices open them, most of them
with the ETag of the last; one in sixty is a status instead, as devices send them. The generator is a process
of its own on another core. Latency counts from the moment a poll was due.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_HERE = Path(__file__).parent


def main() -> None:
    """Measure what was asked for and print it."""
    given = _parser().parse_args()
    if given.simulate:
        from simulating import simulate

        facts: dict[str, Any] = {"simulated": simulate(n_devices=given.devices, n_seeds=given.seeds)}
    else:
        facts = polls(rate_per_s=given.rate, seconds=given.seconds, n_devices=given.devices)
        _show(facts)
    if given.json_file:
        given.json_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def polls(*, rate_per_s: float, seconds: float, n_devices: int) -> dict[str, Any]:
    """Serve a fleet on one core and poll it from another."""
    from kit.machine import this_machine

    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        tokens = _make_fleet(Path(scratch) / "fleet", n_devices=n_devices)
        server = subprocess.Popen(
            [sys.executable, str(_HERE / "serving.py"), scratch], stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(server.pid, {cores[0]})
        try:
            assert server.stdout is not None
            match = re.search(r"http://127.0.0.1:(\d+)/", server.stdout.readline())
            assert match is not None
            facts: dict[str, Any] = {"machine": this_machine().to_json(), "devices": n_devices}
            generator = subprocess.run(
                [sys.executable, str(_HERE / "polling.py"), match[1], str(rate_per_s), str(seconds)],
                input=json.dumps(tokens),
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]}),
            )
            facts |= json.loads(generator.stdout)
            used_s = _cpu_s(server.pid)
            facts["server_cpu_share"] = used_s / facts["seconds"]
            facts["server_rss_mb"] = _rss_mb(server.pid)
        finally:
            server.terminate()
            server.wait()
    return facts


def _make_fleet(folder: Path, *, n_devices: int) -> list[str]:
    """Make a fleet whose rollout goes on; gives the devices' tokens."""
    from edge.fleet.desk import Desk
    from edge.fleet.store import Store
    from tests.fleets import NEW, NO_LIMITS, OLD, Asker, add_bundle, begin

    store = Store(folder)
    add_bundle(store, OLD, release=1)
    add_bundle(store, NEW, release=2)
    desk = Desk(store, limits=NO_LIMITS)
    began_s = time.monotonic()
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(n_devices)]
    print(f"{n_devices} devices enrolled in {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    random.Random(0).shuffle(askers)
    begin(store)
    desk.tick(1.0)
    store.close()
    return [asker.token for asker in askers]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def _show(facts: dict[str, Any]) -> None:
    print(
        f"{facts['devices']} devices, {facts['sent']} requests in {facts['seconds']:.1f} s "
        f"({facts['rate_per_s']:.0f}/s), statuses {facts['statuses']}"
    )
    print(
        f"polls    p50 {facts['p50_ms']:.2f} ms   p95 {facts['p95_ms']:.2f} ms   "
        f"p99 {facts['p99_ms']:.2f} ms   max {facts['max_ms']:.1f} ms"
    )
    print(f"reports  p50 {facts['report_p50_ms']:.2f} ms   p99 {facts['report_p99_ms']:.2f} ms")
    print(
        f"server   {facts['server_cpu_share']:.0%} of one core, {facts['server_rss_mb']:.0f} MB; "
        f"generator late by {facts['late_p99_ms']:.2f} ms (p99)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=200.0, help="polls per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long")
    parser.add_argument("--devices", type=int, default=1000, help="how many")
    parser.add_argument("--simulate", action="store_true", help="roll out to a simulated fleet instead")
    parser.add_argument("--seeds", type=int, default=3, help="for --simulate: how many fleets")
    parser.add_argument("--json-file", type=Path, help="where to write the figures, too")
    return parser


if __name__ == "__main__":
    main()
