from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.errors import UnavailableError, VerificationError
from kit.registry import Registry
from serve.releases import follow
from serve.releases.acks import STALE_S, Ack, EndpointAck, living_acks, read_acks, write_ack
from serve.releases.aliases import AliasFollower, fingerprint
from serve.releases.follow import Follower, Hooks
from serve.releases.store import ReleaseStore
from serve.releases.table import Change, Release, Weighted, next_release

BAD = 13  # a version that cannot be loaded
SLOW = 14  # one whose load does not end


class Replica:
    """A replica with versions that load, fail or hang, and what came in force in it."""

    def __init__(self, folder: Path, *, aliases: AliasFollower | None = None) -> None:
        self.store = ReleaseStore(folder / "releases")
        self.acks = folder / "replicas"
        self.in_force: list[int] = []
        self.preparing = asyncio.Event()
        self.error: Exception = VerificationError("model.onnx was altered")
        hooks = Hooks(self.prepare, self.put, states=self.states, shadow=lambda endpoint: {"compared": 2})
        self.follower = Follower(self.store, hooks=hooks, folder=self.acks, replica="one", aliases=aliases)

    async def prepare(self, release: Release) -> None:
        numbers = {each.number for each in release.needed()}
        if BAD in numbers:
            raise self.error
        if SLOW in numbers:
            self.preparing.set()
            await asyncio.Event().wait()

    def put(self, release: Release) -> None:
        self.in_force.append(release.sequence)

    def states(self, endpoint: str) -> Mapping[str, Any]:
        return {"1": "READY"}

    def release(self, number: int, *, sequence: int | None = None) -> Release:
        head = self.store.head("digits")
        release = next_release(
            "digits",
            previous=head,
            sequence=sequence or self.store.last("digits") + 1,
            change=Change((Weighted(number, f"{number:064x}", 100.0),), "set"),
            salt="salt",
            made_ns=time.time_ns(),
        )
        self.store.append(release)
        return release

    async def until(self, holds: Callable[[EndpointAck], bool]) -> EndpointAck:
        """Wait until the replica's file says so."""
        async with asyncio.timeout(5):
            while True:
                for ack in read_acks(self.acks):
                    if "digits" in ack.endpoints and holds(ack.endpoints["digits"]):
                        return ack.endpoints["digits"]
                await asyncio.sleep(0.005)


def run(body: Callable[[Replica], Coroutine[Any, Any, None]], folder: Path) -> None:
    async def whole() -> None:
        replica = Replica(folder)
        try:
            await body(replica)
        finally:
            await replica.follower.stop()

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_POLL_S", 0.01)
    monkeypatch.setattr(follow, "_ALIAS_POLL_S", 0.01)


def test_a_new_release_comes_in_force_and_is_acknowledged(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        assert replica.in_force == [1]
        replica.release(2)
        said = await replica.until(lambda ack: ack.in_force == 2)
        assert replica.in_force == [1, 2]
        assert (said.failed, said.loading, said.states, said.shadow) == (
            0,
            0,
            {"1": "READY"},
            {"compared": 2},
        )

    run(body, tmp_path)


def test_a_release_that_cannot_be_prepared_leaves_the_old_one_and_says_why(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        replica.release(BAD)
        said = await replica.until(lambda ack: ack.failed == 2)
        assert (said.in_force, said.reason) == (1, "model.onnx was altered")
        assert replica.follower.failure("digits") == (2, "model.onnx was altered")
        replica.release(3)
        said = await replica.until(lambda ack: ack.in_force == 3)
        assert (said.failed, said.reason) == (0, "")
        assert replica.in_force == [1, 3]

    run(body, tmp_path)


def test_a_newer_release_takes_the_place_of_one_that_is_still_loading(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        replica.release(SLOW)
        await asyncio.wait_for(replica.preparing.wait(), 5)
        assert (await replica.until(lambda ack: ack.loading == 2)).in_force == 1
        replica.release(3)
        await replica.until(lambda ack: ack.in_force == 3)
        assert replica.in_force == [1, 3]

    run(body, tmp_path)


def test_a_prepare_that_hides_its_cancellation_cannot_bring_an_old_release_back(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        go_on, came_late = asyncio.Event(), asyncio.Event()
        prepare = replica.prepare

        async def stubborn(release: Release) -> None:
            try:
                await prepare(release)
            except asyncio.CancelledError:
                await go_on.wait()
                came_late.set()

        replica.follower._hooks = replace(replica.follower._hooks, prepare=stubborn)
        replica.release(1)
        await replica.follower.start(["digits"])
        replica.release(SLOW)
        await asyncio.wait_for(replica.preparing.wait(), 5)
        replica.release(3)
        await replica.until(lambda ack: ack.in_force == 3)
        go_on.set()
        await asyncio.wait_for(came_late.wait(), 5)
        await asyncio.sleep(0)
        assert replica.in_force == [1, 3]

    run(body, tmp_path)


def test_a_replica_that_starts_on_a_broken_release_serves_the_one_before(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        for number in (1, 2, BAD, BAD):
            replica.release(number)
        await replica.follower.start(["digits"])
        assert replica.in_force == [2]
        assert replica.follower.failure("digits") == (4, "model.onnx was altered")

    run(body, tmp_path)


def test_a_version_the_store_could_not_give_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_RETRY_S", 0.02)

    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        tries = 0

        async def prepare(release: Release) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise UnavailableError("S3 does not answer")

        replica.follower._hooks = replace(replica.follower._hooks, prepare=prepare)
        replica.release(2)
        await replica.until(lambda ack: ack.in_force == 2 and not ack.failed)
        assert tries == 3

    run(body, tmp_path)


def test_a_damaged_release_is_reported_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_GRACE_S", 0.05)

    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        (replica.store.folder / "digits" / "00000002.json").write_text('{"format": 1')
        said = await replica.until(lambda ack: ack.failed == 2)
        assert "00000002.json is damaged" in said.reason
        assert said.in_force == 1
        replica.release(3)
        await replica.until(lambda ack: ack.in_force == 3)

    run(body, tmp_path)


def test_a_release_that_is_whole_only_after_a_moment_is_not_damaged(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        whole = replica.release(2)
        await replica.until(lambda ack: ack.in_force == 2)
        data = (replica.store.folder / "digits" / "00000002.json").read_bytes()
        data = data.replace(b'"sequence": 2', b'"sequence": 3').replace(whole.origin.encode(), b"set")
        path = replica.store.folder / "digits" / "00000003.json"
        path.write_bytes(data[:50])
        await asyncio.sleep(0.05)
        path.write_bytes(data)
        said = await replica.until(lambda ack: ack.in_force == 3)
        assert said.failed == 0

    run(body, tmp_path)


def test_an_endpoint_without_a_release_waits_for_its_first(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        await replica.follower.start(["digits"])
        assert replica.follower.in_force("digits") is None
        replica.release(1)
        await replica.until(lambda ack: ack.in_force == 1)

    run(body, tmp_path)


def test_an_endpoint_that_is_no_longer_followed_stays_as_it_is(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        replica.follower.remove("digits")
        replica.release(2)
        await asyncio.sleep(0.05)
        assert replica.in_force == [1]
        assert await replica.follower.add("digits") is not None
        assert replica.in_force == [1, 2]

    run(body, tmp_path)


def test_a_replica_that_ends_takes_its_file_with_it(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        await replica.follower.start(["digits"])
        await replica.until(lambda ack: ack.in_force == 1)

    run(body, tmp_path)
    assert read_acks(tmp_path / "replicas") == ()


def moved(registry: Registry, seed: str) -> int:
    number = registry.register("digits", digest=seed * 64, uri="u", summary={}).number
    registry.promote(f"digits@{number}")
    return number


def test_an_alias_that_moves_moves_the_traffic(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    moved(registry, "1")
    store = ReleaseStore(tmp_path / "releases")

    async def body() -> None:
        replica = Replica(tmp_path, aliases=AliasFollower(store, registry=registry))
        change = Change((Weighted(1, "1" * 64, 100.0),), "serve", follow="champion")
        store.append(next_release("digits", previous=None, sequence=1, change=change, salt="salt", made_ns=1))
        await replica.follower.start(["digits"])
        moved(registry, "2")
        await replica.until(lambda ack: ack.in_force == 2)
        head = store.head("digits")
        assert head is not None
        assert (head.versions[0].number, head.origin, head.follow) == (2, "alias champion", "champion")
        await replica.follower.stop()

    asyncio.run(body())


def following(store: ReleaseStore) -> Release:
    change = Change((Weighted(1, "1" * 64, 100.0),), "serve", follow="champion")
    release = next_release("digits", previous=None, sequence=1, change=change, salt="salt", made_ns=1)
    store.append(release)
    return release


def test_of_many_replicas_that_see_an_alias_move_one_writes_the_release(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    moved(registry, "1")
    store = ReleaseStore(tmp_path / "releases")
    release = following(store)
    moved(registry, "2")
    for _ in range(5):  # each with the newest release it knew then
        AliasFollower(ReleaseStore(store.folder), registry=registry).look({"digits": release})
    assert store.last("digits") == 2


def test_an_alias_nobody_moved_costs_no_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry.db")
    moved(registry, "1")
    store = ReleaseStore(tmp_path / "releases")
    newest = {"digits": following(store)}
    aliases = AliasFollower(store, registry=registry)
    monkeypatch.setattr("serve.releases.aliases._AGAIN_S", 1e9)
    aliases.look(newest)
    asked: list[str] = []
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda text: (asked.append(text), resolve(text))[1])
    aliases.look(newest)
    assert asked == []
    moved(registry, "2")
    aliases.look(newest)
    assert asked == ["digits@champion"]


def test_an_alias_that_is_gone_leaves_the_release(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "releases")
    release = following(store)
    registry = Registry(tmp_path / "registry.db")
    registry.register("digits", digest="1" * 64, uri="u", summary={})  # carries no alias
    AliasFollower(store, registry=registry).look({"digits": release})
    assert store.last("digits") == 1


def test_every_transaction_shows_in_the_fingerprint(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    assert fingerprint(registry.path) is None
    moved(registry, "1")
    prints = [fingerprint(registry.path)]
    for _ in range(20):
        with closing(sqlite3.connect(registry.path)) as db:
            db.execute("INSERT OR REPLACE INTO aliases VALUES ('digits', 'champion', ?)", ("1" * 64,))
            db.commit()
        prints.append(fingerprint(registry.path))
    counters = [each[3] for each in prints if each]
    assert len(set(counters)) == len(counters) == 21


def test_a_replica_is_dead_once_its_file_is_old_or_far_ahead(tmp_path: Path) -> None:
    now_ns = 1_000_000_000_000_000
    for name, age_s in (("now", 0.0), ("late", 9.0), ("dead", 11.0), ("ahead", -11.0)):
        beat_ns = now_ns - int(age_s * 1e9)
        write_ack(tmp_path, Ack(name, "node", 1, beat_ns, {"digits": EndpointAck(in_force=1)}))
    (tmp_path / "broken.json").write_text("{")
    write_ack(tmp_path, Ack("other", "node", 1, now_ns, {}))
    assert STALE_S == 10
    alive = living_acks(tmp_path, endpoint="digits", now_ns=now_ns)
    assert [each.replica for each in alive] == ["late", "now"]


def test_a_replica_that_cannot_write_its_file_goes_on(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        replica.release(1)
        (tmp_path / "replicas").write_text("in the way")
        await replica.follower.start(["digits"])
        release = replica.release(2)
        async with asyncio.timeout(5):
            while replica.follower.in_force("digits") != release:
                await asyncio.sleep(0.005)
        assert (tmp_path / "replicas").read_text() == "in the way"

    run(body, tmp_path)
