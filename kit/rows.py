"""Rows of a project, and how they fall into parts: a hold-out, or the folds of a cross-validation.

Every choice depends on the rows and [data] alone, and is looked through for leakage. Where rows come from and
how they are cleaned is ``kit.data``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kit.bootstrap import INDEPENDENT, Draw
from kit.cleaning import Change
from kit.errors import InputError, SettingsError
from kit.leakage import Evidence, check_leakage
from kit.manifest import Manifest
from kit.settings.data import DataSettings
from kit.splits import (
    Positions,
    cut_groups,
    cut_random,
    cut_time,
    group_folds,
    k_folds,
    leave_one_out,
    time_folds,
)
from kit.tensors import ClassName, Tensors
from kit.times import NO_GAP, Gap

if TYPE_CHECKING:
    import pyarrow as pa

SplitKind = Literal["random", "stratified", "grouped", "time"]
FoldKind = Literal["k-fold", "leave-one-out", "grouped", "time-series"]
#: The only folds that keep what a split keeps.
_FOLDS_OF: dict[SplitKind, FoldKind] = {"grouped": "grouped", "time": "time-series"}


@dataclass(frozen=True)
class Part:
    """Some of the rows.

    Attributes:
        tensors: Input name to array, shape (n_rows, ...).
        labels: Class indices (int64) or values (float32), shape (n_rows,).
        rows: Row numbers in the raw table, from 0, shape (n_rows,).
    """

    tensors: Tensors
    labels: np.ndarray
    rows: np.ndarray

    def take(self, positions: np.ndarray) -> Part:
        """Give some of the rows, by their position in this part."""
        return Part(
            {name: array[positions] for name, array in self.tensors.items()},
            self.labels[positions],
            self.rows[positions],
        )


@dataclass(frozen=True)
class Split:
    """A project's rows in their three parts.

    Attributes:
        train: What the weights and the preprocessing are fitted on.
        validation: What early stopping watches.
        test: What the metrics, the gates and every comparison are measured on.
        classes: The classes in the order of their indices; empty for regression.
        fingerprint: The sha256 that names the data.
        n_rows: Rows of the raw table.
        changes: What cleaning and splitting did to the rows, in order.
        leakage: What was looked for between the parts: ``check``, ``found``, ``detail``.
        n_files: Files of the data set.
        size_bytes: Their sizes together.
        draw: Which of the test rows a bootstrap draws together.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[ClassName, ...]
    fingerprint: str
    n_rows: int
    changes: tuple[Change, ...] = ()
    leakage: tuple[Mapping[str, Any], ...] = ()
    n_files: int = 0
    size_bytes: int = 0
    draw: Draw = INDEPENDENT


@dataclass(frozen=True)
class Rows:
    """A project's rows, cleaned and not yet split. Positions count from 0 in them.

    Attributes:
        everything: All rows as tensors and labels.
        table: The same rows with all columns, windows included.
        classes: The classes in the order of their indices; empty for regression.
        manifest: Of the data they were read from.
        changes: What the steps so far did.
        settings: How they are split.
        evidence: What no two parts may share; its times order the rows, and its groups keep them together.
        raw: The table as it was read.
        gap: Time left out before a later part.
    """

    everything: Part
    table: pa.Table
    classes: tuple[ClassName, ...]
    manifest: Manifest
    changes: tuple[Change, ...]
    settings: DataSettings
    evidence: Evidence
    raw: pa.Table
    gap: Gap = NO_GAP

    @property
    def kind(self) -> SplitKind:
        """How they are split."""
        return self.settings.split or ("stratified" if self.classes else "random")

    def hold_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the positions to train on, to validate and to hold out, as [data] says.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
        """
        settings = self.settings
        positions = np.arange(len(self.everything.rows))
        try:
            rest, test = self._cut(positions, settings.test_fraction, kind=self.kind, leave=2)
            train, validation = self._cut(rest, settings.validation_fraction, kind=self.kind)
        except InputError as error:
            raise InputError(
                f"{len(positions)} rows cannot be split by test_fraction = {settings.test_fraction} and "
                f"validation_fraction = {settings.validation_fraction}: {error}",
                hint="collect more rows or change the fractions"
                + (", the gap" if self.kind == "time" and self.gap.length else ""),
            ) from error
        return train, validation, test

    def carve(self, positions: np.ndarray, *, kind: SplitKind | None = None) -> Positions:
        """Choose validation rows among the rows a fold trains on.

        Args:
            positions: Of the fold's training rows.
            kind: How; as [data] says when None.

        Returns:
            The positions to train on and those to validate on.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
        """
        fraction = self.settings.validation_fraction
        try:
            return self._cut(positions, fraction, kind=kind or self.kind)
        except SettingsError:
            raise
        except InputError as error:
            raise InputError(
                f"{len(positions)} training rows cannot be split by validation_fraction = {fraction}: "
                f"{error}",
                hint="collect more rows, set fewer folds or another fraction",
            ) from error

    def folds(self, kind: FoldKind, *, n_folds: int) -> Iterator[Positions]:
        """Yield the training and the test positions of each fold of a cross-validation.

        Args:
            kind: k-fold keeps the shares of the classes; time-series trains on the past alone.
            n_folds: How many; leave-one-out has one per row whatever this says.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
            SettingsError: [data] group or time is needed, or the folds would cut through what [data] split
                keeps together.
        """
        needed = _FOLDS_OF.get(self.kind, kind)
        if kind != needed:
            kept = "groups together" if needed == "grouped" else "the rows that are learned from earlier"
            raise SettingsError(
                f"{kind} folds do not keep {kept}, as split = {self.kind!r} under [data] asks for",
                hint=f"use {needed} folds: --cross-validation {needed}",
            )
        n_rows = len(self.everything.rows)
        if kind == "leave-one-out":
            return leave_one_out(n_rows)
        if kind == "grouped":
            return group_folds(self._needed_groups(), n_folds=n_folds)
        if kind == "time-series":
            return time_folds(self._needed_times(), n_folds=n_folds, gap=self.gap, say=self._moment)
        strata = self.everything.labels if self.classes else None
        return k_folds(n_rows, n_folds=n_folds, seed=self.settings.seed, strata=strata)

    def split(self, *, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Split:
        """Put rows into three parts, and look for what crosses between them.

        Args:
            train: Positions of what is fitted on.
            validation: Positions of what early stopping watches.
            test: Positions of what is measured on.

        Raises:
            InputError: An id, a time or a group that stays together is in two parts, a window reaches
                across them, or a class has no training row.
        """
        parts = {"train": train, "validation": validation, "test": test}
        leakage = check_leakage(self.evidence, parts)
        self._require_classes(train)
        changes = self.changes
        n_rows, n_left = len(self.everything.rows), sum(len(positions) for positions in parts.values())
        if n_left < n_rows:
            detail = f"{n_rows - n_left} rows are in no part"
            if self.gap.length:
                detail += f", because of the gap of {self.gap.written}"
            changes = (*changes, Change("split", self.settings.time, n_rows, n_left, n_rows - n_left, detail))
        return Split(
            train=self.everything.take(train),
            validation=self.everything.take(validation),
            test=self.everything.take(test),
            classes=self.classes,
            fingerprint=self.manifest.fingerprint,
            n_rows=self.manifest.n_rows,
            changes=changes,
            leakage=leakage,
            n_files=self.manifest.n_files,
            size_bytes=self.manifest.size_bytes,
            draw=self._draw(test),
        )

    def _draw(self, positions: np.ndarray) -> Draw:
        """Say which rows a bootstrap draws together: those that the split keeps together."""
        if self.kind == "grouped":
            return Draw.of_groups(self._needed_groups()[positions])
        if self.kind == "time":
            return Draw.of_times(self._needed_times()[positions])
        return INDEPENDENT

    def _cut(self, candidates: np.ndarray, fraction: float, *, kind: SplitKind, leave: int = 1) -> Positions:
        seed = self.settings.seed
        if kind == "time":
            times, gap = self._needed_times(), self.gap
            return cut_time(
                candidates, times=times, fraction=fraction, gap=gap, leave=leave, say=self._moment
            )
        if kind == "grouped":
            groups = self._needed_groups()[candidates]
            return cut_groups(candidates, groups=groups, fraction=fraction, seed=seed, leave=leave)
        strata = self.everything.labels[candidates] if kind == "stratified" else None
        return cut_random(candidates, fraction=fraction, seed=seed, strata=strata)

    def _needed_groups(self) -> np.ndarray:
        if self.evidence.groups is None:
            raise SettingsError(
                "rows are to stay together by group, but [data] names none", hint="set group under [data]"
            )
        return self.evidence.groups

    def _needed_times(self) -> np.ndarray:
        if self.evidence.times is None:
            raise SettingsError(
                "rows are to be ordered by time, but [data] names none", hint="set time under [data]"
            )
        return self.evidence.times

    def _moment(self, position: int) -> str:
        """Say when a row was, as its table does."""
        return str(self.table.column(self.evidence.time)[position].as_py())

    def _require_classes(self, train: np.ndarray) -> None:
        if not self.classes:
            return
        counts = np.bincount(self.everything.labels[train], minlength=len(self.classes))
        if not counts.min():
            raise InputError(
                f"class {self.classes[int(counts.argmin())]!r} of the label {self.settings.label!r} has no "
                "row in the training part",
                hint="collect more rows of the class, drop it, or split in another way",
            )
