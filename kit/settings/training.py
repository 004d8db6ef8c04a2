"""Settings of the model itself and of what fits it: train, tune, compress."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import (
    FUNCTION_PATTERN,
    CommandSettings,
    Idle,
    Metric,
    Scalar,
    Seed,
    Settings,
    argument,
    in_file,
    path,
)


class ModelSettings(Settings):
    """What is fitted: the project's own network, or an estimator of a library."""

    factory: str | None = Field(
        default=None, pattern=FUNCTION_PATTERN, description="module:function that returns a torch.nn.Module."
    )
    estimator: str | None = Field(
        default=None,
        pattern=FUNCTION_PATTERN,
        description="Estimator instead of a network: module:Class of scikit-learn, LightGBM or XGBoost.",
    )
    preprocessing: str | None = Field(
        default=None,
        pattern=FUNCTION_PATTERN,
        description="module:function that returns an unfitted scikit-learn transformer, where "
        "[[prepare.features]] "
        "does not say enough.",
    )
    parameters: dict[str, Scalar] = Field(
        default_factory=dict, description="Keyword arguments of the factory or the estimator."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ModelSettings:
        if (self.factory is None) == (self.estimator is None):
            raise ValueError("name a factory or an estimator, and only one of them")
        return self


class TrainSettings(CommandSettings):
    """Train the project's model and register a candidate."""

    epochs: int = Field(default=30, ge=1, le=100_000, description="Most passes over the training rows.")
    batch_size: int = Field(
        default=64, ge=1, le=1 << 20, description="Rows per step and worker, before accumulation."
    )
    accumulation_steps: int = Field(
        default=1, ge=1, le=1 << 16, description="Batches whose gradients are summed before a step."
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="What moves the weights.")
    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="Largest step size.")
    weight_decay: float = Field(default=1e-4, ge=0, le=10, description="Weight decay.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of sgd.")
    schedule: Literal["constant", "cosine", "linear", "step", "one-cycle", "plateau"] = Field(
        default="constant", description="How the step size changes over the epochs."
    )
    warmup_epochs: int = Field(
        default=0, ge=0, le=10_000, description="Epochs over which the step size grows to learning_rate."
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of the gradients.")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="Arithmetic of the forward pass; fp16 needs a GPU."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations twice instead of keeping them: less memory, more time.",
    )
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        default="none", description="Weight of each class in the loss: none, balanced, or class to weight."
    )
    patience_epochs: int = Field(
        default=8, ge=1, le=100_000, description="Epochs without a better validation loss before stopping."
    )
    seed: Seed = Field(default=0, description="Seed of the weights and of the order of rows.")
    workers: int = Field(default=1, ge=1, le=1024, description="Training processes (data parallel).")
    min_workers: int | None = Field(
        default=None, ge=1, le=1024, description="Fewest workers an elastic training goes on with."
    )
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads per worker.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where workers compute; auto is cuda where the cluster has a GPU per worker.",
    )
    auto_batch: bool = Field(
        default=False,
        description="Halve batch_size and double accumulation_steps when memory runs out, instead of "
        "stopping.",
    )
    checkpoint_interval_s: float = Field(
        default=2.0, ge=0, le=86_400, description="Time between checkpoints."
    )
    parity_tolerance: float = Field(
        default=1e-4,
        gt=0,
        le=0.1,
        description="Largest allowed difference between Python and ONNX, in standard deviations of the "
        "answers; of probabilities as it is.",
    )
    golden_rows: int = Field(default=16, ge=1, le=4096, description="Sample rows kept in the version.")
    resume: bool = Field(
        default=True, description="Continue an interrupted run with the same data and settings."
    )
    promote: bool = Field(default=False, description="Move champion to the candidate when the gates pass.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )

    @model_validator(mode="after")
    def _elastic_range(self) -> TrainSettings:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is above workers = {self.workers}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs} leaves none of epochs = {self.epochs}")
        return self


Number = int | float


class RangeSettings(Settings):
    """The values a study tries for one setting; exactly one kind."""

    choice: tuple[Scalar, ...] | None = Field(
        default=None, strict=False, min_length=1, description="One of these values."
    )
    integer: tuple[int, int] | None = Field(
        default=None, strict=False, description="A whole number between two, both included."
    )
    uniform: tuple[Number, Number] | None = Field(
        default=None, strict=False, description="A number between two."
    )
    log: tuple[Number, Number] | None = Field(
        default=None, strict=False, description="A number between two, by orders of magnitude."
    )
    power_of_two: tuple[int, int] | None = Field(
        default=None, strict=False, description="A power of two between two, both included."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> RangeSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a range has one kind, not {', '.join(given) or 'none'}")
        if given[0] == "choice":
            return self
        low, high = getattr(self, given[0])
        if not low < high:
            raise ValueError(f"{given[0]} = [{low}, {high}] is empty; write the smaller first")
        if given[0] == "log" and low <= 0:
            raise ValueError(f"log = [{low}, {high}] must lie above 0")
        if given[0] == "power_of_two" and (low < 1 or low & (low - 1) or high & (high - 1)):
            raise ValueError(f"power_of_two = [{low}, {high}] must be powers of two")
        return self


class SpaceSettings(Settings):
    """What a study varies."""

    parameters: dict[str, RangeSettings] = Field(
        default_factory=dict, description="Argument of the factory or the estimator to its range."
    )
    train: dict[str, RangeSettings] = Field(
        default_factory=dict, description="Key of [train] to its range, for example learning_rate."
    )


class TuneSettings(CommandSettings):
    """Search the settings that train best, and register the best trial as a candidate."""

    space: SpaceSettings = in_file("What is varied.", default_factory=SpaceSettings)
    search: Literal["grid", "random", "optuna", "pbt"] = Field(
        default="optuna",
        description="How values are chosen: all of them, at random, by Optuna's TPE, or population "
        "based training.",
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        default="asha", description="What stops trials early: nothing, ASHA, or the median rule."
    )
    metric: Literal["validation_loss"] | Metric = Field(
        default="validation_loss", description="What is compared, on the validation rows."
    )
    trials: int = Field(default=20, ge=1, le=100_000, description="Most trials; a grid runs all of its own.")
    concurrent: int = Field(default=0, ge=0, le=4096, description="Trials at a time; 0 is as many as fit.")
    time_budget_s: float | None = Field(
        default=None, gt=0, description="Time after which no trial goes on; what has finished counts."
    )
    grace_epochs: int = Field(default=3, ge=1, description="Epochs no trial is stopped before.")
    reduction_factor: int = Field(
        default=3, ge=2, le=16, description="ASHA goes on with one trial in so many."
    )
    perturb_epochs: int = Field(
        default=4, ge=1, description="Epochs between changes of the population, for pbt."
    )
    seed: Seed = Field(default=0, description="Seed of the search.")
    storage: str | None = path(
        "Folder or s3:// address of studies; <state>/tune when left out.", default=None
    )
    resume: bool = Field(
        default=True, description="Continue an interrupted study of the same data and settings."
    )
    promote: bool = Field(default=False, description="Move champion to the candidate when the gates pass.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )


#: What each method of compression is decided by, besides the parent and the fine-tuning.
DECIDES: dict[str, tuple[str, ...]] = {
    "prune": ("ratio",),
    "distill": ("student", "temperature", "teacher_weight"),
    "quantize": ("temperature", "teacher_weight"),
}


class CompressSettings(CommandSettings):
    """Make a model smaller or easier to quantise, and register the result as a candidate."""

    model: str = argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    method: Literal["prune", "distill", "quantize"] = Field(
        default="prune",
        description="Remove channels, teach a smaller network, or train for INT8 arithmetic.",
    )
    ratio: float = Field(default=0.5, gt=0, lt=1, description="Share of the channels that prune removes.")
    student: dict[str, Scalar] = in_file(
        "Arguments of the factory that make the smaller network, for distill.", default_factory=dict
    )
    temperature: float = Field(
        default=1.0, gt=0, le=100, description="Softness of the parent's answers, for distill and quantize."
    )
    teacher_weight: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the parent's answers in the loss, for distill and quantize; the rest is the "
        "labels'.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most passes over the training rows; those of [train] when left out.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Largest step size; when left out that of [train] for distill, a third of it for prune, "
        "a tenth for quantize.",
    )
    resume: bool = Field(default=True, description="Continue an interrupted run.")
    promote: bool = Field(default=False, description="Move champion to the candidate when the gates pass.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What the method does not use."""
        users: dict[str, list[str]] = {}
        for method, names in DECIDES.items():
            for name in names:
                users.setdefault(name, []).append(method)
        return tuple(
            Idle(name, "method", " or ".join(map(repr, methods)))
            for name, methods in users.items()
            if self.method not in methods
        )
