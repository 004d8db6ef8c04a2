"""Everything a user can set, declared once.

Each command has one frozen class; the keys of kit.toml, the flags of the command line, the
``--help`` texts and docs/reference.md are derived from it. Order of precedence: defaults, then
kit.toml, then flags. Nothing is read or created on import.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from kit.errors import SettingsError, nearest
from kit.metrics import METRICS
from kit.signature import ClassName, Signature, TensorSpec

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Threads = Annotated[int, Field(ge=0, le=256)]
Metric = Literal["accuracy", "auc", "f1_macro", "log_loss", "rmse", "mae", "r2"]
EngineName = Literal["onnxruntime", "openvino"]  # those that read model.onnx
TargetName = Literal["litert-int8", "openvino-int8"]


S = TypeVar("S", bound="Settings")


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
    """Which key signs, and which keys are trusted."""

    key: str | None = Field(
        default=None, description="Private key (PEM); <state>/keys/signing.pem when left out."
    )
    trusted: str | None = Field(
        default=None, description="Public key, or folder of *.pub; <state>/keys when left out."
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
        "File holding the endpoint's key; <state>/serve/key when left out.", default=None
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

_GENERAL_SECTIONS: dict[str, type[Settings]] = {
    "project": ProjectSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "gates": GatesSettings,
    "store": StoreSettings,
    "signing": SigningSettings,
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


def read_project_file(path: Path) -> ProjectFile:
    """Read and check a kit.toml.

    Raises:
        SettingsError: It is absent, is not TOML, or breaks a rule; the message names the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} does not exist",
            hint="run the command inside a project, or make one: kit init NAME",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path.name} is not valid TOML: {error}", hint="correct that place; strings stand in quotes"
        ) from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    sections = {*_GENERAL_SECTIONS, *COMMAND_SECTIONS}
    for section in raw:
        if section not in sections:
            raise SettingsError(f"{path.name}: [{section}] is not a section", hint=nearest(section, sections))
        if not isinstance(raw[section], dict):
            raise SettingsError(
                f"{path.name}: {section} must be a table, [{section}]", hint=f"write [{section}]"
            )
    for required in ("project", "data", "model"):
        if required not in raw:
            raise SettingsError(
                f"{path.name}: the section [{required}] is missing",
                hint=f"add [{required}]; docs/reference.md describes its keys",
            )
    parts: dict[str, Any] = {
        name: build(cls, raw[name], where=f"{path.name}: [{name}]")
        for name, cls in _GENERAL_SECTIONS.items()
        if name in raw
    }
    _check_task(parts["project"].task, parts.get("gates", GatesSettings()), where=path.name)
    commands = {name: raw[name] for name in COMMAND_SECTIONS if name in raw}
    for name, values in commands.items():
        _check_partial(COMMAND_SECTIONS[name], values, where=f"{path.name}: [{name}]")
    return ProjectFile(**parts, commands=commands)


#: Stands for a required argument while a section is checked alone; every such field accepts it.
_PLACEHOLDER = "path:-"


def build(cls: type[S], values: Mapping[str, Any], *, where: str) -> S:
    """Make one settings object, turning pydantic's findings into one sentence.

    Args:
        cls: The class to make.
        values: Key to value, as TOML or the command line gave them.
        where: What the message shall call the place, for example ``kit.toml: [train]``.

    Raises:
        SettingsError: A key is unknown or missing, or a value breaks its rule.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise _sentence(cls, error, where=where) from error


def _check_task(task: str, gates: GatesSettings, *, where: str) -> None:
    for metric in gates.floors:
        if metric not in METRICS[task]:
            raise SettingsError(
                f"{where}: [gates] floors.{metric} does not measure a {task} project",
                hint=nearest(metric, METRICS[task]),
            )


def _check_partial(cls: type[CommandSettings], values: Mapping[str, Any], *, where: str) -> None:
    """Check a command's section, in which required arguments may still be absent."""
    try:
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        cls.model_validate({**dict.fromkeys(required, _PLACEHOLDER), **values})
    except ValidationError as error:
        raise _sentence(cls, error, where=where) from error


def _sentence(cls: type[Settings], error: ValidationError, *, where: str) -> SettingsError:
    findings = error.errors()
    finding = next((found for found in findings if found["type"] != "missing"), findings[0])
    place = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        owner = _owner(cls, finding["loc"])
        return SettingsError(
            f"{where} does not know the key {place!r}",
            hint=nearest(str(finding["loc"][-1]), owner.model_fields),
        )
    if finding["type"] == "missing":
        return SettingsError(f"{where} needs {place!r}", hint=f"give {place!r} a value")
    if finding["type"] == "literal_error" and finding["loc"][-1] == "[key]":
        valid = finding["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return SettingsError(
            f"{where} does not know {finding['input']!r}", hint=nearest(str(finding["input"]), valid)
        )
    if finding["type"] == "value_error":
        return SettingsError(f"{where}: {finding['ctx']['error']}", hint=_help(cls))
    _, _, rule = finding["msg"].rpartition(" should ")  # "Input should be ...", "String should match ..."
    return SettingsError(f"{where}: {place} = {finding['input']!r}, but it should {rule}", hint=_help(cls))


def _help(cls: type[Settings]) -> str:
    """Say where the keys of a group are described."""
    commands = {each.__name__: name for name, each in COMMAND_SECTIONS.items()}
    if cls.__name__ in commands:
        return f"correct it; kit {commands[cls.__name__]} --help describes every setting"
    return "correct it; docs/reference.md describes every key"


def _owner(cls: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    """Find the class whose key an error's location names: data.inputs.0.nme belongs to InputSettings."""
    return InputSettings if len(location) > 1 and location[0] == "inputs" else cls
