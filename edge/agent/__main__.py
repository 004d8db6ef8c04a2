"""The agent's command line: ``python -m edge.agent run|predict|health|bench|configure|unit|enrol DIR``.

It parses, calls, prints, and turns an error into one sentence and an exit code. Each command imports what it
needs: the one that runs for months has no use for what the others load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.agent.config import Config, configure, read_config
from edge.agent.device import Device
from kit import errors

_log = logging.getLogger("kit.agent")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program; None reads this process's.

    Returns:
        The exit code: 0 when all is well, 1 for an unhealthy device, 130 after an interrupt, otherwise
        one of ``kit.errors.EXIT_CODES``.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    parsed = vars(_parser().parse_args(arguments))
    command = parsed.pop("command")
    try:
        code: int = command(**parsed)
    except errors.KitError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return next((code for kind, code in errors.EXIT_CODES if isinstance(error, kind)), 1)
    except KeyboardInterrupt:
        return 130
    return code


def run(folder: Path, *, once: bool, poll_s: float | None) -> int:
    """Install what waits in ``incoming/`` and answer from what is confirmed, until told to stop.

    Args:
        folder: The device folder.
        once: Install what waits, then return.
        poll_s: Time between two looks into ``incoming/``, in seconds; None as it is configured.

    Returns:
        0: the device runs a verified bundle, or was told to stop.

    Raises:
        ConflictError: Another agent runs on this folder.
        NotFoundError: The folder is no device, or nothing has been confirmed on it.
        VerificationError: The current slot is damaged and there is none to fall back to.
        UnavailableError: The disk is full or cannot be written.
    """
    device = Device.open(folder)
    config = read_config(folder)
    if poll_s is not None:
        config = dataclasses.replace(config, poll_s=poll_s)
    with device.lock():
        device.prepare()
        if not once:
            from edge.agent import service

            service.serve(device, config)
            return 0
        _install_all(device, config)
        device.good_slot()
    return 0


def predict(folder: Path, *, input: Path, output: Path | None, limit: int | None) -> int:
    """Answer the rows of a file with the current slot, as JSON Lines.

    Args:
        folder: The device folder.
        input: Rows, ``.csv``, ``.jsonl`` or ``.json``.
        output: The file to write; None prints.
        limit: Most rows to answer; None for all.

    Returns:
        0.

    Raises:
        KitError: The device, the file or a row breaks a rule.
    """
    from edge.agent import rows, trial
    from kit import files
    from kit.runner import Runner

    good = Device.open(folder).good_slot()
    if good.fell_back:
        _log.warning(f"warning: answering from the previous bundle: {good.fell_back}")
    runner = Runner.open(good.bundle.folder, threads=trial.THREADS)
    table = rows.read_rows(input, signature=runner.signature, limit=limit)
    answers = runner.run(runner.signature.from_rows(table))
    text = "".join(f"{line}\n" for line in rows.answer_lines(answers, signature=runner.signature))
    if output is None:
        sys.stdout.write(text)
    else:
        files.write_atomic(output, text.encode())
    return 0


def health(folder: Path) -> int:
    """Print one JSON object that says what the device runs and how well.

    Args:
        folder: The device folder.

    Returns:
        0 when the current slot verifies and passes its golden rows within its latency budget, otherwise 1.

    Raises:
        NotFoundError: The folder is no device.
        VerificationError: The state cannot be read.
    """
    from edge.agent import trial

    device = Device.open(folder)
    state = device.state()
    found: dict[str, Any] = {
        "phase": state.phase,
        "digest": state.current,
        "rejected": dict(state.rejected),
        "last_report": state.to_json()["last_report"],
    }
    try:
        good = device.good_slot()
        found.update(trial.examine(good.bundle).to_json())
        found["reason"] = good.fell_back or found["reason"]
    except errors.KitError as error:
        found["reason"] = error.message
    found["healthy"] = not found["reason"]
    print(json.dumps(found, indent=2, sort_keys=True))
    return 0 if found["healthy"] else 1


def bench(folder: Path, *, json_file: Path | None) -> int:
    """Measure the current slot in a process of its own and print one JSON object, as ``kit bench`` writes it.

    Args:
        folder: The device folder.
        json_file: Where to write the object, too; None writes no file.

    Returns:
        0 when the slot answers its golden rows rightly, otherwise 1.

    Raises:
        KitError: The device runs nothing, or its engine is missing, crashed or refuses the file.
    """
    from edge.agent import trial
    from kit import files, gauge

    good = Device.open(folder).good_slot()
    if good.fell_back:
        _log.warning(f"warning: measuring the previous bundle: {good.fell_back}")
    found = gauge.gauge_in_child(good.bundle.folder, threads=trial.THREADS)
    print(json.dumps(found.to_json(), indent=2, sort_keys=True))
    if json_file is not None:
        files.write_atomic(json_file, files.canonical_json(found.to_json()))
    return 0 if found.golden_passed else 1


def enrol(folder: Path, *, code: str, **settings: Any) -> int:
    """Make the device known to a fleet server, with a one-time code.

    Args:
        folder: The device folder.
        code: The code; ``-`` reads it from stdin, so that it stands in no list of processes.
        settings: What ``edge.agent.pulling.enrol.enrol`` takes.

    Returns:
        0.

    Raises:
        KitError: The code, the server or the folder breaks a rule.
    """
    from edge.agent.pulling import enrol as enrolment  # what needs no network imports none

    shown = sys.stdin.readline().strip() if code == "-" else code
    print(f"enrolled as {enrolment.enrol(folder, code=shown, **settings)}")
    return 0


def set_up(folder: Path, *, changes: list[str]) -> int:
    """Change ``agent.json`` and print what it holds.

    Args:
        folder: The device folder.
        changes: ``KEY=VALUE`` each; none prints alone.

    Returns:
        0.

    Raises:
        NotFoundError: The folder is no device.
        SettingsError: A key is unknown, or a value breaks a rule; nothing was changed.
    """
    Device.open(folder)
    print(json.dumps(configure(folder, changes), indent=2, sort_keys=True))
    return 0


def unit(folder: Path, *, user: str | None) -> int:
    """Print the systemd unit that runs this agent.

    Args:
        folder: The device folder.
        user: Who runs it; None for the folder's owner.

    Returns:
        0.

    Raises:
        KitError: The folder is no device, or its configuration breaks a rule.
    """
    from edge.agent import systemd

    Device.open(folder)
    inbox = read_config(folder).inbox
    writable = (inbox.incoming, inbox.results, inbox.failed) if inbox is not None else ()
    sys.stdout.write(systemd.unit(folder, user=user, writable=writable))
    return 0


def _trial(folder: Path, *, digest: str) -> int:
    from edge.agent import trial

    found = trial.examine_as_child(Device.open(folder), digest=digest)
    print(json.dumps(found), flush=True)
    return 1 if found["reason"] else 0


def _install_all(device: Device, config: Config) -> None:
    from edge.agent import install

    _finish(install.recover(device))
    if device.state().staged is not None:  # a full disk stopped the last pass half-way
        _finish(install.recover(device))
    for path in device.waiting():
        _finish(install.install(device, path))


def _finish(steps: Iterator[str]) -> None:
    for step in steps:
        _log.debug(step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge.agent", description="Install bundles on this device and answer from them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("folder", type=Path, metavar="DIR", help="the device folder")
        added.set_defaults(command=command)
        return added

    running = add("run", run, "Install what waits in incoming/ and answer from what is confirmed.")
    running.add_argument("--once", action="store_true", help="return after one pass")
    running.add_argument(
        "--poll-s", type=_seconds, metavar="S", help="seconds between two looks, in place of agent.json's"
    )
    asking = add("predict", predict, "Answer the rows of a file, as JSON Lines.")
    asking.add_argument("--input", type=Path, required=True, metavar="FILE", help="rows: .csv, .jsonl, .json")
    asking.add_argument("--output", type=Path, metavar="FILE", help="where to write; printed when left out")
    asking.add_argument("--limit", type=_count, metavar="N", help="answer the first N rows only")
    add("health", health, "Print what the device runs and how well, as one JSON object.")
    measuring = add("bench", bench, "Measure the current slot, as one JSON object.")
    measuring.add_argument("--json-file", type=Path, metavar="FILE", help="where to write it, too")
    joining = add("enrol", enrol, "Make this device known to a fleet server, with a one-time code.")
    joining.add_argument("--server", required=True, metavar="URL", help="the server, https://...")
    joining.add_argument("--code", required=True, metavar="CODE", help="the code; - reads it from stdin")
    joining.add_argument(
        "--name", metavar="NAME", help="what to be called; this machine's name when left out"
    )
    joining.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates that sign the server's")
    joining.add_argument("--plain-http", action="store_true", help="allow a server without TLS elsewhere")
    joining.add_argument("--again", action="store_true", help="replace the token that is there")
    setting = add("configure", set_up, "Change agent.json, and print what it holds.")
    setting.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="such as model.timeout_s=5; KEY= takes one away"
    )
    printing = add("unit", unit, "Print the systemd unit that runs this agent.")
    printing.add_argument("--user", metavar="NAME", help="who runs it; the folder's owner when left out")
    trying = add("trial", _trial, "Examine one slot; the agent calls this in a child process.")
    trying.add_argument("digest", metavar="DIGEST", help="the slot")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 3600 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
