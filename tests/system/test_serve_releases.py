"""Changing what an endpoint answers with while it is asked: weights, users, shadows, aliases, failures."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.awaiting import await_true
from tests.system.load import Load, post
from tests.system.served_models import (
    ONE_ROW,
    draw_rows,
    engine_answers,
)
from tests.system.serving import (
    INFER,
    Served,
    assert_equal_bits,
    body,
    kit,
    tensors_of,
)

IN_FORCE_S = 1.0
USERS = [f"user-{number}" for number in range(1000)]


@pytest.fixture(autouse=True)
def back_to_version_1(served: Served) -> Iterator[None]:
    yield
    served.release("set", "1=100", sticky="none", shadow="none").require_passed()


def load(served: Served, *, connections: int = 4) -> Load:
    content = json.dumps(body()).encode()
    request = post(INFER, content, headers=(f"authorization: Bearer {served.key}",))
    return Load(served.port, request, connections=connections, pause_s=0.002)


def versions_of(served: Served, users: list[str]) -> dict[str, str]:
    """Ask as each user; gives the version that answered."""

    def ask(user: str) -> str:
        answer = served.infer(headers={"x-user": user})
        assert answer.status_code == 200
        assert answer.headers["kit-version"] == answer.json()["model_version"]
        return answer.headers["kit-version"]

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(users, threads.map(ask, users), strict=True))


def in_force(served: Served) -> tuple[int, ...]:
    return tuple(each.in_force for each in served.release().replicas)


def test_a_release_grows_and_is_rolled_back_under_load_and_no_request_fails(served: Served) -> None:
    told = []
    with load(served) as running:
        for weights in (("2=10", "1=90"), ("2=50", "1=50"), ("2=100",)):
            running.wait(0.2)
            told.append(served.release("set", *weights))
        running.wait(0.2)
        told.append(served.release("rollback"))
        undone = json.loads(kit(served.project, "release", "tiny", "rollback", "--to=1", "--json", "--quiet"))
        running.wait(0.2)
    tally = running.tally
    assert len(tally.replies) > 200
    assert not tally.bad, str(tally)
    for each in told:
        each.require_passed()
        assert each.waited_s is not None
        assert each.waited_s < IN_FORCE_S
        assert [view.in_force for view in each.replicas] == [each.release.sequence] * 2
    assert undone["waited_s"] < IN_FORCE_S
    sequences = [*(each.release.sequence for each in told), undone["release"]["sequence"]]
    assert sequences == list(range(sequences[0], sequences[0] + 5))
    assert {each.number: each.percent for each in told[3].release.versions} == {1: 50.0, 2: 50.0}
    assert [each["number"] for each in undone["release"]["versions"]] == [1]
    assert "rollback 1" in kit(served.project, "release", "tiny", "history")


def test_a_canary_gets_its_share_and_raising_it_keeps_its_users(served: Served) -> None:
    first = served.release("set", "2=10", "1=90", sticky="header:X-User")
    before = versions_of(served, USERS)
    assert versions_of(served, USERS[:100]) == {user: before[user] for user in USERS[:100]}
    n_new = Counter(before.values())["2"]
    five_deviations = 5 * math.sqrt(len(USERS) * 0.1 * 0.9)
    assert abs(n_new - 0.1 * len(USERS)) < five_deviations
    assert served.infer(headers={"x-user": "a"}).headers["kit-release"] == str(first.release.sequence)
    served.release("set", "2=50", "1=50")
    after = versions_of(served, USERS)
    assert all(after[user] == "2" for user, version in before.items() if version == "2")
    assert abs(Counter(after.values())["2"] - 0.5 * len(USERS)) < 5 * math.sqrt(len(USERS) * 0.25)
    served.release("rollback")
    assert versions_of(served, USERS[:300]) == {user: before[user] for user in USERS[:300]}


def test_answers_come_from_the_version_the_header_names(served: Served) -> None:
    served.release("set", "1=50", "2=50")
    rows = draw_rows(5)
    expected = {number: engine_answers(served.project, f"tiny@{number}", rows) for number in "12"}
    seen = set()
    for _ in range(40):
        answer = served.infer(rows)
        seen.add(answer.headers["kit-version"])
        assert_equal_bits(tensors_of(answer), expected[answer.headers["kit-version"]])
    assert seen == {"1", "2"}
    pinned = [served.request("POST", "/v2/models/tiny/versions/2/infer", json=body()) for _ in range(10)]
    assert {each.headers["kit-version"] for each in pinned} == {"2"}


def test_a_user_may_be_known_by_a_field_of_the_body(served: Served) -> None:
    served.release("set", "1=50", "2=50", sticky="field:user")
    for path, sent in ((INFER, body), ("/predict/tiny", rows_body)):
        for user in USERS[:20]:
            content = sent(parameters={"user": user})
            asked = [served.request("POST", path, json=content) for _ in range(4)]
            assert len({each.headers["kit-version"] for each in asked}) == 1
    assert versions_by_field(served) == versions_by_field(served)
    assert set(versions_by_field(served)) == {"1", "2"}


def rows_body(**more: object) -> dict[str, object]:
    return {"rows": [dict(zip("abcd", map(float, ONE_ROW[0]), strict=True))], **more}


def versions_by_field(served: Served) -> list[str]:
    answers = [served.request("POST", INFER, json=body(parameters={"user": user})) for user in USERS[:30]]
    return [each.headers["kit-version"] for each in answers]


def test_a_shadow_is_asked_and_compared_and_never_answers(served: Served) -> None:
    served.release("set", shadow="2=100").require_passed()
    rows = draw_rows(30)
    own, shadows = (engine_answers(served.project, f"tiny@{number}", rows) for number in "12")
    for _ in range(20):
        assert_equal_bits(tensors_of(served.infer(rows)), own)

    def compared() -> bool:
        counts = served.release().shadow
        return counts is not None and counts.compared + counts.dropped >= 20

    await_true(compared, why="replicas tell what they compared every two seconds")
    counts = served.release().shadow
    assert counts is not None
    assert counts.compared > 0
    assert counts.agreement == pytest.approx(float(np.mean(own["label"] == shadows["label"])))
    assert counts.difference_max == pytest.approx(
        max(float(np.abs(own[name] - shadows[name]).max()) for name in ("probabilities", "logits")), rel=1e-5
    )
    shown = kit(served.project, "release", "tiny")
    assert "shadow: version 2" in shown
    assert "labels alike" in shown


def test_a_followed_alias_moves_all_traffic_when_it_moves(served: Served) -> None:
    registry = served.project.registry()
    followed = served.release("set", "champion")
    assert followed.release.follow == "champion"
    try:
        with load(served, connections=2) as running:
            registry.promote("tiny@3")
            await_true(
                lambda: {served.infer().headers["kit-version"] for _ in range(4)} == {"3"},
                why="replicas look where the alias stands",
            )
        assert not running.tally.bad, str(running.tally)
        shown = served.release()
        assert shown.release.origin == "alias champion"
        assert set(in_force(served)) == {shown.release.sequence}
    finally:
        registry.promote("tiny@1")
        await_true(
            lambda: {served.infer().headers["kit-version"] for _ in range(4)} == {"1"},
            why="it moves back",
        )


@pytest.mark.parametrize(
    "number, reason",
    [pytest.param(4, "for golden sample", id="other answers"), pytest.param(5, "NaN", id="NaN")],
)
def test_a_version_that_fails_its_golden_samples_leaves_the_old_one_in_force(
    served: Served, number: int, reason: str
) -> None:
    before = in_force(served)
    with load(served, connections=2) as running:
        said = kit(served.project, "release", "tiny", "set", f"{number}=100", code=7)
        assert reason in said
        assert "go back everywhere" in said
        running.wait(0.1)
    assert not running.tally.bad, str(running.tally)
    assert in_force(served) == before
    assert {served.infer().headers["kit-version"] for _ in range(6)} == {"1"}
    shown = served.release()
    assert len(shown.failed) == 2
    assert reason in shown.failed[0].reason

    def reported() -> bool:
        return any(each["event"] == "load_failed" and each["version"] == number for each in served.logged())

    await_true(reported, why="the log tells")
    # A second failure after the first: going back means to what answers, not to the failure before.
    assert len(served.release("set", "4=100" if number == 5 else "5=100").failed) == 2
    restored = served.release("rollback")
    assert restored.release.origin == f"rollback {before[0]}"
    assert set(in_force(served)) == {restored.release.sequence}


def test_a_version_that_is_not_in_the_release_is_not_asked_by_number(served: Served) -> None:
    assert served.request("POST", "/v2/models/tiny/versions/3/infer", json=body()).status_code == 404


def test_rollback_is_in_force_everywhere_within_a_second(served: Served) -> None:
    served.release("set", "2=100").require_passed()
    began_s = time.monotonic()
    done = served.release("rollback")
    done.require_passed()
    assert time.monotonic() - began_s < IN_FORCE_S
    assert {served.infer().headers["kit-version"] for _ in range(6)} == {"1"}
