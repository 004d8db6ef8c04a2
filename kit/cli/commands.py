"""The table of commands: what each is called, which settings it takes, what it runs.

Only names stand here, so ``kit --help`` imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: As typed.
        summary: One line for ``kit --help``.
        settings: Class in ``kit.settings`` that holds its settings.
        run: ``module:function`` that does the work.
        show: ``module:function`` in ``kit.cli.show`` that prints its result.
        needs_project: Whether it runs inside a project's folder.
        announces: Whether it has something to say before it ends; it is given ``announce``.
        asks: Whether it may have a question; it is given ``ask``, which is None where nobody can answer.
        alone: Flag to the ``module:function`` that runs instead, without a project, where it is given.
    """

    name: str
    summary: str
    settings: str
    run: str
    show: str
    needs_project: bool = True
    announces: bool = False
    asks: bool = False
    alone: tuple[str, str] | None = None

    def load_settings(self) -> Any:
        """Import the settings class."""
        return getattr(importlib.import_module("kit.settings"), self.settings)

    def load_run(self) -> Callable[..., Any]:
        """Import the function that does the work."""
        return _load(self.run)

    def load_alone(self, flags: Mapping[str, Any]) -> Callable[..., Any] | None:
        """Import the function that takes settings alone, where the flag that asks for it is given."""
        return _load(self.alone[1]) if self.alone and flags.get(self.alone[0]) else None

    def load_show(self) -> Callable[[Any], None]:
        """Import the function that prints the result."""
        module, _, name = self.show.partition(":")
        function: Callable[[Any], None] = getattr(importlib.import_module(f"kit.cli.show.{module}"), name)
        return function


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


COMMANDS: tuple[Command, ...] = (
    Command(
        "init",
        "write a runnable project",
        "InitSettings",
        "kit.init:init",
        "making:init",
        needs_project=False,
    ),
    Command(
        "doctor",
        "tell what this machine has and lacks",
        "DoctorSettings",
        "kit.doctor:doctor",
        "making:doctor",
        needs_project=False,
    ),
    Command("keys", "make, show, rotate, revoke keys", "KeysSettings", "kit.keys:keys", "making:keys"),
    Command(
        "prepare",
        "check, clean and describe the data",
        "PrepareSettings",
        "jobs.prepare:prepare",
        "making:prepare",
    ),
    Command("tune", "search the best settings", "TuneSettings", "jobs.tune:tune", "making:tune"),
    Command("train", "train and register a candidate", "TrainSettings", "jobs.train:train", "making:train"),
    Command(
        "evaluate",
        "measure and judge a version",
        "EvaluateSettings",
        "jobs.evaluate:evaluate",
        "making:evaluate",
    ),
    Command(
        "compress", "make a version smaller", "CompressSettings", "jobs.compress:compress", "making:compress"
    ),
    Command(
        "models", "list, inspect and promote versions", "ModelsSettings", "kit.models:models", "making:models"
    ),
    Command(
        "predict",
        "predict every row of a table",
        "PredictSettings",
        "jobs.predict:predict",
        "running:predict",
    ),
    Command("runs", "list, verify and clean batch runs", "RunsSettings", "jobs.runs:runs", "running:runs"),
    Command(
        "serve",
        "serve models over HTTP and gRPC",
        "ServeSettings",
        "kit.cli.serving:serve",
        "running:serve",
        announces=True,
    ),
    Command(
        "release",
        "move an endpoint's traffic between versions",
        "ReleaseSettings",
        "serve.releases.command:release",
        "releasing:release",
    ),
    Command(
        "access",
        "make and revoke keys of endpoints",
        "AccessSettings",
        "serve.guards.access:access",
        "access:access",
    ),
    Command("query", "ask an endpoint", "QuerySettings", "kit.query:query", "running:query"),
    Command(
        "export",
        "build and measure INT8 bundles",
        "ExportSettings",
        "edge.export:export",
        "exporting:export",
        alone=("list", "edge.listing:list_targets"),
    ),
    Command(
        "bundle", "show, verify and compare bundles", "BundleSettings", "edge.bundle:bundle", "bundles:bundle"
    ),
    Command(
        "bench", "measure a bundle on this machine", "BenchSettings", "edge.bench:bench", "benching:bench"
    ),
    Command(
        "flash",
        "put a bundle on a device",
        "FlashSettings",
        "edge.flash:flash",
        "running:flash",
        asks=True,
    ),
    Command(
        "devices",
        "list, show, add and remove devices",
        "DevicesSettings",
        "edge.fleet.devices:devices",
        "fleet:devices",
    ),
    Command(
        "fleet",
        "serve devices and roll bundles out to them",
        "FleetSettings",
        "edge.fleet.command:fleet",
        "fleet:fleet",
        announces=True,
    ),
    Command(
        "submit",
        "run a command on a cluster",
        "SubmitSettings",
        "jobs.submit:submit",
        "running:submit",
    ),
    Command(
        "cluster",
        "describe a cluster for AWS or Kubernetes",
        "ClusterSettings",
        "jobs.render:cluster",
        "running:cluster",
    ),
    Command(
        "report", "write one page about all runs", "ReportSettings", "kit.report:report", "running:report"
    ),
)


def find_command(name: str) -> Command | None:
    """Find a command by name; None when there is no such."""
    return next((command for command in COMMANDS if command.name == name), None)
