from __future__ import annotations

import math

import numpy as np
import pytest

from kit.bootstrap import Bootstrap, Draw
from kit.errors import InputError
from kit.gates import (
    GateResult,
    Judgement,
    check_floors,
    check_latency,
    check_max_loss,
    check_size,
    failures,
    next_step,
    other_question,
    undecided,
)


def test_a_floor_is_reached_from_above_and_a_loss_from_below() -> None:
    metrics = {"accuracy": 0.9, "log_loss": 0.3}
    assert check_floors(metrics, {"log_loss": 0.3, "accuracy": 0.95}) == (
        GateResult("accuracy", 0.9, 0.95, passed=False),
        GateResult("log_loss", 0.3, 0.3, passed=True),
    )
    assert check_floors(metrics, {"log_loss": 0.2})[0].passed is False
    assert check_floors(metrics, {"accuracy": 0.9})[0].passed is True


def test_without_floors_there_is_nothing_to_pass() -> None:
    assert check_floors({"accuracy": 0.1}, {}) == ()


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_a_metric_that_is_no_number_passes_nothing(metric: str) -> None:
    assert not check_floors({metric: math.nan}, {metric: 0.5})[0].passed


def test_a_gate_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="the gate 'acc' was not measured") as caught:
        check_floors({"accuracy": 1.0}, {"acc": 0.5})
    assert "did you mean 'accuracy'?" in str(caught.value.hint)


def test_a_floor_on_a_metric_the_rows_do_not_determine_is_not_passed() -> None:
    (gate,) = check_floors({"accuracy": 1.0}, {"auc": 0.5}, undefined={"auc": "one class is absent"})
    assert (gate.passed, gate.value) == (False, None)
    assert gate.describe() == "auc was not decided: one class is absent"


def answers(n_rows: int, *, wrong: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    labels = np.arange(n_rows) % 2
    label = labels.copy()
    label[:wrong] = 1 - label[:wrong]
    return labels, {"label": label, "probabilities": np.eye(2, dtype=np.float32)[label] * 0.8 + 0.1}


def loss(bound: float, *, n_rows: int, candidate: int, champion: int, metric: str = "accuracy") -> GateResult:
    """Judge a candidate and a champion with so many wrong answers each."""
    labels, first = answers(n_rows, wrong=candidate)
    _, second = answers(n_rows, wrong=champion)
    (gate,) = check_max_loss(
        {metric: bound},
        labels=labels,
        candidate=first,
        champion=second,
        bootstrap=Bootstrap(),
        min_rows=100,
    )
    return gate


def test_a_loss_is_decided_on_the_unlucky_end_not_on_what_was_seen() -> None:
    gate = loss(0.05, n_rows=200, candidate=9, champion=0)
    assert gate.value is not None
    assert gate.champion is not None
    assert gate.low is not None
    assert gate.champion - gate.value == pytest.approx(0.045)  # what was seen is allowed
    assert gate.low < -0.05  # what may be is not
    assert not gate.passed
    assert "may be 0.0" in gate.describe()
    assert "the gate allows 0.05" in gate.describe()


def test_more_rows_decide_what_few_could_not() -> None:
    assert not loss(0.05, n_rows=200, candidate=7, champion=0).passed
    assert loss(0.05, n_rows=4000, candidate=140, champion=0).passed


def test_a_loss_metric_is_unlucky_where_it_is_high() -> None:
    worse = loss(0.01, n_rows=400, candidate=40, champion=0, metric="log_loss")
    better = loss(0.01, n_rows=400, candidate=0, champion=40, metric="log_loss")
    assert worse.high is not None
    assert worse.high > 0.01
    assert not worse.passed
    assert better.passed


def test_a_candidate_as_good_as_the_champion_may_lose_nothing() -> None:
    gate = loss(0.0, n_rows=100, candidate=5, champion=5)
    assert (gate.passed, gate.low, gate.high, gate.n_rows) == (True, 0.0, 0.0, 100)


def test_too_few_rows_decide_nothing() -> None:
    gate = loss(1.0, n_rows=99, candidate=0, champion=0)
    assert not gate.passed
    assert gate.describe() == "accuracy was not decided: 99 rows are fewer than min_rows = 100"


def test_a_class_with_one_row_leaves_a_ranking_undecided() -> None:
    labels = np.zeros(100, dtype=np.int64)
    labels[0] = 1
    outputs = {"label": labels, "probabilities": np.eye(2, dtype=np.float32)[labels]}
    more = {"candidate": outputs, "champion": outputs, "bootstrap": Bootstrap(500), "min_rows": 100}
    (gate,) = check_max_loss({"auc": 0.5}, labels=labels, **more)
    assert not gate.passed
    assert "of 500 resamples" in gate.reason
    assert (gate.low, gate.high) == (None, None)
    (absent,) = check_max_loss({"auc": 0.5}, labels=np.zeros(100, dtype=np.int64), **more)
    assert "not defined on these 100 rows" in absent.reason


def test_a_champion_that_answers_no_numbers_leaves_the_gate_undecided() -> None:
    labels, good = answers(100, wrong=0)
    bad = {**good, "probabilities": np.full((100, 2), np.nan, dtype=np.float32)}
    more = {"labels": labels, "bootstrap": Bootstrap(200), "min_rows": 10}
    (gate,) = check_max_loss({"accuracy": 0.5}, candidate=good, champion=bad, **more)
    assert not gate.passed
    assert "the champion answers some of the rows with values that are not finite" in gate.reason


def test_whole_groups_decide_less_than_their_rows_and_few_decide_nothing() -> None:
    labels = np.zeros(2000, dtype=np.int64)
    groups = np.repeat(np.arange(40), 50)
    wrong = np.isin(groups, (0, 1)).astype(np.int64)  # in two of 40 groups every answer
    right = {"label": labels, "probabilities": np.eye(2, dtype=np.float32)[labels]}
    candidate = {"label": wrong, "probabilities": np.eye(2, dtype=np.float32)[wrong]}
    more = {"labels": labels, "candidate": candidate, "champion": right, "min_rows": 100}
    (alone,) = check_max_loss({"accuracy": 0.07}, bootstrap=Bootstrap(), **more)
    assert alone.passed
    (whole,) = check_max_loss({"accuracy": 0.07}, bootstrap=Bootstrap(draw=Draw.of_groups(groups)), **more)
    assert not whole.passed
    assert whole.low is not None
    assert whole.low < -0.1
    few = check_max_loss({"accuracy": 1.0}, bootstrap=Bootstrap(draw=Draw.of_groups(groups // 2)), **more)
    assert (
        few[0].reason
        == "the 2000 rows are of 20 groups, which are drawn whole, and 20 groups are fewer than 30"
    )
    assert next_step(few) == "hold out more groups (test_fraction under [data])"


def test_another_question_asks_to_be_restored() -> None:
    gates = undecided({"auc": 0.1}, reason=other_question("label = 'y', not 'z'"))
    assert "was trained on another question: label = 'y', not 'z'" in failures(gates)
    assert "restore [data] label" in next_step(gates)


def test_the_same_seed_decides_alike() -> None:
    assert loss(0.02, n_rows=300, candidate=12, champion=4) == loss(
        0.02, n_rows=300, candidate=12, champion=4
    )


def test_latency_is_judged_by_the_ratio_of_paired_timings() -> None:
    generator = np.random.default_rng(0)
    champion = 1.0 + generator.random(200)
    bootstrap = Bootstrap(500)
    same = check_latency(0.2, candidate_ms=champion * 1.0, champion_ms=champion, bootstrap=bootstrap)
    assert (same.passed, same.low, same.high) == (True, 0.0, 0.0)
    double = check_latency(1.0, candidate_ms=champion * 2.5, champion_ms=champion, bootstrap=bootstrap)
    assert not double.passed
    assert double.high == pytest.approx(1.5)
    assert "+150% on the champion's at the unlucky end, the gate allows +100%" in double.describe()


def test_size_may_grow_by_a_share() -> None:
    assert check_size(0.1, candidate_bytes=1100, champion_bytes=1000).passed
    larger = check_size(0.1, candidate_bytes=1101, champion_bytes=1000)
    assert not larger.passed
    assert larger.describe() == "size is 1,101 bytes, the champion's 1,000, the gate allows 10% more"


def test_without_a_champion_there_is_nothing_to_lose_to() -> None:
    (gate,) = undecided({"auc": 0.1}, reason="there is no champion yet", passed=True)
    assert gate.passed
    assert gate.describe() == "auc: there is no champion yet"


def test_failures_name_what_failed_alone() -> None:
    results = check_floors({"accuracy": 0.9, "auc": 0.8}, {"accuracy": 0.95, "auc": 0.5})
    assert failures(results) == "accuracy is 0.9000, the gate 0.95"
    assert failures(results[1:]) == ""


def test_a_judgement_survives_being_written() -> None:
    gate = loss(0.05, n_rows=120, candidate=1, champion=1)
    judgement = Judgement((gate,), "ab" * 32, {"resamples": 2000})
    assert Judgement.from_json(judgement.to_json()) == judgement
    assert judgement.passed
    for damaged in (None, {}, {"results": [{"metric": "auc"}], "champion": None, "rules": {}}, 3):
        assert Judgement.from_json(damaged) is None


def test_too_few_rows_ask_for_more_rows_and_not_for_better_training() -> None:
    outputs = {"label": np.array([0, 1]), "probabilities": np.array([[1.0, 0.0], [0.0, 1.0]])}
    few = check_max_loss(
        {"accuracy": 0.1},
        labels=np.array([0, 1]),
        candidate=outputs,
        champion=outputs,
        bootstrap=Bootstrap(100, 0.95, 0),
        min_rows=30,
    )
    assert "lower min_rows" in next_step(few)
    assert next_step((*few, GateResult("auc", 0.5, 0.9, passed=False))) == "train better"
