"""A fleet of 1,000 real state machines in virtual time: however devices misbehave, a rollout ends right."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from edge.fleet import rollouts
from edge.fleet.command import keyring_path
from edge.fleet.plan import Plan, parse_waves
from edge.fleet.rollout import DONE, FAILED, LIVE, STOPPED
from kit.errors import VerificationError
from kit.keys import keys
from kit.project import Project
from kit.settings import KeysSettings
from tests.simulation import FAILING, FLAPPING, GOOD, SILENT, Shares, World, expected

TOLERANT = Plan(
    parse_waves("50,10%,50%,100%"), Fraction(80, 100), Fraction(2, 100), silence_s=7200.0, soak_s=900.0
)


@pytest.fixture
def ram() -> Iterator[Path]:
    """A folder that costs nothing to sync."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="kit-fleet-", dir=place))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_world(ram: Path, bundles, signing_key: Path):
    old = bundles.make(release=1)

    def make(*, n_devices: int, seed: int = 0, **more: Any) -> World:
        return World(ram, old=old.path, key=signing_key, n_devices=n_devices, seed=seed, **more)

    return make


def ended(world: World, name: str) -> bool:
    return world.rollout(name).status not in LIVE


def assert_all_work(world: World) -> None:
    """Open every device's slot, every byte verified."""
    for agent in world.agents:
        good = agent.device.good_slot()
        assert (good.fell_back, good.bundle.digest) == ("", agent.running), agent.name


@pytest.mark.parametrize("seed", [1])
def test_a_good_bundle_reaches_1000_devices_though_some_are_silent_failing_or_flapping(
    make_world, bundles, seed: int
) -> None:
    began_s = time.process_time()  # of this machine's cores, others may want a share
    world = make_world(n_devices=1000, seed=seed)
    new = bundles.make(release=2)
    made = world.roll_out(new.path, TOLERANT)
    world.run(hours=48, until=lambda: ended(world, made.id))
    after = world.rollout(made.id)
    assert after.status == expected(after, world.fates()) == DONE, after.reason
    world.wake_the_silent()
    world.run(hours=6, until=lambda: world.running()[new.digest] == 970)
    by_fate = {fate: set() for fate in (GOOD, SILENT, FAILING, FLAPPING)}
    for agent in world.agents:
        by_fate[agent.fate].add(agent.running)
    assert {fate: running == {new.digest} for fate, running in by_fate.items()} == {
        GOOD: True,
        SILENT: True,  # late, and yet
        FLAPPING: True,
        FAILING: False,
    }
    assert new.digest not in by_fate[FAILING]
    assert_all_work(world)
    assert time.process_time() - began_s < 60


@pytest.mark.parametrize("seed", [2])
def test_a_bad_bundle_is_stopped_early_and_every_device_returns(make_world, bundles, seed: int) -> None:
    began_s = time.process_time()  # of this machine's cores, others may want a share
    world = make_world(n_devices=1000, seed=seed)
    old = next(iter(world.running()))
    bad = bundles.make(release=2)
    world.error_shares[bad.digest] = 0.2
    made = world.roll_out(bad.path, TOLERANT)
    world.run(hours=48, until=lambda: ended(world, made.id))
    after = world.rollout(made.id)
    assert (after.status, after.wave <= 1) == (STOPPED, True), after.reason
    assert len(after.members) <= 100
    world.wake_the_silent()
    world.run(hours=3, until=lambda: world.running() == {old: 1000})
    world.run(hours=0.5)  # and stay there
    assert world.running() == {old: 1000}
    assert_all_work(world)
    mended = bundles.make(release=3)
    again = world.roll_out(mended.path, replace(TOLERANT, waves=TOLERANT.waves[:1] + TOLERANT.waves[-1:]))
    world.run(hours=48, until=lambda: ended(world, again.id))
    assert world.rollout(again.id).status == DONE
    assert time.process_time() - began_s < 60


@pytest.mark.parametrize("seed", range(6))
def test_default_waves_end_as_their_first_devices_have_it(make_world, bundles, seed: int) -> None:
    """With one device first, chance decides whether it is one of the bad; either end is right, and seen."""
    world = make_world(n_devices=60, seed=seed, shares=Shares(silent=0.1, failing=0.1, flapping=0.2))
    plan = replace(TOLERANT, waves=parse_waves("1,10%,50%,100%"), soak_s=0.0)
    made = world.roll_out(bundles.make(release=2).path, plan)
    world.run(hours=72, until=lambda: ended(world, made.id))
    after = world.rollout(made.id)
    fates = world.fates()
    assert after.status == expected(after, fates), after.reason
    failed = {device for device, each in after.members.items() if each.outcome == FAILED}
    assert {fates[device] for device in failed} <= {FAILING}
    world.wake_the_silent()
    world.run(hours=3)
    assert_all_work(world)


def test_a_server_down_for_days_and_killed_changes_no_end(make_world, bundles) -> None:
    world = make_world(n_devices=40, shares=Shares(silent=0.0, failing=0.05, flapping=0.1))
    made = world.roll_out(bundles.make(release=2).path, replace(TOLERANT, waves=parse_waves("10,50%,100%")))
    world.run(hours=24, until=lambda: world.rollout(made.id).wave == 1)
    assert not ended(world, made.id)
    world.down = True
    world.run(hours=24 * 3)  # devices go on by themselves
    assert_all_work(world)
    world.restart()
    world.down = False
    world.run(hours=24, until=lambda: ended(world, made.id))
    after = world.rollout(made.id)
    assert after.status == DONE, after.reason
    assert [event.kind for event in world.store.log()].count("rollout") == 1


def test_a_key_rotated_in_mid_rollout_ends_no_rollout_and_counts_from_then_on(
    ram: Path, digits_project: Path, bundles, signing_key: Path
) -> None:
    project = Project.open(digits_project)
    bundles.key = project.signing_key()
    old, new = bundles.make(release=1), bundles.make(release=2)
    calm = Shares(silent=0.0, failing=0.0, flapping=0.1)
    world = World(
        ram, old=old.path, key=bundles.key, n_devices=40, seed=0, shares=calm, keyring=keyring_path(project)
    )
    plan = replace(TOLERANT, waves=parse_waves("10,50%,100%"))
    made = world.roll_out(new.path, plan)
    world.run(hours=24, until=lambda: world.rollout(made.id).wave == 1)
    keys(project, KeysSettings.model_validate({"action": "rotate"}))
    world.run(hours=24, until=lambda: ended(world, made.id))
    assert world.rollout(made.id).status == DONE
    world.run(hours=6)
    assert {agent.state.keyring_counter for agent in world.agents} == {1}
    bundles.key = Project.open(digits_project).signing_key()
    world.trusted = Project.open(digits_project).trusted()
    by_new_key = bundles.make(release=3)
    again = world.roll_out(by_new_key.path, plan)
    world.run(hours=24, until=lambda: ended(world, again.id))
    assert world.rollout(again.id).status == DONE
    stranger = bundles.make(release=4, key=signing_key)
    with pytest.raises(VerificationError, match="not trusted"):
        world.roll_out(stranger.path, plan)
    assert_all_work(world)


def test_an_older_release_comes_in_with_an_override_and_not_without(make_world, bundles) -> None:
    world = make_world(n_devices=20, shares=Shares(silent=0.0, failing=0.0, flapping=0.0))
    (old,) = world.running()
    plan = replace(TOLERANT, waves=parse_waves("5,100%"), soak_s=0.0)

    def ends(bundle, *, allow_older: bool) -> str:
        made = world.roll_out(bundle.path, plan, allow_older=allow_older)
        world.run(hours=24, until=lambda: ended(world, made.id))
        return world.rollout(made.id).status

    assert ends(bundles.make(release=5), allow_older=False) == DONE
    older = bundles.make(release=3)
    assert ends(older, allow_older=False) == STOPPED
    assert old not in world.running()
    assert ends(bundles.make(release=4), allow_older=True) == DONE
    assert older.digest not in world.running()


def test_an_operator_pauses_for_a_day_and_aborts(make_world, bundles) -> None:
    world = make_world(n_devices=40, shares=Shares(silent=0.0, failing=0.0, flapping=0.2))
    old = next(iter(world.running()))
    made = world.roll_out(bundles.make(release=2).path, replace(TOLERANT, waves=parse_waves("10,50%,100%")))
    world.run(hours=24, until=lambda: world.rollout(made.id).wave == 1)
    with world.store.changing() as db:
        rollouts.pause(db, made.id, by="test")
    world.desk.reload()
    world.run(hours=1)
    held = world.running()
    world.run(hours=24)
    assert world.running() == held
    with world.store.changing() as db:
        rollouts.resume(db, made.id, by="test")
    world.desk.reload()
    world.run(hours=2, until=lambda: len(world.rollout(made.id).members) == 40)
    with world.store.changing() as db:
        rollouts.abort(db, made.id, by="test")
    world.desk.reload()
    world.run(hours=4)
    assert world.running() == {old: 40}
    assert_all_work(world)
