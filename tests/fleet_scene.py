"""A fleet worth looking at: a rollout under way and one that was stopped, good and bad devices, drift."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from edge.fleet.desk import Desk
from edge.fleet.store import Store
from tests.fleets import NEW, NO_LIMITS, OLD, OTHER, PLAN, Asker, add_bundle, begin

EDGES_MS = [0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0]
PROFILE = {
    "n_rows": 1000,
    "columns": {
        name: {"edges": [0, 1, 2, 3, 4], "counts": [250] * 4, "missing": 0, "mean": 2.0, "std": 1.0}
        for name in ("width", "<b>height</b>")
    },
    "outputs": {
        "n_rows": 1000,
        "columns": {"label": {"categories": {"low": 600, "high": 400}, "missing": 0}},
    },
}
HOSTILE = "<img src=x onerror=alert(1)><script>document.title='owned'</script>"


def build(folder: Path, *, n_devices: int = 40) -> tuple[Desk, list[Asker]]:
    """Make the fleet; gives its desk and its devices."""
    chance = random.Random(7)
    store = Store(folder)
    for digest, release in ((OLD, 1), (NEW, 2), (OTHER, 3)):
        add_bundle(store, digest, release=release)
    with store.changing() as db:
        db.execute("UPDATE bundles SET profile = ?", (json.dumps(PROFILE),))
    desk = Desk(store, limits=NO_LIMITS)
    askers = [Asker.enrolled(desk, f"press-{each:02}") for each in range(n_devices)]
    for each in range(3):
        Asker.enrolled(desk, f"gate-{each}", group="gates", digest=None)
    stopped = begin(store, NEW)
    first = next(asker for asker in askers if asker.id == stopped.order[0])
    desk.tick(1.0)
    first.tell(rejected={NEW: "golden rows: agreement 0.5"})
    desk.tick(1.0)
    live = begin(store, OTHER, plan=PLAN)
    places = {device: place for place, device in enumerate(live.order)}
    in_order = sorted(askers, key=lambda asker: places[asker.id])
    first.tell(rejected={}, last_report=None)
    for asker in in_order[:15]:
        desk.tick(1.0)
        if asker.offer()["kind"] == "install":
            health = {"answers": chance.randrange(500, 9000), "errors": chance.randrange(4)}
            asker.tell(
                digest=OTHER,
                previous=OLD,
                release=3,
                health={**health, "restarts": 0, "p50_ms": round(chance.uniform(0.8, 1.6), 2), "p95_ms": 3.1},
                last_report={"status": "confirmed", "detail": "shapes runs", "digest": OTHER},
            )
    said = {"status": "rejected", "detail": HOSTILE, "error": "GateError", "digest": OTHER}
    in_order[16].tell(rejected={OTHER: HOSTILE}, last_report=said)
    desk.tick(1.0)
    _tell_windows(in_order[0], chance)
    with store.changing() as db:
        silent = in_order[-1]
        db.execute("UPDATE devices SET heard_ns = heard_ns - 7200000000000 WHERE id = ?", (silent.id,))
    return desk, in_order


def _tell_windows(asker: Asker, chance: random.Random) -> None:
    records = []
    now_s = time.time()
    for each in range(60):
        answers = chance.randrange(80, 160)
        counts = [0] * (len(EDGES_MS) + 1)
        for _ in range(answers):
            latency_ms = chance.lognormvariate(0.2, 0.5)
            counts[sum(latency_ms > edge for edge in EDGES_MS)] += 1
        body = {
            "seconds": 300,
            "answers": answers,
            "errors": {"nan": chance.randrange(3)},
            "latency": {"edges_ms": EDGES_MS, "counts": counts},
            "features": {
                "width": {"counts": [0, 30, 30, 30, 30, 0], "missing": 0},
                "<b>height</b>": {"counts": [0, 2, 8, 30, 70, 10], "missing": 0},
            },
            "prediction": {"label": {"counts": [70, 50, 0], "missing": 0}},
        }
        at_s = now_s - 300 * (60 - each)
        records.append({"id": f"b-{each}", "kind": "window", "at_s": at_s, "digest": OTHER, "body": body})
    assert asker.post("/v1/telemetry", {"records": records}).status == 200
