"""The supervisor: keeps the process that holds the model alive, within limits, and asks it.

A process that crashes, hangs, takes too much memory or answers NaN too often is ended and started anew; one
that does so too often has failed. What becomes of its slot is for who is told so (``edge.agent.service``).
It imports neither numpy nor an engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.agent.running.frames import BrokenChannelError, Channel, ClosedChannelError
from edge.agent.running.limits import Answers, Limits, Restarts, memory_limit_bytes
from kit.child import CODE_FOLDER
from kit.errors import EXIT_CODES, KitError, ModelError, UnavailableError
from kit.inference.card import Reply
from kit.inference.errors import DeadlineError, OverloadedError
from kit.machine import resident_bytes

if TYPE_CHECKING:
    from kit.tensors import Tensors

_log = logging.getLogger("kit.agent")

_KINDS = {kind.__name__: kind for kind, _ in EXIT_CODES}
_LOOK_S = 0.25  # between two looks at the memory of a process that is computing
_IDLE_LOOK_S = 1.0
_SWITCH_S = 5.0
_WINDOW_S = 2.0  # the agent has more to do than to wait for counts
_HEADER_ROOM = 1 << 16
_ANSWER_TIMES = 8  # an answer may be so many times as large as the largest question


@dataclass(frozen=True)
class Loaded:
    """What a process said it has loaded."""

    name: str
    version: str
    digest: str
    engine: str
    engine_version: str


@dataclass(frozen=True)
class Answered:
    """What became of one request: how it ended in one word, the answer, and how long it took in all."""

    outcome: str
    reply: Reply
    seconds: float


class _Process:
    """One process, and what was done to it."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: Channel) -> None:
        self.popen = popen
        self.channel = channel
        self.why = ""  # set by who kills it
        self.memory_bytes = 0

    def resident_bytes(self) -> int:
        """Say how much of it is in memory; 0 when it is gone."""
        return resident_bytes(self.popen.pid) or 0

    def kill(self, why: str) -> None:
        """End it at once."""
        self.why = self.why or why
        with contextlib.suppress(OSError):
            self.popen.send_signal(signal.SIGKILL)


class Supervisor:
    """Runs one slot's model in a process of its own.

    Args:
        folder: The device folder.
        limits: What the process may take.
        told: Called from a thread of its own with a word (``restarted`` or ``failed``) and a sentence.
        beat: Called now and then while ``start`` waits.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits | None = None,
        told: Callable[[str, str], None] | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder.resolve()
        self._limits = limits or Limits()
        self._told = told or (lambda what, why: None)
        self._beat = beat or (lambda: None)
        self._turn = threading.Lock()  # whose holder may use the channel
        self._change = threading.Condition()  # guards what follows
        self._waiting = 0
        self._process: _Process | None = None
        self._loaded: Loaded | None = None
        self._last_loaded: Loaded | None = None
        self._digest: str | None = None
        self._failure = ""
        self._restarts = Restarts(self._limits)
        self._answers = Answers(self._limits)
        self._generation = 0

    @property
    def loaded(self) -> Loaded | None:
        """What answers now; None while nothing does."""
        return self._loaded

    @property
    def last_loaded(self) -> Loaded | None:
        """What answers, or answered until its process ended; None before anything did."""
        return self._last_loaded

    @property
    def digest(self) -> str | None:
        """The slot it was told to run."""
        return self._digest

    @property
    def failure(self) -> str:
        """Why the slot has failed; empty as long as it has not."""
        return self._failure

    @property
    def restarts(self) -> int:
        """Processes that ended by themselves or had to be ended, since ``start``."""
        return self._restarts.total

    @property
    def pid(self) -> int | None:
        """The process that answers; None while there is none."""
        process = self._process
        return process.popen.pid if process is not None else None

    def memory_bytes(self) -> int:
        """Say how much memory the process has in use."""
        process = self._process
        return process.resident_bytes() if process is not None else 0

    def start(self, digest: str) -> Loaded:
        """Start a slot's process and wait until it answers; one that answers meanwhile is then ended.

        Raises:
            KitError: The slot does not verify, cannot be loaded, or its process does not come up. What
                answered before goes on, and is no longer started anew when it ends.
        """
        with self._change:
            self._generation += 1
            generation = self._generation
        try:
            process, loaded = self._spawn(digest, beat=self._beat)
        except BaseException:
            with self._change:
                if self._process is None:
                    self._digest = None
                self._change.notify_all()
            raise
        with self._change:
            before = self._process
            self._digest, self._failure = digest, ""
            self._restarts, self._answers = Restarts(self._limits), Answers(self._limits)
            self._process, self._loaded, self._last_loaded = process, loaded, loaded
            self._change.notify_all()
        if before is not None:
            if self._turn.acquire(timeout=_SWITCH_S):  # a request in work is answered first
                self._turn.release()
            _end(before)
        thread = threading.Thread(target=self._watch, args=(process, generation), daemon=True)
        thread.name = f"watch-{digest[:12]}"
        thread.start()
        return loaded

    def stop(self) -> None:
        """End the process; nothing is counted as a failure."""
        with self._change:
            self._generation += 1
            process, self._process, self._loaded, self._digest = self._process, None, None, None
            self._change.notify_all()
        if process is not None:
            _end(process)

    def ask(self, tensors: Mapping[str, Any]) -> Tensors:
        """Answer tensors.

        Args:
            tensors: The signature's inputs, shape (n_rows, ...) each.

        Returns:
            Every output by name.

        Raises:
            InputError: A tensor breaks the signature.
            ModelError: The model failed on these rows, or its process did.
            UnavailableError: Nothing answers, or not in time.
        """
        from kit.inference.asking import (  # needs numpy, which asking over HTTP does not
            read_answer,
            write_request,
        )

        body, header_length = write_request(tensors)
        answered = self.infer(body, header_length=header_length)
        return read_answer(answered.reply)

    def infer(self, body: bytes, *, header_length: int | None = None) -> Answered:
        """Answer the body of an infer request.

        Args:
            body: What the protocol says.
            header_length: How many of the bytes are JSON, where tensors follow it as bytes.

        Raises:
            OverloadedError: Too many requests wait already.
            DeadlineError: The model did not answer in time; its process is started anew.
            ModelError: Its process ended instead of answering.
            UnavailableError: No process answers.
        """
        began_s = time.monotonic()
        header = {"op": "infer", "header_length": header_length, "began_s": began_s}
        said, reply = self._exchange(header, body, began_s=began_s)
        outcome = str(said.get("outcome"))
        self._judge(outcome)
        return Answered(outcome, reply, time.monotonic() - began_s)

    def rows(self, body: bytes, *, name: str) -> Answered:
        """Answer the rows of a file, as JSON Lines.

        Args:
            body: The file.
            name: Its name, whose suffix says what it is.

        Raises:
            UnavailableError: As ``infer``; ``ModelError`` likewise.
        """
        began_s = time.monotonic()
        said, reply = self._exchange({"op": "rows", "name": name}, body, began_s=began_s)
        outcome = str(said.get("outcome"))
        self._judge(outcome)
        return Answered(outcome, reply, time.monotonic() - began_s)

    def describe(self) -> Reply:
        """Give the model's metadata.

        Raises:
            UnavailableError: No process answers.
        """
        return self._exchange({"op": "model"}, b"", began_s=time.monotonic())[1]

    def window(self) -> dict[str, Any]:
        """Take what was counted since the last time; empty when nobody counts."""
        if self._loaded is None:
            return {}
        try:
            waited_s = max(0.0, self._limits.timeout_s - _WINDOW_S)
            _, reply = self._exchange({"op": "window"}, b"", began_s=time.monotonic() - waited_s)
        except KitError:
            return {}
        found = json.loads(reply.body)
        return found if isinstance(found, dict) else {}

    def _judge(self, outcome: str) -> None:
        if outcome == "ok":
            self._answers.right()
        elif outcome in ("nan", "model") and self._answers.wrong():
            word = "NaN" if outcome == "nan" else "errors"
            self._fail(f"it answers with {word} too often")

    def _exchange(
        self, header: Mapping[str, Any], body: bytes, *, began_s: float
    ) -> tuple[dict[str, Any], Reply]:
        deadline_s = began_s + self._limits.timeout_s
        with self._my_turn(deadline_s):
            process = self._answering(deadline_s)
            wait = _Patience(process, timeout_s=self._limits.timeout_s)
            try:
                process.channel.send(header, body)
                said, answer = process.channel.receive(patience=wait)
            except BrokenChannelError as error:
                with self._change:
                    if self._process is process:
                        self._process = self._loaded = None
                is_closed = isinstance(error, ClosedChannelError)  # how it ended, the system says
                process.kill("" if is_closed else f"what came from it is no answer: {error.message}")
                raise _unanswered(process, late=wait.over) from error
        headers = tuple((name.encode(), value.encode()) for name, value in said["headers"])
        return said, Reply(int(said["status"]), answer, headers)

    @contextlib.contextmanager
    def _my_turn(self, deadline_s: float) -> Iterator[None]:
        with self._change:
            if self._waiting >= self._limits.max_waiting:
                raise OverloadedError(f"{self._waiting} requests wait for the model", hint="ask again later")
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
                raise DeadlineError("the answer would come too late", hint="ask again later")
        finally:
            with self._change:
                self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _answering(self, deadline_s: float) -> _Process:
        """Give the process that answers; waits for one that is being started anew."""
        with self._change:
            while self._process is None:
                left_s = deadline_s - time.monotonic()
                if self._failure or self._digest is None or left_s <= 0:
                    raise UnavailableError("no model answers on this device", hint="ask again later")
                self._change.wait(left_s)
            return self._process

    def _spawn(self, digest: str, *, beat: Callable[[], None] | None = None) -> tuple[_Process, Loaded]:
        ours, theirs = socket.socketpair()
        limits = self._limits
        asked = {
            "device": str(self._folder),
            "digest": digest,
            "socket": theirs.fileno(),
            "max_body_bytes": limits.max_body_bytes + _HEADER_ROOM,
            **{key: asdict(limits)[key] for key in ("threads", "timeout_s", "max_samples")},
        }
        command = [sys.executable, "-m", "edge.agent.running.worker", json.dumps(asked)]
        with theirs:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                cwd=CODE_FOLDER,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(_LOOK_S)
        channel = Channel(ours, max_body_bytes=_ANSWER_TIMES * limits.max_body_bytes)
        process = _Process(popen, channel)
        wait = _Patience(process, timeout_s=limits.start_timeout_s, beat=beat)
        try:
            said, _ = channel.receive(patience=wait)
        except BrokenChannelError as error:
            process.kill("it does not come up")
            code = popen.wait()
            channel.close()
            why = process.why if wait.over else f"its process {_ended(code)} while it loaded"
            raise ModelError(f"{digest[:12]} cannot be run: {why}") from error
        except BaseException:
            _end(process)
            raise
        if said.get("op") != "ready":
            popen.wait()
            channel.close()
            kind = _KINDS.get(str(said.get("kind")), ModelError)
            raise kind(f"{digest[:12]} cannot be run: {said.get('message')}")
        process.memory_bytes = memory_limit_bytes(limits, needed_mb=said.get("needed_mb"))
        loaded = Loaded(
            *(str(said[key]) for key in ("name", "version", "digest", "engine", "engine_version"))
        )
        return process, loaded

    def _watch(self, process: _Process, generation: int) -> None:
        """Wait for the end of a process, start the next, and so on until told to stop."""
        while True:
            code = _await_end(process)
            now_s = time.monotonic()
            with self._change:
                if self._generation != generation:
                    return
                self._process = self._loaded = None
                wait_s = self._restarts.ended(now_s=now_s)
            why = process.why or f"its process {_ended(code)}"
            process.channel.close()
            while True:
                if wait_s is None:
                    if not self._failure:
                        self._fail(f"it had to be started anew {self.restarts} times; the last time {why}")
                    wait_s = self._restarts.last_resort()
                _log.warning(f"starting the model anew in {wait_s:g} s: {why}")
                self._told("restarted", why)
                if self._superseded(generation, wait_s):
                    return
                try:
                    process, loaded = self._spawn(self._digest or "")
                except KitError as error:
                    why = error.message
                    with self._change:
                        wait_s = self._restarts.ended(now_s=time.monotonic())
                    continue
                break
            with self._change:
                if self._generation != generation:
                    _end(process)
                    return
                self._process, self._loaded, self._last_loaded = process, loaded, loaded
                self._change.notify_all()

    def _superseded(self, generation: int, wait_s: float) -> bool:
        with self._change:
            return self._change.wait_for(lambda: self._generation != generation, timeout=wait_s)

    def _fail(self, why: str) -> None:
        with self._change:
            if self._failure:
                return
            self._failure = why
        _log.warning(f"{(self._digest or '')[:12]} has failed: {why}")
        self._told("failed", why)


def _unanswered(process: _Process, *, late: bool) -> KitError:
    if late:
        return DeadlineError("the model did not answer in time", hint="send fewer rows, or allow more time")
    why = f": {process.why}" if process.why.startswith("it had") else ""
    return ModelError(f"the model's process ended while it answered{why}", hint="see the agent's log")


def _end(process: _Process) -> None:
    process.kill("stopped")
    process.popen.wait()
    process.channel.close()


class _Patience:
    """What is done while an answer is awaited: look at the memory, and at the time."""

    def __init__(
        self, process: _Process, *, timeout_s: float, beat: Callable[[], None] | None = None
    ) -> None:
        self._process = process
        self._beat = beat
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self.over = False

    def __call__(self) -> None:
        process = self._process
        if self._beat is not None:
            self._beat()
        if time.monotonic() >= self._end_s:
            self.over = True
            process.kill(f"it did not answer within {self._timeout_s:g} s")
            raise BrokenChannelError("no answer in time")
        _check_memory(process)


def _check_memory(process: _Process) -> None:
    used = process.resident_bytes()
    if process.memory_bytes and used > process.memory_bytes:
        process.kill(f"it had {used / 1e6:.0f} MB in memory, above {process.memory_bytes / 1e6:.0f} MB")


def _await_end(process: _Process) -> int:
    """Wait until a process has ended, and look at its memory meanwhile."""
    opened = getattr(os, "pidfd_open", None)
    handle = -1
    if opened is not None:
        with contextlib.suppress(OSError):
            handle = opened(process.popen.pid)
    try:
        while True:
            if handle >= 0:
                select.select([handle], [], [], _IDLE_LOOK_S)
            else:  # an older kernel
                time.sleep(_LOOK_S)
            code = process.popen.poll()
            if code is not None:
                return code
            _check_memory(process)
    finally:
        if handle >= 0:
            os.close(handle)


def _ended(code: int) -> str:
    if code < 0:
        return f"crashed with signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}"
