"""What a device remembers: the bundle it has confirmed, what is under way, and how the last one ended.

Plain values and their strict reading. ``state.json`` holds them; ``edge.agent.device`` writes it and
``edge.agent.install`` says what may follow what.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kit.errors import VerificationError

IDLE, STAGED, TRIAL = "idle", "staged", "trial"
"""Phases: nothing is under way; a slot waits for its trial; a trial has begun."""

CONFIRMED, UNCHANGED, REJECTED = "confirmed", "unchanged", "rejected"
FELL_BACK, RETURNED, REFUSED = "fell_back", "returned", "refused"
"""What a report can say."""

LINK, FILE = "link", "file"
"""How ``current`` can be written."""

MAX_REJECTED = 64
"""Rejections remembered; the oldest go."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

_Rule = Callable[[Any], bool]


@dataclass(frozen=True)
class Report:
    """Say how the last thing that happened on the device ended.

    Attributes:
        status: ``confirmed``, ``unchanged`` (it already ran), ``rejected``, ``refused`` (a keyring),
            ``fell_back`` (what ran has failed) or ``returned`` (somebody wanted the last one back).
        detail: One sentence.
        error: The class of the error behind a rejection; empty otherwise.
        digest: The bundle it is about; None when it could not be verified and so has no name.
        file: The file in ``incoming/`` it came from; None when there was none.
    """

    status: str
    detail: str
    error: str = ""
    digest: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class State:
    """Remember what a device has confirmed and what is under way.

    Attributes:
        pointer: How ``current`` is written, ``link`` or ``file``; decided once.
        phase: ``idle``, ``staged`` or ``trial``.
        current: Digest of the confirmed slot; None before the first confirmation.
        previous: Digest of the slot to fall back to.
        factory: Digest of the slot that is never given up: the first that was confirmed.
        release: The highest release confirmed so far; 0 before the first.
        release_digest: The digest confirmed at that release.
        staged: Digest of the slot that waits for its trial or is on trial.
        attempts: Trials of the staged slot that have begun.
        examined: Whether the slot on trial has answered its golden rows; only then it runs and is confirmed.
        source: File in ``incoming/`` the staged slot came from.
        rejected: Digest to reason, for bundles that a trusted key signed, that are whole and were refused or
            taken back since the last confirmation; the newest ``MAX_REJECTED``.
        keyring_counter: Of the keyring that has replaced the pinned keys; 0 before the first.
        time_floor_s: A time that has certainly passed, Unix seconds, from what was signed; a clock that shows
            less is wrong.
        last_report: How the last bundle ended.
    """

    pointer: str = LINK
    phase: str = IDLE
    current: str | None = None
    previous: str | None = None
    factory: str | None = None
    release: int = 0
    release_digest: str | None = None
    staged: str | None = None
    attempts: int = 0
    examined: bool = False
    source: str | None = None
    rejected: Mapping[str, str] = field(default_factory=dict)
    keyring_counter: int = 0
    time_floor_s: int = 0
    last_report: Report | None = None

    @property
    def wanted(self) -> str | None:
        """The slot that shall answer: the one on trial, once it was examined, or the confirmed one."""
        return self.staged if self.phase == TRIAL and self.examined else self.current

    @property
    def good(self) -> tuple[str, ...]:
        """The confirmed slots, in the order they are fallen back to."""
        digests = (self.current, self.previous, self.factory)
        return tuple(dict.fromkeys(digest for digest in digests if digest is not None))

    def to_json(self) -> dict[str, Any]:
        """Give the state as the object ``state.json`` holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Read the object ``state.json`` holds.

        Raises:
            VerificationError: It is not one this agent writes.
        """
        _check_fields(value, _STATE_RULES, what="the state")
        report = value.get("last_report")
        if report is not None:
            _check_fields(report, _REPORT_RULES, what="the state's last_report")
            if "status" not in report or "detail" not in report:
                raise VerificationError("the state's last_report lacks its status or its detail")
            report = Report(**report)
        return cls(**{**value, "last_report": report})


def _check_fields(value: Mapping[str, Any], rules: Mapping[str, _Rule], *, what: str) -> None:
    for key, entry in value.items():
        if key not in rules:
            raise VerificationError(f"{what} has {key[:40]!r}, which no agent writes")
        if not rules[key](entry):
            shown = repr(entry) if len(repr(entry)) <= 40 else f"{repr(entry)[:37]}..."
            raise VerificationError(f"{what} has {key} = {shown}, which no agent writes")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_digest_or_none(value: object) -> bool:
    return value is None or _is_digest(value)


def _is_file_or_none(value: object) -> bool:
    """Say whether it names a file in one folder: never a path, for the file is deleted later."""
    return value is None or (isinstance(value, str) and value not in ("", ".", "..") and "/" not in value)


def _is_rejections(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_digest, value)) and all(map(_is_text, value.values()))


#: Field of ``state.json`` to what it may hold.
_STATE_RULES: dict[str, _Rule] = {
    "pointer": lambda value: value in (LINK, FILE),
    "phase": lambda value: value in (IDLE, STAGED, TRIAL),
    "current": _is_digest_or_none,
    "previous": _is_digest_or_none,
    "factory": _is_digest_or_none,
    "release": _is_count,
    "release_digest": _is_digest_or_none,
    "staged": _is_digest_or_none,
    "attempts": _is_count,
    "examined": lambda value: isinstance(value, bool),
    "source": _is_file_or_none,
    "rejected": _is_rejections,
    "keyring_counter": _is_count,
    "time_floor_s": _is_count,
    "last_report": lambda value: value is None or isinstance(value, dict),
}
_STATUSES = (CONFIRMED, UNCHANGED, REJECTED, FELL_BACK, RETURNED, REFUSED)
_REPORT_RULES: dict[str, _Rule] = {
    "status": lambda value: value in _STATUSES,
    "detail": _is_text,
    "error": _is_text,
    "digest": _is_digest_or_none,
    "file": _is_file_or_none,
}
