"""The command line: parse, call one function, report.

The only place that prints, and the only one that turns errors into exit codes:

    0  done                      5  not found
    1  a bug, with a traceback   6  conflict: taken, or somebody was faster
    2  input or settings         7  unavailable: cluster, S3, disk, port
    3  verification              8  a package is missing
    4  a gate did not pass     130  interrupted
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kit import __version__
from kit.cli.commands import COMMANDS, Command, find_command
from kit.errors import (
    EXIT_CODES,
    KitError,
    MissingDependencyError,
    SettingsError,
    install_line,
    nearest,
)

if TYPE_CHECKING:
    from kit.project import Project

INTERRUPTED = 130

OLDEST_PYTHON = (3, 11)
"""What the commands need; what runs on a device, ``python -m edge.agent``, needs 3.9."""


class _Parser(argparse.ArgumentParser):
    """Report misuse as our own errors, so one sentence and one exit code serve for all."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message, hint=f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows ``kit``; the process's own when None.

    Returns:
        The exit code; see the module.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return report_errors(lambda: _run(words))


def report_errors(run: Callable[[], int]) -> int:
    """Run something and turn its errors into a sentence and an exit code; see the module."""
    try:
        return run()
    except KitError as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("kit: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _failed(error: KitError) -> int:
    print(f"kit: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  -> {error.hint}", file=sys.stderr)
    return next((code for cls, code in EXIT_CODES if isinstance(error, cls)), 1)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"kit {__version__}")
        return 0
    command = find_command(words[0])
    if command is None:
        names = [each.name for each in COMMANDS]
        raise SettingsError(f"there is no command {words[0]!r}", hint=nearest(words[0], names))
    if sys.version_info[:2] < OLDEST_PYTHON:  # before the settings are imported, which are newer than that
        raise MissingDependencyError(
            f"kit {command.name} needs Python 3.11 to 3.13; this is {platform.python_version()}",
            hint="take a newer Python; a device's agent, `python -m edge.agent`, runs on this one, too",
        )
    words, trailing = _split_trailing(command, words[1:])
    parser = build_parser(command)
    parsed = parser.parse_intermixed_args(words)  # kit fleet rollout --group line BUNDLE
    if trailing:
        parsed.command = trailing
    _log_to_stderr(quiet=parsed.quiet)
    try:
        result = _call(command, parsed)
    except ModuleNotFoundError as error:
        if (missing := _missing(command, error)) is None:
            raise
        raise missing from error
    if parsed.json:
        from kit.cli.show.tables import to_json

        print(to_json(result))
    else:
        command.load_show()(result)
    if hasattr(result, "require_passed"):  # shown first, so that a failed gate can be read
        result.require_passed()
    return int(getattr(result, "exit_code", 0))


def overview() -> str:
    """Give the text of ``kit --help``."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [
        "usage: kit COMMAND [...]",
        "",
        "One trained model, the same answers in a batch, over HTTP and on a device.",
        "",
        "commands:",
        *(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS),
        "",
        "kit COMMAND --help describes a command; settings may stand in kit.toml under [COMMAND].",
    ]
    return "\n".join(lines)


def build_parser(command: Command) -> argparse.ArgumentParser:
    """Make a command's parser from its settings class."""
    from kit.cli.flags import add_flags

    cls = command.load_settings()
    parser = _Parser(prog=f"kit {command.name}", description=cls.__doc__, allow_abbrev=False)
    add_flags(parser, cls)
    general = parser.add_argument_group("general")
    general.add_argument("--json", action="store_true", help="print the result as JSON")
    general.add_argument("--quiet", action="store_true", help="show no progress")
    if command.needs_project:
        general.add_argument(
            "--project",
            type=Path,
            metavar="FOLDER",
            help="folder of kit.toml (default: this one or a parent)",
        )
    return parser


def _split_trailing(command: Command, words: list[str]) -> tuple[list[str], list[str]]:
    """Set aside what follows ``--`` for the command that takes another command."""
    if command.name != "submit" or "--" not in words:
        return words, []
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]


def _call(command: Command, parsed: argparse.Namespace) -> Any:
    from kit.cli.flags import given
    from kit.project_file import build

    cls = command.load_settings()
    flags = given(parsed, cls)
    alone = command.load_alone(flags) if command.needs_project else command.load_run()
    if alone is not None:
        return alone(build(cls, flags, where=f"kit {command.name}"))
    from kit.project import Project

    project = Project.open(parsed.project)
    settings = project.command(command.name, cls, flags)
    if command.name == "submit" and settings.command:
        _check_submitted(project, settings.command)
    if command.announces:  # stdout belongs to the JSON where that was asked for
        stream = sys.stderr if parsed.json else sys.stdout
        return command.load_run()(
            project, settings, announce=lambda text: print(text, file=stream, flush=True)
        )
    if command.asks:
        return command.load_run()(project, settings, ask=_ask if sys.stdin.isatty() else None)
    return command.load_run()(project, settings)


def _ask(question: str) -> bool:
    """Ask whoever sits at the terminal; anything but a yes is a no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


#: The extras, and the packages for which a command may find them missing.
_EXTRAS: dict[str, str] = {
    "cluster": "boto3 grpc httpx jinja2 jwt limits matplotlib onnx onnxruntime onnxscript optuna orjson "
    "pandas PIL pyarrow ray skl2onnx sklearn torch torch_pruning",
    "boosting": "lightgbm onnxmltools xgboost",
    "explain": "shap",
    "mlflow": "mlflow",
    "export": "ai_edge_quantizer litert_torch nncf",
    "openvino": "openvino",
    "redis": "redis",
    "fleet": "starlette uvicorn",
}


def _missing(command: Command, error: ModuleNotFoundError) -> MissingDependencyError | None:
    """Say which extra brings a package of ours; None for any other module, whose absence is a bug."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages.split():
            return MissingDependencyError(
                f"kit {command.name} needs {package}, which is not installed", hint=install_line(extra)
            )
    return None


#: Commands whose settings are checked here before they travel; see ``jobs.submit``.
SUBMITTED = ("train", "tune", "compress", "predict")


def _check_submitted(project: Project, words: Sequence[str]) -> None:
    """Check a submitted command's settings here, before anything travels to a cluster."""
    from kit.cli.flags import given

    command = find_command(words[0])
    if command is not None and command.name in SUBMITTED:  # the others submit itself refuses
        cls = command.load_settings()
        project.command(command.name, cls, given(build_parser(command).parse_args(words[1:]), cls))


def _log_to_stderr(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("kit")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
