"""Rollouts to simulated fleets: how they end, and how much real time that takes."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge.fleet.plan import Plan, parse_waves
from edge.fleet.rollout import LIVE, count
from kit import keypair
from tests.conftest import BundleMaker
from tests.simulation import FAILING, World, expected

_PLAN = Plan(
    parse_waves("50,10%,50%,100%"), Fraction(80, 100), Fraction(2, 100), silence_s=7200.0, soak_s=900.0
)
_DEFAULT = replace(_PLAN, waves=parse_waves("1,10%,50%,100%"))


def simulate(*, n_devices: int, n_seeds: int) -> list[dict[str, Any]]:
    """Roll a good and a bad bundle out to fleets of several seeds; prints a line for each."""
    logging.getLogger("kit").setLevel(logging.ERROR)  # each device says what it refuses
    rows = []
    heading = f"{'bundle':14} {'seed':>4} {'ended':>8} {'wave':>5} {'reached':>8} {'failed':>7} {'silent':>7}"
    print(f"{heading} {'virtual':>9} {'real':>7} {'CPU':>7}  right")
    for kind, plan in (("good", _PLAN), ("good, 1 first", _DEFAULT), ("bad", _PLAN)):
        for seed in range(1, n_seeds + 1):
            row = _one(kind, plan, n_devices=n_devices, seed=seed)
            rows.append(row)
            print(
                f"{kind:14} {seed:4} {row['status']:>8} {row['wave']:5} {row['reached']:8} {row['failed']:7} "
                f"{row['silent']:7} {row['virtual_h']:7.1f} h {row['real_s']:5.1f} s {row['cpu_s']:5.1f} s  "
                f"{row['right']}"
            )
    return rows


def _one(kind: str, plan: Plan, *, n_devices: int, seed: int) -> dict[str, Any]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="kit-fleet-", dir=place))
    try:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        key = folder / "signing" / "signing.pem"
        keypair.generate_key(key)
        bundles = BundleMaker(folder / "bundles", key)
        old, new = bundles.make(release=1), bundles.make(release=2)
        world = World(folder, old=old.path, key=key, n_devices=n_devices, seed=seed)
        if kind == "bad":
            world.error_shares[new.digest] = 0.2
        made = world.roll_out(new.path, plan)
        world.run(hours=72, until=lambda: world.rollout(made.id).status not in LIVE)
        after = world.rollout(made.id)
        virtual_s = world.now_s
        world.wake_the_silent()
        wanted = new.digest if after.status == "done" else old.digest
        world.run(hours=6, until=lambda: _settled(world, wanted))
        counted = count(after.members)
        ends = {"stopped"} if kind == "bad" else {expected(after, world.fates())}
        return {
            "bundle": kind,
            "seed": seed,
            "status": after.status,
            "wave": after.wave + 1,
            "reached": counted.devices,
            "failed": counted.failed,
            "silent": counted.silent,
            "virtual_h": (virtual_s - world.began_s) / 3600,
            "real_s": time.perf_counter() - began_s,
            "cpu_s": time.process_time() - began_cpu_s,
            "right": after.status in ends and _settled(world, wanted),
        }
    finally:
        shutil.rmtree(folder)


def _settled(world: World, wanted: str) -> bool:
    """Say whether every device runs what it should: those that reject the bundle run the one before."""
    return all(agent.running == wanted or agent.fate == FAILING for agent in world.agents)
