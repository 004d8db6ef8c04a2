"""What every settings class is made of: the frozen root, shared types, marks on fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
FUNCTION_PATTERN = r"^[\w.]+:\w+$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Threads = Annotated[int, Field(ge=0, le=256)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Scalar = int | float | bool | str
Metric = Literal[
    "accuracy",
    "auc",
    "average_precision",
    "calibration_error",
    "f1_macro",
    "f1_weighted",
    "log_loss",
    "precision_macro",
    "recall_macro",
    "mae",
    "mape",
    "mse",
    "r2",
    "rmse",
]
#: What a candidate is held against the champion by: its metrics and its costs.
Compared = Literal[Metric, "latency", "size"]
EngineName = Literal["onnxruntime", "openvino"]  # those that read model.onnx
TargetName = Literal[
    "litert-int8",
    "litert-int8-linear",
    "litert-int16x8",
    "litert-float16",
    "litert-float32",
    "openvino-int8",
    "openvino-float16",
    "onnx-int8",
    "onnx-float16",
    "onnx-float32",
    "tensorrt-fp16",
    "tensorrt-int8",
    "all",
]


class Settings(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Idle:
    """A setting that does nothing, because of what another one is.

    Attributes:
        name: Of the setting.
        because: Name of the other one.
        needed: What the other one has to be instead, in words.
    """

    name: str
    because: str
    needed: str


class CommandSettings(Settings):
    """Settings of one command."""

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing with the other settings; to give one of these is a mistake."""
        return ()


def argument(description: str, *, path: bool = False, **more: Any) -> Any:
    """Declare a field that is typed as an argument, not as a flag."""
    return Field(description=description, json_schema_extra={"positional": True, "path": path}, **more)


def path(description: str, **more: Any) -> Any:
    """Declare a field that names a place."""
    return Field(description=description, json_schema_extra={"path": True}, **more)


def in_file(description: str, **more: Any) -> Any:
    """Declare a field that has no flag: it stands in kit.toml alone."""
    return Field(description=description, json_schema_extra={"in_file": True}, **more)


def is_marked(field: FieldInfo, mark: str) -> bool:
    """Say whether a field is an argument (``positional``), a place (``path``) or has no flag (``in_file``).

    A relative place is relative to the project; one typed on the command line, to the folder it
    was typed in.
    """
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(mark))
