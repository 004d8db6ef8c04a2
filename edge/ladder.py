"""The ladder: which recipe is tried next, and when to stop.

Decides from what earlier recipes showed; what a recipe is made of and how it is measured is for others
(``edge.attempt``). It opens no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.measure import ACCURACY, Figures
from edge.recipes import Recipe

SLOWER = "slower"
"""Fault: slower than float32 in the same engine. It does not rule a recipe out, but others come first."""

BROKEN = "broken"
"""Fault: could not be made, or does not run."""


@dataclass(frozen=True)
class Rung:
    """A recipe that was tried.

    Attributes:
        recipe: How the file was made.
        kept: Layers that stayed in float by its choice.
        figures: What was measured; None where there was nothing to measure.
        faults: Kind of fault to what is said about it; empty when it passed.
    """

    recipe: Recipe
    kept: tuple[str, ...]
    figures: Figures | None
    faults: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether it kept every budget and is no slower than float32."""
        return not self.faults

    @property
    def is_only_slower(self) -> bool:
        """Whether it kept every budget but is slower than float32."""
        return self.faults.keys() == {SLOWER}

    @property
    def reason(self) -> str:
        """Why it did not pass; empty when it did."""
        return "; ".join(self.faults.values())


GAIN = "gain"
"""Fault: neither smaller nor faster than float32."""

_IDLE_SHARE = 0.97

Attempt = Callable[[Recipe, tuple[str, ...]], Rung]
Rank = Callable[[Recipe], Sequence[str]]


@dataclass(frozen=True)
class Climb:
    """What was tried, and what came of it.

    Attributes:
        rungs: The recipes tried, in order.
        winner: The one to ship; None when none kept every budget.
    """

    rungs: tuple[Rung, ...]
    winner: Rung | None


def climb(ladder: Sequence[Recipe], *, attempt: Attempt, rank: Rank) -> Climb:
    """Try recipes until one passes.

    Args:
        ladder: From the smallest to the safest.
        attempt: Makes and measures a recipe; given the layers that stay in float.
        rank: Names the layers of a recipe that could stay in float, the most sensitive first.

    Returns:
        What was tried. The first that passed has won; where none did, the first that was only slower than
        float32, which whoever shows it must say.
    """
    tried: list[Rung] = []
    ranked: Sequence[str] | None = None
    for recipe in ladder:
        if not _can_help(recipe, tried):
            continue
        kept: tuple[str, ...] = ()
        if recipe.n_kept:
            ranked = rank(tried[0].recipe) if ranked is None else ranked
            kept = tuple(ranked[: recipe.n_kept])
            if len(kept) < recipe.n_kept and any(each.kept == kept for each in tried):
                continue  # the network has no more layers than that
        rung = attempt(recipe, kept)
        tried.append(rung)
        if rung.passed:
            return Climb(tuple(tried), rung)
    return Climb(tuple(tried), next((rung for rung in tried if rung.is_only_slower), None))


def _keeping_is_idle(tried: Sequence[Rung]) -> bool:
    """Say whether the most sensitive layer in float has brought the answers no nearer: then it is not one."""
    first = tried[0].figures
    kept = next((rung.figures for rung in tried if rung.recipe.n_kept), None)
    if first is None or kept is None:
        return False
    return kept.comparison.output_error > first.comparison.output_error * _IDLE_SHARE


def _can_help(recipe: Recipe, tried: Sequence[Rung]) -> bool:
    """Say whether a recipe can mend what was wrong with those before it."""
    if not tried:
        return True
    faults = {kind for rung in tried for kind in rung.faults}
    if faults <= {"size"}:
        return False  # later recipes are larger
    if recipe.n_kept and _keeping_is_idle(tried):
        return False
    careful = recipe.n_kept or recipe.smooth or recipe.controlled or recipe.ranges == "clipped"
    if careful and not faults & {ACCURACY, BROKEN}:
        return False  # it is as slow, and needs as much
    if careful and faults <= {BROKEN}:
        return recipe.n_kept > 0  # an operator the engine does not run in 8 bits may run in float
    return True
