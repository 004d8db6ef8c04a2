"""Settings of the commands that ask for and ship a version, and of the small ones around them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kit.settings.fields import CommandSettings, TargetName, argument, path


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
    """Make or show the key that signs."""

    action: Literal["init", "show"] = argument("init makes a key pair; show prints the key's id and place.")


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
    """Build signed INT8 bundles and measure them against the reference."""

    model: str = argument("Model version: digits, digits@champion, digits@3.", min_length=1)
    target: tuple[TargetName, ...] = Field(
        default=("litert-int8", "openvino-int8"),
        strict=False,
        min_length=1,
        description="What to build; may be given more than once.",
    )
    output: str = path("Folder for the bundles.", default="bundles", min_length=1)
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

    bundle: str = argument("Bundle file.", path=True, min_length=1)
    device: str = argument("Where to: path:FOLDER.", pattern=r"^path:.+$")


class ReportSettings(CommandSettings):
    """Write one self-contained page about everything the project has run."""

    output: str = path("File to write.", default="report.html", min_length=1)
