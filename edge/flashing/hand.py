"""The hand on a device: calls what ``edge.flashing.onsite`` does there, through whatever starts a program.

A way (``path``, ``ssh``) gives the words that start the device's interpreter and turns their failures into
sentences; everything else is the same for all of them.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import logging
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from edge.flashing import onsite
from kit.errors import ConflictError, DiskFullError, NotFoundError, UnavailableError

_CHUNK_BYTES = 256 << 10
_PROGRESS_S = 2.0
_CALL_S = 60.0

# Parted by words that every shell takes as they are; the current folder is no place to import from.
_BOOT = (
    "import sys;sys.path[:]=[p for p in sys.path if p];import base64,zlib;n=dict();sys.path[:0]={code!r};"
    "exec(zlib.decompress(base64.urlsafe_b64decode(sys.argv[1])),n);n['main'](sys.argv[2])"
)

_log = logging.getLogger("kit.flash")


class Way(Protocol):
    """How programs are started on a device.

    Attributes:
        shown: The device, as a sentence shows it.
        folder: The device folder, as the device names it.
        code: Where the kit's code lies there, when it is not installed; empty otherwise.
    """

    shown: str
    folder: str
    code: str

    def words(self, program: Sequence[str]) -> list[str]:
        """Give the command that starts a Python there with these arguments."""
        ...

    def refuse(self, code: int, said: str) -> None:
        """Raise what a start that failed means; return when it says nothing of the way itself."""
        ...


class Hand:
    """Calls what is done on the device.

    Args:
        way: How programs are started there.
    """

    def __init__(self, way: Way) -> None:
        self.way = way
        text = Path(onsite.__file__).read_bytes()
        self._text = base64.urlsafe_b64encode(zlib.compress(text, 9)).decode()

    @property
    def shown(self) -> str:
        """The device, as a sentence shows it."""
        return self.way.shown

    def call(self, action: str, *, within_s: float = _CALL_S, **arguments: Any) -> dict[str, Any]:
        """Do something on the device and wait for its answer.

        Args:
            action: A function of ``edge.flashing.onsite``.
            within_s: How long it may take.
            arguments: What it takes, but for the folder.

        Raises:
            UnavailableError: The device cannot be reached, or refuses.
        """
        try:
            ended = subprocess.run(
                self._words(action, arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=within_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{self.shown} has not answered within {within_s:g} s") from error
        return self._answer(ended.returncode, ended.stdout, ended.stderr)

    @contextlib.contextmanager
    def holding(self, *, longest_s: float) -> Iterator[None]:
        """Hold the device's lock against other flashes.

        Args:
            longest_s: After how long the device lets go by itself, should we be lost.

        Raises:
            ConflictError: Another flash is under way.
        """
        process = subprocess.Popen(
            self._words("lock", {"longest_s": longest_s}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                _, said = process.communicate()
                self._answer(process.returncode, line, said)
            if not self._answer(0, line, b"")["held"]:
                raise ConflictError(
                    f"another process holds {self.shown}/flash.lock", hint="wait until that flash has ended"
                )
            yield
        finally:
            try:
                process.communicate(timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                process.kill()
                process.communicate()

    def send(self, file: Path, *, part: str) -> None:
        """Send a file, or the rest of it, into a hidden file of ``incoming/``.

        Args:
            file: The file.
            part: What the hidden file is called.

        Raises:
            UnavailableError: The connection broke, or the disk is full; the next try goes on.
        """
        total = file.stat().st_size
        have = int(self.call("size", part=part)["size"])
        have = 0 if have > total else have
        if have:
            _log.info(f"{self.shown} has {_megabytes(have)} of {_megabytes(total)} already")
        process = subprocess.Popen(
            self._words("receive", {"part": part, "offset": have}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with file.open("rb") as source:
                source.seek(have)
                self._pour(source, process, have=have, total=total)
            output, said = process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                process.communicate()
        came = self._answer(process.returncode, output, said)["size"]
        if came != total:
            raise UnavailableError(
                f"{self.shown} has {came} of {total} bytes: the connection broke",
                hint="run the same command again; it goes on from there",
            )

    def _pour(self, source: Any, process: subprocess.Popen[bytes], *, have: int, total: int) -> None:
        assert process.stdin is not None
        began_s = said_s = time.monotonic()
        sent = 0
        # The reader may have ended: what it says then is of more use than that its pipe is closed.
        with contextlib.suppress(BrokenPipeError):
            while data := source.read(_CHUNK_BYTES):
                process.stdin.write(data)
                process.stdin.flush()
                sent += len(data)
                now_s = time.monotonic()
                if now_s - said_s >= _PROGRESS_S or have + sent == total:
                    rate = sent / max(now_s - began_s, 1e-3)
                    _log.info(f"sent {_megabytes(have + sent)} of {_megabytes(total)}, {_megabytes(rate)}/s")
                    said_s = now_s

    def _words(self, action: str, arguments: dict[str, Any]) -> list[str]:
        asked = {"action": action, "arguments": {"folder": self.way.folder, **arguments}}
        call = base64.urlsafe_b64encode(json.dumps(asked).encode()).decode()
        boot = _BOOT.format(code=[self.way.code] if self.way.code else [])
        return self.way.words(["-c", boot, self._text, call])

    def _answer(self, code: int, output: bytes, said: bytes) -> dict[str, Any]:
        lines = output.decode("utf-8", "replace").strip().splitlines()
        try:
            value = json.loads(lines[-1]) if lines else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            words = said.decode("utf-8", "replace").strip()
            self.way.refuse(code, words)
            last = (words.splitlines() or [f"exit code {code}"])[-1]
            raise UnavailableError(f"{self.shown} cannot be used: {last[:300]}")
        if "error" in value:
            self._raise(value["error"])
        return value

    def _raise(self, error: dict[str, Any]) -> None:
        place = f"{self.shown}: {error['place']}" if error["place"] else self.shown
        if error["errno"] in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk of {place} is full; no bundle was left half-written under its name",
                hint="free some space on the device, then run the same command again",
            )
        if error["errno"] == errno.ENOENT:
            raise NotFoundError(f"{place} does not exist")
        raise UnavailableError(f"{place} cannot be used: {error['reason']}", hint="make the folder writable")


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"
