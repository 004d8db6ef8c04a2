"""The agent's command line: ``python -m edge.agent run|predict|health|bench DIR``.

It parses, calls, prints, and turns an error into one sentence and an exit code.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.agent import install, rows, trial
from edge.agent.device import Device
from kit import errors, files, gauge
from kit.runner import Runner

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


def run(folder: Path, *, once: bool, poll_s: float) -> int:
    """Install what waits in ``incoming/``, then go on watching it.

    Args:
        folder: The device folder.
        once: Return after one pass.
        poll_s: Time between two looks, in seconds.

    Returns:
        0: the device runs a verified bundle.

    Raises:
        ConflictError: Another agent runs on this folder.
        NotFoundError: The folder is no device, or nothing has been confirmed on it.
        VerificationError: The current slot is damaged and there is none to fall back to.
        UnavailableError: The disk is full or cannot be written.
    """
    device = Device.open(folder)
    with device.lock():
        device.prepare()
        _finish(install.recover(device))
        if not once:
            _log.info(f"watching {device.incoming}")
        said = ""
        while not once:
            trouble = _trouble(device)
            if trouble and trouble != said:  # once, not at every look
                _log.warning(f"warning: {trouble}; trying again every {poll_s:g} s")
            said = trouble
            time.sleep(poll_s)
        _install_waiting(device)
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


def _trial(folder: Path, *, digest: str) -> int:
    found = trial.examine_as_child(Device.open(folder), digest=digest)
    print(json.dumps(found), flush=True)
    return 1 if found["reason"] else 0


def _install_waiting(device: Device) -> None:
    if device.state().staged is not None:  # a full disk stopped the last pass half-way
        _finish(install.recover(device))
    for path in device.waiting():
        _finish(install.install(device, path))


def _trouble(device: Device) -> str:
    """Install what waits; say what this machine lacks for it, empty when nothing.

    A full disk gets room again and a pulled card comes back, so neither ends a watching agent.
    """
    try:
        _install_waiting(device)
    except (errors.UnavailableError, errors.NotFoundError) as error:
        return error.message
    except OSError as error:
        return f"{error.filename or device.folder} cannot be used: {error.strerror}"
    return ""


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

    running = add("run", run, "Install what waits in incoming/, then go on watching it.")
    running.add_argument("--once", action="store_true", help="return after one pass")
    running.add_argument(
        "--poll-s", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (default 1)"
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
