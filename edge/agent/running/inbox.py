"""A watched folder, for devices without code: files with rows in, files with answers out.

    in/x.csv                 somebody puts it there
    in/.claimed/x.csv        the agent has taken it
    out/.x.csv.jsonl.part    its answers, not shown yet
    in/.answered/x.csv       from here on it counts as answered
    out/x.csv.jsonl          its answers, shown in one step
    failed/x.csv             or else the file, with failed/x.csv.reason beside it

Each step is a rename, so after a kill it is plain how far a file had come, and none is answered twice. Names
that begin with a dot and files that still grow are left alone. It parses nothing: the model's process does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from edge.agent.running.supervisor import Supervisor
from edge.agent.telemetry.latencies import Latencies, outcome_of
from kit.errors import InputError, KitError, ModelError, UnavailableError
from kit.files import disk_errors, sync_folder, write_atomic
from kit.inference.errors import DeadlineError
from kit.inference.failures import read_error

MAX_TRIES = 3
"""How often a file may take the model's process down with it."""

_LOOK_S = 0.5

_log = logging.getLogger("kit.agent")


class _StruckError(UnavailableError):
    """The model's process ended while it answered a file."""


class Inbox:
    """Answers the files of one folder.

    Args:
        supervisor: Who runs the model.
        folder: Where files arrive.
        results: Where answers go.
        failed: Where files go that cannot be answered.
        latencies: Counts each file as a request.
        max_bytes: Largest file.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        folder: Path,
        results: Path,
        failed: Path,
        latencies: Latencies,
        max_bytes: int,
    ) -> None:
        self._supervisor = supervisor
        self._folder, self._results, self._failed = folder, results, failed
        self._claimed, self._answered = folder / ".claimed", folder / ".answered"
        self._latencies = latencies
        self._max_bytes = max_bytes
        self._sizes: dict[str, tuple[int, int]] = {}
        self._tries: dict[str, int] = {}
        self._stop = threading.Event()
        self._said = ""

    def start(self) -> threading.Thread:
        """Watch, on a thread of its own, until ``stop``."""
        thread = threading.Thread(target=self._watch, name="inbox", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Watch no more; a file in work is finished."""
        self._stop.set()

    def look(self, *, took: Callable[[str], None] = lambda step: None) -> int:
        """Answer what waits.

        Args:
            took: Called with each step's name when it has been taken, so that a test can cut the power.

        Returns:
            How many files were dealt with.

        Raises:
            UnavailableError: A folder cannot be used.
        """
        with disk_errors(self._folder):
            for folder in (self._folder, self._results, self._failed, self._claimed, self._answered):
                folder.mkdir(parents=True, exist_ok=True)
            self._finish()
            n_files = 0
            for path in self._waiting():
                name = path.name
                if path.parent != self._claimed:
                    os.rename(path, self._claimed / name)
                    took("claimed")
                n_files += self._deal_with(name, took)
        return n_files

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
                self._said = ""
            except (KitError, OSError) as error:
                if str(error) != self._said:
                    _log.warning(f"warning: the folder {self._folder} cannot be watched: {error}")
                self._said = str(error)
            self._stop.wait(_LOOK_S)

    def _finish(self) -> None:
        """Show answers that counted already when the power went."""
        for path in self._answered.iterdir():
            part = self._part(path.name)
            if part.exists():
                os.rename(part, self._result(path.name))
                sync_folder(self._results)
            path.unlink()

    def _waiting(self) -> list[Path]:
        """List what was claimed before, then what has stopped growing, each in order of its name."""
        claimed = sorted(self._claimed.iterdir())
        found, sizes = [], {}
        for entry in sorted(os.scandir(self._folder), key=lambda each: each.name):
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                size = sizes[entry.name] = (facts.st_size, facts.st_mtime_ns)
                if self._sizes.get(entry.name) == size and not stat.S_ISDIR(facts.st_mode):
                    found.append(Path(entry.path))
        self._sizes = sizes
        names = {path.name for path in claimed}
        return claimed + [path for path in found if path.name not in names]

    def _deal_with(self, name: str, took: Callable[[str], None]) -> int:
        path = self._claimed / name
        try:
            answers = self._ask(path)
        except UnavailableError as error:
            struck = isinstance(error, (DeadlineError, _StruckError))  # anything else is not the file's doing
            self._tries[name] = self._tries.get(name, 0) + struck
            if self._tries[name] < MAX_TRIES:
                return 0  # it is tried again at the next look
            self._refuse(name, error, took)
        except KitError as error:
            self._refuse(name, error, took)
        else:
            write_atomic(self._part(name), answers)
            took("written")
            os.rename(path, self._answered / name)
            sync_folder(self._answered)
            took("answered")
            os.rename(self._part(name), self._result(name))
            sync_folder(self._results)
            took("shown")
            (self._answered / name).unlink()
        self._tries.pop(name, None)
        return 1

    def _ask(self, path: Path) -> bytes:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path.name} is not a file")
        if facts.st_size > self._max_bytes:
            raise InputError(f"{path.name} has {facts.st_size} bytes, more than {self._max_bytes}")
        try:
            answered = self._supervisor.rows(path.read_bytes(), name=path.name)
        except ModelError as error:  # the process ended: by this file, or by chance
            raise _StruckError(error.message, hint=error.hint) from error
        word = "nan" if answered.outcome == "nan" else outcome_of(answered.reply.status)
        self._latencies.add(word, answered.seconds)
        if answered.reply.status != 200:
            raise read_error(answered.reply)
        return answered.reply.body

    def _refuse(self, name: str, error: KitError, took: Callable[[str], None]) -> None:
        said = f"{error.message}; {error.hint}" if error.hint else error.message
        _log.warning(f"{name} cannot be answered: {said}")
        write_atomic(self._failed / f"{name}.reason", f"{said}\n".encode("utf-8", "replace"))
        took("reason")
        os.rename(self._claimed / name, self._failed / name)
        sync_folder(self._failed)
        took("failed")

    def _part(self, name: str) -> Path:
        return self._results / f".{name}.jsonl.part"

    def _result(self, name: str) -> Path:
        return self._results / f"{name}.jsonl"
