"""Settings of how a version is judged: evaluate, and the gates in front of champion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kit.settings.fields import CommandSettings, Compared, Idle, Metric, Seed, Settings, argument, path


class GatesSettings(Settings):
    """What a candidate must reach before it may be promoted."""

    floors: dict[Metric, float] = Field(
        default_factory=dict, description="Metric to the value it must reach (or stay under, for losses)."
    )
    max_loss: dict[Compared, float] = Field(
        default_factory=dict,
        description="Metric to the most the candidate may be worse than the champion, in the metric's unit; "
        "latency and size to the most they may grow, as a share (1.0 is twice).",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="Confidence of the paired bootstrap interval max_loss is decided on.",
    )
    resamples: int = Field(default=2000, ge=200, le=100_000, description="Resamples of the bootstrap.")
    min_rows: int = Field(
        default=100, ge=10, description="Fewest held-out rows on which max_loss is decided at all."
    )
    seed: Seed = Field(default=0, description="Seed of the bootstrap.")

    @model_validator(mode="after")
    def _losses_are_not_negative(self) -> GatesSettings:
        for name, value in self.max_loss.items():
            if value < 0:
                raise ValueError(f"max_loss.{name} = {value:g} is below 0; it says how much worse is allowed")
        return self


class EvaluateSettings(CommandSettings):
    """Measure a model version, hold it against the gates, and write its card."""

    model: str | None = argument("Model version; the project's candidate when left out.", default=None)
    data: str | None = path("Labelled table to measure on; the held-out rows when left out.", default=None)
    against: str | None = Field(
        default=None, description="Version to compare with; the champion when left out and there is one."
    )
    slices: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Columns by whose values errors are ranked; may be given more than once.",
    )
    cross_validation: Literal["none", "k-fold", "leave-one-out", "grouped", "time-series"] = Field(
        default="none", description="Train the project again on folds and measure each."
    )
    folds: int = Field(default=5, ge=2, le=1000, description="Folds of the cross-validation.")
    learning_curve: bool = Field(
        default=False, description="Train on growing shares of the rows and measure each."
    )
    validation_curve: str | None = Field(
        default=None,
        pattern=r"^(train|parameters)\.\w+=.+$",
        description="Train with each value of one setting: train.learning_rate=0.001,0.01 or "
        "parameters.width=8,16.",
    )
    shap: bool = Field(default=False, description="Explain by SHAP values as well; needs the extra explain.")
    explain_rows: int = Field(
        default=200, ge=1, le=100_000, description="Held-out rows explanations are made on."
    )
    json_report: str | None = path("File for all figures, as JSON.", default=None)
    junit: str | None = path("File for the gates, as JUnit XML.", default=None)
    card: str = path("Model card to write: this name with .md and .html.", default="model-card", min_length=1)
    gates: bool = Field(default=True, description="Whether a failed gate fails the command.")
    threads: int = Field(default=1, ge=1, le=256, description="Threads while measuring.")

    @property
    def idle(self) -> tuple[Idle, ...]:
        """Folds, where none are counted."""
        folded = self.cross_validation not in ("none", "leave-one-out")
        return () if folded else (Idle("folds", "cross_validation", "'k-fold'"),)
