from __future__ import annotations

import numpy as np
import pytest

from kit.bootstrap import Bootstrap
from kit.errors import InputError
from kit.metrics import statistic


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
    assert max(pieces) == 10
