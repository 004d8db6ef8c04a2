"""Everything a user can set, declared once.

Each command has one frozen class; the keys of kit.toml, the flags of the command line, the
``--help`` texts and docs/reference.md are derived from it. Order of precedence: defaults, then
kit.toml, then flags. Nothing is read here; ``kit.project_file`` fills these classes from a file or
from flags and says in a sentence what is wrong.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kit.settings.batch import ClusterSettings, PredictSettings, RunsSettings, SubmitSettings
from kit.settings.data import DataSettings, InputSettings
from kit.settings.evaluation import EvaluateSettings, GatesSettings
from kit.settings.fields import CommandSettings, EngineName, Metric, Name, Settings, TargetName, is_marked
from kit.settings.fleet import DevicesSettings, FleetSettings
from kit.settings.prepare import (
    DuplicatesSettings,
    FeatureSettings,
    PrepareSettings,
    RuleSettings,
    SelectSettings,
    WindowSettings,
)
from kit.settings.running import (
    BenchSettings,
    BundleSettings,
    DoctorSettings,
    ExportSettings,
    FlashSettings,
    InitSettings,
    KeysSettings,
    ModelsSettings,
    QuerySettings,
    ReportSettings,
)
from kit.settings.serving import AccessSettings, ReleaseSettings, ServeSettings
from kit.settings.training import (
    CompressSettings,
    ModelSettings,
    RangeSettings,
    SpaceSettings,
    TrainSettings,
    TuneSettings,
)
from kit.signature import Signature
from kit.tensors import ClassName, TensorSpec


class ProjectSettings(Settings):
    """What the project is called and where it keeps its state."""

    name: Name = Field(description="Name under which its models are registered.")
    task: Literal["classification", "regression"] = Field(
        default="classification", description="What the model answers."
    )
    state: str = Field(
        default=".kit", min_length=1, description="Folder of the registry, the runs and the caches."
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
        description="Public key, or folder of *.pub, all trusted; the signing key's own .pub when left out. "
        "A keyring beside the signing key adds its keys, and takes away the revoked ones.",
    )


#: Sections of kit.toml that hold a command's settings.
COMMAND_SECTIONS: dict[str, type[CommandSettings]] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "tune": TuneSettings,
    "evaluate": EvaluateSettings,
    "compress": CompressSettings,
    "predict": PredictSettings,
    "serve": ServeSettings,
    "query": QuerySettings,
    "export": ExportSettings,
    "bench": BenchSettings,
    "flash": FlashSettings,
    "fleet": FleetSettings,
    "submit": SubmitSettings,
    "cluster": ClusterSettings,
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


__all__ = [
    "COMMAND_SECTIONS",
    "AccessSettings",
    "BenchSettings",
    "BundleSettings",
    "ClusterSettings",
    "CommandSettings",
    "CompressSettings",
    "DataSettings",
    "DevicesSettings",
    "DoctorSettings",
    "DuplicatesSettings",
    "EngineName",
    "EvaluateSettings",
    "ExportSettings",
    "FeatureSettings",
    "FlashSettings",
    "FleetSettings",
    "GatesSettings",
    "InitSettings",
    "InputSettings",
    "KeysSettings",
    "Metric",
    "ModelSettings",
    "ModelsSettings",
    "PredictSettings",
    "PrepareSettings",
    "ProjectFile",
    "ProjectSettings",
    "QuerySettings",
    "RangeSettings",
    "ReleaseSettings",
    "ReportSettings",
    "RuleSettings",
    "RunsSettings",
    "SelectSettings",
    "ServeSettings",
    "Settings",
    "SigningSettings",
    "SpaceSettings",
    "StoreSettings",
    "SubmitSettings",
    "TargetName",
    "TrainSettings",
    "TuneSettings",
    "WindowSettings",
    "is_marked",
]
