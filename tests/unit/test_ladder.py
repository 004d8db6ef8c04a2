"""Rules of the ladder: which recipe is tried next, when it ends, and which one wins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge.ladder import BROKEN, SLOWER, Climb, Rung, climb
from edge.measure import Comparison, Figures
from edge.recipes import Recipe
from edge.targets import TARGETS

INT8 = Recipe("int8")
CLIPPED = Recipe("int8-clipped", ranges="clipped")
SMOOTH = Recipe("int8-smooth", smooth=True)
KEEP_1, KEEP_2, KEEP_4 = (Recipe(f"int8-keep-{n}", n_kept=n) for n in (1, 2, 4))
LINEAR = Recipe("int8-linear", activations="dynamic", scope="linear")
LADDER = (INT8, SMOOTH, CLIPPED, KEEP_1, KEEP_2, KEEP_4, LINEAR)


def climbed(
    faults: dict[str, str | None],
    *,
    ladder: Sequence[Recipe] = LADDER,
    layers: Sequence[str] = ("a", "b", "c", "d", "e"),
) -> Climb:
    """Climb with each recipe's fault given by name; one that is not named passes."""

    def attempt(recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        fault = faults.get(recipe.name)
        return Rung(recipe, kept, None, {fault: f"{fault} is wrong"} if fault else {})

    return climb(ladder, attempt=attempt, rank=lambda recipe: layers)


def names(found: Climb) -> list[str]:
    return [rung.recipe.name for rung in found.rungs]


def test_the_first_recipe_that_keeps_every_budget_wins() -> None:
    found = climbed({"int8": "accuracy", "int8-smooth": "accuracy"})
    assert names(found) == ["int8", "int8-smooth", "int8-clipped"]
    assert found.winner is found.rungs[-1]


def test_where_none_does_nothing_wins_and_all_are_told() -> None:
    found = climbed({recipe.name: "accuracy" for recipe in LADDER})
    assert names(found) == [recipe.name for recipe in LADDER]
    assert found.winner is None
    assert all(rung.reason == "accuracy is wrong" for rung in found.rungs)


def test_the_most_sensitive_layers_stay_in_float_more_of_them_each_time() -> None:
    found = climbed({recipe.name: "accuracy" for recipe in LADDER})
    kept = {rung.recipe.name: rung.kept for rung in found.rungs}
    assert kept["int8-keep-1"] == ("a",)
    assert kept["int8-keep-4"] == ("a", "b", "c", "d")
    assert kept["int8"] == kept["int8-linear"] == ()


def test_a_network_with_fewer_layers_is_not_tried_twice_with_the_same() -> None:
    found = climbed({recipe.name: "accuracy" for recipe in LADDER}, layers=("a", "b"))
    assert names(found) == [
        "int8",
        "int8-smooth",
        "int8-clipped",
        "int8-keep-1",
        "int8-keep-2",
        "int8-linear",
    ]


def test_what_only_changes_accuracy_is_not_tried_against_slowness() -> None:
    found = climbed({"int8": SLOWER})
    assert names(found) == ["int8", "int8-linear"]
    assert found.winner is not None
    assert found.winner.recipe is LINEAR


def test_a_slower_recipe_wins_only_where_every_other_fails() -> None:
    found = climbed({"int8": SLOWER, "int8-linear": "accuracy"})
    assert found.winner is found.rungs[0]
    assert found.winner.is_only_slower
    both = climbed({"int8": SLOWER, "int8-linear": SLOWER})
    assert both.winner is both.rungs[0]


def test_a_recipe_that_is_slower_and_wrong_never_wins() -> None:
    def attempt(recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        return Rung(recipe, kept, None, {SLOWER: "slow", "accuracy": "wrong"})

    assert climb((INT8, LINEAR), attempt=attempt, rank=lambda recipe: ()).winner is None


def test_nothing_larger_is_tried_when_size_alone_is_wrong() -> None:
    found = climbed({"int8": "size"})
    assert names(found) == ["int8"]
    assert found.winner is None


def test_an_operator_that_does_not_run_in_8_bits_is_tried_in_float() -> None:
    found = climbed({"int8": BROKEN, "int8-keep-1": BROKEN})
    assert names(found) == ["int8", "int8-keep-1", "int8-keep-2"]


def test_layers_are_ranked_once_and_only_when_they_are_needed() -> None:
    asked: list[str] = []

    def rank(recipe: Recipe) -> Sequence[str]:
        asked.append(recipe.name)
        return ("a", "b", "c", "d")

    def passing(recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        return Rung(recipe, kept, None, {})

    def failing(recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        return Rung(recipe, kept, None, {"accuracy": "wrong"})

    climb(LADDER, attempt=passing, rank=rank)
    assert asked == []
    climb(LADDER, attempt=failing, rank=rank)
    assert asked == ["int8"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_ladder_has_recipes_of_different_names_and_begins_without_exceptions(target) -> None:  # type: ignore[no-untyped-def]
    recipes = [recipe.name for recipe in target.ladder]
    assert len(set(recipes)) == len(recipes)
    assert target.ladder[0].n_kept == 0
    assert all(recipe.says for recipe in target.ladder)


def test_where_the_most_sensitive_layer_makes_no_difference_no_more_layers_are_tried() -> None:
    def figures(error: float) -> Figures:
        return Figures(Comparison("accuracy", 1.0, 0.5, 0.5, 0.5, error, 10), 1, 1)

    def attempt(recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        return Rung(recipe, kept, figures(0.099 if recipe.n_kept else 0.1), {"accuracy": "wrong"})

    found = climb(LADDER, attempt=attempt, rank=lambda recipe: ("a", "b", "c", "d"))
    assert names(found) == ["int8", "int8-smooth", "int8-clipped", "int8-keep-1", "int8-linear"]
