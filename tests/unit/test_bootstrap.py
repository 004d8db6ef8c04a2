from __future__ import annotations

import numpy as np
import pytest

from kit.bootstrap import Bootstrap, Draw
from kit.errors import InputError
from kit.metrics import Statistic, statistic


def answers(n_rows: int, *, right: float, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n_rows)
    label = np.where(generator.random(n_rows) < right, labels, 1 - labels)
    return labels, {"label": label, "probabilities": np.eye(2, dtype=np.float32)[label] * 0.6 + 0.2}


def test_the_interval_of_a_share_is_the_textbooks() -> None:
    labels, outputs = answers(1000, right=0.8, seed=0)
    interval = Bootstrap().interval(statistic("accuracy", labels, outputs), n_rows=1000)
    share = float(np.mean(outputs["label"] == labels))
    half = 1.96 * np.sqrt(share * (1 - share) / 1000)
    assert interval.low == pytest.approx(share - half, abs=0.004)
    assert interval.high == pytest.approx(share + half, abs=0.004)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    bootstrap = Bootstrap(resamples=300, confidence=0.9)
    covered = 0
    for seed in range(100):
        labels, outputs = answers(200, right=0.8, seed=seed)
        interval = bootstrap.interval(statistic("accuracy", labels, outputs), n_rows=200)
        covered += interval.low <= 0.8 <= interval.high
    assert 80 <= covered <= 98


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    labels, outputs = answers(150, right=0.7, seed=1)
    accuracy = statistic("accuracy", labels, outputs)
    found = [Bootstrap(500, seed=seed).interval(accuracy, n_rows=150) for seed in (3, 3, 4)]
    assert found[0] == found[1]
    loss = statistic("log_loss", labels, outputs)
    first, second = (Bootstrap(500, seed=seed).interval(loss, n_rows=150) for seed in (3, 4))
    assert first != second


def test_pairing_makes_the_difference_of_two_like_models_narrow() -> None:
    labels, outputs = answers(400, right=0.7, seed=2)
    other = {"label": outputs["label"].copy(), "probabilities": outputs["probabilities"]}
    other["label"][:4] = 1 - other["label"][:4]
    first, second = statistic("accuracy", labels, outputs), statistic("accuracy", labels, other)
    paired = Bootstrap().difference(first, second, n_rows=400)
    alone = Bootstrap().interval(first, n_rows=400)
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_a_model_is_no_different_from_itself() -> None:
    labels, outputs = answers(50, right=0.7, seed=2)
    accuracy = statistic("accuracy", labels, outputs)
    interval = Bootstrap(200).difference(accuracy, accuracy, n_rows=50)
    assert (interval.low, interval.high, interval.is_bounded) == (0.0, 0.0, True)


def test_resamples_that_do_not_determine_the_figure_make_it_unbounded() -> None:
    labels = np.array([0] * 19 + [1])  # a third of all resamples hold no row of class 1
    outputs = {"label": labels, "probabilities": np.eye(2, dtype=np.float32)[labels]}
    interval = Bootstrap(1000).interval(statistic("auc", labels, outputs), n_rows=20)
    assert not interval.is_bounded
    assert 250 < interval.n_undefined < 450


def test_each_resample_has_as_many_rows_as_there_are() -> None:
    drawn = np.concatenate(list(Bootstrap(100).weights(30)))
    assert drawn.shape == (100, 30)
    assert (drawn.sum(axis=1) == 30).all()


def test_one_row_can_be_resampled_and_no_row_cannot() -> None:
    assert next(Bootstrap(5).weights(1)).tolist() == [[1.0]] * 5
    with pytest.raises(InputError, match="at least one row"):
        next(Bootstrap(5).weights(0))


def test_many_rows_are_resampled_in_pieces() -> None:
    pieces = [len(each) for each in Bootstrap(30).weights(100_000)]
    assert sum(pieces) == 30
    assert max(pieces) == 1


def test_pieces_of_any_size_draw_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(Bootstrap(40).weights(101)))
    monkeypatch.setattr("kit.bootstrap._MAX_CELLS", 303)
    pieces = list(Bootstrap(40).weights(101))
    assert len(pieces) == 14
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_figures_bounded_together_are_those_bounded_one_by_one() -> None:
    labels, outputs = answers(120, right=0.7, seed=1)
    figures = {name: statistic(name, labels, outputs) for name in ("accuracy", "auc", "log_loss")}
    together = Bootstrap(300).intervals(figures, n_rows=120)
    assert together == {name: Bootstrap(300).interval(each, n_rows=120) for name, each in figures.items()}


def test_rows_of_a_group_are_drawn_together() -> None:
    codes = np.array([7, 3, 7, 3, 3, 11])
    drawn = np.concatenate(list(Bootstrap(200, draw=Draw.of_groups(codes)).weights(6)))
    for code in (3, 7, 11):
        assert (np.ptp(drawn[:, codes == code], axis=1) == 0).all()
    assert (drawn[:, [0, 1, 5]].sum(axis=1) == 3).all()  # as many groups as there are
    assert len(np.unique(drawn.sum(axis=1))) > 1


def test_rows_that_follow_each_other_in_time_are_drawn_together() -> None:
    times = np.random.default_rng(0).permutation(27)
    draw = Draw.of_times(times)
    assert (draw.kind, draw.n_groups) == ("blocks", 9)
    drawn = np.concatenate(list(Bootstrap(100, draw=draw).weights(27)))[:, np.argsort(times)]
    assert (np.ptp(drawn.reshape(100, 9, 3), axis=2) == 0).all()


def test_groups_that_are_right_or_wrong_as_a_whole_give_a_wider_interval() -> None:
    right = np.repeat(np.arange(40) % 4 > 0, 25)
    labels = np.zeros(1000, dtype=np.int64)
    outputs = {"label": 1 - right, "probabilities": np.eye(2, dtype=np.float32)[1 - right]}
    accuracy = statistic("accuracy", labels, outputs)
    groups = Draw.of_groups(np.repeat(np.arange(40), 25))
    whole = Bootstrap(draw=groups).interval(accuracy, n_rows=1000)
    alone = Bootstrap().interval(accuracy, n_rows=1000)
    assert whole.high - whole.low == pytest.approx(5 * (alone.high - alone.low), rel=0.15)


def test_all_figures_are_taken_on_resamples_that_are_drawn_once() -> None:
    seen: dict[str, list[np.ndarray]] = {"first": [], "second": []}

    def watching(name: str) -> Statistic:
        def value(weights: np.ndarray) -> np.ndarray:
            seen[name].append(weights)
            return weights[:, 0]

        return value

    Bootstrap(7).intervals({name: watching(name) for name in seen}, n_rows=100_000)
    assert len(seen["first"]) == 7
    assert all(one is other for one, other in zip(*seen.values(), strict=True))
