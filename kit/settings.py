"""Everything a user can set, declared once.

Each command has one frozen class; the keys of kit.toml, the flags of the command line, the
``--help`` texts and docs/reference.md are derived from it. Order of precedence: defaults, then
kit.toml, then flags. Nothing is read here; ``kit.project_file`` fills these classes from a file or
from flags and says in a sentence what is wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from kit.signature import ClassName, Signature, TensorSpec

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Threads = Annotated[int, Field(ge=0, le=256)]
Metric = Literal["accuracy", "auc", "f1_macro", "log_loss", "rmse", "mae", "r2"]
EngineName = Literal["onnxruntime", "openvino"]  # those that read model.onnx
TargetName = Literal["litert-int8", "openvino-int8"]


class Settings(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class InputSettings(Settings):
    """One model input: a tensor and the table columns it is made of."""

    name: str = Field(min_length=1, description="Name of the tensor.")
    dtype: Literal["float32", "float64", "int64", "int32", "uint8", "bool", "string"] = Field(
        default="float32", description="Type of its values."
    )
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, strict=False, description="Shape of one row; [number of columns] when left out."
    )
    columns: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="Columns it is stacked from: scalar columns, or one of lists; its name when left out.",
    )
    nullable: bool = Field(default=False, description="Whether missing values are allowed.")
    minimum: float | None = Field(default=None, description="Smallest allowed value, inclusive.")
    maximum: float | None = Field(default=None, description="Largest allowed value, inclusive.")

    @model_validator(mode="after")
    def _consistent(self) -> InputSettings:
        spec = self.spec()
        if len(spec.columns) not in (1, spec.row_size):
            raise ValueError(
                f"input {self.name!r}: shape {list(spec.row_shape)} holds {spec.row_size} values, but "
                f"{len(spec.columns)} columns are named; name 1 or {spec.row_size}"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"input {self.name!r}: minimum {self.minimum:g} is above maximum {self.maximum:g}"
            )
        if self.dtype in ("string", "bool") and (self.minimum, self.maximum) != (None, None):
            raise ValueError(f"input {self.name!r}: a {self.dtype} has no minimum or maximum")
        if self.nullable and self.dtype not in ("float32", "float64", "string"):
            raise ValueError(
                f"input {self.name!r}: {self.dtype} cannot hold missing values; use float32 or string"
            )
        return self

    def spec(self) -> TensorSpec:
        """Give the tensor's specification, with what was left out filled in."""
        columns = self.columns or (self.name,)
        return TensorSpec(
            name=self.name,
            dtype=self.dtype,
            shape=(-1, *(self.shape or (len(columns),))),
            columns=columns,
            nullable=self.nullable,
            minimum=self.minimum,
            maximum=self.maximum,
        )


class ProjectSettings(Settings):
    """What the project is called and where it keeps its state."""

    name: Name = Field(description="Name under which its models are registered.")
    task: Literal["classification", "regression"] = Field(
        default="classification", description="What the model answers."
    )
    state: str = Field(
        default=".kit", min_length=1, description="Folder of the registry, the runs and the caches."
    )


class DataSettings(Settings):
    """The table the model learns from."""

    path: str = Field(min_length=1, description="Parquet or CSV file, folder of them, or s3:// address.")
    label: str = Field(min_length=1, description="Column to predict.")
    inputs: tuple[InputSettings, ...] = Field(min_length=1, strict=False, description="The model's inputs.")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows held out.")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the remaining rows that early stopping watches."
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the split.")

    @model_validator(mode="after")
    def _no_overlap(self) -> DataSettings:
        names = [spec.name for spec in self.inputs]
        columns = [column for spec in self.inputs for column in spec.spec().columns]
        for kind, values in (("input", names), ("column", columns)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{kind} {sorted(twice)[0]!r} is named twice")
        if self.label in columns:
            raise ValueError(f"the label {self.label!r} is also an input column, so the model would see it")
        return self


class ModelSettings(Settings):
    """The project's Python: what builds the network and its preprocessing."""

    factory: str = Field(
        pattern=r"^[\w.]+:\w+$", description="module:function that returns a torch.nn.Module."
    )
    preprocessing: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function that returns an unfitted scikit-learn transformer; none by default.",
    )
    parameters: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="Keyword arguments of the factory."
    )


class GatesSettings(Settings):
    """What a candidate must reach before it may be promoted."""

    floors: dict[Metric, float] = Field(
        default_factory=dict, description="Metric to the value it must reach (or stay under, for losses)."
    )


class StoreSettings(Settings):
    """Where the files of model versions lie."""

    uri: str | None = Field(
        default=None, description="Folder or s3://bucket/prefix; <state>/store when left out."
    )


class SigningSettings(Settings):
    """Which key signs, and whose signatures are believed."""

    key: str | None = Field(
        default=None, description="Private key (PEM); <state>/keys/signing.pem when left out."
    )
    trusted: str | None = Field(
        default=None,
        description="Public key, or folder of *.pub, all trusted; the signing key's own .pub when left out.",
    )


class CommandSettings(Settings):
    """Settings of one command. ``POSITIONAL`` names the fields that are arguments, not flags."""


def _argument(description: str, *, path: bool = False, **more: Any) -> Any:
    return Field(description=description, json_schema_extra={"positional": True, "path": path}, **more)


def _path(description: str, **more: Any) -> Any:
    return Field(description=description, json_schema_extra={"path": True}, **more)


def is_marked(field: FieldInfo, mark: str) -> bool:
    """Say whether a field is an argument (``positional``) or names a place (``path``).

    A relative place is relative to the project; one typed on the command line, to the folder it
    was typed in.
    """
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(mark))


class InitSettings(CommandSettings):
    """Write a runnable project."""

    name: str = _argument("Folder to make; its last part is the project's name.", min_length=1)
    template: Literal["digits", "tabular"] = Field(
        default="digits",
        description="digits (images, a small CNN) or tabular (columns, preprocessing, an MLP).",
    )


class DoctorSettings(CommandSettings):
    """Tell what this machine has, and what to install for what is missing."""


class KeysSettings(CommandSettings):
    """Make or show the key that signs."""

    action: Literal["init", "show"] = _argument("init makes a key pair; show prints the key's id and place.")


class TrainSettings(CommandSettings):
    """Train the project's model and register a candidate."""

    epochs: int = Field(default=30, ge=1, le=100_000, description="Most passes over the training rows.")
    batch_size: int = Field(default=64, ge=1, le=1 << 20, description="Rows per step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="Step size of AdamW.")
    weight_decay: float = Field(default=1e-4, ge=0, le=10, description="Weight decay of AdamW.")
    patience_epochs: int = Field(
        default=8, ge=1, le=100_000, description="Epochs without a better validation loss before stopping."
    )
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Seed of the weights and of the order of rows."
    )
    workers: int = Field(default=1, ge=1, le=1024, description="Training processes (data parallel).")
    threads: int = Field(default=1, ge=1, le=256, description="CPU threads per worker.")
    parity_tolerance: float = Field(
        default=1e-4, gt=0, le=0.1, description="Largest allowed difference between Python and ONNX."
    )
    golden_rows: int = Field(default=16, ge=1, le=4096, description="Sample rows kept in the version.")
    resume: bool = Field(
        default=True, description="Continue an interrupted run with the same data and settings."
    )
    promote: bool = Field(default=False, description="Move champion to the candidate when the gates pass.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )


class ModelsSettings(CommandSettings):
    """List, inspect and promote model versions."""

    action: Literal["list", "show", "promote", "rollback", "verify", "log"] = _argument("What to do.")
    reference: str | None = _argument("Model or version: digits, digits@champion, digits@3.", default=None)
    alias: str = Field(default="champion", description="Alias that promote and rollback move.")
    expect: str | None = Field(
        default=None, description="Digest the alias must stand on now, or the move is refused."
    )
    gates: bool = Field(default=True, description="Whether promoting to champion asks the gates.")


class PredictSettings(CommandSettings):
    """Predict every row of a table."""

    model: str = _argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    input: str = _path("Parquet or CSV file, folder of them, or s3:// address.", min_length=1)
    output: str = _path("Folder for the Parquet parts and the report.", min_length=1)
    engine: EngineName = Field(default="onnxruntime", description="What runs the model.")
    columns: tuple[str, ...] = Field(
        default=(), strict=False, description="Input columns to keep beside the answers."
    )
    outputs: tuple[str, ...] = Field(
        default=("label", "probabilities", "value"),
        strict=False,
        min_length=1,
        description="Which of the model's outputs to write.",
    )
    workers: int = Field(default=0, ge=0, le=4096, description="Actors; 0 is one per CPU.")
    threads: Threads = Field(default=1, description="Engine threads per actor; 0 is the engine's choice.")
    batch_rows: int = Field(default=1024, ge=1, le=1 << 20, description="Rows per call of the engine.")
    shard_rows: int = Field(default=250_000, ge=1, le=1 << 30, description="Rows per output part.")
    address: str | None = Field(
        default=None, description="Ray cluster to run on; a Ray on this machine when left out."
    )


class ServeSettings(CommandSettings):
    """Serve a model over HTTP until interrupted."""

    model: str = _argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    replicas: int = Field(default=1, ge=1, le=1024, description="Replicas of the endpoint.")
    engine: EngineName = Field(default="onnxruntime", description="What runs the model.")
    threads: Threads = Field(default=1, description="Engine threads per replica; 0 is the engine's choice.")
    max_body_mb: float = Field(default=16, gt=0, le=1024, description="Largest request body, in MB.")
    max_ongoing_requests: int = Field(
        default=256, ge=1, le=1 << 16, description="Requests one replica holds at a time."
    )
    auth: Literal["key", "none"] = Field(
        default="key", description="key asks for the endpoint's key; none answers this machine alone."
    )
    ingress: Literal["auto", "haproxy", "python"] = Field(
        default="auto", description="HTTP proxy of Ray Serve; auto is haproxy where it is installed."
    )

    @model_validator(mode="after")
    def _closed_by_default(self) -> ServeSettings:
        if self.auth == "none" and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(
                f"host {self.host!r} is reachable from outside and auth is 'none'; use auth = 'key'"
            )
        return self


class QuerySettings(CommandSettings):
    """Ask an endpoint about the rows of a table and print the answers."""

    model: str = _argument("Name of the served model.", min_length=1)
    input: str = _path("Parquet, CSV or JSON Lines file with the rows.", min_length=1)
    url: str = Field(
        default="http://127.0.0.1:8000", pattern=r"^https?://", description="Where the endpoint listens."
    )
    rows: int = Field(default=5, ge=1, description="Rows to ask about; the first of the table.")
    timeout_s: float = Field(default=10.0, gt=0, le=3600, description="Longest wait for an answer.")
    api_key: str | None = _path(
        "File holding the endpoint's key; when left out, <state>/serve/key if --url is this machine.",
        default=None,
    )


class ExportSettings(CommandSettings):
    """Build signed INT8 bundles and measure them against the reference."""

    model: str = _argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    target: tuple[TargetName, ...] = Field(
        default=("litert-int8", "openvino-int8"),
        strict=False,
        min_length=1,
        description="What to build; may be given more than once.",
    )
    output: str = _path("Folder for the bundles.", default="bundles", min_length=1)
    release: int = Field(default=1, ge=1, description="Counter a device never goes back on.")
    calibration_rows: int = Field(
        default=200, ge=10, le=100_000, description="Training rows the ranges are taken from."
    )
    max_metric_drop: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Most the metric may fall below the reference's; a loss may rise by this share of it.",
    )
    max_output_error: float = Field(
        default=0.05,
        gt=0,
        le=10,
        description="Largest mean output error, in standard deviations of the reference's outputs.",
    )
    max_size_mb: float = Field(default=64.0, gt=0, description="Largest bundle, in MB.")
    max_latency_ms: float = Field(default=100.0, gt=0, description="Largest median latency of a row, in ms.")
    threads: int = Field(default=1, ge=1, le=256, description="Threads while measuring.")


class FlashSettings(CommandSettings):
    """Put a bundle on a device folder."""

    bundle: str = _argument("Bundle file.", path=True, min_length=1)
    device: str = _argument("Where to: path:FOLDER.", pattern=r"^path:.+$")


class SubmitSettings(CommandSettings):
    """Run train or predict as a job on a Ray cluster, and follow it."""

    address: str = Field(
        default="http://127.0.0.1:8265", pattern=r"^https?://", description="Ray dashboard of the cluster."
    )
    attach: str | None = Field(
        default=None, description="Follow the job with this id instead of starting one."
    )
    wait: bool = Field(default=True, description="Follow the job's log until it ends.")
    timeout_s: float = Field(default=10.0, gt=0, le=600, description="Longest wait for an answer.")
    python: str | None = Field(
        default=None, pattern=r"^/", description="Interpreter on the cluster; here, this one when left out."
    )
    command: tuple[str, ...] = _argument(
        "The command after --: train ... or predict ...", default=(), strict=False
    )


class ReportSettings(CommandSettings):
    """Write one self-contained page about everything the project has run."""

    output: str = _path("File to write.", default="report.html", min_length=1)


#: Sections of kit.toml that hold a command's settings.
COMMAND_SECTIONS: dict[str, type[CommandSettings]] = {
    "train": TrainSettings,
    "predict": PredictSettings,
    "serve": ServeSettings,
    "query": QuerySettings,
    "export": ExportSettings,
    "flash": FlashSettings,
    "submit": SubmitSettings,
    "report": ReportSettings,
}


class ProjectFile(Settings):
    """A whole kit.toml, checked."""

    project: ProjectSettings
    data: DataSettings
    model: ModelSettings
    gates: GatesSettings = GatesSettings()
    store: StoreSettings = StoreSettings()
    signing: SigningSettings = SigningSettings()
    commands: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Command to the settings the file gives it."
    )

    def input_signature(self) -> tuple[TensorSpec, ...]:
        """Give the specifications of the model's inputs."""
        return tuple(spec.spec() for spec in self.data.inputs)

    def signature(self, classes: tuple[ClassName, ...]) -> Signature:
        """Give the model's whole signature.

        Args:
            classes: The classes found in the label, in the order of their indices; empty for
                regression.
        """
        if self.project.task == "regression":
            outputs: tuple[TensorSpec, ...] = (TensorSpec("value", "float32", (-1,)),)
        else:
            outputs = (
                TensorSpec("label", "int64", (-1,), classes=classes),
                TensorSpec("probabilities", "float32", (-1, len(classes))),
                TensorSpec("logits", "float32", (-1, len(classes))),
            )
        return Signature(self.project.task, self.input_signature(), outputs)
