"""The space of a study: which values a trial may get, as kit.toml declares it.

Checks the space against what it varies, lists a grid, samples, and bounds what a population mutates. It knows
nothing of Ray, and of the network only the builder it is handed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from kit.errors import InputError, SettingsError, nearest
from kit.settings import RangeSettings, SpaceSettings, TrainSettings

#: Settings of train that say where and how a run goes on, not what it learns.
FIXED = frozenset(
    {
        *("workers", "min_workers", "threads", "device", "auto_batch", "checkpoint_interval_s"),
        *("parity_tolerance", "golden_rows", "resume", "promote", "address"),
    }
)
#: Settings of train that a training takes over when it goes on from a checkpoint.
LIVELY = frozenset(
    {"learning_rate", "weight_decay", "momentum", "clip_norm", "batch_size", "accumulation_steps"}
)
_MAX_BUILDS = 64  # networks built before Ray starts
_MAX_COMBINATIONS = 4096  # settings of train checked before Ray starts
_MAX_GRID = 10_000
_MAX_INTEGERS = 32

Value = int | float | bool | str
Values = dict[str, Value]


@dataclass(frozen=True)
class Dimension:
    """One thing that varies.

    Attributes:
        name: An argument of the factory or the estimator, or a key of [train].
        of_train: Whether it is a key of [train].
        kind: ``choice``, ``integer``, ``uniform``, ``log`` or ``power_of_two``.
        bounds: The choices, or the two ends, both included.
    """

    name: str
    of_train: bool
    kind: str
    bounds: tuple[Value, ...]

    @property
    def values(self) -> tuple[Value, ...] | None:
        """Every value it may have, in order; None where there are too many to try them all."""
        if self.kind == "choice":
            return self.bounds
        if self.kind not in ("power_of_two", "integer"):
            return None
        low, high = self._ends
        if self.kind == "power_of_two":
            return tuple(2**power for power in range(int(math.log2(low)), int(math.log2(high)) + 1))
        return tuple(range(int(low), int(high) + 1)) if high - low < _MAX_INTEGERS else None

    @property
    def probes(self) -> tuple[Value, ...]:
        """Values that stand for the rest when a space is checked: the ends, or the choices."""
        if self.kind == "choice":
            return self.bounds
        return tuple(float(end) for end in self._ends) if self.kind in ("uniform", "log") else self.bounds

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = self.bounds
        return float(low), float(high)

    def sample(self, random: np.random.Generator) -> Value:
        """Draw a value."""
        if self.kind in ("choice", "power_of_two"):
            values = self.values or ()
            return values[int(random.integers(len(values)))]
        low, high = self._ends
        if self.kind == "integer":
            return int(random.integers(int(low), int(high) + 1))
        if self.kind == "log":
            return self.bounded(math.exp(random.uniform(math.log(low), math.log(high))))
        return float(random.uniform(low, high))

    def bounded(self, value: Any) -> Value:
        """Bring a value that a population has mutated back into the range."""
        if self.kind == "choice":
            return value if value in self.bounds else self.bounds[0]
        low, high = self._ends
        if self.kind == "power_of_two":
            power = round(math.log2(max(float(value), 1.0)))
            return int(2 ** min(max(power, round(math.log2(low))), round(math.log2(high))))
        clipped = min(max(float(value), low), high)
        return round(clipped) if self.kind == "integer" else clipped


@dataclass(frozen=True)
class Space:
    """Everything a study varies, in the order of kit.toml."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, settings: SpaceSettings) -> Space:
        """Read a space from the settings.

        Raises:
            SettingsError: It is empty, names a thing twice, or names a key of train that is unknown or fixed.
        """
        dimensions = [
            *(_dimension(name, each, of_train=False) for name, each in settings.parameters.items()),
            *(_dimension(name, each, of_train=True) for name, each in settings.train.items()),
        ]
        if not dimensions:
            raise SettingsError(
                "[tune.space] varies nothing",
                hint="add for example [tune.space.train] learning_rate = { log = [1e-4, 1e-1] }",
            )
        for name in settings.train:
            tunable = TrainSettings.model_fields.keys() - FIXED
            if name not in tunable:
                said = "cannot be varied" if name in FIXED else "is not a key of [train]"
                raise SettingsError(f"[tune.space.train]: {name!r} {said}", hint=nearest(name, tunable))
            if name in settings.parameters:
                raise SettingsError(
                    f"[tune.space] names {name!r} under both parameters and train",
                    hint="rename the argument of the factory, or leave one of them out",
                )
        return cls(tuple(dimensions))

    def split(self, values: Mapping[str, Value]) -> tuple[Values, Values]:
        """Part a trial's values into arguments of the factory and settings of train."""
        train = {each.name for each in self.dimensions if each.of_train}
        return (
            {name: value for name, value in values.items() if name not in train},
            {name: value for name, value in values.items() if name in train},
        )

    def sample(self, random: np.random.Generator) -> Values:
        """Draw one value of each dimension."""
        return {each.name: each.sample(random) for each in self.dimensions}

    def grid(self) -> list[Values]:
        """List every combination; the last dimension changes fastest.

        Raises:
            SettingsError: A dimension has no finite list of values, or there are too many combinations.
        """
        lists = []
        for each in self.dimensions:
            if each.values is None:
                low, high = each.bounds
                raise SettingsError(
                    f"search = 'grid' cannot try every value of {each.name!r}, {each.kind} = [{low}, {high}]",
                    hint="use choice or power_of_two for it, or search = 'random'",
                )
            lists.append(each.values)
        count = math.prod(len(values) for values in lists)
        if count > _MAX_GRID:
            raise SettingsError(
                f"the grid has {count:,} trials, more than {_MAX_GRID:,}",
                hint="narrow the space, or use search = 'random'",
            )
        names = [each.name for each in self.dimensions]
        return [dict(zip(names, row, strict=True)) for row in itertools.product(*lists)]

    def corners(self) -> list[Values]:
        """Give arguments of the factory that together hold both ends of every range and every choice.

        All first and all last ones, then every other choice with the first ones of all else.

        Raises:
            SettingsError: There are too many choices to try each.
        """
        varied = {each.name: each.probes for each in self.dimensions if not each.of_train}
        first = {name: probes[0] for name, probes in varied.items()}
        found = [first, {name: probes[-1] for name, probes in varied.items()}]
        found += [{**first, name: probe} for name, probes in varied.items() for probe in probes[1:]]
        distinct = [each for index, each in enumerate(found) if each not in found[:index]]
        if len(distinct) > _MAX_BUILDS:
            longest = max(varied, key=lambda name: len(varied[name]))
            raise SettingsError(
                f"[tune.space.parameters] has {len(distinct)} values to try before the study, more than "
                f"{_MAX_BUILDS}; {longest!r} alone has {len(varied[longest])}",
                hint="shorten its list, or use integer or power_of_two, of which the ends are tried",
            )
        return distinct

    def check_train(self, settings: TrainSettings) -> None:
        """Refuse a range with values that train would not take.

        Raises:
            SettingsError: Names the key and the value.
        """
        ours = [each for each in self.dimensions if each.of_train]
        for row in itertools.islice(itertools.product(*(each.probes for each in ours)), _MAX_COMBINATIONS):
            self.train_settings(settings, dict(zip((each.name for each in ours), row, strict=True)))

    def check_metric(self, metric: str) -> None:
        """Refuse a space that changes what is compared.

        Raises:
            SettingsError: Trials weigh their classes differently, and the metric is the weighted loss.
        """
        weighed = any(each.of_train and each.name == "class_weights" for each in self.dimensions)
        if weighed and metric == "validation_loss":
            raise SettingsError(
                "[tune.space.train]: 'class_weights' changes what metric = 'validation_loss' measures, so "
                "its values cannot be compared",
                hint="compare by another metric, such as f1_macro, or leave class_weights out",
            )

    def train_settings(self, settings: TrainSettings, values: Mapping[str, Value]) -> TrainSettings:
        """Put a trial's values into the settings of train.

        Raises:
            SettingsError: A value, or two of them together, break a rule of train.
        """
        _, changed = self.split(values)
        try:
            return TrainSettings.model_validate({**settings.model_dump(), **changed})
        except ValidationError as error:
            finding = error.errors()[0]
            name = str(finding["loc"][0]) if finding["loc"] else ""
            if not name:
                raise SettingsError(
                    f"[tune.space.train]: {finding['ctx']['error']}", hint="narrow one of the ranges"
                ) from error
            _, _, rule = finding["msg"].rpartition(" should ")
            raise SettingsError(
                f"[tune.space.train]: {name} = {changed.get(name)!r}, but it should {rule}",
                hint="use integer or power_of_two for whole numbers; kit train --help describes every key",
            ) from error

    def check_build(self, build: Callable[[Values], Any], *, weights_stay: bool = False) -> None:
        """Try the builder with every choice and both ends of every range.

        Args:
            build: Makes and tries what is fitted, from arguments; gives something that is equal for
                equal weights' shapes.
            weights_stay: Whether every trial must be able to take over the weights of another.

        Raises:
            ProjectError: The builder refuses an argument or a value.
            SettingsError: There are too many choices to try each.
            InputError: A population would have to share weights of different shapes.
        """
        shapes = [build(corner) for corner in self.corners()]
        if weights_stay and any(each != shapes[0] for each in shapes):
            varied = ", ".join(repr(each.name) for each in self.dimensions if not each.of_train)
            raise InputError(
                f"search = 'pbt' copies weights between trials, but {varied} change their shapes",
                hint="vary only what leaves the weights' shapes alone, or use search = 'optuna'",
            )


def _dimension(name: str, settings: RangeSettings, *, of_train: bool) -> Dimension:
    kind, bounds = next(
        (kind, given) for kind in RangeSettings.model_fields if (given := getattr(settings, kind)) is not None
    )
    return Dimension(name, of_train, kind, tuple(bounds))
