"""Settings of the commands that ask for and ship a version, and of the small ones around them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kit.settings.fields import CommandSettings, Idle, TargetName, argument, path


class InitSettings(CommandSettings):
    """Write a runnable project."""

    name: str = argument("Folder to make; its last part is the project's name.", min_length=1)
    template: Literal["digits", "tabular"] = Field(
        default="digits",
        description="digits (images, a small CNN) or tabular (columns, preprocessing, an MLP).",
    )


class DoctorSettings(CommandSettings):
    """Tell what this machine has, and what to install for what is missing."""


class KeysSettings(CommandSettings):
    """Make, show, replace and revoke the keys that sign."""

    action: Literal["init", "show", "rotate", "revoke"] = argument(
        "init makes a key pair; show says which keys count; rotate puts a new key in the place of the one "
        "that signs; revoke strikes a key off."
    )
    key_id: str | None = argument(
        "For revoke: id of the key, or its first 8 digits or more.", default=None, pattern=r"^[0-9a-f]{8,64}$"
    )
    not_after: float | None = Field(
        default=None,
        ge=0,
        le=36_500,
        description="For rotate: days until the old key lets nothing new into devices; never when left out.",
    )

    @model_validator(mode="after")
    def _named(self) -> KeysSettings:
        if self.action == "revoke" and self.key_id is None:
            raise ValueError("revoke needs the id of a key; see kit keys show")
        if self.action != "revoke" and self.key_id is not None:
            raise ValueError(f"{self.action} takes no {self.key_id!r}")
        return self

    @property
    def idle(self) -> tuple[Idle, ...]:
        """What does nothing with another action."""
        return () if self.action == "rotate" else (Idle("not_after", "action", "'rotate'"),)


class ModelsSettings(CommandSettings):
    """List, inspect and promote model versions."""

    action: Literal["list", "show", "promote", "rollback", "verify", "log"] = argument("What to do.")
    reference: str | None = argument("Model or version: digits, digits@champion, digits@3.", default=None)
    alias: str = Field(default="champion", description="Alias that promote and rollback move.")
    expect: str | None = Field(
        default=None, description="Digest the alias must stand on now, or the move is refused."
    )
    gates: bool = Field(default=True, description="Whether promoting to champion asks the gates.")


class QuerySettings(CommandSettings):
    """Ask an endpoint about the rows of a table and print the answers."""

    model: str = argument("Name of the served model.", min_length=1)
    input: str = path("Parquet, CSV or JSON Lines file with the rows.", min_length=1)
    url: str = Field(
        default="http://127.0.0.1:8000", pattern=r"^https?://", description="Where the endpoint listens."
    )
    rows: int = Field(default=5, ge=1, description="Rows to ask about; the first of the table.")
    timeout_s: float = Field(default=10.0, gt=0, le=3600, description="Longest wait for an answer.")
    api_key: str | None = path(
        "File holding the endpoint's key; when left out, <state>/serve/key if --url is this machine.",
        default=None,
    )
    ca_file: str | None = path(
        "File of the certificates (PEM) that an https endpoint's own is checked against; when left out, "
        "those this machine trusts.",
        default=None,
    )


class ExportSettings(CommandSettings):
    """Build signed bundles for devices, and measure each against the reference."""

    model: str | None = argument(
        "Model version: digits, digits@champion, digits@3.", default=None, min_length=1
    )
    target: tuple[TargetName, ...] = Field(
        default=("litert-int8", "openvino-int8"),
        strict=False,
        min_length=1,
        description="What to build; may be given more than once. all: everything this machine can build "
        "and run.",
    )
    list: bool = Field(default=False, description="Only say what this machine can build and run.")
    output: str = path("Folder for the bundles and the page about them.", default="bundles", min_length=1)
    release: int = Field(default=1, ge=1, description="Counter a device never goes back on.")
    calibration_rows: int = Field(
        default=200, ge=10, le=100_000, description="Training rows the ranges are taken from."
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1,),
        strict=False,
        min_length=1,
        max_length=8,
        description="Rows of one call that a file with fixed shapes holds; may be given more than once.",
    )
    io: Literal["int8", "float"] = Field(
        default="float",
        description="What the file of litert-int8 and litert-int16x8 reads and answers: float, which it "
        "rounds itself, or int8 (int16), which the agent rounds.",
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
    max_memory_mb: float = Field(
        default=1024.0, gt=0, description="Largest resident memory of a process that runs it, in MB."
    )
    max_slowdown: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Most times the latency of float32 in the same engine that an INT8 file may take; INT8 "
        "targets alone are held to it. When left out, one that is slower is taken only if no other keeps the "
        "budgets; it is said either way.",
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads while measuring.")
    verify_with: tuple[str, ...] = Field(
        default=(),
        strict=False,
        json_schema_extra={"path": True},
        description="Further Python interpreters, of an old runtime say, in which the golden rows must hold; "
        "may be given more than once.",
    )
    licence: str = Field(default="", max_length=200, description="Licence of the model, as SPDX writes it.")
    explain: bool = Field(
        default=False, description="Measure the error of every layer, not only where a recipe failed."
    )
    check_reproducible: bool = Field(
        default=False, description="Build every bundle a second time, in another process, and compare."
    )


class BundleSettings(CommandSettings):
    """Show a bundle, verify it, or say what differs between two."""

    action: Literal["show", "verify", "diff"] = argument(
        "show says what is in it; verify checks every byte and asks its golden rows; diff compares two."
    )
    bundle: str = argument("Bundle file.", path=True, min_length=1)
    other: str | None = argument(
        "Bundle file that diff compares it with.", default=None, path=True, min_length=1
    )

    @model_validator(mode="after")
    def _compared(self) -> BundleSettings:
        if self.action == "diff" and self.other is None:
            raise ValueError("diff needs two bundles")
        if self.action != "diff" and self.other is not None:
            raise ValueError(f"{self.action} takes one bundle, and {self.other!r} is a second one")
        return self


class BenchSettings(CommandSettings):
    """Measure a bundle on this machine, and compare it with another."""

    bundle: str = argument("Bundle file.", path=True, min_length=1)
    threads: int = Field(default=1, ge=1, le=256, description="Threads of the engine.")
    calls: int = Field(default=200, ge=10, le=100_000, description="Timed calls of one row.")
    compare: str | None = path(
        "Figures of another machine, as --output or a device's agent has written them.", default=None
    )
    output: str | None = path("JSON file for the figures.", default=None)


class FlashSettings(CommandSettings):
    """Put a bundle on a device, and wait until the device confirms it."""

    bundle: str = argument("Bundle file.", path=True, min_length=1)
    device: str = argument(
        "Where to: path:FOLDER, ssh://[USER@]HOST[:PORT]/FOLDER, or a device's name in the fleet.",
        pattern=r"^(path:.+|ssh://.+|[a-z0-9][a-z0-9._-]{0,62})$",
    )
    dry_run: bool = Field(default=False, description="Say what would happen, and change nothing.")
    yes: bool = Field(
        default=False, description="Agree beforehand to pin the project's keys on a first flash."
    )
    allow_older: str | None = Field(
        default=None,
        min_length=1,
        max_length=300,
        description="Let a release in that is not above the device's, and say why; an override is signed.",
    )
    timeout_s: float = Field(default=90.0, ge=1, le=86_400, description="Longest wait for the verdict.")
    device_python: str | None = Field(
        default=None,
        min_length=1,
        description="The interpreter there that has the agent; otherwise the usual places are tried.",
    )
    ssh_config: str | None = path("Configuration of OpenSSH in place of the user's own.", default=None)


class ReportSettings(CommandSettings):
    """Write one self-contained page about everything the project has run."""

    output: str = path("File to write.", default="report.html", min_length=1)
