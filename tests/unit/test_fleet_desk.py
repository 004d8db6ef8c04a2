"""Rules of the desk: who is answered, what a device is offered, what is taken from it."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.fleet import bodies, enrolment, rollouts, telemetry
from edge.fleet.desk import Desk, Limits
from edge.fleet.limits import Rate
from edge.fleet.rollout import ABORTED, DONE, RUNNING, STOPPED
from edge.fleet.store import Store
from kit.errors import ConflictError, InputError, NotFoundError, VerificationError
from kit.files import sha256_bytes
from tests.fleets import NEW, NO_LIMITS, OLD, OTHER, PLAN, Asker, add_bundle, begin


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    store = Store(tmp_path / "fleet")
    add_bundle(store, OLD, release=1)
    add_bundle(store, NEW, release=2)
    return Desk(store, limits=NO_LIMITS)


def confirm(desk: Desk, askers: list[Asker], *, steps: int = 8) -> None:
    """Let every device do what it is offered, for some ticks."""
    for _ in range(steps):
        for asker in askers:
            offer = asker.offer()
            if offer["kind"] == "install":
                asker.tell(digest=offer["digest"], previous=asker.state["digest"], release=offer["release"])
            elif offer["kind"] == "return":
                asker.tell(digest=offer["digest"], previous=None)
        desk.tick(1.0)


def status_of(desk: Desk, name: str) -> str:
    with desk.store.reading() as db:
        return rollouts.load(db, name).rollout.status


def test_a_code_lets_one_device_in_once(desk: Desk) -> None:
    with desk.store.changing() as db:
        code = enrolment.make_code(db, name="one", group="line", hours=1)
    stranger = Asker(desk, "x")
    assert stranger.post("/v1/enrol", {"code": "aaaa-bbbb", "name": "x"}).status == 403
    first = stranger.post(
        "/v1/enrol", {"code": code.upper().replace("-", " - ").replace(" ", ""), "name": "x"}
    )
    assert first.status == 201
    assert stranger.post("/v1/enrol", {"code": code, "name": "x"}).status == 403
    token = json.loads(first.body)["token"]
    assert replace(stranger, token=token).offer()["kind"] == "stay"
    data = desk.store.path.read_bytes() + (desk.store.path.with_name("fleet.db-wal")).read_bytes()
    assert token.encode() not in data  # only hashes are kept
    assert code.encode() not in data


def test_a_code_runs_out_and_a_newer_one_replaces_it(desk: Desk) -> None:
    with desk.store.changing() as db:
        first = enrolment.make_code(db, name="one", group="line", hours=1)
        second = enrolment.make_code(db, name="one", group="line", hours=1)
    assert Asker(desk, "x").post("/v1/enrol", {"code": first, "name": "x"}).status == 403
    late = Desk(desk.store, limits=NO_LIMITS, now_ns=lambda: 2**62)
    assert Asker(late, "x").post("/v1/enrol", {"code": second, "name": "x"}).status == 403


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Bearer kitd_d1_x", "Basic a", "Bearer \xff"])
def test_nobody_is_answered_without_a_token(desk: Desk, header: str) -> None:
    asker = Asker.enrolled(desk, "one")
    for path in ("/v1/offer", f"/v1/bundles/{OLD}.bundle", "/v1/keyring.json"):
        assert replace(asker, token="").get(path, authorization=header).status == 401
    forged = asker.token[:-1] + ("A" if asker.token[-1] != "A" else "B")
    assert replace(asker, token=forged).get("/v1/offer").status == 401


def test_the_token_of_a_removed_device_counts_no_more(desk: Desk) -> None:
    asker = Asker.enrolled(desk, "one")
    other = Store(desk.store.folder)  # as the command line has it
    with other.changing() as db:
        enrolment.remove(db, "one")
    desk.refresh()
    assert asker.get("/v1/offer").status == 401
    assert asker.post("/v1/report", asker.status()).status == 401
    with pytest.raises(NotFoundError), desk.store.reading() as db:
        enrolment.find(db, "one")
    other.close()


def test_an_offer_costs_nothing_a_second_time(desk: Desk) -> None:
    asker = Asker.enrolled(desk, "one")
    first = asker.get("/v1/offer")
    again = asker.get("/v1/offer", **{"if-none-match": first.headers["etag"]})
    assert (first.status, again.status, again.body) == (200, 304, b"")
    made = begin(desk.store)
    desk.tick(1.0)
    changed = asker.get("/v1/offer", **{"if-none-match": first.headers["etag"]})
    assert changed.status == 200
    assert json.loads(changed.body) == {
        "format": 1,
        "kind": "install",
        "digest": NEW,
        "release": 2,
        "url": f"bundles/{NEW}.bundle",
        "size_bytes": 7,
        "sha256": sha256_bytes(b"archive"),
        "override": None,
        "deltas": [],
        "poll_s": 60,
        "rollout": made.id,
    }


def test_a_rollout_reaches_every_device_and_those_that_come_later(desk: Desk) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(10)]
    made = begin(desk.store)
    desk.tick(1.0)
    assert [asker.offer()["kind"] for asker in askers].count("install") == 1
    confirm(desk, askers)
    assert status_of(desk, made.id) == DONE
    late = Asker.enrolled(desk, "late")
    assert late.offer()["digest"] == NEW
    higher = Asker.enrolled(desk, "higher")
    higher.tell(release=7)
    assert higher.offer()["kind"] == "stay"  # it would refuse what is not above its own release
    rejecting = Asker.enrolled(desk, "rejecting")
    rejecting.tell(rejected={NEW: "golden rows"})
    assert rejecting.offer()["kind"] == "stay"


def test_a_failing_wave_stops_the_rollout_and_its_devices_return(desk: Desk) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(10)]
    made = begin(desk.store)
    desk.tick(1.0)
    confirm(desk, askers, steps=1)  # the first device; the second wave begins
    released = [asker for asker in askers if asker.offer()["kind"] == "install"]
    assert len(released) == 4
    for asker in released[:2]:
        asker.tell(digest=NEW, previous=OLD, release=2)
    released[2].tell(rejected={NEW: "golden rows"})
    desk.tick(1.0)
    assert status_of(desk, made.id) == STOPPED
    on_it = [asker for asker in askers if asker.state["digest"] == NEW]
    assert len(on_it) == 3
    assert all(asker.offer() | {"poll_s": 60} == _return() for asker in on_it)
    assert all(asker.offer()["kind"] == "stay" for asker in askers if asker not in on_it)
    late = released[3]  # it had begun, was away, and comes back running it
    late.tell(digest=NEW, previous=OLD, release=2)
    assert late.offer()["kind"] == "return"
    confirm(desk, askers, steps=2)
    assert {asker.state["digest"] for asker in askers} == {OLD}
    assert {asker.offer()["kind"] for asker in askers} == {"stay"}


def _return() -> dict[str, Any]:
    return {"format": 1, "kind": "return", "digest": OLD, "poll_s": 60}


def test_a_device_goes_back_to_the_slot_it_has_and_never_to_one_taken_back(desk: Desk) -> None:
    asker = Asker.enrolled(desk, "one")
    begin(desk.store)
    desk.tick(1.0)
    asker.tell(digest=NEW, previous=OTHER, release=2)
    desk.tick(1.0)
    with desk.store.changing() as db:
        assert rollouts.listed(db)[0].rollout.status == RUNNING
        rollouts.abort(db, rollouts.listed(db)[0].rollout.id, by="test")
    desk.reload()
    assert asker.offer()["digest"] == OTHER
    asker.tell(digest=NEW, previous=NEW)
    assert asker.offer()["digest"] == OLD
    nothing_before = Asker.enrolled(desk, "new", digest=None)
    assert nothing_before.offer()["kind"] == "stay"


def test_a_device_with_too_many_errors_returns_though_the_rollout_goes_on(desk: Desk) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(4)]
    plan = replace(PLAN, waves=PLAN.waves[-1:], success=PLAN.success / 2)
    made = begin(desk.store, plan=plan)
    desk.tick(1.0)
    bad = askers[0]
    bad.tell(digest=NEW, previous=OLD, release=2, health={"answers": 100, "errors": 50})
    desk.tick(1.0)
    assert (status_of(desk, made.id), bad.offer()["kind"]) == (RUNNING, "return")
    assert bad.offer()["rollout"] == made.id
    bad.tell(digest=OLD, previous=None, health={"answers": 0, "errors": 0})
    confirm(desk, askers[1:])
    assert status_of(desk, made.id) == DONE
    assert bad.offer()["kind"] == "stay"  # it is not tried on it again
    bad.tell(digest=NEW, previous=OLD)  # it was away with the bundle and did not hear in time
    assert bad.offer()["kind"] == "return"


def test_an_override_goes_with_the_bundle_it_is_for(desk: Desk) -> None:
    asker, late = Asker.enrolled(desk, "one"), Asker.enrolled(desk, "two", group="line")
    for each in (asker, late):
        each.tell(release=9)
    with desk.store.changing() as db:
        made = rollouts.begin(
            *(db,), group="line", digest=NEW, name="shapes", plan=PLAN, override='{"payload": "x"}'
        )
    desk.tick(1.0)
    first = asker if asker.id == made.order[0] else late
    assert first.offer()["override"] == {"payload": "x"}
    confirm(desk, [asker, late])
    assert status_of(desk, made.id) == DONE
    later = Asker.enrolled(desk, "three")
    later.tell(release=9)
    assert (later.offer()["digest"], later.offer()["override"]) == (NEW, {"payload": "x"})


def test_a_paused_rollout_lets_nobody_begin(desk: Desk) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(4)]
    made = begin(desk.store)
    desk.tick(1.0)
    (first,) = [asker for asker in askers if asker.offer()["kind"] == "install"]
    with desk.store.changing() as db:
        rollouts.pause(db, made.id, by="test")
    desk.reload()
    assert first.offer()["kind"] == "stay"
    for _ in range(100):
        desk.tick(30.0)  # longer than the deadline
    with desk.store.changing() as db:
        rollouts.resume(db, made.id, by="test")
    desk.reload()
    desk.tick(1.0)
    assert (status_of(desk, made.id), first.offer()["kind"]) == (RUNNING, "install")


def test_of_two_operators_one_is_told_what_the_other_did(desk: Desk) -> None:
    Asker.enrolled(desk, "one")
    made = begin(desk.store)
    other = Store(desk.store.folder)
    with pytest.raises(ConflictError, match="running"):
        begin(other, OTHER)
    with desk.store.changing() as db:
        rollouts.abort(db, made.id, by="first")
    with pytest.raises(ConflictError, match="aborted"), other.changing() as db:
        rollouts.pause(db, made.id, by="second")
    with pytest.raises(ConflictError, match="aborted already"), other.changing() as db:
        rollouts.abort(db, made.id, by="second")
    assert status_of(desk, made.id) == ABORTED
    other.close()


def test_a_server_that_was_away_for_days_calls_nobody_silent(desk: Desk, tmp_path: Path) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(4)]
    made = begin(desk.store)
    desk.tick(1.0)
    desk.store.close()
    days = 5 * 86_400
    again = Desk(Store(desk.store.folder), limits=NO_LIMITS, now_ns=lambda: days * 10**9)
    again.tick(days)  # a monotonic clock that jumped counts as half a minute
    for asker in askers:
        asker.desk = again
    assert status_of(again, made.id) == RUNNING
    confirm(again, askers)
    assert status_of(again, made.id) == DONE


def test_a_status_counts_once_and_an_older_one_never(desk: Desk) -> None:
    asker = Asker.enrolled(desk, "one")
    newest = asker.status(digest=NEW, last_report={"status": "confirmed", "detail": "runs", "digest": NEW})
    older = {**newest, "seq": newest["seq"] - 1, "digest": OTHER}
    for body in (newest, newest, older):
        assert asker.post("/v1/report", body).status == 204
    with desk.store.reading() as db:
        known = enrolment.find(db, "one")
        assert known.standing.seen.digest == NEW
        assert [each["what"] for each in enrolment.moments(db, known.id)] == ["confirmed", "runs"]


def test_telemetry_is_taken_once_and_kept_in_bounds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker.enrolled(desk, "one")
    monkeypatch.setattr(telemetry, "MAX_PER_DEVICE", 20)

    def records(first: int, n: int) -> dict[str, Any]:
        return {
            "records": [
                {"id": f"boot-{each}", "kind": "window", "at_s": each, "digest": OLD, "body": {"answers": 1}}
                for each in range(first, first + n)
            ]
        }

    for _ in range(2):
        answer = asker.post("/v1/telemetry", records(0, 15))
        assert json.loads(answer.body)["taken"] == [f"boot-{each}" for each in range(15)]
    asker.post("/v1/telemetry", records(15, 15))
    with desk.store.reading() as db:
        kept = telemetry.recent(db, asker.id, kind="window", last=1000)
    assert [each["at_s"] for each in kept] == list(range(10, 30))
    tight = Desk(desk.store, limits=replace(NO_LIMITS, max_telemetry_bytes=2_000))
    assert replace(asker, desk=tight).post("/v1/telemetry", records(30, 15)).status == 200
    with desk.store.reading() as db:
        assert db.execute("SELECT coalesce(sum(n_bytes), 0) FROM telemetry").fetchone()[0] <= 2_000
    full = Desk(desk.store, limits=replace(NO_LIMITS, min_free_bytes=1 << 62))
    refused = replace(asker, desk=full).post("/v1/telemetry", records(50, 1))
    assert (refused.status, refused.headers["retry-after"]) == (503, "60")


HOSTILE = [
    b"",
    b"[]",
    b"{",
    b"\xff\xfe",
    b"null",
    b'{"records": null}',
    b'{"records": [1]}',
    b'{"records": [{"id": "a b", "kind": "window", "at_s": 0, "digest": null, "body": {}}]}',
    b'{"records": [{"id": "a", "kind": "drop table", "at_s": 0, "digest": null, "body": {}}]}',
    b'{"records": [{"id": "a", "kind": "window", "at_s": NaN, "digest": null, "body": {}}]}',
    b'{"records": [{"id": "a", "kind": "window", "at_s": 0, "digest": "../..", "body": {}}]}',
    b'{"format": 1, "seq": -1}',
    b'{"format": 1, "seq": 1e999}',
    b'{"format": 1, "seq": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"code": "\\ud800", "name": "x"}',
    json.dumps({"format": 1, "seq": 2**60, "phase": "idle", "rejected": {}}).encode(),
    json.dumps({"format": 1, "seq": 99, "phase": "<b>", "rejected": {}}).encode(),
    json.dumps({"records": [{}] * 501}).encode(),
]


@pytest.mark.parametrize("path", ["/v1/report", "/v1/telemetry", "/v1/enrol"])
@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_body_is_refused_and_changes_nothing(desk: Desk, path: str, body: bytes) -> None:
    asker = Asker.enrolled(desk, "one")
    with desk.store.reading() as db:
        before = db.execute("SELECT * FROM devices").fetchall()
    answer = asker.post(path, body)
    assert answer.status in (400, 403), answer
    with desk.store.reading() as db:
        assert db.execute("SELECT * FROM devices").fetchall() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS = [*Asker(None, "x").status(), "records", "code"]  # type: ignore[arg-type]  # it asks nobody


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_body_is_read_or_refused(value: dict[str, Any]) -> None:
    data = json.dumps({**Asker(None, "x").status(), **value}).encode()  # type: ignore[arg-type]  # as above
    for read in (bodies.read_status, bodies.read_records, bodies.read_enrolment):
        try:
            found = read(data)  # type: ignore[operator]  # three functions of one argument
        except InputError:
            continue
        assert len(repr(found)) < 50_000


def test_what_a_device_says_obeys_no_terminal() -> None:
    said = Asker(None, "x").status(  # type: ignore[arg-type]  # it asks nobody
        last_report={"status": "rejected", "detail": "\x1b[2J<script>" + "x" * 1000},
        machine={"machine": "\x07bell", "deep": {"deep": {"deep": {}}}},
    )
    status = bodies.read_status(json.dumps(said).encode())
    text = json.dumps(status.body, ensure_ascii=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(status.body["last_report"]["detail"]) == bodies.MAX_TEXT


def test_a_device_that_floods_is_told_to_wait(desk: Desk) -> None:
    now_s = [0.0]
    limits = replace(NO_LIMITS, asks=Rate(per_s=1.0, burst=5.0), tells=Rate(per_s=0.1, burst=3.0))
    slow = Desk(desk.store, limits=limits, monotonic_s=lambda: now_s[0])
    asker, other = Asker.enrolled(slow, "one"), Asker.enrolled(slow, "two")
    found = [asker.get("/v1/offer").status for _ in range(8)]
    assert found == [200] * 5 + [429] * 3
    assert asker.get("/v1/offer").headers["retry-after"] == "1"
    assert other.get("/v1/offer").status == 200
    told = [asker.post("/v1/report", asker.status()).status for _ in range(4)]
    assert told[-1] == 429
    now_s[0] = 1.0
    assert asker.get("/v1/offer").status == 200


def test_the_keyring_is_offered_as_soon_as_there_is_a_newer_one(tmp_path: Path, desk: Desk) -> None:
    ring = tmp_path / "keyring.json"
    offering = Desk(desk.store, limits=NO_LIMITS, keyring=ring)
    asker = Asker.enrolled(offering, "one")
    assert "keyring" not in asker.offer()
    assert asker.get("/v1/keyring.json").status == 404
    for counter in (1, 2):
        payload = base64.b64encode(json.dumps({"counter": counter}).encode()).decode()
        ring.write_text(json.dumps({"payload": payload}))
        os.utime(ring, ns=(counter, counter))
        offering.refresh()
        assert asker.offer()["keyring"] == {"counter": counter, "url": "keyring.json"}
        assert asker.get("/v1/keyring.json").body == ring.read_bytes()
    ring.write_text("{}")
    offering.refresh()
    assert "keyring" not in asker.offer()  # one nobody can read is not offered


def test_the_log_remembers_and_shows_when_somebody_altered_it(desk: Desk) -> None:
    askers = [Asker.enrolled(desk, f"d{each}") for each in range(4)]
    begin(desk.store)
    confirm(desk, askers)
    kinds = [event.kind for event in desk.store.log()]
    assert kinds[:2] == ["invited", "enrolled"]
    steps = [event.body["what"] for event in desk.store.log() if event.kind == "rollout_step"]
    assert steps == ["wave", "passed", "wave", "passed", "wave", "passed", "done"]
    with sqlite3.connect(desk.store.path) as db:
        db.execute("DROP TRIGGER events_update")
        db.execute("UPDATE events SET body = '{}' WHERE seq = 3")
    db.close()
    with pytest.raises(VerificationError, match="event 3"):
        desk.store.log()


def test_a_file_that_is_no_fleet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database" * 100)
    with pytest.raises(VerificationError):
        Store(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "fleet.db") as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(VerificationError, match="not a fleet"):
        Store(other)


def test_limits_have_room_for_a_device_that_behaves() -> None:
    limits = Limits()
    assert limits.asks.per_s > 1 / limits.poll_s
    assert limits.tells.per_s > 1 / 60
