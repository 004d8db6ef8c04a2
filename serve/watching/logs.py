"""What a replica writes down about requests and events: one JSON object per line, in files of bounded size.

Lines hold names, numbers and a hash of who asked; never a body, a token or a header, the request's id apart.
The event loop only appends to a queue; a thread writes. What does not fit into the queue is dropped, counted,
and said in the file as soon as there is room.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import itertools
import os
import re
import secrets
import threading
import time
from collections import deque
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

import orjson

from kit.errors import KitError
from kit.files import create_once
from serve.watching.outcomes import ANSWERED, FAILED

What = Literal["errors", "all", "none"]
Field = str | int | float | bool | None

MAX_FILE_BYTES = 50_000_000
N_FILES = 5
_MAX_WAITING = 20_000
_EVERY_S = 0.2
_LINES_AT_ONCE = 200
_SUBJECT_DIGITS = 12

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Gives every request a name: the client's own where it is harmless, else one that is new.

    A new one is 8 random bytes of this process and a number, which costs a tenth of a uuid4.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def of(self, given: bytes | None) -> str:
        """Name a request.

        Args:
            given: The header x-request-id; up to 64 letters, digits, dots, lines and underscores count.
        """
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._prefix}-{next(self._numbers):x}"


class RequestLine(NamedTuple):
    """What is written of a request.

    Attributes:
        at_s: When it ended (Unix time).
        request_id: Its name.
        model: The model, "" where none was found.
        version: Its version, "" likewise.
        outcome: One of ``outcomes.OUTCOMES``.
        status: HTTP status, or gRPC code by number.
        seconds: How long it took.
        rows: Rows it asked for; 0 where they were never counted.
        n_bytes: Size of its body.
        transport: ``http`` or ``grpc``.
        subject: Who asked; only a keyed hash is written.
    """

    at_s: float
    request_id: str
    model: str
    version: str
    outcome: str
    status: int
    seconds: float
    rows: int
    n_bytes: int
    transport: str
    subject: str


class RequestLog:
    """The log of one replica.

    Args:
        folder: ``<state>/serve/log``.
        replica: The replica, which the file is named after: ``<replica>.jsonl``, then ``.1`` and so on.
        what: Which requests get a line; ``errors`` are those that failed or were refused.
        max_file_bytes: Size at which the next file is begun.
        n_files: How many are kept, the current one included.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replica: str,
        what: What = "errors",
        max_file_bytes: int = MAX_FILE_BYTES,
        n_files: int = N_FILES,
    ) -> None:
        self._path = folder / f"{replica}.jsonl"
        self._wants_answered = what == "all"
        self._wants_errors = what != "none"
        self._max_file_bytes = max_file_bytes
        self._n_files = n_files
        self._waiting: deque[RequestLine | dict[str, Field]] = deque()
        self._file: FileIO | None = None
        self._salt = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kit-log", daemon=True)
        self._said_dropped = 0
        #: Lines there was no room for, in the queue or on the disk.
        self.dropped = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def wants(self, outcome: str) -> bool:
        """Say whether a request that ended so gets a line; ask before making one."""
        return self._wants_answered or (self._wants_errors and outcome not in ANSWERED)

    def request(self, line: RequestLine) -> None:
        """Write a line about a request, later."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(line)
        else:
            self.dropped += 1

    def event(self, name: str, *, level: str = "info", **fields: Field) -> None:
        """Write a line about something else that happened, later.

        Args:
            name: What happened, like ``release`` or ``load_failed``.
            level: ``info``, ``warning`` or ``error``.
            fields: What else is to be said; never a secret or a payload.
        """
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append({"time": _utc(time.time()), "level": level, "event": name, **fields})
        else:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._write_waiting()
        self._write_waiting()
        if self._file is not None:
            self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LINES_AT_ONCE))]
            self._write(taken)
        if self.dropped > self._said_dropped:
            n_new = self.dropped - self._said_dropped
            self._said_dropped = self.dropped
            fields: dict[str, Field] = {"time": _utc(time.time()), "level": "warning"}
            self._write([fields | {"event": "lines_dropped", "lines": n_new}])

    def _write(self, taken: list[RequestLine | dict[str, Field]]) -> None:
        shown = (self._request(each) if isinstance(each, RequestLine) else each for each in taken)
        try:
            file = self._file or self._open()
            start = file.tell()
            data = b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in shown)
            if file.write(data) < len(data):
                file.truncate(start)
                raise OSError("the disk took half of it")
            if file.tell() >= self._max_file_bytes:
                self._rotate()
        except (OSError, KitError, orjson.JSONEncodeError):
            self.dropped += len(taken)
            if self._file is not None:
                self._file.close()
                self._file = None

    def _request(self, line: RequestLine) -> dict[str, Field]:
        return {
            "time": _utc(line.at_s),
            "level": "error" if line.outcome in FAILED else "info",
            "event": "request",
            "request_id": line.request_id,
            "model": line.model,
            "version": line.version,
            "outcome": line.outcome,
            "status": line.status,
            "ms": round(line.seconds * 1e3, 3),
            "rows": line.rows,
            "bytes": line.n_bytes,
            "transport": line.transport,
            "subject": _hashed(line.subject, salt=self._salt) if line.subject else "",
        }

    def _open(self) -> FileIO:
        """Open the file, and learn the salt that all replicas hash subjects with."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        salt = self._path.parent / ".subjects"
        create_once(salt, secrets.token_bytes(32), mode=0o600)
        self._salt = salt.read_bytes()
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._file = FileIO(handle, "a")
        return self._file

    def _rotate(self) -> None:
        """Begin a new file; the oldest goes."""
        if self._file is not None:
            self._file.close()
            self._file = None
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._n_files))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        if self._n_files == 1:
            self._path.unlink()


def _utc(at_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@functools.lru_cache(maxsize=4096)
def _hashed(subject: str, *, salt: bytes) -> str:
    """Tell subjects apart without naming them; without the salt nobody can try names out."""
    return hashlib.blake2b(
        subject.encode(errors="surrogatepass"), key=salt, digest_size=_SUBJECT_DIGITS // 2
    ).hexdigest()
