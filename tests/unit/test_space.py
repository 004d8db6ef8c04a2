"""The space of a study: what is refused before anything starts, and which values come out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.tuning.space import Space
from kit.errors import InputError, SettingsError
from kit.settings import SpaceSettings, TrainSettings


def space(*, parameters: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> Space:
    return Space.of(SpaceSettings.model_validate({"parameters": parameters or {}, "train": train or {}}))


WIDE = {
    "parameters": {
        "width": {"power_of_two": [8, 64]},
        "kind": {"choice": ["relu", "gelu"]},
        "depth": {"integer": [1, 3]},
        "dropout": {"uniform": [0.0, 0.5]},
    },
    "train": {"learning_rate": {"log": [1e-4, 1e-1]}},
}
TRAIN = {"batch_size": {"choice": [8, 16, 32]}}


def test_a_space_that_varies_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="varies nothing"):
        space()


def test_an_unknown_setting_of_train_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="'learning_rat' is not a key") as caught:
        space(train={"learning_rat": {"log": [1e-4, 1e-1]}})
    assert "did you mean 'learning_rate'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["workers", "promote", "address"])
def test_a_setting_that_says_where_a_training_runs_cannot_be_varied(name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}' cannot be varied"):
        space(train={name: {"choice": [1, 2]}})


def test_a_name_stands_under_parameters_or_under_train() -> None:
    twice = {"seed": {"choice": [1, 2]}}
    with pytest.raises(SettingsError, match="'seed' under both"):
        space(parameters=twice, train=twice)


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("momentum", {"uniform": [0.5, 1.0]}, "momentum = 1.0, but it should be less than 1"),
        ("batch_size", {"log": [16, 256]}, "batch_size = 16.0, but it should be a valid integer"),
        ("optimizer", {"choice": ["adamw", "adam"]}, "optimizer = 'adam', but it should be"),
        ("warmup_epochs", {"integer": [0, 40]}, "warmup_epochs = 40 leaves none of epochs = 30"),
    ],
)
def test_a_range_with_a_value_train_does_not_take_is_refused(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        space(train={name: values}).check_train(TrainSettings())


def test_two_ranges_that_break_a_rule_together_are_refused() -> None:
    both = space(train={"warmup_epochs": {"integer": [0, 9]}, "epochs": {"integer": [8, 30]}})
    with pytest.raises(SettingsError, match="warmup_epochs = 9 leaves none of epochs = 8"):
        both.check_train(TrainSettings())


def test_every_drawn_value_lies_in_its_range_and_has_its_type() -> None:
    wide, random = space(**WIDE), np.random.default_rng(0)
    drawn = [wide.sample(random) for _ in range(300)]
    assert {each["width"] for each in drawn} == {8, 16, 32, 64}
    assert {each["kind"] for each in drawn} == {"relu", "gelu"}
    assert {each["depth"] for each in drawn} == {1, 2, 3}
    assert all(type(each["depth"]) is int and type(each["width"]) is int for each in drawn)
    assert all(0.0 <= each["dropout"] <= 0.5 for each in drawn)
    rates = [each["learning_rate"] for each in drawn]
    assert 1e-4 <= min(rates) < 3e-4
    assert 0.03 < max(rates) <= 1e-1
    assert 0.3 < np.mean(np.array(rates) < 10**-2.5) < 0.7  # as many below the geometric middle as above


def test_a_grid_holds_every_combination_once() -> None:
    grid = space(
        parameters={"width": {"power_of_two": [8, 32]}, "deep": {"choice": [True, False]}},
        train={"epochs": {"integer": [1, 2]}},
    ).grid()
    assert len(grid) == 12
    assert len({tuple(each.items()) for each in grid}) == 12
    assert grid[0] == {"width": 8, "deep": True, "epochs": 1}


def test_a_grid_refuses_a_range_without_a_list_of_values() -> None:
    with pytest.raises(SettingsError, match=r"every value of 'dropout', uniform = \[0.0, 0.5\]") as caught:
        space(**WIDE).grid()
    assert "random" in str(caught.value.hint)


def test_a_grid_too_large_to_run_is_refused_with_its_size() -> None:
    large = {name: {"integer": [1, 30]} for name in ("a", "b", "c")}
    with pytest.raises(SettingsError, match="27,000 trials"):
        space(parameters=large).grid()


def test_the_corners_hold_both_ends_of_every_range_and_every_choice() -> None:
    corners = list(space(**WIDE).corners())
    assert {each["width"] for each in corners} == {8, 64}
    assert {each["dropout"] for each in corners} == {0.0, 0.5}
    assert {each["kind"] for each in corners} == {"relu", "gelu"}


def test_every_choice_is_built_once_before_a_study() -> None:
    built: list[Any] = []
    long = space(parameters={"kind": {"choice": list(range(40))}, "width": {"integer": [1, 9]}}, train=TRAIN)
    long.check_build(built.append)
    assert {each["kind"] for each in built} == set(range(40))
    assert {(0, 1), (39, 9), (0, 9)} <= {(each["kind"], each["width"]) for each in built}
    assert len(built) == 42
    built.clear()
    space(train=TRAIN).check_build(built.append)
    assert built == [{}]


def test_more_choices_than_can_be_built_are_refused() -> None:
    with pytest.raises(SettingsError, match="'kind' alone has 70"):
        space(parameters={"kind": {"choice": list(range(70))}}).check_build(lambda values: None)


def test_a_population_whose_weights_differ_in_shape_is_refused() -> None:
    wide = space(**WIDE)
    wide.check_build(lambda values: values["width"])
    with pytest.raises(InputError, match="copies weights between trials"):
        wide.check_build(lambda values: values["width"], weights_stay=True)


def test_weights_of_classes_are_not_compared_by_the_loss_they_weigh() -> None:
    weighed = space(train={"class_weights": {"choice": ["none", "balanced"]}})
    with pytest.raises(
        SettingsError, match="'class_weights' changes what metric = 'validation_loss' measures"
    ):
        weighed.check_metric("validation_loss")
    weighed.check_metric("f1_macro")
    space(parameters={"class_weights": {"choice": [1, 2]}}).check_metric("validation_loss")


def test_a_mutated_value_stays_in_its_range() -> None:
    wild = {"width": 77, "kind": "relu", "depth": 3.6, "dropout": 0.6, "learning_rate": 1e-5}
    assert {each.name: each.bounded(wild[each.name]) for each in space(**WIDE).dimensions} == {
        "width": 64,
        "kind": "relu",
        "depth": 3,
        "dropout": 0.5,
        "learning_rate": 1e-4,
    }
